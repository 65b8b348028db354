"""Subspace denoising: tokens near subspaces, how near they are, and the energy of attention that selects one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from .base import Objective, lift, project
from .coding_rate import head_bound, sum_heads, weigh
from .errors import check_basis, check_dense, check_heads, check_matrix, check_positive, check_tokens, check_weights

__all__ = ["SelectedEnergy", "SubspaceMixture", "signal_to_noise"]


@final
@dataclass(frozen=True, eq=False)
class SubspaceMixture:
    r"""The data model of subspace denoising: a standard normal in the token's own subspace, noise in all the others.

    Model
        $z = U_k a + \sum_{j \neq k} U_j e_j$, $a \sim N(0, I)$, $e_j \sim N(0, \delta^2 I)$
    Shapes
        U ``(heads, dim, head_dim)``, orthonormal and mutually orthogonal
    Source
        AoT, arXiv 2506.03790, definition 1

    Raises
    ------
        ValueError for δ ≤ 0, bases that are not orthonormal, cluster sizes below 1.
    Claims
        subspace_denoising.mixture

    >>> import torch
    >>> U = torch.eye(6, dtype=torch.float64).reshape(6, 3, 2).transpose(0, 1)
    >>> x, labels = SubspaceMixture(U, 0.1).sample(4, torch.Generator().manual_seed(0))
    >>> x.shape, labels.tolist()
    (torch.Size([12, 6]), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """

    U: Tensor
    delta: float
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        check_positive("SubspaceMixture", "delta", self.delta)
        check_basis("SubspaceMixture", self.U, True, self.orthonormal_tolerance)

    def sample(self, tokens_per_cluster: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Tokens ``(heads · n, dim)``, cluster after cluster, and the number of the cluster of each, ``(heads · n,)``."""
        if isinstance(tokens_per_cluster, bool) or not isinstance(tokens_per_cluster, int) or tokens_per_cluster < 1:
            raise ValueError(
                f"SubspaceMixture: tokens_per_cluster must be a positive integer, but is {tokens_per_cluster!r}."
            )
        heads, _, head_dim = self.U.shape
        device = self.U.device if generator is None else generator.device
        count = heads * tokens_per_cluster
        drawn = torch.randn(heads, count, head_dim, dtype=self.U.dtype, device=device, generator=generator)
        labels = torch.arange(heads, device=self.U.device).repeat_interleave(tokens_per_cluster)
        own = labels == torch.arange(heads, device=self.U.device)[:, None]
        size = torch.full(own.shape, self.delta, dtype=self.U.dtype, device=self.U.device).masked_fill(own, 1.0)
        return lift(size[..., None] * drawn.to(self.U.device), self.U), labels


def signal_to_noise(x: Tensor, labels: Tensor, U: Tensor) -> Tensor:
    r"""The signal-to-noise ratio of every cluster: its tokens' length inside their own subspace over that outside.

    $\mathrm{SNR}(Z_k) = \Vert U_k U_k^\top Z_k \Vert_F \,/\, \Vert (I - U_k U_k^\top) Z_k \Vert_F$

    Shapes
        x ``(..., tokens, dim)``; labels ``(tokens,)``, integers below heads; U ``(heads, dim, head_dim)``, orthonormal
        columns; returns ``(..., heads)``, NaN for clusters without tokens, infinite for those without noise
    Source
        AoT, arXiv 2506.03790

    Raises
    ------
        ValueError for labels of another shape or range; as the objectives for x.
    Claims
        subspace_denoising.ratio
    """
    check_matrix("signal_to_noise", "U", U, "(heads, dim, head_dim)")
    check_tokens("signal_to_noise", x, U.shape[-2])
    if (
        not isinstance(labels, Tensor)
        or labels.shape != x.shape[-2:-1]
        or labels.dtype.is_floating_point
        or labels.is_complex()
    ):
        kind = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise ValueError(f"signal_to_noise: labels must be integers (tokens,) = ({x.shape[-2]},), but is {kind}.")
    check_dense("signal_to_noise", "labels", labels)
    if not bool(((labels >= 0) & (labels < len(U))).all()):
        raise ValueError(f"signal_to_noise: labels must lie in 0 … {len(U) - 1}, the subspaces of U.")
    w, own = project(x, U), (labels == torch.arange(len(U), device=labels.device)[:, None]).to(x.dtype)
    signal = w.square().sum(-1)
    # The rest by subtraction of vectors, not of squared lengths: little noise would be lost in rounding.
    rest = torch.stack([(x - w[..., k, :, :] @ U[k].mT).square().sum(-1) for k in range(len(U))], dim=-2)
    return ((own * signal).sum(-1) / (own * rest).sum(-1)).sqrt()


@final
@dataclass(frozen=True, eq=False)
class SelectedEnergy(Objective):
    r"""The energy of attention that reads one selected token, or none: what AoT's thresholded layer descends.

    Minimises
        $E(Z) = -\sum_k \sum_i t_{k,i}\, \bar{w}_{k,\pi_k(i)}^\top U_k^\top z_i$, with π, t and the keys $\bar{w}$
        constant; without keys $-\frac{1}{2} \sum_k \sum_i t_{k,i}\, w_{k,\pi_k(i)}^\top w_{k,i}$, only π and t constant
    In code
        ``−Σ_k w_k Σ_i amount[k, i] W_k[i] · keys_k[partner[k, i]]``, or half of that with W_k for the keys
    Gradient
        ``−Σ_k w_k amount_k keys_k[partner_k] U_kᵀ``: linear in z, so L = 0. Without keys ``−½ Σ_k w_k (S_k + S_kᵀ) W_k
        U_kᵀ``, S_k the matrix with amount[k, i] at (i, partner[k, i]): the same where S_k is symmetric, as it is when
        every token selects itself; L = ½ max_k |w_k| ‖S_k + S_kᵀ‖ ≤ max_k |w_k| max_i (t_i + Σ_{π(j) = i} t_j) / 2.
    Shapes
        x ``(..., tokens, dim)``; partner, integers, and amount ``(..., heads, tokens)``; keys ``(..., heads, tokens',
        head_dim)`` or None; U ``(heads, dim, head_dim)``
    Source
        AoT, arXiv 2506.03790, its thresholded attention, read as an energy here

    Raises
    ------
        ValueError for bases that are not orthonormal, partners out of range, shapes that do not fit; TypeError.
    Claims
        subspace_denoising.selected.gradient, aot.step.threshold, aot.threshold.quadratic
    """

    U: Tensor
    partner: Tensor
    amount: Tensor
    keys: Tensor | None = None
    weights: Tensor | None = None
    orthonormal: bool = True
    orthonormal_tolerance: float | None = None

    def __post_init__(self) -> None:
        owner = "SelectedEnergy"
        check_basis(owner, self.U, self.orthonormal, self.orthonormal_tolerance)
        check_matrix(owner, "amount", self.amount, "(..., heads, tokens)")
        shapes = f"partner is {tuple(self.partner.shape)}, amount {tuple(self.amount.shape)}"
        if self.partner.dtype != torch.long or self.partner.shape != self.amount.shape:
            raise ValueError(f"{owner}: partner must be torch.long and of the shape of amount: {shapes}.")
        if self.amount.ndim < 2 or self.amount.shape[-2] != len(self.U):
            raise ValueError(f"{owner}: amount must be (..., heads={len(self.U)}, tokens), but {shapes}.")
        if self.keys is not None:
            check_matrix(owner, "keys", self.keys, "(..., heads, tokens, head_dim)")
            check_heads(owner, "keys", self.keys, self.U, self.U.shape[-1])
        choices = self.amount.shape[-1] if self.keys is None else self.keys.shape[-2]
        if not bool(((self.partner >= 0) & (self.partner < choices)).all()):
            raise ValueError(f"{owner}: partner must lie in 0 … {choices - 1}, the tokens to choose from.")
        check_weights(owner, self.weights, self.U)

    def value(self, x: Tensor) -> Tensor:
        """E(x)."""
        w = self._coordinates(x)
        products = (w * self._read(w if self.keys is None else self.keys)).sum((-2, -1))
        return -sum_heads(products if self.keys is not None else 0.5 * products, self.weights)

    def gradient(self, x: Tensor) -> Tensor:
        """Minus what is read; without keys half of it, and half of what the readers of a token have."""
        w = self._coordinates(x)
        if self.keys is not None:
            read = self._read(self.keys).expand_as(w)
        else:
            given = self.amount[..., None] * w
            received = torch.zeros_like(w).scatter_add(-2, self._index(w), given)
            read = 0.5 * (self._read(w) + received)
        return -lift(weigh(read, self.weights), self.U)

    def lipschitz(self, x: Tensor) -> Tensor:
        """0 with keys; without, the largest row sum of ½ |S + Sᵀ|, everywhere."""
        sizes = self.amount.detach().abs()
        if self.keys is not None:
            return torch.zeros(x.shape[:-2], dtype=x.dtype, device=x.device)
        row_sums = 0.5 * (sizes + torch.zeros_like(sizes).scatter_add(-1, self.partner, sizes)).amax(-1)
        row_sums = row_sums if self.weights is None else row_sums * self.weights.detach().abs()
        return row_sums.amax(-1) * head_bound(self.U, None, self.orthonormal)

    def _coordinates(self, x: Tensor) -> Tensor:
        check_tokens("SelectedEnergy", x, self.U.shape[-2])
        if x.shape[-2] != self.amount.shape[-1]:
            raise ValueError(
                f"SelectedEnergy: x has {x.shape[-2]} tokens, but the selection was made for {self.amount.shape[-1]}."
            )
        return project(x, self.U)

    def _index(self, w: Tensor) -> Tensor:
        return self.partner[..., None].expand_as(w)

    def _read(self, source: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(self.partner.shape[:-1], source.shape[:-2])
        index = self.partner[..., None].expand(*shape, self.partner.shape[-1], source.shape[-1])
        return self.amount[..., None] * source.expand(*shape, *source.shape[-2:]).gather(-2, index)
