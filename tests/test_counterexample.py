"""Counterexamples on disk and as snippets: saved, replayed one by one and by the folder, and what becomes of them."""

import dataclasses
import io
import json
import time

import numpy as np
import pytest

from proofs_check import Campaign, Case, Mutant, find, run_claim
from proofs_check import claims as registry
from proofs_check import counterexample as disk
from proofs_check import replay_command as command
from proofs_check.__main__ import main
from proofs_check.counterexample import Replayed, file_name, replay, save_all
from proofs_check.inputs import TokenInput
from proofs_check.run import WRITTEN_OUT, snippet

GRADIENT = "coding_rate.gradient"
REFUTED = "mssa.sign.minus_descends"


@pytest.fixture
def changed(monkeypatch):
    """Replace the subject of a claim by one of its mutants, or its mutants, in what ``find`` gives."""

    def change(id, mutant=None, **fields):
        claim = find(id)
        fields |= {"subject": claim.mutant(mutant).subject} if mutant else {}
        made = dataclasses.replace(claim, **fields)
        others = tuple(made if one.id == id else one for one in registry.CLAIMS)
        monkeypatch.setattr(registry, "CLAIMS", others)
        return made

    return change


FEW = Campaign(cases=2)


def saved(folder, claim, campaign=FEW):
    verdict = run_claim(claim, campaign)
    save_all([verdict], folder)
    return verdict


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_folder_of_what_was_recorded_is_sound(tmp_path, capsys):
    saved(tmp_path, find(GRADIENT))
    saved(tmp_path, find(REFUTED))
    assert main(["replay", str(tmp_path)]) == 0
    *said, total = lines(capsys)
    names = sorted(path.name for path in tmp_path.glob("*.npz"))
    assert len(said) == len(names) == 1 + len(find(GRADIENT).mutants)
    assert said[0].split("  ")[0] == "rejected, as recorded"
    assert f"{GRADIENT}, wrong version “1 % longer”" in said[0]
    assert said[-1] == f"refuted, as recorded    {REFUTED}"
    assert total == f"{len(names)} files: {len(names) - 1} rejected, as recorded, 1 refuted, as recorded."


def test_a_failure_still_fails_until_it_is_repaired(tmp_path, capsys, changed, monkeypatch):
    with monkeypatch.context():
        saved(tmp_path, changed(GRADIENT, "half"))
        assert [path.name for path in tmp_path.glob("*")] == [f"{GRADIENT}.npz"]
        for argument in (tmp_path, tmp_path / f"{GRADIENT}.npz"):
            assert main(["replay", str(argument)]) == 1
            said = capsys.readouterr().out
            assert "STILL FAILS" in said
            assert "error 0.5, tolerance" in said
    monkeypatch.undo()
    assert main(["replay", str(tmp_path)]) == 0
    assert lines(capsys)[0] == f"now holds               {GRADIENT}"


def test_a_mutant_that_passes_now_is_no_success(tmp_path, capsys, changed):
    saved(tmp_path, find(GRADIENT))
    for path in tmp_path.glob("*.npz"):
        if "--half" not in path.name:
            path.unlink()
    right = find(GRADIENT).subject
    changed(GRADIENT, mutants=(Mutant("half", right),))
    assert main(["replay", str(tmp_path)]) == 1
    assert lines(capsys)[0].startswith(f"NOT REJECTED any more   {GRADIENT}, wrong version “half”: ")


def test_a_counterexample_that_refutes_nothing_any_more_is_no_success(tmp_path, capsys, changed):
    saved(tmp_path, find(REFUTED))
    claim = find(REFUTED)
    changed(REFUTED, measure=lambda subject, case: dataclasses.replace(claim.measure(subject, case), truth=True))
    assert main(["replay", str(tmp_path)]) == 1
    assert lines(capsys)[0] == f"NOT REFUTED any more    {REFUTED}"


def test_files_that_are_not_ours_are_named_and_do_not_stop_the_rest(tmp_path, capsys):
    saved(tmp_path, find(REFUTED))
    np.savez(tmp_path / "a_other.npz", a=np.eye(2))
    (tmp_path / "b_text.npz").write_text("no archive")
    np.savez(tmp_path / "c_pickled.npz", meta=np.array([{}], dtype=object), tokens=np.eye(2))
    with np.load(tmp_path / f"{REFUTED}.npz") as archive:
        arrays = dict(archive)
    entry = json.loads(str(arrays["meta"]))
    for name, change in (
        ("d_gone", {"claim": "mssa.gone"}),
        ("e_mutant", {"mutant": "gone"}),
        ("f_case", {"case": entry["case"] | {"tokens": -3}}),
    ):
        np.savez(tmp_path / f"{name}.npz", **(arrays | {"meta": np.array(json.dumps(entry | change))}))
    (tmp_path / "notes.txt").write_text("not looked at")
    assert main(["replay", str(tmp_path)]) == 1
    *said, total = lines(capsys)
    assert [line[:22].strip() for line in said] == ["CANNOT BE READ"] * 6 + ["refuted, as recorded"]
    assert [line.split()[3].rstrip(":") for line in said[:6]] == [
        f"{name}.npz" for name in ("a_other", "b_text", "c_pickled", "d_gone", "e_mutant", "f_case")
    ]
    for line, why in zip(
        said,
        (
            "not a counterexample of",
            "not a counterexample of",
            "allow_pickle=False",
            "Nearest: mssa",
            "no mutant",
            "KeyError",
        ),
        strict=False,
    ):
        assert why in line
    assert total == "7 files: 6 CANNOT BE READ, 1 refuted, as recorded."


def test_a_file_that_was_named_and_cannot_be_read_is_a_wrong_call_after_the_rest(tmp_path, capsys):
    saved(tmp_path, find(REFUTED))
    assert main(["replay", str(tmp_path / "nothing.npz"), str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"proofs-check: {tmp_path / 'nothing.npz'}: no such file.\n"
    assert "refuted, as recorded" in captured.out


def test_an_empty_folder_says_how_to_fill_it(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 2
    assert f"holds no .npz files; `proofs-check run --counterexamples {tmp_path}` saves them" in capsys.readouterr().err


def test_what_check_descent_saved_is_told_apart(tmp_path):
    np.savez(tmp_path / "x.npz", check_descent=np.array("{}"), x=np.eye(2))
    assert "saved by check_descent" in Replayed.of(tmp_path / "x.npz").why


def test_files_without_a_status_are_understood(tmp_path):
    """As version 0.1 wrote them."""
    saved(tmp_path, find(REFUTED))
    saved(tmp_path, find(GRADIENT))
    for path in tmp_path.glob("*.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        entry = json.loads(str(arrays["meta"]))
        del entry["status"]
        np.savez(path, **(arrays | {"meta": np.array(json.dumps(entry))}))
    assert {found.outcome for found in disk.replay_all(disk.files_in(tmp_path))} == {"refuted", "rejected"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("delay", "seen"), [(0.0, True), (command.DELAY, False)])
def test_a_bar_appears_only_where_it_takes_long(delay, seen, tmp_path, monkeypatch, capsys):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", a=np.eye(2))
    monkeypatch.setattr(command, "DELAY", delay)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr(
        command, "replay_all", lambda files: (time.sleep(0.15) or Replayed(path, "now holds", "a.b") for path in files)
    )
    assert main(["replay", str(tmp_path)]) == 0
    assert ("/3 [" in terminal.getvalue()) is seen
    assert lines(capsys)[:3] == ["now holds               a.b"] * 3


def test_a_run_saves_its_counterexamples_in_a_folder(tmp_path, capsys):
    folder = tmp_path / "new" / "cases"
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).standard_normal((12, 6)))
    call = ["run", "coding_rate.cost", REFUTED, "--cases", "2", "--jobs", "1", "--tokens", str(tmp_path / "mine.npy")]
    assert main([*call, "--counterexamples", str(folder)]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(
        [file_name(REFUTED), *(file_name("coding_rate.cost", m.name) for m in find("coding_rate.cost").mutants)]
    )
    assert f"counterexamples: {len(names)} in {folder} (proofs-check replay {folder})" in capsys.readouterr().out
    assert main(["replay", str(folder)]) == 0


def test_a_folder_that_cannot_be_made_is_told_before_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", "coding_rate.cost", "--counterexamples", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert "is no folder and cannot be made one" in captured.err
    assert "coding_rate.cost" not in captured.out


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    verdict = saved(tmp_path, find(REFUTED))
    before = (tmp_path / f"{REFUTED}.npz").read_bytes()

    def half(file, **arrays):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        save_all([verdict], tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_a_file_takes_its_place_whole(tmp_path, monkeypatch):
    verdict = saved(tmp_path, find(REFUTED))
    before = (tmp_path / f"{REFUTED}.npz").read_bytes()
    monkeypatch.setattr(disk.os, "replace", lambda partial, path: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_all([verdict], tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def given(count, dim):
    tokens = np.random.default_rng(0).standard_normal((count, dim))
    return TokenInput("tokens", "mine.npy", tokens, (1, count))


def test_small_given_tokens_are_written_out_to_the_last_digit(changed, capsys):
    claim = changed(GRADIENT, "half", structured=())
    verdict = run_claim(claim, Campaign(cases=0, source=given(4, 3)))
    assert verdict.counterexample_case.given.size <= WRITTEN_OUT
    space = {}
    exec(verdict.counterexample, space)
    assert np.array_equal(space["tokens"], verdict.counterexample_case.given)
    assert capsys.readouterr().out == f"{claim.judge(verdict.counterexample_case)}\n"
    exec(snippet(claim, verdict.counterexample_case, "1 % longer"), {})
    assert capsys.readouterr().out == f"{claim.judge(verdict.counterexample_case, '1 % longer')}\n"


def test_larger_ones_are_read_from_the_file_beside(changed, tmp_path, capsys, monkeypatch):
    claim = changed(GRADIENT, "half", structured=())
    verdict = saved(tmp_path, claim, Campaign(cases=0, source=given(40, 3)))
    assert f"# on 40 × 3 given tokens, which are saved in {GRADIENT}.npz" in verdict.counterexample
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(verdict.counterexample, space)
    assert np.array_equal(space["case"].given, verdict.counterexample_case.given)
    assert capsys.readouterr().out == f"{claim.judge(verdict.counterexample_case)}\n"


def test_the_longest_that_is_written_out(changed):
    claim = find(GRADIENT)
    fits, beyond = (Case().with_tokens(np.ones((n, 3))) for n in (WRITTEN_OUT // 3, WRITTEN_OUT // 3 + 1))
    assert "np.array" in snippet(claim, fits)
    assert "replay" in snippet(claim, beyond)


def test_a_plain_case_with_given_tokens_is_python():
    case = dataclasses.replace(Case(), given=np.ones((5, 4)))
    assert "claim.judge(Case(given=tokens))" in snippet(find(GRADIENT), case)


def test_replay_gives_back_claim_mutant_case_and_measurement(tmp_path):
    saved(tmp_path, find(GRADIENT))
    claim, mutant, case, measured = replay(tmp_path / file_name(GRADIENT, "half"))
    assert (claim.id, mutant) == (GRADIENT, "half")
    assert measured == claim.judge(case, "half")
    assert not measured.holds
