"""Evaluation on held-out images: whole, or by a sliding window at several scales; and under noise on the attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import AttentionLayer
from ..errors import check_count, check_positive_number
from ..subspace import SubspaceLayer
from .augmentation.pipeline import Pipeline
from .data import Data
from .loader import normalise, whole
from .metrics import metric_of
from .recipe import Recipe

__all__ = ["NoiseLevel", "attention_parameters", "evaluate", "half_level", "noise_sweep", "sliding_scores"]


def _pipeline(data: Data, recipe: Recipe) -> Pipeline:
    """What images pass before they are evaluated: of classes resize and center_crop, of masks nothing."""
    names = ("resize", "center_crop") if data.task == "classify" else ()
    return Pipeline.from_table({name: recipe.evaluate[name] for name in names if name in recipe.evaluate})


def _shared_out(data: Data) -> tuple[Data, int]:
    """The images of this process, as many on each, and how many of them count."""
    from .data import Part

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return data, len(data)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = list(range(rank, len(data), world))
    most = math.ceil(len(data) / world)
    return Part(data, mine + [len(data) - 1] * (most - len(mine)), data.name), len(mine)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    multiscale: bool = False,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    each: Callable[[Iterator[Any], int], Iterator[Any]] = lambda steps, count: steps,
) -> dict[str, Any]:
    """The metrics of a model on a data set, in evaluation mode, shared out among the processes.

    Parameters
    ----------
        multiscale: with the recipe's ``evaluate.scales`` and flipped, class probabilities averaged. batch: images at once.
        each: goes around the batches with their number, for a progress bar.

    Raises
    ------
        ValueError where multiscale is asked for and the data set has classes, not masks.
    """
    if multiscale and data.task == "classify":
        raise ValueError("evaluate: several scales are for masks; this data set has one class an image.")
    training = model.training
    model.eval()
    metric, (mine, counted) = metric_of(data), _shared_out(data)
    slides = data.task == "segment" and (multiscale or "window" in recipe.evaluate or data.size is None)
    size = 1 if slides else batch or min(recipe.batch, 256)
    done = 0
    try:
        for images, truth in each(whole(mine, _pipeline(data, recipe), size), math.ceil(len(mine) / size)):
            x = normalise(images, data, device)
            with _precision(recipe, device):
                scores = sliding_scores(model, x, recipe.evaluate, multiscale=multiscale) if slides else model(x)
            kept = min(len(images), counted - done)
            done += len(images)
            if kept > 0:
                metric.add(scores[:kept].float(), truth[:kept].to(scores.device))
    finally:
        model.train(training)
    metric.gather()
    return metric.result()


def _precision(recipe: Recipe, device: torch.device | str) -> torch.autocast:
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def sliding_scores(
    model: Callable[[Tensor], Tensor], image: Tensor, options: Mapping[str, Any], *, multiscale: bool = False
) -> Tensor:
    """Class scores ``(1, classes, H, W)`` of one normalised image, by windows, at the recipe's scales.

    First the short side becomes ``resize`` pixels, the long one at most ``long``, where the recipe has these, times the
    scale. Windows of ``window`` pixels stand ``stride`` apart, the last flush with the border; an image whose short side
    is less is enlarged to it. Scores of windows that overlap are averaged and brought to the image's size. With several
    scales, or flips, what is averaged are the class probabilities.

    Source
        Segmenter, arXiv 2105.05633, and its released evaluation
    """
    size = (image.shape[-2], image.shape[-1])
    scales: Sequence[float] = options.get("scales", (1.0,)) if multiscale else (1.0,)
    flips = (False, True) if multiscale and options.get("flip", True) else (False,)
    window = options.get("window")
    base = int(options["resize"]) / min(size) if "resize" in options else 1.0
    base = min(base, int(options["long"]) / max(size)) if "long" in options else base
    total: Tensor | None = None
    for scale in scales:
        scaled = image
        if scale * base != 1:
            sides = tuple(max(1, round(side * scale * base)) for side in size)
            scaled = F.interpolate(image, size=sides, mode="bilinear")
        for flip in flips:
            seen = scaled.flip(-1) if flip else scaled
            found = (
                model(seen)
                if window is None
                else _windows(model, seen, int(window), int(options.get("stride", window)))
            )
            found = F.interpolate(found.float(), size=size, mode="bilinear")
            found = found.flip(-1) if flip else found
            if len(scales) * len(flips) > 1:
                found = found.softmax(1)
            total = found if total is None else total + found
    if total is None:
        raise ValueError("evaluate: scales is empty.")
    return total / (len(scales) * len(flips))


def _windows(model: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int) -> Tensor:
    check_count("evaluate", "window", window)
    check_count("evaluate", "stride", stride)
    if stride > window:
        raise ValueError(
            f"evaluate: a stride of {stride} leaves pixels between windows of {window}; it must be at most that."
        )
    short = min(image.shape[-2:])
    if short < window:
        sides = tuple(math.ceil(side * window / short) for side in image.shape[-2:])
        image = F.interpolate(image, size=sides, mode="bilinear")
    rows, columns = (_starts(side, window, stride) for side in image.shape[-2:])
    tops = [(top, left) for top in rows for left in columns]
    count = image.new_zeros(1, 1, *image.shape[-2:])
    total = image.new_zeros(0)  # until the first window tells how many classes there are
    for number, (top, left) in enumerate(tops):
        scores = model(image[..., top : top + window, left : left + window]).float()
        if not number:
            total = scores.new_zeros(1, scores.shape[1], *image.shape[-2:])
        total[..., top : top + window, left : left + window] += scores
        count[..., top : top + window, left : left + window] += 1
    return total / count


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin: a stride apart, the last flush with the end.

    >>> _starts(10, 4, 3), _starts(11, 4, 3), _starts(4, 4, 4)
    ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    starts = list(range(0, side - window + 1, stride))
    return starts if starts[-1] == side - window else [*starts, side - window]


@dataclass(frozen=True)
class NoiseLevel:
    """The metric under noise of one σ, over several draws."""

    sigma: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the draws."""
        return sum(self.values) / len(self.values)


def attention_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every trained tensor of the attention layers: bases or projections, output matrices, steps; norms and MLPs are not.

    Orthonormal bases count as the tensor that they are parametrised by. A frozen encoder is no part of the model.
    """
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, (SubspaceLayer, AttentionLayer)):
            found |= {id(p): p for p in module.parameters()}
    if not found:
        raise ValueError(f"noise: {type(model).__name__} has no attention layers.")
    return list(found.values())


@torch.no_grad()
def noise_sweep(
    model: nn.Module,
    measure: Callable[[], float],
    sigmas: Sequence[float],
    *,
    draws: int = 3,
    seed: int = 0,
    parameters: Sequence[nn.Parameter] | None = None,
    each: Callable[[Sequence[float]], Sequence[float]] = lambda sigmas: sigmas,
) -> list[NoiseLevel]:
    r"""The metric with N(0, σ²) added to every attention parameter; the parameters are put back afterwards, bit for bit.

    The first level is σ = 0. parameters: others than :func:`attention_parameters`. The same normal draws are scaled by
    every σ, so that a curve differs from level to level by σ alone.

    Source
        DEPICT, arXiv 2411.03033, figure on parameter robustness; CBSA, arXiv 2509.16875, figure 8
    """
    check_count("noise_sweep", "draws", draws)
    noisy = attention_parameters(model) if parameters is None else list(parameters)
    kept = [p.detach().clone() for p in noisy]
    levels = [NoiseLevel(0.0, (measure(),))]
    try:
        for sigma in each(sigmas):
            check_positive_number("noise_sweep", "sigma", float(sigma))
            values = []
            for draw in range(draws):
                generator = torch.Generator().manual_seed(seed * 1000 + draw)
                for p, value in zip(noisy, kept, strict=True):
                    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                    p.copy_(value + sigma * noise.to(value))
                values.append(measure())
            levels.append(NoiseLevel(float(sigma), tuple(values)))
    finally:
        for p, value in zip(noisy, kept, strict=True):
            p.copy_(value)
    return levels


def half_level(levels: Sequence[NoiseLevel], floor: float = 0.0) -> float | None:
    """The σ at which the metric's mean first falls half-way from the clean one to ``floor``, logarithms interpolated.

    None where it never does.

    >>> half_level([NoiseLevel(0, (1.0,)), NoiseLevel(0.01, (0.9,)), NoiseLevel(0.1, (0.1,))])
    0.03...
    """
    half = (levels[0].mean + floor) / 2
    for before, after in itertools.pairwise(levels):
        if after.mean <= half:
            if before.sigma == 0 or before.mean <= half:
                return after.sigma
            share = (before.mean - half) / (before.mean - after.mean)
            return math.exp(math.log(before.sigma) + share * (math.log(after.sigma) - math.log(before.sigma)))
    return None
