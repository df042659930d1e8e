"""Paired tests: did the second model really do better on the same cases?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError, GridMismatchError
from medvol.metrics.intervals import delong_covariance, normal_quantile
from medvol.metrics.registry import metric
from medvol.metrics.result import Fields
from medvol.metrics.scores import BinaryScores


@dataclass(frozen=True)
class DelongTest(Fields):
    """Difference of two AUC on the same cases, first minus second."""

    auc1: float
    auc2: float
    difference: float
    lower: float
    upper: float
    z: float
    p: float


@dataclass(frozen=True)
class TestResult(Fields):
    """A paired test; ``n`` counts the pairs that had something to say."""

    __test__ = False

    statistic: float
    p: float
    n: int


@metric(kind="score", direction="none")
def delong_test(
    y: ArrayLike, s1: ArrayLike, s2: ArrayLike, *, confidence: float = 0.95
) -> DelongTest:
    """DeLong's test of two correlated AUC, as in pROC's ``roc.test``.

    Args:
        y: Truth, 0 or 1.
        s1: First model's scores.
        s2: Second model's scores on the same cases.
        confidence: Of the interval for the difference.

    Returns:
        Identical rankings give z = 0 and p = 1; ``nan`` if a class has fewer than two cases.

    Source:
        DeLong et al. 1988, Biometrics 44:837.
    """
    from scipy.special import ndtr

    first, second = BinaryScores.of(y, s1), BinaryScores.of(y, s2)
    auc, covariance = delong_covariance(first.y, np.stack([first.score, second.score]))
    difference = float(auc[0] - auc[1])
    var = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = math.sqrt(max(var, 0.0)) if not math.isnan(var) else math.nan
    if error < 1e-12:
        z = 0.0 if abs(difference) < 1e-12 else math.copysign(math.inf, difference)
    else:
        z = difference / error
    half = normal_quantile(confidence) * error
    p = float(2 * ndtr(-abs(z)))
    return DelongTest(
        float(auc[0]), float(auc[1]), difference, difference - half, difference + half, z, p
    )


@metric(kind="counts", direction="none")
def mcnemar_exact(b: int, c: int) -> TestResult:
    """McNemar's exact test of two decisions on the same cases.

    Args:
        b: Cases that only the first got right.
        c: Cases that only the second got right.

    Source:
        McNemar 1947, Psychometrika 12:153; two-sided binomial, doubled and cut at 1.
    """
    from scipy.stats import binom

    if b < 0 or c < 0:
        raise ConfigError(f"counts cannot be negative: b={b}, c={c}")
    p = min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5))) if b + c else 1.0
    return TestResult(float(min(b, c)), p, int(b + c))


def wilcoxon_paired(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> TestResult:
    """Wilcoxon's signed-rank test on paired values; infinite values rank last, as they should.

    Pairs of which both values are infinite, or either undefined, say nothing and are left out;
    zero differences are handled by Pratt's method. The p is exact up to 50 pairs without ties or
    zeros, and asymptotic otherwise.

    Args:
        first: One value per case.
        second: The other model's value for the same case.
        groups: Patient of each case; where patients repeat, the signs of a patient's ranks flip
            together, for their cases are no evidence of their own.
        resamples: Random sign patterns of that; see ``permutation_paired``.
        seed: Of the random patterns.

    Source:
        Rosner, Glynn & Lee 2006, Biometrics 62:185 (clustered signed ranks).
    """
    from scipy.stats import rankdata, wilcoxon

    d = paired_differences(first, second)
    known = ~np.isnan(d)
    names = (np.arange(len(d)) if groups is None else np.asarray(groups))[known]
    d = d[known]
    if not d.any():
        return TestResult(0.0, 1.0, len(d))
    largest = np.abs(d[np.isfinite(d)]).max(initial=1.0)
    finite = np.where(np.isinf(d), np.sign(d) * (2 * largest + 1), d)
    if len(np.unique(names)) < len(names):
        signed = np.sign(finite) * rankdata(np.abs(finite))
        found = permutation_paired(
            signed, np.zeros(len(d)), groups=names, resamples=resamples, seed=seed
        )
        smaller = min(signed[signed > 0].sum(), -signed[signed < 0].sum())
        return TestResult(float(smaller), found.p, len(d))
    distinct = len(np.unique(np.abs(finite))) == len(finite) and bool(finite.all())
    method = "exact" if distinct and len(finite) <= 50 else "asymptotic"
    found = wilcoxon(finite, zero_method="pratt", method=method)
    return TestResult(float(found.statistic), float(found.pvalue), len(d))  # pyright: ignore[reportAttributeAccessIssue]


def permutation_paired(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> TestResult:
    """Sign-flip permutation test of the mean paired difference.

    Args:
        first: One value per case.
        second: The other model's value for the same case.
        groups: Patient of each case; a patient's differences flip together.
        resamples: Random sign patterns; with fewer than that possible, all are enumerated.
        seed: Of the random patterns.

    Returns:
        The mean difference and a two-sided p that counts the observed pattern.

    Raises:
        ConfigError: If a difference is not finite: means cannot use a false negative structure.
    """
    d = paired_differences(first, second)
    if not np.isfinite(d).all():
        raise ConfigError(
            f"{int((~np.isfinite(d)).sum())} of {len(d)} differences are undefined or infinite; "
            "use wilcoxon_paired, which ranks them"
        )
    names = np.arange(len(d)) if groups is None else np.asarray(groups)
    index = np.unique(names, return_inverse=True)[1]
    sums = np.bincount(index, weights=d)
    total = abs(sums.sum())
    if 2 ** min(len(sums), 40) <= resamples:
        bits = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        reached = np.abs((1 - 2 * bits) @ sums) >= total * (1 - 1e-12)
        return TestResult(float(d.mean()), float(reached.mean()), len(d))
    rng = np.random.default_rng(seed)
    count = 0
    for start in range(0, resamples, 1000):
        signs = rng.integers(0, 2, (min(1000, resamples - start), len(sums))) * 2 - 1
        count += int((np.abs(signs @ sums) >= total * (1 - 1e-12)).sum())
    return TestResult(float(d.mean()), (count + 1) / (resamples + 1), len(d))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p values adjusted for their number by Holm's step-down method; ``nan`` stays ``nan``.

    Source:
        Holm 1979, Scand J Stat 6:65.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    adjusted = np.full(values.shape, np.nan)
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def paired_differences(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """First minus second; equal infinities differ by 0."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape or a.ndim != 1:
        raise GridMismatchError(f"paired values have shapes {a.shape} and {b.shape}")
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(a) & (a == b), 0.0, a - b)
