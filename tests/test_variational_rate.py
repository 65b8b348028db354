import pytest
import torch

from objectives import PrefixVariationalRate, RateReduction, SoftVariationalRate, VariationalRate, head_memberships

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


def test_the_variational_rate_is_its_sum_and_bounds_the_compression(x, Pi, complete):
    z, want = x[0], 0.0
    for k in range(3):
        n = Pi[:, k].sum()
        moments = (Pi[:, k, None] * (z @ complete[k]) ** 2).sum(0)
        want += n / 18 * torch.log1p(12 / (n * 0.09) * moments).sum()
    objective = VariationalRate(complete, Pi, 0.3)
    torch.testing.assert_close(objective.value(z), want)
    assert want > RateReduction(Pi, 0.3).compression(z)
    own = torch.stack([torch.linalg.eigh(z.mT @ (Pi[:, k, None] * z)).eigenvectors for k in range(3)])
    torch.testing.assert_close(VariationalRate(own, Pi, 0.3).value(z), RateReduction(Pi, 0.3).compression(z))


def test_prefix_rates_agree_with_each_prefix_at_the_frozen_point(x, Pi, bases):
    z = x[0]
    want = torch.stack([VariationalRate(bases, Pi[:i], 0.3).gradient(z[:i])[-1] for i in range(1, 10)])
    objective = PrefixVariationalRate.at(z, bases, Pi, 0.3)
    torch.testing.assert_close(objective.gradient(z), want)
    total = sum(VariationalRate(bases, Pi[:i], 0.3).value(z[:i]) for i in range(1, 10))
    torch.testing.assert_close(objective.value(z), total)


def test_frozen_memberships_are_the_soft_ones(x, bases):
    soft = SoftVariationalRate(bases, 0.7, 0.3)
    logits = torch.stack([0.7 * (x @ U).square().sum(-1) for U in bases], -1)
    torch.testing.assert_close(soft.frozen_at(x).memberships, torch.softmax(logits, -1))
    torch.testing.assert_close(head_memberships(x, bases, 0.7), torch.softmax(logits, -1))
    torch.testing.assert_close(soft.frozen_at(x).value(x), soft.value(x))
    assert not torch.allclose(soft.frozen_at(x).gradient(x), soft.gradient(x), rtol=1e-2)


def stretch_at_zero(objective, direction):
    tiny = 1e-6 * direction
    return float(objective.gradient(tiny).norm() / tiny.norm())


def test_the_smoothness_constant_is_attained_at_zero(Pi, bases, complete):
    alpha = 12 / (9 * 0.09)
    token, head = divmod(int(Pi.argmax()), 3)
    direction = torch.zeros(9, 12, dtype=D)
    direction[token] = bases[head, :, 0]
    narrow, whole = VariationalRate(bases, Pi, 0.3), VariationalRate(complete, Pi, 0.3)
    assert float(narrow.lipschitz(direction)) == pytest.approx(alpha * float(Pi.max()))
    assert stretch_at_zero(narrow, direction) == pytest.approx(float(narrow.lipschitz(direction)))
    assert float(whole.lipschitz(direction)) == pytest.approx(alpha)
    assert stretch_at_zero(whole, direction) == pytest.approx(alpha)
    prefix = PrefixVariationalRate(bases, Pi, torch.zeros(3, 9, 4, dtype=D), 0.3)
    largest = (Pi / torch.arange(1, 10, dtype=D)[:, None]).argmax()
    first = torch.zeros(9, 12, dtype=D)
    first[int(largest) // 3] = bases[int(largest) % 3, :, 0]
    assert stretch_at_zero(prefix, first) == pytest.approx(float(prefix.lipschitz(first)))


def test_freezing_the_memberships_can_turn_the_gradient_round():
    """The witness that the correction of tssa.frozen_descends prints."""
    soft = SoftVariationalRate(torch.eye(2, dtype=torch.float64).reshape(2, 2, 1), 1.0, 1.0)
    x = torch.tensor([[0.0, 1.0], [20.0, 0.0]], dtype=torch.float64)
    frozen, full = soft.frozen_at(x).gradient(x), soft.gradient(x)
    assert round(float((frozen * full).sum() / frozen.norm() / full.norm()), 3) == -0.955
