"""The skeleton of the black-box transformers: a patch stem, blocks of attention and MLP, a norm, a head."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import AttentionLayer
from ..drop_path import growing
from ..errors import check_choice, check_positive_number
from ..rms_norm import RMSNorm
from .base import ModelConfig
from .image import ImageConfig, ImageModel
from .parts import Block, PatchStem, Positions, check_image, truncated_normal_

__all__ = ["BlackBox", "BlackBoxConfig"]


@dataclass(frozen=True)
class BlackBoxConfig(ImageConfig):
    """Sizes and options of ViT and its kin; T, S, B, L. Other fields as for ImageConfig.

    mlp_ratio: width of the MLP in units of embed_dim. qkv_bias: biases of query, key and value. norm_eps: of all norms
    (1e-6 in timm, 1e-5 in Segmenter). layer_scale: first value of the residual branches' scales, None for none. resize:
    how positions are brought to other images. drop_rate: of attention outputs and MLPs too; drop_path_rate grows linearly
    with depth.
    """

    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    resize: str = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        check_positive_number(owner, "mlp_ratio", self.mlp_ratio)
        check_choice(owner, "resize", self.resize, ("bicubic", "bilinear", "offset", "slice"))

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """D = 192, 12 blocks, 3 heads."""
        return cls(**{"embed_dim": 192, "depth": 12, "num_heads": 3, **changes})

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """D = 384, 12 blocks, 6 heads."""
        return cls(**{"embed_dim": 384, "depth": 12, "num_heads": 6, **changes})

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """D = 768, 12 blocks, 12 heads."""
        return cls(**{"embed_dim": 768, "depth": 12, "num_heads": 12, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """D = 1024, 24 blocks, 16 heads."""
        return cls(**{"embed_dim": 1024, "depth": 24, "num_heads": 16, **changes})


class BlackBox(ImageModel, abc.ABC):
    """Patch stem, class tokens and positions, blocks, norm, head; see ViT, MiTADeiT and MiTAViT5."""

    config: BlackBoxConfig
    registers: int = 0

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        c = self.config
        self.stem = PatchStem(c.in_chans, c.embed_dim, self.patch)
        self._prepare()
        self.positions = self._positions()
        shares = self._drop_paths()
        self.blocks = nn.ModuleList(self._block(self._attention(), shares[index]) for index in range(c.depth))
        self.norm = (RMSNorm if self._rms else nn.LayerNorm)(c.embed_dim, eps=c.norm_eps)
        self.head = self._scores()
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
        whole, like = self.config.compat is None, next(self.stem.parameters())
        check_image(type(self).__name__, x, self.config.in_chans, self.patch, whole=whole, like=like)
        tokens, grid = self.stem(x)
        return F.dropout(self.positions(tokens, grid), self.config.drop_rate, self.training), grid

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last block, normalised: class tokens, patches, registers."""
        return self.norm(self._through_blocks(x))

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        """Class scores ``(batch, num_classes)`` of images ``(batch, in_chans, H, W)``; or what forward_features returns."""
        tokens = self.forward_features(x)
        return tokens if return_features else self.forward_head(tokens)
