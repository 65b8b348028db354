"""The Energy Transformer: its normalisation, its two energies, its update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np

from .numbers import Array, exp, log

__all__ = [
    "attention_energy",
    "energy_norm",
    "energy_norm_jacobian",
    "energy_norm_lagrangian",
    "hopfield_energy",
    "hopfield_softmax_energy",
]


def energy_norm(X: Array, gain: Any, bias: Array, eps: Any) -> Array:
    """g_iA = γ (x_iA − x̄_A) / sqrt(Σ_j (x_jA − x̄_A)² / D + ε) + δ_i, token by token; γ is one number."""
    out = X * 0
    for a in range(X.shape[1]):
        centred = X[:, a] - X[:, a].sum() / len(X)
        out[:, a] = gain * centred / _root((centred * centred).sum() / len(X) + eps) + bias
    return out


def energy_norm_lagrangian(X: Array, gain: Any, bias: Array, eps: Any) -> Any:
    """L = Σ_A (D γ sqrt(Σ_j (x_jA − x̄_A)² / D + ε) + Σ_j δ_j x_jA), of which the normalisation is the gradient."""
    total = X[0, 0] * 0
    for a in range(X.shape[1]):
        centred = X[:, a] - X[:, a].sum() / len(X)
        total = total + len(X) * gain * _root((centred * centred).sum() / len(X) + eps) + (bias * X[:, a]).sum()
    return total


def energy_norm_jacobian(x: Array, gain: float, eps: float) -> Array:
    """∂g/∂x of one token by the quotient rule: γ (I − 1 1ᵀ/D)/σ − γ c cᵀ/(D σ³)."""
    D = len(x)
    c = x - x.sum() / D
    sigma = ((c * c).sum() / D + eps) ** 0.5
    J = np.zeros((D, D))
    for i in range(D):
        for j in range(D):
            J[i, j] = gain * (((i == j) - 1 / D) / sigma - c[i] * c[j] / (D * sigma**3))
    return J


def hopfield_energy(G: Array, memories: Array) -> Any:
    """E^HN = −½ Σ_B Σ_μ max(ξ_μᵀ g_B, 0)²; memories (d, M), in columns."""
    total = G[0, 0] * 0
    for b in range(G.shape[1]):
        for mu in range(memories.shape[1]):
            h = (memories[:, mu] * G[:, b]).sum()
            total = total - (h * h / 2 if h > 0 else h * 0)
    return total


def hopfield_softmax_energy(G: Array, memories: Array, scale: Any) -> Any:
    """E^HN with the softmax for activation: −Σ_B (1/s) log Σ_μ exp(s ξ_μᵀ g_B)."""
    return attention_of(memories, G, scale, None)


def attention_energy(G: Array, W_Q: Sequence[Array], W_K: Sequence[Array], scale: Any, exclude_self: bool) -> Any:
    """E^ATT = −(1/β) Σ_h Σ_C log Σ_{B ≠ C} exp(β K_Bᵀ Q_C), K = W_KᵀG, Q = W_QᵀG; no term where B ranges over nothing."""
    total = G[0, 0] * 0
    for Q, K in zip(W_Q, W_K, strict=True):
        total = total + attention_of(K.T @ G, Q.T @ G, scale, exclude_self or None)
    return total


def attention_of(K: Array, Q: Array, scale: Any, exclude_self: bool | None) -> Any:
    """−Σ_C (1/s) log Σ_B exp(s K_Bᵀ Q_C), B ≠ C on request."""
    total = Q[0, 0] * 0
    for c in range(Q.shape[1]):
        scores = scale * (K.T @ Q[:, c])
        if exclude_self:
            scores = np.delete(scores, c)
        if len(scores):
            top = scores.max()
            total = total - (top + log(exp(scores - top).sum())) / scale
    return total


def _root(value: Any) -> Any:
    return mpmath.sqrt(value) if isinstance(value, mpmath.mpf) else np.sqrt(value)
