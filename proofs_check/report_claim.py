"""One claim on the page: its verdict at a glance, and its evidence."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from html import escape

from .claim import Claim, MutantVerdict, Verdict
from .claims import home
from .counterexample import file_name
from .figures import mark, number, remainder_chart, ruler
from .inputs import TokenInput
from .plugins import consulted
from .strategies import Case
from .typeset import Typesetter

__all__ = ["MEANING", "Context", "card", "count", "css_class"]

MEANING = {
    "holds": "In every case the error stayed within the tolerance; no wrong version tried got through.",
    "fails": "A case was found in which it does not hold; the smallest one is kept below the claim.",
    "vacuous": "The check cannot tell right from wrong: a wrong version passed, or too few cases count.",
    "refuted": "The statement is false, and this run found a case that shows it.",
    "measured": "A number is reported; nothing is asserted of it.",
    "open": "A conjecture: attacked in this run, neither proved nor refuted.",
}
"""The statuses, worst first among those that fail a run, and what they mean."""


@dataclass(frozen=True)
class Context:
    """What all claims of a page share. folder: where the counterexamples lie beside the page, if saved."""

    setter: Typesetter
    source: TokenInput | None
    folder: str | None = None


def count(amount: int, thing: str) -> str:
    """How many there are, in words: ``1 claim``, ``1,200 tokens``."""
    return f"{amount:,} {thing}" + ("" if amount == 1 else "s")


def css_class(status: str) -> str:
    """The class of a status; that of ``open`` for one that is unknown here."""
    return status if status in MEANING else "open"


def card(verdict: Verdict, claim: Claim | None, anchor: str, context: Context) -> str:
    """The claim as an article of the page, its evidence folded away below it."""
    setter, css = context.setter, css_class(verdict.status)
    equation = truth = ""
    if claim and claim.equation:
        equation = f'<div class="equation">{setter.equation(claim.equation)}</div>'
    if verdict.status == "refuted":
        correction = f"<p>What is true: {setter.prose(claim.correction)}</p>" if claim and claim.correction else ""
        truth = f'<div class="false"><p><strong>The statement above is false.</strong></p>{correction}</div>'
    elif verdict.reason:
        truth = f'<p class="problem {css}">{escape(verdict.reason)}</p>'
    word = f"<span>{escape(verdict.status)}<small>on {count(verdict.cases, 'case')}</small></span>"
    return f"""<article class="claim is-{css}" id="{anchor}">
<div class="status {css}">{mark(verdict.status)}{word}</div>
<div><h3><a href="#{anchor}">{escape(verdict.id)}</a></h3>
<p class="statement">{setter.prose(verdict.statement)}</p>
{equation}{truth}{_certificate(verdict)}<p class="origin">{escape(verdict.source)}<br>{_files(verdict, claim)}</p></div>
{_numbers(verdict, context.source)}
{_evidence(verdict, claim, context)}
</article>
"""


def _certificate(verdict: Verdict) -> str:
    said = verdict.certificate.partition(": ")[2]
    return f'<p class="certificate">Certified: {escape(said)}.</p>' if said else ""


def _files(verdict: Verdict, claim: Claim | None) -> str:
    code = [entry.partition(":")[0].replace(".", "/") + ".py" for entry in claim.code] if claim else []
    plugin = next((plugin for plugin in consulted() if plugin.name == verdict.stem and plugin.claims), None)
    own = [f"proofs_check/claims/{home(verdict.id)}", f"tests/test_{verdict.stem}.py"] if plugin is None else []
    files = " · ".join(f"<code>{escape(name)}</code>" for name in [*dict.fromkeys(code), *own])
    return files if plugin is None else f"{files} · {escape(plugin.origin)}"


def _numbers(verdict: Verdict, source: TokenInput | None) -> str:
    rows = []
    if verdict.worst_error is not None:
        rows.append(("worst error", number(verdict.worst_error)))
        rows.append(("tolerance", number(verdict.tolerance)))
    else:
        rows.append(("worst error", "nothing compared"))
    if source is not None:
        name = "on the photograph" if source.image is not None else "on the token file"
        real = "not tried" if verdict.real_input_error is None else number(verdict.real_input_error)
        rows.append((name, real))
    pairs = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    killed = sum(mutant.killed for mutant in verdict.mutants)
    dots = "".join(f"<i{'' if mutant.killed else ' class=alive'}></i>" for mutant in verdict.mutants)
    shown = (
        f'<span class="tally"><b>{killed}/{len(verdict.mutants)}</b>{dots}</span>' if verdict.mutants else "none tried"
    )
    drawn = ruler(verdict.worst_error, verdict.tolerance, verdict.real_input_error)
    return f'<div class="numbers">{drawn}<dl>{pairs}<dt>wrong versions rejected</dt><dd>{shown}</dd></dl></div>'


def _evidence(verdict: Verdict, claim: Claim | None, context: Context) -> str:
    facts = [
        ("kind", verdict.kind),
        ("frozen", claim.frozen if claim else "unknown"),
        ("cases", f"{verdict.cases:,}, of which {verdict.evidence:,} could have told right from wrong"),
        ("worst comparison", verdict.worst_name or "–"),
        ("error and tolerance", f"{number(verdict.worst_error, 3)} against {number(verdict.tolerance, 3)}"),
        ("time", f"{verdict.seconds:.3g} s"),
    ]
    if verdict.real_input_error is not None:
        allowed = f"{number(verdict.real_input_error, 3)} against {number(verdict.real_input_tolerance, 3)}"
        facts.insert(5, ("on the real input", allowed))
    if verdict.identical:
        facts.append(("note", "both sides were equal bit for bit in every case: right, or shared code"))
    pairs = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts)
    parts = [f'<div><dl class="facts">{pairs}</dl>{_values(verdict, context.source)}</div>']
    if chart := remainder_chart(verdict.curve):
        title = "Remainder against step"
        if verdict.kind != "order":
            title += ": slope 2 for a right gradient, until rounding stops it, 1 for a wrong one"
        parts.append(f"<figure><h4>{title}</h4>{chart}</figure>")
    inside = f'<div class="columns">{"".join(parts)}</div>'
    if verdict.counterexample:
        name, case = "The counterexample", verdict.counterexample_case
        if verdict.status == "fails":
            name = "The case that fails"
        inside += f"<h4>{name}</h4>{_snippet(verdict.counterexample, case, verdict.id, None, context)}"
    inside += _mutants(verdict, context)
    told = f"{count(verdict.evidence, 'case')} with evidence, {count(len(verdict.mutants), 'wrong version')}"
    return f'<details><summary>The evidence: {told}</summary><div class="inside">{inside}</div></details>'


def _values(verdict: Verdict, source: TokenInput | None) -> str:
    names = list(dict.fromkeys([*verdict.values, *verdict.real_values]))
    if not names:
        return ""
    heads = ["smallest", "median", "largest"] + (["real input"] if source is not None else [])
    rows = []
    for name in names:
        low, middle, high = verdict.values.get(name, (None, None, None))
        cells = [low, middle, high] + ([verdict.real_values.get(name)] if source is not None else [])
        shown = "".join(f'<td class="n">{number(cell, 3)}</td>' for cell in cells)
        rows.append(f"<tr><td>{escape(name)}</td>{shown}</tr>")
    titles = "<th>over the cases</th>" + "".join(f'<th class="n">{title}</th>' for title in heads)
    return f'<h4>Values</h4><div class="table"><table><tr>{titles}</tr>{"".join(rows)}</table></div>'


def _mutants(verdict: Verdict, context: Context) -> str:
    if not verdict.mutants:
        return ""
    rows = "".join(_mutant(mutant, verdict, context) for mutant in verdict.mutants)
    title = "Wrong versions, which the claim must reject"
    if verdict.kind == "refuted":
        title = "Versions for which the statement is true, and which must not look refuted"
    return (
        f'<h4>{title}</h4><div class="table"><table class="wrong">'
        '<tr><th>version</th><th>verdict</th><th class="n">error / tolerance</th>'
        f"<th>smallest case that shows it</th></tr>{rows}</table></div>"
    )


def _mutant(mutant: MutantVerdict, verdict: Verdict, context: Context) -> str:
    word, css = ("rejected", "holds") if mutant.killed else ("let through", "fails")
    case = "–" if mutant.case is None else f"<code>{escape(repr(mutant.case))}</code>"
    if verdict.kind == "refuted" and mutant.killed:
        case = "no counterexample to it among the fixed cases"
    if mutant.counterexample:
        again = _snippet(mutant.counterexample, mutant.case, verdict.id, mutant.name, context)
        shown = case if mutant.case is not None else "the code"
        case = f"<details><summary>{shown}</summary>{again}</details>"
    return (
        f'<tr><td>{escape(mutant.name.replace("_", " "))}</td><td class="{css}">{mark(css)} {word}</td>'
        f'<td class="n">{number(mutant.margin)}</td><td>{case}</td></tr>'
    )


def _snippet(code: str, case: Case | None, claim: str, mutant: str | None, context: Context) -> str:
    """Code to paste, and the command that replays the saved case where there is one."""
    command = ""
    if case is not None and context.folder is not None:
        saved = shlex.quote(f"{context.folder}/{file_name(claim, mutant)}")
        command = f"<pre>$ proofs-check replay {escape(saved)}</pre>"
    return f"<pre>{escape(code)}</pre>{command}"
