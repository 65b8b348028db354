"""What a million times as many tokens would cost: measured cost a token, and the bytes that G machines must exchange."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .subjects import OURS, Sizes
from .timing import BOTH, FORWARD, Measured

__all__ = ["COMMUNICATION", "CostModel", "Link", "fit", "reduced_numbers"]


@dataclass(frozen=True)
class Link:
    """Between machines: bytes a second, and seconds until the first byte."""

    bandwidth: float = 50e9
    latency: float = 20e-6

    def all_reduce(self, size: float, machines: int) -> float:
        """Seconds of a ring: every byte passes twice, but for one machine's share; 2 (G − 1) messages."""
        if machines < 2:
            return 0.0
        return 2 * (machines - 1) / machines * size / self.bandwidth + 2 * (machines - 1) * self.latency


def reduced_numbers(stem: str, sizes: Sizes) -> int:
    """Numbers that every machine contributes to the sums of one forward pass, whatever the tokens.

    CBSA ``m (p + 2)`` a head (values, running maximum, sum) and the pooled queries ``m p``; TSSA ``p + 1`` a head; the exact
    forms ``p²`` a head; the coding rate ``d²``; MiTA the landmarks and their values, ``m (2 p + 2)`` a head, and the merged
    choice of keys, ``m k (2 p + 2)``: score, place, key and value of every candidate.
    """
    m, p, heads, top = sizes.m, sizes.head_dim, sizes.heads, sizes.keys
    numbers = {
        "cbsa": heads * m * (2 * p + 2),
        "agent": heads * m * (2 * p + 2),
        "tssa": heads * (p + 1),
        "mssa": heads * p * p,
        "coding_rate": sizes.dim**2,
        "mita": heads * m * (2 * p + 2 + top * (2 * p + 2)),
    }
    return sizes.batch * numbers[stem]


COMMUNICATION = ("cbsa", "agent", "tssa", "mssa", "coding_rate", "mita")
"""The stems whose tokens can be shared out."""


@dataclass(frozen=True)
class CostModel:
    """``seconds = a + b N/G + communication``, ``bytes = c + e N/G``: a machine holds N/G of N tokens.

    checked: the largest size measured, which was not used for the fit, and predicted over measured there.
    """

    stem: str
    mode: str
    fixed: float
    per_token: float
    fixed_bytes: float
    bytes_per_token: float
    numbers: int
    item: int
    checked: tuple[int, float] | None

    def seconds(self, tokens: float, machines: int = 1, link: Link | None = None) -> float:
        """Of one layer's core; the backward pass exchanges as much again."""
        rounds = 1 if self.mode == FORWARD else 2
        exchanged = (link or Link()).all_reduce(self.item * self.numbers, machines)
        return self.fixed + self.per_token * tokens / machines + rounds * exchanged

    def memory(self, tokens: float, machines: int = 1) -> float:
        """Bytes a machine beside its tokens, results among them."""
        return self.fixed_bytes + self.bytes_per_token * tokens / machines


def fit(stem: str, sizes: Sizes, found: list[Measured], mode: str = BOTH) -> CostModel | None:
    """Lines through time and memory from 1,024 tokens on, the largest size kept for the check; None for too few sizes.

    The line minimises relative errors: the small sizes count as much as the large.
    """
    points = sorted(
        (each for each in found if each.contestant == OURS and each.mode == mode and each.tokens >= 1024),
        key=lambda each: each.tokens,
    )
    if len(points) < 3:
        return None
    used, held = points[:-1], points[-1]
    fixed, per_token = _line([(each.tokens, each.seconds) for each in used])
    memory = [(each.tokens, float(each.memory)) for each in used if each.memory]
    fixed_bytes, bytes_per_token = _line(memory) if len(memory) > 1 else (math.nan, math.nan)
    predicted = fixed + per_token * held.tokens
    item = sizes.dtype.itemsize
    return CostModel(
        stem,
        mode,
        fixed,
        per_token,
        fixed_bytes,
        bytes_per_token,
        reduced_numbers(stem, sizes),
        item,
        (held.tokens, predicted / held.seconds),
    )


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Least squares of relative errors, both numbers at least 0."""
    rows = [(1.0 / y, n / y) for n, y in points]
    uu, uv, vv = sum(u * u for u, _ in rows), sum(u * v for u, v in rows), sum(v * v for _, v in rows)
    u1, v1 = sum(u for u, _ in rows), sum(v for _, v in rows)
    determinant = uu * vv - uv * uv
    fixed = (u1 * vv - v1 * uv) / determinant if determinant > 0 else 0.0
    if fixed <= 0:
        return 0.0, v1 / vv
    return fixed, max(0.0, (v1 - uv * fixed) / vv)
