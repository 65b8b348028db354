import copy

import pytest
import torch

from objectives import LinearisedRateReduction, RateReduction, one_hot_memberships
from proofs_check import check_layer
from unrolling import ReduNet

D = torch.float64


@pytest.fixture
def training():
    """Thirty tokens of three classes (30, 12), each near a subspace of its own, and their labels' memberships."""
    labels = torch.arange(30) % 3
    tokens = torch.randn(30, 12, dtype=D) * 0.2
    for k in range(3):
        tokens[labels == k, 4 * k : 4 * k + 4] += torch.randn(10, 4, dtype=D)
    return tokens, one_hot_memberships(labels, dtype=D)


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize("form", ["recomputed", "constructed"])
@pytest.mark.parametrize("shape", [(9, 12), (2, 2, 12), (2, 3, 15, 12)])
def test_forward_is_the_declared_step(training, form, shape, device):
    layer = ReduNet.construct(*training, form=form, step_size=0.3).to(device)
    assert off(layer, torch.randn(*shape, dtype=D, device=device)) < 1e-11


@pytest.mark.parametrize("form", ["recomputed", "constructed"])
def test_checks_accept_the_layer(training, form):
    assert check_layer(ReduNet.construct(*training, form=form)).evidence >= 24


def naive_operators(x, Pi, epsilon):
    N, d = x.shape
    alpha = d / (N * epsilon**2)
    E = alpha * torch.linalg.inv(torch.eye(d) + alpha * x.mT @ x)
    C, gamma = [], []
    for k in range(Pi.shape[1]):
        n = Pi[:, k].sum()
        a = d / (n * epsilon**2)
        C.append(a * torch.linalg.inv(torch.eye(d) + a * x.mT @ (Pi[:, k, None] * x)))
        gamma.append(n / N)
    return E, torch.stack(C), torch.stack(gamma)


def naive_step(x, Pi, E, C, gamma, step):
    out = x.clone()
    for i in range(len(x)):
        out[i] += step * (E @ x[i] - sum(gamma[k] * Pi[i, k] * (C[k] @ x[i]) for k in range(len(C))))
    return out


def test_both_forms_are_their_equations(training):
    x = torch.randn(5, 12, dtype=D)
    constructed = ReduNet.construct(*training, form="constructed", epsilon=0.4, step_size=0.3, sharpness=0.7)
    E, C, gamma = naive_operators(*training, 0.4)
    for name, want in (("E", E), ("C", C), ("gamma", gamma)):
        torch.testing.assert_close(getattr(constructed, name), want)
    lengths = torch.stack([(x @ Ck).norm(dim=-1) for Ck in C], -1)
    Pi = torch.softmax(-0.7 * lengths, -1)
    torch.testing.assert_close(constructed.memberships(x), Pi)
    torch.testing.assert_close(constructed(x), naive_step(x, Pi, E, C, gamma, 0.3))
    recomputed = ReduNet.construct(*training, epsilon=0.4, step_size=0.3, sharpness=0.7)
    torch.testing.assert_close(recomputed(x), naive_step(x, Pi, *naive_operators(x, Pi, 0.4), 0.3))


def test_at_the_training_set_the_forms_are_one(training):
    x, Pi = training
    forms = [ReduNet.construct(x, Pi, form=form, step_size=0.3)(x, Pi) for form in ("recomputed", "constructed")]
    torch.testing.assert_close(*forms)
    torch.testing.assert_close(forms[0], x - 0.3 * RateReduction(Pi).gradient(x))


def test_layers_built_one_on_the_other_raise_the_rate_reduction(training):
    x, Pi = training
    objective, values = RateReduction(Pi), []
    for _ in range(5):
        values.append(float(objective.value(x)))
        kappa = 1.0 / float(objective.lipschitz(x))
        x = ReduNet.construct(x, Pi, form="constructed", step_size=kappa)(x, Pi).detach()
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.05


def test_tokens_of_a_class_are_recognised(training):
    x, Pi = training
    layer = ReduNet.construct(x, Pi, sharpness=10.0, epsilon=0.5)
    assert (layer.memberships(x).argmax(-1) == Pi.argmax(-1)).double().mean() > 0.9


def test_normalising_withdraws_the_claim(training):
    x = torch.randn(2, 9, 12, dtype=D)
    layer = ReduNet.construct(*training, normalise=True, step_size=0.3)
    torch.testing.assert_close(layer(x).norm(dim=-1), torch.ones(2, 9, dtype=D))
    plain = ReduNet.construct(*training, step_size=0.3)(x)
    torch.testing.assert_close(layer(x), plain / plain.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="no descent is claimed: normalise=True brings the tokens to the unit sphere"):
        layer.objective_at(x)


def test_what_it_declares_and_what_it_stands_in_for(training):
    x = torch.randn(9, 12, dtype=D)
    recomputed, constructed = ReduNet.construct(*training), ReduNet.construct(*training, form="constructed")
    assert isinstance(recomputed.objective_at(x), RateReduction)
    assert recomputed.approximates_at(x) is None
    assert isinstance(constructed.objective_at(x), LinearisedRateReduction)
    assert isinstance(constructed.approximates_at(x), RateReduction)
    given = torch.softmax(torch.randn(9, 3, dtype=D), -1)
    torch.testing.assert_close(recomputed.objective_at(x, given).memberships, given)


@pytest.mark.parametrize("form", ["recomputed", "constructed"])
def test_gradients_are_right_through_the_layer(training, form):
    layer = ReduNet.construct(*training, form=form)
    x = torch.randn(4, 12, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7, rtol=1e-5)
    layer(x).square().sum().backward()
    assert layer.step.grad.abs() > 0
    assert not ReduNet.construct(*training, learnable_step=False).step.requires_grad


def test_hard_memberships_can_be_differentiated_around(training):
    x = torch.randn(6, 12, dtype=D, requires_grad=True)
    hard = one_hot_memberships(torch.tensor([0, 0, 0, 1, 1, 1]), 3, D)  # class 2 is empty
    (gradient,) = torch.autograd.grad(ReduNet.construct(*training)(x, hard).sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("form", ["recomputed", "constructed"])
def test_single_precision_follows_double(training, form):
    layer = ReduNet.construct(*training, form=form)
    x = torch.randn(2, 9, 12)
    narrow = copy.deepcopy(layer).float()
    torch.testing.assert_close(narrow(x).double(), layer(x.double()), rtol=1e-3, atol=1e-3)


def test_state_goes_round(training):
    first = ReduNet.construct(*training, step_size=0.3)
    second = ReduNet(torch.eye(12, dtype=D), torch.eye(12, dtype=D).repeat(3, 1, 1), torch.ones(3, dtype=D))
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 12, dtype=D)
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            lambda x, P: ReduNet.construct(x, P, form="fresh"),
            ValueError,
            "form must be one of 'recomputed', 'constructed'",
        ),
        (lambda x, P: ReduNet.construct(x, P, step_size=-1.0), ValueError, "step_size must be positive and finite"),
        (lambda x, P: ReduNet.construct(x, P, sharpness=0.0), ValueError, "sharpness must be positive and finite"),
        (lambda x, P: ReduNet.construct(x, P, epsilon=0.0), ValueError, "epsilon must be positive"),
        (lambda x, P: ReduNet.construct(x[None], P), ValueError, r"training set must be a tensor \(tokens, dim\)"),
        (lambda x, P: ReduNet.construct(x, P[:5]), ValueError, "x has 30 tokens, but the memberships were made for 5"),
        (
            lambda x, P: ReduNet.construct(x, torch.nn.functional.pad(P, (0, 1))),
            ValueError,
            r"classes \[3\] of the training set have no members",
        ),
        (lambda x, P: ReduNet(x[0], x, x), ValueError, r"E, C and gamma must be \(dim, dim\)"),
        (
            lambda x, P: ReduNet(torch.rand(3, 3), torch.eye(3)[None], torch.ones(1)),
            ValueError,
            r"E \(3, 3\) must be symmetric",
        ),
        (
            lambda x, P: ReduNet.construct(x, P)(x[:, :5]),
            ValueError,
            r"x must be \(..., tokens, dim=12\) .* shape \(30, 5\)",
        ),
        (
            lambda x, P: ReduNet.construct(x, P)(x.float()),
            TypeError,
            "x is torch.float32, but the layer is torch.float64",
        ),
        (lambda x, P: ReduNet.construct(x, P)([1.0]), TypeError, "must be a torch.Tensor"),
        (
            lambda x, P: ReduNet.construct(x, P)(x, P[:, :2]),
            ValueError,
            r"memberships must be \(..., tokens, classes\) = \(..., 30, 3\)",
        ),
    ],
)
def test_bad_arguments_are_refused(training, make, error, said):
    with pytest.raises(error, match=said):
        make(*training)


def test_it_prints_its_options(training):
    assert "form='recomputed'" in repr(ReduNet.construct(*training, normalise=True))
    assert "normalise" in repr(ReduNet.construct(*training, normalise=True))
