"""Bootstrap intervals, clustered by patient, for statistics that accept weights.

A resample is not a list of cases but a count per case; a statistic that takes counts handles
hundreds of resamples in one matrix product. That is what makes 10,000 resamples cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError, GridMismatchError
from medvol.metrics.result import Fields
from medvol.metrics.scores import BinaryScores

Weights = NDArray[np.float64]
#: Takes counts, shape (resamples, cases); returns one value per resample.
WeightedStatistic = Callable[[Weights], NDArray[np.float64]]
_CHUNK_CELLS = 1_000_000
#: With fewer, resampling patients can draw too few different samples to bound anything.
LEAST_PATIENTS = 3
#: A jackknife over fewer patients cannot show skewness.
_MIN_BCA_GROUPS = 5


@dataclass(frozen=True)
class BootstrapInterval(Fields):
    """An estimate with a bootstrap interval.

    Attributes:
        estimate: The statistic on the cases as they are.
        lower: Lower bound.
        upper: Upper bound.
        n: Cases.
        n_groups: Patients, which are what is resampled.
        undefined: Resamples in which the statistic was ``nan``; they are left out.
        method: ``bca`` or ``percentile``; BCa falls back where the jackknife is degenerate.
    """

    estimate: float
    lower: float
    upper: float
    n: int
    n_groups: int
    undefined: int
    method: str


@dataclass(frozen=True, eq=False)
class Band:
    """A curve, or several numbers at once, with pointwise percentile intervals.

    Attributes:
        value: On the cases as they are, shape (points,).
        lower: Lower bounds; ``nan`` with fewer than three patients.
        upper: Upper bounds.
    """

    value: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


def bootstrap_ci(
    statistic: WeightedStatistic,
    n: int,
    *,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    method: Literal["bca", "percentile"] = "bca",
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    jobs: int = 1,
) -> BootstrapInterval:
    """A bootstrap interval.

    Args:
        statistic: Function of case weights, such as ``weighted_auc(y, score)``.
        n: Number of cases.
        groups: Patient of each case; patients are resampled whole.
        strata: Stratum of each case, the same for all cases of a patient; each stratum keeps its
            number of patients.
        method: Bias-corrected and accelerated, or plain percentiles.
        resamples: Number of resamples.
        confidence: Nominal coverage.
        seed: The same seed gives the same interval, whatever ``jobs`` is.
        jobs: Threads.

    Returns:
        The interval; ``nan`` bounds if the statistic is ``nan`` or there are fewer than three
        patients.

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 14.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError("confidence lies between 0 and 1 and resamples are at least 1")
    index, stratum = _clusters(n, groups, strata)
    g = len(stratum)
    estimate = float(statistic(np.ones((1, n)))[0]) if n else math.nan
    if g < LEAST_PATIENTS or math.isnan(estimate):
        return BootstrapInterval(estimate, math.nan, math.nan, n, g, 0, method)
    draws = _draws(statistic, index, stratum, resamples=resamples, seed=seed, jobs=jobs)
    undefined = int(np.isnan(draws).sum())
    draws = draws[~np.isnan(draws)]
    tail = (1 - confidence) / 2
    levels: tuple[float, float] | None = (tail, 1 - tail)
    if method == "bca" and g >= _MIN_BCA_GROUPS:
        levels = _bca_levels(draws, estimate, _jackknife(statistic, index, g), tail)
    elif method == "bca":
        levels = None
    used = "percentile" if levels is None else method
    lower, upper = _bounds(draws, levels or (tail, 1 - tail))
    return BootstrapInterval(estimate, lower, upper, n, g, undefined, used)


def bootstrap_band(
    statistic: WeightedStatistic,
    n: int,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Band:
    """Pointwise percentile intervals of a statistic that gives several numbers per resample.

    Args:
        statistic: Function of case weights, shape (resamples, cases) to (resamples, points).
        n: Number of cases.
        groups: Patient of each case; patients are resampled whole.
        resamples: Number of resamples.
        confidence: Nominal coverage at each point; not of the whole curve at once.
        seed: The same seed gives the same band.
    """
    index, stratum = _clusters(n, groups, None)
    value = statistic(np.ones((1, n)))[0]
    nothing = np.full(value.shape, math.nan)
    if len(stratum) < LEAST_PATIENTS:
        return Band(value, nothing, nothing)
    draws = _draws(statistic, index, stratum, resamples=resamples, seed=seed, jobs=1)
    tail = (1 - confidence) / 2
    bounds = [_bounds(column[~np.isnan(column)], (tail, 1 - tail)) for column in draws.T]
    lower, upper = (np.array(side) for side in zip(*bounds, strict=True))
    return Band(value, lower, upper)


def weighted_mean(values: ArrayLike) -> WeightedStatistic:
    """The mean of values; ``inf`` if a drawn value is, ``nan`` if nothing is drawn."""
    x = np.asarray(values, float)
    endless = np.isinf(x)
    finite = np.where(endless, 0.0, x)
    signs = np.where(endless, np.sign(x), 0.0)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = weights @ finite / weights.sum(axis=1)
        if endless.any():
            drawn = weights @ signs
            mean = np.where(drawn > 0, np.inf, np.where(drawn < 0, -np.inf, mean))
        return mean

    return statistic


def weighted_ratio(parts: ArrayLike, wholes: ArrayLike) -> WeightedStatistic:
    """Sum of parts over sum of wholes, such as a sensitivity; ``nan`` where the latter is 0."""
    part, whole = np.asarray(parts, float), np.asarray(wholes, float)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        below = weights @ whole
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(below != 0, (weights @ part) / below, np.nan)

    return statistic


def weighted_quantile(values: ArrayLike, q: float = 0.5) -> WeightedStatistic:
    """A quantile of values, infinite ones included: the lower of two neighbours if it falls
    exactly between them is averaged with the upper, as for a median."""
    x = np.asarray(values, float)
    order = np.argsort(x, kind="stable")
    ordered = x[order]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        share = np.cumsum(weights[:, order], axis=1)
        target = q * share[:, -1:]
        low = (share < target - 1e-9).sum(axis=1)
        high = (share <= target + 1e-9).sum(axis=1)
        last = len(ordered) - 1
        a, b = ordered[np.minimum(low, last)], ordered[np.minimum(high, last)]
        with np.errstate(invalid="ignore"):
            return np.where(a == b, a, (a + b) / 2)

    return statistic


def weighted_auc(y: ArrayLike, score: ArrayLike) -> WeightedStatistic:
    """The area under the ROC curve; ``nan`` where a class is not drawn."""
    data = BinaryScores.of(y, score)
    order = np.argsort(data.score, kind="stable")
    ordered, truth = data.score[order], data.y[order]
    positives = np.flatnonzero(truth)
    negatives = np.flatnonzero(~truth)
    # Negatives strictly below, and not above, each positive, as positions in the sorted negatives.
    below = np.searchsorted(ordered[negatives], ordered[positives], side="left")
    upto = np.searchsorted(ordered[negatives], ordered[positives], side="right")

    def statistic(weights: Weights) -> NDArray[np.float64]:
        pos, neg = weights[:, order[positives]], weights[:, order[negatives]]
        count = np.zeros((len(weights), len(negatives) + 1))
        np.cumsum(neg, axis=1, out=count[:, 1:])
        wins = np.einsum("ij,ij->i", pos, count[:, below])
        if not np.array_equal(below, upto):
            wins = (wins + np.einsum("ij,ij->i", pos, count[:, upto])) / 2
        pairs = pos.sum(axis=1) * count[:, -1]
        with np.errstate(invalid="ignore"):
            return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)

    return statistic


def weighted_average_precision(y: ArrayLike, score: ArrayLike) -> WeightedStatistic:
    """The step sum under the precision-recall curve; ``nan`` where no positive is drawn."""
    data = BinaryScores.of(y, score)
    order = np.argsort(-data.score, kind="stable")
    ordered, truth = data.score[order], data.y[order]
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))

    def statistic(weights: Weights) -> NDArray[np.float64]:
        drawn = weights[:, order]
        called = np.cumsum(drawn, axis=1)[:, last]
        tp = np.cumsum(drawn * truth, axis=1)[:, last]
        gain = np.diff(tp, axis=1, prepend=0.0)
        area = (gain * tp / np.maximum(called, 1e-300)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.where(tp[:, -1] > 0, area / np.maximum(tp[:, -1], 1e-300), np.nan)

    return statistic


def from_cases(function: Callable[[NDArray[np.intp]], float]) -> WeightedStatistic:
    """Any statistic of a list of case indices, one resample at a time (slow)."""

    def statistic(weights: Weights) -> NDArray[np.float64]:
        rows = (np.repeat(np.arange(w.size), w.astype(int)) for w in weights)
        return np.array([function(row) for row in rows])

    return statistic


def _clusters(
    n: int, groups: ArrayLike | None, strata: ArrayLike | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Cluster of each case, and stratum of each cluster."""
    names = np.arange(n) if groups is None else np.asarray(groups)
    layer = np.zeros(n, int) if strata is None else np.asarray(strata)
    if names.shape != (n,) or layer.shape != (n,):
        raise GridMismatchError(f"groups and strata need one entry for each of the {n} cases")
    _, first, index = np.unique(names, return_index=True, return_inverse=True)
    numbered = np.unique(layer, return_inverse=True)[1]
    stratum = numbered[first]
    if not np.array_equal(stratum[index], numbered):
        raise ConfigError("a group lies in two strata; stratify by what is the same per patient")
    return index, stratum


def _draws(
    statistic: WeightedStatistic,
    index: NDArray[np.intp],
    stratum: NDArray[np.intp],
    *,
    resamples: int,
    seed: int,
    jobs: int,
) -> NDArray[np.float64]:
    """The statistic on every resample; each block of resamples has its own seed."""
    size = max(1, min(resamples, _CHUNK_CELLS // max(1, len(index))))
    blocks = [min(size, resamples - start) for start in range(0, resamples, size)]
    seeds = np.random.SeedSequence(seed).spawn(len(blocks))
    members = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]

    def block(task: tuple[int, np.random.SeedSequence]) -> NDArray[np.float64]:
        rows, own = task
        rng = np.random.default_rng(own)
        counts = np.empty((rows, len(stratum)))
        for clusters in members:
            k = len(clusters)
            picks = rng.integers(0, k, (rows, k)) + np.arange(rows)[:, None] * k
            counts[:, clusters] = np.bincount(picks.ravel(), minlength=rows * k).reshape(rows, k)
        return statistic(counts[:, index])

    tasks = list(zip(blocks, seeds, strict=True))
    if jobs == 1:
        return np.concatenate([block(task) for task in tasks])
    with ThreadPoolExecutor(jobs) as pool:
        return np.concatenate(list(pool.map(block, tasks)))


def _jackknife(
    statistic: WeightedStatistic, index: NDArray[np.intp], n_groups: int
) -> NDArray[np.float64]:
    size = max(1, _CHUNK_CELLS // len(index))
    parts = []
    for start in range(0, n_groups, size):
        left_out = np.arange(start, min(start + size, n_groups))
        parts.append(statistic((index[None] != left_out[:, None]).astype(float)))
    return np.concatenate(parts)


def _bca_levels(
    draws: NDArray[np.float64], estimate: float, jackknife: NDArray[np.float64], tail: float
) -> tuple[float, float] | None:
    """Percentile levels corrected for bias and skewness; None if they cannot be had."""
    from scipy.special import ndtr, ndtri

    if not (len(draws) and np.isfinite(jackknife).all() and math.isfinite(estimate)):
        return None
    gap = jackknife.mean() - jackknife
    spread = (gap**2).sum()
    below = ((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    if spread <= 0 or not 0 < below < 1:
        return None
    acceleration = (gap**3).sum() / (6 * spread**1.5)
    bias = ndtri(below)
    shifted = bias + ndtri(np.array([tail, 1 - tail]))
    levels = ndtr(bias + shifted / (1 - acceleration * shifted))
    return float(levels[0]), float(levels[1])


def _bounds(draws: NDArray[np.float64], levels: tuple[float, float]) -> tuple[float, float]:
    """Two quantiles of the draws; neighbours are not averaged, so infinite draws do no harm."""
    if not len(draws):
        return math.nan, math.nan
    lower = np.quantile(draws, levels[0], method="lower")
    upper = np.quantile(draws, levels[1], method="higher")
    return float(lower), float(upper)
