import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medvol.core import ConfigError
from medvol.metrics import (
    delong_ci,
    delong_test,
    holm,
    mcnemar_exact,
    permutation_paired,
    wilcoxon_paired,
)

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40)
@given(seed=seeds)
def test_delongs_test_agrees_with_the_jackknife_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    y = np.arange(40) % 2 == 0
    s1, s2 = rng.normal(y, 1), rng.normal(y, 2)
    table = [np.sign(s[y][:, None] - s[~y][None]) / 2 + 0.5 for s in (s1, s2)]
    gap = table[0] - table[1]
    var = gap.mean(1).var(ddof=1) / y.sum() + gap.mean(0).var(ddof=1) / (~y).sum()
    got = delong_test(y, s1, s2)
    assert got.difference == pytest.approx(gap.mean())
    assert got.z == pytest.approx(gap.mean() / math.sqrt(var))
    assert got.p == pytest.approx(2 * stats.norm.sf(abs(got.z)))
    assert got.auc1 == pytest.approx(delong_ci(y, s1).auc)


def test_the_same_ranking_is_not_a_difference():
    y, s = [0, 0, 1, 1, 1], np.array([0.1, 0.4, 0.35, 0.8, 0.9])
    got = delong_test(y, s, s**3)
    assert (got.z, got.p, got.lower, got.upper) == (0, 1, 0, 0)


@given(b=st.integers(0, 30), c=st.integers(0, 30))
def test_mcnemar_is_a_fair_coin_on_the_disagreements(b, c):
    want = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c).p == pytest.approx(want)


@given(seed=seeds)
def test_wilcoxon_ranks_a_miss_above_every_distance(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.gamma(2, size=(2, 12))
    first[3] = math.inf
    first[5] = second[5] = math.inf
    finite = first.copy(), second.copy()
    finite[0][3] = 1e6
    finite[0][5] = finite[1][5] = 0
    want = stats.wilcoxon(*finite, zero_method="pratt", method="asymptotic")
    got = wilcoxon_paired(first, second)
    assert (got.p, got.n) == (pytest.approx(want.pvalue), 12)


def test_undefined_pairs_decide_nothing():
    assert wilcoxon_paired([1, math.nan, 2], [1, 3, 2]).p == 1
    with pytest.raises(ConfigError, match="1 of 2 differences"):
        permutation_paired([1, math.inf], [1, 2])


def test_permutation_enumerates_every_sign_pattern():
    d = np.array([0.5, -0.2, 0.9, 1.4, 0.1, 0.3])
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((-1, 1), repeat=6)]
    want = np.mean([s >= abs(d.sum()) - 1e-12 for s in sums])
    got = permutation_paired(d, np.zeros(6))
    assert got.p == pytest.approx(want)
    assert got.statistic == pytest.approx(d.mean())


def test_a_patients_cases_flip_together():
    # Three patients allow 8 patterns, however many cases each has: p cannot fall under 1/4.
    d = np.ones(60)
    got = permutation_paired(d, np.zeros(60), groups=np.arange(60) % 3)
    assert got.p == 0.25
    assert permutation_paired(d, np.zeros(60), seed=1).p == pytest.approx(1 / 10_001)


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_stepping_down_rejects(p):
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), np.argsort(p, kind="stable")
        for step, index in enumerate(order):
            if p[index] * (len(p) - step) > level:
                break
            rejected.add(int(index))
        assert {int(i) for i in np.flatnonzero(adjusted <= level)} == rejected
    assert math.isnan(holm([math.nan, 0.01])[0])
    assert holm([math.nan, 0.01])[1] == 0.01
