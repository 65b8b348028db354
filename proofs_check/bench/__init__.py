"""Timings that may be believed: after the claims hold, interleaved, beside the machine's own limit in the same run."""

from .subjects import STEMS, Contestant, Sizes, Stem
from .timing import Measured, measure_stem

__all__ = ["STEMS", "Contestant", "Measured", "Sizes", "Stem", "measure_stem"]
