"""What the pytest plugin does with the layer that a test returns: choose the check, and say what it has found."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .check import check_layer
from .strategies import Case
from .trial import ClaimFailed

__all__ = ["Found", "Refused", "check"]


class Refused(ValueError):
    """What the test asks for makes no sense; the message says what would."""


@dataclass(frozen=True)
class Found:
    """One check of one layer: whether it holds, in a word and in many. result: what the check returned, if it did."""

    name: str
    holds: bool
    verdict: str
    words: str
    objective: str
    step_size: str
    result: Any = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the numbers of the result; null where a number is not known or not finite."""
        entry = {key: getattr(self, key) for key in ("name", "holds", "verdict", "words", "objective", "step_size")}
        for key in ("cases", "evidence", "worst_error", "tolerance"):
            value = getattr(self.result, key, None)
            # The error of a step that is not the one declared is that of whatever explains it: a verdict, not a measure.
            known = value is not None and math.isfinite(value) and (self.holds or key in ("cases", "evidence"))
            entry[key] = value if known else None
        return entry


def check(made: Any, options: Mapping[str, Any]) -> Found:
    """Check that a layer or forward callable is the descent step that it declares, or that ``options`` do.

    A layer with ``objective_at`` and no objective in the options goes to :func:`check_layer`; so does anything with an
    objective that is a function x -> object, which is how auxiliaries are held constant at x. All else goes to
    :func:`check_descent`.

    Raises
    ------
        Refused where there is nothing to check, or options contradict each other.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if inspect.isclass(made):
        raise Refused(f"the test returned the class {made.__name__}; return an instance, or mark the class itself.")
    if not callable(made):
        raise Refused(f"the test returned {made!r}; return the layer or the forward callable.")
    dtype = _dtype(given.pop("dtype", torch.float64))
    x = _tokens(given.pop("tokens", None), given.get("seed", 0))
    settings: dict[str, Any] = {name: given.pop(name) for name in ("cases", "seed") if name in given}
    objective, step_size = given.pop("objective", None), given.pop("step_size", None)
    declares = callable(getattr(made, "objective_at", None))
    if objective is None and not declares:
        raise Refused(f"{_name(made)} declares no objective_at(x); give objective=….")
    factory = objective is not None and _is_factory(objective, made, x)
    if factory and step_size is None:
        raise Refused(
            "an objective that is a function x -> object holds what it computes at x constant: give step_size=…, too."
        )
    try:
        if objective is None or factory:
            if given:
                raise Refused(f"{', '.join(given)} is of use only with an objective that is an object or x -> number.")
            layer = made if objective is None and step_size is None else _declared(made, objective, step_size)
            return _by_layer(layer, _name(made), x, dtype, settings)
        return _by_descent(made, objective, step_size, x, dtype, settings | given)
    except (TypeError, ValueError) as problem:
        if str(problem).startswith(("check_layer: ", "check_descent: ")):
            raise Refused(str(problem)) from None
        raise


def _by_layer(layer: Any, name: str, x: Tensor | None, dtype: torch.dtype, settings: Mapping[str, Any]) -> Found:
    step = getattr(layer, "step_size", None)
    about = (_stated(layer, x), f"{step:g}" if isinstance(step, (int, float)) else "as declared")
    try:
        result = check_layer(layer, x, dtype=dtype, **settings)
    except ClaimFailed as failure:
        return Found(name, False, "is not the declared step", str(failure), *about)
    return Found(name, True, "descends exactly", str(result), *about, result)


def _by_descent(
    made: Any, objective: Any, step_size: Any, x: Tensor | None, dtype: torch.dtype, settings: Mapping[str, Any]
) -> Found:
    from .descent_check import check_descent

    if (
        step_size is None
        and not inspect.isfunction(made)
        and isinstance(getattr(made, "step_size", None), (int, float))
    ):
        step_size = made.step_size
    result = check_descent(made, objective, step_size, x, dtype=dtype, **settings)
    verdict = str(getattr(result, "verdict", "descends exactly" if result else "is not the step"))
    step = "any" if step_size is None else f"{step_size:g}" if isinstance(step_size, (int, float)) else _name(step_size)
    name = str(getattr(result, "name", _name(made)))
    return Found(name, bool(result), verdict, str(result), _name(objective), step, result)


class _Declared(nn.Module):
    """A forward callable with the declaration that the test makes for it."""

    def __init__(self, made: Any, objective_at: Any, step_size: Any) -> None:
        super().__init__()
        self.made = made
        self._objective_at = made.objective_at if objective_at is None else objective_at
        self.step_size = step_size
        for place, function in enumerate((made, self._objective_at, step_size)):
            owner = getattr(function, "__self__", None)
            if isinstance(owner, nn.Module):  # so that its parameters follow into the dtype of the check
                self.add_module(f"owner_{place}", owner)
        bases = getattr(made, "U", None)
        dim = getattr(made, "dim", bases.shape[-2] if isinstance(bases, Tensor) and bases.ndim == 3 else None)
        for name, value in (("dim", dim), ("token_count", getattr(made, "token_count", None))):
            if value is not None:
                setattr(self, name, value)

    def objective_at(self, x: Tensor) -> Any:
        return self._objective_at(x)

    def forward(self, x: Tensor) -> Any:
        return self.made(x)


def _declared(made: Any, objective_at: Any, step_size: Any) -> nn.Module:
    """Named like what it holds, since messages name it."""
    kind: Any = type(_name(made), (_Declared,), {})
    return kind(made, objective_at, step_size)


def _is_factory(objective: Any, made: Any, x: Tensor | None) -> bool:
    """Whether an objective is a function x -> object with a value, rather than x -> number or the object itself."""
    if any(callable(getattr(objective, name, None)) for name in ("value", "gradient")) or hasattr(objective, "smooth"):
        return False
    if not callable(objective):
        raise Refused(
            f"objective must be an object with value(x), a function x -> number or x -> object, but is {objective!r}."
        )
    dim = getattr(made, "dim", None)
    if x is None and not isinstance(dim, int):
        raise Refused(
            f"the width of the tokens of {_name(made)} is not known: give tokens=(count, dim), or an example."
        )
    probe = x if x is not None else Case(heads=1, head_dim=int(dim or 1)).x()
    for precision in (torch.float64, torch.float32):  # parameters of the objective may still be in single precision
        try:
            found = objective(probe.to(precision, copy=True))
        except Exception:  # what it raises is reported by the check
            continue
        return callable(getattr(getattr(found, "smooth", found), "value", None))
    return False


def _tokens(given: Any, seed: int) -> Tensor | None:
    """The example: a tensor, an array, a function that makes one, or its shape (tokens, dim)."""
    if given is None or isinstance(given, Tensor):
        return given
    if callable(given):
        return _tokens(given(), seed)
    if isinstance(given, np.ndarray):
        return torch.from_numpy(given)
    if isinstance(given, (tuple, list)) and len(given) >= 2 and all(type(n) is int and n > 0 for n in given):
        *batch, count, dim = given
        drawn = Case(tokens=count, heads=1, head_dim=dim, batch=math.prod(batch), seed=seed).x()
        return drawn.reshape(*given)
    raise Refused(f"tokens must be an array, a function that makes one, or a shape (count, dim), but is {given!r}.")


def _dtype(given: Any) -> torch.dtype:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype):
        raise Refused(f"dtype must be torch.float64 or torch.float32, but is {given!r}.")
    return found


def _name(thing: Any) -> str:
    own = getattr(thing, "__name__", None)
    return str(own) if own else type(thing).__name__.removeprefix("Parametrized")


def _stated(layer: Any, x: Tensor | None) -> str:
    """The name of the objective that a layer declares, where it can be told without a check."""
    try:
        dim = x.shape[-1] if x is not None else layer.dim
        point = x if x is not None else torch.ones(getattr(layer, "token_count", None) or 5, dim)
        with torch.no_grad():
            return type(layer.objective_at(point.to(next(iter(layer.parameters()), point).dtype))).__name__
    except Exception:  # the check says what is wrong with it
        return "objective_at(x)"
