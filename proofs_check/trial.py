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
from .tolerance import SAFETY

__all__ = [
    "CONDITION",
    "DOUBTFUL",
    "CheckResult",
    "ClaimFailed",
    "cases_for",
    "largest",
    "line_through",
    "median",
    "reverse_mode",
    "unresolved",
    "where",
]

CONDITION = 1e6
"""A stranger's layer does not say how well conditioned it is; β‖x‖² reaches about this on the inputs drawn here."""

DOUBTFUL = 1e-5
"""Errors between the tolerance and this may be rounding of a worse condition: they are no evidence for the layer."""


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

    bound = objective.lipschitz(x) if callable(getattr(objective, "lipschitz", None)) else None
    bend = 1e-2 * max(norm(x) / x.numel() ** 0.5, 1e-6)
    if bound is not None and largest(bound) > 0:
        bend = min(0.1 / largest(bound) ** 0.5, 10 * bend)
    return along, norm(gradient), bend


def reverse_mode(objective: Any, x: Tensor) -> Tensor:
    """The gradient at ``x``, from the value alone."""
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        value = objective.value(z)
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ClaimFailed(
                f"the value of {type(objective).__name__} does not depend on its argument (is it detached?)."
            )
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return gradient


def cases_for(dim: int, count: int | None, number: int, seed: int) -> list[Case]:
    """Structured kinds at all sizes first, then random ones; scales over four orders of magnitude."""
    rng = np.random.default_rng(seed)
    sizes = [count] if count is not None else [1, 2, 3, 5, dim, dim + 3, 2 * dim + 1]
    fixed = [Case(tokens=n, heads=1, head_dim=dim) for n in sizes]
    fixed += [Case(tokens=sizes[-1], heads=1, head_dim=dim, kind=kind) for kind in KINDS_OF_TOKENS]
    fixed += [Case(tokens=sizes[len(sizes) // 2], heads=1, head_dim=dim, scale=s, batch=2) for s in (0.01, 0.1, 100.0)]
    while len(fixed) < number:
        fixed.append(
            Case(
                tokens=int(rng.choice(sizes)),
                heads=1,
                head_dim=dim,
                kind=str(rng.choice(["gaussian", "shifted", "one_far", "rank_one", "near_parallel"])),
                scale=float(rng.choice([0.03, 0.3, 1.0, 3.0, 30.0])),
                batch=int(rng.choice([0, 2])),
                seed=int(rng.integers(2**16)),
            )
        )
    return [dataclasses.replace(case, seed=case.seed + seed) for case in fixed[: max(number, 1)]]


def unresolved(objective: Any, x: Tensor, *gradients: Tensor) -> bool:
    """Whether all these gradients are rounding: rounding x alone moves a gradient by up to ``eps L ‖x‖``.

    Differences of rates vanish identically on one token, or on equal ones; what is computed there is noise.
    """
    bound = objective.lipschitz(x) if callable(getattr(objective, "lipschitz", None)) else None
    noise = 0.0 if bound is None else SAFETY * torch.finfo(x.dtype).eps * largest(bound) * norm(x)
    return all(norm(gradient) <= noise for gradient in gradients)


def where(case: Case | None, x: Tensor, call: str = "descent_error(layer, x)") -> str:
    """Lines that say which input it was, and how to make it again."""
    if case is None:
        return f"  x is the tokens you passed, {tuple(x.shape)}."
    names = "Case, descent_error" if "descent_error" in call else "Case"
    lines = [f"from proofs_check import {names}", f"x = {case!r}.x()", f"print({call})"]
    return f"  x is {case.kind} tokens {tuple(x.shape)}; to see it again:\n" + "\n".join(
        f"    {line}" for line in lines
    )


def largest(bound: float | Tensor) -> float:
    """The largest of the bounds of a batch."""
    return float(torch.as_tensor(bound).detach().max())


def median(slopes: list[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(slopes) if slopes else math.nan
