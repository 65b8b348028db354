"""The papers' equations, transcribed: numpy, tokens in COLUMNS, one function an equation, plain loops.

Nothing here knows our packages. Arrays may hold floats or mpmath numbers (dtype object), so that the same
transcription is evaluated in float64 and with fifty digits. Slow on purpose; never on the way of a layer.

Letters: Z (d, N) tokens; U a list of bases (d, p); A (N, m) extraction, columns sum to 1; eps is ε, not ε².
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "adaptive_average_bins",
    "cbsa_eq4",
    "cbsa_eq6",
    "cbsa_eq7",
    "cbsa_eq8",
    "cbsa_eq12",
    "cbsa_eq13",
    "cbsa_released",
    "coding_rate",
    "coding_rate_tokens_side",
    "crate_eq8",
    "crate_eq11",
    "crate_eq14",
    "cross_attention_energy",
    "logdet",
    "pool_grid",
    "pool_sequence",
    "representative_energy",
    "representative_norm",
    "self_attention_energy",
    "softmax_columns",
    "symmetric_energy",
]

Array = NDArray[Any]


def _log(value: Any) -> Any:
    return mpmath.log(value) if isinstance(value, mpmath.mpf) else np.log(value)


def _exp(values: Array) -> Array:
    return np.vectorize(mpmath.exp, otypes=[object])(values) if values.dtype == object else np.exp(values)


def _eye(n: int, like: Array) -> Array:
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


def coding_rate(Z: Array, eps: Any) -> Any:
    """MCR² eq. 2: R(Z) = ½ log det(I + d/(N ε²) Z Zᵀ), the d × d side."""
    d, N = Z.shape
    return logdet(_eye(d, Z) + (d / (N * eps**2)) * (Z @ Z.T)) / 2


def coding_rate_tokens_side(Z: Array, eps: Any) -> Any:
    """The same by the N × N side: ½ log det(I + d/(N ε²) Zᵀ Z)."""
    d, N = Z.shape
    return logdet(_eye(N, Z) + (d / (N * eps**2)) * (Z.T @ Z)) / 2


def crate_eq8(Z: Array, U: Sequence[Array], eps: Any) -> Any:
    """CRATE eq. 8: R_c(Z | U) = Σ_k ½ log det(I + p/(N ε²) (U_kᵀZ)ᵀ(U_kᵀZ))."""
    return sum(coding_rate(Uk.T @ Z, eps) for Uk in U)


def crate_eq11(Z: Array, U: Sequence[Array], eps: float, kappa: float) -> Array:
    """CRATE eq. 11: Z − κ Σ_k p/(N ε²) U_k U_kᵀZ (I + p/(N ε²) (U_kᵀZ)ᵀ(U_kᵀZ))⁻¹, the inverse N × N."""
    N = Z.shape[1]
    step = np.zeros_like(Z)
    for Uk in U:
        W = Uk.T @ Z
        beta = Uk.shape[1] / (N * eps**2)
        step = step + beta * (Uk @ W @ np.linalg.inv(np.eye(N) + beta * (W.T @ W)))
    return Z - kappa * step


def softmax_columns(S: Array) -> Array:
    """Every column of S, exponentiated and divided by its sum."""
    if S.dtype == object:
        E = _exp(S)
        return E / E.sum(0)
    E = np.exp(S - S.max(0))
    return E / E.sum(0)


def crate_eq14(Z: Array, U: Sequence[Array], scale: Any) -> Array:
    """CRATE eq. 14, tied: MSSA(Z) = Σ_k U_k U_kᵀZ softmax(s (U_kᵀZ)ᵀ(U_kᵀZ)), softmax over columns."""
    out = Z * 0
    for Uk in U:
        W = Uk.T @ Z
        out = out + Uk @ (W @ softmax_columns(scale * (W.T @ W)))
    return out


def cbsa_eq6(Q_ini: Array, W: Array, scale: Any) -> Array:
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


def _lse(S: Array, scale: Any) -> Any:
    """Σ over columns of (1/s) log Σ over rows of exp(s S)."""
    if S.dtype == object:
        return sum((mpmath.log(column) for column in _exp(scale * S).sum(0)), mpmath.mpf(0)) / scale
    top = S.max(0)
    return (top + np.log(np.exp(scale * (S - top)).sum(0)) / scale).sum()


def cross_attention_energy(Q: Array, K: Array, scale: Any, quadratic: bool) -> Any:
    """Hopfield eq. 1: −Σ_c (1/s) log Σ_j exp(s k_jᵀq_c), plus ½‖Q‖² if asked."""
    energy = -_lse(K.T @ Q, scale)
    return energy + (Q * Q).sum() / 2 if quadratic else energy


def self_attention_energy(Z: Array, U: Sequence[Array], keys: Sequence[Array], scale: Any) -> Any:
    """−Σ_k Σ_i (1/s) log Σ_j exp(s w̄_jᵀU_kᵀz_i), the keys w̄ constant."""
    return -sum(_lse(key.T @ (Uk.T @ Z), scale) for Uk, key in zip(U, keys, strict=True))


def symmetric_energy(Z: Array, U: Sequence[Array], scale: Any) -> Any:
    """Energy Transformer eq. 2, one matrix for queries and keys, halved: nothing constant."""
    return -sum(_lse((Uk.T @ Z).T @ (Uk.T @ Z), scale) for Uk in U) / 2


def representative_energy(Z: Array, U: Sequence[Array], A: Sequence[Array], keys: Sequence[Array], scale: Any) -> Any:
    """CBSA eq. 8 as an energy: −Σ_k Σ_a (1/s) log Σ_b exp(s q̄_bᵀ(U_kᵀZA_k)_a)."""
    return -sum(_lse(key.T @ (Uk.T @ Z @ Ak), scale) for Uk, Ak, key in zip(U, A, keys, strict=True))


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
        A = cbsa_eq6(R, Wk, p**-0.5)
        R = R + weights["step_rep"][k] * (Wk @ A)
        C = R @ softmax_columns(p**-0.5 * (R.T @ R))
        blocks.append(weights["step_x"][k] * (C @ A.T))
    return weights["out"] @ np.concatenate(blocks) + weights["bias"][:, None]
