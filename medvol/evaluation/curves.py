"""The curves behind a classification's numbers, with pointwise bands: ``curves.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.evaluation.classification import positives
from medvol.evaluation.predictions import Predictions
from medvol.evaluation.summary import BootstrapPlan
from medvol.metrics import (
    bootstrap_ci,
    calibration_line,
    confusion_matrix,
    decision_band,
    from_cases,
    pr_band,
    pr_curve,
    reliability,
    reliability_bin,
    roc_band,
    roc_curve,
    weighted_ratio,
    wilson,
)

_BAND_RESAMPLES = 2000
_LINE_RESAMPLES = 300
_GRID = np.linspace(0, 1, 101)
_MOST_POINTS = 2000
_BINS = 10
_SCORE_BINS = 25


def cohort_curves(
    data: Predictions, thresholds: Mapping[tuple[str, str], float] | None, plan: BootstrapPlan
) -> dict[str, Any]:
    """Curves of every class against the rest, and confusion matrices, as JSON values.

    Undefined numbers are null. Bands hold pointwise, not for a curve as a whole.

    Args:
        data: Scores and truth of one cohort.
        thresholds: By (class, rule) as for ``summarise_predictions``.
        plan: How bands are drawn, with at most 2,000 resamples (300 for the calibration line).
    """
    truth = data.known_truth
    curves = []
    for k, label in positives(data):
        y, score = truth == k, data.prob[:, k]
        if 0 < y.sum() < len(y):
            curves.append({"label": label, **_class_curves(data, y, score, plan)})
    return {
        "cohort": data.cases[0].cohort,
        "n": len(truth),
        "n_patients": len(set(data.patients.tolist())),
        "confidence": plan.confidence,
        "resamples": min(plan.resamples, _BAND_RESAMPLES),
        "curves": curves,
        "confusion": _confusions(data, thresholds, plan),
    }


def _class_curves(
    data: Predictions, y: NDArray[np.bool_], score: NDArray[np.float64], plan: BootstrapPlan
) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "groups": data.patients, "resamples": min(plan.resamples, _BAND_RESAMPLES),
        "confidence": plan.confidence, "seed": plan.seed,
    }  # fmt: skip
    fpr, tpr = _thinned(*roc_curve(y, score))
    recall, precision = _thinned(*pr_curve(y, score))
    found: dict[str, Any] = {
        "n": len(y), "n_pos": int(y.sum()),
        "roc": {"fpr": _json(fpr), "tpr": _json(tpr), "at": _json(_GRID),
                **_bounds(roc_band(y, score, _GRID, **shared))},
        "pr": {"recall": _json(recall), "precision": _json(precision), "at": _json(_GRID[1:]),
               **_bounds(pr_band(y, score, _GRID[1:], **shared)), "prevalence": float(y.mean())},
        "scores": _histogram(y, score),
    }  # fmt: skip
    if score.min() >= 0 and score.max() <= 1:
        steps = _GRID[1:-1]
        everybody = decision_band(y, np.ones(len(y)), steps, **{**shared, "resamples": 1})
        band = decision_band(y, score, steps, **shared)
        found["decision"] = {"at": _json(steps), "model": _json(band.value), **_bounds(band),
                             "everybody": _json(everybody.value)}  # fmt: skip
        found["calibration"] = {"bins": _bins(data, y, score, plan),
                                **_line(data, y, score, plan)}  # fmt: skip
    return found


def _bins(
    data: Predictions, y: NDArray[np.bool_], score: NDArray[np.float64], plan: BootstrapPlan
) -> list[dict[str, Any]]:
    """Bars of the reliability diagram that hold a case, with Wilson's interval.

    Where a bar holds patients more than once, the clustered interval widens it, or Wilson's counts
    patients where their cases all agree.
    """
    bin_of = reliability_bin(score, bins=_BINS)
    found = []
    for k, one in enumerate(reliability(y, score, bins=_BINS)):
        if not one.n:
            continue
        exact = wilson(one.positives, one.n, confidence=plan.confidence)
        lower, upper = exact.lower, exact.upper
        inside = bin_of == k
        patients = data.patients[inside]
        n_patients = len(set(patients.tolist()))
        if one.positives in (0, one.n):
            by_patient = wilson(n_patients if one.positives else 0, n_patients,
                                confidence=plan.confidence)  # fmt: skip
            lower, upper = by_patient.lower, by_patient.upper
        elif n_patients < one.n:
            drawn = bootstrap_ci(
                weighted_ratio(y[inside], np.ones(one.n)), one.n, groups=patients,
                resamples=_BAND_RESAMPLES, confidence=plan.confidence, seed=plan.seed,
                method="percentile",
            )  # fmt: skip
            if math.isfinite(drawn.lower):
                lower, upper = min(lower, drawn.lower), max(upper, drawn.upper)
        found.append({"low": one.low, "high": one.high, "n": one.n, "positives": one.positives,
                      "mean_prob": one.mean_prob, "rate": exact.estimate, "lower": lower,
                      "upper": upper})  # fmt: skip
    return found


def _line(
    data: Predictions, y: NDArray[np.bool_], score: NDArray[np.float64], plan: BootstrapPlan
) -> dict[str, Any]:
    """Calibration slope and intercept, each with its interval."""
    line = calibration_line(y, score)
    found = {}
    for name in ("slope", "in_the_large"):

        def again(rows: NDArray[np.intp], name: str = name) -> float:
            return _finite(calibration_line(y[rows], score[rows])[name])

        drawn = bootstrap_ci(
            from_cases(again),
            len(y), groups=data.patients, method="percentile",
            resamples=min(plan.resamples, _LINE_RESAMPLES), confidence=plan.confidence,
            seed=plan.seed,
        )  # fmt: skip
        found[name] = _json(np.array([line[name], drawn.lower, drawn.upper]))
    return found


def _confusions(
    data: Predictions, thresholds: Mapping[tuple[str, str], float] | None, plan: BootstrapPlan
) -> list[dict[str, Any]]:
    """Of the most probable class; with two classes also at each threshold."""
    truth, n = data.known_truth, len(data.classes)
    calls = {("most probable class", ""): data.called}
    if n == 2:
        label = data.classes[1]
        rules = {(label, "fixed"): 0.5} if thresholds is None else thresholds
        calls = {
            (rule, f"{threshold:.4g}"): (data.prob[:, 1] >= threshold).astype(int)
            for (name, rule), threshold in rules.items()
            if name == label and not math.isnan(threshold)
        }
    found = []
    for (rule, threshold), called in calls.items():
        counts = confusion_matrix(truth, called, n)
        cells = [[wilson(int(c), int(row.sum()), confidence=plan.confidence) for c in row]
                 for row in counts]  # fmt: skip
        found.append({
            "rule": rule, "threshold": threshold, "classes": list(data.classes),
            "counts": counts.tolist(),
            **{name: [[_null(cell[name]) for cell in row] for row in cells]
               for name in ("estimate", "lower", "upper")},
        })  # fmt: skip
    return found


def _histogram(y: NDArray[np.bool_], score: NDArray[np.float64]) -> dict[str, Any]:
    is_probability = score.min() >= 0 and score.max() <= 1
    span = (0.0, 1.0) if is_probability else (float(score.min()), float(score.max()))
    counts = [np.histogram(score[side], bins=_SCORE_BINS, range=span) for side in (y, ~y)]
    return {"edges": _json(counts[0][1]), "positive": counts[0][0].tolist(),
            "negative": counts[1][0].tolist()}  # fmt: skip


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]):
    """A curve without more points than a figure can show; its ends stay."""
    if len(x) <= _MOST_POINTS:
        return x, y
    keep = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).astype(int))
    return x[keep], y[keep]


def _bounds(band: Any) -> dict[str, Any]:
    return {"lower": _json(band.lower), "upper": _json(band.upper)}


def _json(values: NDArray[np.float64]) -> list[float | None]:
    return [_null(float(v)) for v in values]


def _null(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
