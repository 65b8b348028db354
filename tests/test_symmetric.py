import copy
import itertools

import pytest
import torch

from objectives import AttentionEnergy, SymmetricEnergy
from unrolling import SymmetricAttention
from unrolling.layers import symmetric


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize(
    ("form", "certified", "per_head", "basis"),
    [
        *itertools.product(("tied", "general"), (False, True), (False, True), ("orthonormal",)),
        ("tied", False, True, "free"),
        ("general", False, False, "free"),
    ],
)
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("shape", [(9, 12), (2, 3, 5, 12)])
def test_forward_is_the_declared_step(form, certified, per_head, basis, exclude_self, shape, device):
    layer = SymmetricAttention(
        12,
        3,
        form=form,
        certified=certified,
        per_head_step=per_head,
        basis=basis,
        exclude_self=exclude_self,
        step_size=0.7,
    )
    layer = layer.double().to(device)
    assert off(layer, torch.randn(*shape, dtype=torch.float64, device=device)) < 1e-12


def test_a_token_alone_reads_itself_or_nothing(bases):
    x = torch.randn(2, 1, 12, dtype=torch.float64)
    torch.testing.assert_close(SymmetricAttention(12, 3, U=bases, step_size=0.3)(x), 1.3 * x)
    torch.testing.assert_close(SymmetricAttention(12, 3, U=bases, exclude_self=True)(x), x)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_both_forms_are_their_equations(bases, exclude_self):
    x = torch.randn(6, 12, dtype=torch.float64)
    other = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q.reshape(12, 3, 4).transpose(0, 1).contiguous()
    for form, W_K in (("tied", bases), ("general", other)):
        want = x.clone()
        for U, V in zip(bases, W_K, strict=True):
            q, k = x @ U, x @ V
            for i in range(6):
                others = [j for j in range(6) if not (exclude_self and j == i)]
                share = torch.softmax(0.5 * k[others] @ q[i], 0)
                want[i] += 0.15 * U @ (share @ k[others])
                want[others] += 0.15 * torch.outer(share, V @ q[i])
        layer = SymmetricAttention(
            12,
            3,
            form=form,
            U=bases,
            W_K=other if form == "general" else None,
            step_size=0.3,
            exclude_self=exclude_self,
        )
        torch.testing.assert_close(layer(x), want)


def test_chunks_of_rows_are_all_rows_forwards_and_backwards(bases, monkeypatch):
    results = []
    for chunk in (1 << 21, 30, 1):
        monkeypatch.setattr(symmetric, "_CHUNK", chunk)
        for exclude_self in (False, True):
            layer = SymmetricAttention(12, 3, U=bases, exclude_self=exclude_self)
            x = torch.linspace(-1, 1, 84, dtype=torch.float64).sin().reshape(7, 12).requires_grad_()
            y = layer(x)
            with torch.no_grad():
                torch.testing.assert_close(layer(x), y)
            y.square().sum().backward()
            results.append((y.detach(), x.grad))
    for number, (y, grad) in enumerate(results):
        torch.testing.assert_close(y, results[number % 2][0])
        torch.testing.assert_close(grad, results[number % 2][1])


def test_single_precision_follows_double():
    layer, x = SymmetricAttention(12, 3, form="general"), torch.randn(2, 9, 12)
    wide = copy.deepcopy(layer).double()
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["tied", "general"])
def test_gradients_are_right_through_the_layer(form, bases):
    layer = SymmetricAttention(12, 3, U=bases, form=form, per_head_step=True, exclude_self=form == "general").double()
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7, rtol=1e-5)
    layer(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("form", ["tied", "general"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_certified_steps_lower_the_energy_wherever_the_tokens_are(form, scale):
    layer = SymmetricAttention(12, 3, form=form, certified=True, per_head_step=True, step_size=1.9).double()
    with torch.no_grad():
        layer.step.add_(torch.tensor([-30.0, 3.0, 30.0]))
    for _ in range(5):
        x = scale * torch.randn(9, 12, dtype=torch.float64)
        objective = layer.objective_at(x)
        assert objective.value(layer(x)) <= objective.value(x)


@pytest.mark.parametrize(("form", "bound"), [("tied", 0.5 * 11**0.5), ("general", 3.0)])
def test_certified_steps_are_in_units_of_the_curvature(form, bound):
    layer, x = SymmetricAttention(12, 3, form=form, certified=True, step_size=0.7).double(), torch.randn(9, 12).double()
    assert layer.bounds_at(x) == pytest.approx(bound)
    assert float(layer.step_size_at(x)) == pytest.approx(0.7 / bound)


def test_what_it_declares(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    assert isinstance(SymmetricAttention(12, 3, U=bases).objective_at(x), SymmetricEnergy)
    assert isinstance(SymmetricAttention(12, 3, U=bases, exclude_self=True).objective_at(x), AttentionEnergy)
    assert SymmetricAttention(12, 3, U=bases).approximates_at(x) is None
    torch.testing.assert_close(SymmetricAttention(12, 3, U=bases).W_K, bases)


def test_bases_of_the_keys_stay_orthonormal():
    layer = SymmetricAttention(12, 3, form="general").double()
    optimiser = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(5):
        optimiser.zero_grad()
        layer(torch.randn(2, 9, 12, dtype=torch.float64)).square().mean().backward()
        optimiser.step()
    flat = layer.key_basis.detach()
    torch.testing.assert_close(flat.mT @ flat, torch.eye(12, dtype=torch.float64))


def test_state_goes_round():
    first, second = (SymmetricAttention(12, 3, form="general", certified=True) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 12)
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"dim": 12, "form": "soft"}, ValueError, "form must be one of 'tied', 'general', but is 'soft'"),
        ({"dim": 12, "heads": 5, "head_dim": 4}, ValueError, "cannot be orthonormal in dim 12"),
        ({"dim": 12, "scale": -1.0}, ValueError, "scale must be positive and finite"),
        ({"dim": 12, "certified": True, "step_size": -1.0}, ValueError, r"from above only, so step_size must be"),
        ({"dim": 12, "certified": True, "step_size": 2.0}, ValueError, "units of 1/L"),
        ({"dim": 12, "W_K": torch.eye(12)[None]}, ValueError, "W_K belongs to form='general'"),
        ({"dim": 12, "form": "general", "W_K": torch.eye(12)}, ValueError, r"W_K must be .* = \(1, 12, 12\)"),
        ({"dim": 12, "form": "general", "W_K": torch.ones(1, 12, 12)}, ValueError, "W_K is not orthonormal"),
    ],
)
def test_bad_layers_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        SymmetricAttention(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (torch.randn(2, 9, 10), ValueError, r"x has dim 10, but U expects dim 12"),
        (torch.randn(0, 12), ValueError, "at least one token"),
        (torch.randn(9, 12).double(), TypeError, "x is torch.float64, but the layer is torch.float32"),
    ],
)
def test_bad_tokens_are_refused(x, error, said):
    with pytest.raises(error, match=said):
        SymmetricAttention(12, 3)(x)
