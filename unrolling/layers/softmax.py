"""Softmax attention read as kernel regression: a step towards it, and at step size 1 attention itself."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor

from ..attend import attend
from ..attention import AttentionLayer, AttentionOptions

__all__ = ["SoftmaxAttention"]


@final
class SoftmaxAttention(AttentionLayer):
    r"""Multi-head softmax attention as a step of kernel regression: draws every token to the values it attends to.

    Minimises
        $f(O) = \frac{1}{2K} \sum_k \sum_{ij} a_{k,ij} \Vert o_i - K O_k v_{k,j} - b \Vert^2$, weights, keys and values
        frozen at Z, by $Z - \kappa (Z - \mathrm{MHSA}(Z))$, $\mathrm{MHSA}(Z) = \sum_k O_k V_k\, A_k + b$
    In code
        ``x + κ (attention(x) − x)``, ``attention(x) = Σ_k softmax(s Q_k K_kᵀ) V_k O_kᵀ + b``. Gradient of f at x:
        ``x − attention(x)``, L = 1; κ = 1 returns attention(x) itself, whatever the matrices, κ in (0, 2) lowers f
    As a network
        for one query it is a two-layer perceptron of width N, ``softmax(s q Kᵀ) V``: first-layer weights K, softmax
        for the nonlinearity, second-layer weights V; fast weights, since the tokens make them
    Shapes
        x ``(..., tokens, dim)``; per head Q, K, V ``(..., heads, tokens, head_dim)``; returns like x
    Parameters
        projections: "free", four linear maps with ``bias``; or "identity", where the heads share out the features and
        nothing is learned but κ. scale: s, head_dim^(−1/2) by default. step_size: κ; learnable_step=False with κ = 1
        is the published layer. class_tokens: leading tokens that are no patches; register_tokens: trailing ones; they
        matter to rotary (a GridRotary of the patches, register_rotary of the registers) and convolution only.
        output_bias: bias of the output matrix, ``bias`` by default. qk_norm: "layer" or "rms", of every head's queries
        and keys; idle_norms: make them and never apply them, as MiTA's released layer does. convolution: add a 3 × 3
        depth-wise convolution of the patches' values to what is read; gate: multiply it by SiLU(x G); scale_norm:
        normalise it; each withdraws the claim. dropout: of the attention weights, output_dropout of the output, while
        training. kernel: "plain" stores the weights, "fast" calls ``scaled_dot_product_attention``, "auto" chooses.
    Source
        MiTA, arXiv 2602.01219 (attention as fast weights); Vaswani et al., arXiv 1706.03762, section 3.2.
    Differences from the authors' code
        published blocks return ``x + MHSA(LayerNorm(x))``: no shrinkage (1 − κ) x, and a norm inside the residual, so
        no step at x on this objective. :meth:`attention` is their MHSA.

    Raises
    ------
        ValueError for sizes or steps out of range and tokens of another dim; TypeError for another dtype.
    Claims
        softmax.attention, softmax.step.exact, softmax.mlp, softmax.frozen, softmax.cost
    """

    declares = "kernel regression of the outputs; weights, keys and values frozen"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        projections: str = "free",
        bias: bool = True,
        scale: float | None = None,
        step_size: float = 1.0,
        learnable_step: bool = True,
        class_tokens: int = 0,
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

    def _read(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None, x: Tensor) -> Tensor:
        drop = self.dropout if self.training else 0.0
        return attend(q, k, v, self.scale, dropout=drop, kernel=self.kernel)

    def pairs(self, x: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights of all keys, ``softmax(s Q_k K_kᵀ)``, and the values."""
        return self.attention_map(x, grid), self.values(x), None

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """``softmax(s Q_k K_kᵀ)`` ``(..., heads, tokens, tokens)``; rows sum to 1."""
        return torch.softmax(self.scale * (self.queries(x, grid) @ self.keys(x, grid).mT), dim=-1)
