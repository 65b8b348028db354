"""Every claim of the library: a tuple that one can read, one file a stem."""

from __future__ import annotations

import difflib
import inspect
import sys

from ..claim import Claim
from . import (
    agent,
    aot,
    cbsa,
    coding_rate,
    compat,
    compat_networks,
    crate,
    depict,
    energy_transformer,
    hopfield,
    ista,
    kernel_regression,
    kernels,
    mita,
    models,
    mssa,
    mssa_sign,
    pca,
    rate_reduction,
    redunet,
    representatives,
    softmax,
    softmax_energy,
    sparse_coding,
    subspace_denoising,
    symmetric,
    tssa,
    variational_rate,
)

CLAIMS: tuple[Claim, ...] = (
    *coding_rate.CLAIMS,
    *rate_reduction.CLAIMS,
    *variational_rate.CLAIMS,
    *representatives.CLAIMS,
    *softmax_energy.CLAIMS,
    *sparse_coding.CLAIMS,
    *mssa.CLAIMS,
    *mssa_sign.CLAIMS,
    *cbsa.CLAIMS,
    *tssa.CLAIMS,
    *redunet.CLAIMS,
    *ista.CLAIMS,
    *crate.CLAIMS,
    *pca.CLAIMS,
    *depict.CLAIMS,
    *hopfield.CLAIMS,
    *subspace_denoising.CLAIMS,
    *symmetric.CLAIMS,
    *energy_transformer.CLAIMS,
    *aot.CLAIMS,
    *kernel_regression.CLAIMS,
    *softmax.CLAIMS,
    *mita.CLAIMS,
    *models.CLAIMS,
    *agent.CLAIMS,
    *kernels.CLAIMS,
    *compat.CLAIMS,
    *compat_networks.CLAIMS,
)

__all__ = ["CLAIMS", "find", "foreign", "home", "select"]


def find(id: str) -> Claim:
    """The claim of that id: one of ours, else one of another package's (:mod:`proofs_check.plugins`).

    Raises
    ------
        ValueError that lists the nearest known ids.
    """
    if not isinstance(id, str):
        raise TypeError(f"find: id must be a string, but is a {type(id).__name__}.")
    for claim in CLAIMS:
        if claim.id == id:
            return claim
    from ..plugins import all_claims  # only where ours are not enough: it imports other packages

    for claim in all_claims():
        if claim.id == id:
            return claim
    raise ValueError(_unknown(id, [claim.id for claim in all_claims()]))


def home(id: str) -> str:
    """The file, within ``proofs_check/claims``, that states the claim of that id; that of its stem if there is none."""
    for name, module in sorted(vars(sys.modules[__name__]).items()):
        if inspect.ismodule(module) and any(claim.id == id for claim in getattr(module, "CLAIMS", ())):
            return f"{name}.py"
    return f"{id.split('.', 1)[0]}.py"


def select(names: list[str]) -> tuple[Claim, ...]:
    """The claims of the stems, ids or beginnings of ids (``mssa.sign``); all without names, ours and others'.

    Raises
    ------
        ValueError that lists the nearest known names.
    """
    every = CLAIMS
    if foreign(names):
        from ..plugins import all_claims

        every = all_claims()
    if not names:
        return every
    chosen: set[str] = set()
    for name in names:
        found = _beginning(every, name)
        if not found:
            raise ValueError(_unknown(name, sorted({claim.stem for claim in every} | {claim.id for claim in every})))
        chosen |= found
    return tuple(claim for claim in every if claim.id in chosen)


def foreign(names: list[str]) -> bool:
    """Whether claims of other packages are asked for: by no names, which means all, or by one that none of ours has."""
    return not names or not all(_beginning(CLAIMS, name) for name in names)


def _beginning(claims: tuple[Claim, ...], name: str) -> set[str]:
    return {claim.id for claim in claims if claim.id == name or claim.id.startswith(name + ".")}


def _unknown(name: str, known: list[str]) -> str:
    beginnings = {".".join(id.split(".")[:n]) for id in known for n in (1, 2)}
    every = sorted({*known, *beginnings}, key=len)
    folded = {id.lower(): id for id in reversed(every)}
    near = [folded[id] for id in difflib.get_close_matches(name.lower(), list(folded), n=4, cutoff=0.3)]
    near += [id for id in known if name and name.lower().split(".")[-1] in id and id not in near][:3]
    hint = f" Nearest: {', '.join(near)}." if near else ""
    from ..plugins import of

    plugin = of(name)
    hint += f" {plugin}." if plugin is not None and plugin.problem else ""
    return f"no claim or stem is named {name!r}.{hint} `proofs-check list` prints them all."
