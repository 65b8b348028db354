"""What an adapted attention reads with the queries, keys and values that the network already makes."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attend import attend
from ..errors import check_choice, check_count, check_rows, check_share
from ..layers.mita import mita
from ..representatives import GridPool, SequencePool

__all__ = ["ATTENTIONS", "Formula", "Full", "Landmarks", "token_memberships", "token_statistics"]

PARTS = ("query", "key", "value")
_SMALLEST = 1e-24
"""Squared length below which a channel counts as zero when it is normalised, as in ToST's released code."""


@final
@dataclass(frozen=True, eq=False)
class Landmarks:
    """How queries are pooled to landmarks: over a grid of patches, or in one dimension where no grid is known.

    Attributes
    ----------
        owner: the attention's place in the model, for errors. size: rows and columns of landmarks; or their number, which
        the patches are pooled to in one dimension. grid: rows and columns of patches. class_tokens: leading tokens that
        are no patches. sequence: pool in one dimension where the tokens do not fill the grid, instead of an error.
        pool, line: the strategies for the grid and for one dimension.
    """

    owner: str
    size: tuple[int, int] | int
    grid: tuple[int, int] | None
    class_tokens: int = 0
    sequence: bool = False
    pool: GridPool | SequencePool = field(init=False)
    line: SequencePool = field(init=False)

    def __post_init__(self) -> None:
        check_count("adapt", "class_tokens", self.class_tokens, 0)
        line = SequencePool(self.count)
        object.__setattr__(self, "line", line)
        object.__setattr__(self, "pool", line if isinstance(self.size, int) else GridPool(self.size, self.grid))

    @property
    def count(self) -> int:
        """The number of landmarks."""
        return self.size if isinstance(self.size, int) else self.size[0] * self.size[1]

    def __call__(self, q: Tensor) -> Tensor:
        """The landmarks ``(..., heads, m, head_dim)`` of queries ``(..., heads, tokens, head_dim)``."""
        tokens, grid = q.shape[-2], self.grid
        if grid is None or tokens - self.class_tokens == grid[0] * grid[1]:
            return self.pool.initial(q, self.class_tokens, None)
        if self.sequence:
            return self.line.initial(q, self.class_tokens, None)
        raise ValueError(
            f"adapt: {self.owner}: {tokens} tokens less {self.class_tokens} class tokens are {tokens - self.class_tokens} patches,"
            f" but the grid is {grid[0]} × {grid[1]} = {grid[0] * grid[1]}. Adapt again with the grid= and class_tokens= of this"
            " input, or with other_grids='sequence' to pool such inputs in one dimension."
        )

    def __str__(self) -> str:
        size = f"{self.count}" if isinstance(self.size, int) else f"{self.size[0]} × {self.size[1]}"
        what = "the sequence" if self.grid is None else f"{self.grid[0]} × {self.grid[1]} patches"
        return f"{size} landmarks of {what}, {self.class_tokens} class tokens"


@dataclass(frozen=True, eq=False)
class Formula(abc.ABC):
    """An attention of given queries, keys and values, without weights of its own.

    Shapes
        every part ``(..., heads, tokens, head_dim)``; returns like one of them
    """

    attention: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Which of query, key and value it reads."""
        return PARTS

    @abc.abstractmethod
    def __call__(self, parts: Mapping[str, Tensor], scale: float, dropout: float) -> Tensor:
        """What every token reads; ``dropout`` is that of the network's attention weights, 0 in evaluation."""


@final
@dataclass(frozen=True, eq=False)
class Full(Formula):
    """Softmax attention, which every network that can be adapted computes: what candidates are compared with."""

    attention = "softmax"

    def __call__(self, parts: Mapping[str, Tensor], scale: float, dropout: float) -> Tensor:
        """``softmax(s Q Kᵀ) V``."""
        return attend(parts["query"], parts["key"], parts["value"], scale, dropout=dropout)


@dataclass(frozen=True, eq=False)
class Pooled(Formula):
    """A formula that reads through landmarks; ``default`` is how many."""

    landmarks: Landmarks
    default: ClassVar[tuple[int, int]]


@final
@dataclass(frozen=True, eq=False)
class Contracted(Pooled):
    """CBSA of three projections (CBSA*), and without contraction CBSA∨: agent attention.

    In code
        ``R = pool(Q)``, ``A = softmax(s R Kᵀ) V``, ``C = softmax(s A Aᵀ) A`` (or ``C = A``), ``softmax(s Q Rᵀ) C``
    Source
        CBSA, arXiv 2509.16875, section 4.1 and figure 9
    """

    attention = "cbsa"
    options = ("contraction",)
    default = (8, 8)

    contraction: bool = True

    def __call__(self, parts: Mapping[str, Tensor], scale: float, dropout: float) -> Tensor:
        """See above."""
        return _through(self.landmarks(parts["query"]), parts, scale, dropout, self.contraction)


@final
@dataclass(frozen=True, eq=False)
class Agents(Pooled):
    """Agent attention: :class:`Contracted` without contraction, with the 7 × 7 agents of its own paper.

    In code
        ``R = pool(Q)``, ``softmax(s Q Rᵀ) softmax(s R Kᵀ) V``
    Source
        agent attention, arXiv 2312.08874, eq. 4
    """

    attention = "agent"
    default = (7, 7)

    def __call__(self, parts: Mapping[str, Tensor], scale: float, dropout: float) -> Tensor:
        """See above."""
        return _through(self.landmarks(parts["query"]), parts, scale, dropout, contraction=False)


@final
@dataclass(frozen=True, eq=False)
class Routed(Pooled):
    """MiTA: :func:`unrolling.mita` of the network's queries, keys and values; its options are that function's."""

    attention = "mita"
    options = ("keys_per_expert", "experts_per_query", "shared", "deduplicate")
    default = (5, 5)

    keys_per_expert: int = 25
    experts_per_query: int = 1
    shared: bool = True
    deduplicate: bool = False

    def __post_init__(self) -> None:
        check_count("adapt", "keys_per_expert", self.keys_per_expert, 0)
        check_count("adapt", "experts_per_query", self.experts_per_query)
        if not self.shared and self.keys_per_expert == 0:
            raise ValueError("adapt: with shared=False and keys_per_expert=0 a query has nothing to attend to.")
        if self.experts_per_query > self.landmarks.count:
            raise ValueError(
                f"adapt: experts_per_query is {self.experts_per_query}, but there are only {self.landmarks.count} landmarks."
            )

    def __call__(self, parts: Mapping[str, Tensor], scale: float, dropout: float) -> Tensor:
        """Attention to landmarks and routed keys; weights are never stored, so none can be dropped."""
        if dropout:
            raise ValueError(
                f"adapt: {self.landmarks.owner}: the network drops {dropout:g} of its attention weights while training, which"
                " mita never stores. Set that dropout to 0 (attn_drop.p, dropout …), or evaluate: model.eval()."
            )
        q, k, v = (parts[name] for name in PARTS)
        return mita(
            q,
            k,
            v,
            self.landmarks(q),
            keys_per_expert=self.keys_per_expert,
            experts_per_query=self.experts_per_query,
            shared=self.shared,
            scale=scale,
            deduplicate=self.deduplicate,
        )


@dataclass(frozen=True, eq=False)
class OfOne(Formula):
    """A formula of one projection, that of queries, keys or values."""

    options = ("projection",)

    projection: str = "value"

    def __post_init__(self) -> None:
        check_choice("adapt", "projection", self.projection, PARTS)

    @property
    def needs(self) -> tuple[str, ...]:
        """The one projection."""
        return (self.projection,)


@final
@dataclass(frozen=True, eq=False)
class Subspaces(OfOne):
    """MSSA's softmax form: ``softmax(s W Wᵀ) W``, the network's output matrix after it (CRATE, arXiv 2306.01129, eq. 12)."""

    attention = "mssa"

    def __call__(self, parts: Mapping[str, Tensor], scale: float, dropout: float) -> Tensor:
        """See above."""
        w = parts[self.projection]
        return attend(w, w, w, scale, dropout=dropout)


@final
@dataclass(frozen=True, eq=False)
class Statistics(OfOne):
    """TSSA with the constants of its released code: :func:`token_statistics`, the network's output matrix after it."""

    attention = "tssa"

    def __call__(self, parts: Mapping[str, Tensor], scale: float, dropout: float) -> Tensor:
        """See above; ``scale`` has no part in it."""
        return token_statistics(parts[self.projection], dropout)


def _through(agents: Tensor, parts: Mapping[str, Tensor], scale: float, dropout: float, contraction: bool) -> Tensor:
    """What tokens read of what agents read; dropout is of the weights of both, not of the contraction's."""
    found = attend(agents, parts["key"], parts["value"], scale, dropout=dropout)
    if contraction:
        found = attend(found, found, found, scale)
    return attend(parts["query"], agents, found, scale, dropout=dropout)


def token_memberships(w: Tensor) -> Tensor:
    """Π ``(..., heads, tokens)``, the softmax over heads of ``‖w‖²``, w's channels of unit length over the tokens."""
    squares = w.square()
    smallest = max(_SMALLEST, torch.finfo(w.dtype).tiny)
    lengths = (squares / squares.sum(-2, keepdim=True).clamp(min=smallest)).sum(-1)
    return torch.softmax(lengths, dim=-2)


def token_statistics(w: Tensor, dropout: float = 0.0) -> Tensor:
    """``−Π ∘ W / (1 + Σ_j Π_j W_j² / (Σ_j Π_j + 1e-8))``, ``Π = softmax over heads of ‖w‖²``, channels of unit length.

    What ``unrolling.TSSA(epsilon=√d, unit_step=True, count_offset=1e-8, normalise_tokens=True)`` adds before its output
    matrix, for temperatures of 1, the released code's first ones.

    Shapes
        w ``(..., heads, tokens, head_dim)``; returns like w
    Source
        ToST, arXiv 2412.17810, section 3, and its code
    """
    check_rows("token_statistics", 3, w=w)
    check_share("token_statistics", "dropout", dropout)
    squares, members = w.square(), token_memberships(w)
    part = members / (members.sum(-1, keepdim=True) + 1e-8)
    moments = part.unsqueeze(-2) @ squares
    return -(members.unsqueeze(-1) * w) * F.dropout(1.0 / (1.0 + moments), dropout, dropout > 0)


ATTENTIONS: dict[str, type[Formula]] = {
    kind.attention: kind for kind in (Contracted, Routed, Agents, Subspaces, Statistics)
}
"""What a network can be given, by name."""
