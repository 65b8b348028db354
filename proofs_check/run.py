"""The runner: draws cases through Hypothesis, measures, tries the mutants, and gives a verdict on every claim."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture import providers

from .claim import Claim, Comparison, Measurement, Mutant, MutantVerdict, Verdict
from .inputs import TokenInput
from .strategies import Case
from .threads import one_thread

__all__ = ["LISTENERS", "PROFILES", "WRITTEN_OUT", "Campaign", "announce", "run_claim", "snippet"]

PROFILES = {"quick": 25, "full": 200, "deep": 2000}
"""Drawn cases a claim, beside the structured ones."""

WRITTEN_OUT = 96
"""So many numbers of given tokens stand in a snippet; where there are more it reads the saved .npz."""

LISTENERS: list[Callable[[Verdict], None]] = []
"""Called with every verdict of this process: how a test session learns which claims were run in it."""


@dataclass(frozen=True)
class Campaign:
    """How claims are run. cases: drawn cases each. source: tokens of the user's. mutants: whether they are tried."""

    cases: int = PROFILES["quick"]
    seed: int = 0
    dtype: str = "float64"
    source: TokenInput | None = None
    mutants: bool = True


@dataclass
class _Tally:
    """What a run of cases adds up to."""

    cases: int = 0
    evidence: int = 0
    worst: Comparison | None = None
    identical: int = 0
    curve: tuple[tuple[float, float], ...] = ()
    values: dict[str, list[float]] = field(default_factory=dict)
    bad: Case | None = None
    bad_measurement: Measurement | None = None
    untrue: Case | None = None

    def add(self, case: Case, measured: Measurement) -> None:
        self.cases += 1
        self.evidence += measured.evidence
        self.identical += measured.identical
        if measured.comparisons and measured.evidence:
            worst = measured.worst
            if self.worst is None or worst.ratio > self.worst.ratio:
                self.worst = worst
        if len(measured.curve) > len(self.curve):
            self.curve = measured.curve
        for name, value in measured.values.items():
            if math.isfinite(value):
                self.values.setdefault(name, []).append(value)
        if not measured.truth and measured.holds and (self.untrue is None or _size(case) < _size(self.untrue)):
            self.untrue = case


class _Rejected(Exception):
    """Raised inside Hypothesis so that it shrinks to the smallest failing case."""


def run_claim(claim: Claim, campaign: Campaign) -> Verdict:
    """Run one claim, on one thread, and say what is true of it."""
    if not isinstance(claim, Claim) or not isinstance(campaign, Campaign):
        raise TypeError(
            f"run_claim: claim must be a Claim and campaign a Campaign, but are a {type(claim).__name__} and a {type(campaign).__name__}."
        )
    started = time.perf_counter()
    try:
        with one_thread():
            verdict = _judge(claim, campaign)
    except Exception as problem:  # a claim that cannot be measured must not take the others down with it
        verdict = Verdict(claim.id, claim.stem, claim.kind, claim.statement, claim.source, "fails")
        verdict.reason = f"could not be measured: {type(problem).__name__}: {problem}"
    verdict.seconds = round(time.perf_counter() - started, 3)
    announce(verdict)
    return verdict


def announce(verdict: Verdict) -> None:
    """Tell the listeners of a verdict."""
    for listen in LISTENERS:
        listen(verdict)


def _judge(claim: Claim, campaign: Campaign) -> Verdict:
    tally = _Tally()
    _explore(claim, claim.subject, campaign, tally.add, tally)
    verdict = Verdict(
        claim.id, claim.stem, claim.kind, claim.statement, claim.source, "holds", tally.cases, tally.evidence
    )
    verdict.curve = tally.curve
    verdict.identical = tally.cases > 0 and tally.identical == tally.cases
    verdict.values = {name: (min(v), statistics.median(v), max(v)) for name, v in tally.values.items()}
    if tally.worst is not None:
        verdict.worst_error, verdict.tolerance, verdict.worst_name = (
            tally.worst.error,
            tally.worst.tolerance,
            tally.worst.name,
        )
    if tally.bad is not None and tally.bad_measurement is not None:
        worst = tally.bad_measurement.worst
        verdict.status, verdict.worst_error, verdict.tolerance = "fails", worst.error, worst.tolerance
        verdict.worst_name, verdict.counterexample_case = worst.name, tally.bad
        verdict.counterexample = snippet(claim, tally.bad)
        verdict.reason = f"{worst.name}: error {worst.error:.3g}, tolerance {worst.tolerance:.3g} on {tally.bad!r}"
        return verdict
    _put_to_real_tokens(claim, campaign, verdict)
    if verdict.status == "fails":
        return verdict
    if campaign.mutants:
        verdict.mutants = [_try_mutant(claim, mutant, campaign) for mutant in claim.mutants]
    survivors = [mutant.name for mutant in verdict.mutants if not mutant.killed]
    if survivors:
        verdict.status, verdict.reason = "vacuous", f"lets wrong versions through: {', '.join(survivors)}"
    elif 2 * tally.evidence < tally.cases or tally.cases == 0:
        verdict.status = "vacuous"
        verdict.reason = f"only {tally.evidence} of {tally.cases} cases could have told right from wrong"
    elif claim.kind == "refuted":
        _refute(claim, tally, verdict)
    elif claim.kind == "conjecture":
        verdict.status = "open" if tally.untrue is None else "refuted"
        if tally.untrue is not None:
            verdict.counterexample_case = tally.untrue
            verdict.counterexample = snippet(claim, tally.untrue)
    elif claim.kind == "measured":
        verdict.status = "measured"
    return verdict


def _refute(claim: Claim, tally: _Tally, verdict: Verdict) -> None:
    if tally.untrue is None:
        verdict.status, verdict.reason = "fails", "no counterexample was found in this run"
        return
    verdict.status = "refuted"
    verdict.counterexample_case, verdict.counterexample = tally.untrue, snippet(claim, tally.untrue)


def _explore(
    claim: Claim,
    subject: Any,
    campaign: Campaign,
    note: Callable[[Case, Measurement], None],
    tally: _Tally,
    cases: int | None = None,
) -> None:
    """Structured cases, then drawn ones; the smallest failing case goes to ``tally.bad``."""

    def trial(case: Case) -> None:
        case = case.in_dtype(campaign.dtype)
        measured = claim.measure(subject, case)
        note(case, measured)
        if not measured.holds:
            tally.bad, tally.bad_measurement = case, measured
            raise _Rejected

    try:
        for case in sorted(claim.structured, key=_size):
            trial(case)
        count = campaign.cases if cases is None else cases
        if count:
            _forget_local_constants()
            hypothesis.seed(campaign.seed)(
                settings(
                    max_examples=count,
                    database=None,
                    deadline=None,
                    derandomize=False,
                    phases=(Phase.generate, Phase.shrink),
                    suppress_health_check=list(HealthCheck),
                    report_multiple_bugs=False,
                    print_blob=False,
                    verbosity=hypothesis.Verbosity.quiet,
                )(given(claim.domain)(trial))
            )()
    except _Rejected:
        return


def _forget_local_constants() -> None:
    """Draw the same cases wherever the package is installed.

    Hypothesis mixes in constants from source files that it takes for local, and which are depends on the folder.
    """
    if hasattr(providers, "_get_local_constants") and hasattr(providers, "Constants"):
        providers._get_local_constants = lambda: providers.Constants()


def _try_mutant(claim: Claim, mutant: Mutant, campaign: Campaign) -> MutantVerdict:
    """A mutant is killed by one case; refuted claims kill a mutant by finding its statement true everywhere."""
    tally = _Tally()
    if claim.kind == "refuted":
        _explore(claim, mutant.subject, campaign, tally.add, tally, cases=0)
        case = tally.bad or tally.untrue
        killed = tally.untrue is None
        return MutantVerdict(mutant.name, killed, None, None if killed or case is None else snippet(claim, case))
    if claim.kind == "conjecture":
        _explore(claim, mutant.subject, campaign, tally.add, tally)
        case = tally.bad or tally.untrue
        return MutantVerdict(
            mutant.name, case is not None, None, snippet(claim, case, mutant.name) if case else None, case
        )
    _explore(claim, mutant.subject, campaign, lambda case, measured: None, tally, cases=max(campaign.cases, 100))
    if tally.bad is None or tally.bad_measurement is None:
        return MutantVerdict(mutant.name, False)
    margin = tally.bad_measurement.worst.ratio
    return MutantVerdict(mutant.name, True, margin, snippet(claim, tally.bad, mutant.name), tally.bad)


def _put_to_real_tokens(claim: Claim, campaign: Campaign, verdict: Verdict) -> None:
    source = campaign.source
    if source is None or not claim.real:
        return
    tokens, grid = source.tokens, source.grid
    if len(tokens) > claim.largest:
        keep = np.linspace(0, len(tokens) - 1, claim.largest).round().astype(int)
        tokens, grid = tokens[keep], (1, claim.largest)
    case = dataclasses.replace(Case(m=9, dtype=campaign.dtype).with_tokens(tokens, grid), seed=campaign.seed)
    measured = claim.measure(claim.subject, case)
    verdict.real_input_error, verdict.real_input_tolerance = measured.worst.error, measured.worst.tolerance
    verdict.real_values = dict(measured.values)
    if measured.curve:
        verdict.curve = measured.curve
    if not measured.holds:
        worst = measured.worst
        verdict.status, verdict.counterexample_case = "fails", case
        verdict.counterexample = snippet(claim, case)
        verdict.reason = f"on {source.name}: {worst.name}: error {worst.error:.3g}, tolerance {worst.tolerance:.3g}"


def snippet(claim: Claim, case: Case, mutant: str | None = None) -> str:
    """Python that measures the case again when it is pasted.

    Given tokens of at most :data:`WRITTEN_OUT` numbers are written out; for larger ones the snippet replays the .npz
    that the run saves, from the folder that holds it.
    """
    if case.given is not None and case.given.size > WRITTEN_OUT:
        from .counterexample import file_name

        file = file_name(claim.id, mutant)
        return "\n".join(
            [
                f"# on {' × '.join(map(str, case.given.shape))} given tokens, which are saved in {file}",
                "from proofs_check.counterexample import replay",
                "",
                f'claim, mutant, case, measured = replay("{file}")',
                "print(measured)",
            ]
        )
    lines, call = ["from proofs_check import Case, find", ""], repr(case)
    if case.given is not None:
        rows = ",\n".join(f"    {row}" for row in case.given.tolist())
        lines = ["import numpy as np", "", *lines, f"tokens = np.array([\n{rows},\n])"]
        call = f"{call[:-1]}{'' if call == 'Case()' else ', '}given=tokens)"
    call += "" if mutant is None else f", mutant={mutant!r}"
    return "\n".join([*lines, f'claim = find("{claim.id}")', f"print(claim.judge({call}))"])


def _size(case: Case) -> tuple[int, int, int]:
    return (case.tokens * case.dim * max(1, case.batch), case.m, case.heads)
