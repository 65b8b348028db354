"""`check_descent`, put to functions that know nothing of the project's classes, right and wrong in ways of their own."""

import json
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from objectives import CodingRate, NonNegativeL1, SubspaceCodingRate
from proofs_check.descent_check import check_descent
from proofs_check.verdicts import Finding, load_counterexample

D, K, P = 8, 2, 4
KAPPA, EPS, S = 0.3, 0.5, 0.5


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


U = torch.linalg.qr(seeded(D, D, seed=1)).Q.reshape(D, K, P).transpose(0, 1).contiguous()
X = seeded(6, D, seed=2)
EYE = torch.eye(P, dtype=torch.float64)
DICTIONARY = 0.5 * seeded(D, D, seed=3)
MEMORIES = seeded(5, D, seed=4)
QUERIES = seeded(K, 3, P, seed=5)
A, B = np.random.default_rng(0).standard_normal((7, 5)), np.random.default_rng(1).standard_normal(7)


def compression(x, epsilon=EPS):
    """R_c from its definition, by determinants."""
    return sum(0.5 * torch.logdet(EYE + P / (x.shape[-2] * epsilon**2) * (x @ u).mT @ (x @ u)) for u in U.to(x.dtype))


def compressing(x, eps=EPS, back=lambda k: k, steps=(1.0, 1.0)):
    """∇R_c, by inverses."""
    beta, total = P / (x.shape[-2] * eps**2), 0
    for k, u in enumerate(U.to(x.dtype)):
        w = x @ u
        into = U[back(k)].to(x.dtype)
        total = total + steps[k] * beta * w @ torch.linalg.inv(EYE.to(x.dtype) + beta * w.mT @ w) @ into.mT
    return total


def mssa(x, **more):
    return x - KAPPA * compressing(x, **more)


def softmax(scores):
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def attention(x):
    return sum(softmax(S * (x @ u) @ (x @ u).mT) @ (x @ u) @ u.mT for u in U)


def symmetric(x):
    weights = [softmax(S * (x @ u) @ (x @ u).mT) for u in U]
    return sum((p + p.mT) @ x @ u @ u.mT for p, u in zip(weights, U, strict=True))


def energy(x, keys):
    """Log-sum-exp of the tokens against keys."""
    return -sum(torch.logsumexp(S * (x @ u) @ k.mT, -1).sum((-1,)) / S for u, k in zip(U, keys, strict=True))


KEYS = {"keys": lambda x: [x @ u for u in U]}


def extraction(x):
    return [softmax(q @ (x @ u).mT) for q, u in zip(QUERIES, U, strict=True)]


def representatives_rate(x, P_k, epsilon=EPS):
    few = [p @ x @ u for p, u in zip(P_k, U, strict=True)]
    return sum(0.5 * torch.logdet(EYE + P / (3 * epsilon**2) * q.mT @ q) for q in few)


def cbsa(x, count=3):
    total, beta = 0, P / (count * EPS**2)
    for p, u in zip(extraction(x), U, strict=True):
        q = p @ x @ u
        total = total + beta * p.mT @ q @ torch.linalg.inv(EYE + beta * q.mT @ q) @ u.mT
    return x - KAPPA * total


def ista(x, eta=0.1):
    return F.relu(x + eta * (x - x @ DICTIONARY.mT) @ DICTIONARY - eta * 0.2)


SPARSE = SimpleNamespace(
    smooth=lambda a, data: 0.5 * ((data - a @ DICTIONARY.mT) ** 2).sum(), nonsmooth=NonNegativeL1(0.2)
)


def least_squares(w):
    return 0.5 * np.sum((A @ w - B) ** 2) + 0.15 * np.sum(w**2)


def ridge(w, weight=0.3):
    return A.T @ (A @ w - B) + weight * w


# ---------------------------------------------------------------------------------------------- right


RIGHT = {
    "MSSA": (mssa, compression, KAPPA, X),
    "MSSA, ours for the objective": (mssa, SubspaceCodingRate(U, EPS), KAPPA, X),
    "step size found": (mssa, compression, None, X),
    "a small step": (lambda x: x - 1e-5 * compressing(x), compression, 1e-5, X),
    "step size a function": (
        lambda x: x - 0.1 * x.shape[-2] * compressing(x),
        compression,
        lambda x: 0.1 * x.shape[-2],
        X,
    ),
    "a batch for an example": (mssa, compression, KAPPA, seeded(3, 5, D)),
    "a summed batch": (mssa, lambda x: compression(x).sum(), KAPPA, seeded(3, 5, D)),
    "an objective for batches only": (mssa, lambda x: compression(x) + 0 * x[:, 0, 0], KAPPA, seeded(3, 5, D)),
    "float32 example": (mssa, compression, KAPPA, seeded(5, D, dtype=torch.float32)),
    "a Hopfield step": (
        lambda x: softmax(x @ MEMORIES.mT) @ MEMORIES,
        lambda x: 0.5 * (x**2).sum() - torch.logsumexp(x @ MEMORIES.mT, -1).sum(),
        1.0,
        X,
    ),
    "ridge, torch": (
        lambda w: w - 0.05 * (torch.from_numpy(A).mT @ (torch.from_numpy(A) @ w - torch.from_numpy(B))),
        lambda w: 0.5 * ((torch.from_numpy(A) @ w - torch.from_numpy(B)) ** 2).sum(),
        0.05,
        seeded(5),
    ),
    "least squares, numpy": (
        lambda w: w - 0.05 * ridge(w),
        least_squares,
        0.05,
        np.random.default_rng(2).normal(size=5),
    ),
    "many numbers, numpy": (
        lambda W: W - 0.05 * A.T @ (A @ W),
        lambda W: 0.5 * np.sum((A @ W) ** 2),
        0.05,
        np.random.default_rng(2).normal(size=(5, 20)),
    ),
    "an image": (
        lambda x: x + 0.1 * (torch.roll(x, 1, -1) + torch.roll(x, -1, -1) - 2 * x),
        lambda x: 0.5 * ((torch.roll(x, 1, -1) - x) ** 2).sum(),
        0.1,
        seeded(3, 4, 5),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_functions_are_accepted(name):
    forward, objective, step, x = RIGHT[name]
    found = check_descent(forward, objective, step, x)
    assert found
    assert found.verdict is Finding.DESCENDS
    assert found.worst_error <= found.tolerance < (1e-3 if name == "a small step" else 1e-6)
    assert found.evidence >= 0.9 * found.sets
    assert found.cosine_min == pytest.approx(1)
    assert found.counterexample is None
    assert "descends exactly" in str(found)


def test_a_gradient_of_ones_own_is_used_and_held_against_the_objective():
    x = np.random.default_rng(2).normal(size=5)
    right = check_descent(lambda w: w - 0.05 * ridge(w), least_squares, 0.05, x, gradient=ridge)
    assert right
    odd = check_descent(lambda w: w - 0.05 * ridge(w), least_squares, 0.05, x, gradient=lambda w: ridge(w, 0.6))
    assert odd.verdict is Finding.AT_ODDS
    torches = SimpleNamespace(value=compression, gradient=lambda x: 1.01 * compressing(x))
    assert check_descent(mssa, torches, KAPPA, X).verdict is Finding.AT_ODDS
    torches.gradient = compressing
    assert check_descent(mssa, torches, KAPPA, X)


@pytest.mark.parametrize(("dtype", "loose"), [(torch.float32, 1e-2), ("float64", 1e-6), (np.float32, 1e-2)])
def test_the_precision_can_be_chosen(dtype, loose):
    found = check_descent(mssa, compression, KAPPA, X, dtype=dtype)
    assert found
    assert found.tolerance < loose


def test_a_function_for_float32_only_is_called_in_that():
    weight = U.float()

    def single(x):
        beta, total = P / (x.shape[-2] * EPS**2), 0
        for u in weight:
            w = x @ u
            total = total + beta * w @ torch.linalg.inv(torch.eye(P) + beta * w.mT @ w) @ u.mT
        return x - KAPPA * total

    assert check_descent(single, compression, KAPPA, X.float())
    assert check_descent(lambda x: single(x) + 0.1 * x, compression, KAPPA, X.float()).verdict is Finding.MISTAKE


def test_without_an_example_the_width_is_asked_for():
    class Shrink(nn.Module):
        dim = 5

        def forward(self, x):
            return 0.5 * x

    assert check_descent(Shrink(), lambda x: 0.5 * (x**2).sum(), 0.5)
    with pytest.raises(TypeError, match="pass example_input"):
        check_descent(lambda x: x, lambda x: x.sum(), 0.5)


# ---------------------------------------------------------------------------------------- frozen arguments


def test_attention_is_the_gradient_with_its_keys_frozen():
    found = check_descent(lambda x: x + KAPPA * attention(x), energy, KAPPA, X, frozen=KEYS)
    assert (found.verdict, found.frozen) == (Finding.FROZEN, ("keys",))
    assert "with keys held constant" in str(found)
    assert not found


def test_attention_subtracted_ascends_with_its_keys_frozen():
    found = check_descent(lambda x: x - KAPPA * attention(x), energy, KAPPA, X, frozen=KEYS)
    assert (found.verdict, found.frozen) == (Finding.ASCENDS, ("keys",))


def test_symmetric_attention_is_the_gradient_with_nothing_frozen():
    assert check_descent(lambda x: x + KAPPA * symmetric(x), energy, KAPPA, X, frozen=KEYS)


def test_keys_that_move_by_half_are_neither():
    half = lambda x: x + KAPPA * (attention(x) + symmetric(x)) / 2  # noqa: E731
    found = check_descent(half, energy, KAPPA, X, frozen=KEYS)
    assert found.verdict is Finding.DIRECTION


def test_which_of_two_arguments_is_frozen_is_found_out():
    rate = lambda x, P_k, x_again: representatives_rate(x_again, P_k)  # noqa: E731
    frozen = {"P_k": extraction, "x_again": lambda x: x}
    found = check_descent(cbsa, rate, KAPPA, X, frozen=frozen)
    assert (found.verdict, found.frozen) == (Finding.FROZEN, ("P_k",))
    assert "The other arguments move along" in str(found)


def test_what_an_objective_detaches_counts_as_frozen():
    def detaching(x):
        return energy(x, [(x @ u).detach() for u in U])

    found = check_descent(lambda x: x + KAPPA * attention(x), detaching, KAPPA, X[:4], cases=12)
    assert found.verdict is Finding.FROZEN
    assert "what the objective detaches held constant" in str(found)
    assert check_descent(lambda x: x + KAPPA * symmetric(x), detaching, KAPPA, X[:4], cases=12)


def test_what_is_detached_on_some_inputs_only_is_noticed_too():
    def sometimes(x):
        keys = [x @ u for u in U]
        return energy(x, keys if len(x) <= len(X) else [k.detach() for k in keys])

    def as_autograd_says(x):
        return x + KAPPA * (symmetric(x) if x.shape[-2] <= len(X) else attention(x))

    assert not check_descent(as_autograd_says, sometimes, KAPPA, X, cases=12)


def test_frozen_arguments_of_numpy_functions():
    def value(w, weights):
        return 0.5 * np.sum(weights * w**2)

    frozen = {"weights": lambda w: 1 / (1 + w**2)}
    x = np.random.default_rng(0).normal(size=6)
    found = check_descent(lambda w: w - 0.1 * w / (1 + w**2), value, 0.1, x, frozen=frozen)
    assert (found.verdict, found.frozen) == (Finding.FROZEN, ("weights",))
    assert check_descent(lambda w: w - 0.1 * w / (1 + w**2) ** 2, value, 0.1, x, frozen=frozen)


def test_a_proximal_step_is_one_with_its_data_frozen():
    found = check_descent(ista, SPARSE, 0.1, X, frozen={"data": lambda x: x})
    assert (found.verdict, found.frozen) == (Finding.FROZEN, ("data",))
    unknown = check_descent(ista, SPARSE, None, X, frozen={"data": lambda x: x})
    assert (unknown.verdict, unknown.step_max) == (Finding.FROZEN, pytest.approx(0.1))
    fixed = SimpleNamespace(smooth=lambda a: SPARSE.smooth(a, X), nonsmooth=SPARSE.nonsmooth)
    step = lambda a: F.relu(a - 0.1 * (a @ DICTIONARY.mT - X) @ DICTIONARY - 0.02)  # noqa: E731
    assert check_descent(step, fixed, 0.1, X)
    assert check_descent(lambda a: step(a) + 0.01, fixed, 0.1, X).verdict is not Finding.DESCENDS


# ------------------------------------------------------------------------------------------------ wrong


def skipped(x, keep):
    y = mssa(x)
    mask = keep(x).to(x.dtype)
    return mask * y + (1 - mask) * x


def tokens_of(which):
    return lambda x: torch.tensor([which(i, x.shape[-2]) for i in range(x.shape[-2])])[:, None]


def features_of(which):
    return lambda x: torch.tensor([which(i) for i in range(D)])


class Momentum:
    def __init__(self):
        self.velocity = None

    def __call__(self, x):
        g = KAPPA * compressing(x)
        fresh = self.velocity is None or self.velocity.shape != g.shape
        self.velocity = g if fresh else 0.9 * self.velocity + g
        return x - self.velocity


def in_place(x):
    x -= KAPPA * compressing(x)
    return x


def single_inside(x):
    return x - KAPPA * compressing(x.float()).double()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Parameter(seeded(D, 16, seed=6).float()), nn.Parameter(seeded(16, D, seed=7).float())

    def forward(self, x):
        return x + F.relu(x @ self.into) @ self.out


NETWORK = Network()

WRONG = {
    "the opposite sign": (lambda x: 2 * x - mssa(x), "ASCENDS", "it ascends: it is exactly the gradient step"),
    "half the step": (
        lambda x: 0.5 * (x + mssa(x)),
        "OTHER_STEP",
        "0.15 on all inputs, found by projection; it is 0.5 times",
    ),
    "one per cent longer": (lambda x: x + 1.01 * (mssa(x) - x), "OTHER_STEP", "it is 1.01 times the declared one"),
    "ε for ε²": (lambda x: mssa(x, eps=EPS**0.5), "MISTAKE", "epsilon stands where epsilon² belongs"),
    "another ε": (lambda x: mssa(x, eps=0.37), "MISTAKE", "with epsilon = 0.37 for 0.5"),
    "normalised first": (
        lambda x: x - KAPPA * compressing(F.layer_norm(x, (D,))),
        "MISTAKE",
        "the LayerNorm of x and adds that to x",
    ),
    "no residual": (
        lambda x: -KAPPA * compressing(x),
        "MISTAKE",
        "returns the update alone: the residual x is missing",
    ),
    "a scaled skip": (lambda x: mssa(x) - 0.01 * x, "MISTAKE", r"− 0.01 x, κ = 0.3, the declared one"),
    "the first half of the tokens": (
        lambda x: skipped(x, tokens_of(lambda i, n: i >= n // 2)),
        "SOME_TOKENS",
        "the first half are not updated",
    ),
    "the last token": (
        lambda x: skipped(x, tokens_of(lambda i, n: i < n - 1)),
        "SOME_TOKENS",
        "the last is not updated",
    ),
    "half of the features": (
        lambda x: skipped(x, features_of(lambda i: i % 2 == 0)),
        "SOME_FEATURES",
        "every second one, from 1 are not updated",
    ),
    "nothing": (lambda x: x.clone(), "STILL", "moves nothing, though the objective has a gradient"),
    "a constant": (torch.ones_like, "CONSTANT", "does not depend on x"),
    "NaN for zero": (
        lambda x: mssa(x) + 0 * x / x.norm(),
        "NOT_FINITE",
        r"NaN or infinite numbers: 48 of 48(.|\n)*on 1 of 40 inputs(.|\n)*Apart from that: it descends exactly",
    ),
    "NaN": (lambda x: x * float("nan"), "NOT_FINITE", "on 40 of 40 inputs"),
    "an error": (lambda x: x @ torch.ones(3, 3), "RAISES", "it raises RuntimeError"),
    "an error for zero": (
        lambda x: mssa(x) if bool(x.any()) else 1 / 0,
        "RAISES",
        "it raises ZeroDivisionError(.|\n)*on 1 of 40 inputs",
    ),
    "momentum": (Momentum(), "CHANGES_ITS_MIND", "does it keep a state, such as momentum"),
    "dropout": (lambda x: x + F.dropout(mssa(x) - x, 0.2), "CHANGES_ITS_MIND", "is dropout left on"),
    "numpy's noise": (lambda x: mssa(x) + 1e-6 * np.random.randn(), "CHANGES_ITS_MIND", "is dropout left on"),
    "in place": (in_place, "CHANGES_INPUT", r"in place(.|\n)*Apart from that: it descends exactly"),
    "a tuple": (
        lambda x: (mssa(x), None),
        "WRONG_OUTPUT",
        r"a tuple of 2(.|\n)*what it returns inside is taken: it descends exactly",
    ),
    "another shape": (lambda x: mssa(x)[..., 1:, :], "WRONG_OUTPUT", r"the shape \(5, 8\) for x of shape \(6, 8\)"),
    "a list of numbers": (lambda x: mssa(x).tolist(), "WRONG_OUTPUT", "returns a list of 6"),
    "integers": (lambda x: mssa(x).long(), "WRONG_OUTPUT", "numbers of type torch.int64"),
    "float32 out": (lambda x: mssa(x).float(), "PRECISION", r"float32 for float64(.|\n)*rounding in a lower precision"),
    "float32 inside": (single_inside, "PRECISION", "about that of float32"),
    "float32 and the opposite sign": (
        lambda x: (2 * x - mssa(x)).float(),
        "ASCENDS",
        r"it ascends(.|\n)*up to rounding(.|\n)*float32 for float64",
    ),
    "float32 and half the step": (
        lambda x: x - KAPPA / 2 * compressing(x.float()).double(),
        "OTHER_STEP",
        "with another step size, 0.15 in the middle, up to rounding",
    ),
    "bfloat16 inside": (
        lambda x: x + (mssa(x) - x).bfloat16().double(),
        "PRECISION",
        "about that of bfloat16",
    ),
    "a smooth error of 1e-7": (lambda x: mssa(x) + 1e-7 * x.sin(), "DIRECTION", "no roundings' pattern"),
    "attention for −∇R_c": (lambda x: x - KAPPA * attention(x), "DIRECTION", "points downhill on all 46 sets"),
    "attention added": (lambda x: x + KAPPA * attention(x), "NO_DESCENT", "the cosine with descent is down to -"),
    "a network": (NETWORK, "NO_DESCENT", "no descent direction on"),
    "eight tokens": (
        lambda x: mssa(x) if x.shape[-2] != 8 else x.clone(),
        "NO_DESCENT",
        "does not move there(.|\n)*wrong where it is 8",
    ),
    "one token": (
        lambda x: mssa(x) if x.shape[-2] > 1 else 0.9 * x,
        "DIRECTION",
        "right where the number of tokens is 2, 3, 5, 6, 7, 8, 11, 12, and wrong where it is 1",
    ),
    "equal tokens": (
        lambda x: mssa(x) if x.shape[-2] < 2 or bool((x - x[..., :1, :]).any()) else 0.9 * x,
        "DIRECTION",
        "On 45 of 47 sets it is the exact step",
    ),
    "zero": (lambda x: mssa(x) if bool(x.any()) else x + 1, "NO_DESCENT", "moves where the gradient is zero"),
    "large tokens": (
        lambda x: mssa(x) if float(x.abs().max()) < 50 else 0.9 * x,
        "DIRECTION",
        "wrong on large x only",
    ),
    "two batch axes": (
        lambda x: mssa(x) if x.ndim < 4 else 2 * x - mssa(x),
        "NO_DESCENT",
        "wrong where it is 4",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_functions_are_told_by_what_is_wrong(name):
    forward, finding, said = WRONG[name]
    found = check_descent(forward, compression, KAPPA, X)
    assert found.verdict is Finding[finding]
    assert not found
    assert re.search(said, str(found)), str(found)
    assert found.counterexample is not None


def test_step_sizes_that_vary_are_told_by_what_they_vary_with():
    times_n = check_descent(lambda x: x - 0.1 * x.shape[-2] * compressing(x), compression, None, X)
    assert times_n.verdict is Finding.OTHER_STEP
    assert times_n.dependence == "proportional to N, the number of tokens"
    assert (times_n.step_min, times_n.step_max) == (pytest.approx(0.1), pytest.approx(1.2))

    def by_largest(x):
        size = x.norm(dim=-1).amax(-1)[..., None, None]
        return x - compressing(x) / torch.where(size > 0, size, 1) ** 2

    largest = check_descent(by_largest, compression, 0.3, X)
    assert largest.verdict is Finding.OTHER_STEP
    assert largest.dependence == "proportional to the power -2 of the largest token's norm"
    mean = check_descent(
        lambda x: x - (KAPPA / x.shape[0] if x.ndim > 2 else KAPPA) * compressing(x), compression, KAPPA, X
    )
    assert "inverse of the length of the first batch axis" in mean.dependence
    odd = check_descent(lambda x: x - (1 + x[..., :1, :1].sin() ** 2) * compressing(x), compression, KAPPA, X)
    assert (odd.verdict, odd.dependence) == (Finding.OTHER_STEP, "")


def test_heads_with_step_sizes_of_their_own():
    def own(x):
        return mssa(x, steps=(0.5, -2.0))

    found = check_descent(own, compression, KAPPA, X, heads=U)
    assert found.verdict is Finding.PER_HEAD
    assert found.factors == pytest.approx((0.15, -0.6))
    assert "negative one ascend" in str(found)
    assert check_descent(own, compression, KAPPA, X).verdict is not Finding.PER_HEAD
    parts = lambda x: torch.cat([0.9 * x[..., :4], 0.5 * x[..., 4:]], -1)  # noqa: E731
    split = check_descent(parts, lambda x: 0.5 * (x**2).sum(), None, X, heads=2)
    assert split.factors == pytest.approx((0.1, 0.5))


def test_another_heads_basis_on_the_way_back():
    found = check_descent(lambda x: mssa(x, back=lambda k: 1 - k), compression, KAPPA, X, heads=U)
    assert found.verdict is Finding.MISTAKE
    assert "head 0 the step of head 1" in found.mistake


def test_another_count_in_beta_is_found_in_our_objectives_fields():
    class Counted(nn.Module):
        def forward(self, x):
            beta = D / (3 * EPS**2)
            return x - 0.1 * beta * x @ torch.linalg.inv(torch.eye(D, dtype=x.dtype) + beta * x.mT @ x)

    found = check_descent(Counted(), CodingRate(EPS, tokens=D), 0.1, X)
    assert found.verdict is Finding.MISTAKE
    assert check_descent(Counted(), CodingRate(EPS, tokens=3), 0.1, X)


def test_a_forgotten_ridge_is_named():
    found = check_descent(
        lambda w: w - 0.05 * ridge(w, 0.0), least_squares, 0.05, np.random.default_rng(2).normal(size=5)
    )
    assert found.verdict is Finding.MISTAKE
    assert "½ 0.3 ‖x‖²" in found.mistake


def test_multiples_of_either_sign_are_no_descent():
    found = check_descent(lambda x: x - KAPPA * compressing(x) * x[..., :1, :1].sign(), compression, KAPPA, X)
    assert found.verdict is Finding.NO_DESCENT
    assert "of either sign" in str(found)
    assert found.cosine_min == pytest.approx(-1)


def test_an_error_in_one_of_many_entries_is_seen_along_directions():
    def once(W):
        move = -0.05 * A.T @ (A @ W)
        move[2, 7] *= 1.5
        return W + move

    x = np.random.default_rng(2).normal(size=(5, 20))
    found = check_descent(once, lambda W: 0.5 * np.sum((A @ W) ** 2), 0.05, x, cases=12)
    assert found.verdict is Finding.DIRECTION


def test_numbers_of_tokens_that_are_refused_are_left_out_and_named():
    def two_at_least(x):
        if x.shape[-2] < 2:
            raise ValueError("two tokens, please")
        return mssa(x)

    found = check_descent(two_at_least, compression, KAPPA, X)
    assert found
    assert "1 tokens refused" in found.accepted
    six = check_descent(lambda x: mssa(x.reshape(6, D)), compression, KAPPA, X)
    assert six
    assert "only 6 tokens are accepted" in six.accepted


def test_a_module_is_copied_and_put_to_evaluation_mode():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(D))
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return x - KAPPA * self.drop(self.weight * x)

    layer = Dropped().train()
    assert check_descent(layer, lambda x: 0.5 * (x**2).sum(), KAPPA, X)
    assert layer.training
    assert layer.weight.dtype == torch.float32


def test_the_sets_of_a_summed_batch_are_looked_at_one_by_one():
    half = lambda x: skipped(x, tokens_of(lambda i, n: i >= n // 2))  # noqa: E731
    found = check_descent(half, lambda x: compression(x).sum(), KAPPA, seeded(3, 5, D))
    assert found.verdict is Finding.SOME_TOKENS


def test_part_of_the_tokens_on_some_inputs_only_is_no_rule():
    def eight(x):
        return skipped(x, tokens_of(lambda i, n: n != 8 or i < 4))

    found = check_descent(eight, compression, KAPPA, X)
    assert found.verdict is Finding.DIRECTION
    assert "wrong where it is 8" in str(found)


def test_an_objective_that_is_seldom_finite_is_no_evidence():
    def seldom(x):
        return compression(x) if abs(float(x.norm()) - float(X.norm())) < 0.5 else compression(x) * float("nan")

    found = check_descent(mssa, seldom, KAPPA, X)
    assert found.verdict is Finding.NO_EVIDENCE
    assert "the objective is not finite there, or raises" in str(found)


def test_random_generators_are_left_where_they_were():
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    check_descent(lambda x: F.dropout(x, 0.5) * random.random(), compression, KAPPA, X, cases=4)
    assert random.getstate() == before[2]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


# --------------------------------------------------------------------------------- what can be done with it


@pytest.mark.parametrize("name", ["attention added", "the opposite sign", "a network", "half of the features"])
def test_the_snippet_runs_when_pasted_and_shows_it(name, tmp_path):
    forward, *_ = WRONG[name]
    found = check_descent(forward, compression, KAPPA, X)
    printed = subprocess.run(
        [sys.executable, "-c", found.snippet], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    update = found.update
    seen = -(update * found.gradient).sum() / (np.linalg.norm(update) * np.linalg.norm(found.gradient))
    assert float(printed) == pytest.approx(seen, abs=1e-7)
    assert seen < 0 or found.verdict is Finding.SOME_FEATURES
    x = torch.from_numpy(found.counterexample)
    if name != "a network":  # which is called as a copy in float64
        assert torch.allclose(forward(x), x + torch.from_numpy(update))


def test_the_counterexample_is_small_and_round():
    found = check_descent(lambda x: x + KAPPA * attention(x), compression, KAPPA, X)
    assert found.counterexample.size == D
    assert len(np.unique(found.counterexample)) <= 4


def test_large_counterexamples_are_made_again_by_their_case():
    forward, objective = (lambda x: 1.1 * x), (lambda x: 0.5 * (x**2).sum())
    found = check_descent(forward, objective, 0.1, seeded(50, 40), cases=6)
    assert check_descent(forward, objective, 0.1, seeded(50, 40), cases=1).snippet.startswith("# x, of shape (50, 40)")
    only = check_descent(lambda x: 1.1 * x if x.shape[-2] == 50 else 1 / 0, objective, 0.1, seeded(50, 40), cases=6)
    values: dict = {}
    exec(only.snippet, values)
    assert values["x"].shape == only.counterexample.shape == (50, 40)
    assert found.counterexample.size < 300


def test_the_counterexample_is_saved_and_loaded(tmp_path):
    found = check_descent(NETWORK, compression, KAPPA, X)
    place = found.save(tmp_path / "network.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["network.npz"]
    again = load_counterexample(place)
    assert again.verdict is Finding.NO_DESCENT
    assert again.cosine < 0
    assert all(
        np.array_equal(*pair)
        for pair in ((again.x, found.counterexample), (again.update, found.update), (again.gradient, found.gradient))
    )
    assert "no descent direction" in again.words
    with pytest.raises(ValueError, match="no such file"):
        load_counterexample(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(ValueError, match="not a counterexample of check_descent"):
        load_counterexample(tmp_path / "other.npz")
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickled.npz", check_descent=pickled, x=pickled)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_counterexample(tmp_path / "pickled.npz")
    with pytest.raises(ValueError, match="no counterexample to save"):
        check_descent(mssa, compression, KAPPA, X, cases=4).save(tmp_path / "nothing.npz")


@pytest.mark.parametrize("name", ["NaN", "an error", "a network", "the opposite sign"])
def test_the_diagnosis_is_plain_data(name):
    found = check_descent(WRONG[name][0], compression, KAPPA, X)
    entry = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert entry["verdict"] == found.verdict.name
    assert entry["holds"] is False
    assert np.array_equal(np.array(entry["counterexample"]), found.counterexample)


def test_a_diagnosis_cannot_be_changed():
    found = check_descent(mssa, compression, KAPPA, X, cases=4)
    with pytest.raises(AttributeError):
        found.verdict = Finding.ASCENDS


def test_the_same_seed_gives_the_same_diagnosis():
    one, other = (check_descent(NETWORK, compression, KAPPA, X, seed=5).to_dict() for _ in range(2))
    assert one == other
    assert check_descent(NETWORK, compression, KAPPA, X, seed=6).to_dict()["cosine_min"] != one["cosine_min"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"forward": 3}, TypeError, "forward must be a module or a function of x, but is 3"),
        ({"objective": 3}, TypeError, "objective must be a function of x, or an object with value"),
        (
            {"objective": lambda x: x},
            ValueError,
            r"must return one number, or one a token set, but returned the shape \(6, 8\)",
        ),
        ({"objective": lambda x: x @ x}, ValueError, "objective must return a number for x of shape"),
        ({"objective": lambda x: x.sum() / 0}, ValueError, "it must be finite there"),
        ({"step_size": -1.0}, ValueError, "step_size must be positive and finite, but is -1.0; for ascent"),
        ({"step_size": "big"}, TypeError, "step_size must be a positive number, a function of x, or None"),
        (
            {"step_size": lambda x: -1.0},
            ValueError,
            "step_size must be positive and finite, but is -1.0 at the example",
        ),
        ({"step_size": lambda x: x.nothing}, ValueError, r"step_size\(x\) raised AttributeError"),
        ({"example_input": [1.0]}, TypeError, "must be a tensor or a numpy array, but is a list"),
        ({"example_input": torch.ones(2, 3, dtype=torch.long)}, TypeError, "but its dtype is torch.int64"),
        ({"example_input": np.ones(3, dtype=int)}, TypeError, "but its dtype is int64"),
        ({"example_input": torch.ones(0, 3)}, ValueError, r"must not be empty, but has shape \(0, 3\)"),
        ({"example_input": torch.full((2, 3), torch.inf)}, ValueError, "NaN or infinite"),
        ({"gradient": 2.0}, TypeError, "gradient must be a function of x"),
        ({"gradient": lambda x: x[0]}, ValueError, "the gradient must have the shape of x"),
        ({"gradient": lambda x: x @ x}, ValueError, "the gradient raised"),
        ({"frozen": ["P"]}, TypeError, "frozen must map names"),
        ({"frozen": {"P": 2}}, TypeError, "functions of x, but holds 'P': 2"),
        ({"frozen": {c: (lambda x: x) for c in "abcdef"}}, ValueError, "at most 5 are tried"),
        ({"heads": 3}, ValueError, "heads must divide the 8 features, but is 3"),
        ({"heads": True}, TypeError, "heads must be a number of heads or bases"),
        ({"heads": torch.ones(2, 7, 4)}, ValueError, "with dim = 8, but has shape"),
        ({"heads": torch.ones(2, 8, 4)}, ValueError, "must be orthonormal"),
        ({"cases": 0}, ValueError, "cases must be at least 1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"dtype": torch.float16}, ValueError, "dtype must be float64 or float32, but is float16"),
        ({"dtype": "nonsense"}, ValueError, "dtype must be float64 or float32"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(arguments, error, said):
    call = {"forward": mssa, "objective": compression, "step_size": KAPPA, "example_input": X} | arguments
    with pytest.raises(error, match=said):
        check_descent(**call)
