"""Patch tokens of a frozen backbone for all images of a data set, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import check_count, check_pair
from ...models.base import pair
from ...models.image import ImageModel
from ..build import patch_tokens
from ..data import Data, cache_folder
from .backbones import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["features"]

NAME = "features"
"""Of the tensor in its file, and of the folder in the cache."""

SAMPLE = 64
"""Images of a data set by which it is known again: its name and count may stand for others."""


@torch.no_grad()
def features(
    model: ImageModel,
    images: Data | Tensor,
    *,
    size: int | tuple[int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch: int = 16,
    cache: bool = True,
    progress: bool | None = None,
) -> Tensor:
    """The patch tokens ``(count, patches, width)`` of all images after the last block, row by row, in float16 on the CPU.

    Images are resized to size, rows and columns (one number: a square; bilinear, smoothed where they shrink), grey ones
    repeated to the model's channels, and normalised. The model is run as it is in eval mode, where its weights are, without gradients.

    Parameters
    ----------
        images: a data set, or ``(count, channels, H, W)`` in uint8. mean, std: of every channel, of pixels in [0, 1];
        ImageNet's, as the backbones here have it; ``data.mean, data.std`` for a model trained on that data. cache:
        whether a file in ``cache_folder()/"features"`` is looked for, and written; it is mapped into memory, not read.
        It is named by the hash of the weights, the data's name, count and a sample of 64 images or more, all of a tensor,
        the size and the normalisation. What is damaged is computed anew. progress: whether there is a bar; by default in
        terminals.

    Raises
    ------
        TypeError for another model or images; ValueError for a size that is not whole patches, channels or statistics that
        do not fit, tokens too large for float16, and a disk that is too small.

    >>> from ...models import ViT
    >>> vit = ViT(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=3, num_classes=0)
    >>> features(vit, torch.zeros(5, 1, 7, 9, dtype=torch.uint8), size=24, cache=False).shape
    torch.Size([5, 9, 12])
    """
    size = pair(size) if isinstance(size, (int, tuple)) else size
    _check(model, images, size, mean, std, batch)
    kept = (size[0] // model.patch[0]) * (size[1] // model.patch[1])
    shape = (len(images), kept, model.config.embed_dim)

    def computed() -> Iterator[Tensor]:
        was = model.training
        model.eval()
        try:
            for some in _batches(images, batch, progress):
                yield _tokens(model, some, size, mean, std)
        finally:
            model.train(was)

    if not cache:
        return torch.cat(list(computed()))
    key = _key(model, images, size, mean, std)
    place = cache_folder() / NAME / f"{key[:32]}.safetensors"
    found = _mapped(place, key, shape)
    if found is None:
        _write(place, key, shape, computed())
        found = _mapped(place, key, shape)
    if found is None:
        raise OSError(f"features: {place} was written, but cannot be read back; pass cache=False.")
    return found


def _check(
    model: object, images: object, size: object, mean: Sequence[float], std: Sequence[float], batch: object
) -> None:
    if not isinstance(model, ImageModel):
        raise TypeError(f"features: the model must be a network of images, but is a {type(model).__name__}.")
    rows, columns = check_pair("features", "size", size)
    check_count("features", "batch", batch)
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape:
            raise TypeError(
                f"features: images must be (count, channels, H, W) in uint8, but are {tuple(images.shape)} {images.dtype}."
            )
        channels = images.shape[1]
    elif isinstance(images, Data):
        channels = images.channels
    else:
        raise TypeError(f"features: images must be a Data or a tensor, but are a {type(images).__name__}.")
    wanted = model.config.in_chans
    if channels not in (1, wanted):
        raise ValueError(
            f"features: images have {channels} channels, but the model takes {wanted}; grey ones are repeated."
        )
    if any(len(values) not in (1, wanted) for values in (mean, std)) or not all(value > 0 for value in std):
        raise ValueError(
            f"features: mean and std must be 1 or {wanted} numbers, std positive, but are {tuple(mean)} and {tuple(std)}."
        )
    (high, wide) = model.patch
    if rows % high or columns % wide:
        raise ValueError(f"features: size {rows} × {columns} is not whole patches of {high} × {wide}.")


def _batches(images: Data | Tensor, batch: int, progress: bool | None) -> Iterator[list[Tensor]]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(images), unit="image", disable=not shown, dynamic_ncols=True, leave=False) as bar:
        for start in range(0, len(images), batch):
            rows = range(start, min(start + batch, len(images)))
            yield list(images[rows.start : rows.stop]) if isinstance(images, Tensor) else images.load_many(rows)[0]
            bar.update(len(rows))


def _tokens(
    model: ImageModel, images: list[Tensor], size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    weight = next(model.parameters())
    squares = torch.cat([_resized(part, size) for part in _alike(images)]).to(weight.device)
    middle, spread = (squares.new_tensor(list(values)).view(-1, 1, 1) for values in (mean, std))
    squares = ((squares - middle) / spread).expand(-1, model.config.in_chans, -1, -1)
    found = patch_tokens(model, squares.to(weight.dtype)).to(torch.float16).cpu()
    if not bool(torch.isfinite(found).all()):
        raise ValueError("features: tokens are not finite, or too large for float16; end the model with a norm.")
    return found


def _alike(images: list[Tensor]) -> Iterator[Tensor]:
    """The images in order, stacked as long as one is of the size of the one before."""
    start = 0
    for stop in range(1, len(images) + 1):
        if stop == len(images) or images[stop].shape != images[start].shape:
            yield torch.stack(images[start:stop])
            start = stop


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    pixels = images.float() / 255
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)


def _key(
    model: ImageModel, images: Data | Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> str:
    """What the tokens depend on, hashed."""
    known = hashlib.sha256()
    described = {
        "model": type(model).__name__,
        "config": model.config.to_dict(),
        "adaptations": model.adaptations,
        "data": "" if isinstance(images, Tensor) else images.name,
        "count": len(images),
        "size": size,
        "mean": list(mean),
        "std": list(std),
    }
    known.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        _add(known, name, tensor)
    count = len(images)
    step = 1 if isinstance(images, Tensor) else max(1, count // SAMPLE)
    for index in range(0, count, step):
        _add(known, str(index), images[index] if isinstance(images, Tensor) else images.load(index)[0])
    return known.hexdigest()


def _add(known: hashlib._Hash, name: str, tensor: Tensor) -> None:
    known.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    known.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _mapped(place: Path, key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The file's tensor, mapped into memory; None where there is no such file, or it is not what it should be."""
    from safetensors import SafetensorError, safe_open

    if not place.is_file():
        return None
    try:
        with safe_open(place, "pt") as file:
            found: Tensor = file.get_tensor(NAME)
            fits = (file.metadata() or {}).get("key") == key
    except (SafetensorError, OSError):
        return None
    return found if fits and tuple(found.shape) == shape and found.dtype == torch.float16 else None


def _write(place: Path, key: str, shape: tuple[int, ...], parts: Iterator[Tensor]) -> None:
    """Write the tensor part by part, so that none has to hold it all, beside its place, and move it there.

    Source
        the format of safetensors: the header's length in 8 bytes, the header in JSON, the numbers, all little-endian.
    """
    size = 2 * shape[0] * shape[1] * shape[2]
    place.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place.parent).free
    if size > free:
        raise ValueError(
            f"features: {size / 1e9:.1f} GB do not fit the {free / 1e9:.1f} GB that are free in {place.parent}; take fewer"
            " images or smaller ones, set UNROLL_CACHE to another folder, or pass cache=False."
        )
    tensor = {"dtype": "F16", "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"format": "pt", "key": key}, NAME: tensor}).encode()
    header += b" " * (-len(header) % 8)
    beside = place.with_name(f"{place.stem}.{uuid4().hex}.part")
    try:
        with beside.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for part in parts:
                file.write(part.contiguous().numpy().astype("<f2", copy=False).tobytes())
            file.flush()
            os.fsync(file.fileno())  # else a loss of power could leave a whole file of zeros
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)
