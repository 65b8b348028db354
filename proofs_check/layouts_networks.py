"""Drawn state dictionaries of the papers' released networks, as in ``layouts``; images and widths are small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .layouts import Drawn, Shapes, attention_shapes, block, drawn_state, fused, linear, norm, norms, under, white_block
from .paper import released as R
from .paper import released_networks as N
from .strategies import Case

__all__ = ["NETWORKS"]

Array = NDArray[np.float64]
Grid = tuple[int, int]


def _numbered(prefix: str, shapes: list[Shapes]) -> Shapes:
    made: Shapes = {}
    for number, part in enumerate(shapes):
        made |= under(f"{prefix}{number}.", part)
    return made


def images(case: Case, channels: int, size: Grid) -> Tensor:
    """Two images."""
    return case.draw("image", 2, channels, *size)


def conv_stem(dim: int, channels: int, count: int) -> Shapes:
    """Convolutions and batch norms, the width doubling up to dim."""
    made: Shapes = {}
    widths = [channels, *(dim // 2 ** (count - 1 - i) for i in range(count))]
    for i in range(count):
        made[f"proj.{2 * i}.0.weight"] = (widths[i + 1], widths[i], 3, 3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            made[f"proj.{2 * i}.1.{name}"] = (widths[i + 1],)
        made[f"proj.{2 * i}.1.num_batches_tracked"] = ()
    return made


def white_box(kind: str) -> Callable[[Case], Drawn]:
    """CRATE with flattened patches; CBT, CRATE, ToST and hybrids of CBSA's project, with convolutions.

    Where nothing needs a square grid, images have one patch less a side than their positions, or are no whole patches.
    """

    def draw(case: Case) -> Drawn:
        rng = case.rng(f"white box {kind}")
        linear_stem = kind == "crate" and case.seed % 3 > 0
        channels, depth, classes = (1, 3)[rng.integers(2)], int(rng.integers(1, 3)), int(rng.integers(2, 6))
        dim, pool = 2 * case.heads * (1 + case.head_dim // 2), ("cls", "mean")[rng.integers(2)]
        kinds = {"crate": ("mssa",), "cbt": ("cbsa",), "tost": ("tssa",), "cbt-hybrid": ("mssa", "cbsa")}[kind]
        depth = max(depth, len(kinds))
        chosen = [kinds[i * len(kinds) // depth] for i in range(depth)][:: 1 - 2 * int(rng.integers(2))]
        square = "cbsa" in kinds
        high, wide = ((2, 3), (4, 4))[case.seed % 2] if linear_stem else (4, 4) if case.seed % 2 else (2, 2)
        rows = 1 + case.tokens % 3
        columns = rows if square else 1 + case.m % 3
        fewer = int(rng.integers(2)) if min(rows, columns) > 1 else 0
        size = ((rows - fewer) * high, (columns - fewer) * wide)
        if not linear_stem and min(rows, columns) > 1 + fewer and rng.integers(2):  # strided convolutions pad
            size = (size[0] - 1, size[1] - 1)
        output = "to_out" if not linear_stem else "to_out.0" if case.heads > 1 else None
        shapes: Shapes = {"pos_embedding": (1, rows * columns + 1, dim), "cls_token": (1, 1, dim)}
        if linear_stem:
            values = channels * high * wide
            stem = norm("1", values) | linear("2", dim, values) | norm("3", dim)
        else:
            stem = conv_stem(dim, channels, 2 if high == 4 else 1)
        shapes |= under("to_patch_embedding.", stem)
        blocks = [white_block(attention_shapes(which, dim, case.heads, output), dim) for which in chosen]
        shapes |= _numbered("transformer.layers.", blocks)
        shapes |= norm("mlp_head.0", dim) | linear("mlp_head.1", classes, dim)
        eta = (0.1, 0.3)[rng.integers(2)]
        config: dict[str, Any] = {"image_size": (rows * high, columns * wide), "ista": eta, "pool": pool}
        config |= {"heads": case.heads} if "mssa" in chosen else {}
        config |= {"patch_size": (high, wide), "channels": channels} if linear_stem else {}
        config |= {"attn": [name.upper() for name in chosen]} if kind in ("cbt-hybrid", "tost") else {}
        state = drawn_state(case, shapes, case.scale)
        for name in ("to_patch_embedding.3.weight", "to_patch_embedding.3.bias"):
            if name in state:
                state[name] = case.scale * state[name]

        def reference(image: Array, s: dict[str, Array]) -> Array:
            return N.released_white_box(image, s, case.heads, eta, pool, (high, wide))

        return Drawn(kind, state, config, images(case, channels, size), reference, columns=False)

    return draw


def tost(case: Case) -> Drawn:
    """ToST's vision model, and at times CBSA's of that name."""
    if case.seed % 4 == 3:
        return white_box("tost")(case)
    rng = case.rng("tost")
    dim, count = 2 * case.heads * (1 + case.head_dim // 2), 1 + case.seed % 2
    depth, last, bias = 1 + int(rng.integers(2)), 1 + int(rng.integers(3)), bool(rng.integers(2))
    classes, hidden = int(rng.integers(2, 6)), 2 * dim
    shapes: Shapes = {"cls_token": (1, 1, dim)} | under("patch_embed.", conv_stem(dim, 3, count))
    attention = attention_shapes("tssa", dim, case.heads, "to_out.0") | ({"qkv.bias": (dim,)} if bias else {})
    gamma = ("gamma1", "gamma2")
    shapes |= _numbered("blocks.", [block(attention, dim, hidden, gamma=gamma)] * depth)
    shapes |= _numbered("cls_attn_blocks.", [block(fused(dim, bias), dim, hidden, gamma=gamma)] * last)
    shapes |= norm("norm", dim) | linear("head", classes, dim)
    shapes |= {"pos_embeder.token_projection.weight": (dim, 64, 1, 1), "pos_embeder.token_projection.bias": (dim,)}
    tokens_norm, use_pos, scale = bool(rng.integers(3)), bool(rng.integers(3)), (None, 0.7)[rng.integers(2)]
    config = {"tokens_norm": tokens_norm, "use_pos": use_pos} | ({"qk_scale": scale} if scale else {})
    columns = 1 + case.m % 3  # strided convolutions pad what is less than a patch
    size = (2**count * (1 + case.tokens % 3), 2**count * columns - int(rng.integers(2)) * (columns > 1))

    def reference(image: Array, s: dict[str, Array]) -> Array:
        return N.released_tost(image, s, case.heads, tokens_norm, use_pos, scale)

    return Drawn("tost", drawn_state(case, shapes), config, images(case, 3, size), reference, columns=False)


def vit_shapes(
    dim: int, patch: Grid, channels: int, patches: int, blocks: list[Shapes], classes: int, distilled: bool
) -> Shapes:
    """ViT and DeiT."""
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, patches + 1 + distilled, dim)}
    shapes |= {"dist_token": (1, 1, dim)} if distilled else {}
    shapes |= {"patch_embed.proj.weight": (dim, channels, *patch), "patch_embed.proj.bias": (dim,)}
    shapes |= _numbered("blocks.", blocks) | norm("norm", dim) | linear("head", classes, dim)
    return shapes | (linear("head_dist", classes, dim) if distilled else {})


def small(case: Case, state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The same, its patch embedding of the case's scale too: small tokens show ε of the norms."""
    names = (f"{prefix}patch_embed.proj.weight", f"{prefix}patch_embed.proj.bias")
    return state | {name: case.scale * state[name] for name in names}


def vit(case: Case) -> Drawn:
    """Segmenter's ViT: scores or all tokens, distilled or not, images of the size of its positions or another."""
    rng, dim = case.rng("vit"), case.heads * (1 + case.head_dim)
    depth, distilled, features = 1 + int(rng.integers(2)), bool(rng.integers(2)), case.seed % 3 == 0
    rows, columns, side = 1 + case.tokens % 3, 1 + case.m % 3, 2 + case.seed % 2
    channels, other = (1, 3)[rng.integers(2)], case.seed % 4 > 0
    made_for = (rows * side, columns * side)
    size = (made_for[0] + side, 2 * made_for[1] + 1) if other else made_for
    size = (made_for[0] // 2, 2 * made_for[1]) if case.seed % 4 == 2 and rows == 2 else size  # as many patches
    blocks = [block(fused(dim, True), dim, 2 * dim)] * depth
    shapes = vit_shapes(dim, (side, side), channels, rows * columns, blocks, int(rng.integers(2, 5)), distilled)
    config = {"n_heads": case.heads, "image_size": made_for, "distilled": distilled}

    def reference(image: Array, s: dict[str, Array]) -> Array:
        found = N.released_vit(image, s, case.heads, 1e-5, made_for, features=features)
        return found.T if features else found

    state = small(case, drawn_state(case, shapes, case.scale))
    call = {"return_features": True} if features else {}
    return Drawn("vit", state, config, images(case, channels, size), reference, call, columns=False)


def deit(case: Case) -> Drawn:
    """DeiT as timm has it."""
    rng, dim = case.rng("deit"), case.heads * (1 + case.head_dim)
    patch, bias = ((2, 3), (3, 3))[case.seed % 2], bool(rng.integers(2))
    size = (patch[0] * (1 + case.tokens % 3), patch[1] * (1 + case.m % 3))
    patches, channels = (size[0] // patch[0]) * (size[1] // patch[1]), (1, 3)[rng.integers(2)]
    blocks = [block(fused(dim, bias), dim, 3 * dim)] * (1 + int(rng.integers(2)))
    shapes = vit_shapes(dim, patch, channels, patches, blocks, int(rng.integers(2, 5)), False)
    config = {"num_heads": case.heads, "img_size": size}

    def reference(image: Array, s: dict[str, Array]) -> Array:
        return N.released_vit(image, s, case.heads, 1e-6, size)

    state = small(case, drawn_state(case, shapes, case.scale))
    return Drawn("deit", state, config, images(case, channels, size), reference, columns=False)


def mita_deit(case: Case) -> Drawn:
    """DeiT with MiTA, with convolutions, gates, routed experts alone, or agents; a square grid."""
    rng, width = case.rng("mita deit"), 1 + case.head_dim
    dim, side, which = case.heads * width, 2 + case.tokens % 3, ("", "conv", "gate", "route", "agent")[case.seed % 5]
    size, gate = (2 * side, 2 * side), which == "gate"
    attention = fused(dim, True, parts=4 if gate else 3)
    attention |= {"dwc.weight": (dim, 1, 3, 3), "dwc.bias": (dim,)} if which in ("conv", "gate") else {}
    blocks = [block(attention, dim, 2 * dim)] * (1 + int(rng.integers(2)))
    shapes = vit_shapes(dim, (2, 2), 3, side**2, blocks, int(rng.integers(2, 5)), False)
    top = 1 if which == "route" else 1 + case.m % 2
    config: dict[str, Any] = {"num_heads": case.heads, "pool_size": 2, "kv_topk": top}
    config |= {"attention": f"MiTA_Attention_{which}" if which != "agent" else "Agent_Attention"} if which else {}

    def read(X: Array, s: R.State) -> Array:
        if which == "agent":
            return R.released_agent(X, s, case.heads, 2)
        keys = top**2 * (2 if which == "route" else 1)
        return R.released_mita(X, s, case.heads, 2, keys, shared=which != "route")

    def reference(image: Array, s: dict[str, Array]) -> Array:
        return N.released_vit(image, s, case.heads, 1e-6, size, read)

    state = drawn_state(case, shapes)
    return Drawn("mita-deit", state, config, images(case, 3, size), reference, columns=False)


def mita_vit5(case: Case) -> Drawn:
    """MiTA-ViT-5 as published: 25 landmarks and 30 keys; positions, rotary places, norms or without; 4 registers."""
    rng, width, side = case.rng("vit5"), 4, 5 + case.tokens % 2
    dim, rope, normed, learned, scaled, convolution = (case.heads * width, *(bool(rng.integers(3)) for _ in range(5)))
    attention = fused(dim, bool(rng.integers(2))) | norms(width, normed, False)
    attention |= {"rope.freqs": (1,)} if rope else {}
    attention |= {"rope_reg.freqs": (1,)}
    attention |= {"dwc.weight": (dim, 1, 3, 3), "dwc.bias": (dim,)} if convolution else {}
    gamma = ("gamma_1", "gamma_2") if scaled else ()
    shapes: Shapes = {"cls_token": (1, 1, dim), "reg_token": (1, 4, dim)}
    shapes |= {"pos_embed": (1, side**2, dim)} if learned else {}
    shapes |= {"patch_embed.proj.weight": (dim, 1, 2, 2), "patch_embed.proj.bias": (dim,)}
    shapes |= _numbered("blocks.", [block(attention, dim, 2 * dim, gamma=gamma, rms=True)] * (1 + case.seed % 2))
    shapes |= norm("norm", dim, False) | linear("head", int(rng.integers(2, 5)), dim)
    config: dict[str, Any] = {} if learned else {"img_size": 2 * side}
    config |= {} if normed or rope else {"num_heads": case.heads}

    def reference(image: Array, s: dict[str, Array]) -> Array:
        return N.released_vit5(image, s, case.heads, side)

    x = images(case, 1, (2 * side, 2 * side))
    return Drawn("mita-vit5", drawn_state(case, shapes), config, x, reference, columns=False)


def _decoder(case: Case, kind: str, square: bool = False) -> tuple[Shapes, dict[str, Any], int, Callable[..., Array]]:
    """The layout of a decoder, its arguments, the width of the tokens it takes, and its transcription.

    Normed tokens of two features lie on a line: their cosines would be equal, and masks nothing but rounding.
    """
    heads, dim, rng = case.heads, case.heads * (3 + case.head_dim), case.rng(kind)
    classes, depth = int(rng.integers(2, 5)), 1 + int(rng.integers(2))
    if kind == "segmenter-linear":
        return linear("head", classes, dim), {}, dim, N.released_linear_decoder
    if kind == "segmenter-mask":
        outer = dim + case.extra
        shapes: Shapes = {"cls_emb": (1, classes, dim), "proj_patch": (dim, dim), "proj_classes": (dim, dim)}
        shapes |= linear("proj_dec", dim, outer) | _numbered("blocks.", [block(fused(dim, True), dim, 2 * dim)] * depth)
        shapes |= norm("decoder_norm", dim) | norm("mask_norm", classes)
        return shapes, {"n_heads": heads}, outer, lambda X, s, grid: N.released_mask_decoder(X, s, heads, grid)
    if kind == "cbt-decoder":
        shapes = {"cls_emb": (1, classes, dim)}
        layer = norm("norm", dim) | under("fn.", attention_shapes("cbsa", dim, heads))
        shapes |= _numbered("net.layers.", [layer] * depth) | norm("decoder_norm", dim) | norm("mask_norm", classes)
        return shapes, {}, dim, N.released_cbt_decoder
    shapes, inner = {"cls_emb": (1, classes, dim)}, 3 * heads

    def layers(width: int) -> Shapes:
        return norm("norm", dim) | {"fn.proj": (width, dim), "fn.step_size": (1,)}

    if kind == "depict-sa":
        shapes |= _numbered("net.layers.", [layers(inner)] * depth) | norm("decoder_norm", dim)
    else:
        shapes |= _numbered("snet.layers.", [layers(inner)] * depth) | norm("snorm", dim)
        shapes |= _numbered("cnet.layers.", [layers(2 * heads)] * 3) | norm("cnorm", dim)
    shapes |= norm("mask_norm", classes)
    return shapes, {"n_heads": heads}, dim, lambda X, s, grid: N.released_depict(X, s, heads, grid)


def decoder(kind: str) -> Callable[[Case], Drawn]:
    """A segmentation decoder on the tokens of an image; CBT's on a square grid, as there."""

    def draw(case: Case) -> Drawn:
        shapes, config, width, transcription = _decoder(case, kind)
        rows = 1 + case.tokens % 4
        grid = (rows, rows if kind == "cbt-decoder" else 1 + case.m % 4)
        x = case.draw("tokens", 2, grid[0] * grid[1], width)
        call = {"im_size": (4 * grid[0], 4 * grid[1])}

        def reference(X: Array, s: dict[str, Array]) -> Array:
            return transcription(X, s, grid)

        state = drawn_state(case, shapes)
        return Drawn(kind, state, config | {"patch_size": 4}, x, reference, call)

    return draw


DECODERS = ("segmenter-mask", "segmenter-linear", "depict-sa", "depict-ca", "cbt-decoder")


def segmenter(case: Case) -> Drawn:
    """A ViT and any decoder on images of any size; with CBT's the padded image is square, and attention may be MiTA."""
    kind, rng = DECODERS[case.seed % 5], case.rng("segmenter")
    shapes, arguments, width, transcription = _decoder(case, kind)
    rows = 1 + case.tokens % 3
    made_for = (2 * rows, 2 * (rows if kind == "cbt-decoder" else 1 + case.m % 3))
    larger = 2 * int(rng.integers(2))
    size = tuple(side + larger - int(rng.integers(2)) for side in made_for)
    distilled = bool(rng.integers(2))
    encoder = vit_shapes(
        width,
        (2, 2),
        1,
        made_for[0] * made_for[1] // 4,
        [block(fused(width, True), width, 2 * width)],
        2,
        distilled,
    )
    heads = next(k for k in (case.heads, 1) if width % k == 0)
    state = drawn_state(case, under("encoder.", encoder) | under("decoder.", shapes), 0.3)
    mita = kind == "cbt-decoder" and not distilled  # as published; 49 keys are all of them here
    arguments_of_encoder: dict[str, Any] = {"image_size": made_for, "n_heads": heads}
    arguments_of_encoder |= {"attention": "MiTA_Attention"} if mita else {}
    config = {"encoder": arguments_of_encoder, "decoder": arguments}

    def read(X: Array, s: R.State) -> Array:
        return R.released_mita(X, s, heads, 7, 49)

    def encode(image: Array, s: R.State) -> Array:
        return N.released_vit(image, s, heads, 1e-5, made_for, read if mita else None, features=True)

    def reference(image: Array, s: dict[str, Array]) -> Array:
        return N.released_segmenter(image, s, 2, encode, transcription)

    return Drawn("segmenter", state, config, images(case, 1, (size[0], size[1])), reference, columns=False)


NETWORKS: dict[str, Callable[[Case], Drawn]] = {
    **{kind: white_box(kind) for kind in ("crate", "cbt", "cbt-hybrid")},
    "tost": tost,
    "vit": vit,
    "deit": deit,
    "mita-deit": mita_deit,
    "mita-vit5": mita_vit5,
    **{kind: decoder(kind) for kind in DECODERS},
    "segmenter": segmenter,
}
"""Kind of network: what draws one."""
