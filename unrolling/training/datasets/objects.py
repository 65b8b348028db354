"""One object before a picture: its class is asked for, its silhouette is known. For what classifiers find without being told."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data import ArrayData, Data, Splits
from .rendered import PARTS, check_parts
from .scenes import Behind, check_rootless, check_side, crops, noise, photographs, scenes

__all__ = ["ObjectData", "digit_objects", "fashion_objects"]


class ObjectData(ArrayData):
    """Images with a class each, and with the silhouettes ``(count, H, W)`` of what they show, in booleans."""

    def __init__(
        self,
        name: str,
        images: Tensor,
        targets: Tensor,
        classes: Sequence[str],
        silhouettes: Tensor,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name, images, targets, classes, mean=mean, std=std)
        if silhouettes.shape != (len(images), *images.shape[2:]) or silhouettes.dtype != torch.bool:
            raise ValueError(
                f"{name}: silhouettes must be {(len(images), *images.shape[2:])} booleans, but are"
                f" {tuple(silhouettes.shape)} {silhouettes.dtype}."
            )
        self.silhouettes = silhouettes


def fashion_objects(
    root: str | os.PathLike[str] | None = None,
    *,
    sizes: tuple[int, int, int] = (12000, 1000, 2000),
    seed: int = 0,
    size: int = 32,
) -> Splits:
    """One of Fashion-MNIST's clothes over a photograph, ``(3, size, size)``, with its class; see :func:`fashion_scenes`.

    Raises
    ------
        MissingData where Fashion-MNIST or photographs are not installed; ValueError for other sizes.
    """
    check_parts("fashion_objects", sizes, seed)
    check_side("fashion_objects", size)
    from .classification import fashion_mnist

    behind = [crops(photographs("fashion_objects", part), size) for part in PARTS]
    return _objects("fashion-objects", fashion_mnist(root), behind, sizes, seed, size, clothes=True)


def digit_objects(
    root: str | os.PathLike[str] | None = None,
    *,
    sizes: tuple[int, int, int] = (2000, 300, 500),
    seed: int = 0,
    size: int = 32,
) -> Splits:
    """One of scikit-learn's digits over smooth coloured noise, ``(3, size, size)``, with its class; see :func:`digit_scenes`.

    Raises
    ------
        MissingData where scikit-learn is not installed; ValueError for a root, and for other sizes.
    """
    check_rootless("digit_objects", root)
    check_parts("digit_objects", sizes, seed)
    check_side("digit_objects", size)
    from .classification import digits

    return _objects("digit-objects", digits(), [noise(size)] * 3, sizes, seed, size, clothes=False)


def _objects(
    name: str, items: Splits, behind: Sequence[Behind], sizes: Sequence[int], seed: int, size: int, *, clothes: bool
) -> Splits:
    parts: list[ObjectData] = []
    given: Sequence[Data] = (items.train, items.val, items.test)
    for number, (part, data, count) in enumerate(zip(PARTS, given, sizes, strict=True)):
        rng = np.random.default_rng((seed, number, 1))
        images, masks, labels = scenes(data, behind[number], rng, count, size, clothes=clothes, most=1)
        own = {"mean": parts[0].mean, "std": parts[0].std} if parts else {}
        parts.append(ObjectData(f"{name} {part}", images, labels, items.train.classes, masks > 0, **own))
    train, val, test = parts
    return Splits(train, val, test, patch=4)
