"""CBT, the contract-and-broadcast transformer, its hybrids with CRATE, and its siblings with other attentions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, final

from torch import nn

from ..attention import AttentionLayer
from ..errors import check_choice, check_pair
from ..subspace import SubspaceLayer
from .base import pair
from .parts import ConvStem
from .whitebox import ATTENTIONS, WhiteBox, WhiteBoxConfig, make_attention, pool_of

__all__ = ["CBT", "CBTConfig"]


@final
@dataclass(frozen=True)
class CBTConfig(WhiteBoxConfig):
    """CBT's sizes (arXiv 2509.16875, table 3 and its released code): T, S, B, L. Other fields as for WhiteBoxConfig.

    attention: one of the names for all blocks, or one for every block. representatives: rows and columns of the grid
    that patches are pooled to. keys_per_expert: of MiTA.

    >>> set(CBTConfig.tiny().hybrid().attention)  == {"mssa", "cbsa"}
    True
    """

    embed_dim: int = 192
    num_heads: int = 3
    attention: str | tuple[str, ...] = "cbsa"
    representatives: tuple[int, int] = (8, 8)
    keys_per_expert: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (self.attention,) if isinstance(self.attention, str) else self.attention
        for name in names:
            check_choice("CBTConfig", "attention", name, ATTENTIONS)
        if not isinstance(self.attention, str) and len(self.attention) != self.depth:
            raise ValueError(f"CBTConfig: attention names {len(self.attention)} blocks, but depth is {self.depth}.")
        check_pair("CBTConfig", "representatives", self.representatives)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """D = 192, 12 blocks, 3 heads: 1.79 million parameters."""
        return cls(**{"embed_dim": 192, "depth": 12, "num_heads": 3, **changes})

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """D = 384, 12 blocks, 6 heads: 6.67 million parameters."""
        return cls(**{"embed_dim": 384, "depth": 12, "num_heads": 6, **changes})

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """D = 768, 12 blocks, 12 heads: 25.69 million parameters."""
        return cls(**{"embed_dim": 768, "depth": 12, "num_heads": 12, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """D = 1024, 24 blocks, 16 heads: 83.05 million parameters."""
        return cls(**{"embed_dim": 1024, "depth": 24, "num_heads": 16, **changes})

    def hybrid(self, first: str = "mssa", second: str = "cbsa") -> Self:
        """CRATE+CBT: the first half of the blocks with one attention, the second half with the other."""
        half = self.depth // 2
        values = {**self.__dict__, "attention": (first,) * half + (second,) * (self.depth - half)}
        return type(self)(**values)


@final
class CBT(WhiteBox):
    r"""CBT: a convolutional stem, blocks of CBSA and ISTA, class scores from the class token.

    In code
        ``x = positions(convolutions(image))``; L times ``x = x + CBSA(LN(x))``, ``x = ISTA(LN(x))``; ``linear(LN(x₀))``
    Shapes
        images ``(batch, in_chans, H, W)`` in whole patches of 2, 4, 8, 16 … pixels; returns ``(batch, num_classes)``
    Attentions
        "cbsa"; "mssa" and "tssa" are the CBSA project's CRATE and ToST; a tuple mixes them (``CBTConfig.hybrid``); with
        "agent", "softmax" and "mita" everything else is equal (table 4)
    Source
        CBSA, arXiv 2509.16875, sections 3.2 and 4 and its released code; the hybrid is described there, without code:
        the first half MSSA, the second CBSA
    Differences from the authors' code
        patches are pooled on their own grid, without the class token; any grid is taken; two products of ISTA's three.
        compat="official" pools the shifted square grid of the released code.

    >>> import torch
    >>> model = CBT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, representatives=(2, 2))
    >>> [tuple(part.shape) for part in model.attention_maps(torch.randn(1, 3, 32, 48))]  # A Aᵀ of every block
    [(1, 3, 25, 25), (1, 3, 25, 25)]
    """

    config_class = CBTConfig
    config: CBTConfig

    def _stem(self) -> nn.Module:
        return ConvStem(self.config.in_chans, self.config.embed_dim, pair(self.config.patch_size))

    def _attention(self, index: int) -> SubspaceLayer | AttentionLayer:
        c = self.config
        kind = c.attention if isinstance(c.attention, str) else c.attention[index]
        return make_attention(kind, c, pool=pool_of(c.representatives, c.compat), keys_per_expert=c.keys_per_expert)
