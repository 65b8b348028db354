"""Augmentations that change colours and leave masks as they are, and random erasing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from .base import Augmentation, OneByOne, check_colours, fitting_box, from_pil, interval, number, place, to_pil

__all__ = ["Erase", "Jitter", "Photometric", "ThreeAugment", "blended", "luminance"]


def luminance(images: Tensor) -> Tensor:
    """Grey ``(batch, 1, H, W)`` of images ``(batch, 1 or 3, H, W)``: 0.299 R + 0.587 G + 0.114 B, rounded as PIL does."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16).to(torch.uint8)[:, None]


def blended(others: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """``others + factor · (images − others)``, cut to 0 … 255, fractions dropped: the enhancements of PIL."""
    base = others.float()
    return (base + factors.view(-1, 1, 1, 1) * (images.float() - base)).clamp_(0, 255).to(torch.uint8)


@final
class Jitter(Augmentation):
    """Brightness, contrast and saturation, each by a factor of its own that is uniform in 1 ± strength, in random order.

    Brightness blends with black, contrast with the mean grey, saturation with the image's own grey.

    Parameters
    ----------
        strength: at most 1; one number, or one each for brightness, contrast and saturation.

    Raises
    ------
        ValueError when called, for images of other than 1 or 3 channels.
    """

    name, draws = "jitter", 4

    def __init__(self, strength: float | Sequence[float]) -> None:
        three = strength if isinstance(strength, Sequence) else [strength] * 3
        if len(three) != 3:
            raise ValueError(
                f"jitter: strength must be one number or [brightness, contrast, saturation], but is {strength!r}."
            )
        self.strengths = [number(self.name, "strength", each, 0, 1) for each in three]

    def change(self, images: Tensor, masks: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images with other colours; masks as they are."""
        check_colours(self.name, images.shape[1])
        orders = torch.tensor(list(itertools.permutations(range(3))))
        order = orders[(6 * u[:, 0]).long()]
        factors = 1 + (2 * u[:, 1:] - 1) * torch.tensor(self.strengths, dtype=torch.float64)
        for turn in order.mT:
            grey = luminance(images)
            mean = (grey.long().sum((1, 2, 3)).double() / grey[0].numel() + 0.5).floor()
            which = turn.view(-1, 1, 1, 1)
            other = torch.where(which == 0, 0, torch.where(which == 1, mean.to(torch.uint8).view(-1, 1, 1, 1), grey))
            images = blended(other, images, factors.gather(1, turn[:, None]).float())
        return images, masks


@final
class Photometric(Augmentation):
    """Photometric distortion: brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness adds a number in ±32, contrast multiplies by 0.5 … 1.5, saturation (of HSV) is multiplied by 0.5 … 1.5, hue
    turned by ±18 of 180 steps, that is ±36 degrees; contrast comes before or after the last two, with probability 1/2 each.

    Source
        PhotoMetricDistortion of mmsegmentation. There, every change is rounded to integers, here the last alone.

    Raises
    ------
        ValueError when called, for images of other than 1 or 3 channels.
    """

    name, draws = "photometric", 9

    def change(self, images: Tensor, masks: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images with other colours; masks as they are."""
        check_colours(self.name, images.shape[1])
        gates = [gate.view(-1, 1, 1, 1) for gate in (u[:, :5] < 0.5).unbind(1)]
        shift, gain, vivid, turn = (each.float().view(-1, 1, 1, 1) for each in (2 * u[:, 5:] - 1).unbind(1))
        brighter, contrast, early, saturated, turned = gates
        x = images.float()
        x = torch.where(brighter, x + 32 * shift, x).clamp(0, 255)
        x = torch.where(contrast & early, x * (1 + 0.5 * gain), x).clamp(0, 255)
        if images.shape[1] == 3:
            x = torch.where(saturated, saturate(x, 1 + 0.5 * vivid), x)
            x = torch.where(turned, turn_hue(x, 0.6 * turn), x)
        x = torch.where(contrast & ~early, x * (1 + 0.5 * gain), x).clamp(0, 255)
        return x.round().to(torch.uint8), masks


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Colours ``(batch, 3, H, W)`` with HSV's saturation times the factor, at most 1; hue and value as they were."""
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    limit = value / (value - least).clamp_min(1e-6)
    return value - torch.minimum(factor, limit) * (value - x)


def turn_hue(x: Tensor, sextants: Tensor) -> Tensor:
    """Colours ``(batch, 3, H, W)`` with HSV's hue turned by so many times 60 degrees; saturation and value as they were."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    divisor = chroma.clamp_min(1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    away = (torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1) + hue + sextants).remainder(6)
    return value - chroma * torch.minimum(away, 4 - away).clamp(0, 1)


@final
class ThreeAugment(OneByOne):
    """One of three, equally likely: grey; solarised (255 − x where x ≥ 128); or blurred, by a Gaussian of 0.1 … 2 pixels.

    Source
        DeiT III, arXiv 2204.07118, section 3.2

    Raises
    ------
        ValueError when called, for images of other than 1 or 3 channels.
    """

    name, draws = "three_augment", 2

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """Image with other colours; mask as it is."""
        from PIL import ImageFilter

        check_colours(self.name, len(image))
        kind = place(u[0], 3)
        if kind == 0:
            return luminance(image[None])[0].expand_as(image), mask
        if kind == 1:
            return torch.where(image < 128, image, 255 - image), mask
        return from_pil(to_pil(image).filter(ImageFilter.GaussianBlur(0.1 + 1.9 * u[1]))), mask


@final
class Erase(OneByOne):
    """A box of noise with this probability; every pixel and channel normal, from a seed that is the image's own.

    Parameters
    ----------
        probability: that there is a box. area: least and greatest share of the image. ratio: least and greatest
        columns/rows, log-uniform. mean, std: of the noise, of pixels in [0, 1]. The defaults are ImageNet's, so that
        the noise is close to N(0, 1) once images are normalised, but for what is cut off at black and white.
    Source
        Zhong et al., arXiv 1708.04896, with noise for every pixel as in timm
    """

    name, draws = "erase", 6
    masked: ClassVar[bool] = False

    def __init__(
        self,
        probability: float,
        area: Sequence[float] = (0.02, 1 / 3),
        ratio: Sequence[float] = (0.3, 1 / 0.3),
        mean: float = 0.449,
        std: float = 0.226,
    ) -> None:
        self.probability = number(self.name, "probability", probability, 0, 1)
        self.area = interval(self.name, "area", area, 1e-6, 1)
        self.ratio = interval(self.name, "ratio", ratio, 1e-3, 1e3)
        self.mean, self.std = number(self.name, "mean", mean, 0, 1), number(self.name, "std", std, 0, 1)

    def one(self, image: Tensor, mask: Tensor | None, u: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """Image with a box of noise, or as it is."""
        if u[0] >= self.probability:
            return image, mask
        share = self.area[0] + u[1] * (self.area[1] - self.area[0])
        high, wide = fitting_box((image.shape[-2], image.shape[-1]), share, self.ratio, u[2])
        top, left = place(u[3], image.shape[-2] - high + 1), place(u[4], image.shape[-1] - wide + 1)
        source = torch.Generator().manual_seed(int(u[5] * 2**53))
        noise = torch.randn(len(image), high, wide, generator=source) * self.std + self.mean
        image = image.clone()
        image[:, top : top + high, left : left + wide] = (255 * noise).round().clamp(0, 255).to(torch.uint8)
        return image, mask
