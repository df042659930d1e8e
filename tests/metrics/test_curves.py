import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve
from sklearn.metrics import roc_curve as sklearn_roc

from medvol.metrics import (
    auc_roc,
    average_precision,
    bootstrap_band,
    decision_band,
    decision_curve,
    pr_band,
    pr_curve,
    roc_band,
    roc_curve,
    weighted_mean,
)

GRID = np.linspace(0, 1, 21)


@pytest.fixture
def cases():
    rng = np.random.default_rng(3)
    y = rng.random(120) < 0.4
    return y, np.round(rng.normal(y, 1.0), 1)  # rounded: with ties


def test_curves_are_those_of_scikit_learn(cases):
    fpr, tpr = roc_curve(*cases)
    want = sklearn_roc(*cases, drop_intermediate=False)
    assert np.array_equal(fpr, want[0])
    assert np.array_equal(tpr, want[1])
    recall, precision = pr_curve(*cases)
    want = precision_recall_curve(*cases)
    assert precision == pytest.approx(want[0][-2::-1])
    assert recall == pytest.approx(want[1][-2::-1])


def test_areas_under_the_curves_are_the_metrics(cases):
    fpr, tpr = roc_curve(*cases)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc_roc(*cases))
    recall, precision = pr_curve(*cases)
    assert (precision * np.diff(recall, prepend=0)).sum() == pytest.approx(
        average_precision(*cases)
    )


@pytest.mark.parametrize("band", [roc_band, pr_band])
def test_a_band_holds_its_curve_and_narrows_with_more_cases(band, cases):
    y, score = cases
    few = band(y, score, GRID, resamples=400)
    assert (few.lower <= few.value + 1e-12).all()
    assert (few.upper >= few.value - 1e-12).all()
    assert ((few.lower >= 0) & (few.upper <= 1)).all()
    rng = np.random.default_rng(4)
    truth = rng.random(4000) < 0.4
    many = band(truth, rng.normal(truth, 1.0), GRID, resamples=100)
    assert (many.upper - many.lower)[5:15].mean() < 0.4 * (few.upper - few.lower)[5:15].mean()


def test_cases_of_one_patient_do_not_count_as_several(cases):
    y, score = np.tile(cases[0], 4), np.tile(cases[1], 4)
    patients = np.tile(np.arange(120), 4)
    alone = roc_band(*cases, GRID, resamples=300)
    cluster = roc_band(y, score, GRID, groups=patients, resamples=300)
    assert cluster.lower == pytest.approx(alone.lower)


def test_a_perfect_curve_is_not_without_width():
    y = np.arange(20) % 2
    for band in (roc_band, pr_band):
        found = band(y, y.astype(float), GRID[1:-1], resamples=100)
        assert (found.value == 1).all()
        assert (found.lower < 0.85).all()
        assert (found.upper == 1).all()


def test_net_benefit_is_that_of_the_decision_curve(cases):
    prob = 1 / (1 + np.exp(-cases[1]))
    found = decision_band(cases[0], prob, GRID[1:-1], resamples=50)
    assert found.value == pytest.approx(decision_curve(cases[0], prob, GRID[1:-1])[0])


def test_one_patient_has_no_band():
    found = bootstrap_band(lambda w: weighted_mean([1.0, 2.0])(w)[:, None], 2, groups=[0, 0])
    assert found.value.tolist() == [1.5]
    assert np.isnan([*found.lower, *found.upper]).all()
