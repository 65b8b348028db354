"""The rules of the house, enforced; each rule is also tried on something that breaks it."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BINARY = (".safetensors", ".png")
PACKAGES = ("objectives", "unrolling", "proofs_check")
ALLOWED = {
    "objectives": {"torch", "objectives"},
    "unrolling": {
        "torch",
        "objectives",
        "unrolling",
        "safetensors",
        "matplotlib",
        "triton",
    },  # the last three if needed
    "proofs_check": {
        *PACKAGES,
        "torch",
        "numpy",
        "scipy",
        "mpmath",
        "hypothesis",
        "matplotlib",
        "PIL",
        "safetensors",
        "tqdm",
        "flint",
    },
}
TRAINING = {"numpy", "scipy", "PIL", "tqdm", "sklearn", "skimage", "nibabel", "crafter", "onnx", "tokenizers"}
"""What unrolling/training may import too; all but the first four inside of functions, where they are needed."""
INDEPENDENT = ("paper", "oracles")  # of proofs_check: they receive arrays and callables
DECLARATIONS = {"objective_at", "step_rule", "step_size_at", "descend"}
TOP = {"pyproject.toml", "objectives", "unrolling", "proofs_check", "notebooks", "tests", "README.md"}
TOP |= {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"}


def sources(*packages):
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imports(text):
    """(level, module) of every import."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def foreign_imports(text, package, part=""):
    allowed = ALLOWED[package] - ({"objectives", "unrolling"} if part in INDEPENDENT else set())
    allowed |= TRAINING if (package, part) == ("unrolling", "training") else set()
    allowed |= {"IPython", "ipywidgets"} if (package, part) == ("unrolling", "knob") else set()  # inside of functions
    allowed |= {"pytest"} if (package, part) == ("proofs_check", "pytest_plugin") else set()  # pytest itself loads it
    outside = [module for level, module in imports(text) if level == 0]
    return [module for module in outside if module.split(".")[0] not in allowed | set(sys.stdlib_module_names)]


def deep_imports(text, package):
    """Imports of another package's insides, or of one's own package by name."""
    named = [module for level, module in imports(text) if level == 0 and module.split(".")[0] in PACKAGES]
    return [module for module in named if "." in module or module == package]


def calls_in_forward(text):
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name in ("forward", "update", "_change"):
            names = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            found += sorted(names & DECLARATIONS)
    return found


def transposes(text):
    return [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute) and node.attr == "T"]


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    package, part = path.relative_to(ROOT).with_suffix("").parts[:2]
    assert foreign_imports(path.read_text(), package, part) == []
    assert deep_imports(path.read_text(), package) == []


def test_imports_that_point_another_way_are_seen():
    assert foreign_imports("import numpy as np", "objectives") == ["numpy"]
    assert foreign_imports("def f():\n    from unrolling import MSSA", "objectives") == ["unrolling"]
    assert foreign_imports("from objectives import CodingRate", "proofs_check", "paper") == ["objectives"]
    assert deep_imports("from objectives.coding_rate import rate", "unrolling") == ["objectives.coding_rate"]
    assert deep_imports("from unrolling import MSSA", "unrolling") == ["unrolling"]


LAYERS = [*sorted((ROOT / "unrolling/layers").glob("*.py")), ROOT / "unrolling/subspace.py"]


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: path.stem)
def test_forward_never_calls_the_declaration(path):
    assert calls_in_forward(path.read_text()) == []


def test_a_forward_that_calls_the_declaration_is_seen():
    assert calls_in_forward("def forward(self, x):\n    return self.descend(x)") == ["descend"]


@pytest.mark.parametrize("path", sources("objectives", "unrolling"), ids=lambda path: str(path.relative_to(ROOT)))
def test_tensors_are_transposed_with_mT(path):
    assert transposes(path.read_text()) == []
    assert transposes("y = x.T") == [1]


def test_importing_objectives_is_light():
    code = "import sys, objectives; print([m for m in ('matplotlib', 'scipy', 'hypothesis') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_hold_one_idea(path):
    limit = 800 if path.parent.name == "claims" else 400
    assert len(path.read_text().splitlines()) <= limit
    assert path.name != "utils.py"


def test_one_stem_one_file():
    claims = {path.stem for path in (ROOT / "proofs_check/claims").glob("*.py")} - {"__init__"}
    homes = {path.stem for folder in ("objectives", "unrolling/layers") for path in (ROOT / folder).glob("*.py")}
    homes |= {path.stem for path in (ROOT / "unrolling").iterdir() if not path.name.startswith("_")}
    claims -= {name for name in claims if name.rpartition("_")[0] in claims}  # mssa_sign goes on where mssa stops
    assert claims <= homes
    assert claims <= {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    layers = {path.stem for path in (ROOT / "unrolling/layers").glob("*.py")} - {"__init__"}
    assert layers <= claims


def test_the_top_of_the_tree_is_as_agreed():
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in done.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP


def public_classes():
    for name in ("objectives", "unrolling"):
        module = importlib.import_module(name)
        for item in module.__all__:
            thing = getattr(module, item)
            if inspect.isclass(thing):
                yield thing


@pytest.mark.parametrize("thing", list(public_classes()), ids=lambda thing: thing.__name__)
def test_public_classes_say_what_they_are(thing):
    assert inspect.getdoc(thing)
    own = {name for name in vars(thing) if not name.startswith("_") and inspect.isfunction(vars(thing)[name])}
    assert all(inspect.getdoc(vars(thing)[name]) for name in own)


def with_an_equation():
    from objectives import Objective
    from unrolling import UnrolledLayer

    bases = (Objective, UnrolledLayer)  # abstract, like SubspaceLayer
    concrete = (thing for thing in public_classes() if not inspect.isabstract(thing))
    return [thing for thing in concrete if issubclass(thing, bases)]


@pytest.mark.parametrize("thing", with_an_equation(), ids=lambda thing: thing.__name__)
def test_docstrings_of_objectives_and_layers_have_their_lines(thing):
    doc = inspect.getdoc(thing)
    for line in ("Minimises", "In code", "Shapes", "Source", "Raises", "Claims"):
        assert re.search(rf"^{line}$", doc, re.M), line


def claims_named(doc):
    """The dotted names in the indented paragraph under "Claims"."""
    paragraph = re.search(r"^Claims\n((?:    .*\n?)+)", doc, re.M)
    return re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", paragraph.group(1)) if paragraph else []


def test_claims_named_in_docstrings_exist_and_code_named_in_claims_too():
    from proofs_check import CLAIMS

    known = {claim.id for claim in CLAIMS}
    for thing in public_classes():
        named = claims_named(inspect.getdoc(thing) or "")
        assert set(named) <= known, thing
    assert claims_named("Claims\n    no.such_claim\n\ntorch.eye") == ["no.such_claim"]
    for claim in CLAIMS:
        assert claim.code
        for entry in claim.code:
            module, name = entry.split(":")
            assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("option", "name"), [("--markdown", "table"), ("--fast-weights", "fast weights")])
def test_the_readmes_tables_are_the_generated_ones(option, name):
    command = [sys.executable, "-m", "proofs_check", "list", option]
    generated = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    inside = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", (ROOT / "README.md").read_text(), re.S)
    assert inside.group(1) == generated


def blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(blocks())))
def test_the_readmes_code_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(blocks()[number], {"__name__": "readme"})
    assert capsys.readouterr().out


def test_no_path_of_a_machine_is_in_the_tree():
    pattern = re.compile("(^|[^A-Za-z0-9_.:/])/(" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me"]) + ")/")
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    for name in done.stdout.splitlines():
        text = (ROOT / name).read_bytes().decode("utf-8", errors="replace" if name.endswith(BINARY) else "strict")
        assert not pattern.search(text), name
    assert pattern.search("see " + os.sep + "ro" + "ot/x")


def test_the_readme_names_the_commands_and_ci_runs_one_of_them():
    commands = re.findall(r"^    (make \w+)", (ROOT / "README.md").read_text(), re.M)
    assert commands == ["make report", "make lab", "make book", "make test"]
    assert all(f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text() for command in commands)
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert ".ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()
