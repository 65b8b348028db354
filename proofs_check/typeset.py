"""Equations for the web: LaTeX to inline SVG by matplotlib's mathtext, nothing to install or to fetch."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Typesetter"]

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
    """Sets the equations of one page; every glyph's outline is stored once for all of them."""

    _glyphs: dict[str, tuple[str, str]] = field(default_factory=dict)
    _done: dict[str, str] = field(default_factory=dict)

    def equation(self, latex: str) -> str:
        """HTML for text with ``$…$`` in it, breakable at relations; ``<code>`` where it cannot be parsed."""
        if latex not in self._done:
            source = html.escape(latex, quote=True)
            try:
                body = self._body(latex if "$" in latex else f"${latex}$")
                self._done[latex] = f'<span class="math" role="img" aria-label="{source}">{body}</span>'
            except (ValueError, RuntimeError):
                self._done[latex] = f'<code class="math">{source}</code>'
        return self._done[latex]

    def prose(self, text: str) -> str:
        """A sentence, which may hold formulas between dollar signs."""
        return self.equation(text) if text.count("$") >= 2 else html.escape(text)

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
            else f'<span class="words">{html.escape(segment)}</span>'
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

        setter, source = TextToPath(), "$" + _adapted(source) + "$"
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


def _adapted(source: str) -> str:
    """An upright T for ⊤, which mathtext spaces as a relation, and the space it omits after sums."""
    source = source.replace(r"\top", r"\mathrm{T}")
    return re.sub(r"(\\sum_(?:\{[^{}]*\}|\w))(?!\s*\\sum)", r"\1\\,", source)


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

    >>> _pieces("a = b(c = d) < e", _RELATION)
    ['a ', '= b(c = d) ', '< e']
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
