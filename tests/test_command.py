import json
import subprocess
import sys

import numpy as np
import pytest

from proofs_check.__main__ import main


def run(*arguments):
    return main([*map(str, arguments)])


def test_json_has_the_promised_form(tmp_path, capsys):
    target = tmp_path / "out.json"
    assert (
        run(
            "run",
            "coding_rate.gradient",
            "mssa.sign.minus_descends",
            "--cases",
            3,
            "--jobs",
            1,
            "--json",
            target,
        )
        == 0
    )
    out = json.loads(target.read_text())
    assert {
        "schema",
        "version",
        "environment",
        "seed",
        "profile",
        "seconds",
        "input",
        "claims",
        "summary",
    } <= set(out)
    assert out["schema"] == 1
    assert out["input"] | {"note": ""} == {
        "kind": "image",
        "name": "grace_hopper.jpg",
        "tokens": 1184,
        "dim": 24,
        "note": "",
    }
    wanted = {
        "id",
        "stem",
        "kind",
        "statement",
        "source",
        "status",
        "cases",
        "evidence",
        "worst_error",
        "tolerance",
    }
    wanted |= {"real_input_error", "seconds", "mutants", "counterexample"}
    gradient, refuted = out["claims"]
    assert wanted <= set(gradient)
    assert set(gradient["mutants"][0]) == {"name", "killed", "margin", "counterexample"}
    assert gradient["status"] == "holds"
    assert gradient["real_input_error"] < 1e-9
    assert refuted["status"] == "refuted"
    assert "witness" in refuted["counterexample"]
    counts = ("claims", "holds", "fails", "vacuous", "refuted", "measured", "mutants", "killed")
    assert set(counts) <= set(out["summary"])
    assert out["summary"]["killed"] == out["summary"]["mutants"] > 10
    assert "1 hold, 1 refuted" in capsys.readouterr().out


def test_the_report_and_its_counterexamples_replay(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run("run", "cbsa.cost", "coding_rate.descent", "--cases", 2, "--jobs", 1, "--html", page) == 0
    assert "cbsa.cost" in page.read_text()
    saved = sorted((tmp_path / "page").glob("*.npz"))
    assert len(saved) == 10
    assert run("replay", *saved) == 0
    assert "rejected, as recorded" in capsys.readouterr().out


def test_a_file_that_is_no_counterexample_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "other.npz", a=np.eye(2))
    assert run("replay", tmp_path / "other.npz") == 2
    assert "not a counterexample" in capsys.readouterr().err


def test_tokens_of_the_user(tmp_path, capsys):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).standard_normal((20, 7)))
    target = tmp_path / "out.json"
    assert (
        run(
            "run",
            "mssa.step.exact",
            "--cases",
            2,
            "--jobs",
            1,
            "--tokens",
            tmp_path / "mine.npy",
            "--json",
            target,
        )
        == 0
    )
    out = json.loads(target.read_text())
    assert out["input"]["kind"] == "tokens"
    assert (out["input"]["tokens"], out["input"]["dim"]) == (20, 7)
    assert out["claims"][0]["real_input_error"] is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "msa"], "Nearest: mssa"),
        (["run", "--image", "nowhere.jpg"], "no such file"),
        (["run", "--json", "no/such/folder/a.json"], "does not exist"),
        (["show", "cbsa.step.exactly"], "cbsa.step.exact"),
        (["replay", "nothing.npz"], "no such file"),
    ],
)
def test_wrong_calls_end_with_two_and_say_why(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run", "--cases", "0"], ["run", "--profile", "slow"], ["nonsense"]])
def test_argparse_errors_end_with_two(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_nothing_is_written_where_it_cannot_be(tmp_path, capsys):
    assert run("run", "cbsa.cost", "--cases", 1, "--jobs", 1, "--json", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


def test_list_and_show(capsys):
    assert main(["list"]) == 0
    assert "cbsa.step.softmax" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    assert {"id", "kind", "equation", "mutants"} <= set(json.loads(capsys.readouterr().out)[0])
    assert main(["show", "coding_rate.value"]) == 0
    out = capsys.readouterr().out
    assert "objectives/coding_rate.py:" in out
    assert "verdict   holds" in out


def test_a_failing_claim_ends_with_one(monkeypatch, capsys):
    import dataclasses

    import proofs_check.__main__ as command
    from proofs_check import find

    claim = find("coding_rate.gradient")
    wrong = dataclasses.replace(claim, subject=claim.mutant("sign flipped").subject)
    monkeypatch.setattr(command, "select", lambda names: (wrong,))
    assert run("run", "--cases", 2, "--jobs", 1) == 1
    out = capsys.readouterr().out
    assert "1 FAIL" in out
    assert "claim.judge(Case(tokens=1" in out


def test_processes_do_not_change_the_verdicts(tmp_path):
    outs = []
    for jobs in (1, 2):
        target = tmp_path / f"{jobs}.json"
        command = [
            sys.executable,
            "-m",
            "proofs_check",
            "run",
            "coding_rate.value",
            "cbsa.cost",
            "--cases",
            "3",
        ]
        subprocess.run([*command, "--jobs", str(jobs), "--json", str(target)], check=True, capture_output=True)
        claims = json.loads(target.read_text())["claims"]
        outs.append([{k: v for k, v in claim.items() if k != "seconds"} for claim in claims])
    assert outs[0] == outs[1]


def test_version():
    out = subprocess.run(
        [sys.executable, "-m", "proofs_check", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("proofs-check ")


def test_calls_that_contradict_themselves_are_refused(tmp_path, capsys):
    same = str(tmp_path / "out")
    assert main(["run", "coding_rate.value", "--json", same, "--html", same]) == 2
    assert "give two" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--seed", "-1"])
    assert stopped.value.code == 2
    assert "must be at least 0" in capsys.readouterr().err


def test_a_report_without_a_suffix_keeps_its_folder_apart(tmp_path):
    assert main(["run", "coding_rate.cost", "--cases", "2", "--html", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page").is_file()
    assert (tmp_path / "page-counterexamples").is_dir()


def test_near_names_are_found_whatever_their_case(capsys):
    assert main(["show", "MSSA.sing"]) == 2
    assert "mssa.sign" in capsys.readouterr().err
