"""The report of a test session: what its `descends` tests and the claims run in it have shown, as a page or JSON."""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .claim import Claim, MutantVerdict, Verdict
from .claims import find
from .figures import mark, number, ruler
from .report import CAVEAT
from .report_claim import MEANING, Context, card, count
from .report_style import CSS
from .session import environment
from .typeset import Typesetter

__all__ = ["record", "render", "summary", "write"]

STATUSES = {
    "fails": ("fails", "fail", "not the step that is declared"),
    "error": ("vacuous", "could not be checked", "something else went wrong in the test"),
    "holds against expectation": ("vacuous", "hold against expectation", "marked xfail, and holds"),
    "holds": ("holds", "hold", "the declared step, within the tolerance in every case"),
    "expected to fail": ("refuted", "fail as expected", "marked xfail, and fails"),
    "skipped": ("open", "skipped", "not run"),
}
"""What became of a test, worst first: its colour on the page, how several are counted, what it means."""


def record(descends: Sequence[dict[str, Any]], claims: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """All of a session as plain data, schema 1; in the order of the tests' names, which no number of processes changes."""
    try:
        own = version("attention-as-descent")
    except PackageNotFoundError:
        own = "0+unknown"
    tests = sorted(descends, key=lambda entry: str(entry["test"]))
    verdicts = sorted(claims, key=lambda entry: (str(entry["id"]), str(entry["test"])))
    return {
        "schema": 1,
        "version": own,
        "environment": environment(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(seconds, 2),
        "descends": tests,
        "claims": verdicts,
        "summary": {
            "descends": dict(Counter(entry["status"] for entry in tests)),
            "claims": dict(Counter(entry["status"] for entry in verdicts)),
        },
    }


def summary(found: Mapping[str, Any]) -> str:
    """The session in a line."""
    tests, claims = (found["summary"][key] for key in ("descends", "claims"))
    said = ", ".join(f"{tests[status]} {words}" for status, (_, words, _) in STATUSES.items() if tests.get(status))
    line = f"{count(sum(tests.values()), 'test')} of layers: {said or 'none was run'}"
    ran = ", ".join(f"{claims[status]} {status}" for status in MEANING if claims.get(status))
    return f"{line}; {count(sum(claims.values()), 'claim')} run" + (f": {ran}." if ran else ".")


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write JSON for a name that ends in .json, else the page; what was there stays whole until the new one is."""
    is_json = path.suffix.lower() == ".json"
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n" if is_json else render(found)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def render(found: Mapping[str, Any]) -> str:
    """The page as text: nothing is fetched, nothing is executed, everything given is escaped."""
    tests, claims = found["descends"], found["claims"]
    context = Context(Typesetter(), None)
    sound = not any(entry["status"] in ("fails", "error", "holds against expectation") for entry in tests)
    order = list(STATUSES)
    ranked = sorted(enumerate(tests), key=lambda pair: order.index(pair[1]["status"]))
    cards = "".join(_test(entry, f"test-{place}") for place, entry in ranked)
    judged = "".join(_claim(entry, f"claim-{place}", context) for place, entry in enumerate(claims))
    seen = {entry["status"] for entry in tests}
    key = "".join(
        f'<div><dt class="{css}">{mark(css)}{status}</dt><dd>{meaning}</dd></div>'
        for status, (css, _, meaning) in STATUSES.items()
        if status in seen
    )
    said = f"{summary(found)[:-1]}; in {found['seconds']:,.3g} s."
    facts = {"version": found["version"], "date": found["date"], **found["environment"]}
    pairs = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(said.partition(";")[0])}</title>
<style>{CSS}</style>
</head>
<body>
{context.setter.outlines()}
<header>
<h1>Do the layers of these tests descend?</h1>
<p class="lead{"" if sound else " bad"}">{escape(said)}</p>
<p class="note">{CAVEAT}</p>
<dl class="key">{key}</dl>
</header>
<main>
<section class="group"><h2>Layers <small>{count(len(tests), "test")} marked or checked as <code>descends</code></small></h2>
{cards or '<p class="note">No test of this session was.</p>'}</section>
<section class="group"><h2>Claims <small>{count(len(claims), "claim")} run by the tests</small></h2>
{judged or '<p class="note">None was run.</p>'}</section>
</main>
<footer><h2>This session</h2><dl class="facts">{pairs}</dl></footer>
</body>
</html>
"""


def _test(entry: Mapping[str, Any], anchor: str) -> str:
    """One test: what it says of which layer, and how near the two are."""
    css = STATUSES[entry["status"]][0]
    cases = sum(check["cases"] or 0 for check in entry["checks"])
    small = f"<small>on {count(cases, 'case')}</small>" if cases else ""
    problem = f'<p class="problem {css}">{escape(entry["words"])}</p>' if entry["words"] else ""
    said = "".join(
        f'<p class="statement">{escape(check["name"])} {escape(check["verdict"])}'
        f'<br><small class="note">{escape(check["objective"])}, step size {escape(check["step_size"])}</small></p>'
        + ("" if check["holds"] else f"<pre>{escape(check['words'])}</pre>")
        for check in entry["checks"]
    )
    return f"""<article class="claim is-{css}" id="{anchor}">
<div class="status {css}">{mark(css)}<span>{escape(entry["status"])}{small}</span></div>
<div><h3><a href="#{anchor}">{escape(entry["test"])}</a></h3>{said}{problem}</div>
<div class="numbers">{"".join(_numbers(check) for check in entry["checks"])}</div>
</article>
"""


def _numbers(check: Mapping[str, Any]) -> str:
    error, tolerance = check["worst_error"], check["tolerance"]
    if error is None:
        return ""
    rows = (("worst error", number(error)), ("tolerance", number(tolerance)), ("evidence", number(check["evidence"])))
    pairs = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f"{ruler(error, tolerance)}<dl>{pairs}</dl>"


def _claim(entry: Mapping[str, Any], anchor: str, context: Context) -> str:
    try:
        claim: Claim | None = find(entry["id"])
    except ValueError:  # one that a test has made
        claim = None
    shown = card(_verdict(entry), claim, anchor, context)
    return shown.replace("</h3>", f" <small>in {escape(entry['test'])}</small></h3>", 1)


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    """The verdict of its JSON entry; its cases, which JSON has not, are left out."""
    mutants = [MutantVerdict(m["name"], m["killed"], m["margin"], m["counterexample"]) for m in entry["mutants"]]
    values = {name: (v["smallest"], v["median"], v["largest"]) for name, v in entry["values"].items()}
    curve = tuple((step, rest) for step, rest in entry["curve"] if step is not None and rest is not None)
    plain = {name: value for name, value in entry.items() if name not in ("test", "mutants", "values", "curve")}
    return Verdict(**plain, mutants=mutants, values=values, curve=curve)
