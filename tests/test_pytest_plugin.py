"""The pytest plugin, in sessions of their own: marked tests, fixtures, the report, and what it costs others."""

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from proofs_check import find
from proofs_check.pytest_plugin import ATTACHED, Recorder

pytest_plugins = "pytester"

ROOT = Path(__file__).parent.parent
STRICT = ("-p", "proofs_check.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers", "-W", "error")

LAYERS = """
import pytest
import torch
from torch import nn

from objectives import SubspaceCodingRate
from proofs_check import Campaign, find, run_claim
from unrolling import MSSA

square = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
RATE = SubspaceCodingRate(square.reshape(12, 3, 4).transpose(0, 1).contiguous(), 0.5)
shape = {"tokens": (5, 12), "cases": 12}


def step(x):
    return x - 0.3 * RATE.gradient(x)


def up(x):
    return x + 0.3 * RATE.gradient(x)


class Layer(nn.Module):
    dim = 12
    step_size = 0.3

    def objective_at(self, x):
        return RATE

    def forward(self, x):
        return step(x)


class Up(Layer):
    def forward(self, x):
        return up(x)
"""

RIGHT = """
@pytest.mark.descends(objective=RATE, step_size=0.3, **shape)
def test_callable():
    return step

@pytest.mark.descends(objective=lambda x: RATE.value(x), step_size=0.3, **shape)
def test_number():
    return step

SOFT = MSSA(12, 3, form="softmax")

@pytest.mark.descends(objective=SOFT.objective_at, step_size=SOFT.step_size_at, **shape)
def test_keys_frozen_at_x():
    return SOFT.forward

@pytest.mark.descends(cases=12)
@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_layers(form):
    return MSSA(12, 3, form=form)

@pytest.mark.descends(step_size=0.3, cases=12)
def any_name_will_do():
    return Layer()

@pytest.mark.descends(objective=RATE, step_size=0.3, cases=12)
class Attention(nn.Module):
    dim = 12

    def __init__(self, orthonormal_bases):
        super().__init__()
        self.U = orthonormal_bases(3, 12)

    def forward(self, x):
        return step(x)

class NotMarkedItself(Attention):
    pass

@pytest.mark.descends(objective=RATE, step_size=0.2)
class TestSeveral:
    @pytest.mark.descends(step_size=0.3, **shape)
    def test_one(self):
        return step

    def test_another(self, descends, drawn_tokens, photograph_tokens):
        assert bool(descends(step, step_size=0.3, tokens=drawn_tokens(6, 12), cases=8))
        descends(Layer(), step_size=0.3, tokens=photograph_tokens(6, 12), cases=8)

def test_claim():
    assert run_claim(find("coding_rate.cost"), Campaign(cases=2)).sound

def test_nothing_of_ours(token_kinds):
    assert "one_far" in token_kinds
"""

WRONG = """
@pytest.mark.descends(objective=RATE, step_size=0.3, **shape)
def test_up():
    return up

@pytest.mark.descends(cases=12)
def test_layer_up():
    return Up()

@pytest.mark.descends(objective=lambda x: RATE, step_size=0.3, **shape)
def test_factory_up():
    return up

@pytest.mark.descends(step_size=0.2, cases=12)
def test_other_step():
    return Layer()

def test_in_a_fixture(descends):
    descends(up, objective=RATE, step_size=0.3, **shape)

@pytest.mark.xfail(strict=True)
@pytest.mark.descends(objective=RATE, step_size=0.3, **shape)
def test_expected():
    return up

@pytest.mark.skip(reason="another day")
@pytest.mark.descends
def test_skipped():
    return Up()
"""

ERRORS = {
    "nothing": (
        "@pytest.mark.descends\ndef test_it():\n    pass",
        "nothing was checked, since test_it returned nothing",
    ),
    "typo": (
        "@pytest.mark.descends(objectiv=RATE)\ndef test_it():\n    return step",
        "unknown: objectiv; it takes obj",
    ),
    "no objective": (
        "@pytest.mark.descends\ndef test_it():\n    return step",
        "step declares no objective_at(x); give",
    ),
    "by place": ("@pytest.mark.descends(RATE)\ndef test_it():\n    return step", "give the arguments by name"),
    "the class": (
        "@pytest.mark.descends\ndef test_it():\n    return Layer",
        "returned the class Layer; return an inst",
    ),
    "a number": ("@pytest.mark.descends\ndef test_it():\n    return 3", "the test returned 3; return the layer"),
    "no width": (
        "@pytest.mark.descends(objective=lambda x: RATE, step_size=1.0)\ndef test_it():\n    return step",
        "the width of the tokens of step is not known: give tokens=(count, dim)",
    ),
    "no step": (
        "@pytest.mark.descends(objective=lambda x: RATE, **shape)\ndef test_it():\n    return step",
        "an objective that is a function x -> object holds what it computes at x constant: give step_size",
    ),
    "no tokens": (
        "@pytest.mark.descends(objective=RATE, tokens='many')\ndef test_it():\n    return step",
        "tokens must be an array, a function that makes one, or a shape (count, dim), but is 'many'",
    ),
    "no cases": ("@pytest.mark.descends(cases=0)\ndef test_it():\n    return Layer()", "cases must be at least 1"),
    "unittest": (
        "import unittest\nclass TestIt(unittest.TestCase):\n    @pytest.mark.descends\n    def test_it(self):\n        pass",
        "nothing was checked, since test_it returned nothing",
    ),
    "async": ("@pytest.mark.descends\nasync def test_it():\n    return Layer()", "async"),
}


@pytest.fixture
def session(pytester, monkeypatch):
    """Run a file of tests with the plugin alone, as strict as this repository is."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run_file(source, *arguments, plugin=STRICT):
        pytester.makepyfile(test_layers=source)
        return pytester.runpytest_subprocess(*plugin, *arguments)

    return run_file


def outcomes(path):
    return {entry["test"].partition("::")[2]: entry["status"] for entry in json.loads(path.read_text())["descends"]}


def test_what_is_right_passes_and_is_reported(session, pytester):
    done = session(LAYERS + RIGHT, "--proofs-report", "out.html", "--proofs-report", "out.json")
    done.assert_outcomes(passed=11)
    out = json.loads((pytester.path / "out.json").read_text())
    assert outcomes(pytester.path / "out.json") == {
        "Attention": "holds",
        "TestSeveral::test_another": "holds",
        "TestSeveral::test_one": "holds",
        "any_name_will_do": "holds",
        "test_callable": "holds",
        "test_keys_frozen_at_x": "holds",
        "test_layers[exact]": "holds",
        "test_layers[softmax]": "holds",
        "test_number": "holds",
    }
    (callable_,) = [entry for entry in out["descends"] if entry["test"].endswith("test_callable")]
    (check,) = callable_["checks"]
    assert check["objective"] == "SubspaceCodingRate"
    assert check["step_size"] == "0.3"
    assert check["worst_error"] < check["tolerance"] < 1e-4
    assert check["evidence"] > 6
    assert [len(entry["checks"]) for entry in out["descends"] if "another" in entry["test"]] == [2]
    (claim,) = out["claims"]
    assert (claim["id"], claim["status"]) == ("coding_rate.cost", "holds")
    assert claim["test"].endswith("::test_claim")
    page = (pytester.path / "out.html").read_text()
    assert "Attention descends exactly" in page
    assert find("coding_rate.cost").statement in page
    assert "9 tests of layers: 9 hold; 1 claim run: 1 holds." in done.stdout.str()
    assert not [*pytester.path.glob("*partial*"), *pytester.path.glob(".*partial*")]


def test_what_is_wrong_fails_with_the_diagnosis_and_without_a_traceback(session, pytester):
    (pytester.path / "out.json").write_text("an older one")
    done = session(LAYERS + WRONG, "--proofs-report", "out.json")
    done.assert_outcomes(failed=5, xfailed=1, skipped=1)
    said = done.stdout.str()
    assert "up: it ascends" in said
    assert "Up: the forward pass is not the declared step on" in said
    assert "up: the forward pass is not the declared step on" in said
    assert "It moves along the declared step, but 1.5 times as far" in said
    assert "from proofs_check import Case" in said
    for trace in ("Traceback", "pytest_plugin.py", "ClaimFailed", "def test_up", "During handling"):
        assert trace not in said
    assert outcomes(pytester.path / "out.json") == {
        "test_expected": "expected to fail",
        "test_factory_up": "fails",
        "test_in_a_fixture": "fails",
        "test_layer_up": "fails",
        "test_other_step": "fails",
        "test_skipped": "skipped",
        "test_up": "fails",
    }
    out = json.loads((pytester.path / "out.json").read_text())
    failed = [check for entry in out["descends"] for check in entry["checks"]]
    assert all(not check["holds"] and check["worst_error"] is None and check["words"] for check in failed)


def test_a_test_that_asks_for_nonsense_says_so(session, pytester):
    pieces = [
        re.sub(r"\b(test_it|TestIt)\b", lambda found, number=number: f"{found[0]}_{number}", source)
        for number, (source, _) in enumerate(ERRORS.values())
    ]
    done = session(LAYERS + "\n".join(pieces), "--proofs-report", "out.json", "--proofs-report", "out.html")
    done.assert_outcomes(failed=len(ERRORS))
    entries = json.loads((pytester.path / "out.json").read_text())["descends"]
    found = {int(entry["test"].rpartition("_")[2]): entry for entry in entries}
    for number, (_, said) in enumerate(ERRORS.values()):
        said = re.sub(r"\btest_it\b", f"test_it_{number}", said)
        assert said in found[number]["words"]
        assert found[number]["status"] == "error"
    assert "Traceback" not in done.stdout.str()
    assert "tests of layers: 12 could not be checked" in (pytester.path / "out.html").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/out.html", "the folder .*no/such does not exist"),
        ("out.xml", "give a name that ends in .html or .json"),
        ("there.html", "there.html is a folder; give a file name"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_run(name, said, pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it would be loaded twice where it is installed
    pytester.mkdir("there.html")
    plugin = ("-p", "proofs_check.pytest_plugin", "--proofs-report", name)
    config = pytester.parseconfig(*plugin)
    with pytest.raises(pytest.UsageError, match=f"--proofs-report: .*{said}"):
        config._do_configure()
    config._ensure_unconfigure()


def test_sessions_that_do_not_use_it_load_nothing(pytester):
    """The plugin by itself: what the package imports as it is entered is the package's own affair."""
    pytester.makepyfile("def test_nothing():\n    pass")
    code = f"""
        import sys, types
        package = types.ModuleType("proofs_check")
        package.__path__ = [{str(ROOT / "proofs_check")!r}]
        sys.modules["proofs_check"] = package
        import pytest
        pytest.main([*{STRICT!r}])
        print("loaded:", sorted({{"torch", "numpy", "hypothesis", "matplotlib"}} & set(sys.modules)))
        print("ours:", sorted(name for name in sys.modules if name.startswith("proofs_check.")))
    """
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=pytester.path,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "loaded: []\nours: ['proofs_check.pytest_plugin']\n" in done.stdout


@pytest.fixture
def registered(pytester, monkeypatch):
    """A session in which the plugin is there by the entry point of pyproject.toml alone."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    info = pytester.mkdir("site") / "attention_as_descent-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attention-as-descent\nVersion: 9\n")
    lines = [f"{name} = {value}" for name, value in entry.items()]
    (info / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]) + "\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(info.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    pytester.makepyfile("def test_nothing():\n    import sys\n    assert 'torch' not in sys.modules")
    return pytester


def test_being_installed_costs_other_sessions_nothing(registered):
    registered.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_entry_point_brings_marker_fixtures_and_option(registered):
    said = registered.runpytest_subprocess("--fixtures", "-p", "no:cacheprovider").stdout.str()
    for name in ("descends", "drawn_tokens", "orthonormal_bases", "photograph_tokens", "token_kinds"):
        assert re.search(rf"^{name}( \[session scope\])? -- .*pytest_plugin.py:\d+\n    [A-Z]", said, re.M), name
    for name in ("bases", "tokens"):
        assert not re.search(rf"^{name}\b", said, re.M)


WORKER = """
import json
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.workerinput = {"workerid": "gw0"}  # what pytest-xdist sets in its workers
    global known
    known = config

def pytest_runtest_logreport(report):
    with open("sent.jsonl", "a") as file:
        data = known.hook.pytest_report_to_serializable(config=known, report=report)
        print(json.dumps(data), file=file)
"""


def test_workers_send_what_they_found_and_the_controller_writes_it(session, pytester, pytestconfig):
    pytester.makeconftest(WORKER)
    source = (
        LAYERS
        + "@pytest.mark.descends(cases=8)\ndef test_layer():\n    return Up()\n"
        + RIGHT[RIGHT.index("def test_claim") :]
    )
    session(source, "--proofs-report", "out.json").assert_outcomes(passed=2, failed=1)
    target = pytester.path / "out.json"
    assert not target.exists()
    controller = Recorder([target], writes=True)
    for line in (pytester.path / "sent.jsonl").read_text().splitlines():
        data = json.loads(line)
        assert data.get(ATTACHED) is None or isinstance(data[ATTACHED], str)
        report = pytestconfig.hook.pytest_report_from_serializable(config=pytestconfig, data=data)
        controller.pytest_runtest_logreport(report)
    controller.pytest_sessionfinish(type("Session", (), {"config": pytestconfig})())
    assert outcomes(target) == {"test_layer": "fails"}
    assert [claim["id"] for claim in json.loads(target.read_text())["claims"]] == ["coding_rate.cost"]


def test_with_xdist_the_controller_writes(session, pytester):
    pytest.importorskip("xdist")
    done = session(LAYERS + RIGHT, "-p", "xdist", "-n", "2", "--proofs-report", "out.json")
    done.assert_outcomes(passed=11)
    assert len(outcomes(pytester.path / "out.json")) == 9
    assert len(json.loads((pytester.path / "out.json").read_text())["claims"]) == 1


def test_a_report_that_cannot_be_written_in_the_end_is_an_error(tmp_path, pytestconfig):
    target = tmp_path / "gone" / "out.html"
    recorder = Recorder([target], writes=True)
    session = type("Session", (), {"config": pytestconfig, "exitstatus": 0})()
    recorder.pytest_sessionfinish(session)
    assert session.exitstatus == pytest.ExitCode.INTERNAL_ERROR
    assert "could not be written: No such file" in recorder.said[-1]
