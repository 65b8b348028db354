"""The bench as one self-contained HTML page: tables, and pictures of time, memory and the share of the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from unrolling import plots

from ..report_style import CSS
from .cost_model import CostModel, Link
from .subjects import LIMIT, OURS, STEMS
from .timing import BOTH, MODES, Measured, fraction_of_limit, ratio, slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["page", "plot_model", "plot_stem", "seconds", "size"]

INK, SOFT = "#1d1e22", "#8a8c93"
COLOURS = ("#1c5a9e", "#b8480b", "#147a5c", "#6d2fa3", "#9a4a00", "#6b6000")
MARKS = ("o", "s", "^", "D", "v", "P")

OWN = """
.bench td, .bench th { text-align: right; white-space: nowrap; }
.bench th:first-child, .bench td:first-child { text-align: left; }
.bench td small { color: var(--soft); }
.bench tr.mine td { font-weight: 650; }
"""


def seconds(value: float) -> str:
    """A duration for reading.

    >>> seconds(0.0123), seconds(2.5), seconds(3e-5), seconds(7200)
    ('12.3 ms', '2.50 s', '30.0 µs', '2.00 h')
    """
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (600.0, 1.0, "s"), (3600.0, 1 / 60, "min")):
        if value < limit:
            return f"{value * factor:.3g} {unit}" if value * factor >= 100 else f"{_three(value * factor)} {unit}"
    return f"{_three(value / 3600)} h"


def _three(value: float) -> str:
    """Three figures, trailing zeros kept."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2}f}"


def size(value: float | None) -> str:
    """Bytes for reading.

    >>> size(None), size(2_500_000), size(512)
    ('–', '2.50 MB', '512 B')
    """
    if value is None or math.isnan(value):
        return "–"
    for limit, factor, unit in ((1e3, 1.0, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if value < limit:
            return f"{value:.0f} B" if unit == "B" else f"{_three(value / factor)} {unit}"
    return f"{_three(value / 1e12)} TB"


def plot_stem(name: str, found: Sequence[Measured], item: int, dim: int) -> Figure:
    """Time of all contestants, memory beside the tokens' own size, and the fraction of the limit, against tokens."""
    from matplotlib.figure import Figure

    network = STEMS[name].network
    figure = Figure(figsize=(12, 4.2 if not network else 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if network else 4)
    names = list(dict.fromkeys(each.contestant for each in found))
    for panel, mode in zip(panels, MODES, strict=False):
        _curves(panel, found, names, mode, network)
        panel.set_title(mode, loc="left", fontsize=10, color=INK)
    panels[0].set_ylabel("seconds")
    if not network:
        _memories(panels[2], found, names, item * dim)
        _fractions(panels[3], list(found))
    for panel in panels:
        panel.set_xlabel("side of the image" if network else "tokens N")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure


def _curves(panel: Axes, found: Sequence[Measured], names: list[str], mode: str, network: bool) -> None:
    for index, name in enumerate(names):
        mine = sorted((e for e in found if e.contestant == name and e.mode == mode), key=lambda e: e.tokens)
        if not mine:
            continue
        x, y = [e.tokens for e in mine], [e.seconds for e in mine]
        steep = None if network else slope(list(found), name, mode)
        label = name if steep is None else f"{name}, N^{steep:.2f}"
        style = "--" if name == LIMIT else "-"
        panel.plot(x, y, style, marker=MARKS[index % 6], color=COLOURS[index % 6], ms=4, lw=1.3, label=label)
        panel.fill_between(x, [e.low for e in mine], [e.high for e in mine], color=COLOURS[index % 6], alpha=0.15, lw=0)
    if panel.lines:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.legend(frameon=False, fontsize=7)


def _memories(panel: Axes, found: Sequence[Measured], names: list[str], token: int) -> None:
    for index, name in enumerate(names):
        if name == LIMIT:
            continue
        mine = sorted(
            (e for e in found if e.contestant == name and e.mode == BOTH and e.memory), key=lambda e: e.tokens
        )
        if not mine:
            continue
        x = [e.tokens for e in mine]
        y = [(e.memory or 0) / (token * e.tokens) for e in mine]
        panel.plot(x, y, marker=MARKS[index % 6], color=COLOURS[index % 6], ms=4, lw=1.3, label=name)
    if panel.lines:
        panel.axhline(2, color=SOFT, lw=0.8, ls=":")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
    panel.set_title("peak memory / tokens' own,\nforward and backward", loc="left", fontsize=10, color=INK)


def _fractions(panel: Axes, found: list[Measured]) -> None:
    for mode, colour, mark in zip(MODES, COLOURS, MARKS, strict=False):
        shares = fraction_of_limit(found, mode)
        panel.plot(list(shares), list(shares.values()), marker=mark, color=colour, ms=4, lw=1.3, label=mode)
    if any(fraction_of_limit(found, mode) for mode in MODES):
        panel.set_xscale("log", base=2)
        panel.legend(frameon=False, fontsize=7)
    panel.axhline(1, color=SOFT, lw=0.8)
    panel.set_ylim(0, None)
    panel.set_title("the limit's time / ours", loc="left", fontsize=10, color=INK)


def plot_model(models: Sequence[CostModel], machines: Sequence[int], link: Link) -> Figure:
    """Predicted time and memory a machine of every stem, up to 10⁸ tokens, for each number of machines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4 * len(models)), layout="constrained")
    rows = figure.subplots(len(models), 2, squeeze=False)
    tokens = [2.0**k for k in range(10, 27)] + [1e8]
    for (left, right), model in zip(rows, models, strict=True):
        for index, count in enumerate(machines):
            colour, label = COLOURS[index % 6], f"{count} machine" + ("s" if count > 1 else "")
            left.plot(tokens, [model.seconds(n, count, link) for n in tokens], color=colour, lw=1.3, label=label)
            right.plot(tokens, [model.memory(n, count) for n in tokens], color=colour, lw=1.3)
        if model.checked is not None:
            at, factor = model.checked
            left.plot([at], [model.seconds(at) / factor], "o", color=INK, ms=5, label="measured, not fitted")
        left.set_title(f"{STEMS[model.stem].title}: seconds, {model.mode}", loc="left", fontsize=10, color=INK)
        right.set_title("bytes a machine, beside its tokens", loc="left", fontsize=10, color=INK)
        left.legend(frameon=False, fontsize=8)
        for panel in (left, right):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xlabel("tokens N")
            panel.spines[["top", "right"]].set_visible(False)
    return figure


def _row(name: str, found: Sequence[Measured], tokens: Sequence[int], mode: str, network: bool) -> str:
    cells = []
    ratios = ratio(list(found), name, mode)
    for count in tokens:
        mine = [e for e in found if e.contestant == name and e.tokens == count and e.mode == mode]
        if not mine:
            cells.append('<td title="a run would take too long">–</td>')
            continue
        each = mine[0]
        spread = f"quartiles {seconds(each.low)} to {seconds(each.high)}, {each.repetitions} runs"
        times = "" if name == OURS else f"<br><small>{ratios[count]:.3g} ×</small>" if count in ratios else ""
        memory = "" if name == LIMIT else f"<br><small>{size(each.memory)}</small>"
        cells.append(f'<td title="{spread}">{seconds(each.seconds)}{times}{memory}</td>')
    steep = None if network else slope(list(found), name, mode)
    last = "" if network else f"<td>{'–' if steep is None else f'{steep:.2f}'}</td>"
    mark = ' class="mine"' if name == OURS else ""
    return f"<tr{mark}><td>{escape(name)}</td>{''.join(cells)}{last}</tr>"


def _section(name: str, found: Sequence[Measured], item: int, dim: int, claims: str) -> str:
    stem = STEMS[name]
    tokens = sorted({each.tokens for each in found})
    names = list(dict.fromkeys(each.contestant for each in found))
    parts = [f'<h2 id="{name}">{escape(stem.title)}</h2><p class="note">{escape(claims)}']
    parts.append(f" Limit: {escape(stem.limit)}.</p>" if stem.limit else "</p>")
    parts.append(f'<section class="figure">{plots.svg_of(plot_stem(name, found, item, dim))}</section>')
    unit = "side" if stem.network else "N"
    for mode in MODES:
        head = "".join(f"<th>{unit} = {count:,}</th>" for count in tokens)
        last = "" if stem.network else "<th>slope from 4,096</th>"
        rows = "".join(_row(each, found, tokens, mode, stem.network) for each in names)
        parts.append(
            f'<h4>{mode}: median time, times longer than ours, peak memory</h4><div class="table"><table class="bench">'
            f"<thead><tr><th></th>{head}{last}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    return "".join(parts)


def page(run: Mapping[str, Any], found: Mapping[str, Sequence[Measured]], parts: Sequence[str] = ()) -> str:
    """The page as text; ``parts`` are further sections: a comparison, the cost model."""
    settings, about = run["settings"], run["environment"]
    item = settings["item"]
    body = "".join(
        _section(name, each, item, settings["dim"], run["claims"].get(name, "")) for name, each in found.items()
    )
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in about.items())
    sizes = ", ".join(f"{key} {value}" for key, value in settings.items() if key not in ("item", "seed"))
    title = "How fast, and how close to the machine's limit"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{CSS}{OWN}</style>
</head>
<body>
<header><h1>{title}</h1>
<p class="note">{escape(sizes)}. Contestants take turns; times are medians with their quartiles, and only ratios within
one run mean anything. Before anything was timed its claims were checked. Memory is the peak beside the inputs, as the
{"operating system" if settings["device"] == "cpu" else "GPU's allocator"} counts it; results are in it.</p></header>
<main>
{body}{"".join(parts)}
<h2>Where this was measured</h2><dl class="facts">{facts}</dl>
</main>
</body>
</html>
"""
