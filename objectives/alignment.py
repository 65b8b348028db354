"""Subspaces compared: principal directions, how far two spans agree, and which direction a token is nearest to."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import check_single, check_tokens

__all__ = ["nearest_direction", "principal_directions", "subspace_alignment"]


def principal_directions(tokens: Tensor, count: int) -> Tensor:
    """The first ``count`` principal directions of the tokens (not centred), one a row, the largest first.

    They minimise :class:`PCAReconstruction`, :class:`PCAVariance` and :class:`PCARate` over orthonormal rows. Their
    signs, and their order among equal eigenvalues, are the eigensolver's.

    Shapes
        tokens ``(..., N, dim)``; returns ``(..., count, dim)``

    Raises
    ------
        ValueError for a count outside 1 … dim, empty or non-finite tokens.

    >>> import torch
    >>> principal_directions(torch.diag(torch.tensor([1.0, 3.0])), 1).abs()
    tensor([[0., 1.]])
    """
    check_tokens("principal_directions", tokens)
    check_single("principal_directions", "tokens", tokens)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= tokens.shape[-1]:
        raise ValueError(
            f"principal_directions: count must be an integer from 1 to dim = {tokens.shape[-1]}, but is {count!r}."
        )
    size = tokens.detach().abs().amax((-2, -1), keepdim=True)
    unit = tokens / torch.where(size > 0, size, torch.ones_like(size))
    return torch.linalg.eigh(unit.mT @ unit).eigenvectors[..., -count:].flip(-1).mT


def subspace_alignment(P: Tensor, Q: Tensor) -> Tensor:
    """The mean squared cosine of the principal angles between the spans of the rows of P and of Q, in [0, 1].

    1 where the smaller span lies in the larger one, 0 where they are orthogonal; for orthonormal rows
    ``‖P Qᵀ‖² / min(C, D)``. Rows are orthonormalised first.

    Shapes
        P ``(..., C, dim)``, Q ``(..., D, dim)``; returns ``(...)``

    Raises
    ------
        ValueError for another dim, more rows than features, rows that depend on one another, non-finite entries.
    Claims
        pca.alignment

    >>> import torch
    >>> subspace_alignment(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0]]))
    tensor(0.5000)
    """
    check_tokens("subspace_alignment", P)
    check_tokens("subspace_alignment", Q, P.shape[-1], expects="the other span", like=P)
    check_single("subspace_alignment", "P", P)
    products = _orthonormal_rows("P", P) @ _orthonormal_rows("Q", Q).mT
    return products.square().sum((-2, -1)) / min(P.shape[-2], Q.shape[-2])


def nearest_direction(tokens: Tensor, directions: Tensor) -> Tensor:
    """The index of the direction with the largest cosine, for every token: segmentation by dot products.

    Shapes
        tokens ``(..., N, dim)``, directions ``(..., C, dim)``; returns integers ``(..., N)``. The first of equals; a
        zero token goes to direction 0.

    Raises
    ------
        ValueError for another dim, a zero direction, empty or non-finite input.

    >>> import torch
    >>> nearest_direction(torch.tensor([[2.0, 1.0], [0.0, 5.0]]), torch.eye(2))
    tensor([0, 1])
    """
    check_tokens("nearest_direction", directions)
    check_tokens("nearest_direction", tokens, directions.shape[-1], expects="directions", like=directions)
    lengths = directions.norm(dim=-1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise ValueError("nearest_direction: a direction is zero; every direction needs a length to divide by.")
    return (tokens @ (directions / lengths).mT).argmax(-1)


def _orthonormal_rows(name: str, rows: Tensor) -> Tensor:
    lengths = rows.norm(dim=-1, keepdim=True)
    unit = rows / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    if rows.shape[-2] <= rows.shape[-1]:
        frame, triangle = torch.linalg.qr(unit.mT)
        smallest = float(triangle.detach().diagonal(dim1=-2, dim2=-1).abs().min())
        if smallest > torch.finfo(rows.dtype).eps ** 0.5:
            return frame.mT
    raise ValueError(
        f"subspace_alignment: the rows of {name} {tuple(rows.shape)} are not independent; their span has no {rows.shape[-2]}"
        " dimensions. Leave out the rows that the others span."
    )
