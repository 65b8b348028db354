"""Segmenter: a ViT, a decoder of any kind, and masks at the image's resolution; its own two decoders are the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..drop_path import growing
from ..layers.softmax import SoftmaxAttention
from .base import Model, ModelConfig, Stage, pair
from .blackbox import BlackBox
from .depict import DEPICT, WIDTHS, CBTDecoder, CBTDecoderConfig, DecoderModel, DEPICTConfig
from .mita_vit import MiTADeiT, MiTADeiTConfig
from .parts import Block, truncated_normal_
from .vit import ViT, ViTConfig

__all__ = [
    "LinearDecoder",
    "LinearDecoderConfig",
    "MaskDecoder",
    "MaskDecoderConfig",
    "Segmenter",
    "SegmenterConfig",
]


@final
@dataclass(frozen=True)
class LinearDecoderConfig(ModelConfig):
    """A linear map from tokens to classes: num_classes, embed_dim of the tokens, patch_size in pixels."""

    num_classes: int = 150
    embed_dim: int = 192
    patch_size: int | tuple[int, int] = 16

    COUNTS = ("num_classes", "embed_dim", "patch_size")


@final
class LinearDecoder(DecoderModel):
    """Segmenter's linear decoder: class scores of every patch by one linear map.

    Shapes
        tokens ``(batch, patches, embed_dim)``, im_size (H, W) in pixels; returns ``(batch, num_classes, rows, columns)``
    Source
        Segmenter, arXiv 2105.05633, section 3.2

    >>> import torch
    >>> LinearDecoder(num_classes=4, embed_dim=24)(torch.randn(2, 6, 24), im_size=(32, 48)).shape
    torch.Size([2, 4, 2, 3])
    """

    config_class = LinearDecoderConfig
    config: LinearDecoderConfig

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        self.head = nn.Linear(self.config.embed_dim, self.config.num_classes)
        self.apply(truncated_normal_)

    def forward(self, tokens: Tensor, im_size: tuple[int, int] | None = None) -> Tensor:
        """One map of scores a class, a number for every patch."""
        grid = self.grid_of(tokens, im_size)
        return self.head(tokens).mT.unflatten(-1, grid)

    def forward_features(self, tokens: Tensor) -> Tensor:
        """The tokens as they are."""
        return tokens

    def stages(self, x: Tensor, im_size: tuple[int, int] | None = None) -> Iterator[Stage]:
        """None: there is no attention."""
        yield from ()


@final
@dataclass(frozen=True)
class MaskDecoderConfig(ModelConfig):
    """Segmenter's mask transformer: num_classes, embed_dim of the tokens that come, dim of its own (embed_dim where None).

    depth: blocks; num_heads; mlp_ratio; drop_rate: of attention, its output and MLP; drop_path_rate.

    >>> MaskDecoderConfig.base().num_heads
    12
    """

    num_classes: int = 150
    embed_dim: int = 192
    dim: int | None = None
    patch_size: int | tuple[int, int] = 16
    depth: int = 2
    num_heads: int = 3
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    drop_rate: float = 0.1
    drop_path_rate: float = 0.0

    COUNTS = ("num_classes", "embed_dim", "patch_size", "depth", "num_heads")
    SHARES = ("drop_rate", "drop_path_rate")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """On a ViT of width 192, 3 heads."""
        return cls(**{"embed_dim": WIDTHS["tiny"], "num_heads": 3, **changes})

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """On a ViT of width 384, 6 heads."""
        return cls(**{"embed_dim": WIDTHS["small"], "num_heads": 6, **changes})

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """On a ViT of width 768, 12 heads."""
        return cls(**{"embed_dim": WIDTHS["base"], "num_heads": 12, **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """On a ViT of width 1024, 16 heads."""
        return cls(**{"embed_dim": WIDTHS["large"], "num_heads": 16, **changes})


@final
class MaskDecoder(DecoderModel):
    """Segmenter's mask transformer: blocks of softmax attention and MLP on patches and classes, cosines as masks.

    The black-box baseline of DEPICT and of CBT's decoder.

    Shapes
        tokens ``(batch, patches, embed_dim)``, im_size (H, W) in pixels; returns ``(batch, num_classes, rows, columns)``
    Source
        Segmenter, arXiv 2105.05633, section 3.2, and its released code

    >>> import torch
    >>> decoder = MaskDecoder(num_classes=4, embed_dim=24, num_heads=3).eval()
    >>> decoder(torch.randn(2, 6, 24), im_size=(32, 48)).shape
    torch.Size([2, 4, 2, 3])
    """

    config_class = MaskDecoderConfig
    config: MaskDecoderConfig

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        c = self.config
        dim = c.embed_dim if c.dim is None else c.dim
        self.projection = nn.Linear(c.embed_dim, dim)
        self.class_embeddings = nn.Parameter(nn.init.trunc_normal_(torch.empty(c.num_classes, dim), std=0.02))
        self.patch_matrix, self.class_matrix = (nn.Parameter(torch.randn(dim, dim) * dim**-0.5) for _ in range(2))
        shares = growing(c.drop_path_rate, c.depth)
        self.blocks = nn.ModuleList(
            Block(
                SoftmaxAttention(
                    dim, c.num_heads, learnable_step=False, dropout=c.drop_rate, output_dropout=c.drop_rate
                ),
                round(dim * c.mlp_ratio),
                eps=c.norm_eps,
                drop_path=share,
                dropout=c.drop_rate,
            )
            for share in shares
        )
        self.norm, self.mask_norm = nn.LayerNorm(dim, eps=c.norm_eps), nn.LayerNorm(c.num_classes)
        self.apply(truncated_normal_)

    def _joint(self, tokens: Tensor) -> Tensor:
        classes = self.class_embeddings.expand(tokens.shape[0], -1, -1)
        return torch.cat((classes, self.projection(tokens)), dim=1)

    def forward_features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patches and class embeddings, normalised and mapped: ``(batch, patches, dim)``, ``(batch, classes, dim)``."""
        x = self._joint(tokens)
        for block in self.blocks:
            x = self._run(block, x)
        x, count = self.norm(x), self.config.num_classes
        return x[:, count:] @ self.patch_matrix, x[:, :count] @ self.class_matrix

    def forward(self, tokens: Tensor, im_size: tuple[int, int] | None = None) -> Tensor:
        """One mask a class, a number for every patch."""
        grid = self.grid_of(tokens, im_size)
        patches, classes = self.forward_features(tokens)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).mT
        return self.mask_norm(cosines).mT.unflatten(-1, grid)

    def stages(self, x: Tensor, im_size: tuple[int, int] | None = None) -> Iterator[Stage]:
        """Every block with the tokens that enter it, classes first; the image's size matters to none."""
        grid, x = self.grid_for_look(x, im_size), self._joint(x)
        for number, block in enumerate(self.blocks):
            yield Stage(f"block {number}", block, x, grid, self.config.num_classes)
            x = block(x)


ENCODERS: dict[type[ModelConfig], type[BlackBox]] = {ViTConfig: ViT, MiTADeiTConfig: MiTADeiT}
DECODERS: dict[type[ModelConfig], type[DecoderModel]] = {
    DEPICTConfig: DEPICT,
    CBTDecoderConfig: CBTDecoder,
    MaskDecoderConfig: MaskDecoder,
    LinearDecoderConfig: LinearDecoder,
}


@final
@dataclass(frozen=True)
class SegmenterConfig(ModelConfig):
    """An encoder's configuration (ViTConfig or MiTADeiTConfig) and a decoder's; widths and patches must agree.

    >>> SegmenterConfig.tiny("depict-sa").decoder.attention
    'self'
    """

    encoder: ModelConfig = field(default_factory=lambda: ViTConfig.encoder("tiny"))
    decoder: ModelConfig = field(default_factory=MaskDecoderConfig.tiny)

    def __post_init__(self) -> None:
        for name, known in (("encoder", ENCODERS), ("decoder", DECODERS)):
            value = getattr(self, name)
            if type(value) not in known:
                names = ", ".join(kind.__name__ for kind in known)
                raise TypeError(f"SegmenterConfig: {name} must be one of {names}, but is a {type(value).__name__}.")
        encoder, decoder = cast(ViTConfig, self.encoder), cast(MaskDecoderConfig, self.decoder)
        for name in ("embed_dim", "patch_size"):
            if pair(getattr(encoder, name)) != pair(getattr(decoder, name)):
                raise ValueError(
                    f"SegmenterConfig: the encoder has {name} {getattr(encoder, name)}, the decoder {getattr(decoder, name)}."
                )

    @classmethod
    def of(cls, size: str, decoder: str = "segmenter-mask", *, attention: str = "softmax", **changes: Any) -> Self:
        """A published size ("tiny", "small", "base", "large") with a decoder by name; changes go to the decoder.

        Decoders: "segmenter-mask", "segmenter-linear", "depict-sa", "depict-ca", "cbt". attention="mita" is
        MiTA-Segmenter's encoder, whose decoder is CBT's.
        """
        if size not in WIDTHS:
            raise ValueError(f"SegmenterConfig: size must be one of {', '.join(WIDTHS)}, but is {size!r}.")
        encoder = {"softmax": ViTConfig.encoder, "mita": MiTADeiTConfig.encoder}.get(attention)
        if encoder is None:
            raise ValueError(f"SegmenterConfig: attention must be 'softmax' or 'mita', but is {attention!r}.")
        made: dict[str, Any] = {
            "segmenter-mask": lambda: getattr(MaskDecoderConfig, size)(**changes),
            "segmenter-linear": lambda: LinearDecoderConfig(**{"embed_dim": WIDTHS[size], **changes}),
            "depict-sa": lambda: getattr(DEPICTConfig, size)(**{"attention": "self", **changes}),
            "depict-ca": lambda: getattr(DEPICTConfig, size)(**{"attention": "cross", **changes}),
            "cbt": lambda: getattr(CBTDecoderConfig, size)(**changes),
        }
        if decoder not in made:
            raise ValueError(f"SegmenterConfig: decoder must be one of {', '.join(made)}, but is {decoder!r}.")
        return cls(encoder(size), made[decoder]())

    @classmethod
    def tiny(cls, decoder: str = "segmenter-mask", **changes: Any) -> Self:
        """ViT-T at 512 pixels, with a decoder by name."""
        return cls.of("tiny", decoder, **changes)

    @classmethod
    def small(cls, decoder: str = "segmenter-mask", **changes: Any) -> Self:
        """ViT-S at 512 pixels, with a decoder by name."""
        return cls.of("small", decoder, **changes)

    @classmethod
    def base(cls, decoder: str = "segmenter-mask", **changes: Any) -> Self:
        """ViT-B at 512 pixels, with a decoder by name."""
        return cls.of("base", decoder, **changes)

    @classmethod
    def large(cls, decoder: str = "segmenter-mask", **changes: Any) -> Self:
        """ViT-L at 640 pixels, with a decoder by name."""
        return cls.of("large", decoder, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; each part says which configuration it is."""
        return {
            name: {"kind": type(part).__name__, **part.to_dict()}
            for name, part in (("encoder", self.encoder), ("decoder", self.decoder))
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration of these values, parts given as configurations or as plain data."""
        known = {kind.__name__: kind for kind in (*ENCODERS, *DECODERS)}
        parts: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                plain = dict(value)
                kind = plain.pop("kind", "")
                if kind not in known:
                    raise ValueError(
                        f"SegmenterConfig: {name} is of no known kind ({kind!r}); known: {', '.join(known)}."
                    )
                parts[name] = known[kind].from_dict(plain)
            else:
                parts[name] = value
        if unknown := sorted(set(parts) - {"encoder", "decoder"}):
            raise ValueError(f"SegmenterConfig: unknown {', '.join(unknown)}; it has decoder, encoder.")
        return cls(**parts)


@final
class Segmenter(Model):
    r"""An encoder's patch tokens, a decoder's masks, enlarged to the image: semantic segmentation.

    In code
        pad to whole patches on the right and below; encode; drop class tokens; decode; bilinear to pixels; cut the padding
    Shapes
        images ``(batch, in_chans, H, W)`` of any size; returns class scores ``(batch, num_classes, H, W)``
    Source
        Segmenter, arXiv 2105.05633, and its released code; DEPICT, CBT and MiTA-Segmenter change decoder or encoder.
    Differences from the authors' code
        the encoder's unused class head is part of it here too, so that released weights fit.

    >>> import torch
    >>> encoder = ViTConfig(img_size=32, patch_size=8, embed_dim=24, depth=1)
    >>> decoder = MaskDecoderConfig(embed_dim=24, patch_size=8, num_classes=4)
    >>> Segmenter(encoder=encoder, decoder=decoder)(torch.randn(1, 3, 30, 45)).shape
    torch.Size([1, 4, 30, 45])
    """

    config_class = SegmenterConfig
    config: SegmenterConfig

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        self.encoder = ENCODERS[type(self.config.encoder)](self.config.encoder)
        self.decoder = DECODERS[type(self.config.decoder)](self.config.decoder)

    def forward_features(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The patch tokens of a padded image, and its size in pixels."""
        high, wide = self.encoder.patch
        rows, columns = (math.ceil(x.shape[2] / high), math.ceil(x.shape[3] / wide)) if x.ndim == 4 else (0, 0)
        if x.ndim == 4:
            x = F.pad(x, (0, columns * wide - x.shape[3], 0, rows * high - x.shape[2]))
        tokens = self.encoder.forward_features(x)
        return tokens[:, self.encoder.class_tokens :], (rows * high, columns * wide)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel."""
        tokens, size = self.forward_features(x)
        masks = F.interpolate(self.decoder(tokens, im_size=size), size=size, mode="bilinear")
        return masks[..., : x.shape[2], : x.shape[3]]

    def stages(self, x: Tensor) -> Iterator[Stage]:
        """The blocks of the encoder, then those of the decoder."""
        tokens, size = self.forward_features(x)
        padded = F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))
        for stage in self.encoder.stages(padded):
            yield stage._replace(name=f"encoder {stage.name}")
        for stage in self.decoder.stages(tokens, im_size=size):
            yield stage._replace(name=f"decoder {stage.name}")
