"""A run's folder: what was asked for, the metrics line by line, checkpoints, results; and what goes on after a kill."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from ..errors import check_choice, check_count
from .checkpoint import write_text
from .recipe import Recipe

__all__ = ["Diverged", "Job", "RunFolder", "environment"]

CONFIG, METRICS, STATE, RESULT = "config.json", "metrics.jsonl", "last.safetensors", "result.json"


class Diverged(RuntimeError):
    """The loss is no number any more; what was saved before is intact."""


@dataclass(frozen=True)
class Job:
    """What a run trains: everything that its numbers depend on, beside the number of processes.

    task: "classify" or "segment". data, root: the data set's name, and its folder where it needs one. model: a name of
    :data:`unrolling.models.MODELS`, with choices: fields of its configuration. decoder, backbone, frozen: of a segmenter;
    cache: train a decoder on the frozen backbone's features as they are on the disk. seed: of first weights, order,
    augmentation and dropout.
    """

    task: str
    data: str
    recipe: Recipe = field(default_factory=Recipe)
    root: str | None = None
    model: str | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    decoder: str | None = None
    backbone: str = "scratch"
    frozen: bool = False
    cache: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("job", "task", self.task, ("classify", "segment"))
        check_count("job", "seed", self.seed, 0)
        if (self.model is None) == (self.task == "classify"):
            raise ValueError("job: classify takes a model, segment a decoder and a backbone.")
        if self.cache and not self.frozen:
            raise ValueError("job: only a frozen backbone's features can be cached; add --frozen.")
        if self.cache and self.recipe.augment:
            raise ValueError("job: cached features are of the images as they are; leave the recipe's [augment] empty.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The job of plain data."""
        return cls(**{**values, "recipe": Recipe.from_dict(values["recipe"])})


def environment() -> dict[str, Any]:
    """Where a run took place: versions, processor, threads, and the command."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "command": " ".join(
            ["unroll" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name, *sys.argv[1:]]
        ),
    }


class RunFolder:
    """The folder of one run.

    ``config.json``: the job and the environment. ``metrics.jsonl``: a line for every stretch of steps and every evaluation.
    ``last.safetensors``: weights, optimiser, position. ``model/``: the network, when all epochs are done. ``result.json``,
    ``curves.png``, ``index.html``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file; give a folder for the run.")

    @property
    def state(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / STATE

    @property
    def model(self) -> Path:
        """The folder of the trained network."""
        return self.path / "model"

    def open(self, job: Job) -> bool:
        """Makes the folder for this job; or finds that it holds the same job, begun. Returns whether there is a checkpoint.

        Raises
        ------
            ValueError where the folder holds another job, and says what differs.
        """
        config = self.path / CONFIG
        # Through JSON and back, so that tuples compare as the lists that they are written as.
        wanted = json.loads(json.dumps(job.to_dict()))
        if config.is_file():
            found = self.job().to_dict()
            differing = sorted(_differences(json.loads(json.dumps(found)), wanted))
            if differing:
                raise ValueError(
                    f"{self.path} holds another run: {'; '.join(differing[:4])}. Choose another --out, or give the same settings"
                    " to go on."
                )
            return self.state.is_file()
        for left in self.path.glob("*.part"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no run; choose another --out.")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(config, json.dumps({"job": wanted, "environment": environment()}, indent=2) + "\n")
        return False

    def _config(self) -> dict[str, Any]:
        config = self.path / CONFIG
        if not config.is_file():
            raise ValueError(f"{self.path}: holds no run; there is no {CONFIG}.")
        try:
            return json.loads(config.read_text(encoding="utf-8"))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{config}: is not JSON ({problem}).") from None

    def job(self) -> Job:
        """The job that the folder holds."""
        found = self._config()
        try:
            return Job.from_dict(found["job"])
        except (KeyError, TypeError) as problem:
            raise ValueError(f"{self.path / CONFIG}: describes no run ({problem}).") from None

    def environment(self) -> dict[str, Any]:
        """Where the run began."""
        return dict(self._config().get("environment", {}))

    def rewind(self, step: int) -> None:
        """Drops the lines of steps after this one: those that a killed run wrote after its last checkpoint."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_text(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, line: Mapping[str, Any]) -> None:
        """Adds a line of metrics."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _rounded(value) for name, value in line.items()}) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """The lines so far; one that a kill cut short is left out."""
        return list(self._lines())

    def _lines(self) -> Iterator[dict[str, Any]]:
        place = self.path / METRICS
        if not place.is_file():
            return
        for text in place.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line

    def result(self) -> dict[str, Any] | None:
        """The final numbers, None while there are none."""
        place = self.path / RESULT
        return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the final numbers."""
        write_text(self.path / RESULT, json.dumps(result, indent=2) + "\n")


def _rounded(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif found != wanted:
        yield f"{name} is {found!r} there and {wanted!r} here"
