"""The state of a training, in one safetensors file that is whole or not there, for any number of processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["fingerprint", "load_training", "read_training", "save_training", "write_text", "written_whole"]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which is moved there when all is written and on the disk, or removed.

    Raises
    ------
        OSError with the file's name, as on a full disk; what was at ``path`` is then still there.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as problem:
        partial.unlink(missing_ok=True)
        # safetensors reports a full disk as an error of its own
        if isinstance(problem, Exception) and ("No space" in str(problem) or isinstance(problem, OSError)):
            kept = " The one before it is intact." if path.exists() else ""
            raise OSError(f"{path} could not be written ({problem}).{kept}") from None
        raise


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values of weights, in the order of their names.

    Not of a file: safetensors writes the entries of its header in any order.

    >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2)}) != fingerprint({"a": torch.ones(2)})
    True
    """
    known = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        known.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        known.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


JOINT = "::"
"""Between a parameter's name and what the optimiser holds of it."""


def save_training(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    position: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights, the optimiser's tensors, the weights' moving average and the position; called on all processes.

    position: plain data: seed, step, and sums that run. Random numbers depend on seed and step alone, so that nothing else
    is needed to go on as if nothing had happened.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    weights: dict[str, Any] = get_model_state_dict(model, options=_options())
    moments: dict[str, Any] = get_optimizer_state_dict(model, optimiser, options=_options())
    state = {f"model.{name}": tensor for name, tensor in weights.items()}
    for name, held in moments.get("state", {}).items():  # nothing on other processes than the first
        state |= {f"optimiser.{name}{JOINT}{key}": value for key, value in held.items() if isinstance(value, Tensor)}
    for name, tensor in (average or {}).items():
        state[f"average.{name}"] = _full(tensor)
    if not dist.is_initialized() or dist.get_rank() == 0:
        from safetensors.torch import save_file

        # shared tensors are written under each of their names: they are small, and come back under each
        apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        with written_whole(path) as partial:
            save_file(apart, partial, metadata={"position": json.dumps(position)})
    if dist.is_initialized():
        dist.barrier()


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def read_training(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the position of a file of :func:`save_training`.

    Raises
    ------
        ValueError for a file that is none.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            position = json.loads((file.metadata() or {})["position"])
            return {name: file.get_tensor(name) for name in file.keys()}, position
    except Exception as problem:
        raise ValueError(f"{path}: is no checkpoint of a training ({type(problem).__name__}: {problem}).") from None


def load_training(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    """Puts a saved state into model, optimiser and average, in place; returns the position.

    Raises
    ------
        ValueError for a file that is none, and for weights of another model.
    """
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    state, position = read_training(path)
    part: dict[str, dict[str, Any]] = {
        kind: {name.removeprefix(kind): tensor for name, tensor in state.items() if name.startswith(kind)}
        for kind in ("model.", "optimiser.", "average.")
    }
    try:
        set_model_state_dict(model, part["model."], options=_options())
        moments: dict[str, Any] = get_optimizer_state_dict(model, optimiser, options=_options())
        of: dict[str, Any] = {}
        for name, tensor in part["optimiser."].items():
            parameter, _, key = name.partition(JOINT)
            of.setdefault(parameter, {})[key] = tensor
        set_optimizer_state_dict(model, optimiser, {**moments, "state": of}, options=_options())
    except (RuntimeError, KeyError, ValueError) as problem:
        raise ValueError(f"{path}: does not fit this model ({problem}).") from None
    for name, tensor in (average or {}).items():
        held = part["average."].get(name)
        if held is None:
            raise ValueError(f"{path}: has no moving average of {name}; was it trained without one?")
        tensor.copy_(_like(held, tensor))
    return position


def _like(full: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, shared out as another one is."""
    if not isinstance(tensor, DTensor):
        return full.to(tensor.device)
    return distribute_tensor(full.to(tensor.device), tensor.device_mesh, tensor.placements)
