"""Objectives of class tokens that read other tokens: the rate of PCA in several subspaces, and a joint sequence's share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Objective, beta_of, lift, project
from .coding_rate import head_bound, rate, rate_gradient, sum_heads, weigh
from .errors import check_basis, check_epsilon, check_matrix, check_optional_count, check_tokens, check_weights
from .pca import largest_eigenvalue

__all__ = ["ClassTokensOnly", "SubspacePCARate"]


@final
@dataclass(frozen=True, eq=False)
class SubspacePCARate(Objective):
    r"""Minus PCA's rate of class directions, taken in several subspaces and summed.

    Minimises
        $-\sum_k \frac{1}{2} \log\det(I_C + \frac{C}{N \epsilon^2} Q_k^\top W_k W_k^\top Q_k)$, $Q_k = U_k^\top Q$ the
        directions in subspace k, $W_k = U_k^\top Z$ the tokens there, constant
    In code
        ``−Σ_k w_k ½ logdet(I_C + β B_kᵀB_k)``, B_k = W_k q_kᵀ, W_k = tokens U_k, q_k = x U_k, β = C/(N ε²)
    Gradient
        ``−Σ_k w_k β (I_C + β B_kᵀB_k)⁻¹ B_kᵀ W_k U_kᵀ``; L = β max_k |w_k| ‖W_k‖₂² ‖[U_1 … U_K]‖₂²
    Shapes
        x ``(..., directions, dim)``; U ``(heads, dim, head_dim)``; tokens ``(..., N, dim)``; weights w ``(..., heads)``
    Parameters
        epsilon, dim: as for :class:`PCARate`. weights, orthonormal, orthonormal_tolerance: as for
        :class:`SubspaceCodingRate`. One head with U = I is PCARate.
    Source
        DEPICT, arXiv 2411.03033, section 3 (cross-attention of several heads); cost linear in tokens.

    Raises
    ------
        ValueError for ε ≤ 0, bases that are not orthonormal, empty or non-finite tokens, another dim.
    Claims
        depict.rate.gradient, depict.rate.smoothness, depict.step.exact, depict.sign
    """

    U: Tensor
    tokens: Tensor
    epsilon: float | Tensor = 0.5
    dim: int | None = None
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        owner = "SubspacePCARate"
        check_epsilon(owner, self.epsilon)
        check_optional_count(owner, "dim", self.dim, "the C in β = C/(N ε²)")
        check_basis(owner, self.U, self.orthonormal, self.orthonormal_tolerance)
        check_matrix(owner, "tokens", self.tokens, "(..., N, dim)")
        check_tokens(owner, self.tokens, self.U.shape[-2])
        check_weights(owner, self.weights, self.U)

    def beta(self, x: Tensor) -> float | Tensor:
        """β(N, C, ε): the size of a head's products of tokens and directions."""
        return beta_of(self.tokens.shape[-2], self.dim or x.shape[-2], self.epsilon)

    def value(self, x: Tensor) -> Tensor:
        """Minus the heads' rates in nats, summed."""
        return -sum_heads(rate(self._products(x)[0], self.beta(x)), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """−Σ_k β (I + β B_kᵀB_k)⁻¹ B_kᵀ W_k U_kᵀ."""
        products, w = self._products(x)
        return -lift(weigh(rate_gradient(products, self.beta(x)).mT @ w, self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = β max_k |w_k| ‖W_k‖₂² ‖[U_1 … U_K]‖₂², everywhere."""
        per_head = largest_eigenvalue(project(self.tokens, self.U))
        per_head = per_head if self.weights is None else per_head * self.weights.detach().abs()
        return self.beta(x) * per_head.amax(-1) * head_bound(self.U, None, self.orthonormal)

    def _products(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_tokens("SubspacePCARate", x, self.U.shape[-2])
        w = project(self.tokens, self.U)
        return w @ project(x, self.U).mT, w


@final
@dataclass(frozen=True, eq=False)
class ClassTokensOnly(Objective):
    r"""An objective of the leading tokens of a sequence; the others do not enter, and do not move.

    Minimises
        $f(Z_{:C})$, the first C tokens of Z
    In code
        ``objective.value(x[..., :class_tokens, :])``
    Gradient
        the objective's own on the first C tokens, zero on the others; the same L
    Shapes
        x ``(..., tokens, dim)`` with more than ``class_tokens`` tokens or as many
    Source
        bookkeeping: a layer on [class tokens; patch tokens] that moves the class tokens only.

    Raises
    ------
        ValueError for a count below 1 and for fewer tokens; TypeError for something that is no objective.
    Claims
        depict.step.exact, depict.step.softmax
    """

    objective: Objective
    class_tokens: int

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise TypeError(
                f"ClassTokensOnly: objective must be an Objective, but is a {type(self.objective).__name__}."
            )
        if isinstance(self.class_tokens, bool) or not isinstance(self.class_tokens, int) or self.class_tokens < 1:
            raise ValueError(f"ClassTokensOnly: class_tokens must be a positive integer, but is {self.class_tokens!r}.")

    def value(self, x: Tensor) -> Tensor:
        """The objective at the first C tokens."""
        return self.objective.value(self._leading(x))

    def gradient(self, x: Tensor) -> Tensor:
        """Its gradient on the first C tokens, zero on the others."""
        moved = self.objective.gradient(self._leading(x))
        still = torch.zeros_like(x[..., self.class_tokens :, :]).expand(*moved.shape[:-2], -1, -1)
        return torch.cat([moved, still], dim=-2)

    def lipschitz(self, x: Tensor) -> Tensor | None:
        """The objective's own."""
        return self.objective.lipschitz(self._leading(x))

    def _leading(self, x: Tensor) -> Tensor:
        check_tokens("ClassTokensOnly", x)
        if x.shape[-2] < self.class_tokens:
            raise ValueError(
                f"ClassTokensOnly: x has {x.shape[-2]} tokens, fewer than the {self.class_tokens} class tokens.\n"
                f"  x is (..., tokens, dim) = {tuple(x.shape)}, class tokens first."
            )
        return x[..., : self.class_tokens, :]
