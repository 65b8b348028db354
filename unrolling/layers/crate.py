"""CRATE's block: a step that compresses, then a step that makes sparse."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from objectives import Composite, Objective, SubspaceCodingRate

from ..attention import AttentionLayer
from ..base import UnrolledLayer
from ..drop_path import DropPath
from ..errors import check_choice, check_share
from ..proximal import AlternatingStep, ProximalStep
from ..steps import GradientStep
from ..subspace import SubspaceLayer
from .ista import ISTA

__all__ = ["BlockTrace", "CRATEBlock"]


class BlockTrace(NamedTuple):
    """What one block does: the compression term before, after the attention and after ISTA; the share of zeros."""

    rate_before: Tensor
    rate_between: Tensor
    rate_after: Tensor
    zeros_after: Tensor


@final
class CRATEBlock(nn.Module):
    r"""CRATE's block: MSSA compresses the tokens against subspaces, ISTA makes them sparse in a dictionary.

    Minimises
        alternately $R_c(Z \mid U)$ (or the log-sum-exp energy of the softmax form) by a gradient step, and
        $\frac{1}{2}\Vert \bar Z - D A\Vert^2 + \lambda\Vert A\Vert_1$ by a proximal step
    In code
        ``ista(attention(x))``; published: ``x = x + attention.adds(LN(x)); x = ista(LN(x))``
    Shapes
        x ``(..., tokens, dim)`` to the same
    Parameters
        attention: an MSSA, a CBSA (CBT's block), a TSSA, or one of the attentions that they are compared with
        (SoftmaxAttention, AgentAttention, MiTA). ista: an ISTA of the same width, by default a new one. norm: "none", or
        "layer" for the published block, whose LayerNorms inside the residual withdraw the claim: then no objectives.
        drop_path: the share of samples whose attention is left out while training, with norm="layer".
    Source
        CRATE, arXiv 2306.01129, section 2.4 and figure 2. Differences from the authors' code: it is norm="layer" with
        a softmax attention and a free output matrix; the skip connection is around the attention only.

    Raises
    ------
        ValueError for widths that differ or an unknown norm, and for ``objectives_at`` with norm="layer".
    Claims
        crate.block, crate.published, crate.rates
    """

    declares: ClassVar[str] = "SubspaceCodingRate, then Reconstruction + NonNegativeL1"

    def __init__(
        self,
        attention: SubspaceLayer | AttentionLayer,
        ista: ISTA | None = None,
        *,
        norm: str = "none",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_share("CRATEBlock", "drop_path", drop_path)
        check_choice("CRATEBlock", "norm", norm, ("none", "layer"))
        if not isinstance(attention, UnrolledLayer) or not hasattr(attention, "adds"):
            raise TypeError(f"CRATEBlock: attention must be an MSSA or a CBSA, but is a {type(attention).__name__}.")
        ista = ISTA(attention.dim) if ista is None else ista
        if ista.dim != attention.dim:
            raise ValueError(f"CRATEBlock: attention has dim {attention.dim}, but ista has dim {ista.dim}.")
        self.dim, self.norm = attention.dim, norm
        self.attention, self.ista, self.drop_path = attention, ista, DropPath(drop_path)
        if norm == "layer":
            self.norm_attention, self.norm_ista = nn.LayerNorm(self.dim), nn.LayerNorm(self.dim)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after both steps; ``grid`` is the image's rows and columns of patches, for layers that pool them."""
        return self.feed(self.attend(x, grid))

    def seen(self, x: Tensor) -> Tensor:
        """What the attention gets to see of the tokens: normalised as the block does it."""
        return self.norm_attention(x) if self.norm == "layer" else x

    def attend(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The tokens after the attention."""
        if self.norm == "layer":
            return x + self.drop_path(self.attention.adds(self.norm_attention(x), grid))
        if isinstance(self.attention, AttentionLayer):
            return self.attention(x, grid)
        return x + self.attention.adds(x, grid)

    def feed(self, x: Tensor) -> Tensor:
        """Tokens that have passed the attention, after ISTA."""
        return self.ista(self.norm_ista(x) if self.norm == "layer" else x)

    def objectives_at(self, x: Tensor) -> tuple[Objective, Composite]:
        """What the two halves descend at ``x``: the second at the tokens that the first returns."""
        if self.norm != "none":
            raise ValueError(
                "CRATEBlock: no descent is claimed with norm='layer': the LayerNorm stands inside the residual."
            )
        with torch.no_grad():
            between = self.attention.descend(x)
        return self.attention.objective_at(x), self.ista.objective_at(between)

    def descend(self, x: Tensor) -> Tensor:
        """The declared steps, one after the other: slow, for checks only."""
        self.objectives_at(x)
        rule = AlternatingStep((GradientStep(), ProximalStep()), blocks=(0, 0))
        sizes: tuple[Any, Any] = (self.attention.step_size_at(x), self.ista.step_size_at(x))
        (after,) = rule((self.attention.objective_at, self.ista.objective_at), (x,), sizes)
        return after

    @torch.no_grad()
    def trace(self, x: Tensor) -> BlockTrace:
        """The compression term of the attention's bases along the block, and how sparse its output is."""
        if not isinstance(self.attention, SubspaceLayer):
            raise ValueError(f"CRATEBlock: a {type(self.attention).__name__} has no bases to measure the rate in.")
        rate = SubspaceCodingRate(self.attention.U, self.attention.epsilon, orthonormal=False)
        between = self.attend(x)
        after = self.feed(between)
        zeros = (after == 0).to(x.dtype).mean((-2, -1))
        return BlockTrace(rate.value(x), rate.value(between), rate.value(after), zeros)
