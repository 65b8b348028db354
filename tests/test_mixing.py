import itertools
import math

import pytest
import torch
from scipy import stats

from unrolling.training.augmentation.mixing import Mixing, beta_quantile


def batch(count=5, size=(12, 20), classes=4):
    draw = lambda: (torch.randn(count, 3, *size), torch.randint(0, classes, (count,)))  # noqa: E731
    return *draw(), draw()


def numbers(chosen, drawn, row=0.5, column=0.5):
    return torch.tensor([chosen, drawn, row, column, 0.1, 0.2], dtype=torch.float64)


def one_hot(labels, classes, smoothing):
    out = torch.full((len(labels), classes), smoothing / classes)
    for row, label in enumerate(labels.tolist()):
        out[row, label] += 1 - smoothing
    return out


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_without_mixing_labels_are_smoothed(smoothing):
    images, labels, _ = batch()
    mix = Mixing(4, smoothing=smoothing)
    out, targets = mix(images, labels, None, numbers(0.1, 0.2))
    assert not mix.mixes
    assert out is images
    assert torch.allclose(targets, one_hot(labels, 4, smoothing))
    assert targets.dtype == torch.float32


@pytest.mark.parametrize(
    ("mixup", "cutmix", "switch"), [(0.8, 0, 0.5), (0, 1.0, 0.5), (0.8, 1.0, 0.5), (0.3, 2.0, 0.1)]
)
def test_targets_sum_to_one(mixup, cutmix, switch):
    mix, (images, labels, partners) = Mixing(4, mixup=mixup, cutmix=cutmix, switch=switch, smoothing=0.1), batch()
    before = images.clone(), partners[0].clone()
    for u in torch.rand(50, 6, dtype=torch.float64):
        out, targets = mix(images, labels, partners, u)
        assert out.shape == images.shape
        assert torch.allclose(targets.sum(1), torch.ones(5))
        assert (targets >= 0).all()
    assert torch.equal(images, before[0])
    assert torch.equal(partners[0], before[1])


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_lambda_has_the_beta_distribution(alpha):
    mix, (images, labels, partners) = Mixing(4, mixup=alpha), batch()
    drawn = torch.rand(800, dtype=torch.float64)
    for u in drawn[:20].tolist():
        out, targets = mix(images, labels, partners, numbers(0.9, u))
        share = beta_quantile(alpha, u)
        assert abs(stats.beta(alpha, alpha).cdf(share) - u) < 1e-9
        assert torch.allclose(out, share * images + (1 - share) * partners[0], atol=1e-5)
        wanted = share * one_hot(labels, 4, 0) + (1 - share) * one_hot(partners[1], 4, 0)
        assert torch.allclose(targets, wanted)
    shares = [beta_quantile(alpha, u) for u in drawn.tolist()]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert (beta_quantile(alpha, 0.0), beta_quantile(alpha, 0.5)) == (0, pytest.approx(0.5))


def test_lambda_is_the_area_that_is_left():
    mix = Mixing(2, cutmix=1.0)
    images, others = torch.zeros(3, 1, 30, 40), torch.ones(3, 1, 30, 40)
    labels, theirs = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    for u in torch.rand(200, 4, dtype=torch.float64):
        out, targets = mix(images, labels, (others, theirs), u)
        assert torch.allclose(targets[:, 1], out.mean((1, 2, 3)), atol=1e-6)
        taken = out[0, 0] == 1
        if taken.any():
            rows, columns = taken.any(1).nonzero()[:, 0], taken.any(0).nonzero()[:, 0]
            assert taken.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert torch.equal(out[0], out[2])


def test_boxes_have_their_share_and_centre():
    for share, row, column in itertools.product([0.0, 0.3, 0.91, 1.0], [0.0, 0.5, 0.99], [0.0, 0.4]):
        rows, columns, left = Mixing.box((100, 200), share, row, column)
        side = math.sqrt(1 - share)
        assert left == 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / 20_000
        for span, u, length in ((rows, row, 100), (columns, column, 200)):
            long, centre = int(length * side), int(u * length)
            assert span.start == max(0, centre - long // 2)
            assert span.stop == min(length, centre - long // 2 + long)
    rows, columns, left = Mixing.box((100, 200), 0.75, 0.5, 0.5)
    assert (rows, columns, left) == (slice(25, 75), slice(50, 150), 0.75)


def test_the_switch_is_the_share_of_cutmix():
    images, labels, (others, theirs) = batch()
    partners = (others + 100, theirs)

    def cuts(mix, chosen):
        out, _ = mix(images, labels, partners, numbers(chosen, 0.5))
        return bool(((out == images) | (out == partners[0])).all())

    mix = Mixing(4, mixup=0.8, cutmix=1.0, switch=0.3)
    assert [cuts(mix, chosen) for chosen in (0.0, 0.29, 0.3, 0.99)] == [True, True, False, False]
    assert all(cuts(Mixing(4, cutmix=1.0, switch=0.0), chosen) for chosen in (0.0, 0.99))
    assert not any(cuts(Mixing(4, mixup=0.8, switch=1.0), chosen) for chosen in (0.0, 0.99))


def test_mixup_takes_features_too():
    features, labels = torch.randn(5, 7, 3), torch.arange(5)
    out, _ = Mixing(5, mixup=1.0)(features, labels, (features.flip(0), labels.flip(0)), numbers(0.5, 0.25))
    assert torch.allclose(out, 0.25 * features + 0.75 * features.flip(0), atol=1e-6)


def test_wrong_inputs_are_told():
    images, labels, partners = batch()
    mix = Mixing(4, cutmix=1.0)
    with pytest.raises(ValueError, match="partners must be"):
        mix(images, labels, None, numbers(0.5, 0.5))
    with pytest.raises(ValueError, match="partners must be"):
        mix(images, labels, (partners[0][:3], partners[1]), numbers(0.5, 0.5))
    with pytest.raises(ValueError, match="floating point"):
        mix(images.to(torch.uint8), labels, (images.to(torch.uint8), labels), numbers(0.5, 0.5))
    with pytest.raises(ValueError, match="at least 4 numbers"):
        mix(images, labels, partners, numbers(0.5, 0.5)[:3])
    with pytest.raises(ValueError, match="cutmix needs images"):
        mix(images[0], labels[:3], (images[0], labels[:3]), numbers(0.5, 0.5))
    for options in ({"mixup": -1.0}, {"cutmix": "1"}, {"switch": 2.0}, {"smoothing": 1.5}, {"smoothing": True}):
        with pytest.raises(ValueError, match=f"mix: {next(iter(options))} must be a number"):
            Mixing(4, **options)
    with pytest.raises(ValueError, match="classes must be at least 1"):
        Mixing(0)
