"""ViT and DeiT: the plain transformer that others are compared with, and that segmentation decoders stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, final

from torch import Tensor, nn

from ..attention import AttentionLayer
from ..layers.softmax import SoftmaxAttention
from .blackbox import BlackBox, BlackBoxConfig

__all__ = ["ViT", "ViTConfig"]


@final
@dataclass(frozen=True)
class ViTConfig(BlackBoxConfig):
    """ViT's sizes (arXiv 2010.11929 and 2012.12877): T, S, B, L with 5.72, 22.05, 86.57 and 304.33 million parameters.

    Fields as for BlackBoxConfig.
    distilled: DeiT's second token and head; the scores of both are averaged.

    >>> ViTConfig.small().embed_dim
    384
    """

    distilled: bool = False

    @classmethod
    def encoder(cls, size: str, **changes: Any) -> Self:
        """Segmenter's encoder of a size name: 512 pixels (large: 640), norms with 1e-5, positions resized bilinearly."""
        pixels = 640 if size == "large" else 512
        return getattr(cls, size)(**{"img_size": pixels, "norm_eps": 1e-5, "resize": "bilinear", **changes})


@final
class ViT(BlackBox):
    r"""The vision transformer: ``x = x + MHSA(LN(x))``, ``x = x + MLP(LN(x))``, class scores from the class token.

    Shapes
        images ``(batch, in_chans, H, W)`` in whole patches; returns ``(batch, num_classes)``
    What descends
        nothing: :class:`unrolling.SoftmaxAttention` says which regression its attention solves, of the normalised tokens.
    Source
        ViT, arXiv 2010.11929; DeiT, arXiv 2012.12877. Differences from the authors' code: a distilled network averages
        its two heads while training too.

    >>> import torch
    >>> ViT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_classes=5)(torch.randn(1, 3, 32, 48)).shape
    torch.Size([1, 5])
    """

    config_class = ViTConfig
    config: ViTConfig

    def _prepare(self) -> None:
        if self.config.distilled:
            self.class_tokens = 2
            width, classes = self.config.embed_dim, self.config.num_classes
            self.head_distilled = nn.Linear(width, classes) if classes else nn.Identity()

    def _attention(self) -> AttentionLayer:
        c = self.config
        return SoftmaxAttention(
            c.embed_dim,
            c.num_heads,
            bias=c.qkv_bias,
            output_bias=True,
            learnable_step=False,
            class_tokens=self.class_tokens,
            dropout=c.attn_drop_rate,
            output_dropout=c.drop_rate,
        )

    def forward_head(self, x: Tensor) -> Tensor:
        """Class scores from the class token; the mean of two heads in a distilled network."""
        if self.config.distilled:
            return (self.head(x[:, 0]) + self.head_distilled(x[:, 1])) / 2
        return self.head(x[:, 0])
