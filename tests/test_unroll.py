"""Steps and the unroller."""

import pytest
import torch
from torch import nn

from objectives import CodingRate, SelfAttentionEnergy, SubspaceCodingRate
from unrolling import MSSA, ArmijoStep, ExactLineSearchStep, GradientStep, Unrolled


@pytest.fixture
def x():
    return torch.randn(3, 9, 12, dtype=torch.float64)


def test_gradient_step_takes_a_size_for_each_token_set(x):
    f = CodingRate(0.5)
    sizes = torch.tensor([0.1, 0.0, 2.0], dtype=torch.float64)
    got = GradientStep()(f, x, sizes)
    for i in range(3):
        torch.testing.assert_close(got[i], x[i] - sizes[i] * f.gradient(x[i]))


def test_armijo_meets_its_condition_and_treats_token_sets_by_themselves(x):
    f, rule = CodingRate(0.5), ArmijoStep(slope=0.3)
    x = x * torch.tensor([1.0, 0.01, 5.0], dtype=torch.float64)[:, None, None]
    got = rule(f, x, 1e3)
    g = f.gradient(x)
    length = ((x - got) * g).sum((-2, -1)) / g.square().sum((-2, -1))
    assert (f.value(got) <= f.value(x) - 0.3 * length * g.square().sum((-2, -1)) + 1e-12).all()
    assert (f.value(x - 2 * length[:, None, None] * g) > f.value(x) - 0.6 * length * g.square().sum((-2, -1))).all()
    for i in range(3):
        torch.testing.assert_close(got[i], rule(f, x[i], 1e3))


def test_armijo_stays_where_nothing_descends_enough(x):
    assert torch.equal(ArmijoStep(max_trials=1, slope=0.9)(CodingRate(0.5), x, 1e6), x)


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e4])
def test_exact_line_search_is_stationary_and_never_rises(x, start):
    f = CodingRate(0.5)
    got = ExactLineSearchStep()(f, x, start)
    g = f.gradient(x)
    along = (f.gradient(got) * g).sum((-2, -1)) / g.square().sum((-2, -1))
    assert (f.value(got) < f.value(x)).all()
    assert along.abs().max() < 1e-6


def test_exact_line_search_stays_at_a_stationary_point():
    assert torch.equal(ExactLineSearchStep()(CodingRate(0.5), torch.zeros(3, 4), 1.0), torch.zeros(3, 4))


def test_an_energy_without_a_minimum_along_its_gradient_is_refused(bases, x):
    energy = SelfAttentionEnergy(bases, torch.randn(3, 5, 4, dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match="still falls after 60 doublings"):
        ExactLineSearchStep()(energy, x, 1.0)


@pytest.mark.parametrize("rule", [ArmijoStep(), ExactLineSearchStep()])
@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_searches_need_a_positive_start(rule, size, x):
    with pytest.raises(ValueError, match="step_size must be positive and finite"):
        rule(CodingRate(0.5), x, size)


@pytest.mark.parametrize("bad", [{"shrink": 1.0}, {"slope": 0.0}, {"max_trials": 0}])
def test_armijo_parameters_have_ranges(bad):
    with pytest.raises(ValueError, match=f"ArmijoStep: {next(iter(bad))} must"):
        ArmijoStep(**bad)


@pytest.mark.parametrize("rule", [GradientStep(), ArmijoStep(), ExactLineSearchStep()])
def test_unrolled_is_the_loop(rule, x):
    f = CodingRate(0.5)
    got, values = Unrolled(f, rule, depth=4, step_size=0.2).double()(x, return_values=True)
    z, expected = x, [f.value(x)]
    for _ in range(4):
        z = rule(f, z, 0.2)
        expected.append(f.value(z))
    torch.testing.assert_close(got, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert values.shape == (5, 3)


def test_a_factory_is_asked_at_every_point(bases, x):
    seen = []

    def factory(z):
        seen.append(z)
        return MSSA(12, 3, form="softmax", U=bases).objective_at(z)

    Unrolled(factory, depth=3)(x)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])


def test_a_factory_that_is_a_module_keeps_its_parameters(x):
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_epsilon = nn.Parameter(torch.zeros(()))

        def forward(self, z):
            return CodingRate(self.log_epsilon.exp())

    network = Unrolled(Learned(), depth=2)
    network(x).square().sum().backward()
    assert network.objective.log_epsilon.grad.abs() > 0


@pytest.mark.parametrize(("shared", "sets"), [(True, 1), (False, 3)])
def test_learned_fields_stay_in_their_domains(bases, x, shared, sets):
    network = Unrolled(SubspaceCodingRate(bases, 0.5), depth=3, learn=("U", "epsilon"), shared=shared)
    assert len(network.fields) == sets
    assert network.log_step.numel() == sets
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = network.objective_at(x).U.detach().clone()
    for _ in range(10):
        optimiser.zero_grad()
        network(x).square().sum().backward()
        optimiser.step()
    objective = network.objective_at(x)
    flat = objective.U.detach().transpose(0, 1).flatten(-2)
    torch.testing.assert_close(flat.mT @ flat, torch.eye(12, dtype=torch.float64))
    assert (objective.U - before).norm() > 1e-4
    assert objective.epsilon > 0
    assert (network.step_sizes > 0).all()


def test_certified_steps_descend(x):
    _, values = Unrolled(CodingRate(0.5), depth=5, step_size="certified")(x, return_values=True)
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1"),
        ({"step_size": -1.0}, ValueError, "step_size must be positive"),
        ({"step_size": "large"}, ValueError, "a positive number or 'certified'"),
        ({"learn": ("V",)}, ValueError, r"CodingRate has no field \['V'\]"),
        ({"learn": ("tokens",)}, ValueError, "cannot be learned"),
    ],
)
def test_bad_networks_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        Unrolled(CodingRate(0.5), **arguments)


def test_an_objective_of_another_type_is_refused():
    with pytest.raises(TypeError, match="must be an Objective or a callable"):
        Unrolled(3.0)


def test_depths_have_step_sizes_of_their_own_unless_shared(x):
    f = CodingRate(0.5)
    network = Unrolled(f, depth=3, step_size=0.1).double()
    with torch.no_grad():
        network.log_step.copy_(torch.tensor([0.1, 0.5, 0.02]).log())
    z = x
    for size in (0.1, 0.5, 0.02):
        z = z - size * f.gradient(z)
    torch.testing.assert_close(network(x), z)
    assert Unrolled(f, depth=3, shared=True).log_step.shape == (1,)
