"""Experiment 8: does training keep the promise? The rate reduction in the loss, and steps that are certified to descend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..evaluation_command import load_network
from ..figures import COLOURS, new_figure
from ..regularise import SparseRate
from ..trainer import load_job_data
from .common import Experiment, Setting, images_of, show, spread, train_all
from .fair import TIED, VARIANTS, adherence, fair_jobs, label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PROMISE"]

WEIGHTS = (0.0, 0.1, 1.0)
CERTIFIED = {
    "MSSA certified": {"attention": "mssa", **TIED, "certified": True},
    "CBSA certified": {"attention": "cbsa", **TIED, "certified": True},
}
PLAIN = ("MSSA", "CBSA", "MSSA exact, tied, orthonormal", "CBSA exact, tied, orthonormal")
IMAGES = 64


def _jobs(setting: Setting) -> dict[str, dict[str, Any]]:
    """Those of experiment 1 in its folders, regularised ones, and certified ones: folder, then jobs by name."""
    shared = fair_jobs(setting, {label: VARIANTS[label] for label in PLAIN})
    own = fair_jobs(setting, CERTIFIED)
    for weight in WEIGHTS[1:]:
        variants = {"MSSA": VARIANTS["MSSA"], "CBSA": VARIANTS["CBSA"]}
        for name, job in fair_jobs(setting, variants, regularise=weight).items():
            own[name.replace("-seed", f"-rate-{weight}-seed")] = job
    return {"fair": shared, "promise": own}


def _title(name: str) -> str:
    plain, _, _ = name.rpartition("-seed")
    kind, sign, weight = plain.partition("-rate-")
    label = label_of(f"{kind}-seed0", {**VARIANTS, **CERTIFIED})
    return f"{label}, rate in the loss with weight {weight}" if sign else label


@torch.no_grad()
def _measure(network: Any, x: torch.Tensor) -> dict[str, float]:
    with SparseRate(network) as rate:
        network(x)
    return {"srr": float(rate.value()), **adherence(network, x)}


def _run(setting: Setting) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for folder, jobs in _jobs(setting).items():
        runs = train_all(jobs, Setting(setting.profile, setting.out.parent / folder, setting.processes, setting.quiet))
        data = load_job_data(next(iter(jobs.values())))
        x = images_of(data.test, IMAGES)
        for name, run in runs.items():
            row = rows.setdefault(_title(name), {key: [] for key in ("accuracy", "srr", "cosine", "falls")})
            row["accuracy"].append((run.result() or {})["test"]["accuracy"])
            for key, value in _measure(load_network(run, data), x).items():
                row[key].append(value)
    return {
        "data": data.test.name,
        "rows": {label: {k: spread(v) for k, v in row.items()} for label, row in rows.items()},
    }


def _render(found: Mapping[str, Any]) -> str:
    lines = [
        "| network | accuracy | sparse rate reduction, negative, a token | cosine with descent | objective falls |\n"
        "|---|---|---|---|---|\n"
    ]
    for label, row in found["rows"].items():
        falls = f"{100 * row['falls']['mean']:.0f} %"
        lines.append(
            f"| {label} | {show(row['accuracy'], 4)} | {show(row['srr'])} | {show(row['cosine'], 2)} | {falls} |\n"
        )
    lines.append(
        f"\n{found['data']}. The second column is what the loss contains: (R_c − R)/N + 0.1 mean|z| of tokens of norm √d, mean over"
        f" blocks and {IMAGES} test images; lower is better. A certified step lowers its objective on all inputs at what the"
        " attention sees, whatever training does.\n"
    )
    return "".join(lines)


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    figure, (left, right) = new_figure(2, (13, 4.0))
    for index, (label, row) in enumerate(found["rows"].items()):
        colour = COLOURS[index % len(COLOURS)]
        left.plot(row["srr"]["values"], row["accuracy"]["values"], "o", color=colour, ms=5, label=label)
        right.plot(row["falls"]["values"], row["accuracy"]["values"], "o", color=colour, ms=5)
    left.set_xlabel("sparse rate reduction, negative (lower is better)", fontsize=9)
    right.set_xlabel("share of blocks and images on which the objective falls", fontsize=9)
    left.set_ylabel("test accuracy", fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=7)
    return {"promise.png": figure}


PROMISE = Experiment(
    "promise",
    "Does training keep the promise: the rate reduction as a regulariser, and layers with certified steps?",
    _run,
    _render,
    _figures,
    "Fashion-MNIST",
)
