"""Pictures of runs: loss, metric and learning rate by epoch; the metric under noise; several runs side by side."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate import NoiseLevel
from .run import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "data_uri", "new_figure", "plot_noise", "plot_runs", "save_figure"]

INK, SOFT = "#1d1e22", "#8a8c93"
COLOURS = ("#1c5a9e", "#b8480b", "#147a5c", "#6d2fa3", "#b01220", "#6b6000", "#2a9bb5", "#8c564b", "#555555", "#d08a00")
"""Of lines, in order."""


def _axes(figure: Figure, count: int) -> list[Axes]:
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return list(panels)


def new_figure(panels: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure with so many panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, _axes(figure, panels)


def plot_runs(runs: Mapping[str, RunFolder]) -> Figure:
    """Loss, the held-out metric and the learning rate of one or several runs, by epoch."""
    figure, panels = new_figure(3, (11, 3.4))
    name = "metric"
    for index, (label, run) in enumerate(runs.items()):
        lines = run.lines()
        ends = [line["step"] / line["epoch"] for line in lines if line.get("epoch")]
        per_epoch = ends[0] if ends else 1.0
        colour = COLOURS[index % len(COLOURS)]
        loss = [(line["step"] / per_epoch, line["loss"], line["lr"]) for line in lines if line.get("loss") is not None]
        name = "miou" if run.job().task == "segment" else "accuracy"
        held = [(line["epoch"], line["val"][name]) for line in lines if "val" in line]
        if loss:
            x, y, rate = zip(*loss, strict=True)
            panels[0].plot(x, y, color=colour, lw=1.2, label=label)
            panels[2].plot(x, rate, color=colour, lw=1.2)
        if held:
            panels[1].plot(*zip(*held, strict=True), color=colour, lw=1.2, marker="o", ms=3, label=label)
    titles = ("training loss", f"{'mean IoU' if name == 'miou' else name}, held-out images", "learning rate")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, loc="left", fontsize=10, color=INK)
        panel.set_xlabel("epoch", fontsize=9)
    panels[2].set_ylim(bottom=0)
    if len(runs) > 1 and panels[0].lines:
        panels[0].legend(frameon=False, fontsize=7)
    return figure


def plot_noise(curves: Mapping[str, Sequence[NoiseLevel]], metric: str) -> Figure:
    """The metric against the σ of noise on the attention parameters, with the spread of the draws; σ = 0 at the left edge."""
    figure, (panel,) = new_figure(1, (6.4, 4.2))
    for index, (label, levels) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        sigmas = [level.sigma for level in levels if level.sigma]
        if not sigmas:
            continue
        x = [min(sigmas) / 3, *sigmas]
        panel.plot(x, [level.mean for level in levels], color=colour, lw=1.4, marker="o", ms=3, label=label)
        low, high = ([f(level.values) for level in levels] for f in (min, max))
        panel.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    panel.set_xscale("log")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("σ of the noise on every attention parameter (left-most: none)", fontsize=9)
    panel.set_ylabel(metric, fontsize=9)
    panel.legend(frameon=False, fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a picture, whole or not at all."""
    from .checkpoint import written_whole

    with written_whole(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix(".") or "png", dpi=130, facecolor="white")


def data_uri(figure: Figure) -> str:
    """A figure as an address that a page holds itself."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, facecolor="white")
    return "data:image/png;base64," + b64encode(picture.getvalue()).decode()


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers of a result, without lists."""
    return {
        name: value for name, value in found.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
