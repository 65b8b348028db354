"""Optimisers by name, Lion among them, which torch does not have, and learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import check_positive_number
from .recipe import Recipe

__all__ = ["Lion", "clip_gradients_", "learning_rate", "make_optimiser"]


class Lion(torch.optim.Optimizer):
    r"""Sign descent with momentum: every coordinate moves by the learning rate.

    In code
        ``x -= lr * (sign(β₁ m + (1 − β₁) g) + weight_decay * x)``; ``m = β₂ m + (1 − β₂) g``
    Why a sign
        the step of length lr in the largest coordinate that lowers a linear function most is −lr times its sign
    Source
        Chen et al., arXiv 2302.06675, algorithm 2
    Raises
        ValueError for a learning rate that is not positive, and betas outside of [0, 1)

    >>> x = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimiser = Lion([x], lr=0.5)
    >>> (x**2).sum().backward(); optimiser.step(); x.tolist()
    [0.5, -1.5]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        check_positive_number("Lion", "lr", lr)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Lion: betas must be in [0, 1), but are {betas}.")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; the closure, where there is one, is evaluated before it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for x in group["params"]:
                if x.grad is None:
                    continue
                state = self.state[x]
                if not state:
                    state["momentum"] = torch.zeros_like(x)
                m: Tensor = state["momentum"]
                direction = torch.lerp(x.grad, m, first).sign_()
                x.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                m.lerp_(x.grad, 1 - second)
        return loss


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser for what is trained in the model.

    Under decay = "matrices", vectors, class tokens and positions do not decay.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("training: nothing in the model is trained; is all of it frozen?")
    tokens = ("class_token", "register_token", "class_embeddings", "positions.embedding")
    kept = {id(p) for name, p in trained if recipe.decay == "matrices" and (p.ndim < 2 or name.endswith(tokens))}
    groups = [
        {"params": [p for _, p in trained if id(p) not in kept], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in trained if id(p) in kept], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum)
    if recipe.optimiser == "lion":
        return Lion(groups, lr=recipe.rate, betas=recipe.betas)
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=recipe.betas)


@torch.no_grad()
def clip_gradients_(model: nn.Module, limit: float) -> float:
    """Scales all gradients together so that their norm is at most ``limit``; returns the norm that they had.

    Parameters may be whole or shared out among processes (FSDP2), in one model; torch's own function takes no mixture.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    shared = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    whole = [grad for grad in grads if not isinstance(grad, DTensor)]
    square = torch.zeros((), device=grads[0].device if grads else "cpu")
    for part in shared:
        square += part.float().square().sum()
    if shared:
        dist.all_reduce(square)
    for part in whole:
        square += part.float().square().sum()
    norm = float(square.sqrt())
    if norm > limit:
        for part in (*shared, *whole):
            part.mul_(limit / norm)
    return norm


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    r"""The rate of the step, counted from 0.

    With t the epochs passed (whole ones where the recipe changes per epoch), w the warm-up and T all epochs: linear growth
    $\min(1, (t + \delta)/w)$, δ one epoch or one step, so that the first rate is not 0; and the fall by the cosine
    $\tfrac12(1 + \cos \pi s)$ or the polynomial $(1 - s)^{power}$, between lr and min_lr, of $s = t/T$ (joined by "min") or
    $(t - w)/(T - w)$.

    >>> recipe = Recipe(epochs=4, warmup=2, lr=1.0)
    >>> [round(learning_rate(recipe, step, 2), 2) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    whole = recipe.per == "epoch"
    t = step // steps_per_epoch if whole else step / steps_per_epoch
    unit = 1.0 if whole else 1 / steps_per_epoch
    top, low, w, total = recipe.rate, min(recipe.min_lr, recipe.rate), recipe.warmup, recipe.epochs
    grown = min(1.0, (t + unit) / w) if w else 1.0
    s = t / total if recipe.warmup_joined == "min" else max(0.0, t - w) / max(total - w, unit)
    s = min(1.0, s)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * s)), "polynomial": (1 - s) ** recipe.power, "constant": 1.0}
    fallen = fall[recipe.schedule]
    share = min(grown, fallen) if recipe.warmup_joined == "min" else grown * fallen
    return top * share if recipe.schedule == "constant" else low + (top - low) * share
