"""Claims on contract-and-broadcast self-attention: its step, its pooling, its special cases, its cost, its sign."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from objectives import (
    ChannelRate,
    CodingRate,
    RepresentativeRate,
    SubspaceCodingRate,
    certified_step_size,
    lift,
    project,
)
from unrolling import (
    CBSA,
    MSSA,
    SVD,
    Axes,
    GridPool,
    LearnedQueries,
    Representatives,
    SequencePool,
    Strided,
    Tokens,
)

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import (
    bases,
    columns,
    identity,
    norm,
    rate_condition,
    reference,
    score_condition,
    slices,
    step_measure,
)
from ..mutants import forward, named, of_step
from ..oracles import mp_array, mp_derivative
from ..strategies import STRUCTURED, WITNESS, WITNESS_6, WITNESS_9, Case, cases
from .coding_rate import _count, combine
from .mssa import certified, certified_measure, exact_kappa, stretched

__all__ = ["CLAIMS"]

PAPER = "Wen et al., CBSA, arXiv 2509.16875"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
SEEDED = tuple(dataclasses.replace(case, seed=i % 8) for i, case in enumerate(STRUCTURED))
"""The seed picks the strategy (learned, sequence, strided, grid) and whether there is a class token."""


def _class_tokens(case: Case) -> int:
    return int(case.seed % 8 > 3 and case.tokens > 1 and case.grid is None)


def _grid(case: Case) -> tuple[int, int]:
    if case.grid is not None:
        return case.grid
    patches = case.tokens - _class_tokens(case)
    rows = max(r for r in range(1, int(patches**0.5) + 1) if patches % r == 0)
    return rows, patches // rows


def _pool_size(case: Case) -> tuple[int, int]:
    return (2, (case.m + 1) // 2)


def _strategy(case: Case) -> Representatives:
    which = 3 if case.given is not None and case.grid is not None else case.seed % 4
    if which == 0:
        learned = LearnedQueries(case.m, case.heads, case.head_dim)
        learned.queries.data = case.queries()
        return learned
    return (SequencePool(case.m), Strided(2), GridPool(_pool_size(case), _grid(case)))[which - 1]


def _initial(case: Case, W: NDArray[np.float64], head: int) -> NDArray[np.float64]:
    """The paper's initial representatives of one head, columns, by the strategy of the case."""
    kind, patches = _strategy(case), W[:, _class_tokens(case) :]
    if isinstance(kind, LearnedQueries):
        return columns(case.queries())[head]
    if isinstance(kind, SequencePool):
        return paper.pool_sequence(patches, case.m)
    return patches[:, ::2] if isinstance(kind, Strided) else paper.pool_grid(patches, _grid(case), _pool_size(case))


def _extraction(case: Case, Z: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    heads = enumerate(bases(case.U()))
    return [paper.cbsa_eq5(_initial(case, W := Uk.T @ Z, k), W, case.softmax_scale) for k, Uk in heads]


def _layer(case: Case, form: str, **more: Any) -> CBSA:
    layer = CBSA(
        case.dim,
        case.heads,
        U=case.U(),
        representatives=more.pop("representatives", None) or _strategy(case),
        form=form,
        epsilon=case.epsilon,
        scale=case.softmax_scale,
        class_tokens=_class_tokens(case),
        **{"step_size": 0.5 * case.step, **more},
    )
    return layer.to(case.torch_dtype)


def _count_of(case: Case) -> int:
    kind = _strategy(case)
    if isinstance(kind, Strided):
        return len(range(0, case.tokens - _class_tokens(case), 2))
    return int(np.prod(_pool_size(case))) if isinstance(kind, GridPool) else case.m


def _exact(case: Case) -> CBSA:
    return _layer(case, "exact", step_size=exact_kappa(case, _count_of(case)))


def _softmax(case: Case) -> CBSA:
    return _layer(case, "softmax")


def _agent(case: Case) -> CBSA:
    return _layer(case, "agent")


def _exact_condition(case: Case, layer: CBSA, z: Tensor) -> float:
    w = project(z, case.U())
    q = layer.extraction(z).detach() @ w
    beta = case.head_dim / (q.shape[-2] * case.epsilon**2)
    return rate_condition(q, beta) * _extraction_condition(case, layer, z, w)


def _extraction_condition(case: Case, layer: CBSA, z: Tensor, w: Tensor) -> float:
    queries = layer.representatives.initial(w, layer.class_tokens, None).detach()
    return score_condition(queries, w, case.softmax_scale)


def _softmax_condition(case: Case, layer: CBSA, z: Tensor) -> float:
    q = layer.extraction(z).detach() @ project(z, case.U())
    return score_condition(q, q, case.softmax_scale) * _agent_condition(case, layer, z)


def _agent_condition(case: Case, layer: CBSA, z: Tensor) -> float:
    """The broadcast sums rows the size of the representatives with the weights P; what cancels of them is lost."""
    w, P = project(z, case.U()), layer.extraction(z).detach()
    size = norm(layer.update(z)) / (0.5 * case.step)
    lost = 1.0 + norm(P) * float((P @ w).norm(dim=-1).max()) / size if size else 1.0
    return _extraction_condition(case, layer, z, w) * lost


def _rate_bend(case: Case, layer: CBSA, z: Tensor) -> float:
    return 0.3 / float(certified_step_size(layer.objective_at(z), z).lipschitz.max()) ** 0.5


def _energy_bend(case: Case, layer: CBSA, z: Tensor) -> float:
    largest = float(project(z, case.U()).norm(dim=-1).max())
    return 0.5 / (case.softmax_scale * largest + 1e-3 / max(norm(z), 1e-3))


def _tokens_of(z: Tensor, b: int) -> NDArray[np.float64]:
    return columns(z.reshape(-1, *z.shape[-2:])[b])


def _frozen_rate(case: Case, layer: CBSA, z: Tensor, b: int) -> Any:
    A, U = _extraction(case, _tokens_of(z, b)), bases(case.U())
    return lambda Z: paper.cbsa_eq4(Z, U, A, case.epsilon)


def _frozen_energy(case: Case, layer: CBSA, z: Tensor, b: int) -> Any:
    start, U = _tokens_of(z, b), bases(case.U())
    A = _extraction(case, start)
    keys = [Uk.T @ start @ Ak for Uk, Ak in zip(U, A, strict=True)]
    return lambda Z: paper.representative_energy(Z, U, A, keys, case.softmax_scale)


def _frozen_norm(case: Case, layer: CBSA, z: Tensor, b: int) -> Any:
    A, U = _extraction(case, _tokens_of(z, b)), bases(case.U())
    return lambda Z: -paper.representative_norm(Z, U, A)


def _rebuilt(change: Any) -> Any:
    """A wrong forward pass from the layer's own parts: change(case, P, w, q) is the signed change of w."""

    def subject(case: Case, layer: CBSA, x: Tensor) -> Tensor:
        w, P = project(x, case.U()), layer.extraction(x).detach()
        return x + float(layer.step_size_at(x)) * lift(change(case, P, w, P @ w), case.U())

    return subject


def _contract(case: Case, q: Tensor, epsilon: float | None = None, count: int | None = None) -> Tensor:
    return CodingRate(case.epsilon if epsilon is None else epsilon, count).gradient(q)


def _attend(case: Case, q: Tensor, dim: int = -1, scale: float = 1.0) -> Tensor:
    return torch.softmax(scale * case.softmax_scale * (q @ q.mT), dim) @ q


def _unfrozen(case: Case, layer: CBSA, x: Tensor) -> Tensor:
    z = x.clone().requires_grad_()
    w = project(z, case.U())
    q = layer.extraction(z) @ w
    value = CodingRate(case.epsilon).value(q).sum()
    with torch.enable_grad():
        (full,) = torch.autograd.grad(value, z)
    return x - float(layer.step_size_at(x)) * full


def _with_graph(subject: Any) -> Any:
    def run(case: Case, layer: CBSA, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return subject(case, layer, x).detach()

    return run


def _extraction_measure(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    got, parts = subject(case, _softmax(case), x), []
    layer = _softmax(exact)
    for b, (point,) in enumerate(slices(exact.x())):
        want = np.stack(_extraction(exact, columns(point))).swapaxes(-1, -2)
        w = project(point, exact.U())
        condition = _extraction_condition(exact, layer, point, w)
        flat = got.reshape(-1, *got.shape[-3:])
        rows = flat[b].double().sum(-1)
        parts.append(identity("P", flat[b], want, case.dtype, condition))
        parts.append(identity("rows sum to 1", rows, np.ones(rows.shape), case.dtype, condition))
    return combine(*parts)


def _pooling_measure(kind: str) -> Any:
    def measure(subject: Any, case: Case) -> Measurement:
        exact = dataclasses.replace(reference(case), seed=case.seed - case.seed % 4 + (3 if kind == "grid" else 1))
        x = exact.x()
        w = project(x, exact.U())
        got = subject(exact, w)
        flat_w, flat = w.reshape(-1, *w.shape[-2:]), got.reshape(-1, *got.shape[-2:])
        want = []
        for W in flat_w:
            patches = columns(W)[:, _class_tokens(exact) :]
            pooled = (
                paper.pool_grid(patches, _grid(exact), _pool_size(exact))
                if kind == "grid"
                else paper.pool_sequence(patches, exact.m)
            )
            want.append(pooled.T)
        return identity("bins", flat, np.stack(want), "float64", 1 + norm(w) / max(norm(np.stack(want)), 1e-300))

    return measure


def _grid_pool(case: Case, w: Tensor) -> Tensor:
    return GridPool(_pool_size(case), _grid(case)).initial(w, _class_tokens(case), None)


def _sequence_pool(case: Case, w: Tensor) -> Tensor:
    return SequencePool(case.m).initial(w, _class_tokens(case), None)


def _special_measure(make: Any, want: Any, condition: Any) -> Any:
    """A special case of the layer against its own equation; the subject returns the layer's update."""

    def measure(subject: Any, case: Case) -> Measurement:
        x, exact = case.x(), reference(case)
        with torch.no_grad():
            got = subject(case, make(case), x).double()
        parts = []
        for g, (point,) in zip(got.reshape(-1, *got.shape[-2:]), slices(exact.x()), strict=True):
            update = np.ascontiguousarray(want(exact, columns(point)).T)
            moved, size = norm(update), norm(point)
            if moved == 0:
                parts.append(Measurement((Comparison("at rest", norm(g), 0.0),), evidence=False))
                continue
            # Sums over tokens of the size of x may cancel to an update smaller than x.
            parts.append(identity("its equation", g, update, case.dtype, condition(exact, point) * (1 + size / moved)))
        return combine(*parts)

    return measure


def update(case: Case, layer: Any, x: Tensor) -> Tensor:
    """The usual subject of a special case: what the layer adds to the tokens."""
    return layer.update(x)


def _rotation(subject: Any, case: Case) -> Measurement:
    """Principal representatives mixed: Q' = O Q, P' = O P in rows."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, U = exact.x(), exact.U()
    P = []
    for w in project(x, U):
        left, _, _ = torch.linalg.svd(w, full_matrices=True)
        P.append(
            left.mT[: exact.head_dim]
            if len(w) >= exact.head_dim
            else torch.nn.functional.pad(left.mT, (0, 0, 0, exact.head_dim - len(w)))
        )
    stacked = torch.stack(P)
    turn = torch.from_numpy(np.linalg.qr(exact.rng("turn").standard_normal((exact.head_dim,) * 2))[0])
    got = subject(exact, U, turn @ stacked, x)
    want = -_layer(exact, "exact", representatives=SVD(), step_size=1.0).update(x).detach()
    moved = norm(want)
    if moved == 0:
        return Measurement((Comparison("at rest", norm(got), 0.0),), evidence=False)
    return identity(
        "same as linear attention", got, want, "float64", _linear_condition(exact, x) * (1 + norm(x) / moved)
    )


def _linear_condition(case: Case, x: Tensor) -> float:
    return rate_condition(x, 1 / case.epsilon**2)


def _cost(subject: Any, case: Case) -> Measurement:
    N, m = 7 * case.tokens, case.m
    layer = CBSA(12, 3, representatives=LearnedQueries(m, 3, 4), form="softmax", basis="free")
    x = torch.randn(1, N, 12, generator=torch.Generator().manual_seed(case.seed))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        counted = _count(lambda: layer(x))
    return Measurement(
        (Comparison("multiply-adds", abs(counted - subject(N, 12, m)), 0.0),),
        values={"multiply-adds": counted},
    )


def _official_state(case: Case, inner: int) -> dict[str, Tensor]:
    shapes = {
        "proj.weight": (inner, case.dim),
        "step_x": (case.heads, 1, 1),
        "step_rep": (case.heads, 1, 1),
        "to_out.weight": (case.dim, inner),
        "to_out.bias": (case.dim,),
    }
    return {name: case.draw(name, *shape) for name, shape in shapes.items()}


def _official(subject: Any, case: Case) -> Measurement:
    side = 1 + case.tokens % 5
    exact = reference(dataclasses.replace(case, tokens=side**2 + 1, given=None, batch=0, kind="gaussian", scale=1.0))
    state = _official_state(exact, exact.heads * exact.head_dim)
    x = exact.x()
    with torch.no_grad():
        got = subject(exact, CBSA.from_official(state), x)
    weights = {name: state[key].flatten().numpy() for name, key in (("step_x", "step_x"), ("step_rep", "step_rep"))}
    weights |= {"proj": state["proj.weight"].numpy(), "out": state["to_out.weight"].numpy()}
    want = paper.cbsa_released(columns(x), weights | {"bias": state["to_out.bias"].numpy()}, exact.heads).T
    w = x @ state["proj.weight"].mT
    largest = float(w.norm(dim=-1).max()) * (1 + float(state["step_rep"].abs().max()))
    condition = (1 + exact.head_dim**-0.5 * largest**2) * (1 + norm(w) * norm(state["to_out.weight"]) / norm(want))
    return identity("the released layer's output", got, want, "float64", condition)


def _sign(subject: Any, case: Case) -> Measurement:
    """⟨∇F, CBSA's softmax update⟩ with learned queries, and on small cases the derivative in fifty digits."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, U, s = exact.x(), exact.U(), exact.softmax_scale
    queries = _sharp_queries(exact) if exact.kind == "witness" else exact.queries()
    P = torch.softmax(s * (queries @ project(x, U).mT), -1)
    objective = RepresentativeRate(U, P, exact.epsilon)
    gradient = objective.gradient(x)
    direction = subject(exact, objective, x, gradient, s)
    product = norm(gradient) * norm(direction)
    if product == 0:
        return Measurement(evidence=False)
    cosine, done = float((gradient * direction).sum()) / product, []
    if x.numel() <= 44:
        Z, V, A = mp_array(columns(x)), mp_array(columns(direction)), [mp_array(Pk.mT.numpy()) for Pk in P]
        slope = mp_derivative(
            lambda t: paper.cbsa_eq4(Z + t * V, bases(U), A, exact.epsilon), 1 / max(norm(direction), 1e-300)
        )
        done.append(Comparison("fifty digits", abs(slope / product - cosine), 1e-9))
    return Measurement(tuple(done), True, {"cosine of ∇F and the softmax update": cosine}, truth=cosine > 0)


SHARP = {
    22: 20 * [(-50, 50)] + [(50, 200), (50, 0)],
    9: 4 * [(0, 10, 0)] + [(0, -10, 0)] + 2 * [(0.5, 0, 20)] + [(-1, 0, 20), (-1, 0, 0)],
}
"""Queries that each attend to one distinct token of a witness: the representatives are its tokens."""


def _sharp_queries(case: Case) -> Tensor:
    if case.m in SHARP:
        return torch.tensor([SHARP[case.m]], dtype=torch.float64)
    # Tokens that span a simplex: an affine function that is 1 at one of them and 0 at the others, 60 times as steep.
    x = case.x()
    affine = torch.linalg.solve(torch.cat([x, torch.ones_like(x[:, :1])], 1), torch.eye(len(x), dtype=x.dtype))
    return 60.0 * affine[:-1].mT.unsqueeze(0)


def _softmax_update(case: Case, objective: RepresentativeRate, x: Tensor, gradient: Tensor, s: float) -> Tensor:
    q = objective.representatives(x)
    return lift(objective.P.mT @ (torch.softmax(s * (q @ q.mT), -1) @ q), objective.U)


def _in_certificate(case: Case) -> CBSA:
    form = ("exact", "softmax", "exact")[case.seed % 3]
    sign = -1.0 if form == "softmax" else 1.0
    return _layer(case, form, certified=True, per_head_step=bool(case.seed % 2), step_size=sign * case.step)


def _certified_tokens(case: Case) -> CBSA:
    """Exact constants are known for all tokens (P = I): there a step 1 % too long shows."""
    if case.seed % 4 == 0:
        return _layer(case, "exact", representatives=Tokens(), certified=True, step_size=case.step)
    return _in_certificate(case)


def _special(name: str, statement: str, equation: str, source: str, **more: Any) -> Claim:
    return Claim(
        id=f"cbsa.special.{name}",
        statement=statement,
        equation=equation,
        source=source,
        kind="identity",
        domain=cases(),
        structured=STRUCTURED,
        code=("unrolling.layers.cbsa:CBSA",),
        **{"subject": update, **more},
    )


def _score(case: Case, x: Tensor) -> float:
    w = project(x, case.U())
    return score_condition(w, w, case.softmax_scale)


CLAIMS = (
    Claim(
        id="cbsa.extraction",
        statement="The extraction weights are the softmax over tokens of the initial representatives' scores, for every"
        " strategy, class tokens attended to.",
        equation=r"$A_k = \mathrm{softmax}(s\, W_k^\top Q_{\mathrm{ini},k})$ (columns)",
        source=f"{PAPER}, eq. 5",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.extraction(x),
        measure=_extraction_measure,
        mutants=named(
            softmax_over_representatives=lambda case, layer, x: torch.softmax(
                case.softmax_scale
                * (layer.representatives.initial(w := project(x, case.U()), layer.class_tokens, None) @ w.mT),
                -2,
            ),
            scale_doubled=lambda case, layer, x: torch.softmax(2 * layer.extraction(x).log(), -1),
            another_heads_queries=lambda case, layer, x: layer.extraction(x).roll(1, -3),
            tokens_reversed=lambda case, layer, x: layer.extraction(x).flip(-1),
            last_token_left_out=lambda case, layer, x: (
                layer.extraction(x) * (torch.arange(x.shape[-2]) < max(1, x.shape[-2] - 1))
            ),
            all_NaN=lambda case, layer, x: layer.extraction(x) * torch.nan,
        ),
        structured=SEEDED,
        code=("unrolling.layers.cbsa:CBSA", "unrolling.representatives:Representatives"),
    ),
    Claim(
        id="cbsa.pooling.grid",
        statement="Two-dimensional pooling averages the cells of each rectangle of the grid, square or not; class tokens"
        " stay out.",
        equation=r"bin $i$ of $n$ cells pooled to $m$ covers $\lfloor i n/m\rfloor\,..\,\lceil (i+1)n/m\rceil - 1$",
        source=f"{PAPER}, section 3.2",
        kind="identity",
        domain=cases(),
        subject=_grid_pool,
        measure=_pooling_measure("grid"),
        mutants=named(
            grid_transposed=lambda case, w: GridPool(_pool_size(case), _grid(case)[::-1]).initial(
                w, _class_tokens(case), None
            ),
            last_patch_dropped=lambda case, w: (
                GridPool(_pool_size(case), (1, w.shape[-2] - 1)).initial(w[..., :-1, :], 0, None)
                if w.shape[-2] > 1
                else 0 * _grid_pool(case, w)
            ),
            class_token_pooled=lambda case, w: GridPool(_pool_size(case), _grid(case)).initial(
                w.roll(1, -2), _class_tokens(case), None
            ),
            pooled_as_a_sequence=lambda case, w: SequencePool(int(np.prod(_pool_size(case)))).initial(
                w, _class_tokens(case), None
            ),
            order_of_representatives=lambda case, w: _grid_pool(case, w).flip(-2),
        ),
        structured=(*STRUCTURED, Case(tokens=12, seed=8), Case(tokens=11, seed=12), Case(tokens=6, m=6)),
        code=("unrolling.representatives:GridPool",),
    ),
    Claim(
        id="cbsa.pooling.sequence",
        statement="One-dimensional pooling averages consecutive tokens, also to more representatives than tokens.",
        equation=r"bin $i$ of $N$ tokens pooled to $m$ covers $\lfloor i N/m\rfloor\,..\,\lceil (i+1)N/m\rceil - 1$",
        source=f"{PAPER}, section 3.2, for sequences",
        kind="identity",
        domain=cases(),
        subject=_sequence_pool,
        measure=_pooling_measure("sequence"),
        mutants=named(
            class_token_pooled=lambda case, w: (
                SequencePool(case.m).initial(w, 0, None) if _class_tokens(case) else _sequence_pool(case, w).roll(1, -2)
            ),
            maximum_for_average=lambda case, w: torch.nn.functional.adaptive_max_pool1d(
                w[..., _class_tokens(case) :, :].mT.reshape(-1, w.shape[-1], w.shape[-2] - _class_tokens(case)),
                case.m,
            ).mT.reshape(*w.shape[:-2], case.m, -1),
            order_of_representatives=lambda case, w: _sequence_pool(case, w).flip(-2),
            half_dropped=lambda case, w: 2 * _sequence_pool(case, w),
        ),
        structured=(*STRUCTURED, Case(tokens=12, seed=5, m=5)),
        code=("unrolling.representatives:SequencePool",),
    ),
    Claim(
        id="cbsa.step.exact",
        statement="CBSA's exact form is a gradient step on the representatives' rate, its extraction weights frozen.",
        equation=r"$Z - \kappa\sum_k \beta\, U_k Q_k (I + \beta Q_k^\top Q_k)^{-1} A_k^\top = Z - \kappa\nabla F(Z),"
        r"\quad Q_k = U_k^\top Z A_k,\; \beta = \frac{p}{m\epsilon^2}$",
        source=f"{PAPER}, eq. 7",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(
            _exact,
            lambda case, layer, Z, b: paper.cbsa_eq7(
                Z, bases(case.U()), _extraction(case, Z), case.epsilon, layer.step.item()
            ),
            _frozen_rate,
            _exact_condition,
            _rate_bend,
        ),
        mutants=of_step(
            epsilon_for_its_square=_rebuilt(lambda case, P, w, q: -P.mT @ _contract(case, q, case.epsilon**0.5)),
            N_for_m=_rebuilt(lambda case, P, w, q: -P.mT @ _contract(case, q, count=case.tokens)),
            d_for_p=_rebuilt(
                lambda case, P, w, q: -P.mT @ _contract(case, q, case.epsilon * (case.head_dim / case.dim) ** 0.5)
            ),
            extraction_not_frozen=_with_graph(_unfrozen),
            another_heads_P_in_the_broadcast=_rebuilt(lambda case, P, w, q: -P.roll(1, -3).mT @ _contract(case, q)),
            contraction_dropped=_rebuilt(lambda case, P, w, q: -P.mT @ q),
            whole_tokens_contracted=_rebuilt(lambda case, P, w, q: -_contract(case, w)),
        ),
        structured=SEEDED,
        code=("unrolling.layers.cbsa:CBSA",),
        frozen="P_k",
    ),
    Claim(
        id="cbsa.step.softmax",
        statement="CBSA's softmax form is a gradient step on the representatives' energy, extraction weights and keys"
        " frozen.",
        equation=r"$Z + \kappa\sum_k U_k Q_k\,\mathrm{softmax}(s Q_k^\top Q_k)\, A_k^\top = Z - \kappa\nabla E(Z),"
        r"\quad E = -\sum_k\sum_a \mathrm{lse}_s(\bar{Q}_k^\top q_{k,a})$",
        source=f"{PAPER}, eq. 8",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(
            _softmax,
            lambda case, layer, Z, b: (
                Z + 0.5 * case.step * paper.cbsa_eq8(Z, bases(case.U()), _extraction(case, Z), case.softmax_scale)
            ),
            _frozen_energy,
            _softmax_condition,
            _energy_bend,
        ),
        mutants=of_step(
            softmax_over_the_wrong_axis=_rebuilt(lambda case, P, w, q: P.mT @ _attend(case, q, -2)),
            scale_doubled=_rebuilt(lambda case, P, w, q: P.mT @ _attend(case, q, scale=2.0)),
            another_heads_P_in_the_broadcast=_rebuilt(lambda case, P, w, q: P.roll(1, -3).mT @ _attend(case, q)),
            contraction_dropped=_rebuilt(lambda case, P, w, q: P.mT @ q),
            tokens_attend_to_representatives=_rebuilt(
                lambda case, P, w, q: torch.softmax(case.softmax_scale * (w @ q.mT), -1) @ q
            ),
        ),
        structured=SEEDED,
        code=("unrolling.layers.cbsa:CBSA",),
        frozen="P_k and Q̄_k",
    ),
    _special(
        "softmax",
        "With the tokens as their own representatives, CBSA is MSSA, softmax attention.",
        r"$Q = Z,\; A = I:\quad \sum_k U_k W_k\,\mathrm{softmax}(s W_k^\top W_k)$",
        f"{PAPER}, eq. 9",
        measure=_special_measure(
            lambda case: _layer(case, "softmax", representatives=Tokens(), step_size=1.0),
            lambda case, Z: paper.crate_eq14(Z, bases(case.U()), case.softmax_scale),
            _score,
        ),
        mutants=named(
            another_scale=lambda case, layer, x: MSSA(
                case.dim, case.heads, U=case.U(), scale=2 * case.softmax_scale, form="softmax"
            ).update(x),
            exact_form=lambda case, layer, x: MSSA(case.dim, case.heads, U=case.U(), epsilon=case.epsilon).update(x),
            opposite_sign=lambda case, layer, x: -layer.update(x),
            residual_added=lambda case, layer, x: layer(x),
            no_op=lambda case, layer, x: 0 * x,
            all_NaN=lambda case, layer, x: torch.nan * x,
        ),
    ),
    _special(
        "linear",
        "With the principal directions as representatives, CBSA's exact form is linear attention.",
        r"$-\frac{1}{\epsilon^2}\sum_k U_k (I + W_k W_k^\top/\epsilon^2)^{-1} W_k$",
        f"{PAPER}, eq. 12",
        measure=_special_measure(
            lambda case: _layer(case, "exact", representatives=SVD(), step_size=1.0),
            lambda case, Z: -paper.cbsa_eq12(Z, bases(case.U()), case.epsilon),
            _linear_condition,
        ),
        mutants=named(
            epsilon_for_its_square=lambda case, layer, x: (
                -SubspaceCodingRate(case.U(), case.epsilon**0.5, case.head_dim).gradient(x)
            ),
            N_for_p=lambda case, layer, x: -SubspaceCodingRate(case.U(), case.epsilon).gradient(x),
            channel_by_channel=lambda case, layer, x: -ChannelRate(case.U(), case.epsilon).gradient(x),
            opposite_sign=lambda case, layer, x: -layer.update(x),
            inverse_dropped=lambda case, layer, x: -lift(project(x, case.U()), case.U()) / case.epsilon**2,
            no_op=lambda case, layer, x: 0 * x,
            all_NaN=lambda case, layer, x: torch.nan * x,
        ),
    ),
    _special(
        "rotation",
        "Principal representatives mixed by an orthogonal matrix are as good: they give linear attention, too.",
        r"$Q_k' = Q_k O^\top,\; A_k' = A_k O^\top$ give the same update for every orthogonal $O$",
        f"{PAPER}, appendix B",
        subject=lambda case, U, P, x: RepresentativeRate(U, P, case.epsilon).gradient(x),
        measure=_rotation,
        mutants=named(
            not_orthogonal=lambda case, U, P, x: RepresentativeRate(U, 1.5 * P, case.epsilon).gradient(x),
            tokens_beta=lambda case, U, P, x: RepresentativeRate(U, P, case.epsilon, case.tokens).gradient(x),
            another_P_in_the_broadcast=lambda case, U, P, x: lift(
                P.flip(-2).mT @ CodingRate(case.epsilon).gradient(P @ project(x, U)), U
            ),
            all_NaN=lambda case, U, P, x: torch.nan * x,
        ),
    ),
    _special(
        "channel",
        "With scaled axes as representatives, CBSA's exact form is channel attention.",
        r"$-\frac{1}{\epsilon^2}\sum_k U_k\,\mathrm{diag}(1 + \Vert u_{k,c}^\top Z\Vert^2/\epsilon^2)^{-1} W_k$",
        f"{PAPER}, eq. 13",
        measure=_special_measure(
            lambda case: _layer(case, "exact", representatives=Axes(), step_size=1.0),
            lambda case, Z: -paper.cbsa_eq13(Z, bases(case.U()), case.epsilon),
            _linear_condition,
        ),
        mutants=named(
            epsilon_for_its_square=lambda case, layer, x: -ChannelRate(case.U(), case.epsilon**0.5).gradient(x),
            whole_Gram_matrix=lambda case, layer, x: (
                -SubspaceCodingRate(case.U(), case.epsilon, case.head_dim).gradient(x)
            ),
            mean_for_sum=lambda case, layer, x: -ChannelRate(case.U(), case.epsilon * len(x) ** 0.5).gradient(x),
            gate_over_tokens=lambda case, layer, x: (
                -lift(
                    (w := project(x, case.U())) / (case.epsilon**2 + w.square().sum(-1, keepdim=True)),
                    case.U(),
                )
            ),
            opposite_sign=lambda case, layer, x: -layer.update(x),
            no_op=lambda case, layer, x: 0 * x,
            all_NaN=lambda case, layer, x: torch.nan * x,
        ),
    ),
    Claim(
        id="cbsa.special.agent",
        statement="Without contraction CBSA is agent attention with tied matrices, a gradient step on the representatives'"
        " energy −½‖Q‖².",
        equation=r"$Z + \kappa\sum_k U_k U_k^\top Z A_k A_k^\top = Z + \kappa\nabla\frac{1}{2}\sum_k \Vert U_k^\top Z A_k\Vert^2$",
        source=f"{PAPER}, section 3.3",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(
            _agent,
            lambda case, layer, Z, b: (
                Z
                + 0.5
                * case.step
                * sum(Uk @ Uk.T @ Z @ Ak @ Ak.T for Uk, Ak in zip(bases(case.U()), _extraction(case, Z), strict=True))
            ),
            _frozen_norm,
            _agent_condition,
            lambda case, layer, z: max(norm(z), 1e-3),
        ),
        mutants=of_step(
            contracted=_rebuilt(lambda case, P, w, q: P.mT @ _attend(case, q)),
            tokens_attend_to_representatives=_rebuilt(
                lambda case, P, w, q: torch.softmax(case.softmax_scale * (w @ q.mT), -1) @ q
            ),
            another_heads_P_in_the_broadcast=_rebuilt(lambda case, P, w, q: P.roll(1, -3).mT @ q),
        ),
        structured=SEEDED,
        code=("unrolling.layers.cbsa:CBSA",),
        frozen="P_k",
    ),
    Claim(
        id="cbsa.certified",
        statement="With certified steps κL stays inside (0, 2) for every head of CBSA, and the layer's objective falls.",
        equation=r"$0 < \kappa_k L_k < 2, \quad L_k = \beta\Vert A_k\Vert_2^2 \leq \beta\,\Vert A_k\Vert_1\Vert A_k\Vert_\infty$",
        source="descent lemma; Hölder's bound of the spectral norm",
        kind="inequality",
        domain=cases(batches=(0,)),
        subject=certified,
        measure=certified_measure(_certified_tokens),
        mutants=named(
            steps_doubled=stretched(2.0),
            steps_one_percent_long=stretched(1.01),
            opposite_sign=lambda case, layer, x: (layer.kappa(layer.bounds_at(x)), 2 * x - layer(x)),
            no_op=lambda case, layer, x: (layer.kappa(layer.bounds_at(x)), x),
            all_NaN=lambda case, layer, x: (layer.kappa(layer.bounds_at(x)), x * torch.nan),
        ),
        structured=tuple(dataclasses.replace(case, seed=s) for case in SINGLE for s in (0, 1, 2, 3)),
        code=("unrolling.layers.cbsa:CBSA",),
        frozen="P_k; P_k and Q̄_k (softmax form)",
    ),
    Claim(
        id="cbsa.cost",
        statement="Softmax CBSA takes 2Nd² + 3Nmd + 2m²d multiply-adds: linear in tokens.",
        equation=r"$2 N d^2 + 3 N m d + 2 m^2 d$",
        source=f"{PAPER}, table 1",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=lambda N, d, m: 2 * N * d**2 + 3 * N * m * d + 2 * m**2 * d,
        measure=_cost,
        mutants=named(
            broadcast_forgotten=lambda N, d, m: 2 * N * d**2 + 2 * N * m * d + 2 * m**2 * d,
            quadratic_in_tokens=lambda N, d, m: 2 * N * d**2 + 2 * N**2 * d,
            contraction_forgotten=lambda N, d, m: 2 * N * d**2 + 3 * N * m * d,
        ),
        structured=(Case(), Case(tokens=1)),
        code=("unrolling.layers.cbsa:CBSA",),
        real=False,
    ),
    Claim(
        id="cbsa.official",
        statement="compat='official' reproduces CBSA's released layer number for number, where it parts from the equation.",
        equation=r"$R \leftarrow R + \mathrm{step}_{rep} W A,\quad \mathrm{step}_x\, R\,\mathrm{softmax}(s R^\top R) A^\top$,"
        r" $R$ pooled from all tokens but the last",
        source="the CBSA project's released attention layer, April 2026",
        kind="identity",
        domain=cases(batches=(0,), scales=(1.0,), kinds=("gaussian",)),
        subject=update,
        measure=_official,
        mutants=named(
            step_on_representatives_dropped=lambda case, layer, x: _without(layer, "step_rep").update(x),
            bias_dropped=lambda case, layer, x: layer.update(x) - layer.output.bias,
            residual_added=lambda case, layer, x: layer(x),
            first_token_dropped=lambda case, layer, x: layer.update(x.roll(-1, -2)).roll(1, -2),
            opposite_sign=lambda case, layer, x: -layer.update(x),
            all_NaN=lambda case, layer, x: layer.update(x) * torch.nan,
        ),
        structured=(Case(), Case(tokens=3, heads=1), Case(tokens=9, heads=3)),
        code=("unrolling.layers.cbsa:CBSA", "unrolling.representatives:OfficialGridPool"),
        real=False,
    ),
    Claim(
        id="cbsa.sign.softmax_descends",
        statement="Subtracting CBSA's softmax form descends the representatives' rate at all tokens and queries.",
        equation=r"$\langle \nabla F(Z),\; \sum_k U_k Q_k\,\mathrm{softmax}(s Q_k^\top Q_k) A_k^\top\rangle > 0$",
        source=f"natural to believe; {PAPER}, eq. 8 as the stand-in of eq. 7",
        kind="refuted",
        domain=cases(batches=(0,)),
        subject=_softmax_update,
        measure=_sign,
        mutants=named(
            gradient_itself=lambda case, f, x, gradient, s: gradient,
            agent_form=lambda case, f, x, gradient, s: lift(f.P.mT @ f.representatives(x), f.U),
        ),
        structured=(
            dataclasses.replace(WITNESS_6, m=6),
            dataclasses.replace(WITNESS_9, m=9),
            dataclasses.replace(WITNESS, m=22),
            Case(tokens=40, heads=3, head_dim=4, m=8),
        ),
        code=("unrolling.layers.cbsa:CBSA",),
        frozen="P_k",
        correction="Six learned queries that each pick one token of MSSA's witness (mssa.sign.minus_descends) make"
        " representatives equal to those tokens: the same inner product, below zero. In random draws it does descend.",
    ),
)


def _without(layer: CBSA, name: str) -> CBSA:
    """The released layer with one of its steps set to 1: Q = Q_ini + P W."""
    with torch.no_grad():
        getattr(layer, name).fill_(1.0)
    return layer
