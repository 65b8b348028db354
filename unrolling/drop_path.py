"""Stochastic depth."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["DropPath", "growing"]


def growing(share: float, depth: int) -> list[float]:
    """Shares of the blocks, growing linearly from 0 to ``share``.

    >>> growing(0.1, 3)
    [0.0, 0.05, 0.1]
    """
    return [share * index / max(1, depth - 1) for index in range(depth)]


@final
class DropPath(nn.Module):
    """Stochastic depth: a residual branch is left out for whole samples, while training; the others are scaled up."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = float(share)

    def forward(self, x: Tensor) -> Tensor:
        """The branch, or zero, for every sample."""
        if not self.training or self.share == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.share
        return x * keep.to(x.dtype) / (1.0 - self.share)

    def extra_repr(self) -> str:
        """Share."""
        return f"share={self.share:g}"
