"""The errors of this package, raised in one place: what came, what was expected, what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_count",
    "check_input",
    "check_pair",
    "check_positive_number",
    "check_share",
    "check_sizes",
    "check_step_number",
]


def check_count(owner: str, name: str, value: object, minimum: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be an integer, but is {value!r}.")
    if value < minimum:
        raise ValueError(f"{owner}: {name} must be at least {minimum}, but is {value}.")


def check_pair(owner: str, name: str, value: object) -> tuple[int, int]:
    """Raise unless ``value`` is two integers of at least 1, rows and columns; return them."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{owner}: {name} must be (rows, columns), but is {value!r}.")
    for side in value:
        check_count(owner, name, side)
    return value[0], value[1]


def check_choice(owner: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of the names in ``choices``."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(map(repr, choices))}, but is {value!r}.")


def check_step_number(owner: str, step_size: object) -> None:
    """Raise unless every step size is positive and finite."""
    if not isinstance(step_size, (int, float, Tensor)) or isinstance(step_size, bool):
        raise TypeError(f"{owner}: step_size must be a number or a tensor, but is a {type(step_size).__name__}.")
    if isinstance(step_size, Tensor):
        numbers = step_size.detach()
        fine = bool(((numbers > 0) & torch.isfinite(numbers)).all())
    else:
        fine = step_size > 0 and math.isfinite(step_size)
    if not fine:
        raise ValueError(f"{owner}: step_size must be positive and finite, but is {step_size}.")


def check_sizes(owner: str, dim: int, heads: int, head_dim: int, orthonormal: bool) -> None:
    """Raise unless the sizes are positive, and the bases fit side by side into the features when orthonormal."""
    for name, value in (("dim", dim), ("heads", heads), ("head_dim", head_dim)):
        check_count(owner, name, value)
    if orthonormal and heads * head_dim > dim:
        raise ValueError(
            f"{owner}: {heads} heads of {head_dim} dimensions cannot be orthonormal in dim {dim}"
            f" ({heads} × {head_dim} = {heads * head_dim} > {dim}). Use smaller heads, or basis='free'."
        )


def check_input(owner: str, x: object, basis: Tensor, heads: int) -> None:
    """Raise unless ``x`` is a non-empty ``(..., tokens, dim)`` that fits the bases ``(dim, inner)`` in dim and dtype."""
    dim, inner = basis.shape
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, but is a {type(x).__name__}.")
    if x.ndim < 2 or x.shape[-2] == 0:
        raise ValueError(
            f"{owner}: x must be (..., tokens, dim) with at least one token, but has shape {tuple(x.shape)}."
        )
    if x.shape[-1] != dim:
        raise ValueError(
            f"{owner}: x has dim {x.shape[-1]}, but U expects dim {dim}.\n"
            f"  x is (..., tokens, dim) = {tuple(x.shape)}; U is (heads, dim, head_dim) = {(heads, dim, inner // heads)}."
        )
    if x.dtype != basis.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{owner}: x is {x.dtype}, but the layer is {basis.dtype}. Convert one: layer.to(x.dtype), x.to(...)."
        )


def step_in_certificate(owner: str, step: float, *, signed: bool) -> None:
    """Raise unless a step in units of 1/L lies strictly inside the certified interval."""
    inside = 0 < abs(step) < 2 if signed else 0 < step < 2
    if not (math.isfinite(step) and inside):
        interval = "(−2, 0) or (0, 2)" if signed else "(0, 2)"
        raise ValueError(
            f"{owner}: with certified=True the step size is in units of 1/L and must lie in {interval}, but is {step}."
        )


def check_positive_number(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: {name} must be a number, but is {value!r}.")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{owner}: {name} must be positive and finite, but is {value}.")


def check_share(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a probability below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: {name} must be a number, but is {value!r}.")
    if not 0 <= value < 1:
        raise ValueError(f"{owner}: {name} must be at least 0 and below 1, but is {value}.")


def check_tokens_for(owner: str, x: object, dim: int, dtype: torch.dtype) -> None:
    """Raise unless ``x`` is a non-empty ``(..., tokens, dim)`` of a layer's dim and dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, but is a {type(x).__name__}.")
    if x.ndim < 2 or x.shape[-2] == 0 or x.shape[-1] != dim:
        raise ValueError(
            f"{owner}: x must be (..., tokens, dim={dim}) with at least one token, but has shape {tuple(x.shape)}."
        )
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{owner}: x is {x.dtype}, but the layer is {dtype}. Convert one: layer.to(x.dtype), x.to(...)."
        )
