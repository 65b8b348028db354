"""TSSA in two walks over the tokens, a chunk in the cache at a time; the causal form by prefix sums with a carry."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .choice import PLAIN, choose, full_precision, second_gradient, second_order
from .scratch import room
from .together import Shard, add, sum_before, sum_over

__all__ = ["Statistics", "memberships", "shrink", "shrink_plain"]

CHUNK = 1 << 19
"""Numbers a chunk: 2 MiB in single precision, so that a chunk and a scratch of its size share a core's cache."""

WORTH = 1 << 20
"""Coordinates of all heads from which chunks are faster than the formula; see ``proofs-check bench tssa``."""

_SMALLEST = 1e-24
"""Squared length below which a channel counts as zero when it is normalised, as in the released code."""


class Statistics(NamedTuple):
    """What TSSA does with the second moments; see :class:`unrolling.TSSA`."""

    rate: float
    """d/ε², for the moments."""
    normalise: bool = False
    causal: bool = False
    unit_step: bool = False
    offset: float = 0.0
    dropout: float = 0.0

    def factor(self, tokens: int) -> float:
        """d/(Nε²) of the step."""
        return 1.0 if self.unit_step else self.rate / tokens


def shrink(
    w: Tensor,
    temperature: Tensor,
    step: Tensor,
    how: Statistics,
    bias: Tensor | None = None,
    kernel: str = "auto",
    shard: Shard | None = None,
) -> Tensor:
    """``κ (d/(Nε²)) Π ∘ W / (1 + (d/ε²) s/n)``, Π = softmax over heads of ``τ ‖w‖²``, s = Σ Π w², n = Σ Π.

    Causal: all sums up to each token, and i for N.

    Shapes
        w ``(..., heads, tokens, p)``, temperature ``(heads,)``, step κ ``()`` or ``(..., heads, 1, 1)``, bias of the
        lengths ``(heads, tokens)`` or None; returns like w
    Parameters
        kernel: "plain" as written; "fast": one walk for the statistics and one for the result, and as many in the
        backward pass; "auto" takes the faster. shard: w holds one rank's tokens, and bias theirs; p + 1 numbers a head are
        summed (p more where lengths are normalised). Causal: the formula is taken, with the sums of the ranks before.
    Memory
        fast, beside the result: Π, ``heads × tokens``, and two chunks; causal besides p + 1 numbers a head and chunk.
    """
    if how.dropout or choose("shrink", kernel, lambda: w.numel() >= WORTH, w, temperature) == PLAIN:
        return shrink_plain(w, temperature, step, how, bias, shard)
    if shard is not None and how.causal:
        return shrink_plain(w, temperature, step, how, bias, shard)
    if w.dtype in (torch.float16, torch.bfloat16):  # forced under autocast: sums are kept in single precision
        wide, extra = torch.as_tensor(step).float(), None if bias is None else bias.float()
        return shrink(w.float(), temperature.float(), wide, how, extra, kernel, shard).to(w.dtype)
    leading = w.shape[:-2]
    spread = torch.as_tensor(step, dtype=w.dtype, device=w.device).expand(*leading, 1, 1)
    if how.causal:
        extra = torch.zeros_like(w[..., 0], requires_grad=False) if bias is None else bias.expand(w.shape[:-1])
        return _CausalShrink.apply(w, temperature, spread, extra, how)
    return _Shrink.apply(w, temperature, spread, how, shard)


def shrink_plain(
    w: Tensor,
    temperature: Tensor,
    step: Tensor,
    how: Statistics,
    bias: Tensor | None = None,
    shard: Shard | None = None,
) -> Tensor:
    """The same as written."""
    smallest, tokens = torch.finfo(w.dtype).tiny, w.shape[-2] if shard is None else shard.total
    members = memberships(w, temperature, how, bias, shard).unsqueeze(-1)
    if not how.causal:
        counts = (sum_over(members.sum(-2, keepdim=True), shard) + how.offset).clamp(min=smallest)
        moments = sum_over((members / counts).mT @ w.square(), shard)
        factor: float | Tensor = how.factor(tokens)
    else:
        counts = (_prefix(members, shard) + how.offset).clamp(min=smallest)
        moments = _prefix(members * w.square(), shard) / counts
        first = 1 if shard is None else 1 + shard.start
        places = torch.arange(first, first + w.shape[-2], dtype=w.dtype, device=w.device).unsqueeze(-1)
        factor = 1.0 if how.unit_step else how.rate / places
    shrunk = factor * members * (w / (1.0 + how.rate * moments))
    if how.dropout:
        shrunk = shrunk * F.dropout(torch.ones_like(moments), how.dropout)
    return step * shrunk


def _prefix(rows: Tensor, shard: Shard | None) -> Tensor:
    """Sums up to every token, those of the ranks before included."""
    inside = rows.cumsum(-2)
    return inside if shard is None else inside + sum_before(inside[..., -1:, :], shard)


def memberships(
    w: Tensor, temperature: Tensor, how: Statistics, bias: Tensor | None = None, shard: Shard | None = None
) -> Tensor:
    """Π ``(..., heads, tokens)``: the softmax over heads of the temperature times the lengths."""
    squares = w.square()
    if how.normalise:
        whole = _prefix(squares, shard) if how.causal else sum_over(squares.sum(-2, keepdim=True), shard)
        squares = squares / whole.clamp(min=_smallest(w))
    lengths = squares.sum(-1)
    if bias is not None:
        lengths = lengths + bias
    return torch.softmax(temperature.unsqueeze(-1) * lengths, dim=-2)


def _smallest(w: Tensor) -> float:
    return max(_SMALLEST, torch.finfo(w.dtype).tiny)


class _Shrink(torch.autograd.Function):
    """One token set after the other, ``(tokens, heads, p)`` as it lies in memory."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, temperature: Tensor, step: Tensor, how: Statistics, shard: Shard | None) -> Tensor:
        tokens = w.shape[-2] if shard is None else shard.total
        sets, out = _sets(w), torch.empty_like(_joint(w))
        Pi = w.new_empty(len(sets), w.shape[-3], w.shape[-2])
        seen = []
        with full_precision(w):
            for index, x in enumerate(sets):
                whole, moments, counts = _statistics(x, temperature, how, Pi[index], shard)
                seen += [whole, moments, counts]
                gain = how.factor(tokens) * step.reshape(-1, x.shape[1])[index].unsqueeze(-1)
                gain = gain / (1.0 + how.rate * moments)
                target = out.view(-1, *x.shape)[index]
                for part in _chunks(x):
                    torch.mul(x[part], gain, out=target[part]).mul_(_of(Pi[index], part))
        ctx.save_for_backward(w, temperature, step, Pi, *seen)
        ctx.how, ctx.shard = how, shard
        return out.unflatten(-1, (w.shape[-3], w.shape[-1])).transpose(-3, -2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, temperature, step, Pi, *seen = ctx.saved_tensors
        if second_order():
            with torch.enable_grad():
                out = shrink_plain(w, temperature, step, ctx.how, None, ctx.shard)
                return *second_gradient(out, [w, temperature, step], grad), None, None
        dw, d_temperature = torch.empty_like(_joint(w)), torch.zeros_like(temperature)
        d_step = torch.empty_like(step, memory_format=torch.contiguous_format)
        sets, grads = _sets(w), _sets(grad)
        with full_precision(w):
            for index, (x, g) in enumerate(zip(sets, grads, strict=True)):
                statistics = seen[3 * index : 3 * index + 3]
                kappa = step.reshape(-1, x.shape[1])[index]
                target = dw.view(-1, *x.shape)[index]
                way = (ctx.how, ctx.shard)
                one, other = _set_backward(x, g, temperature, kappa, way, Pi[index], statistics, target)
                d_temperature += one
                d_step.view(-1, x.shape[1])[index] = other
        return dw.unflatten(-1, (w.shape[-3], w.shape[-1])).transpose(-3, -2), d_temperature, d_step, None, None


def _statistics(
    x: Tensor, temperature: Tensor, how: Statistics, Pi: Tensor, shard: Shard | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``Σ w²`` where the lengths are normalised by it, the moments s/n ``(heads, p)`` and n ``(heads, 1)``; fills Pi."""
    whole = add(_whole(x, how), shard) if how.normalise else _whole(x, how)
    sums, room = torch.zeros_like(x[0]), _room(x)
    for part in _chunks(x):
        rows = x[part]
        squares = torch.mul(rows, rows, out=room[: len(rows)])
        lengths = (squares if not how.normalise else squares / whole.clamp(min=_smallest(x))).sum(-1)
        torch.softmax((lengths * temperature).mT, dim=0, out=Pi[:, part])
        sums += squares.mul_(_of(Pi, part)).sum(0)
    joint = add(torch.cat([sums, Pi.sum(1, keepdim=True)], dim=-1), shard)
    sums, counts = joint[:, :-1], joint[:, -1:]
    counts = (counts + how.offset).clamp(min=torch.finfo(x.dtype).tiny)
    return whole, sums / counts, counts


def _whole(x: Tensor, how: Statistics) -> Tensor:
    """``Σ_i w_i²`` ``(heads, p)``, where it is needed."""
    whole = torch.zeros_like(x[0])
    if how.normalise:
        for part in _chunks(x):
            whole += (x[part] * x[part]).sum(0)
    return whole


def _set_backward(
    x: Tensor,
    g: Tensor,
    temperature: Tensor,
    kappa: Tensor,
    way: tuple[Statistics, Shard | None],
    Pi: Tensor,
    statistics: list[Tensor],
    dx: Tensor,
) -> tuple[Tensor, Tensor]:
    """With ``D = κ f/(1 + r m)``, m = s/n: ``out = Π w D``; dx is written in place, returns dτ and dκ.

    ``dD = Σ Π w g``, ``ds = −r D dD / ((1 + r m) n)``, ``dn = −Σ_c ds m``, ``dΠ = Σ_c (w g D + w² ds) + dn``, through the
    softmax to the lengths, and ``dw = g Π D + 2 w (dlengths + Π ds)``.
    """
    how, shard = way
    whole, moments, counts = statistics
    shrinkage = how.factor(len(x) if shard is None else shard.total) / (1.0 + how.rate * moments)
    dD = torch.zeros_like(moments)
    one, two = _room(x), _room(x, "other chunk")
    for part in _chunks(x):
        rows = x[part]
        dD += torch.mul(rows, g[part], out=one[: len(rows)]).mul_(_of(Pi, part)).sum(0)
    d_kappa = (dD * shrinkage).sum(-1)  # one rank's share
    dD = add(dD, shard)
    D = kappa.unsqueeze(-1) * shrinkage
    d_sums = -how.rate * D * dD / ((1.0 + how.rate * moments) * counts)
    floored = counts <= torch.finfo(x.dtype).tiny
    d_counts = torch.where(floored, 0.0, -(d_sums * moments).sum(-1, keepdim=True))
    inverse = 1.0 / whole.clamp(min=_smallest(x)) if how.normalise else None
    d_temperature = torch.zeros_like(temperature)
    d_lengths = torch.empty_like(Pi)
    d_whole = torch.zeros_like(moments)
    for part in _chunks(x):
        rows = x[part]
        squares, both = (torch.mul(rows, o[part], out=r[: len(rows)]) for o, r in ((x, one), (g, two)))
        lengths = (squares if inverse is None else squares * inverse).sum(-1)
        d_Pi = (both.mul_(D).sum(-1) + torch.mul(squares, d_sums, out=both).sum(-1)).mT + d_counts
        d_logits = Pi[:, part] * (d_Pi - (Pi[:, part] * d_Pi).sum(0))
        d_temperature += (d_logits.mT * lengths).sum(0)
        d_lengths[:, part] = d_logits * temperature.unsqueeze(-1)
        if inverse is not None:
            d_whole += squares.mul_(_of(d_lengths, part)).sum(0)
        else:
            _to_tokens(x, g, part, D, d_sums, Pi, d_lengths, None, None, dx, one)
    if inverse is not None:
        d_whole = add(d_whole, shard)
        past = torch.where(whole > _smallest(x), -d_whole * inverse * inverse, 0.0)
        for part in _chunks(x):
            _to_tokens(x, g, part, D, d_sums, Pi, d_lengths, inverse, past, dx, one)
    return d_temperature, d_kappa


def _to_tokens(
    x: Tensor,
    g: Tensor,
    part: slice,
    D: Tensor,
    d_sums: Tensor,
    Pi: Tensor,
    d_lengths: Tensor,
    inverse: Tensor | None,
    past: Tensor | None,
    dx: Tensor,
    room: Tensor,
) -> None:
    members = _of(Pi, part)
    inner = torch.mul(2.0 * d_sums, members, out=room[: len(members)])
    if inverse is None or past is None:
        inner += 2.0 * _of(d_lengths, part)
    else:
        inner += (2.0 * inverse) * _of(d_lengths, part) + 2.0 * past
    torch.mul(g[part], D, out=dx[part]).mul_(members).addcmul_(inner, x[part])


class _CausalShrink(torch.autograd.Function):
    """Chunks one after the other with a carry: the sums over all tokens before. Backward: from the last to the first."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, temperature: Tensor, step: Tensor, bias: Tensor, how: Statistics) -> Tensor:
        carry = _no_past(w)
        carries, pieces = [], []
        with full_precision(w):
            for part in _causal_chunks(w):
                carries.append(carry)
                piece, carry = _causal_chunk(w, temperature, step, bias, carry, part, how)
                pieces.append(piece)
        ctx.save_for_backward(w, temperature, step, bias, *(each for carry in carries for each in carry))
        ctx.how = how
        return torch.cat(pieces, dim=-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, temperature, step, bias, *flat = ctx.saved_tensors
        if second_order():
            with torch.enable_grad():
                out = shrink_plain(w, temperature, step, ctx.how, bias)
                return *second_gradient(out, [w, temperature, step, bias], grad), None
        carries = [tuple(flat[start : start + 3]) for start in range(0, len(flat), 3)]
        parts = list(_causal_chunks(w))
        d_w, d_bias = torch.empty_like(w), torch.empty_like(bias, memory_format=torch.contiguous_format)
        totals = [torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (temperature, step)]
        d_carry: tuple[Tensor, ...] = tuple(torch.zeros_like(each) for each in carries[0])
        with full_precision(w):
            for part, carry in zip(reversed(parts), reversed(carries), strict=True):
                with torch.enable_grad():
                    rows, some = (each.detach().requires_grad_() for each in (w[..., part, :], bias[..., part]))
                    tau, kappa = (each.detach().requires_grad_() for each in (temperature, step))
                    past = tuple(each.detach().requires_grad_() for each in carry)
                    piece, after = _causal_chunk(rows, tau, kappa, some, past, part, ctx.how, cut=True)
                    found = torch.autograd.grad(
                        [piece, *after],
                        [rows, some, tau, kappa, *past],
                        [grad[..., part, :], *d_carry],
                        materialize_grads=True,
                        allow_unused=True,
                    )
                d_w[..., part, :], d_bias[..., part] = found[0], found[1]
                for total, one in zip(totals, found[2:4], strict=True):
                    total += one
                d_carry = found[4:]
        return d_w, totals[0], totals[1], d_bias, None


def _no_past(w: Tensor) -> tuple[Tensor, ...]:
    """The sums before the first token: of w² for the lengths, of Π w², of Π."""
    nothing = w.new_zeros(*w.shape[:-2], 1, w.shape[-1])
    return nothing, nothing, nothing[..., :1]


def _causal_chunk(
    w: Tensor,
    temperature: Tensor,
    step: Tensor,
    bias: Tensor,
    past: tuple[Tensor, ...],
    part: slice,
    how: Statistics,
    cut: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result of one chunk, and the sums up to its end; ``cut``: w and bias hold the chunk alone."""
    rows, some = (w, bias) if cut else (w[..., part, :], bias[..., part])
    squares = rows.square()
    whole, sums, counts = past
    shown = squares
    if how.normalise:
        wholes = whole + squares.cumsum(-2)
        shown, whole = squares / wholes.clamp(min=_smallest(w)), wholes[..., -1:, :]
    members = torch.softmax(temperature.unsqueeze(-1) * (shown.sum(-1) + some), dim=-2).unsqueeze(-1)
    all_counts = counts + members.cumsum(-2)
    all_sums = sums + (members * squares).cumsum(-2)
    moments = all_sums / (all_counts + how.offset).clamp(min=torch.finfo(w.dtype).tiny)
    places = torch.arange(part.start + 1, part.start + rows.shape[-2] + 1, dtype=w.dtype, device=w.device)
    factor = 1.0 if how.unit_step else how.rate / places.unsqueeze(-1)
    piece = step * (factor * members * (rows / (1.0 + how.rate * moments)))
    return piece, (whole, all_sums[..., -1:, :], all_counts[..., -1:, :])


def _joint(w: Tensor) -> Tensor:
    """``(..., tokens, heads · p)``: free for coordinates cut from a joint projection."""
    return w.transpose(-3, -2).flatten(-2)


def _sets(w: Tensor) -> list[Tensor]:
    """The token sets ``(tokens, heads, p)`` of a batch, contiguous."""
    joint = w.transpose(-3, -2)
    return [each.contiguous() for each in joint.reshape(-1, *joint.shape[-3:])]


def _chunks(x: Tensor) -> list[slice]:
    each = max(1, CHUNK // x[0].numel())
    return [slice(start, min(start + each, len(x))) for start in range(0, len(x), each)]


def _causal_chunks(w: Tensor) -> list[slice]:
    tokens = w.shape[-2]
    each = max(1, CHUNK * tokens // w.numel())
    return [slice(start, min(start + each, tokens)) for start in range(0, tokens, each)]


def _room(x: Tensor, name: str = "chunk") -> Tensor:
    """Room for a chunk."""
    return room(name, (min(len(x), max(1, CHUNK // x[0].numel())), *x.shape[1:]), x)


def _of(numbers: Tensor, part: slice) -> Tensor:
    """One number a token and head ``(heads, tokens)`` beside its p coordinates: ``(chunk, heads, 1)``."""
    return numbers[:, part].mT.contiguous().unsqueeze(-1)
