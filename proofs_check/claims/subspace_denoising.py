"""Claims on subspace denoising: the data model, its signal-to-noise ratio, and the energy of a selection."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import SelectedEnergy, SubspaceMixture, lift, project, signal_to_noise

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, gradient_measure, norm, reference
from ..mutants import gradient, named, of_gradient
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, tolerance
from .coding_rate import combine

__all__ = ["CLAIMS", "labels_of", "mixture", "selected_matrices"]

AOT = "Wang et al., AoT, arXiv 2506.03790"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
SEEDED = tuple(dataclasses.replace(case, seed=seed) for case in STRUCTURED for seed in (0, 1))
DELTAS = (0.3, 0.05, 0.1, 0.6)


def labels_of(case: Case) -> Tensor:
    """A cluster for every token, none of them empty where there are tokens enough."""
    drawn = torch.from_numpy(case.rng("labels").integers(case.heads, size=case.tokens))
    few = min(case.heads, case.tokens)
    drawn[:few] = torch.arange(few)
    return drawn


def mixture(case: Case, count: int, delta: float) -> tuple[Tensor, Tensor]:
    """The library's sample of the model for the case's bases."""
    generator = torch.Generator().manual_seed(case.seed)
    return SubspaceMixture(case.U(), delta).sample(count, generator)


def _ratio(subject: Any, case: Case) -> Measurement:
    case = dataclasses.replace(case, batch=0)
    labels, exact = labels_of(case), reference(case)
    got = subject(case, case.x(), labels, case.U())
    Z, U = columns(exact.x()), bases(exact.U())
    with np.errstate(invalid="ignore", divide="ignore"):
        want = paper.aot_snr(Z, labels.tolist(), U)
    parts = []
    for k, ratio in enumerate(want):
        if not (np.isfinite(ratio) and ratio > 0):
            continue
        # Either part is a difference of vectors as long as the tokens.
        condition = (1 + ratio) * (1 + 1 / ratio)
        allowed = tolerance(case.dtype, condition)
        done = Comparison(f"cluster {k}", abs(float(got[k]) - ratio) / ratio, allowed)
        parts.append(Measurement((done,), allowed <= MEANINGFUL))
    return combine(*parts)


def _snr(case: Case, x: Tensor, labels: Tensor, U: Tensor) -> Tensor:
    return signal_to_noise(x, labels, U)


def _moments(subject: Any, case: Case) -> Measurement:
    """Second moments of the coordinates of every cluster in every subspace, within six standard errors."""
    delta, count = DELTAS[case.seed % 4], 4000
    x, labels = subject(dataclasses.replace(case, extra=0), count, delta)
    case = dataclasses.replace(case, extra=0)
    done = []
    for k in range(case.heads):
        for j, w in enumerate(project(x[labels == k].double(), case.U().double())):
            entries = w.flatten() / (1.0 if j == k else delta)
            n = entries.numel()
            names = f"cluster {k}, subspace {j}"
            done.append(Comparison(f"{names}: variance", abs(float(entries.square().mean()) - 1), 6 * (2 / n) ** 0.5))
            done.append(Comparison(f"{names}: mean", abs(float(entries.mean())), 6 / n**0.5))
            fourth = abs(float(entries.square().square().mean()) - 3)
            done.append(Comparison(f"{names}: fourth moment", fourth, 6 * (96 / n) ** 0.5))
    values = {}
    if case.heads > 1 and bool(torch.isfinite(x).all()):
        ratios = signal_to_noise(x, labels, case.U())
        values["SNR · δ √(K − 1)"] = float(ratios.mean()) * delta * (case.heads - 1) ** 0.5
    outside = norm(x.double() - lift(project(x, case.U()), case.U()).double()) / norm(x)
    done.append(Comparison("inside the subspaces", outside, tolerance(case.dtype, case.dim)))
    done.append(Comparison("clusters in order", float(not torch.equal(labels, labels.sort().values)), 0.0))
    return Measurement(tuple(done), values=values)


def _with_sizes(sizes: Any) -> Any:
    """A wrong model: sizes(own, delta) of the parts in the token's own subspace and in the others."""

    def subject(case: Case, count: int, delta: float) -> tuple[Tensor, Tensor]:
        x, labels = mixture(case, count, delta)
        U, w = case.U(), project(x, case.U())
        own = (labels == torch.arange(case.heads)[:, None])[..., None]
        inside, outside = (torch.tensor(size, dtype=w.dtype) for size in sizes(delta))
        return lift(w * torch.where(own, inside, outside), U), labels

    return subject


def _make_selected(case: Case) -> SelectedEnergy:
    """Even seeds have keys of their own, odd ones the tokens' coordinates."""
    rng = case.rng("selection")
    partner = torch.from_numpy(rng.integers(case.tokens, size=(case.heads, case.tokens)))
    amount = torch.from_numpy(rng.choice([0.0, 0.5, 0.75], size=(case.heads, case.tokens))).to(case.torch_dtype)
    amount[..., 0] = 0.5
    keys = case.scale * case.draw("selected keys", case.heads, case.tokens, case.head_dim)
    return SelectedEnergy(case.U(), partner, amount, None if case.seed % 2 else keys)


def selected_matrices(energy: SelectedEnergy) -> list[Any]:
    """S_k (N, N) with amount[k, i] at (partner[k, i], i): a column for every reading token."""
    matrices = []
    for partner, amount in zip(energy.partner, energy.amount.double(), strict=True):
        S = np.zeros((len(partner), len(partner)))
        for i, j in enumerate(partner.tolist()):
            S[j, i] = float(amount[i])
        matrices.append(S)
    return matrices


def _selected(case: Case, b: int) -> Any:
    energy = _make_selected(case)
    keys = None if energy.keys is None else [columns(key) for key in energy.keys]
    return lambda Z: paper.selected_energy(Z, bases(case.U()), selected_matrices(energy), keys)


def _selected_condition(case: Case, energy: SelectedEnergy, x: Tensor) -> float:
    source = project(x, energy.U) if energy.keys is None else energy.keys
    size = norm(energy.gradient(x))
    return 1.0 + norm(source) * case.tokens**0.5 / size if size else 1.0


def _own_coordinates(case: Case, f: SelectedEnergy, x: Tensor) -> Tensor:
    w = project(x, f.U)
    return -lift(f.amount[..., None] * w, f.U)


def _read_backwards(case: Case, f: SelectedEnergy, x: Tensor) -> Tensor:
    """What the readers of a token hold, as if the selection were transposed."""
    w = project(x, f.U) if f.keys is None else f.keys.expand_as(project(x, f.U))
    index = f.partner[..., None].expand_as(w)
    return -lift(torch.zeros_like(w).scatter_add(-2, index, f.amount[..., None] * w), f.U)


CLAIMS = (
    Claim(
        id="subspace_denoising.ratio",
        statement="The signal-to-noise ratio of a cluster is the length of its tokens inside their subspace over that"
        " outside of it.",
        equation=r"$\mathrm{SNR}(Z_k) = \Vert U_k U_k^\top Z_k \Vert_F\, /\, \Vert (I - U_k U_k^\top) Z_k \Vert_F$",
        source=AOT,
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_snr,
        measure=_ratio,
        mutants=named(
            squared=lambda case, x, labels, U: signal_to_noise(x, labels, U).square(),
            inverted=lambda case, x, labels, U: 1 / signal_to_noise(x, labels, U),
            another_subspace=lambda case, x, labels, U: signal_to_noise(x, (labels + 1) % len(U), U),
            over_the_whole=lambda case, x, labels, U: ((r := signal_to_noise(x, labels, U).square()) / (1 + r)).sqrt(),
            noise_in_the_subspaces_only=lambda case, x, labels, U: signal_to_noise(lift(project(x, U), U), labels, U),
            all_NaN=lambda case, x, labels, U: signal_to_noise(x, labels, U) * torch.nan,
        ),
        structured=SINGLE,
        code=("objectives.subspace_denoising:signal_to_noise",),
    ),
    Claim(
        id="subspace_denoising.mixture",
        statement="The sampled tokens have the model's moments in every subspace, within six standard errors: variance 1 in"
        " their own, δ² in the others.",
        equation=r"$z = U_k a + \sum_{j \neq k} U_j e_j, \quad a \sim N(0, I), \quad e_j \sim N(0, \delta^2 I)$",
        source=f"{AOT}, definition 1",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=mixture,
        measure=_moments,
        mutants=named(
            noise_of_variance_delta=_with_sizes(lambda delta: (1.0, delta**-0.5)),
            noise_in_the_own_subspace_too=_with_sizes(lambda delta: ((1 + delta**2) ** 0.5 * 1.3, 1.0)),
            no_noise=_with_sizes(lambda delta: (1.0, 0.0)),
            labels_shifted=lambda case, count, delta: (
                mixture(case, count, delta)[0],
                (mixture(case, count, delta)[1] + 1) % case.heads,
            ),
            uniform_instead_of_normal=lambda case, count, delta: (
                lift(
                    (torch.erf(project((r := mixture(case, count, 1.0))[0], case.U()) / 2**0.5) * 3**0.5)
                    * torch.where((r[1] == torch.arange(case.heads)[:, None])[..., None], 1.0, delta).to(r[0].dtype),
                    case.U(),
                ),
                r[1],
            ),
            all_NaN=lambda case, count, delta: (
                mixture(case, count, delta)[0] * torch.nan,
                mixture(case, count, delta)[1],
            ),
        ),
        structured=tuple(Case(heads=h, head_dim=p, seed=s) for h, p, s in ((2, 2, 0), (3, 1, 1), (1, 3, 2), (3, 4, 3))),
        code=("objectives.subspace_denoising:SubspaceMixture",),
        real=False,
    ),
    Claim(
        id="subspace_denoising.selected.gradient",
        statement="Minus the gradient of a selection's energy is what is read; with the tokens' own coordinates, half of it"
        " and half of what the readers hold.",
        equation=r"$-\nabla E = \sum_k U_k \bar{W}_k S_k, \quad \mathrm{or} \quad"
        r" \frac{1}{2}\sum_k U_k W_k (S_k + S_k^\top)$",
        source=f"{AOT}, its thresholded attention, as an energy",
        kind="exact",
        domain=cases(batches=(0,)),
        subject=gradient,
        measure=gradient_measure(_make_selected, _selected, _selected_condition, lambda case, f, x: max(norm(x), 1e-3)),
        mutants=of_gradient(
            half_dropped=lambda case, f, x: 2 * f.gradient(x),
            selection_transposed=_read_backwards,
            own_coordinates=_own_coordinates,
            amounts_dropped=lambda case, f, x: dataclasses.replace(
                f, amount=(f.amount > 0).to(f.amount.dtype)
            ).gradient(x),
            another_heads_selection=lambda case, f, x: dataclasses.replace(
                f, partner=f.partner.roll(1, 0), amount=f.amount.roll(1, 0)
            ).gradient(x),
        ),
        structured=tuple(dataclasses.replace(case, batch=0) for case in SEEDED),
        code=("objectives.subspace_denoising:SelectedEnergy",),
        frozen="the selection, and the keys where given",
        largest=200,
    ),
)
