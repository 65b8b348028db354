"""AoT: its data model's signal-to-noise ratio, and its layer with thresholded attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .numbers import Array, softmax_columns

__all__ = ["aot_selection", "aot_snr", "aot_threshold_step", "selected_energy"]


def aot_snr(Z: Array, labels: Sequence[int], U: Sequence[Array]) -> list[float]:
    """SNR(Z_k) = ‖U_k U_kᵀ Z_k‖_F / ‖(I − U_k U_kᵀ) Z_k‖_F for every cluster k."""
    ratios = []
    for k, Uk in enumerate(U):
        Zk = Z[:, [i for i, label in enumerate(labels) if label == k]]
        inside = Uk @ Uk.T @ Zk
        outside = (np.eye(len(Z)) - Uk @ Uk.T) @ Zk
        ratios.append(float(np.sqrt((inside**2).sum()) / np.sqrt((outside**2).sum())))
    return ratios


def aot_selection(W: Array, scale: float, tau: float) -> Array:
    """φ(s WᵀW): τ where the softmax over a column exceeds τ, else 0; (N, N), a column for every reading token."""
    A = softmax_columns(scale * (W.T @ W))
    out = np.zeros_like(A)
    for j in range(A.shape[0]):
        for i in range(A.shape[1]):
            out[j, i] = tau if A[j, i] > tau else 0.0
    return out


def aot_threshold_step(Z: Array, U: Sequence[Array], scale: float, tau: float, eta: float) -> Array:
    """Z + η Σ_k U_k U_kᵀZ φ((U_kᵀZ)ᵀ(U_kᵀZ)), φ the thresholded softmax."""
    out = Z
    for Uk in U:
        W = Uk.T @ Z
        out = out + eta * (Uk @ (W @ aot_selection(W, scale, tau)))
    return out


def selected_energy(Z: Array, U: Sequence[Array], S: Sequence[Array], keys: Sequence[Array] | None) -> Any:
    """−Σ_k Σ_ij S_k[j, i] w̄_jᵀ w_i with keys w̄; without, half of it with the tokens' own coordinates."""
    total = Z[0, 0] * 0
    for k, Uk in enumerate(U):
        W = Uk.T @ Z
        source = W if keys is None else keys[k]
        total = total - (source.T @ W * S[k]).sum()
    return total / 2 if keys is None else total
