"""What turns a classifier's scores into a decision: fixed on held-out cases, kept in one file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medvol.core import ConfigError, InputError, write_json
from medvol.metrics import apply_temperature, fit_temperature, threshold_at_sensitivity
from medvol.uncertainty.conformal import ConformalSets, fit_conformal
from medvol.uncertainty.vennabers import VennAbers

#: Positive class of a binary classifier: the last one.
POSITIVE = 1


@dataclass(frozen=True)
class ReviewLimits:
    """When a case is flagged; None leaves a rule out.

    Attributes:
        margin: Flag a positive-class probability closer than this to the operating threshold.
        unsure_sets: Flag conformal sets with no or several classes.
    """

    margin: float | None = None
    unsure_sets: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Review:
    """Whether a case needs a person; ``reason`` is empty where it does not."""

    is_needed: bool
    reason: str


@dataclass(frozen=True)
class CaseDecision:
    """The reading of one case.

    Attributes:
        probabilities: Calibrated, class name to probability.
        predicted: Name of the class; for two classes the positive one at or above the threshold.
        threshold: Of the positive class; None for more than two classes.
        interval: Lower and upper probability of the positive class, by Venn-Abers and widened to
            hold the probability where the two disagree; None where not calibrated.
        conformal_set: Names of the classes in the set; None where not calibrated.
        review: Whether a person must look, and why.
    """

    probabilities: dict[str, float]
    predicted: str
    threshold: float | None
    interval: tuple[float, float] | None
    conformal_set: tuple[str, ...] | None
    review: Review


@dataclass(frozen=True)
class Operating:
    """How a classifier's scores are read.

    Attributes:
        classes: Names in the order of the network's outputs; of two the second is positive.
        temperature: Logits are divided by it.
        threshold: Of the calibrated positive probability; None takes the highest class.
        conformal: Fitted sets, None where there are none.
        calibration: For the probability's interval, None where there is none.
        limits: When a case is flagged for review.
        source: What it was fitted on, in words.
    """

    classes: tuple[str, ...]
    temperature: float = 1.0
    threshold: float | None = None
    conformal: ConformalSets | None = None
    calibration: VennAbers | None = None
    limits: ReviewLimits = field(default_factory=ReviewLimits)
    source: str = "not fitted: threshold 0.5, temperature 1"

    def decide(self, logits: ArrayLike) -> list[CaseDecision]:
        """One decision per row of logits (or log probabilities), shape (N, classes)."""
        logits = np.asarray(logits, np.float64)
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise InputError(f"scores of shape {logits.shape} for {len(self.classes)} classes")
        probabilities = apply_temperature(logits, self.temperature)
        sets = None if self.conformal is None else self.conformal.predict(probabilities)
        margins = logits[:, -1] - logits[:, 0]
        intervals = None if self.calibration is None else self.calibration.intervals(margins)
        return [
            self._decide(
                row,
                None if sets is None else sets[i],
                None if intervals is None else _around(float(row[POSITIVE]), intervals[i]),
            )
            for i, row in enumerate(probabilities)
        ]

    def _decide(
        self, row: np.ndarray, kept: np.ndarray | None, interval: tuple[float, float] | None
    ) -> CaseDecision:
        is_binary = len(self.classes) == 2
        threshold = (0.5 if self.threshold is None else self.threshold) if is_binary else None
        chosen = int(row.argmax()) if threshold is None else int(row[POSITIVE] >= threshold)
        names = None if kept is None else tuple(np.asarray(self.classes)[kept].tolist())
        review = review_case(
            self.limits,
            probability=float(row[POSITIVE]) if is_binary else None,
            threshold=threshold,
            conformal_set=names,
        )
        probabilities = dict(zip(self.classes, row.tolist(), strict=True))
        return CaseDecision(probabilities, self.classes[chosen], threshold, interval, names, review)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, atomically."""
        write_json(
            path,
            {
                "classes": list(self.classes),
                "temperature": self.temperature,
                "threshold": self.threshold,
                "conformal": self.conformal and self.conformal.to_dict(),
                "calibration": self.calibration and self.calibration.to_dict(),
                "limits": self.limits.to_dict(),
                "source": self.source,
            },
        )


def _around(probability: float, interval: ArrayLike) -> tuple[float, float]:
    """An interval that holds the probability beside it; a wider one stays valid."""
    lower, upper = np.asarray(interval, float).tolist()
    return min(lower, probability), max(upper, probability)


def review_case(
    limits: ReviewLimits,
    *,
    probability: float | None = None,
    threshold: float | None = None,
    conformal_set: Sequence[str] | None = None,
) -> Review:
    """Apply the limits to what is known about one case.

    Args:
        limits: The rules.
        probability: Of the positive class.
        threshold: The operating threshold.
        conformal_set: Names of the classes in the case's set.

    Returns:
        Flagged with every reason that applies, in one line. A value that is not finite is a
        reason too.

    >>> review_case(ReviewLimits(margin=0.1), probability=0.45, threshold=0.5).reason
    'probability 0.450 lies within 0.1 of the threshold 0.500'
    """
    reasons = []
    if probability is not None and not math.isfinite(probability):
        reasons.append(f"probability is {probability}")
    elif (
        limits.margin is not None
        and probability is not None
        and threshold is not None
        and math.isfinite(threshold)
        and abs(probability - threshold) < limits.margin
    ):
        reasons.append(
            f"probability {probability:.3f} lies within {limits.margin:g} of the threshold "
            f"{threshold:.3f}"
        )
    if limits.unsure_sets and conformal_set is not None and len(conformal_set) != 1:
        some = f"holds {' and '.join(conformal_set)}" if conformal_set else "is empty"
        reasons.append(f"conformal set {some}")
    return Review(bool(reasons), "; ".join(reasons))


def load_operating(path: str | os.PathLike[str], classes: Sequence[str]) -> Operating:
    """Read a file of :meth:`Operating.save`; without one, the plain threshold 0.5.

    Raises:
        ConfigError: If the file is damaged or of a classifier with other classes.
    """
    path, classes = Path(path), tuple(str(name) for name in classes)
    if not path.is_file():
        return Operating(classes)
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = Operating(
            tuple(content["classes"]),
            float(content["temperature"]),
            None if content["threshold"] is None else float(content["threshold"]),
            content["conformal"] and ConformalSets.from_dict(content["conformal"]),
            content["calibration"] and VennAbers.from_dict(content["calibration"]),
            ReviewLimits(**content["limits"]),
            str(content["source"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not an operating point: {error}") from error
    if found.classes != classes:
        raise ConfigError(f"{path}: is for classes {found.classes}, not {classes}")
    return found


def fit_operating(
    logits: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    patients: Sequence[Hashable] | None = None,
    *,
    sensitivity: float = 0.95,
    alpha: float = 0.1,
    source: str = "",
) -> Operating:
    """Fix temperature, threshold, conformal sets and intervals on held-out cases.

    Out-of-fold predictions of a cross-validation may be pooled: every case is then scored by a
    network that did not see it. The network trained on all cases afterwards is another one, so
    the promises hold for it approximately; test them on other data.

    Args:
        logits: Held-out scores, shape (N, classes).
        labels: Class numbers, shape (N,).
        classes: Class names in the order of the columns.
        patients: Patient of each case; None if every case is a patient.
        sensitivity: The threshold is the highest that reaches it (two classes only).
        alpha: Share of cases, within each class, whose set may miss the truth.
        source: What the cases are, in words.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    temperature = fit_temperature(logits, labels)
    probabilities = apply_temperature(logits, temperature)
    fitted = Operating(
        tuple(str(name) for name in classes),
        temperature,
        conformal=fit_conformal(probabilities, labels, patients, alpha=alpha, by_class=True),
        source=source or f"{len(labels)} held-out cases",
    )
    if len(fitted.classes) != 2:
        return fitted
    point = threshold_at_sensitivity(labels, probabilities[:, POSITIVE], target=sensitivity)
    if not math.isfinite(point.threshold):
        raise InputError("operating point: the held-out cases hold no positive")
    margins = logits[:, 1] - logits[:, 0]
    calibration = VennAbers(tuple(margins.tolist()), tuple(int(y) for y in labels))
    return replace(fitted, threshold=point.threshold, calibration=calibration)
