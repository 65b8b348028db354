"""``check_layer`` and ``descent_error`` for anyone's layer: one line, a verdict in words, the smallest input."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .diagnosis import diagnose
from .measures import norm
from .oracles import richardson_derivative, taylor_curve, taylor_slope
from .strategies import Case
from .threads import one_thread
from .tolerance import tolerance
from .trial import (
    CONDITION,
    DOUBTFUL,
    CheckResult,
    ClaimFailed,
    cases_for,
    line_through,
    median,
    reverse_mode,
    unresolved,
    where,
)

__all__ = ["check_layer", "descent_error"]


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
    ----------
        x: tokens of yours, ``(..., tokens, dim)``; also says the only number of tokens to draw. Without it the width
        is read from ``layer.dim`` (or the bases U) and the number of tokens varies, unless ``layer.token_count``
        fixes it.

    Returns
    -------
        a CheckResult; print it.

    Raises
    ------
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
    inputs += [(case, case.x().to(dtype)) for case in cases_for(dim, count, cases, seed)]
    for case, tokens in sorted(inputs, key=lambda pair: pair[1].numel()):
        try:
            trials.append((case, _Trial.of(layer, tokens)))
        except ClaimFailed as failure:
            raise ClaimFailed(f"{name}: {failure}\n{where(case, tokens)}") from None
        except Exception as problem:
            raise ClaimFailed(
                f"{name}: raised {type(problem).__name__}: {problem}\n{where(case, tokens)}\n"
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
            f"{where(case, smallest.x)}"
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
    return CheckResult(name, len(trials), len(evident), worst.error, worst.allowed, median(slopes), longest.curve)


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
            raise ClaimFailed(
                f"a step keeps the shape of the tokens, {tuple(x.shape)}, but the layer returned {shape}."
            )
        objective, kappa = layer.objective_at(x), _step_size(layer, x)
        smooth, nonsmooth = getattr(objective, "smooth", objective), getattr(objective, "nonsmooth", None)
        gradient = reverse_mode(smooth, x)
        closed = smooth.gradient(x).detach()
        rule = layer.step_rule() if callable(getattr(layer, "step_rule", None)) else None
        over = kappa[..., None, None] if kappa.ndim else kappa
        if rule is not None and type(rule).__name__ not in ("GradientStep", "ProximalStep"):
            want = rule(objective, x, kappa).detach()
        else:
            want = x - over * gradient
            want = want if nonsmooth is None else nonsmooth.prox(want, kappa).detach()
        error = allowed = 0.0
        evidence = True
        for g, w, z in zip(*(t.reshape(-1, *x.shape[-2:]) for t in (got, want, x)), strict=True):
            moved = norm(w - z)
            if moved == 0:
                at_rest = norm(g - z) <= tolerance(str(x.dtype).split(".")[1]) * norm(z)
                error, evidence = max(error, 0.0 if at_rest else math.inf), False
                continue
            one = norm(g - w) / moved
            error = one if math.isnan(one) else max(error, one)
            allowed = max(allowed, tolerance(str(x.dtype).split(".")[1], CONDITION, norm(z) / moved))
        trial = cls(x, got, want, smooth, kappa, error, max(allowed, 1e-300), evidence)
        trial._hold_the_objective_to_itself(gradient, closed)
        trial.evidence = trial.evidence and trial.error <= trial.allowed and trial.allowed <= 1e-3
        return trial

    def _hold_the_objective_to_itself(self, gradient: Tensor, closed: Tensor) -> None:
        size = norm(gradient)
        if size == 0 or self.x.dtype != torch.float64 or unresolved(self.objective, self.x, gradient, closed):
            return
        off = norm(closed - gradient) / size
        if not off <= DOUBTFUL:
            raise ClaimFailed(
                f"the objective {type(self.objective).__name__} is at odds with itself: its gradient differs from the"
                f" derivative of its value by {off:.3g} of its norm."
            )
        along, claimed, bend = line_through(self.objective, self.x, gradient)
        derivative, uncertain = richardson_derivative(along, bend)
        if uncertain <= 1e-4 * abs(claimed) and not abs(derivative - claimed) <= 1e-3 * abs(claimed):
            raise ClaimFailed(
                f"the value of {type(self.objective).__name__} and its reverse-mode derivative disagree: {derivative:.6g} by"
                f" differences, {claimed:.6g} by autograd. Does value detach something?"
            )
        self.curve = taylor_curve(along, claimed, bend, 1e-10 * claimed)
        self.slope = taylor_slope(self.curve)


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
