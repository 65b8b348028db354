"""The coding rate of more tokens than fit in memory: one walk over them, then a factor of the smaller side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from objectives import CodingRate

from ..errors import check_count, check_dense, check_positive_number, check_precision, check_rows
from .choice import PLAIN, choose, full_precision, second_gradient, second_order

__all__ = ["StreamedRate", "coding_rate", "streamed_rate"]


def coding_rate(x: Tensor, epsilon: float = 0.5, *, tokens: int | None = None, kernel: str = "auto") -> Tensor:
    """``½ logdet(I + β xᵀx)``, β = d/(N ε²), differentiable, for x ``(..., tokens, dim)``; returns ``(...)``.

    Parameters
    ----------
        epsilon, tokens: as for :class:`objectives.CodingRate`. kernel: "plain" is that class under autograd, which
        differentiates the factorisation; "fast" keeps the factor and returns ``β x (I + β xᵀx)⁻¹`` backward; "auto"
        takes the second.
    """
    rate = CodingRate(epsilon, tokens)
    check_rows("coding_rate", x=x)
    if choose("coding_rate", kernel, lambda: True, x) == PLAIN:
        return rate.value(x)
    return _Rate.apply(x, rate)


class _Rate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: CodingRate) -> Tensor:
        with full_precision(x):
            value, gradient = rate.value_and_gradient(x) if ctx.needs_input_grad[0] else (rate.value(x), None)
        ctx.rate = rate
        ctx.save_for_backward(x, *([] if gradient is None else [gradient]))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x, gradient = ctx.saved_tensors
        if second_order():
            with torch.enable_grad():
                return second_gradient(ctx.rate.value(x), [x], grad)[0], None
        return grad[..., None, None] * gradient, None


class Rows(Protocol):
    """What can be cut into pieces of rows: a tensor, an array, a memory-mapped file opened as one."""

    @property
    def shape(self) -> Any:
        """(tokens, dim)."""

    def __getitem__(self, part: slice, /) -> Any:
        """Some of the rows."""


@dataclass(frozen=True)
class StreamedRate:
    """The coding rate of tokens that were seen once, and its gradient for as many of them as are shown again.

    Shapes
        value ``()`` in nats, float64; inverse ``β (I + β xᵀx)⁻¹`` ``(dim, dim)``, float64
    """

    value: Tensor
    tokens: int
    epsilon: float
    inverse: Tensor

    def gradient(self, rows: Tensor) -> Tensor:
        """The rows ``(n, dim)`` of ``∇R = β x (I + β xᵀx)⁻¹``, in their dtype."""
        return rows @ self.inverse.to(dtype=rows.dtype, device=rows.device)


def streamed_rate(
    rows: Rows | Iterable[Any], epsilon: float = 0.5, *, tokens: int | None = None, chunk: int = 1 << 14
) -> StreamedRate:
    """``R(x) = ½ logdet(I + β xᵀx)``, β = d/(N ε²), in one walk over rows that need not fit in memory.

    Parameters
    ----------
        rows: a tensor, array or memory-mapped array ``(N, d)`` (``numpy.load(file, mmap_mode="r")``), walked over ``chunk``
        rows at a time; or an iterator over pieces ``(n, d)``. Each piece is squared in its own precision, at least single;
        the sum is kept in double. tokens: the N in β where it is not the number of rows seen.
    Memory
        one piece and d × d numbers. Fewer than d rows are kept as they are, and the N × N side is factored.

    Raises
    ------
        ValueError for pieces that are no matrices, of different widths, with NaN or infinite entries, or none at all; and
        for rows so long beside ε that their squares, in the rows' precision, have lost the rate.
    """
    check_positive_number("streamed_rate", "epsilon", epsilon)
    check_precision("streamed_rate", epsilon)
    check_count("streamed_rate", "chunk", chunk)
    if tokens is not None:
        check_count("streamed_rate", "tokens", tokens)
    few: list[Tensor] = []
    gram: Tensor | None = None
    seen, dim, eps = 0, None, 0.0
    for piece in _pieces(rows, chunk):
        if dim is not None and piece.shape[1] != dim:
            raise ValueError(f"streamed_rate: a piece of width {piece.shape[1]} after pieces of width {dim}.")
        dim, seen, eps = piece.shape[1], seen + len(piece), max(eps, torch.finfo(piece.dtype).eps)
        if gram is None:
            few.append(piece)
            if seen < dim:
                continue
            piece, few = torch.cat(few), []
            gram = torch.zeros(dim, dim, dtype=torch.float64, device=piece.device)
        gram += (piece.mT @ piece).to(torch.float64)
    if dim is None or seen == 0:
        raise ValueError("streamed_rate: no rows came.")
    beta = dim / ((tokens or seen) * epsilon**2)
    x = None
    if gram is None:
        x = torch.cat(few).to(torch.float64)
        gram, eps = x @ x.mT, torch.finfo(x.dtype).eps
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(eye + beta * gram)
    # Rounding has moved every squared pivot by some eps of the largest: a small one must not be of that size.
    lost = eps * beta * float(gram.diagonal().amax()) / float(factor.diagonal().square().amin())
    if int(info) or not lost <= 0.1:
        raise ValueError(
            "streamed_rate: squaring these rows loses the rate: their rounding is"
            f" {'more than' if int(info) else f'{lost:.2g} times'} the smallest pivot, and should be far below it."
            " Pass rows in double precision, or a larger epsilon."
        )
    inverse = torch.cholesky_inverse(factor)
    if x is not None:  # (I + β xᵀx)⁻¹ = I − β xᵀ (I + β x xᵀ)⁻¹ x
        inverse = torch.eye(dim, dtype=torch.float64, device=x.device) - beta * (x.mT @ inverse @ x)
    return StreamedRate(factor.diagonal().log().sum(), seen, float(epsilon), beta * inverse)


def _pieces(rows: Rows | Iterable[Any], chunk: int) -> Iterator[Tensor]:
    if isinstance(rows, type):
        raise TypeError(
            f"streamed_rate: rows must be a matrix or an iterable of matrices, but are the class {rows.__name__}."
        )
    if isinstance(rows, Tensor):
        check_dense("streamed_rate", "rows", rows)
    if hasattr(rows, "shape"):
        shape = tuple(rows.shape)
        if len(shape) != 2:
            raise ValueError(f"streamed_rate: rows must be a matrix (tokens, dim), but has shape {shape}.")
        starts = range(0, shape[0], chunk)
        parts: Iterable[Any] = (rows[start : start + chunk] for start in starts)  # type: ignore[index]
    elif isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise TypeError(
            f"streamed_rate: rows must be a matrix or an iterable of matrices, but are a {type(rows).__name__}."
        )
    else:
        parts = rows
    for index, part in enumerate(parts):
        piece = part.detach() if isinstance(part, Tensor) else torch.tensor(part)
        if piece.is_complex() or piece.layout != torch.strided or piece.is_meta:
            raise TypeError(
                f"streamed_rate: rows must be dense real numbers, but piece {index} is {piece.dtype} on {piece.device}."
            )
        if piece.ndim != 2 or piece.shape[1] == 0:
            raise ValueError(f"streamed_rate: piece {index} must be (rows, dim), but has shape {tuple(piece.shape)}.")
        piece = piece.to(torch.promote_types(piece.dtype, torch.float32))
        if len(piece) and not math.isfinite(float(piece.abs().amax())):
            raise ValueError(f"streamed_rate: piece {index} has NaN or infinite entries.")
        yield piece
