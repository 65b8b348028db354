"""Token statistics self-attention: every channel of every head shrunk by its own second moment, linear in tokens."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives import Objective, PrefixVariationalRate, VariationalRate

from ..base import hold
from ..errors import check_count, check_positive_number, check_share
from ..kernels.tssa import Statistics, memberships, shrink
from ..subspace import SubspaceLayer, per_head

__all__ = ["TSSA"]


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
        tied, per_head_step, residual and the others: as for :class:`unrolling.MSSA`; class_tokens: accepted and without
        effect, all tokens have memberships. Departures of the released code, each of which withdraws the claim:
        coordinate_bias: W_k = x U_k + b_k. unit_step: the factor d/(Nε²) of the step left out. count_offset: added to
        n_k (1e-8 there). position_bias: a learned bias of the memberships for so many positions, causal form only.
        kernel: "plain" as written, "fast" by chunks that stay in the cache, "auto" chooses.
        dropout: of the channels' shrinkages, output_dropout of the update, while training.
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
        The options above make it that update for any matrices, number for number.

    Raises
    ------
        ValueError for sizes, η, bases or steps out of range and tokens of another dim; TypeError for another dtype.
    Claims
        tssa.memberships, tssa.step, tssa.certified, tssa.released, tssa.channel, tssa.freezing, tssa.frozen_descends, tssa.cost,
        tssa.causal.step, tssa.causal.prefixes, tssa.causal.potential, tssa.causal.alignment,
        kernels.tssa, kernels.tssa.causal
    """

    temperature: Tensor

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
        residual: bool = True,
        coordinate_bias: bool = False,
        unit_step: bool = False,
        count_offset: float = 0.0,
        position_bias: int | None = None,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        check_positive_number("TSSA", "eta", eta)
        if count_offset:
            check_positive_number("TSSA", "count_offset", count_offset)
        if position_bias is not None:
            check_count("TSSA", "position_bias", position_bias)
            if not causal:
                raise ValueError("TSSA: position_bias is a bias of positions in the causal form; pass causal=True.")
        for name, share in (("dropout", dropout), ("output_dropout", output_dropout)):
            check_share("TSSA", name, share)
        if unit_step and certified:
            raise ValueError("TSSA: certified steps are in units of 1/L, unit_step in units of Nε²/d; choose one.")
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
            residual=residual,
            coordinate_bias=coordinate_bias,
            kernel=kernel,
        )
        start = torch.full((self.heads,), 1.0 / (2.0 * eta), dtype=self.basis.dtype, device=self.basis.device)
        hold(self, "temperature", start, learnable_temperature)
        self.normalise_tokens, self.causal = normalise_tokens, causal
        self.unit_step, self.count_offset = unit_step, float(count_offset)
        self.dropout, self.output_dropout = float(dropout), float(output_dropout)
        self.position_bias = None
        if position_bias is not None:
            self.position_bias = nn.Parameter(torch.zeros(self.heads, position_bias, dtype=self.basis.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after one layer."""
        return self._moved(x, self.update(x))

    def update(self, x: Tensor) -> Tensor:
        """What the layer adds to the tokens; for blocks that normalise before it."""
        basis = self.basis
        w = self._coordinates(x, basis)
        bias = self._bias(w.shape[-2])
        kappa = per_head(self.kappa(self._bounds(w)))
        shrunk = shrink(w, self.temperature, -kappa, self._how(), bias, self.kernel)
        return F.dropout(self._back(shrunk, basis), self.output_dropout, self.training)

    def _how(self) -> Statistics:
        return Statistics(
            self.dim / self.epsilon**2,
            self.normalise_tokens,
            self.causal,
            self.unit_step,
            self.count_offset,
            self.dropout if self.training else 0.0,
        )

    def memberships(self, x: Tensor) -> Tensor:
        """Π ``(..., tokens, heads)``: how much of every token each head holds; rows sum to 1."""
        return self._shares(self._coordinates(x, self.basis)).mT

    def _shares(self, w: Tensor) -> Tensor:
        """Π with the heads first, ``(..., heads, tokens)``, from the coordinates ``(..., heads, tokens, head_dim)``."""
        return memberships(w, self.temperature, self._how(), self._bias(w.shape[-2]))

    def _bias(self, tokens: int) -> Tensor | None:
        if self.position_bias is None:
            return None
        places = self.position_bias.shape[-1]
        if tokens > places:
            raise ValueError(f"TSSA: {tokens} tokens, but position_bias is for {places} positions.")
        return self.head_dim * self.position_bias[:, :tokens]

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Π ``(..., heads, tokens)``: no map between tokens exists, each is weighted by its membership."""
        return self._shares(self._coordinates(x, self.basis))

    def _bounds(self, w: Tensor) -> float | Tensor:
        """L of every head; used for certified steps only, so it is not computed for others."""
        if not self.certified:
            return 0.0
        with torch.no_grad():
            shares = self._shares(w)
        rate, tokens = self.dim / self.epsilon**2, shares.shape[-1]
        if self.causal:
            return rate * (shares / torch.arange(1, tokens + 1, dtype=shares.dtype, device=shares.device)).amax(-1)
        return rate / tokens * shares.amax(-1)

    def bounds_at(self, x: Tensor) -> float | Tensor:
        """``(d/(Nε²)) max_i Π_ik`` for every head k; causal: ``max_i (d/(iε²)) Π_ik``."""
        return self._bounds(self._coordinates(x, self.basis))

    def _declare(self, x: Tensor, weights: Tensor | None) -> Objective:
        departures = {"unit_step": self.unit_step, "count_offset": self.count_offset > 0}
        departures["position_bias"] = self.position_bias is not None
        for name in (name for name, present in departures.items() if present):
            raise ValueError(f"TSSA: no descent is claimed with {name}: it departs from the equation.")
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
        parts = [name for name in ("causal", "normalise_tokens", "unit_step", "count_offset") if getattr(self, name)]
        return ", ".join([super().extra_repr(), *parts])
