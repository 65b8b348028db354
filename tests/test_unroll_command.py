"""The command, as it is called; on scikit-learn's digits, which install with the package."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch

from unrolling.training.command import _parser as parser
from unrolling.training.command import job_of, main
from unrolling.training.run import RunFolder

pytest.importorskip("sklearn", reason="needs scikit-learn's digits")

QUICK = ["--quiet", "--epochs", "1", "--set", "data.seed=1", "--set", "model.depth=1", "--threads", "1"]
CLASSIFY = ["train", "classify", "--model", "cbt-tiny", "--data", "digits", *QUICK]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "cbsa"
    assert main([*CLASSIFY, "--out", str(place)]) == 0
    return place


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "masks"
    command = ["train", "segment", "--decoder", "depict-sa", "--data", "digit-scenes", *QUICK[:3]]
    small = [
        "data.sizes=[24, 8, 8]",
        "batch=8",
        "backbone.depth=1",
        "evaluate.scales=[0.5, 1.0]",
        "decoder.DEPICT.depth=1",
    ]
    assert main([*command, *[part for each in small for part in ("--set", each)], "--out", str(place)]) == 0
    return place


def test_a_run_leaves_its_numbers_its_network_and_its_page(run, capsys):
    names = {each.name for each in run.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "last.safetensors",
        "result.json",
        "model",
        "curves.png",
        "index.html",
    }
    page = (run / "index.html").read_text()
    assert "cbt-tiny, digits" in page
    assert page.count("<img") == page.count("data:image/png;base64,") == 2  # curves, and test images
    assert not re.search(r'(src|href)="(?!data:)', page)
    result = json.loads((run / "result.json").read_text())
    assert f"{result['test']['accuracy']:.4f}" in page
    assert main([*CLASSIFY, "--out", str(run)]) == 0  # done already
    said = capsys.readouterr()
    assert "going on with" in said.err
    assert f"test accuracy {result['test']['accuracy']:.4f}" in said.out


def test_fields_of_the_recipe_reach_the_networks_that_they_are_for(run, masks):
    from unrolling.models import load

    c = load(run / "model").config
    assert (c.representatives, c.keys_per_expert, c.depth, c.num_classes, c.in_chans) == ((2, 2), 4, 1, 10, 1)
    c = load(masks / "model").config
    assert (c.decoder.depth, c.decoder.attention, c.decoder.head_dim, c.encoder.depth, c.decoder.num_classes) == (
        1,
        "self",
        16,
        1,
        11,
    )


def test_another_command_for_the_same_folder_is_refused(run, capsys):
    assert main([*CLASSIFY, "--seed", "1", "--out", str(run)]) == 2
    assert re.search(r"holds another run: seed is 0 there and 1 here", capsys.readouterr().err)


def test_evaluation_measures_traces_and_makes_noise(run, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    command = ["evaluate", str(run), "--noise-sweep", "0.01,1000", "--draws", "2", "--trace", "--json", str(numbers)]
    assert main(command) == 0
    said, found = capsys.readouterr().out, json.loads(numbers.read_text())
    result = json.loads((run / "result.json").read_text())
    assert found["test"] == result["test"]
    assert [level["sigma"] for level in found["noise"]["levels"]] == [0, 0.01, 1000]
    assert found["noise"]["levels"][0]["values"] == [result["test"]["accuracy"]]
    assert "RepresentativeRate" in said
    assert found["trace"]["blocks"][0]["attention"] == "CBSA"
    for picture in ("noise.png", "trace.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")


def test_a_network_without_its_run_is_evaluated_on_a_named_data_set(run, tmp_path, capsys):
    result = json.loads((run / "result.json").read_text())
    job = RunFolder(run).job()
    assert dict(job.recipe.data) == {"seed": 1}
    assert main(["evaluate", str(run / "model")]) == 2
    assert "name the data set with --data" in capsys.readouterr().err
    assert main(["evaluate", str(run / "model"), "--data", "digits", "--json", str(tmp_path / "n.json")]) == 0
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["images"] == result["test"]["images"]
    assert found["test"]["accuracy"] > 0
    assert found["test"] != result["test"]  # another seed of the parts


def test_another_data_set_is_normalised_by_the_runs_own_statistics(run, monkeypatch):
    from unrolling.training import evaluation_command
    from unrolling.training.data import load_data
    from unrolling.training.pretrained.cached import normalised_as

    options = parser().parse_args(["evaluate", str(run), "--data", "digits"])
    own, other = load_data("digits", seed=1), normalised_as(load_data("digits"), (0.9,), (0.4,))
    monkeypatch.setattr(evaluation_command, "load_data", lambda *arguments, **options: other)
    _, _, data = evaluation_command._of_run(options, RunFolder(run))
    assert other.test.mean == (0.9,)
    assert data.test.mean == own.train.mean != other.test.mean
    assert data.test.std == own.train.std
    assert torch.equal(data.test.load(3)[0], other.test.load(3)[0])


def test_evaluation_takes_parts_and_says_what_is_wrong(run, capsys):
    assert main(["evaluate", str(run), "--split", "val", "--images", "7"]) == 0
    assert "on 7 images of" in capsys.readouterr().out
    for extra, problem in (
        (["--multiscale"], "several scales are for masks"),
        (["--noise-sweep", "a"], "write positive numbers"),
        (["--noise-sweep", "-1"], "sigma must be positive"),
        (["--data", "fashion-mnist", "--root", "nowhere"], "nowhere"),
        (["--data", "crafter"], "is for segment"),
    ):
        assert main(["evaluate", str(run), *extra]) == 2
        assert problem in capsys.readouterr().err


def test_masks_are_trained_and_evaluated_at_several_scales(masks, capsys):
    assert main(["evaluate", str(masks), "--multiscale", "--trace"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"miou 0\.\d{4} on 8 images of digit-scenes", said)
    assert "decoder self-attention 0" in said
    page = (masks / "index.html").read_text()
    assert "background" in page
    assert page.count("<img") == 2
    assert "mean IoU" in page


def test_runs_are_compared(run, masks, tmp_path, capsys):
    other = tmp_path / "tssa"
    assert main([*CLASSIFY, "--attention", "tssa", "--out", str(other)]) == 0
    assert main(["compare", str(run), str(other), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<td>cbsa</td>" in page
    assert "<td>tssa</td>" in page
    assert "choices.attention" in page  # what differs
    assert "recipe.train.lr" not in page
    capsys.readouterr()
    assert main(["compare", str(run), str(masks), "--html", str(tmp_path / "both.html")]) == 2
    assert "no metric in common" in capsys.readouterr().err
    assert not (tmp_path / "both.html").exists()
    assert main(["compare", str(tmp_path), "--html", str(tmp_path / "none.html")]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model", "cbt-tinny"], "no model is named 'cbt-tinny'. Nearest: cbt-tiny"),
        (["--model", "depict-sa-tiny"], "is for `unroll train segment`"),
        (["--model", "vit-tiny", "--form", "exact"], "vit-tiny has no form"),
        (["--attention", "linear"], "attention must be one of 'mssa'"),
        (["--set", "lr=-1"], "lr must be positive, but is -1"),
        (["--set", "data.speed=1"], "an option of digits must be one of"),
        (["--set", "augment.wobble=1"], "there is no 'wobble'"),
        (["--recipe", "nothing"], "none that comes along"),
        (["--data", "ade20k", "--root", "nowhere"], "is for segment"),
        (["--data", "folder", "--root", "nowhere"], "nowhere"),
        (["--set", "batch=5000"], "a batch of 5000 is more than"),
        (["--certified"], "certified steps need form='exact'"),
        (["--device", "cuda"], "there is no CUDA device here"),
        (["--seed", "-1"], "seed must be at least 0"),
    ],
)
def test_wrong_calls_are_said_in_one_line_and_leave_nothing(arguments, problem, tmp_path, capsys):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    out = tmp_path / "run"
    assert main([*CLASSIFY, "--out", str(out), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("unroll: ")
    assert problem in said
    assert len(said.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--frozen"], "cannot be frozen"),
        (["--cache-features"], "only a frozen backbone's features"),
        (["--backbone", "nowhere"], "nowhere"),
        (["--decoder", "mask"], "decoder must be one of 'depict-sa'"),
        (["--set", "decoder.width=3"], "has no width"),
    ],
)
def test_wrong_segmenters_are_said_too(arguments, problem, tmp_path, capsys):
    command = ["train", "segment", "--decoder", "linear", "--data", "digit-scenes", "--set", "data.sizes=[4, 2, 2]"]
    assert main([*command, "--out", str(tmp_path / "run"), *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_choices_reach_the_configuration_and_names_of_folders():
    options = parser().parse_args(
        [*CLASSIFY, "--attention", "mssa", "--form", "exact", "--tied", "--orthonormal", "--seed", "4"]
    )
    job = job_of(options)
    assert dict(job.choices) == {"attention": "mssa", "form": "exact", "tied": True, "orthonormal": True}
    assert job.seed == 4
    assert job.recipe.epochs == 1
    assert job.recipe.model["depth"] == 1


def test_a_network_of_a_run_is_the_backbone_of_another(run, tmp_path, capsys):
    """A trained ViT goes into a segmenter; a frozen one stays as it is."""
    vit, out = tmp_path / "vit", tmp_path / "out"
    pictures = ["--set", "data.sizes=[16, 4, 4]", "--set", "batch=4"]
    first = [
        "train",
        "segment",
        "--decoder",
        "linear",
        "--data",
        "digit-scenes",
        *QUICK[:3],
        *pictures,
        "--set",
        "backbone.depth=1",
    ]
    assert main([*first, "--out", str(vit)]) == 0
    second = [
        "train",
        "segment",
        "--decoder",
        "cbt",
        "--data",
        "digit-scenes",
        *QUICK[:3],
        *pictures,
        "--backbone",
        str(vit),
    ]
    assert main([*second, "--out", str(out)]) == 0
    frozen = [*second, "--frozen", "--set", "backbone.size=32", "--set", "decoder.CBTDecoder.representatives=[2, 2]"]
    assert main([*frozen, "--out", str(tmp_path / "frozen")]) == 0
    from unrolling.models import load

    encoder = load(vit / "model").encoder.state_dict()
    tuned = load(out / "model").encoder.state_dict()
    assert any(not torch.equal(encoder[name], tuned[name]) for name in encoder)
    moved = {
        name: float((encoder[name] - tuned[name]).norm() / encoder[name].norm())
        for name in encoder
        if encoder[name].ndim > 1
    }
    assert max(moved.values()) < 0.5  # four steps from where it was, not from other first weights
    assert type(load(tmp_path / "frozen" / "model")).__name__ == "CBTDecoder"
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "frozen"), "--trace"]) == 0
    result = json.loads((tmp_path / "frozen/result.json").read_text())
    assert f"miou {result['test']['miou']:.4f}" in capsys.readouterr().out
    assert (
        main(
            [
                *second,
                "--frozen",
                "--cache-features",
                "--set",
                "augment={}",
                "--set",
                "backbone.size=32",
                "--out",
                str(tmp_path / "c"),
            ]
        )
        == 0
    )


def test_cached_features_keep_their_masks_and_a_frozen_encoder_learns_nothing(tmp_path, monkeypatch):
    from unrolling.models import ViT
    from unrolling.models.segmenter import LinearDecoder
    from unrolling.training import ArrayData, FrozenSegmenter
    from unrolling.training.pretrained.cached import cached

    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (5, 3, 8, 8), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 3, (5, 8, 8), generator=generator)
    data = ArrayData("made up", images, masks, "abc")
    vit = ViT(img_size=8, patch_size=4, embed_dim=12, depth=1, num_heads=3, num_classes=0)
    model = FrozenSegmenter(vit, LinearDecoder(num_classes=3, embed_dim=12, patch_size=4), (8, 8), (8, 8))
    assert not any(p.requires_grad for p in vit.parameters())
    assert {name for name, _ in model.named_parameters()} == {"decoder.head.weight", "decoder.head.bias"}
    found = cached(model, data)
    for index in range(5):
        tokens, mask = found.load(index)
        assert torch.equal(mask, masks[index])
        one = found.load_many([index])
        assert torch.equal(one[0][0], tokens)
        assert torch.equal(one[1][0], mask)
        x = (images[index : index + 1].float() / 255 - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(
            data.std
        ).view(-1, 1, 1)
        torch.testing.assert_close(tokens.float(), model.tokens(x)[0], atol=5e-3, rtol=5e-3)
        torch.testing.assert_close(model(tokens.float()[None]), model(x), atol=5e-3, rtol=5e-3)


def test_features_from_the_disk_train_like_images(tmp_path, monkeypatch):
    """But for the float16 that they are kept in."""
    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path / "cache"))
    pictures = ["--set", "data.sizes=[16, 4, 4]", "--set", "batch=4", "--set", "augment={}"]
    base = ["train", "segment", "--data", "digit-scenes", *QUICK[:3], *pictures]
    assert main([*base, "--decoder", "linear", "--set", "backbone.depth=1", "--out", str(tmp_path / "vit")]) == 0
    again = [
        *base,
        "--decoder",
        "depict-ca",
        "--backbone",
        str(tmp_path / "vit"),
        "--frozen",
        "--set",
        "backbone.size=32",
    ]
    found = []
    for name, extra in (("images", []), ("features", ["--cache-features"])):
        assert main([*again, *extra, "--out", str(tmp_path / name)]) == 0
        found.append([line["loss"] for line in RunFolder(tmp_path / name).lines() if "loss" in line])
    assert found[0] == pytest.approx(found[1], rel=2e-2)
    assert found[0] != found[1]
    assert list((tmp_path / "cache" / "features").glob("*.safetensors"))


def test_lists_of_data_and_recipes(capsys):
    assert main(["recipes"]) == 0
    assert {"digits", "imagenet-cbt", "ade20k"} <= set(capsys.readouterr().out.split())
    assert main(["recipes", "imagenet-cbt"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["optimiser"] == "lion"
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"digits +classify +1,078 / 360 / 359 images of 8 × 8, 10 classes", said)
    assert main(["data", "nothing"]) == 2
    assert main([]) == 2


def test_torchrun_runs_the_same_command(run, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "unrolling.training", *CLASSIFY, "--out", str(tmp_path / "two")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("page:") == 1
    one, two = (json.loads((place / "result.json").read_text()) for place in (run, tmp_path / "two"))
    assert one["test"]["loss"] == pytest.approx(two["test"]["loss"], rel=1e-3)
    assert two["test"]["images"] == 359


COMMANDS = """
classify --model cbt-tiny --data digits
classify --model cbt-tiny --attention mssa,cbsa --data digits --set model.depth=2 --seed 3
classify --model cbt-tiny --attention cbsa --form exact --tied --orthonormal --certified --data digits
classify --model vit-tiny --data digits --set augment={} --set 'betas=[0.5, 0.6]' --set optimiser=lion
classify --model vit-tiny --data digits --set 'mix={mixup = 0.2}' --set 'model.CBT={representatives = [1, 1]}'
segment --decoder cbt --data crafter --recipe ade20k --set batch=2
segment --decoder cbt --backbone dinov2-small --frozen --cache-features --data crafter --set augment={}
classify --model crate-tiny --data folder --root 'some where' --recipe imagenet-crate
"""


@pytest.mark.parametrize("arguments", [shlex.split(line) for line in COMMANDS.strip().splitlines()])
def test_the_command_of_a_job_makes_the_job(arguments):
    from unrolling.training.again import command_of

    job = job_of(parser().parse_args(["train", *arguments]))
    said = shlex.split(command_of(job))
    assert said[0] == "unroll"
    again = job_of(parser().parse_args(said[1:]))
    assert again.to_dict() == job.to_dict()
    assert list(again.recipe.augment) == list(job.recipe.augment)  # in their order


def test_small_networks_are_kept_with_their_commands_and_hashes(run, masks, tmp_path, capsys):
    from unrolling.models import load
    from unrolling.training.again import read_cards
    from unrolling.training.checkpoint import fingerprint

    assert main(["keep", str(run), str(masks), "--into", str(tmp_path / "kept")]) == 0
    assert main(["keep", str(run), "--into", str(tmp_path / "kept")]) == 0  # again: nothing is lost
    cards = read_cards(tmp_path / "kept")
    assert set(cards) == {"cbsa", "masks"}
    result = json.loads((run / "result.json").read_text())
    assert cards["cbsa"]["sha256"] == result["sha256"] == fingerprint(load(tmp_path / "kept" / "cbsa").state_dict())
    assert cards["cbsa"]["test"]["accuracy"] == result["test"]["accuracy"]
    assert cards["cbsa"]["command"].startswith("unroll train classify --model cbt-tiny --data digits")
    assert main(["keep", str(tmp_path), "--into", str(tmp_path / "kept")]) == 2
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds no cards"):
        read_cards(tmp_path)
