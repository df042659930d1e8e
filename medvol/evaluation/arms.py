"""Arms of a study side by side: averaged over seeds, with each seed's range, and tested in pairs.

A classifier's arm is the mean of its seeds' probabilities, a segmenter's the mean of its seeds'
scores of each case: one value per case, so that the tests are those of two models on the same
cases, and the range over seeds stands beside it instead of inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError
from medvol.evaluation.cases import CaseInfo
from medvol.evaluation.classification import (
    ClassGroup,
    ClassRow,
    decision_rows,
    fix_thresholds,
    positives,
    ranking_rows,
)
from medvol.evaluation.compare import Comparison, auc_row, compare_scores, proportion_row
from medvol.evaluation.predictions import Predictions
from medvol.evaluation.summary import BootstrapPlan, SummaryRow, summarise
from medvol.metrics import (
    Score,
    bootstrap_ci,
    weighted_ratio,
)
from medvol.metrics.bootstrap import BootstrapInterval, WeightedStatistic
from medvol.metrics.result import Fields

#: Rule of the threshold 0.5, which needs no validation cases.
FIXED = "fixed"
_Given = TypeVar("_Given")
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class ArmRow(Fields):
    """One number of one arm.

    Attributes:
        label: Label or class.
        metric: Name, with its operating point where it has one: ``specificity@sensitivity>=0.90``.
        statistic: ``mean`` or ``median`` of cases' scores; empty for a classifier's numbers.
        value: The number of the average over seeds.
        lower: Its interval, clustered by patient.
        upper: Likewise.
        n: Cases (of a proportion: its denominator).
        n_patients: Patients.
        n_undefined: Cases without a value.
        n_infinite: Cases in which only one of two masks is empty.
        seeds: How many seeds were averaged.
        seed_lowest: Lowest value of a single seed.
        seed_highest: Highest.
        method: How the interval was made.
    """

    label: str
    metric: str
    statistic: str
    value: float
    lower: float
    upper: float
    n: int
    n_patients: int
    n_undefined: int
    n_infinite: int
    seeds: int
    seed_lowest: float
    seed_highest: float
    method: str


@dataclass(frozen=True, eq=False)
class Seed:
    """What one seed of a classifier's arm predicted; the fold is the column ``fold`` of a case."""

    test: Predictions
    validation: Predictions | None = None


@dataclass(frozen=True, eq=False)
class ClassArm:
    """A classifier's arm: its seeds, and their average."""

    seeds: tuple[Seed, ...]
    average: Seed

    @classmethod
    def of(cls, seeds: Sequence[Seed]) -> ClassArm:
        """Average the seeds' probabilities.

        Raises:
            InputError: If the seeds hold different cases.
        """
        validation = [one.validation for one in seeds if one.validation is not None]
        return cls(
            tuple(seeds),
            Seed(_mean([s.test for s in seeds]), _mean(validation) if validation else None),
        )


def classifier_rows(arm: ClassArm, rules: Sequence[str], plan: BootstrapPlan) -> list[ArmRow]:
    """Ranking and decisions of an arm at every rule, each with the range over its seeds."""

    def score(seed: Seed, plan: BootstrapPlan) -> list[ClassRow]:
        return _class_rows(seed, rules, plan)

    return [
        ArmRow(
            row.label, _column(row), "", row.value, row.lower, row.upper, row.n, row.n_patients,
            0, 0, *_spread([one.value for one in singles]), row.method,
        )
        for row, singles in _beside_seeds(score, arm.average, arm.seeds, plan)
    ]  # fmt: skip


def segmenter_rows(
    seeds: Sequence[Sequence[Score]], cases: Mapping[str, CaseInfo], plan: BootstrapPlan
) -> list[ArmRow]:
    """Mean and median of an arm's scores, each with the range over its seeds."""

    def score(rows: Sequence[Score], plan: BootstrapPlan) -> list[SummaryRow]:
        return summarise(rows, cases, plan=plan)

    return [
        _score_row(row, singles, statistic, method)
        for row, singles in _beside_seeds(score, mean_scores(seeds), seeds, plan)
        for statistic, method in (("mean", "bca"), ("median", "percentile"))
    ]


def mean_scores(seeds: Sequence[Sequence[Score]]) -> list[Score]:
    """Each case's score averaged over seeds; undefined where it is in every seed.

    Raises:
        InputError: If the seeds scored different cases.
    """
    tables = [{(r.case, r.label, r.metric): r for r in rows} for rows in seeds]
    if any(table.keys() != tables[0].keys() for table in tables):
        raise InputError("the seeds of an arm scored different cases")
    found = []
    for key, first in tables[0].items():
        values = np.array([table[key].value for table in tables])
        known = values[~np.isnan(values)]
        why = next((t[key].why_undefined for t in tables if t[key].why_undefined), "")
        value = float(known.mean()) if known.size else math.nan
        found.append(replace(first, value=value, why_undefined=why))
    return found


def compare_classifiers(
    first: ClassArm, second: ClassArm, rules: Sequence[str], plan: BootstrapPlan
) -> list[Comparison]:
    """First minus second on the same cases: AUC, and sensitivity, specificity and F1 at each rule.

    AUC by DeLong (by clustered bootstrap where patients repeat), sensitivity and specificity by
    McNemar's exact test (by sign flips of whole patients where they repeat), F1 by swapping whole
    patients' decisions.
    """
    a, b = first.average, _aligned(second.average, first.average)
    rows = []
    for k, label in positives(a.test):
        y = a.test.known_truth == k
        rows.append(auc_row(a.test, b.test, k, plan))
        for rule in rules:
            called = _decisions(a, k, label, rule), _decisions(b, k, label, rule)
            rows += _decision_tests(label, rule, y, called, a.test.patients, plan)
    return rows


def compare_segmenters(
    first: Sequence[Sequence[Score]],
    second: Sequence[Sequence[Score]],
    cases: Mapping[str, CaseInfo],
    plan: BootstrapPlan,
) -> list[Comparison]:
    """First minus second, by signed ranks of cases' scores averaged over seeds."""
    return compare_scores(mean_scores(first), mean_scores(second), cases, plan)


def _beside_seeds(
    score: Callable[[_Given, BootstrapPlan], Sequence[_Row]],
    average: _Given,
    seeds: Sequence[_Given],
    plan: BootstrapPlan,
) -> Iterator[tuple[_Row, list[_Row]]]:
    """Each row of the average over seeds, with the same row of every seed."""
    quick = replace(plan, resamples=1)
    singles = [score(seed, quick) for seed in seeds]
    for k, row in enumerate(score(average, plan)):
        yield row, [rows[k] for rows in singles]


def _spread(values: Sequence[float]) -> tuple[int, float, float]:
    return len(values), min(values), max(values)


def _gap(
    difference: WeightedStatistic, patients: NDArray[np.str_], plan: BootstrapPlan
) -> BootstrapInterval:
    """A difference with its interval, patients resampled whole."""
    return bootstrap_ci(
        difference, len(patients), groups=patients, method="percentile", **asdict(plan)
    )


def _class_rows(seed: Seed, rules: Sequence[str], plan: BootstrapPlan) -> list[ClassRow]:
    data, rows = seed.test, []
    for k, label in positives(data):
        one = ClassGroup(
            data, "internal", "all", label, data.known_truth == k, data.prob[:, k], plan
        )
        rows += ranking_rows(one)
        for rule in rules:
            rows += decision_rows(one, rule, math.nan, _decisions(seed, k, label, rule))
    return rows


def _decisions(seed: Seed, k: int, label: str, rule: str) -> NDArray[np.bool_]:
    """Whether each test case is called positive, at its own fold's threshold."""
    score = seed.test.prob[:, k]
    if rule == FIXED:
        return score >= 0.5
    if seed.validation is None:
        raise InputError(f"{seed.test.source}: rule {rule!r} needs validation cases")
    called = np.zeros(len(score), bool)
    folds = [np.array([c.columns.get("fold", "") for c in one.cases])
             for one in (seed.test, seed.validation)]  # fmt: skip
    for fold in np.unique(folds[0]):
        held = seed.validation.take(np.flatnonzero(folds[1] == fold))
        threshold = fix_thresholds(held, [rule])[label, rule]  # pyright: ignore[reportArgumentType]
        inside = folds[0] == fold
        called[inside] = score[inside] >= threshold
    return called


def _decision_tests(
    label: str,
    rule: str,
    y: NDArray[np.bool_],
    called: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    patients: NDArray[np.str_],
    plan: BootstrapPlan,
) -> list[Comparison]:
    a, b = called
    parts = {
        "sensitivity": (a & y, b & y, y),
        "specificity": (~a & ~y, ~b & ~y, ~y),
    }
    rows = [
        proportion_row(label, f"{name}@{rule}", (one[whole], other[whole]), patients[whole], plan)
        for name, (one, other, whole) in parts.items()
    ]
    return [*rows, _f1_test(label, f"f1@{rule}", y, called, patients, plan)]


def _f1_test(
    label: str,
    metric: str,
    y: NDArray[np.bool_],
    called: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    patients: NDArray[np.str_],
    plan: BootstrapPlan,
) -> Comparison:
    """F1 is twice the true positives over called plus truly positive: a ratio of sums."""
    ratios = [weighted_ratio(2.0 * (one & y), one.astype(float) + y) for one in called]
    found = _gap(lambda w: ratios[0](w) - ratios[1](w), patients, plan)
    values = [float(ratio(np.ones((1, len(y))))[0]) for ratio in ratios]
    p = _swap_p(y, called, patients, abs(found.estimate), plan)
    return Comparison(
        label, metric, len(y), 0, values[0], values[1], found.estimate, found.lower, found.upper,
        0, 0, "swaps by patient", p,
    )  # fmt: skip


def _swap_p(
    y: NDArray[np.bool_],
    called: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    patients: NDArray[np.str_],
    observed: float,
    plan: BootstrapPlan,
) -> float:
    """Share of random exchanges of whole patients between the models that reach the gap."""
    if math.isnan(observed):
        return math.nan
    index = np.unique(patients, return_inverse=True)[1]
    first, second = (
        np.stack([np.bincount(index, 2.0 * (one & y)), np.bincount(index, one.astype(float) + y)])
        for one in called
    )
    kept = np.random.default_rng(plan.seed).integers(0, 2, (plan.resamples, first.shape[1]))
    tops = [kept @ a.T + (1 - kept) @ b.T for a, b in ((first, second), (second, first))]
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.abs(tops[0][:, 0] / tops[0][:, 1] - tops[1][:, 0] / tops[1][:, 1])
    return float(((gaps >= observed - 1e-12).sum() + 1) / (plan.resamples + 1))


def _mean(seeds: Sequence[Predictions]) -> Predictions:
    """Mean probabilities of predictions on the same cases; logits become their logarithms."""
    first = seeds[0]
    aligned = [first, *(_in_order(one, first) for one in seeds[1:])]
    prob = np.mean([one.prob for one in aligned], axis=0)
    logits = None if first.logits is None else np.log(np.maximum(prob, 1e-12))
    return replace(first, prob=prob, logits=logits)


def _aligned(seed: Seed, like: Seed) -> Seed:
    return replace(seed, test=_in_order(seed.test, like.test))


def _in_order(data: Predictions, like: Predictions) -> Predictions:
    order = {info.case: k for k, info in enumerate(data.cases)}
    names = [info.case for info in like.cases]
    if set(order) != set(names) or data.classes != like.classes:
        raise InputError(f"{data.source}: does not hold the cases and classes of {like.source}")
    return data.take(np.array([order[name] for name in names]))


def _column(row: ClassRow) -> str:
    return f"{row.metric}@{row.operating_point}" if row.operating_point else row.metric


def _score_row(
    row: SummaryRow, singles: Sequence[SummaryRow], statistic: str, method: str
) -> ArmRow:
    return ArmRow(
        row.label, row.metric, statistic, row[statistic], row[f"{statistic}_lower"],
        row[f"{statistic}_upper"], row.n, row.n_patients, row.n_undefined, row.n_infinite,
        *_spread([one[statistic] for one in singles]), method,
    )  # fmt: skip
