"""Mixup and cutmix: images of a batch mixed with their partners', and labels with them, as soft targets."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import check_count
from .base import number, place

__all__ = ["Mixing", "beta_quantile"]


def beta_quantile(alpha: float, u: float) -> float:
    """The x of [0, 1] that a variable of the distribution Beta(alpha, alpha) is below with probability u.

    >>> beta_quantile(1.0, 0.25), beta_quantile(0.5, 0.25) == math.sin(math.pi / 8) ** 2
    (0.25, True)
    """
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, u))


@final
class Mixing:
    r"""Images mixed with their partners, and soft targets: $\lambda y + (1 - \lambda) y'$ of smoothed labels y and y'.

    λ is drawn once for a batch, from Beta(mixup, mixup) or Beta(cutmix, cutmix). Mixup is $\lambda x + (1 - \lambda) x'$.
    Cutmix takes from x' a box of the share 1 − λ of the area, in the image's proportions, whose centre is uniform; what
    lies outside of the image is cut off, and λ becomes the share that is left of x.

    Parameters
    ----------
        classes: their number. mixup, cutmix: parameters of the Beta distributions; 0: not done. switch: the probability of
        cutmix where both are. smoothing: the share of every label that is spread over all classes evenly.
    Source
        Zhang et al., arXiv 1710.09412; Yun et al., arXiv 1905.04899; Szegedy et al., arXiv 1512.00567, section 7

    Raises
    ------
        ValueError for shares that are none, and parameters below 0.

    >>> Mixing(4, smoothing=0.2)(torch.zeros(1, 2), torch.tensor([1]), None, torch.rand(4))[1]
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """

    draws: ClassVar[int] = 4

    def __init__(
        self,
        classes: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        switch: float = 0.5,
        smoothing: float = 0.0,
    ) -> None:
        check_count("mix", "classes", classes)
        self.classes = classes
        self.mixup, self.cutmix = number("mix", "mixup", mixup, 0, 1e3), number("mix", "cutmix", cutmix, 0, 1e3)
        self.switch, self.smoothing = number("mix", "switch", switch, 0, 1), number("mix", "smoothing", smoothing, 0, 1)

    @property
    def mixes(self) -> bool:
        """Whether partners are needed."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self, images: Tensor, labels: Tensor, partners: tuple[Tensor, Tensor] | None, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mixed images, and targets ``(batch, classes)`` that sum to 1.

        Parameters
        ----------
            images: in floating point, ``(batch, channels, H, W)`` for cutmix. labels: ``(batch,)``. partners: images and
            labels of the same shapes, or None where nothing is mixed. u: at least 4 uniform numbers, the batch's own:
            which of both, λ, and the row and column of the box's centre.

        Raises
        ------
            ValueError for partners that are missing or of another shape, too few numbers, and images in integers.
        """
        targets = self.smoothed(labels).to(images.device)
        if not self.mixes:
            return images, targets
        if partners is None or partners[0].shape != images.shape or partners[1].shape != labels.shape:
            found = "none" if partners is None else f"{tuple(partners[0].shape)}, {tuple(partners[1].shape)}"
            raise ValueError(f"mix: partners must be {tuple(images.shape)}, {tuple(labels.shape)}, but are {found}.")
        if not images.is_floating_point():
            raise ValueError(f"mix: images must be in floating point, normalised, but are {images.dtype}.")
        if len(u) < self.draws:
            raise ValueError(f"mix: u must be at least {self.draws} numbers, but is {tuple(u.shape)}.")
        chosen, drawn, row, column = u[: self.draws].tolist()
        other, others = partners[0], self.smoothed(partners[1]).to(images.device)
        if self.cutmix > 0 and (self.mixup == 0 or chosen < self.switch):
            if images.ndim != 4:
                raise ValueError(
                    f"mix: cutmix needs images (batch, channels, H, W), but they are {tuple(images.shape)}."
                )
            size = (images.shape[-2], images.shape[-1])
            rows, columns, left = self.box(size, beta_quantile(self.cutmix, drawn), row, column)
            images = images.clone()
            images[..., rows, columns] = other[..., rows, columns]
        else:
            left = beta_quantile(self.mixup, drawn)
            images = torch.lerp(other, images, left)
        return images, left * targets + (1 - left) * others

    def smoothed(self, labels: Tensor) -> Tensor:
        """Labels ``(batch,)`` as ``(batch, classes)``: 1 − smoothing for the class, and smoothing/classes for every one."""
        return (1 - self.smoothing) * F.one_hot(labels.long(), self.classes).float() + self.smoothing / self.classes

    @staticmethod
    def box(size: tuple[int, int], share: float, row: float, column: float) -> tuple[slice, slice, float]:
        """Rows and columns of cutmix's box, and the share of the area outside of it; share is what was wanted there."""
        spans: list[slice] = []
        for side, u in zip(size, (row, column), strict=True):
            long = int(side * math.sqrt(1 - share))
            start = place(u, side) - long // 2
            spans.append(slice(max(0, start), min(side, start + long)))
        taken = math.prod(span.stop - span.start for span in spans)
        return spans[0], spans[1], 1 - taken / math.prod(size)
