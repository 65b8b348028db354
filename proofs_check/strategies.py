"""Cases and how they are drawn: sizes, a kind of tokens and a seed, never raw tensors, so that cases shrink and replay."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "KINDS_OF_TOKENS",
    "STRUCTURED",
    "WITNESS",
    "WITNESSES",
    "WITNESS_6",
    "WITNESS_9",
    "WITNESS_10",
    "Case",
    "cases",
]

KINDS_OF_TOKENS = (
    "gaussian",
    "zero",
    "repeated",
    "rank_one",
    "orthonormal",
    "near_parallel",
    "shifted",
    "subspaces",
    "one_far",
)


@dataclass(frozen=True)
class Case:
    """One input: everything is built from these numbers, always in the same way.

    tokens N; heads K; head_dim p; extra: features beyond K p, so dim = K p + extra; m: representatives; batch: number
    of token sets, 0 for no batch axis; kind of tokens; scale: their size; epsilon; step: in units of 1/L;
    sharpness: the logits' spread of drawn extraction weights; seed; dtype; given: tokens of the user's instead.
    kind "witness": one of :data:`WITNESSES`, one head with U = I and s = 1, where −MSSA ascends.
    """

    tokens: int = 5
    heads: int = 2
    head_dim: int = 2
    extra: int = 0
    m: int = 3
    batch: int = 0
    kind: str = "gaussian"
    scale: float = 1.0
    epsilon: float = 0.5
    step: float = 1.0
    sharpness: float = 1.0
    seed: int = 0
    dtype: str = "float64"
    grid: tuple[int, int] | None = None
    given: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        parts = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in dataclasses.fields(self)
            if item.repr and getattr(self, item.name) != item.default
        ]
        return f"Case({', '.join(parts)})"

    @property
    def dim(self) -> int:
        """D = K p + extra."""
        return self.heads * self.head_dim + self.extra

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that the subject computes in."""
        return {"float64": torch.float64, "float32": torch.float32}[self.dtype]

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers for one purpose; another purpose's use does not shift them."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def array(self) -> NDArray[np.float64]:
        """The tokens ``(N, d)`` or ``(batch, N, d)``, rows, in the precision of the dtype."""
        if self.given is not None:
            return self.given.astype(self.dtype).astype(np.float64)
        sets = [self._tokens(self.rng(f"tokens {b}")) for b in range(max(1, self.batch))]
        stacked = self.scale * (np.stack(sets) if self.batch else sets[0])
        return stacked.astype(self.dtype).astype(np.float64)

    def _tokens(self, rng: np.random.Generator) -> NDArray[np.float64]:
        N, d = self.tokens, self.dim
        if self.kind == "witness":
            return np.array(WITNESSES[N], dtype=np.float64)
        plain = rng.standard_normal((N, d))
        if self.kind == "unit":
            return plain / np.linalg.norm(plain, axis=1, keepdims=True)
        if self.kind == "zero":
            return np.zeros((N, d))
        if self.kind == "repeated":
            return np.repeat(plain[:1], N, axis=0)
        if self.kind == "rank_one":
            return np.outer(rng.standard_normal(N), plain[0])
        if self.kind == "orthonormal":
            square = np.linalg.qr(rng.standard_normal((max(N, d), max(N, d))))[0]
            return square[:N, :d]
        if self.kind == "near_parallel":
            return plain[:1] + 1e-6 * plain
        if self.kind == "shifted":
            return plain + 3.0
        if self.kind == "subspaces":
            owner = rng.integers(self.heads, size=N)
            blocks = np.stack([self.bases()[k] @ rng.standard_normal(self.head_dim) for k in owner])
            return blocks + 0.05 * plain
        if self.kind == "one_far":
            plain[0] *= 20.0
        return plain

    def bases(self) -> NDArray[np.float64]:
        """Orthonormal, mutually orthogonal bases ``(K, d, p)``."""
        if self.kind == "witness":
            return np.eye(self.dim)[None]
        square = np.linalg.qr(self.rng("bases").standard_normal((self.dim, self.dim)))[0]
        inner = self.heads * self.head_dim
        return square[:, :inner].reshape(self.dim, self.heads, self.head_dim).transpose(1, 0, 2)

    def x(self) -> Tensor:
        """The tokens as a tensor of the case's dtype."""
        return torch.from_numpy(self.array()).to(self.torch_dtype)

    def U(self) -> Tensor:
        """The bases as a tensor of the case's dtype."""
        return torch.from_numpy(np.ascontiguousarray(self.bases())).to(self.torch_dtype)

    def draw(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal numbers for one purpose."""
        return torch.from_numpy(self.rng(purpose).standard_normal(shape)).to(self.torch_dtype)

    def queries(self) -> Tensor:
        """Initial representatives ``(K, m, p)`` of the size of the tokens."""
        return self.scale * self.draw("queries", self.heads, self.m, self.head_dim)

    def P(self) -> Tensor:
        """Row-stochastic extraction weights ``(K, m, N)``; large sharpness makes rows nearly one-hot."""
        logits = self.sharpness * self.draw("P", self.heads, self.m, self.tokens)
        return torch.softmax(logits, dim=-1)

    def keys(self) -> Tensor:
        """Keys ``(K, m, p)`` of the size of the tokens."""
        return self.scale * self.draw("keys", self.heads, self.m, self.head_dim)

    @property
    def softmax_scale(self) -> float:
        """s: p^(−1/2), divided by the squared size of the tokens where that is large, so that softmaxes stay soft."""
        if self.kind == "witness":
            return 1.0
        return self.head_dim**-0.5 / max(1.0, self.scale) ** 2

    def in_dtype(self, dtype: str) -> Case:
        """The case in another precision; single precision resolves ε between once and three times the scale."""
        if dtype == "float64" or self.kind == "witness":
            return dataclasses.replace(self, dtype=dtype)
        size = self.scale
        return dataclasses.replace(self, dtype=dtype, epsilon=min(max(self.epsilon, size), 3.0 * size))

    def with_tokens(self, tokens: NDArray[np.float64], grid: tuple[int, int] | None = None) -> Case:
        """The same case on given tokens ``(N, d)``; heads of their own if the width needs it."""
        count, dim = tokens.shape
        heads = next(k for k in (3, 2, 1) if dim % k == 0)
        return dataclasses.replace(
            self, tokens=count, heads=heads, head_dim=dim // heads, extra=0, batch=0, grid=grid, given=tokens
        )


STRUCTURED = (
    Case(),
    Case(kind="zero"),
    Case(tokens=1),
    Case(kind="repeated"),
    Case(kind="rank_one"),
    Case(tokens=4, kind="orthonormal"),
    Case(scale=1e-3),
    Case(scale=1e3, epsilon=300.0),
    Case(heads=1, head_dim=3),
    Case(heads=3, head_dim=1),
    Case(tokens=12, heads=2, head_dim=2, m=4),
    Case(tokens=2, heads=2, head_dim=3, extra=1, m=5),
    Case(kind="near_parallel"),
    Case(tokens=7, kind="one_far", batch=2),
    Case(tokens=9, heads=2, head_dim=3, kind="subspaces", epsilon=0.1),
    Case(scale=100.0, epsilon=0.05),
    Case(tokens=70, heads=2, head_dim=3),  # beyond what is drawn, and beyond a block of 64
)
"""Cases that are always tried: the corners of the domain."""

WITNESSES = {
    22: 20 * [(1, 1)] + [(30, 3), (40, -2)],
    10: 6 * [(1, 3)] + 3 * [(1000, 2)] + [(1040, -6)],
    6: [
        (2.07, 3.42, 6.41, 5.18, 1.54),
        (0.21, 12, 6.24, 0.73, 0.36),
        (-10.76, 6.5, 18.2, -3.78, -1.32),
        (-53.59, 1.96, 29, 1.04, -0.12),
        (-1697.08, 15.76, 55.11, 1.64, 0.07),
        (-1864.28, -16.33, -32.31, -1.41, -0.04),
    ],
    9: 4 * [(1, 4, 0)] + [(45, -5, 0)] + 2 * [(-1, 0, 3)] + [(-600, 0, 3), (-640, 0, -3)],
}
"""Tokens at which −MSSA raises the compression term, with s = 1. Why: the claims mssa.sign.one_hub and .fewest_tokens."""

WITNESS = Case(tokens=22, heads=1, head_dim=2, kind="witness", epsilon=11000**-0.5)
"""Twenty-two tokens, all of which attend to the last: β = 1000, cosine −0.0019."""

WITNESS_10 = Case(tokens=10, heads=1, head_dim=2, kind="witness", epsilon=5**-0.5)
"""Ten tokens, all of which attend to the last: β = 1, cosine −6.4e-5."""

WITNESS_6 = Case(tokens=6, heads=1, head_dim=5, kind="witness", epsilon=(5 / 6) ** 0.5)
"""Six tokens found by descent on the cosine: β = 1, cosine −2.4e-4. No fewer are known."""

WITNESS_9 = Case(tokens=9, heads=1, head_dim=3, kind="witness", epsilon=3**-0.5)
"""Nine tokens, of which five attend to the fifth and four to the last: β = 1, cosine −2.4e-4."""


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS_OF_TOKENS,
    tokens: tuple[int, int] = (1, 12),
    epsilons: tuple[float, ...] = (0.5, 0.05, 0.2, 1.0, 2.0, 10.0),
    scales: tuple[float, ...] = (1.0, 1e-3, 0.1, 10.0, 1e3),
    batches: tuple[int, ...] = (0, 0, 2),
) -> Case:
    """All inputs of a claim: any sizes, kinds, scales over six orders of magnitude, and any ε for the scale.

    ε is drawn relative to the tokens' scale: the rate depends on scale/ε alone, and with scale/ε beyond 1e8 no
    floating-point number system resolves its gradient.
    """
    scale = draw(st.sampled_from(scales))
    return Case(
        tokens=draw(st.integers(*tokens)),
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 4)),
        extra=draw(st.integers(0, 2)),
        m=draw(st.integers(1, 6)),
        batch=draw(st.sampled_from(batches)),
        kind=draw(st.sampled_from(kinds)),
        scale=scale,
        epsilon=draw(st.sampled_from(epsilons)) * max(scale, 0.05),
        step=draw(st.sampled_from((1.0, 0.1, 0.5, 1.9))),
        sharpness=draw(st.sampled_from((1.0, 0.0, 10.0))),
        seed=draw(st.integers(0, 2**16)),
    )
