"""ReduNet's layer: an ascent step on the rate reduction, its operators built from tokens and their memberships."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives import LinearisedRateReduction, Objective, RateReduction, soft_memberships

from ..base import UnrolledLayer
from ..errors import check_choice, check_positive_number, check_tokens_for

__all__ = ["ReduNet"]


@final
class ReduNet(UnrolledLayer):
    r"""One layer of ReduNet: expands all tokens against each other and compresses each class, by fixed or fresh operators.

    Minimises
        recomputed: $-\Delta R(Z, \Pi)$, $\Pi$ frozen, by $Z + \kappa (E Z - \sum_k \gamma_k C_k Z \mathrm{diag}(\pi_k))$ with
        $E = \alpha (I + \alpha Z Z^\top)^{-1}$, $C_k = \alpha_k (I + \alpha_k Z \mathrm{diag}(\pi_k) Z^\top)^{-1}$ at $Z$
        itself; constructed: $\frac{1}{2} \sum_i (\sum_k \gamma_k \pi_{ik} z_i^\top C_k z_i - z_i^\top E z_i)$, $\Pi$ frozen,
        by the same step with the operators of a training set
    In code
        recomputed ``x + κ (α x (I + α xᵀx)⁻¹ − Σ_k (d/(Nε²)) diag(π_k) x (I + (d/(n_kε²)) xᵀdiag(π_k)x)⁻¹)``, α = d/(Nε²);
        constructed ``x + κ (x E − Σ_k γ_k diag(π_k) x C_k)``, γ_k = n_k/N. At the training set the two are one
    Shapes
        x ``(..., tokens, dim)``; E ``(dim, dim)``; C ``(classes, dim, dim)``; gamma ``(classes,)``; memberships
        ``(..., tokens, classes)``; returns like x
    Parameters
        E, C, gamma: operators, best from :meth:`construct`; buffers, constant. form: "recomputed" or "constructed".
        sharpness: λ in the estimate π̂ = softmax_k(−λ‖C_k z‖) of tokens without labels; with ``memberships=`` in the call
        nothing is estimated. normalise: tokens are brought to the unit sphere after the step, as published: the descent
        claim is then withdrawn. epsilon matters to the recomputed form only.
    Source
        ReduNet, arXiv 2105.10446, sections 2 and 3. Cost ``2 N d² (K + 1)`` recomputed, ``N d² (K + 1)`` constructed
    Symbols
        step_size is their η, sharpness their λ; κ L < 2 with L = 9α/8 raises ΔR for certain (redunet.ascent)
    Differences from the authors' code
        it normalises after every layer; its memberships at training time are the labels

    Raises
    ------
        ValueError for operators that do not fit or are not symmetric, steps, forms or tokens out of range, and when asked
        for its objective with normalise=True; TypeError for another dtype.
    Claims
        redunet.operators, redunet.memberships, redunet.step.recomputed, redunet.step.constructed, redunet.training_set,
        redunet.ascent, redunet.sphere
    """

    declares = "−ΔR, Π frozen (recomputed); its linearisation in the Gram matrices (constructed)"
    E: Tensor
    C: Tensor
    gamma: Tensor

    def __init__(
        self,
        E: Tensor,
        C: Tensor,
        gamma: Tensor,
        *,
        form: str = "recomputed",
        epsilon: float = 0.5,
        step_size: float = 0.5,
        learnable_step: bool = True,
        sharpness: float = 1.0,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        check_choice("ReduNet", "form", form, ("recomputed", "constructed"))
        for name, value in (("epsilon", epsilon), ("sharpness", sharpness), ("step_size", step_size)):
            check_positive_number("ReduNet", name, value)
        if E.ndim != 2 or C.ndim != 3 or gamma.ndim != 1:
            raise ValueError(
                f"ReduNet: E, C and gamma must be (dim, dim), (classes, dim, dim) and (classes,), but are {tuple(E.shape)},"
                f" {tuple(C.shape)} and {tuple(gamma.shape)}. ReduNet.construct(tokens, memberships) builds them."
            )
        self.dim, self.classes = E.shape[0], C.shape[0]
        self.form, self.epsilon, self.sharpness, self.normalise = form, float(epsilon), float(sharpness), normalise
        uniform = E.new_full((1, self.classes), 1.0 / self.classes)
        LinearisedRateReduction(E, C, gamma, uniform)  # refuses operators that do not fit or are not symmetric
        for name, operator in (("E", E), ("C", C), ("gamma", gamma)):
            self.register_buffer(name, operator.detach().clone())
        self.step = nn.Parameter(torch.tensor(float(step_size), dtype=E.dtype, device=E.device), learnable_step)

    @classmethod
    def construct(cls, x: Tensor, memberships: Tensor, *, epsilon: float = 0.5, **options: Any) -> ReduNet:
        """The layer whose operators are those of a training set x ``(tokens, dim)`` with its memberships.

        ``memberships`` ``(tokens, classes)`` come from labels by :func:`objectives.one_hot_memberships`; every class needs a
        member, or no token could be told to be outside it. The other arguments are the layer's.
        """
        if not isinstance(x, Tensor) or x.ndim != 2:
            raise ValueError("ReduNet: the training set must be a tensor (tokens, dim), without batch axes.")
        RateReduction(memberships, epsilon).value(x)  # refuses what does not fit
        if not bool((filled := memberships.sum(-2) > 0).all()):
            raise ValueError(
                f"ReduNet: classes {(~filled).nonzero().flatten().tolist()} of the training set have no members, so that no"
                " operator can be built for them. Leave them out of the memberships."
            )
        E, C, gamma = operators(x.detach(), memberships.detach(), epsilon)
        return cls(E, C, gamma, epsilon=epsilon, **options)

    def memberships(self, x: Tensor) -> Tensor:
        """π̂ ``(..., tokens, classes)``, estimated by the layer's own C_k; rows sum to 1."""
        check_tokens_for("ReduNet", x, self.dim, self.E.dtype, self.E)
        return soft_memberships(x, self.C, self.sharpness)

    def forward(self, x: Tensor, memberships: Tensor | None = None) -> Tensor:
        """The tokens after one layer; their memberships are estimated unless given."""
        Pi = self.memberships(x) if memberships is None else memberships
        moved = x + self.step * self._ascent(x, Pi)
        return F.normalize(moved, dim=-1) if self.normalise else moved

    def _ascent(self, x: Tensor, Pi: Tensor) -> Tensor:
        """``x E − Σ_k γ_k diag(π_k) x C_k``: by the operators held, or by solving with those of x."""
        check_tokens_for("ReduNet", x, self.dim, self.E.dtype, self.E)
        if tuple(Pi.shape[-2:]) != (x.shape[-2], self.classes):
            raise ValueError(
                f"ReduNet: memberships must be (..., tokens, classes) = (..., {x.shape[-2]}, {self.classes}), but have shape"
                f" {tuple(Pi.shape)}."
            )
        if self.form == "constructed":
            signed = torch.cat([self.E.unsqueeze(0), -self.gamma[:, None, None] * self.C])
            moved = (x @ signed.transpose(0, 1).flatten(-2)).unflatten(-1, (1 + self.classes, self.dim))
            return moved[..., 0, :] + (Pi.unsqueeze(-1) * moved[..., 1:, :]).sum(-2)
        weight = Pi.mT.unsqueeze(-1)
        rate, tokens = self.dim / self.epsilon**2, x.unsqueeze(-3)
        part = weight / weight.sum(-2, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        every = torch.cat([torch.full_like(part[..., :1, :, :], 1.0 / x.shape[-2]), part], dim=-3)
        identity = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        shrunk = torch.linalg.solve(identity + rate * (tokens.mT @ (every * tokens)), tokens, left=False)
        # Σ_k π_k = 1: the expansion is shared out among the classes, so that equal operators cancel and not their sums.
        return rate / x.shape[-2] * (weight * (shrunk[..., :1, :, :] - shrunk[..., 1:, :, :])).sum(-3)

    def objective_at(self, x: Tensor, memberships: Tensor | None = None) -> Objective:
        """−ΔR with Π frozen at x (recomputed), or its linearisation in the Gram matrices (constructed)."""
        if self.normalise:
            raise ValueError(
                "ReduNet: no descent is claimed: normalise=True brings the tokens to the unit sphere after the step. Use"
                " normalise=False for a gradient step."
            )
        Pi = (self.memberships(x) if memberships is None else memberships).detach()
        if self.form == "constructed":
            return LinearisedRateReduction(self.E, self.C, self.gamma, Pi)
        return RateReduction(Pi, self.epsilon)

    def step_size_at(self, x: Tensor) -> Tensor:
        """κ, the same for all tokens."""
        return self.step.detach()

    def approximates_at(self, x: Tensor) -> Objective | None:
        """−ΔR of the tokens themselves, which the constructed form stands in for; None for the other."""
        return RateReduction(self.memberships(x).detach(), self.epsilon) if self.form == "constructed" else None

    def extra_repr(self) -> str:
        """Sizes, form and options."""
        parts = f"dim={self.dim}, classes={self.classes}, form={self.form!r}, sharpness={self.sharpness}"
        return parts + (", normalise" if self.normalise else "")


def operators(x: Tensor, memberships: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """ReduNet's E ``(dim, dim)``, C ``(classes, dim, dim)`` and γ ``(classes,)`` of tokens and their memberships.

    By eigenvalues of the Gram matrices, which stay symmetric and positive where β‖x‖² drowns the identity.
    """
    counts, (tokens, dim) = memberships.sum(-2), x.shape
    rate = dim / epsilon**2
    grams = x.mT @ (memberships.mT.unsqueeze(-1) * x)
    sizes = rate / torch.cat([counts.new_full((1,), tokens), counts])[:, None]
    values, vectors = torch.linalg.eigh(torch.cat([(x.mT @ x).unsqueeze(0), grams]))
    inverses = vectors * (sizes / (1.0 + sizes * values.clamp(min=0))).unsqueeze(-2) @ vectors.mT
    return inverses[0], inverses[1:], counts / tokens
