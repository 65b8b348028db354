"""Standing mutants: wrong versions that every gradient claim and every step claim must reject."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from objectives import Objective
from unrolling import UnrolledLayer

from .claim import Mutant
from .strategies import Case

__all__ = ["forward", "gradient", "of_gradient", "of_step"]


def gradient(case: Case, objective: Objective, x: Tensor) -> Tensor:
    """The usual subject of a gradient claim: the closed form."""
    return objective.gradient(x)


def forward(case: Case, layer: UnrolledLayer, x: Tensor) -> Tensor:
    """The usual subject of a step claim: the fast formula."""
    return layer(x)


def of_gradient(**own: Callable[[Case, Any, Tensor], Tensor]) -> tuple[Mutant, ...]:
    """Wrong gradients: the standing ones, then the claim's own by name (underscores read as spaces)."""

    def changed(change: Callable[[Tensor], Tensor]) -> Callable[[Case, Any, Tensor], Tensor]:
        return lambda case, objective, x: change(objective.gradient(x))

    def skip_last(g: Tensor) -> Tensor:
        g = g.clone()
        g[..., -1, :] = 0
        return g

    standing = {
        "sign flipped": changed(torch.neg),
        "half": changed(lambda g: 0.5 * g),
        "1 % longer": changed(lambda g: 1.01 * g),
        "zero": changed(torch.zeros_like),
        "last token left out": changed(skip_last),
        "all NaN": changed(lambda g: torch.full_like(g, torch.nan)),
    }
    return _named(standing, own)


def of_step(**own: Callable[[Case, Any, Tensor], Tensor]) -> tuple[Mutant, ...]:
    """Wrong forward passes: the standing ones, then the claim's own by name (underscores read as spaces)."""

    def changed(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Case, Any, Tensor], Tensor]:
        return lambda case, layer, x: change(x, layer(x))

    def skip_last(x: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[..., -1, :] = x[..., -1, :]
        return y

    standing = {
        "no-op": changed(lambda x, y: x),
        "opposite sign": changed(lambda x, y: 2 * x - y),
        "1 % longer": changed(lambda x, y: x + 1.01 * (y - x)),
        "half step": changed(lambda x, y: x + 0.5 * (y - x)),
        "residual dropped": changed(lambda x, y: y - x),
        "last token not updated": changed(skip_last),
        "feature axis reversed": changed(lambda x, y: x + (y - x).flip(-1)),
        "all NaN": changed(lambda x, y: torch.full_like(y, torch.nan)),
    }
    return _named(standing, own)


def named(**subjects: Callable[..., Any]) -> tuple[Mutant, ...]:
    """A claim's own mutants by name, underscores read as spaces."""
    return _named({}, subjects)


def _named(standing: dict[str, Callable[..., Any]], own: dict[str, Callable[..., Any]]) -> tuple[Mutant, ...]:
    every = {**standing, **{name.replace("_", " "): subject for name, subject in own.items()}}
    return tuple(Mutant(name, subject) for name, subject in every.items())
