"""The one tolerance rule, with its reasons. There is no environment switch and no per-claim constant."""

from __future__ import annotations

import numpy as np

__all__ = ["MEANINGFUL", "SAFETY", "tolerance"]

SAFETY = 256.0
"""C: rounding errors of a few hundred operations add up to some tens of eps; a wrong formula is off by 1e-2 or more."""

MEANINGFUL = 5e-3
"""A tolerance above this could not tell a step that is 1 % too long: such a case is no evidence."""


def tolerance(dtype: str, condition: float = 1.0, size_over_displacement: float = 0.0) -> float:
    """``C · eps(dtype) · condition · (1 + ‖x‖ / ‖displacement‖)``, for errors relative to the displacement.

    A step of length ‖Δ‖ on tokens of length ‖x‖ is stored in numbers as large as x, so that its relative error is
    eps · ‖x‖/‖Δ‖ even if it was computed perfectly. ``condition`` is that of the system solved on the way.

    >>> tolerance("float64") < 1e-13 < tolerance("float32")
    True
    """
    return SAFETY * float(np.finfo(dtype).eps) * max(condition, 1.0) * (1.0 + size_over_displacement)
