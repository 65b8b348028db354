"""Every notebook is built like the others; test_book.py runs them."""

import ast
import itertools
import re
import sys
from pathlib import Path

import jupytext
import pytest
from conftest import SOLUTION

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
NAMES = """00_start_here 01_coding_rate 02_from_rate_to_attention 03_cbsa 04_tost 05_ista_and_crate 06_depict 07_mita
08_energies 09_breaking_proofs 10_your_own_layer""".split()
OURS = {"objectives", "unrolling", "proofs_check"}
MEANT = {"unrolling.knob", "unrolling.models", "unrolling.plots", "unrolling.training", "unrolling.trace"}
MEANT |= {
    "proofs_check.inputs",
    "proofs_check.strategies",
    "proofs_check.tolerance",
    "proofs_check.mutants",
    "proofs_check.table",
}
PUBLIC = {
    "objectives",
    "unrolling",
    "proofs_check",
    "numpy",
    "torch",
    "matplotlib",
    "scipy",
    "sklearn",
    "mpmath",
    "crafter",
}


def cells(path, kind):
    return [cell.source for cell in jupytext.read(path).cells if cell.cell_type == kind]


def solutions(path):
    return [code for text in cells(path, "markdown") for code in SOLUTION.findall(text)]


def faults_of_form(path):
    """What a notebook lacks of what all have."""
    found = []
    all_cells = jupytext.read(path).cells
    words = "\n".join(cells(path, "markdown"))
    prose = re.sub(r"```.*?```", "", words, flags=re.DOTALL)
    opening = all_cells[0].source
    if not opening.startswith("# ") or "?" not in opening or len(re.findall(r"^# ", prose, re.MULTILINE)) != 1:
        found.append("does not open with its one title and a question")
    if "tokens" not in opening.lower() or "rows" not in opening.lower():
        found.append("does not say that tokens are rows")
    for before, cell in itertools.pairwise(all_cells):
        if cell.cell_type == "code" and before.cell_type == "code":
            found.append(f"code follows code: {cell.source[:40]!r}")
    if "$$" not in words:
        found.append("has no equation")
    if len(solutions(path)) != 2 or words.count("<details>") != 2 or words.count("**Exercise ") != 2:
        found.append("has not two exercises with hidden solutions")
    if all_cells[-1].cell_type != "code" or not re.search(
        r"(check_layer|check_objective|run_claim)\(", all_cells[-1].source
    ):
        found.append("does not end in a check")
    code = "\n".join(cells(path, "code"))
    if "assert " not in code:
        found.append("asserts nothing")
    if max(map(len, path.read_text().splitlines())) > 140:
        found.append("has lines of more than 140 characters")
    return found


def links(text):
    return [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target]


def test_the_course_is_whole():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_built_alike(path):
    assert faults_of_form(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks_lead_somewhere(path):
    for target in links(path.read_text()):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_what_is_public(path):
    """No module of ours is reached past its package, but for the few that are meant to be."""
    for text in [*cells(path, "code"), *solutions(path)]:
        for node in ast.walk(ast.parse(text)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                first = name.split(".")[0]
                assert first in PUBLIC or first in sys.stdlib_module_names, name
                assert first not in OURS or "." not in name or ".".join(name.split(".")[:2]) in MEANT, name


def test_a_notebook_without_its_parts_is_seen(tmp_path):
    text = (FOLDER / "02_from_rate_to_attention.py").read_text()
    for old, new, said in (
        ("# # From", "# From", "title"),
        ("**rows are tokens**", "they are not", "rows"),
        ("**Exercise 2.**", "", "exercises"),
        ("check_layer(", "print(", "check"),
        ("# %% [markdown]\n# ## 2.", "# %%\n1\n# ## 2.", "code follows code"),
    ):
        changed = tmp_path / "changed.py"
        assert old in text
        changed.write_text(text.replace(old, new))
        assert any(said in fault for fault in faults_of_form(changed)), old
