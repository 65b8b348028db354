"""The sparse rate reduction of a network's own blocks, as a term of the loss: training that is told to keep the promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from objectives import SubspaceRateReduction

from ..layers.crate import CRATEBlock
from ..subspace import SubspaceLayer

__all__ = ["SparseRate"]


class SparseRate:
    r"""The mean over blocks of $\big(R_c(Z \mid U) - R(Z)\big)/N + \lambda \lVert Z \rVert_1 / (N d)$ at the blocks' outputs.

    U are the bases of the block's own attention, each made orthonormal (by its QR factorisation), and tokens are scaled to
    norm √d first: a block cannot lower the rate by shrinking either. ε is the attention's. A context that listens to the
    blocks of one forward pass.

    Source
        the regulariser of Hu, Zou and Xu, arXiv 2411.17182, on all blocks; CRATE, arXiv 2306.01129, eq. 9
    Raises
        ValueError for a network without white-box blocks

    >>> from unrolling.models import CBT
    >>> model = CBT(img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=4, representatives=(2, 2))
    >>> with SparseRate(model) as rate: _ = model(torch.randn(2, 3, 16, 16))
    >>> len(rate.terms), rate.value().shape
    (2, torch.Size([]))
    """

    def __init__(self, model: nn.Module, sparsity: float = 0.1) -> None:
        self.blocks = [
            m for m in model.modules() if isinstance(m, CRATEBlock) and isinstance(m.attention, SubspaceLayer)
        ]
        if not self.blocks:
            raise ValueError(
                f"regularise: {type(model).__name__} has no white-box blocks, whose rate could be lowered; use cbt or crate."
            )
        self.sparsity, self.terms = sparsity, list[Tensor]()
        self.handles: list[Any] = []

    def __enter__(self) -> SparseRate:
        self.terms = []
        self.handles = [block.register_forward_hook(self._listen) for block in self.blocks]
        return self

    def __exit__(self, *problem: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _listen(self, block: CRATEBlock, inputs: Any, output: Tensor) -> None:
        layer: Any = block.attention
        tokens, d = output.float(), output.shape[-1]
        unit = tokens * d**0.5 / tokens.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        bases = torch.linalg.qr(layer.U.float()).Q
        # Orthonormal each, but not to one another.
        rate = SubspaceRateReduction(bases, layer.epsilon, orthonormal=False).value(unit) / output.shape[-2]
        self.terms.append((rate + self.sparsity * unit.abs().mean((-1, -2))).mean())

    def value(self) -> Tensor:
        """The mean over the blocks of the last forward pass."""
        return torch.stack(self.terms).mean()
