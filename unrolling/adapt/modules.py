"""Modules that keep another network's attention weights, names and way of being called, with a formula of ours."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ..attention import AttentionLayer
from ..layers.agent import AgentAttention
from ..layers.mita import MiTA
from ..layers.softmax import SoftmaxAttention
from .formulas import PARTS, Agents, Contracted, Formula, Pooled, Routed, Statistics, token_memberships

__all__ = ["Adaptation", "Adapted", "AdaptedLayer", "FusedAdapted", "SeparateAdapted", "TorchAdapted", "ours"]

HARMLESS = {
    "layer_idx",
    "output_hidden_states",
    "return_dict",
    "num_items_in_batch",
    "interpolate_pos_encoding",
    "resolution",
}
"""Arguments that attentions of other libraries are handed and that change nothing of what they compute."""
TRIPLES = (PARTS, ("q_proj", "k_proj", "v_proj"))
OUTPUTS = ("o_proj", "out_proj")
DROPOUTS = ("attn_drop", "attention_dropout", "dropout_prob", "dropout")


@final
@dataclass(frozen=True, eq=False)
class Adaptation:
    """What an adapted attention computes, and how it is called.

    Attributes
    ----------
        name: its place in the model. replaced: the class it had. formula, heads, scale: what it computes. arguments: the
        names of its call's arguments. returns: 0 for a tensor, else the length of the tuple that starts with it.
    """

    name: str
    replaced: str
    formula: Formula
    heads: int
    scale: float
    arguments: tuple[str, ...]
    returns: int = 0

    def tokens(self, given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """The tokens of a call; an error for any other argument that asks for something."""
        extra = dict(zip(self.arguments, given, strict=False))
        for number in range(len(self.arguments), len(given)):
            extra[f"argument {number}"] = given[number]
        extra.update(named)
        x = extra.pop(self.arguments[0], None)
        self.refuse(extra)
        if not isinstance(x, Tensor) or x.is_nested:
            raise TypeError(f"adapt: {self.name}: the tokens must be one dense tensor, but are {_kind(x)}.")
        return x

    def refuse(self, extra: dict[str, Any]) -> None:
        """Raise for masks, causal flags, rotary embeddings, biases and maps that are asked for."""
        for argument, value in extra.items():
            if value is None or value is False or argument in HARMLESS:
                continue
            raise ValueError(
                f"adapt: {self.name}: the call passes {argument} ({_kind(value)}), which {self.formula.attention} cannot honour:"
                " every token reads all tokens, and no attention map is formed. Call it without, or leave this attention as"
                " it was (skip=)."
            )

    def result(self, x: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        """The tokens as the replaced attention returned them; None for the maps that came with them."""
        return (x, *(None,) * (self.returns - 1)) if self.returns else x


class Adapted(nn.Module, abc.ABC):
    """An attention of another network with a formula of ours, made by :func:`unrolling.adapt` only.

    It is the replaced module itself, of another class: its parameters, buffers, submodules, hooks and attributes are
    those it had, under their names.
    """

    adaptation: Adaptation

    @abc.abstractmethod
    def projected(self, *sources: Tensor) -> dict[str, Tensor]:
        """The parts that the formula needs, ``(..., heads, tokens, head_dim)``; sources: tokens, or query, key, value."""

    def joined(self, parts: dict[str, Tensor]) -> Tensor:
        """What the tokens read, their heads side by side: ``(..., tokens, heads · head_dim)``."""
        plan = self.adaptation
        for part, name in (("query", "q_norm"), ("key", "k_norm")):
            norm = getattr(self, name, None)
            if norm is not None and part in parts:
                parts[part] = norm(parts[part])
        read = plan.formula(parts, plan.scale, attention_dropout(self) if self.training else 0.0)
        return read.transpose(-3, -2).flatten(-2)

    def _split(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.adaptation.heads, -1)).transpose(-3, -2)

    def extra_repr(self) -> str:
        """What it was and what it reads through."""
        plan = self.adaptation
        parts = [f"{plan.formula.attention} for {plan.replaced}, heads={plan.heads}"]
        if isinstance(plan.formula, Pooled):
            parts.append(str(plan.formula.landmarks))
        parts += [f"{name}={getattr(plan.formula, name)!r}" for name in plan.formula.options]
        return ", ".join(parts)


@final
class FusedAdapted(Adapted):
    """For attentions with ``qkv`` and ``proj``, as in timm, DINO, DeiT and Segmenter: called with tokens.

    q_norm, k_norm (of every head), norm (before ``proj``), gate (a sigmoid of ``gate(x)``), attn_drop and proj_drop are
    kept where there are any. All three projections are computed, whatever the formula needs.
    """

    def forward(self, *given: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Tokens ``(..., tokens, dim)``; masks and other arguments that ask for something are errors."""
        x = self.adaptation.tokens(given, named)
        joined = self.joined(self.projected(x))
        if (norm := getattr(self, "norm", None)) is not None:
            joined = norm(joined)
        if (gate := getattr(self, "gate", None)) is not None:
            joined = joined * torch.sigmoid(gate(x))
        out = self._part("proj")(joined)
        if (drop := getattr(self, "proj_drop", None)) is not None:
            out = drop(out)
        return self.adaptation.result(out)

    def projected(self, *sources: Tensor) -> dict[str, Tensor]:
        """The thirds of ``qkv``: query, key, value."""
        thirds = self._part("qkv")(sources[0]).chunk(3, dim=-1)
        needs = self.adaptation.formula.needs
        return {name: self._split(third) for name, third in zip(PARTS, thirds, strict=True) if name in needs}

    def _part(self, name: str) -> Callable[[Tensor], Tensor]:
        return getattr(self, name)


@final
class SeparateAdapted(Adapted):
    """For attentions with three linear maps, as in Hugging Face's ViT, with or without an output matrix of their own."""

    def forward(self, *given: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Tokens ``(..., tokens, dim)``; masks and other arguments that ask for something are errors."""
        out = self.joined(self.projected(self.adaptation.tokens(given, named)))
        for name in OUTPUTS:
            if (output := getattr(self, name, None)) is not None:
                out = output(out)
        return self.adaptation.result(out)

    def projected(self, *sources: Tensor) -> dict[str, Tensor]:
        """Of the maps that the formula needs."""
        names = dict(zip(PARTS, triple_of(self) or PARTS, strict=True))
        return {part: self._split(getattr(self, names[part])(sources[0])) for part in self.adaptation.formula.needs}


@final
class TorchAdapted(Adapted):
    """For ``nn.MultiheadAttention``, alone or in a TransformerEncoderLayer: ``(query, key, value)`` in, ``(x, None)`` out.

    ``query is key`` is required; values may be of other tensors with as many tokens.
    """

    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    out_proj: nn.Linear
    batch_first: bool

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # What keeps TransformerEncoderLayer off its fast path in evaluation, which computes softmax attention from these
        # weights without calling this module. A property, since the replaced module holds True under this name.
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As ``nn.MultiheadAttention``; masks are errors, and no weights are returned, needed or not."""
        plan = self.adaptation
        plan.refuse({"attn_mask": attn_mask, "key_padding_mask": key_padding_mask, "is_causal": is_causal})
        if query.is_nested or key.is_nested or value.is_nested:
            raise TypeError(
                f"adapt: {plan.name}: the tokens are a nested tensor, which is how TransformerEncoder passes a padding mask in"
                f" evaluation; {plan.formula.attention} cannot honour one. Pass sequences of one length, without padding."
            )
        if query is not key:
            raise ValueError(
                f"adapt: {plan.name}: query and key are different tensors: cross-attention, which {plan.formula.attention} is"
                " not. Pass one tensor as query and key, or leave this attention as it was (skip=)."
            )
        if value.shape[:-1] != key.shape[:-1]:
            raise ValueError(
                f"adapt: {plan.name}: keys {tuple(key.shape)} and values {tuple(value.shape)} do not pair."
            )
        turned = query.ndim == 3 and not self.batch_first
        sources = [x.transpose(0, 1) if turned else x for x in (query, key, value)]
        out = self.out_proj(self.joined(self.projected(*sources)))
        return (out.transpose(0, 1) if turned else out), None

    def projected(self, *sources: Tensor) -> dict[str, Tensor]:
        """Of the thirds of ``in_proj_weight`` that the formula needs."""
        weights, bias = self.in_proj_weight.chunk(3), self.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        rows = {name: number for number, name in enumerate(PARTS)}
        chosen = [(name, rows[name]) for name in self.adaptation.formula.needs]
        return {name: self._split(nn.functional.linear(sources[i], weights[i], biases[i])) for name, i in chosen}


@final
class AdaptedLayer(AttentionLayer):
    """One of this library's attentions with the formula of MSSA or TSSA on one of its three projections.

    Rotary embedding, norms, convolution and gate stay what they were; no descent is claimed.
    """

    adaptation: Formula

    declares = "nothing: the output matrix is not that of the bases"

    def _read(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None, x: Tensor) -> Tensor:
        parts = {"query": q, "key": k, "value": v}
        return self.adaptation(parts, self.scale, self.dropout if self.training else 0.0)

    def pairs(self, x: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Nothing: see ``declares``."""
        raise ValueError(
            f"adapt: no descent is claimed for {self.adaptation.attention} with another network's matrices."
        )

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """MSSA's ``softmax(s W Wᵀ)`` ``(..., heads, tokens, tokens)``; of TSSA, which has none, the memberships."""
        name = self.adaptation.needs[0]
        w = self.values(x) if name == "value" else (self.queries if name == "query" else self.keys)(x, grid)
        if isinstance(self.adaptation, Statistics):
            return token_memberships(w)
        return torch.softmax(self.scale * (w @ w.mT), dim=-1)

    def extra_repr(self) -> str:
        """Sizes and formula."""
        return f"{super().extra_repr()}, {self.adaptation.attention} of one projection"


def ours(old: AttentionLayer, formula: Formula) -> AttentionLayer:
    """A layer of this library with the formula and the parts of ``old``: MiTA, AgentAttention or AdaptedLayer."""
    sizes: dict[str, Any] = {"projections": old.projections, "scale": old.scale, "class_tokens": old.class_tokens}
    sizes["register_tokens"] = old.register_tokens
    shared = (old.dim, old.heads, old.head_dim)
    new: AttentionLayer
    with torch.device("meta"):  # every tensor of it is exchanged below
        plain = SoftmaxAttention(*shared, **sizes)
        if isinstance(formula, Routed):
            sizes |= {name: getattr(formula, name) for name in formula.options}
            new = MiTA(*shared, landmarks=formula.landmarks.pool, **sizes)
        elif isinstance(formula, (Contracted, Agents)):
            contraction = isinstance(formula, Contracted) and formula.contraction
            new = AgentAttention(*shared, agents=formula.landmarks.pool, contraction=contraction, **sizes)
        else:
            new = AdaptedLayer(*shared, bias=True, step_size=1.0, learnable_step=True, **sizes)
    own = {name: part for name, part in new.train(old.training)._modules.items() if name not in plain._modules}
    state = {**vars(new), **{name: value for name, value in vars(old).items() if name in vars(plain)}}
    kept = {name: part for name, part in old._modules.items() if name != "strategy"}
    for name in kept:
        state.pop(name, None)
    vars(new).clear()
    vars(new).update(state, _modules={**kept, **own}, adaptation=formula)
    return new


def triple_of(module: nn.Module) -> tuple[str, ...] | None:
    """The names of a module's three projections, where it has such."""
    for names in TRIPLES:
        if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
            return names
    return None


def attention_dropout(module: nn.Module) -> float:
    """The share of attention weights that the network drops while training; read anew, so that it can be changed."""
    for name in DROPOUTS:
        found = getattr(module, name, None)
        share = getattr(found, "p", found)
        if isinstance(share, float):
            return share
    return 0.0


def _kind(value: object) -> str:
    return (
        f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) and not value.is_nested else type(value).__name__
    )
