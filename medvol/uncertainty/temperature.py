"""Temperature scaling with the refusals that a fit on real validation cases needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol import metrics
from medvol.core import InputError, LabelError, NonFiniteError


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature that gives held-out labels the highest likelihood.

    Fit it on patients that neither trained the network nor test it.

    Args:
        logits: Scores before softmax, shape (N, classes).
        labels: Class number of each row, shape (N,).

    Returns:
        Between 0.01 and 100; above 1 the network was overconfident. It does not change which
        class is highest.

    Raises:
        InputError: If the shapes do not go together, or only one class occurs.
        LabelError: If a label is no class.
        NonFiniteError: If a logit is NaN or infinite.

    Source:
        Guo et al. 2017, ICML, arXiv:1706.04599.
    """
    logits, labels = checked_scores(logits, labels)
    if len(np.unique(labels)) < 2:
        raise InputError("temperature: the validation cases are all of one class")
    return metrics.fit_temperature(logits, labels)


def apply_temperature(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Probabilities of scaled logits, shape (N, classes); rows sum to 1.

    >>> apply_temperature([[2.0, 0.0]], 1e9).round(6).tolist()
    [[0.5, 0.5]]
    """
    return metrics.apply_temperature(logits, temperature)


def checked_scores(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Scores (N, classes) and labels (N,) that go together, or a refusal."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] < 2 or labels.shape != scores.shape[:1]:
        raise InputError(
            f"scores of shape {scores.shape} and labels of shape {labels.shape}: "
            "(cases, classes) and (cases,) are needed"
        )
    if not len(scores):
        raise InputError("there is no case to fit on")
    if not np.isfinite(scores).all():
        raise NonFiniteError("scores hold NaN or infinity")
    whole = labels.astype(np.intp)
    if (whole != labels).any() or whole.min() < 0 or whole.max() >= scores.shape[1]:
        raise LabelError(f"labels must be 0 to {scores.shape[1] - 1}")
    return scores, whole
