"""RandAugment: a few of fifteen operations in a row, drawn for every image."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, ClassVar, final

from torch import Tensor

from ...errors import check_count
from .base import OneByOne, check_colours, check_mode, colour, colours, from_pil, number, place, to_pil

__all__ = ["OPERATIONS", "RandAugment", "operate"]

OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""What :class:`RandAugment` draws from."""


@final
class RandAugment(OneByOne):
    """Some operations in a row, each drawn from fifteen, with repetition, and left out with probability 1 − probability.

    The magnitude m of each is magnitude + std · N(0, 1), cut to [0, 10]; with t = m/10 and a sign ± drawn for each,

    ================  ==================================================================================================
    auto_contrast     every channel's least and greatest value to 0 and 255
    equalize          every channel's histogram made flat
    invert            255 − x
    rotate            by ±30 t degrees
    posterize         the 4 − ⌊4t⌋ highest bits kept if increasing, else ⌊4t⌋
    solarize          255 − x where x ≥ 256 − ⌊256t⌋ if increasing, else where x ≥ ⌊256t⌋
    solarize_add      ⌊110t⌋ added where x < 128
    colour, contrast, brightness, sharpness (PIL's enhancements)
                      by the factor 1 ± 0.9t if increasing; else by 0.1 + 1.8t
    shear_x, shear_y  by ±0.3t pixels per pixel
    translate_x, _y   by ±0.45t of the width or height
    ================  ==================================================================================================

    Parameters
    ----------
        operations: in a row. magnitude, std: see above. increasing: whether every operation changes more the greater t is.
        probability: of each operation. interpolation, fill: of pixels that are moved, and that come from outside.
    Source
        Cubuk et al., arXiv 1909.13719, as in timm: its ``rand-m9-mstd0.5-inc1`` are the defaults

    Raises
    ------
        ValueError when called with masks, or on images of other than 1 or 3 channels.
    """

    name: ClassVar[str] = "rand_augment"
    masked: ClassVar[bool] = False

    def __init__(
        self,
        operations: int = 2,
        magnitude: float = 9.0,
        std: float = 0.5,
        increasing: bool = True,
        probability: float = 0.5,
        interpolation: str = "bicubic",
        fill: float | Sequence[float] = 128,
    ) -> None:
        check_count(self.name, "operations", operations)
        if not isinstance(increasing, bool):
            raise ValueError(f"rand_augment: increasing must be true or false, but is {increasing!r}.")
        self.operations, self.increasing, self.draws = operations, increasing, 4 * operations
        self.magnitude = number(self.name, "magnitude", magnitude, 0, 10)
        self.std = number(self.name, "std", std, 0, 10)
        self.probability = number(self.name, "probability", probability, 0, 1)
        self.interpolation, self.fill = check_mode(self.name, interpolation), colour(self.name, fill)

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """Image with its operations done; there is no mask."""
        check_colours(self.name, len(image))
        fill = colours(self.name, self.fill, len(image))
        picture = to_pil(image)
        for first in range(0, self.draws, 4):
            which, gate, normal, sign = u[first : first + 4]
            if gate < self.probability:
                # The distribution function's inverse is infinite at 0, which u can be.
                drawn = self.magnitude + self.std * NormalDist().inv_cdf(max(normal, 2**-54))
                t = min(10.0, max(0.0, drawn)) / 10
                picture = operate(
                    OPERATIONS[place(which, len(OPERATIONS))],
                    picture,
                    t,
                    -1.0 if sign < 0.5 else 1.0,
                    increasing=self.increasing,
                    interpolation=self.interpolation,
                    fill=fill,
                )
        return from_pil(picture), mask


def operate(
    name: str,
    picture: Any,
    t: float,
    sign: float,
    *,
    increasing: bool = True,
    interpolation: str = "bicubic",
    fill: tuple[int, ...] = (128,),
) -> Any:
    """One operation of :class:`RandAugment` on an image of PIL's, at t in [0, 1].

    Raises
    ------
        ValueError for a name that is none of the operations.
    """
    from PIL import Image, ImageEnhance, ImageOps

    factor = 1 + 0.9 * sign * t if increasing else 0.1 + 1.8 * t
    mode = Image.Resampling[interpolation.upper()]
    outside = fill[0] if len(fill) == 1 else fill

    def moved(*matrix: float) -> Any:
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, mode, fillcolor=outside)

    match name:
        case "auto_contrast":
            return ImageOps.autocontrast(picture)
        case "equalize":
            return ImageOps.equalize(picture)
        case "invert":
            return ImageOps.invert(picture)
        case "rotate":
            return picture.rotate(30 * sign * t, mode, fillcolor=outside)
        case "posterize":
            bits = 4 - int(4 * t) if increasing else int(4 * t)
            kept = 256 - (1 << (8 - bits))
            return picture.point([x & kept for x in range(256)] * len(picture.getbands()))
        case "solarize":
            threshold = int(256 * t)
            return ImageOps.solarize(picture, 256 - threshold if increasing else threshold)
        case "solarize_add":
            added = int(110 * t)
            return picture.point([min(255, x + added) if x < 128 else x for x in range(256)] * len(picture.getbands()))
        case "colour":
            return ImageEnhance.Color(picture).enhance(factor)
        case "contrast":
            return ImageEnhance.Contrast(picture).enhance(factor)
        case "brightness":
            return ImageEnhance.Brightness(picture).enhance(factor)
        case "sharpness":
            return ImageEnhance.Sharpness(picture).enhance(factor)
        case "shear_x":
            return moved(1, 0.3 * sign * t, 0, 0, 1, 0)
        case "shear_y":
            return moved(1, 0, 0, 0.3 * sign * t, 1, 0)
        case "translate_x":
            return moved(1, 0, 0.45 * sign * t * picture.width, 0, 1, 0)
        case "translate_y":
            return moved(1, 0, 0, 0, 1, 0.45 * sign * t * picture.height)
    raise ValueError(f"rand_augment: there is no operation {name!r}; there are {', '.join(OPERATIONS)}.")
