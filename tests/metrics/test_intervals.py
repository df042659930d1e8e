import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medvol.core import ConfigError
from medvol.metrics import auc_ci, auc_roc, clopper_pearson, delong_ci, wilson

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(kn=counts, confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_proportion_intervals_are_scipys(kn, confidence):
    k, n = kn
    peer = stats.binomtest(k, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        want = peer.proportion_ci(confidence, method=method)
        got = ours(k, n, confidence=confidence)
        assert (got.lower, got.upper) == pytest.approx((want.low, want.high), abs=1e-12)
        assert got.lower <= got.estimate <= got.upper


def test_no_cases_leave_everything_open():
    for interval in (wilson, clopper_pearson):
        got = interval(0, 0)
        assert math.isnan(got.estimate)
        assert (got.lower, got.upper, got.n) == (0, 1, 0)
        with pytest.raises(ConfigError):
            interval(3, 2)


def brute_delong(y, score):
    """DeLong's variance from the table of all pairs."""
    table = np.array([[(p > n) + (p == n) / 2 for n in score[~y]] for p in score[y]])
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    return rows.var(ddof=1) / len(rows) + columns.var(ddof=1) / len(columns)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_delongs_variance_is_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    y = np.arange(rng.integers(5, 40)) % 3 == 0
    score = np.round(rng.normal(y, 1), rng.integers(0, 3))
    got = delong_ci(y, score)
    assert got.auc == pytest.approx(auc_roc(y, score))
    assert got.var == pytest.approx(brute_delong(y, score))


def test_a_missing_class_has_no_auc_and_one_case_no_variance():
    assert math.isnan(delong_ci([1, 1], [0.1, 0.2]).auc)
    one = delong_ci([0, 0, 1], [0.1, 0.2, 0.15])
    assert (one.auc, math.isnan(one.var)) == (0.5, True)


@pytest.mark.parametrize("n", [2, 5, 20, 200])
def test_perfect_separation_never_shows_an_interval_without_width(n):
    y = np.repeat([0, 1], n)
    got, mirrored = auc_ci(y, y), auc_ci(y, 1 - y)
    assert (got.auc, got.upper, got.method) == (1, 1, "newcombe")
    assert 0 < got.lower < 1 - 1 / (2 * n)
    assert mirrored.lower == 0
    assert mirrored.upper == pytest.approx(1 - got.lower)


def test_the_edge_interval_tightens_with_cases_and_holds_one_case_classes():
    lower = [auc_ci(np.repeat([0, 1], n), np.repeat([0.0, 1.0], n)).lower for n in (2, 8, 64, 512)]
    assert lower == sorted(lower)
    assert lower[-1] > 0.98
    single = auc_ci([0, 0, 1], [0.1, 0.2, 0.15])
    assert single.lower < 0.2
    assert single.upper > 0.8


@given(seed=st.integers(0, 2**32 - 1))
def test_the_reported_interval_is_delongs_on_the_logit_scale(seed):
    rng = np.random.default_rng(seed)
    y = np.arange(30) % 2 == 0
    score = rng.normal(y, 1)
    plain, got = delong_ci(y, score), auc_ci(y, score)
    if plain.var > 0:
        # The delta method: the standard error of logit(a) is that of a over a (1 - a).
        half = 1.959963984540054 * math.sqrt(plain.var) / (plain.auc * (1 - plain.auc))
        logits = [math.log(v / (1 - v)) for v in (got.lower, got.auc, got.upper)]
        assert np.diff(logits) == pytest.approx([half, half])
        assert got.method == "delong_logit"
    assert math.isnan(auc_ci([1, 1], [0.1, 0.2]).auc)
