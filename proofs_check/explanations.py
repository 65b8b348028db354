"""What explains an update that is no step: rounding, heads, tokens or features left out, a common mistake."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from .evidence import LOOKS, Evidence, Said, held_constant
from .measures import norm
from .mistakes import added_multiple, changed_number, missing_residual, normalised_first
from .relations import Fit, Seen, constant, head_bases, names_of, per_head, right_entries
from .trial import DOUBTFUL
from .verdicts import Finding

__all__ = ["explained"]

ROUNDED = 0.05
"""Median error up to which an update may be a rounded one."""


def explained(evidence: Evidence, fits: Sequence[Fit]) -> Said | None:
    """The first explanation that holds on all sets it can be put to; None if none does."""
    attempts = (_rounded, _per_head, _partly, _mistaken)
    return next((said for attempt in attempts if (said := attempt(evidence, fits)) is not None), None)


def _rounded(evidence: Evidence, fits: Sequence[Fit]) -> Said | None:
    """The closest relation, if what is left of it is rounding in a lower precision."""
    best = min((made for made in fits if made.declared), key=lambda made: made.median, default=fits[0])
    if best.median > ROUNDED:
        best = min(fits, key=lambda made: made.median)
    off = [i for i in (*best.wrong, *best.doubtful) if math.isfinite(best.errors[i])]
    if best.median > ROUNDED or not off or len(off) < len(best.fine):  # a lower precision shows nearly everywhere
        return None
    generic = [i for i in off if evidence.seens[i].drawn.generic] or off
    kinds = [evidence.rough(evidence.seens[i], best.frozen, _kappa_in(best, evidence.seens[i], i)) for i in generic[:6]]
    if not all(kinds):
        return None
    kind = max(set(kinds), key=kinds.count)
    kind = "bfloat16" if kind == "float16" and best.median > 8e-4 else kind  # 8 bits less: eight times the error
    rounding = (
        f" up to rounding in a lower precision, about that of {kind}: the error, {best.median:.2g} of the displacement in the"
        " middle, is another one a few roundings away."
    )
    steps = [best.steps[i] for i in (*best.fine, *off) if evidence.seens[i].drawn.generic]
    what = f"the step on the objective{held_constant(best.frozen)}"
    finding, words = Finding.PRECISION, f"it is {what}{rounding}"
    if steps and max(steps) < 0:
        finding, words = Finding.ASCENDS, f"it ascends: it is {what} the other way,{rounding}"
    elif not best.declared and (evidence.declares or not constant(steps, 1e-3)):
        size = statistics.median(steps)
        finding, words = (
            Finding.OTHER_STEP,
            f"it is {what}, with another step size, {size:.4g} in the middle,{rounding}",
        )
    return Said(finding, [words], best, {}, off)


def _kappa_in(made: Fit, seen: Seen, number: int) -> float:
    return seen.kappa if made.declared else made.steps[number]


def _per_head(evidence: Evidence, fits: Sequence[Fit]) -> Said | None:
    generic = [seen for seen in evidence.seens if seen.drawn.generic]
    if evidence.heads is None or not generic:
        return None
    U = head_bases(evidence.heads, generic[0].x.shape[-1])
    for names in evidence.target.subsets:
        factors, order = per_head(generic, names, U, DOUBTFUL[generic[0].dtype])
        if not factors:
            continue
        columns = [[f for f in column if not math.isnan(f)] for column in zip(*factors, strict=True)]
        middle = tuple(statistics.median(column) if column else math.nan for column in columns)
        listed = ", ".join(f"{factor:.6g}" for factor in middle)
        if order != list(range(len(order))):
            swaps = ", ".join(f"head {k} the step of head {j}" for k, j in enumerate(order) if k != j)
            words = f"the heads are mixed up{held_constant(names)}: {swaps}; step sizes {listed}."
            return Said(Finding.MISTAKE, [words], fits[0], {"factors": middle, "mistake": words})
        same = all(constant(column, DOUBTFUL[generic[0].dtype] / 16) for column in columns if column)
        lines = [f"every head takes the gradient step{held_constant(names)}, with a step size of its own: {listed}."]
        lines += [] if same else ["These are medians: a head's step size varies with the input."]
        lines += ["Heads with a negative one ascend."] if any(factor < 0 for factor in middle) else []
        lines += [f"That was on the {len(generic)} sets of Gaussian tokens and the example."]
        return Said(Finding.PER_HEAD, lines, fits[0], {"factors": middle})
    return None


def _partly(evidence: Evidence, fits: Sequence[Fit]) -> Said | None:
    """Right on some tokens, or some features, of every set."""
    for axis, finding, what in ((-2, Finding.SOME_TOKENS, "tokens"), (-1, Finding.SOME_FEATURES, "features")):
        usable = [seen for seen in evidence.seens if seen.drawn.generic and seen.whole and norm(seen.moved) > 0]
        usable = [seen for seen in usable if seen.x.ndim == 2] if axis == -2 else usable
        usable = [seen for seen in usable if seen.x.shape[axis if seen.x.ndim > 1 else 0] >= 4] or usable
        usable = [seen for seen in usable if seen.x.shape[axis if seen.x.ndim > 1 else 0] >= 2]
        usable = sorted(usable, key=lambda seen: seen.x.numel())[-LOOKS:]
        for names in evidence.target.subsets if usable else ():
            allowed = DOUBTFUL[usable[0].dtype]
            seen_each = [(seen, *right_entries(seen, seen.slopes.gradients[names], axis, allowed)) for seen in usable]
            if not all(right and wrong for _, right, wrong, *_ in seen_each):
                continue
            _, right, wrong, _, kappa = max(seen_each, key=lambda one: one[0].x.shape[axis if one[0].x.ndim > 1 else 0])
            count = len(right) + len(wrong)
            still = all(rest for *_, rest, _ in seen_each)
            verb = "is" if len(wrong) == 1 else "are"
            how = f"{verb} not updated" if still else f"{verb} updated differently"
            words = (
                f"it is the step{held_constant(names)}, κ = {kappa:.6g}, on some {what} only: of {count} {what}"
                f" {names_of(wrong, count)} {how}."
            )
            return Said(finding, [words], fits[0], {"mistake": f"{names_of(wrong, count)} {how}"})
    return None


def _mistaken(evidence: Evidence, fits: Sequence[Fit]) -> Said | None:
    generic = [seen for seen in evidence.seens if seen.drawn.generic]
    if not generic:
        return None
    words, factor = missing_residual(generic)
    if words:
        declared = generic[0].kappa
        words += (
            "" if declared == declared and abs(factor - declared) <= 1e-6 * declared else f" It is {factor:.6g} ∇f."
        )
    words = words or added_multiple(generic) or changed_number(evidence.target, generic)
    words = words or normalised_first(evidence.target, generic)
    if not words:
        return None
    return Said(Finding.MISTAKE, [words[0].lower() + words[1:]], fits[0], {"mistake": words})
