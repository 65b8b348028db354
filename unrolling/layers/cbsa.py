"""Contract-and-broadcast self-attention: compress all tokens by contracting a few representatives of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from objectives import (
    ChannelRate,
    Objective,
    RepresentativeEnergy,
    RepresentativeNorm,
    RepresentativeRate,
    SelfAttentionEnergy,
    SubspaceCodingRate,
)

from ..attend import attend
from ..errors import check_choice
from ..kernels.cbsa import Pooling, contract_broadcast, extraction
from ..kernels.mssa import contract_tokens
from ..representatives import SVD, Axes, GridPool, OfficialGridPool, Representatives, Tokens
from ..subspace import SubspaceLayer, per_head

__all__ = ["CBSA"]


@final
class CBSA(SubspaceLayer):
    r"""Contract-and-broadcast self-attention: extracts m representatives, contracts them, broadcasts the change back.

    Minimises
        exact: $\sum_k R(Q_k)$, $Q_k = U_k^\top Z A_k$ with $A_k$ frozen, by
        $Z - \kappa \sum_k \beta U_k Q_k (I + \beta Q_k^\top Q_k)^{-1} A_k^\top$;
        softmax: $-\sum_k \sum_a \mathrm{lse}_s(\bar{Q}_k^\top q_{k,a})$, $A_k$ and $\bar{Q}_k$ frozen, by
        $Z + \kappa \sum_k U_k Q_k\, \mathrm{softmax}(s\, Q_k^\top Q_k) A_k^\top$
    In code
        ``P_k = softmax(s Q_ini,k W_kᵀ)`` (= A_kᵀ, rows sum to 1), ``Q_k = P_k W_k``, W_k = x U_k; exact
        ``x − Σ_k κ β P_kᵀ Q_k (I_p + β Q_kᵀQ_k)⁻¹ U_kᵀ``, β = p/(m ε²); softmax
        ``x + Σ_k κ P_kᵀ softmax(s Q_k Q_kᵀ) Q_k U_kᵀ``; agent ``x + Σ_k κ P_kᵀ Q_k U_kᵀ``, no contraction
    Shapes
        x ``(..., tokens, dim)``; P ``(..., heads, m, tokens)``; Q ``(..., heads, m, head_dim)``; returns like x
    Special cases
        representatives=Tokens(): MSSA, hence softmax attention (eq. 9). SVD(), exact: linear attention
        ``W (I + WᵀW/ε²)⁻¹`` (eq. 12). Axes(), exact: channel attention ``W diag(1/(1 + ‖column‖²/ε²))`` (eq. 13).
        form="agent": agent attention with tied matrices, ½‖P_k x U_k‖² its energy.

    Parameters
    ----------
        representatives: a strategy from :mod:`unrolling.representatives`, GridPool((8, 8)) by default.
        class_tokens: how many leading tokens stay out of the pooling; they are still attended to and moved.
        keep_queries: representatives ``Q_ini + r_k P W`` in place of ``P W``, r_k learned for every head, drawn from N(0, 1)
        at first: no objective is known for it. compat="official": the released code, number for number: keep_queries
        with OfficialGridPool and a free output matrix (``from_official`` loads its weights).
        kernel: "plain" stores P, "fast" computes it by blocks and again backward, "auto" chooses.
        form, step_size, residual and the others: as for :class:`unrolling.MSSA`; the agent form adds, like softmax.
    Cost
        multiply-adds ``2 N d² + 3 N m d + 2 m² d`` in the softmax form (table 1): linear in N
    Source
        CBSA, arXiv 2509.16875, eq. 4 (objective), 6 and 7 (exact step), 8 (softmax), 9, 12, 13 (special cases)
    Differences from the authors' code
        it keeps the pooled queries in Q (keep_queries), pools the class token and drops the last patch
        (OfficialGridPool), has a free output matrix with bias, and no inverse anywhere. compat="official" does all of
        that, and declares no objective.

    Raises
    ------
        ValueError for sizes, forms, grids or steps that do not fit; SVD and Axes with another form than exact;
        TypeError for another dtype.
    Claims
        cbsa.extraction, cbsa.pooling.grid, cbsa.pooling.sequence, cbsa.step.exact, cbsa.step.softmax,
        cbsa.special.softmax, cbsa.special.linear, cbsa.special.rotation, cbsa.special.channel, cbsa.special.agent,
        cbsa.certified, cbsa.cost, cbsa.official, kernels.cbsa
    """

    declares = "F (exact), P frozen; representative energy (softmax), P and Q̄ frozen"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        representatives: Representatives | None = None,
        form: str = "exact",
        epsilon: float = 0.5,
        scale: float | None = None,
        step_size: float = 1.0,
        learnable_step: bool = True,
        per_head_step: bool = False,
        certified: bool = False,
        tied: bool = True,
        output_bias: bool = False,
        basis: str = "orthonormal",
        class_tokens: int = 0,
        U: Tensor | None = None,
        residual: bool = True,
        keep_queries: bool = False,
        compat: str | None = None,
        kernel: str = "auto",
    ) -> None:
        super().__init__(
            dim,
            heads,
            head_dim,
            form=form,
            forms=("exact", "softmax", "agent"),
            epsilon=epsilon,
            scale=scale,
            step_size=step_size,
            learnable_step=learnable_step,
            per_head_step=per_head_step,
            certified=certified,
            tied=tied,
            output_bias=output_bias,
            basis=basis,
            class_tokens=class_tokens,
            U=U,
            residual=residual,
            kernel=kernel,
        )
        if representatives is not None and not isinstance(representatives, Representatives):
            raise TypeError(
                f"CBSA: representatives must be a Representatives, but is a {type(representatives).__name__}."
            )
        self.representatives = GridPool() if representatives is None else representatives
        if isinstance(self.representatives, (SVD, Axes)) and form != "exact":
            raise ValueError(
                f"CBSA: representatives={type(self.representatives).__name__}() goes with form='exact' only: singular"
                f" vectors have no signs of their own, and a softmax over them would depend on the choice. form is {form!r}."
            )
        if compat is not None:
            check_choice("CBSA", "compat", compat, ("official",))
            if form != "softmax" or tied or not isinstance(self.representatives, OfficialGridPool):
                raise ValueError(
                    "CBSA: compat='official' goes with form='softmax', tied=False and OfficialGridPool(); the class method"
                    " CBSA.from_official sets them."
                )
        self.compat, self.keep_queries = compat, keep_queries or compat is not None
        if self.keep_queries:
            if not self.representatives.softmax_extraction:
                raise ValueError(
                    f"CBSA: keep_queries keeps initial representatives, which {type(self.representatives).__name__} has not."
                )
            self.step_rep = nn.Parameter(torch.randn(self.heads, dtype=self.basis.dtype))
        patches = self.representatives.token_count
        self.token_count = None if patches is None else patches + class_tokens

    @classmethod
    def from_official(cls, state: Mapping[str, Tensor]) -> CBSA:
        """The attention of a released CBT block: ``proj.weight``, ``step_x``, ``step_rep``, ``to_out.weight``/``.bias``.

        Parameters
        ----------
            state: exactly these five tensors; another key, or a missing one, is an error that names it.
        Differences
            the released module returns the update alone: that is :meth:`update`; calling the layer adds the residual.
        """
        names = {"proj.weight", "step_x", "step_rep", "to_out.weight", "to_out.bias"}
        if set(state) != names:
            raise ValueError(
                f"CBSA: the released layer has {sorted(names)}; missing {sorted(names - set(state))},"
                f" unknown {sorted(set(state) - names)}."
            )
        heads, (inner, dim) = state["step_x"].shape[0], state["proj.weight"].shape
        layer = cls(
            dim,
            heads,
            inner // heads,
            U=state["proj.weight"].mT.unflatten(-1, (heads, -1)).transpose(0, 1),
            representatives=OfficialGridPool(),
            form="softmax",
            basis="free",
            tied=False,
            output_bias=True,
            per_head_step=True,
            compat="official",
        )
        with torch.no_grad():
            layer.step.copy_(state["step_x"].flatten())
            layer.step_rep.copy_(state["step_rep"].flatten())
            layer.output.weight.copy_(state["to_out.weight"])
            layer.output.bias.copy_(state["to_out.bias"])
        return layer

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after one layer; ``grid`` is the image's rows and columns of patches, for GridPool."""
        return self._moved(x, self.update(x, grid))

    def adds(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What a published block adds: the update."""
        return self.update(x, grid)

    def update(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What the layer adds to the tokens; for blocks that normalise before it."""
        basis = self.basis
        return self._back(self._change(self._coordinates(x, basis), grid), basis)

    def _change(self, w: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """The signed change of the coordinates w ``(..., heads, tokens, head_dim)``."""
        kind = self.representatives
        if isinstance(kind, SVD):
            beta = 1.0 / self.epsilon**2
            return -per_head(self.kappa(beta)) * contract_tokens(w, beta, self.kernel)
        if isinstance(kind, Axes):
            beta = 1.0 / self.epsilon**2
            return -per_head(self.kappa(beta)) * beta * w / (1.0 + beta * w.square().sum(-2, keepdim=True))
        if isinstance(kind, Tokens):
            return per_head(self.kappa(self._bounds(w))) * self._contracted(w, self.kernel)
        initial = self._initial(w, grid)
        kappa = per_head(self.kappa(self._bounds(w, initial)))
        if not self.keep_queries:
            return contract_broadcast(
                w, initial, lambda q, _, step: step * self._contracted(q), kappa, scale=self.scale, kernel=self.kernel
            )
        return contract_broadcast(
            w,
            initial,
            lambda q, start, step, kept: step * self._contracted(start + kept * q),
            kappa,
            per_head(self.step_rep),
            scale=self.scale,
            kernel=self.kernel,
        )

    def _initial(self, w: Tensor, grid: tuple[int, int] | None) -> Tensor | Pooling:
        """The initial representatives, or how to pool a head's tokens to them."""
        kind = self.representatives
        if kind.pools:
            return lambda tokens: kind.initial(tokens, self.class_tokens, grid)
        return kind.initial(w, self.class_tokens, grid)

    def _gather(self, w: Tensor, P: Tensor, grid: tuple[int, int] | None) -> Tensor:
        q = P @ w
        if self.keep_queries:
            q = self.representatives.initial(w, self.class_tokens, grid) + per_head(self.step_rep) * q
        return q

    def extraction(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """P ``(..., heads, m, tokens)``: how much of every token each representative holds; rows sum to 1.

        Defined for the softmax strategies; ``P.mT @ P`` is the attention map of CBSA.
        """
        return self._extract(self._coordinates(x, self.basis), grid)

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """``A Aᵀ = P.mT @ P`` ``(..., heads, tokens, tokens)``, of rank at most m; not row-stochastic."""
        P = self.extraction(x, grid)
        return P.mT @ P

    def representatives_of(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Q ``(..., heads, m, head_dim)``, before they are contracted."""
        w = self._coordinates(x, self.basis)
        return self._gather(w, self._extract(w, grid), grid)

    def contracted(self, q: Tensor) -> Tensor:
        """Representatives q after their own step ``q + κ Δ(q)``, Δ the change that is broadcast."""
        if self.certified:
            raise ValueError(
                "CBSA: the steps of certified layers depend on the tokens; read them off kappa(bounds_at(x))."
            )
        return q + per_head(self.step) * self._contracted(q)

    def _extract(self, w: Tensor, grid: tuple[int, int] | None) -> Tensor:
        queries = self.representatives.initial(w, self.class_tokens, grid)
        return torch.softmax(self.scale * (queries @ w.mT), dim=-1)

    def _contracted(self, q: Tensor, kernel: str = "auto") -> Tensor:
        """The signed change of the representatives: −β Q (I + βQᵀQ)⁻¹, + softmax(s Q Qᵀ) Q, or + Q."""
        if self.form == "exact":
            return -contract_tokens(q, self.head_dim / (q.shape[-2] * self.epsilon**2), kernel)
        if self.form == "softmax":
            return attend(q, q, q, self.scale, kernel=kernel)
        return q

    def _bounds(self, w: Tensor, initial: Tensor | Pooling | None = None) -> float | Tensor:
        """L of every head; used for certified steps only, so it is not computed for others."""
        if not self.certified:
            return 0.0
        norm: float | Tensor = 1.0
        q = w
        if initial is not None:
            norm, q = extraction(w, initial, self.scale, self.kernel)
        if self.form == "exact":
            return norm * (self.head_dim / (q.shape[-2] * self.epsilon**2))
        return norm * self.scale * q.square().sum(-1).amax(-1) if self.form == "softmax" else norm

    def bounds_at(self, x: Tensor) -> float | Tensor:
        """An upper bound for L of every head: β‖P‖² exact, s max‖q‖²‖P‖² softmax, ‖P‖² agent."""
        if isinstance(self.representatives, (SVD, Axes)):
            return 1.0 / self.epsilon**2
        w = self._coordinates(x, self.basis)
        return self._bounds(w, None if isinstance(self.representatives, Tokens) else self._initial(w, None))

    def _declare(self, x: Tensor, weights: Tensor | None) -> Objective:
        if self.compat is not None:
            raise ValueError("CBSA: compat='official' declares no objective: its Q keeps the pooled queries.")
        if self.keep_queries:
            raise ValueError("CBSA: no descent is claimed with keep_queries=True: its Q keeps the pooled queries.")
        U, kind, epsilon, orthonormal = self.U, self.representatives, self.epsilon, self.orthonormal
        if isinstance(kind, SVD):
            return SubspaceCodingRate(U, epsilon, self.head_dim, weights, orthonormal)
        if isinstance(kind, Axes):
            return ChannelRate(U, epsilon, None, weights, orthonormal)
        if isinstance(kind, Tokens):
            if self.form == "exact":
                return SubspaceCodingRate(U, epsilon, None, weights, orthonormal)
            coordinates = (x.unsqueeze(-3) @ U).detach()
            if self.form == "softmax":
                return SelfAttentionEnergy(U, coordinates, self.scale, weights, orthonormal)
            identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device).expand(self.heads, -1, -1)
            return RepresentativeNorm(U, identity, _negated(weights, U), orthonormal)
        P = self.extraction(x).detach()
        if self.form == "exact":
            return RepresentativeRate(U, P, epsilon, None, weights, orthonormal)
        if self.form == "softmax":
            keys = (P @ (x.unsqueeze(-3) @ U)).detach()
            return RepresentativeEnergy(U, P, keys, self.scale, weights, orthonormal)
        return RepresentativeNorm(U, P, _negated(weights, U), orthonormal)

    def approximates_at(self, x: Tensor) -> Objective | None:
        """The representatives' rate that the softmax form stands in for; None for the others."""
        if self.form != "softmax" or self.keep_queries:
            return None
        if isinstance(self.representatives, Tokens):
            return SubspaceCodingRate(self.U, self.epsilon, orthonormal=self.orthonormal)
        return RepresentativeRate(self.U, self.extraction(x).detach(), self.epsilon, orthonormal=self.orthonormal)


def _negated(weights: Tensor | None, U: Tensor) -> Tensor:
    """The agent form adds: it descends −½‖P x U‖²."""
    return -torch.ones(U.shape[0], dtype=U.dtype, device=U.device) if weights is None else -weights
