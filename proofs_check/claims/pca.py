"""Claims on PCA as compression: its objectives, their common optimum, and steps on orthonormal frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import (
    PCARate,
    PCAReconstruction,
    PCAVariance,
    SeparableRate,
    principal_directions,
    subspace_alignment,
)
from unrolling import RiemannianStep, certified_stiefel_step, retract, tangent

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import columns, gradient_measure, identity, inequality, norm, rate_condition, reference, slices
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, SAFETY, tolerance
from .coding_rate import combine, lipschitz, smoothness_measure

__all__ = ["CLAIMS"]

DEPICT = "Wen et al., DEPICT, arXiv 2411.03033"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
PARITIES = tuple(dataclasses.replace(case, seed=s) for case in STRUCTURED for s in (0, 1))
"""Even seeds draw any directions, odd seeds orthonormal ones."""

HALF_TURN = Case(tokens=4, heads=1, head_dim=4, m=2, kind="orthonormal", epsilon=0.5**0.5)
"""Tokens with S = diag(5, 3, 1, 0.1) in some basis, C = 2, β = 1."""

Array = NDArray[np.float64]


def _directions(case: Case) -> int:
    return min(case.m, case.dim)


def _fewer(case: Case) -> int:
    """Fewer directions than features, so that there is somewhere to move."""
    return max(1, min(case.m, case.dim - 1))


def _frame(case: Case, purpose: str = "directions", count: int | None = None) -> Array:
    drawn = case.rng(purpose).standard_normal((case.dim, _directions(case) if count is None else count))
    return np.ascontiguousarray(np.linalg.qr(drawn)[0].T)


def _variable(case: Case) -> Case:
    """The case whose tokens are the directions: what the objectives here are functions of."""
    sets = []
    for b in range(max(1, case.batch)):
        plain = case.rng(f"directions {b}").standard_normal((_directions(case), case.dim))
        sets.append(_frame(case, f"directions {b}") if case.seed % 2 else plain)
    return dataclasses.replace(case, tokens=_directions(case), given=np.stack(sets) if case.batch else sets[0])


def _beta(case: Case, directions: int, tokens: int) -> float:
    return directions / (tokens * case.epsilon**2)


def _objectives(case: Case, Z: Tensor) -> dict[str, Any]:
    return {
        "reconstruction": PCAReconstruction(Z),
        "variance": PCAVariance(Z),
        "rate": PCARate(Z, case.epsilon),
        "separable rate": SeparableRate(Z, case.epsilon),
    }


def _naive(name: str, case: Case, Z: Array) -> Callable[[Any], Any]:
    """The objective as the classes hold it, to be minimised, from the paper's definitions."""
    if name == "reconstruction":
        return lambda P: paper.pca_reconstruction(P, Z)
    if name == "variance":
        return lambda P: -paper.pca_variance(P, Z)
    if name == "rate":
        return lambda P: -paper.pca_rate(P, Z, case.epsilon)
    return lambda P: -paper.pca_separable_rate(P, Z, case.epsilon)


def _ratio(large: float, small: float) -> float:
    return 1.0 + (large / small if small else 0.0)


def _gradient_condition(case: Case, f: Any, x: Tensor) -> float:
    """Products of directions and tokens cancel: errors are eps times the product of their norms."""
    worst = 1.0
    for g, z, tokens in slices(f.gradient(x), x, f.tokens):
        products, size = tokens @ z.mT, norm(z) * norm(tokens)
        if isinstance(f, (PCAReconstruction, PCAVariance)):
            grown = 1.0 + norm(z) ** 2 if isinstance(f, PCAReconstruction) else 1.0
            one = _ratio(2 * size * norm(tokens) * grown, norm(g))
        else:
            beta = float(f.beta(x))
            inner = beta * products / (1 + beta * products.square().sum(0))
            if isinstance(f, PCARate):
                inner = beta * products @ torch.linalg.inv(torch.eye(len(z)) + beta * products.mT @ products)
            one = rate_condition(products, beta) * _ratio(norm(inner) * norm(tokens), norm(g))
            one *= _ratio(size, norm(products))
        worst = max(worst, one)
    return worst


def _bend(case: Case, f: Any, x: Tensor) -> float:
    if isinstance(f, PCAReconstruction):
        return 0.1
    return 0.3 * norm(x) if isinstance(f, PCAVariance) else 0.3 / float(f.lipschitz(x).max()) ** 0.5


def _gradient_claim(name: str, equation: str, statement: str, **own: Any) -> Claim:
    def measure(subject: Any, case: Case) -> Measurement:
        outer = reference(case)
        token_sets = [columns(z) for (z,) in slices(outer.x())]
        return gradient_measure(
            lambda inner: _objectives(inner, outer.x().to(inner.torch_dtype))[name],
            lambda inner, b: _naive(name, inner, token_sets[b]),
            _gradient_condition,
            _bend,
        )(subject, _variable(case))

    def make() -> Any:
        return type(_objectives(Case(), Case().x())[name]).__name__

    return Claim(
        id=f"pca.{name.split()[0]}.gradient",
        statement=statement,
        equation=equation,
        source=f"{DEPICT}, section 3; differentiated here",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=measure,
        mutants=of_gradient(**own),
        structured=PARITIES,
        code=(f"objectives.pca:{make()}",),
        frozen="tokens (an argument)",
    )


def _with(**changes: Any) -> Any:
    """A wrong gradient: the objective with fields replaced by functions of (case, objective, x)."""

    def subject(case: Case, f: Any, x: Tensor) -> Tensor:
        return dataclasses.replace(f, **{name: change(case, f, x) for name, change in changes.items()}).gradient(x)

    return subject


_eps_for_square = _with(epsilon=lambda case, f, x: f.epsilon**0.5)
_d_for_C = _with(dim=lambda case, f, x: x.shape[-1] + 1)
_N_forgotten = _with(epsilon=lambda case, f, x: f.epsilon * (f.tokens.shape[-2] + 1) ** -0.5)


def _values(subject: Any, case: Case) -> Measurement:
    inner, outer, parts = _variable(case), reference(case), []
    x, exact = inner.x(), reference(inner).x()
    for name, f in _objectives(case, case.x()).items():
        got = subject(case, f, x).double().reshape(-1)
        for b, (z, tokens) in enumerate(slices(exact, outer.x())):
            want = float(_naive(name, outer, columns(tokens))(columns(z)))
            products, size = tokens @ z.mT, norm(z) * norm(tokens)
            if size == 0:
                parts.append(Measurement((Comparison(f"{name} at rest", abs(float(got[b])), 0.0),), evidence=False))
                continue
            if name in ("reconstruction", "variance"):
                scale, condition = (norm(tokens) * (1 + norm(z) ** 2)) ** 2, 1.0
            else:
                beta = _beta(outer, len(z), len(tokens))
                condition = rate_condition(products, beta) * _ratio(size, norm(products))
                scale = abs(want) + len(z)
            allowed = tolerance(case.dtype, condition) * scale / abs(want) if want else np.inf
            error = abs(float(got[b]) - want) / abs(want) if want else 0.0
            parts.append(Measurement((Comparison(name, error, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def _wrong_value(**changes: Any) -> Any:
    def subject(case: Case, f: Any, x: Tensor) -> Tensor:
        known = {field.name for field in dataclasses.fields(f)}
        new = {name: change(case, f, x) for name, change in changes.items() if name in known}
        return dataclasses.replace(f, **new).value(x)

    return subject


def _smoothness(subject: Any, case: Case) -> Measurement:
    inner, outer = (
        _variable(dataclasses.replace(reference(case), batch=0)),
        reference(dataclasses.replace(case, batch=0)),
    )
    Z, count = outer.x(), _directions(outer)
    top = principal_directions(Z, 1).expand(count, -1)
    parts = []
    for name, f in _objectives(outer, Z).items():
        if norm(Z) ** 2 < 1e-200:
            parts.append(Measurement((Comparison("of zero tokens", norm(subject(outer, f, top)), 1e-200),), False))
        elif name == "reconstruction":
            parts.append(_local_smoothness(subject, inner, f, top))
        else:
            parts.append(smoothness_measure(lambda c, f=f: f, lambda c, f=f: (f, top))(subject, inner))
    return combine(*parts)


def _local_smoothness(subject: Any, case: Case, f: Any, top: Tensor) -> Measurement:
    """The Hessian along directions is at most L(x) at x, and equal to it at zero."""
    x, rng, parts = case.x(), case.rng("smoothness"), []

    def stretch(at: Tensor, v: Tensor) -> float:
        h = 1e-5 / norm(v)
        return norm(f.gradient(at + h * v) - f.gradient(at - h * v)) / (2 * h * norm(v))

    for at in (x, 3 * x, 0.1 * x):
        bound = float(subject(case, f, at))
        for v in (torch.from_numpy(rng.standard_normal(x.shape)), at, top):
            excess = max(0.0, stretch(at, v) / bound - 1) if bound > 0 else np.inf
            parts.append(Comparison("Hessian along a direction", excess, 1e-6))
    attained = float(subject(case, f, 0 * x)) / stretch(0 * x, top)
    parts.append(Comparison("attained at zero", abs(attained - 1), 1e-6))
    return Measurement(tuple(parts))


def _spectrum(Z: Tensor) -> tuple[Array, Array]:
    """Eigenvalues of ZᵀZ, the largest first, and eigenvectors in columns: from the SVD of the tokens."""
    _, sigma, right = np.linalg.svd(Z.double().numpy(), full_matrices=True)
    values = np.zeros(right.shape[0])
    values[: len(sigma)] = sigma**2
    return values, right.T


def _optimal_values(values: Array, C: int, beta: float) -> dict[str, float]:
    return {
        "reconstruction": float(values[C:].sum()),
        "variance": -float(values[:C].sum()),
        "rate": -0.5 * float(np.log1p(beta * values[:C]).sum()),
    }


def _optimum(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    Z, C = exact.x(), _directions(exact)
    values = _spectrum(Z)[0]
    if values[0] == 0:
        return Measurement(evidence=False)
    beta, parts = _beta(exact, C, len(Z)), []
    frame, claimed = subject(exact, Z, values, C, beta)
    orthonormal = norm(frame @ frame.mT - torch.eye(C))
    parts.append(Comparison("orthonormal", orthonormal, tolerance("float64", C)))
    rounding = SAFETY * np.finfo(float).eps * (1 + beta * values[0])
    for name, want in claimed.items():
        value = _naive(name, exact, columns(Z))
        scale = values.sum() if name != "rate" else C + abs(want)
        parts.append(Comparison(f"{name}: attained", abs(float(value(columns(frame))) - want) / scale, rounding))
        for i in range(3):
            x = _frame(exact, f"frame {i}").T
            near = retract(frame + 0.1 * torch.from_numpy(x.T)).numpy().T
            # Without the constraint too: a product with rank C is no better an approximation than the best one.
            others = [x, near, *((0.7 * x, near * 1.2) if name == "reconstruction" else ())]
            for other in others:
                parts.append(Comparison(f"{name}: bound", max(0.0, want - float(value(other))) / scale, rounding))
    return Measurement(tuple(parts), rounding <= MEANINGFUL)


def _principal(case: Case, Z: Tensor, values: Array, C: int, beta: float) -> tuple[Tensor, dict[str, float]]:
    return principal_directions(Z, C), _optimal_values(values, C, beta)


def _span(subject: Any, case: Case) -> Measurement:
    exact, parts = reference(case), []
    Z, C = exact.x(), _directions(exact)
    x = torch.from_numpy(_frame(exact))
    turn = torch.from_numpy(np.linalg.qr(exact.rng("turn").standard_normal((C, C)))[0])
    for name, f in _objectives(exact, Z).items():
        if name == "separable rate" or norm(Z) == 0:
            continue
        before, after = (float(subject(exact, name, f, y)) for y in (x, turn @ x))
        condition = rate_condition(Z, _beta(exact, C, len(Z))) if name == "rate" else 1.0
        scale = norm(Z) ** 2 if name != "rate" else C + abs(before)
        error, allowed = abs(after - before) / scale, tolerance("float64", condition)
        parts.append(Measurement((Comparison(name, error, allowed),), allowed <= MEANINGFUL and C > 1))
    return combine(*parts)


def _projected(x: Tensor, S: Tensor) -> Tensor:
    """``x S (I − xᵀx)``: zero exactly where the rows of x span an invariant subspace."""
    return x @ S - (x @ S @ x.mT) @ x


def _stationary(subject: Any, case: Case) -> Measurement:
    exact, parts = reference(case), []
    Z, C = exact.x(), _directions(exact)
    values, vectors = _spectrum(Z)
    if values[0] == 0:
        return Measurement(evidence=False)
    S, beta = Z.mT @ Z, _beta(exact, C, len(Z))
    turn = np.linalg.qr(exact.rng("turn").standard_normal((C, C)))[0]
    chosen = vectors[:, exact.rng("subset").permutation(exact.dim)[:C]]
    frames = {"invariant subspace": turn @ chosen.T, "any frame": _frame(exact)}
    for where, frame in frames.items():
        x = torch.from_numpy(np.ascontiguousarray(frame))
        A = x @ S @ x.mT
        inverse = torch.linalg.inv(torch.eye(C) + beta * A)
        for name, factor in (("reconstruction", 2.0), ("variance", 2.0), ("rate", beta * inverse)):
            got = subject(exact, name, _objectives(exact, Z)[name], x)
            want = -(factor @ _projected(x, S) if isinstance(factor, Tensor) else factor * _projected(x, S))
            size = 2 * values[0] if name != "rate" else beta * values[0]
            condition = C * (1 + beta * values[0]) if name == "rate" else C
            if where == "invariant subspace":
                error = norm(got) / size
                parts.append(Measurement((Comparison(f"{name}: {where}", error, tolerance("float64", condition)),)))
            elif norm(want) > 0:
                allowed = tolerance("float64", condition, size / norm(want))
                error = norm(got - want) / norm(want)
                parts.append(Measurement((Comparison(f"{name}: {where}", error, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def _riemannian(case: Case, name: str, f: Any, x: Tensor) -> Tensor:
    return tangent(x, f.gradient(x))


def _attention(subject: Any, case: Case) -> Measurement:
    inner, outer = _variable(case), reference(case)
    got = subject(case, case.x(), inner.x())
    flat, parts = got.double().reshape(-1, *got.shape[-2:]), []
    for g, (tokens, x) in zip(flat, slices(outer.x(), reference(inner).x()), strict=True):
        want = paper.pca_attention(columns(x), columns(tokens)).T
        condition = _ratio(norm(x) * norm(tokens) ** 2, norm(want))
        parts.append(identity("S P = Z (ZᵀP)", g, want, case.dtype, condition))
    return combine(*parts)


def _power(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    Z, x = exact.x(), torch.from_numpy(_frame(exact, count=_fewer(exact)))
    beta = _beta(exact, len(x), len(Z))
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
    return combine(*parts)


def _convergence(subject: Any, case: Case) -> Measurement:
    """Tangents of the largest principal angle to the top eigenspace, before and after a step of size 1."""
    exact = reference(case)
    C = min(exact.m, exact.dim - 1)
    Z = exact.x()
    values, V = _spectrum(Z)
    beta = _beta(exact, C, len(Z)) if C else 0.0
    if C == 0 or beta * values[0] > 1e4 or values[0] == 0:
        return Measurement(evidence=False)
    claimed = subject(exact, values, C, beta)
    slanted = np.eye(C, exact.dim)
    slanted[-1, C - 1], slanted[-1, C] = np.cos(0.7), np.sin(0.7)
    parts = []
    for name, frame in (("bound", _frame(exact, count=C)), ("attained", slanted @ V.T)):
        x = torch.from_numpy(np.ascontiguousarray(frame))
        y = RiemannianStep()(PCARate(Z, exact.epsilon), x, 1.0)
        before, after = (_tangent_of_angle(point.numpy(), V, C) for point in (x, y))
        if not before < 1e6:
            continue
        error = after / before / claimed - 1 if claimed > 0 else np.inf
        error = max(0.0, error) if name == "bound" else abs(error)
        allowed = tolerance("float64", (1 + beta * values[0]) * (1 + before) * (1 + 1 / max(after, 1e-300)) * 10)
        parts.append(Measurement((Comparison(name, error, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def _tangent_of_angle(x: Array, V: Array, C: int) -> float:
    inside, outside = x @ V[:, :C], x @ V[:, C:]
    return float(np.linalg.norm(np.linalg.solve(inside, outside), 2))


def _step(subject: Any, case: Case) -> Measurement:
    exact, x64 = (
        reference(case),
        torch.from_numpy(_frame(case, count=_fewer(case)).astype(case.dtype).astype(np.float64)),
    )
    Z, parts = exact.x(), []
    for name, f in _objectives(exact, Z).items():
        if norm(Z) == 0:
            return Measurement(evidence=False)
        kappa = 4 * max(exact.step, 0.5) * float(certified_stiefel_step(f, retract(x64)).step_size)
        for retraction in ("qr", "polar"):
            narrow = _objectives(case, case.x())[name]
            got = columns(subject(case, RiemannianStep(retraction), narrow, x64.to(case.torch_dtype), kappa))
            start, G = columns(x64), columns(f.gradient(x64))
            want = paper.stiefel_step(start, G, kappa, retraction)
            moved = norm(want - start)
            if moved == 0:
                parts.append(Measurement((Comparison("at rest", norm(got - start), 1e-6),), evidence=False))
                continue
            allowed = tolerance(case.dtype, _gradient_condition(exact, f, x64) + norm(G) * kappa, norm(start) / moved)
            off = norm(got.T @ got - np.eye(len(x64)))
            done = [
                Comparison(f"{name}, {retraction}", norm(got - want) / moved, allowed),
                Comparison("rows stay orthonormal", off, tolerance(case.dtype, len(x64) * (1 + norm(G) * kappa))),
            ]
            parts.append(Measurement(tuple(done), allowed <= MEANINGFUL))
    return combine(*parts)


def _take(case: Case, rule: RiemannianStep, f: Any, x: Tensor, kappa: float) -> Tensor:
    return rule(f, x, kappa)


def _retraction(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    x = torch.from_numpy(_frame(exact, count=_fewer(exact)))
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


def _decrease(subject: Any, case: Case) -> Measurement:
    exact, parts = reference(case), []
    Z, x = exact.x(), torch.from_numpy(_frame(exact, count=_fewer(exact)))
    if norm(Z) == 0:
        return Measurement(evidence=False)
    for name, f in _objectives(exact, Z).items():
        value, squared = _naive(name, exact, columns(Z)), norm(tangent(x, f.gradient(x))) ** 2
        for retraction in ("polar",) if name == "separable rate" else ("polar", "qr"):
            after, kappa, smooth = subject(exact, f, x, exact.step, retraction)
            start, end = (float(value(columns(y))) for y in (x, after))
            if squared == 0:
                parts.append(Measurement((Comparison("at rest", norm(after - x), 1e-6),), evidence=False))
                continue
            promised, first = kappa * (1 - kappa * smooth / 2) * squared, kappa * squared
            size = norm(Z) ** 2 if name in ("reconstruction", "variance") else len(x) + abs(start)
            noise = (size + norm(f.gradient(x))) / abs(first)
            condition = rate_condition(Z, _beta(exact, len(x), len(Z))) if "rate" in name.split() else 1.0
            parts.append(
                inequality(f"{name}, {retraction}", promised, start - end, abs(first), "float64", noise * condition)
            )
    return combine(*parts)


def _certified(case: Case, f: Any, x: Tensor, step: float, retraction: str) -> tuple[Tensor, float, float]:
    certificate = certified_stiefel_step(f, x)
    kappa = step * float(certificate.step_size)
    return RiemannianStep(retraction)(f, x, kappa), kappa, float(certificate.lipschitz)


def _longer(factor: float) -> Any:
    """The promise of the certificate for a step ``factor`` times as long."""

    def subject(case: Case, f: Any, x: Tensor, step: float, retraction: str) -> tuple[Tensor, float, float]:
        after, kappa, smooth = _certified(case, f, x, factor * step, retraction)
        return after, abs(kappa / factor), smooth

    return subject


def _unit_step(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    Z, x = exact.x(), torch.from_numpy(_frame(exact))
    if norm(Z) == 0:
        return Measurement(evidence=False)
    f, value = PCARate(Z, exact.epsilon), _naive("rate", exact, columns(Z))
    after = subject(exact, f, x)
    start, end = (float(value(columns(y))) for y in (x, after))
    beta = _beta(exact, len(x), len(Z))
    return inequality(
        "the rate of PCA", -start, -end, len(x) + abs(start), "float64", rate_condition(Z, beta), gain=start - end
    )


def _equalised(A: Array) -> Array:
    """An orthogonal matrix T with all diagonal entries of T A Tᵀ equal: a rotation settles one entry at a time."""
    T, A, mean = np.eye(len(A)), A.copy(), np.trace(A) / len(A)
    for _ in range(len(A) - 1):
        low, high = int(np.argmin(np.diag(A))), int(np.argmax(np.diag(A)))
        a, b, c = A[low, low] - mean, A[high, high] - mean, A[low, high]
        if low == high or b <= 0 or a >= 0:
            break
        t = (c + np.sqrt(c * c - a * b)) / b  # a root of a + 2 c t' + b t'² with t' = −t: entry "low" becomes the mean
        cos, sin = 1 / np.hypot(1, t), -t / np.hypot(1, t)
        G = np.eye(len(A))
        G[[low, low, high, high], [low, high, low, high]] = cos, sin, -sin, cos
        T, A = G @ T, G @ A @ G.T
    return T


def _separable_maximum(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    Z, C = exact.x(), _directions(exact)
    values, V = _spectrum(Z)
    if values[0] == 0:
        return Measurement(evidence=False)
    beta = _beta(exact, C, len(Z))
    claimed = subject(exact, values, C, beta)
    scale, rounding = C + claimed, SAFETY * np.finfo(float).eps * (1 + beta * values[0])

    def rate(P: Array) -> float:
        return float(paper.pca_separable_rate(P, columns(Z), exact.epsilon))

    principal = V[:, :C]
    equal = principal @ _equalised(np.diag(values[:C])).T
    turn = np.linalg.qr(exact.rng("turn").standard_normal((C, C)))[0]
    parts = [
        Comparison("attained by equalising", abs(rate(equal) - claimed) / scale, rounding),
        Comparison(
            "smallest at principal directions", max(0.0, rate(principal) - rate(principal @ turn)) / scale, rounding
        ),
    ]
    for other in (principal, principal @ turn, _frame(exact).T, _frame(exact, "another").T):
        parts.append(Comparison("bound", max(0.0, rate(other) - claimed) / scale, rounding))
    return Measurement(tuple(parts), rounding <= MEANINGFUL)


def _separable_principal(subject: Any, case: Case) -> Measurement:
    """Rates of the principal directions and of the equalised ones in the same subspace; the subject takes a frame."""
    exact = reference(case)
    Z, C = exact.x(), min(max(2, exact.m), exact.dim)
    if exact.kind == "orthonormal" and exact.tokens == exact.dim == 4:
        Z = torch.tensor([5.0, 3.0, 1.0, 0.1], dtype=Z.dtype).sqrt()[:, None] * Z
    values, V = _spectrum(Z)
    if values[0] == 0 or C < 2:
        return Measurement(evidence=False)
    beta = _beta(exact, C, len(Z))
    principal = V[:, :C]
    turned = principal @ _equalised(np.diag(values[:C])).T
    pair = [subject(exact, P, Z) for P in (principal, turned)]
    joint = [float(paper.pca_rate(P, columns(Z), exact.epsilon)) for P in (principal, turned)]
    rounding = tolerance("float64", (1 + beta * values[0])) * (C + joint[0])
    done = [Comparison("joint rates agree", abs(joint[0] - joint[1]), rounding)]
    if exact.kind == "orthonormal" and exact.tokens == exact.dim == 4 and C == 2 and abs(beta - 1) < 1e-9:
        done.append(Comparison("joint rate of the witness", abs(joint[0] - 1.5890), 5e-5))
    return Measurement(
        tuple(done),
        True,
        {"joint": joint[0], "principal directions": pair[0], "equalised": pair[1]},
        truth=pair[0] >= pair[1] - rounding,
    )


def _separable(case: Case, P: Array, Z: Tensor) -> float:
    return -float(SeparableRate(Z, case.epsilon).value(torch.from_numpy(np.ascontiguousarray(P.T))))


def _alignment(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    C, D = _directions(exact), 1 + exact.seed % exact.dim
    P, Q = _frame(exact), _frame(exact, "other", D)
    mixed = exact.rng("mix").standard_normal((C, C)) + 3 * np.eye(C)
    want = float((np.linalg.svd(P @ Q.T, compute_uv=False)[: min(C, D)] ** 2).mean())
    condition = np.linalg.cond(mixed)
    parts = [
        identity(
            "mean squared cosine", subject(*map(torch.from_numpy, pair)), want, "float64", condition / min(1, want)
        )
        for pair in ((P, Q), (mixed @ P, Q), (Q, mixed @ P))
    ]
    return combine(*parts, identity("with itself", subject(*(torch.from_numpy(P),) * 2), 1.0, "float64"))


CLAIMS = (
    Claim(
        id="pca.values",
        statement="Reconstruction error, variance, rate and separable rate equal their definitions, the last three negated.",
        equation=r"$\Vert Z - PP^\top Z\Vert^2, \; -\mathrm{tr}(P^\top S P), \; -\frac{1}{2}\log\det(I + \frac{C}{N\epsilon^2}"
        r"P^\top S P), \; -\sum_c \frac{1}{2}\log(1 + \frac{C}{N\epsilon^2} p_c^\top S p_c)$",
        source=f"{DEPICT}, section 3",
        kind="identity",
        domain=cases(),
        subject=lambda case, f, x: f.value(x),
        measure=_values,
        mutants=named(
            half_dropped=lambda case, f, x: 2 * f.value(x),
            sign_flipped=lambda case, f, x: -f.value(x),
            epsilon_for_its_square=_wrong_value(epsilon=lambda case, f, x: f.epsilon**0.5),
            d_for_C=_wrong_value(dim=lambda case, f, x: x.shape[-1] + 1),
            last_direction_left_out=lambda case, f, x: (
                dataclasses.replace(f).value(x[..., :-1, :]) if x.shape[-2] > 1 else f.value(x)
            ),
            last_token_left_out=_wrong_value(tokens=lambda case, f, x: f.tokens * _all_but_the_last(f.tokens)),
            all_NaN=lambda case, f, x: f.value(x) * torch.nan,
        ),
        structured=PARITIES,
        code=tuple(
            f"objectives.pca:{name}" for name in ("PCAReconstruction", "PCAVariance", "PCARate", "SeparableRate")
        ),
    ),
    _gradient_claim(
        "reconstruction",
        r"$\nabla_P = 2\,(S P P^\top P + P P^\top S P - 2 S P), \quad = -2\,(I - PP^\top) S P$ for $P^\top P = I$",
        "The closed-form gradient of PCA's reconstruction error is its gradient, for any directions, orthonormal or not.",
        orthonormal_formula_everywhere=lambda case, f, x: -2 * _projected_batch(x, f.tokens),
        second_part_dropped=lambda case, f, x: -2 * (x @ (f.tokens - f.tokens @ x.mT @ x).mT) @ f.tokens,
        residual_is_the_tokens=lambda case, f, x: -4 * (x @ f.tokens.mT) @ f.tokens,
    ),
    _gradient_claim(
        "variance",
        r"$\nabla_P\, [-\mathrm{tr}(P^\top S P)] = -2 S P$",
        "The closed-form gradient of minus the variance is its gradient, −2 S P.",
        tangent_part_only=lambda case, f, x: -2 * _projected_batch(x, f.tokens),
        tokens_centred=_with(tokens=lambda case, f, x: f.tokens - f.tokens.mean(-2, keepdim=True) / 2),
        softmax_inside=lambda case, f, x: -2 * torch.softmax(x @ f.tokens.mT, -1) @ f.tokens,
    ),
    _gradient_claim(
        "rate",
        r"$\nabla_P = -\beta\, S P\,(I_C + \beta P^\top S P)^{-1}, \quad \beta = \frac{C}{N\epsilon^2}$",
        "The closed-form gradient of minus PCA's rate is its gradient.",
        epsilon_for_its_square=_eps_for_square,
        d_for_C=_d_for_C,
        N_forgotten=_N_forgotten,
        inverse_dropped=lambda case, f, x: -f.beta(x) * (x @ f.tokens.mT) @ f.tokens,
        directions_by_themselves=lambda case, f, x: (
            SeparableRate(f.tokens, f.epsilon).gradient(x) if x.shape[-2] > 1 else 0 * x
        ),
    ),
    _gradient_claim(
        "separable rate",
        r"$\nabla_{p_c} = -\beta\, S p_c\,/\,(1 + \beta p_c^\top S p_c)$",
        "The closed-form gradient of minus the separable rate is its gradient.",
        epsilon_for_its_square=_eps_for_square,
        d_for_C=_d_for_C,
        N_forgotten=_N_forgotten,
        joint_rate=lambda case, f, x: PCARate(f.tokens, f.epsilon).gradient(x) if x.shape[-2] > 1 else 0 * x,
        norm_for_its_square=lambda case, f, x: (
            -(f.beta(x) * (w := f.tokens @ x.mT) / (1 + f.beta(x) * w.norm(dim=-2, keepdim=True))).mT @ f.tokens
        ),
    ),
    Claim(
        id="pca.smoothness",
        statement="Minus the variance is 2λ₁-smooth, the two rates βλ₁-smooth, and no smoother; the reconstruction error is"
        " 4λ₁ max(3σ², 1 + 2σ²)-smooth at directions of spectral norm σ.",
        equation=r"$L = 2\lambda_1, \quad \frac{C}{N\epsilon^2}\lambda_1, \quad"
        r" 4\lambda_1 \max(3\Vert P\Vert_2^2,\, 1 + 2\Vert P\Vert_2^2)$",
        source="derived: the Hessians at P = 0 are −2S, −βS and −4S",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=_smoothness,
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            epsilon_for_its_square=lambda case, f, x: f.lipschitz(x) * case.epsilon,
            trace_for_the_largest_eigenvalue=lambda case, f, x: (
                f.lipschitz(x)
                * f.tokens.square().sum()
                / torch.linalg.matrix_norm(f.tokens, 2).square().clamp(min=1e-300)
            ),
            not_local=lambda case, f, x: f.lipschitz(0 * x),
        ),
        structured=SINGLE,
        code=tuple(
            f"objectives.pca:{name}" for name in ("PCAReconstruction", "PCAVariance", "PCARate", "SeparableRate")
        ),
    ),
    Claim(
        id="pca.optimum",
        statement="Reconstruction error, variance and rate have one optimum over orthonormal directions, the top-C eigenspace"
        " of S; the reconstruction error over all matrices of directions.",
        equation=r"$\max_{P^\top P = I} \frac{1}{2}\log\det(I + \beta P^\top S P) = \frac{1}{2}\sum_{c \leq C}\log(1 +"
        r" \beta\lambda_c), \quad \max \mathrm{tr}(P^\top S P) = \sum_{c \leq C}\lambda_c, \quad \min \Vert Z -"
        r" PP^\top Z\Vert^2 = \sum_{c > C}\lambda_c$",
        source=f"{DEPICT}, section 3; Poincaré separation, Ky Fan, Eckart and Young",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=_principal,
        measure=_optimum,
        mutants=named(
            smallest_eigenvalues=lambda case, Z, values, C, beta: (
                principal_directions(Z, case.dim).flip(-2)[:C],
                _optimal_values(values[::-1], C, beta),
            ),
            half_dropped=lambda case, Z, values, C, beta: (
                (found := _principal(case, Z, values, C, beta))[0],
                {**found[1], "rate": 2 * found[1]["rate"]},
            ),
            one_direction_too_many=lambda case, Z, values, C, beta: (
                principal_directions(Z, C),
                _optimal_values(values, C + 1, beta),
            ),
            epsilon_for_its_square=lambda case, Z, values, C, beta: (
                principal_directions(Z, C),
                _optimal_values(values, C, beta * case.epsilon),
            ),
            any_directions=lambda case, Z, values, C, beta: (
                torch.from_numpy(_frame(case)),
                _optimal_values(values, C, beta),
            ),
            all_NaN=lambda case, Z, values, C, beta: (principal_directions(Z, C), {"rate": np.nan}),
        ),
        structured=SINGLE,
        code=("objectives.alignment:principal_directions", "objectives.pca:PCARate"),
    ),
    Claim(
        id="pca.span",
        statement="On orthonormal directions the three objectives depend on their span only.",
        equation=r"$f(P O) = f(P), \quad P^\top P = I,\; O^\top O = I$",
        source=f"{DEPICT}, section 3",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=lambda case, name, f, x: f.value(x),
        measure=_span,
        mutants=named(
            separable_rate=lambda case, name, f, x: SeparableRate(f.tokens, case.epsilon).value(x),
            first_direction_only=lambda case, name, f, x: f.value(x[:1]),
            directions_weighted=lambda case, name, f, x: f.value(x * torch.arange(1.0, len(x) + 1)[:, None]),
            all_NaN=lambda case, name, f, x: f.value(x) * torch.nan,
        ),
        structured=SINGLE,
        code=("objectives.pca:PCARate",),
    ),
    Claim(
        id="pca.stationary",
        statement="The Riemannian gradients are −2 (I − PPᵀ)SP, twice, and −β (I − PPᵀ)SP (I + βPᵀSP)⁻¹: zero exactly where"
        " P spans an invariant subspace of S.",
        equation=r"$\mathrm{grad} f = -(I - PP^\top) S P\, M, \quad M = 2I,\; 2I,\; \beta(I + \beta P^\top S P)^{-1}$",
        source=f"derived; {DEPICT}, section 3",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_riemannian,
        measure=_stationary,
        mutants=named(
            Euclidean_gradient=lambda case, name, f, x: f.gradient(x),
            half_of_the_symmetric_part_forgotten=lambda case, name, f, x: (
                (g := f.gradient(x)) - (g @ x.mT + x @ g.mT) @ x
            ),
            sign_flipped=lambda case, name, f, x: -_riemannian(case, name, f, x),
            half=lambda case, name, f, x: 0.5 * _riemannian(case, name, f, x),
            separable_rate=lambda case, name, f, x: _riemannian(
                case, name, SeparableRate(f.tokens, case.epsilon) if name == "rate" else f, x
            ),
            all_NaN=lambda case, name, f, x: x * torch.nan,
        ),
        structured=SINGLE,
        code=("unrolling.riemannian:tangent",),
    ),
    Claim(
        id="pca.cross_attention",
        statement="Half the descent direction of minus the variance is cross-attention without softmax: directions as"
        " queries, tokens as keys and values.",
        equation=r"$S P = Z\,(Z^\top P)$",
        source=f"{DEPICT}, section 3",
        kind="identity",
        domain=cases(),
        subject=lambda case, Z, x: -0.5 * PCAVariance(Z).gradient(x),
        measure=_attention,
        mutants=named(
            softmax_inside=lambda case, Z, x: torch.softmax(x @ Z.mT, -1) @ Z,
            scaled_as_attention_is=lambda case, Z, x: (x @ Z.mT) @ Z * (case.dim + 1) ** -0.5,
            keys_centred=lambda case, Z, x: (x @ (Z - Z.mean(-2, keepdim=True)).mT) @ Z,
            sign_flipped=lambda case, Z, x: 0.5 * PCAVariance(Z).gradient(x),
            half_left=lambda case, Z, x: -PCAVariance(Z).gradient(x),
            all_NaN=lambda case, Z, x: x * torch.nan,
        ),
        structured=PARITIES,
        code=("objectives.pca:PCAVariance",),
    ),
    Claim(
        id="pca.power",
        statement="A Riemannian gradient step of size 1 on the rate of PCA spans exactly one block power iteration of I + βS.",
        equation=r"$\mathrm{span}\;\mathrm{retract}(P - \mathrm{grad} f(P)) = \mathrm{span}\,(I + \beta S) P$",
        source=f"derived: P − grad f = (I + βS) P (I + βPᵀSP)⁻¹; {DEPICT}, section 3",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=lambda case, f, x, retraction: RiemannianStep(retraction)(f, x, 1.0),
        measure=_power,
        mutants=named(
            no_op=lambda case, f, x, retraction: x,
            half_step=lambda case, f, x, retraction: RiemannianStep(retraction)(f, x, 0.5),
            one_percent_longer=lambda case, f, x, retraction: RiemannianStep(retraction)(f, x, 1.01),
            opposite_sign=lambda case, f, x, retraction: RiemannianStep(retraction)(f, x, -1.0),
            not_projected=lambda case, f, x, retraction: retract(x - f.gradient(x), retraction),
            variance=lambda case, f, x, retraction: RiemannianStep(retraction)(PCAVariance(f.tokens), x, 1.0),
            identity_dropped=lambda case, f, x, retraction: retract(x + 1e3 * f.beta(x) * (x @ f.tokens.mT) @ f.tokens),
            directions_by_themselves=lambda case, f, x, retraction: RiemannianStep(retraction)(
                SeparableRate(f.tokens, f.epsilon), x, 1.0
            ),
        ),
        structured=SINGLE,
        code=("unrolling.riemannian:RiemannianStep", "objectives.pca:PCARate"),
    ),
    Claim(
        id="pca.power.convergence",
        statement="Such a step shrinks the tangent of the largest angle to the top-C eigenspace by the ratio of neighbouring"
        " eigenvalues of I + βS, or more.",
        equation=r"$\tan\theta^{+} \leq \frac{1 + \beta\lambda_{C+1}}{1 + \beta\lambda_C}\,\tan\theta$",
        source="subspace iteration, Golub and Van Loan, theorem 8.2.2, with pca.power",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lambda case, values, C, beta: (1 + beta * values[C]) / (1 + beta * values[C - 1]),
        measure=_convergence,
        mutants=named(
            identity_dropped=lambda case, values, C, beta: values[C] / max(values[C - 1], 1e-300),
            squared=lambda case, values, C, beta: ((1 + beta * values[C]) / (1 + beta * values[C - 1])) ** 2,
            not_shrinking=lambda case, values, C, beta: 1.0,
            neighbours_one_off=lambda case, values, C, beta: (1 + beta * values[C]) / (1 + beta * values[0]),
            epsilon_for_its_square=lambda case, values, C, beta: (
                (1 + beta * case.epsilon * values[C]) / (1 + beta * case.epsilon * values[C - 1])
            ),
        ),
        structured=(*SINGLE, Case(tokens=12, heads=1, head_dim=4, m=2, epsilon=2.0)),
        code=("unrolling.riemannian:RiemannianStep", "objectives.pca:PCARate"),
    ),
    Claim(
        id="pca.riemannian.step",
        statement="The Riemannian step is the retraction of the tangent step, by Gram–Schmidt or by the polar factor, and"
        " keeps the directions orthonormal.",
        equation=r"$P \leftarrow \mathrm{retract}(P - \kappa\,(\nabla f - P\,\mathrm{sym}(P^\top \nabla f)))$",
        source="Absil, Mahony and Sepulchre, 2008, examples 3.6.2 and 4.1.3",
        kind="exact",
        domain=cases(batches=(0,)),
        subject=_take,
        measure=_step,
        mutants=named(
            no_op=lambda case, rule, f, x, kappa: x,
            opposite_sign=lambda case, rule, f, x, kappa: rule(f, x, -kappa),
            one_percent_longer=lambda case, rule, f, x, kappa: rule(f, x, 1.01 * kappa),
            not_projected=lambda case, rule, f, x, kappa: retract(x - kappa * f.gradient(x), rule.retraction),
            horizontal_part_only=lambda case, rule, f, x, kappa: retract(
                x - kappa * ((g := f.gradient(x)) - g @ x.mT @ x), rule.retraction
            ),
            not_retracted=lambda case, rule, f, x, kappa: x - kappa * tangent(x, f.gradient(x)),
            rows_normed_one_by_one=lambda case, rule, f, x, kappa: torch.nn.functional.normalize(
                x - kappa * tangent(x, f.gradient(x)), dim=-1
            ),
            the_other_retraction=lambda case, rule, f, x, kappa: RiemannianStep(
                "polar" if rule.retraction == "qr" else "qr"
            )(f, x, kappa),
            all_NaN=lambda case, rule, f, x, kappa: x * torch.nan,
        ),
        structured=SINGLE,
        code=("unrolling.riemannian:RiemannianStep",),
    ),
    Claim(
        id="pca.riemannian.retraction",
        statement="Both retractions agree with the tangent step to first order: they differ from it by the order of its square,"
        " the polar one by at most half of it.",
        equation=r"$\Vert \mathrm{retract}(P + t\eta) - (P + t\eta) \Vert = O(t^2), \quad \leq \frac{t^2}{2}\Vert\eta\Vert^2$"
        " for the polar one",
        source="Absil, Mahony and Sepulchre, 2008, section 4.1; Boumal, Absil and Cartis, 2019, appendix E",
        kind="order",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=lambda case, y, retraction: retract(y, retraction),
        measure=_retraction,
        mutants=named(
            not_retracted=lambda case, y, retraction: y,
            signs_of_the_factorisation=lambda case, y, retraction: torch.linalg.qr(-y.mT).Q.mT,
            rows_in_the_wrong_order=lambda case, y, retraction: retract(y.flip(-2), retraction),
            rows_normed_one_by_one=lambda case, y, retraction: torch.nn.functional.normalize(y, dim=-1),
            twice_as_far=lambda case, y, retraction: retract(2 * y - retract(y, retraction) + 0.1 * y.roll(1, -1)),
            all_NaN=lambda case, y, retraction: y * torch.nan,
        ),
        structured=SINGLE,
        code=("unrolling.riemannian:retract", "unrolling.riemannian:tangent"),
    ),
    Claim(
        id="pca.riemannian.decrease",
        statement="With κ < 2/(L + ‖∇f‖₂) a Riemannian step with the polar retraction lowers f by at least the stated amount;"
        " for objectives of the span with Gram–Schmidt too.",
        equation=r"$f(P^{+}) \leq f(P) - \kappa\,(1 - \frac{\kappa}{2}(L + \Vert\nabla f(P)\Vert_2))\,\Vert"
        r"\mathrm{grad} f(P)\Vert^2$",
        source="derived, after Boumal, Absil and Cartis, 2019, lemma 2.7",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=_certified,
        measure=_decrease,
        mutants=named(
            no_op=lambda case, f, x, step, retraction: (x, *_certified(case, f, x, step, retraction)[1:]),
            ascent=_longer(-1.0),
            a_tenth_of_the_step=_longer(0.1),
            curvature_forgotten=lambda case, f, x, step, retraction: (
                *_certified(case, f, x, step, retraction)[:2],
                -_certified(case, f, x, step, retraction)[2],
            ),
            step_in_units_of_the_gradient=lambda case, f, x, step, retraction: (
                RiemannianStep(retraction)(f, x, (k := 40 / float(torch.linalg.matrix_norm(f.gradient(x), 2)))),
                k,
                1 / k,
            ),
            all_NaN=lambda case, f, x, step, retraction: (x * torch.nan, 1.0, 1.0),
        ),
        structured=tuple(dataclasses.replace(c, step=s) for c in SINGLE for s in (0.1, 1.9)),
        code=("unrolling.riemannian:certified_stiefel_step",),
    ),
    Claim(
        id="pca.riemannian.unit_step",
        statement="A Riemannian step of size 1 never lowers the rate of PCA, whatever β and whatever the directions.",
        equation=r"$\det(P_{+}^\top B P_{+}) = \frac{\det(P^\top B^3 P)}{\det(P^\top B^2 P)} \geq"
        r" \frac{\det(P^\top B^2 P)}{\det(P^\top B P)} \geq \det(P^\top B P), \quad B = I + \beta S$",
        source="derived: Cauchy–Schwarz for the C-th exterior power of B at p₁ ∧ … ∧ p_C",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=lambda case, f, x: RiemannianStep("qr" if case.seed % 2 else "polar")(f, x, 1.0),
        measure=_unit_step,
        mutants=named(
            opposite_sign=lambda case, f, x: RiemannianStep()(f, x, -1.0),
            inverse_iteration=lambda case, f, x: retract(
                torch.linalg.solve(torch.eye(case.dim) + f.beta(x) * f.tokens.mT @ f.tokens, x.mT).mT
            ),
            any_frame=lambda case, f, x: torch.from_numpy(_frame(case, "another")),
            forty_times_longer=lambda case, f, x: RiemannianStep()(f, x, -40.0),
            all_NaN=lambda case, f, x: x * torch.nan,
        ),
        structured=SINGLE,
        code=("unrolling.riemannian:RiemannianStep", "objectives.pca:PCARate"),
    ),
    Claim(
        id="pca.separable.maximum",
        statement="The separable rate is largest in the top-C eigenspace too, but there where it equalises the directions; the"
        " principal directions have the smallest separable rate of their subspace.",
        equation=r"$\sum_c \frac{1}{2}\log(1 + \beta p_c^\top S p_c) \leq \frac{C}{2}\log(1 + \frac{\beta}{C}\sum_{c \leq"
        r" C}\lambda_c)$",
        source="derived: Jensen and Ky Fan; Schur and Horn for equality; Hadamard for the smallest",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lambda case, values, C, beta: C / 2 * float(np.log1p(beta / C * values[:C].sum())),
        measure=_separable_maximum,
        mutants=named(
            joint_optimum=lambda case, values, C, beta: 0.5 * float(np.log1p(beta * values[:C]).sum()),
            half_dropped=lambda case, values, C, beta: C * float(np.log1p(beta / C * values[:C].sum())),
            C_forgotten=lambda case, values, C, beta: 0.5 * float(np.log1p(beta * values[:C].sum())),
            epsilon_for_its_square=lambda case, values, C, beta: (
                C / 2 * float(np.log1p(beta * case.epsilon / C * values[:C].sum()))
            ),
            all_eigenvalues=lambda case, values, C, beta: C / 2 * float(np.log1p(beta / C * values.sum())),
        ),
        structured=(*SINGLE, HALF_TURN),
        code=("objectives.pca:SeparableRate",),
    ),
    Claim(
        id="pca.separable.principal",
        statement="The separable rate, as the joint one, is maximised by the principal directions.",
        equation=r"$\sum_c \frac{1}{2}\log(1 + \beta v_c^\top S v_c) \geq \sum_c \frac{1}{2}\log(1 + \beta p_c^\top S p_c)$",
        source=f"natural to believe after {DEPICT}, section 3",
        kind="refuted",
        domain=cases(batches=(0,)),
        subject=_separable,
        measure=_separable_principal,
        mutants=named(
            joint_rate=lambda case, P, Z: float(paper.pca_rate(P, columns(Z), case.epsilon)),
            variance=lambda case, P, Z: 0.0 * float(paper.pca_variance(P, columns(Z))),
            sign_flipped=lambda case, P, Z: -_separable(case, P, Z),
        ),
        structured=(HALF_TURN,),
        code=("objectives.pca:SeparableRate",),
        correction="They minimise it within their subspace; the equalised directions of the same subspace maximise it"
        " (pca.separable.maximum). With S = diag(5, 3, 1, 0.1), C = 2, β = 1: 1.5890 for the principal directions, 1.6094"
        " for the same turned by 45°, joint rate 1.5890 for both.",
        real=False,
    ),
    Claim(
        id="pca.alignment",
        statement="The alignment of two subspaces is the mean squared cosine of their principal angles, whatever rows span them.",
        equation=r"$\frac{1}{\min(C, D)}\sum_i \cos^2\theta_i$",
        source="Björck and Golub, 1973",
        kind="identity",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=subspace_alignment,
        measure=_alignment,
        mutants=named(
            rows_taken_as_orthonormal=lambda P, Q: (P @ Q.mT).square().sum() / min(len(P), len(Q)),
            cosine_for_its_square=lambda P, Q: subspace_alignment(P, Q) ** 0.5,
            larger_count=lambda P, Q: subspace_alignment(P, Q) * min(len(P), len(Q)) / max(len(P), len(Q)),
            all_NaN=lambda P, Q: subspace_alignment(P, Q) * torch.nan,
        ),
        structured=SINGLE,
        code=("objectives.alignment:subspace_alignment",),
    ),
)


def _all_but_the_last(tokens: Tensor) -> Tensor:
    kept = torch.ones(tokens.shape[-2], 1, dtype=tokens.dtype)
    kept[-1] = 0
    return kept


def _projected_batch(x: Tensor, tokens: Tensor) -> Tensor:
    return _projected(x, tokens.mT @ tokens)
