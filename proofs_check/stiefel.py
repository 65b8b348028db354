"""How steps on orthonormal frames are measured: retractions, power iteration, promised descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from objectives import Objective, PCARate
from unrolling import RiemannianStep, certified_stiefel_step, retract, tangent

from . import paper
from .claim import Comparison, Measurement
from .frames import (
    beta_of_frame,
    fewer_directions,
    gradient_condition,
    orthonormal_frame,
    pca_naive,
    pca_objectives,
    spectrum,
    tangent_of_angle,
)
from .measures import columns, identity, inequality, norm, rate_condition, reference
from .strategies import Case
from .tolerance import MEANINGFUL, tolerance

__all__ = [
    "certified",
    "convergence",
    "decrease",
    "longer",
    "power",
    "retraction_order",
    "stiefel_step",
    "take",
    "unit_step",
]


def power(subject: Any, case: Case) -> Measurement:
    """A step of size 1 on the rate against one block power iteration: projectors onto the spans."""
    exact = reference(case)
    Z, x = exact.x(), torch.from_numpy(orthonormal_frame(exact, count=fewer_directions(exact)))
    beta = beta_of_frame(exact, len(x), len(Z))
    largest = float(torch.linalg.matrix_norm(Z, 2)) ** 2
    iterated = columns(x) + beta * paper.pca_attention(columns(x), columns(Z))
    want, start = paper.gram_schmidt(iterated), columns(x)
    moved = norm(want @ want.T - start @ start.T)
    if moved < 1e-8:
        return Measurement(evidence=False)
    parts = []
    for retraction in ("qr", "polar"):
        got = columns(subject(exact, PCARate(Z, exact.epsilon), x, retraction))
        condition = (1 + beta * largest) * (1 + norm(want) / moved)
        parts.append(identity(retraction, got @ got.T, want @ want.T, "float64", condition, moved))
    return _together(parts)


def convergence(subject: Any, case: Case) -> Measurement:
    """Tangents of the largest principal angle to the top eigenspace, before and after a step of size 1."""
    exact = reference(case)
    C = min(exact.m, exact.dim - 1)
    Z = exact.x()
    values, V = spectrum(Z)
    beta = beta_of_frame(exact, C, len(Z)) if C else 0.0
    if C == 0 or beta * values[0] > 1e4 or values[0] == 0:
        return Measurement(evidence=False)
    claimed = subject(exact, values, C, beta)
    slanted = np.eye(C, exact.dim)
    slanted[-1, C - 1], slanted[-1, C] = np.cos(0.7), np.sin(0.7)
    parts = []
    for name, frame in (("bound", orthonormal_frame(exact, count=C)), ("attained", slanted @ V.T)):
        x = torch.from_numpy(np.ascontiguousarray(frame))
        y = RiemannianStep()(PCARate(Z, exact.epsilon), x, 1.0)
        before, after = (tangent_of_angle(point.numpy(), V, C) for point in (x, y))
        if not before < 1e6:
            continue
        error = after / before / claimed - 1 if claimed > 0 else np.inf
        error = max(0.0, error) if name == "bound" else abs(error)
        allowed = tolerance("float64", (1 + beta * values[0]) * (1 + before) * (1 + 1 / max(after, 1e-300)) * 10)
        parts.append(Measurement((Comparison(name, error, allowed),), allowed <= MEANINGFUL))
    return _together(parts)


def stiefel_step(subject: Any, case: Case) -> Measurement:
    """The rule against the paper's step, both retractions, all four objectives; errors over the displacement."""
    exact, x64 = (
        reference(case),
        torch.from_numpy(orthonormal_frame(case, count=fewer_directions(case)).astype(case.dtype).astype(np.float64)),
    )
    Z, parts = exact.x(), []
    for name, f in pca_objectives(exact, Z).items():
        if norm(Z) == 0:
            return Measurement(evidence=False)
        kappa = 4 * max(exact.step, 0.5) * float(certified_stiefel_step(f, retract(x64)).step_size)
        for retraction in ("qr", "polar"):
            narrow = pca_objectives(case, case.x())[name]
            got = columns(subject(case, RiemannianStep(retraction), narrow, x64.to(case.torch_dtype), kappa))
            start, G = columns(x64), columns(f.gradient(x64))
            want = paper.stiefel_step(start, G, kappa, retraction)
            moved = norm(want - start)
            if moved == 0:
                parts.append(Measurement((Comparison("at rest", norm(got - start), 1e-6),), evidence=False))
                continue
            allowed = tolerance(case.dtype, gradient_condition(exact, f, x64) + norm(G) * kappa, norm(start) / moved)
            off = norm(got.T @ got - np.eye(len(x64)))
            done = [
                Comparison(f"{name}, {retraction}", norm(got - want) / moved, allowed),
                Comparison("rows stay orthonormal", off, tolerance(case.dtype, len(x64) * (1 + norm(G) * kappa))),
            ]
            parts.append(Measurement(tuple(done), allowed <= MEANINGFUL))
    return _together(parts)


def take(case: Case, rule: RiemannianStep, f: Any, x: Tensor, kappa: float) -> Tensor:
    """The usual subject: the rule itself."""
    return rule(f, x, kappa)


def retraction_order(subject: Any, case: Case) -> Measurement:
    """How far the retracted point is from the tangent step, against the length of the step."""
    exact = reference(case)
    x = torch.from_numpy(orthonormal_frame(exact, count=fewer_directions(exact)))
    eta = tangent(x, torch.from_numpy(exact.rng("velocity").standard_normal(tuple(x.shape))))
    if norm(eta) < 1e-8:
        return Measurement(evidence=False)
    eta, parts, curve, slopes = eta / norm(eta), [], [], {}
    for retraction in ("qr", "polar"):
        sizes, errors = [0.1 / 2**i for i in range(6)], []
        for t in sizes:
            y = subject(exact, x + t * eta, retraction)
            errors.append(norm(y - (x + t * eta)))
            orthonormal = norm(y @ y.mT - torch.eye(len(x)))
            parts.append(Comparison(f"{retraction}: orthonormal", orthonormal, tolerance("float64", len(x))))
            if retraction == "polar":
                parts.append(Comparison("polar: half a square", max(0.0, errors[-1] / (t**2 / 2) - 1), 1e-6))
        if not np.isfinite(errors).all() or min(errors) == 0:
            return Measurement((Comparison("finite, not the identity", np.nan, 0.0),))
        slopes[retraction] = float(np.polyfit(np.log(sizes[2:]), np.log(errors[2:]), 1)[0])
        parts.append(Comparison(f"{retraction}: order 2", abs(slopes[retraction] - 2), 0.1))
        curve = list(zip(sizes, errors, strict=True))
    return Measurement(tuple(parts), values={f"order, {k}": v for k, v in slopes.items()}, curve=tuple(curve))


@final
@dataclass(frozen=True, eq=False)
class Pull(Objective):
    """Minus the inner product with a target, and a constant on frames: nearly linear, so that ‖∇f‖ sets the step."""

    target: Tensor

    def value(self, x: Tensor) -> Tensor:
        """−⟨target, x⟩ + ‖x‖² ‖target‖ / 40."""
        return -(self.target * x).sum((-2, -1)) + self._bend() / 2 * x.square().sum((-2, -1))

    def gradient(self, x: Tensor) -> Tensor:
        """−target + x ‖target‖ / 20."""
        return self._bend() * x - self.target

    def lipschitz(self, x: Tensor) -> Tensor:
        """‖target‖ / 20."""
        return self._bend()

    def _bend(self) -> Tensor:
        return self.target.norm() / 20


def decrease(subject: Any, case: Case) -> Measurement:
    """The promised decrease against the decrease; the subject returns the next point, κ and its constant."""
    exact, parts = reference(case), []
    Z, x = exact.x(), torch.from_numpy(orthonormal_frame(exact, count=fewer_directions(exact)))
    if norm(Z) == 0:
        return Measurement(evidence=False)
    pull = Pull(torch.from_numpy(exact.rng("pull").standard_normal(tuple(x.shape))))
    for name, f in {**pca_objectives(exact, Z), "pull": pull}.items():
        value: Any = pull_of(pull) if name == "pull" else pca_naive(name, exact, columns(Z))
        squared = norm(tangent(x, f.gradient(x))) ** 2
        for retraction in ("polar",) if name in ("separable rate", "pull") else ("polar", "qr"):
            after, kappa, smooth = subject(exact, f, x, exact.step, retraction)
            start, end = (float(value(columns(y))) for y in (x, after))
            if squared == 0:
                parts.append(Measurement((Comparison("at rest", norm(after - x), 1e-6),), evidence=False))
                continue
            promised, first = kappa * (1 - kappa * smooth / 2) * squared, kappa * squared
            size = norm(Z) ** 2 if name in ("reconstruction", "variance") else len(x) + abs(start)
            noise = (size + norm(f.gradient(x))) / abs(first)
            condition = rate_condition(Z, beta_of_frame(exact, len(x), len(Z))) if "rate" in name.split() else 1.0
            parts.append(
                inequality(f"{name}, {retraction}", promised, start - end, abs(first), "float64", noise * condition)
            )
    return _together(parts)


def pull_of(pull: Pull) -> Any:
    """Its value, in columns, written again."""
    A = columns(pull.target)
    return lambda P: -(A * P).sum() + np.linalg.norm(A) / 40 * (P**2).sum()


def certified(case: Case, f: Any, x: Tensor, step: float, retraction: str) -> tuple[Tensor, float, float]:
    """The usual subject: a step in units of the certified one."""
    certificate = certified_stiefel_step(f, x)
    kappa = step * float(certificate.step_size)
    return RiemannianStep(retraction)(f, x, kappa), kappa, float(certificate.lipschitz)


def longer(factor: float) -> Any:
    """The promise of the certificate for a step ``factor`` times as long."""

    def subject(case: Case, f: Any, x: Tensor, step: float, retraction: str) -> tuple[Tensor, float, float]:
        after, kappa, smooth = certified(case, f, x, factor * step, retraction)
        return after, abs(kappa / factor), smooth

    return subject


def unit_step(subject: Any, case: Case) -> Measurement:
    """The rate of PCA after the step and before."""
    exact = reference(case)
    Z, x = exact.x(), torch.from_numpy(orthonormal_frame(exact))
    if norm(Z) == 0:
        return Measurement(evidence=False)
    f, value = PCARate(Z, exact.epsilon), pca_naive("rate", exact, columns(Z))
    after = subject(exact, f, x)
    start, end = (float(value(columns(y))) for y in (x, after))
    beta = beta_of_frame(exact, len(x), len(Z))
    return inequality(
        "the rate of PCA", -start, -end, len(x) + abs(start), "float64", rate_condition(Z, beta), gain=start - end
    )


def _together(parts: list[Measurement]) -> Measurement:
    """All must hold; evidence if any of them is."""
    comparisons = tuple(comparison for part in parts for comparison in part.comparisons)
    return Measurement(comparisons, any(part.evidence for part in parts))
