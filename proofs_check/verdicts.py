"""What is said of a layer that knows nothing of our classes: a named verdict, sentences, numbers, the smallest input."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import InputError

__all__ = ["Counterexample", "Diagnosis", "Finding", "load_counterexample", "snippet_of"]

Array = NDArray[np.float64]

PRINTED = 300
"""Entries up to which an array is written out in a snippet."""


class Finding(enum.StrEnum):
    """The verdicts of ``check_descent``; only the first is a pass."""

    DESCENDS = "descends exactly"
    OTHER_STEP = "descends exactly with another step size"
    ASCENDS = "ascends"
    FROZEN = "is the gradient with arguments frozen"
    PER_HEAD = "is proportional per head"
    MISTAKE = "is the gradient after a common mistake"
    SOME_TOKENS = "differs on some tokens only"
    SOME_FEATURES = "differs on some features only"
    PRECISION = "loses precision"
    DIRECTION = "is a descent direction but not the step"
    NO_DESCENT = "is not a descent direction"
    CONSTANT = "does not depend on x"
    NOT_FINITE = "returns NaN or infinite numbers"
    RAISES = "raises"
    STILL = "moves nothing"
    CHANGES_INPUT = "changes its input"
    CHANGES_ITS_MIND = "returns another result for the same input"
    WRONG_OUTPUT = "returns something else than an array like x"
    AT_ODDS = "the gradient is not that of the objective"
    NO_EVIDENCE = "could not be told"


@dataclass(frozen=True, eq=False)
class Counterexample:
    """An input, the update there, the gradient of the objective there, and the verdict that they stand for.

    update: forward(x) − x. gradient: of the objective, nothing held constant. words: the diagnosis in sentences. code:
    Python that makes x again, or an empty string.
    """

    x: Array
    update: Array
    gradient: Array
    verdict: Finding
    words: str = ""
    code: str = ""

    @property
    def cosine(self) -> float:
        """The cosine of the update with −∇f; NaN where either is zero."""
        return cosine_of(self.update, -self.gradient)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What ``check_descent`` has found. True only if the forward pass is the step with the declared step size.

    Without a declared step size any positive one will do, as long as it is the same on all inputs.

    verdict: a :class:`Finding`. sentences: what was seen, in words; ``str`` joins them. cases: inputs tried. evidence:
    sets of tokens on which a wrong step would have shown. sets: all of them. cosine_min, cosine_median: of the update
    with −∇f. step_min, step_median, step_max: κ as projected, ``−⟨update, ∇f⟩/‖∇f‖²``. declared: the step size declared,
    the median if it depends on x. worst_error: relative to the displacement ‖κ∇f‖, with κ as in the verdict. frozen: the
    arguments held constant in the gradient that was matched. dependence: what the step size depends on. factors: one
    step size a head. mistake: which one. counterexample, update, gradient: the smallest input that shows what is wrong,
    what the layer adds to it, and the gradient there. snippet: the same as lines to paste. accepted: what was learned of
    the inputs that are accepted.
    """

    name: str
    verdict: Finding
    sentences: tuple[str, ...] = ()
    cases: int = 0
    sets: int = 0
    evidence: int = 0
    cosine_min: float = math.nan
    cosine_median: float = math.nan
    step_min: float = math.nan
    step_median: float = math.nan
    step_max: float = math.nan
    declared: float | None = None
    worst_error: float = math.nan
    tolerance: float = math.nan
    frozen: tuple[str, ...] = ()
    dependence: str = ""
    factors: tuple[float, ...] = ()
    mistake: str = ""
    accepted: str = ""
    counterexample: Array | None = field(default=None, repr=False)
    update: Array | None = field(default=None, repr=False)
    gradient: Array | None = field(default=None, repr=False)
    snippet: str = field(default="", repr=False)
    code: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return self.verdict is Finding.DESCENDS

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.sentences[0] if self.sentences else self.verdict.value + '.'}"]
        lines += [f"  {sentence}" for sentence in self.sentences[1:]]
        if self.snippet:
            lines += ["  The smallest input that shows it, to paste:"]
            lines += [f"    {line}" for line in self.snippet.splitlines()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; arrays become nested lists, NaN and infinities None, since JSON has none."""
        entry = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**{name: plain(value) for name, value in entry.items()}, "holds": bool(self)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the counterexample to an .npz: arrays and a JSON line, never pickled, renamed into its place when whole.

        Raises
        ------
            ValueError where there is none: nothing is wrong, or nothing came back.
        """
        if self.counterexample is None:
            raise ValueError(f"Diagnosis: {self.name} {self.verdict.value}: there is no counterexample to save.")
        place = Path(path)
        meta = {"verdict": self.verdict.name, "words": " ".join(self.sentences), "code": self.code}
        nothing = np.full(self.counterexample.shape, np.nan)
        update = nothing if self.update is None else self.update
        gradient = nothing if self.gradient is None else self.gradient
        beside = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            with open(beside, "wb") as file:
                np.savez(
                    file,
                    check_descent=np.array(json.dumps(meta)),
                    x=self.counterexample,
                    update=update,
                    gradient=gradient,
                )
            os.replace(beside, place)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        return place


def load_counterexample(path: str | os.PathLike[str]) -> Counterexample:
    """Read back what :meth:`Diagnosis.save` wrote.

    Raises
    ------
        InputError, a ValueError, for a file that is missing or is none of ours; nothing in it is executed.
    """
    try:
        # Opened here: numpy leaves a file open whose archive it cannot read.
        with open(os.fspath(path), "rb") as file, np.load(file, allow_pickle=False) as archive:
            meta: dict[str, Any] = json.loads(str(archive["check_descent"]))
            arrays = [np.asarray(archive[name], dtype=np.float64) for name in ("x", "update", "gradient")]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"the shapes of its arrays differ: {', '.join(str(array.shape) for array in arrays)}")
        x, update, gradient = arrays
        return Counterexample(x, update, gradient, Finding[meta["verdict"]], str(meta["words"]), str(meta["code"]))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except Exception as problem:
        raise InputError(
            f"{path}: not a counterexample of check_descent ({type(problem).__name__}: {problem})."
        ) from None


def snippet_of(x: Array, update: Array | None, gradient: Array | None, code: str) -> str:
    """Lines that hold the input, what was seen there, and print the cosine of the two; they need numpy alone.

    Large inputs are made again from their case, so that those lines need this package; large inputs of the caller's
    own are named only.
    """
    written = x.size <= PRINTED
    if not written and not code:
        return f"# x, of shape {x.shape}, is Diagnosis.counterexample; .save(path) writes it."
    if not written:
        return f"from proofs_check import Case\nx = {code}.numpy()\n# forward(x) - x is Diagnosis.update"
    lines = ["import numpy as np", f"x = {text_of(x)}"]
    if update is not None:
        lines.append(f"update = {text_of(update, 9)}  # forward(x) - x, to nine digits")
    if gradient is not None:
        lines.append(f"gradient = {text_of(gradient, 9)}  # of the objective at x, nothing held constant")
    if update is not None and gradient is not None and np.any(update) and np.any(gradient):
        lines.append(
            "print(-(update * gradient).sum() / (np.linalg.norm(update) * np.linalg.norm(gradient)))  # cosine with descent"
        )
    elif update is not None:
        lines.append("print(np.linalg.norm(update))  # how far it moves")
    return "\n".join(lines)


def text_of(array: Array, digits: int = 17) -> str:
    """The array as Python, ``np.array([…])``, to so many digits; 17 keep every number as it is."""
    rounded = [value if digits >= 17 else float(f"{value:.{digits}g}") for value in array.ravel().tolist()]
    listed = repr(np.array(rounded).reshape(array.shape).tolist())
    if not bool(np.isfinite(array).all()):
        listed = listed.replace("nan", "np.nan").replace("inf", "np.inf")
    return f"np.array({listed})"


def cosine_of(a: Array, b: Array) -> float:
    """⟨a, b⟩ / (‖a‖‖b‖), without under- or overflow; NaN where either is zero."""
    sizes = [float(np.abs(array).max(initial=0.0)) for array in (a, b)]
    if not all(0 < size < math.inf for size in sizes):
        return math.nan
    a, b = a / sizes[0], b / sizes[1]
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def plain(value: Any) -> Any:
    """What JSON can hold: enumerations by name, arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Finding):
        return value.name
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
