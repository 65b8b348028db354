"""Numbers that can be trusted: degenerate spectra, half precision, batches, threads, permutations."""

import dataclasses
import math
import os

import mpmath
import pytest
import torch
from fuzz_values import bases, draw, weights

import objectives as o
import unrolling as u

DOUBLE = torch.float64
EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float16, torch.bfloat16, DOUBLE)}

DEGENERATE = {
    "repeated singular values": lambda: torch.cat([torch.eye(6, dtype=DOUBLE), torch.eye(6, dtype=DOUBLE)]),
    "rank one": lambda: draw(8, 1) @ draw(1, 6, seed=5),
    "rank two": lambda: draw(8, 2) @ draw(2, 6, seed=5),
    "zeros": lambda: torch.zeros(8, 6, dtype=DOUBLE),
    "a zero token": lambda: torch.cat([draw(7, 6), torch.zeros(1, 6, dtype=DOUBLE)]),
    "all tokens equal": lambda: draw(1, 6).expand(8, 6).contiguous(),
    "one token": lambda: draw(1, 6),
    "fewer tokens than dimensions": lambda: draw(3, 6),
}
OBJECTIVES = {
    "CodingRate": lambda n: o.CodingRate(0.5),
    "SubspaceCodingRate": lambda n: o.SubspaceCodingRate(bases(), 0.5),
    "ChannelRate": lambda n: o.ChannelRate(bases(), 0.5),
    "RateReduction": lambda n: o.RateReduction(weights(n, 3), 0.5),
    "VariationalRate": lambda n: o.VariationalRate(bases(), weights(n, 2), 0.5),
    "SoftVariationalRate": lambda n: o.SoftVariationalRate(bases(), 1.0, 0.5),
    "RepresentativeRate": lambda n: o.RepresentativeRate(bases(), weights(2, 4, n), 0.5),
    "SoftRepresentativeRate": lambda n: o.SoftRepresentativeRate(bases(), 0.7, pooling=weights(3, n), epsilon=0.5),
    "RepresentativeNorm": lambda n: o.RepresentativeNorm(bases(), weights(2, 4, n)),
    "SelfAttentionEnergy": lambda n: o.SelfAttentionEnergy(bases(), draw(2, 5, 3), 0.7),
    "SymmetricEnergy": lambda n: o.SymmetricEnergy(bases(), 0.7),
    "AttentionEnergy": lambda n: o.AttentionEnergy(draw(2, 6, 3), draw(2, 6, 3, seed=4), 0.7, exclude_self=False),
    "CrossAttentionEnergy": lambda n: o.CrossAttentionEnergy(draw(4, 6), 0.7, quadratic=True),
    "HopfieldEnergy": lambda n: o.HopfieldEnergy(draw(4, 6)),
    "PCAVariance": lambda n: o.PCAVariance(draw(9, 6)),
    "Reconstruction": lambda n: o.Reconstruction(draw(6, 6), draw(n, 6)),
}


def pools(count=1):
    return u.SequencePool(count)


LAYERS = {
    "MSSA exact": lambda: u.MSSA(6, 2, 3, form="exact", kernel="plain"),
    "MSSA exact, fast": lambda: u.MSSA(6, 2, 3, form="exact"),
    "MSSA softmax": lambda: u.MSSA(6, 2, 3, form="softmax"),
    "CBSA exact": lambda: u.CBSA(6, 2, 3, form="exact", representatives=pools()),
    "CBSA softmax": lambda: u.CBSA(6, 2, 3, form="softmax", representatives=pools()),
    "TSSA": lambda: u.TSSA(6, 2, 3),
    "SoftmaxAttention": lambda: u.SoftmaxAttention(6, 2, 3),
    "MiTA": lambda: u.MiTA(6, 2, 3, landmarks=pools(), keys_per_expert=2),
    "AgentAttention": lambda: u.AgentAttention(6, 2, 3, agents=pools()),
    "SymmetricAttention": lambda: u.SymmetricAttention(6, 2, 3),
    "EnergyTransformer": lambda: u.EnergyTransformer(6, 2, 3, exclude_self=False),
    "AoT softmax": lambda: u.AoT(6, 2, 3, form="softmax"),
    "AoT threshold": lambda: u.AoT(6, 2, 3),
    "ISTA": lambda: u.ISTA(6),
    "OvercompleteISTA": lambda: u.OvercompleteISTA(6, 12),
}
SELECTS = ("MiTA", "AoT threshold")
"""Layers that choose keys: two precisions may choose differently, which no bound of rounding allows for."""


def made(name, dtype=DOUBLE):
    torch.manual_seed(3)
    return LAYERS[name]().to(dtype).eval()


def half_logdet(x, epsilon):
    """``½ log det(I + β xᵀx)`` with fifty digits."""
    with mpmath.workdps(50):
        z = mpmath.matrix(x.tolist())
        beta = mpmath.mpf(x.shape[-1]) / (x.shape[-2] * mpmath.mpf(epsilon) ** 2)
        return mpmath.log(mpmath.det(mpmath.eye(x.shape[-1]) + beta * (z.T * z))) / 2


def gradient_by_digits(x, epsilon):
    """``β x (I + β xᵀx)⁻¹`` with fifty digits."""
    with mpmath.workdps(50):
        z = mpmath.matrix(x.tolist())
        beta = mpmath.mpf(x.shape[-1]) / (x.shape[-2] * mpmath.mpf(epsilon) ** 2)
        found = beta * z * mpmath.inverse(mpmath.eye(x.shape[-1]) + beta * (z.T * z))
        return torch.tensor([[float(found[i, j]) for j in range(found.cols)] for i in range(found.rows)], dtype=DOUBLE)


@pytest.mark.parametrize("spectrum", DEGENERATE)
@pytest.mark.parametrize("epsilon", [0.5, 1e-4, 1e-8])
def test_the_coding_rate_of_degenerate_tokens_has_fifty_digits_behind_it(spectrum, epsilon):
    x, rate = DEGENERATE[spectrum](), o.CodingRate(epsilon)
    exact = half_logdet(x, epsilon)
    # Rounding of x moves eigenvalues by eps ‖x‖², and the logarithm by that times β over the smallest of I + β xᵀx, which is 1
    # where the rank is deficient; by QR the condition number is the root of that.
    condition = math.sqrt(1 + rate.beta(x) * float(torch.linalg.matrix_norm(x, 2)) ** 2)
    bound = 16 * x.numel() * EPS[DOUBLE] * condition
    assert float(rate.value(x)) == pytest.approx(float(exact), rel=bound, abs=bound)
    want = gradient_by_digits(x, epsilon)
    scale = math.sqrt(rate.beta(x)) / 2  # the largest that a singular value of the gradient can be
    assert float((rate.gradient(x) - want).abs().max()) <= bound * max(scale, float(want.abs().max()))


@pytest.mark.parametrize("spectrum", DEGENERATE)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_degenerate_tokens_are_finite_and_right(name, spectrum):
    x = DEGENERATE[spectrum]()
    objective = OBJECTIVES[name](len(x))
    z = x.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(objective.value(z).sum(), z)
    gradient = objective.gradient(x)
    assert torch.isfinite(reverse).all()
    assert torch.isfinite(gradient).all()
    assert float((reverse - gradient).norm()) <= 1e4 * EPS[DOUBLE] * (1 + float(gradient.norm()))


@pytest.mark.parametrize("spectrum", DEGENERATE)
@pytest.mark.parametrize("name", LAYERS)
def test_training_through_degenerate_tokens_is_finite_and_right(name, spectrum):
    """The derivative of a random functional of forward, by reverse mode, against central differences along a direction."""
    layer, x = made(name), DEGENERATE[spectrum]()
    weight, v = draw(*x.shape, seed=7), draw(*x.shape, seed=8)
    z = x.clone().requires_grad_()
    (weight * layer(z)).sum().backward()
    assert torch.isfinite(z.grad).all()
    for parameter in layer.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    if spectrum in TIES.get(name, ()):
        return  # a selection, or a rectifier at zero: there is no derivative to compare with
    h = 1e-4

    def along(t):
        with torch.no_grad():
            return float((weight * layer(x + t * v)).sum())

    two, one = (along(2 * h) - along(-2 * h)) / (4 * h), (along(h) - along(-h)) / (2 * h)
    difference, got = (4 * one - two) / 3, float((z.grad * v).sum())
    size = float(z.grad.norm() * v.norm())
    # Richardson: h⁴ of the fifth derivative, and rounding eps/h of what is differenced.
    allowed = (1e3 * h**4 + 1e2 * EPS[DOUBLE] / h) * (1 + size)
    assert abs(difference - got) <= allowed


TIES = {
    "EnergyTransformer": ("zeros", "a zero token"),
    "MiTA": ("repeated singular values", "all tokens equal", "zeros"),
    "AoT threshold": ("repeated singular values", "all tokens equal", "zeros"),
    "ISTA": ("zeros", "a zero token"),
    "OvercompleteISTA": ("zeros", "a zero token"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_call_twice_has_the_same_bits(name):
    x = draw(3, 9, 6)
    one, two = made(name), made(name)
    first, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = one(first), two(again)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(a, b)
    assert torch.equal(first.grad, again.grad)


def amplification(layer, x):
    """How much a relative error of x grows at most, sampled: the layer's own condition number at x, at least 1."""
    with torch.no_grad():
        base, h = layer(x), 1e-6
        moved = [(layer(x * (1 + h * draw(*x.shape, seed=n).sign())) - base).norm() / h for n in range(8)]
    return max(1.0, max(float(m) for m in moved) / float(base.norm()))


@pytest.mark.parametrize("name", LAYERS)
def test_a_token_set_in_a_batch_is_the_one_alone(name):
    """Alone within rounding, for torch takes other products for other shapes; bit for bit whatever stands beside it."""
    layer, x = made(name), draw(5, 9, 6)
    with torch.no_grad():
        batch = layer(x)
        for index in range(len(x)):
            alone = layer(x[index])
            bound = 8 * x[0].numel() * EPS[DOUBLE] * amplification(layer, x[index]) * float(alone.norm())
            assert float((batch[index] - alone).norm()) <= bound
        x[1:] = 100 * x[1:]  # whatever stands beside
        again = layer(x)
    assert torch.equal(again[0], batch[0])


@pytest.mark.parametrize("name", LAYERS)
def test_the_number_of_threads_moves_nothing_but_rounding(name):
    layer, x = made(name), draw(4, 300, 6)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found.append(layer(x))
    finally:
        torch.set_num_threads(before)
    bound = 8 * math.sqrt(x[0].numel()) * EPS[DOUBLE] * amplification(layer, x) * float(found[0].norm())
    assert float((found[0] - found[1]).norm()) <= bound


@pytest.mark.parametrize("name", LAYERS)
def test_permuted_tokens_give_permuted_tokens(name):
    """One landmark, agent or representative pooled of all tokens does not see their order; two would."""
    layer, x = made(name), draw(9, 6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        straight, permuted = layer(x), layer(x[order])
    bound = 8 * x.numel() * EPS[DOUBLE] * amplification(layer, x) * float(straight.norm())
    assert float((straight[order] - permuted).norm()) <= bound


@pytest.mark.parametrize("name", ["MSSA exact", "MSSA exact, fast", "CBSA exact"])
@pytest.mark.parametrize("size", [1.0, 1e2])
def test_exact_layers_keep_tokens_of_rank_one_in_single_precision(name, size):
    """To rounding of the tokens. From β‖x‖² of some 1/eps, 1e3 here, torch finds the system singular: see fuzz_public.KNOWN."""
    x = (size * DEGENERATE["rank one"]()).float()
    layer, reference = made(name, torch.float32), made(name, torch.float32).double()
    with torch.no_grad():
        error = (layer(x).double() - reference(x.double())).norm() / x.double().norm()
    assert float(error) <= STAGES * EPS[torch.float32] * math.sqrt(LONGEST)


def test_pooling_in_order_is_seen_by_the_order():
    layer = u.CBSA(6, 2, 3, representatives=u.SequencePool(3)).double()
    x = draw(9, 6)
    with torch.no_grad():
        difference = (layer(x).flip(0) - layer(x[torch.tensor([8, 2, 4, 6, 0, 1, 3, 5, 7])])).norm()
        assert difference > 1e-3 * layer(x).norm()


def one_sum(memberships):
    """Memberships in 64ths: their rows sum to 1 in every precision."""
    rounded = (64 * memberships).round()
    return torch.cat([64 - rounded[..., 1:].sum(-1, keepdim=True), rounded[..., 1:]], -1) / 64


LONGEST, STAGES = 12, 4
"""Products summed in the longest sum of these sizes (the atoms of OvercompleteISTA), and the roundings that follow one another:
into the subspaces, scores or factors, the weighted sum, and back."""


def precisions():
    """Rows (what, dtype, relative error against float64, bound) of layers' forward passes and objectives' gradients.

    x and the weights are rounded first, and their doubles take the reference pass, so that what is charted is the computation
    alone. The bound is eps · √LONGEST · STAGES · condition, the condition sampled by moving x by relative rounding.
    """
    rows = []
    for name in LAYERS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            layer = made(name, dtype)
            reference = made(name, dtype).to(DOUBLE)
            x = draw(9, 6).to(dtype)
            with torch.no_grad():
                want, got = reference(x.double()), layer(x).double()
            error = float((got - want).norm() / want.norm())
            rows.append(
                (name, dtype, error, STAGES * EPS[dtype] * math.sqrt(LONGEST) * amplification(reference, x.double()))
            )
    for name, make in OBJECTIVES.items():
        x = draw(9, 6).float()
        objective = make(9)
        cast = {
            field: value.float()
            for field, value in vars(objective).items()
            if isinstance(value, torch.Tensor) and value.dtype == DOUBLE
        }
        loose = ("orthonormal_tolerance", "membership_tolerance")
        cast |= {field: 1e-5 for field in loose if hasattr(objective, field)}
        cast |= {"memberships": one_sum(cast["memberships"])} if "memberships" in cast else {}
        single = dataclasses.replace(objective, **cast)
        double = dataclasses.replace(
            objective,
            **{field: value.double() if isinstance(value, torch.Tensor) else value for field, value in cast.items()},
        )
        want = double.gradient(x.double())
        error = float((single.gradient(x).double() - want).norm() / want.norm())
        bound = STAGES * EPS[torch.float32] * math.sqrt(LONGEST) * amplification(double.gradient, x.double())
        rows.append((f"∇{name}", torch.float32, error, bound))
    return rows


def test_lower_precisions_lose_what_their_rounding_explains(capsys):
    rows = precisions()
    lines = [f"{what:26} {str(dtype)[6:]:9} {error:9.1e} {bound:9.1e}" for what, dtype, error, bound in rows]
    with capsys.disabled():
        if "PRECISIONS" in os.environ:
            print("\n" + "\n".join(lines))
    bad = [line for line, (_, _, error, bound) in zip(lines, rows, strict=True) if not error <= bound]
    assert not bad, "\n".join(bad)
    assert len(rows) == 3 * len(LAYERS) + len(OBJECTIVES)
    single = {what: bound for what, dtype, _, bound in rows if dtype == torch.float32}
    halves = [(what, error) for what, dtype, error, _ in rows if dtype != torch.float32]
    assert all(error > single[what] for what, error in halves)  # the bounds tell the precisions apart
