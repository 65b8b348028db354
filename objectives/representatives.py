"""CBSA's objectives: compress all tokens by contracting a few representatives of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Objective, beta_of, lift, project
from .coding_rate import head_bound, rate, rate_gradient, sum_heads, weigh
from .errors import (
    check_basis,
    check_epsilon,
    check_heads,
    check_like,
    check_matrix,
    check_positive,
    check_tokens,
    check_weights,
)

__all__ = ["RepresentativeNorm", "RepresentativeRate", "SoftRepresentativeRate", "feasibility_gap"]


@final
@dataclass(frozen=True, eq=False)
class RepresentativeRate(Objective):
    r"""The coding rate of a few representatives of the tokens, with the extraction weights P held constant.

    Minimises
        $F(Z) = \sum_k \frac{1}{2} \log\det(I + \frac{p}{m \epsilon^2} Q_k Q_k^\top)$, $Q_k = U_k^\top Z A_k$
    In code
        ``Σ_k w_k ½ logdet(I_p + β Q_kᵀQ_k)``, Q_k = P_k x U_k with P_k = A_kᵀ, β = p/(m ε²)
    Gradient
        ``Σ_k w_k β P_kᵀ Q_k (I_p + β Q_kᵀQ_k)⁻¹ U_kᵀ``; L = β max_k |w_k| ‖P_k‖₂² ‖[U_1 … U_K]‖₂²
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; P ``(..., heads, m, tokens)``, any real matrix
    Parameters
        tokens: the m in β where it is not the number of representatives.
    Source
        CBSA, arXiv 2509.16875, eq. 4; P is frozen, as in its eq. 7. What freezing leaves out:
        :class:`SoftRepresentativeRate` and the claim representatives.freezing.

    Raises
    ------
        ValueError for ε ≤ 0, bases that are not orthonormal, tokens or P of other shapes, non-finite entries.
    Claims
        representatives.value, representatives.gradient, representatives.smoothness, representatives.freezing,
        representatives.feasibility
    """

    U: Tensor
    P: Tensor
    epsilon: float | Tensor = 0.5
    tokens: int | None = None
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_epsilon("RepresentativeRate", self.epsilon, self.tokens)
        check_basis("RepresentativeRate", self.U, self.orthonormal, self.orthonormal_tolerance)
        check_matrix("RepresentativeRate", "P", self.P, "(..., heads, m, tokens)")
        check_heads("RepresentativeRate", "P", self.P, self.U)
        check_weights("RepresentativeRate", self.weights, self.U)

    def beta(self) -> float | Tensor:
        """β(m, p, ε): the sizes of the representatives."""
        return beta_of(self.tokens or self.P.shape[-2], self.U.shape[-1], self.epsilon)

    def representatives(self, x: Tensor) -> Tensor:
        """Q_k = P_k x U_k, ``(..., heads, m, head_dim)``."""
        check_tokens("RepresentativeRate", x, self.U.shape[-2])
        _check_count("RepresentativeRate", x, self.P)
        return self.P @ project(x, self.U)

    def value(self, x: Tensor) -> Tensor:
        """F(x) in nats."""
        return sum_heads(rate(self.representatives(x), self.beta()), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Σ_k β P_kᵀ Q_k (I + β Q_kᵀQ_k)⁻¹ U_kᵀ."""
        contracted = rate_gradient(self.representatives(x), self.beta())
        return lift(weigh(self.P.mT @ contracted, self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = β max_k |w_k| ‖P_k‖₂² ‖[U_1 … U_K]‖₂², everywhere."""
        return self.beta() * extraction_bound(self.P, self.U, self.weights, self.orthonormal)


@final
@dataclass(frozen=True, eq=False)
class SoftRepresentativeRate(Objective):
    r"""CBSA's objective with nothing frozen: the extraction weights are a softmax of the tokens themselves.

    Minimises
        $F(Z) = \sum_k R(P_k W_k)$, $P_k = \mathrm{softmax}(s\, q_k W_k^\top)$ (rows), $q_k$ constant or $q_k = A W_k$
    In code
        as :class:`RepresentativeRate` with ``P_k = softmax(s q_k W_kᵀ)``; q is ``queries`` or ``pooling @ W_k``
    Gradient
        with G = β Q(I + βQᵀQ)⁻¹, J = P ∘ (G Wᵀ − rowsum(P ∘ G Wᵀ)):
        ``Σ_k [P_kᵀ G_k + s J_kᵀ q_k + s Aᵀ J_k W_k] U_kᵀ``, the last term only for pooled queries.
        No smoothness constant is known: the value is not convex and s multiplies the tokens twice.
    Shapes
        queries ``(..., heads, m, head_dim)`` or None; pooling ``(m, tokens)`` or None; exactly one of them
    Source
        CBSA, arXiv 2509.16875, eq. 4 with its eq. 5 not frozen; the derivation is ours.

    Raises
    ------
        ValueError as RepresentativeRate, and unless exactly one of queries and pooling is given.
    Claims
        representatives.full_gradient, representatives.freezing
    """

    U: Tensor
    scale: float | Tensor
    queries: Tensor | None = None
    pooling: Tensor | None = None
    epsilon: float | Tensor = 0.5
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        owner = "SoftRepresentativeRate"
        check_epsilon(owner, self.epsilon)
        check_positive(owner, "scale", self.scale)
        check_basis(owner, self.U, self.orthonormal, self.orthonormal_tolerance)
        if (self.queries is None) == (self.pooling is None):
            raise ValueError(f"{owner}: give exactly one of queries (constants) and pooling (queries = pooling @ W).")
        if self.queries is not None:
            check_matrix(owner, "queries", self.queries, "(..., heads, m, head_dim)")
            check_heads(owner, "queries", self.queries, self.U, self.U.shape[-1])
        else:
            check_matrix(owner, "pooling", self.pooling, "(m, tokens)")
            check_like(owner, "pooling", self.pooling, "U", self.U)  # type: ignore[arg-type]

    def extraction(self, x: Tensor) -> Tensor:
        """P_k = softmax(s q_k W_kᵀ), ``(..., heads, m, tokens)``, rows sum to 1."""
        check_tokens("SoftRepresentativeRate", x, self.U.shape[-2])
        if self.pooling is not None:
            _check_count("SoftRepresentativeRate", x, self.pooling)
        return self._parts(x)[2]

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w = project(x, self.U)
        q = self.queries if self.queries is not None else self.pooling @ w  # type: ignore[operator]
        return w, q, torch.softmax(self.scale * (q @ w.mT), dim=-1)

    def frozen_at(self, x: Tensor) -> RepresentativeRate:
        """The same objective with P held at its value at ``x``."""
        P = self.extraction(x).detach()
        return RepresentativeRate(self.U, P, self.epsilon, None, None, self.orthonormal, self.orthonormal_tolerance)

    def value(self, x: Tensor) -> Tensor:
        """F(x) in nats, P recomputed at ``x``."""
        P = self.extraction(x)
        return rate(P @ project(x, self.U), beta_of(P.shape[-2], self.U.shape[-1], self.epsilon)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """The frozen part plus the part through P."""
        self.extraction(x)
        w, q, P = self._parts(x)
        G = rate_gradient(P @ w, beta_of(P.shape[-2], self.U.shape[-1], self.epsilon))
        M = G @ w.mT
        J = P * (M - (P * M).sum(-1, keepdim=True))
        total = P.mT @ G + self.scale * (J.mT @ q)
        if self.pooling is not None:
            total = total + self.scale * (self.pooling.mT @ (J @ w))
        return lift(total, self.U)

    def lipschitz(self, x: Tensor) -> None:
        """None: no constant is known."""
        return None


@final
@dataclass(frozen=True, eq=False)
class RepresentativeNorm(Objective):
    r"""The energy of the representatives: CBSA's objective without the contraction, hence agent attention.

    Minimises
        $\frac{1}{2} \sum_k \Vert U_k^\top Z A_k \Vert_F^2$
    In code
        ``½ Σ_k w_k ‖P_k x U_k‖²``, P_k = A_kᵀ held constant
    Gradient
        ``Σ_k w_k P_kᵀ P_k W_k U_kᵀ``; L = max_k |w_k| ‖P_k‖₂² ‖[U_1 … U_K]‖₂²
    Shapes
        as :class:`RepresentativeRate`
    Source
        CBSA, arXiv 2509.16875, section 3.3 (agent attention as CBSA without contraction).

    Raises
    ------
        as RepresentativeRate
    Claims
        representatives.norm.gradient, cbsa.special.agent
    """

    U: Tensor
    P: Tensor
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_basis("RepresentativeNorm", self.U, self.orthonormal, self.orthonormal_tolerance)
        check_matrix("RepresentativeNorm", "P", self.P, "(..., heads, m, tokens)")
        check_heads("RepresentativeNorm", "P", self.P, self.U)
        check_weights("RepresentativeNorm", self.weights, self.U)

    def _representatives(self, x: Tensor) -> Tensor:
        check_tokens("RepresentativeNorm", x, self.U.shape[-2])
        _check_count("RepresentativeNorm", x, self.P)
        return self.P @ project(x, self.U)

    def value(self, x: Tensor) -> Tensor:
        """½ Σ_k ‖P_k x U_k‖²."""
        return sum_heads(0.5 * self._representatives(x).square().sum((-2, -1)), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Σ_k P_kᵀ P_k W_k U_kᵀ."""
        return lift(weigh(self.P.mT @ self._representatives(x), self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = max_k |w_k| ‖P_k‖₂² ‖[U_1 … U_K]‖₂², everywhere."""
        return extraction_bound(self.P, self.U, self.weights, self.orthonormal)


def feasibility_gap(objective: RepresentativeRate, x: Tensor) -> Tensor:
    """CBSA's constraint |R(Q_k) − R(W_k)| ≤ τ, measured: the gap of every head, in nats.

    β is each matrix's own, p/(m ε²) for the representatives and p/(N ε²) for the tokens.

    Shapes
        x ``(..., tokens, dim)``; returns ``(..., heads)``
    Source
        CBSA, arXiv 2509.16875, eq. 4. With random initial representatives the gap is several nats.
    Claims
        representatives.feasibility
    """
    if not isinstance(objective, RepresentativeRate):
        raise TypeError(
            f"feasibility_gap: objective must be a RepresentativeRate, but is a {type(objective).__name__}."
        )
    check_tokens("feasibility_gap", x, objective.U.shape[-2])
    w = project(x, objective.U)
    tokens_beta = beta_of(x.shape[-2], objective.U.shape[-1], objective.epsilon)
    return (rate(objective.representatives(x), objective.beta()) - rate(w, tokens_beta)).abs()


def extraction_bound(P: Tensor, U: Tensor, weights: Tensor | None, orthonormal: bool) -> Tensor:
    """``max_k |w_k| ‖P_k‖₂² ‖[U_1 … U_K]‖₂²``, the spectral norms by the smaller Gram matrix."""
    small = P @ P.mT if P.shape[-2] <= P.shape[-1] else P.mT @ P
    squared = torch.linalg.eigvalsh(small)[..., -1].clamp(min=0)
    per_head = squared if weights is None else squared * weights.detach().abs()
    return per_head.amax(-1) * head_bound(U, None, orthonormal)


def _check_count(owner: str, x: Tensor, P: Tensor) -> None:
    if x.shape[-2] != P.shape[-1]:
        raise ValueError(
            f"{owner}: x has {x.shape[-2]} tokens, but the extraction weights were made for {P.shape[-1]}.\n"
            f"  x is (..., tokens, dim) = {tuple(x.shape)}; the weights are (..., m, tokens) = {tuple(P.shape)}."
        )
