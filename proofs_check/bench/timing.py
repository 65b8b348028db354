"""How it is timed: in turns, medians with their spread, and the memory as the operating system counts it."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .subjects import LIMIT, OURS, Contestant, Sizes, Stem

__all__ = ["BOTH", "FORWARD", "MODES", "Measured", "fraction_of_limit", "measure_stem", "ratio", "slope"]

FORWARD, BOTH = "forward", "forward and backward"
MODES = (FORWARD, BOTH)


@dataclass(frozen=True)
class Measured:
    """One contestant at one size. seconds: the median; low, high: the quartiles. memory: bytes beside inputs, at most."""

    contestant: str
    tokens: int
    mode: str
    seconds: float
    low: float
    high: float
    repetitions: int
    memory: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def measure_stem(
    stem: Stem,
    sizes: Sizes,
    tokens: tuple[int, ...],
    *,
    repetitions: int = 7,
    longest: float = 10.0,
    others: Callable[[Sizes, int], list[Contestant]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Measured]:
    """All contestants at all sizes, forward, and forward with backward.

    Repetitions go round: every contestant once, then every one again, so that a slow minute of the machine slows all; each
    round begins with another one, so that none always finds the memory as the same other left it.
    A contestant of which one run would take more than ``longest`` seconds, judged by its time at the size before, is
    left out; one that takes more than a second runs thrice. others: more contestants, the user's.
    """
    found: list[Measured] = []
    for count in tokens:
        rivals = stem.contestants(sizes, count) + (others(sizes, count) if others is not None else [])
        for mode in MODES:
            able = [rival for rival in rivals if _expected(found, rival, count, mode) <= longest]
            runs = [_runner(rival, mode) for rival in able]
            times: list[list[float]] = [[] for _ in able]
            repeats = [_warm(run, sizes) for run in runs]
            for turn in range(repetitions):
                for place in range(len(runs)):
                    index = (turn + place) % len(runs)
                    inner, usual = repeats[index]
                    if turn < (3 if usual > 1.0 else repetitions):
                        times[index].append(_once(runs[index], inner, sizes))
            gc.collect()
            memories = [_memory(run, sizes) for run in runs]
            for rival, taken, memory in zip(able, times, memories, strict=True):
                low, middle, high = _quartiles(taken)
                found.append(Measured(rival.name, count, mode, middle, low, high, len(taken), memory))
            if progress is not None:
                progress(f"{stem.name}, {count:,}, {mode}")
            del runs
        del rivals
    return found


def _expected(found: list[Measured], rival: Contestant, count: int, mode: str) -> float:
    """Seconds of one run, extrapolated from the largest size measured."""
    before = [each for each in found if each.contestant == rival.name and each.mode == mode]
    if not before:
        return 0.0
    last = max(before, key=lambda each: each.tokens)
    return last.seconds * (count / last.tokens) ** (2 if rival.quadratic else 1)


def _runner(rival: Contestant, mode: str) -> Callable[[], object]:
    if mode == FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return rival.run(*rival.inputs)

        return forward
    if rival.both is not None:
        whole = rival.both
        return lambda: whole(*rival.inputs)
    with torch.no_grad():
        direction = torch.ones_like(rival.run(*rival.inputs))

    def both() -> object:
        given = [each.detach().requires_grad_() for each in rival.inputs]
        out = rival.run(*given)
        out.backward(direction.expand_as(out))
        return [each.grad for each in given]

    return both


def _warm(run: Callable[[], object], sizes: Sizes) -> tuple[int, float]:
    """Runs it, twice if that is short; how often it is run for one time of at least two milliseconds, and its seconds."""
    usual = _once(run, 1, sizes)
    if usual < 1.0:
        usual = min(usual, _once(run, 1, sizes))
    return max(1, math.ceil(2e-3 / max(usual, 1e-7))), usual


def _once(run: Callable[[], object], inner: int, sizes: Sizes) -> float:
    _wait(sizes)
    start = time.perf_counter()
    for _ in range(inner):
        run()
    _wait(sizes)
    return (time.perf_counter() - start) / inner


def _wait(sizes: Sizes) -> None:
    if sizes.device != "cpu":
        torch.cuda.synchronize(sizes.device)


def _quartiles(times: list[float]) -> tuple[float, float, float]:
    if len(times) < 2:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def _memory(run: Callable[[], object], sizes: Sizes) -> int | None:
    """The most bytes held beside what was there before, as the operating system or the GPU's allocator counts."""
    if sizes.device != "cpu":
        torch.cuda.reset_peak_memory_stats(sizes.device)
        before = torch.cuda.memory_allocated(sizes.device)
        run()
        _wait(sizes)
        return torch.cuda.max_memory_allocated(sizes.device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or its reuse would not be seen
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status("VmRSS")
        run()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError, KeyError):
        return None  # not Linux, or not allowed


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(lines[name].split()[0])


def _of(found: list[Measured], contestant: str, mode: str) -> dict[int, Measured]:
    return {each.tokens: each for each in found if each.contestant == contestant and each.mode == mode}


def ratio(found: list[Measured], contestant: str, mode: str) -> dict[int, float]:
    """How many times longer than ours a contestant takes, by size."""
    mine, other = _of(found, OURS, mode), _of(found, contestant, mode)
    return {tokens: other[tokens].seconds / mine[tokens].seconds for tokens in sorted(mine) if tokens in other}


def fraction_of_limit(found: list[Measured], mode: str) -> dict[int, float]:
    """The limit's time over ours: 1 is as fast as the machine can."""
    return ratio(found, LIMIT, mode)


def slope(found: list[Measured], contestant: str, mode: str, start: int = 4096) -> float | None:
    """The least-squares slope of log time against log tokens, from ``start`` tokens on; None for fewer than two sizes."""
    points = [(math.log(n), math.log(each.seconds)) for n, each in _of(found, contestant, mode).items() if n >= start]
    if len(points) < 2:
        return None
    x, y = zip(*points, strict=True)
    return statistics.linear_regression(x, y).slope
