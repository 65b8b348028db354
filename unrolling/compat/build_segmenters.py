"""Segmentation decoders and whole Segmenters of the sizes that released weights say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..models import (
    DEPICT,
    CBTDecoder,
    CBTDecoderConfig,
    DEPICTConfig,
    LinearDecoder,
    LinearDecoderConfig,
    MaskDecoder,
    MaskDecoderConfig,
    Segmenter,
    SegmenterConfig,
)
from ..models.base import ModelConfig
from .build_layers import heads_of
from .build_vits import vit
from .options import Options, Weights

__all__ = ["SEGMENTERS"]


def _decoder_common(w: Weights, options: Options) -> tuple[int, int]:
    classes, dim = w.shape("cls_emb", 3)[1:]
    options.agree("n_cls", "num_classes", found=classes)
    options.agree("d_model", "dim", "embed_dim", found=dim)
    options.without_effect("name")
    return classes, dim


def _patch(options: Options) -> Any:
    value = options.take("patch_size", default=16)
    sides = options.sides("patch_size", value)
    return value if isinstance(value, int) else sides


def depict(w: Weights, options: Options) -> nn.Module:
    """DEPICT-SA or DEPICT-CA, whose heads are 100 and 50 wide."""
    classes, dim = _decoder_common(w, options)
    joint = options.kind == "depict-sa"
    options.agree("mode", found="sa" if joint else "ca")
    name = "net" if joint else "snet"
    inner = w.shape(f"{name}.layers.0.fn.proj", 2)[0]
    heads = options.take("n_heads", default=inner // 100 if inner % 100 == 0 else None)
    if heads is None:
        options.need("n_heads", why=f"{inner} inner features are not heads of 100")
    across = None if joint else w.shape("cnet.layers.0.fn.proj", 2)[0]
    for size in (inner, across):
        if size is not None and (not isinstance(heads, int) or heads < 1 or size % heads):
            raise options.error(f"{size} inner features are not {heads} heads of equal width.")
    return DEPICT(
        DEPICTConfig(
            num_classes=classes,
            embed_dim=dim,
            patch_size=_patch(options),
            depth=options.agree("n_layers", "depth", found=w.count(f"{name}.layers.")),
            num_heads=heads,
            head_dim=inner // heads,
            attention="self" if joint else "cross",
            cross_depth=3 if joint else w.count("cnet.layers."),
            cross_head_dim=50 if across is None else across // heads,
            dropout=options.take("dropout", default=0.0),
        )
    )


def cbt_decoder(w: Weights, options: Options) -> nn.Module:
    """CBT's decoder, which pools patches to 10 × 10."""
    classes, dim = _decoder_common(w, options)
    first = w.under("net.layers.0.fn.")
    heads, inner = first.shape("step_x", 3)[0], first.shape("proj.weight", 2)[0]
    options.agree("n_heads", "heads", found=heads)
    options.without_effect("dropout")
    return CBTDecoder(
        CBTDecoderConfig(
            num_classes=classes,
            embed_dim=dim,
            patch_size=_patch(options),
            depth=options.agree("n_layers", "depth", found=w.count("net.layers.")),
            num_heads=heads,
            head_dim=inner // heads,
        )
    )


def mask_decoder(w: Weights, options: Options) -> nn.Module:
    """Segmenter's mask transformer."""
    classes, dim = _decoder_common(w, options)
    outer = w.shape("proj_dec.weight", 2)[1]
    options.agree("d_encoder", found=outer)
    hidden = w.shape("blocks.0.mlp.fc1.weight", 2)[0]
    options.agree("d_ff", found=hidden)
    return MaskDecoder(
        MaskDecoderConfig(
            num_classes=classes,
            embed_dim=outer,
            dim=dim,
            patch_size=_patch(options),
            depth=options.agree("n_layers", "depth", found=w.count("blocks.")),
            num_heads=heads_of(options, dim, "n_heads", "num_heads", "heads", width=None)[0],
            mlp_ratio=hidden / dim,
            drop_rate=options.take("dropout", default=0.1),
            drop_path_rate=options.take("drop_path_rate", default=0.0),
        )
    )


def linear_decoder(w: Weights, options: Options) -> nn.Module:
    """Segmenter's linear decoder."""
    classes, dim = w.shape("head.weight", 2)
    options.agree("n_cls", "num_classes", found=classes)
    options.agree("d_encoder", "d_model", "dim", "embed_dim", found=dim)
    options.without_effect("name")
    return LinearDecoder(LinearDecoderConfig(num_classes=classes, embed_dim=dim, patch_size=_patch(options)))


DECODERS: dict[str, tuple[str, Callable[[Weights, Options], nn.Module]]] = {
    "depict-ca": ("snet.layers.0.fn.proj", depict),
    "depict-sa": ("net.layers.0.fn.proj", depict),
    "cbt-decoder": ("net.layers.0.fn.proj.weight", cbt_decoder),
    "segmenter-mask": ("proj_dec.weight", mask_decoder),
    "segmenter-linear": ("head.weight", linear_decoder),
}
"""Kind of decoder: the key by which it is known, and what builds it."""

ENCODER_NAMES = (
    "image_size",
    "img_size",
    "n_layers",
    "d_model",
    "d_ff",
    "n_heads",
    "num_heads",
    "dropout",
    "drop_path_rate",
    "distilled",
    "channels",
    "attention",
    "attn",
)
"""Arguments of a whole Segmenter that are its encoder's."""


def segmenter(w: Weights, options: Options) -> nn.Module:
    """A whole Segmenter: arguments as ``encoder={…}, decoder={…}``, or flat for the encoder, as ``variant.yml`` has them."""
    encoder_weights, decoder_weights = w.under("encoder."), w.under("decoder.")
    kind = next((name for name, (key, _) in DECODERS.items() if key in decoder_weights), None)
    if kind is None:
        raise options.error(f"no known decoder's keys stand under {decoder_weights.prefix!r}.")
    flat = {name: options.take(name) for name in ENCODER_NAMES if options.has(name)}
    patch = {"patch_size": options.take("patch_size")} if options.has("patch_size") else {}
    inner = options.part("encoder", "vit") or Options("vit", {})
    encoder_options = Options("vit", {**flat, **patch, **inner._given})
    decoder_options = options.part("decoder", kind) or Options(kind, {})
    given = dict(decoder_options._given)
    given.pop("class", None)
    heads_known = {"n_heads", "num_heads", "heads"} & set(given)
    if kind == "segmenter-mask" and not heads_known:
        width = decoder_weights.shape("proj_dec.weight", 2)[0]
        if width % 64 == 0:  # what the released factory gives it
            given["n_heads"] = width // 64
    if options.has("n_cls", "num_classes"):
        given.setdefault("n_cls", options.take("n_cls", "num_classes"))
    options.without_effect("backbone", "normalization")
    encoder = vit(encoder_weights, encoder_options)
    given.setdefault("patch_size", _config(encoder).to_dict()["patch_size"])
    decoder_options = Options(kind, given)
    decoder = DECODERS[kind][1](decoder_weights, decoder_options)
    encoder_options.done()
    decoder_options.done()
    return Segmenter(SegmenterConfig(_config(encoder), _config(decoder)))


def _config(module: nn.Module) -> ModelConfig:
    config: Any = module.config
    if isinstance(config, Mapping) or not isinstance(config, ModelConfig):
        raise TypeError(f"{type(module).__name__} has no configuration.")
    return config


SEGMENTERS: dict[str, Callable[[Weights, Options], nn.Module]] = {
    **{kind: build for kind, (_, build) in DECODERS.items()},
    "segmenter": segmenter,
}
"""Kind: what builds the network."""
