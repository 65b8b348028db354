"""Fitting an objective's numbers to updates, and measuring how well its gradient lies along them on other tokens."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from .candidates import Hypothesis
from .held import Bases
from .plain_layer import Forward

__all__ = [
    "ADDED",
    "ALONE",
    "Batch",
    "Fitted",
    "Measured",
    "aligned",
    "bases_of_update",
    "batches_of",
    "fit_numbers",
    "linear_part",
    "trivial",
]

ADDED, ALONE = "adds it to x", "returns it alone"
"""Two ways to read an output: tokens with an update added, or the update itself."""

GRID, FINE = 9, {1: 40, 2: 100}
Seen = Mapping[str, Callable[[Tensor], Tensor]]
"""What a layer may read: the tokens themselves, or normalised ones."""


@dataclass
class Batch:
    """Token sets ``(B, N, d)``, what came back, and what the layer may have read of them."""

    x: Tensor
    got: Tensor
    seen: Mapping[str, Tensor]

    @functools.cached_property
    def units(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The update as it is read, flat and of norm 1, and its norm, of every set."""
        both = {ADDED: (self.got - self.x).flatten(1), ALONE: self.got.flatten(1)}
        sizes = {reading: u.norm(dim=-1, keepdim=True) for reading, u in both.items()}
        return {reading: (u / sizes[reading].clamp(min=1e-300), sizes[reading]) for reading, u in both.items()}

    @property
    def update(self) -> Tensor:
        """What is added to the tokens."""
        return self.got - self.x


@dataclass(frozen=True)
class Fitted:
    """A hypothesis with its numbers, what the layer reads, how its output is read, and the mean cosine it was fitted to."""

    hypothesis: Hypothesis
    numbers: Mapping[str, float]
    seen: str
    reading: str
    cosine: float


@dataclass(frozen=True)
class Measured:
    """Cosine of every token set, and the factor of the direction that is closest to the update."""

    cosines: Tensor
    steps: Tensor

    @property
    def mean(self) -> float:
        """The mean cosine."""
        return float(self.cosines.mean())


def batches_of(
    forward: Forward, example: Tensor, seen: Seen, seed: int, scales: Sequence[float], sets: int
) -> list[Batch]:
    """Gaussian tokens of the example's width and size, of several numbers if the layer takes them; example's scale times scales."""
    rng = np.random.default_rng(seed)
    N, d = example.shape[-2:]
    size = float(example.square().mean().sqrt()) or 1.0
    made = []
    counts = [n for n in (N, N + 3, max(2, N // 2), 2 * N - 1) if n == N or _takes(forward, n, d)]
    for number, scale in enumerate(scales):
        x = torch.from_numpy(size * scale * rng.standard_normal((sets, counts[number % len(counts)], d)))
        got = _batched(forward, x)
        if got is not None:
            made.append(Batch(x, got, {name: read(x) for name, read in seen.items()}))
    return made


def _takes(forward: Forward, tokens: int, d: int) -> bool:
    return _batched(forward, torch.ones(1, tokens, d, dtype=torch.float64)) is not None


def _batched(forward: Forward, x: Tensor) -> Tensor | None:
    """The outputs of a batch: at once where the layer takes one, else set by set; None where nothing finite comes back."""
    together = forward(x)
    if together.got is not None:
        got = together.got
    else:
        alone = [forward(one).got for one in x]
        if any(one is None for one in alone):
            return None
        got = torch.stack([one for one in alone if one is not None])
    return got if bool(torch.isfinite(got).all()) else None


def aligned(
    hypothesis: Hypothesis,
    numbers: Mapping[str, float],
    batches: Sequence[Batch],
    seen: str,
    readings: Sequence[str] = (ADDED, ALONE),
    turn: Tensor | None = None,
) -> dict[str, Measured]:
    """How the direction lies along the update, however it is read; turn: a rotation of the direction, for comparison."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {reading: [] for reading in readings}
    for batch in batches:
        try:
            with torch.no_grad():
                direction = hypothesis.direction(batch.seen[seen], numbers)
        except Exception:  # an objective may refuse numbers, or other tokens than it was made for
            direction = torch.full_like(batch.x, torch.nan)
        g = (direction if turn is None else direction @ turn).flatten(1)
        length = g.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        for reading, pairs in found.items():
            unit, size = batch.units[reading]
            cosine = (unit * (g / length)).sum(-1).nan_to_num(0.0)
            pairs.append((cosine, cosine * (size / length).squeeze(-1)))
    return {
        reading: Measured(*(torch.cat(part) for part in zip(*pairs, strict=True))) for reading, pairs in found.items()
    }


def trivial(batches: Sequence[Batch], seen: str, reading: str) -> float:
    """How well the tokens themselves lie along the update: what shrinking or growing them explains."""
    each = []
    for batch in batches:
        x = batch.seen[seen].flatten(1)
        each.append((batch.units[reading][0] * x / x.norm(dim=-1, keepdim=True)).sum(-1))
    return abs(float(torch.cat(each).mean()))


def coarse(hypothesis: Hypothesis, batches: Sequence[Batch], seen: str) -> dict[str, Fitted]:
    """The best numbers on a logarithmic grid, for both readings of the output."""
    best: dict[str, Fitted] = {}
    for numbers in _grid(hypothesis):
        for reading, measured in aligned(hypothesis, numbers, batches, seen).items():
            value = _worth(hypothesis, measured)
            if reading not in best or value > _worth_of(hypothesis, best[reading].cosine):
                best[reading] = Fitted(hypothesis, numbers, seen, reading, measured.mean)
    return best


def fit_numbers(start: Fitted, batches: Sequence[Batch], steps: int | None = None) -> Fitted:
    """Numbers that align best: from those on the grid by golden section for one, by a simplex for two."""
    hypothesis, names = start.hypothesis, list(start.numbers)
    if not names:
        return _again(start, start.numbers, batches)
    middle = np.log([start.numbers[name] for name in names])
    spacing = max(math.log(high / low) / (GRID - 1) for low, high, _ in hypothesis.ranges.values())

    def off(logs: np.ndarray) -> float:
        numbers = {name: math.exp(float(value)) for name, value in zip(names, np.atleast_1d(logs), strict=True)}
        measured = aligned(hypothesis, numbers, batches, start.seen, (start.reading,))[start.reading]
        return 1.0 - _worth(hypothesis, measured)

    if len(names) == 1:
        bounds = (middle[0] - spacing, middle[0] + spacing)
        options: dict[str, Any] = {"xatol": 1e-9, "maxiter": steps or FINE[1]}
        best = np.atleast_1d(minimize_scalar(off, bounds=bounds, method="bounded", options=options).x)
    else:
        simplex = np.stack([middle, *(middle + 0.3 * spacing * row for row in np.eye(len(names)))])
        options = {"initial_simplex": simplex, "xatol": 1e-8, "fatol": 1e-15, "maxiter": steps or FINE[2]}
        limits = [(math.log(low) - spacing, math.log(high) + spacing) for low, high, _ in hypothesis.ranges.values()]
        best = minimize(off, middle, method="Nelder-Mead", bounds=limits, options=options).x
    if off(best) > off(middle):
        best = middle
    numbers = {name: math.exp(float(value)) for name, value in zip(names, best, strict=True)}
    return _again(start, numbers, batches)


def _again(start: Fitted, numbers: Mapping[str, float], batches: Sequence[Batch]) -> Fitted:
    measured = aligned(start.hypothesis, numbers, batches, start.seen, (start.reading,))[start.reading]
    return Fitted(start.hypothesis, numbers, start.seen, start.reading, measured.mean)


def _worth(hypothesis: Hypothesis, measured: Measured) -> float:
    return _worth_of(hypothesis, measured.mean)


def _worth_of(hypothesis: Hypothesis, cosine: float) -> float:
    """Ascent counts as much as descent, but not for proximal steps, whose direction is no gradient."""
    return cosine if hypothesis.proximal else abs(cosine)


def _grid(hypothesis: Hypothesis) -> list[dict[str, float]]:
    """Values of one number over its range; of two, all of each with three of the other."""
    ranges = hypothesis.ranges
    full = {name: [first, *np.geomspace(low, high, GRID).tolist()] for name, (low, high, first) in ranges.items()}
    few = {name: [first, 0.1 * first, 10 * first] for name, (_, _, first) in ranges.items()}
    if len(ranges) < 2:
        return [dict(zip(ranges, values, strict=True)) for values in itertools.product(*full.values())]
    made = []
    for dense in ranges:
        chosen = [full[name] if name == dense else few[name] for name in ranges]
        made += [dict(zip(ranges, values, strict=True)) for values in itertools.product(*chosen)]
    return made


def linear_part(batches: Sequence[Batch]) -> Tensor | None:
    """The linear map of tokens closest to the update, ``(d, d)``; None where there are too few tokens to tell."""
    x = torch.cat([batch.x.flatten(0, 1) for batch in batches])
    u = torch.cat([batch.update.flatten(0, 1) for batch in batches])
    return torch.linalg.lstsq(x, u).solution if len(x) >= 2 * x.shape[-1] else None


def bases_of_update(batches: Sequence[Batch]) -> list[Bases]:
    """Subspaces in which small tokens are moved: eigenspaces of the linear map, of their own or of their mean.

    Small tokens are moved linearly, ``u = x A + x̄ B``: rates give A = −c U Uᵀ, softmax attention B = c U Uᵀ. Heads with
    step sizes of their own are eigenspaces; heads that share one are seen together only.
    """
    x = torch.cat([batch.x.flatten(0, 1) for batch in batches])
    mean = torch.cat([batch.x.mean(-2, keepdim=True).expand_as(batch.x).flatten(0, 1) for batch in batches])
    u = torch.cat([batch.update.flatten(0, 1) for batch in batches])
    d = x.shape[-1]
    if len(x) < 4 * d:
        return []
    found = torch.linalg.lstsq(torch.cat([x, mean], -1), u).solution
    made = []
    for matrix, words in ((found[:d], "of small tokens"), (found[d:], "of their mean")):
        values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
        largest = float(values.abs().max())
        if largest == 0:
            continue
        groups: list[list[int]] = []
        for i in range(d):
            if abs(float(values[i])) <= 1e-3 * largest:
                continue
            if groups and float(values[i] - values[groups[-1][-1]]) <= 1e-3 * largest:
                groups[-1].append(i)
            else:
                groups.append([i])
        if not groups or len(groups[0]) == d:
            continue
        together = vectors[:, [i for group in groups for i in group]]
        made.append(Bases(together[None], f"U = what the update {words} spans"))
        if len(groups) > 1 and len({len(group) for group in groups}) == 1:
            each = torch.stack([vectors[:, group] for group in groups])
            made.append(Bases(each, f"U = eigenspaces of the update {words}"))
    return made
