"""A recipe: how a network is trained and evaluated, in a small TOML file; the published ones come along by name."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Self

from ..errors import check_choice, check_count

__all__ = ["Recipe", "recipe_names"]

SECTIONS = ("augment", "mix", "evaluate", "model", "decoder", "backbone", "data")
"""Tables of a recipe file beside ``[train]``."""

CHOICES = {
    "optimiser": ("adamw", "lion", "sgd"),
    "schedule": ("cosine", "polynomial", "constant"),
    "per": ("epoch", "step"),
    "warmup_joined": ("min", "after"),
    "loss": ("cross-entropy", "binary"),
    "precision": ("float32", "bfloat16"),
    "decay": ("matrices", "all"),
}
COUNTS = {"epochs": 1, "batch": 1, "accumulate": 1, "repeats": 1, "workers": 0, "save_every": 0, "lr_per": 0}
NOT_NEGATIVE = ("weight_decay", "warmup", "min_lr", "clip", "power")
SHARES = ("momentum", "smoothing", "ema", "drop_path")


@dataclass(frozen=True)
class Recipe:
    """How to train and evaluate. Fields of the table ``[train]``:

    epochs, batch (of all processes together), accumulate: passes that a batch is cut into. optimiser: "adamw", "lion" or
    "sgd"; lr, times batch / lr_per where lr_per is not 0; weight_decay, and whether it holds for "matrices" alone or "all";
    momentum of SGD; betas of the others. schedule: "cosine", "polynomial" (of power) or "constant", down to min_lr; per "epoch" or "step";
    warmup: epochs of linear growth, joined by "min" of both or "after" one another. smoothing of labels; loss:
    "cross-entropy" or "binary". precision: "float32" or "bfloat16" (autocast). clip: the gradient's largest norm, 0 for
    none. ema: decay of the moving average of the weights that is evaluated, 0 for none. repeats: how often an image
    appears in an epoch. drop_path: of the model, where it has one. workers: processes that read images. save_every: steps
    between checkpoints; 0: at the end of an epoch. regularise: weight of the sparse rate reduction in the loss.

    The other tables: augment (see :mod:`augment`), mix (mixup, cutmix), evaluate (resize, center_crop, window, stride,
    scales, flip), model, decoder and backbone (fields of their configurations; a table inside, named as a class, holds for
    that class alone), data (options of the data set).

    >>> Recipe().with_settings(["lr=0.1", "model.depth=4"]).model
    {'depth': 4}
    """

    epochs: int = 10
    batch: int = 128
    accumulate: int = 1
    optimiser: str = "adamw"
    lr: float = 1e-3
    lr_per: int = 0
    weight_decay: float = 0.05
    decay: str = "matrices"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    per: str = "step"
    warmup: float = 0.0
    warmup_joined: str = "after"
    min_lr: float = 0.0
    power: float = 0.9
    smoothing: float = 0.0
    loss: str = "cross-entropy"
    precision: str = "float32"
    clip: float = 0.0
    ema: float = 0.0
    repeats: int = 1
    drop_path: float = 0.0
    workers: int = 0
    save_every: int = 0
    regularise: float = 0.0
    augment: Mapping[str, Any] = field(default_factory=dict)
    mix: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    decoder: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice("recipe", name, getattr(self, name), choices)
        for name, least in COUNTS.items():
            check_count("recipe", name, getattr(self, name), least)
        for name in ("lr", *NOT_NEGATIVE, *SHARES, "regularise"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"recipe: {name} must be a number, but is {value!r}.")
            if name == "lr" and value <= 0:
                raise ValueError(f"recipe: lr must be positive, but is {value}.")
            if name in NOT_NEGATIVE and value < 0:
                raise ValueError(f"recipe: {name} must not be negative, but is {value}.")
            if name in SHARES and not 0 <= value < 1:
                raise ValueError(f"recipe: {name} must be in [0, 1), but is {value}.")
        betas = self.betas
        if len(betas) != 2 or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas):
            raise ValueError(f"recipe: betas must be two numbers in [0, 1), but are {betas!r}.")
        if self.loss == "binary" and self.smoothing:
            raise ValueError("recipe: the binary loss takes every class that has a share as present; set smoothing=0.")
        if self.batch % self.accumulate:
            raise ValueError(
                f"recipe: batch {self.batch} cannot be cut into accumulate = {self.accumulate} equal passes."
            )

    @property
    def rate(self) -> float:
        """The learning rate, scaled by the batch where the recipe says so."""
        return self.lr * self.batch / self.lr_per if self.lr_per else self.lr

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe of a parsed file: ``[train]`` and the other tables.

        Raises
        ------
            ValueError that names fields that do not exist, and lists those that do.
        """
        train = dict(values.get("train", {}))
        known = {each.name for each in dataclasses.fields(cls)} - set(SECTIONS)
        unknown = sorted(set(train) - known) + sorted(set(values) - {"train", *SECTIONS})
        if unknown:
            raise ValueError(
                f"recipe: unknown {', '.join(unknown)}; [train] has {', '.join(sorted(known))}; other tables are {', '.join(SECTIONS)}."
            )
        if isinstance(train.get("betas"), list):
            train["betas"] = tuple(train["betas"])
        for name in SECTIONS:
            if name in values and not isinstance(values[name], Mapping):
                raise ValueError(f"recipe: {name} must be a table, but is {values[name]!r}.")
        tables: dict[str, Any] = {name: dict(values[name]) for name in SECTIONS if name in values}
        return cls(**train, **tables)

    @classmethod
    def read(cls, name: str | os.PathLike[str]) -> Self:
        """The recipe of that name that comes along, or in that TOML file.

        Raises
        ------
            ValueError for a name that is neither, and for a file that is not TOML or has unknown fields.
        """
        path = Path(name)
        if path.suffix == ".toml" or path.is_file():
            if not path.is_file():
                raise ValueError(f"recipe: there is no file {path}.")
            text = path.read_text(encoding="utf-8")
        elif str(name) in recipe_names():
            text = (resources.files(__package__) / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        else:
            raise ValueError(f"recipe: {name} is no file, and none that comes along: {', '.join(recipe_names())}.")
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as problem:
            raise ValueError(f"recipe: {name} is not TOML ({problem}).") from None

    def with_settings(self, settings: Iterable[str]) -> Self:
        """The recipe with ``key=value`` of each setting: ``lr=0.01`` (of [train]), ``model.depth=4``; values as in TOML.

        ``augment={}`` exchanges a whole table.

        A value that is no TOML is taken as text: ``optimiser=lion``.
        """
        values = self.to_dict()
        for setting in settings:
            key, sign, text = setting.partition("=")
            parts = key.strip().split(".")
            if not sign or not all(parts):
                raise ValueError(f"--set {setting}: write key=value, such as lr=0.01 or model.depth=4.")
            if len(parts) == 1 and parts[0] not in SECTIONS:
                parts = ["train", *parts]
            table = values
            for part in parts[:-1]:
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    raise ValueError(f"--set {setting}: {part} is a value, not a table.")
            table[parts[-1]] = _parse(text.strip())
        return type(self).from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the form of a recipe file."""
        values = dataclasses.asdict(self)
        tables = {name: values.pop(name) for name in SECTIONS}
        values["betas"] = list(values["betas"])
        return {"train": values, **{name: table for name, table in tables.items() if table}}


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def recipe_names() -> list[str]:
    """The recipes that come along."""
    folder = resources.files(__package__) / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
