import dataclasses
import json
import time

import pytest
import torch

from proofs_check.__main__ import main
from proofs_check.bench import STEMS, Contestant, Measured, Sizes, command, measure_stem
from proofs_check.bench.cost_model import Link, fit, reduced_numbers
from proofs_check.bench.page import page, seconds
from proofs_check.bench.ranks import check_ranks
from proofs_check.bench.subjects import LIMIT, OURS
from proofs_check.bench.timing import BOTH, FORWARD, _memory, _runner, fraction_of_limit, ratio, slope
from proofs_check.claim import Verdict

SMALL = Sizes(dim=12, heads=3, m=4, keys=3)


def lines(name, mode, times, memory=None):
    return [Measured(name, n, mode, t, t, t, 5, memory and memory * n) for n, t in times.items()]


@pytest.fixture
def sound(monkeypatch):
    """The claims are not run: this is about what comes after them."""
    monkeypatch.setattr(command, "_claims_hold", lambda names: (list(names), dict.fromkeys(names, "checked.")))


@pytest.mark.parametrize("name", [name for name, stem in STEMS.items() if not stem.network])
def test_contestants_compute_the_same_and_are_measured(name):
    stem = STEMS[name]
    rivals = {rival.name: rival for rival in stem.contestants(SMALL, 36)}
    with torch.no_grad():
        ours, plain = (rivals[each].run(*rivals[each].inputs) for each in (OURS, "plain twin"))
    torch.testing.assert_close(ours, plain)
    found = measure_stem(stem, SMALL, (16, 36), repetitions=2)
    assert {each.contestant for each in found} == set(rivals)
    assert {(each.tokens, each.mode) for each in found} == {(n, mode) for n in (16, 36) for mode in (FORWARD, BOTH)}
    assert all(0 < each.low <= each.seconds <= each.high for each in found)
    assert set(fraction_of_limit(found, BOTH)) == {16, 36}


def test_networks_are_measured_by_their_side():
    found = measure_stem(STEMS["mita_deit"], Sizes(), (32,), repetitions=1)
    assert {each.contestant for each in found} == {OURS, "full attention"}


def test_the_limit_does_what_it_says():
    """Three products of every head, forward; nine with the backward pass; the results are those of the operands."""
    (limit,) = [each for each in STEMS["cbsa"].contestants(SMALL, 36) if each.name == LIMIT]
    counted = []
    original = torch.bmm
    for run in (limit.run, limit.both):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch, "bmm", lambda a, b, out: counted.append(a.shape[1:] + b.shape[-1:]) or original(a, b, out=out)
            )
            run()
    m, p, N = 4, 4, 36
    assert counted[:3] == [(m, p, N), (m, N, p), (N, m, p)]
    assert len(counted) == 3 + 9


def test_slopes_ratios_and_fractions():
    ours = lines(OURS, FORWARD, {1024: 1.0, 4096: 2.0, 16384: 8.0})
    full = lines("full attention", FORWARD, {1024: 3.0, 4096: 32.0})
    assert slope(ours, OURS, FORWARD) == pytest.approx(1.0)
    assert slope(ours, OURS, FORWARD, start=16384) is None
    assert ratio(ours + full, "full attention", FORWARD) == {1024: 3.0, 4096: 16.0}
    assert fraction_of_limit(ours + lines(LIMIT, FORWARD, {4096: 1.0}), FORWARD) == {4096: 0.5}


def test_what_would_take_too_long_is_left_out():
    slow = Contestant("slow", (torch.randn(3),), lambda x: time.sleep(0.01) or x.sum(), quadratic=True)
    found = measure_stem(STEMS["mssa"], SMALL, (16, 1600), repetitions=1, longest=1.0, others=lambda sizes, n: [slow])
    assert {each.tokens for each in found if each.contestant == "slow"} == {16}


def test_memory_is_what_a_run_holds_beside_its_inputs():
    held = _memory(lambda: torch.ones(20_000_000), Sizes())
    if held is None:
        pytest.skip("no /proc to read")
    assert 0.9 * 80e6 < held < 1.3 * 80e6
    assert _memory(lambda: None, Sizes()) < 8e6


def test_every_round_begins_with_another_contestant():
    ran = []

    def named(name):
        return Contestant(name, (torch.ones(1),), lambda x: ran.append(name) or time.sleep(0.003) or 2 * x)

    stem = dataclasses.replace(STEMS["tssa"], contestants=lambda sizes, n: [named("a"), named("b"), named("c")])
    measure_stem(stem, SMALL, (16,), repetitions=3)
    warm, rounds = ran[:6], "".join(ran[6:15])
    assert sorted(warm) == ["a", "a", "b", "b", "c", "c"]
    assert rounds == "abc" + "bca" + "cab"


def test_backward_is_part_of_both():
    ran = []
    x = torch.ones(2)

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            ran.append(grad)
            return grad

    rival = Contestant("seen", (x,), Seen.apply)
    _runner(rival, FORWARD)()
    assert ran == []
    _runner(rival, BOTH)()
    assert len(ran) == 1


def test_the_cost_model_is_a_line_and_is_checked_on_what_it_has_not_seen():
    found = lines(
        OURS, BOTH, {1024: 1.0 + 2.048, 4096: 1.0 + 8.192, 16384: 1.0 + 32.768, 65536: 2.0 * 132.072}, memory=100
    )
    model = fit("cbsa", SMALL, found, BOTH)
    assert model.fixed == pytest.approx(1.0)
    assert model.per_token == pytest.approx(0.002)
    assert model.bytes_per_token == pytest.approx(100)
    assert model.checked == (65536, pytest.approx(0.5))
    alone, many = model.seconds(1e8), model.seconds(1e8, 10, Link(1e9, 0.0))
    assert alone == pytest.approx(1 + 2e5)
    share = 2 * 0.9 * 4 * reduced_numbers("cbsa", SMALL) / 1e9
    assert many == pytest.approx(1 + 2e4 + 2 * share)
    assert model.memory(1e8, 10) == pytest.approx(1e9, rel=1e-3)
    assert fit("cbsa", SMALL, found[:2], BOTH) is None
    assert Link().all_reduce(1e9, 1) == 0


def test_the_numbers_to_be_summed_do_not_depend_on_the_tokens():
    assert reduced_numbers("tssa", SMALL) == 3 * 5
    assert reduced_numbers("mssa", SMALL) == 3 * 16
    assert reduced_numbers("coding_rate", SMALL) == 144


SIZES = (
    "--sizes",
    "64,1024,2048,4096",
    "--dim",
    "12",
    "--heads",
    "3",
    "-m",
    "4",
    "--keys",
    "3",
    "--repetitions",
    "1",
    "--ranks",
    "1",
)


def test_the_command_writes_what_it_measured(sound, tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("bench.json", "bench.html")]
    assert main(["bench", "cbsa", "tssa", *SIZES, "--model", "--json", files[0], "--html", files[1]]) == 0
    said = capsys.readouterr().out
    assert "CBSA, softmax form" in said
    assert "10⁸ tokens on one machine" in said
    run = json.loads((tmp_path / "bench.json").read_text())
    assert set(run["stems"]) == {"cbsa", "tssa"}
    assert {"processor", "threads", "torch"} <= set(run["environment"])
    assert run["settings"]["dim"] == 12
    assert set(run["stems"]["cbsa"]["summary"][BOTH]["ratios"]) >= {"plain twin", "full attention", "limit"}
    assert [model["stem"] for model in run["model"]] == ["cbsa", "tssa"]
    text = (tmp_path / "bench.html").read_text()
    assert text.count("<svg") == 3
    assert "full attention" in text
    assert "<script" not in text
    assert main(["bench", "cbsa", *SIZES, "--compare", files[0]]) == 0
    assert "new time / old" in capsys.readouterr().out


def test_nothing_is_timed_whose_claims_fail(monkeypatch, capsys):
    from proofs_check import session

    def failing(claims, *rest):
        bad = "kernels.cbsa"
        made = [
            Verdict(c.id, c.stem, c.kind, "", "", "fails" if c.id == bad else "holds", reason="off by 2")
            for c in claims
        ]
        return made, 0.0

    monkeypatch.setattr(session, "run_all", failing)
    assert main(["bench", "cbsa", *SIZES]) == 1
    said = capsys.readouterr()
    assert "cbsa is not timed: kernels.cbsa fails: off by 2" in said.err
    assert "full attention" not in said.out
    assert main(["bench", "cbsa", "mssa", *SIZES]) == 1
    said = capsys.readouterr().out
    assert "MSSA, exact form" in said
    assert "CBSA, softmax form" not in said


def test_claims_are_run_before(capsys):
    assert command._claims_hold(["mssa"])[0] == ["mssa"]
    assert "kernels.mssa" in capsys.readouterr().out


def test_own_contestants_join(sound, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from proofs_check.bench import Contestant\n"
        "def contestants(stem, sizes, tokens):\n"
        "    return [Contestant('mine', (sizes.heads_of(tokens),), lambda w: 2 * w)]\n"
    )
    assert main(["bench", "tssa", *SIZES, "--against", str(mine)]) == 0
    assert "  mine  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "no stem of the bench is named 'nothing'"),
        (["cbsa", "--heads", "5"], "--heads 5 must divide --dim 384"),
        (["cbsa", "--json", "nowhere/b.json"], "the folder nowhere does not exist"),
        (["cbsa", "--compare", "none.json"], "No such file"),
        (["cbsa", "--against", "none.py"], "no such Python file"),
        (["cbsa", "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_wrong_calls_say_what_is_wrong(arguments, says, sound, capsys):
    assert main(["bench", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_another_file_is_no_earlier_run(sound, tmp_path, capsys):
    (tmp_path / "other.json").write_text("[1, 2]")
    assert main(["bench", "cbsa", "--compare", str(tmp_path / "other.json")]) == 2
    assert "this is no --json of proofs-check bench" in capsys.readouterr().err


def test_everything_on_the_page_is_escaped():
    found = {"mssa": lines("<b>", BOTH, {64: 1.0}) + lines(OURS, BOTH, {64: 1.0})}
    settings = {"item": 4, "dim": 12, "device": "cpu", "dtype": "float32"}
    text = page({"settings": settings, "environment": {"<i>": "<u>"}, "claims": {}}, found)
    assert all(tag not in text.split("</style>")[1] for tag in ("<b>", "<i>", "<u>"))
    assert [seconds(value) for value in (1.5e-6, 0.25, 30, 1000, 1e5)] == [
        "1.50 µs",
        "250 ms",
        "30.0 s",
        "16.7 min",
        "27.8 h",
    ]


def test_every_stem_names_claims_that_exist():
    from proofs_check.claims import select

    for stem in STEMS.values():
        assert select(list(stem.claims))


def test_the_model_is_held_against_processes_of_this_machine():
    """On two processes: every number is measured, and the prediction is the shard's own time and the sums'."""
    checks = check_ranks(["tssa", "mita"], SMALL, ranks=2, tokens=64, repetitions=2)
    assert [check.stem for check in checks] == ["tssa", "mita"]
    for check in checks:
        sums = 2 * Link(check.bandwidth, check.latency).all_reduce(4 * reduced_numbers(check.stem, SMALL), 2)
        assert check.predicted == pytest.approx(check.local + sums)
        assert min(check.local, check.measured, check.latency, check.bandwidth) > 0
