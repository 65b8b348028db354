"""The contract of a layer: it declares an objective and a step, and implements ``forward`` by a fast formula."""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import Tensor, nn

from objectives import Objective

from .steps import GradientStep, Step

__all__ = ["UnrolledLayer", "hold"]


def hold(module: nn.Module, name: str, value: Tensor, learnable: bool) -> None:
    """Give ``module`` a learned number, or a constant: no parameter then, and not in its state dictionary."""
    if learnable:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value, persistent=False)


class UnrolledLayer(nn.Module, abc.ABC):
    """A layer that says which objective it descends: ``layer(z) == z − κ ∇f(z)``, f = ``layer.objective_at(z)``.

    To write one, subclass, implement ``forward``, ``objective_at`` and ``step_size_at``, and call
    ``proofs_check.check_layer(layer)``. ``forward`` must never call the declaration: the check compares the two.

    Attributes
    ----------
        dim: the width of a token, so that a check can draw inputs. token_count: the only number of tokens the
        layer takes, or None for any.
    """

    dim: int
    token_count: int | None = None
    declares: ClassVar[str] = "the objective of the subclass"

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The next tokens, by the fast formula; x ``(..., tokens, dim)``."""

    @abc.abstractmethod
    def objective_at(self, x: Tensor) -> Objective:
        """The function that the layer descends exactly at ``x``, auxiliaries frozen (detached) at ``x``."""

    @abc.abstractmethod
    def step_size_at(self, x: Tensor) -> float | Tensor:
        """The step size κ at ``x``: a number, or one for each leading index."""

    def step_rule(self) -> Step:
        """The rule that turns objective and step size into the next tokens."""
        return GradientStep()

    def descend(self, x: Tensor) -> Tensor:
        """The declared step, slow and obvious: for checks only."""
        return self.step_rule()(self.objective_at(x), x, self.step_size_at(x))

    def approximates_at(self, x: Tensor) -> Objective | None:
        """The paper's objective that the layer stands in for at ``x``: measured, never asserted. None if none."""
        return None
