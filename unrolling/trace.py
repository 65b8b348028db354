"""What every block of a network does to the objectives that its attention stands for, measured on a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from objectives import CodingRate, Objective, RepresentativeRate, SubspaceCodingRate, VariationalRate

from .attention import AttentionLayer
from .errors import check_positive_number
from .layers.cbsa import CBSA
from .layers.depict import MSCA
from .layers.tssa import TSSA
from .models.base import Model, Stage
from .subspace import SubspaceLayer

__all__ = ["BlockRecord", "Trace", "bases_of", "objective_of", "record_block", "trace"]


@dataclass(frozen=True)
class BlockRecord:
    r"""One block on one batch; every tensor has the batch first, rates are in nats.

    name: of the block. attention: of its layer. objective: the class of what its layer stands for.
    rate: $R_c(Z \mid U)$ of the stream in the layer's bases, ``(batch, 3)``: before the block, after the attention, after
    the feed-forward half. unit_rate: the same, every token scaled to norm 1, so that mere shrinking does not count.
    value: the objective at what the attention sees and after its update, ``(batch, 2)``; unit_value: at norm 1.
    tokens: the rate of the seen tokens in every head's subspace, before and after the update, ``(batch, heads, 2)``.
    representatives: the rate of CBSA's representatives before and after their contraction, alike; None for others.
    cosine: of the update with the objective's descent direction, ``(batch,)``; rate_cosine: with that of R_c.
    zeros: share of exact zeros in the block's output, ``(batch,)``.
    """

    name: str
    attention: str
    objective: str
    rate: Tensor
    unit_rate: Tensor
    value: Tensor
    unit_value: Tensor
    tokens: Tensor
    representatives: Tensor | None
    cosine: Tensor
    rate_cosine: Tensor
    zeros: Tensor

    @property
    def decrease(self) -> Tensor:
        """How much the update lowers the objective at what the attention sees, ``(batch,)``."""
        return self.value[:, 0] - self.value[:, 1]

    @property
    def token_reduction(self) -> Tensor:
        """How much the update lowers the tokens' rate in every subspace, ``(batch, heads)``."""
        return self.tokens[..., 0] - self.tokens[..., 1]

    @property
    def representative_reduction(self) -> Tensor | None:
        """How much the contraction lowers the representatives' rate in every subspace, ``(batch, heads)``."""
        return None if self.representatives is None else self.representatives[..., 0] - self.representatives[..., 1]


@dataclass(frozen=True)
class Trace:
    """The records of a network's blocks, in order; ``str`` is a table, ``unrolling.plots.plot_trace`` draws it."""

    model: str
    epsilon: float | None
    records: tuple[BlockRecord, ...]

    def __iter__(self) -> Iterator[BlockRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> BlockRecord:
        return self.records[index]

    def __str__(self) -> str:
        head = ("block", "attention", "objective", "cosine", "decrease", "R_c", "after", "at norm 1", "after", "zeros")
        rows = [head, *(self._row(record) for record in self.records)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    @staticmethod
    def _row(record: BlockRecord) -> tuple[str, ...]:
        numbers = (
            record.decrease,
            record.rate[:, 0],
            record.rate[:, -1],
            record.unit_rate[:, 0],
            record.unit_rate[:, -1],
        )
        cells = [f"{float(record.cosine.mean()):+.3f}", *(f"{float(number.mean()):.4g}" for number in numbers)]
        cells.append(f"{float(record.zeros.mean()):.1%}")
        return record.name, record.attention, record.objective, *cells

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: means over the batch."""
        return {"model": self.model, "epsilon": self.epsilon, "blocks": [_plain(record) for record in self.records]}


def _plain(record: BlockRecord) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in vars(record).items():
        values[name] = value.double().mean(0).tolist() if isinstance(value, Tensor) else value
    return values


@torch.no_grad()
def trace(
    model: Model,
    x: Tensor,
    *,
    epsilon: float | None = None,
    each: Callable[[Iterable[Stage]], Iterable[Stage]] = iter,
    **call: Any,
) -> Trace:
    r"""Run a network and record what every block does to its layer's objective; see :class:`BlockRecord`.

    The objective is what the layer stands for: $R_c$ for MSSA, the representatives' rate with its extraction held constant
    for CBSA, the variational rate with its memberships held constant for TSSA, PCA's rate for DEPICT's cross-attention;
    for softmax attention, agent attention and MiTA, which descend none of these, $R_c$ in the subspaces of their values.
    Published blocks normalise before they attend, so nothing here is a step at the stream: it is measured, not claimed.

    Parameters
    ----------
        x: what the model takes: images, or patch tokens for a decoder. epsilon: ε of the rates, by default every
        layer's own. each: goes around the stages, for a progress bar. call: further arguments of ``model.stages``
        (``im_size`` of CBT's decoder).
    Source
        CBSA, arXiv 2509.16875, figure 5 (rate and normalised rate by layer) and figure 6 (reductions of tokens and of
        representatives in every subspace)

    >>> from unrolling.models import CBT
    >>> model = CBT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, representatives=(2, 2))
    >>> [record.objective for record in trace(model, torch.randn(1, 3, 32, 32))]
    ['RepresentativeRate', 'RepresentativeRate']
    """
    if epsilon is not None:
        check_positive_number("trace", "epsilon", epsilon)
    training = model.training
    model.eval()
    try:
        records = tuple(record_block(stage, epsilon) for stage in each(model.stages(x, **call)))
    finally:
        model.train(training)
    return Trace(type(model).__name__, epsilon, records)


@torch.no_grad()
def record_block(stage: Stage, epsilon: float | None = None) -> BlockRecord:
    """One block of a trace."""
    layer, block = stage.block.attention, stage.block
    before, seen = stage.x, block.seen(stage.x)
    between = block.attend(before, stage.grid)
    after = block.feed(between)
    moved = seen + (between - before)
    U = bases_of(layer)
    eps = _epsilon(layer, epsilon)
    rate = SubspaceCodingRate(U, eps, orthonormal=False)
    objective = objective_of(layer, seen, stage.grid, epsilon)
    update = between - before
    per_head = CodingRate(eps)
    coordinates = [per_head.value(part.unsqueeze(-3) @ U) for part in (seen, moved)]
    return BlockRecord(
        stage.name,
        type(layer).__name__,
        type(getattr(objective, "objective", objective)).__name__,
        torch.stack([rate.value(part) for part in (before, between, after)], dim=-1),
        torch.stack([rate.value(_unit(part)) for part in (before, between, after)], dim=-1),
        torch.stack([objective.value(part) for part in (seen, moved)], dim=-1),
        torch.stack([objective.value(_unit(part)) for part in (seen, moved)], dim=-1),
        torch.stack(coordinates, dim=-1),
        _representatives(layer, seen, stage.grid, per_head),
        _cosine(update, -objective.gradient(seen)),
        _cosine(update, -rate.gradient(seen)),
        (after == 0).to(after.dtype).mean((-2, -1)),
    )


def bases_of(layer: nn.Module) -> Tensor:
    """The subspaces ``(heads, dim, head_dim)`` in which a layer's rate is measured: its bases, or its value matrices."""
    if isinstance(layer, SubspaceLayer):
        return layer.U.detach()
    if isinstance(layer, AttentionLayer):
        if layer.projections == "identity":
            eye = torch.eye(layer.dim, dtype=layer.step.dtype, device=layer.step.device)
            return eye.unflatten(-1, (layer.heads, layer.head_dim)).transpose(0, 1)
        return layer.value.weight.detach().unflatten(0, (layer.heads, layer.head_dim)).mT
    raise TypeError(f"trace: a {type(layer).__name__} has no subspaces to measure a rate in.")


def _epsilon(layer: nn.Module, epsilon: float | None) -> float:
    if epsilon is not None:
        return epsilon
    # The released TSSA has ε² = d, which is a constant of its step and no precision.
    own = getattr(layer, "epsilon", 0.5)
    return 0.5 if isinstance(layer, TSSA) and layer.unit_step else float(own)


def objective_of(layer: nn.Module, seen: Tensor, grid: tuple[int, int], epsilon: float | None = None) -> Objective:
    """What a layer stands for at the tokens that it sees; see :func:`trace`."""
    epsilon = _epsilon(layer, epsilon)
    if isinstance(layer, CBSA) and layer.representatives.softmax_extraction:
        return RepresentativeRate(bases_of(layer), layer.extraction(seen, grid), epsilon, orthonormal=False)
    if isinstance(layer, TSSA):
        return VariationalRate(bases_of(layer), layer.memberships(seen), epsilon, orthonormal=False)
    if isinstance(layer, MSCA):
        return layer.approximates_at(seen) or layer.objective_at(seen)
    return SubspaceCodingRate(bases_of(layer), epsilon, orthonormal=False)


def _representatives(layer: nn.Module, seen: Tensor, grid: tuple[int, int], per_head: CodingRate) -> Tensor | None:
    if not isinstance(layer, CBSA) or not layer.representatives.softmax_extraction or layer.certified:
        return None
    Q = layer.representatives_of(seen, grid)
    return torch.stack([per_head.value(part) for part in (Q, layer.contracted(Q))], dim=-1)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    sizes = (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=torch.finfo(a.dtype).tiny)
    return (a * b).sum(-1) / sizes
