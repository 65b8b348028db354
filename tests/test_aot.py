import copy

import pytest
import torch

from objectives import SelectedEnergy, SelfAttentionEnergy, SubspaceMixture, signal_to_noise
from unrolling import MSSA, AoT
from unrolling.layers import aot


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize("form", ["threshold", "softmax"])
@pytest.mark.parametrize("basis", ["orthonormal", "free"])
@pytest.mark.parametrize("shape", [(9, 12), (2, 1, 12), (2, 3, 5, 12)])
def test_forward_is_the_declared_step(form, basis, shape, device):
    layer = AoT(12, 3, form=form, basis=basis, step_size=0.7, scale=2.0).double().to(device)
    assert off(layer, torch.randn(*shape, dtype=torch.float64, device=device)) < 1e-12


def test_both_forms_are_their_equations(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    thresholded = torch.zeros_like(x)
    selected = 0
    for U in bases:
        w = x @ U
        P = torch.softmax(w @ w.mT, -1)
        thresholded += 0.6 * (P > 0.6).double() @ w @ U.mT
        selected += int((P > 0.6).sum())
    assert 0 < selected < 27
    torch.testing.assert_close(AoT(12, 3, U=bases, threshold=0.6, step_size=0.3)(x), x + 0.3 * thresholded)
    softmax = AoT(12, 3, U=bases, form="softmax", step_size=0.3)
    torch.testing.assert_close(softmax(x), MSSA(12, 3, U=bases, form="softmax", step_size=0.3)(x))


def test_the_selection_is_the_thresholded_softmax_in_chunks_too(bases, monkeypatch):
    layer, x = AoT(12, 3, U=bases, threshold=0.6), torch.randn(2, 9, 12, dtype=torch.float64)
    w = x.unsqueeze(-3) @ bases
    P = torch.softmax(w @ w.mT, -1)
    partner, amount = layer.selection(x)
    got = torch.zeros_like(P).scatter(-1, partner[..., None], amount[..., None])
    torch.testing.assert_close(got, 0.6 * (P > 0.6).double())
    monkeypatch.setattr(aot, "_CHUNK", 60)
    torch.testing.assert_close(layer.selection(x)[0], partner)
    torch.testing.assert_close(layer.selection(x)[1], amount)


def test_the_signal_grows_by_its_factor_until_the_noise_selects():
    U = torch.linalg.qr(torch.randn(80, 80, dtype=torch.float64)).Q.reshape(80, 2, 40).transpose(0, 1).contiguous()
    x, labels = SubspaceMixture(U, 0.05).sample(6)
    layer, ratios = AoT(80, 2, U=U, threshold=0.6, step_size=0.5), []
    with torch.no_grad():
        for _ in range(40):
            ratios.append(signal_to_noise(x, labels, U))
            x = layer(x)
    ratios = torch.stack(ratios)
    torch.testing.assert_close(ratios[1] / ratios[0], torch.full((2,), 1.3, dtype=torch.float64))
    assert bool((ratios[1:] / ratios[:-1] < 1).any())


def test_single_precision_follows_double():
    layer, x = AoT(12, 3, form="softmax"), torch.randn(2, 9, 12)
    wide = copy.deepcopy(layer).double()
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["threshold", "softmax"])
def test_gradients_are_right_through_the_layer(form, bases):
    layer = AoT(12, 3, U=bases, form=form)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7, rtol=1e-5)
    layer(x).pow(3).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_what_it_declares_and_what_it_stands_in_for(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    threshold, softmax = AoT(12, 3, U=bases), AoT(12, 3, U=bases, form="softmax")
    assert isinstance(threshold.objective_at(x), SelectedEnergy)
    assert not threshold.objective_at(x).keys.requires_grad
    assert threshold.approximates_at(x) is None
    assert isinstance(softmax.objective_at(x), SelfAttentionEnergy)
    assert softmax.approximates_at(x) is not None
    assert (threshold.attention.scale, softmax.attention.scale) == (1.0, 0.5)


def test_state_goes_round():
    first, second = AoT(12, 3), AoT(12, 3)
    second.load_state_dict(first.state_dict())
    x = 3 * torch.randn(5, 12)
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"dim": 12, "form": "exact"}, ValueError, "form must be one of 'threshold', 'softmax', but is 'exact'"),
        ({"dim": 12, "threshold": 0.4}, ValueError, r"threshold must lie in \[0.5, 1\)"),
        ({"dim": 12, "threshold": 1.0}, ValueError, r"threshold must lie in \[0.5, 1\)"),
        ({"dim": 12, "heads": 5, "head_dim": 4}, ValueError, "cannot be orthonormal in dim 12"),
    ],
)
def test_bad_layers_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        AoT(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (torch.randn(2, 9, 10), ValueError, "x has dim 10, but U expects dim 12"),
        (torch.randn(9, 12).double(), TypeError, "x is torch.float64, but the layer is torch.float32"),
    ],
)
def test_bad_tokens_are_refused(x, error, said):
    with pytest.raises(error, match=said):
        AoT(12, 3)(x)
