import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medvol.core import ConfigError, GridMismatchError
from medvol.metrics import (
    auc_roc,
    average_precision,
    bootstrap_ci,
    from_cases,
    weighted_auc,
    weighted_average_precision,
    weighted_mean,
    weighted_quantile,
    weighted_ratio,
)

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=50)
@given(seed=seeds, digits=st.integers(0, 2))
def test_weights_are_copies_of_cases(seed, digits):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 15))
    weights = rng.integers(0, 4, (6, n)).astype(float)
    y, score = rng.integers(0, 2, n), np.round(rng.normal(size=n), digits)
    pairs = {
        "auc": (weighted_auc(y, score), lambda i: auc_roc(y[i], score[i])),
        "ap": (weighted_average_precision(y, score), lambda i: average_precision(y[i], score[i])),
        "mean": (weighted_mean(score), lambda i: np.mean(score[i]) if i.size else math.nan),
        "ratio": (
            weighted_ratio(y * score, y),
            lambda i: (y * score)[i].sum() / y[i].sum() if y[i].any() else math.nan,
        ),
    }
    for name, (weighted, plain) in pairs.items():
        want = from_cases(plain)(weights)
        assert weighted(weights) == pytest.approx(want, nan_ok=True), name
    if (weights.sum(axis=1) > 0).all():
        median = from_cases(lambda i: float(np.median(score[i])))(weights)
        assert weighted_quantile(score)(weights) == pytest.approx(median)


def test_a_mean_with_a_miss_is_infinite_and_its_median_is_not():
    values = np.array([1.0, 2.0, 3.0, math.inf])
    ones = np.ones((1, 4))
    assert weighted_mean(values)(ones) == math.inf
    assert weighted_quantile(values)(ones) == 2.5
    drawn_without = np.array([[1.0, 1.0, 1.0, 0.0]])
    assert weighted_mean(values)(drawn_without) == 2.0


def test_percentile_and_bca_bounds_are_scipys():
    x = np.random.default_rng(5).gamma(2.0, size=60)
    for method in ("percentile", "bca"):
        want = stats.bootstrap(
            (x,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(1)
        ).confidence_interval
        got = bootstrap_ci(weighted_mean(x), 60, method=method, resamples=20_000, seed=2)
        # Two sets of 20,000 draws: bounds differ by a few per cent of the standard error.
        assert (got.lower, got.upper) == pytest.approx((want.low, want.high), abs=0.02)
        assert got.method == method


def test_the_seed_decides_and_the_number_of_threads_does_not():
    x = np.random.default_rng(0).normal(size=3000)
    runs = [
        bootstrap_ci(weighted_mean(x), 3000, resamples=1500, seed=s, jobs=j)
        for s, j in ((1, 1), (1, 3), (2, 1))
    ]
    assert runs[0] == runs[1]
    assert runs[0].lower != runs[2].lower


def test_patients_are_drawn_whole():
    # Ten copies of each patient's case add nothing: the interval stays that of the patients.
    x = np.random.default_rng(3).normal(size=40)
    alone = bootstrap_ci(weighted_mean(x), 40, seed=4)
    copied = bootstrap_ci(
        weighted_mean(np.repeat(x, 10)), 400, groups=np.repeat(np.arange(40), 10), seed=4
    )
    naive = bootstrap_ci(weighted_mean(np.repeat(x, 10)), 400, seed=4)
    width = alone.upper - alone.lower
    assert copied.upper - copied.lower == pytest.approx(width, rel=0.05)
    assert naive.upper - naive.lower < 0.5 * width
    assert (copied.n, copied.n_groups) == (400, 40)


def test_strata_keep_their_size():
    y = np.repeat([0, 1], [3, 30])
    drawn = []

    def spy(weights):
        drawn.append(weights[:, :3].sum(axis=1))
        return weights.sum(axis=1)

    bootstrap_ci(spy, 33, strata=y, method="percentile", resamples=50)
    assert (np.concatenate(drawn) == 3).all()
    with pytest.raises(ConfigError, match="two strata"):
        bootstrap_ci(spy, 33, groups=np.zeros(33), strata=y)
    with pytest.raises(GridMismatchError, match="33 cases"):
        bootstrap_ci(spy, 33, groups=[1, 2])


def test_resamples_without_a_class_are_counted():
    got = bootstrap_ci(weighted_auc([0, 1, 1, 1], [0.1, 0.9, 0.3, 0.2]), 4, method="percentile")
    # The only negative is not drawn in (3/4)^4 of the draws, and drawn alone in (1/4)^4.
    assert got.undefined / 10_000 == pytest.approx(0.75**4 + 0.25**4, abs=0.02)


def test_one_patient_has_no_interval_and_constants_have_no_bca():
    one = bootstrap_ci(weighted_mean([1.0, 2.0]), 2, groups=["a", "a"])
    assert math.isnan(one.lower)
    flat = bootstrap_ci(weighted_mean(np.ones(20)), 20)
    assert (flat.lower, flat.upper, flat.method) == (1, 1, "percentile")
