"""Derivatives that know nothing of our code: differences in float64 with an error estimate, in fifty digits, Taylor.

Everything receives plain callables and arrays. A direction is an array like x; the derivative along it is compared
with ⟨gradient, direction⟩, so that one number is checked at a time, and a few directions suffice: a wrong gradient
is orthogonal to a random direction's error with probability zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

__all__ = ["DIGITS", "mp_array", "mp_derivative", "richardson_derivative", "taylor_curve", "taylor_slope"]

DIGITS = 50
Array = NDArray[Any]


def richardson_derivative(f: Callable[[float], float], step: float) -> tuple[float, float]:
    """f'(0) by central differences and Richardson's extrapolation; returns the derivative and an error estimate.

    Differences with steps h, h/2, h/4, … are extrapolated; of the diagonal of the tableau the entry that moved least
    is taken. Its error is that movement, and never less than the noise of f over the step. The noise is observed,
    as second differences over steps so small that f itself has none, and at least that of numbers of size 1 inside f.
    """
    centre, tiny = f(0.0), 1e-8 * step
    observed = max(abs(f(j * tiny) - 2 * centre + f(-j * tiny)) for j in range(1, 5))
    noise = max(observed, np.finfo(float).eps * max(abs(centre), 1.0))
    previous: list[float] = []
    best, error = np.nan, np.inf
    for i in range(7):
        h = step / 2**i
        row = [(f(h) - f(-h)) / (2 * h)]
        for j in range(len(previous)):
            row.append(row[j] + (row[j] - previous[j]) / (4 ** (j + 1) - 1))
        if previous:
            moved = abs(row[-1] - previous[-1]) + 4 * noise / h
            if moved < error:
                best, error = row[-1], moved
        previous = row
    return best, error


def mp_array(array: NDArray[np.floating[Any]]) -> Array:
    """The same numbers as mpmath numbers, exactly."""
    return np.vectorize(lambda value: mpmath.mpf(float(value)), otypes=[object])(array)


def mp_derivative(f: Callable[[Any], Any], scale: float) -> float:
    """f'(0) by one central difference in fifty digits, h = 1e-16 · scale: truncation near 1e-32, rounding near 1e-33.

    ``scale`` is the length over which f bends; ``f`` receives an mpmath number.
    """
    with mpmath.workdps(DIGITS):
        h = mpmath.mpf(scale) * mpmath.mpf(10) ** -16
        return float((f(h) - f(-h)) / (2 * h))


def taylor_curve(
    f: Callable[[float], float], derivative: float, start: float, uncertainty: float = 0.0
) -> list[tuple[float, float]]:
    """Remainders |f(h) − f(0) − h f'(0)| for h = start · 2^−i, down to where something else explains them.

    That is the noise of f, and an error of the derivative within its ``uncertainty``: a remainder below 30 h times
    that grows with slope 1 however right the gradient is.
    """
    base, tiny = f(0.0), 1e-8 * start
    noise = max(*(abs(f(j * tiny) - 2 * base + f(-j * tiny)) for j in range(1, 4)), np.finfo(float).eps * abs(base))
    curve = []
    for i in range(14):
        h = start / 2**i
        value = f(h)
        remainder = abs(value - base - h * derivative)
        rounding = np.finfo(float).eps * max(abs(value), abs(h * derivative))
        if remainder <= max(1e3 * max(noise, rounding), 30 * h * uncertainty, np.finfo(float).tiny):
            break
        curve.append((h, remainder))
    return curve


def taylor_slope(curve: list[tuple[float, float]]) -> float:
    """The slope of log remainder against log h as h → 0: 2 if the derivative is right, 1 if it is wrong.

    Slopes between neighbouring steps h are ``2 + c h + …``, and ``2 s(h) − s(2h)`` removes c h. Where the second and
    the third order cancel near the smallest steps the two slopes are far apart and say nothing about the limit.
    NaN for that, and where fewer than four points stand above rounding: no evidence.
    """
    if len(curve) < 4:
        return float("nan")
    h, remainder = np.log(np.array(curve[-3:])).T
    coarse, fine = np.diff(remainder) / np.diff(h)
    return float(2 * fine - coarse) if abs(fine - coarse) <= 0.5 else float("nan")
