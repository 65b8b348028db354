"""Claims on symmetric self-attention: the one attention among these that is a gradient with nothing held constant."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from objectives import lift, project
from unrolling import MSSA, SymmetricAttention

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, inequality, norm, reference, step_measure
from ..mutants import forward, named, of_step
from ..strategies import STRUCTURED, Case, cases
from .coding_rate import _count, combine
from .hopfield import attention_bend, attention_condition, two_matrices
from .mssa import certified
from .softmax_energy import _bend, _condition

__all__ = ["CLAIMS"]

ENERGY = "Hoover et al., Energy Transformer, arXiv 2302.07253"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
SEEDED = tuple(dataclasses.replace(case, seed=seed) for case in STRUCTURED for seed in (0, 1))


def _tied(case: Case) -> SymmetricAttention:
    return SymmetricAttention(case.dim, case.heads, U=case.U(), scale=case.softmax_scale, step_size=0.5 * case.step)


def _general(case: Case) -> SymmetricAttention:
    """Any two matrices; odd seeds leave the token itself out."""
    W_Q, W_K = two_matrices(case)
    return SymmetricAttention(
        case.dim,
        case.heads,
        form="general",
        basis="free",
        U=W_Q,
        W_K=W_K,
        exclude_self=bool(case.seed % 2),
        scale=case.softmax_scale,
        step_size=2.0 * case.step,
    )


def _paper_tied(case: Case, layer: Any, Z: Any, b: int) -> Any:
    out = Z
    for Uk in bases(case.U()):
        W = Uk.T @ Z
        A = paper.softmax_columns(case.softmax_scale * (W.T @ W))
        out = out + layer.step.item() * (Uk @ W @ (A + A.T)) / 2
    return out


def _paper_general(case: Case, layer: Any, Z: Any, b: int) -> Any:
    out, N = Z, Z.shape[1]
    for W_Q, W_K in zip(*(bases(W) for W in two_matrices(case)), strict=True):
        Q, K = W_Q.T @ Z, W_K.T @ Z
        for c in range(N):
            others = [j for j in range(N) if not (case.seed % 2 and j == c)]
            if others:
                share = paper.softmax_columns(case.softmax_scale * (K[:, others].T @ Q[:, [c]]))
                given = Z * 0
                given[:, [c]] = W_Q @ (K[:, others] @ share)
                given[:, others] += (W_K @ Q[:, [c]]) @ share.T
                out = out + layer.step.item() * given / 2
    return out


def _general_energy(case: Case, layer: Any, z: Tensor, b: int) -> Any:
    W_Q, W_K = (bases(W) for W in two_matrices(case))
    return lambda Z: paper.attention_energy(Z, W_Q, W_K, case.softmax_scale, bool(case.seed % 2)) / 2


def _through(function: Any) -> Any:
    """What a measure of the objective needs, asked with the layer's objective."""
    return lambda case, layer, z: function(case, _declared(layer, z), z)


def _declared(layer: Any, z: Tensor) -> Any:
    with torch.no_grad():
        return layer.objective_at(z)


def _attend(weights: Any) -> Any:
    def subject(case: Case, layer: SymmetricAttention, x: Tensor) -> Tensor:
        w = project(x, case.U())
        P = torch.softmax(case.softmax_scale * (w @ w.mT), -1)
        return x + layer.step * lift(weights(P, w), case.U())

    return subject


def _two_matrix(weights: Any) -> Any:
    """A wrong step of the general form from scores, queries and keys."""

    def subject(case: Case, layer: SymmetricAttention, x: Tensor) -> Tensor:
        W_Q, W_K = two_matrices(case)
        q, k = project(x, W_Q), project(x, W_K)
        scores = case.softmax_scale * (q @ k.mT)
        if layer.exclude_self and x.shape[-2] > 1:
            scores = scores.masked_fill(torch.eye(x.shape[-2], dtype=torch.bool), -torch.inf)
        into_q, into_k = weights(torch.softmax(scores, -1), q, k)
        return x + 0.5 * layer.step * (lift(into_q, W_Q) + lift(into_k, W_K))

    return subject


def _certified_layer(case: Case) -> SymmetricAttention:
    general = case.seed % 2 == 1
    W_K = case.U().flip(-1).roll(1, 0) if general else None
    return SymmetricAttention(
        case.dim,
        case.heads,
        form="general" if general else "tied",
        exclude_self=case.seed % 3 == 0,
        U=case.U(),
        W_K=W_K,
        scale=case.softmax_scale,
        certified=True,
        per_head_step=case.seed % 4 > 1,
        step_size=case.step,
    )


def _descent(subject: Any, case: Case) -> Measurement:
    """E(Z) − E(Z⁺) ≥ κ(1 − κM/2)‖∇E‖² with the naive energy: E weighted by head where steps are a head's own."""
    exact = reference(dataclasses.replace(case, batch=0))
    layer, x = _certified_layer(exact), exact.x()
    with torch.no_grad():
        kappa, after = subject(exact, layer, x)
        gradient = layer.objective_at(x).gradient(x)
    W_Q, W_K, s = bases(layer.U), bases(layer.W_K), exact.softmax_scale
    steps = kappa.expand(exact.heads).tolist()
    shared = kappa.ndim == 0

    def energy(z: Tensor) -> float:
        Z = columns(z)
        return sum(
            (1.0 if shared else step) * float(paper.attention_energy(Z, [Q], [K], s, layer.exclude_self)) / 2
            for step, Q, K in zip(steps, W_Q, W_K, strict=True)
        )

    squared = norm(gradient) ** 2
    if squared == 0:
        return Measurement((Comparison("at rest", norm(after - x), 0.0),), evidence=False)
    N, tied = exact.tokens, layer.form == "tied"
    M = 0.5 * (N + 2) ** 0.5 if tied else N**0.5
    size = float(kappa) if shared else 1.0
    promised = size * (1 - exact.step / 2) * squared
    start, end = energy(x), energy(after)
    noise = (abs(start) + abs(end) + squared**0.5 * norm(x) + N) / (size * squared)
    return combine(
        Measurement((Comparison("κM", max(abs(step * M / exact.step - 1) for step in steps), 1e-9),)),
        inequality("promised decrease", promised, start - end, size * squared, "float64", noise),
    )


def _flops(subject: Any, case: Case) -> Measurement:
    N, layer = 7 * case.tokens, SymmetricAttention(12, 3, basis="free")
    x = torch.randn(1, N, 12, generator=torch.Generator().manual_seed(case.seed))
    with torch.no_grad():
        counted = _count(lambda: layer(x))
    claimed = subject(N, 12)
    return Measurement((Comparison("multiply-adds", abs(counted - claimed), 0.0),), values={"multiply-adds": counted})


def _stretched(factor: float) -> Any:
    def subject(case: Case, layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        kappa, after = certified(case, layer, x)
        return factor * kappa, x + factor * (after - x)

    return subject


CLAIMS = (
    Claim(
        id="symmetric.step.tied",
        statement="Symmetric attention is a gradient step on the self-attention energy with nothing frozen.",
        equation=r"$Z + \kappa \sum_k U_k W_k\, \frac{1}{2}(A_k + A_k^\top) = Z - \kappa\nabla E, \quad"
        r" A_k = \mathrm{softmax}(s W_k^\top W_k)$",
        source=f"{ENERGY}, with one matrix, halved",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(
            _tied,
            _paper_tied,
            lambda case, layer, z, b: lambda Z: paper.symmetric_energy(Z, bases(case.U()), case.softmax_scale),
            _through(_condition),
            _through(_bend),
        ),
        mutants=of_step(
            half_dropped=lambda case, layer, x: 2 * layer(x) - x,
            keys_frozen=_attend(lambda P, w: P @ w),
            attention_received_only=_attend(lambda P, w: P.mT @ w),
            softmax_over_the_wrong_axis_in_one_half=_attend(
                lambda P, w: 0.5 * (P @ w + (P / P.sum(-2, keepdim=True)).mT @ w)
            ),
            another_heads_attention=_attend(lambda P, w: 0.5 * (P + P.mT).roll(1, -3) @ w),
            MSSA=lambda case, layer, x: MSSA(
                case.dim,
                case.heads,
                U=case.U(),
                scale=2 * case.softmax_scale,
                form="softmax",
                step_size=layer.step.item(),
            )(x),
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.symmetric:SymmetricAttention",),
    ),
    Claim(
        id="symmetric.step.general",
        statement="With two matrices the step on the attention energy, halved, gives what a token attends to through W_Q"
        " and what attends to it through W_K.",
        equation=r"$Z + \frac{\kappa}{2} \sum_k W_k^Q K_k A_k + W_k^K Q_k A_k^\top = Z - \kappa\nabla E, \quad"
        r" A_k = \mathrm{softmax}(s K_k^\top Q_k)$",
        source=f"{ENERGY}, its attention energy, halved",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(
            _general, _paper_general, _general_energy, _through(attention_condition), _through(attention_bend)
        ),
        mutants=of_step(
            half_dropped=lambda case, layer, x: 2 * layer(x) - x,
            keys_frozen=_two_matrix(lambda P, q, k: (P @ k, 0 * k)),
            attention_not_transposed=_two_matrix(lambda P, q, k: (P @ k, P @ q)),
            matrices_exchanged=_two_matrix(lambda P, q, k: (P.mT @ q, P @ k)),
            values_from_the_queries=_two_matrix(lambda P, q, k: (P @ q, P.mT @ q)),
            the_token_itself_added=_two_matrix(
                lambda P, q, k: (
                    (P + torch.eye(P.shape[-1], dtype=P.dtype)) @ k,
                    (P + torch.eye(P.shape[-1], dtype=P.dtype)).mT @ q,
                )
            ),
        ),
        structured=SEEDED,
        code=("unrolling.layers.symmetric:SymmetricAttention",),
        largest=200,
    ),
    Claim(
        id="symmetric.certified",
        statement="Steps within (0, 2/M), M = ½√(N + 2) for one matrix and √N for two, never raise the energy, wherever the"
        " tokens are, and lower it by at least κ(1 − κM/2)‖∇E‖².",
        equation=r"$E(Z - \kappa\nabla E) \leq E(Z) - \kappa(1 - \frac{\kappa M}{2})\, \Vert \nabla E \Vert^2, \quad"
        r" M = \frac{1}{2}\sqrt{N + 2}$",
        source="derived: hopfield.attention.curvature and the descent lemma, which needs a bound from above only",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=certified,
        measure=_descent,
        mutants=named(
            step_doubled=_stretched(2.0),
            step_halved=_stretched(0.5),
            opposite_sign=_stretched(-1.0),
            tokens_not_counted=lambda case, layer, x: (
                certified(case, layer, x)[0] * layer.bounds_at(x),
                x + (layer(x) - x) * layer.bounds_at(x),
            ),
            tenth_of_the_step=lambda case, layer, x: (certified(case, layer, x)[0], x + 0.1 * (layer(x) - x)),
            all_NaN=lambda case, layer, x: (certified(case, layer, x)[0], x * torch.nan),
        ),
        structured=tuple(dataclasses.replace(case, seed=seed) for case in SINGLE for seed in (0, 1, 2)),
        code=("unrolling.layers.symmetric:SymmetricAttention", "objectives.hopfield:attention_curvature"),
        largest=200,
    ),
    Claim(
        id="symmetric.cost",
        statement="Symmetric attention takes 2Nd² + 3N²d multiply-adds: one N × N product more than MSSA.",
        equation=r"$2Nd^2 + 3N^2d$",
        source="derived; counted on the running code",
        kind="cost",
        domain=cases(batches=(0,)),
        subject=lambda N, d: 2 * N * d**2 + 3 * N**2 * d,
        measure=_flops,
        mutants=named(
            as_MSSA=lambda N, d: 2 * N * d**2 + 2 * N**2 * d,
            no_projections=lambda N, d: 3 * N**2 * d,
            projections_twice=lambda N, d: 4 * N * d**2 + 3 * N**2 * d,
            all_NaN=lambda N, d: float("nan"),
        ),
        structured=(Case(), Case(tokens=9)),
        code=("unrolling.layers.symmetric:SymmetricAttention",),
        real=False,
    ),
)
