"""The abstraction: an objective is a value, a hand-written gradient and, where known, a smoothness constant."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

from torch import Tensor

__all__ = ["CertifiedStep", "Objective", "beta_of", "certified_step_size", "lift", "project"]


class Objective(abc.ABC):
    """A scalar function of tokens, always minimised: where a paper maximises, the class holds the negative.

    ``value`` is the single source of truth; ``gradient`` is a second, independent piece of work that the
    checks hold against it. Subclasses are frozen dataclasses and final.

    Shapes
        x ``(..., tokens, dim)``; ``value`` returns ``(...)``, ``gradient`` a tensor like x, ``lipschitz`` ``(...)``
        or ``()``.
    """

    lipschitz_is_global: ClassVar[bool] = True
    """Whether the constant bounds the Hessian everywhere, or only at the point it was asked for."""

    @abc.abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """The objective at ``x``, one number for each leading index."""

    @abc.abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """The gradient of ``value`` in ``x``, in closed form, with the shape of ``x``."""

    @abc.abstractmethod
    def lipschitz(self, x: Tensor) -> Tensor | None:
        """An upper bound for the Hessian's spectral norm, or None where none is known."""


class CertifiedStep(NamedTuple):
    """A step size 1/L with the constant L behind it, and whether L holds everywhere or only near the point."""

    step_size: Tensor
    lipschitz: Tensor
    is_global: bool


def certified_step_size(objective: Objective, x: Tensor) -> CertifiedStep:
    """The step size 1/L of ``objective`` at ``x``.

    A gradient step κ with 0 < κ < 2/L lowers a function whose Hessian is bounded by L by at least
    ``κ (1 − κL/2) ‖∇f‖²``. ``is_global`` is False when L bounds the Hessian at ``x`` only: then the step is a
    sensible size and no guarantee.

    Raises
    ------
        ValueError if the objective knows no constant.

    >>> import torch
    >>> from objectives import CodingRate
    >>> certified_step_size(CodingRate(epsilon=0.5), torch.eye(4)).step_size.item()
    0.25
    """
    bound = objective.lipschitz(x)
    if bound is None:
        raise ValueError(f"{type(objective).__name__} knows no smoothness constant, so no step size is certified.")
    return CertifiedStep(1.0 / bound, bound, objective.lipschitz_is_global)


def beta_of(tokens: int, dim: int, epsilon: float | Tensor) -> float | Tensor:
    """``β(N, d, ε) = d / (N ε²)``, with the sizes of the very matrix it is applied to.

    >>> beta_of(8, 4, 0.5)
    2.0
    """
    return dim / (tokens * epsilon**2)


def project(x: Tensor, U: Tensor) -> Tensor:
    """The coordinates ``W_k = Z U_k`` in every subspace, by one matrix product.

    Shapes
        x ``(..., tokens, dim)``, U ``(heads, dim, head_dim)``; returns ``(..., heads, tokens, head_dim)``.
    """
    heads, dim, head_dim = U.shape
    flat = U.transpose(0, 1).reshape(dim, heads * head_dim)
    return (x @ flat).unflatten(-1, (heads, head_dim)).transpose(-3, -2)


def lift(w: Tensor, U: Tensor) -> Tensor:
    """``Σ_k W_k U_kᵀ``: from the coordinates in every subspace back to tokens, by one matrix product.

    Shapes
        w ``(..., heads, tokens, head_dim)``, U ``(heads, dim, head_dim)``; returns ``(..., tokens, dim)``.
    """
    heads, dim, head_dim = U.shape
    return w.transpose(-3, -2).flatten(-2) @ U.transpose(-2, -1).reshape(heads * head_dim, dim)
