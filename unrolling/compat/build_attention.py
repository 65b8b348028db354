"""Attentions with fused projections, MiTA and agent attention, of the sizes that released weights say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..attention import AttentionLayer
from ..layers.agent import AgentAttention
from ..layers.mita import MiTA
from ..representatives import OfficialGridPool
from ..rotary import GridRotary
from .build_layers import heads_of, name_of, styled
from .options import Options, Weights

__all__ = ["ATTENTIONS"]


def _fused(w: Weights, options: Options, gate: bool = False) -> dict[str, Any]:
    """What every attention with fused projections has in common."""
    name, parts = ("qkvg", 4) if gate else ("qkv", 3)
    rows, dim = w.shape(f"{name}.weight", 2)
    if rows % parts:
        raise options.error(f"{name}.weight has {rows} rows, which are not {parts} projections.")
    options.agree("dim", "embed_dim", found=dim)
    bias, output_bias = f"{name}.bias" in w, "proj.bias" in w
    for argument, found in (("qkv_bias", bias), ("proj_bias", output_bias)):
        if options.has(argument):
            options.agree(argument, found=found)
    widths = {found for found in (_width(w, "q_norm.weight", 1), _width(w, "rope.freqs", 4)) if found}
    if widths:
        width = widths.pop()
        if rows // parts % width:
            raise options.error(f"{rows // parts} inner features are not heads of {width}.")
        heads = options.agree("num_heads", "heads", found=rows // parts // width)
    else:
        heads = heads_of(options, rows // parts, "num_heads", "heads")[0]
    return {
        "dim": dim,
        "heads": heads,
        "head_dim": rows // parts // heads,
        "bias": bias,
        "output_bias": output_bias,
        "learnable_step": False,
        "class_tokens": 1,
        "output_dropout": options.take("proj_drop", default=0.0),
    }


def _width(w: Weights, name: str, factor: int) -> int | None:
    return factor * w.shape(name, 1)[0] if name in w else None


def _idle_norms(w: Weights, options: Options) -> dict[str, Any]:
    """The root package's layers make norms of queries and keys and never apply them: weights without effect."""
    norm = "q_norm.weight" in w
    if options.has("qk_norm"):
        options.agree("qk_norm", found=norm)
    options.without_effect("norm_layer")
    return {"qk_norm": _norm_kind(w, norm), "idle_norms": norm}


def mita(w: Weights, options: Options) -> AttentionLayer:
    """MiTA of the root package: pool_size and kv_topk are squared, as there."""
    pool, top = options.count("pool_size", default=5), options.count("kv_topk", default=5)
    routes = options.count("router_topk", default=1)
    if routes > 2:
        raise options.error(f"router_topk is 1, or 2 in the second released file, but is {routes}.")
    options.without_effect("attn_drop")
    return MiTA(
        **_fused(w, options),
        **_idle_norms(w, options),
        landmarks=OfficialGridPool((pool, pool)),
        keys_per_expert=top**2 // routes,
        experts_per_query=routes,
        twice_scaled=True,
    )


def mita_variant(
    *, convolution: bool = False, gate: bool = False, shared: bool = True
) -> Callable[..., AttentionLayer]:
    """MiTA with depth-wise convolution, with a gate too, or with routed experts alone, whose sizes are fixed there."""

    def build(w: Weights, options: Options) -> AttentionLayer:
        pool = options.count("pool_size", default=5)
        keys = options.count("kv_topk", default=pool) ** 2 * (1 if shared else 2)
        options.without_effect("attn_drop")
        if convolution:
            w.shape("dwc.weight", 4)
        return MiTA(
            **_fused(w, options, gate),
            **_idle_norms(w, options),
            landmarks=OfficialGridPool((pool, pool)),
            keys_per_expert=keys,
            shared=shared,
            twice_scaled=True,
            convolution=convolution,
            gate=gate,
        )

    return build


def mita_segmenter(w: Weights, options: Options) -> AttentionLayer:
    """MiTA of MiTA-Segmenter: 49 landmarks and keys, queries normalised after the pooling; or its 81 routed experts."""
    route = "route" in name_of(options.take("attention", "attn", default=""))
    pool = options.count("pool_size", default=9 if route else 7)
    keys = options.count("kv_topk", default=pool) ** 2 * (2 if route else 1)
    norm = "q_norm.weight" in w
    if options.has("qk_norm"):
        options.agree("qk_norm", found=norm)
    options.without_effect("norm_layer", "attn_drop")
    layer = MiTA(
        **_fused(w, options),
        landmarks=OfficialGridPool((pool, pool), (1, 150)),
        keys_per_expert=keys,
        shared=not route,
        twice_scaled=True,
        qk_norm=_norm_kind(w, norm),
        pool_before_norm=True,
    )
    styled(layer, "segmenter")
    return layer


def _norm_kind(w: Weights, norm: bool) -> str | None:
    if not norm:
        return None
    return "layer" if "q_norm.bias" in w else "rms"


def mita_vit5(w: Weights, options: Options) -> AttentionLayer:
    """MiTA of ViT-5: normalised and turned queries and keys, registers at the end, 25 landmarks and 30 keys."""
    norm, rope = "q_norm.weight" in w, "rope.freqs" in w
    if options.has("qk_norm"):
        options.agree("qk_norm", found=norm)
    name = name_of(options.take("attention", default="conv" if "dwc.weight" in w else ""))
    convolution = "conv" in name
    if convolution != ("dwc.weight" in w):
        raise options.error(f"attention is {name!r}, but the weights have {'a' if not convolution else 'no'} dwc.")
    options.without_effect("qk_scale", "flash", "norm_layer", "attn_drop", "rope_reg")
    turned, side = "rope_reg.freqs" in w, 0
    if options.take("rope_reg_size"):
        side = options.count("rope_reg_size", default=1)
    if options.has("rope_reg_size") and bool(side) != turned:
        raise options.error(f"rope_reg_size is {side}, but the weights have {'a' if turned else 'no'} rope_reg.")
    registers = options.take("num_registers", default=side**2 if side else None)
    if registers is None:
        registers = options.need("num_registers", why="the weights do not tell how many registers there are")
    pool = options.count("pool_size", default=5)
    fused = _fused(w, options)
    if rope:
        reference = options.need("rope_size", why="the weights do not tell for which grid the rotary angles are made")
    else:
        reference = options.agree("rope_size", found=0)
    theta = options.number("reg_theta", default=10000.0)
    return MiTA(
        **fused,
        landmarks=OfficialGridPool((pool, pool), leading=True),
        keys_per_expert=options.count("keys_per_expert", default=pool**2 + 5),
        twice_scaled=True,
        register_tokens=registers,
        qk_norm=_norm_kind(w, norm),
        rotary=GridRotary(fused["head_dim"], reference) if reference else None,
        register_rotary=GridRotary(fused["head_dim"], side or round(registers**0.5), theta) if turned else None,
        convolution=convolution,
    )


def agent(w: Weights, options: Options) -> AttentionLayer:
    """Agent attention: MiTA's baselines (49 agents, with or without biases), or CBSA's adaptation (pool_size=8: 64)."""
    biased, scaled = "an_bias" in w, "norm.weight" in w
    adapted = options.has("scale_norm", "layer_idx") or scaled
    if options.has("scale_norm"):
        options.agree("scale_norm", found=scaled)
    options.without_effect("layer_idx", "attn_mask")
    pool = options.count("pool_size", default=8 if adapted else 7)
    window = w.shape("ah_bias", 5)[3] if biased else None
    fused, norms = _fused(w, options), _idle_norms(w, options)
    if adapted or pool == 8:  # CBSA's adaptation applies them, in the agents' reading alone
        norms["idle_norms"] = False
    return AgentAttention(
        **fused,
        **norms,
        agents=OfficialGridPool((pool, pool), leading=biased),
        bias_window=(window, window) if window else None,
        norm_agents=False,
        scale_norm=scaled,
        dropout=options.take("attn_drop", default=0.0),
    )


ATTENTIONS: dict[str, Callable[[Weights, Options], AttentionLayer]] = {
    "mita": mita,
    "mita-route": mita_variant(shared=False),
    "mita-dwc": mita_variant(convolution=True),
    "mita-dwc-gate": mita_variant(convolution=True, gate=True),
    "mita-vit5-attention": mita_vit5,
    "mita-segmenter-attention": mita_segmenter,
    "agent": agent,
}
"""Kind: what builds the layer."""
