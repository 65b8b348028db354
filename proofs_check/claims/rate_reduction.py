"""Claims on rate reduction over memberships and subspaces, and on its variational form."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import (
    CodingRate,
    RateReduction,
    SubspaceRateReduction,
    one_hot_memberships,
    relaxed_sparse_rate_reduction,
    sparse_rate_reduction,
)

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, gradient_measure, norm, rate_condition, reference, slices
from ..mutants import gradient, named, of_gradient
from ..strategies import KINDS_OF_TOKENS, STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, SAFETY, tolerance
from .coding_rate import combine, lipschitz

__all__ = [
    "APART",
    "CLAIMS",
    "KINDS",
    "SEEDED",
    "SINGLE",
    "cancelled",
    "changed",
    "class_condition",
    "memberships",
    "rate_bend",
    "reduction_bend",
    "resolved",
    "root",
    "tokens_condition",
    "uniform",
]

MCR2 = "Yu et al., MCR², arXiv 2006.08558"
TOST = "Wu et al., ToST, arXiv 2412.17810"
CRATE = "Yu et al., CRATE, arXiv 2306.01129"
KINDS = (*KINDS_OF_TOKENS, "gaussian", "subspaces", "shifted", "one_far")
"""All kinds, those more often on which ΔR does not vanish."""
SEEDED = tuple(dataclasses.replace(case, seed=i % 3) for i, case in enumerate(STRUCTURED))
"""The seed picks the sort of memberships: soft, sharp or one-hot with an empty class."""
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in SEEDED)

APART = tuple(
    Case(tokens=n, heads=heads, head_dim=p, kind=kind, epsilon=1.0, seed=seed)
    for n, heads, p in ((5, 2, 1), (8, 2, 2), (12, 3, 1))
    for kind in ("gaussian", "subspaces")
    for seed in (1, 2, 4)
)
"""Classes that differ, at an ε where single precision resolves their difference."""


def memberships(case: Case, classes: int, tokens: int | None = None) -> Tensor:
    """Π ``(tokens, classes)``: soft, nearly one-hot, or labels that leave the last of three classes empty."""
    count = case.tokens if tokens is None else tokens
    logits = case.draw("memberships", count, classes)
    if case.seed % 3 == 2:
        labels = logits[:, : max(1, classes - (classes > 2))].argmax(-1)
        return one_hot_memberships(labels, classes, dtype=case.torch_dtype)
    return torch.softmax((2.0, 10.0)[case.seed % 3] * logits, -1)


def _classes(case: Case) -> int:
    return max(3, case.heads + 1)


def _fixed(case: Case) -> NDArray[np.float64]:
    return memberships(case, _classes(case)).numpy()


def _make(case: Case) -> RateReduction:
    return RateReduction(memberships(case, _classes(case)), case.epsilon)


def _make_subspaces(case: Case) -> SubspaceRateReduction:
    return SubspaceRateReduction(case.U(), case.epsilon)


def tokens_condition(case: Case, x: Tensor) -> float:
    """The condition of every class's I + (d/(n_kε²)) Zᵀdiag(π_k)Z: a mean over its members, at most the largest token."""
    return 1.0 + case.dim / case.epsilon**2 * float(x.detach().double().square().sum(-1).max())


def class_condition(case: Case, Pi: Tensor, x: Tensor) -> float:
    """The largest condition of the classes' and of all tokens' systems: 1 + (d/ε²) of the largest second moment."""
    counts = Pi.sum(-2).clamp(min=1e-300)
    weights = torch.cat([(Pi / counts.unsqueeze(-2)).mT, torch.full_like(Pi.mT[..., :1, :], 1 / x.shape[-2])], -2)
    largest = torch.linalg.matrix_norm(weights.clamp(min=0).sqrt().unsqueeze(-1) * x.detach().unsqueeze(-3), 2)
    return 1.0 + case.dim / case.epsilon**2 * float(largest.max()) ** 2


def rate_bend(case: Case, objective: Any, x: Tensor) -> float:
    """A class of one token bends over ε/√d, whatever N."""
    return 0.3 * case.epsilon / case.dim**0.5


def reduction_bend(case: Case, objective: Any, x: Tensor) -> float:
    """At zero the Hessians of R and R_c cancel: near it ΔR is a quartic, and bends over the tokens' own size."""
    return min(rate_bend(case, objective, x), 0.3 * float(x.detach().norm(dim=-1).max()) + 1e-30)


def cancelled(parts: list[Tensor], total: Tensor) -> float:
    """Σ‖part‖ / ‖total‖, the largest over token sets: what is lost where the parts cancel."""
    worst = 1.0
    for rows in slices(total, *parts):
        size = norm(rows[0])
        worst = max(worst, sum(norm(part) for part in rows[1:]) / size if size else 1e300)
    return worst


def _condition(case: Case, objective: RateReduction, x: Tensor) -> float:
    total, expansion = objective.gradient(x), CodingRate(case.epsilon).gradient(x)
    return class_condition(case, objective.memberships, x) * cancelled([expansion, total + expansion], total)


def _subspace_condition(case: Case, objective: SubspaceRateReduction, x: Tensor) -> float:
    total, expansion = objective.gradient(x), CodingRate(case.epsilon).gradient(x)
    lost = cancelled([expansion, total + expansion], total)
    return lost * rate_condition(x, case.dim / (x.shape[-2] * case.epsilon**2))


def resolved(make: Any, measure: Any) -> Any:
    """The measure where the gradient is more than rounding: ``SAFETY eps L ‖x‖``; else the subject must be rounding too.

    ΔR vanishes identically on one token, on equal tokens and on classes alike; what is computed of it is noise.
    """

    def run(subject: Any, case: Case) -> Measurement:
        exact, x = reference(case), case.x()
        objective, z = make(exact), x.double().requires_grad_()
        (want,) = torch.autograd.grad(objective.value(z).sum(), z)
        noise = SAFETY * float(np.finfo(case.dtype).eps) * float(objective.lipschitz(z).max()) * norm(z)
        if norm(want) > noise or noise == 0:
            return measure(subject, case)
        got = norm(subject(case, make(case), x))
        return Measurement((Comparison("rounding only", got, 2.0 * noise),), evidence=False)

    return run


def _value(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    got = subject(case, _make(case), x).double().reshape(-1)
    Pi, parts = _fixed(exact), []
    for b, (point,) in enumerate(slices(exact.x())):
        Z = columns(point)
        expansion, compression = paper.coding_rate(Z, case.epsilon), paper.class_compression(Z, Pi, case.epsilon)
        other = paper.class_compression_tokens_side(Z, Pi, case.epsilon) - paper.coding_rate_tokens_side(
            Z, case.epsilon
        )
        scale = float(expansion + compression)
        if scale <= 1e-280:
            parts.append(Measurement((Comparison("at rest", abs(float(got[b])), 1e-15),), evidence=False))
            continue
        condition = class_condition(exact, memberships(exact, _classes(exact)), point)
        allowed = tolerance(case.dtype, condition, len(Z) / scale)
        done = [
            Comparison("d × d side", abs(float(got[b]) - float(compression - expansion)) / scale, allowed),
            Comparison("N × N side", abs(float(got[b]) - float(other)) / scale, allowed),
        ]
        parts.append(Measurement(tuple(done), allowed <= MEANINGFUL))
    return combine(*parts)


def changed(method: str, **changes: Any) -> Any:
    """A subject with a field changed: each change is a function of (case, objective)."""

    def run(case: Case, objective: Any, x: Tensor) -> Tensor:
        wrong = dataclasses.replace(objective, **{name: change(case, objective) for name, change in changes.items()})
        return getattr(wrong, method)(x)

    return run


def root(case: Case, objective: Any) -> float:
    """ε for ε²: the ε whose square is the case's."""
    return case.epsilon**0.5


def uniform(case: Case, objective: Any) -> Tensor:
    """The same memberships for every token."""
    return torch.full_like(objective.memberships, 1.0 / objective.memberships.shape[-1])


def _unweighted(case: Case, f: RateReduction, x: Tensor) -> Tensor:
    """Every class's own rate, as if all had N/K members."""
    weight, _, y = f._classes(x)
    rates = torch.stack([CodingRate(f.epsilon, tokens=1).value(y[..., k, :, :]) for k in range(y.shape[-3])], -1)
    return (rates * (weight > 0)).mean(-1) - f.expansion(x)


def _N_for_members(case: Case, f: RateReduction, x: Tensor, method: str = "value") -> Tensor:
    """β with N in place of n_k in every class."""
    total = 0.0 * getattr(CodingRate(f.epsilon), method)(x)
    for k in range(f.memberships.shape[-1]):
        y = f.memberships[:, k].clamp(min=0).sqrt()[:, None] * x
        share = f.memberships[:, k].sum() / x.shape[-2]
        if method == "value":
            total = total + share * CodingRate(f.epsilon).value(y)
        else:
            rows = f.memberships[:, k].clamp(min=0).sqrt()[:, None]
            total = total + share * rows * CodingRate(f.epsilon).gradient(y)
    return total - getattr(CodingRate(f.epsilon), method)(x)


def _nonnegative(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    x, Pi = exact.x(), memberships(exact, _classes(exact))
    constant = torch.softmax(exact.draw("constant", _classes(exact)), -1).expand_as(Pi)
    twice = one_hot_memberships(torch.arange(2).repeat_interleave(len(x)), 2, torch.float64)
    sure = one_hot_memberships(torch.zeros(len(x), dtype=torch.long), 2, torch.float64)
    parts = []
    for name, z, P in (
        ("R_c ≤ R", x, Pi),
        ("equality: constant memberships", x, constant),
        ("equality: classes alike", torch.cat([x, x]), twice),
        ("equality: one class", x, sure),
    ):
        compression, expansion = subject(exact, columns(z), P.numpy())
        if expansion <= 1e-280:
            parts.append(Measurement((Comparison(name, abs(compression), 1e-15),), evidence=False))
            continue
        error = max(0.0, compression - expansion) if z is x and P is Pi else abs(compression - expansion)
        error = error if compression == compression else np.nan
        allowed = tolerance("float64", tokens_condition(exact, z), exact.dim / expansion)
        parts.append(Measurement((Comparison(name, error / expansion, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def _rates(case: Case, Z: Any, Pi: Any) -> tuple[float, float]:
    return float(paper.class_compression(Z, Pi, case.epsilon)), float(paper.coding_rate(Z, case.epsilon))


def _rates_with_N(case: Case, Z: Any, Pi: Any) -> tuple[float, float]:
    blocks = [
        Pi[:, k].sum() / len(Pi) * paper.coding_rate(Z * np.sqrt(Pi[:, k]), case.epsilon) for k in range(Pi.shape[1])
    ]
    return float(sum(blocks)), float(paper.coding_rate(Z, case.epsilon))


def _rates_unweighted(case: Case, Z: Any, Pi: Any) -> tuple[float, float]:
    N, K = Pi.shape
    each = [(N / n if (n := Pi[:, k].sum()) > 0 else 0.0) * Pi[:, k] for k in range(K)]
    return float(sum(paper.coding_rate(Z * np.sqrt(w), case.epsilon) for w in each)), _rates(case, Z, Pi)[1]


@functools.cache
def _sharpest(size: int = 96, epsilon: float = 0.5) -> tuple[RateReduction, Tensor, float, float]:
    """Tokens s I, each its own class, Nαs² = 3: the objective, the tokens, its curvature along them, and in theory."""
    objective = RateReduction(torch.eye(size, dtype=torch.float64), epsilon)
    x = (3 * epsilon**2 / size) ** 0.5 * torch.eye(size, dtype=torch.float64)
    change = objective.gradient(1.0001 * x) - objective.gradient(0.9999 * x)
    curvature = float((change * x).sum()) / (2e-4 * norm(x) ** 2)
    part = 3 / size
    return objective, x, curvature, -((1 - part) / (1 + part) ** 2 + 0.125) / epsilon**2


def _smoothness(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    objective, x = _make(exact), exact.x()
    bound = float(subject(exact, objective, x).max())
    if not bound > 0:
        return Measurement((Comparison("bound is positive", np.inf, 0.0),))
    rng, parts = case.rng("smoothness"), []
    for size in (1e-2, 1.0, 30.0):
        length = size * rate_bend(exact, objective, x)
        a, b = (x + length * torch.from_numpy(rng.standard_normal(x.shape)) for _ in range(2))
        stretch = norm(objective.gradient(a) - objective.gradient(b)) / norm(a - b)
        # Far from zero the change of the gradient is a difference of nearly equal ones.
        lost = 1e-15 * tokens_condition(exact, x) * norm(objective.gradient(a)) / norm(a - b) / bound
        parts.append(Comparison(f"difference at {size:g} bends", max(0.0, stretch / bound - 1), 1e-6 + lost))
    sharpest, point, curvature, theory = _sharpest()
    limit = float(subject(exact, sharpest, point))
    parts.append(Comparison("curvature in theory", abs(curvature / theory - 1), 1e-6))
    parts.append(Comparison("bounds 96 classes", max(0.0, -curvature / limit - 1), 0.0))
    parts.append(Comparison("attained to 8 % by 96 classes", max(0.0, 0.92 + curvature / limit), 0.0))
    return Measurement(tuple(parts))


def _one_hot(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    x = exact.x()
    labels = exact.draw("labels", exact.tokens, _classes(exact)).argmax(-1)
    Z, total = columns(x), 0.0
    for k in range(_classes(exact)):
        own = [i for i in range(len(labels)) if labels[i] == k]
        total += len(own) / len(labels) * float(paper.coding_rate(Z[:, own], exact.epsilon)) if own else 0.0
    got = float(subject(exact, labels, x))
    if total <= 1e-280:
        return Measurement((Comparison("at rest", abs(got), 1e-15),), evidence=False)
    allowed = tolerance("float64", tokens_condition(exact, x), exact.dim / total)
    return Measurement((Comparison("blocks", abs(got - total) / total, allowed),), allowed <= MEANINGFUL)


def _hard(case: Case, labels: Tensor) -> RateReduction:
    return RateReduction(one_hot_memberships(labels, _classes(case), torch.float64), case.epsilon)


def _sparse(subject: Any, case: Case) -> Measurement:
    """The reported value and the relaxed one, on tokens half of whose entries are exactly zero."""
    exact = reference(dataclasses.replace(case, batch=0))
    x = exact.x() * (exact.draw("mask", exact.tokens, exact.dim) > 0)
    Z, weight = columns(x), 0.3
    reported = -float(paper.crate_eq9(Z, bases(exact.U()), exact.epsilon, weight))
    relaxed = reported - weight * float((Z != 0).sum()) + weight * float(np.abs(Z).sum())
    got, got_relaxed = (float(value) for value in subject(exact, x, weight))
    rates = float(paper.coding_rate(Z, exact.epsilon) + paper.crate_eq8(Z, bases(exact.U()), exact.epsilon))
    allowed = tolerance("float64", rate_condition(x, exact.dim / (len(x) * exact.epsilon**2)), 0.0)
    size, size_relaxed = (exact.dim + rates + weight * float(count) for count in ((Z != 0).sum(), np.abs(Z).sum()))
    return Measurement(
        (
            Comparison("reported, with ℓ0", abs(got - reported) / size, allowed),
            Comparison("relaxed, with ℓ1", abs(got_relaxed - relaxed) / size_relaxed, allowed),
        ),
        bool(allowed <= MEANINGFUL and Z.any()),
        {"R − R_c − λ‖Z‖₀": -reported},
    )


def _both(case: Case, x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    return (
        sparse_rate_reduction(x, case.U(), case.epsilon, weight),
        relaxed_sparse_rate_reduction(case.U(), case.epsilon, weight).value(x),
    )


CLAIMS = (
    Claim(
        id="rate_reduction.value",
        statement="The negative rate reduction equals its definition, by either side of the determinants, for soft and hard"
        " memberships and empty classes.",
        equation=r"$-\Delta R = \sum_k \frac{n_k}{2N}\log\det(I + \frac{d}{n_k\epsilon^2} Z\,\mathrm{diag}(\pi_k) Z^\top)"
        r" - R(Z)$",
        source=f"{MCR2}, section 2",
        kind="identity",
        domain=cases(),
        subject=lambda case, f, x: f.value(x),
        measure=_value,
        mutants=named(
            half_dropped=lambda case, f, x: 2 * f.value(x),
            opposite_sign=lambda case, f, x: -f.value(x),
            epsilon_for_its_square=changed("value", epsilon=root),
            N_for_the_members=_N_for_members,
            classes_not_weighted=_unweighted,
            expansion_dropped=lambda case, f, x: f.compression(x),
            all_NaN=lambda case, f, x: f.value(x) * torch.nan,
        ),
        structured=SEEDED,
        code=("objectives.rate_reduction:RateReduction",),
        largest=300,
    ),
    Claim(
        id="rate_reduction.gradient",
        statement="The closed-form gradient of the negative rate reduction is its gradient, memberships held constant.",
        equation=r"$-\nabla\Delta R = \sum_k \frac{d}{N\epsilon^2}(I + \frac{d}{n_k\epsilon^2} Z\,\mathrm{diag}(\pi_k)"
        r" Z^\top)^{-1} Z\,\mathrm{diag}(\pi_k) - \nabla R(Z)$",
        source=f"{MCR2}, section 2, differentiated; ReduNet, arXiv 2105.10446, section 3",
        kind="exact",
        domain=cases(kinds=KINDS),
        subject=gradient,
        measure=resolved(
            _make,
            gradient_measure(
                _make,
                lambda case, b: lambda Z: 1.0 - paper.rate_reduction(Z, _fixed(case), case.epsilon),  # as noisy as 1
                _condition,
                reduction_bend,
            ),
        ),
        mutants=of_gradient(
            epsilon_for_its_square=changed("gradient", epsilon=root),
            N_for_the_members=lambda case, f, x: _N_for_members(case, f, x, "gradient"),
            another_classes_memberships=lambda case, f, x: changed(
                "gradient", memberships=lambda case, f: f.memberships.roll(1, -2)
            )(case, f, x),
            memberships_even=changed("gradient", memberships=uniform),
            expansion_dropped=lambda case, f, x: f.gradient(x) + CodingRate(f.epsilon).gradient(x),
            expansion_with_the_other_sign=lambda case, f, x: f.gradient(x) + 2 * CodingRate(f.epsilon).gradient(x),
        ),
        structured=(*SEEDED, *APART),
        code=("objectives.rate_reduction:RateReduction",),
        frozen="Π",
    ),
    Claim(
        id="rate_reduction.nonnegative",
        statement="The rate reduction is never negative, and zero where all classes have the same second moments: constant"
        " memberships, classes alike, one class.",
        equation=r"$\sum_k \frac{n_k}{2N}\log\det(I + \frac{d}{n_k\epsilon^2} Z\,\mathrm{diag}(\pi_k) Z^\top) \leq R(Z)$",
        source=f"{MCR2}, section 2; concavity of log det",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=_rates,
        measure=_nonnegative,
        mutants=named(
            sides_exchanged=lambda case, Z, Pi: _rates(case, Z, Pi)[::-1],
            N_for_the_members=_rates_with_N,
            classes_not_weighted=_rates_unweighted,
            half_dropped=lambda case, Z, Pi: (2 * _rates(case, Z, Pi)[0], _rates(case, Z, Pi)[1]),
            epsilon_for_its_square=lambda case, Z, Pi: (
                _rates(dataclasses.replace(case, epsilon=case.epsilon**0.5), Z, Pi)[0],
                _rates(case, Z, Pi)[1],
            ),
        ),
        structured=SINGLE,
        code=("objectives.rate_reduction:RateReduction",),
    ),
    Claim(
        id="rate_reduction.smoothness",
        statement="The rate reduction is 9α/8-smooth, and as the number of classes grows no smoother.",
        equation=r"$L = \frac{9}{8}\,\frac{d}{N\epsilon^2}$; along $Z = sI,\; N = d = K,\; \frac{d s^2}{\epsilon^2} = 3$:"
        r" $-(\frac{1 - 3/K}{(1 + 3/K)^2} + \frac{1}{8})\,\frac{d}{N\epsilon^2}$",
        source="derived: both Hessians lie in [−1/8, 1] d/(Nε²)",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=_smoothness,
        mutants=named(
            an_eighth_forgotten=lambda case, f, x: f.lipschitz(x) / 1.125,
            halved=lambda case, f, x: f.lipschitz(x) / 2,
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            epsilon_for_its_square=lambda case, f, x: f.lipschitz(x) * f.epsilon,
            N_not_counted=lambda case, f, x: f.lipschitz(x) * x.shape[-2],
        ),
        structured=SINGLE,
        code=("objectives.rate_reduction:RateReduction",),
        largest=200,
    ),
    Claim(
        id="rate_reduction.one_hot",
        statement="With one-hot memberships the compression is the sum of the classes' own coding rates, weighted by their"
        " shares of the tokens.",
        equation=r"$R_c(Z\,|\,\Pi) = \sum_k \frac{n_k}{N} R(Z_k)$",
        source=f"{MCR2}, section 2",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=lambda case, labels, x: _hard(case, labels).compression(x),
        measure=_one_hot,
        mutants=named(
            N_for_the_members=lambda case, labels, x: (
                _N_for_members(case, f := _hard(case, labels), x) + f.expansion(x)
            ),
            classes_not_weighted=lambda case, labels, x: (
                _unweighted(case, f := _hard(case, labels), x) + f.expansion(x)
            ),
            labels_shifted=lambda case, labels, x: _hard(case, labels.roll(1)).compression(x),
            expansion=lambda case, labels, x: _hard(case, labels).expansion(x),
            all_NaN=lambda case, labels, x: torch.tensor(torch.nan),
        ),
        structured=SINGLE,
        code=("objectives.rate_reduction:one_hot_memberships", "objectives.rate_reduction:RateReduction"),
    ),
    Claim(
        id="rate_reduction.subspaces.gradient",
        statement="The closed-form gradient of R_c − R, the smooth part of the sparse rate reduction, is its gradient.",
        equation=r"$\nabla R_c(Z\,|\,U) - \nabla R(Z)$",
        source=f"{CRATE}, eq. 9, differentiated",
        kind="exact",
        domain=cases(kinds=KINDS),
        subject=gradient,
        measure=resolved(
            _make_subspaces,
            gradient_measure(
                _make_subspaces,
                lambda case, b: (
                    lambda Z: (
                        1.0 + paper.crate_eq8(Z, bases(case.U()), case.epsilon) - paper.coding_rate(Z, case.epsilon)
                    )
                ),
                _subspace_condition,
                lambda case, f, x: 0.3 / float(f.lipschitz(x)) ** 0.5,
            ),
        ),
        mutants=of_gradient(
            epsilon_for_its_square=changed("gradient", epsilon=root),
            expansion_dropped=lambda case, f, x: f.gradient(x) + CodingRate(f.epsilon).gradient(x),
            p_for_d_in_the_expansion=lambda case, f, x: (
                f.gradient(x)
                + CodingRate(f.epsilon).gradient(x)
                - CodingRate(f.epsilon * (case.dim / case.head_dim) ** 0.5).gradient(x)
            ),
        ),
        structured=(*SEEDED, *APART, *(dataclasses.replace(case, extra=2) for case in APART)),
        code=("objectives.rate_reduction:SubspaceRateReduction",),
    ),
    Claim(
        id="rate_reduction.sparse",
        statement="The reported sparse rate reduction counts the entries that are not zero, the relaxed one adds up their"
        " sizes; both are the paper's, negated.",
        equation=r"$-(R(Z) - R_c(Z\,|\,U) - \lambda\Vert Z\Vert_0), \quad R_c(Z\,|\,U) - R(Z) + \lambda\Vert Z\Vert_1$",
        source=f"{CRATE}, eq. 9",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_both,
        measure=_sparse,
        mutants=named(
            signs_exchanged=lambda case, x, weight: tuple(-value for value in _both(case, x, weight)),
            l1_for_l0=lambda case, x, weight: (_both(case, x, weight)[1],) * 2,
            weight_squared=lambda case, x, weight: _both(case, x, weight**2),
            sparsity_with_the_other_sign=lambda case, x, weight: (
                2 * _make_subspaces(case).value(x) - _both(case, x, weight)[0],
                _both(case, x, weight)[1],
            ),
            zeros_counted=lambda case, x, weight: (
                _make_subspaces(case).value(x) + weight * x.numel(),
                _both(case, x, weight)[1],
            ),
        ),
        structured=SINGLE,
        code=(
            "objectives.rate_reduction:sparse_rate_reduction",
            "objectives.rate_reduction:relaxed_sparse_rate_reduction",
        ),
    ),
)
