"""Features of a frozen backbone: what they are, and that a file is taken for another's or half of it never."""

import importlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from unrolling import models as m
from unrolling.adapt import adapt
from unrolling.training.data import ArrayData, Data, Part
from unrolling.training.pretrained.features import features

module = importlib.import_module(
    "unrolling.training.pretrained.features"
)  # the package may have a function of that name
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path))
    return tmp_path / "features"


@pytest.fixture
def vit():
    return m.ViT(**SIZES, drop_rate=0.5)


def images(count=5, channels=3, side=20):
    return torch.randint(256, (count, channels, side, side + 3), dtype=torch.uint8)


def data(pixels, name="some"):
    return ArrayData(name, pixels, torch.zeros(len(pixels), dtype=torch.long), ("a",))


class Mixed(Data):
    """Images of different sizes."""

    name, task, classes, channels, size, mean, std = "mixed", "classify", ("a",), 3, None, (0.5,), (0.5,)

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def load(self, index):
        return self.images[index], torch.tensor(0)


def wanted(model, pixels, size, mean, std):
    """Of one image, from the definition."""
    x = F.interpolate(pixels[None].double() / 255, (size, size), mode="bilinear", antialias=True)[0]
    x = x.expand(3, -1, -1)
    x = torch.stack([(x[c] - mean[c]) / std[c] for c in range(3)])[None].float()
    return model.eval().forward_features(x)[0, 1:]


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cached", [True, False])
def test_features_are_the_normalised_patch_tokens(channels, cached, vit):
    pixels = images(channels=channels)
    found = features(vit, data(pixels), size=24, batch=2, cache=cached)
    assert vit.training  # as it was
    assert found.shape == (5, 9, 12)
    assert found.dtype == torch.float16
    assert not found.requires_grad
    for row, image in enumerate(pixels):
        torch.testing.assert_close(found[row].float(), wanted(vit, image, 24, *IMAGENET), rtol=2e-3, atol=2e-3)


def test_statistics_may_be_the_datas(vit):
    some = data(images())
    found = features(vit, some, size=16, mean=some.mean, std=some.std)
    torch.testing.assert_close(
        found[2].float(), wanted(vit, some.images[2], 16, some.mean, some.std), rtol=2e-3, atol=2e-3
    )
    assert not torch.equal(found, features(vit, some, size=16))


def test_sizes_may_differ_and_tensors_are_taken(vit):
    sizes = [(20, 20), (20, 20), (9, 31), (16, 16), (20, 20)]
    some = Mixed([torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes])
    found = features(vit, some, size=16, batch=4)
    for row, image in enumerate(some.images):
        torch.testing.assert_close(found[row].float(), wanted(vit, image, 16, *IMAGENET), rtol=2e-3, atol=2e-3)
        assert torch.allclose(features(vit, image[None], size=16)[0], found[row], atol=2e-3)


@pytest.mark.parametrize(
    ("model", "first", "last"),
    [
        (m.ViT(**SIZES, distilled=True), 2, 0),
        (m.CRATE(**SIZES), 1, 0),
        (m.ToST(**{**SIZES, "num_heads": 3}), 1, 0),
        (m.MiTAViT5(**{**SIZES, "embed_dim": 24, "landmarks": (2, 2), "keys_per_expert": 4}), 1, 4),
    ],
    ids=["two class tokens", "CRATE", "class attention", "registers"],
)
def test_only_patches_are_kept(model, first, last):
    pixels = images(2, side=16)
    tokens = model.eval().forward_features(
        (F.interpolate(pixels.float() / 255, (16, 16), mode="bilinear", antialias=True) - 0.5) / 0.25
    )
    assert tokens.shape[1] == first + 4 + last
    found = features(model, pixels, size=16, mean=[0.5], std=[0.25], cache=False)
    torch.testing.assert_close(found.float(), tokens[:, first : first + 4], rtol=2e-3, atol=2e-3)


def runs(monkeypatch, model):
    """A list that grows with every batch that passes the model."""
    seen, forward = [], type(model).forward_features
    monkeypatch.setattr(type(model), "forward_features", lambda self, x: seen.append(len(x)) or forward(self, x))
    return seen


def test_a_second_call_reads_the_file(vit, cache, monkeypatch):
    seen = runs(monkeypatch, vit)
    some = data(images())
    first = features(vit, some, size=16)
    (place,) = cache.iterdir()
    with safe_open(place, "pt") as file:
        assert file.get_slice("features").get_dtype() == "F16"
    assert torch.equal(load_file(place)["features"], first)
    assert seen == [5]
    assert torch.equal(features(vit, some, size=16), first)
    assert torch.equal(features(vit.eval(), Part(some, range(5), "some"), size=16), first)
    assert seen == [5]


def changed_weight(model):
    with torch.no_grad():
        model.blocks[1].attention.key.bias[3] += 1e-3
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 24},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"data": lambda some: Part(some, [0, 1, 2, 3], "some")},
        {"data": lambda some: Part(some, [0, 1, 2, 4, 3], "some")},
        {"data": lambda some: data(some.images, "other")},
        {"model": changed_weight},
        {"model": lambda model: m.ViT.from_pretrained(model.save_pretrained("."), resize="bilinear")},
        {"model": lambda model: adapt(model.eval(), "mita", landmarks=(2, 2), keys_per_expert=1, shared=False)},
    ],
    ids=["size", "mean", "std", "count", "order", "name", "weight", "configuration", "attention"],
)
def test_features_of_something_else_are_not_taken(changes, vit, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some = data(images())
    features(vit, some, size=16)
    options = {"size": 16, **changes}
    model, other = options.pop("model", lambda x: x)(vit), options.pop("data", lambda x: x)(some)
    seen = runs(monkeypatch, model)
    found = features(model, other, **options)
    assert sum(seen) == len(other)
    assert torch.equal(found, features(model, other, **options, cache=False))
    assert len(list(cache.iterdir())) == 2


def test_two_counts_are_kept_beside_each_other(vit, cache):
    some = data(images(2 * module.SAMPLE + 2, side=8))
    features(vit, some, size=16)
    features(vit, Part(some, range(2 * module.SAMPLE + 1), "some"), size=16)  # the same sample
    assert len(list(cache.iterdir())) == 2


def test_one_number_normalises_all_channels(vit):
    pixels = images(channels=1)
    found = features(vit, pixels, size=16, mean=[0.5], std=[0.2])
    assert torch.equal(found, features(vit, pixels, size=16, mean=[0.5] * 3, std=[0.2] * 3))


def test_one_pixel_of_a_tensor_makes_it_another(vit, monkeypatch):
    pixels = images(200)
    features(vit, pixels, size=16)
    seen = runs(monkeypatch, vit)
    pixels[101, 0, 0, 0] ^= 255
    features(vit, pixels, size=16)
    assert sum(seen) == 200


def cut(place):
    place.write_bytes(place.read_bytes()[:-3])


def another_key(place):
    with safe_open(place, "pt") as file:
        tensor = file.get_tensor("features").clone()
    save_file({"features": tensor}, place, {"key": "0" * 64})


def another_shape(place):
    with safe_open(place, "pt") as file:
        tensor, note = file.get_tensor("features").clone(), file.metadata()
    save_file({"features": tensor.flatten(1)}, place, note)


def another_name(place):
    with safe_open(place, "pt") as file:
        tensor, note = file.get_tensor("features").clone(), file.metadata()
    save_file({"tokens": tensor}, place, note)


def another_kind(place):
    with safe_open(place, "pt") as file:
        tensor, note = file.get_tensor("features").clone(), file.metadata()
    save_file({"features": tensor.view(torch.bfloat16)}, place, note)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        another_key,
        another_shape,
        another_name,
        another_kind,
        lambda place: place.write_bytes(b""),
        lambda place: place.write_text(json.dumps({})),
    ],
    ids=["cut", "key", "shape", "name", "kind", "empty", "text"],
)
def test_a_damaged_or_foreign_file_is_computed_anew(damage, vit, cache, monkeypatch):
    some = data(images())
    first = features(vit, some, size=16).clone()
    (place,) = cache.iterdir()
    damage(place)
    seen = runs(monkeypatch, vit)
    assert torch.equal(features(vit, some, size=16), first)
    assert seen == [5]
    assert torch.equal(features(vit, some, size=16), first)
    assert seen == [5]


def test_an_interruption_leaves_nothing_and_the_model_as_it_was(vit, cache, monkeypatch):
    forward = m.ViT.forward_features

    def interrupted(self, x):
        if len(x) == 1:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(m.ViT, "forward_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features(vit, data(images()), size=16, batch=4)
    assert list(cache.iterdir()) == []
    assert vit.training


def test_without_cache_nothing_is_written(vit, cache):
    features(vit, images(), size=16, cache=False)
    assert not cache.exists()


def test_a_full_disk_is_seen_before_anything_is_computed(vit, monkeypatch):
    seen = runs(monkeypatch, vit)
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ValueError, match="UNROLL_CACHE"):
        features(vit, images(), size=16)
    assert seen == []


def test_progress_is_shown_if_asked_for(vit, capsys):
    features(vit, images(), size=16, cache=False)
    assert capsys.readouterr().err == ""
    features(vit, images(), size=16, cache=False, progress=True)
    assert "0/5" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(vit):
    with pytest.raises(ValueError, match="size 20 × 20 is not whole patches"):
        features(vit, images(), size=20)
    with pytest.raises(ValueError, match="2 channels"):
        features(vit, images(channels=2), size=16)
    with pytest.raises(ValueError, match="mean and std"):
        features(vit, images(), size=16, mean=(0.5, 0.5))
    with pytest.raises(ValueError, match="std positive"):
        features(vit, images(), size=16, std=(0.5, 0.0, 0.5))
    with pytest.raises(TypeError, match="network of images"):
        features(torch.nn.Linear(2, 2), images(), size=16)
    with pytest.raises(TypeError, match="uint8"):
        features(vit, images().float(), size=16)
    with pytest.raises(TypeError, match="a Data or a tensor"):
        features(vit, [images()], size=16)
    with torch.no_grad():
        vit.norm.weight.fill_(1e6)
    with pytest.raises(ValueError, match="float16"):
        features(vit, images(), size=16)
