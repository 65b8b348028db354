"""Experiment 4: does every layer compress? Rates along the depth, of tokens and of representatives, trained and untrained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

import objectives
from objectives import CodingRate

from ...trace import Trace
from ..build import DINO, load_encoder
from ..data import load_data
from ..evaluation_command import load_network
from ..figures import COLOURS, new_figure
from ..pretrained.backbones import minilm
from ..pretrained.cached import as_the_backbone_has_it
from ..trainer import build, load_job_data
from .common import Experiment, Setting, images_of, train_all
from .fair import VARIANTS, fair_jobs, label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COMPRESSION"]

SHOWN = ("MSSA", "CBSA", "TSSA", "MSSA exact, tied, orthonormal", "CBSA exact, tied, orthonormal")
IMAGES = 64


def _numbers(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Layer by layer, means over seeds and images."""
    layers = []
    for records in zip(*traces, strict=True):
        row: dict[str, Any] = {}
        for name in ("rate", "unit_rate"):
            row[name] = torch.stack([getattr(r, name).double().mean(0) for r in records]).mean(0).tolist()
        row["tokens"] = torch.stack([r.token_reduction.double().mean(0) for r in records]).mean(0).tolist()
        reductions = [r.representative_reduction for r in records]
        known = [each.double().mean(0) for each in reductions if each is not None]
        row["representatives"] = torch.stack(known).mean(0).tolist() if known else None
        row["falls"] = float(torch.stack([(r.decrease > 0).double().mean() for r in records]).mean())
        row["zeros"] = float(torch.stack([r.zeros.double().mean() for r in records]).mean())
        layers.append(row)
    return layers


@torch.no_grad()
def _black_boxes() -> dict[str, Any]:
    """The rate of unit tokens, in nats, before the first and after every block, of networks that nobody told to compress.

    A vision transformer in DINOv2's layout on images of Fashion-MNIST, and MiniLM on the first sentences of the docstrings
    of the objectives.
    """
    rate = CodingRate(0.5)

    def each(tokens: torch.Tensor) -> float:
        unit = F.normalize(tokens.double(), dim=-1)
        return float(rate.value(unit).mean())

    encoder = load_encoder(DINO)
    data = as_the_backbone_has_it(load_data("fashion-mnist"), DINO)
    x = F.interpolate(images_of(data.test, 32), size=(112, 112), mode="bilinear", antialias=True)
    stages = list(encoder.stages(x))
    last = stages[-1]
    vision = [each(stage.x) for stage in stages] + [each(last.block(last.x, last.grid))]
    documents = [inspect.getdoc(getattr(objectives, name)) or "" for name in objectives.__all__]
    sentences = [text.split("\n\n")[0].replace("\n", " ") for text in documents if text]
    layers, mask = minilm().features(sentences)
    kept = mask.bool()
    text = [sum(each(tokens[i][kept[i]]) for i in range(len(tokens))) / len(tokens) for tokens in layers]
    return {f"ViT-S/14, DINOv2's layout, {len(x)} images": vision, f"MiniLM, {len(sentences)} sentences": text}


def _run(setting: Setting) -> dict[str, Any]:
    jobs = fair_jobs(setting, {label: VARIANTS[label] for label in SHOWN})
    runs = train_all(jobs, Setting(setting.profile, setting.out.parent / "fair", setting.processes, setting.quiet))
    data = load_job_data(next(iter(jobs.values())))
    x = images_of(data.test, IMAGES)
    traces: dict[str, dict[str, list[Trace]]] = {}
    for name, run in setting.bar(runs.items(), "tracing", len(runs)):
        both: Any = {"trained": load_network(run, data), "untrained": build(run.job(), data)}
        for state, network in both.items():
            traces.setdefault(label_of(name), {}).setdefault(state, []).append(network.trace(x))
    others = {} if setting.smoke else _black_boxes()
    layers = {label: {state: _numbers(found) for state, found in states.items()} for label, states in traces.items()}
    return {"data": data.test.name, "images": len(x), "layers": layers, "others": others}


def _render(found: Mapping[str, Any]) -> str:
    head = "| attention | | R_c of the stream, unit tokens, by block | by attention, then by ISTA | objective falls | zeros at the end |\n"
    lines = [head, "|---|---|---|---|---|---|\n"]
    for label, states in found["layers"].items():
        for state, layers in states.items():
            rates = (
                " → ".join(f"{layer['unit_rate'][0]:.1f}" for layer in layers) + f" → {layers[-1]['unit_rate'][2]:.1f}"
            )
            attention = sum(layer["unit_rate"][1] - layer["unit_rate"][0] for layer in layers)
            feed = sum(layer["unit_rate"][2] - layer["unit_rate"][1] for layer in layers)
            falls = sum(layer["falls"] for layer in layers) / len(layers)
            shares = f"{100 * falls:.0f} % | {100 * layers[-1]['zeros']:.0f} %"
            lines.append(f"| {label} | {state} | {rates} | {attention:+.1f}, {feed:+.1f} | {shares} |\n")
    lines.append(
        f"\nNats, mean over {found['images']} held-out images of {found['data']} and seeds; every token scaled to norm 1, in the"
        " bases of the block's own attention, so that values of different blocks are in different bases.\n\n"
    )
    lines.append(
        "| CBSA's subspaces | reduction of the tokens' rate | of the representatives' | share of heads with both of one sign |\n"
        "|---|---|---|---|\n"
    )
    for label, states in found["layers"].items():
        for state, layers in states.items():
            pairs = [
                p
                for layer in layers
                if layer["representatives"]
                for p in zip(layer["tokens"], layer["representatives"], strict=True)
            ]
            if pairs:
                tokens, representatives = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
                same = sum(a * b > 0 for a, b in pairs) / len(pairs)
                lines.append(f"| {label}, {state} | {tokens:+.2f} | {representatives:+.2f} | {100 * same:.0f} % |\n")
    if found["others"]:
        lines.append(
            "\n| networks that nobody told to compress | rate of unit tokens, nats, ε = 0.5, before the first block and"
            " after every one |\n"
        )
        lines.append("|---|---|\n")
        lines.extend(
            f"| {label} | {' → '.join(f'{each:.2f}' for each in values)} |\n"
            for label, values in found["others"].items()
        )
    return "".join(lines)


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    figure, panels = new_figure(3, (15, 4.0))
    for index, (label, states) in enumerate(found["layers"].items()):
        colour = COLOURS[index % len(COLOURS)]
        for state, layers in states.items():
            style = "-" if state == "trained" else ":"
            for panel, name in zip(panels, ("rate", "unit_rate"), strict=False):
                y = [layer[name][0] for layer in layers] + [layers[-1][name][2]]
                panel.plot(range(len(y)), y, style, marker="o", ms=3, color=colour, lw=1.3, label=f"{label}, {state}")
            pairs = [
                p
                for layer in layers
                if layer["representatives"]
                for p in zip(layer["representatives"], layer["tokens"], strict=True)
            ]
            if pairs:
                mark = "o" if state == "trained" else "x"
                panels[2].plot(*zip(*pairs, strict=True), mark, ms=5, color=colour, label=f"{label}, {state}")
    panels[0].set_title("R_c of the stream (nats)", loc="left", fontsize=10)
    panels[1].set_title("R_c of unit tokens (nats)", loc="left", fontsize=10)
    panels[2].set_title("reduction in every subspace", loc="left", fontsize=10)
    for panel in panels[:2]:
        panel.set_xlabel("blocks passed", fontsize=9)
        panel.set_ylim(bottom=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=7)
    for line in (panels[2].axhline, panels[2].axvline):
        line(0, color="#8a8c93", lw=0.7)
    panels[2].set_xlabel("of the representatives (nats)", fontsize=9)
    panels[2].set_ylabel("of the tokens (nats)", fontsize=9)
    if panels[2].get_legend_handles_labels()[0]:
        panels[2].legend(frameon=False, fontsize=7)
    return {"compression.png": figure}


COMPRESSION = Experiment(
    "compression",
    "Does every layer compress, trained and untrained, and do the tokens follow the representatives?",
    _run,
    _render,
    _figures,
    "Fashion-MNIST",
)
