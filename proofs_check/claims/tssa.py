"""Claims on token statistics self-attention: its step, its memberships, its causal form, its cost, and its relatives."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from objectives import SoftVariationalRate, VariationalRate, lift, project
from unrolling import CBSA, TSSA, Axes

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, identity, norm, reference, slices, step_measure
from ..mutants import forward, named, of_step
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, tolerance
from .coding_rate import _count, combine
from .mssa import certified, certified_measure, stretched
from .rate_reduction import rate_bend
from .variational_rate import complete_bases

__all__ = ["CLAIMS"]

PAPER = "Wu et al., ToST, arXiv 2412.17810"
SEEDED = tuple(dataclasses.replace(case, seed=i % 4) for i, case in enumerate(STRUCTURED))
"""The seed picks narrow or complete bases, and memberships from normalised channels or not."""
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in SEEDED)
Array = NDArray[np.float64]


def _bases_of(case: Case) -> Tensor:
    return complete_bases(case) if case.seed % 2 else case.U()


def _temperature(case: Case) -> list[float]:
    """One a head, all different; soft for tokens of any size."""
    return [0.1 * (1 + k) / max(1.0, case.scale) ** 2 for k in range(case.heads)]


def _kappa(case: Case) -> float:
    """Step in units of N ε²/d."""
    return case.step * case.tokens * case.epsilon**2 / case.dim


def _normalised(case: Case) -> bool:
    return case.seed % 4 > 1


def _layer(case: Case, **more: Any) -> TSSA:
    options = {"causal": False, "normalise_tokens": _normalised(case), "step_size": _kappa(case)} | more
    U = options.pop("U", None)
    basis = "orthonormal" if U is None and not case.seed % 2 else "free"
    U = _bases_of(case) if U is None else U
    layer = TSSA(case.dim, case.heads, U=U, basis=options.pop("basis", basis), epsilon=case.epsilon, **options)
    with torch.no_grad():
        layer.temperature.copy_(torch.tensor(_temperature(case), dtype=torch.float64))
    return layer.to(case.torch_dtype)


def _causal(case: Case) -> TSSA:
    return _layer(case, causal=True, step_size=_kappa(case) / case.tokens)


def _scores(case: Case, Z: Array, causal: bool) -> Array:
    """Memberships (N, K) by the paper's softmax, of plain or of normalised channels."""
    U, heat = bases(_bases_of(case)), _temperature(case)
    if not _normalised(case):
        return paper.tost_memberships(Z, U, heat)
    return paper.tost_normalised_memberships(Z, U, heat, causal)


def _condition(case: Case, layer: TSSA, z: Tensor) -> float:
    """Coordinates lose eps ‖z‖: α Σ_k ‖π_k z‖ over the gradient's size; scores lose eps times their size."""
    Pi, x = layer.memberships(z).detach(), z.detach()
    w = project(x, _bases_of(case))
    logits = max(_temperature(case)) * (w.shape[-1] if _normalised(case) else float(w.square().sum(-1).max()))
    rate = case.dim / case.epsilon**2
    lengths = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype)[:, None] if layer.causal else x.shape[-2]
    lost = torch.linalg.matrix_norm(rate / lengths * Pi * x.norm(dim=-1, keepdim=True))
    size = torch.linalg.matrix_norm(layer.update(x).detach()) / float(layer.step.detach())
    return (1.0 + logits * _cancelled(case, x, w)) * (1.0 + float((lost / size.clamp(min=1e-300)).max()))


def _cancelled(case: Case, x: Tensor, w: Tensor) -> float:
    """A channel's coordinates may be small beside the tokens; once normalised, its relative error counts."""
    if not _normalised(case):
        return 1.0
    largest = x.norm(dim=-1).amax(-1)[..., None, None]
    return 1.0 + float((largest / w.norm(dim=-2).clamp(min=1e-300)).clamp(max=1e12).max())


def _paper_step(case: Case, layer: TSSA, Z: Array, b: int) -> Array:
    step = paper.tost_causal if layer.causal else paper.tost_step
    Pi = _scores(case, Z, layer.causal)
    return step(Z, Pi, bases(_bases_of(case)), case.epsilon, layer.step.item())


def _frozen_rate(case: Case, layer: TSSA, z: Tensor, b: int) -> Any:
    start = columns(z.reshape(-1, *z.shape[-2:])[b])
    Pi, U = _scores(case, start, layer.causal), bases(_bases_of(case))
    if layer.causal:
        return lambda Z: paper.tost_prefix_rate(Z, start, Pi, U, case.epsilon)
    return lambda Z: paper.tost_rate(Z, Pi, U, case.epsilon)


def _rebuilt(change: Any) -> Any:
    """A wrong forward pass: change(case, Pi (..., K, N, 1), w) is d/ε² times the change of w, before κ."""

    def subject(case: Case, layer: TSSA, x: Tensor) -> Tensor:
        w, Pi = project(x, _bases_of(case)), layer.memberships(x).detach().mT.unsqueeze(-1)
        rate = case.dim / case.epsilon**2
        return x - layer.step.detach() * rate * lift(change(case, Pi, w, rate), _bases_of(case))

    return subject


def _moments(Pi: Tensor, w: Tensor) -> Tensor:
    return (Pi * w.square()).sum(-2, keepdim=True) / Pi.sum(-2, keepdim=True).clamp(min=1e-30)


def _lengths(w: Tensor) -> Tensor:
    return torch.arange(1, w.shape[-2] + 1, dtype=w.dtype).unsqueeze(-1)


def _running(Pi: Tensor, w: Tensor) -> Tensor:
    return (Pi * w.square()).cumsum(-2) / Pi.cumsum(-2).clamp(min=1e-30)


def _unfrozen(case: Case, layer: TSSA, x: Tensor) -> Tensor:
    soft = SoftVariationalRate(_bases_of(case), layer.temperature.detach(), case.epsilon)
    return x - layer.step.detach() * soft.gradient(x)


def _memberships(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    causal = bool(case.seed % 8 > 3)
    layer = _layer(exact, causal=causal)
    got, parts = subject(case, _layer(case, causal=causal), x).double(), []
    for g, (point,) in zip(got.reshape(-1, *got.shape[-2:]), slices(exact.x()), strict=True):
        want = _scores(exact, columns(point), causal)
        w = project(point, _bases_of(exact))
        logits = max(_temperature(exact)) * (
            w.shape[-1] * _cancelled(exact, point, w) if _normalised(exact) else float(point.square().sum(-1).max())
        )
        parts.append(identity("Π", g, want, case.dtype, 1.0 + logits))
        parts.append(identity("rows sum to 1", g.sum(-1), np.ones(len(want)), case.dtype))
    del layer
    return combine(*parts)


def _prefixes(subject: Any, case: Case) -> Measurement:
    """The causal pass against the plain one on every prefix, of which only the last token is kept."""
    exact = reference(dataclasses.replace(case, seed=case.seed % 2))
    x, causal = exact.x(), _causal(exact)
    with torch.no_grad():
        got = subject(exact, causal, x) - x
        rows = []
        plain = _layer(exact, step_size=causal.step.item())
        for i in range(exact.tokens):
            prefix = x[..., : i + 1, :]
            rows.append((plain(prefix) - prefix)[..., i, :])
    want = torch.stack(rows, -2)
    if norm(want) == 0:
        return Measurement((Comparison("at rest", norm(got), 0.0),), evidence=False)
    return identity("prefix by prefix", got, want, "float64", _condition(exact, causal, x) * (1 + norm(x) / norm(want)))


def _potential(subject: Any, case: Case) -> Measurement:
    """Whether the Jacobian of the update, memberships constant, is symmetric: only then is it anyone's gradient."""
    exact = reference(dataclasses.replace(case, batch=0, seed=case.seed - case.seed % 4))
    x, layer = exact.x(), _causal(exact)
    Pi = layer.memberships(x).detach()
    update = subject(exact, Pi, x)
    jacobian = torch.autograd.functional.jacobian(update, x).reshape(x.numel(), x.numel())
    size = norm(jacobian)
    if size == 0:
        return Measurement(evidence=False)
    agree = norm(update(x) - (layer(x) - x).detach() / float(layer.step.detach())) / max(norm(update(x)), 1e-300)
    checked = Comparison(
        "the layer's own update", agree, 1e-9 * tolerance("float64", _condition(exact, layer, x)) / 1e-12
    )
    asymmetry = norm(jacobian - jacobian.mT) / size
    done = (checked,) if subject is _past_live else ()
    return Measurement(done, True, {"asymmetry of the Jacobian": asymmetry}, truth=asymmetry < 1e-9)


def _past_live(case: Case, Pi: Tensor, x: Tensor) -> Any:
    U, rate, members = case.U(), case.dim / case.epsilon**2, Pi.mT.unsqueeze(-1)

    def update(z: Tensor) -> Tensor:
        w = project(z, U)
        return -lift(rate / _lengths(w) * members * w / (1 + rate * _running(members, w)), U)

    return update


def _past_frozen(case: Case, Pi: Tensor, x: Tensor) -> Any:
    U, rate, members = case.U(), case.dim / case.epsilon**2, Pi.mT.unsqueeze(-1)
    own = members * project(x, U).square()
    past = own.cumsum(-2) - own

    def update(z: Tensor) -> Tensor:
        w = project(z, U)
        moments = (past + members * w.square()) / members.cumsum(-2)
        return -lift(rate / _lengths(w) * members * w / (1 + rate * moments), U)

    return update


def _not_causal(case: Case, Pi: Tensor, x: Tensor) -> Any:
    rate = VariationalRate(case.U(), Pi, case.epsilon)
    return lambda z: -rate.gradient(z)


def _alignment(subject: Any, case: Case) -> Measurement:
    """How the causal update lies to the steepest descent of the whole sequence's rate, Π frozen; and what a step does."""
    exact = reference(dataclasses.replace(case, batch=0, seed=case.seed - case.seed % 4))
    x, layer = exact.x(), _causal(exact)
    whole = layer.approximates_at(x)
    cosine, change = subject(exact, layer, whole, x)
    Z, Pi, U = columns(x), _scores(exact, columns(x), True), bases(exact.U())
    update = paper.tost_causal(Z, Pi, U, exact.epsilon, layer.step.item()) - Z
    steepest = paper.tost_step(Z, Pi, U, exact.epsilon, 1.0) - Z
    product = norm(update) * norm(steepest)
    if product == 0:
        return Measurement(evidence=False)
    start, end = (float(paper.tost_rate(z, Pi, U, exact.epsilon)) for z in (Z, Z + update))
    allowed = tolerance(
        "float64", _condition(exact, layer, x) * (1 + norm(x) / norm(update) + norm(x) / norm(steepest))
    )
    return Measurement(
        (
            Comparison("cosine", abs(cosine - float((update * steepest).sum()) / product), allowed),
            Comparison("change of the rate", abs(change - (end / start - 1)), allowed * (1 + exact.dim / start)),
        ),
        allowed <= MEANINGFUL and exact.tokens > 1,
        {"cosine with steepest descent": cosine, "relative change of R_var": change},
    )


def _cosine_and_change(case: Case, layer: TSSA, whole: VariationalRate, x: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        after = layer(x)
    return _against(whole, after, x)


def _against(whole: VariationalRate, after: Tensor, x: Tensor) -> tuple[float, float]:
    down, moved = -whole.gradient(x).detach(), (after - x).detach()
    product = norm(down) * norm(moved)
    cosine = float((down * moved).sum()) / product if product else 0.0
    return cosine, float(whole.value(after).detach() / whole.value(x).detach().clamp(min=1e-300) - 1)


def _channel(subject: Any, case: Case) -> Measurement:
    """CBSA's channel attention is the variational rate's gradient at constant memberships 1/K, its ε and step rescaled."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, U = exact.x(), exact.U()
    layer = CBSA(exact.dim, exact.heads, U=U, representatives=Axes(), epsilon=exact.epsilon, step_size=1.0).double()
    Z, even = columns(x), np.full((exact.tokens, exact.heads), 1.0 / exact.heads)
    with torch.no_grad():
        got = layer.update(x)
    epsilon, kappa = subject(exact)
    want = (paper.tost_step(Z, even, bases(U), epsilon, kappa) - Z).T
    if norm(want) == 0:
        return Measurement((Comparison("at rest", norm(got), 0.0),), evidence=False)
    rate = 1.0 + float(x.square().sum()) / exact.epsilon**2
    return identity("the same update", got, want, "float64", rate * (1 + norm(x) / norm(want)))


def _rescaled(case: Case) -> tuple[float, float]:
    """ε' = ε √(d/N), so that d/(Nε'²) = 1/ε², and κ' = K."""
    return case.epsilon * (case.dim / case.tokens) ** 0.5, float(case.heads)


def _released(subject: Any, case: Case) -> Measurement:
    """The released update, without its 1e-8, output matrix Uᵀ and no bias: d/ε² = 1 and κ = N (causal: i)."""
    exact = reference(dataclasses.replace(case, batch=0, seed=2 + 4 * (case.seed % 2)))
    causal, x = exact.seed > 4, exact.x()
    layer = _layer(dataclasses.replace(exact, epsilon=exact.dim**0.5), causal=causal, step_size=1.0)
    with torch.no_grad():
        got = subject(exact, layer, x)
    want = paper.tost_released(columns(x), bases(exact.U()), _temperature(exact), causal, tiny=0.0).T
    if norm(want) == 0:
        return Measurement((Comparison("at rest", norm(got), 0.0),), evidence=False)
    return identity("the released update", got, want, "float64", _condition(exact, layer, x))


def _times_tokens(case: Case, layer: TSSA, x: Tensor) -> Tensor:
    count = torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None] if layer.causal else len(x)
    return count * layer.update(x)


def _freezing(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0, seed=case.seed % 2))
    x = exact.x()
    objective = SoftVariationalRate(_bases_of(exact), torch.tensor(_temperature(exact), dtype=x.dtype), exact.epsilon)
    with torch.no_grad():
        cosine, ratio = subject(exact, objective, x)
    z = x.clone().requires_grad_()
    (full,) = torch.autograd.grad(objective.value(z), z)
    frozen = _layer(exact, step_size=1.0)(x).detach() - x
    if norm(full) * norm(frozen) == 0:
        return Measurement(evidence=False)
    layer = _layer(exact, step_size=1.0)
    lost = _condition(exact, layer, x) * (1 + norm(x) / norm(frozen) + norm(frozen) / norm(full))
    allowed = tolerance("float64", lost)
    true = -float((frozen * full).sum()) / norm(frozen) / norm(full)
    return Measurement(
        (
            Comparison("cosine, full gradient by reverse mode", abs(cosine - true), allowed),
            Comparison("norm ratio, by reverse mode", abs(ratio * norm(full) / norm(frozen) - 1), allowed),
        ),
        allowed <= MEANINGFUL,
        {"cosine of frozen and full gradient": cosine, "norm of frozen over full": ratio},
    )


def _frozen_descends(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0, seed=case.seed % 2))
    x = exact.x()
    objective = SoftVariationalRate(_bases_of(exact), torch.tensor(_temperature(exact), dtype=x.dtype), exact.epsilon)
    with torch.no_grad():
        update = subject(exact, objective, x)
    z = x.clone().requires_grad_()
    (full,) = torch.autograd.grad(objective.value(z), z)
    product = norm(full) * norm(update)
    if product == 0:
        return Measurement(evidence=False)
    cosine = float((update * full).sum()) / product
    agree = norm(objective.gradient(x) - full) / norm(full)
    condition = _condition(exact, _layer(exact, step_size=1.0), x) * (1 + norm(x) / norm(full))
    allowed = tolerance("float64", condition)
    return Measurement(
        (Comparison("full gradient, closed form against reverse mode", agree, allowed),),
        allowed <= MEANINGFUL,
        {"cosine of the frozen and the full gradient": cosine},
        truth=cosine > 0,
    )


def _cosine_and_ratio(frozen: Tensor, full: Tensor) -> tuple[float, float]:
    product = norm(frozen) * norm(full)
    return (float((frozen * full).sum()) / product if product else 0.0), norm(frozen) / max(norm(full), 1e-300)


class _Largest(TorchDispatchMode):
    """The most entries of any tensor made inside."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else (out,)
        self.entries = max([self.entries, *(t.numel() for t in made if isinstance(t, Tensor))])
        return out


def _cost(subject: Any, case: Case) -> Measurement:
    N, (d, heads, p) = 40 * case.tokens, (12, 3, 2 + case.head_dim % 3)
    layer = TSSA(d, heads, p, basis="free")
    x = torch.randn(1, N, d, generator=torch.Generator().manual_seed(case.seed))
    causal = TSSA(d, heads, p, basis="free", causal=True)
    with torch.no_grad():
        counted = _count(lambda: layer(x))
        with _Largest() as seen:
            layer(x), causal(x)
    cost, entries = subject(N, d, heads, p)
    return Measurement(
        (
            Comparison("multiply-adds", abs(counted - cost), 0.0),
            Comparison("largest tensor", abs(seen.entries - entries), 0.0),
        ),
        values={"multiply-adds": counted, "entries of the largest tensor": float(seen.entries)},
    )


def _certified_layer(case: Case) -> TSSA:
    case = dataclasses.replace(case, seed=case.seed - case.seed % 2)
    layer = _layer(case, certified=True, step_size=case.step, causal=case.seed % 8 > 3, per_head_step=case.seed % 4 > 1)
    return layer


CLAIMS = (
    Claim(
        id="tssa.memberships",
        statement="The memberships are the softmax over heads of the tokens' squared lengths in every head, of channels as"
        " they are or normalised over the tokens (causal: the prefix).",
        equation=r"$\pi_{ik} = \mathrm{softmax}_k(\frac{1}{2\eta_k}\Vert U_k^\top z_i\Vert^2)$",
        source=f"{PAPER}, section 3; normalised: its released code",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.memberships(x),
        measure=_memberships,
        mutants=named(
            softmax_over_tokens=lambda case, layer, x: torch.softmax(layer.memberships(x).log(), -2),
            temperature_doubled=lambda case, layer, x: torch.softmax(2 * layer.memberships(x).log(), -1),
            opposite_sign=lambda case, layer, x: torch.softmax(-layer.memberships(x).log(), -1),
            another_heads=lambda case, layer, x: layer.memberships(x).roll(1, -1),
            lengths_for_their_squares=lambda case, layer, x: torch.softmax(
                torch.tensor(_temperature(case), dtype=x.dtype) * project(x, _bases_of(case)).norm(dim=-1).mT, -1
            ),
            all_NaN=lambda case, layer, x: layer.memberships(x) * torch.nan,
        ),
        structured=tuple(dataclasses.replace(case, seed=i % 8) for i, case in enumerate(STRUCTURED)),
        code=("unrolling.layers.tssa:TSSA", "objectives.variational_rate:head_memberships"),
        largest=200,
    ),
    Claim(
        id="tssa.step",
        statement="Token statistics self-attention is a gradient step on the variational rate, memberships frozen.",
        equation=r"$Z - \kappa\sum_k \frac{d}{N\epsilon^2}\, U_k\,\mathrm{diag}(1 + \frac{d}{n_k\epsilon^2} s_k)^{-1}"
        r" W_k\,\mathrm{diag}(\pi_k) = Z - \kappa\nabla R_{var}(Z, \Pi\,|\,U)$",
        source=f"{PAPER}, section 3",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(_layer, _paper_step, _frozen_rate, _condition, rate_bend),
        mutants=of_step(
            epsilon_for_its_square=_rebuilt(
                lambda case, Pi, w, r: Pi * w / len(w.mT[0, 0]) / (1 + r * case.epsilon * _moments(Pi, w)) / w.shape[-2]
            ),
            N_for_the_members=_rebuilt(
                lambda case, Pi, w, r: Pi * w / (1 + r * (Pi * w.square()).mean(-2, keepdim=True)) / w.shape[-2]
            ),
            moments_of_all_tokens=_rebuilt(
                lambda case, Pi, w, r: Pi * w / (1 + r * w.square().mean(-2, keepdim=True)) / w.shape[-2]
            ),
            p_for_d=_rebuilt(
                lambda case, Pi, w, r: (
                    (s := w.shape[-1] / (2 * case.dim)) * Pi * w / (1 + s * r * _moments(Pi, w)) / w.shape[-2]
                )
            ),
            memberships_dropped_outside=_rebuilt(lambda case, Pi, w, r: w / (1 + r * _moments(Pi, w)) / w.shape[-2]),
            another_heads_memberships=_rebuilt(
                lambda case, Pi, w, r: Pi.roll(1, -3) * w / (1 + r * _moments(Pi.roll(1, -3), w)) / w.shape[-2]
            ),
            memberships_not_frozen=_unfrozen,
            causal=lambda case, layer, x: _layer(case, causal=True)(x),
        ),
        structured=SEEDED,
        code=("unrolling.layers.tssa:TSSA",),
        frozen="Π",
        largest=200,
    ),
    Claim(
        id="tssa.certified",
        statement="With certified steps κL stays inside (0, 2) for every head of TSSA, causal or not, and the layer's"
        " objective falls.",
        equation=r"$0 < \kappa_k L_k < 2, \quad L_k = \frac{d}{N\epsilon^2}\max_i \pi_{ik}$",
        source="descent lemma with variational_rate.smoothness",
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
        structured=tuple(dataclasses.replace(case, seed=s) for case in SINGLE for s in (0, 2, 4)),
        code=("unrolling.layers.tssa:TSSA",),
        frozen="Π; causal: and the tokens before",
        largest=200,
    ),
    Claim(
        id="tssa.causal.step",
        statement="The causal form moves every token down the gradient of its prefix's variational rate, memberships and"
        " the tokens before frozen.",
        equation=r"$z_i - \kappa\nabla_{z_i} R_{var}(\bar{z}_1, \ldots, \bar{z}_{i-1}, z_i\,|\,U)$",
        source=f"{PAPER}, its causal form; the objective is derived here",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(_causal, _paper_step, _frozen_rate, _condition, rate_bend),
        mutants=of_step(
            not_causal=lambda case, layer, x: _layer(case, step_size=layer.step.item())(x),
            N_for_the_length=_rebuilt(lambda case, Pi, w, r: Pi * w / (1 + r * _running(Pi, w)) / w.shape[-2]),
            length_dropped=_rebuilt(lambda case, Pi, w, r: Pi * w / (1 + r * _running(Pi, w))),
            own_token_left_out=_rebuilt(
                lambda case, Pi, w, r: (
                    Pi * w / (1 + r * ((Pi * w.square()).cumsum(-2) - Pi * w.square()) / Pi.cumsum(-2)) / _lengths(w)
                )
            ),
            means_over_the_length=_rebuilt(
                lambda case, Pi, w, r: Pi * w / (1 + r * (Pi * w.square()).cumsum(-2) / _lengths(w)) / _lengths(w)
            ),
        ),
        structured=SEEDED,
        code=("unrolling.layers.tssa:TSSA", "objectives.variational_rate:PrefixVariationalRate"),
        frozen="Π and the tokens before",
        largest=24,
    ),
    Claim(
        id="tssa.causal.prefixes",
        statement="The causal form by prefix sums is the plain form on every prefix, of which the last token is kept.",
        equation=r"$\mathrm{causal}(Z)_i = \mathrm{TSSA}(z_1, \ldots, z_i)_i$",
        source=f"{PAPER}, its causal form for language",
        kind="identity",
        domain=cases(),
        subject=forward,
        measure=_prefixes,
        mutants=named(
            not_causal=lambda case, layer, x: _layer(case, step_size=layer.step.item())(x),
            from_the_end=lambda case, layer, x: layer(x.flip(-2)).flip(-2),
            last_token_not_updated=lambda case, layer, x: torch.cat([layer(x)[..., :-1, :], x[..., -1:, :]], -2),
            one_token_late=lambda case, layer, x: x + (layer(x) - x).roll(1, -2) * (case.tokens > 1),
            all_NaN=lambda case, layer, x: x * torch.nan,
        ),
        structured=SEEDED,
        code=("unrolling.layers.tssa:TSSA",),
        largest=60,
    ),
    Claim(
        id="tssa.causal.potential",
        statement="With memberships frozen, the causal form is the gradient of a function of the sequence.",
        equation=r"$\partial \Delta_i / \partial z_j = (\partial \Delta_j / \partial z_i)^\top$",
        source="natural to believe after the plain form; derived here",
        kind="refuted",
        domain=cases(batches=(0,), tokens=(1, 4), scales=(1.0,)),
        subject=_past_live,
        measure=_potential,
        mutants=named(past_frozen=_past_frozen, not_causal=_not_causal),
        structured=(Case(tokens=2, heads=1, head_dim=1), Case(tokens=3, heads=2, head_dim=2)),
        code=("unrolling.layers.tssa:TSSA",),
        frozen="Π",
        correction="Token j's step does not depend on a later token i, but i's depends on j's second moments: the Jacobian is"
        " block triangular and not symmetric. With the past frozen each token descends its own prefix's rate"
        " (tssa.causal.step).",
        real=False,
    ),
    Claim(
        id="tssa.causal.alignment",
        statement="The angle between the causal update and the steepest descent of the whole sequence's variational rate,"
        " and what a causal step does to that rate, are measured.",
        equation=r"$\cos(\Delta, -\nabla R_{var}(Z, \Pi\,|\,U)), \quad R_{var}(Z + \Delta)/R_{var}(Z) - 1$",
        source=f"{PAPER}, its causal form for language",
        kind="measured",
        domain=cases(
            batches=(0,), tokens=(2, 12), scales=(1.0, 10.0), kinds=("gaussian", "subspaces", "shifted", "one_far")
        ),
        subject=_cosine_and_change,
        measure=_alignment,
        mutants=named(
            plain_form=lambda case, layer, whole, x: _against(whole, x - layer.step.detach() * whole.gradient(x), x),
            opposite_sign=lambda case, layer, whole, x: _against(whole, 2 * x - layer(x).detach(), x),
            from_the_end=lambda case, layer, whole, x: _against(whole, layer(x.flip(-2)).flip(-2).detach(), x),
            all_NaN=lambda case, layer, whole, x: (float("nan"), 0.0),
        ),
        structured=(Case(tokens=12, heads=3, head_dim=4), Case(tokens=12, heads=2, head_dim=3, kind="subspaces")),
        code=("unrolling.layers.tssa:TSSA",),
        frozen="Π",
        largest=200,
    ),
    Claim(
        id="tssa.channel",
        statement="CBSA's channel attention is token statistics self-attention with constant memberships 1/K, at precision"
        " ε√(d/N) and K times the step.",
        equation=r"$\frac{1}{\epsilon^2}\sum_k U_k\,\mathrm{diag}(1 + \Vert u_{k,c}^\top Z\Vert^2/\epsilon^2)^{-1} W_k ="
        r" K\,\nabla R_{var}(Z, \frac{1}{K}\,|\,U)$ at $\epsilon' = \epsilon\sqrt{d/N}$",
        source="derived; Wen et al., CBSA, arXiv 2509.16875, eq. 13",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_rescaled,
        measure=_channel,
        mutants=named(
            the_same_epsilon=lambda case: (case.epsilon, _rescaled(case)[1]),
            N_and_d_exchanged=lambda case: (case.epsilon * (case.tokens / case.dim) ** 0.5, _rescaled(case)[1]),
            heads_not_counted=lambda case: (_rescaled(case)[0], 1.0),
            p_for_d=lambda case: (case.epsilon * (case.head_dim / case.tokens) ** 0.5, _rescaled(case)[1]),
            opposite_sign=lambda case: (_rescaled(case)[0], -_rescaled(case)[1]),
        ),
        structured=SINGLE,
        code=("unrolling.layers.tssa:TSSA", "unrolling.layers.cbsa:CBSA"),
    ),
    Claim(
        id="tssa.released",
        statement="With ε = √d, normalised channels and a step of N (causal: i), the layer's update is that of the released"
        " code with output matrix Uᵀ, no bias and without its 1e-8.",
        equation=r"$-\sum_k U_k (W_k\,\mathrm{diag}(\pi_k)) \circ (1 + \sum_j \pi_{jk} w_{k,j}^{2} / \sum_j \pi_{jk})^{-1}$",
        source="the ToST project's released attention layers, February 2025",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_times_tokens,
        measure=_released,
        mutants=named(
            step_of_one=lambda case, layer, x: layer.update(x),
            opposite_sign=lambda case, layer, x: -_times_tokens(case, layer, x),
            channels_not_normalised=lambda case, layer, x: _times_tokens(
                case,
                _layer(dataclasses.replace(case, epsilon=case.dim**0.5, seed=case.seed - 2), step_size=1.0, U=case.U()),
                x,
            ),
            own_epsilon=lambda case, layer, x: (
                _times_tokens(case, _layer(case, causal=layer.causal, step_size=1.0), x) * (case.epsilon**2 / case.dim)
            ),
            all_NaN=lambda case, layer, x: x * torch.nan,
        ),
        structured=SINGLE,
        code=("unrolling.layers.tssa:TSSA",),
        largest=60,
    ),
    Claim(
        id="tssa.freezing",
        statement="Freezing the memberships leaves out a part of the gradient; cosine and norm ratio of what is kept are"
        " measured against the full gradient.",
        equation=r"$\cos(\nabla R_{var}|_\Pi,\, \nabla R_{var}), \quad \Vert\nabla R_{var}|_\Pi\Vert /"
        r" \Vert\nabla R_{var}\Vert$",
        source=f"{PAPER}, section 3",
        kind="measured",
        domain=cases(batches=(0,), scales=(1.0, 0.1, 10.0), kinds=("gaussian", "subspaces", "shifted", "one_far")),
        subject=lambda case, f, x: _cosine_and_ratio(f.frozen_at(x).gradient(x), f.gradient(x)),
        measure=_freezing,
        mutants=named(
            frozen_for_full=lambda case, f, x: _cosine_and_ratio(
                f.frozen_at(x).gradient(x), f.frozen_at(x).gradient(x) * 1.001
            ),
            ratio_upside_down=lambda case, f, x: _cosine_and_ratio(f.gradient(x), f.frozen_at(x).gradient(x)),
            part_through_the_memberships_alone=lambda case, f, x: _cosine_and_ratio(
                f.gradient(x) - f.frozen_at(x).gradient(x), f.gradient(x)
            ),
            all_NaN=lambda case, f, x: (float("nan"), float("nan")),
        ),
        structured=tuple(
            Case(tokens=12, heads=3, head_dim=4, kind=kind, seed=seed)
            for kind in ("gaussian", "subspaces")
            for seed in (0, 1)
        ),
        code=("unrolling.layers.tssa:TSSA", "objectives.variational_rate:SoftVariationalRate"),
        largest=200,
    ),
    Claim(
        id="tssa.frozen_descends",
        statement="TSSA's step, which holds the memberships constant, descends the variational rate whose memberships move"
        " along with the tokens.",
        equation=r"$\langle\nabla R_{var}(Z, \bar\Pi),\; \nabla R_{var}(Z, \Pi(Z))\rangle > 0$",
        source=f"natural to believe; {PAPER}, section 3",
        kind="refuted",
        domain=cases(batches=(0,), scales=(1.0, 10.0), kinds=("gaussian", "subspaces", "shifted", "one_far")),
        subject=lambda case, f, x: f.frozen_at(x).gradient(x),
        measure=_frozen_descends,
        mutants=named(
            nothing_frozen=lambda case, f, x: f.gradient(x),
            mostly_the_full_gradient=lambda case, f, x: f.frozen_at(x).gradient(x) + 10 * f.gradient(x),
        ),
        structured=(
            Case(tokens=2, kind="one_far", epsilon=2.0),
            Case(tokens=12, heads=3, head_dim=4),
        ),
        code=("unrolling.layers.tssa:TSSA", "objectives.variational_rate:SoftVariationalRate"),
        correction="Mostly it does (tssa.freezing), but not with a large ε and one far token: two tokens, one of them twenty"
        " times as long, give a cosine of −0.42; (0, 1) and (20, 0), with the two axes as bases and ε = 1, −0.955. What the"
        " step always descends is the rate with its memberships held constant (tssa.step).",
        frozen="Π",
        largest=200,
    ),
    Claim(
        id="tssa.cost",
        statement="TSSA takes 2NdKp + NKp multiply-adds, linear in tokens, and no tensor on the way, causal or not, is larger"
        " than tokens or their coordinates: no N × N matrix.",
        equation=r"$2 N d K p + N K p$",
        source=f"{PAPER}, section 3; counted on the running code",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",), scales=(1.0,)),
        subject=lambda N, d, K, p: (2 * N * d * K * p + N * K * p, N * max(d, K * p)),
        measure=_cost,
        mutants=named(
            statistics_forgotten=lambda N, d, K, p: (2 * N * d * K * p, N * max(d, K * p)),
            pairs_of_tokens=lambda N, d, K, p: (2 * N * d * K * p + 2 * N**2 * K * p, K * N**2),
            an_attention_matrix=lambda N, d, K, p: (2 * N * d * K * p + N * K * p, N**2),
        ),
        structured=(Case(), Case(tokens=1)),
        code=("unrolling.layers.tssa:TSSA",),
        real=False,
    ),
)
