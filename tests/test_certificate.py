import sys

import flint
import numpy as np
import pytest
import torch

from proofs_check import certificate
from proofs_check.__main__ import main
from proofs_check.certificate import CERTIFIED, CertificateError, Dual, certify


@pytest.mark.parametrize("claim", CERTIFIED)
@pytest.mark.parametrize("count", [1, 4])
def test_every_identity_is_certified_and_the_layer_is_close(claim, count):
    made = certify(claim, count=count, digits=30, seed=3)
    assert made.holds
    assert made.bound <= 1e-30
    assert made.rounding < 1e-14
    assert "rigorously" in str(made)


@pytest.mark.parametrize("claim", CERTIFIED)
def test_an_identity_off_by_one_part_in_1e25_is_not_certified(claim, monkeypatch):
    sides = CERTIFIED[claim]

    def off(setting):
        left, right, computed = sides(setting)
        return left, right * (1 + setting.ball(2.0**-83)), computed

    monkeypatch.setitem(certificate.CERTIFIED, claim, off)
    made = certify(claim, count=3)
    assert not made.holds
    assert "NOT certified" in str(made)


def test_precision_grows_until_the_digits_are_there():
    assert certify("mssa.step.exact", count=3, digits=100).precision > certify("mssa.step.exact", count=3).precision
    assert flint.ctx.prec == 53


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda t: t * t * t, 12.0),
        (lambda t: t**3 - 2 / t, 12.5),
        (lambda t: (t.log() * 3).exp(), 12.0),
        (lambda t: 1 - (-t) / 2 + 0 * t, 0.5),
    ],
)
def test_duals_differentiate(f, slope):
    assert float(f(Dual(flint.arb(2), 1)).d) == pytest.approx(slope)


def test_a_missing_extra_and_an_uncertified_claim_are_told(monkeypatch):
    with pytest.raises(CertificateError, match=r"these have: coding_rate\.gradient"):
        certify("mssa.cost")
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(CertificateError, match="certificates need python-flint: pip install"):
        certify("ista.step")


def test_the_command_certifies_tokens_of_a_file(tmp_path, capsys):
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).standard_normal((20, 4)))
    assert main(["certify", "mssa", "--tokens", str(tmp_path / "tokens.npy"), "--count", "3", "--digits", "40"]) == 0
    out = capsys.readouterr().out
    assert out.count("true to within 1e-40 on 3 tokens of 4 features, rigorously") == 2
    assert main(["certify", "crate"]) == 2
    assert "none of these claims has a certificate" in capsys.readouterr().err


def test_a_run_can_certify_and_its_report_says_so(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["run", "coding_rate.gradient", "--cases", "2", "--certify", "--html", str(page)]) == 0
    assert "true to within 1e-30 on 8 tokens of 6 features" in page.read_text()
    assert torch.get_default_dtype() == torch.float32
