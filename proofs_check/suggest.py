"""``suggest_objective``: which of our objectives, its numbers fitted, explains best what a layer does to tokens."""

from __future__ import annotations

import dataclasses
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import checked_example
from .candidates import look_at
from .candidates_of_matrices import FAMILIES, SHRINKAGE, hypotheses
from .fitting import (
    ADDED,
    ALONE,
    Batch,
    Fitted,
    aligned,
    bases_of_update,
    batches_of,
    coarse,
    fit_numbers,
    linear_part,
    trivial,
)
from .plain_layer import Forward, difference_between_calls, generators_kept
from .threads import one_thread
from .trial import check_call
from .verdicts import plain

__all__ = ["THRESHOLD", "Match", "Suggestion", "suggest_objective"]

THRESHOLD = 0.999
"""Alignment below which nothing is recognised, whatever random versions reach."""

MARGIN = 4.0
"""A match may leave a quarter of the misalignment that the best random version leaves, and no more."""

WORTH_TRYING = 0.99
"""Held-out alignment from which random versions are tried; those of the best are, always."""

TIED = 1e-6
"""Alignments closer than this are the same."""

FITTED_ON, HELD_OUT = (1.0, 0.5, 2.0, 1.0), (1.0, 0.7, 1.5, 3.0)
"""Sizes of the tokens in units of the example's."""

CAVEAT = (
    "Alignment on drawn tokens is no derivation: another objective can have nearly the same gradient there, and another one"
    " elsewhere. check_descent(layer, …) checks the step itself."
)
NORMALISED = (
    "The layer reads normalised tokens and adds to the stream: it is no step at the stream, however well its update is aligned"
    " with a gradient at the normalised tokens."
)


@dataclass(frozen=True, eq=False)
class Match:
    """One objective, fitted: how well minus its gradient lies along the update, on tokens that it was not fitted to.

    words: where its matrices came from. numbers: as fitted. alignment: mean |cosine| on held-out tokens; smallest: of a
    set; fitted: on those it was fitted to. descends: the update goes down the objective; else up. step_min, step_median,
    step_max: the factor of the gradient. null: the largest alignment that the same objective reaches with random
    matrices, fitted likewise, or turned at random, or that x itself has; NaN where that was not tried. threshold: what had to be reached.
    reading: whether the layer adds the update to x or returns it alone. seen: what the gradient is taken at. frozen: what
    it holds constant. at: tokens -> the objective there.
    """

    family: str
    words: str
    numbers: Mapping[str, float]
    alignment: float
    smallest: float
    fitted: float
    descends: bool
    step_min: float
    step_median: float
    step_max: float
    null: float
    threshold: float
    reading: str
    seen: str
    frozen: str
    at: Callable[[Tensor], Any] = field(repr=False)

    @property
    def recognised(self) -> bool:
        """Whether the alignment is above its threshold, and was held against random versions."""
        return not math.isnan(self.null) and self.alignment >= self.threshold

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} = {value:.6g}" for name, value in self.numbers.items())
        inside = "; ".join(part for part in (self.words, numbers) if part)
        return self.family + (f" ({inside})" if inside else "")


@dataclass(frozen=True, eq=False)
class Suggestion:
    """Our objectives ranked by how well they explain a layer's updates; True if one of them is recognised.

    matches: the best of every family, the best aligned first. sets: held-out token sets. nulls: random versions each.
    """

    name: str
    matches: tuple[Match, ...]
    sets: int
    nulls: int
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.best is not None

    @property
    def best(self) -> Match | None:
        """The best aligned of those recognised; None if it is none of ours."""
        return next((match for match in self.matches if match.recognised), None)

    @property
    def ties(self) -> tuple[Match, ...]:
        """All recognised ones that are aligned as well as the best."""
        if self.best is None:
            return ()
        top = self.best.alignment
        return tuple(m for m in self.matches if m.recognised and m.alignment >= top - TIED)

    @property
    def caveat(self) -> str:
        """What an alignment does not say."""
        said = [CAVEAT]
        if self.best is not None and self.best.seen != "x":
            said.append(NORMALISED)
        if self.best is not None and self.best.reading == ALONE:
            said.append("It returns its update alone: a step adds it to x.")
        return " ".join(said)

    def __str__(self) -> str:
        if not self.matches:
            return f"{self.name}: nothing could be tried. " + " ".join(self.notes)
        top = self.best or self.matches[0]
        held = "" if math.isnan(top.null) else f"; random versions reach {top.null:.4g} at most"
        if self.best is None:
            lines = [
                f"{self.name}: none of ours. The closest is {top}, alignment {top.alignment:.6g} on {self.sets} held-out"
                f" token sets, below the threshold {top.threshold:.6g}{held}."
            ]
        else:
            way = "descends" if top.descends else "ascends"
            what = "" if top.frozen == "nothing" else f", {top.frozen} held constant"
            steps = f"{top.step_median:.4g}"
            if top.step_max - top.step_min > 1e-6 * abs(top.step_median):
                steps += f" (from {top.step_min:.4g} to {top.step_max:.4g})"
            lines = [
                f"{self.name}: {way} {top}{what}: alignment {top.alignment:.6g} on {self.sets} held-out token sets,"
                f" threshold {top.threshold:.6g}{held}. The step size is {steps}; the layer"
                f" {top.reading}, and reads {top.seen}."
            ]
            others = [str(match) for match in self.ties if match is not top]
            lines += [f"As well aligned: {'; '.join(others)}."] if others else []
        lines += [f"  {m.alignment:.6f}  {'down' if m.descends else 'up':4}  {m}" for m in self.matches[:6]]
        return "\n".join([*lines, *self.notes, self.caveat])

    def to_dict(self) -> dict[str, Any]:
        """Plain data; NaN becomes None."""
        entries = [
            {item.name: getattr(match, item.name) for item in dataclasses.fields(match) if item.name != "at"}
            | {"recognised": match.recognised}
            for match in self.matches
        ]
        found = {"name": self.name, "sets": self.sets, "nulls": self.nulls, "notes": self.notes, "caveat": self.caveat}
        entry: dict[str, Any] = plain({**found, "recognised": bool(self), "matches": entries})
        return entry


@one_thread()
def suggest_objective(
    layer: Callable[..., Any],
    example_input: Any = None,
    *,
    candidates: Sequence[str] | None = None,
    heads: int | None = None,
    sets: int = 4,
    nulls: int = 9,
    seed: int = 0,
) -> Suggestion:
    """Say which of our objectives a layer descends or ascends, as far as its updates on drawn tokens tell.

    Every objective is fitted: its bases, memories or projections are read from the layer's matrices, whatever they are
    called, or off the update; ε, the softmax's scale, temperature, threshold and η by a logarithmic grid, then golden
    section; the number of heads from attributes, else by trying. Numbers are fitted on some tokens and the cosine of the
    update with −∇f is measured on others, of other sizes. It counts as recognised only beyond 0.999, and only if random
    matrices, fitted likewise, leave four times as much misaligned. A hundred tokens of some hundred features take a minute
    or two; fewer ``candidates`` take less.

    Parameters
    ----------
        layer: a module, of which a copy in evaluation mode is called, or any function of tokens ``(tokens, dim)``.
        example_input: tokens ``(..., tokens, dim)`` of a typical number and size; without it five of the width
        ``layer.dim``. candidates: families to try, of :data:`FAMILIES`; all by default. heads: where it is known.
        sets: token sets in each of four batches. nulls: random versions of each objective that comes near.

    Returns
    -------
        a :class:`Suggestion`; print it. ``best.at(x)`` is the objective at tokens x, frozen arguments taken there.

    Raises
    ------
        TypeError, ValueError for an example that is no array of tokens, unknown families, counts below 1; ValueError for a
        layer that returns nothing like its input there.

    >>> from unrolling import MSSA
    >>> found = suggest_objective(MSSA(6, 2), candidates=["coding rate", "subspace coding rate"], nulls=2)
    >>> found.best.family, round(found.best.numbers["epsilon"], 6), round(found.best.step_median, 6)
    ('SubspaceCodingRate', 0.5, 1.0)
    """
    names = _checked_names(candidates)
    check_call("suggest_objective", None, 1, seed)
    for name, value in (("sets", sets), ("nulls", nulls), ("heads", 1 if heads is None else heads)):
        _check_count(name, value)
    if not callable(layer):
        raise TypeError(f"suggest_objective: layer must be a module or a function of tokens, but is {layer!r}.")
    example, numpy_first = checked_example(example_input, layer, "suggest_objective")
    if example.ndim < 2:
        raise ValueError(
            f"suggest_objective: example_input must be tokens (..., tokens, dim), but has shape {tuple(example.shape)}."
        )
    with generators_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = example.reshape(-1, *example.shape[-2:])[0].to(torch.float64)
        forward = Forward(layer, one, numpy_first, torch.float64)
        if forward(one).got is None:  # it may take batches only
            forward = Forward(layer, one[None], numpy_first, torch.float64)
        return _suggest(forward, one, names, heads, sets, nulls, seed)


def _suggest(
    forward: Forward, example: Tensor, names: tuple[str, ...], heads: int | None, sets: int, nulls: int, seed: int
) -> Suggestion:
    seen = _readings_of(forward.call, example.shape[-1])
    fit_on = batches_of(forward, example, seen, seed, FITTED_ON, sets)
    held_out = batches_of(forward, example, seen, seed + 1000, HELD_OUT, sets)
    if not fit_on or not held_out:
        words = forward(example).words or "the layer returns nothing like its input on drawn tokens"
        raise ValueError(f"suggest_objective: {forward.name} cannot be looked at: {words}")
    if all(not bool(batch.update.any()) for batch in fit_on):
        return Suggestion(forward.name, (), 0, nulls, ("The layer does not move the tokens.",))
    N, d = example.shape[-2:]
    size = float(example.square().mean().sqrt()) or 1.0
    found = look_at(forward.call, d, size)
    many = max(sets, -(-6 * d // N))
    plain_tokens = batches_of(forward, example, {}, seed + 2000, (1.0,), many)
    small = batches_of(forward, example, {}, seed + 3000, (1e-3,), many)
    found = dataclasses.replace(
        found,
        heads=(heads,) if heads else found.heads,
        linear=linear_part(plain_tokens) if plain_tokens else None,
        extra=tuple(bases_of_update(small)) if small else (),
    )
    best: dict[str, list[Fitted]] = {}
    for hypothesis in hypotheses(found, names):
        for name in seen:
            best.setdefault(hypothesis.family, []).extend(coarse(hypothesis, fit_on[:1], name).values())
    reading = _reading_of([one for tried in best.values() for one in tried], fit_on[:1])
    fitted = []
    for tried in best.values():
        likeliest = sorted((one for one in tried if one.reading == reading), key=lambda one: -_size(one))
        fitted.append(max((fit_numbers(one, fit_on) for one in likeliest[:2]), key=_size))
    pairs = [(_match(one, held_out), one) for one in fitted]
    pairs.sort(key=lambda pair: (-round(pair[0].alignment / TIED), len(pair[0].numbers), pair[0].family != SHRINKAGE))
    matches: list[Match] = []
    for match, one in pairs:
        if match.alignment >= WORTH_TRYING or not matches:
            null = _null(one, held_out, fit_on, nulls, seed)
            threshold = max(THRESHOLD, 1.0 - (1.0 - min(null, 1.0)) / MARGIN)
            match = dataclasses.replace(match, null=null, threshold=threshold)
        matches.append(match)
    total = sum(len(batch.x) for batch in held_out)
    apart, _ = difference_between_calls(forward, held_out[0].x[0])
    notes = (
        (f"Two calls with the same tokens differ by {apart:.3g} of the update: is dropout left on?",) if apart else ()
    )
    return Suggestion(forward.name, tuple(matches), total, nulls, notes)


def _reading_of(tried: Sequence[Fitted], batches: Sequence[Batch]) -> str:
    """Whether the layer adds its update or returns it alone: what leaves less of what x itself does not explain.

    An output that is mostly x lies along much that is mostly x; only what goes beyond tells the readings apart.
    """
    left = {}
    for reading in (ADDED, ALONE):
        each = [
            (1.0 - _size(one)) / max(1.0 - trivial(batches, one.seen, reading), 1e-9)
            for one in tried
            if one.reading == reading
        ]
        left[reading] = min(each)
    return ALONE if left[ALONE] < 0.9 * left[ADDED] - 1e-9 else ADDED


def _size(one: Fitted) -> float:
    return one.cosine if one.hypothesis.proximal else abs(one.cosine)


def _match(one: Fitted, held_out: Sequence[Batch]) -> Match:
    hypothesis = one.hypothesis
    measured = aligned(hypothesis, one.numbers, held_out, one.seen, (one.reading,))[one.reading]
    sign = 1.0 if hypothesis.proximal or one.cosine >= 0 else -1.0
    cosines, steps = sign * measured.cosines, (sign * measured.steps).tolist()
    alignment = float(cosines.mean())
    if hypothesis.proximal:
        steps = [step * one.numbers["step_size"] for step in steps]
    return Match(
        hypothesis.family,
        hypothesis.words,
        dict(one.numbers),
        alignment,
        float(cosines.min()),
        sign * one.cosine,
        sign > 0,
        min(steps),
        statistics.median(steps),
        max(steps),
        math.nan,
        THRESHOLD,
        one.reading,
        one.seen,
        hypothesis.frozen,
        lambda x: hypothesis.make(x, one.numbers),
    )


def _null(one: Fitted, held_out: Sequence[Batch], fit_on: Sequence[Batch], nulls: int, seed: int) -> float:
    """The best held-out alignment of random versions: matrices drawn anew and numbers fitted, or the direction turned.

    The tokens themselves count among them: an update that is nearly a multiple of x is nearly explained by much.
    """
    rng = np.random.default_rng(seed + 4000)
    shrinks = one.hypothesis.family == SHRINKAGE and one.reading == ADDED
    reached = 0.0 if shrinks else trivial(held_out, one.seen, one.reading)
    for _ in range(nulls):
        if one.hypothesis.redraw is None:
            d = held_out[0].x.shape[-1]
            turn = torch.from_numpy(np.linalg.qr(rng.standard_normal((d, d)))[0])
            measured = aligned(one.hypothesis, one.numbers, held_out, one.seen, (one.reading,), turn)[one.reading]
        else:
            other = one.hypothesis.redraw(rng)
            start = coarse(other, fit_on[:1], one.seen)[one.reading]
            again = fit_numbers(start, fit_on[:2], 20)
            measured = aligned(other, again.numbers, held_out, one.seen, (one.reading,))[one.reading]
        reached = max(reached, measured.mean if one.hypothesis.proximal else abs(measured.mean))
    return reached


def _readings_of(call: Any, d: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What the layer may read: the tokens, and what its own norms make of them; of a function, their LayerNorm."""
    readings: dict[str, Callable[[Tensor], Tensor]] = {"x": lambda x: x}
    parts = call.named_modules() if isinstance(call, nn.Module) else ()
    for name, part in parts:
        shape = getattr(part, "normalized_shape", None)
        if shape is not None and tuple(shape) == (d,):
            readings[f"{name}(x), a {type(part).__name__}"] = part
    if not isinstance(call, nn.Module):
        readings["LayerNorm(x)"] = lambda x: F.layer_norm(x, (d,))
    return dict(list(readings.items())[:3])


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"suggest_objective: {name} must be an integer, but is {value!r}.")
    if value < 1:
        raise ValueError(f"suggest_objective: {name} must be at least 1, but is {value}.")


def _checked_names(candidates: Sequence[str] | None) -> tuple[str, ...]:
    if candidates is None:
        return tuple(FAMILIES)
    if isinstance(candidates, str) or not all(isinstance(name, str) for name in candidates):
        raise TypeError(f"suggest_objective: candidates must be a list of names, but is {candidates!r}.")
    unknown = [name for name in candidates if name not in FAMILIES]
    if unknown or not candidates:
        raise ValueError(
            f"suggest_objective: candidates must be some of {', '.join(FAMILIES)}, but {unknown or 'none'} came."
        )
    return tuple(candidates)
