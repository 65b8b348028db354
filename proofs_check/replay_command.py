"""``proofs-check replay``: saved counterexamples measured again, one by one or a folder of them."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .counterexample import Replayed, files_in, replay_all

__all__ = ["DELAY", "add_parser"]

DELAY = 2.0
"""Seconds after which a progress bar appears."""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command; returns its parser."""
    again = commands.add_parser(
        "replay",
        help="measure saved counterexamples again",
        description="Measure saved counterexamples again: of a file in full, of every .npz of a folder in a line. What"
        " rejected a wrong version must still reject it, and what refuted a statement must still refute it; a case on"
        " which a claim failed is waiting to be repaired, and must hold by now.",
        epilog="Exit status: 0 if all is so, 1 if not, or a file of a folder cannot be read; 2 if a file that was named"
        " cannot be.",
    )
    again.add_argument("files", nargs="+", type=Path, metavar="FILE.npz|DIR")
    again.set_defaults(command=_replay)
    return again


def _replay(options: argparse.Namespace) -> int:
    status = 0
    for path in options.files:
        status = max(status, _folder(files_in(path)) if path.is_dir() else _file(path))
    return status


def _file(path: Path) -> int:
    found = Replayed.of(path)
    if found.measured is None:
        print(f"proofs-check: {path}: {found.why}", file=sys.stderr)
        return 2
    print(f"{found.who} on {found.case!r}")
    for comparison in found.measured.comparisons:
        mark = "holds" if comparison.holds else "FAILS"
        print(f"  {mark}  {comparison.name}: error {comparison.error:.3g}, tolerance {comparison.tolerance:.3g}")
    for name, value in found.measured.values.items():
        print(f"  {name}: {value:.6g}")
    print(f"  {found.WORDS[found.outcome]}" + (f" ({found.why})" if found.why else ""))
    return 0 if found.sound else 1


def _folder(files: Sequence[Path]) -> int:
    from tqdm import tqdm

    counts: Counter[str] = Counter()
    sound, started = True, time.perf_counter()
    with contextlib.ExitStack() as bars:
        bar = None
        for done, found in enumerate(replay_all(files), 1):
            tqdm.write(str(found), file=sys.stdout)
            counts[found.WORDS[found.outcome]] += 1
            sound = sound and found.sound
            if bar is not None:
                bar.update()
            elif sys.stderr.isatty() and time.perf_counter() - started > DELAY:
                # Not tqdm's own delay: the first line that is written ends it.
                bar = bars.enter_context(
                    tqdm(total=len(files), initial=done, unit="file", dynamic_ncols=True, leave=False)
                )
    said = ", ".join(f"{number} {words}" for words, number in counts.items())
    print(f"{len(files)} file{'' if len(files) == 1 else 's'}: {said}.")
    return 0 if sound else 1
