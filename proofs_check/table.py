"""The table of layers, generated: every row builds its layer and asks it what it descends."""

from __future__ import annotations

import torch

from objectives import ClassTokensOnly, Objective
from unrolling import (
    CBSA,
    MSCA,
    MSSA,
    SVD,
    AoT,
    Axes,
    EnergyTransformer,
    SequencePool,
    SymmetricAttention,
    Tokens,
    UnrolledLayer,
)

from .claims import find

__all__ = ["layers_table"]


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
    """The name of the class; of the objective inside where it is one of the class tokens."""
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
