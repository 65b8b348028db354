import math

import pytest
import torch
from tests_support import reverse_mode, sampled_stretch

from objectives import (
    CodingRate,
    Composite,
    LinearisedRateReduction,
    PrefixVariationalRate,
    RateReduction,
    SoftVariationalRate,
    SubspaceCodingRate,
    SubspaceRateReduction,
    VariationalRate,
    one_hot_memberships,
    relaxed_sparse_rate_reduction,
    soft_memberships,
    sparse_rate_reduction,
)

D = torch.float64


@pytest.fixture
def x():
    return torch.randn(2, 9, 12, dtype=D)


@pytest.fixture
def Pi():
    return torch.softmax(torch.randn(9, 3, dtype=D), -1)


@pytest.fixture
def complete():
    """Complete orthonormal bases (3, 12, 12)."""
    return torch.linalg.qr(torch.randn(3, 12, 12, dtype=D)).Q


def objectives(x, Pi, bases, complete):
    E, C = torch.randn(12, 12, dtype=D), torch.randn(3, 12, 12, dtype=D)
    batched = torch.softmax(torch.randn(2, 9, 3, dtype=D), -1)
    weights = torch.rand(2, 3, dtype=D)
    yield RateReduction(Pi, 0.3)
    yield RateReduction(batched, 0.3)
    yield RateReduction(one_hot_memberships(torch.arange(9) % 2, 3, D), 0.3)
    yield SubspaceRateReduction(bases, 0.3)
    yield LinearisedRateReduction(E + E.mT, C + C.mT, torch.rand(3, dtype=D), Pi)
    for U in (bases, complete):
        yield VariationalRate(U, Pi, 0.3)
        yield VariationalRate(U, batched, 0.3, weights)
        yield SoftVariationalRate(U, torch.tensor([0.2, 0.5, 1.0], dtype=D), 0.3)
        yield PrefixVariationalRate.at(x, U, Pi, 0.3)
        yield PrefixVariationalRate.at(x, U, batched, 0.3, weights)


def test_gradients_are_reverse_mode(x, Pi, bases, complete):
    for objective in objectives(x, Pi, bases, complete):
        got, want = objective.gradient(x), reverse_mode(objective, x)
        assert (got - want).norm() <= 1e-11 * want.norm(), type(objective)
        assert objective.value(x).shape == (2,)


def test_the_smoothness_constants_bound(x, Pi, bases, complete):
    for objective in objectives(x[:1], Pi, bases, complete):
        if (L := objective.lipschitz(x[:1])) is not None:
            # The past of a prefix rate is that of one token set.
            assert sampled_stretch(objective, x) <= float(L.max()) * 1.0001, type(objective)


def test_smoothness_is_nearly_attained_by_many_classes_of_one_token():
    size = 80
    z = (3 * 0.25 / size) ** 0.5 * torch.eye(size, dtype=D)
    objective = RateReduction(torch.eye(size, dtype=D), 0.5)
    change = objective.gradient(1.0001 * z) - objective.gradient(0.9999 * z)
    curvature = float((change * z).sum() / (2e-4 * z.square().sum()))
    assert 0.9 < -curvature / float(objective.lipschitz(z)) <= 1.0


def test_outside_the_subspaces_the_curvature_is_eight_ninths_of_the_constant_or_more(bases):
    objective = SubspaceRateReduction(bases[:2], 0.3)
    outside = 1e-6 * torch.outer(torch.ones(9, dtype=D), bases[2, :, 0])
    share = float(objective.gradient(outside).norm() / outside.norm() / objective.lipschitz(outside))
    assert 8 / 9 <= share <= 1.0


def test_one_hot_memberships_give_the_classes_own_rates(x):
    labels = torch.tensor([0, 0, 2, 0, 2, 0, 0, 2, 2])  # class 1 is empty
    objective = RateReduction(one_hot_memberships(labels, 3, D), 0.3)
    want = sum((labels == k).double().mean() * CodingRate(0.3).value(x[:, labels == k]) for k in (0, 2))
    torch.testing.assert_close(objective.compression(x), want)
    torch.testing.assert_close(objective.expansion(x), CodingRate(0.3).value(x))
    torch.testing.assert_close(objective.value(x), want - CodingRate(0.3).value(x))


def test_rate_reduction_is_never_negative_and_zero_for_classes_alike(x, Pi):
    assert (RateReduction(Pi, 0.3).value(x) < 0).all()
    twice = torch.cat([x, x], -2)
    alike = RateReduction(one_hot_memberships(torch.arange(18) // 9, dtype=D), 0.3)
    assert alike.value(twice).abs().max() < 1e-12 * alike.expansion(twice).max()


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_both_sides_of_the_determinants(tokens):
    z, P = torch.randn(tokens, 5, dtype=D), torch.softmax(torch.randn(tokens, 3, dtype=D), -1)
    want = -0.5 * torch.logdet(torch.eye(5) + 5 / (tokens * 0.09) * z.mT @ z)
    for k in range(3):
        n = P[:, k].sum()
        want += n / (2 * tokens) * torch.logdet(torch.eye(5) + 5 / (n * 0.09) * z.mT @ (P[:, k, None] * z))
    torch.testing.assert_close(RateReduction(P, 0.3).value(z), want, atol=1e-12, rtol=1e-9)


def test_sparse_rate_reduction_counts_entries_that_are_not_zero(bases):
    z = torch.randn(9, 12, dtype=D) * (torch.rand(9, 12) > 0.5)
    smooth = SubspaceCodingRate(bases, 0.3).value(z) - CodingRate(0.3).value(z)
    torch.testing.assert_close(SubspaceRateReduction(bases, 0.3).value(z), smooth)
    torch.testing.assert_close(sparse_rate_reduction(z, bases, 0.3, 0.1), smooth + 0.1 * float((z != 0).sum()))
    relaxed = relaxed_sparse_rate_reduction(bases, 0.3, 0.1)
    assert isinstance(relaxed, Composite)
    torch.testing.assert_close(relaxed.value(z), smooth + 0.1 * z.abs().sum())
    assert sparse_rate_reduction(z.float(), bases.float(), 0.3, 0.1).dtype == torch.float32


def test_soft_memberships_prefer_the_class_whose_operator_shrinks_most():
    C = torch.stack([torch.diag(torch.tensor([0.1, 1.0], dtype=D)), torch.diag(torch.tensor([1.0, 0.1], dtype=D))])
    got = soft_memberships(torch.tensor([[1.0, 0.0]], dtype=D), C, 2.0)
    torch.testing.assert_close(got[0, 0], torch.sigmoid(torch.tensor(1.8, dtype=D)))


def test_single_precision_and_devices_follow(x, Pi, bases, device):
    for make in (lambda t: RateReduction(Pi.to(t), 0.3), lambda t: VariationalRate(bases.to(t), Pi.to(t), 0.3)):
        wide, narrow = make(x), make(x.to(device, torch.float32))
        torch.testing.assert_close(
            narrow.value(x.to(device, torch.float32)).cpu().double(), wide.value(x), rtol=1e-4, atol=1e-4
        )


def test_the_memory_is_linear_in_tokens():
    z = torch.randn(150_000, 4)
    objective = RateReduction(one_hot_memberships(torch.arange(150_000) % 3, dtype=torch.float32))
    assert math.isfinite(float(objective.value(z)))
    assert objective.gradient(z).isfinite().all()


OFF = torch.full((9, 3), 0.5, dtype=D)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda U, P: RateReduction(OFF), r"at least 0 and sum to 1(.|\n)*largest \|sum − 1\| is 0.5(.|\n)*= \(9, 3\)"),
        (lambda U, P: RateReduction(P - 1.0), "at least 0 and sum to 1"),
        (lambda U, P: RateReduction(P[0]), r"memberships must be \(..., tokens, classes\)"),
        (lambda U, P: RateReduction(P * torch.nan), "NaN or infinite"),
        (lambda U, P: RateReduction(P, -1.0), "epsilon must be positive"),
        (
            lambda U, P: RateReduction(P).value(torch.randn(8, 5).double()),
            "x has 8 tokens, but the memberships .* for 9",
        ),
        (lambda U, P: VariationalRate(U[:2], P), r"with classes = 2, but have shape \(9, 3\)"),
        (lambda U, P: VariationalRate(2 * U, P), "not orthonormal"),
        (lambda U, P: VariationalRate(U, P, weights=torch.ones(2)), r"weights must be None or a tensor"),
        (lambda U, P: VariationalRate(U, P).value(torch.randn(9, 5).double()), "x has dim 5, but U expects dim 12"),
        (lambda U, P: SoftVariationalRate(U, torch.ones(2)), r"temperature must be a finite number or \(3,\)"),
        (lambda U, P: SoftVariationalRate(U, torch.nan), "temperature must be a finite number"),
        (lambda U, P: PrefixVariationalRate(U, P, torch.ones(3, 8, 4).double()), r"past must be .* = \(..., 3, 9, 4\)"),
        (lambda U, P: PrefixVariationalRate(U, P, -torch.ones(3, 9, 4).double()), "not\n? ?negative"),
        (
            lambda U, P: LinearisedRateReduction(U[0], torch.eye(12).expand(3, 12, 12), torch.ones(3), P),
            r"E \(12, 4\) must be symmetric",
        ),
        (
            lambda U, P: LinearisedRateReduction(torch.eye(12), torch.eye(11).expand(3, 11, 11), torch.ones(3), P),
            r"must be \(dim, dim\), \(classes, dim, dim\) and \(classes,\)",
        ),
        (lambda U, P: sparse_rate_reduction(torch.ones(2, 12).double(), U, 0.5, 0.0), "weight must be positive"),
        (lambda U, P: one_hot_memberships(torch.tensor([0, 3]), 3), "labels run from 0 to 3, but must lie in 0 … 2"),
        (lambda U, P: one_hot_memberships(torch.tensor([0.5])), "labels must be an integer tensor"),
        (lambda U, P: soft_memberships(torch.ones(2, 3), torch.eye(4).unsqueeze(0), 1.0), "C expects dim 4"),
    ],
)
def test_bad_arguments_are_refused(bases, Pi, make, said):
    with pytest.raises(ValueError, match=said):
        make(bases, Pi)


def test_the_tolerance_of_memberships_can_be_raised():
    RateReduction(OFF, membership_tolerance=0.6)
