"""Which tensor of a released state dictionary is which of ours: one table a module, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..attention import AttentionLayer
from ..layers.agent import AgentAttention
from ..layers.cbsa import CBSA
from ..layers.crate import CRATEBlock
from ..layers.depict import MSCA
from ..layers.ista import ISTA
from ..layers.mssa import MSSA
from ..layers.tssa import TSSA
from ..models.parts import Block
from ..subspace import SubspaceLayer

__all__ = ["Entry", "block", "crate_block", "depict", "qkv", "same", "subspace", "tssa_causal"]

Tensors = list[Tensor]


class Entry(NamedTuple):
    """Released names and ours for the same numbers; ``load`` takes theirs to ours, ``save`` the other way."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    load: Callable[[Tensors], Tensors] = lambda tensors: tensors
    save: Callable[[Tensors], Tensors] = lambda tensors: tensors


def same(theirs: str, ours: str) -> Entry:
    """The same tensor under two names."""
    return Entry((theirs,), (ours,))


def turned(theirs: str, ours: str) -> Entry:
    """A matrix that is transposed on the way."""
    return Entry((theirs,), (ours,), lambda t: [t[0].mT], lambda t: [t[0].mT])


def shaped(theirs: str, ours: str, inner: tuple[int, ...], outer: tuple[int, ...]) -> Entry:
    """A tensor of shape ``inner`` here and ``outer`` there."""
    return Entry((theirs,), (ours,), lambda t: [t[0].reshape(inner)], lambda t: [t[0].reshape(outer)])


def linear(theirs: str, ours: str, module: nn.Module) -> Iterator[Entry]:
    """Weight, and bias if there is one."""
    for name in ("weight", "bias"):
        if getattr(module, name, None) is not None:
            yield same(f"{theirs}.{name}", f"{ours}.{name}")


def batch_norm(theirs: str, ours: str) -> Iterator[Entry]:
    """The five tensors of a batch norm."""
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield same(f"{theirs}.{name}", f"{ours}.{name}")


def _refuse(layer: nn.Module, *conditions: tuple[bool, str]) -> None:
    for holds, reason in conditions:
        if not holds:
            raise ValueError(f"to_official: this {type(layer).__name__} has no released counterpart: {reason}.")


def subspace(layer: SubspaceLayer, theirs: str, ours: str, *, sequential: bool) -> Iterator[Entry]:
    """MSSA, CBSA and TSSA with their untied output; ``sequential``: whether that is ``to_out.0`` or ``to_out``."""
    _refuse(
        layer,
        (layer.form == "softmax" or isinstance(layer, TSSA), "its form is exact"),
        (not layer.tied, "its output is tied to its bases"),
        (not layer.certified, "its steps are certified"),
        (layer.tied or not layer.projected or layer.output.bias is not None, "its output has no bias"),
    )
    if isinstance(layer, TSSA):
        _refuse(layer, (layer.unit_step and layer.normalise_tokens and not layer.causal, "it keeps to ToST's equation"))
        yield shaped(f"{theirs}temp", f"{ours}temperature", (layer.heads,), (layer.heads, 1))
    elif isinstance(layer, CBSA):
        steps = (layer.heads,), (layer.heads, 1, 1)
        _refuse(layer, (layer.keep_queries and layer.per_head_step, "keep_queries and steps of every head are not on"))
        yield shaped(f"{theirs}step_x", f"{ours}step", *steps)
        yield shaped(f"{theirs}step_rep", f"{ours}step_rep", *steps)
    elif isinstance(layer, MSSA):
        fixed = "step" not in dict(layer.named_parameters(recurse=False)) and float(layer.step) == 1
        _refuse(layer, (fixed, "its step is not fixed at 1; fold it into the output matrix"))
    else:
        raise TypeError(f"to_official: a {type(layer).__name__} has no released counterpart.")
    name = "proj" if isinstance(layer, CBSA) else "qkv"
    yield turned(f"{theirs}{name}.weight", f"{ours}basis")
    if layer.basis_bias is not None:
        yield same(f"{theirs}{name}.bias", f"{ours}basis_bias")
    if layer.projected:
        yield from linear(f"{theirs}to_out{'.0' if sequential else ''}", f"{ours}output", layer.output)


def tssa_causal(layer: TSSA) -> Iterator[Entry]:
    """ToST's layer for language."""
    _refuse(layer, (layer.position_bias is not None and layer.unit_step, "it keeps to ToST's equation"))
    places = 0 if layer.position_bias is None else layer.position_bias.shape[-1]
    yield shaped("temp", "temperature", (layer.heads,), (layer.heads, 1))
    yield shaped("denom_bias", "position_bias", (layer.heads, places), (layer.heads, places, 1))
    yield turned("c_attn.weight", "basis")
    if layer.basis_bias is not None:
        yield same("c_attn.bias", "basis_bias")
    yield from linear("c_proj", "output", layer.output)


def depict(layer: MSSA | MSCA, theirs: str, ours: str) -> Iterator[Entry]:
    """DEPICT's attention: one matrix for both ways, one step."""
    _refuse(layer, (layer.form == "softmax" and layer.tied and not layer.per_head_step, "it is not tied with one step"))
    yield turned(f"{theirs}proj", f"{ours}basis")
    yield shaped(f"{theirs}step_size", f"{ours}step", (), (1,))


def qkv(layer: AttentionLayer, theirs: str, ours: str) -> Iterator[Entry]:
    """Softmax attention, agent attention and MiTA: one fused projection, an output, and what variants add."""
    _refuse(layer, (layer.projections == "free", "it has no projections"), (layer.plain, "its step is not fixed at 1"))
    parts = ["query", "key", "value"] + (["gate"] if layer.gate is not None else [])
    fused = "qkvg" if layer.gate is not None else "qkv"
    count = len(parts)
    for name in ("weight", "bias"):
        if getattr(layer.query, name) is not None:
            yield Entry(
                (f"{theirs}{fused}.{name}",),
                tuple(f"{ours}{part}.{name}" for part in parts),
                lambda t: list(t[0].chunk(count)),
                lambda t: [torch.cat(t)],
            )
    yield from linear(f"{theirs}proj", f"{ours}output", layer.output)
    for their_name, our_name in (("q_norm", "query_norm"), ("k_norm", "key_norm"), ("norm", "output_norm")):
        part = getattr(layer, our_name)
        if part is not None:
            yield from linear(f"{theirs}{their_name}", f"{ours}{our_name}", part)
    if layer.convolution is not None:
        yield from linear(f"{theirs}dwc", f"{ours}convolution", layer.convolution)
    for their_name, our_name in (("rope", "rotary"), ("rope_reg", "register_rotary")):
        if getattr(layer, our_name) is not None:
            yield same(f"{theirs}{their_name}.freqs", f"{ours}{our_name}.freqs")
    if isinstance(layer, AgentAttention):
        _refuse(layer, (not layer.contraction, "it contracts its agents"))
        if layer.agent_bias is not None:
            for name, _ in layer.agent_bias.named_parameters():
                yield same(f"{theirs}{name}", f"{ours}agent_bias.{name}")


def crate_block(block: CRATEBlock, theirs: str, ours: str, *, sequential: bool) -> Iterator[Entry]:
    """A block of CRATE or CBT: two normalised halves."""
    _refuse(block, (block.norm == "layer", "it has no LayerNorms"))
    if not isinstance(block.attention, SubspaceLayer):
        raise ValueError(f"to_official: no released block has a {type(block.attention).__name__} beside ISTA.")
    yield from linear(f"{theirs}0.norm", f"{ours}norm_attention", block.norm_attention)
    yield from subspace(block.attention, f"{theirs}0.fn.", f"{ours}attention.", sequential=sequential)
    yield from linear(f"{theirs}1.norm", f"{ours}norm_ista", block.norm_ista)
    yield from ista(block.ista, f"{theirs}1.fn.", f"{ours}ista.")


def ista(layer: ISTA, theirs: str, ours: str) -> Iterator[Entry]:
    """ISTA's dictionary; its step and weight are constants there."""
    learned = {"step", "log_weight"} & {name for name, _ in layer.named_parameters(recurse=False)}
    _refuse(layer, (not learned and layer.nonnegative, "its step or weight is learned, or its codes have signs"))
    yield same(f"{theirs}weight", f"{ours}D")


def block(part: Block, theirs: str, ours: str, *, gamma: tuple[str, str], sequential: bool = True) -> Iterator[Entry]:
    """A block of ViT, ToST or ViT-5; ``gamma``: the released names of the two scales."""
    for name in ("norm1", "norm2"):
        yield from linear(f"{theirs}{name}", f"{ours}{name}", getattr(part, name))
    for theirs_name, ours_name in zip(gamma, ("gamma1", "gamma2"), strict=True):
        if getattr(part, ours_name) is not None:
            yield same(f"{theirs}{theirs_name}", f"{ours}{ours_name}")
    if isinstance(part.attention, AttentionLayer):
        yield from qkv(part.attention, f"{theirs}attn.", f"{ours}attention.")
    else:
        yield from subspace(part.attention, f"{theirs}attn.", f"{ours}attention.", sequential=sequential)
    for name in ("fc1", "fc2"):
        yield from linear(f"{theirs}mlp.{name}", f"{ours}mlp.{name}", getattr(part.mlp, name))
