"""The arguments of the checks for strangers' layers: what came, what was expected, what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .strategies import Case

__all__ = ["checked_dtype", "checked_example", "checked_frozen", "checked_heads", "checked_step"]

MOST_FROZEN = 5
"""Named arguments: every set of them is tried, and there are 2 to that power."""


def checked_dtype(dtype: Any) -> torch.dtype:
    """Float64 or float32, of torch, of numpy, or by name."""
    known = {"float64": torch.float64, "float32": torch.float32}
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else ""
    if not name:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = repr(dtype)
    if name not in known:
        raise ValueError(f"check_descent: dtype must be float64 or float32, but is {name}.")
    return known[name]


def checked_example(example: Any, forward: Any, owner: str = "check_descent") -> tuple[Tensor, bool]:
    """The example as a tensor, and whether it came as numpy's; without one, five tokens of the width ``forward.dim``."""
    if example is None:
        dim = getattr(forward, "dim", None)
        if not isinstance(dim, int) or dim < 1:
            raise TypeError(
                f"{owner}: pass example_input, an array of a typical shape and size: the width of"
                f" {type(forward).__name__}'s input is not known (it has no attribute dim)."
            )
        count = getattr(forward, "token_count", None)
        return Case(tokens=count if isinstance(count, int) else 5, heads=1, head_dim=dim).x(), False
    numpy_first = not isinstance(example, Tensor)
    if isinstance(example, (list, tuple)) or np.isscalar(example):
        raise TypeError(f"{owner}: example_input must be a tensor or a numpy array, but is a {type(example).__name__}.")
    if isinstance(example, np.ndarray):
        if not np.issubdtype(example.dtype, np.floating):
            raise TypeError(
                f"{owner}: example_input must hold floating-point numbers, but its dtype is {example.dtype}."
            )
        wide = np.float32 if example.dtype == np.float32 else np.float64
        example = torch.from_numpy(np.array(example, dtype=wide))
    if not isinstance(example, Tensor):
        raise TypeError(f"{owner}: example_input must be a tensor or a numpy array, but is a {type(example).__name__}.")
    if not example.dtype.is_floating_point:
        raise TypeError(f"{owner}: example_input must hold floating-point numbers, but its dtype is {example.dtype}.")
    if example.layout != torch.strided or example.is_meta:
        raise TypeError(
            f"{owner}: example_input must be a dense tensor that holds numbers, but is {example.layout} on {example.device}."
        )
    if example.ndim < 1 or example.numel() == 0:
        raise ValueError(f"{owner}: example_input must not be empty, but has shape {tuple(example.shape)}.")
    if not bool(torch.isfinite(example).all()):
        raise ValueError(f"{owner}: example_input holds NaN or infinite entries.")
    size = float(example.detach().abs().max())
    if size and size * size < torch.finfo(example.dtype).tiny:
        raise ValueError(f"{owner}: example_input is at most {size:.3g}, whose square is lost; rescale the tokens.")
    example = example.detach().cpu()
    return (example if example.dtype in (torch.float64, torch.float32) else example.float()), numpy_first


def checked_frozen(frozen: Any) -> dict[str, Callable[[Any], Any]]:
    """Names of arguments with the functions of x that compute them."""
    if frozen is None:
        return {}
    if not isinstance(frozen, Mapping):
        raise TypeError(
            "check_descent: frozen must map names of the objective's arguments to functions of x, {'P': weights_of}, but"
            f" is a {type(frozen).__name__}."
        )
    for name, make in frozen.items():
        if not isinstance(name, str) or not name.isidentifier() or not callable(make):
            raise TypeError(
                f"check_descent: frozen must map names of arguments to functions of x, but holds {name!r}: {make!r}."
            )
    if len(frozen) > MOST_FROZEN:
        raise ValueError(
            f"check_descent: frozen has {len(frozen)} arguments; at most {MOST_FROZEN} are tried, since all sets of them are."
        )
    return dict(frozen)


def checked_heads(heads: Any, d: int) -> int | Tensor | None:
    """A number that divides the width, or orthonormal bases."""
    if heads is None:
        return None
    if isinstance(heads, bool) or not isinstance(heads, (int, Tensor, np.ndarray)):
        raise TypeError(
            f"check_descent: heads must be a number of heads or bases (heads, dim, head_dim), but is {heads!r}."
        )
    if isinstance(heads, int):
        if heads < 1 or d % heads:
            raise ValueError(f"check_descent: heads must divide the {d} features, but is {heads}; or pass bases.")
        return heads
    U = torch.as_tensor(np.array(heads) if isinstance(heads, np.ndarray) else heads.detach().cpu()).to(torch.float64)
    if U.ndim != 3 or U.shape[1] != d:
        raise ValueError(
            f"check_descent: heads must be bases (heads, dim, head_dim) with dim = {d}, but has shape {tuple(U.shape)}."
        )
    flat = U.transpose(0, 1).flatten(-2)
    off = float((flat.mT @ flat - torch.eye(flat.shape[-1], dtype=U.dtype)).abs().max())
    if not off <= 1e-5:
        raise ValueError(
            f"check_descent: the bases in heads must be orthonormal, but max |UᵀU − I| = {off:.3g}; orthonormalise them."
        )
    return U


def checked_step(step_size: Any) -> float | Callable[[Any], Any] | None:
    """A positive number, a function of x, or None."""
    if step_size is None or (callable(step_size) and not isinstance(step_size, (Tensor, nn.Parameter))):
        return step_size
    try:
        if isinstance(step_size, (bool, str)):
            raise TypeError
        kappa = float(step_size)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"check_descent: step_size must be a positive number, a function of x, or None, but is {step_size!r}."
        ) from None
    if not 0 < kappa < math.inf:
        raise ValueError(
            f"check_descent: step_size must be positive and finite, but is {kappa}; for ascent pass the negative objective."
        )
    return kappa
