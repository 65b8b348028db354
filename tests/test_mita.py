import importlib
import itertools

import pytest
import torch

from proofs_check import find
from unrolling import (
    GridPool,
    GridRotary,
    LearnedQueries,
    MiTA,
    OfficialGridPool,
    SequencePool,
    Strided,
    Tokens,
    merge_attention,
    mita,
    top_indices,
)
from unrolling.kernels.tiles import repeated


def strategies():
    return {
        "grid": GridPool((2, 2), (3, 5)),
        "sequence": SequencePool(4),
        "more than tokens": SequencePool(19),
        "learned": LearnedQueries(5, 3, 4),
        "strided": Strided(3),
    }


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize("name", strategies())
@pytest.mark.parametrize(
    ("shared", "s", "deduplicate", "twice"),
    list(itertools.product((True, False), (1, 3), (False, True), (False, True))),
)
def test_forward_is_the_declared_step(name, shared, s, deduplicate, twice, device):
    options = {"shared": shared, "experts_per_query": s, "deduplicate": deduplicate, "twice_scaled": twice}
    layer = MiTA(12, 3, landmarks=strategies()[name], keys_per_expert=4, class_tokens=1, step_size=0.7, **options)
    layer = layer.double().to(device)
    x = torch.randn(2, 16, 12, dtype=torch.float64, device=device)
    assert off(layer, x) < 1e-12
    assert layer.token_count == (16 if name == "grid" else None)


@pytest.mark.parametrize("keys", [0, 1, 99])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_few_tokens_and_all_of_their_keys(keys, tokens):
    layer = MiTA(6, 2, landmarks=SequencePool(3), keys_per_expert=keys, experts_per_query=2).double()
    assert off(layer, torch.randn(tokens, 6, dtype=torch.float64)) < 1e-12


def operands(N=9, m=4, p=3, queries=7):
    return (torch.randn(2, n, p, dtype=torch.float64) for n in (queries, N, N, m))


def by_loops(q, k, v, r, count, s, shared=True, deduplicate=False, twice=False, scale=0.6):
    """One head, from the definition."""
    out = []
    for query in q:
        scores, values = [], []
        if shared:
            for mark in r:
                e = torch.exp(scale * (k @ mark))
                scores.append(scale * (query @ mark) * (scale if twice else 1))
                values.append(e @ v / e.sum())
        nearest = sorted(range(len(r)), key=lambda i: -float(r[i] @ query))[:s]
        seen = []
        for i in nearest:
            for j in sorted(range(len(k)), key=lambda j: -float(r[i] @ k[j]))[:count]:
                if not (deduplicate and j in seen):
                    scores.append(scale * (query @ k[j]))
                    values.append(v[j])
                seen.append(j)
        out.append(torch.softmax(torch.stack(scores), 0) @ torch.stack(values))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("count", "s", "shared", "deduplicate", "twice"),
    [(3, 1, True, False, False), (4, 3, True, False, True), (4, 3, True, True, False), (5, 2, False, False, False)],
)
def test_the_operator_is_its_definition(count, s, shared, deduplicate, twice):
    q, k, v, r = operands()
    got = mita(
        *(q, k, v, r),
        keys_per_expert=count,
        experts_per_query=s,
        shared=shared,
        scale=0.6,
        deduplicate=deduplicate,
        twice_scaled=twice,
    )
    for h in range(2):
        torch.testing.assert_close(got[h], by_loops(q[h], k[h], v[h], r[h], count, s, shared, deduplicate, twice))


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_queries_in_chunks_are_queries_at_once(chunk):
    q, k, v, r = operands()
    options = {"keys_per_expert": 3, "experts_per_query": 2}
    torch.testing.assert_close(mita(q, k, v, r, chunk=chunk, **options), mita(q, k, v, r, **options))


def test_landmarks_without_batch_axes_serve_a_batch():
    q, k, v, r = operands()
    torch.testing.assert_close(mita(q, k, v, r[0])[1], mita(q[1], k[1], v[1], r[0]))


def test_equal_products_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_indices(scores, 4).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    assert top_indices(scores, 0).shape == (2, 0)
    assert top_indices(scores, 9).shape == (2, 5)
    many = torch.zeros(1, 4000)  # an unstable sort shows at this length
    assert torch.equal(top_indices(many, 50)[0], torch.arange(50))


def test_later_occurrences_are_the_repeated_ones():
    index = torch.tensor([[3, 1, 3, 3, 0, 1], [5, 4, 3, 2, 1, 0]])
    assert repeated(index).int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]]


def test_memory_is_linear_in_tokens():
    """No array has more than chunk × pairs × dim, m × tokens or tokens × dim numbers."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in ([out] if isinstance(out, torch.Tensor) else []))
            return out

    q, k, v = (torch.randn(1, 600, 4) for _ in range(3))
    with Watch(), torch.no_grad():
        mita(q, k, v, q[:, ::100], keys_per_expert=5, experts_per_query=2, chunk=10, kernel="plain")
    assert max(sizes) <= 6 * 600


def test_parts_merge_into_one_softmax_and_so_do_their_gradients():
    A, B = (torch.randn(5, n, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    V, W = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    merged = merge_attention([(torch.softmax(S, -1) @ X, S.logsumexp(-1)) for S, X in ((A, V), (B, W))])
    one = torch.softmax(torch.cat([A, B], -1), -1) @ torch.cat([V, W])
    torch.testing.assert_close(merged, one)
    G = torch.randn_like(one)
    got, want = (torch.autograd.grad((y * G).sum(), (A, B), retain_graph=True) for y in (merged, one))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("options", [{}, {"experts_per_query": 2}, {"shared": False}, {"keys_per_expert": 0}])
def test_gradients_are_right_through_the_operator(options):
    q, k, v, r = (part.requires_grad_() for part in operands(N=5, m=3, p=2, queries=4))
    run = {"keys_per_expert": 2, **options}
    used = (q, k, v, r) if run.get("shared", True) else (q, k, v)
    assert torch.autograd.gradcheck(lambda *given: mita(*given, *(() if len(given) == 4 else (r,)), **run), used)


def test_gradients_are_right_through_the_layer():
    layer = MiTA(4, 2, landmarks=SequencePool(2), keys_per_expert=2, step_size=0.7).double()
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(z, *given):
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (z,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_all_keys_and_no_landmarks_are_softmax_attention():
    q, k, v, r = operands()
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for s in (1, 3):  # every key counted s times
        torch.testing.assert_close(mita(q, k, v, r, keys_per_expert=9, experts_per_query=s, shared=False), want)


def test_no_keys_are_agent_attention():
    q, k, v, r = operands()
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(mita(q, k, v, r, keys_per_expert=0), attend(q, r, attend(r, k, v)))


def test_a_query_may_be_routed_to_a_longer_one():
    q = torch.tensor([[1.0, 0.0], [3.0, 0.5]])
    k = torch.tensor([[1.0, 0.0], [1.0, 9.0], [-1.0, 0.0]])
    v = torch.eye(3)
    got = mita(q, k, v, q, keys_per_expert=1, shared=False)
    assert got.argmax(-1).tolist() == [1, 1]  # alone, the first query would take key 0
    assert mita(q[:1], k, v, q[:1], keys_per_expert=1, shared=False).argmax(-1).tolist() == [0]


@pytest.mark.parametrize("claim", ["mita.error.published", "mita.limits.self_routing"])
def test_every_stored_witness_refutes(claim):
    assert not any(find(claim).judge(case).truth for case in find(claim).structured)


def test_given_experts_take_the_place_of_the_chosen():
    q, k, v, r = operands()
    experts = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    got = mita(q, k, v, r, shared=False, experts=experts)
    routed = (q @ r.mT).argmax(-1)
    for h, i in itertools.product(range(2), range(7)):
        keys = experts[routed[h, i]]
        want = torch.softmax(3**-0.5 * (k[h, keys] @ q[h, i]), 0) @ v[h, keys]
        torch.testing.assert_close(got[h, i], want)


def test_the_auxiliaries_of_the_layer():
    layer = MiTA(12, 3, landmarks=GridPool((1, 2), (2, 4)), keys_per_expert=3, experts_per_query=2, class_tokens=1)
    x = torch.randn(9, 12)
    q, k, v = layer.queries(x), layer.keys(x), layer.values(x)
    patches = q[:, 1:].unflatten(1, (2, 4))
    marks = torch.stack([patches[:, :, :2].mean((1, 2)), patches[:, :, 2:].mean((1, 2))], 1)
    torch.testing.assert_close(layer.landmarks(x), marks)
    torch.testing.assert_close(layer.landmark_values(x), torch.softmax(0.5 * marks @ k.mT, -1) @ v)
    assert torch.equal(layer.selection(x), (marks @ k.mT).topk(3).indices)
    assert torch.equal(layer.routing(x), (q @ marks.mT).topk(2).indices)


def test_the_grid_can_come_with_the_call():
    layer = MiTA(12, 3, landmarks=GridPool((2, 2)), keys_per_expert=3)
    x = torch.randn(15, 12)
    assert not torch.equal(layer(x, grid=(3, 5)), layer(x, grid=(5, 3)))
    with pytest.raises(ValueError, match="the grid of the 15 patch tokens is not known"):
        layer(x)


@torch.no_grad()
def test_the_released_pooling_and_scaling():
    """Landmarks from all tokens but the last as a square; logits s² q·r for them, s q·k for keys; s = 1."""
    options = {"keys_per_expert": 3, "twice_scaled": True}
    layer = MiTA(12, 3, landmarks=OfficialGridPool((2, 2)), **options).double()
    x = torch.randn(17, 12, dtype=torch.float64)
    q, k, v = layer.queries(x), layer.keys(x), layer.values(x)
    r = torch.nn.functional.adaptive_avg_pool2d(q[:, :-1].mT.unflatten(-1, (4, 4)), 2).flatten(-2).mT
    want = torch.stack([by_loops(q[h], k[h], v[h], r[h], 3, 1, twice=True, scale=0.5) for h in range(3)])
    torch.testing.assert_close(layer.attention(x), layer.output(want.transpose(0, 1).flatten(1)))


def test_single_precision_follows_double_and_a_state_goes_round():
    make = {"landmarks": LearnedQueries(3, 3, 4), "keys_per_expert": 3}
    one, two = MiTA(12, 3, **make), MiTA(12, 3, landmarks=LearnedQueries(3, 3, 4), keys_per_expert=3)
    two.load_state_dict(one.state_dict())
    x = torch.randn(7, 12)
    assert torch.equal(one(x), two(x))
    torch.testing.assert_close(one(x), two.double()(x.double()).float(), rtol=1e-5, atol=1e-6)


def test_options_are_shown():
    layer = MiTA(12, 3, landmarks=Strided(2), shared=False, deduplicate=True)
    for part in ("keys_per_expert=25", "experts_per_query=1", "deduplicate", "shared=False", "Strided"):
        assert part in repr(layer)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: MiTA(12, landmarks=Tokens()), TypeError, r"is Tokens; .* use Strided\(1\)"),
        (lambda: MiTA(12, landmarks=4), TypeError, "a strategy that pools queries"),
        (lambda: MiTA(12, landmarks=SequencePool(2), experts_per_query=3), ValueError, "only 2 landmarks"),
        (lambda: MiTA(12, landmarks=LearnedQueries(2, 1, 12), experts_per_query=3), ValueError, "only 2 landmarks"),
        (lambda: MiTA(12, experts_per_query=26), ValueError, "only 25 landmarks"),
        (lambda: MiTA(12, shared=False, keys_per_expert=0), ValueError, "MiTA: .* nothing to attend to"),
        (lambda: MiTA(12, keys_per_expert=-1), ValueError, "keys_per_expert must be at least 0"),
        (lambda: MiTA(12, experts_per_query=1.5), TypeError, "experts_per_query must be an integer"),
        (lambda: mita(*operands(), shared=False, keys_per_expert=0), ValueError, "mita: .* nothing to attend to"),
        (lambda: mita(*operands(), experts_per_query=0), ValueError, "mita: experts_per_query must be at least 1"),
        (
            lambda: mita(*(torch.randn(4, n) for n in (2, 3, 3, 2))),
            ValueError,
            "must share their last axis",
        ),
        (
            lambda: mita(torch.randn(4, 2), torch.randn(4, 2), torch.randn(5, 2), torch.randn(1, 2)),
            ValueError,
            r"k and v \(5, 2\) their tokens",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_queries_may_be_pooled_before_their_norm_and_places():
    options = {"qk_norm": "layer", "rotary": GridRotary(4, 3), "keys_per_expert": 2, "landmarks": SequencePool(3)}
    early = MiTA(12, 3, pool_before_norm=True, **options).double()
    late = MiTA(12, 3, **options).double()
    late.load_state_dict(early.state_dict())
    x = torch.randn(9, 12, dtype=torch.float64)
    raw = early.query(x).reshape(3, 3, 3, 4).mean(1)  # thirds of the tokens, heads, features
    torch.testing.assert_close(early.landmarks(x), raw.transpose(0, 1))
    torch.testing.assert_close(late.landmarks(x), late.queries(x).unflatten(1, (3, 3)).mean(2))
    torch.testing.assert_close(early.queries(x), late.queries(x))
    for layer in (early, late):
        assert off(layer, x) < 1e-12
        torch.testing.assert_close(
            layer.attention(x), layer.output((layer.attention_map(x) @ layer.values(x)).transpose(0, 1).flatten(1))
        )


def test_registers_are_read_but_not_pooled():
    layer = MiTA(12, 3, landmarks=GridPool((1, 1)), keys_per_expert=2, class_tokens=1, register_tokens=3).double()
    x = torch.randn(1 + 6 + 3, 12, dtype=torch.float64)
    torch.testing.assert_close(layer.landmarks(x, (2, 3)), layer.queries(x)[:, 1:7].mean(1, keepdim=True))
    moved = x.clone()
    moved[-1] += 1
    assert not torch.allclose(layer.landmark_values(x, (2, 3)), layer.landmark_values(moved, (2, 3)))


def test_the_pieces_of_a_compiled_graph_do_not_depend_on_the_batch(monkeypatch):
    # Gathered numbers are bounded for the batch at hand; while a graph is made, for one example of any batch.
    module = importlib.import_module("unrolling.kernels.mita")

    splits = []
    monkeypatch.setattr(module, "_CHUNK", 2 * 8 * 3)  # two queries of one head: 3 keys of 4 and 4 numbers
    original = torch.Tensor.split
    monkeypatch.setattr(
        torch.Tensor, "split", lambda self, size, dim=0: splits.append(size) or original(self, size, dim)
    )
    q, k, v = (torch.randn(2, 1, 8, 4) for _ in range(3))
    for compiling, want in ((False, 1), (True, 2)):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        module.mita(q, k, v, q[..., :2, :], keys_per_expert=3)
        assert splits.pop() == want
