"""What the experiments share: a setting, many runs at once, counts, and numbers with their spread."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..data import Data
from ..loader import normalise
from ..run import Job, RunFolder
from ..trainer import Parallel, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Experiment",
    "Setting",
    "images_of",
    "multiply_adds",
    "packed",
    "show",
    "spread",
    "throughputs",
    "train_all",
    "unpacked",
]


@dataclass(frozen=True)
class Setting:
    """How an experiment is run. profile: "smoke", under two minutes, or "full". out: where its runs are. processes: at once."""

    profile: str
    out: Path
    processes: int = 1
    quiet: bool = False

    @property
    def smoke(self) -> bool:
        """Whether it is the quick version."""
        return self.profile == "smoke"

    def bar(self, things: Any, description: str, total: int | None = None) -> Any:
        """A progress bar around an iteration, in terminals."""
        return tqdm(things, desc=description, total=total, disable=True if self.quiet else None, leave=False)


@dataclass(frozen=True)
class Experiment:
    """A question that is answered by training and measuring.

    run: gives the numbers, as plain data. render: those numbers as Markdown. figures: as pictures, by file name.
    needs: data sets of the full version, for messages.
    """

    name: str
    question: str
    run: Callable[[Setting], dict[str, Any]]
    render: Callable[[Mapping[str, Any]], str]
    figures: Callable[[Mapping[str, Any]], Mapping[str, Figure]]
    needs: str = ""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, least and largest of numbers, and the numbers.

    >>> spread([1.0, 2.0])["mean"]
    1.5
    """
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values), "values": list(values)}


def show(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A number with its spread, for a table: the mean, and half of the range.

    >>> show({"mean": 0.5, "low": 0.4, "high": 0.6, "values": [0.4, 0.6]})
    '0.500 ± 0.100'
    """
    if found is None:
        return "–"
    if len(found["values"]) == 1:
        return f"{found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f} ± {(found['high'] - found['low']) / 2:.{digits}f}"


def _one(job: Mapping[str, Any], path: str) -> None:
    torch.set_num_threads(1)
    train(Job.from_dict(job), RunFolder(path), Parallel(quiet=True))


def train_all(jobs: Mapping[str, Job], setting: Setting) -> dict[str, RunFolder]:
    """Trains all jobs, several at once, each on one thread, in folders of their names; those that are done stay as they are.

    On one thread results do not depend on how many run at once.
    """
    folders = {name: RunFolder(setting.out / name) for name in jobs}
    waiting = {name: job for name, job in jobs.items() if folders[name].result() is None}
    if setting.processes == 1:
        threads = torch.get_num_threads()
        try:
            for name in setting.bar(waiting, "runs"):
                _one(jobs[name].to_dict(), str(folders[name].path))
        finally:
            torch.set_num_threads(threads)
        return folders
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(setting.processes, mp_context=context) as pool:
        begun = {pool.submit(_one, job.to_dict(), str(folders[name].path)): name for name, job in waiting.items()}
        for each in setting.bar(concurrent.futures.as_completed(begun), "runs", len(begun)):
            try:
                each.result()
            except Exception as problem:
                pool.shutdown(cancel_futures=True)
                raise ValueError(f"{begun[each]}: {problem}") from problem
    return folders


def images_of(data: Data, count: int) -> Tensor:
    """The first images of a data set, normalised; all of one size."""
    return normalise(torch.stack(data.load_many(range(min(count, len(data))))[0]), data)


def multiply_adds(model: nn.Module, *inputs: Any, **call: Any) -> int:
    """Multiply-adds of one forward pass: matrix products and convolutions, attention's among them, by the plain formulas."""
    kernels: list[Any] = [module for module in model.modules() if isinstance(getattr(module, "kernel", None), str)]
    paths = {module: str(module.kernel) for module in kernels}
    training = model.training
    model.eval()
    try:
        for module in paths:
            module.kernel = "plain"
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs, **call)
    finally:
        for module, path in paths.items():
            module.kernel = path
        model.train(training)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def throughputs(models: Mapping[str, nn.Module], x: Tensor, rounds: int = 5) -> dict[str, float]:
    """Images a second of every model's forward pass on one thread, in turns, the best of some rounds: only ratios mean anything."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = dict.fromkeys(models, float("inf"))
    try:
        for turn, (name, model) in itertools.product(range(rounds + 1), models.items()):
            began = time.perf_counter()
            model.eval()(x)
            if turn:  # the first round warms up
                best[name] = min(best[name], time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {name: len(x) / seconds for name, seconds in best.items()}


def packed(pixels: Tensor) -> str:
    """Whole numbers from 0 to 255, ``(height, width)`` or ``(height, width, 3)``, as a PNG in text: JSON of them is ten times as long.

    >>> int(unpacked(packed(torch.tensor([[3, 255]])))[0, 1])
    255
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1).to(torch.uint8).numpy()).save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def unpacked(text: str) -> Tensor:
    """What :func:`packed` has written."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return torch.from_numpy(np.asarray(picture).copy())
