"""The quick versions of all experiments, as continuous integration runs them, and what they measure with."""

import json
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unrolling.models import create
from unrolling.training.command import main
from unrolling.training.data import IGNORE
from unrolling.training.experiments import EXPERIMENTS
from unrolling.training.experiments.common import multiply_adds, packed, spread, throughputs, train_all, unpacked
from unrolling.training.experiments.emergent import foreground, jaccard
from unrolling.training.experiments.fair import VARIANTS, Setting, fair_jobs, label_of, similarities
from unrolling.training.experiments.landmarks import Probe
from unrolling.training.experiments.principal import _by_ends, measures, principal, token_labels

pytest.importorskip("sklearn", reason="needs scikit-learn's digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.parametrize("name", EXPERIMENTS)  # in order: some measure the runs of others
def test_an_experiment_trains_measures_tabulates_and_draws(name, folder, capsys):
    assert main(["experiment", name, "--profile", "smoke", "--quiet", "--out", str(folder)]) == 0
    said, found = capsys.readouterr().out, json.loads((folder / f"{name}.json").read_text())
    experiment = EXPERIMENTS[name]
    assert experiment.question in said
    assert found["command"] == f"unroll experiment {name} --profile smoke"
    assert json.loads(json.dumps(found["results"])) == found["results"]
    assert "nan" not in json.dumps(found["results"]).lower()
    assert found["seconds"] < 120
    pictures = experiment.figures(found["results"])  # from what was kept, not from what was in memory
    assert pictures
    assert all((folder / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert experiment.render(found["results"]) in said


def test_help_says_what_each_asks_and_needs(capsys):
    with pytest.raises(SystemExit):
        main(["experiment", "--help"])
    said = capsys.readouterr().out
    for experiment in EXPERIMENTS.values():
        assert f"{experiment.name}: {experiment.question}" in said
        assert experiment.needs in said


def test_results_are_written_up_from_what_was_kept(folder, tmp_path, capsys):
    page = tmp_path / "results.md"
    (folder / "fair.md").write_text("What the numbers say.\n")
    assert main(["results", str(folder), "--markdown", str(page)]) == 0
    text = page.read_text()
    assert "What the numbers say." in text.split("## decoders")[0]
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (page.parent / picture).is_file()
    assert text.count("![") >= len(EXPERIMENTS)
    for name, experiment in EXPERIMENTS.items():
        assert f"## {name}" in text
        assert experiment.question in text
        assert f"unroll experiment {name} --profile smoke" in text
    assert main(["results", str(tmp_path), "--markdown", str(page)]) == 2
    assert "holds no results" in capsys.readouterr().err
    (tmp_path / "fair.json").write_text("{}")
    assert main(["results", str(tmp_path), "--markdown", str(tmp_path / "other.md")]) == 2
    assert not (tmp_path / "other.md").exists()
    assert main(["experiment", "nothing"]) == 2


def test_runs_at_once_are_runs_in_turn(tmp_path):
    results = []
    for processes in (1, 2):
        setting = Setting("smoke", tmp_path / str(processes), processes, quiet=True)
        jobs = fair_jobs(setting, {name: VARIANTS[name] for name in ("TSSA", "CBSA")})
        runs = train_all(jobs, setting)
        results.append({name: run.result()["sha256"] for name, run in runs.items()})
        assert set(runs) == {"tssa-seed0", "cbsa-seed0"}
    assert results[0] == results[1]


def test_jobs_differ_in_their_attention_alone():
    setting = Setting("full", None)
    jobs = fair_jobs(setting)
    assert len(jobs) == 3 * len(VARIANTS)
    assert {label_of(name) for name in jobs} == set(VARIANTS)
    assert len({json.dumps(job.recipe.to_dict()) for job in jobs.values()}) == 1
    assert {job.seed for job in jobs.values()} == {0, 1, 2}


@pytest.mark.parametrize("attention", ["softmax", "mssa", "cbsa", "tssa", "agent", "mita"])
def test_multiply_adds_are_those_of_the_formulas(attention):
    d, h, side, m, k = 24, 3, 4, 4, 5
    n = 1 + side * side
    model = create(
        "cbt-tiny", attention=attention, img_size=16, patch_size=4, in_chans=1, embed_dim=d, depth=1, num_heads=h,
        num_classes=7, representatives=(2, 2), keys_per_expert=k,
    )  # fmt: skip
    stem = 8 * 8 * 9 * 1 * (d // 2) + 4 * 4 * 9 * (d // 2) * d
    ista, head = 2 * n * d * d, 7 * d
    core = {
        "softmax": 4 * n * d * d + 2 * n * n * d,
        "mssa": 2 * n * d * d + 2 * n * n * d,
        "cbsa": 2 * n * d * d + 3 * n * m * d + 2 * m * m * d,
        "tssa": 2 * n * d * d,
        "agent": 4 * n * d * d + 4 * n * m * d,
        # landmarks' scores twice (their values, and the keys they select), the queries' with them twice, k keys and values
        "mita": 4 * n * d * d,
    }[attention]
    found = multiply_adds(model, torch.randn(1, 1, 16, 16))
    if attention == "mita":
        assert found - (stem + ista + head + core) >= 3 * n * m * d
    elif attention == "tssa":
        assert stem + ista + head + core <= found <= stem + ista + head + core + 4 * n * d
    else:
        assert found == stem + ista + head + core


def test_similarities_are_counted_by_their_formulas():
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "representatives": (2, 2)}
    for attention, wanted in (("softmax", 17 * 17), ("cbsa", 17 * 4 + 16), ("agent", 2 * 17 * 4), ("tssa", 0)):
        model = create("cbt-tiny", attention=attention, num_classes=3, **sizes)
        assert similarities(model, 17) == 6 * wanted


def test_throughputs_are_measured_in_turns():
    order = []

    class Says(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            order.append(self.name)
            return x

    found = throughputs({"a": Says("a"), "b": Says("b")}, torch.zeros(3, 1), rounds=2)
    assert order == ["a", "b"] * 3
    assert all(value > 0 and math.isfinite(value) for value in found.values())
    assert spread([0.1, 0.3])["mean"] == pytest.approx(0.2)


def test_a_map_keeps_its_mass_in_the_fewest_patches():
    maps = torch.rand(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = foreground(maps, 0.6)
    for each, mask in zip(maps, kept, strict=True):
        total = each.sum()
        assert each[mask].sum() >= 0.6 * total
        assert each[mask].sum() - each[mask].min() < 0.6 * total
        assert each[mask].min() >= each[~mask].max()


def test_jaccard_is_its_definition():
    found, truth = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    found[0, :2], truth[0, 1:] = True, True
    assert jaccard(found, truth).tolist() == [4 / 16, 0]


def test_tokens_have_the_class_of_most_of_their_pixels():
    masks = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    masks[0, :4, :4] = IGNORE
    found = token_labels(masks, (2, 3), 3)
    assert found[0, 0] == IGNORE
    for image in range(2):
        for index in range(1 if image == 0 else 0, 6):
            row, column = divmod(index, 3)
            patch = masks[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            counts = torch.bincount(patch, minlength=3)
            assert counts[found[image, index]] == counts.max()


def test_ideal_tokens_have_an_ideal_principal_subspace():
    """Tokens on orthonormal class directions, of different numbers, so that singular values differ."""
    directions = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64)).Q.mT
    labels = torch.tensor([0] * 9 + [2] * 5 + [1] * 2 + [IGNORE])
    tokens = directions[labels.clamp_max(2)] * torch.rand(17, 1, dtype=torch.float64).add(0.5)
    found = measures(tokens, labels)
    assert all(value == pytest.approx(1) for key, value in found.items() if "centred" not in key)
    # Three classes less their mean lie in a plane, where no two directions with both their ends meet three of them.
    assert 0.7 < found["centred_alignment"] < 1
    noisy = measures(tokens + 0.8 * torch.randn(17, 6, dtype=torch.float64), labels)
    assert all(noisy[key] < 1 for key in ("captured", "alignment", "within"))
    assert measures(tokens[:9], labels[:9]) is None
    U = principal(F.normalize(tokens[:16], dim=-1), 3)
    torch.testing.assert_close((directions @ U).abs().sum(0), torch.ones(3, dtype=torch.float64))


def test_without_their_mean_two_classes_are_the_ends_of_one_direction():
    """A long common part hides the classes from PCA as compression, but not from PCA of what is left without it."""
    labels = torch.tensor([0] * 6 + [1] * 6)
    offset = torch.where(labels == 0, 0.1, -0.1).double()[:, None] * torch.tensor([[0.0, 1.0, 0.0]])
    tokens = torch.tensor([[5.0, 0.0, 0.0]]) + offset + 0.001 * torch.randn(12, 3, dtype=torch.float64)
    found = measures(tokens, labels)
    assert found["by_principal"] <= 0.5
    assert found["centred_by_principal"] == 1
    assert found["centred_alignment"] > 0.999
    drawn = _by_ends(tokens, torch.where(torch.arange(12) == 3, IGNORE, 4 + labels))
    assert drawn.tolist() == (4 + labels).tolist()


def test_pictures_are_kept_as_they_are():
    for pixels in (torch.arange(256).reshape(8, 32), torch.randint(0, 256, (5, 4, 3))):
        assert torch.equal(unpacked(packed(pixels)).long(), pixels)


def test_a_mixture_of_two_classes_is_not_ideal():
    """One direction for both classes: the principal subspace holds them, but tells them not apart."""
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.02], [1.0, -0.02]], dtype=torch.float64)
    found = measures(tokens, torch.tensor([0, 1, 0, 1]))
    assert found["captured"] == pytest.approx(1)
    assert found["by_principal"] <= 0.5
    assert found["alignment"] < 0.6


def test_the_probe_finds_a_linear_rule_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    tokens = torch.randn(300, 2, 8, generator=generator)
    tokens[:, 0, :3] += 4 * F.one_hot(labels, 3)
    probe = Probe(tokens[:200], labels[:200], 3)
    assert probe.accuracy(tokens[200:], labels[200:]) > 0.9
    blind = Probe(tokens[:200, 1:], labels[:200], 3)
    assert blind.accuracy(tokens[200:, 1:], labels[200:]) < 0.6
