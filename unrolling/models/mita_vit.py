"""MiTA in the place of full attention: in DeiT and Segmenter's encoder, and in ViT-5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, final

from ..attention import AttentionLayer
from ..errors import check_choice, check_count, check_pair
from ..layers.agent import AgentAttention
from ..layers.mita import MiTA
from ..representatives import GridPool, OfficialGridPool, Representatives
from ..rotary import GridRotary
from .blackbox import BlackBox, BlackBoxConfig
from .parts import Positions

__all__ = ["MiTADeiT", "MiTADeiTConfig", "MiTAViT5", "MiTAViT5Config"]


@final
@dataclass(frozen=True)
class MiTADeiTConfig(BlackBoxConfig):
    """MiTA-DeiT's sizes (arXiv 2602.01219): T, S, and the encoders of MiTA-Segmenter; fields as for BlackBoxConfig.

    landmarks: rows and columns of the grid that queries are pooled to. keys_per_expert: k. experts_per_query: s.
    shared: whether every query reads the landmarks too. convolution: add a depth-wise convolution of the values. gate:
    multiply by a gate. attention: "mita", or "agent", its baseline of landmarks alone. compat="official": landmark keys
    scaled twice, and the shifted square grid of the released code.

    >>> MiTADeiTConfig.small(gate=True, convolution=True).gate
    True
    """

    attention: str = "mita"
    landmarks: tuple[int, int] = (5, 5)
    keys_per_expert: int = 25
    experts_per_query: int = 1
    shared: bool = True
    convolution: bool = False
    gate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("MiTADeiTConfig", "attention", self.attention, ("mita", "agent"))
        check_pair("MiTADeiTConfig", "landmarks", self.landmarks)

    @classmethod
    def encoder(cls, size: str, **changes: Any) -> Self:
        """The encoder of MiTA-Segmenter: as Segmenter's, 49 landmarks, 49 keys an expert."""
        pixels = 640 if size == "large" else 512
        options = {"img_size": pixels, "norm_eps": 1e-5, "resize": "bilinear"}
        return getattr(cls, size)(**{**options, "landmarks": (7, 7), "keys_per_expert": 49, **changes})


@final
class MiTADeiT(BlackBox):
    r"""DeiT with MiTA attention: every token reads pooled landmarks, and the keys that its nearest landmark has chosen.

    Shapes
        images ``(batch, in_chans, H, W)`` in whole patches; returns ``(batch, num_classes)``
    Source
        MiTA, arXiv 2602.01219, and its released code; Segmenter's encoder with it: ``MiTADeiTConfig.encoder``
    Differences from the authors' code
        queries are pooled on the patches' own grid, landmark keys scaled once; compat="official" undoes both.

    >>> import torch
    >>> model = MiTADeiT(img_size=32, patch_size=8, embed_dim=24, depth=2, landmarks=(2, 2), keys_per_expert=3, num_classes=5)
    >>> model(torch.randn(1, 3, 32, 48)).shape
    torch.Size([1, 5])
    """

    config_class = MiTADeiTConfig
    config: MiTADeiTConfig

    def _attention(self) -> AttentionLayer:
        c = self.config
        strategy: Representatives = GridPool(c.landmarks)
        if c.compat:
            strategy = OfficialGridPool(c.landmarks)
        if c.attention == "agent":
            return AgentAttention(
                c.embed_dim,
                c.num_heads,
                agents=strategy,
                bias=c.qkv_bias,
                output_bias=True,
                learnable_step=False,
                class_tokens=1,
                convolution=c.convolution,
                gate=c.gate,
                dropout=c.attn_drop_rate,
                output_dropout=c.drop_rate,
            )
        return MiTA(
            c.embed_dim,
            c.num_heads,
            landmarks=strategy,
            keys_per_expert=c.keys_per_expert,
            experts_per_query=c.experts_per_query,
            shared=c.shared,
            twice_scaled=c.compat is not None,
            bias=c.qkv_bias,
            output_bias=True,
            learnable_step=False,
            class_tokens=1,
            convolution=c.convolution,
            gate=c.gate,
            output_dropout=c.drop_rate,
        )


@final
@dataclass(frozen=True)
class MiTAViT5Config(BlackBoxConfig):
    """MiTA-ViT-5's sizes (arXiv 2602.01219): S, B, L, XL; fields as for BlackBoxConfig and MiTADeiTConfig.

    registers: tokens behind the patches, a square number, or 0. theta, register_theta: θ of the rotary embeddings of
    patches and of registers. qk_norm: normalise every head's queries and keys. layer_scale: None for none. rotary,
    learned_positions: whether patches have these positions.
    """

    embed_dim: int = 384
    num_heads: int = 6
    qkv_bias: bool = False
    layer_scale: float | None = 1e-4
    landmarks: tuple[int, int] = (5, 5)
    keys_per_expert: int = 30
    convolution: bool = False
    registers: int = 4
    qk_norm: bool = True
    rotary: bool = True
    learned_positions: bool = True
    theta: float = 10000.0
    register_theta: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("MiTAViT5Config", "registers", self.registers, 0)
        if math.isqrt(self.registers) ** 2 != self.registers:
            raise ValueError(f"MiTAViT5Config: registers stand on a square grid, but are {self.registers}.")

    @classmethod
    def extra_large(cls, **changes: Any) -> Self:
        """D = 1152, 28 blocks, 16 heads: 448.51 million parameters."""
        return cls(**{"embed_dim": 1152, "depth": 28, "num_heads": 16, **changes})


@final
class MiTAViT5(BlackBox):
    r"""ViT-5 with MiTA attention: root-mean-square norms, rotary positions, registers, layer scale.

    Order of tokens
        class token, patches (with learned positions too), registers
    Shapes
        images ``(batch, in_chans, H, W)`` in whole patches; returns ``(batch, num_classes)``
    Source
        MiTA, arXiv 2602.01219, and its released code, after ViT-5's
    Differences from the authors' code
        landmark keys scaled once (compat="official": twice); grids need not be square, rotary angles go along both sides.

    >>> import torch
    >>> model = MiTAViT5(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1, landmarks=(2, 2), keys_per_expert=3)
    >>> model.forward_features(torch.randn(1, 3, 32, 48)).shape  # 1 + 24 + 4
    torch.Size([1, 29, 24])
    """

    config_class = MiTAViT5Config
    config: MiTAViT5Config
    _rms = True

    def _prepare(self) -> None:
        self.registers = self.config.registers

    def _positions(self) -> Positions:
        c = self.config
        return Positions(
            c.embed_dim, c.grid, registers=c.registers, on_class=False, learned=c.learned_positions, resize=c.resize
        )

    def _drop_paths(self) -> list[float]:
        return [self.config.drop_path_rate] * self.config.depth

    def _attention(self) -> AttentionLayer:
        c = self.config
        head_dim, side = c.embed_dim // c.num_heads, math.isqrt(c.registers)
        return MiTA(
            c.embed_dim,
            c.num_heads,
            landmarks=GridPool(c.landmarks),
            keys_per_expert=c.keys_per_expert,
            twice_scaled=c.compat is not None,
            bias=c.qkv_bias,
            output_bias=True,
            learnable_step=False,
            class_tokens=1,
            register_tokens=c.registers,
            qk_norm="rms" if c.qk_norm else None,
            rotary=GridRotary(head_dim, c.grid[0], c.theta) if c.rotary else None,
            register_rotary=GridRotary(head_dim, side, c.register_theta) if side else None,
            convolution=c.convolution,
            output_dropout=c.drop_rate,
        )
