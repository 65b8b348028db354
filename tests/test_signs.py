import numpy as np
import pytest

from proofs_check.signs import EPSILONS, sign_table, sign_table_html


def test_the_exact_step_falls_in_every_draw_and_the_published_one_rises():
    table = sign_table(np.random.default_rng(0).standard_normal((200, 24)), seed=1)
    families = {family for family, _ in table["Z − MSSA"]}
    assert len(families) == 3
    for column, (plain, _) in table["Z − ∇R_c / L, the exact step"].items():
        assert plain.falls == 1, column
        assert table["Z + MSSA, as published"][column][0].falls == 0
        rate, unit = table["Z + MSSA, then tokens of norm 1"][column]
        assert rate.change == pytest.approx(unit.change, abs=1e-12)
        assert table["½ Z + ½ MSSA, shrink and add"][column][0].falls == 1
        assert table["CBSA, exact"][column][0].falls > 0.9


def test_without_an_input_two_families_stay_and_seeds_matter():
    first, again, other = sign_table(seed=0), sign_table(seed=0), sign_table(seed=2)
    assert len(first["Z − MSSA"]) == 2 * len(EPSILONS)
    assert first == again
    assert first != other


def test_the_page_names_every_rule_and_colours_what_all_draws_agree_on():
    page = sign_table_html(sign_table())
    assert page.count("<tr>") == 2 * (2 + 8)
    assert 'class="down">−' in page
    assert 'class="up">+' in page
    assert "falls in" in page
