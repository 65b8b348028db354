"""Whether it is so: claims, oracles, mutants, and the checks that anyone can put to a layer of their own.

Names are imported as they are asked for: pytest loads :mod:`proofs_check.pytest_plugin` in every session, and sessions
that do not use it must not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_layer, descent_error
    from .claim import Claim, Comparison, Measurement, Mutant, Verdict
    from .claims import CLAIMS, find
    from .descent_check import check_descent
    from .descent_report import DescentReport, descent_report
    from .objective_check import check_objective
    from .plugins import all_claims
    from .run import Campaign, run_claim
    from .strategies import Case
    from .suggest import Match, Suggestion, suggest_objective
    from .trial import CheckResult, ClaimFailed
    from .verdicts import Counterexample, Diagnosis, Finding, load_counterexample

__all__ = [
    "CLAIMS",
    "Campaign",
    "Case",
    "CheckResult",
    "Claim",
    "ClaimFailed",
    "Comparison",
    "Counterexample",
    "DescentReport",
    "Diagnosis",
    "Finding",
    "Match",
    "Measurement",
    "Mutant",
    "Suggestion",
    "Verdict",
    "all_claims",
    "check_descent",
    "check_layer",
    "check_objective",
    "descent_error",
    "descent_report",
    "find",
    "load_counterexample",
    "run_claim",
    "suggest_objective",
]

_HOMES = {
    "check": ("check_layer", "descent_error"),
    "claim": ("Claim", "Comparison", "Measurement", "Mutant", "Verdict"),
    "claims": ("CLAIMS", "find"),
    "descent_check": ("check_descent",),
    "descent_report": ("DescentReport", "descent_report"),
    "objective_check": ("check_objective",),
    "plugins": ("all_claims",),
    "run": ("Campaign", "run_claim"),
    "strategies": ("Case",),
    "suggest": ("Match", "Suggestion", "suggest_objective"),
    "trial": ("CheckResult", "ClaimFailed"),
    "verdicts": ("Counterexample", "Diagnosis", "Finding", "load_counterexample"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    objectives = importlib.import_module("objectives")
    if not hasattr(objectives, "SubspaceCodingRate"):
        raise ImportError(
            f"proofs_check needs its sister package 'objectives', but found {objectives.__file__}, which is another module"
            " of that name. Rename that file, or use a virtual environment of its own for attention-as-descent."
        )
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
