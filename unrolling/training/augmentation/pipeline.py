"""Augmentations by name, in a row: pure functions of images and uniform numbers.

An image's result depends on its own row of numbers only, so training can be resumed, and shared by any number of processes,
without a change in what the network sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .base import Augmentation
from .colour import Erase, Jitter, Photometric, ThreeAugment
from .geometry import CenterCrop, Crop, Flip, PadCrop, RandomResizedCrop, Resize, ResizeRange
from .rand_augment import RandAugment

__all__ = ["AUGMENTATIONS", "Augmentation", "Pipeline", "apply"]

AUGMENTATIONS: dict[str, type[Augmentation]] = {
    kind.name: kind
    for kind in (
        PadCrop,
        Flip,
        RandomResizedCrop,
        Resize,
        CenterCrop,
        ResizeRange,
        Crop,
        Photometric,
        Jitter,
        RandAugment,
        ThreeAugment,
        Erase,
    )
}
"""Every augmentation by the name that it has in recipes."""

Group = tuple[list[int], Tensor, Tensor | None]


class Pipeline:
    """Augmentations in a row. draws: the uniform numbers that one image needs for all of them, in their order.

    >>> pipeline = Pipeline.from_table({"pad_crop": 2, "flip": 0.5})
    >>> pipeline.draws
    3
    >>> pipeline(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None, torch.rand(4, 3, dtype=torch.float64))[0].shape
    torch.Size([4, 3, 8, 8])
    """

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        self.steps = tuple(steps)
        self.draws = sum(step.draws for step in self.steps)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The augmentations of a recipe's table, in its order; the value of each is a number, a list, a table or true.

        Raises
        ------
            ValueError for a name that is not known, which lists those that are, and for an option that is wrong.
        """
        return cls([_built(name, value) for name, value in table.items()])

    def __call__(self, images: Tensor, masks: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images ``(batch, channels, H, W)`` and masks ``(batch, H, W)`` after all steps; u ``(batch, draws)`` in float64.

        Raises
        ------
            ValueError as :class:`Augmentation` and :func:`apply` do.
        """
        if not self.steps:
            return images, masks
        return _run(self, [(list(range(len(images))), images, masks)], u)


def apply(
    pipeline: Pipeline, images: Sequence[Tensor], masks: Sequence[Tensor] | None, u: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Images ``(channels, H, W)`` and masks ``(H, W)`` of any sizes through the pipeline, stacked in their order.

    Images of one size go through a step together. Without steps, images may be anything that can be stacked, such as
    features.

    Raises
    ------
        ValueError where there are no images, u is not ``(batch, draws)`` in float64, or sizes differ after the last step.
    """
    if not len(images) or (masks is not None and len(masks) != len(images)):
        raise ValueError(f"augment: there are {len(images)} images with {0 if masks is None else len(masks)} masks.")
    given = [None] * len(images) if masks is None else masks
    return _run(pipeline, _groups(zip(range(len(images)), images, given, strict=True), alone=False), u)


def _run(pipeline: Pipeline, groups: list[Group], u: Tensor) -> tuple[Tensor, Tensor | None]:
    count = sum(len(places) for places, _, _ in groups)
    if u.shape != (count, pipeline.draws) or u.dtype != torch.float64:
        raise ValueError(
            f"augment: u must be {(count, pipeline.draws)} in float64 for these images and steps, but is {tuple(u.shape)} {u.dtype}."
        )
    start = 0
    for step in pipeline.steps:
        if step.ragged or len(groups) > 1:
            groups = _groups(_singles(groups), alone=step.ragged)
        stop = start + step.draws
        groups = [(places, *step(images, masks, u[places, start:stop])) for places, images, masks in groups]
        start = stop
    if len(groups) > 1:
        groups = _groups(_singles(groups), alone=False)
    if len(groups) > 1:
        raise ValueError(_differing(pipeline, groups))
    places, images, masks = groups[0]
    if places != list(range(count)):
        back = torch.tensor(places).argsort()
        images, masks = images[back], None if masks is None else masks[back]
    return images, masks


def _singles(groups: Iterable[Group]) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    for places, images, masks in groups:
        yield from zip(places, images, [None] * len(places) if masks is None else masks, strict=True)


def _groups(singles: Iterable[tuple[int, Tensor, Tensor | None]], *, alone: bool) -> list[Group]:
    """Images of one shape together, or every image by itself."""
    found: dict[object, list[tuple[int, Tensor, Tensor | None]]] = {}
    for single in singles:
        found.setdefault(single[0] if alone else single[1].shape, []).append(single)
    groups: list[Group] = []
    for some in found.values():
        masks = [mask for _, _, mask in some if mask is not None]
        images = torch.stack([image for _, image, _ in some])
        groups.append(([at for at, _, _ in some], images, torch.stack(masks) if masks else None))
    return groups


def _differing(pipeline: Pipeline, groups: Sequence[Group]) -> str:
    named = {step.name for step in pipeline.steps}
    if "resize_range" in named:
        missing = "crop after resize_range"
    elif "resize" in named:
        missing = "center_crop (or crop) after resize, or both sides in resize"
    else:
        missing = "random_resized_crop, or resize and center_crop"
    sizes = " and ".join(" × ".join(map(str, images.shape[1:])) for _, images, _ in groups[:2])
    return f"augment: after all steps, images are {sizes}, and cannot be stacked. What is missing is {missing}."


def _built(name: str, value: Any) -> Augmentation:
    """The augmentation of one line of a recipe's table."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"augment: there is no {name!r}; there are {', '.join(AUGMENTATIONS)}.")
    kind = AUGMENTATIONS[name]
    options = inspect.signature(kind).parameters
    if value is False:
        raise ValueError(f"augment: {name} = false; leave the line out instead.")
    values = dict(value) if isinstance(value, Mapping) else {} if value is True else None
    if values is None:
        if not options:
            raise ValueError(f"augment: {name} has no options; write {name} = true, not {value!r}.")
        values = {next(iter(options)): value}
    if unknown := [each for each in values if each not in options]:
        have = ", ".join(options) or "none"
        raise ValueError(f"augment: {name} has no option {', '.join(map(repr, unknown))}; its options are {have}.")
    if lacking := [key for key, option in options.items() if option.default is option.empty and key not in values]:
        raise ValueError(f"augment: {name} needs {', '.join(lacking)}.")
    try:
        return kind(**values)
    except TypeError as problem:
        raise ValueError(str(problem)) from None
