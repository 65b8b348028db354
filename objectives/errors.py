"""The errors of this package, raised in one place: what came, what was expected, what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "check_basis",
    "check_dense",
    "check_epsilon",
    "check_heads",
    "check_like",
    "check_matrix",
    "check_member_count",
    "check_memberships",
    "check_optional_count",
    "check_positive",
    "check_stochastic",
    "check_tokens",
    "check_weights",
]


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def check_positive(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is one finite positive number (a float, an int or a 0-d tensor)."""
    if isinstance(value, bool) or not (
        isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)
    ):
        raise TypeError(f"{owner}: {name} must be a positive number, but is {value!r}.")
    if isinstance(value, Tensor):
        check_dense(owner, name, value)
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{owner}: {name} must be a positive number, but is {_kind(value)}.")
    try:
        number = float(value.detach() if isinstance(value, Tensor) else value)
        big = isinstance(value, int) and number >= 2.0**63  # torch keeps integers in 64 bits
    except OverflowError:
        big = True
    if big:
        raise ValueError(f"{owner}: {name} is an integer too large for a tensor; give a float.")
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{owner}: {name} must be positive and finite, but is {number}.")


def check_epsilon(owner: str, epsilon: object, tokens: object = None) -> None:
    """Raise unless ε is a positive number and the token count of β, if fixed, a positive integer."""
    check_positive(owner, "epsilon", epsilon)
    number = float(epsilon.detach() if isinstance(epsilon, Tensor) else epsilon)  # type: ignore[arg-type]
    if not (number * number > 0 and math.isfinite(number * number)):
        raise ValueError(f"{owner}: epsilon is {number}, whose square is not representable; rescale the tokens.")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise ValueError(f"{owner}: tokens, the N in β = d/(N ε²), must be a positive integer, but is {tokens!r}.")


def check_optional_count(owner: str, name: str, value: object, meaning: str) -> None:
    """Raise unless ``value`` is None or a positive integer."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63):
        raise ValueError(f"{owner}: {name}, {meaning}, must be a positive integer or None, but is {value!r}.")


def check_dense(owner: str, name: str, value: Tensor) -> None:
    """Raise unless the tensor is dense, and on a device that holds its numbers."""
    if value.layout != torch.strided:
        raise TypeError(f"{owner}: {name} is a {value.layout} tensor, but must be dense: {name}.to_dense().")
    if value.is_meta:
        raise ValueError(f"{owner}: {name} is on the device meta, which holds no numbers; make it on a real one.")


def check_like(owner: str, name: str, value: Tensor, other: str, fixed: Tensor) -> None:
    """Raise unless ``value`` has the dtype, outside of autocast, and the device of ``fixed``."""
    if value.device != fixed.device:
        raise ValueError(f"{owner}: {name} is on {value.device}, but {other} on {fixed.device}; move one of them.")
    if value.dtype != fixed.dtype and not torch.is_autocast_enabled(value.device.type):
        raise TypeError(f"{owner}: {name} is {value.dtype}, but {other} is {fixed.dtype}; convert one: {name}.to(...).")


def check_single(owner: str, name: str, value: Tensor) -> None:
    """Raise for half precision, in which torch factors no matrix."""
    if value.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"{owner}: {name} is {value.dtype}, which has no matrix factorisation; convert it: {name}.float()."
        )


def check_tolerance(owner: str, value: object) -> None:
    """Raise unless ``value`` is None or a number of at least 0."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: a tolerance must be None or a number, but is {value!r}.")
    if not value >= 0:
        raise ValueError(f"{owner}: a tolerance must be at least 0, but is {value}.")


def check_tokens(
    owner: str, x: object, dim: int | None = None, *, expects: str = "U", like: Tensor | None = None
) -> None:
    """Raise unless ``x`` is a finite, non-empty floating-point tensor ``(..., tokens, dim)``, of the dtype of ``like``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a torch.Tensor, but is a {type(x).__name__}.")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{owner}: x must have a floating-point dtype, but has {x.dtype}.")
    check_dense(owner, "x", x)
    if x.ndim < 2:
        raise ValueError(f"{owner}: x must be (..., tokens, dim), but has shape {_shape(x)}.")
    if x.shape[-2] == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"{owner}: x holds no tokens: (..., tokens, dim) = {_shape(x)}. Give at least one token of one feature."
        )
    if dim is not None and x.shape[-1] != dim:
        raise ValueError(
            f"{owner}: x has dim {x.shape[-1]}, but {expects} expects dim {dim}.\n"
            f"  x is (..., tokens, dim) = {_shape(x)}."
        )
    if like is not None:
        check_like(owner, "x", x, expects, like)
    # A sum is one pass without a temporary, and turns infinite or NaN whenever an entry is.
    if not math.isfinite(float(x.detach().sum())) and not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).nonzero()
        raise ValueError(
            f"{owner}: x holds {len(bad)} NaN or infinite entries, the first at index {tuple(bad[0].tolist())}"
            f" of {_shape(x)}."
        )


def check_matrix(owner: str, name: str, value: object, axes: str) -> None:
    """Raise unless ``value`` is a finite floating-point tensor with at least as many axes as ``axes`` names."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        raise TypeError(f"{owner}: {name} must be a floating-point tensor {axes}, but is {_kind(value)}.")
    check_dense(owner, name, value)
    needed = len([axis for axis in axes.strip("()").split(",") if axis.strip() != "..."])
    if value.ndim < needed or 0 in value.shape[-needed:]:
        raise ValueError(f"{owner}: {name} must be {axes} and not empty, but has shape {_shape(value)}.")
    if not bool(torch.isfinite(value.detach()).all()):
        raise ValueError(f"{owner}: {name} {_shape(value)} holds NaN or infinite entries.")


def check_basis(owner: str, U: Tensor, orthonormal: bool, tolerance: float | None) -> None:
    """Raise unless U is ``(heads, dim, head_dim)`` with orthonormal, mutually orthogonal columns.

    The default tolerance for ``max |[U_1 … U_K]ᵀ[U_1 … U_K] − I|`` is 1e-6 in float64, which bases made in single
    precision pass once converted, and the square root of the machine epsilon, 3.5e-4, in float32.
    """
    check_matrix(owner, "U", U, "(heads, dim, head_dim)")
    if U.ndim != 3:
        raise ValueError(f"{owner}: U must be (heads, dim, head_dim), but has shape {_shape(U)}.")
    check_tolerance(owner, tolerance)
    if not orthonormal:
        return
    flat = U.detach().transpose(0, 1).flatten(-2)
    limit = max(torch.finfo(U.dtype).eps ** 0.5, 1e-6) if tolerance is None else tolerance
    gram = flat.mT @ flat
    deviation = float((gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs().max())
    if not deviation <= limit:
        raise ValueError(
            f"{owner}: the bases are not orthonormal: max |UᵀU − I| = {deviation:.3g} over the {flat.shape[-1]} columns"
            f" of U {_shape(U)}, tolerance {limit:.3g}.\n"
            "  Orthonormalise them (torch.linalg.qr of the columns side by side), raise orthonormal_tolerance,"
            " or pass orthonormal=False; the smoothness constant then grows by the spectral norm of U squared."
        )


def check_heads(owner: str, name: str, tensor: Tensor, U: Tensor, last: int | None = None) -> None:
    """Raise unless ``tensor`` is ``(..., heads, rows, last)`` with the heads of U, and its dtype."""
    check_like(owner, name, tensor, "U", U)
    if tensor.ndim < 3 or tensor.shape[-3] != U.shape[0] or (last is not None and tensor.shape[-1] != last):
        wanted = f"(..., heads={U.shape[0]}, rows, {'columns' if last is None else last})"
        raise ValueError(
            f"{owner}: {name} must be {wanted}, but has shape {_shape(tensor)}.\n"
            f"  U is (heads, dim, head_dim) = {_shape(U)}."
        )


def check_weights(owner: str, weights: object, U: Tensor) -> None:
    """Raise unless the weights of the heads are None or a tensor ``(..., heads)``."""
    if weights is None:
        return
    if not isinstance(weights, Tensor) or weights.shape[-1:] != U.shape[:1]:
        raise ValueError(
            f"{owner}: weights must be None or a tensor (..., heads) with heads = {U.shape[0]}, but is {_kind(weights)}."
        )
    check_dense(owner, "weights", weights)
    if weights.is_complex() or weights.dtype == torch.bool or weights.device != U.device:
        raise TypeError(
            f"{owner}: weights must be real numbers on the device of U, {U.device}, but are {_kind(weights)} on {weights.device}."
        )


def check_memberships(owner: str, Pi: Tensor, tolerance: float | None = None, classes: int | None = None) -> None:
    """Raise unless Π is ``(..., tokens, classes)`` with rows on the simplex, to the tolerance.

    The default tolerance is the square root of the machine epsilon of the dtype.
    """
    check_matrix(owner, "memberships", Pi, "(..., tokens, classes)")
    check_tolerance(owner, tolerance)
    if classes is not None and Pi.shape[-1] != classes:
        raise ValueError(
            f"{owner}: memberships must be (..., tokens, classes) with classes = {classes}, but have shape {_shape(Pi)}."
        )
    fixed = Pi.detach()
    limit = torch.finfo(Pi.dtype).eps ** 0.5 if tolerance is None else tolerance
    lowest, off = float(fixed.min()), float((fixed.sum(-1) - 1.0).abs().max())
    if not (lowest >= -limit and off <= limit):
        raise ValueError(
            f"{owner}: every token's memberships must be at least 0 and sum to 1: the smallest entry is {lowest:.3g}, the"
            f" largest |sum − 1| is {off:.3g}, tolerance {limit:.3g}.\n"
            f"  memberships are (..., tokens, classes) = {_shape(Pi)}; a token's are its row."
        )


def check_stochastic(owner: str, name: str, weights: Tensor) -> None:
    """Raise unless every row of ``weights`` is at least 0 and sums to 1, to the root of the dtype's epsilon."""
    fixed = weights.detach()
    limit = torch.finfo(weights.dtype).eps ** 0.5
    lowest, off = float(fixed.min()), float((fixed.sum(-1) - 1.0).abs().max())
    if not (lowest >= -limit and off <= limit):
        raise ValueError(
            f"{owner}: every row of {name} {_shape(weights)} must be at least 0 and sum to 1: the smallest entry is"
            f" {lowest:.3g}, the largest |sum − 1| is {off:.3g}, tolerance {limit:.3g}."
        )


def check_member_count(owner: str, x: Tensor, Pi: Tensor) -> None:
    """Raise unless there is one row of memberships a token."""
    if x.shape[-2] != Pi.shape[-2]:
        raise ValueError(
            f"{owner}: x has {x.shape[-2]} tokens, but the memberships were made for {Pi.shape[-2]}.\n"
            f"  x is (..., tokens, dim) = {_shape(x)}; memberships are (..., tokens, classes) = {_shape(Pi)}."
        )


def _kind(value: object) -> str:
    return f"{value.dtype} {_shape(value)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
