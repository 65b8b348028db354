import itertools

import pytest
import torch

from objectives import project
from unrolling import (
    CBSA,
    MSSA,
    SVD,
    Axes,
    GridPool,
    LearnedQueries,
    OfficialGridPool,
    SequencePool,
    Strided,
    Tokens,
)


def strategies(patches=15):
    return {
        "grid": GridPool((2, 3), (3, patches // 3)),
        "more than tokens": SequencePool(patches + 4),
        "sequence": SequencePool(4),
        "learned": LearnedQueries(5, 3, 4),
        "strided": Strided(2),
        "tokens": Tokens(),
        "svd": SVD(),
        "axes": Axes(),
    }


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize("name", strategies())
@pytest.mark.parametrize(
    ("form", "certified", "per_head"),
    list(itertools.product(("exact", "softmax", "agent"), (False, True), (False, True))),
)
def test_forward_is_the_declared_step(name, form, certified, per_head, device):
    if name in ("svd", "axes") and form != "exact":
        with pytest.raises(ValueError, match="goes with form='exact' only"):
            CBSA(12, 3, representatives=strategies()[name], form=form)
        return
    layer = CBSA(
        12,
        3,
        representatives=strategies()[name],
        form=form,
        certified=certified,
        per_head_step=per_head,
        class_tokens=1,
        step_size=0.7,
    )
    layer = layer.double().to(device)
    x = torch.randn(2, 16, 12, dtype=torch.float64, device=device)
    assert off(layer, x) < 1e-12
    if certified:
        objective = layer.objective_at(x)
        assert (layer.step_size_at(x) * objective.lipschitz(x) <= 2 + 1e-9).all()
        assert (objective.value(layer(x)) < objective.value(x)).all()


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
def test_linear_attention_is_its_equation(bases, tokens):
    """CBSA eq. 12: W (I + WᵀW/ε²)⁻¹ / ε²."""
    x = torch.randn(tokens, 12, dtype=torch.float64)
    want = sum(
        (w := x @ U) @ torch.linalg.inv(torch.eye(4, dtype=w.dtype) + w.mT @ w / 0.09) @ U.mT / 0.09 for U in bases
    )
    layer = CBSA(12, 3, U=bases, representatives=SVD(), epsilon=0.3, step_size=0.2)
    torch.testing.assert_close(layer(x), x - 0.2 * want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_channel_attention_is_its_equation(bases, tokens):
    """CBSA eq. 13: W diag(1/(1 + ‖column‖²/ε²)) / ε²."""
    x = torch.randn(tokens, 12, dtype=torch.float64)
    want = torch.zeros_like(x)
    for U in bases:
        w = x @ U
        want += w / (0.09 + w.square().sum(0)) @ U.mT
    layer = CBSA(12, 3, U=bases, representatives=Axes(), epsilon=0.3, step_size=0.2)
    torch.testing.assert_close(layer(x), x - 0.2 * want)


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_all_tokens_are_mssa(bases, form):
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    cbsa = CBSA(12, 3, U=bases, representatives=Tokens(), form=form, step_size=0.4)
    torch.testing.assert_close(cbsa(x), MSSA(12, 3, U=bases, form=form, step_size=0.4)(x))


def test_agent_attention_is_its_equation(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    layer = CBSA(12, 3, U=bases, representatives=Strided(3), form="agent", step_size=0.4)
    want = x.clone()
    for U in bases:
        w = x @ U
        P = torch.softmax(0.5 * w[::3] @ w.mT, -1)
        want += 0.4 * P.mT @ P @ w @ U.mT
    torch.testing.assert_close(layer(x), want)


def bins(n, m):
    return [range(i * n // m, -((-(i + 1) * n) // m)) for i in range(m)]


@pytest.mark.parametrize(("grid", "size"), [((3, 5), (2, 2)), ((1, 7), (1, 3)), ((5, 2), (8, 8)), ((1, 1), (4, 1))])
@pytest.mark.parametrize("class_tokens", [0, 2])
def test_grid_pooling_averages_rectangles_without_class_tokens(bases, grid, size, class_tokens):
    N = grid[0] * grid[1] + class_tokens
    w = project(torch.randn(2, N, 12, dtype=torch.float64), bases)
    got = GridPool(size).initial(w, class_tokens, grid)
    image = w[..., class_tokens:, :].unflatten(-2, grid)
    want = [
        torch.stack([image[..., r, c, :] for r in rows for c in columns]).mean(0)
        for rows in bins(grid[0], size[0])
        for columns in bins(grid[1], size[1])
    ]
    torch.testing.assert_close(got, torch.stack(want, -2))


def test_class_tokens_are_moved_but_do_not_pool(bases):
    layer = CBSA(12, 3, U=bases, representatives=GridPool((2, 2), (3, 5)), class_tokens=1)
    x = torch.randn(16, 12, dtype=torch.float64)
    other = x.clone()
    other[0] += 1.0
    w, v = project(x, bases), project(other, bases)
    initial = layer.representatives.initial
    assert torch.equal(initial(w, 1, None), initial(v, 1, None))
    assert not torch.equal(initial(w.roll(1, -2), 1, None), initial(w, 1, None))
    assert (layer(x)[0] - x[0]).norm() > 0
    assert layer.token_count == 16


def test_the_grid_can_come_with_the_call():
    layer = CBSA(12, 3, representatives=GridPool((2, 2)))
    x = torch.randn(15, 12)
    torch.testing.assert_close(layer(x, grid=(3, 5)), CBSA.forward(layer, x, (3, 5)))
    assert not torch.equal(layer(x, grid=(3, 5)), layer(x, grid=(5, 3)))
    with pytest.raises(ValueError, match="the grid of the 15 patch tokens is not known"):
        layer(x)
    with pytest.raises(ValueError, match="grid 4 × 4 = 16, but there are 15 patch tokens"):
        layer(x, grid=(4, 4))


def test_only_class_tokens_leave_nothing_to_pool():
    layer = CBSA(12, 3, representatives=SequencePool(2), class_tokens=3)
    with pytest.raises(ValueError, match="3 tokens of which 3 are class tokens leave nothing"):
        layer(torch.randn(3, 12))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: SequencePool(0), ValueError, "count must be at least 1"),
        (lambda: Strided(1.5), TypeError, "stride must be an integer"),
        (lambda: GridPool((2,)), ValueError, r"size must be \(rows, columns\)"),
        (
            lambda: CBSA(12, 3, representatives=LearnedQueries(4, 2, 4))(torch.randn(5, 12)),
            ValueError,
            "made for",
        ),
        (lambda: CBSA(12, 3, compat="official"), ValueError, "CBSA.from_official sets them"),
    ],
)
def test_bad_strategies_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def official_state(dim=12, heads=3):
    shapes = {"proj.weight": (dim, dim), "step_x": (heads, 1, 1), "step_rep": (heads, 1, 1)}
    shapes |= {"to_out.weight": (dim, dim), "to_out.bias": (dim,)}
    return {name: torch.randn(*shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("side", [1, 4, 14])
def test_the_released_layer_number_for_number(side):
    state, x = official_state(), torch.randn(2, side**2 + 1, 12, dtype=torch.float64)
    w = (x @ state["proj.weight"].mT).unflatten(-1, (3, 4)).transpose(1, 2)
    square = w[:, :, :-1].mT.reshape(6, 4, side, side)
    few = torch.nn.functional.adaptive_avg_pool2d(square, 8).flatten(2).mT.reshape(2, 3, 64, 4)
    A = torch.softmax(0.5 * few @ w.mT, -1)
    few = few + state["step_rep"] * (A @ w)
    change = state["step_x"] * (A.mT @ (torch.softmax(0.5 * few @ few.mT, -1) @ few))
    want = change.transpose(1, 2).flatten(2) @ state["to_out.weight"].mT + state["to_out.bias"]
    layer = CBSA.from_official(state)
    torch.testing.assert_close(layer.update(x), want)
    with pytest.raises(ValueError, match=r"no descent is claimed|declares no objective"):
        layer.objective_at(x)


def test_the_released_layer_takes_squares_only():
    with pytest.raises(ValueError, match=r"takes g² \+ 1 tokens, but there are 13"):
        CBSA.from_official(official_state())(torch.randn(13, 12, dtype=torch.float64))
    assert isinstance(CBSA.from_official(official_state()).representatives, OfficialGridPool)


def test_a_state_with_other_keys_is_refused():
    state = official_state()
    state["extra"] = state.pop("step_rep")
    with pytest.raises(ValueError, match=r"missing \['step_rep'\], unknown \['extra'\]"):
        CBSA.from_official(state)


@pytest.mark.parametrize("form", ["exact", "softmax", "agent"])
def test_gradients_are_right_through_the_layer(form, bases):
    layer = CBSA(12, 3, U=bases, form=form, representatives=SequencePool(2))
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_representatives_may_keep_what_was_pooled(form, bases):
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    layer = CBSA(12, 3, U=bases, form=form, representatives=SequencePool(2), keep_queries=True, step_size=0.3)
    want = torch.zeros_like(x)
    for k, U in enumerate(bases):
        w = x @ U
        first = torch.stack([w[:, :3].mean(1), w[:, 3:].mean(1)], 1)
        P = torch.softmax(0.5 * first @ w.mT, -1)
        q = first + layer.step_rep[k] * (P @ w)
        if form == "exact":
            change = -8 * q @ torch.linalg.inv(torch.eye(4) + 8 * q.mT @ q)
        else:
            change = torch.softmax(0.5 * q @ q.mT, -1) @ q
        want += 0.3 * P.mT @ change @ U.mT
        torch.testing.assert_close(layer.representatives_of(x)[:, k], q)
        torch.testing.assert_close(layer.contracted(q), q + 0.3 * change)
    torch.testing.assert_close(layer.update(x), want)
    assert layer.approximates_at(x) is None
    with pytest.raises(ValueError, match="no descent is claimed with keep_queries=True"):
        layer.objective_at(x)
    with pytest.raises(ValueError, match="keep_queries keeps initial representatives, which Tokens has not"):
        CBSA(12, 3, representatives=Tokens(), keep_queries=True)


def test_the_map_is_what_tokens_read_of_one_another(bases):
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    layer = CBSA(12, 3, U=bases, form="agent", representatives=SequencePool(2), step_size=0.3)
    A = layer.attention_map(x)
    assert A.shape == (2, 3, 6, 6)
    want = sum(A[:, k] @ x @ U @ U.mT for k, U in enumerate(bases))
    torch.testing.assert_close(layer.update(x), 0.3 * want)


def test_steps_of_certified_layers_are_not_read_off_representatives():
    layer = CBSA(12, 3, representatives=SequencePool(2), certified=True)
    with pytest.raises(ValueError, match="the steps of certified layers depend on the tokens"):
        layer.contracted(torch.randn(3, 2, 4))


def test_pooling_the_released_way_drops_and_leads():
    w = torch.arange(17.0)[None, :, None].expand(1, 17, 2)  # a head of two features, token i being (i, i)
    for pool, want in (
        (OfficialGridPool((2, 2)), [2.5, 4.5, 10.5, 12.5]),  # tokens 0 … 15: the class token in, the last patch out
        (OfficialGridPool((2, 2), leading=True), [3.5, 5.5, 11.5, 13.5]),  # tokens 1 … 16
    ):
        torch.testing.assert_close(pool.initial(w, 1, None)[0, :, 0], torch.tensor(want))
