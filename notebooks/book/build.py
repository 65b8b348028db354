"""Build the book: notebooks with outputs, pages, reference, ledger of claims, benchmark and gallery, as a static site.

    python notebooks/book/build.py                    # what `make book` runs
    python notebooks/book/build.py --out DIR --report report.json

Works from the disk without a network. Exit status 1 if Sphinx warns or a link leads nowhere.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import nbformat  # noqa: E402  # after the path is set

import api  # noqa: E402
import execute  # noqa: E402
import gallery  # noqa: E402
import ledger  # noqa: E402
import links  # noqa: E402

MOVED = (
    (re.compile(r"\]\((?:\.\./)*(?:notebooks/)?(\d\d_\w+)\.py(#[\w-]+)?\)"), r"](/notebooks/\1.ipynb\2)"),
    (re.compile(r"\]\((?:\.\./)*(?:notebooks/)?results\.md\)"), "](/results.md)"),
    (re.compile(r"\]\((?:\.\./)*CONTRIBUTING\.md\)"), "](/contributing.md)"),
    (re.compile(r"\]\((?:\.\./)*CHANGELOG\.md\)"), "](/changelog.md)"),
    (re.compile(r"\]\((?:\.\./)*README\.md\)"), "](/readme.md)"),
)
"""Links of the repository, to where the book has the same text."""


def relinked(text: str) -> str:
    """Links between files of the repository as links between pages of the book."""
    for pattern, place in MOVED:
        text = pattern.sub(place, text)
    return text


def title_of(notebook: nbformat.NotebookNode) -> str:
    """What stands behind the first notebook cell's ``#``."""
    return str(notebook.cells[0].source.split("\n")[0].removeprefix("# "))


def stage(
    folder: Path, notebooks: Mapping[str, nbformat.NotebookNode], report: Path | None, bench: Sequence[Path]
) -> None:
    """Gather all sources of the book in ``folder``."""
    (folder / "notebooks").mkdir(parents=True)
    for name, notebook in notebooks.items():
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relinked(cell.source)
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    for source, name in ((ROOT / "README.md", "readme"), (ROOT / "CONTRIBUTING.md", "contributing"), (ROOT / "CHANGELOG.md", "changelog")):
        (folder / f"{name}.md").write_text(relinked(source.read_text()))
    shutil.copytree(HERE / "pages", folder / "pages")
    for page in (folder / "pages").glob("*.md"):
        page.write_text(relinked(page.read_text()))
    landing = (folder / "pages" / "index.md").read_text()
    course = "\n".join(f"{int(name[:2])}. {title_of(notebook)} <notebooks/{name}>" for name, notebook in notebooks.items())
    (folder / "index.md").write_text(landing.replace("\nnotebooks\n", f"\n{course}\n"))
    (folder / "pages" / "index.md").unlink()
    gallery.copy_results(folder, ROOT / "notebooks")
    gallery.write(folder, notebooks, ROOT / "notebooks" / "results")
    if bench:
        gallery.benchmark(folder, bench)
    else:
        (folder / "benchmark.md").write_text("# Benchmark\n\nNo run was given to this build: `--bench FILE.json`.\n")
    api.write(folder / "api")
    ledger.write(folder / "claims", report)


def sphinx(source: Path, out: Path, quiet: bool) -> int:
    """Build the site; warnings are errors, and all are shown."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-c", str(HERE)]
    command += ["-d", str(source.parent / "doctrees"), *(["-q"] if quiet else []), str(source), str(out)]
    # Loaders that warn of what a machine lacks, of a GPU say, have nothing to say to readers of a page.
    return subprocess.run(command, env={**os.environ, "PYTHONWARNINGS": "ignore", "MPLBACKEND": "Agg"}).returncode


def extra_files(source: Path, out: Path) -> None:
    """Files that pages link to by hand, which Sphinx does not know of."""
    for name in ("gallery", "bench", "results"):
        if (source / name).exists():
            shutil.copytree(source / name, out / name, dirs_exist_ok=True)


def build(
    out: Path,
    *,
    cache: Path,
    report: Path | None = None,
    bench: Sequence[Path] = (),
    notebooks: Mapping[str, nbformat.NotebookNode] | None = None,
    quiet: bool = True,
) -> int:
    """Build the book into ``out``, in place of what was there; 0 if nothing was wrong. What is wrong is printed."""
    ran = execute.executed(cache) if notebooks is None else notebooks
    with tempfile.TemporaryDirectory() as work:
        source, fresh = Path(work) / "source", Path(work) / "site"
        stage(source, ran, report, bench)
        status = sphinx(source, fresh, quiet)
        if not (fresh / "index.html").exists():
            return status or 1
        extra_files(source, fresh)
        wrong = links.problems(fresh)
        print("\n".join(wrong), end="\n" if wrong else "")
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(fresh, out)
    return 1 if status or wrong else 0


def kept_benchmarks() -> list[Path]:
    """The runs of the benchmark that the repository keeps."""
    return sorted((ROOT / "notebooks" / "results").glob("bench*.json"))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "_build" / "site", help="where the site goes (default: %(default)s)")
    parser.add_argument("--report", type=Path, help="a JSON of `proofs-check --json`, for the verdicts in the ledger")
    parser.add_argument("--bench", type=Path, nargs="+", help="a JSON of `proofs-check bench --json` (default: the one kept in results/)")
    options = parser.parse_args()
    bench = options.bench or kept_benchmarks()
    status = build(options.out, cache=HERE / "_build" / "executed", report=options.report, bench=bench)
    print(f"{options.out / 'index.html'}: {'built' if not status else 'built, with what is listed above wrong'}.")
    return status


if __name__ == "__main__":
    sys.exit(main())
