"""Segmentation decoders of subspace attention alone: DEPICT with MSSA and MSCA, CBT's decoder with CBSA."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import check_choice, check_pair
from ..layers.cbsa import CBSA
from ..layers.depict import MSCA, DepictDecoder, DepictRecord
from ..representatives import GridPool
from ..subspace import SubspaceLayer
from .base import Model, ModelConfig, Stage, pair

__all__ = ["DEPICT", "CBTDecoder", "CBTDecoderConfig", "DEPICTConfig", "DecoderModel", "PreNorm"]

WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024}
"""Widths of the ViTs that decoders stand on."""


class DecoderModel(Model, abc.ABC):
    """From the patch tokens of an image to one mask a class: ``decoder(tokens, im_size=(H, W))``, sizes in pixels.

    Attributes
    ----------
        im_size: the size for calls that give none.
    """

    im_size: tuple[int, int] | None = None

    def grid_of(self, tokens: Tensor, im_size: tuple[int, int] | None) -> tuple[int, int]:
        """Rows and columns of patches of an image of ``im_size``.

        Raises
        ------
            ValueError where no size is given, or the patches of that size are not as many as the tokens.
        """
        owner, dim = type(self).__name__, self.config.to_dict()["embed_dim"]
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[-1] != dim:
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
            raise ValueError(f"{owner}: tokens must be (batch, patches, {dim}), but are {found}.")
        im_size = self.im_size if im_size is None else im_size
        if im_size is None:
            raise ValueError(f"{owner}: pass im_size=(H, W), the image's size in pixels, for the grid of the patches.")
        high, wide = pair(self.config.to_dict()["patch_size"])
        grid = (im_size[0] // high, im_size[1] // wide)
        if grid[0] * grid[1] != tokens.shape[1]:
            raise ValueError(
                f"{owner}: an image of {im_size[0]} × {im_size[1]} pixels has {grid[0]} × {grid[1]} patches of {high} ×"
                f" {wide}, but there are {tokens.shape[1]} tokens; class tokens must be removed."
            )
        return grid

    @abc.abstractmethod
    def stages(self, x: Tensor, im_size: tuple[int, int] | None = None) -> Iterator[Stage]:
        """Every block with the tokens that enter it, for traces and maps."""

    def grid_for_look(self, tokens: Tensor, im_size: tuple[int, int] | None) -> tuple[int, int]:
        """The same where a size is known, and one row of all tokens where none is: for layers that know no grid."""
        if im_size is None and self.im_size is None:
            return (1, tokens.shape[1])
        return self.grid_of(tokens, im_size)


@dataclass(frozen=True)
class _DecoderConfig(ModelConfig):
    num_classes: int = 150
    embed_dim: int = 192
    patch_size: int | tuple[int, int] = 16
    depth: int = 3
    num_heads: int = 3
    head_dim: int = 100
    form: str = "softmax"
    epsilon: float = 0.5

    COUNTS: ClassVar[tuple[str, ...]] = (
        "num_classes",
        "embed_dim",
        "patch_size",
        "depth",
        "num_heads",
        "head_dim",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(type(self).__name__, "form", self.form, ("softmax", "exact"))

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """On a ViT of width 192."""
        return cls(**{"embed_dim": WIDTHS["tiny"], **changes})

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """On a ViT of width 384."""
        return cls(**{"embed_dim": WIDTHS["small"], **changes})

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """On a ViT of width 768."""
        return cls(**{"embed_dim": WIDTHS["base"], **changes})

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """On a ViT of width 1024."""
        return cls(**{"embed_dim": WIDTHS["large"], **changes})


@final
@dataclass(frozen=True)
class DEPICTConfig(_DecoderConfig):
    """DEPICT's decoders (arXiv 2411.03033 and its released code): on ViT-T, S, B, L.

    attention: "self" (DEPICT-SA: ``depth`` layers on patches and classes together) or "cross" (DEPICT-CA: ``depth``
    layers on patches, then ``cross_depth`` of the classes reading them). num_classes: C. num_heads × head_dim: of the
    layers on patches; cross_head_dim: of the others. form, epsilon: as for MSSA. orthonormal: keep the bases so.
    dropout: of attention weights.

    >>> DEPICTConfig.base(attention="self").head_dim
    100
    """

    attention: str = "cross"
    cross_depth: int = 3
    cross_head_dim: int = 50
    orthonormal: bool = False
    dropout: float = 0.0

    COUNTS: ClassVar[tuple[str, ...]] = (*_DecoderConfig.COUNTS, "cross_depth", "cross_head_dim")
    SHARES = ("dropout",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("DEPICTConfig", "attention", self.attention, ("self", "cross"))


@final
class DEPICT(DecoderModel):
    r"""DEPICT: refine the patches, turn the class embeddings to their principal subspace, take cosines as masks.

    In code
        :class:`unrolling.DepictDecoder` with LayerNorms and free bases, in the released arrangement
    Shapes
        tokens ``(batch, patches, embed_dim)``, im_size (H, W) in pixels; returns ``(batch, num_classes, rows, columns)``
    What descends
        with LayerNorms inside the residual nothing exactly; DepictDecoder(norm=False) is made of declared steps.
    Source
        DEPICT, arXiv 2411.03033, sections 3 and 4, and its released code
    Differences from the authors' code
        none in what is computed; the step of every layer starts at N(0, 1) as there.

    >>> import torch
    >>> decoder = DEPICT(num_classes=4, embed_dim=24, head_dim=8, cross_head_dim=4)
    >>> decoder(torch.randn(2, 6, 24), im_size=(32, 48)).shape
    torch.Size([2, 4, 2, 3])
    """

    config_class = DEPICTConfig
    config: DEPICTConfig

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        c = self.config
        self.decoder = DepictDecoder(
            c.embed_dim,
            c.num_classes,
            c.num_heads,
            attention=c.attention,
            depth=c.depth,
            cross_depth=c.cross_depth,
            head_dim=c.head_dim,
            cross_head_dim=c.cross_head_dim,
            form=c.form,
            epsilon=c.epsilon,
            basis="orthonormal" if c.orthonormal else "free",
            norm=True,
            dropout=c.dropout,
        )
        with torch.no_grad():
            for layer in (*self.decoder.refine_layers, *self.decoder.cross_layers):
                if not c.orthonormal and isinstance(layer, SubspaceLayer):
                    layer.basis.normal_(0, c.embed_dim**-0.5)
                if c.form == "softmax" and isinstance(layer, SubspaceLayer):
                    layer.step.normal_()

    def forward(self, tokens: Tensor, im_size: tuple[int, int] | None = None) -> Tensor:
        """One mask a class, a number for every patch."""
        return self.decoder(tokens, self.grid_of(tokens, im_size))

    def forward_features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Refined patches and class embeddings, normalised: ``(batch, patches, dim)`` and ``(batch, classes, dim)``."""
        return self.decoder.refine(tokens)

    def records(self, tokens: Tensor) -> list[DepictRecord]:
        """Rate, alignment and captured share after every layer; see :meth:`unrolling.DepictDecoder.trace`."""
        return self.decoder.trace(tokens)

    def stages(self, x: Tensor, im_size: tuple[int, int] | None = None) -> Iterator[Stage]:
        """Every layer with the tokens that enter it: classes and patches together, or the patches, then both again.

        The image's size matters to no layer, and may be left out.
        """
        c, decoder, grid = self.config, self.decoder, self.grid_for_look(x, im_size)
        classes = decoder.class_embeddings.expand(x.shape[0], -1, -1)
        joint = c.attention == "self"
        tokens = torch.cat((classes, x), dim=1) if joint else x
        for number, (layer, norm) in enumerate(zip(decoder.refine_layers, decoder.refine_norms, strict=True)):
            view = PreNorm(cast(SubspaceLayer, layer), norm)
            yield Stage(f"self-attention {number}", view, tokens, grid, c.num_classes if joint else 0)
            tokens = view(tokens)
        tokens = torch.cat((classes, decoder.patch_norm(tokens)), dim=1)
        for number, (layer, norm) in enumerate(zip(decoder.cross_layers, decoder.cross_norms, strict=True)):
            reader = _ClassesRead(cast(MSCA, layer), norm)
            yield Stage(f"cross-attention {number}", reader, tokens, grid, c.num_classes)
            tokens = reader.attend(tokens)


class _ClassesRead:
    """A view of a layer in which the class tokens, before the patches, read them: patches normalised, classes not."""

    def __init__(self, attention: MSCA, norm: nn.Module) -> None:
        self.attention, self.norm = attention, norm

    def seen(self, x: Tensor) -> Tensor:
        count = self.attention.class_tokens
        return torch.cat((x[:, :count], self.norm(x[:, count:])), dim=1)

    def attend(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        count = self.attention.class_tokens
        return torch.cat((x[:, :count] + self.attention.update(self.seen(x)), x[:, count:]), dim=1)

    def feed(self, x: Tensor) -> Tensor:
        return x


class PreNorm(nn.Module):
    """``x + attention(norm(x))`` without a feed-forward half: the block of segmentation decoders, and a view of one."""

    def __init__(self, attention: SubspaceLayer, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.attention, self.norm = attention, nn.LayerNorm(attention.dim) if norm is None else norm

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after the attention."""
        return self.attend(x, grid)

    def seen(self, x: Tensor) -> Tensor:
        """What the attention gets to see of the tokens."""
        return self.norm(x)

    def attend(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after the attention."""
        return x + self.attention.adds(self.norm(x), grid)

    def feed(self, x: Tensor) -> Tensor:
        """The tokens as they are."""
        return x


@final
@dataclass(frozen=True)
class CBTDecoderConfig(_DecoderConfig):
    """CBT's segmentation decoder (arXiv 2509.16875, section 4.2): on ViT-T, S, B, L; representatives: rows and columns.

    tied: project back by the bases instead of a free matrix, as in the paper's robustness figure; orthonormal: keep the
    bases orthonormal. The published B and L count more operations than three layers have; twice and three times as many fit (the claims
    models.cbt_decoder_base and models.cbt_decoder_large say how well): depth=6 and depth=9.
    """

    representatives: tuple[int, int] = (10, 10)
    tied: bool = False
    orthonormal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair("CBTDecoderConfig", "representatives", self.representatives)


@final
class CBTDecoder(DecoderModel):
    r"""CBT's decoder: blocks of CBSA on classes and patches together, cosines of the two as masks.

    In code
        ``x = [classes, tokens]``; L times ``x = x + CBSA(LN(x))``; ``LN(cos(LN(patches), LN(classes)))`` over classes
    Shapes
        tokens ``(batch, patches, embed_dim)``, im_size (H, W) in pixels; returns ``(batch, num_classes, rows, columns)``
    Source
        CBSA, arXiv 2509.16875, section 4.2, and its released code, which MiTA-Segmenter uses too
    Differences from the authors' code
        classes stand first, which nothing sees; their number, the width and the grid are free, there 150, 300 and square.

    >>> import torch
    >>> decoder = CBTDecoder(num_classes=4, embed_dim=24, head_dim=8, representatives=(2, 2))
    >>> decoder(torch.randn(2, 6, 24), im_size=(32, 48)).shape
    torch.Size([2, 4, 2, 3])
    """

    config_class = CBTDecoderConfig
    config: CBTDecoderConfig

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        c = self.config
        self.class_embeddings = nn.Parameter(nn.init.trunc_normal_(torch.empty(c.num_classes, c.embed_dim), std=0.02))
        self.blocks = nn.ModuleList(PreNorm(self._attention()) for _ in range(c.depth))
        self.norm, self.mask_norm = nn.LayerNorm(c.embed_dim), nn.LayerNorm(c.num_classes)

    def _attention(self) -> CBSA:
        c = self.config
        layer = CBSA(
            c.embed_dim,
            c.num_heads,
            c.head_dim,
            representatives=GridPool(c.representatives),
            form=c.form,
            epsilon=c.epsilon,
            basis="orthonormal" if c.orthonormal else "free",
            tied=c.tied,
            output_bias=not c.tied,
            per_head_step=True,
            keep_queries=c.form == "softmax",
            class_tokens=c.num_classes,
        )
        with torch.no_grad():
            if not c.orthonormal:
                nn.init.trunc_normal_(layer.basis, std=0.02)
            if not c.tied:
                nn.init.trunc_normal_(layer.output.weight, std=0.02)
            if c.form == "softmax":
                layer.step.normal_()
        return layer

    def _joint(self, tokens: Tensor) -> Tensor:
        return torch.cat((self.class_embeddings.expand(tokens.shape[0], -1, -1), tokens), dim=1)

    def forward_features(self, tokens: Tensor, im_size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Refined patches and class embeddings, normalised: ``(batch, patches, dim)`` and ``(batch, classes, dim)``."""
        grid, x = self.grid_of(tokens, im_size), self._joint(tokens)
        for block in self.blocks:
            x = self._run(block, x, grid)
        x = self.norm(x)
        return x[:, self.config.num_classes :], x[:, : self.config.num_classes]

    def forward(self, tokens: Tensor, im_size: tuple[int, int] | None = None) -> Tensor:
        """One mask a class, a number for every patch."""
        patches, classes = self.forward_features(tokens, im_size)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).mT
        return self.mask_norm(cosines).mT.unflatten(-1, self.grid_of(tokens, im_size))

    def stages(self, x: Tensor, im_size: tuple[int, int] | None = None) -> Iterator[Stage]:
        """Every block with the tokens that enter it, classes first; the size must be given, as for the masks."""
        grid, tokens = self.grid_of(x, im_size), self._joint(x)
        for number, block in enumerate(self.blocks):
            yield Stage(f"block {number}", block, tokens, grid, self.config.num_classes)
            tokens = block(tokens, grid)
