"""Multi-head subspace self-attention: the step that compresses tokens onto subspaces, and its softmax stand-in."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from objectives import Objective, SelfAttentionEnergy, SubspaceCodingRate

from ..attend import attend
from ..errors import check_share
from ..kernels.mssa import contract_tokens
from ..subspace import SubspaceLayer, per_head

__all__ = ["MSSA"]


@final
class MSSA(SubspaceLayer):
    r"""Multi-head subspace self-attention: moves every token along its own coordinates in K subspaces.

    Minimises
        exact: $R_c(Z \mid U)$, by $Z - \kappa \sum_k \beta U_k W_k (I + \beta W_k^\top W_k)^{-1}$, $W_k = U_k^\top Z$;
        softmax: $-\sum_k \sum_i \mathrm{lse}_s(\bar{W}_k^\top w_{k,i})$, keys frozen, by
        $Z + \kappa \sum_k U_k W_k\, \mathrm{softmax}(s\, W_k^\top W_k)$
    In code
        exact ``x − Σ_k κ β W_k (I_p + β W_kᵀW_k)⁻¹ U_kᵀ``, β = p/(N ε²);
        softmax ``x + Σ_k κ softmax(s W_k W_kᵀ) W_k U_kᵀ``, W_k = x U_k
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; returns like x
    Parameters
        form: "exact" or "softmax". step_size: κ, subtracted in the exact form, added in the softmax form, where a
        negative κ subtracts: that one approximates descent on R_c, the positive one of the published blocks does not.
        per_head_step: a κ for every head; learnable_step. certified: κ in units of 1/L, kept in (0, 2/L) while
        learning. scale: s, p^(−1/2) by default. tied=False: a free output matrix, started at the bases; the descent
        claim is then withdrawn unless it equals them. basis: "orthonormal" (by parametrization, also while
        training) or "free". class_tokens: accepted and without effect here, since every token attends to all.
        residual=False: return the update alone, as published modules do whose blocks add the residual. dropout: of the
        attention weights, and behind a free output matrix, while training, softmax form only. projected=False: no output
        matrix at all. kernel: "plain" solves for every token, or stores the weights; "fast" inverts the p × p side once, or
        calls ``scaled_dot_product_attention``; "auto" chooses.
    Source
        CRATE, arXiv 2306.01129, eq. 11 (exact step), eq. 12 to 14 (MSSA)
    Symbols
        step_size is their κ, epsilon their ε; the released code calls [U_1 … U_K] ``qkv``.
    Differences from the authors' code
        it adds, with an untied output matrix with bias, after a LayerNorm: not a step at x on any energy here.

    Raises
    ------
        ValueError for sizes, forms or steps out of range and tokens of another dim; TypeError for another dtype.
    Claims
        mssa.step.exact, mssa.step.softmax, mssa.certified, mssa.cost, mssa.neumann, mssa.sign.skip_raises_rate,
        mssa.sign.minus_descends, mssa.alignment, kernels.mssa
    """

    declares = "R_c (exact); self-attention energy, keys frozen (softmax)"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        form: str = "exact",
        epsilon: float = 0.5,
        scale: float | None = None,
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
        projected: bool = True,
        dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__(
            dim,
            heads,
            head_dim,
            form=form,
            forms=("exact", "softmax"),
            epsilon=epsilon,
            scale=scale,
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
            projected=projected,
            kernel=kernel,
        )
        check_share("MSSA", "dropout", dropout)
        if dropout and form != "softmax":
            raise ValueError(
                f"MSSA: dropout is of attention weights, which form={form!r} does not have; pass dropout=0."
            )
        self.dropout = float(dropout)

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """The tokens after one layer; or ``query`` after it has read them, in the same bases (DEPICT's cross-attention)."""
        return self._moved(x if query is None else query, self.update(x, query))

    def update(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """What the layer adds to the tokens, or to ``query`` ``(..., queries, dim)``; for blocks that normalise before it."""
        basis = self.basis
        w = self._coordinates(x, basis)
        if query is not None:
            if self.form == "exact":
                raise ValueError(
                    "MSSA: a query reads the tokens in the softmax form only; for the exact one take MSCA."
                )
            q = self._coordinates(query, basis)
        else:
            q = w
        kappa = per_head(self.kappa(self._bounds(w)))
        if self.form == "exact":
            return self._back(-kappa * contract_tokens(w, self._beta(w), self.kernel), basis)
        drop = self.dropout if self.training else 0.0
        read = attend(q, w, w, self.scale, dropout=drop, kernel=self.kernel)
        moved = self._back(kappa * read, basis)
        return moved if self.tied else F.dropout(moved, drop)

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """``softmax(s W_k W_kᵀ)`` ``(..., heads, tokens, tokens)``: what the softmax form reads; rows sum to 1."""
        w = self._coordinates(x, self.basis)
        return torch.softmax(self.scale * (w @ w.mT), dim=-1)

    def _beta(self, w: Tensor) -> float:
        return self.head_dim / (w.shape[-2] * self.epsilon**2)

    def _bounds(self, w: Tensor) -> float | Tensor:
        # In the softmax form s max ‖key‖² bounds the covariance of the attended keys.
        return self._beta(w) if self.form == "exact" else self.scale * w.square().sum(-1).amax(-1)

    def bounds_at(self, x: Tensor) -> float | Tensor:
        """β in the exact form, s max_j ‖w_j‖² in the softmax form, for every head."""
        return self._bounds(self._coordinates(x, self.basis))

    def _declare(self, x: Tensor, weights: Tensor | None) -> Objective:
        if self.form == "exact":
            return SubspaceCodingRate(self.U, self.epsilon, weights=weights, orthonormal=self.orthonormal)
        keys = (x.unsqueeze(-3) @ self.U).detach()
        return SelfAttentionEnergy(self.U, keys, self.scale, weights, self.orthonormal)

    def approximates_at(self, x: Tensor) -> Objective | None:
        """R_c, which the softmax form stands in for."""
        if self.form == "exact":
            return None
        return SubspaceCodingRate(self.U, self.epsilon, orthonormal=self.orthonormal)
