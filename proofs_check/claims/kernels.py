"""The fast paths equal the plain formulas, forward and backward, however the tokens fall into blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from unrolling import kernels, mita

from ..claim import Claim, Comparison, Measurement
from ..measures import norm, rate_condition, reference, score_condition
from ..mutants import named
from ..strategies import Case, cases
from ..tolerance import tolerance

__all__ = ["CLAIMS"]

Tensors = tuple[Tensor, ...]
Run = Callable[..., Tensor]

DOMAIN = cases(batches=(0,), kinds=("gaussian",), scales=(1.0, 0.1, 10.0), epsilons=(0.5, 1.0, 2.0), tokens=(1, 40))

SEEDED = tuple(
    Case(tokens=tokens, heads=heads, head_dim=p, m=m, seed=seed, scale=scale)
    for seed, (tokens, heads, p, m, scale) in enumerate(
        (
            (1, 2, 2, 3, 1.0),
            (13, 3, 2, 5, 1.0),
            (37, 2, 4, 3, 1.0),
            (16, 1, 3, 6, 10.0),
            (40, 2, 1, 2, 0.1),
            (29, 3, 4, 4, 1.0),
            (31, 2, 3, 1, 1.0),
            (33, 1, 4, 7, 1.0),
        )
    )
)
"""One token, numbers that blocks do not divide, more representatives than tokens of a block."""


@contextlib.contextmanager
def small_blocks(case: Case) -> Iterator[None]:
    """Blocks of a few tokens, so that a few tokens are many blocks; with an odd seed scores are computed twice."""
    m = case.m
    with contextlib.ExitStack() as stack:
        held = m * (4 if case.seed % 2 else 400)
        stack.enter_context(mock.patch.multiple(kernels.cbsa, BLOCK=4, PIECE=8 * m, HELD=held))
        stack.enter_context(mock.patch.multiple(kernels.tssa, CHUNK=5 * case.heads * case.head_dim))
        stack.enter_context(mock.patch.multiple(kernels.routed, HELD=7 * m, TABLES=64))
        yield


def passes(run: Run, inputs: Tensors, direction: Tensor) -> Tensors:
    """The result and the gradients of ⟨direction, result⟩ in every input."""
    given = [each.detach().clone().requires_grad_() for each in inputs]
    out = run(*given)
    found = torch.autograd.grad(out, given, direction.expand_as(out), allow_unused=True, materialize_grads=True)
    return (out.detach(), *found)


def agreement(
    inputs: Callable[[Case], Tensors], plain: Callable[..., Tensor], condition: Callable[..., float]
) -> Callable[[Any, Case], Measurement]:
    """The fast path's result and gradients against the plain formula's in double precision: subject(case, inputs, G)."""

    def measure(subject: Any, case: Case) -> Measurement:
        exact = reference(case)
        given = inputs(exact)
        shape = plain(exact, *given).shape
        want = passes(lambda *each: plain(exact, *each), given, exact.draw("direction", *shape))
        got = subject(case, inputs(case), case.draw("direction", *shape))
        allowed, size = condition(exact, *given), norm(want[0])
        names = ("result", *(f"gradient {index}" for index in range(1, len(want))))
        # A gradient that cancels is rounded like numbers of its natural size, ‖G‖ ‖result‖ / ‖input‖.
        natural = [0.0, *(norm(exact.draw("direction", *shape)) * size / max(norm(each), 1e-300) for each in given)]
        comparisons = tuple(
            Comparison(
                name,
                norm(one.double() - two) / max(norm(two) + usual, 1e-300),
                tolerance(case.dtype, allowed),
            )
            for name, one, two, usual in zip(names, got, want, natural, strict=True)
        )
        return Measurement(comparisons, size > 0)

    return measure


def by(run: Callable[..., Tensor]) -> Callable[[Case, Tensors, Tensor], Tensors]:
    """A subject from a function of the case and the inputs, in small blocks."""

    def subject(case: Case, inputs: Tensors, G: Tensor) -> Tensors:
        with small_blocks(case):
            return passes(lambda *each: run(case, *each), inputs, G)

    return subject


def changed(fast: Callable[..., Tensor], change: Callable[[Tensors], Tensors]) -> Callable[..., Tensors]:
    """The fast path's outputs, changed afterwards."""
    right = by(fast)
    return lambda case, inputs, G: change(right(case, inputs, G))


def standing(fast: Callable[..., Tensor]) -> dict[str, Callable[..., Tensors]]:
    """Wrong versions that every kernel's claim must reject."""
    return {
        "one_percent_longer": changed(fast, lambda found: tuple(1.01 * each for each in found)),
        "last_token_left_out": changed(fast, lambda found: (_without_last(found[0]), *found[1:])),
        "gradient_of_opposite_sign": changed(fast, lambda found: (found[0], *(-each for each in found[1:]))),
        "no_gradient": changed(fast, lambda found: (found[0], *(torch.zeros_like(each) for each in found[1:]))),
        "all_NaN": changed(fast, lambda found: tuple(torch.nan * each for each in found)),
    }


def _without_last(out: Tensor) -> Tensor:
    out = out.clone()
    out[..., -1:] = 0 if out.ndim else out
    return 0.5 * out if out.ndim == 0 else out


# CBSA: tokens' coordinates, initial representatives, the heads' steps


def _cbsa_inputs(case: Case) -> Tensors:
    w = case.scale * case.draw("w", case.heads, case.tokens, case.head_dim)
    return w, case.queries(), case.draw("steps", case.heads, 1, 1)


def _contraction(case: Case, detach: bool = False) -> Callable[..., Tensor]:
    def contracted(q: Tensor, start: Tensor, step: Tensor) -> Tensor:
        q = q.detach() if detach else q
        return step * (torch.softmax(case.softmax_scale * (q @ q.mT), dim=-1) @ q + 0.5 * start)

    return contracted


def _cbsa(kernel: str, detach: bool = False) -> Callable[..., Tensor]:
    def run(case: Case, w: Tensor, initial: Tensor, step: Tensor) -> Tensor:
        contraction = _contraction(case, detach)
        return kernels.contract_broadcast(w, initial, contraction, step, scale=case.softmax_scale, kernel=kernel)

    return run


def _cbsa_wrong(
    P_of: Callable[[Tensor], Tensor] = lambda P: P, broadcast: Callable[[Tensor], Tensor] = lambda P: P
) -> Callable[..., Tensors]:
    def run(case: Case, w: Tensor, initial: Tensor, step: Tensor) -> Tensor:
        P = P_of(torch.softmax(case.softmax_scale * (initial @ w.mT), dim=-1))
        return broadcast(P).mT @ _contraction(case)(P @ w, initial, step)

    return by(run)


def _blocks_alone(case: Case, w: Tensor, initial: Tensor, step: Tensor) -> Tensor:
    """Each block's softmax by itself, blocks of equal weight: what an online pass without log-sum-exps would do."""
    parts = [torch.softmax(case.softmax_scale * (initial @ part.mT), dim=-1) for part in w.split(4, dim=-2)]
    P = torch.cat(parts, dim=-1) / len(parts)
    return P.mT @ _contraction(case)(P @ w, initial, step)


def _cbsa_condition(case: Case, w: Tensor, initial: Tensor, step: Tensor) -> float:
    sharp = score_condition(torch.cat([initial, w], -2), w, case.softmax_scale)
    return sharp**2 * (1 + norm(step) * norm(w) * max(1.0, norm(initial)))


# TSSA: coordinates, temperatures, steps


def _tssa_inputs(case: Case) -> Tensors:
    w = case.draw("w", case.heads, case.tokens, case.head_dim)
    return w, case.draw("temperatures", case.heads).abs(), case.draw("steps", case.heads, 1, 1)


def _how(case: Case, causal: bool) -> kernels.Statistics:
    return kernels.Statistics(case.dim / case.epsilon**2, bool(case.seed % 2), causal, bool(case.seed % 3 == 0), 1e-3)


def _tssa(kernel: str, causal: bool, **changes: Any) -> Callable[..., Tensor]:
    def run(case: Case, w: Tensor, temperature: Tensor, step: Tensor) -> Tensor:
        return kernels.shrink(w, temperature, step, _how(case, causal)._replace(**changes), kernel=kernel)

    return run


def _without_carry(case: Case, w: Tensor, temperature: Tensor, step: Tensor) -> Tensor:
    how = _how(case, causal=True)._replace(unit_step=True)
    parts = [kernels.shrink(part, temperature, step, how, kernel="plain") for part in w.split(5, dim=-2)]
    out = torch.cat(parts, dim=-2)
    return out if _how(case, True).unit_step else how.rate * out / torch.arange(1, w.shape[-2] + 1).unsqueeze(-1)


def _frozen_memberships(causal: bool) -> Callable[..., Tensors]:
    def run(case: Case, w: Tensor, temperature: Tensor, step: Tensor) -> Tensor:
        how = _how(case, causal)
        members = kernels.memberships(w, temperature, how).detach().unsqueeze(-1)
        squares, tokens = w.square(), w.shape[-2]
        if not causal:
            moments = (members * squares).sum(-2, keepdim=True) / (members.sum(-2, keepdim=True) + how.offset)
            return step * how.factor(tokens) * members * w / (1 + how.rate * moments)
        moments = (members * squares).cumsum(-2) / (members.cumsum(-2) + how.offset)
        factor = 1.0 if how.unit_step else how.rate / torch.arange(1, tokens + 1).unsqueeze(-1)
        return step * factor * members * w / (1 + how.rate * moments)

    return by(run)


def _rate_doubled(case: Case, w: Tensor, temperature: Tensor, step: Tensor) -> Tensor:
    how = _how(case, causal=False)
    return kernels.shrink(w, temperature, step, how._replace(rate=2 * how.rate), kernel="plain")


def _tssa_condition(case: Case, w: Tensor, temperature: Tensor, step: Tensor) -> float:
    rate = case.dim / case.epsilon**2
    return (1 + float(temperature.max()) * float(w.square().sum(-1).max())) ** 2 * (1 + rate) * (1 + norm(w))


# MiTA: queries, keys, values, landmarks


def _mita_inputs(case: Case) -> Tensors:
    shape = (case.heads, case.tokens, case.head_dim)
    return (*(case.scale * case.draw(name, *shape) for name in "qkv"), case.queries())


def _routing(case: Case) -> dict[str, Any]:
    return {
        "keys_per_expert": 1 + case.seed % 5,
        "experts_per_query": 1 + case.seed % 3,
        "shared": case.seed % 4 > 0,
        "deduplicate": case.seed % 5 == 0,
        "scale": case.softmax_scale,
    }


def _mita(kernel: str, **changes: Any) -> Callable[..., Tensor]:
    return lambda case, q, k, v, r: mita(q, k, v, r, kernel=kernel, **(_routing(case) | changes))


def _masked(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
    options = _routing(case)
    keys, experts = options["keys_per_expert"], min(options["experts_per_query"], case.m)
    how = kernels.Routing(options["scale"], keys, experts, options["shared"], options["deduplicate"])
    return kernels.mita_masked(q, k, v, r, how)


def _mita_parts(change: Callable[..., Tensors]) -> Callable[..., Tensors]:
    return by(lambda case, q, k, v, r: _mita("plain")(case, *change(q, k, v, r)))


def _mita_condition(case: Case, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> float:
    sharp = score_condition(torch.cat([q, r], -2), torch.cat([k, r], -2), case.softmax_scale)
    size = norm(_mita("plain")(case, q, k, v, r))
    return sharp**2 * (1 + norm(v) / max(size, 1e-300)) * (1 + max(norm(q), norm(k)))


# MSSA's exact form, the coding rate, the stream


def _rows_inputs(case: Case) -> Tensors:
    return (case.scale * case.draw("w", case.heads, case.tokens, case.head_dim),)


def _beta(case: Case) -> float:
    return case.head_dim / (case.tokens * case.epsilon**2)


def _mssa(kernel: str, factor: float = 1.0) -> Callable[..., Tensor]:
    return lambda case, w: kernels.contract_tokens(w, factor * _beta(case), kernel)


def _solved_once(case: Case, w: Tensor) -> Tensor:
    eye = torch.eye(case.head_dim, dtype=w.dtype)
    system = eye + _beta(case) * (w.mT @ w)
    return w @ torch.linalg.solve(system, (_beta(case) * eye).expand_as(system)).detach()


def _rows_condition(case: Case, w: Tensor) -> float:
    return rate_condition(w, _beta(case)) ** 2


def _rate(kernel: str) -> Callable[..., Tensor]:
    return lambda case, w: kernels.coding_rate(w, case.epsilon, kernel=kernel)


def _streamed(change: Callable[[Case, Tensor], Tensor] | None = None) -> Callable[[Case, Tensors, Tensor], Tensors]:
    """The value and the gradient of a walk over pieces, for the first head's tokens."""

    def subject(case: Case, inputs: Tensors, G: Tensor) -> Tensors:
        rows = inputs[0] if change is None else change(case, inputs[0])
        size = 1 + case.seed % 5
        found = kernels.streamed_rate((piece for piece in rows.split(size)), case.epsilon)
        return found.value, G * found.gradient(inputs[0])

    return subject


def _one_head(case: Case) -> Tensors:
    return (_rows_inputs(case)[0][0],)


def _kernel(name: str, statement: str, equation: str, fast: Callable[..., Tensor] | None, **more: Any) -> Claim:
    own = more.pop("own")
    return Claim(
        id=f"kernels.{name}",
        statement=statement,
        equation=equation,
        source=more.pop("source"),
        kind="identity",
        domain=DOMAIN,
        subject=more.pop("subject", None) or by(fast),  # type: ignore[arg-type]
        mutants=named(**({} if fast is None else standing(fast)), **own),
        structured=SEEDED,
        real=False,
        **more,
    )


def _halved(run: Callable[..., Tensors]) -> Callable[..., Tensors]:
    return lambda case, inputs, G: tuple(0.5 * each for each in run(case, inputs, G))


CLAIMS: tuple[Claim, ...] = (
    _kernel(
        "cbsa",
        "CBSA by blocks of tokens, P computed again in the backward pass, is CBSA with P stored, and so are its gradients.",
        r"$P^\top C$, $P = \mathrm{concat}_b\, e^{\ell_b - \ell}\, \mathrm{softmax}(s\, Q_{ini} W_b^\top)$,"
        r" $\ell = \log \sum_b e^{\ell_b}$",
        _cbsa("fast"),
        source="derived: online softmax; CBSA, arXiv 2509.16875, eq. 5 to 8 for P and C",
        measure=agreement(_cbsa_inputs, _cbsa("plain"), _cbsa_condition),
        code=("unrolling.kernels.cbsa:contract_broadcast",),
        own={
            "blocks_of_equal_weight": by(_blocks_alone),
            "gradient_not_through_the_contraction": by(_cbsa("plain", detach=True)),
            "gradient_not_through_the_extraction": _cbsa_wrong(P_of=Tensor.detach),
            "gradient_not_through_the_broadcast": _cbsa_wrong(broadcast=Tensor.detach),
        },
    ),
    _kernel(
        "tssa",
        "TSSA in two walks over chunks of tokens, its derivative written out, is TSSA by the formula, and so are its"
        " gradients.",
        r"$\kappa \frac{d}{N\epsilon^2} \Pi \circ W / (1 + \frac{d}{\epsilon^2} s/n)$, $s = \sum_i \Pi_i w_i^2$,"
        r" $n = \sum_i \Pi_i$",
        _tssa("fast", causal=False),
        source="derived: chain rule; ToST, arXiv 2412.17810, section 3 for the formula",
        measure=agreement(_tssa_inputs, _tssa("plain", causal=False), _tssa_condition),
        code=("unrolling.kernels.tssa:shrink",),
        own={
            "gradient_not_through_the_memberships": _frozen_memberships(causal=False),
            "rate_doubled": by(_rate_doubled),
            "causal": by(_tssa("plain", causal=True)),
        },
    ),
    _kernel(
        "tssa.causal",
        "Causal TSSA by chunks that hand on their prefix sums is causal TSSA by the formula, and so are its gradients.",
        r"$s_i = s_{before} + \sum_{j \leq i} \Pi_j w_j^2$",
        _tssa("fast", causal=True),
        source="derived: prefix sums; ToST, arXiv 2412.17810, its code for language",
        measure=agreement(_tssa_inputs, _tssa("plain", causal=True), _tssa_condition),
        code=("unrolling.kernels.tssa:shrink",),
        own={
            "chunks_without_a_past": by(_without_carry),
            "gradient_not_through_the_memberships": _frozen_memberships(causal=True),
            "sees_all_tokens": by(_tssa("plain", causal=False)),
        },
    ),
    _kernel(
        "mita",
        "MiTA with the queries sorted by expert and cut into tiles is MiTA that gathers every query's keys, and so are its"
        " gradients.",
        r"$\sum_i e^{\ell_i - \ell}\, o_i$, $\ell = \log \sum_i e^{\ell_i}$ over the shared and the routed experts",
        _mita("fast"),
        source="derived: merging by log-sum-exps; MiTA, arXiv 2602.01219 for the formula",
        measure=agreement(_mita_inputs, _mita("plain"), _mita_condition),
        code=("unrolling.kernels.routed:routed_attention",),
        own={
            "first_expert_only": by(_mita("plain", experts_per_query=1)),
            "one_key_more": by(lambda case, *each: _mita("plain", keys_per_expert=2 + case.seed % 5)(case, *each)),
            "no_landmarks": by(_mita("plain", shared=False)),
            "gradient_not_through_the_landmarks": _mita_parts(lambda q, k, v, r: (q, k, v, r.detach())),
            "gradient_not_through_the_keys": _mita_parts(lambda q, k, v, r: (q, k.detach(), v, r)),
            "queries_exchanged": _mita_parts(lambda q, k, v, r: (q.flip(-2), k, v, r)),
        },
    ),
    _kernel(
        "mita.masked",
        "MiTA as full attention to landmarks and keys, with log c added to the score of a key that c of the query's experts"
        " hold, is MiTA, and so are its gradients.",
        r"$\mathrm{softmax}(s\, [R; K]\, q + [0; \log c(q)])$",
        _masked,
        source="derived: a key counted c times weighs c exp(s q·k); MiTA, arXiv 2602.01219",
        measure=agreement(_mita_inputs, _mita("plain"), _mita_condition),
        code=("unrolling.kernels.mita:mita_masked",),
        own={
            "keys_counted_once": by(_mita("plain", deduplicate=True)),
            "no_landmarks": by(_mita("plain", shared=False)),
            "first_expert_only": by(_mita("plain", experts_per_query=1)),
        },
    ),
    _kernel(
        "mssa",
        "MSSA's exact step by one inverse of the p × p side is the step that solves for every token, and so is its"
        " gradient.",
        r"$W M$, $M = \beta (I + \beta W^\top W)^{-1}$; $dW = G M - W (M D M + (M D M)^\top)$, $D = W^\top G$",
        _mssa("fast"),
        source="derived: product rule; CRATE, arXiv 2306.01129, eq. 11 for the step",
        measure=agreement(_rows_inputs, _mssa("plain"), _rows_condition),
        code=("unrolling.kernels.mssa:contract_tokens",),
        own={
            "gradient_not_through_the_inverse": by(_solved_once),
            "beta_doubled": by(_mssa("fast", factor=2.0)),
        },
    ),
    _kernel(
        "coding_rate",
        "The coding rate with its closed-form gradient is the rate that autograd differentiates.",
        r"$dR = \langle \beta Z (I + \beta Z^\top Z)^{-1}, dZ \rangle$",
        _rate("fast"),
        source="MCR², arXiv 2006.08558, section 2",
        measure=agreement(_rows_inputs, _rate("plain"), _rows_condition),
        code=("unrolling.kernels.coding_rate:coding_rate",),
        own={
            "other_epsilon": by(lambda case, w: kernels.coding_rate(w, 1.1 * case.epsilon)),
            "other_count": by(lambda case, w: kernels.coding_rate(w, case.epsilon, tokens=2 * w.shape[-2])),
        },
    ),
    _kernel(
        "stream",
        "The coding rate of tokens seen once, piece by piece, is the rate of all of them, and so are the rows of its"
        " gradient.",
        r"$\frac{1}{2} \log\det(I + \beta \sum_b Z_b^\top Z_b)$",
        None,
        source="derived: Z^T Z is a sum over tokens",
        subject=_streamed(),
        measure=agreement(_one_head, _rate("plain"), lambda case, w: rate_condition(w, _beta(case)) ** 2),
        code=("unrolling.kernels.coding_rate:streamed_rate",),
        own={
            "halved": _halved(_streamed()),
            "last_piece_left_out": _streamed(
                lambda case, rows: rows[: -(1 + case.seed % 5)] if len(rows) > 5 else 2 * rows
            ),
            "first_token_twice": _streamed(lambda case, rows: torch.cat([rows[:1], rows])),
            "all_NaN": lambda case, inputs, G: tuple(torch.nan * each for each in _streamed()(case, inputs, G)),
        },
    ),
)
