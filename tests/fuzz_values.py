"""What users pass by mistake in the place of a right argument, for fuzz_public; and right arguments."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

HUGE_COUNT = 10**30
LARGE, HUGE = 1e60, 1e200
"""Entries whose squares are representable in double precision, and entries whose squares are not."""

SAME = ("expanded", "strided", "transposed", "requires grad", "read-only")
"""Memory in which the same numbers lie otherwise: the answer must be the same."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bases(heads: int = 2, dim: int = 6, head_dim: int = 3) -> Tensor:
    return torch.linalg.qr(draw(dim, heads * head_dim, seed=1)).Q.reshape(dim, heads, head_dim).transpose(0, 1).clone()


def weights(*shape: int) -> Tensor:
    return torch.softmax(draw(*shape, seed=2), -1)


def wrong(value: Any) -> Iterator[tuple[str, Any]]:
    """What users pass by mistake in the place of ``value``, with a name for each."""
    yield from {"a string": "3", "an object": object(), "a list": [1, 2], "a dict": {}, "a set": {1}}.items()
    yield from {"nan": float("nan"), "infinity": float("inf"), "complex": 1j, "bytes": b"3"}.items()
    yield "None", None
    if isinstance(value, Tensor):
        yield from _tensors(value)
        return
    yield from {"zero": 0, "minus one": -1, "a half": 0.5, "huge count": HUGE_COUNT, "true": True}.items()
    yield from {"tiny": 1e-300, "huge": 1e300, "a tuple": (0, -1), "a long tuple": (1, 2, 3)}.items()
    yield from {"a matrix": draw(2, 2), "an array": np.ones(3), "a 0-d tensor": torch.tensor(0.5)}.items()
    yield from {"an empty string": "", "a 0-d count": torch.tensor(2), "a numpy float": np.float64(0.5)}.items()


def _tensors(t: Tensor) -> Iterator[tuple[str, Any]]:
    yield from {"a number": 1.0, "an array": t.numpy(), "nested lists": t.tolist(), "no tensor": Tensor}.items()
    for dtype in (torch.int64, torch.bool, torch.complex128, torch.float16, torch.bfloat16, torch.float32):
        yield str(dtype), t.to(dtype)
    yield "meta", t.to("meta")
    yield "sparse", t.to_sparse()
    yield from {
        "0-d": t.flatten()[0],
        "flat": t.flatten(),
        "one more axis": t[None],
        "two more axes": t[None, None],
    }.items()
    for axis in range(t.ndim):
        yield f"no axis {axis}", t.narrow(axis, 0, 0)
        yield f"longer axis {axis}", torch.cat([t, t], axis)
        yield f"shorter axis {axis}", t.narrow(axis, 0, max(t.shape[axis] - 1, 1))
    if t.dtype.is_floating_point:
        large, huge = (LARGE, HUGE) if t.dtype == torch.float64 else (1e15, 1e30)
        for name, number in (("nan", float("nan")), ("inf", float("inf")), ("large", large), ("huge", huge)):
            bad = t.clone(memory_format=torch.contiguous_format)
            bad.view(-1)[-1] = number
            yield f"{name} inside", bad
        yield from {"all large": large * t, "all tiny": 1e-200 * t, "zeros": torch.zeros_like(t), "minus": -t}.items()
        yield from {"subnormal": torch.full_like(t, 5e-324), "ones": torch.ones_like(t)}.items()
        yield "requires grad", t.clone().requires_grad_()
    else:
        yield from {"negative": t - 5, "beyond": t + 10**6}.items()
    yield "transposed", t.mT.contiguous().mT if t.ndim > 1 else t
    yield "strided", torch.stack([t, t], -1)[..., 0]
    yield "expanded", t[None].expand(2, *t.shape)[0]
    frozen = t.numpy().copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "read-only", torch.from_numpy(frozen)
