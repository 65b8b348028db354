"""Images with masks, in small trees of the publishers' layouts that the tests write: whole, damaged, missing."""

import pytest
import torch
from PIL import Image

from unrolling.training.data import IGNORE, MissingData, load_data
from unrolling.training.datasets import layouts

NAMES = ("ade20k", "pascal-context", "pascal-voc", "cityscapes")
COLOURS = [value for label in range(256) for value in (255 - label, label, 7)]


def picture(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (30, 60, 90)).save(path)


def mask(path, labels, size=(6, 4), mode="L"):
    """A mask that holds these labels from the left above, and the last of them from there on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.new(mode, size)
    stored.putdata([*labels, *[labels[-1]] * (size[0] * size[1] - len(labels))])
    if mode == "P":
        stored.putpalette(COLOURS)
    stored.save(path)


def ade(root, labels=(0, 1, 150)):
    for part, count in (("training", 4), ("validation", 2)):
        for number in range(count):
            picture(root / "images" / part / f"ADE_{number}.jpg")
            mask(root / "annotations" / part / f"ADE_{number}.png", labels)
    return root / "images/training/ADE_0.jpg", root / "annotations/training/ADE_0.png"


def voc(root, labels=(0, 20, 255), masks="SegmentationClass", lists="Segmentation", mode="P"):
    for part, count in (("train", 4), ("val", 2)):
        names = [f"2007_{part}_{number}" for number in range(count)]
        for name in names:
            picture(root / "JPEGImages" / f"{name}.jpg")
            mask(root / masks / f"{name}.png", labels, mode=mode)
        (root / "ImageSets" / lists).mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / lists / f"{part}.txt").write_text("\n".join(names) + "\n\n")
    return root / "JPEGImages/2007_train_0.jpg", root / masks / "2007_train_0.png"


def context(root, labels=(0, 1, 59)):
    return voc(root, labels, "SegmentationClassContext", "SegmentationContext", "L")


def streets(root, labels=(0, 7, 33, 13), kind="labelIds"):
    for part, count in (("train", 4), ("val", 2)):
        for number in range(count):
            stem = f"{part}/city{number % 2}/city_{number}"
            picture(root / "leftImg8bit" / f"{stem}_leftImg8bit.png")
            mask(root / "gtFine" / f"{stem}_gtFine_{kind}.png", labels)
    first = "train/city0/city_0"
    return root / f"leftImg8bit/{first}_leftImg8bit.png", root / f"gtFine/{first}_gtFine_{kind}.png"


TREES = {"ade20k": ade, "pascal-voc": voc, "pascal-context": context, "cityscapes": streets}


def labels_of(part, count, index=0):
    return part.load(index)[1].flatten()[:count].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_gives_images_and_masks(name, tmp_path):
    TREES[name](tmp_path)
    found = load_data(name, tmp_path, task="segment")
    assert (len(found.train), len(found.val), found.test is found.val, found.patch) == (4, 2, True, 16)
    for part in (found.train, found.val):
        assert (part.task, part.channels, part.size) == ("segment", 3, None)
        assert (part.mean, part.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        images, masks = part.load_many(range(len(part)))
        for image, target in zip(images, masks, strict=True):
            assert (image.dtype, target.dtype) == (torch.uint8, torch.int64)
            assert (tuple(image.shape), tuple(target.shape)) == ((3, 4, 6), (4, 6))
            assert bool(((target < len(part.classes)) | (target == IGNORE)).all())
    assert len(load_data(name, tmp_path, count=3).train) == 3


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("ade20k", "ADEChallengeData2016"),
        ("pascal-voc", "VOC2012"),
        ("pascal-voc", "VOCdevkit/VOC2012"),
        ("pascal-context", "VOC2010"),
        ("pascal-context", "VOCdevkit/VOC2010"),
    ],
)
def test_the_folder_around_will_do(name, inside, tmp_path):
    TREES[name](tmp_path / inside)
    assert len(load_data(name, tmp_path).train) == 4


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_say_what_to_unpack(name, tmp_path):
    with pytest.raises(MissingData, match=rf"{name}: no package installs it; name the folder .*--root"):
        load_data(name)
    with pytest.raises(MissingData, match="is no folder"):
        load_data(name, tmp_path / "nowhere")
    with pytest.raises(MissingData, match=rf"{name}: there is no .*No package installs .*--root"):
        load_data(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_its_mask_is_found_at_once(name, tmp_path):
    _, path = TREES[name](tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="1 of 4 masks are missing, first") as caught:
        load_data(name, tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_another_size_are_named(name, tmp_path):
    image, path = TREES[name](tmp_path)
    mask(path, (1,), size=(4, 6))
    with pytest.raises(ValueError, match=r"the mask has 6 × 4 pixels, but the image .* has 4 × 6") as caught:
        load_data(name, tmp_path).train.load(0)
    assert str(path) in str(caught.value)
    assert str(image) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_damaged_are_named(name, tmp_path):
    image, path = TREES[name](tmp_path)
    found = load_data(name, tmp_path).train
    for broken in (path, image):
        content = broken.read_bytes()
        for piece in (content[: len(content) // 2], b""):
            broken.write_bytes(piece)
            with pytest.raises(ValueError, match="cannot be read as an image") as caught:
                found.load(0)
            assert str(broken) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "label", "known"),
    [
        ("ade20k", 151, "0 … 150"),
        ("ade20k", 255, "0 … 150"),
        ("pascal-voc", 21, "0 … 20 or 255"),
        ("pascal-context", 60, "0 … 59 or 255"),
        ("cityscapes", 34, "0 … 33"),
        ("cityscapes", 254, "0 … 33"),
    ],
)
def test_labels_of_no_class_are_named(name, label, known, tmp_path):
    _, path = TREES[name](tmp_path)
    mask(path, (1, label, 1))
    with pytest.raises(ValueError, match=f"labels must be {known}, but {label} came") as caught:
        load_data(name, tmp_path).train.load(0)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_masks_in_colours_are_refused(name, tmp_path):
    _, path = TREES[name](tmp_path)
    for mode in ("RGB", "I;16"):
        Image.new(mode, (6, 4)).save(path)
        with pytest.raises(ValueError, match=f"a mask must hold labels of 8 bits, .* its mode is {mode}"):
            load_data(name, tmp_path).train.load(0)


@pytest.mark.parametrize("name", NAMES)
def test_empty_parts_are_refused(name, tmp_path):
    TREES[name](tmp_path)
    if name.startswith("pascal"):
        next(tmp_path.glob("ImageSets/*/train.txt")).write_text("\n")
    else:
        for path in [*tmp_path.glob("images/training/*"), *tmp_path.glob("leftImg8bit/train/*/*")]:
            path.unlink()
    with pytest.raises(ValueError, match="there are no images"):
        load_data(name, tmp_path)


def test_ade20k_counts_from_one_and_zero_is_void(tmp_path):
    ade(tmp_path, (0, 1, 2, 150))
    found = load_data("ade20k", tmp_path)
    assert labels_of(found.train, 4) == [IGNORE, 0, 1, 149]
    assert found.train.classes == tuple(map(str, range(150)))


def test_ade20k_takes_its_names_from_its_table(tmp_path):
    ade(tmp_path)
    rows = [f"{number}\t0.1\t9\t1\t0\tthing {number}, object" for number in range(1, 151)]
    path = tmp_path / "objectInfo150.txt"
    path.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")
    assert load_data("ade20k", tmp_path).train.classes[149] == "thing 150, object"
    for wrong in (rows[1:], [rows[1], rows[0], *rows[2:]], [str(number) for number in range(1, 151)]):
        path.write_text("\n".join(["heading", *wrong]))
        with pytest.raises(ValueError, match=r"objectInfo150.txt: must be a heading and rows 1 … 150"):
            load_data("ade20k", tmp_path)


def test_ade20k_leaves_out_what_is_no_image_and_refuses_two_of_a_name(tmp_path):
    ade(tmp_path)
    (tmp_path / "images/training/list.txt").write_text("")
    (tmp_path / "images/training/._ADE_0.jpg").write_text("")
    assert len(load_data("ade20k", tmp_path).train) == 4
    picture(tmp_path / "images/training/ADE_2.png")
    with pytest.raises(ValueError, match=r"ADE_2.jpg stands twice, with other endings"):
        load_data("ade20k", tmp_path)


def test_voc_masks_are_places_in_the_palette(tmp_path):
    voc(tmp_path, (0, 1, 20, 255))
    found = load_data("pascal-voc", tmp_path)
    assert labels_of(found.val, 4) == [0, 1, 20, IGNORE]
    assert len(found.train.classes) == 21
    assert (found.train.classes[0], found.train.classes[15]) == ("background", "person")


def test_voc_masks_of_few_colours_are_read_as_well(tmp_path):
    _, path = voc(tmp_path)
    for bits in (1, 2, 4):
        stored = Image.new("P", (6, 4), 1)
        stored.putpalette(COLOURS[: 3 * 2**bits])
        stored.save(path, bits=bits)
        assert labels_of(load_data("pascal-voc", tmp_path).train, 2) == [1, 1]


def test_voc_is_augmented_on_demand(tmp_path):
    voc(tmp_path)
    mask(tmp_path / "SegmentationClassAug/2008_extra.png", (3,))
    mask(tmp_path / "SegmentationClassAug/2007_train_0.png", (3,))
    picture(tmp_path / "JPEGImages/2008_extra.jpg")
    path = tmp_path / "ImageSets/Segmentation/trainaug.txt"
    with pytest.raises(MissingData, match=r"trainaug.txt is missing"):
        load_data("pascal-voc", tmp_path, extra=True)
    path.write_text("2007_train_0\n/JPEGImages/2008_extra.jpg /SegmentationClassAug/2008_extra.png\n")
    assert len(load_data("pascal-voc", tmp_path).train) == 4
    found = load_data("pascal-voc", tmp_path, extra=True)
    assert (len(found.train), len(found.val)) == (5, 2)
    assert labels_of(found.train, 2) == [0, 20]  # the mask of VOC, not the other
    assert labels_of(found.train, 2, 4) == [3, 3]
    path.write_text("2007_val_1\n")
    with pytest.raises(ValueError, match=r"1 image\(s\) stand in train and in val, first .*2007_val_1.jpg"):
        load_data("pascal-voc", tmp_path, extra=True)


@pytest.mark.parametrize("name", ["pascal-voc", "pascal-context"])
def test_lists_name_every_image_once_and_only_what_is_there(name, tmp_path):
    image, _ = TREES[name](tmp_path)
    path = next(tmp_path.glob("ImageSets/*/train.txt"))
    names = path.read_text()
    path.write_text(names + "2007_train_0\n")
    with pytest.raises(ValueError, match=r"2007_train_0.jpg stands twice"):
        load_data(name, tmp_path)
    path.write_text(names + "2007_val_0\n")
    with pytest.raises(ValueError, match=r"stand in train and in val, first .*2007_val_0.jpg"):
        load_data(name, tmp_path)
    path.write_text(names)
    image.unlink()
    with pytest.raises(ValueError, match=r"1 of 4 images are missing, first .*2007_train_0.jpg"):
        load_data(name, tmp_path)
    path.unlink()
    with pytest.raises(MissingData, match=r"train.txt is missing"):
        load_data(name, tmp_path)


def test_context_has_a_background_or_none(tmp_path):
    context(tmp_path, (0, 1, 59, 255))
    found = load_data("pascal-context", tmp_path)
    assert labels_of(found.train, 4) == [0, 1, 59, IGNORE]
    assert (len(found.train.classes), found.train.classes[0], found.train.classes[59]) == (60, "background", "wood")
    found = load_data("pascal-context", tmp_path, background=False)
    assert labels_of(found.train, 4) == [IGNORE, 0, 58, IGNORE]
    assert (len(found.train.classes), found.train.classes[0], found.train.classes[58]) == (59, "aeroplane", "wood")


def test_cityscapes_trains_by_nineteen_of_its_labels(tmp_path):
    streets(tmp_path, tuple(range(24)))
    found = load_data("cityscapes", tmp_path)
    void = IGNORE
    wanted = [void] * 7 + [0, 1, void, void, 2, 3, 4, void, void, void, 5, void, 6, 7, 8, 9, 10]
    assert labels_of(found.train, 24) == wanted
    streets(tmp_path, tuple(range(24, 34)))
    assert labels_of(found.train, 10) == [11, 12, 13, 14, 15, void, void, 16, 17, 18]
    assert len(found.train.classes) == 19
    assert (found.train.classes[0], found.train.classes[11], found.train.classes[18]) == ("road", "person", "bicycle")


def test_cityscapes_prefers_train_ids_where_all_images_have_them(tmp_path):
    streets(tmp_path, (7,))
    _, path = streets(tmp_path, (5, 255), "labelTrainIds")
    found = load_data("cityscapes", tmp_path)
    assert labels_of(found.train, 2) == [5, IGNORE]
    assert labels_of(found.val, 2) == [5, IGNORE]
    mask(path, (19,))
    with pytest.raises(ValueError, match=r"labels must be 0 … 18 or 255, but 19 came"):
        found.train.load(0)
    path.unlink()
    found = load_data("cityscapes", tmp_path)
    assert labels_of(found.train, 2) == [0, 0]
    assert labels_of(found.val, 2) == [5, IGNORE]


def test_published_counts_of_classes():
    assert (len(layouts.VOC), len(layouts.CONTEXT), len(layouts.STREETS)) == (21, 60, 19)
    assert list(layouts.CONTEXT[1:]) == sorted(layouts.CONTEXT[1:])
    assert list(layouts.STREETS.values()) == sorted(layouts.STREETS.values())
