"""Claims of other packages, by entry points of the group ``proofs_check.claims``: beside ours, and never in their way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy

from .claim import Claim, Comparison, Measurement, Mutant
from .claims import CLAIMS
from .counterexample import file_name
from .strategies import Case

__all__ = [
    "GROUP",
    "SWITCH",
    "Plugin",
    "PluginError",
    "all_claims",
    "consulted",
    "left_out",
    "of",
    "plugins",
    "problems",
]

GROUP = "proofs_check.claims"
"""The group of entry points. One names a module with CLAIMS, a Claim, a tuple of them, or a callable that gives one."""

SWITCH = "PROOFS_CHECK_NO_PLUGINS"
"""The environment variable that leaves all of them out, unless it is empty or 0."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ID = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_TEXTS = ("id", "statement", "equation", "source", "kind", "frozen", "correction")
_ignored = False


class PluginError(Exception):
    """Another package's claim did what no claim may do."""


@dataclass(frozen=True)
class Plugin:
    """One entry point: its name, whose it is, the claims it gives, and what is wrong with it, if anything is.

    name is the stem of its claims: their ids begin with it, and get it as a prefix where they do not.
    """

    name: str
    package: str
    entry_point: str
    claims: tuple[Claim, ...] = ()
    problem: str = ""

    @property
    def origin(self) -> str:
        """The package with its version, and the entry point."""
        return f"{self.package} (entry point {self.entry_point})"

    def __str__(self) -> str:
        given = f"{len(self.claims)} claim{'' if len(self.claims) == 1 else 's'}"
        return f"{self.origin}: {self.problem or given}"


def all_claims() -> tuple[Claim, ...]:
    """The claims of this library, then those of other packages that can be used."""
    return (*CLAIMS, *(claim for plugin in plugins() for claim in plugin.claims))


def problems() -> list[str]:
    """A line for every entry point that cannot be used, or not whole: which package, which entry point, what is wrong."""
    return [str(plugin) for plugin in plugins() if plugin.problem]


def of(id: str) -> Plugin | None:
    """The plugin whose name is the first part of an id."""
    stem = id.split(".", 1)[0]
    return next((plugin for plugin in plugins() if plugin.name == stem), None)


def plugins() -> tuple[Plugin, ...]:
    """All entry points of the group, read once a process; none inside of :func:`left_out` or with :data:`SWITCH`."""
    return () if _ignored or os.environ.get(SWITCH, "") not in ("", "0") else _read_all()


def consulted() -> tuple[Plugin, ...]:
    """The plugins if this process has had to read them; runs of our own claims by name never do."""
    return plugins() if _read_all.cache_info().currsize else ()


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Leave other packages' claims out: nothing of theirs is imported."""
    global _ignored
    before, _ignored = _ignored, True
    try:
        yield
    finally:
        _ignored = before


@functools.cache
def _read_all() -> tuple[Plugin, ...]:
    taken = {claim.stem: "claims of this library" for claim in CLAIMS}
    read: list[Plugin] = []
    for plugin, point in sorted(_points(), key=lambda found: (found[0].name, found[0].origin)):
        name = plugin.name
        if point is None:
            read.append(plugin)
        elif not _NAME.fullmatch(name):
            reason = "its name is the first part of its claims' ids: lower-case letters, digits and _ only"
            read.append(dataclasses.replace(plugin, problem=f"left out: {reason}"))
        elif name in taken:
            reason = f"ids that begin with {name}. are {taken[name]}; give the entry point another name"
            read.append(dataclasses.replace(plugin, problem=f"left out: {reason}"))
        else:
            taken[name] = f"those of {plugin.package}"
            read.append(_read(plugin, point))
    return tuple(read)


def _points() -> Iterator[tuple[Plugin, importlib.metadata.EntryPoint | None]]:
    """The entry points of the group, each once; without one where a package's list of them cannot be read."""
    seen = set()
    for distribution in importlib.metadata.distributions():
        about = distribution.metadata
        package = " ".join(str(about[key]) for key in ("Name", "Version") if about[key]) or "a package without a name"
        try:
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception as problem:
            if GROUP in (distribution.read_text("entry_points.txt") or ""):
                yield (
                    Plugin("", package, "?", problem=f"left out: its entry points cannot be read: {_said(problem)}"),
                    None,
                )
            continue
        for point in points:
            plugin = Plugin(point.name, package, f"{point.name} = {point.value}")
            if plugin not in seen:  # a distribution may lie on the path twice
                seen.add(plugin)
                yield plugin, point


def _read(plugin: Plugin, point: importlib.metadata.EntryPoint) -> Plugin:
    try:
        thing = point.load()
    except (Exception, SystemExit) as problem:  # whatever another package does as it is imported is its own affair
        return dataclasses.replace(plugin, problem=f"left out: cannot be imported: {_said(problem)}")
    try:
        things = _things(thing)
    except (Exception, SystemExit) as problem:
        return dataclasses.replace(plugin, problem=f"left out: {_said(problem)}")
    claims: dict[str, Claim] = {}
    wrong = []
    for place, one in enumerate(things):
        try:
            claim = _usable(plugin, one)
            if claim.id in claims:
                raise PluginError(f"two of its claims are named {claim.id!r}")
            claims[claim.id] = claim
        except Exception as problem:
            wrong.append(f"claim {place + 1} of {len(things)} is left out: {_said(problem)}")
    return dataclasses.replace(plugin, claims=tuple(claims.values()), problem="; ".join(wrong))


def _things(thing: Any) -> Sequence[Any]:
    if isinstance(thing, types.ModuleType):
        if not hasattr(thing, "CLAIMS"):
            raise PluginError(f"the module {thing.__name__} has no CLAIMS, a tuple of proofs_check.Claim")
        thing = thing.CLAIMS
    elif callable(thing) and not isinstance(thing, Claim):
        thing = thing()
    if isinstance(thing, Claim):
        return (thing,)
    if not isinstance(thing, (tuple, list)):
        raise PluginError(f"a module, a proofs_check.Claim or a tuple of them is expected, but it is {_kind(thing)}")
    if not thing:
        raise PluginError("it gives no claims: the tuple is empty")
    return thing


def _usable(plugin: Plugin, one: Any) -> Claim:
    """The claim under the plugin's prefix, with what it measures held to plain numbers."""
    if not isinstance(one, Claim):
        raise PluginError(f"it is {_kind(one)}, where a proofs_check.Claim is expected")
    for name in _TEXTS:
        if not isinstance(getattr(one, name), str):
            raise PluginError(f"its {name} must be text, but is {_kind(getattr(one, name))}")
    if not _ID.fullmatch(one.id):
        raise PluginError(f"its id {one.id!r} must be dotted words of lower-case letters, digits and _")
    for name, kind in (("code", str), ("mutants", Mutant), ("structured", Case)):
        entries = getattr(one, name)
        if not isinstance(entries, tuple) or not all(isinstance(entry, kind) for entry in entries):
            raise PluginError(f"{one.id}: {name} must be a tuple of {kind.__name__}")
    if len({file_name(one.id, str(mutant.name)) for mutant in one.mutants}) < len(one.mutants):
        raise PluginError(f"{one.id}: its mutants need names that differ in more than punctuation")
    for case in one.structured:
        _case(case)
    if not callable(one.measure) or not isinstance(one.domain, SearchStrategy):
        raise PluginError(f"{one.id}: measure must be callable, and domain a strategy of hypothesis")
    prefixed = one.id if f"{one.id}.".startswith(f"{plugin.name}.") else f"{plugin.name}.{one.id}"
    domain = one.domain.map(_Cases(plugin.origin))
    return dataclasses.replace(one, id=prefixed, measure=_Named(one.measure, plugin.origin), domain=domain)


@dataclass(frozen=True)
class _Cases:
    """What a domain draws, which must be cases."""

    origin: str

    def __call__(self, drawn: Any) -> Case:
        try:
            return _case(drawn)
        except PluginError as problem:
            raise PluginError(f"{self.origin}: its domain draws what is no case: {problem}") from None


@dataclass(frozen=True)
class _Named:
    """A measure whose errors say whose they are, and whose numbers are plain: reports are written of them."""

    measure: Callable[[Any, Case], Measurement]
    origin: str

    def __call__(self, subject: Any, case: Case) -> Measurement:
        try:
            return _plain(self.measure(subject, case))
        except HypothesisException:  # a case that the claim declines is no error
            raise
        except (Exception, SystemExit) as problem:
            raise PluginError(f"{self.origin}: {_said(problem)}") from problem


def _case(thing: Any) -> Case:
    if not isinstance(thing, Case):
        raise PluginError(f"it is {_kind(thing)}, where a proofs_check.Case is expected")
    for item in dataclasses.fields(Case):
        value, plain = getattr(thing, item.name), type(item.default)
        if plain in (int, float, str) and type(value) not in ((int, float) if plain is float else (plain,)):
            raise PluginError(f"Case: {item.name} must be {plain.__name__}, but is {_kind(value)}")
    return thing


def _plain(measured: Any) -> Measurement:
    if not isinstance(measured, Measurement):
        raise PluginError(f"measure returned {_kind(measured)}, where a proofs_check.Measurement is expected")
    return Measurement(
        tuple(Comparison(str(one.name), float(one.error), float(one.tolerance)) for one in measured.comparisons),
        bool(measured.evidence),
        {str(name): float(value) for name, value in measured.values.items()},
        tuple((float(step), float(remainder)) for step, remainder in measured.curve),
        bool(measured.identical),
        bool(measured.truth),
    )


def _kind(thing: Any) -> str:
    name = type(thing).__name__
    return f"a{'n' if name[:1].lower() in 'aeio' else ''} {name}"


def _said(problem: BaseException) -> str:
    """The problem in one line; the name of its class, unless it is ours."""
    words = " ".join(str(problem).split())
    words = words if len(words) <= 400 else f"{words[:400]} …"
    if isinstance(problem, PluginError):
        return words
    return f"{type(problem).__name__}: {words}" if words else type(problem).__name__
