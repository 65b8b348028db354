"""All that a check of a stranger's layer has seen, and a verdict in the making."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .counterexamples import Look
from .plain_objective import DETACHED, Names, Target
from .relations import Fit, Noisy, Seen, Towards
from .verdicts import Finding

__all__ = ["LOOKS", "Evidence", "Said", "free_gradient", "held_constant"]

LOOKS = 12
"""Sets that point uphill, or that show part of a step, to look at more closely."""


@dataclass(frozen=True)
class Evidence:
    """All that was seen, and the means to look again.

    trouble: what came back beside arrays, the finding and words for each, with the input and its code. dropped: sets on
    which the objective is not finite or raises. apart: how far two calls with the same input are from each other; seeded:
    whether equal seeds make them equal. constant: the same for all inputs.
    """

    name: str
    seens: Sequence[Seen]
    trouble: Sequence[tuple[Tensor, Finding, str, str]]
    inputs: int
    target: Target
    heads: int | Tensor | None
    declares: bool
    accepted: str
    dropped: int
    apart: float
    seeded: bool
    constant: bool
    towards: Towards
    noisy: Noisy
    rough: Callable[[Seen, Names, float], str]
    look: Look


@dataclass
class Said:
    """A verdict in the making: further fields of the diagnosis, and the sets that show what is wrong."""

    finding: Finding
    words: list[str]
    best: Fit
    fields: dict[str, Any] = field(default_factory=dict)
    shown_by: Sequence[int] = ()


def free_gradient(seen: Seen) -> Tensor:
    """The gradient with nothing frozen."""
    return seen.slopes.gradients[()]


def held_constant(names: Names) -> str:
    """Which arguments are held constant, to follow a noun; nothing for none."""
    if not names:
        return ""
    listed = " and ".join("what the objective detaches" if name == DETACHED else name for name in names)
    return f" with {listed} held constant"
