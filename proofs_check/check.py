"""Checks for anyone's layer or objective: one line, a verdict in words, and the smallest input that shows it."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .diagnosis import diagnose
from .measures import norm
from .oracles import richardson_derivative, taylor_curve, taylor_slope
from .strategies import KINDS_OF_TOKENS, Case
from .threads import one_thread
from .tolerance import tolerance

__all__ = ["CheckResult", "ClaimFailed", "check_layer", "check_objective", "descent_error"]

CONDITION = 1e6
"""A stranger's layer does not say how well conditioned it is; β‖x‖² reaches about this on the inputs drawn here."""

DOUBTFUL = 1e-5
"""Errors between the tolerance and this may be rounding of a worse condition: they are no evidence for the layer."""


class ClaimFailed(AssertionError):
    """A layer or an objective is not what it declares; the message says what was seen."""


@dataclass
class CheckResult:
    """What a check that passed has seen: numerical agreement on so many cases, which is not a proof.

    worst_error is relative to the displacement (layers) or the gradient (objectives); slope is the median slope of
    the Taylor remainder, 2 for a right gradient; curve one remainder curve.
    """

    name: str
    cases: int
    evidence: int
    worst_error: float
    tolerance: float
    slope: float = math.nan
    curve: list[tuple[float, float]] = field(default_factory=list)

    def __str__(self) -> str:
        slope = "" if math.isnan(self.slope) else f", Taylor slope {self.slope:.2f}"
        return (
            f"{self.name}: holds on {self.evidence} of {self.cases} cases, worst error {self.worst_error:.1e}"
            f" (tolerance {self.tolerance:.1e}){slope}"
        )


def descent_error(layer: nn.Module, x: Tensor) -> float:
    """``‖layer(x) − (x − κ∇f(x))‖ / ‖κ∇f(x)‖``, f = ``layer.objective_at(x)``: the number behind ``check_layer``.

    The gradient is reverse mode of the objective's *value*. Infinite if the layer moves where the objective does
    not; zero if neither moves. Of a batch, the largest.
    """
    _contract_of(layer)
    trial = _Trial.of(layer, x)
    return trial.error


@one_thread()
def check_layer(
    layer: nn.Module,
    x: Tensor | None = None,
    *,
    cases: int = 48,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> CheckResult:
    """Check that a layer's forward pass is the descent step that it declares; any module with the contract will do.

    The contract: ``layer.objective_at(x)`` returns an object with ``value(x)`` and ``gradient(x)``, auxiliaries held
    constant; and a step size as ``layer.step_size_at(x)`` or ``layer.step_size``. Then
    ``layer(x) == x − κ ∇f(x)`` is tried, on a copy of the layer in float64, on structured and random tokens of many
    scales, against reverse mode of ``value``, the closed-form ``gradient`` and differences.

    Parameters
        x: tokens of yours, ``(..., tokens, dim)``; also says the only number of tokens to draw. Without it the width
        is read from ``layer.dim`` (or the bases U) and the number of tokens varies, unless ``layer.token_count``
        fixes it.
    Returns
        a CheckResult; print it.
    Raises
        ClaimFailed with a diagnosis and the smallest input that shows it; TypeError if the contract is not there.

    >>> from unrolling import MSSA
    >>> check_layer(MSSA(dim=6, heads=2)).evidence > 30
    True
    """
    _contract_of(layer)
    name, layer = type(layer).__name__.removeprefix("Parametrized"), _copy_of(layer, dtype)
    dim, count = _width_of(layer, x)
    trials: list[tuple[Case | None, _Trial]] = []
    inputs: list[tuple[Case | None, Tensor]] = [(None, x.to(dtype))] if x is not None else []
    inputs += [(case, case.x().to(dtype)) for case in _cases(dim, count, cases, seed)]
    for case, tokens in sorted(inputs, key=lambda pair: pair[1].numel()):
        try:
            trials.append((case, _Trial.of(layer, tokens)))
        except ClaimFailed as failure:
            raise ClaimFailed(f"{name}: {failure}\n{_where(case, tokens)}") from None
        except Exception as problem:
            raise ClaimFailed(
                f"{name}: raised {type(problem).__name__}: {problem}\n{_where(case, tokens)}\n"
                "  If the layer takes one number of tokens only, pass such an x or set layer.token_count."
            ) from problem
    wrong = [(case, trial) for case, trial in trials if trial.wrong]
    if wrong:
        generic = [t for c, t in wrong if c is None or (c.kind == "gaussian" and c.tokens > 2 and not c.batch)]
        typical = next((t for t in reversed(generic) if torch.isfinite(t.got).all()), wrong[0][1])
        case, smallest = wrong[0]
        raise ClaimFailed(
            f"{name}: the forward pass is not the declared step on {len(wrong)} of {len(trials)} inputs.\n"
            f"  {diagnose(layer, typical)}\n"
            f"  Smallest input: error {smallest.error:.3g} of the displacement, tolerance {smallest.allowed:.3g}.\n"
            f"{_where(case, smallest.x)}"
        )
    evident = [trial for _, trial in trials if trial.evidence]
    if 2 * len(evident) < len(trials):
        raise ClaimFailed(
            f"{name}: only {len(evident)} of {len(trials)} inputs could have told a right layer from a wrong one: on the"
            " others neither the layer nor its objective moves, or rounding drowns the step. Is the step size zero?"
        )
    worst = max(evident, key=lambda trial: trial.error / trial.allowed)
    slopes = [trial.slope for trial in evident if not math.isnan(trial.slope)]
    longest = max(evident, key=lambda trial: len(trial.curve))
    return CheckResult(
        name, len(trials), len(evident), worst.error, worst.allowed, _median(slopes), longest.curve
    )


@one_thread()
def check_objective(
    objective: Any, x: Tensor | None = None, *, dim: int | None = None, cases: int = 48, seed: int = 0
) -> CheckResult:
    """Check that ``objective.gradient`` is the gradient of ``objective.value``, and its smoothness constant true.

    Reverse mode, differences with an error estimate, and the Taylor slope; ‖∇f(a) − ∇f(b)‖ ≤ L‖a − b‖ where
    ``lipschitz`` gives an L that is global. Nothing but ``value`` and ``gradient`` is needed.

    Parameters
        x: tokens of yours; without it the width is ``dim``, or read from U or keys, and the number of tokens from P.
    Raises
        ClaimFailed with what was seen and the smallest input; TypeError without the two methods.

    >>> from objectives import CodingRate
    >>> check_objective(CodingRate(epsilon=0.5)).slope > 1.9
    True
    """
    for method in ("value", "gradient"):
        if not callable(getattr(objective, method, None)):
            raise TypeError(f"check_objective: {type(objective).__name__} has no method {method}(x).")
    name = type(objective).__name__
    U, P, keys = (getattr(objective, field_name, None) for field_name in ("U", "P", "keys"))
    if x is not None:
        dim, count = x.shape[-1], x.shape[-2]
    else:
        known = U.shape[-2] if isinstance(U, Tensor) else keys.shape[-1] if isinstance(keys, Tensor) else None
        dim, count = dim or known or 4, P.shape[-1] if isinstance(P, Tensor) else None
    wide = next((t.dtype for t in (U, P, keys) if isinstance(t, Tensor)), torch.float64)
    inputs: list[tuple[Case | None, Tensor]] = [(None, x)] if x is not None else []
    inputs += [(case, case.x().to(wide)) for case in _cases(dim, count, cases, seed)]
    evidence, worst, slopes, longest = 0, (0.0, 1.0), [], []
    for case, tokens in sorted(inputs, key=lambda pair: pair[1].numel()):
        problem, seen = _gradient_problem(objective, tokens, seed)
        if problem:
            raise ClaimFailed(f"{name}: {problem}\n{_where(case, tokens, 'objective.gradient(x)')}")
        if seen is None:
            continue
        evidence += 1
        error, allowed, curve = seen
        worst = max(worst, (error, allowed), key=lambda pair: pair[0] / pair[1])
        slopes.append(taylor_slope(curve))
        longest = max(longest, curve, key=len)
    if 2 * evidence < len(inputs):
        raise ClaimFailed(f"{name}: only {evidence} of {len(inputs)} inputs had a gradient to check.")
    known_slopes = [slope for slope in slopes if not math.isnan(slope)]
    return CheckResult(name, len(inputs), evidence, *worst, _median(known_slopes), longest)


@dataclass
class _Trial:
    """One input: what the layer did, what it declared, and how far apart they are."""

    x: Tensor
    got: Tensor
    want: Tensor
    objective: Any
    kappa: Tensor
    error: float
    allowed: float
    evidence: bool
    reason: str = ""
    slope: float = math.nan
    curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        return not self.error <= max(self.allowed, DOUBTFUL)

    @classmethod
    def of(cls, layer: Any, x: Tensor) -> _Trial:
        with torch.no_grad():
            got = layer(x)
        if not isinstance(got, Tensor) or got.shape != x.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise ClaimFailed(f"a step keeps the shape of the tokens, {tuple(x.shape)}, but the layer returned {shape}.")
        objective, kappa = layer.objective_at(x), _step_size(layer, x)
        gradient = _reverse_mode(objective, x)
        closed = objective.gradient(x).detach()
        rule = layer.step_rule() if callable(getattr(layer, "step_rule", None)) else None
        plain = rule is None or type(rule).__name__ == "GradientStep"
        over = kappa[..., None, None] if kappa.ndim else kappa
        want = x - over * gradient if plain else rule(objective, x, kappa).detach()  # type: ignore[misc]
        error = allowed = 0.0
        evidence = True
        for g, w, z in zip(*(t.reshape(-1, *x.shape[-2:]) for t in (got, want, x)), strict=True):
            moved = norm(w - z)
            if moved == 0:
                error, evidence = max(error, 0.0 if norm(g - z) == 0 else math.inf), False
                continue
            one = norm(g - w) / moved
            error = one if math.isnan(one) else max(error, one)
            allowed = max(allowed, tolerance(str(x.dtype).split(".")[1], CONDITION, norm(z) / moved))
        trial = cls(x, got, want, objective, kappa, error, max(allowed, 1e-300), evidence)
        trial._hold_the_objective_to_itself(gradient, closed)
        trial.evidence = trial.evidence and trial.error <= trial.allowed and trial.allowed <= 1e-3
        return trial

    def _hold_the_objective_to_itself(self, gradient: Tensor, closed: Tensor) -> None:
        size = norm(gradient)
        if size == 0 or self.x.dtype != torch.float64:
            return
        off = norm(closed - gradient) / size
        if not off <= DOUBTFUL:
            raise ClaimFailed(
                f"the objective {type(self.objective).__name__} is at odds with itself: its gradient differs from the"
                f" derivative of its value by {off:.3g} of its norm."
            )
        along, claimed, bend = _line(self.objective, self.x, gradient)
        derivative, uncertain = richardson_derivative(along, bend)
        if uncertain <= 1e-4 * abs(claimed) and not abs(derivative - claimed) <= 1e-3 * abs(claimed):
            raise ClaimFailed(
                f"the value of {type(self.objective).__name__} and its reverse-mode derivative disagree: {derivative:.6g} by"
                f" differences, {claimed:.6g} by autograd. Does value detach something?"
            )
        self.curve = taylor_curve(along, claimed, bend, 1e-10 * claimed)
        self.slope = taylor_slope(self.curve)


def _line(objective: Any, x: Tensor, gradient: Tensor) -> tuple[Callable[[float], float], float, float]:
    """The value along the gradient, its slope there, and a length over which it bends."""
    direction = gradient / norm(gradient)

    def along(t: float) -> float:
        with torch.no_grad():
            return float(objective.value(x + t * direction).sum())

    bound = objective.lipschitz(x) if callable(getattr(objective, "lipschitz", None)) else None
    bend = 1e-2 * max(norm(x) / x.numel() ** 0.5, 1e-6)
    if bound is not None and _largest(bound) > 0:
        bend = min(0.1 / _largest(bound) ** 0.5, 10 * bend)
    return along, norm(gradient), bend


def _gradient_problem(
    objective: Any, x: Tensor, seed: int
) -> tuple[str, tuple[float, float, list[tuple[float, float]]] | None]:
    value = objective.value(x)
    if tuple(value.shape) != tuple(x.shape[:-2]):
        return f"value must be one number a token set, shape {tuple(x.shape[:-2])}, but is {tuple(value.shape)}.", None
    got, want = objective.gradient(x).detach(), _reverse_mode(objective, x)
    size = norm(want)
    if got.shape != x.shape:
        return f"gradient must have the shape of x, {tuple(x.shape)}, but is {tuple(got.shape)}.", None
    if size == 0:
        return ("gradient is not zero where the value is flat." if norm(got) else ""), None
    error, allowed = norm(got - want) / size, tolerance(str(x.dtype).split(".")[1], CONDITION)
    if not error <= max(allowed, DOUBTFUL):
        ratio = float((got * want).sum()) / size**2
        proportional = norm(got - ratio * want) <= 1e-6 * norm(got)
        said = f"it is {ratio:.6g} times it" if proportional else f"cosine {ratio * size / max(norm(got), 1e-300):.4f}"
        return f"gradient is not the derivative of value: relative error {error:.3g}; {said}.", None
    along, claimed, bend = _line(objective, x, want)
    derivative, uncertain = richardson_derivative(along, bend)
    if uncertain <= 1e-4 * abs(claimed) and not abs(derivative - claimed) <= 1e-3 * abs(claimed):
        return f"value and its reverse mode disagree: {derivative:.6g} by differences, {claimed:.6g} by autograd.", None
    if problem := _smoothness_problem(objective, x, seed):
        return problem, None
    curve = taylor_curve(along, float((got * want).sum()) / size, bend, allowed * size)
    return "", ((error, allowed, curve) if error <= allowed else None)


def _smoothness_problem(objective: Any, x: Tensor, seed: int) -> str:
    bound = objective.lipschitz(x) if callable(getattr(objective, "lipschitz", None)) else None
    if bound is None or not getattr(objective, "lipschitz_is_global", True):
        return ""
    L = _largest(bound)
    rng = np.random.default_rng(seed)
    for size in (1e-2, 1.0):
        length = size * max(norm(x), 1e-3)
        a, b = (x + length * torch.from_numpy(rng.standard_normal(x.shape)).to(x.dtype) for _ in range(2))
        stretch = norm(objective.gradient(a) - objective.gradient(b)) / norm(a - b)
        if not stretch <= L * (1 + 1e-6) + 1e-9 * norm(objective.gradient(a)) / norm(a - b):
            return f"lipschitz says L = {L:.4g}, but the gradient changes {stretch:.4g} times as fast as the tokens."
    return ""


def _reverse_mode(objective: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        value = objective.value(z)
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ClaimFailed(f"the value of {type(objective).__name__} does not depend on its argument (is it detached?).")
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return gradient


def _step_size(layer: Any, x: Tensor) -> Tensor:
    if callable(getattr(layer, "step_size_at", None)):
        step = layer.step_size_at(x)
    else:
        step = layer.step_size(x) if callable(layer.step_size) else layer.step_size
    kappa = torch.as_tensor(step, dtype=x.dtype, device=x.device).detach()
    if kappa.numel() == 1:
        return kappa.reshape(())
    if kappa.shape != x.shape[:-2]:
        raise TypeError(
            f"{type(layer).__name__}: the step size must be one number, or one for each leading index {tuple(x.shape[:-2])},"
            f" but has shape {tuple(kappa.shape)}. Let steps of the heads be weights of the objective's heads."
        )
    return kappa


def _contract_of(layer: Any) -> None:
    missing = [] if callable(getattr(layer, "objective_at", None)) else ["objective_at(x)"]
    if not (hasattr(layer, "step_size_at") or hasattr(layer, "step_size")):
        missing.append("step_size_at(x) or step_size")
    if missing or not callable(layer):
        raise TypeError(
            f"check_layer: {type(layer).__name__} lacks {' and '.join(missing) or 'a forward pass'}. A layer declares what it"
            " descends: objective_at(x) returns an object with value(x) and gradient(x), step_size is κ in"
            " layer(x) == x − κ ∇f(x)."
        )


def _copy_of(layer: nn.Module, dtype: torch.dtype) -> Any:
    if not isinstance(layer, nn.Module):
        return layer
    return copy.deepcopy(layer).to(dtype).eval()


def _width_of(layer: Any, x: Tensor | None) -> tuple[int, int | None]:
    if x is not None:
        return x.shape[-1], x.shape[-2]
    U = getattr(layer, "U", None)
    dim = getattr(layer, "dim", U.shape[-2] if isinstance(U, Tensor) and U.ndim == 3 else None)
    if not isinstance(dim, int):
        raise TypeError(
            f"check_layer: the width of {type(layer).__name__}'s tokens is not known; set layer.dim, or pass example tokens x."
        )
    return dim, getattr(layer, "token_count", None)


def _cases(dim: int, count: int | None, number: int, seed: int) -> list[Case]:
    """Structured kinds at all sizes first, then random ones; scales over four orders of magnitude."""
    rng = np.random.default_rng(seed)
    sizes = [count] if count is not None else [1, 2, 3, 5, dim, dim + 3, 2 * dim + 1]
    fixed = [Case(tokens=n, heads=1, head_dim=dim) for n in sizes]
    fixed += [Case(tokens=sizes[-1], heads=1, head_dim=dim, kind=kind) for kind in KINDS_OF_TOKENS]
    fixed += [Case(tokens=sizes[len(sizes) // 2], heads=1, head_dim=dim, scale=s, batch=2) for s in (0.01, 0.1, 100.0)]
    while len(fixed) < number:
        fixed.append(
            Case(
                tokens=int(rng.choice(sizes)),
                heads=1,
                head_dim=dim,
                kind=str(rng.choice(["gaussian", "shifted", "one_far", "rank_one", "near_parallel"])),
                scale=float(rng.choice([0.03, 0.3, 1.0, 3.0, 30.0])),
                batch=int(rng.choice([0, 2])),
                seed=int(rng.integers(2**16)),
            )
        )
    return [dataclasses.replace(case, seed=case.seed + seed) for case in fixed[: max(number, 1)]]


def _largest(bound: float | Tensor) -> float:
    return float(torch.as_tensor(bound).detach().max())


def _median(slopes: list[float]) -> float:
    return statistics.median(slopes) if slopes else math.nan


def _where(case: Case | None, x: Tensor, call: str = "descent_error(layer, x)") -> str:
    if case is None:
        return f"  x is the tokens you passed, {tuple(x.shape)}."
    names = "Case, descent_error" if "descent_error" in call else "Case"
    lines = [f"from proofs_check import {names}", f"x = {case!r}.x()", f"print({call})"]
    return f"  x is {case.kind} tokens {tuple(x.shape)}; to see it again:\n" + "\n".join(f"    {line}" for line in lines)
