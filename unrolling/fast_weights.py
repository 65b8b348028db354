"""Efficient attention as fast weights: short reference operators, and the table that orders them.

Full attention is a two-layer perceptron of width N that the tokens write and every query reads. It is made cheaper by
compressing it to a narrow one that all queries share, or by routing each query to a small part of it, or by both.
All operators take ``(..., tokens, p)`` arrays with any leading axes, heads among them; none is causal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import check_attention, check_count, check_leading, check_rows, finite_number, positive_number
from .kernels.mita import mita
from .kernels.tiles import top_indices

__all__ = [
    "FAST_WEIGHTS",
    "FastWeights",
    "agent_attention",
    "block_attention",
    "compressed_block_attention",
    "full_attention",
    "linear_attention",
    "projected_attention",
    "taxonomy",
    "top_k_attention",
]


def full_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``softmax(s q kᵀ) v``."""
    check_attention("full_attention", q, k, v)
    scale = _scale("full_attention", scale)
    return torch.softmax(scale * (q @ k.mT), dim=-1) @ v


def linear_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``φ(q) (φ(k)ᵀ v) / φ(q) (φ(k)ᵀ 1)``, φ(u) = elu(√s u) + 1: one linear layer of size p × p that all queries share.

    Katharopoulos et al., arXiv 2006.16236, eq. 7.
    """
    check_attention("linear_attention", q, k, v)
    scale = _scale("linear_attention", scale)
    if not isinstance(scale, Tensor):
        positive_number("linear_attention", "scale", scale)
    left, right = (F.elu(scale**0.5 * u) + 1.0 for u in (q, k))
    return left @ (right.mT @ v) / (left * right.sum(-2, keepdim=True)).sum(-1, keepdim=True)


def projected_attention(q: Tensor, k: Tensor, v: Tensor, E: Tensor, F_: Tensor, scale: float) -> Tensor:
    """``softmax(s q (E k)ᵀ) F v``: keys and values mixed down to m by learned matrices ``(..., m, tokens)``.

    Linformer, arXiv 2006.04768, eq. 7.
    """
    check_attention("projected_attention", q, k, v)
    check_rows("projected_attention", q=q, E=E, F_=F_)
    if E.shape[-1] != k.shape[-2] or F_.shape[-1] != k.shape[-2] or E.shape[-2] != F_.shape[-2]:
        raise ValueError(
            f"projected_attention: E {tuple(E.shape)} and F_ {tuple(F_.shape)} must be (..., m, tokens = {k.shape[-2]})."
        )
    check_leading("projected_attention", q=q, k=k, v=v, E=E, F_=F_)
    scale = _scale("projected_attention", scale)
    return full_attention(q, E @ k, F_ @ v, scale)


def agent_attention(q: Tensor, k: Tensor, v: Tensor, agents: Tensor, scale: float) -> Tensor:
    """``softmax(s q Rᵀ) softmax(s R kᵀ) v`` for agents R ``(..., m, p)``, without its bias and convolution.

    Agent attention, arXiv 2312.08874, eq. 4.
    """
    check_attention("agent_attention", q, k, v)
    check_rows("agent_attention", q=q, agents=agents)
    if agents.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"agent_attention: agents {tuple(agents.shape)} and k {tuple(k.shape)} must share their last axis."
        )
    check_leading("agent_attention", q=q, k=k, v=v, agents=agents)
    scale = _scale("agent_attention", scale)
    return full_attention(q, agents, full_attention(agents, k, v, scale), scale)


def top_k_attention(q: Tensor, k: Tensor, v: Tensor, count: int, scale: float) -> Tensor:
    """Every query attends to the ``count`` keys with the largest products; lower indices win ties."""
    check_count("top_k_attention", "count", count)
    check_attention("top_k_attention", q, k, v)
    scale = _scale("top_k_attention", scale)
    scores = q @ k.mT
    return _attend_to(scores, top_indices(scores, count), v, scale)


def block_attention(q: Tensor, k: Tensor, v: Tensor, block: int, blocks_per_query: int, scale: float) -> Tensor:
    """Every query attends to the keys of the blocks whose mean key has the largest products with it.

    Blocks are ``block`` consecutive tokens, the last may be shorter; one softmax over the union. MoBA, arXiv 2502.13189,
    eq. 2 to 6, without its causal mask and without the query's own block forced in; lower indices win ties.
    """
    check_count("block_attention", "blocks_per_query", blocks_per_query)
    check_attention("block_attention", q, k, v)
    scale = _scale("block_attention", scale)
    centres = _block_means(k, block, "block_attention")
    return _read_blocks(q, k, v, top_indices(q @ centres.mT, blocks_per_query), block, scale)


def compressed_block_attention(
    q: Tensor, k: Tensor, v: Tensor, block: int, blocks_per_query: int, gates: Tensor, scale: float
) -> Tensor:
    """``g₁ · attention to the block means + g₂ · attention to the keys of the blocks of largest weight``.

    NSA style, arXiv 2502.11089, eq. 5 to 12: the means stand in for its learned compression, ``gates`` ``(..., 2)`` for its
    gate network; its sliding window and its causal mask are left out.
    """
    check_count("compressed_block_attention", "blocks_per_query", blocks_per_query)
    check_attention("compressed_block_attention", q, k, v)
    scale = _scale("compressed_block_attention", scale)
    centres, means = (_block_means(u, block, "compressed_block_attention") for u in (k, v))
    scores = q @ centres.mT
    coarse = torch.softmax(scale * scores, dim=-1) @ means
    fine = _read_blocks(q, k, v, top_indices(scores, blocks_per_query), block, scale)
    return gates[..., :1] * coarse + gates[..., 1:] * fine


def _scale(owner: str, scale: float | Tensor) -> float:
    if isinstance(scale, Tensor):
        if scale.numel() != 1 or not scale.dtype.is_floating_point:
            raise TypeError(f"{owner}: scale must be one number, but is {scale.dtype} {tuple(scale.shape)}.")
        return scale  # type: ignore[return-value]  # learned
    return finite_number(owner, "scale", scale)


def _block_means(rows: Tensor, block: int, owner: str) -> Tensor:
    check_count(owner, "block", block)
    return torch.stack([part.mean(-2) for part in rows.split(block, dim=-2)], dim=-2)


def _read_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block: int, scale: float) -> Tensor:
    members = blocks.unsqueeze(-1) * block + torch.arange(block, device=k.device)
    members = members.flatten(-2)
    absent = members >= k.shape[-2]
    members = members.clamp(max=k.shape[-2] - 1)
    scores = (_pick(k, members) @ q.unsqueeze(-1)).squeeze(-1).masked_fill(absent, -torch.inf)
    weights = torch.softmax(scale * scores, dim=-1)
    return (weights.unsqueeze(-2) @ _pick(v, members)).squeeze(-2)


def _attend_to(scores: Tensor, index: Tensor, v: Tensor, scale: float) -> Tensor:
    weights = torch.softmax(scale * scores.gather(-1, index), dim=-1)
    return (weights.unsqueeze(-2) @ _pick(v, index)).squeeze(-2)


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    leading = torch.broadcast_shapes(rows.shape[:-2], index.shape[:-2])
    index, rows = index.expand(*leading, *index.shape[-2:]), rows.expand(*leading, *rows.shape[-2:])
    flat = index.flatten(-2).unsqueeze(-1).expand(*leading, -1, rows.shape[-1])
    return rows.gather(-2, flat).unflatten(-2, index.shape[-2:])


@dataclass(frozen=True)
class FastWeights:
    """One row of the taxonomy, and the method itself at the sizes of the row.

    run(q, k, v) runs it, ``(heads, tokens, p)``; multiply_adds(N, d, p) counts its matrix products for all heads
    together, d = heads · p; the other sizes are this row's own: m landmarks or compressed tokens, k keys, blocks of n tokens.
    """

    name: str
    strategy: str
    experts: str
    construction: str
    topology: str
    cost: str
    run: Callable[[Tensor, Tensor, Tensor], Tensor] = field(repr=False)
    multiply_adds: Callable[[int, int, int], int] = field(repr=False)


def taxonomy(m: int = 4, k: int = 6, n: int = 8, s: int = 1) -> tuple[FastWeights, ...]:
    """The methods with m landmarks, k keys an expert (or a query), blocks of n tokens, s experts (blocks) a query.

    Mixing matrices are those of average pooling, and landmarks a strided subset, so that nothing is learned. The head's
    width in the cost of linear attention is written p. Costs hold for N a multiple of n and at least m.
    """

    def strided(q: Tensor) -> Tensor:
        return q[..., :: max(1, q.shape[-2] // m), :][..., :m, :]

    def mixing(q: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(torch.eye(q.shape[-2], dtype=q.dtype, device=q.device), m).mT

    def run_mita(q: Tensor, key: Tensor, v: Tensor) -> Tensor:
        return mita(q, key, v, strided(q), keys_per_expert=k, experts_per_query=s, kernel="plain")

    def scale(q: Tensor) -> float:
        return q.shape[-1] ** -0.5

    def halves(q: Tensor) -> Tensor:
        return torch.full((2,), 0.5, dtype=q.dtype, device=q.device)

    return (
        FastWeights(
            "full attention",
            "none",
            "one MLP of width N",
            "tokens",
            "all-to-one",
            "2 N² d",
            lambda q, key, v: full_attention(q, key, v, scale(q)),
            lambda N, d, p: 2 * N * N * d,
        ),
        FastWeights(
            "linear attention",
            "compression",
            "one shared linear layer, p × p",
            "kernelisation",
            "all-to-one",
            "2 N p d",
            lambda q, key, v: linear_attention(q, key, v, scale(q)),
            lambda N, d, p: 2 * N * d * p,
        ),
        FastWeights(
            "Linformer-style projection",
            "compression",
            "one shared MLP of width m",
            "learnable projection",
            "all-to-one",
            "4 N m d",
            lambda q, key, v: projected_attention(q, key, v, mixing(q), mixing(q), scale(q)),
            lambda N, d, p: 4 * N * m * d,
        ),
        FastWeights(
            "agent attention",
            "compression",
            "one shared MLP of width m",
            "landmark probing",
            "all-to-one",
            "4 N m d",
            lambda q, key, v: agent_attention(q, key, v, strided(q), scale(q)),
            lambda N, d, p: 4 * N * m * d,
        ),
        FastWeights(
            "block routing (MoBA style)",
            "routing",
            "N/n MLPs of width n",
            "locality prior",
            "N-to-N/n",
            "N² d/n + 2 N s n d",
            lambda q, key, v: block_attention(q, key, v, n, s, scale(q)),
            lambda N, d, p: N * (N // n) * d + 2 * N * s * n * d,
        ),
        FastWeights(
            "compressed and selected blocks (NSA style)",
            "both",
            "one shared MLP of width N/n, N/n MLPs of width n",
            "locality prior",
            "all-to-one and N-to-N/n",
            "2 N² d/n + 2 N s n d",
            lambda q, key, v: compressed_block_attention(q, key, v, n, s, halves(q), scale(q)),
            lambda N, d, p: 2 * N * (N // n) * d + 2 * N * s * n * d,
        ),
        FastWeights(
            "per-query top-k",
            "routing",
            "N MLPs of width k",
            "all scores, skimmed",
            "N times one-to-one",
            "N² d + N k d",
            lambda q, key, v: top_k_attention(q, key, v, k, scale(q)),
            lambda N, d, p: N * N * d + N * k * d,
        ),
        FastWeights(
            "MiTA",
            "both",
            "one shared MLP of width m, m MLPs of width k",
            "landmark probing",
            "all-to-one and N-to-m",
            "4 N m d + 2 N s k d",
            run_mita,
            lambda N, d, p: 4 * N * m * d + 2 * N * s * k * d,
        ),
    )


FAST_WEIGHTS: tuple[FastWeights, ...] = taxonomy()
"""The taxonomy at m = 4, k = 6, n = 8, s = 1."""
