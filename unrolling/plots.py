"""Figures of a trace. matplotlib is imported when a figure is asked for, not before."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from .trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_reductions", "plot_trace", "svg_of"]

INK, SOFT = "#1d1e22", "#8a8c93"
BEFORE, BETWEEN, AFTER, TOKENS, REPRESENTATIVES = "#8a8c93", "#b8480b", "#1c5a9e", "#1c5a9e", "#b8480b"
"""Colours that differ in lightness too, and are told apart by most eyes."""


def plot_trace(trace: Trace, path: str | os.PathLike[str] | None = None) -> Figure:
    """Four panels over the blocks: the rate, the rate of unit tokens, the reductions, and where each update points.

    Rate panels: $R_c(Z | U)$ of the stream, in every layer's own bases, before the block, after its attention and after
    its feed-forward half (CBSA, figure 5). Reductions: of the seen tokens, and below of CBSA's representatives, a point a head, a
    bar for their mean (figure 6). Last: the cosine of each update with the descent direction of
    the layer's objective; above zero it descends.

    Parameters
    ----------
        path: write the figure there (its suffix chooses the format).
    """
    from matplotlib.figure import Figure

    _check(trace, path)
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    axes = figure.subplot_mosaic(
        [["rate", "unit"], ["tokens", "cosine"], [_below(trace), "cosine"]], height_ratios=[2, 1, 1]
    )
    _rates(axes["rate"], trace, unit=False)
    _rates(axes["unit"], trace, unit=True)
    _reductions(axes["tokens"], trace, representatives=False)
    if "representatives" in axes:
        _reductions(axes["representatives"], trace, representatives=True)
    _cosines(axes["cosine"], trace)
    figure.suptitle(f"{trace.model}: what each block does", x=0.01, ha="left", color=INK, fontsize=12)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def plot_reductions(trace: Trace, path: str | os.PathLike[str] | None = None) -> Figure:
    """The third panel of :func:`plot_trace` alone: reductions of tokens and of representatives (CBSA, figure 6)."""
    from matplotlib.figure import Figure

    _check(trace, path)
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplot_mosaic([["tokens"], [_below(trace)]])
    for name, panel in axes.items():
        _reductions(panel, trace, representatives=name == "representatives")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def svg_of(figure: Figure) -> str:
    """The figure as one SVG element for a page, without the XML header, its text as text."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "attention-as-descent"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _check(trace: Trace, path: str | os.PathLike[str] | None) -> None:
    if not isinstance(trace, Trace):
        raise TypeError(f"plot: a Trace is drawn, but a {type(trace).__name__} was given; call model.trace(x) first.")
    if not len(trace):
        raise ValueError("plot: the trace has no blocks.")
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"plot: path must be a string or a path, but is a {type(path).__name__}.")


def _style(axes: Axes, title: str, trace: Trace) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis="y", color="#dedbd1", linewidth=0.6)
    axes.set_axisbelow(True)
    count = len(trace)
    ticks = range(0, count, max(1, count // 12))
    names = [
        trace[i].name.removeprefix("block ").replace("-attention", "").replace("encoder block ", "e") for i in ticks
    ]
    plain = all(name.isdigit() for name in names)
    axes.set_xticks(list(ticks), [name.replace("decoder block ", "d") for name in names])
    if not plain and max(map(len, names)) > 3 * 12 / max(1, len(names)):
        axes.tick_params(axis="x", labelrotation=30)
    if plain:
        axes.set_xlabel("block", fontsize=8, color=SOFT)


def _rates(axes: Axes, trace: Trace, *, unit: bool) -> None:
    values = [(record.unit_rate if unit else record.rate).double().mean(0).tolist() for record in trace]
    places = range(len(values))
    for index, (label, colour, marker) in enumerate(
        (("before", BEFORE, "o"), ("after attention", BETWEEN, "^"), ("after the block", AFTER, "s"))
    ):
        axes.plot(
            places,
            [row[index] for row in values],
            color=colour,
            marker=marker,
            markersize=3.5,
            linewidth=1.3,
            label=label,
        )
    axes.legend(frameon=False, fontsize=8)
    axes.set_ylabel("nats", fontsize=8, color=SOFT)
    where = "tokens at norm 1" if unit else "tokens as they are"
    _style(axes, f"Rate $R_c$ in each layer's subspaces, {where}", trace)


def _below(trace: Trace) -> str:
    """The panel below the tokens' reductions: that of the representatives, if there are any."""
    return "representatives" if any(record.representatives is not None for record in trace) else "tokens"


def _reductions(axes: Axes, trace: Trace, *, representatives: bool) -> None:
    colour, marker = (REPRESENTATIVES, "D") if representatives else (TOKENS, "o")
    for place, record in enumerate(trace):
        reduction = record.representative_reduction if representatives else record.token_reduction
        if reduction is not None:
            row = reduction.double().mean(0).tolist()
            axes.plot([place] * len(row), row, marker, color=colour, markersize=3, alpha=0.5)
            axes.plot([place - 0.3, place + 0.3], [sum(row) / len(row)] * 2, color=colour, linewidth=1.8)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylabel("nats", fontsize=8, color=SOFT)
    axes.set_xlim(-0.6, len(trace) - 0.4)
    _style(axes, f"Rate taken from the {'representatives' if representatives else 'tokens'}, head by head", trace)


def _cosines(axes: Axes, trace: Trace) -> None:
    values = [float(record.cosine.double().mean()) for record in trace]
    colours = [AFTER if value > 0 else BETWEEN for value in values]
    axes.bar(range(len(values)), values, color=colours, width=0.7)
    axes.axhline(0, color=INK, linewidth=0.8)
    reach = max(0.1, 1.15 * max(abs(value) for value in values))
    axes.set_ylim(-reach, reach)
    zeros = [float(record.zeros.double().mean()) for record in trace]
    title = "Cosine of the update with descent on the layer's objective"
    if max(zeros) > 0:
        other: Any = axes.twinx()
        other.plot(range(len(zeros)), zeros, color=SOFT, linewidth=1.2, marker="x", markersize=3)
        other.set_ylim(0, 1)
        other.set_ylabel("share of zeros (grey line)", fontsize=8, color=SOFT)
        other.tick_params(labelsize=8)
        other.spines[["top"]].set_visible(False)
    _style(axes, title, trace)
    if max(zeros) > 0:
        axes.spines[["right"]].set_visible(True)
