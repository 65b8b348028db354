"""What a trained network says of a few held-out images, as a picture: masks beside the truth, or names under images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .data import IGNORE, Data, first
from .evaluation_command import load_network
from .figures import new_figure
from .loader import normalise
from .run import RunFolder
from .trainer import load_job_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_samples"]

RIGHT, WRONG = "#147a5c", "#b01220"


def plot_samples(run: RunFolder) -> Figure:
    """Four test images with true and predicted masks, or sixteen with their true and predicted classes.

    Raises
    ------
        ValueError where the run is not done, or its data set is not here, or its images differ in size.
    """
    splits = load_job_data(run.job())
    if splits.test.size is None:
        raise ValueError(f"{splits.test.name}: images differ in size.")
    network: Any = load_network(run, splits)
    data = first(splits.test, 4 if splits.test.task == "segment" else 16)
    images, targets = data.load_many(range(len(data)))
    with torch.no_grad():
        said = network(normalise(torch.stack(images), data)).argmax(1)
    draw = _masks if data.task == "segment" else _classes
    return draw(data, images, targets, said)


def _shown(image: Tensor) -> Any:
    return image.movedim(0, -1).squeeze(-1).numpy()


def _masks(data: Data, images: list[Tensor], masks: list[Tensor], said: Tensor) -> Figure:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, _ = new_figure(1, (2.5 * len(images), 6.4))
    figure.clear()
    panels = figure.subplots(3, len(images), squeeze=False)
    count = len(data.classes)
    colours = [colormaps["tab20"](index % 20) for index in range(count)]
    seen = sorted({int(c) for mask in masks for c in mask.unique() if c != IGNORE} | {int(c) for c in said.unique()})
    for column, (image, mask, prediction) in enumerate(zip(images, masks, said, strict=True)):
        panels[0][column].imshow(_shown(image), cmap="gray")
        for row, classes in ((1, mask), (2, prediction)):
            void = torch.where(classes == IGNORE, count, classes).numpy()
            both = ListedColormap([*colours, (1, 1, 1, 1)])
            panels[row][column].imshow(void, cmap=both, vmin=0, vmax=count, interpolation="nearest")
    for row, title in enumerate(("image", "truth", "the network")):
        panels[row][0].set_ylabel(title, fontsize=9)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    handles = [Patch(color=colours[index], label=data.classes[index]) for index in seen]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _classes(data: Data, images: list[Tensor], labels: list[Tensor], said: Tensor) -> Figure:
    figure, _ = new_figure(1, (11, 3.6))
    figure.clear()
    panels = figure.subplots(2, 8)
    for panel in panels.flat:
        panel.axis("off")
    for panel, image, label, prediction in zip(panels.flat, images, labels, said, strict=False):
        panel.imshow(_shown(image), cmap="gray")
        right = int(label) == int(prediction)
        name = data.classes[int(prediction)]
        words = name if right else f"{name}\n(is {data.classes[int(label)]})"
        panel.set_title(words, fontsize=8, color=RIGHT if right else WRONG)
    return figure
