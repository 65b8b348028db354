import copy

import pytest
import torch

from objectives import sparse_coding
from proofs_check import check_layer
from unrolling import ISTA, OvercompleteISTA, ProximalStep, Unrolled


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.parametrize("shape", [(1, 12), (9, 12), (2, 3, 5, 12)])
def test_forward_is_the_declared_step(nonnegative, certified, shape, device):
    layer = ISTA(12, nonnegative=nonnegative, certified=certified, step_size=0.7).double().to(device)
    assert off(layer, torch.randn(*shape, dtype=torch.float64, device=device)) < 1e-12


def test_it_is_its_equation_with_three_products():
    D, x = torch.randn(5, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    want = [torch.relu(z + 0.1 * (D.mT @ z - D.mT @ D @ z) - 0.1 * 0.2) for z in x]
    torch.testing.assert_close(ISTA(5, D=D, step_size=0.1, weight=0.2)(x), torch.stack(want))


@torch.no_grad()
def test_the_witness_of_the_fixed_step():
    """η‖D‖² = 2.5: the step overshoots, and the objective doubles."""
    layer = ISTA(2, D=torch.tensor([[0.0, 0.0], [5.0, 0.0]], dtype=torch.float64))
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    f = layer.objective_at(x)
    assert float(f.value(x)) == pytest.approx(0.6)
    assert float(f.value(layer(x))) == pytest.approx(1.19925)
    assert f.value(ISTA(2, D=layer.D, certified=True, step_size=1.0)(x)) < f.value(x)


def test_certified_steps_stay_inside_whatever_the_optimiser_does():
    layer = ISTA(6, certified=True, step_size=1.5, learnable_step=True).double()
    with torch.no_grad():
        for move in (-40.0, 40.0):
            layer.step.fill_(move)
            share = layer.kappa() * torch.linalg.matrix_norm(layer.D, 2) ** 2
            assert 0 < float(share) <= 2


def test_gradients_are_right_and_reach_what_is_learnable():
    layer = ISTA(4, learnable_step=True, learnable_weight=True).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7)
    layer(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())
    assert [name for name, p in ISTA(4).named_parameters() if p.requires_grad] == ["D"]


def test_single_precision_follows_double_and_state_goes_round():
    layer, x = ISTA(12), torch.randn(2, 9, 12)
    torch.testing.assert_close(layer(x).double(), copy.deepcopy(layer).double()(x.double()), rtol=1e-4, atol=1e-5)
    other = ISTA(12)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_codes_are_unrolled_sparse_coding_from_zero(steps):
    layer = OvercompleteISTA(6, steps=steps).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    f = sparse_coding(layer.D.detach(), x, 0.1, nonnegative=True)
    network = Unrolled(f, ProximalStep(), depth=steps, step_size=0.1).double()
    torch.testing.assert_close(layer.codes(x), network(torch.zeros(2, 9, 24, dtype=torch.float64)))
    torch.testing.assert_close(layer(x), layer.codes(x) @ layer.D.mT)


def test_variants_of_the_overcomplete_block():
    x = torch.randn(9, 6, dtype=torch.float64)
    tied = OvercompleteISTA(6).double()
    assert check_layer(tied).evidence
    residual = OvercompleteISTA(6, residual=True, D=tied.D).double()
    torch.testing.assert_close(residual(x), x + tied(x))
    free = OvercompleteISTA(6, decoupled=True, D=tied.D).double()
    torch.testing.assert_close(free(x), tied(x))
    with torch.no_grad():
        free.decoder.mul_(2.0)
    torch.testing.assert_close(free(x), 2 * tied(x))
    for layer in (residual, free):
        with pytest.raises(ValueError, match="no descent is claimed"):
            layer.objective_at(x)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: ISTA(0), ValueError, "dim must be at least 1"),
        (lambda: ISTA(4, step_size=-0.1), ValueError, "step_size must be positive and finite"),
        (lambda: ISTA(4, weight=0.0), ValueError, "ISTA: weight must be positive"),
        (lambda: ISTA(4, certified=True, step_size=2.0), ValueError, r"must lie in \(0, 2\)"),
        (lambda: ISTA(4, D=torch.eye(3)), ValueError, r"D must be a tensor \(dim, dim\) = \(4, 4\), but is \(3, 3\)"),
        (lambda: OvercompleteISTA(4, steps=0), ValueError, "steps must be at least 1"),
        (lambda: OvercompleteISTA(4, atoms=1.5), TypeError, "atoms must be an integer"),
        (lambda: OvercompleteISTA(4, weight=-1.0), ValueError, "OvercompleteISTA: weight must be positive"),
        (lambda: OvercompleteISTA(4, D=torch.eye(4)), ValueError, r"D must be a tensor \(dim, atoms\) = \(4, 16\)"),
        (lambda: ISTA(4)(torch.ones(2, 3)), ValueError, "x has dim 3"),
        (lambda: OvercompleteISTA(4)(torch.ones(2, 4).double()), TypeError, "x is torch.float64"),
    ],
)
def test_bad_blocks_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_constants_are_as_precise_as_the_weights(dtype):
    layer = ISTA(4, step_size=0.1, weight=0.3).to(dtype)
    assert layer.kappa() == torch.tensor(0.1, dtype=dtype)
    assert layer.weight == torch.tensor(0.3, dtype=dtype)
    learned = ISTA(4, step_size=0.1, weight=0.3, learnable_step=True, learnable_weight=True).to(dtype)
    torch.testing.assert_close(learned.kappa().detach().double(), torch.tensor(0.1).double(), rtol=1e-2, atol=0)
    assert set(layer.state_dict()) == {"D"}
    assert set(learned.state_dict()) == {"D", "step", "log_weight"}
