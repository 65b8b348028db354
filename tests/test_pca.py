import math

import pytest
import torch
from tests_support import reverse_mode, sampled_stretch

from objectives import (
    ClassTokensOnly,
    CodingRate,
    Objective,
    PCARate,
    PCAReconstruction,
    PCAVariance,
    SeparableRate,
    SubspacePCARate,
    nearest_direction,
    principal_directions,
    subspace_alignment,
)
from unrolling import RiemannianStep, Unrolled, certified_stiefel_step, retract, tangent

ALL = [PCAReconstruction, PCAVariance, PCARate, SeparableRate]
S = torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.1], dtype=torch.float64))
HALF = 0.5**0.5


@pytest.fixture
def tokens():
    return torch.randn(2, 9, 5, dtype=torch.float64)


@pytest.fixture
def x():
    return torch.randn(2, 3, 5, dtype=torch.float64)


@pytest.fixture
def frame(x):
    return retract(x)


@pytest.mark.parametrize("make", ALL)
def test_gradients_are_reverse_mode(make, tokens, x, device):
    objective, x = make(tokens.to(device)), x.to(device)
    want = reverse_mode(objective, x)
    assert (objective.gradient(x) - want).norm() <= 1e-12 * want.norm()
    torch.testing.assert_close(make(tokens[1].to(device)).gradient(x[1]), want[1])


def test_values_are_their_definitions(tokens, x):
    Z, P = tokens[0], x[0].mT
    cov, beta = P.mT @ Z.mT @ Z @ P, 3 / (9 * 0.3**2)
    rate = 0.5 * torch.logdet(torch.eye(3) + beta * cov)
    separable = 0.5 * torch.log(1 + beta * cov.diagonal()).sum()
    torch.testing.assert_close(PCAReconstruction(Z).value(x[0]), (Z - Z @ P @ P.mT).norm() ** 2)
    torch.testing.assert_close(PCAVariance(Z).value(x[0]), -cov.trace())
    torch.testing.assert_close(PCARate(Z, 0.3).value(x[0]), -rate)
    torch.testing.assert_close(SeparableRate(Z, 0.3).value(x[0]), -separable)
    torch.testing.assert_close(PCARate(Z, 0.3, dim=6).beta(x[0]), 6 / (9 * 0.3**2))


@pytest.mark.parametrize("make", [PCAVariance, PCARate, SeparableRate])
def test_the_smoothness_constants_bound(make, tokens, x):
    objective = make(tokens[0])
    assert sampled_stretch(objective, x[:1]) <= float(objective.lipschitz(x[0]))


def test_the_reconstructions_constant_is_local(tokens, x):
    objective, one = PCAReconstruction(tokens[0]), x[0]
    assert not objective.lipschitz_is_global
    full = torch.autograd.functional.hessian(objective.value, one).reshape(15, 15)
    assert torch.linalg.eigvalsh(full).abs().max() <= objective.lipschitz(one)
    zero = torch.autograd.functional.hessian(objective.value, 0 * one).reshape(15, 15)
    torch.testing.assert_close(torch.linalg.eigvalsh(zero).abs().max(), objective.lipschitz(0 * one))


def test_single_precision_follows_double(tokens, x):
    for make in ALL:
        narrow = make(tokens.float()).gradient(x.float())
        torch.testing.assert_close(narrow.double(), make(tokens).gradient(x), rtol=1e-3, atol=1e-3)


def test_many_tokens_need_no_square_matrix():
    tokens, x = torch.randn(200_000, 8), retract(torch.randn(3, 8))
    for make in ALL:
        assert make(tokens).gradient(x).isfinite().all()
        assert make(tokens).lipschitz(x) > 0


def test_the_separable_rate_prefers_turned_directions():
    tokens = S.sqrt()
    turned = torch.tensor([[HALF, HALF, 0, 0], [HALF, -HALF, 0, 0]], dtype=torch.float64)
    principal = torch.eye(4, dtype=torch.float64)[:2]
    assert float(PCARate(tokens, HALF).beta(principal)) == pytest.approx(1.0)
    for frame, separable in ((principal, 1.5890), (turned, 1.6094)):
        assert -float(PCARate(tokens, HALF).value(frame)) == pytest.approx(1.5890, abs=5e-5)
        assert -float(SeparableRate(tokens, HALF).value(frame)) == pytest.approx(separable, abs=5e-5)
    assert math.log(5.0) == pytest.approx(-float(SeparableRate(tokens, HALF).value(turned)))


@pytest.mark.parametrize("retraction", ["qr", "polar"])
@pytest.mark.parametrize("make", ALL)
def test_steps_stay_orthonormal_and_descend(make, retraction, tokens, frame, device):
    objective, start = make(tokens.to(device)), frame.to(device)
    certificate = certified_stiefel_step(objective, start)
    after = RiemannianStep(retraction)(objective, start, certificate.step_size)
    eye = torch.eye(3, dtype=torch.float64, device=device).expand(2, 3, 3)
    torch.testing.assert_close(after @ after.mT, eye)
    straight = start - certificate.step_size[:, None, None] * tangent(start, objective.gradient(start))
    assert torch.equal(after, retract(straight, retraction))
    squared = tangent(start, objective.gradient(start)).square().sum((-2, -1))
    assert (objective.value(after) <= objective.value(start) - 0.49 * certificate.step_size * squared).all()
    torch.testing.assert_close(
        RiemannianStep(retraction)(make(tokens[1].to(device)), start[1], certificate.step_size[1]), after[1]
    )


def test_tangents_are_skew_and_projections_idempotent(x, frame):
    u = tangent(frame, x)
    torch.testing.assert_close(u @ frame.mT, -(u @ frame.mT).mT)
    torch.testing.assert_close(tangent(frame, u), u)
    assert abs(float(((x - u) * u).sum())) < 1e-12


def test_retractions_are_gram_schmidt_and_the_polar_factor(x):
    qr, polar = retract(x), retract(x, "polar")
    triangle = x @ qr.mT
    torch.testing.assert_close(triangle, triangle.tril())
    assert (triangle.diagonal(dim1=-2, dim2=-1) > 0).all()
    stretch = x @ polar.mT
    torch.testing.assert_close(stretch, stretch.mT)
    assert (torch.linalg.eigvalsh(stretch) > 0).all()


@pytest.mark.parametrize("retraction", ["qr", "polar"])
def test_gradients_flow_through_a_step_also_where_singular_values_are_equal(retraction, tokens, frame):
    direction = torch.randn_like(frame[0])

    def run(v):
        return retract(frame[0] + 0.1 * tangent(frame[0], v), retraction)

    for v in (direction, 0 * direction):
        assert torch.autograd.gradcheck(run, v.clone().requires_grad_())
    step = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    RiemannianStep(retraction)(PCARate(tokens[0]), frame[0], step)[0, 0].backward()
    assert step.grad.abs() > 0


def test_a_step_of_size_one_is_a_power_iteration(tokens, frame):
    objective = PCARate(tokens)
    after = RiemannianStep()(objective, frame, 1.0)
    iterated = frame + objective.beta(frame) * (frame @ tokens.mT) @ tokens
    torch.testing.assert_close(subspace_alignment(after, iterated), torch.ones(2, dtype=torch.float64))
    assert (objective.value(after) < objective.value(frame)).all()


def test_an_unrolled_network_of_such_steps_finds_the_principal_subspace():
    tokens = torch.randn(30, 5, dtype=torch.float64) * torch.tensor([4.0, 3.0, 1.0, 0.5, 0.2])
    network = Unrolled(PCARate(tokens), RiemannianStep("polar"), depth=12, step_size=1.0)
    found, values = network(retract(torch.randn(2, 5, dtype=torch.float64)), return_values=True)
    assert (values.diff() <= 1e-12).all()
    assert subspace_alignment(found, principal_directions(tokens, 2)) > 1 - 1e-6
    found.sum().backward()
    assert network.log_step.grad.isfinite().all()


def test_alignment_and_nearest_directions():
    P = torch.eye(4)[:2]
    Q = torch.tensor([[0.0, 0, 1, 0], [3.0, 0, 3, 0]])
    assert float(subspace_alignment(P, P)) == 1
    assert float(subspace_alignment(P, Q)) == pytest.approx(0.5)
    assert float(subspace_alignment(P, Q[:1])) == 0
    assert float(subspace_alignment(P, torch.tensor([[5.0, 7, 0, 0]]))) == pytest.approx(1)
    tokens = torch.tensor([[[0.1, 0.9], [-1.0, 0.2], [2.0, 1.9]]])
    assert nearest_direction(tokens, torch.tensor([[9.0, 0], [0, 0.1]])).tolist() == [[1, 1, 0]]


def test_principal_directions_are_ordered_and_scale_free():
    tokens = torch.randn(2, 20, 4, dtype=torch.float64) * torch.tensor([0.1, 3.0, 1.0, 10.0])
    frame = principal_directions(tokens, 3)
    variances = (tokens @ frame.mT).square().sum(-2)
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(variances.sqrt(), torch.linalg.svdvals(tokens)[:, :3])
    torch.testing.assert_close(principal_directions(1e-200 * tokens, 3).abs(), frame.abs())


def test_several_subspaces_sum_and_one_is_the_whole(tokens, x):
    U = torch.linalg.qr(torch.randn(5, 4, dtype=torch.float64)).Q.reshape(5, 2, 2).transpose(0, 1)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    both = SubspacePCARate(U, tokens, 0.3, weights=weights)
    each = [PCARate(tokens @ U[k], 0.3).value(x @ U[k]) for k in range(2)]
    torch.testing.assert_close(both.value(x), each[0] + 3 * each[1])
    torch.testing.assert_close(both.gradient(x), reverse_mode(both, x))
    whole = SubspacePCARate(torch.eye(5, dtype=torch.float64)[None], tokens, 0.3)
    torch.testing.assert_close(whole.gradient(x), PCARate(tokens, 0.3).gradient(x))
    torch.testing.assert_close(whole.lipschitz(x), PCARate(tokens, 0.3).lipschitz(x))
    free = SubspacePCARate(2 * U, tokens[0], 0.3, orthonormal=False)
    torch.testing.assert_close(free.gradient(x[0]), reverse_mode(free, x[0]))
    at_zero = torch.autograd.functional.hessian(free.value, 0 * x[0]).reshape(15, 15)
    torch.testing.assert_close(torch.linalg.matrix_norm(at_zero, 2), free.lipschitz(x[0]))


def test_an_objective_of_the_class_tokens_leaves_the_others_alone(tokens, x):
    inner = PCARate(tokens)
    joint = ClassTokensOnly(inner, 3)
    z = torch.cat([x, torch.randn(2, 6, 5, dtype=torch.float64)], -2)
    torch.testing.assert_close(joint.value(z), inner.value(x))
    torch.testing.assert_close(joint.gradient(z), reverse_mode(joint, z))
    assert joint.gradient(z)[:, 3:].abs().max() == 0
    torch.testing.assert_close(joint.lipschitz(z), inner.lipschitz(x))
    assert ClassTokensOnly(CodingRate(0.5), 2).gradient(z[..., :2, :]).shape == (2, 2, 5)


class Unknown(Objective):
    value = gradient = lipschitz = lambda self, x: None


EYE = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: PCARate([1.0]), TypeError, "tokens must be a floating-point tensor"),
        (lambda: PCAVariance(torch.ones(0, 4)), ValueError, "tokens must be .* and not empty"),
        (lambda: PCAReconstruction(EYE / 0), ValueError, "holds NaN or infinite entries"),
        (lambda: PCARate(EYE, epsilon=0.0), ValueError, "epsilon must be positive and finite"),
        (
            lambda: SeparableRate(EYE, dim=0),
            ValueError,
            "dim, the C in β .* must be a positive integer or None, but is 0",
        ),
        (lambda: PCARate(EYE).value(torch.ones(2, 3).double()), ValueError, "x has dim 3, but tokens expects dim 4"),
        (lambda: SubspacePCARate(EYE[None], EYE[:, :3]), ValueError, "x has dim 3, but U expects dim 4"),
        (lambda: SubspacePCARate(2 * EYE[None], EYE), ValueError, "the bases are not orthonormal"),
        (lambda: ClassTokensOnly(EYE, 1), TypeError, "objective must be an Objective, but is a Tensor"),
        (lambda: ClassTokensOnly(PCARate(EYE), 0), ValueError, "class_tokens must be a positive integer, but is 0"),
        (lambda: ClassTokensOnly(PCARate(EYE), 5).value(EYE), ValueError, "x has 4 tokens, fewer than the 5 class"),
        (lambda: RiemannianStep("cayley"), ValueError, "retraction must be one of 'qr', 'polar', but is 'cayley'"),
        (lambda: retract(EYE, "cayley"), ValueError, "retraction must be one of"),
        (lambda: retract(torch.ones(3, 2)), ValueError, "1 ≤ rows ≤ dim"),
        (
            lambda: RiemannianStep()(PCARate(EYE), 1.1 * EYE[:2], 0.1),
            ValueError,
            r"the rows of x \(2, 4\) are not orthonormal: max \|x xᵀ − I\| = 0.21(.|\n)*unrolling.retract",
        ),
        (lambda: RiemannianStep()(PCARate(EYE), torch.ones(5, 4), 0.1), ValueError, "no more orthonormal rows than"),
        (lambda: certified_stiefel_step(PCARate(EYE), 2 * EYE), ValueError, "certified_stiefel_step: the rows of x"),
        (lambda: certified_stiefel_step(Unknown(), EYE), ValueError, "Unknown knows no smoothness constant"),
        (lambda: principal_directions(EYE, 5), ValueError, "count must be an integer from 1 to dim = 4, but is 5"),
        (lambda: subspace_alignment(EYE, EYE[:, :3]), ValueError, "x has dim 3, but the other span expects dim 4"),
        (
            lambda: subspace_alignment(EYE, torch.ones(2, 4).double()),
            ValueError,
            "the rows of Q .* are not independent",
        ),
        (lambda: nearest_direction(EYE, 0 * EYE), ValueError, "a direction is zero"),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_a_tolerance_of_ones_own_is_kept():
    crooked = 1.001 * EYE[:2]
    with pytest.raises(ValueError, match="are not orthonormal"):
        RiemannianStep()(PCARate(EYE), crooked, 0.1)
    RiemannianStep(tolerance=0.01)(PCARate(EYE), crooked, 0.1)
