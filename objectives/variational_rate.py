"""The variational form of the compression rate that ToST descends: channels coded one by one, tokens shared by heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Objective, lift, project
from .coding_rate import sum_heads, weigh
from .errors import (
    check_basis,
    check_epsilon,
    check_matrix,
    check_member_count,
    check_memberships,
    check_tokens,
    check_weights,
)
from .rate_reduction import member_shares

__all__ = ["PrefixVariationalRate", "SoftVariationalRate", "VariationalRate", "head_memberships"]


@final
@dataclass(frozen=True, eq=False)
class VariationalRate(Objective):
    r"""The variational compression rate: second moments along fixed axes of every head, memberships held constant.

    Minimises
        $R_{var}(Z, \Pi \mid U) = \sum_k \frac{n_k}{2N} \sum_c \log(1 + \frac{d}{n_k \epsilon^2} \sum_j \pi_{jk}
        (u_{k,c}^\top z_j)^2)$
    In code
        ``Σ_k w_k (n_k/2N) Σ_c log(1 + (d/ε²) Σ_j (Π_jk/n_k) W_k[j, c]²)``, W_k = x U_k; d is the width of a token, whatever
        the width p of U_k. For complete U_k (p = d) it bounds the compression R_c(x | Π) of :class:`RateReduction` from
        above (Hadamard), with equality where every U_k diagonalises xᵀdiag(π_k)x; for p < d it may lie below
    Gradient
        ``Σ_k w_k (d/(Nε²)) diag(π_k) W_k diag(1/(1 + (d/(n_kε²)) s_k)) U_kᵀ``, s_k = Σ_j Π_jk W_k[j]². Linear in tokens
    Smoothness
        L = (d/(Nε²)) min(max_k |w_k| ‖U_k‖₂², max_ik |w_k| Π_ik ‖[U_1 … U_K]‖₂²), from −⅛H ⪯ Hessian ⪯ H with
        H = (d/(Nε²)) Σ_k w_k diag(π_k) ⊗ U_kU_kᵀ (its value at x = 0): attained for complete U_k, and for
        mutually orthogonal ones
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``, each with orthonormal columns, not mutually orthogonal
        unless they are to be; memberships Π ``(..., tokens, heads)``; weights w ``(..., heads)`` or None for ones
    Source
        ToST, arXiv 2412.17810, section 3. The weights and the constant L are ours.

    Raises
    ------
        ValueError for ε ≤ 0, columns that are not orthonormal, memberships off the simplex, sizes that do not fit.
    Claims
        variational_rate.value, variational_rate.gradient, variational_rate.bound,
        variational_rate.smoothness, tssa.step, tssa.channel
    """

    U: Tensor
    memberships: Tensor
    epsilon: float | Tensor = 0.5
    weights: Tensor | None = None
    orthonormal: bool = True

    def __post_init__(self) -> None:
        _check("VariationalRate", self.U, self.epsilon, self.orthonormal)
        check_memberships("VariationalRate", self.memberships, classes=self.U.shape[0])
        check_weights("VariationalRate", self.weights, self.U)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W_k, n_k/N ``(..., heads)`` and ``(d/ε²) s_k/n_k`` ``(..., heads, head_dim)``."""
        check_tokens("VariationalRate", x, self.U.shape[-2])
        check_member_count("VariationalRate", x, self.memberships)
        w = project(x, self.U)
        counts, shares = member_shares(self.memberships)
        second_moments = (shares.mT.unsqueeze(-1) * w.square()).sum(-2)
        return w, counts / x.shape[-2], x.shape[-1] / self.epsilon**2 * second_moments

    def value(self, x: Tensor) -> Tensor:
        """R_var(x) in nats."""
        _, share, moments = self._statistics(x)
        return sum_heads(0.5 * share * torch.log1p(moments).sum(-1), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Σ_k (d/(Nε²)) diag(π_k) W_k diag(1/(1 + (d/(n_kε²)) s_k)) U_kᵀ."""
        w, _, moments = self._statistics(x)
        alpha = x.shape[-1] / (x.shape[-2] * self.epsilon**2)
        shrunk = alpha * self.memberships.detach().mT.unsqueeze(-1) * w / (1.0 + moments.unsqueeze(-2))
        return lift(weigh(shrunk, self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L, everywhere."""
        alpha = x.shape[-1] / (x.shape[-2] * self.epsilon**2)
        return alpha * _curvature(self.U, torch.ones_like(self.memberships), self.memberships, self.weights)


@final
@dataclass(frozen=True, eq=False)
class SoftVariationalRate(Objective):
    r"""The variational rate with nothing frozen: the memberships are a softmax over heads of the tokens themselves.

    Minimises
        $R_{var}(Z, \Pi(Z) \mid U)$, $\pi_{ik} = \mathrm{softmax}_k(\tau_k \Vert U_k^\top z_i \Vert^2)$, $\tau_k = 1/(2\eta)$
    In code
        as :class:`VariationalRate` with ``Π_ik = softmax_k(τ_k ‖W_k[i]‖²)``; ``frozen_at(x)`` holds Π at x
    Gradient
        the frozen one plus ``Σ_k 2 τ_k diag(π_k (g_k − Σ_l π_l g_l)) W_k U_kᵀ``,
        g_ik = ∂R_var/∂Π_ik = (1/2N) Σ_c [log(1 + t_kc) + ((d/ε²) W_k[i, c]² − t_kc)/(1 + t_kc)], t = (d/ε²) s/n.
        No smoothness constant is known: the squared tokens enter the softmax
    Shapes
        x ``(..., tokens, dim)``; U ``(heads, dim, head_dim)``; temperature τ a number or ``(heads,)``
    Source
        ToST, arXiv 2412.17810, section 3, without freezing Π; the derivation is ours

    Raises
    ------
        ValueError as VariationalRate.
    Claims
        variational_rate.full_gradient, tssa.freezing
    """

    U: Tensor
    temperature: float | Tensor = 1.0
    epsilon: float | Tensor = 0.5
    orthonormal: bool = True

    def __post_init__(self) -> None:
        _check("SoftVariationalRate", self.U, self.epsilon, self.orthonormal)
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, (int, float, Tensor)):
            raise TypeError(
                f"SoftVariationalRate: temperature must be a number or a tensor, but is {self.temperature!r}."
            )
        if isinstance(self.temperature, int) and abs(self.temperature) >= 2**63:
            raise ValueError(f"SoftVariationalRate: temperature must fit into 64 bits, but is {self.temperature}.")
        tau = torch.as_tensor(self.temperature)
        if tau.ndim > 1 or (tau.ndim and len(tau) != self.U.shape[0]) or not bool(torch.isfinite(tau.detach()).all()):
            raise ValueError(
                f"SoftVariationalRate: temperature must be a finite number or ({self.U.shape[0]},), one for each head, but"
                f" is {self.temperature}."
            )

    def frozen_at(self, x: Tensor) -> VariationalRate:
        """The same objective with Π held at its value at ``x``."""
        check_tokens("SoftVariationalRate", x, self.U.shape[-2])
        Pi = head_memberships(x, self.U, self.temperature).detach()
        return VariationalRate(self.U, Pi, self.epsilon, None, self.orthonormal)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W, Π, n/N and t, all differentiable."""
        check_tokens("SoftVariationalRate", x, self.U.shape[-2])
        w, Pi = project(x, self.U), head_memberships(x, self.U, self.temperature)
        counts = Pi.sum(-2)
        shares = Pi / counts.clamp(min=torch.finfo(Pi.dtype).tiny).unsqueeze(-2)
        moments = (shares.mT.unsqueeze(-1) * w.square()).sum(-2)
        return w, Pi, counts / x.shape[-2], x.shape[-1] / self.epsilon**2 * moments

    def value(self, x: Tensor) -> Tensor:
        """R_var(x, Π(x)) in nats."""
        _, _, share, t = self._parts(x)
        return (0.5 * share * torch.log1p(t).sum(-1)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """The frozen part plus the part through Π."""
        w, Pi, _, t = self._parts(x)
        N, rate = x.shape[-2], x.shape[-1] / self.epsilon**2
        level, gate = torch.log1p(t).sum(-1), 1.0 / (1.0 + t)
        moved = ((rate * w.square() - t.unsqueeze(-2)) * gate.unsqueeze(-2)).sum(-1)  # (..., heads, tokens)
        g = ((level.unsqueeze(-1) + moved) / (2 * N)).mT
        through = Pi * (g - (Pi * g).sum(-1, keepdim=True)) * 2.0 * self.temperature
        frozen = rate / N * Pi.mT.unsqueeze(-1) * gate.unsqueeze(-2)
        return lift((frozen + through.mT.unsqueeze(-1)) * w, self.U)

    def lipschitz(self, x: Tensor) -> None:
        """None: no constant is known."""
        return None


@final
@dataclass(frozen=True, eq=False)
class PrefixVariationalRate(Objective):
    r"""The variational rate of every prefix, each as a function of its last token alone: what a causal layer descends.

    Minimises
        $\sum_i \sum_k \frac{n_{ik}}{2i} \sum_c \log(1 + \frac{d}{n_{ik} \epsilon^2} (\bar{s}_{i-1,kc} + \pi_{ik}
        (u_{k,c}^\top z_i)^2))$, $n_{ik} = \sum_{j \leq i} \pi_{jk}$, the past $\bar{s}_{i-1,kc} = \sum_{j<i} \pi_{jk}
        (u_{k,c}^\top \bar{z}_j)^2$ constant
    In code
        ``Σ_i Σ_k w_k (n_ik/2i) Σ_c log(1 + (d/(n_ikε²)) (past[k, i, c] + Π_ik W_k[i, c]²))``; ``at(x, …)`` takes the past
        from x. With the past live there is none: the causal step's Jacobian is not symmetric (tssa.causal.potential)
    Gradient
        at token i ``Σ_k w_k (d/(iε²)) Π_ik W_k[i] diag(1/(1 + (d/(n_ikε²)) s_ik)) U_kᵀ``, s_ik = past + Π_ik W_k[i]²
    Smoothness
        L = min(max_ik (d/(iε²)) |w_k| ‖U_k‖₂², max_ik (d/(iε²)) |w_k| Π_ik ‖[U_1 … U_K]‖₂²), attained at zero past
    Shapes
        as :class:`VariationalRate`; past ``(..., heads, tokens, head_dim)``
    Source
        ToST, arXiv 2412.17810, its causal form for language; the objective is ours

    Raises
    ------
        ValueError as VariationalRate, and for a past that is negative or of other sizes.
    Claims
        variational_rate.prefixes, tssa.causal.step, tssa.causal.potential
    """

    U: Tensor
    memberships: Tensor
    past: Tensor
    epsilon: float | Tensor = 0.5
    weights: Tensor | None = None
    orthonormal: bool = True

    def __post_init__(self) -> None:
        owner = "PrefixVariationalRate"
        _check(owner, self.U, self.epsilon, self.orthonormal)
        check_memberships(owner, self.memberships, classes=self.U.shape[0])
        check_weights(owner, self.weights, self.U)
        check_matrix(owner, "past", self.past, "(..., heads, tokens, head_dim)")
        heads, _, head_dim = self.U.shape
        wanted = (heads, self.memberships.shape[-2], head_dim)
        if tuple(self.past.shape[-3:]) != wanted or bool((self.past < 0).any()):
            raise ValueError(
                f"{owner}: past must be (..., heads, tokens, head_dim) = (..., {', '.join(map(str, wanted))}) and not"
                f" negative, but has shape {tuple(self.past.shape)}."
            )

    @classmethod
    def at(
        cls,
        x: Tensor,
        U: Tensor,
        memberships: Tensor,
        epsilon: float | Tensor = 0.5,
        weights: Tensor | None = None,
        orthonormal: bool = True,
    ) -> PrefixVariationalRate:
        """The objective whose past is that of ``x``."""
        check_tokens("PrefixVariationalRate", x, U.shape[-2])
        check_member_count("PrefixVariationalRate", x, memberships)
        moments = memberships.mT.unsqueeze(-1) * project(x, U).square()
        past = torch.cat([torch.zeros_like(moments[..., :1, :]), moments[..., :-1, :].cumsum(-2)], dim=-2)
        return cls(U, memberships, past.detach(), epsilon, weights, orthonormal)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W, n_ik and d/(iε²), both with a last axis of one, and ``(d/(n_ikε²)) s_ik``."""
        check_tokens("PrefixVariationalRate", x, self.U.shape[-2])
        check_member_count("PrefixVariationalRate", x, self.memberships)
        w, Pi = project(x, self.U), self.memberships.detach().mT.unsqueeze(-1)
        counts = Pi.cumsum(-2)
        moments = (self.past + Pi * w.square()) / counts.clamp(min=torch.finfo(Pi.dtype).tiny)
        return w, counts, self._alphas(x), x.shape[-1] / self.epsilon**2 * moments

    def _alphas(self, x: Tensor) -> Tensor:
        lengths = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype, device=x.device)
        return (x.shape[-1] / (lengths * self.epsilon**2)).unsqueeze(-1)

    def value(self, x: Tensor) -> Tensor:
        """The sum over prefixes in nats."""
        _, counts, alphas, t = self._terms(x)
        share = counts * alphas * (self.epsilon**2 / x.shape[-1])
        return sum_heads((0.5 * share * torch.log1p(t)).sum((-2, -1)), self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Token i's gradient of prefix i's rate."""
        w, _, alphas, t = self._terms(x)
        return lift(weigh(alphas * self.memberships.detach().mT.unsqueeze(-1) * w / (1.0 + t), self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """L, everywhere."""
        alphas = self._alphas(x).expand(*self.memberships.shape[-2:])
        return _curvature(self.U, alphas, alphas * self.memberships, self.weights)


def head_memberships(x: Tensor, U: Tensor, temperature: float | Tensor) -> Tensor:
    """ToST's memberships ``Π_ik = softmax_k(τ_k ‖x_i U_k‖²)``, ``(..., tokens, heads)``; τ = 1/(2η)."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float, Tensor)):
        raise TypeError(f"head_memberships: temperature must be a number or a tensor, but is {temperature!r}.")
    lengths = project(x, U).square().sum(-1)
    if isinstance(temperature, Tensor) and (temperature.ndim > 1 or temperature.numel() not in (1, len(U))):
        raise ValueError(
            f"head_memberships: temperature must be one number or one for each head, but is {tuple(temperature.shape)}."
        )
    temperature = float(temperature) if isinstance(temperature, int) else temperature
    return torch.softmax(temperature * lengths.mT, dim=-1)


def _curvature(U: Tensor, outer: Tensor, inner: Tensor, weights: Tensor | None) -> Tensor:
    """A bound for ‖Σ_k w_k inner_ik U_kU_kᵀ‖₂ over i, ``(...)``, where Σ_k inner_ik = outer_ik, the same for every k."""
    size = torch.ones_like(inner[..., 0, :]) if weights is None else weights.detach().abs()
    squares = torch.linalg.matrix_norm(U.detach(), 2).square()
    flat = torch.linalg.matrix_norm(U.detach().transpose(0, 1).flatten(-2), 2).square()
    by_head = outer.amax((-2, -1)) * (size * squares).amax(-1)
    together = (size.unsqueeze(-2) * inner.detach()).amax((-2, -1)) * flat
    return torch.minimum(by_head, together)


def _check(owner: str, U: Tensor, epsilon: object, orthonormal: bool) -> None:
    check_epsilon(owner, epsilon)
    check_basis(owner, U, False, None)
    if orthonormal:
        for Uk in U:
            check_basis(owner, Uk.unsqueeze(0), True, None)
