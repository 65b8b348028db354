import itertools

import pytest
import torch
from torch.nn import functional as F

from proofs_check import Case, find
from unrolling import (
    CBSA,
    AgentAttention,
    AgentBias,
    GridPool,
    GridRotary,
    LearnedQueries,
    MiTA,
    OfficialGridPool,
    SequencePool,
    SoftmaxAttention,
    Strided,
    Tokens,
)


def strategies():
    return {
        "grid": GridPool((2, 2), (3, 5)),
        "sequence": SequencePool(4),
        "more than tokens": SequencePool(19),
        "learned": LearnedQueries(5, 3, 4),
        "strided": Strided(3),
    }


def randomised(layer):
    """Biases as large as scores, so that one left out shows."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return layer.double()


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize("name", strategies())
@pytest.mark.parametrize(
    ("contraction", "biased", "step"), list(itertools.product((False, True), (False, True), (1.0, 0.7)))
)
def test_forward_is_the_declared_step(name, contraction, biased, step, device):
    window = (3, 5) if biased and name != "strided" else None  # of strided agents the number is not known
    options = {"contraction": contraction, "bias_window": window, "step_size": step}
    layer = AgentAttention(12, 3, agents=strategies()[name], class_tokens=1, **options)
    layer = randomised(layer).to(device)
    x = torch.randn(2, 16, 12, dtype=torch.float64, device=device)
    assert off(layer, x) < 1e-12
    assert layer.token_count == (16 if name == "grid" else None)


def resized(cells, rows, columns):
    """A map of cells enlarged to rows × columns, from the definition of bilinear resizing."""
    n, m = cells.shape
    out = torch.zeros(rows, columns, dtype=cells.dtype)
    for i, j in itertools.product(range(rows), range(columns)):
        y, x = max(0.0, (i + 0.5) * n / rows - 0.5), max(0.0, (j + 0.5) * m / columns - 0.5)
        for a, b in itertools.product(range(n), range(m)):
            out[i, j] += max(0.0, 1 - abs(min(y, n - 1) - a)) * max(0.0, 1 - abs(min(x, m - 1) - b)) * cells[a, b]
    return out


@torch.no_grad()
@pytest.mark.parametrize("grid", [(2, 3), (4, 2), (9, 8)])
def test_biases_are_maps_profiles_and_one_number_for_class_tokens(grid):
    bias = randomised(AgentBias(2, 3, window=(2, 3), block=4))
    part = dict(bias.named_parameters())
    read, passed = bias.from_tokens(grid, 2), bias.to_tokens(grid, 2)
    assert read.shape == (2, 3, 2 + grid[0] * grid[1])
    assert passed.shape == (2, 2 + grid[0] * grid[1], 3)
    for h, a in itertools.product(range(2), range(3)):
        profile = part["ah_bias"][0, h, a] + part["aw_bias"][0, h, a]
        want = resized(part["an_bias"][h, a], *grid) + resized(profile, *grid)
        torch.testing.assert_close(read[h, a, 2:], want.flatten())
        assert read[h, a, :2].tolist() == [float(part["ac_bias"][0, h, a, 0])] * 2
        profile = part["ha_bias"][0, h, :, :, a] + part["wa_bias"][0, h, :, :, a]
        want = resized(part["na_bias"][h, a], *grid) + resized(profile, *grid)
        torch.testing.assert_close(passed[h, 2:, a], want.flatten())
        assert passed[h, :2, a].tolist() == [float(part["ca_bias"][0, h, 0, a])] * 2


def by_loops(layer, x, grid):
    """One token set, query by query; biases from the layer."""
    q, k, v = layer.queries(x), layer.keys(x), layer.values(x)
    r, s, out = layer.strategy.initial(q, layer.class_tokens, grid), layer.scale, []
    read, passed = (b(grid, layer.class_tokens) for b in (layer.agent_bias.from_tokens, layer.agent_bias.to_tokens))
    for h in range(layer.heads):
        found = torch.stack([torch.softmax(s * (k[h] @ a) + read[h, i], 0) @ v[h] for i, a in enumerate(r[h])])
        if layer.contraction:
            found = torch.stack([torch.softmax(s * (found @ f), 0) @ found for f in found])
        out.append(torch.stack([torch.softmax(s * (r[h] @ c) + passed[h, j], 0) @ found for j, c in enumerate(q[h])]))
    return layer.output(torch.cat(out, -1))


@torch.no_grad()
@pytest.mark.parametrize("contraction", [False, True])
@pytest.mark.parametrize("grid", [(3, 4), (2, 6)])
def test_the_layer_is_its_definition(contraction, grid):
    layer = AgentAttention(
        6, 2, agents=GridPool((2, 2)), contraction=contraction, bias_window=(3, 4), class_tokens=1, scale=0.9
    )
    x = torch.randn(13, 6, dtype=torch.float64)
    layer = randomised(layer)
    torch.testing.assert_close(layer.attention(x, grid), by_loops(layer, x, grid))
    torch.testing.assert_close(layer.update(x, grid), layer.attention(x, grid) - x)
    assert torch.equal(layer.adds(x, grid), layer.attention(x, grid))


@torch.no_grad()
@pytest.mark.parametrize("contraction", [False, True])
def test_many_tokens_take_another_way_to_the_same_numbers(contraction):
    """Beyond 2¹⁶ scores torch's fused kernel reads."""
    layer = AgentAttention(8, 2, agents=SequencePool(300), contraction=contraction, bias_window=(20, 15)).double()
    layer = randomised(layer)
    x = torch.randn(300, 8, dtype=torch.float64)
    weights, found, _ = layer.pairs(x)
    want = layer.output((weights @ found).transpose(-3, -2).flatten(-2))
    torch.testing.assert_close(layer.attention(x), want)


@torch.no_grad()
@pytest.mark.parametrize("contraction", [False, True])
def test_the_map_is_what_tokens_read_of_one_another(contraction):
    layer = AgentAttention(12, 3, agents=SequencePool(4), contraction=contraction, bias_window=(3, 3)).double()
    layer = randomised(layer)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    seen = layer.attention_map(x)
    torch.testing.assert_close(seen.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))
    read = (seen @ layer.values(x)).transpose(-3, -2).flatten(-2)
    torch.testing.assert_close(layer.output(read), layer.attention(x))


@pytest.mark.parametrize("contraction", [False, True])
def test_gradients_are_right_through_the_layer(contraction):
    layer = AgentAttention(4, 2, agents=SequencePool(2), contraction=contraction, bias_window=(2, 2), step_size=0.7)
    layer = randomised(layer)
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(z, *given):
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (z,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@torch.no_grad()
def test_without_biases_and_contraction_it_is_mita_without_keys():
    layer, other = (
        AgentAttention(12, 3, agents=SequencePool(4)),
        MiTA(12, 3, landmarks=SequencePool(4), keys_per_expert=0),
    )
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 9, 12)
    torch.testing.assert_close(layer(x), other(x))


@torch.no_grad()
def test_contraction_is_that_of_cbsa():
    layer = AgentAttention(12, 3, agents=SequencePool(5), contraction=True, bias=False).double()
    other = CBSA(12, 3, representatives=SequencePool(5), form="softmax").double()
    joint = other.basis
    for part in (layer.query, layer.key, layer.value):
        part.weight.copy_(joint.mT)
    x = torch.randn(7, 12, dtype=torch.float64)
    q = other.representatives_of(x)
    torch.testing.assert_close(layer.agent_values(x), other.contracted(q) - q)


@torch.no_grad()
def test_norms_of_the_agents_reading_alone():
    """CBSA's adaptation: q_norm on the pooled agents and k_norm on the keys when agents read; neither when tokens do."""
    layer = AgentAttention(12, 3, agents=SequencePool(4), qk_norm="layer", norm_agents=False).double()
    for norm in (layer.query_norm, layer.key_norm):
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(9, 12, dtype=torch.float64)
    q, k, v = (
        F.linear(x, p.weight, p.bias).unflatten(-1, (3, 4)).transpose(0, 1)
        for p in (layer.query, layer.key, layer.value)
    )
    r = SequencePool(4).initial(q, 0, None)
    found = torch.softmax(0.5 * (layer.query_norm(r) @ layer.key_norm(k).mT), -1) @ v
    read = torch.softmax(0.5 * (q @ r.mT), -1) @ found
    torch.testing.assert_close(layer.attention(x), layer.output(read.transpose(0, 1).flatten(1)))
    torch.testing.assert_close(layer.agents(x), r)
    assert off(layer, x) < 1e-12
    both = AgentAttention(12, 3, agents=SequencePool(4), qk_norm="layer").double()
    both.load_state_dict(layer.state_dict())
    assert not torch.allclose(both.attention(x), layer.attention(x))


def test_dropout_drops_while_training_only():
    layer = AgentAttention(12, 3, agents=SequencePool(4), dropout=0.5)
    x = torch.randn(9, 12)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@torch.no_grad()
def test_class_tokens_are_read_but_not_pooled():
    layer = AgentAttention(12, 3, agents=GridPool((1, 1)), class_tokens=2).double()
    x = torch.randn(8, 12, dtype=torch.float64)
    mean = layer.queries(x)[:, 2:].mean(1, keepdim=True)
    torch.testing.assert_close(layer.agents(x, (2, 3)), mean)
    moved = x.clone()
    moved[0] += 1
    assert not torch.allclose(layer.agent_values(x, (2, 3)), layer.agent_values(moved, (2, 3)))


@torch.no_grad()
def test_options_of_other_attentions_are_its_own_too():
    """Rotary places, a gate, a convolution and a norm before the output: as softmax attention with all tokens as agents."""
    shared = {
        "rotary": GridRotary(4, 3),
        "gate": True,
        "convolution": True,
        "scale_norm": True,
        "class_tokens": 1,
        "qk_norm": "rms",
    }
    layer = AgentAttention(12, 3, agents=SequencePool(4), **shared).double()
    x = torch.randn(10, 12, dtype=torch.float64)
    q, k, v = layer.queries(x), layer.keys(x), layer.values(x)
    r = SequencePool(4).initial(q, 1, None)
    read = torch.softmax(0.5 * q @ r.mT, -1) @ (torch.softmax(0.5 * r @ k.mT, -1) @ v)
    image = v[:, 1:].transpose(0, 1).flatten(1).mT.reshape(1, 12, 3, 3)
    joined = read.transpose(0, 1).flatten(1) + F.pad(layer.convolution(image)[0].flatten(1).mT, (0, 0, 1, 0))
    want = layer.output(layer.output_norm(joined * F.silu(layer.gate(x))))
    torch.testing.assert_close(layer.attention(x), want)
    plain = SoftmaxAttention(12, 3, **shared).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain.queries(x), q)
    for name in ("gate", "convolution", "scale_norm"):
        with pytest.raises(ValueError, match=f"AgentAttention: no descent is claimed with {name}"):
            AgentAttention(12, 3, agents=SequencePool(4), **{name: True}).objective_at(torch.randn(9, 12))


def test_the_grid_can_come_with_the_call():
    layer = randomised(AgentAttention(12, 3, agents=GridPool((2, 2)), bias_window=(3, 5)))
    x = torch.randn(15, 12, dtype=torch.float64)
    assert not torch.equal(layer(x, grid=(3, 5)), layer(x, grid=(5, 3)))
    with pytest.raises(ValueError, match="the grid of the 15 patch tokens is not known"):
        layer(x)
    with pytest.raises(ValueError, match=r"the biases need the grid of the 14 patches, but it is \(3, 5\)"):
        AgentAttention(12, 3, agents=SequencePool(4), bias_window=(3, 5))(torch.randn(14, 12))


def test_published_poolings():
    """49 agents of a 7 × 7 grid, or 64 as CBSA's adaptation has them, of a square that holds the class token."""
    assert AgentAttention(12, 3).strategy.size == (7, 7)
    layer = AgentAttention(12, 3, agents=OfficialGridPool((8, 8)), class_tokens=1)
    assert layer.agents(torch.randn(2, 17, 12)).shape == (2, 3, 64, 4)


def test_single_precision_follows_double_and_a_state_goes_round():
    one, two = (AgentAttention(12, 3, agents=LearnedQueries(3, 3, 4), bias_window=(7, 1)) for _ in range(2))
    two.load_state_dict(one.state_dict())
    x = torch.randn(7, 12)
    assert torch.equal(one(x), two(x))
    torch.testing.assert_close(one(x), two.double()(x.double()).float(), rtol=1e-5, atol=1e-6)


def test_options_are_shown():
    assert "contraction=True" in repr(AgentAttention(12, 3, agents=Strided(2), contraction=True))
    assert "contraction" not in repr(AgentAttention(12, 3, agents=Strided(2)))


def test_every_seed_of_the_claims_is_one_of_the_options():
    """The claims' cases meet biases of the grid, of another one, and none, with contraction and without."""
    from proofs_check.claims.agent import _options

    seen = {_options(Case(tokens=6, seed=seed)) for seed in range(60)}
    assert {contraction for contraction, _ in seen} == {False, True}
    assert len({window for _, window in seen}) >= 3


@pytest.mark.parametrize("name", ["agent.values", "agent.step.exact", "agent.contraction", "agent.cost"])
def test_claims_name_what_they_are_about(name):
    assert find(name).code[0] == "unrolling.layers.agent:AgentAttention"


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: AgentAttention(12, agents=Tokens()), TypeError, "a strategy that pools queries .*but is Tokens"),
        (lambda: AgentAttention(12, agents=4), TypeError, "agents must be a strategy .*but is int"),
        (
            lambda: AgentAttention(12, agents=Strided(2), bias_window=(2, 2)),
            ValueError,
            "biases need a known number of agents, which Strided has not",
        ),
        (lambda: AgentAttention(12, bias_window=(2, 0)), ValueError, "AgentBias: columns must be at least 1"),
        (lambda: AgentAttention(12, bias_window=14), ValueError, r"window must be \(rows, columns\), but is 14"),
        (lambda: AgentAttention(12, bias_window=(1, 2, 3)), ValueError, r"window must be \(rows, columns\)"),
        (
            lambda: AgentAttention(12, bias_window=(2, 2), register_tokens=1),
            ValueError,
            "biases are of class tokens and patches; pass register_tokens=0",
        ),
        (lambda: AgentAttention(12, 3, dropout=1.0), ValueError, "dropout must be at least 0 and below 1"),
        (lambda: AgentAttention(12, 3, step_size=float("nan")), ValueError, "step_size must be a finite number"),
        (lambda: AgentAttention(12, 3, projections="some"), ValueError, "projections must be one of"),
        (lambda: AgentBias(0, 3), ValueError, "AgentBias: heads must be at least 1"),
        (lambda: AgentBias(1, 3, block=1.5), TypeError, "AgentBias: block must be an integer"),
        (lambda: AgentAttention(12, 3)(torch.randn(4, 9)), ValueError, r"must be \(..., tokens, dim=12\)"),
        (lambda: AgentAttention(12, 3)(torch.randn(4, 12).double()), TypeError, "x is torch.float64"),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()
