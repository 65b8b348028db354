"""The inspection of a checkpoint as one self-contained HTML page."""

from __future__ import annotations

from html import escape

from unrolling import plots

from .checkpoint import Inspection
from .report_style import CSS

__all__ = ["page"]

HEAD = (
    ("block", "the block"),
    ("attention", "its layer"),
    ("objective", "what the layer stands for"),
    ("cosine", "of the update with steepest descent on the objective, at what the layer sees"),
    ("decrease", "of the objective by the update, in nats"),
    ("tied", "the cosine that the update would have, had its output matrix been the best multiple of its bases"),
    ("O along U", "cosine of the output matrix with the bases, 1 if tied"),
    ("beside", "the share of the output matrix that is no multiple of its bases"),
    ("U off", "how far the bases are from orthogonal, relative to their size"),
)


WORD = ' class="word"'


def page(found: Inspection) -> str:
    """The page as text: nothing is fetched, nothing is executed, everything given is escaped."""
    rows = []
    for block, tie in zip(found.trace, found.ties, strict=True):
        cells = [f"{float(block.cosine.mean()):+.3f}", f"{float(block.decrease.mean()):+.4g}"]
        cells += ["–"] * 4
        if tie is not None:
            cells[2:] = [f"{tie.tied_cosine:+.3f}", f"{tie.along:+.3f}", f"{tie.beside:.1%}", f"{tie.spread:.2g}"]
        names = "".join(f'<td class="word">{escape(name)}</td>' for name in (block.attention, block.objective))
        numbers = "".join(f"<td>{cell.replace('-', '−')}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(block.name)}</th>{names}{numbers}</tr>')
    head = "".join(
        f'<th title="{escape(meaning)}"{WORD if i < 3 else ""}>{escape(name)}</th>'
        for i, (name, meaning) in enumerate(HEAD)
    )
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in found.verdict())
    key = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(meaning)}</dd></div>" for name, meaning in HEAD[3:])
    title = f"{found.name or found.trace.model}: does it keep to its objectives?"
    about = f"{found.trace.model}, read as {found.kind!r}, on {found.source}." if found.kind else found.source
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="note">{escape(about)} Published blocks normalise before they attend, so nothing
here is a step at the stream: all of it is measured at what each layer sees.</p></header>
<main>
<section class="said">{said}</section>
<section class="figure">{plots.svg_of(plots.plot_trace(found.trace))}</section>
<h2>Block by block</h2>
<div class="wide"><table class="sizes"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<dl class="key">{key}</dl>
</main>
</body>
</html>
"""
