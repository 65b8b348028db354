"""Augmentations that move pixels, and masks along with them: crops, flips and changes of size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from ...errors import check_count
from ..data import IGNORE
from .base import (
    Augmentation,
    OneByOne,
    check_mode,
    colour,
    colours,
    fitting_box,
    interval,
    nearest,
    number,
    place,
    resampled,
    sides,
    windows,
)

__all__ = ["CenterCrop", "Crop", "Flip", "PadCrop", "RandomResizedCrop", "Resize", "ResizeRange"]


@final
class PadCrop(OneByOne):
    """Pad by this many pixels of zeros (masks: of IGNORE) on all sides, and cut out a window of the size that was.

    >>> images = torch.ones(1, 1, 2, 2, dtype=torch.uint8)
    >>> PadCrop(1)(images, None, torch.zeros(1, 2, dtype=torch.float64))[0].tolist()
    [[[[0, 0], [0, 1]]]]
    """

    name, draws = "pad_crop", 2

    def __init__(self, pixels: int) -> None:
        check_count(self.name, "pixels", pixels)
        self.pixels = pixels

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """Image and mask, moved by at most so many pixels each way."""
        top, left = (place(each, 2 * self.pixels + 1) - self.pixels for each in u)
        return windows(image, mask, top, left, (image.shape[-2], image.shape[-1]))


@final
class Flip(Augmentation):
    """Left and right exchanged, with this probability."""

    name, draws = "flip", 1

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = number("flip", "probability", probability, 0, 1)

    def change(self, images: Tensor, masks: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and masks, where u < probability flipped."""
        chosen = (u < self.probability).view(-1, 1, 1)
        flipped = torch.where(chosen[:, None], images.flip(-1), images)
        return flipped, None if masks is None else torch.where(chosen, masks.flip(-1), masks)


@final
class RandomResizedCrop(OneByOne):
    """A box at random, brought to one size; its share of the area and the log of its columns/rows are uniform.

    Ratios are drawn among those at which the box fits (see :func:`fitting_box`), positions among all in the image.

    Parameters
    ----------
        size: rows and columns, or both in one number. scale: least and greatest share of the area. ratio: least and
        greatest columns/rows. interpolation: "bilinear" or "bicubic", with antialiasing.
    Source
        Szegedy et al., arXiv 1409.4842, section 6; torchvision's RandomResizedCrop has these defaults
    """

    name, draws = "random_resized_crop", 4

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ) -> None:
        self.size = sides(self.name, size)
        self.scale = interval(self.name, "scale", scale, 1e-6, 1)
        self.ratio = interval(self.name, "ratio", ratio, 1e-3, 1e3)
        self.interpolation = check_mode(self.name, interpolation)

    def box(self, size: tuple[int, int], u: Sequence[float]) -> tuple[int, int, int, int]:
        """Top, left, rows and columns of the box in an image of this size."""
        share = self.scale[0] + u[0] * (self.scale[1] - self.scale[0])
        high, wide = fitting_box(size, share, self.ratio, u[1])
        return place(u[2], size[0] - high + 1), place(u[3], size[1] - wide + 1), high, wide

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """The box of image and mask, resized."""
        top, left, high, wide = self.box((image.shape[-2], image.shape[-1]), u)
        image, mask = windows(image, mask, top, left, (high, wide))
        return resampled(image, self.size, self.interpolation), None if mask is None else nearest(mask, self.size)


@final
class Resize(OneByOne):
    """The shorter side brought to this number of pixels, the other in proportion; or both, to [rows, columns]."""

    name = "resize"

    def __init__(self, size: int | Sequence[int], interpolation: str = "bilinear") -> None:
        self.size, self.exact = sides(self.name, size), not isinstance(size, int)
        self.interpolation = check_mode(self.name, interpolation)

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """Image and mask, resized."""
        (high, wide), size = image.shape[-2:], self.size
        if not self.exact:
            short = size[0]
            size = (short, short * wide // high) if high <= wide else (short * high // wide, short)
        return resampled(image, size, self.interpolation), None if mask is None else nearest(mask, size)


@final
class CenterCrop(OneByOne):
    """The middle of the image, in this size; smaller images are padded on all sides (masks: with IGNORE)."""

    name = "center_crop"

    def __init__(self, size: int | Sequence[int], fill: float | Sequence[float] = 0) -> None:
        self.size, self.fill = sides(self.name, size), colour(self.name, fill)

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """The middle of image and mask."""
        top, left = (round((side - wanted) / 2) for side, wanted in zip(image.shape[-2:], self.size, strict=True))
        return windows(image, mask, top, left, self.size, _filling(self.name, self.fill, image))


@final
class ResizeRange(OneByOne):
    """A change of size by a factor that is uniform in an interval; sides stay in proportion.

    Parameters
    ----------
        ratio: least and greatest factor. short, long: what the factor is of. Without them it is of the image itself; with
        them, the image is made as large as fits into factor · short by factor · long, whatever it was.
    Source
        Resize with ``ratio_range`` of mmsegmentation, where ``img_scale`` is (long, short)
    """

    name, draws = "resize_range", 1
    ragged: ClassVar[bool] = True

    def __init__(
        self,
        ratio: Sequence[float],
        short: int | None = None,
        long: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.ratio = interval(self.name, "ratio", ratio, 1e-3, 1e3)
        self.interpolation = check_mode(self.name, interpolation)
        if (short is None) != (long is None):
            raise ValueError(f"{self.name}: give both short and long, or neither.")
        self.limits: tuple[int, int] | None = None
        if short is not None and long is not None:
            check_count(self.name, "short", short)
            check_count(self.name, "long", long, short)
            self.limits = (short, long)

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """Image and mask, larger or smaller."""
        factor = self.ratio[0] + u[0] * (self.ratio[1] - self.ratio[0])
        high, wide = image.shape[-2:]
        if self.limits is not None:
            factor *= min(self.limits[0] / min(high, wide), self.limits[1] / max(high, wide))
        size = (max(1, int(high * factor + 0.5)), max(1, int(wide * factor + 0.5)))
        return resampled(image, size, self.interpolation), None if mask is None else nearest(mask, size)


@final
class Crop(OneByOne):
    """A window at random. Images that are smaller are padded at the bottom and at the right (masks: with IGNORE).

    Where there are masks, windows are drawn until no class has ``max_share`` of the window's labelled pixels or more; the
    last of ``tries`` is taken whatever it shows.

    Parameters
    ----------
        size: rows and columns, or both in one number. max_share: 1 for the first window. fill: of padded pixels, 0 … 255,
        one number or one for each channel; a grey by default.
    Source
        RandomCrop with ``cat_max_ratio``, then Pad, of mmsegmentation
    """

    name = "crop"

    def __init__(
        self,
        size: int | Sequence[int],
        max_share: float = 1.0,
        tries: int = 10,
        fill: float | Sequence[float] = 128,
    ) -> None:
        self.size, self.fill = sides(self.name, size), colour(self.name, fill)
        self.max_share = number(self.name, "max_share", max_share, 0, 1)
        check_count(self.name, "tries", tries)
        self.draws = 2 * tries if self.max_share < 1 else 2

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """The window of image and mask."""
        spare = [max(0, side - wanted) + 1 for side, wanted in zip(image.shape[-2:], self.size, strict=True)]
        top = left = 0
        for first in range(0, self.draws, 2):
            top, left = place(u[first], spare[0]), place(u[first + 1], spare[1])
            if self.max_share == 1 or mask is None or self._varied(mask, top, left):
                break
        return windows(image, mask, top, left, self.size, _filling(self.name, self.fill, image))

    def _varied(self, mask: Tensor, top: int, left: int) -> bool:
        seen = mask[top : top + self.size[0], left : left + self.size[1]]
        counts = seen[seen != IGNORE].bincount()
        return bool(len(counts)) and bool(counts.max() < self.max_share * counts.sum())


def _filling(owner: str, fill: tuple[float, ...], image: Tensor) -> Tensor:
    return torch.tensor(colours(owner, fill, len(image)), dtype=torch.uint8).view(-1, 1, 1)
