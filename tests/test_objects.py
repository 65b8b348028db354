import pytest
import torch

from unrolling.training.data import load_data
from unrolling.training.datasets.objects import ObjectData

pytest.importorskip("sklearn", reason="needs scikit-learn's digits")


@pytest.fixture(scope="module")
def parts():
    return load_data("digit-objects", sizes=(300, 40, 50))


def test_an_object_is_brighter_than_what_is_behind_and_inside_its_silhouette(parts):
    for part, count in ((parts.train, 300), (parts.val, 40), (parts.test, 50)):
        assert part.images.shape == (count, 3, 32, 32)
        assert part.silhouettes.shape == (count, 32, 32)
        assert part.task == "classify"
        share = part.silhouettes.double().mean((1, 2))
        assert (share > 0).double().mean() > 0.95
        assert share.max() < 0.5
        pairs = [(image.amax(0).double(), mask) for image, mask in zip(part.images, part.silhouettes, strict=True)]
        brighter = [bool(image[mask].mean() > image[~mask].mean() + 30) for image, mask in pairs if mask.any()]
        assert sum(brighter) > 0.9 * len(brighter)
    assert set(parts.train.targets.tolist()) == set(range(10))
    assert parts.test.mean == parts.train.mean


def test_the_class_is_the_objects(parts):
    """The same seed draws the same digits: ones are narrow, zeros are not."""
    widths = {}
    for label in (0, 1):
        masks = parts.train.silhouettes[parts.train.targets == label]
        columns = masks.any(1).sum(-1).double()
        rows = masks.any(2).sum(-1).double()
        widths[label] = float((columns / rows.clamp_min(1))[rows > 4].mean())
    assert widths[1] < widths[0]


def test_a_seed_draws_the_same_and_another_others(parts):
    again, other = (
        load_data("digit-objects", sizes=(300, 40, 50)),
        load_data("digit-objects", sizes=(300, 40, 50), seed=1),
    )
    assert torch.equal(again.train.images, parts.train.images)
    assert torch.equal(again.test.silhouettes, parts.test.silhouettes)
    assert not torch.equal(other.train.images, parts.train.images)
    with pytest.raises(ValueError, match="reads no folder"):
        load_data("digit-objects", "somewhere")


def test_silhouettes_must_fit():
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"silhouettes must be \(2, 4, 4\) booleans, but are \(2, 4, 4\) torch.int64"):
        ObjectData("two", images, labels, "a", torch.zeros(2, 4, 4, dtype=torch.int64))
