"""How well a trained network keeps to its objectives, layer by layer: every attention, every head, every feed-forward block."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from objectives import CodingRate, Objective
from unrolling import UnrolledLayer, adapt

from .descent_alignment import FROZEN, OBJECTIVES, Alignment, aim_at, align, coding, cosine, unit, whole
from .descent_networks import Attended, Fed, attentions_of, class_of, watch
from .descent_records import AttentionDescent, DescentReport, FeedForward, writable

__all__ = ["AttentionDescent", "DescentReport", "FeedForward", "descent_report"]

CHUNK = 4
"""Images run at once."""

PROJECTIONS = ("value", "query", "key")


def descent_report(
    model: nn.Module,
    data: Any,
    *,
    objective: str | Callable[[Tensor, nn.Module], Objective] | None = None,
    html: str | os.PathLike[str] | None = None,
    images: int = 16,
    epsilon: float | None = None,
    projection: str = "value",
    call: Mapping[str, Any] | None = None,
) -> DescentReport:
    r"""Run a network on a few images, and hold what every attention and every head adds against an objective.

    Of each update u at the tokens x that the layer sees: its cosine with −∇f(x), how much f falls along it as it is and with
    the best step size, that step size, and whether it ascends; and what freezing leaves out of the gradient, where the
    objective holds something constant. Of each feed-forward block: sparse coding for ISTA; for MLPs how far they shrink
    the tokens, what they do to the coding rate, and how sparse they are: measured, not claimed.

    Parameters
    ----------
        model: a network of this library; one that :func:`unrolling.adapt.adapt` has changed; any whose attentions have a
        structure that it knows (timm, Hugging Face, torch's TransformerEncoder). It is run in evaluation mode and left
        as it was. data: images ``(images, channels, H, W)`` or tokens ``(images, tokens, dim)``, a list of such or of
        single ones, a data set of unrolling.training, or its Splits (their test part). objective: one of
        :data:`OBJECTIVES`, or (tokens that the attention sees, layer) -> Objective, which every head is held against too;
        by default what a layer of this library stands for, and R_c for adapted ones. Other networks stand for nothing by
        themselves: name one. html: write the page there. images: how many, spread evenly. epsilon: of the rates, by
        default the layer's own or 0.5. projection: whose matrices are the subspaces, "value", "query" or "key". call:
        further arguments of the network's call.
    Of other networks' attentions
        biases, norms of queries and keys and rotary embeddings are part of what they return, but of no objective except
        the kernel regression, which has the first two. LayerScale and dropout come after what is measured.
    Precision
        that of the network, float32 or float64: differences of values near rounding need ``model.double()``.

    Returns
    -------
        the :class:`DescentReport`.

    Raises
    ------
        TypeError for what is no network or no images; ValueError for options out of range, a plain network without an
        objective, a network without an attention that can be measured, tokens that are not finite.

    >>> from unrolling import MSSA
    >>> tied = nn.Sequential(MSSA(6, heads=2), MSSA(6, heads=2)).double()
    >>> report = descent_report(tied, torch.randn(3, 5, 6, dtype=torch.float64))
    >>> [record.verdict for record in report.attentions]
    ['descends', 'descends']
    """
    owner = "descent_report"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner}: model must be a torch.nn.Module, but is a {type(model).__name__}.")
    _check_options(owner, objective, images, epsilon, projection)
    if html is not None:
        writable(html)
    batches = [batch for given in _images(owner, data, images) for batch in given.split(CHUNK)]
    _check_asked(owner, model, objective)
    at = next((t for t in model.parameters() if t.is_floating_point()), torch.zeros(()))
    if at.dtype.itemsize < 4:
        raise ValueError(
            f"{owner}: the network computes in {at.dtype}, too coarse to tell decreases; call model.float()."
        )
    records: dict[str, list[AttentionDescent]] = {}
    feeds: dict[str, list[FeedForward]] = {}
    left_out: dict[str, str] = {}
    for batch in batches:
        attended, fed, refused = watch(model, batch.to(at), call or {})
        left_out |= refused
        for seen in attended:
            try:
                records.setdefault(seen.name, []).append(_attention(seen, objective, epsilon, projection))
            except (TypeError, ValueError) as problem:
                withdrawn = objective == "declared" and "no descent is claimed" in str(problem)
                if callable(objective) or not (isinstance(problem, TypeError) or withdrawn):
                    raise type(problem)(f"{owner}: {seen.name} ({class_of(seen.layer)}): {problem}") from problem
                left_out[seen.name] = str(problem).rstrip(".")
        for part in fed:
            feeds.setdefault(part.name, []).append(_feed(part, 0.5 if epsilon is None else epsilon))
    kept = {name: many for name, many in records.items() if many}
    if not kept:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:4])
        raise ValueError(f"{owner}: no attention of {type(model).__name__} could be measured: {why}.")
    report = DescentReport(
        type(model).__name__,
        objective
        if isinstance(objective, str)
        else "what each layer stands for"
        if objective is None
        else _named(objective),
        sum(len(batch) for batch in batches),
        tuple(_joined(many) for many in kept.values()),
        tuple(_joined(many) for many in feeds.values()),
        left_out,
    )
    if html is not None:
        report.html(html)
    return report


# ------------------------------------------------------------------------------------------------------------- measured


@torch.no_grad()
def _attention(record: Attended, asked: Any, epsilon: float | None, projection: str) -> AttentionDescent:
    x, update = record.seen, record.update
    if not bool(torch.isfinite(x).all() and torch.isfinite(update).all()):
        raise ValueError("it sees or returns NaN or infinite numbers.")
    aim = aim_at(asked, record, epsilon, projection)
    f = aim.build(x)
    heads = None
    why = record.why
    if record.parts is not None and (callable(asked) or asked == "declared"):
        aims: Sequence[Callable[[Tensor], Objective]] | None = (aim.build,) * len(record.parts)
    else:
        aims = aim.heads
    if record.parts is not None and aims is not None:
        each = [align(own(x), x, part) for own, part in zip(aims, record.parts, strict=True)]
        heads = Alignment(*(torch.stack([getattr(a, n.name) for a in each], -1) for n in fields(Alignment)))
    elif record.parts is not None:
        why = "the objective is no sum over heads"
    kind = type(f).__name__
    return AttentionDescent(
        record.name,
        class_of(record.layer),
        kind,
        FROZEN.get(kind, ""),
        align(f, x, update),
        heads,
        why,
        whole(aim.build, f, x, update),
    )


@torch.no_grad()
def _feed(record: Fed, epsilon: float) -> FeedForward:
    x, update = record.seen, record.update
    after = x + update
    rate = CodingRate(epsilon)
    returned = after if record.ista is not None else update
    return FeedForward(
        record.name,
        record.layer,
        cosine(update, -x),
        rate.value(x) - rate.value(after),
        rate.value(unit(x)) - rate.value(unit(after)),
        (returned == 0).to(x.dtype).mean((-2, -1)),
        None if record.hidden is None else (record.hidden <= 0).to(x.dtype).mean((-2, -1)),
        None if record.ista is None else coding(record.ista, x, update),
    )


def _joined(many: Sequence[Any]) -> Any:
    """The records of several batches as one."""
    first = many[0]
    if first is None or isinstance(first, str):
        return first
    if isinstance(first, Tensor):
        return torch.cat([part.cpu() for part in many])
    return type(first)(*(_joined([getattr(part, field.name) for part in many]) for field in fields(first)))


# ----------------------------------------------------------------------------------------------------------------- input


def _check_options(owner: str, objective: Any, images: Any, epsilon: Any, projection: Any) -> None:
    if objective is not None and not callable(objective) and objective not in OBJECTIVES:
        known = ", ".join(repr(name) for name in OBJECTIVES)
        raise ValueError(
            f"{owner}: objective must be one of {known}, or a function (tokens, layer) -> Objective, but is {objective!r}."
        )
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise ValueError(f"{owner}: images must be a whole number of at least 1, but is {images!r}.")
    if epsilon is not None and not (isinstance(epsilon, (int, float)) and 0 < epsilon < math.inf):
        raise ValueError(f"{owner}: epsilon must be positive and finite, but is {epsilon!r}.")
    if projection not in PROJECTIONS:
        raise ValueError(f"{owner}: projection must be one of {', '.join(PROJECTIONS)}, but is {projection!r}.")


def _check_asked(owner: str, model: nn.Module, objective: Any) -> None:
    found = attentions_of(model)
    if not found:
        looked = adapt.structures.LOOKED_FOR
        raise ValueError(f"{owner}: no attention was found in {type(model).__name__}. Looked for: {looked}.")
    foreign = [
        name for name, module in found if not isinstance(module, UnrolledLayer) and not adapt.adapted(module).get("")
    ]
    if objective is None and foreign:
        raise ValueError(
            f"{owner}: {foreign[0]} is no layer of this library and stands for no objective. Name the one to hold it against:"
            f" objective= one of {', '.join(repr(name) for name in OBJECTIVES)}, or a function (tokens, layer) -> Objective."
        )


def _images(owner: str, data: Any, count: int) -> list[Tensor]:
    """Batches of images, or of token sets, ``count`` in all at most, spread evenly."""
    if isinstance(data, Tensor):
        many: Any = data if data.ndim in (3, 4) else None
    elif isinstance(data, (list, tuple)):
        many = [one for item in data for one in _singles(owner, item)]
    else:
        return [_of_data(owner, data, count)]
    if many is None or not len(many):
        shape = tuple(data.shape) if isinstance(data, Tensor) else "an empty list"
        raise ValueError(
            f"{owner}: data must be images (images, channels, H, W) or tokens (images, tokens, dim), but is {shape}."
        )
    total = len(many)
    chosen = [many[index * total // count] for index in range(count)] if total > count else list(many)
    if not all(one.is_floating_point() for one in chosen):
        raise TypeError(
            f"{owner}: images must be floating point, normalised as the network was trained, but are {chosen[0].dtype}."
        )
    return [torch.stack(chosen)] if len({one.shape for one in chosen}) == 1 else [one[None] for one in chosen]


def _singles(owner: str, item: Any) -> list[Tensor]:
    """Images ``(channels, H, W)`` of an item of a list; batches of one or more images are taken apart."""
    if not isinstance(item, Tensor) or item.ndim not in (2, 3, 4):
        raise TypeError(f"{owner}: a list holds tensors, of an image or of tokens each, but one is {_kind(item)}.")
    return list(item) if item.ndim == 4 else [item]


def _of_data(owner: str, data: Any, count: int) -> Tensor:
    from unrolling import training

    part = data.test if isinstance(data, training.Splits) else data
    if not isinstance(part, training.Data):
        raise TypeError(
            f"{owner}: data must be a tensor, a list of tensors, or a data set of unrolling.training, but is {_kind(data)}."
        )
    total = len(part)
    chosen = [index * total // count for index in range(count)] if total > count else list(range(total))
    images, _ = part.load_many(chosen)
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"{owner}: the images of {part.name} differ in size; pass a list of tensors of your own.")
    return training.normalise(torch.stack(images), part)


def _kind(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _named(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
