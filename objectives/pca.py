"""PCA as compression: what the directions of a principal subspace maximise, with the directions as the variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from .base import Objective, beta_of
from .coding_rate import rate, rate_gradient
from .errors import check_epsilon, check_matrix, check_optional_count, check_single, check_tokens

__all__ = ["PCARate", "PCAReconstruction", "PCAVariance", "SeparableRate"]


@final
@dataclass(frozen=True, eq=False)
class PCAReconstruction(Objective):
    r"""What is lost of the tokens when they are coded by their products with a few directions: PCA's classical loss.

    Minimises
        $f(P) = \Vert Z - P P^\top Z \Vert_F^2$, tokens Z constant, one direction a column of P
    In code
        ``‖Z − Z xᵀx‖²``, Z = tokens, x = Pᵀ with one direction a row
    Gradient
        for any x, orthonormal or not, ``2 (x xᵀ A_S + A x − 2 x S)`` with S = ZᵀZ, A_S = x S, A = x S xᵀ; computed as
        ``−2 (x Eᵀ Z + (x Zᵀ) E)``, E = Z − Z xᵀx. For orthonormal rows it is ``−2 x S (I − xᵀx)``: tangent, and the
        Riemannian gradient of :class:`PCAVariance`, for then f = tr S − tr(x S xᵀ).
    Smoothness
        at x only: ``4 λ₁ max(3σ², 1 + 2σ²)`` with σ = ‖x‖₂, λ₁ = ‖Z‖₂²: the Hessian is −4 tr(V S Vᵀ) plus a form that
        grows with σ². It is largest at σ = 1 on the convex hull of the orthonormal x.
    Minimisers
        over all x, no constraint needed: Z xᵀx has rank at most C, so that f ≥ Σ_{c>C} λ_c (Eckart and Young), with
        equality for orthonormal rows that span the top-C eigenspace of S.
    Shapes
        x ``(..., directions, dim)``; tokens ``(..., N, dim)``; value ``(...)``
    Source
        Pearson 1901; DEPICT, arXiv 2411.03033, section 3.

    Raises
    ------
        ValueError for empty, NaN or infinite tokens or directions, another dim; TypeError for other types.
    Claims
        pca.values, pca.reconstruction.gradient, pca.smoothness, pca.optimum, pca.span, pca.stationary
    """

    lipschitz_is_global: ClassVar[bool] = False

    tokens: Tensor

    def __post_init__(self) -> None:
        check_matrix("PCAReconstruction", "tokens", self.tokens, "(..., N, dim)")

    def value(self, x: Tensor) -> Tensor:
        """‖Z − Z xᵀx‖²."""
        return self._residual(x).square().sum((-2, -1))

    def gradient(self, x: Tensor) -> Tensor:
        """−2 (x Eᵀ Z + (x Zᵀ) E), E the residual."""
        residual = self._residual(x)
        return -2.0 * ((x @ residual.mT) @ self.tokens + (x @ self.tokens.mT) @ residual)

    def lipschitz(self, x: Tensor) -> Tensor:
        """A bound for the Hessian at x, and wherever ‖·‖₂ is no larger than there."""
        squared = largest_eigenvalue(x)
        return 4.0 * largest_eigenvalue(self.tokens) * torch.maximum(3.0 * squared, 1.0 + 2.0 * squared)

    def _residual(self, x: Tensor) -> Tensor:
        check_tokens("PCAReconstruction", x, self.tokens.shape[-1], expects="tokens", like=self.tokens)
        return self.tokens - (self.tokens @ x.mT) @ x


@final
@dataclass(frozen=True, eq=False)
class PCAVariance(Objective):
    r"""Minus the variance of the tokens along a few directions: PCA maximises it over orthonormal ones.

    Minimises
        $-\mathrm{tr}(P^\top S P)$, $S = Z Z^\top$, tokens Z constant
    In code
        ``−‖Z xᵀ‖²``, x = Pᵀ with one direction a row
    Gradient
        ``−2 x S = −2 (x Zᵀ) Z``: minus twice the cross-attention, without softmax, of the directions to the tokens;
        linear in the tokens and concave. L = 2 λ₁. Without orthonormal rows unbounded below.
    Shapes
        x ``(..., directions, dim)``; tokens ``(..., N, dim)``; value ``(...)``
    Source
        Hotelling 1933; DEPICT, arXiv 2411.03033, section 3.

    Raises
    ------
        as PCAReconstruction
    Claims
        pca.values, pca.variance.gradient, pca.smoothness, pca.optimum, pca.span, pca.stationary, pca.cross_attention
    """

    tokens: Tensor

    def __post_init__(self) -> None:
        check_matrix("PCAVariance", "tokens", self.tokens, "(..., N, dim)")

    def value(self, x: Tensor) -> Tensor:
        """−tr(x S xᵀ)."""
        check_tokens("PCAVariance", x, self.tokens.shape[-1], expects="tokens", like=self.tokens)
        return -(self.tokens @ x.mT).square().sum((-2, -1))

    def gradient(self, x: Tensor) -> Tensor:
        """−2 (x Zᵀ) Z."""
        check_tokens("PCAVariance", x, self.tokens.shape[-1], expects="tokens", like=self.tokens)
        return -2.0 * ((x @ self.tokens.mT) @ self.tokens)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = 2 λ₁(S), everywhere."""
        return 2.0 * largest_eigenvalue(self.tokens)


@final
@dataclass(frozen=True, eq=False)
class PCARate(Objective):
    r"""Minus the coding rate of the tokens' coordinates along a few directions: PCA as compression.

    Minimises
        $-\frac{1}{2} \log\det(I_C + \frac{C}{N \epsilon^2} P^\top S P)$, $S = Z Z^\top$, tokens Z constant
    In code
        ``−½ logdet(I_C + β x S xᵀ)``, β = C/(N ε²), as the coding rate of ``Z xᵀ``, on its smaller side
    Gradient
        ``−β (I_C + β x S xᵀ)⁻¹ x S``; Hessian eigenvalues in [−β λ₁, β λ₁/8], so L = β λ₁
    On orthonormal rows
        it depends on their span only; its minimum is ``−½ Σ_{c≤C} log(1 + β λ_c)``, in the top-C eigenspace. The
        Riemannian gradient is ``−β (I + βA)⁻¹ x S (I − xᵀx)``, A = x S xᵀ, and a Riemannian step of size 1 spans
        ``x (I + β S)``: it is one block power iteration, and it never raises the objective, whatever β.
    Shapes
        x ``(..., directions, dim)``; tokens ``(..., N, dim)``; value ``(...)``
    Parameters
        epsilon: precision ε > 0 of the coordinates. dim: the C in β where it is not the number of directions.
    Source
        DEPICT, arXiv 2411.03033, section 3; cost ``2 N C d``, linear in tokens.

    Raises
    ------
        as PCAReconstruction, and ValueError for ε ≤ 0 and a dim below 1.
    Claims
        pca.values, pca.rate.gradient, pca.smoothness, pca.optimum, pca.span, pca.stationary, pca.power,
        pca.riemannian.unit_step

    >>> import torch
    >>> tokens = torch.diag(torch.tensor([3.0, 1.0]))
    >>> -PCARate(tokens, epsilon=0.5**0.5).value(torch.tensor([[1.0, 0.0]])).item()  # ½ log(1 + 9)
    1.1512...
    """

    tokens: Tensor
    epsilon: float | Tensor = 0.5
    dim: int | None = None

    def __post_init__(self) -> None:
        check_matrix("PCARate", "tokens", self.tokens, "(..., N, dim)")
        check_epsilon("PCARate", self.epsilon)
        check_optional_count("PCARate", "dim", self.dim, "the C in β = C/(N ε²)")

    def beta(self, x: Tensor) -> float | Tensor:
        """β(N, C, ε): the size of the coordinates."""
        return beta_of(self.tokens.shape[-2], self.dim or x.shape[-2], self.epsilon)

    def value(self, x: Tensor) -> Tensor:
        """Minus the rate of Z xᵀ, in nats."""
        return -rate(self._coordinates(x), self.beta(x))

    def gradient(self, x: Tensor) -> Tensor:
        """−β (I + β x S xᵀ)⁻¹ x S."""
        return -rate_gradient(self._coordinates(x), self.beta(x)).mT @ self.tokens

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = β λ₁(S), everywhere."""
        return self.beta(x) * largest_eigenvalue(self.tokens)

    def _coordinates(self, x: Tensor) -> Tensor:
        check_tokens("PCARate", x, self.tokens.shape[-1], expects="tokens", like=self.tokens)
        return self.tokens @ x.mT


@final
@dataclass(frozen=True, eq=False)
class SeparableRate(Objective):
    r"""Minus the rates of the directions, each coded by itself: close to PCA's rate, but not PCA.

    Minimises
        $-\sum_c \frac{1}{2} \log(1 + \frac{C}{N \epsilon^2} p_c^\top S p_c)$, $S = Z Z^\top$, tokens Z constant
    In code
        ``−Σ_c ½ log(1 + β ‖Z x_cᵀ‖²)``, β = C/(N ε²)
    Gradient
        row c: ``−β x_c S / (1 + β x_c S x_cᵀ)``; L = β λ₁
    On orthonormal rows
        inside one subspace the principal directions have the *smallest* separable rate (Hadamard), and the rows that
        equalise ``x_c S x_cᵀ`` the largest. The largest of all is ``(C/2) log(1 + (β/C) Σ_{c≤C} λ_c)``: by concavity
        and Ky Fan it is attained in the top-C eigenspace, by equalising rows, and only where the variance is maximal.
        So it finds PCA's subspace, but not PCA's directions.
    Shapes
        x ``(..., directions, dim)``; tokens ``(..., N, dim)``; value ``(...)``
    Parameters
        as for :class:`PCARate`
    Source
        derived here; the step of DEPICT, arXiv 2411.03033, for classes that do not see one another.

    Raises
    ------
        as PCARate
    Claims
        pca.values, pca.separable.gradient, pca.smoothness, pca.separable.maximum, pca.separable.principal
    """

    tokens: Tensor
    epsilon: float | Tensor = 0.5
    dim: int | None = None

    def __post_init__(self) -> None:
        check_matrix("SeparableRate", "tokens", self.tokens, "(..., N, dim)")
        check_epsilon("SeparableRate", self.epsilon)
        check_optional_count("SeparableRate", "dim", self.dim, "the C in β = C/(N ε²)")

    def beta(self, x: Tensor) -> float | Tensor:
        """β(N, C, ε), as for the joint rate."""
        return beta_of(self.tokens.shape[-2], self.dim or x.shape[-2], self.epsilon)

    def value(self, x: Tensor) -> Tensor:
        """Minus the sum of the directions' rates, in nats."""
        squares = self._coordinates(x).square().sum(-2)
        return -0.5 * torch.log1p(self.beta(x) * squares).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """−β x_c S / (1 + β x_c S x_cᵀ), row by row."""
        beta, w = self.beta(x), self._coordinates(x)
        return -(beta * w / (1.0 + beta * w.square().sum(-2, keepdim=True))).mT @ self.tokens

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = β λ₁(S), everywhere."""
        return self.beta(x) * largest_eigenvalue(self.tokens)

    def _coordinates(self, x: Tensor) -> Tensor:
        check_tokens("SeparableRate", x, self.tokens.shape[-1], expects="tokens", like=self.tokens)
        return self.tokens @ x.mT


def largest_eigenvalue(tokens: Tensor) -> Tensor:
    """λ₁ of ``ZᵀZ`` for tokens ``(..., N, dim)``, from the smaller Gram matrix; not differentiated."""
    check_single("the largest eigenvalue", "tokens", tokens)
    z = tokens.detach()
    gram = z.mT @ z if z.shape[-2] >= z.shape[-1] else z @ z.mT
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0)
