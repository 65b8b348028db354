"""What softmax attention and MiTA share: projections, heads, the step, and attention read as kernel regression."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn

from objectives import KernelRegression

from .base import UnrolledLayer
from .errors import check_choice, check_count, check_positive_number, check_tokens_for

__all__ = ["AttentionLayer"]


class AttentionLayer(UnrolledLayer, abc.ABC):
    """Attention whose outputs are the variable: ``x − κ (x − attention(x))``, so that κ = 1 is attention itself.

    See :class:`unrolling.SoftmaxAttention` and :class:`unrolling.MiTA` for the arguments.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int | None,
        *,
        projections: str,
        bias: bool,
        scale: float | None,
        step_size: float,
        learnable_step: bool,
        class_tokens: int,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("dim", dim), ("heads", heads)):
            check_count(owner, name, value)
        check_choice(owner, "projections", projections, ("free", "identity"))
        head_dim = max(1, dim // heads) if head_dim is None else head_dim
        check_count(owner, "head_dim", head_dim)
        check_count(owner, "class_tokens", class_tokens, 0)
        if projections == "identity" and heads * head_dim != dim:
            raise ValueError(
                f"{owner}: with projections='identity' the heads share out the features, but {heads} × {head_dim} ="
                f" {heads * head_dim} is not dim {dim}. Use other heads, or projections='free'."
            )
        if scale is not None:
            check_positive_number(owner, "scale", scale)
        if isinstance(step_size, bool) or not isinstance(step_size, (int, float)) or not math.isfinite(step_size):
            raise ValueError(f"{owner}: step_size must be a finite number, but is {step_size!r}.")
        self.dim, self.heads, self.head_dim, self.class_tokens = dim, heads, head_dim, class_tokens
        self.projections = projections
        self.scale = head_dim**-0.5 if scale is None else float(scale)
        if projections == "free":
            inner = heads * head_dim
            self.query, self.key, self.value = (nn.Linear(dim, inner, bias=bias) for _ in range(3))
            self.output = nn.Linear(inner, dim, bias=bias)
        self.step = nn.Parameter(torch.tensor(float(step_size)), requires_grad=learnable_step)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after one step towards attention; ``grid`` is the image's rows and columns of patches."""
        return x + self.update(x, grid)

    def update(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What the layer adds to the tokens: ``κ (attention(x) − x)``."""
        return self.step * (self.attention(x, grid) - x)

    def attention(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The published layer's output: every head's attention, joined and projected."""
        read = self._read(self.queries(x), self.keys(x), self.values(x), grid)
        joined = read.transpose(-3, -2).flatten(-2)
        return self.output(joined) if self.projections == "free" else joined

    def queries(self, x: Tensor) -> Tensor:
        """The queries ``(..., heads, tokens, head_dim)``."""
        return self._split(x, "query")

    def keys(self, x: Tensor) -> Tensor:
        """The keys ``(..., heads, tokens, head_dim)``."""
        return self._split(x, "key")

    def values(self, x: Tensor) -> Tensor:
        """The values ``(..., heads, tokens, head_dim)``, before the output projection."""
        return self._split(x, "value")

    def _split(self, x: Tensor, name: str) -> Tensor:
        check_tokens_for(type(self).__name__, x, self.dim, self.step.dtype)
        flat = getattr(self, name)(x) if self.projections == "free" else x
        return flat.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    @abc.abstractmethod
    def _read(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """What every query reads, ``(..., heads, tokens, head_dim)``, by the fast formula."""

    @abc.abstractmethod
    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The regression of every head: weights, values ``(..., heads, pairs, head_dim)``, support or None."""

    def objective_at(self, x: Tensor) -> KernelRegression:
        """One regression over the pairs of all heads, weights a_k/K towards the values K O_kᵀ v_k (+ bias)."""
        with torch.no_grad():
            weights, values, support = self.pairs(x)
        if self.projections == "free":
            blocks = self.output.weight.detach().unflatten(-1, (self.heads, self.head_dim)).permute(1, 2, 0)
        else:
            eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
            blocks = eye.unflatten(0, (self.heads, self.head_dim))
        towards = self.heads * (values @ blocks)
        if self.projections == "free" and self.output.bias is not None:
            towards = towards + self.output.bias.detach()
        count = values.shape[-2]
        if support is not None:
            shift = count * torch.arange(self.heads, device=x.device)
            support = (support + shift[:, None, None]).transpose(-3, -2).flatten(-2)
        joint = weights.transpose(-3, -2).flatten(-2) / self.heads
        return KernelRegression(joint, towards.flatten(-3, -2), support)

    def step_size_at(self, x: Tensor) -> Tensor:
        """κ; steps inside (0, 2) lower the regression, κ = 1 lands on its minimiser."""
        return self.step.detach()

    def extra_repr(self) -> str:
        """Sizes and options."""
        return f"dim={self.dim}, heads={self.heads}, head_dim={self.head_dim}, projections={self.projections!r}"
