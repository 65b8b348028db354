"""Which path a kernel takes: forced by an argument, or chosen by device, dtype and size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import check_choice

__all__ = ["FAST", "PATHS", "PLAIN", "check_path", "choose", "full_precision", "second_gradient", "second_order"]

PLAIN, FAST = "plain", "fast"
PATHS = ("auto", PLAIN, FAST)
"""The formula as written; the same in pieces that stay in the cache, recomputed in the backward pass; or whichever is faster."""


def check_path(owner: str, kernel: object) -> None:
    """Raise unless ``kernel`` names a path."""
    check_choice(owner, "kernel", kernel, PATHS)


def choose(owner: str, kernel: str, worth: Callable[[], bool], *tensors: Tensor, half: bool = False) -> str:
    """The path for these tensors: the one that is asked for, or for "auto" the fast one where it is ``worth()`` it.

    Under a compiler, on the meta device and inside ``torch.func`` transforms or forward derivatives "auto" takes the
    formula: these see through it, and not through a kernel. So it does under autocast and for half precision, unless the
    fast path sums in single precision (``half``).
    """
    check_path(owner, kernel)
    if kernel != "auto":
        return kernel
    first = tensors[0]
    if torch.compiler.is_compiling() or _transformed():
        return PLAIN
    if first.device.type == "meta" or (torch.is_autocast_enabled(first.device.type) and not half):
        return PLAIN
    full = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    return FAST if (full or half) and worth() else PLAIN


def second_order() -> bool:
    """Whether a backward pass is itself recorded: then it differentiates the formula, which has every derivative."""
    return torch.is_grad_enabled()


def second_gradient(out: Tensor, inputs: list[Tensor], grad: Tensor) -> list[Tensor | None]:
    """The gradients of the formula's result, themselves differentiable; None for inputs that need none."""
    wanted = [each for each in inputs if each.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if each.requires_grad else None for each in inputs]


@contextlib.contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """No autocast inside a kernel: it computes in the dtype of what it is given."""
    with torch.autocast(tensor.device.type, enabled=False):
        yield


def _transformed() -> bool:
    level = getattr(torch._C._functorch, "maybe_current_level", lambda: None)()
    return level is not None or torch.autograd.forward_ad._current_level >= 0
