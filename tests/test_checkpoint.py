"""Checkpoints inspected: what is read, what is measured, what is refused; files are read without running them."""

import argparse
import html.parser
import json
import pickle
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from proofs_check.__main__ import main
from proofs_check.checkpoint import inspect, open_checkpoint, photograph_for
from proofs_check.checkpoint_page import page
from proofs_check.inputs import InputError
from unrolling import compat
from unrolling import models as m

D = torch.float64
FIELDS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
CONFIG = ["heads=3", "patch_size=8", "image_size=32", "dim_head=8"]


def cbt(**changes):
    return m.CBT(**{**FIELDS, "compat": "official", **changes})


@pytest.fixture
def released(tmp_path):
    """A file as the papers' code writes it: wrapped, with the prefix of data parallelism."""
    kind, state = compat.to_official(cbt())
    assert kind == "cbt"
    path = tmp_path / "cbt.pth.tar"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def run(*arguments):
    return main([*map(str, arguments)])


# --------------------------------------------------------------------------------------------------- what is measured


def test_a_tied_layer_breaks_no_tie():
    model = cbt(tied=True, compat=None).to(D)
    found = inspect(model, torch.randn(2, 3, 32, 32, dtype=D))
    assert found.ties == (None, None)
    assert found.verdict()[-1] == "No layer has an output matrix beside bases that it could be tied to."


def free(factors, turn=0.0):
    """A network whose output matrices are multiples of the bases, head by head, and ``turn`` of something else."""
    model = cbt().to(D).eval()
    with torch.no_grad():
        for block in model.blocks:
            layer = block.attention
            heads = layer.basis.unflatten(-1, (3, 8)) * torch.tensor(factors, dtype=D)[:, None]
            other = torch.randn_like(layer.basis)
            other = other / other.norm() * heads.norm()
            layer.output.weight.copy_((1 - turn) * heads.flatten(-2) + turn * other)
            nn.init.zeros_(layer.output.bias)
    return model


def test_multiples_of_the_bases_head_by_head_are_a_tie():
    found = inspect(free((0.5, 1.0, 2.0)), torch.randn(2, 3, 32, 32, dtype=D))
    for block, tie in zip(found.trace, found.ties, strict=True):
        assert tie.beside < 1e-12
        assert not tie.broken
        assert tie.along < 1
        assert tie.tied_cosine == pytest.approx(float(block.cosine.mean()))
    assert found.verdict()[-1] == "Every output matrix is a multiple of its bases, head by head: no tie is broken."


def test_a_free_matrix_is_told_with_its_share():
    found = inspect(free((1.0, 1.0, 1.0), turn=0.5), torch.randn(2, 3, 32, 32, dtype=D))
    assert all(tie.broken and 0.5 < tie.beside < 0.9 and 0.5 < tie.along < 0.9 for tie in found.ties)
    assert "2 of 2 output matrices break the tie" in " ".join(found.verdict())
    assert "block 0, block 1" in found.table()


def test_an_output_matrix_that_turns_the_update_round_is_told():
    model, x = free((1.0, 1.0, 1.0)), torch.randn(2, 3, 32, 32, dtype=D)
    layer, caught = model.blocks[1].attention, []
    with torch.no_grad():
        q = torch.linalg.qr(torch.randn(3, 24, 8, dtype=D)).Q.transpose(0, 1).flatten(-2)
        layer.basis.copy_(q)
        layer.output.weight.copy_(q)
        layer.output.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        model(x)
        # Along most coordinates of every head the matrix agrees with the bases, but not along the three that matter most.
        energy = caught[0].square().sum((0, 1)).unflatten(-1, (3, 8))
        turned = torch.ones(3, 8, dtype=D).scatter(-1, energy.topk(3).indices, -1.5)
        layer.output.weight.mul_(turned.flatten())
    found = inspect(model, x)
    tie, cosine = found.ties[1], float(found.trace[1].cosine.mean())
    assert tie.along > 0
    assert cosine * tie.tied_cosine < 0
    assert found.verdict()[-1] == (
        "There the free matrix turns the update to the other side of the descent direction:"
        f" block 1 ({cosine:+.2f}, tied {tie.tied_cosine:+.2f})."
    )


def test_the_spread_of_bases_is_that_of_their_gram_matrices():
    model = cbt().to(D)
    with torch.no_grad():
        for block in model.blocks:
            q = torch.linalg.qr(torch.randn(3, 24, 8, dtype=D)).Q.transpose(0, 1).flatten(-2)
            block.attention.basis.copy_(3 * q)
    x = torch.randn(1, 3, 32, 32, dtype=D)
    assert max(tie.spread for tie in inspect(model, x).ties) < 1e-12
    with torch.no_grad():
        model.blocks[0].attention.basis[:, 0] *= 2  # one column of eight: gram 36 beside 9, mean (36 + 63) / 8
    assert inspect(model, x).ties[0].spread == pytest.approx((36 - 99 / 8) / (99 / 8))


def test_a_layer_between_measured_and_trained_is_left_as_it_was():
    model = cbt().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inspect(model, torch.randn(1, 3, 32, 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.blocks[0].attention.output._forward_pre_hooks


# ----------------------------------------------------------------------------------------------------- what is opened


def test_released_files_saved_folders_and_single_files_are_opened(released, tmp_path):
    kind, model = open_checkpoint(released, config={"heads": 3, "patch_size": 8, "image_size": 32, "dim_head": 8})
    assert kind == "cbt"
    again = cbt()
    again.load_state_dict(model.state_dict())
    folder = again.save_pretrained(tmp_path / "own")
    x = torch.randn(1, 3, 32, 32)
    for place in (folder, folder / "model.safetensors"):
        kind, found = open_checkpoint(place)
        assert kind == "CBT"
        with torch.no_grad():
            torch.testing.assert_close(found.eval()(x), model.eval()(x))


def test_a_tensor_file_of_released_weights_is_no_saved_model(tmp_path):
    _, state = compat.to_official(cbt())
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    kind, _ = open_checkpoint(
        tmp_path / "w.safetensors", config={"heads": 3, "patch_size": 8, "image_size": 32, "dim_head": 8}
    )
    assert kind == "cbt"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


BROKEN = {
    "code.pth": (
        lambda path, mark: torch.save({"model": Bomb(mark)}, path),
        "could run code; refused, and nothing was",
    ),
    "old.pt": (lambda path, mark: path.write_bytes(pickle.dumps({"a": Bomb(mark)})), "refused|cannot be read"),
    "empty.pth": (lambda path, mark: path.write_bytes(b""), "the file is empty"),
    "torn.pth": (lambda path, mark: path.write_bytes(b"PK\x03\x04 torn"), "cannot be read as a checkpoint"),
    "zip.pth": (lambda path, mark: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"), "cannot be read"),
    "torn.safetensors": (lambda path, mark: path.write_bytes(b"12345678torn"), "cannot be read as safetensors"),
    "notes.txt": (lambda path, mark: path.write_text("x"), "checkpoints end in"),
    "list.pth": (lambda path, mark: torch.save([torch.zeros(2)], path), "holds a list, not a state dictionary"),
    "no_state.pth": (lambda path, mark: torch.save({"epoch": 3}, path), "holds no state dictionary under"),
    "strange.pth": (lambda path, mark: torch.save({"w": torch.zeros(2)}, path), "its keys are of no known network"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_checkpoint_are_refused_and_run_nothing(name, tmp_path, capsys):
    write, text = BROKEN[name]
    path, mark = tmp_path / name, tmp_path / "executed"
    write(path, mark)
    with pytest.raises(ValueError, match=text):
        open_checkpoint(path)
    assert not mark.exists()
    assert run("checkpoint", path, "--json", tmp_path / "out.json") == 2
    assert capsys.readouterr().err.startswith("proofs-check: ")
    assert not (tmp_path / "out.json").exists()
    assert not mark.exists()


def test_a_namespace_of_arguments_is_plain_data(tmp_path):
    _, state = compat.to_official(cbt())
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1, data="imagenet")}, tmp_path / "deit.pth")
    assert set(compat.load_checkpoint(tmp_path / "deit.pth")) == set(state)
    torch.save({"model": state, "args": argparse.Namespace(hook=Bomb(tmp_path / "executed"))}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="refused"):
        compat.load_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


def test_layers_and_what_does_not_fit_are_refused(released, tmp_path, capsys):
    layer = m.CBT(**FIELDS, compat="official").blocks[0].attention
    kind, state = compat.to_official(layer)
    torch.save(state, tmp_path / "layer.pth")
    with pytest.raises(ValueError, match="is one layer; networks are inspected: crate, cbt"):
        open_checkpoint(tmp_path / "layer.pth", kind, {"heads": 3})
    _, state = compat.to_official(m.CRATE(**FIELDS, compat="official"))
    torch.save(state, tmp_path / "crate.pth")
    with pytest.raises(ValueError, match=r"do not tell how many heads there are; pass heads=…"):
        open_checkpoint(tmp_path / "crate.pth")
    assert run("checkpoint", tmp_path / "crate.pth") == 2
    assert "pass heads=… or dim_head=…. Arguments follow --config: --config heads=6." in capsys.readouterr().err
    with pytest.raises(ValueError, match="no entry 'model_ema'; it has epoch, state_dict"):
        open_checkpoint(released, key="model_ema")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------------------------ what it sees


def test_the_photograph_is_the_middle_of_the_image_in_imagenet_colours(tmp_path):
    red = Image.new("RGB", (80, 40), (255, 0, 0))
    red.paste((0, 0, 255), (0, 0, 20, 40))  # a blue edge, which is not in the middle square
    red.save(tmp_path / "wide.png")
    x, call, note = photograph_for(cbt(), tmp_path / "wide.png")
    assert x.shape == (1, 3, 32, 32)
    assert call == {}
    assert note == "wide.png, its middle square at 32 × 32 pixels"
    want = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(x.mean((0, 2, 3)), want, atol=2e-2, rtol=0)
    assert x.std((2, 3)).max() < 0.1


def test_decoders_see_patches_as_wide_as_they_are():
    decoder = m.CBTDecoder(num_classes=3, embed_dim=24, patch_size=16, depth=1, num_heads=3, head_dim=8)
    x, call, note = photograph_for(decoder.to(D))
    assert (x.shape, x.dtype, call) == ((1, 256, 24), D, {"im_size": (256, 256)})
    assert note.startswith("patches of grace_hopper.jpg")
    assert x.square().mean() == pytest.approx(1)
    assert torch.equal(x, photograph_for(decoder)[0])
    assert len(inspect(decoder, x, **call).trace) == 1


def test_grey_networks_and_wrong_images(tmp_path):
    assert photograph_for(m.CRATE(**FIELDS, in_chans=1))[0].shape == (1, 1, 32, 32)
    with pytest.raises(InputError, match="takes 4 channels; a photograph has 3"):
        photograph_for(m.CRATE(**FIELDS, in_chans=4))
    with pytest.raises(InputError, match="no such file"):
        photograph_for(cbt(), tmp_path / "none.png")
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(InputError, match="not a readable image"):
        photograph_for(cbt(), tmp_path / "text.png")


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_writes_and_is_right(released, tmp_path, capsys):
    data, shown = tmp_path / "out.json", tmp_path / "page.html"
    assert run("checkpoint", released, "--config", *CONFIG, "--json", data, "--html", shown, "--epsilon", 0.3) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("cbt.pth.tar: cbt, ")
    out = json.loads(data.read_text())
    assert out["kind"] == "cbt"
    assert out["trace"]["epsilon"] == 0.3
    model = open_checkpoint(released, config={"heads": 3, "patch_size": 8, "image_size": 32, "dim_head": 8})[1]
    x, _, _ = photograph_for(model)
    for record, block, line in zip(
        model.trace(x, epsilon=0.3), out["trace"]["blocks"], printed.split("\n")[2:], strict=False
    ):
        assert block["cosine"] == pytest.approx(float(record.cosine.mean()))
        assert f"{float(record.cosine.mean()):+.3f}" in line
        assert f"{float(record.decrease.mean()):+.4g}" in line
    assert [tie["broken"] for tie in out["ties"]] == [True, True]
    assert all(sentence in printed for sentence in out["verdict"])
    text = shown.read_text()
    assert "<svg" in text
    assert text.count('<th scope="row">') == 2
    for fetched in ("<script", "<link", "<img", "src=", "@import", "url(http"):
        assert fetched not in text


def test_the_page_escapes_and_closes_what_it_opens():
    found = inspect(cbt(), torch.randn(1, 3, 32, 32), kind="cbt", name="<b>&.pth", source="a<i>")
    text = page(found)
    assert "<b>&" not in text
    assert "a<i>" not in text
    assert "&lt;b&gt;&amp;.pth" in text
    stack = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br"):
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Checker().feed(text)
    assert not stack


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--config", "heads"], "--config takes NAME=VALUE, but got 'heads'"),
        (["--config", "heads=3", "colour=blue"], "colour"),
        (["--kind", "cbtt"], "nearest: 'cbt'|cbt"),
        (["--json", "nowhere/out.json"], "the folder nowhere does not exist"),
        (["--html", "."], "is a folder; give a file name"),
    ],
)
def test_mistakes_in_the_command_are_named(released, options, text, capsys):
    assert run("checkpoint", released, *options) == 2
    found = capsys.readouterr().err
    assert any(part in found for part in text.split("|")), found
    assert "Traceback" not in found


def test_an_epsilon_that_is_none_is_refused(released, capsys):
    with pytest.raises(SystemExit):
        run("checkpoint", released, "--epsilon", "-1")
    assert "must be positive and finite, but is -1" in capsys.readouterr().err
