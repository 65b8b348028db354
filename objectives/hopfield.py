"""The Energy Transformer's energies: memories, attention with two matrices, and their sum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from .base import Objective, lift, project
from .coding_rate import sum_heads, weigh
from .errors import check_heads, check_matrix, check_positive, check_single, check_tokens, check_weights
from .softmax_energy import CrossAttentionEnergy

__all__ = ["AttentionEnergy", "EnergyTransformerEnergy", "HopfieldEnergy", "attention_curvature"]

_CHUNK = 1 << 21
"""Scores held at once: rows are taken in chunks, so that no tokens × tokens or tokens × memories matrix is whole."""


@final
@dataclass(frozen=True, eq=False)
class HopfieldEnergy(Objective):
    r"""The energy of memories: a step moves every token towards the memories that it already resembles.

    Minimises
        $E(Z) = -\frac{1}{2} \sum_i \sum_\mu \mathrm{max}(\xi_\mu^\top z_i, 0)^2$
    In code
        ``−½ Σ relu(x memoriesᵀ)²``
    Gradient
        ``−relu(x memoriesᵀ) memories``: a feed-forward block with tied matrices. E is concave, so that every step of
        every size lowers it, by at least κ‖∇E‖²; L = ‖memories‖₂², reached where every memory is active.
    Shapes
        x ``(..., tokens, dim)``; memories ``(M, dim)``
    Source
        Energy Transformer, arXiv 2302.07253, its energy of the Hopfield network with r = relu. The softmax activation
        is :class:`objectives.CrossAttentionEnergy` with the memories as keys.

    Raises
    ------
        ValueError for memories of another dim, empty or not finite; TypeError for other types.
    Claims
        hopfield.relu.gradient, hopfield.relu.smoothness, hopfield.relu.concave
    """

    memories: Tensor

    def __post_init__(self) -> None:
        check_matrix("HopfieldEnergy", "memories", self.memories, "(M, dim)")
        if self.memories.ndim != 2:
            raise ValueError(f"HopfieldEnergy: memories must be (M, dim), but has shape {tuple(self.memories.shape)}.")

    def value(self, x: Tensor) -> Tensor:
        """E(x)."""
        check_tokens("HopfieldEnergy", x, self.memories.shape[-1], expects="memories", like=self.memories)
        pieces = [torch.relu(rows @ self.memories.mT).square().sum((-2, -1)) for rows in self._rows(x)]
        return -0.5 * torch.stack(pieces).sum(0)

    def gradient(self, x: Tensor) -> Tensor:
        """−relu(x memoriesᵀ) memories."""
        check_tokens("HopfieldEnergy", x, self.memories.shape[-1], expects="memories", like=self.memories)
        return -torch.cat([torch.relu(rows @ self.memories.mT) @ self.memories for rows in self._rows(x)], dim=-2)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = ‖memories‖₂², everywhere."""
        memories = self.memories.detach()
        small = memories @ memories.mT if len(memories) <= memories.shape[-1] else memories.mT @ memories
        check_single("HopfieldEnergy", "memories", small)
        return torch.linalg.eigvalsh(small)[-1].clamp(min=0)

    def _rows(self, x: Tensor) -> tuple[Tensor, ...]:
        each = max(1, math.prod(x.shape[:-2])) * len(self.memories)
        return x.split(max(1, _CHUNK // each), dim=-2)


@final
@dataclass(frozen=True, eq=False)
class AttentionEnergy(Objective):
    r"""The energy of attention with one matrix for queries and another for keys, nothing held constant.

    Minimises
        $E(Z) = -\sum_h \sum_C \frac{1}{\beta} \log \sum_{B \neq C} \exp(\beta\, K_{h,B}^\top Q_{h,C})$,
        $Q_h = W_h^{Q\top} Z$, $K_h = W_h^{K\top} Z$
    In code
        ``−Σ_h w_h Σ_i lse_s(Q_h[i] K_hᵀ)`` over the other tokens, or over all if not ``exclude_self``
    Gradient
        ``−Σ_h w_h (P_h K_h W_Q,hᵀ + P_hᵀ Q_h W_K,hᵀ)``, P_h = softmax(s Q_h K_hᵀ): attention, and attention received
    Smoothness
        d²E[V] = −Σ_i (s Var_{P_i}(dq_i·k_j + q_i·dk_j) + 2 Σ_j P_ij dq_i·dk_j), dq = V W_Q, dk = V W_K. From above that
        is at most :meth:`curvature`, whatever the tokens, which is all that descent needs; ``lipschitz`` bounds it on
        both sides, at x only: ``2s (‖W_Q‖² max_j ‖k_j − k̄‖² + ‖W_K‖² max_j Σ_i P_ij ‖q_i‖²) + 2 ‖P‖ ‖W_Q‖ ‖W_K‖``.
    Shapes
        x ``(..., tokens, dim)``; W_Q, W_K ``(heads, dim, head_dim)``, any matrices; weights w ``(..., heads)`` or None
    Parameters
        scale: s, their β. exclude_self: no token attends to itself, as in the paper; one token alone then has no
        energy. With W_Q = W_K = U, weights ½ and ``exclude_self=False`` this is :class:`objectives.SymmetricEnergy`.
    Source
        Energy Transformer, arXiv 2302.07253, its energy of attention and the update derived from it

    Raises
    ------
        ValueError for s ≤ 0, shapes that do not fit, non-finite entries; TypeError for other types.
    Claims
        hopfield.attention.gradient, hopfield.attention.smoothness, hopfield.attention.curvature,
        hopfield.attention.symmetric
    """

    lipschitz_is_global: ClassVar[bool] = False

    W_Q: Tensor
    W_K: Tensor
    scale: float | Tensor
    exclude_self: bool = True
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        owner = "AttentionEnergy"
        check_positive(owner, "scale", self.scale)
        for name, matrix in (("W_Q", self.W_Q), ("W_K", self.W_K)):
            check_matrix(owner, name, matrix, "(heads, dim, head_dim)")
        if self.W_Q.ndim != 3 or self.W_Q.shape != self.W_K.shape:
            raise ValueError(
                f"{owner}: W_Q and W_K must both be (heads, dim, head_dim), but are {tuple(self.W_Q.shape)} and"
                f" {tuple(self.W_K.shape)}."
            )
        check_weights(owner, self.weights, self.W_Q)

    def value(self, x: Tensor) -> Tensor:
        """E(x)."""
        q, k = self._project(x)
        if self._alone(x):
            return 0.0 * x.sum((-2, -1))
        pieces = [torch.logsumexp(scores, dim=-1).sum(-1) / self.scale for scores, _ in self._scores(q, k)]
        return -sum_heads(torch.stack(pieces).sum(0), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """−Σ_h (P_h K_h W_Q,hᵀ + P_hᵀ Q_h W_K,hᵀ)."""
        q, k = self._project(x)
        if self._alone(x):
            return torch.zeros_like(x)
        given, received = [], torch.zeros_like(k)
        for scores, rows in self._scores(q, k):
            P = torch.softmax(scores, dim=-1)
            given.append(P @ k)
            received = received + P.mT @ rows
        into_queries = lift(weigh(torch.cat(given, -2), self.weights), self.W_Q)
        return -(into_queries + lift(weigh(received, self.weights), self.W_K))

    def lipschitz(self, x: Tensor) -> Tensor:
        """A bound for the Hessian at x, and at x only."""
        q, k = (matrix.detach() for matrix in self._project(x))
        if self._alone(x):
            return torch.zeros(x.shape[:-2], dtype=x.dtype, device=x.device)
        lengths = q.square().sum(-1)
        received, incoming = torch.zeros_like(lengths), torch.zeros_like(lengths)
        start = 0
        for scores, rows in self._scores(q, k):
            P = torch.softmax(scores, dim=-1)
            stop = start + rows.shape[-2]
            received = received + (P.mT @ lengths[..., start:stop, None])[..., 0]
            incoming, start = incoming + P.sum(-2), stop
        radius = (k - k.mean(-2, keepdim=True)).square().sum(-1).amax(-1)
        size = torch.ones_like(radius) if self.weights is None else self.weights.detach().abs()
        a, b = self._norms()
        keys, queries = (size * radius).amax(-1), (size * received.amax(-1)).amax(-1)
        return 2 * self.scale * (a**2 * keys + b**2 * queries) + 2 * a * b * (size * incoming.amax(-1).sqrt()).amax(-1)

    def curvature(self, tokens: int) -> Tensor:
        """M with ``d²E[V] ≤ M ‖V‖²`` at every x of so many tokens: steps κ < 2/M lower E, wherever they start.

        ``M = 2 max|w_h| c ‖[W_Q,1 …]‖ ‖[W_K,1 …]‖`` with c from :func:`attention_curvature`; for weights that are not
        negative.
        """
        a, b = self._norms()
        c = attention_curvature(tokens, tied=torch.equal(self.W_Q, self.W_K))
        return 2.0 * c * a * b * (1.0 if self.weights is None else self.weights.detach().amax())

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_tokens("AttentionEnergy", x, self.W_Q.shape[-2], expects="W_Q", like=self.W_Q)
        check_heads("AttentionEnergy", "W_K", self.W_K, self.W_Q, self.W_Q.shape[-1])
        return project(x, self.W_Q), project(x, self.W_K)

    def _alone(self, x: Tensor) -> bool:
        return self.exclude_self and x.shape[-2] == 1

    def _norms(self) -> tuple[Tensor, Tensor]:
        a, b = (torch.linalg.matrix_norm(W.detach().transpose(0, 1).flatten(-2), 2) for W in (self.W_Q, self.W_K))
        return a, b

    def _scores(self, q: Tensor, k: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return _row_scores(q, k, self.scale, self.exclude_self)


@final
@dataclass(frozen=True, eq=False)
class EnergyTransformerEnergy(Objective):
    r"""The Energy Transformer's energy: attention among the tokens, and memories, added.

    Minimises
        $E = E^{\mathrm{ATT}} + E^{\mathrm{HN}}$
    In code
        ``attention.value(x) + memory.value(x)``
    Gradient
        the sum of theirs
    Shapes
        x ``(..., tokens, dim)``, the NORMALISED tokens where a block normalises
    Parameters
        attention: an :class:`AttentionEnergy`. memory: a :class:`HopfieldEnergy` (relu) or, for the softmax activation,
        a :class:`objectives.CrossAttentionEnergy` without its quadratic term; both are concave.
    Source
        Energy Transformer, arXiv 2302.07253, the sum of its two energies

    Raises
    ------
        TypeError for other parts, ValueError where their dims differ or the memory is quadratic.
    Claims
        energy_transformer.step.plain, energy_transformer.step.normalised, energy_transformer.descent
    """

    lipschitz_is_global: ClassVar[bool] = False

    attention: AttentionEnergy
    memory: HopfieldEnergy | CrossAttentionEnergy

    def __post_init__(self) -> None:
        owner = "EnergyTransformerEnergy"
        if not isinstance(self.attention, AttentionEnergy):
            raise TypeError(f"{owner}: attention must be an AttentionEnergy, but is a {type(self.attention).__name__}.")
        if not isinstance(self.memory, (HopfieldEnergy, CrossAttentionEnergy)):
            raise TypeError(
                f"{owner}: memory must be a HopfieldEnergy or a CrossAttentionEnergy, but is a"
                f" {type(self.memory).__name__}."
            )
        stored = self.memory.memories if isinstance(self.memory, HopfieldEnergy) else self.memory.keys
        if stored.shape[-1] != self.attention.W_Q.shape[-2]:
            raise ValueError(
                f"{owner}: the memories have dim {stored.shape[-1]}, but W_Q expects dim {self.attention.W_Q.shape[-2]}."
            )
        if getattr(self.memory, "quadratic", False):
            raise ValueError(f"{owner}: the memory must have no quadratic term; pass quadratic=False.")

    def value(self, x: Tensor) -> Tensor:
        """The two energies, added."""
        return self.attention.value(x) + self.memory.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        """The two gradients, added."""
        return self.attention.gradient(x) + self.memory.gradient(x)

    def lipschitz(self, x: Tensor) -> Tensor:
        """The two constants, added: a bound at x."""
        return self.attention.lipschitz(x) + self.memory.lipschitz(x)

    def curvature(self, tokens: int) -> Tensor:
        """The attention's bound from above: the memory is concave and adds nothing."""
        return self.attention.curvature(tokens)


def attention_curvature(tokens: int, *, tied: bool) -> float:
    r"""The largest ``−⟨V, P V⟩ / ‖V‖²`` (tied), or ``−⟨A, P B⟩ / (‖A‖‖B‖)``, over all row-stochastic N × N matrices P.

    tied ``½ √(N + 2)``, otherwise ``√N``; both are attained. Tied: a token with a positive entry of u chooses the
    smallest entry −m, one with a negative entry the largest M. With n₋ and n₊ further entries of either sign the
    maximum λ over unit vectors u solves ``(λ − n₊/4λ)(λ − n₋/4λ) = 1``, n₊ + n₋ = N − 2, and is largest with n₋ = 0.
    Untied: ``‖P‖₂² ≤ ‖P‖₁ ‖P‖_∞ ≤ N``, with equality when all attend to one. One token alone attends to itself.

    >>> attention_curvature(2, tied=True), attention_curvature(4, tied=False)
    (1.0, 2.0)
    """
    check_positive("attention_curvature", "tokens", tokens)
    return 0.5 * (tokens + 2) ** 0.5 if tied else tokens**0.5


def _row_scores(q: Tensor, k: Tensor, scale: float | Tensor, exclude_self: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of ``s q kᵀ`` in chunks, minus infinity where a token meets itself, with the rows of q they belong to."""
    each = max(1, math.prod(q.shape[:-2]) * k.shape[-2])
    start = 0
    for rows in q.split(max(1, _CHUNK // each), dim=-2):
        scores = scale * (rows @ k.mT)
        if exclude_self:
            i = torch.arange(start, start + rows.shape[-2], device=q.device)
            own = i[:, None] == torch.arange(k.shape[-2], device=q.device)
            scores = scores.masked_fill(own, -torch.inf)
        start += rows.shape[-2]
        yield scores, rows
