"""What is timed: for every stem its fast path, the plain twin, other attentions, and what the machine could do at best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from unrolling import GridPool, SequencePool, full_attention, kernels, linear_attention, mita, models

__all__ = ["LIMIT", "OURS", "STEMS", "Contestant", "Sizes", "Stem"]

OURS, PLAIN, FULL, LINEAR, LIMIT = "ours", "plain twin", "full attention", "linear attention", "limit"


@dataclass(frozen=True)
class Sizes:
    """What is the same in all measurements: d = dim, heads, p = dim/heads, m representatives, k keys an expert."""

    dim: int = 384
    heads: int = 6
    m: int = 64
    keys: int = 64
    batch: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0

    @property
    def head_dim(self) -> int:
        """P."""
        return self.dim // self.heads

    @property
    def scale(self) -> float:
        """S = p^(−1/2)."""
        return self.head_dim**-0.5

    def draw(self, *shape: int, purpose: int = 0) -> Tensor:
        """Normal numbers of half unit size: softmaxes neither flat nor one-hot."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * purpose)
        return (0.5 * torch.randn(*shape, generator=generator)).to(self.device, self.dtype)

    def heads_of(self, tokens: int, purpose: int = 0) -> Tensor:
        """Coordinates ``(batch, heads, tokens, p)``, cut from a joint projection as in the layers."""
        joint = self.draw(self.batch, tokens, self.dim, purpose=purpose)
        return joint.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)


@dataclass(frozen=True)
class Contestant:
    """One way to compute: ``run`` maps the inputs to a result that is differentiated for "both".

    both: what "forward and backward" runs instead, where it is not the derivative of ``run`` (a limit). quadratic: its
    time grows with the square of the tokens, so that it is left out where that takes too long.
    """

    name: str
    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor]
    both: Callable[..., object] | None = None
    quadratic: bool = False


@dataclass(frozen=True)
class Stem:
    """A stem of the bench: contestants for a number of tokens, and the claims that must hold before it is timed."""

    name: str
    title: str
    claims: tuple[str, ...]
    contestants: Callable[[Sizes, int], list[Contestant]]
    tokens: tuple[int, ...]
    limit: str
    network: bool = False
    speedups: Mapping[str, str] = field(default_factory=dict)


TOKENS = (256, 1024, 4096, 16384, 65536)


def _grid(tokens: int) -> tuple[int, int] | None:
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None


def _pool(sizes: Sizes, tokens: int) -> Callable[[Tensor], Tensor]:
    """Pooling to m representatives, on a grid where tokens and m are squares."""
    grid, size = _grid(tokens), _grid(sizes.m)
    if grid is not None and size is not None:
        pool = GridPool(size)
        return lambda w: pool.initial(w, 0, grid)
    sequence = SequencePool(sizes.m)
    return lambda w: sequence.initial(w, 0, None)


def _products(sizes: Sizes, shapes: list[tuple[int, int, int]]) -> Callable[..., object]:
    """Products of every head ``(a, b) @ (b, c)``, operands ready and room for the results: nothing else is done."""
    made = []
    for index, (a, b, c) in enumerate(shapes):
        left = sizes.draw(sizes.batch * sizes.heads, a, b, purpose=3 * index)
        right = sizes.draw(sizes.batch * sizes.heads, b, c, purpose=3 * index + 1)
        made.append((left, right, torch.empty(len(left), a, c, device=left.device, dtype=left.dtype)))

    def run(*_: Tensor) -> Tensor:
        for left, right, out in made:
            torch.bmm(left, right, out=out)
        return made[-1][2]

    return run


def _copies(sizes: Sizes, tokens: int, times: int) -> Callable[..., object]:
    joint = sizes.draw(sizes.batch, tokens, sizes.dim)
    room = torch.empty_like(joint)

    def run(*_: Tensor) -> Tensor:
        for __ in range(times):
            room.copy_(joint)
        return room

    return run


def _limit(forward: Callable[..., object], both: Callable[..., object]) -> Contestant:
    return Contestant(LIMIT, (), forward, both)  # type: ignore[arg-type]


def _attentions(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[Contestant]:
    def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v, scale)

    return [Contestant(FULL, (q, k, v), full, quadratic=True), Contestant(LINEAR, (q, k, v), linear)]


def cbsa(sizes: Sizes, tokens: int) -> list[Contestant]:
    """The core after the projection: pooling, extraction, softmax contraction, broadcast, one matrix for all."""
    w, s, pool = sizes.heads_of(tokens), sizes.scale, _pool(sizes, tokens)
    N, m, p = tokens, sizes.m, sizes.head_dim
    step = torch.tensor(1.0, device=sizes.device, dtype=sizes.dtype)

    def contraction(q: Tensor, _: Tensor, kappa: Tensor) -> Tensor:
        return kappa * (torch.softmax(s * (q @ q.mT), dim=-1) @ q)

    def path(kernel: str) -> Callable[[Tensor], Tensor]:
        return lambda w: kernels.contract_broadcast(w, pool, contraction, step, scale=s, kernel=kernel)

    def tied(w: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(w, w, w, scale=s)

    forward = [(m, p, N), (m, N, p), (N, m, p)]
    backward = [(m, N, p), (m, p, N), (N, m, p), (m, p, N), (N, m, p), (m, N, p)]
    return [
        Contestant(OURS, (w,), path("auto")),
        Contestant(PLAIN, (w,), path("plain")),
        Contestant(FULL, (w,), tied, quadratic=True),
        Contestant(LINEAR, (w,), lambda w: linear_attention(w, w, w, s)),
        _limit(_products(sizes, forward), _products(sizes, forward + backward)),
    ]


def tssa(sizes: Sizes, tokens: int, causal: bool = False) -> list[Contestant]:
    """The core after the projection: memberships, moments, shrinkage."""
    w = sizes.heads_of(tokens)
    how = kernels.Statistics(sizes.dim / 0.25, causal=causal)
    temperature = torch.ones(sizes.heads, device=sizes.device, dtype=sizes.dtype)
    step = torch.tensor(1.0, device=sizes.device, dtype=sizes.dtype)

    def path(kernel: str) -> Callable[[Tensor], Tensor]:
        return lambda w: kernels.shrink(w, temperature, step, how, kernel=kernel)

    def tied(w: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(w, w, w, scale=sizes.scale, is_causal=causal)

    return [
        Contestant(OURS, (w,), path("auto")),
        Contestant(PLAIN, (w,), path("plain")),
        Contestant(FULL, (w,), tied, quadratic=True),
        _limit(_copies(sizes, tokens, 2), _copies(sizes, tokens, 5)),
    ]


def mixture(sizes: Sizes, tokens: int) -> list[Contestant]:
    """The core after the projections: landmarks, their values, selection, routing, both experts."""
    q, k, v = (sizes.heads_of(tokens, purpose) for purpose in range(3))
    pool, N, m, p, top = _pool(sizes, tokens), tokens, sizes.m, sizes.head_dim, sizes.keys

    def path(kernel: str) -> Callable[..., Tensor]:
        return lambda q, k, v: mita(q, k, v, pool(q), keys_per_expert=top, scale=sizes.scale, kernel=kernel)

    each = max(1, N // m)
    forward = [(m, p, N), (m, N, p), (N, p, m), (N, m, p), (m * each, p, top), (m * each, top, p)]
    return [
        Contestant(OURS, (q, k, v), path("auto")),
        Contestant(PLAIN, (q, k, v), path("plain")),
        *_attentions(q, k, v, sizes.scale),
        _limit(_products(sizes, forward), _products(sizes, 3 * forward)),
    ]


def agent(sizes: Sizes, tokens: int) -> list[Contestant]:
    """The core after the projections: agents, what they read, what is read of them."""
    q, k, v = (sizes.heads_of(tokens, purpose) for purpose in range(3))
    pool, s, N, m, p = _pool(sizes, tokens), sizes.scale, tokens, sizes.m, sizes.head_dim

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        agents = pool(q)
        found = F.scaled_dot_product_attention(agents, k, v, scale=s)
        return F.scaled_dot_product_attention(q, agents, found, scale=s)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        agents = pool(q)
        return full_attention(q, agents, full_attention(agents, k, v, s), s)

    forward = [(m, p, N), (m, N, p), (N, p, m), (N, m, p)]
    return [
        Contestant(OURS, (q, k, v), fast),
        Contestant(PLAIN, (q, k, v), plain),
        *_attentions(q, k, v, s),
        _limit(_products(sizes, forward), _products(sizes, 3 * forward)),
    ]


def mssa(sizes: Sizes, tokens: int) -> list[Contestant]:
    """The exact form after the projection."""
    w, N, p = sizes.heads_of(tokens), tokens, sizes.head_dim
    beta = p / (N * 0.25)

    def path(kernel: str) -> Callable[[Tensor], Tensor]:
        return lambda w: kernels.contract_tokens(w, beta, kernel)

    def tied(w: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(w, w, w, scale=sizes.scale)

    forward, backward = [(p, N, p), (N, p, p)], [(p, N, p), (N, p, p), (N, p, p)]
    return [
        Contestant(OURS, (w,), path("auto")),
        Contestant(PLAIN, (w,), path("plain")),
        Contestant(FULL, (w,), tied, quadratic=True),
        _limit(_products(sizes, forward), _products(sizes, forward + backward)),
    ]


def coding_rate(sizes: Sizes, tokens: int) -> list[Contestant]:
    """The rate of all tokens, without heads; backward: its gradient."""
    x = sizes.draw(tokens, sizes.dim)
    square = torch.empty(sizes.dim, sizes.dim, device=x.device, dtype=x.dtype)

    def products(times: int) -> Callable[..., object]:
        def run(*_: Tensor) -> Tensor:
            for __ in range(times):
                torch.mm(x.mT, x, out=square)
            return square

        return run

    def streamed(x: Tensor) -> Tensor:
        return kernels.streamed_rate(x).value

    return [
        Contestant(OURS, (x,), lambda x: kernels.coding_rate(x)),
        Contestant(PLAIN, (x,), lambda x: kernels.coding_rate(x, kernel="plain")),
        Contestant("streamed", (x,), streamed, both=lambda x: kernels.streamed_rate(x).gradient(x)),
        _limit(products(1), products(2)),
    ]


def networks(white: str, black: str) -> Callable[[Sizes, int], list[Contestant]]:
    """Two networks that differ in attention; here tokens are the image's side in pixels."""

    def contestants(sizes: Sizes, side: int) -> list[Contestant]:
        x = sizes.draw(sizes.batch, 3, side, side)
        found = []
        for name, kind in ((OURS, white), (FULL, black)):
            torch.manual_seed(sizes.seed)
            net = models.create(kind, img_size=side).to(sizes.device, sizes.dtype)
            found.append(Contestant(name, (x,), net, quadratic=name == FULL))
        return found

    return contestants


STEMS: dict[str, Stem] = {
    stem.name: stem
    for stem in (
        Stem("cbsa", "CBSA, softmax form", ("cbsa", "kernels.cbsa"), cbsa, TOKENS, "its matrix products alone"),
        Stem(
            "tssa",
            "TSSA",
            ("tssa", "kernels.tssa"),
            tssa,
            TOKENS,
            "copying the tokens twice; with backward, five times",
        ),
        Stem(
            "tssa_causal",
            "TSSA, causal",
            ("tssa.causal", "kernels.tssa.causal"),
            lambda sizes, tokens: tssa(sizes, tokens, causal=True),
            TOKENS,
            "copying the tokens twice; with backward, five times",
        ),
        Stem("mita", "MiTA", ("mita", "kernels.mita"), mixture, TOKENS, "its matrix products alone"),
        Stem("agent", "Agent attention", ("agent",), agent, TOKENS, "its matrix products alone"),
        Stem("mssa", "MSSA, exact form", ("mssa", "kernels.mssa"), mssa, TOKENS, "its matrix products alone"),
        Stem(
            "coding_rate",
            "The coding rate",
            ("coding_rate", "kernels.coding_rate", "kernels.stream"),
            coding_rate,
            TOKENS,
            "the product ZᵀZ; with the gradient, twice",
        ),
        Stem(
            "cbt",
            "CBT-S, and the same network with softmax attention",
            ("cbsa", "kernels.cbsa", "models.cbt_small"),
            networks("cbt-small", "cbt-small-mssa"),
            (224, 512, 1024),
            "",
            network=True,
        ),
        Stem(
            "mita_deit",
            "MiTA-DeiT-S, and DeiT-S",
            ("mita", "kernels.mita"),
            networks("mita-deit-small", "vit-small"),
            (224, 512, 1024),
            "",
            network=True,
        ),
    )
}
"""All stems of the bench, by name."""
