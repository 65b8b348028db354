"""What the claims on MiTA's layer share: its options, the paper's side of it, its choices, its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolling import LearnedQueries, MiTA, full_attention, mita

from . import paper
from .claim import Comparison, Measurement
from .claims.cbsa import _class_tokens, _initial, _strategy
from .claims.coding_rate import combine
from .claims.softmax import attention_condition, head_rows, layer_of, maps_of, output_blocks, plain, rebuilt, stepped
from .fast_weights import Matrix, Operands, masses, operands
from .measures import columns, identity, norm, reference, score_condition, slices
from .strategies import Case
from .tolerance import tolerance

__all__ = [
    "auxiliary",
    "bound_measure",
    "bound_options",
    "choice_measure",
    "choice_mutants",
    "choosing",
    "landmark_values_compare",
    "landmarks_compare",
    "largest_first",
    "make_mita",
    "mass_bound",
    "mita_condition",
    "mita_heads",
    "mita_options",
    "mita_paper_step",
    "mita_regression",
    "other_experts",
    "projection_condition",
    "published_measure",
    "published_options",
    "reweighted",
    "same_choices",
    "side_by_side",
    "where_resolved",
    "with_both",
    "with_delta",
    "with_ties",
    "wrong_options",
]


def mita_options(case: Case) -> dict[str, Any]:
    """MiTA's options, drawn with the seed: all combinations of shared, duplicates, scaling, 0 to 4 keys, 1 to 3 experts."""
    rng = case.rng("options")
    shared = bool(rng.random() < 0.75)
    return {
        "shared": shared,
        "keys_per_expert": 9 if case.given is not None and case.tokens > 20 else int(rng.integers(not shared, 5)),
        "experts_per_query": min(int(rng.integers(1, 4)), case.m),
        "deduplicate": bool(rng.integers(2)),
        "twice_scaled": bool(rng.integers(2)),
    }


def make_mita(case: Case) -> MiTA:
    """The layer of a case."""
    return layer_of(MiTA, case, landmarks=_strategy(case), class_tokens=_class_tokens(case), **mita_options(case))


Head = tuple[Matrix, Matrix, Matrix, Matrix]


def mita_heads(case: Case, Z: Matrix) -> list[Head]:
    """Queries, landmarks, keys and values of every head, columns, by the transcriptions."""
    Q, K, V = (head_rows(case, part) for part in paper.query_key_value(Z, plain(maps_of(case))))
    return [(q, _initial(case, q, h), k, v) for h, (q, k, v) in enumerate(zip(Q, K, V, strict=True))]


def mita_paper_step(case: Case, layer: MiTA, Z: Matrix, b: int) -> Matrix:
    """The paper's next tokens, columns."""
    chosen, (outputs, bias) = mita_options(case), output_blocks(case)
    keys, routed = chosen["keys_per_expert"], chosen["experts_per_query"]
    read = sum(
        lift @ paper.mita_reads(q, r, k, v, case.softmax_scale, keys, routed, chosen)
        for (q, r, k, v), lift in zip(mita_heads(case, Z), outputs, strict=True)
    )
    return Z + case.step * (read + bias[:, None] - Z)


def mita_condition(case: Case, layer: MiTA, z: Tensor) -> float:
    """As for attention; landmarks are queries of the keys, and keys of the queries."""
    with torch.no_grad():
        q, k, r = layer.queries(z), layer.keys(z), layer.landmarks(z)
    probed = max(score_condition(r, k, case.softmax_scale), score_condition(q, r, case.softmax_scale))
    return probed * attention_condition(case, layer, z)


def mita_regression(case: Case, layer: MiTA, z: Tensor, b: int) -> Any:
    """Every query has a regression of its own, over its own support."""
    chosen, (outputs, bias) = mita_options(case), output_blocks(case)
    regressions = []
    for (q, r, k, v), lift in zip(mita_heads(case, columns(z.reshape(-1, *z.shape[-2:])[b])), outputs, strict=True):
        experts = paper.mita_experts(r, k, chosen["keys_per_expert"])
        routes = paper.mita_routes(q, r, chosen["experts_per_query"])
        for i in range(q.shape[1]):
            scores, values = paper.mita_support(q[:, i], r, k, v, case.softmax_scale, experts, routes[i], chosen)
            towards = case.heads * (lift @ values) + bias[:, None]
            regressions.append((i, paper.softmax_columns(scores[:, None]), towards))
    return lambda Z: (
        sum(paper.kernel_regression_value(Z[:, [i]], a, towards) for i, a, towards in regressions) / case.heads
    )


def same_choices(case: Case) -> bool:
    """Single precision may break a near tie the other way; that is a choice as good, judged by its own claim."""
    if case.dtype == "float64":
        return True
    x, exact = case.x(), reference(case)
    with torch.no_grad():
        one, two = make_mita(case), make_mita(exact)
        z = exact.x()
        return all(
            bool(torch.equal(a.sort(-1).values, b.sort(-1).values))
            for a, b in ((one.selection(x), two.selection(z)), (one.routing(x), two.routing(z)))
        )


def where_resolved(measure: Callable[[Any, Case], Measurement]) -> Callable[[Any, Case], Measurement]:
    """The measure where both precisions make the same choices; elsewhere no evidence."""

    def measured(subject: Any, case: Case) -> Measurement:
        return measure(subject, case) if same_choices(case) else Measurement(evidence=False)

    return measured


def wrong_options(**changes: Any) -> Callable[[Case, MiTA, Tensor], Tensor]:
    """The step of a layer with other options: changes are values, or functions of the case's."""

    def subject(case: Case, layer: MiTA, x: Tensor) -> Tensor:
        q, k, v = layer.queries(x), layer.keys(x), layer.values(x)
        options = mita_options(case) | {"scale": layer.scale}
        for name, change in changes.items():
            options[name] = change(options[name]) if callable(change) else change
        if not options["shared"] and options["keys_per_expert"] == 0:
            return 0 * x
        read = mita(q, k, v, layer.landmarks(x), **options)
        return stepped(rebuilt(lambda case, q, k, v: read))(case, layer, x)

    return subject


def reweighted(change: Callable[[Tensor, int], Tensor]) -> Callable[[Case, MiTA, Tensor], Tensor]:
    """The step with other weights on the layer's pairs: change(weights, number of landmark pairs)."""

    def subject(case: Case, layer: MiTA, x: Tensor) -> Tensor:
        with torch.no_grad():
            weights, values, support = layer.pairs(x)
            index = torch.as_tensor(support)
            m = values.shape[-2] - x.shape[-2]
            flat = index.flatten(-2).unsqueeze(-1).expand(*index.shape[:-2], -1, values.shape[-1])
            picked = values.gather(-2, flat).unflatten(-2, index.shape[-2:])
            read = (change(weights, m).unsqueeze(-2) @ picked).squeeze(-2)
            return stepped(rebuilt(lambda case, q, k, v: read))(case, layer, x)

    return subject


def other_experts(case: Case, layer: MiTA, x: Tensor) -> Tensor:
    """The keys that another head's landmarks chose."""
    given = (layer.queries(x), layer.keys(x), layer.values(x), layer.landmarks(x))
    experts = layer.selection(x).roll(1, -3)
    read = mita(*given, scale=layer.scale, experts=experts, **mita_options(case))
    return stepped(rebuilt(lambda case, q, k, v: read))(case, layer, x)


def side_by_side(weights: Tensor, m: int) -> Tensor:
    """Two softmaxes side by side, halved."""
    parts = [part / part.sum(-1, keepdim=True) for part in (weights[..., :m], weights[..., m:]) if part.shape[-1]]
    return torch.cat(parts, -1) / len(parts)


def auxiliary(compare: Callable[..., Measurement]) -> Callable[[Any, Case], Measurement]:
    """A named method of the layer, token set by token set: compare(case, found, point, exact case, exact layer)."""

    def measure(subject: Any, case: Case) -> Measurement:
        x, exact = case.x(), reference(case)
        with torch.no_grad():
            found = subject(case, make_mita(case), x)
            layer, parts = make_mita(exact), []
            for g, (point,) in zip(found if found.ndim == 4 else [found], slices(exact.x()), strict=True):
                parts.append(compare(case, g, point, exact, layer))
        return combine(*parts)

    return measure


def projection_condition(case: Case, point: Tensor, size: float) -> float:
    """Projections and averages of tokens cancel to what is compared."""
    maps = maps_of(case)
    widest = max(norm(maps[name]) * norm(point) + norm(maps[f"{name} bias"]) for name in ("query", "key", "value"))
    return 1.0 + widest / max(size, 1e-300)


def landmarks_compare(case: Case, got: Tensor, point: Tensor, exact: Case, layer: MiTA) -> Measurement:
    """Landmarks against pooled queries."""
    want = np.stack([r.T for _, r, _, _ in mita_heads(exact, columns(point))])
    return identity("pooled queries", got, want, case.dtype, projection_condition(exact, point, norm(want)))


def landmark_values_compare(case: Case, got: Tensor, point: Tensor, exact: Case, layer: MiTA) -> Measurement:
    """Landmark values against attention of the landmarks."""
    want = np.stack(
        [paper.mita_landmark_values(r, k, v, exact.softmax_scale).T for _, r, k, v in mita_heads(exact, columns(point))]
    )
    condition = score_condition(layer.landmarks(point), layer.keys(point), exact.softmax_scale)
    return identity(
        "what landmarks read", got, want, case.dtype, condition * projection_condition(exact, point, norm(want))
    )


def choice_measure(method: str, count: str) -> Callable[[Any, Case], Measurement]:
    """A choice is right if its products are the largest, to rounding, and exact ties go to the lower index."""

    def compare(case: Case, got: Tensor, point: Tensor, exact: Case, layer: MiTA) -> Measurement:
        done, evidence = [], False
        for (q, r, k, _), index in zip(mita_heads(exact, columns(point)), got, strict=True):
            products = r.T @ k if method == "selection" else q.T @ r
            kept = min(mita_options(exact)[count], products.shape[1])
            if index.shape != (len(products), kept):
                return Measurement((Comparison("shape", np.inf, 0.0),))
            if kept == 0:
                continue
            best = -np.sort(-products, axis=1)[:, :kept]
            found = np.take_along_axis(products, index.clamp(0, products.shape[1] - 1).numpy(), axis=1)
            twice = sum(len(row) - len(set(row.tolist())) for row in index)
            left, right = (r, k) if method == "selection" else (r, q)
            size = float(np.linalg.norm(left, axis=0).max() * np.linalg.norm(right, axis=0).max())
            exactness = projection_condition(exact, point, norm(left)) * projection_condition(exact, point, norm(right))
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

    plain_measure = auxiliary(compare)

    def measure(subject: Any, case: Case) -> Measurement:
        measured = plain_measure(subject, case)
        layer, x = with_ties(case)
        got = subject(case, layer, x)
        for h in range(case.heads):
            r = layer.landmarks(x)[h].detach().double().numpy().T
            w = layer.queries(x)[h].double().numpy().T
            want = paper.mita_experts(r, w, 3) if method == "selection" else paper.mita_routes(w, r, 2)
            same = got[h].tolist() == want
            measured = combine(
                measured, Measurement((Comparison("ties to the lower index", 0.0 if same else 1.0, 0.0),))
            )
        return measured

    return measure


def with_ties(case: Case) -> tuple[MiTA, Tensor]:
    """Whole numbers, whose products are exact and often equal."""
    learned = LearnedQueries(4, case.heads, case.head_dim)
    learned.queries.data = torch.from_numpy(case.rng("ties").integers(-1, 2, size=learned.queries.shape)).float()
    dim = case.heads * case.head_dim
    x = torch.from_numpy(case.rng("tied tokens").integers(-1, 2, size=(6, dim))).to(case.torch_dtype)
    options: dict[str, Any] = {
        "landmarks": learned,
        "keys_per_expert": 3,
        "experts_per_query": 2,
        "projections": "identity",
    }
    return MiTA(dim, case.heads, case.head_dim, **options).to(case.torch_dtype), x


def largest_first(scores: Tensor, count: int) -> Tensor:
    """The indices of the largest entries, lower ones first among equals."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :count]


def choosing(scores: Callable[[Tensor, Tensor], Tensor], method: str, higher: bool = False) -> Any:
    """A wrong choice: by other scores of (landmarks or queries, candidates), or with ties to the higher index."""

    def subject(case: Case, layer: MiTA, x: Tensor) -> Tensor:
        marks = layer.landmarks(x)
        pair = (marks, layer.keys(x)) if method == "selection" else (layer.queries(x), marks)
        table = scores(*pair)
        count = layer.keys_per_expert if method == "selection" else layer.experts_per_query
        if higher:
            return table.shape[-1] - 1 - largest_first(table.flip(-1), count)
        return largest_first(table, count)

    return subject


def choice_mutants(method: str) -> dict[str, Any]:
    """Wrong ways to choose keys, or experts."""
    return {
        "smallest_products": choosing(lambda a, b: -(a @ b.mT), method),
        "nearest_by_distance": choosing(lambda a, b: -torch.cdist(a, b), method),
        "candidates_normalised": choosing(lambda a, b: a @ torch.nn.functional.normalize(b, dim=-1).mT, method),
        "another_head": choosing(lambda a, b: a @ b.roll(1, -3).mT, method),
        "higher_index_wins": choosing(lambda a, b: a @ b.mT, method, higher=True),
        "the_first_ones": choosing(lambda a, b: 0 * (a @ b.mT), method),
    }


def bound_options(case: Case) -> dict[str, Any]:
    """The options of a case, every key counted once."""
    return mita_options(case) | {"deduplicate": True}


def mass_bound(case: Case, delta: Matrix, sigma: Matrix, largest: float) -> Matrix:
    """2 max(δ, σ) max‖v‖."""
    return 2.0 * np.maximum(delta, sigma) * largest


def bound_measure(subject: Any, case: Case) -> Measurement:
    """MiTA's error against the bound of every query, and two values that attain it."""
    exact = reference(case)
    given, options = operands(exact), bound_options(exact)
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
    done.append(Comparison("attained by two opposite values", abs(float(attained[0]) / apart - 1), 1e-9))
    mass = np.maximum(delta, sigma)
    tight = (error / (2 * np.maximum(mass, 1e-9) * largest))[mass > 1e-9]
    return Measurement(tuple(done), values={"largest share of the bound reached": float(tight.max(initial=0.0))})


def published_options(case: Case) -> dict[str, Any]:
    """Keys counted for every expert: all keys with the shared expert, or two experts of two keys without."""
    shared = case.seed % 2 == 0
    return {
        "shared": shared,
        "keys_per_expert": case.tokens if shared else 2,
        "experts_per_query": min(1 if shared else 2, case.m),
        "deduplicate": False,
        "twice_scaled": False,
    }


def published_measure(subject: Any, case: Case) -> Measurement:
    """Whether ‖MiTA − full‖ ≤ 2δ max‖v‖ with the published options: a shared expert, or keys counted twice."""
    exact = reference(case)
    given, options = operands(exact), published_options(exact)
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


def with_delta(case: Case, given: Operands, options: dict[str, Any], **changes: Any) -> tuple[Tensor, Tensor]:
    """MiTA and the bound 2δ max‖v‖."""
    options = options | changes
    _, _, delta, _ = masses(case, given, options)
    bound = 2 * torch.from_numpy(delta).reshape(case.heads, -1) * given[2].norm(dim=-1).amax(-1, keepdim=True)
    return mita(*given, scale=case.softmax_scale, **options), bound


def with_both(case: Case, given: Operands, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """MiTA with every key counted once, and the bound 2 max(δ, σ) max‖v‖."""
    options = options | {"deduplicate": True}
    _, _, delta, sigma = masses(case, given, options)
    largest = given[2].norm(dim=-1).amax(-1, keepdim=True)
    bound = 2 * torch.from_numpy(np.maximum(delta, sigma)).reshape(case.heads, -1) * largest
    return mita(*given, scale=case.softmax_scale, **options), bound
