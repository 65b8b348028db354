"""The abstraction: an objective is a value, a hand-written gradient and, where known, a smoothness constant."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from .errors import check_dense, check_epsilon, check_like, check_positive

__all__ = ["CertifiedStep", "Composite", "Objective", "Proximable", "beta_of", "certified_step_size", "lift", "project"]


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


class Proximable(abc.ABC):
    """A term that need not be smooth but has a proximal operator in closed form: ``‖·‖₁``, a constraint.

    Shapes
        as for :class:`Objective`.
    """

    @abc.abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """The term at ``x``; infinite outside a constraint."""

    @abc.abstractmethod
    def prox(self, x: Tensor, step_size: float | Tensor) -> Tensor:
        """``argmin_z g(z) + ‖z − x‖² / (2 step_size)``; ``step_size`` a number, or one for each leading index."""


@final
@dataclass(frozen=True, eq=False)
class Composite(Objective):
    r"""A smooth objective plus a term with a proximal operator.

    Minimises
        $f(Z) + g(Z)$
    In code
        ``smooth.value(x) + nonsmooth.value(x)``
    Gradient
        of the smooth part only, which is what proximal steps need: ``smooth.gradient``. ``gradient`` itself is refused.
    Shapes
        as its parts
    Source
        Beck and Teboulle, FISTA, SIAM J. Imaging Sciences 2(1), 2009, eq. 2.1.

    Raises
    ------
        TypeError when asked for its gradient.
    Claims
        sparse_coding.prox, ista.step
    """

    smooth: Objective
    nonsmooth: Proximable

    def value(self, x: Tensor) -> Tensor:
        """f(x) + g(x)."""
        return self.smooth.value(x) + self.nonsmooth.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        """Refused: the sum is not differentiable."""
        raise TypeError(
            f"Composite: {type(self.nonsmooth).__name__} has no gradient; take a proximal step (unrolling.ProximalStep),"
            " or ask .smooth.gradient."
        )

    def lipschitz(self, x: Tensor) -> Tensor | None:
        """The constant of the smooth part: proximal steps κ ≤ 1/L lower the sum."""
        return self.smooth.lipschitz(x)


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
    if not callable(getattr(objective, "lipschitz", None)):
        raise TypeError(f"certified_step_size: objective must be an Objective, but is a {type(objective).__name__}.")
    if not isinstance(x, Tensor):
        raise TypeError(f"certified_step_size: x must be a torch.Tensor, but is a {type(x).__name__}.")
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(
            f"certified_step_size: x must be (..., tokens, dim) and not empty, but has shape {tuple(x.shape)}."
        )
    bound = objective.lipschitz(x)
    if bound is None:
        raise ValueError(f"{type(objective).__name__} knows no smoothness constant, so no step size is certified.")
    return CertifiedStep(1.0 / bound, bound, objective.lipschitz_is_global)


def beta_of(tokens: int, dim: int, epsilon: float | Tensor) -> float | Tensor:
    """``β(N, d, ε) = d / (N ε²)``, with the sizes of the very matrix it is applied to.

    >>> beta_of(8, 4, 0.5)
    2.0
    """
    for name, value in (("tokens", tokens), ("dim", dim)):
        check_positive("beta_of", name, value)
    check_epsilon("beta_of", epsilon)
    return dim / (tokens * epsilon**2)


def project(x: Tensor, U: Tensor) -> Tensor:
    """The coordinates ``W_k = Z U_k`` in every subspace, by one matrix product.

    Shapes
        x ``(..., tokens, dim)``, U ``(heads, dim, head_dim)``; returns ``(..., heads, tokens, head_dim)``.
    """
    _check_bases("project", "x", x, U)
    if x.ndim < 2 or x.shape[-1] != U.shape[1]:
        raise ValueError(f"project: x must be (..., tokens, dim = {U.shape[1]}), but has shape {tuple(x.shape)}.")
    heads, dim, head_dim = U.shape
    flat = U.transpose(0, 1).reshape(dim, heads * head_dim)
    return (x @ flat).unflatten(-1, (heads, head_dim)).transpose(-3, -2)


def lift(w: Tensor, U: Tensor) -> Tensor:
    """``Σ_k W_k U_kᵀ``: from the coordinates in every subspace back to tokens, by one matrix product.

    Shapes
        w ``(..., heads, tokens, head_dim)``, U ``(heads, dim, head_dim)``; returns ``(..., tokens, dim)``.
    """
    _check_bases("lift", "w", w, U)
    if w.ndim < 3 or w.shape[-3] != U.shape[0] or w.shape[-1] != U.shape[2]:
        raise ValueError(
            f"lift: w must be (..., heads = {U.shape[0]}, tokens, head_dim = {U.shape[2]}), but has shape {tuple(w.shape)}."
        )
    heads, dim, head_dim = U.shape
    return w.transpose(-3, -2).flatten(-2) @ U.transpose(-2, -1).reshape(heads * head_dim, dim)


def _check_bases(owner: str, name: str, value: Tensor, U: Tensor) -> None:
    for label, tensor in ((name, value), ("U", U)):
        if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
            kind = str(tensor.dtype) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise TypeError(f"{owner}: {label} must be a floating-point tensor, but is {kind}.")
        check_dense(owner, label, tensor)
    if U.ndim != 3:
        raise ValueError(f"{owner}: U must be (heads, dim, head_dim), but has shape {tuple(U.shape)}.")
    check_like(owner, name, value, "U", U)
