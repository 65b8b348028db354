import copy
import itertools

import pytest
import torch
from torch.nn.functional import layer_norm

from objectives import CrossAttentionEnergy, HopfieldEnergy, SymmetricEnergy
from unrolling import EnergyLayerNorm, EnergyTransformer, GradientStep, MirrorStep


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


def trained(layer):
    """Other than at construction: a gain that is not 1, a bias that is not 0."""
    if layer.norm is not None:
        with torch.no_grad():
            layer.norm.log_gain.fill_(0.5)
            layer.norm.bias.normal_()
    return layer.double()


@pytest.mark.parametrize(
    ("activation", "normalised", "exclude_self", "certified"),
    list(itertools.product(("relu", "softmax"), (True, False), (True, False), (True, False))),
)
@pytest.mark.parametrize("shape", [(9, 12), (2, 1, 12), (2, 3, 5, 12)])
def test_forward_is_the_declared_step(activation, normalised, exclude_self, certified, shape, device):
    layer = EnergyTransformer(
        12,
        3,
        activation=activation,
        normalised=normalised,
        exclude_self=exclude_self,
        certified=certified,
        step_size=0.7,
    )
    layer = trained(layer).to(device)
    assert off(layer, torch.randn(*shape, dtype=torch.float64, device=device)) < 1e-12


@pytest.mark.parametrize("normalised", [True, False])
def test_the_block_is_its_equation(normalised):
    layer = trained(EnergyTransformer(6, 2, memories=5, normalised=normalised))
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        g = x
        if normalised:
            c = x - x.mean(-1, keepdim=True)
            g = layer.norm.gain * c / (c.square().mean(-1, keepdim=True) + 1e-5).sqrt() + layer.norm.bias
        want = x.clone()
        for i, memory in itertools.product(range(4), layer.memories):
            want[i] += 0.1 * max(float(g[i] @ memory), 0.0) * memory
        for h, i in itertools.product(range(2), range(4)):
            W_Q, W_K = (W[:, 3 * h : 3 * h + 3] for W in (layer.W_Q, layer.W_K))
            others = [j for j in range(4) if j != i]
            share = torch.softmax(3**-0.5 * (g[others] @ W_K) @ (g[i] @ W_Q), 0)
            want[i] += 0.1 * W_Q @ (share @ (g[others] @ W_K))
            want[others] += 0.1 * torch.outer(share, W_K @ (g[i] @ W_Q))
        torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6)  # the step was stored in single precision


def test_the_normalisation_is_the_gradient_of_a_convex_function():
    norm = EnergyLayerNorm(6).double()
    with torch.no_grad():
        norm.log_gain.fill_(0.4)
        norm.bias.normal_()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm.lagrangian(x), x)
    torch.testing.assert_close(norm(x), gradient)
    torch.testing.assert_close(norm(x), norm.gain * layer_norm(x, (6,)) + norm.bias)
    J = torch.autograd.functional.jacobian(lambda z: norm(z[None])[0], x[0].detach())
    torch.testing.assert_close(J, J.mT)
    assert float(torch.linalg.eigvalsh(J)[0]) > -1e-12
    v = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(norm.product(x[:1].detach(), v[None])[0], J @ v)
    assert EnergyLayerNorm(6, bias=False)(torch.randn(2, 6)).shape == (2, 6)
    assert EnergyLayerNorm(6, bias=False).lagrangian(torch.randn(2, 6)).shape == ()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("activation", ["relu", "softmax"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_certified_blocks_never_raise_the_energy(normalised, activation, scale):
    layer = trained(
        EnergyTransformer(12, 3, normalised=normalised, activation=activation, certified=True, step_size=1.9)
    )
    x = scale * torch.randn(3, 9, 12, dtype=torch.float64)
    with torch.no_grad():
        layer.step.fill_(30.0)
        for _ in range(8):
            after = layer(x)
            assert bool((layer.energy(after) <= layer.energy(x)).all())
            x = after


def test_the_energy_falls_at_the_rate_of_the_jacobian():
    layer = trained(EnergyTransformer(12, 3))
    x = torch.randn(5, 12, dtype=torch.float64)
    with torch.no_grad():
        force = (layer(x) - x) / layer.step
        rate = -(force * layer.norm.product(x, force)).sum()
        slope = (layer.energy(x + 1e-6 * force) - layer.energy(x - 1e-6 * force)) / 2e-6
    assert float(slope) == pytest.approx(float(rate), rel=1e-5)
    assert rate < 0


def test_mirror_steps_are_gradient_steps_for_the_identity(bases):
    energy, x = SymmetricEnergy(bases, 0.5), torch.randn(2, 5, 12, dtype=torch.float64)
    kappa = torch.tensor([0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(MirrorStep(lambda z: z)(energy, x, kappa), GradientStep()(energy, x, kappa))
    torch.testing.assert_close(MirrorStep(lambda z: 2 * z)(energy, x, 0.1), x - 0.1 * energy.gradient(2 * x))


def test_single_precision_follows_double():
    layer, x = EnergyTransformer(12, 3), torch.randn(2, 9, 12)
    wide = copy.deepcopy(layer).double()
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_gradients_are_right_through_the_block(activation):
    layer = trained(EnergyTransformer(6, 2, memories=5, activation=activation))
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-6, rtol=1e-5)
    layer(x).pow(3).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_what_it_declares():
    x = torch.randn(9, 12)
    assert isinstance(EnergyTransformer(12, 3).objective_at(x).memory, HopfieldEnergy)
    assert isinstance(EnergyTransformer(12, 3, activation="softmax").objective_at(x).memory, CrossAttentionEnergy)
    assert isinstance(EnergyTransformer(12, 3).step_rule(), MirrorStep)
    assert isinstance(EnergyTransformer(12, 3, normalised=False).step_rule(), GradientStep)
    assert len(EnergyTransformer(12, 3).memories) == 48
    assert "memories=48" in repr(EnergyTransformer(12, 3))


def test_state_goes_round():
    first, second = EnergyTransformer(12, 3, certified=True), EnergyTransformer(12, 3, certified=True)
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 12)
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"dim": 12, "memories": 0}, ValueError, "memories must be at least 1"),
        ({"dim": 12, "activation": "gelu"}, ValueError, "activation must be one of 'relu', 'softmax'"),
        ({"dim": 12, "scale": 0.0}, ValueError, "scale must be positive and finite"),
        ({"dim": 12, "memory_scale": -1.0}, ValueError, "memory_scale must be positive and finite"),
        ({"dim": 12, "step_size": float("nan")}, ValueError, "step_size must be finite"),
        ({"dim": 12, "certified": True, "step_size": 2.0}, ValueError, r"units of 1/L and must lie in \(0, 2\)"),
        ({"dim": 12, "eps": 0.0}, ValueError, "eps must be positive and finite"),
    ],
)
def test_bad_layers_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        EnergyTransformer(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (torch.randn(2, 9, 10), ValueError, "x has dim 10, but U expects dim 12"),
        (torch.randn(0, 12), ValueError, "at least one token"),
        (torch.randn(9, 12).double(), TypeError, "x is torch.float64, but the layer is torch.float32"),
    ],
)
def test_bad_tokens_are_refused(x, error, said):
    with pytest.raises(error, match=said):
        EnergyTransformer(12, 3)(x)
