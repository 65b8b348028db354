"""What a layer holds, whoever wrote it: matrices among its parameters, or in the closure of a function; its heads."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Bases", "Projections", "bases_in", "heads_in", "held_tensors", "integers_in", "projections_in"]

HEADS = re.compile(r"(n_?|num_?|number_of_|attention_)*heads?(_count)?|nhead|n_head")
NAMES = {
    "query": r"(to_?|w_?)?(q|query|queries)(_?proj|_?linear)?",
    "key": r"(to_?|w_?)?(k|key|keys)(_?proj|_?linear)?",
    "value": r"(to_?|w_?)?(v|value|values)(_?proj|_?linear)?",
    "output": r"(to_?|w_?)?(o|out|output|proj|c_proj|wo)(_?proj|_?linear)?(\.0)?",
    "fused": r"(to_?|w_?)?(qkv|in|c_attn)(_?proj|_?linear)?",
}
MOST = 24
"""Bases, or sets of projections, that are tried."""


@dataclass(frozen=True)
class Bases:
    """Bases ``(heads, dim, head_dim)`` and where they were found."""

    U: Tensor
    words: str


@dataclass(frozen=True)
class Projections:
    """Matrices of an attention, to be multiplied from the right, with their biases; None for the identity."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    output: Tensor | None
    biases: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    heads: int
    words: str


def held_tensors(call: Any) -> dict[str, Tensor]:
    """Names and float64 tensors: of a module's parameters, buffers and parametrised attributes, or of what a function sees.

    A function sees its closure, its defaults, the globals that it names and, as a bound method or an instance, its object.
    """
    found: dict[str, Tensor] = {}

    def note(name: str, value: Any, depth: int) -> None:
        if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
            value = torch.from_numpy(np.array(value, dtype=np.float64))
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            found.setdefault(name, value.detach().cpu().to(torch.float64))
        elif isinstance(value, nn.Module):
            found.update({f"{name}.{key}".lstrip("."): tensor for key, tensor in _of_module(value)})
        elif depth and isinstance(value, (list, tuple)) and len(value) <= 64:
            for i, part in enumerate(value):
                note(f"{name}.{i}", part, depth - 1)
        elif depth and isinstance(value, dict) and len(value) <= 64:
            for key, part in value.items():
                note(f"{name}.{key}", part, depth - 1)

    for name, value in _seen_by(call):
        note(name, value, 2)
    return found


def heads_in(call: Any) -> list[int]:
    """Numbers of heads that attributes name, the most telling first; none if there are none."""
    named = [value for name, value in integers_in(call) if HEADS.fullmatch(name.rpartition(".")[2])]
    return list(dict.fromkeys(n for n in named if n >= 1))


def integers_in(call: Any) -> list[tuple[str, int]]:
    """Names and whole numbers, and pairs of them one by one, among the attributes of a layer and its parts."""
    found: list[tuple[str, int]] = []
    for name, value in _seen_by(call):
        parts = value.named_modules() if isinstance(value, nn.Module) else [("", value)]
        for prefix, part in parts:
            inside = vars(part).items() if isinstance(part, nn.Module) else [(name, part)]
            for key, number in inside:
                if isinstance(number, int) and not isinstance(number, bool):
                    found.append((f"{prefix}.{key}".lstrip("."), number))
    return found


def _seen_by(call: Any, depth: int = 3) -> Iterator[tuple[str, Any]]:
    if isinstance(call, functools.partial):
        yield from ((str(i), value) for i, value in enumerate(call.args))
        yield from call.keywords.items()
        call = call.func
    if isinstance(call, nn.Module):
        yield "", call
        return
    owner = getattr(call, "__self__", None)
    function = getattr(call, "__func__", call)
    if not hasattr(function, "__code__"):
        yield from getattr(call, "__dict__", {}).items()
        function = type(call).__call__
    elif owner is not None and not isinstance(owner, type(torch)):
        yield from [("", owner)] if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {}).items()
    code = getattr(function, "__code__", None)
    if code is None or function is None:
        return
    cells = zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=False)
    inside = [(name, cell.cell_contents) for name, cell in cells if _filled(cell)]
    inside += [(str(i), value) for i, value in enumerate(getattr(function, "__defaults__", None) or ())]
    inside += list((getattr(function, "__kwdefaults__", None) or {}).items())
    world = getattr(function, "__globals__", {})
    inside += [(name, world[name]) for name in _names(code) if name in world]
    for name, value in inside:
        yield name, value
        if depth and hasattr(value, "__code__") and not name.startswith("_"):
            yield from _seen_by(value, depth - 1)


def _names(code: Any) -> Iterator[str]:
    """Names that the code, and functions inside of it, look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            yield from _names(constant)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a name that is not bound yet
        return False


def _of_module(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, part in module.named_modules():
        if "parametrizations" in prefix.split("."):
            continue
        names = [*part._parameters, *part._buffers]
        names += list(part.parametrizations) if parametrize.is_parametrized(part) else []
        names += [name for name, value in vars(part).items() if isinstance(value, Tensor)]
        for name in dict.fromkeys(names):
            value = getattr(part, name)
            if isinstance(value, Tensor) and value.dtype.is_floating_point:
                yield f"{prefix}.{name}".lstrip("."), value.detach().cpu().to(torch.float64)


def bases_in(tensors: dict[str, Tensor], d: int, heads: Sequence[int]) -> list[Bases]:
    """Every way to read the matrices as bases of so many heads: as they are and, per head, orthonormalised."""
    found: list[Bases] = []
    for name, tensor in tensors.items():
        for flat, words in _as_columns(name, tensor, d):
            if isinstance(flat, Tensor) and flat.ndim == 3:
                found += _both(flat, words)
                continue
            for K in heads or [k for k in (1, 2, 3, 4, 6, 8, 12, 16) if flat.shape[-1] % k == 0]:
                if flat.shape[-1] % K == 0 and flat.shape[-1] // K <= d:
                    found += _both(flat.unflatten(-1, (K, -1)).transpose(0, 1).contiguous(), f"{words}, {K} heads")
    return _different(found)[:MOST]


def _as_columns(name: str, tensor: Tensor, d: int) -> Iterator[tuple[Tensor, str]]:
    shown = name or "a matrix"
    if tensor.ndim == 3 and tensor.shape[1] == d and tensor.shape[2] <= d:
        yield tensor, f"U = {shown}"
    if tensor.ndim == 3 and tensor.shape[2] == d and tensor.shape[1] < d:
        yield tensor.mT.contiguous(), f"U = {shown}, transposed"
    if tensor.ndim == 2 and tensor.shape[0] == d:
        yield tensor, f"U = {shown}"
    if tensor.ndim == 2 and tensor.shape[1] == d:
        yield tensor.mT.contiguous(), f"U = {shown}, transposed"
        if tensor.shape[0] % 3 == 0 and tensor.shape[0] > d:
            for part, words in zip(tensor.chunk(3), ("first", "second", "last"), strict=True):
                yield part.mT.contiguous(), f"U = the {words} third of {shown}"


def _both(U: Tensor, words: str) -> list[Bases]:
    if U.shape[-1] > U.shape[-2] or not bool(torch.isfinite(U).all()):
        return []
    left, sizes, right = torch.linalg.svd(U, full_matrices=False)
    if float(sizes.min()) <= 1e-6 * float(sizes.max()):
        return [Bases(U, words)]
    if float((sizes - 1).abs().max()) < 1e-9:
        return [Bases(U, words)]
    return [Bases(U, words), Bases(left @ right, f"{words}, orthonormalised")]


def _different(found: list[Bases]) -> list[Bases]:
    kept: list[Bases] = []
    for one in found:
        if not any(one.U.shape == other.U.shape and torch.equal(one.U, other.U) for other in kept):
            kept.append(one)
    return kept


def projections_in(tensors: dict[str, Tensor], d: int, heads: Sequence[int]) -> list[Projections]:
    """Every way to read the matrices as those of an attention: by their names, else in every order."""
    found = [Projections(None, None, None, None, (None,) * 4, K, f"no matrices, {K} heads") for K in heads or (1,)]
    parts: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, tensor in tensors.items():
        stem = re.sub(r"(^|[._])(weight|bias)$", "", name)
        own = stem.rpartition(".")[2] if not stem.endswith(".0") else ".".join(stem.split(".")[-2:])
        kind = next((kind for kind, pattern in NAMES.items() if re.fullmatch(pattern, own, re.I)), None)
        if kind is None or tensor.ndim != 2:
            continue
        # torch.nn.Linear holds (out, in); a bare matrix is multiplied as it is.
        linear = name.endswith("weight")
        parts[kind] = (
            tensor.mT if linear else tensor,
            tensors.get(name[: -len("weight")] + "bias") if linear else None,
        )
    if "fused" in parts and parts["fused"][0].shape[-1] % 3 == 0:
        matrix, bias = parts["fused"]
        biases = (None, None, None) if bias is None else bias.chunk(3)
        for kind, one, b in zip(("query", "key", "value"), matrix.chunk(3, dim=-1), biases, strict=True):
            parts[kind] = (one, b)
    if {"query", "key", "value"} <= set(parts):
        q, k, v = (parts[kind] for kind in ("query", "key", "value"))
        o = parts.get("output", (None, None))
        found += _with_heads((q[0], k[0], v[0], o[0]), (q[1], k[1], v[1], o[1]), heads, d, "matrices by their names")
    else:
        square = [tensor for tensor in tensors.values() if tensor.ndim == 2 and tensor.shape == (d, d)][:4]
        for turned, order in itertools.product(
            (False, True), itertools.permutations(square) if len(square) > 2 else ()
        ):
            four = [m.mT if turned else m for m in order]
            words = "matrices in another order" + (", transposed" if turned else "")
            padded = (four[0], four[1], four[2], four[3] if len(four) > 3 else None)
            found += _with_heads(padded, (None,) * 4, heads, d, words)
    return found


def _with_heads(
    matrices: tuple[Tensor, Tensor, Tensor, Tensor | None],
    biases: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    heads: Sequence[int],
    d: int,
    words: str,
) -> list[Projections]:
    inner = matrices[0].shape[-1]
    if any(m.shape != (d, inner) for m in matrices[:3] if m is not None):
        return []
    if matrices[3] is None and inner != d:
        return []
    if matrices[3] is not None and matrices[3].shape != (inner, d):
        return []
    options = [K for K in heads or (1, 2, 3, 4, 6, 8, 12, 16) if inner % K == 0]
    return [Projections(*matrices, biases, K, f"{words}, {K} heads") for K in options]
