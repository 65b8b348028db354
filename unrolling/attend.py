"""Softmax attention of given queries, keys and values, by the fastest way that keeps its gradients accurate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels.choice import PLAIN

__all__ = ["attend"]

SMALL, AFFORDABLE = 1 << 16, 1 << 21
"""Scores a head up to which the plain formula is as fast, and up to which its memory is no matter."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Tensor:
    """``softmax(scale q kᵀ + bias) v``, by ``scaled_dot_product_attention`` ("fast") or the plain formula ("plain").

    "auto": on a CPU torch's fused kernel trades accuracy of its gradients for speed: 5e-6 of their largest entry in single
    precision, where the plain formula has 1e-6. With gradients, and for few tokens, the formula is taken there.

    Shapes
        q ``(..., queries, p)``, k ``(..., tokens, p)``, v ``(..., tokens, p')``, bias ``(..., queries, tokens)``

    >>> attend(torch.zeros(1, 2), torch.eye(2), torch.eye(2), 1.0)
    tensor([[0.5000, 0.5000]])
    """
    scores = q.shape[-2] * k.shape[-2]
    learning = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    small = q.device.type == "cpu" and scores <= (AFFORDABLE if learning else SMALL)
    if kernel == PLAIN or (kernel == "auto" and small):
        products = scale * (q @ k.mT)
        weights = torch.softmax(products if bias is None else products + bias, dim=-1)
        return F.dropout(weights, dropout) @ v if dropout else weights @ v
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
