"""The command that makes a run again, and trained networks kept with it: small ones, for others to load and to check."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models import load
from .checkpoint import fingerprint, write_text
from .recipe import Recipe, recipe_names
from .run import Job, RunFolder

__all__ = ["CARDS", "command_of", "keep", "read_cards"]

CARDS = "checkpoints.json"
LARGEST = 3_000_000
"""Bytes of a network that is kept: what ships with a repository is small."""


def command_of(job: Job) -> str:
    """The command line of a job: its choices, and what of its recipe differs from the one named as the data set.

    >>> command_of(Job("classify", "digits", Recipe.read("digits").with_settings(["lr=0.1"]), model="cbt-tiny"))
    'unroll train classify --model cbt-tiny --data digits --set lr=0.1'
    """
    parts = ["unroll", "train", job.task]
    if job.task == "classify":
        parts += ["--model", str(job.model)]
        for name, value in job.choices.items():
            parts += [f"--{name}"] if value is True else [f"--{name}", _text(value)]
    else:
        parts += ["--decoder", str(job.decoder), "--backbone", job.backbone]
        parts += ["--frozen"] if job.frozen else []
        parts += ["--cache-features"] if job.cache else []
    parts += ["--data", job.data]
    parts += ["--root", job.root] if job.root else []
    base = Recipe.read(job.data) if job.data in recipe_names() else Recipe()
    for key, value in _changes(base.to_dict(), job.recipe.to_dict()):
        parts += ["--set", f"{key.removeprefix('train.')}={_toml(value)}"]
    parts += ["--seed", str(job.seed)] if job.seed else []
    return shlex.join(parts)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    if before and set(old) - set(new):  # something was left out: only the whole table says so
        yield before.rstrip("."), new
        return
    for key, value in new.items():
        if f"{before}{key}" == "augment":  # a table whose order counts
            if list(value.items()) != list(old.get(key, {}).items()):
                yield key, value
        elif isinstance(value, Mapping) and isinstance(old.get(key), Mapping):
            yield from _changes(old[key], value, f"{before}{key}.")
        elif key not in old or old[key] != value:
            yield f"{before}{key}", value
    for key in set(old) - set(new) if not before else ():
        yield key, {}


def _toml(value: Any) -> str:
    """A value as TOML has it, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def keep(runs: Sequence[RunFolder], folder: Path) -> dict[str, Any]:
    """Copies trained networks into a folder, with a card each: command, fingerprint, numbers; returns the cards.

    Raises
    ------
        ValueError for a run that is not done, and for a network above 3 MB.
    """
    cards = read_cards(folder) if (folder / CARDS).is_file() else {}
    for run in runs:
        result, job = run.result(), run.job()
        if result is None or not run.model.is_dir():
            raise ValueError(f"{run.path}: is not done; run the same training command to go on.")
        size = (run.model / "model.safetensors").stat().st_size
        if size > LARGEST:
            raise ValueError(
                f"{run.path}: the network has {size / 1e6:.1f} MB; what is kept has at most {LARGEST / 1e6:.0f}."
            )
        name = run.path.name
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(run.model / file, home / file)
        numbers = {key: value for key, value in result["test"].items() if isinstance(value, (int, float))}
        cards[name] = {
            "command": command_of(job),
            "sha256": fingerprint(load(home).state_dict()),
            "test": numbers,
            "parameters": result["parameters"],
            "job": job.to_dict(),
        }
    write_text(folder / CARDS, json.dumps(dict(sorted(cards.items())), indent=1) + "\n")
    return cards


def read_cards(folder: Path) -> dict[str, Any]:
    """The cards of a folder that :func:`keep` has made."""
    place = folder / CARDS
    try:
        return dict(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError, ValueError) as problem:
        raise ValueError(f"{place}: holds no cards of networks ({problem}).") from None
