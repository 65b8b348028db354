"""The command ``unroll``: train, evaluate, compare; data sets and recipes by name."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .again import keep
from .data import DATA, MissingData
from .experiment_command import run_experiments, write_results
from .experiments import EXPERIMENTS
from .page import compare_page
from .recipe import Recipe, recipe_names
from .run import Diverged, Job, RunFolder

__all__ = ["main"]

SIGMAS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 1 the training failed, 2 wrong use, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    if not hasattr(options, "command"):
        parser.print_help()
        return 2
    try:
        return int(options.command(options))
    except (Diverged, OSError) as problem:
        print(f"unroll: {problem}", file=sys.stderr)
        return 1
    except (ValueError, TypeError) as problem:
        print(f"unroll: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unroll: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unroll",
        description="Train and evaluate networks of attention layers that are descent steps.",
        epilog="The same command with the same --out goes on where it was stopped. Under torchrun:"
        " torchrun --nproc-per-node 2 -m unrolling.training train …",
    )
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND")
    train = kinds.add_parser("train", help="train a classifier or a segmenter").add_subparsers(
        metavar="TASK", required=True
    )
    classify = train.add_parser("classify", help="classes of images")
    classify.add_argument(
        "--model", required=True, help="a name such as cbt-tiny; `proofs-check models --list` lists all"
    )
    classify.add_argument(
        "--attention",
        help="mssa, cbsa, tssa, softmax, agent, mita, or one a block: mssa,cbsa; by default the model's own",
    )
    classify.add_argument("--form", choices=("softmax", "exact"), help="of MSSA, CBSA and TSSA")
    classify.add_argument(
        "--tied", action="store_true", default=None, help="project back by the bases, no free output matrix"
    )
    classify.add_argument("--orthonormal", action="store_true", default=None, help="keep the bases orthonormal")
    classify.add_argument(
        "--certified",
        action="store_true",
        default=None,
        help="steps below the certified bound (exact, tied, orthonormal)",
    )
    classify.set_defaults(task="classify")
    segment = train.add_parser("segment", help="masks")
    segment.add_argument("--decoder", required=True, help="depict-sa, depict-ca, cbt, segmenter-mask or linear")
    segment.add_argument("--backbone", default="scratch", help="scratch, dinov2-small, or the folder of a run or model")
    segment.add_argument("--frozen", action="store_true", help="leave the backbone as it is")
    segment.add_argument(
        "--cache-features", action="store_true", help="compute a frozen backbone's tokens once, kept on the disk"
    )
    segment.set_defaults(task="segment")
    for one in (classify, segment):
        _add_training(one)
    evaluate = kinds.add_parser("evaluate", help="measure a trained network")
    evaluate.add_argument("run", help="the folder of a run, or of a saved network with --data")
    evaluate.add_argument("--data", help="another data set than the run's, with the same classes")
    evaluate.add_argument("--root", help="the folder of that data set")
    evaluate.add_argument("--split", choices=("train", "val", "test"), default="test")
    evaluate.add_argument(
        "--multiscale", action="store_true", help="several scales and flips, as the recipe lists them"
    )
    evaluate.add_argument(
        "--noise-sweep",
        nargs="?",
        const=",".join(map(str, SIGMAS)),
        metavar="σ,…",
        help="noise on every attention parameter",
    )
    evaluate.add_argument("--draws", type=int, default=3, help="of the noise, at every σ")
    evaluate.add_argument("--trace", action="store_true", help="the objective before and after every block")
    evaluate.add_argument("--images", type=int, help="at most so many")
    evaluate.add_argument("--device", help="cpu or cuda")
    evaluate.add_argument("--json", metavar="FILE", help="write the numbers")
    evaluate.set_defaults(command=_evaluate)
    compare = kinds.add_parser("compare", help="runs side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--html", required=True, metavar="FILE")
    compare.set_defaults(command=_compare)
    experiment = kinds.add_parser(
        "experiment",
        help="measure claims of the papers again: " + ", ".join(EXPERIMENTS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            f"{each.name}: {each.question}\n    the full version needs {each.needs}" for each in EXPERIMENTS.values()
        ),
    )
    experiment.add_argument("names", nargs="+", metavar="NAME")
    experiment.add_argument(
        "--profile", choices=("smoke", "full"), default="full", help="smoke: under two minutes each"
    )
    experiment.add_argument("--out", default="experiments", help="the folder of runs, numbers and pictures")
    experiment.add_argument("--processes", type=int, default=1, help="runs at once, each on one thread")
    experiment.add_argument("--quiet", action="store_true", help="no progress bar")
    experiment.set_defaults(command=run_experiments)
    kept = kinds.add_parser("keep", help="copy small trained networks into a folder, with their commands and hashes")
    kept.add_argument("runs", nargs="+", metavar="RUN")
    kept.add_argument("--into", required=True, metavar="DIR")
    kept.set_defaults(command=_keep)
    results = kinds.add_parser("results", help="write the experiments of a folder up")
    results.add_argument("folder")
    results.add_argument("--markdown", required=True, metavar="FILE")
    results.set_defaults(command=write_results)
    data = kinds.add_parser("data", help="which data sets there are, and which are on this machine")
    data.add_argument("name", nargs="?")
    data.add_argument("--root")
    data.set_defaults(command=_data)
    recipes = kinds.add_parser("recipes", help="the recipes that come along; with a name, that one")
    recipes.add_argument("name", nargs="?")
    recipes.set_defaults(command=_recipes)
    return parser


def _add_training(one: argparse.ArgumentParser) -> None:
    one.add_argument("--data", required=True, choices=tuple(DATA), metavar="DATA", help=", ".join(DATA))
    one.add_argument("--root", help="the folder that holds the data set")
    one.add_argument("--recipe", help="a name or a TOML file; by default the one named as the data set")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="lr=0.01, model.depth=4 …; any number of times"
    )
    one.add_argument("--epochs", type=int, help="as --set epochs=")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", help="the run's folder; by default runs/ and what is trained")
    one.add_argument("--device", help="cpu or cuda; by default cuda where there is one")
    one.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="of several processes, under torchrun")
    one.add_argument("--compile", action="store_true", help="by torch.compile")
    one.add_argument("--threads", type=int, help="of torch, on a CPU")
    one.add_argument("--quiet", action="store_true", help="no progress bar")
    one.set_defaults(command=_train)


def job_of(options: argparse.Namespace) -> Job:
    """The job that a command line asks for."""
    name = options.recipe or (options.data if options.data in recipe_names() else None)
    recipe = Recipe() if name is None else Recipe.read(name)
    settings = list(options.set)
    if options.epochs is not None:
        settings.append(f"epochs={options.epochs}")
    recipe = recipe.with_settings(settings)
    root = None if options.root is None else os.fspath(Path(options.root).resolve())
    common: dict[str, Any] = {
        "task": options.task,
        "data": options.data,
        "recipe": recipe,
        "root": root,
        "seed": options.seed,
    }
    if options.task == "classify":
        named = {name: getattr(options, name) for name in ("attention", "form", "tied", "orthonormal", "certified")}
        choices = {name: value for name, value in named.items() if value is not None}
        if "," in choices.get("attention", ""):
            choices["attention"] = tuple(choices["attention"].split(","))
        return Job(**common, model=options.model, choices=choices)
    return Job(
        **common,
        decoder=options.decoder,
        backbone=options.backbone,
        frozen=options.frozen,
        cache=options.cache_features,
    )


def _default_out(job: Job) -> str:
    what = (
        [job.model, *(str(v) if v is not True else k for k, v in job.choices.items())]
        if job.task == "classify"
        else [job.decoder, Path(job.backbone).name]
    )
    return os.path.join("runs", "-".join([*map(str, what), job.data, f"seed{job.seed}"]))


def _train(options: argparse.Namespace) -> int:
    from .. import sharding
    from .trainer import Parallel, local_device, train

    if options.threads:
        torch.set_num_threads(options.threads)
    job = job_of(options)
    folder = RunFolder(options.out or _default_out(job))
    many = "RANK" in os.environ
    device = local_device(options.device)
    mesh = sharding.start("cpu" if device == "cpu" else "cuda") if many else None
    parallel = Parallel(device, options.parallel, mesh, options.compile, options.quiet)
    first = parallel.rank == 0
    if first and folder.state.is_file():
        print(f"going on with {folder.path}", file=sys.stderr)
    try:
        result = train(job, folder, parallel)
        if first:
            draw(folder)
            name = "miou" if job.task == "segment" else "accuracy"
            speed = f"{result['images_per_second']} images/s"
            print(
                f"{folder.path}: test {name} {result['test'][name]:.4f}, {result['parameters']:,} parameters, {speed}"
            )
            print(f"page: {folder.path / 'index.html'} (open it in a browser)")
    finally:
        del parallel, mesh
        if many and sys.exc_info()[0] is None:
            sharding.finish()
    return 0


def draw(folder: RunFolder) -> None:
    """Writes a run's curves and its page."""
    from .checkpoint import write_text
    from .figures import plot_runs, save_figure
    from .page import run_page

    save_figure(plot_runs({folder.path.name: folder}), folder.path / "curves.png")
    write_text(folder.path / "index.html", run_page(folder))


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluation_command import evaluate_run

    return evaluate_run(options)


def _compare(options: argparse.Namespace) -> int:
    from .checkpoint import write_text

    runs = {}
    for place in options.runs:
        folder = RunFolder(place)
        folder.job()
        name = folder.path.name
        runs[name if name not in runs else os.fspath(folder.path)] = folder
    write_text(Path(options.html), compare_page(runs))
    print(f"page: {options.html} (open it in a browser)")
    return 0


def _keep(options: argparse.Namespace) -> int:
    cards = keep([RunFolder(place) for place in options.runs], Path(options.into))
    print(f"{options.into}: {len(cards)} networks")
    return 0


def _data(options: argparse.Namespace) -> int:
    from .data import load_data

    names = [options.name] if options.name else list(DATA)
    if options.name and options.name not in DATA:
        raise ValueError(f"no data set is named {options.name!r}; there are {', '.join(DATA)}.")
    for name in names:
        try:
            if options.name is None and name in ("crafter", "mni152", "brains-aal", "fashion-scenes"):
                print(f"{name:15} {DATA[name][0]:9} `unroll data {name}` makes it, once")
                continue
            found = load_data(name, options.root)
            sizes = f"{len(found.train):,} / {len(found.val):,} / {len(found.test):,} images"
            size = (
                "of several sizes" if found.train.size is None else f"of {found.train.size[0]} × {found.train.size[1]}"
            )
            print(f"{name:15} {DATA[name][0]:9} {sizes} {size}, {len(found.train.classes)} classes")
        except (MissingData, ValueError, TypeError) as problem:
            if options.name:
                raise
            print(f"{name:15} {DATA[name][0]:9} {problem}")
    return 0


def _recipes(options: argparse.Namespace) -> int:
    if options.name:
        print(json.dumps(Recipe.read(options.name).to_dict(), indent=2))
    else:
        print("\n".join(recipe_names()))
    return 0
