"""Symmetric self-attention: what attention becomes when it is the gradient of an energy of all tokens at once."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from objectives import AttentionEnergy, Objective, SymmetricEnergy, attention_curvature

from ..orthonormal import OrthonormalColumns
from ..subspace import SubspaceLayer, per_head

__all__ = ["SymmetricAttention", "both_ways"]

_CHUNK = 1 << 21
"""Scores held at once."""


@final
class SymmetricAttention(SubspaceLayer):
    r"""Symmetric self-attention: every token reads what it attends to and what attends to it, half of either.

    Minimises
        tied: $-\frac{1}{2} \sum_k \sum_i \mathrm{lse}_s(W_k^\top w_{k,i})$, nothing frozen, by
        $Z + \kappa \sum_k \frac{1}{2} U_k W_k (A_k + A_k^\top)$, $A_k = \mathrm{softmax}(s\, W_k^\top W_k)$;
        general: the same with $w_{k,i}$ for queries from $W^Q_k$ and keys from $W^K_k$, by
        $Z + \kappa \sum_k \frac{1}{2} (W_k^Q K_k A_k + W_k^K Q_k A_k^\top)$
    In code
        ``x + Σ_k κ ½ (P_k + P_kᵀ) W_k U_kᵀ``, P_k = softmax(s W_k W_kᵀ), W_k = x U_k; general
        ``x + Σ_k κ ½ (P_k K_k W_Qᵀ + P_kᵀ Q_k W_Kᵀ)``
    Shapes
        x ``(..., tokens, dim)``; U, W_K ``(heads, dim, head_dim)``; returns like x
    Parameters
        form: "tied" or "general", two matrices: U for the queries and W_K for the keys. exclude_self: no token attends
        to itself, as in the Energy Transformer. step_size: κ, added. certified: κ in units of 1/M and in (0, 2/M), M
        the energy's largest curvature from above over all tokens whatever: ½√(N + 2) tied, √N general. The energy then
        never rises, although no global Lipschitz constant exists: far tokens bend it without bound, but downwards.
        The others: as for :class:`unrolling.MSSA`, with the output always tied.
    Cost
        multiply-adds ``2 N d² + 3 N² d`` with Kp = d: a product more than MSSA. Scores are taken in chunks of rows,
        and taken again in the backward pass, so that no N × N matrix is stored.
    Source
        Energy Transformer, arXiv 2302.07253, its attention; tied to one matrix and halved here
    Differences from the authors' code
        theirs excludes the token itself, has two matrices, no half, and works on normalised tokens: that is
        :class:`unrolling.EnergyTransformer`.

    Raises
    ------
        ValueError for sizes, forms or steps out of range and tokens of another dim; TypeError for another dtype.
    Claims
        symmetric.step.tied, symmetric.step.general, symmetric.certified, symmetric.cost
    """

    declares = "self-attention energy, halved, nothing frozen"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        form: str = "tied",
        exclude_self: bool = False,
        scale: float | None = None,
        step_size: float = 1.0,
        learnable_step: bool = True,
        per_head_step: bool = False,
        certified: bool = False,
        basis: str = "orthonormal",
        U: Tensor | None = None,
        W_K: Tensor | None = None,
    ) -> None:
        super().__init__(
            dim,
            heads,
            head_dim,
            form=form,
            forms=("tied", "general"),
            epsilon=1.0,
            scale=scale,
            step_size=step_size,
            learnable_step=learnable_step,
            per_head_step=per_head_step,
            certified=certified,
            tied=True,
            output_bias=False,
            basis=basis,
            class_tokens=0,
            U=U,
        )
        if certified and step_size < 0:
            raise ValueError(
                f"SymmetricAttention: certified=True bounds the energy's curvature from above only, so step_size must be"
                f" in (0, 2), but is {step_size}."
            )
        self.exclude_self = exclude_self
        self._init_keys(W_K)

    def _init_keys(self, W_K: Tensor | None) -> None:
        if self.form == "tied":
            if W_K is not None:
                raise ValueError("SymmetricAttention: W_K belongs to form='general'; the tied form has one matrix, U.")
            return
        flat = torch.empty_like(self.basis.detach())
        if W_K is None:
            nn.init.orthogonal_(flat)
        elif not isinstance(W_K, Tensor) or W_K.shape != (self.heads, self.dim, self.head_dim):
            raise ValueError(
                "SymmetricAttention: W_K must be a tensor (heads, dim, head_dim) ="
                f" {(self.heads, self.dim, self.head_dim)}, but is"
                f" {tuple(W_K.shape) if isinstance(W_K, Tensor) else type(W_K).__name__}."
            )
        else:
            flat = W_K.detach().transpose(0, 1).flatten(-2).clone()
        if self.orthonormal:
            deviation = float(
                (flat.mT @ flat - torch.eye(flat.shape[-1], dtype=flat.dtype, device=flat.device)).abs().max()
            )
            if not deviation <= torch.finfo(flat.dtype).eps ** 0.5:
                raise ValueError(
                    f"SymmetricAttention: W_K is not orthonormal: max |WᵀW − I| = {deviation:.3g}. Orthonormalise it,"
                    " or pass basis='free'."
                )
        self.key_basis = nn.Parameter(flat)
        if self.orthonormal:
            parametrize.register_parametrization(self, "key_basis", OrthonormalColumns(flat.shape[-1]))

    @property
    def W_K(self) -> Tensor:
        """The matrices of the keys, ``(heads, dim, head_dim)``; U in the tied form."""
        if self.form == "tied":
            return self.U
        return self.key_basis.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after one layer."""
        return x + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """What the layer adds to the tokens."""
        basis = self.basis
        q = self._coordinates(x, basis)
        kappa = 0.5 * per_head(self.kappa(self._curvature(x.shape[-2])))
        if self.form == "tied":
            given, received = both_ways(q, q, self.scale, self.exclude_self)
            return self._back(kappa * (given + received), basis)
        keys = self.key_basis
        given, received = both_ways(q, self._coordinates(x, keys), self.scale, self.exclude_self)
        return self._back(kappa * given, basis) + self._back(kappa * received, keys)

    def _curvature(self, tokens: int) -> float:
        return attention_curvature(tokens, tied=self.form == "tied")

    def bounds_at(self, x: Tensor) -> float:
        """M, the largest curvature of the energy from above: ½√(N + 2) tied, √N general, for orthonormal bases."""
        return self._curvature(x.shape[-2])

    def _declare(self, x: Tensor, weights: Tensor | None) -> Objective:
        if self.form == "tied" and not self.exclude_self:
            return SymmetricEnergy(self.U, self.scale, weights, self.orthonormal)
        U = self.U
        halves = 0.5 * (torch.ones(self.heads, dtype=U.dtype, device=U.device) if weights is None else weights)
        return AttentionEnergy(U, self.W_K, self.scale, self.exclude_self, halves)


def both_ways(q: Tensor, k: Tensor, scale: float, exclude_self: bool) -> tuple[Tensor, Tensor]:
    """``P k`` and ``Pᵀ q``, P = softmax(s q kᵀ) over rows, by chunks of rows that the backward pass computes again.

    Shapes
        q, k ``(..., tokens, head_dim)``; with ``exclude_self`` the diagonal of P is zero, and all of P for one token
    """
    tokens = k.shape[-2]
    each = max(1, _CHUNK // max(1, math.prod(q.shape[:-2]) * tokens))
    if exclude_self and tokens == 1:
        return torch.zeros_like(k), torch.zeros_like(q)
    if each >= tokens:
        return _one_chunk(q, k, scale, 0 if exclude_self else None)
    given, received = [], torch.zeros_like(q)
    for start in range(0, tokens, each):
        rows = q[..., start : start + each, :]
        first = start if exclude_self else None
        if torch.is_grad_enabled():
            one, other = checkpoint(_one_chunk, rows, k, scale, first, use_reentrant=False)
        else:
            one, other = _one_chunk(rows, k, scale, first)
        given.append(one)
        received = received + other
    return torch.cat(given, dim=-2), received


def _one_chunk(rows: Tensor, k: Tensor, scale: float, first: int | None) -> tuple[Tensor, Tensor]:
    """Both products of the rows of P that belong to ``rows``; ``first`` is the number of the first if it is excluded."""
    scores = scale * (rows @ k.mT)
    if first is not None:
        scores = scores.diagonal_scatter(
            torch.full(scores.shape[:-1], -math.inf, dtype=scores.dtype, device=scores.device), first, -2, -1
        )
    P = torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True))
    return P @ k, P.mT @ rows
