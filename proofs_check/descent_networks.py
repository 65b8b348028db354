"""What each attention and each feed-forward block of a network sees and adds: by hooks, or by the stages of our models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unrolling import ISTA, Stage, SubspaceLayer, UnrolledLayer, adapt, models

__all__ = ["Attended", "Fed", "Matrices", "attentions_of", "class_of", "matrices_of", "watch"]

OUTPUTS = ("output", "proj", "o_proj", "out_proj")
TRIPLES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
BLOCK = ("attention", "seen", "attend", "feed")
"""What a block of this library's networks has."""
SPLIT = 1e-3
"""The share of an update that its heads may miss, beside the bias, before it counts as not split by heads."""


@dataclass(frozen=True)
class Matrices:
    """The projections of an attention, ``(heads, dim, head_dim)`` each, its scale, and the number of its heads."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float

    @property
    def heads(self) -> int:
        """How many."""
        return self.value.shape[0]


@dataclass(frozen=True)
class Attended:
    """One attention on some images.

    name: of the block. layer: the module. seen: what it sees, ``(images, tokens, dim)``. update: what it adds, alike.
    parts: what every head adds, each like update, or None with the reason in why. grid: of the patches, where known.
    """

    name: str
    layer: nn.Module
    seen: Tensor
    update: Tensor
    parts: tuple[Tensor, ...] | None
    why: str = ""
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Fed:
    """One feed-forward block on some images; hidden: what enters its last linear map, None where that tells nothing."""

    name: str
    layer: str
    seen: Tensor
    update: Tensor
    hidden: Tensor | None = None
    ista: ISTA | None = None


def attentions_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every attention of a network, found by structure, with its name; see :mod:`unrolling.adapt`."""
    return [(name or "the network", module) for name, module in adapt.structures.candidates(model)]


def class_of(layer: nn.Module) -> str:
    """The name of a module's class, without what a parametrization puts before it."""
    kind = type(layer)
    return kind.__mro__[1].__name__ if parametrize.is_parametrized(layer) else kind.__name__


def matrices_of(layer: nn.Module) -> Matrices:
    """Queries, keys and values of an attention; those of a layer of subspaces are its bases.

    Raises
    ------
        TypeError that says what the module has not.
    """
    name = class_of(layer)
    if isinstance(layer, SubspaceLayer):
        U = layer.U.detach()
        return Matrices(U, U, U, layer.scale)
    heads = adapt.structures.heads_of(layer)
    own: Any = layer
    if getattr(layer, "projections", None) == "identity":
        eye = torch.eye(own.dim, dtype=own.step.dtype, device=own.step.device)
        U = eye.unflatten(-1, (heads, -1)).transpose(0, 1)
        return Matrices(U, U, U, float(own.scale))
    triple = _triple(layer)
    if _linear(layer, "qkv"):
        thirds = own.qkv.weight.detach().chunk(3)
    elif isinstance(getattr(layer, "in_proj_weight", None), Tensor):
        thirds = own.in_proj_weight.detach().chunk(3)
    elif triple is not None:
        thirds = tuple(getattr(layer, part).weight.detach() for part in triple)
    else:
        raise TypeError(f"a {name} has no projections of a known structure")
    if not heads or any(third.shape != thirds[0].shape or third.shape[0] % heads for third in thirds):
        shapes = ", ".join(str(tuple(third.shape)) for third in thirds)
        raise TypeError(f"the projections of a {name} are {shapes}, not three alike for {heads} heads")
    split = [third.unflatten(0, (heads, -1)).mT for third in thirds]
    scale = next((getattr(layer, s) for s in ("scale", "scaling") if isinstance(getattr(layer, s, None), float)), None)
    return Matrices(split[0], split[1], split[2], split[0].shape[-1] ** -0.5 if scale is None else scale)


@torch.no_grad()
def watch(model: nn.Module, x: Tensor, call: Mapping[str, Any]) -> tuple[list[Attended], list[Fed], dict[str, str]]:
    """Run a network; what every attention and feed-forward block saw and added, and what could not be recorded, and why."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if isinstance(model, models.Model) and type(model).stages is not models.Model.stages:
            return _stages(model.stages(x, **call))
        return _hooked(model, x, call)
    finally:
        for module, mode in training.items():
            module.training = mode


# ------------------------------------------------------------------------------------------------ this library's models


def _stages(stages: Iterator[Stage]) -> tuple[list[Attended], list[Fed], dict[str, str]]:
    attended, fed = [], []
    for stage in stages:
        block, layer = stage.block, stage.block.attention
        seen = block.seen(stage.x)
        with _caught(_output(layer)) as joined:
            between = block.attend(stage.x, stage.grid)
        update = between - stage.x
        parts, why = _parts(layer, _output(layer), joined, seen, update, getattr(block, "gamma1", None))
        attended.append(Attended(stage.name, layer, seen, update, parts, why, stage.grid))
        inner = next((m for m in block.children() if isinstance(m, ISTA) or _linear(m, "fc2")), None)
        if inner is None:
            continue
        last = getattr(inner, "fc2", None)
        with _caught(inner) as entered, _caught(last) as hidden:
            after = block.feed(between)
        if isinstance(inner, ISTA):
            fed.append(Fed(stage.name, "ISTA", entered[0], after - entered[0], None, inner))
        else:
            fed.append(
                Fed(stage.name, type(inner).__name__, entered[0], after - between, hidden[0] if hidden else None)
            )
    return attended, fed, {}


@contextmanager
def _caught(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What enters a module, at every call."""
    held: list[Tensor] = []
    if module is None:
        yield held
        return
    hook = module.register_forward_pre_hook(lambda _, given: held.append(given[0]))
    try:
        yield held
    finally:
        hook.remove()


# ------------------------------------------------------------------------------------------------------- other networks


def _hooked(model: nn.Module, x: Tensor, call: Mapping[str, Any]) -> tuple[list[Attended], list[Fed], dict[str, str]]:
    ours = {name: m for name, m in model.named_modules() if all(hasattr(m, part) for part in BLOCK)}
    found = [pair for pair in attentions_of(model) if not any(pair[0].startswith(f"{name}.") for name in ours)]
    stages: list[Stage] = []
    events: list[tuple[str, nn.Module, Tensor, Any]] = []
    joined: dict[str, list[Tensor]] = {name: [] for name, _ in found}
    returned: dict[str, list[Tensor]] = {name: [] for name, _ in found}
    outside = {name: _output(module) or _beside(model, name, module) for name, module in found}
    feeds = _feeds(model, [name for name, _ in found])
    entered: dict[str, list[Tensor]] = {name: [] for name in feeds}
    left: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in feeds}
    hooks: list[Any] = []

    def attended(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            events.append((name, module, _tokens(given, named), out[0] if isinstance(out, tuple) else out))

        return hook

    try:
        for name, module in ours.items():  # they call ``adds`` of their attention, which no hook sees
            hooks.append(module.register_forward_pre_hook(_stage(name, stages)))
        for name, module in found:
            hooks.append(module.register_forward_hook(attended(name), with_kwargs=True))
            if (last := outside[name]) is not None:
                hooks.append(last.register_forward_hook(_keep(joined[name], returned[name])))
        for name, (first, last) in feeds.items():
            hooks.append(first.register_forward_pre_hook(_keep_first(entered[name])))
            hooks.append(last.register_forward_hook(lambda _, given, out, to=left[name]: to.append((given[0], out))))
        turned = x.ndim == 3 and any(getattr(module, "batch_first", True) is False for _, module in found)
        model(x.transpose(0, 1) if turned else x, **call)
    finally:
        for handle in hooks:
            handle.remove()
    records, refused = [], {name: "it was not called" for name, _ in found}
    calls: dict[str, int] = {}
    for name, module, seen, out in events:
        number = calls[name] = calls.get(name, -1) + 1
        refused.pop(name, None)
        if _output(module) is None and len(returned[name]) > number:
            out = returned[name][number]  # the output matrix is the parent's
        if isinstance(module, nn.MultiheadAttention) or hasattr(module, "in_proj_weight"):
            if not getattr(module, "batch_first", True):
                seen, out = (t.transpose(0, 1) for t in (seen, out))
        if seen.ndim != 3 or out.shape != seen.shape or len(seen) != len(x):
            refused[name] = f"it sees {tuple(seen.shape)} and returns {tuple(out.shape)} for {len(x)} images"
            continue
        update = out - seen if isinstance(module, UnrolledLayer) else out
        parts, why = _parts(module, outside[name], joined[name][number : number + 1], seen, update, None)
        label = name if number == 0 else f"{name}, call {number + 1}"
        records.append(Attended(label, module, seen, update, parts, why))
    refused |= {s.name: f"it sees {tuple(s.x.shape)} for {len(x)} images" for s in stages if len(s.x) != len(x)}
    own, fed, _ = _stages(iter([stage for stage in stages if len(stage.x) == len(x)]))
    return own + records, fed + _fed(feeds, entered, left, len(x), model), refused


def _stage(name: str, stages: list[Stage]) -> Any:
    def hook(block: nn.Module, given: tuple[Any, ...]) -> None:
        number = 1 + sum(stage.block is block for stage in stages)
        grid: Any = given[1] if len(given) > 1 else None
        stages.append(Stage(name if number == 1 else f"{name}, call {number}", block, given[0], grid))

    return hook


def _keep(inputs: list[Tensor], outputs: list[Tensor]) -> Any:
    def hook(_: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        inputs.append(given[0])
        outputs.append(out)

    return hook


def _keep_first(inputs: list[Tensor]) -> Any:
    def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.append(given[0])

    return hook


def _tokens(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    return next(value for value in (*given, *named.values()) if isinstance(value, Tensor))


def _fed(
    feeds: Mapping[str, tuple[nn.Module, nn.Module]],
    entered: Mapping[str, list[Tensor]],
    left: Mapping[str, list[tuple[Tensor, Tensor]]],
    images: int,
    model: nn.Module,
) -> list[Fed]:
    records = []
    for name, (first, last) in feeds.items():
        for seen, (hidden, update) in zip(entered[name], left[name], strict=False):
            if seen.ndim == 3 and _sequence_first(model, name):
                seen, update, hidden = (t.transpose(0, 1) for t in (seen, update, hidden))
            if seen.ndim != 3 or len(seen) != images or seen.shape != update.shape:
                continue
            gated = getattr(first, "out_features", None) != getattr(last, "in_features", 0)
            records.append(Fed(name, "MLP", seen, update, None if gated else hidden))
    return records


def _sequence_first(model: nn.Module, name: str) -> bool:
    """Whether a block of torch's takes tokens before images."""
    holder = model.get_submodule(name.partition(":")[0])
    inner = [m for m in holder.modules() if isinstance(m, nn.MultiheadAttention) or hasattr(m, "in_proj_weight")]
    return any(not getattr(module, "batch_first", True) for module in inner)


def _feeds(model: nn.Module, names: list[str]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The linear maps beside every attention that lead from its width and back to it: first and last, by the block."""
    found: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name in names:
        path = name.split(".")
        for length in range(len(path) - 1, -1, -1):
            holder = ".".join(path[:length])
            if sum(other.startswith(f"{holder}." if holder else "") for other in names) > 1:
                break
            block = model.get_submodule(holder)
            inside = name[len(holder) :].lstrip(".")
            maps = [m for own, m in block.named_modules() if _is_map(m) and not f"{own}.".startswith(f"{inside}.")]
            if (pair := _pair(maps)) is not None:
                found[f"{holder}: feed-forward" if holder else ": feed-forward"] = pair
                break
    return found


def _pair(maps: list[Any]) -> tuple[nn.Module, nn.Module] | None:
    for at in range(len(maps) - 1, 0, -1):
        last = maps[at]
        for first in maps[:at]:
            if first.in_features == last.out_features and first.out_features in (
                last.in_features,
                2 * last.in_features,
            ):
                return first, last
    return None


# ----------------------------------------------------------------------------------------------------- what heads return


def _parts(
    layer: nn.Module,
    output: nn.Module | None,
    joined: list[Tensor],
    seen: Tensor,
    update: Tensor,
    gamma: Tensor | None,
) -> tuple[tuple[Tensor, ...] | None, str]:
    """What every head adds, or None and why it cannot be told."""
    if isinstance(layer, SubspaceLayer) and layer.tied:
        flat = layer.basis.detach()
        matrix, bias = flat, None
        if flat.shape[1] > flat.shape[0]:
            return None, "its bases span the width more than once"
        read = update if gamma is None else update / gamma
        source = read @ torch.linalg.pinv(flat.float() if flat.dtype.itemsize < 4 else flat).mT.to(read.dtype)
    elif output is not None and joined:
        own: Any = output
        matrix, bias, source = own.weight.detach(), own.bias, joined[0]
        if source.shape[:-1] != update.shape[:-1]:
            source = source.transpose(0, 1) if source.ndim == 3 else source.reshape(*update.shape[:-1], -1)
    elif isinstance(layer, nn.MultiheadAttention) and isinstance(layer.in_proj_weight, Tensor):
        matrix, bias, source = layer.out_proj.weight.detach(), layer.out_proj.bias, _read(layer, seen)
    else:
        return None, "its output matrix was not found"
    try:
        heads = matrices_of(layer).heads
    except TypeError:
        heads = adapt.structures.heads_of(layer)
    if not heads or source.shape[-1] != matrix.shape[1] or matrix.shape[1] % heads:
        return None, f"{source.shape[-1]} numbers of a token are not shared out by {heads} heads"
    if gamma is not None:
        matrix = gamma[:, None] * matrix
        bias = None if bias is None else gamma * bias
    blocks = matrix.unflatten(-1, (heads, -1))
    split = source.unflatten(-1, (heads, -1))
    parts = tuple(split[..., head, :] @ blocks[:, head].mT for head in range(heads))
    rest = update - sum(parts) - (0.0 if bias is None else bias)
    if not float(rest.norm()) <= SPLIT * max(float(update.norm()), torch.finfo(update.dtype).tiny):
        return None, "its update is not the sum of what its heads add"
    return parts, ""


def _read(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """What torch's heads have read, side by side: it is computed there without calling ``out_proj``."""
    flat = nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias)
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)).transpose(-3, -2) for part in flat.chunk(3, -1))
    P = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    return (P @ v).transpose(-3, -2).flatten(-2)


def _output(layer: nn.Module) -> nn.Module | None:
    """The output matrix, where it is a module that is called."""
    if isinstance(layer, nn.MultiheadAttention):
        return None
    return next((getattr(layer, name) for name in OUTPUTS if _linear(layer, name)), None)


def _beside(model: nn.Module, name: str, layer: nn.Module) -> nn.Module | None:
    """The output matrix of an attention whose parent holds it, as in older Hugging Face models."""
    if _triple(layer) is None or "." not in name:
        return None
    holder, _, own = name.rpartition(".")
    maps: list[Any] = [
        m for inside, m in model.get_submodule(holder).named_modules() if _is_map(m) and inside.split(".")[0] != own
    ]
    width = getattr(getattr(layer, (_triple(layer) or ("",))[0]), "in_features", 0)
    fits = [m for m in maps if m.in_features == m.out_features == width]
    return fits[0] if len(fits) == len(maps) == 1 else None


def _triple(layer: nn.Module) -> tuple[str, str, str] | None:
    return next((names for names in TRIPLES if all(_linear(layer, name) for name in names)), None)


def _linear(module: nn.Module, name: str) -> bool:
    part = getattr(module, name, None)
    return isinstance(part, nn.Module) and _is_map(part)


def _is_map(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
