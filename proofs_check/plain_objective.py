"""Anyone's objective: a function or an object, torch's or numpy's, its arguments held constant or not, differentiated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .measures import norm
from .oracles import richardson_derivative
from .plain_layer import as_tensor, given_to, in_dtype, is_array, name_of

__all__ = ["DETACHED", "FULL", "Slopes", "Target"]

FULL = 64
"""Entries up to which a function without derivatives is differentiated entry by entry; beyond, along directions."""

DIRECTIONS = {"numpy": 16, "torch": 8}
"""Directions otherwise, the first of them the update's own; torch is slower on small arrays."""

DETACHED = "what it detaches"
"""Stands for the arguments that a torch objective detaches inside."""

Names = tuple[str, ...]


@dataclass(frozen=True)
class Slopes:
    """Gradients at one point, flat, for every set of frozen arguments; in the directions of ``rows`` where it is given.

    rows: ``(k, n)``, scaled so that norms of projections estimate norms. uncertain: error of those found by
    differences, relative.
    odds: how far the gradient that the caller gave is from the derivative of the value, relative; NaN if none was.
    """

    gradients: Mapping[Names, Tensor]
    rows: Tensor | None
    uncertain: Mapping[Names, float]
    odds: float

    def view(self, flat: Tensor) -> Tensor:
        """A flat array like x in the same coordinates as the gradients."""
        return flat if self.rows is None else self.rows @ flat


class Target:
    """An objective with its frozen arguments, differentiated in as many ways as there are sets of them.

    ``learn`` finds out what arrays it takes and how many numbers it returns: one for all of x, or one a token set.
    """

    def __init__(self, objective: Any, gradient: Any, frozen: Mapping[str, Any]) -> None:
        objective = in_dtype(objective, torch.float64)
        self.name, self.objective, self.frozen, self.dtype = name_of(objective), objective, dict(frozen), torch.float64
        smooth = getattr(objective, "smooth", None)
        self.nonsmooth = None if smooth is None else getattr(objective, "nonsmooth", None)
        scored: Any = objective if self.nonsmooth is None else smooth
        self._value: Callable[..., Any] = scored.value if callable(getattr(scored, "value", None)) else scored
        own = getattr(scored, "gradient", None)
        self._closed: Callable[..., Any] | None = gradient if gradient is not None else own if callable(own) else None
        if not callable(self._value):
            raise TypeError(
                f"check_descent: objective must be a function of x, or an object with value(x), but is {objective!r}."
            )
        self.kind, self.by_autograd, self.detaches = "torch", True, False
        self._wrapped = 0
        self.unit: tuple[int, ...] = ()
        self.scale = 1.0

    @property
    def subsets(self) -> list[Names]:
        """The sets of frozen arguments, the smallest first."""
        names = list(self.frozen)
        sets = [s for size in range(len(names) + 1) for s in itertools.combinations(names, size)]
        return [*sets, *((*s, DETACHED) for s in sets)] if self.detaches else sets

    @property
    def slow(self) -> bool:
        """Whether gradients are found by differences."""
        return self.detaches or not self.by_autograd

    @property
    def all_names(self) -> Names:
        """Everything frozen."""
        return self.subsets[-1]

    def learn(self, example: Tensor, numpy_first: bool) -> None:
        """Raise unless the objective takes the example; else know how it wants to be called."""
        self.scale = norm(example) / example.numel() ** 0.5 or 1.0
        self.unit = tuple(example.shape)
        result = self._learn_kind(example, numpy_first)
        shape = tuple(result.shape)
        if shape and shape == tuple(example.shape[: len(shape)]) and len(shape) < example.ndim:
            self._learn_unit(example, example.ndim - len(shape))
        elif result.numel() != 1:
            raise ValueError(
                f"check_descent: objective must return one number, or one a token set, but returned the shape {shape} for"
                f" x of shape {tuple(example.shape)}."
            )
        elif example.ndim > 2 and self._adds_up(example, float(result)):
            self.unit = tuple(example.shape[-2:])
        first = example.reshape(-1, *self.unit)[0]
        if not math.isfinite(self.value(first)):
            raise ValueError(
                f"check_descent: objective is {self.value(first)} at the example; it must be finite there."
            )
        if self._closed is not None:
            got = self._closed_at(first)
            if got.shape != first.shape:
                raise ValueError(
                    f"check_descent: the gradient must have the shape of x, {tuple(first.shape)}, but has {tuple(got.shape)}."
                )
        if self.by_autograd:
            self.detaches = self.at_odds_with_reverse_mode(first)
        if self.nonsmooth is not None and not callable(getattr(self.nonsmooth, "prox", None)):
            raise TypeError("check_descent: the nonsmooth part of the objective must have prox(x, step_size).")

    def _learn_kind(self, example: Tensor, numpy_first: bool) -> Tensor:
        """The value at the example: with torch's derivative if it has one, else as a number."""
        problems: list[Exception] = []
        for dtype in (torch.float64, torch.float32):
            self.dtype = dtype
            try:
                with torch.enable_grad():
                    z = example.detach().clone().to(dtype).requires_grad_()
                    value = self._value(z, **self._constants(z, ()))
                if isinstance(value, Tensor) and value.requires_grad:
                    return value.detach().to(torch.float64)
            except Exception as problem:  # it may be numpy's, or raise: then the others are tried
                problems.append(problem)
        self.by_autograd, self.dtype = False, torch.float64
        for kind in ("numpy", "torch") if numpy_first or problems else ("torch", "numpy"):
            self.kind = kind
            try:
                given = given_to(kind, example, self.dtype)
                return as_tensor(np.asarray(self._value(given, **self._constants(given, ())), dtype=np.float64))
            except Exception as problem:
                problems.append(problem)
        self.kind = "torch"
        said = problems[-1] if numpy_first else problems[0]
        raise ValueError(
            f"check_descent: objective must return a number for x of shape {tuple(example.shape)}, but raised"
            f" {type(said).__name__}: {said}"
        ) from said

    def _learn_unit(self, example: Tensor, axes: int) -> None:
        """One number a token set: whether it takes one set without the leading axes, or with axes of one."""
        self.unit = tuple(example.shape[-axes:])
        first = example.reshape(-1, *self.unit)[0]
        for wrapped in (0, example.ndim - axes):
            self._wrapped = wrapped
            try:
                self.value(first)
                return
            except Exception as problem:
                said = problem
        raise ValueError(
            f"check_descent: objective returns one number a token set, but raised {type(said).__name__} for a single set of"
            f" shape {self.unit}: {said}"
        ) from said

    def _adds_up(self, example: Tensor, total: float) -> bool:
        """Whether the value is the sum of those of the token sets: then each is looked at by itself."""
        try:
            parts = [self.value(one) for one in example.reshape(-1, *example.shape[-2:])]
        except Exception:
            return False
        return abs(math.fsum(parts) - total) <= 1e-9 * math.fsum(abs(part) for part in parts)

    def at_odds_with_reverse_mode(self, x: Tensor) -> bool:
        """Whether the derivative of the value, by differences, is another one than reverse mode's: something is detached."""
        if not self.by_autograd or self.detaches:
            return False
        g, rng = self._reverse(x, ()), np.random.default_rng(1)
        for v in (g, *(as_tensor(rng.standard_normal(tuple(x.shape))) for _ in range(3))):
            if norm(v) == 0:
                continue
            v = v / norm(v)
            seen, uncertain = self._along(x, v, ())
            claimed = float((g * v).sum())
            size, close = max(abs(seen), norm(g)), 1e-4 if self.dtype == torch.float64 else 2e-3
            if uncertain <= close * size and abs(seen - claimed) > 10 * close * size:
                return True
        return False

    def value(self, x: Tensor, names: Names = (), at: Tensor | None = None) -> float:
        """The value at one token set, the named arguments held at ``at``."""
        z = given_to(self.kind, x.reshape((1,) * self._wrapped + tuple(x.shape)), self.dtype)
        held = z if at is None else given_to(self.kind, at.reshape(tuple(z.shape)), self.dtype)
        constants = {name: make(held if name in names else z) for name, make in self.frozen.items()}
        value = self._value(z, **constants)
        return float(value.detach() if isinstance(value, Tensor) else np.asarray(value).reshape(()))

    def slopes(self, x: Tensor, update: Tensor, rows: Tensor | None = None, only: Names | None = None) -> Slopes:
        """All gradients at one token set, exactly where there is a derivative, else by differences.

        rows: directions to look along; chosen here where there are too many entries. only: one set of frozen arguments.
        """
        wanted = self.subsets if only is None else [only]
        closed = None if self._closed is None else self._closed_at(x).flatten()
        if not self.slow:
            made = {names: self._reverse(x, names).flatten() for names in wanted}
            return Slopes(made, None, {}, self._odds(closed, made.get(self.all_names)))
        needed = [names for names in wanted if not self._known(names, closed)]
        count = DIRECTIONS[self.kind]
        if rows is None and needed and x.numel() > (FULL if self.kind == "numpy" else count):
            rows = _rows(update.flatten(), count)
        directions = torch.eye(x.numel(), dtype=x.dtype) if rows is None else rows
        gradients: dict[Names, Tensor] = {}
        uncertain: dict[Names, float] = {}
        odds = math.nan
        for names in wanted:
            if names in needed:
                gradients[names], error = self._by_differences(x, directions, names)
                uncertain[names] = error / max(norm(gradients[names]), 1e-300)
                continue
            flat = self._reverse(x, names[:-1]).flatten() if self.by_autograd else closed
            gradients[names] = flat if rows is None or flat is None else rows @ flat  # type: ignore[assignment]
            if names == self.all_names and closed is not None:
                odds = self._odds(closed, flat) if self.by_autograd else self._odds_along(x, closed, names, update)
        return Slopes(gradients, rows, uncertain, odds)

    def _known(self, names: Names, closed: Tensor | None) -> bool:
        """Whether a gradient is had without differences: in reverse mode, or from the caller."""
        if self.by_autograd:
            return DETACHED in names
        return closed is not None and names == self.all_names

    def towards(self, x: Tensor, gradient: Tensor, kappa: float) -> Tensor:
        """The gradient, or with a nonsmooth part the gradient mapping ``(x − prox(x − κ g, κ))/κ``, flat."""
        if self.nonsmooth is None:
            return gradient
        y = x - kappa * gradient.reshape(x.shape)
        shape = (1,) * self._wrapped + tuple(x.shape)
        least = as_tensor(self.nonsmooth.prox(given_to(self.kind, y.reshape(shape), self.dtype), kappa))
        return ((x - least.reshape(x.shape)) / kappa).flatten()

    def _constants(self, z: Any, names: Names, held: Any = None) -> dict[str, Any]:
        return {name: make(held if name in names else z) for name, make in self.frozen.items()}

    def _reverse(self, x: Tensor, names: Names) -> Tensor:
        """Reverse mode, the named arguments detached."""
        shape = (1,) * self._wrapped + tuple(x.shape)
        with torch.enable_grad():
            z = x.detach().to(self.dtype).reshape(shape).clone().requires_grad_()
            held = z.detach().clone()
            value = self._value(z, **self._constants(z, names, held))
            if not value.requires_grad:
                return torch.zeros_like(x, dtype=torch.float64)
            (gradient,) = torch.autograd.grad(value.reshape(()), z, allow_unused=True)
        return torch.zeros_like(x) if gradient is None else as_tensor(gradient).reshape(x.shape)

    def _closed_at(self, x: Tensor) -> Tensor:
        """The caller's own gradient, all arguments frozen."""
        if self._closed is None:
            raise ValueError("check_descent: no gradient was given.")
        shape = (1,) * self._wrapped + tuple(x.shape)
        for kind in dict.fromkeys([self.kind, "torch", "numpy"]):
            given = given_to(kind, x.reshape(shape), self.dtype)
            try:
                back = self._closed(given, **self._constants(given, ()))
            except Exception as problem:
                said = problem
                continue
            if not is_array(back):
                back = np.asarray(back, dtype=np.float64)
            return as_tensor(back).reshape(x.shape) if back.shape == shape else as_tensor(back)
        raise ValueError(f"check_descent: the gradient raised {type(said).__name__}: {said}") from said

    def _along(self, x: Tensor, v: Tensor, names: Names) -> tuple[float, float]:
        """The derivative of the value along v, the named arguments held at x, and its error."""
        share = 1e-2 if self.dtype == torch.float64 else 0.2
        length = share * max(norm(x) / x.numel() ** 0.5, 1e-3 * self.scale)
        return richardson_derivative(lambda t: self.value(x + t * v, names, x), length)

    def _by_differences(self, x: Tensor, rows: Tensor, names: Names) -> tuple[Tensor, float]:
        found, errors = [], []
        for row in rows:
            size = norm(row)
            slope, error = self._along(x, (row / size).reshape(x.shape), names)
            found.append(slope * size)
            errors.append(error * size)
        return torch.tensor(found, dtype=torch.float64), float(np.linalg.norm(errors))

    @staticmethod
    def _odds(closed: Tensor | None, gradient: Tensor | None) -> float:
        if closed is None or gradient is None:
            return math.nan
        return norm(closed - gradient) / max(norm(gradient), norm(closed), 1e-300)

    def _odds_along(self, x: Tensor, closed: Tensor, names: Names, update: Tensor) -> float:
        """The same along three directions, where there is nothing but differences; an error within theirs counts as none."""
        rng, worst = np.random.default_rng(2), 0.0
        drawn = [as_tensor(rng.standard_normal(tuple(x.shape))) for _ in range(2)]
        for v in (*drawn, update.reshape(x.shape)):
            if norm(v) == 0:
                continue
            v = v / norm(v)
            seen, error = self._along(x, v, names)
            off = abs(float(closed @ v.flatten()) - seen)
            size = max(norm(closed), abs(seen), 1e-300)
            worst = max(worst, 0.0 if off <= 8 * error else off / size)
        return worst


def _rows(first: Tensor, count: int) -> Tensor:
    """Orthonormal directions, the first along ``first``; the others scaled to stand for all that is orthogonal to it."""
    n = first.numel()
    rng = np.random.default_rng(3)
    drawn = torch.from_numpy(rng.standard_normal((n, count)))
    if norm(first) > 0:
        drawn[:, 0] = first / norm(first)
    rows = torch.linalg.qr(drawn).Q.mT.contiguous()
    if norm(first) == 0:
        return rows * (n / count) ** 0.5
    rows[1:] *= ((n - 1) / (count - 1)) ** 0.5
    return rows
