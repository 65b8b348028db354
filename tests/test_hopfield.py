import itertools

import pytest
import torch
from tests_support import reverse_mode, sampled_stretch

from objectives import (
    AttentionEnergy,
    CrossAttentionEnergy,
    EnergyTransformerEnergy,
    HopfieldEnergy,
    SymmetricEnergy,
    attention_curvature,
    certified_step_size,
    hopfield,
)


def matrices(heads=3, dim=12, head_dim=4):
    return (0.3 * torch.randn(heads, dim, head_dim, dtype=torch.float64) for _ in range(2))


def memories(count=7, dim=12):
    return torch.randn(count, dim, dtype=torch.float64)


def all_energies():
    weights = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    return [
        HopfieldEnergy(memories()),
        HopfieldEnergy(memories(count=20)),
        AttentionEnergy(*matrices(), 0.5),
        AttentionEnergy(*matrices(), 0.5, exclude_self=False, weights=weights),
        EnergyTransformerEnergy(AttentionEnergy(*matrices(), 0.5), HopfieldEnergy(memories())),
        EnergyTransformerEnergy(AttentionEnergy(*matrices(), 0.5), CrossAttentionEnergy(memories(), 0.3)),
    ]


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("shape", [(9, 12), (2, 3, 5, 12), (2, 1, 12)])
def test_gradient_is_reverse_mode(which, shape):
    energy, x = all_energies()[which], torch.randn(*shape, dtype=torch.float64)
    want = reverse_mode(energy, x)
    assert (energy.gradient(x) - want).norm() <= 1e-12 * want.norm()
    assert energy.value(x).shape == shape[:-2]


def test_the_energies_are_their_equations():
    x, xi, (W_Q, W_K) = torch.randn(5, 12, dtype=torch.float64), memories(), matrices()
    stored, attention = 0.0, 0.0
    for token, memory in itertools.product(x, xi):
        stored -= 0.5 * max(float(token @ memory), 0.0) ** 2
    for h, c in itertools.product(range(3), range(5)):
        scores = [0.5 * (x[b] @ W_K[h]) @ (x[c] @ W_Q[h]) for b in range(5) if b != c]
        attention -= float(torch.stack(scores).logsumexp(0)) / 0.5
    assert float(HopfieldEnergy(xi).value(x)) == pytest.approx(stored)
    assert float(AttentionEnergy(W_Q, W_K, 0.5).value(x)) == pytest.approx(attention)
    both = EnergyTransformerEnergy(AttentionEnergy(W_Q, W_K, 0.5), HopfieldEnergy(xi))
    assert float(both.value(x)) == pytest.approx(stored + attention)


def test_a_token_alone_attends_to_nothing():
    energy, x = AttentionEnergy(*matrices(), 0.5), torch.randn(2, 1, 12, dtype=torch.float64)
    assert energy.value(x).tolist() == [0.0, 0.0]
    assert not energy.gradient(x).any()
    assert energy.lipschitz(x).tolist() == [0.0, 0.0]


def test_one_matrix_and_a_half_make_the_symmetric_energy(bases):
    x, half = torch.randn(9, 12, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    energy = AttentionEnergy(bases, bases, 0.5, exclude_self=False, weights=half)
    torch.testing.assert_close(energy.value(x), SymmetricEnergy(bases, 0.5).value(x))


@pytest.mark.parametrize("which", [0, 1])
def test_memories_are_smooth_and_concave(which):
    energy, x = all_energies()[which], torch.randn(9, 12, dtype=torch.float64)
    bound = float(energy.lipschitz(x))
    assert bound == pytest.approx(float(torch.linalg.matrix_norm(energy.memories, 2)) ** 2)
    assert sampled_stretch(energy, x) <= bound
    g = energy.gradient(x)
    for kappa in (0.1, 10.0, 1e4):
        assert energy.value(x - kappa * g) <= energy.value(x) - 0.999 * kappa * g.square().sum()
    assert certified_step_size(energy, x).is_global


@pytest.mark.parametrize("which", [2, 3, 4, 5])
def test_hessians_stay_within_both_bounds(which):
    energy, x = all_energies()[which], torch.randn(4, 12, dtype=torch.float64)
    H = torch.autograd.functional.hessian(lambda z: energy.value(z.reshape(4, 12)), x.flatten())
    assert float(torch.linalg.matrix_norm(H, 2)) <= float(energy.lipschitz(x))
    if which != 3:  # negative weights
        assert float(torch.linalg.eigvalsh(H)[-1]) <= float(energy.curvature(4))
    assert not certified_step_size(energy, x).is_global


@pytest.mark.parametrize("tokens", [2, 3, 4, 5])
def test_the_curvature_is_the_best_constant_of_row_stochastic_matrices(tokens):
    tied = untied = 0.0
    for choice in itertools.product(range(tokens), repeat=tokens):
        P = torch.nn.functional.one_hot(torch.tensor(choice), tokens).double()
        tied = max(tied, float(torch.linalg.eigvalsh(-0.5 * (P + P.mT))[-1]))
        untied = max(untied, float(torch.linalg.matrix_norm(P, 2)))
    assert attention_curvature(tokens, tied=True) == pytest.approx(tied)
    assert attention_curvature(tokens, tied=False) == pytest.approx(untied)


def test_rows_in_chunks_are_rows_at_once(monkeypatch):
    x, energies = torch.randn(2, 9, 12, dtype=torch.float64), all_energies()
    whole = [(energy.value(x), energy.gradient(x), energy.lipschitz(x)) for energy in energies]
    monkeypatch.setattr(hopfield, "_CHUNK", 40)
    for energy, (value, gradient, bound) in zip(energies, whole, strict=True):
        torch.testing.assert_close(energy.value(x), value)
        torch.testing.assert_close(energy.gradient(x), gradient)
        torch.testing.assert_close(energy.lipschitz(x), bound)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: HopfieldEnergy(torch.randn(2, 3, 4)), ValueError, r"memories must be \(M, dim\)"),
        (lambda: HopfieldEnergy(torch.randn(0, 4)), ValueError, "not empty"),
        (
            lambda: HopfieldEnergy(torch.randn(3, 4)).value(torch.randn(2, 5)),
            ValueError,
            "x has dim 5, but memories expects dim 4",
        ),
        (lambda: AttentionEnergy(*matrices(), 0.0), ValueError, "scale must be positive"),
        (
            lambda: AttentionEnergy(torch.randn(2, 6, 3), torch.randn(2, 6, 2), 1.0),
            ValueError,
            r"must both be .* are \(2, 6, 3\) and\s+\(2, 6, 2\)",
        ),
        (
            lambda: AttentionEnergy(*matrices(), 1.0, weights=torch.ones(2)),
            ValueError,
            "weights must be None or a tensor .* heads = 3",
        ),
        (
            lambda: AttentionEnergy(*matrices(), 1.0).gradient(torch.randn(4, 5)),
            ValueError,
            "x has dim 5, but W_Q expects dim 12",
        ),
        (lambda: EnergyTransformerEnergy(HopfieldEnergy(memories()), None), TypeError, "attention must be an Att"),
        (
            lambda: EnergyTransformerEnergy(AttentionEnergy(*matrices(), 1.0), torch.eye(3)),
            TypeError,
            "memory must be a HopfieldEnergy or",
        ),
        (
            lambda: EnergyTransformerEnergy(AttentionEnergy(*matrices(), 1.0), HopfieldEnergy(memories(dim=5))),
            ValueError,
            "memories have dim 5, but W_Q expects dim 12",
        ),
        (
            lambda: EnergyTransformerEnergy(
                AttentionEnergy(*matrices(), 1.0), CrossAttentionEnergy(memories(), 1.0, quadratic=True)
            ),
            ValueError,
            "no quadratic term",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()
