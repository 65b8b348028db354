"""Images with masks in the folders that the publishers unpack to: ADE20K, Pascal VOC and Context, Cityscapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data import IGNORE, Data, MissingData, Splits
from .classification import IMAGENET, SUFFIXES, Root, as_tensor, folder_at, read_image, read_picture

__all__ = ["ade20k", "cityscapes", "pascal_context", "pascal_voc"]

WRONG = 254
"""In a table of labels, what none of the classes is; so there are at most 254 of them."""

VOC = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person"
    " pottedplant sheep sofa train tvmonitor".split()
)
CONTEXT = tuple(
    "background aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling"
    " chair cloth computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike"
    " mountain mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track"
    " train tree truck tvmonitor wall water window wood".split()
)
STREETS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The classes of Cityscapes that are trained by, in the order of their train ids, and their label ids of 0 … 33."""


class MaskedFolder(Data):
    """Image files with mask files, decoded when they are asked for.

    Parameters
    ----------
        name: for messages. pairs: of image and mask. classes: names, in the order of the labels. table: ``(256,)`` in uint8,
        the class of every label that a mask may hold, IGNORE for void, WRONG for what must not occur.

    Raises
    ------
        ValueError for no images, for an image or mask that is not there, and an image that stands twice; when loading,
        naming the file: for files that cannot be decoded, masks of another size than their image, in colours, or with a
        label that is WRONG.
    """

    def __init__(self, name: str, pairs: Iterable[tuple[Path, Path]], classes: Sequence[str], table: Tensor) -> None:
        self.pairs = [(str(image), str(mask)) for image, mask in pairs]
        if not self.pairs:
            raise ValueError(f"{name}: there are no images.")
        for which, paths in zip(("image", "mask"), zip(*self.pairs, strict=True), strict=True):
            missing = [path for path in paths if not Path(path).is_file()]
            if missing:
                raise ValueError(f"{name}: {len(missing)} of {len(paths)} {which}s are missing, first {missing[0]}.")
        seen: set[str] = set()
        for image, _ in self.pairs:
            if image in seen:
                raise ValueError(f"{name}: {image} stands twice; name every image once.")
            seen.add(image)
        self.name, self.task, self.classes, self.channels, self.size = name, "segment", tuple(classes), 3, None
        self.mean, self.std = IMAGENET
        self.table = table

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and mask of one index."""
        image, mask = read_image(self.pairs[index][0]), read_mask(self.pairs[index][1])
        if image.shape[1:] != mask.shape:
            raise ValueError(
                f"{self.pairs[index][1]}: the mask has {mask.shape[0]} × {mask.shape[1]} pixels, but the image"
                f" {self.pairs[index][0]} has {image.shape[1]} × {image.shape[2]}."
            )
        target = self.table[mask.long()]
        wrong = target == WRONG
        if bool(wrong.any()):
            found = ", ".join(map(str, mask[wrong].unique()[:5].tolist()))
            known = (self.table != WRONG).nonzero().flatten().tolist()
            raise ValueError(f"{self.pairs[index][1]}: labels must be {ranges(known)}, but {found} came.")
        return image, target.long()


def ade20k(root: Root = None) -> Splits:
    """ADE20K as of the scene parsing challenge of 2016: 150 classes.

    Parameters
    ----------
        root: ``ADEChallengeData2016``, or the folder that holds it, with ``images`` and ``annotations`` of ``training``
        and ``validation``. Label 0 is void, label c is class c − 1; names are those of objectInfo150.txt, if it is there.

    Raises
    ------
        MissingData where the folders are not there; ValueError as for all masks: for an image without its mask, and when
        loading, naming the file, for one that is damaged, of another size than its mask, or with a label above 150.
    """
    folders = [f"{kind}/{part}" for kind in ("images", "annotations") for part in ("training", "validation")]
    base = holding("ade20k", root, ("ADEChallengeData2016", "."), *folders)
    classes = objects_in(base / "objectInfo150.txt")
    table = table_of({0: IGNORE, **{label: label - 1 for label in range(1, 151)}})
    parts = []
    for part in ("training", "validation"):
        found = sorted((base / "images" / part).iterdir())
        images = [path for path in found if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
        masks = [base / "annotations" / part / f"{path.stem}.png" for path in images]
        if len(set(masks)) < len(masks):
            twice = next(image for image, mask in zip(images, masks, strict=True) if masks.count(mask) > 1)
            raise ValueError(f"ade20k: {twice} stands twice, with other endings; remove all but one.")
        parts.append(MaskedFolder(f"ade20k {part}", zip(images, masks, strict=True), classes, table))
    return Splits(parts[0], parts[1], parts[1])


def pascal_voc(root: Root = None, extra: bool = False) -> Splits:
    """Pascal VOC 2012: 20 kinds of objects and background; label 255 is void.

    Parameters
    ----------
        root: ``VOC2012``, ``VOCdevkit``, or the folder that holds it, with JPEGImages, SegmentationClass, and the lists
        ``train.txt`` and ``val.txt`` in ``ImageSets/Segmentation``. extra: also train by the images of trainaug.txt beside
        them, with their masks in SegmentationClassAug; those that train.txt names too keep their masks of VOC.

    Raises
    ------
        MissingData where folders or lists are not there; ValueError for an image that stands in both train and val, and
        as :func:`ade20k`.
    """
    lists = "ImageSets/Segmentation"
    base = holding("pascal-voc", root, ("VOCdevkit/VOC2012", "VOC2012", "."), "JPEGImages", "SegmentationClass", lists)
    train, val = (listed(base / lists / f"{part}.txt") for part in ("train", "val"))
    pairs = {part: voc_pairs(base, names, "SegmentationClass") for part, names in (("train", train), ("val", val))}
    if extra:
        known = set(train)
        more = [name for name in listed(base / lists / "trainaug.txt") if name not in known]
        pairs["train"] += voc_pairs(base, more, "SegmentationClassAug")
    return voc_splits("pascal-voc", pairs, VOC, table_of({**{label: label for label in range(21)}, IGNORE: IGNORE}))


def pascal_context(root: Root = None, background: bool = True) -> Splits:
    """Pascal Context: 59 classes and background, which is everything else; label 255 is void.

    Parameters
    ----------
        root: ``VOC2010``, ``VOCdevkit``, or the folder that holds it, with JPEGImages, the converted masks (labels 0 … 59)
        in SegmentationClassContext, and the lists ``train.txt`` and ``val.txt`` in ``ImageSets/SegmentationContext``.
        background: whether label 0 is a class; without, it is void, and label c is class c − 1.

    Raises
    ------
        As :func:`pascal_voc`.
    """
    lists, masks = "ImageSets/SegmentationContext", "SegmentationClassContext"
    base = holding("pascal-context", root, ("VOCdevkit/VOC2010", "VOC2010", "."), "JPEGImages", masks, lists)
    pairs = {part: voc_pairs(base, listed(base / lists / f"{part}.txt"), masks) for part in ("train", "val")}
    shift = 0 if background else 1
    table = table_of({0: IGNORE, **{label: label - shift for label in range(shift, 60)}, IGNORE: IGNORE})
    return voc_splits("pascal-context", pairs, CONTEXT[shift:], table)


def cityscapes(root: Root = None) -> Splits:
    """Cityscapes with fine masks: 19 classes of streets; the other labels are void.

    Parameters
    ----------
        root: the folder that holds ``leftImg8bit`` and ``gtFine``, each with ``train/CITY`` and ``val/CITY``. Masks are
        ``…_gtFine_labelTrainIds.png`` where all images of a part have one, else ``…_gtFine_labelIds.png``.

    Raises
    ------
        As :func:`ade20k`.
    """
    base = holding("cityscapes", root, (".",), "leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val")
    trained = table_of({**{label: label for label in range(len(STREETS))}, IGNORE: IGNORE})
    whole = table_of({**dict.fromkeys(range(34), IGNORE), **{label: at for at, label in enumerate(STREETS.values())}})
    parts = []
    for part in ("train", "val"):
        images = sorted((base / "leftImg8bit" / part).glob("*/*_leftImg8bit.png"))
        stems = [
            base / "gtFine" / part / path.parent.name / path.name.removesuffix("_leftImg8bit.png") for path in images
        ]
        masks = [stem.with_name(f"{stem.name}_gtFine_labelTrainIds.png") for stem in stems]
        table = trained
        if not all(mask.is_file() for mask in masks):
            masks, table = [stem.with_name(f"{stem.name}_gtFine_labelIds.png") for stem in stems], whole
        parts.append(MaskedFolder(f"cityscapes {part}", zip(images, masks, strict=True), tuple(STREETS), table))
    return Splits(parts[0], parts[1], parts[1])


def read_mask(path: str) -> Tensor:
    """The labels ``(H, W)`` of a file in uint8: grey values, or places in the palette, never its colours."""
    picture = read_picture(path)
    if picture.mode not in ("L", "P"):
        raise ValueError(
            f"{path}: a mask must hold labels of 8 bits, grey or by palette, but its mode is {picture.mode}; convert it."
        )
    return as_tensor(picture)[0]


def table_of(classes: Mapping[int, int]) -> Tensor:
    """The table ``(256,)`` in uint8 of the class of every label; those not given are WRONG."""
    return torch.tensor([classes.get(label, WRONG) for label in range(256)], dtype=torch.uint8)


def ranges(labels: Sequence[int]) -> str:
    """Sorted labels in words.

    >>> ranges([0, 1, 2, 255])
    '0 … 2 or 255'
    """
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][1] + 1:
            runs[-1][1] = label
        else:
            runs.append([label, label])
    return " or ".join(f"{first} … {last}" if first < last else f"{first}" for first, last in runs)


def holding(name: str, root: Root, places: Sequence[str], *folders: str) -> Path:
    """The first of the places in root that holds the first folder; raise MissingData where it has not all of them."""
    given = folder_at(name, root, ", ".join(folders))
    base = next((given / place for place in places if (given / place / folders[0]).is_dir()), given)
    held = " or ".join(folders[0] if place == "." else place for place in places)
    for folder in folders:
        if not (base / folder).is_dir():
            raise MissingData(
                f"{name}: there is no {folder} in {base}. No package installs the data set: unpack it as its publisher"
                f" packs it, and name the folder that holds {held}: --root FOLDER (root=)."
            )
    return base


def listed(path: Path) -> list[str]:
    """The names of images in a list, one a line; of a path, as some lists have, its last part without its ending."""
    if not path.is_file():
        raise MissingData(f"{path} is missing: the list of images, one a line.")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split()[0].rsplit("/", 1)[-1].removesuffix(".jpg") for line in lines if line.strip()]


def voc_pairs(base: Path, names: Iterable[str], masks: str) -> list[tuple[Path, Path]]:
    """Images and masks of these names."""
    return [(base / "JPEGImages" / f"{name}.jpg", base / masks / f"{name}.png") for name in names]


def voc_splits(
    name: str, pairs: Mapping[str, list[tuple[Path, Path]]], classes: Sequence[str], table: Tensor
) -> Splits:
    """Both parts; an image in both is an error."""
    held = {image for image, _ in pairs["val"]}
    both = [image for image, _ in pairs["train"] if image in held]
    if both:
        raise ValueError(f"{name}: {len(both)} image(s) stand in train and in val, first {both[0]}; correct the lists.")
    train, val = (MaskedFolder(f"{name} {part}", pairs[part], classes, table) for part in ("train", "val"))
    return Splits(train, val, val)


def objects_in(path: Path) -> tuple[str, ...]:
    """The 150 names of ADE20K's classes: the last column of its table; numbers where there is no table."""
    if not path.is_file():
        return tuple(map(str, range(150)))
    rows = [
        line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if line.strip()
    ]
    if [row[0].strip() for row in rows] != [str(number) for number in range(1, 151)] or any(
        len(row) < 2 for row in rows
    ):
        raise ValueError(f"{path}: must be a heading and rows 1 … 150, in columns by tabs, the last being names.")
    return tuple(row[-1].strip() for row in rows)
