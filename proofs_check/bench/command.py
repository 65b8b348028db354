"""The command ``proofs-check bench``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..inputs import InputError, default_image, from_image
from ..run import PROFILES, Campaign
from .cost_model import COMMUNICATION, CostModel, Link, fit
from .ranks import RANKED, RankCheck, check_ranks
from .subjects import OURS, STEMS, Contestant, Sizes
from .timing import BOTH, MODES, Measured, fraction_of_limit, measure_stem, ratio, slope

__all__ = ["add_parser"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def add_parser(commands: Any, write: Callable[[Path, str], None]) -> None:
    """Add the command; ``write`` writes a file whole or not at all."""
    bench = commands.add_parser(
        "bench",
        help="time the fast paths, once their claims hold, beside the machine's limit",
        description="Run the claims of each stem, and time what holds: the fast path, its plain twin, full and linear"
        " attention and the machine's own limit, in turns. Stems: " + ", ".join(STEMS) + ".",
        epilog="Times mean something as ratios within one run, on a machine that does nothing else.",
    )
    bench.add_argument("stems", nargs="*", metavar="STEM", help="default: all but the networks cbt and mita_deit")
    bench.add_argument(
        "--sizes", type=_numbers, metavar="N,N,…", help="tokens (networks: sides); default 256 to 65,536"
    )
    bench.add_argument("--dim", type=_count, default=384, metavar="D", help="width of a token (384)")
    bench.add_argument("--heads", type=_count, default=6, metavar="H", help="heads (6)")
    bench.add_argument("-m", type=_count, default=64, metavar="M", help="representatives or landmarks (64)")
    bench.add_argument("--keys", type=_count, default=64, metavar="K", help="keys of an expert (64)")
    bench.add_argument("--batch", type=_count, default=1, metavar="B", help="token sets (1)")
    bench.add_argument("--dtype", choices=DTYPES, default="float32", help="float32")
    bench.add_argument("--device", default="cpu", help="cpu, or cuda")
    bench.add_argument("--repetitions", type=_count, default=7, metavar="R", help="rounds (7)")
    bench.add_argument(
        "--longest", type=_positive, default=10.0, metavar="S", help="seconds that one run may take (10)"
    )
    bench.add_argument("--against", type=Path, metavar="FILE.py", help="more contestants: see below")
    bench.add_argument("--model", action="store_true", help="predict time and memory to 10⁸ tokens on many machines")
    bench.add_argument("--machines", type=_numbers, default=(1, 8, 64), metavar="G,G,…", help="for --model (1,8,64)")
    bench.add_argument(
        "--ranks",
        type=_count,
        default=2,
        metavar="R",
        help="for --model: processes here to hold it against (2; 1: none)",
    )
    bench.add_argument("--bandwidth", type=_positive, default=50.0, metavar="GB/s", help="between machines (50)")
    bench.add_argument("--latency", type=_positive, default=20.0, metavar="µs", help="between machines (20)")
    bench.add_argument("--compare", type=Path, metavar="FILE", help="an earlier --json: what became slower")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the measurements")
    bench.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures")
    bench.set_defaults(command=lambda options: _bench(options, write))
    bench.epilog = (
        "FILE.py of --against defines contestants(stem, sizes, tokens), a list of proofs_check.bench.Contestant. It is"
        " executed: pass your own only. " + str(bench.epilog)
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text!r}")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part.strip()) for part in text.split(",")}))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, but is {text}")
    return value


def _bench(options: argparse.Namespace, write: Callable[[Path, str], None]) -> int:
    from tqdm import tqdm

    names = options.stems or [name for name, stem in STEMS.items() if not stem.network]
    _check(options, names)
    before = _read(options.compare) if options.compare is not None else None
    others = _others(options.against) if options.against is not None else None
    sizes = Sizes(
        options.dim, options.heads, options.m, options.keys, options.batch, DTYPES[options.dtype], options.device
    )
    sound, said = _claims_hold(names)
    if not sound:
        print(f"proofs-check: nothing is timed: no claim holds of {', '.join(names)}.", file=sys.stderr)
        return 1
    counts = {name: options.sizes or STEMS[name].tokens for name in sound}
    found: dict[str, list[Measured]] = {}
    total = sum(len(MODES) * len(counts[name]) for name in sound)
    with tqdm(total=total, unit="size", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def advance(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        for name in sound:
            stem = STEMS[name]
            found[name] = measure_stem(
                stem,
                sizes,
                counts[name],
                repetitions=options.repetitions,
                longest=options.longest,
                others=None if others is None else partial(others, name),
                progress=advance,
            )
            bar.write(_table(name, found[name]))
    models = [model for name in sound for model in _models(name, sizes, found[name])] if options.model else []
    if options.model and not models:
        print(f"no cost model: it needs three sizes from 1,024 tokens on, of {', '.join(COMMUNICATION)}.")
    checks = _ranks(sizes, [model.stem for model in models], options.ranks)
    run = _result(options, sizes, found, said, models, checks)
    lines = [] if before is None else _compare(before, found)
    print("\n".join([*lines, *map(_predicted, models), *map(_checked, checks)]))
    if options.json is not None:
        write(options.json, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
        print(f"measurements: {options.json}")
    if options.html is not None:
        write(options.html, _page(run, found, models, checks, lines, options))
        print(f"page: {options.html} (open it in a browser)")
    return 0 if len(sound) == len(names) else 1


def _check(options: argparse.Namespace, names: Sequence[str]) -> None:
    for name in names:
        if name not in STEMS:
            raise InputError(f"no stem of the bench is named {name!r}; there are {', '.join(STEMS)}.")
    if options.dim % options.heads:
        raise InputError(f"--heads {options.heads} must divide --dim {options.dim}.")
    for path in (options.json, options.html):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist.")
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder; give a file name.")
    if options.device != "cpu":
        try:
            torch.zeros(1, device=options.device)
        except (RuntimeError, AssertionError) as problem:
            raise InputError(f"--device {options.device}: {str(problem).splitlines()[0]}") from None


def _claims_hold(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The stems all of whose claims hold, and a sentence on each."""
    from ..claims import select
    from ..session import run_all

    wanted = select(sorted({claim for name in names for claim in STEMS[name].claims}))
    print(f"claims: {len(wanted)} before anything is timed")
    verdicts, seconds = run_all(wanted, Campaign(PROFILES["quick"], source=from_image(default_image())))
    print(f"{sum(verdict.sound for verdict in verdicts)} of {len(verdicts)} are as they should be; {seconds:.0f} s")
    sound, said = [], {}
    for name in names:
        mine = {claim.id for claim in select(list(STEMS[name].claims))}
        bad = [verdict for verdict in verdicts if verdict.id in mine and not verdict.sound]
        said[name] = f"{len(mine)} claims were checked before and are as they should be."
        if bad:
            reasons = "; ".join(f"{verdict.id} {verdict.status}: {verdict.reason}" for verdict in bad)
            print(f"proofs-check: {name} is not timed: {reasons}", file=sys.stderr)
        else:
            sound.append(name)
    return sound, said


def _others(path: Path) -> Callable[[str, Sizes, int], list[Contestant]]:
    specification = importlib.util.spec_from_file_location("against", path)
    if specification is None or specification.loader is None or not path.is_file():
        raise InputError(f"--against {path}: no such Python file.")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not callable(getattr(module, "contestants", None)):
        raise InputError(f"--against {path}: it must define contestants(stem, sizes, tokens).")
    made: Callable[[str, Sizes, int], list[Contestant]] = module.contestants
    return made


def _table(name: str, found: list[Measured]) -> str:
    from .page import seconds, size

    lines = [f"\n{STEMS[name].title}"]
    for mode in MODES:
        lines.append(f"  {mode}")
        for each in sorted((e for e in found if e.mode == mode), key=lambda e: e.tokens):
            times = ratio(found, each.contestant, mode).get(each.tokens)
            share = "" if times is None or each.contestant == OURS else f"{times:8.3g} ×"
            line = f"    {each.tokens:>7,}  {each.contestant:18} {seconds(each.seconds):>9}  {size(each.memory):>9} {share}"
            lines.append(line.rstrip())
        steep = None if STEMS[name].network else slope(found, OURS, mode)
        if steep is not None:
            lines.append(f"    slope of {OURS} from 4,096 tokens: {steep:.2f}")
    return "\n".join(lines)


def _models(name: str, sizes: Sizes, found: list[Measured]) -> list[CostModel]:
    if name not in COMMUNICATION:
        return []
    model = fit(name, sizes, found, BOTH)
    return [] if model is None else [model]


def _ranks(sizes: Sizes, names: list[str], ranks: int) -> list[RankCheck]:
    able = [name for name in names if name in RANKED]
    if not able or ranks < 2 or sizes.device != "cpu" or sizes.dtype == torch.bfloat16:
        return []
    return check_ranks(able, sizes, ranks)


def _checked(check: RankCheck) -> str:
    from .page import seconds

    return (
        f"{check.stem}: {check.tokens:,} tokens on {check.ranks} processes of this machine, a thread each, the layer forward"
        f" and backward: its shard alone {seconds(check.local)}, with the sums {seconds(check.measured)},"
        f" {check.measured / check.predicted:.2f} times the predicted (a message {seconds(check.latency)},"
        f" {check.bandwidth / 1e9:.3g} GB/s)."
    )


def _predicted(model: CostModel) -> str:
    from .page import seconds, size

    at, factor = model.checked or (0, math.nan)
    return (
        f"{model.stem}: {seconds(model.per_token)} and {size(model.bytes_per_token)} a token, {model.mode};"
        f" {model.numbers:,} numbers to be summed. Predicted for {at:,} tokens from smaller sizes: {factor:.2f} times the"
        f" measured. 10⁸ tokens on one machine: {seconds(model.seconds(1e8))}, {size(model.memory(1e8))}."
    )


def _result(
    options: argparse.Namespace,
    sizes: Sizes,
    found: dict[str, list[Measured]],
    said: dict[str, str],
    models: list[CostModel],
    checks: list[RankCheck],
) -> dict[str, Any]:
    """The object of ``--json``, schema 1."""
    stems = {}
    for name, each in found.items():
        summary = {
            mode: {
                "slope": None if STEMS[name].network else slope(each, OURS, mode),
                "ratios": {
                    rival: {str(tokens): value for tokens, value in ratio(each, rival, mode).items()}
                    for rival in dict.fromkeys(one.contestant for one in each)
                    if rival != OURS
                },
                "fraction of the limit": {str(n): share for n, share in fraction_of_limit(each, mode).items()},
            }
            for mode in MODES
        }
        stems[name] = {"measurements": [one.to_json() for one in each], "summary": summary}
    return {
        "schema": 1,
        "environment": environment(options.device),
        "settings": {
            "dim": sizes.dim,
            "heads": sizes.heads,
            "m": sizes.m,
            "keys": sizes.keys,
            "batch": sizes.batch,
            "dtype": options.dtype,
            "device": sizes.device,
            "item": sizes.dtype.itemsize,
            "seed": sizes.seed,
        },
        "claims": said,
        "stems": stems,
        "model": [asdict(model) for model in models],
        "ranks": [asdict(check) for check in checks],
    }


def environment(device: str) -> dict[str, str]:
    """What this ran on."""
    from ..session import environment as versions

    about = {key: value for key, value in versions().items() if key not in ("hypothesis", "blas threads a process")}
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    about["processor"] = named[0] if named else platform.processor() or "unknown"
    about["threads"] = str(torch.get_num_threads())
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    levels = sorted(caches.glob("index*")) if caches.is_dir() else []
    about["caches"] = ", ".join(
        f"L{(level / 'level').read_text().strip()} {(level / 'size').read_text().strip()}" for level in levels
    )
    if hasattr(os, "getloadavg"):
        about["load before"] = f"{os.getloadavg()[0]:.2f}"
    if device != "cpu":
        about["GPU"] = torch.cuda.get_device_name(device)
    return about


def _read(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["schema"] != 1 or not isinstance(run["stems"], dict):
            raise ValueError(run["schema"])
    except OSError as problem:
        raise InputError(f"--compare {path}: {problem.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--compare {path}: this is no --json of proofs-check bench.") from None
    return dict(run)


def _compare(before: dict[str, Any], found: dict[str, list[Measured]]) -> list[str]:
    """New over old time relative to the limit's in each run, so that a slower machine does not count as slower code."""
    lines = ["", "new time / old, and the same relative to each run's own limit (≤ 1: no slower)"]
    for name, each in found.items():
        old = [Measured(**one) for one in before["stems"].get(name, {}).get("measurements", [])]
        for mode in MODES:
            limits = fraction_of_limit(each, mode), fraction_of_limit(old, mode)
            for one in each:
                was = [o for o in old if (o.contestant, o.tokens, o.mode) == (one.contestant, one.tokens, mode)]
                if one.contestant != OURS or one.mode != mode or not was:
                    continue
                times = one.seconds / was[0].seconds
                shares = [share.get(one.tokens) for share in limits]
                relative = shares[1] / shares[0] if shares[0] and shares[1] else math.nan
                beyond = one.low > was[0].high and not relative <= 1.1
                word = "  slower" if beyond else ""
                lines.append(f"  {name:12} {mode:20} {one.tokens:>7,}  {times:6.2f}  {relative:6.2f}{word}")
    return lines


def _page(
    run: dict[str, Any],
    found: dict[str, list[Measured]],
    models: list[CostModel],
    checks: list[RankCheck],
    lines: list[str],
    options: argparse.Namespace,
) -> str:
    from html import escape

    from unrolling import plots

    from .page import page, plot_model

    parts = []
    if models:
        link = Link(options.bandwidth * 1e9, options.latency * 1e-6)
        drawn = plots.svg_of(plot_model(models, options.machines, link))
        said = "".join(f"<p>{escape(text)}</p>" for text in [*map(_predicted, models), *map(_checked, checks)])
        parts.append(
            "<h2>Many machines</h2><p class='note'>Fitted to the sizes from 1,024 but the largest, which is the check; sums"
            f" pass through a ring at {options.bandwidth:g} GB/s after {options.latency:g} µs a message.</p>"
            f"{said}<section class='figure'>{drawn}</section>"
        )
    if lines:
        parts.append(f"<h2>Compared with {escape(options.compare.name)}</h2><pre>{escape(chr(10).join(lines))}</pre>")
    return page(run, found, parts)
