"""Claims on CBSA's objectives: the representatives' rate, frozen and not, and their energy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import (
    CodingRate,
    Objective,
    RepresentativeNorm,
    RepresentativeRate,
    SoftRepresentativeRate,
    feasibility_gap,
    lift,
    project,
)

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import (
    bases,
    by_head,
    columns,
    gradient_measure,
    norm,
    rate_condition,
    reference,
    score_condition,
    slices,
)
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, tolerance
from .coding_rate import bend_of_rate, combine, lipschitz, smoothness_measure

__all__ = ["CLAIMS"]

CBSA = "Wen et al., CBSA, arXiv 2509.16875"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)


def _make(case: Case) -> RepresentativeRate:
    return RepresentativeRate(case.U(), case.P(), case.epsilon)


def _make_norm(case: Case) -> RepresentativeNorm:
    return RepresentativeNorm(case.U(), case.P())


def _make_soft(case: Case) -> SoftRepresentativeRate:
    if case.seed % 2:
        pooling = torch.softmax(case.draw("pooling", case.m, case.tokens), -1)
        return SoftRepresentativeRate(case.U(), case.softmax_scale, pooling=pooling, epsilon=case.epsilon)
    return SoftRepresentativeRate(case.U(), case.softmax_scale, queries=case.queries(), epsilon=case.epsilon)


def _naive(case: Case, b: int) -> Any:
    U, A = bases(case.U()), by_head(case.P())
    return lambda Z: paper.cbsa_eq4(Z, U, A, case.epsilon)


def _naive_norm(case: Case, b: int) -> Any:
    U, A = bases(case.U()), by_head(case.P())
    return lambda Z: paper.representative_norm(Z, U, A)


def _naive_soft(case: Case, b: int) -> Any:
    objective, U = _make_soft(case), bases(case.U())

    def value(Z: Any) -> Any:
        A = []
        for k, Uk in enumerate(U):
            W = Uk.T @ Z
            q = by_head(case.queries())[k] if objective.pooling is None else W @ objective.pooling.numpy().T
            A.append(paper.cbsa_eq5(q, W, case.softmax_scale))
        return paper.cbsa_eq4(Z, U, A, case.epsilon)

    return value


def _condition(case: Case, objective: Any, x: Tensor) -> float:
    return rate_condition(objective.representatives(x), float(objective.beta()))


def _soft_condition(case: Case, objective: Any, x: Tensor) -> float:
    w = project(x, objective.U)
    q = case.queries() if objective.pooling is None else objective.pooling @ w
    rate = _condition(case, objective.frozen_at(x), x)
    return rate * score_condition(q, w, case.softmax_scale)


def _soft_bend(case: Case, objective: Any, x: Tensor) -> float:
    frozen = objective.frozen_at(x)
    w = project(x, objective.U)
    q = case.queries() if objective.pooling is None else objective.pooling @ w
    largest = max(norm(q[..., i, :]) for i in range(q.shape[-2]))
    return min(bend_of_rate(case, frozen, x), 0.3 / (case.softmax_scale * largest + 1e-300))


def _beta_factor(factor: Any) -> Any:
    def subject(case: Case, objective: Any, x: Tensor) -> Tensor:
        return dataclasses.replace(objective, epsilon=objective.epsilon / factor(case) ** 0.5).gradient(x)

    return subject


def _value(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    got = subject(case, _make(case), x).double().reshape(-1)
    parts = []
    for b, (point,) in enumerate(slices(exact.x())):
        want = float(_naive(exact, b)(columns(point)))
        if want <= 1e-280:
            parts.append(Measurement((Comparison("at rest", abs(float(got[b])), 1e-15),), evidence=False))
            continue
        allowed = tolerance(case.dtype, _condition(exact, _make(exact), point), case.dim / want)
        error = abs(float(got[b]) - want) / want
        parts.append(Measurement((Comparison("paper's sum", error, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def _attained(case: Case) -> tuple[Objective, Tensor]:
    objective = _make(case)
    norms = torch.linalg.matrix_norm(objective.P, 2)
    k = int(norms.argmax())
    right = torch.linalg.svd(objective.P[k], full_matrices=False).Vh[0]
    return objective, torch.outer(right, objective.U[k, :, 0])


def _freezing(subject: Any, case: Case) -> Measurement:
    case = dataclasses.replace(reference(case), seed=case.seed - case.seed % 2)
    objective, x = _make_soft(case), case.x()
    z = x.clone().requires_grad_()
    (full,) = torch.autograd.grad(objective.value(z).sum(), z)
    frozen = objective.frozen_at(x).gradient(x)
    cosine, ratio = subject(case, frozen, objective.gradient(x))
    size = norm(full)
    if size == 0 or norm(frozen) == 0:
        return Measurement(evidence=False)
    true_cosine = float((frozen * full).sum()) / size / norm(frozen)
    allowed = tolerance("float64", _soft_condition(case, objective, x))
    return Measurement(
        (
            Comparison("cosine, full gradient by reverse mode", abs(cosine - true_cosine), allowed),
            Comparison("norm ratio, by reverse mode", abs(ratio * size / norm(frozen) - 1), allowed),
        ),
        allowed <= MEANINGFUL and case.tokens > 1,
        {"cosine of frozen and full gradient": cosine, "norm of frozen over full": ratio},
    )


def _cosine_and_ratio(case: Case, frozen: Tensor, full: Tensor) -> tuple[float, float]:
    product = norm(frozen) * norm(full)
    return (float((frozen * full).sum()) / product if product else 0.0), norm(frozen) / max(norm(full), 1e-300)


def _feasibility(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    x, soft = (
        exact.x(),
        SoftRepresentativeRate(exact.U(), exact.softmax_scale, queries=exact.queries(), epsilon=exact.epsilon),
    )
    frozen = soft.frozen_at(x)
    got = subject(exact, frozen, x)
    Z = columns(x)
    pairs = [
        (
            float(paper.coding_rate(Uk.T @ Z @ Ak, exact.epsilon)),
            float(paper.coding_rate(Uk.T @ Z, exact.epsilon)),
        )
        for Uk, Ak in zip(bases(exact.U()), by_head(frozen.P), strict=True)
    ]
    gaps, whole = np.array([abs(few - every) for few, every in pairs]), sum(map(sum, pairs))
    if whole == 0:
        return Measurement(evidence=False)
    condition = rate_condition(project(x, frozen.U), exact.head_dim / exact.epsilon**2)
    allowed = tolerance("float64", condition, exact.dim / whole)
    error = norm(got.double() - torch.from_numpy(gaps)) / whole
    share = float(gaps.sum()) / max(sum(every for _, every in pairs), 1e-300)
    return Measurement(
        (Comparison("gap of every head", error, allowed),),
        allowed <= MEANINGFUL,
        {"gap a head (nats)": float(gaps.mean()), "gap over the tokens' rate": share},
    )


def _contracted(objective: RepresentativeRate, x: Tensor) -> Tensor:
    """β Q (I + βQᵀQ)⁻¹: the coding rate's gradient at the representatives."""
    return CodingRate(objective.epsilon).gradient(objective.representatives(x))


CLAIMS = (
    Claim(
        id="representatives.value",
        statement="The representatives' rate equals its definition, with β at the sizes of the representatives.",
        equation=r"$F(Z) = \sum_k \frac{1}{2}\log\det(I + \frac{p}{m\epsilon^2} Q_k Q_k^\top), \quad Q_k = U_k^\top Z A_k$",
        source=f"{CBSA}, eq. 4",
        kind="identity",
        domain=cases(),
        subject=lambda case, f, x: f.value(x),
        measure=_value,
        mutants=named(
            half_dropped=lambda case, f, x: 2 * f.value(x),
            N_for_m=lambda case, f, x: dataclasses.replace(f, tokens=x.shape[-2]).value(x),
            epsilon_for_its_square=lambda case, f, x: dataclasses.replace(f, epsilon=f.epsilon**0.5).value(x),
            another_heads_P=lambda case, f, x: dataclasses.replace(f, P=f.P.roll(1, 0)).value(x),
            all_NaN=lambda case, f, x: f.value(x) * torch.nan,
        ),
        structured=STRUCTURED,
        code=("objectives.representatives:RepresentativeRate",),
    ),
    Claim(
        id="representatives.gradient",
        statement="With the extraction weights frozen, the closed-form gradient of the representatives' rate is its"
        " gradient.",
        equation=r"$\nabla F = \sum_k \beta\, U_k Q_k (I + \beta Q_k^\top Q_k)^{-1} A_k^\top, \quad \beta = \frac{p}{m\epsilon^2}$",
        source=f"{CBSA}, eq. 4 and 7",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(_make, _naive, _condition, bend_of_rate),
        mutants=of_gradient(
            epsilon_for_its_square=_beta_factor(lambda case: case.epsilon),
            N_for_m=_beta_factor(lambda case: case.m / case.tokens),
            d_for_p=_beta_factor(lambda case: case.dim / case.head_dim),
            another_heads_P_in_the_broadcast=lambda case, f, x: lift(f.P.roll(1, 0).mT @ _contracted(f, x), f.U),
            contraction_dropped=lambda case, f, x: lift(float(f.beta()) * (f.P.mT @ f.representatives(x)), f.U),
            broadcast_evenly=lambda case, f, x: lift(
                torch.full_like(f.P, 1 / f.P.shape[-1]).mT @ _contracted(f, x), f.U
            ),
        ),
        structured=STRUCTURED,
        code=("objectives.representatives:RepresentativeRate",),
        frozen="P_k",
    ),
    Claim(
        id="representatives.smoothness",
        statement="With the extraction weights frozen, the representatives' rate is β max‖P_k‖²-smooth, and no smoother.",
        equation=r"$L = \frac{p}{m\epsilon^2}\,\max_k \Vert A_k\Vert_2^2$",
        source="derived: the Hessian at Z = 0 is β A A^T on each head",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=smoothness_measure(_make, _attained),
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            norm_for_its_square=lambda case, f, x: f.lipschitz(x) / torch.linalg.matrix_norm(f.P, 2).max(),
            N_for_m=lambda case, f, x: f.lipschitz(x) * case.m / case.tokens,
            first_head_only=lambda case, f, x: f.beta() * torch.linalg.matrix_norm(f.P[0], 2) ** 2,
            norm_of_P_left_out=lambda case, f, x: torch.as_tensor(f.beta()),
            epsilon_for_its_square=lambda case, f, x: f.lipschitz(x) * case.epsilon,
        ),
        structured=SINGLE,
        code=("objectives.representatives:RepresentativeRate",),
        frozen="P_k",
    ),
    Claim(
        id="representatives.full_gradient",
        statement="With nothing frozen, the closed-form gradient through the softmax extraction is the gradient, for"
        " constant and for pooled queries.",
        equation=r"$\nabla F = \sum_k U_k\,[\,G_k A_k^\top + s\, q_k J_k^\top\,], \quad"
        r" J_k = A_k^\top \circ (G_k^\top W_k - \mathrm{rowsum})$",
        source=f"{CBSA}, eq. 4 with eq. 5; derived here",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(_make_soft, _naive_soft, _soft_condition, _soft_bend),
        mutants=of_gradient(
            extraction_frozen=lambda case, f, x: f.frozen_at(x).gradient(x),
            scale_dropped=lambda case, f, x: (
                f.frozen_at(x).gradient(x) + (f.gradient(x) - f.frozen_at(x).gradient(x)) / case.softmax_scale * 1.5
            ),
            softmax_part_with_the_other_sign=lambda case, f, x: 2 * f.frozen_at(x).gradient(x) - f.gradient(x),
        ),
        structured=tuple(dataclasses.replace(case, seed=s) for case in STRUCTURED for s in (0, 1)),
        code=("objectives.representatives:SoftRepresentativeRate",),
    ),
    Claim(
        id="representatives.freezing",
        statement="Freezing the extraction weights leaves out a part of the gradient; cosine and norm ratio of what is"
        " kept are measured against the full gradient.",
        equation=r"$\cos(\nabla F|_{A},\, \nabla F), \quad \Vert\nabla F|_A\Vert / \Vert\nabla F\Vert$",
        source=f"{CBSA}, eq. 4 to 7",
        kind="measured",
        domain=cases(batches=(0,), scales=(1.0, 0.1, 10.0), kinds=("gaussian", "subspaces", "shifted", "one_far")),
        subject=_cosine_and_ratio,
        measure=_freezing,
        mutants=named(
            frozen_for_full=lambda case, frozen, full: _cosine_and_ratio(case, frozen, frozen),
            ratio_upside_down=lambda case, frozen, full: _cosine_and_ratio(case, full, frozen),
            all_NaN=lambda case, frozen, full: (float("nan"), float("nan")),
        ),
        structured=(
            Case(),
            Case(tokens=40, heads=3, head_dim=4, m=6),
            Case(tokens=40, heads=3, head_dim=4, m=40, seed=2),
            Case(tokens=9, heads=2, head_dim=3, kind="subspaces"),
        ),
        code=("objectives.representatives:SoftRepresentativeRate",),
    ),
    Claim(
        id="representatives.feasibility",
        statement="CBSA's constraint |R(Q_k) − R(W_k)| ≤ τ is far from met by random initial representatives: the gap"
        " is measured.",
        equation=r"$\tau_k = |R(U_k^\top Z A_k) - R(U_k^\top Z)|$",
        source=f"{CBSA}, eq. 4",
        kind="measured",
        domain=cases(batches=(0,), kinds=("gaussian", "subspaces", "shifted"), scales=(1.0, 10.0), epsilons=(0.5, 0.2)),
        subject=lambda case, f, x: feasibility_gap(f, x),
        measure=_feasibility,
        mutants=named(
            betas_exchanged=lambda case, f, x: feasibility_gap(dataclasses.replace(f, tokens=x.shape[-2]), x),
            half_dropped=lambda case, f, x: 2 * feasibility_gap(f, x),
            zero=lambda case, f, x: 0 * feasibility_gap(f, x),
            all_NaN=lambda case, f, x: feasibility_gap(f, x) * torch.nan,
        ),
        structured=(Case(), Case(tokens=40, heads=3, head_dim=4, m=6)),
        code=("objectives.representatives:feasibility_gap",),
    ),
    Claim(
        id="representatives.norm.gradient",
        statement="The closed-form gradient of the representatives' energy, CBSA without contraction, is its gradient.",
        equation=r"$\nabla\, \frac{1}{2}\sum_k \Vert U_k^\top Z A_k\Vert^2 = \sum_k U_k U_k^\top Z A_k A_k^\top$",
        source=f"{CBSA}, section 3.3",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            _make_norm,
            _naive_norm,
            lambda case, f, x: norm(f.P) ** 2,
            lambda case, f, x: max(norm(x), 1e-3),
        ),
        mutants=of_gradient(
            P_for_its_Gram_matrix=lambda case, f, x: lift(f.P.mT @ (f.P @ project(x, f.U)) * 0.5, f.U),
            another_heads_P_in_the_broadcast=lambda case, f, x: (
                lift(f.P.roll(1, 0).mT @ (f.P @ project(x, f.U)), f.U) if case.heads > 1 else 0 * x
            ),
            not_projected=lambda case, f, x: (f.P.mT @ f.P).sum(0) @ x,
        ),
        structured=STRUCTURED,
        code=("objectives.representatives:RepresentativeNorm",),
        frozen="P_k",
    ),
)
