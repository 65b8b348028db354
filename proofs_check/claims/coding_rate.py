"""Claims on the coding rate, its subspace form and its channel form."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from objectives import ChannelRate, CodingRate, Objective, SubspaceCodingRate, lift, project

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import (
    bases,
    columns,
    gradient_measure,
    identity,
    inequality,
    norm,
    rate_condition,
    reference,
    slices,
)
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, SAFETY, tolerance

__all__ = ["CLAIMS", "bend_of_rate", "combine", "smoothness_measure"]

MCR2 = "Yu et al., MCR², arXiv 2006.08558"
CRATE = "Yu et al., CRATE, arXiv 2306.01129"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)


def combine(*measurements: Measurement) -> Measurement:
    """Several things measured on one case: all must hold; evidence if any of them is."""
    values: dict[str, float] = {}
    for measured in measurements:
        values.update(measured.values)
    return Measurement(
        tuple(comparison for measured in measurements for comparison in measured.comparisons),
        any(measured.evidence for measured in measurements),
        values,
    )


def bend_of_rate(case: Case, objective: Any, x: Tensor) -> float:
    """log(1 + βσ²) bends over 1/√β; L is β times a norm that the coordinates carry too."""
    return 0.3 / float(objective.lipschitz(x).max()) ** 0.5


def _rate_value(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    got = subject(case, CodingRate(case.epsilon), x).double().reshape(-1)
    parts = []
    for b, (point,) in enumerate(slices(exact.x())):
        Z = columns(point)
        want = float(paper.coding_rate(Z, case.epsilon))
        other = float(paper.coding_rate_tokens_side(Z, case.epsilon))
        if want <= 1e-280:
            parts.append(Measurement((Comparison("at rest", abs(float(got[b])), 1e-15),), evidence=False))
            continue
        beta = point.shape[-1] / (point.shape[-2] * case.epsilon**2)
        # I + βG holds 1 beside β‖Z‖²: what is lost of a small rate is eps · d, of a large one eps · condition.
        allowed = tolerance(case.dtype, rate_condition(point, beta), len(Z) / want)
        done = [
            Comparison("d × d side", abs(float(got[b]) - want) / want, allowed),
            Comparison("N × N side", abs(float(got[b]) - other) / want, allowed),
        ]
        parts.append(Measurement(tuple(done), allowed <= MEANINGFUL))
    return combine(*parts)


def _value(case: Case, objective: Any, x: Tensor) -> Tensor:
    return objective.value(x)


def _with_beta(factor: Any) -> Any:
    """A subject that takes β times ``factor(case, x)`` for β, by the ε that gives it."""

    def subject(method: str) -> Any:
        def run(case: Case, objective: Any, x: Tensor) -> Tensor:
            wrong = dataclasses.replace(objective, epsilon=objective.epsilon / factor(case, x) ** 0.5)
            return getattr(wrong, method)(x)

        return run

    return subject


_eps_for_square = _with_beta(lambda case, x: case.epsilon)
_n_for_d = _with_beta(lambda case, x: x.shape[-2] / x.shape[-1])
_p_for_d = _with_beta(lambda case, x: case.dim / case.head_dim)
_no_count = _with_beta(lambda case, x: x.shape[-2] + 0.0)


def _hessian(subject: Any, case: Case) -> Measurement:
    objective = CodingRate(case.epsilon)
    x = reference(case).x()
    beta = float(objective.lipschitz(x))
    lower, upper = subject(case, beta)
    tight = torch.zeros_like(x)
    tight[0, 0] = (3.0 / beta) ** 0.5  # βσ² = 3 in one direction: the second derivative's minimum

    def spectrum(point: Tensor) -> tuple[float, float]:
        full = torch.autograd.functional.hessian(lambda z: objective.value(z.reshape(x.shape)), point.flatten())
        eigenvalues = torch.linalg.eigvalsh(full)
        return float(eigenvalues[0]), float(eigenvalues[-1])

    allowed = tolerance("float64", rate_condition(x, beta))
    low, high = spectrum(x)
    attained_high, attained_low = spectrum(torch.zeros_like(x))[1], spectrum(tight)[0]
    return Measurement(
        (
            Comparison("largest eigenvalue", max(0.0, high - upper) / beta, allowed),
            Comparison("smallest eigenvalue", max(0.0, lower - low) / beta, allowed),
            Comparison("attained at zero tokens", abs(attained_high - upper) / beta, allowed),
            Comparison("attained at βσ² = 3", abs(attained_low - lower) / beta, allowed),
        ),
        allowed <= MEANINGFUL,
    )


def _descent(subject: Any, case: Case) -> Measurement:
    objective, x = CodingRate(case.epsilon), reference(case).x()
    beta = float(objective.lipschitz(x))
    kappa, g = case.step / beta, objective.gradient(x)
    after, promised = subject(case, x, g, kappa, beta, norm(g) ** 2)
    if norm(g) == 0:
        return Measurement((Comparison("at rest", norm(after - x), 0.0),), evidence=False)
    start, end = (float(paper.coding_rate(columns(z), case.epsilon)) for z in (x, after))
    scale = kappa * norm(g) ** 2
    rounding = (1.0 + abs(start)) / scale * rate_condition(x, beta)
    return inequality("promised decrease", promised, start - end, scale, "float64", rounding)


def _promise(case: Case, x: Tensor, g: Tensor, kappa: float, beta: float, squared: float) -> tuple[Tensor, float]:
    return x - kappa * g, kappa * (1 - kappa * beta / 2) * squared


def _singular_values(subject: Any, case: Case) -> Measurement:
    x = case.x()
    objective, exact = CodingRate(case.epsilon), reference(case).x()
    beta = float(objective.lipschitz(exact))
    kappa = case.step / beta
    got = x - kappa * objective.gradient(x)
    left, sigma, right = np.linalg.svd(columns(exact), full_matrices=False)
    want = ((left * subject(case, sigma, kappa, beta)) @ right).T
    return identity(
        "σ ↦ σ(1 − κβ/(1 + βσ²))",
        got,
        want,
        case.dtype,
        rate_condition(exact, beta),
        norm(got.double() - exact),
    )


def _invariance(subject: Any, case: Case) -> Measurement:
    x = reference(case).x()
    start = float(subject(case, x))
    rng = case.rng("rotations")
    by_tokens, by_features = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in x.shape)
    turned = torch.from_numpy(by_tokens) @ x @ torch.from_numpy(by_features)
    beta = x.shape[-1] / (x.shape[-2] * case.epsilon**2)
    allowed = tolerance("float64", rate_condition(x, beta), x.shape[-1] / start if start > 0 else 0.0)
    zero = float(subject(case, torch.zeros_like(x)))
    if start == 0:
        return Measurement((Comparison("R(0) = 0", abs(zero), 0.0),), evidence=False)
    return Measurement(
        (
            Comparison("rotation of tokens and features", abs(float(subject(case, turned)) - start) / start, allowed),
            Comparison("repetition", abs(float(subject(case, torch.cat([x, x]))) - start) / start, allowed),
            Comparison("R(0) = 0", abs(zero), 0.0),
            Comparison("R ≥ 0", max(0.0, -start), 0.0),
        ),
        allowed <= MEANINGFUL,
    )


def _count(function: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2


def _cost(subject: Any, case: Case) -> Measurement:
    N, d = 40 * case.tokens, case.dim
    x = case.draw("cost", N, d)
    counted = _count(lambda: subject(case, x))
    return Measurement(
        (Comparison("multiply-adds", abs(counted - N * d * min(N, d)), 0.0),),
        values={"multiply-adds": counted},
    )


def _make_subspaces(case: Case) -> SubspaceCodingRate:
    return SubspaceCodingRate(case.U(), case.epsilon)


def _subspace_beta(case: Case, x: Tensor) -> float:
    return case.head_dim / (x.shape[-2] * case.epsilon**2)


def _subspace_value(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    got = subject(case, _make_subspaces(case), x).double().reshape(-1)
    parts = []
    for b, (point,) in enumerate(slices(exact.x())):
        want = float(paper.crate_eq8(columns(point), bases(exact.U()), case.epsilon))
        if want <= 1e-280:
            parts.append(Measurement((Comparison("at rest", abs(float(got[b])), 1e-15),), evidence=False))
            continue
        allowed = tolerance(case.dtype, rate_condition(point, _subspace_beta(case, point)), case.dim / want)
        error = abs(float(got[b]) - want) / want
        parts.append(Measurement((Comparison("paper's sum", error, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def smoothness_measure(make: Any, attained: Any) -> Any:
    """‖∇f(a) − ∇f(b)‖ ≤ L ‖a − b‖ around the tokens, and equality where it is attained.

    attained(case) is (objective, direction): at zero tokens the Hessian stretches that direction by L exactly.
    The subject is called as ``subject(case, objective, x)`` and returns L.
    """

    def measure(subject: Any, case: Case) -> Measurement:
        exact = reference(case)
        objective, x = make(exact), exact.x()
        bound = float(subject(exact, objective, x).max())
        if not bound > 0:
            return Measurement((Comparison("bound is positive", np.inf, 0.0),))
        length = 0.3 / bound**0.5
        rng, parts = case.rng("smoothness"), []
        for size in (1e-3, 1.0, 30.0):
            a, b = (x + size * length * torch.from_numpy(rng.standard_normal(x.shape)) for _ in range(2))
            stretch = norm(objective.gradient(a) - objective.gradient(b)) / norm(a - b)
            parts.append(Comparison(f"difference at {size:g} bends", max(0.0, stretch / bound - 1), 1e-6))
        special, direction = attained(exact)
        tight = float(subject(exact, special, direction).max())
        tiny = 1e-5 / max(tight, 1e-30) ** 0.5 / norm(direction)
        zero = torch.zeros_like(direction)
        stretch = norm(special.gradient(tiny * direction) - special.gradient(zero)) / norm(tiny * direction)
        parts.append(Comparison("attained", abs(stretch / tight - 1), 1e-6))
        return Measurement(tuple(parts))

    return measure


def lipschitz(case: Case, objective: Any, x: Tensor) -> Tensor:
    """The usual subject of a smoothness claim."""
    return objective.lipschitz(x)


def _attained_subspaces(case: Case) -> tuple[Objective, Tensor]:
    U = case.U()
    return _make_subspaces(case), torch.ones(case.tokens, 1, dtype=U.dtype) * U[0, :, 0]


def _fischer(subject: Any, case: Case) -> Measurement:
    case = dataclasses.replace(reference(case), extra=0)
    if case.given is not None and case.given.shape[-1] != case.dim:
        return Measurement(evidence=False)
    x, U = case.x(), case.U()
    own = lift(project(x, U) * _owners(case, x), U)  # every token keeps the coordinates of one subspace only
    parts = []
    for name, z in (("Σ_k blocks ≥ whole", x), ("equality for block-diagonal ZᵀZ", own)):
        blocks, whole = subject(case, columns(z), bases(U))
        if whole <= 0:
            parts.append(Measurement((Comparison(name, abs(blocks), 0.0),), evidence=False))
            continue
        rounding = rate_condition(z, case.dim / (len(z) * case.epsilon**2)) * (1 + case.dim / whole)
        error = max(0.0, whole - blocks) if z is x else abs(whole - blocks)
        allowed = SAFETY * float(np.finfo(float).eps) * rounding
        parts.append(Measurement((Comparison(name, error / whole, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def _owners(case: Case, x: Tensor) -> Tensor:
    owner = torch.arange(x.shape[-2]) % case.heads
    return torch.nn.functional.one_hot(owner, case.heads).to(x.dtype).mT.unsqueeze(-1)


def _common_beta(case: Case, Z: Any, U: Any) -> tuple[float, float]:
    beta = Z.shape[0] / (Z.shape[1] * case.epsilon**2)
    blocks = sum(0.5 * paper.logdet(np.eye(Uk.shape[1]) + beta * (Uk.T @ Z @ Z.T @ Uk)) for Uk in U)
    return float(blocks), float(paper.coding_rate(Z, case.epsilon))


def _own_betas(case: Case, Z: Any, U: Any) -> tuple[float, float]:
    return float(paper.crate_eq8(Z, U, case.epsilon)), float(paper.coding_rate(Z, case.epsilon))


def _papers_beta(subject: Any, case: Case) -> Measurement:
    case = reference(case)
    x = case.x()
    blocks, whole = subject(case, columns(x), bases(case.U()))
    Z, gap = columns(x), blocks - whole
    other = float(paper.coding_rate_tokens_side(Z, case.epsilon))
    condition = rate_condition(x, case.dim / (len(x) * case.epsilon**2))
    allowed = tolerance("float64", condition, case.dim / other if other > 0 else 0.0)
    return Measurement(
        (Comparison("the rate on its other side", abs(whole - other), allowed * other),),
        whole > 0,
        {"R_c − R (nats)": gap},
        truth=gap >= -allowed * whole,
    )


FLAT = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
FULL = tuple(dataclasses.replace(case, extra=0) for case in FLAT)

CLAIMS = (
    Claim(
        id="coding_rate.value",
        statement="The coding rate by Cholesky of the smaller side equals its definition on either side.",
        equation=r"$R(Z) = \frac{1}{2}\log\det(I + \frac{d}{N\epsilon^2} Z Z^\top)"
        r" = \frac{1}{2}\log\det(I + \frac{d}{N\epsilon^2} Z^\top Z)$",
        source=f"{MCR2}, eq. 2",
        kind="identity",
        domain=cases(),
        subject=_value,
        measure=_rate_value,
        mutants=named(
            half_dropped=lambda case, f, x: 2 * f.value(x),
            base_two_logarithm=lambda case, f, x: f.value(x) / np.log(2),
            epsilon_for_its_square=_eps_for_square("value"),
            N_for_d=_n_for_d("value"),
            tokens_not_counted=_no_count("value"),
            last_token_left_out=lambda case, f, x: dataclasses.replace(f, tokens=x.shape[-2]).value(
                x[..., : max(1, x.shape[-2] - 1), :] * (x.shape[-2] > 1)
            ),
            all_NaN=lambda case, f, x: f.value(x) * torch.nan,
        ),
        structured=STRUCTURED,
        code=("objectives.coding_rate:CodingRate",),
    ),
    Claim(
        id="coding_rate.gradient",
        statement="The closed-form gradient of the coding rate is its gradient.",
        equation=r"$\nabla R(Z) = \beta\, (I + \beta Z Z^\top)^{-1} Z, \quad \beta = \frac{d}{N\epsilon^2}$",
        source=f"{MCR2}, eq. 2, differentiated; ReduNet, arXiv 2105.10446, eq. 8",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            lambda case: CodingRate(case.epsilon),
            lambda case, b: lambda Z: paper.coding_rate(Z, case.epsilon),
            lambda case, f, x: rate_condition(x, float(f.lipschitz(x))),
            bend_of_rate,
        ),
        mutants=of_gradient(
            epsilon_for_its_square=_eps_for_square("gradient"),
            N_for_d=_n_for_d("gradient"),
            p_for_d=_p_for_d("gradient"),
            inverse_dropped=lambda case, f, x: f.beta(x) * x,
            Neumann_for_the_inverse=lambda case, f, x: f.beta(x) * (x - f.beta(x) * x @ (x.mT @ x)),
        ),
        structured=STRUCTURED,
        code=("objectives.coding_rate:CodingRate",),
    ),
    Claim(
        id="coding_rate.hessian",
        statement="The Hessian's eigenvalues lie in [−β/8, β], and both ends are attained.",
        equation=r"$-\frac{\beta}{8}\, I \preceq \nabla^2 R(Z) \preceq \beta\, I$",
        source="derived from the second derivative (1 − βσ²)/(1 + βσ²)² along singular directions",
        kind="bound",
        domain=cases(tokens=(1, 3), batches=(0,)),
        subject=lambda case, beta: (-beta / 8, beta),
        measure=_hessian,
        mutants=named(
            upper_end_halved=lambda case, beta: (-beta / 8, beta / 2),
            upper_end_doubled=lambda case, beta: (-beta / 8, 2 * beta),
            convex=lambda case, beta: (0.0, beta),
            lower_end_doubled=lambda case, beta: (-beta / 4, beta),
            epsilon_for_its_square=lambda case, beta: (-beta * case.epsilon / 8, beta * case.epsilon),
        ),
        structured=tuple(case for case in FLAT if case.tokens <= 5),
        code=("objectives.coding_rate:CodingRate",),
        largest=4,
    ),
    Claim(
        id="coding_rate.descent",
        statement="A gradient step shorter than 2/β lowers the coding rate by at least κ(1 − κβ/2)‖∇R‖².",
        equation=r"$R(Z - \kappa\nabla R) \leq R(Z) - \kappa\,(1 - \frac{\kappa\beta}{2})\,\Vert\nabla R\Vert^2,"
        r"\quad 0 < \kappa < \frac{2}{\beta}$",
        source="descent lemma with L = β",
        kind="inequality",
        domain=cases(batches=(0,), scales=(1.0, 0.01, 0.1, 10.0)),
        subject=_promise,
        measure=_descent,
        mutants=named(
            ascent=lambda case, x, g, k, b, s: (x + k * g, k * (1 - k * b / 2) * s),
            no_op=lambda case, x, g, k, b, s: (x, k * (1 - k * b / 2) * s),
            curvature_halved=lambda case, x, g, k, b, s: (x - k * g, k * (1 - k * b / 4) * s),
            curvature_forgotten=lambda case, x, g, k, b, s: (x - k * g, k * s),
            step_beyond_the_limit=lambda case, x, g, k, b, s: (x - 2 * k * g, k * (1 - k * b / 2) * s),
            epsilon_for_its_square=lambda case, x, g, k, b, s: (
                x - k * g,
                k * (1 - k * b * case.epsilon / 2) * s,
            ),
            all_NaN=lambda case, x, g, k, b, s: (x * torch.nan, k * s),
        ),
        structured=(
            *FLAT,
            *(dataclasses.replace(c, scale=0.01, step=s) for c in FLAT[:4] for s in (0.5, 1.9)),
        ),
        code=("objectives.coding_rate:CodingRate",),
    ),
    Claim(
        id="coding_rate.singular_values",
        statement="The exact step keeps singular vectors and maps each singular value by itself.",
        equation=r"$\sigma \mapsto \sigma\,(1 - \frac{\kappa\beta}{1 + \beta\sigma^2})$",
        source="derived: Z and ∇R share singular vectors",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=lambda case, sigma, kappa, beta: sigma * (1 - kappa * beta / (1 + beta * sigma**2)),
        measure=_singular_values,
        mutants=named(
            no_op=lambda case, sigma, kappa, beta: sigma,
            opposite_sign=lambda case, sigma, kappa, beta: sigma * (1 + kappa * beta / (1 + beta * sigma**2)),
            sigma_for_its_square=lambda case, sigma, kappa, beta: sigma * (1 - kappa * beta / (1 + beta * sigma)),
            denominator_dropped=lambda case, sigma, kappa, beta: sigma * (1 - kappa * beta),
            beta_dropped=lambda case, sigma, kappa, beta: sigma * (1 - kappa / (1 + beta * sigma**2)),
            one_percent_longer=lambda case, sigma, kappa, beta: (
                sigma * (1 - 1.01 * kappa * beta / (1 + beta * sigma**2))
            ),
        ),
        structured=FLAT,
        code=("objectives.coding_rate:CodingRate",),
    ),
    Claim(
        id="coding_rate.invariance",
        statement="Rotating tokens or features and repeating all tokens change nothing; R(0) = 0 and R ≥ 0.",
        equation=r"$R(O_d Z O_N) = R(Z), \quad R([Z, Z]) = R(Z), \quad R(0) = 0, \quad R \geq 0$",
        source=f"{MCR2}, section 2",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=lambda case, x: CodingRate(case.epsilon).value(x),
        measure=_invariance,
        mutants=named(
            count_of_tokens_fixed=lambda case, x: CodingRate(case.epsilon, tokens=case.tokens).value(x),
            channels_by_themselves=lambda case, x: (
                0.5 * torch.log1p(x.square().sum(-2) * x.shape[-1] / (x.shape[-2] * case.epsilon**2)).sum()
            ),
            tokens_by_themselves=lambda case, x: (
                0.5 * torch.log1p(x.square().sum(-1) * x.shape[-1] / (x.shape[-2] * case.epsilon**2)).sum()
            ),
            identity_dropped=lambda case, x: CodingRate(case.epsilon).value(x) + 1e-6,
            negative=lambda case, x: -CodingRate(case.epsilon).value(x),
        ),
        structured=FLAT,
        code=("objectives.coding_rate:CodingRate",),
        largest=400,
    ),
    Claim(
        id="coding_rate.cost",
        statement="The value takes N d min(N, d) multiply-adds beside the factorisation: linear in tokens.",
        equation=r"$N\, d\, \min(N, d)$",
        source="counted on the running code",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",), scales=(1.0,)),
        subject=lambda case, x: CodingRate(case.epsilon).value(x),
        measure=_cost,
        mutants=named(
            larger_side=lambda case, x: torch.linalg.slogdet(torch.eye(len(x)) + (x @ x.mT).float()),
            both_sides=lambda case, x: (x @ x.mT, x.mT @ x),
            nothing_computed=lambda case, x: x,
        ),
        structured=(Case(), Case(tokens=1)),
        code=("objectives.coding_rate:CodingRate",),
        real=False,
    ),
    Claim(
        id="coding_rate.subspaces.value",
        statement="The compression term equals the sum of the coding rates of the tokens' coordinates.",
        equation=r"$R_c(Z\,|\,U) = \sum_k \frac{1}{2}\log\det(I + \frac{p}{N\epsilon^2}(U_k^\top Z)(U_k^\top Z)^\top)$",
        source=f"{CRATE}, eq. 8",
        kind="identity",
        domain=cases(),
        subject=_value,
        measure=_subspace_value,
        mutants=named(
            half_dropped=lambda case, f, x: 2 * f.value(x),
            epsilon_for_its_square=_eps_for_square("value"),
            d_for_p=_p_for_d("value"),
            tokens_not_counted=_no_count("value"),
            heads_mixed_up=lambda case, f, x: dataclasses.replace(
                f,
                U=f.U.reshape(f.U.shape[1], -1)[:, torch.randperm(f.U[:, 0].numel(), generator=_fixed())].reshape(
                    f.U.shape
                ),
                orthonormal=False,
            ).value(x),
            one_head_left_out=lambda case, f, x: dataclasses.replace(f, U=f.U[:1]).value(x) * (case.heads > 1),
        ),
        structured=STRUCTURED,
        code=("objectives.coding_rate:SubspaceCodingRate", "objectives.base:project"),
    ),
    Claim(
        id="coding_rate.subspaces.gradient",
        statement="The closed-form gradient of the compression term is its gradient.",
        equation=r"$\nabla R_c = \sum_k \beta\, U_k (I + \beta W_k W_k^\top)^{-1} W_k, \quad W_k = U_k^\top Z,"
        r"\; \beta = \frac{p}{N\epsilon^2}$",
        source=f"{CRATE}, eq. 8, differentiated",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            _make_subspaces,
            lambda case, b: lambda Z: paper.crate_eq8(Z, bases(case.U()), case.epsilon),
            lambda case, f, x: rate_condition(x, float(f.lipschitz(x))),
            bend_of_rate,
        ),
        mutants=of_gradient(
            epsilon_for_its_square=_eps_for_square("gradient"),
            d_for_p=_p_for_d("gradient"),
            tokens_not_counted=_no_count("gradient"),
            not_lifted_back=lambda case, f, x: torch.nn.functional.pad(
                project(f.gradient(x), f.U).transpose(-3, -2).flatten(-2),
                (0, case.dim - f.U.shape[0] * f.U.shape[2]),
            ),
            one_head_left_out=lambda case, f, x: f.gradient(x) - dataclasses.replace(f, U=f.U[-1:]).gradient(x),
        ),
        structured=STRUCTURED,
        code=("objectives.coding_rate:SubspaceCodingRate", "objectives.base:lift"),
    ),
    Claim(
        id="coding_rate.subspaces.smoothness",
        statement="For orthonormal, mutually orthogonal bases the compression term is β-smooth, and no smoother.",
        equation=r"$\Vert\nabla R_c(Z) - \nabla R_c(Z')\Vert \leq \frac{p}{N\epsilon^2}\Vert Z - Z'\Vert$",
        source="derived: the Hessian at Z = 0 is β on the span of the bases",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=smoothness_measure(_make_subspaces, _attained_subspaces),
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            epsilon_for_its_square=lambda case, f, x: f.lipschitz(x) * case.epsilon,
            times_heads=lambda case, f, x: f.lipschitz(x) * case.heads,
            d_for_p=lambda case, f, x: f.lipschitz(x) * case.dim / case.head_dim,
        ),
        structured=FLAT,
        code=("objectives.coding_rate:SubspaceCodingRate",),
    ),
    Claim(
        id="coding_rate.subspaces.fischer",
        statement="With one common β and complete bases, the blocks' rates sum to at least the whole rate, with"
        " equality exactly where the Gram matrix is block diagonal.",
        equation=r"$\sum_k \frac{1}{2}\log\det(I + \beta U_k^\top Z Z^\top U_k) \geq"
        r" \frac{1}{2}\log\det(I + \beta Z Z^\top)$",
        source="Fischer's inequality; CRATE-style compression with β = d/(Nε²) in every block",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=_common_beta,
        measure=_fischer,
        mutants=named(
            papers_own_betas=_own_betas,
            sides_exchanged=lambda case, Z, U: _common_beta(case, Z, U)[::-1],
            one_block_left_out=lambda case, Z, U: (
                _common_beta(case, Z, U[:-1])[0],
                _common_beta(case, Z, U)[1],
            ),
            half_dropped=lambda case, Z, U: (2 * _common_beta(case, Z, U)[0], _common_beta(case, Z, U)[1]),
        ),
        structured=FULL,
        code=("objectives.coding_rate:SubspaceCodingRate",),
    ),
    Claim(
        id="coding_rate.subspaces.papers_beta",
        statement="With the papers' own β's, p/(Nε²) in the blocks and d/(Nε²) for the whole, the compression term is"
        " never below the rate, so that the rate reduction R − R_c is never positive.",
        equation=r"$R_c(Z\,|\,U) \geq R(Z)$",
        source=f"natural to believe after Fischer; {CRATE}, eq. 8 and 9",
        kind="refuted",
        domain=cases(batches=(0,)),
        subject=_own_betas,
        measure=_papers_beta,
        mutants=named(
            common_beta=_common_beta, whole_on_both_sides=lambda case, Z, U: (_own_betas(case, Z, U)[1],) * 2
        ),
        structured=(
            Case(tokens=4, kind="orthonormal"),
            Case(tokens=6, kind="rank_one", scale=100.0, epsilon=0.1),
        ),
        code=("objectives.coding_rate:SubspaceCodingRate",),
        correction="The sign is not fixed: the block's β is K times smaller. With one common β it is (coding_rate."
        "subspaces.fischer).",
        real=False,
    ),
    Claim(
        id="coding_rate.channels.gradient",
        statement="The closed-form gradient of the channels' rate is its gradient.",
        equation=r"$\nabla = \sum_k \beta\, U_k\, \mathrm{diag}(1 + \beta\Vert u_{k,c}^\top Z\Vert^2)^{-1} U_k^\top Z$",
        source="Wen et al., CBSA, arXiv 2509.16875, eq. 13; ToST, arXiv 2412.17810, without memberships",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            lambda case: ChannelRate(case.U(), case.epsilon),
            lambda case, b: (
                lambda Z: sum(
                    paper.coding_rate(row[None], case.epsilon * row.size**-0.5)
                    for Uk in bases(case.U())
                    for row in Uk.T @ Z
                )
            ),
            lambda case, f, x: rate_condition(x, float(f.lipschitz(x))),
            bend_of_rate,
        ),
        mutants=of_gradient(
            epsilon_for_its_square=_eps_for_square("gradient"),
            norm_for_its_square=lambda case, f, x: lift(
                (w := project(x, f.U)) * f.beta(x) / (1 + f.beta(x) * w.norm(dim=-2, keepdim=True)), f.U
            ),
            norm_over_channels=lambda case, f, x: lift(
                (w := project(x, f.U)) * f.beta(x) / (1 + f.beta(x) * w.square().sum(-1, keepdim=True)), f.U
            ),
        ),
        structured=STRUCTURED,
        code=("objectives.coding_rate:ChannelRate",),
    ),
)


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(3)
