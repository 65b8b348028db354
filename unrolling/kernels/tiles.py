"""Queries sorted by expert and cut into tiles of equal size: how few queries an expert has does not matter then."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import check_count
from .scratch import room

__all__ = ["Tiles", "pick", "repeated", "seen_before", "top_indices", "top_unordered"]


class Tiles(NamedTuple):
    """Entries (a query at one of its experts) in tiles of one expert each; the last tile of an expert may have room.

    Shapes
        expert ``(tiles,)``; entry, used ``(tiles, size)``, where ``used`` is False there entry is 0; place ``(entries,)``
    """

    expert: Tensor
    entry: Tensor
    used: Tensor
    place: Tensor

    @classmethod
    def of(cls, expert: Tensor, experts: int, size: int) -> Tiles:
        """From the expert of every entry ``(entries,)``."""
        entries, device = len(expert), expert.device
        ordered, order = torch.sort(expert.to(torch.int32), stable=True)
        counts = torch.zeros(experts, dtype=torch.int64, device=device)
        counts.index_add_(0, expert, torch.ones((), dtype=torch.int64, device=device).expand(entries))
        needed = (counts + size - 1) // size
        # On an accelerator the number of tiles must not wait for the counts: there the bound is taken.
        tiles = int(needed.sum()) if device.type == "cpu" else -(-entries // size) + experts
        first_entry, first_tile = counts.cumsum(0) - counts, needed.cumsum(0) - needed
        shift = first_tile * size - first_entry
        slot = torch.arange(entries, device=device) + shift[ordered.to(torch.int64)]
        entry = torch.zeros(tiles * size, dtype=torch.int64, device=device)
        used = torch.zeros(tiles * size, dtype=torch.bool, device=device)
        place = torch.empty(entries, dtype=torch.int64, device=device)
        entry[slot], used[slot], place[order] = order, True, slot
        numbers = torch.arange(tiles, device=device)
        of_tile = (torch.searchsorted(needed.cumsum(0), numbers, right=True)).clamp(max=experts - 1)
        return cls(of_tile, entry.view(tiles, size), used.view(tiles, size), place)

    def read(self, rows: Tensor) -> Tensor:
        """Rows ``(entries, ...)`` by tile ``(tiles, size, ...)``; what is not used repeats entry 0."""
        return pick(rows, self.entry)

    def back(self, tiles: Tensor, name: str = "") -> Tensor:
        """``(tiles, size, ...)`` by entry."""
        return pick(tiles.flatten(0, 1), self.place, name)


def pick(rows: Tensor, index: Tensor, name: str = "") -> Tensor:
    """``rows[index]`` along the first axis, copied as flat rows; into the room of that name, if one is named."""
    flat = rows.reshape(len(rows), -1)
    shape = (*index.shape, *rows.shape[1:])
    if flat.shape[-1] == 1 or flat.dtype == torch.bool:
        return rows.index_select(0, index.flatten()).view(shape)
    if not name:
        return F.embedding(index, flat).view(shape)
    found = room(name, (index.numel(), flat.shape[-1]), flat)
    return torch.index_select(flat, 0, index.flatten(), out=found).view(shape)


def top_indices(scores: Tensor, count: int) -> Tensor:
    """The indices of the ``count`` largest entries along the last axis, or of all; lower indices win ties."""
    check_count("top_indices", "count", count, 0)
    if not isinstance(scores, Tensor) or scores.is_complex() or scores.ndim < 1 or scores.layout != torch.strided:
        kind = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise TypeError(f"top_indices: scores must be a dense real tensor (..., entries), but is {kind}.")
    if count == 0:
        return torch.empty(*scores.shape[:-1], 0, dtype=torch.int64, device=scores.device)
    return torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices[..., :count]


def top_unordered(scores: Tensor, count: int) -> Tensor:
    """The same indices, in any order, without sorting everything; ties at the last place are settled by a sort."""
    scores, count = scores.detach(), min(count, scores.shape[-1])
    if count == scores.shape[-1] or count == 0:
        return torch.arange(count, device=scores.device).expand(*scores.shape[:-1], count)
    if count == 1:
        return scores.argmax(-1, keepdim=True)  # the first of equals
    found = torch.topk(scores, count + 1, dim=-1, sorted=False)
    least = found.values.min(dim=-1, keepdim=True)
    tied = (found.values == least.values).sum(-1) > 1  # which of them is taken is up to torch
    # The last takes the place of the least, which is one too many.
    indices = found.indices.scatter(-1, least.indices, found.indices[..., -1:])[..., :count]
    if not bool(tied.any()):
        return indices
    indices[tied] = top_indices(scores[tied], count)
    return indices


def repeated(index: Tensor) -> Tensor:
    """True where an index stood earlier in its row already."""
    ordered, order = torch.sort(index, dim=-1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
    return torch.zeros_like(again).scatter(-1, order, again)


def seen_before(chosen: Tensor, route: Tensor) -> Tensor:
    """Which keys of an entry stood in one of the query's experts before it ``(entries, k)``."""
    heads, m, width = chosen.shape
    ordered = chosen.sort(dim=-1).values
    # member[h, e, j, f]: whether key j of expert e is one of expert f's.
    member = torch.empty(heads, m, width, m, dtype=torch.bool, device=chosen.device)
    for other in range(m):
        row = ordered[:, other : other + 1].expand(-1, m, -1).contiguous()
        spot = torch.searchsorted(row, chosen.contiguous()).clamp(max=width - 1)
        member[..., other] = row.gather(-1, spot) == chosen
    member = member.movedim(-1, 2).reshape(heads * m * m, width)
    own = repeated(chosen).reshape(heads * m, width)
    shift = m * torch.arange(heads, device=route.device).view(-1, 1)
    masks = []
    for j in range(route.shape[-1]):
        expert = (route[..., j] + shift).flatten()
        mask = pick(own, expert)
        for earlier in range(j):
            mask |= pick(member, expert * m + route[..., earlier].flatten())
        masks.append(mask)
    return torch.stack(masks, dim=1).flatten(0, 1)
