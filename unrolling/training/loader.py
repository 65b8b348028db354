"""Batches as a function of seed, epoch and place: the same images, augmented alike, however many processes share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augmentation.mixing import Mixing
from .augmentation.pipeline import Pipeline, apply
from .data import Data, check_labels
from .recipe import Recipe

__all__ = ["Batch", "Loader", "generator", "mixing_of", "normalise", "seed_of", "whole"]


def seed_of(*parts: object) -> int:
    """A seed that depends on these numbers and words, and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A random number generator with the seed of these numbers and words."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class Batch:
    """Images ``(batch, channels, H, W)`` in uint8, or features; targets; the partners that they are mixed with, or None.

    uniforms: the numbers that decide how the whole batch is mixed, the same on all processes.
    """

    images: Tensor
    targets: Tensor
    partners: tuple[Tensor, Tensor] | None
    uniforms: Tensor

    def pieces(self, count: int) -> list[Batch]:
        """The batch in equal parts."""
        parts = zip(self.images.chunk(count), self.targets.chunk(count), strict=True)
        mates: Sequence[Any] = [None] * count
        if self.partners is not None:
            mates = list(zip(*(part.chunk(count) for part in self.partners), strict=True))
        return [Batch(image, target, mate, self.uniforms) for (image, target), mate in zip(parts, mates, strict=True)]


class _Places(Dataset[Any]):
    """What the reading processes hold: from (image, numbers) of several places to two stacked tensors."""

    def __init__(self, data: Data, pipeline: Pipeline) -> None:
        self.data, self.pipeline = data, pipeline

    def __getitems__(self, places: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        images, targets = self.data.load_many([index for index, _ in places])
        u = torch.stack([numbers for _, numbers in places])
        if self.data.task == "classify":
            stacked, _ = apply(self.pipeline, images, None, u)
            labels = torch.stack(targets)
        else:
            stacked, masks = apply(self.pipeline, images, targets, u)
            labels = targets[0] if masks is None else masks
        check_labels(self.data.name, labels, len(self.data.classes), void=self.data.task == "segment")
        return stacked, labels


def _as_it_is(pair: Any) -> Any:
    return pair


class Loader:
    """The batches of a data set, for one of several processes.

    The order of an epoch depends on seed and epoch, an image's augmentation on seed, epoch and its place in it: batches are
    the same on one process as on many, and can begin anywhere. What is less than a batch at the end is left out.

    Parameters
    ----------
        rank, world: this process and their number; every batch is cut into ``world`` equal parts in order.
        Batches are mixed where the recipe mixes; an image's partner stands as far from the end as it from the beginning.

    Raises
    ------
        ValueError for a batch larger than the data set, or one that processes and passes cannot share equally.
    """

    def __init__(self, data: Data, recipe: Recipe, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.data, self.recipe, self.seed, self.rank, self.world = data, recipe, seed, rank, world
        self.pipeline = Pipeline.from_table(recipe.augment)
        self.mixes = any(recipe.mix.values())
        if recipe.batch > len(data):
            raise ValueError(f"training: a batch of {recipe.batch} is more than the {len(data)} images of {data.name}.")
        if recipe.batch % (world * recipe.accumulate):
            raise ValueError(
                f"training: a batch of {recipe.batch} cannot be shared equally by {world} processes in {recipe.accumulate} passes each."
            )
        self.steps = len(data) // recipe.batch
        self.places = _Places(data, self.pipeline)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.steps

    def order(self, epoch: int) -> Tensor:
        """The images of an epoch in order; repeats of one image follow each other."""
        drawn = torch.randperm(len(self.data), generator=generator("order", self.seed, epoch))
        return drawn.repeat_interleave(self.recipe.repeats)[: self.steps * self.recipe.batch]

    def _rows(self, epoch: int, order: Tensor, number: int) -> list[tuple[int, Tensor]]:
        batch, mine = self.recipe.batch, self.recipe.batch // self.world
        whole = order[number * batch : (number + 1) * batch].tolist()
        u = torch.rand(
            batch, self.pipeline.draws, generator=generator("augment", self.seed, epoch, number), dtype=torch.float64
        )
        rows = list(range(self.rank * mine, (self.rank + 1) * mine))
        if self.mixes:
            rows += [batch - 1 - row for row in rows]
        return [(whole[row], u[row]) for row in rows]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The part of this process of the epoch's batches, from number ``start`` on."""
        order = self.order(epoch)
        sampler = (self._rows(epoch, order, number) for number in range(start, self.steps))
        reading: DataLoader[Any] = DataLoader(
            self.places,
            batch_sampler=sampler,
            num_workers=self.recipe.workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )
        for number, (images, targets) in enumerate(reading, start):
            u = torch.rand(6, generator=generator("mix", self.seed, epoch, number), dtype=torch.float64)
            partners = None
            if self.mixes:
                half = len(images) // 2
                partners = (images[half:], targets[half:])
                images, targets = images[:half], targets[:half]
            yield Batch(images, targets, partners, u)


def whole(data: Data, pipeline: Pipeline, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of a data set in order, without chance: for evaluation. The last batch may be smaller."""
    places = _Places(data, pipeline)
    middle = torch.full((pipeline.draws,), 0.5, dtype=torch.float64)
    for start in range(0, len(data), batch):
        yield places.__getitems__([(index, middle) for index in range(start, min(start + batch, len(data)))])


def normalise(images: Tensor, data: Data, device: torch.device | str = "cpu") -> Tensor:
    """Pixels of uint8 to float32, every channel by the data set's mean and deviation; features as they are, in float32."""
    images = images.to(device, non_blocking=True)
    if images.dtype != torch.uint8:
        return images.float()
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (data.mean, data.std))
    return (images.float().div_(255) - mean) / std  # not in place: one channel becomes three by a backbone's statistics


def mixing_of(recipe: Recipe, classes: int) -> Mixing:
    """The recipe's mixing of images and labels: mixup, cutmix, label smoothing."""
    options: Mapping[str, Any] = dict(recipe.mix)
    return Mixing(classes, smoothing=recipe.smoothing, **options)
