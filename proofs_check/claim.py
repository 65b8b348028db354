"""What a claim is, what one case of it yields, and what is said of it in the end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis.strategies import SearchStrategy

from .strategies import Case

__all__ = ["KINDS", "Claim", "Comparison", "Measurement", "Mutant", "MutantVerdict", "Verdict"]

KINDS = ("exact", "identity", "inequality", "bound", "order", "cost", "measured", "refuted", "conjecture")


@dataclass(frozen=True)
class Comparison:
    """One number held against its tolerance: ``error <= tolerance``, so that NaN fails."""

    name: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def ratio(self) -> float:
        """Error over tolerance; infinite for NaN."""
        if math.isnan(self.error):
            return math.inf
        if self.tolerance == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.tolerance


@dataclass(frozen=True)
class Measurement:
    """What one case yields.

    comparisons: all that was compared. evidence: False where nothing moved, or the tolerance could not tell right
    from wrong. values: numbers to report. curve: (step, remainder) pairs of a Taylor test. identical: the two sides
    were equal bit for bit. truth: for refuted claims and conjectures, whether the statement held on this case.
    """

    comparisons: tuple[Comparison, ...] = ()
    evidence: bool = True
    values: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    identical: bool = False
    truth: bool = True

    @property
    def holds(self) -> bool:
        """Whether every comparison holds."""
        return all(comparison.holds for comparison in self.comparisons)

    @property
    def worst(self) -> Comparison:
        """The comparison with the largest ratio of error to tolerance."""
        return max(self.comparisons, key=lambda comparison: comparison.ratio, default=Comparison("nothing", 0.0, 0.0))


Subject = Callable[..., Any]
"""The thing on trial: called with a case, and what else the claim's ``measure`` gives it."""


@dataclass(frozen=True)
class Mutant:
    """A wrong version of the subject, which the claim must reject."""

    name: str
    subject: Subject


@dataclass(frozen=True, eq=False)
class Claim:
    """One statement that can be checked, with everything it needs to be judged.

    id: dotted, its first part the stem. statement: one English sentence. equation: LaTeX, tokens in columns as in
    the papers. source: paper, section, equation, arXiv id. kind: one of :data:`KINDS`. domain: ALL cases for which
    the statement should hold. subject: the thing on trial. measure: (subject, case) -> Measurement. mutants: wrong
    subjects that must be rejected. structured: cases always tried. code: "module:name" of what is on trial.
    real: whether the claim can be put to tokens that a user gives. largest: the most tokens it takes then.
    """

    id: str
    statement: str
    equation: str
    source: str
    kind: str
    domain: SearchStrategy[Case]
    subject: Subject
    measure: Callable[[Subject, Case], Measurement]
    mutants: tuple[Mutant, ...]
    structured: tuple[Case, ...] = ()
    code: tuple[str, ...] = ()
    frozen: str = "nothing"
    correction: str = ""
    real: bool = True
    largest: int = 1200

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Claim {self.id}: kind must be one of {', '.join(KINDS)}, but is {self.kind!r}.")
        if len(names := [mutant.name for mutant in self.mutants]) != len(set(names)):
            raise ValueError(f"Claim {self.id}: two mutants share a name: {sorted(names)}.")

    @property
    def stem(self) -> str:
        """The first part of the id: the file's name in every package."""
        return self.id.split(".", 1)[0]

    def mutant(self, name: str) -> Mutant:
        """The mutant of that name."""
        for mutant in self.mutants:
            if mutant.name == name:
                return mutant
        raise ValueError(f"{self.id} has no mutant {name!r}; it has {[mutant.name for mutant in self.mutants]}.")

    def judge(self, case: Case, mutant: str | None = None) -> Measurement:
        """Measure the subject, or a mutant of it, on one case."""
        return self.measure(self.subject if mutant is None else self.mutant(mutant).subject, case)


@dataclass
class MutantVerdict:
    """Whether a mutant was rejected, by how much (error over tolerance), and the smallest case that did it."""

    name: str
    killed: bool
    margin: float | None = None
    counterexample: str | None = None
    case: Case | None = None


@dataclass
class Verdict:
    """What is said of a claim after its run; ``to_json`` is its entry in the report."""

    id: str
    stem: str
    kind: str
    statement: str
    source: str
    status: str
    cases: int = 0
    evidence: int = 0
    worst_error: float | None = None
    tolerance: float | None = None
    worst_name: str = ""
    real_input_error: float | None = None
    real_input_tolerance: float | None = None
    seconds: float = 0.0
    mutants: list[MutantVerdict] = field(default_factory=list)
    counterexample: str | None = None
    counterexample_case: Case | None = None
    reason: str = ""
    identical: bool = False
    values: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    real_values: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    certificate: str = ""

    @property
    def sound(self) -> bool:
        """Whether this verdict lets the run pass: everything but ``fails`` and ``vacuous``."""
        return self.status not in ("fails", "vacuous")

    def __str__(self) -> str:
        said = f"{self.id}: {self.status} on {self.evidence} of {self.cases} cases"
        if self.worst_error is not None and self.tolerance is not None:
            said += f", worst error {self.worst_error:.1e} (tolerance {self.tolerance:.1e})"
        if self.mutants:
            said += f", {sum(m.killed for m in self.mutants)} of {len(self.mutants)} wrong versions rejected"
        return said + (f"\n  {self.reason}" if self.reason else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinities and NaN become null, since JSON has none."""
        entry = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in ("mutants", "counterexample_case", "values")
        }
        entry["mutants"] = [
            {"name": m.name, "killed": m.killed, "margin": m.margin, "counterexample": m.counterexample}
            for m in self.mutants
        ]
        entry["values"] = {
            name: {"smallest": low, "median": mid, "largest": high} for name, (low, mid, high) in self.values.items()
        }
        return _finite(entry)


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
