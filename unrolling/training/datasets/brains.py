"""Slices of magnetic resonance images of brains, with tissues or regions as classes, from packages that hold them.

Nothing is downloaded. Volumes are read by nibabel and turned so that x grows to the right, y to the front and z up; slices
are shown with the left on the left, and the front or the top above.
"""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import check_choice, check_count
from ..data import MissingData, Splits
from .rendered import PARTS, array_splits, needed

__all__ = ["LOBES", "TISSUES", "brains_aal", "mni152"]

TISSUES = ("background", "grey matter", "white matter")

LOBES = ("background", "frontal", "insula", "limbic", "occipital", "parietal", "subcortical", "temporal", "cerebellum")
"""The groups that the first digit of AAL's own codes makes, 2 to 9, of which limbic holds the cingulum too."""

FIELD = 192
"""Millimetres that a picture of the template shows, both ways."""

SHARE = 0.02
"""Of a slice's pixels that must be tissue, or of a region."""

GAP = 4
BLOCKS = (("train", 28), ("", GAP), ("val", 6), ("", GAP), ("test", 6), ("", GAP))
"""Slices in a row for each part, over and over, and those left out between, since neighbours are nearly the same."""

HEIGHTS = (("train", 16), ("", GAP), ("test", 6), ("", GAP))
"""The same where the test is another subject, at heights that were not trained on."""

GRID = ((-79.0, 2.0, 80), (78.0, -2.0, 96), (-62.0, 1.0, 147))
"""First millimetre, step and count of the columns (x), rows (y) and slices (z) on which two subjects are compared."""

TEMPLATE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
MRICRON = (Path("/usr/share/mricron/templates"), Path("/usr/local/share/mricron/templates"))

Volume = tuple[np.ndarray, np.ndarray]
"""Voxels ``(x, y, z)`` and the affine map ``(4, 4)`` from their indices to millimetres."""


def mni152(root: str | os.PathLike[str] | None = None, *, size: int = FIELD) -> Splits:
    """The MNI152 template of 2009, its grey and white matter: 388 slices of three directions, ``(1, size, size)``.

    The T1 image is an average of 152 heads without their skulls, at 1 mm. A pixel is tissue where the probability of grey
    or of white matter exceeds 0.4, and then the likelier of the two; slices with more than 2 % of tissue are taken. Along
    every direction blocks of slices go to train, val and test with 4 slices left out between, since neighbours are nearly
    the same: what the parts measure is still one brain, and slices across others share lines of pixels with them. The
    template is its own mirror image, so of the 141 sagittal slices only those from the middle to the right are taken.

    Parameters
    ----------
        root: a folder with the template's three files; by default where nilearn has them, which is not imported.
        size: rows and columns, for 192 mm; it must divide 192. Below 192, voxels are averaged.

    Raises
    ------
        MissingData where nibabel or the files are not installed; ValueError for another size, for volumes that differ in
        shape or have other values than 0 to 255, and for a brain larger than the picture.
    """
    check_count("mni152", "size", size, 16)
    if FIELD % size:
        raise ValueError(f"mni152: size must divide {FIELD}, as 96, 64, 48 and 32 do, but is {size}.")
    paths = [template("mni152", kind, root) for kind in ("t1", "gm", "wm")]
    (image, affine), (grey, _), (white, _) = (volume("mni152", path) for path in paths)
    if not image.shape == grey.shape == white.shape:
        raise ValueError(f"mni152: the volumes differ in shape: {image.shape}, {grey.shape} and {white.shape}.")
    for path, voxels in zip(paths, (image, grey, white), strict=True):
        if not (voxels.min() >= 0 and 1 < voxels.max() <= 255):
            raise ValueError(f"{path}: values must fill 0 to 255, but go from {voxels.min():g} to {voxels.max():g}.")
    return array_splits("mni152", tissue_slices(image, grey, white, affine, size), TISSUES, 16)


def tissue_slices(
    image: np.ndarray, grey: np.ndarray, white: np.ndarray, affine: np.ndarray, size: int
) -> dict[str, Tensor]:
    """Pictures and masks of every part, of three volumes with values from 0 to 255; probabilities are 255ths."""
    box = [(int(found.min()), int(found.max()) + 1) for found in np.nonzero(image)]
    if max(high - low for low, high in box) > FIELD:
        raise ValueError(f"mni152: the brain fills {box} voxels, more than {FIELD}; voxels of 1 mm are expected.")
    tissue = np.maximum(grey, white) > 0.4 * 255
    middle = round(-affine[0, 3] / affine[0, 0])
    factor = FIELD // size
    found: dict[str, list[np.ndarray]] = {f"{part}.{kind}": [] for part in PARTS for kind in ("images", "masks")}
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        chosen = np.flatnonzero(tissue.mean(others) > SHARE)
        chosen = chosen[chosen >= middle] if axis == 0 else chosen
        for part, index in zip(parts(len(chosen)), chosen, strict=True):
            if part:
                around = [box[other] for other in others]
                cut = (np.moveaxis(whole, axis, 0)[index] for whole in (image, grey, white))
                shown, its_grey, its_white = (reduced(picture(one, around), factor) for one in cut)
                either = np.maximum(its_grey, its_white) > 0.4 * 255
                found[f"{part}.images"].append(shown.round().astype(np.uint8)[None])
                found[f"{part}.masks"].append(np.where(either, 1 + (its_white > its_grey), 0).astype(np.uint8))
    return stacked("mni152", found)


def picture(cut: np.ndarray, box: Sequence[tuple[int, int]]) -> np.ndarray:
    """A slice ``(right, up)`` as rows from the top, ``(FIELD, FIELD)``, with the box in its middle."""
    inside = cut[tuple(slice(low, high) for low, high in box)]
    left, bottom = (FIELD // 2 - (low + high) // 2 + low for low, high in box)
    out = np.zeros((FIELD, FIELD), cut.dtype)
    out[left : left + inside.shape[0], bottom : bottom + inside.shape[1]] = inside
    return out[:, ::-1].transpose()


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of ``factor`` pixels."""
    rows, columns = image.shape
    return image.reshape(rows // factor, factor, columns // factor, factor).mean((1, 3))


def parts(count: int, blocks: Sequence[tuple[str, int]] = BLOCKS) -> list[str]:
    """The part of every one of so many slices in a row; "" for those between.

    >>> parts(8, (("train", 3), ("", 1), ("val", 2)))
    ['train', 'train', 'train', '', 'val', 'val', 'train', 'train']
    """
    cycle = [part for part, length in blocks for _ in range(length)]
    return [cycle[index % len(cycle)] for index in range(count)]


def brains_aal(root: str | os.PathLike[str] | None = None, *, regions: str = "lobes", skull: bool = False) -> Splits:
    """Regions of the AAL atlas across subjects: train and val on the MNI152 template, test on Colin27, ``(1, 96, 80)``.

    Axial slices of 1 mm, of pixels of 2 mm, on one grid in MNI coordinates. The atlas was drawn on Colin27, and the
    template has its labels at the same coordinates, which is right to a few millimetres. Since the masks of both are one
    volume, a model could recall them by height: test is Colin27 at heights that train lacks by more than 4 slices, val
    the template at the same heights, so that the two differ by the subject only. Masks still resemble those next to them.
    Images are scaled volume by volume, from the 1st to the 99th percentile of what is not 0.

    Parameters
    ----------
        root: the folder of the Debian package mricron-data's volumes; by default where it puts them. It may also hold the
        template's T1 file, which is otherwise nilearn's. regions: "lobes" for 8 groups of regions, "all" for each of the
        116. skull: whether Colin27 is shown with skull and skin, which the template lacks; scores fall for it.

    Raises
    ------
        MissingData where nibabel, nilearn or mricron-data is not installed; ValueError for other regions, and labels
        without a name.
    """
    check_choice("brains_aal", "regions", regions, ("lobes", "all"))
    there = mricron(root, ("ch2.nii.gz" if skull else "ch2bet.nii.gz", "aal.nii.gz", "aal.nii.txt"))
    paths = [template("brains_aal", "t1", root), *there]
    names, groups = read_regions(paths[3])
    classes = LOBES if regions == "lobes" else ("background", *names.values())

    atlas, affine = volume("brains_aal", paths[2])
    unknown = sorted(set(np.unique(atlas).tolist()) - {0, *names})
    if unknown:
        raise ValueError(f"{paths[2]}: labels {unknown[:5]} have no name in {paths[3]}.")
    table = np.zeros(int(atlas.max()) + 1, np.uint8)
    for position, label in enumerate(names, 1):
        if label < len(table):
            table[label] = groups[label] if regions == "lobes" else position
    masks = on_grid((table[atlas.astype(np.int64)], affine), 0)
    template_, colin = (scaled(on_grid(volume("brains_aal", path), 1)) for path in paths[:2])
    chosen = np.flatnonzero((masks > 0).mean((1, 2)) > SHARE)
    held = np.array(parts(len(chosen), HEIGHTS))
    made = {}
    for part, image in (("train", template_), ("val", template_), ("test", colin)):
        at = chosen[held == ("train" if part == "train" else "test")]
        made[f"{part}.images"], made[f"{part}.masks"] = image[at][:, None], masks[at]
    return array_splits("brains-aal", stacked("brains_aal", made), classes, 8)


def read_regions(path: Path) -> tuple[dict[int, str], dict[int, int]]:
    """Names of the labels, and their groups in LOBES, by lines such as ``1 Precentral_L 2001``.

    Raises
    ------
        ValueError naming the line that is not a label, a name and a code from 2000 to 9999.
    """
    names, groups = {}, {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not words[0].isdigit() or not words[2].isdigit() or not 2000 <= int(words[2]) <= 9999:
            raise ValueError(f"{path}: line {number} must be a label, a name and a code such as 2001, but is {line!r}.")
        names[int(words[0])], groups[int(words[0])] = words[1], int(words[2]) // 1000 - 1
    return names, groups


def on_grid(given: Volume, order: int) -> np.ndarray:
    """The volume on GRID, slices by rows by columns: its nearest voxels (order 0), or linear between them (1)."""
    from scipy.ndimage import affine_transform

    voxels, affine = given
    to_world = np.eye(4)
    for axis, (first, step, _) in enumerate(GRID):
        to_world[axis, axis], to_world[axis, 3] = step, first
    back = np.linalg.solve(affine, to_world)
    out = affine_transform(
        voxels, back[:3, :3], back[:3, 3], output_shape=tuple(count for _, _, count in GRID), order=order
    )
    return out.transpose(2, 1, 0)


def scaled(image: np.ndarray) -> np.ndarray:
    """The image in uint8, its 1st percentile at 0 and its 99th at 255, both of what is not 0."""
    some = image[image > 0]
    if not some.size:
        raise ValueError(
            "brains_aal: an image is 0 all over the grid; its affine map does not lead to MNI coordinates."
        )
    low, high = np.percentile(some, (1, 99))
    return np.clip(255 * (image - low) / max(high - low, 1e-6), 0, 255).round().astype(np.uint8)


def volume(owner: str, path: Path) -> Volume:
    """The voxels of a NIfTI file in float32, turned to x right, y front, z up; and their affine map.

    Raises
    ------
        MissingData where nibabel is not installed; ValueError for a file that nibabel cannot read, and one that is not of
        three dimensions.
    """
    nibabel = needed(owner, "nibabel", "nibabel")
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        voxels = np.asarray(image.dataobj, np.float32)
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as problem:
        raise ValueError(f"{path}: cannot be read as a NIfTI volume ({problem}); install the package anew.") from None
    if voxels.ndim != 3:
        raise ValueError(f"{path}: must be a volume of three dimensions, but is {voxels.shape}.")
    return voxels, image.affine


def stacked(owner: str, found: Mapping[str, Sequence[np.ndarray] | np.ndarray]) -> dict[str, Tensor]:
    """Tensors of pictures; raise where a part has none."""
    for key, pictures in found.items():
        if not len(pictures):
            raise ValueError(
                f"{owner}: no slices are left for {key.partition('.')[0]}: too few show enough tissue or regions."
            )
    return {key: torch.from_numpy(np.ascontiguousarray(pictures)) for key, pictures in found.items()}


def template(owner: str, kind: str, root: str | os.PathLike[str] | None) -> Path:
    """The template's file of one kind ("t1", "gm", "wm"): root's, or nilearn's."""
    name = TEMPLATE.format(kind)
    if root is not None:
        own = Path(root).expanduser() / name
        if own.is_file():
            return own
        if owner == "mni152":
            raise MissingData(f"mni152: {own} is missing; leave root out where nilearn is installed, which holds it.")
    spec = importlib.util.find_spec("nilearn")  # not imported, which takes seconds for three files
    path = Path(spec.origin).parent / "datasets/data" / name if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise MissingData(f"{owner}: there is no {name}, which comes with nilearn; pip install nilearn nibabel.")
    return path


def mricron(root: str | os.PathLike[str] | None, names: Sequence[str]) -> list[Path]:
    """These files of mricron-data."""
    folders = MRICRON if root is None else (Path(root).expanduser(),)
    for folder in folders:
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    raise MissingData(
        f"brains_aal: {', '.join(names)} are not in {' or '.join(map(str, folders))}; install the Debian package"
        " mricron-data, or name the folder that holds them: --root FOLDER (root=)."
    )
