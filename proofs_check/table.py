"""The table of layers, generated: every row builds its layer and asks it what it descends."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from objectives import ClassTokensOnly, Composite, Objective, one_hot_memberships
from unrolling import (
    CBSA,
    ISTA,
    MSCA,
    MSSA,
    SVD,
    TSSA,
    AgentAttention,
    AoT,
    Axes,
    EnergyTransformer,
    MiTA,
    OvercompleteISTA,
    ReduNet,
    SequencePool,
    SoftmaxAttention,
    SymmetricAttention,
    Tokens,
    UnrolledLayer,
    taxonomy,
)

from .claims import find

__all__ = ["FAST_WEIGHTS", "fast_weights_rows", "fast_weights_table", "layers_table"]


def _redunet(form: str) -> ReduNet:
    """A layer built from fifteen tokens of three classes."""
    tokens = torch.randn(15, 12, generator=torch.Generator().manual_seed(0))
    return ReduNet.construct(tokens, one_hot_memberships(torch.arange(15) % 3, dtype=tokens.dtype), form=form)


def _rows() -> list[tuple[str, str, UnrolledLayer, str]]:
    pool = SequencePool(3)
    return [
        ("MSSA", "exact", MSSA(12, 3), "mssa.step.exact"),
        ("MSSA", "softmax", MSSA(12, 3, form="softmax"), "mssa.step.softmax"),
        ("CBSA, pooled, learned or strided", "exact", CBSA(12, 3, representatives=pool), "cbsa.step.exact"),
        (
            "CBSA, pooled, learned or strided",
            "softmax",
            CBSA(12, 3, representatives=pool, form="softmax"),
            "cbsa.step.softmax",
        ),
        (
            "CBSA of all tokens: softmax attention",
            "softmax",
            CBSA(12, 3, representatives=Tokens(), form="softmax"),
            "cbsa.special.softmax",
        ),
        (
            "CBSA of principal directions: linear attention",
            "exact",
            CBSA(12, 3, representatives=SVD()),
            "cbsa.special.linear",
        ),
        (
            "CBSA of scaled axes: channel attention",
            "exact",
            CBSA(12, 3, representatives=Axes()),
            "cbsa.special.channel",
        ),
        (
            "CBSA without contraction: agent attention",
            "agent",
            CBSA(12, 3, representatives=pool, form="agent"),
            "cbsa.special.agent",
        ),
        ("TSSA, token statistics", "exact", TSSA(12, 3), "tssa.step"),
        ("TSSA, causal", "exact", TSSA(12, 3, causal=True), "tssa.causal.step"),
        ("ReduNet, operators of its own tokens", "recomputed", _redunet("recomputed"), "redunet.step.recomputed"),
        ("ReduNet, operators of a training set", "constructed", _redunet("constructed"), "redunet.step.constructed"),
        ("symmetric attention", "tied", SymmetricAttention(12, 3), "symmetric.step.tied"),
        ("symmetric attention", "general", SymmetricAttention(12, 3, form="general"), "symmetric.step.general"),
        (
            "Energy Transformer, without normalisation",
            "plain",
            EnergyTransformer(12, 3, normalised=False),
            "energy_transformer.step.plain",
        ),
        (
            "Energy Transformer, a mirror step",
            "normalised",
            EnergyTransformer(12, 3),
            "energy_transformer.step.normalised",
        ),
        ("softmax attention", "any projections", SoftmaxAttention(12, 3), "softmax.step.exact"),
        ("MiTA", "any experts", MiTA(12, 3, landmarks=pool, keys_per_expert=2), "mita.step.exact"),
        ("agent attention", "contracted or not", AgentAttention(12, 3, agents=pool), "agent.step.exact"),
        ("ISTA, CRATE's feed-forward block", "proximal", ISTA(12), "ista.step"),
        ("CRATE-α's block, tied, without residual", "size 1", OvercompleteISTA(12), "ista.overcomplete.step"),
        ("AoT", "softmax", AoT(12, 3, form="softmax"), "aot.step.softmax"),
        ("AoT", "threshold", AoT(12, 3), "aot.step.threshold"),
        ("MSCA (DEPICT), on the class tokens", "exact", MSCA(12, 3, class_tokens=2), "depict.step.exact"),
        (
            "MSCA (DEPICT), on the class tokens",
            "softmax",
            MSCA(12, 3, class_tokens=2, form="softmax"),
            "depict.step.softmax",
        ),
    ]


def _named(objective: Objective) -> str:
    """The name of the class; of the objective inside where it is one of the class tokens, or of both parts of a sum."""
    if isinstance(objective, Composite):
        return f"{type(objective.smooth).__name__} + {type(objective.nonsmooth).__name__}"
    return type(objective.objective if isinstance(objective, ClassTokensOnly) else objective).__name__


def layers_table() -> str:
    """The layers in Markdown: form, the objective of ``objective_at``, what is frozen, what it stands in for."""
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    lines = [
        "| layer | form | descends exactly | frozen | stands in for | claim |",
        "|---|---|---|---|---|---|",
    ]
    for name, form, layer, claim in _rows():
        stands_in = layer.approximates_at(x)
        frozen = find(claim).frozen
        if claim == "cbsa.special.softmax":
            frozen = find("mssa.step.softmax").frozen
        lines.append(
            f"| {name} | {form} | `{_named(layer.objective_at(x))}` | {frozen} |"
            f" {'–' if stands_in is None else f'`{_named(stands_in)}`'} | `{claim}` |"
        )
    return "\n".join(lines)


FAST_WEIGHTS = ("method", "scaling", "experts", "construction", "routing", "multiply-adds", "counted", "of full")


def fast_weights_rows() -> tuple[list[tuple[str, ...]], str]:
    """Efficient attention as fast weights, by :data:`FAST_WEIGHTS`, and a note on the sizes.

    Every method is run once, and its multiply-adds counted on the way.
    """
    N, heads, p, m, k, n = 256, 3, 8, 16, 16, 16
    noise = torch.Generator().manual_seed(0)
    q, key, v = (torch.randn(heads, N, p, generator=noise) for _ in range(3))
    made: list[tuple[str, ...]] = []
    full = 0.0
    for row in taxonomy(m, k, n):
        with FlopCounterMode(display=False) as counter:
            row.run(q, key, v)
        counted = counter.get_total_flops() / 2
        full = full or counted
        words = (row.name, row.strategy, row.experts, row.construction, row.topology, row.cost)
        made.append((*words, f"{counted:,.0f}", f"{counted / full:.1%}"))
    note = (
        f"Counted for N = {N} tokens, {heads} heads of p = {p}, d = {heads * p}, m = {m} landmarks, k = {k} keys, blocks of"
        f" n = {n}, s = 1; matrix products only, without the projections."
    )
    return made, note


def fast_weights_table() -> str:
    """The same in Markdown."""
    rows, note = fast_weights_rows()
    lines = [FAST_WEIGHTS, tuple("---" for _ in FAST_WEIGHTS), *rows]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", note])
