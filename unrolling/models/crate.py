"""CRATE: the white-box transformer whose blocks compress tokens onto subspaces and make them sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, final

from torch import nn

from ..attention import AttentionLayer
from ..layers.mssa import MSSA
from ..subspace import SubspaceLayer
from .base import pair
from .parts import LinearStem
from .whitebox import WhiteBox, WhiteBoxConfig, make_attention

__all__ = ["CRATE", "CRATEConfig"]


@final
@dataclass(frozen=True)
class CRATEConfig(WhiteBoxConfig):
    """CRATE's sizes (arXiv 2306.01129, table 1 and its released code): T, S, B, L. Fields as for WhiteBoxConfig.

    The CBSA project has other networks under the names CRATE-T and CRATE-S: CBTConfig.tiny(attention="mssa").

    >>> CRATEConfig.small().num_heads
    12
    """

    embed_dim: int = 384
    num_heads: int = 6

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """D = 384, 12 blocks, 6 heads: 6.09 million parameters."""
        return cls(**{"embed_dim": 384, "depth": 12, "num_heads": 6, **changes})

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """D = 576, 12 blocks, 12 heads: 13.12 million parameters."""
        return cls(**{"embed_dim": 576, "depth": 12, "num_heads": 12, **changes})

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """D = 768, 12 blocks, 12 heads: 22.80 million parameters."""
        return cls(**{"embed_dim": 768, "depth": 12, "num_heads": 12, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """D = 1024, 24 blocks, 16 heads: 77.64 million parameters."""
        return cls(**{"embed_dim": 1024, "depth": 24, "num_heads": 16, **changes})


@final
class CRATE(WhiteBox):
    r"""CRATE: flattened patches, blocks of MSSA and ISTA, class scores from the class token.

    In code
        ``x = positions(LN(linear(LN(patches))))``; L times ``x = x + MSSA(LN(x))``, ``x = ISTA(LN(x))``; ``linear(LN(x₀))``
    Shapes
        images ``(batch, in_chans, H, W)`` in whole patches; returns ``(batch, num_classes)``
    What descends
        nothing exactly: LayerNorms stand inside the residual, the output matrix is free, and the sign of the step is
        its business. ``trace`` measures what each block does to the rate; form="exact", tied=True, orthonormal=True
        is the nearest block that is a step on what it sees.
    Source
        CRATE, arXiv 2306.01129, section 3 and its released code
    Differences from the authors' code
        two products of ISTA's three; positions are resized to other images (compat="official": the first are taken).
        With one head as wide as the tokens there is no output matrix, as there.

    >>> import torch
    >>> model = CRATE(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    >>> model(torch.randn(1, 3, 32, 48)).shape  # other grids than the 4 × 4 of its positions
    torch.Size([1, 5])
    """

    config_class = CRATEConfig
    config: CRATEConfig

    def _stem(self) -> nn.Module:
        return LinearStem(self.config.in_chans, self.config.embed_dim, pair(self.config.patch_size))

    def _attention(self, index: int) -> SubspaceLayer | AttentionLayer:
        c = self.config
        if c.num_heads == 1 and c.head_dim in (None, c.embed_dim) and c.form == "softmax" and not c.tied:
            return MSSA(
                c.embed_dim,
                form="softmax",
                basis="orthonormal" if c.orthonormal else "free",
                tied=False,
                projected=False,
                learnable_step=False,
                dropout=c.attn_drop_rate,
            )
        return make_attention("mssa", c)
