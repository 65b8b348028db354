"""Claims on the log-sum-exp energies: what a softmax layer descends exactly, and what freezing its keys hides."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from objectives import (
    CrossAttentionEnergy,
    RepresentativeEnergy,
    SelfAttentionEnergy,
    SymmetricEnergy,
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
    identity,
    inequality,
    norm,
    reference,
    score_condition,
)
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from .coding_rate import lipschitz

__all__ = ["CLAIMS"]

HOPFIELD = "Ramsauer et al., modern Hopfield networks, arXiv 2008.02217"
ENERGY = "Hoover et al., Energy Transformer, arXiv 2302.07253"
CRATE = "Yu et al., CRATE, arXiv 2306.01129"
CBSA = "Wen et al., CBSA, arXiv 2509.16875"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)


def _cross_keys(case: Case) -> Tensor:
    return case.scale * case.draw("cross keys", case.m, case.dim)


def _cross_scale(case: Case) -> float:
    return case.dim**-0.5 / max(1.0, case.scale) ** 2


def _make_cross(case: Case) -> CrossAttentionEnergy:
    return CrossAttentionEnergy(_cross_keys(case), _cross_scale(case), quadratic=bool(case.seed % 2))


def _make_self(case: Case) -> SelfAttentionEnergy:
    return SelfAttentionEnergy(case.U(), case.keys(), case.softmax_scale)


def _make_symmetric(case: Case) -> SymmetricEnergy:
    return SymmetricEnergy(case.U(), case.softmax_scale)


def _make_representatives(case: Case) -> RepresentativeEnergy:
    return RepresentativeEnergy(case.U(), case.P(), case.keys(), case.softmax_scale)


def _bend(case: Case, objective: Any, x: Tensor) -> float:
    """lse_s bends over 1/(s · the size of a key)."""
    if isinstance(objective, CrossAttentionEnergy):
        keys, s = objective.keys, _cross_scale(case)
    else:
        keys = project(x, objective.U) if isinstance(objective, SymmetricEnergy) else objective.keys
        s = case.softmax_scale
    largest = float(keys.norm(dim=-1).max())
    return 0.5 / (s * largest + 1e-3 / max(norm(x), 1e-3))


def _condition(case: Case, objective: Any, x: Tensor) -> float:
    if isinstance(objective, CrossAttentionEnergy):
        return score_condition(x, objective.keys, _cross_scale(case)) * (1 + norm(x) / norm(objective.gradient(x)))
    w = project(x, objective.U)
    if isinstance(objective, SymmetricEnergy):
        return score_condition(w, w, case.softmax_scale) * _cancellation(w, objective.gradient(x))
    q = objective.P @ w if isinstance(objective, RepresentativeEnergy) else w
    return score_condition(q, objective.keys, case.softmax_scale) * _cancellation(objective.keys, objective.gradient(x))


def _cancellation(keys: Tensor, gradient: Tensor) -> float:
    """Averages of keys cancel: a sum of numbers the size of the keys leaves a gradient the size of their mean."""
    size = norm(gradient)
    return 1.0 + float(keys.norm(dim=-1).max()) * gradient.numel() ** 0.5 / size if size else 1.0


def _over_wrong_axis(case: Case, objective: Any, x: Tensor) -> Tensor:
    w = project(x, objective.U)
    q = objective.P @ w if isinstance(objective, RepresentativeEnergy) else w
    keys = w if isinstance(objective, SymmetricEnergy) else objective.keys
    read = torch.softmax(case.softmax_scale * (q @ keys.mT), dim=-2) @ keys
    if isinstance(objective, RepresentativeEnergy):
        read = objective.P.mT @ read
    return -lift(read, objective.U)


def _scale_dropped(case: Case, objective: Any, x: Tensor) -> Tensor:
    wrong = 1.0 if abs(case.softmax_scale - 1) > 0.05 else 2.0
    return dataclasses.replace(objective, scale=wrong).gradient(x)


def _attention(subject: Any, case: Case) -> Measurement:
    x = case.x()
    keys, s = _cross_keys(case), _cross_scale(case)
    got = subject(case, keys, x, s)
    exact = dataclasses.replace(reference(case))
    K, Q = columns(_cross_keys(exact)), columns(exact.x())
    want = (
        (K @ paper.softmax_columns(s * (K.T @ Q))).swapaxes(-1, -2)
        if Q.ndim == 2
        else torch.stack([torch.from_numpy((K @ paper.softmax_columns(s * (K.T @ q))).T) for q in Q])
    )
    condition = score_condition(x, keys, s) * (1 + (norm(keys) + norm(x)) / max(norm(torch.as_tensor(want)), 1e-300))
    return identity("one step of size 1 is attention", got, want, case.dtype, condition)


def _step_of_one(case: Case, keys: Tensor, x: Tensor, s: float) -> Tensor:
    return x - CrossAttentionEnergy(keys, s, quadratic=True).gradient(x)


def _smoothness(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    rng, parts = exact.rng("smoothness"), []
    x = exact.x() if exact.given is None or exact.given.ndim == 2 else exact.x()[0]
    for name, objective in (
        ("cross", _make_cross(exact)),
        ("self", _make_self(exact)),
        ("representatives", _make_representatives(exact)),
    ):
        bound = float(subject(exact, objective, x).max())
        if not bound >= 0:
            return Measurement((Comparison(f"{name}: bound is a number", float("nan"), 0.0),))
        length = min(_bend(exact, objective, x), 1e6)
        for size in (1e-2, 1.0):
            a, b = (x + size * length * torch.from_numpy(rng.standard_normal(x.shape)) for _ in range(2))
            moved = norm(objective.gradient(a) - objective.gradient(b))
            rounding = 1e-9 * (norm(objective.gradient(a)) + norm(a) * 1e-3) / norm(a - b)
            excess = max(0.0, moved / norm(a - b) - bound - rounding)
            parts.append(Comparison(f"{name}: difference at {size:g} bends", excess / max(bound, 1e-300), 1e-6))
    # Two opposite keys and a query half-way: the covariance of the attended keys is ‖k‖², the bound itself.
    k = exact.draw("key", exact.dim)
    pair = CrossAttentionEnergy(torch.stack([k, -k]), _cross_scale(exact))
    tiny = 1e-5 / (_cross_scale(exact) * norm(k))
    direction = (k / k.norm())[None]
    stretch = norm(pair.gradient(tiny * direction) - pair.gradient(0 * direction)) / tiny
    parts.append(Comparison("attained by two keys", abs(float(subject(exact, pair, direction)) / stretch - 1), 1e-6))
    return Measurement(tuple(parts))


def _ascent(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    energy, x = _make_self(exact), exact.x()
    kappa = exact.step
    after = subject(exact, energy, x, kappa)
    U, keys = bases(exact.U()), by_head(exact.keys())
    start, end = (-float(paper.self_attention_energy(columns(z), U, keys, exact.softmax_scale)) for z in (x, after))
    squared = norm(energy.gradient(x)) ** 2
    if squared == 0:
        return Measurement(evidence=False)
    rounding = _condition(exact, energy, x) * (abs(start) + abs(end) + norm(x) * squared**0.5) / (kappa * squared)
    return inequality("gain", kappa * squared, end - start, kappa * squared, "float64", rounding)


def _tied(subject: Any, case: Case) -> Measurement:
    """The Jacobian of a gradient is symmetric; that of attention with its own keys is not."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, U, s = exact.x(), exact.U(), exact.softmax_scale

    def field(flat: Tensor) -> Tensor:
        return subject(exact, flat.reshape(x.shape), U, s).flatten()

    J = torch.autograd.functional.jacobian(field, x.flatten())
    asymmetry = norm(J - J.mT) / max(norm(J), 1e-300)
    with torch.no_grad():
        v = exact.draw("direction", x.numel())
        h = 1e-6
        along = (field(x.flatten() + h * v) - field(x.flatten() - h * v)) / (2 * h)
    confirmed = norm(along - J @ v) / max(norm(along), 1e-300)
    return Measurement(
        (Comparison("Jacobian by differences", confirmed, 1e-6),) if norm(J) > 1e-6 else (),
        norm(J) > 1e-6,
        {"asymmetry of the Jacobian": asymmetry},
        truth=asymmetry < 1e-10,
    )


def _mssa(case: Case, x: Tensor, U: Tensor, s: float) -> Tensor:
    w = project(x, U)
    return lift(torch.softmax(s * (w @ w.mT), -1) @ w, U)


def _claim(name: str, make: Any, naive: Any, statement: str, equation: str, source: str, **more: Any) -> Claim:
    return Claim(
        id=f"softmax_energy.{name}.gradient",
        statement=statement,
        equation=equation,
        source=source,
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(make, naive, _condition, _bend),
        structured=more.pop("structured", STRUCTURED),
        code=(f"objectives.softmax_energy:{make(Case()).__class__.__name__}",),
        **more,
    )


CLAIMS = (
    _claim(
        "cross",
        _make_cross,
        lambda case, b: (
            lambda Z: paper.cross_attention_energy(
                Z, columns(_cross_keys(case)), _cross_scale(case), bool(case.seed % 2)
            )
        ),
        "Minus the gradient of the cross-attention energy is cross-attention; with the quadratic term, less the query.",
        r"$-\nabla E(Q) = K\,\mathrm{softmax}(s K^\top Q)\;[\,-\,Q\,], \quad E = -\sum_c \mathrm{lse}_s(K^\top q_c)$",
        f"{HOPFIELD}, eq. 1 to 3",
        frozen="keys (an argument of the layer)",
        structured=tuple(dataclasses.replace(case, seed=s) for case in STRUCTURED for s in (0, 1)),
        mutants=of_gradient(
            softmax_over_the_wrong_axis=lambda case, f, x: (
                (x if f.quadratic else 0) - torch.softmax(f.scale * (x @ f.keys.mT), dim=-2) @ f.keys
            ),
            scale_dropped=lambda case, f, x: dataclasses.replace(
                f, scale=1.0 if abs(f.scale - 1) > 0.05 else 2.0
            ).gradient(x),
            quadratic_term_dropped_or_added=lambda case, f, x: dataclasses.replace(
                f, quadratic=not f.quadratic
            ).gradient(x),
            scale_outside_too=lambda case, f, x: f.gradient(x) * (f.scale if abs(f.scale - 1) > 0.05 else 2.0),
        ),
    ),
    Claim(
        id="softmax_energy.cross.attention",
        statement="A gradient step of size 1 on the Hopfield energy with its quadratic term is attention itself.",
        equation=r"$Q - \nabla(E + \frac{1}{2}\Vert Q\Vert^2) = K\,\mathrm{softmax}(s K^\top Q)$",
        source=f"{HOPFIELD}, eq. 3",
        kind="identity",
        domain=cases(),
        subject=_step_of_one,
        measure=_attention,
        mutants=named(
            no_op=lambda case, keys, x, s: x,
            opposite_sign=lambda case, keys, x, s: 2 * x - _step_of_one(case, keys, x, s),
            half_step=lambda case, keys, x, s: 0.5 * (x + _step_of_one(case, keys, x, s)),
            quadratic_term_dropped=lambda case, keys, x, s: x - CrossAttentionEnergy(keys, s).gradient(x),
            softmax_over_the_wrong_axis=lambda case, keys, x, s: torch.softmax(s * (x @ keys.mT), -2) @ keys,
            scale_doubled=lambda case, keys, x, s: _step_of_one(case, keys, x, 2 * s),
            all_NaN=lambda case, keys, x, s: x * torch.nan,
        ),
        structured=STRUCTURED,
        code=("objectives.softmax_energy:CrossAttentionEnergy",),
    ),
    _claim(
        "self",
        _make_self,
        lambda case, b: (
            lambda Z: paper.self_attention_energy(Z, bases(case.U()), by_head(case.keys()), case.softmax_scale)
        ),
        "Minus the gradient of the self-attention energy with its keys frozen is MSSA with a tied output projection.",
        r"$-\nabla E = \sum_k U_k \bar{W}_k\, \mathrm{softmax}(s \bar{W}_k^\top W_k)$",
        f"{CRATE}, eq. 14, as an energy",
        frozen="keys",
        mutants=of_gradient(
            softmax_over_the_wrong_axis=_over_wrong_axis,
            scale_dropped=_scale_dropped,
            half_dropped=lambda case, f, x: 2 * f.gradient(x),
            values_are_the_tokens=lambda case, f, x: -lift(project(x, f.U), f.U),
        ),
    ),
    _claim(
        "symmetric",
        _make_symmetric,
        lambda case, b: lambda Z: paper.symmetric_energy(Z, bases(case.U()), case.softmax_scale),
        "With nothing frozen and a half before it, the self-attention energy descends by symmetric attention.",
        r"$-\nabla E = \sum_k U_k W_k\, \frac{1}{2}(A_k + A_k^\top), \quad A_k = \mathrm{softmax}(s W_k^\top W_k)$",
        f"{ENERGY}, eq. 2 and 3",
        mutants=of_gradient(
            half_dropped=lambda case, f, x: 2 * f.gradient(x),
            keys_frozen=lambda case, f, x: SelfAttentionEnergy(f.U, project(x, f.U), f.scale).gradient(x),
            softmax_over_the_wrong_axis=_over_wrong_axis,
            scale_dropped=_scale_dropped,
        ),
    ),
    _claim(
        "representatives",
        _make_representatives,
        lambda case, b: (
            lambda Z: paper.representative_energy(
                Z, bases(case.U()), by_head(case.P()), by_head(case.keys()), case.softmax_scale
            )
        ),
        "Minus the gradient of the representatives' energy, extraction weights and keys frozen, is CBSA's softmax form.",
        r"$-\nabla E = \sum_k U_k \bar{Q}_k\, \mathrm{softmax}(s \bar{Q}_k^\top Q_k)\, A_k^\top$",
        f"{CBSA}, eq. 8, as an energy",
        frozen="P_k and the keys",
        mutants=of_gradient(
            softmax_over_the_wrong_axis=_over_wrong_axis,
            scale_dropped=_scale_dropped,
            another_heads_P_in_the_broadcast=lambda case, f, x: (
                -lift(
                    f.P.roll(1, 0).mT @ (torch.softmax(f.scale * (f.P @ project(x, f.U) @ f.keys.mT), -1) @ f.keys),
                    f.U,
                )
                if case.heads > 1
                else 0 * x
            ),
            not_broadcast=lambda case, f, x: SelfAttentionEnergy(f.U, f.keys, f.scale).gradient(x),
        ),
    ),
    Claim(
        id="softmax_energy.smoothness",
        statement="The energies are smooth with s times the spread of the keys, a bound attained by two opposite keys.",
        equation=r"$L = s\,\min(\frac{1}{2}\Vert K - \bar{k}1^\top\Vert_2^2,\; \max_j \Vert k_j - \bar{k}\Vert^2)\cdot\Vert A\Vert_2^2$",
        source="derived: the Hessian of lse_s is s times a covariance of the keys",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=_smoothness,
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            scale_squared=lambda case, f, x: f.lipschitz(x) * (f.scale if abs(f.scale - 1) > 0.05 else 3.0),
            zero=lambda case, f, x: 0 * f.lipschitz(x),
            all_NaN=lambda case, f, x: f.lipschitz(x) * torch.nan,
        ),
        structured=SINGLE,
        code=(
            "objectives.softmax_energy:CrossAttentionEnergy",
            "objectives.softmax_energy:SelfAttentionEnergy",
            "objectives.softmax_energy:RepresentativeEnergy",
        ),
    ),
    Claim(
        id="softmax_energy.ascent",
        statement="Adding κ MSSA with frozen keys raises T, the papers' log-sum-exp, by at least κ‖MSSA‖², for every κ > 0.",
        equation=r"$T(Z + \kappa\,\mathrm{MSSA}) \geq T(Z) + \kappa\,\Vert\mathrm{MSSA}\Vert^2$",
        source="derived: T is convex and MSSA its gradient",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=lambda case, energy, x, kappa: x - kappa * energy.gradient(x),
        measure=_ascent,
        mutants=named(
            subtracted=lambda case, energy, x, kappa: x + kappa * energy.gradient(x),
            no_op=lambda case, energy, x, kappa: x,
            half_step=lambda case, energy, x, kappa: x - 0.5 * kappa * energy.gradient(x),
            last_token_not_updated=lambda case, energy, x, kappa: torch.cat(
                [(x - kappa * energy.gradient(x))[:-1], x[-1:]]
            ),
            all_NaN=lambda case, energy, x, kappa: x * torch.nan,
        ),
        structured=SINGLE,
        code=("objectives.softmax_energy:SelfAttentionEnergy",),
        frozen="keys",
    ),
    Claim(
        id="softmax_energy.tied_attention",
        statement="Attention with one matrix for queries, keys and values, keys not frozen, is the gradient of some"
        " function of the tokens.",
        equation=r"$\mathrm{MSSA}(Z) = \nabla\phi(Z)$ for some $\phi$",
        source=f"natural to believe; {ENERGY} needs the symmetric form",
        kind="refuted",
        domain=cases(tokens=(2, 4), batches=(0,), scales=(1.0,), kinds=("gaussian",)),
        subject=_mssa,
        measure=_tied,
        mutants=named(
            symmetric_attention=lambda case, x, U, s: -SymmetricEnergy(U, s).gradient(x),
            keys_frozen_elsewhere=lambda case, x, U, s: -SelfAttentionEnergy(U, case.keys(), s).gradient(x),
        ),
        structured=(Case(tokens=2, heads=1), Case(tokens=3)),
        code=("objectives.softmax_energy:SymmetricEnergy",),
        correction="Its Jacobian is not symmetric. ½(A + Aᵀ) in place of A is a gradient (softmax_energy.symmetric."
        "gradient), and so is A with its keys held constant (softmax_energy.self.gradient).",
        real=False,
    ),
)
