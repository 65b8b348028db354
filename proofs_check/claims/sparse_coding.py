"""Claims on sparse coding: its gradient, its proximal operators, and the steps that descend it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import L1, Composite, NonNegativeL1, Objective, Reconstruction, certified_step_size, sparse_coding
from unrolling import AcceleratedProximalStep, Momentum, ProximalStep

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import columns, gradient_measure, identity, inequality, norm, reference
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .coding_rate import combine, lipschitz, smoothness_measure

__all__ = ["CLAIMS", "dictionary", "penalty"]

FISTA = "Beck and Teboulle, FISTA, SIAM J. Imaging Sciences 2(1), 2009"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)


def dictionary(case: Case, dim: int, atoms: int) -> Tensor:
    """A dictionary ``(dim, atoms)`` of spectral norm about ``1 + sharpness``: up to 11."""
    drawn = case.draw("dictionary", dim, atoms)
    return (1.0 + case.sharpness) * drawn / (dim**0.5 + atoms**0.5)


def penalty(case: Case) -> float:
    """λ: a tenth of the tokens' size."""
    return 0.1 * case.scale


def _data(case: Case) -> Tensor:
    lead = (case.batch,) if case.batch else ()
    return case.scale * case.draw("data", *lead, case.tokens, case.m)


def _make(case: Case) -> Reconstruction:
    return Reconstruction(dictionary(case, case.m, case.dim), _data(case))


def _naive(case: Case, b: int) -> Any:
    D = dictionary(case, case.m, case.dim).double().numpy()
    X = columns(_data(case).reshape(-1, case.tokens, case.m)[b])
    return lambda A: paper.reconstruction_error(A, D, X)


def _condition(case: Case, objective: Reconstruction, x: Tensor) -> float:
    """The residual is a difference: its parts against the gradient, token set by token set."""
    D = norm(objective.dictionary)
    parts = (norm(x) * D + norm(objective.data)) * D
    smallest = min(norm(g) for g in objective.gradient(x).reshape(-1, *x.shape[-2:]))
    return parts / max(smallest, 1e-300)


def _attained(case: Case) -> tuple[Objective, Tensor]:
    objective = dataclasses.replace(_make(case), data=0 * _data(case))
    right = torch.linalg.svd(objective.dictionary, full_matrices=False).Vh[0]
    return objective, torch.ones(case.tokens, 1, dtype=right.dtype) * right


def _of(case: Case, nonnegative: bool) -> Composite:
    return sparse_coding(dictionary(case, case.m, case.dim), _data(case), penalty(case), nonnegative=nonnegative)


def _prox(subject: Any, case: Case) -> Measurement:
    x, by = case.x(), 0.7 * penalty(case)
    parts = []
    for nonnegative, term in ((False, L1(penalty(case))), (True, NonNegativeL1(penalty(case)))):
        z = subject(case, term, x, 0.7)
        pairs = zip(z.double().flatten().tolist(), x.double().flatten().tolist(), strict=True)
        gaps = [paper.threshold_gap(a, b, by, nonnegative) for a, b in pairs]
        worst = float(np.max(gaps)) if not np.isnan(gaps).any() else np.nan
        size = max(float(x.abs().max()), by)
        parts.append(Comparison(f"optimality, {type(term).__name__}", worst / size, tolerance(case.dtype)))
    return Measurement(tuple(parts), float(x.abs().max()) > 0)


def _start(case: Case, nonnegative: bool) -> Tensor:
    x = case.x()
    return x.abs() if nonnegative else x


def _descent(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    nonnegative = bool(case.seed % 2)
    f, a = _of(exact, nonnegative), _start(exact, nonnegative)
    L = float(certified_step_size(f, a).lipschitz)
    kappa = exact.step / L
    after, promised = subject(exact, f, a, kappa, L)
    D, X = f.smooth.dictionary.numpy(), columns(f.smooth.data)  # type: ignore[attr-defined]
    start, end = (float(paper.sparse_coding_value(columns(z), D, X, penalty(exact))) for z in (a, after))
    if norm(after - a) == 0:
        return Measurement(evidence=False)
    return inequality("promised decrease", promised, start - end, start, "float64", 1.0)


def _proximal_promise(case: Case, f: Composite, a: Tensor, kappa: float, L: float) -> tuple[Tensor, float]:
    after = ProximalStep()(f, a, kappa)
    return after, (1 / kappa - L / 2) * norm(after - a) ** 2


def _accelerated(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    nonnegative = bool(case.seed % 2)
    f, a = _of(exact, nonnegative), _start(exact, nonnegative)
    L, steps = float(certified_step_size(f, a).lipschitz), 6
    point = subject(exact, f, a, 1 / L, steps)
    D, X = f.smooth.dictionary.numpy(), columns(f.smooth.data)  # type: ignore[attr-defined]
    lam = penalty(exact)
    want = paper.fista(columns(a), D, X, 1 / L, lam, nonnegative, steps)
    best = paper.fista(columns(a), D, X, 1 / L, lam, nonnegative, 400)
    value, least = (float(paper.sparse_coding_value(A, D, X, lam)) for A in (columns(point), best))
    promise = 2 * L * norm(columns(a) - best) ** 2 / (steps + 1) ** 2
    growth = norm(a) / max(norm(want), 1e-300) + 2.0**steps
    return combine(
        identity("six steps", point.mT, want, "float64", growth),
        inequality("F − F* ≤ 2L‖a − a*‖²/(n + 1)²", value - least, promise, max(value, promise), "float64", 10.0),
    )


def _six(case: Case, f: Composite, a: Tensor, kappa: float, steps: int) -> Tensor:
    point: Tensor | Momentum = a
    for _ in range(steps):
        point = AcceleratedProximalStep()(f, point, kappa)
    return point.x if isinstance(point, Momentum) else point


def _plain_six(case: Case, f: Composite, a: Tensor, kappa: float, steps: int) -> Tensor:
    for _ in range(steps):
        a = ProximalStep()(f, a, kappa)
    return a


def _restarted(case: Case, f: Composite, a: Tensor, kappa: float, steps: int) -> Tensor:
    point = Momentum(a, a, 2.0)
    for _ in range(steps):
        point = AcceleratedProximalStep()(f, point, kappa)
    return point.x


CLAIMS = (
    Claim(
        id="sparse_coding.gradient",
        statement="The closed-form gradient of the reconstruction error in the codes is its gradient.",
        equation=r"$\nabla\,\frac{1}{2}\Vert X - D A\Vert^2 = D^\top (D A - X)$",
        source="Gregor and LeCun, LISTA, 2010, eq. 1",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(_make, _naive, _condition, lambda case, f, x: max(norm(x), case.scale)),
        mutants=of_gradient(
            data_left_out=lambda case, f, x: x @ f.dictionary.mT @ f.dictionary,
            data_added=lambda case, f, x: (x @ f.dictionary.mT + f.data) @ f.dictionary,
            Gram_matrix_left_out=lambda case, f, x: x - f.data @ f.dictionary,
            another_tokens_data=lambda case, f, x: (x @ f.dictionary.mT - f.data.flip(-2)) @ f.dictionary,
        ),
        structured=STRUCTURED,
        code=("objectives.sparse_coding:Reconstruction",),
    ),
    Claim(
        id="sparse_coding.smoothness",
        statement="The reconstruction error is ‖D‖²-smooth in the codes, and no smoother.",
        equation=r"$L = \Vert D\Vert_2^2$",
        source="derived: the Hessian is DᵀD",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=smoothness_measure(_make, _attained),
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            norm_for_its_square=lambda case, f, x: 0.99 * f.lipschitz(x) ** 0.5,
            Frobenius_norm=lambda case, f, x: f.dictionary.square().sum(),
            smallest_singular_value=lambda case, f, x: torch.linalg.matrix_norm(f.dictionary, -2) ** 2,
        ),
        structured=SINGLE,
        code=("objectives.sparse_coding:Reconstruction",),
    ),
    Claim(
        id="sparse_coding.prox",
        statement="The soft threshold is the proximal operator of λ‖·‖₁, and the shifted ReLU that of its restriction to"
        " codes that are not negative.",
        equation=r"$\mathrm{prox}_{\eta\lambda}(x) = \mathrm{argmin}_z\; \eta\lambda\Vert z\Vert_1 +"
        r" \frac{1}{2}\Vert z - x\Vert^2$",
        source=f"{FISTA}, eq. 1.5; CRATE, arXiv 2306.01129, eq. 17",
        kind="identity",
        domain=cases(),
        subject=lambda case, term, x, eta: term.prox(x, eta),
        measure=_prox,
        mutants=named(
            hard_threshold=lambda case, term, x, eta: torch.where(x.abs() > eta * term.weight, x, 0 * x),
            threshold_not_scaled_by_the_step=lambda case, term, x, eta: term.prox(x, 1.0),
            shift_without_clamp=lambda case, term, x, eta: x - eta * term.weight * x.sign(),
            threshold_doubled=lambda case, term, x, eta: term.prox(x, 2 * eta),
            sign_lost=lambda case, term, x, eta: term.prox(x, eta).abs(),
            soft_threshold_for_both=lambda case, term, x, eta: L1(term.weight).prox(x, eta),
            all_NaN=lambda case, term, x, eta: x * torch.nan,
        ),
        structured=STRUCTURED,
        code=("objectives.sparse_coding:L1", "objectives.sparse_coding:NonNegativeL1"),
    ),
    Claim(
        id="sparse_coding.descent",
        statement="A proximal step with κ < 2/L lowers the sparse coding objective by what is promised.",
        equation=r"$F(A) - F(A^+) \geq (\frac{1}{\kappa} - \frac{L}{2})\,\Vert A^+ - A\Vert^2$",
        source=f"{FISTA}, lemma 2.3, with the strong convexity of the proximal problem",
        kind="inequality",
        domain=cases(),
        subject=_proximal_promise,
        measure=_descent,
        mutants=named(
            twice_the_promise=lambda case, f, a, k, L: (
                ProximalStep()(f, a, k),
                2 * _proximal_promise(case, f, a, k, L)[1],
            ),
            uphill=lambda case, f, a, k, L: (
                2 * a - ProximalStep()(f, a, k),
                _proximal_promise(case, f, a, k, L)[1],
            ),
            step_of_three_over_L=lambda case, f, a, k, L: (ProximalStep()(f, a, 3 / L), 0.0),
            curvature_left_out=lambda case, f, a, k, L: (
                ProximalStep()(f, a, k),
                norm(ProximalStep()(f, a, k) - a) ** 2 / k,
            ),
            gradient_alone=lambda case, f, a, k, L: (
                a - k * f.smooth.gradient(a),
                (1 / k - L / 2) * norm(k * f.smooth.gradient(a)) ** 2,
            ),
        ),
        structured=(
            *SINGLE,
            *(dataclasses.replace(case, seed=1, step=1.9) for case in SINGLE),
            Case(tokens=1, heads=1, head_dim=1, m=1, step=1.9, scale=10.0),
        ),
        code=("unrolling.proximal:ProximalStep",),
    ),
    Claim(
        id="sparse_coding.accelerated",
        statement="The accelerated proximal step is FISTA's recursion, and keeps FISTA's bound.",
        equation=r"$F(A_n) - F^\ast \leq 2L\,\Vert A_0 - A^\ast\Vert^2 / (n+1)^2$",
        source=f"{FISTA}, eq. 4.1 to 4.3, theorem 4.4",
        kind="bound",
        domain=cases(tokens=(1, 4), batches=(0,), scales=(1.0, 0.1, 10.0)),
        subject=_six,
        measure=_accelerated,
        mutants=named(
            no_momentum=_plain_six,
            momentum_from_the_start=_restarted,
            uphill=lambda case, f, a, k, n: 2 * a - _six(case, f, a, k, n),
            step_of_three_over_L=lambda case, f, a, k, n: _six(case, f, a, 3 * k, n),
            one_step_fewer=lambda case, f, a, k, n: _six(case, f, a, k, n - 1),
            all_NaN=lambda case, f, a, k, n: a * torch.nan,
        ),
        structured=(Case(), Case(seed=1), Case(tokens=1), Case(kind="zero"), Case(sharpness=10.0, tokens=3)),
        code=("unrolling.proximal:AcceleratedProximalStep",),
        real=False,
    ),
)
