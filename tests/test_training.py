"""Training of small networks on made-up images: determinism, going on after a kill, several processes, failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unrolling.training import trainer
from unrolling.training.checkpoint import read_training, written_whole
from unrolling.training.data import IGNORE, ArrayData, Splits
from unrolling.training.loader import Loader, mixing_of
from unrolling.training.recipe import Recipe
from unrolling.training.run import Diverged, Job, RunFolder
from unrolling.training.trainer import Parallel

QUIET = Parallel(quiet=True)


def squares(count, seed, task="classify", channels=1):
    """Noise with a bright square in one of four corners: its corner, or its mask, is what is asked for."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 4, (count,), generator=generator)
    images = torch.randint(0, 120, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, 8, 8, dtype=torch.int64)
    for index, corner in enumerate(corners.tolist()):
        rows, columns = slice(4 * (corner // 2), 4 * (corner // 2) + 4), slice(4 * (corner % 2), 4 * (corner % 2) + 4)
        images[index, :, rows, columns] += 100
        masks[index, rows, columns] = 1 + corner
    masks[:, 0, :2] = IGNORE
    target, classes = (corners, "abcd") if task == "classify" else (masks, "abcde")
    return ArrayData(f"squares {seed}", images, target, tuple(classes), mean=(0.3,) * channels, std=(0.2,) * channels)


def made_up(job):
    parts = (squares(count, seed, job.task) for count, seed in ((48, 0), (20, 1), (21, 2)))
    return Splits(*parts, patch=2)


def train(job, folder, parallel=QUIET, **options):
    return trainer.train(job, folder, parallel, data=made_up(job), **options)


def recipe(**changes):
    model = {
        "embed_dim": 12,
        "depth": 1,
        "num_heads": 3,
        "representatives": [2, 2],
        "drop_rate": 0.1,
        "drop_path_rate": 0.2,
    }
    values = {"epochs": 3, "batch": 12, "lr": 5e-3, "augment": {"pad_crop": 1, "flip": 0.5}, "model": model}
    return Recipe(**{**values, **changes})


def classify(**changes):
    return Job("classify", "squares", recipe(**changes), model="cbt-tiny")


def segment(decoder="depict-sa", **changes):
    parts = {
        "backbone": {"embed_dim": 12, "depth": 1, "num_heads": 3},
        "decoder": {"DEPICT": {"num_heads": 2, "head_dim": 4, "cross_head_dim": 3}},
    }
    return Job("segment", "squares", recipe(model={}, augment={"flip": 0.5}, **parts, **changes), decoder=decoder)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def numbers(folder):
    """All lines, without speeds."""
    lines = RunFolder(folder).lines()
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("job", [classify(), segment()], ids=["classify", "segment"])
def test_a_seed_gives_the_same_weights_and_lines_and_another_seed_others(job, tmp_path):
    for name in ("one", "two"):
        train(job, RunFolder(tmp_path / name))
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    train(Job(**{**vars(job), "seed": 1}), RunFolder(tmp_path / "three"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "three"))


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 11])
@pytest.mark.parametrize(
    "job",
    [
        classify(save_every=2),
        classify(optimiser="lion", ema=0.9, mix={"mixup": 0.4, "cutmix": 0.5}, accumulate=2),
        segment(optimiser="sgd", save_every=3, clip=1.0),
    ],
    ids=["adamw", "lion", "sgd"],
)
def test_what_was_stopped_at_any_step_goes_on_to_the_same_numbers(job, stop, tmp_path):
    train(job, RunFolder(tmp_path / "whole"))
    train(job, RunFolder(tmp_path / "torn"), stop_after=stop)
    assert not (tmp_path / "torn" / "result.json").exists()
    train(job, RunFolder(tmp_path / "torn"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "torn")


@pytest.mark.parametrize(
    "job",
    [
        classify(smoothing=0.2, model={}, mix={"mixup": 1.0}),
        classify(loss="binary", model={}, mix={"mixup": 1.0}),
        segment(smoothing=0.2),
    ],
    ids=["soft classes", "binary", "masks"],
)
def test_the_first_loss_is_its_definition(job, tmp_path):
    if job.task == "classify":
        small = {"embed_dim": 12, "depth": 1, "num_heads": 3}
        job = Job(job.task, job.data, Recipe(**{**vars(job.recipe), "model": small}), model="vit-tiny")
    train(job, RunFolder(tmp_path / "run"), stop_after=1)
    found = RunFolder(tmp_path / "run").lines()[0]["loss"]
    data = made_up(job)
    model = trainer.build(job, data).train()
    batch = next(iter(Loader(data.train, job.recipe).batches(0)))
    x = (batch.images.float() / 255 - 0.3) / 0.2
    if job.task == "segment":
        logs = model(x).log_softmax(1)
        kept = batch.targets != IGNORE
        own = logs.gather(1, batch.targets.clamp_max(4).unsqueeze(1)).squeeze(1)
        wanted = -(0.8 * own + 0.2 * logs.mean(1))[kept].mean()
    else:
        left = mixing_of(job.recipe, 4)(
            x, batch.targets, ((batch.partners[0].float() / 255 - 0.3) / 0.2, batch.partners[1]), batch.uniforms
        )
        scores, y = model(left[0]), left[1]
        assert torch.allclose(y.sum(1), torch.ones(12))
        if job.recipe.loss == "binary":
            present = ((y > 0) * 1.0).double()
            p = torch.sigmoid(scores.double())
            wanted = -(present * p.log() + (1 - present) * (1 - p).log()).mean()
            assert set(present.sum(1).tolist()) == {1, 2}
        else:
            wanted = -(y * scores.log_softmax(1)).sum(1).mean()
            assert float(y.min()) > 0.04  # smoothed
    assert found == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_training_learns_and_says_so(tmp_path):
    plain = {"embed_dim": 12, "depth": 1, "num_heads": 3, "representatives": [2, 2]}
    # a flip would change the corner
    result = train(classify(epochs=60, lr=1e-2, augment={}, model=plain), RunFolder(tmp_path / "run"))
    assert result["test"]["accuracy"] > 0.9
    assert json.loads((tmp_path / "run/result.json").read_text())["sha256"] == result["sha256"]
    masks = train(segment("linear", epochs=40, lr=2e-2), RunFolder(tmp_path / "masks"))
    assert masks["test"]["miou"] > 0.3  # background alone is 0.15


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    first = train(classify(), RunFolder(tmp_path / "run"))
    before = (tmp_path / "run/last.safetensors").stat().st_mtime_ns
    assert train(classify(), RunFolder(tmp_path / "run")) == first
    assert (tmp_path / "run/last.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("job", [classify(), segment()], ids=["classify", "segment"])
def test_a_batch_in_pieces_is_the_batch(job, tmp_path):
    """Up to rounding, without dropout, whose draws differ, and without batch norms, whose statistics do."""
    for name, pieces in (("one", 1), ("four", 4)):
        model = {"embed_dim": 12, "depth": 1, "num_heads": 3}
        own = Recipe(**{**vars(job.recipe), "accumulate": pieces, "model": model, "optimiser": "sgd"})
        changed = {**vars(job), "recipe": own}
        if job.task == "classify":
            changed["model"] = "vit-tiny"
        train(Job(**changed), RunFolder(tmp_path / name))
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    assert not same(one, four)
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_out_the_batches_of_one(world):
    data, own = squares(40, 0), recipe(mix={"mixup": 0.5}, repeats=3)
    whole = list(Loader(data, own, seed=5).batches(2, start=1))
    shares = [list(Loader(data, own, seed=5, rank=rank, world=world).batches(2, start=1)) for rank in range(world)]
    for number, batch in enumerate(whole):
        mine = [share[number] for share in shares]
        assert torch.equal(torch.cat([each.images for each in mine]), batch.images)
        assert torch.equal(torch.cat([each.targets for each in mine]), batch.targets)
        assert torch.equal(torch.cat([each.partners[0] for each in mine]), batch.partners[0])
        assert all(torch.equal(each.uniforms, batch.uniforms) for each in mine)
        assert torch.equal(batch.partners[1], batch.targets.flip(0))  # as far from the end
    assert len(whole) == len(data) // own.batch - 1


def test_every_image_comes_once_an_epoch_and_orders_differ():
    loader = Loader(squares(48, 0), recipe(augment={}), seed=0)
    orders = [loader.order(epoch).tolist() for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(48))
    assert orders[0] != orders[1]
    thrice = Loader(squares(48, 0), recipe(repeats=3), seed=0).order(0).tolist()
    assert thrice[0] == thrice[1] == thrice[2]
    assert len(thrice) == 48
    assert len(set(thrice)) == 16


def test_reading_processes_change_nothing():
    data = squares(48, 0)
    here, there = (list(Loader(data, recipe(workers=workers), seed=3).batches(1)) for workers in (0, 2))
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in zip(here, there, strict=True)
    )


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a batch of 12 is more than the 8 images of squares 0"):
        Loader(squares(8, 0), recipe())
    with pytest.raises(ValueError, match="a batch of 12 cannot be shared equally by 5 processes"):
        Loader(squares(48, 0), recipe(), world=5)


def test_a_loss_that_diverges_stops_and_leaves_the_checkpoint(tmp_path):
    job = classify(lr=1e30, optimiser="sgd", save_every=1, epochs=20, weight_decay=0.0)
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+ .*is intact\. Lower lr"):
        train(job, RunFolder(tmp_path / "run"))
    state, position = read_training(tmp_path / "run/last.safetensors")
    assert position["step"] >= 1
    assert state


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch):
    """As after a gradient that overflows under a loss that does not."""
    folder = RunFolder(tmp_path / "run")
    train(classify(save_every=1), folder, stop_after=2)
    before = folder.state.read_bytes()

    def poison(model, limit):
        for p in model.parameters():
            p.grad.fill_(float("nan"))

    monkeypatch.setattr(trainer, "clip_gradients_", poison)
    folder.path.joinpath("config.json").unlink()
    job = classify(save_every=1, clip=1.0)
    folder.path.joinpath("config.json").write_text(json.dumps({"job": job.to_dict(), "environment": {}}))
    with pytest.raises(Diverged, match=r"weights are no numbers after step 3\. .* is intact"):
        train(job, folder)
    assert folder.state.read_bytes() == before


def test_a_class_out_of_range_is_named_when_it_is_met(tmp_path):
    """Data sets in memory are checked as they are made; those that are read image by image, as they are read."""
    parts = made_up(classify())
    targets = parts.train.targets.clone()
    parts.train.targets = targets
    targets[7] = 9
    with pytest.raises(ValueError, match="squares 0: labels must be 0 … 3, but 9 came"):
        trainer.train(classify(), RunFolder(tmp_path / "run"), QUIET, data=parts)


def test_a_full_disk_is_said_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    train(classify(save_every=1), folder, stop_after=2)
    before = folder.state.read_bytes()

    def full(tensors, place, metadata=None):
        Path(place).write_bytes(b"half")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"could not be written .*No space left.* The one before it is intact"):
        train(classify(save_every=1), folder)
    assert folder.state.read_bytes() == before
    assert not list(folder.path.glob("*.part"))


def test_what_is_written_whole_is_there_whole_or_not_at_all(tmp_path):
    place = tmp_path / "file"
    place.write_text("old")

    def torn():
        with written_whole(place) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        torn()
    assert place.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    with written_whole(place) as partial:
        partial.write_text("new")
    assert place.read_text() == "new"


def test_a_folder_of_another_run_is_not_overwritten(tmp_path):
    train(classify(), RunFolder(tmp_path / "run"), stop_after=1)
    with pytest.raises(ValueError, match=r"holds another run: recipe.train.lr is 0.005 there and 0.1 here"):
        train(classify(lr=0.1), RunFolder(tmp_path / "run"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train(classify(), RunFolder(tmp_path / "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "file")


def test_a_folder_in_which_a_kill_left_half_a_file_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json.123.part").write_text("{")
    train(classify(), RunFolder(tmp_path / "run"), stop_after=1)
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(classify(save_every=1), folder, stop_after=2)
    folder.state.write_bytes(folder.state.read_bytes()[:100])
    with pytest.raises(ValueError, match="is no checkpoint of a training"):
        train(classify(save_every=1), folder)


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(classify(), folder)
    whole = folder.lines()
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    assert folder.lines() == whole


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(tmp_path):
    result = {}
    for ema in (0.0, 0.999):
        result[ema] = train(classify(ema=ema), RunFolder(tmp_path / str(ema)))
    plain, averaged = (read_training(tmp_path / str(ema) / "last.safetensors")[0] for ema in (0.0, 0.999))
    assert all(torch.equal(plain[n], averaged[n]) for n in plain if n.startswith("model.") and "norms" not in n)
    saved = weights(tmp_path / "0.999")
    assert torch.equal(saved["head.weight"], averaged["average.head.weight"])
    assert not torch.equal(saved["head.weight"], averaged["model.head.weight"])
    assert result[0.0]["test"]["loss"] != result[0.999]["test"]["loss"]


def test_the_average_moves_by_its_share_at_every_step(tmp_path):
    job = classify(ema=0.9, save_every=1)
    train(job, RunFolder(tmp_path / "run"), stop_after=1)
    state, _ = read_training(tmp_path / "run/last.safetensors")
    first = trainer.build(job, made_up(job)).state_dict()["head.weight"]
    wanted = 0.9 * first + 0.1 * state["model.head.weight"]
    torch.testing.assert_close(state["average.head.weight"], wanted)
    assert (state["model.head.weight"] - first).abs().max() > 1e-3


def test_the_rate_reduction_in_the_loss_lowers_it(tmp_path):
    """Measured on what it is made of, after training with and without it."""
    from unrolling.models import load
    from unrolling.training.loader import normalise
    from unrolling.training.regularise import SparseRate

    found = {}
    data = squares(20, 1)
    for weight in (0.0, 10.0):
        train(classify(epochs=10, regularise=weight), RunFolder(tmp_path / str(weight)))
        model = load(tmp_path / str(weight) / "model").eval()
        with torch.no_grad(), SparseRate(model) as rate:
            model(normalise(data.images, data))
        found[weight] = float(rate.value())
    assert found[10.0] < found[0.0] - 0.01
    with pytest.raises(ValueError, match="neither --compile nor fsdp"):
        train(classify(regularise=1.0), RunFolder(tmp_path / "compiled"), Parallel(compiled=True))
    with pytest.raises(ValueError, match="has no white-box blocks"):
        SparseRate(torch.nn.Linear(2, 2))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it compiles
def test_a_compiled_network_trains_to_the_same_numbers(tmp_path):
    plain = {"embed_dim": 12, "depth": 1, "num_heads": 3, "representatives": [2, 2]}
    exact = train(classify(model=plain), RunFolder(tmp_path / "eager"))
    fast = train(classify(model=plain), RunFolder(tmp_path / "compiled"), Parallel(compiled=True, quiet=True))
    assert fast["test"]["loss"] == pytest.approx(exact["test"]["loss"], rel=1e-3)


def test_autocast_trains_too(tmp_path):
    exact = train(classify(), RunFolder(tmp_path / "float32"))
    half = train(classify(precision="bfloat16"), RunFolder(tmp_path / "bfloat16"))
    assert half["test"]["loss"] == pytest.approx(exact["test"]["loss"], rel=0.05)
    assert half["test"]["loss"] != exact["test"]["loss"]


MAIN = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training
from unrolling import sharding
from unrolling.training import trainer
from unrolling.training.run import RunFolder
job = {{"classify": test_training.classify, "segment": test_training.segment}}[sys.argv[1]](**eval(sys.argv[4]))
def go():
    import os
    mesh = sharding.start() if "RANK" in os.environ else None
    parallel = trainer.Parallel(way=sys.argv[3], mesh=mesh, quiet=True)
    test_training.train(job, RunFolder(sys.argv[2]), parallel)
    return mesh is not None
if go():
    sharding.finish()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    place = tmp_path_factory.mktemp("script") / "main.py"
    place.write_text(MAIN.format(tests=str(Path(__file__).parent)))
    return place


def run(script, processes, *arguments):
    command = [sys.executable, str(script), *map(str, arguments)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("task", "way"), [("classify", "ddp"), ("segment", "fsdp")])
def test_two_processes_train_as_one_on_the_same_batches(task, way, script, tmp_path):
    """Batch norms included; dropout left out, whose draws are each process's own. Then one goes on where two stopped."""
    changes = {"optimiser": "sgd", "accumulate": 2, "epochs": 2, "clip": 0.3}
    if task == "classify":
        model = {"embed_dim": 12, "depth": 1, "num_heads": 3, "representatives": [2, 2]}
        changes |= {"model": model, "mix": {"mixup": 0.3}, "accumulate": 1}
    run(script, 2, task, tmp_path / "two", way, repr(changes))
    job = {"classify": classify, "segment": segment}[task](**changes)
    train(job, RunFolder(tmp_path / "one"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    lines = zip(numbers(tmp_path / "one"), numbers(tmp_path / "two"), strict=True)
    assert all(
        a["step"] == b["step"] and a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-4) for a, b in lines
    )
    metric = "miou" if task == "segment" else "accuracy"
    results = [json.loads((tmp_path / name / "result.json").read_text())["test"] for name in ("one", "two")]
    assert results[0][metric] == pytest.approx(results[1][metric], abs=0.03)
    assert results[0].get("images") == results[1].get("images")


def test_a_run_that_was_killed_goes_on_to_the_same_numbers(script, tmp_path):
    changes = {"epochs": 40, "save_every": 1}
    train(classify(**changes), RunFolder(tmp_path / "whole"))
    torn, kills = RunFolder(tmp_path / "torn"), 0
    for _ in range(2):
        before = torn.state.stat().st_mtime_ns if torn.state.is_file() else 0
        command = [sys.executable, str(script), "classify", str(torn.path), "ddp", repr(changes)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.time() + 120
        while process.poll() is None and time.time() < limit:
            if torn.state.is_file() and torn.state.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    train(classify(**changes), torn)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "torn"))
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "torn")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_a_gpu_is_training_on_a_cpu_up_to_rounding(precision, tmp_path):
    plain = {"embed_dim": 12, "depth": 1, "num_heads": 3, "representatives": [2, 2]}
    for name, job in (
        ("classify", classify(model=plain, precision=precision)),
        ("segment", segment(precision=precision)),
    ):
        found = []
        for device in ("cpu", "cuda"):
            result = train(job, RunFolder(tmp_path / f"{name}-{device}"), Parallel(device, quiet=True))
            found.append(RunFolder(tmp_path / f"{name}-{device}").lines()[0]["loss"])
            assert result["test"]
        assert found[0] == pytest.approx(found[1], rel=1e-3 if precision == "float32" else 3e-2)
    folder = RunFolder(tmp_path / "torn")
    train(classify(model=plain), folder, Parallel("cuda", quiet=True), stop_after=5)
    assert train(classify(model=plain), folder, Parallel("cuda", quiet=True))["steps"] == 12
