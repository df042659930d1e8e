"""Temperature scaling: one number, fitted on validation, that makes probabilities honest."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from medvol.core import InputError, LabelError, NonFiniteError

#: Temperatures outside mean that the logits carry no information or that labels are separated.
RANGE = (0.01, 100.0)


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

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    bounds = (math.log(RANGE[0]), math.log(RANGE[1]))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(math.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def apply_temperature(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Probabilities of scaled logits, shape (N, classes); rows sum to 1.

    >>> apply_temperature([[2.0, 0.0]], 1e9).round(6).tolist()
    [[0.5, 0.5]]
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature {temperature} is not above 0")
    return softmax(np.asarray(logits, np.float64) / temperature, axis=-1)


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
