"""Counterexamples on disk: one .npz each, plain arrays and a JSON line, never pickled."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .claim import Claim, Measurement, Verdict
from .claims import find
from .inputs import InputError
from .strategies import Case
from .threads import one_thread

__all__ = ["Replayed", "file_name", "files_in", "replay", "replay_all", "save_all"]


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
            _save(folder / file_name(verdict.id), verdict.id, None, verdict.counterexample_case, verdict.status)
            count += 1
        for mutant in verdict.mutants:
            if mutant.case is not None:
                _save(folder / file_name(verdict.id, mutant.name), verdict.id, mutant.name, mutant.case, "rejected")
                count += 1
    return count


def _save(path: Path, claim_id: str, mutant: str | None, case: Case, status: str) -> None:
    fields = {item.name: getattr(case, item.name) for item in dataclasses.fields(case) if item.name != "given"}
    entry = {"claim": claim_id, "mutant": mutant, "status": status, "case": fields, "given": case.given is not None}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, meta=np.array(json.dumps(entry)), tokens=case.array(), U=case.bases())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replay(path: str | Path) -> tuple[Claim, str | None, Case, Measurement]:
    """Measure a saved counterexample again.

    Raises
    ------
        InputError for a file that is not one of ours; ValueError for a claim or mutant that is gone.
    """
    return _replay(path)[:4]


def _replay(path: str | Path) -> tuple[Claim, str | None, Case, Measurement, str]:
    try:
        # Opened here: numpy leaves a file open whose archive it cannot read.
        with open(os.fspath(path), "rb") as file, np.load(file, allow_pickle=False) as archive:
            if "check_descent" in archive:
                raise InputError("saved by check_descent, of a layer that its own test alone knows.")
            meta: dict[str, Any] = json.loads(str(archive["meta"]))
            tokens = archive["tokens"]
        fields = dict(meta["case"])
        if fields.get("grid") is not None:
            fields["grid"] = tuple(fields["grid"])
        case = Case(**fields, given=tokens if meta["given"] else None)
        claim_id, mutant, status = meta["claim"], meta["mutant"], meta.get("status")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    except Exception as problem:
        raise InputError(
            f"{path}: not a counterexample of proofs-check ({type(problem).__name__}: {problem})."
        ) from None
    claim = find(claim_id)
    if status is None:  # files of version 0.1 do not say what was found
        status = "refuted" if claim.kind in ("refuted", "conjecture") else "fails"
    with one_thread():
        return claim, mutant, case, claim.judge(case, mutant), "rejected" if mutant is not None else status


@dataclass(frozen=True)
class Replayed:
    """What became of a saved counterexample.

    ``sound`` is whether it is as it should be. A mutant's case must still reject the mutant, and a refuted statement's
    must still refute it. A case on which a claim *failed* waits to be repaired: sound once the claim holds there.
    outcome: "rejected", "refuted" (as recorded); "let through", "not refuted" (no more); "still fails", "now holds";
    "unreadable". why: of the last, or the comparison that decided. measured: None if unreadable.
    """

    path: Path
    outcome: str
    claim: str = ""
    mutant: str | None = None
    why: str = ""
    case: Case | None = None
    measured: Measurement | None = None

    WORDS: ClassVar[dict[str, str]] = {
        "rejected": "rejected, as recorded",
        "refuted": "refuted, as recorded",
        "let through": "NOT REJECTED any more",
        "not refuted": "NOT REFUTED any more",
        "still fails": "STILL FAILS",
        "now holds": "now holds",
        "unreadable": "CANNOT BE READ",
    }

    @property
    def sound(self) -> bool:
        """Whether this file lets the replay pass."""
        return self.outcome in ("rejected", "refuted", "now holds")

    @property
    def who(self) -> str:
        """The claim, and which of its wrong versions; the file where that is not known."""
        if not self.claim:
            return self.path.name
        return self.claim if self.mutant is None else f"{self.claim}, wrong version “{self.mutant}”"

    def __str__(self) -> str:
        return f"{self.WORDS[self.outcome]:22}  {self.who}" + (f": {self.why}" if self.why else "")

    @classmethod
    def of(cls, path: Path) -> Replayed:
        """Measure the case of a file again; whatever is wrong with the file or the claim is an outcome, too."""
        try:
            claim, mutant, case, measured, status = _replay(path)
        except Exception as problem:
            kind = "" if isinstance(problem, ValueError) else f"{type(problem).__name__}: "
            return cls(path, "unreadable", why=kind + " ".join(str(problem).removeprefix(f"{path}: ").split()))
        outcome = _outcome(status, measured)
        worst = measured.worst
        told = f"{worst.name}: error {worst.error:.3g}, tolerance {worst.tolerance:.3g}"
        why = told if outcome in ("let through", "still fails") else ""
        return cls(path, outcome, claim.id, mutant, why, case, measured)


def _outcome(status: str, measured: Measurement) -> str:
    if status == "rejected":
        return "let through" if measured.holds and measured.truth else "rejected"
    if not measured.holds:
        return "still fails"
    if status == "refuted":
        return "not refuted" if measured.truth else "refuted"
    return "now holds"


def files_in(folder: Path) -> list[Path]:
    """The .npz files of a folder, sorted by name.

    Raises
    ------
        InputError if there are none.
    """
    files = sorted(path for path in folder.glob("*.npz") if path.is_file())
    if not files:
        raise InputError(f"{folder}: holds no .npz files; `proofs-check run --counterexamples {folder}` saves them.")
    return files


def replay_all(files: Sequence[Path]) -> Iterator[Replayed]:
    """Measure every file again, one after the other."""
    return (Replayed.of(path) for path in files)
