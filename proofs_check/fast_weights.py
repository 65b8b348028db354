"""What the claims on MiTA and its relatives share: drawn operands, definitions asked head by head, masses left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unrolling import full_attention, merge_attention, mita, top_k_attention

from . import paper
from .claim import Measurement
from .measures import columns, identity, norm, reference, score_condition
from .strategies import Case

__all__ = [
    "Matrix",
    "Operands",
    "any_norm_measure",
    "as_blocks",
    "block_of",
    "broadcast_by_transpose",
    "experts_of",
    "gates",
    "gradient_of_merge",
    "keys_of",
    "masses",
    "merge_gradient_measure",
    "merge_parts",
    "merge_value_measure",
    "merged",
    "mixing",
    "multiplicities",
    "one_by_one",
    "operands",
    "operator",
    "projection_measure",
    "report",
    "self_routed",
    "with_options",
]

Matrix = NDArray[np.float64]
Operands = tuple[Tensor, Tensor, Tensor, Tensor]


def operands(case: Case) -> Operands:
    """Queries, keys, values and landmarks ``(heads, tokens or m, p)``, drawn."""
    sizes = (("op q", case.tokens), ("op k", case.tokens), ("op v", case.tokens), ("op r", case.m))
    q, k, v, r = (case.scale * case.draw(name, case.heads, n, case.head_dim) for name, n in sizes)
    return q, k, v, r


def keys_of(case: Case) -> int:
    """Keys of an expert, or of a query, 1 to 4."""
    return 1 + case.seed % 4


def experts_of(case: Case) -> int:
    """Experts of a query, 1 to 3."""
    return min(1 + case.seed % 3, case.m)


def block_of(case: Case) -> int:
    """Tokens of a block, 1 to 4."""
    return 1 + case.seed % 4


def mixing(case: Case) -> tuple[Tensor, Tensor]:
    """Learned matrices that mix N tokens to m, for keys and for values."""
    E, G = (case.draw(name, case.heads, case.m, case.tokens) / case.tokens**0.5 for name in ("E", "F"))
    return E, G


def gates(case: Case) -> Tensor:
    """The shares of a compressed and of a selected branch."""
    return torch.sigmoid(case.draw("gates", 2))


def operator(want: Callable[..., Matrix], unit: bool = False) -> Callable[[Any, Case], Measurement]:
    """An operator on drawn operands against its definition, head by head: want(case, Q, K, V, R) in columns.

    The subject is called as ``subject(case, q, k, v, r)``. unit: queries of unit norm.
    """

    def measure(subject: Any, case: Case) -> Measurement:
        exact = reference(case)
        given, precise = operands(case), operands(exact)
        if unit:
            given, precise = ((F.normalize(o[0], dim=-1), *o[1:]) for o in (given, precise))
        got = subject(case, *given)
        q, k, v, r = precise
        found = np.stack(
            [want(exact, *(columns(part[h]) for part in precise)).swapaxes(-1, -2) for h in range(case.heads)]
        )
        sharp = score_condition(torch.cat([q, r], -2), torch.cat([k, r], -2), exact.softmax_scale)
        widest = float(v.norm(dim=-1).max()) * (case.heads * case.tokens) ** 0.5
        return identity("its definition", got, found, case.dtype, sharp * (1 + widest / max(norm(found), 1e-300)))

    return measure


def projection_measure(subject: Any, case: Case) -> Measurement:
    """Linformer-style projection against its definition: subject(case, q, k, v, E, F)."""
    exact = reference(case)
    got = subject(case, *operands(case)[:3], *mixing(case))
    (q, k, v, _), (E, G) = operands(exact), mixing(exact)
    heads = range(case.heads)
    found = np.stack(
        [
            paper.projected_reads(
                columns(q[h]), columns(k[h]), columns(v[h]), E[h].numpy(), G[h].numpy(), exact.softmax_scale
            ).swapaxes(-1, -2)
            for h in heads
        ]
    )
    mixed = norm(E) * norm(k)  # rounding of the mixed keys is of this size, whatever cancels
    sharp = 1.0 + exact.softmax_scale * float(q.norm(dim=-1).max()) * mixed
    cancelled = 1.0 + norm(G) * norm(v) * case.tokens**0.5 / max(norm(found), 1e-300)
    return identity("its definition", got, found, case.dtype, sharp * cancelled)


def multiplicities(case: Case, Q: Matrix, K: Matrix, V: Matrix, R: Matrix) -> Matrix:
    """Routed MiTA by counting: a key of c experts weighs c exp(s q·k), or once if bit 2 of the seed is set."""
    experts, routes = paper.mita_experts(R, K, keys_of(case)), paper.mita_routes(Q, R, experts_of(case))
    out = []
    for i in range(Q.shape[1]):
        times = np.array([sum(j in experts[e] for e in routes[i]) for j in range(K.shape[1])])
        times = np.minimum(times, 1) if case.seed // 4 % 2 else times
        scores = case.softmax_scale * (K.T @ Q[:, i])
        weights = times * np.exp(scores - scores[times > 0].max()) if len(times) else times
        out.append(V @ weights / weights.sum())
    return np.stack(out, axis=1)


def masses(case: Case, parts: Operands, options: dict[str, Any]) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Per head and query: MiTA and full attention, δ outside the routed keys under full attention, σ on the landmarks."""
    s, rows = case.softmax_scale, []
    for h in range(parts[0].shape[0]):
        Q, K, V, R = (columns(part[h]) for part in parts)
        experts = paper.mita_experts(R, K, options["keys_per_expert"])
        routes = paper.mita_routes(Q, R, options["experts_per_query"])
        A, marks = paper.softmax_columns(s * (K.T @ Q)), R.shape[1] if options["shared"] else 0
        for i in range(Q.shape[1]):
            scores, values = paper.mita_support(Q[:, i], R, K, V, s, experts, routes[i], options)
            weights = paper.softmax_columns(scores[:, None])[:, 0]
            inside = {j for e in routes[i] for j in experts[e]}
            outside = A[[j for j in range(K.shape[1]) if j not in inside], i].sum()
            rows.append((values @ weights, V @ A[:, i], outside, weights[:marks].sum()))
    got, full, delta, sigma = (np.array(part) for part in zip(*rows, strict=True))
    return got, full, delta, sigma


def report(case: Case, parts: Operands, options: dict[str, Any]) -> dict[str, float]:
    """The masses left outside and on the landmarks, and the relative errors of MiTA and of its two halves."""
    q, k, v, r = (part.detach() for part in parts)
    s = case.softmax_scale
    scores, full = s * (q @ k.mT), full_attention(q, k, v, s)
    chosen = (r @ k.mT).topk(min(options["keys_per_expert"], k.shape[-2])).indices
    routes = (q @ r.mT).topk(options["experts_per_query"]).indices
    index = chosen.gather(-2, routes.flatten(-2).unsqueeze(-1).expand(*routes.shape[:-2], -1, chosen.shape[-1]))
    index = index.unflatten(-2, routes.shape[-2:]).flatten(-2)
    inside = torch.zeros_like(scores).scatter(-1, index, 1.0)
    routed = torch.logsumexp(torch.log(inside) + scores, -1)
    marks = torch.logsumexp(s * (q @ r.mT), -1)
    size = max(norm(full), 1e-300)

    def off(**changes: Any) -> float:
        return norm(mita(q, k, v, r, scale=s, **(options | changes)) - full) / size

    return {
        "mass of full attention outside the selected keys": float(
            (torch.softmax(scores, -1) * (1 - inside)).sum(-1).mean()
        ),
        "mass on the landmarks": float(torch.sigmoid(marks - routed).mean()),
        "relative error of MiTA": off(),
        "relative error, routed experts only": off(shared=False),
        "relative error, shared expert only (agent)": off(keys_per_expert=0),
    }


def with_options(**fixed: Any) -> Callable[..., Tensor]:
    """MiTA of the operands: fixed options are values, or functions of the case."""

    def subject(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
        options = {name: value(case) if callable(value) else value for name, value in fixed.items()}
        return mita(q, k, v, r, **{"scale": case.softmax_scale, **options})

    return subject


def as_blocks(case: Case, q: Tensor, k: Tensor, v: Tensor, centre: str = "mean", count: int = 0) -> Tensor:
    """Blocks of tokens as experts, their mean keys as landmarks; a short last block repeats its last key, once counted."""
    block, last = block_of(case), k.shape[-2] - 1
    starts = range(0, k.shape[-2], block)
    experts = torch.tensor([[min(a + i, last) for i in range(block)] for a in starts])
    parts = [k[..., a : a + block, :] for a in starts]
    routers = torch.stack([part.mean(-2) if centre == "mean" else part[..., 0, :] for part in parts], -2)
    count = count or 1 + case.seed % 2
    options: dict[str, Any] = {"experts_per_query": count, "shared": False, "deduplicate": True, "experts": experts}
    return mita(q, k, v, routers, scale=case.softmax_scale, **options)


def merge_parts(case: Case) -> tuple[Tensor, ...]:
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


def merged(A: Tensor, V: Tensor, B: Tensor, W: Tensor, detach: str = "") -> Tensor:
    """Two attentions merged by their log-sum-exps; ``detach`` breaks the graph at "lse" or "output"."""
    parts = []
    for scores, values in ((A, V), (B, W)):
        output, lse = torch.softmax(scores, -1) @ values, torch.logsumexp(scores, -1)
        parts.append((output.detach() if detach == "output" else output, lse.detach() if detach == "lse" else lse))
    return merge_attention(parts)


def merge_value_measure(subject: Any, case: Case) -> Measurement:
    """The merged attention against one softmax over the concatenation: subject(case, A, V, B, W)."""
    got = subject(case, *merge_parts(case)[:4])
    A, V, B, W, _ = (part.double().numpy() for part in merge_parts(reference(case)))
    weights = paper.softmax_columns(np.concatenate([A, B], axis=1).T)
    want = (np.concatenate([V, W]).T @ weights).T
    condition = (1 + float(np.abs(A).max() + np.abs(B).max())) * (1 + norm(V) + norm(W)) / max(norm(want), 1e-300)
    return identity("one softmax", got, want, case.dtype, condition)


def merge_gradient_measure(subject: Any, case: Case) -> Measurement:
    """d⟨G, attention⟩/d(score j) = a_j G·(v_j − o) for the single softmax over all pairs."""
    A, V, B, W, G = merge_parts(case)
    got = subject(case, A, V, B, W, G)
    A, V, B, W, G = merge_parts(reference(case))
    values, weights = torch.cat([V, W]).numpy(), paper.softmax_columns(torch.cat([A, B], -1).numpy().T)
    want = np.zeros_like(A.numpy())
    for i in range(len(want)):
        read = values.T @ weights[:, i]
        for j in range(want.shape[1]):
            want[i, j] = weights[j, i] * (G[i].numpy() @ (values[j] - read))
    condition = (1 + float(A.abs().max() + B.abs().max())) * (1 + norm(values) * norm(G) / max(norm(want), 1e-300))
    return identity("gradient through both parts", got, want, case.dtype, condition)


def gradient_of_merge(detach: str = "", factor: float = 1.0) -> Callable[..., Tensor]:
    """The gradient of ⟨G, merged attention⟩ in the first scores, times a factor."""

    def subject(case: Case, A: Tensor, V: Tensor, B: Tensor, W: Tensor, G: Tensor) -> Tensor:
        scores = A.clone().requires_grad_()
        (found,) = torch.autograd.grad((merged(scores, V, B, W, detach) * G).sum(), scores)
        return factor * found

    return subject


def self_routed(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Routed MiTA with every query for a landmark."""
    return mita(q, k, v, q, keys_per_expert=keys_of(case), shared=False, scale=case.softmax_scale)


def one_by_one(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Every query alone with itself for a landmark, so that it is routed to itself."""
    rows = [self_routed(case, row, k, v, r) for row in q.split(1, dim=-2)]
    return torch.cat(rows, dim=-2)


def any_norm_measure(subject: Any, case: Case) -> Measurement:
    """Whether the subject is per-query top-k attention on queries of any norm."""
    exact = reference(case)
    given = operands(exact)
    want = top_k_attention(*given[:3], keys_of(exact), exact.softmax_scale)
    off = norm(subject(exact, *given) - want) / max(norm(want), 1e-300)
    return Measurement((), True, {"distance from top-k attention": off}, truth=off <= 1e-9)


def broadcast_by_transpose(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """CBSA's broadcast: the extraction weights transposed, normalised over tokens."""
    P = torch.softmax(case.softmax_scale * (r @ q.mT), -1)
    return P.mT @ (torch.softmax(case.softmax_scale * (r @ k.mT), -1) @ v)
