"""A run, or several beside each other, as one HTML page that holds its pictures itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .again import command_of
from .figures import data_uri, plot_runs
from .run import RunFolder

__all__ = ["compare_page", "figure_block", "page", "run_page", "table"]

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf6; --ink: #1d1e22; --soft: #5a5c63; --line: #dedbd1; --wash: #f3f0e7; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14161a; --ink: #e9e7e1; --soft: #a5a7ad; --line: #353942; --wash: #23272e; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
main { max-width: 70rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1, h2 { font-family: "Palatino Linotype", Palatino, Georgia, "DejaVu Serif", serif; line-height: 1.2; }
h1 { font-size: 2rem; margin: 2rem 0 .4rem; } h2 { font-size: 1.35rem; margin: 2.4rem 0 .6rem; }
p { max-width: 68ch; } .lead { font-size: 1.2rem; } .soft { color: var(--soft); font-size: .92rem; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
table { border-collapse: collapse; font-size: .9rem; margin: 0 0 1.4rem; } th, td { padding: .3rem .9rem .3rem 0; text-align: right;
  border-top: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th { border-top: 0; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .85rem; }
pre { background: var(--wash); padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .92rem; max-width: 80ch; }
"""


def page(title: str, body: str) -> str:
    """A whole page; the body is HTML, the title is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of text and numbers, escaped."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(_cell(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{lines}</table></div>'


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def figure_block(figure: Any, alt: str, caption: str = "") -> str:
    """A picture inside a page, with its description and its caption."""
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{data_uri(figure)}" alt="{escape(alt)}">{under}</figure>'


def _title(run: RunFolder) -> str:
    job = run.job()
    if job.task == "segment":
        return f"{job.decoder} on {Path(job.backbone).name}, {job.data}"
    chosen = " ".join(key if value is True else str(value) for key, value in job.choices.items())
    return f"{job.model} {f'({chosen})' if chosen else ''}, {job.data}".replace(" ,", ",")


def _headline(run: RunFolder) -> tuple[str, str]:
    return ("miou", "mean IoU") if run.job().task == "segment" else ("accuracy", "accuracy")


def run_page(run: RunFolder) -> str:
    """The page of one run: the numbers, the curves, the classes, the settings."""
    job, result, (name, word) = run.job(), run.result(), _headline(run)
    parts = [f"<h1>{escape(_title(run))}</h1>"]
    if result is None:
        lines = run.lines()
        parts.append(f'<p class="lead">Not done yet: {lines[-1]["step"] if lines else 0} steps.</p>')
    else:
        test = result["test"]
        parts.append(f'<p class="lead">{word} {test[name]:.4f} on the test images, seed {job.seed}.</p>')
        facts = {
            "best on held-out images": result["best_val"],
            "trained parameters": result["parameters"],
            "steps": result["steps"],
            "images per second": result["images_per_second"],
            "seconds of training steps": result["seconds"],
        }
        numbers = {key: value for key, value in test.items() if isinstance(value, (int, float))}
        parts.append(table(("test", "value"), list(numbers.items())))
        parts.append(table(("run", "value"), list(facts.items())))
    parts.append("<h2>Curves</h2>" + figure_block(plot_runs({run.path.name: run}), "loss, metric and learning rate"))
    if result is not None:
        parts.append(_samples(run))
        rows = [(each, value) for each, value in zip(_classes(run), result["test"]["classes"], strict=False)]
        parts.append("<h2>Classes</h2>" + table(("class", "IoU" if name == "miou" else word), rows))
    parts.append("<h2>How to run it again</h2>")
    parts.append(f"<pre>{escape(command_of(job))}</pre>")
    settings = escape(json.dumps(job.to_dict(), indent=2))
    where = ", ".join(f"{key} {value}" for key, value in run.environment().items() if key != "command")
    parts.append(
        f'<details><summary>All settings</summary><pre>{settings}</pre></details><p class="soft">{escape(where)}</p>'
    )
    return page(_title(run), "".join(parts))


def _samples(run: RunFolder) -> str:
    """A few test images, where the data set is here."""
    from .samples import plot_samples

    try:
        figure = plot_samples(run)
    except ValueError as problem:
        return f'<p class="soft">No pictures: {escape(str(problem))}</p>'
    return "<h2>Test images</h2>" + figure_block(figure, "test images with what the network says of them")


def _classes(run: RunFolder) -> Sequence[str]:
    """The names of the classes; numbers where the data set is not here any more."""
    from .trainer import load_job_data

    result = run.result()
    count = len(result["test"]["classes"]) if result else 0
    try:
        return load_job_data(run.job()).test.classes
    except ValueError:
        return [str(index) for index in range(count)]


def compare_page(runs: Mapping[str, RunFolder]) -> str:
    """Several runs: their numbers side by side, what differs in their settings, their curves."""
    first = next(iter(runs.values()))
    name, word = _headline(first)
    tasks = {run.job().task for run in runs.values()}
    if len(tasks) > 1:
        raise ValueError(
            "compare: runs of classes and runs of masks have no metric in common; compare each kind alone."
        )
    flat = {label: _flat(run.job().to_dict()) for label, run in runs.items()}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    differing = [key for key in keys if len({json.dumps(settings.get(key)) for settings in flat.values()}) > 1]
    rows = []
    for label, run in runs.items():
        result = run.result()
        test = None if result is None else result["test"][name]
        numbers = [
            None if result is None else result[key] for key in ("best_val", "parameters", "images_per_second", "steps")
        ]
        rows.append([label, test, *numbers, *(_short(flat[label].get(key)) for key in differing)])
    rows.sort(key=lambda row: -(row[1] if isinstance(row[1], float) else -1.0))
    head = ("run", f"test {word}", "best held-out", "parameters", "images/s", "steps", *differing)
    body = f"<h1>{len(runs)} runs</h1>" + table(head, rows)
    return page("Runs compared", body + "<h2>Curves</h2>" + figure_block(plot_runs(runs), "curves of all runs"))


def _short(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else value


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{before}.{key}".lstrip(".").removeprefix("recipe.train.").removeprefix("recipe.")
        found |= _flat(value, f"{before}.{key}") if isinstance(value, Mapping) else {name: value}
    return found
