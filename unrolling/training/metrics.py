"""What is measured on held-out images: accuracy, and the intersection over union of every class."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .data import IGNORE, Data

__all__ = ["Accuracy", "Confusion", "Metric", "metric_of"]


class Metric(abc.ABC):
    """Counts on held-out images, and the numbers that follow from them."""

    counts: tuple[Tensor, ...]
    headline: str
    """The number that a run is watched and chosen by."""

    @abc.abstractmethod
    def add(self, scores: Tensor, truth: Tensor) -> None:
        """Count scores ``(batch, classes, …)`` against classes ``(batch, …)``."""

    @abc.abstractmethod
    def result(self) -> dict[str, Any]:
        """All numbers."""

    def gather(self) -> None:
        """Adds up what all processes have counted, where there are several."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            for each in self.counts:
                moved = each.to(device)
                dist.all_reduce(moved)
                each.copy_(moved)


def metric_of(data: Data) -> Metric:
    """Accuracy for classes, confusion for masks."""
    return (Accuracy if data.task == "classify" else Confusion)(len(data.classes))


class Accuracy(Metric):
    """The share of images whose class has the highest score, or is among the five highest, and the mean loss.

    >>> seen = Accuracy(3)
    >>> seen.add(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 1]))
    >>> seen.result()["accuracy"]
    0.5
    """

    headline = "accuracy"

    def __init__(self, classes: int) -> None:
        self.right, self.of = (torch.zeros(classes, dtype=torch.int64) for _ in range(2))
        self.five, self.loss = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
        self.counts = (self.right, self.of, self.five, self.loss)

    def add(self, scores: Tensor, truth: Tensor) -> None:
        """Count scores ``(batch, classes)`` against classes ``(batch,)``."""
        scores, truth = scores.detach().float().cpu(), truth.cpu()
        best = scores.topk(min(5, scores.shape[-1]), -1).indices == truth.unsqueeze(-1)
        self.five += best.any(-1).sum()
        self.right += torch.bincount(truth[best[:, 0]], minlength=len(self.right))
        self.of += torch.bincount(truth, minlength=len(self.of))
        self.loss += torch.nn.functional.cross_entropy(scores, truth, reduction="sum")

    def result(self) -> dict[str, Any]:
        """Accuracy, top five, loss, and the accuracy of every class (None where there are no images of it)."""
        count = int(self.of.sum())
        if not count:
            raise ValueError("accuracy: no image was counted.")
        each = [float(r) / int(n) if n else None for r, n in zip(self.right, self.of, strict=True)]
        share = {"accuracy": int(self.right.sum()) / count, "top5": int(self.five) / count}
        return {**share, "loss": float(self.loss) / count, "images": count, "classes": each}


class Confusion(Metric):
    """Pixels by true and predicted class, void left out, and what follows: IoU of every class, its mean, accuracy.

    A class that neither occurs nor is predicted has no IoU and does not count in the mean.

    >>> seen = Confusion(2)
    >>> seen.add_classes(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
    >>> [round(iou, 2) for iou in seen.result()["classes"]], round(seen.result()["miou"], 2)
    ([0.5, 0.5], 0.5)
    """

    headline = "miou"

    def __init__(self, classes: int) -> None:
        self.table = torch.zeros(classes, classes, dtype=torch.int64)
        self.counts = (self.table,)

    def add(self, scores: Tensor, truth: Tensor) -> None:
        """Count scores ``(batch, classes, H, W)`` against masks ``(batch, H, W)``."""
        self.add_classes(scores.argmax(1), truth)

    def add_classes(self, predicted: Tensor, truth: Tensor) -> None:
        """Count predicted classes against true ones, of any equal shapes."""
        if predicted.shape != truth.shape:
            raise ValueError(f"confusion: predicted is {tuple(predicted.shape)}, but truth {tuple(truth.shape)}.")
        size = len(self.table)
        kept = truth != IGNORE
        pairs = truth[kept].long() * size + predicted[kept].long()
        self.table += torch.bincount(pairs.cpu(), minlength=size * size).view(size, size)

    def result(self) -> dict[str, Any]:
        """Mean IoU, pixel accuracy, mean class accuracy, and the IoU of every class (None where it nowhere occurs)."""
        hit, true, said = self.table.diagonal().double(), self.table.sum(1).double(), self.table.sum(0).double()
        total = float(true.sum())
        if not total:
            raise ValueError("confusion: no pixel was counted; are all of them void?")
        union = true + said - hit
        iou = [float(h / u) if u else None for h, u in zip(hit, union, strict=True)]
        seen: Sequence[float] = [each for each in iou if each is not None]
        of = [float(h / t) for h, t in zip(hit, true, strict=True) if t]
        return {
            "miou": sum(seen) / len(seen),
            "accuracy": float(hit.sum()) / total,
            "class_accuracy": sum(of) / len(of),
            "pixels": int(total),
            "classes": iou,
        }
