"""Certificates: a claim's identity on one input in ball arithmetic, true to within 1e-30, rigorously.

Every number is an interval that holds the exact one (Arb, by python-flint). Both sides of the identity are enclosed on
the same tokens: the layer's formula, and the step along the gradient of the paper's objective, differentiated by dual
numbers over balls, entry by entry. If the two enclosures are within 10^−digits of each other everywhere, so are the
exact values. The layer itself, in float64, is held against the ball as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import CodingRate
from unrolling import CBSA, ISTA, MSSA, TSSA, LearnedQueries

from . import paper
from .inputs import TokenInput

__all__ = ["CERTIFIED", "Certificate", "CertificateError", "certify"]

HEADS, WIDTH, EPSILON, LARGEST_PRECISION = 2, 6, 0.5, 4096


class CertificateError(ValueError):
    """No certificate can be made: the extra is not installed, or the claim has none."""


@dataclass(frozen=True)
class Certificate:
    """What was enclosed: ``|left − right| ≤ bound`` in every entry, and the float64 layer within ``rounding`` of it.

    digits: asked for. precision: bits that sufficed. holds: whether the bound is below 10^−digits; if it is not, either
    the sides differ, or the largest precision did not tell.
    """

    claim: str
    tokens: tuple[int, int]
    digits: int
    precision: int
    bound: float
    rounding: float
    holds: bool

    def __str__(self) -> str:
        size = f"{self.tokens[0]} tokens of {self.tokens[1]} features"
        if not self.holds:
            return f"{self.claim}: NOT certified on {size}: the two sides differ by up to {self.bound:.2g}"
        return (
            f"{self.claim}: true to within 1e-{self.digits} on {size}, rigorously ({self.precision} bits);"
            f" the layer in float64 is within {self.rounding:.1e}"
        )


class Dual:
    """A ball with its derivative: forward differentiation of one entry."""

    __slots__ = ("d", "v")

    def __init__(self, v: Any, d: Any) -> None:
        self.v, self.d = v, d

    @staticmethod
    def _of(other: Any) -> Dual:
        return other if isinstance(other, Dual) else Dual(other, 0)

    def __add__(self, other: Any) -> Dual:
        other = self._of(other)
        return Dual(self.v + other.v, self.d + other.d)

    __radd__ = __add__

    def __neg__(self) -> Dual:
        return Dual(-self.v, -self.d)

    def __sub__(self, other: Any) -> Dual:
        return self + (-self._of(other))

    def __rsub__(self, other: Any) -> Dual:
        return self._of(other) + (-self)

    def __mul__(self, other: Any) -> Dual:
        other = self._of(other)
        return Dual(self.v * other.v, self.d * other.v + self.v * other.d)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Dual:
        other = self._of(other)
        quotient = self.v / other.v
        return Dual(quotient, (self.d - quotient * other.d) / other.v)

    def __rtruediv__(self, other: Any) -> Dual:
        return self._of(other) / self

    def __pow__(self, power: int) -> Dual:
        result = self
        for _ in range(power - 1):
            result = result * self
        return result

    def log(self) -> Dual:
        """The natural logarithm."""
        return Dual(self.v.log(), self.d / self.v)

    def exp(self) -> Dual:
        """``e`` to it."""
        power = self.v.exp()
        return Dual(power, self.d * power)


Balls = NDArray[Any]


@dataclass(frozen=True)
class _Setting:
    """One input: tokens in rows, float64, and everything else drawn beside it."""

    x: Tensor
    U: Tensor
    queries: Tensor
    dictionary: Tensor

    def balls(self, tensor: Tensor | float) -> Any:
        """The same numbers as balls, exactly."""
        import flint

        array = np.asarray(tensor, dtype=np.float64)
        return np.vectorize(lambda value: flint.arb(float(value)), otypes=[object])(array)

    def ball(self, value: float) -> Any:
        import flint

        return flint.arb(value)


def _setting(source: TokenInput | None, count: int, seed: int) -> _Setting:
    rng = np.random.default_rng(seed)
    if source is None:
        tokens = rng.standard_normal((count, WIDTH))
    else:
        keep = np.linspace(0, len(source.tokens) - 1, min(count, len(source.tokens))).round().astype(int)
        tokens = source.tokens[keep][:, :WIDTH]
    dim = tokens.shape[1]
    heads = HEADS if dim % HEADS == 0 else 1
    square = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    U = np.ascontiguousarray(square.reshape(dim, heads, dim // heads).transpose(1, 0, 2))
    drawn = (rng.standard_normal((heads, 3, dim // heads)), rng.standard_normal((dim, dim)) / (2 * dim**0.5))
    return _Setting(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (tokens, U, *drawn)))


def _gradient(value: Callable[[Balls], Any], Z: Balls) -> Balls:
    """The gradient of ``value`` at the columns Z, one dual evaluation an entry."""
    out = np.empty(Z.shape, dtype=object)
    for i in range(Z.shape[0]):
        for j in range(Z.shape[1]):
            seeded = np.array([[Dual(v, int((a, b) == (i, j))) for b, v in enumerate(row)] for a, row in enumerate(Z)])
            out[i, j] = value(seeded).d
    return out


def _contract(W: Balls, beta: Any) -> Balls:
    """β W (I + βWᵀW)⁻¹ for rows W, by Arb's certified solver."""
    import flint

    system = np.array([[int(a == b) for b in range(W.shape[1])] for a in range(W.shape[1])]) + beta * (W.T @ W)
    solved = flint.arb_mat(system.tolist()).solve(flint.arb_mat((beta * W.T).tolist()))
    return np.array([[solved[a, b] for b in range(W.shape[0])] for a in range(W.shape[1])], dtype=object).T


def _softmax_rows(S: Balls) -> Balls:
    return paper.softmax_columns(S.T).T


Sides = tuple[Balls, Balls, Tensor]
"""Left and right, in rows of balls, and what the library computes in float64."""


def _coding_rate(s: _Setting) -> Sides:
    Z, eps = s.balls(s.x), s.ball(EPSILON)
    beta = Z.shape[1] / (Z.shape[0] * eps**2)
    right = _gradient(lambda M: paper.coding_rate(M, eps), Z.T).T
    return _contract(Z, beta), right, CodingRate(EPSILON).gradient(s.x)


def _mssa_exact(s: _Setting) -> Sides:
    Z, U, eps, kappa = s.balls(s.x), s.balls(s.U), s.ball(EPSILON), s.ball(0.25)
    beta = U.shape[2] / (Z.shape[0] * eps**2)
    left = Z - kappa * sum(_contract(Z @ Uk, beta) @ Uk.T for Uk in U)
    right = Z - kappa * _gradient(lambda M: paper.crate_eq8(M, list(U), eps), Z.T).T
    return left, right, MSSA(Z.shape[1], len(U), U=s.U, epsilon=EPSILON, step_size=0.25)(s.x)


def _mssa_softmax(s: _Setting) -> Sides:
    Z, U, scale, kappa = s.balls(s.x), s.balls(s.U), s.ball(0.5), s.ball(0.25)
    W = [Z @ Uk for Uk in U]
    left = Z + kappa * sum(_softmax_rows(scale * (w @ w.T)) @ w @ Uk.T for w, Uk in zip(W, U, strict=True))
    keys = [w.T for w in W]
    right = Z - kappa * _gradient(lambda M: paper.self_attention_energy(M, list(U), keys, scale), Z.T).T
    layer = MSSA(Z.shape[1], len(U), U=s.U, form="softmax", scale=0.5, step_size=0.25)
    return left, right, layer(s.x)


def _cbsa_layer(s: _Setting, form: str) -> CBSA:
    queries = LearnedQueries(s.queries.shape[1], len(s.U), s.U.shape[2]).double()
    with torch.no_grad():
        queries.queries.copy_(s.queries)
    return CBSA(
        s.x.shape[1], len(s.U), U=s.U, form=form, representatives=queries, epsilon=EPSILON, scale=0.5, step_size=0.25
    )


def _cbsa_parts(s: _Setting) -> tuple[Balls, Balls, list[Balls], list[Balls]]:
    Z, U, q, scale = s.balls(s.x), s.balls(s.U), s.balls(s.queries), s.ball(0.5)
    P = [_softmax_rows(scale * (qk @ (Z @ Uk).T)) for qk, Uk in zip(q, U, strict=True)]
    return Z, U, P, [Pk @ Z @ Uk for Pk, Uk in zip(P, U, strict=True)]


def _cbsa_exact(s: _Setting) -> Sides:
    Z, U, P, Q = _cbsa_parts(s)
    eps, kappa = s.ball(EPSILON), s.ball(0.25)
    beta = U.shape[2] / (Q[0].shape[0] * eps**2)
    left = Z - kappa * sum(Pk.T @ _contract(Qk, beta) @ Uk.T for Pk, Qk, Uk in zip(P, Q, U, strict=True))
    right = Z - kappa * _gradient(lambda M: paper.cbsa_eq4(M, list(U), [Pk.T for Pk in P], eps), Z.T).T
    return left, right, _cbsa_layer(s, "exact")(s.x)


def _cbsa_softmax(s: _Setting) -> Sides:
    Z, U, P, Q = _cbsa_parts(s)
    scale, kappa = s.ball(0.5), s.ball(0.25)
    moved = [Pk.T @ (_softmax_rows(scale * (Qk @ Qk.T)) @ Qk) @ Uk.T for Pk, Qk, Uk in zip(P, Q, U, strict=True)]
    keys = [Qk.T for Qk in Q]
    energy = _gradient(lambda M: paper.representative_energy(M, list(U), [Pk.T for Pk in P], keys, scale), Z.T)
    return Z + kappa * sum(moved), Z - kappa * energy.T, _cbsa_layer(s, "softmax")(s.x)


def _tssa(s: _Setting) -> Sides:
    layer = TSSA(s.x.shape[1], len(s.U), U=s.U, epsilon=EPSILON, step_size=0.25)
    Z, U, eps, kappa = s.balls(s.x), s.balls(s.U), s.ball(EPSILON), s.ball(0.25)
    N, d = Z.shape
    Pi = s.balls(layer.memberships(s.x).detach())  # any memberships will do: they are frozen on both sides
    left = Z
    for k, Uk in enumerate(U):
        W, n = Z @ Uk, Pi[:, k].sum()
        shrunk = W / (1 + d / (n * eps**2) * (Pi[:, k] @ W**2))
        left = left - kappa * d / (N * eps**2) * (Pi[:, k : k + 1] * shrunk) @ Uk.T
    right = Z - kappa * _gradient(lambda M: paper.tost_rate(M, Pi, list(U), eps), Z.T).T
    return left, right, layer(s.x)


def _ista(s: _Setting) -> Sides:
    Z, D, eta, lam = s.balls(s.x), s.balls(s.dictionary), s.ball(0.125), s.ball(0.25)
    moved = Z + eta * ((Z - Z @ D.T) @ D) - eta * lam
    left = np.vectorize(lambda v: v if v > 0 else 0 * v if v < 0 else v.max(0), otypes=[object])(moved)
    gradient = _gradient(lambda A: paper.reconstruction_error(A, D, Z.T), Z.T).T
    below = Z - eta * gradient
    right = np.vectorize(
        lambda v: v - eta * lam if v > eta * lam else 0 * v if v < eta * lam else (v - eta * lam).max(0)
    )(below)
    return left, right, ISTA(Z.shape[1], D=s.dictionary, step_size=0.125, weight=0.25)(s.x)


CERTIFIED: dict[str, Callable[[_Setting], Sides]] = {
    "coding_rate.gradient": _coding_rate,
    "mssa.step.exact": _mssa_exact,
    "mssa.step.softmax": _mssa_softmax,
    "cbsa.step.exact": _cbsa_exact,
    "cbsa.step.softmax": _cbsa_softmax,
    "tssa.step": _tssa,
    "ista.step": _ista,
}
"""The claims that can be certified."""


def certify(
    claim: str, source: TokenInput | None = None, *, count: int = 5, digits: int = 30, seed: int = 0
) -> Certificate:
    """Enclose both sides of a claim's identity on ``count`` tokens of the source (or drawn), in balls.

    The precision doubles until the difference is enclosed within 10^−digits, up to 4096 bits.

    Raises
    ------
        CertificateError if python-flint is not installed, or the claim has no certificate.
    """
    try:
        import flint
    except ImportError:
        raise CertificateError(
            "certificates need python-flint: pip install 'attention-as-descent[certificate]'."
        ) from None
    if claim not in CERTIFIED:
        raise CertificateError(f"{claim} has no certificate; these have: {', '.join(CERTIFIED)}.")
    setting = _setting(source, count, seed)
    before, precision = flint.ctx.prec, 128
    try:
        while True:
            flint.ctx.prec = precision
            left, right, computed = CERTIFIED[claim](setting)
            bound = _largest(left - right)
            holds = bound <= 10.0**-digits
            if holds or precision >= LARGEST_PRECISION or _apart(left - right):
                rounding = _largest(setting.balls(computed.detach()) - left)
                size = (setting.x.shape[0], setting.x.shape[1])
                return Certificate(claim, size, digits, precision, bound, rounding, holds)
            precision *= 2
    finally:
        flint.ctx.prec = before


def _largest(balls: Balls) -> float:
    """An upper bound for the largest absolute value, rounded up to a float."""
    return float(np.nextafter(max(float(entry.abs_upper()) for entry in balls.flat), np.inf))


def _apart(balls: Balls) -> bool:
    """Whether some enclosure excludes zero: no precision will make the sides equal."""
    return any(not entry.contains(0) for entry in balls.flat)
