import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from medvol.core import ConfigError, GridMismatchError, LabelError, NonFiniteError
from medvol.metrics import (
    auc_roc,
    average_precision,
    clinical,
    confusion,
    confusion_matrix,
    one_vs_rest,
    predictive_values,
    threshold_at_sensitivity,
    threshold_at_specificity,
    threshold_at_youden,
)

cases = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6).map(lambda k: k / 4 - 0.5)), min_size=1, max_size=25
)
targets = st.sampled_from([0.05, 0.5, 0.8, 0.95, 1.0])


def split(rows):
    y, score = zip(*rows, strict=True)
    return np.array(y), np.array(score)


def decisions(y, score):
    """Sensitivity and specificity at every threshold that changes a decision."""
    for t in sorted({*score.tolist(), math.inf}):
        called = score >= t
        yield (
            t,
            called[y].mean() if y.any() else math.nan,
            (~called[~y]).mean() if (~y).any() else math.nan,
        )


@given(rows=cases)
def test_auc_is_the_share_of_pairs_in_order(rows):
    y, score = split(rows)
    wins = [(p > n) + (p == n) / 2 for p in score[y] for n in score[~y]]
    want = np.mean(wins) if wins else math.nan
    assert auc_roc(y, score) == pytest.approx(want, nan_ok=True)


@given(rows=cases)
def test_average_precision_is_scikit_learns(rows):
    y, score = split(rows)
    if y.any():
        assert average_precision(y, score) == pytest.approx(sk.average_precision_score(y, score))
    else:
        assert math.isnan(average_precision(y, score))


@given(tp=st.integers(0, 9), fp=st.integers(0, 9), fn=st.integers(0, 9), tn=st.integers(1, 9))
def test_clinical_values_are_scikit_learns(tp, fp, fn, tn):
    y, called = [1] * tp + [0] * fp + [1] * fn + [0] * tn, [1] * (tp + fp) + [0] * (fn + tn)
    got = clinical(tp, fp, fn, tn)
    assert got.accuracy == pytest.approx(sk.accuracy_score(y, called))
    if tp + fp + fn:
        assert got.f1 == pytest.approx(sk.f1_score(y, called))
    if tp + fn and tp + fp:
        assert got.mcc == pytest.approx(sk.matthews_corrcoef(y, called))
        assert got.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(y, called))
        assert got.ppv == pytest.approx(sk.precision_score(y, called))
    if tp + fn and fp:
        assert got.lr_plus == pytest.approx((tp / (tp + fn)) / (fp / (fp + tn)))


def test_what_has_no_denominator_is_undefined_not_zero():
    got = clinical(0, 0, 5, 5)
    assert math.isnan(got.ppv)
    assert math.isnan(got.mcc)
    assert math.isnan(got.lr_plus)
    assert clinical(5, 0, 0, 5).lr_plus == math.inf
    assert clinical(10**10, 10**10, 10**10, 10**10).mcc == 0
    with pytest.raises(ConfigError):
        clinical(-1, 0, 0, 0)


@given(rows=cases, target=targets)
def test_the_threshold_at_a_sensitivity_is_the_best_of_all(rows, target):
    y, score = split(rows)
    got = threshold_at_sensitivity(y, score, target=target)
    if not y.any():
        assert math.isnan(got.threshold)
        return
    reached = [t for t, se, _ in decisions(y, score) if se >= target and t in score[y]]
    assert got.threshold == max(reached)
    assert confusion(y, score, threshold=got.threshold) == got.observe(y, score)


@given(rows=cases, target=targets)
def test_the_threshold_at_a_specificity_is_the_best_of_all(rows, target):
    y, score = split(rows)
    if y.all():
        assert math.isnan(threshold_at_specificity(y, score, target=target).threshold)
        return
    reached = [t for t, _, sp in decisions(y, score) if sp >= target]
    assert threshold_at_specificity(y, score, target=target).threshold == min(reached)


@given(rows=cases)
def test_no_threshold_beats_youdens(rows):
    y, score = split(rows)
    if y.any() and not y.all():
        got = threshold_at_youden(y, score)
        best = max(se + sp - 1 for t, se, sp in decisions(y, score) if t < math.inf)
        assert got.sensitivity + got.specificity - 1 == pytest.approx(best)


@given(tp=st.integers(1, 50), fp=st.integers(1, 50), fn=st.integers(1, 50), tn=st.integers(1, 50))
def test_predictive_values_at_the_own_prevalence_are_the_observed(tp, fp, fn, tn):
    c = clinical(tp, fp, fn, tn)
    got = predictive_values(c.sensitivity, c.specificity, c.prevalence)
    assert got == pytest.approx((c.ppv, c.npv))


def test_many_classes_reduce_to_each_against_the_rest():
    rng = np.random.default_rng(0)
    y, prob = rng.integers(0, 3, 60), rng.dirichlet([1, 1, 1], 60)
    one_hot = np.eye(3)[y]
    for average in ("macro", "micro", "weighted"):
        want = sk.roc_auc_score(one_hot, prob, average=average)
        assert one_vs_rest(y, prob, average=average) == pytest.approx(want)
        assert one_vs_rest(one_hot, prob, average=average) == pytest.approx(want)
    want = sk.average_precision_score(one_hot, prob, average="macro")
    assert one_vs_rest(y, prob, average_precision, average="macro") == pytest.approx(want)
    called = prob.argmax(axis=1)
    assert np.array_equal(confusion_matrix(y, called, 3), sk.confusion_matrix(y, called))


def test_a_class_without_cases_makes_the_macro_mean_undefined():
    prob = np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]])
    assert math.isnan(one_vs_rest([0, 1], prob, average="macro"))


@pytest.mark.parametrize(
    ("y", "score", "error", "words"),
    [
        ([0, 1], [0.1], GridMismatchError, "same length"),
        ([0, 2], [0.1, 0.2], LabelError, "only 0 and 1"),
        ([0, 1], [0.1, math.nan], NonFiniteError, r"score\[1\] is nan"),
        ([[0, 1]], [[0.1, 0.2]], GridMismatchError, "one_vs_rest"),
    ],
)
def test_truth_and_scores_that_do_not_fit_are_rejected(y, score, error, words):
    for metric in (auc_roc, average_precision, confusion, threshold_at_sensitivity):
        with pytest.raises(error, match=words):
            metric(y, score)
