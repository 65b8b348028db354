"""The parts that models are built from: stems, positions, blocks, heads. No attention of their own."""

from __future__ import annotations

import itertools
import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import AttentionLayer
from ..drop_path import DropPath
from ..errors import check_choice, check_dense
from ..rms_norm import RMSNorm
from ..subspace import SubspaceLayer

__all__ = [
    "MLP",
    "Block",
    "ConvStem",
    "LinearStem",
    "PatchStem",
    "Positions",
    "check_image",
    "truncated_normal_",
]


def check_image(
    owner: str, x: object, in_chans: int, patch: tuple[int, int], *, whole: bool = True, like: Tensor | None = None
) -> None:
    """Raise unless ``x`` is ``(batch, in_chans, H, W)``, in whole patches if ``whole``, of at least one patch."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: the image must be a torch.Tensor, but is a {type(x).__name__}.")
    check_dense(owner, "x", x, like)
    if not x.dtype.is_floating_point:
        raise TypeError(f"{owner}: x must be a floating-point tensor, but is {x.dtype}: x.float() / 255, normalised.")
    if like is not None and x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{owner}: x is {x.dtype}, but the network is {like.dtype}. Convert one: x.to(...), model.to(x.dtype)."
        )
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"{owner}: images must be (batch, {in_chans}, H, W), but are {tuple(x.shape)}.")
    torn = x.shape[2] % patch[0] or x.shape[3] % patch[1]
    if (whole and torn) or x.shape[2] < patch[0] or x.shape[3] < patch[1] or 0 in x.shape:
        raise ValueError(
            f"{owner}: {x.shape[2]} × {x.shape[3]} pixels are not whole patches of {patch[0]} × {patch[1]}; crop or pad them."
        )


def truncated_normal_(module: nn.Module) -> None:
    """Linear maps as in ViT: N(0, 0.02²) cut at two standard deviations, biases zero; for ``module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@final
class MLP(nn.Module):
    """Two linear maps with a GELU between: the feed-forward block of black-box transformers."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = float(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``fc2(gelu(fc1(x)))``."""
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


@final
class LinearStem(nn.Module):
    """Patches flattened, channel fastest, normalised, mapped and normalised again: CRATE's stem."""

    def __init__(self, in_chans: int, dim: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        inner = in_chans * patch[0] * patch[1]
        self.norm_patch, self.linear, self.norm = nn.LayerNorm(inner), nn.Linear(inner, dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(batch, rows · columns, dim)`` and the grid."""
        high, wide = self.patch
        rows, columns = x.shape[-2] // high, x.shape[-1] // wide
        cut = x.reshape(x.shape[0], x.shape[1], rows, high, columns, wide).permute(0, 2, 4, 3, 5, 1)
        return self.norm(self.linear(self.norm_patch(cut.flatten(3).flatten(1, 2)))), (rows, columns)


@final
class PatchStem(nn.Module):
    """One convolution that neither overlaps nor leaves gaps: ViT's stem. What is less than a patch is cut off."""

    def __init__(self, in_chans: int, dim: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(batch, rows · columns, dim)`` and the grid."""
        return _tokens(self.projection(x))


@final
class ConvStem(nn.Module):
    """3 × 3 convolutions of stride 2 with batch norms, GELU between them: XCiT's stem, which CBT and ToST have.

    The width doubles with every convolution and ends at dim: for patches of 16, dim/8, dim/4, dim/2, dim. Batch norms are
    plain ones; ``nn.SyncBatchNorm.convert_sync_batchnorm`` turns them into the released ones for training on many devices.
    What is less than a patch is padded to one.
    """

    def __init__(self, in_chans: int, dim: int, patch: tuple[int, int]) -> None:
        super().__init__()
        count = round(math.log2(patch[0]))
        if patch[0] != patch[1] or 2**count != patch[0] or count < 1 or dim % 2 ** (count - 1):
            raise ValueError(
                f"ConvStem: patches must be squares of side 2, 4, 8, 16 …, with dim a multiple of half the side;"
                f" patch is {patch[0]} × {patch[1]} and dim {dim}."
            )
        widths = [in_chans, *(dim // 2 ** (count - 1 - i) for i in range(count))]
        sizes = list(itertools.pairwise(widths))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(batch, rows · columns, dim)`` and the grid."""
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(F.gelu(x) if number else x))
        return _tokens(x)


def _tokens(image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    # Not flatten(2).mT: the strides of its gradient break the backward of batch norms on one CPU image (torch 2.13).
    return image.permute(0, 2, 3, 1).flatten(1, 2), (image.shape[-2], image.shape[-1])


@final
class Positions(nn.Module):
    """Class tokens before the patches, registers behind them, and learned positions, resized to any grid.

    Parameters
    ----------
        grid: rows and columns of patches that the positions are made for. class_tokens, registers: how many.
        on_class: whether class tokens have positions too. learned: whether there are learned positions at all.
        resize: how a grid of another size gets its positions: "bicubic", "bilinear", "offset" (bicubic with 0.1 patches
        added, as DINO's code and CBSA's ``forward_features`` have it), or "slice" (the first ones in order, as the
        released forward pass of CRATE and CBT does). by_count: let another grid of as many patches have the positions in
        their order, as Segmenter's code does. std: of the first values; the positions' and tokens' are N(0, std²).
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        *,
        class_tokens: int = 1,
        registers: int = 0,
        on_class: bool = True,
        learned: bool = True,
        by_count: bool = False,
        resize: str = "bicubic",
        std: float = 0.02,
    ) -> None:
        super().__init__()
        check_choice("Positions", "resize", resize, ("bicubic", "bilinear", "offset", "slice"))
        self.grid, self.class_tokens, self.registers, self.resize = grid, class_tokens, registers, resize
        self.on_class, self.by_count = class_tokens if on_class and learned else 0, by_count
        self.embedding = None
        if learned:
            self.embedding = nn.Parameter(std * torch.randn(1, self.on_class + grid[0] * grid[1], dim))
        if class_tokens:
            self.class_token = nn.Parameter(std * torch.randn(1, class_tokens, dim))
        if registers:
            self.register_token = nn.Parameter(std * torch.randn(1, registers, dim))

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class tokens, patches and registers, positions added."""
        size, parts = patches.shape[0], [patches]
        embedding = None if self.embedding is None else self._resized(self.embedding, grid)
        if embedding is not None:
            parts = [patches + embedding[:, self.on_class :]]
        if self.class_tokens:
            token: Tensor = self.class_token
            if embedding is not None and self.on_class:
                token = token + embedding[:, : self.on_class]
            parts.insert(0, token.expand(size, -1, -1))
        if self.registers:
            parts.append(self.register_token.expand(size, -1, -1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _resized(self, embedding: Tensor, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid or (self.by_count and grid[0] * grid[1] == self.grid[0] * self.grid[1]):
            return embedding
        if self.resize == "slice":
            wanted = self.on_class + grid[0] * grid[1]
            if wanted > embedding.shape[1]:
                raise ValueError(
                    f"Positions: resize='slice' has positions for {self.grid[0]} × {self.grid[1]} patches, and none for"
                    f" {grid[0]} × {grid[1]}; choose resize='bicubic'."
                )
            return embedding[:, :wanted]
        classes, patches = embedding[:, : self.on_class], embedding[:, self.on_class :]
        image = patches.mT.unflatten(-1, self.grid)
        if self.resize == "offset":
            factor = ((grid[0] + 0.1) / self.grid[0], (grid[1] + 0.1) / self.grid[1])
            image = F.interpolate(image, scale_factor=factor, mode="bicubic", recompute_scale_factor=False)
        else:
            image = F.interpolate(image, size=grid, mode=self.resize)
        return torch.cat((classes, image.flatten(-2).mT), dim=1)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"grid={self.grid}, class_tokens={self.class_tokens}, registers={self.registers}, resize={self.resize!r}"


@final
class Block(nn.Module):
    """A black-box transformer's block around any attention: ``x + γ₁ attention(norm(x))``, then ``x + γ₂ mlp(norm(x))``.

    Parameters
    ----------
        attention: an attention, or a subspace layer. hidden: width of the MLP. eps: of the norms; rms: whether they are
        root-mean-square norms. layer_scale: the first value of γ₁ and γ₂, None for none. drop_path, dropout: see above.
    """

    def __init__(
        self,
        attention: AttentionLayer | SubspaceLayer,
        hidden: int,
        *,
        eps: float = 1e-6,
        rms: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim = attention.dim
        self.norm1, self.norm2 = ((RMSNorm if rms else nn.LayerNorm)(dim, eps=eps) for _ in range(2))
        self.attention, self.mlp, self.drop_path = attention, MLP(dim, hidden, dropout), DropPath(drop_path)
        for name in ("gamma1", "gamma2"):
            scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
            self.register_parameter(name, scale)
        self.gamma1: Tensor | None
        self.gamma2: Tensor | None

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after both halves."""
        return self.feed(self.attend(x, grid))

    def seen(self, x: Tensor) -> Tensor:
        """What the attention gets to see of the tokens: normalised."""
        return self.norm1(x)

    def attend(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after the attention."""
        added = self.attention.adds(self.norm1(x), grid)
        return x + self.drop_path(added if self.gamma1 is None else self.gamma1 * added)

    def feed(self, x: Tensor) -> Tensor:
        """Tokens that have passed the attention, after the MLP."""
        added = self.mlp(self.norm2(x))
        return x + self.drop_path(added if self.gamma2 is None else self.gamma2 * added)
