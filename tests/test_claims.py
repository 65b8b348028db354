"""The claims as a whole; their verdicts are the business of `proofs-check`, run here on a few."""

import dataclasses
import math

import pytest
import torch

from proofs_check import CLAIMS, Campaign, Case, Comparison, Measurement, Mutant, find, run_claim
from proofs_check.claims import select
from proofs_check.report import PAPERS
from proofs_check.run import snippet

FEW = Campaign(cases=5)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_holds_and_rejects_its_mutants(claim):
    verdict = run_claim(claim, FEW)
    expected = {"refuted": "refuted", "measured": "measured", "conjecture": "open"}.get(claim.kind, "holds")
    assert verdict.status == expected, verdict.reason
    assert verdict.mutants
    assert all(mutant.killed for mutant in verdict.mutants)
    assert 2 * verdict.evidence >= verdict.cases


def test_ids_are_unique_and_begin_with_their_stem():
    ids = [claim.id for claim in CLAIMS]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_has_enough_mutants(claim):
    assert len(claim.mutants) >= (2 if claim.kind == "refuted" else 3)


def sign_of_gradient():
    return find("coding_rate.gradient")


def test_a_wrong_subject_fails_with_the_smallest_case_in_a_snippet_that_runs(capsys):
    claim = sign_of_gradient()
    wrong = dataclasses.replace(claim, subject=claim.mutant("half").subject)
    verdict = run_claim(wrong, FEW)
    assert verdict.status == "fails"
    assert verdict.counterexample_case.tokens == 1
    assert verdict.worst_error == pytest.approx(0.5)
    exec(snippet(claim, verdict.counterexample_case, "half"), {})
    assert "reverse mode" in capsys.readouterr().out


def test_a_surviving_mutant_makes_a_claim_vacuous():
    claim = sign_of_gradient()
    lenient = dataclasses.replace(claim, mutants=(*claim.mutants, Mutant("right after all", claim.subject)))
    verdict = run_claim(lenient, FEW)
    assert verdict.status == "vacuous"
    assert "right after all" in verdict.reason


def test_too_little_evidence_makes_a_claim_vacuous():
    claim = sign_of_gradient()
    still = dataclasses.replace(claim, structured=(Case(kind="zero"), Case(kind="zero", tokens=2)))
    verdict = run_claim(still, dataclasses.replace(FEW, cases=0))
    assert verdict.status == "vacuous"


def test_nan_fails_a_comparison():
    assert not Comparison("", math.nan, 1.0).holds
    assert not Measurement((Comparison("", math.nan, 1.0),)).holds


def test_a_refuted_claim_fails_when_no_counterexample_is_found():
    claim = find("mssa.sign.minus_descends")
    verdict = run_claim(dataclasses.replace(claim, structured=(Case(),)), dataclasses.replace(FEW, cases=0))
    assert verdict.status == "fails"
    assert "no counterexample" in verdict.reason


def test_a_claim_that_raises_fails_alone():
    def broken(subject, case):
        raise RuntimeError("no such thing")

    verdict = run_claim(dataclasses.replace(sign_of_gradient(), measure=broken), FEW)
    assert verdict.status == "fails"
    assert "no such thing" in verdict.reason


def test_verdicts_are_the_same_for_the_same_seed():
    first, second = (run_claim(find("mssa.step.exact"), FEW).to_json() for _ in range(2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


def test_the_witness_has_the_cosine_that_was_published():
    verdict = run_claim(find("mssa.sign.minus_descends"), dataclasses.replace(FEW, cases=0))
    assert verdict.values["cosine of ∇R_c and MSSA"][0] == pytest.approx(-0.0019, abs=5e-5)


def test_single_precision_is_checked_too():
    verdict = run_claim(find("mssa.step.exact"), Campaign(cases=10, dtype="float32"))
    assert verdict.status == "holds"
    assert verdict.tolerance > 1e-7


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    run_claim(find("coding_rate.value"), dataclasses.replace(FEW, mutants=False))
    assert torch.get_num_threads() == before


def test_selection_by_stem_prefix_and_id():
    assert {claim.stem for claim in select(["mssa"])} == {"mssa"}
    assert all(claim.id.startswith("mssa.sign.") for claim in select(["mssa.sign"]))
    assert [claim.id for claim in select(["cbsa.step.exact"])] == ["cbsa.step.exact"]
    assert select([]) == CLAIMS


def test_unknown_names_list_the_nearest():
    with pytest.raises(ValueError, match=r"no claim or stem is named 'cbsa.step.exat'.*Nearest: cbsa.step.exact"):
        select(["cbsa.step.exat"])


SECTIONS = {
    "1.1 coding rate": "coding_rate.value",
    "1.2 subspaces": "coding_rate.subspaces.gradient",
    "1.3 rate reduction": "rate_reduction.gradient",
    "1.4 sparse rate reduction": "rate_reduction.sparse",
    "1.5 variational compression": "variational_rate",
    "1.6 representatives": "representatives.gradient",
    "1.7 PCA as compression": "pca.optimum",
    "1.8 log-sum-exp energies": "softmax_energy.self.gradient",
    "1.9 sparse coding": "sparse_coding.descent",
    "1.10 kernel regression": "kernel_regression",
    "1.10 MiTA": "mita.step.exact",
    "1.11 subspace denoising": "aot.snr",
    "2 proximal and accelerated": "sparse_coding.accelerated",
    "2 Riemannian": "pca.riemannian",
    "2 alternating": "crate.block",
    "3 MSSA": "mssa.step",
    "3 symmetric": "symmetric.step",
    "3 TSSA": "tssa.step",
    "3 agent": "cbsa.special.agent",
    "3 MSCA": "depict.step",
    "3 ISTA": "ista.step",
    "3 ReduNet": "redunet.step",
    "3 softmax attention": "softmax.step",
    "3.1 CBSA": "cbsa.step",
    "3.2 signs": "mssa.sign",
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_of_the_mathematics_has_claims(section):
    assert any(f"{claim.id}.".startswith(SECTIONS[section] + ".") for claim in CLAIMS)


def test_every_stem_has_its_place_on_the_page():
    placed = {stem for stems in PAPERS.values() for stem in stems}
    assert {claim.stem for claim in CLAIMS} == placed


def test_a_verdict_reads_as_a_line():
    verdict = run_claim(find("coding_rate.value"), Campaign(cases=2))
    said = str(verdict)
    assert said.startswith(f"coding_rate.value: holds on {verdict.evidence} of {verdict.cases} cases, worst error ")
    assert said.endswith("7 of 7 wrong versions rejected")
    verdict.reason = "why"
    assert str(verdict).endswith("\n  why")
