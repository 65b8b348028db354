"""Claims of other packages: a tiny distribution in a folder on the path, good or broken in every way that was thought of."""

import json
import os
import sys
import textwrap

import numpy as np
import pytest

from proofs_check import CLAIMS, Campaign, Measurement, find, run_claim
from proofs_check import plugins as theirs
from proofs_check.__main__ import main
from proofs_check.claims import select

GOOD = """
import dataclasses

from proofs_check import Case, Claim, Comparison, Measurement, Mutant
from proofs_check.strategies import cases


def twice(case):
    return 2 * case.x()


def measure(subject, case):
    x = case.x()
    return Measurement((Comparison("doubling", float((subject(case) - x - x).abs().max()), 1e-12),), bool(x.any()))


def claim(id, measure=measure, **changes):
    made = Claim(
        id, "Two is one and one.", r"2 x = x + x", "arithmetic", "identity", cases(), twice, measure,
        (Mutant("thrice", lambda case: 3 * case.x()),), (Case(), Case(tokens=2)), ("acme_claims:twice",),
    )
    return dataclasses.replace(made, **changes)


CLAIMS = (claim("acme.double"), claim("step.exact"))
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """install(entry points, module -> source …): a distribution acme-layers 0.3 on the path of this process and its children."""
    site = tmp_path / "site"

    def install(points, name="acme-layers", **modules):
        info = site / f"{name.replace('-', '_')}-0.3.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
        (info / "entry_points.txt").write_text(f"[{theirs.GROUP}]\n{points}\n")
        for module, source in {"acme_claims": GOOD, **modules}.items():
            (site / f"{module}.py").write_text(textwrap.dedent(source))
        theirs._read_all.cache_clear()

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv(theirs.SWITCH, raising=False)
    theirs._read_all.cache_clear()
    yield install
    theirs._read_all.cache_clear()
    for module in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[module]


def small_tokens(folder):
    np.save(folder / "mine.npy", np.random.default_rng(0).standard_normal((12, 6)))
    return str(folder / "mine.npy")


def test_without_other_packages_there_are_only_ours():
    assert theirs.plugins() == ()
    assert theirs.all_claims() == CLAIMS
    assert theirs.problems() == []


def test_a_good_package_is_seen_everywhere(distribution, tmp_path, capsys):
    distribution("acme = acme_claims")
    assert [claim.id for claim in theirs.all_claims()[len(CLAIMS) :]] == ["acme.double", "acme.step.exact"]
    assert theirs.all_claims()[: len(CLAIMS)] == CLAIMS
    assert len(CLAIMS) == len({claim.id for claim in CLAIMS})
    assert find("acme.double").statement == "Two is one and one."
    assert [claim.id for claim in select(["acme"])] == ["acme.double", "acme.step.exact"]
    assert select([]) == theirs.all_claims()
    assert main(["list"]) == 0
    assert "acme.step.exact" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    entries = {entry["id"]: entry["package"] for entry in json.loads(capsys.readouterr().out)}
    assert entries["acme.double"] == "acme-layers 0.3 (entry point acme = acme_claims)"
    assert entries["mssa.step.exact"] == ""
    assert main(["show", "acme.double"]) == 0
    out = capsys.readouterr().out
    assert "package   acme-layers 0.3" in out
    assert "acme_claims.py:" in out
    assert "holds on" in out
    assert "proofs_check/claims/" not in out


def test_it_is_run_in_other_processes_and_reported_with_its_package(distribution, tmp_path, monkeypatch):
    ids = []
    monkeypatch.setattr(sys.modules[run_claim.__module__], "LISTENERS", [lambda verdict: ids.append(verdict.id)])
    distribution("acme = acme_claims")
    target, folder = tmp_path / "out.json", tmp_path / "cases"
    command = ["run", "acme", "--cases", "3", "--jobs", "2", "--tokens", small_tokens(tmp_path)]
    assert main([*command, "--json", str(target), "--counterexamples", str(folder)]) == 0
    assert sorted(ids) == ["acme.double", "acme.step.exact"]  # once each, though measured elsewhere
    out = json.loads(target.read_text())
    assert [claim["status"] for claim in out["claims"]] == ["holds"] * 2
    said = "acme-layers 0.3 (entry point acme = acme_claims): 2 claims"
    assert out["environment"]["claims of acme-layers 0.3"] == said
    assert (folder / "acme.double--thrice.npz").is_file()
    assert main(["replay", str(folder)]) == 0


def test_the_switch_and_the_flag_leave_them_out_unread(distribution, monkeypatch, capsys):
    distribution("acme = acme_claims", acme_claims="raise RuntimeError('imported')")
    assert main(["list", "--no-plugins"]) == 0
    said = capsys.readouterr()
    assert "acme" not in said.out + said.err
    assert main(["show", "acme.double", "--no-plugins"]) == 2
    assert "imported" not in capsys.readouterr().err
    monkeypatch.setenv(theirs.SWITCH, "1")
    assert theirs.all_claims() == CLAIMS
    with pytest.raises(ValueError, match=r"no claim or stem is named 'acme\.double'"):
        find("acme.double")
    assert "acme_claims" not in sys.modules
    monkeypatch.setenv(theirs.SWITCH, "0")
    assert "imported" in theirs.problems()[0]


def test_claims_of_ours_by_name_import_nothing_of_theirs(distribution, capsys):
    distribution("acme = acme_claims", acme_claims="raise RuntimeError('imported')")
    find("mssa.step.exact")
    assert main(["show", "coding_rate.cost"]) == 0
    assert capsys.readouterr().err == ""
    assert theirs.consulted() == ()


BROKEN = {
    "raises": ("acme = acme_bad", "1 / 0", "left out: cannot be imported: ZeroDivisionError: division by zero"),
    "exits": ("acme = acme_bad", "raise SystemExit(3)", "left out: cannot be imported: SystemExit: 3"),
    "is not there": ("acme = acme_nowhere", "", "left out: cannot be imported: ModuleNotFoundError: No module named"),
    "has no such name": ("acme = acme_bad:claims", "", "left out: cannot be imported: AttributeError"),
    "has no claims": ("acme = acme_bad", "", "left out: the module acme_bad has no CLAIMS"),
    "is empty": ("acme = acme_bad", "CLAIMS = ()", "left out: it gives no claims"),
    "is a number": ("acme = acme_bad:thing", "thing = 3", "but it is an int"),
    "its callable raises": ("acme = acme_bad:thing", "def thing(): raise KeyError('x')", "left out: KeyError: 'x'"),
    "has a stem of ours": ("mssa = acme_claims", "", "ids that begin with mssa. are claims of this library"),
    "has a name that is none": ("Acme-1 = acme_claims", "", "lower-case letters, digits and _ only"),
    "two lines in an error": ("acme = acme_bad", "raise ValueError('a\\n  b')", "ValueError: a b"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_package_that_breaks_is_named_and_ours_go_on(how, distribution, capsys):
    points, source, said = BROKEN[how]
    distribution(points, acme_bad=source)
    (line,) = theirs.problems()
    assert line.startswith(f"acme-layers 0.3 (entry point {points}): ")
    assert said in line
    assert "\n" not in line
    assert theirs.all_claims() == CLAIMS
    assert main(["list"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"proofs-check: {line}\n"
    assert len(captured.out.splitlines()) == len(CLAIMS)


PARTLY = {
    "no claim": ("CLAIMS = (claim('acme.a'), {'id': 'x'})", "claim 2 of 2 is left out: it is a dict"),
    "the same id": ("CLAIMS = (claim('a'), claim('acme.a'))", "claim 2 of 2 is left out: two of its claims are named"),
    "a path": ("CLAIMS = (claim('../../a'), claim('acme.a'))", "its id '../../a' must be dotted words"),
    "no text": ("CLAIMS = (claim('acme.a'), claim('acme.b', source=3))", "its source must be text, but is an int"),
    "no mutants": (
        "CLAIMS = (claim('acme.a'), claim('acme.b', mutants=[Mutant('a', twice)]))",
        "mutants must be a tuple of Mutant",
    ),
    "alike": (
        "CLAIMS = (claim('acme.a'), claim('acme.b', mutants=(Mutant('a b', twice), Mutant('a-b', twice))))",
        "names that differ in more than punctuation",
    ),
    "no domain": ("CLAIMS = (claim('acme.a'), claim('acme.b', domain=[Case()]))", "domain a strategy"),
    "no case": (
        "CLAIMS = (claim('acme.a'), claim('acme.b', structured=(Case(tokens=2.0),)))",
        "Case: tokens must be int, but is a float",
    ),
}


@pytest.mark.parametrize("how", PARTLY)
def test_what_is_no_claim_is_left_out_and_the_rest_stays(how, distribution):
    source, said = PARTLY[how]
    distribution("acme = acme_bad", acme_bad=GOOD + source)
    (plugin,) = theirs.plugins()
    assert [claim.id for claim in plugin.claims] == ["acme.a"]
    assert said in str(plugin)


def test_a_second_package_of_the_same_name_is_left_out(distribution):
    distribution("acme = acme_claims")
    distribution("acme = acme_claims", name="other")
    first, second = theirs.plugins()
    assert (len(first.claims), len(second.claims)) == (2, 0)
    assert "ids that begin with acme. are those of acme-layers 0.3" in str(second)


def test_a_callable_and_a_single_claim_are_taken(distribution):
    source = GOOD + "def all_of_them(): return CLAIMS\none = CLAIMS[0]"
    distribution("acme = acme_more:all_of_them\nbeta = acme_more:one", acme_more=source)
    assert [len(plugin.claims) for plugin in theirs.plugins()] == [2, 1]
    assert find("beta.acme.double")


RAISES = {
    "raises": ("raise ZeroDivisionError('boom')", "ZeroDivisionError: boom"),
    "exits": ("raise SystemExit('bye')", "SystemExit: bye"),
    "no measurement": ("return True", "measure returned a bool, where a proofs_check.Measurement is expected"),
    "no numbers": ("return Measurement((Comparison('a', 'b', 1),))", "ValueError: could not convert"),
}


@pytest.mark.parametrize("how", RAISES)
def test_a_claim_that_raises_fails_alone_and_says_whose_it_is(how, distribution):
    line, said = RAISES[how]
    distribution("acme = acme_bad", acme_bad=f"{GOOD}def bad(s, c): {line}\nCLAIMS = (claim('acme.bad', measure=bad),)")
    verdict = run_claim(find("acme.bad"), Campaign(cases=2))
    assert verdict.status == "fails"
    assert "acme-layers 0.3 (entry point acme = acme_bad): " in verdict.reason
    assert said in verdict.reason


def test_a_run_with_broken_claims_reports_them_and_ours(distribution, tmp_path, capsys):
    source = GOOD + "def bad(s, c): raise KeyError('boom')\nCLAIMS = (claim('acme.bad', measure=bad), 7)"
    distribution("acme = acme_bad", acme_bad=source)
    target, page = tmp_path / "out.json", tmp_path / "page.html"
    names = ["run", "coding_rate.cost", "acme", "--cases", "2", "--jobs", "1", "--tokens", small_tokens(tmp_path)]
    assert main([*names, "--json", str(target), "--html", str(page)]) == 1
    captured = capsys.readouterr()
    named = "acme-layers 0.3 (entry point acme = acme_bad): "
    assert captured.err.startswith(f"proofs-check: {named}claim 2 of 2 is left out")
    assert f"acme.bad fails: could not be measured: PluginError: {named}KeyError: 'boom'" in captured.out
    out = json.loads(target.read_text())
    assert {claim["id"]: claim["status"] for claim in out["claims"]} == {
        "coding_rate.cost": "holds",
        "acme.bad": "fails",
    }
    assert "claim 2 of 2 is left out" in out["environment"]["claims of acme-layers 0.3"]
    assert "claim 2 of 2 is left out" in page.read_text()
    assert "acme_claims.py" in page.read_text()  # where its code is, which only the claim itself knows


def test_an_unknown_claim_says_that_its_package_is_broken(distribution):
    distribution("acme = acme_bad", acme_bad="1 / 0")
    with pytest.raises(ValueError, match=r"no claim or stem is named 'acme.step'.*acme-layers 0.3.*division by zero"):
        find("acme.step")


def test_numbers_of_theirs_become_plain_ones(distribution):
    source = GOOD + (
        "import numpy, torch\n"
        "def odd(s, c):\n"
        "    m = measure(s, c)\n"
        "    values = {'n': torch.tensor(2.0), 3: numpy.float32(1)}\n"
        "    return Measurement(m.comparisons, numpy.bool_(True), values)\n"
        "CLAIMS = (claim('acme.odd', measure=odd),)"
    )
    distribution("acme = acme_bad", acme_bad=source)
    measured = find("acme.odd").judge(find("acme.odd").structured[0])
    assert isinstance(measured, Measurement)
    assert dict(measured.values) == {"n": 2.0, "3": 1.0}
    assert measured.evidence is True
    json.dumps(run_claim(find("acme.odd"), Campaign(cases=2)).to_json(), allow_nan=False)


def test_a_domain_that_draws_no_cases_is_named(distribution):
    source = GOOD + "from hypothesis import strategies as st\nCLAIMS = (claim('acme.odd', domain=st.integers()),)"
    distribution("acme = acme_bad", acme_bad=source)
    verdict = run_claim(find("acme.odd"), Campaign(cases=2))
    assert "acme-layers 0.3 (entry point acme = acme_bad): its domain draws what is no case" in verdict.reason


def test_cases_that_a_claim_declines_are_no_errors(distribution):
    source = GOOD + (
        "from hypothesis import assume\n"
        "def even(s, c):\n"
        "    assume(c.tokens % 2 == 0)\n"
        "    return measure(s, c)\n"
        "CLAIMS = (claim('acme.even', measure=even, structured=()),)"
    )
    distribution("acme = acme_bad", acme_bad=source)
    verdict = run_claim(find("acme.even"), Campaign(cases=20))
    assert verdict.status == "holds", verdict.reason
    assert verdict.cases >= 10


def test_a_list_of_entry_points_that_cannot_be_read_is_named(distribution):
    distribution("acme")
    (line,) = theirs.problems()
    assert line.startswith("acme-layers 0.3 (entry point ?): left out: its entry points cannot be read")
