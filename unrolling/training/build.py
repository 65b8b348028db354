"""The networks that the commands train, from names: classifiers, and decoders on an encoder that is trained or frozen."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import models
from ..errors import check_choice
from ..models import Model, ModelConfig, Segmenter, SegmenterConfig, ViTConfig
from ..models.base import pair
from ..models.depict import DEPICT, CBTDecoder, CBTDecoderConfig, DecoderModel, DEPICTConfig
from ..models.image import ImageModel
from ..models.segmenter import LinearDecoder, LinearDecoderConfig, MaskDecoder, MaskDecoderConfig
from .data import Splits
from .recipe import Recipe

__all__ = [
    "DECODERS",
    "FrozenSegmenter",
    "frozen_segmenter",
    "load_encoder",
    "make_classifier",
    "make_decoder",
    "make_segmenter",
    "patch_tokens",
]

DECODERS: dict[str, tuple[type[DecoderModel], type[ModelConfig], Mapping[str, Any]]] = {
    "depict-sa": (DEPICT, DEPICTConfig, {"attention": "self"}),
    "depict-ca": (DEPICT, DEPICTConfig, {"attention": "cross"}),
    "cbt": (CBTDecoder, CBTDecoderConfig, {}),
    "segmenter-mask": (MaskDecoder, MaskDecoderConfig, {}),
    "linear": (LinearDecoder, LinearDecoderConfig, {}),
}
"""Name: the decoder, its configuration, and what of it the name fixes."""

DINO = "dinov2-small"


def _fields(kind: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe's table for a class: those outside of inner tables, and those in the one with its name."""
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    named = table.get(kind.__name__.removesuffix("Config"), {})
    return {name: _plain(value) for name, value in {**plain, **named}.items()}


def _plain(value: Any) -> Any:
    """Lists, as JSON and TOML have them, as the tuples of configurations."""
    return tuple(value) if isinstance(value, list) else value


def make_classifier(name: str, data: Splits, recipe: Recipe, **choices: Any) -> Model:
    """The network of that name (see :data:`unrolling.models.MODELS`) for these images, fields changed by the recipe.

    Parameters
    ----------
        choices: fields of its configuration that the command line has chosen (attention, form, tied …); None where not.

    Raises
    ------
        ValueError for a name that is not known, one that makes no classifier, and fields that it does not have.
    """
    if name not in models.MODELS:
        near = ", ".join(difflib.get_close_matches(name, models.MODELS, n=4, cutoff=0.3))
        raise ValueError(f"no model is named {name!r}. Nearest: {near}; `proofs-check models --list` lists all.")
    kind, make = models.MODELS[name]
    if not issubclass(kind, ImageModel):
        raise ValueError(f"{name} makes no classes of images; it is for `unroll train segment`.")
    known = {each.name for each in dataclasses.fields(kind.config_class)}
    changes: dict[str, Any] = {"num_classes": len(data.train.classes), "in_chans": data.train.channels}
    if data.train.size is not None:
        changes["img_size"] = data.train.size
    changes["patch_size"] = data.patch
    if recipe.drop_path:
        changes["drop_path_rate"] = recipe.drop_path
    changes |= _fields(kind, recipe.model)
    chosen = {option: _plain(value) for option, value in choices.items() if value is not None}
    if unknown := sorted((set(chosen) | set(changes)) - known):
        raise ValueError(f"{name} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    return kind(make(**{**changes, **chosen}))


class FrozenSegmenter(nn.Module):
    """A decoder on an encoder that is not trained and not part of the module's parameters: masks at the images' resolution.

    Shapes
        normalised images ``(batch, channels, H, W)`` in whole patches, or the encoder's patch tokens ``(batch, patches,
        width)`` as cached; returns class scores ``(batch, classes, *resolution)``
    """

    def __init__(
        self, encoder: ImageModel, decoder: DecoderModel, size: tuple[int, int], resolution: tuple[int, int]
    ) -> None:
        super().__init__()
        self._held = (encoder.eval().requires_grad_(False),)  # a tuple: what is in it is not the module's own
        self.decoder, self.size, self.resolution = decoder, size, resolution

    @property
    def encoder(self) -> ImageModel:
        """The frozen encoder."""
        return self._held[0]

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The encoder's patch tokens ``(batch, patches, width)`` of images resized to whole patches."""
        encoder = self.encoder.to(images.device)
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        if images.shape[1] == 1 and encoder.config.in_chans == 3:
            images = images.expand(-1, 3, -1, -1)
        return patch_tokens(encoder, images)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel."""
        tokens = self.tokens(x) if x.ndim == 4 else x
        masks = self.decoder(tokens, im_size=self.size)
        return F.interpolate(masks, size=self.resolution, mode="bilinear")


def frozen_segmenter(encoder: ImageModel, decoder: DecoderModel, data: Splits, recipe: Recipe) -> FrozenSegmenter:
    """Encoder and decoder for images of one size, resized to ``size`` of the recipe's [backbone]: 16 × 16 patches by default."""
    if data.train.size is None:
        raise ValueError(f"{data.train.name}: a frozen backbone needs images of one size.")
    size = recipe.backbone.get("size", [16 * side for side in encoder.patch])
    return FrozenSegmenter(encoder, decoder, pair(size if isinstance(size, int) else tuple(size)), data.train.size)


def patch_tokens(encoder: ImageModel, images: Tensor) -> Tensor:
    """The patch tokens after the last block: no class tokens, no registers."""
    tokens = encoder.forward_features(images)
    high, wide = encoder.patch
    count = (images.shape[-2] // high) * (images.shape[-1] // wide)
    # Registers stand at the end, and whatever stands before the patches is no patch.
    end = tokens.shape[1] - getattr(encoder, "registers", 0)
    return tokens[:, end - count : end]


def load_encoder(name: str) -> ImageModel:
    """The encoder in a run's folder, in a folder or file of ``save_pretrained``, or the DINOv2 layout's ViT-S/14 by name.

    Raises
    ------
        ValueError for a place that holds no encoder of images; MissingData for a package that is not installed.
    """
    if name == DINO:
        from .pretrained.backbones import dinov2_small

        return dinov2_small()
    place = Path(name)
    if (place / "model").is_dir():
        place = place / "model"
    found = models.load(place)
    if isinstance(found, Segmenter):
        found = found.encoder
    if not isinstance(found, ImageModel):
        raise ValueError(f"{name}: holds a {type(found).__name__}, which makes no tokens of images.")
    return found


def make_decoder(name: str, classes: int, width: int, patch: tuple[int, int], recipe: Recipe) -> DecoderModel:
    """A decoder by name for tokens of that width; the recipe's table [decoder] changes its fields."""
    check_choice("decoder", "decoder", name, tuple(DECODERS))
    kind, config, fixed = DECODERS[name]
    known = {each.name for each in dataclasses.fields(config)}
    wanted = {
        "num_classes": classes,
        "embed_dim": width,
        "patch_size": patch,
        **_fields(config, recipe.decoder),
        **fixed,
    }
    if unknown := sorted(set(wanted) - known):
        raise ValueError(f"decoder {name} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    return kind(config.from_dict(wanted))


def make_segmenter(decoder: str, backbone: str, data: Splits, recipe: Recipe, *, frozen: bool = False) -> nn.Module:
    """A decoder on an encoder: "scratch" for a ViT of the recipe's table [backbone], or what :func:`load_encoder` reads.

    Parameters
    ----------
        frozen: keep the encoder as it is; then images are resized to ``size`` of [backbone], 16 patches by default.

    Raises
    ------
        ValueError where a frozen encoder is asked for and there is none, and for widths or channels that do not fit.
    """
    classes = len(data.train.classes)
    if backbone == "scratch":
        if frozen:
            raise ValueError(
                "a backbone from scratch cannot be frozen: it has learned nothing. Name one with --backbone."
            )
        fields = {"img_size": data.train.size or 224, "patch_size": data.patch, **_fields(ViTConfig, recipe.backbone)}
        config = ViTConfig.from_dict(
            {"in_chans": data.train.channels, **fields, "num_classes": 0, "drop_path_rate": recipe.drop_path}
        )
        part = make_decoder(decoder, classes, config.embed_dim, pair(config.patch_size), recipe)
        return Segmenter(SegmenterConfig(config, part.config))
    encoder = load_encoder(backbone)
    c = encoder.config
    if c.in_chans != data.train.channels and not (frozen and data.train.channels == 1):
        raise ValueError(
            f"{backbone} takes images of {c.in_chans} channels, but {data.train.name} has {data.train.channels}."
        )
    width = c.embed_dim
    part = make_decoder(decoder, classes, width, encoder.patch, recipe)
    if frozen:
        return frozen_segmenter(encoder, part, data, recipe)
    whole = Segmenter(SegmenterConfig(dataclasses.replace(c, num_classes=0), part.config))
    state = {key: value for key, value in encoder.state_dict().items() if not key.startswith("head.")}
    whole.encoder.load_state_dict(state)
    whole.decoder = part
    return whole
