"""How it is minimised by a network: steps, the unroller, and the attention layers that are steps."""

import objectives as _objectives

if not hasattr(_objectives, "SubspaceCodingRate"):
    raise ImportError(
        f"unrolling needs its sister package 'objectives', but found {_objectives.__file__}, which is another module "
        "of that name. Rename that file, or use a virtual environment of its own for attention-as-descent."
    )

from .base import UnrolledLayer
from .layers.cbsa import CBSA
from .layers.mssa import MSSA
from .representatives import (
    SVD,
    Axes,
    GridPool,
    LearnedQueries,
    OfficialGridPool,
    Representatives,
    SequencePool,
    Strided,
    Tokens,
)
from .steps import ArmijoStep, ExactLineSearchStep, GradientStep, Step
from .unroll import Unrolled

__all__ = [
    "CBSA",
    "MSSA",
    "SVD",
    "ArmijoStep",
    "Axes",
    "ExactLineSearchStep",
    "GradientStep",
    "GridPool",
    "LearnedQueries",
    "OfficialGridPool",
    "Representatives",
    "SequencePool",
    "Step",
    "Strided",
    "Tokens",
    "Unrolled",
    "UnrolledLayer",
]
