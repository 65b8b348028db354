"""Sums over the ranks that share out a sequence, and their derivatives: every gradient is the rank's own share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Shard", "add", "largest", "sum_before", "sum_over"]


@dataclass(frozen=True)
class Shard:
    """One rank's part of a sequence: tokens ``start`` to ``start + counts[rank]`` of ``total``.

    Gradients of what all ranks hold alike (parameters, sums) are partial on every rank: their sum over ranks is the
    gradient.
    """

    counts: tuple[int, ...]
    rank: int
    group: Any = None

    @property
    def ranks(self) -> int:
        """How many share the sequence."""
        return len(self.counts)

    @property
    def start(self) -> int:
        """The place of the first token."""
        return sum(self.counts[: self.rank])

    @property
    def total(self) -> int:
        """N."""
        return sum(self.counts)

    @classmethod
    def of(cls, count: int, group: Any = None, device: torch.device | str = "cpu") -> Shard:
        """Asks all ranks of ``group`` how many tokens they hold."""
        ranks = dist.get_world_size(group)
        counts = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(ranks)]
        dist.all_gather(counts, torch.tensor(count, device=device), group=group)
        found = tuple(int(each) for each in counts)
        if min(found) < 1:
            raise ValueError(f"Shard: every rank must hold at least one token, but they hold {list(found)}.")
        return cls(found, dist.get_rank(group), group)


def add(tensor: Tensor, shard: Shard | None) -> Tensor:
    """The sum over ranks, not differentiated; the tensor itself on one rank."""
    if shard is None:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=shard.group)
    return total


def largest(tensor: Tensor, shard: Shard | None) -> Tensor:
    """The largest over ranks, entry by entry, not differentiated."""
    tensor = tensor.detach()
    if shard is None:
        return tensor
    found = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=shard.group)
    return found


def sum_over(tensor: Tensor, shard: Shard | None) -> Tensor:
    """The sum over ranks; every rank's use of it flows back to all."""
    return tensor if shard is None else _SumOver.apply(tensor, shard)


def sum_before(tensor: Tensor, shard: Shard | None) -> Tensor:
    """The sum over the ranks before this one, zero on the first."""
    return torch.zeros_like(tensor) if shard is None else _SumBefore.apply(tensor, shard)


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return add(tensor, shard)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_over(grad, ctx.shard), None


class _SumBefore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return _gathered(tensor, shard)[: shard.rank].sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("sum_before: second derivatives across ranks are not available.")
        return _gathered(grad, ctx.shard)[ctx.shard.rank + 1 :].sum(0), None


def _gathered(tensor: Tensor, shard: Shard) -> Tensor:
    own = tensor.detach().contiguous()
    every = [torch.empty_like(own) for _ in range(shard.ranks)]
    dist.all_gather(every, own, group=shard.group)
    return torch.stack(every)
