import itertools

import pytest
import torch

from objectives import KernelRegression
from unrolling import SoftmaxAttention


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize(
    ("projections", "bias", "kappa", "leading"),
    list(itertools.product(("free", "identity"), (True, False), (1.0, 0.3, -0.5), ((), (2,), (2, 3)))),
)
def test_forward_is_the_declared_step(projections, bias, kappa, leading, device):
    layer = SoftmaxAttention(12, 3, projections=projections, bias=bias, step_size=kappa).double().to(device)
    x = torch.randn(*leading, 7, 12, dtype=torch.float64, device=device)
    assert off(layer, x) < 1e-12
    assert isinstance(layer.objective_at(x), KernelRegression)
    assert layer.approximates_at(x) is None


@pytest.mark.parametrize("head_dim", [1, 2, 7])
def test_heads_need_not_fill_the_features(head_dim):
    layer = SoftmaxAttention(12, 3, head_dim).double()
    assert off(layer, torch.randn(5, 12, dtype=torch.float64)) < 1e-12


def test_it_is_torchs_multi_head_attention():
    layer = SoftmaxAttention(12, 3).double()
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        theirs.out_proj.weight.copy_(layer.output.weight)
        theirs.out_proj.bias.copy_(layer.output.bias)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    want, _ = theirs(x, x, x)
    torch.testing.assert_close(layer.attention(x), want)
    torch.testing.assert_close(layer(x), want)  # κ = 1
    torch.testing.assert_close(layer.update(x), want - x)


def test_without_projections_the_heads_share_out_the_features():
    layer = SoftmaxAttention(6, 2, projections="identity", scale=0.4, step_size=0.3).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    want = torch.empty_like(x)
    for h in (slice(0, 3), slice(3, 6)):
        for i in range(5):
            e = torch.exp(0.4 * (x[:, h] @ x[i, h]))
            want[i, h] = e @ x[:, h] / e.sum()
    torch.testing.assert_close(layer(x), x + 0.3 * (want - x))
    assert [name for name, _ in layer.named_parameters()] == ["step"]


@pytest.mark.parametrize("kappa", [0.2, 1.0, 1.9])
def test_steps_below_two_lower_the_regression_and_one_lands(kappa):
    layer = SoftmaxAttention(12, 3, step_size=kappa).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    f = layer.objective_at(x)
    assert (f.value(layer(x)) < f.value(x)).all()
    if kappa == 1.0:
        assert f.gradient(layer(x)).norm() < 1e-12


def test_the_declaration_is_detached():
    layer = SoftmaxAttention(12, 3)
    x = torch.randn(5, 12, requires_grad=True)
    f = layer.objective_at(x)
    assert not f.weights.requires_grad
    assert not f.values.requires_grad


@pytest.mark.parametrize("projections", ["free", "identity"])
def test_gradients_are_right_through_the_layer(projections):
    layer = SoftmaxAttention(4, 2, projections=projections, step_size=0.7).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def run(z, *given):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (z,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_single_precision_follows_double():
    layer, x = SoftmaxAttention(12, 3), torch.randn(7, 12)
    single = layer(x)
    torch.testing.assert_close(single, layer.double()(x.double()).float(), rtol=1e-5, atol=1e-6)


def test_a_state_goes_round():
    one, two = SoftmaxAttention(12, 3, step_size=0.3), SoftmaxAttention(12, 3)
    two.load_state_dict(one.state_dict())
    x = torch.randn(7, 12)
    assert torch.equal(one(x), two(x))


def test_the_step_can_be_fixed():
    assert not SoftmaxAttention(4, learnable_step=False).step.requires_grad
    assert SoftmaxAttention(4).step.requires_grad
    assert "projections='identity'" in repr(SoftmaxAttention(4, projections="identity"))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: SoftmaxAttention(12, 5, projections="identity"), ValueError, "5 × 2 = 10 is not dim 12"),
        (lambda: SoftmaxAttention(12, 3, projections="tied"), ValueError, "projections must be one of"),
        (lambda: SoftmaxAttention(0), ValueError, "dim must be at least 1"),
        (lambda: SoftmaxAttention(12, 2.0), TypeError, "heads must be an integer"),
        (lambda: SoftmaxAttention(12, 3, 0), ValueError, "head_dim must be at least 1"),
        (lambda: SoftmaxAttention(12, scale=0.0), ValueError, "scale must be positive"),
        (lambda: SoftmaxAttention(12, step_size=float("nan")), ValueError, "step_size must be a finite number"),
        (lambda: SoftmaxAttention(12, class_tokens=-1), ValueError, "class_tokens must be at least 0"),
        (lambda: SoftmaxAttention(12)(torch.randn(3, 4)), ValueError, "dim=12"),
        (lambda: SoftmaxAttention(12)(torch.randn(3, 12).double()), TypeError, "the layer is torch.float32"),
        (lambda: SoftmaxAttention(12)([1.0]), TypeError, "must be a torch.Tensor"),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()
