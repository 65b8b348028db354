"""Data sets: what one is, those that are arrays in memory, and the list of all that can be had by name.

Loaders never download and never unpickle. What is missing is named, with the package that installs it.
"""

from __future__ import annotations

import abc
import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import check_choice, check_count, check_share

__all__ = ["DATA", "IGNORE", "ArrayData", "Data", "MissingData", "Part", "Splits", "cache_folder", "load_data", "split"]

IGNORE = 255
"""The label of pixels that count for nothing, in training and in every metric."""

TASKS = ("classify", "segment")


class MissingData(ValueError):
    """A data set that is not on this machine; the message names the package that installs it, or the option."""


class Data(abc.ABC):
    """Images with a class each (task "classify") or with a mask of classes (task "segment").

    Attributes
    ----------
        name: of the data set and its part, for messages. task: "classify" or "segment". classes: names, in the order of the
        labels. channels: of the images. size: rows and columns, None where images differ. mean, std: of every channel, of
        pixels in [0, 1]; what images are normalised by.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many images."""

    @abc.abstractmethod
    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Image ``(channels, H, W)`` in uint8; its class, or its mask ``(H, W)`` with IGNORE for void, in int64."""

    def load_many(self, indices: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Several of :meth:`load`, as lists, since sizes may differ."""
        pairs = [self.load(index) for index in indices]
        return [image for image, _ in pairs], [target for _, target in pairs]


class ArrayData(Data):
    """Images in memory: ``(count, channels, H, W)`` in uint8, with classes ``(count,)`` or masks ``(count, H, W)``.

    Parameters
    ----------
        name: for messages. images, targets: integers, kept as they are; masks may hold IGNORE, classes may not.
        classes: names, in the order of the labels. mean, std: of every channel, by default those of these images.

    Raises
    ------
        ValueError for shapes that do not match, no images, labels outside of the classes, and so many classes that one
        of them would be IGNORE; TypeError for targets that are not integers.

    >>> some = ArrayData("two", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    >>> some.task, len(some), some.load(1)[1].item()
    ('classify', 2, 1)
    """

    def __init__(
        self,
        name: str,
        images: Tensor,
        targets: Tensor,
        classes: Sequence[str],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"{name}: images must be (count, channels, H, W) in uint8, but are {tuple(images.shape)} {images.dtype}."
            )
        self.name, self.classes = name, tuple(classes)
        self.task = "classify" if targets.ndim == 1 else "segment"
        wanted = (len(images),) if targets.ndim == 1 else (len(images), *images.shape[2:])
        if tuple(targets.shape) != wanted:
            raise ValueError(f"{name}: targets must be {wanted}, but are {tuple(targets.shape)}.")
        if not images.numel():
            raise ValueError(f"{name}: there are no images, or none with pixels: {tuple(images.shape)}.")
        if self.task == "segment" and len(self.classes) > IGNORE:
            raise ValueError(
                f"{name}: masks hold {IGNORE} classes at most ({IGNORE} is void), but got {len(self.classes)}."
            )
        check_labels(name, targets, len(self.classes), void=self.task == "segment")
        self.images, self.targets = images, targets
        self.channels, self.size = images.shape[1], (images.shape[2], images.shape[3])
        own = statistics(images) if mean is None or std is None else ((), ())
        self.mean, self.std = (
            its if given is None else tuple(given) for given, its in zip((mean, std), own, strict=True)
        )
        for which, given in (("mean", self.mean), ("std", self.std)):
            if len(given) != self.channels:
                raise ValueError(f"{name}: {which} must be {self.channels} numbers, one a channel, but is {given}.")

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and target of one index."""
        return self.images[index], self.targets[index].long()

    def load_many(self, indices: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Images and targets of several indices, read at once."""
        at = torch.as_tensor(indices, dtype=torch.long)
        return list(self.images[at]), list(self.targets[at].long())


class Part(Data):
    """Some images of a data set, by their indices, under a name of its own; statistics are the whole's.

    Raises
    ------
        ValueError for no images, and an index that the data set does not have.
    """

    def __init__(self, data: Data, indices: Sequence[int], name: str) -> None:
        if not len(indices):
            raise ValueError(f"{name}: there are no images.")
        for index in (min(indices), max(indices)):
            if not 0 <= index < len(data):
                raise ValueError(f"{name}: {data.name} has images 0 … {len(data) - 1}, but no {index}.")
        self.data, self.indices, self.name = data, list(indices), name
        self.task, self.classes, self.channels, self.size = data.task, data.classes, data.channels, data.size
        self.mean, self.std = data.mean, data.std

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and target of one index of this part."""
        return self.data.load(self.indices[index])

    def load_many(self, indices: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Images and targets of several indices of this part."""
        return self.data.load_many([self.indices[index] for index in indices])


@dataclass(frozen=True)
class Splits:
    """A data set's parts: train to fit, val to watch and to choose by, test to report.

    patch: the side of patches that suits its images. Where a data set publishes no third part, val and test are the same.
    """

    train: Data
    val: Data
    test: Data
    patch: int = 16


def check_labels(name: str, targets: Tensor, classes: int, *, void: bool = False) -> None:
    """Raise unless all labels are integers of at least 0 and below ``classes``, or IGNORE where void is allowed."""
    if targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"{name}: labels must be integers, but are {targets.dtype}; convert them: targets.long().")
    found: set[int] = set()
    # In int64, since torch compares narrow integers with a number cut to their width; in pieces, to need no such copy.
    for piece in targets.flatten().split(1 << 22):
        labels = piece.long()
        wrong = (labels < 0) | (labels >= classes)
        if void:
            wrong &= labels != IGNORE
        if bool(wrong.any()):
            found.update(labels[wrong].unique()[:5].tolist())
    if found:
        raise ValueError(
            f"{name}: labels must be 0 … {classes - 1}{f' or {IGNORE} for void' if void else ''},"
            f" but {', '.join(map(str, sorted(found)[:5]))} came."
        )


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, of pixels in [0, 1].

    From the counts of the 256 values, which are exact: neither the order of summation nor the machine matters.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.long)
    for piece in images.split(256):
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(piece[:, channel].flatten(), minlength=256)
    share, values = counts.double() / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
    mean = share @ values
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())


def split(data: Data, share: float, seed: int, names: tuple[str, str]) -> tuple[Part, Part]:
    """Two disjoint parts, the second of this share and at least one image, drawn by the seed; the same on every machine.

    Raises
    ------
        ValueError for a share outside of [0, 1), and where it leaves the first part no images.

    >>> some = ArrayData("ten", torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10, dtype=torch.uint8), ("a",))
    >>> [len(part) for part in split(some, 0.3, 0, ("train", "val"))]
    [7, 3]
    """
    check_share(data.name, "share", share)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, round(share * len(data)))
    first, second = sorted(order[count:]), sorted(order[:count])
    return Part(data, first, names[0]), Part(data, second, names[1])


def cache_folder() -> Path:
    """Where converted weights, rendered scenes and features are kept: ``UNROLL_CACHE``, or a folder of the user's cache.

    Raises
    ------
        ValueError where there cannot be such a folder.
    """
    named = os.environ.get("UNROLL_CACHE")
    base = (
        Path(named).expanduser()
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unroll"
    )
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ValueError(
            f"cache_folder: {base} cannot be made ({problem}); name another folder by UNROLL_CACHE."
        ) from None
    return base


DATA: dict[str, tuple[str, str, str]] = {
    "fashion-mnist": ("classify", "datasets.classification", "fashion_mnist"),
    "digits": ("classify", "datasets.classification", "digits"),
    "fashion-objects": ("classify", "datasets.objects", "fashion_objects"),
    "digit-objects": ("classify", "datasets.objects", "digit_objects"),
    "folder": ("classify", "datasets.classification", "class_folders"),
    "cifar10": ("classify", "datasets.classification", "cifar10"),
    "cifar100": ("classify", "datasets.classification", "cifar100"),
    "crafter": ("segment", "datasets.scenes", "crafter"),
    "fashion-scenes": ("segment", "datasets.scenes", "fashion_scenes"),
    "digit-scenes": ("segment", "datasets.scenes", "digit_scenes"),
    "mni152": ("segment", "datasets.brains", "mni152"),
    "brains-aal": ("segment", "datasets.brains", "brains_aal"),
    "ade20k": ("segment", "datasets.layouts", "ade20k"),
    "pascal-context": ("segment", "datasets.layouts", "pascal_context"),
    "pascal-voc": ("segment", "datasets.layouts", "pascal_voc"),
    "cityscapes": ("segment", "datasets.layouts", "cityscapes"),
}
"""Name: the task, its module here, and its function, which takes ``root`` and options and gives Splits."""


def load_data(
    name: str, root: str | os.PathLike[str] | None = None, *, task: str | None = None, **options: Any
) -> Splits:
    """The parts of a data set by name; root: the folder that holds it, where it is not installed by a package.

    Options: of the data set, such as ``count`` (images of every part at most), ``size`` and ``seed`` of rendered scenes.

    Raises
    ------
        ValueError for a name that is not known or of another task, or an option that the data set does not have;
        MissingData where it is not on this machine.
    """
    check_choice("load_data", "data", name, tuple(DATA))
    kind, module, function = DATA[name]
    if task is not None and kind != task:
        fitting = ", ".join(repr(other) for other, (its, _, _) in DATA.items() if its == task)
        raise ValueError(f"load_data: {name!r} is for {kind}; for {task} there are {fitting}.")
    count = options.pop("count", None)
    if count is not None:
        check_count("load_data", "count", count)
    make: Callable[..., Splits] = getattr(importlib.import_module(f".{module}", __package__), function)
    known = [option for option in inspect.signature(make).parameters if option != "root"]
    for option in options:
        check_choice("load_data", f"an option of {name}", option, (*known, "count"))
    found = make(root, **options)
    if count is None:
        return found
    train, val = first(found.train, count), first(found.val, count)
    return Splits(train, val, val if found.test is found.val else first(found.test, count), patch=found.patch)


def first(data: Data, count: int) -> Data:
    """At most so many images, spread evenly over the data set."""
    if len(data) <= count:
        return data
    return Part(data, [index * len(data) // count for index in range(count)], data.name)
