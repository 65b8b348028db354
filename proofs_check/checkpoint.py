"""How well a loaded network keeps to its layers' objectives, block by block, and what its free output matrices do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolling import Stage, SubspaceLayer, Trace, compat, models, objective_of, record_block

from .inputs import InputError, default_image
from .sizes import plain_table

__all__ = ["Inspection", "Tie", "inspect", "open_checkpoint", "photograph_for"]

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels: what published networks have seen."""

BROKEN = 0.01
"""The share of an output matrix beside its bases from which the tie counts as broken."""


@dataclass(frozen=True)
class Tie:
    """An output matrix O beside the bases U that the derivation would put in its place.

    along: ⟨O, U⟩ / (‖O‖ ‖U‖), 1 for a tied layer. beside: ‖O − c U‖ / ‖O‖ with the best number c of every head. bias:
    ‖b‖ / ‖O‖. spread: largest |UᵀU − c I| of a head, relative to c. tied_cosine: of the update that c U would give, with
    the descent direction of the layer's objective.
    """

    along: float
    beside: float
    bias: float
    spread: float
    tied_cosine: float

    @property
    def broken(self) -> bool:
        """Whether the output matrix is no multiple of the bases, head by head."""
        return not self.beside <= BROKEN


@dataclass(frozen=True)
class Inspection:
    """A network, its trace on one input, and the tie of every block; None where a block has no output matrix of its own."""

    kind: str
    name: str
    source: str
    trace: Trace
    ties: tuple[Tie | None, ...]

    def table(self) -> str:
        """A line a block, then what the output matrices do."""
        head = ("block", "attention", "objective", "cosine", "decrease", "tied", "O along U", "beside", "U off")
        rows = []
        for block, tie in zip(self.trace, self.ties, strict=True):
            cells = (f"{float(block.cosine.mean()):+.3f}", f"{float(block.decrease.mean()):+.4g}")
            more = ("–",) * 4
            if tie is not None:
                more = (f"{tie.tied_cosine:+.3f}", f"{tie.along:+.3f}", f"{tie.beside:.1%}", f"{tie.spread:.2g}")
            rows.append((block.name, block.attention, block.objective, *cells, *more))
        return plain_table(rows, head, left=3) + "\n\n" + "\n".join(self.verdict())

    def verdict(self) -> list[str]:
        """What is to be read off the table, in sentences."""
        descending = sum(float(block.decrease.mean()) > 0 for block in self.trace)
        said = [
            f"{descending} of {len(self.trace)} updates lower their layer's objective at what the layer sees (“decrease”);"
            " “cosine” is that of the update with steepest descent."
        ]
        ties = [(block, tie) for block, tie in zip(self.trace, self.ties, strict=True) if tie is not None]
        broken = [(block, tie) for block, tie in ties if tie.broken]
        if not ties:
            said.append("No layer has an output matrix beside bases that it could be tied to.")
        elif not broken:
            said.append("Every output matrix is a multiple of its bases, head by head: no tie is broken.")
        else:
            names = "all of them" if len(broken) == len(ties) > 3 else ", ".join(block.name for block, _ in broken)
            said.append(
                f"{len(broken)} of {len(ties)} output matrices break the tie, more than {BROKEN:.0%} of them lying beside"
                f" their bases: {names}."
            )
        turned = [(b, t) for b, t in broken if t.tied_cosine * float(b.cosine.mean()) < 0]
        if turned:
            listed = ", ".join(
                f"{b.name} ({float(b.cosine.mean()):+.2f}, tied {t.tied_cosine:+.2f})" for b, t in turned
            )
            said.append(f"There the free matrix turns the update to the other side of the descent direction: {listed}.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        ties = [None if tie is None else {**vars(tie), "broken": tie.broken} for tie in self.ties]
        plain = {"schema": 1, "kind": self.kind, "checkpoint": self.name, "input": self.source}
        return {**plain, "trace": self.trace.to_dict(), "ties": ties, "verdict": self.verdict()}


def open_checkpoint(
    path: str | Path,
    kind: str | None = None,
    config: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> tuple[str, models.Model]:
    """The network in a released checkpoint, or in a file or folder of ``save_pretrained``, and what it is.

    Raises
    ------
        ValueError with the reason: a file that cannot be read safely, a kind that cannot be told or is none of a network,
        arguments that are missing or do not fit.
    """
    place = Path(path)
    if kind is None and _own(place):
        model = models.load(place, **(config or {}))
        return type(model).__name__, model
    state = compat.load_checkpoint(place, key=key)
    found = compat.guess_kind(state) if kind is None else kind
    if found is None:
        raise ValueError(f"{place}: its keys are of no known network; pass --kind, one of {', '.join(compat.KINDS)}.")
    module = compat.from_official(found, state, **(config or {}))
    if not isinstance(module, models.Model):
        raise ValueError(f"{place}: a {found!r} is one layer; networks are inspected: {', '.join(compat.NETWORKS)}.")
    return found, module


def _own(place: Path) -> bool:
    """Whether a folder or file was written by save_pretrained, and holds its configuration."""
    if place.is_dir():
        return True
    if place.suffix.lower() != ".safetensors" or not place.is_file():
        return False
    from safetensors import safe_open

    try:
        with safe_open(place, "pt") as file:
            return "config" in (file.metadata() or {})
    except Exception:
        return False  # load_checkpoint says what is wrong with it


def inspect(
    model: models.Model,
    x: Tensor,
    *,
    kind: str = "",
    name: str = "",
    source: str = "",
    epsilon: float | None = None,
    each: Callable[[Iterable[Stage]], Iterable[Stage]] = iter,
    **call: Any,
) -> Inspection:
    """Trace a network on an input, and hold every free output matrix against its bases."""
    ties: list[Tie | None] = []
    records = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for stage in each(model.stages(x, **call)):
                records.append(record_block(stage, epsilon))
                ties.append(_tie(stage, epsilon))
    finally:
        model.train(training)
    made = Trace(type(model).__name__, epsilon, tuple(records))
    return Inspection(kind, name, source, made, tuple(ties))


def _tie(stage: Stage, epsilon: float | None) -> Tie | None:
    layer: nn.Module = stage.block.attention
    if not isinstance(layer, SubspaceLayer) or layer.tied or not layer.projected:
        return None
    out, U = layer.output.weight.double(), layer.basis.detach().double()
    heads, width = layer.heads, layer.head_dim
    by_head = [part.unflatten(-1, (heads, width)) for part in (out, U)]
    inner = (by_head[0] * by_head[1]).sum((0, 2))
    best = inner / by_head[1].square().sum((0, 2)).clamp(min=torch.finfo(U.dtype).tiny)
    multiple = (by_head[1] * best[:, None]).flatten(-2)
    bias = 0.0 if layer.output.bias is None else float(layer.output.bias.double().norm())
    seen = stage.block.seen(stage.x)
    caught: list[Tensor] = []
    hook = layer.output.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    try:
        layer.adds(seen, stage.grid)
    finally:
        hook.remove()
    update = caught[0] @ multiple.mT.to(caught[0].dtype)
    down = -objective_of(layer, seen, stage.grid, epsilon).gradient(seen)
    return Tie(
        float((out * U).sum() / (out.norm() * U.norm()).clamp(min=1e-300)),
        float((out - multiple).norm() / out.norm().clamp(min=1e-300)),
        bias / max(float(out.norm()), 1e-300),
        _spread(by_head[1]),
        _cosine(update, down),
    )


def _spread(U: Tensor) -> float:
    """How far the columns of each head are from orthogonal and of one length."""
    gram = torch.einsum("dkp,dkq->kpq", U, U)
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(gram.shape[-1], dtype=U.dtype)
    return float(((gram - size[:, None, None] * eye).abs().amax((-2, -1)) / size.clamp(min=1e-300)).max())


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(1), b.double().flatten(1)
    return float(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-300)).mean())


def photograph_for(model: models.Model, path: str | Path | None = None) -> tuple[Tensor, dict[str, Any], str]:
    """A photograph as the input of a network, further arguments of its stages, and a sentence on what was done.

    Networks get the image, its middle square resized to theirs; decoders get its patches, projected onto their width by
    a fixed random matrix with orthonormal rows or columns.
    """
    from PIL import Image, UnidentifiedImageError

    source = Path(default_image() if path is None else path)
    if not source.is_file():
        raise InputError(f"{source}: no such file.")
    config: Any = model.config
    dtype = next(model.parameters()).dtype
    if isinstance(model, models.Segmenter):
        config = model.encoder.config
    size = getattr(config, "img_size", 256)
    height, width = (size, size) if isinstance(size, int) else size
    try:
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as problem:
        raise InputError(f"{source}: not a readable image ({problem}). Give a PNG or JPEG file.") from None
    side = min(picture.width / width, picture.height / height)
    left, top = (picture.width - side * width) / 2, (picture.height - side * height) / 2
    box = (left, top, left + side * width, top + side * height)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box)) / 255.0
    note = f"{source.name}, its middle {'square' if height == width else 'part'} at {height} × {width} pixels"
    if not hasattr(config, "img_size"):
        tokens = _patches(pixels, int(config.patch_size), int(config.embed_dim)).to(dtype)
        return tokens, {"im_size": (height, width)}, f"patches of {note}, projected onto the decoder's width"
    channels = int(config.in_chans)
    image = torch.from_numpy((pixels - MEAN) / SPREAD).permute(2, 0, 1)[None]
    if channels == 1:
        image = image.mean(1, keepdim=True)
    elif channels != 3:
        raise InputError(f"{type(model).__name__} takes {channels} channels; a photograph has 3, or 1 in grey.")
    return image.to(dtype), {}, note


def _patches(pixels: np.ndarray, patch: int, dim: int) -> Tensor:
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    blocks = pixels[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch, 3).swapaxes(1, 2)
    flat = torch.from_numpy(np.ascontiguousarray(blocks.reshape(rows * columns, -1)))
    flat = flat - flat.mean(0)
    noise = torch.randn(flat.shape[1], dim, generator=torch.Generator().manual_seed(0), dtype=flat.dtype)
    matrix = torch.linalg.qr(noise if noise.shape[0] >= noise.shape[1] else noise.mT).Q
    tokens = flat @ (matrix if noise.shape[0] >= noise.shape[1] else matrix.mT)
    return (tokens / math.sqrt(float(tokens.square().mean())))[None]
