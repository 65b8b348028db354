"""Step rules: pure functions of an objective, a point and a step size, that return the next point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from objectives import Objective

from .errors import check_count, check_point, check_step_number, real_number

__all__ = ["ArmijoStep", "ExactLineSearchStep", "GradientStep", "Step"]


class Step(Protocol):
    """A rule that turns (objective, point, step size) into the next point."""

    def __call__(self, objective: Objective, x: Tensor, step_size: float | Tensor) -> Tensor:
        """The next point; ``step_size`` is a number, or one for each leading index of ``x``."""
        ...


@final
@dataclass(frozen=True)
class GradientStep:
    r"""The gradient step $z \leftarrow z - \kappa \nabla f(z)$.

    Shapes
        x ``(..., tokens, dim)``; step_size a number or ``(...)``

    >>> import torch
    >>> from objectives import CodingRate
    >>> GradientStep()(CodingRate(epsilon=1.0), torch.eye(2, dtype=torch.float64), 1.0).diagonal()
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __call__(self, objective: Objective, x: Tensor, step_size: float | Tensor) -> Tensor:
        """``x − κ ∇f(x)``."""
        check_point("GradientStep", objective, x, step_size)
        return x - over_tokens(step_size) * objective.gradient(x)


@final
@dataclass(frozen=True)
class ArmijoStep:
    r"""The gradient step with backtracking: the first $t = \kappa, \kappa r, \kappa r^2, \ldots$ that descends enough.

    Accepts t when ``f(x − t ∇f) ≤ f(x) − slope · t ‖∇f‖²`` (Armijo's condition), for each leading index by itself.
    The search is not differentiated: gradients flow through the step taken, not through its length.

    Parameters
    ----------
        shrink: r in (0, 1). slope: in (0, 1). max_trials: steps tried before the rule gives up and stays at x.
    Source
        Armijo 1966; Nocedal and Wright, Numerical Optimization, algorithm 3.1.

    Raises
    ------
        ValueError for parameters outside their ranges or a step size that is not positive.
    """

    shrink: float = 0.5
    slope: float = 1e-4
    max_trials: int = 60

    def __post_init__(self) -> None:
        for name, value in (("shrink", self.shrink), ("slope", self.slope)):
            if not 0 < real_number("ArmijoStep", name, value) < 1:
                raise ValueError(f"ArmijoStep: {name} must lie in (0, 1), but is {value}.")
        check_count("ArmijoStep", "max_trials", self.max_trials)

    def __call__(self, objective: Objective, x: Tensor, step_size: float | Tensor) -> Tensor:
        """The first sufficient step from ``x``; ``x`` itself where none was found."""
        check_point("ArmijoStep", objective, x, step_size)
        check_step_number("ArmijoStep", step_size)
        gradient = objective.gradient(x)
        with torch.no_grad():
            start, squared = objective.value(x), gradient.square().sum((-2, -1))
            length = torch.as_tensor(step_size, dtype=x.dtype, device=x.device).expand(squared.shape).clone()
            waiting = torch.ones_like(squared, dtype=torch.bool)
            for _ in range(self.max_trials):
                trial = objective.value(x - length[..., None, None] * gradient)
                waiting = ~(trial <= start - self.slope * length * squared)
                if not bool(waiting.any()):
                    break
                length = torch.where(waiting, length * self.shrink, length)
            length = torch.where(waiting, torch.zeros_like(length), length)
        return x - length[..., None, None] * gradient


@final
@dataclass(frozen=True)
class ExactLineSearchStep:
    r"""The gradient step to a minimum of $\varphi(t) = f(x - t \nabla f(x))$ along the ray.

    φ'(t) = −⟨∇f(x − t∇f(x)), ∇f(x)⟩ is negative at 0. The bracket doubles from ``step_size`` while φ' < 0 and φ
    falls; bisection keeps its lower end falling and never above the start, so the step never raises f. Each leading
    index by itself; not differentiated through t.

    Raises
    ------
        ValueError for a step size that is not positive, and if φ' stays negative through ``max_doublings``
        (a concave energy, say, that falls without bound along its gradient).
    """

    bisections: int = 80
    max_doublings: int = 60

    def __post_init__(self) -> None:
        check_count("ExactLineSearchStep", "bisections", self.bisections, 0)
        check_count("ExactLineSearchStep", "max_doublings", self.max_doublings, 0)

    def __call__(self, objective: Objective, x: Tensor, step_size: float | Tensor) -> Tensor:
        """The first stationary point of the objective along its steepest descent from ``x``."""
        check_point("ExactLineSearchStep", objective, x, step_size)
        check_step_number("ExactLineSearchStep", step_size)
        gradient = objective.gradient(x)
        with torch.no_grad():
            moving = gradient.square().sum((-2, -1)) > 0

            def follow(t: Tensor) -> tuple[Tensor, Tensor]:
                point = x - t[..., None, None] * gradient
                return objective.value(point), -(objective.gradient(point) * gradient).sum((-2, -1))

            high = torch.as_tensor(step_size, dtype=x.dtype, device=x.device).expand(moving.shape).clone()
            low, best = torch.zeros_like(high), objective.value(x)
            slack = 4 * torch.finfo(x.dtype).eps * (1 + best.abs())

            def falling(t: Tensor) -> tuple[Tensor, Tensor]:
                value, slope = follow(t)
                return moving & (slope < 0) & (value <= best + slack), value

            for _ in range(self.max_doublings):
                on, value = falling(high)
                if not bool(on.any()):
                    break
                low, best, high = (
                    torch.where(on, high, low),
                    torch.where(on, value, best),
                    torch.where(on, 2 * high, high),
                )
            else:
                raise ValueError(
                    f"ExactLineSearchStep: {type(objective).__name__} still falls after {self.max_doublings} doublings of"
                    " the step size; it may have no minimum along its gradient. Use GradientStep or ArmijoStep."
                )
            for _ in range(self.bisections):
                middle = 0.5 * (low + high)
                on, value = falling(middle)
                best = torch.where(on, value, best)
                low, high = torch.where(on, middle, low), torch.where(on, high, middle)
            length = torch.where(moving, low, torch.zeros_like(low))
        return x - length[..., None, None] * gradient


def over_tokens(step_size: float | Tensor) -> float | Tensor:
    """Step sizes of leading indices in a shape that multiplies ``(..., tokens, dim)``."""
    if isinstance(step_size, Tensor) and step_size.ndim:
        return step_size[..., None, None]
    return step_size
