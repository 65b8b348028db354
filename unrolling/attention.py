"""What softmax attention, agent attention and MiTA share: projections, heads, the step, and the regression they are."""

from __future__ import annotations

import abc
import math
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives import KernelRegression

from .base import UnrolledLayer, hold
from .errors import check_choice, check_count, check_positive_number, check_share, check_tokens_for
from .kernels.choice import check_path
from .rms_norm import RMSNorm
from .rotary import GridRotary

__all__ = ["AttentionLayer", "AttentionOptions"]


class AttentionOptions(TypedDict, total=False):
    """The options that published attention layers add; :class:`unrolling.SoftmaxAttention` says what each does."""

    register_tokens: int
    output_bias: bool | None
    qk_norm: str | None
    idle_norms: bool
    rotary: GridRotary | None
    register_rotary: GridRotary | None
    convolution: bool
    gate: bool
    scale_norm: bool
    dropout: float
    output_dropout: float
    kernel: str


class AttentionLayer(UnrolledLayer, abc.ABC):
    """Attention whose outputs are the variable: ``x − κ (x − attention(x))``, so that κ = 1 is attention itself.

    See :class:`unrolling.SoftmaxAttention` and :class:`unrolling.MiTA` for the arguments.
    """

    step: Tensor

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
        register_tokens: int = 0,
        output_bias: bool | None = None,
        qk_norm: str | None = None,
        idle_norms: bool = False,
        rotary: GridRotary | None = None,
        register_rotary: GridRotary | None = None,
        convolution: bool = False,
        gate: bool = False,
        scale_norm: bool = False,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("dim", dim), ("heads", heads)):
            check_count(owner, name, value)
        check_choice(owner, "projections", projections, ("free", "identity"))
        head_dim = max(1, dim // heads) if head_dim is None else head_dim
        check_count(owner, "head_dim", head_dim)
        check_count(owner, "class_tokens", class_tokens, 0)
        check_count(owner, "register_tokens", register_tokens, 0)
        for name, share in (("dropout", dropout), ("output_dropout", output_dropout)):
            check_share(owner, name, share)
        if projections == "identity" and heads * head_dim != dim:
            raise ValueError(
                f"{owner}: with projections='identity' the heads share out the features, but {heads} × {head_dim} ="
                f" {heads * head_dim} is not dim {dim}. Use other heads, or projections='free'."
            )
        if projections == "identity" and (gate or scale_norm):
            raise ValueError(f"{owner}: a gate and scale_norm stand before the output matrix; pass projections='free'.")
        if scale is not None:
            check_positive_number(owner, "scale", scale)
        if isinstance(step_size, bool) or not isinstance(step_size, (int, float)) or not math.isfinite(step_size):
            raise ValueError(f"{owner}: step_size must be a finite number, but is {step_size!r}.")
        if qk_norm is not None:
            check_choice(owner, "qk_norm", qk_norm, ("layer", "rms"))
        self.dim, self.heads, self.head_dim, self.class_tokens = dim, heads, head_dim, class_tokens
        self.register_tokens = register_tokens
        check_path(owner, kernel)
        self.kernel = kernel
        self.projections, self.dropout, self.output_dropout = projections, float(dropout), float(output_dropout)
        self.scale = head_dim**-0.5 if scale is None else float(scale)
        inner = heads * head_dim
        if projections == "free":
            self.query, self.key, self.value = (nn.Linear(dim, inner, bias=bias) for _ in range(3))
            self.output = nn.Linear(inner, dim, bias=bias if output_bias is None else output_bias)
        self.gate = nn.Linear(dim, inner, bias=bias) if gate else None
        self.convolution = nn.Conv2d(inner, inner, 3, padding=1, groups=inner) if convolution else None
        self.output_norm = nn.LayerNorm(inner) if scale_norm else None
        self.query_norm, self.key_norm = _norm_of(qk_norm, head_dim), _norm_of(qk_norm, head_dim)
        self.idle_norms, self.rotary, self.register_rotary = idle_norms, rotary, register_rotary
        # A fixed step of 1 needs no arithmetic: attention is returned as it is, not as x + (attention − x).
        self.plain = step_size == 1 and not learnable_step
        hold(self, "step", torch.tensor(float(step_size)), learnable_step)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after one step towards attention; ``grid`` is the image's rows and columns of patches."""
        return self.attention(x, grid) if self.plain else x + self.update(x, grid)

    def update(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What the layer adds to the tokens: ``κ (attention(x) − x)``."""
        return self.step * (self.attention(x, grid) - x)

    def adds(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What a published block adds to its stream, from tokens ``x`` that it has normalised: attention itself."""
        return self.attention(x, grid)

    def attention(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The published layer's output: every head's attention, joined and projected."""
        values = self.values(x)
        read = self._read(self.queries(x, grid), self.keys(x, grid), values, grid, x)
        return self._joined(read, values, grid, x)

    def _joined(self, read: Tensor, values: Tensor, grid: tuple[int, int] | None, x: Tensor) -> Tensor:
        """The output of what the heads have read."""
        joined = read.transpose(-3, -2).flatten(-2)
        if self.convolution is not None:
            joined = joined + self._convolved(self.convolution, values, grid)
        if self.gate is not None:
            joined = joined * F.silu(self.gate(x))
        if self.output_norm is not None:
            joined = self.output_norm(joined)
        if self.projections == "free":
            joined = self.output(joined)
        return F.dropout(joined, self.output_dropout, self.training)

    def queries(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The queries ``(..., heads, tokens, head_dim)``, normalised and turned where the layer does that."""
        q = self._split(x, "query")
        return self._turned(q if self.idle_norms else self.query_norm(q), grid)

    def keys(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The keys ``(..., heads, tokens, head_dim)``, likewise."""
        k = self._split(x, "key")
        return self._turned(k if self.idle_norms else self.key_norm(k), grid)

    def values(self, x: Tensor) -> Tensor:
        """The values ``(..., heads, tokens, head_dim)``, before the output projection."""
        return self._split(x, "value")

    def _split(self, x: Tensor, name: str) -> Tensor:
        check_tokens_for(type(self).__name__, x, self.dim, self.step.dtype, self.step)
        flat = getattr(self, name)(x) if self.projections == "free" else x
        return flat.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    def _turned(self, tokens: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Rotary embedding of the patches, and of the registers on a grid of their own; class tokens stay."""
        if self.rotary is None and self.register_rotary is None:
            return tokens
        first, last = self.class_tokens, tokens.shape[-2] - self.register_tokens
        parts = [tokens[..., :first, :], tokens[..., first:last, :], tokens[..., last:, :]]
        if self.rotary is not None:
            parts[1] = self.rotary(parts[1], grid)
        if self.register_rotary is not None and self.register_tokens:
            parts[2] = self.register_rotary(parts[2])
        return torch.cat(parts, dim=-2)

    def _patches(self, tokens: Tensor) -> Tensor:
        """The tokens without the registers at their end: what is pooled, its class tokens first."""
        return tokens[..., : tokens.shape[-2] - self.register_tokens, :]

    def _convolved(self, convolution: nn.Conv2d, values: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """The 3 × 3 depth-wise convolution of the patches' values, zero at class and register tokens."""
        owner, first = type(self).__name__, self.class_tokens
        patches = self._patches(values)[..., first:, :]
        count = patches.shape[-2]
        rows, columns = (math.isqrt(count), math.isqrt(count)) if grid is None else grid
        if rows * columns != count:
            raise ValueError(
                f"{owner}: the convolution needs the grid of the {count} patches; pass grid=(rows, columns) to the call."
            )
        image = patches.transpose(-3, -2).flatten(-2).mT  # (..., heads · head_dim, patches)
        smooth = convolution(image.reshape(-1, image.shape[-2], rows, columns)).flatten(-2).mT
        return F.pad(smooth.reshape(*image.shape[:-2], count, -1), (0, 0, first, self.register_tokens))

    @abc.abstractmethod
    def _read(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None, x: Tensor) -> Tensor:
        """What every query reads, ``(..., heads, tokens, head_dim)``, by the fast formula."""

    @abc.abstractmethod
    def pairs(self, x: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The regression of every head: weights, values ``(..., heads, pairs, head_dim)``, support or None."""

    @abc.abstractmethod
    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What every token reads of every other ``(..., heads, tokens, tokens)``; rows sum to 1."""

    def objective_at(self, x: Tensor) -> KernelRegression:
        """One regression over the pairs of all heads, weights a_k/K towards the values K O_kᵀ v_k (+ bias)."""
        owner = type(self).__name__
        for name, part in (("convolution", self.convolution), ("gate", self.gate), ("scale_norm", self.output_norm)):
            if part is not None:
                raise ValueError(f"{owner}: no descent is claimed with {name}: it is no part of the regression.")
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


def _norm_of(kind: str | None, head_dim: int) -> nn.Module:
    if kind is None:
        return nn.Identity()
    return nn.LayerNorm(head_dim) if kind == "layer" else RMSNorm(head_dim, eps=1e-6)
