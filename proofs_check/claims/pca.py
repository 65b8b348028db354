"""Claims on PCA as compression: its objectives, their common optimum, and steps on orthonormal frames."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import (
    PCARate,
    PCAVariance,
    SeparableRate,
    principal_directions,
    subspace_alignment,
)
from unrolling import RiemannianStep, retract, tangent

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..frames import (
    bend_of_pca,
    beta_of_frame,
    cancellation,
    directions_of,
    equalised,
    gradient_condition,
    orthonormal_frame,
    pca_naive,
    pca_objectives,
    posed_gradient,
    spectrum,
    variable,
)
from ..measures import columns, identity, norm, rate_condition, reference, slices
from ..mutants import gradient, named, of_gradient
from ..stiefel import certified, convergence, decrease, longer, power, retraction_order, stiefel_step, take, unit_step
from ..strategies import KINDS_OF_TOKENS, STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, SAFETY, tolerance
from .coding_rate import combine, lipschitz, smoothness_measure

__all__ = ["CLAIMS"]

DEPICT = "Wen et al., DEPICT, arXiv 2411.03033"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
MOVING = tuple(kind for kind in KINDS_OF_TOKENS if kind != "zero")
"""Kinds of tokens that have principal directions; zero tokens, where nothing moves, are among the structured cases."""

PARITIES = tuple(dataclasses.replace(case, seed=s) for case in STRUCTURED for s in (0, 1))
"""Even seeds draw any directions, odd seeds orthonormal ones."""

HALF_TURN = Case(tokens=4, heads=1, head_dim=4, m=2, kind="orthonormal", epsilon=0.5**0.5)
"""Tokens with S = diag(5, 3, 1, 0.1) in some basis, C = 2, β = 1."""


Array = NDArray[np.float64]


def _gradient_claim(name: str, equation: str, statement: str, **own: Any) -> Claim:
    measure = posed_gradient(
        lambda case, Z: pca_objectives(case, Z)[name],
        lambda case, Z: pca_naive(name, case, Z),
        gradient_condition,
        bend_of_pca,
    )

    def make() -> Any:
        return type(pca_objectives(Case(), Case().x())[name]).__name__

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
    inner, outer, parts = variable(case), reference(case), []
    x, exact = inner.x(), reference(inner).x()
    for name, f in pca_objectives(case, case.x()).items():
        got = subject(case, f, x).double().reshape(-1)
        for b, (z, tokens) in enumerate(slices(exact, outer.x())):
            want = float(pca_naive(name, outer, columns(tokens))(columns(z)))
            products, size = tokens @ z.mT, norm(z) * norm(tokens)
            if size == 0:
                parts.append(Measurement((Comparison(f"{name} at rest", abs(float(got[b])), 0.0),), evidence=False))
                continue
            if name in ("reconstruction", "variance"):
                scale, condition = (norm(tokens) * (1 + norm(z) ** 2)) ** 2, 1.0
            else:
                beta = beta_of_frame(outer, len(z), len(tokens))
                condition = rate_condition(products, beta) * cancellation(size, norm(products))
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
        variable(dataclasses.replace(reference(case), batch=0)),
        reference(dataclasses.replace(case, batch=0)),
    )
    Z, count = outer.x(), directions_of(outer)
    top = principal_directions(Z, 1).expand(count, -1)
    parts = []
    for name, f in pca_objectives(outer, Z).items():
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


def _optimal_values(values: Array, C: int, beta: float) -> dict[str, float]:
    return {
        "reconstruction": float(values[C:].sum()),
        "variance": -float(values[:C].sum()),
        "rate": -0.5 * float(np.log1p(beta * values[:C]).sum()),
    }


def _optimum(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    Z, C = exact.x(), directions_of(exact)
    values = spectrum(Z)[0]
    if values[0] == 0:
        return Measurement(evidence=False)
    beta, parts = beta_of_frame(exact, C, len(Z)), []
    frame, claimed = subject(exact, Z, values, C, beta)
    orthonormal = norm(frame @ frame.mT - torch.eye(C))
    parts.append(Comparison("orthonormal", orthonormal, tolerance("float64", C)))
    rounding = SAFETY * np.finfo(float).eps * (1 + beta * values[0])
    for name, want in claimed.items():
        value = pca_naive(name, exact, columns(Z))
        scale = values.sum() if name != "rate" else C + abs(want)
        parts.append(Comparison(f"{name}: attained", abs(float(value(columns(frame))) - want) / scale, rounding))
        for i in range(3):
            x = orthonormal_frame(exact, f"frame {i}").T
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
    Z, C = exact.x(), directions_of(exact)
    x = torch.from_numpy(orthonormal_frame(exact))
    turn = torch.from_numpy(np.linalg.qr(exact.rng("turn").standard_normal((C, C)))[0])
    for name, f in pca_objectives(exact, Z).items():
        if name == "separable rate" or norm(Z) == 0:
            continue
        before, after = (float(subject(exact, name, f, y)) for y in (x, turn @ x))
        condition = rate_condition(Z, beta_of_frame(exact, C, len(Z))) if name == "rate" else 1.0
        scale = norm(Z) ** 2 if name != "rate" else C + abs(before)
        error, allowed = abs(after - before) / scale, tolerance("float64", condition)
        parts.append(Measurement((Comparison(name, error, allowed),), allowed <= MEANINGFUL and C > 1))
    return combine(*parts)


def _projected(x: Tensor, S: Tensor) -> Tensor:
    """``x S (I − xᵀx)``: zero exactly where the rows of x span an invariant subspace."""
    return x @ S - (x @ S @ x.mT) @ x


def _stationary(subject: Any, case: Case) -> Measurement:
    exact, parts = reference(case), []
    Z, C = exact.x(), directions_of(exact)
    values, vectors = spectrum(Z)
    if values[0] == 0:
        return Measurement(evidence=False)
    S, beta = Z.mT @ Z, beta_of_frame(exact, C, len(Z))
    turn = np.linalg.qr(exact.rng("turn").standard_normal((C, C)))[0]
    chosen = vectors[:, exact.rng("subset").permutation(exact.dim)[:C]]
    frames = {"invariant subspace": turn @ chosen.T, "any frame": orthonormal_frame(exact)}
    for where, frame in frames.items():
        x = torch.from_numpy(np.ascontiguousarray(frame))
        A = x @ S @ x.mT
        inverse = torch.linalg.inv(torch.eye(C) + beta * A)
        for name, factor in (("reconstruction", 2.0), ("variance", 2.0), ("rate", beta * inverse)):
            got = subject(exact, name, pca_objectives(exact, Z)[name], x)
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
    inner, outer = variable(case), reference(case)
    got = subject(case, case.x(), inner.x())
    flat, parts = got.double().reshape(-1, *got.shape[-2:]), []
    for g, (tokens, x) in zip(flat, slices(outer.x(), reference(inner).x()), strict=True):
        want = paper.pca_attention(columns(x), columns(tokens)).T
        condition = cancellation(norm(x) * norm(tokens) ** 2, norm(want))
        parts.append(identity("S P = Z (ZᵀP)", g, want, case.dtype, condition))
    return combine(*parts)


def _separable_maximum(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    Z, C = exact.x(), directions_of(exact)
    values, V = spectrum(Z)
    if values[0] == 0:
        return Measurement(evidence=False)
    beta = beta_of_frame(exact, C, len(Z))
    claimed = subject(exact, values, C, beta)
    scale, rounding = C + claimed, SAFETY * np.finfo(float).eps * (1 + beta * values[0])

    def rate(P: Array) -> float:
        return float(paper.pca_separable_rate(P, columns(Z), exact.epsilon))

    principal = V[:, :C]
    equal = principal @ equalised(np.diag(values[:C])).T
    turn = np.linalg.qr(exact.rng("turn").standard_normal((C, C)))[0]
    parts = [
        Comparison("attained by equalising", abs(rate(equal) - claimed) / scale, rounding),
        Comparison(
            "smallest at principal directions", max(0.0, rate(principal) - rate(principal @ turn)) / scale, rounding
        ),
    ]
    for other in (principal, principal @ turn, orthonormal_frame(exact).T, orthonormal_frame(exact, "another").T):
        parts.append(Comparison("bound", max(0.0, rate(other) - claimed) / scale, rounding))
    return Measurement(tuple(parts), rounding <= MEANINGFUL)


def _separable_principal(subject: Any, case: Case) -> Measurement:
    """Rates of the principal directions and of the equalised ones in the same subspace; the subject takes a frame."""
    exact = reference(case)
    Z, C = exact.x(), min(max(2, exact.m), exact.dim)
    if exact.kind == "orthonormal" and exact.tokens == exact.dim == 4:
        Z = torch.tensor([5.0, 3.0, 1.0, 0.1], dtype=Z.dtype).sqrt()[:, None] * Z
    values, V = spectrum(Z)
    if values[0] == 0 or C < 2:
        return Measurement(evidence=False)
    beta = beta_of_frame(exact, C, len(Z))
    principal = V[:, :C]
    turned = principal @ equalised(np.diag(values[:C])).T
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
    C, D = directions_of(exact), 1 + exact.seed % exact.dim
    P, Q = orthonormal_frame(exact), orthonormal_frame(exact, "other", D)
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
                torch.from_numpy(orthonormal_frame(case)),
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
        domain=cases(batches=(0,), kinds=MOVING),
        subject=lambda case, f, x, retraction: RiemannianStep(retraction)(f, x, 1.0),
        measure=power,
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
        domain=cases(batches=(0,), kinds=MOVING),
        subject=lambda case, values, C, beta: (1 + beta * values[C]) / (1 + beta * values[C - 1]),
        measure=convergence,
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
        domain=cases(batches=(0,), kinds=MOVING),
        subject=take,
        measure=stiefel_step,
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
        measure=retraction_order,
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
        domain=cases(batches=(0,), kinds=MOVING),
        subject=certified,
        measure=decrease,
        mutants=named(
            no_op=lambda case, f, x, step, retraction: (x, *certified(case, f, x, step, retraction)[1:]),
            ascent=longer(-1.0),
            a_tenth_of_the_step=longer(0.1),
            gradient_forgotten=lambda case, f, x, step, retraction: (
                RiemannianStep(retraction)(f, x, (k := step / float(f.lipschitz(x)))),
                k,
                step / k,
            ),
            curvature_forgotten=lambda case, f, x, step, retraction: (
                *certified(case, f, x, step, retraction)[:2],
                -certified(case, f, x, step, retraction)[2],
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
        domain=cases(batches=(0,), kinds=MOVING),
        subject=lambda case, f, x: RiemannianStep("qr" if case.seed % 2 else "polar")(f, x, 1.0),
        measure=unit_step,
        mutants=named(
            opposite_sign=lambda case, f, x: RiemannianStep()(f, x, -1.0),
            inverse_iteration=lambda case, f, x: retract(
                torch.linalg.solve(torch.eye(case.dim) + f.beta(x) * f.tokens.mT @ f.tokens, x.mT).mT
            ),
            any_frame=lambda case, f, x: torch.from_numpy(orthonormal_frame(case, "another")),
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
