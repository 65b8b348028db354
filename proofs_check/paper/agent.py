"""Agent attention: what the agents read and what reads them, its position biases, and CBSA's contraction of the agents."""

from __future__ import annotations

from typing import Any

import numpy as np

from .numbers import Array, softmax_columns

__all__ = [
    "agent_broadcast",
    "agent_contraction",
    "agent_position_bias",
    "agent_values",
    "bilinear",
]


def bilinear(M: Array, size: tuple[int, int]) -> Array:
    """Maps (…, n, n') resized: cell i of m lies at (i + ½) n/m − ½ of the old ones, at least 0, between two neighbours."""

    def weights(m: int, n: int) -> Array:
        W = np.zeros((m, n), M.dtype)
        for i in range(m):
            place = max(0.0, (i + 0.5) * n / m - 0.5)
            low = int(place)
            W[i, low] += 1 - (place - low)
            W[i, min(low + 1, n - 1)] += place - low
        return W

    return weights(size[0], M.shape[-2]) @ M @ weights(size[1], M.shape[-1]).T


def agent_position_bias(
    coarse: Array, rows: Array, columns: Array, classes: float, grid: tuple[int, int], class_tokens: int
) -> Array:
    """Agent attention section 3.3, one agent of one head: a number for every token, class tokens first, then row by row.

    ``coarse`` (b, b), ``rows`` and ``columns`` of the window; on another grid the sum of the two is resized as well.
    """
    profile = np.array([[r + c for c in columns] for r in rows])
    if profile.shape != grid:
        profile = bilinear(profile, grid)
    patches = bilinear(coarse, grid) + profile
    return np.array([classes] * class_tokens + [patches[i, j] for i in range(grid[0]) for j in range(grid[1])])


def agent_values(R: Array, K: Array, V: Array, scale: Any, bias: Array) -> Array:
    """Agent attention eq. 4: V softmax(s KᵀR + bias), what every agent (column of R) reads; bias (N, m)."""
    return V @ softmax_columns(scale * (K.T @ R) + bias)


def agent_contraction(F: Array, scale: Any) -> Array:
    """CBSA eq. 8 inside a head: F softmax(s FᵀF), the representatives read each other."""
    return F @ softmax_columns(scale * (F.T @ F))


def agent_broadcast(Q: Array, R: Array, F: Array, scale: Any, bias: Array) -> Array:
    """Agent attention eq. 4: F softmax(s RᵀQ + bias), every query reads what the agents found; bias (m, N)."""
    return F @ softmax_columns(scale * (R.T @ Q) + bias)
