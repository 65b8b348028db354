"""DEPICT: cross-attention of class embeddings to patch tokens as a step of PCA, and the decoder built of it."""

from __future__ import annotations

from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives import (
    ClassTokensOnly,
    Objective,
    SelfAttentionEnergy,
    SubspaceCodingRate,
    SubspacePCARate,
    principal_directions,
    subspace_alignment,
)

from ..attend import attend
from ..errors import check_choice, check_count, check_share
from ..subspace import SubspaceLayer, contract, per_head
from .mssa import MSSA

__all__ = ["MSCA", "DepictDecoder", "DepictRecord"]


@final
class MSCA(SubspaceLayer):
    r"""Multi-head subspace cross-attention: class embeddings read the patch tokens and turn to their principal subspace.

    The first ``class_tokens`` tokens are the class embeddings Q; the others, the patches Z, are returned untouched.

    Minimises
        exact: $-\sum_k \frac{1}{2} \log\det(I + \beta Q_k^\top W_k W_k^\top Q_k)$, minus PCA's rate of the patches
        along the class embeddings, by $Q + \kappa \sum_k \beta U_k W_k W_k^\top Q_k (I + \beta Q_k^\top W_k W_k^\top
        Q_k)^{-1}$;
        softmax: $-\sum_k \sum_c \mathrm{lse}_s(W_k^\top q_{k,c})$, by
        $Q + \kappa \sum_k U_k W_k\, \mathrm{softmax}(s\, W_k^\top Q_k)$; with $Q_k = U_k^\top Q$, $W_k = U_k^\top Z$
    In code
        exact ``q + Σ_k κ β (I_C + β B_kᵀB_k)⁻¹ B_kᵀ W_k U_kᵀ``, B_k = W_k q_kᵀ, β = C/(N ε²) for N patches;
        softmax ``q + Σ_k κ softmax(s q_k W_kᵀ) W_k U_kᵀ``, q_k = q U_k, W_k = z U_k
    Shapes
        x ``(..., class_tokens + patches, dim)``; U ``(heads, dim, head_dim)``; returns like x
    Parameters
        class_tokens: C, at least 1, before the patches. patches: the only number of patches it takes, None for any.
        form, step_size, dropout and the others: as for :class:`unrolling.MSSA`; both forms add, and a positive κ descends.
    Source
        DEPICT, arXiv 2411.03033, section 3 (cross-attention as a step of PCA in the class embeddings)
    Symbols
        the released code calls [U_1 … U_K]ᵀ ``proj`` and κ ``step_size``.
    Differences from the authors' code
        it adds ``step · softmax(s q_k W_kᵀ) W_k U_kᵀ`` too, tied, with one learned step of any sign; its patches pass a
        LayerNorm in front of every layer, its queries none; its bases are free. Softmax only. The class embeddings are
        not kept orthonormal there, nor here: for PCA itself take :class:`unrolling.RiemannianStep` on PCARate.

    Raises
    ------
        ValueError for sizes, forms or steps out of range, tokens of another dim, and no patches after the class
        tokens; TypeError for another dtype.
    Claims
        depict.step.exact, depict.step.softmax, depict.certified, depict.cost, depict.sign
    """

    declares = "PCA's rate in the class embeddings (exact); cross-attention energy (softmax); patches given"

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        head_dim: int | None = None,
        *,
        class_tokens: int = 1,
        patches: int | None = None,
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
        U: Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        check_count("MSCA", "class_tokens", class_tokens)
        check_share("MSCA", "dropout", dropout)
        if patches is not None:
            check_count("MSCA", "patches", patches)
        super().__init__(
            dim,
            heads,
            head_dim,
            form=form,
            forms=("exact", "softmax"),
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
        )
        self.token_count = None if patches is None else class_tokens + patches
        self.dropout = float(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The class tokens after one layer, the patches as they were."""
        change = self.update(x)
        return torch.cat([x[..., : self.class_tokens, :] + change, x[..., self.class_tokens :, :]], dim=-2)

    def update(self, x: Tensor) -> Tensor:
        """What the layer adds to the class tokens, ``(..., class_tokens, dim)``."""
        basis = self.basis
        return self._read(*self._parts(x, basis), basis)

    def read(self, classes: Tensor, patches: Tensor) -> Tensor:
        """The same for class embeddings ``(..., C, dim)`` and patches ``(..., N, dim)`` apart, any C."""
        basis = self.basis
        return self._read(self._coordinates(classes, basis), self._coordinates(patches, basis), basis)

    def _read(self, q: Tensor, w: Tensor, basis: Tensor) -> Tensor:
        """The update from the coordinates of class tokens q and of patches w, ``(..., heads, ·, head_dim)``."""
        kappa = per_head(self.kappa(self._bounds(q, w)))
        if self.form == "exact":
            beta = q.shape[-2] / (w.shape[-2] * self.epsilon**2)
            return self._back(kappa * (contract(w @ q.mT, beta).mT @ w), basis)
        drop = self.dropout if self.training else 0.0
        return self._back(kappa * attend(q, w, w, self.scale, dropout=drop), basis)

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """``softmax(s q_k W_kᵀ)`` ``(..., heads, class_tokens, patches)``: the patches that each class reads; rows sum to 1."""
        q, w = self._parts(x, self.basis)
        return torch.softmax(self.scale * (q @ w.mT), dim=-1)

    def _parts(self, x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        coordinates = self._coordinates(x, basis)
        if x.shape[-2] <= self.class_tokens:
            raise ValueError(
                f"MSCA: {x.shape[-2]} tokens of which {self.class_tokens} are class tokens leave no patches to read.\n"
                f"  x is (..., class_tokens + patches, dim) = {tuple(x.shape)}, class tokens first."
            )
        return coordinates[..., : self.class_tokens, :], coordinates[..., self.class_tokens :, :]

    def _bounds(self, q: Tensor, w: Tensor) -> float | Tensor:
        if not self.certified:
            return 1.0
        if self.form == "softmax":
            return self.scale * w.square().sum(-1).amax(-1)
        return q.shape[-2] / (w.shape[-2] * self.epsilon**2) * torch.linalg.matrix_norm(w.detach(), 2).square()

    def bounds_at(self, x: Tensor) -> float | Tensor:
        """β ‖W_k‖₂² in the exact form, s max_j ‖w_j‖² in the softmax form, for every head; used by certified steps."""
        return self._bounds(*self._parts(x, self.basis))

    def _declare(self, x: Tensor, weights: Tensor | None) -> Objective:
        patches = x[..., self.class_tokens :, :].detach()
        if self.form == "exact":
            rate = SubspacePCARate(self.U, patches, self.epsilon, weights=weights, orthonormal=self.orthonormal)
            return ClassTokensOnly(rate, self.class_tokens)
        keys = patches.unsqueeze(-3) @ self.U.detach()
        return ClassTokensOnly(
            SelfAttentionEnergy(self.U, keys, self.scale, weights, self.orthonormal), self.class_tokens
        )

    def approximates_at(self, x: Tensor) -> Objective | None:
        """PCA's rate, which the softmax form stands in for."""
        if self.form == "exact":
            return None
        patches = x[..., self.class_tokens :, :].detach()
        rate = SubspacePCARate(self.U, patches, self.epsilon, orthonormal=self.orthonormal)
        return ClassTokensOnly(rate, self.class_tokens)


class DepictRecord(NamedTuple):
    """One stage of the decoder: its name, the patches' rate in the subspaces, and how the classes lie to them.

    rate: R_c of the patches in the stage's own bases, nats, ``(...)``. alignment: mean squared cosine between the span
    of the class embeddings and the patches' top-C principal subspace. captured: share of the patches' squared norm in
    the span of the class embeddings.
    """

    stage: str
    rate: Tensor
    alignment: Tensor
    captured: Tensor


@final
class DepictDecoder(nn.Module):
    r"""DEPICT's decoder for segmentation: refine the patches, turn the classes to their principal subspace, project.

    attention="cross": ``depth`` MSSA layers on the patches, ``cross_depth`` MSCA layers on the class embeddings.
    attention="self": ``depth`` MSSA layers on classes and patches together. Then the masks are the cosines of patches and
    class embeddings. A reference operator: with norm=False each of its layers is exactly the step that MSSA and MSCA
    declare; norm=True arranges LayerNorms as the released code does, and then no layer is a step at its input.

    Parameters
    ----------
        dim, classes: width of a token, number of classes. heads, head_dim: of the MSSA layers; cross_head_dim: of the
        MSCA layers (published: 3 heads of 100 and of 50). form, step_size, epsilon, basis: as for the layers.
        dropout: of attention weights, while training, softmax form only. norm: LayerNorms as released: in front of every
        MSSA and of the keys of every MSCA (never of the queries), after each stack, and over the classes of the masks.
    Shapes
        tokens ``(..., H·W, dim)`` with grid (H, W), row by row; returns masks ``(..., classes, H, W)``
    Source
        DEPICT, arXiv 2411.03033, sections 3 and 4; released as DEPICT-SA and DEPICT-CA
    Differences from the authors' code
        there the class embeddings come last among the joint tokens (self-attention does not see the order), κ starts
        at a random number, bases are free, and forms are softmax: ``form="softmax", basis="free", norm=True`` is the
        released decoder, number for number.

    Raises
    ------
        ValueError for sizes out of range and a grid that is not the number of tokens.
    Claims
        depict.masks, depict.refinement, depict.released, depict.trace
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        heads: int = 3,
        *,
        attention: str = "cross",
        depth: int = 3,
        cross_depth: int = 3,
        head_dim: int | None = None,
        cross_head_dim: int | None = None,
        form: str = "softmax",
        step_size: float = 1.0,
        epsilon: float = 0.5,
        basis: str = "orthonormal",
        norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "classes": classes, "heads": heads, "depth": depth, "cross_depth": cross_depth}
        for name, value in sizes.items():
            check_count("DepictDecoder", name, value)
        check_choice("DepictDecoder", "attention", attention, ("cross", "self"))
        self.dim, self.classes, self.attention, self.norm = dim, classes, attention, norm
        self.class_embeddings = nn.Parameter(0.02 * torch.randn(classes, dim))
        across = cross_depth if attention == "cross" else 0

        def options() -> dict[str, Any]:
            return {"form": form, "step_size": step_size, "epsilon": epsilon, "basis": basis, "dropout": dropout}

        def normed(count: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(count))

        self.refine_layers = nn.ModuleList(MSSA(dim, heads, head_dim, **options()) for _ in range(depth))
        self.cross_layers = nn.ModuleList(
            MSCA(dim, heads, cross_head_dim, class_tokens=classes, **options()) for _ in range(across)
        )
        self.refine_norms, self.cross_norms = normed(depth, dim), normed(across, dim)
        self.patch_norm, self.mask_norm = normed(1, dim)[0], normed(1, classes)[0]
        self.class_norm = normed(1, dim)[0] if across else self.patch_norm

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The masks of the classes, one number for every patch: ``(..., classes, H, W)``."""
        if not isinstance(tokens, Tensor) or tokens.ndim < 2:
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
            raise ValueError(f"DepictDecoder: tokens must be a tensor (..., tokens, dim), but is {found}.")
        if len(grid) != 2 or grid[0] * grid[1] != tokens.shape[-2]:
            raise ValueError(
                f"DepictDecoder: grid {' × '.join(map(str, grid))} does not hold the {tokens.shape[-2]} tokens of"
                f" {tuple(tokens.shape)}; grid is (rows, columns) of patches."
            )
        patches, classes = self.refine(tokens)
        return self.mask_norm(self.masks(patches, classes)).mT.unflatten(-1, grid)

    def refine(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The refined patches ``(..., N, dim)`` and class embeddings ``(..., C, dim)``, normed last."""
        *_, (_, _, patches, classes) = self._stages(tokens)
        return self.patch_norm(patches), self.class_norm(classes)

    @staticmethod
    def masks(patches: Tensor, classes: Tensor) -> Tensor:
        """Cosines of patches and class embeddings, ``(..., N, C)``; of a zero token, zero."""
        return F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).mT

    @torch.no_grad()
    def trace(self, tokens: Tensor) -> list[DepictRecord]:
        """What every layer does: one record before the first layer, and one after each."""
        records = []
        for stage, layer, patches, classes in self._stages(tokens):
            rate = SubspaceCodingRate(layer.U, layer.epsilon, orthonormal=layer.orthonormal)
            count = min(self.classes, self.dim)
            span = principal_directions(classes, count)
            whole = patches.square().sum((-2, -1)).clamp(min=torch.finfo(patches.dtype).tiny)
            inside = (patches @ span.mT).square().sum((-2, -1)) / whole
            aligned = subspace_alignment(span, principal_directions(patches, count))
            records.append(DepictRecord(stage, rate.value(patches), aligned, inside))
        return records

    def _stages(self, tokens: Tensor) -> list[tuple[str, SubspaceLayer, Tensor, Tensor]]:
        """(name, layer, patches, classes) before the first layer and after each."""
        classes = self.class_embeddings.expand(*tokens.shape[:-2], -1, -1)
        stages = [("input", cast(SubspaceLayer, self.refine_layers[0]), tokens, classes)]
        for number, (module, norm) in enumerate(zip(self.refine_layers, self.refine_norms, strict=True)):
            layer = cast(MSSA, module)
            if self.attention == "self":
                joint = torch.cat([classes, tokens], dim=-2)
                joint = joint + layer.update(norm(joint))
                classes, tokens = joint[..., : self.classes, :], joint[..., self.classes :, :]
            else:
                tokens = tokens + layer.update(norm(tokens))
            stages.append((f"self-attention {number}", layer, tokens, classes))
        keys = self.patch_norm(tokens) if self.cross_layers else tokens
        for number, (module, norm) in enumerate(zip(self.cross_layers, self.cross_norms, strict=True)):
            reader = cast(MSCA, module)
            classes = classes + reader.read(classes, norm(keys))
            stages.append((f"cross-attention {number}", reader, tokens, classes))
        return stages
