"""Any objective becomes a network: its steps, one after the other, with step sizes and parameters to learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from objectives import Objective, certified_step_size

from .errors import check_count, check_step_number
from .orthonormal import OrthonormalColumns
from .proximal import AcceleratedProximalStep, Momentum, tokens_of
from .steps import GradientStep, Step

__all__ = ["Unrolled"]


@final
class Unrolled(nn.Module):
    r"""A network of ``depth`` steps on an objective: $z^{l+1} = \mathrm{step}(f_{z^l}, z^l, \kappa_l)$.

    Parameters
    ----------
        objective: an :class:`objectives.Objective`, or a factory ``x -> Objective`` that builds one at each point
        (frozen arguments recomputed at every depth); a factory that is an ``nn.Module`` keeps its own parameters.
        step: a rule from :mod:`unrolling.steps`. depth: number of steps. step_size: κ > 0, or "certified" for 1/L at
        every point (then nothing is learned). learnable_step: κ is learned, as exp(θ), so it stays positive.
        learn: names of the objective's fields to learn, tensors or numbers, e.g. ``("U",)``; ``U`` of orthonormal
        bases stays orthonormal by a Householder parametrization, ``epsilon`` and ``scale`` positive as exp(θ).
        shared: one step size and one set of learned fields for all depths, or (False) one for each.
    Shapes
        x ``(..., tokens, dim)`` to the same; with ``return_values`` also ``(depth + 1, ...)``, the objective's value
        before the first step and after every step, each at the objective of its own point.
    Source
        LISTA (Gregor and LeCun, 2010); ReduNet, arXiv 2105.10446; CRATE, arXiv 2306.01129.

    Raises
    ------
        ValueError for a depth or step size out of range or unknown field names; TypeError for other objectives.

    >>> import torch
    >>> from objectives import CodingRate
    >>> network = Unrolled(CodingRate(epsilon=0.5), depth=3, step_size="certified")
    >>> x, values = network(torch.eye(4, dtype=torch.float64), return_values=True)
    >>> bool((values.diff() < 0).all())
    True
    """

    def __init__(
        self,
        objective: Objective | Callable[[Tensor], Objective],
        step: Step | AcceleratedProximalStep | None = None,
        depth: int = 12,
        *,
        step_size: float | str = 0.1,
        learnable_step: bool = True,
        learn: Sequence[str] = (),
        shared: bool = False,
    ) -> None:
        super().__init__()
        check_count("Unrolled", "depth", depth)
        if not callable(objective) and not isinstance(objective, Objective):
            raise TypeError(
                f"Unrolled: objective must be an Objective or a callable that builds one, but is a {type(objective).__name__}."
            )
        self.depth, self.shared, self.step = depth, shared, GradientStep() if step is None else step
        if (
            isinstance(learn, str)
            or not isinstance(learn, Sequence)
            or not all(isinstance(name, str) for name in learn)
        ):
            raise TypeError(f"Unrolled: learn must be names of fields, as ('epsilon',), but is {learn!r}.")
        self.learn = tuple(learn)
        self.certified = isinstance(step_size, str) and step_size == "certified"
        self.objective: Objective | Callable[[Tensor], Objective] = objective
        stored = 1 if shared else depth
        if not self.certified:
            if isinstance(step_size, str):
                raise ValueError(f"Unrolled: step_size must be a positive number or 'certified', but is {step_size!r}.")
            check_step_number("Unrolled", step_size)
            log_step = torch.full((stored,), float(step_size), dtype=torch.float64).log().to(torch.get_default_dtype())
            self.log_step = nn.Parameter(log_step, requires_grad=learnable_step)
        if self.learn and not isinstance(objective, Objective):
            raise ValueError("Unrolled: learn= names fields of an Objective; a factory keeps parameters of its own.")
        self.fields = nn.ModuleList(_Fields(objective, self.learn) for _ in range(stored)) if self.learn else None

    @property
    def step_sizes(self) -> Tensor:
        """κ of every depth, ``(depth,)``."""
        if self.certified:
            raise ValueError("Unrolled: certified step sizes depend on the point; there are no stored ones.")
        return self.log_step.exp().expand(self.depth)

    def objective_at(self, x: Tensor, layer: int = 0) -> Objective:
        """The objective that depth ``layer`` descends at ``x``, with the fields learned so far."""
        if self.fields is not None:
            fields = cast(_Fields, self.fields[0 if self.shared else layer])
            return fields.objective()
        return self.objective if isinstance(self.objective, Objective) else self.objective(x)

    def forward(self, x: Tensor, return_values: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The tokens after all steps, and on request the objective's values."""
        if not isinstance(x, Tensor):
            raise TypeError(f"Unrolled: x must be a torch.Tensor, but is a {type(x).__name__}.")
        values = []
        step = cast(Callable[[Objective, Tensor | Momentum, Tensor], Tensor | Momentum], self.step)
        point: Tensor | Momentum = x
        for layer in range(self.depth):
            x = tokens_of(point)
            objective = self.objective_at(x, layer)
            if return_values:
                values.append(objective.value(x))
            kappa = certified_step_size(objective, x).step_size if self.certified else self.step_sizes[layer]
            point = step(objective, point, kappa if self.certified else kappa.to(x.dtype))
        x = tokens_of(point)
        if not return_values:
            return x
        return x, torch.stack([*values, self.objective_at(x, self.depth - 1).value(x)])

    def extra_repr(self) -> str:
        """Depth and options."""
        return f"depth={self.depth}, step={self.step}, learn={self.learn}, shared={self.shared}"


class _Fields(nn.Module):
    """The learned fields of one objective, kept inside their domains."""

    def __init__(self, objective: Objective | Callable[[Tensor], Objective], names: tuple[str, ...]) -> None:
        super().__init__()
        known = {field.name for field in dataclasses.fields(objective)}  # type: ignore[arg-type]
        if unknown := sorted(set(names) - known):
            raise ValueError(f"Unrolled: {type(objective).__name__} has no field {unknown}; it has {sorted(known)}.")
        self.template, self.names = objective, names
        self.layout: dict[str, torch.Size] = {}
        for name in names:
            value = getattr(objective, name)
            if name in ("epsilon", "scale"):
                self.register_parameter(f"log_{name}", nn.Parameter(torch.as_tensor(value).log()))
            elif isinstance(value, Tensor) and name == "U":
                self.layout[name] = value.shape
                self.U = nn.Parameter(value.detach().transpose(0, 1).flatten(-2).clone())
                if getattr(objective, "orthonormal", False):
                    parametrize.register_parametrization(self, "U", OrthonormalColumns(self.U.shape[-1]))
            elif isinstance(value, Tensor):
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
            else:
                raise ValueError(f"Unrolled: field {name!r} is {value!r}, which cannot be learned.")

    def objective(self) -> Objective:
        """The template with its learned fields in place."""
        values = {}
        for name in self.names:
            if name in ("epsilon", "scale"):
                values[name] = getattr(self, f"log_{name}").exp()
            elif name in self.layout:
                heads, _, head_dim = self.layout[name]
                values[name] = self.U.unflatten(-1, (heads, head_dim)).transpose(0, 1)
            else:
                values[name] = getattr(self, name)
        return cast(Objective, dataclasses.replace(self.template, **values))  # type: ignore[type-var]
