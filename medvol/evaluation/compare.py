"""Two models on the same cases: paired differences, intervals and tests, adjusted together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import InputError, MissingInputError
from medvol.evaluation.cases import CaseInfo, from_manifest, read_case_lines
from medvol.evaluation.classification import first_of_each, table_statistic
from medvol.evaluation.predictions import Predictions, read_predictions
from medvol.evaluation.rows import read_rows, read_table
from medvol.evaluation.summary import BootstrapPlan
from medvol.metrics import (
    AucInterval,
    Score,
    auc_ci,
    bootstrap_ci,
    column_values,
    delong_test,
    holm,
    mcnemar_exact,
    metric_of,
    permutation_paired,
    weighted_auc,
    weighted_average_precision,
    weighted_mean,
    weighted_quantile,
    wilcoxon_paired,
)
from medvol.metrics.intervals import normal_quantile
from medvol.metrics.paired import paired_differences
from medvol.metrics.result import Fields

#: A number per row of resampling weights, shape (resamples, cases).
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Comparison(Fields):
    """One difference, first minus second.

    Attributes:
        label: Label or class.
        metric: What is compared.
        n: Pairs of which both values are defined.
        n_undefined: Pairs left out because a value is undefined.
        first: The first's median (scores) or value (classification).
        second: Likewise.
        difference: Median of the paired differences, or difference of the values.
        lower: Its interval, clustered by patient.
        upper: Likewise.
        better: Pairs in which the first is better.
        worse: Pairs in which the second is better.
        test: Name of the test.
        p: Its p value.
        p_holm: Adjusted for all rows of the table.
    """

    label: str
    metric: str
    n: int
    n_undefined: int
    first: float
    second: float
    difference: float
    lower: float
    upper: float
    better: int
    worse: int
    test: str
    p: float
    p_holm: float = math.nan


def compare(
    first: Path, second: Path, *, data: Path | None = None, plan: BootstrapPlan | None = None
) -> list[Comparison]:
    """Compare two evaluations, or two CSV files of scores.

    Args:
        first: An evaluation's folder (of the verb or of a bundle), a ``scores.csv`` of masks, or
            a ``predictions.csv``.
        second: The same of the other model on the same cases.
        data: Data set that knows patients and, where the files lack it, the truth. Beside it
            ``cases.csv`` tells which cases are of one patient; else each case counts as one.
        plan: How intervals are drawn.

    Raises:
        InputError: If the two do not hold the same cases, or group them by other patients.
    """
    plan = plan or BootstrapPlan()
    known, truth = _known(data)
    paths = [_scores_file(path) for path in (first, second)]
    headers = [read_table(path)[0] for path in paths]
    if all({"metric", "value", "case"} <= set(header) for header in headers):
        tables = [read_rows(path, Score) for path in paths]
        _require_same_cases(paths, [{row.case for row in table} for table in tables])
        known = known or _known_beside(paths)
        rows = compare_scores(tables[0], tables[1], known, plan)
    else:
        read = [read_predictions(path, known=known, truth=truth or None) for path in paths]
        _require_same_cases(paths, [{info.case for info in one.cases} for one in read])
        known = _agreed(paths, [{info.case: info for info in one.cases} for one in read])
        rows = compare_predictions(read[0].of_cases(known), read[1], plan)
    return adjusted(rows)


def adjusted(rows: Sequence[Comparison]) -> list[Comparison]:
    """The rows with p values adjusted by Holm for all of them."""
    values = holm([row.p for row in rows])
    return [replace(row, p_holm=float(p)) for row, p in zip(rows, values, strict=True)]


def compare_scores(
    first: Sequence[Score],
    second: Sequence[Score],
    known: Mapping[str, CaseInfo],
    plan: BootstrapPlan,
) -> list[Comparison]:
    """Paired differences of every label and metric that both tables hold."""
    theirs = {(row.label, row.metric) for row in second}
    shared = dict.fromkeys((r.label, r.metric) for r in first if (r.label, r.metric) in theirs)
    return [
        _paired(label, metric, column_values(first, label, metric),
                column_values(second, label, metric), known, plan)
        for label, metric in shared
    ]  # fmt: skip


def compare_predictions(
    first: Predictions, second: Predictions, plan: BootstrapPlan
) -> list[Comparison]:
    """AUC by DeLong, decisions by McNemar, all else by the paired bootstrap."""
    order = {info.case: k for k, info in enumerate(second.cases)}
    second = second.take(np.array([order[info.case] for info in first.cases]))
    if first.classes != second.classes:
        raise InputError(f"{second.source}: classes {second.classes} are not {first.classes}")
    truth = first.known_truth
    if second.truth is not None and not np.array_equal(truth, second.truth):
        bad = first.cases[int(np.flatnonzero(truth != second.truth)[0])].case
        raise InputError(f"{second.source}: case {bad!r} has another truth than {first.source}")
    rows = []
    chosen = [1] if len(first.classes) == 2 else range(len(first.classes))
    for k in chosen:
        rows.append(auc_row(first, second, k, plan))
        y = truth == k
        scores = [one.prob[:, k] for one in (first, second)]
        found = {"average_precision": [weighted_average_precision(y, s) for s in scores]}
        if first.is_probability and second.is_probability:
            found["brier"] = [weighted_mean((s - y) ** 2) for s in scores]
        rows += [difference_row(first.classes[k], name, pair, first.patients, plan)
                 for name, pair in found.items()]  # fmt: skip
    right = [one.called == truth for one in (first, second)]
    rows.append(proportion_row("(top class)", "accuracy", right, first.patients, plan))
    cells = [truth * len(first.classes) + one.called for one in (first, second)]
    for metric in ("balanced_accuracy", "macro_f1", "kappa"):
        pair = [table_statistic(metric, one, first.classes) for one in cells]
        rows.append(difference_row("(top class)", metric, pair, first.patients, plan))
    return rows


def difference_row(
    label: str,
    metric: str,
    statistics: Sequence[Statistic],
    patients: NDArray[Any],
    plan: BootstrapPlan,
) -> Comparison:
    """A number of the same cases by two models: resampled together, patients whole."""
    one, other = statistics
    n, groups = len(patients), by_appearance(patients)
    whole = np.ones((1, n))
    values = float(one(whole)[0]), float(other(whole)[0])
    found = bootstrap_ci(
        lambda w: one(w) - other(w), n, groups=groups, method="percentile", **asdict(plan)
    )
    difference = values[0] - values[1]
    p = _two_sided(difference, (found.upper - found.lower) / 2, plan)
    if difference and found.upper == found.lower:
        p = math.nan  # no resample differs: there is no spread to test against
    return Comparison(
        label, metric, n, 0, *values, difference, found.lower, found.upper, 0, 0,
        "clustered bootstrap" if len(set(groups.tolist())) < n else "bootstrap", p,
    )  # fmt: skip


def _paired(
    label: str,
    metric: str,
    first: Mapping[str, float],
    second: Mapping[str, float],
    known: Mapping[str, CaseInfo],
    plan: BootstrapPlan,
) -> Comparison:
    names = [name for name in first if name in second]
    a, b = (np.array([table[name] for name in names]) for table in (first, second))
    keep = ~(np.isnan(a) | np.isnan(b))
    patients = by_appearance([known[n].patient if n in known else n for n in names])[keep]
    a, b = a[keep], b[keep]
    d = paired_differences(a, b)
    gains = {"higher": d, "lower": -d, "zero": paired_differences(np.abs(b), np.abs(a))}
    gain = gains.get(metric_of(metric).direction, np.zeros(len(d)))
    test = "signed ranks by patient" if len(set(patients.tolist())) < len(d) else "wilcoxon"
    middle = lower = upper = p = math.nan
    if len(d):
        found = bootstrap_ci(
            weighted_quantile(d), len(d), groups=patients, method="percentile", **asdict(plan)
        )
        middle, lower, upper = found.estimate, found.lower, found.upper
        p = wilcoxon_paired(a, b, groups=patients, resamples=plan.resamples, seed=plan.seed).p
    return Comparison(
        label, metric, len(d), int((~keep).sum()), _median(a), _median(b), middle, lower, upper,
        int((gain > 0).sum()), int((gain < 0).sum()), test, p,
    )  # fmt: skip


def auc_row(first: Predictions, second: Predictions, k: int, plan: BootstrapPlan) -> Comparison:
    """AUC of class k against the rest on the same cases in the same order.

    By DeLong, which takes cases as independent; repeated patients are resampled whole instead.
    Where neither AUC varies (a perfect one, a constant score) both would claim certainty of any
    gap: there the two Newcombe intervals are joined.
    """
    y, n = first.known_truth == k, len(first.cases)
    s1, s2 = first.prob[:, k], second.prob[:, k]
    test = delong_test(y, s1, s2, confidence=plan.confidence)
    bounds, name, p = (test.lower, test.upper), "delong", test.p
    patients = by_appearance(first.patients)
    if len(set(patients.tolist())) < n:
        one, other = weighted_auc(y, s1), weighted_auc(y, s2)
        found = bootstrap_ci(
            lambda w: one(w) - other(w), n, groups=patients, method="percentile",
            **asdict(plan),
        )  # fmt: skip
        bounds, name = (found.lower, found.upper), "clustered bootstrap"
        p = _two_sided(test.difference, (found.upper - found.lower) / 2, plan)
    if abs(test.difference) > 1e-12 and bounds[1] - bounds[0] < 1e-12:
        kept = first_of_each(first.patients, y)
        edges = [auc_ci(y[kept], s[kept], confidence=plan.confidence) for s in (s1, s2)]
        bounds, reach = _square_and_add(edges[0], edges[1], test.difference)
        name, p = "newcombe", _two_sided(test.difference, reach, plan)
    return Comparison(
        first.classes[k], "auc_roc", n, 0, test.auc1, test.auc2, test.difference,
        bounds[0], bounds[1], 0, 0, name, p,
    )  # fmt: skip


def proportion_row(
    label: str,
    metric: str,
    right: Sequence[NDArray[np.bool_]],
    patients: NDArray[Any],
    plan: BootstrapPlan,
) -> Comparison:
    """Which of two is right more often: McNemar's test, or by whole patients where they repeat."""
    a, b = right
    patients = by_appearance(patients)
    only = int((a & ~b).sum()), int((~a & b).sum())
    is_clustered = len(set(patients.tolist())) < len(patients)
    if is_clustered:
        p = permutation_paired(a, b, groups=patients, resamples=plan.resamples, seed=plan.seed).p
    else:
        p = mcnemar_exact(*only).p
    found = bootstrap_ci(
        weighted_mean(a.astype(float) - b), len(a), groups=patients, method="percentile",
        **asdict(plan),
    )  # fmt: skip
    test = "sign flips by patient" if is_clustered else "mcnemar"
    means = (float(a.mean()), float(b.mean())) if len(a) else (math.nan, math.nan)
    return Comparison(
        label, metric, len(a), 0, *means, found.estimate, found.lower, found.upper, *only, test, p
    )


def by_appearance(patients: ArrayLike) -> NDArray[np.intp]:
    """Patients as numbers in order of appearance, so that no result depends on their names.

    >>> by_appearance(["p10", "p2", "p10"]).tolist()
    [0, 1, 0]
    """
    _, first, inverse = np.unique(np.asarray(patients), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.ravel()]


def _two_sided(difference: float, half_width: float, plan: BootstrapPlan) -> float:
    """The normal p of a difference whose interval reaches that far from it."""
    if math.isnan(half_width) or math.isnan(difference):
        return math.nan
    if half_width == 0:
        return 1.0
    z = difference / half_width * normal_quantile(plan.confidence)
    return math.erfc(abs(z) / math.sqrt(2))


def _square_and_add(
    first: AucInterval, second: AucInterval, difference: float
) -> tuple[tuple[float, float], float]:
    """Newcombe's interval of a difference, and how far it reaches towards 0 (1998, method 10)."""
    lower = math.hypot(first.auc - first.lower, second.upper - second.auc)
    upper = math.hypot(first.upper - first.auc, second.auc - second.lower)
    bounds = max(difference - lower, -1.0), min(difference + upper, 1.0)
    return bounds, lower if difference > 0 else upper


def _median(x: NDArray[np.float64]) -> float:
    return float(weighted_quantile(x)(np.ones((1, len(x))))[0]) if len(x) else math.nan


def _known(data: Path | None) -> tuple[dict[str, CaseInfo], dict[str, str]]:
    """What a data set knows of each case, and the classes of those that have one."""
    if data is None:
        return {}, {}
    from medvol.datasets import read_dataset

    manifest = read_dataset(data)
    return from_manifest(manifest), {c.case: c.category for c in manifest.cases if c.category}


def _known_beside(paths: Sequence[Path]) -> dict[str, CaseInfo]:
    """What the ``cases.csv`` beside each table of scores states."""
    found = []
    for path in paths:
        file = path.with_name("cases.csv")
        header, rows = read_table(file) if file.is_file() else ([], [])
        found.append(read_case_lines(rows) if {"case", "patient_group"} <= set(header) else {})
    return _agreed(paths, found)


def _agreed(paths: Sequence[Path], found: Sequence[Mapping[str, CaseInfo]]) -> dict[str, CaseInfo]:
    """The cases as the table that knows most patients groups them.

    Raises:
        InputError: If both know the patients and group the cases differently.
    """
    shared = [case for case in found[0] if case in found[1]]
    pairs = [(found[0][case], found[1][case]) for case in shared]
    both = {(a.patient, b.patient) for a, b in pairs if a.is_patient_known and b.is_patient_known}
    if both and any(len({pair[k] for pair in both}) < len(both) for k in (0, 1)):
        raise InputError(
            f"{paths[1]}: groups the cases by other patients than {paths[0]}; evaluate both with "
            "one data set, or give it with --data"
        )
    counts = [sum(info.is_patient_known for info in table.values()) for table in found]
    return dict(found[0] if counts[0] >= counts[1] else found[1])


def _scores_file(path: Path) -> Path:
    # An evaluated classification keeps its probabilities in cases.csv, beside its curves.
    names = (
        ("cases.csv",) if (path / "curves.json").is_file() else ("scores.csv", "predictions.csv")
    )
    for file in [path / name for name in names] if path.is_dir() else (path,):
        if file.is_file():
            return file
    raise MissingInputError(f"{path}: holds neither scores.csv nor predictions.csv")


def _require_same_cases(paths: Sequence[Path], cases: Sequence[set[str]]) -> None:
    first, second = cases
    if first != second:
        odd = sorted(first ^ second)[0]
        raise InputError(
            f"{paths[1]}: does not hold the cases of {paths[0]}: {len(first ^ second)} are in only "
            f"one of them, for example {odd!r}; compare models on the same cases"
        )
