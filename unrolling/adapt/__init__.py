"""The attention of an existing vision transformer, exchanged for one of ours in place, weights kept.

from unrolling.adapt import adapt, adapted

adapt(model, "mita", landmarks=(5, 5), keys_per_expert=25)
adapted(model)  # {'blocks.0.attn': 'mita', …}
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from ..attention import AttentionLayer
from ..errors import check_choice, check_count, check_pair
from .formulas import ATTENTIONS, Formula, Landmarks, Pooled, token_statistics
from .grids import class_tokens_of, grid_of
from .modules import Adapted, AdaptedLayer, FusedAdapted, SeparateAdapted, TorchAdapted, ours
from .structures import LOOKED_FOR, Unsuitable, candidates, plan_for, suits_ours

__all__ = [
    "Adapted",
    "AdaptedLayer",
    "FusedAdapted",
    "SeparateAdapted",
    "TorchAdapted",
    "adapt",
    "adapted",
    "token_statistics",
]

Network = TypeVar("Network", bound=nn.Module)
Selection = str | Iterable[str] | Callable[[str, nn.Module], bool]
POOLING = ("landmarks", "grid", "class_tokens", "other_grids")


def adapt(
    model: Network,
    attention: str,
    *,
    landmarks: int | tuple[int, int] | None = None,
    contraction: bool | None = None,
    keys_per_expert: int | None = None,
    experts_per_query: int | None = None,
    shared: bool | None = None,
    deduplicate: bool | None = None,
    projection: str | None = None,
    grid: tuple[int, int] | str | None = None,
    class_tokens: int | None = None,
    other_grids: str | None = None,
    where: Selection | None = None,
    skip: Selection | None = None,
) -> Network:
    r"""Exchange the softmax attention of a network for one of ours, in place, weights kept; returns the network.

    In code
        with the network's Q, K, V per head, s its scale, R = pool(Q), and its output matrix after each:
        "cbsa" ``softmax(s Q Rᵀ) C``, ``C = softmax(s A Aᵀ) A``, ``A = softmax(s R Kᵀ) V``: CBSA* of three projections;
        contraction=False, ``C = A``, is CBSA∨. "agent": the same without contraction, 7 × 7 agents by default. "mita":
        :func:`unrolling.mita` of Q, K, V and the landmarks R. "mssa": ``softmax(s W Wᵀ) W``, and "tssa": :func:`token_statistics`
        of W, where W is one of the three, the values by default, since the output matrix was trained on averages of them.
    Retraining
        none for "mita": it is full attention on the keys it selects, and full attention itself with keys_per_expert ≥ N
        and shared=False. "agent" and "cbsa" approximate full attention's reading pattern, and need some. "mssa" and
        "tssa" are other functions: a start for training, no more. "tssa" keeps the published minus sign and its
        constants: the output matrix can turn the sign, and a learned scale would be a new key in the state dict.
    What is adapted
        timm's, DINO's, DeiT's and Segmenter's attention; torch's MultiheadAttention, also in a TransformerEncoder, whose
        fast path is switched off; Hugging Face's ViT and its kin; this library's own networks. Found by attributes, and
        each compared on random tokens with softmax attention of its projections before anything is changed.
    What stays
        the very parameter objects, the modules, hooks, names and ways of calling; the state dict's keys, so that the
        original's checkpoints load with strict=True, and optimisers go on. What is saved is the original's: load it into
        the original, and adapt that; this library's networks save what was exchanged with their configuration. Attention
        maps are not formed: where the network returned them there is None.
        "mssa" and "tssa" leave two of the projections unread: they have no gradient.

    Parameters
    ----------
        landmarks: rows and columns of landmarks (cbsa 8 × 8, agent 7 × 7, mita 5 × 5), or their number, which the patches
        are pooled to in one dimension. keys_per_expert (25), experts_per_query, shared, deduplicate: as for MiTA.
        projection: "query", "key" or "value", for mssa and tssa, normalised where the network normalises it.
        grid: rows and columns of patches; found from the network where it tells; "sequence" pools in one dimension, as
        is done where no grid is known. class_tokens: leading tokens that stay out of the pooling, found likewise, else 0.
        Our own networks pass both with the call. other_grids: "raise", or "sequence" to pool tokens that do not fill the
        grid in one dimension. where, skip: which attentions: a predicate of (name, module), or patterns of names
        ("blocks.[0-5]", "encoder.*"; a pattern also selects what is inside of it).
    Twice
        an adapted attention can be adapted again: it gets the new formula alone, and the same weights.
    Source
        CBSA, arXiv 2509.16875, figure 9; MiTA, arXiv 2602.01219; CRATE, 2306.01129; ToST, 2412.17810

    Raises
    ------
        ValueError naming each attention that cannot be adapted (position biases, rotary embedding, cross-attention,
        causal, grouped heads, kdim, bias_k …): then nothing is changed; for options of another attention, patterns that
        select nothing, a network without attention. At the call: for masks and for tokens that do not fill the grid.

    >>> import torch
    >>> encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    >>> x = torch.randn(1, 9, 16)
    >>> full = encoder(x)
    >>> torch.allclose(adapt(encoder, "mita", keys_per_expert=9, shared=False)(x), full, atol=1e-5)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"adapt: model must be a torch.nn.Module, but is a {type(model).__name__}.")
    check_choice("adapt", "attention", attention, tuple(ATTENTIONS))
    kind = ATTENTIONS[attention]
    named: dict[str, Any] = {"contraction": contraction, "keys_per_expert": keys_per_expert, "shared": shared}
    named |= {"experts_per_query": experts_per_query, "deduplicate": deduplicate, "projection": projection}
    pooling = {"landmarks": landmarks, "grid": grid, "class_tokens": class_tokens, "other_grids": other_grids}
    options = _options_for(kind, named, pooling)
    plans: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
    refused = []
    chosen = _selected(model, where, skip)
    for name, module in chosen:
        formula = kind(**options, **_landmarks(kind, model, name, module, pooling))
        try:
            plans.append((module, *_planned(model, name, module, formula)))
        except Unsuitable as reason:
            refused.append(f"  {name or 'the model'} ({type(module).__name__}): {reason}")
    if refused:
        more = [f"  … and {len(refused) - 8} more"] if len(refused) > 8 else []
        raise ValueError(
            "\n".join(
                [
                    f"adapt: {len(refused)} of {len(refused) + len(plans)} attentions cannot be adapted, and nothing was changed:",
                    *refused[:8],
                    *more,
                    "Leave them out with skip= or where=.",
                ]
            )
        )
    for module, place, state in plans:
        module.__class__ = place
        vars(module).clear()
        vars(module).update(state)
        vars(module).pop("_compiled_call_impl", None)  # of the class it had
    _noted(model, [name for name, _ in chosen], {"attention": attention, **named, **pooling})
    return model


def _noted(model: nn.Module, names: list[str], asked: Mapping[str, Any]) -> None:
    """Tell this library's networks what was exchanged in them, so that they save it with their configuration."""
    given = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asked.items() if value is not None
    }
    held: dict[int, tuple[list[Any], list[str]]] = {}
    for name in names:
        path = name.split(".")
        for length in range(len(path) - 1, -1, -1):
            record = getattr(model.get_submodule(".".join(path[:length])), "adaptations", None)
            if isinstance(record, list):
                held.setdefault(id(record), (record, []))[1].append(".".join(path[length:]))
                break
    for record, inside in held.values():
        record.append({**given, "where": inside})


def adapted(model: nn.Module) -> dict[str, str]:
    """The attentions that :func:`adapt` has exchanged, and what for: names in the model, and "cbsa", "mita" …"""
    found = {}
    for name, module in model.named_modules():
        kept = getattr(module, "adaptation", None)
        formula = getattr(kept, "formula", kept)
        if isinstance(formula, Formula):
            found[name] = formula.attention
    return found


def _planned(
    model: nn.Module, name: str, module: nn.Module, formula: Formula
) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class that takes a module's place, and its state; raises Unsuitable."""
    if isinstance(module, AttentionLayer):
        suits_ours(module, formula)
        layer = ours(module, formula)
        return type(layer), vars(layer)
    holder = type(model.get_submodule(name.rpartition(".")[0])).__name__ if name else ""
    place, plan = plan_for(name, module, formula, holder)
    return place, {**vars(module), "adaptation": plan}


def _options_for(kind: type[Formula], named: Mapping[str, Any], pooling: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given; an error for those of another attention."""
    pools = issubclass(kind, Pooled)
    allowed = {*kind.options, *(POOLING if pools else ())}
    for name, value in {**named, **pooling}.items():
        if value is not None and name not in allowed:
            raise ValueError(
                f"adapt: {name} is no option of {kind.attention!r}, which has {', '.join(sorted(allowed))}."
            )
    if pooling["other_grids"] is not None:
        check_choice("adapt", "other_grids", pooling["other_grids"], ("raise", "sequence"))
    return {name: value for name, value in named.items() if value is not None}


def _landmarks(
    kind: type[Formula], model: nn.Module, name: str, module: nn.Module, pooling: Mapping[str, Any]
) -> dict[str, Landmarks]:
    """The landmarks of one attention, with the grid and class tokens that were given or that the network tells."""
    if not issubclass(kind, Pooled):
        return {}
    size, grid, own = pooling["landmarks"], pooling["grid"], isinstance(module, AttentionLayer)
    wanted = kind.default if size is None else size
    wanted = wanted if isinstance(wanted, int) else check_pair("adapt", "landmarks", wanted)
    if isinstance(wanted, int):
        check_count("adapt", "landmarks", wanted)
    if isinstance(grid, str):
        check_choice("adapt", "grid", grid, ("sequence",))
        wanted = wanted if isinstance(wanted, int) else wanted[0] * wanted[1]
    elif grid is not None:
        grid = check_pair("adapt", "grid", grid)
    elif not own:
        grid = grid_of(model, name)
    if isinstance(grid, str) or isinstance(wanted, int):
        grid = None
    elif grid is None and not own:
        if size is not None:
            raise ValueError(
                f"adapt: {name or 'the model'}: landmarks={size} are rows and columns, but the network does not tell the grid of"
                " its patches. Pass grid=(rows, columns), or a number of landmarks to pool in one dimension."
            )
        wanted = wanted[0] * wanted[1]
    first = pooling["class_tokens"]
    if isinstance(module, AttentionLayer):
        if first is not None and first != module.class_tokens:
            raise ValueError(
                f"adapt: {name}: class_tokens is {first}, but the layer was made for {module.class_tokens}."
            )
        first = module.class_tokens
    elif first is None:
        first = class_tokens_of(model, name)
    landmarks = Landmarks(name or "the model", wanted, grid, first, pooling["other_grids"] == "sequence")
    return {"landmarks": landmarks}


def _selected(model: nn.Module, where: Selection | None, skip: Selection | None) -> list[tuple[str, nn.Module]]:
    found = candidates(model)
    if not found:
        raise ValueError(f"adapt: no attention was found in {type(model).__name__}. Looked for: {LOOKED_FOR}.")
    chosen = found if where is None else _matching("where", found, where)
    left_out = {name for name, _ in ([] if skip is None else _matching("skip", found, skip))}
    chosen = [(name, module) for name, module in chosen if name not in left_out]
    if not chosen:
        raise ValueError(f"adapt: where= and skip= leave none of {_listed(found)}.")
    return chosen


def _matching(option: str, found: list[tuple[str, nn.Module]], selection: Selection) -> list[tuple[str, nn.Module]]:
    if callable(selection):
        return [(name, module) for name, module in found if selection(name, module)]
    patterns = [selection] if isinstance(selection, str) else list(selection)
    hits: dict[str, nn.Module] = {}
    for pattern in patterns:
        own = {name: module for name, module in found if _is_in(name, pattern)}
        if not own:
            raise ValueError(f"adapt: {option}={pattern!r} matches none of {_listed(found)}.")
        hits |= own
    return [(name, module) for name, module in found if name in hits]


def _is_in(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, or the name of something it is inside of."""
    path = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(path[:length]), pattern) for length in range(1, len(path) + 1))


def _listed(found: list[tuple[str, nn.Module]]) -> str:
    names = [name or "the model" for name, _ in found]
    return f"the {len(names)} attentions: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}"
