"""Curves of a diagnostic accuracy study, with pointwise intervals clustered by patient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.metrics.bootstrap import Band, Weights, bootstrap_band
from medvol.metrics.classification import roc_counts
from medvol.metrics.intervals import wilson
from medvol.metrics.scores import BinaryScores

_EPS = 1e-9
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def roc_curve(y: ArrayLike, score: ArrayLike) -> Curve:
    """False and true positive rate from (0, 0) to (1, 1), one step per distinct score.

    >>> [axis.tolist() for axis in roc_curve([0, 1, 0, 1], [0.1, 0.9, 0.4, 0.4])]
    [[0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0]]
    """
    data = BinaryScores.of(y, score)
    _, tp, fp = roc_counts(data)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.append(0, fp) / data.n_neg, np.append(0, tp) / data.n_pos


def pr_curve(y: ArrayLike, score: ArrayLike) -> Curve:
    """Recall and precision, one step per distinct score, from the highest threshold down."""
    data = BinaryScores.of(y, score)
    _, tp, fp = roc_counts(data)
    with np.errstate(invalid="ignore", divide="ignore"):
        return tp / data.n_pos, tp / (tp + fp)


def roc_band(
    y: ArrayLike,
    score: ArrayLike,
    at_fpr: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Band:
    """Sensitivity at false positive rates, with a vertical band.

    Where every resample agrees (as where the classes separate) Wilson's interval on the positive
    cases takes the band's place: a band without width would claim certainty.

    Args:
        y: Truth, 0 or 1, of both kinds.
        score: Higher means more likely positive.
        at_fpr: False positive rates, rising.
        groups: Patient of each case.
        resamples: Number of resamples.
        confidence: Nominal coverage at each rate.
        seed: Of the resamples.
    """
    data, grid = BinaryScores.of(y, score), np.asarray(at_fpr, float)
    counts = _weighted_counts(data)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        tp, fp = counts(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            tpr, fpr = tp / tp[:, -1:], fp / fp[:, -1:]
        return np.array([np.interp(grid, x, v) for x, v in zip(fpr, tpr, strict=True)])

    band = bootstrap_band(statistic, len(data.y), groups=groups, resamples=resamples,
                          confidence=confidence, seed=seed)  # fmt: skip
    called = np.rint(band.value * data.n_pos).astype(int)
    whole = np.where(grid < 1, data.n_pos, 0)
    return _never_without_width(band, called, whole, confidence)


def pr_band(
    y: ArrayLike,
    score: ArrayLike,
    at_recall: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Band:
    """Precision at the highest threshold that reaches each recall; see ``roc_band``."""
    data, grid = BinaryScores.of(y, score), np.asarray(at_recall, float)
    counts = _weighted_counts(data)

    def reached(weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        tp, fp = (part[:, 1:] for part in counts(weights))
        wanted = grid[None] * tp[:, -1:] - _EPS
        index = np.array([np.searchsorted(row, w) for row, w in zip(tp, wanted, strict=True)])
        index = np.minimum(index, tp.shape[1] - 1)
        return np.take_along_axis(tp, index, 1), np.take_along_axis(fp, index, 1)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        tp, fp = reached(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return tp / (tp + fp)

    band = bootstrap_band(statistic, len(data.y), groups=groups, resamples=resamples,
                          confidence=confidence, seed=seed)  # fmt: skip
    tp, fp = (part[0].astype(int) for part in reached(np.ones((1, len(data.y)))))
    return _never_without_width(band, tp, tp + fp, confidence)


def decision_band(
    y: ArrayLike,
    prob: ArrayLike,
    thresholds: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Band:
    """Net benefit of treating where prob >= threshold; see ``net_benefit`` and ``roc_band``."""
    data, steps = BinaryScores.of_probabilities(y, prob), np.asarray(thresholds, float)
    called = data.score[:, None] >= steps[None]
    gain = called * (data.y[:, None] - ~data.y[:, None] * (steps / (1 - steps))[None])

    def statistic(weights: Weights) -> NDArray[np.float64]:
        return weights @ gain / weights.sum(axis=1, keepdims=True)

    return bootstrap_band(statistic, len(data.y), groups=groups, resamples=resamples,
                          confidence=confidence, seed=seed)  # fmt: skip


def _weighted_counts(data: BinaryScores) -> Callable[[Weights], Curve]:
    """Function of weights: true and false positives at falling thresholds, 0 first."""
    order = np.argsort(-data.score, kind="stable")
    score, y = data.score[order], data.y[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))

    def counts(weights: Weights) -> Curve:
        ordered = weights[:, order]
        parts = [np.cumsum(ordered * side, axis=1)[:, last] for side in (y, ~y)]
        zero = np.zeros((len(weights), 1))
        return np.hstack([zero, parts[0]]), np.hstack([zero, parts[1]])

    return counts


def _never_without_width(
    band: Band, k: NDArray[np.int64], n: NDArray[np.int64], confidence: float
) -> Band:
    lower, upper = band.lower.copy(), band.upper.copy()
    for at in np.flatnonzero((lower == upper) & (n > 0)):
        exact = wilson(int(k[at]), int(n[at]), confidence=confidence)
        lower[at], upper[at] = exact.lower, exact.upper
    return Band(band.value, lower, upper)
