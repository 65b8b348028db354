"""Objectives of other matrices as explanations of an update: attention's, memories, dictionaries, and none at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import (
    L1,
    AttentionEnergy,
    Composite,
    CrossAttentionEnergy,
    HopfieldEnergy,
    KernelRegression,
    NonNegativeL1,
    PCAVariance,
    Reconstruction,
)

from .candidates import (
    Hypothesis,
    Layer,
    Numbers,
    channel_rate,
    coding_rate,
    random_bases,
    random_matrix,
    representatives,
    self_attention,
    softness,
    subspace_coding_rate,
    variational_rate,
)
from .held import Projections, projections_in

__all__ = ["FAMILIES", "SHRINKAGE", "hypotheses"]

SHRINKAGE = "½‖x‖²"


def attention_energy(layer: Layer) -> Iterator[Hypothesis]:
    """The Energy Transformer's energy with two matrices, every ordered pair of bases of one shape."""

    def of(Q: Tensor, K: Tensor, alone: bool, words: str) -> Hypothesis:
        return Hypothesis(
            "AttentionEnergy",
            words + (", no token attends to itself" if alone else ""),
            "nothing",
            lambda x, n: AttentionEnergy(Q, K, n["scale"], alone),
            softness(layer, Q.shape[-1]),
            lambda rng: of(random_bases(rng, Q), random_bases(rng, K), alone, "random matrices"),
        )

    bases = [one for one in layer.bases if "orthonormalised" not in one.words][:6]
    for i, one in enumerate(bases):
        for other in bases[i:]:
            if one.U.shape == other.U.shape:
                for alone in (False, True) if one is not other else (True,):
                    yield of(one.U, other.U, alone, f"W_Q and W_K: {one.words} and {other.words}")


def memories(layer: Layer) -> Iterator[Hypothesis]:
    """Memories among the matrices: with relu, with softmax, and with softmax and ½‖x‖²; their second moment as PCA's."""
    for name, tensor in layer.tensors.items():
        if tensor.ndim != 2 or layer.d not in tensor.shape or 1 in tensor.shape:
            continue
        for M in [tensor] * (tensor.shape[1] == layer.d) + [tensor.mT] * (tensor.shape[0] == layer.d):
            yield from _of_memories(layer, M.contiguous(), f"memories {name or 'a matrix'}")


def _of_memories(layer: Layer, M: Tensor, words: str) -> Iterator[Hypothesis]:
    kinds: dict[str, tuple[Callable[[Tensor], Callable[[Tensor, Numbers], Any]], bool]] = {
        "HopfieldEnergy": (lambda M: lambda x, n: HopfieldEnergy(M), False),
        "CrossAttentionEnergy": (lambda M: lambda x, n: CrossAttentionEnergy(M, n["scale"]), True),
        "CrossAttentionEnergy + ½‖x‖²": (lambda M: lambda x, n: CrossAttentionEnergy(M, n["scale"], True), True),
        "PCAVariance": (lambda M: lambda x, n: PCAVariance(M), False),
    }
    size = float(M.square().mean().sqrt()) * layer.scale * layer.d**0.5

    def of(family: str, M: Tensor, words: str) -> Hypothesis:
        make, soft = kinds[family]
        ranges = {"scale": (1e-2 / size, 100 / size, 1.0)} if soft else {}
        return Hypothesis(
            family, words, "nothing", make(M), ranges, lambda rng: of(family, random_matrix(rng, M), "random memories")
        )

    yield from (of(family, M, words) for family in kinds)


def quadratic(layer: Layer) -> Iterator[Hypothesis]:
    """½‖x‖², whose step shrinks; and, where the update is a symmetric linear map of the tokens, PCA's variance of it."""
    zero = lambda x: Reconstruction(torch.eye(layer.d, dtype=x.dtype), torch.zeros_like(x))  # noqa: E731
    yield Hypothesis(SHRINKAGE, "shrinkage", "nothing", lambda x, n: zero(x))
    if layer.linear is None:
        return
    symmetric = 0.5 * (layer.linear + layer.linear.mT)
    values, vectors = torch.linalg.eigh(symmetric)
    for sign in (1.0, -1.0):
        part = (sign * values).clamp(min=0)
        if float(part.max()) > 1e-6 * float(values.abs().max()) > 0:
            root = (vectors * part.sqrt()).mT.contiguous()
            words = "second moments read off the update" + ("" if sign > 0 else ", of its falling part")
            yield next(one for one in _of_memories(layer, root, words) if one.family == "PCAVariance")


def kernel_regression(layer: Layer) -> Iterator[Hypothesis]:
    """Softmax attention with matrices of its own for queries, keys, values and output."""

    def of(P: Projections) -> Hypothesis:
        width = layer.d if P.query is None else P.query.shape[-1]

        def at(x: Tensor, n: Numbers) -> KernelRegression:
            q, k, v = (_split(x, m, b, P.heads) for m, b in zip((P.query, P.key, P.value), P.biases[:3], strict=True))
            weights = torch.softmax(n["scale"] * (q @ k.mT), dim=-1)
            out = torch.eye(width, dtype=x.dtype) if P.output is None else P.output
            towards = P.heads * (v @ out.unflatten(0, (P.heads, -1)))
            towards = towards if P.biases[3] is None else towards + P.biases[3]
            joint = weights.transpose(-3, -2).flatten(-2) / P.heads
            return KernelRegression(joint, towards.flatten(-3, -2))

        def again(rng: np.random.Generator) -> Hypothesis:
            drawn = [None if m is None else random_matrix(rng, m) for m in (P.query, P.key, P.value, P.output)]
            return of(Projections(drawn[0], drawn[1], drawn[2], drawn[3], P.biases, P.heads, "random matrices"))

        redraw = None if P.query is None else again
        return Hypothesis(
            "KernelRegression",
            P.words,
            "weights, keys and values",
            at,
            softness(layer, width // P.heads),
            redraw,
        )

    for one in projections_in(dict(layer.tensors), layer.d, layer.heads):
        if (layer.d if one.query is None else one.query.shape[-1]) % one.heads == 0:
            yield of(one)


def _split(x: Tensor, matrix: Tensor | None, bias: Tensor | None, heads: int) -> Tensor:
    flat = x if matrix is None else x @ matrix
    flat = flat if bias is None else flat + bias
    return flat.unflatten(-1, (heads, -1)).transpose(-3, -2)


def sparse_coding(layer: Layer) -> Iterator[Hypothesis]:
    """A proximal step of sparse coding from the tokens themselves, and the reconstruction's gradient without a penalty."""
    for name, tensor in layer.tensors.items():
        if tensor.ndim == 2 and tuple(tensor.shape) == (layer.d, layer.d):
            for D, words in (
                (tensor, f"D = {name or 'a matrix'}"),
                (tensor.mT, f"D = {name or 'a matrix'}, transposed"),
            ):
                for family in ("Reconstruction", "Reconstruction + NonNegativeL1", "Reconstruction + L1"):
                    yield _dictionary(layer, family, D.contiguous(), words)


def _dictionary(layer: Layer, family: str, D: Tensor, words: str) -> Hypothesis:
    penalty = NonNegativeL1 if "Non" in family else L1 if "L1" in family else None
    square = float(torch.linalg.matrix_norm(D, 2)) ** 2
    ranges = {"step_size": (1e-3 / square, 4 / square, 0.1), "weight": (1e-3 * layer.scale, 10 * layer.scale, 0.1)}

    def make(x: Tensor, n: Numbers) -> Any:
        smooth = Reconstruction(D, x.detach())
        return smooth if penalty is None else Composite(smooth, penalty(n["weight"]))

    return Hypothesis(
        family,
        words,
        "the data x",
        make,
        ranges if penalty is not None else {},
        lambda rng: _dictionary(layer, family, random_matrix(rng, D), "random dictionary"),
        proximal=penalty is not None,
    )


FAMILIES: dict[str, Callable[[Layer], Iterator[Hypothesis]]] = {
    "coding rate": coding_rate,
    "subspace coding rate": subspace_coding_rate,
    "channel rate": channel_rate,
    "variational rate": variational_rate,
    "representatives": representatives,
    "self-attention energy": self_attention,
    "attention energy": attention_energy,
    "memories": memories,
    "quadratic": quadratic,
    "kernel regression": kernel_regression,
    "sparse coding": sparse_coding,
}
"""What can be suggested, by the names that ``candidates`` takes."""


def hypotheses(layer: Layer, names: tuple[str, ...]) -> list[Hypothesis]:
    """All hypotheses of the named families."""
    return [one for name in names for one in FAMILIES[name](layer)]
