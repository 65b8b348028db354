"""Images with a class each, in the files and folders that the tests write: whole, damaged, missing."""

import gzip
import struct
import sys

import pytest
import torch
from PIL import Image

from unrolling.training.data import MissingData, load_data
from unrolling.training.datasets import classification
from unrolling.training.datasets.classification import read_image


def bytes_of(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.numpy().tobytes()


@pytest.fixture
def fashion(tmp_path):
    """A folder in the layout of Fashion-MNIST, with 24 images to train by, and 6."""
    for part, count in (("train", 24), ("t10k", 6)):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        images = labels[:, None, None].expand(count, 28, 28).contiguous()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_fashion_mnist_is_read_packed_or_not(fashion):
    found = load_data("fashion-mnist", fashion)
    assert [len(part) for part in (found.train, found.val, found.test)] == [22, 2, 6]
    assert (found.patch, found.train.size, found.train.channels) == (4, (28, 28), 1)
    names = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag"
    assert found.train.classes == (*names.split(), "Ankle boot")
    for part in (found.train, found.val, found.test):
        for image, label in zip(*part.load_many(range(len(part))), strict=True):
            assert image.shape == (1, 28, 28)
            assert (image == label).all()
    assert found.test.mean == found.train.mean
    assert found.val.indices != load_data("fashion-mnist", fashion, seed=1).val.indices
    assert len(load_data("fashion-mnist", fashion, val_share=0.5).val) == 12


def test_fashion_mnist_is_found_where_torchvision_puts_it(fashion, tmp_path):
    inner = tmp_path / "outer" / "FashionMNIST" / "raw"
    inner.mkdir(parents=True)
    for path in fashion.glob("*ubyte*"):
        path.rename(inner / path.name)
    assert len(load_data("fashion-mnist", tmp_path / "outer").test) == 6


def test_missing_files_name_the_package_and_the_option(fashion, monkeypatch):
    (fashion / "t10k-labels-idx1-ubyte").unlink()
    for root, place in ((fashion, fashion), (None, fashion / "nowhere")):
        monkeypatch.setattr(classification, "FASHION", fashion / "nowhere")
        with pytest.raises(MissingData, match=r"dataset-fashion-mnist.*--root") as caught:
            load_data("fashion-mnist", root)
        assert str(place) in str(caught.value)


ARRAY = torch.arange(3 * 28 * 28).to(torch.uint8).view(3, 28, 28)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no IDX file; it begins with nothing"),
        (b"\x89PNG", "is no IDX file; it begins with 89 50 4e 47"),
        (idx(ARRAY, kind=13), "its type is 0x0d"),
        (idx(ARRAY[0]), "must have 3 dimension"),
        (idx(ARRAY[:, :27]), r"must be \(count, 28, 28\) .* but is \(3, 27, 28\)"),
        (idx(ARRAY[:0]), "count of at least 1"),
        (idx(ARRAY)[:9], "ends inside of its header"),
        (idx(ARRAY)[:-1], "promises 2352 bytes, but it holds 2351"),
        (idx(ARRAY) + b"0", "promises 2352 bytes, but it holds more"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28), "are the most that is read"),
        (struct.pack(">HBB3I", 0, 8, 3, 1_000_000, 28, 28) + b"0" * 99, "promises 784000000 bytes, but it holds 99"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, content, says):
    for path, stored in ((tmp_path / "file", content), (tmp_path / "file.gz", gzip.compress(content))):
        path.write_bytes(stored)
        with pytest.raises(ValueError, match=says) as caught:
            classification.read_idx(path, (28, 28))
        assert str(path) in str(caught.value)


def test_damaged_archives_are_named(tmp_path):
    whole = gzip.compress(idx(ARRAY))
    flipped = bytes([*whole[:-8], whole[-8] ^ 1, *whole[-7:]])  # the sum of its bytes
    for number, content in enumerate((whole[:-9], whole[:6], flipped, idx(ARRAY), whole[:10] + b"\xff" * 40)):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged or cut short") as caught:
            classification.read_idx(path, (28, 28))
        assert str(path) in str(caught.value)
    path.write_bytes(whole)
    assert torch.equal(classification.read_idx(path, (28, 28)), ARRAY)


def test_labels_that_do_not_fit_are_named(fashion):
    path = fashion / "train-labels-idx1-ubyte"
    path.write_bytes(idx(torch.zeros(23, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"has 24 images, but .*train-labels-idx1-ubyte has 23 labels"):
        load_data("fashion-mnist", fashion)
    path.write_bytes(idx(torch.full((24,), 10, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: labels must be 0 … 9, but 10 came"):
        load_data("fashion-mnist", fashion)


@pytest.mark.skipif(not classification.FASHION.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_installed_fashion_mnist_is_whole():
    found = load_data("fashion-mnist")
    assert [len(part) for part in (found.train, found.val, found.test)] == [55_000, 5_000, 10_000]
    assert sorted(found.train.indices + found.val.indices) == list(range(60_000))
    assert torch.bincount(found.train.data.targets.long()).tolist() == [6_000] * 10
    assert torch.bincount(found.test.targets.long()).tolist() == [1_000] * 10
    assert found.train.mean == pytest.approx([0.286041], abs=1e-6)
    assert found.train.std == pytest.approx([0.353024], abs=1e-6)


def test_digits_are_split_by_the_seed():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    found = load_data("digits")
    assert [len(part) for part in (found.train, found.val, found.test)] == [1078, 360, 359]
    assert (found.patch, found.train.size, found.train.classes[7]) == (2, (8, 8), "7")
    rest = found.train.data
    whole = rest.data
    kept = [[rest.indices[index] for index in part.indices] for part in (found.train, found.val)]
    assert sorted(kept[0] + kept[1] + found.test.indices) == list(range(1797))
    assert whole.images.max() == 255
    assert set(whole.images.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}
    assert load_data("digits", seed=1).test.indices != found.test.indices
    with pytest.raises(ValueError, match="take no root"):
        load_data("digits", "somewhere")


def test_digits_without_scikit_learn_name_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingData, match="pip install scikit-learn"):
        load_data("digits")


def cifar_file(path, labels, width=1):
    """Records of ``width`` labels, the last of them counting, and an image of that colour in its red channel."""
    records = torch.zeros(len(labels), width + 3072, dtype=torch.uint8)
    records[:, width - 1] = torch.tensor(labels)
    records[:, width : width + 1024] = torch.tensor(labels)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(records.numpy().tobytes())


@pytest.fixture
def cifar(tmp_path):
    for number in range(1, 6):
        cifar_file(tmp_path / "cifar-10-batches-bin" / f"data_batch_{number}.bin", [number, 2 * number - 1])
    cifar_file(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", [0, 9, 4])
    return tmp_path


def test_cifar10_is_read_from_its_folder_or_the_one_around_it(cifar):
    for root in (cifar, cifar / "cifar-10-batches-bin"):
        found = load_data("cifar10", root)
        assert [len(part) for part in (found.train, found.val, found.test)] == [9, 1, 3]
        assert (found.patch, found.train.size, found.train.channels) == (4, (32, 32), 3)
        assert found.train.classes[2] == "bird"
        assert found.test.mean == found.train.mean
        seen = []
        for part in (found.train, found.val):
            for image, label in zip(*part.load_many(range(len(part))), strict=True):
                assert (image[0] == label).all()
                assert not image[1:].any()
                seen.append(int(label))
        assert sorted(seen) == [1, 1, 2, 3, 3, 4, 5, 5, 7, 9]
    assert [int(found.test.load(index)[1]) for index in range(3)] == [0, 9, 4]


def test_cifar_takes_its_names_from_beside_it(cifar):
    path = cifar / "cifar-10-batches-bin" / "batches.meta.txt"
    path.write_text("\n".join("abcdefghij") + "\n\n")
    assert load_data("cifar10", cifar).train.classes == tuple("abcdefghij")
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"batches.meta.txt: must name 10 classes, one a line, but names 2"):
        load_data("cifar10", cifar)


def test_damaged_and_missing_cifar_files_are_named(cifar):
    folder = cifar / "cifar-10-batches-bin"
    whole = (folder / "data_batch_3.bin").read_bytes()
    for content in (whole[:-1], b""):
        (folder / "data_batch_3.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"data_batch_3.bin: must be whole records of 3073 bytes"):
            load_data("cifar10", cifar)
    cifar_file(folder / "data_batch_3.bin", [10])
    with pytest.raises(ValueError, match=r"data_batch_3.bin: labels must be 0 … 9, but 10 came"):
        load_data("cifar10", cifar)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(MissingData, match=r"data_batch_3.bin is missing"):
        load_data("cifar10", cifar)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "folder"])
def test_what_no_package_installs_asks_for_its_folder(name, tmp_path):
    with pytest.raises(MissingData, match="--root"):
        load_data(name)
    with pytest.raises(MissingData, match="is no folder"):
        load_data(name, tmp_path / "nowhere")
    with pytest.raises(MissingData, match=r"there is no (data_batch_1.bin|train.bin|train folder)"):
        load_data(name, tmp_path)


def test_the_pickled_version_is_told_from_the_binary_one(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(MissingData, match=r"cifar-10-batches-py/data_batch_1 is of the Python version"):
        load_data("cifar10", tmp_path)
    with pytest.raises(MissingData, match=r"binary version") as caught:
        load_data("cifar100", tmp_path)
    assert "Python" not in str(caught.value)


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    cifar_file(folder / "train.bin", [3, 99, 50, 7], width=2)
    cifar_file(folder / "test.bin", [98], width=2)
    fine = load_data("cifar100", tmp_path, val_share=0.25)
    assert [len(part) for part in (fine.train, fine.val, fine.test)] == [3, 1, 1]
    assert fine.train.classes == tuple(map(str, range(100)))
    image, label = fine.test.load(0)
    assert label == 98
    assert (image[0] == 98).all()
    assert not image[1:].any()
    coarse = load_data("cifar100", folder, labels="coarse")
    assert len(coarse.train.classes) == 20
    assert coarse.test.load(0)[1] == 0
    (folder / "coarse_label_names.txt").write_text("\n".join(f"kind {number}" for number in range(20)))
    assert load_data("cifar100", folder, labels="coarse").train.classes[19] == "kind 19"
    with pytest.raises(ValueError, match="labels must be one of 'fine', 'coarse', but is 'both'"):
        load_data("cifar100", folder, labels="both")


def picture(path, colour=(200, 100, 50), size=(20, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return str(path)


@pytest.fixture
def folders(tmp_path):
    """Two classes of ImageNet's layout: four images to train by, two to watch."""
    picture(tmp_path / "train" / "n02" / "b.JPEG")
    picture(tmp_path / "train" / "n02" / "deep" / "er" / "a.png")
    picture(tmp_path / "train" / "n01" / "z.webp")
    picture(tmp_path / "train" / "n01" / "y.bmp", size=(8, 12))
    picture(tmp_path / "train" / "n01" / ".hidden" / "x.png")
    picture(tmp_path / "train" / "n01" / ".x.png")
    picture(tmp_path / "train" / ".cache" / "x.png")
    (tmp_path / "train" / "n01" / "notes.txt").write_text("none")
    picture(tmp_path / "val" / "n02" / "a.jpg")
    picture(tmp_path / "val" / "n01" / "a.jpeg")
    return tmp_path


def test_folders_are_classes(folders):
    found = load_data("folder", folders)
    assert found.train.classes == ("n01", "n02")
    below = folders / "train"
    names = ("n01/y.bmp", "n01/z.webp", "n02/b.JPEG", "n02/deep/er/a.png")
    assert found.train.paths == [str(below / name) for name in names]
    assert [int(found.train.load(index)[1]) for index in range(4)] == [0, 0, 1, 1]
    assert [int(found.val.load(index)[1]) for index in range(2)] == [0, 1]
    assert found.test is found.val
    assert (found.train.size, found.train.channels, found.patch) == (None, 3, 16)
    assert (found.train.mean, found.train.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.train.load(0)[0].shape == (3, 12, 8)
    assert found.train.load(3)[0][:, 4, 5].tolist() == [200, 100, 50]
    assert found.train.load(3)[1].dtype == torch.int64


def test_images_are_cut_and_scaled_or_made_grey(folders):
    found = load_data("folder", folders, size=6, channels=1)
    assert (found.train.size, found.train.channels, len(found.train.mean)) == ((6, 6), 1, 1)
    images, _ = found.train.load_many(range(4))
    assert torch.stack(images).shape == (4, 1, 6, 6)
    assert int(images[3][0, 0, 0]) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    for wrong, says in (
        ({"size": 0}, "size must be at least 1"),
        ({"channels": 2}, "channels must be 3, or 1 for grey"),
    ):
        with pytest.raises(ValueError, match=says):
            load_data("folder", folders, **wrong)


def test_the_middle_is_cut_out(tmp_path):
    for size, box in (((30, 10), (10, 0, 20, 10)), ((10, 30), (0, 10, 10, 20))):
        wide = Image.new("RGB", size, (255, 0, 0))
        wide.paste((0, 255, 0), box)
        wide.save(tmp_path / "a.png")
        assert read_image(str(tmp_path / "a.png"), 3, 5)[:, 2, 2].tolist() == [0, 255, 0]
        assert (read_image(str(tmp_path / "a.png"), 3, 10)[1] == 255).all()


def test_validation_and_test_folders(folders):
    (folders / "val").rename(folders / "validation")
    picture(folders / "test" / "0001.JPEG")
    found = load_data("folder", folders)
    assert len(found.val) == 2
    assert found.test is found.val  # a test folder of images alone has no labels
    picture(folders / "test" / "n02" / "0001.JPEG")
    found = load_data("folder", folders)
    assert [int(label) for label in found.test.load_many([0])[1]] == [1]


def test_without_val_a_share_of_train_is_kept(folders):
    (folders / "val").rename(folders / "other")
    for number in range(16):
        picture(folders / "train" / "n01" / f"{number}.png")
    found = load_data("folder", folders)
    assert (len(found.train), len(found.val)) == (18, 2)
    assert sorted(found.train.indices + found.val.indices) == list(range(20))
    assert found.test is found.val
    assert load_data("folder", folders, seed=1).val.indices != found.val.indices
    assert len(load_data("folder", folders, val_share=0.5).val) == 10


def test_classes_that_do_not_fit_are_named(folders):
    picture(folders / "val" / "n03" / "a.png")
    with pytest.raises(ValueError, match=r"val/n03 is none of the 2 classes of train: n01, n02"):
        load_data("folder", folders)
    (folders / "train" / "n03").mkdir()
    with pytest.raises(ValueError, match=r"train/n03 holds no images \(.bmp, .jpeg"):
        load_data("folder", folders)
    (folders / "empty" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no folders of classes"):
        load_data("folder", folders / "empty")
    picture(folders / "empty" / "train" / "a" / "a.png")
    (folders / "empty" / "val" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"empty/val holds no images"):
        load_data("folder", folders / "empty")


def test_images_that_cannot_be_decoded_are_named(folders):
    found = load_data("folder", folders).train
    another = folders / "another.gif"  # some formats that PIL knows start other programs
    picture(another, 1, (9, 9), "P")
    for index in range(4):
        with open(found.paths[index], "rb") as file:
            content = file.read()
        for broken in (content[: len(content) // 2], b"", b"no image", another.read_bytes()):
            with open(found.paths[index], "wb") as file:
                file.write(broken)
            with pytest.raises(ValueError, match="cannot be read as an image") as caught:
                found.load(index)
            assert found.paths[index] in str(caught.value)


def test_images_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png", size=(40, 30))
    for limit in (1199, 500):  # PIL itself warns above the limit, and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr(Image, "_decompression_bomb_check", lambda size: None)
        with pytest.raises(ValueError, match=rf"a.png: .*40 × 30 pixels are more than {limit}"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert read_image(path).shape == (3, 30, 40)


def test_every_mode_becomes_channels(tmp_path):
    for mode, colour in (
        ("L", 90),
        ("P", 0),
        ("1", 1),
        ("RGBA", (9, 8, 7, 0)),
        ("LA", (90, 3)),
        ("CMYK", (0, 0, 0, 0)),
    ):
        path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
        image = read_image(picture(path, colour, (3, 2), mode))
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 2, 3))
        assert read_image(str(path), 1).shape == (1, 2, 3)
    see_through = Image.new("P", (3, 2))
    see_through.putpalette([10, 20, 30, 40, 50, 60])
    see_through.save(tmp_path / "p.png", transparency=b"\x00\x80")
    assert read_image(str(tmp_path / "p.png"))[:, 0, 0].tolist() == [10, 20, 30]
    path = picture(tmp_path / "deep.png", 40_000, (3, 2), "I;16")
    with pytest.raises(ValueError, match=r"deep.png: images must have 8 bits a channel, but its mode is I;16"):
        read_image(path)


def test_pixels_are_those_stored(tmp_path):
    pixels = bytes_of(3, 5, 3)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    assert torch.equal(read_image(str(tmp_path / "a.png")), pixels.permute(2, 0, 1))
