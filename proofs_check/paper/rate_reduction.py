"""MCR² and ReduNet: rate reduction over memberships, its operators and its layer; CRATE's sparse rate reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .numbers import EMPTY, Array, eye, logdet
from .rates import coding_rate, crate_eq8

__all__ = [
    "class_compression",
    "class_compression_tokens_side",
    "crate_eq9",
    "linearised_rate_reduction",
    "rate_reduction",
    "redunet_layer",
    "redunet_memberships",
    "redunet_operators",
]


def class_compression(Z: Array, Pi: Array, eps: Any) -> Any:
    """MCR²: R_c(Z | Π) = Σ_k n_k/(2N) log det(I + d/(n_k ε²) Z diag(π_k) Zᵀ), Π (N, K); empty classes left out."""
    d, N = Z.shape
    total = 0
    for k in range(Pi.shape[1]):
        n = Pi[:, k].sum()
        if n > EMPTY:
            total = total + n / (2 * N) * logdet(eye(d, Z) + (d / (n * eps**2)) * ((Z * Pi[:, k]) @ Z.T))
    return total


def class_compression_tokens_side(Z: Array, Pi: Array, eps: Any) -> Any:
    """The same by the N × N sides: log det(I + d/(n_k ε²) diag(√π_k) ZᵀZ diag(√π_k))."""
    d, N = Z.shape
    total = 0
    for k in range(Pi.shape[1]):
        n = Pi[:, k].sum()
        if n > EMPTY:
            Y = Z * np.sqrt(Pi[:, k])
            total = total + n / (2 * N) * logdet(eye(N, Z) + (d / (n * eps**2)) * (Y.T @ Y))
    return total


def rate_reduction(Z: Array, Pi: Array, eps: Any) -> Any:
    """MCR²: ΔR = R(Z) − R_c(Z | Π)."""
    return coding_rate(Z, eps) - class_compression(Z, Pi, eps)


def redunet_operators(Z: Array, Pi: Array, eps: float) -> tuple[Array, list[Array], list[float]]:
    """ReduNet: E = α(I + α Z Zᵀ)⁻¹, C_k = α_k (I + α_k Z diag(π_k) Zᵀ)⁻¹ and γ_k = n_k/N."""
    d, N = Z.shape
    alpha = d / (N * eps**2)
    E = alpha * np.linalg.inv(np.eye(d) + alpha * (Z @ Z.T))
    C, gamma = [], []
    for k in range(Pi.shape[1]):
        n = float(Pi[:, k].sum())
        alpha_k = d / (n * eps**2) if n > EMPTY else 0.0
        C.append(alpha_k * np.linalg.inv(np.eye(d) + alpha_k * ((Z * Pi[:, k]) @ Z.T)))
        gamma.append(n / N)
    return E, C, gamma


def redunet_memberships(Z: Array, C: Sequence[Array], sharpness: float) -> Array:
    """ReduNet: π̂_ik = exp(−λ‖C_k z_i‖) / Σ_l exp(−λ‖C_l z_i‖), (N, K)."""
    Pi = np.zeros((Z.shape[1], len(C)))
    for i in range(Z.shape[1]):
        scores = np.array([-sharpness * np.linalg.norm(Ck @ Z[:, i]) for Ck in C])
        weights = np.exp(scores - scores.max())
        Pi[i] = weights / weights.sum()
    return Pi


def redunet_layer(Z: Array, Pi: Array, E: Array, C: Sequence[Array], gamma: Sequence[float], eta: float) -> Array:
    """ReduNet's increment, not normalised: z_i + η (E z_i − Σ_k γ_k π_ik C_k z_i)."""
    out = Z.copy()
    for i in range(Z.shape[1]):
        step = E @ Z[:, i]
        for k, Ck in enumerate(C):
            step = step - gamma[k] * Pi[i, k] * (Ck @ Z[:, i])
        out[:, i] = Z[:, i] + eta * step
    return out


def linearised_rate_reduction(Z: Array, Pi: Array, E: Array, C: Sequence[Array], gamma: Sequence[float]) -> Any:
    """½ Σ_i (z_iᵀE z_i − Σ_k γ_k π_ik z_iᵀC_k z_i): ΔR to first order in the Gram matrices, but for a constant."""
    total = ((E @ Z) * Z).sum()
    for k, Ck in enumerate(C):
        total = total - gamma[k] * ((Ck @ Z) * Z * Pi[:, k]).sum()
    return total / 2


def crate_eq9(Z: Array, U: Sequence[Array], eps: Any, weight: Any) -> Any:
    """CRATE eq. 9: R(Z) − R_c(Z | U) − λ ‖Z‖₀."""
    nonzero = sum(1 for entry in Z.ravel() if entry != 0)
    return coding_rate(Z, eps) - crate_eq8(Z, U, eps) - weight * nonzero
