"""Inputs drawn around an example: what shapes a stranger's layer accepts is learned by trying, its width is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .measures import norm
from .plain_objective import FULL
from .strategies import KINDS_OF_TOKENS, Case

__all__ = ["Accepted", "Drawn", "draw", "learn_shapes"]

SCALES = (1e-2, 0.1, 10.0, 100.0)
"""Sizes of tokens, in units of the example's; in single precision only the middle two, and nearer."""


@dataclass(frozen=True)
class Drawn:
    """An input as the layer gets it, in words and as Python that makes it again; no code for the caller's own.

    generic: Gaussian or the caller's, neither degenerate nor of another size.
    """

    x: Tensor
    words: str
    code: str = ""
    generic: bool = True


@dataclass(frozen=True)
class Accepted:
    """The shapes that the layer and its objective take: of one set, the sizes of its last axis but one, leading axes."""

    unit: tuple[int, ...]
    counts: tuple[int, ...]
    leads: tuple[tuple[int, ...], ...]
    refused: tuple[str, ...]

    @property
    def words(self) -> str:
        """What was learned, in a sentence."""
        if len(self.unit) < 2:
            said = f"x has the fixed shape {self.unit}"
        elif len(self.counts) == 1:
            what = "tokens" if len(self.unit) == 2 else f"as size of axis {-2}"
            said = f"only {self.counts[0]} {what} are accepted" if self.counts[0] != 1 else "one token is accepted"
        else:
            said = f"{', '.join(map(str, self.counts))} tokens are accepted"
        left_out = f" ({', '.join(self.refused)} refused, and left out)" if self.refused else ""
        axes = sorted({len(lead) for lead in self.leads})
        return f"{said}, with {' or '.join(map(str, axes))} batch axes{left_out}"


def learn_shapes(accepts: Callable[[Tensor], bool], example: Tensor, unit: tuple[int, ...], small: bool) -> Accepted:
    """Which numbers of tokens and which leading axes are accepted; the width never changes.

    small: prefer few tokens, since the objective is differentiated by differences.
    """
    lead, scale = tuple(example.shape[: example.ndim - len(unit)]), _scale_of(example)
    refused: list[str] = []

    def takes(shape: tuple[int, ...], what: str) -> bool:
        x = torch.from_numpy(scale * np.random.default_rng(0).standard_normal(shape))
        if accepts(x):
            return True
        refused.append(what)
        return False

    counts: list[int] = [unit[-2]] if len(unit) > 1 else [1]
    if len(unit) > 1:
        N, d = unit[-2:]
        most = max(N, FULL // d) if small else max(2 * N, d + 3, 8)
        tried = sorted({1, 2, 3, 5, max(1, N - 1), N, N + 1, 2 * N, min(d, 64), min(d, 64) + 3})
        counts = [n for n in tried if n <= most and (n == N or takes((*lead, *unit[:-2], n, d), f"{n} tokens"))]
    leads = [lead]
    for other in ((), (2,), (3,), (2, 2), (1,)):
        if other != lead and takes((*other, *unit), f"batch axes {other}"):
            leads.append(other)
    return Accepted(unit, tuple(counts), tuple(leads), tuple(refused))


def draw(example: Tensor, accepted: Accepted, cases: int, seed: int, single: bool) -> list[Drawn]:
    """The example itself, structured inputs at its scale and at others, then random ones; the smallest first."""
    rng = np.random.default_rng(seed)
    scale, unit = _scale_of(example), accepted.unit
    plain = () if () in accepted.leads else accepted.leads[0]
    counts = accepted.counts
    middle = min(counts, key=lambda n: abs(n - unit[-2])) if len(unit) > 1 else 1
    kinds = KINDS_OF_TOKENS if len(unit) == 2 else ("gaussian", "zero", "rank_one", "one_far", "shifted")
    wanted = [kind for kind in kinds if kind != "subspaces"]  # of one head: Gaussian
    scales = (0.5, 2.0) if single else SCALES
    planned: list[tuple[int, tuple[int, ...], str, float]] = [(n, plain, "gaussian", 1.0) for n in counts]
    planned += [(middle, plain, kind, 1.0) for kind in wanted]
    planned += [(middle, plain, "gaussian", s) for s in scales]
    planned += [(middle, lead, "gaussian", 1.0) for lead in accepted.leads if lead != plain]
    while len(planned) < cases - 1:
        lead = accepted.leads[int(rng.integers(len(accepted.leads)))] if rng.random() < 0.3 else plain
        kind = str(rng.choice(["gaussian", "gaussian", "shifted", "one_far", "rank_one", "near_parallel"]))
        kind = kind if kind in wanted else "gaussian"
        planned.append((int(rng.choice(counts)), lead, kind, float(rng.choice([1.0, 1.0, *scales]))))
    made = [Drawn(example, f"the input you passed, {tuple(example.shape)}")]
    for number, (n, lead, kind, size) in enumerate(planned[: max(cases - 1, 0)]):
        made.append(_make(unit, n, lead, kind, size * scale, seed + number))
    return sorted(made, key=lambda drawn: drawn.x.numel())


def _make(unit: tuple[int, ...], count: int, lead: tuple[int, ...], kind: str, scale: float, seed: int) -> Drawn:
    one = (*unit[:-2], count, unit[-1]) if len(unit) > 1 else unit
    shape = (*lead, *one)
    options: dict[str, Any] = {"tokens": math.prod(one[:-1]), "heads": 1, "head_dim": one[-1], "kind": kind}
    case = Case(**options, scale=float(f"{scale:.3g}"), batch=math.prod(lead) if lead else 0, seed=seed)
    x = case.x()
    code, generic = f"{case!r}.x()", kind == "gaussian"
    if tuple(x.shape) != shape:
        x, code = x.reshape(shape), f"{code}.reshape{shape!r}"
    return Drawn(x, f"{kind.replace('_', '-')} numbers {shape} of size {case.scale:g}", code, generic)


def _scale_of(example: Tensor) -> float:
    return norm(example) / example.numel() ** 0.5 or 1.0
