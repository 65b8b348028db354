"""Steps on the Stiefel manifold: points with orthonormal rows, which every step keeps orthonormal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from objectives import CertifiedStep, Objective

from .errors import check_choice, check_leading, check_rows
from .steps import over_tokens

__all__ = ["RiemannianStep", "certified_stiefel_step", "retract", "tangent"]


@final
@dataclass(frozen=True)
class RiemannianStep:
    r"""The gradient step on orthonormal frames: $X \leftarrow \mathrm{retract}(X - \kappa\,\mathrm{grad} f(X))$.

    The rows of x are orthonormal, x xᵀ = I (the columns of the papers' P = xᵀ). ``grad f = ∇f − sym(∇f xᵀ) x`` is the
    Euclidean gradient's projection onto the tangent space, sym(A) = ½(A + Aᵀ). Since y = x − κ grad f has
    ``y yᵀ = I + κ² grad f grad fᵀ``, both retractions are well conditioned for moderate steps:

    - "qr": Gram–Schmidt of the rows of y in their order, diagonal of R positive;
    - "polar": ``(y yᵀ)^(−½) y``, the nearest orthonormal frame, which treats all rows alike.

    They agree to first order and span the same subspace, so that objectives of the span get the same value.
    :func:`certified_stiefel_step` gives a step size whose descent is proved.

    Parameters
    ----------
        retraction: "qr" or "polar". tolerance: how far x xᵀ may be from I, the square root of the machine epsilon of the
        dtype by default.
    Shapes
        x ``(..., rows, dim)``, rows ≤ dim; step_size a number or ``(...)``
    Source
        Edelman, Arias and Smith 1998; Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds, 2008,
        examples 3.6.2 and 4.1.3.

    Raises
    ------
        ValueError for another retraction, rows that are not orthonormal, and more rows than features.
    Claims
        pca.riemannian.step, pca.riemannian.retraction, pca.riemannian.decrease, pca.riemannian.unit_step, pca.power

    >>> import torch
    >>> from objectives import PCAVariance
    >>> tokens, x = torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([[0.6, 0.8]])
    >>> y = RiemannianStep()(PCAVariance(tokens), x, 0.1)
    >>> bool((y @ y.mT - 1).abs() < 1e-6), bool(y[0, 0] > 0.6)
    (True, True)
    """

    retraction: str = "qr"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_choice("RiemannianStep", "retraction", self.retraction, ("qr", "polar"))

    def __call__(self, objective: Objective, x: Tensor, step_size: float | Tensor) -> Tensor:
        """``retract(x − κ grad f(x))``."""
        check_orthonormal_rows("RiemannianStep", x, self.tolerance)
        y = x - over_tokens(step_size) * tangent(x, objective.gradient(x))
        return retract(y, self.retraction)


def tangent(x: Tensor, direction: Tensor) -> Tensor:
    """The projection ``v − sym(v xᵀ) x`` onto the tangent space of orthonormal frames at x: ``u xᵀ`` is then skew."""
    check_rows("tangent", x=x, direction=direction)
    check_leading("tangent", 0, x=x, direction=direction)
    if x.shape[-2:] != direction.shape[-2:]:
        raise ValueError(
            f"tangent: x {tuple(x.shape)} and direction {tuple(direction.shape)} must both be (..., rows, dim) of one size."
        )
    product = direction @ x.mT
    return direction - 0.5 * (product + product.mT) @ x


def retract(y: Tensor, retraction: str = "qr") -> Tensor:
    """An orthonormal frame of the rows of y, which must be independent: "qr" (positive diagonal) or "polar".

    >>> import torch
    >>> retract(torch.tensor([[3.0, 4.0]]), "polar")
    tensor([[0.6000, 0.8000]])
    """
    check_choice("retract", "retraction", retraction, ("qr", "polar"))
    check_rows("retract", y=y)
    check_factored("retract", "y", y)
    if y.ndim < 2 or not 1 <= y.shape[-2] <= y.shape[-1]:
        raise ValueError(f"retract: y must be (..., rows, dim) with 1 ≤ rows ≤ dim, but has shape {tuple(y.shape)}.")
    if retraction == "polar":
        frame: Tensor = _Polar.apply(y)
        return frame
    frame, triangle = torch.linalg.qr(y.mT)
    signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(y.dtype)
    return (frame * signs.unsqueeze(-2)).mT


def certified_stiefel_step(objective: Objective, x: Tensor) -> CertifiedStep:
    r"""A step size for :class:`RiemannianStep` whose descent is proved: $\kappa = 1/(L + \Vert\nabla f(x)\Vert_2)$.

    With the polar retraction R and tangent η, σ the singular values of η: R is the projection of x + η onto the unit
    ball of the spectral norm, so that ‖R − x‖ ≤ ‖η‖; and the nuclear norm of R − (x + η) is Σ (√(1 + σ²) − 1) ≤ ½‖η‖².
    If L bounds the Hessian on that ball, η = −κ grad f gives

    ``f(R) ≤ f(x) − κ (1 − κ (L + ‖∇f(x)‖₂)/2) ‖grad f‖²``.

    For objectives of the span, as PCA's, the same holds with "qr". ``is_global`` is False when the objective's L holds
    near its point only; PCAReconstruction's, taken at an orthonormal x, holds on the ball, as is needed here.

    Source
        derived here, after Boumal, Absil and Cartis, IMA J. Numerical Analysis 39(1), 2019, lemma 2.7.

    Raises
    ------
        ValueError if the objective knows no constant, and as RiemannianStep.
    Claims
        pca.riemannian.decrease
    """
    check_orthonormal_rows("certified_stiefel_step", x, None)
    bound = objective.lipschitz(x)
    if bound is None:
        raise ValueError(f"{type(objective).__name__} knows no smoothness constant, so no step size is certified.")
    steepest = torch.linalg.matrix_norm(objective.gradient(x).detach(), 2)
    lipschitz = (bound + steepest).clamp(min=torch.finfo(x.dtype).tiny)
    return CertifiedStep(1.0 / lipschitz, lipschitz, objective.lipschitz_is_global)


def check_orthonormal_rows(owner: str, x: Tensor, tolerance: float | None) -> None:
    """Raise unless x is ``(..., rows, dim)`` with orthonormal rows."""
    check_rows(owner, x=x)
    if x.ndim < 2 or not 1 <= x.shape[-2] <= x.shape[-1]:
        raise ValueError(
            f"{owner}: x must be (..., rows, dim) with 1 ≤ rows ≤ dim, but has shape {tuple(x.shape)}: no more"
            " orthonormal rows than features."
        )
    rows = x.detach()
    limit = torch.finfo(x.dtype).eps ** 0.5 if tolerance is None else tolerance
    deviation = float((rows @ rows.mT - torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)).abs().max())
    if not deviation <= limit:
        raise ValueError(
            f"{owner}: the rows of x {tuple(x.shape)} are not orthonormal: max |x xᵀ − I| = {deviation:.3g}, tolerance"
            f" {limit:.3g}.\n  Start from unrolling.retract(x), which orthonormalises them."
        )


def check_factored(owner: str, name: str, y: Tensor) -> None:
    """Raise unless y can be factored: no half precision, and where its numbers can be read, finite."""
    if y.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"{owner}: {name} is {y.dtype}, which has no matrix factorisation; convert it: {name}.float().")
    if not y.is_meta and not torch.compiler.is_compiling() and not bool(torch.isfinite(y.detach()).all()):
        raise ValueError(f"{owner}: {name} {tuple(y.shape)} holds NaN or infinite entries.")


class _Polar(torch.autograd.Function):
    """The polar factor by SVD; its derivative by the same SVD, defined also where singular values are equal.

    With y = A Σ Bᵀ and u = A Bᵀ: ``du = A [(X − Xᵀ) / (σ_i + σ_j)] Bᵀ + A Σ⁻¹ Aᵀ dy (I − B Bᵀ)``, X = Aᵀ dy B. (Reverse
    mode through the singular vectors divides by differences σ_i − σ_j, which vanish at the start of every descent.)
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        left, sigma, right = torch.linalg.svd(y, full_matrices=False)
        ctx.save_for_backward(left, sigma, right)
        return left @ right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        left, sigma, right = ctx.saved_tensors
        turned = left.mT @ gradient
        inside = turned @ right.mT
        outside = (turned - inside @ right) / sigma.unsqueeze(-1)
        skew = (inside - inside.mT) / (sigma.unsqueeze(-1) + sigma.unsqueeze(-2))
        return left @ (skew @ right + outside)
