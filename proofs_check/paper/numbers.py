"""Arithmetic in floats, in mpmath numbers, and in any numbers with ``log`` and ``exp``, for arrays of either."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

__all__ = ["EMPTY", "Array", "exp", "eye", "log", "logdet", "lse", "softmax_columns"]

Array = NDArray[Any]

EMPTY = 1e-280
"""Sums of memberships below this count as no members: n log(1 + c/n) goes to 0 with n, where c/n overflows."""


def log(value: Any) -> Any:
    """The natural logarithm of one number."""
    if isinstance(value, mpmath.mpf):
        return mpmath.log(value)
    return value.log() if hasattr(value, "log") else np.log(value)


def exp(values: Array) -> Array:
    """``e`` to every entry."""
    if values.dtype != object:
        return np.exp(values)
    return np.vectorize(lambda v: mpmath.exp(v) if isinstance(v, mpmath.mpf) else v.exp(), otypes=[object])(values)


def eye(n: int, like: Array) -> Array:
    """The identity, in numbers that add to those of ``like``."""
    if like.dtype != object:
        return np.eye(n)
    return np.array([[int(i == j) for j in range(n)] for i in range(n)], dtype=object)


def logdet(M: Array) -> Any:
    """Log det M for symmetric positive definite M: LAPACK for floats, elimination by hand for other numbers."""
    if M.dtype != object:
        return np.linalg.slogdet(M)[1]
    M, total = M.copy(), 0
    for i in range(len(M)):
        total = total + log(M[i, i])
        for j in range(i + 1, len(M)):
            M[j, i:] = M[j, i:] - M[i, i:] * (M[j, i] / M[i, i])
    return total


def softmax_columns(S: Array) -> Array:
    """Every column of S, exponentiated and divided by its sum."""
    if S.dtype == object:
        E = exp(S)
        return E / E.sum(0)
    E = np.exp(S - S.max(0))
    return E / E.sum(0)


def lse(S: Array, scale: Any) -> Any:
    """Σ over columns of (1/s) log Σ over rows of exp(s S)."""
    if S.dtype == object:
        return sum(log(column) for column in exp(scale * S).sum(0)) / scale
    top = S.max(0)
    return (top + np.log(np.exp(scale * (S - top)).sum(0)) / scale).sum()
