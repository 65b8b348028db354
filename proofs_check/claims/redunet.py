"""Claims on ReduNet's layer: its operators, its estimated memberships, its two forms, and what normalising costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from objectives import CodingRate, RateReduction, one_hot_memberships, soft_memberships
from unrolling import ReduNet

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import columns, identity, inequality, norm, reference, slices, step_measure
from ..mutants import forward, named, of_step
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, SAFETY, tolerance
from .coding_rate import combine
from .rate_reduction import APART, KINDS, cancelled, class_condition, memberships, reduction_bend

__all__ = ["CLAIMS"]

PAPER = "Chan et al., ReduNet, arXiv 2105.10446"
SEEDED = tuple(dataclasses.replace(case, seed=i % 3) for i, case in enumerate(STRUCTURED))
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in SEEDED)
APART_KINDS = (*KINDS, "gaussian", "gaussian", "rank_one", "rank_one", "orthonormal", "orthonormal")
"""All kinds, those more often whose estimated memberships differ from token to token: even ones reduce no rate."""
CLEAR = tuple(
    Case(tokens=n, heads=heads, head_dim=p, kind=kind, epsilon=1.0, seed=seed)
    for n, heads, p in ((3, 2, 1), (4, 1, 2), (6, 3, 1), (8, 2, 2))
    for kind in ("gaussian", "subspaces", "orthonormal")
    for seed in (2, 5, 8)
)
"""Labelled training sets at an ε where single precision resolves what their classes do to the tokens."""
Array = NDArray[np.float64]


def _classes(case: Case) -> int:
    return max(3, case.heads + 1)


def _training(case: Case) -> tuple[Tensor, Tensor]:
    """A training set of half the tokens' size, three tokens a class and more: ``(tokens, dim)``, and its memberships."""
    classes = _classes(case)
    count = 3 * classes + case.tokens % 3
    x = (_size(case) * case.draw("training", count, case.dim)).to(case.torch_dtype)
    if case.seed % 3 == 2:
        return x, one_hot_memberships(torch.arange(count) % classes, classes, case.torch_dtype)
    return x, memberships(case, classes, count)


def _size(case: Case) -> float:
    return 0.5 * max(case.scale, 1e-3)


def _kappa(case: Case) -> float:
    """κ = step/L with L = 9α/8."""
    return case.step * case.tokens * case.epsilon**2 / (1.125 * case.dim)


def _sharpness(case: Case) -> float:
    """λ for which scores λ‖C_k z‖ are near 6: C_k is about d/(3 (ε² + d size²)). Even memberships reduce no rate."""
    return 9.0 * (case.epsilon**2 + case.dim * _size(case) ** 2) / (case.dim**1.5 * _size(case))


def _layer(case: Case, form: str, **more: Any) -> ReduNet:
    """A layer whose operators are single-precision numbers, so that it is the same layer in every precision."""
    x, Pi = _training(dataclasses.replace(case, dtype="float64"))
    options = {"step_size": _kappa(case), "sharpness": _sharpness(case), "epsilon": case.epsilon}
    layer = ReduNet.construct(x, Pi, form=form, **(options | more))
    for name in ("E", "C", "gamma"):
        operator = getattr(layer, name)
        scale = 2.0 ** np.floor(np.log2(float(operator.abs().max())))
        operator.copy_((operator / scale).float().double() * scale)
    return layer.to(case.torch_dtype)


def _fresh(case: Case, **more: Any) -> ReduNet:
    """A layer constructed in the precision of the case."""
    x, Pi = _training(case)
    return ReduNet.construct(x, Pi, epsilon=case.epsilon, sharpness=_sharpness(case), form="constructed", **more)


def _recomputed(case: Case) -> ReduNet:
    return _layer(case, "recomputed", step_size=1000 * _kappa(case))


def _constructed(case: Case) -> ReduNet:
    return _layer(case, "constructed", step_size=1000 * _kappa(case))


def _operators(case: Case) -> tuple[Array, list[Array], list[float]]:
    x, Pi = _training(case)
    return paper.redunet_operators(columns(x), Pi.numpy(), case.epsilon)


def _held(layer: ReduNet) -> tuple[Array, list[Array], list[float]]:
    """The operators that a layer holds; that they are the paper's is redunet.operators."""
    return layer.E.numpy(), list(layer.C.numpy()), layer.gamma.tolist()


def _estimated(case: Case, layer: ReduNet, Z: Array) -> Array:
    return paper.redunet_memberships(Z, _held(layer)[1], _sharpness(case))


def _operator_condition(case: Case) -> float:
    x, Pi = _training(case)
    return class_condition(case, Pi, x)


def _score_condition(case: Case, layer: ReduNet, z: Tensor) -> float:
    """Scores λ‖C_k z‖ are off by eps λ‖C_k‖‖z‖, and memberships by as much of their size."""
    largest = float(torch.linalg.matrix_norm(layer.C, 2).max()) * float(z.norm(dim=-1).max())
    return 1.0 + _sharpness(case) * largest


def _operators_measure(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0, given=None))
    case = dataclasses.replace(case, batch=0, given=None)
    E, C, gamma = subject(case, _fresh(case))
    want_E, want_C, want_gamma = _operators(exact)
    condition = _operator_condition(exact)
    return combine(
        identity("E", E, want_E, case.dtype, condition),
        identity("C_k", C, np.stack(want_C), case.dtype, condition),
        identity("γ_k", gamma, np.array(want_gamma), case.dtype),
    )


def _parts(case: Case, layer: ReduNet) -> tuple[Tensor, Tensor, Tensor]:
    return layer.E, layer.C, layer.gamma


def _memberships_measure(subject: Any, case: Case) -> Measurement:
    x, exact = case.x(), reference(case)
    layer, got, parts = _constructed(exact), subject(case, _constructed(case), x).double(), []
    for g, (point,) in zip(got.reshape(-1, *got.shape[-2:]), slices(exact.x()), strict=True):
        want = _estimated(exact, layer, columns(point))
        condition = _score_condition(exact, layer, point)
        parts.append(identity("π̂", g, want, case.dtype, condition))
        parts.append(identity("rows sum to 1", g.sum(-1), np.ones(len(want)), case.dtype, condition))
    return combine(*parts)


def _recomputed_condition(case: Case, layer: ReduNet, z: Tensor) -> float:
    """Parts that cancel, memberships that are off, and systems solved: as if for tokens a little off, tried three times."""
    Pi, moved = layer.memberships(z), 0.0
    expansion, total = CodingRate(case.epsilon).gradient(z), RateReduction(Pi, case.epsilon).gradient(z)
    start, size = layer(z, Pi) - z, 1e-6 * float(z.square().mean().sqrt())
    for trial in range(3):
        near = z + size * torch.from_numpy(case.rng(f"near {trial}").standard_normal(tuple(z.shape)))
        moved = max(moved, *(norm(o - s) / max(norm(s), 1e-300) for o, s in slices(layer(near, Pi) - near, start)))
    return cancelled([expansion, total + expansion], total) + 1e6 * moved + _membership_condition(case, layer, z)


def _membership_condition(case: Case, layer: ReduNet, z: Tensor) -> float:
    """Memberships off by a relative δ: what that moves the step is tried three times."""
    Pi, moved = layer.memberships(z), 0.0
    start = layer(z, Pi)
    for trial in range(3):
        signs = torch.from_numpy(case.rng(f"perturbed {trial}").choice([-1e-6, 1e-6], tuple(Pi.shape)))
        off = layer(z, Pi * (1.0 + signs)) - start
        moved = max(moved, *(norm(o) / max(norm(s), 1e-300) for o, s in slices(off, start - z)))
    return 1e6 * moved * _score_condition(case, layer, z)


def _constructed_condition(case: Case, layer: ReduNet, z: Tensor) -> float:
    """What the products with the operators lose, relative to an update in which expansion and compression cancel."""
    norms = float(torch.linalg.matrix_norm(layer.E, 2) + (layer.gamma * torch.linalg.matrix_norm(layer.C, 2)).max())
    size = min(norm(part) for (part,) in slices(layer(z) - z)) / float(layer.step.detach())
    return 1.0 + norms * norm(z) / size + _membership_condition(case, layer, z) if size else 1e300


def _still(make: Any, measure: Any) -> Any:
    """The measure where the layer moves by more than rounding; ΔR is flat on one token and on equal ones."""

    def run(subject: Any, case: Case) -> Measurement:
        exact, x = reference(case), case.x()
        layer, z = make(exact), x.double()
        objective = layer.objective_at(z)
        noise = SAFETY * float(np.finfo(case.dtype).eps) * float(objective.lipschitz(z).max()) * norm(z)
        moving = min(norm(g) for (g,) in slices(objective.gradient(z).detach()))
        if moving > noise or noise == 0:
            return measure(subject, case)
        with torch.no_grad():
            moved = norm(subject(case, make(case), x).double() - z)
        kappa = float(layer.step_size_at(z))
        rest = norm(objective.gradient(z)) + 4 * noise + float(np.finfo(case.dtype).eps) * norm(z) / kappa
        return Measurement((Comparison("no further than the gradient", moved / kappa, 2 * rest),), evidence=False)

    return run


def _recomputed_step(case: Case, layer: ReduNet, Z: Array, b: int) -> Array:
    Pi = _estimated(case, layer, Z)
    return paper.redunet_layer(Z, Pi, *paper.redunet_operators(Z, Pi, case.epsilon), layer.step.item())


def _frozen_reduction(case: Case, layer: ReduNet, z: Tensor, b: int) -> Any:
    Pi = _estimated(case, layer, columns(z.reshape(-1, *z.shape[-2:])[b]))
    return lambda Z: 1.0 - paper.rate_reduction(Z, Pi, case.epsilon)  # log det is as noisy as 1


def _constructed_step(case: Case, layer: ReduNet, Z: Array, b: int) -> Array:
    return paper.redunet_layer(Z, _estimated(case, layer, Z), *_held(layer), layer.step.item())


def _frozen_quadratic(case: Case, layer: ReduNet, z: Tensor, b: int) -> Any:
    Pi = _estimated(case, layer, columns(z.reshape(-1, *z.shape[-2:])[b]))
    E, C, gamma = _held(layer)
    return lambda Z: -paper.linearised_rate_reduction(Z, Pi, E, C, gamma)


def _with(make: Any = None, Pi: Any = None, **changes: Any) -> Any:
    """A layer with operators or memberships changed."""

    def subject(case: Case, layer: ReduNet, x: Tensor) -> Tensor:
        wrong = layer if make is None else make(case)
        for name, change in changes.items():
            setattr(wrong, name, change(getattr(layer, name)))
        return wrong(x, None if Pi is None else Pi(layer.memberships(x)))

    return subject


def _unfrozen(case: Case, layer: ReduNet, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.clone().requires_grad_()
        Pi = layer.memberships(z)
        counts, total = Pi.sum(-2), -CodingRate(case.epsilon).value(z)
        for k in range(Pi.shape[-1]):
            y = (Pi[..., k] / counts[..., k : k + 1]).sqrt().unsqueeze(-1) * z
            rate = CodingRate(case.epsilon, tokens=1).value(y)
            total = total + counts[..., k] / x.shape[-2] * rate
        (full,) = torch.autograd.grad(total.sum(), z)
    return x - layer.step.detach() * full


def _training_set(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0, given=None))
    x, Pi = _training(exact)
    with torch.no_grad():
        got = subject(exact, _fresh(exact, step_size=1000 * _kappa(exact)), x, Pi) - x
        want = _recomputed(exact)(x, Pi) - x
    expansion, total = CodingRate(exact.epsilon).gradient(x), RateReduction(Pi, exact.epsilon).gradient(x)
    lost = cancelled(
        [expansion * class_condition(exact, Pi, x), total + expansion, x * float(_layer_size(exact))], total
    )
    size = norm(want)
    return identity("the same step", got, want, "float64", _operator_condition(exact) * (lost + norm(x) / size))


def _layer_size(case: Case) -> Tensor:
    layer = _constructed(case)
    return torch.linalg.matrix_norm(layer.E, 2) + (layer.gamma * torch.linalg.matrix_norm(layer.C, 2)).max()


def _ascent(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    layer, x = _layer(exact, "recomputed"), exact.x()
    Pi = layer.memberships(x)
    with torch.no_grad():
        after, promised = subject(exact, layer, x, RateReduction(Pi, exact.epsilon).gradient(x))
    P = Pi.numpy()
    start, end = (float(paper.rate_reduction(columns(z), P, exact.epsilon)) for z in (x, after))
    scale = _kappa(exact) * norm(RateReduction(Pi, exact.epsilon).gradient(x)) ** 2
    if scale < 1e-12:
        return Measurement(evidence=False)
    rates = float(paper.coding_rate(columns(x), exact.epsilon)) + exact.dim
    condition = class_condition(exact, Pi, x) * rates / scale
    return inequality("promised increase", promised, end - start, scale, "float64", condition)


def _promise(case: Case, layer: ReduNet, x: Tensor, g: Tensor) -> tuple[Tensor, float]:
    return layer(x), _kappa(case) * (1 - case.step / 2) * norm(g) ** 2


def _sphere(subject: Any, case: Case) -> Measurement:
    """ΔR of unit tokens before and after the published layer: step, then back to the sphere."""
    exact = reference(dataclasses.replace(case, batch=0, scale=1.0, given=None))
    x = exact.x()
    if float(x.norm(dim=-1).min()) == 0 or exact.tokens < 2:
        return Measurement(evidence=False)
    x = normalize(x, dim=-1)
    layer = _layer(exact, "recomputed", normalise=True)
    Pi = layer.memberships(x)
    with torch.no_grad():
        after = subject(exact, layer, x)
    start, end = (float(paper.rate_reduction(columns(z), Pi.numpy(), exact.epsilon)) for z in (x, after))
    moved = paper.redunet_layer(
        columns(x), Pi.numpy(), *paper.redunet_operators(columns(x), Pi.numpy(), exact.epsilon), layer.step.item()
    )
    want = (moved / np.linalg.norm(moved, axis=0)).T
    allowed = tolerance(
        "float64", class_condition(exact, Pi, x) * (1 + norm(columns(x)) / np.linalg.norm(moved, axis=0).min())
    )
    return Measurement(
        (Comparison("step, then the sphere", norm(after - torch.from_numpy(want)) / norm(want), allowed),),
        allowed <= MEANINGFUL,
        {"ΔR before (nats)": start, "change of ΔR (nats)": end - start},
    )


CLAIMS = (
    Claim(
        id="redunet.operators",
        statement="The layer's operators E, C_k and weights γ_k of a training set are the paper's.",
        equation=r"$E = \alpha(I + \alpha Z Z^\top)^{-1}, \quad C_k = \alpha_k(I + \alpha_k Z\,\mathrm{diag}(\pi_k)"
        r" Z^\top)^{-1}, \quad \alpha_k = \frac{d}{n_k\epsilon^2},\; \gamma_k = \frac{n_k}{N}$",
        source=f"{PAPER}, section 3",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_parts,
        measure=_operators_measure,
        mutants=named(
            epsilon_for_its_square=lambda case, layer: _parts(
                case, _fresh(dataclasses.replace(case, epsilon=case.epsilon**0.5 * 1.01))
            ),
            classes_reversed=lambda case, layer: (layer.E, layer.C.flip(0), layer.gamma),
            N_for_the_members=lambda case, layer: (layer.E, layer.C * layer.gamma[:, None, None], layer.gamma),
            alpha_dropped=lambda case, layer: (layer.E * case.epsilon**2 * 3, layer.C, layer.gamma),
            all_NaN=lambda case, layer: (layer.E * torch.nan, layer.C, layer.gamma),
        ),
        structured=SINGLE,
        code=("unrolling.layers.redunet:ReduNet",),
        real=False,
    ),
    Claim(
        id="redunet.memberships",
        statement="The memberships of tokens without labels are the softmax over classes of −λ‖C_k z‖.",
        equation=r"$\hat\pi_{ik} = \exp(-\lambda\Vert C_k z_i\Vert) / \sum_l \exp(-\lambda\Vert C_l z_i\Vert)$",
        source=f"{PAPER}, section 3",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.memberships(x),
        measure=_memberships_measure,
        mutants=named(
            opposite_sign=lambda case, layer, x: torch.softmax(-layer.memberships(x).log(), -1),
            softmax_over_tokens=lambda case, layer, x: torch.softmax(layer.memberships(x).log(), -2),
            length_for_its_square=lambda case, layer, x: torch.softmax(
                -layer.sharpness * (x.unsqueeze(-3) @ layer.C).square().sum(-1).mT * case.epsilon**2, -1
            ),
            scale_doubled=lambda case, layer, x: soft_memberships(x, layer.C, 2 * layer.sharpness),
            classes_reversed=lambda case, layer, x: layer.memberships(x).flip(-1),
            all_NaN=lambda case, layer, x: layer.memberships(x) * torch.nan,
        ),
        structured=SEEDED,
        code=("unrolling.layers.redunet:ReduNet", "objectives.rate_reduction:soft_memberships"),
    ),
    Claim(
        id="redunet.step.recomputed",
        statement="With operators recomputed at the tokens, ReduNet's layer is an ascent step on the rate reduction,"
        " estimated memberships frozen.",
        equation=r"$Z + \kappa(E Z - \sum_k \gamma_k C_k Z\,\mathrm{diag}(\hat\pi_k)) = Z + \kappa\nabla\Delta R(Z, \hat\Pi)$",
        source=f"{PAPER}, section 3",
        kind="exact",
        domain=cases(kinds=APART_KINDS, tokens=(2, 12)),
        subject=forward,
        measure=_still(
            _recomputed,
            step_measure(_recomputed, _recomputed_step, _frozen_reduction, _recomputed_condition, reduction_bend),
        ),
        mutants=of_step(
            epsilon_for_its_square=_with(lambda case: _recomputed(case), epsilon=lambda e: e**0.5 * 1.01),
            constructed_form=lambda case, layer, x: _constructed(case)(x),
            memberships_not_frozen=_unfrozen,
            another_classes_memberships=_with(Pi=lambda Pi: Pi.roll(1, -2)),
            memberships_even=_with(Pi=lambda Pi: torch.full_like(Pi, 1.0 / Pi.shape[-1])),
            compression_dropped=lambda case, layer, x: x + layer.step * CodingRate(case.epsilon).gradient(x),
        ),
        structured=(*SEEDED, *CLEAR),
        code=("unrolling.layers.redunet:ReduNet",),
        frozen="Π",
    ),
    Claim(
        id="redunet.step.constructed",
        statement="With the operators of a training set, ReduNet's layer is an exact gradient step on the rate reduction"
        " linearised in the Gram matrices there, estimated memberships frozen.",
        equation=r"$z_i + \kappa(E z_i - \sum_k \gamma_k\hat\pi_{ik} C_k z_i) = z_i + \kappa\nabla_i\;\frac{1}{2}\sum_i"
        r" (z_i^\top E z_i - \sum_k \gamma_k\hat\pi_{ik}\, z_i^\top C_k z_i)$",
        source=f"{PAPER}, section 3; its energy is derived here",
        kind="exact",
        domain=cases(kinds=KINDS),
        subject=forward,
        measure=_still(
            _constructed,
            step_measure(
                _constructed,
                _constructed_step,
                _frozen_quadratic,
                _constructed_condition,
                lambda case, layer, z: max(norm(z), 1e-3 * case.scale),
            ),
        ),
        mutants=of_step(
            recomputed_form=lambda case, layer, x: _recomputed(case)(x),
            weights_dropped=_with(_constructed, gamma=torch.ones_like),
            classes_reversed=_with(_constructed, C=lambda C: C.flip(0)),
            memberships_even=_with(Pi=lambda Pi: torch.full_like(Pi, 1.0 / Pi.shape[-1])),
            expansion_dropped=_with(_constructed, E=torch.zeros_like),
        ),
        structured=(*SEEDED, *CLEAR[::3]),
        code=("unrolling.layers.redunet:ReduNet", "objectives.rate_reduction:LinearisedRateReduction"),
        frozen="Π, and E and C_k of the training set",
    ),
    Claim(
        id="redunet.training_set",
        statement="At the training set itself, with its own memberships, the constructed layer is the recomputed one.",
        equation=r"$E Z - \sum_k \gamma_k C_k Z\,\mathrm{diag}(\pi_k) = \nabla\Delta R(Z, \Pi)$ at the training $Z, \Pi$",
        source=f"{PAPER}, section 3",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=lambda case, layer, x, Pi: layer(x, Pi),
        measure=_training_set,
        mutants=named(
            memberships_estimated=lambda case, layer, x, Pi: layer(x),
            opposite_sign=lambda case, layer, x, Pi: 2 * x - layer(x, Pi),
            tokens_shifted=lambda case, layer, x, Pi: layer(x, Pi.roll(1, 0)),
            no_op=lambda case, layer, x, Pi: x,
            all_NaN=lambda case, layer, x, Pi: x * torch.nan,
        ),
        structured=SINGLE,
        code=("unrolling.layers.redunet:ReduNet",),
        real=False,
    ),
    Claim(
        id="redunet.ascent",
        statement="A recomputed layer of step κ < 2/L, L = 9α/8, raises the rate reduction by at least κ(1 − κL/2)‖∇ΔR‖².",
        equation=r"$\Delta R(Z + \kappa\nabla\Delta R) \geq \Delta R(Z) + \kappa(1 - \frac{9\alpha\kappa}{16})"
        r"\Vert\nabla\Delta R\Vert^2$",
        source="descent lemma with rate_reduction.smoothness",
        kind="inequality",
        domain=cases(batches=(0,), kinds=APART_KINDS, tokens=(2, 12)),
        subject=_promise,
        measure=_ascent,
        mutants=named(
            descent=lambda case, layer, x, g: (2 * x - layer(x), _promise(case, layer, x, g)[1]),
            no_op=lambda case, layer, x, g: (x, _promise(case, layer, x, g)[1]),
            promised_twice=lambda case, layer, x, g: (layer(x), 4 * _promise(case, layer, x, g)[1]),
            step_far_too_long=lambda case, layer, x, g: (
                x + 40 * (layer(x) - x),
                40 * _promise(case, layer, x, g)[1],
            ),
            all_NaN=lambda case, layer, x, g: (x * torch.nan, _promise(case, layer, x, g)[1]),
        ),
        structured=(*SINGLE, *APART),
        code=("unrolling.layers.redunet:ReduNet",),
        frozen="Π",
        largest=300,
    ),
    Claim(
        id="redunet.sphere",
        statement="What the published layer, brought back to the unit sphere, does to the rate reduction of unit tokens is"
        " measured: no descent is claimed of it.",
        equation=r"$z_i \leftarrow \mathrm{normalise}(z_i + \kappa(E z_i - \sum_k \gamma_k\hat\pi_{ik} C_k z_i))$",
        source=f"{PAPER}, section 3",
        kind="measured",
        domain=cases(batches=(0,), kinds=("gaussian", "subspaces", "shifted"), scales=(1.0,), epsilons=(0.5, 0.2, 1.0)),
        subject=lambda case, layer, x: layer(x),
        measure=_sphere,
        mutants=named(
            not_normalised=lambda case, layer, x: _layer(case, "recomputed")(x),
            features_normalised=lambda case, layer, x: normalize(_layer(case, "recomputed")(x), dim=-2),
            normalised_before=lambda case, layer, x: _layer(case, "recomputed")(normalize(x, dim=-1) * 1.01),
            all_NaN=lambda case, layer, x: x * torch.nan,
        ),
        structured=(Case(tokens=9, heads=2, head_dim=3), Case(tokens=12, heads=3, head_dim=2, kind="subspaces")),
        code=("unrolling.layers.redunet:ReduNet",),
        real=False,
    ),
)
