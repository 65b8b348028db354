"""The common mistakes of layers that declare nothing: a number, a count, a normalisation, a head that is another one's."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from .diagnosis import _changed, _matches, _variations
from .measures import norm
from .plain_objective import Target
from .relations import Seen, cosine
from .trial import DOUBTFUL

__all__ = ["added_multiple", "changed_number", "missing_residual", "normalised_first", "numbers_of"]


def _close(seens: Sequence[Seen]) -> float:
    """Errors up to which an explanation counts: beyond rounding, and too small for a formula that differs."""
    return 0.1 * DOUBTFUL[seens[0].dtype]


class _Keyed:
    """A function of x with keyword arguments that have numbers for defaults, as an object with these for attributes."""

    def __init__(self, call: Callable[..., Any], numbers: dict[str, Any]) -> None:
        vars(self).update(numbers)
        self._call, self._names = call, tuple(numbers)

    def gradient(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            value = self._call(z, **{name: vars(self)[name] for name in self._names})
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return gradient.detach().to(torch.float64)


def numbers_of(target: Target) -> Any:
    """The objective as an object whose numbers can be changed, or None: fields, or keyword arguments with defaults."""
    objective = target.objective
    if target.nonsmooth is not None or target.frozen:
        return None
    if callable(getattr(objective, "gradient", None)) and callable(getattr(objective, "value", None)):
        return objective
    try:
        parameters = inspect.signature(objective).parameters.values()
    except (TypeError, ValueError):
        return None
    numbers = {p.name: p.default for p in parameters if isinstance(p.default, (float, Tensor))}
    return _Keyed(objective, numbers) if numbers and target.by_autograd else None


def missing_residual(seens: Sequence[Seen]) -> tuple[str, float]:
    """Whether what comes back is the update, or the gradient, by itself; and by which factor."""
    for names in seens[0].slopes.gradients:
        for sign, words in ((-1.0, "the update alone"), (1.0, "the gradient, or minus the update, alone")):
            ratios = []
            for seen in seens:
                g = seen.slopes.gradients[names]
                got = seen.slopes.view(seen.got.flatten())
                if norm(g) == 0:
                    continue
                ratio = sign * float((got / norm(g)) @ (g / norm(g)))
                if ratio <= 0 or norm(got - sign * ratio * g) > _close(seens) * norm(got):
                    break
                ratios.append(ratio)
            else:
                if ratios:
                    held = f" ({' and '.join(names)} held constant)" if names else ""
                    return f"It returns {words}{held}: the residual x is missing.", float(np.median(ratios))
    return "", math.nan


def added_multiple(seens: Sequence[Seen]) -> str:
    """Whether a multiple of x is added to the step, the same for all sets: a term ½λ‖x‖² too much or too little."""
    usable = [seen for seen in seens if norm(seen.moved) > 0 and norm(seen.x) > 0]
    if len(usable) < 2:
        return ""
    for names in usable[0].slopes.gradients:
        parts = [(s.moved, s.slopes.gradients[names], s.slopes.view(s.x.flatten())) for s in usable]
        sizes = [norm(u) for u, _, _ in parts]
        u, g, x = (torch.cat([part[i] / size for part, size in zip(parts, sizes, strict=True)]) for i in range(3))
        found = torch.linalg.lstsq(torch.stack([-g, x], dim=-1), u[:, None]).solution[:, 0]
        kappa, c = (float(number) for number in found)
        if norm(u + kappa * g - c * x) > _close(usable) or norm(kappa * g) < 1e-3 or norm(c * x) < 1e-3:
            continue
        held = f" ({' and '.join(names)} held constant)" if names else ""
        declared = usable[0].kappa
        of = "" if math.isnan(declared) or abs(kappa - declared) > 1e-6 * declared else ", the declared one"
        return (
            f"The update is −κ ∇f(x){held} {'+' if c > 0 else '−'} {abs(c):.6g} x, κ = {kappa:.6g}{of}: the skip is scaled,"
            f" or a term {'−' if c * kappa > 0 else ''}½ {abs(c / kappa):.6g} ‖x‖² is in the layer and not in the objective."
        )
    return ""


def changed_number(target: Target, seens: Sequence[Seen]) -> str:
    """Which number of the objective was changed, so that every update is a step of the objective with that number.

    The known confusions first, each of which must explain all sets; then any other value of one number.
    """
    objective = numbers_of(target)
    usable = [seen for seen in seens if seen.whole and norm(seen.moved) > 0]
    if objective is None or not usable:
        return ""
    usable = sorted(usable, key=lambda seen: seen.x.numel())[-4:]
    found: list[dict[str, str]] = []
    for seen in usable:
        found.append(dict(_explanations(objective, seen)))
        if not found[-1]:
            break
    shared = [key for key in found[-1] if all(key in one for one in found)] if all(found) else []
    if shared:
        return found[-1][shared[0]]
    return _any_value(objective, usable)


def _explanations(objective: Any, seen: Seen) -> Iterator[tuple[str, str]]:
    """What explains one set, keyed by the words without their numbers."""
    kappa = torch.tensor(1.0 if math.isnan(seen.kappa) else seen.kappa, dtype=torch.float64)
    moved = seen.moved.reshape(seen.x.shape)
    if seen.x.ndim < 2:
        moved, x = moved[None], seen.x[None]
    else:
        x = seen.x
    for words, other in _variations(objective, x):
        if match := _matches(moved, kappa, other, x):
            match = re.sub("^1 times the step", "exactly the step", match)
            yield re.sub(r"[\d.e+-]+", "#", words), f"The update is {match} of the same objective with {words}."


def _any_value(objective: Any, seens: Sequence[Seen]) -> str:
    """One number of the objective taken anew, by line search over six orders of magnitude around what it is."""
    numbers = getattr(objective, "__dict__", {})
    for name, value in list(numbers.items()):
        value = float(value) if isinstance(value, Tensor) and value.ndim == 0 else value
        if not isinstance(value, float) or not value > 0:
            continue

        def off(power: float, sets: Sequence[Seen] = seens, name: str = name, value: float = value) -> float:
            other = _changed(objective, name, value * 10**power)
            worst = 0.0
            for seen in sets:
                try:
                    g = other.gradient(seen.x).detach().to(torch.float64).flatten()
                except Exception:  # an objective may refuse the value
                    return 2.0
                c = cosine(seen.moved, g)
                worst = max(worst, 2.0 if math.isnan(c) else 1.0 - abs(c))
            return worst

        grid = np.linspace(-3, 3, 61)
        values = [off(power, seens[-1:]) for power in grid]
        best = int(np.argmin(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        least = minimize_scalar(off, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
        power = float(least.x)
        # 1 − cosine is half the squared distance, relative to the update.
        if float(least.fun) < 10 * _close(seens) ** 2 and abs(power) > 1e-4:
            return f"The update is along the step of the same objective with {name} = {value * 10**power:.6g} for {value:.6g}."
    return ""


def normalised_first(target: Target, seens: Sequence[Seen]) -> str:
    """Whether every update is along the gradient at normalised tokens: what a block with a norm before it does."""
    usable = [seen for seen in seens if seen.whole and norm(seen.moved) > 0 and seen.x.ndim >= 2]
    if not usable or target.nonsmooth is not None:
        return ""
    for name, normalise in _normalisations():
        for names in target.subsets:
            signs: set[float] = set()
            for seen in usable:
                try:
                    y = normalise(seen.x)
                    g = target.slopes(y, seen.moved, None).gradients[names]
                except Exception:
                    signs.clear()
                    break
                c = cosine(seen.moved, g)
                if not 1 - abs(c) < 100 * _close(usable) ** 2:
                    signs.clear()
                    break
                signs.add(math.copysign(1.0, c))
            if len(signs) == 1:
                what = "descends" if signs == {1.0} else "ascends"
                held = f", {' and '.join(names)} held constant," if names else ""
                return (
                    f"It {what} along the gradient at {name} of x{held} and adds that to x: a norm inside the residual is no"
                    " step at x."
                )
    return ""


def _normalisations() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    for eps in (1e-5, 0.0, 1e-6, 1e-12):
        yield "the LayerNorm", lambda x, eps=eps: F.layer_norm(x, x.shape[-1:], eps=eps)  # type: ignore[misc]
        yield (
            "the root-mean-square norm",
            lambda x, eps=eps: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps),  # type: ignore[misc]
        )
    yield "the tokens of norm 1", lambda x: x / x.norm(dim=-1, keepdim=True)
    yield "the centred tokens", lambda x: x - x.mean(-2, keepdim=True)
