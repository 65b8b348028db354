"""White-box networks and ToST of the sizes that released weights say, with the released code's departures on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ..models import CBT, CRATE, CBTConfig, CRATEConfig, ToST, ToSTConfig
from ..models.base import pair
from .build_layers import NAMES, attention_kind, heads_of, name_of
from .build_segmenters import SEGMENTERS
from .build_vits import VITS
from .options import Options, Weights, class_count, expect, image_size

__all__ = ["NETWORKS"]


def _conv_stem(w: Weights, prefix: str, options: Options) -> tuple[int, int]:
    """Channels and patch of a convolutional stem: every convolution halves the image."""
    count = w.count(f"{prefix}proj.")
    channels = w.shape(f"{prefix}proj.0.0.weight", 4)[1]
    options.agree("channels", "in_chans", found=channels)
    return channels, options.agree("patch_size", found=2**count)


def white_box(w: Weights, options: Options) -> nn.Module:
    """CRATE of its own project, or CRATE, CBT, ToST and hybrids of CBSA's, which have a convolutional stem."""
    positions, dim = w.shape("pos_embedding", 3)[1:]
    options.agree("dim", found=dim)
    depth = options.agree("depth", found=w.count("transformer.layers."))
    parts = [w.under(f"transformer.layers.{i}.0.fn.") for i in range(depth)]
    kinds = tuple(attention_kind(part) for part in parts)
    if not kinds:
        raise options.error("the weights have no transformer.layers; is it another kind?")
    conv = "to_patch_embedding.proj.0.0.weight" in w
    _attentions_fit(options, kinds)
    channels, patch = _conv_stem(w, "to_patch_embedding.", options) if conv else _linear_stem(w, options, positions - 1)
    heads, head_dim = _white_box_heads(options, parts, kinds)
    step = options.number("ista", "step_size", default=0.1)
    options.without_effect("mlp_dim", "hidden_dim")
    pool = options.take("pool", default="cls")
    if pool not in ("cls", "mean"):
        raise options.error(f"pool must be 'cls' or 'mean', but is {pool!r}.")
    common: dict[str, Any] = {
        "img_size": image_size(options, positions - 1, pair(patch)),
        "patch_size": patch,
        "in_chans": channels,
        "num_classes": class_count(options, w, "mlp_head.1"),
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "head_dim": head_dim,
        "ista_step": step,
        "global_pool": "token" if pool == "cls" else "avg",
        "drop_rate": options.take("emb_dropout", default=0.0),
        "attn_drop_rate": options.take("dropout", default=0.0),
        "compat": "official",
    }
    if conv:
        return CBT(CBTConfig(**common, attention=kinds[0] if len(set(kinds)) == 1 else kinds))
    return CRATE(CRATEConfig(**common))


def _attentions_fit(options: Options, kinds: tuple[str, ...]) -> None:
    """The attentions that the keys show, against the kind and the ``attn`` that were asked for."""
    allowed = {"crate": {"mssa", "tssa"}, "cbt": {"cbsa", "tssa"}, "tost": {"tssa"}}
    if options.kind in allowed and (other := set(kinds) - allowed[options.kind]):
        fits = {"mssa": "crate", "cbsa": "cbt"}
        better = "cbt-hybrid" if len(set(kinds)) > 1 else fits.get(next(iter(other)), "tost")
        raise options.error(f"its attentions are {', '.join(sorted(set(kinds)))}: that is kind {better!r}.")
    ffn = options.take("ffn")
    if ffn is not None and name_of(ffn) not in ("ista", "feedforward"):
        raise options.error(f"ffn must be ISTA, but is {ffn!r}.")
    asked = options.take("attn")
    if asked is None:
        if "tssa" in kinds and options.kind in ("crate", "cbt"):
            raise options.error("its attention is TSSA; pass attn='TSSA', or take kind 'tost'.")
        return
    names = [name_of(item) for item in asked] if isinstance(asked, (list, tuple)) else [name_of(asked)]
    hybrid = options.kind == "cbt-hybrid" and len(names) == 1
    expected = names if len(names) == len(kinds) else names * len(kinds)
    for name, kind in zip(expected, kinds, strict=False):
        if name not in NAMES[kind] and not hybrid:
            raise options.error(f"attn is {asked!r}, but the weights are those of {', '.join(kinds)}.")


def _linear_stem(w: Weights, options: Options, patches: int) -> tuple[int, int | tuple[int, int]]:
    """Channels and patch of flattened patches: both must be told where patches are no squares of three channels."""
    values = w.shape("to_patch_embedding.1.weight", 1)[0]
    channels = options.count("channels", "in_chans", default=3)
    given = options.take("patch_size")
    if given is not None:
        high, wide = options.sides("patch_size", given)
        if channels * high * wide != values:
            raise options.error(
                f"a patch has {values} values, but {channels} channels × {high} × {wide} pixels are"
                f" {channels * high * wide}; pass patch_size and channels."
            )
        return channels, given if isinstance(given, int) else (high, wide)
    side = math.isqrt(values // channels)
    if channels * side * side != values:
        options.need("patch_size", why=f"{values} values a patch are no square of {channels} channels")
    return channels, side


def _white_box_heads(options: Options, parts: list[Weights], kinds: tuple[str, ...]) -> tuple[int, int]:
    inner = parts[0].shape("proj.weight" if kinds[0] == "cbsa" else "qkv.weight", 2)[0]
    for part, kind in zip(parts, kinds, strict=True):
        if kind != "mssa":
            heads = part.shape("step_x" if kind == "cbsa" else "temp", 3 if kind == "cbsa" else 2)[0]
            options.agree("heads", found=heads)
            options.agree("dim_head", found=inner // heads)
            return heads, inner // heads
    return heads_of(options, inner, "heads")


def tost(w: Weights, options: Options) -> nn.Module:
    """ToST's vision model; or the CBSA project's, which is CBT with TSSA."""
    if "pos_embedding" in w:
        return white_box(w, options)
    channels, patch = _conv_stem(w, "patch_embed.", options)
    dim = options.agree("embed_dim", "dim", found=w.shape("cls_token", 3)[2])
    first = w.under("blocks.0.")
    heads = options.agree("num_heads", found=first.under("attn.").shape("temp", 2)[0])
    bias = "attn.qkv.bias" in first
    if options.has("qkv_bias"):
        options.agree("qkv_bias", found=bias)
    ratio = first.shape("mlp.fc1.weight", 2)[0] / dim
    options.agree("mlp_ratio", found=ratio)
    layer = options.take("attn_layer", default="AttentionTSSA")
    if name_of(layer) not in NAMES["tssa"]:
        raise options.error(f"attn_layer must be AttentionTSSA, but is {layer!r}.")
    options.without_effect("patch_proj", "pretrained")
    expect(options, "norm_layer", "layernorm")
    eta = 1.0 if options.take("eta") is None else options.number("eta", default=1.0)
    return ToST(
        ToSTConfig(
            img_size=options.take("img_size", "image_size", default=224),
            patch_size=patch,
            in_chans=channels,
            num_classes=class_count(options, w, "head"),
            embed_dim=dim,
            depth=options.agree("depth", found=w.count("blocks.")),
            num_heads=heads,
            mlp_ratio=ratio,
            qkv_bias=bias,
            class_layers=options.agree("cls_attn_layers", found=w.count("cls_attn_blocks.")),
            layer_scale=eta,
            tokens_norm=bool(
                options.need("tokens_norm", why="the weights do not tell what class attention normalises")
            ),
            use_pos=bool(options.take("use_pos", default=True)),
            qk_scale=options.take("qk_scale") or None,
            drop_rate=options.take("drop_rate", default=0.0),
            attn_drop_rate=options.take("attn_drop_rate", default=0.0),
            drop_path_rate=options.take("drop_path_rate", default=0.0),
            compat="official",
        )
    )


NETWORKS: dict[str, Callable[[Weights, Options], nn.Module]] = {
    "crate": white_box,
    "cbt": white_box,
    "cbt-hybrid": white_box,
    "tost": tost,
    **VITS,
    **SEGMENTERS,
}
"""Kind: what builds the network."""
