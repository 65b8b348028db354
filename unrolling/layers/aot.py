"""The attention-only transformer's layer: subspace attention with a skip, softmax or thresholded, and nothing else."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from objectives import Objective, SelectedEnergy

from ..base import UnrolledLayer
from ..errors import check_choice, check_input, real_number
from .mssa import MSSA

__all__ = ["AoT"]

_CHUNK = 1 << 21
"""Scores held at once."""


@final
class AoT(UnrolledLayer):
    r"""The attention-only layer: pulls every token along the subspaces in which it attends to something.

    Minimises
        softmax: MSSA's self-attention energy, keys frozen; threshold: $-\sum_k \sum_i t_{k,i}\,
        \bar{w}_{k,\pi_k(i)}^\top U_k^\top z_i$, the selection π, t and the keys frozen, by
        $Z + \eta \sum_k U_k W_k\, \varphi(W_k^\top W_k)$, $\varphi = \tau \cdot [\mathrm{softmax} > \tau]$
    In code
        ``x + η Σ_k softmax(s W_k W_kᵀ) W_k U_kᵀ``, or ``x + η Σ_k τ [P_k > τ] W_k U_kᵀ``, P_k that softmax; with
        τ ≥ ½ a token selects one token at most, found as the largest of its row
    What it denoises
        if every token selects itself in its own subspace and nothing in the others, the layer multiplies the signal by
        1 + ητ and leaves the noise as it is: the signal-to-noise ratio of every cluster grows by exactly that factor,
        and the layer is the gradient step on ``−½ τ Σ_k Σ_{i ∈ C_k} ‖w_{k,i}‖²``, only the selection frozen. It holds as
        long as the signal outweighs all cross terms, and ends: the keys grow with depth, so that noise selects too.
        The selection has to be frozen: even with constant keys thresholded attention is the gradient of no continuous
        function of the tokens, for it jumps along its thresholds.
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; returns like x
    Parameters
        form: "threshold" (the paper's theory) or "softmax" (its networks). threshold: τ in [½, 1). step_size: η, added.
        scale: s, 1 in the threshold form by default, p^(−1/2) in the softmax form. The others: as for MSSA.
    Source
        AoT, arXiv 2506.03790; the condition and the factor are derived here
    Differences from the authors' code
        their networks normalise the tokens before the attention, with a free output matrix: no step at x.

    Raises
    ------
        ValueError for forms, thresholds or sizes out of range and tokens of another dim; TypeError for another dtype.
    Claims
        aot.step.softmax, aot.step.threshold, aot.selection, aot.threshold.quadratic, aot.threshold.potential,
        aot.snr.threshold, aot.snr.every_depth, aot.snr.softmax
    """

    declares = "self-attention energy, keys frozen (softmax); linear energy, selection and keys frozen (threshold)"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        form: str = "threshold",
        threshold: float = 0.5,
        scale: float | None = None,
        step_size: float = 0.5,
        learnable_step: bool = True,
        basis: str = "orthonormal",
        U: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_choice("AoT", "form", form, ("threshold", "softmax"))
        if not 0.5 <= real_number("AoT", "threshold", threshold) < 1:
            raise ValueError(
                f"AoT: threshold must lie in [0.5, 1), so that a token selects one token at most, but is {threshold}."
            )
        if scale is None and form == "threshold":
            scale = 1.0
        self.attention = MSSA(
            dim,
            heads,
            head_dim,
            form="softmax",
            scale=scale,
            step_size=step_size,
            learnable_step=learnable_step,
            basis=basis,
            U=U,
        )
        self.dim, self.form, self.threshold = dim, form, float(threshold)

    @property
    def U(self) -> Tensor:
        """The bases, ``(heads, dim, head_dim)``."""
        return self.attention.U

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after one layer."""
        if self.form == "softmax":
            return self.attention(x)
        basis = self.attention.basis
        w = self._coordinates(x, basis)
        partner, amount = self._select(w)
        read = amount[..., None] * w.gather(-2, partner[..., None].expand_as(w))
        return x + self.attention.step * read.transpose(-3, -2).flatten(-2) @ basis.mT

    def _coordinates(self, x: Tensor, basis: Tensor) -> Tensor:
        heads, head_dim = self.attention.heads, self.attention.head_dim
        check_input("AoT", x, basis, heads)
        return (x @ basis).unflatten(-1, (heads, head_dim)).transpose(-3, -2)

    def selection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The token that every token selects in every head, and τ where it does, 0 where none exceeds τ.

        Both ``(..., heads, tokens)``; not differentiable.
        """
        partner, amount = self._select(self._coordinates(x, self.attention.basis))
        return partner, amount

    @torch.no_grad()
    def _select(self, w: Tensor) -> tuple[Tensor, Tensor]:
        each = max(1, _CHUNK // max(1, math.prod(w.shape[:-2]) * w.shape[-2]))
        partners, shares = [], []
        for rows in w.split(each, dim=-2):
            scores = self.attention.scale * (rows @ w.mT)
            top, partner = scores.max(dim=-1)
            partners.append(partner)
            shares.append(torch.exp(top - torch.logsumexp(scores, dim=-1)))
        share = torch.cat(shares, dim=-1)
        return torch.cat(partners, dim=-1), self.threshold * (share > self.threshold).to(w.dtype)

    def objective_at(self, x: Tensor) -> Objective:
        """The self-attention energy of the softmax form; the linear energy of what was selected at ``x``."""
        if self.form == "softmax":
            return self.attention.objective_at(x)
        partner, amount = self.selection(x)
        keys = (x.unsqueeze(-3) @ self.U).detach()
        return SelectedEnergy(self.U, partner, amount, keys, orthonormal=self.attention.orthonormal)

    def step_size_at(self, x: Tensor) -> Tensor:
        """η."""
        return self.attention.step.detach()

    def approximates_at(self, x: Tensor) -> Objective | None:
        """R_c, which the softmax form stands in for."""
        return self.attention.approximates_at(x) if self.form == "softmax" else None

    def extra_repr(self) -> str:
        """Form and threshold."""
        return f"form={self.form!r}, threshold={self.threshold}"
