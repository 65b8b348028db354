"""Claims on the Energy Transformer's energies: memories, attention with two matrices, and how far they bend."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from objectives import AttentionEnergy, HopfieldEnergy, SymmetricEnergy, attention_curvature, lift, project

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, gradient_measure, identity, inequality, norm, reference, score_condition
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from .coding_rate import lipschitz

__all__ = ["CLAIMS", "attention_bend", "attention_condition", "attention_terms", "memories_of", "two_matrices"]

ENERGY = "Hoover et al., Energy Transformer, arXiv 2302.07253"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
SEEDED = tuple(dataclasses.replace(case, seed=seed) for case in STRUCTURED for seed in (0, 1))


def memories_of(case: Case) -> Tensor:
    """Memories ``(m, dim)`` of about unit length."""
    return case.draw("memories", case.m, case.dim) * case.dim**-0.5


def two_matrices(case: Case) -> tuple[Tensor, Tensor]:
    """W_Q and W_K ``(heads, dim, head_dim)``, any matrices."""
    shape = (case.heads, case.dim, case.head_dim)
    return case.draw("W_Q", *shape) * case.dim**-0.5, case.draw("W_K", *shape) * case.dim**-0.5


def _make_memories(case: Case) -> HopfieldEnergy:
    return HopfieldEnergy(memories_of(case))


def _make_attention(case: Case) -> AttentionEnergy:
    """Even seeds leave the token itself out, odd ones do not."""
    return AttentionEnergy(*two_matrices(case), case.softmax_scale, exclude_self=case.seed % 2 == 0)


def _memory_condition(case: Case, objective: Any, x: Tensor) -> float:
    size = norm(objective.gradient(x))
    return 1.0 + norm(x) * norm(objective.memories) ** 2 / size if size else 1.0


def _memory_bend(case: Case, objective: Any, x: Tensor) -> float:
    """Half the way to the next kink, where a memory falls silent or speaks up; the energy is quadratic until there."""
    memories = objective.memories
    away = (x @ memories.mT).abs() / memories.norm(dim=-1).clamp(min=1e-300)
    return max(0.5 * float(away.min()), 1e-3 * norm(x) / x.numel() ** 0.5, 1e-12)


def attention_condition(case: Case, objective: Any, x: Tensor) -> float:
    """Rounding of the gradient over the gradient: what cancels in it, see :func:`attention_terms`, over what is left."""
    size = norm(objective.gradient(x))
    return 1.0 + attention_terms(objective, x) / size if size else 1.0


def attention_terms(objective: AttentionEnergy, x: Tensor) -> float:
    """The gradient with lengths in place of vectors: ``‖W_Q‖ ‖P |k|‖ + ‖W_K‖ ‖Pᵀ |q|‖``, times the size of the scores.

    Sums of keys and of queries carry eps times the sum of their lengths, and an error of a score is one of its share.
    """
    objective = dataclasses.replace(objective, W_Q=objective.W_Q.detach(), W_K=objective.W_K.detach())
    q, k = project(x, objective.W_Q), project(x, objective.W_K)
    scores = objective.scale * (q @ k.mT)
    if objective.exclude_self:
        scores = scores.masked_fill(torch.eye(x.shape[-2], dtype=torch.bool), -torch.inf)
    P = torch.softmax(scores, -1).nan_to_num()
    given, received = P @ k.norm(dim=-1, keepdim=True), P.mT @ q.norm(dim=-1, keepdim=True)
    a, b = (norm(torch.linalg.matrix_norm(W.transpose(0, 1).flatten(-2), 2)) for W in (objective.W_Q, objective.W_K))
    return score_condition(q, k, float(objective.scale)) * (a * norm(given) + b * norm(received))


def attention_bend(case: Case, objective: Any, x: Tensor) -> float:
    """lse_s bends over 1/(s · the size of what multiplies the change)."""
    q, k = project(x, objective.W_Q).detach(), project(x, objective.W_K).detach()
    largest = float(torch.maximum(q.norm(dim=-1).max(), k.norm(dim=-1).max())) * norm(objective.W_Q)
    return 0.3 / (float(objective.scale) * largest + 1e-3 / max(norm(x), 1e-3))


def _with_softmax(change: Any) -> Any:
    """A wrong gradient from the attention matrix: change(P, q, k) gives what goes into queries and keys."""

    def subject(case: Case, f: AttentionEnergy, x: Tensor) -> Tensor:
        q, k = project(x, f.W_Q), project(x, f.W_K)
        scores = f.scale * (q @ k.mT)
        if f.exclude_self and len(x) > 1:
            scores = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool), -torch.inf)
        into_q, into_k = change(scores, q, k)
        return -(lift(into_q, f.W_Q) + lift(into_k, f.W_K))

    return subject


def _softmax_parts(axis: int = -1, received: float = 1.0, given: float = 1.0) -> Any:
    def change(scores: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        P = torch.softmax(scores, axis).nan_to_num()
        return given * (P @ k), received * (P.mT @ q)

    return change


def _naive_attention(case: Case, b: int) -> Any:
    W_Q, W_K = (bases(W) for W in two_matrices(case))
    return lambda Z: paper.attention_energy(Z, W_Q, W_K, case.softmax_scale, case.seed % 2 == 0)


def _exchanged(case: Case, f: AttentionEnergy, x: Tensor) -> Tensor:
    return dataclasses.replace(f, W_Q=f.W_K, W_K=f.W_Q).gradient(x)


def _memory_smoothness(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    objective, x = _make_memories(exact), exact.x()
    bound = float(subject(exact, objective, x).max())
    if not bound > 0:
        return Measurement((Comparison("bound is positive", float("nan"), 0.0),))
    rng, parts = exact.rng("smoothness"), []
    for size in (1e-2, 1.0, 10.0):
        a, b = (x + size * torch.from_numpy(rng.standard_normal(x.shape)) for _ in range(2))
        stretch = norm(objective.gradient(a) - objective.gradient(b)) / norm(a - b)
        rounding = 1e-12 * norm(x) / norm(a - b)
        parts.append(Comparison(f"difference at {size:g}", max(0.0, stretch / bound - 1), 1e-9 + rounding))
    # Where every memory is active the Hessian is −ΞᵀΞ: signs turned so that one token agrees with all of them.
    token = exact.draw("token", 1, exact.dim)
    turned = HopfieldEnergy(objective.memories * (token @ objective.memories.mT).sign().mT)
    along = torch.linalg.svd(turned.memories).Vh[:1]
    tiny = 1e-3 * float((token @ turned.memories.mT).min()) / norm(turned.memories)
    stretch = norm(turned.gradient(token + tiny * along) - turned.gradient(token)) / tiny
    noise = 1e-13 * (norm(token) + 1) / tiny
    parts.append(
        Comparison("attained where all are active", abs(float(subject(exact, turned, token)) / stretch - 1), 1e-6)
    )
    return Measurement(tuple(parts), noise < 1e-8)


def _concave(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    energy, x = _make_memories(exact), exact.x()
    kappa = 10.0 * exact.step
    after, squared = subject(exact, energy, x, kappa), norm(energy.gradient(x)) ** 2
    if squared == 0:
        return Measurement(evidence=False)
    M = columns(energy.memories)
    start, end = (float(paper.hopfield_energy(columns(z), M)) for z in (x, after))
    rounding = 1.0 + (abs(start) + abs(end)) / (kappa * squared)
    return inequality("decrease", kappa * squared, start - end, kappa * squared, "float64", rounding)


def _hessian_of(objective: Any, x: Tensor) -> Tensor:
    full = torch.autograd.functional.hessian(lambda z: objective.value(z.reshape(x.shape)), x.flatten())
    return torch.linalg.eigvalsh(0.5 * (full + full.mT))


def _local_smoothness(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    objective, x = _make_attention(exact), exact.x()
    bound, eigenvalues = float(subject(exact, objective, x)), _hessian_of(objective, x)
    largest = float(eigenvalues.abs().max())
    if largest == 0:
        return Measurement(evidence=False)
    # Two tokens that see one another only: −k₂·q₁ − k₁·q₂, a Hessian of norm 2‖W‖², and scores that do not vary.
    W = objective.W_Q[:1]
    pair = AttentionEnergy(W, W, objective.scale)
    zero = torch.zeros(2, exact.dim, dtype=torch.float64)
    attained = float(_hessian_of(pair, zero).abs().max())
    return Measurement(
        (
            Comparison("‖Hessian‖ ≤ L", max(0.0, largest / bound - 1), 1e-9),
            Comparison("attained by two tokens at rest", abs(float(subject(exact, pair, zero)) / attained - 1), 1e-9),
        ),
        values={"share of the bound": largest / bound},
    )


def _curvature(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    objective, x = _make_attention(exact), exact.x()
    tied = AttentionEnergy(objective.W_Q, objective.W_Q, objective.scale, objective.exclude_self)
    parts, evidence = [], False
    for name, energy in (("two matrices", objective), ("one matrix", tied)):
        bound = float(subject(exact, energy, len(x)))
        largest = float(_hessian_of(energy, x)[-1])
        evidence = evidence or largest > 0
        rounding = 1e-12 * float(energy.lipschitz(x)) / max(bound, 1e-300)
        parts.append(
            Comparison(
                f"{name}: curvature", max(0.0, largest / bound - 1) if bound > 0 else float("nan"), 1e-9 + rounding
            )
        )
    # The extreme matrices: token 1 chooses token 2 and all others token 1; all choose token 1.
    N = max(2, len(x))
    P = torch.zeros(N, N, dtype=torch.float64)
    P[:, 0], P[0, 0], P[0, 1] = 1, 0, 1
    W = torch.eye(exact.dim, dtype=torch.float64)[None]
    attained = 2 * float(torch.linalg.eigvalsh(-0.5 * (P + P.mT))[-1])
    unit = AttentionEnergy(W, W, 1.0)
    parts.append(Comparison("one matrix: attained", abs(float(subject(exact, unit, N)) / attained - 1), 1e-9))
    one = torch.zeros(N, N, dtype=torch.float64)
    one[:, 0] = 1
    attained = 2 * float(torch.linalg.matrix_norm(one, 2))
    other = AttentionEnergy(W, -W, 1.0)
    parts.append(Comparison("two matrices: attained", abs(float(subject(exact, other, N)) / attained - 1), 1e-9))
    return Measurement(tuple(parts), evidence)


def _bound(case: Case, energy: AttentionEnergy, tokens: int) -> Tensor:
    return energy.curvature(tokens)


def _symmetric(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    got = subject(case, case.U(), case.softmax_scale, x)
    energy = SymmetricEnergy(exact.U(), case.softmax_scale)
    want = energy.gradient(exact.x())
    w = project(exact.x(), exact.U())
    size = norm(want)
    cancelled = 1.0 + norm(w) * w.shape[-2] ** 0.5 / size if size else 1.0
    return identity(
        "gradient of the symmetric energy", got, want, case.dtype, score_condition(w, w, case.softmax_scale) * cancelled
    )


def _halved(case: Case, U: Tensor, s: float, x: Tensor, **changes: Any) -> Tensor:
    half = torch.full((len(U),), 0.5, dtype=U.dtype)
    return dataclasses.replace(AttentionEnergy(U, U, s, exclude_self=False, weights=half), **changes).gradient(x)


CLAIMS = (
    Claim(
        id="hopfield.relu.gradient",
        statement="Minus the gradient of the memories' energy is a feed-forward block with tied matrices and a relu.",
        equation=r"$-\nabla E = \Xi\,\mathrm{relu}(\Xi^\top Z), \quad E = -\frac{1}{2}\sum_{i\mu}\max(\xi_\mu^\top z_i, 0)^2$",
        source=f"{ENERGY}, its Hopfield network",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            _make_memories,
            lambda case, b: lambda Z: paper.hopfield_energy(Z, columns(memories_of(case))),
            _memory_condition,
            _memory_bend,
        ),
        mutants=of_gradient(
            relu_dropped=lambda case, f, x: -(x @ f.memories.mT) @ f.memories,
            half_dropped=lambda case, f, x: 2 * f.gradient(x),
            the_silent_memories=lambda case, f, x: torch.relu(-(x @ f.memories.mT)) @ f.memories,
            relu_squared=lambda case, f, x: -torch.relu(x @ f.memories.mT).square() @ f.memories,
        ),
        structured=STRUCTURED,
        code=("objectives.hopfield:HopfieldEnergy",),
        largest=200,
    ),
    Claim(
        id="hopfield.relu.smoothness",
        statement="The memories' energy is smooth with L = ‖Ξ‖², reached where every memory is active.",
        equation=r"$\Vert \nabla E(A) - \nabla E(B) \Vert \leq \Vert \Xi \Vert_2^2\, \Vert A - B \Vert$",
        source="derived: the Hessian of a token is minus the Gram matrix of its active memories",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=_memory_smoothness,
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            norm_not_squared=lambda case, f, x: f.lipschitz(x).sqrt(),
            longest_memory=lambda case, f, x: f.memories.square().sum(-1).max(),
            all_NaN=lambda case, f, x: f.lipschitz(x) * torch.nan,
        ),
        structured=SINGLE,
        code=("objectives.hopfield:HopfieldEnergy",),
    ),
    Claim(
        id="hopfield.relu.concave",
        statement="Every step down the memories' energy lowers it by at least κ‖∇E‖², however long the step.",
        equation=r"$E(Z - \kappa \nabla E) \leq E(Z) - \kappa\, \Vert \nabla E \Vert^2 \quad \forall \kappa > 0$",
        source="derived: relu squared is convex, so E is concave",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=lambda case, energy, x, kappa: x - kappa * energy.gradient(x),
        measure=_concave,
        mutants=named(
            opposite_sign=lambda case, energy, x, kappa: x + kappa * energy.gradient(x),
            no_op=lambda case, energy, x, kappa: x,
            relu_dropped=lambda case, energy, x, kappa: x - kappa * (x @ energy.memories.mT) @ energy.memories,
            tenth_of_a_step=lambda case, energy, x, kappa: x - 0.01 * kappa * energy.gradient(x),
            all_NaN=lambda case, energy, x, kappa: x * torch.nan,
        ),
        structured=SINGLE,
        code=("objectives.hopfield:HopfieldEnergy",),
        largest=200,
    ),
    Claim(
        id="hopfield.attention.gradient",
        statement="Minus the gradient of the attention energy is attention into the queries, and attention received into"
        " the keys, with no half.",
        equation=r"$-\nabla E = \sum_h W_h^Q K_h A_h + W_h^K Q_h A_h^\top, \quad A_h = \mathrm{softmax}(\beta K_h^\top Q_h)$",
        source=f"{ENERGY}, its attention energy and update",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=gradient_measure(
            _make_attention,
            _naive_attention,
            attention_condition,
            attention_bend,
        ),
        mutants=of_gradient(
            softmax_over_the_wrong_axis=_with_softmax(_softmax_parts(axis=-2)),
            keys_frozen=_with_softmax(_softmax_parts(received=0.0)),
            queries_frozen=_with_softmax(_softmax_parts(given=0.0)),
            matrices_exchanged=_exchanged,
            the_token_itself_left_in_or_out=lambda case, f, x: dataclasses.replace(
                f, exclude_self=not f.exclude_self
            ).gradient(x),
            scale_doubled=lambda case, f, x: dataclasses.replace(f, scale=2 * f.scale).gradient(x),
        ),
        structured=SEEDED,
        code=("objectives.hopfield:AttentionEnergy",),
        largest=200,
    ),
    Claim(
        id="hopfield.attention.smoothness",
        statement="The norm of the attention energy's Hessian at the tokens is at most the constant it gives for them.",
        equation=r"$\Vert \nabla^2 E(Z) \Vert \leq 2\beta(\Vert W^Q \Vert^2 \max_j \Vert k_j - \bar{k} \Vert^2 +"
        r" \Vert W^K \Vert^2 \max_j \sum_i A_{ji} \Vert q_i \Vert^2) + 2 \Vert A \Vert\, \Vert W^Q \Vert\, \Vert W^K \Vert$",
        source="derived: variance of the attended keys, and the bilinear part",
        kind="bound",
        domain=cases(batches=(0,), tokens=(1, 5)),
        subject=lipschitz,
        measure=_local_smoothness,
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            bilinear_part_only=lambda case, f, x: (
                2 * attention_curvature(len(x), tied=False) * norm(f.W_Q) * norm(f.W_K) * torch.ones(())
            ),
            matrices_not_squared=lambda case, f, x: f.lipschitz(x).sqrt(),
            all_NaN=lambda case, f, x: f.lipschitz(x) * torch.nan,
        ),
        structured=tuple(case for case in SINGLE if case.tokens * case.dim <= 40),
        code=("objectives.hopfield:AttentionEnergy",),
        real=False,
    ),
    Claim(
        id="hopfield.attention.curvature",
        statement="From above the attention energy bends by at most 2c‖W_Q‖‖W_K‖, whatever the tokens: c = ½√(N + 2) for one"
        " matrix, √N for two, the best constants over all row-stochastic matrices.",
        equation=r"$\lambda_{\max}(\nabla^2 E) \leq 2c\, \Vert W^Q \Vert\, \Vert W^K \Vert, \quad"
        r" \max_P \lambda_{\max}(-\frac{P + P^\top}{2}) = \frac{1}{2}\sqrt{N + 2}$",
        source="derived: the variance bends the energy down, so only −2⟨dq, P dk⟩ is left",
        kind="bound",
        domain=cases(batches=(0,), tokens=(1, 5)),
        subject=_bound,
        measure=_curvature,
        mutants=named(
            halved=lambda case, f, N: 0.5 * f.curvature(N),
            doubled=lambda case, f, N: 2 * f.curvature(N),
            count_dropped=lambda case, f, N: f.curvature(1),
            N_for_its_root=lambda case, f, N: f.curvature(N) * N**0.5,
            the_other_constant=lambda case, f, N: (
                f.curvature(N)
                / attention_curvature(N, tied=torch.equal(f.W_Q, f.W_K))
                * attention_curvature(N, tied=not torch.equal(f.W_Q, f.W_K))
            ),
            all_NaN=lambda case, f, N: f.curvature(N) * torch.nan,
        ),
        structured=tuple(
            dataclasses.replace(case, seed=seed) for case in SINGLE if case.tokens * case.dim <= 40 for seed in (0, 1)
        ),
        code=("objectives.hopfield:AttentionEnergy", "objectives.hopfield:attention_curvature"),
        real=False,
    ),
    Claim(
        id="hopfield.attention.symmetric",
        statement="With one matrix, all tokens and a half, the attention energy is the symmetric energy.",
        equation=r"$\frac{1}{2} E^{\mathrm{ATT}}|_{W^Q = W^K = U} = -\frac{1}{2}\sum_k\sum_i \mathrm{lse}_s(W_k^\top w_{k,i})$",
        source=f"{ENERGY}; derived",
        kind="identity",
        domain=cases(),
        subject=_halved,
        measure=_symmetric,
        mutants=named(
            half_dropped=lambda case, U, s, x: 2 * _halved(case, U, s, x),
            the_token_itself_left_out=lambda case, U, s, x: _halved(case, U, s, x, exclude_self=True),
            scale_doubled=lambda case, U, s, x: _halved(case, U, 2 * s, x),
            keys_of_another_head=lambda case, U, s, x: _halved(case, U, s, x, W_K=U.roll(1, 0)),
            all_NaN=lambda case, U, s, x: x * torch.nan,
        ),
        structured=STRUCTURED,
        code=("objectives.hopfield:AttentionEnergy", "objectives.softmax_energy:SymmetricEnergy"),
    ),
)
