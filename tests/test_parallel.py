"""Layers on shards of tokens equal the layers on all tokens: two and three processes, uneven shards, on gloo."""

import os
import tempfile
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from unrolling import (
    CBSA,
    MSSA,
    SVD,
    TSSA,
    AgentAttention,
    Axes,
    GridPool,
    LearnedQueries,
    MiTA,
    OfficialGridPool,
    SequencePool,
    SoftmaxAttention,
    Strided,
    Tokens,
    parallel,
)
from unrolling.kernels import tiles
from unrolling.parallel import ContextParallel, Shard, gather_tokens, shard_tokens, sum_gradients

N, DIM, HEADS = 25, 12, 3
GRID = (4, 6)  # of the patches behind one class token

LAYERS = {
    f"cbsa {form} {name}": (
        lambda form=form, make=make, **k: CBSA(
            DIM, HEADS, form=form, representatives=make(), class_tokens=1, per_head_step=True, **k
        )
    )
    for form in ("exact", "softmax", "agent")
    for name, make in {
        "even grid": lambda: GridPool((2, 3)),
        "uneven grid": lambda: GridPool((3, 4)),
        "sequence": lambda: SequencePool(5),
        "more than tokens": lambda: SequencePool(31),
        "learned": lambda: LearnedQueries(5, HEADS, DIM // HEADS),
        "strided": lambda: Strided(4),
    }.items()
}
LAYERS |= {
    "cbsa kept": lambda **k: CBSA(DIM, HEADS, form="softmax", representatives=SequencePool(5), keep_queries=True, **k),
    "cbsa official": lambda **k: CBSA(
        DIM, HEADS, form="softmax", representatives=OfficialGridPool((2, 2), (9,)), tied=False, **k
    ),
    "cbsa certified": lambda **k: CBSA(DIM, HEADS, representatives=SequencePool(5), certified=True, **k),
    "cbsa certified softmax": lambda **k: CBSA(
        DIM, HEADS, form="softmax", representatives=SequencePool(5), certified=True, **k
    ),
    "cbsa tokens": lambda **k: CBSA(DIM, HEADS, representatives=Tokens(), **k),
    "cbsa svd": lambda **k: CBSA(DIM, HEADS, representatives=SVD(), **k),
    "cbsa axes": lambda **k: CBSA(DIM, HEADS, representatives=Axes(), **k),
    "mssa": lambda **k: MSSA(DIM, HEADS, **k),
    "mssa certified": lambda **k: MSSA(DIM, HEADS, certified=True, **k),
    "tssa": lambda **k: TSSA(DIM, HEADS, eta=0.2, **k),
    "tssa certified": lambda **k: TSSA(DIM, HEADS, certified=True, **k),
    "tssa normalised": lambda **k: TSSA(DIM, HEADS, normalise_tokens=True, count_offset=1e-3, **k),
    "tssa causal": lambda **k: TSSA(DIM, HEADS, causal=True, position_bias=30, **k),
    "tssa causal normalised": lambda **k: TSSA(DIM, HEADS, causal=True, normalise_tokens=True, **k),
    "tssa causal certified": lambda **k: TSSA(DIM, HEADS, causal=True, certified=True, **k),
    "agent": lambda **k: AgentAttention(DIM, HEADS, agents=SequencePool(4), step_size=0.7, **k),
    "agent contracted": lambda **k: AgentAttention(
        DIM, HEADS, agents=GridPool((2, 3)), contraction=True, class_tokens=1, qk_norm="layer", gate=True, **k
    ),
    "mita": lambda **k: MiTA(DIM, HEADS, landmarks=SequencePool(4), keys_per_expert=3, step_size=0.7, **k),
    "mita two experts": lambda **k: MiTA(
        DIM, HEADS, landmarks=GridPool((2, 3)), keys_per_expert=5, experts_per_query=2, class_tokens=1, **k
    ),
    "mita once": lambda **k: MiTA(
        DIM, HEADS, landmarks=SequencePool(4), keys_per_expert=9, experts_per_query=3, deduplicate=True, **k
    ),
    "mita routed": lambda **k: MiTA(
        DIM,
        HEADS,
        landmarks=SequencePool(4),
        keys_per_expert=40,
        shared=False,
        pool_before_norm=True,
        qk_norm="rms",
        **k,
    ),
    "mita agents": lambda **k: MiTA(DIM, HEADS, landmarks=SequencePool(4), keys_per_expert=0, **k),
}


def run(ranks, work, *arguments):
    """Calls work(rank, ranks, *arguments) in so many processes; what one raises is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(enter, (ranks, os.path.join(folder, "meet"), work, arguments), ranks)


def enter(rank, ranks, file, work, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    try:
        work(rank, ranks, *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def close(got, want, what):
    error, size = float((got - want).detach().abs().max()), float(want.detach().abs().max())
    assert error <= 1e-11 * (1e-2 + size), (what, error, size)


def one_and_many(rank, ranks, counts):
    for name, make in LAYERS.items():
        for kernel in ("plain", "fast"):
            torch.manual_seed(1)
            layer = make(kernel=kernel).double()
            for parameter in layer.parameters():
                if parameter.shape == (HEADS, 30):
                    torch.nn.init.normal_(parameter)
            call = (GRID,) if getattr(layer, "class_tokens", 0) else ()
            x = torch.randn(2, N, DIM, dtype=torch.float64, requires_grad=True)
            direction = torch.randn(2, N, DIM, dtype=torch.float64)
            want = layer(x, *call)
            wanted = torch.autograd.grad(
                want, [x, *layer.parameters()], direction, allow_unused=True, materialize_grads=True
            )
            part = shard_tokens(x, counts).detach().requires_grad_()
            got = ContextParallel(layer)(part, *call)
            close(got, shard_tokens(want, counts), (name, kernel, "forward"))
            got.backward(shard_tokens(direction, counts))
            sum_gradients(layer)
            close(part.grad, shard_tokens(wanted[0], counts), (name, kernel, "tokens"))
            for (parameter, values), gradient in zip(layer.named_parameters(), wanted[1:], strict=True):
                close(values.grad, gradient, (name, kernel, parameter))
    twice(rank, counts)
    whole = gather_tokens(shard_tokens(x.detach(), counts))
    assert torch.equal(whole, x.detach())
    part = shard_tokens(x.detach(), counts).clone().requires_grad_()
    (gather_tokens(part) * direction).sum().div(ranks).backward()
    close(part.grad, shard_tokens(direction, counts), "gathering")


def twice(rank, counts):
    """Second derivatives go through the formulas, sums over ranks included."""
    torch.manual_seed(2)
    layer = CBSA(DIM, HEADS, form="softmax", representatives=SequencePool(5), kernel="fast").double()
    x = torch.randn(1, N, DIM, dtype=torch.float64, requires_grad=True)
    part = shard_tokens(x, counts).detach().requires_grad_()
    found = []
    for run_layer, given, whole in ((layer, x, True), (ContextParallel(layer), part, False)):
        (first,) = torch.autograd.grad(run_layer(given).square().sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given)
        found.append(shard_tokens(second, counts) if whole else second)
    close(found[1], found[0], "second derivative")


@pytest.mark.parametrize("counts", [(7, 18), (11, 1, 13)], ids=str)
def test_shards_equal_the_whole(counts):
    run(len(counts), one_and_many, counts)


def sums_stay_small(rank, ranks):
    """No collective carries more numbers for more tokens."""
    seen = {}
    for tokens in (40, 400):
        for name in ("cbsa softmax sequence", "tssa", "mssa", "agent", "mita"):
            sent, original = [], dist.all_reduce
            dist.all_reduce = lambda t, *a, sent=sent, original=original, **k: (
                sent.append(t.numel()) or original(t, *a, **k)
            )
            layer = LAYERS[name]()
            x = torch.randn(1, tokens // ranks, DIM, requires_grad=True)
            try:
                ContextParallel(layer)(
                    x, *([(1, tokens - 1)] if getattr(layer, "class_tokens", 0) else [])
                ).sum().backward()
            finally:
                dist.all_reduce = original
            seen.setdefault(name, []).append(sorted(sent))
    assert all(few == many for few, many in seen.values()), seen
    assert max(seen["tssa"][0]) <= DIM // HEADS * HEADS + HEADS


def test_what_is_exchanged_does_not_grow_with_the_tokens():
    run(2, sums_stay_small)


def test_what_needs_all_tokens_is_refused():
    with pytest.raises(TypeError, match="SoftmaxAttention has no form whose tokens can be shared out"):
        ContextParallel(SoftmaxAttention(8, 2))
    for layer, says in (
        (MSSA(8, 2, form="softmax"), "form='softmax'"),
        (CBSA(8, 2, form="softmax", representatives=Tokens()), "representatives=Tokens"),
        (AgentAttention(8, 2, convolution=True), "convolution"),
        (TSSA(8, 2, dropout=0.1), "dropout"),
        (MiTA(8, 2, register_tokens=1), "register_tokens"),
    ):
        with pytest.raises(ValueError, match=says):
            ContextParallel(layer)


def test_a_grid_of_other_than_all_patches_is_refused():
    shard = Shard((3, 4), 0)
    assert (shard.start, shard.total, shard.ranks) == (0, 7, 2)
    with pytest.raises(ValueError, match="must hold the 6 patches of all ranks"):
        parallel.pool_over(GridPool((2, 2)), torch.randn(1, 3, 2), 1, (2, 2), shard)


def empty_shard(rank, ranks):
    with pytest.raises(ValueError, match="at least one token"):
        Shard.of(rank)
    with pytest.raises(ValueError, match="counts must be 2 numbers"):
        shard_tokens(torch.randn(5, 3), (5, 0))


def test_a_rank_without_tokens_is_told():
    run(2, empty_shard)


def equal_keys(rank, ranks):
    k = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0, 1.0, 2.0]).view(1, 7, 1)
    landmarks = torch.ones(1, 1, 1)
    shard = Shard((3, 4), rank)
    for count in (1, 2, 3, 6, 9):
        found = parallel._chosen(landmarks, shard_tokens(k, (3, 4)), count, shard)
        want = tiles.top_indices(landmarks @ k.mT, count)
        assert torch.equal(found, want), (count, found, want)


def test_ties_between_ranks_are_won_by_the_lower_place():
    run(2, equal_keys)
