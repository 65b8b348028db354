"""Mirror descent: tokens that are dual variables, and the normalisation that maps them to primal ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from objectives import Objective

from .errors import check_count, real_number
from .steps import over_tokens

__all__ = ["EnergyLayerNorm", "MirrorStep"]


@final
@dataclass(frozen=True)
class MirrorStep:
    r"""The mirror step in its dual variables: $x \leftarrow x - \kappa \nabla f(g(x))$, $g = \nabla L$.

    With L convex and ψ = L* its conjugate this is mirror descent, ``∇ψ(g⁺) = ∇ψ(g) − κ ∇f(g)``, read at x = ∇ψ(g).
    It is not the gradient step on ``f ∘ g``, which has the Jacobian of g in front; since that Jacobian, the Hessian of
    L, is positive semidefinite, f(g(x)) falls all the same for small κ.

    Parameters
    ----------
        mirror: g, the gradient of a convex function, such as :class:`EnergyLayerNorm`; the identity gives GradientStep.
    Shapes
        x ``(..., tokens, dim)``; step_size a number or ``(...)``

    >>> from objectives import CodingRate
    >>> x = torch.eye(2, dtype=torch.float64)
    >>> MirrorStep(lambda x: 2 * x)(CodingRate(epsilon=1.0), x, 1.0).diagonal()
    tensor([0.6000, 0.6000], dtype=torch.float64)
    """

    mirror: Callable[[Tensor], Tensor]

    def __call__(self, objective: Objective, x: Tensor, step_size: float | Tensor) -> Tensor:
        """``x − κ ∇f(g(x))``."""
        return x - over_tokens(step_size) * objective.gradient(self.mirror(x))


@final
class EnergyLayerNorm(nn.Module):
    r"""LayerNorm with one gain for all features: the gradient of a convex function of the tokens.

    $g = \gamma (x - \bar{x}) / \sigma + \delta$, $\sigma^2 = \Vert x - \bar{x} \Vert^2 / D + \epsilon$, is $\nabla L$
    with $L = D \gamma \sigma + \delta^\top x$. Its Jacobian is symmetric, with eigenvalues 0 along (1, …, 1),
    γ ε/σ³ along x − x̄ and γ/σ on the rest. A gain for every feature, as usual, makes it asymmetric, and indefinite.

    Parameters
    ----------
        eps: ε > 0. The gain is exp(θ), so that it stays positive while learning; bias=False leaves δ out.
    Shapes
        x ``(..., tokens, dim)``; returns like x
    Source
        Energy Transformer, arXiv 2302.07253, its LayerNorm and the Lagrangian behind it
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        check_count("EnergyLayerNorm", "dim", dim)
        if not 0 < real_number("EnergyLayerNorm", "eps", eps) < float("inf"):
            raise ValueError(f"EnergyLayerNorm: eps must be positive and finite, but is {eps}.")
        self.dim, self.eps = dim, float(eps)
        self.log_gain = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    @property
    def gain(self) -> Tensor:
        """γ > 0."""
        return self.log_gain.exp()

    def forward(self, x: Tensor) -> Tensor:
        """The normalised tokens g."""
        centred = x - x.mean(-1, keepdim=True)
        g = self.gain * centred / self.deviation(x)[..., None]
        return g if self.bias is None else g + self.bias

    def deviation(self, x: Tensor) -> Tensor:
        """σ of every token, ``(..., tokens)``."""
        return (x.var(-1, correction=0) + self.eps).sqrt()

    def lagrangian(self, x: Tensor) -> Tensor:
        """L(x), ``(...)``."""
        total = self.dim * self.gain * self.deviation(x).sum(-1)
        return total if self.bias is None else total + (x @ self.bias).sum(-1)

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """The Jacobian ∂g/∂x at x, times v, token by token."""
        centred, sigma = x - x.mean(-1, keepdim=True), self.deviation(x)[..., None]
        along = (centred * v).sum(-1, keepdim=True) / (self.dim * sigma**2)
        return self.gain / sigma * (v - v.mean(-1, keepdim=True) - along * centred)
