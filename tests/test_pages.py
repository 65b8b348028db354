"""The pages of the book: their Python runs, and what they point to is there."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from proofs_check import CLAIMS

FOLDER = Path(__file__).parent.parent / "notebooks" / "book" / "pages"
PAGES = sorted(set(FOLDER.glob("*.md")) - {FOLDER / "index.md"})  # the build gives the landing page another place
NOTEBOOKS = """00_start_here 01_coding_rate 02_from_rate_to_attention 03_cbsa 04_tost 05_ista_and_crate 06_depict 07_mita
08_energies 09_breaking_proofs 10_your_own_layer""".split()
PACKAGES = ("objectives", "unrolling", "proofs_check")
KINDS = {"class": inspect.isclass, "func": inspect.isfunction}


def target(claim):
    return "claim-" + claim.replace(".", "-").replace("_", "-")


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(text, name):
    """All blocks of a page, one after the other, in one namespace; lines of errors are those of the block."""
    space = {"__name__": name}
    for number, code in enumerate(blocks(text)):
        exec(compile(code, f"{name}.md, block {number}", "exec"), space)
    return space


def dead_claims(text):
    """Links to claims that do not exist, or that go to another claim than they name."""
    known = {target(claim.id): claim.id for claim in CLAIMS}
    found = re.findall(r"(?:\[`([^`]*)`\])?\(#(claim-[^)]*)\)", text)
    return [goal for said, goal in found if goal not in known or (said and known[goal] != said)]


def dead_names(text):
    """Roles whose object is not public, or is of another kind than the role says."""
    found = []
    for kind, written in re.findall(r"\{py:(\w+)\}`~?([^`]*)`", text):
        package, _, name = written.partition(".")
        module = importlib.import_module(package) if package in PACKAGES else None
        if module is None or name not in module.__all__ or not KINDS[kind](getattr(module, name)):
            found.append(written)
    return found


def dead_notebooks(text):
    """Links to notebooks by another place or name than theirs."""
    meant = {f"../../{name}.py" for name in NOTEBOOKS}
    return [goal for goal in re.findall(r"\]\(([^)#\s]*\.(?:py|ipynb))[^)]*\)", text) if goal not in meant]


def dead_pages(text):
    """Links to pages beside this one that are not there."""
    return [goal for goal in re.findall(r"\]\(([^)#\s/]+\.md)", text) if not (FOLDER / goal).exists()]


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path.read_text())], ids=lambda path: path.stem)
def test_the_python_of_a_page_runs(path):
    run(path.read_text(), path.stem)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
@pytest.mark.parametrize("dead", [dead_claims, dead_names, dead_notebooks, dead_pages], ids=lambda dead: dead.__name__)
def test_what_a_page_points_to_is_there(path, dead):
    assert dead(path.read_text()) == []


def test_every_fence_is_closed_and_every_block_is_seen():
    for path in PAGES:
        fences = re.findall(r"^```.*$", path.read_text(), re.MULTILINE)
        assert set(fences[::2]) <= {"```python", "```text"}, path.name
        assert set(fences[1::2]) <= {"```"}, path.name
        assert fences[::2].count("```python") == len(blocks(path.read_text())), path.name


def test_a_page_that_is_wrong_is_seen():
    theory = (FOLDER / "theory.md").read_text()
    for old, new, error in (
        ("assert -1 / 8 - 1e-12 <", "assert -1 / 9 <", AssertionError),
        ("from objectives import CodingRate, beta_of", "from objectives import CodingRate, alpha_of", ImportError),
        ("torch.manual_seed(0)", "import warnings\nwarnings.warn('x')", UserWarning),
    ):
        assert old in theory
        with pytest.raises(error):
            run(theory.replace(old, new), "theory")
    assert dead_claims(theory.replace("#claim-coding-rate-value", "#claim-coding-rate-values"))
    assert dead_claims(theory.replace("#claim-coding-rate-value", "#claim-coding-rate-hessian"))
    assert dead_names("{py:class}`objectives.Rate` {py:func}`objectives.CodingRate` {py:class}`~unrolling.MSSA`") == [
        "objectives.Rate",
        "objectives.CodingRate",
    ]
    assert dead_names("{py:class}`torch.Tensor`") == ["torch.Tensor"]
    assert dead_notebooks("[3. CBSA](../../03_cbsa.py) [3](../03_cbsa.py) [3](../../03_cbt.py)") == [
        "../03_cbsa.py",
        "../../03_cbt.py",
    ]
    assert dead_pages("[Theory](theory.md) [x](theorie.md)") == ["theorie.md"]
