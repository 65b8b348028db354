import pytest
import torch
from tests_support import reverse_mode, sampled_stretch

from objectives import RepresentativeNorm, RepresentativeRate, SoftRepresentativeRate, feasibility_gap


@pytest.fixture
def P():
    return torch.softmax(torch.randn(3, 5, 9, dtype=torch.float64), -1)


@pytest.fixture
def x():
    return torch.randn(2, 9, 12, dtype=torch.float64)


def test_gradients_are_reverse_mode(bases, P, x):
    queries = torch.randn(3, 5, 4, dtype=torch.float64)
    pooling = torch.softmax(torch.randn(5, 9, dtype=torch.float64), -1)
    for objective in (
        RepresentativeRate(bases, P, 0.3),
        RepresentativeRate(bases, P[:, :2], 0.3),
        RepresentativeNorm(bases, P),
        SoftRepresentativeRate(bases, 0.5, queries=queries, epsilon=0.3),
        SoftRepresentativeRate(bases, 0.5, pooling=pooling, epsilon=0.3),
    ):
        want = reverse_mode(objective, x)
        assert (objective.gradient(x) - want).norm() <= 1e-12 * want.norm()
        torch.testing.assert_close(objective.gradient(x)[1], objective.gradient(x[1]))


def test_the_smoothness_constants_bound(bases, P, x):
    for objective in (RepresentativeRate(bases, P, 0.3), RepresentativeNorm(bases, P)):
        assert sampled_stretch(objective, x) <= float(objective.lipschitz(x))


def test_freezing_is_not_a_small_thing(bases):
    """Gaussian tokens, d = 12, N = 40, K = 3, ε = 0.5: the frozen gradient is well short of the full one."""
    x = torch.randn(40, 12, dtype=torch.float64)
    full = SoftRepresentativeRate(bases, 0.5, queries=torch.randn(3, 6, 4, dtype=torch.float64))
    frozen = full.frozen_at(x)
    torch.testing.assert_close(frozen.value(x), full.value(x))
    a, b = frozen.gradient(x), full.gradient(x)
    assert 0.5 < float((a * b).sum() / (a.norm() * b.norm())) < 0.99
    assert 0.3 < float(a.norm() / b.norm()) < 0.9


def test_the_gap_is_zero_for_the_tokens_themselves(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    everyone = RepresentativeRate(bases, torch.eye(9, dtype=torch.float64).expand(3, 9, 9), 0.3)
    assert float(feasibility_gap(everyone, x).max()) < 1e-12
    few = RepresentativeRate(bases, torch.softmax(torch.randn(3, 2, 9, dtype=torch.float64), -1), 0.3)
    assert float(feasibility_gap(few, x).min()) > 0.1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda U, P: RepresentativeRate(U, P[:2]), r"P must be \(..., heads=3, rows, columns\)"),
        (lambda U, P: RepresentativeRate(U, P * torch.nan), "holds NaN or infinite entries"),
        (lambda U, P: RepresentativeRate(U, P[:, :0]), "not empty"),
        (lambda U, P: RepresentativeRate(U, P, epsilon=-1.0), "epsilon must be positive"),
        (
            lambda U, P: RepresentativeRate(U, P, weights=torch.ones(2)),
            r"weights must be None or a tensor \(..., heads\)",
        ),
        (
            lambda U, P: RepresentativeRate(U, P).value(torch.randn(4, 12).double()),
            "x has 4 tokens, but .* made for 9",
        ),
        (lambda U, P: SoftRepresentativeRate(U, 0.5), "give exactly one of queries"),
        (lambda U, P: SoftRepresentativeRate(U, 0.0, pooling=P[0]), "scale must be positive"),
    ],
)
def test_bad_arguments_are_refused(bases, P, make, said):
    with pytest.raises(ValueError, match=said):
        make(bases, P)
