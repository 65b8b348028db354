"""MiTA by sorted queries: landmarks read all keys, every tile of queries reads the keys of its expert, one merge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cbsa import _heads, _like_tokens
from .choice import full_precision, second_gradient, second_order
from .scratch import room
from .tiles import Tiles, pick, seen_before, top_indices, top_unordered

__all__ = ["Routing", "routed_attention"]

HELD, TABLES = 1 << 20, 1 << 20
"""Numbers of a group of heads held at once, scores and tiles of keys: 4 MiB each in single precision, for the cache."""


class Routing(NamedTuple):
    """What MiTA does; see :func:`unrolling.mita`."""

    scale: float
    keys: int
    experts: int
    shared: bool = True
    deduplicate: bool = False
    twice_scaled: bool = False

    @property
    def shared_scale(self) -> float:
        """Of the landmarks' scores."""
        return self.scale**2 if self.twice_scaled else self.scale


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    landmarks: Tensor,
    how: Routing,
    experts: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """:func:`unrolling.mita` in the order of the experts; all arguments have the same leading axes.

    values: the landmarks' ``(..., m, p')``, where they were read elsewhere; experts must then be given.

    Memory
        beside the result: the log-sum-exp, the chosen experts and keys; scores of one group of heads at a time. No
        array of tokens × m × p or tokens × k × p, in either pass.
    """
    return _Routed.apply(q, k, v, landmarks, experts, how, values)


class _Group(NamedTuple):
    """Some heads together ``(heads, tokens, p)``, contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    landmarks: Tensor


class _Kept(NamedTuple):
    """What the backward pass needs of a group."""

    landmark_values: Tensor
    landmark_lse: Tensor
    chosen: Tensor
    routes: Tensor
    lse: Tensor


class _Routed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        landmarks: Tensor,
        experts: Tensor | None,
        how: Routing,
        values: Tensor | None,
    ) -> Tensor:
        out = _room(q, v.shape[-1])
        kept: list[Tensor] = []
        with full_precision(q):
            for heads in _groups(q, k, landmarks, how):
                group = _Group(*(_stacked(each, heads) for each in (q, k, v, landmarks)))
                given = None if experts is None else _stacked(experts, heads)
                known = None if values is None else _stacked(values, heads)
                found, read = _group_forward(group, given, how, known)
                kept += found
                for at, one in zip(heads, read, strict=True):
                    out[at] = one
        options = [each for each in (experts, values) if each is not None]
        ctx.save_for_backward(q, k, v, landmarks, out, *options, *kept)
        ctx.how, ctx.given, ctx.known = how, experts is not None, values is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, landmarks, out, *rest = ctx.saved_tensors
        given = rest.pop(0) if ctx.given else None
        values = rest.pop(0) if ctx.known else None
        kept = rest
        if second_order():
            from .mita import mita_plain

            with torch.enable_grad():
                again = mita_plain(q, k, v, landmarks, ctx.how, given, values=values)
                inputs = [q, k, v, landmarks, *([] if values is None else [values])]
                twice = second_gradient(again, inputs, grad)
                return *twice[:4], None, None, twice[4] if ctx.known else None
        rooms = [_room(q, q.shape[-1]), _room(k, k.shape[-1]), _room(v, v.shape[-1])]
        d_landmarks = torch.empty_like(landmarks, memory_format=torch.contiguous_format)
        d_values = v.new_empty(*landmarks.shape[:-1], v.shape[-1])
        size = len(_Kept._fields)
        with full_precision(q):
            for index, heads in enumerate(_groups(q, k, landmarks, ctx.how)):
                group = _Group(*(_stacked(each, heads) for each in (q, k, v, landmarks)))
                saved = _Kept(*kept[size * index : size * index + size])
                both = _stacked(out, heads), _stacked(grad, heads)
                found = _group_backward(group, saved, *both, ctx.how, ctx.known)
                for room, several in zip([*rooms, d_landmarks, d_values], found, strict=True):
                    for at, one in zip(heads, several, strict=True):
                        room[at] = one
        return *rooms, d_landmarks, None, None, d_values if ctx.known else None


def _group_forward(group: _Group, experts: Tensor | None, how: Routing, known: Tensor | None) -> tuple[_Kept, Tensor]:
    q, k, v, landmarks = group
    if known is not None and experts is not None:
        values, lse, chosen = known, known[..., :1], experts
    else:
        values, lse, chosen = _read_all(group, experts, how)
    width = chosen.shape[-1]
    outs, totals, routes = [], [], []
    tables = (chosen, k, v) if width else None
    for queries in _split(q, landmarks.shape[-2]):
        nearness = _product(queries, landmarks.mT, "nearness")
        route = top_unordered(nearness, how.experts if width else 0)
        parts: list[tuple[Tensor, Tensor]] = []
        if how.shared:
            scores = nearness.mul_(how.shared_scale)
            largest = scores.amax(-1)
            weights = torch.softmax(scores, dim=-1, out=scores)
            parts.append((_product(weights, values, "shared"), largest - weights.amax(-1).log()))
        if tables is not None:
            read, logs = _read_tiles(queries, tables, route, how)
            parts += [(read[..., j, :], logs[..., j]) for j in range(read.shape[-2])]
        total = torch.logsumexp(torch.stack([each for _, each in parts]), dim=0)
        first, *others = parts
        merged = first[0] * torch.exp(first[1] - total).unsqueeze(-1)
        for read_one, log in others:
            merged.addcmul_(read_one, torch.exp(log - total).unsqueeze(-1))
        outs.append(merged)
        totals.append(total)
        routes.append(route.to(torch.int32))
    return _Kept(values, lse, chosen, _whole(routes), _whole(totals)), _whole(outs)


def _read_all(group: _Group, experts: Tensor | None, how: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """The landmarks' values, their log-sum-exps ``(heads, m, 1)`` and the keys of every expert: one walk over the keys."""
    _, k, v, landmarks = group
    heads, m = landmarks.shape[:2]
    empty = v.new_zeros(heads, m, v.shape[-1])
    if not how.shared and experts is not None:
        return empty, empty[..., :1], experts
    read, logs, best, indices = [], [], [], []
    start = 0
    for keys, rows in zip(_split(k, m), _split(v, m), strict=True):
        products = _products(landmarks, keys)
        if experts is None and how.keys:
            index = top_unordered(products, how.keys)
            best.append(products.gather(-1, index))
            indices.append(index + start)
        start += keys.shape[1]
        if how.shared:
            scores = products.mul_(how.scale)
            largest = scores.amax(-1, keepdim=True)
            weights = torch.softmax(scores, dim=-1, out=scores)
            logs.append(largest - weights.amax(-1, keepdim=True).log())
            read.append(weights @ rows)
    if experts is None:
        experts = _best_of(best, indices, how.keys, k)
    if not how.shared:
        return empty, empty[..., :1], experts
    lse = torch.logsumexp(torch.stack(logs), dim=0)
    shares = torch.exp(torch.stack(logs) - lse)
    return (shares * torch.stack(read)).sum(0), lse, experts


def _best_of(best: list[Tensor], indices: list[Tensor], keys: int, k: Tensor) -> Tensor:
    """The largest of the chunks' largest; chunks come in the order of the tokens, so that lower indices win ties."""
    if not indices:
        return torch.empty(k.shape[0], 0, 0, dtype=torch.int64, device=k.device)
    if len(indices) == 1:
        return indices[0]
    index = torch.cat(indices, dim=-1)
    order = index.argsort(dim=-1)
    index = index.gather(-1, order)
    return index.gather(-1, top_indices(torch.cat(best, dim=-1).gather(-1, order), keys))


def _tiled(queries: Tensor, chosen: Tensor, route: Tensor) -> Tiles:
    heads, m, _ = chosen.shape
    shift = m * torch.arange(heads, device=route.device).view(-1, 1, 1)
    entries = (route + shift).flatten()
    typical = max(1, len(entries) // (heads * m))
    size = min(128, max(8, 1 << typical.bit_length() - 1))  # a power of two up to the typical expert's queries
    return Tiles.of(entries, heads * m, size)


def _of_experts(rows: Tensor, chosen: Tensor, name: str = "") -> tuple[Tensor, Tensor]:
    """The rows of every expert ``(heads · m, k, p)``, and where they stand among the rows of all heads."""
    heads, tokens, p = rows.shape
    index = (chosen + tokens * torch.arange(heads, device=rows.device).view(-1, 1, 1)).flatten()
    return pick(rows.reshape(-1, p), index, name).view(-1, chosen.shape[-1], p), index


def _tile_scores(
    queries: Tensor, tables: tuple[Tensor, Tensor, Tensor], route: Tensor, how: Routing
) -> tuple[Tiles, Tensor, Tensor, Tensor, Tensor]:
    """Tiles, their queries, the keys and values of their experts, and the scores."""
    chosen, k, v = tables
    tiles = _tiled(queries, chosen, route)
    each = route.shape[-1]
    rows = queries.reshape(-1, queries.shape[-1])
    tile_q = pick(rows, tiles.entry if each == 1 else tiles.entry // each, "tile q")
    tile_k, tile_v = (
        pick(_of_experts(table, chosen, f"table {name}")[0], tiles.expert, f"tile {name}")
        for table, name in ((k, "k"), (v, "v"))
    )
    scores = _product(tile_q, tile_k.mT, "tile scores").mul_(how.scale)
    if how.deduplicate:
        scores.masked_fill_(tiles.read(seen_before(chosen, route)), -math.inf)
    return tiles, tile_q, tile_k, tile_v, scores


def _read_tiles(
    queries: Tensor, tables: tuple[Tensor, Tensor, Tensor], route: Tensor, how: Routing
) -> tuple[Tensor, Tensor]:
    """What every query reads at each of its experts ``(heads, queries, s, p)``, and the log-sum-exps."""
    tiles, _, _, tile_v, scores = _tile_scores(queries, tables, route, how)
    largest = scores.amax(-1, keepdim=True)
    if how.deduplicate:
        # An expert all of whose keys stood in a nearer one has no weight.
        largest = largest.clamp(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(largest).exp_()
    sums = weights.sum(-1, keepdim=True)
    read = _product(weights, tile_v, "tile read").div_(sums.clamp(min=torch.finfo(scores.dtype).tiny))
    logs = largest + sums.log()
    return tiles.back(read, "routed").view(*route.shape, -1), tiles.back(logs).view(route.shape)


def _group_backward(
    group: _Group, kept: _Kept, out: Tensor, grad: Tensor, how: Routing, known: bool
) -> tuple[Tensor, ...]:
    """With the merged log-sum-exp every weight is ``P = exp(score − lse)``, and ``dS = P ∘ (dP − Σ out ∘ grad)``."""
    q, k, v, landmarks = group
    m = landmarks.shape[-2]
    d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    d_landmarks, d_values = torch.zeros_like(landmarks), torch.zeros_like(kept.landmark_values)
    mean = (out * grad).sum(-1, keepdim=True)
    width = kept.chosen.shape[-1]
    tables = (kept.chosen, k, v) if width else None
    experts = kept.chosen.shape[0] * kept.chosen.shape[1]
    d_tables = [k.new_zeros(experts, width, k.shape[-1]), v.new_zeros(experts, width, v.shape[-1])]
    for part in _chunks(q.shape[1], q.shape[0] * m):
        queries, g, lse = q[:, part], grad[:, part], kept.lse[:, part].unsqueeze(-1)
        mine = d_q[:, part]
        mine.zero_()
        if how.shared:
            weights = _product(queries, landmarks.mT, "nearness").mul_(how.shared_scale).sub_(lse).exp_()
            d_values += weights.mT @ g
            d_scores = _product(g, kept.landmark_values.mT, "d scores").sub_(mean[:, part])
            d_scores.mul_(weights).mul_(how.shared_scale)
            mine += _product(d_scores, landmarks, "shared")
            d_landmarks += d_scores.mT @ queries
        if tables is not None:
            route = kept.routes[:, part].to(torch.int64)
            one = _tiles_backward(queries, g, lse, mean[:, part], tables, route, d_tables, how)
            mine += one
    if width:
        _, at = _of_experts(k, kept.chosen)
        for total, table in zip((d_k, d_v), d_tables, strict=True):
            total.view(-1, total.shape[-1]).index_add_(0, at, table.flatten(0, 1))
    if how.shared and not known:
        along = (kept.landmark_values * d_values).sum(-1, keepdim=True)
        for part in _chunks(k.shape[1], k.shape[0] * m):
            keys, rows = k[:, part], v[:, part]
            weights = _products(landmarks, keys).mul_(how.scale).sub_(kept.landmark_lse).exp_()
            d_v[:, part] += weights.mT @ d_values
            d_scores = _products(d_values, rows, "d products").sub_(along).mul_(weights).mul_(how.scale)
            d_landmarks += d_scores @ keys
            d_k[:, part] += d_scores.mT @ landmarks
    return d_q, d_k, d_v, d_landmarks, d_values


def _tiles_backward(
    queries: Tensor,
    g: Tensor,
    lse: Tensor,
    mean: Tensor,
    tables: tuple[Tensor, Tensor, Tensor],
    route: Tensor,
    d_tables: list[Tensor],
    how: Routing,
) -> Tensor:
    """The gradient of the queries through their experts; those of the experts' keys and values are added to d_tables."""
    tiles, tile_q, tile_k, tile_v, scores = _tile_scores(queries, tables, route, how)
    each = route.shape[-1]
    at = tiles.entry if each == 1 else tiles.entry // each

    def by_tile(rows: Tensor, name: str = "") -> Tensor:
        return pick(rows.reshape(-1, rows.shape[-1]), at, name)

    used = tiles.used.unsqueeze(-1)
    weights = scores.sub_(by_tile(lse)).exp_()
    tile_g, tile_mean = by_tile(g, "tile g").mul_(used), by_tile(mean).mul_(used)
    d_tables[1].index_add_(0, tiles.expert, torch.bmm(weights.mT, tile_g))
    d_scores = _product(tile_g, tile_v.mT, "d tile scores").sub_(tile_mean).mul_(weights).mul_(how.scale)
    d_tables[0].index_add_(0, tiles.expert, torch.bmm(d_scores.mT, tile_q))
    d_entries = tiles.back(_product(d_scores, tile_k, "tile read"), "routed")
    if each > 1:
        d_entries = d_entries.unflatten(0, (-1, each)).sum(1)
    return d_entries.view_as(queries)


def _product(left: Tensor, right: Tensor, name: str) -> Tensor:
    """``left right`` in the room of that name."""
    return torch.bmm(left, right, out=room(name, (left.shape[0], left.shape[1], right.shape[2]), left))


def _products(left: Tensor, rows: Tensor, name: str = "products") -> Tensor:
    """``left rowsᵀ`` ``(heads, m, tokens)``, of one head by blocks of tokens: wide and flat products run at half speed."""
    tokens = rows.shape[-2]
    if left.shape[0] > 1 or tokens < 4096:
        return _product(left, rows.mT, name)
    out = room(name, (1, left.shape[-2], tokens), left)
    for start in range(0, tokens, 2048):
        part = slice(start, min(start + 2048, tokens))
        torch.mm(left[0], rows[0, part].mT, out=out[0, :, part])
    return out


def _whole(chunks: list[Tensor]) -> Tensor:
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


def _chunks(tokens: int, each: int) -> list[slice]:
    length = max(1, HELD // max(1, each))
    return [slice(start, min(start + length, tokens)) for start in range(0, tokens, length)]


def _split(rows: Tensor, m: int) -> list[Tensor]:
    return [rows[:, part] for part in _chunks(rows.shape[1], rows.shape[0] * m)]


def _groups(q: Tensor, k: Tensor, landmarks: Tensor, how: Routing) -> Iterator[list[tuple[int, ...]]]:
    """Heads, and token sets, that are taken together."""
    every, m = list(_heads(q.shape[:-2])), landmarks.shape[-2]
    scores = max(q.shape[-2], k.shape[-2]) * m
    tables = 2 * m * min(how.keys, k.shape[-2]) * k.shape[-1]  # with about two tiles an expert
    each = max(1, min(HELD // scores, TABLES // max(1, tables)))
    for start in range(0, len(every), each):
        yield every[start : start + each]


def _stacked(tensor: Tensor, heads: list[tuple[int, ...]]) -> Tensor:
    """The heads ``(heads, rows, p)``, contiguous, or one head as it lies if its rows do not fall apart."""
    if len(heads) == 1:
        one = tensor[heads[0]]
        return (one if one.stride(-1) == 1 else one.contiguous()).unsqueeze(0)
    if len(heads) == tensor.shape[:-2].numel():
        return tensor.flatten(0, -3).contiguous()
    return torch.stack([tensor[at] for at in heads])


def _room(tokens: Tensor, p: int) -> Tensor:
    return _like_tokens(tokens[..., :1].expand(*tokens.shape[:-1], p))
