"""What one step of each kind does to the compression term, over precisions and families of tokens, live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import SubspaceCodingRate
from unrolling import CBSA, MSSA, SequencePool

from .threads import one_thread

__all__ = ["EPSILONS", "Cell", "sign_table", "sign_table_html"]

EPSILONS = (0.25, 0.5, 1.0)
DRAWS, TOKENS, DIM, HEADS, REPRESENTATIVES = 64, 40, 12, 3, 8


@dataclass(frozen=True)
class Cell:
    """Over the draws: the median relative change of R_c, and the share of draws in which it falls."""

    change: float
    falls: float


Table = Mapping[str, Mapping[tuple[str, float], tuple[Cell, Cell]]]
"""Rule to (family, ε) to two cells: R_c of the tokens, and of the tokens scaled to norm 1."""


def _families(seed: int, tokens: NDArray[np.float64] | None) -> dict[str, Tensor]:
    """Sets of tokens ``(draws, N, d)`` of mean squared norm 1."""
    rng = np.random.default_rng(seed)
    gaussian = rng.standard_normal((DRAWS, TOKENS, DIM))
    bases = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].reshape(DIM, HEADS, -1).transpose(1, 0, 2)
    owner = rng.integers(HEADS, size=(DRAWS, TOKENS))
    inside = np.einsum("bndp,bnp->bnd", bases[owner], rng.standard_normal((DRAWS, TOKENS, DIM // HEADS)))
    families = {"Gaussian": gaussian, "in three subspaces": inside + 0.05 * gaussian}
    if tokens is not None and tokens.shape[1] >= DIM and len(tokens) >= 2 * TOKENS:
        chosen = np.stack([rng.permutation(len(tokens))[:TOKENS] for _ in range(DRAWS)])
        families["patches of the input"] = tokens[chosen][..., :DIM]
    made = {}
    for name, sets in families.items():
        size = np.sqrt((sets**2).sum(-1).mean(-1))[:, None, None]
        made[name] = torch.from_numpy(sets / size)
    return made


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def _rules(U: Tensor, epsilon: float) -> dict[str, Callable[[Tensor], Tensor]]:
    exact = MSSA(DIM, HEADS, U=U, epsilon=epsilon, certified=True)
    softmax = MSSA(DIM, HEADS, U=U, form="softmax")
    pool = SequencePool(REPRESENTATIVES)
    few = CBSA(DIM, HEADS, U=U, epsilon=epsilon, representatives=pool, certified=True)
    few_softmax = CBSA(DIM, HEADS, U=U, representatives=pool, form="softmax")
    return {
        "Z − ∇R_c / L, the exact step": exact,
        "Z + MSSA, as published": softmax,
        "Z − MSSA": lambda x: x - softmax.update(x),
        "½ Z + ½ MSSA, shrink and add": lambda x: 0.5 * x + 0.5 * softmax.update(x),
        "Z + MSSA, then tokens of norm 1": lambda x: _unit(softmax(_unit(x))),
        "CBSA, exact": few,
        "CBSA, softmax, as published": few_softmax,
        "CBSA, softmax, subtracted": lambda x: x - few_softmax.update(x),
    }


@one_thread()
def sign_table(tokens: NDArray[np.float64] | None = None, seed: int = 0) -> Table:
    """One step of every rule on 64 sets of 40 tokens of every family, in drawn bases; ``tokens`` add a family."""
    square = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((DIM, DIM)))[0]
    U = torch.from_numpy(np.ascontiguousarray(square.reshape(DIM, HEADS, -1).transpose(1, 0, 2)))
    table: dict[str, dict[tuple[str, float], tuple[Cell, Cell]]] = {}
    with torch.no_grad():
        for family, x in _families(seed, tokens).items():
            for epsilon in EPSILONS:
                objective = SubspaceCodingRate(U, epsilon)
                for name, rule in _rules(U, epsilon).items():
                    start = _unit(x) if "norm 1" in name else x
                    after = rule(start)
                    change = objective.value(after) / objective.value(start) - 1
                    unit = objective.value(_unit(after)) / objective.value(_unit(start)) - 1
                    table.setdefault(name, {})[family, epsilon] = (_cell(change), _cell(unit))
    return table


def _cell(change: Tensor) -> Cell:
    return Cell(float(change.median()), float((change < -1e-12).double().mean()))


def sign_table_html(table: Table) -> str:
    """The two tables, side by side where there is room: medians, and the share of draws that fall where not all agree."""
    columns = list(next(iter(table.values())))
    families = list(dict.fromkeys(family for family, _ in columns))
    groups = "".join(f'<th colspan="{len(EPSILONS)}" scope="colgroup">{escape(family)}</th>' for family in families)
    epsilons = "".join(f'<th scope="col">ε = {epsilon:g}</th>' for _, epsilon in columns)
    parts = []
    for which, title in enumerate(("R<sub>c</sub> of the tokens", "R<sub>c</sub> of the tokens scaled to norm 1")):
        rows = "".join(
            f'<tr><th scope="row">{escape(name).replace("R_c", "R<sub>c</sub>")}</th>'
            + "".join(_td(cells[column][which]) for column in columns)
            + "</tr>"
            for name, cells in table.items()
        )
        parts.append(
            f'<figure><h3>{title}</h3><div class="wide"><table class="signs"><thead><tr><td></td>{groups}</tr>'
            f"<tr><td></td>{epsilons}</tr></thead><tbody>{rows}</tbody></table></div></figure>"
        )
    return (
        '<section class="ledger"><h2>One step, and what it does to the rate <small>does attention compress?</small></h2>'
        f'<p class="note">Median relative change of the compression term over {DRAWS} sets of {TOKENS} tokens in {DIM}'
        " dimensions, three heads, computed in this run. Green falls in every draw, red rises in every draw; otherwise the"
        " share of draws in which it falls stands below.</p>" + "".join(parts) + "</section>"
    )


def _td(cell: Cell) -> str:
    kind = "down" if cell.falls == 1 else "up" if cell.falls == 0 and cell.change > 0 else "mixed"
    share = "" if kind != "mixed" else f"<small>falls in {cell.falls:.0%}</small>"
    number = f"{cell.change:+.0%}" if abs(cell.change) >= 0.0995 else f"{cell.change:+.1%}"
    number = "≈ 0" if abs(cell.change) < 5e-4 else number
    return f'<td class="{kind}">{number.replace("-", "−")}{share}</td>'
