"""Claims on MiTA: its landmarks, selection and routing, its step, its error, its limits, and its relatives."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    taxonomy,
    top_k_attention,
)

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..fast_weights import (
    Operands,
    any_norm_measure,
    as_blocks,
    block_of,
    broadcast_by_transpose,
    experts_of,
    gates,
    gradient_of_merge,
    keys_of,
    masses,
    merge_gradient_measure,
    merge_value_measure,
    merged,
    multiplicities,
    one_by_one,
    operator,
    projection_measure,
    report,
    self_routed,
    with_options,
)
from ..measures import norm, reference, score_condition, step_measure
from ..mutants import forward, named, of_step
from ..routing import (
    auxiliary,
    bound_measure,
    choice_measure,
    choice_mutants,
    landmark_values_compare,
    landmarks_compare,
    make_mita,
    mass_bound,
    mita_condition,
    mita_paper_step,
    mita_regression,
    other_experts,
    published_measure,
    reweighted,
    side_by_side,
    where_resolved,
    with_both,
    with_delta,
    wrong_options,
)
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .coding_rate import _count
from .softmax import away_from_rest, step_bend

__all__ = ["CLAIMS"]

MITA = "MiTA, arXiv 2602.01219"
SEEDED = tuple(dataclasses.replace(case, seed=i) for i, case in enumerate((*STRUCTURED, *STRUCTURED)))
"""The seed picks strategy, class token, projections and options."""


def _cost_of(N: int, d: int, m: int, k: int, s: int, shared: bool) -> int:
    return 4 * N * d**2 + (4 if shared else 2) * N * m * d + 2 * N * s * k * d


def _cost(subject: Any, case: Case) -> Measurement:
    N, m, k, s, shared = 6 * case.tokens, case.m, 1 + case.seed % 6, min(2, case.m), case.seed % 2 == 0
    options: dict[str, Any] = {"keys_per_expert": k, "experts_per_query": s, "shared": shared}
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
    layer = make_mita(dataclasses.replace(case, batch=0))
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
        code=more.pop("code", ("unrolling.kernels.mita:mita",)),
        real=False,
        **more,
    )


def _relative(name: str, statement: str, equation: str, source: str, function: str, **more: Any) -> Claim:
    return _limit(
        f"taxonomy.{name}", statement, equation, source=source, code=(f"unrolling.fast_weights:{function}",), **more
    )


def _nan(case: Case, q: Tensor, *rest: Tensor) -> Tensor:
    return q * torch.nan


CLAIMS = (
    Claim(
        id="mita.landmarks",
        statement="The landmarks are the queries pooled over a grid or a sequence, strided, or learned; class tokens stay out.",
        equation=r"$\tilde{q}_i = \mathrm{mean}(q_j : j \in \mathrm{bin}_i)$",
        source=f"{MITA}: landmark queries",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.landmarks(x),
        measure=auxiliary(landmarks_compare),
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
        measure=auxiliary(landmark_values_compare),
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
        measure=choice_measure("selection", "keys_per_expert"),
        mutants=named(**choice_mutants("selection")),
        structured=SEEDED,
        code=("unrolling.layers.mita:MiTA", "unrolling.kernels.tiles:top_indices"),
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
        measure=choice_measure("routing", "experts_per_query"),
        mutants=named(**choice_mutants("routing")),
        structured=SEEDED,
        code=("unrolling.layers.mita:MiTA", "unrolling.kernels.tiles:top_indices"),
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
        measure=where_resolved(
            away_from_rest(
                make_mita, step_measure(make_mita, mita_paper_step, mita_regression, mita_condition, step_bend)
            )
        ),
        mutants=of_step(
            shared_expert_left_out_or_added=wrong_options(shared=lambda on: not on),
            one_key_fewer=wrong_options(keys_per_expert=lambda k: max(0, k - 1)),
            one_expert_more=wrong_options(experts_per_query=lambda s: s + 1),
            duplicates_counted_otherwise=wrong_options(deduplicate=lambda on: not on),
            landmark_keys_scaled_otherwise=wrong_options(twice_scaled=lambda on: not on),
            scale_doubled=wrong_options(scale=lambda s: 2 * s),
            two_softmaxes_side_by_side=reweighted(side_by_side),
            uniform_weights=reweighted(lambda w, m: torch.full_like(w, 1.0 / w.shape[-1])),
            another_heads_experts=other_experts,
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
        subject=lambda case, A, V, B, W: merged(A, V, B, W),
        measure=merge_value_measure,
        code=("unrolling.kernels.mita:merge_attention",),
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
        subject=gradient_of_merge(),
        measure=merge_gradient_measure,
        code=("unrolling.kernels.mita:merge_attention",),
        mutants=named(
            not_through_the_log_sum_exps=gradient_of_merge("lse"),
            not_through_the_outputs=gradient_of_merge("output"),
            half=gradient_of_merge(factor=0.5),
            opposite_sign=gradient_of_merge(factor=-1.0),
            all_NaN=gradient_of_merge(factor=float("nan")),
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
        subject=mass_bound,
        measure=bound_measure,
        mutants=named(
            halved=lambda case, delta, sigma, largest: 0.5 * mass_bound(case, delta, sigma, largest),
            doubled=lambda case, delta, sigma, largest: 2 * mass_bound(case, delta, sigma, largest),
            landmarks_forgotten=lambda case, delta, sigma, largest: 2 * delta * largest,
            masses_added=lambda case, delta, sigma, largest: (delta + sigma) * largest,
            product_of_masses=lambda case, delta, sigma, largest: 2 * delta * (1 + sigma) * largest,
            zero=lambda case, delta, sigma, largest: 0 * delta,
            all_NaN=lambda case, delta, sigma, largest: delta * float("nan"),
        ),
        structured=SEEDED,
        code=("unrolling.kernels.mita:mita",),
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
        subject=lambda case, given, options: with_delta(case, given, options),
        measure=published_measure,
        mutants=named(
            routed_experts_only_every_key_once=lambda case, given, options: with_delta(
                case, given, options, shared=False, deduplicate=True
            ),
            bound_by_both_masses_every_key_once=with_both,
            full_attention_itself=lambda case, given, options: (
                full_attention(given[0], given[1], given[2], case.softmax_scale),
                torch.zeros(()),
            ),
        ),
        structured=(
            Case(tokens=2, heads=1, head_dim=1, m=1),
            Case(tokens=3, heads=1, head_dim=1, m=2, seed=7),
        ),
        code=("unrolling.kernels.mita:mita",),
        correction="With δ = 0, all keys selected, the landmark pairs still change the average, and so does counting some keys"
        " twice. True is 2 max(δ, σ) max‖v‖ with every key counted once (mita.error.bound); 2δ max‖v‖ without landmarks.",
        real=False,
    ),
    _limit(
        "limits.full",
        "With all keys in every expert and no shared expert MiTA is full attention, however many experts a query has.",
        r"$k = N$, shared expert off: $V\,\mathrm{softmax}(s K^\top q)$",
        subject=with_options(keys_per_expert=lambda case: case.tokens, shared=False, experts_per_query=experts_of),
        measure=operator(lambda case, Q, K, V, R: paper.attention(Q, K, V, case.softmax_scale)),
        mutants=named(
            shared_expert_on=with_options(keys_per_expert=lambda case: case.tokens),
            one_key_fewer=with_options(keys_per_expert=lambda case: max(1, case.tokens - 1), shared=False),
            scale_doubled=with_options(
                keys_per_expert=lambda case: case.tokens, shared=False, scale=lambda case: 2 * case.softmax_scale
            ),
            all_NaN=_nan,
        ),
    ),
    _limit(
        "limits.agent",
        "Without routed experts MiTA is agent attention: the queries read the landmarks, which read the tokens.",
        r"$k = 0$: $V\,\mathrm{softmax}(s K^\top R)\,\mathrm{softmax}(s R^\top q)$",
        subject=with_options(keys_per_expert=0),
        measure=operator(lambda case, Q, K, V, R: paper.agent_reads(Q, K, V, R, case.softmax_scale)),
        mutants=named(
            landmark_keys_scaled_twice=with_options(keys_per_expert=0, twice_scaled=True),
            one_key_an_expert=with_options(keys_per_expert=1),
            broadcast_by_the_transpose=broadcast_by_transpose,
            landmarks_for_their_values=lambda case, q, k, v, r: full_attention(q, r, r, case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _limit(
        "limits.top_k",
        "With queries of unit norm, every query its own landmark and no shared expert, MiTA is per-query top-k attention.",
        r"$\tilde{q}_i = q_i,\; \Vert q_i\Vert = 1,\; s = 1$: $V_S\,\mathrm{softmax}(s K_S^\top q_i),\;"
        r" S = \mathrm{top}_k(K^\top q_i)$",
        subject=self_routed,
        measure=operator(
            lambda case, Q, K, V, R: paper.top_k_reads(Q, K, V, keys_of(case), case.softmax_scale), unit=True
        ),
        mutants=named(
            one_key_more=lambda case, q, k, v, r: top_k_attention(q, k, v, keys_of(case) + 1, case.softmax_scale),
            shared_expert_on=lambda case, q, k, v, r: mita(
                q, k, v, q, keys_per_expert=keys_of(case), scale=case.softmax_scale
            ),
            drawn_landmarks=lambda case, q, k, v, r: mita(
                q, k, v, r, keys_per_expert=keys_of(case), shared=False, scale=case.softmax_scale
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
        subject=self_routed,
        measure=any_norm_measure,
        mutants=named(
            routed_to_themselves=one_by_one,
            top_k_attention=lambda case, q, k, v, r: top_k_attention(q, k, v, keys_of(case), case.softmax_scale),
        ),
        structured=(Case(tokens=2, heads=1, m=1, seed=128), Case(tokens=3, heads=1, m=1, seed=76)),
        code=("unrolling.kernels.mita:mita",),
        correction="A longer query nearby has the larger product: a query is routed to itself for sure only where all norms"
        " are equal (mita.limits.top_k), or where routing is by distance.",
        real=False,
    ),
    _limit(
        "limits.blocks",
        "With blocks of consecutive tokens as experts and their mean keys as landmarks, MiTA is block routing as in MoBA.",
        r"$\mathrm{top}_s \{\bar{k}_b^\top q\}_b$, one softmax over the union of the blocks",
        source=f"{MITA}: taxonomy; MoBA, arXiv 2502.13189",
        subject=lambda case, q, k, v, r: as_blocks(case, q, k, v),
        measure=operator(
            lambda case, Q, K, V, R: paper.block_reads(Q, K, V, block_of(case), 1 + case.seed % 2, case.softmax_scale)
        ),
        mutants=named(
            first_key_for_the_mean=lambda case, q, k, v, r: as_blocks(case, q, k, v, "first"),
            one_block_more=lambda case, q, k, v, r: as_blocks(case, q, k, v, count=2 + case.seed % 2),
            all_keys=lambda case, q, k, v, r: full_attention(q, k, v, case.softmax_scale),
            all_NaN=_nan,
        ),
    ),
    _limit(
        "duplicates",
        "Keys that several of a query's experts hold weigh as often as they are held, as in the paper, or once if deduplicated.",
        r"$\sum_j c_j e^{s k_j^\top q} v_j / \sum_j c_j e^{s k_j^\top q}$, $c_j$ = number of the query's experts that hold $j$",
        subject=with_options(
            keys_per_expert=keys_of,
            experts_per_query=experts_of,
            shared=False,
            deduplicate=lambda case: bool(case.seed // 4 % 2),
        ),
        measure=operator(multiplicities),
        mutants=named(
            the_other_way_round=with_options(
                keys_per_expert=keys_of,
                experts_per_query=experts_of,
                shared=False,
                deduplicate=lambda case: not case.seed // 4 % 2,
            ),
            always_once=with_options(
                keys_per_expert=keys_of, experts_per_query=experts_of, shared=False, deduplicate=True
            ),
            always_as_often=with_options(keys_per_expert=keys_of, experts_per_query=experts_of, shared=False),
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
            scale_quadrupled=lambda case, q, k, v, r: linear_attention(q, k, v, 4 * case.softmax_scale),
            averaged_for_normalised=lambda case, q, k, v, r: (
                (F.elu(case.softmax_scale**0.5 * q) + 1.0)
                @ ((F.elu(case.softmax_scale**0.5 * k) + 1.0).mT @ v / k.shape[-2])
            ),
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
            broadcast_by_the_transpose=broadcast_by_transpose,
            inner_scale_dropped=lambda case, q, k, v, r: full_attention(
                q, r, full_attention(r, k, v, 1.0), case.softmax_scale
            ),
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
                Q, K, V, block_of(case), experts_of(case), gates(case).tolist(), case.softmax_scale
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
            least_keys=lambda case, q, k, v, r: top_k_attention(-q, k, v, keys_of(case), -case.softmax_scale),
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
