"""Claims on softmax attention read as kernel regression: its step, its two-layer network, its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unrolling import AgentAttention, GridRotary, MiTA, SoftmaxAttention

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import columns, identity, norm, reference, score_condition, slices, step_measure
from ..mutants import forward, named, of_step
from ..oracles import richardson_derivative
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .coding_rate import _count, combine

__all__ = ["CLAIMS"]

VASWANI = "Vaswani et al., arXiv 1706.03762, section 3.2"
MITA = "MiTA, arXiv 2602.01219, attention as fast weights"
SEEDED = tuple(dataclasses.replace(case, seed=i % 2) for i, case in enumerate(STRUCTURED))
"""An odd seed takes identity projections where the heads fill the features."""

L = TypeVar("L", SoftmaxAttention, MiTA, AgentAttention)
Maps = dict[str, Tensor]


def _identity(case: Case) -> bool:
    return case.seed % 2 == 1 and case.extra == 0


def maps_of(case: Case) -> Maps:
    """The projections of a case: (inner, dim) and (dim, inner) matrices and their biases, drawn or the identity."""
    inner, dim = case.heads * case.head_dim, case.dim
    shapes = {"query": (inner, dim), "key": (inner, dim), "value": (inner, dim), "output": (dim, inner)}
    if _identity(case):
        eye = torch.eye(dim, dtype=case.torch_dtype)
        return {part: tensor for name in shapes for part, tensor in ((name, eye), (f"{name} bias", 0 * eye[0]))}
    drawn = {name: case.draw(name, *shape) * shape[1] ** -0.5 for name, shape in shapes.items()}
    return drawn | {f"{name} bias": 0.3 * case.scale * case.draw(f"{name} bias", shapes[name][0]) for name in shapes}


def plain(maps: Maps) -> dict[str, NDArray[np.float64]]:
    """The same projections for the transcriptions."""
    return {name: tensor.double().numpy() for name, tensor in maps.items()}


def layer_of(make: Callable[..., L], case: Case, **options: Any) -> L:
    """A layer of the case's sizes, scale, step and projections."""
    kind = "identity" if _identity(case) else "free"
    layer = make(
        case.dim,
        case.heads,
        case.head_dim,
        projections=kind,
        scale=case.softmax_scale,
        **options,
    ).to(case.torch_dtype)
    with torch.no_grad():
        layer.step.fill_(case.step)  # after the conversion: 0.1 in float32 is another number
    if kind == "free":
        maps = maps_of(case)
        with torch.no_grad():
            for name in ("query", "key", "value", "output"):
                getattr(layer, name).weight.copy_(maps[name])
                getattr(layer, name).bias.copy_(maps[f"{name} bias"])
    return layer


def attention_condition(case: Case, layer: SoftmaxAttention | MiTA, z: Tensor, moved: float | None = None) -> float:
    """Scores amplify rounding by their size; values of all heads cancel to what is read, and that with the tokens."""
    with torch.no_grad():
        q, k, v = layer.queries(z), layer.keys(z), layer.values(z)
        size = norm(layer.attention(z) - z) if moved is None else moved
    outputs = 1.0 if _identity(case) else norm(maps_of(case)["output"])
    widest = outputs * float(v.norm(dim=-1).max()) * z[..., 0].numel() ** 0.5 + norm(z)
    return score_condition(q, k, case.softmax_scale) * (1.0 + widest / max(size, 1e-300))


def head_rows(case: Case, joint: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows of every head."""
    return [joint[h * case.head_dim : (h + 1) * case.head_dim] for h in range(case.heads)]


def output_blocks(case: Case) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """The output matrix of every head (d, p), and the bias."""
    maps = plain(maps_of(case))
    p = case.head_dim
    return [maps["output"][:, h * p : (h + 1) * p] for h in range(case.heads)], maps["output bias"]


def regression(case: Case, Z: NDArray[Any]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The weights and values of every head at Z, columns."""
    Q, K, V = (head_rows(case, part) for part in paper.query_key_value(Z, plain(maps_of(case))))
    A = [paper.softmax_columns(case.softmax_scale * (Kh.T @ Qh)) for Qh, Kh in zip(Q, K, strict=True)]
    return A, V


def _make(case: Case) -> SoftmaxAttention:
    return layer_of(SoftmaxAttention, case)


def _multi_head(case: Case, Z: NDArray[np.float64]) -> NDArray[np.float64]:
    return paper.multi_head(Z, plain(maps_of(case)), case.heads, case.softmax_scale)


def _paper_step(case: Case, layer: SoftmaxAttention, Z: NDArray[np.float64], b: int) -> NDArray[np.float64]:
    return Z + case.step * (_multi_head(case, Z) - Z)


def _frozen_regression(case: Case, layer: SoftmaxAttention, z: Tensor, b: int) -> Any:
    A, V = regression(case, columns(z.reshape(-1, *z.shape[-2:])[b]))
    outputs, bias = output_blocks(case)
    return lambda Z: paper.multi_head_regression(Z, A, V, outputs, bias)


def away_from_rest(make: Callable[[Case], L], measure: Callable[[Any, Case], Measurement]) -> Any:
    """The measure, but where attention is the tokens themselves (equal tokens, no projections) up to rounding.

    There sums of weights that are 1 but for rounding move the tokens by rounding, and nothing is said of the step.
    """

    def measured(subject: Any, case: Case) -> Measurement:
        exact = reference(case)
        z, layer = exact.x(), make(exact)
        with torch.no_grad():
            if norm(layer.attention(z) - z) > 1e-14 * norm(z):
                return measure(subject, case)
            off = norm(subject(case, make(case), case.x()).double() - z)
        return Measurement((Comparison("at rest", off, tolerance(case.dtype) * norm(z)),), evidence=False)

    return measured


def step_bend(case: Case, layer: SoftmaxAttention | MiTA | AgentAttention, z: Tensor) -> float:
    """A quadratic bends nowhere: any length of the size of the step will do."""
    with torch.no_grad():
        return max(norm(layer.attention(z) - z), 1e-3 * case.scale)


def _attention_measure(subject: Any, case: Case) -> Measurement:
    x, exact, parts = case.x(), reference(case), []
    with torch.no_grad():
        got = subject(case, _make(case), x).double()
    layer = _make(exact)
    for g, (point,) in zip(got.reshape(-1, *got.shape[-2:]), slices(exact.x()), strict=True):
        want = _multi_head(exact, columns(point)).T
        parts.append(
            identity("multi-head attention", g, want, case.dtype, attention_condition(exact, layer, point, norm(want)))
        )
    return combine(*parts)


def rebuilt(read: Callable[..., Tensor]) -> Callable[[Case, Any, Tensor], Tensor]:
    """The attention of a layer whose heads read by ``read(case, q, k, v)``."""

    def attention(case: Case, layer: Any, x: Tensor) -> Tensor:
        found = read(case, layer.queries(x), layer.keys(x), layer.values(x))
        joined = found.transpose(-3, -2).flatten(-2)
        return joined if layer.projections == "identity" else layer.output(joined)

    return attention


def stepped(attention: Callable[[Case, Any, Tensor], Tensor]) -> Callable[[Case, Any, Tensor], Tensor]:
    """The layer's step towards another attention."""
    return lambda case, layer, x: x + case.step * (attention(case, layer, x) - x)


def _attend(case: Case, q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, axis: int = -1) -> Tensor:
    return torch.softmax(scale * case.softmax_scale * (q @ k.mT), axis) @ v


WRONG: dict[str, Callable[[Case, Any, Tensor], Tensor]] = {
    "softmax_over_queries": rebuilt(lambda case, q, k, v: _attend(case, q, k, v, axis=-2)),
    "scale_doubled": rebuilt(lambda case, q, k, v: _attend(case, q, k, v, scale=2.0)),
    "keys_for_values": rebuilt(lambda case, q, k, v: _attend(case, q, k, k + 0.1 * case.scale)),
    "another_heads_weights": rebuilt(lambda case, q, k, v: _attend(case, q.roll(1, -3), k.roll(1, -3), v)),
    "weights_transposed": rebuilt(lambda case, q, k, v: torch.softmax(case.softmax_scale * (q @ k.mT), -1).mT @ v),
}


def _mlp(case: Case, q: Tensor, K: Tensor, V: Tensor, s: float) -> Tensor:
    """Two linear layers whose weights the tokens wrote: N hidden units."""
    hidden = torch.nn.functional.linear(s * q, K)
    return torch.nn.functional.linear(torch.softmax(hidden, -1), V.mT)


def _mlp_measure(subject: Any, case: Case) -> Measurement:
    s, parts = case.softmax_scale, []
    q, K, V = (
        case.scale * case.draw(name, n, case.head_dim)
        for name, n in (("q", case.m), ("K", case.tokens), ("V", case.tokens))
    )
    exact = reference(case)
    Q64, K64, V64 = (
        columns(exact.scale * exact.draw(name, n, exact.head_dim))
        for name, n in (("q", case.m), ("K", case.tokens), ("V", case.tokens))
    )
    want = np.concatenate([paper.attention(Q64[:, [i]], K64, V64, s) for i in range(case.m)], axis=1).T
    condition = score_condition(q, K, s) * (1 + norm(V) * case.m**0.5 / max(norm(want), 1e-300))
    parts.append(identity("attention", subject(case, q, K, V, s), want, case.dtype, condition))
    order = torch.from_numpy(case.rng("order").permutation(case.tokens))
    turned = subject(case, q, K[order], V[order], s)
    parts.append(identity("hidden units in another order", turned, want, case.dtype, condition))
    return combine(*parts)


def _total(case: Case, layer: SoftmaxAttention, x: Tensor, frozen: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
    """The gradient with weights and values frozen, and that of the same value with nothing frozen."""
    z = x.clone().requires_grad_()
    with torch.enable_grad():
        weights, values, _ = layer.pairs(z)
        weights, values = (
            part.detach() if name in frozen else part for name, part in (("weights", weights), ("values", values))
        )
        outputs, bias = output_blocks(case)
        towards = case.heads * (values @ torch.from_numpy(np.stack(outputs)).mT) + torch.from_numpy(bias)
        gaps = (z[None, :, None, :] - towards[:, None]).square().sum(-1)
        (full,) = torch.autograd.grad(0.5 * (weights * gaps).sum() / case.heads, z)
    return x - layer.attention(x).detach(), full


def _frozen_measure(subject: Any, case: Case) -> Measurement:
    exact = dataclasses.replace(reference(dataclasses.replace(case, batch=0)), step=1.0)
    x, layer = exact.x(), _make(exact)
    frozen, full = subject(exact, layer, x)
    outputs, bias = output_blocks(exact)

    def value(Z: NDArray[np.float64], at: NDArray[np.float64]) -> float:
        return float(paper.multi_head_regression(Z, *regression(exact, at), outputs, bias))

    Z, rng, done = columns(x), exact.rng("direction"), []
    start = value(Z, Z)
    for name, g, moving in (("frozen", frozen, False), ("nothing frozen", full, True)):
        size = norm(g)
        V = rng.standard_normal(Z.shape)
        V = V / norm(V) + (columns(g) / size if 0 < size < np.inf else 0)
        bend = 0.1 * exact.scale / (1 + exact.softmax_scale * exact.scale**2)

        def along(t: float, V: NDArray[np.float64] = V, moving: bool = moving) -> float:
            return value(Z + t * V, Z + t * V if moving else Z)

        slope, error = richardson_derivative(along, bend)
        claimed = float((columns(g) * V).sum())
        allowed = max(1e-7, 20 * error / max(abs(slope), 1e-300)) + 1e-12 * start / max(abs(slope), 1e-300)
        if (allowed < 1e-2 and slope != 0) or claimed != claimed:
            done.append(Comparison(f"{name}: differences", abs(claimed - slope) / max(abs(slope), 1e-300), allowed))
    if not done or norm(full) == 0 or norm(frozen) == 0:
        return Measurement(tuple(done), evidence=bool(done))
    cosine = float((frozen * full).sum()) / (norm(frozen) * norm(full))
    ratio = norm(frozen) / norm(full)
    return Measurement(tuple(done), True, {"cosine, frozen and not": cosine, "norm ratio, frozen over not": ratio})


def _places(case: Case) -> tuple[int, int]:
    """Rows and columns of a small grid, square or not."""
    return 1 + case.tokens % 4, 1 + case.seed % 4


def _rotary(case: Case) -> GridRotary:
    """Rotary embedding made for another grid than the case's, with frequencies of its own."""
    layer = GridRotary(4 * case.head_dim, 1 + case.seed % 5, theta=(100.0, 10000.0, 7.0)[case.seed % 3])
    return layer.to(case.torch_dtype)


def _rotary_measure(subject: Any, case: Case) -> Measurement:
    """Products of one query and one key, each at every place, against the turn by the difference of the places."""
    (rows, columns_), width = _places(case), 4 * case.head_dim
    exact = reference(case)
    got = subject(case, *(case.scale * case.draw(name, width) for name in ("rotary q", "rotary k")))
    q, k = ((exact.scale * exact.draw(name, width)).numpy() for name in ("rotary q", "rotary k"))
    theta, half = _rotary(exact).theta, width // 2
    frequencies = np.array([theta ** (-2 * i / half) for i in range(case.head_dim)])
    places = [(r, c) for r in range(rows) for c in range(columns_)]
    reference_side = _rotary(exact).reference
    want = np.array(
        [
            [
                paper.rotary_product(
                    q, k, ((a - c) * reference_side / rows, (b - d) * reference_side / columns_), frequencies
                )
                for c, d in places
            ]
            for a, b in places
        ]
    )
    # Frequencies are held in single precision, and their error grows with the angle.
    angle = max(1.0, float(reference_side))
    cancelled = 1.0 + float(np.linalg.norm(q) * np.linalg.norm(k)) * len(places) / max(norm(want), 1e-300)
    measured = identity("turned by the difference", got, want, "float32", angle * cancelled)
    return dataclasses.replace(measured, evidence=measured.evidence and len(places) > 1)


def _at_all_places(
    case: Case, q: Tensor, k: Tensor, turn: Callable[..., tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """Products of the query at every place with the key at every place."""
    grid, layer = _places(case), _rotary(case)
    count = grid[0] * grid[1]
    queries, keys = q.expand(count, -1), k.expand(count, -1)
    if turn is None:
        return layer(queries, grid) @ layer(keys, grid).mT
    left, right = turn(layer, queries, keys, grid)
    return left @ right.mT


def _halves_of(x: Tensor) -> Tensor:
    """Features reordered so that pairs (i, i + h/2) of a half stand where (2i, 2i + 1) stood."""
    return x.unflatten(-1, (2, 2, -1)).transpose(-2, -1).flatten(-3)


def _cost(subject: Any, case: Case) -> Measurement:
    N = 5 * case.tokens
    layer, x = SoftmaxAttention(12, 3), torch.randn(1, N, 12, generator=torch.Generator().manual_seed(case.seed))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        counted = _count(lambda: layer(x))
    return Measurement(
        (Comparison("multiply-adds", abs(counted - subject(N, 12)), 0.0),), values={"multiply-adds": counted}
    )


CLAIMS = (
    Claim(
        id="softmax.attention",
        statement="Before the step the layer computes multi-head attention, with projections of its own or none.",
        equation=r"$\sum_k O_k V_k\,\mathrm{softmax}(s K_k^\top Q_k) + b$",
        source=VASWANI,
        kind="identity",
        domain=cases(),
        subject=lambda case, layer, x: layer.attention(x),
        measure=_attention_measure,
        mutants=named(
            **WRONG,
            residual_added=lambda case, layer, x: x + layer.attention(x),
            opposite_sign=lambda case, layer, x: -layer.attention(x),
            no_op=lambda case, layer, x: x,
            output_bias_dropped=lambda case, layer, x: (
                layer.attention(x) - (layer.output.bias if layer.projections == "free" else 0)
            ),
            all_NaN=lambda case, layer, x: x * torch.nan,
        ),
        structured=SEEDED,
        code=("unrolling.layers.softmax:SoftmaxAttention",),
    ),
    Claim(
        id="softmax.step.exact",
        statement="A step towards multi-head attention, with any matrices, is a gradient step of kernel regression towards"
        " the values of all heads; at step size 1 it is attention.",
        equation=r"$Z - \kappa(Z - \mathrm{MHSA}(Z)) = Z - \kappa\nabla f(Z),\quad"
        r" f = \frac{1}{2K}\sum_k\sum_{ij} a_{k,ij}\Vert o_i - K O_k v_{k,j} - b\Vert^2$",
        source=MITA,
        kind="exact",
        domain=cases(),
        subject=forward,
        measure=away_from_rest(
            _make, step_measure(_make, _paper_step, _frozen_regression, attention_condition, step_bend)
        ),
        mutants=of_step(
            **{name: stepped(wrong) for name, wrong in WRONG.items()},
            shrinkage_dropped=lambda case, layer, x: x + case.step * layer.attention(x),
            heads_averaged=stepped(lambda case, layer, x: layer.attention(x) / (case.heads if case.heads > 1 else 2)),
        ),
        structured=SEEDED,
        code=("unrolling.layers.softmax:SoftmaxAttention", "objectives.kernel_regression:KernelRegression"),
        frozen="weights, keys and values",
        largest=160,
    ),
    Claim(
        id="softmax.mlp",
        statement="For one query attention is a two-layer perceptron of width N with weights K and V, whose units have no order.",
        equation=r"$\mathrm{attention}(q) = V\,\varphi(K^\top q), \quad \varphi = \mathrm{softmax}(s\,\cdot)$",
        source=MITA,
        kind="identity",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=_mlp,
        measure=_mlp_measure,
        mutants=named(
            another_nonlinearity=lambda case, q, K, V, s: torch.relu(s * (q @ K.mT)) @ V,
            not_normalised=lambda case, q, K, V, s: torch.exp(s * (q @ K.mT)) @ V,
            softmax_over_queries=lambda case, q, K, V, s: torch.softmax(s * (q @ K.mT), -2) @ V,
            scale_doubled=lambda case, q, K, V, s: _mlp(case, q, K, V, 2 * s),
            weights_exchanged=lambda case, q, K, V, s: _mlp(case, q, V, K, s),
            units_read_in_order=lambda case, q, K, V, s: _mlp(
                case, q, K, V * torch.arange(1.0, len(V) + 1)[:, None], s
            ),
            all_NaN=lambda case, q, K, V, s: q * torch.nan,
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.softmax:SoftmaxAttention",),
        real=False,
    ),
    Claim(
        id="softmax.frozen",
        statement="What freezing weights and values leaves out of the regression's gradient is measured.",
        equation=r"$\cos(Z - \mathrm{MHSA}(Z),\; \nabla_Z f(Z;\, a(Z), v(Z)))$",
        source="derived",
        kind="measured",
        domain=cases(batches=(0,), scales=(1.0, 0.1, 10.0)),
        subject=_total,
        measure=_frozen_measure,
        mutants=named(
            weights_frozen=lambda case, layer, x: _total(case, layer, x, ("weights",)),
            values_frozen=lambda case, layer, x: _total(case, layer, x, ("values",)),
            exchanged=lambda case, layer, x: _total(case, layer, x)[::-1],
            half=lambda case, layer, x: tuple(0.5 * g for g in _total(case, layer, x)),
            all_NaN=lambda case, layer, x: (x * torch.nan, x * torch.nan),
        ),
        structured=(Case(tokens=8, head_dim=3), Case(seed=1), Case(tokens=12, seed=1, scale=10.0)),
        code=("unrolling.layers.softmax:SoftmaxAttention",),
        largest=64,
    ),
    Claim(
        id="softmax.rotary",
        statement="Products of rotary queries and keys depend on the difference of their places in the grid alone, square or"
        " not, and are those of one vector turned by it.",
        equation=r"$\langle R_{t} q, R_{t'} k\rangle = \langle R_{t - t'} q, k\rangle,\quad"
        r" t = (\mathrm{row}\cdot r/H,\, \mathrm{column}\cdot r/W)$",
        source="RoFormer, arXiv 2104.09864, eq. 11 and 16, along rows and columns",
        kind="identity",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=_at_all_places,
        measure=_rotary_measure,
        mutants=named(
            keys_not_turned=lambda case, q, k: _at_all_places(
                case, q, k, lambda layer, q, k, grid: (layer(q, grid), k)
            ),
            keys_placed_in_reverse=lambda case, q, k: _at_all_places(
                case, q, k, lambda layer, q, k, grid: (layer(q, grid), layer(k, grid).flip(0))
            ),
            not_turned=lambda case, q, k: _at_all_places(case, q, k, lambda layer, q, k, grid: (q, k)),
            rows_and_columns_exchanged=lambda case, q, k: _at_all_places(
                case,
                q,
                k,
                lambda layer, q, k, grid: tuple(
                    layer(part.roll(part.shape[-1] // 2, -1), grid).roll(part.shape[-1] // 2, -1) for part in (q, k)
                ),
            ),
            other_pairs=lambda case, q, k: _at_all_places(
                case, q, k, lambda layer, q, k, grid: (layer(_halves_of(q), grid), layer(_halves_of(k), grid))
            ),
            another_grid=lambda case, q, k: _at_all_places(
                case, q, k, lambda layer, q, k, grid: (layer(q, (len(q), 1)), layer(k, (len(q), 1)))
            ),
            all_NaN=lambda case, q, k: _at_all_places(case, q, k) * torch.nan,
        ),
        structured=(
            Case(tokens=3, head_dim=2, seed=2),
            Case(tokens=2, head_dim=1, seed=7),
            Case(tokens=4, head_dim=3, seed=1),
            Case(tokens=6, head_dim=2, seed=11),
        ),
        code=("unrolling.rotary:GridRotary",),
        real=False,
    ),
    Claim(
        id="softmax.cost",
        statement="Softmax attention takes 4Nd² + 2N²d multiply-adds: quadratic in tokens.",
        equation=r"$4 N d^2 + 2 N^2 d$",
        source="MiTA, arXiv 2602.01219: 4N²d FLOPs, two a multiply-add, without the projections",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",)),
        subject=lambda N, d: 4 * N * d**2 + 2 * N**2 * d,
        measure=_cost,
        mutants=named(
            flops_for_multiply_adds=lambda N, d: 4 * N * d**2 + 4 * N**2 * d,
            scores_only=lambda N, d: 4 * N * d**2 + N**2 * d,
            three_projections=lambda N, d: 3 * N * d**2 + 2 * N**2 * d,
        ),
        structured=(Case(), Case(tokens=1)),
        code=("unrolling.layers.softmax:SoftmaxAttention",),
        real=False,
    ),
)
