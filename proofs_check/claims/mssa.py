"""Claims on multi-head subspace self-attention: its two exact readings, and what its sign does to the rate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm

from objectives import SelfAttentionEnergy, SubspaceCodingRate, lift, project
from unrolling import MSSA

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import (
    bases,
    columns,
    identity,
    inequality,
    norm,
    rate_condition,
    reference,
    score_condition,
    step_measure,
)
from ..mutants import forward, named, of_step
from ..oracles import mp_array, mp_derivative
from ..strategies import STRUCTURED, WITNESS, WITNESS_6, WITNESS_9, WITNESS_10, Case, cases
from .coding_rate import _count, combine
from .softmax_energy import _cancellation, _mssa, _tied

__all__ = ["CLAIMS", "certified_measure", "exact_kappa", "minus_descends_measure"]

CRATE = "Yu et al., CRATE, arXiv 2306.01129"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
GAUSSIAN = Case(tokens=40, heads=3, head_dim=4)
NEUMANN = Case(tokens=64, heads=1, head_dim=8, kind="unit", epsilon=0.25)


def exact_kappa(case: Case, count: int) -> float:
    """κ = step/β with β = p/(count ε²)."""
    return case.step * count * case.epsilon**2 / case.head_dim


def _exact(case: Case) -> MSSA:
    return MSSA(
        case.dim,
        case.heads,
        U=case.U(),
        epsilon=case.epsilon,
        step_size=exact_kappa(case, case.tokens),
        form="exact",
    )


def _softmax(case: Case) -> MSSA:
    return MSSA(case.dim, case.heads, U=case.U(), scale=case.softmax_scale, step_size=0.5 * case.step, form="softmax")


def _beta(case: Case, count: int) -> float:
    return case.head_dim / (count * case.epsilon**2)


def _exact_condition(case: Case, layer: Any, z: Tensor) -> float:
    return rate_condition(z, _beta(case, case.tokens))


def _softmax_condition(case: Case, layer: Any, z: Tensor) -> float:
    w = project(z, case.U())
    return score_condition(w, w, case.softmax_scale) * _cancellation(w, layer.update(z).detach() / (0.5 * case.step))


def _rate_bend(case: Case, layer: Any, z: Tensor) -> float:
    return 0.3 / float(layer.objective_at(z).lipschitz(z).max()) ** 0.5


def _energy_bend(case: Case, layer: Any, z: Tensor) -> float:
    largest = float(project(z, case.U()).norm(dim=-1).max())
    return 0.5 / (case.softmax_scale * largest + 1e-3 / max(norm(z), 1e-3))


def _frozen_energy(case: Case, layer: Any, z: Tensor, b: int) -> Any:
    U = bases(case.U())
    keys = [Uk.T @ columns(z.reshape(-1, *z.shape[-2:])[b]) for Uk in U]
    return lambda Z: paper.self_attention_energy(Z, U, keys, case.softmax_scale)


def _wrong_rate(epsilon: Any = None, count: Any = None) -> Any:
    def subject(case: Case, layer: MSSA, x: Tensor) -> Tensor:
        wrong = SubspaceCodingRate(
            case.U(),
            case.epsilon if epsilon is None else epsilon(case),
            case.tokens if count is None else count(case),
        )
        return x - exact_kappa(case, case.tokens) * wrong.gradient(x)

    return subject


def _attend(case: Case, x: Tensor, weights: Any) -> Tensor:
    w = project(x, case.U())
    return x + 0.5 * case.step * lift(weights(case.softmax_scale, w), case.U())


def _wrong_attention(weights: Any) -> Any:
    return lambda case, layer, x: _attend(case, x, weights)


def _flops(subject: Any, case: Case) -> Measurement:
    N, layer = 7 * case.tokens, MSSA(12, 3, form="softmax", basis="free")
    x = torch.randn(1, N, 12, generator=torch.Generator().manual_seed(case.seed))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        counted = _count(lambda: layer(x))
    claimed = subject(N, 12)
    return Measurement((Comparison("multiply-adds", abs(counted - claimed), 0.0),), values={"multiply-adds": counted})


def _neumann(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    x = exact.x()
    largest = norm(torch.linalg.matrix_norm(x, 2))
    if largest < 1e-150:
        return Measurement(evidence=False)
    N, d = x.shape
    beta, sizes, errors = d / (N * case.epsilon**2), [], []
    for i in range(5):
        small = 0.02 / 2**i  # βλ_max
        z = columns(x) * (small / beta) ** 0.5 / largest
        step = z - paper.crate_eq11(z, [np.eye(d)], case.epsilon, 1 / beta)
        got = z - subject(z, z @ z.T, 1 / beta, beta)
        sizes.append(small)
        errors.append(norm(got - step) / norm(step))
    if min(errors) < 1e-14:
        slope = 0.0 if max(errors) > 1e-3 else float("nan")
        return Measurement((Comparison("order 2 in βZᵀZ", abs(slope - 2), 0.1),), evidence=False)
    slope = float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
    curve = tuple(zip(sizes, errors, strict=True))
    return Measurement((Comparison("order 2 in βZᵀZ", abs(slope - 2), 0.1),), values={"order": slope}, curve=curve)


def _neumann_direction(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    x, beta = exact.x(), _beta(case, case.tokens)
    rate = SubspaceCodingRate(exact.U(), case.epsilon)
    true, U = rate.gradient(x), exact.U()
    first = subject(exact, x, beta)
    soft = _mssa(exact, x, U, exact.head_dim**-0.5)
    if norm(true) * norm(first) == 0:
        return Measurement(evidence=False)
    cosine = _cosine(first, true)
    Z, direction = columns(x), columns(first)
    slope = _along(lambda M: paper.crate_eq8(M, bases(U), case.epsilon), Z, direction, bend=0.3 / beta**0.5)
    confirmed = abs(slope / (norm(true) * norm(first)) - cosine)
    largest = beta * float(torch.linalg.matrix_norm(project(x, U), 2).max()) ** 2
    values = {
        "cosine, Neumann": cosine,
        "cosine, softmax": _cosine(soft, true),
        "largest eigenvalue of βZᵀZ": largest,
    }
    return Measurement((Comparison("slope of the rate", confirmed, 1e-6),), True, values, truth=cosine > 0)


def _along(f: Any, Z: Any, direction: Any, bend: float) -> float:
    from ..oracles import richardson_derivative

    size = norm(direction)
    return size * richardson_derivative(lambda t: float(f(Z + t * direction / size)), bend / 2)[0]


def _cosine(a: Tensor, b: Tensor) -> float:
    product = norm(a) * norm(b)
    return float((a * b).sum()) / product if product else 0.0


def certified_measure(make: Any) -> Any:
    """A certified layer: κ L = step where L is known exactly, 0 < κ L ≤ step where it is bounded, and f falls.

    make(case) builds the layer with ``step_size=case.step``; the subject, called as (case, layer, x), returns the
    steps of the heads and the next tokens.
    """

    def measure(subject: Any, case: Case) -> Measurement:
        exact = reference(dataclasses.replace(case, batch=0))
        layer, x = make(exact), exact.x()
        with torch.no_grad():
            kappa, after = subject(exact, layer, x)
            objective = layer.objective_at(x)
            gradient = objective.gradient(x)
        lipschitz, squared = float(objective.lipschitz(x).max()), norm(gradient) ** 2
        if squared == 0 or not lipschitz > 0:
            return Measurement(evidence=False)
        if not bool(torch.isfinite(after).all()):
            return Measurement((Comparison("finite tokens", float("nan"), 0.0),))
        # Steps of every head's own are the weights of the objective's heads: its L is max_k κ_k L_k, its step 1.
        declared = layer.kappa(layer.bounds_at(x)).detach()
        step = float(kappa) if kappa.ndim == 0 else 1.0
        share = lipschitz * (step if kappa.ndim == 0 else float((kappa / declared).abs().max()))
        start, end = float(objective.value(x)), float(objective.value(after))
        first_order = step * squared
        promised = first_order * (1 - exact.step / 2)
        noise = (abs(start) + norm(gradient) * norm(x) + exact.dim) / abs(first_order)
        rounding = rate_condition(x, _beta(exact, min(exact.tokens, exact.m)))
        return combine(
            Measurement((Comparison("κL within the certificate", max(0.0, share / exact.step - 1), 1e-9),)),
            Measurement((Comparison("κL is positive", float(not share > 0), 0.0),)),
            inequality("promised decrease", promised, start - end, abs(first_order), "float64", rounding * noise),
        )

    return measure


def _certified_layer(case: Case) -> MSSA:
    form = "softmax" if case.seed % 2 else "exact"
    sign = -1.0 if form == "softmax" else 1.0
    return MSSA(
        case.dim,
        case.heads,
        U=case.U(),
        epsilon=case.epsilon,
        scale=case.softmax_scale,
        form=form,
        certified=True,
        per_head_step=case.seed % 4 > 1,
        step_size=sign * case.step,
    )


def certified(case: Case, layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The usual subject of a certificate: the layer's steps and its forward pass."""
    return layer.kappa(layer.bounds_at(x)), layer(x)


def stretched(factor: float) -> Any:
    """A mutant whose steps are ``factor`` times too long."""

    def subject(case: Case, layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        kappa, after = certified(case, layer, x)
        return factor * kappa, x + factor * (after - x)

    return subject


def _exact_descends(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    layer, x = _exact(exact), exact.x()
    with torch.no_grad():
        after, gradient = subject(exact, layer, x), SubspaceCodingRate(exact.U(), exact.epsilon).gradient(x)
    squared, kappa = norm(gradient) ** 2, exact_kappa(exact, exact.tokens)
    if squared == 0:
        return Measurement((Comparison("at rest", norm(after - x), 0.0),), evidence=False)
    U = bases(exact.U())
    start, end = (float(paper.crate_eq8(columns(z), U, exact.epsilon)) for z in (x, after))
    rounding = rate_condition(x, _beta(exact, exact.tokens)) * (exact.dim + start) / (kappa * squared)
    promised = kappa * (1 - exact.step / 2) * squared
    return inequality("decrease", promised, start - end, kappa * squared, "float64", rounding)


def _inner_product(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    parts = []
    for w in project(exact.x(), exact.U()):
        inner, bound = subject(exact, w, exact.softmax_scale)
        squares = norm(w) ** 2
        parts.append(
            inequality(
                "⟨W, MSSA(W)⟩ ≥ N‖w̄‖²",
                bound,
                inner,
                squares,
                "float64",
                score_condition(w, w, exact.softmax_scale),
            )
        )
    return combine(*parts)


def _inner_and_bound(case: Case, w: Tensor, s: float) -> tuple[float, float]:
    attended = torch.softmax(s * (w @ w.mT), -1) @ w
    return float((w * attended).sum()), len(w) * norm(w.mean(0)) ** 2


def _large_epsilon(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    x, U, s = exact.x(), exact.U(), exact.softmax_scale
    beta = _beta(exact, exact.tokens)
    inner = float((SubspaceCodingRate(U, exact.epsilon).gradient(x) * _mssa(exact, x, U, s)).sum()) / beta
    bound, scale = 0.0, 0.0
    for w in project(x, U):
        attended = torch.softmax(s * (w @ w.mT), -1) @ w
        bound += subject(len(w), w.mean(0), beta * float(torch.linalg.matrix_norm(w, 2)) ** 2, norm(w) * norm(attended))
        scale += norm(w) * norm(attended)
    condition = rate_condition(x, beta) * score_condition(project(x, U), project(x, U), s)
    return inequality("⟨∇R_c, MSSA⟩/β", bound, inner, scale, "float64", condition)


def _bound_of_alignment(N: int, mean: Tensor, largest: float, product: float) -> float:
    return N * norm(mean) ** 2 - largest / (1 + largest) * product


def minus_descends_measure(subject: Any, case: Case) -> Measurement:
    """⟨∇R_c, direction⟩ in float64 and, on small cases, as a derivative in fifty digits."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, U, s = exact.x(), exact.U(), exact.softmax_scale
    gradient = SubspaceCodingRate(U, exact.epsilon).gradient(x)
    direction = subject(exact, x, gradient, s)
    product = norm(gradient) * norm(direction)
    if product == 0:
        return Measurement(evidence=False)
    cosine = float((gradient * direction).sum()) / product
    done = []
    if x.numel() <= 44:
        M, V = mp_array(columns(x)), mp_array(columns(direction))
        rate = mp_derivative(
            lambda t: paper.crate_eq8(M + t * V, bases(U), exact.epsilon), 1 / max(norm(direction), 1e-300)
        )
        done.append(Comparison("fifty digits", abs(rate / product - cosine), 1e-9))
    return Measurement(tuple(done), True, {"cosine of ∇R_c and MSSA": cosine}, truth=cosine > 0)


def _skip_lowers(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    x, U = exact.x(), exact.U()
    after = subject(exact, x, U, exact.softmax_scale)
    start, end = (float(paper.crate_eq8(columns(z), bases(U), exact.epsilon)) for z in (x, after))
    rate = SubspaceCodingRate(U, exact.epsilon)
    agree = abs(float(rate.value(after)) - end) / max(end, 1e-300)
    change = end / start - 1 if start > 0 else 0.0
    return Measurement(
        (Comparison("both codes of the rate", agree, 1e-9),),
        start > 0,
        {"relative change of R_c": change},
        truth=change <= 1e-12,
    )


def _variants(case: Case, x: Tensor, U: Tensor) -> dict[str, Tensor]:
    """The updates of one table: exact, softmax of either sign, shrunk and added."""
    s, beta = case.softmax_scale, _beta(case, len(x))
    attended = _mssa(case, x, U, s)
    return {
        "Z − ∇R_c/β": x - SubspaceCodingRate(U, case.epsilon).gradient(x) / beta,
        "Z + MSSA": x + attended,
        "Z − MSSA": x - attended,
        "½Z + ½MSSA": 0.5 * x + 0.5 * attended,
    }


def _table(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    x, U, s = exact.x(), exact.U(), exact.softmax_scale
    Z, blocks = columns(x), bases(U)
    beta = _beta(exact, len(x))
    attended = paper.crate_eq14(Z, blocks, s)
    wanted = {
        "Z − ∇R_c/β": paper.crate_eq11(Z, blocks, exact.epsilon, 1 / beta),
        "Z + MSSA": Z + attended,
        "Z − MSSA": Z - attended,
        "½Z + ½MSSA": (Z + attended) / 2,
    }
    start, unit_start = paper.crate_eq8(Z, blocks, exact.epsilon), _unit_rate(Z, blocks, exact.epsilon)
    if start <= 0:
        return Measurement(evidence=False)
    condition = rate_condition(x, beta) * score_condition(project(x, U), project(x, U), s)
    parts, values = [], {}
    for name, got in subject(exact, x, U).items():
        moved = norm(wanted[name] - Z)
        parts.append(identity(name, got.mT, wanted[name], "float64", condition, moved if moved else None))
        values[f"R_c, {name}"] = float(paper.crate_eq8(columns(got), blocks, exact.epsilon) / start - 1)
        values[f"R_c of unit tokens, {name}"] = float(
            _unit_rate(columns(got), blocks, exact.epsilon) / max(unit_start, 1e-300) - 1
        )
    return dataclasses.replace(combine(*parts), values=values)


def _unit_rate(Z: Any, U: Any, epsilon: float) -> float:
    lengths = np.linalg.norm(Z, axis=0, keepdims=True)
    return float(paper.crate_eq8(Z / np.where(lengths > 0, lengths, 1), U, epsilon))


def _prenorm(case: Case, x: Tensor, U: Tensor, s: float) -> Tensor:
    """MSSA of normalised tokens, its keys constant: what a pre-norm block adds at x."""
    keys = project(layer_norm(case.x(), (case.dim,)), U)
    return -SelfAttentionEnergy(U, keys, s).gradient(layer_norm(x, (case.dim,)))


def _chain_rule(case: Case, x: Tensor, U: Tensor, s: float) -> Tensor:
    return torch.autograd.functional.vjp(
        lambda z: layer_norm(z, (case.dim,)), x, _prenorm(case, x, U, s), create_graph=True
    )[1]


CLAIMS = (
    Claim(
        id="mssa.step.exact",
        statement="MSSA's exact form is a gradient step on the compression term.",
        equation=r"$Z - \kappa\sum_k \beta\, U_k W_k (I + \beta W_k^\top W_k)^{-1} = Z - \kappa\nabla R_c(Z\,|\,U)$",
        source=f"{CRATE}, eq. 11",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(
            _exact,
            lambda case, layer, Z, b: paper.crate_eq11(Z, bases(case.U()), case.epsilon, layer.step.item()),
            lambda case, layer, z, b: lambda Z: paper.crate_eq8(Z, bases(case.U()), case.epsilon),
            _exact_condition,
            _rate_bend,
        ),
        mutants=of_step(
            epsilon_for_its_square=_wrong_rate(epsilon=lambda case: case.epsilon**0.5),
            N_not_counted=_wrong_rate(count=lambda case: 1),
            inverse_dropped=lambda case, layer, x: x - case.step * lift(project(x, case.U()), case.U()),
            softmax_form=lambda case, layer, x: x - _mssa(case, x, case.U(), case.softmax_scale),
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.mssa:MSSA",),
    ),
    Claim(
        id="mssa.step.softmax",
        statement="MSSA's softmax form is a gradient step on the self-attention energy with its keys frozen.",
        equation=r"$Z + \kappa\sum_k U_k W_k\,\mathrm{softmax}(s W_k^\top W_k) = Z - \kappa\nabla E(Z),"
        r"\quad E = -\sum_k\sum_i \mathrm{lse}_s(\bar{W}_k^\top w_{k,i})$",
        source=f"{CRATE}, eq. 14 with the output tied, as a step",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(
            _softmax,
            lambda case, layer, Z, b: Z + 0.5 * case.step * paper.crate_eq14(Z, bases(case.U()), case.softmax_scale),
            _frozen_energy,
            _softmax_condition,
            _energy_bend,
        ),
        mutants=of_step(
            softmax_over_the_wrong_axis=_wrong_attention(lambda s, w: torch.softmax(s * (w @ w.mT), -2) @ w),
            scale_doubled=_wrong_attention(lambda s, w: torch.softmax(2 * s * (w @ w.mT), -1) @ w),
            keys_not_frozen=_wrong_attention(
                lambda s, w: 0.5 * ((P := torch.softmax(s * (w @ w.mT), -1)) @ w + P.mT @ w)
            ),
            causal=_wrong_attention(lambda s, w: torch.softmax((s * (w @ w.mT)).tril(), -1) @ w),
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.mssa:MSSA",),
        frozen="keys",
    ),
    Claim(
        id="mssa.certified",
        statement="With certified steps κL stays inside (0, 2) for every head, and the layer's objective falls.",
        equation=r"$0 < \kappa_k L_k < 2 \;\Rightarrow\; f(Z^+) \leq f(Z) - (1 - \frac{\kappa L}{2})\,\kappa\,\Vert\nabla f\Vert^2$",
        source="descent lemma",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=certified,
        measure=certified_measure(_certified_layer),
        mutants=named(
            steps_doubled=stretched(2.0),
            steps_one_percent_long=stretched(1.01),
            opposite_sign=lambda case, layer, x: (layer.kappa(layer.bounds_at(x)), 2 * x - layer(x)),
            no_op=lambda case, layer, x: (layer.kappa(layer.bounds_at(x)), x),
            all_NaN=lambda case, layer, x: (layer.kappa(layer.bounds_at(x)), x * torch.nan),
        ),
        structured=tuple(dataclasses.replace(case, seed=s) for case in SINGLE for s in (0, 1, 2, 3)),
        code=("unrolling.layers.mssa:MSSA",),
        frozen="keys (softmax form)",
    ),
    Claim(
        id="mssa.cost",
        statement="Softmax MSSA takes 2Nd² + 2N²d multiply-adds.",
        equation=r"$2 N d^2 + 2 N^2 d$",
        source="Wen et al., CBSA, arXiv 2509.16875, table 1",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=lambda N, d: 2 * N * d**2 + 2 * N**2 * d,
        measure=_flops,
        mutants=named(
            one_projection=lambda N, d: N * d**2 + 2 * N**2 * d,
            scores_only=lambda N, d: 2 * N * d**2 + N**2 * d,
            linear_in_tokens=lambda N, d: 2 * N * d**2 + 2 * N * d**2,
        ),
        structured=(Case(), Case(tokens=1)),
        code=("unrolling.layers.mssa:MSSA",),
        real=False,
    ),
    Claim(
        id="mssa.neumann",
        statement="To first order in βZᵀZ the exact step is the shrunk tokens plus the Gram term; the error is of second"
        " order.",
        equation=r"$Z - \kappa\beta Z(I + \beta Z^\top Z)^{-1} = (1 - \kappa\beta)\,Z + \kappa\beta^2 Z Z^\top Z"
        r" + O(\Vert\beta Z^\top Z\Vert^2)$",
        source=f"{CRATE}, eq. 12 and 13",
        kind="order",
        domain=cases(batches=(0,), kinds=("gaussian", "orthonormal", "subspaces", "shifted")),
        subject=lambda Z, G, kappa, beta: (1 - kappa * beta) * Z + kappa * beta**2 * (G @ Z),
        measure=_neumann,
        mutants=named(
            shrinkage_dropped=lambda Z, G, kappa, beta: Z + kappa * beta**2 * (G @ Z),
            Gram_term_subtracted=lambda Z, G, kappa, beta: (1 - kappa * beta) * Z - kappa * beta**2 * (G @ Z),
            Gram_term_dropped=lambda Z, G, kappa, beta: (1 - kappa * beta) * Z,
            Gram_term_doubled=lambda Z, G, kappa, beta: (1 - kappa * beta) * Z + 2 * kappa * beta**2 * (G @ Z),
        ),
        structured=tuple(c for c in SINGLE if c.kind not in ("zero", "near_parallel", "one_far")),
        code=("unrolling.layers.mssa:MSSA",),
    ),
    Claim(
        id="mssa.neumann_direction",
        statement="The first terms of the Neumann series, Z(I − βZᵀZ), point along the gradient of the rate at any ε.",
        equation=r"$\langle Z (I - \beta Z^\top Z),\; \nabla R_c(Z)\rangle > 0$",
        source=f"{CRATE}, eq. 12, read for any ε",
        kind="refuted",
        domain=cases(batches=(0,), kinds=("unit",), scales=(1.0,), tokens=(2, 12)),
        subject=lambda case, x, beta: lift((w := project(x, case.U())) - beta * w @ (w.mT @ w), case.U()),
        measure=_neumann_direction,
        mutants=named(
            whole_inverse=lambda case, x, beta: SubspaceCodingRate(case.U(), case.epsilon).gradient(x),
            shrinking_alone=lambda case, x, beta: x,
        ),
        structured=(NEUMANN, *(dataclasses.replace(NEUMANN, epsilon=e) for e in (0.1, 0.5, 1.0, 2.0))),
        code=("objectives.coding_rate:SubspaceCodingRate",),
        correction="The series converges only while the largest eigenvalue of βZᵀZ is below 1; at ε = 0.25 and unit tokens"
        " it is 7, and the truncated series points uphill, where the softmax direction still has cosine 0.93.",
        real=False,
    ),
    Claim(
        id="mssa.sign.exact_descends",
        statement="The exact step never raises the compression term while κ < 2/β.",
        equation=r"$R_c(Z - \kappa\nabla R_c) \leq R_c(Z) - \kappa(1 - \frac{\kappa\beta}{2})\Vert\nabla R_c\Vert^2$",
        source=f"{CRATE}, eq. 11, and the descent lemma",
        kind="inequality",
        domain=cases(batches=(0,), scales=(1.0, 0.01, 0.1, 10.0)),
        subject=forward,
        measure=_exact_descends,
        mutants=named(
            opposite_sign=lambda case, layer, x: 2 * x - layer(x),
            no_op=lambda case, layer, x: x,
            residual_dropped=lambda case, layer, x: layer(x) - x,
            skip_connection_and_softmax=lambda case, layer, x: x + _mssa(case, x, case.U(), case.softmax_scale),
            step_beyond_the_limit=lambda case, layer, x: x + 2.5 / case.step * (layer(x) - x),
            all_NaN=lambda case, layer, x: x * torch.nan,
        ),
        structured=SINGLE,
        code=("unrolling.layers.mssa:MSSA",),
    ),
    Claim(
        id="mssa.sign.skip_raises_rate",
        statement="A skip connection around softmax MSSA, Z + MSSA(Z), lowers the compression term.",
        equation=r"$R_c(Z + \mathrm{MSSA}(Z)\,|\,U) \leq R_c(Z\,|\,U)$",
        source=f"{CRATE}, eq. 14 and its released code, taken literally",
        kind="refuted",
        domain=cases(batches=(0,), kinds=("gaussian", "subspaces", "unit"), scales=(1.0,)),
        subject=lambda case, x, U, s: x + _mssa(case, x, U, s),
        measure=_skip_lowers,
        mutants=named(
            exact_step=lambda case, x, U, s: (
                x - SubspaceCodingRate(U, case.epsilon).gradient(x) * exact_kappa(case, len(x)) / case.step
            ),
            shrunk_and_added=lambda case, x, U, s: 0.5 * x + 0.5 * _mssa(case, x, U, s),
            no_op=lambda case, x, U, s: x,
        ),
        structured=(GAUSSIAN, Case(tokens=64, heads=4, head_dim=8, kind="unit"), Case()),
        code=("unrolling.layers.mssa:MSSA",),
        correction="It raises the rate on almost all inputs. The Gram term comes with a plus sign only together with the"
        " shrinkage (1 − κβ), which the skip connection drops (mssa.neumann). What Z + κMSSA ascends exactly is a"
        " log-sum-exp (softmax_energy.ascent).",
    ),
    Claim(
        id="mssa.sign.minus_descends",
        statement="−MSSA(Z) is a descent direction of the compression term at all tokens.",
        equation=r"$\langle \nabla R_c(Z\,|\,U),\; \mathrm{MSSA}(Z)\rangle > 0$",
        source="natural to believe: true in every random draw; CRATE, arXiv 2306.01129, section 2.3",
        kind="refuted",
        domain=cases(batches=(0,)),
        subject=lambda case, x, gradient, s: _mssa(case, x, case.U(), s),
        measure=minus_descends_measure,
        mutants=named(
            gradient_itself=lambda case, x, gradient, s: gradient,
            shrinking_alone=lambda case, x, gradient, s: x,
            flat_softmax=lambda case, x, gradient, s: _mssa(case, x, case.U(), 1e-9 * s),
        ),
        structured=(WITNESS_6, WITNESS_9, WITNESS_10, WITNESS, GAUSSIAN),
        code=("unrolling.layers.mssa:MSSA",),
        correction="Six tokens in five dimensions break it, found by descent on the cosine (one head, U = I, s = 1, β = 1:"
        " −2.4e-4). By hand, nine: four (1, 4, 0), one (45, −5, 0), two (−1, 0, 3), (−600, 0, 3), (−640, 0, −3); in two"
        " dimensions ten: six (1, 3), three (1000, 2), (1040, −6). With a sharp softmax tokens attend to one far token,"
        " whose value of the least-squares fit of the constant 1 can be negative (mssa.sign.one_hub; whether five can:"
        " mssa.sign.fewest_tokens). True is: −MSSA never points uphill on ½‖ZU‖² (mssa.sign.inner_product), and descends the"
        " rate for large ε (mssa.sign.large_epsilon).",
    ),
    Claim(
        id="mssa.sign.inner_product",
        statement="In every head the tokens and their attention have an inner product of at least N‖w̄‖², so −MSSA never"
        " points uphill on ½‖ZU‖².",
        equation=r"$\langle W_k,\; W_k\,\mathrm{softmax}(s W_k^\top W_k)\rangle \geq N\,\Vert\bar{w}_k\Vert^2 \geq 0$",
        source="derived: the softmax average is the gradient of a convex log-moment function",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=_inner_and_bound,
        measure=_inner_product,
        mutants=named(
            bound_doubled=lambda case, w, s: (
                _inner_and_bound(case, w, s)[0],
                2 * _inner_and_bound(case, w, s)[1],
            ),
            softmax_of_the_negative=lambda case, w, s: (
                float((w * (torch.softmax(-s * (w @ w.mT), -1) @ w)).sum()),
                _inner_and_bound(case, w, s)[1],
            ),
            mean_squared_norm_for_the_bound=lambda case, w, s: (
                _inner_and_bound(case, w, s)[0],
                norm(w) ** 2 * 1.0001,
            ),
            opposite_sign=lambda case, w, s: (
                -_inner_and_bound(case, w, s)[0],
                _inner_and_bound(case, w, s)[1],
            ),
            all_NaN=lambda case, w, s: (float("nan"), 0.0),
        ),
        structured=SINGLE,
        code=("unrolling.layers.mssa:MSSA",),
    ),
    Claim(
        id="mssa.sign.large_epsilon",
        statement="The alignment of MSSA with the rate's gradient is at least N‖w̄‖² less a term that vanishes as ε grows:"
        " for large ε, −MSSA descends the rate.",
        equation=r"$\frac{1}{\beta}\langle\nabla R_c, \mathrm{MSSA}\rangle \geq \sum_k N\Vert\bar{w}_k\Vert^2 -"
        r" \frac{\beta\lambda_k}{1 + \beta\lambda_k}\Vert W_k\Vert\,\Vert\mathrm{MSSA}_k\Vert, \quad \lambda_k = \Vert W_k\Vert_2^2$",
        source="derived from mssa.sign.inner_product and W − W(I + βG)⁻¹ = W βG(I + βG)⁻¹",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=_bound_of_alignment,
        measure=_large_epsilon,
        mutants=named(
            correction_dropped=lambda N, mean, largest, product: N * norm(mean) ** 2,
            correction_added=lambda N, mean, largest, product: N * norm(mean) ** 2 + largest / (1 + largest) * product,
            correction_halved=lambda N, mean, largest, product: (
                N * norm(mean) ** 2 - 0.5 * largest / (1 + largest) * product
            ),
            bound_doubled=lambda N, mean, largest, product: 2 * _bound_of_alignment(N, mean, largest, product),
            all_NaN=lambda N, mean, largest, product: float("nan"),
        ),
        structured=SINGLE,
        code=("unrolling.layers.mssa:MSSA",),
    ),
    Claim(
        id="mssa.sign.table",
        statement="What each update does to the compression term, as it is and for tokens of unit norm, is measured.",
        equation=r"$R_c(Z^+)/R_c(Z) - 1$ for $Z - \nabla R_c/\beta$, $Z \pm \mathrm{MSSA}$, $\frac{1}{2}Z + \frac{1}{2}\mathrm{MSSA}$",
        source=f"{CRATE}, eq. 11 to 14",
        kind="measured",
        domain=cases(batches=(0,), kinds=("gaussian", "subspaces", "unit"), scales=(1.0,), tokens=(2, 12)),
        subject=_variants,
        measure=_table,
        mutants=named(
            signs_exchanged=lambda case, x, U: {
                **(v := _variants(case, x, U)),
                "Z + MSSA": v["Z − MSSA"],
                "Z − MSSA": v["Z + MSSA"],
            },
            exact_step_left_out=lambda case, x, U: {**_variants(case, x, U), "Z − ∇R_c/β": x},
            all_NaN=lambda case, x, U: {name: z * torch.nan for name, z in _variants(case, x, U).items()},
        ),
        structured=(GAUSSIAN, Case(tokens=64, heads=4, head_dim=8, kind="subspaces"), Case()),
        code=("unrolling.layers.mssa:MSSA",),
    ),
    Claim(
        id="mssa.prenorm",
        statement="A published block, x + MSSA(LayerNorm(x)), is a gradient step at x on some energy, its keys held constant.",
        equation=r"$\mathrm{MSSA}(\mathrm{LN}(x)) = \nabla\phi(x)$ for some $\phi$",
        source=f"natural to believe; blocks of the released code of {CRATE}",
        kind="refuted",
        # LayerNorm of one or two features is constant almost everywhere.
        domain=cases(tokens=(2, 4), batches=(0,), scales=(1.0,), kinds=("gaussian",)).filter(lambda c: c.dim > 2),
        subject=_prenorm,
        measure=_tied,
        mutants=named(
            without_the_norm=lambda case, x, U, s: -SelfAttentionEnergy(U, project(case.x(), U), s).gradient(x),
            with_the_norms_own_Jacobian=_chain_rule,
        ),
        structured=(Case(tokens=2, heads=1, head_dim=3), Case(tokens=3)),
        code=("unrolling.layers.mssa:MSSA",),
        correction="The residual adds to x what is a gradient at LayerNorm(x): its Jacobian at x is not symmetric. With"
        " the norm's own Jacobian transposed in front, it is the gradient of T(LN(x)).",
        real=False,
    ),
)
