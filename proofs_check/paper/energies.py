"""Softmax attention and the energies that it descends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .numbers import Array, lse, softmax_columns

__all__ = ["crate_eq14", "cross_attention_energy", "self_attention_energy", "symmetric_energy"]


def crate_eq14(Z: Array, U: Sequence[Array], scale: Any) -> Array:
    """CRATE eq. 14, tied: MSSA(Z) = Σ_k U_k U_kᵀZ softmax(s (U_kᵀZ)ᵀ(U_kᵀZ)), softmax over columns."""
    out = Z * 0
    for Uk in U:
        W = Uk.T @ Z
        out = out + Uk @ (W @ softmax_columns(scale * (W.T @ W)))
    return out


def cross_attention_energy(Q: Array, K: Array, scale: Any, quadratic: bool) -> Any:
    """Hopfield eq. 1: −Σ_c (1/s) log Σ_j exp(s k_jᵀq_c), plus ½‖Q‖² if asked."""
    energy = -lse(K.T @ Q, scale)
    return energy + (Q * Q).sum() / 2 if quadratic else energy


def self_attention_energy(Z: Array, U: Sequence[Array], keys: Sequence[Array], scale: Any) -> Any:
    """−Σ_k Σ_i (1/s) log Σ_j exp(s w̄_jᵀU_kᵀz_i), the keys w̄ constant."""
    return -sum(lse(key.T @ (Uk.T @ Z), scale) for Uk, key in zip(U, keys, strict=True))


def symmetric_energy(Z: Array, U: Sequence[Array], scale: Any) -> Any:
    """Energy Transformer eq. 2, one matrix for queries and keys, halved: nothing constant."""
    return -sum(lse((Uk.T @ Z).T @ (Uk.T @ Z), scale) for Uk in U) / 2
