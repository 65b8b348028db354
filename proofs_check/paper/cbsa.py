"""CBSA: its objective, its steps, its special cases, and its released layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .numbers import Array, lse, softmax_columns
from .rates import coding_rate

__all__ = [
    "adaptive_average_bins",
    "cbsa_eq4",
    "cbsa_eq5",
    "cbsa_eq7",
    "cbsa_eq8",
    "cbsa_eq12",
    "cbsa_eq13",
    "cbsa_released",
    "pool_grid",
    "pool_sequence",
    "representative_energy",
    "representative_norm",
]


def cbsa_eq5(Q_ini: Array, W: Array, scale: Any) -> Array:
    """CBSA's extraction in one head: A = softmax(s WᵀQ_ini) (N, m), every column a distribution over tokens."""
    return softmax_columns(scale * (W.T @ Q_ini))


def cbsa_eq4(Z: Array, U: Sequence[Array], A: Sequence[Array], eps: Any) -> Any:
    """CBSA eq. 4, its compression term: Σ_k R(U_kᵀ Z A_k), β = p/(m ε²)."""
    return sum(coding_rate(Uk.T @ Z @ Ak, eps) for Uk, Ak in zip(U, A, strict=True))


def cbsa_eq7(Z: Array, U: Sequence[Array], A: Sequence[Array], eps: float, kappa: float) -> Array:
    """CBSA eq. 7: Z − κ Σ_k β U_k Q_k (I + β Q_kᵀQ_k)⁻¹ A_kᵀ, Q_k = U_kᵀZA_k, β = p/(m ε²), the inverse m × m."""
    out = Z
    for Uk, Ak in zip(U, A, strict=True):
        Q = Uk.T @ Z @ Ak
        p, m = Q.shape
        beta = p / (m * eps**2)
        out = out - kappa * beta * (Uk @ Q @ np.linalg.inv(np.eye(m) + beta * (Q.T @ Q)) @ Ak.T)
    return out


def cbsa_eq8(Z: Array, U: Sequence[Array], A: Sequence[Array], scale: float) -> Array:
    """CBSA eq. 8: Σ_k U_k Q_k softmax(s Q_kᵀQ_k) A_kᵀ, the softmax over columns."""
    out = np.zeros_like(Z)
    for Uk, Ak in zip(U, A, strict=True):
        Q = Uk.T @ Z @ Ak
        out = out + Uk @ (Q @ softmax_columns(scale * (Q.T @ Q))) @ Ak.T
    return out


def cbsa_eq12(Z: Array, U: Sequence[Array], eps: float) -> Array:
    """CBSA eq. 12, read through the SVD: representatives Q = L Σ of U_kᵀZ = L Σ Rᵀ, A = R, m = p, contracted.

    Singular vectors are completed to p of them, so that fewer tokens than dimensions are covered too.
    """
    out = np.zeros_like(Z)
    for Uk in U:
        W = Uk.T @ Z
        L, sigma, Rt = np.linalg.svd(W, full_matrices=False)
        beta = Uk.shape[1] / (Uk.shape[1] * eps**2)
        Q = L * sigma
        C = beta * (Q @ np.linalg.inv(np.eye(len(sigma)) + beta * (Q.T @ Q)))
        out = out + Uk @ C @ Rt
    return out


def cbsa_eq13(Z: Array, U: Sequence[Array], eps: float) -> Array:
    """CBSA eq. 13: Σ_k (1/ε²) U_k diag(1/(1 + ‖row c of U_kᵀZ‖²/ε²)) U_kᵀZ, channel by channel."""
    out = np.zeros_like(Z)
    for Uk in U:
        for c in range(Uk.shape[1]):
            row = Uk[:, c] @ Z
            out = out + np.outer(Uk[:, c], row / eps**2 / (1 + (row @ row) / eps**2))
    return out


def representative_energy(Z: Array, U: Sequence[Array], A: Sequence[Array], keys: Sequence[Array], scale: Any) -> Any:
    """CBSA eq. 8 as an energy: −Σ_k Σ_a (1/s) log Σ_b exp(s q̄_bᵀ(U_kᵀZA_k)_a)."""
    return -sum(lse(key.T @ (Uk.T @ Z @ Ak), scale) for Uk, Ak, key in zip(U, A, keys, strict=True))


def representative_norm(Z: Array, U: Sequence[Array], A: Sequence[Array]) -> Any:
    """½ Σ_k ‖U_kᵀZA_k‖²: the representatives' energy without contraction."""
    return sum(((Uk.T @ Z @ Ak) ** 2).sum() for Uk, Ak in zip(U, A, strict=True)) / 2


def adaptive_average_bins(n: int, m: int) -> list[range]:
    """Adaptive pooling of n cells to m: bin i covers ⌊i n/m⌋ … ⌈(i+1) n/m⌉ − 1."""
    return [range(i * n // m, -((-(i + 1) * n) // m)) for i in range(m)]


def pool_sequence(W: Array, m: int) -> Array:
    """Averages of consecutive columns: (p, N) to (p, m)."""
    return np.stack([W[:, list(cells)].mean(1) for cells in adaptive_average_bins(W.shape[1], m)], axis=1)


def pool_grid(W: Array, grid: tuple[int, int], size: tuple[int, int]) -> Array:
    """Averages over rectangles of the grid, whose cells are the columns row by row: (p, H·W) to (p, h·w)."""
    pooled = []
    for rows in adaptive_average_bins(grid[0], size[0]):
        for columns in adaptive_average_bins(grid[1], size[1]):
            cells = [row * grid[1] + column for row in rows for column in columns]
            pooled.append(W[:, cells].mean(1))
    return np.stack(pooled, axis=1)


def cbsa_released(Z: Array, weights: dict[str, Array], heads: int) -> Array:
    """The update of CBSA's released layer (not its equation): see the docstring of unrolling.CBSA for how they part.

    ``proj`` (inner, d), ``step_x`` and ``step_rep`` (heads,), ``out`` (d, inner), ``bias`` (d,); N = g² + 1 tokens,
    of which the LAST is dropped before pooling to 8 × 8.
    """
    W = weights["proj"] @ Z
    side = round((Z.shape[1] - 1) ** 0.5)
    p = W.shape[0] // heads
    blocks = []
    for k in range(heads):
        Wk = W[k * p : (k + 1) * p]
        R = pool_grid(Wk[:, :-1], (side, side), (8, 8))
        A = cbsa_eq5(R, Wk, p**-0.5)
        R = R + weights["step_rep"][k] * (Wk @ A)
        C = R @ softmax_columns(p**-0.5 * (R.T @ R))
        blocks.append(weights["step_x"][k] * (C @ A.T))
    return weights["out"] @ np.concatenate(blocks) + weights["bias"][:, None]
