"""What the pytest plugin is made of: its page, and the tokens and bases of its fixtures."""

import json
import re
import sys

import pytest
import torch

from proofs_check import Campaign, find, run_claim
from proofs_check.pytest_page import record, render
from proofs_check.pytest_tokens import bases, drawn, photograph
from proofs_check.strategies import KINDS_OF_TOKENS


@pytest.mark.parametrize("claim", ["coding_rate.gradient", "mssa.sign.minus_descends", "pca.optimum"])
def test_a_verdict_is_drawn_from_its_json(claim):
    verdict = run_claim(find(claim), Campaign(cases=3))
    entry = json.loads(json.dumps({"test": "a::<b>", **verdict.to_json()}))
    page = render(record([], [entry], 1.0))
    assert f"{claim}</a> <small>in a::&lt;b&gt;</small>" in page
    assert f"{sum(m.killed for m in verdict.mutants)}/{len(verdict.mutants)}" in page


def test_everything_given_is_escaped():
    hostile = "<script>alert(1)</script>"
    check = dict.fromkeys(("name", "verdict", "words", "objective", "step_size"), hostile)
    check |= {"holds": False, "cases": 1, "evidence": 1, "worst_error": None, "tolerance": None}
    entry = {"test": hostile, "status": "fails", "seconds": 0.0, "words": hostile, "checks": [check]}
    assert hostile not in render(record([entry], [], 1.0))


@pytest.mark.parametrize("kind", KINDS_OF_TOKENS)
def test_drawn_tokens_are_of_their_kind_and_the_same_again(kind):
    x = drawn(6, 9, kind, 2.0, 3, "float64", 0)
    assert x.shape == (6, 9)
    assert torch.equal(x, drawn(6, 9, kind, 2.0, 3, torch.float64, 0))
    assert drawn(6, 9, kind, 2.0, 3, "float32", 2).shape == (2, 6, 9)
    rank = {"zero": 0, "repeated": 1, "rank_one": 1}.get(kind, 6)
    assert torch.linalg.matrix_rank(x) == rank


def test_bases_are_orthonormal_and_photographs_are_scaled():
    flat = bases(3, 12, None, 0, "float64").transpose(0, 1).reshape(12, 12)
    torch.testing.assert_close(flat.mT @ flat, torch.eye(12, dtype=torch.float64))
    assert bases(2, 7, 3, 0, "float32").shape == (2, 7, 3)
    x = photograph(40, 8, "float64")
    assert x.shape == (40, 8)
    assert float(x.square().sum(1).mean()) == pytest.approx(1)
    assert float(x.mean(0).norm()) < 1e-12


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: drawn(3, 4, "odd", 1.0, 0, "float64", 0), "drawn_tokens: kind must be one of gaussian, zero"),
        (lambda: drawn(0, 4, "zero", 1.0, 0, "float64", 0), "drawn_tokens: n must be a whole number of at least 1"),
        (lambda: drawn(3, 4, "zero", 1.0, 0, "int64", 0), "dtype must be a floating-point dtype of torch"),
        (lambda: bases(3, 8, 3, 0, "float64"), "3 bases of 3 columns do not fit into 8 dimensions"),
        (lambda: photograph(5, 25, "float64"), "there are 1184 tokens of width 24, but 5 of width 25"),
    ],
)
def test_fixtures_refuse_what_cannot_be(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_listeners_hear_of_every_verdict(monkeypatch):
    heard = []
    monkeypatch.setattr(run_module := sys.modules[run_claim.__module__], "LISTENERS", [heard.append])
    verdict = run_claim(find("coding_rate.cost"), Campaign(cases=2, mutants=False))
    assert heard == [verdict]
    assert run_module.LISTENERS
