"""What the checks for users share: their verdicts, the inputs they try, and the derivatives they trust."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .measures import norm
from .strategies import KINDS_OF_TOKENS, Case
from .tolerance import SAFETY, tolerance

__all__ = [
    "DOUBTFUL",
    "LONG",
    "CheckResult",
    "ClaimFailed",
    "Input",
    "allowed_error",
    "bound_of",
    "check_call",
    "hold_prox_to_its_term",
    "inputs_for",
    "largest",
    "line_through",
    "median",
    "noise_of",
    "reverse_mode",
]

CONDITION = {torch.float64: 1e6, torch.float32: 1e2}
"""A stranger's layer does not say how well conditioned it is; β‖x‖² reaches about this on the inputs drawn here."""

DOUBTFUL = {torch.float64: 1e-5, torch.float32: 1e-2}
"""Errors between the tolerance and this may be rounding of a worse condition: they are no evidence for the layer."""

LONG = (70, 133)
"""Numbers of tokens beyond common block sizes of 32, 64 and 128."""


def allowed_error(dtype: torch.dtype, size_over_displacement: float = 0.0) -> float:
    """``C eps (condition + ‖x‖/‖displacement‖)``: what is computed suffers from the condition, what is stored does not."""
    name = str(dtype).split(".")[1]
    return tolerance(name, CONDITION[dtype]) + tolerance(name, 1.0, size_over_displacement)


class ClaimFailed(AssertionError):
    """A layer or an objective is not what it declares; the message says what was seen."""


@dataclass
class CheckResult:
    """What a check that passed has seen: numerical agreement on so many cases, which is not a proof.

    worst_error is relative to the displacement (layers) or the gradient (objectives); slope is the median slope of
    the Taylor remainder, 2 for a right gradient; curve one remainder curve.
    """

    name: str
    cases: int
    evidence: int
    worst_error: float
    tolerance: float
    slope: float = math.nan
    curve: list[tuple[float, float]] = field(default_factory=list)

    def __str__(self) -> str:
        slope = "" if math.isnan(self.slope) else f", Taylor slope {self.slope:.2f}"
        return (
            f"{self.name}: holds on {self.cases} cases, {self.evidence} of them evidence, worst error {self.worst_error:.1e}"
            f" (tolerance {self.tolerance:.1e}){slope}"
        )


def line_through(objective: Any, x: Tensor, gradient: Tensor) -> tuple[Callable[[float], float], float, float]:
    """The value along the gradient, its slope there, and a length over which it bends."""
    direction = gradient / norm(gradient)

    def along(t: float) -> float:
        with torch.no_grad():
            return float(objective.value(x + t * direction).sum())

    bound = bound_of(objective, x)
    bend = 1e-2 * max(norm(x) / x.numel() ** 0.5, 1e-6)
    if bound is not None and largest(bound) > 0:
        bend = min(0.1 / largest(bound) ** 0.5, 10 * bend)
    return along, norm(gradient), bend


def reverse_mode(objective: Any, x: Tensor) -> Tensor:
    """The gradient at ``x``, from the value alone; every token set's of its own value.

    The values of a batch are weighted differently before they are added, and the weights taken out again: a value
    that depends on another token set, or stands in another one's place, gives another gradient.
    """
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        value = objective.value(z)
        kind = type(objective).__name__
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ClaimFailed(f"the value of {kind} does not depend on its argument (is it detached?).")
        if value.shape != x.shape[:-2]:
            raise ClaimFailed(
                f"the value of {kind} must be one number a token set, shape {tuple(x.shape[:-2])}, but is {tuple(value.shape)}."
            )
        weights = torch.linspace(1.0, 2.0, value.numel(), dtype=x.dtype, device=x.device).reshape(value.shape)
        (gradient,) = torch.autograd.grad((weights * value).sum(), z)
    return gradient / weights[..., None, None]


@dataclass(frozen=True)
class Input:
    """Tokens to try, and how to make them again: the caller's own (case None) or drawn, with two batch axes if so."""

    case: Case | None
    x: Tensor

    def where(self, call: str) -> str:
        """Lines that say which input it was, and how to make it again."""
        shape = tuple(self.x.shape)
        if self.case is None:
            return f"  x is the tokens you passed, {shape}."
        names = "Case, descent_error" if "descent_error" in call else "Case"
        again = f"x = {self.case!r}.x()" + (f".reshape{shape}" if len(shape) == 4 else "")
        again += ".float()" if self.x.dtype == torch.float32 else ""
        lines = [f"from proofs_check import {names}", again, f"print({call})"]
        return f"  x is {self.words}; to see it again:\n" + "\n".join(f"    {line}" for line in lines)

    @property
    def words(self) -> str:
        """Kind and shape."""
        kind = "your" if self.case is None else self.case.kind.replace("_", "-")
        return f"{kind} tokens {tuple(self.x.shape)}"


def inputs_for(
    x: Tensor | None,
    dim: int,
    count: int | None,
    number: int,
    seed: int,
    dtype: torch.dtype,
    *,
    width: int | None = None,
    axes: tuple[int, ...] = (2, 3, 4),
) -> list[Input]:
    """The caller's tokens, structured kinds at all sizes, then random ones; the smallest first.

    Scales go over four orders of magnitude, in single precision over one. width: a head's, also a number of tokens
    to try. axes: the numbers of axes that are understood.
    """
    rng = np.random.default_rng(seed)
    # Square matrices hide mistakes of sides: a head's width is a divisor of dim, and a number of tokens to try.
    divisors = [n for n in range(1, min(dim, 64) + 1) if dim % n == 0]
    sizes = sorted({*range(1, 9), *divisors, width or 1, dim, dim + 3}) if count is None else [count]
    sizes += [2 * dim + 1] if count is None else []
    single = dtype == torch.float32
    lone = 0 if 2 in axes else 1

    def case(tokens: int, **more: Any) -> Case:
        return Case(tokens=tokens, heads=1, head_dim=dim, **{"batch": lone, **more})

    fixed = [case(n) for n in sizes]
    fixed += [case(sizes[-1], kind=kind) for kind in KINDS_OF_TOKENS]
    fixed += [case(sizes[len(sizes) // 2], scale=s, batch=2) for s in ((0.5, 2.0) if single else (0.01, 0.1, 100.0))]
    fixed += [case(sizes[len(sizes) // 2], batch=4)] if 4 in axes else []
    fixed += [case(n) for n in LONG] if count is None else []
    while len(fixed) < number:
        fixed.append(
            case(
                int(rng.choice(sizes))
                if rng.random() < 0.5 or count is not None
                else int(rng.integers(1, 3 * dim + 8)),
                kind=str(rng.choice(["gaussian", "shifted", "one_far", "rank_one", "near_parallel"])),
                scale=float(rng.choice([0.3, 1.0, 3.0] if single else [0.03, 0.3, 1.0, 3.0, 30.0])),
                batch=int(rng.choice([lone, 2])),
                seed=int(rng.integers(2**16)),
            )
        )
    tried = [Input(None, x.to(dtype))] if x is not None else []
    for one in fixed[: max(number, 1)]:
        one = dataclasses.replace(one, seed=one.seed + seed)
        tokens = one.x().to(dtype)
        tried.append(Input(one, tokens.reshape(2, 2, *tokens.shape[1:]) if one.batch == 4 else tokens))
    return sorted(tried, key=lambda given: given.x.numel())


def bound_of(objective: Any, x: Tensor) -> Any:
    """The smoothness constant at ``x``; None where the objective has none. One that raises is a failure of its own."""
    if not callable(getattr(objective, "lipschitz", None)):
        return None
    try:
        return objective.lipschitz(x)
    except Exception as problem:
        raise ClaimFailed(
            f"lipschitz(x) of {type(objective).__name__} raised {type(problem).__name__}: {problem}"
        ) from problem


def hold_prox_to_its_term(term: Any, y: Tensor, kappa: float | Tensor) -> None:
    """Raise unless ``term.prox(y, κ)`` minimises ``term.value(z) + ‖z − y‖²/(2κ)`` against points around it.

    Tried are y, zero, and moves of single entries, in which a wrong threshold or sign shows.
    """
    name = type(term).__name__
    if not all(callable(getattr(term, method, None)) for method in ("value", "prox")):
        raise ClaimFailed(f"the nonsmooth term {name} must have value(x) and prox(x, step_size).")
    step = kappa[..., 0, 0] if isinstance(kappa, Tensor) and kappa.ndim else kappa
    least = term.prox(y, step).detach()

    def cost(z: Tensor) -> float:
        near = (z - y).square() / (2 * kappa)
        return float((term.value(z) + near.sum((-2, -1))).sum())

    reached, rng, size = cost(least), np.random.default_rng(0), norm(y) / y.numel() ** 0.5
    if not math.isfinite(reached):
        raise ClaimFailed(f"the value of {name} at its own prox is {reached}.")
    tried = [y, torch.zeros_like(y)]
    for entry in rng.permutation(y.numel())[:8]:
        for move in (1e-3 * size, -1e-3 * size, 0.1 * size, -0.1 * size):
            other = least.clone().reshape(-1)
            other[int(entry)] += move
            tried.append(other.reshape(y.shape))
    slack = 1e-9 if y.dtype == torch.float64 else 1e-4
    if any(cost(z) < reached - slack * abs(reached) for z in tried):
        raise ClaimFailed(
            f"the prox of {name} is not the minimiser of its value: another point has a lower value(z) + ‖z − y‖²/(2κ)."
        )


def noise_of(objective: Any, x: Tensor) -> float:
    """What rounding alone makes of a gradient at ``x``: ``eps L ‖x‖``, or where L is unknown, how much it jumps.

    Differences of rates vanish identically on one token, or on equal ones; what is computed there is noise. Such a
    gradient is another one after x has moved by 1e-12 of itself, which hardly changes a gradient that is resolved.
    """
    eps = torch.finfo(x.dtype).eps
    bound = bound_of(objective, x)
    if bound is not None:
        return SAFETY * eps * largest(bound) * norm(x)
    rng = np.random.default_rng(0)
    here = objective.gradient(x)
    jumps = [0.0]
    for _ in range(4):
        nudge = torch.from_numpy(rng.standard_normal(x.shape)).to(x.dtype)
        jumps.append(norm(objective.gradient(x * (1 + 4e3 * eps * nudge)) - here))
    return 10.0 * max(jumps) + SAFETY * eps * norm(here)


def check_call(owner: str, x: object, cases: object, seed: object) -> None:
    """Raise unless the arguments of a check make sense: finite tokens ``(..., tokens, dim)``, at least one case."""
    for name, value, least in (("cases", cases, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{owner}: {name} must be an integer, but is {value!r}.")
        if value < least:
            raise ValueError(f"{owner}: {name} must be at least {least}, but is {value}.")
        if value >= 2**63:
            raise ValueError(f"{owner}: {name} must fit into 64 bits, but is {value}.")
    if x is None:
        return
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{owner}: x must be a floating-point torch.Tensor (..., tokens, dim), but is {kind}.")
    if x.layout != torch.strided or x.is_meta:
        raise TypeError(f"{owner}: x must be a dense tensor that holds numbers, but is {x.layout} on {x.device}.")
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"{owner}: x must be (..., tokens, dim) and not empty, but has shape {tuple(x.shape)}.")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{owner}: x holds NaN or infinite entries.")
    size = float(x.detach().abs().max())
    if size and size * size < torch.finfo(x.dtype).tiny:
        raise ValueError(f"{owner}: x is at most {size:.3g}, whose square is lost in {x.dtype}; rescale the tokens.")


def largest(bound: float | Tensor) -> float:
    """The largest of the bounds of a batch."""
    return float(torch.as_tensor(bound).detach().max())


def median(slopes: list[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(slopes) if slopes else math.nan
