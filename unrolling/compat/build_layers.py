"""Layers of the sizes that released weights say, with the released code's departures on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..layers.cbsa import CBSA
from ..layers.crate import CRATEBlock
from ..layers.ista import ISTA
from ..layers.mssa import MSSA
from ..layers.tssa import TSSA
from ..representatives import OfficialGridPool
from ..subspace import SubspaceLayer
from .options import Options, Weights

__all__ = ["LAYERS", "NAMES", "attention_kind", "heads_of", "name_of", "styled"]


def heads_of(options: Options, inner: int, *names: str, width: str | None = "dim_head") -> tuple[int, int]:
    """Heads and their width from whichever of the two was given; released weights only tell the product."""
    known = [*names, *([width] if width else [])]
    if not options.has(*known):
        options.need(*known, why=f"{inner} inner features do not tell how many heads there are")
    given = options.count(width, default=inner) if width and options.has(width) else None
    count = options.count(*names, default=max(1, inner // (given or 1)))
    if inner % count or (given is not None and given * count != inner):
        raise options.error(f"{inner} inner features are not {count} heads of {given or 'equal width'}.")
    return count, inner // count


def styled(module: nn.Module, style: str) -> nn.Module:
    """Remember which project's names the weights had."""
    module.released_style = style  # type: ignore[assignment]
    return module


def mssa(w: Weights, options: Options, *, residual: bool = False) -> MSSA:
    """MSSA of CRATE's and of CBSA's project; without output matrix for one head as wide as the tokens."""
    inner, dim = w.shape("qkv.weight", 2)
    options.agree("dim", found=dim)
    heads, head_dim = heads_of(options, inner, "heads")
    projected = "to_out.0.weight" in w or "to_out.weight" in w or inner != dim
    layer = MSSA(
        dim,
        heads,
        head_dim,
        form="softmax",
        basis="free",
        tied=False,
        output_bias=projected,
        projected=projected,
        learnable_step=False,
        residual=residual,
        dropout=options.take("dropout", default=0.0),
    )
    styled(layer, "cbsa" if "to_out.weight" in w else "crate")
    return layer


def cbsa(w: Weights, options: Options, *, residual: bool = False, decoder: bool = False) -> CBSA:
    """CBSA of the encoder, or of the segmentation decoder."""
    heads = w.shape("step_x", 3)[0]
    inner, dim = w.shape("proj.weight", 2)
    options.agree("dim", found=dim)
    options.agree("heads", found=heads)
    options.agree("dim_head", found=inner // heads)
    if decoder:
        options.without_effect("dropout")
    elif inner != dim:
        raise options.error(f"its pooling needs heads × dim_head = dim, but {inner} is not {dim}; is it a 'cbsa-seg'?")
    return CBSA(
        dim,
        heads,
        inner // heads,
        representatives=OfficialGridPool((10, 10), (150,)) if decoder else OfficialGridPool((8, 8)),
        form="softmax",
        basis="free",
        tied=False,
        output_bias=True,
        per_head_step=True,
        residual=residual,
        compat="official",
    )


def tssa(w: Weights, options: Options, *, residual: bool = False) -> TSSA:
    """TSSA of ToST's and of CBSA's project."""
    heads = w.shape("temp", 2)[0]
    inner, dim = w.shape("qkv.weight", 2)
    bias = "qkv.bias" in w
    options.agree("dim", found=dim)
    options.agree("heads", "num_heads", found=heads)
    if options.has("qkv_bias"):
        options.agree("qkv_bias", found=bias)
    options.without_effect("dim_head", "qk_scale")
    layer = _tssa(
        dim,
        heads,
        inner // heads,
        residual,
        coordinate_bias=bias,
        normalise_tokens=True,
        dropout=options.take("attn_drop", default=0.0),
        output_dropout=options.take("proj_drop", default=0.0),
    )
    styled(layer, "cbsa" if "to_out.weight" in w else "tost")
    return layer


def _tssa(dim: int, heads: int, head_dim: int, residual: bool, **more: Any) -> TSSA:
    return TSSA(
        dim,
        heads,
        head_dim,
        epsilon=dim**0.5,
        basis="free",
        tied=False,
        learnable_step=False,
        residual=residual,
        unit_step=True,
        count_offset=1e-8,
        **{"output_bias": True, **more},
    )


def tssa_causal(w: Weights, options: Options) -> TSSA:
    """TSSA of ToST's language model; ``config`` is its GPTConfig, or its fields."""
    given = options.take("config")
    if given is not None:
        fields = dict(given) if isinstance(given, dict) else dict(getattr(given, "__dict__", {}))
        wanted = ("n_embd", "n_head", "block_size", "bias", "dropout")
        inner_options = Options(options.kind, {name: fields[name] for name in wanted if name in fields})
        built = tssa_causal(w, inner_options)
        inner_options.done()
        return built
    heads, places = w.shape("denom_bias", 3)[:2]
    inner, dim = w.shape("c_attn.weight", 2)
    bias = "c_attn.bias" in w
    options.agree("n_embd", "dim", found=dim)
    options.agree("n_head", "heads", "num_heads", found=heads)
    options.agree("block_size", found=places)
    if options.has("bias"):
        options.agree("bias", found=bias)
    drop = options.take("dropout", default=0.0)
    return _tssa(
        dim,
        heads,
        inner // heads,
        residual=False,
        coordinate_bias=bias,
        output_bias="c_proj.bias" in w,
        normalise_tokens=True,
        causal=True,
        position_bias=places,
        dropout=drop,
        output_dropout=drop,
    )


def ista(w: Weights, options: Options) -> ISTA:
    """CRATE's feed-forward block: one matrix; its step is a constant of the code."""
    dim, columns = w.shape("weight", 2)
    if dim != columns:
        raise options.error(f"the dictionary must be square, but is {dim} × {columns}.")
    options.agree("dim", found=dim)
    options.without_effect("hidden_dim", "mlp_dim", "dropout")
    eta, lam = options.number("step_size", "ista", default=0.1), options.number("lambd", default=0.1)
    return ISTA(dim, step_size=eta, weight=lam)


def attention_kind(w: Weights) -> str:
    """Which attention the keys of a white-box block are of."""
    return "cbsa" if "step_x" in w else "tssa" if "temp" in w else "mssa"


NAMES = {"mssa": ("mssa", "attention"), "cbsa": ("cbsa", "ours"), "tssa": ("tssa", "attentiontssa")}
"""How the released code calls each attention, in lower case."""


def name_of(value: Any) -> str:
    """The name of a class, or a name, in lower case."""
    return str(getattr(value, "__name__", value)).lower()


def crate_block(w: Weights, options: Options) -> CRATEBlock:
    """One block: normalised attention, normalised ISTA."""
    part = w.under("0.fn.")
    kind = attention_kind(part)
    asked = options.take("attn")
    if asked is not None and name_of(asked) not in NAMES[kind]:
        raise options.error(f"attn is {asked!r}, but the weights are those of {kind.upper()}.")
    ffn = options.take("ffn")
    if ffn is not None and name_of(ffn) not in ("ista", "feedforward"):
        raise options.error(f"ffn must be ISTA, but is {ffn!r}.")
    step = options.number("ista", "step_size", default=0.1)
    options.without_effect("hidden_dim", "mlp_dim")
    options.agree("depth", found=1)
    builders: dict[str, Callable[..., SubspaceLayer]] = {"mssa": mssa, "cbsa": cbsa, "tssa": tssa}
    attention = builders[kind](part, options, residual=True)
    options.take("dropout")
    dim = w.under("1.fn.").shape("weight", 2)[0]
    block = CRATEBlock(attention, ISTA(dim, step_size=step), norm="layer")
    styled(block, "cbsa" if "to_out.weight" in part else "crate")
    return block


def depict_attention(w: Weights, options: Options) -> MSSA:
    """DEPICT's attention, of tokens to themselves or of queries to tokens: ``layer(x, query=…)``."""
    inner, dim = w.shape("proj", 2)
    options.agree("dim", found=dim)
    heads, head_dim = heads_of(options, inner, "heads", "n_heads")
    return MSSA(
        dim,
        heads,
        head_dim,
        form="softmax",
        basis="free",
        residual=False,
        dropout=options.take("dropout", default=0.0),
    )


def cbsa_seg(w: Weights, options: Options) -> CBSA:
    """CBSA of the segmentation decoder."""
    return cbsa(w, options, decoder=True)


LAYERS: dict[str, Callable[[Weights, Options], nn.Module]] = {
    "mssa": mssa,
    "cbsa": cbsa,
    "cbsa-seg": cbsa_seg,
    "tssa": tssa,
    "tssa-causal": tssa_causal,
    "ista": ista,
    "crate-block": crate_block,
    "depict-attention": depict_attention,
}
"""Kind: what builds the layer."""
