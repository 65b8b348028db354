"""Claims on agent attention: what agents find and pass on, its step, CBSA's contraction of them, its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unrolling import CBSA, AgentAttention, LearnedQueries

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import bases, columns, identity, norm, reference, score_condition, slices, step_measure
from ..mutants import forward, named, of_step
from ..strategies import STRUCTURED, Case, cases
from .cbsa import _class_tokens, _extraction, _grid, _initial, _strategy
from .coding_rate import _count, combine
from .softmax import away_from_rest, head_rows, layer_of, maps_of, output_blocks, plain, rebuilt, step_bend, stepped

__all__ = ["CLAIMS"]

AGENT = "agent attention, arXiv 2312.08874"
CBSA_STAR = "Wen et al., CBSA, arXiv 2509.16875, section 4.1 and figure 9 (CBSA*)"
SEEDED = tuple(dataclasses.replace(case, seed=i) for i, case in enumerate((*STRUCTURED, *STRUCTURED)))
"""The seed picks strategy, class token, projections, biases and contraction."""
Array = NDArray[np.float64]
Bias = Tensor | float


def _options(case: Case) -> tuple[bool, tuple[int, int] | None]:
    """Whether the agents are contracted, and the window of position biases: the grid, another one, or none."""
    rng, (rows, columns) = case.rng("agent options"), _grid(case)
    contraction, biased, other = (bool(rng.integers(2)) for _ in range(3))
    if not biased or _strategy(case).count is None:
        return contraction, None
    return contraction, (rows + 1, columns + 2) if other else (rows, columns)


def _make(case: Case, *, own_window: bool = True) -> AgentAttention:
    """The layer of a case; ``own_window``: biases of the grid itself, so that calls need not name it."""
    contraction, window = _options(case)
    window = _grid(case) if window is not None and own_window else window
    layer = layer_of(
        AgentAttention,
        case,
        agents=_strategy(case),
        class_tokens=_class_tokens(case),
        contraction=contraction,
        bias_window=window,
    )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("agent_bias."):
                parameter.copy_(case.draw(name, *parameter.shape))
    return layer


def _step_layer(case: Case) -> AgentAttention:
    return _make(case)


def _biases(layer: AgentAttention, grid: tuple[int, int], head: int, agents: int, tokens: int) -> tuple[Array, Array]:
    """The paper's biases of one head: of agents for tokens (N, m), of tokens for agents (m, N)."""
    if layer.agent_bias is None:
        return np.zeros((tokens, agents)), np.zeros((agents, tokens))
    part = {name: value.detach().double().numpy() for name, value in layer.agent_bias.named_parameters()}

    def of(i: int, coarse: str, rows: Array, columns: Array, classes: Array) -> Array:
        return paper.agent_position_bias(
            part[coarse][head, i], rows, columns, float(classes), grid, layer.class_tokens
        ).astype(np.float64)

    read = [
        of(
            i,
            "an_bias",
            part["ah_bias"][0, head, i, :, 0],
            part["aw_bias"][0, head, i, 0],
            part["ac_bias"][0, head, i, 0],
        )
        for i in range(agents)
    ]
    passed = [
        of(
            i,
            "na_bias",
            part["ha_bias"][0, head, :, 0, i],
            part["wa_bias"][0, head, 0, :, i],
            part["ca_bias"][0, head, 0, i],
        )
        for i in range(agents)
    ]
    return np.stack(read, axis=1), np.stack(passed)


def _heads(case: Case, layer: AgentAttention, Z: Array) -> list[tuple[Array, Array]]:
    """Of every head what its agents found (p, m), and the weights that pass it on (m, N), by the transcriptions."""
    Q, K, V = (head_rows(case, part) for part in paper.query_key_value(Z, plain(maps_of(case))))
    found, s = [], case.softmax_scale
    for h, (q, k, v) in enumerate(zip(Q, K, V, strict=True)):
        R = _initial(case, q, h)
        read, passed = _biases(layer, _grid(case), h, R.shape[1], Z.shape[1])
        F = paper.agent_values(R, k, v, s, read)
        F = paper.agent_contraction(F, s) if layer.contraction else F
        found.append((F, paper.agent_broadcast(q, R, np.eye(R.shape[1]), s, passed)))
    return found


def _paper_attention(case: Case, layer: AgentAttention, Z: Array) -> Array:
    outputs, bias = output_blocks(case)
    read = [lift @ F @ A for (F, A), lift in zip(_heads(case, layer, Z), outputs, strict=True)]
    return np.sum(read, axis=0) + bias[:, None]


def _paper_step(case: Case, layer: AgentAttention, Z: Array, b: int) -> Array:
    return Z + case.step * (_paper_attention(case, layer, Z) - Z)


def _regression(case: Case, layer: AgentAttention, z: Tensor, b: int) -> Any:
    heads = _heads(case, layer, columns(z.reshape(-1, *z.shape[-2:])[b]))
    outputs, bias = output_blocks(case)
    weights, values = [A for _, A in heads], [F for F, _ in heads]
    return lambda Z: paper.multi_head_regression(Z, weights, values, outputs, bias)


def _scores(case: Case, layer: AgentAttention, z: Tensor) -> float:
    """Scores amplify rounding by their size: those of the agents and then of the contraction, and those that pass on."""
    with torch.no_grad():
        q, k, r = layer.queries(z), layer.keys(z), layer.agents(z)
        found = layer.agent_weights(z, _grid(case)) @ layer.values(z)
    reading, passing = score_condition(r, k, case.softmax_scale), score_condition(q, r, case.softmax_scale)
    return passing + reading * (score_condition(found, found, case.softmax_scale) if layer.contraction else 1.0)


def _condition(case: Case, layer: AgentAttention, z: Tensor, moved: float | None = None) -> float:
    """Values of all heads cancel to what is read, and that with the tokens."""
    with torch.no_grad():
        v = layer.values(z)
        size = norm(layer.attention(z, _grid(case)) - z) if moved is None else moved
    outputs = norm(maps_of(case)["output"])
    widest = outputs * float(v.norm(dim=-1).max()) * z[..., 0].numel() ** 0.5 + norm(z)
    return _scores(case, layer, z) * (1.0 + widest / max(size, 1e-300))


def _values_measure(subject: Any, case: Case) -> Measurement:
    x, exact, parts, grid = case.x(), reference(case), [], _grid(case)
    with torch.no_grad():
        values, attention = (part.double() for part in subject(case, _make(case, own_window=False), x, grid))
    layer = _make(exact, own_window=False)
    values = values.expand(*x.shape[:-2], *values.shape[-3:]).reshape(-1, *values.shape[-3:])
    for found, read, (point,) in zip(values, attention.reshape(-1, *x.shape[-2:]), slices(exact.x()), strict=True):
        Z = columns(point)
        want = np.stack([F.T for F, _ in _heads(exact, layer, Z)])
        whole = _paper_attention(exact, layer, Z).T
        with torch.no_grad():
            widest = norm(layer.values(point)) + norm(maps_of(exact)["value"]) * norm(point)
        condition = _scores(exact, layer, point)
        parts.append(
            identity("agents' values", found, want, case.dtype, condition * (1 + widest / max(norm(want), 1e-300)))
        )
        parts.append(identity("attention", read, whole, case.dtype, _condition(exact, layer, point, norm(whole))))
    return combine(*parts)


def _both(case: Case, layer: AgentAttention, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The usual subject: what the agents found, and the attention that passes it on."""
    return layer.agent_values(x, grid), layer.attention(x, grid)


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Bias, Bias]
"""Queries, keys, values, agents, the bias of agents for tokens, and that of tokens for agents."""


def _wrong(
    change: Callable[[Parts], Parts] = lambda parts: parts,
    *,
    read: Callable[[Tensor, Tensor], Tensor] = lambda scores, v: torch.softmax(scores, -1) @ v,
    passed: Callable[[Tensor, Tensor], Tensor] = lambda scores, f: torch.softmax(scores, -1) @ f,
    contracted: Callable[[bool], bool] = lambda on: on,
    scale: float = 1.0,
) -> Any:
    """What agents find and pass on, rebuilt from the layer's own parts with one of them changed."""

    def subject(case: Case, layer: AgentAttention, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        s, bias = scale * case.softmax_scale, layer.agent_bias
        own: tuple[Bias, Bias] = (0.0, 0.0)
        if bias is not None:
            own = (bias.from_tokens(grid, layer.class_tokens), bias.to_tokens(grid, layer.class_tokens))
        parts = (layer.queries(x, grid), layer.keys(x, grid), layer.values(x), layer.agents(x, grid), *own)
        q, k, v, r, b_read, b_passed = change(parts)
        found = read(s * (r @ k.mT) + b_read, v)
        if contracted(layer.contraction):
            found = torch.softmax(s * (found @ found.mT), -1) @ found
        whole = passed(s * (q @ r.mT) + b_passed, found)
        joined = whole.transpose(-3, -2).flatten(-2)
        return found, joined if layer.projections == "identity" else layer.output(joined)

    return subject


def _turned_biases(case: Case, layer: AgentAttention, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Biases whose coarse maps are read column by column."""
    if layer.agent_bias is not None:
        with torch.no_grad():
            for name in ("an_bias", "na_bias"):
                part = layer.agent_bias.get_parameter(name)
                part.copy_(part.mT.clone())
    return _both(case, layer, x, grid)


def _without_profiles(case: Case, layer: AgentAttention, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Biases of the coarse maps and class tokens alone."""
    if layer.agent_bias is not None:
        with torch.no_grad():
            for name in ("ah_bias", "aw_bias", "ha_bias", "wa_bias"):
                layer.agent_bias.get_parameter(name).zero_()
    return _both(case, layer, x, grid)


def _as_step(wrong: Any) -> Any:
    """The layer's step towards a wrong attention."""
    return stepped(lambda case, layer, x: wrong(case, layer, x, _grid(case))[1])


def _tied(case: Case) -> AgentAttention:
    """CBSA*'s layer with one matrix for queries, keys and values, and its transpose for the output."""
    layer = AgentAttention(
        case.dim,
        case.heads,
        case.head_dim,
        agents=_strategy(case),
        contraction=True,
        bias=False,
        scale=case.softmax_scale,
        class_tokens=_class_tokens(case),
    ).to(case.torch_dtype)
    joint = case.U().transpose(0, 1).flatten(-2)
    with torch.no_grad():
        for part in (layer.query, layer.key, layer.value):
            part.weight.copy_(joint.mT)
        layer.output.weight.copy_(joint)
    return layer


def _cbsa(case: Case) -> CBSA:
    return CBSA(
        case.dim,
        case.heads,
        U=case.U(),
        representatives=_strategy(case),
        form="softmax",
        scale=case.softmax_scale,
        class_tokens=_class_tokens(case),
    ).to(case.torch_dtype)


def _contraction(subject: Any, case: Case) -> Measurement:
    """The contracted values of agents against CBSA's equation, and against what CBSA's own code broadcasts."""
    x, exact = case.x(), reference(case)
    with torch.no_grad():
        got = subject(case, _tied(case), x).double()
        layer, cbsa, parts = _tied(exact), _cbsa(exact), []
    got = got.expand(*x.shape[:-2], *got.shape[-3:]).reshape(-1, *got.shape[-3:])
    for found, (point,) in zip(got, slices(exact.x()), strict=True):
        Z = columns(point)
        want = np.stack(
            [
                paper.agent_contraction(Uk.T @ Z @ Ak, case.softmax_scale).T
                for Uk, Ak in zip(bases(exact.U()), _extraction(exact, Z), strict=True)
            ]
        )
        with torch.no_grad():
            q = cbsa.representatives_of(point)
            own = cbsa.contracted(q) - q
            k, r = layer.keys(point), layer.agents(point)
        condition = score_condition(r, k, case.softmax_scale) * score_condition(q, q, case.softmax_scale)
        lost = 1 + norm(point) / max(norm(want), 1e-300)
        parts.append(identity("CBSA's equation", found, want, case.dtype, condition * lost))
        parts.append(identity("what CBSA broadcasts", found, own, case.dtype, condition * lost))
    return combine(*parts)


def _contracted_by(change: Callable[[Case, Tensor], Tensor]) -> Any:
    """Values from those that the agents found, before any contraction."""
    return lambda case, layer, x: change(case, layer.agent_weights(x) @ layer.values(x))


def _attend(case: Case, f: Tensor, axis: int = -1, scale: float = 1.0) -> Tensor:
    return torch.softmax(scale * case.softmax_scale * (f @ f.mT), axis) @ f


def _cost_of(N: int, d: int, m: int, contraction: bool) -> int:
    return 4 * N * d**2 + 4 * N * m * d + (2 * m**2 * d if contraction else 0)


def _cost(subject: Any, case: Case) -> Measurement:
    N, m, contraction = 6 * case.tokens, case.m, case.seed % 2 == 1
    layer = AgentAttention(12, 3, agents=LearnedQueries(m, 3, 4), contraction=contraction)
    x = torch.randn(1, N, 12, generator=torch.Generator().manual_seed(case.seed))
    with torch.no_grad():
        counted = _count(lambda: layer(x))
    want = subject(N, 12, m, contraction)
    return Measurement((Comparison("multiply-adds", abs(counted - want), 0.0),), values={"multiply-adds": counted})


WRONG: dict[str, Any] = {
    "contracted_otherwise": _wrong(contracted=lambda on: not on),
    "scale_doubled": _wrong(scale=2.0),
    "keys_for_values": _wrong(lambda p: (p[0], p[1], p[1] + 0.1, *p[3:])),
    "softmax_over_agents": _wrong(read=lambda scores, v: torch.softmax(scores, -2) @ v),
    "softmax_over_tokens": _wrong(passed=lambda scores, f: torch.softmax(scores, -2) @ f),
    "broadcast_by_the_extraction_weights": _wrong(lambda p: (p[1], p[1], p[2], p[3], p[4], 0.0)),
    "another_heads_agents": _wrong(lambda p: (*p[:3], p[3].roll(1, -3), *p[4:])),
    "biases_dropped": _wrong(lambda p: (*p[:4], 0.0, 0.0)),
}
"""Wrong ways for agents to read and to pass on."""


CLAIMS = (
    Claim(
        id="agent.values",
        statement="The agents, pooled queries, read all tokens; every token reads what the agents found; position biases of"
        " any grid are added to both scores, and the agents read each other in between if asked.",
        equation=r"$F = V\,\mathrm{softmax}(s K^\top R + B_1),\quad F \leftarrow F\,\mathrm{softmax}(s F^\top F),\quad"
        r" \sum_k O_k F_k\,\mathrm{softmax}(s R_k^\top Q_k + B_2) + b$",
        source=f"{AGENT}, eq. 4 and section 3.3; {CBSA_STAR} for the second step",
        kind="identity",
        domain=cases(),
        subject=_both,
        measure=_values_measure,
        mutants=named(
            **WRONG,
            biases_exchanged=_wrong(
                lambda p: (*p[:4], p[5].mT, p[4].mT) if isinstance(p[4], Tensor) and isinstance(p[5], Tensor) else p
            ),
            maps_of_biases_turned=_turned_biases,
            profiles_of_biases_dropped=_without_profiles,
            class_token_pooled=lambda case, layer, x, grid: _wrong(
                lambda p: (*p[:3], layer.strategy.initial(p[0].roll(1, -2), layer.class_tokens, grid), *p[4:])
            )(case, layer, x, grid),
            keys_pooled=lambda case, layer, x, grid: _wrong(
                lambda p: (*p[:3], layer.strategy.initial(p[1], layer.class_tokens, grid), *p[4:])
            )(case, layer, x, grid),
            residual_added=lambda case, layer, x, grid: (layer.agent_values(x, grid), x + layer.attention(x, grid)),
            opposite_sign=lambda case, layer, x, grid: (layer.agent_values(x, grid), -layer.attention(x, grid)),
            all_NaN=lambda case, layer, x, grid: (layer.agent_values(x, grid) * torch.nan, x * torch.nan),
        ),
        structured=SEEDED,
        code=("unrolling.layers.agent:AgentAttention", "unrolling.layers.agent:AgentBias"),
        largest=240,
    ),
    Claim(
        id="agent.step.exact",
        statement="A step towards agent attention, contracted and biased or not, is a gradient step of kernel regression on the"
        " agents and what they found.",
        equation=r"$Z - \kappa(Z - \mathrm{agent}(Z)) = Z - \kappa\nabla f(Z),\quad"
        r" f = \frac{1}{2K}\sum_k\sum_i\sum_{a \leq m} b_{k,ia}\Vert o_i - K O_k f_{k,a} - b\Vert^2$",
        source=f"{AGENT}, eq. 4; read as kernel regression here",
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=away_from_rest(_step_layer, step_measure(_step_layer, _paper_step, _regression, _condition, step_bend)),
        mutants=of_step(
            **{name: _as_step(wrong) for name, wrong in WRONG.items()},
            uniform_weights=stepped(rebuilt(lambda case, q, k, v: v.mean(-2, keepdim=True).expand_as(v))),
            shrinkage_dropped=lambda case, layer, x: x + case.step * layer.attention(x),
        ),
        structured=SEEDED,
        code=("unrolling.layers.agent:AgentAttention", "objectives.kernel_regression:KernelRegression"),
        frozen="agents, their values and weights",
        largest=120,
    ),
    Claim(
        id="agent.contraction",
        statement="With one matrix for queries, keys and values, the contracted values of the agents are what CBSA's softmax form"
        " broadcasts.",
        equation=r"$W_q = W_k = W_v = U^\top:\quad F_k\,\mathrm{softmax}(s F_k^\top F_k) ="
        r" Q_k\,\mathrm{softmax}(s Q_k^\top Q_k),\quad Q_k = U_k^\top Z A_k$",
        source=f"{CBSA_STAR} and eq. 8",
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.agent_values(x),
        measure=_contraction,
        mutants=named(
            not_contracted=_contracted_by(lambda case, f: f),
            contracted_twice=_contracted_by(lambda case, f: _attend(case, _attend(case, f))),
            scale_doubled=_contracted_by(lambda case, f: _attend(case, f, scale=2.0)),
            softmax_over_the_wrong_axis=_contracted_by(lambda case, f: _attend(case, f, axis=-2)),
            agents_kept=_contracted_by(lambda case, f: f + _attend(case, f)),
            opposite_sign=_contracted_by(lambda case, f: -_attend(case, f)),
            another_head=_contracted_by(lambda case, f: _attend(case, f).roll(1, -3)),
            all_NaN=_contracted_by(lambda case, f: f * torch.nan),
        ),
        structured=SEEDED,
        code=("unrolling.layers.agent:AgentAttention", "unrolling.layers.cbsa:CBSA"),
    ),
    Claim(
        id="agent.cost",
        statement="Agent attention takes 4Nd² + 4Nmd multiply-adds, and 2m²d more with contraction: linear in tokens.",
        equation=r"$4 N d^2 + 4 N m d\;(+\; 2 m^2 d)$",
        source=f"{AGENT}, section 3.2, with the projections; {CBSA_STAR} for the contraction; counted on the running code",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=_cost_of,
        measure=_cost,
        mutants=named(
            contraction_forgotten=lambda N, d, m, contraction: _cost_of(N, d, m, False),
            contraction_always_on=lambda N, d, m, contraction: _cost_of(N, d, m, True),
            broadcast_forgotten=lambda N, d, m, contraction: _cost_of(N, d, m, contraction) - 2 * N * m * d,
            three_projections=lambda N, d, m, contraction: _cost_of(N, d, m, contraction) - N * d**2,
            quadratic_in_tokens=lambda N, d, m, contraction: 4 * N * d**2 + 2 * N**2 * d,
        ),
        structured=(Case(), Case(tokens=1), Case(seed=1)),
        code=("unrolling.layers.agent:AgentAttention",),
        real=False,
    ),
)
