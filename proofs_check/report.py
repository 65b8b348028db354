"""The report of a run: one self-contained HTML page, made to be looked at."""

from __future__ import annotations

import datetime
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .claim import Claim, Verdict
from .figures import lesson, lesson_chart, mark, photograph, scatter
from .inputs import TokenInput, default_image
from .report_claim import MEANING, Context, card, count, css_class
from .report_style import CSS
from .run import PROFILES
from .signs import sign_table, sign_table_html
from .sizes import table_html
from .table import FAST_WEIGHTS, fast_weights_rows
from .typeset import Typesetter

__all__ = ["counterexamples_beside", "render", "write"]

CAVEAT = (
    "“Holds on N cases” is numerical agreement on those N cases, to a tolerance that is given with each."
    " It is not a proof."
)
WORDS = {
    "holds": "hold",
    "fails": "fail",
    "vacuous": "vacuous",
    "refuted": "refuted",
    "measured": "measured",
    "open": "open",
}
FIRST = (
    (("fails", "vacuous"), "Fails or vacuous", "what has to be looked at"),
    (("refuted", "open"), "Refuted and open", "statements that are false, and questions"),
)

FAST = "MiTA and fast weights"
NETWORKS = "The papers' networks"

PAPERS = {
    "Coding rates: MCR², ReduNet": ("coding_rate", "rate_reduction", "redunet"),
    "CRATE": ("mssa", "sparse_coding", "ista", "crate"),
    "ToST": ("variational_rate", "tssa"),
    "CBSA": ("representatives", "cbsa"),
    "DEPICT": ("pca", "depict"),
    FAST: ("kernel_regression", "softmax", "mita", "agent"),
    "Energies: Hopfield, Energy Transformer": ("softmax_energy", "hopfield", "symmetric", "energy_transformer"),
    "AoT": ("subspace_denoising", "aot"),
    "Fast paths": ("kernels",),
    NETWORKS: ("models",),
    "Released weights": ("compat",),
}
"""The stems of every paper, in the order of the page."""


def counterexamples_beside(path: Path) -> Path:
    """The folder of a report's counterexamples: its name without the suffix, or with one where it has none."""
    return path.with_suffix("") if path.suffix else path.with_name(path.name + "-counterexamples")


def write(
    path: Path,
    run: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    claims: Mapping[str, Claim],
    source: TokenInput | None,
) -> None:
    """Write the page; a file that was there stays whole until the new one is complete.

    The page's replay commands look for the counterexamples in the folder beside it that has its name.
    """
    path = Path(path)
    page = render(run, verdicts, claims, source, folder=counterexamples_beside(path).name)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def render(
    run: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    claims: Mapping[str, Claim],
    source: TokenInput | None,
    *,
    folder: str | None = None,
) -> str:
    """The page as text: nothing is fetched, nothing is executed, everything given is escaped.

    ``run`` is the JSON object of the run; ``claims``, by id, give equations, files and corrections, and a
    verdict without its claim is shown without them; ``source`` is the real input; ``folder`` is where the
    counterexamples were saved, for the replay commands, or None if they were not.
    """
    context, anchors = Context(Typesetter(), source, folder), _anchors(verdicts)
    sound = all(verdict.sound for verdict in verdicts)
    kind = "drawn inputs" if source is None else source.name
    body = "".join(
        f'<section class="group"><h2>{escape(title)} <small>{escape(note)}</small></h2>'
        + (_fast_weights() if title == FAST else "")
        + _folded(title, "".join(card(v, claims.get(v.id), anchors[id(v)], context) for v in chosen))
        + "</section>\n"
        for title, note, chosen in _groups(verdicts)
    )
    head = f"""<header>
<h1>Is the layer the step it claims to be?</h1>
<p class="lead{"" if sound else " bad"}">{escape(_summary(run, verdicts, source))}</p>
<p class="note">{CAVEAT}</p>
{_lesson(run, source)}
</header>
<div class="band">{_signs(run, source)}</div>"""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(f"{len(verdicts)} claims on {kind}: {'all sound' if sound else 'not all sound'}")}</title>
<style>{CSS}</style>
</head>
<body>
{context.setter.outlines()}
{head}
<main>
{_contents(verdicts, anchors)}
{body}
</main>
{_footer(run, verdicts, claims, source)}
</body>
</html>
"""


def _summary(run: Mapping[str, Any], verdicts: Sequence[Verdict], source: TokenInput | None) -> str:
    counts = Counter(verdict.status for verdict in verdicts)
    said = ", ".join(
        f"{counts[status]} {status if counts[status] == 1 else WORDS[status]}" for status in WORDS if counts[status]
    )
    tried = [mutant for verdict in verdicts for mutant in verdict.mutants]
    killed = sum(mutant.killed for mutant in tried)
    put_to = "on drawn inputs"
    if source is not None:
        put_to = f"on {len(source.tokens):,} tokens of {source.name} and on drawn inputs"
    parts = [f"{count(len(verdicts), 'claim')} {put_to}: {said or 'none was run'}"]
    rejected = f"{killed:,} of {count(len(tried), 'wrong version')} rejected"
    parts.append(rejected if tried else "no wrong versions were tried")
    seconds = run.get("seconds")
    took = f", in {seconds:,.3g} s" if isinstance(seconds, (int, float)) else ""
    return "; ".join(parts) + took + "."


def _lesson(run: Mapping[str, Any], source: TokenInput | None) -> str:
    seed = run.get("seed")
    seed = seed if isinstance(seed, int) and seed >= 0 else 0
    drawn = np.random.default_rng(seed).standard_normal((300, 24)) / 24**0.5
    tokens = drawn if source is None else source.tokens
    told = lesson(tokens, seed=seed)
    steps = len(next(iter(told.rate.values()))) - 1
    picture, caption = "", "300 drawn Gaussian tokens of mean squared norm 1."
    if source is not None:
        drawing = photograph(source) or scatter(source.tokens)
        title, one = "Two principal coordinates", ""
        if source.image is not None:
            title, one = "The input, cut into tokens", " The yellow square is one token."
        picture = f'<figure class="picture"><h3>{title}</h3>{drawing}</figure>'
        caption = f"{source.name}: {source.note}.{one}"
    heads = f"{told.heads} random orthonormal subspaces" if told.heads > 1 else "one random orthonormal basis"
    said = "; ".join(
        f"with {name.replace('exact', 'the exact')} R<sub>c</sub> {_moves(told.rate[name])},"
        f" and {_moves(told.unit[name])} at norm 1"
        for name in told.rate
    )
    if any(not np.isfinite(series).all() for series in told.unit.values()):
        said += "; a line ends where its tokens have shrunk to rounding errors"
    charts = (
        ("The coding rate R_c of the tokens, in nats", told.rate),
        ("The same, every token scaled to norm 1", told.unit),
    )
    figures = "".join(
        f"<figure><h3>{title.replace('R_c', 'R<sub>c</sub>')}</h3>{lesson_chart(series, title)}</figure>"
        for title, series in charts
    )
    return (
        f'<section class="lesson{"" if picture else " bare"}" aria-label="What the steps do to the tokens">'
        f'{picture}{figures}<p class="caption">{escape(caption)} The tokens take {steps} steps of three'
        " rules: the exact step on R<sub>c</sub> with its certified size 1/L, and softmax attention added"
        f" (Z + MSSA) or subtracted (Z − MSSA) with κ = 1, in {heads}, ε = 0.5. R<sub>c</sub> also changes"
        " when all tokens merely shrink or grow, so the second chart looks at their directions alone."
        f" On these tokens, {said}.</p></section>"
    )


def _signs(run: Mapping[str, Any], source: TokenInput | None) -> str:
    seed = run.get("seed")
    return sign_table_html(
        sign_table(None if source is None else source.tokens, seed if isinstance(seed, int) and seed >= 0 else 0)
    )


def _fast_weights() -> str:
    rows, note = fast_weights_rows()
    head = "".join(f"<th>{escape(name)}</th>" for name in FAST_WEIGHTS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<p class="note">Attention is a two-layer network with the keys and values as its weights; the efficient forms'
        f" compress it, route to parts of it, or both. {escape(note)}</p>"
        f'<div class="wide"><table class="weights"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _folded(title: str, cards: str) -> str:
    """The networks' claims behind their table: one a network is too many to read."""
    if title != NETWORKS:
        return cards
    return f'{table_html()}<details class="many"><summary>One claim a network</summary>{cards}</details>'


def _moves(series: Sequence[float]) -> str:
    finite = [value for value in series if np.isfinite(value)]
    change = finite[-1] - finite[0]
    return "falls" if change < 0 else "rises" if change > 0 else "does not change"


def _anchors(verdicts: Sequence[Verdict]) -> dict[int, str]:
    """A fragment for every verdict, by the verdict's identity: readable, and unique in the page."""
    taken: dict[str, int] = {}
    anchors = {}
    for verdict in verdicts:
        name = "claim-" + re.sub(r"[^A-Za-z0-9._-]+", "-", verdict.id)
        taken[name] = taken.get(name, 0) + 1
        anchors[id(verdict)] = name if taken[name] == 1 else f"{name}~{taken[name]}"
    return anchors


def _groups(verdicts: Sequence[Verdict]) -> Iterable[tuple[str, str, list[Verdict]]]:
    """Title, note and verdicts of every section: what needs attention first, then stem by stem."""
    rest = list(verdicts)
    for statuses, title, note in FIRST:
        chosen = sorted((v for v in rest if v.status in statuses), key=lambda v: statuses.index(v.status))
        rest = [verdict for verdict in rest if verdict.status not in statuses]
        if chosen:
            yield title, note, chosen
    for title, chosen in _by_paper(rest):
        yield title, count(len(chosen), "claim"), chosen


def _by_paper(verdicts: Sequence[Verdict]) -> Iterable[tuple[str, list[Verdict]]]:
    """The verdicts of every paper, in the order of :data:`PAPERS`; then those of other stems, under their names."""
    others = {v.stem: (v.stem,) for v in verdicts if not any(v.stem in stems for stems in PAPERS.values())}
    for title, stems in {**PAPERS, **{stem.replace("_", " "): only for stem, only in others.items()}}.items():
        chosen = sorted((v for v in verdicts if v.stem in stems), key=lambda v: stems.index(v.stem))
        if chosen:
            yield title, chosen


def _contents(verdicts: Sequence[Verdict], anchors: Mapping[int, str]) -> str:
    rows = []
    for title, chosen in _by_paper(verdicts):
        links = "".join(_link(verdict, anchors[id(verdict)]) for verdict in chosen)
        rows.append(f"<li>{escape(title)}<span>{links}</span></li>")
    seen = {verdict.status for verdict in verdicts}
    key = "".join(
        f'<div><dt class="{status}">{mark(status)}{status}</dt><dd>{meaning}</dd></div>'
        for status, meaning in MEANING.items()
        if status in seen
    )
    return (
        '<nav aria-label="All claims"><h2>All claims <small>one mark each</small></h2>'
        f'<ul class="map">{"".join(rows)}</ul></nav><dl class="key">{key}</dl>'
    )


def _link(verdict: Verdict, anchor: str) -> str:
    name = escape(f"{verdict.id}: {verdict.status}")
    css = css_class(verdict.status)
    return f'<a class="{css}" href="#{anchor}" title="{name}" aria-label="{name}">{mark(verdict.status)}</a>'


def _footer(
    run: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    claims: Mapping[str, Claim],
    source: TokenInput | None,
) -> str:
    environment = run.get("environment")
    facts: list[tuple[str, Any]] = [
        ("version", run.get("version")),
        ("date", run.get("date") or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("seed", run.get("seed")),
        ("profile", run.get("profile")),
        ("precision", run.get("dtype")),
        ("input", "drawn cases only" if source is None else f"{source.name}: {source.note}"),
    ]
    facts += list(environment.items()) if isinstance(environment, Mapping) else []
    pairs = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts if v is not None)
    again = escape(str(run.get("command") or _command(run, verdicts, claims, source)))
    return f'<footer><h2>This run</h2><dl class="facts">{pairs}</dl><h2>Run it again</h2><pre>$ {again}</pre></footer>'


def _command(
    run: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    claims: Mapping[str, Claim],
    source: TokenInput | None,
) -> str:
    """The call that gives this run again; files by their names, since folders differ between machines."""
    words = ["proofs-check", "run"]
    names = [verdict.id for verdict in verdicts]
    words += [] if set(names) == set(claims) else names
    if run.get("profile") in PROFILES:
        words += ["--profile", str(run["profile"])]
        words += (
            ["--cases", str(run["cases"])]
            if run.get("cases", PROFILES[run["profile"]]) != PROFILES[run["profile"]]
            else []
        )
    words += ["--seed", str(run.get("seed", 0))]
    words += ["--dtype", str(run["dtype"])] if run.get("dtype", "float64") != "float64" else []
    words += [] if any(verdict.mutants for verdict in verdicts) else ["--no-mutants"]
    if source is not None and source.name != default_image().name:
        words += [f"--{'image' if source.kind == 'image' else 'tokens'}", source.name]
    return shlex.join([*words, "--html", "proofs-report.html"])
