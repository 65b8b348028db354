"""The reference from docstrings: pages for Sphinx's autodoc, and our sections turned into reStructuredText."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ledger import target
from sphinx.pycode import ModuleAnalyzer

PACKAGES = {
    "objectives": "What is minimised: every objective with its value and its gradient.",
    "unrolling": "How it is minimised: steps, the unroller, and the layers.",
    "proofs_check": "Whether it is so: claims, and the checks for layers and objectives of anyone's.",
}
INSIDE = (
    "unrolling.models",
    "unrolling.compat",
    "unrolling.adapt",
    "unrolling.kernels",
    "unrolling.parallel",
    "unrolling.sharding",
    "unrolling.plots",
    "unrolling.knob",
    "unrolling.trace",
    "unrolling.training",
    "proofs_check.inputs",
    "proofs_check.strategies",
    "proofs_check.tolerance",
    "proofs_check.mutants",
    "proofs_check.oracles",
)
"""Modules whose names are public beside those of the three packages."""


def write(folder: Path) -> None:
    """A page for every package and public module, an entry for each of its names."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    pages = []
    for name in (*PACKAGES, *INSIDE):
        module = importlib.import_module(name)
        entries = [(key, getattr(module, key)) for key in module.__all__]
        entries = [(key, value) for key, value in entries if not isinstance(value, types.ModuleType)]
        fresh = [(key, value) for key, value in entries if not _documented(value, seen)]
        if not fresh:
            continue
        seen |= {id(value) for _, value in fresh if inspect.isclass(value) or inspect.isroutine(value)}
        (folder / f"{name}.rst").write_text(_page(name, module, fresh))
        pages.append(name)
    listed = "\n".join(f"   {name}" for name in pages)
    (folder / "index.rst").write_text(
        "Reference\n=========\n\nEvery public name, with its equation, shapes, units, errors, source and claims.\n\n"
        f".. toctree::\n   :maxdepth: 1\n\n{listed}\n"
    )


def _documented(value: Any, seen: set[int]) -> bool:
    return (inspect.isclass(value) or inspect.isroutine(value)) and id(value) in seen


def _page(name: str, module: types.ModuleType, entries: Iterable[tuple[str, Any]]) -> str:
    words = PACKAGES.get(name) or (inspect.getdoc(module) or "").split("\n\n")[0]
    lines = [name, "=" * len(name), "", words, "", f".. py:module:: {name}", ""]
    groups: dict[str, list[tuple[str, Any]]] = {}
    for key, value in entries:
        home = getattr(value, "__module__", name) if inspect.isclass(value) or inspect.isroutine(value) else name
        groups.setdefault(home if home.split(".")[0] in PACKAGES else name, []).append((key, value))
    for home, members in groups.items():
        if len(groups) > 1:
            first = (inspect.getdoc(importlib.import_module(home)) or home).split("\n\n")[0].split("\n")[0].rstrip(".")
            title = re.split(r"[:;.] ", first)[0]
            lines += [title, "-" * len(title), ""]
        for key, value in members:
            lines += [*_entry(name, key, value), ""]
    return "\n".join(lines) + "\n"


def _entry(module: str, key: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        return [f".. autoclass:: {module}.{key}", "   :members:", "   :show-inheritance:"]
    if inspect.isroutine(value):
        return [f".. autofunction:: {module}.{key}"]
    return [f".. py:data:: {key}", "", *(f"   {line}" for line in _words_of(module, key, value).split("\n"))]


def _words_of(module: str, key: str, value: Any) -> str:
    """The docstring under a constant, wherever in the package it is defined; autodoc would give its type's."""
    for name, known in list(sys.modules.items()):
        if name.split(".")[0] == module.split(".")[0] and getattr(known, key, None) is value:
            with contextlib.suppress(Exception):
                words = ModuleAnalyzer.for_module(name).find_attr_docs().get(("", key))
                if words:
                    return "\n".join(restructured(list(words), ()))
    return ""


HEADING = re.compile(r"^([A-Z][A-Za-z' ]{2,40})$")
MATH = re.compile(r"(?<![\\$`])\$([^$\n]+(?:\n[^$\n]+)?)\$(?!\$)")
LITERAL = re.compile(r"(``[^`]*``|:[a-z:]+:`[^`]*`)")


def _escaped(text: str) -> str:
    """Bars and stars that mean themselves."""
    return re.sub(r"(?<![*\\])([*|])(?=[^\s*])(?!\*)", r"\\\1", text)


def restructured(lines: list[str], claims: Iterable[str]) -> list[str]:
    """Our docstrings as reStructuredText: underlined headings become those of a definition list, ``$…$`` becomes math, and the
    names of claims link to the ledger."""
    text = "\n".join(lines)
    # "Raises" under a line of dashes is read by the house's linter only; here it is a heading like the others.
    text = re.sub(r"^([ ]*)([A-Z][A-Za-z ]+)\n\1-{3,}\n\n?", r"\1\2\n", text, flags=re.MULTILINE)
    text = MATH.sub(lambda found: f":math:`{' '.join(found.group(1).split())}`", text)
    text = re.sub(r"(?<=[\wα-ωΑ-Ω)])(:math:`)", r"\\ \1", text)
    text = re.sub(r"(:math:`[^`]+`)(?=[\w(])", r"\1\\ ", text)
    text = "".join(part if number % 2 else _escaped(part) for number, part in enumerate(LITERAL.split(text)))
    known = set(claims)
    out, inside = [], False
    for line in text.split("\n"):
        if HEADING.match(line.strip()) and not line.startswith("     "):
            inside = line.strip() == "Claims"
            if out and out[-1].strip():
                out.append("")
        elif inside and line.strip():
            line = re.sub(
                r"[a-z_]+(?:\.[a-z_0-9]+)+",
                lambda found: f":ref:`{found.group()} <{target(found.group())}>`" if found.group() in known else found.group(),
                line,
            )
        elif not line.startswith(" ") and line.strip():
            inside = False
        out.append(line)
    return out
