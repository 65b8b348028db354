import json
import math

import pytest
import torch
from torch import nn

from unrolling.training.optimise import Lion, clip_gradients_, learning_rate, make_optimiser
from unrolling.training.recipe import Recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_come_along_are_read_and_come_back_from_plain_data(name):
    recipe = Recipe.read(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).to_dict() == recipe.to_dict()


def test_settings_go_to_their_tables_and_keep_toml_types():
    recipe = Recipe.read("digits").with_settings(
        [
            "lr=0.5",
            "optimiser=lion",
            "model.depth=3",
            "augment.flip=0.25",
            "model.CBT.representatives=[3, 2]",
            "betas=[0.8, 0.9]",
        ]
    )
    assert (recipe.lr, recipe.optimiser, recipe.betas) == (0.5, "lion", (0.8, 0.9))
    assert recipe.model["depth"] == 3
    assert recipe.model["CBT"] == {"representatives": [3, 2], "keys_per_expert": 4}
    assert recipe.augment == {"pad_crop": 1, "flip": 0.25}
    assert recipe.with_settings(["augment={}"]).augment == {}
    assert Recipe.read("digits").model["depth"] == 2  # the original is as it was


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["speed=1"], r"unknown speed; \[train\] has accumulate"),
        (["lr"], "write key=value"),
        (["lr=0"], "lr must be positive, but is 0"),
        (["lr=nan"], "lr must be a number, but is nan"),
        (["lr=true"], "lr must be a number, but is True"),
        (["epochs=0"], "epochs must be at least 1, but is 0"),
        (["optimiser=adam"], "optimiser must be one of 'adamw', 'lion', 'sgd', but is 'adam'"),
        (["batch=10", "accumulate=3"], "batch 10 cannot be cut into accumulate = 3"),
        (["loss=binary", "smoothing=0.1"], "set smoothing=0"),
        (["betas=[0.9, 1.0]"], "betas must be two numbers"),
        (["smoothing=1"], r"smoothing must be in \[0, 1\), but is 1"),
        (["warmup=-1"], "warmup must not be negative"),
        (["lr.x=1"], "unknown lr"),
        (["model=3"], "model must be a table, but is 3"),
    ],
)
def test_bad_settings_are_named(settings, match):
    with pytest.raises((ValueError, TypeError), match=match):
        Recipe().with_settings(settings)


def test_a_recipe_that_is_nowhere_or_no_toml_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none that comes along: .*digits"):
        Recipe.read("nothing")
    with pytest.raises(ValueError, match="there is no file"):
        Recipe.read(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("lr = = 1")
    with pytest.raises(ValueError, match="is not TOML"):
        Recipe.read(tmp_path / "x.toml")
    (tmp_path / "y.toml").write_text("lr = 1")
    with pytest.raises(ValueError, match="unknown lr"):
        Recipe.read(tmp_path / "y.toml")


def rates(count, per_epoch, **settings):
    recipe = Recipe(**settings)
    return [learning_rate(recipe, step, per_epoch) for step in range(count)]


def test_the_published_rate_per_epoch_is_the_lower_of_warm_up_and_cosine():
    """CRATE and CBT: min(linear warm-up over 20 epochs, cosine to 0), constant within an epoch."""
    found = rates(300, 2, epochs=150, lr=2e-4, per="epoch", warmup=20, warmup_joined="min")
    assert found[0::2] == found[1::2]
    for epoch, rate in enumerate(found[0::2]):
        linear, cosine = (epoch + 1) / 20, 0.5 * (1 + math.cos(math.pi * epoch / 150))
        assert rate == pytest.approx(2e-4 * min(1, linear, cosine), rel=1e-12)


def test_the_published_polynomial_rate_per_step_stops_at_its_least():
    """Segmenter and DEPICT: per iteration from 1e-3 down to 1e-5 by (1 − t/T)^0.9."""
    found = rates(64 * 10, 10, epochs=64, lr=1e-3, schedule="polynomial", min_lr=1e-5, warmup_joined="min")
    for step, rate in enumerate(found):
        assert rate == pytest.approx((1e-3 - 1e-5) * (1 - step / 640) ** 0.9 + 1e-5, rel=1e-12)


def test_warm_up_then_cosine_starts_above_nothing_and_ends_near_the_least():
    found = rates(100, 10, epochs=10, lr=1.0, warmup=2, min_lr=0.1)
    assert found[0] == pytest.approx(0.1 + 0.9 / 20)
    assert max(found) == 1.0
    assert found.index(1.0) == 19
    assert found[19:] == sorted(found[19:], reverse=True)
    assert 0.1 < found[-1] < 0.11


def test_the_rate_is_scaled_by_the_batch_where_asked():
    assert Recipe(batch=1024, lr=5e-4, lr_per=512).rate == 1e-3
    assert Recipe(batch=1024, lr=5e-4).rate == 5e-4


def test_lion_is_its_algorithm():
    """Chen et al., algorithm 2, in plain numbers."""
    x = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimiser = Lion([x], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    values, momenta = x.tolist(), [0.0] * 3
    for step in range(5):
        gradient = [math.sin(v + step + i) for i, v in enumerate(values)]
        x.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
        for i, g in enumerate(gradient):
            c = 0.9 * momenta[i] + 0.1 * g
            values[i] -= 0.1 * ((c > 0) - (c < 0) + 0.5 * values[i])
            momenta[i] = 0.99 * momenta[i] + 0.01 * g
        assert x.tolist() == pytest.approx(values, rel=1e-12)
    with pytest.raises(ValueError, match="betas must be in"):
        Lion([x], betas=(1.0, 0.9))
    with pytest.raises(ValueError, match="lr must be positive"):
        Lion([x], lr=0)


def test_gradients_are_clipped_together():
    model = nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.tensor([1.0, -2.0])
    kept = [model.weight.grad.clone(), model.bias.grad.clone()]
    norm = math.sqrt(6 * 9 + 1 + 4)
    assert clip_gradients_(model, 100.0) == pytest.approx(norm)
    assert torch.equal(model.bias.grad, kept[1])
    clip_gradients_(model, 2.0)
    torch.testing.assert_close(model.weight.grad, kept[0] * 2 / norm)
    torch.testing.assert_close(model.bias.grad, kept[1] * 2 / norm)
    assert clip_gradients_(nn.Linear(1, 1), 1.0) == 0


def test_lion_leaves_alone_what_has_no_gradient_and_evaluates_a_closure():
    x, y = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimiser = Lion([x, y], lr=0.5)

    def closure():
        loss = (x**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimiser.step(closure) == 2.0
    assert x.tolist() == [0.5, 0.5]
    assert y.tolist() == [1, 1]


def test_what_decays_is_what_the_recipe_says():
    from unrolling.models import create

    model = create("cbt-tiny", img_size=8, patch_size=4, depth=1, embed_dim=12, num_heads=3, num_classes=4)
    matrices = make_optimiser(model, Recipe(weight_decay=0.3))
    by = {id(p): g["weight_decay"] for g in matrices.param_groups for p in g["params"]}
    names = {name: by[id(p)] for name, p in model.named_parameters()}
    assert names["stem.convolutions.0.weight"] == names["head.weight"] == 0.3
    assert names["positions.embedding"] == names["positions.class_token"] == names["head.bias"] == 0
    everything = make_optimiser(model, Recipe(weight_decay=0.3, decay="all", optimiser="sgd", momentum=0.9))
    assert {g["weight_decay"] for g in everything.param_groups} == {0.3}
    assert sum(p.numel() for g in everything.param_groups for p in g["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    with pytest.raises(ValueError, match="nothing in the model is trained"):
        make_optimiser(model.requires_grad_(False), Recipe())
