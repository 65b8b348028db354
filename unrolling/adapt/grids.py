"""Where a network keeps the grid of its patches and its class tokens: found by attributes, near the attention first."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["class_tokens_of", "grid_of"]

PARTS = ("patch_embed", "patch_embedding", "patch_embeddings", "embeddings", "embed")
TOKENS = (
    "cls_token",
    "class_token",
    "class_embedding",
    "dist_token",
    "distillation_token",
    "reg_token",
    "register_tokens",
)


def grid_of(model: nn.Module, name: str) -> tuple[int, int] | None:
    """Rows and columns of patches for the attention of this name, or None where the network does not tell.

    Looked for at the attention's parents, from the nearest to the model, and at their patch embeddings: grid_size (timm,
    Segmenter), patches_resolution (DINOv2), image_size or img_size with patch_size (torchvision, DINO, Hugging Face), and
    the last two in a config.
    """
    for scope in _parents(model, name):
        for place in _places(scope):
            for attribute in ("grid_size", "patches_resolution"):
                if (grid := _pair(getattr(place, attribute, None))) is not None:
                    return grid
            for holder in (place, getattr(place, "config", None)):
                pixels = _pair(getattr(holder, "image_size", None)) or _pair(getattr(holder, "img_size", None))
                patch = _pair(getattr(holder, "patch_size", None))
                if pixels is not None and patch is not None and min(patch) > 0:
                    return pixels[0] // patch[0], pixels[1] // patch[1]
    return None


def class_tokens_of(model: nn.Module, name: str) -> int:
    """How many tokens before the patches are none: num_prefix_tokens (timm), or the class and register tokens found."""
    for scope in _parents(model, name):
        count = getattr(scope, "num_prefix_tokens", None)
        if isinstance(count, int):
            return count
        held = [getattr(place, token, None) for place in _places(scope) for token in TOKENS]
        tokens = [tensor for tensor in held if isinstance(tensor, Tensor)]
        if tokens:
            return sum(tensor.shape[-2] if tensor.ndim > 1 else 1 for tensor in tokens)
    return 0


def _parents(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules that hold the one of this name, the nearest first, the model last."""
    path = name.split(".") if name else []
    for length in range(len(path) - 1, -1, -1):
        yield model.get_submodule(".".join(path[:length]))


def _places(scope: nn.Module) -> Iterator[nn.Module]:
    yield scope
    for part, child in scope.named_children():
        if part in PARTS:
            yield from _places(child)


def _pair(value: object) -> tuple[int, int] | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None
