"""Images with a class each: Fashion-MNIST, scikit-learn's digits, folders of images, CIFAR; and how images are decoded."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import check_choice, check_count
from ..data import ArrayData, Data, MissingData, Splits, check_labels, split

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["IMAGENET", "ImageFolder", "cifar10", "cifar100", "class_folders", "digits", "fashion_mnist"]

Root = str | os.PathLike[str] | None

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, by which photographs are normalised."""

GREY = ((0.459,), (0.226,))
"""The same of one channel: the mean weighted as luma is, and the mean of the deviations."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")

FASHION = Path("/usr/share/datasets/fashion-mnist")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

LARGEST = 1 << 30
"""The most bytes that an IDX file may unpack to."""


def fashion_mnist(root: Root = None, val_share: float = 1 / 12, seed: int = 0) -> Splits:
    """Fashion-MNIST: 70,000 grey images of 28 × 28 pixels, 10 kinds of garments of 7,000 each.

    Parameters
    ----------
        root: the folder of the four IDX files, packed by gzip or not; by default where Debian's package puts them.
        val_share, seed: of the 60,000 images to train by, 5,000 are kept to watch, drawn by the seed.

    Raises
    ------
        MissingData where the files are not there; ValueError for files that are damaged or do not fit together.
    """
    given = FASHION if root is None else Path(root)
    folders = (given, given / "FashionMNIST" / "raw")
    parts = []
    for part in ("train", "t10k"):
        pair = []
        for name, shape in ((f"{part}-images-idx3-ubyte", (28, 28)), (f"{part}-labels-idx1-ubyte", ())):
            path = first_there(folder / file for folder in folders for file in (name, f"{name}.gz"))
            if path is None:
                raise MissingData(
                    f"fashion-mnist: there is no {name} or {name}.gz in {given}. Install the Debian package"
                    " dataset-fashion-mnist, or name the folder that holds the four files: --root FOLDER (root=)."
                )
            pair.append((path, read_idx(path, shape)))
        (path, images), (beside, labels) = pair
        if len(images) != len(labels):
            raise ValueError(f"{path} has {len(images)} images, but {beside} has {len(labels)} labels.")
        check_labels(str(beside), labels, len(GARMENTS))
        parts.append((images[:, None], labels))
    whole = ArrayData("fashion-mnist", *parts[0], GARMENTS)
    test = ArrayData("fashion-mnist test", *parts[1], GARMENTS, mean=whole.mean, std=whole.std)
    train, val = split(whole, val_share, seed, ("fashion-mnist train", "fashion-mnist val"))
    return Splits(train, val, test, patch=4)


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The array ``(count, *shape)`` of an IDX file of bytes, unpacked if its name ends in .gz.

    Memory is taken for what the file holds, never for what its header promises.

    Raises
    ------
        ValueError naming the file: for another kind of file, type or shape, a damaged archive, and a length that is not
        the header's.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4)
            if len(header) < 4 or header[:2] != b"\0\0":
                raise ValueError(
                    f"{path}: is no IDX file; it begins with {header.hex(' ') or 'nothing'}, not with 00 00."
                )
            if header[2] != 8:
                raise ValueError(f"{path}: must hold bytes (IDX type 0x08), but its type is 0x{header[2]:02x}.")
            if header[3] != 1 + len(shape):
                raise ValueError(f"{path}: must have {1 + len(shape)} dimension(s), but has {header[3]}.")
            packed = file.read(4 * header[3])
            if len(packed) < 4 * header[3]:
                raise ValueError(f"{path}: ends inside of its header.")
            sizes = [int.from_bytes(packed[at : at + 4], "big") for at in range(0, len(packed), 4)]
            if tuple(sizes[1:]) != shape or not sizes[0]:
                wanted = ", ".join(map(str, ("count", *shape)))
                raise ValueError(f"{path}: must be ({wanted}) with a count of at least 1, but is {tuple(sizes)}.")
            length = sizes[0] * torch.Size(shape).numel()
            if length > LARGEST:
                raise ValueError(f"{path}: its header promises {length} bytes; {LARGEST} are the most that is read.")
            data = bytearray()
            # One byte more than promised is asked for: it shows what is too long, and gzip checks its sum at the end.
            while piece := file.read(min(1 << 20, length + 1 - len(data))):
                data += piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise ValueError(f"{path}: the archive is damaged or cut short ({problem}); get the file anew.") from None
    if len(data) != length:
        holds = f"{len(data)}" if len(data) < length else "more"
        raise ValueError(f"{path}: its header promises {length} bytes, but it holds {holds}; get the file anew.")
    return torch.frombuffer(data, dtype=torch.uint8).reshape(sizes)


def digits(root: Root = None, seed: int = 0) -> Splits:
    """Handwritten digits: 1,797 grey images of 8 × 8 pixels, that come with scikit-learn; 60, 20 and 20 per cent by seed.

    Raises
    ------
        MissingData where scikit-learn is not installed; ValueError for a root, since it would not be looked into.
    """
    if root is not None:
        raise ValueError(f"digits: come with scikit-learn and take no root, but got {os.fspath(root)!r}; leave it out.")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingData(
            "digits: need scikit-learn: pip install scikit-learn, or this package's extra 'data'."
        ) from None
    found = load_digits()
    images = (torch.from_numpy(found.images)[:, None] * (255 / 16)).round().to(torch.uint8)
    whole = ArrayData("digits", images, torch.from_numpy(found.target), [str(digit) for digit in range(10)])
    rest, test = split(whole, 0.2, seed, ("digits rest", "digits test"))
    train, val = split(rest, 0.25, seed, ("digits train", "digits val"))
    return Splits(train, val, test, patch=2)


def cifar10(root: Root = None, val_share: float = 0.1, seed: int = 0) -> Splits:
    """CIFAR-10 in its binary version: 60,000 images of 32 × 32 pixels, 10 classes; root holds the files or their folder.

    Raises
    ------
        MissingData where the files are not there; ValueError for files that are damaged.
    """
    base = cifar_folder("cifar10", root, "cifar-10-batches-bin", "data_batch_1.bin", "cifar-10-batches-py")
    classes = names_in(base / "batches.meta.txt", len(CIFAR)) or CIFAR
    batches = [base / f"data_batch_{number}.bin" for number in range(1, 6)]
    return cifar_splits("cifar10", batches, base / "test_batch.bin", classes, (1, 0), val_share, seed)


def cifar100(root: Root = None, labels: str = "fine", val_share: float = 0.1, seed: int = 0) -> Splits:
    """CIFAR-100 in its binary version, by its 100 fine or its 20 coarse labels; as :func:`cifar10`."""
    check_choice("cifar100", "labels", labels, ("fine", "coarse"))
    base = cifar_folder("cifar100", root, "cifar-100-binary", "train.bin", "cifar-100-python")
    count = 100 if labels == "fine" else 20
    classes = names_in(base / f"{labels}_label_names.txt", count) or tuple(map(str, range(count)))
    at = 1 if labels == "fine" else 0
    return cifar_splits("cifar100", [base / "train.bin"], base / "test.bin", classes, (2, at), val_share, seed)


def cifar_folder(name: str, root: Root, usual: str, file: str, pickled: str) -> Path:
    """The folder that holds ``file``: root, or the usual one in it."""
    base = folder_at(name, root, f"the binary version's {file}, or {usual} with it")
    path = first_there((base / file, base / usual / file))
    if path is not None:
        return path.parent
    other = first_there((base / file.removesuffix(".bin"), base / pickled / file.removesuffix(".bin")))
    says = f" {other} is of the Python version, which is never unpickled." if other is not None else ""
    raise MissingData(
        f"{name}: there is no {file} in {base} or {base / usual}.{says} No package installs it: unpack the binary version"
        " of the data set, and name its folder: --root FOLDER (root=)."
    )


def cifar_splits(
    name: str,
    train: Sequence[Path],
    test: Path,
    classes: Sequence[str],
    labels: tuple[int, int],
    share: float,
    seed: int,
) -> Splits:
    """The parts of files of records: ``labels`` bytes of labels, and which of them counts; 3 × 32 × 32 bytes of image."""
    width = labels[0] + 3 * 32 * 32
    read = []
    for paths in (train, [test]):
        records = []
        for path in paths:
            if not path.is_file():
                raise MissingData(f"{name}: {path} is missing; unpack the whole binary version of the data set.")
            data = bytearray(path.read_bytes())
            if not data or len(data) % width:
                raise ValueError(f"{path}: must be whole records of {width} bytes, but has {len(data)}; get it anew.")
            records.append(torch.frombuffer(data, dtype=torch.uint8).view(-1, width))
            check_labels(str(path), records[-1][:, labels[1]], len(classes))
        whole = torch.cat(records)
        read.append((whole[:, labels[0] :].reshape(-1, 3, 32, 32), whole[:, labels[1]].clone()))
    fit = ArrayData(name, *read[0], classes)
    kept, val = split(fit, share, seed, (f"{name} train", f"{name} val"))
    return Splits(kept, val, ArrayData(f"{name} test", *read[1], classes, mean=fit.mean, std=fit.std), patch=4)


def names_in(path: Path, count: int) -> tuple[str, ...] | None:
    """The names of classes, one a line, or None where there is no such file."""
    if not path.is_file():
        return None
    names = tuple(
        line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    )
    if len(names) != count:
        raise ValueError(f"{path}: must name {count} classes, one a line, but names {len(names)}.")
    return names


class ImageFolder(Data):
    """Image files with a class each, decoded when they are asked for.

    Parameters
    ----------
        name: for messages. paths, labels: of every image. classes: names, in the order of the labels. size: images are cut
        to the square in their middle and scaled to so many rows and columns; None leaves them as they are.
        channels: 3, or 1 for grey.

    Raises
    ------
        ValueError for no images; when loading, naming the file, for one that cannot be decoded.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        *,
        size: int | None = None,
        channels: int = 3,
    ) -> None:
        if not len(paths):
            raise ValueError(f"{name}: there are no images.")
        self.name, self.task, self.classes, self.channels = name, "classify", tuple(classes), channels
        self.paths, self.labels, self.side = list(paths), torch.tensor(labels), size
        self.size = None if size is None else (size, size)
        self.mean, self.std = IMAGENET if channels == 3 else GREY

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and class of one index."""
        return read_image(self.paths[index], self.channels, self.side), self.labels[index]


def class_folders(
    root: Root = None, size: int | None = None, channels: int = 3, val_share: float = 0.1, seed: int = 0
) -> Splits:
    """Folders named by classes, as ImageNet is unpacked: ``train/CLASS/…``, ``val/CLASS/…`` and perhaps ``test/CLASS/…``.

    Parameters
    ----------
        root: the folder that holds train, val (or validation) and test. A test folder without folders of classes has no
        labels, and is left out. size, channels: as in :class:`ImageFolder`. val_share, seed: without val, this share of
        train is kept for it, drawn by the seed.

    Raises
    ------
        MissingData where there is no train folder; ValueError for a class without images to train by, a class that train
        does not have, and no images in val.
    """
    if size is not None:
        check_count("folder", "size", size)
    if isinstance(channels, bool) or channels not in (1, 3):
        raise ValueError(f"folder: channels must be 3, or 1 for grey, but is {channels!r}.")
    base = folder_at("folder", root, "train/CLASS/IMAGE and val/CLASS/IMAGE")
    if not (base / "train").is_dir():
        raise MissingData(f"folder: there is no train folder in {base}; it must hold train/CLASS/IMAGE.")
    classes = folders_in(base / "train")
    if not classes:
        raise ValueError(f"folder: {base / 'train'} has no folders of classes.")
    train = image_folder(base / "train", classes, size, channels)
    counts = torch.bincount(train.labels, minlength=len(classes)).tolist()
    if 0 in counts:
        raise ValueError(
            f"folder: {base / 'train' / classes[counts.index(0)]} holds no images ({', '.join(SUFFIXES)});"
            " put some there or remove it."
        )
    there = first_there((base / "val", base / "validation"))
    fit: Data
    val: Data
    if there is None:
        fit, val = split(train, val_share, seed, ("folder train", "folder val"))
    else:
        fit, val = train, image_folder(there, classes, size, channels)
    test = base / "test"
    labelled = test.is_dir() and folders_in(test)
    return Splits(fit, val, image_folder(test, classes, size, channels) if labelled else val)


def image_folder(folder: Path, classes: tuple[str, ...], size: int | None, channels: int) -> ImageFolder:
    """All images below folders of these classes."""
    paths: list[str] = []
    labels: list[int] = []
    for name in folders_in(folder):
        if name not in classes:
            shown = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
            raise ValueError(f"folder: {folder / name} is none of the {len(classes)} classes of train: {shown}.")
        found = images_below(folder / name)
        paths += found
        labels += [classes.index(name)] * len(found)
    if not paths:
        raise ValueError(f"folder: {folder} holds no images ({', '.join(SUFFIXES)}) in folders of classes.")
    return ImageFolder(f"folder {folder.name}", paths, labels, classes, size=size, channels=channels)


def folders_in(folder: Path) -> tuple[str, ...]:
    """The names of folders in this one, sorted; hidden ones are left out."""
    return tuple(
        sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    )


def images_below(folder: Path) -> list[str]:
    """The paths of all images in a folder and the folders in it, sorted; hidden ones are left out."""

    def fail(problem: OSError) -> None:
        raise problem

    found = []
    for at, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(at, file) for file in files if file.lower().endswith(SUFFIXES) and file[0] != "."]
    return sorted(found)


def first_there(paths: Iterable[Path]) -> Path | None:
    """The first of the paths that exists."""
    return next((path for path in paths if path.exists()), None)


def folder_at(name: str, root: Root, holds: str) -> Path:
    """The folder that root names; raise MissingData, saying what it must hold, where there is none."""
    if root is None:
        raise MissingData(f"{name}: no package installs it; name the folder that holds {holds}: --root FOLDER (root=).")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise MissingData(f"{name}: {base} is no folder; root must name the folder that holds {holds}.")
    return base


def read_picture(path: str) -> Picture:
    """The decoded picture of a file as it is stored: neither turned by its EXIF tag nor converted.

    Raises
    ------
        ValueError naming the file where it is no BMP, JPEG, PNG or WebP, is cut short or damaged, or has more pixels than
        PIL's limit, ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as picture:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and picture.width * picture.height > limit:
                raise ValueError(f"{picture.width} × {picture.height} pixels are more than {limit}")
            picture.load()
            return picture
    except Exception as problem:  # decoders raise errors of many types on damaged files
        raise ValueError(f"{path}: cannot be read as an image ({problem}).") from problem


def read_image(path: str, channels: int = 3, size: int | None = None) -> Tensor:
    """The image ``(channels, H, W)`` of a file in uint8; with a size, the square in its middle, scaled to it."""
    from PIL import Image

    picture = read_picture(path)
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError(f"{path}: images must have 8 bits a channel, but its mode is {picture.mode}; convert it.")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    picture = picture.convert("RGB" if channels == 3 else "L")
    if size is not None:
        wide, high = picture.size
        left, top, side = (wide - min(wide, high)) / 2, (high - min(wide, high)) / 2, min(wide, high)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return as_tensor(picture)


def as_tensor(picture: Picture) -> Tensor:
    """The bytes ``(channels, H, W)`` of a picture of 8 bits a channel."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()
