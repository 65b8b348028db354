"""Step rules for objectives with a nonsmooth term, and for several blocks of variables in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from torch import Tensor

from objectives import Composite, Objective

from .errors import check_step_number
from .steps import Step, over_tokens

__all__ = ["AcceleratedProximalStep", "AlternatingStep", "Momentum", "ProximalStep"]


@final
@dataclass(frozen=True)
class ProximalStep:
    r"""The proximal gradient step (ISTA) $z \leftarrow \mathrm{prox}_{\kappa g}(z - \kappa \nabla f(z))$ on f + g.

    Lowers f + g by at least ``(1/κ − L/2) ‖z⁺ − z‖²`` for convex g and κ < 2/L. Without a nonsmooth term it is the
    gradient step.

    Shapes
        x ``(..., tokens, dim)``; step_size a number or ``(...)``
    Source
        Daubechies, Defrise and De Mol 2004; Beck and Teboulle 2009, eq. 2.6.

    >>> import torch
    >>> from objectives import sparse_coding
    >>> f = sparse_coding(torch.eye(2), torch.tensor([[3.0, 0.5]]), 1.0)
    >>> ProximalStep()(f, torch.zeros(1, 2), 1.0)  # with D = I one step of size 1 is the minimum
    tensor([[2., 0.]])
    """

    def __call__(self, objective: Objective, x: Tensor, step_size: float | Tensor) -> Tensor:
        """``prox(x − κ ∇f(x), κ)``."""
        smooth = objective.smooth if isinstance(objective, Composite) else objective
        forward = x - over_tokens(step_size) * smooth.gradient(x)
        return objective.nonsmooth.prox(forward, step_size) if isinstance(objective, Composite) else forward


class Momentum(NamedTuple):
    """A point of an accelerated method: the iterate, the extrapolated point, and t of its recursion."""

    x: Tensor
    extrapolated: Tensor
    t: float


@final
@dataclass(frozen=True)
class AcceleratedProximalStep:
    r"""One step of FISTA: a proximal step from the extrapolated point, then a new extrapolation.

    $x^{+} = \mathrm{prox}_{\kappa g}(y - \kappa\nabla f(y)),\quad t^{+} = \frac{1}{2}(1 + \sqrt{1 + 4t^2}),\quad
    y^{+} = x^{+} + \frac{t - 1}{t^{+}}(x^{+} - x)$. For convex f with κ ≤ 1/L:
    ``F(x_n) − F* ≤ 2 ‖x_0 − x*‖² / (κ (n + 1)²)``. The values need not fall at every step.

    The point carries its momentum, so that the rule stays a pure function: it takes tokens or a :class:`Momentum`,
    and returns a Momentum, whose ``x`` are the tokens.

    Source
        Beck and Teboulle, FISTA, 2009, eq. 4.1 to 4.3 and theorem 4.4.

    >>> import torch
    >>> from objectives import sparse_coding
    >>> point = AcceleratedProximalStep()(sparse_coding(torch.eye(1), torch.ones(1, 1), 0.5), torch.zeros(1, 1), 1.0)
    >>> point.x
    tensor([[0.5000]])
    """

    def __call__(self, objective: Objective, x: Tensor | Momentum, step_size: float | Tensor) -> Momentum:
        """The next iterate with its momentum."""
        check_step_number("AcceleratedProximalStep", step_size)
        at = x if isinstance(x, Momentum) else Momentum(x, x, 1.0)
        after = ProximalStep()(objective, at.extrapolated, step_size)
        t = 0.5 * (1.0 + (1.0 + 4.0 * at.t**2) ** 0.5)
        return Momentum(after, after + (at.t - 1.0) / t * (after - at.x), t)


@final
@dataclass(frozen=True)
class AlternatingStep:
    """One rule after the other, each on its block of variables, with the newest values of all blocks.

    Parameters
    ----------
        rules: a step rule for each move. blocks: the block that each moves, by default the 0th, 1st, 2nd …; naming a
        block twice moves it twice, on two objectives.
    Source
        block coordinate descent (Gauss–Seidel); CRATE, arXiv 2306.01129, section 2.3: compress, then sparsify.

    Raises
    ------
        ValueError if rules, objectives, step sizes and blocks do not match.

    >>> import torch
    >>> from objectives import CodingRate, sparse_coding
    >>> from unrolling import GradientStep
    >>> step = AlternatingStep((GradientStep(), ProximalStep()), blocks=(0, 0))
    >>> compress, sparsify = lambda z: CodingRate(0.5), lambda z: sparse_coding(torch.eye(3), z, 0.1)
    >>> (z,) = step((compress, sparsify), (torch.eye(3),), (0.1, 1.0))
    >>> z.shape
    torch.Size([3, 3])
    """

    rules: tuple[Step, ...]
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("AlternatingStep: give at least one rule.")
        if self.blocks is not None and len(self.blocks) != len(self.rules):
            raise ValueError(f"AlternatingStep: {len(self.rules)} rules, but {len(self.blocks)} blocks.")

    def __call__(
        self,
        objectives: Sequence[Callable[..., Objective]],
        points: Sequence[Tensor],
        step_sizes: Sequence[float | Tensor],
    ) -> tuple[Tensor, ...]:
        """All blocks after one round; ``objectives[i](*blocks)`` is the objective of the i-th move in its block."""
        blocks = tuple(range(len(self.rules))) if self.blocks is None else self.blocks
        if not len(objectives) == len(step_sizes) == len(self.rules):
            raise ValueError(
                f"AlternatingStep: {len(self.rules)} rules, but {len(objectives)} objectives and {len(step_sizes)} step"
                " sizes; give one of each a rule."
            )
        if not all(0 <= block < len(points) for block in blocks):
            raise ValueError(f"AlternatingStep: blocks {blocks} of {len(points)} variables; they are counted from 0.")
        now = list(points)
        for rule, make, block, step_size in zip(self.rules, objectives, blocks, step_sizes, strict=True):
            now[block] = rule(make(*now), now[block], step_size)
        return tuple(now)


def tokens_of(point: Tensor | Momentum) -> Tensor:
    """The tokens of a point, with or without momentum."""
    return point.x if isinstance(point, Momentum) else point
