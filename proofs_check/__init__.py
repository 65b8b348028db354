"""Whether it is so: claims, oracles, mutants, and the checks that anyone can put to a layer of their own."""

import objectives as _objectives

if not hasattr(_objectives, "SubspaceCodingRate"):
    raise ImportError(
        f"proofs_check needs its sister package 'objectives', but found {_objectives.__file__}, which is another module"
        " of that name. Rename that file, or use a virtual environment of its own for attention-as-descent."
    )

from .check import check_layer, descent_error
from .claim import Claim, Comparison, Measurement, Mutant, Verdict
from .claims import CLAIMS, find
from .objective_check import check_objective
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
    "check_layer",
    "check_objective",
    "descent_error",
    "find",
    "run_claim",
]
