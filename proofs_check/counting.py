"""Parameters and multiply-adds of a network, counted on its shapes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unrolling import models

__all__ = ["Count", "count", "parameters"]

PIXELS = {"large": 640}
"""Side of the images that segmentation decoders and encoders are counted at; 512 for the others."""


@dataclass(frozen=True)
class Count:
    """What is counted on a network without running it: parameters, multiply-adds, the tokens of a layer.

    vectors: the parameters that are biases, norms, tokens and steps.
    """

    parameters: int
    multiply_adds: int
    tokens: int
    vectors: int = 0


@functools.cache
def parameters(name: str, changes: tuple[tuple[str, Any], ...] = ()) -> tuple[int, int]:
    """All parameters of a network, and those that are vectors; built on the meta device."""
    with torch.device("meta"):
        model = models.create(name, **dict(changes))
    sizes = [(parameter.numel(), parameter.ndim) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, axes in sizes if axes <= 1)


@functools.cache
def count(name: str, less: str = "", changes: tuple[tuple[str, Any], ...] = ()) -> Count:
    """Parameters and multiply-adds of one image, on the meta device: nothing is computed.

    Matrix products and convolutions are counted, attention's among them; norms, softmaxes and pooling are not.
    """
    with torch.device("meta"):
        model = models.create(name, **dict(changes)).eval()
        inputs, call, tokens = _inputs(model, name)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs, **call)
    multiply_adds = int(counter.get_total_flops()) // 2
    if less:
        multiply_adds -= _left_out(model, less, inputs[0].shape[1])
    every, vectors = parameters(name, changes)
    return Count(every, multiply_adds, tokens, vectors)


def _inputs(model: models.Model, name: str) -> tuple[tuple[torch.Tensor, ...], dict[str, Any], int]:
    config: Any = model.config
    if isinstance(model, (models.DEPICT, models.CBTDecoder, models.MaskDecoder, models.LinearDecoder)):
        side = next((side for size, side in PIXELS.items() if size in name), 512)
        patches = (side // config.patch_size) ** 2
        tokens = patches + (0 if isinstance(model, models.LinearDecoder) else config.num_classes)
        return (torch.empty(1, patches, config.embed_dim),), {"im_size": (side, side)}, tokens
    if isinstance(model, models.Segmenter):
        encoder: Any = model.encoder.config
        side = encoder.img_size
        return (torch.empty(1, 3, side, side),), {}, (side // encoder.patch_size) ** 2 + 1
    side = config.img_size
    extra = 0 if isinstance(model, models.ToST) else 1 + getattr(config, "registers", 0)
    return (torch.empty(1, 3, side, side),), {}, (side // config.patch_size) ** 2 + extra


def _left_out(model: models.Model, less: str, patches: int) -> int:
    """Multiply-adds that a paper leaves out: of the masks alone, or of everything but the transformer blocks."""
    config: Any = model.config
    width = getattr(config, "dim", None) or config.embed_dim
    masks = patches * config.num_classes * width
    if less == "masks":
        return masks
    return masks + patches * config.embed_dim * width + (patches + config.num_classes) * width**2
