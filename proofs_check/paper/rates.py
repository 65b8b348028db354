"""MCR² and CRATE: coding rates and the exact step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .numbers import Array, eye, logdet

__all__ = ["coding_rate", "coding_rate_tokens_side", "crate_eq8", "crate_eq11"]


def coding_rate(Z: Array, eps: Any) -> Any:
    """MCR² eq. 2: R(Z) = ½ log det(I + d/(N ε²) Z Zᵀ), the d × d side."""
    d, N = Z.shape
    return logdet(eye(d, Z) + (d / (N * eps**2)) * (Z @ Z.T)) / 2


def coding_rate_tokens_side(Z: Array, eps: Any) -> Any:
    """The same by the N × N side: ½ log det(I + d/(N ε²) Zᵀ Z)."""
    d, N = Z.shape
    return logdet(eye(N, Z) + (d / (N * eps**2)) * (Z.T @ Z)) / 2


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
