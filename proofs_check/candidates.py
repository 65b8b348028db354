"""Objectives of bases as explanations of an update: what each needs of a layer, and which numbers are to be fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import (
    ChannelRate,
    CodingRate,
    RepresentativeEnergy,
    RepresentativeNorm,
    RepresentativeRate,
    SelfAttentionEnergy,
    SubspaceCodingRate,
    SymmetricEnergy,
    VariationalRate,
    project,
)
from unrolling import GridPool, SequencePool, Strided

from .held import Bases, bases_in, heads_in, held_tensors, integers_in

__all__ = [
    "Hypothesis",
    "Layer",
    "Numbers",
    "Ranges",
    "channel_rate",
    "coding_rate",
    "look_at",
    "random_bases",
    "random_matrix",
    "representatives",
    "self_attention",
    "softness",
    "subspace_coding_rate",
    "variational_rate",
]

Numbers = Mapping[str, float]
Ranges = Mapping[str, tuple[float, float, float]]
"""Lowest, highest, and first value to try of every number."""


@dataclass(frozen=True)
class Layer:
    """What is known of a layer without looking at our classes: width, typical size of its tokens, matrices, numbers.

    extra: further bases, found from the update itself. linear: the linear map x -> update, as far as it is one.
    """

    d: int
    scale: float
    tensors: Mapping[str, Tensor]
    heads: tuple[int, ...]
    integers: tuple[tuple[str, int], ...]
    pairs: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    extra: tuple[Bases, ...] = ()
    linear: Tensor | None = None

    @property
    def bases(self) -> list[Bases]:
        """All ways to read bases."""
        return [*bases_in(dict(self.tensors), self.d, self.heads), *self.extra]


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One objective of ours with its matrices in place, and ranges of the numbers still to be fitted.

    make: (tokens, numbers) -> the objective there, whatever it freezes taken there. ranges: lowest and highest value of
    every number, and one that is tried first. redraw: the same with random matrices of the same shapes; None where there
    are none: then the direction is turned at random. proximal: the direction is that of a proximal step of size η.
    """

    family: str
    words: str
    frozen: str
    make: Callable[[Tensor, Numbers], Any]
    ranges: Ranges = field(default_factory=dict)
    redraw: Callable[[np.random.Generator], Hypothesis] | None = None
    proximal: bool = False

    def direction(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Where a descent step moves the tokens: −∇f, or what a proximal step of size η adds."""
        objective = self.make(x, numbers)
        if not self.proximal:
            return -objective.gradient(x)
        eta = numbers["step_size"]
        return objective.nonsmooth.prox(x - eta * objective.smooth.gradient(x), eta) - x


def look_at(call: Any, d: int, scale: float) -> Layer:
    """What a callable holds."""
    pairs: list[Any] = []
    parts = call.modules() if isinstance(call, torch.nn.Module) else ()
    for part in parts:
        size, grid = getattr(part, "size", None), getattr(part, "grid", None)
        if _is_pair(size) and _is_pair(grid):
            pairs.append((size, grid))
    return Layer(d, scale, held_tensors(call), tuple(heads_in(call)), tuple(integers_in(call)), tuple(pairs))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)


def _epsilon(layer: Layer) -> Ranges:
    return {"epsilon": (1e-2 * layer.scale, 30 * layer.scale, 0.5 * layer.scale)}


def softness(layer: Layer, p: int) -> Ranges:
    """Scales s of a softmax, p^(−1/2) first."""
    return {"scale": (1e-3 / layer.scale**2, 30 / layer.scale**2, p**-0.5)}


def random_bases(rng: np.random.Generator, U: Tensor) -> Tensor:
    """Bases of the same shape: orthonormal together where these are, else each by itself, with the same singular values."""
    K, d, p = U.shape
    if K * p <= d:
        flat = np.linalg.qr(rng.standard_normal((d, K * p)))[0]
        drawn = torch.from_numpy(flat).unflatten(-1, (K, p)).transpose(0, 1)
    else:
        drawn = torch.stack([torch.from_numpy(np.linalg.qr(rng.standard_normal((d, p)))[0]) for _ in range(K)])
    _, sizes, right = torch.linalg.svd(U, full_matrices=False)
    return (drawn * sizes.unsqueeze(-2)) @ right


def random_matrix(rng: np.random.Generator, M: Tensor) -> Tensor:
    """A Gaussian matrix of the same shape and norm."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(M.shape)))
    return drawn * (M.norm() / drawn.norm())


def _over_bases(
    layer: Layer,
    family: str,
    frozen: str,
    make: Callable[[Tensor], Callable[[Tensor, Numbers], Any]],
    ranges: Callable[[int], Ranges],
    more: str = "",
) -> Iterator[Hypothesis]:
    def of(U: Tensor, words: str) -> Hypothesis:
        return Hypothesis(
            family,
            words + more,
            frozen,
            make(U),
            ranges(U.shape[-1]),
            lambda rng: of(random_bases(rng, U), "random bases"),
        )

    for bases in layer.bases:
        yield of(bases.U, bases.words)


def coding_rate(layer: Layer) -> Iterator[Hypothesis]:
    """½ logdet(I + β xᵀx)."""
    yield Hypothesis("CodingRate", "", "nothing", lambda x, n: CodingRate(n["epsilon"]), _epsilon(layer))


def subspace_coding_rate(layer: Layer) -> Iterator[Hypothesis]:
    """R_c(x | U), with N in β, or with the head's width."""
    for counted, more in ((False, ""), (True, ", β = 1/ε²")):

        def make(U: Tensor, counted: bool = counted) -> Callable[[Tensor, Numbers], Any]:
            count = U.shape[-1] if counted else None
            return lambda x, n: SubspaceCodingRate(U, n["epsilon"], count, orthonormal=False)

        yield from _over_bases(layer, "SubspaceCodingRate", "nothing", make, lambda p: _epsilon(layer), more)


def channel_rate(layer: Layer) -> Iterator[Hypothesis]:
    """Every channel coded by itself."""
    yield from _over_bases(
        layer,
        "ChannelRate",
        "nothing",
        lambda U: lambda x, n: ChannelRate(U, n["epsilon"], orthonormal=False),
        lambda p: _epsilon(layer),
    )


def variational_rate(layer: Layer) -> Iterator[Hypothesis]:
    """R_var with Π = softmax over heads of τ‖W‖², from the coordinates or from normalised channels."""
    for normalised in (False, True):

        def make(U: Tensor, normalised: bool = normalised) -> Callable[[Tensor, Numbers], Any]:
            def at(x: Tensor, n: Numbers) -> VariationalRate:
                w = project(x, U)
                w = w / w.norm(dim=-2, keepdim=True).clamp(min=1e-12) if normalised else w
                Pi = torch.softmax(n["temperature"] * w.square().sum(-1).mT, dim=-1)
                return VariationalRate(U, Pi, n["epsilon"], orthonormal=False)

            return at

        def ranges(p: int, normalised: bool = normalised) -> Ranges:
            size = 1.0 if normalised else layer.scale
            return {**_epsilon(layer), "temperature": (1e-3 / size**2, 100 / size**2, 1.0)}

        more = ", Π of normalised channels" if normalised else ""
        yield from _over_bases(layer, "VariationalRate", "Π", make, ranges, more)


def _poolings(layer: Layer) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Initial representatives of coordinates w ``(..., heads, N, p)``: pooled, strided, or learned."""
    numbers = dict(layer.integers)
    first = next((n for name, n in layer.integers if name.endswith("class_tokens")), 0)
    for size, grid in layer.pairs:
        pool = GridPool(size, grid)
        yield f"pooled to {size[0]} × {size[1]}", lambda w, x, pool=pool: pool.initial(w, first, None)  # type: ignore[misc]
    told = [n for name, n in numbers.items() if name.rpartition(".")[2] in ("count", "length", "m", "representatives")]
    for m in dict.fromkeys([n for n in told if n > 0] or [2, 4, 8]):
        sequence = SequencePool(m)
        yield f"pooled to {m}", lambda w, x, pool=sequence: pool.initial(w, first, None)  # type: ignore[misc]
    for stride in dict.fromkeys(n for name, n in numbers.items() if name.endswith("stride") and n > 0):
        every = Strided(stride)
        yield f"every {stride}th token", lambda w, x, pool=every: pool.initial(w, first, None)  # type: ignore[misc]
    for name, q in layer.tensors.items():
        if q.ndim == 3 and q.shape[-1] < layer.d:
            yield f"queries {name}", lambda w, x, q=q: q.expand(*w.shape[:-3], *q.shape)  # type: ignore[misc]


def representatives(layer: Layer) -> Iterator[Hypothesis]:
    """CBSA's objectives: extraction weights P = softmax(s q Wᵀ) held constant."""
    for pooling, initial in _poolings(layer):

        def extract(U: Tensor, x: Tensor, s: float, initial: Any = initial) -> tuple[Tensor, Tensor]:
            w = project(x, U)
            return w, torch.softmax(s * (initial(w, x) @ w.mT), dim=-1)

        def rate(U: Tensor, extract: Any = extract) -> Callable[[Tensor, Numbers], Any]:
            return lambda x, n: RepresentativeRate(U, extract(U, x, n["scale"])[1], n["epsilon"], orthonormal=False)

        def energy(U: Tensor, extract: Any = extract) -> Callable[[Tensor, Numbers], Any]:
            def at(x: Tensor, n: Numbers) -> RepresentativeEnergy:
                w, P = extract(U, x, n["scale"])
                return RepresentativeEnergy(U, P, P @ w, n["scale"], orthonormal=False)

            return at

        def agent(U: Tensor, extract: Any = extract) -> Callable[[Tensor, Numbers], Any]:
            return lambda x, n: RepresentativeNorm(U, extract(U, x, n["scale"])[1], orthonormal=False)

        def soft(p: int) -> Ranges:
            return softness(layer, p)

        def both(p: int) -> Ranges:
            return {**softness(layer, p), **_epsilon(layer)}

        more = f", representatives {pooling}"
        yield from _over_bases(layer, "RepresentativeRate", "P", rate, both, more)
        yield from _over_bases(layer, "RepresentativeEnergy", "P and Q̄", energy, soft, more)
        yield from _over_bases(layer, "RepresentativeNorm", "P", agent, soft, more)


def self_attention(layer: Layer) -> Iterator[Hypothesis]:
    """The log-sum-exp energy with its keys held constant, and the one with nothing held constant."""

    def frozen(U: Tensor) -> Callable[[Tensor, Numbers], Any]:
        return lambda x, n: SelfAttentionEnergy(U, project(x, U), n["scale"], orthonormal=False)

    def free(U: Tensor) -> Callable[[Tensor, Numbers], Any]:
        return lambda x, n: SymmetricEnergy(U, n["scale"], orthonormal=False)

    yield from _over_bases(layer, "SelfAttentionEnergy", "keys", frozen, lambda p: softness(layer, p))
    yield from _over_bases(layer, "SymmetricEnergy", "nothing", free, lambda p: softness(layer, p))
