"""The small trained networks that come along are what their cards say."""

from pathlib import Path

import pytest
import torch

from unrolling.models import load
from unrolling.training import Recipe, evaluate, load_data
from unrolling.training.again import read_cards
from unrolling.training.checkpoint import fingerprint
from unrolling.training.data import MissingData

HOME = Path(__file__).parent.parent / "notebooks/checkpoints"
CARDS = read_cards(HOME)


@pytest.mark.parametrize("name", CARDS)
def test_a_kept_network_is_the_one_of_its_card(name):
    card = CARDS[name]
    network = load(HOME / name)
    assert fingerprint(network.state_dict()) == card["sha256"]
    assert sum(p.numel() for p in network.parameters()) == card["parameters"]
    assert (HOME / name / "model.safetensors").stat().st_size < 3_000_000
    assert card["command"].startswith("unroll train ")
    assert network.config.to_dict().items() >= dict(card["job"]["choices"]).items()


def test_every_network_there_has_its_card():
    assert {place.name for place in HOME.iterdir() if place.is_dir()} == set(CARDS)


@pytest.mark.parametrize("name", ["fashion-cbsa", "fashion-mssa-exact-tied-orthonormal"])
def test_a_kept_network_gets_its_numbers_again(name):
    try:
        data = load_data("fashion-mnist")
    except MissingData as problem:
        pytest.skip(str(problem))
    found = evaluate(load(HOME / name), data.test, Recipe.read("fashion-mnist"))
    assert found["accuracy"] == pytest.approx(CARDS[name]["test"]["accuracy"], abs=3e-4)
    assert found["loss"] == pytest.approx(CARDS[name]["test"]["loss"], rel=1e-3)


def test_what_is_tied_orthonormal_and_exact_descends_after_training_too():
    """On noise as on pictures: the step is the layer's own."""
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    kept = [record for record in load(HOME / "fashion-mssa-exact-tied-orthonormal").trace(x)]
    free = [record for record in load(HOME / "fashion-mssa").trace(x)]
    assert all(bool((record.cosine > 0.999).all()) and bool((record.decrease > 0).all()) for record in kept)
    assert sum(float(record.cosine.mean()) for record in free) / len(free) < 0.5
