"""What every model shares: a frozen configuration, saving and loading with it, checkpointing, maps and traces."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import check_count, check_pair, check_share

if TYPE_CHECKING:
    from ..trace import Trace

__all__ = ["Model", "ModelConfig", "Stage", "pair"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The names of a saved model's two files, as in the Hugging Face layout."""


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns: an integer is both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and options of a model. Frozen: ``dataclasses.replace(config, depth=6)`` gives a changed one.

    >>> ModelConfig().to_dict()
    {}
    """

    COUNTS: ClassVar[tuple[str, ...]] = ()
    PAIRS: ClassVar[tuple[str, ...]] = ("img_size", "patch_size")
    SHARES: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for name in self.COUNTS:
            value = getattr(self, name)
            if name in self.PAIRS and isinstance(value, (tuple, list)):
                check_pair(owner, name, value)
            else:
                check_count(owner, name, value, 0 if name == "num_classes" else 1)
        for name in self.SHARES:
            check_share(owner, name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration of these values; lists become tuples.

        Raises
        ------
            ValueError that names fields that do not exist, and lists those that do.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{cls.__name__}: unknown {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        return cls(**{name: _tuples(value) for name, value in values.items()})


class Stage(NamedTuple):
    """A block of a model and the tokens ``(batch, tokens, dim)`` that enter it; grid: rows and columns of its patches.

    The block has ``attention``, ``seen(x)`` (what the attention gets to see), ``attend(x, grid)`` and ``feed(x)``.
    class_tokens: how many of the tokens, and where: negative counts stand at the end.
    """

    name: str
    block: Any
    x: Tensor
    grid: tuple[int, int]
    class_tokens: int = 1


class Model(nn.Module):
    """A network of layers that was published, or of the same parts, built from one frozen configuration.

    ``Model(config)``, ``Model(config, depth=6)`` (changed) and ``Model(embed_dim=192, …)`` (from fields) are the same.

    Attributes
    ----------
        config: what it was built from. grad_checkpointing: whether blocks are computed again in the backward pass.
        adaptations: what :func:`unrolling.adapt.adapt` exchanged in it since, saved with the configuration.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    config: ModelConfig

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__()
        if config is not None and not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__}: config must be a {self.config_class.__name__}, but is a {type(config).__name__}."
            )
        if config is None:
            self.config = self.config_class.from_dict(changes)
        elif changes:
            # from_dict names unknown fields; replace does the rest without touching nested configurations.
            self.config_class.from_dict({name: getattr(config, name, None) for name in changes})
            self.config = dataclasses.replace(config, **changes)
        else:
            self.config = config
        self.grad_checkpointing = False
        self.adaptations: list[dict[str, Any]] = []

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what enters each block for the backward pass, and compute the rest again: less memory, more time."""
        for module in self.modules():
            if isinstance(module, Model):
                module.grad_checkpointing = enable

    def _run(self, block: nn.Module, x: Tensor, *arguments: Any) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, *arguments, use_reentrant=False)
        return block(x, *arguments)

    def stages(self, x: Tensor) -> Iterator[Stage]:
        """Every block with what enters it, in order: for traces and maps. Decoders take ``im_size=(H, W)`` too."""
        raise TypeError(f"{type(self).__name__} has no blocks to look into.")

    @torch.no_grad()
    def attention_maps(self, x: Tensor, **call: Any) -> list[Tensor]:
        """The map of every block's attention, ``(batch, heads, tokens, tokens)``: who reads whom, class tokens included.

        For CBSA it is ``A Aᵀ``; for TSSA, which has none, the memberships ``(batch, heads, tokens)``. Quadratic.
        """
        stages = self.stages(x, **call)
        return [stage.block.attention.attention_map(stage.block.seen(stage.x), stage.grid) for stage in stages]

    def trace(self, x: Tensor, *, epsilon: float | None = None, **call: Any) -> Trace:
        """What every block does to its layer's objective, before and after; see :func:`unrolling.trace.trace`."""
        from ..trace import trace  # not above: it knows the models

        return trace(self, x, epsilon=epsilon, **call)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``config.json`` and ``model.safetensors``, which holds the configuration too, into a folder.

        The weights are written beside their place and moved there, so that nothing half-written is ever found.
        """
        from safetensors.torch import save_file

        home = Path(folder)
        if home.is_file():
            raise ValueError(f"{home} is a file; give a folder.")
        home.mkdir(parents=True, exist_ok=True)
        described = {"architectures": [type(self).__name__], **self.config.to_dict()}
        if exchanged := _exchanged(self):
            described["adaptations"] = exchanged
        text = json.dumps(described, indent=2, sort_keys=True)
        shared = _shared(self)  # safetensors writes every tensor once
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items() if name not in shared}
        partial = home / (WEIGHTS + ".part")
        save_file(weights, partial, metadata={"format": "pt", "config": json.dumps(described, sort_keys=True)})
        partial.replace(home / WEIGHTS)
        (home / CONFIG).write_text(text + "\n", encoding="utf-8")
        return home

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **changes: Any) -> Self:
        """The model in a local folder of :meth:`save_pretrained`, or in one such ``.safetensors`` file; nothing is fetched.

        Parameters
        ----------
            changes: fields of the configuration that shall differ, where the weights allow it (``drop_path_rate``).

        Raises
        ------
            ValueError for a missing file, one without configuration or of another model, and weights that do not fit.
        """
        from safetensors import safe_open

        place = Path(path)
        weights = place / WEIGHTS if place.is_dir() else place
        if not weights.is_file():
            raise ValueError(f"{place}: there is no {WEIGHTS}. Save one with save_pretrained; nothing is downloaded.")
        try:
            with safe_open(weights, "pt") as file:
                held = (file.metadata() or {}).get("config")
                state = {name: file.get_tensor(name) for name in file.keys()}
        except Exception as problem:
            raise ValueError(f"{weights}: cannot be read as safetensors ({problem}).") from None
        beside = weights.with_name(CONFIG)
        text = beside.read_text(encoding="utf-8") if place.is_dir() and beside.is_file() else held
        if text is None:
            raise ValueError(
                f"{weights}: holds no configuration; load its tensors with unrolling.compat.load_checkpoint."
            )
        try:
            described = json.loads(text)
        except json.JSONDecodeError as problem:
            raise ValueError(f"{beside}: is not JSON ({problem}).") from None
        kind = (described.pop("architectures", None) or ["?"])[0]
        if kind != cls.__name__:
            raise ValueError(
                f"{place}: holds a {kind}, not a {cls.__name__}; unrolling.models.load finds the class itself."
            )
        exchanged = described.pop("adaptations", [])
        model = cls(cls.config_class.from_dict({**described, **changes}))
        for options in exchanged:
            from ..adapt import adapt  # not above: it knows the layers, and most networks have nothing exchanged

            adapt(model, **_tuples_in(options))
        _fill(model, state, str(place))
        return model


def _fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    own = model.state_dict()
    state = {**{name: state[first] for name, first in _shared(model).items() if first in state}, **state}
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unknown or wrong:
        shapes = ", ".join(f"{name} is {tuple(state[name].shape)} for {tuple(own[name].shape)}" for name in wrong[:3])
        raise ValueError(
            f"{where}: the weights do not fit the configuration: missing {missing[:5]}, unknown {unknown[:5]}; {shapes}."
        )
    model.load_state_dict(dict(state))


def _exchanged(model: nn.Module) -> list[dict[str, Any]]:
    """What was exchanged in a model and in the models inside of it, by names in the whole."""
    return [
        {**options, "where": [f"{prefix}.{name}".lstrip(".") for name in options["where"]]}
        for prefix, module in model.named_modules()
        if isinstance(module, Model)
        for options in module.adaptations
    ]


def _tuples_in(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in options.items()}


def _shared(model: nn.Module) -> dict[str, str]:
    """The names under which a tensor appears again, with its first name."""
    first: dict[int, str] = {}
    held = model.state_dict(keep_vars=True)
    names = {name: first.setdefault(id(tensor), name) for name, tensor in held.items()}
    return {name: origin for name, origin in names.items() if origin != name}


def _tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item) for item in value)
    return value
