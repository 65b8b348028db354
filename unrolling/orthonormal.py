"""A parametrization that keeps the columns of a matrix orthonormal, whatever an optimiser does to its parameter."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["OrthonormalColumns"]


@final
class OrthonormalColumns(nn.Module):
    r"""A tall matrix as a product of Householder reflections, read off below the diagonal of its parameter.

    Column j below the diagonal is the vector of reflection j; signs, fixed when a matrix is assigned, choose each
    column's direction. The diagonal and all above it have no effect. (The Householder form of
    ``torch.nn.utils.parametrizations.orthogonal`` keeps the signs on that diagonal, truncated to integers: weight
    decay shrinks 1 to 0.99, and the matrix becomes zero.)

    Shapes
        parameter ``(rows, columns)``, rows ≥ columns; returns the same
    """

    signs: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("signs", torch.ones(columns))

    def forward(self, parameter: Tensor) -> Tensor:
        """The product of the reflections, its columns signed."""
        # Half precision has no such product: there it is made in single precision.
        below = parameter.tril(-1).to(torch.promote_types(parameter.dtype, torch.float32))
        product = torch.linalg.householder_product(below, 2.0 / (1.0 + below.square().sum(-2)))
        return product.to(parameter.dtype) * self.signs

    @torch.no_grad()
    def right_inverse(self, matrix: Tensor) -> Tensor:
        """The parameter that gives ``matrix``, whose columns must be orthonormal."""
        packed, scalars = torch.geqrf(matrix)
        signs = packed.diagonal().sign()
        # Where a column needs no reflection LAPACK does none; ours then flips it once.
        self.signs = torch.where(scalars == 0, -signs, signs)
        return packed.tril(-1)
