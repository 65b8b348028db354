"""What is wrong with a layer, in words: the known mistakes are tried one by one on an input that shows the error."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .measures import norm

__all__ = ["diagnose"]

CLOSE = 1e-6


def diagnose(layer: Any, trial: Any) -> str:
    """One or two sentences on how the layer's step differs from the declared one.

    ``trial`` has x, got, want, objective and kappa of one input.
    """
    x, got, want = trial.x, trial.got, trial.want
    bad = ~torch.isfinite(got)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        return f"It returns NaN or infinite numbers: {int(bad.sum())} of {got.numel()} entries, the first at index {where}."
    moved, declared = got - x, want - x
    if norm(moved) == 0:
        return "It does not move the tokens at all, though its objective has a gradient there."
    if norm(declared) == 0:
        return "It moves the tokens where the gradient of its objective is zero."
    length, cosine = norm(moved) / norm(declared), _cosine(moved, declared)
    if cosine > 1 - CLOSE**2 * 100:
        return f"It moves along the declared step, but {length:.6g} times as far: a factor or the step size is off."
    if cosine < -1 + CLOSE**2 * 100:
        far = "" if abs(length - 1) < CLOSE else f", and {length:.6g} times as far"
        return f"It moves the opposite way{far}: the sign is wrong, it ascends its objective."
    for found in (_tokens(moved, declared), _residual(got, want, x), _features(moved, declared)):
        if found:
            return found
    for words, other in _variations(trial.objective, x):
        found = _matches(moved, trial.kappa, other, x)
        if found:
            return f"The update is {found} of the same objective with {words}."
    if share := _share_of_total_derivative(layer, trial, moved):
        times = "" if abs(share - 1) < 1e-3 else f"{share:.4g} times "
        return (
            f"The update is {times}the gradient of the objective with its frozen arguments moving along: what objective_at"
            " holds constant is not held constant in the forward pass (or objective_at freezes what it should not)."
        )
    if norm(moved - declared) <= 1e-2 * norm(declared):
        return (
            f"The update is off by {norm(moved - declared) / norm(declared):.2g} of its length in no pattern: is part of it"
            " computed in a lower precision?"
        )
    verdict = "still points downhill" if cosine > 0 else "points uphill"
    return (
        f"The update has cosine {cosine:.4f} with the declared step and {length:.4g} times its length; it {verdict} on"
        " this input, and matches none of the known mistakes."
    )


def _tokens(moved: Tensor, declared: Tensor) -> str:
    """Wrong on some tokens only."""
    flat, want = (t.reshape(-1, *t.shape[-2:]) for t in (moved, declared))
    scale = norm(declared) / max(1, declared.shape[-2]) ** 0.5
    off = ((flat - want).norm(dim=-1) > CLOSE * scale).any(0)
    N = len(off)
    if N < 2 or int(off.sum()) in (0, N):
        return ""
    wrong = off.nonzero().flatten().tolist()
    still = all(norm(flat[:, i]) <= CLOSE * scale for i in wrong)
    names = ", ".join("the last" if i == N - 1 else "the first" if i == 0 else str(i) for i in wrong[:6])
    what = "not updated" if still else "updated differently"
    names += f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
    return f"Only some tokens are wrong: of {N} tokens {names} {'is' if len(wrong) == 1 else 'are'} {what}."


def _features(moved: Tensor, declared: Tensor) -> str:
    """Wrong on some features only, or in another order."""
    if norm(moved - declared.flip(-1)) <= CLOSE * norm(declared):
        return "The update is the declared one with its features in reverse order."
    if norm(moved - declared.flip(-2)) <= CLOSE * norm(declared):
        return "The update is the declared one with its tokens in reverse order."
    scale = norm(declared) / declared.shape[-1] ** 0.5
    off = ((moved - declared).reshape(-1, moved.shape[-1]).norm(dim=0) > CLOSE * scale).nonzero().flatten().tolist()
    if 0 < len(off) < moved.shape[-1]:
        return f"Only some features are wrong: {len(off)} of {moved.shape[-1]}, the first of them {off[0]}."
    return ""


def _residual(got: Tensor, want: Tensor, x: Tensor) -> str:
    if norm(got - (want - x)) <= CLOSE * norm(want - x):
        return "It returns the update alone: the residual x is missing."
    if norm(got + (want - x)) <= CLOSE * norm(want - x):
        return "It returns minus the update alone: the residual x is missing."
    return ""


def _variations(objective: Any, x: Tensor) -> Iterator[tuple[str, Any]]:
    """The objective with one of its numbers changed as people change them by mistake."""
    numbers = (
        {item.name: getattr(objective, item.name) for item in dataclasses.fields(objective)}
        if dataclasses.is_dataclass(objective)
        else dict(vars(objective))
    )
    counts = {"N, the number of tokens": x.shape[-2], "d, the width of a token": x.shape[-1], "1": 1}
    U, P = numbers.get("U"), numbers.get("P")
    if isinstance(U, Tensor) and U.ndim == 3:
        counts["p, the width of a head"] = U.shape[-1]
    if isinstance(P, Tensor) and P.ndim >= 2:
        counts["m, the number of representatives"] = P.shape[-2]
    if "tokens" in numbers:
        right = numbers["tokens"] or (P.shape[-2] if isinstance(P, Tensor) else x.shape[-2])
        for words, count in counts.items():
            if count != right:
                yield f"{words} = {count}, where β counts {right}", _changed(objective, "tokens", count)
    for name, value in numbers.items():
        if isinstance(value, Tensor) and value.ndim == 0 and value.dtype.is_floating_point:
            value = float(value)
        if not isinstance(value, float) or not value > 0:
            continue
        for new, words in (
            (
                math.sqrt(value),
                f"its square root {math.sqrt(value):.4g} for {name} = {value:.4g}: {name} stands where {name}² belongs",
            ),
            (value**2, f"{value**2:.4g} for {name} = {value:.4g}: {name} is squared once too often"),
            (2 * value, f"twice its {name}"),
            (value / 2, f"half its {name}"),
            (1.0, f"{name} = 1: {name} is dropped"),
            (1 / value, f"1/{name} for {name}"),
        ):
            if abs(new - value) > 1e-3 * value:
                yield words, _changed(objective, name, new)
        yield from _rescaled(objective, name, value, counts)


def _rescaled(objective: Any, name: str, value: float, counts: dict[str, int]) -> Iterator[tuple[str, Any]]:
    """β with one count in place of another: the same as ε times the root of their ratio."""
    if name != "epsilon":
        return
    widths = {words: n for words, n in counts.items() if "width" in words or n == 1}
    numbers = {words: n for words, n in counts.items() if "number" in words or n == 1}
    # β = width / (number ε²): a number too large is an ε too large, a width too large an ε too small.
    for group, power in ((numbers, 0.5), (widths, -0.5)):
        for one, a in group.items():
            for other, b in group.items():
                if a != b:
                    yield (
                        f"{one} = {a} in β in place of {other} = {b}",
                        _changed(objective, name, value * (a / b) ** power),
                    )


def _changed(objective: Any, name: str, value: Any) -> Any:
    try:
        if dataclasses.is_dataclass(objective) and not isinstance(objective, type):
            return dataclasses.replace(objective, **{name: value})
        other = copy.copy(objective)
        setattr(other, name, value)
        return other
    except Exception:  # an objective may refuse the value: then that mistake was not made
        return None


def _matches(moved: Tensor, kappa: Tensor, other: Any, x: Tensor) -> str:
    if other is None:
        return ""
    try:
        step = -(kappa[..., None, None] if kappa.ndim else kappa) * other.gradient(x).detach()
    except Exception:  # as above
        return ""
    if norm(step) == 0 or not bool(torch.isfinite(step).all()):
        return ""
    if norm(moved - step) <= CLOSE * norm(step):
        return "exactly the step"
    ratio = norm(moved) / norm(step)
    if norm(moved - ratio * step) <= CLOSE * norm(moved):
        return f"{ratio:.4g} times the step"
    return ""


def _share_of_total_derivative(layer: Any, trial: Any, moved: Tensor) -> float:
    """C if −moved/κ is c times the derivative of z ↦ objective_at(z).value(z), frozen arguments rebuilt at z; else 0."""
    x, rng = trial.x, np.random.default_rng(0)
    update = -moved / (trial.kappa[..., None, None] if trial.kappa.ndim else trial.kappa)
    totals, claimed = [], []
    for _ in range(4):
        v = torch.from_numpy(rng.standard_normal(x.shape)).to(x.dtype)
        v = v / norm(v)
        h = 1e-5 * max(norm(x), 1e-3)
        try:
            with torch.no_grad():
                high, low = (float(layer.objective_at(z).value(z).sum()) for z in (x + h * v, x - h * v))
        except Exception:  # a layer that cannot be rebuilt nearby has no total derivative to compare with
            return 0.0
        totals.append((high - low) / (2 * h))
        claimed.append(float((update * v).sum()))
    a, b = np.array(totals), np.array(claimed)
    if not a.any():
        return 0.0
    share = float(a @ b / (a @ a))
    return share if np.abs(b - share * a).max() <= 1e-4 * np.abs(b).max() else 0.0


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum()) / (norm(a) * norm(b))
