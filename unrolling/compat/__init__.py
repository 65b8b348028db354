"""Weights of the papers' released code, in and out: the same numbers under other names.

    module = from_official("cbt", load_checkpoint("cbt_small_best.pth.tar"))
    kind, state = to_official(module)

Loaded modules compute what the released code computes, number for number, its departures from the equations included:
each is a named option of a layer here (``keep_queries``, ``twice_scaled``, ``OfficialGridPool`` …), off by default.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.depict import DecoderModel
from .build_attention import ATTENTIONS
from .build_layers import LAYERS
from .build_networks import NETWORKS
from .checkpoint import load_checkpoint
from .entries import Entry
from .options import Options, Weights
from .tables import table_of

__all__ = ["KINDS", "NETWORKS", "from_official", "guess_kind", "load_checkpoint", "to_official"]

BUILDERS = {**LAYERS, **ATTENTIONS, **NETWORKS}

KINDS: tuple[str, ...] = tuple(BUILDERS)
"""Everything that :func:`from_official` can build."""

FAMILIES = ({"crate", "cbt", "cbt-hybrid", "tost"}, {"vit", "deit", "mita-deit"}, *({kind} for kind in KINDS))
"""Kinds that keys alone do not tell apart, or whose builders say themselves which of them it is."""


def from_official(kind: str, state_dict: Mapping[str, Tensor], /, **config: Any) -> nn.Module:
    """A module with released weights, in evaluation mode, that computes what the released module computes.

    Parameters
    ----------
        kind: one of :data:`KINDS`. state_dict: the released module's, every key of which is used. config: the released
        constructor's own arguments (``dim``, ``heads``, ``image_size``, ``kv_topk`` …): what the weights tell is held
        against them, what they do not tell is asked for by name; an argument that the kind does not have is an error.
        Arguments that the released constructor takes without effect are accepted.
    Calls
        layers return what released modules return: the update, without the residual. Decoders are called
        ``module(tokens, im_size=(H, W))``, DEPICT's cross-attention ``module(tokens, query=…)``.
    Dtype
        that of the weights; the wider one where they have several.

    Raises
    ------
        ValueError for an unknown kind, missing or unknown keys, wrong shapes, and arguments that are missing, unknown or
        contradict the weights; TypeError for a state dictionary that is none.
    Claims
        compat.<kind> for every kind, hyphens read as underscores, and compat.round_trip

    >>> from unrolling import ISTA
    >>> kind, state = to_official(ISTA(4))
    >>> from_official(kind, state, dim=4)
    ISTA(dim=4, nonnegative=True, certified=False)
    """
    if kind not in KINDS:
        near = ", ".join(difflib.get_close_matches(str(kind), KINDS, n=3, cutoff=0.3))
        raise ValueError(
            f"from_official: no kind {kind!r}." + (f" Nearest: {near}." if near else "") + f" All: {', '.join(KINDS)}."
        )
    state = _checked(kind, state_dict)
    options = Options(kind, config)
    size = options.take("im_size")
    dtype = _dtype_of(state)
    try:
        with _built_in(dtype):
            module = BUILDERS[kind](Weights(kind, state), options)
    except ValueError as problem:
        guess = guess_kind(state)
        related = guess is None or any({kind, guess} <= family for family in FAMILIES)
        text = str(problem) if str(problem).startswith("from_official(") else f"from_official({kind!r}): {problem}"
        raise ValueError(text if related else f"{text} By their keys these weights are of kind {guess!r}.") from None
    options.done()
    if size is not None:
        if not isinstance(module, DecoderModel):
            raise options.error("im_size is an argument of decoders.")
        module.im_size = options.sides("im_size", size)
    made, entries = table_of(module)
    if made != kind and not (made in ("tost", "crate", "cbt") and kind in ("tost", "crate", "cbt")):
        raise options.error(f"these weights are of kind {made!r}.")
    _fill(kind, module.to(dtype), entries, state)
    return module.eval()


def to_official(module: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """The kind of a module, and its weights under the released names, ready for the released ``load_state_dict``.

    A network without ``compat`` gives its weights too; the released code then pools the patches a little differently.

    Raises
    ------
        TypeError for a module without a released counterpart; ValueError where its options have none (a tied output, an
        exact form, a learned ISTA step, attention that was exchanged).
    """
    if any(getattr(part, "adaptations", None) for part in module.modules()):
        raise ValueError(
            "to_official: its attention was exchanged (unrolling.adapt), which the released names do not tell. Write the"
            " weights of the network that it was made from: they are the same."
        )
    kind, entries = table_of(module)
    return kind, {name: tensor.detach().clone() for name, tensor in _released(module, entries).items()}


def guess_kind(state_dict: Mapping[str, Tensor]) -> str | None:
    """The kind of network that a state dictionary is of, by its keys; None where none fits.

    Keys do not tell Segmenter's ViT from DeiT, nor either from one with MiTA's attention: these are "deit" here.
    """
    names = {name for name in state_dict if isinstance(name, str)}

    def some(*parts: str) -> bool:
        return all(any(part in name for name in names) for part in parts)

    if some("encoder.pos_embed", "decoder."):
        return "segmenter"
    if some("pos_embedding", "transformer.layers."):
        kinds = {"step_x": "cbt", "temp": "tost"}
        found = {kind for part, kind in kinds.items() if any(name.endswith(f".fn.{part}") for name in names)}
        plain = {name.split(".0.fn.")[0] for name in names if name.endswith(".0.fn.qkv.weight")}
        special = {name.split(".0.fn.")[0] for name in names if name.endswith((".fn.temp", ".fn.step_x"))}
        if plain - special:
            found.add("crate")
        return found.pop() if len(found) == 1 else "cbt-hybrid"
    rules = (
        (("cls_attn_blocks.", "pos_embeder."), "tost"),
        (("cnet.layers.", "cls_emb"), "depict-ca"),
        (("net.layers.", "fn.step_rep", "cls_emb"), "cbt-decoder"),
        (("net.layers.", "fn.step_size", "cls_emb"), "depict-sa"),
        (("proj_dec.weight", "cls_emb"), "segmenter-mask"),
        (("blocks.", "gamma_1", "patch_embed."), "mita-vit5"),
        (("blocks.", "attn.rope", "patch_embed."), "mita-vit5"),
        (("blocks.", "reg_token", "patch_embed."), "mita-vit5"),
        (("blocks.", "attn.qkvg.weight", "pos_embed"), "mita-deit"),
        (("blocks.", "attn.dwc.weight", "pos_embed"), "mita-deit"),
        (("blocks.", "attn.qkv.weight", "pos_embed"), "deit"),
    )
    if names in ({"head.weight"}, {"head.weight", "head.bias"}):
        return "segmenter-linear"
    return next((kind for parts, kind in rules if some(*parts)), None)


def _checked(kind: str, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise TypeError(
            f"from_official({kind!r}): the weights must be a state dictionary, but are a {type(state).__name__}."
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"from_official({kind!r}): every value must be a tensor, but {name!r} is a {type(value).__name__};"
                " a whole checkpoint is read by load_checkpoint(path)."
            )
        if value.numel() == 0:
            raise ValueError(f"from_official({kind!r}): {name} is empty: its shape is {tuple(value.shape)}.")
    return dict(state)


def _dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds all weights without loss; single precision where there are none."""
    kinds = {value.dtype for value in state.values() if value.is_floating_point()}
    return functools.reduce(torch.promote_types, kinds) if kinds else torch.float32


@contextlib.contextmanager
def _built_in(dtype: torch.dtype) -> Iterator[None]:
    """Constants of the code, like ISTA's η, made in double precision for weights that are; in single for all others."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == torch.float64 else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _at(module: nn.Module, path: str) -> Tensor:
    return functools.reduce(getattr, path.split("."), module)  # type: ignore[return-value]


def _released(module: nn.Module, entries: list[Entry]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for entry in entries:
        found.update(zip(entry.theirs, entry.save([_at(module, name) for name in entry.ours]), strict=True))
    return found


@torch.no_grad()
def _fill(kind: str, module: nn.Module, entries: list[Entry], state: Mapping[str, Tensor]) -> None:
    """Copy every tensor to its place, or raise with all that do not fit and copy nothing."""
    expected = {name: tuple(tensor.shape) for name, tensor in _released(module, entries).items()}
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [name for name in expected if name in state and tuple(state[name].shape) != expected[name]]
    if missing or unknown or wrong:
        parts = [f"missing keys {missing}"] if missing else []
        parts += [f"unknown keys {unknown}"] if unknown else []
        parts += [f"{name} is {tuple(state[name].shape)}, but must be {expected[name]}" for name in wrong]
        raise ValueError(f"from_official({kind!r}): the weights do not fit: {'; '.join(parts)}.")
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    for entry in entries:
        values = entry.load([state[name] for name in entry.theirs])
        for name, value in zip(entry.ours, values, strict=True):
            if name not in own:
                raise ValueError(f"from_official({kind!r}): {name} is computed here, and cannot be filled.")
            _at(module, name).copy_(value)
