"""Data sets: the protocol, those in arrays, parts of them, loading by name."""

import importlib.util

import pytest
import torch

from unrolling.training import data
from unrolling.training.data import IGNORE, ArrayData, Part, Splits, cache_folder, load_data, split
from unrolling.training.datasets import classification


def bytes_of(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def counted(count, classes=2):
    """Images whose first pixel is their number, of classes in turn."""
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return ArrayData("counted", images, torch.arange(count) % classes, [str(label) for label in range(classes)])


def numbers(part):
    return [int(part.load(index)[0][0, 0, 0]) for index in range(len(part))]


def test_arrays_give_images_and_targets_one_by_one_and_together():
    images, masks = bytes_of(5, 3, 4, 6), torch.randint(0, 3, (5, 4, 6)).to(torch.uint8)
    masks[0, 0, 0] = IGNORE
    some = ArrayData("some", images, masks, "abc", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert (some.task, some.channels, some.size, len(some), some.classes) == ("segment", 3, (4, 6), 5, ("a", "b", "c"))
    assert (some.mean, some.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    together = some.load_many([4, 0])
    for at, index in enumerate([4, 0]):
        image, mask = some.load(index)
        assert (image.dtype, mask.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(image, images[index])
        assert torch.equal(mask, masks[index].long())
        assert torch.equal(together[0][at], image)
        assert torch.equal(together[1][at], mask)


@pytest.mark.parametrize(
    ("images", "targets", "classes", "error", "says"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), "a", ValueError, "in uint8, but are .* torch.float32"),
        (bytes_of(2, 4, 4), torch.zeros(2).long(), "a", ValueError, r"must be \(count, channels, H, W\)"),
        (bytes_of(2, 1, 4, 4), torch.zeros(3).long(), "a", ValueError, r"targets must be \(2,\), but are \(3,\)"),
        (bytes_of(2, 1, 4, 4), torch.zeros(2, 4, 5).long(), "a", ValueError, r"must be \(2, 4, 4\)"),
        (bytes_of(0, 1, 4, 4), torch.zeros(0).long(), "a", ValueError, "no images"),
        (bytes_of(2, 1, 0, 4), torch.zeros(2).long(), "a", ValueError, "none with pixels"),
        (bytes_of(2, 1, 4, 4), torch.zeros(2), "a", TypeError, "integers, but are torch.float32"),
        (bytes_of(2, 1, 4, 4), torch.tensor([0, 2]), "ab", ValueError, r"must be 0 … 1, but 2 came"),
        (bytes_of(2, 1, 4, 4), torch.tensor([-1, 0]), "ab", ValueError, "but -1 came"),
        (bytes_of(1, 1, 1, 2), torch.tensor([[[2, 255]]]), "ab", ValueError, "0 … 1 or 255 for void, but 2 came"),
        (bytes_of(1, 1, 4, 4), torch.tensor([255]), "ab", ValueError, "but 255 came"),
        (bytes_of(1, 1, 1, 1), torch.zeros(1, 1, 1).long(), ["a"] * 256, ValueError, "255 classes at most"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, targets, classes, error, says):
    with pytest.raises(error, match=says):
        ArrayData("some", images, targets, classes)


def test_narrow_labels_are_compared_as_the_numbers_they_are():
    # torch cuts 300 to 44 and 255 to −1 beside such tensors.
    data.check_labels("some", torch.tensor([200], dtype=torch.uint8), 300)
    with pytest.raises(ValueError, match="-1 came"):
        data.check_labels("some", torch.tensor([-1], dtype=torch.int8), 3, void=True)


def test_labels_are_checked_to_the_last_and_all_that_are_wrong_are_said():
    labels = torch.zeros((1 << 22) + 2, dtype=torch.uint8)
    labels[0], labels[-1] = 9, 7
    with pytest.raises(ValueError, match="but 7, 9 came"):
        data.check_labels("some", labels, 3)


def test_statistics_are_those_of_all_pixels():
    images = bytes_of(300, 3, 5, 4)
    images[:, 1] //= 4
    mean, std = data.statistics(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(pixels.std((0, 2, 3), unbiased=False).tolist())
    assert data.statistics(torch.zeros(2, 1, 3, 3, dtype=torch.uint8)) == ((0.0,), (1e-3,))


def test_one_given_statistic_is_kept_and_the_other_is_found():
    images, labels = bytes_of(4, 1, 3, 3), torch.zeros(4).long()
    own = data.statistics(images)
    some = ArrayData("some", images, labels, "a", mean=(0.25,))
    assert (some.mean, some.std) == ((0.25,), own[1])
    some = ArrayData("some", images, labels, "a", std=(0.25,))
    assert (some.mean, some.std) == (own[0], (0.25,))
    with pytest.raises(ValueError, match="std must be 1 numbers"):
        ArrayData("some", images, labels, "a", std=(0.25, 1.0))


def test_a_part_is_some_images_under_its_own_name():
    whole = counted(9)
    part = Part(whole, [7, 2, 3], "three")
    assert (part.name, len(part), part.task, part.classes) == ("three", 3, "classify", ("0", "1"))
    assert (part.channels, part.size, part.mean, part.std) == (1, (2, 2), whole.mean, whole.std)
    assert numbers(part) == [7, 2, 3]
    images, labels = Part(part, [2, 0], "two").load_many([1, 0])
    assert [int(image[0, 0, 0]) for image in images] == [7, 3]
    assert [int(label) for label in labels] == [1, 1]


def test_a_part_of_nothing_or_of_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="none: there are no images"):
        Part(counted(3), [], "none")
    for index in (3, -1):
        with pytest.raises(ValueError, match=rf"counted has images 0 … 2, but no {index}"):
            Part(counted(3), [0, index], "far")


def test_a_split_is_disjoint_whole_and_the_seeds():
    first, second = split(counted(20), 0.3, 1, ("a", "b"))
    assert (len(first), len(second), first.name, second.name) == (14, 6, "a", "b")
    assert sorted(numbers(first) + numbers(second)) == list(range(20))
    assert numbers(first) == sorted(numbers(first))
    assert numbers(split(counted(20), 0.3, 1, ("a", "b"))[1]) == numbers(second)
    assert numbers(split(counted(20), 0.3, 2, ("a", "b"))[1]) != numbers(second)
    assert len(split(counted(20), 0.0, 1, ("a", "b"))[1]) == 1
    with pytest.raises(ValueError, match="share must be at least 0 and below 1, but is 1"):
        split(counted(20), 1.0, 0, ("a", "b"))
    with pytest.raises(ValueError, match="a: there are no images"):
        split(counted(1), 0.5, 0, ("a", "b"))


def named(root=None, shift=0):
    parts = [counted(10), Part(counted(10), list(range(shift, 10, 2)), "few")]
    return Splits(parts[0], parts[1], parts[1], patch=2)


@pytest.fixture
def by_name(monkeypatch):
    """A data set that is known as "counted"."""
    monkeypatch.setattr(classification, "named", named, raising=False)
    monkeypatch.setitem(data.DATA, "counted", ("classify", "datasets.classification", "named"))


def test_data_is_loaded_by_name_with_its_options(by_name):
    found = load_data("counted", task="classify", shift=3)
    assert (numbers(found.val), len(found.train), found.patch) == ([3, 5, 7, 9], 10, 2)


def test_a_count_spreads_over_every_part(by_name):
    found = load_data("counted", count=4)
    assert numbers(found.train) == [0, 2, 5, 7]
    assert numbers(found.val) == [0, 2, 4, 6]
    assert found.test is found.val
    assert found.patch == 2
    with pytest.raises(ValueError, match="count must be at least 1"):
        load_data("counted", count=0)


def test_unknown_names_tasks_and_options_are_refused(by_name):
    with pytest.raises(ValueError, match=r"data must be one of 'fashion-mnist', .* but is 'mnist'"):
        load_data("mnist")
    with pytest.raises(ValueError, match="'digits' is for classify; for segment there are 'crafter'"):
        load_data("digits", task="segment")
    with pytest.raises(ValueError, match="an option of counted must be one of 'shift', 'count', but is 'root2'"):
        load_data("counted", root2=1)


def test_an_error_inside_of_a_loader_is_its_own(monkeypatch, by_name):
    def broken(root=None):
        return int(unexpected=1)

    monkeypatch.setattr(classification, "named", broken)
    with pytest.raises(TypeError):
        load_data("counted")


def test_every_name_has_a_task_and_stands_for_a_function():
    assert {task for task, _, _ in data.DATA.values()} == set(data.TASKS)
    for module, function in {(module, function) for _, module, function in data.DATA.values()}:
        if importlib.util.find_spec(f"unrolling.training.{module}"):
            assert callable(getattr(importlib.import_module(f"unrolling.training.{module}"), function))


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b"
    assert cache_folder().is_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UNROLL_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("UNROLL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "unroll"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "unroll"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="name another folder by UNROLL_CACHE"):
        cache_folder()
