"""What MSSA and CBSA share: bases, output matrix, step sizes. The formulas are the layers' own."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from objectives import Objective

from .base import UnrolledLayer, hold
from .errors import (
    check_choice,
    check_count,
    check_input,
    check_precision,
    check_sizes,
    positive_number,
    real_number,
    step_in_certificate,
)
from .kernels.choice import check_path
from .orthonormal import OrthonormalColumns

__all__ = ["SubspaceLayer", "contract", "per_head"]


class SubspaceLayer(UnrolledLayer, abc.ABC):
    """A layer that works on the coordinates of the tokens in K subspaces and moves the tokens along them.

    See :class:`unrolling.MSSA` and :class:`unrolling.CBSA` for the arguments.
    """

    step: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        *,
        form: str,
        forms: tuple[str, ...],
        epsilon: float,
        scale: float | None,
        step_size: float,
        learnable_step: bool,
        per_head_step: bool,
        certified: bool,
        tied: bool,
        output_bias: bool,
        basis: str,
        class_tokens: int,
        U: Tensor | None,
        residual: bool = True,
        projected: bool = True,
        coordinate_bias: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        owner = self._owner = type(self).__name__  # a parametrization renames the class
        check_count(owner, "dim", dim)
        check_count(owner, "heads", heads)
        if U is not None and (not isinstance(U, Tensor) or U.ndim != 3 or U.shape[:2] != (heads, dim)):
            raise ValueError(
                f"{owner}: U must be a tensor (heads, dim, head_dim) = ({heads}, {dim}, …), but is"
                f" {tuple(U.shape) if isinstance(U, Tensor) else type(U).__name__}."
            )
        if U is not None:
            head_dim = U.shape[-1]
        elif head_dim is None:
            head_dim = dim // heads
        check_choice(owner, "basis", basis, ("orthonormal", "free"))
        check_sizes(owner, dim, heads, head_dim, basis == "orthonormal")
        check_choice(owner, "form", form, forms)
        check_count(owner, "class_tokens", class_tokens, 0)
        epsilon = positive_number(owner, "epsilon", epsilon)
        check_precision(owner, epsilon)
        scale = None if scale is None else positive_number(owner, "scale", scale)
        if U is not None and (not U.dtype.is_floating_point or U.layout != torch.strided or U.is_meta):
            raise TypeError(
                f"{owner}: U must be a dense floating-point tensor that holds numbers, but is {U.dtype} {U.layout}."
            )
        if U is not None and basis == "orthonormal" and U.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f"{owner}: U is {U.dtype}, in which nothing is orthonormal; convert it: U.float().")
        self.dim, self.heads, self.head_dim = dim, heads, head_dim
        self.form, self.epsilon, self.class_tokens = form, epsilon, class_tokens
        self.scale = head_dim**-0.5 if scale is None else scale
        self.certified, self.tied, self.per_head_step = certified, tied, per_head_step
        self.residual, self.projected = residual, projected
        check_path(owner, kernel)
        self.kernel = kernel
        self._init_basis(basis, U)
        self.basis_bias = nn.Parameter(torch.zeros_like(self.basis[0])) if coordinate_bias else None
        self._init_output(output_bias)
        self._init_step(real_number(owner, "step_size", step_size), learnable_step)

    def _init_basis(self, basis: str, U: Tensor | None) -> None:
        flat = torch.empty(self.dim, self.heads * self.head_dim)
        if U is not None:
            flat = U.detach().transpose(0, 1).flatten(-2).clone()
        else:
            nn.init.orthogonal_(flat)
        self.orthonormal = basis == "orthonormal"
        self.basis = nn.Parameter(flat)
        if self.orthonormal:
            gram = flat.mT @ flat
            deviation = float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max())
            if not deviation <= max(torch.finfo(flat.dtype).eps ** 0.5, 1e-6):
                raise ValueError(
                    f"{self._owner}: U is not orthonormal: max |UᵀU − I| = {deviation:.3g}. Orthonormalise it,"
                    " or pass basis='free'."
                )
            # Householder reflections keep the columns orthonormal to rounding whatever the optimiser does.
            parametrize.register_parametrization(self, "basis", OrthonormalColumns(flat.shape[-1]))

    def _init_output(self, bias: bool) -> None:
        owner, inner = self._owner, self.heads * self.head_dim
        if bias and (self.tied or not self.projected):
            raise ValueError(f"{owner}: an output bias belongs to a free output matrix; pass tied=False.")
        if not self.projected and (self.tied or inner != self.dim):
            raise ValueError(
                f"{owner}: projected=False leaves the coordinates as they are: it goes with tied=False, and with"
                f" heads × head_dim = dim, but {self.heads} × {self.head_dim} = {inner} and dim is {self.dim}."
            )
        if not self.tied and self.projected:
            self.output = nn.Linear(inner, self.dim, bias=bias, dtype=self.basis.dtype, device=self.basis.device)
            with torch.no_grad():
                self.output.weight.copy_(self.basis)
                if bias:
                    self.output.bias.zero_()

    def _init_step(self, step: float, learnable: bool) -> None:
        owner = self._owner
        if step != step or abs(step) == float("inf"):
            raise ValueError(f"{owner}: step_size must be finite, but is {step}.")
        if self.certified:
            if not self.orthonormal:
                raise ValueError(f"{owner}: certified=True needs orthonormal bases; pass basis='orthonormal'.")
            if not self.tied:
                raise ValueError(f"{owner}: certified=True needs the tied output: a free one is no gradient step.")
            step_in_certificate(owner, step, signed=self.form != "exact")
            self.step_sign = 1.0 if step > 0 else -1.0
            share = torch.tensor(abs(step) / 2, dtype=self.basis.dtype)
            step_tensor = torch.log(share / (1 - share))
        else:
            self.step_sign = 1.0
            step_tensor = torch.tensor(step, dtype=self.basis.dtype)
        if self.per_head_step:
            step_tensor = step_tensor.expand(self.heads).clone()
        hold(self, "step", step_tensor, learnable)

    def adds(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What a published block adds to its stream, from tokens ``x`` that it has normalised: the layer's update."""
        return self.update(x)

    @abc.abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """What the layer adds to the tokens."""

    def attention_map(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """How much every token reads of every other, where the layer has such weights."""
        raise TypeError(f"{type(self).__name__} has no attention map.")

    @property
    def U(self) -> Tensor:
        """The bases, ``(heads, dim, head_dim)``."""
        return self.basis.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)

    def _coordinates(self, x: Tensor, basis: Tensor) -> Tensor:
        check_input(self._owner, x, basis, self.heads)
        flat = x @ basis
        if self.basis_bias is not None:
            flat = flat + self.basis_bias
        return flat.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    def _back(self, per_head: Tensor, basis: Tensor) -> Tensor:
        joined = per_head.transpose(-3, -2).flatten(-2)
        if self.tied:
            return joined @ basis.mT
        return self.output(joined) if self.projected else joined

    def _moved(self, x: Tensor, update: Tensor) -> Tensor:
        """The tokens after the update; the update itself in layers without residual."""
        return x + update if self.residual else update

    def kappa(self, bounds: float | Tensor) -> Tensor:
        """The step sizes: ``()`` if all heads share one, else ``(..., heads)``.

        ``bounds`` holds the smoothness constant L of every head, ``(..., heads)`` or one number for all. It matters
        only to certified steps, 2 σ(θ)/L with θ learned, which stay inside (0, 2/L) whatever the optimiser does; L is
        not differentiated.
        """
        if not self.certified:
            return self.step
        limit = torch.as_tensor(bounds, dtype=self.step.dtype, device=self.step.device).detach()
        return self.step_sign * 2.0 * torch.sigmoid(self.step) / limit.clamp(min=torch.finfo(limit.dtype).tiny)

    @abc.abstractmethod
    def bounds_at(self, x: Tensor) -> float | Tensor:
        """An upper bound for the smoothness constant L of every head's objective at ``x``."""

    @abc.abstractmethod
    def _declare(self, x: Tensor, weights: Tensor | None) -> Objective:
        """The objective at ``x``, its heads weighted."""

    def objective_at(self, x: Tensor) -> Objective:
        """The objective of the form, auxiliaries frozen at ``x``; steps of every head's own weight its heads."""
        self._require_tied()
        kappa = self.kappa(self.bounds_at(x)).detach()
        return self._declare(x, kappa if kappa.ndim else None)

    def step_size_at(self, x: Tensor) -> Tensor:
        """κ at ``x``; 1 where every head has its own, which are then the weights of the objective's heads."""
        kappa = self.kappa(self.bounds_at(x)).detach()
        return torch.ones_like(kappa[..., 0].flatten()[0]) if kappa.ndim else kappa

    def _require_tied(self) -> None:
        if not self.residual:
            raise ValueError(f"{self._owner}: no descent is claimed: with residual=False it returns the update alone.")
        if self.basis_bias is not None and bool(self.basis_bias.detach().any()):
            raise ValueError(f"{self._owner}: no descent is claimed: the coordinates are shifted by a bias.")
        if self.tied:
            return
        if not self.projected:
            raise ValueError(
                f"{self._owner}: no descent is claimed: projected=False leaves out the bases on the way back."
            )
        difference = float((self.output.weight - self.basis).detach().abs().max())
        offset = 0.0 if self.output.bias is None else float(self.output.bias.detach().abs().max())
        if difference > 0 or offset > 0:
            raise ValueError(
                f"{self._owner}: no descent is claimed: the output matrix is free and differs from the bases"
                f" (max |O − U| = {difference:.3g}, max |bias| = {offset:.3g}). Use tied=True for a gradient step."
            )

    def extra_repr(self) -> str:
        """Sizes, form and options, as ``print(layer)`` shows them."""
        parts = [f"dim={self.dim}, heads={self.heads}, head_dim={self.head_dim}, form={self.form!r}"]
        parts += [name for name in ("certified", "per_head_step") if getattr(self, name)]
        parts += [] if self.tied else ["free output" if self.projected else "no output matrix"]
        parts += [] if self.residual else ["no residual"]
        return ", ".join(parts)


def contract(q: Tensor, beta: float | Tensor) -> Tensor:
    """``β q (I + β qᵀq)⁻¹`` for q ``(..., rows, columns)``, on the smaller side, by one linear solve.

    Half precision has no solver: there, and under autocast, it is solved in at least single precision.
    """
    if q.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return contract(q.to(torch.promote_types(q.dtype, torch.float32)), beta).to(q.dtype)
    by_rows = q.shape[-2] < q.shape[-1]
    gram = q @ q.mT if by_rows else q.mT @ q
    system = torch.eye(gram.shape[-1], dtype=q.dtype, device=q.device) + beta * gram
    if by_rows:
        return torch.linalg.solve(system, beta * q)
    return torch.linalg.solve(system, beta * q, left=False)


def per_head(kappa: Tensor) -> Tensor:
    """Step sizes ``()`` or ``(..., heads)`` in a shape that multiplies ``(..., heads, rows, columns)``."""
    return kappa[..., None, None] if kappa.ndim else kappa
