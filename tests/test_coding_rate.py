import dataclasses
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from objectives import ChannelRate, CodingRate, SubspaceCodingRate, certified_step_size, lift, project


def naive_rate(z, epsilon):
    n, d = z.shape
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * epsilon**2) * z.T @ z)[1]


def reverse_mode(objective, x):
    z = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.value(z).sum(), z)
    return gradient


def all_objectives(bases):
    return [
        CodingRate(0.5),
        SubspaceCodingRate(bases, 0.5),
        ChannelRate(bases, 0.5),
        SubspaceCodingRate(bases, 0.5, 4),
    ]


@pytest.mark.parametrize("shape", [(5, 12), (40, 12), (1, 12), (12, 12)])
def test_value_is_the_definition(shape):
    x = torch.randn(*shape, dtype=torch.float64)
    assert float(CodingRate(0.3).value(x)) == pytest.approx(naive_rate(x.numpy(), 0.3), rel=1e-12)


def test_subspace_value_is_the_sum_over_heads(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    want = sum(naive_rate((x @ U).numpy(), 0.3) for U in bases)
    assert float(SubspaceCodingRate(bases, 0.3).value(x)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tokens", [3, 40])
def test_gradient_is_reverse_mode(bases, which, dtype, tolerance, tokens, device):
    objective = all_objectives(bases.to(dtype).to(device))[which]
    x = torch.randn(2, tokens, 12, dtype=dtype, device=device)
    want = reverse_mode(objective, x)
    assert (objective.gradient(x) - want).norm() <= tolerance * want.norm()
    assert objective.gradient(x).dtype == dtype


@pytest.mark.parametrize("which", range(4))
def test_a_batch_is_a_loop_over_its_slices(bases, which):
    objective = all_objectives(bases)[which]
    x = torch.randn(2, 3, 7, 12, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(objective.value(x)[i, j], objective.value(x[i, j]))
            torch.testing.assert_close(objective.gradient(x)[i, j], objective.gradient(x[i, j]))


def test_weights_weigh_heads(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    objective = SubspaceCodingRate(bases, 0.3, weights=weights)
    alone = [SubspaceCodingRate(bases[k : k + 1], 0.3) for k in range(3)]
    want = sum(w * single.value(x) for w, single in zip(weights, alone, strict=True))
    torch.testing.assert_close(objective.value(x), want)
    assert (objective.gradient(x) - reverse_mode(objective, x)).norm() < 1e-12
    assert float(objective.lipschitz(x)) == pytest.approx(2 * float(alone[0].lipschitz(x)))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(5, 4),
        torch.ones(6, 4),
        torch.eye(4),
        torch.diag(torch.tensor([3.0, 3.0, 0.0, 0.0])),
        torch.outer(torch.arange(7.0), torch.ones(4)),
    ],
)
def test_degenerate_spectra_have_finite_right_gradients(x):
    x = x.double()
    objective = CodingRate(0.1)
    gradient = objective.gradient(x)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient, reverse_mode(objective, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tokens", [3, 30])
def test_where_cholesky_fails_the_triangular_factor_is_finite(dtype, tokens):
    """β‖x‖² far above 1/eps: I + βG is indefinite in floating point."""
    scale = 1e6 if dtype == torch.float64 else 1e3
    x = scale * torch.randn(tokens, 2, dtype=dtype) @ torch.randn(2, 8, dtype=dtype)
    objective = CodingRate(1e-4)
    value = objective.value(x)
    assert torch.isfinite(value)
    assert torch.isfinite(objective.gradient(x)).all()
    assert torch.isfinite(reverse_mode(objective, x)).all()


@pytest.mark.parametrize("scale", [1e5, 1e6, 1e7, 1e8, 1e9])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_positive_pivots_of_pure_rounding_are_not_trusted(scale, shape):
    """Rank one: one logarithm, and Cholesky succeeds on noise that it takes for others."""
    for _ in range(10):
        x = scale * torch.randn(shape[0], 1, dtype=torch.float64) @ torch.randn(1, shape[1], dtype=torch.float64)
        objective = CodingRate(0.5)
        squared = objective.beta(x) * x.square().sum()
        torch.testing.assert_close(objective.value(x), 0.5 * torch.log1p(squared), rtol=1e-11, atol=0)


@pytest.mark.parametrize(("shape", "side"), [((3, 50), 3), ((50, 3), 3), ((2, 4, 50), 4)])
def test_the_factor_is_of_the_smaller_side(shape, side, monkeypatch):
    plain, sides = torch.linalg.cholesky_ex, set()
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: sides.add(a.shape[-2:]) or plain(a))
    CodingRate(0.5).value(torch.randn(shape))
    CodingRate(0.5).gradient(torch.randn(shape))
    assert sides == {(side, side)}


def test_the_fallback_agrees_with_cholesky_where_both_work(monkeypatch):
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    value, gradient = CodingRate(0.3).value(x), CodingRate(0.3).gradient(x)
    plain = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: (plain(a)[0] * torch.nan, plain(a)[1] + 1))
    torch.testing.assert_close(CodingRate(0.3).value(x), value)
    torch.testing.assert_close(CodingRate(0.3).gradient(x), gradient)
    torch.testing.assert_close(reverse_mode(CodingRate(0.3), x), gradient)


@pytest.mark.parametrize("make", [CodingRate, lambda e: SubspaceCodingRate(torch.eye(4)[None], e)])
@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_precision_is_refused(make, epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive and finite, but is"):
        make(epsilon)


def test_a_precision_of_another_type_is_refused():
    with pytest.raises(TypeError, match="epsilon must be a positive number"):
        CodingRate("small")


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (torch.randn(0, 12), ValueError, r"holds no tokens: \(..., tokens, dim\) = \(0, 12\)"),
        (torch.full((3, 12), torch.nan), ValueError, "36 NaN or infinite entries, the first at index"),
        (
            torch.tensor([[1.0] * 11 + [torch.inf]]),
            ValueError,
            r"1 NaN or infinite entries, the first at index \(0, 11\)",
        ),
        (torch.randn(3, 10), ValueError, "x has dim 10, but U expects dim 12"),
        (torch.randn(12), ValueError, r"must be \(..., tokens, dim\)"),
        (torch.ones(3, 12, dtype=torch.long), TypeError, "floating-point dtype"),
        ([[1.0]], TypeError, "must be a torch.Tensor, but is a list"),
    ],
)
def test_bad_tokens_are_refused(bases, x, error, said):
    for method in ("value", "gradient"):
        with pytest.raises(error, match=said):
            getattr(SubspaceCodingRate(bases.float(), 0.5), method)(x)


def test_bases_that_are_not_orthonormal_are_refused_unless_asked_for(bases):
    crooked = bases + 0.01
    with pytest.raises(ValueError, match=r"max \|UᵀU − I\| = .* tolerance 1e-06(.|\n)*orthonormal=False"):
        SubspaceCodingRate(crooked)
    SubspaceCodingRate(crooked, orthonormal_tolerance=1.0)
    free = SubspaceCodingRate(crooked, orthonormal=False)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(free.gradient(x), reverse_mode(free, x))
    flat = crooked.transpose(0, 1).flatten(-2)
    beta = 4 / (5 * 0.25)
    assert float(free.lipschitz(x)) == pytest.approx(beta * float(torch.linalg.matrix_norm(flat, 2)) ** 2)


def test_bases_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"U must be \(heads, dim, head_dim\)"):
        SubspaceCodingRate(torch.eye(4))


def test_certified_step_lowers_the_rate_and_is_tight():
    x = 1e-4 * torch.randn(6, 4, dtype=torch.float64)
    step = certified_step_size(CodingRate(0.5), x)
    assert step.is_global
    assert float(step.step_size) == pytest.approx(1 / float(step.lipschitz))
    objective = CodingRate(0.5)
    assert objective.value(x - 1.99 * step.step_size * objective.gradient(x)) < objective.value(x)
    assert objective.value(x - 2.01 * step.step_size * objective.gradient(x)) > objective.value(x)


def test_project_and_lift_are_the_sums_over_heads(bases):
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    w = project(x, bases)
    torch.testing.assert_close(w, torch.stack([x @ U for U in bases], 1))
    torch.testing.assert_close(lift(w, bases), sum(w[:, k] @ bases[k].mT for k in range(3)))


def test_objectives_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CodingRate(0.5).epsilon = 1.0


def test_two_hundred_thousand_tokens_stay_under_one_gibibyte():
    code = """
        import resource, torch
        from objectives import CodingRate
        x = torch.randn(200_000, 64, dtype=torch.float64)
        x.mT @ x
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        CodingRate(0.5).value(x), CodingRate(0.5).gradient(x)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1
