"""Bad input: what is drawn is in fuzz_public. FUZZ_MINUTES=60 pytest -m long tests/test_fuzz.py draws for an hour."""

import functools
import gzip
import io
import os
import pickle
import random
import struct
import time
import zipfile
import zlib

import fuzz_public as fuzz
import numpy as np
import pytest
import torch
from fuzz_values import draw, wrong
from torch import nn

import objectives as o
import proofs_check as p
import unrolling as u
from proofs_check.__main__ import main as proofs_check_main
from proofs_check.counterexample import replay
from unrolling import models
from unrolling.adapt import adapt
from unrolling.compat import from_official, load_checkpoint
from unrolling.knob import knob
from unrolling.plots import plot_reductions, plot_trace
from unrolling.training.command import main as unroll_main

SMALL = {"embed_dim": 12, "depth": 1, "num_heads": 2, "img_size": 32, "num_classes": 3}

# (subject, argument, what it was replaced by) -> why, as fuzz_public.KNOWN, for the calls below.
KNOWN: dict[tuple[str, str, str], str] = {}


def encoder():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()


@functools.cache
def traced():
    torch.manual_seed(0)
    return models.create("crate-tiny", **SMALL).eval().trace(torch.zeros(1, 3, 32, 32))


def whole_calls():
    """Right calls of what is slower than an objective or a layer."""

    def created(name, x, **changes):
        torch.manual_seed(0)
        return models.create(name, **changes).eval()(x).detach()

    image = lambda: torch.zeros(1, 3, 32, 32)  # noqa: E731
    crate = {"name": lambda: "crate-tiny", "x": image} | {key: fuzz._value(value) for key, value in SMALL.items()}
    checks = {"cases": fuzz._value(2), "seed": fuzz._value(0)}
    claim = p.find("coding_rate.value")
    found = fuzz._functions(
        (created, crate),
        (adapt, {"model": encoder, "attention": fuzz._value("mita"), "keys_per_expert": fuzz._value(3)}),
        (from_official, {"kind": fuzz._value("crate"), "state_dict": lambda: {"a": torch.zeros(1)}}),
        (load_checkpoint, {"path": fuzz._value("missing.pth"), "key": fuzz._value(None)}),
        (plot_trace, {"trace": traced, "path": fuzz._value(None)}),
        (plot_reductions, {"trace": traced, "path": fuzz._value(None)}),
        (knob, {"draw": fuzz._value(lambda value: None), "name": fuzz._value("ε"), "values": fuzz._value([1, 2])}),
        (p.check_layer, {"layer": lambda: u.MSSA(4, 2), "x": lambda: draw(3, 4)} | checks),
        (p.check_objective, {"objective": lambda: o.CodingRate(), "x": lambda: draw(3, 4)} | checks),
        (
            p.check_descent,
            {
                "forward": fuzz._value(lambda x: 0.5 * x),
                "objective": fuzz._value(lambda x: 0.5 * x.square().sum((-2, -1))),
                "step_size": fuzz._value(0.5),
                "example_input": lambda: draw(3, 4),
            }
            | checks,
        ),
        (p.find, {"id": fuzz._value("coding_rate.value")}),
        (p.run_claim, {"claim": fuzz._value(claim), "campaign": fuzz._value(p.Campaign(cases=1, mutants=False))}),
        (p.load_counterexample, {"path": fuzz._value("missing.npz")}),
        (replay, {"path": fuzz._value("missing.npz")}),
    )
    for subject in found:
        words = {"created": ("create", "crate-tiny", "Config", "CRATE"), "knob": ("knob",), "from_official": ("crate",)}
        # A path that is no path, and a file that is missing, are named by what was given.
        more = ("missing", "PathLike", "no such file", "is a folder", "trace", "claim", "MSSA")
        yield fuzz.Subject(subject.name, subject.call, subject.good, (*words.get(subject.name, ()), *more))


def test_right_calls_are_right():
    for subject in fuzz.subjects():
        answer = subject.call(**subject.good())
        assert fuzz._finite(answer), subject.name


def test_one_argument_gone_wrong_gets_an_answer_or_a_message():
    found, calls = [], 0
    for subject, changed in fuzz.single():
        calls += 1
        ((argument, (label, _)),) = changed.items()
        said = fuzz.finding(subject, changed)
        if said and not fuzz.known(subject.name, argument, label):
            found.append(f"{subject.name}({argument}={label}): {said}")
    assert calls > 10_000
    assert not found, "\n".join(found[:40])


def test_known_findings_are_still_there():
    """An entry that nothing needs any more is to be taken out."""
    needed = set()
    for subject, changed in fuzz.single():
        ((argument, (label, _)),) = changed.items()
        if fuzz.known(subject.name, argument, label) and fuzz.finding(subject, changed):
            needed |= {entry for entry in fuzz.KNOWN if fuzz.matches(entry, subject.name, argument, label)}
    assert set(fuzz.KNOWN) == needed


@pytest.mark.long
def test_several_arguments_gone_wrong_for_long():
    minutes = float(os.environ.get("FUZZ_MINUTES", "60"))
    seed = int(os.environ.get("FUZZ_SEED", str(time.time_ns() % 10**9)))
    found = drawn(random.Random(seed), time.monotonic() + 60 * minutes, 10**12)
    assert not found, f"FUZZ_SEED={seed}\n" + "\n".join(found[:60])


def test_several_arguments_gone_wrong():
    found = drawn(random.Random(0), time.monotonic() + 60, 3000)
    assert not found, "\n".join(found[:40])


def drawn(generator, until, count):
    found = []
    for number, (subject, changed) in enumerate(fuzz.several(generator)):
        if time.monotonic() > until or number >= count:
            return found
        said = fuzz.finding(subject, changed)
        if said and fuzz.SINGULAR in said and subject.name in fuzz.SINGULAR_IN:
            continue
        if said and not any(fuzz.known(subject.name, name, label) for name, (label, _) in changed.items()):
            labels = {name: label for name, (label, _) in changed.items()}
            found.append(f"{subject.name}{labels}: {said}")
    return found


def test_whole_calls_get_an_answer_or_a_message(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTEBOOK_STATIC", "1")
    monkeypatch.chdir(tmp_path)  # a path such as "3" is written to
    found = []
    for subject in whole_calls():
        for argument, value in subject.good().items():
            for label, bad in wrong(value):
                said = fuzz.finding(subject, {argument: (label, bad)})
                keys = ((subject.name, argument, label), (subject.name, argument, "*"), (subject.name, "*", "*"))
                if said and not any(key in KNOWN for key in (*keys, ("*", "*", label))):
                    found.append(f"{subject.name}({argument}={label}): {said}")
    assert not found, "\n".join(found[:60])


class Executes:
    def __reduce__(self):
        return os.mkdir, (self.place,)


def bad_files(folder):
    """Names and paths of files that are not what they should be, with the suffix left to the caller."""
    pickled = Executes()
    pickled.place = str(folder / "executed")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("meta.npy", b"\0" * (1 << 24))  # 16 MiB of zeros in 16 KiB
    whole = io.BytesIO()
    np.savez(whole, meta=np.array("{}"), tokens=np.zeros((2, 2)))
    objects = io.BytesIO()
    np.savez(objects, meta=np.array([pickled], dtype=object))
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, saved)
    length = struct.pack("<Q", 1 << 60)
    return {
        "empty": b"",
        "noise": bytes(range(256)) * 4,
        "text": "ε is no number\n".encode(),
        "truncated": whole.getvalue()[:-40],
        "cut": saved.getvalue()[: len(saved.getvalue()) // 2],
        "other": whole.getvalue(),
        "bomb": archive.getvalue(),
        "compressed": gzip.compress(b"\0" * 4096),
        "pickle": pickle.dumps(pickled),
        "objects": objects.getvalue(),
        "header": length + b"{",
        "json": b"[" * 20_000,
    }


READERS = {
    ".pth": load_checkpoint,
    ".safetensors": load_checkpoint,
    ".npz": replay,
    ".NPZ": p.load_counterexample,
    ".safetensors ": models.load,
}


@pytest.mark.parametrize("suffix", READERS)
def test_bad_files_are_refused_and_run_nothing(suffix, tmp_path):
    read = READERS[suffix]
    for name, content in bad_files(tmp_path).items():
        path = tmp_path / f"{name}{suffix.strip().lower()}"
        path.write_bytes(content)
        if (name, suffix) == ("other", ".pth"):
            continue
        with pytest.raises((ValueError, OSError), match=name):
            read(path)
    folder = tmp_path / f"folder{suffix.strip()}"
    folder.mkdir()
    for path in (folder, tmp_path / f"absent{suffix.strip()}"):
        with pytest.raises((ValueError, OSError), match=path.stem):
            read(path)
    assert not (tmp_path / "executed").exists()


def image_bomb(side=60_000):
    """A PNG that says it has 3.6e9 pixels, in some bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


COMMANDS = [
    ["run", "no.such.claim"],
    ["run", "coding_rate.value", "--cases", "-1"],
    ["run", "coding_rate.value", "--cases", "1e99"],
    ["run", "coding_rate.value", "--seed", "x"],
    ["run", "coding_rate.value", "--dtype", "float8"],
    ["run", "coding_rate.value", "--cases", "1", "--input", "FILE"],
    ["run", "coding_rate.value", "--cases", "1", "--html", "FOLDER"],
    ["run", "coding_rate.value", "--cases", "1", "--json", "FOLDER/none/x.json"],
    ["show", "no.such.claim"],
    ["list", "--nothing"],
    ["replay", "FILE"],
    ["replay", "FOLDER"],
    ["replay", "FOLDER/none"],
    ["checkpoint", "FILE"],
    ["checkpoint", "FOLDER"],
    ["certify", "no.such.claim"],
    ["certify", "coding_rate.value", "--input", "FILE"],
]
UNROLL = [
    ["train"],
    ["train", "no-such-recipe"],
    ["train", "FILE"],
    ["evaluate", "FILE"],
    ["evaluate", "FOLDER"],
    ["compare", "FILE", "--html", "FOLDER/page.html"],
    ["keep", "FOLDER", "--into", "FOLDER/into"],
    ["data", "no-such-data"],
    ["data", "imagefolder", "FILE"],
    ["recipes", "no-such-recipe"],
    ["recipes", "FILE"],
    ["experiment", "no-such-experiment"],
    ["results", "FILE"],
]


@pytest.mark.parametrize("content", ["empty", "noise", "image bomb", "pickle"])
@pytest.mark.parametrize("command", ["proofs-check", "unroll"])
def test_commands_say_in_a_line_what_is_wrong(command, content, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "given.png", tmp_path / "folder"
    file.write_bytes(image_bomb() if content == "image bomb" else bad_files(tmp_path)[content])
    folder.mkdir()
    found = []
    for words in COMMANDS if command == "proofs-check" else UNROLL:
        arguments = [word.replace("FILE", str(file)).replace("FOLDER", str(folder)) for word in words]
        main = proofs_check_main if command == "proofs-check" else unroll_main
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        try:
            status = main(arguments)
        except SystemExit as left:
            status = left.code
        except BaseException as problem:
            status = f"{type(problem).__name__}: {problem}"
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.strip()]
        if words == ["recipes", "FILE"] and content == "empty" and status == 0:
            continue  # an empty TOML file is a recipe: all defaults
        if status not in (1, 2) or not lines or "Traceback" in said:
            found.append(f"{words}: status {status}, said {said[-200:]!r}")
        elif "error: " not in lines[-1] and len(lines) > 6:
            found.append(f"{words}: {len(lines)} lines")
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        if after != before:
            found.append(f"{words}: left {sorted(str(path) for path in set(after) ^ set(before))}")
    assert not found, "\n".join(found)
