"""How an update lies to an objective: its cosine with steepest descent, what it lowers, and how far it should have gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from objectives import (
    AttentionEnergy,
    CodingRate,
    KernelRegression,
    Objective,
    RepresentativeRate,
    SelfAttentionEnergy,
    SubspaceCodingRate,
    SymmetricEnergy,
    project,
)
from unrolling import ISTA, UnrolledLayer, adapt, objective_of

from .descent_networks import Attended, Matrices, matrices_of

__all__ = ["OBJECTIVES", "Aim", "Alignment", "Coding", "Whole", "aim_at", "align", "coding", "cosine", "unit", "whole"]

Asked = str | Callable[[Tensor, nn.Module], Objective] | None

OBJECTIVES = {
    "subspace_rate": "R_c in the subspaces of the values, head by head",
    "coding_rate": "the rate of all tokens; every head against all of it",
    "self_attention_energy": "the log-sum-exp energy in the subspaces of the values, keys held constant",
    "symmetric_energy": "the same with nothing held constant, halved",
    "attention_energy": "the energy of queries and keys, nothing held constant",
    "kernel_regression": "the regression that softmax attention minimises; weights, keys and values held constant",
    "declared": "what a layer of this library declares to descend: layer.objective_at(tokens)",
}
"""What can be asked for by name."""

FROZEN = {
    "RepresentativeRate": "P_k",
    "VariationalRate": "Π",
    "PrefixVariationalRate": "Π",
    "SelfAttentionEnergy": "keys",
    "RepresentativeEnergy": "P_k and keys",
    "KernelRegression": "weights and values",
}

STEPS = tuple(2.0**power for power in range(-8, 5))
"""The step sizes that a line search starts from; the last is the longest that is tried."""

ROUNDS = 14
SAME = 1e-3
"""How far an update may be from softmax attention to be held against its regression: rounding."""
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Alignment:
    r"""An update u at tokens x beside an objective f, a number an image, ``(images,)``, or a number a head as well.

    value: f(x). cosine: of u with −∇f(x). decrease: f(x) − f(x + u), as it is. best_step: the t of the lowest f(x + t u)
    on the side of u where f falls, 1/256 ≤ \|t\| ≤ 16; negative where u ascends. best_decrease: f(x) − f(x + t u) there.
    """

    value: Tensor
    cosine: Tensor
    decrease: Tensor
    best_step: Tensor
    best_decrease: Tensor

    @property
    def ascends(self) -> Tensor:
        """Where the update points uphill."""
        return self.cosine < 0


@dataclass(frozen=True)
class Whole:
    """What freezing leaves out: the objective's own gradient beside the one that counts what is frozen as well.

    cosine: of the two. left_out: ‖whole − frozen‖ / ‖whole‖. update: cosine of the update with descent on the whole.
    decrease: of the whole objective by the update. Each ``(images,)``. For the self-attention energy the whole gradient is
    twice that of the symmetric part of its map.
    """

    cosine: Tensor
    left_out: Tensor
    update: Tensor
    decrease: Tensor


@dataclass(frozen=True)
class Coding:
    """A sparse coding step: how much it lowers its objective, and its cosine with descent on the smooth part."""

    decrease: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class Aim:
    """An objective as a function of the tokens, auxiliaries included; of every head, where it is a sum over them."""

    build: Callable[[Tensor], Objective]
    heads: tuple[Callable[[Tensor], Objective], ...] | None = None


def align(f: Objective, x: Tensor, update: Tensor) -> Alignment:
    """An update beside an objective."""
    start, gradient = _value(f, x), f.gradient(x)
    along = cosine(update, -gradient)
    sign = torch.where(along < 0, -1.0, 1.0).to(x.dtype)
    step, lowest = _search(f, x, update, sign, start)
    return Alignment(start, along, start - _value(f, x + update), step, start - lowest)


def whole(build: Callable[[Tensor], Objective], f: Objective, x: Tensor, update: Tensor) -> Whole | None:
    """What freezing leaves out of ``f = build(x)``; None where nothing does, or where it cannot be told."""
    with torch.enable_grad():
        moved = x.detach().clone().requires_grad_()
        value = build(moved).value(moved).sum()
        (gradient,) = torch.autograd.grad(value, moved) if value.requires_grad else (None,)
    partial = f.gradient(x)
    if gradient is None:
        return None
    sizes = gradient.flatten(1).norm(dim=-1).clamp(min=torch.finfo(x.dtype).tiny)
    left = (gradient - partial).flatten(1).norm(dim=-1) / sizes
    if float(left.max()) <= 100 * torch.finfo(x.dtype).eps ** 0.75:
        return None
    lowered = f.value(x) - build(x + update).value(x + update)
    return Whole(cosine(partial, gradient), left, cosine(update, -gradient), lowered)


def coding(ista: ISTA, x: Tensor, update: Tensor) -> Coding:
    """One proximal step from ``x``, which counts from its positive part where codes are not negative."""
    f = ista.objective_at(x)
    start = x.clamp(min=0) if ista.nonnegative else x
    return Coding(f.value(start) - f.value(x + update), cosine(update, -f.smooth.gradient(x)))


def aim_at(asked: Asked, record: Attended, epsilon: float | None, projection: str) -> Aim:
    """What an attention is held against.

    Raises
    ------
        TypeError or ValueError that says why it cannot be.
    """
    layer: Any = record.layer
    eps = 0.5 if epsilon is None else epsilon
    if asked is not None and not isinstance(asked, str):
        given = asked
        return Aim(lambda x: _checked(given(x, layer)))
    if asked == "declared":
        if not isinstance(layer, UnrolledLayer):
            raise TypeError(f"a {type(layer).__name__} declares no objective")
        return Aim(layer.objective_at)
    if asked is None and isinstance(layer, UnrolledLayer):
        grid: tuple[int, int] = record.grid  # type: ignore[assignment]  # None is a sequence
        f = objective_of(layer, record.seen, grid, epsilon)
        return Aim(lambda x: objective_of(layer, x, grid, epsilon), _shares(f, layer, record, epsilon))
    own = matrices_of(layer)
    if asked is None:  # an adapted attention
        formula = adapt.adapted(layer).get("")
        if formula is None:
            raise ValueError("it is no layer of this library; name an objective")
        needs = getattr(getattr(layer, "adaptation", None), "formula", None)
        projection = needs.needs[0] if formula in ("mssa", "tssa") and needs is not None else projection
        asked = "subspace_rate"
    aim = _named(asked, layer, own, eps, projection)
    if asked == "kernel_regression" and not isinstance(layer, UnrolledLayer):
        read = record.seen - aim.build(record.seen).gradient(record.seen)
        off = float((read - record.update).norm()) / max(float(record.update.norm()), torch.finfo(read.dtype).tiny)
        if not off <= SAME:
            raise TypeError(
                f"it returns no softmax attention of its projections, from which its update is off by {off:.1%}: position"
                " biases, masks, rotary embedding or another formula"
            )
    return aim


def _named(name: str, layer: nn.Module, own: Matrices, epsilon: float, projection: str) -> Aim:
    U: Tensor = getattr(own, projection)
    if name == "coding_rate":
        rate = CodingRate(epsilon)
        return Aim(lambda x: rate, (lambda x: rate,) * own.heads)
    if name == "kernel_regression":
        return Aim(lambda x: _regression(layer, own, x))

    def of(heads: slice) -> Callable[[Tensor], Objective]:
        basis = U[heads]
        if name == "subspace_rate":
            return lambda x: SubspaceCodingRate(basis, epsilon, orthonormal=False)
        if name == "self_attention_energy":
            return lambda x: SelfAttentionEnergy(basis, project(x, basis), own.scale, orthonormal=False)
        if name == "symmetric_energy":
            return lambda x: SymmetricEnergy(basis, own.scale, orthonormal=False)
        return lambda x: AttentionEnergy(own.query[heads], own.key[heads], own.scale, exclude_self=False)

    return Aim(of(slice(None)), tuple(of(slice(head, head + 1)) for head in range(own.heads)))


def _regression(layer: nn.Module, own: Matrices, x: Tensor) -> KernelRegression:
    """Every token towards the values of all heads, each mapped to tokens, the weights shared out by the heads."""
    if isinstance(layer, UnrolledLayer):
        f = layer.objective_at(x)
        if not isinstance(f, KernelRegression):
            raise TypeError(f"a {type(layer).__name__} descends a {type(f).__name__}, not a kernel regression")
        return f
    parts = {name: _coordinates(layer, own, name, x) for name in ("query", "key", "value")}
    for part, norm in (("query", "q_norm"), ("key", "k_norm")):
        if isinstance(found := getattr(layer, norm, None), nn.Module):
            parts[part] = found(parts[part])
    named = ("proj", "o_proj", "out_proj")
    output: Any = next((m for n in named if isinstance(m := getattr(layer, n, None), nn.Module)), None)
    if output is None:
        raise TypeError(f"a {type(layer).__name__} has no output matrix of its own ({', '.join(named)})")
    blocks = output.weight.unflatten(-1, (own.heads, -1)).permute(1, 2, 0)
    towards = own.heads * (parts["value"] @ blocks)
    towards = towards if output.bias is None else towards + output.bias
    weights = torch.softmax(own.scale * (parts["query"] @ parts["key"].mT), dim=-1)
    return KernelRegression(weights.transpose(-3, -2).flatten(-2) / own.heads, towards.flatten(-3, -2))


def _coordinates(layer: nn.Module, own: Matrices, name: str, x: Tensor) -> Tensor:
    third = ("query", "key", "value").index(name)
    joint = getattr(layer, "in_proj_bias", None)
    if (fused := getattr(layer, "qkv", None)) is not None:
        joint = fused.bias
    bias = None if joint is None else joint.chunk(3)[third]
    for names in (("query", "key", "value"), ("q_proj", "k_proj", "v_proj")):
        if isinstance(part := getattr(layer, names[third], None), nn.Module):
            bias = part.bias
    w = project(x, getattr(own, name))
    return w if bias is None else w + bias.unflatten(0, (own.heads, -1))[:, None]


def _shares(
    f: Objective, layer: UnrolledLayer, record: Attended, epsilon: float | None
) -> tuple[Callable[[Tensor], Objective], ...] | None:
    """The terms of a sum over heads, auxiliaries as they are at the seen tokens."""
    if not isinstance(f, (SubspaceCodingRate, RepresentativeRate)):
        return None
    terms: list[Objective] = []
    for head in range(f.U.shape[0]):
        at = slice(head, head + 1)
        if isinstance(f, RepresentativeRate):
            terms.append(replace(f, U=f.U[at], P=f.P[..., at, :, :]))
        else:
            terms.append(replace(f, U=f.U[at]))
    return tuple((lambda x, term=term: term) for term in terms)


def _checked(f: object) -> Objective:
    if not isinstance(f, Objective):
        raise TypeError(
            f"objective(tokens, layer) must return an Objective of the package objectives, but returned a {type(f).__name__}"
        )
    return f


def _value(f: Objective, x: Tensor) -> Tensor:
    value = f.value(x)
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{type(f).__name__}.value must be one number an image, {tuple(x.shape[:1])}, but is {tuple(value.shape)}"
        )
    return value


def _search(f: Objective, x: Tensor, update: Tensor, sign: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The step size of the lowest value, and that value: powers of two, then golden sections around the best."""

    def at(log: Tensor) -> Tensor:
        return f.value(x + (sign * torch.exp2(log))[:, None, None] * update)

    logs = torch.tensor(STEPS, dtype=x.dtype, device=x.device).log2()
    values = torch.stack([at(log.expand_as(sign)) for log in logs])
    lowest, place = values.min(0)
    best = logs[place]
    low, high = logs[(place - 1).clamp(min=0)], logs[(place + 1).clamp(max=len(logs) - 1)]
    for _ in range(ROUNDS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        there = (at(left), at(right))
        for log, value in zip((left, right), there, strict=True):
            better = value < lowest
            lowest, best = torch.where(better, value, lowest), torch.where(better, log, best)
        falls = there[0] > there[1]
        low, high = torch.where(falls, left, low), torch.where(falls, high, right)
    kept = lowest < start
    return torch.where(kept, sign * torch.exp2(best), 0.0), torch.where(kept, lowest, start)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two sets of tokens, one number an image; 0 where one of them is 0."""
    a, b = a.flatten(1), b.flatten(1)
    sizes = (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=torch.finfo(a.dtype).tiny)
    return (a * b).sum(-1) / sizes


def unit(x: Tensor) -> Tensor:
    """Tokens at norm 1."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
