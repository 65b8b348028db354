"""The pytest plugin: tests that return a layer and say what it descends, fixtures of tokens, and a report of the session.

    @pytest.mark.descends(objective=SubspaceCodingRate(U, 0.5), step_size=0.3)
    def test_my_attention():
        return MyAttention()

Nothing but pytest is imported until a test asks for something: what it costs other sessions is this file.
"""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from .claim import Verdict

__all__ = ["Recorder", "descends", "drawn_tokens", "orthonormal_bases", "photograph_tokens", "token_kinds"]

MARK = "descends"
ALLOWED = ("objective", "step_size", "tokens", "cases", "seed", "dtype", "gradient", "frozen", "heads")
SUFFIXES = (".html", ".htm", ".json")

ATTACHED = "proofs_check"
"""The attribute of a test's report that holds records as JSON text: it is sent from process to process with the report."""

CHECKS = pytest.StashKey[list[dict[str, Any]]]()
"""Of a test: what was checked in it, as plain data."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option ``--proofs-report``."""
    parser.getgroup("proofs-check", "layers as descent steps").addoption(
        "--proofs-report",
        action="append",
        default=[],
        metavar="FILE",
        help="write what the `descends` tests and the claims of this session have shown: a page, or JSON for FILE.json;"
        " may be given twice",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker, and refuse a report that could not be written before anything is run."""
    config.addinivalue_line(
        "markers",
        f"{MARK}(objective=None, step_size=None, tokens=None, cases=None, seed=0, ...): the layer or forward callable that"
        " the test returns is the descent step x - step_size * gradient. A layer with objective_at(x) needs no arguments;"
        " objective is an object with value(x), a function x -> number, or x -> object. Marks functions, layer classes, and"
        " factories of any name.",
    )
    names = config.getoption("--proofs-report", [])
    writes = not hasattr(config, "workerinput")  # of several processes (pytest-xdist), the one that started the others
    targets = [_target(config, name) for name in names] if writes else []
    if names:
        from .run import LISTENERS

        recorder = Recorder(targets, writes)
        config.pluginmanager.register(recorder, "proofs-check-recorder")
        LISTENERS.append(recorder.hear)
        config.add_cleanup(lambda: LISTENERS.remove(recorder.hear))


def _target(config: pytest.Config, name: str) -> Path:
    path = config.invocation_params.dir / name
    if path.suffix.lower() not in SUFFIXES:
        raise pytest.UsageError(f"--proofs-report: {name}: give a name that ends in .html or .json.")
    if path.is_dir():
        raise pytest.UsageError(f"--proofs-report: {name} is a folder; give a file name.")
    if not path.parent.is_dir():
        raise pytest.UsageError(f"--proofs-report: {name}: the folder {path.parent} does not exist.")
    return path


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> pytest.Item | None:
    """A marked layer class, or a marked factory whatever its name, is a test: it is called, with fixtures by name."""
    if not isinstance(collector, pytest.Module) or not _is_marked(obj):
        return None
    tested = collector.funcnamefilter(name)
    if inspect.isfunction(obj):
        if tested or obj.__module__ != collector.obj.__name__:
            return None  # pytest collects it, or it is another module's
    elif not _makes_layers(obj) or not (tested or obj.__module__ == collector.obj.__name__):
        return None
    return pytest.Function.from_parent(collector, name=name, callobj=obj)


def _is_marked(thing: Any) -> bool:
    """Whether the thing itself is marked, not only a class it inherits from."""
    if not inspect.isfunction(thing) and not inspect.isclass(thing):
        return False
    marks = vars(thing).get("pytestmark", [])
    return any(getattr(mark, "name", None) == MARK for mark in (marks if isinstance(marks, list) else [marks]))


def _makes_layers(thing: Any) -> bool:
    """Whether instances of a class can be called; other classes hold tests, which inherit the mark."""
    return inspect.isclass(thing) and any("__call__" in vars(base) or "forward" in vars(base) for base in thing.__mro__)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run a marked test, keep what it returns, and check that."""
    if pyfuncitem.get_closest_marker(MARK) is None or inspect.iscoroutinefunction(pyfuncitem.obj):
        return (yield)
    function, returned = pyfuncitem.obj, []

    @functools.wraps(function)
    def keep(**arguments: Any) -> None:
        __tracebackhide__ = True
        returned.append(function(**arguments))

    pyfuncitem.obj = keep
    try:
        result = yield
    finally:
        pyfuncitem.obj = function
    for made in returned:
        if made is not None:
            _check(pyfuncitem, made, {})
    return result


def _check(item: pytest.Item, made: Any, own: dict[str, Any]) -> Any:
    """Check one layer under the options of the test's markers, the closest first, and its own; fail with the diagnosis."""
    __tracebackhide__ = True
    options: dict[str, Any] = {}
    for mark in reversed([*item.iter_markers(MARK)]):
        if mark.args:
            pytest.fail(f"{MARK}: give the arguments by name: {MARK}(objective=…, step_size=…).", pytrace=False)
        options |= mark.kwargs
    options |= own
    if unknown := sorted(set(options) - set(ALLOWED)):
        pytest.fail(f"{MARK}: unknown: {', '.join(unknown)}; it takes {', '.join(ALLOWED)}.", pytrace=False)
    from .pytest_descends import Refused, check

    refused = ""
    try:
        found = check(made, options)
    except Refused as problem:
        refused = str(problem)
    if refused:  # outside of the handler, or the exception would be shown, too
        pytest.fail(f"{MARK}: {refused}", pytrace=False)
    item.stash.setdefault(CHECKS, []).append(found.to_json())
    if not found.holds:
        pytest.fail(found.words, pytrace=False)
    return found.result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a marked test that has checked nothing."""
    report = yield
    if report.when == "call" and report.passed and not item.stash.get(CHECKS, []) and item.get_closest_marker(MARK):
        report.outcome = "failed"
        report.longrepr = (
            f"{MARK}: nothing was checked, since {item.name} returned nothing. Return the layer or the forward callable, or"
            f" call the fixture `{MARK}` with it. (Tests of unittest.TestCase and asynchronous ones cannot be marked.)"
        )
    return report


class Recorder:
    """A session's records: each process attaches its own to the reports of its tests, and the first one collects them."""

    def __init__(self, targets: list[Path], writes: bool) -> None:
        self.targets, self.writes = targets, writes
        self.heard: list[dict[str, Any]] = []
        self.descends: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.started = time.perf_counter()

    def hear(self, verdict: Verdict) -> None:
        """Keep a verdict until the test that asked for it reports."""
        self.heard.append(verdict.to_json())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach to a test's report, which may be sent to another process, what was checked until then."""
        report = yield
        checks, entry = item.stash.get(CHECKS, []), {}
        over = report.when == "call" or (report.when == "setup" and not report.passed)
        if over and (checks or item.get_closest_marker(MARK)):
            entry["descends"] = [
                {
                    "test": item.nodeid,
                    "status": (status := _status(report, checks)),
                    "seconds": round(report.duration, 3),
                    "words": _words(report, call) if status in ("error", "skipped") else "",
                    "checks": checks,
                }
            ]
            item.stash[CHECKS] = []  # it may be run again
        if self.heard:
            entry["claims"] = [{"test": item.nodeid, **verdict} for verdict in self.heard]
            self.heard = []
        if entry:
            report.__dict__[ATTACHED] = json.dumps(entry)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what is attached, of this process's tests or another's."""
        entry = json.loads(getattr(report, ATTACHED, "{}"))
        self.descends += entry.get("descends", [])
        self.claims += entry.get("claims", [])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports, whatever became of the tests."""
        if not self.writes or session.config.getoption("collectonly"):
            return
        from .pytest_page import record, summary, write

        found = record(self.descends, self.claims, time.perf_counter() - self.started)
        self.said = [f"proofs-check: {summary(found)}"]
        for path in self.targets:
            try:
                write(path, found)
                self.said.append(f"proofs-check: {path}")
            except OSError as problem:
                self.said.append(f"proofs-check: {path} could not be written: {problem.strerror}.")
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what the reports hold, and where they are."""
        for line in self.said:
            terminalreporter.write_line(line)


def _status(report: pytest.TestReport, checks: list[dict[str, Any]]) -> str:
    """What became of a test that checks layers; the words are those of ``pytest_page.STATUSES``."""
    if hasattr(report, "wasxfail"):
        return "expected to fail" if report.skipped else "holds against expectation"
    if not report.failed:
        return "holds" if report.passed else "skipped"
    if report.longrepr and "[XPASS(strict)]" in str(report.longrepr):
        return "holds against expectation"
    return "error" if all(one["holds"] for one in checks) else "fails"


def _words(report: pytest.TestReport, call: pytest.CallInfo[None]) -> str:
    return str(report.longrepr) if call.excinfo is None else call.excinfo.exconly()


@pytest.fixture
def descends(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """The check of the marker, for tests that check several layers: ``descends(layer, objective=…, step_size=…)``.

    Takes what the marker takes, beside what the test's markers say. Fails the test with the diagnosis, or returns what
    the check returned.
    """

    def check(layer: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return _check(request.node, layer, options)

    return check


@pytest.fixture(scope="session")
def token_kinds() -> tuple[str, ...]:
    """The kinds of structured tokens that `drawn_tokens` knows: gaussian, zero, repeated, rank_one and so on."""
    from .strategies import KINDS_OF_TOKENS

    return KINDS_OF_TOKENS


@pytest.fixture(scope="session")
def drawn_tokens() -> Callable[..., Tensor]:
    """Tokens (n, d), or (batch, n, d), of a kind.

    ``drawn_tokens(n, d, kind="gaussian", *, scale=1.0, seed=0, dtype="float64", batch=0)``; kind is one of
    ``token_kinds``, and the same arguments give the same tokens. ``subspaces`` lie near three, two or one subspaces, as
    the width can be divided.
    """

    def draw(
        n: int,
        d: int,
        kind: str = "gaussian",
        *,
        scale: float = 1.0,
        seed: int = 0,
        dtype: str | dtype = "float64",
        batch: int = 0,
    ) -> Tensor:
        from .pytest_tokens import drawn

        return drawn(n, d, kind, scale, seed, dtype, batch)

    return draw


@pytest.fixture(scope="session")
def orthonormal_bases() -> Callable[..., Tensor]:
    """Bases (heads, d, p), orthonormal and orthogonal to each other.

    ``orthonormal_bases(heads, d, p=None, *, seed=0, dtype="float64")``; p is d // heads unless given; heads · p is at most d.
    """

    def draw(heads: int, d: int, p: int | None = None, *, seed: int = 0, dtype: str | dtype = "float64") -> Tensor:
        from .pytest_tokens import bases

        return bases(heads, d, p, seed, dtype)

    return draw


@pytest.fixture(scope="session")
def photograph_tokens() -> Callable[..., Tensor]:
    """Patches of a photograph as tokens (n, d): ``photograph_tokens(n=None, d=24, *, dtype="float64")``.

    The 1184 patches of matplotlib's photograph, or n of them, evenly spaced, on their d ≤ 24 principal directions;
    centred, mean squared norm 1.
    """

    def read(n: int | None = None, d: int = 24, *, dtype: str | dtype = "float64") -> Tensor:
        from .pytest_tokens import photograph

        return photograph(n, d, dtype)

    return read
