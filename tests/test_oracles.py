import math

import mpmath
import numpy as np
import pytest

from proofs_check import paper
from proofs_check.oracles import mp_array, mp_derivative, richardson_derivative, taylor_curve, taylor_slope
from proofs_check.tolerance import tolerance


@pytest.mark.parametrize("f", [math.exp, math.sin, lambda t: math.log(2 + t), lambda t: 1e-9 * math.exp(3 * t)])
def test_richardson_is_right_within_its_own_estimate(f):
    derivative, error = richardson_derivative(f, 0.1)
    exact = float(mpmath.diff(lambda t: f(float(t)), 0)) if f in (math.sin,) else None
    expected = {math.exp: 1.0, math.sin: 1.0}.get(f, exact)
    if expected is None:
        expected = 0.5 if abs(f(0.0)) > 0.1 else 3e-9
    assert abs(derivative - expected) <= 8 * error
    assert error < 1e-9


def test_fifty_digits_are_fifty_digits():
    assert mp_derivative(mpmath.exp, 1.0) == 1.0
    assert abs(mp_derivative(lambda t: mpmath.log(2 + t), 1.0) - 0.5) < 1e-16


def test_the_taylor_slope_tells_right_from_wrong():
    right = taylor_slope(taylor_curve(math.exp, 1.0, 0.5))
    wrong = taylor_slope(taylor_curve(math.exp, 1.001, 0.5))
    assert right == pytest.approx(2, abs=0.1)
    assert wrong < 1.6


@pytest.mark.parametrize("zero", [0.9, 0.1, 0.02, 0.011, 0.003])
def test_orders_that_cancel_at_some_step_are_no_evidence_against_a_derivative(zero):
    """The remainder h² − h³/zero vanishes at h = zero, and near it no slope is 2."""
    slope = taylor_slope(taylor_curve(lambda h: 1.0 + h + 1e-3 * h**2 * (1 - h / zero), 1.0, 0.37))
    assert math.isnan(slope) or slope == pytest.approx(2, abs=0.3)
    assert taylor_slope(taylor_curve(lambda h: 1.0 + h + 1e-3 * h**2 * (1 - h / zero), 1.01, 0.37)) < 1.5


def test_a_linear_function_is_no_evidence_for_the_slope():
    assert math.isnan(taylor_slope(taylor_curve(lambda t: 3 * t, 3.0, 0.5)))


def test_the_transcriptions_agree_in_both_number_systems():
    rng = np.random.default_rng(0)
    Z, U = rng.standard_normal((4, 3)), [np.linalg.qr(rng.standard_normal((4, 2)))[0]]
    for f in (
        lambda Y: paper.coding_rate(Y, 0.5),
        lambda Y: paper.coding_rate_tokens_side(Y, 0.5),
        lambda Y: paper.crate_eq8(Y, U, 0.5),
        lambda Y: paper.symmetric_energy(Y, U, 0.7),
        lambda Y: paper.self_attention_energy(Y, U, [np.ones((2, 5))], 0.7),
    ):
        with mpmath.workdps(50):
            assert float(f(mp_array(Z))) == pytest.approx(float(f(Z)), rel=1e-13)


def test_the_coding_rate_of_two_orthogonal_tokens_by_hand():
    assert float(paper.coding_rate(np.sqrt(2) * np.eye(2), 1.0)) == pytest.approx(math.log(3))


def test_bins_of_adaptive_pooling_are_torchs():
    import torch

    W = np.random.default_rng(0).standard_normal((2, 35))
    for m in (1, 4, 9, 35, 40):
        got = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(W), m).numpy()
        np.testing.assert_allclose(paper.pool_sequence(W, m), got, rtol=1e-12)
    got = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(W).reshape(2, 5, 7), (3, 8)).reshape(2, -1)
    np.testing.assert_allclose(paper.pool_grid(W, (5, 7), (3, 8)), got, rtol=1e-12)


def test_the_tolerance_grows_with_what_it_should():
    assert tolerance("float32") > 1e7 * tolerance("float64") / 2
    assert tolerance("float64", 10.0) == pytest.approx(10 * tolerance("float64"))
    assert tolerance("float64", 1.0, 9.0) == pytest.approx(10 * tolerance("float64"))
