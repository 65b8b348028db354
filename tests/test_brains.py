import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unrolling.training.data import MissingData, load_data
from unrolling.training.datasets import brains

nibabel = pytest.importorskip("nibabel", reason="needs nibabel")

needs_nilearn = pytest.mark.skipif(importlib.util.find_spec("nilearn") is None, reason="needs nilearn")
needs_mricron = pytest.mark.skipif(
    not any((folder / "aal.nii.gz").is_file() for folder in brains.MRICRON), reason="needs Debian's mricron-data"
)

REGIONS = (
    "1 Frontal_L 2001\n2 Frontal_R 2002\n3 Occipital_L 5001\n4 Occipital_R 5002\n\n9 Vermis 9100\n12 Unseen 9110\n"
)


def write(path, voxels, corner, step=1.0, flip=False):
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = corner
    if flip:  # the same volume, stored from right to left
        voxels = voxels[::-1]
        affine[0, 0], affine[0, 3] = -step, corner[0] + step * (len(voxels) - 1)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def stack(data):
    pairs = [data.load(index) for index in range(len(data))]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def write_template(folder, flip=False, kinds=("t1", "gm", "wm"), sides=(97, 64, 60)):
    """A brick of grey matter around white, darker to the left, the back and below, with a rim that is neither."""
    white, grey, image = (np.zeros(sides, np.uint8) for _ in range(3))
    image[1:-1, 1:-1, 1:-1] = 40
    for voxels, edge, value in ((grey, 3, 255), (white, 9, 255)):
        voxels[edge:-edge, edge:-edge, edge:-edge] = value
        image[edge:-edge, edge:-edge, edge:-edge] += 50
    for axis, side in enumerate(sides):
        lit = np.arange(side) > side // 2
        image[image > 0] += np.broadcast_to(np.moveaxis(lit[:, None, None] * 10 * (axis + 1), 0, axis), sides)[
            image > 0
        ].astype(np.uint8)
    image[image > 0] += np.random.default_rng(0).integers(4, size=sides).astype(np.uint8)[image > 0]
    grey[(image > 0) & (grey == 0)] = 90  # too unlikely
    grey[white > 0], white[white > 0] = 120, 130
    grey[5, 30, 1:3], image[5, 30, 1:3] = 255, 100  # too little for a slice
    for kind, voxels in (("t1", image), ("gm", grey), ("wm", white)):
        if kind in kinds:
            write(folder / brains.TEMPLATE.format(kind), voxels, (-(sides[0] // 2), -40, -30), flip=flip)


def write_subjects(folder, names=REGIONS, extra=0):
    """An atlas of four quarters and a block below, and two heads as bright as their labels."""
    x, y, z = np.meshgrid(np.arange(-80, 81, 4), np.arange(-112, 81, 4), np.arange(-64, 89, 4), indexing="ij")
    atlas = (1 + (x > 0) + 2 * (y < 0)).astype(np.uint8)
    atlas[z < -30] = 9
    atlas[np.abs(x) + np.abs(y) > 110 - z] = 0  # so that masks change with height
    atlas[0, 0, 0] = extra
    at = np.minimum(atlas, 9)
    light, other = np.zeros(10, np.uint8), np.zeros(10, np.uint8)
    light[[1, 2, 3, 4, 9]], other[[1, 2, 3, 4, 9]] = (50, 80, 110, 140, 200), (20, 50, 60, 90, 100)
    corner = (-80, -112, -64)
    write(folder / "aal.nii.gz", atlas, corner, 4.0)
    (folder / "aal.nii.txt").write_text(names)
    write(folder / brains.TEMPLATE.format("t1"), light[at], corner, 4.0)
    write(folder / "ch2bet.nii.gz", other[at], corner, 4.0, flip=True)
    write(folder / "ch2.nii.gz", np.where(atlas == 0, 60, other[at]).astype(np.uint8), corner, 4.0)


@pytest.mark.parametrize("blocks", [brains.BLOCKS, brains.HEIGHTS])
def test_parts_keep_their_distance(blocks):
    held = brains.parts(147, blocks)
    at = {name: np.flatnonzero(np.array(held) == name) for name in {*held} - {""}}
    assert len(at) == len({name for name, _ in blocks} - {""})
    for one in at:
        for other in set(at) - {one}:
            assert np.abs(at[one][:, None] - at[other]).min() == brains.GAP + 1
    assert min(map(len, at.values())) > 10
    assert len(at["train"]) > 147 / 2


def test_tissues_are_where_the_image_shows_them(tmp_path):
    write_template(tmp_path)
    made = load_data("mni152", tmp_path)
    assert made.patch == 16
    assert made.train.classes == brains.TISSUES
    for part in (made.train, made.val, made.test):
        images, masks = stack(part)
        assert images.shape[1:] == (1, 192, 192)
        light = images[:, 0]
        assert (light[masks == 2] >= 140).all()
        assert ((light[masks == 1] >= 90) & (light[masks == 1] <= 153)).all()
        assert (light[masks == 0] <= 103).all()
        assert set(masks.unique().tolist()) == {0, 1, 2}
    # Slices of the brick with more than 2 % of tissue: 46 to the right of the middle, then 58 and 54.
    counts = [np.array(brains.parts(count)) for count in (46, 58, 54)]
    for part, name in ((made.train, "train"), (made.val, "val"), (made.test, "test")):
        assert len(part) == sum((held == name).sum() for held in counts)


def test_pictures_have_the_left_on_the_left_and_the_top_above(tmp_path):
    write_template(tmp_path)
    train = brains.mni152(tmp_path).train
    # The first axial slices, after 28 sagittal and 34 coronal ones, are those between the edges of grey and of white.
    assert [bool((train.load(62 + index)[1] == 2).any()) for index in range(8)] == [False] * 6 + [True] * 2
    middle = {"sagittal": (27, 1, 2), "coronal": (28 + 27, 0, 2), "axial": (28 + 28 + 4 + 27, 0, 1)}
    for name, (index, right, up) in middle.items():
        image, mask = train.load(index)
        rows, columns = np.nonzero(mask.numpy() == 2)
        cut = image[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
        half = [side // 2 for side in cut.shape]
        step = 10 * np.array([1, 2, 3])
        assert cut[:, half[1] + 2 :].mean() - cut[:, : half[1] - 2].mean() == pytest.approx(step[right], abs=1.5), name
        assert cut[: half[0] - 2].mean() - cut[half[0] + 2 :].mean() == pytest.approx(step[up], abs=1.5), name
        assert abs(float(np.mean([rows.min(), rows.max()])) - 95.5) <= 1.5
        assert abs(float(np.mean([columns.min(), columns.max()])) - 95.5) <= 1.5


def test_volumes_stored_the_other_way_round_are_turned(tmp_path):
    made = []
    for flip in (False, True):
        folder = tmp_path / str(flip)
        folder.mkdir()
        write_template(folder, flip)
        made.append(stack(brains.mni152(folder).train))
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])


def test_smaller_pictures_are_means(tmp_path):
    write_template(tmp_path)
    whole, half = stack(brains.mni152(tmp_path).val)[0], stack(brains.mni152(tmp_path, size=96).val)[0]
    assert half.shape[2:] == (96, 96)
    assert (torch.nn.functional.avg_pool2d(whole.float(), 2) - half).abs().max() <= 0.5
    for size in (100, 384):
        with pytest.raises(ValueError, match="must divide 192"):
            brains.mni152(tmp_path, size=size)
    with pytest.raises(ValueError, match="at least 16"):
        brains.mni152(tmp_path, size=12)


def test_templates_that_are_none_are_refused(tmp_path):
    write_template(tmp_path, kinds=("t1", "gm"))
    with pytest.raises(MissingData, match=r"wm_tal.* is missing; .*nilearn"):
        brains.mni152(tmp_path)
    path = tmp_path / brains.TEMPLATE.format("wm")
    write(path, np.full((3, 4, 5), 255, np.uint8), (0, 0, 0))
    with pytest.raises(ValueError, match="differ in shape"):
        brains.mni152(tmp_path)
    write(path, np.ones((97, 64, 60), np.float32), (0, 0, 0))
    with pytest.raises(ValueError, match=r"wm_tal.* must fill 0 to 255, but go from 1 to 1"):
        brains.mni152(tmp_path)
    write(path, np.full((97, 64, 60), 256, np.float32), (0, 0, 0))
    with pytest.raises(ValueError, match="but go from 256 to 256"):
        brains.mni152(tmp_path)
    write(path, np.zeros((4, 4, 4, 2), np.uint8), (0, 0, 0))
    with pytest.raises(ValueError, match="three dimensions"):
        brains.mni152(tmp_path)
    write_template(tmp_path)
    packed = path.read_bytes()
    for damaged in (b"no", packed[: len(packed) // 2], gzip.compress(b"no"), packed[:30] + b"\0" * 30 + packed[60:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read as a NIfTI volume"):
            brains.mni152(tmp_path)


def test_brains_that_do_not_fit_are_refused(tmp_path):
    write_template(tmp_path, sides=(40, 40, 200))
    with pytest.raises(ValueError, match="voxels of 1 mm are expected"):
        brains.mni152(tmp_path)
    write_template(tmp_path, sides=(40, 40, 40))
    with pytest.raises(ValueError, match="no slices are left for test"):
        brains.mni152(tmp_path)


def test_test_is_the_other_head_at_vals_heights_which_train_lacks(tmp_path):
    write_subjects(tmp_path)
    made = load_data("brains-aal", tmp_path)
    assert made.patch == 8
    assert made.train.classes == brains.LOBES
    (train, masks), (val, same), (test, held) = map(stack, (made.train, made.val, made.test))
    assert val.shape[1:] == (1, 96, 80)
    assert torch.equal(same, held)
    assert not torch.equal(val, test)
    assert len(train) > 2 * len(val) > 20
    assert not any(torch.equal(mask, other) for mask in masks for other in held)
    assert set(masks.unique().tolist()) == {0, 1, 4, 8}
    left = masks[:, :40, :35][masks[:, :40, :35] > 0]
    assert set(left.tolist()) == {1, 8}


@pytest.mark.parametrize("skull", [False, True])
def test_regions_are_where_the_heads_are_as_bright_as_they(tmp_path, skull):
    write_subjects(tmp_path)
    made = brains.brains_aal(tmp_path, regions="all", skull=skull)
    assert made.train.classes == (
        "background",
        "Frontal_L",
        "Frontal_R",
        "Occipital_L",
        "Occipital_R",
        "Vermis",
        "Unseen",
    )
    for part in (made.train, made.test):
        images, masks = stack(part)
        means = [images[:, 0][masks == label].float().mean().item() for label in range(1, 6)]
        assert means == sorted(means)
        assert means[-1] > 235
        for label, mean in enumerate(means, 1):
            light = images[:, 0][masks == label].float()
            assert ((light - light.median()).abs() < 12).float().mean() > 0.75, (label, mean)
    masks = stack(made.train)[1]
    labels = [
        masks[:, rows, columns].unique().tolist() for rows in (slice(20, 35), slice(42, 70)) for columns in (30, 50)
    ]
    assert [set(found) - {0, 5} for found in labels] == [{1}, {2}, {3}, {4}]
    background = stack(made.test)[0][:, 0][stack(made.test)[1] == 0]
    assert (background.float().mean() > 5) == skull


def test_labels_and_lines_that_cannot_be_are_named(tmp_path):
    write_subjects(tmp_path, extra=77)
    with pytest.raises(ValueError, match=r"labels \[77.*\] have no name in .*aal.nii.txt"):
        brains.brains_aal(tmp_path)
    for line in ("1 Frontal_L", "a Frontal_L 2001", "1 Frontal_L 20", "1 Frontal_L x", "1 Frontal L 2001"):
        write_subjects(tmp_path, f"2 Frontal_R 2002\n{line}\n")
        with pytest.raises(ValueError, match="line 2 must be a label, a name and a code"):
            brains.brains_aal(tmp_path)
    with pytest.raises(ValueError, match="regions must be one of 'lobes', 'all'"):
        brains.brains_aal(tmp_path, regions="half")


def test_the_grid_is_where_it_says():
    corner, step = np.array([-90.0, -130.0, -80.0]), np.array([3.0, 4.0, 5.0])
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = corner
    places = np.meshgrid(*(c + s * np.arange(70) for c, s in zip(corner, step, strict=True)), indexing="ij")
    for axis, ((first, pace, count), place) in enumerate(zip(brains.GRID, places, strict=True)):
        found = np.moveaxis(brains.on_grid((place.astype(np.float32), affine), 1), 2 - axis, 0)
        assert found.shape[0] == count
        assert np.abs(found - (first + pace * np.arange(count))[:, None, None]).max() < 1e-4
    for first, pace, count in brains.GRID[:2]:  # symmetric about x = 0, and about where brains have their middle
        assert abs(first + pace * (count - 1) / 2) <= 17


def test_an_image_elsewhere_is_refused(tmp_path):
    write_subjects(tmp_path)
    write(tmp_path / "ch2bet.nii.gz", np.ones((5, 5, 5), np.uint8), (1000, 0, 0))
    with pytest.raises(ValueError, match="does not lead to MNI coordinates"):
        brains.brains_aal(tmp_path)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(MissingData, match=r"ch2bet.nii.gz.*Debian package mricron-data"):
        brains.brains_aal(tmp_path)
    write_subjects(tmp_path)
    (tmp_path / brains.TEMPLATE.format("t1")).unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make in (lambda: brains.brains_aal(tmp_path), brains.mni152):
        with pytest.raises(MissingData, match="pip install nilearn nibabel"):
            make()
    write_template(tmp_path)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingData, match=r"mni152: nibabel is not installed; .* pip install nibabel"):
        brains.mni152(tmp_path)


@needs_nilearn
def test_the_template_is_its_own_mirror_image_and_nilearn_is_not_imported(monkeypatch):
    before = "nilearn" in sys.modules
    made = load_data("mni152")
    assert ("nilearn" in sys.modules) == before
    assert [len(part) for part in (made.train, made.val, made.test)] == [235, 41, 36]
    masks = stack(made.train)[1]
    share = torch.bincount(masks.flatten()).float() / masks.numel()
    assert share.tolist() == pytest.approx([0.72, 0.18, 0.10], abs=0.01)
    voxels, affine = brains.volume("mni152", brains.template("mni152", "t1", None))
    assert (voxels == voxels[::-1]).all()
    assert affine[0, 3] == -(len(voxels) // 2)


@needs_nilearn
@needs_mricron
def test_the_atlas_fits_both_heads():
    made = load_data("brains-aal", regions="all")
    assert len(made.train.classes) == 117
    for part in (made.train, made.val, made.test):
        images, masks = stack(part)
        inside = images[:, 0] > 0
        assert inside[masks > 0].float().mean() > 0.88  # regions reach into the furrows, which are 0
        assert inside[masks == 0].float().mean() < 0.2
    assert len(stack(made.train)[1].unique()) == 117
    left = made.train.classes.index("Precentral_L")
    assert np.nonzero(stack(made.train)[1].numpy() == left)[2].mean() < 40


def test_paths_of_packages_are_debians():
    assert all(Path("/usr") in folder.parents for folder in brains.MRICRON)
