import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unrolling.models import create
from unrolling.training.data import IGNORE, ArrayData
from unrolling.training.evaluate import (
    NoiseLevel,
    _starts,
    attention_parameters,
    evaluate,
    half_level,
    noise_sweep,
    sliding_scores,
)
from unrolling.training.metrics import Accuracy, Confusion
from unrolling.training.recipe import Recipe


def test_iou_is_its_definition_class_by_class():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (3, 7, 6), generator=generator)
    said = torch.randint(0, 4, (3, 7, 6), generator=generator)
    truth[0, :2] = IGNORE
    seen = Confusion(6)
    for t, s in zip(truth, said, strict=True):
        seen.add_classes(s, t)
    found = seen.result()
    kept = truth != IGNORE
    for c in range(6):
        both = int(((truth == c) & (said == c) & kept).sum())
        either = int((((truth == c) | (said == c)) & kept).sum())
        assert found["classes"][c] == (both / either if either else None)
    known = [iou for iou in found["classes"] if iou is not None]
    assert len(known) == 5  # class 5 occurs nowhere
    assert found["miou"] == pytest.approx(sum(known) / 5)
    assert found["accuracy"] == pytest.approx(float((truth == said)[kept].double().mean()))
    assert found["pixels"] == int(kept.sum())
    of = [float((said == c)[(truth == c)].double().mean()) for c in range(5)]
    assert found["class_accuracy"] == pytest.approx(sum(of) / 5)


def test_masks_of_scores_are_their_largest_class():
    scores = torch.randn(2, 3, 4, 4)
    one, two = Confusion(3), Confusion(3)
    truth = torch.randint(0, 3, (2, 4, 4))
    one.add(scores, truth)
    two.add_classes(scores.argmax(1), truth)
    assert torch.equal(one.table, two.table)
    with pytest.raises(ValueError, match=r"predicted is \(2, 4, 4\), but truth \(2, 4\)"):
        one.add_classes(truth, truth[..., 0])
    with pytest.raises(ValueError, match="no pixel was counted"):
        Confusion(3).result()


def test_accuracy_counts_the_best_and_the_five_best():
    scores = torch.arange(8.0).repeat(4, 1)  # class 7 is best, 3 to 7 are the five best
    seen = Accuracy(8)
    seen.add(scores[:2], torch.tensor([7, 3]))
    seen.add(scores[2:], torch.tensor([2, 7]))
    found = seen.result()
    assert (found["accuracy"], found["top5"], found["images"]) == (0.5, 0.75, 4)
    assert found["classes"] == [None, None, 0, 0, None, None, None, 1]
    assert found["loss"] == pytest.approx(float(F.cross_entropy(scores, torch.tensor([7, 3, 2, 7]))))
    with pytest.raises(ValueError, match="no image was counted"):
        Accuracy(2).result()


class Local(nn.Module):
    """Scores that depend on a pixel alone, and on where the window ends: what windows do can be seen."""

    def __init__(self, border=False):
        super().__init__()
        self.border, self.seen = border, []

    def forward(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        scores = torch.cat((x.mean(1, keepdim=True), -x.mean(1, keepdim=True)), 1)
        if self.border:
            scores = scores.clone()
            scores[..., -1] += 8
        return scores


@pytest.mark.parametrize(
    ("side", "window", "stride"), [(10, 4, 3), (11, 4, 3), (4, 4, 4), (9, 4, 4), (512, 512, 1), (7, 3, 3)]
)
def test_windows_cover_every_pixel_and_end_flush(side, window, stride):
    starts = _starts(side, window, stride)
    assert starts[0] == 0
    assert starts[-1] + window == side
    assert all(b - a <= stride for a, b in itertools.pairwise(starts))
    assert starts[:-1] == [stride * i for i in range(len(starts) - 1)]


def test_windows_of_a_local_model_give_its_own_scores():
    image = torch.randn(1, 3, 11, 9)
    model = Local()
    found = sliding_scores(model, image, {"window": 4, "stride": 3})
    torch.testing.assert_close(found, model(image))
    assert set(model.seen[:-1]) == {(4, 4)}
    assert len(model.seen) - 1 == 4 * 3


def test_windows_must_leave_no_pixel_between_them():
    with pytest.raises(ValueError, match="a stride of 5 leaves pixels between windows of 4"):
        sliding_scores(Local(), torch.randn(1, 3, 11, 9), {"window": 4, "stride": 5})


def test_overlapping_windows_are_averaged():
    image = torch.zeros(1, 3, 4, 7)
    found = sliding_scores(Local(border=True), image, {"window": 4, "stride": 3})
    # windows begin at columns 0 and 3: column 3 is the last of the first and the first of the second
    assert found[0, 0, 0].tolist() == [0, 0, 0, 4, 0, 0, 8]


def test_images_smaller_than_the_window_are_enlarged_and_brought_back():
    model, image = Local(), torch.randn(1, 3, 3, 5)
    found = sliding_scores(model, image, {"window": 6, "stride": 6})
    assert set(model.seen) == {(6, 6)}
    assert found.shape == (1, 2, 3, 5)


def test_the_short_side_is_resized_first_unless_the_long_one_gets_too_long():
    for options, side in (({"resize": 12}, (12, 24)), ({"resize": 12, "long": 16}, (8, 16))):
        model = Local()
        sliding_scores(model, torch.randn(1, 3, 6, 12), options)
        assert model.seen == [side]


def test_several_scales_and_flips_average_probabilities():
    image = torch.rand(1, 3, 6, 8)
    model = Local()
    found = sliding_scores(model, image, {"scales": [0.5, 1.0], "flip": True}, multiscale=True)
    wanted = 0
    for side in ((3, 4), (6, 8)):
        small = image if side == (6, 8) else F.interpolate(image, size=side, mode="bilinear")
        for flip in (False, True):
            seen = small.flip(-1) if flip else small
            scores = F.interpolate(Local()(seen), size=(6, 8), mode="bilinear")
            wanted = wanted + (scores.flip(-1) if flip else scores).softmax(1) / 4
    torch.testing.assert_close(found, wanted)
    assert len(model.seen) == 4
    with pytest.raises(ValueError, match="scales is empty"):
        sliding_scores(model, image, {"scales": []}, multiscale=True)


def data(task="classify", count=10):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 255, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    shape = (count,) if task == "classify" else (count, 8, 8)
    return ArrayData("made up", images, torch.randint(0, 3, shape, generator=generator), ("a", "b", "c"))


def classifier():
    torch.manual_seed(0)
    return create(
        "cbt-tiny", img_size=8, patch_size=4, embed_dim=12, depth=1, num_heads=3, num_classes=3, representatives=(1, 2)
    )


def test_evaluation_is_the_same_in_any_batches_and_leaves_the_mode():
    model = classifier().train()
    found = [evaluate(model, data(), Recipe(), batch=batch) for batch in (1, 3, 10)]
    assert all(each["accuracy"] == found[0]["accuracy"] for each in found)
    assert all(each["loss"] == pytest.approx(found[0]["loss"], rel=1e-5) for each in found)
    assert model.training
    with pytest.raises(ValueError, match="several scales are for masks"):
        evaluate(model, data(), Recipe(), multiscale=True)


def test_evaluation_resizes_and_crops_as_the_recipe_says():
    sizes = []

    class Sees(nn.Module):
        def forward(self, x):
            sizes.append(tuple(x.shape[-2:]))
            return torch.zeros(len(x), 3)

    evaluate(Sees(), data(), Recipe(evaluate={"resize": 16, "center_crop": 12}))
    assert sizes == [(12, 12)]


def test_noise_is_on_the_attention_alone_and_gone_afterwards():
    model = classifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    noisy = {id(p) for p in attention_parameters(model)}
    inside = {name for name, p in model.named_parameters() if id(p) in noisy}
    assert inside == {name for name in before if ".attention." in name}
    assert inside
    moved = []

    def measure():
        moved.append({name for name, p in model.named_parameters() if not torch.equal(p, before[name])})
        return 0.5

    levels = noise_sweep(model, measure, [0.1, 1.0], draws=2)
    assert moved == [set(), *[inside] * 4]
    assert [level.sigma for level in levels] == [0, 0.1, 1.0]
    assert [len(level.values) for level in levels] == [1, 2, 2]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_noise_has_its_deviation_and_the_parameters_come_back_after_an_error():
    model = nn.Linear(100, 100)
    kept = model.weight.detach().clone()
    found = []

    def measure():
        found.append(float((model.weight - kept).std()))
        if len(found) == 3:
            raise RuntimeError("stop")
        return 0.0

    with pytest.raises(RuntimeError, match="stop"):
        noise_sweep(model, measure, [0.3, 0.6], draws=1, parameters=[model.weight])
    assert found == [0, pytest.approx(0.3, rel=0.03), pytest.approx(0.6, rel=0.03)]
    assert found[2] == pytest.approx(2 * found[1], rel=1e-5)  # the same draws, scaled
    assert torch.equal(model.weight, kept)
    with pytest.raises(ValueError, match="Linear has no attention layers"):
        noise_sweep(model, measure, [0.3])


def levels(*pairs):
    return [NoiseLevel(sigma, (value,)) for sigma, value in pairs]


def test_the_level_of_half_is_between_the_levels_around_it():
    found = half_level(levels((0, 0.8), (0.01, 0.8), (0.1, 0.2)))
    share = (0.8 - 0.4) / (0.8 - 0.2)
    assert found == pytest.approx(10 ** (-2 + share))
    assert half_level(levels((0, 0.8), (0.01, 0.3))) == 0.01
    assert half_level(levels((0, 0.8), (0.01, 0.7))) is None
    assert half_level(levels((0, 0.8), (0.01, 0.7), (0.1, 0.5)), floor=0.4) == pytest.approx(10**-1.5)
    assert math.isclose(NoiseLevel(0.1, (0.2, 0.4)).mean, 0.3)


def test_the_rate_in_the_loss_is_its_formula_whatever_the_scale_of_tokens_and_bases():
    """In plain numpy: determinants of the large side, an orthonormal basis of every head's span."""
    import numpy as np

    from unrolling.training.regularise import SparseRate

    model = classifier()
    x = torch.randn(2, 3, 8, 8)
    outputs = []
    model.blocks[0].register_forward_hook(
        lambda block, inputs, output: outputs.append(output.detach().double().numpy())
    )
    with torch.no_grad(), SparseRate(model, sparsity=0.3) as rate:
        model(x)
    layer, wanted = model.blocks[0].attention, []
    for z in outputs[0]:
        n, d = z.shape
        z = z * d**0.5 / np.linalg.norm(z, axis=1, keepdims=True)
        compressed = 0.0
        for U in layer.U.detach().double().numpy():
            q = np.linalg.svd(U, full_matrices=False)[0]
            p = q.shape[1]
            compressed += 0.5 * np.linalg.slogdet(np.eye(n) + p / (n * layer.epsilon**2) * (z @ q) @ (z @ q).T)[1]
        expanded = 0.5 * np.linalg.slogdet(np.eye(n) + d / (n * layer.epsilon**2) * z @ z.T)[1]
        wanted.append((compressed - expanded) / n + 0.3 * np.abs(z).mean())
    assert float(rate.value()) == pytest.approx(np.mean(wanted), rel=1e-4)
    with torch.no_grad(), SparseRate(model) as again:
        model(x)
        assert [len(block._forward_hooks) for block in model.blocks] == [2]
    model(x)  # it listens no longer
    assert [len(block._forward_hooks) for block in model.blocks] == [1]
    assert len(again.terms) == 1


def test_smaller_bases_do_not_lower_the_rate_in_the_loss():
    """Of a free basis: the rate is that of the span of every head."""
    from unrolling.training.regularise import SparseRate

    model, found = classifier(), []
    x = torch.randn(2, 5, 12)
    for factor in (1.0, 0.1):
        with torch.no_grad(), SparseRate(model) as rate:
            model.blocks[0].attention.basis.mul_(factor)
            rate._listen(model.blocks[0], None, x)
        found.append(float(rate.value()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
