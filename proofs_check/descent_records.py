"""What a descent report holds: every attention, every head, every feed-forward block, and what is to be read off them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from .descent_alignment import Alignment, Coding, Whole
from .sizes import plain_table

__all__ = ["CAVEAT", "VERDICTS", "AttentionDescent", "DescentReport", "FeedForward", "spread", "writable"]

CAVEAT = (
    "Published pre-norm blocks are no gradient steps at the stream: each is measured at what it sees, and its update is added"
    " elsewhere. Alignment on some images is no derivation. Feed-forward blocks of MLPs are measured, not claimed."
)

VERDICTS = {
    "descends": "downhill on every image, and the objective falls",
    "overshoots": "downhill on every image, but so long that the objective rises on some",
    "mixed": "downhill on some images, uphill on others",
    "ascends": "uphill on every image",
}
"""What can be said of an update, and what it means."""

ACROSS = 0.1
"""Cosines below it are called nearly across: a number for reading, chosen and not derived."""


@dataclass(frozen=True)
class AttentionDescent:
    """One attention, held against an objective; tensors are ``(images,)``, those of heads ``(images, heads)``.

    name: of the block. layer, objective: classes. frozen: what the objective holds constant, "" for nothing. block, heads:
    of the whole update, and of what every head adds, with why where that cannot be told. whole: what freezing leaves out.
    """

    name: str
    layer: str
    objective: str
    frozen: str
    block: Alignment
    heads: Alignment | None
    why: str
    whole: Whole | None

    @property
    def verdict(self) -> str:
        """One of :data:`VERDICTS`, of these images."""
        down, lowers = self.block.cosine > 0, self.block.decrease > 0
        if bool(down.all()):
            return "descends" if bool(lowers.all()) else "overshoots"
        return "ascends" if bool((self.block.cosine < 0).all()) else "mixed"


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward block at what it sees; measured, not claimed. Tensors are ``(images,)``.

    shrinks: cosine of the update with −x. rate, unit_rate: how much R of the tokens falls, as they are and at norm 1.
    zeros: share of exact zeros in what it returns. inactive: share of hidden units that are not positive, None where there
    are none or where they are gated. coding: of ISTA, which descends sparse coding.
    """

    name: str
    layer: str
    shrinks: Tensor
    rate: Tensor
    unit_rate: Tensor
    zeros: Tensor
    inactive: Tensor | None
    coding: Coding | None


@dataclass(frozen=True)
class DescentReport:
    """What :func:`descent_report` has measured; ``str`` is a table and a verdict.

    model: its class. asked: the objective as it was asked for. images: how many. attentions, feeds: in the order of the
    network. left_out: attentions that were not measured, and why.
    """

    model: str
    asked: str
    images: int
    attentions: tuple[AttentionDescent, ...]
    feeds: tuple[FeedForward, ...]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        head = ("attention", "layer", "objective", "", "cosine", "decrease", "best", "best step", "whole", "left out")
        parts = [plain_table([_row(record) for record in self.attentions], head, left=4)]
        if self.feeds:
            fed = (
                "feed-forward",
                "layer",
                "shrinks",
                "R falls",
                "at norm 1",
                "zeros",
                "inactive",
                "sparse coding falls",
            )
            parts.append(plain_table([_feed_row(record) for record in self.feeds], fed, left=2))
        return "\n\n".join([*parts, "\n".join(self.verdict())])

    def verdict(self) -> list[str]:
        """What is to be read off the tables, in sentences; the last is the caveat."""
        kinds = [record.verdict for record in self.attentions]
        count, of = len(kinds), f"{self.images} image{'s' if self.images > 1 else ''}"
        listed = "; ".join(f"{kinds.count(kind)} “{kind}” ({VERDICTS[kind]})" for kind in VERDICTS if kind in kinds)
        sentences = [f"Of {count} attention update{'s' if count > 1 else ''}, on {of}: {listed}."]
        means = [float(record.block.cosine.mean()) for record in self.attentions]
        low, high = means.index(min(means)), means.index(max(means))
        sentences.append(
            f"The cosine with steepest descent is {means[high]:+.3f} at best ({self.attentions[high].name})"
            + (f", {means[low]:+.3f} at worst ({self.attentions[low].name})." if low != high else ".")
        )
        across = sum(abs(mean) < ACROSS for mean in means)
        if across:
            sentences.append(f"{across} of {count} lie nearly across it: the cosine is below {ACROSS:g} either way.")
        held = [(record, record.whole) for record in self.attentions if record.whole is not None]
        if held:
            left = sum(float(part.left_out.mean()) for _, part in held) / len(held)
            up = sum(float(part.update.mean()) < 0 for _, part in held)
            sentences.append(
                f"Freezing ({held[0][0].frozen or 'auxiliaries'}) leaves out {left:.0%} of the whole gradient, on average; with"
                f" nothing frozen {up} of {len(held)} update{'s' if len(held) > 1 else ''} would point uphill."
            )
        if self.left_out:
            names = list(self.left_out)
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            sentences.append(f"{len(names)} attention(s) were not measured: {shown} ({self.left_out[names[0]]}).")
        return [*sentences, CAVEAT]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: every number of every image."""
        return {
            "schema": 1,
            "model": self.model,
            "objective": self.asked,
            "images": self.images,
            "attentions": [{**_plain(record), "verdict": record.verdict} for record in self.attentions],
            "feed_forwards": [_plain(record) for record in self.feeds],
            "left_out": dict(self.left_out),
            "verdict": self.verdict(),
        }

    def html(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one page that needs nothing else; what was there stays whole until the new one is.

        Raises
        ------
            ValueError for a folder that does not exist, or a path that is one.
        """
        from .descent_report_page import page

        place = writable(path)
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        try:
            partial.write_text(page(self), encoding="utf-8")
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        return place


def writable(path: str | os.PathLike[str]) -> Path:
    """The path, if a file can be written there; ValueError for a folder, or a folder that does not exist."""
    place = Path(path)
    if place.is_dir():
        raise ValueError(f"descent_report: {place} is a folder; give a file name.")
    if not place.resolve().parent.is_dir():
        raise ValueError(f"descent_report: {place}: the folder {place.parent} does not exist.")
    return place


def spread(values: Tensor, form: str = "+.3g") -> str:
    """Mean and deviation over images: ``+0.93 ± 0.02``."""
    mean, off = float(values.double().mean()), float(values.double().std(correction=0))
    form = "+,.0f" if 1e3 <= abs(mean) < 1e7 else form
    return f"{mean:{form}} ± {off:.2g}"


def _row(record: AttentionDescent) -> tuple[str, ...]:
    numbers = (record.block.cosine, record.block.decrease, record.block.best_decrease, record.block.best_step)
    more = ("not told", "") if record.frozen else ("–", "–")
    if record.whole is not None:
        more = (spread(record.whole.update), f"{float(record.whole.left_out.mean()):.0%}")
    return record.name, record.layer, record.objective, record.verdict, *(spread(n) for n in numbers), *more


def _feed_row(record: FeedForward) -> tuple[str, ...]:
    cells = [spread(n) for n in (record.shrinks, record.rate, record.unit_rate)]
    cells.append(f"{float(record.zeros.mean()):.0%}")
    cells.append("–" if record.inactive is None else f"{float(record.inactive.mean()):.0%}")
    cells.append("–" if record.coding is None else spread(record.coding.decrease))
    return record.name, record.layer, *cells


def _plain(record: Any) -> Any:
    if isinstance(record, Tensor):
        return record.double().tolist()
    if record is None or isinstance(record, (str, int, float)):
        return record
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}
