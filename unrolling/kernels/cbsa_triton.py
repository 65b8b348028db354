# mypy: disable-error-code="no-untyped-def"
"""CBSA on a GPU: both passes and the backward pass as Triton kernels that hold a head's representatives in registers."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from .choice import full_precision, second_gradient, second_order
from .together import Shard, add, largest

__all__ = ["available", "contract_broadcast_triton"]

LARGEST = 128
"""Representatives, and dimensions of a head, that fit into registers."""

INSTALLED = importlib.util.find_spec("triton") is not None

if INSTALLED:
    import triton
    import triton.language as tl

    @triton.jit
    def _scores(Q, W, scale, PRECISION: tl.constexpr):
        """``s Q Wᵀ`` (m, tokens), in single precision."""
        return tl.dot(Q, tl.trans(W), input_precision=PRECISION) * scale

    @triton.jit
    def _tile(base, rows, columns, stride, N, P, WIDE: tl.constexpr):
        """Rows of a matrix ``(N, P)``, zero outside; WIDE: in single precision, for the interpreter, which has no other."""
        inside = (rows[:, None] < N) & (columns[None, :] < P)
        tile = tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)
        return tile.to(tl.float32) if WIDE else tile

    @triton.jit
    def _extract(
        W, Q, V, MOST, SUMS, READ, LSE, scale, N, M, P, batch, head, heads, row, vbatch, vhead, vrow, splits,
        KNOWN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """One share of a head's tokens: the largest score, the sum and the values read; with KNOWN the weights' lse is given."""
        index, part = tl.program_id(0), tl.program_id(1)
        W += (index // heads).to(tl.int64) * batch + (index % heads) * head
        V += (index // heads).to(tl.int64) * vbatch + (index % heads) * vhead
        m, p = tl.arange(0, BM), tl.arange(0, BP)
        queries = _tile(Q + index * M * P, m, p, P, M, P, WIDE)
        if KNOWN:
            most = tl.load(LSE + index * M + m, mask=m < M, other=0.0)
        else:
            most = tl.full((BM,), -float("inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        read = tl.zeros((BM, BP), tl.float32)
        each = tl.cdiv(tl.cdiv(N, BN), splits) * BN
        first = part * each
        for start in range(first, tl.minimum(first + each, N), BN):
            rows = start + tl.arange(0, BN)
            tokens = _tile(W, rows, p, row, N, P, WIDE)
            scores = tl.where(rows[None, :] < N, _scores(queries, tokens, scale, PRECISION), -float("inf"))
            if KNOWN:
                weights = tl.exp(scores - most[:, None])
            else:
                higher = tl.maximum(most, tl.max(scores, 1))
                shrink = tl.exp(most - higher)
                weights = tl.exp(scores - higher[:, None])
                read *= shrink[:, None]
                total = total * shrink + tl.sum(weights, 1)
                most = higher
            values = _tile(V, rows, p, vrow, N, P, WIDE)
            read += tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        at = (index * splits + part) * M + m
        if not KNOWN:
            tl.store(MOST + at, most, mask=m < M)
            tl.store(SUMS + at, total, mask=m < M)
        tl.store(READ + at[:, None] * P + p[None, :], read, mask=(m[:, None] < M) & (p[None, :] < P))

    @triton.jit
    def _broadcast(
        W, Q, C, LSE, OUT, scale, N, M, P, batch, head, heads, row, obatch, ohead, orow,
        BN: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """A block of tokens receives ``Pᵀ C``."""
        index, rows = tl.program_id(0), tl.program_id(1) * BN + tl.arange(0, BN)
        m, p = tl.arange(0, BM), tl.arange(0, BP)
        tokens = _tile(W + (index // heads).to(tl.int64) * batch + (index % heads) * head, rows, p, row, N, P, WIDE)
        queries = _tile(Q + index * M * P, m, p, P, M, P, WIDE)
        lse = tl.load(LSE + index * M + m, mask=m < M, other=float("inf"))
        weights = tl.exp(_scores(queries, tokens, scale, PRECISION) - lse[:, None])
        change = _tile(C + index * M * P, m, p, P, M, P, WIDE)
        found = tl.dot(tl.trans(weights).to(change.dtype), change, input_precision=PRECISION)
        OUT += (index // heads).to(tl.int64) * obatch + (index % heads) * ohead
        inside = (rows[:, None] < N) & (p[None, :] < P)
        tl.store(OUT + rows[:, None] * orow + p[None, :], found.to(OUT.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward(
        W, Q, G, C, DQ, LSE, MEAN, DW, DQUERIES, scale, N, M, P, batch, head, heads, row, gbatch, ghead, grow,
        obatch, ohead, orow, splits, BN: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """``dS = P ∘ (C Gᵀ + dQ wᵀ − mean)``, ``dw = Pᵀ dQ + s dSᵀ Q_ini``, and this share's ``dS w``."""
        index, part = tl.program_id(0), tl.program_id(1)
        W += (index // heads).to(tl.int64) * batch + (index % heads) * head
        G += (index // heads).to(tl.int64) * gbatch + (index % heads) * ghead
        DW += (index // heads).to(tl.int64) * obatch + (index % heads) * ohead
        m, p = tl.arange(0, BM), tl.arange(0, BP)
        queries = _tile(Q + index * M * P, m, p, P, M, P, WIDE)
        change = _tile(C + index * M * P, m, p, P, M, P, WIDE)
        d_read = _tile(DQ + index * M * P, m, p, P, M, P, WIDE)
        lse = tl.load(LSE + index * M + m, mask=m < M, other=float("inf"))
        mean = tl.load(MEAN + index * M + m, mask=m < M, other=0.0)
        total = tl.zeros((BM, BP), tl.float32)
        each = tl.cdiv(tl.cdiv(N, BN), splits) * BN
        first = part * each
        for start in range(first, tl.minimum(first + each, N), BN):
            rows = start + tl.arange(0, BN)
            tokens = _tile(W, rows, p, row, N, P, WIDE)
            given = _tile(G, rows, p, grow, N, P, WIDE)
            weights = tl.exp(_scores(queries, tokens, scale, PRECISION) - lse[:, None])
            weights = tl.where(rows[None, :] < N, weights, 0.0)
            d_weights = tl.dot(change, tl.trans(given), input_precision=PRECISION)
            d_weights += tl.dot(d_read, tl.trans(tokens), input_precision=PRECISION)
            d_scores = (weights * (d_weights - mean[:, None])).to(tokens.dtype)
            found = tl.dot(tl.trans(d_scores), queries, input_precision=PRECISION) * scale
            found += tl.dot(tl.trans(weights).to(d_read.dtype), d_read, input_precision=PRECISION)
            inside = (rows[:, None] < N) & (p[None, :] < P)
            tl.store(DW + rows[:, None] * orow + p[None, :], found.to(DW.dtype.element_ty), mask=inside)
            total += tl.dot(d_scores, tokens, input_precision=PRECISION)
        at = (index * splits + part) * M + m
        tl.store(DQUERIES + at[:, None] * P + p[None, :], total, mask=(m[:, None] < M) & (p[None, :] < P))


def available(w: Tensor, initial: Tensor) -> bool:
    """Whether the kernels can run on these: a GPU, or Triton's interpreter; at most single precision; small heads."""
    if not INSTALLED or w.dtype == torch.float64:
        return False
    fits = 0 < max(initial.shape[-2:]) <= LARGEST and w.shape[-2] > 0
    return fits and (w.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def contract_broadcast_triton(
    w: Tensor, initial: Tensor, contraction: Any, parameters: list[Tensor], scale: float, shard: Shard | None
) -> Tensor:
    """:func:`unrolling.kernels.contract_broadcast` for tokens and representatives with the same leading axes."""
    return _Contract.apply(w, initial, contraction, (scale, shard), *parameters)


class _Plan:
    """Sizes, strides and launch grids of one call."""

    def __init__(self, w: Tensor, m: int) -> None:
        *_, self.heads, self.N, self.P = w.shape
        self.M, self.count = m, w.shape[:-2].numel()
        wide = w.reshape(-1, self.heads, self.N, self.P)
        self.w = wide if wide.stride(-1) == 1 else wide.contiguous()
        self.blocks = {"BN": 64, "BM": max(16, _power(m)), "BP": max(16, _power(self.P))}
        self.blocks["PRECISION"] = "ieee" if w.dtype == torch.float32 else "tf32"  # type: ignore[assignment]
        self.blocks["WIDE"] = not w.is_cuda
        units = torch.cuda.get_device_properties(w.device).multi_processor_count if w.is_cuda else 2
        self.splits = max(1, min(-(-self.N // self.blocks["BN"]), -(-4 * units // self.count)))

    def strides(self, tensor: Tensor) -> tuple[int, int, int]:
        """Of the batch, the heads and the tokens."""
        return tensor.stride(0), tensor.stride(1), tensor.stride(2)

    def sizes(self) -> tuple[int, int, int]:
        """N, m, p."""
        return self.N, self.M, self.P

    def read(self, queries: Tensor, values: Tensor, scale: float, lse: Tensor | None = None) -> tuple[Tensor, ...]:
        """Largest scores and sums ``(count, splits, m)`` and values read ``(count, splits, m, p)``."""
        shape = (self.count, self.splits, self.M)
        most, sums = (torch.empty(shape, dtype=torch.float32, device=values.device) for _ in range(2))
        read = torch.empty(*shape, self.P, dtype=torch.float32, device=values.device)
        batch, head, row = self.strides(self.w)
        _extract[(self.count, self.splits)](
            self.w, queries, values, most, sums, read, sums if lse is None else lse, scale, *self.sizes(),
            batch, head, self.heads, row, *self.strides(values), self.splits, KNOWN=lse is not None, **self.blocks,
        )  # fmt: skip
        return most, sums, read


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, w: Tensor, initial: Tensor, contraction: Any, how: tuple[float, Shard | None], *parameters: Tensor
    ) -> Tensor:
        scale, shard = how
        plan, queries = _Plan(w, initial.shape[-2]), initial.contiguous()
        with full_precision(w):
            most, sums, read = plan.read(queries, plan.w, scale)
            highest = largest(most.amax(1), shard)
            shares = torch.exp(most - highest.unsqueeze(1))
            total = add((shares * sums).sum(1), shard)
            Q = add((shares.unsqueeze(-1) * read).sum(1), shard) / total.unsqueeze(-1)
            lse, Q = highest + total.log(), Q.to(w.dtype).view_as(initial)
            C = contraction(Q, initial, *parameters).contiguous()
            out = _room(plan)
            grid = (plan.count, -(-plan.N // plan.blocks["BN"]))
            batch, head, row = plan.strides(plan.w)
            _broadcast[grid](
                plan.w, queries, C, lse, out, scale, *plan.sizes(), batch, head, plan.heads, row,
                *plan.strides(out), **plan.blocks,
            )  # fmt: skip
        ctx.save_for_backward(w, initial, Q, lse, *parameters)
        ctx.contraction, ctx.how = contraction, how
        return out.reshape(w.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, initial, Q, lse, *parameters = ctx.saved_tensors
        scale, shard = ctx.how
        if second_order():
            from .cbsa import contract_broadcast_plain

            with torch.enable_grad():
                again = contract_broadcast_plain(w, initial, ctx.contraction, *parameters, scale=scale, shard=shard)
                found = second_gradient(again, [w, initial, *parameters], grad)
            return found[0], found[1], None, None, *found[2:]
        plan, queries, ranks = _Plan(w, initial.shape[-2]), initial.contiguous(), 1 if shard is None else shard.ranks
        g = grad.reshape(plan.w.shape)
        g = g if g.stride(-1) == 1 else g.contiguous()
        with full_precision(w):
            dC = add(plan.read(queries, g, scale, lse)[2].sum(1), shard).to(w.dtype).view_as(initial)
            with torch.enable_grad():
                variables = [each.detach().requires_grad_() for each in (Q, initial, *parameters)]
                C = ctx.contraction(*variables)
                dQ, d_initial, *d_parameters = torch.autograd.grad(C, variables, dC, materialize_grads=True)
            mean = (C.detach().float() * dC.float() + Q.float() * dQ.float()).sum(-1).contiguous()
            dw = _room(plan)
            partial = torch.empty(plan.count, plan.splits, plan.M, plan.P, dtype=torch.float32, device=w.device)
            batch, head, row = plan.strides(plan.w)
            _backward[(plan.count, plan.splits)](
                plan.w, queries, g, C.detach().contiguous(), dQ.contiguous(), lse, mean, dw, partial, scale,
                *plan.sizes(), batch, head, plan.heads, row, *plan.strides(g), *plan.strides(dw), plan.splits,
                **plan.blocks,
            )  # fmt: skip
            d_queries = (scale * partial.sum(1)).to(w.dtype).view_as(initial)
        d_parameters = [each / ranks for each in d_parameters]
        return dw.reshape(w.shape), d_initial / ranks + d_queries, None, None, *d_parameters


def _room(plan: _Plan) -> Tensor:
    """Room for ``(batch, heads, tokens, p)``, laid out as the heads of joint tokens, so that joining them is free."""
    sets = plan.count // plan.heads
    return plan.w.new_empty(sets, plan.N, plan.heads, plan.P).transpose(1, 2)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
