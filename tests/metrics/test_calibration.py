import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from medvol.core import ConfigError, LabelError, NonFiniteError
from medvol.metrics import (
    apply_temperature,
    brier,
    calibration_line,
    decision_curve,
    ece,
    fit_temperature,
    net_benefit,
    reliability,
    split_conformal_quantile,
)

seeds = st.integers(0, 2**32 - 1)


def drawn(seed, n=400, slope=1.0):
    """Outcomes drawn from probabilities, which are then made ``slope`` times too extreme."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 1.5, n)
    return rng.random(n) < expit(logit), logit * slope


@given(seed=seeds)
def test_brier_is_scikit_learns(seed):
    y, logit = drawn(seed, 30)
    assert brier(y, expit(logit)) == pytest.approx(brier_score_loss(y, expit(logit)))


@settings(max_examples=40)
@given(seed=seeds, bins=st.integers(1, 12))
def test_ece_is_the_weighted_gap_of_bins_closed_above(seed, bins):
    y, logit = drawn(seed, 50)
    p, total = expit(logit), 0.0
    for k in range(bins):
        inside = (p > k / bins) & (p <= (k + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    assert ece(y, p, bins=bins) == pytest.approx(total)
    assert sum(row.n for row in reliability(y, p, bins=bins)) == 50


def test_probabilities_on_the_edges_have_a_bin():
    rows = reliability([0, 1, 1], [0.0, 1.0, 0.1], bins=10)
    assert [row.n for row in rows] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert math.isnan(rows[1].mean_prob)
    with pytest.raises(LabelError, match="not logits"):
        ece([0, 1], [0.1, 1.2])
    with pytest.raises(ConfigError):
        ece([0, 1], [0.1, 0.2], bins=0)


@settings(max_examples=20)
@given(seed=seeds)
def test_the_calibration_line_is_a_logistic_regression(seed):
    y, logit = drawn(seed, 200, slope=1.7)
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], y)
    got = calibration_line(y, expit(logit))
    assert got.slope == pytest.approx(peer.coef_[0, 0], rel=1e-4)
    assert got.intercept == pytest.approx(peer.intercept_[0], abs=1e-4)
    # With the slope held at 1 the mean predicted risk equals the mean outcome.
    assert expit(logit + got.in_the_large).mean() == pytest.approx(y.mean(), abs=1e-6)


@settings(max_examples=60)
@given(seed=seeds, n=st.integers(2, 9), grid=st.integers(2, 5))
def test_an_infinite_slope_is_one_that_every_steeper_line_improves(seed, n, grid):
    rng = np.random.default_rng(seed)
    y, prob = rng.random(n) < 0.5, rng.integers(1, grid, n) / grid
    got = calibration_line(y, prob)
    if y.all() or not y.any() or len(set(prob)) == 1:
        assert math.isnan(got.slope)
        return
    logit = np.log(prob / (1 - prob))

    def best(slope):  # likelihood with the intercept at its best for this slope
        return minimize_scalar(
            lambda a: np.logaddexp(0, a + slope * logit).sum() - (a + slope * logit)[y].sum(),
            bounds=(-400, 400), method="bounded", options={"xatol": 1e-9},
        ).fun  # fmt: skip

    losses = {slope: best(slope) for slope in (-80, -40, 40, 80)}
    rises, falls = losses[80] < losses[40] + 1e-7, losses[-80] < losses[-40] + 1e-7
    assert (got.slope == math.inf, got.slope == -math.inf) == (rises, falls)


def test_the_line_is_undefined_where_nothing_determines_it():
    assert math.isnan(calibration_line([1, 1], [0.2, 0.8]).slope)
    assert calibration_line([0, 1], [0.2, 0.8]).slope == math.inf
    assert calibration_line([0, 1], [0.8, 0.2]).slope == -math.inf
    assert calibration_line([0, 0, 1, 1], [0.2, 0.5, 0.5, 0.8]).slope == math.inf
    assert calibration_line([0, 0, 1, 1], [0.5, 0.8, 0.2, 0.5]).slope == -math.inf
    assert math.isnan(calibration_line([0, 1], [0.5, 0.5]).slope)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, (40_000, 3))
    prob = apply_temperature(logits, 1.0)
    y = (rng.random((len(prob), 1)) > prob.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(logits * temperature, y) == pytest.approx(temperature, rel=0.03)
    two, binary = drawn(3, 40_000, slope=temperature)[::-1]
    assert fit_temperature(two, binary) == pytest.approx(temperature, rel=0.05)


def test_temperature_keeps_the_ranking_and_rejects_nonsense():
    logits = np.random.default_rng(0).normal(size=(20, 4))
    hot = apply_temperature(logits, 7.0)
    assert np.array_equal(hot.argmax(axis=1), logits.argmax(axis=1))
    assert hot.sum(axis=1) == pytest.approx(1)
    with pytest.raises(ConfigError):
        apply_temperature(logits, 0.0)
    with pytest.raises(NonFiniteError):
        fit_temperature([[0.0, math.nan]], [0])
    with pytest.raises(LabelError):
        fit_temperature([[0.0, 1.0]], [2])


def test_net_benefit_of_a_perfect_model_is_the_prevalence():
    y = np.array([0, 0, 0, 1])
    for threshold in (0.1, 0.5, 0.9):
        assert net_benefit(y, y, threshold=threshold) == 0.25
    curve = decision_curve(y, y, [0.0, 0.25, 0.5])
    assert curve[0].tolist() == [0.25, 0.25, 0.25]
    # Treating everybody breaks even at the prevalence.
    assert curve[1].tolist() == pytest.approx([0.25, 0.0, -0.5])


@given(seed=seeds, alpha=st.sampled_from([0.05, 0.1, 0.3]))
def test_the_conformal_threshold_is_the_smallest_that_keeps_its_promise(seed, alpha):
    scores = np.random.default_rng(seed).normal(size=np.random.default_rng(seed).integers(1, 60))
    got = split_conformal_quantile(scores, alpha)
    needed = (len(scores) + 1) * (1 - alpha) - 1e-9
    candidates = [s for s in scores if (scores <= s).sum() >= needed]
    assert got == min(candidates, default=math.inf)
