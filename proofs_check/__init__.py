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
    from .objective_check import check_objective
    from .plugins import all_claims
    from .run import Campaign, run_claim
    from .strategies import Case
    from .trial import CheckResult, ClaimFailed

__all__ = [
    "CLAIMS",
    "Campaign",
    "Case",
    "CheckResult",
    "Claim",
    "ClaimFailed",
    "Comparison",
    "Measurement",
    "Mutant",
    "Verdict",
    "all_claims",
    "check_layer",
    "check_objective",
    "descent_error",
    "find",
    "run_claim",
]

_HOMES = {
    "check": ("check_layer", "descent_error"),
    "claim": ("Claim", "Comparison", "Measurement", "Mutant", "Verdict"),
    "claims": ("CLAIMS", "find"),
    "objective_check": ("check_objective",),
    "plugins": ("all_claims",),
    "run": ("Campaign", "run_claim"),
    "strategies": ("Case",),
    "trial": ("CheckResult", "ClaimFailed"),
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
