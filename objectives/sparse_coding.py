"""Sparse coding: reconstruction by few atoms of a dictionary, and the penalties that make codes sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Composite, Objective, Proximable
from .errors import check_dense, check_like, check_matrix, check_positive, check_tokens

__all__ = ["L1", "NonNegativeL1", "Reconstruction", "sparse_coding"]


@final
@dataclass(frozen=True, eq=False)
class Reconstruction(Objective):
    r"""What a code leaves unexplained of the data: the smooth part of sparse coding. The variable is the code A.

    Minimises
        $\frac{1}{2} \Vert X - D A \Vert_F^2$
    In code
        ``½ ‖x_data − a Dᵀ‖²``: codes a and data in rows, atoms in the columns of D
    Gradient
        ``(a Dᵀ − x_data) D``; L = ‖D‖₂²
    Shapes
        a ``(..., tokens, atoms)``; dictionary D ``(dim, atoms)``; data ``(..., tokens, dim)``
    Source
        Gregor and LeCun, LISTA, 2010, eq. 1; CRATE, arXiv 2306.01129, eq. 16 with D square.

    Raises
    ------
        ValueError for a D or data that do not fit, or entries that are not finite.
    Claims
        sparse_coding.gradient, sparse_coding.smoothness
    """

    dictionary: Tensor
    data: Tensor

    def __post_init__(self) -> None:
        check_matrix("Reconstruction", "dictionary", self.dictionary, "(dim, atoms)")
        check_matrix("Reconstruction", "data", self.data, "(..., tokens, dim)")
        check_like("Reconstruction", "data", self.data, "the dictionary", self.dictionary)
        if self.dictionary.ndim != 2 or self.data.shape[-1] != self.dictionary.shape[0]:
            raise ValueError(
                f"Reconstruction: data (..., tokens, dim) = {tuple(self.data.shape)} does not fit the dictionary"
                f" (dim, atoms) = {tuple(self.dictionary.shape)}."
            )

    def residual(self, x: Tensor) -> Tensor:
        """``a Dᵀ − data``, ``(..., tokens, dim)``."""
        check_tokens("Reconstruction", x, self.dictionary.shape[1], expects="the dictionary", like=self.dictionary)
        if x.shape[-2] != self.data.shape[-2]:
            raise ValueError(
                f"Reconstruction: {x.shape[-2]} codes for {self.data.shape[-2]} tokens of data; there is one code a token."
            )
        return x @ self.dictionary.mT - self.data

    def value(self, x: Tensor) -> Tensor:
        """½‖a Dᵀ − data‖²."""
        return 0.5 * self.residual(x).square().sum((-2, -1))

    def gradient(self, x: Tensor) -> Tensor:
        """(a Dᵀ − data) D."""
        return self.residual(x) @ self.dictionary

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = ‖D‖₂², everywhere."""
        return torch.linalg.matrix_norm(self.dictionary.detach(), 2).square()


@final
@dataclass(frozen=True, eq=False)
class L1(Proximable):
    r"""The absolute values of all entries, weighted: ``λ ‖x‖₁``; its proximal operator is the soft threshold.

    Minimises
        $\lambda \Vert A \Vert_1$
    In code
        ``prox(x, η) = sign(x) max(|x| − η λ, 0)``
    Shapes
        x ``(..., tokens, dim)``
    Source
        Beck and Teboulle, FISTA, 2009, eq. 1.5.

    Raises
    ------
        ValueError for λ ≤ 0.
    Claims
        sparse_coding.prox
    """

    weight: float | Tensor

    def __post_init__(self) -> None:
        check_positive("L1", "weight", self.weight)

    def value(self, x: Tensor) -> Tensor:
        """λ‖x‖₁."""
        check_tokens("L1", x)
        return self.weight * x.abs().sum((-2, -1))

    def prox(self, x: Tensor, step_size: float | Tensor) -> Tensor:
        """The soft threshold at ηλ."""
        _check_prox("L1", x, step_size)
        return x.sign() * (x.abs() - _over_tokens(step_size) * self.weight).clamp(min=0.0)


@final
@dataclass(frozen=True, eq=False)
class NonNegativeL1(Proximable):
    r"""``λ Σ x`` where no entry is negative, and infinite elsewhere; its proximal operator is a shifted ReLU.

    Minimises
        $\lambda \Vert A \Vert_1$ subject to $A \geq 0$
    In code
        ``prox(x, η) = max(x − η λ, 0)``
    Shapes
        x ``(..., tokens, dim)``
    Source
        CRATE, arXiv 2306.01129, eq. 17.

    Raises
    ------
        ValueError for λ ≤ 0.
    Claims
        sparse_coding.prox
    """

    weight: float | Tensor

    def __post_init__(self) -> None:
        check_positive("NonNegativeL1", "weight", self.weight)

    def value(self, x: Tensor) -> Tensor:
        """λΣx, infinite if an entry is negative."""
        check_tokens("NonNegativeL1", x)
        outside = (x < 0).any(-1).any(-1)
        total = self.weight * x.sum((-2, -1))
        return torch.where(outside, torch.full_like(total, torch.inf), total)

    def prox(self, x: Tensor, step_size: float | Tensor) -> Tensor:
        """ReLU(x − ηλ)."""
        _check_prox("NonNegativeL1", x, step_size)
        return (x - _over_tokens(step_size) * self.weight).clamp(min=0.0)


def sparse_coding(dictionary: Tensor, data: Tensor, weight: float | Tensor, *, nonnegative: bool = False) -> Composite:
    """``½‖data − a Dᵀ‖² + λ‖a‖₁``, with ``a ≥ 0`` if asked.

    >>> f = sparse_coding(torch.eye(2), torch.tensor([[3.0, 0.0]]), 1.0)
    >>> f.value(torch.tensor([[2.0, 0.0]])).item()  # the minimum: soft threshold of the data
    2.5
    """
    return Composite(Reconstruction(dictionary, data), (NonNegativeL1 if nonnegative else L1)(weight))


def _over_tokens(step_size: float | Tensor) -> float | Tensor:
    return step_size[..., None, None] if isinstance(step_size, Tensor) and step_size.ndim else step_size


def _check_prox(owner: str, x: object, step_size: object) -> None:
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        raise TypeError(f"{owner}: x must be a floating-point tensor, but is {getattr(x, 'dtype', type(x).__name__)}.")
    check_dense(owner, "x", x)
    if isinstance(step_size, bool) or not isinstance(step_size, (int, float, Tensor)):
        raise TypeError(f"{owner}: step_size must be a number or a tensor, but is a {type(step_size).__name__}.")
    if isinstance(step_size, int) and abs(step_size) >= 2**63:
        raise ValueError(f"{owner}: step_size must fit into 64 bits, but is {step_size}.")
