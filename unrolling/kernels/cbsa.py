"""CBSA without an m × N matrix: tokens by blocks that stay in the cache, P computed again in the backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .cbsa_triton import available, contract_broadcast_triton
from .choice import PLAIN, choose, full_precision, second_gradient, second_order
from .scratch import room
from .together import Shard, add, largest, sum_over

__all__ = ["Contraction", "Pooling", "contract_broadcast", "contract_broadcast_plain", "extraction"]

Contraction = Callable[..., Tensor]
"""``contraction(Q, Q_ini, *parameters) → C``: what is broadcast, ``(..., m, p)``; cheap, and differentiable by autograd."""

Pooling = Callable[[Tensor], Tensor]
"""``pooling(w) → Q_ini``, for every head by itself."""

BLOCK, PIECE, HELD = 512, 1 << 20, 1 << 22
"""Tokens a block, and scores of one head held at once: 16 MiB in single precision, half of a common last-level cache."""

WORTH, LONG = 1 << 22, 4096
"""Scores of all heads, and tokens, from which blocks are no slower than the formula; see ``proofs-check bench cbsa``."""


def contract_broadcast(
    w: Tensor,
    initial: Tensor | Pooling,
    contraction: Contraction,
    *parameters: Tensor,
    scale: float,
    kernel: str = "auto",
    shard: Shard | None = None,
) -> Tensor:
    """``Pᵀ C``, C = contraction(P w, Q_ini), P = softmax(s Q_ini wᵀ) over the tokens.

    Shapes
        w ``(..., heads, tokens, p)``, initial ``(..., heads, m, p)``, parameters ``()`` or ``(..., heads, 1, 1)``;
        returns like w
    Parameters
        initial: Q_ini, or how each head's tokens ``(..., tokens, p)`` are pooled to them: then the gradient through the
        pooling joins the others where they are, without another pass over the tokens.
        contraction: maps representatives Q to what is broadcast, given (Q, Q_ini, *parameters) of one head or of all.
        kernel: "plain" stores P; "fast" walks over blocks of tokens, one head at a time: pass one online, with one
        log-sum-exp a block; pass two multiplies; the backward pass computes the scores again. "auto" takes the
        faster. On a GPU "fast" is a Triton kernel, where Triton is installed.
        shard: w holds one rank's tokens, initial (not a pooling) is the same on all ranks, and so is C.
    Memory
        fast, beside the result: one head's scores of at most 4 M tokens × representatives, whatever N and m.
    """
    pooling = None if isinstance(initial, Tensor) else initial
    queries = initial if isinstance(initial, Tensor) else initial(w)
    on_gpu = w.ndim > 2 and available(w, queries)
    if choose("contract_broadcast", kernel, lambda: on_gpu or _worth(w, queries), w, queries, half=on_gpu) == PLAIN:
        return contract_broadcast_plain(w, queries, contraction, *parameters, scale=scale, shard=shard)
    leading = torch.broadcast_shapes(w.shape[:-2], queries.shape[:-2])
    w, queries = (_rows(t.expand(*leading, *t.shape[-2:])) for t in (w, queries))
    spread = [torch.as_tensor(each, dtype=w.dtype, device=w.device).expand(*leading, 1, 1) for each in parameters]
    if on_gpu:
        return contract_broadcast_triton(w, queries, contraction, spread, scale, shard)
    if pooling is not None:
        queries = queries.detach()
    return _ContractBroadcast.apply(w, queries, contraction, pooling, (scale, shard), *spread)


def contract_broadcast_plain(
    w: Tensor,
    initial: Tensor | Pooling,
    contraction: Contraction,
    *parameters: Tensor,
    scale: float,
    shard: Shard | None = None,
) -> Tensor:
    """The same as written: P of every head is stored."""
    initial = initial if isinstance(initial, Tensor) else initial(w)
    scores = scale * (initial @ w.mT)
    if shard is not None:
        weights = torch.exp(scores - largest(scores.amax(-1, keepdim=True), shard))
        P = weights / sum_over(weights.sum(-1, keepdim=True), shard)
        return P.mT @ contraction(sum_over(P @ w, shard), initial, *parameters)
    P = torch.softmax(scores, dim=-1)
    return P.mT @ contraction(P @ w, initial, *parameters)


@torch.no_grad()
def extraction(
    w: Tensor, initial: Tensor | Pooling, scale: float, kernel: str = "auto", shard: Shard | None = None
) -> tuple[Tensor, Tensor]:
    """An upper bound for ``‖P‖₂²`` of every head, ``(..., heads)``, and Q = P w: what certified steps need.

    ``‖P‖₂² ≤ min(‖P‖₁ ‖P‖_∞, ‖P‖_F²)``, the rows of P summing to 1. Not differentiated.
    """
    queries = initial if isinstance(initial, Tensor) else initial(w)
    leading = torch.broadcast_shapes(w.shape[:-2], queries.shape[:-2])
    w, queries = (_rows(t.expand(*leading, *t.shape[-2:])) for t in (w, queries))
    if shard is None and choose("extraction", kernel, lambda: _worth(w, queries), w, queries) == PLAIN:
        P = torch.softmax(scale * (queries @ w.mT), dim=-1)
        return torch.minimum(P.sum(-2).amax(-1), P.square().sum((-2, -1))), P @ w
    bound, Q = w.new_empty(leading), torch.empty_like(queries, memory_format=torch.contiguous_format)
    for at in _heads(leading):
        head = _Head(w[at], queries[at], scale)
        Q[at] = head.extract(shard=shard)
        columns, squares = w.new_zeros(()), w.new_zeros(())
        for piece in head.again():
            P = piece.P * piece.share.unsqueeze(-1)
            columns, squares = torch.maximum(columns, P.sum(-2).max()), squares + P.square().sum()
        bound[at] = torch.minimum(largest(columns, shard), add(squares, shard))
    return bound, Q


class _Piece:
    """Some blocks of tokens: coordinates ``(blocks, tokens, p)``, and P of each block, normalised within the block."""

    def __init__(self, start: int, blocks: int, tokens: int) -> None:
        self.start, self.blocks, self.tokens = start, blocks, tokens
        self.share: Tensor  # (blocks, m): P = share · (P within the block)
        self.P: Tensor  # (blocks, m, tokens)

    def of(self, rows: Tensor) -> Tensor:
        """The blocks of ``(N, p)``, a view."""
        part = rows[self.start : self.start + self.blocks * self.tokens]
        return part.unflatten(0, (self.blocks, self.tokens))


def _pieces(N: int, m: int) -> list[_Piece]:
    """Blocks of equal size, as many at once as may be held, and the tokens that remain."""
    block = min(N, BLOCK)
    each, pieces, start = max(1, PIECE // (m * block)), [], 0
    while N - start >= block:
        count = min(each, (N - start) // block)
        pieces.append(_Piece(start, count, block))
        start += count * block
    return pieces if start == N else [*pieces, _Piece(start, 1, N - start)]


class _Head:
    """One head's two passes: ``extract`` returns Q, ``again`` walks over the pieces with their P."""

    def __init__(self, w: Tensor, initial: Tensor, scale: float, buffer: Tensor | None = None) -> None:
        self.w, self.queries, self.scale = w, scale * initial, scale
        self.pieces = _pieces(len(w), len(initial))
        self.kept = len(w) * len(initial) <= HELD
        largest = max(piece.blocks * piece.tokens for piece in self.pieces)
        size = len(initial) * (len(w) if self.kept else largest)
        self.buffer = room("scores", (size,), w) if buffer is None else buffer

    def _within(self, piece: _Piece, offset: int) -> tuple[Tensor, Tensor]:
        """P within each block and its largest score, ``(blocks, m)``."""
        m = len(self.queries)
        shape = (piece.blocks, m, piece.tokens)
        room = self.buffer[offset : offset + piece.blocks * m * piece.tokens].view(shape)
        torch.bmm(self.queries.expand(piece.blocks, -1, -1), piece.of(self.w).mT, out=room)
        highest = room.amax(-1)
        torch.softmax(room, dim=-1, out=room)
        return room, highest

    def extract(self, values: Tensor | None = None, shard: Shard | None = None) -> Tensor:
        """Q = P w, or P times other values, and with it each piece's share: ``exp(lse of the block − lse of all)``."""
        values = self.w if values is None else values
        sizes, read = [], []
        for piece in self.pieces:
            offset = piece.start * len(self.queries) if self.kept else 0
            piece.P, highest = self._within(piece, offset)
            sizes.append(highest - piece.P.amax(-1).log())
            read.append(torch.bmm(piece.P, piece.of(values)))
        blocks = torch.cat(sizes)
        most = largest(blocks.amax(0), shard)
        weights = torch.exp(blocks - most)
        joint = torch.cat([weights.sum(0).unsqueeze(-1), (weights.unsqueeze(-1) * torch.cat(read)).sum(0)], dim=-1)
        joint = add(joint, shard)  # over ranks: one number and the values of every representative
        self.lse = most + joint[:, 0].log()
        self._share(weights / joint[:, 0])
        return joint[:, 1:] / joint[:, :1]

    def _share(self, shares: Tensor) -> None:
        for piece, share in zip(self.pieces, shares.split([piece.blocks for piece in self.pieces]), strict=True):
            piece.share = share

    def with_lse(self, lse: Tensor) -> Iterator[_Piece]:
        """The pieces with their P, computed again, where the log-sum-exp over all tokens is known."""
        for piece in self.pieces:
            piece.P, most = self._within(piece, 0)
            piece.share = torch.exp(most - piece.P.amax(-1).log() - lse)
            yield piece

    def again(self) -> Iterator[_Piece]:
        """The pieces, each with its P: from the first pass if it was kept, else computed again."""
        for piece in self.pieces:
            if not self.kept:
                piece.P, _ = self._within(piece, 0)
            yield piece


class _ContractBroadcast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        initial: Tensor,
        contraction: Contraction,
        pooling: Pooling | None,
        how: tuple[float, Shard | None],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(w, initial, *parameters)
        ctx.contraction, ctx.pooling, (ctx.scale, ctx.shard) = contraction, pooling, how
        scale, shard = how
        out, buffer = _like_tokens(w), None
        with full_precision(w):
            for at in _heads(w.shape[:-2]):
                head = _Head(w[at], initial[at], scale, buffer)
                buffer = head.buffer
                C = contraction(head.extract(shard=shard), initial[at], *(each[at] for each in parameters))
                for piece in head.again():
                    torch.bmm(piece.P.mT, piece.share.unsqueeze(-1) * C, out=piece.of(out[at]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, initial, *parameters = ctx.saved_tensors
        if second_order():
            with torch.enable_grad():
                given = initial if ctx.pooling is None else ctx.pooling
                out = contract_broadcast_plain(w, given, ctx.contraction, *parameters, scale=ctx.scale, shard=ctx.shard)
                inputs = [w, initial, *parameters]
                found = second_gradient(out, inputs, grad)
            return found[0], found[1], None, None, None, *found[2:]
        grad = _rows(grad)
        dw, d_initial = _like_tokens(w), torch.empty_like(initial, memory_format=torch.contiguous_format)
        d_parameters = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in parameters]
        with full_precision(w):
            work: list[Tensor] = []
            for at in _heads(w.shape[:-2]):
                d_initial[at], per_parameter = _head_backward(
                    w[at], initial[at], [each[at] for each in parameters], grad[at], dw[at], ctx, work
                )
                for whole, one in zip(d_parameters, per_parameter, strict=True):
                    whole[at] = one
                if ctx.pooling is not None:
                    with torch.enable_grad():
                        tokens = w[at].detach()[None].requires_grad_()
                        (through,) = torch.autograd.grad(ctx.pooling(tokens), tokens, d_initial[at][None])
                    dw[at] += through[0]
        return dw, None if ctx.pooling is not None else d_initial, None, None, None, *d_parameters


def _head_backward(
    w: Tensor, initial: Tensor, parameters: list[Tensor], grad: Tensor, dw: Tensor, ctx: Any, work: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Writes the gradient of w into dw; returns those of Q_ini and of the parameters. G = grad:

    ``dC = P G``, ``dQ`` by the contraction, ``dP = C Gᵀ + dQ wᵀ``, ``dS = P ∘ (dP − rows(C ∘ dC + Q ∘ dQ))``,
    ``dw = Pᵀ dQ + s dSᵀ Q_ini``, ``dQ_ini = s dS w``.
    """
    head = _Head(w, initial, ctx.scale, work[0] if work else None)
    if not work:
        work += [head.buffer, room("d scores", head.buffer.shape, w)]
    shard, ranks = ctx.shard, 1 if ctx.shard is None else ctx.shard.ranks
    Q = head.extract(shard=shard)
    dC = torch.zeros_like(Q)
    for piece in head.again():
        dC += (piece.share.unsqueeze(-1) * torch.bmm(piece.P, piece.of(grad))).sum(0)
    dC = add(dC, shard)
    with torch.enable_grad():
        variables = [each.detach().requires_grad_() for each in (Q, initial, *parameters)]
        C = ctx.contraction(*variables)
        dQ, d_initial, *d_parameters = torch.autograd.grad(C, variables, dC, materialize_grads=True)
    mean = (C.detach() * dC + Q * dQ).sum(-1)
    both = torch.cat([C.detach(), dQ], dim=-1)
    d_queries = torch.zeros_like(Q)
    for piece in head.again():
        share = piece.share.unsqueeze(-1)
        scaled = share * both
        d_scores = work[1][: piece.P.numel()].view_as(piece.P)
        torch.bmm(scaled[..., : C.shape[-1]], piece.of(grad).mT, out=d_scores)
        d_scores.baddbmm_(scaled[..., C.shape[-1] :], piece.of(w).mT)
        d_scores.sub_(share * mean.unsqueeze(-1)).mul_(piece.P)
        rows = piece.of(dw)
        torch.bmm(piece.P.mT, share * dQ, out=rows)
        rows.baddbmm_(d_scores.mT, head.queries.expand(piece.blocks, -1, -1))
        d_queries += torch.bmm(d_scores, piece.of(w)).sum(0)
    # All ranks have done the same with the contraction: each returns its share of those gradients.
    return d_initial / ranks + ctx.scale * d_queries, [each / ranks for each in d_parameters]


def _worth(w: Tensor, initial: Tensor) -> bool:
    return w.shape[-2] >= LONG and w.shape[:-1].numel() * initial.shape[-2] >= WORTH


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with its rows in one piece; coordinates cut from a joint projection are already."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _like_tokens(w: Tensor) -> Tensor:
    """Room for ``(..., heads, tokens, p)``, laid out as the heads of joint tokens, so that joining them is free."""
    if w.ndim < 3:
        return torch.empty_like(w)
    *leading, heads, tokens, p = w.shape
    return w.new_empty(*leading, tokens, heads, p).transpose(-3, -2)


def _heads(leading: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in leading))
