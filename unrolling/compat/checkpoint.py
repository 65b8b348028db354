"""Checkpoint files, read without executing anything that stands in them."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["load_checkpoint"]

SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt", ".safetensors")
WRAPPERS = ("model", "state_dict", "module")
"""Names under which released files keep the state dictionary, in the order in which they are tried."""

REFUSALS = ("GLOBAL ", "create new object", "call reduce", "Can only build")
"""What torch's reader says of pickles that ask for more than tensors and plain data; other errors are of broken files."""

DEEPEST = 8
"""Wrappers that are opened inside one another: a file may hold itself."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What data parallelism, compilation and wrapping modules put before every key."""


def load_checkpoint(path: str | os.PathLike[str], *, key: str | None = None) -> dict[str, Tensor]:
    """The state dictionary in a ``.pth``, ``.pth.tar``, ``.pt``, ``.bin`` or ``.safetensors`` file, on the CPU.

    Parameters
    ----------
        key: the entry to take where a file holds several (``"model_ema"``); by default ``model``, ``state_dict`` or
        ``module``. Prefixes that all keys share (``module.``) are taken off.
    Safety
        tensors are read with ``weights_only=True``: a file whose pickle asks for code is refused, and nothing of it runs.

    Raises
    ------
        ValueError with the reason for a missing, empty, corrupt or pickled file, another suffix, or no tensors inside.
    """
    source = Path(path)
    if source.is_dir():
        raise ValueError(f"{source}: is a folder; give a file.")
    if not source.is_file():
        raise ValueError(f"{source}: no such file.")
    if source.stat().st_size == 0:
        raise ValueError(f"{source}: the file is empty.")
    if source.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{source}: checkpoints end in {', '.join(SUFFIXES)}, but this one in {source.suffix!r}.")
    content = _safetensors(source) if source.suffix.lower() == ".safetensors" else _torch(source)
    return _stripped(_unwrapped(content, key, source), source)


def _safetensors(source: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(source)
    except Exception as problem:
        raise ValueError(f"{source}: cannot be read as safetensors ({problem}). Is the file whole?") from None


def _torch(source: Path) -> Any:
    try:
        # Checkpoints of DeiT and its kin keep the command's arguments; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as problem:
        text = str(problem)
        if any(part in text for part in REFUSALS):
            wanted = (
                text.split("GLOBAL ", 1)[1].split(" ", 1)[0] if "GLOBAL " in text else "objects that are no tensors"
            )
            raise ValueError(
                f"{source}: asks for {wanted} to be loaded, which could run code; refused, and nothing was executed."
                " Save the state dictionary alone: torch.save(model.state_dict(), …), or as .safetensors."
            ) from None
        whole = "" if zipfile.is_zipfile(source) else " It is no archive of torch.save; is the file whole?"
        raise ValueError(f"{source}: cannot be read as a checkpoint ({type(problem).__name__}).{whole}") from None


def _unwrapped(content: Any, key: str | None, source: Path) -> Mapping[str, Any]:
    if isinstance(content, Mapping) and key is not None:
        if key not in content:
            raise ValueError(f"{source}: has no entry {key!r}; it has {', '.join(map(str, list(content)[:10]))}.")
        content = content[key]
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping) or _is_state(content):
            break
        inner = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            found = {str(name): type(value).__name__ for name, value in list(content.items())[:8]}
            raise ValueError(
                f"{source}: holds no state dictionary under {', '.join(WRAPPERS)}; it holds {found}. Pass key=… for another."
            )
        content = content[inner]
    if not isinstance(content, Mapping) or not _is_state(content):
        raise ValueError(f"{source}: holds a {type(content).__name__}, not a state dictionary.")
    return content


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _stripped(state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    names = dict(state)
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if names and all(name.startswith(prefix) for name in names):
                names, changed = {name[len(prefix) :]: value for name, value in names.items()}, True
    if len(names) != len(state) or "" in names:
        raise ValueError(f"{source}: its keys cannot be told apart without their prefix.")
    return names
