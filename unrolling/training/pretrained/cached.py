"""Features of a frozen backbone in the place of images, and a backbone's own normalisation in the place of a data set's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..build import DINO, FrozenSegmenter
from ..data import Data, Part, Splits
from .features import features

__all__ = ["FeatureData", "as_the_backbone_has_it", "cached", "normalised_as"]


class FeatureData(Data):
    """A segmentation data set whose images are a backbone's patch tokens ``(patches, width)``, with the masks as they are."""

    def __init__(self, data: Data, tokens: Tensor) -> None:
        self.data, self.tokens = data, tokens
        self.name, self.task, self.classes, self.channels = data.name, data.task, data.classes, data.channels
        self.size, self.mean, self.std = data.size, data.mean, data.std
        self.masks = [data.load(index)[1].to(torch.uint8) for index in range(len(data))]

    def __len__(self) -> int:
        return len(self.masks)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Tokens in float16, and the mask."""
        return self.tokens[index], self.masks[index].long()

    def load_many(self, indices: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Several of :meth:`load`."""
        return [self.tokens[index] for index in indices], [self.masks[index].long() for index in indices]


def cached(model: FrozenSegmenter, data: Data) -> FeatureData:
    """The data set's features by the model's frozen encoder, from the disk where they have been computed before."""
    return FeatureData(data, features(model.encoder, data, size=model.size, mean=data.mean, std=data.std))


def as_the_backbone_has_it(splits: Splits, backbone: str) -> Splits:
    """The data set normalised as the backbone's own images were, where those are known; others as they are."""
    if backbone != DINO:
        return splits
    from .backbones import IMAGENET_MEAN, IMAGENET_STD

    return normalised_as(splits, IMAGENET_MEAN, IMAGENET_STD)


def normalised_as(splits: Splits, mean: Sequence[float], std: Sequence[float]) -> Splits:
    """The data set with these statistics in the place of its own."""

    def renormalised(data: Data) -> Data:
        part = Part(data, range(len(data)), data.name)
        part.mean, part.std = tuple(mean), tuple(std)
        return part

    train, val = renormalised(splits.train), renormalised(splits.val)
    test = val if splits.test is splits.val else renormalised(splits.test)
    return dataclasses.replace(splits, train=train, val=val, test=test)
