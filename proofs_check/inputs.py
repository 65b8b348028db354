"""Real input: tokens of a photograph, or of a file of the user's, brought to a width that the claims can use."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["InputError", "TokenInput", "default_image", "from_image", "from_tokens"]

WIDTH = 24
"""The width of the layer that the claims put to real tokens: three heads of eight dimensions."""

LARGEST = 1200
"""Tokens used at most: the naive references are N × N."""


class InputError(ValueError):
    """A file that holds no usable image or tokens."""


@dataclass(frozen=True)
class TokenInput:
    """Tokens to put the claims to.

    kind: "image" or "tokens". tokens ``(N, d)``, float64, centred, mean squared norm 1. grid: rows and columns of
    patches (1 × N for token files). image: the picture ``(H, W, 3)``, uint8, as cut; None for token files.
    patch: the patch's side in pixels. note: what was done to fit, for the report.
    """

    kind: str
    name: str
    tokens: NDArray[np.float64]
    grid: tuple[int, int]
    image: NDArray[np.uint8] | None = None
    patch: int = 0
    note: str = ""
    original: tuple[int, ...] = field(default=())


def default_image() -> Path:
    """The photograph that matplotlib ships: Grace Hopper, 512 × 600 pixels."""
    import matplotlib.cbook

    return Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def from_image(path: str | os.PathLike[str], patch: int = 16) -> TokenInput:
    """The patches of an image as tokens: flattened, projected onto their principal directions, centred and scaled.

    Raises
    ------
        InputError for a missing, empty or corrupt file, or an image smaller than one row of two patches.
    """
    from PIL import Image, UnidentifiedImageError

    source = _readable(path)
    try:
        with Image.open(source) as picture:
            if picture.mode.startswith("I"):  # 16 bits a pixel: converted as they are, all bright ones would be white
                wide = np.asarray(picture).astype(np.float64)
                grey = (wide * (255.0 / max(wide.max(), 1.0))).round().astype(np.uint8)
                pixels = np.repeat(grey[..., None], 3, axis=2)
            else:
                pixels = np.asarray(picture.convert("RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as problem:
        raise InputError(f"{source}: not a readable image ({problem}). Give a PNG or JPEG file.") from None
    while (pixels.shape[0] // patch) * (pixels.shape[1] // patch) > LARGEST:
        patch += 1
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    if rows * columns < 2:
        raise InputError(
            f"{source}: {pixels.shape[1]} × {pixels.shape[0]} pixels hold {rows * columns} patches of {patch} × {patch};"
            " at least 2 are needed."
        )
    pixels = np.ascontiguousarray(pixels[: rows * patch, : columns * patch])
    blocks = pixels.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2).reshape(rows * columns, -1) / 255.0
    tokens, note = _fit(blocks, source)
    note = f"{rows} × {columns} patches of {patch} × {patch} pixels, {note}"
    return TokenInput("image", source.name, tokens, (rows, columns), pixels, patch, note, blocks.shape)


def from_tokens(path: str | os.PathLike[str]) -> TokenInput:
    """Tokens ``(N, d)`` of an .npy, .npz or .safetensors file that holds one array; pickled content is refused.

    Raises
    ------
        InputError for a missing, empty, corrupt or pickled file, an archive of several arrays, an array that is not
        two-dimensional, not numeric, empty or not finite.
    """
    source = _readable(path)
    suffix = source.suffix.lower()
    if suffix not in (".npy", ".npz", ".safetensors"):
        raise InputError(f"{source}: tokens come in .npy, .npz or .safetensors files, but this one ends in {suffix!r}.")
    try:
        if suffix == ".safetensors":
            from safetensors.numpy import load_file

            arrays = dict(load_file(source))
        elif suffix == ".npz":
            if not zipfile.is_zipfile(source):
                raise InputError(f"{source}: not an .npz archive; is the file whole?")
            with np.load(source, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        elif not source.read_bytes().startswith(b"\x93NUMPY"):
            raise InputError(f"{source}: cannot be read as .npy: it does not start like one; is the file whole?")
        else:
            arrays = {"tokens": np.load(source, allow_pickle=False)}
    except InputError:
        raise
    except Exception as problem:
        if "pickle" in str(problem).lower():
            raise InputError(
                f"{source}: holds pickled objects. Pickled arrays are refused: save plain numbers."
            ) from None
        hint = " Save them as float32." if "bfloat16" in str(problem).lower() or "BF16" in str(problem) else ""
        raise InputError(f"{source}: cannot be read as {suffix} ({problem}).{hint}") from None
    if "tokens" in arrays:
        array = arrays["tokens"]
    elif len(arrays) == 1:
        array = next(iter(arrays.values()))
    else:
        raise InputError(f"{source}: holds the arrays {sorted(arrays)}; save the one to use under the name 'tokens'.")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{source}: tokens must be real numbers, but the array is {array.dtype}.")
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{source}: tokens must be (tokens, dim) and not empty, but the array has shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise InputError(f"{source}: {int((~np.isfinite(array)).sum())} of {array.size} entries are NaN or infinite.")
    chosen = array.astype(np.float64)
    note = ""
    if len(chosen) > LARGEST:
        keep = np.linspace(0, len(chosen) - 1, LARGEST).round().astype(int)
        chosen, note = chosen[keep], f"{LARGEST} of {len(array)} tokens, evenly spaced, "
    tokens, fitted = _fit(chosen, source)
    return TokenInput("tokens", source.name, tokens, (1, len(tokens)), None, 0, note + fitted, array.shape)


def _readable(path: str | os.PathLike[str]) -> Path:
    source = Path(path)
    if source.is_dir():
        raise InputError(f"{source}: is a folder; give a file.")
    if not source.is_file():
        raise InputError(f"{source}: no such file.")
    if source.stat().st_size == 0:
        raise InputError(f"{source}: the file is empty.")
    return source


def _fit(array: NDArray[np.float64], source: Path) -> tuple[NDArray[np.float64], str]:
    """Centre, project onto at most WIDTH principal directions, scale to a mean squared norm of 1."""
    largest = np.abs(array).max()
    centred = array / largest if largest > 0 else array
    centred = centred - centred.mean(0)
    note = f"{array.shape[1]} values a token"
    if array.shape[1] > WIDTH:
        kept = min(WIDTH, *centred.shape)
        _, directions = np.linalg.eigh(centred.T @ centred)
        projected = centred @ directions[:, : -kept - 1 : -1]
        share = float((projected**2).sum() / max((centred**2).sum(), np.finfo(float).tiny))
        centred = projected
        note += f" projected onto their {kept} principal directions ({share:.1%} of the variance)"
    size = float(np.sqrt((centred**2).sum(1).mean()))
    if size < 1e-12:
        raise InputError(f"{source}: all tokens are equal, so that nothing is left of them once centred.")
    return centred / size, note + ", centred, mean squared norm 1"
