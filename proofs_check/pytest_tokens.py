"""The tokens and bases of the pytest plugin's fixtures: cases by their numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .inputs import WIDTH, default_image, from_image
from .strategies import KINDS_OF_TOKENS, Case

__all__ = ["bases", "drawn", "photograph"]


def drawn(n: int, d: int, kind: str, scale: float, seed: int, dtype: str | torch.dtype, batch: int) -> Tensor:
    """Tokens ``(n, d)`` of a kind, or ``(batch, n, d)``.

    Raises
    ------
        ValueError for an unknown kind, a dtype that is none, or sizes below one.
    """
    if kind not in KINDS_OF_TOKENS:
        raise ValueError(f"drawn_tokens: kind must be one of {', '.join(KINDS_OF_TOKENS)}, but is {kind!r}.")
    _at_least("drawn_tokens", n=(n, 1), d=(d, 1), seed=(seed, 0), batch=(batch, 0))
    heads = next(k for k in (3, 2, 1) if d % k == 0)
    case = Case(tokens=n, heads=heads, head_dim=d // heads, kind=kind, scale=scale, seed=seed, batch=batch)
    return case.x().to(_dtype("drawn_tokens", dtype))


def bases(heads: int, d: int, p: int | None, seed: int, dtype: str | torch.dtype) -> Tensor:
    """Orthonormal, mutually orthogonal bases ``(heads, d, p)``.

    Raises
    ------
        ValueError where heads · p is more than d.
    """
    _at_least("orthonormal_bases", heads=(heads, 1), d=(d, 1), seed=(seed, 0))
    p = d // heads if p is None else p
    if p < 1 or heads * p > d:
        raise ValueError(f"orthonormal_bases: {heads} bases of {p} columns do not fit into {d} dimensions.")
    case = Case(heads=heads, head_dim=p, extra=d - heads * p, seed=seed)
    return case.U().to(_dtype("orthonormal_bases", dtype))


def photograph(n: int | None, d: int, dtype: str | torch.dtype) -> Tensor:
    """Patches of the photograph that matplotlib ships, ``(n, d)``, centred, mean squared norm 1.

    Raises
    ------
        ValueError for more tokens or a larger width than there are.
    """
    tokens = _photograph()
    n = len(tokens) if n is None else n
    _at_least("photograph_tokens", n=(n, 1), d=(d, 1))
    if n > len(tokens) or d > WIDTH:
        raise ValueError(
            f"photograph_tokens: there are {len(tokens)} tokens of width {WIDTH}, but {n} of width {d} were asked for."
        )
    cut = tokens[np.linspace(0, len(tokens) - 1, n).round().astype(int), :d]
    cut = cut - cut.mean(0) if n > 1 else cut
    return torch.from_numpy(cut / np.sqrt((cut**2).sum(1).mean())).to(_dtype("photograph_tokens", dtype))


@functools.cache
def _photograph() -> NDArray[np.float64]:
    return from_image(default_image()).tokens


def _at_least(owner: str, **numbers: tuple[Any, int]) -> None:
    for name, (value, least) in numbers.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{owner}: {name} must be a whole number of at least {least}, but is {value!r}.")


def _dtype(owner: str, given: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"{owner}: dtype must be a floating-point dtype of torch or its name, but is {given!r}.")
    return found
