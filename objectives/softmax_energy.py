"""Log-sum-exp energies: what a softmax layer descends exactly. All are held negated, so that they are minimised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from .base import Objective, lift, project
from .coding_rate import head_bound, sum_heads, weigh
from .errors import check_basis, check_heads, check_matrix, check_positive, check_single, check_tokens, check_weights
from .representatives import _check_count, extraction_bound

__all__ = ["CrossAttentionEnergy", "RepresentativeEnergy", "SelfAttentionEnergy", "SymmetricEnergy"]

_CHUNK = 1 << 21
"""Scores held at once: rows of queries are taken in chunks so that no queries × keys matrix is stored whole."""


@final
@dataclass(frozen=True, eq=False)
class CrossAttentionEnergy(Objective):
    r"""The Hopfield energy of queries against fixed keys: its descent step is cross-attention.

    Minimises
        $E(Q) = -\sum_c \frac{1}{s} \log \sum_j \exp(s\, k_j^\top q_c) \; [+ \frac{1}{2} \Vert Q \Vert_F^2]$
    In code
        ``−Σ_c lse_s(x_c keysᵀ)``, plus ``½‖x‖²`` if ``quadratic``
    Gradient
        ``−softmax(s x keysᵀ) keys`` (plus x). With the quadratic term a step of size 1 is attention itself.
        L = s·min(½‖K − 1k̄ᵀ‖₂², max_j ‖k_j − k̄‖², max_j ‖k_j‖²) from the covariance of the attended keys; max(1, L) with the
        quadratic term, since the two Hessians have opposite signs.
    Shapes
        x, the queries, ``(..., queries, dim)``; keys ``(..., tokens, dim)``
    Parameters
        scale: s > 0, published layers take dim^(−1/2).
    Source
        modern Hopfield networks, arXiv 2008.02217, eq. 1 to 3.

    Raises
    ------
        ValueError for s ≤ 0, shapes that do not fit, non-finite entries.
    Claims
        softmax_energy.cross.gradient, softmax_energy.cross.attention, softmax_energy.smoothness
    """

    keys: Tensor
    scale: float | Tensor
    quadratic: bool = False

    def __post_init__(self) -> None:
        check_positive("CrossAttentionEnergy", "scale", self.scale)
        check_matrix("CrossAttentionEnergy", "keys", self.keys, "(..., tokens, dim)")

    def value(self, x: Tensor) -> Tensor:
        """E(x)."""
        check_tokens("CrossAttentionEnergy", x, self.keys.shape[-1], expects="keys", like=self.keys)
        energy = -log_sum_exp(x, self.keys, self.scale)
        return energy + 0.5 * x.square().sum((-2, -1)) if self.quadratic else energy

    def gradient(self, x: Tensor) -> Tensor:
        """−softmax(s x keysᵀ) keys, plus x with the quadratic term."""
        check_tokens("CrossAttentionEnergy", x, self.keys.shape[-1], expects="keys", like=self.keys)
        read = -attend(x, self.keys, self.scale)
        return x + read if self.quadratic else read

    def lipschitz(self, x: Tensor) -> Tensor:
        """An upper bound from the spread of the keys, everywhere."""
        bound = spread(self.keys, self.scale)
        return bound.clamp(min=1.0) if self.quadratic else bound


@final
@dataclass(frozen=True, eq=False)
class SelfAttentionEnergy(Objective):
    r"""The energy that softmax MSSA descends exactly, with its keys held constant; its negative is the papers' T.

    Minimises
        $E(Z) = -\sum_k \sum_i \frac{1}{s} \log \sum_j \exp(s\, \bar{w}_{k,j}^\top U_k^\top z_i)$, keys $\bar{w}$ constant
    In code
        ``−Σ_k w_k Σ_i lse_s(W_k[i] keys_kᵀ)``, W_k = x U_k
    Gradient
        ``−Σ_k w_k softmax(s W_k keys_kᵀ) keys_k U_kᵀ``, so ``z − ∇E(z)`` with keys = W_k is ``z + MSSA(z)``.
        E is concave: a descent step lowers it however long it is, a step the other way raises it only while it is short.
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; keys ``(..., heads, tokens', head_dim)``
    Source
        CRATE, arXiv 2306.01129, eq. 14 read as an energy; Energy Transformer, arXiv 2302.07253, with keys frozen.

    Raises
    ------
        ValueError for s ≤ 0, bases that are not orthonormal, shapes that do not fit, non-finite entries.
    Claims
        softmax_energy.self.gradient, softmax_energy.smoothness, mssa.step.softmax
    """

    U: Tensor
    keys: Tensor
    scale: float | Tensor
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        owner = "SelfAttentionEnergy"
        check_positive(owner, "scale", self.scale)
        check_basis(owner, self.U, self.orthonormal, self.orthonormal_tolerance)
        check_matrix(owner, "keys", self.keys, "(..., heads, tokens, head_dim)")
        check_heads(owner, "keys", self.keys, self.U, self.U.shape[-1])
        check_weights(owner, self.weights, self.U)

    def value(self, x: Tensor) -> Tensor:
        """E(x)."""
        check_tokens("SelfAttentionEnergy", x, self.U.shape[-2])
        return -sum_heads(log_sum_exp(project(x, self.U), self.keys, self.scale), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """−Σ_k softmax(s W_k keys_kᵀ) keys_k U_kᵀ."""
        check_tokens("SelfAttentionEnergy", x, self.U.shape[-2])
        return -lift(weigh(attend(project(x, self.U), self.keys, self.scale), self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """An upper bound from the spread of the keys, everywhere."""
        per_head = spread(self.keys, self.scale)
        per_head = per_head if self.weights is None else per_head * self.weights.detach().abs()
        return per_head.amax(-1) * head_bound(self.U, None, self.orthonormal)


@final
@dataclass(frozen=True, eq=False)
class SymmetricEnergy(Objective):
    r"""The self-attention energy with nothing frozen, halved: its step is a symmetric attention.

    Minimises
        $E(Z) = -\frac{1}{2} \sum_k \sum_i \frac{1}{s} \log \sum_j \exp(s\, w_{k,i}^\top w_{k,j})$
    In code
        ``−½ Σ_k w_k Σ_i lse_s(W_k[i] W_kᵀ)``, W_k = x U_k
    Gradient
        ``−½ Σ_k w_k (P_k + P_kᵀ) W_k U_kᵀ``, P_k = softmax(s W_k W_kᵀ)
    Smoothness
        at x only: ``s (max_j ‖w_j − w̄‖² + max_j Σ_i P_ij ‖w_i‖²) + ‖P‖₂``, from
        d²E[V] = −½ Σ_i (s Var_{P_i}(v_i·w_j + w_i·v_j) + 2 Σ_j P_ij v_i·v_j); it grows with the tokens
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``
    Source
        Energy Transformer, arXiv 2302.07253, eq. 2, with one matrix for queries and keys.

    Raises
    ------
        as SelfAttentionEnergy
    Claims
        softmax_energy.symmetric.gradient, softmax_energy.tied_attention
    """

    lipschitz_is_global: ClassVar[bool] = False

    U: Tensor
    scale: float | Tensor
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_positive("SymmetricEnergy", "scale", self.scale)
        check_basis("SymmetricEnergy", self.U, self.orthonormal, self.orthonormal_tolerance)
        check_weights("SymmetricEnergy", self.weights, self.U)

    def value(self, x: Tensor) -> Tensor:
        """E(x)."""
        check_tokens("SymmetricEnergy", x, self.U.shape[-2])
        w = project(x, self.U)
        return -0.5 * sum_heads(log_sum_exp(w, w, self.scale), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """−½ Σ_k (P_k + P_kᵀ) W_k U_kᵀ."""
        check_tokens("SymmetricEnergy", x, self.U.shape[-2])
        w = project(x, self.U)
        rows, columns = [], torch.zeros_like(w)
        for chunk in _chunks(w, w):
            P = torch.softmax(self.scale * (chunk @ w.mT), dim=-1)
            rows.append(P @ w)
            columns = columns + P.mT @ chunk
        return lift(weigh(-0.5 * (torch.cat(rows, -2) + columns), self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """A bound for the Hessian at x, and at x only."""
        w = project(x, self.U).detach()
        lengths = w.square().sum(-1)
        received, incoming = torch.zeros_like(lengths), torch.zeros_like(lengths)
        start = 0
        for chunk in _chunks(w, w):
            P = torch.softmax(self.scale * (chunk @ w.mT), dim=-1)
            received = received + (P.mT @ lengths[..., start : start + chunk.shape[-2], None])[..., 0]
            incoming = incoming + P.sum(-2)
            start += chunk.shape[-2]
        radius = (w - w.mean(-2, keepdim=True)).square().sum(-1).amax(-1)
        per_head = self.scale * (radius + received.amax(-1)) + incoming.amax(-1).sqrt()
        per_head = per_head if self.weights is None else per_head * self.weights.detach().abs()
        return per_head.amax(-1) * head_bound(self.U, None, self.orthonormal)


@final
@dataclass(frozen=True, eq=False)
class RepresentativeEnergy(Objective):
    r"""The energy that CBSA's softmax form descends exactly, extraction weights and keys held constant.

    Minimises
        $E(Z) = -\sum_k \sum_a \frac{1}{s} \log \sum_b \exp(s\, \bar{q}_{k,b}^\top (U_k^\top Z A_k)_a)$
    In code
        ``−Σ_k w_k Σ_a lse_s((P_k x U_k)[a] keys_kᵀ)``, P_k and keys_k constant
    Gradient
        ``−Σ_k w_k P_kᵀ softmax(s Q_k keys_kᵀ) keys_k U_kᵀ``, Q_k = P_k x U_k; concave
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; P ``(..., heads, m, tokens)``; keys
        ``(..., heads, m', head_dim)``
    Source
        CBSA, arXiv 2509.16875, eq. 8, read as an energy.

    Raises
    ------
        as SelfAttentionEnergy
    Claims
        softmax_energy.representatives.gradient, softmax_energy.smoothness, cbsa.step.softmax
    """

    U: Tensor
    P: Tensor
    keys: Tensor
    scale: float | Tensor
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        owner = "RepresentativeEnergy"
        check_positive(owner, "scale", self.scale)
        check_basis(owner, self.U, self.orthonormal, self.orthonormal_tolerance)
        check_matrix(owner, "P", self.P, "(..., heads, m, tokens)")
        check_heads(owner, "P", self.P, self.U)
        check_matrix(owner, "keys", self.keys, "(..., heads, m, head_dim)")
        check_heads(owner, "keys", self.keys, self.U, self.U.shape[-1])
        check_weights(owner, self.weights, self.U)

    def _representatives(self, x: Tensor) -> Tensor:
        check_tokens("RepresentativeEnergy", x, self.U.shape[-2])
        _check_count("RepresentativeEnergy", x, self.P)
        return self.P @ project(x, self.U)

    def value(self, x: Tensor) -> Tensor:
        """E(x)."""
        return -sum_heads(log_sum_exp(self._representatives(x), self.keys, self.scale), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """−Σ_k P_kᵀ softmax(s Q_k keys_kᵀ) keys_k U_kᵀ."""
        read = attend(self._representatives(x), self.keys, self.scale)
        return -lift(weigh(self.P.mT @ read, self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """An upper bound from the spread of the keys and the norm of P, everywhere."""
        per_head = spread(self.keys, self.scale)
        per_head = per_head if self.weights is None else per_head * self.weights.detach().abs()
        return per_head.amax(-1) * extraction_bound(self.P, self.U, None, self.orthonormal)


def log_sum_exp(queries: Tensor, keys: Tensor, scale: float | Tensor) -> Tensor:
    """``Σ_i (1/s) log Σ_j exp(s q_i·k_j)``, rows of queries in chunks; returns ``(...)``."""
    pieces = [torch.logsumexp(scale * (chunk @ keys.mT), dim=-1).sum(-1) / scale for chunk in _chunks(queries, keys)]
    return torch.stack(pieces).sum(0)


def attend(queries: Tensor, keys: Tensor, scale: float | Tensor) -> Tensor:
    """``softmax(s q kᵀ) k``, rows of queries in chunks."""
    pieces = [torch.softmax(scale * (chunk @ keys.mT), dim=-1) @ keys for chunk in _chunks(queries, keys)]
    return torch.cat(pieces, dim=-2)


def spread(keys: Tensor, scale: float | Tensor) -> Tensor:
    """A bound for the Hessian of ``lse_s(K q)`` in q: s times the largest covariance of attended keys.

    The Hessian is s Kᵀ(diag a − a aᵀ)K, a covariance of the keys under a: at most the squared radius of the keys
    about their mean or about zero, and at most half the squared spectral norm of the centred keys, since
    ‖diag a − a aᵀ‖ ≤ ½.
    """
    check_single("the smoothness constant of keys or memories", "x", keys)
    keys = keys.detach()
    centred = keys - keys.mean(-2, keepdim=True)
    radius = torch.minimum(centred.square().sum(-1).amax(-1), keys.square().sum(-1).amax(-1))
    gram = centred.mT @ centred if keys.shape[-2] >= keys.shape[-1] else centred @ centred.mT
    return scale * torch.minimum(radius, 0.5 * torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0))


def _chunks(queries: Tensor, keys: Tensor) -> Iterator[Tensor]:
    leading = math.prod(torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2]))
    yield from queries.split(max(1, _CHUNK // max(1, leading * keys.shape[-2])), dim=-2)
