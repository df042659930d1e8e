"""Scores of cases become the tables of a diagnostic accuracy study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import ConfigError, InputError
from medvol.evaluation.cases import groups_by
from medvol.evaluation.predictions import Predictions, require_other_scores
from medvol.evaluation.summary import SMALL_GROUP, BootstrapPlan
from medvol.metrics import (
    OperatingPoint,
    agreement_of_classes,
    auc_ci,
    bootstrap_ci,
    clinical,
    ece,
    from_cases,
    predictive_values,
    threshold_at_sensitivity,
    threshold_at_specificity,
    threshold_at_youden,
    weighted_auc,
    weighted_average_precision,
    weighted_mean,
    weighted_ratio,
    wilson,
)
from medvol.metrics.result import Fields

Rule = Literal["sensitivity>=0.95", "specificity>=0.95", "youden", "fixed"]
RULES: tuple[Rule, ...] = ("sensitivity>=0.95", "specificity>=0.95", "youden")
_MACRO = "(macro)"


@dataclass(frozen=True)
class ClassRow(Fields):
    """One number of one class over one group of cases.

    Attributes:
        cohort: ``internal`` or ``external``.
        group: ``all``, or ``column=value``.
        label: The class that counts as positive.
        metric: Name of the number.
        operating_point: Rule that fixed the threshold; empty if none is needed.
        threshold: The threshold; ``nan`` if none is needed.
        value: The number.
        lower: Its interval.
        upper: Likewise.
        k: Numerator of a proportion, -1 for other numbers.
        n: Denominator of a proportion, cases for other numbers.
        n_pos: Positive cases of the group.
        n_patients: Patients of the group.
        method: How the interval was made.
        is_small: Whether the group has fewer than ``SMALL_GROUP`` patients.
    """

    cohort: str
    group: str
    label: str
    metric: str
    operating_point: str
    threshold: float
    value: float
    lower: float
    upper: float
    k: int
    n: int
    n_pos: int
    n_patients: int
    method: str
    is_small: bool


@dataclass(frozen=True, eq=False)
class ClassGroup:
    """One class against the rest in one group of cases."""

    data: Predictions
    cohort: str
    group: str
    label: str
    y: NDArray[np.bool_]
    score: NDArray[np.float64]
    plan: BootstrapPlan
    prevalence: float | None = None

    def row(self, metric: str, value: tuple[float, float, float], method: str, **extra: object):
        """A row with what all rows of the group share."""
        n_patients = len(set(self.data.patients.tolist()))
        shared: dict[str, object] = {
            "operating_point": "", "threshold": math.nan, "k": -1, "n": len(self.y),
        }  # fmt: skip
        return ClassRow(
            cohort=self.cohort, group=self.group, label=self.label, metric=metric,
            value=value[0], lower=value[1], upper=value[2], n_pos=int(self.y.sum()),
            n_patients=n_patients, method=method, is_small=n_patients < SMALL_GROUP,
            **(shared | extra),  # pyright: ignore[reportArgumentType]
        )  # fmt: skip


def fix_thresholds(
    validation: Predictions, rules: Sequence[Rule] = RULES
) -> dict[tuple[str, str], float]:
    """Thresholds by (class, rule), chosen on validation cases only.

    Raises:
        ConfigError: If a rule is unknown.
        InputError: If a class has no case on either side: no threshold follows.
    """
    chosen = {}
    truth = validation.known_truth
    for k, label in positives(validation):
        y, score = truth == k, validation.prob[:, k]
        if rules and y.all() == y.any():
            only = "only" if y.any() else "no"
            raise InputError(f"{validation.source}: {only} case is of {label!r}; a threshold needs "
                             "cases of the class and others")  # fmt: skip
        for rule in rules:
            chosen[label, rule] = _threshold(rule, y, score).threshold
    return chosen


def summarise_predictions(
    data: Predictions,
    *,
    thresholds: Mapping[tuple[str, str], float] | None = None,
    by: Sequence[str] = (),
    plan: BootstrapPlan | None = None,
    prevalence: float | None = None,
) -> list[ClassRow]:
    """The table of one cohort: overall, then each subgroup.

    Args:
        data: Scores and truth.
        thresholds: By (class, rule), from ``fix_thresholds`` on other cases; without them the
            decision is at 0.5, which is printed as such; scores that are not probabilities have
            none.
        by: Columns to form subgroups by.
        plan: How bootstrap intervals are drawn.
        prevalence: State predictive values at this share of positives too.

    Raises:
        ConfigError: If the prevalence does not lie between 0 and 1.
    """
    plan = plan or BootstrapPlan()
    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(f"prevalence must lie between 0 and 1, not {prevalence:g}")
    position = {info.case: k for k, info in enumerate(data.cases)}
    groups = {"all": np.arange(len(data.cases))}
    for (column, name), members in groups_by(data.cases, by).items():
        groups[f"{column}={name}"] = np.array([position[info.case] for info in members])
    rows: list[ClassRow] = []
    for group, index in groups.items():
        rows += _group_rows(data.take(index), group, thresholds, plan, prevalence)
    return rows


def positives(data: Predictions) -> list[tuple[int, str]]:
    """Class numbers that count as positive in turn: the second of two, or each of many."""
    if len(data.classes) == 2:
        return [(1, data.classes[1])]
    return list(enumerate(data.classes))


def require_other_cases(validation: Predictions, test: Predictions) -> None:
    """Reject thresholds fixed on the very patients that are tested.

    Raises:
        InputError: Naming a case, never the patient.
    """
    seen = set(validation.patients.tolist())
    shared = [info.case for info in test.cases if info.patient in seen]
    if shared:
        raise InputError(
            f"{test.source}: {len(shared)} cases belong to patients of {validation.source}, for "
            f"example {shared[0]}; a threshold must be fixed on other patients than it is tested on"
        )
    require_other_scores(validation, test)


def first_of_each(*keys: NDArray[np.generic]) -> NDArray[np.intp]:
    """The first case of each combination of keys, in order."""
    seen = {}
    for row, key in enumerate(zip(*(k.tolist() for k in keys), strict=True)):
        seen.setdefault(key, row)
    return np.array(list(seen.values()), np.intp)


def _group_rows(
    data: Predictions,
    group: str,
    thresholds: Mapping[tuple[str, str], float] | None,
    plan: BootstrapPlan,
    prevalence: float | None,
) -> list[ClassRow]:
    truth, cohort = data.known_truth, data.cases[0].cohort
    rows: list[ClassRow] = []
    for k, label in positives(data):
        one = ClassGroup(data, cohort, group, label, truth == k, data.prob[:, k], plan, prevalence)
        rows += ranking_rows(one)
        rules: Mapping[tuple[str, str], float] = (
            {(label, "fixed"): 0.5 if data.is_probability else math.nan}
            if thresholds is None
            else thresholds
        )
        for (name, rule), threshold in rules.items():
            if name == label:
                rows += decision_rows(one, rule, threshold)
    if len(data.classes) > 2:
        whole = ClassGroup(data, cohort, group, _MACRO, truth >= 0, data.prob[:, 0], plan)
        rows += _macro_rows(whole, truth)
    return rows


def ranking_rows(one: ClassGroup) -> list[ClassRow]:
    """Numbers that need no threshold: AUC, average precision, and for probabilities calibration."""
    y, score = one.y, one.score
    groups = one.data.patients
    is_probability = score.size > 0 and score.min() >= 0 and score.max() <= 1
    edge = auc_ci(y, score, confidence=one.plan.confidence)
    clustered = len(set(groups.tolist())) < len(groups)
    if clustered and 0 < edge.auc < 1:
        rows = [_bootstrap_row(one, "auc_roc", weighted_auc(y, score))]
    else:
        method = edge.method
        if clustered and not math.isnan(edge.auc):
            # Every resample agrees; a patient's cases are then no evidence of their own.
            first = first_of_each(groups, y)
            edge = auc_ci(y[first], score[first], confidence=one.plan.confidence)
            method += ", clustered"
        rows = [one.row("auc_roc", (edge.auc, edge.lower, edge.upper), method)]
    rows.append(_bootstrap_row(one, "average_precision", weighted_average_precision(y, score)))
    if is_probability:
        rows.append(_bootstrap_row(one, "brier", weighted_mean((score - y) ** 2)))
        rows.append(_ece_row(one))
    return rows


def _ece_row(one: ClassGroup) -> ClassRow:
    # Resampling inflates the ECE's bias; 1,000 resamples show its spread and are noted so.
    plan = BootstrapPlan(min(one.plan.resamples, 1000), one.plan.confidence, one.plan.seed)
    found = bootstrap_ci(
        from_cases(lambda rows: ece(one.y[rows], one.score[rows])),
        len(one.y), groups=one.data.patients, method="percentile", **asdict(plan),
    )  # fmt: skip
    return one.row("ece", (found.estimate, found.lower, found.upper), found.method)


def _bootstrap_row(one: ClassGroup, metric: str, statistic) -> ClassRow:
    found = bootstrap_ci(
        statistic, len(one.y), groups=one.data.patients, method="bca", **asdict(one.plan)
    )
    return one.row(metric, (found.estimate, found.lower, found.upper), found.method)


def decision_rows(
    one: ClassGroup, rule: str, threshold: float, called: NDArray[np.bool_] | None = None
) -> list[ClassRow]:
    """Sensitivity and its kin at one threshold; proportions by Wilson, or clustered.

    Args:
        one: The class and the cases.
        rule: What fixed the threshold.
        threshold: The threshold; ``nan`` if it differs between the cases, or does not exist.
        called: Decisions taken elsewhere, in place of the threshold's.
    """
    if math.isnan(threshold) and called is None:
        return []
    called, y = one.score >= threshold if called is None else called, one.y
    parts = {
        "sensitivity": (called & y, y),
        "specificity": (~called & ~y, ~y),
        "ppv": (called & y, called),
        "npv": (~called & ~y, ~called),
        "accuracy": (called == y, np.ones_like(y)),
    }
    point = {"operating_point": rule, "threshold": threshold}
    rows = []
    for metric, (part, whole) in parts.items():
        rows.append(_proportion_row(one, metric, part, whole, point))
    plan = BootstrapPlan(min(one.plan.resamples, 2000), one.plan.confidence, one.plan.seed)
    for metric, function in _count_metrics(one.prevalence).items():
        found = bootstrap_ci(
            _counts_statistic(function, called, y), len(y), groups=one.data.patients,
            method="percentile", **asdict(plan),
        )  # fmt: skip
        bounds = (found.estimate, found.lower, found.upper)
        rows.append(one.row(metric, bounds, found.method, **point))
    return rows


def _count_metrics(prevalence: float | None) -> dict[str, Callable[..., float]]:
    """Numbers of tp, fp, fn and tn that are not proportions of cases."""
    names = ("f1", "balanced_accuracy", "mcc", "lr_plus", "lr_minus")
    found: dict[str, Callable[..., float]] = {n: partial(_clinical, n) for n in names}
    found |= {name: partial(_of_both_classes, name) for name in ("macro_f1", "kappa")}
    if prevalence is not None:
        for place, name in enumerate(("ppv", "npv")):
            found[f"{name}@prevalence={prevalence:g}"] = partial(_predictive, place, prevalence)
    return found


def _clinical(name: str, *counts: int) -> float:
    return getattr(clinical(*counts), name)


def _of_both_classes(name: str, tp: int, fp: int, fn: int, tn: int) -> float:
    return float(agreement_of_classes(np.array([[tn, fp], [fn, tp]], float))[name])


def _predictive(place: int, prevalence: float, *counts: int) -> float:
    found = clinical(*counts)
    return predictive_values(found.sensitivity, found.specificity, prevalence)[place]


def _proportion_row(
    one: ClassGroup,
    metric: str,
    part: NDArray[np.bool_],
    whole: NDArray[np.bool_],
    point: Mapping[str, object],
) -> ClassRow:
    k, n = int(part.sum()), int(whole.sum())
    n_patients = len(set(one.data.patients[whole].tolist()))
    is_edge = k in (0, n)
    # Where all cases agree a patient counts once, however many cases they have.
    counts = (n_patients if k else 0, n_patients) if is_edge else (k, n)
    exact = wilson(*counts, confidence=one.plan.confidence)
    bounds = exact.estimate, exact.lower, exact.upper
    method = "wilson, clustered" if n_patients < n else "wilson"
    if not is_edge and n_patients < n:
        patients = one.data.patients[whole]
        found = bootstrap_ci(
            weighted_ratio(part[whole], np.ones(n)), n, groups=patients, method="bca",
            **asdict(one.plan),
        )  # fmt: skip
        bounds, method = (found.estimate, found.lower, found.upper), f"{found.method}, clustered"
    return one.row(metric, bounds, method, k=k, n=n, **point)


def _counts_statistic(
    function: Callable[..., float], called: NDArray[np.bool_], y: NDArray[np.bool_]
):
    masks = np.stack([called & y, called & ~y, ~called & y, ~called & ~y]).T.astype(float)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = (weights @ masks).astype(int)
        distinct, index = np.unique(counts, axis=0, return_inverse=True)
        return np.array([function(*row.tolist()) for row in distinct])[index.ravel()]

    return statistic


def _macro_rows(whole: ClassGroup, truth: NDArray[np.int64]) -> list[ClassRow]:
    """Means over classes, each against the rest; undefined if a class has no case."""
    data, rows = whole.data, []
    each = {"auc_roc": weighted_auc, "average_precision": weighted_average_precision}
    for metric, make in each.items():
        statistics = [make(truth == k, data.prob[:, k]) for k in range(len(data.classes))]
        rows.append(_bootstrap_row(whole, metric, _mean_of(statistics)))
    cells = truth * len(data.classes) + data.prob.argmax(axis=1)
    for metric in agreement_of_classes(np.zeros((len(data.classes),) * 2)):
        rows.append(_bootstrap_row(whole, metric, table_statistic(metric, cells, data.classes)))
    right = (data.prob.argmax(axis=1) == truth).astype(float)
    rows.append(_proportion_row(whole, "accuracy", right > 0, np.ones(len(truth), bool), {}))
    return rows


def table_statistic(metric: str, cells: NDArray[np.int64], classes: Sequence[str]):
    """A number of the table of truth (rows) against called class (columns), per resample."""
    size = len(classes)
    member = (cells[:, None] == np.arange(size**2)).astype(float)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return agreement_of_classes((weights @ member).reshape(-1, size, size))[metric]

    return statistic


def _mean_of(statistics):
    return lambda weights: np.mean([s(weights) for s in statistics], axis=0)


def _threshold(rule: str, y: NDArray[np.bool_], score: NDArray[np.float64]) -> OperatingPoint:
    if rule == "youden":
        return threshold_at_youden(y, score)
    name, _, target = rule.partition(">=")
    by_name = {"sensitivity": threshold_at_sensitivity, "specificity": threshold_at_specificity}
    try:
        return by_name[name](y, score, target=float(target))
    except (KeyError, ValueError):
        raise ConfigError(f"operating point {rule!r} is unknown; use youden, sensitivity>=0.95 or "
                          "the like") from None  # fmt: skip
