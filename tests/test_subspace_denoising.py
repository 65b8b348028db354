import pytest
import torch
from tests_support import reverse_mode, sampled_stretch

from objectives import SelectedEnergy, SubspaceMixture, project, signal_to_noise


def selection(heads=3, tokens=9):
    partner = torch.randint(tokens, (2, heads, tokens))
    return partner, torch.rand(2, heads, tokens, dtype=torch.float64)


def both_energies(bases):
    partner, amount = selection()
    keys = torch.randn(3, 9, 4, dtype=torch.float64)
    weights = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    return [SelectedEnergy(bases, partner, amount, keys), SelectedEnergy(bases, partner, amount, weights=weights)]


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_is_reverse_mode(bases, which):
    energy, x = both_energies(bases)[which], torch.randn(2, 9, 12, dtype=torch.float64)
    want = reverse_mode(energy, x)
    assert (energy.gradient(x) - want).norm() <= 1e-12 * want.norm()
    assert energy.value(x).shape == (2,)


def test_the_selected_energy_is_its_equation(bases):
    x, (partner, amount) = torch.randn(9, 12, dtype=torch.float64), selection()
    w = project(x, bases)
    total = sum(-float(amount[0, k, i] * (w[k, partner[0, k, i]] @ w[k, i])) for k in range(3) for i in range(9))
    assert float(SelectedEnergy(bases, partner[0], amount[0], w).value(x)) == pytest.approx(total)
    assert float(SelectedEnergy(bases, partner[0], amount[0]).value(x)) == pytest.approx(total / 2)


def test_the_smoothness_constant_bounds_and_is_reached_by_self_selection(bases):
    partner, amount = selection()
    energy, x = SelectedEnergy(bases, partner[0], amount[0]), torch.randn(9, 12, dtype=torch.float64)
    assert sampled_stretch(energy, x) <= float(energy.lipschitz(x))
    own = SelectedEnergy(bases, torch.arange(9).expand(3, -1).contiguous(), torch.full((3, 9), 0.7).double())
    torch.testing.assert_close(own.gradient(x), -0.7 * x)
    assert float(own.lipschitz(x)) == pytest.approx(0.7)
    assert float(both_energies(bases)[0].lipschitz(x)) == 0


def test_the_ratio_counts_noise_inside_and_outside_the_subspaces(bases):
    U = bases[:2]
    inside, other = U[0] @ torch.tensor([3.0, 0, 0, 0]).double(), U[1] @ torch.tensor([0, 4.0, 0, 0]).double()
    beyond = bases[2] @ torch.tensor([0.0, 0, 0, 2.0]).double()
    x = torch.stack([inside + other, inside + beyond, other + inside])
    got = signal_to_noise(torch.stack([x, 2 * x]), torch.tensor([0, 0, 1]), U)
    want = torch.tensor([(18 / 20) ** 0.5, 4 / 3], dtype=torch.float64)
    torch.testing.assert_close(got, want.expand(2, 2))
    assert signal_to_noise(x, torch.tensor([0, 0, 0]), U)[1].isnan()


def test_little_noise_is_not_lost_in_rounding(bases):
    x = bases[0, :, :1].mT + 1e-9 * bases[1, :, :1].mT
    assert float(signal_to_noise(x, torch.tensor([0]), bases)[0]) == pytest.approx(1e9, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mixture_has_its_noise(bases, dtype, device):
    model = SubspaceMixture(bases.to(device, dtype), 0.1)
    x, labels = model.sample(3000)
    assert (x.dtype, x.shape, x.device.type) == (dtype, (9000, 12), device)
    assert labels.bincount().tolist() == [3000] * 3
    torch.testing.assert_close(
        signal_to_noise(x, labels, model.U).double().cpu(), torch.full((3,), 10 / 2**0.5).double(), rtol=0.03, atol=0
    )
    own = project(x, model.U)[0, labels == 0]
    assert float(own.std()) == pytest.approx(1, abs=0.03)


def test_a_generator_repeats_the_sample(bases):
    first, second, third = (
        SubspaceMixture(bases, 0.1).sample(3, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda U: SubspaceMixture(U, 0.0), ValueError, "delta must be positive"),
        (lambda U: SubspaceMixture(U + 0.1, 0.1), ValueError, "not orthonormal"),
        (lambda U: SubspaceMixture(U, 0.1).sample(0), ValueError, "tokens_per_cluster must be a positive integer"),
        (
            lambda U: signal_to_noise(torch.randn(4, 12).double(), torch.zeros(3).long(), U),
            ValueError,
            r"labels must be integers \(tokens,\) = \(4,\)",
        ),
        (
            lambda U: signal_to_noise(torch.randn(2, 12).double(), torch.tensor([0, 3]), U),
            ValueError,
            "must lie in 0 … 2",
        ),
        (
            lambda U: SelectedEnergy(U, torch.zeros(3, 4), torch.zeros(3, 4).double()),
            ValueError,
            "partner must be torch.long",
        ),
        (
            lambda U: SelectedEnergy(U, torch.full((3, 4), 4), torch.zeros(3, 4).double()),
            ValueError,
            "partner must lie in 0 … 3",
        ),
        (
            lambda U: SelectedEnergy(U, torch.zeros(2, 4).long(), torch.zeros(2, 4).double()),
            ValueError,
            r"amount must be \(..., heads=3, tokens\)",
        ),
        (
            lambda U: SelectedEnergy(U, torch.zeros(3, 4).long(), torch.zeros(3, 4).double()).value(
                torch.randn(5, 12).double()
            ),
            ValueError,
            "x has 5 tokens, but the selection was made for 4",
        ),
    ],
)
def test_bad_arguments_are_refused(bases, make, error, said):
    with pytest.raises(error, match=said):
        make(bases)
