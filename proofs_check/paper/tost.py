"""ToST: the variational rate, its memberships, token statistics self-attention, causal and as released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .numbers import EMPTY, Array, log, softmax_columns

__all__ = [
    "tost_causal",
    "tost_memberships",
    "tost_normalised_memberships",
    "tost_prefix_rate",
    "tost_rate",
    "tost_released",
    "tost_step",
]


def tost_rate(Z: Array, Pi: Array, U: Sequence[Array], eps: Any) -> Any:
    """ToST: R_var = Σ_k n_k/(2N) Σ_c log(1 + d/(n_k ε²) Σ_j π_jk (u_cᵀz_j)²), Π (N, K)."""
    d, N = Z.shape
    total = 0
    for k, Uk in enumerate(U):
        n = Pi[:, k].sum()
        if n <= EMPTY:
            continue
        for c in range(Uk.shape[1]):
            row = Uk[:, c] @ Z
            moment = (Pi[:, k] * row**2).sum()
            total = total + n / (2 * N) * log(1 + d / (n * eps**2) * moment)
    return total


def tost_memberships(Z: Array, U: Sequence[Array], temperature: Sequence[Any]) -> Array:
    """ToST: π_ik = softmax over k of (1/2η) ‖U_kᵀz_i‖², (N, K); temperature holds 1/2η, one a head."""
    scores = np.stack([t * ((Uk.T @ Z) ** 2).sum(0) for Uk, t in zip(U, temperature, strict=True)])
    return softmax_columns(scores).T


def tost_step(Z: Array, Pi: Array, U: Sequence[Array], eps: float, kappa: float) -> Array:
    """ToST: Z − κ Σ_k d/(N ε²) U_k D_k U_kᵀ Z diag(π_k), D_k = diag(1/(1 + d/(n_k ε²) Σ_j π_jk (u_cᵀz_j)²))."""
    d, N = Z.shape
    out = Z.copy()
    for k, Uk in enumerate(U):
        n = Pi[:, k].sum()
        if n <= EMPTY:
            continue
        W = Uk.T @ Z
        D = np.diag([1 / (1 + d / (n * eps**2) * (Pi[:, k] @ W[c] ** 2)) for c in range(len(W))])
        out = out - kappa * d / (N * eps**2) * (Uk @ D @ W * Pi[:, k])
    return out


def tost_causal(Z: Array, Pi: Array, U: Sequence[Array], eps: float, kappa: float) -> Array:
    """The causal form by a loop: token i of the step on the prefix of i tokens, whose memberships are rows of Π."""
    out = Z.copy()
    for i in range(Z.shape[1]):
        out[:, i] = tost_step(Z[:, : i + 1], Pi[: i + 1], U, eps, kappa)[:, i]
    return out


def tost_prefix_rate(Z: Array, past: Array, Pi: Array, U: Sequence[Array], eps: Any) -> Any:
    """Σ_i R_var of prefix i whose tokens are those of ``past`` but the last, which is column i of Z."""
    total = 0
    for i in range(Z.shape[1]):
        prefix = np.concatenate([past[:, :i], Z[:, i : i + 1]], axis=1)
        total = total + tost_rate(prefix, Pi[: i + 1], U, eps)
    return total


def tost_normalised_memberships(Z: Array, U: Sequence[Array], temperature: Sequence[float], causal: bool) -> Array:
    """The released memberships: channels of unit length over the tokens (causal: the prefix), then as above, (N, K)."""
    N = Z.shape[1]
    scores = np.zeros((len(U), N))
    for k, Uk in enumerate(U):
        for row in Uk.T @ Z:
            for i in range(N):
                whole = (row[: i + 1] ** 2).sum() if causal else (row**2).sum()
                scores[k, i] += temperature[k] * row[i] ** 2 / max(whole, 1e-24)
    return softmax_columns(scores).T


def tost_released(
    Z: Array, U: Sequence[Array], temperature: Sequence[float], causal: bool, tiny: float = 1e-8
) -> Array:
    """The update of ToST's released layers (not its equation), output matrix Uᵀ, no bias: −Σ_k U_k (W_k π_k) ∘ D_k.

    Memberships from normalised channels, without the causal form's learned bias; D = 1/(1 + Σ_j π_j w_j²/(Σ_j π_j + tiny)).
    """
    N, Pi = Z.shape[1], tost_normalised_memberships(Z, U, temperature, causal)
    out = np.zeros_like(Z)
    for k, Uk in enumerate(U):
        W = Uk.T @ Z
        for i in range(N):
            seen = i + 1 if causal else N
            D = 1 / (1 + W[:, :seen] ** 2 @ Pi[:seen, k] / (Pi[:seen, k].sum() + tiny))
            out[:, i] -= Uk @ (W[:, i] * Pi[i, k] * D)
    return out
