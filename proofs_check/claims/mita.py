"""Claims on MiTA: its landmarks, selection and routing, its step, its error, its limits, and its relatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolling import (
    LearnedQueries,
    MiTA,
    agent_attention,
    block_attention,
    compressed_block_attention,
    full_attention,
    linear_attention,
    merge_attention,
    mita,
    projected_attention,
    top_k_attention,
)
from unrolling.fast_weights import taxonomy

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..fast_weights import (
    Matrix,
    Operands,
    block_of,
    experts_of,
    gates,
    keys_of,
    masses,
    multiplicities,
    operands,
    operator,
    projection_measure,
    report,
)
from ..measures import columns, identity, norm, reference, score_condition, slices, step_measure
from ..mutants import forward, named, of_step
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .cbsa import _class_tokens, _initial, _strategy
from .coding_rate import _count, combine
from .softmax import (
    attention_condition,
    head_rows,
    layer_of,
    maps_of,
    output_blocks,
    plain,
    rebuilt,
    step_bend,
    stepped,
)

__all__ = ["CLAIMS"]

MITA = "MiTA, arXiv 2602.01219"
SEEDED = tuple(dataclasses.replace(case, seed=i) for i, case in enumerate((*STRUCTURED, *STRUCTURED)))
"""The seed picks strategy, class token, projections and options."""


def _options(case: Case) -> dict[str, Any]:
    rng = case.rng("options")
    shared = bool(rng.random() < 0.75)
    return {
        "shared": shared,
        "keys_per_expert": 9 if case.given is not None and case.tokens > 20 else int(rng.integers(not shared, 5)),
        "experts_per_query": min(int(rng.integers(1, 4)), case.m),
        "deduplicate": bool(rng.integers(2)),
        "twice_scaled": bool(rng.integers(2)),
    }


def _make(case: Case) -> MiTA:
    return layer_of(MiTA, case, landmarks=_strategy(case), class_tokens=_class_tokens(case), **_options(case))


Head = tuple[Matrix, Matrix, Matrix, Matrix]


def _heads(case: Case, Z: Matrix) -> list[Head]:
    """Queries, landmarks, keys and values of every head, columns, by the transcriptions."""
    Q, K, V = (head_rows(case, part) for part in paper.query_key_value(Z, plain(maps_of(case))))
    return [(q, _initial(case, q, h), k, v) for h, (q, k, v) in enumerate(zip(Q, K, V, strict=True))]


def _paper_step(case: Case, layer: MiTA, Z: Matrix, b: int) -> Matrix:
    chosen, (outputs, bias) = _options(case), output_blocks(case)
    keys, routed = chosen["keys_per_expert"], chosen["experts_per_query"]
    read = sum(
        lift @ paper.mita_reads(q, r, k, v, case.softmax_scale, keys, routed, chosen)
        for (q, r, k, v), lift in zip(_heads(case, Z), outputs, strict=True)
    )
    return Z + case.step * (read + bias[:, None] - Z)


def _step_condition(case: Case, layer: MiTA, z: Tensor) -> float:
    """As for attention; landmarks are queries of the keys, and keys of the queries."""
    with torch.no_grad():
        q, k, r = layer.queries(z), layer.keys(z), layer.landmarks(z)
    probed = max(score_condition(r, k, case.softmax_scale), score_condition(q, r, case.softmax_scale))
    return probed * attention_condition(case, layer, z)


def _frozen_regression(case: Case, layer: MiTA, z: Tensor, b: int) -> Any:
    """Every query has a regression of its own, over its own support."""
    chosen, (outputs, bias) = _options(case), output_blocks(case)
    regressions = []
    for (q, r, k, v), lift in zip(_heads(case, columns(z.reshape(-1, *z.shape[-2:])[b])), outputs, strict=True):
        experts = paper.mita_experts(r, k, chosen["keys_per_expert"])
        routes = paper.mita_routes(q, r, chosen["experts_per_query"])
        for i in range(q.shape[1]):
            scores, values = paper.mita_support(q[:, i], r, k, v, case.softmax_scale, experts, routes[i], chosen)
            towards = case.heads * (lift @ values) + bias[:, None]
            regressions.append((i, paper.softmax_columns(scores[:, None]), towards))
    return lambda Z: (
        sum(paper.kernel_regression_value(Z[:, [i]], a, towards) for i, a, towards in regressions) / case.heads
    )


def _same_choices(case: Case) -> bool:
    """Single precision may break a near tie the other way; that is a choice as good, judged by its own claim."""
    if case.dtype == "float64":
        return True
    x, exact = case.x(), reference(case)
    with torch.no_grad():
        one, two = _make(case), _make(exact)
        z = exact.x()
        return all(
            bool(torch.equal(a.sort(-1).values, b.sort(-1).values))
            for a, b in ((one.selection(x), two.selection(z)), (one.routing(x), two.routing(z)))
        )


def _where_resolved(measure: Callable[[Any, Case], Measurement]) -> Callable[[Any, Case], Measurement]:
    def measured(subject: Any, case: Case) -> Measurement:
        return measure(subject, case) if _same_choices(case) else Measurement(evidence=False)

    return measured


def _wrong_options(**changes: Any) -> Callable[[Case, MiTA, Tensor], Tensor]:
    """The step of a layer with other options: changes are values, or functions of the case's."""

    def subject(case: Case, layer: MiTA, x: Tensor) -> Tensor:
        q, k, v = layer.queries(x), layer.keys(x), layer.values(x)
        options = _options(case) | {"scale": layer.scale}
        for name, change in changes.items():
            options[name] = change(options[name]) if callable(change) else change
        if not options["shared"] and options["keys_per_expert"] == 0:
            return 0 * x
        read = mita(q, k, v, layer.landmarks(x), **options)
        return stepped(rebuilt(lambda case, q, k, v: read))(case, layer, x)

    return subject


def _reweighted(change: Callable[[Tensor, int], Tensor]) -> Callable[[Case, MiTA, Tensor], Tensor]:
    """The step with other weights on the layer's pairs: change(weights, number of landmark pairs)."""

    def subject(case: Case, layer: MiTA, x: Tensor) -> Tensor:
        with torch.no_grad():
            weights, values, index = layer.pairs(x)
            m = values.shape[-2] - x.shape[-2]
            flat = index.flatten(-2).unsqueeze(-1).expand(*index.shape[:-2], -1, values.shape[-1])
            picked = values.gather(-2, flat).unflatten(-2, index.shape[-2:])
            read = (change(weights, m).unsqueeze(-2) @ picked).squeeze(-2)
            return stepped(rebuilt(lambda case, q, k, v: read))(case, layer, x)

    return subject


def _other_experts(case: Case, layer: MiTA, x: Tensor) -> Tensor:
    """The keys that another head's landmarks chose."""
    given = (layer.queries(x), layer.keys(x), layer.values(x), layer.landmarks(x))
    experts = layer.selection(x).roll(1, -3)
    read = mita(*given, scale=layer.scale, experts=experts, **_options(case))
    return stepped(rebuilt(lambda case, q, k, v: read))(case, layer, x)


def _apart(weights: Tensor, m: int) -> Tensor:
    """Two softmaxes side by side, halved."""
    parts = [part / part.sum(-1, keepdim=True) for part in (weights[..., :m], weights[..., m:]) if part.shape[-1]]
    return torch.cat(parts, -1) / len(parts)


def _auxiliary(compare: Callable[..., Measurement]) -> Callable[[Any, Case], Measurement]:
    """A named method of the layer, token set by token set: compare(case, found, point, exact case, exact layer)."""

    def measure(subject: Any, case: Case) -> Measurement:
        x, exact = case.x(), reference(case)
        with torch.no_grad():
            found = subject(case, _make(case), x)
            layer, parts = _make(exact), []
            for g, (point,) in zip(found.reshape(-1, *found.shape[-3:]), slices(exact.x()), strict=True):
                parts.append(compare(case, g, point, exact, layer))
        return combine(*parts)

    return measure


def _projection_condition(case: Case, point: Tensor, size: float) -> float:
    """Projections and averages of tokens cancel to what is compared."""
    maps = maps_of(case)
    widest = max(norm(maps[name]) * norm(point) + norm(maps[f"{name} bias"]) for name in ("query", "key", "value"))
    return 1.0 + widest / max(size, 1e-300)


def _landmarks_compare(case: Case, got: Tensor, point: Tensor, exact: Case, layer: MiTA) -> Measurement:
    want = np.stack([r.T for _, r, _, _ in _heads(exact, columns(point))])
    return identity("pooled queries", got, want, case.dtype, _projection_condition(exact, point, norm(want)))


def _landmark_values_compare(case: Case, got: Tensor, point: Tensor, exact: Case, layer: MiTA) -> Measurement:
    want = np.stack(
        [paper.mita_landmark_values(r, k, v, exact.softmax_scale).T for _, r, k, v in _heads(exact, columns(point))]
    )
    condition = score_condition(layer.landmarks(point), layer.keys(point), exact.softmax_scale)
    return identity(
        "what landmarks read", got, want, case.dtype, condition * _projection_condition(exact, point, norm(want))
    )


def _chosen_measure(method: str, count: str) -> Callable[[Any, Case], Measurement]:
    """A choice is right if its products are the largest, to rounding, and exact ties go to the lower index."""

    def compare(case: Case, got: Tensor, point: Tensor, exact: Case, layer: MiTA) -> Measurement:
        done, evidence = [], False
        for (q, r, k, _), index in zip(_heads(exact, columns(point)), got, strict=True):
            products = r.T @ k if method == "selection" else q.T @ r
            kept = min(_options(exact)[count], products.shape[1])
            if index.shape != (len(products), kept):
                return Measurement((Comparison("shape", np.inf, 0.0),))
            if kept == 0:
                continue
            best = -np.sort(-products, axis=1)[:, :kept]
            found = np.take_along_axis(products, index.clamp(0, products.shape[1] - 1).numpy(), axis=1)
            twice = sum(len(row) - len(set(row.tolist())) for row in index)
            left, right = (r, k) if method == "selection" else (r, q)
            size = float(np.linalg.norm(left, axis=0).max() * np.linalg.norm(right, axis=0).max())
            exactness = _projection_condition(exact, point, norm(left)) * _projection_condition(
                exact, point, norm(right)
            )
            done.append(Comparison("chosen twice", float(twice), 0.0))
            done.append(
                Comparison(
                    "largest products",
                    float(np.abs(best - found).max()) / max(size, 1e-300),
                    tolerance(case.dtype, exactness),
                )
            )
            evidence = evidence or (size > 0 and products.shape[1] > kept)
        return Measurement(tuple(done), evidence)

    plain_measure = _auxiliary(compare)

    def measure(subject: Any, case: Case) -> Measurement:
        measured = plain_measure(subject, case)
        layer, x = _with_ties(case)
        got = subject(case, layer, x)
        for h in range(case.heads):
            r = layer.strategy.queries[h].detach().double().numpy().T
            w = layer.queries(x)[h].double().numpy().T
            want = paper.mita_experts(r, w, 3) if method == "selection" else paper.mita_routes(w, r, 2)
            same = got[h].tolist() == want
            measured = combine(
                measured, Measurement((Comparison("ties to the lower index", 0.0 if same else 1.0, 0.0),))
            )
        return measured

    return measure


def _with_ties(case: Case) -> tuple[MiTA, Tensor]:
    """Whole numbers, whose products are exact and often equal."""
    learned = LearnedQueries(4, case.heads, case.head_dim)
    learned.queries.data = torch.from_numpy(case.rng("ties").integers(-1, 2, size=learned.queries.shape)).float()
    dim = case.heads * case.head_dim
    x = torch.from_numpy(case.rng("tied tokens").integers(-1, 2, size=(6, dim))).to(case.torch_dtype)
    options = {"landmarks": learned, "keys_per_expert": 3, "experts_per_query": 2, "projections": "identity"}
    return MiTA(dim, case.heads, case.head_dim, **options).to(case.torch_dtype), x


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.sort(-1, descending=True, stable=True).indices[..., :count]


def _choosing(scores: Callable[[Tensor, Tensor], Tensor], method: str, higher: bool = False) -> Any:
    """A wrong choice: by other scores of (landmarks or queries, candidates), or with ties to the higher index."""

    def subject(case: Case, layer: MiTA, x: Tensor) -> Tensor:
        marks = layer.landmarks(x)
        pair = (marks, layer.keys(x)) if method == "selection" else (layer.queries(x), marks)
        table = scores(*pair)
        count = layer.keys_per_expert if method == "selection" else layer.experts_per_query
        if higher:
            return table.shape[-1] - 1 - _top(table.flip(-1), count)
        return _top(table, count)

    return subject


def _choice_mutants(method: str) -> dict[str, Any]:
    return {
        "smallest_products": _choosing(lambda a, b: -(a @ b.mT), method),
        "nearest_by_distance": _choosing(lambda a, b: -torch.cdist(a, b), method),
        "candidates_normalised": _choosing(lambda a, b: a @ torch.nn.functional.normalize(b, dim=-1).mT, method),
        "another_head": _choosing(lambda a, b: a @ b.roll(1, -3).mT, method),
        "higher_index_wins": _choosing(lambda a, b: a @ b.mT, method, higher=True),
        "the_first_ones": _choosing(lambda a, b: 0 * (a @ b.mT), method),
    }


def _mita(**fixed: Any) -> Callable[..., Tensor]:
    """MiTA of the operands: fixed options are values, or functions of the case."""

    def subject(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
        options = {name: value(case) if callable(value) else value for name, value in fixed.items()}
        return mita(q, k, v, r, **{"scale": case.softmax_scale, **options})

    return subject


def _as_blocks(case: Case, q: Tensor, k: Tensor, v: Tensor, centre: str = "mean", count: int = 0) -> Tensor:
    """Blocks of tokens as experts, their mean keys as landmarks; a short last block repeats its last key, once counted."""
    block, last = block_of(case), k.shape[-2] - 1
    starts = range(0, k.shape[-2], block)
    experts = torch.tensor([[min(a + i, last) for i in range(block)] for a in starts])
    parts = [k[..., a : a + block, :] for a in starts]
    routers = torch.stack([part.mean(-2) if centre == "mean" else part[..., 0, :] for part in parts], -2)
    count = count or 1 + case.seed % 2
    options = {"experts_per_query": count, "shared": False, "deduplicate": True, "experts": experts}
    return mita(q, k, v, routers, scale=case.softmax_scale, **options)


def _merge_parts(case: Case) -> tuple[Tensor, ...]:
    """Scores and values of two sets of pairs, and a direction for the output."""
    N, a, b, p = case.tokens, case.m, 1 + case.seed % 5, case.head_dim
    sharp = max(case.sharpness, 0.1)
    return (
        sharp * case.draw("scores a", N, a),
        case.scale * case.draw("values a", a, p),
        sharp * case.draw("scores b", N, b),
        case.scale * case.draw("values b", b, p),
        case.draw("direction", N, p),
    )


def _merged(A: Tensor, V: Tensor, B: Tensor, W: Tensor, detach: str = "") -> Tensor:
    """Two attentions merged by their log-sum-exps; ``detach`` breaks the graph at "lse" or "output"."""
    parts = []
    for scores, values in ((A, V), (B, W)):
        output, lse = torch.softmax(scores, -1) @ values, torch.logsumexp(scores, -1)
        parts.append((output.detach() if detach == "output" else output, lse.detach() if detach == "lse" else lse))
    return merge_attention(parts)


def _merge_value(subject: Any, case: Case) -> Measurement:
    got = subject(case, *_merge_parts(case)[:4])
    A, V, B, W, _ = (part.double().numpy() for part in _merge_parts(reference(case)))
    weights = paper.softmax_columns(np.concatenate([A, B], axis=1).T)
    want = (np.concatenate([V, W]).T @ weights).T
    condition = (1 + float(np.abs(A).max() + np.abs(B).max())) * (1 + norm(V) + norm(W)) / max(norm(want), 1e-300)
    return identity("one softmax", got, want, case.dtype, condition)


def _merge_gradient(subject: Any, case: Case) -> Measurement:
    """d⟨G, attention⟩/d(score j) = a_j G·(v_j − o) for the single softmax over all pairs."""
    A, V, B, W, G = _merge_parts(case)
    got = subject(case, A, V, B, W, G)
    A, V, B, W, G = _merge_parts(reference(case))
    values, weights = torch.cat([V, W]).numpy(), paper.softmax_columns(torch.cat([A, B], -1).numpy().T)
    want = np.zeros_like(A.numpy())
    for i in range(len(want)):
        read = values.T @ weights[:, i]
        for j in range(want.shape[1]):
            want[i, j] = weights[j, i] * (G[i].numpy() @ (values[j] - read))
    condition = (1 + float(A.abs().max() + B.abs().max())) * (1 + norm(values) * norm(G) / max(norm(want), 1e-300))
    return identity("gradient through both parts", got, want, case.dtype, condition)


def _gradient_of_merge(detach: str = "", factor: float = 1.0) -> Callable[..., Tensor]:
    def subject(case: Case, A: Tensor, V: Tensor, B: Tensor, W: Tensor, G: Tensor) -> Tensor:
        scores = A.clone().requires_grad_()
        (found,) = torch.autograd.grad((_merged(scores, V, B, W, detach) * G).sum(), scores)
        return factor * found

    return subject


def _bound_options(case: Case) -> dict[str, Any]:
    return _options(case) | {"deduplicate": True}


def _bound(case: Case, delta: Matrix, sigma: Matrix, largest: float) -> Matrix:
    return 2.0 * np.maximum(delta, sigma) * largest


def _bound_measure(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    given, options = operands(exact), _bound_options(exact)
    with torch.no_grad():
        got = mita(*given, scale=exact.softmax_scale, **options)
    _, full, delta, sigma = masses(exact, given, options)
    error = np.linalg.norm(got.reshape(-1, got.shape[-1]).numpy() - full, axis=1)
    largest = np.repeat(given[2].norm(dim=-1).amax(-1).numpy(), case.tokens)
    bound = subject(case, delta, sigma, largest)
    scale = float(largest.max())
    allowed = tolerance("float64", score_condition(given[0], given[1], exact.softmax_scale))
    done = [Comparison("error beyond the bound", float((error - bound).max()) / scale, allowed)]
    # Two tokens of opposite values, of which the second is left out: the error is the bound itself.
    v, q = given[2][0, 0], given[0][0, :1]
    share = float(exact.rng("share").uniform(0.05, 0.45))
    far = q * (float(np.log(share / (1 - share))) / (exact.softmax_scale * float(q.square().sum())))
    keys, values = torch.cat([0 * q, far])[None], torch.stack([v, -v])[None]
    two = mita(q[None], keys, values, -far[None], keys_per_expert=1, shared=False, scale=exact.softmax_scale)
    apart = norm(two[0, 0] - full_attention(q[None], keys, values, exact.softmax_scale)[0, 0])
    attained = subject(case, np.array([share]), np.array([0.0]), norm(v))
    done.append(Comparison("attained by two opposite values", abs(apart / float(attained[0]) - 1), 1e-9))
    tight = error / np.maximum(2 * np.maximum(delta, sigma) * largest, 1e-300)
    return Measurement(tuple(done), values={"largest share of the bound reached": float(tight.max())})


def _published_measure(subject: Any, case: Case) -> Measurement:
    """Whether ‖MiTA − full‖ ≤ 2δ max‖v‖ with the published options: a shared expert, or keys counted twice."""
    exact = reference(case)
    given, options = operands(exact), _published_options(exact)
    full = full_attention(*given[:3], exact.softmax_scale)
    got, bound = subject(exact, given, options)
    error = (got - full).norm(dim=-1)
    excess = float((error - bound).max()) / float(given[2].norm(dim=-1).max())
    return Measurement(
        (Comparison("error is a number", 0.0 if excess == excess else np.nan, 0.0),),
        True,
        {"error beyond 2δ max‖v‖, over max‖v‖": excess},
        truth=excess <= 1e-9,
    )


def _published_options(case: Case) -> dict[str, Any]:
    shared = case.seed % 2 == 0
    return {
        "shared": shared,
        "keys_per_expert": case.tokens if shared else 2,
        "experts_per_query": min(1 if shared else 2, case.m),
        "deduplicate": False,
        "twice_scaled": False,
    }


def _with_delta(case: Case, given: Operands, options: dict[str, Any], **changes: Any) -> tuple[Tensor, Tensor]:
    options = options | changes
    _, _, delta, _ = masses(case, given, options)
    bound = 2 * torch.from_numpy(delta).reshape(case.heads, -1) * given[2].norm(dim=-1).amax(-1, keepdim=True)
    return mita(*given, scale=case.softmax_scale, **options), bound


def _with_both(case: Case, given: Operands, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    options = options | {"deduplicate": True}
    _, _, delta, sigma = masses(case, given, options)
    largest = given[2].norm(dim=-1).amax(-1, keepdim=True)
    bound = 2 * torch.from_numpy(np.maximum(delta, sigma)).reshape(case.heads, -1) * largest
    return mita(*given, scale=case.softmax_scale, **options), bound


def _self_routed(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    return mita(q, k, v, q, keys_per_expert=keys_of(case), shared=False, scale=case.softmax_scale)


def _any_norm(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    given = operands(exact)
    want = top_k_attention(*given[:3], keys_of(exact), exact.softmax_scale)
    off = norm(subject(exact, *given) - want) / max(norm(want), 1e-300)
    return Measurement((), True, {"distance from top-k attention": off}, truth=off <= 1e-9)


def _cost_of(N: int, d: int, m: int, k: int, s: int, shared: bool) -> int:
    return 4 * N * d**2 + (4 if shared else 2) * N * m * d + 2 * N * s * k * d


def _cost(subject: Any, case: Case) -> Measurement:
    N, m, k, s, shared = 6 * case.tokens, case.m, 1 + case.seed % 6, min(2, case.m), case.seed % 2 == 0
    options = {"keys_per_expert": k, "experts_per_query": s, "shared": shared}
    layer = MiTA(12, 3, landmarks=LearnedQueries(m, 3, 4), **options)
    x = torch.randn(1, N, 12, generator=torch.Generator().manual_seed(case.seed))
    with torch.no_grad():
        counted = _count(lambda: layer(x))
    want = subject(N, 12, m, k, s, shared)
    return Measurement((Comparison("multiply-adds", abs(counted - want), 0.0),), values={"multiply-adds": counted})


def _taxonomy_cost(subject: Any, case: Case) -> Measurement:
    n, m, s = block_of(case), case.m, 1 + case.seed % 2
    N = n * m * (1 + case.tokens % 3) * s
    q, k, v = (case.draw(name, 3, N, 4).to(torch.float64) for name in ("op q", "op k", "op v"))
    rows = taxonomy(m, 1 + case.seed % min(N, 5), n, min(s, m))
    done = [
        Comparison(row.name, abs(_count(lambda row=row: row.run(q, k, v)) - subject(row, N, 12, 4)), 0.0)
        for row in rows
    ]
    return Measurement(tuple(done))


def _operands_of_tokens(case: Case) -> Operands:
    """Queries, keys, values and landmarks that a layer makes of the case's first token set, every landmark strategy."""
    layer = _make(dataclasses.replace(case, batch=0))
    x = case.x() if case.given is not None or not case.batch else case.x()[0]
    x = x[0] if x.ndim == 3 else x
    with torch.no_grad():
        return layer.queries(x), layer.keys(x), layer.values(x), layer.landmarks(x)


def _report_measure(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    given = _operands_of_tokens(exact)
    keys = max(1, exact.tokens // 8) if exact.tokens > 20 else 2
    options = {
        "shared": True,
        "keys_per_expert": keys,
        "experts_per_query": 1,
        "deduplicate": True,
        "twice_scaled": False,
    }
    got = subject(exact, given, options)
    q, k, v, r = (part[:1] for part in given) if exact.tokens > 20 else given
    few = (q[:, :6], k, v, r)  # the definition is slow: it is asked about six queries
    mine = subject(exact, few, options)
    read, full, delta, sigma = masses(exact, few, options)
    wanted = {
        "mass of full attention outside the selected keys": float(delta.mean()),
        "mass on the landmarks": float(sigma.mean()),
        "relative error of MiTA": norm(read - full) / max(norm(full), 1e-300),
    }
    sharp = score_condition(given[0], given[1], exact.softmax_scale)
    cancelled = 1 + norm(given[2]) / max(norm(full), 1e-300)
    allowed = tolerance("float64", sharp * cancelled)
    return Measurement(
        tuple(Comparison(name, abs(mine[name] - want), allowed) for name, want in wanted.items()),
        norm(full) > 0,
        got,
    )


def _limit(name: str, statement: str, equation: str, **more: Any) -> Claim:
    return Claim(
        id=f"mita.{name}",
        statement=statement,
        equation=equation,
        source=more.pop("source", MITA),
        kind="identity",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        structured=tuple(dataclasses.replace(case, batch=0) for case in SEEDED),
        code=more.pop("code", ("unrolling.layers.mita:mita",)),
        real=False,
        **more,
    )


def _relative(name: str, statement: str, equation: str, source: str, function: str, **more: Any) -> Claim:
    return _limit(
        f"taxonomy.{name}", statement, equation, source=source, code=(f"unrolling.fast_weights:{function}",), **more
    )


def _nan(case: Case, q: Tensor, *rest: Tensor) -> Tensor:
    return q * torch.nan


def _agent_cbsa(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """CBSA's broadcast: the extraction weights transposed, normalised over tokens."""
    P = torch.softmax(case.softmax_scale * (r @ q.mT), -1)
    return P.mT @ (torch.softmax(case.softmax_scale * (r @ k.mT), -1) @ v)


def _one_by_one(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Every query alone with itself for a landmark, so that it is routed to itself."""
    rows = [_self_routed(case, row, k, v, r) for row in q.split(1, dim=-2)]
    return torch.cat(rows, dim=-2)


CLAIMS = (
    Claim(
        id="mita.landmarks",
        statement="The landmarks are the queries pooled over a grid or a sequence, strided, or learned; class tokens stay out.",
        equation=r"$\tilde{q}_i = \mathrm{mean}(q_j : j \in \mathrm{bin}_i)$",
        source=f"{MITA}: landmark queries",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.landmarks(x),
        measure=_auxiliary(_landmarks_compare),
        mutants=named(
            keys_pooled=lambda case, layer, x: layer.strategy.initial(layer.keys(x), layer.class_tokens, None),
            class_token_pooled=lambda case, layer, x: layer.strategy.initial(
                layer.queries(x).roll(1, -2), layer.class_tokens, None
            ),
            order_of_landmarks=lambda case, layer, x: layer.landmarks(x).flip(-2),
            another_head=lambda case, layer, x: layer.landmarks(x).roll(1, -3),
            doubled=lambda case, layer, x: 2 * layer.landmarks(x),
            all_NaN=lambda case, layer, x: layer.landmarks(x) * torch.nan,
        ),
        structured=SEEDED,
        code=("unrolling.layers.mita:MiTA", "unrolling.representatives:Representatives"),
    ),
    Claim(
        id="mita.landmark_values",
        statement="The shared expert's values are what the landmarks read of all tokens by softmax attention.",
        equation=r"$\tilde{v}_i = V\,\mathrm{softmax}(s K^\top \tilde{q}_i)$",
        source=f"{MITA}: shared expert",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.landmark_values(x),
        measure=_auxiliary(_landmark_values_compare),
        mutants=named(
            softmax_over_landmarks=lambda case, layer, x: (
                torch.softmax(layer.scale * (layer.landmarks(x) @ layer.keys(x).mT), -2) @ layer.values(x)
            ),
            scale_doubled=lambda case, layer, x: full_attention(
                layer.landmarks(x), layer.keys(x), layer.values(x), 2 * layer.scale
            ),
            keys_for_values=lambda case, layer, x: full_attention(
                layer.landmarks(x), layer.keys(x), layer.keys(x), layer.scale
            ),
            queries_for_keys=lambda case, layer, x: full_attention(
                layer.landmarks(x), layer.queries(x), layer.values(x), layer.scale
            ),
            another_head=lambda case, layer, x: layer.landmark_values(x).roll(1, -3),
            all_NaN=lambda case, layer, x: layer.landmark_values(x) * torch.nan,
        ),
        structured=SEEDED,
        code=("unrolling.layers.mita:MiTA",),
    ),
    Claim(
        id="mita.selection",
        statement="Expert i holds the keys with the largest products with landmark i; among equals the lower index.",
        equation=r"$E_i = \mathrm{top}_k \{\tilde{q}_i^\top k_j\}_j$",
        source=f"{MITA}: routed experts; the tie rule is ours",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.selection(x),
        measure=_chosen_measure("selection", "keys_per_expert"),
        mutants=named(**_choice_mutants("selection")),
        structured=SEEDED,
        code=("unrolling.layers.mita:MiTA", "unrolling.layers.mita:top_indices"),
    ),
    Claim(
        id="mita.routing",
        statement="A query goes to the experts of the landmarks with the largest products with it; among equals the lower"
        " index.",
        equation=r"$\mathrm{top}_s \{\tilde{q}_i^\top q\}_i$",
        source=f"{MITA}: routing; the tie rule is ours",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.routing(x),
        measure=_chosen_measure("routing", "experts_per_query"),
        mutants=named(**_choice_mutants("routing")),
        structured=SEEDED,
        code=("unrolling.layers.mita:MiTA", "unrolling.layers.mita:top_indices"),
    ),
    Claim(
        id="mita.step.exact",
        statement="A step towards MiTA is a gradient step of kernel regression on its support: landmark pairs and routed pairs.",
        equation=r"$Z - \kappa(Z - \mathrm{MiTA}(Z)) = Z - \kappa\nabla f(Z),\quad"
        r" f = \frac{1}{2K}\sum_k\sum_i\sum_{j \in S_{k,i}} a_{k,ij}\Vert o_i - K O_k v_{k,j} - b\Vert^2$",
        source=f"{MITA}; the released code's twice-scaled landmark keys as an option",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=_where_resolved(step_measure(_make, _paper_step, _frozen_regression, _step_condition, step_bend)),
        mutants=of_step(
            shared_expert_left_out_or_added=_wrong_options(shared=lambda on: not on),
            one_key_fewer=_wrong_options(keys_per_expert=lambda k: max(0, k - 1)),
            one_expert_more=_wrong_options(experts_per_query=lambda s: s + 1),
            duplicates_counted_otherwise=_wrong_options(deduplicate=lambda on: not on),
            landmark_keys_scaled_otherwise=_wrong_options(twice_scaled=lambda on: not on),
            scale_doubled=_wrong_options(scale=lambda s: 2 * s),
            two_softmaxes_side_by_side=_reweighted(_apart),
            uniform_weights=_reweighted(lambda w, m: torch.full_like(w, 1.0 / w.shape[-1])),
            another_heads_experts=_other_experts,
            shrinkage_dropped=lambda case, layer, x: x + case.step * layer.attention(x),
        ),
        structured=SEEDED,
        code=("unrolling.layers.mita:MiTA", "objectives.kernel_regression:KernelRegression"),
        frozen="keys, values, landmarks, selection and routing",
        largest=120,
    ),
    _limit(
        "merge.value",
        "Two attentions merged by their log-sum-exps are one softmax over all their pairs.",
        r"$\sum_i \frac{e^{\ell_i}}{\sum_j e^{\ell_j}}\, V_i\,\mathrm{softmax}(x_i) ="
        r" [V_1, V_2]\,\mathrm{softmax}([x_1; x_2])$",
        subject=lambda case, A, V, B, W: _merged(A, V, B, W),
        measure=_merge_value,
        code=("unrolling.layers.mita:merge_attention",),
        mutants=named(
            equal_shares=lambda case, A, V, B, W: 0.5 * (torch.softmax(A, -1) @ V + torch.softmax(B, -1) @ W),
            added=lambda case, A, V, B, W: torch.softmax(A, -1) @ V + torch.softmax(B, -1) @ W,
            largest_score_for_the_log_sum_exp=lambda case, A, V, B, W: merge_attention(
                [(torch.softmax(A, -1) @ V, A.amax(-1)), (torch.softmax(B, -1) @ W, B.amax(-1))]
            ),
            shares_exchanged=lambda case, A, V, B, W: merge_attention(
                [(torch.softmax(A, -1) @ V, B.logsumexp(-1)), (torch.softmax(B, -1) @ W, A.logsumexp(-1))]
            ),
            second_part_dropped=lambda case, A, V, B, W: torch.softmax(A, -1) @ V,
            all_NaN=lambda case, A, V, B, W: torch.nan * (torch.softmax(A, -1) @ V),
        ),
    ),
    _limit(
        "merge.gradient",
        "The gradient of the merged attention is that of the single softmax, provided it flows through the log-sum-exps.",
        r"$\partial \langle g, o\rangle / \partial x_j = a_j\, g^\top (v_j - o)$",
        subject=_gradient_of_merge(),
        measure=_merge_gradient,
        code=("unrolling.layers.mita:merge_attention",),
        mutants=named(
            not_through_the_log_sum_exps=_gradient_of_merge("lse"),
            not_through_the_outputs=_gradient_of_merge("output"),
            half=_gradient_of_merge(factor=0.5),
            opposite_sign=_gradient_of_merge(factor=-1.0),
            all_NaN=_gradient_of_merge(factor=float("nan")),
        ),
    ),
    Claim(
        id="mita.error.bound",
        statement="MiTA with every key counted once is off by at most twice the larger of two masses: of full attention outside"
        " the selected keys, and of MiTA on the landmarks; two opposite values attain it.",
        equation=r"$\Vert \mathrm{MiTA}(q) - \mathrm{attention}(q)\Vert \leq 2\max(\delta, \sigma)\max_j\Vert v_j\Vert$",
        source=f"derived: full = (1 − δ) r + δ o, MiTA = (1 − σ) r + σ h, all in the hull of the values; {MITA} for σ = 0",
        kind="bound",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=_bound,
        measure=_bound_measure,
        mutants=named(
            halved=lambda case, delta, sigma, largest: 0.5 * _bound(case, delta, sigma, largest),
            doubled=lambda case, delta, sigma, largest: 2 * _bound(case, delta, sigma, largest),
            landmarks_forgotten=lambda case, delta, sigma, largest: 2 * delta * largest,
            masses_added=lambda case, delta, sigma, largest: (delta + sigma) * largest,
            product_of_masses=lambda case, delta, sigma, largest: 2 * delta * (1 + sigma) * largest,
            zero=lambda case, delta, sigma, largest: 0 * delta,
            all_NaN=lambda case, delta, sigma, largest: delta * np.nan,
        ),
        structured=SEEDED,
        code=("unrolling.layers.mita:mita",),
        real=False,
    ),
    Claim(
        id="mita.error.published",
        statement="MiTA is off by at most 2δ max‖v‖, δ the mass of full attention outside the selected keys, also with its"
        " shared expert and with keys counted once for every expert.",
        equation=r"$\Vert \mathrm{MiTA}(q) - \mathrm{attention}(q)\Vert \leq 2\,\delta\max_j\Vert v_j\Vert$",
        source="natural to believe: the bound of restricted attention",
        kind="refuted",
        domain=cases(batches=(0,), kinds=("gaussian",), tokens=(2, 8)),
        subject=lambda case, given, options: _with_delta(case, given, options),
        measure=_published_measure,
        mutants=named(
            routed_experts_only_every_key_once=lambda case, given, options: _with_delta(
                case, given, options, shared=False, deduplicate=True
            ),
            bound_by_both_masses_every_key_once=_with_both,
            full_attention_itself=lambda case, given, options: (
                full_attention(*given[:3], case.softmax_scale),
                torch.zeros(()),
            ),
        ),
        structured=(
            Case(tokens=2, heads=1, head_dim=1, m=1),
            Case(tokens=3, heads=1, head_dim=1, m=2, seed=3),
        ),
        code=("unrolling.layers.mita:mita",),
        correction="With δ = 0, all keys selected, the landmark pairs still change the average, and so does counting some keys"
        " twice. True is 2 max(δ, σ) max‖v‖ with every key counted once (mita.error.bound); 2δ max‖v‖ without landmarks.",
        real=False,
    ),
    _limit(
        "limits.full",
        "With all keys in every expert and no shared expert MiTA is full attention, however many experts a query has.",
        r"$k = N$, shared expert off: $V\,\mathrm{softmax}(s K^\top q)$",
        subject=_mita(keys_per_expert=lambda case: case.tokens, shared=False, experts_per_query=experts_of),
        measure=operator(lambda case, Q, K, V, R: paper.attention(Q, K, V, case.softmax_scale)),
        mutants=named(
            shared_expert_on=_mita(keys_per_expert=lambda case: case.tokens),
            one_key_fewer=_mita(keys_per_expert=lambda case: max(1, case.tokens - 1), shared=False),
            scale_doubled=_mita(
                keys_per_expert=lambda case: case.tokens, shared=False, scale=lambda case: 2 * case.softmax_scale
            ),
            all_NaN=_nan,
        ),
    ),
    _limit(
        "limits.agent",
        "Without routed experts MiTA is agent attention: the queries read the landmarks, which read the tokens.",
        r"$k = 0$: $V\,\mathrm{softmax}(s K^\top R)\,\mathrm{softmax}(s R^\top q)$",
        subject=_mita(keys_per_expert=0),
        measure=operator(lambda case, Q, K, V, R: paper.agent_reads(Q, K, V, R, case.softmax_scale)),
        mutants=named(
            landmark_keys_scaled_twice=_mita(keys_per_expert=0, twice_scaled=True),
            one_key_an_expert=_mita(keys_per_expert=1),
            broadcast_by_the_transpose=_agent_cbsa,
            landmarks_for_their_values=lambda case, q, k, v, r: full_attention(q, r, r, case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _limit(
        "limits.top_k",
        "With queries of unit norm, every query its own landmark and no shared expert, MiTA is per-query top-k attention.",
        r"$\tilde{q}_i = q_i,\; \Vert q_i\Vert = 1,\; s = 1$: $V_S\,\mathrm{softmax}(s K_S^\top q_i),\;"
        r" S = \mathrm{top}_k(K^\top q_i)$",
        subject=_self_routed,
        measure=operator(
            lambda case, Q, K, V, R: paper.top_k_reads(Q, K, V, keys_of(case), case.softmax_scale), unit=True
        ),
        mutants=named(
            one_key_more=lambda case, q, k, v, r: top_k_attention(q, k, v, keys_of(case) + 1, case.softmax_scale),
            shared_expert_on=lambda case, q, k, v, r: mita(
                q, k, v, q, keys_per_expert=keys_of(case), scale=case.softmax_scale
            ),
            other_landmarks=lambda case, q, k, v, r: (
                _self_routed(case, q, k, v, r)
                if len(q) > 99
                else mita(q, k, v, r, keys_per_expert=keys_of(case), shared=False, scale=case.softmax_scale)
            ),
            least_keys=lambda case, q, k, v, r: mita(
                q, k, v, -q, keys_per_expert=keys_of(case), shared=False, scale=case.softmax_scale
            ),
            all_NaN=_nan,
        ),
    ),
    Claim(
        id="mita.limits.self_routing",
        statement="With every query its own landmark, s = 1 and no shared expert MiTA is per-query top-k attention, whatever the"
        " norms of the queries.",
        equation=r"$\mathrm{argmax}_j\, q_j^\top q_i = i$ for all $i$",
        source=f"natural to believe; {MITA}: routing by products",
        kind="refuted",
        domain=cases(batches=(0,), kinds=("gaussian",), tokens=(2, 8)),
        subject=_self_routed,
        measure=_any_norm,
        mutants=named(
            routed_to_themselves=_one_by_one,
            top_k_attention=lambda case, q, k, v, r: top_k_attention(q, k, v, keys_of(case), case.softmax_scale),
        ),
        structured=(Case(tokens=2, heads=1, head_dim=2, seed=4), Case(tokens=5, seed=4)),
        code=("unrolling.layers.mita:mita",),
        correction="A longer query nearby has the larger product: a query is routed to itself for sure only where all norms"
        " are equal (mita.limits.top_k), or where routing is by distance.",
        real=False,
    ),
    _limit(
        "limits.blocks",
        "With blocks of consecutive tokens as experts and their mean keys as landmarks, MiTA is block routing as in MoBA.",
        r"$\mathrm{top}_s \{\bar{k}_b^\top q\}_b$, one softmax over the union of the blocks",
        source=f"{MITA}: taxonomy; MoBA, arXiv 2502.13189",
        subject=lambda case, q, k, v, r: _as_blocks(case, q, k, v),
        measure=operator(
            lambda case, Q, K, V, R: paper.block_reads(Q, K, V, block_of(case), 1 + case.seed % 2, case.softmax_scale)
        ),
        mutants=named(
            first_key_for_the_mean=lambda case, q, k, v, r: _as_blocks(case, q, k, v, "first"),
            one_block_more=lambda case, q, k, v, r: _as_blocks(case, q, k, v, count=2 + case.seed % 2),
            all_keys=lambda case, q, k, v, r: full_attention(q, k, v, case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _limit(
        "duplicates",
        "Keys that several of a query's experts hold weigh as often as they are held, as in the paper, or once if deduplicated.",
        r"$\sum_j c_j e^{s k_j^\top q} v_j / \sum_j c_j e^{s k_j^\top q}$, $c_j$ = number of the query's experts that hold $j$",
        subject=_mita(
            keys_per_expert=keys_of,
            experts_per_query=experts_of,
            shared=False,
            deduplicate=lambda case: bool(case.seed // 4 % 2),
        ),
        measure=operator(multiplicities),
        mutants=named(
            the_other_way_round=_mita(
                keys_per_expert=keys_of,
                experts_per_query=experts_of,
                shared=False,
                deduplicate=lambda case: not case.seed // 4 % 2,
            ),
            always_once=_mita(keys_per_expert=keys_of, experts_per_query=experts_of, shared=False, deduplicate=True),
            always_as_often=_mita(keys_per_expert=keys_of, experts_per_query=experts_of, shared=False),
            all_NaN=_nan,
        ),
    ),
    Claim(
        id="mita.cost",
        statement="MiTA takes 4Nd² + 4Nmd + 2Nskd multiply-adds, 2Nmd less without the shared expert: linear in tokens.",
        equation=r"$4 N d^2 + 4 N m d + 2 N s k d$",
        source=f"{MITA}: 10Nmd + 4Nskd FLOPs a head beside the projections, of which our code saves 2Nmd: the scores that"
        " route are the shared expert's",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=_cost_of,
        measure=_cost,
        mutants=named(
            scores_of_routing_taken_twice=lambda N, d, m, k, s, shared: _cost_of(N, d, m, k, s, shared) + N * m * d,
            experts_forgotten=lambda N, d, m, k, s, shared: _cost_of(N, d, m, 0, s, shared),
            one_expert_a_query=lambda N, d, m, k, s, shared: _cost_of(N, d, m, k, 1, shared),
            shared_expert_always_on=lambda N, d, m, k, s, shared: _cost_of(N, d, m, k, s, True),
            quadratic_in_tokens=lambda N, d, m, k, s, shared: 4 * N * d**2 + 2 * N**2 * d,
        ),
        structured=(Case(), Case(tokens=1), Case(seed=1)),
        code=("unrolling.layers.mita:MiTA",),
        real=False,
    ),
    Claim(
        id="mita.approximation",
        statement="What MiTA leaves out of full attention is measured: the masses, and the error with both, one or the other"
        " kind of expert.",
        equation=r"$\Vert\mathrm{MiTA} - \mathrm{attention}\Vert_F / \Vert\mathrm{attention}\Vert_F$",
        source=MITA,
        kind="measured",
        domain=cases(
            batches=(0,), scales=(1.0,), tokens=(3, 12), kinds=("gaussian", "subspaces", "one_far", "shifted")
        ),
        subject=report,
        measure=_report_measure,
        mutants=named(
            mass_inside=lambda case, given, options: {
                name: 1 - value if "outside" in name else value for name, value in report(case, given, options).items()
            },
            masses_exchanged=lambda case, given, options: dict(
                zip(
                    (found := report(case, given, options)),
                    list(found.values())[1::-1] + list(found.values())[2:],
                    strict=True,
                )
            ),
            error_of_the_routed_part=lambda case, given, options: (
                (found := report(case, given, options))
                | {"relative error of MiTA": found["relative error, routed experts only"]}
            ),
            all_NaN=lambda case, given, options: dict.fromkeys(report(case, given, options), float("nan")),
        ),
        structured=(
            Case(tokens=12, seed=8),
            Case(tokens=9, kind="subspaces", seed=1),
            Case(tokens=12, heads=3, seed=2),
        ),
        code=("unrolling.layers.mita:MiTA",),
    ),
    _relative(
        "full",
        "Full attention reads every key.",
        r"$V\,\mathrm{softmax}(s K^\top q)$",
        "Vaswani et al., arXiv 1706.03762",
        "full_attention",
        subject=lambda case, q, k, v, r: full_attention(q, k, v, case.softmax_scale),
        measure=operator(lambda case, Q, K, V, R: paper.attention(Q, K, V, case.softmax_scale)),
        mutants=named(
            softmax_over_queries=lambda case, q, k, v, r: torch.softmax(case.softmax_scale * (q @ k.mT), -2) @ v,
            scale_doubled=lambda case, q, k, v, r: full_attention(q, k, v, 2 * case.softmax_scale),
            keys_for_values=lambda case, q, k, v, r: full_attention(q, k, k, case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _relative(
        "linear",
        "Linear attention is kernel regression with a product of features for the kernel, summed over tokens first.",
        r"$\sum_j \varphi(q)^\top\varphi(k_j)\, v_j / \sum_j \varphi(q)^\top\varphi(k_j),\; \varphi(u) ="
        r" \mathrm{elu}(\sqrt{s}\,u) + 1$",
        "Katharopoulos et al., arXiv 2006.16236, eq. 4 to 7",
        "linear_attention",
        subject=lambda case, q, k, v, r: linear_attention(q, k, v, case.softmax_scale),
        measure=operator(lambda case, Q, K, V, R: paper.linear_reads(Q, K, V, case.softmax_scale)),
        mutants=named(
            scale_dropped=lambda case, q, k, v, r: linear_attention(q, k, v, 4 * case.softmax_scale),
            not_normalised=lambda case, q, k, v, r: linear_attention(q, k, v, case.softmax_scale) * 1.5,
            exponential_kernel=lambda case, q, k, v, r: full_attention(q, k, v, case.softmax_scale),
            queries_and_keys_exchanged=lambda case, q, k, v, r: linear_attention(k, q, v, case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _relative(
        "projection",
        "Linformer-style attention reads m learned mixtures of the keys and of the values.",
        r"$V F^\top\,\mathrm{softmax}(s (K E^\top)^\top q)$",
        "Linformer, arXiv 2006.04768, eq. 7",
        "projected_attention",
        subject=lambda case, q, k, v, E, G: projected_attention(q, k, v, E, G, case.softmax_scale),
        measure=projection_measure,
        mutants=named(
            matrices_exchanged=lambda case, q, k, v, E, G: projected_attention(q, k, v, G, E, case.softmax_scale),
            one_matrix=lambda case, q, k, v, E, G: projected_attention(q, k, v, E, E, case.softmax_scale),
            scale_doubled=lambda case, q, k, v, E, G: projected_attention(q, k, v, E, G, 2 * case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _relative(
        "agent",
        "Agent attention lets the agents read the tokens, and the queries the agents.",
        r"$V\,\mathrm{softmax}(s K^\top R)\,\mathrm{softmax}(s R^\top q)$",
        "agent attention, arXiv 2312.08874, eq. 4, without bias and convolution",
        "agent_attention",
        subject=lambda case, q, k, v, r: agent_attention(q, k, v, r, case.softmax_scale),
        measure=operator(lambda case, Q, K, V, R: paper.agent_reads(Q, K, V, R, case.softmax_scale)),
        mutants=named(
            broadcast_by_the_transpose=_agent_cbsa,
            scale_once=lambda case, q, k, v, r: full_attention(q, r, full_attention(r, k, v, 1.5), case.softmax_scale),
            keys_for_values=lambda case, q, k, v, r: agent_attention(q, k, k, r, case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _relative(
        "blocks",
        "Block routing reads the tokens of the blocks whose mean keys have the largest products with the query.",
        r"$S = \mathrm{top}_s \{\bar{k}_b^\top q\}_b$: $V_S\,\mathrm{softmax}(s K_S^\top q)$",
        "MoBA, arXiv 2502.13189, eq. 2 to 6, not causal",
        "block_attention",
        subject=lambda case, q, k, v, r: block_attention(q, k, v, block_of(case), experts_of(case), case.softmax_scale),
        measure=operator(
            lambda case, Q, K, V, R: paper.block_reads(Q, K, V, block_of(case), experts_of(case), case.softmax_scale)
        ),
        mutants=named(
            blocks_one_longer=lambda case, q, k, v, r: block_attention(
                q, k, v, block_of(case) + 1, experts_of(case), case.softmax_scale
            ),
            first_blocks=lambda case, q, k, v, r: full_attention(
                q, k[:, : block_of(case)], v[:, : block_of(case)], case.softmax_scale
            ),
            scale_doubled=lambda case, q, k, v, r: block_attention(
                q, k, v, block_of(case), experts_of(case), 2 * case.softmax_scale
            ),
            all_NaN=_nan,
        ),
    ),
    _relative(
        "compressed_blocks",
        "NSA-style attention adds, by gates, attention to the block means and attention to the tokens of the best blocks.",
        r"$g_1 \bar{V}\,\mathrm{softmax}(s \bar{K}^\top q) + g_2 V_S\,\mathrm{softmax}(s K_S^\top q)$",
        "NSA, arXiv 2502.11089, eq. 5 to 12, means for its compression, no window, not causal",
        "compressed_block_attention",
        subject=lambda case, q, k, v, r: compressed_block_attention(
            q, k, v, block_of(case), experts_of(case), gates(case), case.softmax_scale
        ),
        measure=operator(
            lambda case, Q, K, V, R: paper.compressed_block_reads(
                Q, K, V, block_of(case), experts_of(case), gates(case).double().numpy(), case.softmax_scale
            )
        ),
        mutants=named(
            gates_exchanged=lambda case, q, k, v, r: compressed_block_attention(
                q, k, v, block_of(case), experts_of(case), gates(case).flip(0), case.softmax_scale
            ),
            compressed_branch_dropped=lambda case, q, k, v, r: block_attention(
                q, k, v, block_of(case), experts_of(case), case.softmax_scale
            ),
            one_block_more=lambda case, q, k, v, r: compressed_block_attention(
                q, k, v, block_of(case), experts_of(case) + 1, gates(case), case.softmax_scale
            ),
            all_NaN=_nan,
        ),
    ),
    _relative(
        "top_k",
        "Per-query top-k attention reads the keys with the largest products with the query.",
        r"$S = \mathrm{top}_k(K^\top q)$: $V_S\,\mathrm{softmax}(s K_S^\top q)$",
        "light-weight skims such as Spark attention and DSA, with exact scores",
        "top_k_attention",
        subject=lambda case, q, k, v, r: top_k_attention(q, k, v, keys_of(case), case.softmax_scale),
        measure=operator(lambda case, Q, K, V, R: paper.top_k_reads(Q, K, V, keys_of(case), case.softmax_scale)),
        mutants=named(
            one_key_more=lambda case, q, k, v, r: top_k_attention(q, k, v, keys_of(case) + 1, case.softmax_scale),
            not_renormalised=lambda case, q, k, v, r: full_attention(q, k, v, case.softmax_scale),
            least_keys=lambda case, q, k, v, r: -top_k_attention(-q, k, -v, keys_of(case), case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    Claim(
        id="mita.taxonomy.cost",
        statement="Every method of the taxonomy takes the multiply-adds that its row states.",
        equation=r"$2N^2d,\; 2Npd,\; 4Nmd,\; 4Nmd,\; N^2d/n + 2Nsnd,\; 2N^2d/n + 2Nsnd,\; N^2d + Nkd,\; 4Nmd + 2Nskd$",
        source=f"{MITA}: taxonomy of efficient attention; counted here",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=lambda row, N, d, p: row.multiply_adds(N, d, p),
        measure=_taxonomy_cost,
        mutants=named(
            flops_for_multiply_adds=lambda row, N, d, p: 2 * row.multiply_adds(N, d, p),
            heads_forgotten=lambda row, N, d, p: row.multiply_adds(N, p, p),
            tokens_off_by_one=lambda row, N, d, p: row.multiply_adds(N + 1, d, p),
        ),
        structured=(Case(), Case(tokens=1), Case(seed=1, tokens=2)),
        code=("unrolling.fast_weights:FastWeights",),
        real=False,
    ),
)
