"""Token statistics self-attention: every channel of every head shrunk by its own second moment, linear in tokens."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from objectives import Objective, PrefixVariationalRate, VariationalRate

from ..errors import check_positive_number
from ..subspace import SubspaceLayer, per_head

__all__ = ["TSSA"]

_SMALLEST = 1e-24
"""Squared length below which a channel counts as zero when it is normalised, as in the released code."""


@final
class TSSA(SubspaceLayer):
    r"""Token statistics self-attention: shares tokens out among heads and shrinks each channel by its second moment.

    Minimises
        $R_{var}(Z, \Pi \mid U)$, $\Pi$ frozen, by $Z - \kappa \sum_k \frac{d}{N \epsilon^2} U_k
        \mathrm{diag}(1 + \frac{d}{n_k \epsilon^2} s_k)^{-1} W_k \mathrm{diag}(\pi_k)$, $W_k = U_k^\top Z$;
        causal: at every token the rate of its prefix, $\Pi$ and the tokens before it frozen
    In code
        ``Π_ik = softmax_k(τ_k ‖W_k[i]‖²)``, W_k = x U_k; ``x − Σ_k κ (d/(Nε²)) Π_k ∘ W_k ∘ 1/(1 + (d/ε²) s_k/n_k) U_kᵀ``,
        s_k = Σ_j Π_jk W_k[j]², n_k = Σ_j Π_jk; causal: sums over j ≤ i and i for N
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; memberships ``(..., tokens, heads)``; returns like x
    Parameters
        eta: η, τ_k = 1/(2η) at first, then learned for each head (learnable_temperature). normalise_tokens: Π from
        channels of unit length over the tokens, as released. causal: no token sees a later one. basis="free" with U
        ``(heads, dim, dim)`` takes complete bases, for which R_var bounds MCR²'s compression. step_size, certified,
        tied, per_head_step and the others: as for :class:`unrolling.MSSA`; class_tokens: accepted and without effect,
        all tokens have memberships.
    Cost
        multiply-adds ``2 N d K p + N K p``; no N × N matrix, and no temporary larger than the tokens' coordinates
    Causal form
        token i moves by the gradient, at the last token, of prefix i's rate: each token descends its own objective,
        that of a prefix whose past is constant. With the past live the steps are the gradient of no function at all
        (their Jacobian is triangular), and nothing says that the rate of the whole sequence falls.
    Source
        ToST, arXiv 2412.17810, section 3; the causal form: its code for language
    Symbols
        step_size is their τ, temperature their 1/(2η) (``temp`` in the code)
    Differences from the authors' code
        d/ε² = 1, no 1/N, a free output matrix with bias, memberships from channels normalised over tokens (causal: over
        the prefix, plus a learned bias tied to the block size) and 1e-8 added to n_k. ``TSSA(epsilon=√d, step_size=N,
        normalise_tokens=True)`` is that update for an output matrix Uᵀ and no bias; gradients flow through Π in both.

    Raises
    ------
        ValueError for sizes, η, bases or steps out of range and tokens of another dim; TypeError for another dtype.
    Claims
        tssa.memberships, tssa.step, tssa.certified, tssa.released, tssa.channel, tssa.freezing, tssa.frozen_descends, tssa.cost,
        tssa.causal.step, tssa.causal.prefixes, tssa.causal.potential, tssa.causal.alignment
    """

    declares = "R_var, Π frozen; causal: the prefixes' R_var, Π and the past frozen"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        eta: float = 0.5,
        learnable_temperature: bool = True,
        normalise_tokens: bool = False,
        causal: bool = False,
        epsilon: float = 0.5,
        step_size: float = 1.0,
        learnable_step: bool = True,
        per_head_step: bool = False,
        certified: bool = False,
        tied: bool = True,
        output_bias: bool = False,
        basis: str = "orthonormal",
        class_tokens: int = 0,
        U: Tensor | None = None,
    ) -> None:
        check_positive_number("TSSA", "eta", eta)
        super().__init__(
            dim,
            heads,
            head_dim,
            form="exact",
            forms=("exact",),
            epsilon=epsilon,
            scale=None,
            step_size=step_size,
            learnable_step=learnable_step,
            per_head_step=per_head_step,
            certified=certified,
            tied=tied,
            output_bias=output_bias,
            basis=basis,
            class_tokens=class_tokens,
            U=U,
        )
        start = torch.full((self.heads,), 1.0 / (2.0 * eta), dtype=self.basis.dtype, device=self.basis.device)
        self.temperature = nn.Parameter(start, requires_grad=learnable_temperature)
        self.normalise_tokens, self.causal = normalise_tokens, causal

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after one layer."""
        return x + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """What the layer adds to the tokens; for blocks that normalise before it."""
        basis = self.basis
        w = self._coordinates(x, basis)
        shares = self._shares(w)
        kappa = per_head(self.kappa(self._bounds(shares)))
        return self._back(-kappa * self._shrunk(w, shares), basis)

    def memberships(self, x: Tensor) -> Tensor:
        """Π ``(..., tokens, heads)``: how much of every token each head holds; rows sum to 1."""
        return self._shares(self._coordinates(x, self.basis)).mT

    def _shares(self, w: Tensor) -> Tensor:
        """Π with the heads first, ``(..., heads, tokens)``, from the coordinates ``(..., heads, tokens, head_dim)``."""
        squares = w.square()
        if self.normalise_tokens:
            whole = squares.cumsum(-2) if self.causal else squares.sum(-2, keepdim=True)
            squares = squares / whole.clamp(min=_SMALLEST)
        return torch.softmax(self.temperature.unsqueeze(-1) * squares.sum(-1), dim=-2)

    def _shrunk(self, w: Tensor, shares: Tensor) -> Tensor:
        """``(d/(Nε²)) Π W / (1 + (d/ε²) s/n)``, the statistics s and n over all tokens or over each prefix."""
        smallest, rate = torch.finfo(w.dtype).tiny, self.dim / self.epsilon**2
        members = shares.unsqueeze(-1)
        if not self.causal:
            part = shares / shares.sum(-1, keepdim=True).clamp(min=smallest)
            moments = part.unsqueeze(-2) @ w.square()
            return (rate / w.shape[-2]) * members * (w / (1.0 + rate * moments))
        lengths = torch.arange(1, w.shape[-2] + 1, dtype=w.dtype, device=w.device).unsqueeze(-1)
        moments = (members * w.square()).cumsum(-2) / members.cumsum(-2).clamp(min=smallest)
        return (rate / lengths) * members * (w / (1.0 + rate * moments))

    def _bounds(self, shares: Tensor) -> float | Tensor:
        """L of every head; used for certified steps only, so it is not computed for others."""
        if not self.certified:
            return 0.0
        rate, tokens = self.dim / self.epsilon**2, shares.shape[-1]
        if self.causal:
            return rate * (shares / torch.arange(1, tokens + 1, dtype=shares.dtype, device=shares.device)).amax(-1)
        return rate / tokens * shares.amax(-1)

    def bounds_at(self, x: Tensor) -> float | Tensor:
        """``(d/(Nε²)) max_i Π_ik`` for every head k; causal: ``max_i (d/(iε²)) Π_ik``."""
        return self._bounds(self._shares(self._coordinates(x, self.basis)))

    def _declare(self, x: Tensor, weights: Tensor | None) -> Objective:
        Pi = self.memberships(x).detach()
        if self.causal:
            return PrefixVariationalRate.at(x, self.U, Pi, self.epsilon, weights, self.orthonormal)
        return VariationalRate(self.U, Pi, self.epsilon, weights, self.orthonormal)

    def approximates_at(self, x: Tensor) -> Objective | None:
        """The rate of the whole sequence, Π frozen, which the causal form stands in for; None for the other."""
        if not self.causal:
            return None
        return VariationalRate(self.U, self.memberships(x).detach(), self.epsilon, None, self.orthonormal)

    def extra_repr(self) -> str:
        """Sizes and options."""
        parts = [name for name in ("causal", "normalise_tokens") if getattr(self, name)]
        return ", ".join([super().extra_repr(), *parts])
