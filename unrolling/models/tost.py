"""ToST: the token statistics transformer for images, linear in tokens, on XCiT's skeleton."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attend import attend
from ..errors import check_count, check_positive_number
from ..layers.softmax import SoftmaxAttention
from ..layers.tssa import TSSA
from .base import ModelConfig
from .image import ImageConfig, ImageModel
from .parts import MLP, Block, ConvStem, check_image, truncated_normal_
from .whitebox import published_start_

__all__ = ["ClassAttentionBlock", "FourierPositions", "ToST", "ToSTConfig"]


@final
@dataclass(frozen=True)
class ToSTConfig(ImageConfig):
    """ToST's sizes (arXiv 2412.17810 and its released code): T12, S12, T24, S24, M24, L24, each with patches of 16 or 8.

    class_layers: blocks of class attention at the end. layer_scale: first value of γ. tokens_norm: whether these blocks
    normalise all tokens, or only the class token, before their MLP. use_pos: Fourier positions. qk_scale: of class
    attention's softmax, p^(−1/2) where None. drop_rate: of embedded
    tokens, updates and MLPs; attn_drop_rate: of shrinkages and attention weights; drop_path_rate: the same in every
    block. compat="official": images need not be whole patches.
    """

    num_heads: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_layers: int = 2
    layer_scale: float = 1.0
    tokens_norm: bool = True
    use_pos: bool = True
    qk_scale: float | None = None
    norm_eps: float = 1e-6

    WHOLE = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("ToSTConfig", "class_layers", self.class_layers, 0)
        check_positive_number("ToSTConfig", "layer_scale", self.layer_scale)
        check_positive_number("ToSTConfig", "mlp_ratio", self.mlp_ratio)
        if self.qk_scale is not None:
            check_positive_number("ToSTConfig", "qk_scale", self.qk_scale)

    @classmethod
    def tiny_12(cls, **changes: Any) -> Self:
        """D = 192, 12 blocks, 4 heads: 5.77 million parameters."""
        return cls(**{"embed_dim": 192, "depth": 12, "num_heads": 4, **changes})

    @classmethod
    def small_12(cls, **changes: Any) -> Self:
        """D = 384, 12 blocks, 8 heads: 22.59 million parameters."""
        return cls(**{"embed_dim": 384, "depth": 12, "num_heads": 8, **changes})

    @classmethod
    def tiny_24(cls, **changes: Any) -> Self:
        """D = 192, 24 blocks, 4 heads: 10.22 million parameters."""
        return cls(**{"embed_dim": 192, "depth": 24, "num_heads": 4, "layer_scale": 1e-5, **changes})

    @classmethod
    def small_24(cls, **changes: Any) -> Self:
        """D = 384, 24 blocks, 8 heads: 40.34 million parameters."""
        return cls(**{"embed_dim": 384, "depth": 24, "num_heads": 8, "layer_scale": 1e-5, **changes})

    @classmethod
    def medium_24(cls, **changes: Any) -> Self:
        """D = 512, 24 blocks, 8 heads: 71.48 million parameters."""
        return cls(**{"embed_dim": 512, "depth": 24, "num_heads": 8, "layer_scale": 1e-5, **changes})

    @classmethod
    def large_24(cls, **changes: Any) -> Self:
        """D = 768, 24 blocks, 16 heads: 160.29 million parameters."""
        return cls(**{"embed_dim": 768, "depth": 24, "num_heads": 16, "layer_scale": 1e-5, **changes})


@final
class FourierPositions(nn.Module):
    """Positions of any grid: sines and cosines of row and column, mapped to the width by a learned linear map.

    32 frequencies ``10000^(−2⌊i/2⌋/32)`` a side, positions 1 … n scaled to 2π, sines and cosines interleaved, rows first.

    Shapes
        grid (rows, columns) to ``(rows · columns, dim)``
    Source
        Vaswani et al., arXiv 1706.03762, section 3.5, on grids as in DETR (2005.12872) and XCiT (2106.09681)
    """

    FREQUENCIES = 32

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * self.FREQUENCIES, dim)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The positions, row by row."""
        weight = self.projection.weight
        kind = torch.promote_types(weight.dtype, torch.float32)  # half precision would not tell neighbours apart
        order = torch.arange(self.FREQUENCIES, device=weight.device, dtype=kind)
        periods = 10000.0 ** (2 * (order // 2) / self.FREQUENCIES)
        rows, columns = (self._waves(side, periods) for side in grid)
        rows, columns = rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)
        return self.projection(torch.cat((rows, columns), dim=-1).flatten(0, 1).to(weight.dtype))

    @staticmethod
    def _waves(side: int, periods: Tensor) -> Tensor:
        places = torch.arange(1, side + 1, device=periods.device, dtype=periods.dtype)
        angles = (places / (side + 1e-6) * (2 * math.pi))[:, None] / periods
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1)


@final
class ClassAttentionBlock(nn.Module):
    """The class token reads all tokens, and passes an MLP; the others are normalised, and doubled (CaiT, in XCiT's form).

    ``x = x + γ₁ [read of the class token, LN(x) of the others]``; ``x = LN(x)`` (of the class token only with
    tokens_norm=False); ``x = x + [γ₂ mlp(class token), the others]``.

    Source
        CaiT, arXiv 2103.17239; what happens to the other tokens is the released code's of XCiT and ToST.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        bias: bool,
        eps: float,
        scale: float,
        tokens_norm: bool,
        qk_scale: float | None,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = SoftmaxAttention(
            dim,
            heads,
            bias=bias,
            output_bias=True,
            scale=qk_scale,
            learnable_step=False,
            class_tokens=1,
            dropout=attention_dropout,
            output_dropout=dropout,
        )
        self.mlp, self.tokens_norm = MLP(dim, hidden, dropout), tokens_norm
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), scale)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """All tokens, the class token first."""
        seen, layer = self.norm1(x), self.attention
        query = layer.queries(seen[:, :1])
        drop = layer.dropout if self.training else 0.0
        keys, values = layer.keys(seen), layer.values(seen)
        read = attend(query, keys, values, layer.scale, dropout=drop)
        token = F.dropout(layer.output(read.transpose(-3, -2).flatten(-2)), layer.output_dropout, self.training)
        x = x + self.gamma1 * torch.cat((token, seen[:, 1:]), dim=1)
        x = self.norm2(x) if self.tokens_norm else torch.cat((self.norm2(x[:, :1]), x[:, 1:]), dim=1)
        return x + torch.cat((self.gamma2 * self.mlp(x[:, :1]), x[:, 1:]), dim=1)


@final
class ToST(ImageModel):
    r"""ToST: convolutional stem, Fourier positions, blocks of TSSA and MLP on patches, then class attention.

    In code
        L times ``x = x + γ₁ TSSA(LN(x))``, ``x = x + γ₂ MLP(LN(x))`` on the patches alone; the class token joins, reads
        them in ``class_layers`` blocks, and is normalised and mapped to scores
    Shapes
        images ``(batch, in_chans, H, W)`` in whole patches; returns ``(batch, num_classes)``
    What descends
        nothing exactly: :class:`unrolling.TSSA` says what its tied form descends. ``trace`` measures.
    Source
        ToST, arXiv 2412.17810, and its released code
    Differences from the authors' code
        while training it returns the scores, not twice the same pair; tokens_norm=False is not written in place.

    >>> import torch
    >>> model = ToST(patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    >>> model(torch.randn(1, 3, 32, 48)).shape  # any grid: its positions are computed
    torch.Size([1, 5])
    """

    config_class = ToSTConfig
    config: ToSTConfig
    class_tokens = 0

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        c = self.config
        hidden = round(c.embed_dim * c.mlp_ratio)
        self.stem, self.positions = ConvStem(c.in_chans, c.embed_dim, self.patch), FourierPositions(c.embed_dim)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, c.embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                self._attention(),
                hidden,
                eps=c.norm_eps,
                layer_scale=c.layer_scale,
                drop_path=c.drop_path_rate,
                dropout=c.drop_rate,
            )
            for _ in range(c.depth)
        )
        self.class_blocks = nn.ModuleList(
            ClassAttentionBlock(
                c.embed_dim,
                c.num_heads,
                hidden,
                bias=c.qkv_bias,
                eps=c.norm_eps,
                scale=c.layer_scale,
                tokens_norm=c.tokens_norm,
                qk_scale=c.qk_scale,
                dropout=c.drop_rate,
                attention_dropout=c.attn_drop_rate,
            )
            for _ in range(c.class_layers)
        )
        self.norm = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)
        self.head = self._scores()
        self.apply(truncated_normal_)

    def _attention(self) -> TSSA:
        c = self.config
        # ε² = d and no 1/N in the step are the constants of the released code.
        layer = TSSA(
            c.embed_dim,
            c.num_heads,
            epsilon=c.embed_dim**0.5,
            basis="free",
            tied=False,
            output_bias=True,
            learnable_step=False,
            normalise_tokens=True,
            coordinate_bias=c.qkv_bias,
            unit_step=True,
            count_offset=1e-8,
            dropout=c.attn_drop_rate,
            output_dropout=c.drop_rate,
        )
        published_start_(layer)
        nn.init.trunc_normal_(layer.basis, std=0.02)
        return layer

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The patch tokens that enter the first block, without a class token, and their grid."""
        whole, like = self.config.compat is None, next(self.stem.parameters())
        check_image("ToST", x, self.config.in_chans, self.patch, whole=whole, like=like)
        x, grid = self.stem(x)
        x = x + self.positions(grid) if self.config.use_pos else x
        return F.dropout(x, self.config.drop_rate, self.training), grid

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after class attention, normalised, the class token first."""
        x = self._through_blocks(x)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1)
        for block in self.class_blocks:
            x = self._run(block, x)
        return self.norm(x)
