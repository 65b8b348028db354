"""Representative strategies of CBSA: which few (or all) vectors stand for the tokens of a head."""

from __future__ import annotations

import abc
import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import check_count, check_pair

__all__ = [
    "SVD",
    "Axes",
    "GridPool",
    "LearnedQueries",
    "OfficialGridPool",
    "Representatives",
    "SequencePool",
    "Strided",
    "Tokens",
]


class Representatives(nn.Module, abc.ABC):
    """How CBSA finds its initial representatives; the softmax of their products with the tokens extracts the rest."""

    softmax_extraction: ClassVar[bool] = True
    """Whether ``initial`` feeds P = softmax(s Q_ini Wᵀ). The others (all tokens, SVD, axes) need no softmax."""

    pools: ClassVar[bool] = False
    """Whether ``initial`` is a function of each head's tokens by itself, with nothing learned in it."""

    token_count: int | None = None
    count: int | None = None
    """The number of representatives, where the tokens do not decide it."""

    def initial(self, w: Tensor, class_tokens: int, grid: tuple[int, int] | None) -> Tensor:
        """Q_ini ``(..., heads, m, head_dim)`` from the coordinates w ``(..., heads, tokens, head_dim)``.

        The first ``class_tokens`` tokens have no place in the image and are left out; ``grid`` is its height and
        width in patches.
        """
        raise TypeError(f"{type(self).__name__} has no initial representatives: it needs no softmax extraction.")


@final
class GridPool(Representatives):
    """Two-dimensional adaptive average pooling of the patch tokens to a grid of representatives.

    Parameters
    ----------
        size: rows and columns of representatives, 8 × 8 in CBSA. grid: rows and columns of patches, if the same for
        every input; else give ``grid=`` in the call. A square is never assumed.
    Source
        CBSA, arXiv 2509.16875, section 3.2. Bin i of n cells pooled to m covers ⌊i n/m⌋ … ⌈(i+1) n/m⌉ − 1.

    Raises
    ------
        ValueError if rows × columns is not the number of patch tokens, or no grid was given.
    """

    pools = True

    def __init__(self, size: tuple[int, int] = (8, 8), grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        for name, value in (("size", size), ("grid", grid)):
            if value is not None or name == "size":
                check_pair("GridPool", name, value)
        self.size, self.grid = (size[0], size[1]), grid
        self.count = size[0] * size[1]
        self.token_count = None if grid is None else grid[0] * grid[1]

    def initial(self, w: Tensor, class_tokens: int, grid: tuple[int, int] | None) -> Tensor:
        """The averages of the patch tokens over the bins."""
        patches = _patches("GridPool", w, class_tokens)
        grid = self.grid if grid is None else grid
        if grid is None:
            raise ValueError(
                f"GridPool: the grid of the {patches.shape[-2]} patch tokens is not known; pass grid=(rows, columns) to"
                " the call or to GridPool. A square is never assumed; for a sequence use SequencePool."
            )
        check_pair("GridPool", "grid", grid)
        if grid[0] * grid[1] != patches.shape[-2]:
            raise ValueError(
                f"GridPool: grid {grid[0]} × {grid[1]} = {grid[0] * grid[1]}, but there are {patches.shape[-2]} patch tokens"
                f" ({w.shape[-2]} tokens less {class_tokens} class tokens)."
            )
        return _pooled(patches, grid, self.size)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"size={self.size}, grid={self.grid}"


@final
class SequencePool(Representatives):
    """One-dimensional adaptive average pooling of the patch tokens to ``count`` representatives."""

    pools = True

    def __init__(self, count: int) -> None:
        super().__init__()
        check_count("SequencePool", "count", count)
        self.count = self.length = count

    def initial(self, w: Tensor, class_tokens: int, grid: tuple[int, int] | None) -> Tensor:
        """The averages of consecutive tokens over the bins."""
        patches = _patches("SequencePool", w, class_tokens)
        return _pooled(patches, (1, patches.shape[-2]), (1, self.length))

    def extra_repr(self) -> str:
        """Size."""
        return f"count={self.count}"


@final
class LearnedQueries(Representatives):
    """Initial representatives that are learned, the same for every input; drawn from N(0, 1) at first."""

    def __init__(self, count: int, heads: int, head_dim: int) -> None:
        super().__init__()
        for name, value in (("count", count), ("heads", heads), ("head_dim", head_dim)):
            check_count("LearnedQueries", name, value)
        self.queries, self.count = nn.Parameter(torch.randn(heads, count, head_dim)), count

    def initial(self, w: Tensor, class_tokens: int, grid: tuple[int, int] | None) -> Tensor:
        """The learned queries, whatever the tokens."""
        if self.queries.shape[::2] != w.shape[-3::2]:
            raise ValueError(
                f"LearnedQueries: made for (heads, head_dim) = {tuple(self.queries.shape[::2])}, but the layer has"
                f" {tuple(w.shape[-3::2])}."
            )
        return self.queries.expand(*w.shape[:-3], *self.queries.shape)


@final
class Strided(Representatives):
    """Every ``stride``-th patch token is an initial representative."""

    pools = True

    def __init__(self, stride: int) -> None:
        super().__init__()
        check_count("Strided", "stride", stride)
        self.stride = stride

    def initial(self, w: Tensor, class_tokens: int, grid: tuple[int, int] | None) -> Tensor:
        """Patch tokens 0, stride, 2 stride, …"""
        return _patches("Strided", w, class_tokens)[..., :: self.stride, :]

    def extra_repr(self) -> str:
        """Stride."""
        return f"stride={self.stride}"


@final
class Tokens(Representatives):
    """The tokens represent themselves: Q = W, P = I. CBSA is then MSSA (CBSA, eq. 9)."""

    softmax_extraction = False


@final
class SVD(Representatives):
    """The principal directions: W = R Σ Lᵀ, P = Rᵀ, m = p. CBSA's exact form is then linear attention (eq. 12).

    No decomposition is computed: ``Pᵀ contract(P W) = W (I + WᵀW/ε²)⁻¹/ε²`` whatever the signs and order of R.
    """

    softmax_extraction = False


@final
class Axes(Representatives):
    """The coordinate axes scaled by the channels' norms: CBSA's exact form is then channel attention (eq. 13)."""

    softmax_extraction = False


@final
class OfficialGridPool(Representatives):
    """The pooling of the released code of CBSA and MiTA, its slip included: where ``compat="official"`` asks for it.

    The released encoders drop the LAST token and pool the rest as a square, while their class token comes FIRST: the
    grid that they pool is [class, patch 0, …], shifted by one cell. Their decoders drop the last 150, the classes.

    Parameters
    ----------
        size: rows and columns of representatives. dropped: numbers of tokens that may be left out at the end; the first
        that leaves a square is taken. leading: leave them out at the beginning instead, where a class token is.

    Raises
    ------
        ValueError where none of them leaves a square.
    """

    pools = True

    def __init__(
        self, size: tuple[int, int] = (8, 8), dropped: tuple[int, ...] = (1,), *, leading: bool = False
    ) -> None:
        super().__init__()
        check_pair("OfficialGridPool", "size", size)
        for count in dropped:
            check_count("OfficialGridPool", "dropped", count)
        self.size, self.dropped, self.count = (size[0], size[1]), tuple(dropped), size[0] * size[1]
        self.leading = leading

    def initial(self, w: Tensor, class_tokens: int, grid: tuple[int, int] | None) -> Tensor:
        """The averages of the tokens but the last, laid out as a square."""
        tokens = w.shape[-2]
        for drop in self.dropped:
            side = math.isqrt(max(0, tokens - drop))
            if side > 0 and side * side == tokens - drop:
                kept = w[..., drop:, :] if self.leading else w[..., :-drop, :]
                image = kept.mT.reshape(-1, w.shape[-1], side, side)
                pooled = F.adaptive_avg_pool2d(image, self.size).flatten(-2).mT
                return pooled.reshape(*w.shape[:-2], -1, w.shape[-1])
        wanted = " or ".join(f"g² + {drop}" for drop in self.dropped)
        raise ValueError(f"OfficialGridPool: the released code takes {wanted} tokens, but there are {tokens}.")

    def extra_repr(self) -> str:
        """Sizes."""
        return f"size={self.size}, dropped={self.dropped}" + (", leading" if self.leading else "")


def _pooled(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of tokens ``(..., heads, tokens, p)`` that lie on a grid.

    Where the bins are equal it is two sums over the tokens as they lie in memory: torch's own pooling would first copy
    them channel by channel, and take longer for that than the layer takes for the rest.
    """
    bins = [cells // count for cells, count in zip(grid, size, strict=True)]
    if grid == (bins[0] * size[0], bins[1] * size[1]) and patches.ndim >= 3:
        joint = patches.transpose(-3, -2).unflatten(-3, (size[0], bins[0], size[1], bins[1]))
        return (joint.sum(-5).sum(-3) / (bins[0] * bins[1])).flatten(-4, -3).transpose(-3, -2)
    image = patches.mT.reshape(-1, patches.shape[-1], *grid)
    pooled = F.adaptive_avg_pool2d(image, size).flatten(-2).mT
    return pooled.reshape(*patches.shape[:-2], -1, patches.shape[-1])


def _patches(owner: str, w: Tensor, class_tokens: int) -> Tensor:
    if w.shape[-2] <= class_tokens:
        raise ValueError(
            f"{owner}: {w.shape[-2]} tokens of which {class_tokens} are class tokens leave nothing to represent them."
        )
    return w[..., class_tokens:, :]
