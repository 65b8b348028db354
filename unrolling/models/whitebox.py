"""The skeleton that CRATE and CBT share: a stem, blocks of one attention and one ISTA step, a head on the class token."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import AttentionLayer
from ..drop_path import growing
from ..errors import check_choice
from ..layers.agent import AgentAttention
from ..layers.cbsa import CBSA
from ..layers.crate import CRATEBlock
from ..layers.ista import ISTA
from ..layers.mita import MiTA
from ..layers.mssa import MSSA
from ..layers.softmax import SoftmaxAttention
from ..layers.tssa import TSSA
from ..representatives import GridPool, OfficialGridPool, Representatives
from ..subspace import SubspaceLayer
from .base import ModelConfig
from .image import ImageConfig, ImageModel
from .parts import LinearStem, Positions, check_image

__all__ = ["ATTENTIONS", "WhiteBox", "WhiteBoxConfig", "make_attention", "pool_of", "published_start_"]

ATTENTIONS = ("mssa", "cbsa", "tssa", "softmax", "agent", "mita")
"""What stands in the place of the attention of a white-box block, for comparisons with everything else equal."""


@dataclass(frozen=True)
class WhiteBoxConfig(ImageConfig):
    """Sizes and options of CRATE and CBT.

    img_size: of the images that positions are made for; others are resized to. embed_dim: d. head_dim: p, d/heads by
    default. form: "softmax" as published, or "exact". tied: project back by the bases instead of a free matrix.
    orthonormal: keep the bases orthonormal. certified: steps below the bound under which the objective never rises (of
    exact, tied, orthonormal layers). epsilon: ε. ista_step, ista_weight: η and λ. global_pool: "token" or "avg",
    of all tokens. drop_rate: of the embedded tokens; attn_drop_rate: of MSSA's attention weights and output;
    drop_path_rate: of residual branches, growing linearly with depth. compat: "official" for what the released code
    does otherwise: the pooled grid is shifted by the class token, other image sizes take the first positions, and
    images need not be whole patches.
    """

    embed_dim: int = 384
    num_heads: int = 6
    head_dim: int | None = None
    form: str = "softmax"
    tied: bool = False
    orthonormal: bool = False
    certified: bool = False
    epsilon: float = 0.5
    ista_step: float = 0.1
    ista_weight: float = 0.1
    global_pool: str = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        check_choice(owner, "form", self.form, ("softmax", "exact"))
        check_choice(owner, "global_pool", self.global_pool, ("token", "avg"))
        if self.certified and not (self.form == "exact" and self.tied and self.orthonormal):
            raise ValueError(f"{owner}: certified steps need form='exact', tied=True and orthonormal=True.")


class WhiteBox(ImageModel, abc.ABC):
    """Stem, class token and positions, blocks ``x + attention(LN(x))`` then ``ISTA(LN(·))``, head; see CRATE and CBT."""

    config: WhiteBoxConfig
    grid: tuple[int, int]

    def __init__(self, config: ModelConfig | None = None, **changes: Any) -> None:
        super().__init__(config, **changes)
        c = self.config
        self.stem = self._stem()
        resize = "slice" if c.compat else "bicubic"
        self.positions = Positions(c.embed_dim, c.grid, resize=resize, std=1.0)
        shares = growing(c.drop_path_rate, c.depth)
        self.blocks = nn.ModuleList(
            CRATEBlock(
                self._attention(index),
                ISTA(c.embed_dim, step_size=c.ista_step, weight=c.ista_weight),
                norm="layer",
                drop_path=shares[index],
            )
            for index in range(c.depth)
        )
        self.head_norm = nn.LayerNorm(c.embed_dim)
        self.head = self._scores()

    @abc.abstractmethod
    def _stem(self) -> nn.Module:
        """From images to tokens."""

    @abc.abstractmethod
    def _attention(self, index: int) -> SubspaceLayer | AttentionLayer:
        """The attention of block ``index``."""

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens that enter the first block, the class token first, and the grid of the patches."""
        whole = isinstance(self.stem, LinearStem) or self.config.compat is None
        like = next(self.stem.parameters())
        check_image(type(self).__name__, x, self.config.in_chans, self.patch, whole=whole, like=like)
        tokens, grid = self.stem(x)
        return F.dropout(self.positions(tokens, grid), self.config.drop_rate, self.training), grid

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last block, ``(batch, 1 + patches, embed_dim)``."""
        return self._through_blocks(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """Class scores from the tokens of :meth:`forward_features`."""
        pooled = x[:, 0] if self.config.global_pool == "token" else x.mean(1)
        return self.head(self.head_norm(pooled))


def make_attention(
    kind: str, config: WhiteBoxConfig, *, pool: Representatives | None = None, keys_per_expert: int = 25
) -> SubspaceLayer | AttentionLayer:
    """An attention of the published form, or its exact or tied variant, for a white-box block; see :data:`ATTENTIONS`."""
    check_choice("make_attention", "attention", kind, ATTENTIONS)
    c = config
    dim, heads, head_dim = c.embed_dim, c.num_heads, c.head_dim
    basis = "orthonormal" if c.orthonormal else "free"
    bias = not c.tied
    strategy = pool if pool is not None else pool_of((8, 8), c.compat)
    layer: SubspaceLayer | AttentionLayer
    if kind == "mssa":
        layer = MSSA(
            dim,
            heads,
            head_dim,
            form=c.form,
            epsilon=c.epsilon,
            basis=basis,
            tied=c.tied,
            output_bias=bias,
            learnable_step=c.form == "exact",
            certified=c.certified,
            dropout=c.attn_drop_rate,
        )
    elif kind == "cbsa":
        layer = CBSA(
            dim,
            heads,
            head_dim,
            representatives=strategy,
            form=c.form,
            epsilon=c.epsilon,
            basis=basis,
            tied=c.tied,
            output_bias=bias,
            per_head_step=True,
            certified=c.certified,
            keep_queries=c.form == "softmax",
            class_tokens=1,
            compat=c.compat,
        )
    elif kind == "tssa":
        # ε² = d and no 1/N in the step are the constants of the released code.
        layer = TSSA(
            dim,
            heads,
            head_dim,
            epsilon=dim**0.5 if c.form == "softmax" else c.epsilon,
            basis=basis,
            tied=c.tied,
            output_bias=bias,
            learnable_step=c.form == "exact",
            certified=c.certified,
            normalise_tokens=c.form == "softmax",
            unit_step=c.form == "softmax",
            count_offset=1e-8 if c.form == "softmax" else 0.0,
        )
    elif kind == "softmax":
        layer = SoftmaxAttention(dim, heads, head_dim, learnable_step=False, class_tokens=1)
    elif kind == "agent":
        layer = AgentAttention(dim, heads, head_dim, agents=strategy, learnable_step=False, class_tokens=1)
    else:
        layer = MiTA(
            dim,
            heads,
            head_dim,
            landmarks=strategy,
            keys_per_expert=keys_per_expert,
            learnable_step=False,
            class_tokens=1,
        )
    published_start_(layer)
    return layer


def pool_of(size: tuple[int, int], compat: str | None) -> Representatives:
    """Pooling of the patches to a grid; as the released code does it under compat."""
    return GridPool(size) if compat is None else OfficialGridPool(size)


@torch.no_grad()
def published_start_(layer: nn.Module) -> None:
    """Start free bases and output matrices as linear maps do, and CBSA's steps at N(0, 1), as the released code does."""
    if not isinstance(layer, SubspaceLayer) or layer.orthonormal:
        return
    layer.basis.uniform_(-(layer.dim**-0.5), layer.dim**-0.5)
    if not layer.tied and layer.projected:
        layer.output.reset_parameters()
    if isinstance(layer, CBSA) and layer.form == "softmax":
        layer.step.normal_()
