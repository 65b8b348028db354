import pytest
import torch
from tests_support import reverse_mode, sampled_stretch

from objectives import KernelRegression, certified_step_size, kernel_regression


def regression(leading=(), queries=5, pairs=4, tokens=4, dim=3, dtype=torch.float64, support=False):
    weights = torch.softmax(2 * torch.randn(*leading, queries, pairs, dtype=dtype), -1)
    values = torch.randn(*leading, tokens, dim, dtype=dtype)
    index = torch.randint(tokens, (*leading, queries, pairs)) if support else None
    return KernelRegression(weights, values, index)


def by_loops(f, x):
    total = torch.zeros((), dtype=x.dtype)
    for i in range(x.shape[0]):
        for pair in range(f.weights.shape[1]):
            j = pair if f.support is None else int(f.support[i, pair])
            total += 0.5 * f.weights[i, pair] * (x[i] - f.values[j]).square().sum()
    return total


@pytest.mark.parametrize("support", [False, True])
def test_value_is_the_sum_of_weighted_squares(support):
    f, x = regression(support=support, pairs=6 if support else 4), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(f.value(x), by_loops(f, x), rtol=1e-13, atol=0)


@pytest.mark.parametrize("support", [False, True])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_gradient_is_reverse_mode(support, leading, device):
    f = regression(leading, support=support)
    f = KernelRegression(*(part if part is None else part.to(device) for part in (f.weights, f.values, f.support)))
    x = torch.randn(*leading, 5, 3, dtype=torch.float64, device=device)
    want = reverse_mode(f, x)
    assert (f.gradient(x) - want).norm() <= 1e-13 * want.norm()
    assert f.value(x).shape == leading


def test_one_step_lands_on_the_average_and_stays():
    f, x = regression(), 10 * torch.randn(5, 3, dtype=torch.float64)
    landed = x - f.gradient(x)
    torch.testing.assert_close(landed, f.weights @ f.values)
    assert f.gradient(landed).norm() < 1e-14
    assert all(f.value(landed) < f.value(landed + 0.1 * torch.randn_like(landed)) for _ in range(9))


@pytest.mark.parametrize("kappa", [0.1, 1.0, 1.9, 2.0, 2.5])
def test_a_step_lowers_it_by_so_much(kappa):
    f, x = regression(), torch.randn(5, 3, dtype=torch.float64)
    g = f.gradient(x)
    fell = f.value(x) - f.value(x - kappa * g)
    torch.testing.assert_close(fell, kappa * (1 - kappa / 2) * g.square().sum(), rtol=1e-12, atol=1e-13)


def test_smoothness_is_one():
    f, x = regression(), torch.randn(5, 3, dtype=torch.float64)
    assert sampled_stretch(f, x) == pytest.approx(1.0)
    assert certified_step_size(f, x).step_size.item() == 1.0
    assert certified_step_size(f, x).is_global


def test_supports_that_repeat_add_up():
    support = torch.tensor([[0, 0, 2]])
    f = KernelRegression(torch.tensor([[0.2, 0.3, 0.5]]).double(), torch.randn(3, 4).double(), support)
    g = KernelRegression(torch.tensor([[0.5, 0.0, 0.5]]).double(), f.values)
    x = torch.randn(1, 4).double()
    torch.testing.assert_close(f.value(x), g.value(x))
    torch.testing.assert_close(f.gradient(x), g.gradient(x))


def test_weights_and_values_of_one_set_serve_a_batch():
    f, x = regression(), torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(f.value(x), torch.stack([f.value(z) for z in x]))
    h = regression(support=True)
    values = torch.stack([h.values, 2 * h.values])
    both = KernelRegression(h.weights, values, h.support)
    torch.testing.assert_close(both.gradient(x)[1], KernelRegression(h.weights, values[1], h.support).gradient(x[1]))


def test_queries_in_chunks_are_queries_at_once(monkeypatch):
    f, x = regression((2,), support=True), torch.randn(2, 5, 3, dtype=torch.float64)
    value, gradient = f.value(x), f.gradient(x)
    monkeypatch.setattr(kernel_regression, "_CHUNK", 2 * 4 * 4 * 2)
    torch.testing.assert_close(f.value(x), value)
    torch.testing.assert_close(f.gradient(x), gradient)


def test_no_array_of_all_differences_is_made():
    f = regression(queries=300, pairs=300, tokens=300, dim=64, dtype=torch.float32)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in ([out] if isinstance(out, torch.Tensor) else []))
            return out

    x = torch.randn(300, 64)
    with Watch():
        f.value(x)
        f.gradient(x)
    assert max(sizes) <= 300 * 300


def test_values_far_from_the_origin_do_not_cancel():
    f, x = regression(), torch.randn(5, 3, dtype=torch.float64)
    moved = KernelRegression(f.weights, f.values + 1e6)
    torch.testing.assert_close(moved.value(x + 1e6), f.value(x), rtol=1e-8, atol=0)


def test_single_precision_follows_double():
    f, x = regression(support=True), torch.randn(5, 3, dtype=torch.float64)
    single = KernelRegression(f.weights.float(), f.values.float(), f.support)
    torch.testing.assert_close(single.gradient(x.float()), f.gradient(x).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.value(x.float()), f.value(x).float(), rtol=1e-5, atol=1e-6)


def test_attention_restricted_to_a_mask():
    q, k, v = torch.randn(3, 2).double(), torch.randn(4, 2).double(), torch.randn(4, 5).double()
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    f = KernelRegression.attention(q, k, v, 0.7, mask)
    rows = []
    for i in range(3):
        e = torch.exp(0.7 * (k[mask[i]] @ q[i]))
        rows.append(e @ v[mask[i]] / e.sum())
    x = torch.randn(3, 5).double()
    torch.testing.assert_close(x - f.gradient(x), torch.stack(rows))
    everyone = KernelRegression.attention(q, k, v, 0.7)
    torch.testing.assert_close(everyone.weights, torch.softmax(0.7 * q @ k.mT, -1))


ROWS = torch.full((2, 3), 1 / 3)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: KernelRegression(2 * ROWS, torch.zeros(3, 1)), ValueError, "every row of weights .* sum to 1"),
        (lambda: KernelRegression(torch.tensor([[2.0, -1.0]]), torch.zeros(2, 1)), ValueError, "smallest entry is -1"),
        (lambda: KernelRegression(ROWS, torch.zeros(4, 1)), ValueError, "3 columns, but there are 4 values"),
        (lambda: KernelRegression(ROWS, torch.zeros(4, 1), torch.zeros(2, 3)), TypeError, "int64 indices"),
        (
            lambda: KernelRegression(ROWS, torch.zeros(4, 1), torch.zeros(2, 2, dtype=torch.int64)),
            ValueError,
            "must have the queries and pairs",
        ),
        (
            lambda: KernelRegression(ROWS, torch.zeros(4, 1), torch.full((2, 3), 4)),
            ValueError,
            "indices 4 to 4, but there are 4 values",
        ),
        (lambda: KernelRegression(ROWS, torch.zeros(0, 1)), ValueError, "values must be .* not empty"),
        (lambda: KernelRegression(ROWS, torch.zeros(3, 2)).value(torch.zeros(2, 1)), ValueError, "x has dim 1"),
        (
            lambda: KernelRegression(ROWS, torch.zeros(3, 2)).gradient(torch.zeros(3, 2)),
            ValueError,
            "x has 3 outputs, but weights were made for 2 queries",
        ),
        (lambda: KernelRegression.attention(ROWS, ROWS, ROWS, 0.0), ValueError, "scale must be positive"),
        (lambda: KernelRegression.attention(ROWS, ROWS[:, :2], ROWS, 1.0), ValueError, "x has dim 3, but keys"),
        (
            lambda: KernelRegression.attention(ROWS, ROWS, ROWS, 1.0, torch.zeros(2, 2).bool()),
            ValueError,
            "leaves some query without any key",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()
