"""The commands on networks: ``proofs-check models`` and ``proofs-check checkpoint``."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .inputs import InputError

__all__ = ["add_parsers"]


def add_parsers(commands: Any, write: Callable[[Path, str], None]) -> None:
    """Add the two commands; ``write`` writes a file whole or not at all."""
    sizes = commands.add_parser(
        "models",
        help="parameters and operations of every published network",
        description="Count the papers' networks, beside what is printed of them. Nothing is computed: shapes alone.",
    )
    sizes.add_argument("--json", action="store_true", help="as JSON")
    sizes.add_argument("--list", action="store_true", help="only the names, for unrolling.models.create")
    sizes.set_defaults(command=_models)

    checkpoint = commands.add_parser(
        "checkpoint",
        help="how well a loaded network keeps to its objectives, block by block",
        description="Load a released checkpoint, or a folder or file of save_pretrained, run it on a photograph, and hold"
        " every layer's update against its objective, and every output matrix against its bases. Files are read without"
        " executing anything in them.",
    )
    checkpoint.add_argument(
        "file", type=Path, metavar="FILE", help=".pth, .pth.tar, .pt, .bin, .safetensors, or a folder"
    )
    checkpoint.add_argument(
        "--kind", metavar="KIND", help="of network, if its keys do not tell (cbt, deit, mita-deit …)"
    )
    checkpoint.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="the released constructor's arguments that the weights do not tell (heads=6)",
    )
    checkpoint.add_argument("--image", metavar="FILE", help="the photograph (default: matplotlib's)")
    checkpoint.add_argument(
        "--epsilon", type=_positive, metavar="E", help="of the rates (default: each layer's own, 0.5)"
    )
    checkpoint.add_argument(
        "--key", metavar="NAME", help="the entry of the file to take (model_ema), where it has several"
    )
    checkpoint.add_argument("--json", type=Path, metavar="FILE", help="write what was measured as JSON")
    checkpoint.add_argument("--html", type=Path, metavar="FILE", help="write a page with the figures")
    checkpoint.set_defaults(command=lambda options: _checkpoint(options, write))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, but is {text}")
    return value


def _models(options: argparse.Namespace) -> int:
    from unrolling import models

    if options.list:
        print("\n".join(models.MODELS))
        return 0
    from .sizes import HEAD, SIZES, entry, notes, plain_table, row

    if options.json:
        print(json.dumps([entry(size) for size in _watched(SIZES, "network")], indent=1, ensure_ascii=False))
    else:
        made = [row(size) for size in _watched(SIZES, "network")]
        print(plain_table(made, HEAD))
        print()
        print(notes())
    return 0


def _watched(items: Iterable[Any], unit: str) -> Iterable[Any]:
    """A progress bar on a terminal."""
    from tqdm import tqdm

    return tqdm(items, unit=unit, disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False)


def _checkpoint(options: argparse.Namespace, write: Callable[[Path, str], None]) -> int:
    from .checkpoint import inspect, open_checkpoint, photograph_for

    for path in (options.json, options.html):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist.")
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder; give a file name.")
    try:
        kind, model = open_checkpoint(options.file, options.kind, _config(options.config), options.key)
    except (TypeError, ValueError) as problem:
        hint = (
            " Arguments follow --config: --config heads=6." if "pass " in str(problem) and "=…" in str(problem) else ""
        )
        raise InputError(str(problem) + hint) from None
    x, call, source = photograph_for(model, options.image)
    print(f"{options.file.name}: {kind}, {sum(p.numel() for p in model.parameters()):,} parameters, on {source}")
    found = inspect(
        model,
        x,
        kind=kind,
        name=options.file.name,
        source=source,
        epsilon=options.epsilon,
        each=lambda stages: _watched(stages, "block"),
        **call,
    )
    print(found.table())
    if options.json is not None:
        write(options.json, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
        print(f"measurements: {options.json}")
    if options.html is not None:
        from .checkpoint_page import page

        write(options.html, page(found))
        print(f"page: {options.html} (open it in a browser)")
    return 0


def _config(pairs: list[str]) -> dict[str, Any]:
    """``heads=6 qkv_bias=True attn=MSSA`` to values; what is no literal is a name."""
    values: dict[str, Any] = {}
    for text in pairs:
        name, found, value = text.partition("=")
        if not found or not name.isidentifier():
            raise InputError(f"--config takes NAME=VALUE, but got {text!r}.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values
