"""Memory that kernels write again and again: fresh pages cost a CPU more than the arithmetic that fills them."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

__all__ = ["release", "room"]

LARGEST = 1 << 21
"""Numbers of a room that is kept for the next call; larger ones are made fresh."""


class _Rooms(threading.local):
    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}


_rooms = _Rooms()


def room(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Unwritten numbers of a shape; valid until the same thread asks for the same name again.

    On a CPU the memory is kept, at most 8 MiB a name in single precision, until :func:`release`.
    """
    numbers = math.prod(shape)
    if like.device.type != "cpu" or numbers > LARGEST:
        return like.new_empty(shape)
    key = (name, like.dtype)
    held = _rooms.held.get(key)
    if held is None or held.numel() < numbers:
        with torch.inference_mode(False):
            held = torch.empty(numbers, dtype=like.dtype)
        _rooms.held[key] = held
    return held[:numbers].view(shape)


def release() -> None:
    """Gives back the rooms of the calling thread."""
    _rooms.held.clear()
