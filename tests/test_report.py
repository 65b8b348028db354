"""The report: a page that parses, holds every claim, fetches and runs nothing, and is written whole."""

import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from proofs_check import Case, Claim, Measurement, Verdict
from proofs_check import report as report_module
from proofs_check.claim import MutantVerdict
from proofs_check.figures import lesson, number, photograph, remainder_chart, ruler
from proofs_check.inputs import TokenInput
from proofs_check.report import render, write
from proofs_check.strategies import cases
from proofs_check.typeset import Typesetter

HOSTILE = "</style></pre><script>alert('1')</script><img src=x onerror=\"alert(2)\"> & $\\bad{$"
STATUSES = ("holds", "fails", "vacuous", "refuted", "measured", "open")
VOID = {"meta", "img", "br", "wbr", "link", "hr", "input"}


class Page(HTMLParser):
    """Tags and attributes of a page; complains where an element is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


def a_claim(name: str, **more: object) -> Claim:
    fields: dict = {
        "statement": f"The sentence of {name}.",
        "equation": r"$x_k = \frac{1}{2}\sum_k U_k^\top Z, \quad 0 < \kappa < 2$",
        "source": "A paper, eq. 1",
        "kind": "exact",
        "code": ("objectives.coding_rate:CodingRate",),
        "correction": f"What is true instead of {name}.",
    }
    fields.update(more)
    return Claim(
        id=name,
        domain=cases(),
        subject=lambda case: None,
        measure=lambda s, c: Measurement(),
        mutants=(),
        **fields,
    )


def a_verdict(claim: Claim, status: str, **more: object) -> Verdict:
    fields: dict = {"worst_error": 1e-15, "tolerance": 1e-12, "worst_name": "paper's sum", "seconds": 0.5}
    fields.update(more)
    made = Verdict(claim.id, claim.stem, claim.kind, claim.statement, claim.source, status, 40, 39, **fields)
    made.mutants = [
        MutantVerdict("no_op", True, 1e9, f"replay {claim.id}", Case(tokens=1)),
        MutantVerdict("half_step", status != "vacuous"),
    ]
    return made


RUN = {
    "schema": 1,
    "version": "0.1.0",
    "environment": {"torch": "2.13"},
    "seed": 3,
    "profile": "quick",
    "seconds": 61.3,
}
CLAIMS = {claim.id: claim for claim in (a_claim(f"stem_{i % 2}.claim.{status}") for i, status in enumerate(STATUSES))}
VERDICTS = [
    a_verdict(
        claim,
        status,
        reason="it is wrong" if status in ("fails", "vacuous") else "",
        counterexample="find this" if status in ("fails", "refuted") else None,
        curve=tuple((10.0**-k, 10.0 ** (-2 * k)) for k in range(5)),
        values={"cosine": (-1.0, 0.25, 1.0)},
    )
    for claim, status in zip(CLAIMS.values(), STATUSES, strict=True)
]


@pytest.fixture(scope="module")
def picture() -> TokenInput:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((12, 6))
    return TokenInput(
        "image", "a <photo>.png", tokens, (3, 4), rng.integers(0, 255, (24, 32, 3), np.uint8), 8, "12 patches"
    )


@pytest.fixture(scope="module")
def text(picture: TokenInput) -> str:
    return render(RUN, VERDICTS, CLAIMS, picture, folder="proofs-report")


def test_every_claim_is_there_with_its_status_files_and_correction(text: str) -> None:
    page = Page(text)
    for verdict in VERDICTS:
        assert verdict.id in page.words
        assert verdict.statement in page.words
        assert f"claim-{verdict.id}" in page.all("id")
        assert f"#claim-{verdict.id}" in page.all("href")
    for status in STATUSES:
        assert f"{status}on 40 cases" in page.words
    assert (
        "The statement above is false. What is true: What is true instead of stem_1.claim.refuted."
        in page.words.replace("false.What", "false. What")
    )
    assert "objectives/coding_rate.py · proofs_check/claims/stem_0.py · tests/test_stem_0.py" in page.words


def test_the_summary_counts_and_says_what_holds_means(text: str) -> None:
    page = Page(text)
    assert (
        "6 claims on 12 tokens of a <photo>.png and on drawn inputs: 1 holds, 1 fails, 1 vacuous, 1 refuted,"
        " 1 measured, 1 open; 11 of 12 wrong versions rejected, in 61.3 s." in page.words
    )
    assert "It is not a proof." in page.words
    assert 'class="lead bad"' in text


def test_a_sound_run_is_not_red() -> None:
    sound = [verdict for verdict in VERDICTS if verdict.sound]
    assert 'class="lead"' in render(RUN, sound, CLAIMS, None)


def test_what_fails_comes_first_then_what_is_refuted(text: str) -> None:
    order = re.findall(r'<article class="claim is-(\w+)"', text)
    assert order[:4] == ["fails", "vacuous", "refuted", "open"]


def test_nothing_is_fetched_and_nothing_runs(text: str) -> None:
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert all(source.startswith("data:image/") for source in page.all("src"))
    assert all(target.startswith("#") for target in page.all("href"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_ids_are_unique_and_every_reference_has_its_target(text: str) -> None:
    page = Page(text)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.all("href")} <= set(ids)


def test_claims_whose_names_look_alike_keep_apart() -> None:
    alike = [a_verdict(a_claim(name), "holds") for name in ("a.b c", "a.b/c", "a.b c")]
    ids = [name for name in Page(render(RUN, alike, {}, None)).all("id") if name.startswith("claim-")]
    assert len(set(ids)) == 3


def test_hostile_text_is_shown_not_obeyed() -> None:
    claim = a_claim(
        f"stem.{HOSTILE}",
        statement=HOSTILE,
        equation=HOSTILE,
        source=HOSTILE,
        code=(HOSTILE,),
        correction=HOSTILE,
    )
    verdict = a_verdict(
        claim,
        "refuted",
        worst_name=HOSTILE,
        counterexample=HOSTILE,
        values={HOSTILE: (0.0, 0.0, 0.0)},
        reason=HOSTILE,
    )
    verdict.mutants = [MutantVerdict(HOSTILE, False, math.inf, HOSTILE)]
    also = a_verdict(claim, HOSTILE, reason=HOSTILE)
    run = {**RUN, "version": HOSTILE, "environment": {HOSTILE: HOSTILE}, "profile": HOSTILE, "seed": HOSTILE}
    source = TokenInput("tokens", HOSTILE, np.eye(6), (1, 6), None, 0, HOSTILE)
    page = Page(render(run, [verdict, also], {claim.id: claim}, source, folder=HOSTILE))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert page.words.count("<script>alert('1')</script>") > 8


def test_the_page_works_without_input_claims_verdicts_or_run() -> None:
    page = Page(render(RUN, VERDICTS, {}, None))
    assert "on drawn inputs: 1 holds," in page.words
    assert "img" not in {tag for tag, _ in page.tags}
    assert "none was run" in Page(render({}, [], {}, None)).words


def test_a_token_file_shows_its_tokens() -> None:
    source = TokenInput("tokens", "t.npy", np.random.default_rng(0).standard_normal((9, 4)), (1, 9), None, 0, "nine")
    text = render(RUN, VERDICTS, CLAIMS, source)
    assert 'class="chart scatter"' in text
    assert "--tokens t.npy" in Page(text).words


def test_replay_commands_name_the_saved_files(text: str) -> None:
    assert "$ proofs-check replay proofs-report/stem_0.claim.holds--no-op.npz" in Page(text).words
    assert "proofs-check replay" not in Page(render(RUN, VERDICTS, CLAIMS, None)).words


def test_numbers_that_are_none_infinite_or_nan_are_shown() -> None:
    claim = a_claim("odd.numbers")
    odd = [
        a_verdict(claim, "fails", worst_error=math.nan, tolerance=0.0, real_input_error=math.inf),
        a_verdict(claim, "holds", worst_error=0.0, tolerance=0.0, real_input_error=0.0),
        a_verdict(claim, "measured", worst_error=None, tolerance=None),
    ]
    words = Page(render(RUN, odd, {}, None)).words
    assert "NaN" in words
    assert "∞" in words
    assert "nothing compared" in words
    assert [number(value) for value in (12345.6, 9998.0, -3e-5)] == ["1.2 × 10⁴", "9,998", "−3.0 × 10⁻⁵"]


def test_the_ruler_puts_zero_left_and_nan_right() -> None:
    assert 'cx="8.0"' in ruler(0.0, 1e-12)
    assert "error bad" in ruler(math.nan, 1e-12)
    assert "error bad" not in ruler(1e-13, 1e-12)
    assert ruler(None, None) == ""


def test_the_remainder_needs_two_positive_points() -> None:
    assert remainder_chart([(1.0, 1.0), (0.1, 0.0)]) == ""
    assert "slope 2" in remainder_chart([(1.0, 1.0), (0.1, 0.01)])


def test_equations_share_outlines_and_break_at_relations() -> None:
    setter = Typesetter()
    first = setter.equation(r"$a = b, \quad c = \frac{a}{b}$")
    assert first.count("<svg") == 2
    outlines = setter.outlines()
    assert outlines.count("<path") == 5  # a, b, c, =, the comma
    long = setter.equation("$" + " = ".join([r"\log\det(I + Z Z^\top)"] * 4) + "$")
    assert long.count("<wbr>") == 3
    assert set(re.findall('href="#(g[0-9]+)"', first + long)) == set(re.findall('id="(g[0-9]+)"', setter.outlines()))


@pytest.mark.parametrize("latex", [r"$\nonsense{x}$", "$x", r"\frac{1"])
def test_an_equation_that_cannot_be_parsed_stays_readable(latex: str) -> None:
    assert Typesetter().equation(latex) == f'<code class="math">{latex}</code>'


def test_the_lesson_starts_alike_and_the_exact_step_descends() -> None:
    tokens = np.random.default_rng(0).standard_normal((40, 6)) / 6**0.5
    told = lesson(tokens, steps=12)
    assert told.heads == 3
    assert lesson(tokens[:, :4], steps=1).heads == 1
    assert len({line[0] for line in told.rate.values()}) == 1
    assert all(len(line) == 13 for line in (*told.rate.values(), *told.unit.values()))
    exact = told.rate["exact step"]
    assert all(after <= before for before, after in itertools.pairwise(exact))
    assert math.isnan(told.unit["exact step"][-1])  # only rounding errors are left of the tokens
    assert told.rate["Z + MSSA"][-1] > told.rate["Z − MSSA"][-1]
    assert lesson(tokens, steps=12).rate == told.rate


def test_a_large_photograph_is_shown_small() -> None:
    image = np.zeros((1800, 2400, 3), np.uint8)
    source = TokenInput("image", "big.png", np.eye(6), (18, 24), image, 100)
    assert len(photograph(source)) < 20_000


def test_writing_replaces_the_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    write(path, RUN, VERDICTS, CLAIMS, None)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "page/stem_0.claim.holds--no-op.npz" in path.read_text(encoding="utf-8")
    assert [item.name for item in tmp_path.iterdir()] == ["page.html"]


def test_a_write_that_fails_leaves_the_old_page_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def refuse(*names: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report_module.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write(path, RUN, VERDICTS, CLAIMS, None)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["page.html"]
