"""Root-mean-square normalisation that stays in the dtype of its input, under autocast too."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RMSNorm"]


class RMSNorm(nn.RMSNorm):
    """``γ x / √(mean x² + ε)`` along the last axis, with γ brought to x's dtype.

    torch's own warns and leaves its fused kernel where autocast hands it bfloat16 tokens beside a float32 γ.

    >>> import torch
    >>> RMSNorm(2)(torch.tensor([3.0, 4.0])).square().mean().item()  # doctest: +ELLIPSIS
    1.0...
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(…, dim)`` to the same."""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)
