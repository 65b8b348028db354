"""Arithmetic in floats and in mpmath numbers, for arrays of either."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "exp", "eye", "log", "logdet", "lse", "softmax_columns"]

Array = NDArray[Any]


def log(value: Any) -> Any:
    """The natural logarithm of one number of either sort."""
    return mpmath.log(value) if isinstance(value, mpmath.mpf) else np.log(value)


def exp(values: Array) -> Array:
    """E to every entry."""
    return np.vectorize(mpmath.exp, otypes=[object])(values) if values.dtype == object else np.exp(values)


def eye(n: int, like: Array) -> Array:
    """The identity, in numbers of the sort of ``like``."""
    if like.dtype != object:
        return np.eye(n)
    return np.array([[mpmath.mpf(int(i == j)) for j in range(n)] for i in range(n)], dtype=object)


def logdet(M: Array) -> Any:
    """Log det M for symmetric positive definite M: LAPACK for floats, elimination by hand for mpmath numbers."""
    if M.dtype != object:
        return np.linalg.slogdet(M)[1]
    M, total = M.copy(), mpmath.mpf(0)
    for i in range(len(M)):
        total += mpmath.log(M[i, i])
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
        return sum((mpmath.log(column) for column in exp(scale * S).sum(0)), mpmath.mpf(0)) / scale
    top = S.max(0)
    return (top + np.log(np.exp(scale * (S - top)).sum(0)) / scale).sum()
