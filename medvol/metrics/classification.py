"""Metrics of a truth and scores, and of the four counts of a decision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError, GridMismatchError, LabelError
from medvol.metrics.registry import metric
from medvol.metrics.result import Fields
from medvol.metrics.scores import BinaryScores, as_finite, as_truth

_NAN = float("nan")


@dataclass(frozen=True)
class Confusion(Fields):
    """Counts of a two-way decision."""

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True)
class Clinical(Fields):
    """What a two-way decision is worth; ``nan`` where a denominator is 0.

    ``lr_plus`` is ``inf`` where no negative was called positive but some positive was.
    """

    sensitivity: float
    specificity: float
    ppv: float
    npv: float
    f1: float
    accuracy: float
    balanced_accuracy: float
    mcc: float
    lr_plus: float
    lr_minus: float
    youden: float
    prevalence: float


@metric(kind="score", direction="none")
def confusion(y: ArrayLike, score: ArrayLike, *, threshold: float = 0.5) -> Confusion:
    """Counts of the decision "positive where score >= threshold".

    >>> confusion([0, 1, 1], [0.1, 0.5, 0.4])
    Confusion(tp=1, fp=0, fn=1, tn=1)
    """
    data = BinaryScores.of(y, score)
    called = data.score >= threshold
    tp, fp = int((called & data.y).sum()), int((called & ~data.y).sum())
    return Confusion(tp, fp, data.n_pos - tp, data.n_neg - fp)


@metric(kind="counts", direction="higher")
def clinical(tp: int, fp: int, fn: int, tn: int) -> Clinical:
    """Sensitivity, specificity, predictive values, likelihood ratios and their summaries.

    Raises:
        ConfigError: If a count is negative.
    """
    if min(tp, fp, fn, tn) < 0:
        raise ConfigError(f"counts cannot be negative: tp={tp}, fp={fp}, fn={fn}, tn={tn}")
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    n = tp + fp + fn + tn
    # A product of four counts overflows 64 bits; Python's integers do not.
    four = math.prod(int(c) for c in (tp + fp, tp + fn, tn + fp, tn + fn))
    return Clinical(
        sensitivity=sensitivity,
        specificity=specificity,
        ppv=_ratio(tp, tp + fp),
        npv=_ratio(tn, tn + fn),
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        accuracy=_ratio(tp + tn, n),
        balanced_accuracy=(sensitivity + specificity) / 2,
        mcc=(int(tp) * int(tn) - int(fp) * int(fn)) / math.sqrt(four) if four else _NAN,
        lr_plus=_likelihood_ratio(sensitivity, 1 - specificity),
        lr_minus=_likelihood_ratio(1 - sensitivity, specificity),
        youden=sensitivity + specificity - 1,
        prevalence=_ratio(tp + fn, n),
    )


def agreement_of_classes(table: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Macro F1, balanced accuracy and Cohen's kappa of tables of truth against called class.

    Args:
        table: Counts, truth by row, shape (..., classes, classes).

    Returns:
        Each of shape (...). A class that neither occurs nor is called makes macro F1 undefined, one
        that does not occur balanced accuracy; kappa is undefined where chance agrees always.

    Source:
        Cohen 1960, Educ Psychol Meas 20:37; Brodersen et al. 2010, ICPR, doi:10.1109/ICPR.2010.764.
    """
    table = np.asarray(table, float)
    right = np.diagonal(table, axis1=-2, axis2=-1)
    truth, called, n = table.sum(-1), table.sum(-2), table.sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = (truth * called).sum(-1) / n**2
        return {
            "macro_f1": (2 * right / (truth + called)).mean(-1),
            "balanced_accuracy": (right / truth).mean(-1),
            "kappa": (right.sum(-1) / n - chance) / (1 - chance),
        }


@metric(kind="score", direction="higher")
def auc_roc(y: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: P(positive scores higher) + P(tie) / 2.

    Returns:
        0 to 1; ``nan`` if a class is missing.

    Source:
        Hanley & McNeil 1982, Radiology 143:29.

    >>> auc_roc([0, 1, 0, 1], [0.5, 0.5, 0.2, 0.9])
    0.875
    """
    from scipy.stats import rankdata

    data = BinaryScores.of(y, score)
    if not data.n_pos or not data.n_neg:
        return _NAN
    ranks = rankdata(data.score)[data.y].sum()
    return float((ranks - data.n_pos * (data.n_pos + 1) / 2) / (data.n_pos * data.n_neg))


@metric(kind="score", direction="higher")
def average_precision(y: ArrayLike, score: ArrayLike) -> float:
    """Area under the precision-recall steps: the sum of precision times gain in recall.

    Equal scores make one step. Interpolating between steps is a different, optimistic number.

    Returns:
        0 to 1; ``nan`` without positives.
    """
    data = BinaryScores.of(y, score)
    if not data.n_pos:
        return _NAN
    _, tp, fp = roc_counts(data)
    gain = np.diff(tp, prepend=0)
    return float((tp / (tp + fp) * gain).sum() / data.n_pos)


def roc_counts(
    data: BinaryScores,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct thresholds, falling, with the true and false positives at each."""
    order = np.argsort(-data.score, kind="stable")
    score, y = data.score[order], data.y[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)) if score.size else np.array([], int)
    tp = np.cumsum(y, dtype=np.int64)[last]
    return score[last], tp, last + 1 - tp


def confusion_matrix(y: ArrayLike, predicted: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Counts of cases of class i (row) called class j (column), shape (n_classes, n_classes).

    Raises:
        LabelError: If a class lies outside 0 to n_classes - 1.
    """
    truth, called = np.asarray(y), np.asarray(predicted)
    for name, values in (("y", truth), ("predicted", called)):
        if values.size and (values.min() < 0 or values.max() >= n_classes):
            raise LabelError(f"{name} holds a class outside 0 to {n_classes - 1}")
    counts = np.bincount(truth * n_classes + called, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def one_vs_rest(
    y: ArrayLike,
    prob: ArrayLike,
    function: Callable[[NDArray, NDArray], float] = auc_roc,
    *,
    average: Literal["none", "macro", "micro", "weighted"] = "none",
) -> NDArray[np.float64] | float:
    """A two-class metric for many classes or many labels.

    Args:
        y: Class numbers, shape (n,), for classes that exclude each other; or 0 and 1, shape
            (n, classes), for labels that do not.
        prob: Scores, shape (n, classes).
        function: Metric of (truth, score).
        average: ``none`` gives one value per class; ``macro`` their mean, ``nan`` if one is;
            ``weighted`` their mean by number of positives, so that a class without any does not
            count; ``micro`` pools all decisions.

    Returns:
        One value per class, or the average; ``nan`` without cases.

    Raises:
        GridMismatchError: If the shapes do not fit.
    """
    scores = np.asarray(prob, np.float64)
    truth = np.asarray(y)
    if scores.ndim != 2 or truth.shape not in ((len(scores),), scores.shape):
        raise GridMismatchError(f"y has shape {truth.shape} and prob {scores.shape}")
    if truth.ndim == 1:
        if truth.size and (truth.min() < 0 or truth.max() >= scores.shape[1]):
            raise LabelError(f"y holds a class outside 0 to {scores.shape[1] - 1}")
        truth = truth[:, None] == np.arange(scores.shape[1])
    truth, scores = as_truth(truth), as_finite(scores, "prob")
    if average == "micro":
        return float(function(truth.ravel(), scores.ravel()))
    each = np.array([function(truth[:, k], scores[:, k]) for k in range(scores.shape[1])])
    if average == "none":
        return each
    weights = truth.sum(axis=0) if average == "weighted" else np.ones(len(each))
    used = weights > 0
    return float(np.average(each[used], weights=weights[used])) if used.any() else _NAN


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else _NAN


def _likelihood_ratio(above: float, below: float) -> float:
    if math.isnan(above) or math.isnan(below) or (above == 0 and below == 0):
        return _NAN
    return above / below if below else math.inf
