"""The cost model held against processes of this machine: what sums over ranks really add to the time of a shard."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from unrolling import CBSA, MSSA, TSSA, AgentAttention, MiTA, SequencePool, UnrolledLayer, parallel

from .cost_model import Link, reduced_numbers
from .subjects import Sizes

__all__ = ["RANKED", "RankCheck", "check_ranks"]

RANKED: dict[str, Callable[[Sizes], UnrolledLayer]] = {
    "cbsa": lambda s: CBSA(s.dim, s.heads, form="softmax", representatives=SequencePool(s.m)),
    "tssa": lambda s: TSSA(s.dim, s.heads),
    "mssa": lambda s: MSSA(s.dim, s.heads),
    "agent": lambda s: AgentAttention(s.dim, s.heads, agents=SequencePool(s.m), step_size=0.5),
    "mita": lambda s: MiTA(s.dim, s.heads, landmarks=SequencePool(s.m), keys_per_expert=s.keys, step_size=0.5),
}
"""The whole layers, their projections included: shards do not share those."""


@dataclass(frozen=True)
class RankCheck:
    """Seconds forward and backward of a layer on shards: alone, side by side; as predicted, and measured with the sums.

    latency, bandwidth: of a message between these processes, from all-reduces of one and of a million numbers.
    """

    stem: str
    ranks: int
    tokens: int
    local: float
    predicted: float
    measured: float
    latency: float
    bandwidth: float


def check_ranks(
    names: list[str], sizes: Sizes, ranks: int = 2, tokens: int = 16384, repetitions: int = 5
) -> list[RankCheck]:
    """Every stem on ``ranks`` processes with one thread each, ``tokens`` shared out among them, by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        results = mp.get_context("spawn").SimpleQueue()
        arguments = (ranks, os.path.join(folder, "meet"), names, sizes, tokens, repetitions, results)
        mp.spawn(_work, arguments, ranks)
        return [results.get() for _ in names]


def _work(
    rank: int, ranks: int, file: str, names: list[str], sizes: Sizes, tokens: int, repetitions: int, results: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    link = _link(ranks)
    for name in names:
        torch.manual_seed(sizes.seed)
        layer = RANKED[name](sizes).to(sizes.dtype)
        x = parallel.shard_tokens(sizes.draw(1, tokens, sizes.dim)).contiguous()
        shared = parallel.ContextParallel(layer)
        alone, together = _in_turns((_both(layer, x), _both(shared, x)), repetitions)
        sums = 2 * link.all_reduce(sizes.dtype.itemsize * reduced_numbers(name, sizes), ranks)
        if rank == 0:
            results.put(RankCheck(name, ranks, tokens, alone, alone + sums, together, link.latency, link.bandwidth))
    dist.barrier()
    dist.destroy_process_group()


def _both(layer: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        layer(x.requires_grad_()).sum().backward()
        x.grad = None

    return run


def _in_turns(runs: tuple[Callable[[], None], ...], repetitions: int) -> list[float]:
    """Medians of the slowest rank; all ranks start together."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repetitions + 1):
        for index, run in enumerate(runs):
            dist.barrier()
            start = time.perf_counter()
            run()
            slowest = torch.tensor(time.perf_counter() - start)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            if turn:  # the first is for warming up
                times[index].append(float(slowest))
    return [statistics.median(each) for each in times]


def _link(ranks: int) -> Link:
    """From all-reduces: a ring sends 2 (G − 1) messages, and every byte 2 (G − 1)/G times."""
    seconds = []
    for numbers in (1, 1 << 20):
        values = torch.zeros(numbers)
        (taken,) = _in_turns((lambda values=values: dist.all_reduce(values),), 20)  # type: ignore[misc]
        seconds.append(taken)
    latency = seconds[0] / (2 * (ranks - 1))
    moved = 2 * (ranks - 1) / ranks * 4 * (1 << 20)
    return Link(moved / max(seconds[1] - seconds[0], 1e-9), latency)
