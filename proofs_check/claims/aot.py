"""Claims on the attention-only layer: what it descends, and when and for how long it denoises."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import SelectedEnergy, lift, project, signal_to_noise
from unrolling import AoT

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, identity, norm, reference, step_measure
from ..mutants import forward, named, of_step
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .mssa import _energy_bend, _frozen_energy
from .mssa import _softmax_condition as _mssa_condition
from .subspace_denoising import mixture

__all__ = ["CLAIMS"]

AOT = "Wang et al., AoT, arXiv 2506.03790"
TAUS = (0.55, 0.7, 0.9)
DELTAS = (0.08, 0.02, 0.05, 0.1)


def _tau(case: Case) -> float:
    return TAUS[case.seed % 3]


def _sharp(case: Case) -> float:
    """A scale at which tokens select themselves or one another, or nothing."""
    return 3.0 / max(case.scale, 1e-3) ** 2


def _softmax(case: Case) -> AoT:
    return AoT(case.dim, case.heads, U=case.U(), form="softmax", scale=case.softmax_scale, step_size=0.5 * case.step)


def _threshold(case: Case) -> AoT:
    return AoT(case.dim, case.heads, U=case.U(), threshold=_tau(case), scale=_sharp(case), step_size=0.5 * case.step)


def _paper_softmax(case: Case, layer: AoT, Z: Any, b: int) -> Any:
    return Z + 0.5 * case.step * paper.crate_eq14(Z, bases(case.U()), case.softmax_scale)


def _paper_threshold(case: Case, layer: AoT, Z: Any, b: int) -> Any:
    return paper.aot_threshold_step(Z, bases(case.U()), _sharp(case), _tau(case), 0.5 * case.step)


def _selected_energy(case: Case, layer: AoT, z: Tensor, b: int) -> Any:
    U, Z = bases(case.U()), columns(z.reshape(-1, *z.shape[-2:])[b])
    keys = [Uk.T @ Z for Uk in U]
    S = [paper.aot_selection(W, _sharp(case), _tau(case)) for W in keys]
    return lambda X: paper.selected_energy(X, U, S, keys)


def _softmax_condition(case: Case, layer: AoT, z: Tensor) -> float:
    return _mssa_condition(case, layer.attention, z)


def _read(weights: Any) -> Any:
    """A wrong step with other weights, from the softmax of the scores."""

    def subject(case: Case, layer: AoT, x: Tensor) -> Tensor:
        w = project(x, case.U())
        P = torch.softmax(layer.attention.scale * (w @ w.mT), -1)
        return x + 0.5 * case.step * lift(weights(P, layer.threshold) @ w, case.U())

    return subject


def _selection(subject: Any, case: Case) -> Measurement:
    """S_k of the layer against the paper's, entries whose share is within rounding of τ left out."""
    exact = reference(dataclasses.replace(case, batch=0))
    layer, tau = _threshold(exact), _tau(exact)
    got = subject(exact, layer, exact.x())
    wrong, told = 0.0, False
    for k, Uk in enumerate(bases(exact.U())):
        W = Uk.T @ columns(exact.x())
        share = paper.softmax_columns(_sharp(exact) * (W.T @ W))
        want = paper.aot_selection(W, _sharp(exact), tau)
        sure = np.abs(share - tau) > 1e-6
        wrong = max(wrong, float(np.abs((got[k] - want)[sure]).max(initial=0.0)))
        wrong = math.nan if np.isnan(got[k]).any() else wrong
        told = told or bool(want.any())
    return Measurement((Comparison("entries of φ", wrong, 1e-12),), told)


def _as_matrices(partner: Tensor, amount: Tensor) -> Any:
    heads, N = partner.shape
    S = torch.zeros(heads, N, N, dtype=amount.dtype)
    return S.scatter_(-2, partner[:, None, :], amount[:, None, :]).numpy()


def _selected(case: Case, layer: AoT, x: Tensor) -> Any:
    return _as_matrices(*layer.selection(x))


def _changed_scores(change: Any) -> Any:
    def subject(case: Case, layer: AoT, x: Tensor) -> Any:
        w = project(x, case.U())
        return change(layer.attention.scale * (w @ w.mT), layer.threshold).mT.numpy()

    return subject


def _regime(case: Case) -> tuple[Case, Tensor, Tensor]:
    """The case in the theorem's regime: wide subspaces, a sample of the mixture, its labels."""
    wide = dataclasses.replace(
        case, heads=max(2, case.heads), head_dim=28 + 6 * case.head_dim, batch=0, scale=1.0, given=None, kind="gaussian"
    )
    count = 3 + case.tokens // 2
    x, labels = mixture(wide, count, DELTAS[case.seed % 4])
    return dataclasses.replace(wide, tokens=len(x)), x, labels


def _in_regime(case: Case, form: str = "threshold") -> AoT:
    return AoT(case.dim, case.heads, U=case.U(), form=form, threshold=_tau(case), scale=1.0, step_size=0.5 * case.step)


def _premise(x: Tensor, labels: Tensor, U: Tensor, scale: float, tau: float) -> bool:
    """In its own subspace a token's score with itself leads all others by more than θ, elsewhere scores spread by less.

    θ = log((N − 1) τ/(1 − τ)): a lead of r gives a share of at least eʳ/(eʳ + N − 1), a spread of r at most that.
    """
    N = len(x)
    theta = math.log((N - 1) * tau / (1 - tau))
    for k, w in enumerate(project(x, U)):
        scores = scale * (w @ w.mT)
        own = labels == k
        others = scores.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf)
        lead = scores.diagonal() - others.amax(-1)
        spread = scores.amax(-1) - scores.amin(-1)
        if bool((lead[own] <= theta).any()) or bool((spread[~own] >= theta).any()):
            return False
    return True


def _growth(subject: Any, case: Case) -> Measurement:
    case, x, labels = _regime(case)
    layer, tau, eta = _in_regime(case), _tau(case), 0.5 * case.step
    exact_x, U = x.double(), reference(case).U()
    if not _premise(exact_x, labels, U, 1.0, tau):
        return Measurement(evidence=False)
    with torch.no_grad():
        after = subject(case, layer, x, labels).double()
    listed, blocks = labels.tolist(), bases(U)
    start, end = paper.aot_snr(columns(exact_x), listed, blocks), paper.aot_snr(columns(after), listed, blocks)
    allowed = tolerance(case.dtype, 1 + max(start + end))
    done = [
        Comparison(f"cluster {k}: SNR grows by 1 + ητ", abs(b / a / (1 + eta * tau) - 1), allowed)
        for k, (a, b) in enumerate(zip(start, end, strict=True))
    ]
    w = project(exact_x, U)
    own = (labels == torch.arange(case.heads)[:, None])[..., None]
    noise = lift(w * ~own, U)
    still = norm(lift(project(after, U) * ~own, U) - noise) / norm(noise)
    done.append(Comparison("the noise stays", still, allowed))
    return Measurement(tuple(done), values={"SNR before": min(start), "SNR after": min(end)})


def _layer(case: Case, layer: AoT, x: Tensor, labels: Tensor) -> Tensor:
    return layer(x)


def _quadratic(subject: Any, case: Case) -> Measurement:
    case, x, labels = _regime(case)
    layer, exact_x, U = _in_regime(case), x.double(), reference(case).U()
    if not _premise(exact_x, labels, U, 1.0, _tau(case)):
        return Measurement(evidence=False)
    with torch.no_grad():
        want = subject(case, layer, exact_x, labels, U)
        got = layer(x)
    moved = norm(got.double() - exact_x)
    return identity("step on the quadratic", want, got.double(), case.dtype, 4.0, moved)


def _quadratic_step(
    case: Case, layer: AoT, x: Tensor, labels: Tensor, U: Tensor, tau: float = 1.0, shift: int = 0
) -> Tensor:
    """A gradient step on −½τ Σ_k Σ_{i ∈ C_k} ‖w_{k,i}‖²."""
    own = (labels == torch.arange(case.heads)[:, None]).to(x.dtype)
    partner = ((torch.arange(len(x)) + shift) % len(x)).expand(case.heads, -1).contiguous()
    energy = SelectedEnergy(U, partner, tau * _tau(case) * own)
    return x - 0.5 * case.step * energy.gradient(x)


def _every_depth(subject: Any, case: Case) -> Measurement:
    """Forty layers; whether every cluster's ratio grew by 1 + ητ in each of them."""
    case, x, labels = _regime(reference(case))
    layer, tau, eta, U = _in_regime(case), _tau(case), 0.5 * case.step, case.U()
    if not _premise(x, labels, U, 1.0, tau):
        return Measurement(evidence=False)
    ratios, agree, grew = signal_to_noise(x, labels, U), 0.0, 0
    for depth in range(40):
        with torch.no_grad():
            x = subject(case, layer, x, labels, depth)
        now = signal_to_noise(x, labels, U)
        check = torch.tensor(paper.aot_snr(columns(x), labels.tolist(), bases(U)), dtype=torch.float64)
        agree = max(agree, float((now / check - 1).abs().max()))
        if bool((now / ratios < (1 + eta * tau) * (1 - 1e-6)).any()):
            break
        ratios, grew = now, depth + 1
    worst = float((now / ratios).min())
    values = {"layers that grew": float(grew), "last change of a ratio": worst}
    # The ratio loses one part in SNR · eps to rounding: forty layers of growth reach SNR 1e11 at most here.
    done = Comparison("both codes of the ratio", agree, 1e-3)
    return Measurement((done,), True, values, truth=grew == 40)


def _own_only(case: Case, layer: AoT, x: Tensor, labels: Tensor, depth: int) -> Tensor:
    return _quadratic_step(case, layer, x, labels, case.U())


def _cooled(case: Case, layer: AoT, x: Tensor, labels: Tensor, depth: int) -> Tensor:
    eta = layer.attention.step.item()
    scale = (1 + eta * _tau(case)) ** (-2 * depth)
    return AoT(case.dim, case.heads, U=case.U(), threshold=_tau(case), scale=scale, step_size=eta)(x)


def _softmax_growth(subject: Any, case: Case) -> Measurement:
    case, x, labels = _regime(reference(case))
    layer, eta, U = _in_regime(case, "softmax"), 0.5 * case.step, case.U()
    with torch.no_grad():
        after = subject(case, layer, x, labels)
    Z, blocks = columns(x), bases(U)
    want = Z + eta * paper.crate_eq14(Z, blocks, 1.0)
    listed = labels.tolist()
    start, end = paper.aot_snr(Z, listed, blocks), paper.aot_snr(columns(after), listed, blocks)
    measured = identity("softmax layer", after.mT, want, "float64", 1e3, norm(want - Z))
    growths = [b / a for a, b in zip(start, end, strict=True)]
    values = {
        "smallest growth / (1 + η)": min(growths) / (1 + eta),
        "largest growth / (1 + η)": max(growths) / (1 + eta),
    }
    return dataclasses.replace(measured, values=values)


def _circulation(subject: Any, case: Case) -> Measurement:
    """The work of the field round a square across a threshold; zero for the gradient of a continuous function."""
    tau, rng = _tau(case), case.rng("loop")
    keys, s, field = subject(case)
    difference = keys[0] - keys[1]
    along = difference / np.linalg.norm(difference)
    across = rng.standard_normal(keys.shape[1])
    across -= (across @ along) * along
    across /= np.linalg.norm(across)
    dead = math.log(tau / (1 - tau)) / s / np.linalg.norm(difference)
    centre, half = dead * along, 0.5 * dead
    corners = [centre + half * (a * along + b * across) for a, b in ((1, -1), (1, 1), (-1, 1), (-1, -1))]
    work, length = 0.0, 8 * half
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        for t in (np.arange(400) + 0.5) / 400:
            work += float(field(keys, s, tau, start + t * (end - start)) @ (end - start)) / 400
    size = tau * float(np.linalg.norm(keys[0])) * length
    declared = _of_layer(keys, s, tau, centre + 0.3 * half * along)
    off = float(np.abs(declared - _thresholded(keys, s, tau, centre + 0.3 * half * along)).max())
    return Measurement(
        (Comparison("as the layer declares it", off, 1e-12),),
        True,
        {"work round the loop, relative": float(work / size)},
        truth=abs(work) / size < 1e-3,
    )


def _thresholded(keys: Any, s: float, tau: float, q: Any) -> Any:
    share = paper.softmax_columns(s * (keys @ q)[:, None])[:, 0]
    return keys.T @ np.where(share > tau, tau, 0.0)


def _of_layer(keys: Any, s: float, tau: float, q: Any) -> Any:
    """The same by the energy that the layer declares there: minus its gradient."""
    rows = torch.from_numpy(keys)
    share, partner = torch.softmax(s * (rows @ torch.from_numpy(q)), 0).max(0)
    amount = tau * (share > tau).double().reshape(1, 1)
    identity_basis = torch.eye(len(q), dtype=torch.float64)[None]
    energy = SelectedEnergy(identity_basis, partner.reshape(1, 1), amount, rows[None])
    return -energy.gradient(torch.from_numpy(q)[None])[0].numpy()


def _attended(keys: Any, s: float, tau: float, q: Any) -> Any:
    return keys.T @ paper.softmax_columns(s * (keys @ q)[:, None])[:, 0]


def _two_keys(case: Case, opposite: bool = False, field: Any = _thresholded) -> Any:
    keys = case.rng("keys").standard_normal((2, 2 + case.head_dim))
    if opposite:
        keys[1] = -keys[0]
    return keys, 1.0, field


STEPS = tuple(dataclasses.replace(case, seed=number) for number, case in enumerate(STRUCTURED))
REGIME = (Case(), Case(tokens=9, heads=3, head_dim=2, seed=1), Case(tokens=2, head_dim=3, extra=2, seed=2))

CLAIMS = (
    Claim(
        id="aot.step.softmax",
        statement="The attention-only layer with a softmax is a gradient step on the self-attention energy, its keys frozen.",
        equation=r"$Z + \eta \sum_k U_k W_k\, \mathrm{softmax}(s W_k^\top W_k) = Z - \eta\nabla E$",
        source=AOT,
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=step_measure(_softmax, _paper_softmax, _frozen_energy, _softmax_condition, _energy_bend),
        mutants=of_step(
            softmax_over_the_wrong_axis=_read(lambda P, tau: P / P.sum(-2, keepdim=True)),
            attention_transposed=_read(lambda P, tau: P.mT),
            another_heads_attention=_read(lambda P, tau: P.roll(1, -3)),
            thresholded=_read(lambda P, tau: tau * (P > tau).to(P.dtype)),
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.aot:AoT",),
        frozen="keys",
    ),
    Claim(
        id="aot.step.threshold",
        statement="The thresholded layer is a gradient step on the energy of what it selects, selection and keys frozen.",
        equation=r"$Z + \eta \sum_k U_k W_k\, \varphi(s W_k^\top W_k) = Z - \eta\nabla E, \quad"
        r" \varphi = \tau \cdot [\mathrm{softmax} > \tau]$",
        source=f"{AOT}, its thresholded operator",
        kind="exact",
        domain=cases(kinds=("gaussian", "rank_one", "orthonormal", "shifted", "subspaces", "one_far")),
        subject=forward,
        measure=step_measure(
            _threshold,
            _paper_threshold,
            _selected_energy,
            lambda case, layer, z: 1.0 + norm(z) / max(norm(layer(z).detach() - z), 1e-300),
            lambda case, layer, z: max(norm(z), 1e-3),
        ),
        mutants=of_step(
            softmax=_read(lambda P, tau: P),
            softmax_kept_above_the_threshold=_read(lambda P, tau: P * (P > tau)),
            amount_one=_read(lambda P, tau: (P > tau).to(P.dtype)),
            selection_transposed=_read(lambda P, tau: tau * (P > tau).to(P.dtype).mT),
            below_the_threshold=_read(lambda P, tau: tau * (P <= tau).to(P.dtype)),
        ),
        structured=STEPS,
        code=("unrolling.layers.aot:AoT",),
        frozen="the selection and the keys",
        largest=300,
    ),
    Claim(
        id="aot.selection",
        statement="The selection is the thresholded softmax: τ where a token's share exceeds τ, one token at most, else 0.",
        equation=r"$\varphi(S)_{ji} = \tau\ \mathrm{if}\ \mathrm{softmax}(s\, W_k^\top W_k)_{ji} > \tau,\ \mathrm{else}\ 0$",
        source=f"{AOT}, its thresholded operator",
        kind="identity",
        domain=cases(batches=(0,), kinds=("gaussian", "rank_one", "orthonormal", "shifted", "subspaces", "one_far")),
        subject=_selected,
        measure=_selection,
        mutants=named(
            wrong_axis=_changed_scores(lambda s, tau: tau * (torch.softmax(s, -2) > tau).to(s.dtype)),
            scale_dropped=_changed_scores(lambda s, tau: tau * (torch.softmax(s / 3, -1) > tau).to(s.dtype)),
            threshold_dropped=_changed_scores(lambda s, tau: tau * (s == s.amax(-1, keepdim=True)).to(s.dtype)),
            the_share_itself=_changed_scores(lambda s, tau: (p := torch.softmax(s, -1)) * (p > tau)),
            all_NaN=_changed_scores(lambda s, tau: s * torch.nan),
        ),
        structured=tuple(dataclasses.replace(case, batch=0) for case in STEPS),
        code=("unrolling.layers.aot:AoT",),
        largest=300,
    ),
    Claim(
        id="aot.snr.threshold",
        statement="Where every token leads in its own subspace by more than log((N − 1)τ/(1 − τ)) and scores elsewhere spread"
        " by less, the layer multiplies the signal-to-noise ratio of every cluster by exactly 1 + ητ.",
        equation=r"$\mathrm{SNR}(Z_k^{+}) = (1 + \eta\tau)\, \mathrm{SNR}(Z_k)$",
        source=f"{AOT}, its theorem on the linear rate; this condition, which is not random, is derived here",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_layer,
        measure=_growth,
        mutants=named(
            no_op=lambda case, layer, x, labels: x,
            opposite_sign=lambda case, layer, x, labels: 2 * x - layer(x),
            residual_dropped=lambda case, layer, x, labels: layer(x) - x,
            amount_one=lambda case, layer, x, labels: x + (layer(x) - x) / layer.threshold,
            softmax=lambda case, layer, x, labels: _in_regime(case, "softmax")(x),
            another_token_moved=lambda case, layer, x, labels: x + (layer(x) - x).roll(1, 0),
            all_NaN=lambda case, layer, x, labels: x * torch.nan,
        ),
        structured=REGIME,
        code=("unrolling.layers.aot:AoT", "objectives.subspace_denoising:SubspaceMixture"),
        frozen="the selection",
        real=False,
    ),
    Claim(
        id="aot.threshold.quadratic",
        statement="In that regime the layer is a gradient step on minus half the signal's energy, only the selection frozen.",
        equation=r"$Z^+ = Z - \eta\nabla E, \quad E = -\frac{\tau}{2}\sum_k \sum_{i \in C_k} \Vert U_k^\top z_i \Vert^2$",
        source="derived: a selection of oneself is a symmetric matrix",
        kind="identity",
        domain=cases(batches=(0,)),
        subject=_quadratic_step,
        measure=_quadratic,
        mutants=named(
            half_dropped=lambda case, layer, x, labels, U: _quadratic_step(case, layer, x, labels, U, tau=2.0),
            opposite_sign=lambda case, layer, x, labels, U: _quadratic_step(case, layer, x, labels, U, tau=-1.0),
            neighbours_selected=lambda case, layer, x, labels, U: _quadratic_step(case, layer, x, labels, U, shift=1),
            another_cluster=lambda case, layer, x, labels, U: _quadratic_step(
                case, layer, x, (labels + 1) % case.heads, U
            ),
            all_NaN=lambda case, layer, x, labels, U: x * torch.nan,
        ),
        structured=REGIME,
        code=("unrolling.layers.aot:AoT", "objectives.subspace_denoising:SelectedEnergy"),
        frozen="the selection",
        real=False,
    ),
    Claim(
        id="aot.snr.every_depth",
        statement="From tokens on which one layer multiplies every signal-to-noise ratio by 1 + ητ, forty layers do so forty"
        " times.",
        equation=r"$\mathrm{SNR}(Z_k^{(l)}) = (1 + \eta\tau)^l\, \mathrm{SNR}(Z_k^{(0)})$ for every depth $l$",
        source=f"natural to believe of {AOT}, whose rate is linear in the number of layers",
        kind="refuted",
        domain=cases(batches=(0,)),
        subject=lambda case, layer, x, labels, depth: layer(x),
        measure=_every_depth,
        mutants=named(own_subspace_only=_own_only, scale_cooled_with_the_signal=_cooled),
        structured=(Case(tokens=2, seed=0, step=0.5), Case(tokens=4, seed=3)),
        code=("unrolling.layers.aot:AoT",),
        correction="The keys grow by 1 + ητ a layer and the noise does not shrink: its scores spread until it selects, and"
        " then the signal of other tokens is added to it. With the scale divided by (1 + ητ)² a layer, or normalised"
        " tokens, the factor holds at every depth.",
        real=False,
    ),
    Claim(
        id="aot.snr.softmax",
        statement="How much of the factor 1 + η the softmax form reaches in the same regime is measured.",
        equation=r"$\mathrm{SNR}(Z_k^{+})\, /\, \mathrm{SNR}(Z_k)$ for $Z^+ = Z + \eta\,\mathrm{MSSA}(Z)$",
        source=AOT,
        kind="measured",
        domain=cases(batches=(0,)),
        subject=_layer,
        measure=_softmax_growth,
        mutants=named(
            no_op=lambda case, layer, x, labels: x,
            opposite_sign=lambda case, layer, x, labels: 2 * x - layer(x),
            thresholded=lambda case, layer, x, labels: _in_regime(case)(x),
            all_NaN=lambda case, layer, x, labels: x * torch.nan,
        ),
        structured=REGIME,
        code=("unrolling.layers.aot:AoT",),
        real=False,
    ),
    Claim(
        id="aot.threshold.potential",
        statement="Thresholded attention to constant keys is the gradient of a continuous function of the query, as softmax"
        " attention is.",
        equation=r"$\sum_j \tau\, [\,a_j(q) > \tau\,]\, k_j = \nabla\phi(q)$ for some continuous $\phi$",
        source="natural to believe; derived",
        kind="refuted",
        domain=cases(batches=(0,)),
        subject=_two_keys,
        measure=_circulation,
        mutants=named(
            softmax=lambda case: _two_keys(case, field=_attended),
            opposite_keys=lambda case: _two_keys(case, opposite=True),
        ),
        structured=(Case(seed=0), Case(seed=1), Case(seed=2)),
        code=("unrolling.layers.aot:AoT",),
        correction="The field is constant on either side of a threshold and jumps along it unless the key is normal to it:"
        " work is done round a loop that leaves a region and comes back. It is a gradient with the selection held"
        " constant (aot.step.threshold).",
        real=False,
    ),
)
