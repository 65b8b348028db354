"""Claims on sparse coding as a feed-forward block: CRATE's ISTA and the variants of CRATE-α."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolling import ISTA, OvercompleteISTA, ProximalStep

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import columns, identity, inequality, norm, reference
from ..mutants import forward, named, of_step
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .coding_rate import _count, combine
from .sparse_coding import dictionary, penalty

__all__ = ["CLAIMS"]

CRATE = "Yu et al., CRATE, arXiv 2306.01129"
ALPHA = "Yang et al., CRATE-α, arXiv 2405.20299"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
SMALL = cases(tokens=(1, 4), batches=(0,), scales=(1.0, 0.1, 10.0))


def _layer(case: Case, **options: Any) -> ISTA:
    D = dictionary(case, case.dim, case.dim)
    options = {"step_size": 0.1 * case.step, "weight": penalty(case), **options}
    return ISTA(case.dim, D=D, **options).to(case.torch_dtype)


def _block(case: Case, **options: Any) -> OvercompleteISTA:
    D = dictionary(case, case.dim, 2 * case.dim)
    step = case.step / float(torch.linalg.matrix_norm(D, 2)) ** 2
    return OvercompleteISTA(case.dim, D.shape[1], D=D, step_size=step, weight=penalty(case), **options)


def _size(D: Tensor) -> float:
    return float(torch.linalg.matrix_norm(D.detach().double(), 2)) ** 2


def _step(subject: Any, case: Case) -> Measurement:
    nonnegative = case.seed % 3 != 2
    exact, x = reference(case), case.x()
    with torch.no_grad():
        got = subject(case, _layer(case, nonnegative=nonnegative), x).double()
        layer, z = _layer(exact, nonnegative=nonnegative), exact.x()
        declared = layer.descend(z)
    moved = norm(declared - z)
    if moved == 0:
        return Measurement((Comparison("at rest", norm(got - z), 0.0),), evidence=False)
    D, eta, lam = layer.D.detach().numpy(), float(layer.step_size_at(z)), float(layer.weight)
    if nonnegative:
        want = [paper.crate_eq17(columns(token_set), D, eta, lam) for token_set in z.reshape(-1, *z.shape[-2:])]
    else:
        want = [paper.ista_step(c, D, c, eta, lam, False) for c in map(columns, z.reshape(-1, *z.shape[-2:]))]
    condition = (1 + eta * _size(layer.D)) * (1 + eta * lam * z.numel() ** 0.5 / moved)
    stacked = np.stack([w.T for w in want]).reshape(z.shape)
    return combine(
        identity("declared step", got, declared, case.dtype, condition, moved),
        identity("paper's step", got, stacked, case.dtype, condition, moved),
    )


def _wrong(change: Any) -> Any:
    """A subject from D, tokens, η, λ; the ReLU after."""

    def subject(case: Case, layer: ISTA, x: Tensor) -> Tensor:
        return change(layer.D, x, layer.kappa(), layer.weight)

    return subject


def _descent(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    layer = _layer(exact, certified=True, step_size=exact.step, nonnegative=bool(case.seed % 2))
    x = exact.x().abs() if layer.nonnegative else exact.x()
    with torch.no_grad():
        eta, after = subject(exact, layer, x)
    D, X, lam = layer.D.detach().numpy(), columns(x), float(layer.weight)
    start, end = (float(paper.sparse_coding_value(columns(z), D, X, lam)) for z in (x, after))
    moved = norm(after - x)
    if moved == 0:
        return Measurement(evidence=False)
    L = _size(layer.D)
    promised = (1 / eta - L / 2) * moved**2
    return combine(
        Measurement((Comparison("ηL inside (0, 2)", float(not 0 < eta * L < 2), 0.0),)),
        inequality("promised decrease", promised, start - end, start, "float64", 1 + L),
    )


def _certified(case: Case, layer: ISTA, x: Tensor) -> tuple[float, Tensor]:
    return float(layer.kappa()), layer(x)


def _longer(factor: float) -> Any:
    def subject(case: Case, layer: ISTA, x: Tensor) -> tuple[float, Tensor]:
        eta = factor * float(layer.kappa())
        return eta, ProximalStep()(layer.objective_at(x), x, eta)

    return subject


def _fixed_step(subject: Any, case: Case) -> Measurement:
    """Does η = 0.1 lower the objective? The dictionary's norm goes up to 11."""
    exact = reference(dataclasses.replace(case, batch=0, step=1.0))
    layer, x = _layer(exact), exact.x().abs()
    with torch.no_grad():
        after = subject(exact, layer, x)
    D, X, lam = layer.D.detach().numpy(), columns(x), float(layer.weight)
    start, end = (float(paper.sparse_coding_value(columns(z), D, X, lam)) for z in (x, after))
    own = float(0.5 * (after @ layer.D.detach().mT - x).square().sum()) + lam * float(after.abs().sum())
    agree = abs(own - end) / (1e-300 + end)
    change = end / start - 1 if start > 0 else 0.0
    return Measurement(
        (Comparison("both codes of the value", agree, 1e-9),),
        start > 0,
        {"relative change of the objective": change, "η‖D‖²": 0.1 * _size(layer.D)},
        truth=change <= 1e-12,
    )


def _cost(subject: Any, case: Case) -> Measurement:
    N, d = 5 * case.tokens, case.dim
    layer, x = _layer(dataclasses.replace(case, dtype="float64")), case.draw("cost", N, d).double()
    with torch.no_grad():
        counted = _count(lambda: layer(x))
    claimed = subject(N, d)
    return Measurement((Comparison("multiply-adds", abs(counted - claimed), 0.0),), values={"multiply-adds": counted})


def _codes(subject: Any, case: Case) -> Measurement:
    exact, x = reference(case), case.x()
    with torch.no_grad():
        got = subject(case, _block(case, steps=3), x)
    layer = _block(exact, steps=3)
    D = layer.D.detach().numpy()
    sets = exact.x().reshape(-1, case.tokens, case.dim)
    want = [paper.crate_alpha_codes(columns(z), D, layer.step_size, layer.weight, 3).T for z in sets]
    stacked = np.stack(want).reshape(*x.shape[:-1], D.shape[1])
    if norm(stacked) == 0:
        return Measurement((Comparison("no code", norm(got), 0.0),), evidence=False)
    # Every step adds rounding of the size of η D x; what is left after the threshold may be far smaller.
    condition = 3 * (1 + layer.step_size * _size(layer.D)) ** 3 * norm(exact.x()) / norm(stacked) / layer.step_size**0.5
    return identity("codes", got, stacked, case.dtype, condition)


def _overcomplete(subject: Any, case: Case) -> Measurement:
    exact, x = reference(case), case.x()
    with torch.no_grad():
        got = subject(case, _block(case), x).double()
        layer, z = _block(exact), exact.x()
        declared = layer.descend(z)
    moved = norm(declared - z)
    if moved == 0:
        return Measurement((Comparison("at rest", norm(got - z), 0.0),), evidence=False)
    D = layer.D.detach().numpy()
    sets = z.reshape(-1, case.tokens, case.dim)
    want = [(D @ paper.crate_alpha_codes(columns(s), D, layer.step_size, layer.weight, 2)).T for s in sets]
    condition = (1 + layer.step_size * _size(layer.D)) ** 2
    return combine(
        identity("declared step", got, declared, case.dtype, condition, moved),
        identity("paper's block", got, np.stack(want).reshape(z.shape), case.dtype, condition, moved),
    )


def _envelope(X: Any, D: Any, lam: float) -> tuple[float, float]:
    """g(X) = min over A ≥ 0 of ½‖X − D A‖² + λ‖A‖₁, from above and, by a dual point, from below."""
    return paper.duality_gap(paper.nonnegative_codes(X, D, lam), D, X, lam)


def _envelope_falls(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    layer, X = _block(exact), columns(exact.x())
    D, lam = layer.D.detach().numpy(), layer.weight
    codes = paper.nonnegative_codes(X, D, lam)
    high, low = paper.duality_gap(codes, D, X, lam)
    after, promised = subject(exact, X, D, codes)
    if not high > 0 or norm(codes) == 0:
        return Measurement(evidence=False)
    slack = (high - low) + np.subtract(*_envelope(after, D, lam))
    drop = high - _envelope(after, D, lam)[0]
    measured = inequality("promised decrease", promised - slack, drop, high, "float64", 1 + _size(layer.D))
    return dataclasses.replace(measured, evidence=measured.evidence and slack <= 1e-3 * high)


def _to_the_codes(case: Case, X: Any, D: Any, A: Any) -> tuple[Any, float]:
    return D @ A, float(((X - D @ A) ** 2).sum() / 2)


def _two_steps(subject: Any, case: Case) -> Measurement:
    """What T = 2 proximal steps leave of the promise, and how far their codes are from the minimum."""
    exact = reference(dataclasses.replace(case, batch=0))
    layer, x = _block(exact), exact.x()
    D, lam, X = layer.D.detach().numpy(), layer.weight, columns(x)
    with torch.no_grad():
        codes, after = subject(exact, layer, x)
    high, _ = _envelope(X, D, lam)
    if not high > 0:
        return Measurement(evidence=False)
    want = paper.crate_alpha_codes(X, D, layer.step_size, lam, 2)
    change = _envelope(columns(after), D, lam)[0] / high - 1
    excess = float(paper.sparse_coding_value(columns(codes), D, X, lam)) / high - 1
    condition = (1 + layer.step_size * _size(layer.D)) ** 2 * norm(X) / max(norm(D @ want), 1e-300)
    measured = identity("the block's output", after.mT, D @ want, "float64", condition)
    values = {"relative change of g": change, "objective of the codes over its minimum, less 1": excess}
    return dataclasses.replace(measured, values=values)


def _codes_and_output(case: Case, layer: OvercompleteISTA, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer.codes(x), layer(x)


def _residual_falls(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    layer, x = _block(exact, residual=True), exact.x()
    D, lam, X = layer.D.detach().numpy(), layer.weight, columns(x)
    with torch.no_grad():
        after = subject(exact, layer, x)
    (high, _), (_, end) = _envelope(X, D, lam), _envelope(columns(after), D, lam)
    want = X + D @ paper.crate_alpha_codes(X, D, layer.step_size, lam, 2)
    agree = norm(columns(after) - want) / max(norm(want), 1e-300)
    # g falls unless its lower bound after the block exceeds its upper bound before: no doubt of convergence is left.
    return Measurement(
        (Comparison("the block's output", agree, tolerance("float64", (1 + _size(layer.D)) ** 2)),),
        high > 0,
        {"relative change of g, at least": end / high - 1 if high > 0 else 0.0},
        truth=end <= high * (1 + 1e-12),
    )


CLAIMS = (
    Claim(
        id="ista.step",
        statement="CRATE's feed-forward block is a proximal step of sparse coding from the tokens, the data held constant.",
        equation=r"$\mathrm{ReLU}(Z + \eta D^\top (Z - D Z) - \eta\lambda) = \mathrm{prox}_{\eta g}(Z - \eta\nabla f(Z))$",
        source=f"{CRATE}, eq. 17",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=_step,
        mutants=of_step(
            dictionary_transposed=_wrong(lambda D, x, eta, lam: torch.relu(x + eta * ((x - x @ D) @ D.mT) - eta * lam)),
            threshold_not_scaled=_wrong(lambda D, x, eta, lam: torch.relu(x + eta * ((x - x @ D.mT) @ D) - lam)),
            ReLU_dropped=_wrong(lambda D, x, eta, lam: x + eta * ((x - x @ D.mT) @ D) - eta * lam),
            encoder_left_out=_wrong(lambda D, x, eta, lam: torch.relu(x + eta * (x - x @ D.mT) - eta * lam)),
            gradient_added=_wrong(lambda D, x, eta, lam: torch.relu(x - eta * ((x - x @ D.mT) @ D) - eta * lam)),
            threshold_added=_wrong(lambda D, x, eta, lam: torch.relu(x + eta * ((x - x @ D.mT) @ D) + eta * lam)),
        ),
        structured=(*STRUCTURED, *(dataclasses.replace(case, seed=2, sharpness=10.0) for case in STRUCTURED)),
        code=("unrolling.layers.ista:ISTA",),
        frozen="X",
    ),
    Claim(
        id="ista.descent",
        statement="With a certified step, the block lowers its sparse coding objective by what is promised.",
        equation=r"$F(Z) - F(Z^+) \geq (\frac{1}{\eta} - \frac{\Vert D\Vert^2}{2})\Vert Z^+ - Z\Vert^2$",
        source=f"{CRATE}, eq. 17; the promise is that of proximal steps",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=_certified,
        measure=_descent,
        mutants=named(
            three_times_as_long=_longer(3.0),
            twenty_times_as_long=_longer(20.0),
            opposite_way=lambda case, layer, x: (float(layer.kappa()), 2 * x - layer(x)),
            negative_step=lambda case, layer, x: (-float(layer.kappa()), layer(x)),
            all_NaN=lambda case, layer, x: (float(layer.kappa()), layer(x) * torch.nan),
        ),
        structured=(*SINGLE, *(dataclasses.replace(case, seed=1, step=1.9, sharpness=10.0) for case in SINGLE)),
        code=("unrolling.layers.ista:ISTA",),
    ),
    Claim(
        id="ista.fixed_step",
        statement="With its constant step η = 0.1, CRATE's block lowers its sparse coding objective whatever the dictionary.",
        equation=r"$F(\mathrm{ISTA}_{0.1}(Z)) \leq F(Z)$ for every D",
        source=f"{CRATE}, section 2.4: η = 0.1 in all its models",
        kind="refuted",
        domain=cases(batches=(0,), tokens=(1, 5), scales=(1.0, 10.0)),
        subject=forward,
        measure=_fixed_step,
        mutants=named(
            all_NaN=lambda case, layer, x: layer(x) * torch.nan,
            certified_step=lambda case, layer, x: ProximalStep()(layer.objective_at(x), x, 1 / _size(layer.D)),
            no_op=lambda case, layer, x: x,
        ),
        structured=(
            Case(tokens=1, heads=1, sharpness=10.0, seed=5),
            Case(tokens=2, sharpness=10.0, seed=1),
            Case(tokens=2, sharpness=0.0),
        ),
        code=("unrolling.layers.ista:ISTA",),
        correction="It does while ‖D‖² < 2/η = 20 (ista.descent). Beyond, a step overshoots: D = ((0, 0), (5, 0)) takes"
        " the token (0, 1) from 0.6 to 1.2.",
    ),
    Claim(
        id="ista.cost",
        statement="The block costs two products of the tokens with the dictionary, not the three of the released code.",
        equation=r"$2 N d^2$ multiply-adds",
        source=f"{CRATE}, eq. 17, with D^T Z - D^T D Z read as D^T (Z - D Z)",
        kind="cost",
        domain=cases(),
        subject=lambda N, d: 2 * N * d * d,
        measure=_cost,
        mutants=named(
            three_products=lambda N, d: 3 * N * d * d,
            quadratic_in_tokens=lambda N, d: 2 * N * N * d + 1,
            one_product=lambda N, d: N * d * d,
        ),
        structured=(Case(), Case(tokens=12)),
        code=("unrolling.layers.ista:ISTA",),
        real=False,
    ),
    Claim(
        id="ista.codes",
        statement="The codes of the overcomplete block are proximal steps of non-negative sparse coding from zero.",
        equation=r"$A_{t+1} = \mathrm{ReLU}(A_t - \eta D^\top (D A_t - Z) - \eta\lambda), \quad A_0 = 0$",
        source=f"{ALPHA}, section 3.2",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.codes(x),
        measure=_codes,
        mutants=named(
            one_step_fewer=lambda case, layer, x: _block(case, steps=2).codes(x),
            one_step_more=lambda case, layer, x: _block(case, steps=4).codes(x),
            threshold_not_scaled=lambda case, layer, x: torch.relu(layer.step_size * (x @ layer.D) - layer.weight),
            ReLU_at_the_end_only=lambda case, layer, x: torch.relu(3 * layer.step_size * (x @ layer.D - layer.weight)),
            all_NaN=lambda case, layer, x: layer.codes(x) * torch.nan,
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.ista:OvercompleteISTA",),
        largest=64,
    ),
    Claim(
        id="ista.overcomplete.step",
        statement="Tied and without a residual, the overcomplete block is a gradient step of size 1 on the reconstruction"
        " error, its codes held constant.",
        equation=r"$D A = Z - \nabla \frac{1}{2}\Vert Z - D \bar A\Vert^2$",
        source=f"{ALPHA}, section 3.2; the reading as a step is ours",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=_overcomplete,
        mutants=of_step(
            codes_of_one_step=lambda case, layer, x: _block(case, steps=1)(x),
            residual_added=lambda case, layer, x: x + layer(x),
            codes_not_thresholded=lambda case, layer, x: 2 * layer.step_size * (x @ layer.D) @ layer.D.mT,
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.ista:OvercompleteISTA",),
        frozen="codes",
        largest=64,
    ),
    Claim(
        id="ista.overcomplete.descent",
        statement="From the tokens to what their best codes stand for is a descent step on the least sparse coding cost of"
        " the tokens.",
        equation=r"$g(Z) - g(D A^\ast) \geq \frac{1}{2}\Vert Z - D A^\ast\Vert^2, \quad"
        r" g(Z) = \min_{A \geq 0} \frac{1}{2}\Vert Z - D A\Vert^2 + \lambda\Vert A\Vert_1$",
        source="derived: the best codes of Z cost λ‖A*‖₁ at D A*",
        kind="inequality",
        domain=SMALL,
        subject=_to_the_codes,
        measure=_envelope_falls,
        mutants=named(
            three_times_the_promise=lambda case, X, D, A: (
                D @ A,
                3 * _to_the_codes(case, X, D, A)[1] + 1e-3 * (X**2).sum(),
            ),
            residual_added=lambda case, X, D, A: (X + D @ A, 0.0),
            opposite_way=lambda case, X, D, A: (2 * X - D @ A, 0.0),
            codes_doubled=lambda case, X, D, A: (2 * D @ A, float(((X - D @ A) ** 2).sum() / 2)),
            all_NaN=lambda case, X, D, A: (D @ A, float("nan")),
        ),
        structured=tuple(case for case in SINGLE if case.tokens < 6 and case.scale in (1.0, 1e-3)),
        code=("unrolling.layers.ista:OvercompleteISTA",),
        largest=24,
    ),
    Claim(
        id="ista.overcomplete.two_steps",
        statement="With two proximal steps for the codes, as published, the least sparse coding cost still falls on most"
        " tokens: the change is measured.",
        equation=r"$g(D A_2) / g(Z) - 1$",
        source=f"{ALPHA}, section 3.2",
        kind="measured",
        domain=SMALL,
        subject=_codes_and_output,
        measure=_two_steps,
        mutants=named(
            codes_of_one_step=lambda case, layer, x: _codes_and_output(case, _block(case, steps=1), x),
            residual_added=lambda case, layer, x: (layer.codes(x), x + layer(x)),
            all_NaN=lambda case, layer, x: (layer.codes(x), layer(x) * torch.nan),
        ),
        structured=(Case(), Case(tokens=3, sharpness=10.0), Case(tokens=4, kind="subspaces")),
        code=("unrolling.layers.ista:OvercompleteISTA",),
        largest=24,
    ),
    Claim(
        id="ista.overcomplete.residual",
        statement="With its residual connection, the overcomplete block lowers the least sparse coding cost of the tokens.",
        equation=r"$g(Z + D A_2) \leq g(Z)$",
        source=f"{ALPHA}, section 3.2: the residual is one of its three changes",
        kind="refuted",
        domain=SMALL,
        subject=forward,
        measure=_residual_falls,
        mutants=named(
            residual_left_out=lambda case, layer, x: layer(x) - x,
            residual_subtracted=lambda case, layer, x: 2 * x - layer(x),
            all_NaN=lambda case, layer, x: layer(x) * torch.nan,
        ),
        structured=(Case(tokens=1), Case(), Case(tokens=1, heads=1, head_dim=1)),
        code=("unrolling.layers.ista:OvercompleteISTA",),
        correction="It raises it: one token 1, one atom 1, λ = 0.1 and best codes go from 0.095 to 0.185. Without the"
        " residual and with best codes it falls (ista.overcomplete.descent).",
        largest=24,
    ),
)
