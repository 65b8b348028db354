"""Claims on when −MSSA fails to descend the compression term: why it can, and with how few tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import SubspaceCodingRate, lift, project

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, inequality, norm, rate_condition, reference, score_condition
from ..mutants import named
from ..strategies import WITNESS_6, Case, cases
from ..tolerance import MEANINGFUL, tolerance
from .mssa import minus_descends_measure

__all__ = ["CLAIMS"]

PAPER = "Yu et al., CRATE, arXiv 2306.01129, section 2.3"


def _one_hub(subject: Any, case: Case) -> Measurement:
    """A drawn subspace that the theorem covers, and the one that attains the bound."""
    N, rng = case.tokens, case.rng("subspace")
    hub = np.zeros(N)
    hub[0] = 1.0
    weights = np.append(1.0, rng.random(N - 1) * (rng.random(N - 1) < 0.7))
    drawn = np.stack([weights, *rng.standard_normal((min(case.m, N - 1), N))], axis=1)
    k, bound = subject(N)
    parts = [_inside(drawn, bound, "drawn subspace")]
    if N > 2:
        parts.append(_inside(_extremal(N, k), bound, "extremal subspace", tight=True))
    values = {"least Σ_i H_iB": bound}
    comparisons = tuple(comparison for part in parts for comparison in part.comparisons)
    return Measurement(comparisons, True, values)


def _inside(V: Any, bound: float, name: str, tight: bool = False) -> Measurement:
    Q, _ = np.linalg.qr(V)
    total = float((Q @ Q[0]).sum())
    if tight:
        return Measurement((Comparison(f"attained in the {name}", abs(total - bound), 1e-9),))
    return inequality(f"Σ_i H_iB in a {name}", bound, total, 1.0, "float64", 4.0 * len(V))


def _extremal(N: int, k: int) -> Any:
    """Span of (1; 1 k times; 0 n times) and of h = H e_B with equality everywhere in the proof."""
    n = N - 1 - k
    share = (1 + 1 / (k + 1)) / 2
    h = np.concatenate(
        [[share], np.full(k, (1 - share) / k), np.full(n, -math.sqrt(k / (4 * (k + 1)) / n) if n else 0.0)]
    )
    return np.stack([np.append(np.ones(k + 1), np.zeros(n)), h], axis=1)


def _least(N: int) -> tuple[int, float]:
    """The split into k tokens beside the hub and n opposite ones that makes the sum least, and that sum.

    Proof. H projects onto a span that holds v ≥ 0, the far direction, with v_B = 1 its largest entry. Let h = H e_B and
    l = h_B; then ‖h‖² = l and ⟨v, h⟩ = v_B = 1. The k positive entries of h beside B add up to P ≥ 1 − l, since v ≤ 1
    there and v ≥ 0 where h is negative; the n negative ones add up to −M; and P²/k + M²/n ≤ l − l². Hence
    Σ h = l + P − M ≥ 1 − M with M² ≤ n (l − l² − (1 − l)²/k), whose maximum over l is n k / (4 (k + 1)).
    """
    splits = {k: 1 - 0.5 * math.sqrt((N - 1 - k) * k / (k + 1)) for k in range(1, N - 1)}
    if not splits:
        return 0, 0.0
    k = min(splits, key=lambda key: splits[key])
    return k, splits[k]


def _attack(case: Case, steps: int = 40) -> Case:
    """Tokens moved by Adam to make cos(∇R_c, MSSA) small; magnitudes of any size, since entries are sinh of what moves.

    Starts are Gaussian tokens, one far hub, and the six-token witness less one token, all jittered.
    """
    rng, N = case.rng("attack"), case.tokens
    start = _start(case, rng)
    u = torch.from_numpy(np.arcsinh(start) + 0.05 * rng.standard_normal(start.shape)).requires_grad_()
    log_beta = torch.tensor(float(rng.choice([0.0, 3.0, -2.0])), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([u, log_beta], lr=0.02)
    best, found = math.inf, (start, 1.0)
    for _ in range(steps):
        optimiser.zero_grad()
        x, beta = torch.sinh(u), log_beta.exp()
        gram = torch.eye(x.shape[1], dtype=x.dtype) + beta * x.mT @ x
        gradient = beta * torch.linalg.solve(gram, x, left=False)
        attended = torch.softmax(x @ x.mT, -1) @ x
        cosine = (gradient * attended).sum() / (gradient.norm() * attended.norm()).clamp(min=1e-300)
        if float(cosine.detach()) < best:
            best = float(cosine.detach())
            found = (x.detach().numpy().copy(), float(beta.detach()))
        cosine.backward()
        optimiser.step()
    tokens, beta_found = found
    d = tokens.shape[1]
    return dataclasses.replace(
        case,
        heads=1,
        head_dim=d,
        extra=0,
        batch=0,
        kind="witness",
        epsilon=math.sqrt(d / (N * beta_found)),
        given=tokens,
    )


def _start(case: Case, rng: np.random.Generator) -> Any:
    N, d = case.tokens, max(2, case.dim)
    style = case.seed % 3
    if style == 0:
        return case.scale * rng.standard_normal((N, d))
    if style == 1:
        return WITNESS_6.array()[np.sort(rng.permutation(6)[:N])]
    k = max(1, int(rng.integers(1, max(2, N // 2))))
    n = max(1, N - 1 - k)
    far = float(rng.choice([30.0, 300.0, 1000.0]))
    rows = n * [(1.0, 3.0)] + k * [(far, 2.0)] + [(1.05 * far + 30.0, -6.0)]
    return np.array(rows[-N:])


def _fewest(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    attacked = _attack(exact)
    measured = minus_descends_measure(subject, attacked)
    return dataclasses.replace(
        measured, values={f"least cosine found, {case.tokens} tokens": v for v in measured.values.values()}
    )


PRECISIONS = (0.05, 0.2, 0.5, 2.0)


def _alignment(subject: Any, case: Case) -> Measurement:
    """Cosines of the stand-ins with ∇R_c over precisions, ε in units of the tokens' size, against the papers' formulas."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, U, Z = exact.x(), exact.U(), columns(exact.x())
    if norm(x) == 0:
        return Measurement(evidence=False)
    size = norm(x) / len(x) ** 0.5
    got = subject(exact, x, U)
    parts, values = [], {}
    softmax = paper.crate_eq14(Z, bases(U), exact.softmax_scale)
    for ratio in PRECISIONS:
        epsilon = ratio * size
        true = Z - paper.crate_eq11(Z, bases(U), epsilon, 1.0)
        beta = exact.head_dim / (len(x) * epsilon**2)
        series = sum(Uk @ (Uk.T @ Z - beta * (Uk.T @ Z @ Z.T @ Uk) @ Uk.T @ Z) for Uk in bases(U))
        want = [float((a * true).sum()) / max(norm(a) * norm(true), 1e-300) for a in (softmax, series)]
        w, gained = project(x, U), rate_condition(x, beta)
        exact_part = gained * (1 + norm(Z) / norm(true))
        attended = score_condition(w, w, exact.softmax_scale) * (1 + norm(x) / max(norm(softmax), 1e-300))
        # The two terms of the series may cancel: β‖w‖² = 1 leaves nothing of one token.
        cancelled = gained * norm(x) / max(norm(series), 1e-300)
        names = (("softmax", exact_part + attended), ("I − βG", exact_part + cancelled))
        for (name, condition), one, other in zip(names, got[ratio], want, strict=True):
            allowed = tolerance("float64", condition)
            parts.append((Comparison(f"cosine of {name} at ε = {ratio:g} sizes", abs(one - other), allowed), allowed))
            values[f"cosine of {name}, ε = {ratio:g} token sizes"] = one
    comparisons = tuple(comparison for comparison, _ in parts)
    return Measurement(comparisons, all(allowed <= MEANINGFUL for _, allowed in parts), values)


def _cosines(
    case: Case, x: Tensor, U: Tensor, root: float = 1.0, sign: float = 1.0
) -> dict[float, tuple[float, float]]:
    w = project(x, U)
    softmax = lift(torch.softmax(root * case.softmax_scale * (w @ w.mT), -1) @ w, U)
    size, out = norm(x) / len(x) ** 0.5, {}
    for ratio in PRECISIONS:
        true = SubspaceCodingRate(U, ratio * size).gradient(x)
        beta = case.head_dim / (len(x) * (ratio * size) ** 2)
        series = lift(w - sign * beta * w @ (w.mT @ w), U)
        softmax_cosine, series_cosine = (
            float((a * true).sum()) / max(norm(a) * norm(true), 1e-300) for a in (softmax, series)
        )
        out[ratio] = (softmax_cosine, series_cosine)
    return out


def _mssa(case: Case, x: Tensor, gradient: Tensor, s: float) -> Tensor:
    return torch.softmax(s * (x @ x.mT), -1) @ x


CLAIMS = (
    Claim(
        id="mssa.sign.one_hub",
        statement="Where all tokens attend to one token B and ε → 0, the inner product of ∇R_c and MSSA tends to the value"
        " at B of the least-squares fit of the constant 1, which is not negative with nine tokens or fewer, and can be with"
        " ten.",
        equation=r"$\sum_i H_{iB} \geq \min_k\, 1 - \frac{1}{2}\sqrt{\frac{(N-1-k)\,k}{k+1}}, \quad"
        r" H = Z^\top (Z Z^\top)^{-1} Z$",
        source="derived: ‖He_B‖² = H_BB, and the direction along which all attend to B is in the span and largest at B",
        kind="bound",
        domain=cases(tokens=(2, 14), batches=(0,)),
        subject=_least,
        measure=_one_hub,
        mutants=named(
            half_dropped=lambda N: (_least(N)[0], 2 * _least(N)[1] - 1),
            counts_exchanged=lambda N: (_least(N)[0], 1 - 0.5 * math.sqrt(max(N - 1, 1))),
            never_negative=lambda N: (_least(N)[0], max(0.0, _least(N)[1])),
            all_NaN=lambda N: (_least(N)[0], math.nan),
        ),
        structured=tuple(Case(tokens=N) for N in (3, 5, 8, 9, 10, 14)),
        code=("unrolling.layers.mssa:MSSA",),
        real=False,
    ),
    Claim(
        id="mssa.sign.fewest_tokens",
        statement="With five tokens or fewer, −MSSA is a descent direction of the compression term.",
        equation=r"$N \leq 5 \;\Rightarrow\; \langle \nabla R_c(Z),\; \mathrm{MSSA}(Z)\rangle > 0$",
        source=f"open; {PAPER}. Six break it (mssa.sign.minus_descends)",
        kind="conjecture",
        domain=cases(tokens=(2, 5), batches=(0,), kinds=("gaussian",), scales=(1.0, 10.0)),
        subject=_mssa,
        measure=_fewest,
        mutants=named(
            opposite_sign=lambda case, x, gradient, s: -_mssa(case, x, gradient, s),
            softmax_of_the_negative=lambda case, x, gradient, s: torch.softmax(-s * (x @ x.mT), -1) @ x,
            all_NaN=lambda case, x, gradient, s: x * torch.nan,
        ),
        structured=tuple(Case(tokens=5, head_dim=2, seed=seed) for seed in range(6)),
        code=("unrolling.layers.mssa:MSSA",),
        real=False,
    ),
    Claim(
        id="mssa.alignment",
        statement="How well MSSA, and the first terms of the Neumann series, point along the gradient of the compression term"
        " is measured over precisions and scales.",
        equation=r"$\cos(\nabla R_c, \mathrm{MSSA}), \quad \cos(\nabla R_c,\; \sum_k U_k W_k (I - \beta W_k^\top W_k))$",
        source=f"{PAPER}: both stand in for the gradient, eq. 12 to 14",
        kind="measured",
        domain=cases(batches=(0,), kinds=("gaussian", "subspaces", "shifted", "one_far"), scales=(1.0, 0.1, 10.0)),
        subject=_cosines,
        measure=_alignment,
        mutants=named(
            scale_of_the_softmax_dropped=lambda case, x, U: _cosines(case, x, U, root=3.0),
            sign_of_the_second_term=lambda case, x, U: _cosines(case, x, U, sign=-1.0),
            opposite_sign=lambda case, x, U: {k: (-a, -b) for k, (a, b) in _cosines(case, x, U).items()},
            all_NaN=lambda case, x, U: dict.fromkeys(PRECISIONS, (math.nan, math.nan)),
        ),
        structured=(Case(tokens=40, heads=3, head_dim=4), Case(tokens=9, heads=2, head_dim=3, kind="subspaces")),
        code=("unrolling.layers.mssa:MSSA", "objectives.coding_rate:SubspaceCodingRate"),
        largest=200,
    ),
)
