import pytest
import torch
from tests_support import reverse_mode, sampled_stretch

from objectives import (
    CrossAttentionEnergy,
    RepresentativeEnergy,
    SelfAttentionEnergy,
    SymmetricEnergy,
    certified_step_size,
    lift,
    project,
    softmax_energy,
)


def all_energies(bases):
    keys = torch.randn(3, 6, 4, dtype=torch.float64)
    P = torch.softmax(torch.randn(3, 5, 9, dtype=torch.float64), -1)
    return [
        CrossAttentionEnergy(torch.randn(7, 12, dtype=torch.float64), 0.3),
        CrossAttentionEnergy(torch.randn(2, 7, 12, dtype=torch.float64), 0.3, quadratic=True),
        SelfAttentionEnergy(bases, keys, 0.5),
        SelfAttentionEnergy(bases, keys, 0.5, weights=torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)),
        SymmetricEnergy(bases, 0.5),
        RepresentativeEnergy(bases, P, keys, 0.5),
    ]


@pytest.mark.parametrize("which", range(6))
def test_gradient_is_reverse_mode(bases, which):
    energy, x = all_energies(bases)[which], torch.randn(2, 9, 12, dtype=torch.float64)
    want = reverse_mode(energy, x)
    assert (energy.gradient(x) - want).norm() <= 1e-12 * want.norm()
    assert energy.value(x).shape == (2,)


@pytest.mark.parametrize("which", [0, 2, 5])
def test_the_smoothness_constants_bound(bases, which):
    energy, x = all_energies(bases)[which], torch.randn(9, 12, dtype=torch.float64)
    assert sampled_stretch(energy, x) <= float(energy.lipschitz(x))


def test_the_symmetric_energy_is_bounded_at_the_point_only(bases):
    energy, x = SymmetricEnergy(bases, 0.5), torch.randn(4, 12, dtype=torch.float64)
    H = torch.autograd.functional.hessian(lambda z: energy.value(z.reshape(4, 12)), x.flatten())
    assert float(torch.linalg.matrix_norm(H, 2)) <= float(energy.lipschitz(x))
    assert not certified_step_size(energy, x).is_global


def test_one_step_on_the_hopfield_energy_is_attention():
    q, k = torch.randn(4, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    energy = CrossAttentionEnergy(k, 0.4, quadratic=True)
    want = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], k[None], scale=0.4)[0]
    torch.testing.assert_close(q - energy.gradient(q), want)


def test_rows_in_chunks_are_rows_at_once(bases, monkeypatch):
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    energies = all_energies(bases)
    whole = [(energy.value(x), energy.gradient(x), energy.lipschitz(x)) for energy in energies]
    monkeypatch.setattr(softmax_energy, "_CHUNK", 40)
    for energy, (value, gradient, bound) in zip(energies, whole, strict=True):
        torch.testing.assert_close(energy.value(x), value)
        torch.testing.assert_close(energy.gradient(x), gradient)
        torch.testing.assert_close(energy.lipschitz(x), bound)


def test_frozen_keys_give_attention_of_the_tokens(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    w = project(x, bases)
    want = lift(torch.softmax(0.5 * w @ w.mT, -1) @ w, bases)
    torch.testing.assert_close(-SelfAttentionEnergy(bases, w, 0.5).gradient(x), want)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda U: CrossAttentionEnergy(torch.randn(3, 4), 0.0), "scale must be positive"),
        (
            lambda U: CrossAttentionEnergy(torch.randn(3, 4), 1.0).value(torch.randn(2, 5)),
            "x has dim 5, but keys expects dim 4",
        ),
        (
            lambda U: SelfAttentionEnergy(U, torch.randn(3, 5, 7).double(), 1.0),
            "keys must be .*heads=3, rows, 4",
        ),
        (lambda U: SymmetricEnergy(U + 0.1, 1.0), "not orthonormal"),
        (lambda U: CrossAttentionEnergy(torch.randn(0, 4), 1.0), "not empty"),
    ],
)
def test_bad_arguments_are_refused(bases, make, said):
    with pytest.raises(ValueError, match=said):
        make(bases)


def test_the_quadratic_term_is_in_the_smoothness_constant():
    """With keys close together the energy hardly bends, and the quadratic bends by 1."""
    energy = CrossAttentionEnergy(0.01 * torch.randn(7, 12, dtype=torch.float64), 0.3, quadratic=True)
    x = torch.randn(9, 12, dtype=torch.float64)
    assert sampled_stretch(energy, x) <= float(energy.lipschitz(x)) * (1 + 1e-9)
    assert float(energy.lipschitz(x)) == pytest.approx(1.0)
