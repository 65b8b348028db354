"""The papers' networks, in every published size, from the layers that are checked; build them by class or by name."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .base import Model, ModelConfig, Stage
from .cbt import CBT, CBTConfig
from .crate import CRATE, CRATEConfig
from .depict import DEPICT, CBTDecoder, CBTDecoderConfig, DEPICTConfig
from .mita_vit import MiTADeiT, MiTADeiTConfig, MiTAViT5, MiTAViT5Config
from .segmenter import (
    LinearDecoder,
    LinearDecoderConfig,
    MaskDecoder,
    MaskDecoderConfig,
    Segmenter,
    SegmenterConfig,
)
from .tost import ToST, ToSTConfig
from .vit import ViT, ViTConfig

__all__ = [
    "CBT",
    "CRATE",
    "DEPICT",
    "MODELS",
    "CBTConfig",
    "CBTDecoder",
    "CBTDecoderConfig",
    "CRATEConfig",
    "DEPICTConfig",
    "LinearDecoder",
    "LinearDecoderConfig",
    "MaskDecoder",
    "MaskDecoderConfig",
    "MiTADeiT",
    "MiTADeiTConfig",
    "MiTAViT5",
    "MiTAViT5Config",
    "Model",
    "ModelConfig",
    "Segmenter",
    "SegmenterConfig",
    "Stage",
    "ToST",
    "ToSTConfig",
    "ViT",
    "ViTConfig",
    "create",
    "load",
]

CLASSES: tuple[type[Model], ...] = (
    CRATE,
    CBT,
    ToST,
    ViT,
    MiTADeiT,
    MiTAViT5,
    DEPICT,
    CBTDecoder,
    MaskDecoder,
    LinearDecoder,
    Segmenter,
)


def _hybrid(size: Callable[..., CBTConfig], **changes: Any) -> CBTConfig:
    return size(**changes).hybrid()


def _named() -> dict[str, tuple[type[Model], Callable[..., ModelConfig]]]:
    """Every published size by name, and what makes its configuration."""
    found: dict[str, tuple[type[Model], Callable[..., ModelConfig]]] = {}
    four = ("tiny", "small", "base", "large")
    for size in four:
        found[f"crate-{size}"] = (CRATE, getattr(CRATEConfig, size))
        found[f"cbt-{size}"] = (CBT, getattr(CBTConfig, size))
        found[f"cbt-{size}-hybrid"] = (CBT, partial(_hybrid, getattr(CBTConfig, size)))
        found[f"vit-{size}"] = (ViT, getattr(ViTConfig, size))
    for size in ("tiny", "small"):
        found[f"cbt-{size}-mssa"] = (CBT, partial(getattr(CBTConfig, size), attention="mssa"))
        found[f"cbt-{size}-tssa"] = (CBT, partial(getattr(CBTConfig, size), attention="tssa"))
    for size in ("tiny_12", "small_12", "tiny_24", "small_24", "medium_24", "large_24"):
        name = size.replace("_", "-")
        found[f"tost-{name}"] = (ToST, getattr(ToSTConfig, size))
        found[f"tost-{name}-p8"] = (ToST, partial(getattr(ToSTConfig, size), patch_size=8))
    for size in ("tiny", "small"):
        make = getattr(MiTADeiTConfig, size)
        found[f"mita-deit-{size}"] = (MiTADeiT, make)
        found[f"mita-deit-{size}-dwc"] = (MiTADeiT, partial(make, convolution=True))
        found[f"mita-deit-{size}-dwc-gate"] = (MiTADeiT, partial(make, convolution=True, gate=True))
        found[f"mita-deit-{size}-route"] = (MiTADeiT, partial(make, shared=False, keys_per_expert=50))
        found[f"mita-deit-{size}-agent"] = (MiTADeiT, partial(make, attention="agent", landmarks=(7, 7)))
    for size in ("small", "base", "large", "extra_large"):
        found[f"mita-vit5-{size.replace('_', '-')}"] = (MiTAViT5, getattr(MiTAViT5Config, size))
    found["mita-vit5-small-dwc"] = (MiTAViT5, partial(MiTAViT5Config.small, convolution=True))
    for size in four:
        found[f"depict-sa-{size}"] = (DEPICT, partial(getattr(DEPICTConfig, size), attention="self"))
        found[f"depict-ca-{size}"] = (DEPICT, partial(getattr(DEPICTConfig, size), attention="cross"))
        found[f"cbt-decoder-{size}"] = (CBTDecoder, getattr(CBTDecoderConfig, size))
        found[f"segmenter-mask-{size}"] = (MaskDecoder, getattr(MaskDecoderConfig, size))
        width = getattr(MaskDecoderConfig, size)().embed_dim
        found[f"segmenter-linear-{size}"] = (LinearDecoder, partial(LinearDecoderConfig, embed_dim=width))
        for decoder in ("segmenter-mask", "segmenter-linear", "depict-sa", "depict-ca", "cbt"):
            found[f"segmenter-{size}+{decoder}"] = (Segmenter, partial(SegmenterConfig.of, size, decoder))
        found[f"mita-segmenter-{size}"] = (Segmenter, partial(SegmenterConfig.of, size, "cbt", attention="mita"))
    return found


MODELS = _named()
"""Name: (class, what makes its configuration)."""


def create(name: str, **changes: Any) -> Model:
    """The model of that name with its configuration's fields changed; weights are drawn.

    Raises
    ------
        ValueError that lists the nearest names.

    >>> create("cbt-tiny", num_classes=10, depth=2).config.embed_dim
    192
    """
    if not isinstance(name, str):
        raise TypeError(f"create: name must be a string, but is a {type(name).__name__}.")
    if name not in MODELS:
        near = ", ".join(difflib.get_close_matches(name, MODELS, n=4, cutoff=0.3)) or ", ".join(sorted(MODELS)[:4])
        raise ValueError(f"create: no model is named {name!r}. Nearest: {near}. MODELS lists all {len(MODELS)}.")
    kind, make = MODELS[name]
    return kind(make(**changes))


def load(path: str | os.PathLike[str], **changes: Any) -> Model:
    """The model in a folder or file of ``save_pretrained``, whichever class it is; nothing is fetched.

    Raises
    ------
        ValueError as :meth:`Model.from_pretrained`, and for an architecture that is not known.
    """
    kind = _architecture(Path(path))
    for known in CLASSES:
        if known.__name__ == kind:
            return known.from_pretrained(path, **changes)
    raise ValueError(f"{path}: holds a {kind}; known are {', '.join(known.__name__ for known in CLASSES)}.")


def _architecture(place: Path) -> str:
    from safetensors import safe_open

    beside = place / "config.json"
    if place.is_dir() and beside.is_file():
        text: str | None = beside.read_text(encoding="utf-8")
    else:
        file_path = place / "model.safetensors" if place.is_dir() else place
        if not file_path.is_file():
            raise ValueError(f"{place}: there is no such file, or no model.safetensors in the folder.")
        try:
            with safe_open(file_path, "pt") as file:
                text = (file.metadata() or {}).get("config")
        except Exception as problem:
            raise ValueError(f"{file_path}: cannot be read as safetensors ({problem}).") from None
    try:
        described = json.loads(text or "{}")
    except json.JSONDecodeError as problem:
        raise ValueError(f"{place}: its configuration is not JSON ({problem}).") from None
    names = described.get("architectures") if isinstance(described, dict) else None
    if not names:
        raise ValueError(f"{place}: holds no configuration of a model of this library.")
    return str(names[0])
