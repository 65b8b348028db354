import pytest
import torch
from torch import nn

from proofs_check import check_layer
from unrolling import CBSA, ISTA, MSSA, CRATEBlock, SequencePool


def blocks():
    pool = SequencePool(3)
    return {
        "exact": CRATEBlock(MSSA(12, 3, step_size=0.3)),
        "softmax": CRATEBlock(MSSA(12, 3, form="softmax")),
        "cbsa": CRATEBlock(CBSA(12, 3, representatives=pool), ISTA(12, nonnegative=False)),
        "cbsa softmax": CRATEBlock(CBSA(12, 3, representatives=pool, form="softmax")),
    }


@pytest.mark.parametrize("name", blocks())
@pytest.mark.parametrize("shape", [(9, 12), (2, 5, 12)])
def test_forward_is_both_declared_steps(name, shape, device):
    block = blocks()[name].double().to(device)
    x = torch.randn(*shape, dtype=torch.float64, device=device)
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.descend(x))
        torch.testing.assert_close(block(x), block.ista(block.attention(x)))
    first, second = block.objectives_at(x)
    torch.testing.assert_close(second.smooth.data, block.attention(x).detach())
    assert first.value(x).shape == x.shape[:-2]


def test_both_halves_pass_the_check_by_themselves():
    block = CRATEBlock(MSSA(6, 2), ISTA(6, certified=True, step_size=1.0))
    assert check_layer(block.attention).evidence
    assert check_layer(block.ista).evidence


def test_the_published_block():
    block = CRATEBlock(MSSA(12, 3, form="softmax", tied=False), norm="layer").double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    norm = nn.LayerNorm(12).double()
    between = x + block.attention.update(norm(x))
    torch.testing.assert_close(block(x), block.ista(norm(between)))
    with pytest.raises(ValueError, match="no descent is claimed with norm='layer'"):
        block.descend(x)


def test_the_trace_says_what_each_half_does():
    block = CRATEBlock(MSSA(12, 3, certified=True)).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    traced = block.trace(x)
    assert (traced.rate_between < traced.rate_before).all()
    torch.testing.assert_close(traced.zeros_after, (block(x) == 0).double().mean((-2, -1)))
    assert (traced.zeros_after > 0).all()


def test_it_trains():
    torch.manual_seed(0)
    network = nn.Sequential(*(CRATEBlock(MSSA(12, 3, form="softmax")) for _ in range(2)))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, y = torch.randn(4, 9, 12), torch.rand(4, 9, 12)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: CRATEBlock(MSSA(12, 3), ISTA(6)), ValueError, "attention has dim 12, but ista has dim 6"),
        (lambda: CRATEBlock(nn.Linear(3, 3)), TypeError, "attention must be an MSSA or a CBSA, but is a Linear"),
        (lambda: CRATEBlock(MSSA(12, 3), norm="batch"), ValueError, "norm must be one of 'none', 'layer'"),
    ],
)
def test_bad_blocks_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()
