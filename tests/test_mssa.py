import copy
import dataclasses
import itertools

import pytest
import torch

from objectives import SelfAttentionEnergy, SubspaceCodingRate
from proofs_check import find
from proofs_check.strategies import WITNESS, WITNESS_6, WITNESS_9, WITNESS_10
from unrolling import MSSA


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize(
    ("form", "certified", "per_head", "basis"),
    [
        *itertools.product(("exact", "softmax"), (False, True), (False, True), ("orthonormal",)),
        ("exact", False, True, "free"),
        ("softmax", False, False, "free"),
    ],
)
@pytest.mark.parametrize("shape", [(9, 12), (2, 1, 12), (2, 3, 5, 12)])
def test_forward_is_the_declared_step(form, certified, per_head, basis, shape, device):
    layer = MSSA(12, 3, form=form, certified=certified, per_head_step=per_head, basis=basis, step_size=0.7)
    layer = layer.double().to(device)
    assert off(layer, torch.randn(*shape, dtype=torch.float64, device=device)) < 1e-12


def test_both_forms_are_their_equations(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    exact, softmax = torch.zeros_like(x), torch.zeros_like(x)
    for U in bases:
        w = x @ U
        exact += (4 / (9 * 0.25)) * w @ torch.linalg.inv(torch.eye(4) + (4 / (9 * 0.25)) * w.mT @ w) @ U.mT
        softmax += torch.softmax(0.5 * w @ w.mT, -1) @ w @ U.mT
    torch.testing.assert_close(MSSA(12, 3, U=bases, step_size=0.3)(x), x - 0.3 * exact)
    torch.testing.assert_close(MSSA(12, 3, U=bases, form="softmax", step_size=0.3)(x), x + 0.3 * softmax)


def test_single_precision_follows_double():
    layer, x = MSSA(12, 3), torch.randn(2, 9, 12)
    wide = copy.deepcopy(layer).double()
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_gradients_are_right_through_the_layer(form, bases):
    layer = MSSA(12, 3, U=bases, form=form, per_head_step=True)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7, rtol=1e-5)
    layer(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_bases_stay_orthonormal_whatever_the_optimiser_does():
    layer = MSSA(12, 3, form="softmax").double()
    optimiser = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(30):
        optimiser.zero_grad()
        (-layer(torch.randn(2, 9, 12, dtype=torch.float64)).square().mean()).backward()
        optimiser.step()
    flat = layer.basis.detach()
    torch.testing.assert_close(flat.mT @ flat, torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_certified_steps_stay_certified_after_training(form):
    layer = MSSA(12, 3, form=form, certified=True, per_head_step=True, step_size=-1.0 if form == "softmax" else 1.0)
    layer = layer.double()
    with torch.no_grad():
        layer.step.add_(torch.tensor([-30.0, 3.0, 30.0]))
    x = torch.randn(9, 12, dtype=torch.float64)
    objective = layer.objective_at(x)
    assert 0 < float(objective.lipschitz(x)) <= 2
    assert objective.value(layer(x)) <= objective.value(x)


@pytest.mark.parametrize("step", [0.0, 2.0, -1.0, float("nan")])
def test_certified_steps_have_an_interval(step):
    with pytest.raises(ValueError, match=r"units of 1/L and must lie in \(0, 2\)|must be finite"):
        MSSA(12, 3, certified=True, step_size=step)


def test_a_free_output_matrix_withdraws_the_claim_unless_it_is_the_bases(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    layer = MSSA(12, 3, U=bases, tied=False)
    torch.testing.assert_close(layer(x), MSSA(12, 3, U=bases)(x))
    assert off(layer, x) < 1e-12
    with torch.no_grad():
        layer.output.weight[0, 0] += 0.1
    with pytest.raises(ValueError, match=r"no descent is claimed: the output matrix is free .*max \|O − U\| = 0.1"):
        layer.objective_at(x)


def test_what_it_declares_and_what_it_stands_in_for(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    exact, softmax = MSSA(12, 3, U=bases), MSSA(12, 3, U=bases, form="softmax")
    assert isinstance(exact.objective_at(x), SubspaceCodingRate)
    assert exact.approximates_at(x) is None
    assert isinstance(softmax.objective_at(x), SelfAttentionEnergy)
    assert not softmax.objective_at(x).keys.requires_grad
    assert isinstance(softmax.approximates_at(x), SubspaceCodingRate)


def test_state_goes_round():
    first, second = MSSA(12, 3, certified=True), MSSA(12, 3, certified=True)
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 12)
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            {"dim": 12, "heads": 5, "head_dim": 4},
            ValueError,
            "5 heads of 4 dimensions cannot be orthonormal in dim 12",
        ),
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"dim": 12, "heads": 2.0}, TypeError, "heads must be an integer"),
        ({"dim": 12, "form": "soft"}, ValueError, "form must be one of 'exact', 'softmax', but is 'soft'"),
        ({"dim": 12, "basis": "square"}, ValueError, "basis must be one of 'orthonormal', 'free'"),
        ({"dim": 12, "epsilon": 0.0}, ValueError, "epsilon must be positive and finite"),
        ({"dim": 12, "scale": -1.0}, ValueError, "scale must be positive and finite"),
        ({"dim": 12, "step_size": float("nan")}, ValueError, "step_size must be finite"),
        ({"dim": 12, "output_bias": True}, ValueError, "an output bias belongs to a free output matrix"),
        (
            {"dim": 12, "certified": True, "basis": "free"},
            ValueError,
            "certified=True needs orthonormal bases",
        ),
        ({"dim": 12, "certified": True, "tied": False}, ValueError, "certified=True needs the tied output"),
        ({"dim": 12, "U": torch.ones(1, 12, 3)}, ValueError, "U is not orthonormal"),
        (
            {"dim": 12, "U": torch.ones(12, 3)},
            ValueError,
            r"U must be a tensor \(heads, dim, head_dim\) = \(1, 12",
        ),
    ],
)
def test_bad_layers_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        MSSA(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (
            torch.randn(2, 9, 10),
            ValueError,
            r"x has dim 10, but U expects dim 12(.|\n)*\(2, 9, 10\); U is .* = \(3, 12, 4\)",
        ),
        (torch.randn(0, 12), ValueError, "at least one token"),
        (torch.randn(9, 12).double(), TypeError, "x is torch.float64, but the layer is torch.float32"),
        ([1.0], TypeError, "must be a torch.Tensor"),
    ],
)
def test_bad_tokens_are_refused(x, error, said):
    with pytest.raises(error, match=said):
        MSSA(12, 3)(x)


@pytest.mark.parametrize(
    ("case", "cosine"), [(WITNESS_6, -2.394e-4), (WITNESS_9, -2.449e-4), (WITNESS_10, -6.373e-5), (WITNESS, -1.9035e-3)]
)
def test_witnesses_of_the_sign_are_witnesses(case, cosine):
    """The layer itself, and fifty digits: a step along −MSSA raises the rate."""
    measured = find("mssa.sign.minus_descends").judge(case)
    assert not measured.truth
    assert measured.worst.name == "fifty digits"
    assert measured.values["cosine of ∇R_c and MSSA"] == pytest.approx(cosine, rel=1e-3)
    with torch.no_grad():
        x, U = case.x(), case.U()
        layer = MSSA(case.dim, 1, U=U, form="softmax", scale=1.0)
        rate = SubspaceCodingRate(U, case.epsilon)
        assert rate.value(x - 1e-7 * layer.update(x)) > rate.value(x)


def test_fewer_representatives_than_ever_break_the_softmax_form_of_cbsa():
    claim = find("cbsa.sign.softmax_descends")
    for case in (WITNESS_6, WITNESS_9, WITNESS):
        assert not claim.judge(dataclasses.replace(case, m=case.tokens)).truth


def test_a_query_reads_the_tokens_in_the_same_bases(bases):
    layer = MSSA(12, 3, U=bases, form="softmax", step_size=0.3)
    x, query = (torch.randn(2, count, 12, dtype=torch.float64) for count in (9, 4))
    want = torch.zeros_like(query)
    for U in bases:
        want += torch.softmax(0.5 * (query @ U) @ (x @ U).mT, -1) @ x @ U @ U.mT
    torch.testing.assert_close(layer.update(x, query), 0.3 * want)
    torch.testing.assert_close(layer(x, query=query), query + 0.3 * want)
    torch.testing.assert_close(layer(x, query=x), layer(x))
    with pytest.raises(ValueError, match="a query reads the tokens in the softmax form only"):
        MSSA(12, 3, U=bases)(x, query=query)


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_without_residual_the_update_is_returned_and_nothing_claimed(bases, form):
    x = torch.randn(9, 12, dtype=torch.float64)
    layer, whole = (MSSA(12, 3, U=bases, form=form, residual=residual) for residual in (False, True))
    torch.testing.assert_close(layer(x), whole(x) - x)
    torch.testing.assert_close(layer.adds(x), layer.update(x))
    assert "no residual" in repr(layer)
    with pytest.raises(ValueError, match="with residual=False it returns the update alone"):
        layer.objective_at(x)


def test_without_an_output_matrix_the_coordinates_come_out(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    layer = MSSA(12, 3, U=bases, form="softmax", tied=False, projected=False, residual=False)
    w = [x @ U for U in bases]
    want = torch.cat([torch.softmax(0.5 * part @ part.mT, -1) @ part for part in w], -1)
    torch.testing.assert_close(layer(x), want)
    assert not hasattr(layer, "output")
    with pytest.raises(ValueError, match="projected=False leaves out the bases on the way back"):
        MSSA(12, 3, U=bases, tied=False, projected=False).objective_at(x)
    with pytest.raises(ValueError, match="projected=False leaves the coordinates as they are: it goes with tied=False"):
        MSSA(12, 3, U=bases, projected=False)
    with pytest.raises(ValueError, match=r"2 × 4 = 8 and dim is 12"):
        MSSA(12, 2, 4, tied=False, projected=False)


def test_dropout_is_of_weights_and_output_while_training(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    layer = MSSA(12, 3, U=bases, form="softmax", dropout=0.5)
    assert not torch.equal(layer(x), layer(x))
    free = MSSA(12, 3, U=bases, form="softmax", dropout=0.5, tied=False, residual=False)
    share = float((torch.stack([free(x) for _ in range(200)]) == 0).double().mean())
    assert 0.45 < share < 0.55  # behind the output matrix; a tied one has no such place
    assert float((layer.update(x) == 0).double().mean()) == 0
    torch.testing.assert_close(layer.eval()(x), MSSA(12, 3, U=bases, form="softmax")(x))
    for wrong, text in (
        ({"dropout": 1.0}, "dropout must be"),
        ({"dropout": 0.1, "form": "exact"}, "dropout is of atten"),
    ):
        with pytest.raises(ValueError, match=text):
            MSSA(12, 3, **{"form": "softmax", **wrong})


def test_a_constant_step_is_no_parameter_and_not_saved():
    learned, constant = MSSA(12, 3), MSSA(12, 3, learnable_step=False, step_size=0.3)
    assert "step" in dict(learned.named_parameters())
    assert "step" in learned.state_dict()
    assert "step" in dict(constant.named_buffers())
    assert "step" not in constant.state_dict()
    assert constant.double().step.dtype == torch.float64


def test_the_exact_form_solves_in_single_precision_under_autocast(bases):
    layer = MSSA(12, 3, U=bases.float(), form="exact", step_size=0.3)
    x = torch.randn(2, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    torch.testing.assert_close(half, layer(x), atol=3e-2, rtol=3e-2)
    assert torch.isfinite(half).all()


def test_orthonormal_bases_are_made_in_single_precision_for_half():
    layer = MSSA(12, 3, form="softmax")
    half = copy.deepcopy(layer).bfloat16()
    assert half.basis.dtype == torch.bfloat16
    torch.testing.assert_close(half.basis.float(), layer.basis, atol=2e-2, rtol=0)
    assert half(torch.randn(5, 12, dtype=torch.bfloat16)).isfinite().all()
