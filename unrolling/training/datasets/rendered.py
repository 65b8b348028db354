"""What data sets that are made rather than read have in common: packages they need, and a place to keep what was made."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from torch import Tensor

from ...errors import check_count
from ..data import ArrayData, MissingData, Splits, cache_folder

__all__ = ["PARTS", "array_splits", "check_parts", "kept", "needed"]

PARTS = ("train", "val", "test")


def needed(owner: str, module: str, package: str) -> ModuleType:
    """The module, imported.

    Raises
    ------
        MissingData that names the package to install, where the module or one that it imports is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as problem:
        raise MissingData(
            f"{owner}: {problem.name} is not installed; install it with: pip install {package}."
        ) from None


def check_parts(owner: str, sizes: object, seed: object) -> None:
    """Raise unless sizes are three counts of at least 1, and the seed is an integer of at least 0."""
    if not isinstance(sizes, (tuple, list)) or len(sizes) != len(PARTS):
        raise ValueError(f"{owner}: sizes must be three counts, for {', '.join(PARTS)}, but is {sizes!r}.")
    for count in sizes:
        check_count(owner, "sizes", count)
    check_count(owner, "seed", seed, 0)


def array_splits(name: str, made: Mapping[str, Tensor], classes: Sequence[str], patch: int) -> Splits:
    """Parts by tensors "train.images", "train.masks" and so on; the statistics of all three are those of train."""
    parts: list[ArrayData] = []
    for part in PARTS:
        own = {"mean": parts[0].mean, "std": parts[0].std} if parts else {}
        parts.append(ArrayData(f"{name} {part}", made[f"{part}.images"], made[f"{part}.masks"], classes, **own))
    train, val, test = parts
    return Splits(train, val, test, patch=patch)


def kept(
    name: str, make: Callable[[], dict[str, Tensor]], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """What ``make`` gave the first time, from the cache folder; made anew where the file is missing or damaged.

    The file is whole whenever it is there: it is written beside its place and renamed. Reading it checks a sum over all
    names, shapes and bytes, and the shapes where they are given. ``name`` has to hold all that the tensors depend on.
    """
    path = cache_folder() / f"{name}.safetensors"
    found = _read(path)
    if found is None or (shapes is not None and {key: tuple(value.shape) for key, value in found.items()} != shapes):
        found = make()
        _write(path, found)
    return found


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            stored, found = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError):
        return None
    return found if stored.get("sum") == _sum(found) else None


def _write(path: Path, made: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(made, beside, metadata={"sum": _sum(made)})
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)


def _sum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for key in sorted(tensors):
        tensor = tensors[key]
        total = zlib.crc32(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode(), total)
        total = zlib.crc32(tensor.contiguous().numpy().reshape(-1).data, total)
    return f"{total:08x}"
