"""Confidence intervals with a closed form: proportions and areas under the ROC curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError
from medvol.metrics.registry import metric
from medvol.metrics.result import Fields
from medvol.metrics.scores import BinaryScores

_NAN = float("nan")


@dataclass(frozen=True)
class Proportion(Fields):
    """k of n with an interval; the estimate is ``nan`` and the interval 0 to 1 if n is 0."""

    estimate: float
    lower: float
    upper: float
    k: int
    n: int


@dataclass(frozen=True)
class DelongInterval(Fields):
    """An AUC with DeLong's variance and the normal interval cut to 0 to 1."""

    auc: float
    lower: float
    upper: float
    var: float
    n_pos: int
    n_neg: int


@dataclass(frozen=True)
class AucInterval(Fields):
    """An AUC with the interval that fits it; ``method`` names it."""

    auc: float
    lower: float
    upper: float
    n_pos: int
    n_neg: int
    method: str


@metric(kind="counts", direction="none")
def wilson(k: int, n: int, *, confidence: float = 0.95) -> Proportion:
    """Wilson's score interval for k of n.

    Source:
        Wilson 1927, J Am Stat Assoc 22:209; Newcombe 1998, Stat Med 17:857, method 3.

    >>> round(wilson(81, 263).lower, 4), round(wilson(81, 263).upper, 4)
    (0.2553, 0.3662)
    """
    _check_counts(k, n)
    if n == 0:
        return Proportion(_NAN, 0.0, 1.0, 0, 0)
    z = normal_quantile(confidence)
    p, spread = k / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    lower = 0.0 if k == 0 else max(0.0, centre - half)
    upper = 1.0 if k == n else min(1.0, centre + half)
    return Proportion(p, lower, upper, int(k), int(n))


@metric(kind="counts", direction="none")
def clopper_pearson(k: int, n: int, *, confidence: float = 0.95) -> Proportion:
    """Clopper and Pearson's exact interval for k of n; it covers at least the confidence.

    Source:
        Clopper & Pearson 1934, Biometrika 26:404.
    """
    from scipy.stats import beta

    _check_counts(k, n)
    if n == 0:
        return Proportion(_NAN, 0.0, 1.0, 0, 0)
    tail = (1 - _check_confidence(confidence)) / 2
    lower = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    upper = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return Proportion(k / n, lower, upper, int(k), int(n))


@metric(kind="score", direction="higher")
def delong_ci(y: ArrayLike, score: ArrayLike, *, confidence: float = 0.95) -> DelongInterval:
    """AUC with DeLong's variance and the plain normal interval, as in pROC's ``ci.auc``.

    Perfect separation has variance 0 here and an interval without width; ``auc_ci`` does not.

    Args:
        y: Truth, 0 or 1.
        score: Higher means more likely positive.
        confidence: Nominal coverage.

    Returns:
        All ``nan`` if a class is missing; the variance and the interval are ``nan`` if a class
        has a single case.

    Source:
        DeLong et al. 1988, Biometrics 44:837; midranks as in Sun & Xu 2014, IEEE SPL 21:1389.
    """
    data = BinaryScores.of(y, score)
    auc, covariance = delong_covariance(data.y, data.score[None])
    var = float(covariance[0, 0])
    half = normal_quantile(confidence) * math.sqrt(var) if var >= 0 else _NAN
    a = float(auc[0])
    lower, upper = (float(np.clip(a - half, 0, 1)), float(np.clip(a + half, 0, 1)))
    return DelongInterval(a, lower, upper, var, data.n_pos, data.n_neg)


def auc_ci(y: ArrayLike, score: ArrayLike, *, confidence: float = 0.95) -> AucInterval:
    """AUC with the interval to report: DeLong's on the logit scale, or Newcombe's at the edge.

    The plain interval of ``delong_ci`` holds an AUC of 0.95 in 92% of samples of 100 and 100, and
    one of 0.98 in 83% of 50 and 50; on the logit scale it is 95% and 93%
    (``tools/bench/coverage.py``). Where the classes separate perfectly DeLong's variance is 0, as
    if a handful of cases had proved an AUC of 1; there Newcombe's method 5, a score-type interval,
    takes its place, so no interval is without width.

    Returns:
        ``method`` is ``delong_logit`` or ``newcombe``; all ``nan`` if a class is missing.

    Source:
        Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2; Newcombe 2006, Stat
        Med 25:559, doi:10.1002/sim.2324.

    >>> edge = auc_ci([0, 0, 1, 1], [0.0, 0.1, 0.8, 0.9])
    >>> edge.method, edge.lower < 0.8, edge.upper
    ('newcombe', True, 1.0)
    """
    plain, z = delong_ci(y, score, confidence=confidence), normal_quantile(confidence)
    a, sizes = plain.auc, (plain.n_pos, plain.n_neg)
    if not min(sizes):
        return AucInterval(_NAN, _NAN, _NAN, *sizes, "undefined")
    if plain.var > 0 and 0 < a < 1:
        odds = a / (1 - a)
        factor = math.exp(z * math.sqrt(plain.var) / (a * (1 - a)))
        lower, upper = odds / (odds + factor), odds * factor / (1 + odds * factor)
        return AucInterval(a, lower, upper, *sizes, "delong_logit")
    return AucInterval(a, *_newcombe(a, *sizes, z), *sizes, "newcombe")


def delong_covariance(
    y: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC of several scores on the same cases, and the covariance of these AUC.

    Args:
        y: Truth, shape (n,).
        scores: Shape (models, n).

    Returns:
        AUC, shape (models,), and covariance, shape (models, models); ``nan`` where a class has
        too few cases.
    """
    from scipy.stats import rankdata

    m, n = int(y.sum()), int((~y).sum())
    k = len(scores)
    if not m or not n:
        return np.full(k, _NAN), np.full((k, k), _NAN)
    overall = rankdata(scores, axis=1)
    pos = (overall[:, y] - rankdata(scores[:, y], axis=1)) / n
    neg = 1 - (overall[:, ~y] - rankdata(scores[:, ~y], axis=1)) / m
    if m < 2 or n < 2:
        return pos.mean(axis=1), np.full((k, k), _NAN)
    covariance = np.atleast_2d(np.cov(pos)) / m + np.atleast_2d(np.cov(neg)) / n
    return pos.mean(axis=1), covariance


def normal_quantile(confidence: float) -> float:
    """How many standard errors a two-sided interval of this confidence reaches."""
    from scipy.special import ndtri

    return float(ndtri((1 + _check_confidence(confidence)) / 2))


def _newcombe(auc: float, m: int, n: int, z: float) -> tuple[float, float]:
    """Bounds theta with |auc - theta| = z sqrt(V(theta)), V of Hanley & McNeil, balanced sizes."""
    from scipy.optimize import brentq

    star = (m + n) / 2 - 1

    def gap(theta: float) -> float:
        v = theta * (1 - theta) / (m * n)
        v *= 1 + star * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (auc - theta) ** 2 - z * z * v

    low = 0.0 if auc <= 0 else float(brentq(gap, 1e-15, max(auc - 1e-12, 2e-15)))  # pyright: ignore[reportArgumentType]
    high = 1.0 if auc >= 1 else float(brentq(gap, min(auc + 1e-12, 1 - 2e-15), 1 - 1e-15))  # pyright: ignore[reportArgumentType]
    return low, high


def _check_counts(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ConfigError(f"a proportion needs 0 <= k <= n, not k={k}, n={n}")


def _check_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, not {confidence}")
    return confidence
