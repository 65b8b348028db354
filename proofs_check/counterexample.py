"""Counterexamples on disk: one .npz each, plain arrays and a JSON line, never pickled."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from .claim import Claim, Measurement, Verdict
from .claims import find
from .inputs import InputError
from .strategies import Case
from .threads import one_thread

__all__ = ["file_name", "replay", "save_all"]


def file_name(claim_id: str, mutant: str | None = None) -> str:
    """The file of a claim's counterexample, or of the case that rejected one of its mutants."""
    suffix = "" if mutant is None else "--" + re.sub(r"[^a-z0-9]+", "-", mutant.lower()).strip("-")
    return f"{claim_id}{suffix}.npz"


def save_all(verdicts: list[Verdict], folder: Path) -> int:
    """Write every counterexample of the verdicts into ``folder``; returns how many."""
    count = 0
    if any(v.counterexample_case is not None or any(m.case is not None for m in v.mutants) for v in verdicts):
        folder.mkdir(parents=True, exist_ok=True)
    for verdict in verdicts:
        if verdict.counterexample_case is not None:
            _save(folder / file_name(verdict.id), verdict.id, None, verdict.counterexample_case)
            count += 1
        for mutant in verdict.mutants:
            if mutant.case is not None:
                _save(folder / file_name(verdict.id, mutant.name), verdict.id, mutant.name, mutant.case)
                count += 1
    return count


def _save(path: Path, claim_id: str, mutant: str | None, case: Case) -> None:
    fields = {item.name: getattr(case, item.name) for item in dataclasses.fields(case) if item.name != "given"}
    meta = json.dumps({"claim": claim_id, "mutant": mutant, "case": fields, "given": case.given is not None})
    with open(path, "wb") as file:
        np.savez(file, meta=np.array(meta), tokens=case.array(), U=case.bases())


def replay(path: Path) -> tuple[Claim, str | None, Case, Measurement]:
    """Measure a saved counterexample again.

    Raises
    ------
        InputError for a file that is not one of ours; ValueError for a claim or mutant that is gone.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta: dict[str, Any] = json.loads(str(archive["meta"]))
            tokens = archive["tokens"]
        fields = dict(meta["case"])
        if fields.get("grid") is not None:
            fields["grid"] = tuple(fields["grid"])
        case = Case(**fields, given=tokens if meta["given"] else None)
        claim_id, mutant = meta["claim"], meta["mutant"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except Exception as problem:
        raise InputError(
            f"{path}: not a counterexample of proofs-check ({type(problem).__name__}: {problem})."
        ) from None
    claim = find(claim_id)
    with one_thread():
        return claim, mutant, case, claim.judge(case, mutant)
