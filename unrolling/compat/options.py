"""What a caller gives beside released weights: read by name, held against the weights, and never passed over."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["Options", "Weights", "class_count", "expect", "image_size", "square"]

_NOTHING = object()


class Options:
    """The released constructor's arguments that were given; ``done`` raises for one that nothing has asked for."""

    def __init__(self, kind: str, given: Mapping[str, Any]) -> None:
        self.kind, self._known = kind, set[str]()
        self._given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

    def take(self, *names: str, default: Any = None) -> Any:
        """The value given under one of the names, or the default."""
        self._known.update(names)
        found = {name: self._given[name] for name in names if name in self._given}
        values = list(found.values())
        if any(not _same(value, values[0]) for value in values[1:]):
            raise self.error(f"{' and '.join(found)} name the same thing, but are {found}.")
        return values[0] if values else default

    def has(self, *names: str) -> bool:
        """Whether one of the names was given."""
        self._known.update(names)
        return any(name in self._given for name in names)

    def need(self, *names: str, why: str) -> Any:
        """The value given under one of the names, which the weights do not tell."""
        value = self.take(*names, default=_NOTHING)
        if value is _NOTHING:
            raise self.error(f"{why}; pass {' or '.join(f'{name}=…' for name in names)}.")
        return value

    def agree(self, *names: str, found: Any) -> Any:
        """What the weights tell, held against what was given."""
        given = self.take(*names, default=_NOTHING)
        if given is not _NOTHING and not _same(given, found):
            raise self.error(f"{names[0]} is given as {given!r}, but the weights say {found!r}.")
        return found

    def number(self, *names: str, default: float) -> float:
        """A positive number given under one of the names, or the default."""
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(f"{names[0]} must be a positive number, but is {value!r}.")
        return float(value)

    def count(self, *names: str, default: int) -> int:
        """A positive integer given under one of the names, or the default."""
        value = self.take(*names, default=default)
        if not _counts(value):
            raise self.error(f"{names[0]} must be a positive integer, but is {value!r}.")
        return int(value)

    def sides(self, name: str, value: Any) -> tuple[int, int]:
        """Rows and columns: of two positive integers, or of one."""
        given = value if isinstance(value, (tuple, list)) else (value, value)
        if len(given) != 2 or not all(_counts(side) for side in given):
            raise self.error(f"{name} must be a positive integer or (rows, columns), but is {value!r}.")
        return given[0], given[1]

    def without_effect(self, *names: str) -> None:
        """Arguments that the released constructor takes and its forward pass does not use."""
        self._known.update(names)

    def done(self) -> None:
        """Raise for arguments that this kind does not have."""
        unknown = sorted(set(self._given) - self._known)
        if unknown:
            near = {name: difflib.get_close_matches(name, self._known, n=1) for name in unknown}
            hints = ", ".join(f"{name} (did you mean {match[0]}?)" if match else name for name, match in near.items())
            raise self.error(f"unknown arguments: {hints}. It takes {', '.join(sorted(self._known))}.")

    def part(self, name: str, kind: str) -> Options | None:
        """The arguments given as a mapping under one name, for a part of a network."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(f"{name} must be a mapping of its arguments, but is {value!r}.")
        return Options(kind, value)

    def error(self, text: str) -> ValueError:
        """An error that says for which kind."""
        return ValueError(f"from_official({self.kind!r}): {text}")


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _same(a: Any, b: Any) -> bool:
    def plain(value: Any) -> Any:
        return tuple(plain(item) for item in value) if isinstance(value, (list, tuple)) else value

    a, b = plain(a), plain(b)
    if isinstance(a, tuple) != isinstance(b, tuple):  # 224 stands for (224, 224)
        a, b = (value if isinstance(value, tuple) else (value,) * 2 for value in (a, b))
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, (int, float)) and isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


class Weights:
    """A released state dictionary, or the part of it under a prefix: looked into for sizes."""

    def __init__(self, kind: str, state: Mapping[str, Tensor], prefix: str = "") -> None:
        self.kind, self.state, self.prefix = kind, state, prefix

    def under(self, prefix: str) -> Weights:
        """The part below a prefix."""
        return Weights(self.kind, self.state, self.prefix + prefix)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.state

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there.

        Raises
        ------
            ValueError that names the missing key, or the shape that has another number of axes.
        """
        full = self.prefix + name
        if full not in self.state:
            some = ", ".join(sorted(self.state)[:6])
            raise ValueError(
                f"from_official({self.kind!r}): the weights have no {full!r}; they have {len(self.state)} keys: {some}, …"
            )
        shape = tuple(self.state[full].shape)
        if len(shape) != ndim:
            raise ValueError(f"from_official({self.kind!r}): {full} must have {ndim} axes, but has shape {shape}.")
        return shape

    def count(self, prefix: str) -> int:
        """How many numbers follow a prefix: ``blocks.`` in ``blocks.0.…``, ``blocks.1.…``."""
        start = self.prefix + prefix
        rest = (name[len(start) :].split(".", 1)[0] for name in self.state if name.startswith(start))
        return len({part for part in rest if part.isdigit()})


def square(patches: int) -> tuple[int, int] | None:
    """The square grid of so many patches, if it is one."""
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else None


def image_size(options: Options, patches: int, patch: tuple[int, int]) -> tuple[int, int]:
    """The image size that was given, or the square one of so many patches."""
    given = options.take("image_size", "img_size")
    if given is None:
        grid = square(patches)
        if grid is None:
            options.need("image_size", "img_size", why=f"{patches} positions are of no square grid")
        rows, columns = grid or (0, 0)
        return rows * patch[0], columns * patch[1]
    size = options.sides("image_size", given)
    count = (size[0] // patch[0]) * (size[1] // patch[1])
    if size[0] % patch[0] or size[1] % patch[1] or count != patches:
        raise options.error(
            f"an image of {size[0]} × {size[1]} has {size[0] // patch[0]} × {size[1] // patch[1]} patches of {patch[0]} ×"
            f" {patch[1]}, but the weights have positions for {patches}."
        )
    return size


def expect(options: Options, name: str, *allowed: str) -> None:
    """Raise for a class that this library's network does not have in that place."""
    value = options.take(name)
    if value is not None and not any(
        word in str(getattr(getattr(value, "func", value), "__name__", value)).lower() for word in allowed
    ):
        raise options.error(f"{name} must be {' or '.join(allowed)}, but is {value!r}.")


def class_count(options: Options, w: Weights, name: str, *names: str) -> int:
    """The number of classes of a head; 0 where there is none."""
    if f"{name}.weight" not in w and f"{name}.bias" not in w:
        return options.agree("num_classes", *names, found=0)
    return options.agree("num_classes", *names, found=w.shape(f"{name}.weight", 2)[0])
