import colorsys
import itertools
import math
import tomllib
from importlib import resources
from statistics import NormalDist

import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from unrolling.training.augmentation.base import fitting_box, from_pil, nearest, resampled, to_pil, window
from unrolling.training.augmentation.colour import (
    Erase,
    Jitter,
    Photometric,
    ThreeAugment,
    luminance,
    saturate,
    turn_hue,
)
from unrolling.training.augmentation.geometry import (
    CenterCrop,
    Crop,
    Flip,
    PadCrop,
    RandomResizedCrop,
    Resize,
    ResizeRange,
)
from unrolling.training.augmentation.pipeline import AUGMENTATIONS, Pipeline, apply
from unrolling.training.augmentation.rand_augment import OPERATIONS, RandAugment, operate
from unrolling.training.data import IGNORE

GEOMETRY = {
    "pad_crop": PadCrop(3),
    "flip": Flip(0.5),
    "random_resized_crop": RandomResizedCrop(24),
    "random_resized_crop bicubic": RandomResizedCrop([20, 30], scale=(0.3, 1.0), interpolation="bicubic"),
    "resize": Resize(31),
    "resize both": Resize([50, 20]),
    "center_crop": CenterCrop(25),
    "center_crop padded": CenterCrop([60, 20], fill=7),
    "resize_range": ResizeRange((0.5, 2.0)),
    "resize_range of sizes": ResizeRange((0.5, 2.0), short=40, long=60),
    "crop": Crop(26, max_share=0.5),
    "crop padded": Crop(60, fill=[1, 2, 3]),
}
COLOURS = {
    "photometric": Photometric(),
    "jitter": Jitter(0.4),
    "three_augment": ThreeAugment(),
}
CLASSES_ONLY = {
    "rand_augment": RandAugment(3, probability=0.9),
    "rand_augment not increasing": RandAugment(
        2, magnitude=4.5, increasing=False, probability=1.0, interpolation="bilinear"
    ),
    "erase": Erase(0.7),
}
STEPS = {**GEOMETRY, **COLOURS, **CLASSES_ONLY}


def uniform(count, draws):
    return torch.rand(count, draws, dtype=torch.float64)


def blobs(count=6, channels=3, size=(34, 47)):
    """Smooth images with some texture."""
    coarse = torch.rand(count, channels, 5, 6)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic") * 230 + 20 * torch.rand(
        count, channels, *size
    )
    return fine.clamp(0, 255).to(torch.uint8)


def ramps(size, axis):
    """Images whose every pixel is its row or column, and masks that say the same."""
    line = torch.arange(size[axis])
    mask = (line[:, None] if axis == 0 else line[None, :]).expand(size)
    return mask.to(torch.uint8).expand(3, *size).contiguous(), mask.contiguous()


def run(step, images, masks, u):
    return apply(Pipeline([step]), list(images), None if masks is None else list(masks), u)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STEPS)
def test_an_image_depends_on_its_own_numbers_only(name, channels):
    step, images = STEPS[name], blobs(channels=channels)
    if channels == 1 and name == "crop padded":
        step = Crop(60)
    masks = torch.randint(0, 4, (6, 34, 47)) if step.masked else None
    u, before = uniform(6, step.draws), images.clone()
    for row in range(6):
        mask = None if masks is None else masks[row : row + 1]
        if step.ragged:
            last = Crop(20)
            both = torch.cat([u, torch.zeros(6, 2, dtype=torch.float64)], 1)
            given = None if masks is None else list(masks)
            many = apply(Pipeline([step, last]), list(images), given, both)
            alone = last(*step(images[row : row + 1], mask, u[row : row + 1]), both[:1, -2:])
        else:
            alone, many = step(images[row : row + 1], mask, u[row : row + 1]), step(images, masks, u)
        assert alone[0].dtype == torch.uint8
        assert torch.equal(alone[0][0], many[0][row])
        assert masks is None or (torch.equal(alone[1][0], many[1][row]) and many[1].dtype == torch.int64)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", [name for name in STEPS if STEPS[name].draws and name != "crop padded"])
def test_numbers_matter(name):
    step = STEPS[name]
    image = blobs(1).expand(40, -1, -1, -1)
    outs = {tuple(step(image[:1], None, row[None])[0].flatten().tolist()) for row in uniform(40, step.draws)}
    assert len(outs) >= (2 if name == "flip" else 3)


@pytest.mark.parametrize(
    ("step", "u"),
    [
        (PadCrop(3), [0.5, 0.5]),
        (Flip(0.5), [0.5]),
        (RandomResizedCrop([34, 47], scale=(1, 1), ratio=(0.1, 10)), [0.3, 0.1, 0.9, 0.9]),
        (Resize(34), []),
        (Resize([34, 47]), []),
        (CenterCrop([34, 47]), []),
        (ResizeRange((0.5, 1.5)), [0.5]),
        (ResizeRange((0.5, 1.5), short=34, long=47), [0.5]),
        (Crop([34, 47], max_share=0.1), [0.9] * 20),
        (Photometric(), [0.5] * 9),
        (Photometric(), [0.0] * 5 + [0.5] * 4),
        (Jitter(0.4), [0.7, 0.5, 0.5, 0.5]),
        (Erase(0.5), [0.5] * 6),
        (RandAugment(2, probability=0.5), [0.1, 0.5, 0.5, 0.5] * 2),
    ],
)
def test_some_numbers_change_nothing(step, u):
    images, masks = blobs(2), torch.randint(0, 9, (2, 34, 47))
    numbers = torch.tensor(u, dtype=torch.float64).expand(2, -1)
    changed, followed = step(images, masks if step.masked else None, numbers)
    off = (changed.int() - images.int()).abs().max()
    assert off <= (1 if u and isinstance(step, Photometric) and u[0] == 0 else 0)  # hue and back in float32
    assert not step.masked or torch.equal(followed, masks)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", GEOMETRY)
def test_masks_follow_images(name, axis):
    step, (image, mask) = GEOMETRY[name], ramps((34, 47), axis)
    for row in uniform(30, step.draws):
        changed, followed = step(image[None], mask[None], row[None])
        assert followed.shape == (1, *changed.shape[2:])
        inside = followed[0] != IGNORE
        off = (changed[0, 0].long() - followed[0]).abs()[inside]
        assert inside.any()
        assert off.max() <= (2 if "bicubic" in name else 1)
        assert (off == 0).float().mean() > 0.4
        outside = changed[0][:, ~inside]
        fill = {"center_crop padded": [7, 7, 7], "crop padded": [1, 2, 3]}.get(name, [0, 0, 0])
        assert torch.equal(outside.long(), torch.tensor(fill)[:, None].expand_as(outside))
        assert inside.all() or "pad" in name


@pytest.mark.parametrize("name", COLOURS)
def test_colours_leave_masks_alone(name):
    step, masks = COLOURS[name], torch.randint(0, 4, (6, 34, 47))
    assert torch.equal(step(blobs(), masks, uniform(6, step.draws))[1], masks)


@pytest.mark.parametrize("name", CLASSES_ONLY)
def test_what_cannot_follow_is_refused(name):
    step = CLASSES_ONLY[name]
    with pytest.raises(ValueError, match="cannot change masks along"):
        step(blobs(), torch.zeros(6, 34, 47, dtype=torch.long), uniform(6, step.draws))


@pytest.mark.parametrize("step", [Photometric(), Jitter(0.4), ThreeAugment(), RandAugment()])
def test_colours_of_other_than_one_or_three_channels_are_refused(step):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        step(blobs(channels=4), None, uniform(6, step.draws))


def test_pad_crop_moves_by_every_number_of_pixels():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 1
    u = uniform(600, 2)
    out, mask = PadCrop(2)(image.expand(600, -1, -1, -1), image[0].long().expand(600, -1, -1), u)
    found = [tuple((one[0] == 1).nonzero()[0].tolist()) for one in out]
    assert set(found) == set(itertools.product(range(2, 7), range(2, 7)))
    assert stats.chisquare([found.count(at) for at in set(found)]).pvalue > 1e-4
    kept = [(5 - abs(y - 4) + 4) * (5 - abs(x - 4) + 4) for y, x in found]
    assert [int((one != IGNORE).sum()) for one in mask] == kept


def test_flips_happen_with_their_probability():
    images, masks = blobs(1).expand(4000, -1, -1, -1), torch.arange(34 * 47).view(1, 34, 47).expand(4000, -1, -1)
    out, mask = Flip(0.3)(images, masks, uniform(4000, 1))
    flipped = (out == images[:1].flip(-1)).all((1, 2, 3))
    assert ((out == images[:1]).all((1, 2, 3)) ^ flipped).all()
    assert torch.equal((mask == masks[:1].flip(-1)).all((1, 2)), flipped)
    assert abs(float(flipped.float().mean()) - 0.3) < 0.03
    assert not (Flip(0)(images, None, uniform(4000, 1))[0] != images).any()


@pytest.mark.parametrize("size", [(1000, 1000), (500, 1000), (1600, 900)])
def test_boxes_have_shares_and_ratios_as_defined(size):
    step = RandomResizedCrop(8, scale=(0.1, 0.3))
    boxes = torch.tensor([step.box(size, row) for row in uniform(3000, 4).tolist()]).double()
    top, left, high, wide = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= size[0]).all()
    assert (left + wide <= size[1]).all()
    share, log = high * wide / (size[0] * size[1]), torch.log(wide / high)
    bound = math.log(4 / 3)
    assert stats.kstest(share.numpy(), "uniform", (0.1, 0.2)).pvalue > 1e-3
    assert stats.kstest(log.numpy(), "uniform", (-bound, 2 * bound)).pvalue > 1e-3
    if size == (1000, 1000):
        assert stats.kstest((top / (size[0] - high)).numpy(), "uniform").pvalue > 1e-3
        assert stats.kstest((left / (size[1] - wide)).numpy(), "uniform").pvalue > 1e-3
        assert abs(stats.pearsonr(top.numpy(), left.numpy()).statistic) < 0.1


def test_large_boxes_keep_their_share_by_another_ratio():
    for share, u in itertools.product([0.8, 0.95, 1.0], [0.0, 0.37, 0.99]):
        high, wide = fitting_box((900, 1000), share, (3 / 4, 4 / 3), u)
        assert high <= 900
        assert wide <= 1000
        assert abs(high * wide / 900_000 - share) < 0.002
        assert 3 / 4 - 0.01 < wide / high < 4 / 3 + 0.01
    assert fitting_box((90, 900), 1.0, (3 / 4, 4 / 3), 0.2) == (90, 120)
    assert fitting_box((900, 90), 0.9, (3 / 4, 4 / 3), 0.2) == (120, 90)
    assert fitting_box((3, 3), 1e-6, (1, 1), 0.5) == (1, 1)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(17, 23), (50, 20), (68, 94)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resampling_is_that_of_pil(mode, size, channels):
    image = blobs(1, channels)[0]
    theirs = to_pil(image).resize(size[::-1], Image.Resampling[mode.upper()])
    assert (resampled(image, size, mode).int() - from_pil(theirs).int()).abs().max() <= 1


def test_nearest_takes_the_pixel_that_holds_the_centre():
    mask = torch.arange(5)[:, None] * 10 + torch.arange(7)
    for size in [(5, 7), (10, 21), (2, 3), (3, 9)]:
        out = nearest(mask, size)
        for i, j in itertools.product(range(size[0]), range(size[1])):
            assert out[i, j] == int((i + 0.5) * 5 / size[0]) * 10 + int((j + 0.5) * 7 / size[1])


def test_windows_reach_outside():
    image = torch.arange(6).view(2, 3)
    assert window(image, -1, 1, (2, 3), 9).tolist() == [[9, 9, 9], [1, 2, 9]]
    assert window(image, 0, 1, (1, 2), 9).tolist() == [[1, 2]]
    assert window(image, -1, -1, (4, 5), 9)[1:3, 1:4].tolist() == image.tolist()


def test_the_short_side_is_resized():
    for size, wanted in [((30, 60), (20, 40)), ((61, 30), (40, 20)), ((30, 30), (20, 20))]:
        assert Resize(20)(blobs(2, 3, size), None, uniform(2, 0))[0].shape[2:] == wanted


def test_the_middle_is_cut_out():
    images, masks = blobs(2, 3, (10, 8)), torch.zeros(2, 10, 8, dtype=torch.long)
    assert torch.equal(CenterCrop([4, 2])(images, None, uniform(2, 0))[0], images[:, :, 3:7, 3:5])
    out, mask = CenterCrop([6, 12], fill=[5, 6, 7])(images, masks, uniform(2, 0))
    assert torch.equal(out[:, :, :, 2:10], images[:, :, 2:8])
    assert out[:, :, :, [0, 1, 10, 11]].unique(dim=3)[0, :, 0, 0].tolist() == [5, 6, 7]
    assert (mask == IGNORE).sum() == 2 * 6 * 4


def test_images_are_resized_within_their_range():
    step, image = ResizeRange((0.5, 2.0)), blobs(1, 3, (20, 40))
    factors = [step(image, None, row[None])[0].shape[3] / 40 for row in uniform(300, 1)]
    assert stats.kstest(factors, "uniform", (0.5, 1.5)).pvalue > 1e-3
    sized = ResizeRange((0.5, 2.0), short=30, long=45)
    for u, wanted in [(0.0, (11, 22)), (1 / 3, (22, 45)), (2 / 3, (34, 68))]:  # the long side decides: 45/40 · factor
        numbers = torch.tensor([[u]], dtype=torch.float64)
        high, wide = sized(image, None, numbers)[0].shape[2:]
        assert abs(high - wanted[0]) <= 1
        assert abs(wide - wanted[1]) <= 1
    for size, wanted in [((40, 40), (30, 30)), ((60, 50), (36, 30)), ((50, 60), (30, 36))]:  # the short side decides
        assert sized(blobs(1, 3, size), None, torch.tensor([[1 / 3]], dtype=torch.float64))[0].shape[2:] == wanted


def test_crops_show_several_classes_where_they_can():
    mask = torch.zeros(1, 40, 40, dtype=torch.long)
    mask[:, :, 20:] = 1
    mask[:, :5] = IGNORE
    step = Crop(10, max_share=0.75)

    def shares(u, at):
        seen = at(mask.to(torch.uint8)[:, None], mask, u)[1]
        counts = seen[seen != IGNORE].bincount()
        return float(counts.max() / counts.sum()) if len(counts) else 1.0

    rows = uniform(300, step.draws)
    varied = [shares(row[None], step) for row in rows]
    plain = [shares(row[None, :2], Crop(10)) for row in rows]
    assert sum(share >= 0.75 for share in plain) > 200
    assert sum(share >= 0.75 for share in varied) < 60  # (26/31)^10 of 300 is 52 on average, where all tries fail
    good = [share for share, first in zip(varied, plain, strict=True) if first < 0.75]
    assert good == [first for first in plain if first < 0.75]
    last = torch.cat([torch.zeros(1, 18, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64)], 1)
    assert shares(last, step) < 0.75
    image = blobs(1, 3, (40, 40))  # without a mask, the first window
    assert all(
        torch.equal(step(image, None, row[None])[0], Crop(10)(image, None, row[None, :2])[0]) for row in rows[:20]
    )


def test_crops_reach_every_place():
    image = torch.arange(6, dtype=torch.uint8).expand(1, 1, 5, 6)
    lefts = [int(Crop([5, 3])(image, None, row[None])[0][0, 0, 0, 0]) for row in uniform(400, 2)]
    assert set(lefts) == {0, 1, 2, 3}
    assert stats.chisquare([lefts.count(at) for at in range(4)]).pvalue > 1e-4


def in_hsv(colour):
    return colorsys.rgb_to_hsv(*(float(c) / 255 for c in colour))


def test_saturation_and_hue_are_those_of_hsv():
    x = torch.rand(1, 3, 20, 20) * 255
    for factor, turn in [(0.5, 0.6), (1.5, -0.6), (1.2, 0.3)]:
        vivid = saturate(x, torch.tensor(factor))
        turned = turn_hue(x, torch.tensor(turn))
        for i, j in itertools.product(range(20), range(20)):
            h, s, v = in_hsv(x[0, :, i, j])
            wanted = colorsys.hsv_to_rgb(h, min(1, s * factor), v)
            assert torch.allclose(vivid[0, :, i, j] / 255, torch.tensor(wanted), atol=1e-5)
            wanted = colorsys.hsv_to_rgb((h + turn / 6) % 1, s, v)
            assert torch.allclose(turned[0, :, i, j] / 255, torch.tensor(wanted), atol=1e-4)
    grey = torch.full((1, 3, 2, 2), 77.0)
    assert torch.equal(saturate(grey, torch.tensor(1.5)), grey)
    assert torch.equal(turn_hue(grey, torch.tensor(0.5)), grey)
    assert torch.equal(turn_hue(0 * grey, torch.tensor(0.5)), 0 * grey)


OFF = [0.9] * 5


def distorted(images, gates, values):
    u = torch.tensor(gates + values, dtype=torch.float64).expand(len(images), -1)
    return Photometric()(images, None, u)[0]


def test_photometric_distortion_is_as_published():
    images = blobs()
    x = images.double()
    only = [[*OFF[:i], 0.1, *OFF[i + 1 :]] for i in range(5)]
    brighter = distorted(images, only[0], [0.75, 0.5, 0.5, 0.5])
    assert torch.equal(brighter, (x + 16).clamp(0, 255).to(torch.uint8))
    assert torch.equal(distorted(images, only[0], [0.0, 0.5, 0.5, 0.5]), (x - 32).clamp(0, 255).to(torch.uint8))
    assert torch.equal(
        distorted(images, only[1], [0.5, 1.0, 0.5, 0.5]), (x * 1.5).round().clamp(0, 255).to(torch.uint8)
    )
    assert torch.equal(distorted(images, only[1], [0.5, 0.0, 0.5, 0.5]), (x * 0.5).round().to(torch.uint8))
    assert torch.equal(distorted(images, only[2], [0.0] * 4), images)
    vivid = saturate(images.float(), torch.tensor(0.5)).round().to(torch.uint8)
    assert torch.equal(distorted(images, only[3], [0.5, 0.5, 0.0, 0.5]), vivid)
    turned = turn_hue(images.float(), torch.tensor(-0.6)).round().to(torch.uint8)
    assert torch.equal(distorted(images, only[4], [0.5, 0.5, 0.5, 0.0]), turned)


def test_contrast_comes_before_or_after_saturation():
    images = blobs()
    x, values = images.float(), [0.5, 0.999999, 0.0, 0.5]
    vivid = torch.tensor(0.5)
    early = saturate((1.5 * x).clamp(0, 255), vivid)
    late = (1.5 * saturate(x, vivid)).clamp(0, 255)
    first, last = (distorted(images, [0.9, 0.1, order, 0.1, 0.9], values) for order in (0.1, 0.9))
    assert (first.float() - early).abs().max() < 0.51
    assert (last.float() - late).abs().max() < 0.51
    assert (first.float() - last.float()).abs().max() > 5


def test_grey_images_have_no_saturation_and_hue():
    grey = blobs(channels=1)
    u = uniform(6, 9)
    three = Photometric()(grey.expand(-1, 3, -1, -1), None, u)[0]
    assert (three.int() - Photometric()(grey, None, u)[0].int()).abs().max() <= 1
    assert torch.equal(
        Jitter(0.4)(grey, None, u[:, :4])[0], Jitter(0.4)(grey.expand(-1, 3, -1, -1), None, u[:, :4])[0][:, :1]
    )


def test_luminance_is_that_of_pil():
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    assert torch.equal(luminance(images), torch.stack([from_pil(to_pil(one).convert("L")) for one in images]))


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_a_row_of_pils_enhancements(channels):
    images = blobs(24, channels)
    u = uniform(24, 4)
    u[:, 0] = (torch.arange(24) % 6 + 0.5) / 6
    out, seen = Jitter([0.4, 0.3, 0.9])(images, None, u)[0], set()
    for row, image in enumerate(images):
        order = list(itertools.permutations(range(3)))[row % 6]
        seen.add(order)
        picture = to_pil(image)
        for each in order:
            factor = 1 + (2 * float(u[row, 1 + each]) - 1) * (0.4, 0.3, 0.9)[each]
            picture = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[each](picture).enhance(
                factor
            )
        assert torch.equal(out[row], from_pil(picture))
    assert len(seen) == 6


def test_three_augment_is_one_of_three():
    step, images = ThreeAugment(), blobs(9)
    for row, (image, radius) in enumerate(zip(images, uniform(9, 1)[:, 0].tolist(), strict=True)):
        u = torch.tensor([[(row % 3) / 3 + 1e-9, radius]], dtype=torch.float64)
        out = step(image[None], None, u)[0][0]
        picture = to_pil(image)
        theirs = [
            picture.convert("L").convert("RGB"),
            ImageOps.solarize(picture),
            picture.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * radius)),
        ]
        assert torch.equal(out, from_pil(theirs[row % 3]))


def test_erasing_takes_a_share_at_random_with_its_probability():
    size = 100
    image = torch.full((1, 3, size, size), 77, dtype=torch.uint8)
    step = Erase(0.25)
    shares, pixels = [], []
    for row in uniform(1200, 6):
        out = step(image, None, row[None])[0][0]
        changed = (out != 77).any(0)
        if not changed.any():
            continue
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        high, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert changed.sum() > 0.99 * high * wide  # a box, but for noise that is 77 in all channels
        assert 0.27 < wide / high < 3.7
        shares.append(high * wide / size**2)
        pixels.append(out[:, changed].float().flatten()[:200])
    assert abs(len(shares) / 1200 - 0.25) < 0.045
    assert stats.kstest(shares, "uniform", (0.02, 1 / 3 - 0.02)).pvalue > 1e-3
    noise = torch.cat(pixels) / 255
    assert abs(noise.mean() - 0.449) < 0.01
    assert abs(noise.std() - 0.226) < 0.015


def test_the_noise_has_a_seed_of_its_own():
    step, images = Erase(1.0), torch.full((3, 3, 30, 30), 77, dtype=torch.uint8)
    u = uniform(1, 6).expand(3, -1).clone()
    u[2, 5] += 2**-50
    torch.manual_seed(1)
    first = step(images, None, u)[0]
    torch.manual_seed(2)
    assert torch.equal(step(images, None, u)[0], first)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_operations_do_nothing_at_zero(mode):
    picture = to_pil(blobs(1, len(mode))[0]) if mode == "RGB" else to_pil(blobs(1, 1)[0])
    fill = (128,) * len(mode)
    for name in set(OPERATIONS) - {"auto_contrast", "equalize", "invert", "posterize"}:
        assert operate(name, picture, 0.0, 1.0, fill=fill).tobytes() == picture.tobytes(), name
    assert operate("posterize", picture, 0.0, 1.0, fill=fill).tobytes() == bytes(x & 0xF0 for x in picture.tobytes())
    assert operate("invert", picture, 0.0, 1.0, fill=fill).tobytes() == bytes(255 - x for x in picture.tobytes())


def test_operations_are_as_listed():
    image = blobs(1)[0]
    picture, x = to_pil(image), image.int()

    def out(name, t=0.5, sign=1.0, **options):
        return from_pil(operate(name, picture, t, sign, **options)).int()

    assert torch.equal(out("auto_contrast"), from_pil(ImageOps.autocontrast(picture)).int())
    assert torch.equal(out("auto_contrast").amin((1, 2)), torch.zeros(3, dtype=torch.int32))
    assert torch.equal(out("auto_contrast").amax((1, 2)), torch.full((3,), 255, dtype=torch.int32))
    assert torch.equal(out("equalize"), from_pil(ImageOps.equalize(picture)).int())
    assert torch.equal(out("posterize", 0.76), x & 0x80)
    assert torch.equal(out("posterize", 0.99), x & 0x80)
    assert torch.equal(out("posterize", 1.0), 0 * x)
    assert torch.equal(out("posterize", 0.76, increasing=False), x & 0xE0)
    assert torch.equal(out("solarize", 0.25), torch.where(x < 192, x, 255 - x))
    assert torch.equal(out("solarize", 0.25, increasing=False), torch.where(x < 64, x, 255 - x))
    assert torch.equal(out("solarize_add", 0.9), torch.where(x < 128, (x + 99).clamp_max(255), x))
    enhancements = {"colour": "Color", "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}
    for name, theirs in enhancements.items():
        enhance = getattr(ImageEnhance, theirs)(picture).enhance
        assert torch.equal(out(name), from_pil(enhance(1.45)).int())
        assert torch.equal(out(name, sign=-1.0), from_pil(enhance(0.55)).int())
        assert torch.equal(out(name, increasing=False), from_pil(enhance(1.0)).int())
        assert torch.equal(out(name, 1.0, -1.0), from_pil(enhance(0.1)).int())
    with pytest.raises(ValueError, match="no operation 'twist'"):
        operate("twist", picture, 0.5, 1.0)


def test_operations_that_move_go_where_they_should():
    step = {"interpolation": "bilinear", "fill": (9,)}
    image = ramps((40, 60), 1)[0][:1] * 4

    def out(name, t, sign):
        return from_pil(operate(name, to_pil(image), t, sign, **step))[0].int()

    right = out("translate_x", 1.0, 1.0)  # 0.45 · 60 = 27 columns
    assert torch.equal(right[:, :32], image[0, :, 27:59].int())
    assert (right[:, 34:] == 9).all()
    left = out("translate_x", 1.0, -1.0)
    assert torch.equal(left[:, 28:], image[0, :, 1:33].int())
    assert (out("translate_y", 1.0, 1.0)[23:] == 9).all()  # 18 rows
    assert torch.equal(out("translate_y", 1.0, 1.0)[:21], image[0, 18:39].int())
    sheared = out("shear_x", 0.5, 1.0)  # by 0.15 pixels a row
    for row in range(40):
        assert abs(int(sheared[row, 10]) - 4 * (10 + 0.15 * (row + 0.5))) <= 1
    tall = from_pil(operate("shear_y", to_pil(ramps((60, 40), 0)[0][:1] * 4), 0.5, -1.0, **step))[0].int()
    for column in range(40):
        assert abs(int(tall[30, column]) - 4 * (30 - 0.15 * (column + 0.5))) <= 1
    angle = math.radians(15)
    turned = out("rotate", 0.5, 1.0)  # counterclockwise: columns of the source are x cos + … of the target
    for row, column in [(20, 30), (15, 25), (25, 40)]:
        y, x = row + 0.5 - 20, column + 0.5 - 30
        assert abs(int(turned[row, column]) - 4 * (29.5 + x * math.cos(angle) - y * math.sin(angle))) <= 4


def test_magnitudes_are_normal_and_cut(monkeypatch):
    seen = []

    def spy(name, picture, t, sign, **options):
        seen.append((name, t, sign))
        return picture

    monkeypatch.setattr("unrolling.training.augmentation.rand_augment.operate", spy)
    step = RandAugment(2, magnitude=9, std=0.5, probability=0.5)
    u = uniform(4000, step.draws)
    step(blobs(1, 1, (4, 4)).expand(4000, -1, -1, -1), None, u)
    assert abs(len(seen) / 8000 - 0.5) < 0.03
    names = [name for name, _, _ in seen]
    assert set(names) == set(OPERATIONS)
    assert stats.chisquare([names.count(name) for name in OPERATIONS]).pvalue > 1e-4
    t = [10 * each for _, each, _ in seen]
    assert max(t) == 10
    assert stats.kstest([each for each in t if each < 10], stats.truncnorm(-18, 2, 9, 0.5).cdf).pvalue > 1e-3
    assert abs(sum(sign for _, _, sign in seen)) < 300
    seen.clear()
    step(blobs(1, 1, (4, 4)), None, torch.zeros(1, 8, dtype=torch.float64))
    assert seen == [(OPERATIONS[0], 0.9 + 0.05 * NormalDist().inv_cdf(2**-54), -1.0)] * 2
    seen.clear()
    RandAugment(1, std=0.0, magnitude=3)(blobs(1, 1, (4, 4)), None, torch.zeros(1, 4, dtype=torch.float64))
    assert seen == [(OPERATIONS[0], 0.3, -1.0)]


def test_pil_images_go_there_and_back():
    for channels in (1, 3):
        image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        assert torch.equal(from_pil(to_pil(image)), image)


def test_a_pipeline_gives_each_step_its_numbers():
    steps = [Flip(0.5), PadCrop(4), Jitter(0.4), Flip(0.5)]
    pipeline, images, masks = Pipeline(steps), blobs(), torch.randint(0, 4, (6, 34, 47))
    assert pipeline.draws == 8
    u = uniform(6, 8)
    wanted = images, masks
    for step, numbers in zip(steps, u.split([1, 2, 4, 1], 1), strict=True):
        wanted = step(*wanted, numbers)
    for found in (pipeline(images, masks, u), apply(pipeline, list(images), list(masks), u)):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


def test_images_of_many_sizes_come_out_in_their_order():
    sizes = [(30, 40), (50, 20), (64, 64), (30, 40), (50, 20), (22, 22)]
    images = [blobs(1, 3, size)[0] for size in sizes]
    masks = [torch.randint(0, 5, size) for size in sizes]
    table = {"resize_range": [0.5, 2.0], "crop": {"size": 24, "max_share": 0.75}, "flip": 0.5, "photometric": True}
    pipeline = Pipeline.from_table(table)
    u = uniform(6, pipeline.draws)
    out, found = apply(pipeline, images, masks, u)
    assert out.shape == (6, 3, 24, 24)
    for row in range(6):
        alone, mask = apply(pipeline, images[row : row + 1], masks[row : row + 1], u[row : row + 1])
        assert torch.equal(alone[0], out[row])
        assert torch.equal(mask[0], found[row])
        assert torch.equal(pipeline(images[row][None], masks[row][None], u[row : row + 1])[0], alone)
    whole, _ = pipeline(torch.stack([images[0], images[3]]), None, u[:2])
    assert torch.equal(whole[0], apply(pipeline, images[:1], None, u[:1])[0][0])
    plain = Pipeline.from_table({"random_resized_crop": {"size": 16}, "flip": 0.5})
    u = uniform(6, plain.draws)
    out, none = apply(plain, images, None, u)
    assert none is None
    for row in range(6):
        assert torch.equal(out[row], apply(plain, images[row : row + 1], None, u[row : row + 1])[0][0])


def test_without_steps_anything_is_stacked():
    features, nothing = [torch.randn(5, 7) for _ in range(3)], uniform(3, 0)
    assert torch.equal(apply(Pipeline([]), features, None, nothing)[0], torch.stack(features))
    masks = [torch.zeros(2, 2) for _ in range(3)]
    assert apply(Pipeline([]), features, masks, nothing)[1].shape == (3, 2, 2)
    assert torch.equal(Pipeline([])(torch.ones(3, 2), None, nothing)[0], torch.ones(3, 2))


@pytest.mark.parametrize(
    ("table", "missing"),
    [
        ({}, "random_resized_crop, or resize and center_crop"),
        ({"flip": 0.5}, "random_resized_crop, or resize and center_crop"),
        ({"resize": 20}, "center_crop"),
        ({"resize_range": [0.5, 2]}, "crop after resize_range"),
    ],
)
def test_sizes_that_differ_at_the_end_are_told(table, missing):
    pipeline, images = Pipeline.from_table(table), [blobs(1, 3, size)[0] for size in [(30, 40), (50, 20)]]
    with pytest.raises(ValueError, match=f"missing is {missing}"):
        apply(pipeline, images, None, uniform(2, pipeline.draws))


def test_ragged_steps_take_one_image_at_a_time():
    with pytest.raises(ValueError, match=r"call it through augment\.apply"):
        ResizeRange((0.5, 2.0))(blobs(), None, uniform(6, 1))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"flop": 0.5}, "no 'flop'; there are pad_crop, flip"),
        ({"flip": False}, "leave the line out"),
        ({"flip": 1.5}, "flip: probability must be a number from 0 to 1"),
        ({"flip": True, "photometric": 3}, "photometric has no options; write photometric = true"),
        ({"photometric": {"hue": 3}}, "photometric has no option 'hue'; its options are none"),
        ({"pad_crop": 0}, "pad_crop: pixels must be at least 1"),
        ({"pad_crop": 1.5}, "pad_crop: pixels must be an integer"),
        ({"pad_crop": True}, "pad_crop needs pixels"),
        ({"random_resized_crop": {"scale": [0.1, 1]}}, "random_resized_crop needs size"),
        ({"random_resized_crop": {"size": 8, "scales": [0.1, 1]}}, "no option 'scales'; its options are size, scale"),
        ({"random_resized_crop": {"size": 8, "scale": [0.5]}}, "scale must be two numbers"),
        ({"random_resized_crop": {"size": 8, "scale": [0.5, 0.2]}}, "in this order"),
        ({"random_resized_crop": {"size": 8, "scale": [0, 2]}}, "scale must be a number from"),
        ({"random_resized_crop": {"size": 8, "interpolation": "lanczos"}}, "interpolation must be one of bilinear"),
        ({"resize": "8"}, "resize: size must be"),
        ({"resize": [8, 0]}, "resize: size must be at least 1"),
        ({"resize_range": {"ratio": [0.5, 2], "short": 3}}, "give both short and long"),
        ({"resize_range": {"ratio": [0.5, 2], "short": 3, "long": 2}}, "long must be at least 3"),
        ({"crop": {"size": 8, "max_share": 2}}, "max_share must be a number"),
        ({"crop": {"size": 8, "tries": 0}}, "tries must be at least 1"),
        ({"crop": {"size": 8, "fill": 300}}, "fill must be a number"),
        ({"jitter": [0.1, 0.2]}, "jitter: strength must be one number or"),
        ({"jitter": 2}, "jitter: strength must be a number from 0 to 1"),
        ({"rand_augment": {"operations": 0}}, "operations must be at least 1"),
        ({"rand_augment": {"increasing": 1}}, "increasing must be true or false"),
        ({"erase": {"probability": 0.5, "area": [0.5, 0.1]}}, "erase: area must be"),
        ({"erase": "often"}, "erase: probability must be"),
    ],
)
def test_wrong_lines_of_a_recipe_are_told(table, told):
    with pytest.raises(ValueError, match=told):
        Pipeline.from_table(table)


def test_wrong_inputs_are_told():
    images, step = blobs(), Flip(0.5)
    with pytest.raises(ValueError, match="in uint8"):
        step(images.float(), None, uniform(6, 1))
    with pytest.raises(ValueError, match="in uint8"):
        step(images[:0], None, uniform(0, 1))
    with pytest.raises(ValueError, match=r"masks must be \(batch, H, W\)"):
        step(images, torch.zeros(6, 34, 40), uniform(6, 1))
    for u in (uniform(6, 2), uniform(5, 1), uniform(6, 1).float()):
        with pytest.raises(ValueError, match=r"flip needs u of shape \(6, 1\)"):
            step(images, None, u)
        with pytest.raises(ValueError, match=r"u must be \(6, 1\)"):
            apply(Pipeline([step]), list(images), None, u)
    with pytest.raises(ValueError, match="6 images with 5 masks"):
        apply(Pipeline([step]), list(images), [images[0, 0]] * 5, uniform(6, 1))
    with pytest.raises(ValueError, match="0 images"):
        apply(Pipeline([step]), [], None, uniform(0, 1))
    with pytest.raises(ValueError, match="fill is for 3 channels, but images have 1"):
        Crop(60, fill=[1, 2, 3])(images[:, :1], None, uniform(6, 2))


def test_every_augmentation_has_its_name():
    assert list(AUGMENTATIONS) == [
        "pad_crop",
        "flip",
        "random_resized_crop",
        "resize",
        "center_crop",
        "resize_range",
        "crop",
        "photometric",
        "jitter",
        "rand_augment",
        "three_augment",
        "erase",
    ]
    covered = {name.split()[0] for name in STEPS}
    assert covered == set(AUGMENTATIONS)


FOLDER = resources.files("unrolling.training") / "recipes"
PUBLISHED = (
    "imagenet-crate",
    "imagenet-cbt",
    "imagenet-vit-adaptation",
    "imagenet-tost",
    "imagenet-mita-deit",
    "imagenet-mita-vit5",
    "cifar-finetune",
    "ade20k",
    "pascal-context",
    "cityscapes",
)


def parsed(name):
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_augment_to_the_size_of_their_model(name):
    recipe = parsed(name)
    segments = "window" in recipe["evaluate"]
    pipeline = Pipeline.from_table(recipe["augment"])
    images = [blobs(1, 3, size)[0] for size in [(300, 400), (500, 333)]]
    masks = [torch.randint(0, 20, (300, 400)), torch.randint(0, 20, (500, 333))] if segments else None
    out, found = apply(pipeline, images, masks, uniform(2, pipeline.draws))
    side = recipe["backbone" if segments else "model"]["img_size"]
    assert out.shape == (2, 3, side, side)
    assert (found is None) or found.shape == (2, side, side)
    if segments:
        assert recipe["evaluate"]["window"] == side
    else:
        evaluated = Pipeline.from_table(recipe["evaluate"])
        assert apply(evaluated, images, None, uniform(2, 0))[0].shape == out.shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_name_their_source(name):
    comments = [
        line for line in (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines() if line.startswith("# ")
    ]
    assert any("released" in line or "Segmenter" in line for line in comments)


def test_published_figures_are_those_of_the_table():
    table = {
        "imagenet-crate": ("lion", 2e-4, 0.05, 512, 200, 20),
        "imagenet-cbt": ("lion", 2e-4, 0.05, 256, 150, 20),
        "imagenet-vit-adaptation": ("adamw", 5e-5, 0.01, 512, 50, 10),
        "imagenet-tost": ("adamw", 5e-4, 0.05, 1024, 400, 5),
        "imagenet-mita-deit": ("adamw", 5e-4, 0.05, 1024, 300, 5),
        "imagenet-mita-vit5": ("adamw", 5e-4, 0.05, 2048, 800, 5),
        "cifar-finetune": ("adamw", 5e-5, 0.01, 256, 200, 0),
        "ade20k": ("sgd", 1e-3, 0, 8, 64, 0),
        "pascal-context": ("sgd", 1e-3, 0, 16, 256, 0),
        "cityscapes": ("sgd", 1e-2, 0, 8, 216, 0),
    }
    for name, figures in table.items():
        train = parsed(name)["train"]
        assert tuple(train[key] for key in ("optimiser", "lr", "weight_decay", "batch", "epochs", "warmup")) == figures
