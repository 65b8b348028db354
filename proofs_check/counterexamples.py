"""The smallest input that shows what is wrong: one set by itself, fewer tokens, round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .measures import norm
from .plain_layer import Forward
from .plain_objective import Target
from .relations import Seen, cosine
from .verdicts import PRINTED, snippet_of

__all__ = ["Found", "Look", "smallest"]

Shows = Callable[[tuple[Tensor, Tensor]], bool]

UPHILL = -1e-6
"""Cosines of shrunk inputs below this point uphill beyond rounding."""


@dataclass(frozen=True)
class Found:
    """An input, with the update and the gradient there, and Python that makes it again."""

    x: NDArray[np.float64]
    update: NDArray[np.float64] | None
    gradient: NDArray[np.float64] | None
    code: str

    @property
    def snippet(self) -> str:
        """Lines to paste."""
        return snippet_of(self.x, self.update, self.gradient, self.code)


@dataclass(frozen=True)
class Look:
    """A second look at the layer and its objective, at inputs that were not drawn."""

    forward: Forward
    target: Target

    def at(self, x: Tensor, kappa: float) -> tuple[Tensor, Tensor] | None:
        """Update and gradient, nothing frozen, of an input that is one set; None where either is not to be had.

        kappa: the declared step size, which the gradient mapping of a proximal step needs.
        """
        outcome = self.forward(x)
        if outcome.got is None or not bool(torch.isfinite(outcome.got).all()):
            return None
        update = outcome.got - x
        unit = x.reshape(x.shape[x.ndim - len(self.target.unit) :])
        try:
            gradient = self.target.slopes(unit, update.flatten(), torch.eye(x.numel(), dtype=x.dtype), only=())
        except Exception:  # an objective may refuse other sizes
            return None
        flat = gradient.gradients[()]
        if math.isfinite(kappa):
            flat = self.target.towards(unit, flat, kappa)
        return (update, flat.reshape(x.shape)) if bool(torch.isfinite(flat).all()) else None

    def gradient_of(self, seen: Seen) -> Tensor:
        """The gradient of a set, nothing frozen; of a proximal step with a declared size the gradient mapping."""
        g = seen.slopes.gradients[()]
        return g if math.isnan(seen.kappa) else self.target.towards(seen.x, g, seen.kappa)

    def alone(self, seen: Seen) -> Tensor | None:
        """The set by itself, with as many leading axes of one as the layer needs; None if it moves otherwise then."""
        for axes in range(3):
            x = seen.x.reshape((1,) * axes + tuple(seen.x.shape))
            outcome = self.forward(x)
            if outcome.got is None:
                continue
            off = norm((outcome.got - x).reshape(seen.update.shape) - seen.update)
            return x if off <= 1e-6 * max(norm(seen.update), 1e-300) else None
        return None

    def confirms(self, seen: Seen) -> bool:
        """Whether a set still does not point downhill after x has moved by a hair: then it was no rounding."""
        g = self.gradient_of(seen)
        if norm(g) == 0 and norm(seen.moved) > 1e-12 * norm(seen.x):
            return True
        for seed in range(2):
            nudge = torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(seen.drawn.x.shape)))
            outcome = self.forward(seen.drawn.x * (1 + 1e-12 * nudge))
            if outcome.got is None:
                return False
            moved = outcome.got.reshape(-1, *seen.x.shape)[seen.set_number]
            x = (seen.drawn.x * (1 + 1e-12 * nudge)).reshape(-1, *seen.x.shape)[seen.set_number]
            update = (moved - x).flatten()
            other = self.target.slopes(x, update, seen.slopes.rows, only=())
            there = other.gradients[()]
            there = there if math.isnan(seen.kappa) else self.target.towards(x, there, seen.kappa)
            c = cosine(other.view(update), there)
            if not (math.isnan(c) or c < 1e-9) or norm(there - g) >= 0.1 * norm(g):
                return False
        return True


def smallest(seens: Sequence[Seen], look: Look, wanted: str) -> Found:
    """The smallest of some sets, by itself where that is enough; uphill ones are shrunk further as long as they are.

    wanted: "uphill"; "any", where its numbers may be rounded; "as drawn", where rounding would hide what is wrong.
    """
    ordered = sorted(seens, key=lambda seen: (seen.x.numel(), seen.batch, not seen.drawn.code))
    if wanted == "uphill":
        pointed = [seen for seen in ordered if cosine(seen.moved, look.gradient_of(seen)) < UPHILL]
        ordered = pointed or ordered
    seen = ordered[0]
    x = look.alone(seen)
    if x is None:
        return _whole(seen)
    code = seen.drawn.code if seen.batch == 1 and tuple(seen.drawn.x.shape) == tuple(x.shape) else ""
    at = look.at(x, seen.kappa)
    if at is None:
        return Found(x.numpy(), seen.update.reshape(x.shape).numpy(), None, code)
    off = _off(at[0].flatten(), at[1].flatten(), seen.kappa)
    shows: Shows = lambda at: cosine(at[0].flatten(), at[1].flatten()) < UPHILL  # noqa: E731
    if wanted == "any":
        shows = lambda at: _off(at[0].flatten(), at[1].flatten(), seen.kappa) >= 0.5 * off  # noqa: E731
    if x.numel() <= PRINTED and (wanted == "any" or (wanted == "uphill" and shows(at))):
        shrunk = _shrunk(x, look, shows, seen.kappa, fewer=wanted == "uphill")
        if shrunk is not None:
            x, at, code = *shrunk, ""
    return Found(x.numpy(), at[0].numpy(), at[1].numpy(), code)


def _whole(seen: Seen) -> Found:
    """All sets of the input that the set came in, where one by itself moves otherwise."""
    x = seen.drawn.x
    return Found(x.numpy(), None, None, seen.drawn.code)


def _off(update: Tensor, gradient: Tensor, kappa: float) -> float:
    """How far an update is from the declared step, relative; without a declared step size, from zero."""
    if math.isnan(kappa):
        return min(norm(update), 1.0)
    return norm(update + kappa * gradient) / max(norm(kappa * gradient), 1e-300)


def _shrunk(
    x: Tensor, look: Look, shows: Shows, kappa: float, fewer: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """Fewer tokens, then fewer digits, as long as what is wrong still shows."""
    found = None
    progress = fewer
    while progress:
        progress = False
        for candidate in _fewer(x):
            at = look.at(candidate, kappa)
            if at is not None and shows(at):
                x, found, progress = candidate, at, True
                break
    scale = float(x.abs().max()) or 1.0
    for digits in (0, 1, 2, 3):
        unit = 10.0 ** (math.floor(math.log10(scale)) - digits)
        rounded = torch.round(x / unit) * unit
        short = [float(f"{value:.6g}") + 0.0 for value in rounded.flatten().tolist()]  # + 0.0: no minus zero
        candidate = torch.tensor(short, dtype=torch.float64).reshape(x.shape)
        at = look.at(candidate, kappa)
        if at is not None and shows(at):
            return candidate, at
    return None if found is None else (x, found)


def _fewer(x: Tensor) -> Iterator[Tensor]:
    """The input without one of its tokens; nothing where there is but one, or too many to try."""
    if x.ndim < 2 or not 1 < x.shape[-2] <= 32:
        return
    for i in range(x.shape[-2]):
        yield torch.cat([x[..., :i, :], x[..., i + 1 :, :]], dim=-2)
