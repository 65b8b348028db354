"""MiTA of given queries, keys, values and landmarks: the formula, and the choice between it and sorted queries."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attend import attend
from ..errors import check_count, check_leading, check_rows, finite_number
from .choice import PLAIN, choose
from .routed import Routing, routed_attention
from .tiles import repeated, top_indices, top_unordered

__all__ = ["gathered", "merge_attention", "mita", "mita_masked", "mita_plain", "of_experts"]

FEW = 512
"""Tokens up to which all scores, masked, are computed faster than queries are sorted."""

WORTH = 1 << 9
"""Queries of all heads from which sorting them is faster than gathering for each; see ``proofs-check bench mita``."""

_CHUNK = 1 << 22
"""Gathered numbers held at once: queries are taken in chunks, so that no tokens × (s k) × dim array is stored."""


def mita(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    landmarks: Tensor,
    *,
    keys_per_expert: int = 25,
    experts_per_query: int = 1,
    shared: bool = True,
    scale: float | None = None,
    deduplicate: bool = False,
    twice_scaled: bool = False,
    experts: Tensor | None = None,
    kernel: str = "auto",
    chunk: int | None = None,
) -> Tensor:
    """MiTA of given queries, keys, values and landmarks, in linear memory.

    The shared expert holds the m pairs (landmark, ``softmax(s landmark Kᵀ) V``); routed expert i the
    ``keys_per_expert`` keys with the largest product with landmark i; a query reads the experts of its
    ``experts_per_query`` nearest landmarks, by the product. One softmax over all these pairs, here as two softmaxes
    merged by their log-sum-exps.

    Shapes
        q ``(..., queries, p)``, k ``(..., tokens, p)``, v ``(..., tokens, p')``, landmarks ``(..., m, p)``; returns
        ``(..., queries, p')``
    Parameters
        keys_per_expert: at most the number of tokens is taken; 0 leaves the shared expert alone, which is agent attention.
        experts_per_query: at most m. deduplicate: a key in several of a query's experts counts once instead of, as in the
        paper, once for each. twice_scaled: the released code's ``s² q·landmark`` for the shared expert's scores.
        experts: the keys of every expert ``(..., m, k)``, where the landmarks do not choose them (blocks, say).
        kernel: "plain" gathers every query's keys, queries by chunks; "fast" sorts the queries by expert and lets tiles
        of them read its keys; "auto" takes the faster, for few tokens full attention with a mask.
        chunk: queries at once on the plain path; by default what fits.
    Ties
        among equal products the lower index wins.
    """
    check_count("mita", "keys_per_expert", keys_per_expert, 0)
    check_count("mita", "experts_per_query", experts_per_query)
    if not shared and keys_per_expert == 0 and experts is None:
        raise ValueError("mita: with shared=False and keys_per_expert=0 a query has nothing to attend to.")
    check_rows("mita", q=q, k=k, v=v, landmarks=landmarks)
    check_leading("mita", q=q, k=k, v=v, landmarks=landmarks)
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"mita: scale must be one number, but has shape {tuple(scale.shape)}.")
    if scale is not None and not isinstance(scale, Tensor):
        scale = finite_number("mita", "scale", scale)
    if q.shape[-1] != k.shape[-1] or landmarks.shape[-1] != k.shape[-1] or v.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"mita: q {tuple(q.shape)}, k {tuple(k.shape)} and landmarks {tuple(landmarks.shape)} must share their last axis,"
            f" k and v {tuple(v.shape)} their tokens."
        )
    s = q.shape[-1] ** -0.5 if scale is None else scale
    leading = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2], landmarks.shape[:-2])
    q, k, v, landmarks = (t.expand(*leading, *t.shape[-2:]) for t in (q, k, v, landmarks))
    how = Routing(s, keys_per_expert, min(experts_per_query, landmarks.shape[-2]), shared, deduplicate, twice_scaled)
    if experts is not None:
        experts = experts.expand(*leading, *experts.shape[-2:])
    if choose("mita", kernel, lambda: q.shape[:-1].numel() >= WORTH, q, k, v, landmarks) == PLAIN:
        return mita_plain(q, k, v, landmarks, how, experts, chunk)
    if kernel == "auto" and max(q.shape[-2], k.shape[-2]) <= FEW:
        return mita_masked(q, k, v, landmarks, how, experts)
    return routed_attention(q, k, v, landmarks, how, experts)


def mita_masked(
    q: Tensor, k: Tensor, v: Tensor, landmarks: Tensor, how: Routing, experts: Tensor | None = None
) -> Tensor:
    """The same as full attention to landmarks and keys, minus infinity added where a query does not look: for few tokens.

    A key that c of a query's experts hold gets log c, so that it counts c times.
    """
    leading, m, tokens = q.shape[:-2], landmarks.shape[-2], k.shape[-2]
    probes = landmarks @ k.mT
    chosen = top_unordered(probes, how.keys) if experts is None else experts
    times = torch.zeros(*leading, m, tokens, dtype=q.dtype, device=q.device)
    ones = torch.ones((), dtype=q.dtype, device=q.device).expand(chosen.shape)
    times.scatter_(-1, chosen, 1.0) if experts is None else times.scatter_add_(-1, chosen, ones)
    route = top_unordered(q @ landmarks.mT, how.experts)
    shift = m * torch.arange(leading.numel(), device=q.device).view(*leading, 1, 1)
    if how.experts == 1:  # the logarithm of m rows, not of one for every query
        times = (times.clamp(max=1.0) if how.deduplicate else times).log()
        bias = F.embedding((route + shift).squeeze(-1), times.view(-1, tokens))
    else:
        seen = F.embedding(route + shift, times.view(-1, tokens)).sum(-2)
        bias = (seen.clamp(max=1.0) if how.deduplicate else seen).log()
    if not how.shared:
        return attend(q, k, v, how.scale, bias)
    values = torch.softmax(how.scale * probes, dim=-1) @ v
    factor = how.scale if how.twice_scaled else 1.0
    keys, rows = torch.cat([factor * landmarks, k], dim=-2), torch.cat([values, v], dim=-2)
    return attend(q, keys, rows, how.scale, F.pad(bias, (m, 0)))


def mita_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    landmarks: Tensor,
    how: Routing,
    experts: Tensor | None = None,
    chunk: int | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """The same as written, the queries by chunks: every query's keys are gathered. All have the same leading axes.

    values: the landmarks', where they were read elsewhere.
    """
    s, leading = how.scale, q.shape[:-2]
    landmark_values = values
    if values is None and (how.shared or experts is None):
        probes = landmarks @ k.mT
        landmark_values = torch.softmax(s * probes, dim=-1) @ v if how.shared else None
        experts = top_indices(probes, how.keys) if experts is None else experts
    if experts is None:
        raise ValueError(
            "mita_plain: landmark values that were read elsewhere need experts that were chosen there too."
        )
    width = how.experts * experts.shape[-1]
    if chunk is None:
        # The loop becomes part of a compiled graph, which then serves any batch.
        counted = leading[-1:] if torch.compiler.is_compiling() else leading
        chunk = max(1, _CHUNK // max(1, math.prod(counted) * width * (k.shape[-1] + v.shape[-1])))
        chunk = q.shape[-2] if q.device.type == "meta" else chunk  # nothing is stored there
    pieces = []
    for queries in q.split(chunk, dim=-2):
        nearness = queries @ landmarks.mT
        parts = []
        if landmark_values is not None:
            parts.append(_read(how.shared_scale * nearness, landmark_values))
        if width:
            index = of_experts(experts, top_indices(nearness, how.experts))
            scores = s * (gathered(k, index) @ queries.unsqueeze(-1)).squeeze(-1)
            if how.deduplicate:
                scores = scores.masked_fill(repeated(index), -torch.inf)
            parts.append(_read_own(scores, gathered(v, index)))
        pieces.append(merge_attention(parts) if len(parts) > 1 else parts[0][0])
    return torch.cat(pieces, dim=-2)


def merge_attention(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the union of several sets of pairs, from each set's output and log-sum-exp of scores.

    ``Σ_i softmax_i(lse_i) output_i``; gradients must flow through the log-sum-exps too.

    Shapes
        outputs ``(..., queries, p)``, log-sum-exps ``(..., queries)``
    """
    shares = torch.softmax(torch.stack([lse for _, lse in parts], dim=-1), dim=-1)
    outputs = torch.stack([output for output, _ in parts], dim=-2)
    return (shares.unsqueeze(-1) * outputs).sum(-2)


def _read(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, all queries reading the same values."""
    return torch.softmax(scores, dim=-1) @ v, torch.logsumexp(scores, dim=-1)


def _read_own(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, every query reading values of its own ``(..., queries, pairs, p)``."""
    return (torch.softmax(scores, dim=-1).unsqueeze(-2) @ v).squeeze(-2), torch.logsumexp(scores, dim=-1)


def of_experts(chosen: Tensor, experts: Tensor) -> Tensor:
    """The keys of every query's experts: chosen ``(..., m, k)``, experts ``(..., queries, s)``."""
    flat = experts.flatten(-2).unsqueeze(-1).expand(*experts.shape[:-2], -1, chosen.shape[-1])
    return chosen.gather(-2, flat).unflatten(-2, experts.shape[-2:]).flatten(-2)


def gathered(rows: Tensor, index: Tensor) -> Tensor:
    """Rows ``(..., tokens, p)`` picked for every query: index ``(..., queries, pairs)``."""
    flat = index.flatten(-2).unsqueeze(-1).expand(*index.shape[:-2], -1, rows.shape[-1])
    return rows.gather(-2, flat).unflatten(-2, index.shape[-2:])
