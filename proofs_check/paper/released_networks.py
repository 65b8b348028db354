"""The papers' released networks in evaluation, as they are coded, composed of the layers in ``released``.

Images are (channels, rows, columns), one at a time; tokens in COLUMNS, (d, N). A state holds the arrays of the released
state dictionary under the released names; what these do not tell is an argument under the released constructor's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .agent import bilinear
from .depict import depict_masks
from .numbers import Array, softmax_columns
from .released import (
    State,
    affine,
    gelu,
    head_rows,
    layer_norm,
    part,
    released_attention,
    released_cbsa,
    released_crate_block,
    released_depict_attention,
    released_mita_vit5,
    released_tssa,
    rms_norm,
)

__all__ = [
    "released_cbt_decoder",
    "released_depict",
    "released_linear_decoder",
    "released_mask_decoder",
    "released_segmenter",
    "released_tost",
    "released_vit",
    "released_vit5",
    "released_white_box",
]

Attention = Callable[[Array, State], Array]


def depth(state: State, prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def convolve(image: Array, weight: Array) -> Array:
    """A 3 × 3 convolution of stride 2, zeros around the image, without bias."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    rows, columns = ((side + 1) // 2 for side in image.shape[1:])
    out = np.zeros((len(weight), rows, columns), image.dtype)
    for i in range(3):
        for j in range(3):
            seen = padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2]
            out += np.tensordot(weight[:, :, i, j], seen, axes=1)
    return out


def conv_stem(image: Array, state: State) -> Array:
    """Convolutions with batch norms in evaluation, GELU between them; columns row by row."""
    for number in range(depth(state, "proj.")):
        image = convolve(image if number == 0 else gelu(image), state[f"proj.{2 * number}.0.weight"])
        norm = {
            name: value[:, None, None]
            for name, value in part(state, f"proj.{2 * number}.1.").items()
            if name != "num_batches_tracked"
        }
        spread = np.sqrt(norm["running_var"] + 1e-5)
        image = (image - norm["running_mean"]) / spread * norm["weight"] + norm["bias"]
    return image.reshape(len(image), -1)


def grid_of(image: Array, high: int, wide: int) -> tuple[int, int]:
    """Rows and columns of whole patches."""
    return image.shape[1] // high, image.shape[2] // wide


def cut(image: Array, high: int, wide: int) -> list[Array]:
    """The whole patches (channels, high, wide), row by row."""
    rows, columns = grid_of(image, high, wide)
    return [image[:, r * high : (r + 1) * high, c * wide : (c + 1) * wide] for r in range(rows) for c in range(columns)]


def patch_stem(image: Array, state: State) -> Array:
    """One linear map of every patch, what is less than a patch left out."""
    weight = state["weight"]
    found = [np.tensordot(weight, patch, axes=3) for patch in cut(image, *weight.shape[2:])]
    return np.stack(found, axis=1) + state["bias"][:, None]


def linear_stem(image: Array, state: State, patch: tuple[int, int]) -> Array:
    """Every patch flattened, channel fastest, normed, mapped, and normed again."""
    flat = np.stack([piece.transpose(1, 2, 0).ravel() for piece in cut(image, *patch)], axis=1)
    return layer_norm(affine(layer_norm(flat, state, "1"), state, "2"), state, "3")


def mlp(X: Array, state: State) -> Array:
    """Two linear maps with a GELU between."""
    return affine(gelu(affine(X, state, "fc1")), state, "fc2")


def released_white_box(
    image: Array, state: State, heads: int, eta: float = 0.1, pool: str = "cls", patch: tuple[int, int] = (0, 0)
) -> Array:
    """CRATE, CBT, CBSA's ToST and hybrids: class scores. Of other images the first positions are taken, none resized."""
    stem = part(state, "to_patch_embedding.")
    X = conv_stem(image, stem) if "proj.0.0.weight" in stem else linear_stem(image, stem, patch)
    X = np.concatenate([state["cls_token"][0].T, X], axis=1)
    X = X + state["pos_embedding"][0, : X.shape[1]].T
    for number in range(depth(state, "transformer.layers.")):
        X = released_crate_block(X, part(state, f"transformer.layers.{number}."), heads, eta)
    read = X[:, :1] if pool == "cls" else X.mean(1, keepdims=True)
    return affine(layer_norm(read, state, "mlp_head.0"), state, "mlp_head.1")[:, 0]


def waves(side: int) -> Array:
    """32 numbers of every place 1 … n, scaled to 2π: sines and cosines of 16 frequencies 10000^(−2i/32), interleaved."""
    out = np.zeros((32, side))
    for place in range(1, side + 1):
        for i in range(16):
            angle = place / (side + 1e-6) * 2 * np.pi / 10000 ** (2 * i / 32)
            out[2 * i : 2 * i + 2, place - 1] = np.sin(angle), np.cos(angle)
    return out


def fourier_positions(state: State, grid: tuple[int, int]) -> Array:
    """ToST's positions: waves of the row above waves of the column, mapped to the width."""
    down, across = waves(grid[0]), waves(grid[1])
    places = [np.concatenate([down[:, r], across[:, c]]) for r in range(grid[0]) for c in range(grid[1])]
    weight = state["token_projection.weight"][:, :, 0, 0]
    return weight @ np.stack(places, axis=1).astype(weight.dtype) + state["token_projection.bias"][:, None]


def class_attention_block(X: Array, state: State, heads: int, tokens_norm: bool, scale: float | None) -> Array:
    """CaiT's block as XCiT has it: the class token, the first column, reads all; the others are normed, and doubled."""
    seen, g1, g2 = layer_norm(X, state, "norm1", 1e-6), state["gamma1"][:, None], state["gamma2"][:, None]
    Q, K, V = (head_rows(W, heads) for W in np.split(affine(seen, state, "attn.qkv"), 3))
    s = len(Q[0]) ** -0.5 if scale is None else scale
    read = [v @ softmax_columns(s * (k.T @ q[:, :1])) for q, k, v in zip(Q, K, V, strict=True)]
    token = affine(np.concatenate(read), state, "attn.proj")
    X = X + g1 * np.concatenate([token, seen[:, 1:]], axis=1)
    normal = layer_norm(X, state, "norm2", 1e-6)
    X = normal if tokens_norm else np.concatenate([normal[:, :1], X[:, 1:]], axis=1)
    return X + np.concatenate([g2 * mlp(X[:, :1], part(state, "mlp.")), X[:, 1:]], axis=1)


def released_tost(
    image: Array,
    state: State,
    heads: int,
    tokens_norm: bool = True,
    use_pos: bool = True,
    qk_scale: float | None = None,
) -> Array:
    """ToST's vision model: class scores, or the class token where there is no head."""
    stem = part(state, "patch_embed.")
    X, halvings = conv_stem(image, stem), depth(stem, "proj.")
    grid = [int(np.ceil(side / 2**halvings)) for side in image.shape[1:]]
    if use_pos:
        X = X + fourier_positions(part(state, "pos_embeder."), (grid[0], grid[1]))
    for number in range(depth(state, "blocks.")):
        block = part(state, f"blocks.{number}.")
        moved = released_tssa(layer_norm(X, block, "norm1", 1e-6), part(block, "attn."))
        X = X + block["gamma1"][:, None] * moved
        X = X + block["gamma2"][:, None] * mlp(layer_norm(X, block, "norm2", 1e-6), part(block, "mlp."))
    X = np.concatenate([state["cls_token"][0].T, X], axis=1)
    for number in range(depth(state, "cls_attn_blocks.")):
        X = class_attention_block(X, part(state, f"cls_attn_blocks.{number}."), heads, tokens_norm, qk_scale)
    token = layer_norm(X, state, "norm", 1e-6)[:, :1]
    return (affine(token, state, "head") if "head.weight" in state else token)[:, 0]


def blocks_of_vit(X: Array, state: State, attention: Attention, norm: Callable[[Array, State, str], Array]) -> Array:
    """Blocks X + γ₁ attention(norm(X)), X + γ₂ MLP(norm(X)), where there are γ's."""
    for number in range(depth(state, "blocks.")):
        block = part(state, f"blocks.{number}.")
        first, second = (block[name][:, None] if name in block else 1.0 for name in ("gamma_1", "gamma_2"))
        X = X + first * attention(norm(X, block, "norm1"), part(block, "attn."))
        X = X + second * mlp(norm(X, block, "norm2"), part(block, "mlp."))
    return X


def released_vit(
    image: Array,
    state: State,
    heads: int,
    eps: float,
    image_size: tuple[int, int],
    attention: Attention | None = None,
    features: bool = False,
) -> Array:
    """Segmenter's ViT (ε = 1e-5), DeiT (1e-6), or these with another attention: class scores, or all tokens normed.

    Positions, made for ``image_size``, are resized bilinearly where there are not as many patches. A distillation token
    stands second; the scores of both are averaged.
    """
    weight = state["patch_embed.proj.weight"]
    X, tokens = patch_stem(image, part(state, "patch_embed.proj.")), [state["cls_token"][0].T]
    tokens += [state["dist_token"][0].T] if "dist_token" in state else []
    X, P, extra = np.concatenate([*tokens, X], axis=1), state["pos_embed"][0].T, len(tokens)
    if P.shape[1] != X.shape[1]:
        made_for = image_size[0] // weight.shape[2], image_size[1] // weight.shape[3]
        maps = bilinear(P[:, extra:].reshape(len(P), *made_for), grid_of(image, *weight.shape[2:]))
        P = np.concatenate([P[:, :extra], maps.reshape(len(P), -1)], axis=1)
    read = attention if attention is not None else (lambda Z, s: released_attention(Z, s, heads))
    X = blocks_of_vit(X + P, state, read, lambda Z, s, name: layer_norm(Z, s, name, eps))
    X = layer_norm(X, state, "norm", eps)
    if features:
        return X
    scores = affine(X[:, :1], state, "head") if "head.weight" in state else X[:, :1]
    if extra == 2:
        scores = (scores + affine(X[:, 1:2], state, "head_dist")) / 2
    return scores[:, 0]


def released_vit5(
    image: Array, state: State, heads: int, made_for: int, pool: int = 5, keys: int = 30, features: bool = False
) -> Array:
    """MiTA-ViT-5: class scores. Positions on patches alone; class token, patches, registers; root-mean-square norms."""
    X = patch_stem(image, part(state, "patch_embed.proj."))
    X = X + state["pos_embed"][0].T if "pos_embed" in state else X
    registers = state["reg_token"][0].T if "reg_token" in state else X[:, :0]
    X = np.concatenate([state["cls_token"][0].T, X, registers], axis=1)

    def read(Z: Array, s: State) -> Array:
        return released_mita_vit5(Z, s, heads, registers.shape[1], made_for, pool, keys)

    X = rms_norm(blocks_of_vit(X, state, read, rms_norm), state, "norm")
    if features:
        return X
    return (affine(X[:, :1], state, "head") if "head.weight" in state else X[:, :1])[:, 0]


def _masks(patches: Array, classes: Array, state: State, grid: tuple[int, int]) -> Array:
    """Cosines, normed over the classes, (C, rows, columns)."""
    return layer_norm(depict_masks(patches, classes), state, "mask_norm").reshape(-1, *grid)


def released_depict(X: Array, state: State, heads: int, grid: tuple[int, int]) -> Array:
    """DEPICT-SA and -CA: masks (C, rows, columns). In CA keys are normed twice, and queries never."""
    Q = state["cls_emb"][0].T
    joint, C = "decoder_norm.weight" in state, Q.shape[1]
    X, name = (np.concatenate([X, Q], axis=1), "net") if joint else (X, "snet")
    for number in range(depth(state, f"{name}.layers.")):
        layer = part(state, f"{name}.layers.{number}.")
        X = X + released_depict_attention(layer_norm(X, layer, "norm"), part(layer, "fn."), heads)
    if joint:
        X = layer_norm(X, state, "decoder_norm")
        return _masks(X[:, :-C], X[:, -C:], state, grid)
    X = layer_norm(X, state, "snorm")
    for number in range(depth(state, "cnet.layers.")):
        layer = part(state, f"cnet.layers.{number}.")
        Q = Q + released_depict_attention(layer_norm(X, layer, "norm"), part(layer, "fn."), heads, query=Q)
    return _masks(X, layer_norm(Q, state, "cnorm"), state, grid)


def released_cbt_decoder(X: Array, state: State, grid: tuple[int, int], pool: int = 10) -> Array:
    """CBT's decoder: patches, then classes; CBSA whose representatives are pooled of the patches alone. Masks."""
    C = state["cls_emb"].shape[1]
    X = np.concatenate([X, state["cls_emb"][0].T], axis=1)
    for number in range(depth(state, "net.layers.")):
        layer = part(state, f"net.layers.{number}.")
        X = X + released_cbsa(layer_norm(X, layer, "norm"), part(layer, "fn."), pool, behind=C)
    X = layer_norm(X, state, "decoder_norm")
    return _masks(X[:, :-C], X[:, -C:], state, grid)


def released_mask_decoder(X: Array, state: State, heads: int, grid: tuple[int, int]) -> Array:
    """Segmenter's mask transformer: mapped patches, then classes; ViT blocks; both mapped again; masks."""
    C = state["cls_emb"].shape[1]
    X = np.concatenate([affine(X, state, "proj_dec"), state["cls_emb"][0].T], axis=1)
    X = blocks_of_vit(X, state, lambda Z, s: released_attention(Z, s, heads), layer_norm)
    X = layer_norm(X, state, "decoder_norm")
    return _masks(state["proj_patch"].T @ X[:, :-C], state["proj_classes"].T @ X[:, -C:], state, grid)


def released_linear_decoder(X: Array, state: State, grid: tuple[int, int]) -> Array:
    """Segmenter's linear decoder: scores (C, rows, columns)."""
    return affine(X, state, "head").reshape(-1, *grid)


def released_segmenter(
    image: Array, state: State, patch: int, encode: Callable[[Array, State], Array], decode: Callable[..., Array]
) -> Array:
    """Segmenter: zeros to the right and below up to whole patches; encoder, decoder, bilinear to pixels, cut to the image.

    ``encode`` returns all tokens, class and distillation token first; ``decode(tokens, state, grid)`` masks.
    """
    high, wide = image.shape[1:]
    padded = np.pad(image, ((0, 0), (0, -high % patch), (0, -wide % patch)))
    encoder: Any = part(state, "encoder.")
    tokens = encode(padded, encoder)[:, 2 if "dist_token" in encoder else 1 :]
    masks = decode(tokens, part(state, "decoder."), grid_of(padded, patch, patch))
    return bilinear(masks, padded.shape[1:])[:, :high, :wide]
