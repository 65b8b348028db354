"""Claims on the Energy Transformer's block: the mirror step it takes, and why its energy falls."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from objectives import lift
from unrolling import EnergyTransformer, GradientStep

from .. import paper
from ..claim import Claim, Comparison, Measurement
from ..measures import columns, identity, inequality, norm, reference, step_measure
from ..mutants import forward, named, of_step
from ..oracles import mp_array, mp_derivative, richardson_derivative
from ..strategies import STRUCTURED, Case, cases
from ..tolerance import MEANINGFUL, tolerance
from .coding_rate import combine
from .hopfield import attention_bend, attention_terms, memories_of, two_matrices

__all__ = ["CLAIMS"]

ENERGY = "Hoover et al., Energy Transformer, arXiv 2302.07253"
SINGLE = tuple(dataclasses.replace(case, batch=0) for case in STRUCTURED)
SEEDED = tuple(dataclasses.replace(case, seed=number % 6) for number, case in enumerate(STRUCTURED))


def _block(case: Case, normalised: bool, certified: bool = False) -> Any:
    """A block whose activation is relu for even seeds, softmax for odd ones, and a gain that is not 1."""
    layer: Any = EnergyTransformer(
        case.dim,
        case.heads,
        case.head_dim,
        memories=case.m,
        activation="softmax" if case.seed % 2 else "relu",
        normalised=normalised,
        exclude_self=case.seed % 3 < 2,
        scale=case.head_dim**-0.5 if normalised else case.softmax_scale,
        memory_scale=case.dim**-0.5 / (1.0 if normalised else max(1.0, case.scale)),
        step_size=case.step,
        certified=certified,
    ).to(case.torch_dtype)
    with torch.no_grad():
        for parameter, matrix in zip((layer.W_Q, layer.W_K), two_matrices(case), strict=True):
            parameter.copy_(matrix.transpose(0, 1).flatten(-2))
        layer.memories.copy_(memories_of(case))
        share = torch.tensor(case.step / 2, dtype=torch.float64)
        layer.step.copy_(torch.log(share / (1 - share)) if certified else 2 * share)
        if layer.norm is not None:
            layer.norm.log_gain.fill_(0.4)
            layer.norm.bias.copy_(0.3 * case.draw("norm's bias", case.dim))
    return layer


def _published(case: Case) -> Any:
    return _block(case, normalised=True)


def _plain(case: Case) -> Any:
    return _block(case, normalised=False)


def _norm_of(layer: Any) -> tuple[float, Any, float]:
    return float(layer.norm.gain.detach()), layer.norm.bias.detach().double().numpy(), layer.norm.eps


def _naive_norm(layer: Any, Z: Any) -> Any:
    if layer.norm is None:
        return Z
    gain, bias, eps = _norm_of(layer)
    return paper.energy_norm(Z, gain, bias, eps)


def _naive_energy(layer: Any) -> Any:
    """E of normalised tokens in columns, from the definitions."""
    W_Q, W_K = (
        [W.detach().double().numpy()[:, h * layer.head_dim : (h + 1) * layer.head_dim] for h in range(layer.heads)]
        for W in (layer.W_Q, layer.W_K)
    )
    memories = columns(layer.memories)

    def energy(G: Any) -> Any:
        attention = paper.attention_energy(G, W_Q, W_K, layer.scale, layer.exclude_self)
        if layer.activation == "relu":
            return attention + paper.hopfield_energy(G, memories)
        return attention + paper.hopfield_softmax_energy(G, memories, layer.memory_scale)

    return energy


def _naive_step(case: Case, layer: Any, Z: Any, b: int) -> Any:
    """The update from the definitions, attention matrices token by token."""
    G = _naive_norm(layer, Z)
    force, p = np.zeros_like(G), layer.head_dim
    for h in range(layer.heads):
        W_Q, W_K = (W.detach().double().numpy()[:, h * p : (h + 1) * p] for W in (layer.W_Q, layer.W_K))
        Q, K = W_Q.T @ G, W_K.T @ G
        for c in range(G.shape[1]):
            others = [i for i in range(G.shape[1]) if not (layer.exclude_self and i == c)]
            if others:
                share = paper.softmax_columns(layer.scale * (K[:, others].T @ Q[:, [c]]))
                force[:, [c]] += W_Q @ (K[:, others] @ share)
                force[:, others] += np.outer(W_K @ Q[:, c], share[:, 0])
    memories = columns(layer.memories)
    hidden = memories.T @ G
    active = np.maximum(hidden, 0) if layer.activation == "relu" else paper.softmax_columns(layer.memory_scale * hidden)
    return Z + layer.step.item() * (force + memories @ active)


def _shifted_energy(case: Case, layer: Any, z: Tensor, b: int) -> Any:
    """The map x ↦ E(x − z + LN(z)): its gradient at z is that of E at the normalised tokens."""
    Z, energy = columns(z.reshape(-1, *z.shape[-2:])[b]), _naive_energy(layer)
    if layer.norm is None:
        return energy
    G = _naive_norm(layer, Z)
    return lambda X: energy(X - Z + G)


def _condition(case: Case, layer: Any, z: Tensor) -> float:
    """What cancels in the gradient over what is left, times what normalising makes of rounding in nearly constant tokens.

    A hidden unit of the memories is off by eps ‖ξ‖‖g‖, which goes back through the memories; a softmax of them by its
    scores' size.
    """
    with torch.no_grad():
        g = z if layer.norm is None else layer.norm(z)
        energy, memories = layer.objective_at(z), layer.memories
        largest, every = norm(torch.linalg.matrix_norm(memories, 2)), norm(memories)
        pulled = largest * every * norm(g)
        if layer.activation == "softmax":
            longest = float(memories.norm(dim=-1).max())
            sizes = 1.0 + layer.memory_scale * longest * float(g.norm(dim=-1).max())
            pulled = sizes * longest * (g.numel() / layer.dim) ** 0.5
        stretch = 1.0 if layer.norm is None else 1.0 + float((z.abs().amax(-1) / layer.norm.deviation(z)).max())
        size = norm(energy.gradient(g))
        return stretch * (1.0 + (attention_terms(energy.attention, g) + pulled) / size) if size else 1.0


def _bend(case: Case, layer: Any, z: Tensor) -> float:
    """The shorter of the attention's bend and half the way to the next kink of a relu."""
    with torch.no_grad():
        g = z if layer.norm is None else layer.norm(z)
        bend = attention_bend(case, layer.objective_at(z).attention, g)
        if layer.activation == "softmax":
            return min(bend, 0.3 / (layer.memory_scale * norm(layer.memories) + 1e-12))
        away = (g @ layer.memories.mT).abs() / layer.memories.norm(dim=-1).clamp(min=1e-300)
        return min(bend, max(0.5 * float(away.min()), 1e-3 * norm(g) / g.numel() ** 0.5, 1e-12))


def _at(point: Any) -> Any:
    """A wrong step: E's gradient taken elsewhere."""
    return lambda case, layer, x: x - layer.step * layer.objective_at(x).gradient(point(layer, x))


def _chain_rule(case: Case, layer: Any, x: Tensor) -> Tensor:
    return x - layer.step * layer.norm.product(x, layer.objective_at(x).gradient(layer.norm(x)))


def _part(name: str) -> Any:
    def subject(case: Case, layer: Any, x: Tensor) -> Tensor:
        g = x if layer.norm is None else layer.norm(x)
        return x - layer.step * getattr(layer.objective_at(x), name).gradient(g)

    return subject


def _received_dropped(case: Case, layer: Any, x: Tensor) -> Tensor:
    g = x if layer.norm is None else layer.norm(x)
    energy = layer.objective_at(x)
    f = energy.attention
    if len(x) == 1:
        return layer(x)
    q, k = (layer._per_head(g @ W) for W in (layer.W_Q, layer.W_K))
    scores = f.scale * (q @ k.mT)
    if f.exclude_self:
        scores = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool), -torch.inf)
    given = torch.softmax(scores, -1).nan_to_num() @ k
    return x + layer.step * (lift(given, f.W_Q) - energy.memory.gradient(g))


def _norm_measure(subject: Any, case: Case) -> Measurement:
    """Values against the paper's, gradient of the Lagrangian in fifty digits, the Jacobian's product and spectrum."""
    exact = reference(dataclasses.replace(case, batch=0))
    layer, narrow = _published(exact), _published(dataclasses.replace(case, batch=0))
    gain, bias, eps = _norm_of(layer)
    x = exact.x()
    with torch.no_grad():
        got, product = subject(case, narrow.norm, dataclasses.replace(case, batch=0).x(), exact.draw("v", *x.shape))
    Z = columns(x)
    want = paper.energy_norm(Z, gain, bias, eps)
    with torch.no_grad():
        deviation = layer.norm.deviation(x)
    stretch = 1.0 + float((x.abs().amax(-1) / deviation).max())
    parts = [identity("normalised tokens", got.double().mT, want, case.dtype, stretch)]
    v, rng = columns(exact.draw("v", *x.shape)), exact.rng("direction")
    J = [paper.energy_norm_jacobian(Z[:, a], gain, eps) for a in range(Z.shape[1])]
    products = np.stack([J[a] @ v[:, a] for a in range(len(J))], axis=1)
    if norm(products) > 0:
        moved = norm(v) * gain / float(deviation.min()) / norm(products)  # what cancels, over what is left
        parts.append(
            identity("Jacobian's product", product.double().mT, products, case.dtype, stretch**2 * (1 + moved))
        )
    if Z.size <= 16:
        V = rng.standard_normal(Z.shape)
        along = mp_derivative(
            lambda t: paper.energy_norm_lagrangian(mp_array(Z) + t * mp_array(V), gain, bias, eps), eps**0.5
        )
        inner = float((got.double().mT.numpy() * V).sum())
        allowed = tolerance(case.dtype, stretch) * (1 + norm(got) * norm(V) / max(abs(along), 1e-300))
        done = Comparison("gradient of the Lagrangian", abs(inner - along) / max(abs(along), 1e-300), allowed)
        parts.append(Measurement((done,), allowed <= MEANINGFUL))
    for a, M in enumerate(J):
        sigma, D = float(deviation[a]), len(M)
        spectrum = np.sort([gain / sigma] * (D - 2) + [gain * eps / sigma**3, 0.0]) if D > 1 else np.zeros(1)
        off = norm(np.linalg.eigvalsh(0.5 * (M + M.T)) - spectrum) * sigma / gain
        parts.append(
            Measurement((Comparison("eigenvalues 0, γε/σ³, γ/σ", off, tolerance("float64", stretch**2 * D)),), False)
        )
        if a == 7:
            break
    return combine(*parts)


def _normalise(case: Case, norm_: Any, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return norm_(x), norm_.product(x.double(), v)


def _population_dropped(case: Case, norm_: Any, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    D = x.shape[-1]
    sigma = (x.var(-1, correction=0) * D / max(1, D - 1) + 10 * norm_.eps).sqrt()[..., None]
    return norm_.gain * (x - x.mean(-1, keepdim=True)) / sigma + norm_.bias, norm_.product(x.double(), v)


def _rate(subject: Any, case: Case) -> Measurement:
    exact = reference(dataclasses.replace(case, batch=0))
    layer, x = _published(exact), exact.x()
    with torch.no_grad():
        force = -layer.objective_at(x).gradient(layer.norm(x))
        claimed = float(subject(exact, layer.norm, x, force))
        deviation = float(layer.norm.deviation(x).min())
    size = norm(force)
    if size == 0:
        return Measurement(evidence=False)
    energy, Z, V = _naive_energy(layer), columns(x), columns(force) / size
    bend = 0.3 * min(_bend(exact, layer, x) / float(layer.norm.gain.detach()), 1.0) * deviation
    slope, error = richardson_derivative(lambda t: float(energy(_naive_norm(layer, Z + t * V))), bend)
    slope, error = slope * size, error * size
    scale = float(layer.norm.gain.detach()) * size**2 / deviation
    allowed = max(tolerance("float64", _condition(exact, layer, x)), 8 * error / scale)
    done = [Comparison("dE/dt along the update", abs(claimed - slope) / scale, allowed)]
    done.append(Comparison("dE/dt ≤ 0", max(0.0, claimed) / scale, 1e-12))
    told = allowed <= MEANINGFUL and abs(claimed) > 10 * allowed * scale
    return Measurement(tuple(done), told, {"−dE/dt over its bound": -claimed / scale})


def _minus_form(case: Case, norm_: Any, x: Tensor, force: Tensor) -> Tensor:
    """−Σ_i (γ/σ_i) (‖f_i‖² − (1ᵀf_i)²/D − (c_iᵀf_i)²/(D σ_i²))."""
    return -_rate_of(norm_, x, force)


def _rate_of(norm_: Any, x: Tensor, force: Tensor, mean: float = 1.0, along: float = 1.0) -> Tensor:
    D, sigma = x.shape[-1], norm_.deviation(x)
    centred = x - x.mean(-1, keepdim=True)
    whole = force.square().sum(-1) - mean * force.sum(-1).square() / D
    return (norm_.gain / sigma * (whole - along * (centred * force).sum(-1).square() / (D * sigma**2))).sum()


def _descent(subject: Any, case: Case) -> Measurement:
    """The promise, E(g) − E(g⁺) ≥ Σ_i ((σ_i − κ‖∇_i‖/√D)/(γκ) − M/2) ‖g_i⁺ − g_i‖² ≥ 0, on the naive energy."""
    exact = reference(dataclasses.replace(case, batch=0))
    layer, x = _block(exact, normalised=True, certified=True), exact.x()
    with torch.no_grad():
        after, kappa = subject(exact, layer, x)
        g, g_after = layer.norm(x), layer.norm(after)
        gradient = layer.objective_at(x).gradient(g)
        a, b = (float(torch.linalg.matrix_norm(W, 2)) for W in (layer.W_Q, layer.W_K))
        limit = float(layer.bounds_at(x))
        sigma = layer.norm.deviation(x) - kappa * gradient.norm(dim=-1) / exact.dim**0.5
        share = sigma / (layer.norm.gain * kappa) - len(x) ** 0.5 * a * b
        promised = float((share * (g_after - g).square().sum(-1)).sum())
    if norm(gradient) == 0 or norm(g_after - g) == 0:
        return Measurement(evidence=False)
    energy = _naive_energy(layer)
    start, end = (float(energy(_naive_norm(layer, columns(z)))) for z in (x, after))
    scale = norm(gradient) * norm(g_after - g)
    rounding = (1.0 + (abs(start) + abs(end) + norm(gradient) * norm(g)) / scale) * (1 + norm(x) / float(sigma.min()))
    return combine(
        Measurement((Comparison("κL within (0, 2)", abs(float(kappa) * limit / exact.step - 1), 1e-9),)),
        inequality("promised decrease", promised, start - end, scale, "float64", rounding),
        inequality("a promise", 0.0, promised, scale, "float64", rounding),
    )


def _certified(case: Case, layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x), layer.step_size_at(x)


def _vector_gain(subject: Any, case: Case) -> Measurement:
    """One memory, chosen to be pulled uphill by a gain for every feature if that can be."""
    exact = reference(dataclasses.replace(case, batch=0))
    x, D = exact.x()[:1], exact.dim
    gains = subject(exact)
    Z, gain_of = columns(x)[:, 0], gains.numpy()
    J = gain_of[:, None] * paper.energy_norm_jacobian(Z, 1.0, 1e-5)
    _, vectors = np.linalg.eigh(0.5 * (J + J.T))
    g = gains * layer_norm(x, (D,), eps=1e-5)[0]
    memory = torch.from_numpy(vectors[:, 0].copy())
    memory = memory if float(memory @ g) > 0 else -memory
    pull = float(memory @ g) * memory
    claimed = -float(pull.numpy() @ J @ pull.numpy())
    if norm(pull) == 0 or norm(J) < 1e-6:
        return Measurement(evidence=False)

    def energy(t: float) -> float:
        moved = Z + t * pull.numpy()
        normalised = gain_of * paper.energy_norm(moved[:, None], 1.0, np.zeros(D), 1e-5)[:, 0]
        return float(paper.hopfield_energy(normalised[:, None], memory.numpy()[:, None]))

    slope, error = richardson_derivative(energy, 0.03 * float(np.std(Z)) / norm(pull))
    scale = norm(J) * norm(pull) ** 2
    parts = (Comparison("dE/dt by differences", abs(slope - claimed) / scale, max(1e-7, 8 * error / scale)),)
    return Measurement(parts, True, {"dE/dt, relative": claimed / scale}, truth=claimed <= 1e-12 * scale)


def _gains(case: Case) -> Tensor:
    return torch.exp(case.draw("gains", case.dim)).double()


def _step_claim(name: str, make: Any, statement: str, equation: str, **more: Any) -> Claim:
    return Claim(
        id=f"energy_transformer.step.{name}",
        statement=statement,
        equation=equation,
        source=f"{ENERGY}, its energies and update",
        kind="exact",
        domain=cases(scales=(1.0, 0.1, 3.0)),
        subject=forward,
        measure=step_measure(make, _naive_step, _shifted_energy, _condition, _bend),
        structured=tuple(case for case in SEEDED if 0.1 <= case.scale <= 10),
        code=("unrolling.layers.energy_transformer:EnergyTransformer",),
        largest=120,
        mutants=of_step(
            attention_left_out=_part("memory"),
            memories_left_out=_part("attention"),
            attention_received_left_out=_received_dropped,
            **more,
        ),
    )


CLAIMS = (
    _step_claim(
        "normalised",
        _published,
        "The Energy Transformer's block is exactly the mirror step on its energy, LayerNorm the mirror map: the energy's"
        " gradient at the normalised tokens, taken from the tokens.",
        r"$X^+ = X - \kappa\,\nabla E(G), \quad G = \mathrm{LN}(X) = \nabla L(X)$",
        gradient_at_the_tokens=_at(lambda layer, x: x),
        with_the_norms_Jacobian=_chain_rule,
        without_the_gain=_at(lambda layer, x: layer_norm(x, (layer.dim,), eps=layer.norm.eps) + layer.norm.bias),
        gradient_step_rule=lambda case, layer, x: GradientStep()(layer.objective_at(x), x, layer.step),
    ),
    _step_claim(
        "plain",
        _plain,
        "Without the normalisation the block is the gradient step on the energy of attention plus that of the memories,"
        " nothing frozen.",
        r"$X^+ = X - \kappa\,\nabla E(X), \quad E = E^{\mathrm{ATT}} + E^{\mathrm{HN}}$",
        attention_halved=lambda case, layer, x: 0.5 * (layer(x) + _part("memory")(case, layer, x)),
        memories_doubled=lambda case, layer, x: layer(x) - layer.step * layer.objective_at(x).memory.gradient(x),
    ),
    Claim(
        id="energy_transformer.norm",
        statement="LayerNorm with one gain is the gradient of a convex function: its Jacobian is symmetric, with"
        " eigenvalues 0, γε/σ³ and γ/σ.",
        equation=r"$g = \nabla L, \quad L = D\gamma\sqrt{\frac{1}{D}\Vert x - \bar{x}1 \Vert^2 + \epsilon} + \delta^\top x$",
        source=f"{ENERGY}, its LayerNorm and Lagrangian; the spectrum is derived",
        kind="identity",
        domain=cases(),
        subject=_normalise,
        measure=_norm_measure,
        mutants=named(
            mean_kept=lambda case, n, x, v: (n(x) + n.gain * x.mean(-1, keepdim=True), n.product(x.double(), v)),
            sample_variance_and_another_epsilon=_population_dropped,
            bias_dropped=lambda case, n, x, v: (n(x) - n.bias, n.product(x.double(), v)),
            gain_squared=lambda case, n, x, v: (n.gain * (n(x) - n.bias) + n.bias, n.product(x.double(), v)),
            Jacobian_without_the_mean=lambda case, n, x, v: (n(x), n.product(x.double(), v) + v.mean(-1, keepdim=True)),
            Jacobian_without_the_deviation=lambda case, n, x, v: (
                n(x),
                n.gain / n.deviation(x)[..., None] * (v - v.mean(-1, keepdim=True)),
            ),
            all_NaN=lambda case, n, x, v: (x * torch.nan, v * torch.nan),
        ),
        structured=STRUCTURED,
        code=("unrolling.mirror:EnergyLayerNorm",),
    ),
    Claim(
        id="energy_transformer.rate",
        statement="Along the block's update the energy changes at the rate −∇Eᵀ M ∇E, M the normalisation's Jacobian, hence"
        " never upwards.",
        equation=r"$\frac{dE}{dt} = -\sum_i \frac{\gamma}{\sigma_i}(\Vert f_i \Vert^2 - \frac{(1^\top f_i)^2}{D} -"
        r" \frac{(c_i^\top f_i)^2}{D\sigma_i^2}) \leq 0, \quad f = -\nabla E(G)$",
        source=f"{ENERGY}, dE/dt ≤ 0; M in closed form",
        kind="identity",
        domain=cases(batches=(0,), scales=(1.0, 0.1, 10.0)).filter(lambda case: case.dim > 2),
        subject=_minus_form,
        measure=_rate,
        mutants=named(
            sign_flipped=lambda case, n, x, f: _rate_of(n, x, f),
            mean_term_dropped=lambda case, n, x, f: -_rate_of(n, x, f, mean=0.0),
            deviation_term_dropped=lambda case, n, x, f: -_rate_of(n, x, f, along=0.0),
            gradient_step=lambda case, n, x, f: -f.square().sum(),
            gain_squared=lambda case, n, x, f: -n.gain * _rate_of(n, x, f),
            Jacobian_squared=lambda case, n, x, f: -n.product(x, f).square().sum(),
            all_NaN=lambda case, n, x, f: f.sum() * torch.nan,
        ),
        structured=tuple(case for case in SINGLE if 0.1 <= case.scale <= 10 and case.dim > 2),
        code=("unrolling.layers.energy_transformer:EnergyTransformer", "unrolling.mirror:EnergyLayerNorm"),
        largest=120,
    ),
    Claim(
        id="energy_transformer.descent",
        statement="Steps within the certificate never raise the energy, and lower it by what mirror descent promises.",
        equation=r"$E(G) - E(G^+) \geq \sum_i (\frac{\sigma_i - \kappa\Vert \nabla E_i \Vert/\sqrt{D}}{\gamma\kappa} -"
        r" \frac{M_E}{2})\, \Vert g_i^+ - g_i \Vert^2, \quad \kappa \leq \frac{\sigma_i}{\frac{1}{2}\gamma M_E +"
        r" \Vert \nabla E_i \Vert/\sqrt{D}}$",
        source="derived: the normalisation is cocoercive along the step, and E bends upwards by M_E at most",
        kind="inequality",
        domain=cases(batches=(0,), scales=(1.0, 0.1, 10.0)).filter(lambda case: case.dim > 2),
        subject=_certified,
        measure=_descent,
        mutants=named(
            opposite_sign=lambda case, layer, x: (2 * x - layer(x), layer.step_size_at(x)),
            step_doubled=lambda case, layer, x: (2 * layer(x) - x, 2 * layer.step_size_at(x)),
            memories_reversed=lambda case, layer, x: (
                layer(x) + 2 * layer.step_size_at(x) * layer.objective_at(x).memory.gradient(layer.norm(x)),
                layer.step_size_at(x),
            ),
            a_hundredfold_step=lambda case, layer, x: (x + 100 * (layer(x) - x), layer.step_size_at(x)),
            feature_axis_reversed=lambda case, layer, x: (x + (layer(x) - x).flip(-1), layer.step_size_at(x)),
            all_NaN=lambda case, layer, x: (x * torch.nan, layer.step_size_at(x)),
        ),
        structured=tuple(case for case in SINGLE if 0.1 <= case.scale <= 10 and case.dim > 2),
        code=("unrolling.layers.energy_transformer:EnergyTransformer",),
        largest=120,
    ),
    Claim(
        id="energy_transformer.vector_gain",
        statement="With the usual LayerNorm, a gain for every feature, the block's energy never rises either.",
        equation=r"$\frac{dE}{dt} = -\nabla E^\top\, \mathrm{diag}(\gamma)\, M\, \nabla E \leq 0$ for every $\gamma > 0$",
        source=f"natural to believe; {ENERGY} takes one gain for all features",
        kind="refuted",
        domain=cases(tokens=(1, 3), batches=(0,), scales=(1.0,), kinds=("gaussian",)).filter(lambda case: case.dim > 2),
        subject=_gains,
        measure=_vector_gain,
        mutants=named(
            one_gain=lambda case: torch.full((case.dim,), 1.5, dtype=torch.float64),
            one_gain_of_its_own_for_every_case=lambda case: _gains(case).mean().expand(case.dim),
        ),
        structured=(Case(tokens=1, heads=1, head_dim=3), Case(tokens=1, heads=2, head_dim=2)),
        code=("unrolling.mirror:EnergyLayerNorm",),
        correction="diag(γ)M is symmetric and positive semidefinite for one gain only; with gains that differ it has a"
        " negative direction, and a memory along it climbs. EnergyLayerNorm therefore has one gain.",
        real=False,
    ),
)
