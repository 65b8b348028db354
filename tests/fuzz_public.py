"""Calls of public names with one argument, or two, gone wrong; and what may come of them.

A subject is a call that is right. Each of its arguments is replaced in turn by what users pass by mistake. Allowed is a right and
finite answer, or a ValueError, TypeError or OSError that names the argument or whom it was given to.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fuzz_values import SAME, bases, draw, weights, wrong
from torch import Tensor, nn

import objectives as o
import unrolling as u
from proofs_check import ClaimFailed
from unrolling import kernels

# (subject, argument, what it was replaced by) -> why it is not what the rule allows; "*" stands for all.
SQUARES = (
    "the squares of entries beyond 1e154 are not representable; a pass over all tokens at every call would cost more"
)
FLAG = "flags are read by their truth, which Python asks of the value itself"
KNOWN: dict[tuple[str, str, str], str] = {
    ("*", "*", "huge inside"): SQUARES,
    ("*", "orthonormal", "a matrix"): FLAG,
    ("*", "quadratic", "a matrix"): FLAG,
    ("*", "quadratic", "an array"): FLAG,
    ("*", "bias", "a matrix"): FLAG,
    ("*", "tied", "a matrix"): FLAG,
    ("*", "tied", "an array"): FLAG,
    ("beta_of", "tokens", "tiny"): "d / (1e-300 ε²) is infinite in double precision",
    ("linear_attention", "q", "all large"): "features of 1e60 against features of 1e-60 divide by what has underflowed",
    ("linear_attention", "scale", "huge count"): "√s of 1e30 makes features that overflow or underflow",
    ("signal_to_noise", "x", "*"): "its docstring: NaN for clusters without signal or noise",
    ("signal_to_noise", "U", "longer axis 0"): "its docstring: NaN for clusters without tokens",
    (
        "MSSA exact",
        "x",
        "large inside",
    ): "I + β WᵀW is singular to rounding when one token is 1e60 of the others; torch says so",
    ("CBSA exact", "x", "large inside"): "as MSSA",
    (
        "contract_tokens",
        "w",
        "meta",
    ): "torch knows no autocast of the device meta; the layers refuse it, or run whole on it",
    ("contract_tokens", "beta", "a matrix"): "an internal of MSSA: one β a head broadcasts, and is not looked at",
}


@dataclass(frozen=True)
class Subject:
    """A right call: ``call(**good())``. words: what else a message may name."""

    name: str
    call: Callable[..., Any]
    good: Callable[[], dict[str, Any]]
    words: tuple[str, ...] = ()


def _asked(made: Any, x: Any) -> tuple[Any, ...]:
    return made.value(x), made.gradient(x), made.lipschitz(x)


def _objective(kind: type, **good: Callable[[], Any]) -> Subject:
    points = {"x": lambda: draw(5, 6)} | good

    def call(x: Any, **arguments: Any) -> tuple[Any, ...]:
        return _asked(kind(**arguments), x)

    return Subject(kind.__name__, call, lambda: {name: make() for name, make in points.items()})


def _value(value: Any) -> Callable[[], Any]:
    return lambda: value


EPSILON = {"epsilon": _value(0.5)}
HEADS = {"U": bases, "weights": lambda: torch.ones(2, dtype=torch.float64)}
LOOSE = {"orthonormal": _value(True), "orthonormal_tolerance": _value(1e-6)}


def objective_subjects() -> Iterator[Subject]:
    rate = EPSILON | {"tokens": _value(5)}
    yield _objective(o.CodingRate, **rate)
    yield _objective(o.SubspaceCodingRate, **HEADS, **rate, **LOOSE)
    yield _objective(o.ChannelRate, **HEADS, **rate, **LOOSE)
    yield _objective(o.RateReduction, memberships=lambda: weights(5, 3), membership_tolerance=_value(1e-6), **EPSILON)
    yield _objective(o.SubspaceRateReduction, U=bases, **EPSILON, **LOOSE)
    yield _objective(o.VariationalRate, memberships=lambda: weights(5, 2), **HEADS, **EPSILON)
    yield _objective(o.SoftVariationalRate, U=bases, temperature=_value(1.0), **EPSILON)
    yield _objective(o.RepresentativeRate, P=lambda: weights(2, 4, 5), **HEADS, **rate, **LOOSE)
    yield _objective(o.RepresentativeNorm, P=lambda: weights(2, 4, 5), **HEADS, **LOOSE)
    yield _objective(o.SoftRepresentativeRate, U=bases, scale=_value(0.7), pooling=lambda: weights(3, 5), **EPSILON)
    yield _objective(o.SoftRepresentativeRate, U=bases, scale=_value(0.7), queries=lambda: draw(2, 3, 3), **EPSILON)
    scale = {"scale": _value(0.7)}
    yield _objective(o.SelfAttentionEnergy, keys=lambda: draw(2, 5, 3), **HEADS, **scale, **LOOSE)
    yield _objective(o.RepresentativeEnergy, P=lambda: weights(2, 4, 5), keys=lambda: draw(2, 4, 3), **HEADS, **scale)
    yield _objective(o.SymmetricEnergy, **HEADS, **scale, **LOOSE)
    yield _objective(o.CrossAttentionEnergy, keys=lambda: draw(4, 6), quadratic=_value(True), **scale)
    yield _objective(o.AttentionEnergy, W_Q=lambda: draw(2, 6, 3), W_K=lambda: draw(2, 6, 3, seed=4), **scale)
    yield _objective(o.HopfieldEnergy, memories=lambda: draw(4, 6))
    yield _objective(o.KernelRegression, weights=lambda: weights(5, 4), values=lambda: draw(4, 6))
    yield _objective(o.PCARate, tokens=lambda: draw(9, 6), x=lambda: bases(1, 6, 2)[0].mT, dim=_value(6), **EPSILON)
    yield _objective(
        o.SeparableRate, tokens=lambda: draw(9, 6), x=lambda: bases(1, 6, 2)[0].mT, dim=_value(6), **EPSILON
    )
    yield _objective(o.PCAVariance, tokens=lambda: draw(9, 6), x=lambda: bases(1, 6, 2)[0].mT)
    yield _objective(o.PCAReconstruction, tokens=lambda: draw(9, 6), x=lambda: bases(1, 6, 2)[0].mT)
    yield _objective(o.Reconstruction, dictionary=lambda: draw(6, 4), data=lambda: draw(5, 6), x=lambda: draw(5, 4))
    yield _objective(o.SubspacePCARate, tokens=lambda: draw(9, 6), x=lambda: draw(2, 6), **HEADS, **EPSILON)
    for kind in (o.L1, o.NonNegativeL1):
        yield Subject(
            kind.__name__,
            lambda weight, x, step_size, kind=kind: kind(weight).prox(x, step_size),
            lambda: {"weight": 0.1, "x": draw(5, 6), "step_size": 0.5},
        )
    yield from _functions(
        (o.beta_of, {"tokens": _value(5), "dim": _value(3), **EPSILON}),
        (o.project, {"x": lambda: draw(5, 6), "U": bases}),
        (o.lift, {"w": lambda: draw(2, 5, 3), "U": bases}),
        (o.certified_step_size, {"objective": lambda: o.CodingRate(), "x": lambda: draw(5, 6)}),
        (
            o.feasibility_gap,
            {"objective": lambda: o.RepresentativeRate(bases(), weights(2, 4, 5)), "x": lambda: draw(5, 6)},
        ),
        (o.head_memberships, {"x": lambda: draw(5, 6), "U": bases, "temperature": _value(1.0)}),
        (o.nearest_direction, {"tokens": lambda: draw(5, 6), "directions": lambda: draw(3, 6)}),
        (o.one_hot_memberships, {"labels": lambda: torch.tensor([0, 1, 2, 1]), "classes": _value(3)}),
        (o.principal_directions, {"tokens": lambda: draw(9, 6), "count": _value(2)}),
        (o.soft_memberships, {"x": lambda: draw(5, 6), "C": lambda: draw(3, 6, 6), "sharpness": _value(1.0)}),
        (o.sparse_coding, {"dictionary": lambda: draw(6, 4), "data": lambda: draw(5, 6), "weight": _value(0.1)}),
        (o.sparse_rate_reduction, {"x": lambda: draw(5, 6), "U": bases, "weight": _value(0.1), **EPSILON}),
        (o.relaxed_sparse_rate_reduction, {"U": bases, "weight": _value(0.1), **EPSILON}),
        (o.subspace_alignment, {"P": lambda: bases(1, 6, 2)[0].mT, "Q": lambda: bases(1, 6, 2)[0].mT.flip(-1)}),
        (
            o.signal_to_noise,
            {"x": lambda: draw(5, 6), "labels": lambda: torch.tensor([0, 1, 0, 1, 1]), "U": bases},
        ),
        (o.attention_curvature, {"tokens": _value(5), "tied": _value(True)}),
    )


def _functions(*described: tuple[Callable[..., Any], dict[str, Callable[[], Any]]]) -> Iterator[Subject]:
    for function, good in described:
        name = getattr(function, "__name__", type(function).__name__)
        yield Subject(name, function, lambda good=good: {key: make() for key, make in good.items()})


def _layer(kind: type[nn.Module], **options: Any) -> Subject:
    """A layer built with options, then applied to tokens; the objective it declares is asked too."""
    form = options.get("form", "")
    whole = {"dim": 6, "heads": 2, **options} if "heads" not in options or options["heads"] else {"dim": 6}

    def call(x: Any, **arguments: Any) -> Any:
        layer = kind(**arguments).double().eval()
        # Weights are drawn: filled with fixed numbers, so that equal calls are equal.
        with torch.no_grad():
            for number, parameter in enumerate(layer.parameters()):
                if parameter.ndim >= 2 and not nn.utils.parametrize.is_parametrized(layer):
                    parameter.copy_(0.3 * draw(*parameter.shape, seed=number))
        torch.manual_seed(0)
        with torch.no_grad():
            return layer(x)

    return Subject(
        f"{kind.__name__} {form}".strip(),
        call,
        lambda: {"x": draw(5, 6), **whole},
        (kind.__name__, "U", "GridPool", "SequencePool"),
    )


def layer_subjects() -> Iterator[Subject]:
    common = {"head_dim": 3, "epsilon": 0.5, "scale": 0.7, "step_size": 0.3, "class_tokens": 0, "U": bases()}
    for form in ("exact", "softmax"):
        yield _layer(u.MSSA, form=form, dropout=0.0, **common)
        yield _layer(u.CBSA, form=form, representatives=u.SequencePool(3), **common)
        yield _layer(u.MSCA, form=form, **common | {"class_tokens": 1, "patches": None})
    yield _layer(u.TSSA, eta=0.5, **{name: value for name, value in common.items() if name != "scale"})
    plain = {"head_dim": 3, "scale": 0.7, "step_size": 0.3}
    yield _layer(u.SoftmaxAttention, bias=True, class_tokens=0, **plain)
    yield _layer(u.MiTA, landmarks=u.SequencePool(3), keys_per_expert=2, experts_per_query=1, **plain)
    yield _layer(u.AgentAttention, agents=u.SequencePool(3), **plain)
    yield _layer(u.SymmetricAttention, **plain)
    yield _layer(u.AoT, threshold=0.5, **plain)
    yield _layer(u.EnergyTransformer, memories=4, **plain)
    yield _layer(u.ISTA, heads=None, step_size=0.1, weight=0.1)
    yield _layer(u.OvercompleteISTA, heads=None, atoms=8, steps=2, step_size=0.1, weight=0.1)


def other_subjects() -> Iterator[Subject]:
    qkv = {"q": lambda: draw(8, 4), "k": lambda: draw(8, 4, seed=1), "v": lambda: draw(8, 4, seed=2)}
    scale = {"scale": _value(0.5)}
    blocks = {"block": _value(2), "blocks_per_query": _value(1)}
    landmarks = {"landmarks": lambda: draw(3, 4, seed=3)}
    at = {"objective": lambda: o.CodingRate(), "x": lambda: draw(5, 6), "step_size": _value(0.5)}
    yield from _functions(
        (u.full_attention, qkv | scale),
        (u.linear_attention, qkv | scale),
        (u.agent_attention, qkv | scale | {"agents": lambda: draw(3, 4, seed=3)}),
        (u.top_k_attention, qkv | scale | {"count": _value(3)}),
        (u.block_attention, qkv | scale | blocks),
        (u.projected_attention, qkv | scale | {"E": lambda: draw(3, 8), "F_": lambda: draw(3, 8)}),
        (u.mita, qkv | scale | landmarks | {"keys_per_expert": _value(2), "experts_per_query": _value(1)}),
        (u.top_indices, {"scores": lambda: draw(4, 8), "count": _value(3)}),
        (u.retract, {"y": lambda: draw(2, 6), "retraction": _value("qr")}),
        (u.tangent, {"x": lambda: bases(1, 6, 2)[0].mT, "direction": lambda: draw(2, 6)}),
        (u.taxonomy, {"m": _value(4), "k": _value(6), "n": _value(8), "s": _value(1)}),
        (kernels.coding_rate, {"x": lambda: draw(5, 6), **EPSILON, "tokens": _value(5), "kernel": _value("auto")}),
        (kernels.streamed_rate, {"rows": lambda: draw(5, 6), **EPSILON, "tokens": _value(5), "chunk": _value(2)}),
        (kernels.contract_tokens, {"w": lambda: draw(2, 5, 3), "beta": _value(0.5), "kernel": _value("auto")}),
        (u.adapt.token_statistics, {"w": lambda: draw(2, 5, 3), "dropout": _value(0.0)}),
        (u.GradientStep(), at),
        (u.ArmijoStep(), at),
        (u.ExactLineSearchStep(), at),
    )
    yield Subject(
        "ArmijoStep",
        lambda shrink, slope, max_trials: u.ArmijoStep(shrink, slope, max_trials)(o.CodingRate(), draw(5, 6), 0.5),
        lambda: {"shrink": 0.5, "slope": 1e-4, "max_trials": 5},
    )
    yield Subject(
        "ExactLineSearchStep",
        lambda **limits: u.ExactLineSearchStep(**limits)(o.CodingRate(), draw(5, 6), 0.5),
        lambda: {"bisections": 20, "max_doublings": 20},
        ("ExactLineSearchStep",),
    )
    yield Subject(
        "Unrolled",
        lambda x, **given: u.Unrolled(**given)(x),
        lambda: {"x": draw(5, 6), "objective": o.CodingRate(), "depth": 2, "step_size": 0.1, "learn": ("epsilon",)},
    )
    for kind, good in (
        (u.GridPool, {"size": (2, 2), "grid": (2, 3)}),
        (u.SequencePool, {"count": 2}),
        (u.Strided, {"stride": 2}),
        (u.LearnedQueries, {"count": 2, "heads": 2, "head_dim": 3}),
        (u.GridRotary, {"head_dim": 4, "reference": 4, "theta": 100.0}),
        (u.AgentBias, {"heads": 2, "agents": 4, "window": (2, 2)}),
        (u.EnergyLayerNorm, {"dim": 4, "eps": 1e-5}),
        (u.RiemannianStep, {"retraction": "qr", "tolerance": 1e-6}),
    ):
        yield Subject(kind.__name__, kind, lambda good=good: dict(good))


def subjects() -> list[Subject]:
    return [*objective_subjects(), *layer_subjects(), *other_subjects()]


SINGULAR = "the input matrix is singular"
SINGULAR_IN = ("contract_tokens", "MSSA exact", "CBSA exact", "MSCA exact")
"""Where torch's solver says of I + β WᵀW that rounding has taken the identity, as the table has it of single arguments."""

ALLOWED = (ValueError, TypeError, OSError, ClaimFailed)
LONGEST = 3.0
"""Seconds that a call may take."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise RuntimeError in what takes longer, where the system has timers."""

    def late(number: int, frame: object) -> None:
        raise RuntimeError(f"took longer than {seconds} s")

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def finding(subject: Subject, changed: dict[str, tuple[str, Any]]) -> str | None:
    """What is wrong with the call in which arguments are replaced: one line, or None."""
    arguments = subject.good() | {name: value for name, (_, value) in changed.items()}
    before = {name: _copied(value) for name, value in arguments.items()}
    with warnings.catch_warnings(), time_limit(LONGEST):
        warnings.simplefilter("error")
        try:
            answer = subject.call(**arguments)
        except ALLOWED as problem:
            text = str(problem)
            words = {subject.name.split()[0], *subject.words, *arguments}
            if not any(word in text for word in words):
                return (
                    f"{type(problem).__name__} that names nothing: {text.splitlines()[0][:110] if text else '(empty)'}"
                )
            return None
        except Exception as problem:
            return f"{type(problem).__name__}: {(str(problem) or '(empty)').splitlines()[0][:110]}"
    for name, value in arguments.items():
        if not _unchanged(before[name], value):
            return f"changed its input {name}"
    labels = [label for label, _ in changed.values()]
    # Products of two tensors that are both large need not be representable.
    finite = all(_finite(value) for value in arguments.values()) and sum("large" in label for label in labels) < 2
    if finite and not _finite(answer):
        return "silent NaN or infinity from finite input"
    if all(label in SAME for label in labels) and not _close(answer, subject.call(**subject.good())):
        return "another answer for the same numbers"
    return None


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _unchanged(before: Any, after: Any) -> bool:
    if not isinstance(before, Tensor) or before.is_meta or before.is_sparse:
        return True
    return before.shape == after.shape and torch.equal(before.nan_to_num(7.0), after.detach().nan_to_num(7.0))


def _numbers(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.dtype.is_floating_point and not value.is_meta and not value.is_sparse:
            yield value.detach()
    elif isinstance(value, float):
        yield torch.tensor(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(number).all()) for number in _numbers(value))


def _close(a: Any, b: Any) -> bool:
    pairs = zip(_numbers(a), _numbers(b), strict=True)
    return all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in pairs)


def matches(entry: tuple[str, str, str], *call: str) -> bool:
    """Whether an entry of the table is about this subject, argument and replacement."""
    return all(wanted in ("*", given) for wanted, given in zip(entry, call, strict=True))


def known(subject: str, argument: str, label: str) -> bool:
    """Whether a finding is in the table."""
    return any(matches(entry, subject, argument, label) for entry in KNOWN)


def single() -> Iterator[tuple[Subject, dict[str, tuple[str, Any]]]]:
    """Every subject with every argument replaced by everything wrong, one at a time."""
    for subject in subjects():
        for name, value in subject.good().items():
            for label, bad in wrong(value):
                yield subject, {name: (label, bad)}


def several(generator: random.Random) -> Iterator[tuple[Subject, dict[str, tuple[str, Any]]]]:
    """Drawn subjects with two or three arguments replaced, without end."""
    every = subjects()
    while True:
        subject = generator.choice(every)
        good = subject.good()
        chosen = generator.sample(sorted(good), min(len(good), generator.choice((2, 3))))
        yield subject, {name: generator.choice(list(wrong(good[name]))) for name in chosen}
