"""The Energy Transformer's block: attention and memories together, the mirror step on one energy."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives import AttentionEnergy, CrossAttentionEnergy, EnergyTransformerEnergy, HopfieldEnergy

from ..base import UnrolledLayer
from ..errors import check_choice, check_count, check_input, check_sizes, real_number, step_in_certificate
from ..mirror import EnergyLayerNorm, MirrorStep
from ..steps import GradientStep, Step, over_tokens
from .symmetric import both_ways

__all__ = ["EnergyTransformer"]


@final
class EnergyTransformer(UnrolledLayer):
    r"""The Energy Transformer's block: moves tokens down the energy of attention among them plus that of memories.

    Minimises
        $E(G) = -\sum_h \sum_C \frac{1}{\beta} \log \sum_{B \neq C} \exp(\beta K_{h,B}^\top Q_{h,C})
        - \frac{1}{2} \sum_B \sum_\mu \max(\xi_\mu^\top g_B, 0)^2$, by $X - \kappa \nabla E(G)$, $G = \mathrm{LN}(X)$
    In code
        ``x + κ (Σ_h P_h K_h W_Q,hᵀ + P_hᵀ Q_h W_K,hᵀ + relu(g memoriesᵀ) memories)``, Q = g W_Q, K = g W_K,
        P = softmax(β Q Kᵀ) with zero diagonal, g = norm(x), or g = x with ``normalised=False``
    Mirror descent
        the gradient is E's at g, not that of E(norm(x)) at x. Since norm = ∇L of a convex L, the block is exactly the
        mirror step on E with mirror map L*, kept in its dual variables x (:class:`unrolling.MirrorStep`);
        ``objective_at`` is E as a function of g. In continuous time ``dE/dt = −∇Eᵀ M ∇E ≤ 0``, M = ∂g/∂x ⪰ 0. In
        steps, with σ_i the deviation of token i, E never rises for ``κ ≤ σ_i / (½ γ M_E + ‖∇E_i‖/√D)`` for all i,
        M_E = 2√N ‖W_Q‖ ‖W_K‖ the largest curvature of E from above: certified=True keeps κ there.
    Shapes
        x ``(..., tokens, dim)``; W_Q, W_K ``(dim, heads · head_dim)``; memories ``(M, dim)``; returns like x
    Parameters
        memories: their number, 4 dim by default. activation: "relu" or "softmax" (then −Σ_B lse over memories, at
        memory_scale, dim^(−1/2) by default). normalised=False: g = x, the plain gradient step. exclude_self: as in
        the paper; a token alone then attends to nothing. step_size: κ, their α; with certified=True in units of 1/L,
        inside (0, 2), L from :meth:`bounds_at`. scale: β, head_dim^(−1/2) by default. eps: of the normalisation.
    Source
        Energy Transformer, arXiv 2302.07253: the energies, their gradients, and dE/dt ≤ 0. The reading as mirror
        descent and the bound for finite steps are derived here.
    Differences from the authors' code
        none known in the update; theirs takes the gradient of the energy by automatic differentiation.

    Raises
    ------
        ValueError for sizes or steps out of range and tokens of another dim; TypeError for another dtype.
    Claims
        energy_transformer.step.normalised, energy_transformer.step.plain, energy_transformer.norm,
        energy_transformer.rate, energy_transformer.descent, energy_transformer.vector_gain
    """

    declares = "attention and memory energies at the normalised tokens, by a mirror step; nothing frozen"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        memories: int | None = None,
        activation: str = "relu",
        normalised: bool = True,
        exclude_self: bool = True,
        scale: float | None = None,
        memory_scale: float | None = None,
        step_size: float = 0.1,
        learnable_step: bool = True,
        certified: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        owner = "EnergyTransformer"
        check_count(owner, "dim", dim)
        check_count(owner, "heads", heads)
        head_dim = max(1, dim // heads) if head_dim is None else head_dim
        check_sizes(owner, dim, heads, head_dim, False)
        count = 4 * dim if memories is None else memories
        check_count(owner, "memories", count)
        check_choice(owner, "activation", activation, ("relu", "softmax"))
        for name, value in (("scale", scale), ("memory_scale", memory_scale)):
            value = None if value is None else real_number(owner, name, value)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{owner}: {name} must be positive and finite, but is {value}.")
        step_size = real_number(owner, "step_size", step_size)
        if step_size != step_size or abs(step_size) == float("inf"):
            raise ValueError(f"{owner}: step_size must be finite, but is {step_size}.")
        self.dim, self.heads, self.head_dim = dim, heads, head_dim
        self.activation, self.normalised, self.exclude_self = activation, normalised, exclude_self
        self.scale = head_dim**-0.5 if scale is None else float(scale)
        self.memory_scale = dim**-0.5 if memory_scale is None else float(memory_scale)
        self.certified = certified
        self.W_Q = nn.Parameter(torch.randn(dim, heads * head_dim) * dim**-0.5)
        self.W_K = nn.Parameter(torch.randn(dim, heads * head_dim) * dim**-0.5)
        self.memories = nn.Parameter(torch.randn(count, dim) * dim**-0.5)
        self.norm = EnergyLayerNorm(dim, eps) if normalised else None
        step = torch.tensor(float(step_size))
        if certified:
            step_in_certificate(owner, float(step_size), signed=False)
            step = torch.log(step / 2 / (1 - step / 2))
        self.step = nn.Parameter(step, requires_grad=learnable_step)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens after one block."""
        check_input("EnergyTransformer", x, self.W_Q, self.heads)
        force = self._force(self._normalise(x))
        return x + over_tokens(self._kappa(x, force)) * force

    def _normalise(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        g = self.norm.gain * F.layer_norm(x, (self.dim,), eps=self.norm.eps)
        return g if self.norm.bias is None else g + self.norm.bias

    def _force(self, g: Tensor) -> Tensor:
        """−∇E at g: attention given and received, and what the memories pull."""
        q, k = (self._per_head(g @ W) for W in (self.W_Q, self.W_K))
        given, received = (self._joined(part) for part in both_ways(q, k, self.scale, self.exclude_self))
        if self.activation == "relu":
            pulled = torch.relu(g @ self.memories.mT) @ self.memories
        else:
            stored = self.memories.expand(*g.shape[:-2], -1, -1)
            pulled = F.scaled_dot_product_attention(g, stored, stored, scale=self.memory_scale)
        return given @ self.W_Q.mT + received @ self.W_K.mT + pulled

    def _per_head(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    def _joined(self, w: Tensor) -> Tensor:
        return w.transpose(-3, -2).flatten(-2)

    def _kappa(self, x: Tensor, force: Tensor) -> Tensor:
        if not self.certified:
            return self.step
        limit = self._limit(x.detach(), force.detach())
        return 2.0 * torch.sigmoid(self.step) / limit.clamp(min=torch.finfo(x.dtype).tiny)

    def _limit(self, x: Tensor, force: Tensor) -> Tensor:
        a, b = (torch.linalg.matrix_norm(W.detach(), 2) for W in (self.W_Q, self.W_K))
        curvature = 2.0 * x.shape[-2] ** 0.5 * a * b
        if self.norm is None:
            return curvature.expand(x.shape[:-2])
        moved = force.norm(dim=-1) / self.dim**0.5
        return ((self.norm.gain.detach() * curvature + 2.0 * moved) / self.norm.deviation(x).detach()).amax(-1)

    def bounds_at(self, x: Tensor) -> Tensor:
        """L ``(...)``: steps κ < 2/L from x never raise the energy; M_E, or max_i (γ M_E + 2‖∇E_i‖/√D)/σ_i."""
        check_input("EnergyTransformer", x, self.W_Q, self.heads)
        return self._limit(x, self._force(self._normalise(x)).detach())

    def energy(self, x: Tensor) -> Tensor:
        """E of the normalised tokens, ``(...)``: what falls from block to block."""
        return self.objective_at(x).value(x if self.norm is None else self.norm(x))

    def objective_at(self, x: Tensor) -> EnergyTransformerEnergy:
        """E as a function of the normalised tokens; the same at every x, for nothing is frozen."""
        W_Q, W_K = (W.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1) for W in (self.W_Q, self.W_K))
        attention = AttentionEnergy(W_Q, W_K, self.scale, self.exclude_self)
        if self.activation == "relu":
            return EnergyTransformerEnergy(attention, HopfieldEnergy(self.memories))
        return EnergyTransformerEnergy(attention, CrossAttentionEnergy(self.memories, self.memory_scale))

    def step_rule(self) -> Step:
        """The mirror step through the normalisation; the gradient step without one."""
        return GradientStep() if self.norm is None else MirrorStep(self.norm)

    def step_size_at(self, x: Tensor) -> Tensor:
        """κ at ``x``."""
        return self._kappa(x, self._force(self._normalise(x))).detach()

    def extra_repr(self) -> str:
        """Sizes and options."""
        parts = [f"dim={self.dim}, heads={self.heads}, head_dim={self.head_dim}, memories={len(self.memories)}"]
        parts += [f"activation={self.activation!r}, normalised={self.normalised}"]
        parts += ["certified"] if self.certified else []
        return ", ".join(parts)
