"""MSSA's exact form through the p × p side: two products with the tokens forward, three backward, no N × N system."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import check_rows, positive_number
from ..subspace import contract
from .choice import PLAIN, choose, full_precision, second_gradient, second_order
from .together import Shard, add, sum_over

__all__ = ["contract_tokens"]

TALL = 4
"""Rows a column from which inverting the small system once beats solving it for every row."""


def contract_tokens(w: Tensor, beta: float, kernel: str = "auto", shard: Shard | None = None) -> Tensor:
    """``β w (I + β wᵀw)⁻¹`` for coordinates w ``(..., tokens, p)`` of more tokens than dimensions.

    "plain" solves for every token; "fast" forms ``M = β (I + β wᵀw)⁻¹`` once and multiplies, forward ``w M``, backward
    ``g M − w (M D M + (M D M)ᵀ)``, D = wᵀ g. No accuracy is lost by the inverse: the rounding of the Gram matrix, in
    either, is amplified by the same condition number. shard: w holds one rank's tokens; p × p numbers are summed.
    """
    check_rows("contract_tokens", w=w)
    beta = beta if isinstance(beta, Tensor) else positive_number("contract_tokens", "beta", beta)
    if choose("contract_tokens", kernel, lambda: w.shape[-2] >= TALL * w.shape[-1], w) == PLAIN:
        return _plain(w, beta, shard)
    if w.dtype in (torch.float16, torch.bfloat16):  # forced under autocast: half precision has no solver
        return _Contract.apply(w.float(), beta, shard).to(w.dtype)
    return _Contract.apply(w, beta, shard)


def _plain(w: Tensor, beta: float, shard: Shard | None) -> Tensor:
    if shard is None:
        return contract(w, beta)
    system = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device) + beta * sum_over(w.mT @ w, shard)
    return torch.linalg.solve(system, beta * w, left=False)


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, beta: float, shard: Shard | None) -> Tensor:
        with full_precision(w):
            eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
            system = eye + beta * add(w.mT @ w, shard)
            M = torch.linalg.solve(system, (beta * eye).expand_as(system))  # a matrix here could be read as vectors
            out = w @ M
        ctx.save_for_backward(w, M)
        ctx.beta, ctx.shard = beta, shard
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        w, M = ctx.saved_tensors
        if second_order():
            with torch.enable_grad():
                return second_gradient(_plain(w, ctx.beta, ctx.shard), [w], grad)[0], None, None
        with full_precision(w):
            change = M @ add(w.mT @ grad, ctx.shard) @ M
            return grad @ M - w @ (change + change.mT), None, None
