"""Split conformal prediction: sets of classes that hold the truth as often as promised."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import betabinom

from medvol.core import ConfigError, InputError, LabelError, NonFiniteError


@dataclass(frozen=True)
class ConformalSets:
    """Fitted thresholds; :meth:`predict` turns probabilities into sets.

    Attributes:
        alpha: Share of cases whose set may miss the truth.
        thresholds: A class is in the set if one minus its probability is at most its threshold;
            ``inf`` where calibration has too few patients to exclude anything.
        patients: Patients that each threshold rests on.
        by_class: Whether the promise holds within each true class, or over all cases.
    """

    alpha: float
    thresholds: tuple[float, ...]
    patients: tuple[int, ...]
    by_class: bool

    def predict(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Which classes are in each case's set, shape (N, classes).

        A set may be empty (no class conforms: unlike anything in calibration) or hold every
        class; both are reasons to look.
        """
        probabilities = np.asarray(probabilities, np.float64)
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.thresholds):
            raise InputError(
                f"probabilities of shape {probabilities.shape} for {len(self.thresholds)} classes"
            )
        return 1 - probabilities <= np.asarray(self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; an infinite threshold becomes None."""
        finite = [t if math.isfinite(t) else None for t in self.thresholds]
        return {
            "alpha": self.alpha,
            "thresholds": finite,
            "patients": list(self.patients),
            "by_class": self.by_class,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ConformalSets:
        """The inverse of :meth:`to_dict`."""
        try:
            thresholds = tuple(math.inf if t is None else float(t) for t in content["thresholds"])
            patients = tuple(int(n) for n in content["patients"])
            return cls(float(content["alpha"]), thresholds, patients, bool(content["by_class"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"conformal: these are not fitted thresholds: {error}") from error


def fit_conformal(
    probabilities: ArrayLike,
    labels: ArrayLike,
    patients: Sequence[Hashable] | None = None,
    *,
    alpha: float = 0.1,
    by_class: bool = False,
) -> ConformalSets:
    """Thresholds from held-out cases, counting patients and not their images.

    Each patient weighs the same however many images they have; what is promised is the coverage
    of a random image of a new patient. With one image each this is the usual split conformal
    quantile at rank ``ceil((n + 1) (1 - alpha))``.

    Args:
        probabilities: Of cases that neither trained nor test the network, shape (N, classes).
        labels: Class number of each case, shape (N,).
        patients: Patient of each case; None if every case is a patient.
        alpha: Share of cases whose set may miss the truth, between 0 and 1.
        by_class: One threshold per true class, so that a rare class keeps the promise too.

    Raises:
        InputError: If shapes, labels or alpha are wrong.

    Source:
        Lee, Barber & Willett 2023, arXiv:2306.06342 (hierarchical conformal prediction); Vovk
        2012, ACML 25:475 (class-conditional).
    """
    probabilities, labels = _checked_scores(probabilities, labels)
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha} is not between 0 and 1")
    owners = np.arange(len(labels)) if patients is None else _numbered(patients)
    if len(owners) != len(labels):
        raise InputError(f"{len(owners)} patients were given for {len(labels)} cases")
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    classes = probabilities.shape[1]
    if not by_class:
        threshold, count = _threshold(scores, owners, alpha)
        return ConformalSets(alpha, (threshold,) * classes, (count,) * classes, False)
    parts = [_threshold(scores[labels == c], owners[labels == c], alpha) for c in range(classes)]
    return ConformalSets(alpha, tuple(t for t, _ in parts), tuple(n for _, n in parts), True)


@dataclass(frozen=True)
class Coverage:
    """How often sets held the truth in one group of cases.

    Attributes:
        group: ``all``, or column and value such as ``sex=F``.
        n: Cases.
        patients: Patients among them.
        covered: Cases whose set holds the truth.
        mean_size: Classes per set, on average.
        band: 95% range of the coverage to be expected of that many patients if the promise
            holds; a lower coverage is evidence that it does not.
    """

    group: str
    n: int
    patients: int
    covered: int
    mean_size: float
    band: tuple[float, float]

    @property
    def coverage(self) -> float:
        """``covered`` over ``n``; ``nan`` without cases."""
        return self.covered / self.n if self.n else math.nan

    @property
    def is_kept(self) -> bool:
        """Whether the coverage reaches the band's lower end."""
        return not self.coverage < self.band[0]


def coverage_report(
    fitted: ConformalSets,
    probabilities: ArrayLike,
    labels: ArrayLike,
    patients: Sequence[Hashable] | None = None,
    groups: Mapping[str, Sequence[Hashable]] | None = None,
) -> list[Coverage]:
    """Coverage on test cases: over all, within each true class, and within each subgroup.

    Args:
        fitted: From :func:`fit_conformal`.
        probabilities: Shape (N, classes).
        labels: Shape (N,).
        patients: As for :func:`fit_conformal`.
        groups: Column name to one value per case, for example ``{"sex": [...]}``.
    """
    probabilities, labels = _checked_scores(probabilities, labels)
    sets = fitted.predict(probabilities)
    owners = np.arange(len(labels)) if patients is None else _numbered(patients)
    hits = sets[np.arange(len(labels)), labels]
    columns = {"class": labels.tolist(), **(groups or {})}
    rows = [("all", np.ones(len(labels), bool))]
    for column, values in columns.items():
        if len(values) != len(labels):
            raise InputError(f"column {column!r} has {len(values)} values for {len(labels)} cases")
        for value in sorted(set(values), key=str):
            rows.append((f"{column}={value}", np.array([v == value for v in values])))
    return [
        Coverage(
            name,
            int(chosen.sum()),
            (count := len(np.unique(owners[chosen]))),
            int(hits[chosen].sum()),
            float(sets[chosen].sum(1).mean()),
            coverage_band(_calibration(fitted, labels[chosen]), count, fitted.alpha),
        )
        for name, chosen in rows
    ]


def _calibration(fitted: ConformalSets, labels: NDArray[np.intp]) -> int:
    """Calibration patients that the coverage of these true classes rests on.

    Of several classes the fewest that exclude anything: a class whose threshold is infinite is
    always covered and makes the others no less sure.
    """
    counts = [fitted.patients[c] for c in np.unique(labels)]
    thresholds = [fitted.thresholds[c] for c in np.unique(labels)]
    finite = [n for n, t in zip(counts, thresholds, strict=True) if math.isfinite(t)]
    return min(finite or counts)


def coverage_band(
    calibration: int, test: int, alpha: float, level: float = 0.95
) -> tuple[float, float]:
    """Where the coverage of ``test`` patients lies with probability ``level``.

    It varies because both calibration and test are samples: beta-binomial.

    Source:
        Angelopoulos & Bates 2023, doi:10.1561/2200000101, section 3.

    >>> low, high = coverage_band(1000, 100000, 0.1)
    >>> round(low, 2), round(high, 2)
    (0.88, 0.92)
    """
    rank = math.ceil((calibration + 1) * (1 - alpha))
    if rank > calibration:
        return 1.0, 1.0
    tail = (1 - level) / 2
    spread = betabinom(test, rank, calibration + 1 - rank)
    return float(spread.ppf(tail)) / test, float(spread.ppf(1 - tail)) / test


def _threshold(
    scores: NDArray[np.float64], owners: NDArray[np.intp], alpha: float
) -> tuple[float, int]:
    """Quantile of the scores in which every patient, and one more at infinity, weighs the same."""
    names, where, images = np.unique(owners, return_inverse=True, return_counts=True)
    patients = len(names)
    if not patients:
        return math.inf, 0
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / images[where[order]])
    needed = (patients + 1) * (1 - alpha)
    # Sums of 1/images miss whole numbers by rounding; a patient more would be lost to it.
    index = int(np.searchsorted(reached, needed - 1e-9))
    return (float(scores[order[index]]) if index < len(scores) else math.inf), patients


def _numbered(patients: Sequence[Hashable]) -> NDArray[np.intp]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(patient, len(numbers)) for patient in patients], np.intp)


def _checked_scores(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Scores (N, classes) and labels (N,) that go together."""
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
