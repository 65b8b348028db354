"""A few queries read all tokens: what landmarks and agents do, by blocks, and with the tokens on several machines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cbsa import _Head, _heads, _like_tokens, _rows
from .choice import full_precision, second_gradient, second_order
from .together import Shard, add, largest, sum_over

__all__ = ["read_all", "read_all_plain"]


def read_all(queries: Tensor, k: Tensor, v: Tensor, scale: float, shard: Shard | None = None) -> Tensor:
    """``softmax(s queries kᵀ) v`` over the tokens of all ranks: an all-reduce of m (p' + 2) numbers a head.

    Shapes
        queries ``(..., m, p)``, k ``(..., tokens, p)``, v ``(..., tokens, p')``, the same leading axes; returns ``(..., m, p')``
    """
    return _ReadAll.apply(queries, _rows(k), _rows(v), scale, shard)


def read_all_plain(queries: Tensor, k: Tensor, v: Tensor, scale: float, shard: Shard | None = None) -> Tensor:
    """The same as written: the weights of this rank's tokens are stored."""
    scores = scale * (queries @ k.mT)
    weights = torch.exp(scores - largest(scores.amax(-1, keepdim=True), shard))
    return sum_over(weights @ v, shard) / sum_over(weights.sum(-1, keepdim=True), shard)


class _ReadAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, k: Tensor, v: Tensor, scale: float, shard: Shard | None) -> Tensor:
        out = v.new_empty(*queries.shape[:-1], v.shape[-1])
        lse = v.new_empty(*queries.shape[:-1])
        with full_precision(k):
            for at in _heads(queries.shape[:-2]):
                head = _Head(k[at], queries[at], scale)
                out[at], lse[at] = head.extract(v[at], shard), head.lse
        ctx.save_for_backward(queries, k, v, out, lse)
        ctx.scale, ctx.shard = scale, shard
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, k, v, out, lse = ctx.saved_tensors
        if second_order():
            with torch.enable_grad():
                again = read_all_plain(queries, k, v, ctx.scale, ctx.shard)
                return *second_gradient(again, [queries, k, v], grad), None, None
        grad = add(grad, ctx.shard)  # every rank uses the result
        d_queries, d_k, d_v = torch.empty_like(queries), _like_tokens(k), _like_tokens(v)
        with full_precision(k):
            for at in _heads(queries.shape[:-2]):
                head = _Head(k[at], queries[at], ctx.scale)
                mean = (out[at] * grad[at]).sum(-1, keepdim=True)
                total = torch.zeros_like(queries[at])
                for piece in head.with_lse(lse[at]):
                    P = piece.P * piece.share.unsqueeze(-1)
                    piece.of(d_v[at]).copy_(P.mT @ grad[at])
                    d_scores = (grad[at] @ piece.of(v[at]).mT).sub_(mean).mul_(P)
                    piece.of(d_k[at]).copy_(d_scores.mT @ head.queries)
                    total += (d_scores @ piece.of(k[at])).sum(0)
                d_queries[at] = ctx.scale * total
        return d_queries, d_k, d_v, None, None
