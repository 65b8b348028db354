"""The table of every module that has a released counterpart, and the kind it is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..attention import AttentionLayer
from ..layers.agent import AgentAttention
from ..layers.cbsa import CBSA
from ..layers.crate import CRATEBlock
from ..layers.ista import ISTA
from ..layers.mita import MiTA
from ..layers.mssa import MSSA
from ..layers.tssa import TSSA
from ..models import (
    CBT,
    CRATE,
    DEPICT,
    CBTDecoder,
    LinearDecoder,
    MaskDecoder,
    MiTADeiT,
    MiTAViT5,
    Segmenter,
    ToST,
    ViT,
)
from ..models.blackbox import BlackBox
from ..models.depict import DecoderModel
from ..models.whitebox import WhiteBox
from ..representatives import OfficialGridPool
from ..subspace import SubspaceLayer
from .entries import (
    Entry,
    Tensors,
    batch_norm,
    block,
    crate_block,
    depict,
    ista,
    linear,
    qkv,
    same,
    shaped,
    subspace,
    tssa_causal,
)

__all__ = ["table_of"]


def table_of(module: nn.Module) -> tuple[str, list[Entry]]:
    """The kind of a module and its table.

    Raises
    ------
        TypeError for a module without a released counterpart, ValueError where its options have none.
    """
    style = getattr(module, "released_style", None)
    if isinstance(module, MSSA):
        if module.tied:
            return "depict-attention", list(depict(module, "", ""))
        return "mssa", list(subspace(module, "", "", sequential=style != "cbsa"))
    if isinstance(module, CBSA):
        pool = module.representatives
        decoder = isinstance(pool, OfficialGridPool) and pool.dropped == (150,)
        return "cbsa-seg" if decoder else "cbsa", list(subspace(module, "", "", sequential=False))
    if isinstance(module, TSSA):
        if module.causal:
            return "tssa-causal", list(tssa_causal(module))
        return "tssa", list(subspace(module, "", "", sequential=style != "cbsa"))
    if isinstance(module, ISTA):
        return "ista", list(ista(module, "", ""))
    if isinstance(module, CRATEBlock):
        return "crate-block", list(crate_block(module, "", "", sequential=style != "cbsa"))
    if isinstance(module, AttentionLayer):
        return _attention_kind(module), list(qkv(module, "", ""))
    if isinstance(module, WhiteBox):
        return _white_box_kind(module), list(_white_box(module))
    if isinstance(module, ToST):
        return "tost", list(_tost(module))
    if isinstance(module, BlackBox):
        return _black_box_kind(module), list(_black_box(module, "", ""))
    if isinstance(module, DecoderModel):
        kind, entries = _decoder(module, "", "")
        return kind, list(entries)
    if isinstance(module, Segmenter):
        return "segmenter", list(_segmenter(module))
    raise TypeError(f"to_official: a {type(module).__name__} has no released counterpart.")


def _attention_kind(layer: AttentionLayer) -> str:
    style = getattr(layer, "released_style", None)
    if isinstance(layer, AgentAttention):
        return "agent"
    if not isinstance(layer, MiTA):
        raise TypeError(f"to_official: a bare {type(layer).__name__} has no released counterpart.")
    if layer.register_tokens or layer.rotary is not None:
        return "mita-vit5-attention"
    if style == "segmenter":
        return "mita-segmenter-attention"
    if layer.gate is not None:
        return "mita-dwc-gate"
    if layer.convolution is not None:
        return "mita-dwc"
    return "mita" if layer.shared else "mita-route"


def _white_box_kind(model: WhiteBox) -> str:
    if isinstance(model, CRATE):
        return "crate"
    kinds = {type(part.attention) for part in model.blocks if isinstance(part, CRATEBlock)}
    if kinds == {MSSA}:
        return "crate"
    return {frozenset({CBSA}): "cbt", frozenset({TSSA}): "tost"}.get(frozenset(kinds), "cbt-hybrid")


def _black_box_kind(model: BlackBox) -> str:
    if isinstance(model, MiTAViT5):
        return "mita-vit5"
    if model.config.norm_eps >= 1e-5:  # Segmenter's encoder, also with MiTA's attention
        return "vit"
    return "mita-deit" if isinstance(model, MiTADeiT) else "deit"


def _white_box(model: WhiteBox) -> Iterator[Entry]:
    yield same("pos_embedding", "positions.embedding")
    yield same("cls_token", "positions.class_token")
    if isinstance(model, CBT):
        for number in range(len(model.stem.convolutions)):  # type: ignore[arg-type]
            theirs = f"to_patch_embedding.proj.{2 * number}"
            yield same(f"{theirs}.0.weight", f"stem.convolutions.{number}.weight")
            yield from batch_norm(f"{theirs}.1", f"stem.norms.{number}")
    else:
        for number, name in ((1, "norm_patch"), (2, "linear"), (3, "norm")):
            yield from linear(f"to_patch_embedding.{number}", f"stem.{name}", getattr(model.stem, name))
    for number, part in enumerate(model.blocks):
        theirs, ours = f"transformer.layers.{number}.", f"blocks.{number}."
        if isinstance(part, CRATEBlock):
            yield from crate_block(part, theirs, ours, sequential=isinstance(model, CRATE))
    yield from linear("mlp_head.0", "head_norm", model.head_norm)
    yield from linear("mlp_head.1", "head", model.head)


def _tost(model: ToST) -> Iterator[Entry]:
    yield same("cls_token", "class_token")
    for number in range(len(model.stem.convolutions)):
        theirs = f"patch_embed.proj.{2 * number}"
        yield same(f"{theirs}.0.weight", f"stem.convolutions.{number}.weight")
        yield from batch_norm(f"{theirs}.1", f"stem.norms.{number}")
    out, into = model.positions.projection.weight.shape
    yield shaped("pos_embeder.token_projection.weight", "positions.projection.weight", (out, into), (out, into, 1, 1))
    yield same("pos_embeder.token_projection.bias", "positions.projection.bias")
    for number, part in enumerate(model.blocks):
        yield from block(part, f"blocks.{number}.", f"blocks.{number}.", gamma=("gamma1", "gamma2"))  # type: ignore[arg-type]
    for number, part in enumerate(model.class_blocks):
        theirs, ours = f"cls_attn_blocks.{number}.", f"class_blocks.{number}."
        for name in ("gamma1", "gamma2"):
            yield same(theirs + name, ours + name)
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            yield from linear(theirs + name, ours + name, part.get_submodule(name))
        yield from qkv(part.attention, f"{theirs}attn.", f"{ours}attention.")  # type: ignore[arg-type]
    yield from linear("norm", "norm", model.norm)
    yield from linear("head", "head", model.head)


def _black_box(model: BlackBox, theirs: str, ours: str) -> Iterator[Entry]:
    five = isinstance(model, MiTAViT5)
    if model.class_tokens == 2:
        yield Entry((f"{theirs}cls_token", f"{theirs}dist_token"), (f"{ours}positions.class_token",), _join, _part)
    else:
        yield same(f"{theirs}cls_token", f"{ours}positions.class_token")
    if model.registers:
        yield same(f"{theirs}reg_token", f"{ours}positions.register_token")
    if model.positions.embedding is not None:
        yield same(f"{theirs}pos_embed", f"{ours}positions.embedding")
    yield from linear(f"{theirs}patch_embed.proj", f"{ours}stem.projection", model.stem.projection)
    gamma = ("gamma_1", "gamma_2") if five else ("gamma1", "gamma2")
    for number, part in enumerate(model.blocks):
        yield from block(part, f"{theirs}blocks.{number}.", f"{ours}blocks.{number}.", gamma=gamma)  # type: ignore[arg-type]
    yield from linear(f"{theirs}norm", f"{ours}norm", model.norm)
    yield from linear(f"{theirs}head", f"{ours}head", model.head)
    if isinstance(model, ViT) and model.config.distilled:
        yield from linear(f"{theirs}head_dist", f"{ours}head_distilled", model.head_distilled)


def _join(tensors: Tensors) -> Tensors:
    return [torch.cat(tensors, dim=1)]


def _part(tensors: Tensors) -> Tensors:
    return list(tensors[0].split(1, dim=1))


def _classes(theirs: str, ours: str, embeddings: Tensor) -> Entry:
    shape = tuple(embeddings.shape)
    return shaped(f"{theirs}cls_emb", ours, shape, (1, *shape))


def _depict(model: DEPICT, theirs: str, ours: str) -> Iterator[Entry]:
    decoder, inside = model.decoder, f"{ours}decoder."
    yield _classes(theirs, f"{inside}class_embeddings", decoder.class_embeddings)
    joint = model.config.attention == "self"
    stacks = [("net" if joint else "snet", "refine", decoder.refine_layers)]
    stacks += [] if joint else [("cnet", "cross", decoder.cross_layers)]
    for name, own, layers in stacks:
        for number, layer in enumerate(layers):
            norm = getattr(decoder, f"{own}_norms")[number]
            yield from linear(f"{theirs}{name}.layers.{number}.norm", f"{inside}{own}_norms.{number}", norm)
            yield from depict(layer, f"{theirs}{name}.layers.{number}.fn.", f"{inside}{own}_layers.{number}.")  # type: ignore[arg-type]
    norms = {"decoder_norm": "patch_norm"} if joint else {"snorm": "patch_norm", "cnorm": "class_norm"}
    for name, own in {**norms, "mask_norm": "mask_norm"}.items():
        yield from linear(f"{theirs}{name}", f"{inside}{own}", getattr(decoder, own))


def _cbt_decoder(model: CBTDecoder, theirs: str, ours: str) -> Iterator[Entry]:
    yield _classes(theirs, f"{ours}class_embeddings", model.class_embeddings)
    for number, part in enumerate(model.blocks):
        name, own = f"{theirs}net.layers.{number}.", f"{ours}blocks.{number}."
        yield from linear(f"{name}norm", f"{own}norm", part.norm)  # type: ignore[arg-type]
        attention = part.attention
        if isinstance(attention, SubspaceLayer):
            yield from subspace(attention, f"{name}fn.", f"{own}attention.", sequential=False)
    for name, own in (("decoder_norm", "norm"), ("mask_norm", "mask_norm")):
        yield from linear(f"{theirs}{name}", f"{ours}{own}", getattr(model, own))


def _mask_decoder(model: MaskDecoder, theirs: str, ours: str) -> Iterator[Entry]:
    yield _classes(theirs, f"{ours}class_embeddings", model.class_embeddings)
    yield same(f"{theirs}proj_patch", f"{ours}patch_matrix")
    yield same(f"{theirs}proj_classes", f"{ours}class_matrix")
    yield from linear(f"{theirs}proj_dec", f"{ours}projection", model.projection)
    for number, part in enumerate(model.blocks):
        yield from block(part, f"{theirs}blocks.{number}.", f"{ours}blocks.{number}.", gamma=("", ""))  # type: ignore[arg-type]
    for name, own in (("decoder_norm", "norm"), ("mask_norm", "mask_norm")):
        yield from linear(f"{theirs}{name}", f"{ours}{own}", getattr(model, own))


def _linear_decoder(model: LinearDecoder, theirs: str, ours: str) -> Iterator[Entry]:
    yield from linear(f"{theirs}head", f"{ours}head", model.head)


def _segmenter(model: Segmenter) -> Iterator[Entry]:
    yield from _black_box(model.encoder, "encoder.", "encoder.")
    yield from _decoder(model.decoder, "decoder.", "decoder.")[1]


def _decoder(model: DecoderModel, theirs: str, ours: str) -> tuple[str, Iterator[Entry]]:
    if isinstance(model, DEPICT):
        return "depict-sa" if model.config.attention == "self" else "depict-ca", _depict(model, theirs, ours)
    if isinstance(model, CBTDecoder):
        return "cbt-decoder", _cbt_decoder(model, theirs, ours)
    if isinstance(model, MaskDecoder):
        return "segmenter-mask", _mask_decoder(model, theirs, ours)
    if isinstance(model, LinearDecoder):
        return "segmenter-linear", _linear_decoder(model, theirs, ours)
    raise TypeError(f"to_official: a {type(model).__name__} has no released counterpart.")
