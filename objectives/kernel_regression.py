"""Kernel regression: what attention minimises when its outputs are the variable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Objective
from .errors import check_like, check_matrix, check_positive, check_stochastic, check_tokens

__all__ = ["KernelRegression"]

_CHUNK = 1 << 21
"""Gathered numbers held at once: queries with supports of their own are taken in chunks."""


@final
@dataclass(frozen=True, eq=False)
class KernelRegression(Objective):
    r"""Every output is drawn to the values in its support, in proportion to attention: a step of size 1 is attention.

    Minimises
        $f(O) = \frac{1}{2} \sum_i \sum_{j \in S_i} a_{ij} \Vert o_i - v_j \Vert^2$, $\sum_j a_{ij} = 1$, a and v constant
    In code
        ``½ Σ_i (‖x_i‖² − 2 x_i · (a v)_i + (a ‖v‖²)_i)``, values and x shifted by the mean value so that little cancels;
        no queries × support × dim array
    Gradient
        ``x − a v``. The Hessian is the identity: L = 1, and from any x one step of size 1 lands on the minimiser a v,
        a step κ lowers f by exactly ``κ (1 − κ/2) ‖x − a v‖²``
    Shapes
        x, the outputs, ``(..., queries, dim)``; weights a ``(..., queries, pairs)``, rows sum to 1; values
        ``(..., tokens, dim)``; support ``(..., queries, pairs)``, which value each weight belongs to, a value may come
        twice; without it pairs = tokens
    Source
        MiTA, arXiv 2602.01219, attention as fast weights; Nadaraya 1964 and Watson 1964 for the regression.

    Raises
    ------
        ValueError for rows that are negative or do not sum to 1, supports out of range, shapes that do not fit;
        TypeError for other types.
    Claims
        kernel_regression.value, kernel_regression.gradient, kernel_regression.minimiser, kernel_regression.smoothness,
        kernel_regression.decrease, softmax.step.exact, mita.step.exact

    >>> import torch
    >>> f = KernelRegression(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0], [-1.0]]))
    >>> f.value(torch.zeros(1, 1)).item(), f.gradient(torch.tensor([[3.0]])).item()
    (0.5, 3.0)
    """

    weights: Tensor
    values: Tensor
    support: Tensor | None = None

    def __post_init__(self) -> None:
        owner = "KernelRegression"
        check_matrix(owner, "weights", self.weights, "(..., queries, pairs)")
        check_matrix(owner, "values", self.values, "(..., tokens, dim)")
        check_like(owner, "weights", self.weights, "values", self.values)
        check_stochastic(owner, "weights", self.weights)
        pairs, tokens = self.weights.shape[-1], self.values.shape[-2]
        if self.support is None:
            if pairs != tokens:
                raise ValueError(
                    f"{owner}: weights have {pairs} columns, but there are {tokens} values; give support= to say which"
                    f" value each weight belongs to.\n"
                    f"  weights are (..., queries, pairs) = {tuple(self.weights.shape)};"
                    f" values are (..., tokens, dim) = {tuple(self.values.shape)}."
                )
            return
        if not isinstance(self.support, Tensor) or self.support.dtype != torch.int64:
            raise TypeError(f"{owner}: support must be a tensor of int64 indices (..., queries, pairs), or None.")
        if self.support.shape[-2:] != self.weights.shape[-2:]:
            raise ValueError(
                f"{owner}: support {tuple(self.support.shape)} must have the queries and pairs of weights"
                f" {tuple(self.weights.shape)}."
            )
        low, high = int(self.support.min()), int(self.support.max())
        if low < 0 or high >= tokens:
            raise ValueError(f"{owner}: support holds indices {low} to {high}, but there are {tokens} values.")

    @classmethod
    def attention(
        cls, queries: Tensor, keys: Tensor, values: Tensor, scale: float | Tensor, mask: Tensor | None = None
    ) -> KernelRegression:
        """The regression whose weights are ``softmax(s q kᵀ)`` over the keys that ``mask`` leaves to each query.

        Shapes
            queries ``(..., queries, p)``, keys ``(..., tokens, p)``, values ``(..., tokens, dim)``, mask
            ``(..., queries, tokens)``, True where a key belongs to the support
        """
        check_positive("KernelRegression", "scale", scale)
        check_matrix("KernelRegression", "keys", keys, "(..., tokens, p)")
        check_tokens("KernelRegression", queries, keys.shape[-1], expects="keys")
        scores = scale * (queries @ keys.mT)
        if mask is not None:
            if not bool(mask.any(-1).all()):
                raise ValueError("KernelRegression: mask leaves some query without any key.")
            scores = scores.masked_fill(~mask, -torch.inf)
        return cls(torch.softmax(scores, dim=-1), values)

    def value(self, x: Tensor) -> Tensor:
        """f(x), one number for each leading index."""
        self._check(x)
        centre = self.values.mean(-2, keepdim=True)
        shifted, outputs = self.values - centre, x - centre
        moments = self._average(torch.cat([shifted, shifted.square().sum(-1, keepdim=True)], dim=-1))
        cross = (outputs * (outputs - 2.0 * moments[..., :-1])).sum(-1)
        return 0.5 * (cross + moments[..., -1]).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """X − a v."""
        self._check(x)
        return x - self._average(self.values)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L = 1, everywhere."""
        return torch.ones((), dtype=x.dtype, device=x.device)

    def _average(self, columns: Tensor) -> Tensor:
        """``Σ_j a_ij columns_j`` for every query, over its own support."""
        if self.support is None:
            return self.weights @ columns
        leading = torch.broadcast_shapes(self.weights.shape[:-2], self.support.shape[:-2], columns.shape[:-2])
        weights, support, columns = (
            tensor.expand(*leading, *tensor.shape[-2:]) for tensor in (self.weights, self.support, columns)
        )
        width = columns.shape[-1]
        rows = max(1, _CHUNK // max(1, math.prod(leading) * weights.shape[-1] * width))
        pieces = []
        for a, index in zip(weights.split(rows, dim=-2), support.split(rows, dim=-2), strict=True):
            picked = columns.gather(-2, index.flatten(-2).unsqueeze(-1).expand(*leading, -1, width))
            pieces.append((a.unsqueeze(-2) @ picked.unflatten(-2, index.shape[-2:])).squeeze(-2))
        return torch.cat(pieces, dim=-2)

    def _check(self, x: Tensor) -> None:
        check_tokens("KernelRegression", x, self.values.shape[-1], expects="values", like=self.values)
        if x.shape[-2] != self.weights.shape[-2]:
            raise ValueError(
                f"KernelRegression: x has {x.shape[-2]} outputs, but weights were made for {self.weights.shape[-2]} queries.\n"
                f"  x is (..., queries, dim) = {tuple(x.shape)}; weights are (..., queries, pairs) ="
                f" {tuple(self.weights.shape)}."
            )
