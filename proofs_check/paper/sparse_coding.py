"""Sparse coding: ISTA, FISTA, and the feed-forward blocks of CRATE and CRATE-α."""

from __future__ import annotations

from typing import Any

import numpy as np

from .numbers import Array

__all__ = [
    "crate_alpha_codes",
    "crate_eq17",
    "duality_gap",
    "fista",
    "ista_step",
    "layer_norm_columns",
    "nonnegative_codes",
    "reconstruction_error",
    "sparse_coding_value",
    "threshold",
    "threshold_gap",
]


def reconstruction_error(A: Array, D: Array, X: Array) -> Any:
    """½ ‖X − D A‖²."""
    R = X - D @ A
    return (R * R).sum() / 2


def sparse_coding_value(A: Array, D: Array, X: Array, lam: Any) -> Any:
    """LISTA eq. 1: ½ ‖X − D A‖² + λ ‖A‖₁."""
    return reconstruction_error(A, D, X) + lam * abs(A).sum()


def threshold(value: float, by: float, nonnegative: bool) -> float:
    """The minimiser of t ↦ by·|t| + ½ (t − value)², over t ≥ 0 if asked: three cases."""
    if value > by:
        return value - by
    if value < -by and not nonnegative:
        return value + by
    return 0.0


def threshold_gap(z: float, x: float, by: float, nonnegative: bool) -> float:
    """How far z is from optimal for by·|z| + ½ (z − x)²: the distance of x − z from by · the subdifferential of |z|."""
    if z > 0:
        return abs(x - z - by)
    if z < 0:
        return np.inf if nonnegative else abs(x - z + by)
    return max(0.0, x - by) if nonnegative else max(0.0, abs(x) - by)


def ista_step(A: Array, D: Array, X: Array, eta: float, lam: float, nonnegative: bool) -> Array:
    """prox(A − η Dᵀ(D A − X)), entry by entry."""
    moved = A - eta * (D.T @ (D @ A - X))
    return np.array([[threshold(v, eta * lam, nonnegative) for v in row] for row in moved])


def crate_eq17(Z: Array, D: Array, eta: float, lam: float) -> Array:
    """CRATE eq. 17: ReLU(Z + η Dᵀ(Z − D Z) − η λ 1), with the three products of the authors' code."""
    return np.maximum(Z + eta * (D.T @ Z - D.T @ (D @ Z)) - eta * lam, 0.0)


def crate_alpha_codes(X: Array, D: Array, eta: float, lam: float, steps: int) -> Array:
    """CRATE-α section 3.2: proximal steps for non-negative codes, from zero."""
    A = np.zeros((D.shape[1], X.shape[1]))
    for _ in range(steps):
        A = ista_step(A, D, X, eta, lam, True)
    return A


def fista(A: Array, D: Array, X: Array, eta: float, lam: float, nonnegative: bool, steps: int) -> Array:
    """FISTA eq. 4.1 to 4.3 from A."""
    Y, t = A, 1.0
    for _ in range(steps):
        new = ista_step(Y, D, X, eta, lam, nonnegative)
        next_t = (1 + np.sqrt(1 + 4 * t * t)) / 2
        Y, A, t = new + (t - 1) / next_t * (new - A), new, next_t
    return A


def nonnegative_codes(X: Array, D: Array, lam: float, steps: int = 400) -> Array:
    """Codes close to the minimum over A ≥ 0, by FISTA that restarts where momentum points uphill."""
    eta = 1 / np.linalg.norm(D, 2) ** 2
    A = Y = np.zeros((D.shape[1], X.shape[1]))
    t = 1.0
    for _ in range(steps):
        new = np.maximum(Y - eta * (D.T @ (D @ Y - X)) - eta * lam, 0.0)
        if ((Y - new) * (new - A)).sum() > 0:
            t = 1.0
        next_t = (1 + np.sqrt(1 + 4 * t * t)) / 2
        Y, A, t = new + (t - 1) / next_t * (new - A), new, next_t
    return A


def duality_gap(A: Array, D: Array, X: Array, lam: float) -> tuple[float, float]:
    """The value of non-negative sparse coding at A ≥ 0, and a lower bound of its minimum by a dual feasible point.

    The dual is max_ν ⟨ν, x⟩ − ½‖ν‖² over Dᵀν ≤ λ, for every column; the residual, scaled into the constraint, is feasible.
    """
    low = 0.0
    for a, x in zip(A.T, X.T, strict=True):
        r = x - D @ a
        largest = float((D.T @ r).max(initial=0.0))
        v = r * min(1.0, lam / largest) if largest > 0 else r
        low += float(v @ x - v @ v / 2)
    return float(sparse_coding_value(A, D, X, lam)), low


def layer_norm_columns(Z: Array, eps: float = 1e-5) -> Array:
    """Every column less its mean, over the root of its variance plus 1e-5."""
    centred = Z - Z.mean(0)
    return centred / np.sqrt((centred * centred).mean(0) + eps)
