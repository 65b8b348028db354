"""Orthonormal frames of cases, and PCA's objectives on them: what the claims on PCA share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import PCARate, PCAReconstruction, PCAVariance, SeparableRate

from . import paper
from .claim import Measurement
from .measures import columns, gradient_measure, norm, rate_condition, reference, slices
from .strategies import Case

__all__ = [
    "bend_of_pca",
    "beta_of_frame",
    "cancellation",
    "directions_of",
    "equalised",
    "fewer_directions",
    "gradient_condition",
    "orthonormal_frame",
    "pca_naive",
    "pca_objectives",
    "posed_gradient",
    "spectrum",
    "tangent_of_angle",
    "variable",
]

Array = NDArray[np.float64]


def directions_of(case: Case) -> int:
    """The number of directions: m, or all features."""
    return min(case.m, case.dim)


def fewer_directions(case: Case) -> int:
    """Fewer directions than features, so that there is somewhere to move."""
    return max(1, min(case.m, case.dim - 1))


def orthonormal_frame(case: Case, purpose: str = "directions", count: int | None = None) -> Array:
    """Orthonormal rows ``(count, dim)``, drawn for one purpose."""
    drawn = case.rng(purpose).standard_normal((case.dim, directions_of(case) if count is None else count))
    return np.ascontiguousarray(np.linalg.qr(drawn)[0].T)


def variable(case: Case) -> Case:
    """The case whose tokens are the directions: what the objectives here are functions of."""
    sets = []
    for b in range(max(1, case.batch)):
        plain = case.rng(f"directions {b}").standard_normal((directions_of(case), case.dim))
        sets.append(orthonormal_frame(case, f"directions {b}") if case.seed % 2 else plain)
    return dataclasses.replace(case, tokens=directions_of(case), given=np.stack(sets) if case.batch else sets[0])


def beta_of_frame(case: Case, directions: int, tokens: int) -> float:
    """β(N, C, ε)."""
    return directions / (tokens * case.epsilon**2)


def pca_objectives(case: Case, Z: Tensor) -> dict[str, Any]:
    """The four objectives of directions, by name."""
    return {
        "reconstruction": PCAReconstruction(Z),
        "variance": PCAVariance(Z),
        "rate": PCARate(Z, case.epsilon),
        "separable rate": SeparableRate(Z, case.epsilon),
    }


def pca_naive(name: str, case: Case, Z: Array) -> Callable[[Any], Any]:
    """The objective as the classes hold it, to be minimised, from the paper's definitions."""
    if name == "reconstruction":
        return lambda P: paper.pca_reconstruction(P, Z)
    if name == "variance":
        return lambda P: -paper.pca_variance(P, Z)
    if name == "rate":
        return lambda P: -paper.pca_rate(P, Z, case.epsilon)
    return lambda P: -paper.pca_separable_rate(P, Z, case.epsilon)


def cancellation(large: float, small: float) -> float:
    """What is lost where numbers of one size sum to a smaller one."""
    return 1.0 + (large / small if small else 0.0)


def gradient_condition(case: Case, f: Any, x: Tensor) -> float:
    """Products of directions and tokens cancel: errors are eps times the product of their norms."""
    worst = 1.0
    for g, z, tokens in slices(f.gradient(x), x, f.tokens):
        products, size = tokens @ z.mT, norm(z) * norm(tokens)
        if isinstance(f, (PCAReconstruction, PCAVariance)):
            grown = 1.0 + norm(z) ** 2 if isinstance(f, PCAReconstruction) else 1.0
            one = cancellation(2 * size * norm(tokens) * grown, norm(g))
        else:
            beta = float(f.beta(x))
            inner = beta * products / (1 + beta * products.square().sum(0))
            if isinstance(f, PCARate):
                inner = beta * products @ torch.linalg.inv(torch.eye(len(z)) + beta * products.mT @ products)
            one = rate_condition(products, beta) * cancellation(norm(inner) * norm(tokens), norm(g))
            one *= cancellation(size, norm(products))
        worst = max(worst, one)
    return worst


def bend_of_pca(case: Case, f: Any, x: Tensor) -> float:
    """The length over which the objective bends."""
    if isinstance(f, PCAReconstruction):
        return 0.1
    return 0.3 * norm(x) if isinstance(f, PCAVariance) else 0.3 / float(f.lipschitz(x).max()) ** 0.5


def posed_gradient(make: Any, naive: Any, condition: Any, bend: Any) -> Any:
    """The gradient measure for objectives of directions, the case's tokens constant.

    make(case, tokens) builds the objective; naive(case, tokens in columns) its value from the definition.
    """

    def measure(subject: Any, case: Case) -> Measurement:
        outer = reference(case)
        token_sets = [columns(z) for (z,) in slices(outer.x())]
        return gradient_measure(
            lambda inner: make(inner, outer.x().to(inner.torch_dtype)),
            lambda inner, b: naive(inner, token_sets[b]),
            condition,
            bend,
        )(subject, variable(case))

    return measure


def spectrum(Z: Tensor) -> tuple[Array, Array]:
    """Eigenvalues of ZᵀZ, the largest first, and eigenvectors in columns: from the SVD of the tokens."""
    _, sigma, right = np.linalg.svd(Z.double().numpy(), full_matrices=True)
    values = np.zeros(right.shape[0])
    values[: len(sigma)] = sigma**2
    return values, right.T


def equalised(A: Array) -> Array:
    """An orthogonal matrix T with all diagonal entries of T A Tᵀ equal: a rotation settles one entry at a time."""
    T, A, mean = np.eye(len(A)), A.copy(), np.trace(A) / len(A)
    for _ in range(len(A) - 1):
        low, high = int(np.argmin(np.diag(A))), int(np.argmax(np.diag(A)))
        a, b, c = A[low, low] - mean, A[high, high] - mean, A[low, high]
        if low == high or b <= 0 or a >= 0:
            break
        t = (c + np.sqrt(c * c - a * b)) / b  # a root of a + 2 c t' + b t'² with t' = −t: entry "low" becomes the mean
        cos, sin = 1 / np.hypot(1, t), -t / np.hypot(1, t)
        G = np.eye(len(A))
        G[[low, low, high, high], [low, high, low, high]] = cos, sin, -sin, cos
        T, A = G @ T, G @ A @ G.T
    return T


def tangent_of_angle(x: Array, V: Array, C: int) -> float:
    """The tangent of the largest principal angle of the rows of x to the first C columns of V."""
    inside, outside = x @ V[:, :C], x @ V[:, C:]
    return float(np.linalg.norm(np.linalg.solve(inside, outside), 2))
