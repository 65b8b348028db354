import itertools

import pytest
import torch
from tests_support import reverse_mode

from objectives import L1, CodingRate, Composite, NonNegativeL1, Reconstruction, sparse_coding
from proofs_check import ClaimFailed, check_layer, check_objective
from unrolling import (
    AcceleratedProximalStep,
    AlternatingStep,
    GradientStep,
    Momentum,
    ProximalStep,
    Unrolled,
    UnrolledLayer,
)


def problem(nonnegative=False, weight=0.3):
    return sparse_coding(
        torch.randn(5, 8, dtype=torch.float64),
        torch.randn(2, 6, 5, dtype=torch.float64),
        weight,
        nonnegative=nonnegative,
    )


def test_reconstruction_is_its_equation_in_any_batch(device):
    f = problem().smooth
    f = Reconstruction(f.dictionary.to(device), f.data.to(device))
    a = torch.randn(2, 6, 8, dtype=torch.float64, device=device)
    want = torch.stack(
        [0.5 * sum((f.data[b, i] - f.dictionary @ a[b, i]).norm() ** 2 for i in range(6)) for b in (0, 1)]
    )
    torch.testing.assert_close(f.value(a), want)
    torch.testing.assert_close(f.gradient(a), reverse_mode(f, a))
    assert check_objective(Reconstruction(f.dictionary.cpu(), f.data[0].cpu()), a[0].cpu()).evidence


@pytest.mark.parametrize("term", [L1(0.3), NonNegativeL1(0.3)])
def test_prox_is_the_minimiser_found_on_a_fine_grid(term):
    grid = torch.linspace(-4, 4, 160001, dtype=torch.float64)
    for x in (-2.0, -0.2, 0.0, 0.1, 0.31, 3.0):
        cost = torch.where((grid < 0) & isinstance(term, NonNegativeL1), torch.inf, 0.7 * 0.3 * grid.abs())
        best = grid[(cost + 0.5 * (grid - x) ** 2).argmin()]
        got = term.prox(torch.tensor([[x]], dtype=torch.float64), 0.7)
        assert abs(float(got) - float(best)) <= 5e-5
    sizes = torch.tensor([0.5, 2.0], dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(term.prox(x, sizes)[1], term.prox(x[1], 2.0))


def test_values_of_the_penalties():
    x = torch.tensor([[1.0, -2.0], [0.0, 0.5]])
    assert float(L1(2.0).value(x)) == 7.0
    assert float(NonNegativeL1(2.0).value(x)) == float("inf")
    assert float(NonNegativeL1(2.0).value(x.abs())) == 7.0


@pytest.mark.parametrize("nonnegative", [False, True])
def test_unrolled_proximal_steps_reach_the_optimality_conditions(nonnegative):
    f = problem(nonnegative)
    a, values = Unrolled(f, ProximalStep(), depth=3000, step_size="certified")(
        torch.zeros(2, 6, 8, dtype=torch.float64), return_values=True
    )
    assert (values.diff(dim=0) <= 1e-12).all()
    g = f.smooth.gradient(a)
    active = a != 0
    torch.testing.assert_close(g[active], -0.3 * a.sign()[active], atol=1e-6, rtol=0)
    bound = -g[~active] if nonnegative else g[~active].abs()
    assert (bound <= 0.3 + 1e-9).all()


def test_acceleration_is_faster_and_stateless():
    f, zero = problem(), torch.zeros(2, 6, 8, dtype=torch.float64)
    best = f.value(Unrolled(f, AcceleratedProximalStep(), depth=3000, step_size="certified")(zero))
    after = {
        rule: f.value(Unrolled(f, rule, depth=60, step_size="certified")(zero)) - best
        for rule in (ProximalStep(), AcceleratedProximalStep())
    }
    assert (after[AcceleratedProximalStep()] < 0.5 * after[ProximalStep()]).all()
    kappa = 1 / float(f.lipschitz(zero))
    first = AcceleratedProximalStep()(f, zero, kappa)
    again = AcceleratedProximalStep()(f, Momentum(zero, zero, 1.0), kappa)
    assert torch.equal(first.extrapolated, again.extrapolated)
    torch.testing.assert_close(first.x, ProximalStep()(f, zero, kappa))


def test_a_proximal_step_without_a_nonsmooth_term_is_a_gradient_step():
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(ProximalStep()(CodingRate(0.5), x, 0.2), GradientStep()(CodingRate(0.5), x, 0.2))


def test_alternating_learns_a_dictionary_and_never_rises():
    """Codes by a proximal step, atoms by a gradient step: each on its own block, with the newest of the other."""
    data = torch.randn(20, 5, dtype=torch.float64)

    def codes(a, D):
        return sparse_coding(D.mT, data, 0.1)

    def atoms(a, D):
        return _Atoms(a, data)

    step = AlternatingStep((ProximalStep(), GradientStep()))
    a, D = torch.zeros(20, 8, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    values = []
    for _ in range(30):
        sizes = (1 / float(torch.linalg.matrix_norm(D, 2)) ** 2, 1 / max(float(torch.linalg.matrix_norm(a, 2)) ** 2, 1))
        a, D = step((codes, atoms), (a, D), sizes)
        values.append(float(codes(a, D).value(a)))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(values))
    assert values[-1] < 0.8 * values[0]


class _Atoms:
    """½‖data − a D‖² in the atoms D."""

    def __init__(self, a, data):
        self.a, self.data = a, data

    def gradient(self, D):
        return self.a.mT @ (self.a @ D - self.data)


def test_alternating_moves_one_block_twice_with_the_newest_values():
    halve = type("Halve", (), {"gradient": lambda self, x: 0.5 * x})()
    seen = []
    objectives = (lambda z: seen.append(z.clone()) or halve, lambda z: seen.append(z.clone()) or halve)
    (z,) = AlternatingStep((GradientStep(), GradientStep()), blocks=(0, 0))(objectives, (torch.ones(1, 1),), (1.0, 1.0))
    assert float(z) == 0.25
    assert [float(point) for point in seen] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: L1(0.0), ValueError, "weight must be positive"),
        (lambda: NonNegativeL1(-1.0), ValueError, "weight must be positive"),
        (lambda: sparse_coding(torch.eye(3), torch.ones(2, 4), 1.0), ValueError, "does not fit the dictionary"),
        (lambda: problem().gradient(torch.zeros(2, 6, 8)), TypeError, "L1 has no gradient; take a proximal step"),
        (
            lambda: problem().value(torch.zeros(2, 5, 8, dtype=torch.float64)),
            ValueError,
            "5 codes for 6 tokens of data",
        ),
        (lambda: AlternatingStep(()), ValueError, "at least one rule"),
        (lambda: AlternatingStep((GradientStep(),), (0, 1)), ValueError, "1 rules, but 2 blocks"),
        (lambda: AlternatingStep((GradientStep(),))((), (), ()), ValueError, "1 rules, but 0 objectives"),
        (
            lambda: AlternatingStep((GradientStep(),), (2,))((CodingRate,), (torch.eye(2),), (1.0,)),
            ValueError,
            r"blocks \(2,\) of 1 variables",
        ),
    ],
)
def test_bad_problems_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


class Shrink(UnrolledLayer):
    """A stranger's proximal layer: soft threshold of its tokens, declared as a step on ½‖x‖² + ‖x‖₁."""

    dim, threshold = 4, 0.2

    def forward(self, x):
        moved = 0.9 * x
        return torch.sign(moved) * torch.relu(moved.abs() - self.threshold)

    def objective_at(self, x):
        return Composite(Reconstruction(torch.eye(4, dtype=x.dtype), torch.zeros_like(x)), L1(2.0))

    def step_size_at(self, x):
        return 0.1

    def step_rule(self):
        return ProximalStep()


def test_check_layer_takes_proximal_layers():
    assert check_layer(Shrink()).evidence
    wrong = Shrink()
    wrong.threshold = 0.21
    with pytest.raises(ClaimFailed, match="is not the declared step"):
        check_layer(wrong)


class Threshold:
    """A stranger's term: the value of ‖x‖₁ with a prox that may be off."""

    def __init__(self, factor=1.0, nonnegative=False):
        self.factor, self.nonnegative = factor, nonnegative

    def value(self, x):
        return 2.0 * x.abs().sum((-2, -1))

    def prox(self, x, step_size):
        after = x.sign() * (x.abs() - self.factor * step_size * 2.0).clamp(min=0)
        return after.clamp(min=0) if self.nonnegative else after


@pytest.mark.parametrize(
    ("term", "right"), [(Threshold(), True), (Threshold(0.5), False), (Threshold(1.0, True), False)]
)
def test_check_layer_holds_a_prox_to_its_value(term, right):
    class Layer(Shrink):
        def objective_at(self, x):
            return Composite(Reconstruction(torch.eye(4, dtype=x.dtype), torch.zeros_like(x)), term)

        def forward(self, x):
            return term.prox(0.9 * x, 0.1)

    if right:
        assert check_layer(Layer()).evidence
    else:
        with pytest.raises(ClaimFailed, match="is not the minimiser of its value"):
            check_layer(Layer())
