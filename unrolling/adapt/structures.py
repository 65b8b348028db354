"""Which modules are attentions, of which structure, and why some cannot be adapted: by attributes, never by import."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import AttentionLayer
from ..subspace import SubspaceLayer
from .formulas import Formula, Full, Routed
from .modules import DROPOUTS, OUTPUTS, Adaptation, Adapted, FusedAdapted, SeparateAdapted, TorchAdapted, triple_of

__all__ = ["LOOKED_FOR", "Unsuitable", "candidates", "plan_for", "suits_ours"]

LOOKED_FOR = (
    "qkv (a Linear of three times the width), proj and num_heads or heads (timm, DINO, DeiT, Segmenter);"
    " in_proj_weight, out_proj and num_heads (torch.nn.MultiheadAttention);"
    " query, key, value, or q_proj, k_proj, v_proj, and num_attention_heads or num_heads (Hugging Face);"
    " attentions of this library"
)
HEADS = ("num_heads", "num_attention_heads", "heads")
SCALES = ("scale", "scaling")
POSITIONS = re.compile("relative|rel_pos|attention_bias|distance_embedding")
ROTARY = re.compile("rope|rotary|freqs|position_embeddings")
CROSS = re.compile("cross(?!_?cov)|encoder_attn|multihead_attn", re.IGNORECASE)
POOL = re.compile("(attention|attn).?pool", re.IGNORECASE)
KNOWN: dict[type[Adapted], set[str]] = {
    FusedAdapted: {"qkv", "proj", "q_norm", "k_norm", "norm", "gate", "attn_drop", "proj_drop"},
    SeparateAdapted: {"query", "key", "value", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", *OUTPUTS, *DROPOUTS},
    TorchAdapted: {"in_proj_weight", "in_proj_bias", "out_proj"},
}
TOKENS = 5
"""Tokens that a candidate and its formula are compared on: enough for a softmax over another axis to show."""


class Unsuitable(ValueError):
    """Why one module cannot be adapted."""


def candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every attention of a model, and whatever looks like one and holds no other: names and modules."""
    found = {id(module): (name, module) for name, module in reversed(list(_below("", model)))}
    return list(reversed(found.values()))


def _below(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if structure_of(module) is not None:
        yield name, module
        return
    held = [hit for own, child in module.named_children() for hit in _below(f"{name}.{own}".lstrip("."), child)]
    yield from held
    if not held and _looks_like_attention(module):
        yield name, module


def structure_of(module: nn.Module) -> type[nn.Module] | None:
    """The class that takes a module's place, AttentionLayer for our own, or None for other modules."""
    if isinstance(module, Adapted):
        return type(module)
    if isinstance(module, AttentionLayer):
        return AttentionLayer
    if not heads_of(module):
        return None
    if _is_linear(module, "qkv") and _is_linear(module, "proj"):
        return FusedAdapted
    if hasattr(module, "in_proj_weight") and _is_linear(module, "out_proj"):
        return TorchAdapted
    triple = triple_of(module)
    return SeparateAdapted if triple and all(_is_linear(module, name) for name in triple) else None


def heads_of(module: nn.Module) -> int:
    """The number of heads of an attention, 0 where a module has none."""
    for name in HEADS:
        count = getattr(module, name, None)
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return 0


def _is_linear(module: nn.Module, name: str) -> bool:
    part = getattr(module, name, None)
    return isinstance(part, nn.Module) and hasattr(part, "in_features") and hasattr(part, "out_features")


def _looks_like_attention(module: nn.Module) -> bool:
    if next(module.parameters(), None) is None:
        return False
    marks = any(getattr(module, name, None) is not None for name in ("qkv", "to_qkv", "c_attn", "in_proj_weight"))
    positions = any(POSITIONS.search(name) for name in module._parameters)
    named = "attention" in type(module).__name__.lower()
    return marks or positions or named or heads_of(module) > 0 or isinstance(module, SubspaceLayer)


def plan_for(name: str, module: nn.Module, formula: Formula, holder: str = "") -> tuple[type[Adapted], Adaptation]:
    """The class that takes the module's place and what it computes; raises Unsuitable with the reason.

    ``holder`` is the class of the module that holds it.
    """
    if isinstance(module, Adapted):
        _check_instance(module)
        return type(module), dataclasses.replace(module.adaptation, name=name or "the model", formula=formula)
    _check_kind(name, module, holder)
    kind = structure_of(module)
    if kind is None or not issubclass(kind, Adapted):
        raise Unsuitable("it is none of the structures that can be adapted")
    _check_instance(module)
    if kind is TorchAdapted:
        _check_torch(module)
    arguments = _arguments(module, 3 if kind is TorchAdapted else 1)
    _check_tensors(module, KNOWN[kind])
    heads, width = heads_of(module), _width(module, kind)
    if heads < 1 or width % heads:
        raise Unsuitable(f"its {width} features are not shared out evenly by {heads} heads")
    scale, replaced = _scale_of(module, width // heads), type(module).__name__
    plan = Adaptation(name or "the model", replaced, formula, heads, scale, arguments)
    return kind, dataclasses.replace(plan, returns=_tried(module, kind, plan))


def suits_ours(module: AttentionLayer, formula: Formula) -> None:
    """Raise Unsuitable where one of this library's attentions has what a formula cannot keep."""
    _check_instance(module)
    if getattr(module, "agent_bias", None) is not None:
        raise Unsuitable("it has agent attention's learned position biases (agent_bias), which have no place elsewhere")
    if isinstance(formula, Routed) and module.dropout:
        raise Unsuitable(f"it drops {module.dropout:g} of its attention weights (dropout), which mita never stores")


def _check_kind(name: str, module: nn.Module, holder: str) -> None:
    """What is refused whatever its structure: the reason is more use than that no structure fits."""
    if isinstance(module, SubspaceLayer):
        raise Unsuitable("it is a layer of subspaces with one projection already, not attention with three")
    held = [entry for entry, _ in (*module.named_parameters(), *module.named_buffers())]
    if positions := sorted(entry for entry in held if POSITIONS.search(entry)):
        raise Unsuitable(f"it adds position biases to its scores ({', '.join(positions)}), which none of ours has")
    if getattr(module, "c_attn", None) is not None or any(
        getattr(module, mark, False) is True for mark in ("is_causal", "is_decoder")
    ):
        raise Unsuitable(
            "it is causal, of a language model (c_attn, is_causal or is_decoder): every token of ours reads all"
        )
    apart = all(getattr(module, part, None) is not None for part in ("q", "kv"))
    if apart or CROSS.search(name.rpartition(".")[2]) or CROSS.search(type(module).__name__):
        raise Unsuitable("it is cross-attention: its queries are of other tokens than its keys")
    if POOL.search(holder):
        raise Unsuitable(f"it pools tokens for its {holder}: its queries are of other tokens than its keys")
    kv_heads = [getattr(module, mark, None) for mark in ("num_kv_heads", "num_key_value_heads")]
    fewer = any(isinstance(count, int) and count != heads_of(module) for count in kv_heads)
    groups = getattr(module, "num_key_value_groups", 1)
    if fewer or (isinstance(groups, int) and groups > 1):
        raise Unsuitable("its keys and values have fewer heads than its queries (grouped): ours have as many")
    if turned := [argument for argument in _signature(module) if ROTARY.search(argument)]:
        raise Unsuitable(f"its call takes rotary embeddings ({', '.join(turned)}), which are no part of its structure")


def _check_instance(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise Unsuitable("it is compiled to TorchScript; adapt the model before scripting it")
    if "forward" in vars(module):
        raise Unsuitable("its forward was exchanged on the instance, by a hook or by hand; undo that first")


def _check_torch(module: Any) -> None:
    """The options of ``nn.MultiheadAttention`` that make it another function."""
    if module.in_proj_weight is None:
        raise Unsuitable("kdim or vdim differs from embed_dim: it is made for keys and values of other tokens")
    if getattr(module, "bias_k", None) is not None:
        raise Unsuitable("it has a learned key and value beside the tokens' (bias_k), which ours have not")
    if getattr(module, "add_zero_attn", False):
        raise Unsuitable("it attends to a zero key (add_zero_attn), which ours do not")


def _check_tensors(module: nn.Module, known: set[str]) -> None:
    """Every tensor must be one that a formula knows of, and so must every dropout that drops something."""
    named = [*module.named_parameters(), *module.named_buffers()]
    if unknown := sorted({name for name, _ in named if name.partition(".")[0] not in known}):
        raise Unsuitable(f"it holds what softmax attention does not: {', '.join(unknown)}")
    for name, part in module.named_children():
        share = getattr(part, "p", 0.0)
        if name not in known and isinstance(part, nn.Dropout) and share > 0:
            raise Unsuitable(f"it drops {share:g} of something that is not known ({name})")


def _width(module: Any, kind: type[Adapted]) -> int:
    """The features of all heads; raises Unsuitable for projections that are not three of them."""
    made, taken = 0, 0
    if kind is TorchAdapted:
        made, taken = module.in_proj_weight.shape[0], _sizes(module, "out_proj")[0]
    elif kind is FusedAdapted:
        made, taken = _sizes(module, "qkv")[1], _sizes(module, "proj")[0]
    else:
        sizes = [_sizes(module, name) for name in triple_of(module) or ()]
        if len({out for _, out in sizes}) > 1:
            raise Unsuitable("its keys and values have fewer heads than its queries (grouped): ours have as many")
        if len({features for features, _ in sizes}) > 1:
            raise Unsuitable("it is cross-attention: its keys are made of other features than its queries")
        made, taken = sum(out for _, out in sizes), sizes[0][1]
    if made != 3 * taken:
        raise Unsuitable(f"it makes {made} numbers of a token, not queries, keys and values of {taken} each")
    return taken


def _sizes(module: nn.Module, name: str) -> tuple[int, int]:
    """The features that a linear map takes and makes."""
    part: Any = getattr(module, name)
    return int(part.in_features), int(part.out_features)


def _scale_of(module: nn.Module, head_dim: int) -> float:
    for name in SCALES:
        scale = getattr(module, name, None)
        if scale is not None:
            if not isinstance(scale, (int, float)):
                raise Unsuitable(f"its {name} is a {type(scale).__name__}, not a number")
            return float(scale)
    return head_dim**-0.5


def _signature(module: nn.Module) -> dict[str, inspect.Parameter]:
    entries = list(inspect.signature(type(module).forward).parameters.items())
    return dict(entries[1:])


def _arguments(module: nn.Module, tokens: int) -> tuple[str, ...]:
    """The names of a call's arguments; the first ``tokens`` are token sets, others must have defaults."""
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    entries = [(name, entry) for name, entry in _signature(module).items() if entry.kind in by_place]
    if needed := [name for name, entry in entries[tokens:] if entry.default is inspect.Parameter.empty]:
        raise Unsuitable(f"its call needs more than tokens: {', '.join(needed)}")
    return tuple(name for name, _ in entries) or ("x",)


def _tried(module: nn.Module, kind: type[Adapted], plan: Adaptation) -> int:
    """Call a copy on random tokens, compare it with softmax attention of its parts: what nothing listed here can miss.

    Returns how many things the module returns in a tuple, 0 for a tensor.
    """
    floating = [tensor for tensor in module.parameters() if tensor.is_floating_point()]
    own = floating[0].dtype if floating else torch.get_default_dtype()
    device = floating[0].device if floating else torch.device("cpu")
    problem: Exception | None = None
    for dtype in (torch.float64, own) if device.type != "mps" else (own,):
        try:
            return _compared(module, kind, plan, dtype, device)
        except Unsuitable:
            raise
        except Exception as error:  # whatever a foreign forward may raise
            problem = error
    first = str(problem).strip().partition("\n")[0][:200]
    raise Unsuitable(f"calling it on tokens (batch, tokens, features) raises {type(problem).__name__}: {first}")


@torch.no_grad()
def _compared(
    module: nn.Module, kind: type[Adapted], plan: Adaptation, dtype: torch.dtype, device: torch.device
) -> int:
    # Hooks are the user's, and may record or copy anything: the copy has none.
    hooks: dict[int, object] = {id(part._forward_hooks): OrderedDict() for part in module.modules()}
    trial: Any = copy.deepcopy(module, hooks).eval().to(dtype)
    first = (triple_of(trial) or ("qkv",))[0]
    features = trial.in_proj_weight.shape[-1] if kind is TorchAdapted else _sizes(trial, first)[0]
    noise = torch.randn(2, TOKENS, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 2 * noise.to(device=device, dtype=dtype)
    tokens = (x, x, x) if kind is TorchAdapted else (x,)
    with torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False):
        expected = trial(*tokens)
        returns = len(expected) if isinstance(expected, tuple) else 0
        wanted = expected[0] if returns else expected
        if not isinstance(wanted, Tensor):
            raise Unsuitable(f"it returns a {type(expected).__name__}, not tokens or a tuple that starts with them")
        trial.__class__ = kind
        trial.adaptation = dataclasses.replace(plan, formula=Full(), returns=0)
        got = trial(*tokens)
    got = got[0] if isinstance(got, tuple) else got
    if got.shape != wanted.shape:
        raise Unsuitable(f"it returns {tuple(wanted.shape)} for tokens {tuple(x.shape)}: more, or less, than attention")
    if device.type == "meta":  # there are no numbers to compare
        return returns
    size = float(wanted.abs().max())
    error, tolerance = float((got - wanted).abs().max()), 1e-4 if dtype in (torch.float64, torch.float32) else 5e-2
    if not error <= tolerance * max(size, torch.finfo(dtype).tiny):
        raise Unsuitable(
            f"it is not softmax attention of its projections: on random tokens they differ by {error:.2g} of {size:.2g}"
        )
    return returns
