"""Rate reduction: what coding all tokens costs more than coding each class by itself; all of it negated, to minimise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Composite, Objective, beta_of
from .coding_rate import CodingRate, SubspaceCodingRate, rate, rate_gradient
from .errors import (
    check_basis,
    check_dense,
    check_epsilon,
    check_matrix,
    check_member_count,
    check_memberships,
    check_optional_count,
    check_positive,
    check_tokens,
)
from .sparse_coding import L1

__all__ = [
    "LinearisedRateReduction",
    "RateReduction",
    "SubspaceRateReduction",
    "one_hot_memberships",
    "relaxed_sparse_rate_reduction",
    "soft_memberships",
    "sparse_rate_reduction",
]


@final
@dataclass(frozen=True, eq=False)
class RateReduction(Objective):
    r"""The negative of MCR²'s rate reduction ΔR: the paper maximises ΔR, a descent step here raises it.

    Minimises
        $-\Delta R = \sum_k \frac{n_k}{2N} \log\det(I + \frac{d}{n_k \epsilon^2} Z \mathrm{diag}(\pi_k) Z^\top) - R(Z)$,
        $n_k = \sum_i \pi_{ik}$
    In code
        ``Σ_k (n_k/N) ½ logdet(I + (d/ε²) Y_kᵀY_k) − R(x)``, Y_k = diag(√(π_k/n_k)) x, each on its smaller side;
        a class without members counts nothing. Memory ``N d K``, cost ``N d min(N, d) (K + 1)``
    Gradient
        ``Σ_k (d/(Nε²)) diag(π_k) x (I + (d/(n_kε²)) xᵀdiag(π_k)x)⁻¹ − α x (I + α xᵀx)⁻¹``, α = d/(Nε²)
    Smoothness
        L = 9α/8. The Hessian of class k's rate lies in [−1/8, 1] α diag(π_k), whose sum over k is [−1/8, 1] α; that of
        R in [−1/8, 1] α too. As K grows no smaller L will do: at x = s I, N = d = K tokens each a class of its own,
        Nαs² = 3, the curvature along x is −((1 − 3/K)/(1 + 3/K)² + 1/8) α
    Shapes
        x ``(..., tokens, dim)``; memberships Π ``(..., tokens, classes)``, rows on the simplex, held constant
    Source
        MCR², arXiv 2006.08558, section 2; ReduNet, arXiv 2105.10446, section 2. The constant L is ours.
    Symbols
        the released code of MCR² calls ε² ``eps`` and adds 1e-8 to n_k.

    Raises
    ------
        ValueError for ε ≤ 0, memberships off the simplex or of other sizes, empty, NaN or infinite tokens.
    Claims
        rate_reduction.value, rate_reduction.gradient, rate_reduction.nonnegative, rate_reduction.smoothness,
        rate_reduction.one_hot, redunet.step.recomputed

    >>> labels = one_hot_memberships(torch.tensor([0, 1]), dtype=torch.float64)
    >>> f = RateReduction(labels, epsilon=1.0)
    >>> round(f.value(torch.eye(2, dtype=torch.float64)).item(), 12)  # ½ log 3 − log 2
    -0.143841036226
    """

    memberships: Tensor
    epsilon: float | Tensor = 0.5
    membership_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_epsilon("RateReduction", self.epsilon)
        check_memberships("RateReduction", self.memberships, self.membership_tolerance)

    def _alpha(self, x: Tensor) -> float | Tensor:
        check_tokens("RateReduction", x)
        check_member_count("RateReduction", x, self.memberships)
        return beta_of(x.shape[-2], x.shape[-1], self.epsilon)

    def _classes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n_k/N ``(..., classes)``, √(π_k/n_k) ``(..., classes, tokens, 1)`` and the scaled tokens Y_k."""
        counts, shares = member_shares(self.memberships)
        roots = shares.mT.clamp(min=0).sqrt().unsqueeze(-1)
        return counts / x.shape[-2], roots, roots * x.unsqueeze(-3)

    def expansion(self, x: Tensor) -> Tensor:
        """R(x), the rate of all tokens together, in nats."""
        return rate(x, self._alpha(x))

    def compression(self, x: Tensor) -> Tensor:
        """R_c(x | Π), the rates of the classes, each weighted by its share of the tokens, in nats."""
        self._alpha(x)
        weight, _, y = self._classes(x)
        return (weight * rate(y, x.shape[-1] / self.epsilon**2)).sum(-1)

    def value(self, x: Tensor) -> Tensor:
        """−ΔR(x) = R_c(x | Π) − R(x)."""
        return self.compression(x) - self.expansion(x)

    def gradient(self, x: Tensor) -> Tensor:
        """The compression's gradient less the expansion's."""
        alpha = self._alpha(x)
        weight, roots, y = self._classes(x)
        per_class = weight[..., None, None] * roots * rate_gradient(y, x.shape[-1] / self.epsilon**2)
        return per_class.sum(-3) - rate_gradient(x, alpha)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = 9α/8, everywhere."""
        return torch.as_tensor(1.125 * self._alpha(x), dtype=x.dtype, device=x.device)


@final
@dataclass(frozen=True, eq=False)
class SubspaceRateReduction(Objective):
    r"""The negative of CRATE's rate reduction R − R_c, the smooth part of its sparse rate reduction.

    Minimises
        $R_c(Z \mid U) - R(Z)$
    In code
        ``SubspaceCodingRate(U, ε).value(x) − CodingRate(ε).value(x)``: β is p/(N ε²) in the first, d/(N ε²) in the second
    Gradient
        the difference of theirs; L = max(α + β b/8, α/8 + β b), α = d/(Nε²), β = p/(Nε²), b = ‖[U_1 … U_K]‖₂² (1 for
        orthonormal U): the Hessians of R and R_c lie in [−α/8, α] and [−βb/8, βb]. At x = 0 the curvature is −α on
        directions outside the span of U, which is at least 8/9 of L there
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``
    Source
        CRATE, arXiv 2306.01129, eq. 9 without its ℓ0 term; the sign of R − R_c: coding_rate.subspaces.papers_beta

    Raises
    ------
        ValueError as SubspaceCodingRate.
    Claims
        rate_reduction.subspaces.gradient, rate_reduction.sparse
    """

    U: Tensor
    epsilon: float | Tensor = 0.5
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_epsilon("SubspaceRateReduction", self.epsilon)
        check_basis("SubspaceRateReduction", self.U, self.orthonormal, self.orthonormal_tolerance)

    def _parts(self, x: Tensor) -> tuple[SubspaceCodingRate, CodingRate]:
        check_tokens("SubspaceRateReduction", x, self.U.shape[-2])
        return SubspaceCodingRate(self.U, self.epsilon, orthonormal=False), CodingRate(self.epsilon)

    def value(self, x: Tensor) -> Tensor:
        """R_c(x | U) − R(x) in nats."""
        compression, expansion = self._parts(x)
        return compression.value(x) - expansion.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        """∇R_c − ∇R."""
        compression, expansion = self._parts(x)
        return compression.gradient(x) - expansion.gradient(x)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = max(α + βb/8, α/8 + βb), everywhere."""
        compression, expansion = self._parts(x)
        beta = compression.beta(x) if self.orthonormal else compression.lipschitz(x)
        alpha = expansion.lipschitz(x)
        return torch.maximum(alpha + 0.125 * beta, 0.125 * alpha + beta)


@final
@dataclass(frozen=True, eq=False)
class LinearisedRateReduction(Objective):
    r"""The negative rate reduction, linear in the Gram matrices of all tokens and of the classes: ReduNet's operators.

    Minimises
        $\frac{1}{2} \sum_i (\sum_k \gamma_k \pi_{ik}\, z_i^\top C_k z_i - z_i^\top E z_i)$, $E$, $C_k$ and $\pi$ constant
    In code
        ``½ Σ_i (Σ_k γ_k Π_ik ⟨x_i, x_i C_k⟩ − ⟨x_i, x_i E⟩)``; with E = α(I + αGᵀ)⁻¹ and C_k of a training set, the
        derivatives of R and R_c in the Gram matrices there, this is −ΔR to first order in them, up to a constant
    Gradient
        ``Σ_k γ_k diag(π_k) x C_k − x E``; L ≤ ‖E‖₂ + max_k |γ_k| ‖C_k‖₂, the rows of Π being on the simplex
    Shapes
        x ``(..., tokens, dim)``; E ``(dim, dim)``, C ``(classes, dim, dim)``, both symmetric; gamma ``(classes,)``;
        memberships ``(..., tokens, classes)``
    Source
        ReduNet, arXiv 2105.10446, section 3 (its layer, for tokens outside the training set); read as an energy here

    Raises
    ------
        ValueError for operators that are not symmetric, sizes that do not fit, memberships off the simplex.
    Claims
        redunet.step.constructed
    """

    E: Tensor
    C: Tensor
    gamma: Tensor
    memberships: Tensor

    def __post_init__(self) -> None:
        owner = "LinearisedRateReduction"
        for name, matrix, axes in (("E", self.E, "(dim, dim)"), ("C", self.C, "(classes, dim, dim)")):
            check_matrix(owner, name, matrix, axes)
            off = (
                float((matrix - matrix.mT).detach().abs().max()) if matrix.shape[-1] == matrix.shape[-2] else torch.inf
            )
            if not off <= torch.finfo(matrix.dtype).eps ** 0.5 * float(matrix.detach().abs().max()):
                raise ValueError(
                    f"{owner}: {name} {tuple(matrix.shape)} must be symmetric {axes}: max |M − Mᵀ| = {off:.3g}."
                )
        if self.C.shape[-1] != self.E.shape[-1] or self.gamma.shape != self.C.shape[:1]:
            raise ValueError(
                f"{owner}: E {tuple(self.E.shape)}, C {tuple(self.C.shape)} and gamma {tuple(self.gamma.shape)} must be"
                " (dim, dim), (classes, dim, dim) and (classes,)."
            )
        check_memberships(owner, self.memberships, classes=self.C.shape[0])

    def gradient(self, x: Tensor) -> Tensor:
        """Σ_k γ_k diag(π_k) x C_k − x E."""
        check_tokens("LinearisedRateReduction", x, self.E.shape[-1], expects="E", like=self.E)
        check_member_count("LinearisedRateReduction", x, self.memberships)
        weight = (self.gamma * self.memberships).mT.unsqueeze(-1)
        return (weight * (x.unsqueeze(-3) @ self.C)).sum(-3) - x @ self.E

    def value(self, x: Tensor) -> Tensor:
        """½ Σ_i (Σ_k γ_k Π_ik x_iᵀC_kx_i − x_iᵀEx_i)."""
        check_tokens("LinearisedRateReduction", x, self.E.shape[-1], expects="E", like=self.E)
        check_member_count("LinearisedRateReduction", x, self.memberships)
        forms = torch.einsum("...nd,kde,...ne->...nk", x, self.C, x)
        whole = torch.einsum("...nd,de,...ne->...", x, self.E, x)
        return 0.5 * ((self.gamma * self.memberships * forms).sum((-2, -1)) - whole)

    def lipschitz(self, x: Tensor) -> Tensor:
        """‖E‖₂ + max_k |γ_k| ‖C_k‖₂, everywhere."""
        norms = torch.linalg.matrix_norm(self.C.detach(), 2)
        return torch.linalg.matrix_norm(self.E.detach(), 2) + (self.gamma.detach().abs() * norms).max()


def sparse_rate_reduction(x: Tensor, U: Tensor, epsilon: float | Tensor, weight: float | Tensor) -> Tensor:
    r"""The negative of CRATE's objective as it is reported: ``−(R(x) − R_c(x | U) − λ ‖x‖₀)``, one number a token set.

    ``‖x‖₀`` counts the entries that are not exactly zero. Smaller is better; it has no useful gradient: optimise
    :func:`relaxed_sparse_rate_reduction`.

    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; returns ``(...)``
    Source
        CRATE, arXiv 2306.01129, eq. 9
    Claims
        rate_reduction.sparse
    """
    check_positive("sparse_rate_reduction", "weight", weight)
    return SubspaceRateReduction(U, epsilon).value(x) + weight * torch.count_nonzero(x.detach(), dim=(-2, -1)).to(
        x.dtype
    )


def relaxed_sparse_rate_reduction(U: Tensor, epsilon: float | Tensor, weight: float | Tensor) -> Composite:
    """``R_c(x | U) − R(x) + λ ‖x‖₁``: the sparse rate reduction, negated, with ℓ1 for ℓ0, for proximal steps.

    >>> f = relaxed_sparse_rate_reduction(torch.eye(2).unsqueeze(0), 1.0, 0.5)
    >>> f.value(torch.eye(2)).item()  # one head of all features: R_c = R, and ‖I‖₁ = 2
    1.0
    """
    return Composite(SubspaceRateReduction(U, epsilon), L1(weight))


def one_hot_memberships(labels: Tensor, classes: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Π of hard labels: integers ``(..., tokens)`` to ``(..., tokens, classes)``.

    Raises
    ------
        ValueError for labels that are negative, too large or not integers.

    >>> one_hot_memberships(torch.tensor([1, 0]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    if (
        not isinstance(labels, Tensor)
        or labels.dtype.is_floating_point
        or labels.dtype == torch.bool
        or labels.is_complex()
        or not labels.ndim
        or not labels.numel()
    ):
        raise ValueError("one_hot_memberships: labels must be an integer tensor (..., tokens), and not empty.")
    check_dense("one_hot_memberships", "labels", labels)
    check_optional_count("one_hot_memberships", "classes", classes, "the number of columns")
    count = int(labels.max()) + 1 if classes is None else classes
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise ValueError(
            f"one_hot_memberships: labels run from {int(labels.min())} to {int(labels.max())}, but must lie in"
            f" 0 … {count - 1} for {count} classes."
        )
    hot = torch.arange(count, device=labels.device) == labels.unsqueeze(-1)
    return hot.to(torch.get_default_dtype() if dtype is None else dtype)


def soft_memberships(x: Tensor, C: Tensor, sharpness: float | Tensor) -> Tensor:
    """ReduNet's estimate for tokens without labels: ``π̂_i = softmax_k(−λ ‖C_k z_i‖)``.

    C_k shrinks what lies in class k's span, so that the class with the smallest ``‖C_k z‖`` fits best.

    Shapes
        x ``(..., tokens, dim)``; C ``(classes, dim, dim)``; returns ``(..., tokens, classes)``
    Source
        ReduNet, arXiv 2105.10446, section 3
    Claims
        redunet.memberships
    """
    check_matrix("soft_memberships", "C", C, "(classes, dim, dim)")
    check_tokens("soft_memberships", x, C.shape[-1], expects="C", like=C)
    if C.shape[-2] != C.shape[-1]:
        raise ValueError(f"soft_memberships: C must be (classes, dim, dim), but has shape {tuple(C.shape)}.")
    check_positive("soft_memberships", "sharpness", sharpness)
    lengths = torch.linalg.vector_norm(x.unsqueeze(-3) @ C.mT, dim=-1)
    return torch.softmax(-sharpness * lengths.mT, dim=-1)


def member_shares(memberships: Tensor) -> tuple[Tensor, Tensor]:
    """n_k ``(..., classes)`` and Π_ik/n_k ``(..., tokens, classes)``, 0 in a class without members; both constant."""
    fixed = memberships.detach()
    counts = fixed.sum(-2)
    return counts, fixed / counts.clamp(min=torch.finfo(fixed.dtype).tiny).unsqueeze(-2)
