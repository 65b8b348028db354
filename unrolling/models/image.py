"""What networks of images share: sizes and their checks, and the way from an image through blocks to class scores."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import check_choice
from .base import Model, ModelConfig, Stage, pair

__all__ = ["ImageConfig", "ImageModel"]


@dataclass(frozen=True)
class ImageConfig(ModelConfig):
    """Sizes and options of a network of images.

    img_size: of the images that positions are made for. drop_rate: of embedded tokens; attn_drop_rate: of attention
    weights; drop_path_rate: of residual branches. compat: "official" for what the released code does otherwise.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    compat: str | None = None

    COUNTS = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")
    SHARES = ("drop_rate", "attn_drop_rate", "drop_path_rate")
    WHOLE: ClassVar[bool] = True
    """Whether img_size must be whole patches: where positions are learned for them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        if self.compat is not None:
            check_choice(owner, "compat", self.compat, ("official",))
        if getattr(self, "head_dim", None) is None and self.embed_dim % self.num_heads:
            hint = "; give head_dim" if hasattr(self, "head_dim") else ""
            raise ValueError(
                f"{owner}: embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}{hint}."
            )
        (height, width), (high, wide) = pair(self.img_size), pair(self.patch_size)
        if self.WHOLE and (height % high or width % wide):
            raise ValueError(f"{owner}: img_size {height} × {width} is not whole patches of {high} × {wide}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of ``img_size``."""
        (height, width), (high, wide) = pair(self.img_size), pair(self.patch_size)
        return height // high, width // wide


class ImageModel(Model, abc.ABC):
    """From images ``(batch, in_chans, H, W)`` to class scores ``(batch, num_classes)``, through tokens and blocks."""

    config: ImageConfig
    blocks: nn.ModuleList
    head: nn.Module
    class_tokens: int = 1

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        self.patch = pair(self.config.patch_size)

    def _scores(self) -> nn.Module:
        """The last linear map; none where there are no classes."""
        return nn.Linear(self.config.embed_dim, self.config.num_classes) if self.config.num_classes else nn.Identity()

    @abc.abstractmethod
    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens that enter the first block, and the grid of the patches."""

    def _through_blocks(self, x: Tensor) -> Tensor:
        x, grid = self.embed(x)
        for block in self.blocks:
            x = self._run(block, x, grid)
        return x

    @abc.abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last block, ``(batch, tokens, embed_dim)``."""

    def forward_head(self, x: Tensor) -> Tensor:
        """Class scores from the tokens of :meth:`forward_features`."""
        return self.head(x[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images."""
        return self.forward_head(self.forward_features(x))

    def stages(self, x: Tensor) -> Iterator[Stage]:
        """Every block with the tokens that enter it."""
        x, grid = self.embed(x)
        for number, block in enumerate(self.blocks):
            yield Stage(f"block {number}", block, x, grid, self.class_tokens)
            x = block(x, grid)
