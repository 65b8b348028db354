"""How an update can stand to a gradient: equal, proportional, per head, on some tokens; and what the factor depends on."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .drawn import Drawn
from .measures import norm
from .plain_objective import Names, Slopes
from .tolerance import MEANINGFUL
from .trial import DOUBTFUL, allowed_error

__all__ = [
    "Fit",
    "Seen",
    "constant",
    "cosine",
    "dependence",
    "fit",
    "head_bases",
    "names_of",
    "per_head",
    "right_entries",
]

FAR = 0.3
"""Errors beyond are no rounding."""


@dataclass(frozen=True)
class Seen:
    """One set of tokens: what the layer made of it, the gradients there, and the step size declared, NaN if none was.

    set_number: which of the sets of ``drawn.x`` it is. batch: how many there are. moved: flat, in the coordinates of
    the gradients.
    """

    drawn: Drawn
    set_number: int
    batch: int
    x: Tensor
    got: Tensor
    moved: Tensor
    slopes: Slopes
    kappa: float
    dtype: torch.dtype

    @property
    def update(self) -> Tensor:
        """What the layer adds to the tokens."""
        return self.got - self.x

    @property
    def whole(self) -> bool:
        """Whether the gradients are known entry by entry."""
        return self.slopes.rows is None


@dataclass
class Fit:
    """How well ``update = −κ gradient`` holds on all sets: indices of those where it does, does not, or says nothing.

    errors are relative to the displacement, κ∇f with the declared κ, or the update itself where κ is projected.
    """

    frozen: Names
    declared: bool
    errors: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    fine: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Nowhere wrong, and right beyond doubt on at least half of the sets."""
        return not self.wrong and 2 * len(self.fine) >= len(self.errors) > 0

    @property
    def median(self) -> float:
        """The median error of the sets that say anything."""
        said = [self.errors[i] for i in (*self.fine, *self.doubtful, *self.wrong)]
        return statistics.median(said) if said else math.inf

    @property
    def fine_steps(self) -> list[float]:
        """κ̂ where the relation holds."""
        return [self.steps[i] for i in self.fine]


Towards = Callable[[Seen, Names, float], Tensor]
"""The gradient of a set, for its frozen arguments and a step size, which only proximal steps need."""

Noisy = Callable[[Seen, Names, float], bool]
"""Whether ``update + κ gradient`` is rounding: whether it is another one after x has moved by a hair."""


def fit(seens: Sequence[Seen], frozen: Names, declared: bool, towards: Towards, noisy: Noisy) -> Fit:
    """Hold every update against its gradient, with the declared κ or with the one that fits it best."""
    made = Fit(frozen, declared)
    for number, seen in enumerate(seens):
        u = seen.moved
        g = towards(seen, frozen, seen.kappa if declared else math.nan)
        error, allowed, step = _one(seen, frozen, u, g, declared)
        made.errors.append(error)
        made.allowed.append(allowed)
        made.steps.append(step)
        limit = max(allowed, DOUBTFUL[seen.dtype])
        if math.isnan(error) or allowed > MEANINGFUL:
            made.blank.append(number)
        elif error <= allowed:
            made.fine.append(number)
        else:
            (made.doubtful if error <= limit else made.wrong).append(number)
    if all(made.errors[i] <= FAR or math.isinf(made.errors[i]) for i in made.wrong):
        for number in list(made.wrong):
            seen = seens[number]
            if noisy(seen, frozen, seen.kappa if declared else made.steps[number]):
                made.wrong.remove(number)
                made.doubtful.append(number) if math.isfinite(made.errors[number]) else made.blank.append(number)
    return made


def _one(seen: Seen, frozen: Names, u: Tensor, g: Tensor, declared: bool) -> tuple[float, float, float]:
    """Error, tolerance and κ̂ of one set; an error of NaN where nothing moves and nothing should."""
    nothing = 64 * float(torch.finfo(seen.dtype).eps) * norm(seen.x)
    size, moved = norm(g), norm(u)
    if not math.isfinite(size):
        return math.nan, 0.0, math.nan
    step = math.nan if size == 0 else -float((u / max(moved, 1e-300)) @ (g / size)) * moved / size
    if size == 0 or moved == 0:
        still = size == 0 and moved <= nothing
        return (math.nan if still else math.inf), allowed_error(seen.dtype), step
    kappa = seen.kappa if declared else step
    displacement = kappa * size if declared else moved
    allowed = allowed_error(seen.dtype, norm(seen.x) / displacement) + 8 * seen.slopes.uncertain.get(frozen, 0.0)
    return norm(u + kappa * g) / displacement, allowed, step


def cosine(u: Tensor, g: Tensor) -> float:
    """Of an update with the descent direction −g; NaN where either is zero."""
    if norm(u) == 0 or norm(g) == 0:
        return math.nan
    return -float((u / norm(u)) @ (g / norm(g)))


def constant(steps: Sequence[float], allowed: float) -> bool:
    """Whether all step sizes are one number, to the precision in which each is known."""
    middle = statistics.median(steps)
    return all(abs(step - middle) <= max(1e-6, 16 * allowed) * abs(middle) for step in steps)


def dependence(seens: Sequence[Seen], steps: Sequence[float]) -> str:
    """What positive step sizes are proportional to: powers of the tokens' number, of the batch's, of a size of x.

    One cause is tried before two. Powers are fitted to the logarithms; a fit counts where it is good to 1e-5.
    """
    y = np.log(np.abs(np.asarray(steps)))
    causes = {name: np.log(np.array([measure(seen) for seen in seens])) for name, measure in _CAUSES.items()}
    causes = {name: x for name, x in causes.items() if np.isfinite(x).all() and np.ptp(x) > 1e-9}
    for number in (1, 2):
        for names in itertools.combinations(causes, number):
            columns = np.stack([causes[name] for name in names] + [np.ones_like(y)], axis=1)
            if np.linalg.matrix_rank(columns) < number + 1 or len(y) < number + 2:
                continue
            powers, *_ = np.linalg.lstsq(columns, y, rcond=None)
            if float(np.abs(columns @ powers - y).max()) <= 1e-5:
                found = [_power(name, float(p)) for name, p in zip(names, powers, strict=False) if abs(p) > 1e-3]
                return "proportional to " + " and to ".join(found)
    return ""


def _size(part: Callable[[Tensor], Tensor]) -> Callable[[Seen], float]:
    return lambda seen: float(part(seen.x.reshape(-1, seen.x.shape[-1])))


_CAUSES: dict[str, Callable[[Seen], float]] = {
    "N, the number of tokens": lambda seen: seen.x.shape[-2] if seen.x.ndim > 1 else 1,
    "the number of token sets in the batch": lambda seen: seen.batch,
    "the length of the first batch axis": lambda seen: seen.drawn.x.shape[0] if seen.drawn.x.ndim > seen.x.ndim else 1,
    "the root mean square of x": _size(lambda x: x.square().mean().sqrt()),
    "‖x‖": _size(lambda x: x.norm()),
    "the spectral norm of x": _size(lambda x: torch.linalg.matrix_norm(x, 2)),
    "the largest token's norm": _size(lambda x: x.norm(dim=-1).max()),
    "the largest entry of x": _size(lambda x: x.abs().max()),
}


def _power(name: str, power: float) -> str:
    rounded = round(4 * power) / 4
    shown = rounded if abs(power - rounded) <= 1e-3 else round(power, 4)
    return name if shown == 1 else f"the inverse of {name}" if shown == -1 else f"the power {shown:g} of {name}"


def per_head(seens: Sequence[Seen], frozen: Names, U: Tensor, allowed: float) -> tuple[list[list[float]], list[int]]:
    """Step sizes of every head ``(sets, heads)``, and which head's gradient each head's update follows.

    Empty unless, in every head of the orthonormal bases U ``(K, d, p)``, the update is a multiple of the gradient of
    that head, or of the same other head in all sets; nothing may be left outside of the heads.
    """
    K = len(U)
    kept = [seen for seen in seens if seen.whole and norm(seen.moved) > 0]
    factors: list[list[float]] = []
    if not kept:
        return [], []
    pairs = [
        (_coordinates(seen.moved, seen.x, U), _coordinates(seen.slopes.gradients[frozen], seen.x, U), seen)
        for seen in kept
    ]
    order: list[int] = []
    for k in range(K):
        same = [k, *(j for j in range(K) if j != k)]
        match = next((j for j in same if all(_parallel(u[k], g[j], allowed) for u, g, _ in pairs)), None)
        if match is None:
            return [], []
        order.append(match)
    for u, g, seen in pairs:
        for flat, inside in ((seen.moved, u), (seen.slopes.gradients[frozen], g)):
            rest = norm(flat) ** 2 - sum(norm(part) ** 2 for part in inside)
            if rest > 1e-6 * norm(flat) ** 2:
                return [], []
        factors.append([_factor(u[k], g[j]) for k, j in enumerate(order)])
    return factors, order


def _coordinates(flat: Tensor, x: Tensor, U: Tensor) -> list[Tensor]:
    rows = flat.reshape(-1, x.shape[-1])
    return [rows @ basis for basis in U]


def _factor(u: Tensor, g: Tensor) -> float:
    return math.nan if norm(g) == 0 else -float((u / norm(g) * (g / norm(g))).sum())


def _parallel(u: Tensor, g: Tensor, allowed: float) -> bool:
    if norm(g) == 0:
        return norm(u) == 0
    return norm(u + _factor(u, g) * g) <= allowed * max(norm(u), norm(g) * 1e-12)


def right_entries(seen: Seen, gradient: Tensor, axis: int, allowed: float) -> tuple[list[int], list[int], bool, float]:
    """Tokens (axis −2) or features (−1) that move as they should, those that do not, whether these are at rest, and κ.

    Without a declared step κ is the one that most of the entries share.
    """
    u, g = (t.reshape(-1, seen.x.shape[-1]) for t in (seen.moved, gradient))
    u, g = (u, g) if axis == -2 else (u.mT, g.mT)
    typical = norm(g) / max(1, len(g)) ** 0.5
    heard = [i for i in range(len(g)) if norm(g[i]) > 1e-9 * typical]
    ratios = {i: _factor(u[i], g[i]) for i in heard if _parallel(u[i], g[i], allowed) and norm(u[i]) > 0}
    kappa = seen.kappa
    if math.isnan(kappa):
        if not ratios:
            return [], list(range(len(g))), False, math.nan
        kappa = max(ratios.values(), key=lambda r: sum(abs(r - other) <= 1e-6 * abs(r) for other in ratios.values()))
    size = [max(norm(kappa * g[i]), 1e-9 * abs(kappa) * typical) for i in range(len(g))]
    right = [i for i in range(len(g)) if norm(u[i] + kappa * g[i]) <= allowed * size[i] and i in heard]
    wrong = [i for i in range(len(g)) if norm(u[i] + kappa * g[i]) > max(allowed, 1e-5) * size[i]]
    still = all(norm(u[i]) <= 1e-9 * size[i] for i in wrong)
    return right, wrong, still, kappa


def names_of(indices: Sequence[int], count: int) -> str:
    """Indices in words: every second one, the first half, a range, or one by one."""
    chosen = list(indices)
    half = count // 2
    known: dict[str, list[int]] = {
        "the first half": list(range(half)),
        "the second half": list(range(half, count)),
        "every second one, from 0": list(range(0, count, 2)),
        "every second one, from 1": list(range(1, count, 2)),
    }
    for words, those in known.items():
        if count >= 4 and chosen == those:
            return words
    if len(chosen) > 2 and chosen == list(range(chosen[0], chosen[-1] + 1)):
        return f"{chosen[0]} to {chosen[-1]}"
    named = ["the last" if i == count - 1 else "the first" if i == 0 else f"number {i}" for i in chosen[:6]]
    return ", ".join(named) + (f" and {len(chosen) - 6} more" if len(chosen) > 6 else "")


def head_bases(heads: int | Tensor, d: int) -> Tensor:
    """Bases ``(K, d, p)``: those given, or the features in K equal parts."""
    if isinstance(heads, Tensor):
        return heads
    return torch.eye(d, dtype=torch.float64).unflatten(-1, (heads, d // heads)).transpose(0, 1)
