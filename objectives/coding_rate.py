"""The lossy coding rate: of all tokens, of their coordinates in subspaces, and of single channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Objective, beta_of, lift, project
from .errors import check_basis, check_epsilon, check_single, check_tokens, check_weights

__all__ = ["ChannelRate", "CodingRate", "SubspaceCodingRate"]


@final
@dataclass(frozen=True, eq=False)
class CodingRate(Objective):
    r"""The lossy coding rate: the nats that a token takes, on average, to code all up to ε; a step contracts them.

    Minimises
        $R(Z) = \frac{1}{2} \log\det(I + \frac{d}{N \epsilon^2} Z^\top Z)$ (tokens in columns)
    In code
        ``½ logdet(I_d + β xᵀx) = ½ logdet(I_N + β x xᵀ)``, β = d/(N ε²), on the smaller side by Cholesky
    Gradient
        ``β x (I_d + β xᵀx)⁻¹``; Hessian eigenvalues in [−β/8, β], so L = β
    Shapes
        x ``(..., tokens, dim)``; value ``(...)``
    Parameters
        epsilon: precision ε > 0, in the units of the tokens. tokens: the N in β where it is not the number of rows.
    Source
        MCR², arXiv 2006.08558, eq. 2; ReduNet, arXiv 2105.10446. Cost ``N d min(N, d)``, linear in tokens.
    Symbols
        epsilon is their ε; the released code of MCR² calls ε² ``eps``.

    Raises
    ------
        ValueError for ε ≤ 0, empty, NaN or infinite tokens; TypeError for other types.
    Claims
        coding_rate.value, coding_rate.gradient, coding_rate.hessian, coding_rate.descent,
        coding_rate.singular_values, coding_rate.invariance, coding_rate.cost

    >>> import torch
    >>> round(CodingRate(epsilon=1.0).value(torch.eye(2, dtype=torch.float64)).item(), 12)  # log 2
    0.69314718056
    """

    epsilon: float | Tensor = 0.5
    tokens: int | None = None

    def __post_init__(self) -> None:
        check_epsilon("CodingRate", self.epsilon, self.tokens)

    def beta(self, x: Tensor) -> float | Tensor:
        """β(N, d, ε) at the sizes of ``x``."""
        return beta_of(self.tokens or x.shape[-2], x.shape[-1], self.epsilon)

    def value(self, x: Tensor) -> Tensor:
        """R(x) in nats."""
        check_tokens("CodingRate", x)
        return rate(x, self.beta(x))

    def gradient(self, x: Tensor) -> Tensor:
        """∇R = β x (I + β xᵀx)⁻¹."""
        check_tokens("CodingRate", x)
        return rate_gradient(x, self.beta(x))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """R(x) and ∇R by one factorisation: about two products ``xᵀx`` in all."""
        check_tokens("CodingRate", x)
        beta = self.beta(x)
        return _value_and_gradient(x, beta)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = β, everywhere."""
        return torch.as_tensor(self.beta(x), dtype=x.dtype, device=x.device)


@final
@dataclass(frozen=True, eq=False)
class SubspaceCodingRate(Objective):
    r"""The compression term: the coding rates of the tokens' coordinates in each subspace, summed.

    Minimises
        $R_c(Z \mid U) = \sum_k \frac{1}{2} \log\det(I + \frac{p}{N \epsilon^2} (U_k^\top Z)(U_k^\top Z)^\top)$
    In code
        ``Σ_k w_k ½ logdet(I_p + β W_kᵀW_k)``, W_k = x U_k, β = p/(N ε²)
    Gradient
        ``Σ_k w_k β W_k (I_p + β W_kᵀW_k)⁻¹ U_kᵀ``; L = β max|w_k| ‖[U_1 … U_K]‖₂² (the norm is 1 for orthonormal U)
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; weights w ``(..., heads)`` or None for ones
    Parameters
        tokens: the N in β where it is not the number of rows (``tokens=head_dim`` gives β = 1/ε², the linear
        attention of CBSA's eq. 12). orthonormal=False skips the check of U, orthonormal_tolerance sets its limit.
    Source
        CRATE, arXiv 2306.01129, eq. 8; the weights are ours: per-head step sizes.

    Raises
    ------
        ValueError for ε ≤ 0, bases that are not orthonormal, empty or non-finite tokens, another dim.
    Claims
        coding_rate.subspaces.value, coding_rate.subspaces.gradient, coding_rate.subspaces.smoothness,
        coding_rate.subspaces.fischer, coding_rate.subspaces.papers_beta
    """

    U: Tensor
    epsilon: float | Tensor = 0.5
    tokens: int | None = None
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_epsilon("SubspaceCodingRate", self.epsilon, self.tokens)
        check_basis("SubspaceCodingRate", self.U, self.orthonormal, self.orthonormal_tolerance)
        check_weights("SubspaceCodingRate", self.weights, self.U)

    def beta(self, x: Tensor) -> float | Tensor:
        """β(N, p, ε): the size of a head's coordinates, not of the tokens."""
        return beta_of(self.tokens or x.shape[-2], self.U.shape[-1], self.epsilon)

    def value(self, x: Tensor) -> Tensor:
        """R_c(x | U) in nats."""
        check_tokens("SubspaceCodingRate", x, self.U.shape[-2])
        return sum_heads(rate(project(x, self.U), self.beta(x)), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Σ_k β W_k (I + β W_kᵀW_k)⁻¹ U_kᵀ."""
        check_tokens("SubspaceCodingRate", x, self.U.shape[-2])
        return lift(weigh(rate_gradient(project(x, self.U), self.beta(x)), self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = β max|w_k| ‖[U_1 … U_K]‖₂², everywhere."""
        return self.beta(x) * head_bound(self.U, self.weights, self.orthonormal)


@final
@dataclass(frozen=True, eq=False)
class ChannelRate(Objective):
    r"""The coding rate read along fixed axes: every channel of every subspace coded by itself.

    Minimises
        $\sum_k \sum_c \frac{1}{2} \log(1 + \frac{p}{m \epsilon^2} \Vert u_{k,c}^\top Z \Vert^2)$ with m = p
    In code
        ``Σ_k w_k Σ_c ½ log(1 + β ‖W_k[:, c]‖²)``, β = p/(m ε²); by default m = p, so β = 1/ε²
    Gradient
        ``Σ_k w_k β W_k diag(1/(1 + β ‖W_k[:, c]‖²)) U_kᵀ``; L = β max|w_k| ‖[U_1 … U_K]‖₂²
    Shapes
        as for :class:`SubspaceCodingRate`; tokens: the m in β
    Source
        CBSA, arXiv 2509.16875, eq. 13 (its channel attention); ToST, arXiv 2412.17810, without memberships.

    Raises
    ------
        as SubspaceCodingRate
    Claims
        coding_rate.channels.gradient, cbsa.special.channel
    """

    U: Tensor
    epsilon: float | Tensor = 0.5
    tokens: int | None = None
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_epsilon("ChannelRate", self.epsilon, self.tokens)
        check_basis("ChannelRate", self.U, self.orthonormal, self.orthonormal_tolerance)
        check_weights("ChannelRate", self.weights, self.U)

    def beta(self, x: Tensor) -> float | Tensor:
        """β(m, p, ε), m = p unless ``tokens`` says otherwise."""
        head_dim = self.U.shape[-1]
        return beta_of(self.tokens or head_dim, head_dim, self.epsilon)

    def value(self, x: Tensor) -> Tensor:
        """The sum of the channels' rates in nats."""
        check_tokens("ChannelRate", x, self.U.shape[-2])
        squares = project(x, self.U).square().sum(-2)
        return sum_heads(0.5 * torch.log1p(self.beta(x) * squares).sum(-1), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Σ_k β W_k diag(1/(1 + β ‖column‖²)) U_kᵀ."""
        check_tokens("ChannelRate", x, self.U.shape[-2])
        beta, w = self.beta(x), project(x, self.U)
        shrunk = beta * w / (1.0 + beta * w.square().sum(-2, keepdim=True))
        return lift(weigh(shrunk, self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = β max|w_k| ‖[U_1 … U_K]‖₂², everywhere."""
        return self.beta(x) * head_bound(self.U, self.weights, self.orthonormal)


TALL = 4
"""Rows a column from which one product with the small inverse is faster than two triangular solves for every row."""


def rate(w: Tensor, beta: float | Tensor) -> Tensor:
    """``½ logdet(I + β wᵀw)`` on the smaller side; w ``(..., rows, columns)``, returns ``(...)``."""
    return _half_logdet(_factor(w, beta)[0])


def rate_gradient(w: Tensor, beta: float | Tensor) -> Tensor:
    """``β w (I + β wᵀw)⁻¹ = β (I + β w wᵀ)⁻¹ w`` on the smaller side."""
    return _divided(w, beta, *_factor(w, beta))


def _value_and_gradient(w: Tensor, beta: float | Tensor) -> tuple[Tensor, Tensor]:
    found = _factor(w, beta)
    return _half_logdet(found[0]), _divided(w, beta, *found)


def _half_logdet(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _divided(w: Tensor, beta: float | Tensor, factor: Tensor, by_rows: bool, squared: bool) -> Tensor:
    """``β w (L Lᵀ)⁻¹``. For many rows by the inverse: the Gram matrix's own rounding is amplified as much as its error.

    A factor that was found without squaring deserves the more accurate triangular solves.
    """
    if by_rows:
        return beta * torch.cholesky_solve(w, factor)
    if squared and w.shape[-2] >= TALL * w.shape[-1]:
        return w @ (beta * torch.cholesky_inverse(factor))
    return beta * torch.cholesky_solve(w.mT, factor).mT


def _factor(w: Tensor, beta: float | Tensor) -> tuple[Tensor, bool, bool]:
    """Lower triangular L with ``L Lᵀ = I + β G``, G the smaller Gram matrix; whether that is ``w wᵀ``, and was formed."""
    check_single("the coding rate", "x", w)
    by_rows = w.shape[-2] < w.shape[-1]
    tall = w.mT if by_rows else w
    gram = beta * (tall.mT @ tall)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram + identity)
    largest = gram.detach().diagonal(dim1=-2, dim2=-1).amax(-1)
    smallest = factor.detach().diagonal(dim1=-2, dim2=-1).square().amin(-1)
    trusted = (info == 0) & (largest * torch.finfo(gram.dtype).eps ** 0.5 <= smallest)
    squared = bool(trusted.all())
    if not squared:
        # Every squared pivot is at least 1, but rounding moves it by eps β‖w‖²: with tokens of low rank and large β‖w‖²
        # it is noise, negative or, worse, positive. The triangular factor of [√β w; I] is the same matrix, computed
        # without squaring the condition number.
        root = torch.as_tensor(beta, dtype=w.dtype, device=w.device).sqrt()
        stacked = torch.cat([root * tall, identity.expand(*tall.shape[:-2], *identity.shape)], dim=-2)
        upper = torch.linalg.qr(stacked).R
        factor = (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT
    return factor, by_rows, squared


def weigh(per_head: Tensor, weights: Tensor | None) -> Tensor:
    """Multiply ``(..., heads, rows, columns)`` by the weights of the heads."""
    return per_head if weights is None else per_head * weights[..., None, None]


def sum_heads(per_head: Tensor, weights: Tensor | None) -> Tensor:
    """Sum ``(..., heads)`` over heads with their weights."""
    return (per_head if weights is None else per_head * weights).sum(-1)


def head_bound(U: Tensor, weights: Tensor | None, orthonormal: bool) -> Tensor:
    """``max|w_k| ‖[U_1 … U_K]‖₂²``, the factor by which a head's smoothness constant grows; 1 for orthonormal U."""
    one = torch.ones((), dtype=U.dtype, device=U.device)
    largest = one if weights is None else weights.detach().abs().amax(-1)
    return largest if orthonormal else largest * torch.linalg.matrix_norm(U.transpose(0, 1).flatten(-2), 2) ** 2
