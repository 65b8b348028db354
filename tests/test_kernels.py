"""Fast paths against their plain twins: forward, backward and twice, on shapes that blocks do not divide."""

import importlib
import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from objectives import CodingRate
from unrolling import (
    CBSA,
    MSSA,
    TSSA,
    AgentAttention,
    GridPool,
    LearnedQueries,
    MiTA,
    SequencePool,
    SoftmaxAttention,
    Strided,
    kernels,
    mita,
)
from unrolling.attend import attend
from unrolling.kernels import choice, scratch, tiles
from unrolling.models import create

TIGHT = {torch.float64: 1e-11, torch.float32: 1e-5}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(kernels.cbsa, "BLOCK", 4)
    monkeypatch.setattr(kernels.cbsa, "PIECE", 32)
    monkeypatch.setattr(kernels.tssa, "CHUNK", 40)
    monkeypatch.setattr(kernels.routed, "HELD", 64)
    monkeypatch.setattr(kernels.routed, "TABLES", 256)


@pytest.fixture(params=["kept", "computed again"])
def held(request, monkeypatch, small):
    monkeypatch.setattr(kernels.cbsa, "HELD", 1 << 20 if request.param == "kept" else 16)


def close(got, want, allowed):
    for index, (one, two) in enumerate(zip(got, want, strict=True)):
        error, size = (one - two).detach().abs().max(), two.detach().abs().max()
        assert error <= allowed * (1e-2 + size), (index, float(error), float(size))


def everything(run, inputs, second=True):
    """The result, the gradients of a random sum of it, and the gradients of the sum of their squares."""
    out = run()
    direction = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0)).to(out.device)
    first = torch.autograd.grad(out, inputs, direction, create_graph=second, allow_unused=True, materialize_grads=True)
    if not second:
        return [out, *first]
    squares = sum(each.square().sum() for each in first)
    return [out, *first], torch.autograd.grad(squares, inputs, allow_unused=True, materialize_grads=True)


def agree(layer, x, *arguments, dtype=torch.float64):
    inputs = [x, *layer.parameters()]
    results = {}
    for kernel, second in (("plain", True), ("fast", False), ("fast", True)):
        layer.kernel = kernel
        results[kernel, second] = everything(lambda: layer(x, *arguments), inputs, second)
    first, twice = results["plain", True]
    close(results["fast", False], first, TIGHT[dtype])
    close(results["fast", True][0], first, TIGHT[dtype])
    close(results["fast", True][1], twice, 1e3 * TIGHT[dtype])
    assert all(not torch.equal(each, torch.zeros_like(each)) for each in first[:2])


POOLS = {
    "sequence": lambda N: SequencePool(5),
    "uneven grid": lambda N: GridPool((2, 3), (1, N)),
    "learned": lambda N: LearnedQueries(6, 3, 4),
    "strided": lambda N: Strided(3),
    "more than tokens": lambda N: SequencePool(N + 4),
}


@pytest.mark.parametrize("form", ["exact", "softmax", "agent"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("N", "certified", "keep"), [(1, False, False), (7, True, False), (37, False, True), (64, True, False)]
)
def test_cbsa_agrees(form, pool, N, certified, keep, held):
    options = {"certified": certified, "keep_queries": keep, "per_head_step": True, "step_size": 0.7}
    layer = CBSA(12, 3, representatives=POOLS[pool](N), form=form, **options).double()
    agree(layer, torch.randn(2, N, 12, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("N", "normalise"), [(1, True), (7, False), (37, True), (64, False)])
@pytest.mark.parametrize("options", [{"certified": True}, {"unit_step": True, "count_offset": 1e-3}, {}])
def test_tssa_agrees(causal, N, normalise, options, small):
    if causal and not options:
        options = {"position_bias": 70}
    layer = TSSA(12, 3, causal=causal, normalise_tokens=normalise, per_head_step=True, eta=0.2, **options).double()
    for parameter in layer.parameters():
        if parameter.shape == (3, 70):
            torch.nn.init.normal_(parameter)
    agree(layer, torch.randn(2, 2, N, 12, dtype=torch.float64, requires_grad=True))


ROUTES = list(itertools.product((0, 3, 60), (1, 2, 4), (True, False), (False, True), (False, True)))


@pytest.mark.parametrize("N", [1, 7, 37])
@pytest.mark.parametrize(("keys", "experts", "shared", "deduplicate", "given"), ROUTES)
def test_mita_agrees(N, keys, experts, shared, deduplicate, given, small):
    if not shared and not keys:
        return
    dtype, m = torch.float64, 5
    q, k, r = (torch.randn(2, 3, n, 4, dtype=dtype, requires_grad=True) for n in (N, N, m))
    v = torch.randn(2, 3, N, 6, dtype=dtype, requires_grad=True)
    chosen = torch.randint(0, N, (2, 3, m, max(keys, 1))) if given else None
    options = {"keys_per_expert": keys, "experts_per_query": experts, "shared": shared, "deduplicate": deduplicate}
    options |= {"experts": chosen, "twice_scaled": N == 7}
    found = [everything(lambda name=name: mita(q, k, v, r, kernel=name, **options), [q, k, v, r]) for name in TWO]
    close(found[1][0], found[0][0], TIGHT[dtype])
    close(found[1][1], found[0][1], 1e3 * TIGHT[dtype])
    once = everything(lambda: mita(q, k, v, r, kernel="fast", **options), [q, k, v, r], second=False)
    close(once, found[0][0], TIGHT[dtype])


TWO = ("plain", "fast")


@pytest.mark.parametrize("N", [1, 7, 37])
@pytest.mark.parametrize(("keys", "experts", "shared", "deduplicate", "given"), ROUTES)
def test_masked_mita_agrees(N, keys, experts, shared, deduplicate, given):
    if not shared and not keys:
        return
    q, k, v, r = (torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True) for n in (N, N, N, 5))
    chosen = torch.randint(0, N, (2, 3, 5, max(keys, 1))) if given else None
    how = kernels.Routing(0.5, keys, experts, shared, deduplicate, N == 7)
    paths = (kernels.mita_plain, kernels.mita_masked)
    found = [everything(lambda path=path: path(q, k, v, r, how, chosen), [q, k, v, r]) for path in paths]
    close(found[1][0], found[0][0], 1e-11)
    close(found[1][1], found[0][1], 1e-8)


def test_few_tokens_are_masked_and_many_sorted(monkeypatch):
    taken = []
    module = importlib.import_module("unrolling.kernels.mita")
    for name in ("mita_plain", "mita_masked", "routed_attention"):
        monkeypatch.setattr(module, name, lambda *a, name=name: taken.append(name) or a[0])
    for tokens in (4, 300, 2000):
        x = torch.randn(2, tokens, 4)
        mita(x, x, x, x[:, :2])
    assert taken == ["mita_plain", "mita_masked", "routed_attention"]


def test_mita_with_an_expert_that_all_queries_choose_and_others_empty(small):
    k, v = torch.randn(1, 40, 4, dtype=torch.float64), torch.randn(1, 40, 4, dtype=torch.float64)
    r = torch.randn(1, 6, 4, dtype=torch.float64)
    q = (10 * r[:, 2:3] + 0.1 * torch.randn(1, 40, 4, dtype=torch.float64)).requires_grad_()
    found = [everything(lambda name=name: mita(q, k, v, r, keys_per_expert=3, kernel=name), [q]) for name in TWO]
    close(found[1][0], found[0][0], 1e-11)


def test_ties_are_won_by_the_lower_index():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    for count in (1, 2, 3, 9):
        want = tiles.top_indices(scores, count).sort(-1).values
        assert torch.equal(tiles.top_unordered(scores, count).sort(-1).values, want)
    q = torch.ones(1, 8, 2, dtype=torch.float64)
    v = torch.arange(16, dtype=torch.float64).view(1, 8, 2)
    plain, fast = (mita(q, q, v, q[:, :3], keys_per_expert=2, shared=False, kernel=name) for name in TWO)
    torch.testing.assert_close(fast, plain)


def test_tiles_hold_every_entry_once():
    experts = torch.randint(0, 5, (37,))
    cut = tiles.Tiles.of(experts, 6, 4)
    assert torch.equal(cut.entry[cut.used].sort().values, torch.arange(37))
    assert torch.equal(experts[cut.entry][cut.used], cut.expert[:, None].expand_as(cut.used)[cut.used])
    rows = torch.randn(37, 3)
    torch.testing.assert_close(cut.back(cut.read(rows)), rows)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("p", [1, 2, 3])  # heads = p: a matrix could be read as a batch of vectors
def test_mssa_agrees(heads, p):
    layer = MSSA(heads * p, heads, step_size=0.7).double()
    agree(layer, torch.randn(2, 17, heads * p, dtype=torch.float64, requires_grad=True))
    soft = MSSA(heads * p, heads, form="softmax", step_size=0.7).double()
    x = torch.randn(2, 17, heads * p, dtype=torch.float64, requires_grad=True)
    once = []
    for soft.kernel in TWO:
        once.append(everything(lambda: soft(x), [x, *soft.parameters()], second=False))
    close(once[1], once[0], 1e-11)


@pytest.mark.parametrize("make", [SoftmaxAttention, AgentAttention, MiTA])
def test_attention_layers_agree(make, device):
    options = {"agents": SequencePool(4)} if make is AgentAttention else {}
    options |= {"landmarks": SequencePool(4), "keys_per_expert": 3} if make is MiTA else {}
    layer = make(12, 3, step_size=0.7, **options).double().to(device)
    x = torch.randn(2, 19, 12, dtype=torch.float64, requires_grad=True, device=device)
    found = []
    for layer.kernel in TWO:
        found.append(everything(lambda: layer(x), [x, *layer.parameters()], second=False))
    close(found[1], found[0], 1e-11)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (40, 4), (1, 1), (2, 3, 17, 2)])
def test_the_coding_rate_agrees(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain, fast = (everything(lambda name=name: kernels.coding_rate(x, 0.7, kernel=name), [x]) for name in TWO)
    close(fast[0], plain[0], 1e-11)
    close(fast[1], plain[1], 1e-8)
    found = CodingRate(0.7).value_and_gradient(x.detach())
    close(found, [CodingRate(0.7).value(x.detach()), CodingRate(0.7).gradient(x.detach())], 0)


def test_an_inverse_loses_nothing_that_the_gram_matrix_has_not_lost():
    """Rows along the largest directions are where an explicit inverse could cancel."""
    turned = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    x = (torch.randn(400, 16, dtype=torch.float64) * torch.logspace(0, -3, 16, dtype=torch.float64)) @ turned
    want = CodingRate(0.1).gradient(x)
    beta = 16 / (400 * 0.01)
    factor = torch.linalg.cholesky(torch.eye(16) + beta * (x.float().mT @ x.float()))
    solved = beta * torch.cholesky_solve(x.float().mT, factor).mT
    errors = [
        float((each.double() - want).norm() / want.norm()) for each in (CodingRate(0.1).gradient(x.float()), solved)
    ]
    assert errors[0] <= 2 * errors[1] < 1e-3


@pytest.mark.parametrize("N", [1, 5, 6, 7, 100])
@pytest.mark.parametrize("way", ["tensor", "pieces", "array", "file"])
def test_a_stream_has_the_rate_of_all_its_tokens(N, way, tmp_path):
    x = torch.randn(N, 6, dtype=torch.float64)
    np.save(tmp_path / "tokens.npy", x.numpy())
    rows = {
        "tensor": x,
        "pieces": iter(x.split(3)),
        "array": x.numpy(),
        "file": np.load(tmp_path / "tokens.npy", mmap_mode="r"),
    }[way]
    found = kernels.streamed_rate(rows, 0.3, chunk=4)
    torch.testing.assert_close(found.value, CodingRate(0.3).value(x))
    torch.testing.assert_close(found.gradient(x[2:5]), CodingRate(0.3).gradient(x)[2:5])
    assert found.tokens == N


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows came"),
        ([torch.randn(2, 3), torch.randn(2, 4)], "width 4 after pieces of width 3"),
        ([torch.randn(2)], r"must be \(rows, dim\)"),
        ([torch.tensor([[float("nan"), 1.0]])], "NaN or infinite"),
        (torch.randn(2, 3, 4), r"must be a matrix \(tokens, dim\)"),
    ],
)
def test_a_stream_of_what_is_no_tokens_is_refused(rows, says):
    with pytest.raises(ValueError, match=says):
        kernels.streamed_rate(rows)


def test_a_stream_whose_squares_have_lost_the_rate_is_refused():
    for seed in range(12):  # rounding makes some of the pivots negative, and others positive noise
        torch.manual_seed(seed)
        long = 1e5 * torch.randn(50, 1) * torch.ones(1, 2) + torch.randn(50, 2)
        with pytest.raises(ValueError, match=r"squaring these rows loses the rate.*double precision"):
            kernels.streamed_rate(long, 0.1)
    wide = torch.randn(50, 4)  # as long beside ε, but in all directions
    want = CodingRate(1e-6).value(wide.double())
    torch.testing.assert_close(kernels.streamed_rate(wide, 1e-6).value, want, rtol=1e-6, atol=0)
    double = long.double() / 100
    torch.testing.assert_close(kernels.streamed_rate(double, 0.1).value, CodingRate(0.1).value(double))
    with pytest.raises(ValueError, match="tokens must be at least 1, but is 0"):
        kernels.streamed_rate(long, tokens=0)


def test_a_stream_holds_one_piece():
    biggest = Biggest()
    with biggest:
        kernels.streamed_rate(torch.randn(50, 8) for _ in range(100))
    assert biggest.numbers <= 50 * 8


class Biggest(TorchDispatchMode):
    """The most numbers that one tensor of those made had."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [out] if isinstance(out, torch.Tensor) else []
        self.numbers = max([self.numbers, *(each.untyped_storage().nbytes() // each.element_size() for each in made)])
        return out


LAYERS = {
    "cbsa": lambda: CBSA(12, 3, representatives=SequencePool(5), form="softmax"),
    "tssa": lambda: TSSA(12, 3),
    "tssa causal": lambda: TSSA(12, 3, causal=True),
    "mita": lambda: MiTA(12, 3, landmarks=SequencePool(5), keys_per_expert=4),
    "mssa": lambda: MSSA(12, 3),
}


@pytest.mark.parametrize("make", [CBSA, TSSA, MiTA])
def test_no_array_is_larger_than_the_tokens(make, monkeypatch):
    monkeypatch.setattr(kernels.cbsa, "HELD", 64)
    monkeypatch.setattr(kernels.cbsa, "BLOCK", 50)
    monkeypatch.setattr(kernels.cbsa, "PIECE", 2000)
    monkeypatch.setattr(kernels.routed, "HELD", 2000)
    monkeypatch.setattr(kernels.routed, "TABLES", 64)
    options = {"representatives": SequencePool(40)} if make is CBSA else {}
    options |= {"landmarks": SequencePool(40), "keys_per_expert": 8, "step_size": 0.5} if make is MiTA else {}
    layer = make(12, 3, kernel="fast", **options)
    x = torch.randn(1, 500, 12, requires_grad=True)
    limit = 500 * 12
    kernels.release()  # rooms that other tests have left
    biggest = Biggest()
    with biggest:
        layer(x).square().mean().backward()
    assert biggest.numbers <= limit
    layer.kernel = "plain"
    if make is not TSSA:  # the plain twins store 3 × 40 × 500 weights, or the gathered keys
        with biggest:
            layer(x).square().mean().backward()
        assert biggest.numbers > limit


@pytest.mark.parametrize("name", LAYERS)
def test_rooms_that_are_kept_do_not_show(name, small):
    """The same twice, smaller and larger in between, inference mode among them; and released, nothing is held."""
    layer = LAYERS[name]().double()
    layer.kernel = "fast"
    x = torch.randn(2, 50, 12, dtype=torch.float64)
    kernels.release()
    with torch.inference_mode():
        first = layer(x)
    others = [everything(lambda n=n: layer(x[:, :n]), list(layer.parameters()), second=False) for n in (7, 50, 23)]
    with torch.no_grad():
        assert torch.equal(layer(x), first)
    kernels.release()
    again = [everything(lambda n=n: layer(x[:, :n]), list(layer.parameters()), second=False) for n in (7, 50, 23)]
    for one, two in zip(others, again, strict=True):
        close(one, two, 0)
    kernels.release()
    assert not scratch._rooms.held


@pytest.mark.parametrize("name", LAYERS)
def test_any_strides_and_batch_axes(name, small):
    layer = LAYERS[name]().double()
    plain = torch.randn(3, 23, 12, dtype=torch.float64)
    with torch.no_grad():
        layer.kernel = "plain"
        want = layer(plain)
        layer.kernel = "fast"
        for given in (plain, plain.mT.contiguous().mT, plain.repeat_interleave(2, 1)[:, ::2]):
            torch.testing.assert_close(layer(given), want)
        expanded = plain[:1].expand(4, 2, 23, 12)
        torch.testing.assert_close(layer(expanded), want[:1].expand(4, 2, 23, 12))
        torch.testing.assert_close(layer(plain[1]), want[1])
        spread = torch.randn(3, 23, 24, dtype=torch.float64)
        torch.testing.assert_close(layer(spread[..., ::2]), layer(spread[..., ::2].contiguous()))


@pytest.mark.parametrize("name", LAYERS)
def test_single_precision_is_as_good_as_the_formulas(name, small):
    layer, exact = LAYERS[name](), LAYERS[name]().double()
    exact.load_state_dict(layer.state_dict())
    exact.kernel = "plain"
    x = torch.randn(2, 50, 12)
    errors = {}
    with torch.no_grad():
        want = exact(x.double())
        for layer.kernel in TWO:
            errors[layer.kernel] = float((layer(x) - want).norm() / want.norm())
    assert errors["fast"] <= max(4 * errors["plain"], 2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fast_paths_on_a_gpu(name, dtype):
    layer = LAYERS[name]().double().cuda()
    x = torch.randn(2, 500, 12, dtype=torch.float64, device="cuda", requires_grad=True)
    layer.kernel = "plain"
    want = everything(lambda: layer(x), [x], second=False)
    layer, given = layer.to(dtype), x.detach().to(dtype).requires_grad_()
    errors = {}
    for layer.kernel in TWO:
        got = everything(lambda: layer(given), [given], second=False)
        errors[layer.kernel] = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))
    assert errors["fast"] <= max(2 * errors["plain"], 1e-12)


def test_a_path_can_be_forced_and_is_chosen_by_size(monkeypatch):
    taken = []
    monkeypatch.setattr(kernels.cbsa, "contract_broadcast_plain", lambda *a, **k: taken.append("plain") or a[0])
    layer = CBSA(12, 3, representatives=SequencePool(5), form="softmax")
    x = torch.randn(1, 23, 12)
    for layer.kernel, want in (("plain", ["plain"]), ("fast", []), ("auto", ["plain"])):
        taken.clear()
        layer(x)
        assert taken == want
    monkeypatch.setattr(kernels.cbsa, "LONG", 20)
    monkeypatch.setattr(kernels.cbsa, "WORTH", 100)
    taken.clear()
    layer(x)
    assert taken == []
    with pytest.raises(ValueError, match="kernel must be one of 'auto', 'plain', 'fast', but is 'triton'"):
        CBSA(12, 3, kernel="triton")
    with pytest.raises(ValueError, match="kernel must be one of"):
        mita(x, x, x, x[:, :2], kernel="slow")


def test_what_sees_through_formulas_gets_them():
    x = torch.randn(4, 4)
    always = (lambda: True, x)
    assert choice.choose("test", "auto", *always) == "fast"
    assert choice.choose("test", "auto", lambda: True, x.to("meta")) == "plain"
    assert choice.choose("test", "auto", lambda: True, x.bfloat16()) == "plain"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert choice.choose("test", "auto", *always) == "plain"
    with torch.autograd.forward_ad.dual_level():
        assert choice.choose("test", "auto", *always) == "plain"
    seen = []
    torch.func.vmap(lambda row: seen.append(choice.choose("test", "auto", lambda: True, row)) or row)(x)
    assert seen == ["plain"]
    torch.testing.assert_close(attend(x, x, x, 1.0, kernel="fast"), attend(x, x, x, 1.0, kernel="plain"))


@pytest.mark.parametrize("attention", ["cbsa", "mssa", "mssa exact", "tssa", "tssa exact", "agent", "softmax"])
def test_a_path_that_is_forced_works_under_autocast(attention):
    """Forward and backward as far from single precision as bfloat16 is. (MiTA selects other keys: it has no such bound.)"""
    kind, _, form = attention.partition(" ")
    options = {"form": form} if form else {}
    model = create("cbt-tiny", attention=kind, depth=1, num_classes=10, img_size=96, **options)
    for module in model.modules():
        if isinstance(getattr(module, "kernel", None), str):
            module.kernel = "fast"
    x, found = torch.randn(2, 3, 96, 96), []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = model(x)
        y.float().square().sum().backward()
        grads = [p.grad for name, p in model.named_parameters() if ".attention." in name and p.grad is not None]
        found.append([y.float().detach(), torch.cat([grad.flatten() for grad in grads])])
    for exact, rounded in zip(*found, strict=True):
        assert float((exact - rounded).norm()) <= 0.05 * float(exact.norm())
        assert not torch.equal(exact, rounded)


@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_of_the_token_statistics_keeps_all_that_it_is_given(causal):
    """Forced, with the bias of the lengths and a step of every head: as near to single precision as its inputs are."""
    from unrolling.kernels.tssa import Statistics, shrink

    how = Statistics(rate=4.0, causal=causal)
    w, temperature, step = (
        torch.randn(2, 3, 50, 4),
        torch.tensor([0.5, 1.0, 2.0]),
        torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1),
    )
    bias = 3 * torch.randn(3, 50) if causal else None
    rounded = shrink(w.bfloat16(), temperature, step, how, bias, kernel="fast")
    exact = shrink(w.bfloat16().float(), temperature, step, how, bias, kernel="plain")
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - exact).norm()) < 0.01 * float(exact.norm())
