"""Are probabilities calibrated, and are decisions based on them worth taking?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError, GridMismatchError, InputError, LabelError
from medvol.metrics.registry import metric
from medvol.metrics.result import Fields
from medvol.metrics.scores import BinaryScores, as_finite

_NAN = float("nan")
_EDGE = 1e-12


@dataclass(frozen=True)
class CalibrationLine(Fields):
    """Logistic recalibration of probabilities.

    Attributes:
        slope: 1 if calibrated, below 1 if the probabilities are too extreme.
        intercept: Intercept of the same fit; 0 if calibrated.
        in_the_large: Intercept with the slope held at 1; above 0 if risks are underestimated.
    """

    slope: float
    intercept: float
    in_the_large: float


@dataclass(frozen=True)
class ReliabilityBin(Fields):
    """One bar of a reliability diagram."""

    low: float
    high: float
    n: int
    positives: int
    mean_prob: float


@metric(kind="score", direction="lower")
def brier(y: ArrayLike, prob: ArrayLike) -> float:
    """Mean squared difference of probability and truth; ``nan`` without cases.

    The form that sums over both classes is twice this.

    >>> round(brier([1, 0], [0.8, 0.4]), 6)
    0.1
    """
    data = BinaryScores.of_probabilities(y, prob)
    return float(np.mean((data.score - data.y) ** 2)) if data.y.size else _NAN


@metric(kind="score", direction="lower")
def ece(y: ArrayLike, prob: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of probability.

    Args:
        y: Truth, 0 or 1; for many classes, whether the top class was right.
        prob: Probability of the positive class, or of the top class.
        bins: Number of bins over 0 to 1, each closed above; it is biased upwards, more so with
            more bins and fewer cases.

    Source:
        Naeini et al. 2015, AAAI.
    """
    rows = reliability(y, prob, bins=bins)
    n = sum(row.n for row in rows)
    gaps = (abs(row.positives - row.n * row.mean_prob) for row in rows if row.n)
    return sum(gaps) / n if n else _NAN


def reliability(y: ArrayLike, prob: ArrayLike, *, bins: int = 15) -> list[ReliabilityBin]:
    """The bars of a reliability diagram; empty ones have ``nan`` as mean probability."""
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, not {bins}")
    data = BinaryScores.of_probabilities(y, prob)
    index = reliability_bin(data.score, bins=bins)
    n = np.bincount(index, minlength=bins)
    positives = np.bincount(index, weights=data.y, minlength=bins)
    total = np.bincount(index, weights=data.score, minlength=bins)
    return [
        ReliabilityBin(
            k / bins, (k + 1) / bins, int(n[k]), int(positives[k]),
            float(total[k] / n[k]) if n[k] else _NAN,
        )
        for k in range(bins)
    ]  # fmt: skip


def reliability_bin(prob: ArrayLike, *, bins: int = 15) -> NDArray[np.intp]:
    """Which bar of the diagram each probability belongs to; each bar is closed above.

    >>> reliability_bin([0.0, 0.5, 0.51, 1.0], bins=2).tolist()
    [0, 0, 1, 1]
    """
    steps = np.ceil(np.asarray(prob, float) * bins - 1e-9).astype(int) - 1
    return np.clip(steps, 0, bins - 1)


def calibration_line(y: ArrayLike, prob: ArrayLike) -> CalibrationLine:
    """Calibration slope and intercepts by logistic regression on the logit.

    Returns:
        All ``nan`` if a class is missing. Where a threshold separates the classes (ties at it
        allowed) no finite slope fits best: it is ``inf``, or ``-inf`` if the negatives have the
        higher probabilities, and the intercept is ``nan``.

    Source:
        Cox 1958, Biometrika 45:562; Van Calster et al. 2019, BMC Med 17:230.
    """
    data = BinaryScores.of_probabilities(y, prob)
    if not data.n_pos or not data.n_neg:
        return CalibrationLine(_NAN, _NAN, _NAN)
    p = np.clip(data.score, _EDGE, 1 - _EDGE)
    logit = np.log(p / (1 - p))
    ones = np.ones_like(logit)
    in_the_large = _logistic(data.y, ones[:, None], offset=logit)[0]
    if logit.min() == logit.max():
        return CalibrationLine(_NAN, _NAN, float(in_the_large))
    pos, neg = logit[data.y], logit[~data.y]
    if pos.min() >= neg.max():
        return CalibrationLine(math.inf, _NAN, float(in_the_large))
    if pos.max() <= neg.min():
        return CalibrationLine(-math.inf, _NAN, float(in_the_large))
    intercept, slope = _logistic(data.y, np.stack([ones, logit], axis=1))
    return CalibrationLine(float(slope), float(intercept), float(in_the_large))


def fit_temperature(logits: ArrayLike, y: ArrayLike) -> float:
    """The one number that logits are divided by to minimise the log loss.

    Args:
        logits: Shape (n, classes), or (n,) for two classes (the positive's logit).
        y: Class numbers, shape (n,).

    Returns:
        A temperature; above 1 if the network is overconfident. Dividing changes no ranking, so
        accuracy and AUC stay as they are.

    Raises:
        InputError: If the shapes do not agree, only one class occurs, or no finite temperature
            fits best: scores that do not rank the classes, or that call every case rightly.
        LabelError: If ``y`` holds anything but class numbers.

    Source:
        Guo et al. 2017, ICML, arXiv:1706.04599.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    values, given = as_logits(logits), np.asarray(y)
    truth = given.astype(int)
    if truth.shape != (len(values),) or not len(values):
        raise GridMismatchError(f"logits have shape {values.shape} but y {truth.shape}")
    if (truth != given).any() or truth.min() < 0 or truth.max() >= values.shape[1]:
        raise LabelError(f"y must hold class numbers from 0 to {values.shape[1] - 1}")
    if truth.min() == truth.max():
        raise InputError("temperature: the validation cases are all of one class")
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        return -float(log_softmax(scaled, axis=1)[rows, truth].mean())

    own = values[rows, truth]
    scale = float(np.abs(values - values.mean(axis=1, keepdims=True)).max())
    if not (own - values.mean(axis=1)).mean() > 1e-9 * scale:
        # The slope of the loss at an infinite temperature: no finite one is better.
        raise InputError("temperature: none fits, since the scores do not rank the classes (are "
                         "columns or truth swapped?)")  # fmt: skip
    if (own >= values.max(axis=1)).all():
        raise InputError(
            "temperature: every case is called rightly, so that the more extreme the "
            "probabilities, the better they fit; a temperature needs some that are wrong"
        )
    edge = math.log(1e6)
    found = minimize_scalar(
        loss, bounds=(math.log(scale) - edge, math.log(scale) + edge), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    if abs(found.x - math.log(scale)) > edge - 0.1:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError("temperature: none fits, the best is at the end of the range searched")
    return math.exp(found.x)  # pyright: ignore[reportAttributeAccessIssue]


def apply_temperature(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Probabilities, shape (n, classes), from logits divided by a temperature."""
    from scipy.special import softmax

    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature must be positive, not {temperature}")
    return softmax(as_logits(logits) / temperature, axis=1)


def as_logits(logits: ArrayLike) -> NDArray[np.float64]:
    """Finite logits, shape (n, classes); one column becomes two with the negative at 0."""
    values = as_finite(np.asarray(logits, np.float64), "logits")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise GridMismatchError(f"logits must have shape (n, classes), not {values.shape}")
    return np.hstack([np.zeros_like(values), values]) if values.shape[1] == 1 else values


@metric(kind="score", direction="higher")
def net_benefit(y: ArrayLike, prob: ArrayLike, *, threshold: float) -> float:
    """Net benefit of treating where prob >= threshold: TP/n - FP/n * t / (1 - t).

    Source:
        Vickers & Elkin 2006, Med Decis Making 26:565.
    """
    if not 0 <= threshold < 1:
        raise ConfigError(f"threshold must lie in 0 to 1, not {threshold}")
    data = BinaryScores.of_probabilities(y, prob)
    if not data.y.size:
        return _NAN
    called = data.score >= threshold
    tp, fp = (called & data.y).sum(), (called & ~data.y).sum()
    return float((tp - fp * threshold / (1 - threshold)) / data.y.size)


def decision_curve(y: ArrayLike, prob: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Net benefit of the model and of treating everybody, shape (2, thresholds).

    Treating nobody has net benefit 0 everywhere.
    """
    steps = np.asarray(thresholds, float)
    everybody = np.ones(np.asarray(y).shape)
    return np.array(
        [[net_benefit(y, p, threshold=float(t)) for t in steps] for p in (prob, everybody)]
    )


def _logistic(
    y: NDArray[np.bool_], x: NDArray[np.float64], offset: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Maximum-likelihood coefficients by Newton's method with step halving."""
    from scipy.special import expit

    def loss(beta: NDArray[np.float64]) -> float:
        eta = x @ beta + offset
        return float(np.logaddexp(0, eta).sum() - eta[y].sum())

    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = expit(x @ beta + offset)
        hessian = (x * (p * (1 - p) + 1e-300)[:, None]).T @ x
        step = np.linalg.lstsq(hessian, x.T @ (y - p), rcond=None)[0]
        now, size = loss(beta), 1.0
        while loss(beta + size * step) > now and size > 1e-10:
            size /= 2
        beta = beta + size * step
        if np.abs(size * step).max() < 1e-12:
            break
    return beta
