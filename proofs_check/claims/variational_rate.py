"""Claims on ToST's variational rate: frozen, not frozen, and over prefixes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import (
    Objective,
    PrefixVariationalRate,
    RateReduction,
    SoftVariationalRate,
    VariationalRate,
    lift,
    project,
)

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, gradient_measure, reference, slices
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, tolerance
from .coding_rate import combine, lipschitz, smoothness_measure
from .rate_reduction import (
    APART,
    KINDS,
    SEEDED,
    SINGLE,
    changed,
    memberships,
    rate_bend,
    root,
    tokens_condition,
    uniform,
)

__all__ = ["CLAIMS", "complete_bases"]

TOST = "Wu et al., ToST, arXiv 2412.17810"


def complete_bases(case: Case) -> Tensor:
    """Complete orthonormal bases ``(heads, dim, dim)``, one a head."""
    return torch.linalg.qr(case.draw("complete", case.heads, case.dim, case.dim)).Q


def _bases_of(case: Case) -> Tensor:
    return complete_bases(case) if case.seed % 2 else case.U()


def _make_variational(case: Case) -> VariationalRate:
    return VariationalRate(_bases_of(case), memberships(case, case.heads), case.epsilon)


def _temperature(case: Case) -> Tensor:
    soft = 0.2 / max(1.0, case.scale) ** 2
    return soft * (1.0 + torch.arange(case.heads, dtype=case.torch_dtype))


def _make_soft(case: Case) -> SoftVariationalRate:
    return SoftVariationalRate(_bases_of(case), _temperature(case), case.epsilon)


def _make_prefix(case: Case) -> PrefixVariationalRate:
    x, Pi = case.x(), memberships(case, case.heads)
    return PrefixVariationalRate.at(x, _bases_of(case), Pi.expand(*x.shape[:-2], *Pi.shape), case.epsilon)


def _variational_condition(case: Case, objective: Any, x: Tensor) -> float:
    """Channels shrink by different gates: what coordinates lose of ‖z‖ is worth α Σ_k ‖π_k z‖ over the gradient's size."""
    lost = (objective.memberships * x.norm(dim=-1, keepdim=True)).norm(dim=(-2, -1))
    if isinstance(objective, PrefixVariationalRate):
        lost = lost * x.shape[-2]
    alpha = case.dim / (x.shape[-2] * case.epsilon**2)
    return 1.0 + float((alpha * lost / _sizes(objective.gradient(x))).max())


def _sizes(gradient: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(gradient).clamp(min=1e-300)


def _soft_condition(case: Case, objective: SoftVariationalRate, x: Tensor) -> float:
    """As for the frozen rate, and what the parts through Π lose where they cancel among heads."""
    w, Pi, _, t = objective._parts(x)
    N, rate, length = x.shape[-2], case.dim / case.epsilon**2, x.norm(dim=-1)
    terms = (rate * w.abs() * length[..., None, :, None] + t.unsqueeze(-2)) / (1.0 + t.unsqueeze(-2))
    g = ((torch.log1p(t).sum(-1).unsqueeze(-1) + terms.sum(-1)) / (2 * N)).mT
    parts = Pi * (rate / N + 2.0 * _temperature(case) * (g + (Pi * g).sum(-1, keepdim=True)))
    lost = (parts * length.unsqueeze(-1)).norm(dim=(-2, -1)) / _sizes(objective.gradient(x))
    logits = float((_temperature(case).max() * w.square().sum(-1)).max())
    return (1.0 + logits) * (1.0 + float(lost.max()))


def _soft_bend(case: Case, objective: Any, x: Tensor) -> float:
    hottest = float(_temperature(case).max())
    longest = float(x.norm(dim=-1).max())
    return min(rate_bend(case, objective, x), 0.3 / (hottest * longest + hottest**0.5))


def _rolled(case: Case, objective: Any) -> Tensor:
    return objective.memberships.roll(1, -1)


def _variational_value(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    got = subject(case, _make_variational(case), x).double().reshape(-1)
    Pi, U, want = memberships(exact, exact.heads).numpy(), bases(_bases_of(exact)), []
    for (point,) in slices(exact.x()):
        want.append(float(paper.tost_rate(columns(point), Pi, U, exact.epsilon)))
    parts = []
    for value, exactly in zip(got.tolist(), want, strict=True):
        if exactly <= 1e-280:
            parts.append(Measurement((Comparison("at rest", abs(value), 1e-15),), evidence=False))
            continue
        # Sums and logarithms of positive numbers; the definition's 1 + t loses eps of every channel.
        allowed = tolerance(case.dtype, 1.0, exact.dim / exactly)
        parts.append(
            Measurement((Comparison("R_var", abs(value - exactly) / exactly, allowed),), allowed <= MEANINGFUL)
        )
    return combine(*parts)


def _bound(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    x, Pi = exact.x(), memberships(exact, exact.heads)
    Z, parts = columns(x), []
    grams = [(Z * Pi[:, k].numpy()) @ Z.T for k in range(exact.heads)]
    own = torch.from_numpy(np.stack([np.linalg.eigh(gram)[1] for gram in grams]))
    for name, U in (("R_var ≥ R_c", complete_bases(exact)), ("equality: U_k diagonalises", own)):
        variational, compression = subject(exact, x, Pi, U)
        if compression <= 1e-280:
            parts.append(Measurement((Comparison(name, abs(variational), 1e-15),), evidence=False))
            continue
        error = abs(variational - compression) if U is own else max(0.0, compression - variational)
        error = error if variational == variational else np.nan
        allowed = tolerance("float64", tokens_condition(exact, x), exact.dim / compression)
        parts.append(Measurement((Comparison(name, error / compression, allowed),), allowed <= MEANINGFUL))
    return combine(*parts)


def _bound_and_rate(case: Case, x: Tensor, Pi: Tensor, U: Tensor) -> tuple[float, float]:
    return float(VariationalRate(U, Pi, case.epsilon).value(x)), float(RateReduction(Pi, case.epsilon).compression(x))


def _attained_variational(case: Case) -> tuple[Objective, Tensor]:
    objective = _make_variational(case)
    token, head = divmod(int(objective.memberships.argmax()), case.heads)
    direction = torch.zeros(case.tokens, case.dim, dtype=torch.float64)
    direction[token] = objective.U[head, :, 0]
    return objective, direction


def _naive_prefix(case: Case, b: int) -> Any:
    past = columns(case.x().reshape(-1, case.tokens, case.dim)[b])
    Pi, U = memberships(case, case.heads).numpy(), bases(_bases_of(case))
    return lambda Z: paper.tost_prefix_rate(Z, past, Pi, U, case.epsilon)


def _gate_dropped(case: Case, f: VariationalRate, x: Tensor) -> Tensor:
    alpha = case.dim / (x.shape[-2] * case.epsilon**2)
    return lift(alpha * f.memberships.mT.unsqueeze(-1) * project(x, f.U), f.U)


def _unshared(case: Case, f: VariationalRate, x: Tensor) -> Tensor:
    """Moments of all tokens, not of the members."""
    w, rate = project(x, f.U), case.dim / case.epsilon**2
    gate = 1 + rate * w.square().mean(-2, keepdim=True)
    return lift(rate / x.shape[-2] * f.memberships.mT.unsqueeze(-1) * w / gate, f.U)


def _p_for_d(case: Case, objective: Any) -> float:
    return (
        case.epsilon * (case.dim / objective.U.shape[-1] * (2.0 if objective.U.shape[-1] == case.dim else 1.0)) ** 0.5
    )


CLAIMS = (
    Claim(
        id="variational_rate.value",
        statement="The variational rate equals its definition, for complete bases and for narrow ones.",
        equation=r"$R_{var}(Z, \Pi\,|\,U) = \sum_k \frac{n_k}{2N}\sum_c"
        r" \log(1 + \frac{d}{n_k\epsilon^2}\sum_j \pi_{jk}(u_{k,c}^\top z_j)^2)$",
        source=f"{TOST}, section 3",
        kind="identity",
        domain=cases(),
        subject=lambda case, f, x: f.value(x),
        measure=_variational_value,
        mutants=named(
            half_dropped=lambda case, f, x: 2 * f.value(x),
            epsilon_for_its_square=changed("value", epsilon=root),
            p_for_d=changed("value", epsilon=_p_for_d),
            memberships_even=changed("value", memberships=uniform),
            another_heads_memberships=changed("value", memberships=_rolled),
            all_NaN=lambda case, f, x: f.value(x) * torch.nan,
        ),
        structured=tuple(dataclasses.replace(case, seed=s) for case in STRUCTURED for s in (0, 1, 5)),
        code=("objectives.variational_rate:VariationalRate",),
    ),
    Claim(
        id="variational_rate.gradient",
        statement="The closed-form gradient of the variational rate is its gradient, memberships held constant.",
        equation=r"$\nabla R_{var} = \sum_k \frac{d}{N\epsilon^2}\, U_k\,\mathrm{diag}(1 + \frac{d}{n_k\epsilon^2}"
        r" s_k)^{-1} U_k^\top Z\,\mathrm{diag}(\pi_k)$",
        source=f"{TOST}, section 3",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            _make_variational,
            lambda case, b: (
                lambda Z: paper.tost_rate(
                    Z, memberships(case, case.heads).numpy(), bases(_bases_of(case)), case.epsilon
                )
            ),
            _variational_condition,
            rate_bend,
        ),
        mutants=of_gradient(
            epsilon_for_its_square=changed("gradient", epsilon=root),
            p_for_d=changed("gradient", epsilon=_p_for_d),
            another_heads_memberships=changed("gradient", memberships=_rolled),
            gate_dropped=_gate_dropped,
            moments_of_all_tokens=_unshared,
        ),
        structured=SEEDED,
        code=("objectives.variational_rate:VariationalRate",),
        frozen="Π",
    ),
    Claim(
        id="variational_rate.bound",
        statement="With complete bases the variational rate is at least the compression over memberships, with equality"
        " where every basis diagonalises its class's second moments.",
        equation=r"$R_{var}(Z, \Pi\,|\,U) \geq R_c(Z\,|\,\Pi)$",
        source=f"{TOST}, section 3; Hadamard's inequality",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=_bound_and_rate,
        measure=_bound,
        mutants=named(
            sides_exchanged=lambda case, x, Pi, U: _bound_and_rate(case, x, Pi, U)[::-1],
            bases_not_complete=lambda case, x, Pi, U: (
                float(VariationalRate(U[..., :1], Pi, case.epsilon).value(x)),
                _bound_and_rate(case, x, Pi, U)[1],
            ),
            another_heads_basis=lambda case, x, Pi, U: _bound_and_rate(case, x, Pi, U.roll(1, 0)),
            half_dropped=lambda case, x, Pi, U: (
                2 * _bound_and_rate(case, x, Pi, U)[0],
                _bound_and_rate(case, x, Pi, U)[1],
            ),
            all_NaN=lambda case, x, Pi, U: (float("nan"), _bound_and_rate(case, x, Pi, U)[1]),
        ),
        structured=SINGLE,
        code=("objectives.variational_rate:VariationalRate",),
    ),
    Claim(
        id="variational_rate.smoothness",
        statement="With Π frozen the variational rate is smooth with the largest membership as constant for mutually"
        " orthogonal bases, and d/(Nε²) for complete ones; no smoother.",
        equation=r"$L = \frac{d}{N\epsilon^2}\min(\max_k\Vert U_k\Vert_2^2,\;"
        r" \max_{ik}\pi_{ik}\,\Vert[U_1 \ldots U_K]\Vert_2^2)$",
        source="derived: the Hessian at Z = 0 is the largest",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=smoothness_measure(_make_variational, _attained_variational),
        mutants=named(
            halved=lambda case, f, x: f.lipschitz(x) / 2,
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            heads_added_up=lambda case, f, x: f.lipschitz(x) * case.heads,
            memberships_squared=lambda case, f, x: f.lipschitz(x) * f.memberships.max(),
            epsilon_for_its_square=lambda case, f, x: f.lipschitz(x) * case.epsilon,
        ),
        structured=SINGLE,
        code=("objectives.variational_rate:VariationalRate",),
        frozen="Π",
    ),
    Claim(
        id="variational_rate.full_gradient",
        statement="With nothing frozen, the closed-form gradient of the variational rate through its softmax memberships is"
        " its gradient.",
        equation=r"$\nabla = \nabla R_{var}|_\Pi + \sum_k 2\tau_k U_k W_k\,\mathrm{diag}(\pi_k \circ (g_k - \sum_l \pi_l"
        r" \circ g_l)), \quad g_k = \partial R_{var}/\partial \pi_k$",
        source=f"{TOST}, section 3; derived here",
        kind="exact",
        domain=cases(kinds=KINDS),
        subject=gradient,
        measure=gradient_measure(
            _make_soft,
            lambda case, b: (
                lambda Z: paper.tost_rate(
                    Z,
                    paper.tost_memberships(Z, U := bases(_bases_of(case)), _temperature(case).tolist()),
                    U,
                    case.epsilon,
                )
            ),
            _soft_condition,
            _soft_bend,
        ),
        mutants=of_gradient(
            memberships_frozen=lambda case, f, x: f.frozen_at(x).gradient(x),
            softmax_part_with_the_other_sign=lambda case, f, x: 2 * f.frozen_at(x).gradient(x) - f.gradient(x),
            a_two_dropped=lambda case, f, x: 0.5 * (f.frozen_at(x).gradient(x) + f.gradient(x)),
            temperatures_reversed=changed("gradient", temperature=lambda case, f: f.temperature.flip(0) * 1.5),
        ),
        structured=(*SEEDED, *APART),
        code=("objectives.variational_rate:SoftVariationalRate",),
        largest=300,
    ),
    Claim(
        id="variational_rate.prefixes",
        statement="The sum of the prefixes' variational rates, each a function of its last token alone, has the closed-form"
        " gradient that the causal layer follows.",
        equation=r"$\nabla_{z_i} R_{var}(\bar{z}_1, \ldots, \bar{z}_{i-1}, z_i) = \sum_k \frac{d\,\pi_{ik}}{i\epsilon^2}"
        r"\, U_k\,\mathrm{diag}(1 + \frac{d}{n_{ik}\epsilon^2}s_{ik})^{-1} U_k^\top z_i$",
        source=f"{TOST}, section 3, on prefixes; derived here",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(_make_prefix, _naive_prefix, _variational_condition, rate_bend),
        mutants=of_gradient(
            epsilon_for_its_square=changed("gradient", epsilon=root),
            N_for_the_length=lambda case, f, x: (
                f.gradient(x) * (torch.arange(1, x.shape[-2] + 1) / x.shape[-2]).unsqueeze(-1)
            ),
            whole_sequence=lambda case, f, x: VariationalRate(f.U, f.memberships, f.epsilon).gradient(x),
            past_forgotten=changed("gradient", past=lambda case, f: 0 * f.past),
            past_of_the_next_token=changed("gradient", past=lambda case, f: f.past.roll(-1, -2)),
        ),
        structured=SEEDED,
        code=("objectives.variational_rate:PrefixVariationalRate",),
        frozen="Π and the tokens before",
        largest=24,
    ),
)
