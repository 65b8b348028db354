"""How the report looks: its style sheet, and equations typeset as outlines."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CSS", "Typesetter"]

WIDE = 18.0
"""Ems beyond which a formula may be broken: at its relations, then at its signs."""

_QUAD = re.compile(r"\\qquad|\\quad")
_RELATION = re.compile(
    r"(?:\\;)?(?:\\(?:leq|geq|le|ge|preceq|succeq|Rightarrow|mapsto|leftarrow|to|approx|propto)(?![A-Za-z])|[=<>])"
)
_SIGN = re.compile(r"[+-]")
_OPENING = re.compile(r"\\left(?![A-Za-z]).|\\langle|[{(\[]")
_CLOSING = re.compile(r"\\right(?![A-Za-z]).|\\rangle|[})\]]")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)


@dataclass
class Typesetter:
    """LaTeX to inline SVG, by matplotlib's mathtext; every glyph's outline is stored once for the whole page."""

    _glyphs: dict[str, tuple[str, str]] = field(default_factory=dict)
    _done: dict[str, str] = field(default_factory=dict)

    def equation(self, latex: str) -> str:
        """HTML for text with ``$…$`` in it, breakable at relations; its source in ``<code>`` if it cannot be parsed."""
        if latex not in self._done:
            source = html.escape(latex, quote=True)
            try:
                body = self._body(latex if "$" in latex else f"${latex}$")
                self._done[latex] = f'<span class="math" role="img" aria-label="{source}">{body}</span>'
            except (ValueError, RuntimeError):
                self._done[latex] = f'<code class="math">{source}</code>'
        return self._done[latex]

    def outlines(self) -> str:
        """The glyphs used so far; they stand once in the page."""
        paths = "".join(f'<path id="{name}" d="{path}"/>' for name, path in self._glyphs.values())
        return f'<svg class="outlines" width="0" height="0" aria-hidden="true"><defs>{paths}</defs></svg>'

    def _body(self, latex: str) -> str:
        segments = latex.split("$")
        if len(segments) % 2 == 0:
            raise ValueError("a dollar sign without its partner")
        return "".join(
            '<span class="quad"> </span>'.join(self._fit(piece) for piece in _pieces(segment, _QUAD))
            if order % 2
            else html.escape(segment)
            for order, segment in enumerate(segments)
        )

    def _fit(self, source: str, breaks: tuple[re.Pattern[str], ...] = (_RELATION, _SIGN)) -> str:
        """The formula in one piece, or in pieces no wider than they need to be."""
        svg, width = self._set(source)
        if width <= WIDE or not breaks:
            return svg
        return "<wbr>".join(self._fit(piece, breaks[1:]) for piece in _pieces(source, breaks[0]))

    def _set(self, source: str) -> tuple[str, float]:
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import TextToPath

        setter, source = TextToPath(), f"${source}$"
        font = FontProperties(family="STIXGeneral", math_fontfamily="stix", size=1000)
        width, height, depth = setter.get_text_width_height_descent(source, font, True)
        placed, shapes, bars = setter.get_glyphs_mathtext(font, source)
        parts = []
        for glyph, x, y, scale in placed:
            if glyph not in self._glyphs:
                self._glyphs[glyph] = (f"g{len(self._glyphs)}", _outline(*shapes[glyph]))
            size = "" if abs(scale - 1) < 1e-9 else f" scale({scale:.3g})"
            place = f"translate({10 * x:.0f} {-10 * y:.0f}){size}"
            parts.append(f'<use href="#{self._glyphs[glyph][0]}" transform="{place}"/>')
        for corners, _ in bars:
            (x, low), (_, top), (far, _) = corners[:3]
            thick = max(10 * (top - low), 45)
            parts.append(f'<path d="M{10 * x:.0f} {-10 * top:.0f}H{10 * far:.0f}v{thick:.0f}H{10 * x:.0f}Z"/>')
        box = f"0 {depth - height:.0f} {width:.0f} {height:.0f}"
        style = f"width:{width / 1000:.2f}em;height:{height / 1000:.2f}em;vertical-align:{-depth / 1000:.2f}em"
        return f'<svg viewBox="{box}" style="{style}" aria-hidden="true">{"".join(parts)}</svg>', width / 1000


def _outline(vertices: Any, codes: Any) -> str:
    """A glyph's path in thousandths of an em, y downwards."""
    points = [(round(10 * float(x)), round(-10 * float(y))) for x, y in vertices]
    commands = {1: ("M", 1), 2: ("L", 1), 3: ("Q", 2), 4: ("C", 3)}
    out, at = [], 0
    while at < len(points):
        letter, count = commands.get(int(codes[at]), ("Z", 0))
        out.append(letter + " ".join(f"{x} {y}" for x, y in points[at : at + count]))
        at += max(count, 1)
    return "".join(out)


def _pieces(source: str, breaks: re.Pattern[str]) -> list[str]:
    """Split before every break outside brackets and norms; spaces that are breaks themselves are dropped.

    >>> _pieces(r"a = b(c = d) \\leq e", _RELATION)
    ['a ', '= b(c = d) ', '\\\\leq e']
    """
    pieces, depth, norm, at = [""], 0, False, 0
    while at < len(source):
        found = breaks.match(source, at) if depth == 0 and not norm else None
        if found:
            text = found.group()
            if breaks is _QUAD:
                pieces.append("")
            elif pieces[-1].strip() and pieces[-1][-1] not in "_^":
                # A sign that opens a formula would be set as a unary one, without its space.
                pieces.append(r"\hspace{0}" + text if breaks is _SIGN else text)
            else:
                pieces[-1] += text
        elif token := _OPENING.match(source, at):
            depth, text = depth + 1, token.group()
            pieces[-1] += text
        elif token := _CLOSING.match(source, at):
            depth, text = depth - 1, token.group()
            pieces[-1] += text
        else:
            token = _TOKEN.match(source, at)
            assert token is not None  # it matches any character
            text = token.group()
            norm ^= text in (r"\Vert", r"\|")
            pieces[-1] += text
        at += len(text)
    return [piece for piece in pieces if piece.strip()]


CSS = """
:root {
  color-scheme: light dark;
  --page: #fbfaf6; --card: #fff; --ink: #1d1e22; --soft: #5a5c63; --line: #dedbd1; --wash: #f3f0e7;
  --holds: #17683a; --fails: #b01220; --vacuous: #9a4a00; --refuted: #6d2fa3; --measured: #1c5a9e; --open: #6b6000;
  --s1: #1c5a9e; --s2: #b8480b; --s3: #147a5c;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, "DejaVu Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1b1e23; --ink: #e9e7e1; --soft: #a5a7ad; --line: #353942; --wash: #23272e;
    --holds: #7fd39b; --fails: #ff8d87; --vacuous: #ffb468; --refuted: #c8a3f6; --measured: #8fc0f5; --open: #d8cd72;
    --s1: #8fc0f5; --s2: #ff9c66; --s3: #6fd3b0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 var(--sans);
  overflow-wrap: break-word; font-variant-numeric: tabular-nums;
}
main, header, footer { max-width: 77rem; margin: 0 auto; padding: 0 1.5rem; }
h1, h2, .statement, .lead { font-family: var(--serif); font-weight: 600; text-wrap: balance; }
h1 { font-size: clamp(1.75rem, 1.2rem + 2.4vw, 2.7rem); line-height: 1.12; letter-spacing: -.012em; margin: 3rem 0 .8rem; }
h2 { font-size: 1.5rem; line-height: 1.2; margin: 3.2rem 0 .3rem; }
h2 small { font: 400 .9rem var(--sans); color: var(--soft); margin-left: .5rem; }
h3, h4 { font: 600 .95rem/1.4 var(--sans); margin: 0; }
h4 { margin: 1.4rem 0 .4rem; }
p { margin: 0 0 .6rem; max-width: 68ch; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .2em; }
a:hover { text-decoration-color: currentColor; }
:focus-visible { outline: 2px solid var(--measured); outline-offset: 3px; border-radius: 3px; }
code, pre { font-family: var(--mono); font-size: .86em; }
.lead { font-size: 1.24rem; line-height: 1.45; font-weight: 400; max-width: 62ch; text-wrap: pretty; color: var(--holds); }
.lead.bad { color: var(--fails); font-weight: 600; }
.note, .caption { color: var(--soft); font-size: .92rem; text-wrap: pretty; }
.mark { width: .8em; height: .8em; flex: none; vertical-align: -.03em; overflow: visible; }
.holds { color: var(--holds); } .fails { color: var(--fails); } .vacuous { color: var(--vacuous); }
.refuted { color: var(--refuted); } .measured { color: var(--measured); } .open { color: var(--open); }
.outlines { position: absolute; }

.lesson { display: grid; grid-template-columns: minmax(0, 17rem) minmax(0, 1fr) minmax(0, 1fr); gap: 1.5rem 2rem; margin: 2rem 0 0; }
.lesson.bare { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.lesson figure { margin: 0; }
.lesson h3 { margin-bottom: .5rem; min-height: 2.8em; display: flex; align-items: end; }
.lesson .caption { grid-column: 1 / -1; max-width: 92ch; margin: 0; }
.photo { position: relative; line-height: 0; border-radius: 4px; overflow: hidden; }
.photo img { width: 100%; height: auto; }
.photo svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.patches { stroke: #fff; stroke-opacity: .34; fill: none; vector-effect: non-scaling-stroke; stroke-width: .7; }
.one { fill: none; stroke: #ffd84a; stroke-width: 2.2; vector-effect: non-scaling-stroke; }
.chart { width: 100%; height: auto; display: block; }
.chart text { font: 13px var(--sans); fill: currentColor; }
.chart .tick { fill: var(--soft); font-size: 12px; }
.chart .grid { stroke: var(--line); stroke-width: .8; }
.chart .axis { stroke: var(--soft); stroke-width: 1; }
.chart .slope { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.line path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.line circle, .scatter circle { fill: currentColor; }
.line text { font-weight: 600; }
.s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.scatter circle { fill-opacity: .55; } .scatter .axis { stroke: var(--line); }
.small { max-width: 24rem; }

.map { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); gap: 0 2.5rem; list-style: none; padding: 0; margin: 1rem 0; }
.map li { display: grid; grid-template-columns: minmax(0, 9.5rem) 1fr; gap: .5rem; align-items: center; border-bottom: 1px solid var(--line); padding: .35rem 0; }
.map span { display: flex; flex-wrap: wrap; }
.map span a { display: grid; place-items: center; width: 1.5rem; height: 1.5rem; border-radius: 4px; }
.map span a:hover { background: var(--wash); }
.key { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: .55rem 2.5rem; font-size: .92rem; margin: 1rem 0 0; }
.key div { display: grid; grid-template-columns: 7rem 1fr; gap: .4rem; }
.key dt { font-weight: 600; } .key dt .mark { margin-right: .45em; }
.key dd { margin: 0; color: var(--soft); }

.claim { display: grid; grid-template-columns: 8.2rem minmax(0, 1fr) 20rem; gap: 0 2rem; padding: 1.5rem 0 1.2rem; border-top: 1px solid var(--line); break-inside: avoid-page; }
.group > .claim:nth-of-type(1) { border-top: 2px solid var(--ink); margin-top: .7rem; }
.claim:target { background: linear-gradient(var(--wash), var(--wash)) padding-box; box-shadow: -.8rem 0 0 var(--wash), .8rem 0 0 var(--wash); }
.status { font-weight: 650; display: flex; gap: .5em; align-items: baseline; }
.status small { display: block; font-weight: 400; color: var(--soft); font-size: .82rem; }
.claim h3 { font: 500 .84rem var(--mono); color: var(--soft); }
.claim h3 a { text-decoration: none; } .claim h3 a:hover { text-decoration: underline; }
.statement { font-size: 1.18rem; line-height: 1.36; font-weight: 400; margin: .1rem 0 .3rem; text-wrap: pretty; }
.equation { overflow-x: auto; overflow-y: hidden; padding: .5rem 0 .6rem; line-height: 2.5; font: 1.1rem/2.5 var(--serif); }
.math svg { fill: currentColor; overflow: visible; max-width: none; }
.quad { display: inline-block; width: 1.4em; }
.false { border-left: 3px solid var(--refuted); padding: .1rem 0 .1rem .9rem; margin: .5rem 0 .7rem; }
.false strong { color: var(--refuted); } .false p { margin: .15rem 0; }
.problem { border-left: 3px solid currentColor; padding: .1rem 0 .1rem .9rem; margin: .5rem 0 .7rem; font-weight: 600; }
.origin { font-size: .88rem; color: var(--soft); margin: 0; max-width: none; }
.origin code { font-size: .92em; white-space: nowrap; }
.numbers { font-size: .88rem; }
.numbers dl { display: grid; grid-template-columns: auto 1fr; gap: .05rem 1rem; margin: .2rem 0 0; }
.numbers dt { color: var(--soft); } .numbers dd { margin: 0; text-align: right; }
.ruler { width: 100%; max-width: 20rem; display: block; overflow: visible; }
.ruler text { font: 10px var(--sans); fill: var(--soft); text-anchor: middle; }
.ruler .axis { stroke: var(--soft); } .ruler .limit { stroke: var(--ink); stroke-width: 2; }
.ruler .allowed { fill: var(--holds); fill-opacity: .16; }
.ruler .error { fill: var(--ink); } .ruler .bad { fill: var(--fails); }
.ruler .real { fill: none; stroke: var(--s2); stroke-width: 1.8; }
.tally { display: flex; flex-wrap: wrap; gap: 3px; justify-content: end; align-items: center; }
.tally i { width: 8px; height: 8px; background: var(--holds); border-radius: 1px; }
.tally i.alive { background: none; border: 2px solid var(--fails); width: 11px; height: 11px; }
.tally b { font-weight: 600; margin-right: .3rem; }

details > summary { cursor: pointer; color: var(--soft); font-size: .9rem; width: fit-content; }
details > summary:hover { color: var(--ink); }
.claim > details { grid-column: 2 / -1; margin-top: .7rem; min-width: 0; }
.inside { background: var(--wash); border-radius: 6px; padding: .4rem 1.2rem 1.2rem; margin-top: .6rem; font-size: .92rem; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.4rem; margin: .6rem 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 24rem); gap: 0 2.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .86rem; }
td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; white-space: nowrap; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 4px; padding: .7rem .9rem; margin: .4rem 0; overflow-x: auto; max-width: 100%; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { border-top: 2px solid var(--ink); margin-top: 4rem; padding-bottom: 4rem; font-size: .92rem; }
footer h2 { margin-top: 1.6rem; }

@media (max-width: 62rem) {
  .claim { grid-template-columns: minmax(0, 1fr) minmax(0, 18rem); }
  .status { grid-column: 1 / -1; margin-bottom: .3rem; }
  .status small { display: inline; margin-left: .4em; }
  .claim > details { grid-column: 1 / -1; }
  .lesson { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .lesson .picture { grid-column: 1 / -1; max-width: 22rem; }
  .lesson h3 { min-height: 0; }
}
@media (max-width: 42rem) {
  main, header, footer { padding: 0 1rem; }
  h1 { margin-top: 1.8rem; }
  .lesson, .lesson.bare, .columns { grid-template-columns: minmax(0, 1fr); }
  .lesson .picture { max-width: none; }
  .claim, .group > .claim:nth-of-type(1) {
    display: block; background: var(--card); border: 1px solid var(--line); border-top: 3px solid currentColor;
    border-radius: 6px; padding: 1rem; margin: 1rem 0;
  }
  .claim.holds, .claim.refuted, .claim.fails, .claim.vacuous, .claim.measured, .claim.open { border-top-color: currentColor; }
  .claim:target { box-shadow: 0 0 0 3px var(--wash); background: var(--card); }
  .numbers { margin-top: .9rem; }
  .origin code { white-space: normal; overflow-wrap: anywhere; }
  .inside { padding: .3rem .8rem .8rem; margin-inline: -.3rem; }
  .facts { grid-template-columns: minmax(0, 1fr); } .facts dt { margin-top: .4rem; }
  .key div { grid-template-columns: 6.4rem 1fr; }
}
@media print {
  :root { --page: #fff; --wash: #f6f6f4; }
  body { font-size: 9.5pt; }
  main, header, footer { max-width: none; padding: 0; }
  h1 { margin-top: 0; }
  details:not([open]) { display: none; }
  h2 { break-after: avoid; }
  .lesson, .map li { break-inside: avoid; }
  pre { white-space: pre-wrap; }
}
"""
