"""Claims on CRATE's block: two declared steps, one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolling import ISTA, MSSA, CRATEBlock

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, identity, norm, rate_condition, reference, score_condition
from ..mutants import named
from ..strategies import STRUCTURED, Case, cases
from .coding_rate import combine
from .sparse_coding import dictionary, penalty

__all__ = ["CLAIMS"]

SOURCE = "Yu et al., CRATE, arXiv 2306.01129, section 2.4, eq. 11, 14 and 17"


def _form(case: Case) -> str:
    return "softmax" if case.seed % 2 else "exact"


def _kappa(case: Case) -> float:
    return 0.5 * case.step if _form(case) == "softmax" else case.step * case.tokens * case.epsilon**2 / case.head_dim


def _block(case: Case, norm: str = "none") -> CRATEBlock:
    attention = MSSA(
        case.dim,
        case.heads,
        U=case.U(),
        form=_form(case),
        epsilon=case.epsilon,
        scale=case.softmax_scale,
        step_size=_kappa(case),
    )
    D = dictionary(dataclasses.replace(case, sharpness=0.0), case.dim, case.dim)
    ista = ISTA(case.dim, D=D, weight=penalty(case))
    return CRATEBlock(attention, ista, norm=norm).to(case.torch_dtype)


def _paper(case: Case, Z: Any, D: Any, eta: float, lam: float) -> tuple[Any, Any]:
    U = bases(case.U())
    if _form(case) == "softmax":
        between = Z + _kappa(case) * paper.crate_eq14(Z, U, case.softmax_scale)
    else:
        between = paper.crate_eq11(Z, U, case.epsilon, _kappa(case))
    return between, paper.crate_eq17(between, D, eta, lam)


def _condition(case: Case, x: Tensor) -> float:
    rate = rate_condition(x, case.head_dim / (case.tokens * case.epsilon**2))
    return rate if _form(case) == "exact" else score_condition(x, x, case.softmax_scale)


def _blocks(subject: Any, case: Case) -> Measurement:
    exact, x = reference(case), case.x()
    with torch.no_grad():
        got = subject(case, _block(case), x).double()
        block, z = _block(exact), exact.x()
        declared = block.descend(z)
    moved = norm(declared - z)
    if moved == 0:
        return Measurement((Comparison("at rest", norm(got - z), 0.0),), evidence=False)
    D, eta, lam = block.ista.D.detach().numpy(), float(block.ista.kappa()), float(block.ista.weight)
    want = np.stack([_paper(exact, columns(s), D, eta, lam)[1].T for s in z.reshape(-1, *z.shape[-2:])]).reshape(
        z.shape
    )
    condition = 4 * _condition(exact, z) * (1 + eta * lam * z.numel() ** 0.5 / moved)
    return combine(
        identity("declared steps", got, declared, case.dtype, condition, moved),
        identity("paper's block", got, want, case.dtype, condition, moved),
    )


def _published(subject: Any, case: Case) -> Measurement:
    exact, x = reference(case), case.x()
    with torch.no_grad():
        got = subject(case, _block(case, "layer"), x).double()
        block = _block(exact, "layer")
    D, eta, lam = block.ista.D.detach().numpy(), float(block.ista.kappa()), float(block.ista.weight)
    want, condition = [], 1.0
    for token_set in exact.x().reshape(-1, case.tokens, case.dim):
        Z = columns(token_set)
        normal = paper.layer_norm_columns(Z)
        update = _paper(exact, normal, D, eta, lam)[0] - normal
        want.append(paper.crate_eq17(paper.layer_norm_columns(Z + update), D, eta, lam).T)
        # LayerNorm divides by the spread of a token, and rounding of its entries with it.
        lost = np.abs(Z).max() / _spread(Z) * _condition(exact, torch.from_numpy(normal.T)) * np.abs(update).max()
        condition = max(condition, (np.abs(Z).max() + lost) / _spread(Z + update))
    return identity("published block", got, np.stack(want).reshape(x.shape), case.dtype, condition)


def _spread(Z: Any) -> float:
    return float(np.sqrt(Z.var(0) + 1e-5).min())


def _trace(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    block, x = _block(exact), exact.x()
    traced = [float(value) for value in subject(exact, block, x)]
    D, eta, lam = block.ista.D.detach().numpy(), float(block.ista.kappa()), float(block.ista.weight)
    Z, U = columns(x), bases(exact.U())
    between, after = _paper(exact, Z, D, eta, lam)
    want = [float(paper.crate_eq8(M, U, exact.epsilon)) for M in (Z, between, after)] + [float((after == 0).mean())]
    if want[0] <= 0:
        return Measurement(evidence=False)
    condition = 16 * _condition(exact, x) * rate_condition(x, exact.head_dim / (exact.tokens * exact.epsilon**2))
    # I + βG holds 1 beside the eigenvalues: of a small rate eps · d is lost.
    parts = [
        identity(name, np.array([got]), np.array([value]), "float64", condition * (1 + exact.dim / max(value, 1e-300)))
        for name, got, value in zip(("before", "between", "after"), traced, want, strict=False)
    ]
    values = {
        "R_c after the attention": want[1] / want[0] - 1,
        "R_c after the block": want[2] / want[0] - 1,
        "share of zeros": want[3],
    }
    zeros = Measurement((Comparison("share of zeros", abs(traced[3] - want[3]), 1e-12),))
    return dataclasses.replace(combine(*parts, zeros), values=values)


def _no_norm(case: Case, block: CRATEBlock, x: Tensor) -> Tensor:
    return block.ista(block.attention(x))


CLAIMS = (
    Claim(
        id="crate.block",
        statement="CRATE's block without LayerNorms is a step on the compression term, or on its attention's energy, and"
        " then a proximal step of sparse coding.",
        equation=r"$Z^{\ell+1/2} = Z^\ell - \kappa\nabla R_c(Z^\ell), \quad"
        r" Z^{\ell+1} = \mathrm{ReLU}(Z^{\ell+1/2} + \eta D^\top(Z^{\ell+1/2} - D Z^{\ell+1/2}) - \eta\lambda)$",
        source=SOURCE,
        kind="exact",
        domain=cases(scales=(1.0, 0.1, 10.0)),
        subject=lambda case, block, x: block(x),
        measure=_blocks,
        mutants=named(
            order_exchanged=lambda case, block, x: block.attention(block.ista(x)),
            attention_left_out=lambda case, block, x: block.ista(x),
            ISTA_left_out=lambda case, block, x: block.attention(x),
            skip_around_ISTA=lambda case, block, x: block.attention(x) + block.ista(block.attention(x)),
            skip_around_the_attention_dropped=lambda case, block, x: block.ista(block.attention(x) - x),
            attention_with_the_other_sign=lambda case, block, x: block.ista(2 * x - block.attention(x)),
            all_NaN=lambda case, block, x: block(x) * torch.nan,
        ),
        structured=tuple(
            dataclasses.replace(case, seed=s) for case in STRUCTURED if 0.1 <= case.scale <= 10 for s in (0, 1)
        ),
        code=("unrolling.layers.crate:CRATEBlock",),
        frozen="X (and keys)",
    ),
    Claim(
        id="crate.published",
        statement="With LayerNorms, the block is the published one; it declares no objective.",
        equation=r"$Y = Z + \mathrm{MSSA}(\mathrm{LN}(Z)), \quad Z^+ = \mathrm{ISTA}(\mathrm{LN}(Y))$",
        source=f"{SOURCE}; the authors' code",
        kind="identity",
        domain=cases(kinds=("gaussian", "shifted", "one_far", "subspaces"), scales=(1.0, 10.0)),
        subject=lambda case, block, x: block(x),
        measure=_published,
        mutants=named(
            norms_left_out=_no_norm,
            skip_around_ISTA=lambda case, block, x: block(x) + x,
            norm_after_the_attention_left_out=lambda case, block, x: block.ista(
                x + block.attention.update(block.norm_attention(x))
            ),
            attention_of_raw_tokens=lambda case, block, x: block.ista(block.norm_ista(block.attention(x))),
            all_NaN=lambda case, block, x: block(x) * torch.nan,
        ),
        structured=(Case(), Case(seed=1), Case(tokens=1), Case(tokens=12, heads=2, head_dim=2, seed=3)),
        code=("unrolling.layers.crate:CRATEBlock",),
    ),
    Claim(
        id="crate.rates",
        statement="Along CRATE's block the compression term and the share of zeros are measured.",
        equation=r"$R_c(Z^{\ell+1/2}) / R_c(Z^\ell), \quad R_c(Z^{\ell+1}) / R_c(Z^\ell)$",
        source=SOURCE,
        kind="measured",
        domain=cases(batches=(0,), scales=(1.0,), epsilons=(0.5, 0.2, 1.0)),
        subject=lambda case, block, x: block.trace(x),
        measure=_trace,
        mutants=named(
            rates_in_the_wrong_order=lambda case, block, x: [block.trace(x)[i] for i in (1, 0, 2, 3)],
            zeros_of_the_input=lambda case, block, x: [*block.trace(x)[:3], (x == 0).double().mean() + 1],
            all_NaN=lambda case, block, x: [float("nan")] * 4,
        ),
        structured=(
            Case(),
            Case(seed=1),
            Case(tokens=40, heads=3, head_dim=4),
            Case(tokens=40, heads=3, head_dim=4, seed=1),
        ),
        code=("unrolling.layers.crate:CRATEBlock",),
    ),
)
