import importlib.util
import itertools
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unrolling.training.data import ArrayData, MissingData, Splits, cache_folder, load_data
from unrolling.training.datasets import rendered, scenes

SMALL = (6, 2, 3)


def has(package):
    return importlib.util.find_spec(package) is not None


needs_crafter = pytest.mark.skipif(not has("crafter"), reason="needs the package crafter")
needs_digits = pytest.mark.skipif(not has("sklearn"), reason="needs scikit-learn")
needs_photographs = pytest.mark.skipif(not has("sklearn") and not has("skimage"), reason="needs photographs")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path / "cache"))


def stack(data):
    pairs = [data.load(index) for index in range(len(data))]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def same(one, other):
    parts = zip((one.train, one.val, one.test), (other.train, other.val, other.test), strict=True)
    return [torch.equal(a, b) for data in parts for a, b in zip(*map(stack, data), strict=True)]


def clothes(count=40, side=28):
    """Items that are rings, each part's of a brightness of its own, so that scenes show which they came from."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(rows, columns)
    ring = torch.from_numpy((radius < side * 0.45) & (radius > side * 0.2))
    parts = []
    for name, value in (("train", 60), ("val", 150), ("test", 255)):
        images = (ring * value).to(torch.uint8).expand(count, 1, side, side).contiguous()
        parts.append(ArrayData(name, images, torch.arange(count) % 10, [str(label) for label in range(10)]))
    return Splits(*parts)


def black(size):
    return lambda rng, count: torch.zeros(count, 3, size, size)


def test_what_is_made_once_is_kept_and_what_is_damaged_is_made_anew():
    calls = []

    def make():
        calls.append(1)
        return {"a": torch.arange(24, dtype=torch.uint8).view(2, 3, 4), "b": torch.ones(5, dtype=torch.uint8)}

    shapes = {"a": (2, 3, 4), "b": (5,)}
    first = rendered.kept("some", make, shapes)
    again = rendered.kept("some", make, shapes)
    assert len(calls) == 1
    assert all(torch.equal(first[key], again[key]) for key in first)
    path = cache_folder() / "some.safetensors"
    assert [file.name for file in cache_folder().iterdir()] == [path.name]

    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"\xff" * 64, bytes(flipped)):
        path.write_bytes(damaged)
        before = path.stat().st_ino
        calls.clear()
        assert torch.equal(rendered.kept("some", make, shapes)["a"], first["a"])
        assert calls == [1]
        assert path.read_bytes() == whole
        assert path.stat().st_ino != before  # another file in its place, never the same one rewritten
    save_file(load_file(path), path)  # as another writer would have it, without the sum
    rendered.kept("some", make)
    rendered.kept("some", make, {**shapes, "b": (6,)})
    assert calls == [1, 1, 1]


def test_nothing_is_left_of_what_could_not_be_made_or_written(monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        rendered.kept("some", fail)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        rendered.kept("some", lambda: {"a": torch.ones(1, dtype=torch.uint8)})
    assert list(cache_folder().iterdir()) == []


def test_a_package_that_is_missing_is_named():
    with pytest.raises(MissingData, match=r"some: no_such_package is not installed; .* pip install its-name"):
        rendered.needed("some", "no_such_package", "its-name")


@pytest.mark.parametrize(("make", "package"), [(scenes.crafter, "crafter"), (scenes.digit_scenes, "scikit-learn")])
def test_scenes_without_their_package_name_it(make, package, monkeypatch):
    for module in ("crafter", "sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingData, match=f"pip install {package}"):
        make()


def test_photographs_without_a_package_that_has_them_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match="pip install scikit-learn scikit-image"):
        scenes.photographs("fashion_scenes", "test")


@pytest.mark.parametrize("make", [scenes.crafter, scenes.digit_scenes])
def test_rendered_scenes_take_no_root(make, tmp_path):
    with pytest.raises(ValueError, match="reads no folder"):
        make(tmp_path)


@pytest.mark.parametrize("make", [scenes.crafter, scenes.digit_scenes, scenes.fashion_scenes])
def test_sizes_and_seeds_are_checked(make):
    for options in ({"sizes": (3, 2)}, {"sizes": 3}, {"sizes": (3, 2, 0)}, {"seed": -1}, {"size": 8}):
        with pytest.raises(ValueError, match=f"{make.__name__}: {next(iter(options))} must be"):
            make(**options)
    with pytest.raises(TypeError, match="seed must be an integer"):
        make(seed=0.5)


def test_sizes_of_scenes_have_their_limits():
    with pytest.raises(ValueError, match=r"multiple of 9, .* but is 150; 144 is one"):
        scenes.crafter(size=150)
    with pytest.raises(ValueError, match="at least 18"):
        scenes.crafter(size=9)
    with pytest.raises(ValueError, match="at most 256"):
        scenes.digit_scenes(size=257)


def test_episodes_of_parts_and_seeds_are_disjoint():
    numbers = [scenes.episode_seed(seed, part, n) for seed in range(3) for part in range(3) for n in range(500)]
    assert len(set(numbers)) == len(numbers)


@needs_crafter
def test_crafters_masks_are_exact_and_show_every_class():
    import crafter

    index = scenes.CRAFTER_CLASSES.index
    still = {}
    found = set()
    for image, classes in itertools.islice(scenes.frames(crafter, 0, 0, 144), 70):
        assert image.shape == (112, 144, 3)
        assert classes.shape == (7, 9)
        assert classes[3, 4] == index("player")
        found |= set(classes.ravel().tolist())
        cells = image.reshape(7, 16, 9, 16, 3).transpose(0, 2, 1, 3, 4)
        for name in ("outside", "grass", "stone", "tree", "coal", "iron", "diamond", "table", "furnace"):
            alike = cells[classes == index(name)]
            assert (alike == alike[:1]).all(), name
            still.setdefault(name, []).extend(alike[:1].astype(float))
    assert len(still["grass"]) > 50
    assert len(still["stone"]) > 20
    # Cells of different classes differ, so alignment cannot be right by chance.
    assert np.abs(still["grass"][0] - still["stone"][0]).mean() > 20
    print(sorted(set(range(19)) - found))
    assert found >= set(range(19)) - {index("outside"), index("diamond"), index("arrow")}  # these are rare


def crafter_digest(seed, part):
    import crafter

    total = 0
    for image, classes in itertools.islice(scenes.frames(crafter, seed, part, 18), 14):
        total = zlib.crc32(image.tobytes() + classes.tobytes(), total)
    return total


@needs_crafter
def test_crafter_is_the_seeds_alone_whatever_the_process():
    here = [crafter_digest(5, 0), crafter_digest(5, 1), crafter_digest(6, 0)]
    assert len(set(here)) == 3
    code = "from test_scenes import crafter_digest; print(crafter_digest(5, 0))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert int(done.stdout) == here[0]


@needs_crafter
def test_crafter_is_read_from_the_cache_and_rendered_anew_when_it_is_damaged(monkeypatch):
    first = load_data("crafter", sizes=SMALL, size=18)
    assert first.patch == 16
    assert first.train.size == (14, 18)
    assert first.train.classes == scenes.CRAFTER_CLASSES
    image, mask = first.train.load(1)
    assert torch.equal(mask[::2, ::2].repeat_interleave(2, 0).repeat_interleave(2, 1), mask)
    assert not torch.equal(image, first.val.load(1)[0])

    def blank(game, seed, part, size):
        return itertools.repeat((np.full((14, 18, 3), part, np.uint8), np.zeros((7, 9), np.uint8)))

    monkeypatch.setattr(scenes, "frames", blank)
    assert all(same(first, load_data("crafter", sizes=SMALL, size=18)))
    assert load_data("crafter", sizes=SMALL, size=18, seed=1).train.load(0)[0].max() == 0
    (kept,) = cache_folder().glob("crafter-*-0.safetensors")
    kept.write_bytes(kept.read_bytes()[:-100])
    again = load_data("crafter", sizes=SMALL, size=18)
    assert [stack(part)[0].unique().tolist() for part in (again.train, again.val, again.test)] == [[0], [1], [2]]


@needs_crafter
def test_another_release_of_crafter_with_other_classes_is_refused(monkeypatch):
    monkeypatch.setattr(scenes, "CRAFTER_CLASSES", scenes.CRAFTER_CLASSES[:-1])
    with pytest.raises(ValueError, match="install crafter"):
        scenes.crafter(sizes=SMALL, size=18)


def test_masks_are_where_the_items_are_and_name_them():
    made = scenes.composed("rings", clothes(), [black(64)] * 3, (200, 20, 20), 0, 64, clothes=True, patch=8)
    images, masks = stack(made.train)
    lit = images.amax(1) > 0
    assert ((masks > 0) & ~lit).sum() == 0
    assert (lit & (masks == 0)).sum() < 0.3 * (masks > 0).sum()  # edges that cover less than half of a pixel
    assert set(masks.unique().tolist()) == set(range(11))
    assert 0.05 < (masks > 0).float().mean() < 0.6
    alone = [len(mask.unique()) == 2 for mask in masks]
    assert 0.15 < sum(alone) / 200 < 0.4


def test_silhouettes_are_filled_for_clothes_and_hollow_for_digits():
    from scipy.ndimage import binary_fill_holes

    ring = clothes().train.load(0)[0][None].float() / 255
    assert scenes.silhouettes(ring)[0, 0, 14, 14] == 1
    for whole in (True, False):
        made = scenes.composed("rings", clothes(), [black(64)] * 3, (1, 1, 100), 0, 64, clothes=whole, patch=8)
        alone = [mask.numpy() > 0 for mask in stack(made.test)[1] if len(mask.unique()) == 2]
        holes = sum(binary_fill_holes(mask).sum() > mask.sum() for mask in alone)
        assert len(alone) > 10
        assert holes <= 0.2 * len(alone) if whole else holes >= 0.6 * len(alone)  # two of one class may enclose some


def test_silhouettes_do_not_leak_between_images():
    open_ring = torch.zeros(3, 1, 9, 9)
    open_ring[:, 0, 2:7, 2:7] = 1
    open_ring[:, 0, 3:6, 3:6] = 0
    open_ring[1, 0, 4, 6] = 0
    assert scenes.silhouettes(open_ring).sum((1, 2, 3)).tolist() == [25, 15, 25]


def test_parts_show_items_of_that_part_only():
    made = scenes.composed("rings", clothes(), [black(64)] * 3, (30, 30, 30), 0, 64, clothes=True, patch=8)
    brightest = [stack(part)[0].max().item() for part in (made.train, made.val, made.test)]
    assert brightest == [round(255 * (0.25 + 0.75 * value / 255)) for value in (60, 150, 255)]


def test_scenes_are_the_seeds_and_parts_differ():
    def make(seed, count=20):
        sizes = (count, 8, 8)
        return scenes.composed("rings", clothes(), [scenes.noise(32)] * 3, sizes, seed, 32, clothes=True, patch=8)

    assert all(same(make(3), make(3)))
    assert not any(same(make(3), make(4)))
    first, test = stack(make(3).val)[1], stack(make(3).test)[1]
    assert not torch.equal(first, test)


def test_scenes_do_not_depend_on_batches(monkeypatch):
    def make():
        return scenes.composed("rings", clothes(), [black(32)] * 3, (20, 3, 3), 0, 32, clothes=True, patch=8)

    whole = make()
    monkeypatch.setattr(scenes, "BATCH", 7)
    assert all(same(whole, make()))


def test_crops_are_pieces_of_the_photograph_at_its_scales():
    photograph = torch.arange(3 * 40 * 50).reshape(3, 40, 50).remainder(251).to(torch.uint8)
    drawn = scenes.crops([photograph], 20)(np.random.default_rng(0), 50)
    whole = {round(value * 255) for value in drawn.unique().tolist()}
    assert drawn.shape == (50, 3, 20, 20)
    windows = (
        photograph.float().div(255).unfold(1, 20, 1).unfold(2, 20, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 20, 20)
    )
    found = [any(torch.equal(window, view) for window in windows) for view in drawn]
    flipped = [any(torch.equal(window, view.flip(2)) for window in windows) for view in drawn]
    assert sum(found) > 5
    assert sum(flipped) > 5
    assert 5 < 50 - sum(found) - sum(flipped) < 45  # of half the scale
    assert whole <= set(range(256))


@needs_photographs
def test_photographs_of_train_and_test_differ():
    train, test = scenes.photographs("some", "train"), scenes.photographs("some", "test")
    assert all(picture.dtype == torch.uint8 and picture.shape[0] == 3 for picture in train + test)
    assert min(min(picture.shape[1:]) for picture in train + test) >= 256
    names = [name for part in scenes.PHOTOGRAPHS.values() for name in part]
    assert len(set(names)) == len(names)


@needs_photographs
def test_fashion_scenes_are_clothes_over_photographs(monkeypatch):
    from unrolling.training.datasets import classification

    monkeypatch.setattr(classification, "fashion_mnist", lambda root: clothes())
    made = load_data("fashion-scenes", sizes=SMALL)
    assert made.patch == 8
    assert made.train.classes == ("background", *map(str, range(10)))
    images, masks = stack(made.train)
    assert images.shape == (6, 3, 64, 64)
    assert masks.max() <= 10
    assert images.float().std((0, 2, 3)).min() > 20
    assert all(same(made, load_data("fashion-scenes", sizes=SMALL)))


@needs_digits
def test_digits_over_noise_stand_out_from_it():
    made = load_data("digit-scenes", sizes=(300, 20, 30))
    assert made.patch == 4
    assert made.train.classes == ("background", *map(str, range(10)))
    images, masks = stack(made.train)
    assert images.shape == (300, 3, 32, 32)
    brightest = images.amax(1)
    assert 0.82 < (masks == 0).float().mean() < 0.88
    assert brightest[masks == 0].float().mean() < 100
    assert brightest[masks > 0].float().mean() > 150
    assert set(masks.unique().tolist()) == set(range(11))
    assert all(same(made, load_data("digit-scenes", sizes=(300, 20, 30))))
    assert not any(same(made, load_data("digit-scenes", sizes=(300, 20, 30), seed=1)))
    assert made.test.mean == made.train.mean
