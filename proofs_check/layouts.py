"""Drawn state dictionaries in the layouts of the papers' released code, with the transcription that knows each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .paper import released as R
from .strategies import Case

__all__ = [
    "LAYERS",
    "Drawn",
    "Shapes",
    "attention_shapes",
    "block",
    "drawn_state",
    "fused",
    "linear",
    "norm",
    "norms",
    "under",
    "white_block",
]

Shapes = dict[str, tuple[int, ...]]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A released module that never was: its kind, state, arguments, input, and what it computes.

    config: arguments of ``from_official``. call: arguments of the module beside ``x``. reference: from one input
    (columns, or an image), the state as arrays, and what of ``call`` belongs to that input, to one output.
    """

    kind: str
    state: dict[str, Tensor]
    config: dict[str, Any]
    x: Tensor
    reference: Callable[..., Array]
    call: dict[str, Any] = field(default_factory=dict)
    columns: bool = True

    def wanted(self, state: dict[str, Array], x: Array) -> Array:
        """The outputs of all inputs ``x``, laid out as the module lays them out."""
        if not self.columns:
            return np.stack([self.reference(image, state) for image in x])
        query = self.call.get("query")
        if query is None:
            return np.stack([_rows(self.reference(rows.T, state)) for rows in x])
        pairs = zip(x, query.numpy().astype(x.dtype), strict=True)
        return np.stack([_rows(self.reference(rows.T, state, query=q.T)) for rows, q in pairs])

    def arrays(self) -> dict[str, Array]:
        """The state in float64."""
        return {name: value.to(torch.float64).numpy() for name, value in self.state.items()}


def _rows(columns: Array) -> Array:
    """Columns become rows; masks (C, rows, columns) stay."""
    return columns.T if columns.ndim == 2 else columns


def drawn_state(case: Case, shapes: Shapes, tokens: float = 1.0) -> dict[str, Tensor]:
    """Numbers for every name: matrices that keep lengths, weights of norms around 1, variances and temperatures above 0.

    ``tokens``: the size of positions and of class tokens.
    """
    state = {}
    for name, shape in shapes.items():
        rng, last = case.rng(name), name.rsplit(".", 1)[-1]
        values = rng.standard_normal(shape)
        if last == "num_batches_tracked":
            state[name] = torch.tensor(int(rng.integers(1, 1000)))
            continue
        if last in ("running_var", "freqs", "temp"):
            values = np.exp(0.5 * values)
        elif last in ("pos_embedding", "pos_embed", "cls_token", "dist_token", "reg_token", "cls_emb"):
            values = tokens * values
        elif last in ("bias", "running_mean"):
            values = 0.3 * values
        elif last == "weight" and len(shape) == 1:
            values = 1 + 0.3 * values
        elif len(shape) > 1 and not last.startswith("step") and not last.endswith("_bias"):
            values = values / math.sqrt(math.prod(shape[1:]))
        state[name] = torch.from_numpy(np.asarray(values)).to(case.torch_dtype)
    return state


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    """A linear map."""
    weight: Shapes = {f"{name}.weight": (out, into)}
    return weight | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int, bias: bool = True) -> Shapes:
    """A norm."""
    weight: Shapes = {f"{name}.weight": (width,)}
    return weight | ({f"{name}.bias": (width,)} if bias else {})


def under(prefix: str, shapes: Shapes) -> Shapes:
    """The same names below a prefix."""
    return {prefix + name: shape for name, shape in shapes.items()}


def tokens_of(case: Case, count: int, dim: int, scale: float = 1.0) -> Tensor:
    """Two token sets (2, count, dim)."""
    return scale * case.draw("input", 2, count, dim)


def side_of(case: Case, least: int = 1) -> int:
    """The side of a square grid of patches, ``least`` to ``least`` + 3."""
    return least + case.tokens % 4


def mssa_shapes(dim: int, inner: int, output: str | None) -> Shapes:
    """MSSA with ``to_out`` or ``to_out.0``, or without output matrix."""
    return linear("qkv", inner, dim, False) | ({} if output is None else linear(output, dim, inner))


def cbsa_shapes(dim: int, heads: int, inner: int) -> Shapes:
    """CBSA."""
    steps: Shapes = {"step_x": (heads, 1, 1), "step_rep": (heads, 1, 1)}
    return steps | linear("proj", inner, dim, False) | linear("to_out", dim, inner)


def tssa_shapes(dim: int, heads: int, bias: bool, output: str) -> Shapes:
    """TSSA."""
    return {"temp": (heads, 1)} | linear("qkv", dim, dim, bias) | linear(output, dim, dim)


def fused(dim: int, bias: bool, output_bias: bool = True, parts: int = 3) -> Shapes:
    """Attention with one matrix for queries, keys and values (and a gate), and an output matrix."""
    return linear("qkvg" if parts == 4 else "qkv", parts * dim, dim, bias) | linear("proj", dim, dim, output_bias)


def white_block(attention: Shapes, dim: int) -> Shapes:
    """A block of CRATE or CBT."""
    return (
        norm("0.norm", dim) | under("0.fn.", attention) | norm("1.norm", dim) | under("1.fn.", {"weight": (dim, dim)})
    )


def block(attention: Shapes, dim: int, hidden: int, *, gamma: tuple[str, ...] = (), rms: bool = False) -> Shapes:
    """A block of a ViT, ToST or ViT-5."""
    scales: Shapes = {name: (dim,) for name in gamma}
    parts = norm("norm1", dim, not rms) | under("attn.", attention) | norm("norm2", dim, not rms)
    return scales | parts | linear("mlp.fc1", hidden, dim) | linear("mlp.fc2", dim, hidden)


def mssa(case: Case) -> Drawn:
    """MSSA of CRATE's or CBSA's project, or with no output matrix."""
    inner, style = case.heads * case.head_dim, ("to_out.0", "to_out", None)[case.seed % 3]
    bare = style is None and case.heads == 1
    dim = inner if bare else inner + case.extra
    state = drawn_state(case, mssa_shapes(dim, inner, None if bare else style or "to_out"))
    x = tokens_of(case, case.tokens, dim)
    config: dict[str, Any] = {"heads": case.heads} if case.seed % 2 else {"dim_head": case.head_dim}
    return Drawn("mssa", state, config, x, lambda X, s: R.released_mssa(X, s, case.heads))


def cbsa(case: Case) -> Drawn:
    """CBSA on g² + 1 tokens."""
    dim = case.heads * case.head_dim
    x = tokens_of(case, side_of(case) ** 2 + 1, dim)
    return Drawn("cbsa", drawn_state(case, cbsa_shapes(dim, case.heads, dim)), {}, x, R.released_cbsa)


def cbsa_seg(case: Case) -> Drawn:
    """CBSA of the decoder on g² + 150 tokens."""
    inner = case.heads * case.head_dim
    dim = inner + case.extra
    x = tokens_of(case, side_of(case) ** 2 + 150, dim)
    state = drawn_state(case, cbsa_shapes(dim, case.heads, inner))
    return Drawn("cbsa-seg", state, {"heads": case.heads}, x, lambda X, s: R.released_cbsa(X, s, 10, 150))


def tssa(case: Case) -> Drawn:
    """TSSA of ToST's or CBSA's project."""
    dim, own = case.heads * case.head_dim, case.seed % 3 > 0
    shapes = tssa_shapes(dim, case.heads, case.seed % 3 == 1, "to_out.0" if own else "to_out")
    return Drawn("tssa", drawn_state(case, shapes), {}, tokens_of(case, case.tokens, dim), R.released_tssa)


def tssa_causal(case: Case) -> Drawn:
    """TSSA for language, its block as long as the tokens or longer."""
    dim, bias = case.heads * case.head_dim, case.seed % 2 == 0
    shapes: Shapes = {"temp": (case.heads, 1), "denom_bias": (case.heads, case.tokens + case.seed % 3, 1)}
    shapes |= linear("c_attn", dim, dim, bias) | linear("c_proj", dim, dim, bias)
    x = tokens_of(case, case.tokens, dim)
    return Drawn("tssa-causal", drawn_state(case, shapes), {"n_head": case.heads}, x, R.released_tssa_causal)


def ista(case: Case) -> Drawn:
    """CRATE's feed-forward block."""
    dim, eta = 1 + case.dim, (0.1, 0.5, 0.25)[case.seed % 3]
    state = drawn_state(case, {"weight": (dim, dim)})
    config = {"step_size": eta, "hidden_dim": 7}
    return Drawn("ista", state, config, tokens_of(case, case.tokens, dim), lambda X, s: R.released_ista(X, s, eta))


def attention_shapes(which: str, dim: int, heads: int, output: str | None = "to_out") -> Shapes:
    """The attention of a white-box block by name."""
    made = {
        "mssa": lambda: mssa_shapes(dim, dim, output),
        "cbsa": lambda: cbsa_shapes(dim, heads, dim),
        "tssa": lambda: tssa_shapes(dim, heads, False, output or "to_out"),
    }
    return made[which]()


def crate_block(case: Case) -> Drawn:
    """A block with one of three attentions, its tokens of the case's scale: small ones show ε of the norms."""
    which, dim = ("mssa", "cbsa", "tssa")[case.seed % 3], case.heads * (1 + case.head_dim)
    output = "to_out.0" if which == "mssa" and case.seed % 2 else "to_out"
    state = drawn_state(case, white_block(attention_shapes(which, dim, case.heads, output), dim))
    eta = (0.1, 0.3)[case.seed % 2]
    config = {"ista": eta, "attn": which.upper()} | ({"heads": case.heads} if which == "mssa" else {})
    x = tokens_of(case, side_of(case) ** 2 + 1, dim, case.scale)
    return Drawn("crate-block", state, config, x, lambda X, s: R.released_crate_block(X, s, case.heads, eta))


def depict_attention(case: Case) -> Drawn:
    """DEPICT's attention of tokens to themselves, or of queries to tokens; overcomplete bases too."""
    inner = case.heads * case.head_dim
    dim = max(1, inner - 1 + case.extra)
    state = drawn_state(case, {"proj": (inner, dim), "step_size": (1,)})

    def reference(X: Array, s: dict[str, Array], query: Array | None = None) -> Array:
        return R.released_depict_attention(X, s, case.heads, query)

    call = {"query": case.draw("query", 2, case.m, dim)} if case.seed % 2 else {}
    x = tokens_of(case, case.tokens, dim)
    return Drawn("depict-attention", state, {"heads": case.heads}, x, reference, call)


def norms(width: int, on: bool, bias: bool = True) -> Shapes:
    """Norms of every head's queries and keys."""
    return norm("q_norm", width, bias) | norm("k_norm", width, bias) if on else {}


def mita(case: Case) -> Drawn:
    """MiTA with one expert a query, or two of half the keys; with idle norms or none."""
    dim, pool, routes = case.heads * case.head_dim, 2 + case.m % 2, 1 + case.seed % 2
    top = 2 if routes == 2 else 1 + case.seed // 2 % 2
    shapes = fused(dim, case.seed % 3 > 0, case.seed % 5 > 0) | norms(case.head_dim, case.seed % 4 > 1)
    config = {"num_heads": case.heads, "pool_size": pool, "kv_topk": top, "router_topk": routes}
    x = tokens_of(case, side_of(case, 2) ** 2 + 1, dim)

    def reference(X: Array, s: dict[str, Array]) -> Array:
        return R.released_mita(X, s, case.heads, pool, top**2 // routes, routes=routes)

    return Drawn("mita", drawn_state(case, shapes), config, x, reference)


def mita_variant(kind: str) -> Callable[[Case], Drawn]:
    """MiTA of routed experts alone, with a convolution, or with a gate too."""

    def draw(case: Case) -> Drawn:
        dim, route, gate = case.heads * case.head_dim, kind == "mita-route", kind == "mita-dwc-gate"
        pool = 2 - case.seed % 2 * route
        shapes = fused(dim, case.seed % 3 > 0, case.seed % 5 > 0, 4 if gate else 3)
        shapes |= norms(case.head_dim, case.seed % 4 > 1)
        shapes |= {} if route else {"dwc.weight": (dim, 1, 3, 3), "dwc.bias": (dim,)}
        keys = pool**2 * (2 if route else 1)
        x = tokens_of(case, side_of(case, 2) ** 2 + 1, dim)

        def reference(X: Array, s: dict[str, Array]) -> Array:
            return R.released_mita(X, s, case.heads, pool, keys, shared=not route)

        config = {"num_heads": case.heads, "pool_size": pool}
        return Drawn(kind, drawn_state(case, shapes), config, x, reference)

    return draw


def mita_vit5_attention(case: Case) -> Drawn:
    """MiTA of ViT-5 with 1 or 4 registers, rotary places, norms and convolution or without; frequencies are drawn."""
    width, side, rng = 4 * (1 + case.head_dim % 2), side_of(case, 2), case.rng("vit5")
    rope, convolution, normed = (bool(rng.integers(3)) for _ in range(3))
    corner = 1 + case.seed % 2
    dim, pool, keys = case.heads * width, 2, 1 + case.m % 3
    shapes = fused(dim, case.seed % 3 > 0) | norms(width, normed, False)
    shapes |= {"rope.freqs": (width // 4,)} if rope else {}
    shapes |= {"rope_reg.freqs": (width // 4,)}
    shapes |= {"dwc.weight": (dim, 1, 3, 3), "dwc.bias": (dim,)} if convolution else {}
    config: dict[str, Any] = {"num_registers": corner**2, "rope_reg_size": corner, "pool_size": pool}
    config |= {"keys_per_expert": keys} | ({"rope_size": side + 1} if rope else {})
    config |= {} if rope or normed else {"num_heads": case.heads}
    x = tokens_of(case, 1 + side**2 + corner**2, dim)

    def reference(X: Array, s: dict[str, Array]) -> Array:
        return R.released_mita_vit5(X, s, case.heads, corner**2, side + 1, pool, keys)

    return Drawn("mita-vit5-attention", drawn_state(case, shapes), config, x, reference)


def mita_segmenter_attention(case: Case) -> Drawn:
    """MiTA of Segmenter on g² + 1 or g² + 150 tokens, norms after the pooling; or its routed experts alone."""
    dim, behind, route = case.heads * case.head_dim, (1, 1, 1, 150)[case.seed % 4], case.seed % 3 == 1
    pool, top = 2, 1 + case.m % 2
    shapes = fused(dim, case.seed % 3 > 0) | norms(case.head_dim, case.seed % 5 > 1)
    config: dict[str, Any] = {"num_heads": case.heads, "pool_size": pool, "kv_topk": top}
    config |= {"attn": "MiTA_Attention_Route"} if route else {}
    x = tokens_of(case, side_of(case, 2) ** 2 + behind, dim)

    def reference(X: Array, s: dict[str, Array]) -> Array:
        keys = top**2 * (2 if route else 1)
        return R.released_mita(X, s, case.heads, pool, keys, shared=not route, behind=behind, normed=True)

    return Drawn("mita-segmenter-attention", drawn_state(case, shapes), config, x, reference)


def agent(case: Case) -> Drawn:
    """MiTA's baselines, with position biases or without, and CBSA's adaptation of a ViT."""
    which, dim, side = ("plain", "biased", "adapted")[case.seed % 3], case.heads * case.head_dim, side_of(case, 2)
    pool, h = 2, case.heads
    shapes = fused(dim, case.seed % 2 > 0, case.seed % 5 > 0)
    shapes |= norms(case.head_dim, case.seed % 4 > 0 or which == "adapted")
    if which == "biased":
        m = pool**2
        shapes |= {"an_bias": (h, m, 7, 7), "na_bias": (h, m, 7, 7), "ac_bias": (1, h, m, 1), "ca_bias": (1, h, 1, m)}
        shapes |= {"ah_bias": (1, h, m, side, 1), "aw_bias": (1, h, m, 1, side)}
        shapes |= {"ha_bias": (1, h, side, 1, m), "wa_bias": (1, h, 1, side, m)}
    config: dict[str, Any] = {"num_heads": h, "pool_size": pool}
    if which == "adapted":
        config["layer_idx"] = 3
        shapes |= norm("norm", dim) if case.seed % 2 else {}
    x = tokens_of(case, side**2 + 1, dim)

    def reference(X: Array, s: dict[str, Array]) -> Array:
        return R.released_agent(X, s, h, pool, which == "adapted")

    return Drawn("agent", drawn_state(case, shapes), config, x, reference)


LAYERS: dict[str, Callable[[Case], Drawn]] = {
    "mssa": mssa,
    "cbsa": cbsa,
    "cbsa-seg": cbsa_seg,
    "tssa": tssa,
    "tssa-causal": tssa_causal,
    "ista": ista,
    "crate-block": crate_block,
    "depict-attention": depict_attention,
    "mita": mita,
    "mita-route": mita_variant("mita-route"),
    "mita-dwc": mita_variant("mita-dwc"),
    "mita-dwc-gate": mita_variant("mita-dwc-gate"),
    "mita-vit5-attention": mita_vit5_attention,
    "mita-segmenter-attention": mita_segmenter_attention,
    "agent": agent,
}
"""Kind of layer: what draws one."""
