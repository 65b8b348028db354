"""``check_objective``: is the gradient the gradient of the value, and the smoothness constant one?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .measures import norm
from .oracles import richardson_derivative, taylor_curve, taylor_slope
from .threads import one_thread
from .trial import (
    DOUBTFUL,
    CheckResult,
    ClaimFailed,
    Input,
    allowed_error,
    bound_of,
    check_call,
    inputs_for,
    largest,
    line_through,
    median,
    noise_of,
    reverse_mode,
)

__all__ = ["check_objective"]


@one_thread()
def check_objective(
    objective: Any, x: Tensor | None = None, *, dim: int | None = None, cases: int = 48, seed: int = 0
) -> CheckResult:
    """Check that ``objective.gradient`` is the gradient of ``objective.value``, and its smoothness constant true.

    Reverse mode, differences with an error estimate, and the Taylor slope; ‖∇f(a) − ∇f(b)‖ ≤ L‖a − b‖ where
    ``lipschitz`` gives an L that is global. Nothing but ``value`` and ``gradient`` is needed.

    Parameters
    ----------
        x: tokens of yours; without it the width is ``dim``, or read from U or keys, and the number of tokens from P.

    Raises
    ------
        ClaimFailed with what was seen and the smallest input; TypeError without the two methods.

    >>> from objectives import CodingRate
    >>> check_objective(CodingRate(epsilon=0.5)).slope > 1.9
    True
    """
    for method in ("value", "gradient"):
        if not callable(getattr(objective, method, None)):
            raise TypeError(f"check_objective: {type(objective).__name__} has no method {method}(x).")
    check_call("check_objective", x, cases, seed)
    name = type(objective).__name__
    U, P, keys = (getattr(objective, field_name, None) for field_name in ("U", "P", "keys"))
    if x is not None:
        width: int = x.shape[-1]
        count: int | None = x.shape[-2]
    else:
        known = U.shape[-2] if isinstance(U, Tensor) else keys.shape[-1] if isinstance(keys, Tensor) else None
        width, count = dim or known or 4, P.shape[-1] if isinstance(P, Tensor) else None
    wide = next((t.dtype for t in (U, P, keys) if isinstance(t, Tensor)), torch.float64)
    wide = wide if x is None else x.dtype
    inputs = inputs_for(x, width, count, cases, seed, wide)
    evidence = 0
    worst: tuple[float, float] | None = None
    slopes: list[float] = []
    longest: list[tuple[float, float]] = []
    for given in inputs:
        problem, seen = _gradient_problem(objective, given, seed)
        if problem:
            raise ClaimFailed(f"{name}: {problem}\n{given.where('objective.gradient(x)')}")
        if seen is None:
            continue
        evidence += 1
        error, allowed, curve = seen
        worst = max(worst or (error, allowed), (error, allowed), key=lambda pair: pair[0] / pair[1])
        slopes.append(taylor_slope(curve))
        longest = max(longest, curve, key=len)
    if worst is None or 2 * evidence < len(inputs):
        raise ClaimFailed(
            f"{name}: only {evidence} of {len(inputs)} inputs could have told a right gradient from a wrong one: on the others"
            " it is zero, not finite, or off by more than rounding but too little to call it wrong."
        )
    known_slopes = [slope for slope in slopes if not math.isnan(slope)]
    return CheckResult(name, len(inputs), evidence, *worst, median(known_slopes), longest)


def _gradient_problem(
    objective: Any, given: Input, seed: int
) -> tuple[str, tuple[float, float, list[tuple[float, float]]] | None]:
    x = given.x
    value = objective.value(x)
    if given.case is not None and isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
        return "", None
    got = objective.gradient(x).detach()
    if got.shape != x.shape:
        return f"gradient must have the shape of x, {tuple(x.shape)}, but is {tuple(got.shape)}.", None
    try:
        want = reverse_mode(objective, x)
    except ClaimFailed as failure:
        return str(failure), None
    size = norm(want)
    if max(size, norm(got)) <= noise_of(objective, x):
        return "", None
    if size == 0:
        return (
            "gradient is not zero where autograd finds that the value does not change: does value detach something?",
            None,
        )
    error, allowed = norm(got - want) / size, allowed_error(x.dtype)
    if not error <= max(allowed, DOUBTFUL[x.dtype]):
        ratio = float((got * want).sum()) / size**2
        proportional = norm(got - ratio * want) <= 1e-6 * norm(got)
        said = f"it is {ratio:.6g} times it" if proportional else f"cosine {ratio * size / max(norm(got), 1e-300):.4f}"
        return f"gradient is not the derivative of value: relative error {error:.3g}; {said}.", None
    along, claimed, bend = line_through(objective, x, want)
    derivative, uncertain = richardson_derivative(along, bend)
    if uncertain <= 1e-4 * abs(claimed) and not abs(derivative - claimed) <= 1e-3 * abs(claimed):
        return (
            f"value and its reverse mode disagree: {derivative:.6g} by differences, {claimed:.6g} by autograd.",
            None,
        )
    if problem := _smoothness_problem(objective, x, seed):
        return problem, None
    curve = taylor_curve(along, float((got * want).sum()) / size, bend, allowed * size)
    return "", ((error, allowed, curve) if error <= allowed else None)


def _smoothness_problem(objective: Any, x: Tensor, seed: int) -> str:
    bound = bound_of(objective, x)
    if bound is None or not getattr(objective, "lipschitz_is_global", True):
        return ""
    L = largest(bound)
    rng = np.random.default_rng(seed)
    for size in (1e-2, 1.0):
        length = size * max(norm(x), 1e-3)
        a, b = (x + length * torch.from_numpy(rng.standard_normal(x.shape)).to(x.dtype) for _ in range(2))
        stretch = norm(objective.gradient(a) - objective.gradient(b)) / norm(a - b)
        if not stretch <= L * (1 + 1e-6) + 1e-9 * norm(objective.gradient(a)) / norm(a - b):
            return f"lipschitz says L = {L:.4g}, but the gradient changes {stretch:.4g} times as fast as the tokens."
    # Random pairs seldom show the largest curvature; power iteration on differences of gradients turns to it.
    for point in (x, 1e-3 * x):
        length = 1e-3 * max(norm(point) / x.numel() ** 0.5, 1e-6)
        direction = torch.from_numpy(rng.standard_normal(x.shape)).to(x.dtype)
        here = objective.gradient(point)
        for _ in range(12):
            direction = length * direction / max(norm(direction), 1e-300)
            bent = objective.gradient(point + direction) - here
            stretch = norm(bent) / norm(direction)
            if stretch == 0:
                break
            rounding = noise_of(objective, point) / norm(direction)
            if not stretch <= L * (1 + 1e-3) + rounding:
                return (
                    f"lipschitz says L = {L:.4g}, but along some direction the gradient changes {stretch:.4g} times as fast"
                    " as the tokens."
                )
            direction = bent
    return ""
