"""DEPICT: PCA as compression, steps on orthonormal frames, cross-attention to classes, and the released decoder.

P (d, C) and Q (d, C) hold one direction, or class, a column; Z (d, N) tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .energies import crate_eq14
from .numbers import Array, log, lse, softmax_columns
from .rates import coding_rate

__all__ = [
    "depict_cross_attention",
    "depict_cross_energy",
    "depict_cross_rate",
    "depict_cross_step",
    "depict_masks",
    "depict_released",
    "gram_schmidt",
    "pca_attention",
    "pca_rate",
    "pca_reconstruction",
    "pca_separable_rate",
    "pca_variance",
    "polar_factor",
    "stiefel_step",
]


def pca_reconstruction(P: Array, Z: Array) -> Any:
    """‖Z − P PᵀZ‖²."""
    return ((Z - P @ (P.T @ Z)) ** 2).sum()


def pca_variance(P: Array, Z: Array) -> Any:
    """tr(Pᵀ Z Zᵀ P) = Σ_c Σ_n (p_cᵀz_n)², to be maximised."""
    return ((P.T @ Z) ** 2).sum()


def pca_rate(P: Array, Z: Array, eps: Any) -> Any:
    """½ log det(I_C + C/(N ε²) PᵀZZᵀP), to be maximised: the coding rate of the C × N matrix PᵀZ."""
    return coding_rate(P.T @ Z, eps)


def pca_separable_rate(P: Array, Z: Array, eps: Any) -> Any:
    """Σ_c ½ log(1 + C/(N ε²) p_cᵀZZᵀp_c), to be maximised: every direction by itself."""
    C, N = P.shape[1], Z.shape[1]
    return sum(log(1 + C / (N * eps**2) * ((p @ Z) ** 2).sum()) for p in P.T) / 2


def pca_attention(P: Array, Z: Array) -> Array:
    """ZZᵀP read as attention without softmax: column c is Σ_n z_n (z_nᵀp_c)."""
    return np.stack([sum(z * (z @ p) for z in Z.T) for p in P.T], axis=1)


def gram_schmidt(Y: Array) -> Array:
    """The columns of Y made orthonormal in their order, every one with a positive share of its own column."""
    out: list[Array] = []
    for y in Y.T:
        for _ in range(2):  # twice is enough for orthogonality to rounding
            for q in out:
                y = y - q * (q @ y)
        out.append(y / np.linalg.norm(y))
    return np.stack(out, axis=1)


def polar_factor(Y: Array) -> Array:
    """Y (YᵀY)^(−½), by the eigenvectors of YᵀY."""
    values, vectors = np.linalg.eigh(Y.T @ Y)
    return Y @ (vectors * values**-0.5) @ vectors.T


def stiefel_step(P: Array, G: Array, kappa: float, retraction: str) -> Array:
    """A Riemannian gradient step from P with Euclidean gradient G: retract(P − κ (G − P sym(PᵀG)))."""
    product = P.T @ G
    Y = P - kappa * (G - P @ (product + product.T) / 2)
    return gram_schmidt(Y) if retraction == "qr" else polar_factor(Y)


def depict_cross_rate(Q: Array, Z: Array, U: Sequence[Array], eps: Any) -> Any:
    """Σ_k ½ log det(I_C + C/(N ε²) Q_kᵀW_kW_kᵀQ_k), to be maximised in the classes Q; Q_k = U_kᵀQ, W_k = U_kᵀZ."""
    return sum(coding_rate((Uk.T @ Q).T @ (Uk.T @ Z), eps) for Uk in U)


def depict_cross_step(Q: Array, Z: Array, U: Sequence[Array], eps: float, kappa: float) -> Array:
    """The ascent step on it: Q + κ Σ_k β U_k S_k Q_k (I_C + β Q_kᵀS_kQ_k)⁻¹, S_k = W_kW_kᵀ, β = C/(N ε²)."""
    C, N = Q.shape[1], Z.shape[1]
    beta, out = C / (N * eps**2), Q
    for Uk in U:
        Qk, Wk = Uk.T @ Q, Uk.T @ Z
        S = sum(np.outer(w, w) for w in Wk.T)
        out = out + kappa * beta * (Uk @ S @ Qk @ np.linalg.inv(np.eye(C) + beta * (Qk.T @ S @ Qk)))
    return out


def depict_cross_attention(Q: Array, Z: Array, U: Sequence[Array], scale: float) -> Array:
    """MSCA, tied: Σ_k U_k W_k softmax(s W_kᵀQ_k), the softmax over columns."""
    out = Q * 0
    for Uk in U:
        Qk, Wk = Uk.T @ Q, Uk.T @ Z
        out = out + Uk @ (Wk @ softmax_columns(scale * (Wk.T @ Qk)))
    return out


def depict_cross_energy(Q: Array, Z: Array, U: Sequence[Array], scale: Any) -> Any:
    """−Σ_k Σ_c (1/s) log Σ_n exp(s w_{k,n}ᵀq_{k,c})."""
    return -sum(lse((Uk.T @ Z).T @ (Uk.T @ Q), scale) for Uk in U)


def depict_masks(Z: Array, Q: Array) -> Array:
    """The masks (C, N): cosines of classes and patches, one by one."""
    return np.array([[(q @ z) / (np.linalg.norm(q) * np.linalg.norm(z)) for z in Z.T] for q in Q.T])


def _layer_norm(X: Array, weight: Array, bias: Array) -> Array:
    """Every column less its mean, over its standard deviation, by weight and bias; ε = 1e-5 as released."""
    return ((X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)) * weight[:, None] + bias[:, None]


def depict_released(Z: Array, weights: dict[str, Any], attention: str) -> Array:
    """The released decoders, DEPICT-SA ("self") and DEPICT-CA ("cross"), as coded: logits (C, N).

    ``classes`` (d, C); ``refine`` and ``cross``: lists of (norm, bases, step) with norm = (weight, bias), bases a list of
    (d, p), scale p^(−½); ``patch_norm``, ``class_norm`` and ``mask_norm`` pairs. In "self" the classes come last and
    share the patches' norm. Queries of the cross-attention are not normed; its keys are, twice.
    """
    Q, C = weights["classes"], weights["classes"].shape[1]
    X = np.concatenate([Z, Q], axis=1) if attention == "self" else Z
    for norm, U, step in weights["refine"]:
        X = X + step * crate_eq14(_layer_norm(X, *norm), U, U[0].shape[1] ** -0.5)
    X = _layer_norm(X, *weights["patch_norm"])
    if attention == "self":
        X, Q = X[:, :-C], X[:, -C:]
    else:
        for norm, U, step in weights["cross"]:
            Q = Q + step * depict_cross_attention(Q, _layer_norm(X, *norm), U, U[0].shape[1] ** -0.5)
        Q = _layer_norm(Q, *weights["class_norm"])
    return _layer_norm(depict_masks(X, Q), *weights["mask_norm"])
