"""One softmax attention for all layers: the same numbers by either way, and accurate gradients."""

import pytest
import torch
from torch.nn import functional as F

from unrolling.attend import AFFORDABLE, SMALL, attend


def draw(tokens=7, queries=5, dtype=torch.float64, device="cpu", grad=False):
    shapes = ((2, 3, queries, 4), (2, 3, tokens, 4), (2, 3, tokens, 6))
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=grad) for shape in shapes]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("few", [False, True])
def test_it_is_its_definition(grad, bias, few, device):
    tokens = 7 if few else 1500
    q, k, v = draw(tokens, tokens, device=device, grad=grad)
    added = torch.randn(3, tokens, tokens, dtype=q.dtype, device=device) if bias else None
    assert (tokens**2 > AFFORDABLE) is not few
    scores = torch.exp(0.3 * torch.einsum("bhqp,bhkp->bhqk", q, k) + (added if bias else 0.0))
    want = torch.einsum("bhqk,bhkp->bhqp", scores, v) / scores.sum(-1, keepdim=True)
    torch.testing.assert_close(attend(q, k, v, 0.3, added), want)


def test_gradients_are_those_of_the_definition():
    inputs = draw(grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, 0.7), inputs)


def test_gradients_in_single_precision_are_accurate():
    wide = draw(300, 300, grad=True)
    narrow = [x.detach().float().requires_grad_() for x in wide]
    weights = torch.randn(2, 3, 300, 6, dtype=torch.float64)
    (attend(*wide, 0.5) * weights).sum().backward()
    (attend(*narrow, 0.5) * weights.float()).sum().backward()
    for a, b in zip(wide, narrow, strict=True):
        assert (a.grad - b.grad).abs().max() < 2e-6 * a.grad.abs().max()


def test_dropout_keeps_the_mean_and_drops_weights():
    q, k, v = draw(6, 1)
    torch.manual_seed(1)
    drawn = torch.stack([attend(q, k, v, 0.5, dropout=0.5) for _ in range(4000)])
    plain = attend(q, k, v, 0.5)
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), plain, atol=6e-2, rtol=0)


def test_without_gradients_many_tokens_take_the_fused_kernel(monkeypatch):
    called = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append(1) or kernel(*a, **k))
    side = int(SMALL**0.5)
    attend(*draw(side, side), 0.5)
    assert not called
    attend(*draw(side + 1, side), 0.5)
    assert called == [1]
    attend(*draw(side + 1, side, grad=True), 0.5)
    assert called == [1]
    with torch.no_grad():
        attend(*draw(side + 1, side, grad=True), 0.5)
    assert called == [1, 1]
