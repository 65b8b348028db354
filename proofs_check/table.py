"""The table of layers, generated: every row builds its layer and asks it what it descends."""

from __future__ import annotations

import torch

from unrolling import CBSA, MSSA, SVD, Axes, SequencePool, Tokens, UnrolledLayer

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
    ]


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
            f"| {name} | {form} | `{type(layer.objective_at(x)).__name__}` | {frozen} |"
            f" {'–' if stands_in is None else f'`{type(stands_in).__name__}`'} | `{claim}` |"
        )
    return "\n".join(lines)
