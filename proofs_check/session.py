"""A run of many claims: processes, progress, and the object that is written as JSON."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from .claim import Claim, Verdict
from .claims import find
from .plugins import consulted
from .run import Campaign, announce, run_claim

__all__ = ["environment", "result", "run_all", "summary_line"]


def run_all(
    claims: Sequence[Claim], campaign: Campaign, jobs: int | None = None, fail_fast: bool = False
) -> tuple[list[Verdict], float]:
    """Run the claims in ``jobs`` processes; verdicts in the order of the claims, and the seconds it took.

    A progress bar on a terminal, a line a claim in a pipe. The verdicts do not depend on the number of processes.
    """
    from tqdm import tqdm

    started = time.perf_counter()
    jobs = min(jobs or min(2, os.cpu_count() or 1), len(claims))
    done: dict[str, Verdict] = {}
    terminal = sys.stderr.isatty()
    bar = tqdm(total=len(claims), unit="claim", disable=not terminal, dynamic_ncols=True)
    with bar:
        for verdict in _verdicts(claims, campaign, jobs):
            done[verdict.id] = verdict
            killed = sum(mutant.killed for mutant in verdict.mutants)
            rejected = f"{killed}/{len(verdict.mutants)} rejected" if verdict.mutants else "no wrong versions"
            line = f"{verdict.status:9} {verdict.id:42} {verdict.cases:4} cases  {rejected:17}  {verdict.seconds:.1f} s"
            if terminal:
                bar.set_postfix_str(verdict.id, refresh=False)
                bar.update()
                if not verdict.sound:
                    bar.write(line)
            else:
                print(line, flush=True)
            if fail_fast and not verdict.sound:
                break
    return [done[claim.id] for claim in claims if claim.id in done], time.perf_counter() - started


def _verdicts(claims: Sequence[Claim], campaign: Campaign, jobs: int) -> Iterator[Verdict]:
    if jobs == 1:
        for claim in claims:
            yield run_claim(claim, campaign)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    try:
        futures = [pool.submit(_run_by_id, claim.id, campaign) for claim in claims]
        for future in as_completed(futures):
            verdict = future.result()
            announce(verdict)
            yield verdict
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_by_id(claim_id: str, campaign: Campaign) -> Verdict:
    return run_claim(find(claim_id), campaign)


def result(
    verdicts: Sequence[Verdict], campaign: Campaign, profile: str, seconds: float, version: str
) -> dict[str, Any]:
    """The object of ``--json``, schema 1."""
    source = campaign.source
    counts = Counter(verdict.status for verdict in verdicts)
    mutants = [mutant for verdict in verdicts for mutant in verdict.mutants]
    summary = {"claims": len(verdicts)}
    summary |= {status: counts[status] for status in ("holds", "fails", "vacuous", "refuted", "measured", "open")}
    summary |= {"mutants": len(mutants), "killed": sum(mutant.killed for mutant in mutants)}
    shape = (0, 0) if source is None else source.tokens.shape
    return {
        "schema": 1,
        "version": version,
        "environment": environment() | _other_packages(),
        "seed": campaign.seed,
        "profile": profile,
        "cases": campaign.cases,
        "dtype": campaign.dtype,
        "seconds": round(seconds, 2),
        "input": {
            "kind": "drawn" if source is None else source.kind,
            "name": "" if source is None else source.name,
            "tokens": shape[0],
            "dim": shape[1],
            "note": "" if source is None else source.note,
        },
        "claims": [verdict.to_json() for verdict in verdicts],
        "summary": summary,
    }


def _other_packages() -> dict[str, str]:
    """What other packages' claims took part, or could not, where any were asked for."""
    rows: dict[str, list[str]] = {}
    for plugin in consulted():
        rows.setdefault(f"claims of {plugin.package}", []).append(str(plugin))
    return {package: "; ".join(lines) for package, lines in rows.items()}


def environment() -> dict[str, str]:
    """What the run ran on."""
    import hypothesis
    import numpy
    import scipy
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "hypothesis": hypothesis.__version__,
        "blas threads a process": "1",
    }


def summary_line(run: dict[str, Any]) -> str:
    """The run in one sentence."""
    s = run["summary"]
    parts = [f"{s['holds']} hold"]
    parts += [f"{s[name]} {word}" for name, word in (("refuted", "refuted"), ("measured", "measured")) if s[name]]
    parts += [f"{s['open']} open"] if s["open"] else []
    parts += [f"{s['fails']} FAIL"] if s["fails"] else []
    parts += [f"{s['vacuous']} VACUOUS"] if s["vacuous"] else []
    tried = f"{s['killed']} of {s['mutants']} wrong versions rejected"
    wrong = tried if s["mutants"] else "no wrong versions were tried"
    return f"{s['claims']} claim{'s' if s['claims'] != 1 else ''}: {', '.join(parts)}; {wrong}; {run['seconds']:.0f} s."
