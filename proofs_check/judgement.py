"""From sets of tokens with updates and gradients to one verdict: the simplest relation that holds, in words."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .counterexamples import Found, smallest
from .evidence import LOOKS, Evidence, Said, free_gradient, held_constant
from .explanations import explained
from .measures import norm
from .relations import Fit, Seen, constant, cosine, dependence, fit
from .verdicts import Diagnosis, Finding

__all__ = ["judge"]

AT_ODDS = 1e-4
"""Relative difference from which a gradient is another one than the derivative of the value."""


def judge(evidence: Evidence) -> Diagnosis:
    """The verdict: first what makes every other one pointless, then relations from the simplest on."""
    said = _relation(evidence)
    seens, best = evidence.seens, said.best
    found: Found | None = None
    if said.finding is not Finding.DESCENDS and seens:
        shown = said.shown_by or best.wrong or range(len(seens))
        wanted = {Finding.NO_DESCENT: "uphill", Finding.PRECISION: "as drawn"}.get(said.finding, "any")
        found = smallest([seens[i] for i in shown], evidence.look, wanted)
    finding, words, instead = _overruled(evidence, said)
    words += [said_of for said_of in (_about_steps(evidence, said), _about_shapes(evidence)) if said_of]
    if instead is not None:
        found = Found(instead[0].numpy(), None, None, instead[1])
    free = (cosine(seen.moved, evidence.towards(seen, (), seen.kappa)) for seen in seens)
    cosines = [c for c in free if not math.isnan(c)]
    steps = [best.steps[i] for i in (best.fine or range(len(best.steps))) if math.isfinite(best.steps[i])]
    declared = [seen.kappa for seen in seens if math.isfinite(seen.kappa)]
    said_anything = [*best.fine, *best.doubtful, *best.wrong]
    worst = max(said_anything, key=lambda i: best.errors[i] / best.allowed[i], default=None)
    fields: dict[str, Any] = {"frozen": best.frozen if finding in (Finding.FROZEN, Finding.ASCENDS) else ()}
    if found is not None:
        fields |= {
            "counterexample": found.x,
            "update": found.update,
            "gradient": found.gradient,
            "snippet": found.snippet,
            "code": found.code,
        }
    return Diagnosis(
        evidence.name,
        finding,
        tuple(words),
        cases=evidence.inputs,
        sets=len(seens),
        evidence=len(best.fine),
        cosine_min=min(cosines, default=math.nan),
        cosine_median=statistics.median(cosines) if cosines else math.nan,
        step_min=min(steps, default=math.nan),
        step_median=statistics.median(steps) if steps else math.nan,
        step_max=max(steps, default=math.nan),
        declared=statistics.median(declared) if declared else None,
        worst_error=math.nan if worst is None else best.errors[worst],
        tolerance=math.nan if worst is None else best.allowed[worst],
        accepted=evidence.accepted,
        **(fields | said.fields),
    )


def _overruled(evidence: Evidence, said: Said) -> tuple[Finding, list[str], tuple[Tensor, str] | None]:
    """What overrules the relation: another result for the same input, errors, NaN, outputs of another kind."""
    if evidence.apart:
        how = (
            "equal seeds of the random generators make the calls equal: is dropout left on?"
            if evidence.seeded
            else "and equal seeds do not help: does it keep a state, such as momentum, from call to call?"
        )
        words = f"two calls with the same input differ by {evidence.apart:.3g} of the update; {how}"
        return Finding.CHANGES_ITS_MIND, [words], None
    exact = (Finding.DESCENDS, Finding.PRECISION, Finding.NO_EVIDENCE)
    trouble = [one for one in evidence.trouble if one[1] is not Finding.PRECISION or said.finding in exact]
    if not trouble:
        more = [evidence.trouble[0][2].capitalize()] if evidence.trouble else []
        return said.finding, [*said.words, *more], None
    ranks = (Finding.RAISES, Finding.NOT_FINITE, Finding.WRONG_OUTPUT, Finding.CHANGES_INPUT, Finding.PRECISION)
    x, finding, words, code = min(trouble, key=lambda one: (ranks.index(one[1]), one[0].numel()))
    count = len({id(one[0]) for one in trouble if one[1] is finding})
    lines = [words, f"That was on {count} of {evidence.inputs} inputs, the smallest of them of shape {tuple(x.shape)}."]
    inside = "what it returns inside is taken: " if finding is Finding.WRONG_OUTPUT else ""
    return finding, [*lines, f"Apart from that: {inside}{said.words[0]}", *said.words[1:]], (x, code)


def _relation(evidence: Evidence) -> Said:
    seens = evidence.seens
    nothing = Fit((), False)
    if not seens:
        words = "no input gave both an update and a finite gradient of the objective."
        return Said(Finding.NO_EVIDENCE, [words], nothing)
    if worst := _at_odds(evidence):
        words = f"the gradient of the objective is off from the derivative of its value by {worst:.3g} of its norm."
        return Said(Finding.AT_ODDS, [words, "Nothing is said of the layer before they agree."], nothing)
    fits: list[Fit] = []
    for names in evidence.target.subsets:
        for declared in (True, False) if evidence.declares else (False,):
            made = fit(seens, names, declared, evidence.towards, evidence.noisy)
            if made.holds and not declared and evidence.target.nonsmooth is not None:
                made = _one_step(evidence, made)
            fits.append(made)
            if made.holds:
                return _exact(evidence, made, fits[0])
    first = fits[0]
    if all(norm(seen.moved) == 0 for seen in seens):
        moves = any(norm(free_gradient(seen)) > 0 for seen in seens)
        words = (
            "it moves nothing, though the objective has a gradient." if moves else "neither it nor the objective moves."
        )
        return Said(Finding.STILL if moves else Finding.NO_EVIDENCE, [words], first)
    if said := explained(evidence, fits):
        return said
    if not first.wrong:
        doubtful = [first.errors[i] for i in first.doubtful]
        why = (
            f"errors up to {max(doubtful):.2g} are above rounding, and too small to call wrong; is a constant of one of the two"
            " rounded to a lower precision"
            if len(doubtful) > len(first.blank)
            else "on the others neither the layer nor its objective moves, or rounding drowns the step"
        )
        words = f"only {len(first.fine)} of {len(seens)} sets could have told a right step from a wrong one: {why}."
        return Said(Finding.NO_EVIDENCE, [words], first)
    return _direction(evidence, first, fits)


def _one_step(evidence: Evidence, made: Fit) -> Fit:
    """The fit with one step size for all sets, if it holds: where a proximal step clips all, many sizes give the same."""
    kappa = statistics.median(made.fine_steps)
    alike = [dataclasses.replace(seen, kappa=kappa) for seen in evidence.seens]
    again = fit(alike, made.frozen, True, evidence.towards, evidence.noisy)
    again.declared, again.steps = False, [kappa] * len(alike)
    return again if kappa > 0 and again.holds else made


def _exact(evidence: Evidence, made: Fit, first: Fit) -> Said:
    """One relation holds on all sets: which sign, which step size, what is held constant."""
    steps, held = made.fine_steps, held_constant(made.frozen)
    signs = {math.copysign(1.0, step) for step in steps}
    counted = f"on {evidence.inputs} inputs ({len(made.fine)} of their {len(evidence.seens)} sets are evidence)"
    kind = "the proximal step" if evidence.target.nonsmooth is not None else "the gradient step"
    allowed = max(made.allowed[i] for i in made.fine)
    same = constant(steps, allowed)
    cause = "" if same else dependence([evidence.seens[i] for i in made.fine], steps) if len(signs) == 1 else ""
    shown = first.wrong or made.fine
    if len(signs) == 2:
        words = f"every update is a multiple of the gradient{held}, {counted}, but of either sign: it ascends on some."
        uphill = [i for i in made.fine if steps[made.fine.index(i)] < 0]
        return Said(Finding.NO_DESCENT, [words, *_what_they_share(evidence.seens, first)], made, {}, uphill)
    if signs == {-1.0}:
        words = f"it ascends: it is exactly {kind} on the objective{held} the other way, {counted}."
        return Said(Finding.ASCENDS, [words], made, {"dependence": cause}, shown)
    if 2 * len(made.fine) < len(evidence.seens) + evidence.dropped:
        words = (
            f"it is {kind} on the objective{held} on {len(made.fine)} sets, but of the {evidence.dropped} others nothing can be"
            " said: the objective is not finite there, or raises."
        )
        return Said(Finding.NO_EVIDENCE, [words], made, {}, shown)
    right = made.declared or (same and not evidence.declares)
    if made.frozen:
        held_all = set(evidence.target.frozen) <= set(made.frozen)
        others = "" if held_all else " The other arguments move along."
        words = f"it is exactly {kind} on the objective{held}, {counted}.{others}"
        free = "With nothing held constant the gradient is another one: it is a step on another objective at every x."
        return Said(Finding.FROZEN, [words, free], made, {"dependence": cause}, shown)
    if right:
        words = f"it descends exactly: it is {kind} on the objective, {counted}."
        return Said(Finding.DESCENDS, [words, "That is numerical agreement, which is not a proof."], made)
    words = f"it descends exactly, but not with {'the declared' if evidence.declares else 'one'} step size, {counted}."
    return Said(Finding.OTHER_STEP, [words], made, {"dependence": cause}, shown)


def _direction(evidence: Evidence, first: Fit, fits: Sequence[Fit]) -> Said:
    seens = evidence.seens
    if evidence.constant:
        words = "what it returns does not depend on x."
        return Said(Finding.CONSTANT, [words], first)
    said = [i for i in (*first.fine, *first.doubtful, *first.wrong)]
    cosines = {i: cosine(seens[i].moved, evidence.look.gradient_of(seens[i])) for i in said}
    uphill = [i for i in said if math.isnan(cosines[i]) or cosines[i] < 1e-9]
    uphill.sort(key=lambda i: seens[i].x.numel())
    kept = [i for i in uphill[:LOOKS] if evidence.look.confirms(seens[i])]
    kept += uphill[LOOKS:] if kept else []
    more = _what_they_share(seens, first)
    close = min(fits, key=lambda made: made.median)
    if close.frozen:
        more.append(f"Closest comes the gradient{held_constant(close.frozen)}: median error {close.median:.3g}.")
    if kept:
        least = [cosines[i] for i in kept if not math.isnan(cosines[i])]
        how = f"the cosine with descent is down to {min(least):.4g}" if least else "it moves where the gradient is zero"
        if not least and all(norm(seens[i].moved) == 0 for i in kept):
            how = "it does not move there, though the objective has a gradient"
        words = f"it is no descent direction on {len(kept)} of {len(seens)} sets of tokens: {how}."
        return Said(Finding.NO_DESCENT, [words, *more], first, {}, kept)
    known = [c for c in cosines.values() if not math.isnan(c)]
    words = (
        f"it points downhill on all {len(known)} sets that say anything, cosine {min(known):.4g} at least and"
        f" {statistics.median(known):.4g} in the middle, but it is not the step and matches none of the known mistakes."
    )
    if close.median < 1e-2 and len(close.fine) < len(close.doubtful) + len(close.wrong):
        more.append(
            f"It is close: off by {close.median:.2g} of the displacement in the middle, in no roundings' pattern."
        )
    return Said(Finding.DIRECTION, [words, *more], first)


def _what_they_share(seens: Sequence[Seen], first: Fit) -> list[str]:
    """Where the step is right on some sets and wrong on others: what tells them apart."""
    if len(first.fine) < 3 or not first.wrong:
        return []
    measures: dict[str, Callable[[Seen], float]] = {
        "the number of tokens": lambda seen: seen.x.shape[-2] if seen.x.ndim > 1 else 1,
        "the number of sets in the batch": lambda seen: seen.batch,
        "the number of batch axes": lambda seen: seen.drawn.x.ndim - seen.x.ndim,
    }
    lines = [f"On {len(first.fine)} of {len(seens)} sets it is the exact step."]
    for name, measure in measures.items():
        right, wrong = ({int(measure(seens[i])) for i in some} for some in (first.fine, first.wrong))
        if not right & wrong:
            texts = [", ".join(map(str, sorted(some))) for some in (right, wrong)]
            return [*lines, f"It is right where {name} is {texts[0]}, and wrong where it is {texts[1]}."]
    sizes = [[norm(seens[i].x) / seens[i].x.numel() ** 0.5 for i in some] for some in (first.fine, first.wrong)]
    if max(sizes[0]) < min(sizes[1]) or max(sizes[1]) < min(sizes[0]):
        which = "large" if max(sizes[0]) < min(sizes[1]) else "small"
        return [
            *lines,
            f"It is wrong on {which} x only: of root mean square {min(sizes[1]):.3g} to {max(sizes[1]):.3g}.",
        ]
    return lines


def _about_steps(evidence: Evidence, said: Said) -> str:
    exact = (Finding.DESCENDS, Finding.OTHER_STEP, Finding.ASCENDS, Finding.FROZEN)
    if said.finding not in exact or not said.best.fine:
        return ""
    steps = [abs(step) for step in said.best.fine_steps]
    middle = statistics.median(steps)
    where = [evidence.seens[i] for i in said.best.fine]
    way = "The step size of the ascent" if said.finding is Finding.ASCENDS else "The step size"
    if said.best.declared:
        sizes = [seen.kappa for seen in where]
        alike = max(sizes) - min(sizes) <= 1e-9 * max(sizes)
        return f"{way} is the declared one, {f'{middle:.6g}' if alike else f'{min(sizes):.4g} to {max(sizes):.4g}'}."
    if constant(steps, max(said.best.allowed[i] for i in said.best.fine)):
        text = f"{way} is {middle:.6g} on all inputs, found by projection"
    else:
        cause = said.fields.get("dependence") or "in no power of the number of tokens or of their size"
        text = f"{way} varies with the input, from {min(steps):.4g} to {max(steps):.4g}: {cause}"
    if evidence.declares:
        ratios = [step / seen.kappa for step, seen in zip(steps, where, strict=True)]
        same = constant(ratios, 1e-7)
        text += f"; it is {statistics.median(ratios):.6g} times the declared one" + ("" if same else " in the middle")
    return text + "."


def _about_shapes(evidence: Evidence) -> str:
    lost = f" On {evidence.dropped} sets the objective is not finite, or raises: they are left out."
    said = f"Of the shapes tried, {evidence.accepted}." if evidence.accepted else ""
    return said + (lost if evidence.dropped else "")


def _at_odds(evidence: Evidence) -> float:
    """How far the gradient given is from the derivative of the value; 0 where they agree, or none was given."""
    known = [seen for seen in evidence.seens if not math.isnan(seen.slopes.odds) and norm(free_gradient(seen)) > 0]
    middle = statistics.median(seen.slopes.odds for seen in known) if known else 0.0
    worst = max((seen.slopes.odds for seen in known if seen.drawn.generic), default=0.0)
    return max(middle, worst) if middle > AT_ODDS or worst > 10 * AT_ODDS else 0.0
