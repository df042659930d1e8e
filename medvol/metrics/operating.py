"""Operating points: a threshold fixed on validation cases and observed on test cases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medvol.core.errors import ConfigError
from medvol.metrics.classification import Confusion, confusion, roc_counts
from medvol.metrics.registry import metric
from medvol.metrics.result import Fields
from medvol.metrics.scores import BinaryScores

_ROUNDING = 1e-9


@dataclass(frozen=True)
class OperatingPoint(Fields):
    """A threshold and what it gave on the cases that it was chosen on."""

    threshold: float
    sensitivity: float
    specificity: float
    tp: int
    fp: int
    fn: int
    tn: int

    def observe(self, y: ArrayLike, score: ArrayLike) -> Confusion:
        """Counts at this threshold on other cases."""
        return confusion(y, score, threshold=self.threshold)


@metric(kind="score", direction="none")
def threshold_at_sensitivity(
    y: ArrayLike, score: ArrayLike, *, target: float = 0.95
) -> OperatingPoint:
    """The highest threshold whose sensitivity reaches the target, so the best specificity.

    Args:
        y: Truth, 0 or 1; validation cases, never the test.
        score: Higher means more likely positive; positive is called at score >= threshold.
        target: Sensitivity to reach; 19 of 20 reaches 0.95 whatever floating point gives.

    Returns:
        The point; its threshold is ``nan`` without positives.
    """
    _check_target(target)
    data = BinaryScores.of(y, score)
    if not data.n_pos:
        return _point(data, math.nan)
    needed = max(1, math.ceil(target * data.n_pos - _ROUNDING))
    return _point(data, float(np.sort(data.score[data.y])[-needed]))


@metric(kind="score", direction="none")
def threshold_at_specificity(
    y: ArrayLike, score: ArrayLike, *, target: float = 0.95
) -> OperatingPoint:
    """The lowest observed score whose specificity as threshold reaches the target.

    Returns:
        The point; its threshold is ``inf`` (nothing is called positive) where no observed score
        reaches the target, ``nan`` without negatives.
    """
    _check_target(target)
    data = BinaryScores.of(y, score)
    if not data.n_neg:
        return _point(data, math.nan)
    thresholds, _, fp = roc_counts(data)
    reached = np.flatnonzero(1 - fp / data.n_neg >= target - _ROUNDING)
    return _point(data, float(thresholds[reached[-1]]) if reached.size else math.inf)


@metric(kind="score", direction="none")
def threshold_at_youden(y: ArrayLike, score: ArrayLike) -> OperatingPoint:
    """The threshold with the largest sensitivity + specificity - 1; the highest such one.

    Returns:
        The point; its threshold is ``nan`` if a class is missing.
    """
    data = BinaryScores.of(y, score)
    if not data.n_pos or not data.n_neg:
        return _point(data, math.nan)
    thresholds, tp, fp = roc_counts(data)
    return _point(data, float(thresholds[np.argmax(tp * data.n_neg - fp * data.n_pos)]))


def predictive_values(
    sensitivity: float, specificity: float, prevalence: float
) -> tuple[float, float]:
    """PPV and NPV at a stated prevalence, by Bayes' rule; ``nan`` where undefined.

    A test set's own predictive values hold at its own prevalence only.

    >>> [round(v, 3) for v in predictive_values(0.9, 0.9, 0.01)]
    [0.083, 0.999]
    """
    positive = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    negative = specificity * (1 - prevalence) + (1 - sensitivity) * prevalence
    ppv = sensitivity * prevalence / positive if positive else math.nan
    npv = specificity * (1 - prevalence) / negative if negative else math.nan
    return ppv, npv


def _point(data: BinaryScores, threshold: float) -> OperatingPoint:
    called = data.score >= threshold
    tp, fp = int((called & data.y).sum()), int((called & ~data.y).sum())
    return OperatingPoint(
        threshold=threshold,
        sensitivity=tp / data.n_pos if data.n_pos else math.nan,
        specificity=1 - fp / data.n_neg if data.n_neg else math.nan,
        tp=tp,
        fp=fp,
        fn=data.n_pos - tp,
        tn=data.n_neg - fp,
    )


def _check_target(target: float) -> None:
    if not 0 < target <= 1:
        raise ConfigError(f"target must lie in 0 to 1, not {target}")
