"""``check_layer`` and ``descent_error`` for anyone's layer: one line, a verdict in words, the smallest input."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unrolling import GradientStep, ProximalStep

from .diagnosis import diagnose
from .measures import norm
from .oracles import richardson_derivative, taylor_curve, taylor_slope
from .threads import one_thread
from .tolerance import MEANINGFUL
from .trial import (
    DOUBTFUL,
    LONG,
    CheckResult,
    ClaimFailed,
    Input,
    allowed_error,
    check_call,
    hold_prox_to_its_term,
    inputs_for,
    line_through,
    median,
    noise_of,
    reverse_mode,
)

__all__ = ["check_layer", "descent_error"]


@one_thread()
def descent_error(layer: nn.Module, x: Tensor) -> float:
    """``‖layer(x) − (x − κ∇f(x))‖ / ‖κ∇f(x)‖``, f = ``layer.objective_at(x)``: the number behind ``check_layer``.

    Of a copy of the layer in the dtype of ``x``, in evaluation mode. The gradient is reverse mode of the objective's
    *value*. Infinite if the layer moves where the objective does not; zero if neither moves. Of a batch, the largest.
    """
    _contract_of(layer)
    check_call("descent_error", x, 1, 0)
    return _Trial.of(_copy_of(layer, x.dtype), Input(None, x)).error


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

    The contract: ``layer.objective_at(x)`` returns an object with ``value(x)``, one number a token set, and
    ``gradient(x)``, auxiliaries held constant; and a step size as ``layer.step_size_at(x)`` or ``layer.step_size``. Then
    ``layer(x) == x − κ ∇f(x)`` is tried on a copy of the layer in ``dtype`` and evaluation mode, on structured and
    random tokens of many scales and numbers, against reverse mode of ``value``, the closed-form ``gradient`` and
    differences. Tokens come without and with batch axes, as far as the layer takes them.

    The check is worth what the objective is: one made of the layer itself, ``⟨z, x − layer(x)⟩``, always passes.

    Parameters
    ----------
        x: tokens of yours, ``(..., tokens, dim)``; also says the only number of tokens to draw. Without it the width
        is read from ``layer.dim`` (or the bases U) and the number of tokens varies, unless ``layer.token_count``
        fixes it. dtype: float64, or float32, which sees errors of a per cent and more.

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
    check_call("check_layer", x, cases, seed)
    if dtype not in DOUBTFUL:
        raise ValueError(f"check_layer: dtype must be torch.float64 or torch.float32, but is {dtype}.")
    name, layer = type(layer).__name__.removeprefix("Parametrized"), _copy_of(layer, dtype)
    dim, count = _width_of(layer, x)
    U = getattr(layer, "U", None)
    width = U.shape[-1] if isinstance(U, Tensor) and U.ndim == 3 else None
    axes = _axes_of(layer, dim, count, dtype)
    tried: list[tuple[Input, _Trial]] = []
    for given in inputs_for(x, dim, count, cases, seed, dtype, width=width, axes=axes):
        place = given.where("descent_error(layer, x)")
        try:
            tried.append((given, _Trial.of(layer, given)))
        except ClaimFailed as failure:
            raise ClaimFailed(f"{name}: {failure}\n{place}") from None
        except Exception as problem:
            raise ClaimFailed(
                f"{name}: raised {type(problem).__name__}: {problem}\n{place}{_hint(problem)}"
            ) from problem
    wrong = [(given, trial) for given, trial in tried if trial.wrong]
    if wrong:
        generic = [(g, t) for g, t in wrong if g.case is None or (g.case.kind == "gaussian" and g.x.shape[-2] > 2)]
        plain = [(g, t) for g, t in generic if g.x.ndim == 2 and torch.isfinite(t.got).all()]
        short = [(g, t) for g, t in plain if g.x.shape[-2] < LONG[0]]
        (about, typical), (given, smallest) = (short or plain or generic or wrong)[-1], wrong[0]
        raise ClaimFailed(
            f"{name}: the forward pass is not the declared step on {len(wrong)} of {len(tried)} inputs.\n"
            f"  On {about.words}: {diagnose(layer, typical)}\n"
            f"  Smallest input: {smallest.said}.\n"
            f"{given.where('descent_error(layer, x)')}"
        )
    evident = [trial for _, trial in tried if trial.evidence]
    if 2 * len(evident) < len(tried):
        doubtful = [trial.error for _, trial in tried if trial.allowed < trial.error < math.inf]
        why = (
            f"the error, up to {max(doubtful):.1e}, is above rounding ({max(t.allowed for _, t in tried):.1e}) but too small"
            " to call it wrong: is something computed in another precision, or off by a hair?"
            if 2 * len(doubtful) > len(tried)
            else "on the others neither the layer nor its objective moves, or rounding drowns the step. Is the step size"
            " zero, or very small?"
        )
        raise ClaimFailed(
            f"{name}: only {len(evident)} of {len(tried)} inputs could have told a right layer from a wrong one: {why}"
        )
    worst = max(evident, key=lambda trial: trial.error / trial.allowed)
    slopes = [trial.slope for trial in evident if not math.isnan(trial.slope)]
    longest = max(evident, key=lambda trial: len(trial.curve))
    return CheckResult(name, len(tried), len(evident), worst.error, worst.allowed, median(slopes), longest.curve)


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
        return not self.error <= max(self.allowed, DOUBTFUL[self.x.dtype])

    @property
    def said(self) -> str:
        """How far off, in words."""
        if not torch.isfinite(self.got).all():
            return "it returns NaN or infinite entries"
        if math.isinf(self.error):
            return "it moves where the declared step is zero"
        return f"error {self.error:.3g} of the declared displacement, tolerance {self.allowed:.3g}"

    @classmethod
    def of(cls, layer: Any, given: Input) -> _Trial:
        x = given.x
        with torch.no_grad():
            z = x.clone()
            got = layer(z)
        if not torch.equal(z, x):
            raise ClaimFailed(
                "forward changes its input in place; work on a copy, or the residual is not what came in."
            )
        if not isinstance(got, Tensor) or got.shape != x.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise ClaimFailed(
                f"a step keeps the shape of the tokens, {tuple(x.shape)}, but the layer returned {shape}."
            )
        if got.dtype != x.dtype:
            raise ClaimFailed(f"a step keeps the dtype of the tokens, {x.dtype}, but the layer returned {got.dtype}.")
        objective, kappa = _objective_of(layer, x), _step_size(layer, x)
        smooth, nonsmooth = getattr(objective, "smooth", objective), getattr(objective, "nonsmooth", None)
        gradient = reverse_mode(smooth, x)
        closed = smooth.gradient(x).detach()
        rule = layer.step_rule() if callable(getattr(layer, "step_rule", None)) else None
        over = kappa[..., None, None] if kappa.ndim else kappa
        if rule is not None and not isinstance(rule, (GradientStep, ProximalStep)):
            want = rule(objective, x, kappa).detach()
        else:
            want = x - over * gradient
            if nonsmooth is not None:
                hold_prox_to_its_term(nonsmooth, want, over)
                want = nonsmooth.prox(want, kappa).detach()
        error = allowed = 0.0
        evidence = True
        for g, w, z in zip(*(t.reshape(-1, *x.shape[-2:]) for t in (got, want, x)), strict=True):
            moved = norm(w - z)
            if moved == 0:
                still = norm(g - z) <= 64 * torch.finfo(x.dtype).eps * norm(z)
                error, evidence = max(error, 0.0 if still else math.inf), False
                continue
            one = norm(g - w) / moved
            error = one if math.isnan(one) else max(error, one)
            allowed = max(allowed, allowed_error(x.dtype, norm(z) / moved))
        trial = cls(x, got, want, smooth, kappa, error, max(allowed, 1e-300), evidence)
        trial._hold_the_objective_to_itself(gradient, closed)
        trial.evidence = trial.evidence and trial.error <= trial.allowed and trial.allowed <= MEANINGFUL
        return trial

    def _hold_the_objective_to_itself(self, gradient: Tensor, closed: Tensor) -> None:
        size = norm(gradient)
        if closed.shape != gradient.shape:
            raise ClaimFailed(
                f"the gradient of {type(self.objective).__name__} must have the shape of the tokens,"
                f" {tuple(gradient.shape)}, but has {tuple(closed.shape)}."
            )
        if max(size, norm(closed)) <= noise_of(self.objective, self.x) or self.x.dtype != torch.float64:
            return
        off = norm(closed - gradient) / max(size, 1e-300)
        if not off <= DOUBTFUL[self.x.dtype]:
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
    try:
        kappa = torch.as_tensor(step, dtype=x.dtype, device=x.device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{type(layer).__name__}: the step size must be a number or a tensor, but is {step!r}."
        ) from None
    if kappa.numel() == 1:
        return kappa.reshape(())
    if kappa.shape != x.shape[:-2]:
        raise TypeError(
            f"{type(layer).__name__}: the step size must be one number, or one for each leading index {tuple(x.shape[:-2])},"
            f" but has shape {tuple(kappa.shape)}. Let steps of the heads be weights of the objective's heads."
        )
    return kappa


def _objective_of(layer: Any, x: Tensor) -> Any:
    try:
        objective = layer.objective_at(x.clone())
    except Exception as problem:
        raise ClaimFailed(
            f"objective_at raised {type(problem).__name__}: {problem}{_hint(problem, False)}"
        ) from problem
    smooth = getattr(objective, "smooth", objective)
    if not all(callable(getattr(smooth, method, None)) for method in ("value", "gradient")):
        raise ClaimFailed(
            f"objective_at(x) must return an object with value(x) and gradient(x), but returned {type(objective).__name__}."
        )
    return objective


def _hint(problem: Exception, count: bool = True) -> str:
    """What to do about an error that the layer raised, where it can be guessed."""
    said = str(problem).lower()
    if "dtype" in said or "scalar type" in said:
        return (
            "\n  The check works on a copy of the layer in float64: a tensor that is neither parameter nor buffer keeps its"
            " dtype. Register it (register_buffer), or pass dtype=."
        )
    if count and isinstance(problem, (ValueError, RuntimeError, IndexError)):
        return "\n  If the layer takes one number of tokens only, pass such an x or set layer.token_count."
    return ""


def _axes_of(layer: Any, dim: int, count: int | None, dtype: torch.dtype) -> tuple[int, ...]:
    """The numbers of axes that a layer takes: tokens alone, a batch, a batch of batches. All, if it takes none."""
    understood = []
    for axes, lead in ((2, ()), (3, (2,)), (4, (2, 2))):
        try:
            with torch.no_grad():
                layer(torch.ones(*lead, 3 if count is None else count, dim, dtype=dtype))
            understood.append(axes)
        except Exception:  # what it raises is reported when it is tried in earnest
            continue
    return tuple(understood) or (2, 3, 4)


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
