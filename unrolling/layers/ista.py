"""Sparse coding as a feed-forward block: CRATE's ISTA, and CRATE-α's overcomplete, decoupled and residual variants."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives import L1, Composite, NonNegativeL1, Reconstruction

from ..base import UnrolledLayer, hold
from ..errors import check_count, check_input, check_step_number, step_in_certificate
from ..proximal import ProximalStep
from ..steps import GradientStep, Step

__all__ = ["ISTA", "OvercompleteISTA"]


@final
class ISTA(UnrolledLayer):
    r"""CRATE's feed-forward block: one proximal step of sparse coding in a square dictionary, from the tokens themselves.

    Minimises
        $\frac{1}{2}\Vert \bar Z - D A\Vert^2 + \lambda\Vert A\Vert_1, \; A \geq 0$, from A = Z, with the data Z held constant
    In code
        ``relu(x + η (x − x Dᵀ) D − ηλ)``, rows; two products of the three of ``Dᵀx − DᵀDx``
    Shapes
        x ``(..., tokens, dim)`` to the same; D ``(dim, dim)``, atoms in columns
    Parameters
        dim: width. step_size: η (0.1 in CRATE, a constant there). weight: λ. nonnegative: the ReLU of CRATE, or
        (False) the soft threshold of plain ISTA. certified: the step is 2 σ(θ)/‖D‖₂², inside (0, 2/L) whatever the
        optimiser does, and step_size is in units of 1/L. learnable_step, learnable_weight: off, as in CRATE.
        orthogonal: D starts orthogonal; else as in CRATE's code, uniform with variance 2/dim. D: give it.
    Source
        CRATE, arXiv 2306.01129, eq. 17. Differences from the authors' code: none in the formula; there η = λ = 0.1
        are constants and three products are taken. Constants are no parameters here either, and not in the state
        dictionary.

    Raises
    ------
        ValueError for sizes, steps or weights out of range, or a D that is not (dim, dim).
    Claims
        ista.step, ista.descent, ista.fixed_step, ista.cost

    >>> import torch
    >>> ISTA(3, D=torch.eye(3), step_size=1.0, weight=0.5)(torch.tensor([[2.0, 0.1, -1.0]]))
    tensor([[1.5000, 0.0000, 0.0000]], grad_fn=<ReluBackward0>)
    """

    declares: ClassVar[str] = "Reconstruction + NonNegativeL1"
    step: Tensor
    log_weight: Tensor

    def __init__(
        self,
        dim: int,
        *,
        step_size: float = 0.1,
        weight: float = 0.1,
        nonnegative: bool = True,
        certified: bool = False,
        learnable_step: bool = False,
        learnable_weight: bool = False,
        orthogonal: bool = False,
        D: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count("ISTA", "dim", dim)
        check_step_number("ISTA", step_size)
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"ISTA: weight must be positive and finite, but is {weight}.")
        if D is not None and (not isinstance(D, Tensor) or D.shape != (dim, dim)):
            shape = tuple(D.shape) if isinstance(D, Tensor) else type(D).__name__
            raise ValueError(f"ISTA: D must be a tensor (dim, dim) = ({dim}, {dim}), but is {shape}.")
        if certified:
            step_in_certificate("ISTA", step_size, signed=False)
        self.dim, self.nonnegative, self.certified = dim, nonnegative, certified
        dictionary = torch.empty(dim, dim) if D is None else D.detach().clone()
        if D is None and orthogonal:
            nn.init.orthogonal_(dictionary)
        elif D is None:
            nn.init.kaiming_uniform_(dictionary)
        self.D = nn.Parameter(dictionary)
        share = step_size / 2
        start = math.log(share / (1 - share)) if certified else math.log(step_size)
        # A constant is kept as it is: the exponential of its logarithm is off in the last digits, in bfloat16 in the third.
        self.constant_step = None if learnable_step or certified else float(step_size)
        self.constant_weight = None if learnable_weight else float(weight)
        if self.constant_step is None:
            hold(self, "step", torch.tensor(start, dtype=self.D.dtype), learnable_step)
        if self.constant_weight is None:
            self.log_weight = nn.Parameter(torch.tensor(math.log(weight), dtype=self.D.dtype))

    @property
    def weight(self) -> Tensor:
        """λ."""
        constant = self.constant_weight
        return self.log_weight.exp() if constant is None else self.D.new_tensor(constant)

    def kappa(self) -> Tensor:
        """η: a positive number, or 2 σ(θ)/‖D‖₂² if certified."""
        if self.constant_step is not None:
            return self.D.new_tensor(self.constant_step)
        if not self.certified:
            return self.step.exp()
        return 2.0 * torch.sigmoid(self.step) / torch.linalg.matrix_norm(self.D.detach(), 2).square()

    def forward(self, x: Tensor) -> Tensor:
        """The codes after one step."""
        check_input("ISTA", x, self.D, 1)
        eta = self.kappa()
        moved, threshold = x + eta * ((x - x @ self.D.mT) @ self.D), eta * self.weight
        if self.nonnegative:
            return F.relu(moved - threshold)
        return moved - torch.maximum(torch.minimum(moved, threshold), -threshold)

    def objective_at(self, x: Tensor) -> Composite:
        """Sparse coding of x itself, held constant as the data."""
        penalty = (NonNegativeL1 if self.nonnegative else L1)(self.weight.detach())
        return Composite(Reconstruction(self.D.detach(), x.detach()), penalty)

    def step_size_at(self, x: Tensor) -> Tensor:
        """η."""
        return self.kappa().detach()

    def step_rule(self) -> Step:
        """The proximal step."""
        return ProximalStep()

    def extra_repr(self) -> str:
        """Sizes and options."""
        return f"dim={self.dim}, nonnegative={self.nonnegative}, certified={self.certified}"


@final
class OvercompleteISTA(UnrolledLayer):
    r"""CRATE-α's feed-forward block: codes in an overcomplete dictionary, and back to tokens.

    Minimises
        $\frac{1}{2}\Vert Z - D \bar A(Z)\Vert^2$ with the codes held constant, by a step of size 1 to its minimum, in the
        tied form without residual. The codes are T proximal steps of sparse coding from A = 0.
    In code
        ``a = 0; T times: a = relu(a − η (a Dᵀ − x) D − ηλ)``; ``out = a Dᵀ`` (tied), ``a D̂ᵀ`` (decoupled),
        ``x + …`` (residual)
    Shapes
        x ``(..., tokens, dim)`` to the same; D ``(dim, atoms)``; codes ``(..., tokens, atoms)``
    Parameters
        dim: width. atoms: 4 dim by default, as in CRATE-α. steps: T = 2. decoupled: a decoder D̂ of its own, equal to D
        at first. residual: add the tokens. step_size, weight: η and λ. D: give it.
    What descends
        With codes at the minimum, ``x → a Dᵀ`` lowers ``g(x) = min_a ½‖x − a Dᵀ‖² + λ‖a‖₁`` by at least
        ``½‖x − a Dᵀ‖²``: it is the gradient step of size 1 on g. With T steps it need not. Adding the residual raises g
        on almost all tokens, and a decoder of its own has no objective; for both no descent is claimed.
    Source
        CRATE-α, arXiv 2405.20299, section 3.2; g and what descends it are derived here.

    Raises
    ------
        ValueError for sizes, steps or weights out of range; for ``objective_at`` of decoupled or residual blocks.
    Claims
        ista.codes, ista.overcomplete.step, ista.overcomplete.descent, ista.overcomplete.residual
    """

    declares: ClassVar[str] = "Reconstruction"

    def __init__(
        self,
        dim: int,
        atoms: int | None = None,
        *,
        steps: int = 2,
        step_size: float = 0.1,
        weight: float = 0.1,
        decoupled: bool = False,
        residual: bool = False,
        D: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count("OvercompleteISTA", "dim", dim)
        atoms = 4 * dim if atoms is None else atoms
        check_count("OvercompleteISTA", "atoms", atoms)
        check_count("OvercompleteISTA", "steps", steps)
        check_step_number("OvercompleteISTA", step_size)
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"OvercompleteISTA: weight must be positive and finite, but is {weight}.")
        if D is not None and (not isinstance(D, Tensor) or D.shape != (dim, atoms)):
            shape = tuple(D.shape) if isinstance(D, Tensor) else type(D).__name__
            raise ValueError(f"OvercompleteISTA: D must be a tensor (dim, atoms) = ({dim}, {atoms}), but is {shape}.")
        self.dim, self.atoms, self.steps = dim, atoms, steps
        self.step_size, self.weight = float(step_size), float(weight)
        self.decoupled, self.residual = decoupled, residual
        dictionary = torch.empty(dim, atoms) if D is None else D.detach().clone()
        if D is None:
            nn.init.kaiming_uniform_(dictionary)
        self.D = nn.Parameter(dictionary)
        if decoupled:
            self.decoder = nn.Parameter(dictionary.clone())

    def codes(self, x: Tensor) -> Tensor:
        """The codes after T proximal steps from zero, ``(..., tokens, atoms)``."""
        check_input("OvercompleteISTA", x, self.D, 1)
        threshold = self.step_size * self.weight
        a = F.relu(self.step_size * (x @ self.D) - threshold)
        for _ in range(self.steps - 1):
            a = F.relu(a - self.step_size * ((a @ self.D.mT - x) @ self.D) - threshold)
        return a

    def forward(self, x: Tensor) -> Tensor:
        """The tokens that the codes stand for."""
        decoded = self.codes(x) @ (self.decoder if self.decoupled else self.D).mT
        return x + decoded if self.residual else decoded

    def objective_at(self, x: Tensor) -> Reconstruction:
        """½‖x − a Dᵀ‖² with the codes held constant, read as a function of the tokens."""
        if self.residual or self.decoupled:
            what = "the residual adds what should replace the tokens" if self.residual else "the decoder is free"
            raise ValueError(f"OvercompleteISTA: no descent is claimed: {what}. See 'What descends' in the docstring.")
        identity = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        return Reconstruction(identity, (self.codes(x) @ self.D.mT).detach())

    def step_size_at(self, x: Tensor) -> float:
        """1: from the tokens straight to what the codes stand for."""
        return 1.0

    def step_rule(self) -> Step:
        """The gradient step."""
        return GradientStep()

    def extra_repr(self) -> str:
        """Sizes and options."""
        parts = [f"dim={self.dim}, atoms={self.atoms}, steps={self.steps}"]
        return ", ".join(parts + [name for name in ("decoupled", "residual") if getattr(self, name)])
