"""MiTA: attention to a few landmarks and to the keys that a query's landmarks have chosen, under one softmax."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor

from ..attention import AttentionLayer, AttentionOptions
from ..errors import check_count
from ..kernels.mita import gathered, mita, of_experts
from ..kernels.tiles import repeated, top_indices
from ..representatives import GridPool, Representatives

__all__ = ["MiTA"]


@final
class MiTA(AttentionLayer):
    r"""Mixture of top-k activations: every token reads m landmarks, and the k keys that its nearest landmarks chose.

    Minimises
        $f(O) = \frac{1}{2K} \sum_k \sum_i \sum_{j \in S_{k,i}} a_{k,ij} \Vert o_i - K O_k v_{k,j} - b \Vert^2$ over the support
        $S_i$ = landmark pairs and routed pairs; keys, values, landmarks, selection and routing frozen at Z
    In code
        ``x + κ (attention(x) − x)``; per head one softmax of ``s q·[landmarks, keys of its experts]`` over
        ``[landmark values, their values]``. Gradient of f at x: ``x − attention(x)``, L = 1; κ = 1 is MiTA itself
    Landmarks, experts
        landmark i is a pooled query q̃_i; its value ``softmax(s q̃_i Kᵀ) V``; its expert the keys_per_expert keys with the
        largest q̃_i·k; a query goes to the experts_per_query landmarks with the largest q̃·q; lower indices win ties
    Shapes
        x ``(..., tokens, dim)``; landmarks ``(..., heads, m, head_dim)``; selection ``(..., heads, m, k)``; routing
        ``(..., heads, tokens, s)``; returns like x
    Special cases
        keys_per_expert = 0: agent attention, ``softmax(s Q R^T) softmax(s R K^T) V`` with Q, K, V of their own, whose
        first factor is normalised over agents; ``CBSA(form="agent")`` has one matrix for all three and broadcasts by
        the transpose, normalised over tokens. keys_per_expert = N, shared=False: softmax attention. Strided(1),
        shared=False, queries of equal norm: per-query top-k attention; else a longer query nearby may win the routing.
    Error
        ‖MiTA − attention‖ ≤ 2 max(δ, σ) max_j ‖v_j‖ for every query with deduplicate=True: δ the mass of full attention
        outside the selected keys, σ that of MiTA on the landmarks. With σ = 0 the error is δ times the distance of the
        averages inside and outside, so that 2δ max‖v‖ is attained by opposite values.

    Parameters
    ----------
        landmarks: a strategy from :mod:`unrolling.representatives` that pools the queries; GridPool((5, 5)) by default.
        class_tokens: how many leading tokens stay out of the pooling. keys_per_expert, experts_per_query, shared,
        deduplicate, twice_scaled: as for :func:`unrolling.mita`. pool_before_norm: pool the queries before qk_norm and
        rotary are applied to them. kernel: "plain" gathers each query's keys, "fast" sorts queries by expert, "auto"
        chooses. The others: as for SoftmaxAttention.
    Cost
        multiply-adds of matrix products ``4 N d² + 4 N m d + 2 N s k d``: the scores that route a query are those of the shared expert,
        so that the paper's count, with another N m d for routing, is not reached. Without the shared expert 2 N m d less.
    Source
        MiTA, arXiv 2602.01219. Published: DeiT 25 landmarks and 25 keys, ViT-5 25 and 30, Segmenter 49 and 49; s = 1.
    Differences from the authors' code
        its landmark keys are scaled twice (twice_scaled=True), and its square grid holds the class token and leaves out
        the last patch (landmarks=OfficialGridPool((5, 5))). Its depth-wise convolution and gate are options here
        (convolution, gate); in its segmentation encoder qk_norm comes after the pooling (pool_before_norm).

    Raises
    ------
        ValueError for sizes, grids or steps that do not fit, more experts a query than landmarks, nothing to attend to;
        TypeError for another dtype or a strategy that pools nothing.
    Claims
        mita.landmarks, mita.landmark_values, mita.selection, mita.routing, mita.step.exact, mita.merge.value,
        mita.merge.gradient, mita.error.bound, mita.error.published, mita.limits.full, mita.limits.agent,
        mita.limits.top_k, mita.limits.self_routing, mita.limits.blocks, mita.duplicates, mita.cost, mita.approximation,
        kernels.mita, kernels.mita.masked
    """

    declares = "kernel regression on its support; keys, values, landmarks, selection and routing frozen"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        landmarks: Representatives | None = None,
        keys_per_expert: int = 25,
        experts_per_query: int = 1,
        shared: bool = True,
        deduplicate: bool = False,
        twice_scaled: bool = False,
        projections: str = "free",
        bias: bool = True,
        scale: float | None = None,
        step_size: float = 1.0,
        learnable_step: bool = True,
        class_tokens: int = 0,
        pool_before_norm: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(
            dim,
            heads,
            head_dim,
            projections=projections,
            bias=bias,
            scale=scale,
            step_size=step_size,
            learnable_step=learnable_step,
            class_tokens=class_tokens,
            **options,
        )
        if self.dropout:
            raise ValueError("MiTA: attention weights are never stored, so none can be dropped; pass dropout=0.")
        check_count("MiTA", "keys_per_expert", keys_per_expert, 0)
        check_count("MiTA", "experts_per_query", experts_per_query)
        strategy = GridPool((5, 5)) if landmarks is None else landmarks
        if not isinstance(strategy, Representatives) or not strategy.softmax_extraction:
            raise TypeError(
                f"MiTA: landmarks must be a strategy that pools queries (GridPool, SequencePool, LearnedQueries, Strided),"
                f" but is {type(strategy).__name__}; for every query its own landmark use Strided(1)."
            )
        known = strategy.count
        if known is not None and experts_per_query > known:
            raise ValueError(f"MiTA: experts_per_query is {experts_per_query}, but there are only {known} landmarks.")
        if not shared and keys_per_expert == 0:
            raise ValueError("MiTA: with shared=False and keys_per_expert=0 a query has nothing to attend to.")
        self.strategy = strategy
        self.keys_per_expert, self.experts_per_query = keys_per_expert, experts_per_query
        self.shared, self.deduplicate, self.twice_scaled = shared, deduplicate, twice_scaled
        self.pool_before_norm = pool_before_norm
        self.token_count = None
        if strategy.token_count is not None:
            self.token_count = strategy.token_count + class_tokens + self.register_tokens

    def _read(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None, x: Tensor) -> Tensor:
        pooled = self._split(x, "query") if self.pool_before_norm else q
        return mita(
            q,
            k,
            v,
            self.strategy.initial(self._patches(pooled), self.class_tokens, grid),
            keys_per_expert=self.keys_per_expert,
            experts_per_query=self.experts_per_query,
            shared=self.shared,
            scale=self.scale,
            deduplicate=self.deduplicate,
            twice_scaled=self.twice_scaled,
            kernel=self.kernel,
        )

    def landmarks(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The landmark queries ``(..., heads, m, head_dim)``."""
        pooled = self._split(x, "query") if self.pool_before_norm else self.queries(x, grid)
        return self.strategy.initial(self._patches(pooled), self.class_tokens, grid)

    def landmark_values(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What the landmarks read of all tokens, ``(..., heads, m, head_dim)``."""
        return self._landmark_weights(x, grid) @ self.values(x)

    def _landmark_weights(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        scores = self.scale * (self.keys(x, grid) @ self.landmarks(x, grid).mT)
        return torch.softmax(scores, dim=-2).mT

    def selection(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The keys of every expert, ``(..., heads, m, keys_per_expert)``, the largest product first."""
        return top_indices(self.landmarks(x, grid) @ self.keys(x, grid).mT, self.keys_per_expert)

    def routing(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The experts of every query, ``(..., heads, tokens, experts_per_query)``, the nearest first."""
        return top_indices(self.queries(x, grid) @ self.landmarks(x, grid).mT, self.experts_per_query)

    def pairs(self, x: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """One softmax over the landmark pairs and the routed pairs; values: the landmarks' before the tokens'."""
        q, marks = self.queries(x, grid), self.landmarks(x, grid)
        m, index = marks.shape[-2], of_experts(self.selection(x, grid), self.routing(x, grid))
        scores = self.scale * (q.unsqueeze(-2) * gathered(self.keys(x, grid), index)).sum(-1)
        if self.deduplicate:
            scores = scores.masked_fill(repeated(index), -torch.inf)
        if not self.shared:
            return torch.softmax(scores, dim=-1), self.values(x), index
        everyone = torch.arange(m, device=x.device).expand(*index.shape[:-1], m)
        factor = self.scale**2 if self.twice_scaled else self.scale
        joint = torch.cat([factor * (q @ marks.mT), scores], dim=-1)
        values = torch.cat([self.landmark_values(x, grid), self.values(x)], dim=-2)
        return torch.softmax(joint, dim=-1), values, torch.cat([everyone, m + index], dim=-1)

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What every token reads of every other ``(..., heads, tokens, tokens)``, through landmarks and directly.

        Rows sum to 1; the values a landmark stands for are traced back to the tokens it read. Quadratic: for looking.
        """
        weights, values, index = self.pairs(x, grid)
        if index is None:
            return weights
        spread = weights.new_zeros(*weights.shape[:-1], values.shape[-2]).scatter_add(-1, index, weights)
        if not self.shared:
            return spread
        m = values.shape[-2] - x.shape[-2]
        return spread[..., m:] + spread[..., :m] @ self._landmark_weights(x, grid)

    def extra_repr(self) -> str:
        """Sizes and options."""
        parts = [super().extra_repr(), f"keys_per_expert={self.keys_per_expert}"]
        parts.append(f"experts_per_query={self.experts_per_query}")
        parts += [name for name in ("deduplicate", "twice_scaled") if getattr(self, name)]
        return ", ".join(parts if self.shared else [*parts, "shared=False"])
