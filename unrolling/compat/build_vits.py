"""ViT, DeiT and their kin with MiTA, of the sizes that released weights say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..models import MiTADeiT, MiTADeiTConfig, MiTAViT5, MiTAViT5Config, ViT, ViTConfig
from ..models.base import pair
from .build_layers import heads_of, name_of
from .options import Options, Weights, class_count, expect, image_size

__all__ = ["VITS", "vit"]


def _patch_stem(w: Weights, options: Options) -> dict[str, Any]:
    """Sizes that the patch embedding, the positions and the first block of a ViT tell."""
    dim, channels, high, wide = w.shape("patch_embed.proj.weight", 4)
    patch: int | tuple[int, int] = high if high == wide else (high, wide)
    options.agree("embed_dim", "d_model", "dim", found=dim)
    options.agree("in_chans", "channels", found=channels)
    options.agree("patch_size", found=patch)
    if "pre_logits.fc.weight" in w:
        raise options.error("pre_logits.fc is timm's representation layer, which this library does not have.")
    hidden = w.shape("blocks.0.mlp.fc1.weight", 2)[0]
    options.agree("d_ff", found=hidden)
    options.agree("mlp_ratio", found=hidden / dim)
    return {
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": dim,
        "depth": options.agree("depth", "n_layers", found=w.count("blocks.")),
        "mlp_ratio": hidden / dim,
        "qkv_bias": any(f"blocks.0.attn.{name}.bias" in w for name in ("qkv", "qkvg")),
        "drop_path_rate": options.take("drop_path_rate", default=0.0),
    }


def _deit_common(w: Weights, options: Options, extra: int, learned: bool = True) -> dict[str, Any]:
    sizes = _patch_stem(w, options)
    if options.has("qkv_bias"):
        options.agree("qkv_bias", found=sizes["qkv_bias"])
    expect(options, "act_layer", "gelu")
    expect(options, "norm_layer", "layernorm", "rmsnorm")
    options.without_effect("embed_layer", "weight_init", "pretrained")
    if options.kind.startswith("mita"):
        options.without_effect("qk_scale")
    elif options.take("qk_scale") is not None:
        raise options.error("qk_scale is not p^(−1/2); this network has no other scale.")
    if learned:
        size = image_size(options, w.shape("pos_embed", 3)[1] - extra, pair(sizes["patch_size"]))
    else:
        given = options.need("img_size", "image_size", why="without positions the weights do not tell the grid")
        size = options.sides("img_size", given)
    heads = heads_of(options, sizes["embed_dim"], "num_heads", "n_heads", "heads", width=None)[0]
    return {
        **sizes,
        "img_size": size,
        "num_classes": class_count(options, w, "head", "n_cls"),
        "num_heads": heads,
        "compat": "official",
    }


def vit(w: Weights, options: Options) -> nn.Module:
    """Segmenter's ViT: norms with 1e-5, positions resized bilinearly."""
    distilled = options.agree("distilled", found="dist_token" in w)
    w.shape("blocks.0.attn.qkv.bias", 1)
    drop = options.take("dropout", default=0.1)
    sizes = _deit_common(w, options, 2 if distilled else 1)
    kind = _encoder_kind(options)
    more: dict[str, Any] = {"norm_eps": 1e-5, "resize": "bilinear", "drop_rate": drop, **sizes}
    if kind == "mita":
        if distilled:
            raise options.error("MiTA's encoder has no distillation token.")
        return MiTADeiT(MiTADeiTConfig(**more, landmarks=(7, 7), keys_per_expert=49))
    if kind == "route":
        return MiTADeiT(MiTADeiTConfig(**more, landmarks=(9, 9), keys_per_expert=162, shared=False))
    return ViT(ViTConfig(**more, attn_drop_rate=drop, distilled=distilled))


def _encoder_kind(options: Options) -> str:
    """Whether the encoder's attention is MiTA's, which its keys do not tell."""
    name = name_of(options.take("attention", "attn", default=""))
    return "route" if "route" in name else "mita" if "mita" in name else "softmax"


def deit(w: Weights, options: Options) -> nn.Module:
    """DeiT as timm has it: norms with 1e-6."""
    distilled = "dist_token" in w
    if options.has("distilled"):
        options.agree("distilled", found=distilled)
    sizes = _deit_common(w, options, 2 if distilled else 1)
    drops = {
        "drop_rate": options.take("drop_rate", default=0.0),
        "attn_drop_rate": options.take("attn_drop_rate", default=0.0),
    }
    return ViT(ViTConfig(**sizes, **drops, distilled=distilled))


def mita_deit(w: Weights, options: Options) -> nn.Module:
    """DeiT with MiTA in every block; pool_size and kv_topk are squared, as there."""
    gate, convolution = "blocks.0.attn.qkvg.weight" in w, "blocks.0.attn.dwc.weight" in w
    name = name_of(options.take("attention", "attn", default=""))
    route, agents = "route" in name, "agent" in name
    pool = options.count("pool_size", default=7 if agents else 5)
    top = options.count("kv_topk", default=pool)
    routes = options.count("router_topk", default=1)
    sizes = _deit_common(w, options, 1)
    if not agents:
        options.without_effect("attn_drop_rate")
    return MiTADeiT(
        MiTADeiTConfig(
            **sizes,
            attention="agent" if agents else "mita",
            landmarks=(pool, pool),
            keys_per_expert=top**2 * 2 if route else top**2 // routes,
            experts_per_query=routes,
            shared=not route,
            convolution=convolution,
            gate=gate,
            drop_rate=options.take("drop_rate", "proj_drop", default=0.0),
            attn_drop_rate=options.take("attn_drop_rate", default=0.0) if agents else 0.0,
        )
    )


def mita_vit5(w: Weights, options: Options) -> nn.Module:
    """ViT-5 with MiTA in every block."""
    if "blocks.0.norm1.bias" in w:
        raise options.error("its norms have biases; only the vit5_* networks, with root-mean-square norms, are here.")
    first = w.under("blocks.0.")
    registers = w.shape("reg_token", 3)[1] if "reg_token" in w else 0
    options.agree("num_registers", found=registers)
    rope, norm = "attn.rope.freqs" in first, "attn.q_norm.weight" in first
    for name, found in (("rope", rope), ("qk_norm", norm), ("layer_scale", "gamma_1" in first)):
        if options.has(name):
            options.agree(name, found=found)
    name = name_of(options.take("Attention_block", "attention", "attn", default=""))
    convolution = "attn.dwc.weight" in first
    if name and ("conv" in name) != convolution:
        raise options.error(f"Attention_block is {name!r}, but the weights have {'a' if convolution else 'no'} dwc.")
    learned = options.agree("ape", found="pos_embed" in w)
    options.without_effect("flash", "rope_reg", "block_layers", "Patch_layer", "Mlp_block", "attn_drop_rate")
    scale = options.number("init_scale", default=1e-4)
    dim = w.shape("cls_token", 3)[2]
    if norm or rope:
        width = first.shape("attn.q_norm.weight", 1)[0] if norm else 4 * first.shape("attn.rope.freqs", 1)[0]
        options.agree("num_heads", found=dim // width)
        options = _with(options, num_heads=dim // width)
    sizes = _deit_common(w, options, 0, learned)
    if options.take("drop_rate", default=0.0):
        raise options.error("drop_rate is a dropout before the head there, which this network does not have; pass 0.")
    theta = options.number("reg_theta", default=100.0)
    return MiTAViT5(
        MiTAViT5Config(
            **sizes,
            layer_scale=scale if "gamma_1" in first else None,
            registers=registers,
            qk_norm=norm,
            rotary=rope,
            learned_positions=learned,
            convolution=convolution,
            register_theta=theta,
        )
    )


def _with(options: Options, **known: Any) -> Options:
    """The same arguments, with some that the weights told."""
    for name, value in known.items():
        options._given.setdefault(name, value)
    return options


VITS: dict[str, Callable[[Weights, Options], nn.Module]] = {
    "vit": vit,
    "deit": deit,
    "mita-deit": mita_deit,
    "mita-vit5": mita_vit5,
}
"""Kind: what builds the network."""
