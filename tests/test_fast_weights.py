import pytest
import torch

from proofs_check.table import fast_weights_table
from unrolling import (
    FAST_WEIGHTS,
    agent_attention,
    block_attention,
    compressed_block_attention,
    full_attention,
    linear_attention,
    projected_attention,
    taxonomy,
    top_k_attention,
)


@pytest.fixture
def qkv():
    return tuple(torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (6, 11, 11))


def over_queries(q, read):
    return torch.stack(
        [torch.stack([torch.stack([read(b, h, i) for i in range(6)]) for h in range(3)]) for b in range(2)]
    )


def attend(query, keys, values, scale=0.5):
    e = torch.exp(scale * (keys @ query))
    return e @ values / e.sum()


def test_full_attention(qkv):
    q, k, v = qkv
    want = over_queries(q, lambda b, h, i: attend(q[b, h, i], k[b, h], v[b, h]))
    torch.testing.assert_close(full_attention(q, k, v, 0.5), want)


def test_linear_attention(qkv):
    q, k, v = qkv

    def phi(u):
        u = 0.5**0.5 * u
        return torch.where(u > 0, u + 1, torch.exp(u))

    def read(b, h, i):
        weights = phi(k[b, h]) @ phi(q[b, h, i])
        return weights @ v[b, h] / weights.sum()

    torch.testing.assert_close(linear_attention(q, k, v, 0.5), over_queries(q, read))


def test_projected_and_agent_attention(qkv):
    q, k, v = qkv
    E, F, R = torch.randn(2, 11).double(), torch.randn(2, 11).double(), torch.randn(2, 4).double()
    want = over_queries(q, lambda b, h, i: attend(q[b, h, i], E @ k[b, h], F @ v[b, h]))
    torch.testing.assert_close(projected_attention(q, k, v, E, F, 0.5), want)

    def agent(b, h, i):
        read = torch.stack([attend(agent, k[b, h], v[b, h]) for agent in R])
        return attend(q[b, h, i], R, read)

    torch.testing.assert_close(agent_attention(q, k, v, R, 0.5), over_queries(q, agent))


def test_top_k_attention(qkv):
    q, k, v = qkv

    def read(b, h, i):
        keep = (k[b, h] @ q[b, h, i]).topk(3).indices
        return attend(q[b, h, i], k[b, h, keep], v[b, h, keep])

    torch.testing.assert_close(top_k_attention(q, k, v, 3, 0.5), over_queries(q, read))
    torch.testing.assert_close(top_k_attention(q, k, v, 99, 0.5), full_attention(q, k, v, 0.5))


@pytest.mark.parametrize(("block", "count"), [(4, 1), (4, 2), (3, 9), (1, 2), (20, 1)])
def test_block_attention_with_a_short_last_block(qkv, block, count):
    q, k, v = qkv
    blocks = [range(a, min(a + block, 11)) for a in range(0, 11, block)]

    def read(b, h, i):
        near = torch.stack([k[b, h, list(cells)].mean(0) @ q[b, h, i] for cells in blocks])
        cells = [j for c in near.topk(min(count, len(blocks))).indices.tolist() for j in blocks[c]]
        return attend(q[b, h, i], k[b, h, cells], v[b, h, cells])

    fine = over_queries(q, read)
    torch.testing.assert_close(block_attention(q, k, v, block, count, 0.5), fine)

    def coarse(b, h, i):
        means = [torch.stack([u[b, h, list(cells)].mean(0) for cells in blocks]) for u in (k, v)]
        return attend(q[b, h, i], *means)

    gates = torch.tensor([0.3, 0.6]).double()
    want = 0.3 * over_queries(q, coarse) + 0.6 * fine
    torch.testing.assert_close(compressed_block_attention(q, k, v, block, count, gates, 0.5), want)


@pytest.mark.parametrize("row", FAST_WEIGHTS, ids=lambda row: row.name)
def test_every_method_runs_in_single_precision_and_is_differentiable(row):
    q, k, v = (torch.randn(3, 16, 4, requires_grad=True) for _ in range(3))
    out = row.run(q, k, v)
    assert out.shape == (3, 16, 4)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in (q, k, v))
    assert row.multiply_adds(16, 12, 4) > 0


def test_landmarks_of_the_rows_are_as_many_as_said():
    agent = next(row for row in taxonomy(m=5) if row.name == "agent attention")
    q, k, v = (torch.randn(1, 23, 4) for _ in range(3))
    torch.testing.assert_close(agent.run(q, k, v), agent_attention(q, k, v, q[:, :20:4], 0.5))


def test_the_table_has_a_row_a_method_and_counts_what_the_rows_say():
    lines = fast_weights_table().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2 : 2 + len(FAST_WEIGHTS)]]
    assert [row[0] for row in rows] == [row.name for row in FAST_WEIGHTS]
    for cells, row in zip(rows, taxonomy(16, 16, 16), strict=True):
        assert int(cells[6].replace(",", "")) == row.multiply_adds(256, 24, 8)
        assert cells[1] in ("none", "compression", "routing", "both")
    assert "N = 256" in lines[-1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda *qkv: top_k_attention(*qkv, 0, 0.5), "top_k_attention: count must be at least 1"),
        (lambda *qkv: block_attention(*qkv, 0, 1, 0.5), "block_attention: block must be at least 1"),
        (lambda *qkv: block_attention(*qkv, 2, 0, 0.5), "blocks_per_query must be at least 1"),
        (
            lambda *qkv: compressed_block_attention(*qkv, 0, 1, torch.ones(2), 0.5),
            "compressed_block_attention: block must be at least 1",
        ),
    ],
)
def test_bad_counts_are_refused(qkv, make, said):
    with pytest.raises(ValueError, match=said):
        make(*qkv)
