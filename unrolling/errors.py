"""The errors of this package, raised in one place: what came, what was expected, what to do."""

from __future__ import annotations

import math
import numbers

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
    if value >= 2**63:
        raise ValueError(f"{owner}: {name} must fit into 64 bits, but is {value}.")
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
    if not isinstance(value, str) or value not in choices:
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


def real_number(owner: str, name: str, value: object) -> float:
    """The number that ``value`` is: a float, an integer or a tensor of one number; raise for anything else."""
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta
    if isinstance(value, bool) or not (single or isinstance(value, numbers.Real)):
        raise TypeError(f"{owner}: {name} must be a number, but is {value!r}.")
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{owner}: {name} must be representable as a float, but is {value}.") from None


def positive_number(owner: str, name: str, value: object) -> float:
    """The positive, finite number that ``value`` is."""
    number = real_number(owner, name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{owner}: {name} must be positive and finite, but is {value}.")
    return number


def finite_number(owner: str, name: str, value: object) -> float:
    """The finite number that ``value`` is, of either sign."""
    number = real_number(owner, name, value)
    if not math.isfinite(number):
        raise ValueError(f"{owner}: {name} must be finite, but is {value}.")
    return number


def check_precision(owner: str, epsilon: float) -> None:
    """Raise unless ε², of which β is made, is representable."""
    if not (epsilon * epsilon > 0 and math.isfinite(epsilon * epsilon)):
        raise ValueError(f"{owner}: epsilon is {epsilon}, whose square is not representable; rescale the tokens.")


def check_dense(owner: str, name: str, x: Tensor, fixed: Tensor | None = None) -> None:
    """Raise unless ``x`` is dense, and on the device of ``fixed``."""
    if x.layout != torch.strided:
        raise TypeError(f"{owner}: {name} is a {x.layout} tensor, but must be dense: {name}.to_dense().")
    if fixed is not None and x.device != fixed.device:
        raise ValueError(f"{owner}: {name} is on {x.device}, but the layer on {fixed.device}; move one of them.")


def check_rows(owner: str, least: int = 2, **tensors: object) -> None:
    """Raise unless all are dense floating-point tensors of one dtype and device, with ``least`` axes and no empty one."""
    first: tuple[str, Tensor] | None = None
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            kind = str(x.dtype) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(f"{owner}: {name} must be a floating-point tensor, but is {kind}.")
        check_dense(owner, name, x)
        if x.ndim < least or 0 in x.shape:
            raise ValueError(
                f"{owner}: {name} must have at least {least} axes, none of them empty, but has shape {tuple(x.shape)}."
            )
        if first is None:
            first = name, x
        elif x.device != first[1].device:
            raise ValueError(
                f"{owner}: {name} is on {x.device}, but {first[0]} on {first[1].device}; move one of them."
            )
        elif x.dtype != first[1].dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{owner}: {name} is {x.dtype}, but {first[0]} is {first[1].dtype}; convert one of them.")


def check_attention(owner: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless q ``(..., queries, p)``, k ``(..., tokens, p)`` and v ``(..., tokens, p')`` fit each other."""
    check_rows(owner, q=q, k=k, v=v)
    if q.shape[-1] != k.shape[-1] or v.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"{owner}: q {tuple(q.shape)} and k {tuple(k.shape)} must share their last axis, k and v {tuple(v.shape)} their tokens."
        )
    check_leading(owner, q=q, k=k, v=v)


def check_leading(owner: str, kept: int = 2, **tensors: Tensor) -> None:
    """Raise unless the axes before the last ``kept`` broadcast."""
    try:
        torch.broadcast_shapes(*(x.shape[:-kept] for x in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"{owner}: the leading axes of {shapes} do not broadcast.") from None


def check_point(owner: str, objective: object, x: object, step_size: object) -> None:
    """Raise unless a step can be taken: an objective with a gradient, a tensor, and a number or tensor of step sizes."""
    if isinstance(objective, type) or not callable(getattr(objective, "gradient", None)):
        raise TypeError(f"{owner}: objective must be an Objective, but is a {type(objective).__name__}.")
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, but is a {type(x).__name__}.")
    if not isinstance(step_size, (int, float, Tensor)) or isinstance(step_size, bool):
        raise TypeError(f"{owner}: step_size must be a number or a tensor, but is a {type(step_size).__name__}.")
    if isinstance(step_size, int) and abs(step_size) >= 2**63:
        raise ValueError(f"{owner}: step_size must fit into 64 bits, but is {step_size}.")
    if isinstance(step_size, Tensor) and step_size.ndim:
        try:
            fits = torch.broadcast_shapes(step_size.shape, x.shape[:-2]) == x.shape[:-2]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{owner}: step_size must be one number, or one for each leading index of x {tuple(x.shape)}, but has"
                f" shape {tuple(step_size.shape)}."
            )


def check_input(owner: str, x: object, basis: Tensor, heads: int) -> None:
    """Raise unless ``x`` is a non-empty ``(..., tokens, dim)`` that fits the bases ``(dim, inner)`` in dim and dtype."""
    dim, inner = basis.shape
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, but is a {type(x).__name__}.")
    check_dense(owner, "x", x, basis)
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


def check_tokens_for(owner: str, x: object, dim: int, dtype: torch.dtype, fixed: Tensor | None = None) -> None:
    """Raise unless ``x`` is a non-empty ``(..., tokens, dim)`` of a layer's dim and dtype, and on the device of its weights."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, but is a {type(x).__name__}.")
    check_dense(owner, "x", x, fixed)
    if x.ndim < 2 or x.shape[-2] == 0 or x.shape[-1] != dim:
        raise ValueError(
            f"{owner}: x must be (..., tokens, dim={dim}) with at least one token, but has shape {tuple(x.shape)}."
        )
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{owner}: x is {x.dtype}, but the layer is {dtype}. Convert one: layer.to(x.dtype), x.to(...)."
        )
