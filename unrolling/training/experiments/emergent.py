"""Experiment 6: do class tokens find the object? Their attention maps in classifiers, against silhouettes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Data
from ..datasets.objects import ObjectData
from ..evaluation_command import load_network
from ..figures import COLOURS, new_figure
from ..recipe import Recipe
from ..trainer import build, load_job_data
from .common import Experiment, Setting, images_of, show, spread, train_all
from .fair import VARIANTS, fair_jobs, label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EMERGENT"]

SHOWN = ("softmax", "MSSA", "CBSA", "MSSA exact, tied, orthonormal")
HYBRID = {"MSSA, then CBSA": ("mssa", "cbsa")}
MASS = 0.6
"""The share of a map's mass that is kept, as in DINO's evaluation."""


def foreground(maps: Tensor, share: float = MASS) -> Tensor:
    """The least set of patches that holds this share of every map's mass, ``(..., patches)`` in booleans.

    >>> foreground(torch.tensor([0.5, 0.3, 0.1, 0.1]))
    tensor([ True,  True, False, False])
    """
    ordered, places = maps.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = before < share * maps.sum(-1, keepdim=True)
    return torch.zeros_like(kept).scatter_(-1, places, kept)


def jaccard(found: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of boolean masks over the last two axes."""
    both, either = (found & truth).sum((-1, -2)), (found | truth).sum((-1, -2))
    return both / either.clamp_min(1)


@torch.no_grad()
def scores(network: Any, x: Tensor, truth: Tensor) -> tuple[list[dict[str, float]], Tensor]:
    """Block by block the Jaccard index of the class token's map: mean over heads, and of every image's best head; the last map."""
    stages = list(network.stages(x))
    found, last = [], torch.empty(0)
    for stage in stages:
        maps = stage.block.attention.attention_map(stage.block.seen(stage.x), stage.grid)
        patches = maps[:, :, 0, 1:].clamp_min(0)
        masks = foreground(patches).unflatten(-1, stage.grid).float()
        large = F.interpolate(masks, size=truth.shape[-2:], mode="nearest") > 0.5
        each = jaccard(large, truth.unsqueeze(1)).double()
        found.append({"heads": float(each.mean()), "best": float(each.amax(1).mean())})
        last = patches.unflatten(-1, stage.grid)
    return found, last


def _chance(truth: Tensor, grid: tuple[int, int], heads: int) -> dict[str, float]:
    """The same for maps without meaning: uniform random numbers."""
    maps = torch.rand(len(truth), heads, grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
    masks = foreground(maps).unflatten(-1, grid).float()
    each = jaccard(F.interpolate(masks, size=truth.shape[-2:], mode="nearest") > 0.5, truth.unsqueeze(1)).double()
    return {"heads": float(each.mean()), "best": float(each.amax(1).mean())}


def _run(setting: Setting) -> dict[str, Any]:
    sets = ("digit-objects", "fashion-objects")
    depth = int(Recipe.read(sets[0 if setting.smoke else 1]).model["depth"])
    (title, pair) = next(iter(HYBRID.items()))
    hybrid = {title: {"attention": tuple(pair[0] if i < depth // 2 else pair[1] for i in range(depth))}}
    jobs = fair_jobs(setting, {**{label: VARIANTS[label] for label in SHOWN}, **hybrid}, sets)
    runs = train_all(jobs, setting)
    data = load_job_data(next(iter(jobs.values())))
    count = min(len(data.test), 64 if setting.smoke else 1000)
    if not isinstance(data.test, ObjectData):
        raise TypeError(f"emergent: {data.test.name} has no silhouettes.")
    x, truth = images_of(data.test, count), data.test.silhouettes[:count]
    rows: dict[str, dict[str, list[Any]]] = {}
    maps: dict[str, Any] = {}
    accuracies: dict[str, list[float]] = {}
    heads = 1
    for name, run in setting.bar(runs.items(), "measuring", len(runs)):
        label = label_of(name, {**VARIANTS, **hybrid})
        accuracies.setdefault(label, []).append((run.result() or {})["test"]["accuracy"])
        for state, network in (("trained", load_network(run, data)), ("untrained", build(run.job(), data).eval())):
            found, last = scores(network, x, truth)
            rows.setdefault(label, {}).setdefault(state, []).append(found)
            heads = last.shape[1]
            if state == "trained" and label not in maps:
                maps[label] = last[:5].mean(1).tolist()
    table = {
        label: {
            state: [
                {key: spread([seed[layer][key] for seed in seeds]) for key in ("heads", "best")}
                for layer in range(depth)
            ]
            for state, seeds in states.items()
        }
        for label, states in rows.items()
    }
    grid = (len(next(iter(maps.values()))[0]), len(next(iter(maps.values()))[0][0]))
    return {
        "data": data.test.name,
        "images": len(x),
        "rows": table,
        "accuracy": {label: spread(values) for label, values in accuracies.items()},
        "chance": _chance(truth, grid, heads),
        "share": float(truth.double().mean()),
        "maps": maps,
        "pictures": _pixels(data.test, 5).tolist(),
    }


def _pixels(data: Data, count: int) -> Tensor:
    return torch.stack(data.load_many(range(min(count, len(data))))[0])


def _render(found: Mapping[str, Any]) -> str:
    lines = [
        "| attention | accuracy | last block, mean over heads | best block and head | untrained, best block and head |\n"
        "|---|---|---|---|---|\n"
    ]
    for label, states in found["rows"].items():
        best, plain = (
            max((layer["best"] for layer in states[s]), key=lambda each: each["mean"]) for s in ("trained", "untrained")
        )
        accuracy = show(found["accuracy"][label])
        lines.append(
            f"| {label} | {accuracy} | {show(states['trained'][-1]['heads'])} | {show(best)} | {show(plain)} |\n"
        )
    chance = found["chance"]
    lines.append(f"| random maps | | {chance['heads']:.3f} | {chance['best']:.3f} | |\n")
    lines.append(
        f"\nJaccard index of the class token's map, thresholded to {MASS:.0%} of its mass, with the silhouette ({found['share']:.0%} of"
        f" the pixels), {found['images']} images of {found['data']}; the best head is chosen image by image, as DINO's evaluation does.\n"
    )
    return "".join(lines)


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    figure, _ = new_figure(1, (9, 1.7 * (1 + len(found["maps"]))))
    figure.clear()
    panels = figure.subplots(1 + len(found["maps"]), 5, squeeze=False)
    for column, picture in enumerate(found["pictures"]):
        panels[0][column].imshow(torch.tensor(picture).movedim(0, -1).squeeze(-1).numpy(), cmap="gray")
    for row, (label, maps) in zip(panels[1:], found["maps"].items(), strict=True):
        for panel, each in zip(row, maps, strict=True):
            panel.imshow(torch.tensor(each).numpy(), cmap="viridis", interpolation="nearest")
        row[0].set_ylabel(label.replace(", ", ",\n"), fontsize=7)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    layers, (axes,) = new_figure(1, (8.5, 4))
    for index, (label, states) in enumerate(found["rows"].items()):
        for state, style in (("trained", "-"), ("untrained", ":")):
            y = [layer["best"]["mean"] for layer in states[state]]
            axes.plot(range(1, len(y) + 1), y, style, marker="o", ms=3, color=COLOURS[index], label=f"{label}, {state}")
    axes.axhline(found["chance"]["best"], color="#8a8c93", lw=0.8)
    axes.set_xlabel("block (grey line: random maps)", fontsize=9)
    axes.set_ylabel("Jaccard index, best head", fontsize=9)
    axes.set_xticks(range(1, 1 + len(next(iter(found["rows"].values()))["trained"])))
    layers.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=7)
    return {"emergent-maps.png": figure, "emergent.png": layers}


EMERGENT = Experiment(
    "emergent",
    "Do the class tokens of classifiers find the object without being told?",
    _run,
    _render,
    _figures,
    "Fashion-MNIST, scikit-image",
)
