"""How one case of a claim is measured: gradients by independent routes, steps against the declaration and the paper."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives import Objective
from unrolling import UnrolledLayer

from .claim import Comparison, Measurement
from .oracles import mp_array, mp_derivative, richardson_derivative, taylor_curve, taylor_slope
from .strategies import Case
from .tolerance import MEANINGFUL, SAFETY, tolerance

__all__ = [
    "bases",
    "by_head",
    "columns",
    "derivative_routes",
    "gradient_measure",
    "identity",
    "inequality",
    "norm",
    "rate_condition",
    "reference",
    "score_condition",
    "step_measure",
]

Naive = Callable[[Any], Any]
L = TypeVar("L", bound=UnrolledLayer)
"""A value written from the definition: columns ``(dim, N)`` of floats or of mpmath numbers to one number."""

_MP_ENTRIES = 16
"""Entries up to which fifty digits are affordable in every case."""


def columns(rows: Tensor) -> NDArray[np.float64]:
    """Tokens in rows, any dtype, to float64 columns."""
    return rows.detach().to(torch.float64).mT.numpy()


def by_head(tensor: Tensor) -> list[NDArray[np.float64]]:
    """``(K, rows, columns)`` to a list of transposed float64 matrices, one a head: papers have columns."""
    return list(columns(tensor))


def bases(U: Tensor) -> list[NDArray[np.float64]]:
    """``(K, d, p)`` to a list of float64 matrices ``(d, p)``, not transposed."""
    return list(U.detach().to(torch.float64).numpy())


def norm(tensor: Tensor | NDArray[Any]) -> float:
    """The Euclidean norm of all entries, without under- or overflow."""
    array = np.asarray(tensor.detach().to(torch.float64).numpy() if isinstance(tensor, Tensor) else tensor)
    largest = float(np.abs(array).max(initial=0.0))
    return largest * float(np.linalg.norm(array / largest)) if largest > 0 and np.isfinite(largest) else largest


def reference(case: Case) -> Case:
    """The case in float64: what every reference is computed from, on the very tokens that the subject got."""
    return dataclasses.replace(case, dtype="float64", given=_single(case)) if case.dtype != "float64" else case


def _single(case: Case) -> NDArray[np.float64]:
    return case.array()


def slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The token sets of a batch, one after the other."""
    flat = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in tensors]
    yield from zip(*flat, strict=True)


def rate_condition(w: Tensor, beta: float) -> float:
    """The condition of I + β wᵀw, at most ``1 + β ‖w‖²``."""
    return 1.0 + beta * float(w.detach().to(torch.float64).square().sum((-2, -1)).max())


def score_condition(queries: Tensor, keys: Tensor, scale: float) -> float:
    """A softmax turns a relative error of its scores into that error times their size."""
    largest = queries.detach().double().norm(dim=-1).max() * keys.detach().double().norm(dim=-1).max()
    return 1.0 + scale * float(largest)


def derivative_routes(
    gradient: Tensor,
    x: Tensor,
    naive: Naive,
    allowed: float,
    bend: float,
    *,
    rng: np.random.Generator,
    slope: bool = True,
) -> Iterator[tuple[Comparison, tuple[tuple[float, float], ...]]]:
    """⟨gradient, v⟩ against derivatives of ``naive`` along v, cheapest first; one token set, columns inside.

    ``allowed`` is the tolerance relative to ‖gradient‖; ``bend`` the length over which the function bends.
    """
    Z, G = columns(x), columns(gradient)
    size = norm(G)
    if not np.isfinite(size):
        yield Comparison("finite gradient", math.nan, 0.0), ()
        return
    V = rng.standard_normal(Z.shape)
    V = V / norm(V)
    if size > 0:  # half along the gradient, where the derivative is large
        V = np.copysign(1.0, (V * G).sum()) * V + G / size
        V = V / norm(V)
    claimed = float((G * V).sum())

    def along(t: float) -> float:
        return float(naive(Z + t * V))

    derivative, error = richardson_derivative(along, bend / 2)
    scale = max(abs(derivative), size, np.finfo(float).tiny)
    route = max(allowed, 8 * error / scale)
    if route <= MEANINGFUL:
        yield Comparison("differences", abs(claimed - derivative) / scale, route), ()
    if Z.size <= _MP_ENTRIES:
        exact = mp_derivative(lambda t: naive(mp_array(Z) + t * mp_array(V)), bend)
        scale = max(abs(exact), size, np.finfo(float).tiny)
        yield Comparison("fifty digits", abs(claimed - exact) / scale, allowed), ()
    if slope:
        curve = taylor_curve(along, claimed, bend, allowed * size)
        observed = taylor_slope(curve)
        if not math.isnan(observed):
            yield Comparison("Taylor slope 2", max(0.0, 2.0 - observed), 0.35), tuple(curve)


def gradient_measure(
    make: Callable[[Case], Objective],
    naive: Callable[[Case, int], Naive],
    condition: Callable[[Case, Any, Tensor], float],
    bend: Callable[[Case, Any, Tensor], float],
) -> Callable[[Any, Case], Measurement]:
    """A closed-form gradient against reverse mode, differences, fifty digits and the Taylor slope.

    make builds the objective of a case; naive the value of token set number b, from the definition.
    The subject is called as ``subject(case, objective, x)`` and returns the gradient.
    """

    def measure(subject: Any, case: Case) -> Measurement:
        x, exact_case = case.x(), reference(case)
        got = subject(case, make(case), x).to(torch.float64)
        objective, z = make(exact_case), x.to(torch.float64).requires_grad_()
        (want,) = torch.autograd.grad(objective.value(z).sum(), z)
        size = norm(want)
        if size == 0:
            return Measurement((Comparison("at rest", norm(got), 0.0),), evidence=False)
        allowed = tolerance(case.dtype, condition(exact_case, objective, z.detach()))
        done = [Comparison("reverse mode", max(_relative(g, w) for g, w in slices(got, want)), allowed)]
        curve: tuple[tuple[float, float], ...] = ()
        evidence = allowed <= MEANINGFUL
        if evidence and done[0].holds:
            length = bend(exact_case, objective, z.detach())
            for b, (g, point) in enumerate(slices(got, z.detach())):
                for comparison, points in derivative_routes(
                    g, point, naive(exact_case, b), allowed, length, rng=case.rng(f"direction {b}")
                ):
                    done.append(comparison)
                    curve = points or curve
                if not done[-1].holds:
                    break
        return Measurement(tuple(done), evidence, curve=curve)

    return measure


def step_measure(
    make: Callable[[Case], L],
    paper_step: Callable[[Case, L, NDArray[np.float64], int], NDArray[np.float64]],
    naive: Callable[[Case, L, Tensor, int], Naive],
    condition: Callable[[Case, L, Tensor], float],
    bend: Callable[[Case, L, Tensor], float],
) -> Callable[[Any, Case], Measurement]:
    """A layer's forward pass against its declared step, the paper's step, and derivatives of the naive objective.

    Errors are relative to the displacement. paper_step(case, layer, columns of token set b, b) is the paper's next Z;
    naive(case, layer, x, b) the objective with its frozen arguments taken at x. The subject is called as
    ``subject(case, layer, x)`` and returns the next tokens.
    """

    def measure(subject: Any, case: Case) -> Measurement:
        x, exact_case = case.x(), reference(case)
        layer = make(case)
        with torch.no_grad():
            got = subject(case, layer, x)
            exact_layer, z = make(exact_case), x.to(torch.float64)
            declared = exact_layer.descend(z)
            kappa = float(exact_layer.step_size_at(z))
        move = declared - z
        if norm(move) == 0:
            return Measurement((Comparison("at rest", norm(got.double() - z), 0.0),), evidence=False)
        done: list[Comparison] = []
        curve: tuple[tuple[float, float], ...] = ()
        evidence = True
        for b, (g, w, point) in enumerate(slices(got.double(), declared, z)):
            length = norm(w - point)
            if length == 0:
                done.append(Comparison("at rest", norm(g - point), 0.0))
                continue
            allowed = tolerance(case.dtype, condition(exact_case, exact_layer, z), norm(point) / length)
            evidence = evidence and allowed <= MEANINGFUL
            done.append(Comparison("declared step", norm(g - w) / length, allowed))
            paper = torch.from_numpy(np.ascontiguousarray(paper_step(exact_case, exact_layer, columns(point), b).T))
            done.append(Comparison("paper's step", norm(g - paper) / length, allowed))
            if not (evidence and done[-1].holds and done[-2].holds):
                break
            for comparison, points in derivative_routes(
                (point - g) / kappa,
                point,
                naive(exact_case, exact_layer, z, b),
                allowed,
                bend(exact_case, exact_layer, z),
                rng=case.rng(f"direction {b}"),
            ):
                done.append(comparison)
                curve = points or curve
            if not done[-1].holds:
                break
        identical = case.dtype == "float64" and bool(torch.equal(got, declared.to(got.dtype)))
        return Measurement(tuple(done), evidence, curve=curve, identical=identical)

    return measure


def identity(
    name: str, got: Any, want: Any, dtype: str, condition: float = 1.0, moved: float | None = None
) -> Measurement:
    """``got == want`` to rounding, relative to ``moved`` (by default ‖want‖): the part of it that is under test."""
    got64, want64 = _array(got), _array(want)
    if got64.shape != want64.shape:
        return Measurement((Comparison(f"{name}: shape", math.inf, 0.0),))
    scale = norm(want64) if moved is None else moved
    if scale == 0 or not np.isfinite(scale):
        return Measurement((Comparison(name, norm(got64 - want64), 0.0),), evidence=False)
    allowed = tolerance(dtype, condition, 0.0 if moved is None else norm(want64) / moved)
    return Measurement((Comparison(name, norm(got64 - want64) / scale, allowed),), allowed <= MEANINGFUL)


def inequality(
    name: str,
    smaller: float,
    larger: float,
    scale: float,
    dtype: str,
    condition: float = 1.0,
    **values: float,
) -> Measurement:
    """``smaller <= larger`` up to rounding of numbers of size ``scale``; the error is the violation."""
    violation = max(0.0, smaller - larger) if smaller == smaller and larger == larger else math.nan
    allowed = SAFETY * float(np.finfo(dtype).eps) * condition
    if scale == 0:
        return Measurement((Comparison(name, violation, 0.0),), evidence=False, values=values)
    return Measurement((Comparison(name, violation / scale, allowed),), allowed <= MEANINGFUL, values=values)


def _relative(got: Tensor, want: Tensor) -> float:
    size = norm(want)
    error = norm(got - want)
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size


def _array(value: Any) -> NDArray[np.float64]:
    if isinstance(value, Tensor):
        value = value.detach().to(torch.float64).numpy()
    return np.asarray(value, dtype=np.float64)
