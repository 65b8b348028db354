"""Pages made of what was measured and drawn: the figures of the notebooks, the results, the benchmark."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat

from proofs_check.bench.page import page as bench_page
from proofs_check.bench.page import plot_stem, seconds
from proofs_check.bench.timing import Measured

HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def write(folder: Path, notebooks: Mapping[str, nbformat.NotebookNode], results: Path) -> None:
    """``gallery.md`` and its pictures, from executed notebooks and from the experiments' results."""
    pictures = folder / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Gallery",
        "Every figure of the notebooks and of the experiments; each leads to the page that makes and explains it.",
    ]
    for name, notebook in notebooks.items():
        shown, title, place = [], name, ""
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                headings = HEADING.findall(cell.source)
                if headings and cell.source.startswith("# "):
                    title = headings[0]
                place = headings[-1] if headings else place
                continue
            for output in cell.get("outputs", ()):
                data = output.get("data", {})
                if "image/png" in data:
                    file = pictures / f"{name}-{len(shown)}.png"
                    file.write_bytes(base64.b64decode(data["image/png"]))
                    shown.append(_thumbnail(f"notebooks/{name}.html", f"gallery/{file.name}", re.sub(r"^\d+\. ", "", place)))
        if shown:
            parts += [f"## {title}", _grid(shown)]
    drawn = sorted(results.glob("*.png"))
    if drawn:
        parts += ["## Experiments", _grid(_thumbnail("results.html", f"results/{p.name}", p.stem) for p in drawn)]
    (folder / "gallery.md").write_text("\n\n".join(parts) + "\n")


def _thumbnail(page: str, picture: str, caption: str) -> str:
    said = html.escape(caption.replace("$", ""), quote=True)
    return f'<a href="{page}"><img src="{picture}" alt="{said}" loading="lazy"><span>{said}</span></a>'


def _grid(thumbnails: object) -> str:
    return '<div class="gallery">\n' + "\n".join(thumbnails) + "\n</div>"  # type: ignore[arg-type]


def copy_results(folder: Path, notebooks: Path) -> None:
    """``results.md`` with its pictures and numbers."""
    shutil.copytree(notebooks / "results", folder / "results", ignore=shutil.ignore_patterns("*.md"), dirs_exist_ok=True)
    shutil.copy(notebooks / "results.md", folder / "results.md")


def benchmark(folder: Path, kept: Sequence[Path]) -> None:
    """``benchmark.md``, its figures, and each run's own page beside it, from what ``proofs-check bench --json`` has kept."""
    (folder / "bench").mkdir(exist_ok=True)
    parts = [
        "# Benchmark",
        "How long the layers take beside their plain twins, full and linear attention and the machine's own limit: the same"
        " matrix products alone, or copies of the tokens. **Only ratios within one run mean anything.** What is timed is checked"
        " by its claims before. “Released code” is the papers' own layer, brought in by `--against FILE.py`. The first line of"
        " every table is a time, all others are multiples of it: above 1 is slower than ours.",
    ]
    for place in kept:
        run = json.loads(place.read_text())
        settings, machine = run["settings"], run["environment"]
        found = {name: [Measured(**row) for row in stem["measurements"]] for name, stem in run["stems"].items()}
        (folder / "bench" / f"{place.stem}.html").write_text(bench_page(run, found))
        told = ", ".join(f"{key} {machine[key]}" for key in ("processor", "cores", "threads", "torch") if key in machine)
        sizes = f"d = {settings['dim']}, {settings['heads']} heads, m = {settings['m']}, k = {settings['keys']}"
        for name, rows in found.items():
            figure = plot_stem(name, rows, settings["item"], settings["dim"])
            figure.savefig(folder / "bench" / f"{name}.png", dpi=110)
            parts += [f"## {name}", f"![{name}: time, memory and fraction of the limit against tokens](bench/{name}.png)"]
            parts += [_ratios(rows, mode) for mode in dict.fromkeys(row.mode for row in rows)]
        parts.append(
            f"*{told}; {settings['dtype']}, {sizes}, batch {settings['batch']}. The same again: `proofs-check bench"
            f" {' '.join(run['stems'])}`.* <a href=\"bench/{place.stem}.html\">The whole page of this run</a>, with quartiles"
            " and memory."
        )
    (folder / "benchmark.md").write_text("\n\n".join(parts) + "\n")


def _ratios(rows: list[Measured], mode: str) -> str:
    chosen = [row for row in rows if row.mode == mode]
    names = list(dict.fromkeys(row.contestant for row in chosen))
    sizes = sorted({row.tokens for row in chosen})
    times = {(row.contestant, row.tokens): row.seconds for row in chosen}
    lines = [f"| {mode} | " + " | ".join(f"{n:,}" for n in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for name in names:
        cells = []
        for n in sizes:
            ours, theirs = times.get((names[0], n)), times.get((name, n))
            if theirs is None or ours is None:
                cells.append("–")
            else:
                cells.append(seconds(theirs) if name == names[0] else f"{theirs / ours:.3g} ×")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
