"""The report's pictures: inline SVG in the page's colours, and the lesson on the tokens."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import TokenInput

__all__ = [
    "Lesson",
    "lesson",
    "lesson_chart",
    "mark",
    "number",
    "photograph",
    "remainder_chart",
    "ruler",
    "scatter",
]

LOWEST, HIGHEST = -18, 2
"""The decades of the error axis."""

PICTURE = 640
"""The longest side of the photograph in the page, in pixels."""


def number(value: float | None, digits: int = 2) -> str:
    """A number for reading: ``3.1 × 10⁻¹⁵``, ``0.25``, ``∞``; a dash for None.

    >>> number(3.14e-15), number(0.25), number(float("nan")), number(None), number(1e-15)
    ('3.1 × 10⁻¹⁵', '0.25', 'NaN', '–', '10⁻¹⁵')
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-2 <= abs(value) < 9999:
        return f"{value:,.{max(digits, 4)}g}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    front = "" if float(mantissa) == 1 else f"{mantissa} × "
    return f"{front}{_power(int(exponent))}".replace("-", "−")


def _power(decade: int) -> str:
    if decade in (0, 1):
        return "10" if decade else "1"
    return "10" + str(decade).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


_MARKS = {
    "holds": '<circle cx="8" cy="8" r="6"/>',
    "fails": '<path d="M3 3 13 13M13 3 3 13" fill="none" stroke="currentColor" stroke-width="3.4"/>',
    "vacuous": '<path d="M2 3.2H14L8 13.6Z" fill="none" stroke="currentColor" stroke-width="2"/>',
    "refuted": '<path d="M8 .8 15.2 8 8 15.2.8 8Z"/>',
    "measured": '<path d="M2.4 2.4H13.6V13.6H2.4Z"/>',
    "open": '<circle cx="8" cy="8" r="5.2" fill="none" stroke="currentColor" stroke-width="2"/>',
}


def mark(status: str) -> str:
    """The shape of a status; decoration, since the word stands beside it or in the link's title."""
    shape = _MARKS.get(status, _MARKS["open"])
    return f'<svg class="mark" viewBox="0 0 16 16" fill="currentColor" aria-hidden="true">{shape}</svg>'


def ruler(error: float | None, tolerance: float | None, real: float | None = None) -> str:
    """The worst error (dot) and the real input's (ring) against the tolerance (bar), on a logarithmic axis.

    The axis runs from 1e-18 to 1e2; zero lies at its left edge, larger, infinite and NaN at its right one.
    """
    if error is None and real is None:
        return ""
    left, width, base = 8.0, 284.0, 15.0

    def place(value: float) -> float:
        if math.isnan(value):
            return left + width
        decade = math.log10(value) if 0 < value < math.inf else (-math.inf if value <= 0 else math.inf)
        return left + width * (min(max(decade, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)

    parts = []
    if tolerance is not None and not math.isnan(tolerance):
        x = place(tolerance)
        parts.append(f'<path class="allowed" d="M{left} {base - 5}H{x:.1f}V{base + 5}H{left}Z"/>')
        parts.append(f'<path class="limit" d="M{x:.1f} {base - 10}V{base + 6}"/>')
    parts.append(f'<path class="axis" d="M{left} {base}H{left + width}"/>')
    for decade, label in ((LOWEST, "0"), (-15, "10⁻¹⁵"), (-10, "10⁻¹⁰"), (-5, "10⁻⁵"), (0, "1")):
        x = left + width * (decade - LOWEST) / (HIGHEST - LOWEST)
        parts.append(f'<path class="axis" d="M{x:.1f} {base}v4"/><text x="{x:.1f}" y="{base + 16}">{label}</text>')
    if real is not None:
        parts.append(f'<circle class="real" cx="{place(real):.1f}" cy="{base}" r="5.5"/>')
    if error is not None:
        x = place(error)
        bad = tolerance is not None and not error <= tolerance
        shape = f'<circle cx="{x:.1f}" cy="{base}" r="3.6"/>'
        if math.isnan(error) or error > 10.0**HIGHEST:
            shape = f'<path d="M{x - 6:.1f} {base - 5}L{x + 4:.1f} {base}L{x - 6:.1f} {base + 5}Z"/>'
        parts.append(f'<g class="{"error bad" if bad else "error"}">{shape}</g>')
    label = f"worst error {number(error)}, tolerance {number(tolerance)}, error on the real input {number(real)}"
    return f'<svg class="ruler" viewBox="0 0 300 34" role="img" aria-label="{label}">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class Lesson:
    """R_c in nats after every step, from step 0 on: of the tokens, and of the tokens scaled to norm 1.

    The latter is NaN where the tokens have shrunk to rounding errors, which have no direction.
    """

    heads: int
    rate: Mapping[str, tuple[float, ...]]
    unit: Mapping[str, tuple[float, ...]]


STEPS = {
    "exact step": {"form": "exact", "certified": True},
    "Z + MSSA": {"form": "softmax", "step_size": 1.0},
    "Z − MSSA": {"form": "softmax", "step_size": -1.0},
}
"""The rules of the lesson: a certified exact step; the softmax form added, and subtracted, with κ = 1."""


def lesson(tokens: NDArray[np.float64], *, steps: int = 12, seed: int = 0, epsilon: float = 0.5) -> Lesson:
    """Take steps of every rule from ``tokens (N, d)``, in drawn orthonormal bases: 3 heads or 1."""
    import torch

    from objectives import SubspaceCodingRate
    from unrolling import MSSA

    dim = tokens.shape[1]
    heads = 3 if dim % 3 == 0 else 1
    square = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]
    U = torch.from_numpy(np.ascontiguousarray(square.reshape(dim, heads, dim // heads).transpose(1, 0, 2)))
    objective = SubspaceCodingRate(U, epsilon)
    rate, unit = {}, {}
    # One thread, as the claims run: more of them wait for each other on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for name, options in STEPS.items():
                arguments: dict[str, Any] = {"epsilon": epsilon, "U": U, "learnable_step": False, **options}
                layer = MSSA(dim, heads, **arguments)
                x = torch.from_numpy(np.asarray(tokens, dtype=np.float64))
                points = [x]
                for _ in range(steps):
                    points.append(x := layer(x))
                rate[name] = tuple(float(objective.value(z)) for z in points)
                unit[name] = _at_norm_one(objective, points)
    finally:
        torch.set_num_threads(threads)
    return Lesson(heads, rate, unit)


def _at_norm_one(objective: Any, points: Sequence[Any]) -> tuple[float, ...]:
    """The rate of the tokens' directions; NaN from the step on that left only rounding errors of them."""
    sizes = [float(z.norm()) for z in points]
    lost = (k for k in range(1, len(sizes)) if not sizes[k] > 1e-10 * sizes[k - 1])
    kept = next(lost, len(sizes))
    units = (z / z.norm(dim=-1, keepdim=True).clamp(min=1e-300) for z in points[:kept])
    return tuple(float(objective.value(z)) for z in units) + (math.nan,) * (len(points) - kept)


def lesson_chart(series: Mapping[str, Sequence[float]], label: str) -> str:
    """Lines over steps, named at their ends; a line stops where its values are not finite."""
    left, right, top, bottom = 34.0, 312.0, 12.0, 232.0
    steps = max((len(line) for line in series.values()), default=2) - 1
    shown = {name: [value for value in line if math.isfinite(value)] or [0.0] for name, line in series.items()}
    ticks = _ticks(max((max(line) for line in shown.values()), default=1.0))

    def x(step: float) -> float:
        return left + (right - left) * step / max(1, steps)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    parts = []
    for tick in ticks:
        parts.append(f'<path class="{"grid" if tick else "axis"}" d="M{left} {y(tick):.1f}H{right}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{left - 7}" y="{y(tick) + 4:.1f}">{tick:g}</text>')
    for step in range(0, steps + 1, max(1, steps // 4)):
        parts.append(f'<text class="tick" text-anchor="middle" x="{x(step):.1f}" y="{bottom + 18}">{step}</text>')
    parts.append(f'<text class="tick" text-anchor="end" x="{right}" y="{bottom + 36}">steps</text>')
    places = _spread({name: y(line[-1]) for name, line in shown.items()}, 34.0, bottom - 14)
    for order, (name, line) in enumerate(series.items()):
        points = [(x(step), y(value)) for step, value in enumerate(line) if math.isfinite(value)]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        dots = "".join(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.3"/>' for px, py in points)
        parts.append(f'<g class="line s{order + 1}"><path d="M{path}"/>{dots}')
        spot = f'x="{right + 9}" y="{places[name]:.1f}"'
        value = f'<tspan class="value" x="{right + 9}" dy="15">{shown[name][-1]:.2f}</tspan>'
        parts.append(f"<text {spot}>{html.escape(name)}{value}</text></g>")
    told = "; ".join(f"{name} from {line[0]:.2f} to {line[-1]:.2f}" for name, line in shown.items())
    name = html.escape(f"{label}: {told}", quote=True)
    return f'<svg class="chart" viewBox="0 0 400 272" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def remainder_chart(curve: Sequence[tuple[float, float]]) -> str:
    """The Taylor remainder against the step, both logarithmic, with dashed lines of slopes 1 and 2."""
    points = sorted((math.log10(s), math.log10(r)) for s, r in curve if 0 < s < math.inf and 0 < r < math.inf)
    if len(points) < 2:
        return ""
    left, right, top, bottom = 46.0, 300.0, 10.0, 190.0
    x0, x1 = math.floor(points[0][0] + 1e-9), math.ceil(points[-1][0] - 1e-9)
    x1 += x1 == x0
    y0, y1 = math.floor(min(p[1] for p in points)), math.ceil(max(p[1] for p in points))
    y1 += y1 == y0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * (x - x0) / (x1 - x0), bottom - (bottom - top) * (y - y0) / (y1 - y0)

    parts = []
    for x in range(x0, x1 + 1, max(1, math.ceil((x1 - x0) / 5))):
        px = at(x, y0)[0]
        parts.append(f'<path class="grid" d="M{px:.1f} {top}V{bottom}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{px:.1f}" y="{bottom + 17}">{_power(x)}</text>')
    for y in range(y0, y1 + 1, max(1, math.ceil((y1 - y0) / 4))):
        py = at(x0, y)[1]
        parts.append(f'<path class="grid" d="M{left} {py:.1f}H{right}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{left - 6}" y="{py + 4:.1f}">{_power(y)}</text>')
    ax, ay = points[-1]
    for slope in (1, 2):
        stop = max(x0, ax - (ay - y0) / slope)
        (px, py), (qx, qy) = at(ax, ay), at(stop, ay - slope * (ax - stop))
        parts.append(f'<path class="slope" d="M{px:.1f} {py:.1f}L{qx:.1f} {qy:.1f}"/>')
        anchor, dx, dy = ("end", -6, -3) if slope == 1 else ("start", 7, 6)
        spot = f'x="{qx + 0.3 * (px - qx) + dx:.1f}" y="{qy + 0.3 * (py - qy) + dy:.1f}"'
        parts.append(f'<text class="tick" text-anchor="{anchor}" {spot}>slope {slope}</text>')
    placed = [at(*point) for point in points]
    parts.append('<g class="line s1"><path d="M' + "L".join(f"{px:.1f} {py:.1f}" for px, py in placed) + '"/>')
    parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6"/>' for px, py in placed]
    parts.append(f'</g><text class="tick" text-anchor="end" x="{right}" y="{bottom + 34}">step</text>')
    name = 'role="img" aria-label="Remainder against step on logarithmic axes, with slopes 1 and 2"'
    return f'<svg class="chart small" viewBox="0 0 320 228" {name}>{"".join(parts)}</svg>'


def photograph(source: TokenInput) -> str:
    """The picture with its patches outlined and one of them marked; empty for tokens without a picture."""
    if source.image is None:
        return ""
    from PIL import Image

    height, width = source.image.shape[:2]
    picture = Image.fromarray(source.image)
    picture.thumbnail((PICTURE, PICTURE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    side, (rows, columns) = source.patch, source.grid
    lines = "".join(f"M0 {side * r}H{width}" for r in range(1, rows))
    lines += "".join(f"M{side * c} 0V{height}" for c in range(1, columns))
    one = f'x="{side * (3 * columns // 4)}" y="{side * (rows // 4)}" width="{side}" height="{side}"'
    name = html.escape(f"{source.name}, cut into {rows} × {columns} patches", quote=True)
    return (
        f'<div class="photo"><img alt="{name}" src="data:image/jpeg;base64,{data}">'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true"><path class="patches" d="{lines}"/>'
        f'<rect class="one" {one}/></svg></div>'
    )


def scatter(tokens: NDArray[np.float64]) -> str:
    """The tokens' first two principal coordinates."""
    centred = tokens - tokens.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(tokens), 2))
    plane[:, : min(2, len(s))] = (u * s)[:, :2]
    reach = max(float(np.abs(plane).max()), 1e-300)
    dots = "".join(
        f'<circle cx="{150 + 138 * a / reach:.1f}" cy="{150 - 138 * b / reach:.1f}" r="2.2"/>' for a, b in plane
    )
    return (
        '<svg class="chart scatter" viewBox="0 0 300 300" role="img" aria-label="The tokens on their'
        ' first two principal directions"><path class="axis" d="M8 150H292M150 8V292"/>'
        f'<g class="s1">{dots}</g></svg>'
    )


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to at least ``largest``, three to six of them."""
    if not largest > 0:
        return [0.0, 1.0]
    size = 10.0 ** math.floor(math.log10(largest / 3))
    step = next(size * factor for factor in (1, 2, 5, 10) if largest / (size * factor) <= 5)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def _spread(wanted: Mapping[str, float], gap: float, lowest: float) -> dict[str, float]:
    """Heights near the wanted ones, at least ``gap`` apart, none below ``lowest``."""
    placed: dict[str, float] = {}
    limit = lowest
    for name, height in sorted(wanted.items(), key=lambda item: -item[1]):
        placed[name] = min(height, limit)
        limit = placed[name] - gap
    return placed
