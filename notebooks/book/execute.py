"""Notebooks with their outputs, run from their sources; what has not changed since the last time is not run again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("objectives", "unrolling", "proofs_check")
SECONDS = 60
"""What a cell may take; the notebooks are written to take a quarter of it in all."""


def notebooks() -> list[Path]:
    """The sources, in the order of the course."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))


def state_of_library() -> str:
    """A hash of every source that a notebook could import."""
    known = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            known.update(path.read_bytes())
    return known.hexdigest()


def run(path: Path, more: Iterable[str] = ()) -> nbformat.NotebookNode:
    """Execute one notebook in a kernel of its own, its knobs drawn beforehand; raises what a cell raises.

    more: further code to run after the last cell, whose cells are tagged "more".
    """
    notebook = jupytext.read(path)
    notebook.cells += [nbformat.v4.new_code_cell(code, metadata={"tags": ["more"]}) for code in more]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    # One thread: beside other work two wait for each other longer than they compute.
    environment = {**os.environ, "NOTEBOOK_STATIC": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    environment.pop("MPLBACKEND", None)  # the kernel's own, which shows pictures in the notebook
    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}})
    # A kernel warns that what passes between it and us, on this machine, is signed but not encrypted.
    client.extra_arguments = ["--IPKernelApp.log_level=40"]
    with client.setup_kernel(env=environment, cwd=str(path.parent)):
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                client.execute_cell(cell, number)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the time of day, which would make two builds of one source differ
    return notebook


def executed(cache: Path, chosen: Iterable[Path] | None = None, processes: int = 2) -> dict[str, nbformat.NotebookNode]:
    """All notebooks with their outputs, by name; from ``cache`` where neither they nor the library have changed."""
    cache.mkdir(parents=True, exist_ok=True)
    library = state_of_library()

    def one(path: Path) -> tuple[str, nbformat.NotebookNode]:
        key = hashlib.sha256(library.encode() + path.read_bytes()).hexdigest()[:16]
        kept = cache / f"{path.stem}-{key}.ipynb"
        if not kept.exists():
            partial = kept.with_suffix(".partial")
            nbformat.write(run(path), partial)
            for old in cache.glob(f"{path.stem}-*.ipynb"):
                old.unlink()
            partial.rename(kept)
        return path.stem, nbformat.read(kept, as_version=4)

    paths = list(notebooks() if chosen is None else chosen)
    with ThreadPoolExecutor(processes) as pool:
        return dict(tqdm(pool.map(one, paths), total=len(paths), desc="notebooks", unit="notebook"))
