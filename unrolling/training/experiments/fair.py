"""Experiment 1: attentions in the same network, with everything else equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...models import Model
from ..evaluation_command import load_network
from ..figures import COLOURS, new_figure
from ..recipe import Recipe
from ..run import Job
from ..trainer import load_job_data
from .common import Experiment, Setting, images_of, multiply_adds, show, spread, throughputs, train_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FAIR", "TIED", "VARIANTS", "adherence", "fair_jobs", "label_of"]

EXACT = {"form": "exact"}
TIED = {"form": "exact", "tied": True, "orthonormal": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"attention": "softmax"},
    "MSSA": {"attention": "mssa"},
    "CBSA": {"attention": "cbsa"},
    "TSSA": {"attention": "tssa"},
    "agent": {"attention": "agent"},
    "MiTA": {"attention": "mita"},
    "MSSA exact": {"attention": "mssa", **EXACT},
    "CBSA exact": {"attention": "cbsa", **EXACT},
    "MSSA exact, tied, orthonormal": {"attention": "mssa", **TIED},
    "CBSA exact, tied, orthonormal": {"attention": "cbsa", **TIED},
}
"""Name: the fields of the configuration that differ."""

TRACED = 64


def fair_jobs(
    setting: Setting,
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
    data_sets: tuple[str, str] = ("digits", "fashion-mnist"),
    **changes: Any,
) -> dict[str, Job]:
    """One job for every variant and seed: same stem, depth, width, feed-forward step, order of images and epochs.

    data_sets: of the quick version and of the full one.
    """
    data = data_sets[0 if setting.smoke else 1]
    recipe = Recipe.read(data)
    settings = [f"{name}={value}" for name, value in changes.items()]
    recipe = recipe.with_settings([*(["epochs=2"] if setting.smoke else []), *settings])
    return {
        f"{_slug(name)}-seed{seed}": Job("classify", data, recipe, model="cbt-tiny", choices=choices, seed=seed)
        for name, choices in variants.items()
        for seed in range(1 if setting.smoke else 3)
    }


def similarities(model: Any, tokens: int) -> int:
    """Inner products between two vectors that the attention of all blocks and heads forms, one image.

    N² for softmax attention and MSSA; N m + m² for CBSA; 2 N m for agent attention; 2 N m + N k for MiTA. The exact MSSA
    and TSSA form none: they work on p × p, and on p, sums over tokens.
    """
    c = model.config
    heads, m, kind = c.num_heads, c.representatives[0] * c.representatives[1], c.attention
    each = {
        "softmax": tokens**2,
        "mssa": tokens**2 if c.form == "softmax" else 0,
        "cbsa": tokens * m + m * m if c.form == "softmax" else tokens * m,
        "tssa": 0,
        "agent": 2 * tokens * m,
        "mita": 2 * tokens * m + tokens * c.keys_per_expert,
    }
    return c.depth * heads * each[kind]


@torch.no_grad()
def adherence(model: Model, x: torch.Tensor) -> dict[str, float]:
    """How blocks keep to their layers' objectives: mean cosine with descent, share of images and blocks on which it falls."""
    found = model.trace(x)
    cosines = torch.stack([record.cosine for record in found])
    falls = torch.stack([record.decrease > 0 for record in found])
    return {"cosine": float(cosines.mean()), "falls": float(falls.double().mean())}


def _slug(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "-").lower()


def label_of(name: str, variants: Mapping[str, Any] = VARIANTS) -> str:
    """The variant of a job's name."""
    return {_slug(each): each for each in variants}[name.rpartition("-seed")[0]]


def _run(setting: Setting) -> dict[str, Any]:
    jobs = fair_jobs(setting)
    runs = train_all(jobs, setting)
    data = load_job_data(next(iter(jobs.values())))
    x = images_of(data.test, TRACED)
    rows: dict[str, Any] = {}
    networks: dict[str, Any] = {}
    for name, run in setting.bar(runs.items(), "measuring", len(runs)):
        network: Any = load_network(run, data)
        label, result = label_of(name), run.result() or {}
        row = rows.setdefault(label, {"accuracy": [], "cosine": [], "falls": []})
        row["accuracy"].append(result["test"]["accuracy"])
        kept = adherence(network, x)
        row["cosine"].append(kept["cosine"])
        row["falls"].append(kept["falls"])
        row["objective"] = network.trace(x[:1])[0].objective
        if label not in networks:
            networks[label] = network
            tokens = network.forward_features(x[:1]).shape[1]
            row["parameters"] = result["parameters"]
            row["multiply_adds"] = multiply_adds(network, x[:1])
            row["similarities"] = similarities(network, tokens)
    speeds = throughputs(networks, x)
    for label, row in rows.items():
        row["images_per_second"] = speeds[label]
        for key in ("accuracy", "cosine", "falls"):
            row[key] = spread(row[key])
    job = next(iter(jobs.values()))
    return {"data": job.data, "epochs": job.recipe.epochs, "seeds": len(jobs) // len(VARIANTS), "rows": rows}


def _render(found: Mapping[str, Any]) -> str:
    head = (
        "| attention | accuracy | parameters | multiply-adds (M) | similarities | images/s, forward | cosine with descent |"
        " objective falls |\n"
    )
    lines = [head + "|---|---|---|---|---|---|---|---|\n"]
    for label, row in sorted(found["rows"].items(), key=lambda item: -item[1]["accuracy"]["mean"]):
        lines.append(
            f"| {label} | {show(row['accuracy'], 4)} | {row['parameters']:,} | {row['multiply_adds'] / 1e6:.2f} | {row['similarities']:,} |"
            f" {row['images_per_second']:.0f} | {show(row['cosine'], 2)} | {100 * row['falls']['mean']:.0f} % |\n"
        )
    note = (
        f"{found['data']}, {found['epochs']} epochs, {found['seeds']} seed(s); mean and half of the range. Cosine: of every block's"
        f" update with descent on its layer's objective, {TRACED} test images; for softmax, agent and MiTA, which descend no rate,"
        " on R_c in the subspaces of their values. Images a second: in turns, one thread, ratios within this run only.\n"
    )
    return "".join(lines) + "\n" + note


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    figure, (left, right) = new_figure(2, (11, 4.2))
    ordered = sorted(found["rows"].items(), key=lambda item: item[1]["accuracy"]["mean"])
    for index, (label, row) in enumerate(ordered):
        values = row["accuracy"]["values"]
        left.plot(values, [index] * len(values), "o", color=COLOURS[0], ms=4, alpha=0.6)
        left.plot([row["accuracy"]["mean"]], [index], "|", color=COLOURS[1], ms=14, mew=2)
        right.plot([row["cosine"]["mean"]], [row["accuracy"]["mean"]], "o", color=COLOURS[index % len(COLOURS)], ms=6)
        right.annotate(
            label, (row["cosine"]["mean"], row["accuracy"]["mean"]), (5, 4), textcoords="offset points", fontsize=7
        )
    left.set_yticks(range(len(ordered)), [label for label, _ in ordered], fontsize=8)
    left.set_xlabel("test accuracy, every seed and the mean", fontsize=9)
    right.set_xlabel("mean cosine of updates with descent", fontsize=9)
    right.set_ylabel("test accuracy", fontsize=9)
    right.margins(x=0.25)
    return {"fair.png": figure}


FAIR = Experiment(
    "fair",
    "Same stem, depth, width, feed-forward step and budget: what does the choice of attention change?",
    _run,
    _render,
    _figures,
    "Fashion-MNIST",
)
