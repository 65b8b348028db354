"""One sequence on many machines: the layers on shards of tokens, exchanging sums that do not grow with the tokens."""

from __future__ import annotations

import math
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .attend import attend
from .attention import AttentionLayer
from .base import UnrolledLayer
from .kernels.cbsa import contract_broadcast, extraction
from .kernels.choice import PLAIN
from .kernels.mita import mita_plain
from .kernels.mssa import contract_tokens
from .kernels.reading import read_all, read_all_plain
from .kernels.routed import Routing, routed_attention
from .kernels.tiles import top_indices, top_unordered
from .kernels.together import Shard, largest, sum_over
from .kernels.tssa import memberships, shrink
from .layers.agent import AgentAttention
from .layers.cbsa import CBSA
from .layers.mita import MiTA
from .layers.mssa import MSSA
from .layers.tssa import TSSA
from .representatives import (
    SVD,
    Axes,
    GridPool,
    LearnedQueries,
    OfficialGridPool,
    Representatives,
    SequencePool,
    Strided,
)
from .representatives import Tokens as AllTokens
from .subspace import SubspaceLayer, per_head

__all__ = ["ContextParallel", "Shard", "gather_tokens", "shard_tokens", "sum_gradients"]


@final
class ContextParallel(nn.Module):
    """A layer on a rank's tokens, as if it saw those of all ranks: forward and backward equal the layer on one machine.

    What is exchanged a forward pass, by ``torch.distributed`` all-reduces, and as much again in the backward pass:
    CBSA ``m (p + 2)`` numbers a head and the pooled ``m p``; TSSA p + 1 a head; the exact forms p² a head; agent attention as
    CBSA; MiTA besides the scores and places of ``m k`` candidates of every rank, and the keys and values of the m k chosen.

    Shapes
        x ``(..., tokens of this rank, dim)``; returns like x. Leading tokens that are no patches are the first of rank 0.

    Parameters
    ----------
        layer: CBSA, TSSA, MSSA in exact form, AgentAttention or MiTA. Its parameters are the same on all ranks; after the
        backward pass each rank holds its share of their gradients, which :func:`sum_gradients` adds up. group: the
        process group, by default all ranks.

    Raises
    ------
        TypeError for another layer; ValueError for options that need all tokens on one machine.

    >>> wrapped = ContextParallel(TSSA(8, 2))  # then, on every rank: wrapped(x[:, first:last])
    """

    def __init__(self, layer: UnrolledLayer, group: Any = None) -> None:
        super().__init__()
        if not isinstance(layer, (CBSA, TSSA, MSSA, AgentAttention, MiTA)):
            raise TypeError(f"ContextParallel: {type(layer).__name__} has no form whose tokens can be shared out.")
        needs = _needs_all(layer)
        if needs:
            raise ValueError(f"ContextParallel: {type(layer).__name__} with {needs} needs all tokens on one machine.")
        self.layer: CBSA | TSSA | MSSA | AgentAttention | MiTA = layer
        self.group = group

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, shard: Shard | None = None) -> Tensor:
        """One rank's tokens after the layer; ``shard`` saves asking the others how many tokens they hold."""
        layer = self.layer
        if shard is None:
            shard = Shard.of(x.shape[-2], self.group, x.device)
        if isinstance(layer, SubspaceLayer):
            basis = layer.basis
            w = layer._coordinates(x, basis)
            if isinstance(layer, TSSA):
                change = _tssa(layer, w, shard)
            else:
                change = _cbsa(layer, w, shard, grid) if isinstance(layer, CBSA) else _mssa(layer, w, shard)
            return layer._moved(x, layer._back(change, basis))
        q, k, v = layer.queries(x), layer.keys(x), layer.values(x)
        if isinstance(layer, MiTA):
            read = _mita(layer, q, k, v, x, shard, grid)
        else:
            read = _agent(layer, q, k, v, x, shard, grid)
        attention = layer._joined(read, v, grid, x)
        return attention if layer.plain else x + layer.step * (attention - x)


def _needs_all(layer: nn.Module) -> str:
    """The option of a layer that no sum over ranks can replace."""
    if isinstance(layer, MSSA) and layer.form != "exact":
        return "form='softmax'"
    if isinstance(layer, CBSA) and isinstance(layer.representatives, AllTokens) and layer.form != "exact":
        return "representatives=Tokens() and a softmax"
    if isinstance(layer, TSSA) and (layer.dropout or layer.output_dropout):
        return "dropout"
    if isinstance(layer, AttentionLayer):
        for name in ("convolution", "rotary", "register_rotary", "agent_bias"):
            if getattr(layer, name, None) is not None:
                return name
        for name in ("register_tokens", "dropout", "output_dropout"):
            if getattr(layer, name):
                return name
    return ""


# The layers


def _cbsa(layer: CBSA, w: Tensor, shard: Shard, grid: tuple[int, int] | None) -> Tensor:
    kind, p = layer.representatives, layer.head_dim
    if isinstance(kind, SVD):
        beta = 1.0 / layer.epsilon**2
        return -per_head(layer.kappa(beta)) * contract_tokens(w, beta, layer.kernel, shard)
    if isinstance(kind, Axes):
        beta = 1.0 / layer.epsilon**2
        squares = sum_over(w.square().sum(-2, keepdim=True), shard)
        return -per_head(layer.kappa(beta)) * beta * w / (1.0 + beta * squares)
    if isinstance(kind, AllTokens):
        beta = p / (shard.total * layer.epsilon**2)
        return -per_head(layer.kappa(beta)) * contract_tokens(w, beta, layer.kernel, shard)
    initial = pool_over(kind, w, layer.class_tokens, grid, shard)
    kappa = per_head(layer.kappa(_cbsa_bounds(layer, w, initial, shard)))
    parameters = [kappa, per_head(layer.step_rep)] if layer.keep_queries else [kappa]

    def contraction(q: Tensor, start: Tensor, step: Tensor, *kept: Tensor) -> Tensor:
        return step * layer._contracted(start + kept[0] * q if kept else q)

    return contract_broadcast(w, initial, contraction, *parameters, scale=layer.scale, kernel=layer.kernel, shard=shard)


def _cbsa_bounds(layer: CBSA, w: Tensor, initial: Tensor, shard: Shard) -> float | Tensor:
    if not layer.certified:
        return 0.0
    norm, q = extraction(w, initial, layer.scale, layer.kernel, shard)
    if layer.form == "exact":
        return norm * (layer.head_dim / (q.shape[-2] * layer.epsilon**2))
    return norm * layer.scale * q.square().sum(-1).amax(-1) if layer.form == "softmax" else norm


def _mssa(layer: MSSA, w: Tensor, shard: Shard) -> Tensor:
    beta = layer.head_dim / (shard.total * layer.epsilon**2)
    return -per_head(layer.kappa(beta)) * contract_tokens(w, beta, layer.kernel, shard)


def _tssa(layer: TSSA, w: Tensor, shard: Shard) -> Tensor:
    how, bias = layer._how(), layer._bias(shard.total)
    bias = None if bias is None else bias[:, shard.start : shard.start + w.shape[-2]]
    bound: float | Tensor = 0.0
    if layer.certified:
        with torch.no_grad():
            shares = memberships(w, layer.temperature, how, bias, shard)
        if layer.causal:
            shares = shares / torch.arange(1 + shard.start, 1 + shard.start + w.shape[-2], device=w.device)
        bound = how.rate * largest(shares.amax(-1), shard) / (1 if layer.causal else shard.total)
    kappa = per_head(layer.kappa(bound))
    return shrink(w, layer.temperature, -kappa, how, bias, layer.kernel, shard)


def _reads(kernel: str) -> Any:
    return read_all_plain if kernel == PLAIN else read_all


def _agent(
    layer: AgentAttention, q: Tensor, k: Tensor, v: Tensor, x: Tensor, shard: Shard, grid: tuple[int, int] | None
) -> Tensor:
    readers = q if layer.norm_agents else layer._split(x, "query")
    agents = pool_over(layer.strategy, readers, layer.class_tokens, grid, shard)
    found = layer._contract(_reads(layer.kernel)(layer._reading(agents), k, v, layer.scale, shard))
    return attend(readers, agents, found, layer.scale, kernel=layer.kernel)


def _mita(
    layer: MiTA, q: Tensor, k: Tensor, v: Tensor, x: Tensor, shard: Shard, grid: tuple[int, int] | None
) -> Tensor:
    pooled = layer._split(x, "query") if layer.pool_before_norm else q
    landmarks = pool_over(layer.strategy, pooled, layer.class_tokens, grid, shard)
    values = _reads(layer.kernel)(landmarks, k, v, layer.scale, shard) if layer.shared else None
    chosen = _chosen(landmarks, k, layer.keys_per_expert, shard)
    m, width = chosen.shape[-2:]
    keys, rows = (_owned(table, chosen.flatten(-2), shard) for table in (k, v))
    count = min(layer.experts_per_query, m)
    how = Routing(layer.scale, width, count, layer.shared, layer.deduplicate, layer.twice_scaled)
    # The chosen rows are the only tokens now; a key that several experts chose is its first copy, for deduplicate.
    places = _first_copies(chosen.flatten(-2)).unflatten(-1, (m, width)) if width else chosen
    path = mita_plain if layer.kernel == PLAIN else routed_attention
    return path(q, keys, rows, landmarks, how, places, values=values)


def _chosen(landmarks: Tensor, k: Tensor, keys: int, shard: Shard) -> Tensor:
    """The places among all tokens of every landmark's best keys; every rank sends its own best."""
    with torch.no_grad():
        products = landmarks @ k.mT
        width = min(keys, shard.total)
        mine = top_unordered(products, min(width, k.shape[-2]))
        missing = width - mine.shape[-1]
        scores = F.pad(products.gather(-1, mine), (0, missing), value=-math.inf)
        places = F.pad(mine + shard.start, (0, missing), value=shard.total)
        every = [[torch.empty_like(each) for _ in range(shard.ranks)] for each in (scores, places)]
        for found, own in zip(every, (scores, places), strict=True):
            dist.all_gather(found, own.contiguous(), group=shard.group)
        all_scores, all_places = torch.cat(every[0], -1), torch.cat(every[1], -1)
        order = all_places.argsort(dim=-1)  # lower places first, so that they win ties
        best = top_indices(all_scores.gather(-1, order), width)
        return all_places.gather(-1, order).gather(-1, best)


def _owned(rows: Tensor, places: Tensor, shard: Shard) -> Tensor:
    """The rows at places among all tokens ``(..., count, p)``: each rank gives those it holds."""
    local = places - shard.start
    mine = (local >= 0) & (local < rows.shape[-2])
    index = local.clamp(0, rows.shape[-2] - 1).unsqueeze(-1).expand(*places.shape, rows.shape[-1])
    return sum_over(torch.where(mine.unsqueeze(-1), rows.gather(-2, index), 0.0), shard)


def _first_copies(places: Tensor) -> Tensor:
    """For every entry the position of the first equal one in its row."""
    ordered, order = torch.sort(places, dim=-1, stable=True)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    numbers = torch.arange(places.shape[-1], device=places.device).expand_as(places)
    starts = torch.where(fresh, numbers, 0).cummax(dim=-1).values
    return torch.zeros_like(places).scatter(-1, order, order.gather(-1, starts))


# Pooling


def pool_over(
    strategy: Representatives, w: Tensor, class_tokens: int, grid: tuple[int, int] | None, shard: Shard
) -> Tensor:
    """Initial representatives of the tokens of all ranks, the same on each: an all-reduce of m × p numbers a head."""
    if isinstance(strategy, LearnedQueries):
        return strategy.initial(w, class_tokens, grid)
    if isinstance(strategy, Strided):
        count = -(-(shard.total - class_tokens) // strategy.stride)
        if count < 1:
            raise ValueError(f"Strided: {shard.total} tokens of which {class_tokens} are class tokens leave none.")
        place = torch.arange(shard.start, shard.start + w.shape[-2], device=w.device) - class_tokens
        taken = (place >= 0) & (place % strategy.stride == 0)
        return _binned(w[..., taken, :], place[taken] // strategy.stride, count, 1.0, shard)
    first, cells, size = _layout(strategy, class_tokens, grid, shard.total)
    place = torch.arange(shard.start, shard.start + w.shape[-2], device=w.device) - first
    inside = (place >= 0) & (place < cells[0] * cells[1])
    w, place = w[..., inside, :], place[inside]
    row, column = place // cells[1], place % cells[1]
    bins = [n // m for n, m in zip(cells, size, strict=True)]
    if cells == (bins[0] * size[0], bins[1] * size[1]):
        index = row // bins[0] * size[1] + column // bins[1]
        return _binned(w, index, size[0] * size[1], 1.0 / (bins[0] * bins[1]), shard)
    down, across = (_averages(n, m, w) for n, m in zip(cells, size, strict=True))
    weights = (down[:, None, row] * across[None, :, column]).flatten(0, 1)  # (m, tokens of this rank)
    return sum_over(weights @ w, shard)


def _binned(w: Tensor, index: Tensor, count: int, factor: float, shard: Shard) -> Tensor:
    room = w.new_zeros(*w.shape[:-2], count, w.shape[-1])
    return sum_over(factor * room.index_add(-2, index, w), shard)


def _averages(cells: int, bins: int, like: Tensor) -> Tensor:
    """One-dimensional adaptive average pooling as a matrix ``(bins, cells)``."""
    place, j = torch.arange(cells, device=like.device), torch.arange(bins, device=like.device).unsqueeze(-1)
    inside = (place >= j * cells // bins) & (place < -(-(j + 1) * cells // bins))
    return inside.to(like.dtype) / inside.sum(-1, keepdim=True)


def _layout(
    strategy: Representatives, class_tokens: int, grid: tuple[int, int] | None, total: int
) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """The first token of the pooled grid, its rows and columns, and the pooled rows and columns."""
    patches, owner = total - class_tokens, type(strategy).__name__
    if isinstance(strategy, SequencePool):
        if patches < 1:
            raise ValueError(f"SequencePool: {total} tokens of which {class_tokens} are class tokens leave none.")
        return class_tokens, (1, patches), (1, strategy.length)
    if isinstance(strategy, GridPool):
        cells = strategy.grid if grid is None else grid
        if cells is None or cells[0] * cells[1] != patches:
            raise ValueError(
                f"GridPool: the grid must hold the {patches} patches of all ranks, but is {cells}; pass grid=(rows, columns)."
            )
        return class_tokens, cells, strategy.size
    if isinstance(strategy, OfficialGridPool):
        for drop in strategy.dropped:
            side = math.isqrt(max(0, total - drop))
            if side > 0 and side * side == total - drop:
                return drop if strategy.leading else 0, (side, side), strategy.size
        raise ValueError(f"OfficialGridPool: {total} tokens on all ranks leave no square.")
    raise TypeError(
        f"ContextParallel: {owner} is not known to be a sum over tokens; write it as LearnedQueries or a pooling."
    )


# Tokens and gradients


def shard_tokens(x: Tensor, counts: tuple[int, ...] | None = None, group: Any = None) -> Tensor:
    """One rank's part of tokens ``(..., N, dim)`` that all ranks hold.

    Parameters
    ----------
        counts: how many tokens each rank gets; nearly equal numbers by default.
    """
    ranks, rank, N = dist.get_world_size(group), dist.get_rank(group), x.shape[-2]
    if counts is None:
        counts = tuple(N // ranks + (index < N % ranks) for index in range(ranks))
    if len(counts) != ranks or sum(counts) != N or min(counts) < 1:
        raise ValueError(
            f"shard_tokens: counts must be {ranks} numbers of at least 1 that add up to {N} tokens, but are {counts}."
        )
    start = sum(counts[:rank])
    return x[..., start : start + counts[rank], :]


def gather_tokens(x: Tensor, group: Any = None) -> Tensor:
    """The tokens of all ranks ``(..., N, dim)`` on each, differentiable; only this grows with N."""
    shard = Shard.of(x.shape[-2], group, x.device)
    return sum_over(F.pad(x, (0, 0, shard.start, shard.total - shard.start - x.shape[-2])), shard)


def sum_gradients(module: nn.Module, group: Any = None) -> None:
    """Adds up the ranks' shares of every parameter's gradient, in place; call it between backward and the optimiser's step."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # a rank whose tokens did not touch it joins in
            dist.all_reduce(parameter.grad, group=group)
