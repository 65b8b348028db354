"""The ledger of claims: one page a stem, an entry and a target for every claim, with its verdict where there was a run."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proofs_check import CLAIMS, Claim

KINDS = {
    "exact": "the forward pass, or a closed-form gradient, equals what it should to rounding",
    "identity": "two ways of computing the same thing agree to rounding",
    "inequality": "one side is never above the other",
    "bound": "a constant bounds a quantity, and is attained or approached",
    "order": "an error shrinks with the stated power",
    "cost": "operations or parameters, counted",
    "measured": "numbers that are reported; what must hold of them is stated",
    "refuted": "natural to believe and false: the counterexample is found again in every run",
    "conjecture": "open: no proof and no counterexample; attacked in every run",
}
MARKS = {"holds": "✓", "refuted": "✗", "measured": "≈", "open": "?", "fails": "fails", "vacuous": "vacuous"}


def target(claim: str) -> str:
    """The name under which pages link to a claim: ``mssa.step.exact`` is ``claim-mssa-step-exact``."""
    return "claim-" + claim.replace(".", "-").replace("_", "-")


def verdicts(report: Path | None) -> dict[str, Any]:
    """A run's JSON, by claim; empty without one."""
    if report is None:
        return {}
    run = json.loads(report.read_text())
    return {entry["id"]: entry for entry in run["claims"]}


def write(folder: Path, report: Path | None = None) -> None:
    """An index of all claims and a page for every stem."""
    folder.mkdir(parents=True, exist_ok=True)
    found = verdicts(report)
    stems: dict[str, list[Claim]] = {}
    for claim in CLAIMS.values() if isinstance(CLAIMS, Mapping) else CLAIMS:
        stems.setdefault(claim.stem, []).append(claim)
    for stem, claims in stems.items():
        parts = [f"# {stem}", _module(claims[0]), *(_entry(claim, found.get(claim.id)) for claim in claims)]
        (folder / f"{stem}.md").write_text("\n\n".join(parts) + "\n")
    (folder / "index.md").write_text(_index(stems, found, report))


def _index(stems: Mapping[str, list[Claim]], found: Mapping[str, Any], report: Path | None) -> str:
    lines = [
        "# The ledger of claims",
        "Every statement that the library makes about an objective, a step or a layer is a claim: a sentence, an equation, its"
        " source, the domain on which it should hold, and wrong versions that must be rejected. “Holds on N cases” is numerical"
        " agreement on drawn and real inputs. It is not a proof. [How to read a failure](../pages/how_to_read_a_failure.md)"
        " says what the words mean.",
    ]
    if found and report is not None:
        run = json.loads(report.read_text())
        wrong = [mutant for entry in run["claims"] for mutant in entry["mutants"]]
        counts = {status: sum(entry["status"] == status for entry in run["claims"]) for status in MARKS}
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        lines.append(
            f"In the run of this page (profile {run['profile']}, seed {run['seed']}, {run['dtype']}; {run['input']['name']} and"
            f" drawn tokens): {len(run['claims'])} claims: {told}; {sum(m['killed'] for m in wrong):,} of {len(wrong):,} wrong"
            f" versions rejected, in {run['seconds']:.0f} s. The same again: `proofs-check --seed {run['seed']}`."
        )
    lines.append("| kind | what it says | claims |\n|---|---|---|\n" + "\n".join(
        f"| {kind} | {meaning} | {sum(c.kind == kind for claims in stems.values() for c in claims)} |"
        for kind, meaning in KINDS.items()
    ))
    for stem, claims in stems.items():
        lines.append(f"## [{stem}]({stem}.md)")
        lines.append("\n".join(
            f"- [`{c.id}`](#{target(c.id)}) {_mark(found.get(c.id))} {c.statement}" for c in claims
        ))
    lines.append("```{toctree}\n:hidden:\n\n" + "\n".join(stems) + "\n```")
    return "\n\n".join(lines) + "\n"


def _mark(entry: Mapping[str, Any] | None) -> str:
    return "·" if entry is None else f"{MARKS.get(entry['status'], entry['status'])} ·"


def _module(claim: Claim) -> str:
    """The first line of the module that holds the stem's claims."""
    module = importlib.import_module(f"proofs_check.claims.{claim.stem}")
    return (inspect.getdoc(module) or "").split("\n\n")[0]


def _entry(claim: Claim, found: Mapping[str, Any] | None) -> str:
    parts = [f"({target(claim.id)})=\n## {claim.id}", claim.statement]
    if claim.equation:
        parts.append(_equation(claim.equation))
    rows = [("kind", claim.kind), ("source", claim.source)]
    if claim.frozen != "nothing":
        rows.append(("frozen", claim.frozen))
    if claim.correction:
        rows.append(("what is true", claim.correction))
    if claim.code:
        rows.append(("on trial", ", ".join(f"`{code}`" for code in claim.code)))
    if found:
        rows.append(("verdict", _verdict(found)))
        if found["values"]:
            rows.append(("measured", "; ".join(
                f"{name} {_number(v['median'])} ({_number(v['smallest'])} to {_number(v['largest'])})"
                for name, v in found["values"].items()
            )))
    wrong = [mutant.name for mutant in claim.mutants]
    if wrong:
        rows.append((f"rejects {len(wrong)}", "; ".join(wrong)))
    parts.append("\n".join(f"{name}\n: {text}\n" for name, text in rows))
    parts.append(f"```sh\nproofs-check show {claim.id}\n```")
    return "\n\n".join(parts)


def _verdict(found: Mapping[str, Any]) -> str:
    said = f"{found['status']} on {found['evidence']} of {found['cases']} cases"
    if found["worst_error"] is not None and found["tolerance"] is not None:
        said += f", worst error {found['worst_error']:.1e} (tolerance {found['tolerance']:.1e})"
    killed = [mutant["killed"] for mutant in found["mutants"]]
    return said + (f", {sum(killed)} of {len(killed)} wrong versions rejected" if killed else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _equation(latex: str) -> str:
    """Words with formulas between dollars stay a paragraph; one formula is displayed."""
    inner = latex.strip()
    if inner.startswith("$") and inner.endswith("$") and inner.count("$") == 2:
        return f"$$\n{inner[1:-1]}\n$$"
    return inner if "$" in inner else f"$$\n{inner}\n$$"
