"""The command ``proofs-check report-model``: a descent report of a saved network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .inputs import InputError

__all__ = ["add_descent"]


def add_descent(commands: Any, write: Callable[[Path, str], None]) -> None:
    """Add the command; ``write`` writes a file whole or not at all."""
    command = commands.add_parser(
        "report-model",
        help="how well every layer and head of a saved network descends, over several images",
        description="Load a released checkpoint, or a folder or file of save_pretrained, run it on a few images, and hold"
        " what every attention and every head adds against an objective. Measured, not claimed: see proofs-check checkpoint"
        " for output matrices. Files are read without executing anything in them.",
    )
    command.add_argument("file", type=Path, metavar="FOLDER_OR_CHECKPOINT", help="as for proofs-check checkpoint")
    command.add_argument("--kind", metavar="KIND", help="of network, if its keys do not tell")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--image", metavar="FILE", help="the photograph (default: matplotlib's)")
    source.add_argument("--data", metavar="NAME", help="a data set of unroll instead: images of its test part")
    command.add_argument("--images", type=int, default=16, metavar="N", help="how many of the data set (16)")
    command.add_argument(
        "--objective", metavar="NAME", help="to hold all against (default: what each layer stands for)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write every number of every image as JSON")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with curves and tables")
    command.set_defaults(command=lambda options: _run(options, write))


def _run(options: argparse.Namespace, write: Callable[[Path, str], None]) -> int:
    from unrolling import training

    from .checkpoint import open_checkpoint, photograph_for
    from .descent_records import writable
    from .descent_report import descent_report

    try:
        for path in (options.json, options.html):
            if path is not None:
                writable(path)
        kind, model = open_checkpoint(options.file, options.kind)
        data: Any
        call: dict[str, Any] = {}
        if options.data is None:
            data, call, source = photograph_for(model, options.image)
        else:
            data, source = training.load_data(options.data), f"the test part of {options.data}"
        report = descent_report(model, data, objective=options.objective, images=options.images, call=call)
    except (TypeError, ValueError) as problem:
        raise InputError(str(problem)) from None
    print(f"{options.file.name}: {kind}, on {source}")
    print(report)
    if options.json is not None:
        write(options.json, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")
        print(f"measurements: {options.json}")
    if options.html is not None:
        print(f"page: {report.html(options.html)} (open it in a browser)")
    return 0
