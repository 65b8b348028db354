import copy
import itertools

import pytest
import torch

from objectives import PrefixVariationalRate, VariationalRate
from proofs_check import check_layer
from unrolling import CBSA, TSSA, Axes

D = torch.float64


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize(
    ("causal", "normalise", "certified", "per_head"), list(itertools.product((False, True), repeat=4))
)
@pytest.mark.parametrize("shape", [(9, 12), (2, 1, 12), (2, 3, 5, 12)])
def test_forward_is_the_declared_step(causal, normalise, certified, per_head, shape, device):
    layer = TSSA(
        12,
        3,
        causal=causal,
        normalise_tokens=normalise,
        certified=certified,
        per_head_step=per_head,
        step_size=0.7,
    )
    layer = layer.double().to(device)
    x = torch.randn(*shape, dtype=D, device=device)
    assert off(layer, x) < 1e-12
    if certified:
        objective = layer.objective_at(x)
        assert (layer.step_size_at(x) * objective.lipschitz(x) <= 0.7 + 1e-6).all()
        assert (objective.value(layer(x)) < objective.value(x)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_complete_bases_are_taken(causal):
    U = torch.linalg.qr(torch.randn(3, 12, 12, dtype=D)).Q
    layer = TSSA(12, 3, U=U, basis="free", causal=causal)
    assert off(layer, torch.randn(2, 9, 12, dtype=D)) < 1e-12


def test_checks_accept_the_layer():
    for causal in (False, True):
        assert check_layer(TSSA(6, 2, causal=causal), cases=24).evidence >= 12


def naive(x, U, temperature, causal, normalise=False, epsilon=0.3):
    """Token by token: (tokens, dim) to the gradient of the rate, memberships constant."""
    N, d = x.shape
    out = torch.zeros_like(x)
    W = [x @ Uk for Uk in U]
    for i in range(N):
        seen = i + 1 if causal else N
        Pi = torch.zeros(seen, len(U), dtype=D)
        for j in range(seen):
            upto = (j + 1 if causal else N) if normalise else None
            lengths = [(w[j] ** 2 / ((w[:upto] ** 2).sum(0) if normalise else 1)).sum() for w in W]
            Pi[j] = torch.softmax(temperature * torch.stack(lengths), 0)
        for k, w in enumerate(W):
            n = Pi[:, k].sum()
            s = (Pi[:, k, None] * w[:seen] ** 2).sum(0)
            out[i] += d / (seen * epsilon**2) * Pi[i, k] * (w[i] / (1 + d / (n * epsilon**2) * s)) @ U[k].mT
    return out


@pytest.mark.parametrize(("causal", "normalise"), list(itertools.product((False, True), repeat=2)))
def test_it_is_its_equation(bases, causal, normalise):
    x = torch.randn(6, 12, dtype=D)
    layer = TSSA(12, 3, U=bases, eta=1.25, epsilon=0.3, step_size=0.2, causal=causal, normalise_tokens=normalise)
    temperature = torch.full((3,), 0.4, dtype=D)
    torch.testing.assert_close(layer(x), x - 0.2 * naive(x, bases, temperature, causal, normalise))


def test_the_causal_form_loops_over_prefixes_and_never_looks_ahead(bases):
    x = torch.randn(2, 9, 12, dtype=D)
    causal, plain = TSSA(12, 3, U=bases, causal=True), TSSA(12, 3, U=bases)
    want = torch.stack([plain(x[:, :i])[:, -1] for i in range(1, 10)], 1)
    torch.testing.assert_close(causal(x), want)
    later = x.clone()
    later[:, 5:] += 1.0
    torch.testing.assert_close(causal(later)[:, :5], causal(x)[:, :5])
    assert not torch.allclose(plain(later)[:, :5], plain(x)[:, :5])


def test_constant_memberships_are_cbsas_channel_attention(bases):
    x = torch.randn(9, 12, dtype=D)
    layer = TSSA(12, 3, U=bases, eta=1e12, epsilon=0.3 * (12 / 9) ** 0.5, step_size=3.0)
    channel = CBSA(12, 3, U=bases, representatives=Axes(), epsilon=0.3, step_size=1.0)
    torch.testing.assert_close(layer.update(x), channel.update(x))


def test_memberships_are_shared_among_heads(bases):
    x = torch.randn(2, 9, 12, dtype=D)
    Pi = TSSA(12, 3, U=bases).memberships(x)
    assert Pi.shape == (2, 9, 3)
    want = torch.softmax(torch.stack([(x @ U).square().sum(-1) for U in bases], -1), -1)
    torch.testing.assert_close(Pi, want)


def test_what_it_declares_and_what_it_stands_in_for(bases):
    x = torch.randn(9, 12, dtype=D)
    plain, causal = TSSA(12, 3, U=bases), TSSA(12, 3, U=bases, causal=True)
    assert isinstance(plain.objective_at(x), VariationalRate)
    assert plain.approximates_at(x) is None
    assert isinstance(causal.objective_at(x), PrefixVariationalRate)
    assert isinstance(causal.approximates_at(x), VariationalRate)
    for objective in (plain.objective_at(x), causal.objective_at(x)):
        assert not objective.memberships.requires_grad
    assert not causal.objective_at(x).past.requires_grad


def test_a_free_output_matrix_withdraws_the_claim(bases):
    x = torch.randn(9, 12, dtype=D)
    layer = TSSA(12, 3, U=bases, tied=False, output_bias=True)
    torch.testing.assert_close(layer(x), TSSA(12, 3, U=bases)(x))
    with torch.no_grad():
        layer.output.bias[0] += 0.1
    with pytest.raises(ValueError, match="no descent is claimed"):
        layer.objective_at(x)


@pytest.mark.parametrize(("causal", "normalise"), list(itertools.product((False, True), repeat=2)))
def test_gradients_are_right_through_the_layer(bases, causal, normalise):
    layer = TSSA(12, 3, U=bases, causal=causal, normalise_tokens=normalise, per_head_step=True)
    x = torch.randn(4, 12, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7, rtol=1e-5)
    layer(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_options_freeze_step_and_temperature():
    layer = TSSA(12, 3, learnable_step=False, learnable_temperature=False)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"parametrizations.basis.original"}


@pytest.mark.parametrize("causal", [False, True])
def test_single_precision_follows_double(causal):
    layer, x = TSSA(12, 3, causal=causal), torch.randn(2, 9, 12)
    wide = copy.deepcopy(layer).double()
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=1e-4, atol=1e-4)


def test_tokens_of_no_head_stay_finite():
    """Far tokens have memberships of 0 in a head, and a head may have no members at all."""
    layer = TSSA(4, 2, 2, U=torch.eye(4).reshape(4, 2, 2).transpose(0, 1))
    x = torch.tensor([[100.0, 0.0, 0.0, 0.0], [0.0, 90.0, 0.0, 0.0]], requires_grad=True)
    for causal in (False, True):
        layer.causal = causal
        assert layer.memberships(x)[:, 1].abs().max() == 0
        out = layer(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert out.isfinite().all()
        assert gradient.isfinite().all()


def test_state_goes_round():
    first, second = TSSA(12, 3, certified=True, eta=2.0), TSSA(12, 3, certified=True)
    x = torch.randn(5, 12)
    assert not torch.allclose(first(x), second(x))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"eta": 0.0}, ValueError, "TSSA: eta must be positive and finite, but is 0.0"),
        ({"eta": "soft"}, TypeError, "eta must be a number"),
        ({"heads": 5, "head_dim": 4}, ValueError, "5 heads of 4 dimensions cannot be orthonormal in dim 12"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be positive and finite"),
        ({"certified": True, "step_size": -1.0}, ValueError, r"must lie in \(0, 2\)"),
    ],
)
def test_bad_layers_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        TSSA(12, **({"heads": 3} | arguments))


def test_bad_tokens_are_refused():
    with pytest.raises(ValueError, match="x has dim 10, but U expects dim 12"):
        TSSA(12, 3)(torch.randn(9, 10))
    with pytest.raises(TypeError, match=r"x is torch\.float64, but the layer is torch\.float32"):
        TSSA(12, 3).memberships(torch.randn(9, 12).double())


def test_it_prints_its_options():
    assert "causal, normalise_tokens" in repr(TSSA(12, 3, causal=True, normalise_tokens=True))


def test_a_unit_step_leaves_out_the_factor_and_an_offset_adds_to_the_counts(bases):
    x = torch.randn(5, 12, dtype=torch.float64)
    options = {"U": bases, "learnable_step": False, "epsilon": 0.7}
    plain = TSSA(12, 3, **options).update(x)
    torch.testing.assert_close(TSSA(12, 3, unit_step=True, **options).update(x), plain * 5 * 0.49 / 12)
    layer = TSSA(12, 3, count_offset=0.5, **options)
    Pi, want = layer.memberships(x), torch.zeros_like(x)
    for k, U in enumerate(bases):
        w = x @ U
        moments = (Pi[:, k, None] * w**2).sum(0) / (Pi[:, k].sum() + 0.5)
        want -= 12 / (5 * 0.49) * (Pi[:, k, None] * w / (1 + 12 / 0.49 * moments)) @ U.mT
    torch.testing.assert_close(layer.update(x), want)
    for name, value in (("unit_step", True), ("count_offset", 1e-8)):
        with pytest.raises(ValueError, match=f"no descent is claimed with {name}"):
            TSSA(12, 3, **{**options, name: value}).objective_at(x)


def test_a_bias_shifts_the_coordinates(bases):
    x = torch.randn(5, 12, dtype=torch.float64)
    layer = TSSA(12, 3, U=bases, coordinate_bias=True, learnable_step=False)
    plain = TSSA(12, 3, U=bases, learnable_step=False)
    assert torch.equal(layer(x), plain(x))
    shift = torch.randn(12, dtype=torch.float64)
    with torch.no_grad():
        # Orthonormal bases of all 12 dimensions: a shift of the coordinates is one of the tokens.
        layer.basis_bias.copy_(shift @ layer.basis)
    torch.testing.assert_close(layer.update(x), plain.update(x + shift))
    with pytest.raises(ValueError, match="the coordinates are shifted by a bias"):
        layer.objective_at(x)


def test_positions_have_a_bias_in_the_causal_form(bases):
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    layer = TSSA(12, 3, U=bases, causal=True, position_bias=6, eta=0.25)
    plain = TSSA(12, 3, U=bases, causal=True, eta=0.25)
    assert torch.equal(layer(x), plain(x))
    with torch.no_grad():
        layer.position_bias.normal_()
    scores = torch.stack([(x @ U).square().sum(-1) for U in bases], -1) + 4 * layer.position_bias[:, :5].mT
    torch.testing.assert_close(layer.memberships(x), torch.softmax(2.0 * scores, -1))
    with pytest.raises(ValueError, match="no descent is claimed with position_bias"):
        layer.objective_at(x)
    with pytest.raises(ValueError, match="7 tokens, but position_bias is for 6 positions"):
        layer(torch.randn(7, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match="position_bias is a bias of positions in the causal form"):
        TSSA(12, 3, position_bias=6)
    with pytest.raises(ValueError, match="certified steps are in units of 1/L, unit_step in units"):
        TSSA(12, 3, certified=True, unit_step=True)


def test_dropout_is_of_the_shrinkage_channel_by_channel(bases):
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    layer = TSSA(12, 3, U=bases, dropout=0.5, residual=False)
    kept = layer(x) @ layer.basis
    whole = layer.eval()(x) @ layer.basis
    doubled = (kept.abs() > 0.5 * whole.abs()).all(1, keepdim=True)  # a channel is kept for all tokens, or for none
    torch.testing.assert_close(kept, torch.where(doubled, 2 * whole, 0.0), atol=1e-12, rtol=1e-9)
    assert 0 < float(doubled.double().mean()) < 1
    out = TSSA(12, 3, U=bases, output_dropout=0.5, residual=False)
    drawn = out(x)
    assert 0 < float((drawn == 0).double().mean()) < 1
    torch.testing.assert_close(drawn[drawn != 0], 2 * out.eval()(x)[drawn != 0])


def test_zero_tokens_stay_finite_in_half_precision():
    layer = TSSA(12, 3, normalise_tokens=True, basis="free").half()
    x = torch.zeros(5, 12, dtype=torch.float16)
    assert torch.equal(layer(x), x)
