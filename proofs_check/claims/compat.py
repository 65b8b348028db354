"""Claims on released weights: every kind that is loaded computes the released module's numbers, departures included."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolling import CBSA, MSSA, TSSA, AgentAttention, MiTA, OfficialGridPool, compat

from ..claim import Claim, Comparison, Measurement
from ..layouts import LAYERS, Drawn
from ..layouts_networks import NETWORKS
from ..measures import identity, norm
from ..mutants import named
from ..strategies import Case, cases
from .coding_rate import combine

__all__ = ["CLAIMS", "KINDS", "changed", "compat_claim", "every", "loaded", "zeroed"]

KINDS: dict[str, Callable[[Case], Drawn]] = {**LAYERS, **NETWORKS}
"""Kind: what draws a released module of it."""

CRATE = "the CRATE project's released code, July 2024"
PROJECT = "the CBSA project's released code, April 2026"
TOST = "the ToST project's released code, February 2025"
DEPICT = "the DEPICT project's released code, April 2026"
MITA = "the MiTA project's released code, May 2026"

Change = Callable[[Any, Drawn], Any]
Subject = Callable[[Drawn], Tensor]


def loaded(drawn: Drawn, change: Change | None = None) -> Tensor:
    """What the loaded module computes; or after something was done to it."""
    module = compat.from_official(drawn.kind, drawn.state, **drawn.config)
    if change is not None:
        change(module, drawn)
    return module(drawn.x, **drawn.call)


def changed(*changes: Change) -> Subject:
    """What the module computes after these changes."""

    def subject(drawn: Drawn) -> Tensor:
        def all_of_them(module: nn.Module, drawn: Drawn) -> None:
            for change in changes:
                change(module, drawn)

        return loaded(drawn, all_of_them)

    return subject


def every(kind: type[nn.Module], **attributes: Any) -> Change:
    """Attributes of every part of that class set: to values, or to what a function of the part gives."""

    def change(module: nn.Module, drawn: Drawn) -> None:
        for part in [part for part in module.modules() if isinstance(part, kind)]:
            for name, value in attributes.items():
                setattr(part, name, value(part) if callable(value) else value)

    return change


def zeroed(*endings: str, to: float = 0.0) -> Change:
    """Every parameter whose name ends so filled with a number."""

    def change(module: nn.Module, drawn: Drawn) -> None:
        for name, parameter in module.named_parameters():
            if name.endswith(endings):
                parameter.fill_(to)

    return change


def on_the_other_side(layer: Any) -> OfficialGridPool:
    """The same pooling with the tokens left out at the other end: the true grid for the shifted one, and back."""
    pool: Any = layer.representatives if isinstance(layer, CBSA) else layer.strategy
    return OfficialGridPool(pool.size, pool.dropped, leading=not pool.leading)


def eps_exchanged(module: nn.Module, drawn: Drawn) -> None:
    """1e-6 for 1e-5 in every LayerNorm, and the other way round."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-6 if part.eps == 1e-5 else 1e-5


def _measure(kind: str, choosing: bool) -> Callable[[Any, Case], Measurement]:
    """The loaded module against the transcription of the released one.

    The condition is measured: the error of the transcription's own run in single precision, in units of its rounding.
    Where keys or experts are chosen both sides run in double precision, in single near ties may be broken otherwise.
    """

    def measure(subject: Any, case: Case) -> Measurement:
        case = dataclasses.replace(case, dtype="float64") if choosing else case
        drawn = KINDS[kind](case)
        with torch.no_grad():
            got = subject(drawn)
        arrays, x = drawn.arrays(), drawn.x.double().numpy()
        want = drawn.wanted(arrays, x)
        single = drawn.wanted({name: value.astype(np.float32) for name, value in arrays.items()}, x.astype(np.float32))
        size = max(norm(want), 1e-300)
        condition = 1.0 + norm(single.astype(np.float64) - want) / (float(np.finfo(np.float32).eps) * size)
        measured = identity("released output", got, want, case.dtype, condition)
        follows = Comparison("dtype of the weights", float(got.dtype != case.torch_dtype), 0.0)
        return dataclasses.replace(measured, comparisons=(*measured.comparisons, follows))

    return measure


STANDING: Mapping[str, Subject] = {
    "opposite_sign": lambda drawn: -loaded(drawn),
    "one_percent_longer": lambda drawn: 1.01 * loaded(drawn),
    "inputs_exchanged": lambda drawn: loaded(drawn).flip(0),
    "all_NaN": lambda drawn: loaded(drawn) * torch.nan,
}
RESIDUAL: Mapping[str, Subject] = {
    "residual_added": lambda drawn: loaded(drawn) + drawn.x,
    "no_op": lambda drawn: torch.zeros_like(loaded(drawn)),
}
"""What every layer's claim must reject beside: the released modules return the update alone."""

SEEDED = tuple(
    Case(tokens=tokens, heads=heads, head_dim=width, extra=extra, m=m, seed=seed, scale=scale)
    for seed, (tokens, heads, width, extra, m, scale) in enumerate(
        (
            (5, 2, 2, 1, 3, 1.0),
            (6, 3, 2, 0, 2, 0.01),
            (7, 1, 4, 0, 4, 1.0),
            (9, 2, 3, 2, 5, 0.01),
            (6, 2, 2, 0, 3, 1.0),
            (10, 3, 4, 1, 1, 0.01),
            (8, 1, 3, 0, 6, 1.0),
            (11, 2, 4, 0, 2, 1.0),
            (5, 3, 3, 0, 5, 0.003),
            (6, 2, 1, 1, 4, 0.01),
            (12, 2, 2, 0, 1, 1.0),
            (7, 3, 1, 0, 2, 0.01),
        )
    )
)
"""The seed picks the project, biases, norms, and what else a kind's layout leaves open; small scales show ε of norms."""


def compat_claim(
    kind: str,
    statement: str,
    equation: str,
    source: str,
    *,
    layer: bool = True,
    choosing: bool = False,
    structured: tuple[Case, ...] = SEEDED,
    **own: Subject,
) -> Claim:
    """The claim on one kind, with its own departures switched off for mutants."""
    return Claim(
        id=f"compat.{kind.replace('-', '_')}",
        statement=statement,
        equation=equation,
        source=source,
        kind="identity",
        domain=cases(batches=(0,), kinds=("gaussian",), scales=(1.0, 0.01)),
        subject=loaded,
        measure=_measure(kind, choosing),
        mutants=named(**{**STANDING, **(RESIDUAL if layer else {}), **own}),
        structured=structured,
        code=("unrolling.compat:from_official",),
        real=False,
    )


def _memberships_over_tokens(module: Any, drawn: Drawn) -> None:
    def update(x: Tensor) -> Tensor:
        w, how = module._coordinates(x, module.basis), module._how()
        squares = w.square()
        lengths = (squares / squares.sum(-2, keepdim=True)).sum(-1)
        Pi = torch.softmax(module.temperature.unsqueeze(-1) * lengths, dim=-1).unsqueeze(-1)
        moments = (Pi * squares).sum(-2, keepdim=True) / (Pi.sum(-2, keepdim=True) + how.offset)
        return module._back(-module.step * how.factor(w.shape[-2]) * Pi * w / (1 + how.rate * moments), module.basis)

    module.update = update


def _steps_exchanged(module: Any, drawn: Drawn) -> None:
    step = module.step.clone()
    module.step.copy_(module.step_rep)
    module.step_rep.copy_(step)


def _without_attention_residual(module: Any, drawn: Drawn) -> None:
    module.attend = lambda x, grid=None: module.attention.adds(module.norm_attention(x), grid)


def _keys_not_squared(module: Any, drawn: Drawn) -> None:
    module.keys_per_expert = drawn.config["kv_topk"] // drawn.config["router_topk"]


def _gate_before_the_convolution(module: Any, drawn: Drawn) -> None:
    def attention(x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        v = module.values(x)
        read = module._read(module.queries(x), module.keys(x), v, grid, x).transpose(-3, -2).flatten(-2)
        return module.output(read * F.silu(module.gate(x)) + module._convolved(module.convolution, v, grid))

    module.attention = attention


def _published_frequencies(module: Any, drawn: Drawn) -> None:
    for part in (module.rotary, module.register_rotary):
        if part is not None:
            count = len(part.freqs)
            part.freqs.copy_(10000.0 ** (-torch.arange(count) / count))


LAYER_CLAIMS = (
    compat_claim(
        "mssa",
        "Loaded MSSA computes the released update: one matrix for queries, keys and values, a free output matrix with bias,"
        " or none for one head as wide as the tokens.",
        r"$O\,[W_k\,\mathrm{softmax}(p^{-1/2} W_k^\top W_k)]_k + b,\quad W = U^\top Z$",
        f"{CRATE}; {PROJECT}",
        scale_doubled=changed(every(MSSA, scale=lambda m: 2 * m.scale)),
        output_bias_dropped=changed(zeroed("output.bias")),
        another_heads_output=changed(
            lambda m, d: m.output.weight.copy_(m.output.weight.roll(m.head_dim, -1)) if m.projected else None
        ),
        step_subtracted=changed(every(MSSA, step=lambda m: -m.step)),
    ),
    compat_claim(
        "cbsa",
        "Loaded CBSA computes the released update: representatives pooled of all tokens but the last, stepped towards what they"
        " extract, contracted, broadcast, stepped again.",
        r"$R \leftarrow R + \mathrm{step}_{rep} W A,\quad O\,[\mathrm{step}_x R\,\mathrm{softmax}(s R^\top R) A^\top]_k + b$",
        PROJECT,
        step_on_representatives_dropped=changed(zeroed("step_rep", to=1.0)),
        steps_exchanged=changed(_steps_exchanged),
        pooled_queries_not_kept=changed(every(CBSA, keep_queries=False)),
        true_grid_pooled=changed(every(CBSA, representatives=on_the_other_side)),
        pooled_to_7_by_7=changed(every(CBSA, representatives=lambda m: OfficialGridPool((7, 7)))),
        output_bias_dropped=changed(zeroed("output.bias")),
    ),
    compat_claim(
        "cbsa-seg",
        "Loaded CBSA of the segmentation decoder pools 10 × 10 representatives of all tokens but the last 150.",
        r"$R = \mathrm{pool}_{10 \times 10}(W_{1..n-150}),\quad A = \mathrm{softmax}(s W^\top R)$ over all $n$ tokens",
        PROJECT,
        structured=SEEDED[:8],
        step_on_representatives_dropped=changed(zeroed("step_rep", to=1.0)),
        classes_pooled=changed(every(CBSA, representatives=on_the_other_side)),
        pooled_to_8_by_8=changed(every(CBSA, representatives=lambda m: OfficialGridPool((8, 8), (150,)))),
        output_bias_dropped=changed(zeroed("output.bias")),
    ),
    compat_claim(
        "tssa",
        "Loaded TSSA computes the released update: memberships over heads of channels normalised over tokens, no 1/N, d/ε² = 1.",
        r"$-O\,[(W_k \pi_k) \circ (1 + \sum_j \pi_{jk} w_{k,j}^{2} / (\sum_j \pi_{jk} + 10^{-8}))^{-1}]_k + b$",
        f"{TOST}; {PROJECT}",
        memberships_over_tokens=changed(_memberships_over_tokens),
        channels_not_normalised=changed(every(TSSA, normalise_tokens=False)),
        step_of_the_equation=changed(every(TSSA, unit_step=False)),
        precision_of_one=changed(every(TSSA, epsilon=1.0)),
        coordinate_bias_dropped=changed(zeroed("basis_bias")),
        temperatures_of_one=changed(zeroed("temperature", to=1.0)),
        output_bias_dropped=changed(zeroed("output.bias")),
    ),
    compat_claim(
        "tssa-causal",
        "Loaded causal TSSA computes the released update: all sums over the tokens so far, a learned number of every head and"
        " place in the scores, once for each channel.",
        r"$\pi_i = \mathrm{softmax}_k(t_k \sum_c (w_{k,i,c}^2 / \sum_{j \leq i} w_{k,j,c}^2 + d_{k,i}))$",
        TOST,
        not_causal=changed(every(TSSA, causal=False)),
        place_dropped=changed(zeroed("position_bias")),
        place_once_for_all_channels=changed(lambda m, d: m.position_bias.div_(m.head_dim)),
        channels_not_normalised=changed(every(TSSA, normalise_tokens=False)),
        step_of_the_equation=changed(every(TSSA, unit_step=False)),
        from_the_end=lambda drawn: loaded(dataclasses.replace(drawn, x=drawn.x.flip(-2))).flip(-2),
    ),
    compat_claim(
        "ista",
        "Loaded ISTA computes the released feed-forward block: one step of constant size from the tokens, no skip connection.",
        r"$\mathrm{ReLU}(Z + \eta(D^\top Z - D^\top D Z) - \eta\lambda)$",
        f"{CRATE}; {PROJECT}",
        step_doubled=changed(lambda m, d: setattr(m, "constant_step", 2 * m.constant_step)),
        threshold_halved=changed(lambda m, d: setattr(m, "constant_weight", m.constant_weight / 2)),
        dictionary_transposed=changed(lambda m, d: m.D.copy_(m.D.mT.clone())),
        soft_threshold=changed(lambda m, d: setattr(m, "nonnegative", False)),
    ),
    compat_claim(
        "crate-block",
        "A loaded block of CRATE, CBT or CBSA's ToST computes the released one: LayerNorms with 1e-5, a skip connection around"
        " the attention alone.",
        r"$Y = Z + \mathrm{attention}(\mathrm{LN}(Z)),\quad \mathrm{ISTA}(\mathrm{LN}(Y))$",
        f"{CRATE}; {PROJECT}",
        eps_of_1e_minus_6=changed(eps_exchanged),
        skip_around_ISTA=changed(lambda m, d: setattr(m, "feed", lambda x: x + m.ista(m.norm_ista(x)))),
        skip_around_the_attention_dropped=changed(_without_attention_residual),
        attention_of_raw_tokens=changed(lambda m, d: setattr(m, "norm_attention", nn.Identity())),
        ISTA_of_raw_tokens=changed(lambda m, d: setattr(m, "norm_ista", nn.Identity())),
    ),
    compat_claim(
        "depict-attention",
        "Loaded attention of DEPICT computes the released update, of tokens to themselves or of queries to tokens: one tied"
        " matrix, one step.",
        r"$\mathrm{step}\sum_k U_k W_k\,\mathrm{softmax}(p^{-1/2} W_k^\top Q_k),\quad W = U^\top Z,\; Q = W$ or $U^\top Q$",
        DEPICT,
        residual_added=lambda drawn: loaded(drawn) + drawn.call.get("query", drawn.x),
        step_of_one=changed(lambda m, d: m.step.fill_(1.0)),
        scale_doubled=changed(every(MSSA, scale=lambda m: 2 * m.scale)),
        query_for_the_tokens=lambda drawn: loaded(
            dataclasses.replace(drawn, x=drawn.call.get("query", drawn.x.flip(0)))
        ),
    ),
    compat_claim(
        "mita",
        "Loaded MiTA computes the released output: landmark keys scaled twice, queries pooled with the class token, kv_topk"
        " squared, norms made and not applied, a key once for every expert that holds it.",
        r"$[\tilde V, V_S]\,\mathrm{softmax}([s^2 R^\top q; s K_S^\top q]),\quad \tilde V = V\,\mathrm{softmax}(s K^\top R)$",
        MITA,
        choosing=True,
        landmark_keys_scaled_once=changed(every(MiTA, twice_scaled=False)),
        true_grid_pooled=changed(every(MiTA, strategy=on_the_other_side)),
        kv_topk_not_squared=changed(_keys_not_squared),
        idle_norms_applied=changed(every(MiTA, idle_norms=False)),
        duplicates_counted_once=changed(every(MiTA, deduplicate=True)),
        second_expert_left_out=changed(every(MiTA, experts_per_query=1)),
        shared_expert_left_out=changed(every(MiTA, shared=False)),
        output_bias_dropped=changed(zeroed("output.bias")),
    ),
    compat_claim(
        "mita-route",
        "Loaded MiTA of routed experts alone gives every expert twice as many keys as there are landmarks, and no query the"
        " landmarks.",
        r"$V_S\,\mathrm{softmax}(s K_S^\top q),\quad |S| = 2m$",
        MITA,
        choosing=True,
        shared_expert_added=changed(every(MiTA, shared=True)),
        keys_not_doubled=changed(every(MiTA, keys_per_expert=lambda m: m.keys_per_expert // 2)),
        true_grid_pooled=changed(every(MiTA, strategy=on_the_other_side)),
        idle_norms_applied=changed(every(MiTA, idle_norms=False)),
    ),
    compat_claim(
        "mita-dwc",
        "Loaded MiTA with a depth-wise convolution adds that of the true patches' values before the output matrix.",
        r"$O\,(\mathrm{MiTA} + [0, \mathrm{conv}_{3\times 3}(V_{2..n})]) + b$",
        MITA,
        choosing=True,
        convolution_dropped=changed(every(MiTA, convolution=lambda m: None)),
        convolution_without_bias=changed(zeroed("convolution.bias")),
        kernel_transposed=changed(lambda m, d: m.convolution.weight.copy_(m.convolution.weight.mT.clone())),
        landmark_keys_scaled_once=changed(every(MiTA, twice_scaled=False)),
        true_grid_pooled=changed(every(MiTA, strategy=on_the_other_side)),
        idle_norms_applied=changed(every(MiTA, idle_norms=False)),
    ),
    compat_claim(
        "mita-dwc-gate",
        "Loaded MiTA with a gate multiplies by SiLU of a fourth projection, after the convolution was added.",
        r"$O\,((\mathrm{MiTA} + [0, \mathrm{conv}_{3\times 3}(V_{2..n})]) \circ \mathrm{SiLU}(G)) + b$",
        f"{MITA}, its undefined name corrected",
        choosing=True,
        gate_before_the_convolution=changed(_gate_before_the_convolution),
        gate_dropped=changed(every(MiTA, gate=lambda m: None)),
        gate_of_the_other_sign=changed(lambda m, d: m.gate.weight.neg_()),
        landmark_keys_scaled_once=changed(every(MiTA, twice_scaled=False)),
        true_grid_pooled=changed(every(MiTA, strategy=on_the_other_side)),
    ),
    compat_claim(
        "mita-vit5-attention",
        "Loaded MiTA of ViT-5 norms every head's queries and keys, turns patches and registers by the loaded frequencies, the"
        " class token not, and pools the turned queries of the patches.",
        r"$q \leftarrow R_t\,\mathrm{RMSNorm}(q),\; k \leftarrow R_t\,\mathrm{RMSNorm}(k),\quad R = \mathrm{pool}(Q_{2..n-r})$",
        f"{MITA}, for ViT-5",
        choosing=True,
        patches_not_turned=changed(every(MiTA, rotary=lambda m: None)),
        registers_not_turned=changed(every(MiTA, register_rotary=lambda m: None)),
        published_frequencies=changed(_published_frequencies),
        norms_dropped=changed(every(MiTA, idle_norms=True)),
        pooled_before_they_are_turned=changed(every(MiTA, pool_before_norm=True)),
        class_token_pooled=changed(every(MiTA, strategy=on_the_other_side)),
        landmark_keys_scaled_once=changed(every(MiTA, twice_scaled=False)),
        convolution_dropped=changed(every(MiTA, convolution=lambda m: None)),
    ),
    compat_claim(
        "mita-segmenter-attention",
        "Loaded MiTA of Segmenter pools queries, of g² + 1 or g² + 150 tokens, before it norms them, and may do without landmarks.",
        r"$R = \mathrm{pool}(Q_{1..n-1}),\quad q \leftarrow \mathrm{LN}(q),\; k \leftarrow \mathrm{LN}(k)$",
        f"{MITA}, for Segmenter",
        choosing=True,
        norms_before_the_pooling=changed(every(MiTA, pool_before_norm=False)),
        norms_idle=changed(every(MiTA, idle_norms=True)),
        other_end_pooled=changed(every(MiTA, strategy=on_the_other_side)),
        landmark_keys_scaled_once=changed(every(MiTA, twice_scaled=False)),
        shared_expert_on_or_off=changed(every(MiTA, shared=lambda m: not m.shared)),
    ),
    compat_claim(
        "agent",
        "Loaded agent attention computes MiTA's baselines and CBSA's adaptation of a ViT: agents pooled with the class token, or"
        " without it beside position biases; norms idle, or for the agents' reading alone.",
        r"$V\,\mathrm{softmax}(s K^\top R + B_1)\,\mathrm{softmax}(s R^\top Q + B_2)$",
        f"{MITA}; {PROJECT}, its adaptation of ViTs",
        biases_dropped=changed(every(AgentAttention, agent_bias=lambda m: None)),
        agents_pooled_at_the_other_end=changed(every(AgentAttention, strategy=on_the_other_side)),
        idle_norms_applied=changed(every(AgentAttention, idle_norms=False)),
        norms_never_applied=changed(every(AgentAttention, idle_norms=True)),
        norms_in_the_broadcast_too=changed(every(AgentAttention, norm_agents=True)),
        output_norm_dropped=changed(every(AgentAttention, output_norm=lambda m: None)),
        contraction_added=changed(every(AgentAttention, contraction=True)),
        output_bias_dropped=changed(zeroed("output.bias")),
    ),
)


def _round_trip(subject: Any, case: Case) -> Measurement:
    """Of the kind that the seed picks: names, shapes, dtypes and every bit of a state that went in and came out."""
    kind = list(KINDS)[case.seed % len(KINDS)]
    drawn = KINDS[kind](case)
    found, state = subject(compat.from_official(drawn.kind, drawn.state, **drawn.config))
    wrong = [
        name
        for name, value in drawn.state.items()
        if name not in state or state[name].dtype != value.dtype or not torch.equal(state[name], value)
    ]
    again = compat.from_official(found, state, **drawn.config)
    with torch.no_grad():
        same = torch.equal(again(drawn.x, **drawn.call), loaded(drawn)) if not wrong else True
    return combine(
        Measurement((Comparison(f"{kind}: tensors that differ", float(len(wrong)), 0.0),)),
        Measurement((Comparison(f"{kind}: tensors too many", float(len(set(state) - set(drawn.state))), 0.0),)),
        Measurement((Comparison(f"{kind}: loaded again", float(not same), 0.0),)),
    )


def _spoilt(spoil: Callable[[str, Tensor], Tensor]) -> Callable[[nn.Module], tuple[str, dict[str, Tensor]]]:
    """The state of a module, every tensor changed by spoil(name, tensor)."""

    def subject(module: nn.Module) -> tuple[str, dict[str, Tensor]]:
        kind, state = compat.to_official(module)
        return kind, {name: spoil(name, value) for name, value in state.items()}

    return subject


ROUND_TRIP = Claim(
    id="compat.round_trip",
    statement="Weights of every kind that go in come out again, bit for bit, under the same names.",
    equation=r"$\mathrm{to\_official}(\mathrm{from\_official}(x)) = x$",
    source="unrolling.compat; the released layouts",
    kind="identity",
    domain=cases(batches=(0,), kinds=("gaussian",), scales=(1.0, 0.01)),
    subject=compat.to_official,
    measure=_round_trip,
    mutants=named(
        rounded_to_half=_spoilt(lambda name, t: t.half().to(t.dtype) if t.is_floating_point() else t),
        matrices_transposed=_spoilt(lambda name, t: t.mT.clone() if t.ndim == 2 and t.shape[0] == t.shape[1] else t),
        queries_keys_values_in_another_order=_spoilt(
            lambda name, t: t.roll(t.shape[0] // 3, 0) if name.endswith("qkv.weight") else t
        ),
        counters_dropped=_spoilt(lambda name, t: 0 * t if name.endswith("num_batches_tracked") else t),
        biases_zeroed=_spoilt(lambda name, t: 0 * t if name.endswith(".bias") else t),
    ),
    structured=tuple(
        Case(tokens=6 + number % 3, heads=2, head_dim=2, extra=1, seed=29 * (number % 4) + number)
        for number in range(len(KINDS))
    ),
    code=("unrolling.compat:from_official", "unrolling.compat:to_official"),
    real=False,
)

CLAIMS = (*LAYER_CLAIMS, ROUND_TRIP)
