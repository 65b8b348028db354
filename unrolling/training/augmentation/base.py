"""What an augmentation is: a function of images and uniform numbers. And how images are resampled, cut and padded."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import check_count
from ..data import IGNORE

__all__ = [
    "Augmentation",
    "OneByOne",
    "fitting_box",
    "from_pil",
    "interval",
    "nearest",
    "number",
    "resampled",
    "window",
]

INTERPOLATIONS = ("bilinear", "bicubic")


class Augmentation(abc.ABC):
    """A change of images that depends on each image's own uniform numbers, and on nothing else.

    Attributes
    ----------
        name: in recipes. draws: the uniform numbers in [0, 1) that one image needs. ragged: whether images of one size may
        come out in several; such a step takes them one at a time (:func:`augment.apply` sees to it). masked: whether it
        knows what to do with masks.
    """

    name: ClassVar[str]
    ragged: ClassVar[bool] = False
    masked: ClassVar[bool] = True
    draws: int = 0

    def __call__(self, images: Tensor, masks: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Changed images and masks.

        Parameters
        ----------
            images: ``(batch, channels, H, W)`` in uint8. masks: ``(batch, H, W)`` in int64, or None. u: ``(batch, draws)``
            in float64, each row for the image of that place.

        Raises
        ------
            ValueError for other shapes or dtypes, and for masks where the step has no meaning for them.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"augment: images must be (batch, channels, H, W) in uint8, but are {tuple(images.shape)} {images.dtype}."
            )
        if masks is not None and masks.shape != (len(images), *images.shape[2:]):
            raise ValueError(
                f"augment: masks must be (batch, H, W) of images {tuple(images.shape)}, but are {tuple(masks.shape)}."
            )
        if u.shape != (len(images), self.draws) or u.dtype != torch.float64:
            raise ValueError(
                f"augment: {self.name} needs u of shape {(len(images), self.draws)} in float64, but it is {tuple(u.shape)} {u.dtype}."
            )
        if masks is not None and not self.masked:
            raise ValueError(
                f"augment: {self.name} is for images with classes; it cannot change masks along. Leave it out."
            )
        return self.change(images, masks, u)

    @abc.abstractmethod
    def change(self, images: Tensor, masks: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """The change itself, of what has been checked."""


class OneByOne(Augmentation):
    """An augmentation that takes the images of a batch in turn."""

    def change(self, images: Tensor, masks: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Every image changed by :meth:`one`."""
        given = [None] * len(images) if masks is None else list(masks)
        pairs = [self.one(*three) for three in zip(images, given, u.tolist(), strict=True)]
        if len({image.shape for image, _ in pairs}) > 1:
            raise ValueError(
                f"augment: {self.name} brings these images to several sizes; call it through augment.apply."
            )
        changed = [mask for _, mask in pairs if mask is not None]
        return torch.stack([image for image, _ in pairs]), torch.stack(changed) if changed else None

    @abc.abstractmethod
    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """Image ``(channels, H, W)`` and mask ``(H, W)``, changed by these numbers."""


def resampled(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Image ``(channels, H, W)`` in uint8 at another size: "bilinear" or "bicubic", antialiased where it shrinks."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode=mode, align_corners=False, antialias=True)[0]


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask ``(H, W)`` at another size: pixel i of n is pixel ⌊(i + 1/2) H/n⌋, the one that holds its centre."""
    for axis, side in enumerate(size):
        mask = mask.index_select(axis, (2 * torch.arange(side) + 1) * mask.shape[axis] // (2 * side))
    return mask


def window(pixels: Tensor, top: int, left: int, size: tuple[int, int], fill: int | Tensor) -> Tensor:
    """The rows and columns of ``(..., H, W)`` from (top, left) on, which may lie outside; there, ``fill``."""
    (height, width), (high, wide) = pixels.shape[-2:], size
    first, start = max(0, top), max(0, left)
    last, stop = min(height, top + high), min(width, left + wide)
    inner = pixels[..., first:last, start:stop]
    if inner.shape[-2:] == size:
        return inner
    out = pixels.new_empty(*pixels.shape[:-2], high, wide)
    out[:] = fill
    out[..., first - top : last - top, start - left : stop - left] = inner
    return out


def windows(
    image: Tensor, mask: Tensor | None, top: int, left: int, size: tuple[int, int], fill: int | Tensor = 0
) -> tuple[Tensor, Tensor | None]:
    """The same :func:`window` of an image and of its mask, which is filled with IGNORE."""
    return window(image, top, left, size, fill), None if mask is None else window(mask, top, left, size, IGNORE)


def fitting_box(size: tuple[int, int], share: float, ratio: tuple[float, float], u: float) -> tuple[int, int]:
    """Rows and columns of a box that has this share of the area: the log of columns/rows is uniform where the box fits.

    Where no allowed ratio fits, the largest box of the nearest one. This is what drawing share and ratio again and again
    until they fit would give, but that the share keeps its distribution.

    >>> fitting_box((100, 100), 0.25, (1.0, 1.0), 0.5), fitting_box((100, 400), 1.0, (0.75, 4 / 3), 0.5)
    ((50, 50), (100, 133))
    """
    height, width = size
    least, most = share * width / height, width / (height * share)
    low, high = max(ratio[0], least), min(ratio[1], most)
    chosen = low * (high / low) ** u if low <= high else (ratio[0] if most < ratio[0] else ratio[1])
    wide, tall = math.sqrt(share * height * width * chosen), math.sqrt(share * height * width / chosen)
    shrink = min(1.0, width / wide, height / tall)
    return min(height, max(1, round(tall * shrink))), min(width, max(1, round(wide * shrink)))


def place(u: float, count: int) -> int:
    """One of 0 … count − 1, all equally likely."""
    return min(count - 1, int(u * count))


def to_pil(image: Tensor) -> Any:
    """Image ``(1 or 3, H, W)`` in uint8 as one of PIL's."""
    from PIL import Image

    return Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).contiguous().numpy())


def from_pil(picture: Any) -> Tensor:
    """An image of PIL's, in mode L or RGB, as ``(1 or 3, H, W)`` in uint8."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()


def check_colours(owner: str, channels: int) -> None:
    """Raise unless images are grey or have three colours."""
    if channels not in (1, 3):
        raise ValueError(f"augment: {owner} is for images of 1 or 3 channels, but these have {channels}. Leave it out.")


def number(owner: str, name: str, value: object, low: float, high: float) -> float:
    """The value, a number from low to high.

    Raises
    ------
        ValueError that names the option.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} must be a number from {low} to {high}, but is {value!r}.")
    return float(value)


def interval(owner: str, name: str, value: object, low: float, high: float) -> tuple[float, float]:
    """The value, two numbers in order, from low to high.

    Raises
    ------
        ValueError that names the option.
    """
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{owner}: {name} must be two numbers [low, high], but is {value!r}.")
    first, second = (number(owner, name, side, low, high) for side in value)
    if first > second:
        raise ValueError(f"{owner}: {name} must be [low, high] in this order, but is {value!r}.")
    return first, second


def sides(owner: str, value: object) -> tuple[int, int]:
    """Rows and columns: of a square if the value is one number.

    Raises
    ------
        ValueError that names the option.
    """
    both = (value, value) if isinstance(value, int) else value
    if not isinstance(both, Sequence) or len(both) != 2:
        raise ValueError(f"{owner}: size must be a number or [rows, columns], but is {value!r}.")
    for side in both:
        check_count(owner, "size", side)
    return both[0], both[1]


def colour(owner: str, value: object) -> tuple[float, ...]:
    """What is filled in: one number for all channels, or one for each.

    Raises
    ------
        ValueError that names the option.
    """
    values = value if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else [value]
    return tuple(round(number(owner, "fill", each, 0, 255)) for each in values)


def colours(owner: str, fill: tuple[float, ...], channels: int) -> tuple[int, ...]:
    """The fill of every channel.

    Raises
    ------
        ValueError where it is given for another number of channels.
    """
    if len(fill) not in (1, channels):
        raise ValueError(f"{owner}: fill is for {len(fill)} channels, but images have {channels}.")
    return tuple(int(each) for each in (fill * channels if len(fill) == 1 else fill))


def check_mode(owner: str, value: object) -> str:
    """Raise unless the interpolation is one that there is; return it."""
    if value not in INTERPOLATIONS:
        raise ValueError(f"{owner}: interpolation must be one of {', '.join(INTERPOLATIONS)}, but is {value!r}.")
    return str(value)
