"""``check_descent``: bring any function as a layer and any function as its objective; the verdict says how they relate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from .arguments import checked_dtype, checked_example, checked_frozen, checked_heads, checked_step
from .counterexamples import Look
from .drawn import Accepted, Drawn, draw, learn_shapes
from .evidence import Evidence
from .judgement import judge
from .measures import norm
from .plain_layer import Forward, Outcome, difference_between_calls, generators_kept, given_to
from .plain_objective import Names, Target
from .relations import Seen
from .threads import one_thread
from .trial import check_call
from .verdicts import Diagnosis, Finding, snippet_of

__all__ = ["check_descent"]

PROBES = 6
"""Inputs on which reverse mode of the objective is held against differences of its value."""

CASES = 40
"""Inputs tried by default, the example among them."""


@one_thread()
def check_descent(
    forward: Callable[..., Any],
    objective: Any,
    step_size: float | Callable[[Any], Any] | None = None,
    example_input: Any = None,
    *,
    gradient: Callable[..., Any] | None = None,
    frozen: Mapping[str, Callable[[Any], Any]] | None = None,
    heads: int | Tensor | None = None,
    cases: int = CASES,
    seed: int = 0,
    dtype: Any = torch.float64,
) -> Diagnosis:
    """Say how a forward pass relates to gradient descent on an objective; neither needs a class of ours.

    ``forward(x) == x − κ ∇f(x)`` is tried on the example and on inputs drawn around it: other sizes over four orders of
    magnitude, repeated, near-parallel and rank-one tokens, one far token, zero, other numbers of tokens, one token, and
    batch axes, as far as forward and objective accept them; the width is never changed. Where it does not hold, what holds
    instead is looked for: see :class:`Finding`. Nothing that a layer does raises; the diagnosis says it.

    Parameters
    ----------
        forward: torch module, of which a copy in evaluation mode is called, or a function of tensors or numpy arrays.
        objective: f, a function x -> number, or one number a token set; or an object with ``value`` (and ``gradient``);
        or one with ``smooth`` and ``nonsmooth.prox(x, κ)``, for a proximal step. Torch's are differentiated in reverse
        mode, others by extrapolated differences: entry by entry where there are few, else along 16 directions.
        step_size: κ > 0, or a function x -> κ of one token set; None: any positive number, the same for all inputs.
        example_input: an array of a typical shape and size; without it, five tokens of the width ``forward.dim``.
        gradient: ∇f where you have it, held against the derivative of f; with ``frozen`` the one with all held constant.
        frozen: arguments of the objective that are computed from x, ``{"P": weights_of}``: it is called ``f(x, P=…)``,
        and every set of them is tried as held constant and as moving along.
        heads: a number of heads, which share out the features, or orthonormal bases ``(heads, dim, head_dim)``: where
        nothing simpler explains the update, a step size for each head is tried.
        cases: inputs to try. dtype: float64, or float32, which sees errors of a per cent and more; a function that takes
        only float32 is called in that.

    Returns
    -------
        a :class:`Diagnosis`: True only if the layer descends exactly, with the declared step size; print it.

    Raises
    ------
        TypeError, ValueError for arguments that make no sense: an example that is no array of finite numbers, an objective
        that does not return a number at the example, bases of another width, a step size that is not positive.

    >>> import torch
    >>> x = torch.randn(5, 4)
    >>> bool(check_descent(lambda x: x - 0.1 * x, lambda x: 0.5 * (x**2).sum(), 0.1, x))
    True
    >>> check_descent(lambda x: x + 0.1 * x, lambda x: 0.5 * (x**2).sum(), 0.1, x).verdict.name
    'ASCENDS'
    """
    check_call("check_descent", None, cases, seed)
    precision = checked_dtype(dtype)
    if not callable(forward):
        raise TypeError(f"check_descent: forward must be a module or a function of x, but is {forward!r}.")
    if gradient is not None and not callable(gradient):
        raise TypeError(f"check_descent: gradient must be a function of x, but is {gradient!r}.")
    step_size = checked_step(step_size)
    example, numpy_first = checked_example(example_input, forward)
    names = checked_frozen(frozen)
    heads = checked_heads(heads, example.shape[-1])
    with generators_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stranger's layer, or of torch being tried where numpy belongs
        target = Target(objective, gradient, names)
        target.learn(example.to(torch.float64), numpy_first)
        lab = _Lab(Forward(forward, example, numpy_first, precision), target, step_size, example)
        return lab.run(cases, seed, heads)


@dataclass
class _Lab:
    """Forward pass and objective on one table: inputs go in, sets of tokens with updates and gradients come out."""

    forward: Forward
    target: Target
    step_size: float | Callable[[Any], Any] | None
    example: Tensor
    trouble: list[tuple[Tensor, Finding, str, str]] = field(default_factory=list)
    accepted: Accepted | None = None
    dropped: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The lower of the precisions of layer and objective."""
        return min((self.forward.dtype, self.target.dtype), key=lambda dtype: dtype.itemsize)

    def run(self, cases: int, seed: int, heads: int | Tensor | None) -> Diagnosis:
        """Learn the shapes, try the inputs, and judge."""
        example = self.example.detach().to(torch.float64).cpu()
        single = self.dtype == torch.float32
        first = self.forward(example)
        if first.got is None:
            return self._nothing_came_back(Drawn(example, "the input you passed"), first)
        apart, seeded = difference_between_calls(self.forward, example)
        self._check_step(example.reshape(-1, *self.target.unit)[0])
        self.accepted = learn_shapes(self._accepts, example, self.target.unit, self.target.slow)
        inputs = draw(example, self.accepted, cases, seed, single)
        seens = [seen for drawn in inputs for seen in self._see(drawn)]
        generic = [seen.x for seen in seens if seen.drawn.generic]
        if any(self.target.at_odds_with_reverse_mode(x) for x in generic[:: max(1, len(generic) // PROBES)]):
            self.target.detaches = True
            self.trouble.clear()
            self.dropped = 0
            seens = [seen for drawn in inputs for seen in self._see(drawn)]
        evidence = Evidence(
            name=self.forward.name,
            seens=seens,
            trouble=self.trouble,
            inputs=len(inputs),
            target=self.target,
            heads=heads,
            declares=self.step_size is not None,
            accepted=self._accepted_words(),
            dropped=self.dropped,
            apart=apart,
            seeded=seeded,
            towards=self.towards,
            noisy=self._noisy,
            rough=self._rough,
            constant=self._is_constant(inputs),
            look=Look(self.forward, self.target),
        )
        return judge(evidence)

    def towards(self, seen: Seen, frozen: Names, kappa: float) -> Tensor:
        """The gradient; for a proximal step the gradient mapping, at the κ that fits the update best if none is given."""
        g = seen.slopes.gradients[frozen]
        if self.target.nonsmooth is None:
            return g
        if not math.isnan(kappa):
            return self.target.towards(seen.x, g, kappa)
        return self.target.towards(seen.x, g, self._best_kappa(seen, g))

    def _best_kappa(self, seen: Seen, g: Tensor) -> float:
        def off(power: float) -> float:
            kappa = 10.0**power
            return norm(seen.moved + kappa * self.target.towards(seen.x, g, kappa))

        grid = np.linspace(-6, 3, 37)
        best = float(grid[int(np.argmin([off(power) for power in grid]))])
        found = minimize_scalar(off, bounds=(best - 0.25, best + 0.25), method="bounded", options={"xatol": 1e-13})
        return float(10.0**found.x)

    def _see(self, drawn: Drawn) -> list[Seen]:
        """All sets of one input; nothing where nothing came back, which is noted, or where the objective is not finite."""
        if self.dtype == torch.float32:
            drawn = Drawn(drawn.x.float().double(), drawn.words, drawn.code, drawn.generic)
        outcome = self.forward(drawn.x)
        unit = self._unit_of(drawn.x)
        sets = drawn.x.reshape(-1, *unit)
        self._note(drawn, outcome, sets)
        if outcome.got is None or outcome.finding is Finding.NOT_FINITE:
            return []
        got, made = outcome.got.reshape(-1, *unit), []
        for number, (x, y) in enumerate(zip(sets, got, strict=True)):
            flat = (y - x).flatten()
            try:
                if not math.isfinite(self.target.value(x)):
                    raise ValueError("the objective is not finite")
                slopes = self.target.slopes(x, flat)
                kappa = self._kappa(x)
            except Exception:  # outside of the objective's domain nothing is claimed
                self.dropped += 1
                continue
            made.append(Seen(drawn, number, len(sets), x, y, slopes.view(flat), slopes, kappa, self.dtype))
        return made

    def _note(self, drawn: Drawn, outcome: Outcome, sets: Tensor) -> None:
        """Remember what is wrong with what came back; not NaN where the objective itself is not finite."""
        if outcome.finding is Finding.NOT_FINITE:
            try:
                if not all(math.isfinite(self.target.value(x)) for x in sets):
                    return
            except Exception:  # outside of the objective's domain
                return
        if outcome.finding is not None:
            self.trouble.append((drawn.x, outcome.finding, outcome.words, drawn.code))
        if outcome.changed:
            words = "it changes its input in place: work on a copy, or the residual is not what came in."
            self.trouble.append((drawn.x, Finding.CHANGES_INPUT, words, drawn.code))

    def _again(self, seen: Seen, frozen: Names, amount: float, seed: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Tokens, update and gradient of the same set after all entries have moved by ``amount`` of themselves."""
        nudge = np.random.default_rng(seed).standard_normal(tuple(seen.drawn.x.shape))
        moved = seen.drawn.x * (1 + amount * torch.from_numpy(nudge))
        outcome = self.forward(moved)
        if outcome.got is None:
            return None
        unit = tuple(seen.x.shape)
        x, y = (t.reshape(-1, *unit)[seen.set_number] for t in (moved, outcome.got))
        flat = (y - x).flatten()
        slopes = self.target.slopes(x, flat, seen.slopes.rows, only=frozen)
        return x, slopes.view(flat), slopes.gradients[frozen]

    def _change_of_error(self, seen: Seen, frozen: Names, kappa: float, amount: float) -> float:
        """How much ``update + κ gradient`` changes, relative to itself, when x moves by ``amount`` of itself, twice.

        The smaller of the two changes: rounding is another one everywhere, what holds for equal tokens only is not.
        """
        kappa = kappa if math.isfinite(kappa) else 0.0
        errors = [seen.moved + kappa * self.towards(seen, frozen, seen.kappa)]
        for seed in range(2):
            moved = self._again(seen, frozen, amount, seed)
            if moved is None:
                return 0.0
            x, u, g = moved
            errors.append(u + kappa * (g if self.target.nonsmooth is None else self.target.towards(x, g, kappa)))
        here, one, other = errors
        return min(norm(one - here), norm(other - one)) / max(norm(here), 1e-300)

    def _noisy(self, seen: Seen, frozen: Names, kappa: float) -> bool:
        amount = 4e3 * float(torch.finfo(seen.dtype).eps)
        if norm(seen.moved) > 0:
            return self._change_of_error(seen, frozen, kappa, amount) >= 0.3
        # A gradient where nothing moves: is it rounding?
        again = [self._again(seen, frozen, amount, seed) for seed in range(2)]
        g = [seen.slopes.gradients[frozen], *(moved[2] for moved in again if moved is not None)]
        return len(g) == 3 and min(norm(g[1] - g[0]), norm(g[2] - g[1])) >= 0.1 * norm(g[0])

    def _rough(self, seen: Seen, frozen: Names, kappa: float) -> str:
        """The precision in which the update seems to be computed, if its error is another one a few roundings away."""
        for name, kind in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            if kind != seen.dtype and self._change_of_error(seen, frozen, kappa, 4 * torch.finfo(kind).eps) >= 0.3:
                return name
        return ""

    def _is_constant(self, inputs: Sequence[Drawn]) -> bool:
        """Whether the layer returns the same for all inputs of the example's shape."""
        shape = tuple(self.example.shape)
        alike = [drawn.x for drawn in inputs if tuple(drawn.x.shape) == shape]
        back = [self.forward(x).got for x in alike[:4]]
        seen = [got for got in back if got is not None]
        return len(seen) > 1 and all(torch.equal(got, seen[0]) for got in seen[1:])

    def _accepts(self, x: Tensor) -> bool:
        if not self.forward.accepts(x):
            return False
        try:
            first = x.reshape(-1, *self._unit_of(x))[0]
            self.target.slopes(first, first.flatten(), only=self.target.all_names)
            self._kappa(first)
            return math.isfinite(self.target.value(first))
        except Exception:  # an objective for one number of tokens refuses another
            return False

    def _unit_of(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape[x.ndim - len(self.target.unit) :])

    def _kappa(self, x: Tensor) -> float:
        if not callable(self.step_size):
            return math.nan if self.step_size is None else float(self.step_size)
        for kind in dict.fromkeys([self.forward.kind, "torch", "numpy"]):
            try:
                return float(self.step_size(given_to(kind, x, self.forward.dtype)))
            except Exception as problem:
                said = problem
        raise ValueError(f"check_descent: step_size(x) raised {type(said).__name__}: {said}") from said

    def _check_step(self, x: Tensor) -> None:
        kappa = self._kappa(x)
        if self.step_size is not None and not (0 < kappa < math.inf):
            raise ValueError(f"check_descent: step_size must be positive and finite, but is {kappa} at the example.")

    def _accepted_words(self) -> str:
        return "" if self.accepted is None else self.accepted.words

    def _nothing_came_back(self, drawn: Drawn, outcome: Outcome) -> Diagnosis:
        x = drawn.x.numpy()
        return Diagnosis(
            self.forward.name,
            outcome.finding or Finding.WRONG_OUTPUT,
            (outcome.words, f"That was on {drawn.words}."),
            cases=1,
            counterexample=x,
            snippet=snippet_of(x, None, None, drawn.code),
        )
