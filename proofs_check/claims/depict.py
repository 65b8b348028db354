"""Claims on DEPICT: cross-attention to class embeddings as a step of PCA, and the decoder built of it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from objectives import (
    CodingRate,
    PCARate,
    SubspacePCARate,
    certified_step_size,
    lift,
    nearest_direction,
    principal_directions,
    project,
    subspace_alignment,
)
from unrolling import MSCA, MSSA, DepictDecoder

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..frames import cancellation, directions_of, posed_gradient, variable
from ..measures import (
    bases,
    columns,
    identity,
    norm,
    rate_condition,
    reference,
    score_condition,
    slices,
    step_measure,
)
from ..mutants import forward, gradient, named, of_gradient, of_step
from ..oracles import mp_array, mp_derivative
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import tolerance
from .coding_rate import _count, bend_of_rate, combine, lipschitz, smoothness_measure
from .mssa import certified, certified_measure, stretched

__all__ = ["CLAIMS"]

DEPICT = "Wen et al., DEPICT, arXiv 2411.03033"
TWO = tuple(dataclasses.replace(case, tokens=max(2, case.tokens), seed=i) for i, case in enumerate(STRUCTURED))
"""At least one class token and one patch; the seed sets the number of class tokens."""

FLAT = tuple(dataclasses.replace(case, batch=0) for case in TWO)
LABELLED = tuple(Case(tokens=8, heads=3, head_dim=4, seed=seed) for seed in range(3))

Array = NDArray[np.float64]


def _classes(case: Case) -> int:
    return 1 + case.seed % min(3, case.tokens - 1)


def _epsilon(case: Case) -> float:
    """The rate is one of products of classes and patches: in units of the squared size of the tokens."""
    return case.epsilon * max(case.scale, 1e-3)


def _layer(case: Case, form: str, **more: Any) -> MSCA:
    return MSCA(
        case.dim,
        case.heads,
        U=case.U(),
        class_tokens=_classes(case),
        form=form,
        epsilon=_epsilon(case),
        scale=case.softmax_scale,
        **more,
    )


def _exact(case: Case) -> MSCA:
    """A layer whose step is as long as the class embeddings, or a tenth to twice as long: any κ is a gradient step."""
    exact, C = reference(case), _classes(case)
    moved, size = 0.0, 0.0
    for (x,) in slices(exact.x()):
        Q, Z = columns(x)[:, :C], columns(x)[:, C:]
        moved += norm(paper.depict_cross_step(Q, Z, bases(exact.U()), _epsilon(case), 1.0) - Q)
        size += norm(Q)
    return _layer(case, "exact", step_size=case.step * size / moved if moved else case.step)


def _softmax(case: Case) -> MSCA:
    return _layer(case, "softmax", step_size=0.5 * case.step)


def _split(case: Case, x: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of class tokens and of patches in every head."""
    w = project(x, case.U())
    return w[..., : _classes(case), :], w[..., _classes(case) :, :]


def _products_condition(q: Tensor, w: Tensor, beta: float) -> float:
    """(I + βBᵀB)⁻¹ is solved, and products cancel twice: in B = W qᵀ, and in the sum over patches."""
    worst = 1.0
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (q, w)]
    update, inside = 0.0, 0.0
    for one, keys in zip(*flat, strict=True):
        B = keys @ one.mT
        inner = beta * B @ torch.linalg.inv(torch.eye(len(one)) + beta * B.mT @ B)
        worst = max(worst, rate_condition(B, beta) * cancellation(norm(one) * norm(keys), norm(B)))
        update, inside = update + norm(inner.mT @ keys), inside + norm(inner) * norm(keys)
    return worst * cancellation(inside, update)


def _exact_condition(case: Case, layer: MSCA, z: Tensor) -> float:
    q, w = _split(case, z)
    return _products_condition(q, w, q.shape[-2] / (w.shape[-2] * _epsilon(case) ** 2))


def _softmax_condition(case: Case, layer: MSCA, z: Tensor) -> float:
    q, w = _split(case, z)
    read = norm(layer.update(z)) / (0.5 * case.step)
    return score_condition(q, w, case.softmax_scale) * cancellation(
        float(w.norm(dim=-1).max()) * q.numel() ** 0.5, read
    )


def _rate_bend(case: Case, layer: MSCA, z: Tensor) -> float:
    return 0.3 / max(float(certified_step_size(layer.objective_at(z), z).lipschitz.max()), 1e-30) ** 0.5


def _energy_bend(case: Case, layer: MSCA, z: Tensor) -> float:
    largest = float(_split(case, z)[1].norm(dim=-1).max())
    return 0.5 / (case.softmax_scale * largest + 1e-3 / max(norm(z), 1e-3))


def _joint(step: Any) -> Any:
    """The paper's step of the classes, patches as they are: ``step(case, layer, Q, Z)`` in columns."""

    def paper_step(case: Case, layer: MSCA, X: Array, b: int) -> Array:
        C = _classes(case)
        return np.concatenate([step(case, layer, X[:, :C], X[:, C:]), X[:, C:]], axis=1)

    return paper_step


def _frozen(value: Any) -> Any:
    """The objective of a joint sequence, its patches constant: ``value(case, Q, Z)``."""

    def naive(case: Case, layer: MSCA, z: Tensor, b: int) -> Any:
        C = _classes(case)
        Z = columns(z.reshape(-1, *z.shape[-2:])[b])[:, C:]
        return lambda X: value(case, X[:, :C], Z)

    return naive


def _rebuilt(change: Any) -> Any:
    """A wrong forward pass from class coordinates q and patch coordinates w: ``change(case, layer, q, w)``."""

    def subject(case: Case, layer: MSCA, x: Tensor) -> Tensor:
        q, w = _split(case, x)
        moved = float(layer.step_size_at(x)) * lift(change(case, layer, q, w), case.U())
        return torch.cat([x[..., : _classes(case), :] + moved, x[..., _classes(case) :, :]], -2)

    return subject


def _rate_of(case: Case, q: Tensor, w: Tensor, beta_factor: float = 1.0) -> Tensor:
    beta = beta_factor * q.shape[-2] / (w.shape[-2] * _epsilon(case) ** 2)
    B = w @ q.mT
    return beta * torch.linalg.solve(torch.eye(q.shape[-2], dtype=q.dtype) + beta * B.mT @ B, B.mT) @ w


def _attended(case: Case, q: Tensor, w: Tensor, axis: int = -1, scale: float = 1.0) -> Tensor:
    return torch.softmax(scale * case.softmax_scale * (q @ w.mT), axis) @ w


def _patches_moved(case: Case, layer: MSCA, x: Tensor) -> Tensor:
    """The classes' tokens among the keys too, and every token moved: self-attention."""
    w = project(x, case.U())
    return x + float(layer.step_size_at(x)) * lift(torch.softmax(case.softmax_scale * (w @ w.mT), -1) @ w, case.U())


def _weights(case: Case) -> Tensor | None:
    drawn = 0.5 + torch.rand(case.heads, generator=torch.Generator().manual_seed(case.seed), dtype=torch.float64)
    return drawn.to(case.torch_dtype) if case.seed % 2 else None


def _make_rate(case: Case, Z: Tensor) -> SubspacePCARate:
    return SubspacePCARate(case.U(), Z, case.epsilon, weights=_weights(case))


def _naive_rate(case: Case, Z: Array) -> Any:
    weights = np.ones(case.heads) if _weights(case) is None else np.asarray(_weights(case))
    pairs = list(zip(weights.tolist(), bases(case.U()), strict=True))
    return lambda P: -sum(w * paper.depict_cross_rate(P, Z, [Uk], case.epsilon) for w, Uk in pairs)


def _rate_gradient_condition(case: Case, f: SubspacePCARate, x: Tensor) -> float:
    sets = zip(
        project(x, f.U).reshape(-1, *project(x, f.U).shape[-3:]),
        project(f.tokens, f.U).reshape(-1, *project(f.tokens, f.U).shape[-3:]),
        strict=True,
    )
    return max(_products_condition(q, w, float(f.beta(x))) for q, w in sets)


def _smoothness(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    f = _make_rate(exact, exact.x())
    if norm(exact.x()) ** 2 < 1e-200:
        return Measurement(evidence=False)
    w = project(f.tokens, f.U)
    sizes = torch.linalg.matrix_norm(w, 2) ** 2 * (1.0 if f.weights is None else f.weights)
    k = int(sizes.argmax())
    top = (principal_directions(w[k], 1) @ f.U[k].mT).expand(directions_of(exact), -1)
    return smoothness_measure(lambda c: f, lambda c: (f, top))(subject, variable(exact))


def _certified_layer(case: Case) -> MSCA:
    form = "softmax" if case.seed % 2 else "exact"
    return _layer(case, form, certified=True, per_head_step=case.seed % 4 > 1, step_size=case.step)


def _cost(subject: Any, case: Case) -> Measurement:
    N, C = 7 * case.tokens, case.m
    layer = MSCA(12, 3, class_tokens=C, form="softmax", basis="free")
    x = torch.randn(1, C + N, 12, generator=torch.Generator().manual_seed(case.seed))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        counted = _count(lambda: layer(x))
    claimed = subject(N, 12, C)
    return Measurement((Comparison("multiply-adds", abs(counted - claimed), 0.0),), values={"multiply-adds": counted})


def _sign(subject: Any, case: Case) -> Measurement:
    """⟨∇ rate, direction⟩ in the classes, and on small cases its derivative in fifty digits."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, U, C = exact.x(), exact.U(), _classes(exact)
    q, Z = x[:C], x[C:]
    ascent = -SubspacePCARate(U, Z, _epsilon(exact)).gradient(q)
    direction = subject(exact, project(q, U), project(Z, U), ascent)
    product = norm(ascent) * norm(direction)
    if product == 0:
        return Measurement(evidence=False)
    cosine, done = float((ascent * direction).sum()) / product, []
    condition = _products_condition(project(q, U), project(Z, U), C / (len(Z) * _epsilon(exact) ** 2))
    if q.numel() <= 8 and condition < 1e6:
        P, V = mp_array(columns(q)), mp_array(columns(direction))
        bend = 1e-3 * min(1.0, norm(q) / norm(direction))
        slope = mp_derivative(lambda t: paper.depict_cross_rate(P + t * V, columns(Z), bases(U), _epsilon(exact)), bend)
        done.append(Comparison("fifty digits", abs(slope / product - cosine), tolerance("float64", condition)))
    return Measurement(tuple(done), True, {"cosine of ∇rate and the update": cosine}, truth=cosine > -1e-9)


def _softmax_direction(case: Case, q: Tensor, w: Tensor, ascent: Tensor) -> Tensor:
    return lift(_attended(case, q, w), case.U())


def _masks(subject: Any, case: Case) -> Measurement:
    exact = reference(case)
    classes = exact.scale * exact.draw("classes", case.m, case.dim)
    got = subject(case, case.x(), classes.to(case.torch_dtype))
    parts = []
    for g, (z,) in zip(got.double().reshape(-1, *got.shape[-2:]), slices(exact.x()), strict=True):
        if float(z.norm(dim=-1).min()) == 0:
            parts.append(
                Measurement((Comparison("of zero tokens", norm(g[z.norm(dim=-1) == 0]), 0.0),), evidence=False)
            )
            continue
        want = paper.depict_masks(columns(z), columns(classes)).T
        condition = case.dim * cancellation(want.size**0.5, norm(want))
        parts.append(identity("cosines", g, want, case.dtype, condition))
        top = np.sort(want, axis=1)
        clear = (top[:, -1] - top[:, -2] > 1e-9) if case.m > 1 else np.ones(len(want), dtype=bool)
        wrong = (nearest_direction(z, classes).numpy() != want.argmax(1))[clear].sum()
        parts.append(Measurement((Comparison("nearest direction", float(wrong), 0.0),)))
    return combine(*parts)


def _decoder(case: Case, **more: Any) -> DepictDecoder:
    """A decoder with every weight drawn: bases free or orthonormal, steps of either sign, LayerNorms with any affine map."""
    decoder = DepictDecoder(case.dim, case.m, case.heads, head_dim=case.head_dim, depth=2, cross_depth=2, **more)
    with torch.no_grad():
        decoder.class_embeddings.copy_(case.draw("classes", case.m, case.dim))
        for i, layer in enumerate([*decoder.refine_layers, *decoder.cross_layers]):
            layer.step.fill_(float(case.rng(f"step {i}").uniform(0.3, 0.8)) * (1 if case.seed % 3 else -1))
        if more.get("norm"):
            for i, module in enumerate(m for m in decoder.modules() if isinstance(m, nn.LayerNorm)):
                module.weight.copy_(1 + 0.3 * case.draw(f"weight {i}", *module.weight.shape))
                module.bias.copy_(0.3 * case.draw(f"bias {i}", *module.bias.shape))
    return decoder.to(torch.float64)


def _mssa(decoder: DepictDecoder) -> list[MSSA]:
    return [layer for layer in decoder.refine_layers if isinstance(layer, MSSA)]


def _sharpened(decoder: DepictDecoder) -> None:
    for layer in _mssa(decoder):
        layer.scale *= 3


def _attention(case: Case) -> str:
    return "self" if case.seed % 2 else "cross"


def _refinement(subject: Any, case: Case) -> Measurement:
    """The refined patches of a decoder without norms against the paper's MSSA steps in a row."""
    exact, parts = reference(case), []
    form = "exact" if case.seed % 4 > 1 else "softmax"
    decoder = _decoder(exact, attention=_attention(exact), form=form, epsilon=exact.epsilon)
    with torch.no_grad():
        got, classes = subject(exact, copy.deepcopy(decoder), exact.x())
    for g, q, (z,) in zip(
        got.reshape(-1, *got.shape[-2:]), classes.reshape(-1, *classes.shape[-2:]), slices(exact.x()), strict=True
    ):
        Q = columns(decoder.class_embeddings)
        joint = exact.seed % 2
        X = np.concatenate([columns(z), Q], axis=1) if joint else columns(z)
        start, condition, longest = X, 1.0, norm(X)
        for layer in _mssa(decoder):
            U, step = bases(layer.U), layer.step.item()
            if form == "exact":
                condition += rate_condition(torch.from_numpy(X), exact.head_dim / (X.shape[1] * exact.epsilon**2))
                X = paper.crate_eq11(X, U, exact.epsilon, step)
            else:
                rows = torch.from_numpy(X.T)
                condition *= score_condition(rows, rows, layer.scale)
                X = X + step * paper.crate_eq14(X, U, layer.scale)
            longest = max(longest, norm(X))
        N = len(z)
        moved = norm(X[:, :N] - start[:, :N])
        condition *= cancellation(longest, moved) if moved else 1.0
        parts.append(identity("patches", g, X[:, :N].T, "float64", condition, moved if moved else None))
        if joint:
            parts.append(identity("classes", q, X[:, N:].T, "float64", condition))
    return combine(*parts)


def _released(subject: Any, case: Case) -> Measurement:
    """The arrangement with norms against the released decoder, classes last, as it is coded."""
    exact, parts = reference(case), []
    decoder = _decoder(exact, attention=_attention(exact), basis="free", norm=True)
    with torch.no_grad():
        got = subject(exact, copy.deepcopy(decoder), exact.x())

    def affine(module: Any) -> tuple[Array, Array]:
        return module.weight.detach().numpy(), module.bias.detach().numpy()

    def stack(layers: Any, norms: Any) -> list[Any]:
        return [(affine(n), bases(layer.U), layer.step.item()) for layer, n in zip(layers, norms, strict=True)]

    weights = {
        "classes": columns(decoder.class_embeddings),
        "refine": stack(decoder.refine_layers, decoder.refine_norms),
        "cross": stack(decoder.cross_layers, decoder.cross_norms),
        "patch_norm": affine(decoder.patch_norm),
        "class_norm": affine(decoder.class_norm),
        "mask_norm": affine(decoder.mask_norm),
    }
    for g, (z,) in zip(got.reshape(-1, *got.shape[-3:]), slices(exact.x()), strict=True):
        want = paper.depict_released(columns(z), weights, _attention(exact))
        # Each of at most six LayerNorms divides by √(var + 1e-5); the last one, of cosines, alone can lose much by it.
        parts.append(identity("logits", g.flatten(1), want, "float64", 316.0 * case.dim))
    return combine(*parts)


def _logits(case: Case, decoder: DepictDecoder, x: Tensor) -> Tensor:
    return decoder(x, (1, x.shape[-2]))


def _changed(change: Any) -> Any:
    """A wrong decoder: ``change(decoder)`` alters it in place before it runs."""

    def subject(case: Case, decoder: DepictDecoder, x: Tensor) -> Tensor:
        change(decoder)
        return _logits(case, decoder, x)

    return subject


def _queries_normed(decoder: DepictDecoder) -> None:
    for layer, norm_of_keys in zip(decoder.cross_layers, decoder.cross_norms, strict=True):
        read = layer.read
        layer.read = lambda q, z, read=read, n=norm_of_keys: read(n(q), z)  # type: ignore[assignment]


def _trace(subject: Any, case: Case) -> Measurement:
    exact, parts = reference(case), []
    decoder = _decoder(exact, attention=_attention(exact), form="exact", epsilon=exact.epsilon)
    x = exact.x()
    records, stages = subject(exact, decoder, x), decoder._stages(x)
    for record, (_, layer, patches, classes) in zip(records, stages, strict=True):
        Z, Q = columns(patches), columns(classes)
        beta = case.head_dim / (Z.shape[1] * exact.epsilon**2)
        want = float(paper.crate_eq8(Z, bases(layer.U), exact.epsilon))
        condition = rate_condition(patches, beta) * cancellation(case.dim, want)
        parts.append(identity(f"rate, {record.stage}", record.rate, want, "float64", condition))
        C = min(case.m, case.dim)
        span = np.linalg.svd(Q, full_matrices=True)[0][:, :C]
        left, sigma, _ = np.linalg.svd(Z, full_matrices=True)
        padded = np.append(sigma, np.zeros(case.dim + 1))
        gap = (padded[C - 1] - padded[C]) / max(sigma[0], 1e-300) if case.dim > C else 1.0
        aligned = float((np.linalg.svd(span.T @ left[:, :C], compute_uv=False) ** 2).mean())
        spread = np.linalg.cond(Q) if case.m <= case.dim else 1.0
        if gap > 1e-3 and spread < 1e4:  # the principal subspace, and the classes' span, are defined
            parts.append(identity("alignment", record.alignment, aligned, "float64", (spread / gap) ** 2 / aligned))
            inside = norm(span.T @ Z) ** 2 / norm(Z) ** 2
            parts.append(identity("captured", record.captured, inside, "float64", spread**2 / inside))
    return combine(*parts)


def _labelled(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, their labels, the classes' directions and the bases: class k along the first axis of subspace k, in noise."""
    K, p = max(2, case.heads), max(2, case.head_dim)
    rng = case.rng("labelled")
    U = torch.from_numpy(np.linalg.qr(rng.standard_normal((K * p, K * p)))[0].reshape(K * p, K, p).transpose(1, 0, 2))
    labels = torch.from_numpy(rng.permutation(np.arange(3 * case.tokens * K) % K))
    size = torch.from_numpy(1 + 0.3 * rng.standard_normal(len(labels)))
    noise = torch.from_numpy(rng.standard_normal((len(labels), K * p))) * (0.3 + 0.3 * case.sharpness / 10)
    return size[:, None] * U[labels, :, 0] + noise, labels, U[:, :, 0].contiguous(), U.contiguous()


def _ideal(subject: Any, case: Case) -> Measurement:
    """Alignment, accuracy and share of rate in the principal subspace, before and after eight exact steps on R_c.

    Share: the part of all rate that lies in the span of the supervision. "too far" are eight steps three times as long.
    """
    tokens, labels, supervision, U = _labelled(case)
    epsilon, C = 0.5, len(supervision)
    beta = U.shape[-1] / (len(tokens) * epsilon**2)
    refined = subject(tokens, U, epsilon, 0.3 / beta)
    want = columns(tokens)
    for _ in range(8):
        want = paper.crate_eq11(want, bases(U), epsilon, 0.3 / beta)
    condition = 8 * rate_condition(tokens, beta)
    moved = norm(want - columns(tokens))
    done = identity("eight steps on R_c", refined.mT, want, "float64", condition, moved)
    values = {}
    too_far = _eight_steps(tokens, U, epsilon, 1 / beta)
    for when, z in (("before", tokens), ("after", refined), ("too far", too_far)):
        rate = float(CodingRate(epsilon).value(z))
        share = -float(PCARate(z, epsilon, dim=z.shape[-1]).value(supervision)) / rate if rate > 1e-6 else np.nan
        accuracy = float((nearest_direction(z, supervision) == labels).double().mean())
        values[f"alignment, {when}"] = float(subspace_alignment(principal_directions(z, C), supervision))
        values[f"accuracy of the nearest direction, {when}"] = accuracy
        values[f"share of rate along the supervision, {when}"] = share
    values["alignment gained"] = values["alignment, after"] - values["alignment, before"]
    return dataclasses.replace(done, values=values)


def _eight_steps(tokens: Tensor, U: Tensor, epsilon: float, kappa: float, **more: Any) -> Tensor:
    layer = MSSA(U.shape[1], len(U), U=U, epsilon=epsilon, step_size=kappa, **more)
    with torch.no_grad():
        for _ in range(8):
            tokens = layer(tokens)
    return tokens


CLAIMS = (
    Claim(
        id="depict.rate.gradient",
        statement="The closed-form gradient of the rate of PCA in several subspaces is its gradient.",
        equation=r"$\nabla_Q = -\sum_k \beta\, U_k W_k W_k^\top Q_k (I + \beta Q_k^\top W_k W_k^\top Q_k)^{-1}, \quad"
        r" \beta = \frac{C}{N\epsilon^2}$",
        source=f"{DEPICT}, section 3; differentiated here",
        kind="exact",
        domain=cases(),
        subject=gradient,
        measure=posed_gradient(_make_rate, _naive_rate, _rate_gradient_condition, bend_of_rate),
        mutants=of_gradient(
            epsilon_for_its_square=lambda case, f, x: dataclasses.replace(f, epsilon=f.epsilon**0.5).gradient(x),
            p_for_C=lambda case, f, x: dataclasses.replace(f, dim=x.shape[-2] + f.U.shape[-1]).gradient(x),
            N_forgotten=lambda case, f, x: dataclasses.replace(
                f, epsilon=f.epsilon * (1 + f.tokens.shape[-2]) ** -0.5
            ).gradient(x),
            another_heads_basis_at_the_end=lambda case, f, x: (
                lift(project(f.gradient(x), f.U), f.U.roll(1, 0)) if case.heads > 1 else 0 * x
            ),
            one_subspace=lambda case, f, x: (
                PCARate(f.tokens, f.epsilon).gradient(x) if case.heads > 1 or case.extra else 0 * x
            ),
        ),
        structured=TWO,
        code=("objectives.class_tokens:SubspacePCARate",),
        frozen="patches (an argument)",
    ),
    Claim(
        id="depict.rate.smoothness",
        statement="The rate of PCA in several subspaces is β max‖W_k‖²-smooth, and no smoother.",
        equation=r"$L = \frac{C}{N\epsilon^2}\,\max_k \Vert U_k^\top Z\Vert_2^2$",
        source="derived: the Hessian at Q = 0 is −β W_k W_kᵀ on each head",
        kind="bound",
        domain=cases(batches=(0,)),
        subject=lipschitz,
        measure=_smoothness,
        mutants=named(
            halved=lambda case, f, x: 0.5 * f.lipschitz(x),
            doubled=lambda case, f, x: 2 * f.lipschitz(x),
            norm_for_its_square=lambda case, f, x: (
                f.lipschitz(x) / torch.linalg.matrix_norm(project(f.tokens, f.U), 2).max().clamp(min=1e-300)
            ),
            whole_tokens=lambda case, f, x: f.beta(x) * torch.linalg.matrix_norm(f.tokens, 2) ** 2,
            epsilon_for_its_square=lambda case, f, x: f.lipschitz(x) * case.epsilon,
        ),
        structured=FLAT,
        code=("objectives.class_tokens:SubspacePCARate",),
        frozen="patches",
    ),
    Claim(
        id="depict.step.exact",
        statement="MSCA's exact form is a gradient step, in the class embeddings, on the rate of PCA of the patches.",
        equation=r"$Q + \kappa\sum_k \beta\, U_k W_k W_k^\top Q_k (I + \beta Q_k^\top W_k W_k^\top Q_k)^{-1},"
        r" \quad Q_k = U_k^\top Q,\; W_k = U_k^\top Z$",
        source=f"{DEPICT}, section 3",
        kind="exact",
        domain=cases(tokens=(2, 12)),
        subject=forward,
        measure=step_measure(
            _exact,
            _joint(
                lambda case, layer, Q, Z: paper.depict_cross_step(
                    Q, Z, bases(case.U()), _epsilon(case), layer.step.item()
                )
            ),
            _frozen(lambda case, Q, Z: -paper.depict_cross_rate(Q, Z, bases(case.U()), _epsilon(case))),
            _exact_condition,
            _rate_bend,
        ),
        mutants=tuple(
            mutant
            for mutant in of_step(
                epsilon_for_its_square=_rebuilt(lambda case, f, q, w: _rate_of(case, q, w, _epsilon(case))),
                N_not_counted=_rebuilt(lambda case, f, q, w: _rate_of(case, q, w, 1 + w.shape[-2])),
                p_for_C=_rebuilt(lambda case, f, q, w: _rate_of(case, q, w, (1 + q.shape[-1]) / q.shape[-2])),
                inverse_dropped=_rebuilt(
                    lambda case, f, q, w: q.shape[-2] / (w.shape[-2] * _epsilon(case) ** 2) * (q @ w.mT) @ w
                ),
                softmax_form=_rebuilt(lambda case, f, q, w: _attended(case, q, w)),
                classes_among_the_patches=_rebuilt(
                    lambda case, f, q, w: _rate_of(case, q, torch.cat([q, w], -2), 1 + q.shape[-2] / w.shape[-2])
                ),
                first_class_token_not_updated=lambda case, layer, x: torch.cat(
                    [x[..., :1, :], layer(x)[..., 1:, :]], -2
                ),
            )
            if mutant.name != "last token not updated"  # a patch: it never is
        ),
        structured=TWO,
        code=("unrolling.layers.depict:MSCA",),
        frozen="patches (they pass through)",
    ),
    Claim(
        id="depict.step.softmax",
        statement="MSCA's softmax form is a gradient step, in the class embeddings, on the cross-attention energy.",
        equation=r"$Q + \kappa\sum_k U_k W_k\, \mathrm{softmax}(s W_k^\top Q_k) = Q - \kappa\nabla_Q E, \quad"
        r" E = -\sum_k\sum_c \mathrm{lse}_s(W_k^\top q_{k,c})$",
        source=f"{DEPICT}, section 3, read as a Hopfield energy",
        kind="exact",
        domain=cases(tokens=(2, 12)),
        subject=forward,
        measure=step_measure(
            _softmax,
            _joint(
                lambda case, layer, Q, Z: (
                    Q + layer.step.item() * paper.depict_cross_attention(Q, Z, bases(case.U()), case.softmax_scale)
                )
            ),
            _frozen(lambda case, Q, Z: paper.depict_cross_energy(Q, Z, bases(case.U()), case.softmax_scale)),
            _softmax_condition,
            _energy_bend,
        ),
        mutants=tuple(
            mutant
            for mutant in of_step(
                softmax_over_the_wrong_axis=_rebuilt(lambda case, f, q, w: _attended(case, q, w, axis=-2)),
                scale_doubled=_rebuilt(lambda case, f, q, w: _attended(case, q, w, scale=2.0)),
                another_heads_queries=_rebuilt(
                    lambda case, f, q, w: _attended(case, q.roll(1, -3), w) if case.heads > 1 else 0 * q
                ),
                classes_among_the_keys=_rebuilt(lambda case, f, q, w: _attended(case, q, torch.cat([q, w], -2))),
                self_attention=_patches_moved,
                values_are_the_queries=_rebuilt(lambda case, f, q, w: q),
            )
            if mutant.name != "last token not updated"
        ),
        structured=TWO,
        code=("unrolling.layers.depict:MSCA",),
        frozen="patches (they pass through)",
    ),
    Claim(
        id="depict.certified",
        statement="A certified MSCA keeps κL inside (0, 2) in both forms, and lowers its objective by what that promises.",
        equation=r"$\kappa = \frac{2\sigma(\theta)}{L}, \quad L = \beta\Vert W_k\Vert_2^2\;\mathrm{or}\;"
        r" s\max_j\Vert w_{k,j}\Vert^2$",
        source="descent lemma with the constants of depict.rate.smoothness and softmax_energy.smoothness",
        kind="inequality",
        domain=cases(tokens=(2, 12), batches=(0,)),
        subject=certified,
        measure=certified_measure(_certified_layer),
        mutants=named(
            twice_as_long=stretched(2.0),
            opposite_sign=stretched(-1.0),
            two_percent_longer=stretched(1.02),
            no_op=lambda case, layer, x: (certified(case, layer, x)[0], x),
            all_NaN=lambda case, layer, x: (certified(case, layer, x)[0], x * torch.nan),
        ),
        structured=FLAT,
        code=("unrolling.layers.depict:MSCA",),
        frozen="patches",
    ),
    Claim(
        id="depict.cost",
        statement="MSCA's softmax form with N patches, C classes and K p = d takes (N + 2C) d² + 2 N C d multiply-adds.",
        equation=r"$(N + 2C)\, d^2 + 2 N C d$",
        source="counted on the running code",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",), scales=(1.0,)),
        subject=lambda N, d, C: (N + 2 * C) * d * d + 2 * N * C * d,
        measure=_cost,
        mutants=named(
            self_attention=lambda N, d, C: 2 * (N + C) * d * d + 2 * (N + C) ** 2 * d,
            keys_and_values_apart=lambda N, d, C: (2 * N + 2 * C) * d * d + 2 * N * C * d,
            values_forgotten=lambda N, d, C: (N + 2 * C) * d * d + N * C * d,
            classes_forgotten=lambda N, d, C: N * d * d + 2 * N * C * d,
        ),
        structured=(Case(), Case(tokens=1, m=1)),
        code=("unrolling.layers.depict:MSCA",),
        real=False,
    ),
    Claim(
        id="depict.sign",
        statement="The softmax form never lowers the rate of PCA to first order: its update is an ascent direction.",
        equation=r"$\langle \sum_k U_k W_k\, \mathrm{softmax}(s W_k^\top Q_k),\; \nabla_Q\, \mathrm{rate} \rangle \geq 0$",
        source=f"natural to believe after {DEPICT}, section 3",
        kind="refuted",
        domain=cases(tokens=(2, 12), batches=(0,)),
        subject=_softmax_direction,
        measure=_sign,
        mutants=named(
            gradient_of_the_rate=lambda case, q, w, ascent: ascent,
            without_softmax=lambda case, q, w, ascent: lift((q @ w.mT) @ w, case.U()),
            classes_enlarged=lambda case, q, w, ascent: lift(q, case.U()),
        ),
        structured=tuple(Case(tokens=2, heads=1, head_dim=d, seed=seed) for d in (1, 2) for seed in range(4)),
        code=("unrolling.layers.depict:MSCA",),
        correction="The rate is even in every direction and the softmax is not: with one patch z the update is z itself, and"
        " lowers the rate wherever q·z < 0. Without the softmax, (Q Zᵀ) Z, it always ascends.",
        real=False,
    ),
    Claim(
        id="depict.masks",
        statement="The masks are the cosines of patches and class embeddings, and the class of a patch is its nearest direction.",
        equation=r"$M_{c,n} = \frac{q_c^\top z_n}{\Vert q_c\Vert\,\Vert z_n\Vert}$",
        source=f"{DEPICT}, section 3 (dot product); released decoder",
        kind="identity",
        domain=cases(),
        subject=lambda case, patches, classes: DepictDecoder.masks(patches, classes),
        measure=_masks,
        mutants=named(
            not_normalised=lambda case, z, q: 1.5 * z @ q.mT,
            patches_not_normalised=lambda case, z, q: 1.5 * z @ nn.functional.normalize(q, dim=-1).mT,
            normalised_over_tokens=lambda case, z, q: (
                nn.functional.normalize(z, dim=-2) @ nn.functional.normalize(q, dim=-1).mT * (case.tokens + 0.5)
            ),
            softmax_over_classes=lambda case, z, q: torch.softmax(DepictDecoder.masks(z, q), -1),
            sign_flipped=lambda case, z, q: -DepictDecoder.masks(z, q),
            all_NaN=lambda case, z, q: DepictDecoder.masks(z, q) * torch.nan,
        ),
        structured=STRUCTURED,
        code=("unrolling.layers.depict:DepictDecoder", "objectives.alignment:nearest_direction"),
    ),
    Claim(
        id="depict.refinement",
        statement="Without norms the decoder's self-attention is MSSA, layer by layer: on the patches (cross form), or on"
        " classes and patches together (self form).",
        equation=r"$Z^{l+1} = Z^l - \kappa_l \nabla R_c(Z^l\,|\,U^l)\;\;\mathrm{or}\;\; Z^l + \kappa_l \mathrm{MSSA}(Z^l)$",
        source=f"{DEPICT}, section 3; Yu et al., CRATE, arXiv 2306.01129, eq. 11 and 14",
        kind="identity",
        domain=cases(scales=(1.0, 0.1), kinds=("gaussian", "repeated", "rank_one", "near_parallel", "subspaces")),
        subject=lambda case, decoder, x: decoder.refine(x),
        measure=_refinement,
        mutants=named(
            no_op=lambda case, decoder, x: (x, decoder.class_embeddings.expand(*x.shape[:-2], -1, -1)),
            one_layer_only=lambda case, decoder, x: decoder._stages(x)[1][2:],
            layers_in_the_wrong_order=lambda case, decoder, x: _reversed(decoder).refine(x),
            steps_twice_as_long=lambda case, decoder, x: _doubled(decoder).refine(x),
            residual_dropped=lambda case, decoder, x: (decoder.refine(x)[0] - x, decoder.refine(x)[1]),
            all_NaN=lambda case, decoder, x: tuple(t * torch.nan for t in decoder.refine(x)),
        ),
        structured=tuple(
            dataclasses.replace(Case(), seed=seed, tokens=n, batch=b) for seed in range(4) for n, b in ((5, 0), (1, 2))
        ),
        code=("unrolling.layers.depict:DepictDecoder",),
        real=False,
    ),
    Claim(
        id="depict.released",
        statement="With its norms and free bases the decoder is the released one, both forms, number for number.",
        equation=r"$M = \mathrm{LN}_C\,\cos(Z^L, Q^L), \quad Q^{l+1} = Q^l + \kappa_l\, \mathrm{MSCA}(Q^l, \mathrm{LN}(Z^L))$",
        source="released code of DEPICT: DEPICT-SA and DEPICT-CA",
        kind="identity",
        domain=cases(scales=(1.0, 3.0), kinds=("gaussian", "shifted", "repeated", "one_far", "subspaces")),
        subject=_logits,
        measure=_released,
        mutants=named(
            queries_normed_too=_changed(_queries_normed),
            keys_normed_once=_changed(
                lambda d: setattr(d, "cross_norms", nn.ModuleList([nn.Identity()] * len(d.cross_norms)))
            ),
            no_norm_before_attention=_changed(
                lambda d: setattr(d, "refine_norms", nn.ModuleList([nn.Identity()] * len(d.refine_norms)))
            ),
            masks_not_normed=_changed(lambda d: setattr(d, "mask_norm", nn.Identity())),
            steps_forgotten=_changed(lambda d: [layer.step.data.fill_(1.0) for layer in _mssa(d)]),
            scale_forgotten=_changed(_sharpened),
            grid_transposed=lambda case, decoder, x: _logits(case, decoder, x.flip(-2)),
            all_NaN=lambda case, decoder, x: _logits(case, decoder, x) * torch.nan,
        ),
        structured=tuple(
            Case(tokens=n, heads=2, head_dim=3, m=m, seed=seed, batch=b)
            for seed in (0, 1)
            for n, m, b in ((5, 4, 0), (2, 2, 2))
        ),
        code=("unrolling.layers.depict:DepictDecoder",),
        real=False,
    ),
    Claim(
        id="depict.trace",
        statement="What the decoder reports of its stages is what it says: the patches' rate, the alignment of the classes with"
        " the principal subspace, and the share of the patches that they capture.",
        equation=r"$R_c(Z^l\,|\,U^l), \quad \frac{1}{C}\sum_i\cos^2\theta_i, \quad \frac{\Vert \Pi_Q Z\Vert^2}{\Vert Z\Vert^2}$",
        source=f"{DEPICT}, section 3",
        kind="identity",
        domain=cases(scales=(1.0, 0.1), kinds=("gaussian", "shifted", "subspaces"), batches=(0,)),
        subject=lambda case, decoder, x: decoder.trace(x),
        measure=_trace,
        mutants=named(
            rates_doubled=lambda case, decoder, x: [r._replace(rate=2 * r.rate) for r in decoder.trace(x)],
            cosines_for_their_squares=lambda case, decoder, x: [
                r._replace(alignment=r.alignment**0.5) for r in decoder.trace(x)
            ],
            captured_for_aligned=lambda case, decoder, x: [
                r._replace(alignment=r.captured, captured=r.alignment) for r in decoder.trace(x)
            ],
            input_only=lambda case, decoder, x: [decoder.trace(x)[0]] * len(decoder.trace(x)),
        ),
        structured=tuple(Case(tokens=9, heads=2, head_dim=3, m=3, seed=seed) for seed in range(2)),
        code=("unrolling.layers.depict:DepictRecord",),
        real=False,
    ),
    Claim(
        id="depict.ideal_subspace",
        statement="On labelled tokens of noisy subspaces, a few short exact steps on R_c before PCA turn the principal subspace"
        " to the supervision and concentrate the rate there; they hardly change which direction is nearest, and many long"
        " steps undo it: alignment, share of rate and accuracy are measured before, after, and too far.",
        equation=r"$Z \leftarrow Z - \frac{0.3}{\beta}\nabla R_c(Z\,|\,U), \quad 8\;\mathrm{times}$",
        source=f"{DEPICT}, section 3 (ideal principal subspace)",
        kind="measured",
        domain=cases(tokens=(4, 12), batches=(0,), kinds=("gaussian",), scales=(1.0,), epsilons=(0.5,)),
        subject=_eight_steps,
        measure=_ideal,
        mutants=named(
            no_op=lambda tokens, U, epsilon, kappa: tokens,
            ascent=lambda tokens, U, epsilon, kappa: _eight_steps(tokens, U, epsilon, -kappa),
            half_steps=lambda tokens, U, epsilon, kappa: _eight_steps(tokens, U, epsilon, 0.5 * kappa),
            softmax_form=lambda tokens, U, epsilon, kappa: _eight_steps(tokens, U, epsilon, -0.1, form="softmax"),
            other_bases=lambda tokens, U, epsilon, kappa: _eight_steps(tokens, U.flip(1), epsilon, kappa),
        ),
        structured=LABELLED,
        code=("unrolling.layers.mssa:MSSA", "objectives.alignment:subspace_alignment"),
        real=False,
    ),
)


def _reversed(decoder: DepictDecoder) -> DepictDecoder:
    decoder.refine_layers = nn.ModuleList(reversed(list(decoder.refine_layers)))
    return decoder


def _doubled(decoder: DepictDecoder) -> DepictDecoder:
    for layer in _mssa(decoder):
        layer.step.data.mul_(2.0)
    return decoder
