"""A descent report as one self-contained HTML page: verdict, curves over the blocks, tables of blocks and of heads."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape

from torch import Tensor

import objectives

from .descent_records import CAVEAT, VERDICTS, AttentionDescent, DescentReport, FeedForward, spread
from .figures import mark, number
from .report_style import CSS
from .typeset import Typesetter

__all__ = ["page"]

COLOURS = {"descends": "holds", "overshoots": "vacuous", "mixed": "open", "ascends": "fails"}

OWN = """
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(23rem, 100%), 1fr)); gap: 1.6rem 2rem; margin: 1.2rem 0; }
.curves figure { margin: 0; max-width: 38rem; } .curves figcaption { font-size: .92rem; color: var(--soft); text-wrap: pretty; }
.curves h3 { margin-bottom: .3rem; }
.chart .band { fill: currentColor; fill-opacity: .14; stroke: none; }
.chart .dots circle { fill: currentColor; fill-opacity: .4; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; font-size: .88rem; }
.legend span::before { content: ""; display: inline-block; width: 1.1em; height: .22em; background: currentColor;
  margin-right: .45em; vertical-align: .25em; }
.blocks th:first-child, .heads th:first-child { min-width: 8.6rem; max-width: 15rem; overflow-wrap: anywhere; }
.blocks tbody th, .heads tbody th { position: sticky; left: 0; background: var(--page); text-align: left; }
.blocks td small { display: inline; color: var(--soft); } .blocks .word small, .blocks th small { display: block; }
.blocks { font-size: .84rem; } .blocks td, .blocks th { padding-right: .6rem; }
.heads thead th:first-child { text-align: left; padding-left: 0; }
.key div { grid-template-columns: 7.6rem 1fr; } .key dt { text-wrap: balance; }
.what { margin: 1.6rem 0 0; } .what p { margin: 0; }
.line.s2 path { stroke-dasharray: 7 4; }
.heads { min-width: 0; width: auto; } .heads td { white-space: nowrap; padding-inline: .35rem; }
.heads td small { font-size: .72rem; }
"""

HEAD = (
    ("block", "the attention"),
    ("objective", "what it is held against"),
    ("verdict", "on these images"),
    ("cosine", "of the update with steepest descent, at what the layer sees: 1 straight down, −1 straight up"),
    ("decrease", "of the objective by the update as it is"),
    ("best", "the decrease along the same line with the best step size"),
    ("best step", "that step size, in units of the update; negative where it ascends; 16 is the longest tried"),
    (
        "whole",
        "its cosine with descent where what is held constant counts as well; not told where that has no gradient",
    ),
    ("left out", "the share of that whole gradient which freezing leaves out: ‖whole − frozen‖ / ‖whole‖"),
)

FED = (
    ("block", "the feed-forward block"),
    ("shrinks", "cosine of what it adds with −x: 1 where it does nothing but shrink the tokens that it sees"),
    ("R falls", "how much the coding rate of these tokens falls by what it adds, in nats; shrinking alone lowers it"),
    ("at norm 1", "the same with every token scaled to norm 1"),
    ("zeros", "share of exact zeros in what it returns"),
    ("inactive", "share of hidden units that are not positive; none where they are gated"),
    (
        "sparse coding falls",
        "ISTA only: how much the sparse coding objective falls, from the positive part of the tokens",
    ),
)


def page(report: DescentReport) -> str:
    """The page as text: nothing is fetched, nothing is executed, everything given is escaped."""
    setter = Typesetter()
    equations = _equations(report, setter)
    title = f"{report.model}: does it descend, layer by layer?"
    about = f"Held against {report.asked}, on {report.images} image{'s' if report.images > 1 else ''}."
    said = "".join(f"<p>{escape(_signs(sentence))}</p>" for sentence in report.verdict()[:-1])
    freezes = any(record.frozen or record.whole is not None for record in report.attentions)
    columns = len(HEAD) if freezes else len(HEAD) - 2
    feeds = ""
    if report.feeds:
        feeds = (
            "<h2>Feed-forward blocks <small>measured, not claimed</small></h2>"
            + _table(FED, [_fed(record) for record in report.feeds], words=1)
            + _key(FED[1:])
        )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}{OWN}</style>
</head>
<body>
{setter.outlines()}
<header><h1>{escape(title)}</h1><p class="note">{escape(about)}</p></header>
<main>
<section class="said">{said}</section>
<p class="note">{escape(CAVEAT)}</p>
{_curves(report)}
<h2>Attention <small>mean ± deviation over images</small></h2>
{_table(HEAD[:columns], [_attended(record)[:columns] for record in report.attentions], words=3)}
{_verdicts(report)}
{_key(HEAD[3:columns])}
{equations}
{_heads(report.attentions)}
{feeds}
{_left_out(report)}
</main>
</body>
</html>
"""


# ---------------------------------------------------------------------------------------------------------------- tables


def _table(head: Sequence[tuple[str, str]], rows: Sequence[tuple[str, ...]], *, words: int) -> str:
    """Rows of cells that are HTML already."""
    top = "".join(
        f'<th title="{escape(meaning)}"{_word(i, words)}>{escape(name)}</th>' for i, (name, meaning) in enumerate(head)
    )
    body = "".join(
        f'<tr><th scope="row">{cells[0]}</th>'
        + "".join(f"<td{_word(i, words)}>{cell}</td>" for i, cell in enumerate(cells[1:], 1))
        + "</tr>"
        for cells in rows
    )
    return f'<div class="wide"><table class="sizes blocks"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _word(column: int, words: int) -> str:
    return ' class="word"' if column < words else ""


def _key(head: Sequence[tuple[str, str]]) -> str:
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(meaning)}</dd></div>" for name, meaning in head)
    return f'<dl class="key">{pairs}</dl>'


def _verdicts(report: DescentReport) -> str:
    """What those that occur mean."""
    seen = {record.verdict for record in report.attentions}
    pairs = "".join(
        f'<div><dt class="{COLOURS[name]}">{mark(COLOURS[name])}{name}</dt><dd>{words}</dd></div>'
        for name, words in VERDICTS.items()
        if name in seen
    )
    return f'<dl class="key">{pairs}</dl>'


def _attended(record: AttentionDescent) -> tuple[str, ...]:
    css = COLOURS[record.verdict]
    block = record.block
    cells = [_spread(n) for n in (block.cosine, block.decrease, block.best_decrease, block.best_step)]
    cells += ["not told", ""] if record.frozen else ["–", "–"]
    if record.whole is not None:
        cells[-2:] = [_spread(record.whole.update), f"{float(record.whole.left_out.mean()):.0%}"]
    frozen = f" <small>{escape(record.frozen)} held</small>" if record.frozen else ""
    verdict = f'<span class="{css}">{mark(css)} {record.verdict}</span>'
    name = f"{escape(record.name)} <small>{escape(record.layer)}</small>"
    return name, escape(record.objective) + frozen, verdict, *cells


def _fed(record: FeedForward) -> tuple[str, ...]:
    cells = [_spread(n) for n in (record.shrinks, record.rate, record.unit_rate)]
    cells.append(f"{float(record.zeros.mean()):.0%}")
    cells.append("–" if record.inactive is None else f"{float(record.inactive.mean()):.0%}")
    cells.append("–" if record.coding is None else _spread(record.coding.decrease))
    return f"{escape(record.name)} <small>{escape(record.layer)}</small>", *cells


def _spread(values: Tensor) -> str:
    mean, _, off = _signs(spread(values)).partition(" ± ")
    return f"{mean} <small>± {off}</small>"


def _signs(text: str) -> str:
    """Minus signs before numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def _heads(records: Sequence[AttentionDescent]) -> str:
    """Blocks down, heads across: the cosine, and below it the decrease and the best step size."""
    count = max((record.heads.cosine.shape[1] for record in records if record.heads is not None), default=0)
    why = {record.why for record in records if record.heads is None and record.why}
    note = f'<p class="note">Not split by heads in some blocks: {escape("; ".join(sorted(why)))}.</p>' if why else ""
    if not count:
        return f"<h2>Heads</h2>{note}" if note else ""
    rows = []
    for record in records:
        if record.heads is None:
            continue
        split = zip(
            *(part.double().mean(0).tolist() for part in (record.heads.cosine, record.heads.decrease)),
            record.heads.cosine.double().std(0, correction=0).tolist(),
            record.heads.best_step.double().mean(0).tolist(),
            record.heads.ascends.double().mean(0).tolist(),
            strict=True,
        )
        cells = "".join(
            f'<td class="{"down" if cosine > 0 else "up"}" title="± {off:.2g} over images; ascends on {up:.0%} of them">'
            f"{_signs(f'{cosine:+.2f}')}<small>{_short(fall)} · {_short(step)}</small></td>"
            for cosine, fall, off, step, up in split
        )
        rows.append(f'<tr><th scope="row">{escape(record.name)}</th>{cells}</tr>')
    top = "".join(f"<th>{head}</th>" for head in range(count))
    return f"""<h2>Heads <small>what each adds, against its own share of the objective</small></h2>
<p class="note">Cosine with descent, in colour where it points down or up; below, the decrease by what it adds, and the best
step size. A callable, a declared objective and the rate of all tokens have no shares: there every head is held against the
whole.</p>{note}
<div class="wide"><table class="signs heads"><thead><tr><th>block</th>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def _short(value: float) -> str:
    return _signs(f"{value:+.0f}" if 10 <= abs(value) < 1e4 else f"{value:+.1g}")


def _left_out(report: DescentReport) -> str:
    if not report.left_out:
        return ""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(why)}</dd></div>" for name, why in report.left_out.items()
    )
    return f'<h2>Not measured</h2><dl class="key">{items}</dl>'


def _equations(report: DescentReport, setter: Typesetter) -> str:
    """What each objective is, from its docstring."""
    shown = []
    for name in dict.fromkeys(record.objective for record in report.attentions):
        kind = getattr(objectives, name, None)
        found = re.search(r"Minimises\n\s+(.+?)\n\s+In code", getattr(kind, "__doc__", None) or "", re.DOTALL)
        if found:
            equation = setter.prose(" ".join(found[1].split()))
            shown.append(f'<p class="note"><code>{escape(name)}</code></p><div class="equation">{equation}</div>')
    return f'<section class="what">{"".join(shown)}</section>'


# ---------------------------------------------------------------------------------------------------------------- curves

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 230, 76, 12, 10, 34
NEAR = 1e-3
"""Ticks by which a curve may leave its axis: rounding makes no room for a tick more."""
Curve = tuple[str, str, list[float], list[float]]
"""Words for the legend, a colour's class, means and deviations, NaN where there is nothing."""


def _curves(report: DescentReport) -> str:
    attentions, feeds = report.attentions, report.feeds
    blocks = [record.block for record in attentions]
    cosines = [_curve("whole update", "s1", [block.cosine for block in blocks])]
    if any(record.whole is not None for record in attentions):
        wholes = [None if record.whole is None else record.whole.update for record in attentions]
        cosines.append(_curve("nothing frozen", "s2", wholes))
    dots = [[] if r.heads is None else r.heads.cosine.double().mean(0).tolist() for r in attentions]
    said = "Cosine of the update with steepest descent; dots are heads. Above zero it descends."
    figures = [_figure("Where updates point", said, cosines, dots)]
    falls = [
        _curve("as it is", "s1", [_share(block.decrease, block.value) for block in blocks]),
        _curve("best step", "s3", [_share(block.best_decrease, block.value) for block in blocks]),
    ]
    figures.append(_figure("How much objectives fall", "Decrease by the update, relative to the objective.", falls))
    if feeds:
        rates = [
            _curve("tokens", "s1", [record.rate for record in feeds]),
            _curve("at norm 1", "s2", [record.unit_rate for record in feeds]),
        ]
        said = "Fall of the coding rate by what it adds, in nats: measured, not claimed."
        figures.append(_figure("Feed-forward blocks", said, rates))
    return f'<section class="curves">{"".join(figures)}</section>'


def _share(part: Tensor, of: Tensor) -> Tensor:
    return part / of.abs().clamp(min=1e-30)


def _curve(words: str, css: str, values: Sequence[Tensor | None]) -> Curve:
    means = [math.nan if v is None else float(v.double().mean()) for v in values]
    return words, css, means, [0.0 if v is None else float(v.double().std(correction=0)) for v in values]


def _figure(title: str, said: str, curves: Sequence[Curve], dots: Sequence[Sequence[float]] = ()) -> str:
    legend = "".join(f'<span class="{css}">{escape(words)}</span>' for words, css, _, _ in curves)
    return (
        f'<figure><h3>{escape(title)}</h3><div class="legend">{legend}</div>{_chart(title, curves, dots)}'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )


def _chart(title: str, curves: Sequence[Curve], dots: Sequence[Sequence[float]]) -> str:
    ends = [m + s * d for _, _, means, offs in curves for m, d in zip(means, offs, strict=True) for s in (-1, 1)]
    ends = [value for value in (*ends, *(dot for many in dots for dot in many)) if math.isfinite(value)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step = _tick((high - low) or 1.0)
    low, high = math.floor(low / step + NEAR) * step, math.ceil(high / step - NEAR) * step or step
    count = len(curves[0][2])

    def x(index: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((index + 0.5) / count)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = []
    for number_ in range(round((high - low) / step) + 1):
        value = low + number_ * step
        zero = abs(value) < step / 2
        parts.append(f'<path class="{"axis" if zero else "grid"}" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        label = number(0.0 if zero else float(f"{value:.6g}"))
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    for index in range(0, count, max(1, math.ceil(count / 12))):
        parts.append(f'<text class="tick" x="{x(index):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{index}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">block</text>')
    if dots:
        marks = "".join(
            f'<circle cx="{x(i):.1f}" cy="{y(dot):.1f}" r="2.4"/>' for i, many in enumerate(dots) for dot in many
        )
        parts.append(f'<g class="dots s1">{marks}</g>')
    for _, css, means, offs in curves:
        there = [(i, m, d) for i, (m, d) in enumerate(zip(means, offs, strict=True)) if math.isfinite(m)]
        if not there:
            continue
        upper = [f"{x(i):.1f} {y(m + d):.1f}" for i, m, d in there]
        lower = [f"{x(i):.1f} {y(m - d):.1f}" for i, m, d in reversed(there)]
        line = "L".join(f"{x(i):.1f} {y(m):.1f}" for i, m, _ in there)
        marks = "".join(f'<circle cx="{x(i):.1f}" cy="{y(m):.1f}" r="3.4"/>' for i, m, _ in there)
        parts.append(f'<g class="{css}"><path class="band" d="M{"L".join(upper + lower)}Z"/></g>')
        parts.append(f'<g class="line {css}"><path d="M{line}"/>{marks}</g>')
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _tick(span: float) -> float:
    """A round distance of about five ticks over a span."""
    raw = span / 4
    decade = 10.0 ** math.floor(math.log10(raw))
    return next(factor * decade for factor in (1, 2, 2.5, 5, 10) if factor * decade >= raw * 0.999)
