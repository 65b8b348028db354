"""Rotary position embedding on a grid of patches: queries and keys turned by angles of their row and column."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from .errors import check_count, check_positive_number

__all__ = ["GridRotary"]


@final
class GridRotary(nn.Module):
    r"""Turns pairs of features by angles that grow with the row (first half of the features) or column (second half).

    In code
        pair (2i, 2i+1) of a half of width h is turned by ``t θ^(−2i/h)``, t = position · reference / side, so that a
        larger grid covers the same angles. Products of turned vectors depend on differences of positions only.
    Shapes
        x ``(..., rows · columns, head_dim)`` to the same, row by row
    Parameters
        head_dim: a multiple of 4. reference: the side of the grid that the angles are made for. theta: θ.
    Source
        RoFormer, arXiv 2104.09864; on grids as in the released code of ViT-5, which takes squares only.

    Raises
    ------
        ValueError for a head_dim that is no multiple of 4, and a grid that is not the number of tokens.
    Claims
        softmax.rotary

    >>> GridRotary(4, 2)(torch.ones(4, 4)).square().sum(-1).round()  # lengths are kept
    tensor([4., 4., 4., 4.])
    """

    freqs: Tensor

    def __init__(self, head_dim: int, reference: int, theta: float = 10000.0) -> None:
        super().__init__()
        for name, value in (("head_dim", head_dim), ("reference", reference)):
            check_count("GridRotary", name, value)
        check_positive_number("GridRotary", "theta", theta)
        if head_dim % 4:
            raise ValueError(
                f"GridRotary: head_dim must be a multiple of 4 (pairs, rows and columns), but is {head_dim}."
            )
        theta = float(theta)
        self.reference, self.theta = reference, theta
        half = head_dim // 2
        self.register_buffer("freqs", 1.0 / theta ** (torch.arange(0, half, 2).float() / half))

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """X turned; a square grid where none is given."""
        tokens = x.shape[-2]
        rows, columns = (math.isqrt(tokens), math.isqrt(tokens)) if grid is None else grid
        if rows * columns != tokens:
            raise ValueError(
                f"GridRotary: {tokens} tokens do not fill {'a square' if grid is None else f'a grid {rows} × {columns}'};"
                " pass grid=(rows, columns) of patches."
            )
        angles = self._angles(rows, columns).to(x.dtype).repeat_interleave(2, dim=-1)
        left, right = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-right, left), dim=-1).flatten(-2)
        return x * angles.cos() + turned * angles.sin()

    def _angles(self, rows: int, columns: int) -> Tensor:
        """One angle for every pair, ``(rows · columns, head_dim / 2)``."""
        down, across = (
            torch.arange(side, device=self.freqs.device, dtype=self.freqs.dtype)[:, None]
            * (self.reference / side)
            * self.freqs
            for side in (rows, columns)
        )
        down = down[:, None, :].expand(rows, columns, -1)
        across = across[None, :, :].expand(rows, columns, -1)
        return torch.cat((down, across), dim=-1).flatten(0, 1)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"head_dim={4 * len(self.freqs)}, reference={self.reference}, theta={self.theta:g}"
