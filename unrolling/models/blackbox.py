"""The skeleton of the black-box transformers: a patch stem, blocks of attention and MLP, a norm, a head."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import AttentionLayer
from ..drop_path import growing
from ..errors import check_choice, check_positive_number
from ..rms_norm import RMSNorm
from .base import Model, ModelConfig, Stage, pair
from .parts import Block, PatchStem, Positions, check_image, truncated_normal_

__all__ = ["BlackBox", "BlackBoxConfig"]


@dataclass(frozen=True)
class BlackBoxConfig(ModelConfig):
    """Sizes and options of ViT and its kin.

    img_size: of the images that positions are made for; others are resized to, by ``resize``. mlp_ratio: width of the MLP
    in units of embed_dim. qkv_bias: biases of query, key and value. norm_eps: of all norms (1e-6 in timm, 1e-5 in
    Segmenter). layer_scale: first value of the residual branches' scales, None for none. drop_rate: of embedded tokens,
    attention outputs and MLPs; attn_drop_rate: of attention weights; drop_path_rate: of residual branches, growing
    linearly with depth. compat: "official" for what the released code does otherwise.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    resize: str = "bicubic"
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    compat: str | None = None

    COUNTS = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")
    SHARES = ("drop_rate", "attn_drop_rate", "drop_path_rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        check_positive_number(owner, "mlp_ratio", self.mlp_ratio)
        check_choice(owner, "resize", self.resize, ("bicubic", "bilinear", "offset", "slice"))
        if self.compat is not None:
            check_choice(owner, "compat", self.compat, ("official",))
        if self.embed_dim % self.num_heads:
            raise ValueError(f"{owner}: embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}.")
        (height, width), (high, wide) = pair(self.img_size), pair(self.patch_size)
        if height % high or width % wide:
            raise ValueError(f"{owner}: img_size {height} × {width} is not whole patches of {high} × {wide}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of ``img_size``."""
        (height, width), (high, wide) = pair(self.img_size), pair(self.patch_size)
        return height // high, width // wide


class BlackBox(Model, abc.ABC):
    """Patch stem, class tokens and positions, blocks, norm, head; see ViT, MiTADeiT and MiTAViT5."""

    config: BlackBoxConfig
    class_tokens: int = 1
    registers: int = 0

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        c = self.config
        self.patch = pair(c.patch_size)
        self.stem = PatchStem(c.in_chans, c.embed_dim, self.patch)
        self._prepare()
        self.positions = self._positions()
        shares = self._drop_paths()
        self.blocks = nn.ModuleList(self._block(self._attention(), shares[index]) for index in range(c.depth))
        self.norm = (RMSNorm if self._rms else nn.LayerNorm)(c.embed_dim, eps=c.norm_eps)
        self.head = nn.Linear(c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()
        self.apply(truncated_normal_)

    _rms = False

    def _prepare(self) -> None:
        """What a subclass needs before its parts are built."""

    def _positions(self) -> Positions:
        c = self.config
        by_count = c.compat is not None and c.resize == "bilinear"
        return Positions(c.embed_dim, c.grid, class_tokens=self.class_tokens, resize=c.resize, by_count=by_count)

    def _drop_paths(self) -> list[float]:
        return growing(self.config.drop_path_rate, self.config.depth)

    def _block(self, attention: AttentionLayer, share: float) -> Block:
        c = self.config
        return Block(
            attention,
            round(c.embed_dim * c.mlp_ratio),
            eps=c.norm_eps,
            rms=self._rms,
            layer_scale=c.layer_scale,
            drop_path=share,
            dropout=c.drop_rate,
        )

    @abc.abstractmethod
    def _attention(self) -> AttentionLayer:
        """The attention of a block."""

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens that enter the first block, and the grid of the patches."""
        check_image(type(self).__name__, x, self.config.in_chans, self.patch, whole=self.config.compat is None)
        tokens, grid = self.stem(x)
        return F.dropout(self.positions(tokens, grid), self.config.drop_rate, self.training), grid

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last block, normalised: class tokens, patches, registers."""
        x, grid = self.embed(x)
        for block in self.blocks:
            x = self._run(block, x, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """Class scores from the tokens of :meth:`forward_features`."""
        return self.head(x[:, 0])

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        """Class scores ``(batch, num_classes)`` of images ``(batch, in_chans, H, W)``; or what forward_features returns."""
        tokens = self.forward_features(x)
        return tokens if return_features else self.forward_head(tokens)

    def stages(self, x: Tensor) -> Iterator[Stage]:
        """Every block with the tokens that enter it."""
        x, grid = self.embed(x)
        for number, block in enumerate(self.blocks):
            yield Stage(f"block {number}", block, x, grid, self.class_tokens)
            x = block(x, grid)
