"""``unroll evaluate``: a run's network on held-out images, at several scales, under noise, block by block."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..models import Segmenter, load
from ..models.depict import DecoderModel
from .build import FrozenSegmenter, frozen_segmenter, load_encoder
from .checkpoint import write_text
from .data import Data, Splits, first, load_data
from .evaluate import attention_parameters, evaluate, half_level, noise_sweep
from .figures import plot_noise, save_figure
from .loader import normalise
from .pretrained.cached import normalised_as
from .recipe import Recipe, recipe_names
from .run import Job, RunFolder
from .trainer import load_job_data, local_device

__all__ = ["evaluate_run", "load_network"]


def load_network(folder: RunFolder, data: Splits) -> nn.Module:
    """The trained network of a run, in evaluation mode.

    Raises
    ------
        ValueError where the run has not come to its end, or its weights have been changed.
    """
    job = folder.job()
    if not folder.model.is_dir():
        raise ValueError(f"{folder.path}: has no trained network yet; run the same training command to go on.")
    network: Any = load(folder.model)
    if job.frozen:
        network = frozen_segmenter(load_encoder(job.backbone), network, data, job.recipe)
    return network.eval()


def _bar(description: str) -> Any:
    def each(steps: Iterator[Any], count: int) -> Iterator[Any]:
        return iter(tqdm(steps, total=count, desc=description, disable=None, leave=False))

    return each


def evaluate_run(options: argparse.Namespace) -> int:
    """Runs ``unroll evaluate``; returns the exit status."""
    folder = RunFolder(options.run)
    job, network, data = _saved(options) if _is_saved(folder.path) else _of_run(options, folder)
    part: Data = getattr(data, options.split)
    if options.images is not None:
        part = first(part, options.images)
    device = local_device(options.device)
    network = network.to(device)
    name = "miou" if job.task == "segment" else "accuracy"
    found: dict[str, Any] = {"run": str(folder.path), "data": part.name, "images": len(part)}
    result = evaluate(network, part, job.recipe, multiscale=options.multiscale, device=device, each=_bar("images"))
    found["test"] = result
    print(f"{folder.path}: {name} {result[name]:.4f} on {len(part):,} images of {part.name}")
    if options.noise_sweep is not None:
        found["noise"] = _sweep(options, folder, job, network, part, device)
    if options.trace:
        found["trace"] = _trace(folder, network, part, device)
    if options.json:
        write_text(Path(options.json), json.dumps(found, indent=2) + "\n")
    return 0


def _is_saved(place: Path) -> bool:
    """Whether a place holds a network alone, as ``save_pretrained`` leaves it."""
    return place.suffix == ".safetensors" or (place / "model.safetensors").is_file()


def _saved(options: argparse.Namespace) -> tuple[Job, nn.Module, Splits]:
    if options.data is None:
        raise ValueError(f"{options.run}: holds a network without its run; name the data set with --data.")
    network = load(options.run)
    if isinstance(network, DecoderModel):
        raise ValueError(f"{options.run}: holds a decoder, whose backbone only its run knows; give the run's folder.")
    task = "segment" if isinstance(network, Segmenter) else "classify"
    data = load_data(options.data, options.root, task=task)
    recipe = Recipe.read(options.data) if options.data in recipe_names() else Recipe()
    names: dict[str, Any] = {"decoder": "saved"} if task == "segment" else {"model": "saved"}
    return Job(task, options.data, recipe, options.root, **names), network.eval(), data


def _of_run(options: argparse.Namespace, folder: RunFolder) -> tuple[Job, nn.Module, Splits]:
    job = folder.job()
    own = load_job_data(job)
    network = load_network(folder, own)
    if options.data is None:
        return job, network, own
    other = load_data(options.data, options.root, task=job.task)
    if other.test.classes != own.test.classes:
        raise ValueError(f"{options.data} has other classes than {job.data}: {', '.join(other.test.classes[:5])} …")
    return job, network, normalised_as(other, own.train.mean, own.train.std)  # as the network has always seen them


def _sweep(
    options: argparse.Namespace, folder: RunFolder, job: Job, network: nn.Module, part: Data, device: str
) -> Any:
    name = "miou" if job.task == "segment" else "accuracy"
    try:
        sigmas = [float(text) for text in options.noise_sweep.split(",")]
    except ValueError:
        raise ValueError(f"--noise-sweep {options.noise_sweep}: write positive numbers, such as 0.01,0.1.") from None

    def each(levels: Sequence[float]) -> Any:
        return tqdm(levels, desc="noise", disable=None, leave=False)

    levels = noise_sweep(
        network,
        lambda: float(evaluate(network, part, job.recipe, device=device)[name]),
        sigmas,
        draws=options.draws,
        # As in the papers' figures: of a decoder, not of the encoder beneath it.
        parameters=attention_parameters(getattr(network, "decoder", network)),
        each=each,
    )
    for level in levels:
        print(f"  σ {level.sigma:<8g} {name} {level.mean:.4f}   {min(level.values):.4f} … {max(level.values):.4f}")
    half = half_level(levels)
    print("  half of it is " + (f"left at σ = {half:.3g}" if half is not None else "never lost"))
    save_figure(plot_noise({folder.path.name: levels}, name), folder.path / "noise.png")
    print(f"  picture: {folder.path / 'noise.png'}", file=sys.stderr)
    return {"levels": [{"sigma": level.sigma, "values": list(level.values)} for level in levels], "half": half}


@torch.no_grad()
def _trace(folder: RunFolder, network: Any, part: Data, device: str) -> Any:
    from ..plots import plot_trace

    images = torch.stack(first(part, 16).load_many(range(min(16, len(part))))[0])
    x = normalise(images, part, device)
    if isinstance(network, FrozenSegmenter):
        found = network.decoder.trace(network.tokens(x), im_size=network.size)
    else:
        found = network.trace(x)
    print(found)
    plot_trace(found, folder.path / "trace.png")
    print(f"picture: {folder.path / 'trace.png'}", file=sys.stderr)
    return found.to_dict()
