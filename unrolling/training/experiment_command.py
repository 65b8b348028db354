"""``unroll experiment`` and ``unroll results``: run experiments, keep their numbers, write them up."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from ..errors import check_choice
from .checkpoint import write_text
from .experiments import EXPERIMENTS, Setting
from .figures import save_figure
from .run import environment

__all__ = ["run_experiments", "write_results"]


def run_experiments(options: argparse.Namespace) -> int:
    """Runs ``unroll experiment``: for every name, ``NAME.json`` and pictures in the folder, and a table printed."""
    for name in options.names:
        check_choice("experiment", "experiment", name, tuple(EXPERIMENTS))
    out = Path(options.out)
    for name in options.names:
        experiment, began = EXPERIMENTS[name], time.perf_counter()
        setting = Setting(options.profile, out / "runs" / name, options.processes, options.quiet)
        results = experiment.run(setting)
        found = {
            "experiment": name,
            "profile": options.profile,
            "command": f"unroll experiment {name} --profile {options.profile}",
            "seconds": round(time.perf_counter() - began, 1),
            "environment": {key: value for key, value in environment().items() if key != "command"},
            "results": results,
        }
        write_text(out / f"{name}.json", json.dumps(found, indent=1) + "\n")
        for file, figure in experiment.figures(results).items():
            save_figure(figure, out / file)
        print(f"{experiment.question}\n\n{experiment.render(results)}\n{out / name}.json, {found['seconds']:.0f} s")
    return 0


def write_results(options: argparse.Namespace) -> int:
    """Runs ``unroll results``: one Markdown page from the experiments' JSON files.

    Pictures of an experiment that lie beside its JSON file are shown, and what is written in ``NAME.md`` there follows.
    """
    folder, target = Path(options.folder), Path(options.markdown)
    parts = [
        "# Results\n\nMade by `unroll results` from the JSON files of the experiments; the command above each table makes its numbers"
        " again.\n"
    ]
    for name, experiment in EXPERIMENTS.items():
        place = folder / f"{name}.json"
        if not place.is_file():
            continue
        try:
            found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
            text = experiment.render(found["results"])
        except (json.JSONDecodeError, KeyError, TypeError) as problem:
            raise ValueError(f"{place}: holds no results of {name} ({problem!r}).") from None
        where = ", ".join(f"{key} {value}" for key, value in found["environment"].items())
        parts.append(f"## {name}\n\n{experiment.question}\n\n    {found['command']}\n\n{text}")
        for picture in experiment.figures(found["results"]):
            if (folder / picture).is_file():
                parts.append(f"![{picture}]({os.path.relpath(folder / picture, target.parent)})\n")
        said = folder / f"{name}.md"
        if said.is_file():
            parts.append(said.read_text(encoding="utf-8"))
        parts.append(f"_{found['seconds']:.0f} s; {where}._\n")
    if len(parts) == 1:
        raise ValueError(f"{folder}: holds no results; run `unroll experiment` with --out {folder} first.")
    write_text(target, "\n".join(parts))
    print(f"{target}: {sum(part.startswith('## ') for part in parts)} experiments")
    return 0
