"""Claims on kernel regression: what attention minimises when its outputs are the variable."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import KernelRegression

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import columns, gradient_measure, identity, norm, reference, score_condition, slices
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .coding_rate import combine, lipschitz

__all__ = ["CLAIMS"]

MITA = "MiTA, arXiv 2602.01219, attention as fast weights"
SEEDED = tuple(dataclasses.replace(case, seed=i % 2) for i, case in enumerate(STRUCTURED))
"""An odd seed gives every query a support of its own, in which values repeat."""


def _values(case: Case) -> Tensor:
    return case.scale * case.draw("values", case.m, case.dim)


def _support(case: Case) -> Tensor | None:
    if case.seed % 2 == 0:
        return None
    return torch.from_numpy(case.rng("support").integers(case.m, size=(case.tokens, case.m + 1)))


def _weights(case: Case) -> Tensor:
    pairs = case.m + case.seed % 2
    return torch.softmax(case.sharpness * case.draw("weights", case.tokens, pairs), dim=-1)


def _make(case: Case) -> KernelRegression:
    return KernelRegression(_weights(case), _values(case), _support(case))


def _dense(case: Case) -> NDArray[np.float64]:
    """The weights of all values, (M, N), those of a repeated value added up."""
    weights, support = columns(_weights(case)), _support(case)
    if support is None:
        return weights
    full = np.zeros((case.m, case.tokens))
    for i in range(case.tokens):
        for pair, j in enumerate(support[i].tolist()):
            full[j, i] += weights[pair, i]
    return full


def _naive(case: Case, b: int) -> Any:
    A, V = _dense(case), columns(_values(case))
    return lambda Z: paper.kernel_regression_value(Z, A, V)


def _sizes(case: Case, f: KernelRegression, x: Tensor) -> float:
    return norm(x) + float(f.values.norm(dim=-1).max()) * math.sqrt(x[..., 0].numel())


def _condition(case: Case, f: KernelRegression, x: Tensor) -> float:
    """Outputs and averages the size of the values leave a difference that may be smaller; softmax logits too."""
    return (1 + case.sharpness) * (1 + _sizes(case, f, x) / max(norm(f.gradient(x)), 1e-300))


def _value(subject: Any, case: Case) -> Measurement:
    x, exact, parts = case.x(), reference(case), []
    got = subject(case, _make(case), x).double().reshape(-1)
    f = _make(exact)
    for b, (point,) in enumerate(slices(exact.x())):
        want = float(_naive(exact, b)(columns(point)))
        condition = (1 + exact.sharpness) * (1 + _sizes(exact, f, point) ** 2 / max(want, 1e-300))
        parts.append(identity("value", got[b], want, case.dtype, condition))
    return combine(*parts)


def _with(**changes: Any) -> Any:
    """A gradient with other weights or values: changes are functions of the objective."""
    return lambda case, f, x: dataclasses.replace(f, **{name: new(f) for name, new in changes.items()}).gradient(x)


def _attention_of(case: Case, mask: bool = True, scale: float = 1.0) -> KernelRegression:
    queries, keys = (
        case.scale * case.draw("queries", case.tokens, case.dim),
        case.scale * case.draw("keys", case.m, case.dim),
    )
    kept = _mask(case) if mask else None
    return KernelRegression.attention(queries, keys, _values(case), scale * _scale(case), kept)


def _scale(case: Case) -> float:
    return case.dim**-0.5 / max(1.0, case.scale) ** 2


def _mask(case: Case) -> Tensor:
    kept = case.rng("mask").random((case.tokens, case.m)) < 0.6
    kept[:, 0] |= ~kept.any(1)
    return torch.from_numpy(kept)


def _minimiser(subject: Any, case: Case) -> Measurement:
    x, exact, parts = case.x(), reference(case), []
    got = subject(case, _attention_of(case), x).double()
    queries, keys = (
        exact.scale * exact.draw(name, n, exact.dim) for name, n in (("queries", exact.tokens), ("keys", exact.m))
    )
    Q, K, V, kept = columns(queries), columns(keys), columns(_values(exact)), _mask(exact).numpy()
    want = np.stack(
        [paper.attention(Q[:, [i]], K[:, kept[i]], V[:, kept[i]], _scale(exact))[:, 0] for i in range(exact.tokens)]
    )
    allowed = score_condition(queries, keys, _scale(exact))
    for g, (point,) in zip(got.reshape(-1, *got.shape[-2:]), slices(exact.x()), strict=True):
        condition = allowed * (1 + (norm(point) + norm(_values(exact)) * len(want) ** 0.5) / norm(want))
        parts.append(identity("attention to the support", g, want, case.dtype, condition))
    return combine(*parts)


def _one_step(case: Case, f: KernelRegression, x: Tensor) -> Tensor:
    return x - f.gradient(x)


def _smoothness(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    f, x, rng = _make(exact), exact.x(), exact.rng("smoothness")
    bound, parts = float(subject(exact, f, x)), []
    for size in (1e-3, 1.0, 1e3):
        a, b = (x + size * exact.scale * torch.from_numpy(rng.standard_normal(x.shape)) for _ in range(2))
        stretch = norm(f.gradient(a) - f.gradient(b)) / norm(a - b)
        allowed = tolerance("float64", 1 + (_sizes(exact, f, a) + norm(b)) / norm(a - b))
        parts.append(Comparison(f"attained at distance {size:g}", abs(stretch - bound), allowed))
    return Measurement(tuple(parts))


def _decrease(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    f, x, kappa = _make(exact), exact.x(), exact.step
    after, naive = subject(exact, f, x, kappa), _naive(exact, 0)
    start, end = float(naive(columns(x))), float(naive(columns(after)))
    want = kappa * (1 - kappa / 2) * norm(columns(x) - columns(_values(exact)) @ _dense(exact)) ** 2
    condition = (1 + exact.sharpness) * (1 + (start + _sizes(exact, f, x) ** 2) / max(want, 1e-300))
    return identity("decrease", start - end, want, "float64", condition)


def _step(case: Case, f: KernelRegression, x: Tensor, kappa: float) -> Tensor:
    return x - kappa * f.gradient(x)


CLAIMS = (
    Claim(
        id="kernel_regression.value",
        statement="The value, computed without an array of differences, is half the weighted sum of squared distances.",
        equation=r"$f(O) = \frac{1}{2}\sum_i\sum_{j\in S_i} a_{ij}\Vert o_i - v_j\Vert^2$",
        source=MITA,
        kind="identity",
        domain=cases(),
        subject=lambda case, f, x: f.value(x),
        measure=_value,
        mutants=named(
            half_dropped=lambda case, f, x: 2 * f.value(x),
            spread_of_the_values_dropped=lambda case, f, x: 0.5 * f.gradient(x).square().sum((-2, -1)),
            cross_term_halved=lambda case, f, x: f.value(x) + 0.5 * ((x - f.gradient(x)) * x).sum((-2, -1)),
            mean_over_outputs=lambda case, f, x: f.value(x) / (x.shape[-2] if x.shape[-2] > 1 else 2),
            weights_of_another_query=lambda case, f, x: dataclasses.replace(f, weights=f.weights.roll(1, -1)).value(x),
            all_NaN=lambda case, f, x: f.value(x) * torch.nan,
        ),
        structured=SEEDED,
        code=("objectives.kernel_regression:KernelRegression",),
        largest=300,
    ),
    Claim(
        id="kernel_regression.gradient",
        statement="The gradient is the output less the weighted average of the values in its support.",
        equation=r"$\nabla f(O)_i = o_i - \sum_{j\in S_i} a_{ij} v_j$",
        source=MITA,
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            _make, _naive, _condition, lambda case, f, x: max(norm(f.gradient(x)), 1e-3 * case.scale)
        ),
        mutants=of_gradient(
            half_dropped=lambda case, f, x: 2 * f.gradient(x),
            values_not_subtracted=lambda case, f, x: x,
            weights_of_another_value=_with(weights=lambda f: f.weights.roll(1, -1)),
            uniform_weights=_with(weights=lambda f: torch.full_like(f.weights, 1.0 / f.weights.shape[-1])),
            sum_for_average=lambda case, f, x: x - (case.m + 1) * (x - f.gradient(x)),
            values_of_another_pair=_with(values=lambda f: f.values.roll(1, -2)),
        ),
        structured=SEEDED,
        code=("objectives.kernel_regression:KernelRegression",),
        frozen="weights and values",
        largest=300,
    ),
    Claim(
        id="kernel_regression.minimiser",
        statement="The minimiser is attention restricted to the support, and one step of size 1 lands on it from anywhere.",
        equation=r"$o - \nabla f_q(o) = V_S\,\mathrm{softmax}(s K_S^\top q)$ for every $o$",
        source=MITA,
        kind="identity",
        domain=cases(),
        subject=_one_step,
        measure=_minimiser,
        mutants=named(
            no_op=lambda case, f, x: x,
            half_step=lambda case, f, x: x - 0.5 * f.gradient(x),
            opposite_sign=lambda case, f, x: x + f.gradient(x),
            scale_doubled=lambda case, f, x: _one_step(case, _attention_of(case, scale=2.0), x),
            support_ignored=lambda case, f, x: _one_step(case, _attention_of(case, mask=False), x),
            not_renormalised=lambda case, f, x: (
                (_attention_of(case, mask=False).weights * _mask(case)) @ f.values + 0 * x
            ),
            softmax_over_queries=lambda case, f, x: (
                torch.softmax(f.weights.clamp(min=1e-30).log(), -2) @ f.values + 0 * x
            ),
            all_NaN=lambda case, f, x: x * torch.nan,
        ),
        structured=SEEDED,
        code=("objectives.kernel_regression:KernelRegression",),
        largest=300,
    ),
    Claim(
        id="kernel_regression.smoothness",
        statement="The Hessian is the identity: the smoothness constant 1 is attained between any two outputs.",
        equation=r"$\Vert\nabla f(A) - \nabla f(B)\Vert = \Vert A - B\Vert$",
        source="derived: every row of weights sums to 1",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=_smoothness,
        mutants=named(
            one_percent_less=lambda case, f, x: 0.99 * f.lipschitz(x),
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            largest_weight=lambda case, f, x: 0.999 * f.weights.max(),
            number_of_pairs=lambda case, f, x: f.lipschitz(x) * (f.weights.shape[-1] + 1),
            all_NaN=lambda case, f, x: f.lipschitz(x) * torch.nan,
        ),
        structured=SEEDED,
        code=("objectives.kernel_regression:KernelRegression",),
        largest=300,
    ),
    Claim(
        id="kernel_regression.decrease",
        statement="A step κ lowers the regression by exactly κ (1 − κ/2) times the squared gradient: it falls for 0 < κ < 2.",
        equation=r"$f(O) - f(O - \kappa\nabla f) = \kappa(1 - \frac{\kappa}{2})\,\Vert\nabla f(O)\Vert^2$",
        source="derived: f is quadratic with Hessian I",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_step,
        measure=_decrease,
        mutants=named(
            no_op=lambda case, f, x, kappa: x,
            opposite_sign=lambda case, f, x, kappa: _step(case, f, x, -kappa),
            half_step=lambda case, f, x, kappa: _step(case, f, x, 0.5 * kappa),
            one_percent_longer=lambda case, f, x, kappa: _step(case, f, x, 1.01 * kappa),
            last_output_not_updated=lambda case, f, x, kappa: torch.cat([_step(case, f, x, kappa)[:-1], x[-1:]]),
            all_NaN=lambda case, f, x, kappa: x * torch.nan,
        ),
        structured=tuple(dataclasses.replace(case, batch=0, step=0.5) for case in SEEDED),
        code=("objectives.kernel_regression:KernelRegression",),
        largest=300,
    ),
)
