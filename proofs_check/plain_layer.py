"""Anyone's forward pass, called with arrays as it likes them, and what came back, whatever it was."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .measures import norm
from .verdicts import Finding

__all__ = [
    "Forward",
    "Outcome",
    "as_tensor",
    "difference_between_calls",
    "generators_kept",
    "given_to",
    "in_dtype",
    "is_array",
    "name_of",
]

DTYPES = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Outcome:
    """One call: what came back as a float64 tensor like x, or what was wrong with it instead.

    got: None where nothing of use came back. finding and words: what is wrong, even where got could be read. changed:
    the input was changed in place.
    """

    got: Tensor | None
    finding: Finding | None = None
    words: str = ""
    changed: bool = False


class Forward:
    """A forward pass: a module, of which a copy in the dtype and evaluation mode is called, or any function.

    What arrays it takes, torch's or numpy's, and in which precision, is learned by trying: first those of the example,
    in the dtype asked for.
    """

    def __init__(self, call: Any, example: Tensor, numpy_first: bool, dtype: torch.dtype) -> None:
        self.name, self._own = name_of(call), call
        kinds = ["numpy", "torch"] if numpy_first else ["torch", "numpy"]
        kinds = ["torch"] if isinstance(call, nn.Module) else kinds
        wanted = list(dict.fromkeys([dtype, example.dtype, *DTYPES]))
        ways = [(kind, precision) for precision in wanted for kind in kinds]
        for kind, precision in [*ways, ways[0]]:  # where all raise, the first is reported
            self.kind, self.dtype, self.call = kind, precision, in_dtype(call, precision)
            if self(example).finding is not Finding.RAISES:
                return

    def __call__(self, x: Tensor) -> Outcome:
        """What the layer makes of ``x``, which it gets as a copy."""
        given = given_to(self.kind, x, self.dtype)
        before = as_tensor(given).clone()
        try:
            back = self.call(given)
        except Exception as problem:  # whatever a stranger's layer raises is reported, and raises nothing here
            return Outcome(None, Finding.RAISES, f"it raises {type(problem).__name__}: {problem}".rstrip())
        changed = not torch.equal(as_tensor(given), before)
        shape = tuple(x.shape)
        if isinstance(back, (tuple, list)) and not is_array(back):
            inside = next((part for part in back if is_array(part) and tuple(part.shape) == shape), None)
            got = None if inside is None else as_tensor(inside)
            return Outcome(
                got, Finding.WRONG_OUTPUT, f"it returns a {type(back).__name__} of {len(back)}, not an array.", changed
            )
        if not is_array(back):
            return Outcome(
                None, Finding.WRONG_OUTPUT, f"it returns a {type(back).__name__}, not an array like x.", changed
            )
        if tuple(back.shape) != shape:
            words = f"it returns the shape {tuple(back.shape)} for x of shape {shape}: a step keeps the shape."
            return Outcome(None, Finding.WRONG_OUTPUT, words, changed)
        if not _is_floating(back):
            return Outcome(None, Finding.WRONG_OUTPUT, f"it returns numbers of type {back.dtype}.", changed)
        got = as_tensor(back)
        if not bool(torch.isfinite(got).all()):
            bad = (~torch.isfinite(got)).nonzero()
            where = tuple(bad[0].tolist())
            words = f"it returns NaN or infinite numbers: {len(bad)} of {got.numel()}, the first at index {where}."
            return Outcome(got, Finding.NOT_FINITE, words, changed)
        came, went = str(back.dtype).removeprefix("torch."), str(self.dtype).removeprefix("torch.")
        if back.dtype.itemsize < self.dtype.itemsize:
            return Outcome(got, Finding.PRECISION, f"it returns {came} for {went}.", changed)
        return Outcome(got, changed=changed)

    def accepts(self, x: Tensor) -> bool:
        """Whether it returns something like x, and does not raise."""
        return self(x).got is not None


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Put the random generators of torch, numpy and Python back to where they were."""
    drawn, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(drawn)
            random.setstate(python)


def given_to(kind: str, x: Tensor, dtype: torch.dtype) -> Any:
    """A copy of ``x`` as a tensor or as an array, for a callable of that kind."""
    copied = x.detach().clone().to(dtype)
    return copied if kind == "torch" else copied.cpu().numpy().copy()


def as_tensor(array: Any) -> Tensor:
    """A tensor or array as a float64 tensor in the main memory, not connected to anything."""
    tensor = array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    return tensor.to(torch.float64).cpu()


def name_of(call: Any) -> str:
    """What a callable is called: its class, or its own name."""
    while isinstance(call, functools.partial):
        call = call.func
    name = getattr(call, "__name__", None) or type(call).__name__
    return "forward" if name == "<lambda>" else str(name).removeprefix("Parametrized")


def difference_between_calls(forward: Forward, x: Tensor) -> tuple[float, bool]:
    """How far two calls with the same x are apart, relative to the update; and whether equal seeds make them equal."""
    one, other = forward(x).got, forward(x).got
    if one is None or other is None or not bool(torch.isfinite(one - other).all()):
        return 0.0, False
    apart, rounding = norm(one - other), 64 * float(torch.finfo(forward.dtype).eps)
    if apart <= rounding * (norm(one) + norm(as_tensor(x))):  # sums in another order
        return 0.0, False
    seeded: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        got = forward(x).got
        seeded.append(one if got is None else got)
    return apart / max(norm(one - as_tensor(x)), 1e-300), bool(torch.equal(*seeded))


def in_dtype(call: Any, dtype: torch.dtype) -> Any:
    """A copy of a module in that dtype and in evaluation mode; anything else as it is."""
    if not isinstance(call, nn.Module):
        return call
    try:
        return copy.deepcopy(call).to(dtype).eval()
    except Exception:  # what cannot be copied is called as it is
        return call


def is_array(value: Any) -> bool:
    """Whether it is a tensor or an array of numpy."""
    return isinstance(value, (Tensor, np.ndarray))


def _is_floating(value: Any) -> bool:
    return value.dtype.is_floating_point if isinstance(value, Tensor) else np.issubdtype(value.dtype, np.floating)
