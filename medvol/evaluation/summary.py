"""Rows of scores become rows of a paper's table: every number with its n and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from medvol.evaluation.cases import CaseInfo, groups_by
from medvol.metrics import Score, bootstrap_ci, metric_of, weighted_mean, weighted_quantile
from medvol.metrics.registry import FALSE_NEGATIVE, FALSE_POSITIVE
from medvol.metrics.result import Fields

ALL_LABELS = "(all labels)"
#: Groups with fewer patients than this are marked: their intervals promise too much.
SMALL_GROUP = 10


@dataclass(frozen=True)
class BootstrapPlan:
    """How intervals are drawn."""

    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0
    jobs: int = 1


@dataclass(frozen=True)
class SummaryRow(Fields):
    """One metric of one label over one group of cases.

    Attributes:
        cohort: ``internal`` or ``external``.
        group: ``all``, or ``column=value``.
        label: Name of the label.
        metric: Name as in ``scores.csv``.
        unit: Its unit.
        direction: Whether higher or lower is better.
        n: Values, defined or not.
        n_patients: Patients, which are what is resampled.
        n_undefined: Values that are ``nan``: nothing to find and nothing found.
        n_infinite: Infinite values: only one of two masks is empty.
        n_false_negative: Values decided by an empty prediction.
        n_false_positive: Values decided by an empty reference.
        mean: Mean of the defined values; ``inf`` if one is.
        mean_lower: Its BCa interval, clustered by patient.
        mean_upper: Likewise.
        mean_finite: Mean of the finite values only; flatters wherever ``n_infinite`` is not 0.
        median: Median of the defined values.
        median_lower: Its percentile interval, clustered by patient.
        median_upper: Likewise.
        q25: Lower quartile.
        q75: Upper quartile.
        worst: Worst defined value.
        is_small: Whether the group has fewer than ``SMALL_GROUP`` patients.
    """

    cohort: str
    group: str
    label: str
    metric: str
    unit: str
    direction: str
    n: int
    n_patients: int
    n_undefined: int
    n_infinite: int
    n_false_negative: int
    n_false_positive: int
    mean: float
    mean_lower: float
    mean_upper: float
    mean_finite: float
    median: float
    median_lower: float
    median_upper: float
    q25: float
    q75: float
    worst: float
    is_small: bool


def summarise(
    rows: Sequence[Score],
    cases: Mapping[str, CaseInfo],
    *,
    by: Sequence[str] = (),
    plan: BootstrapPlan | None = None,
) -> list[SummaryRow]:
    """The table of one cohort: overall, then each subgroup.

    Args:
        rows: Rows of ``scores.csv``.
        cases: What is known about each case of ``rows``.
        by: Columns to form subgroups by.
        plan: How intervals are drawn.
    """
    plan = plan or BootstrapPlan()
    present = {row.case for row in rows}
    known = [info for name, info in cases.items() if name in present]
    groups = {"all": known}
    groups |= {f"{column}={name}": found for (column, name), found in groups_by(known, by).items()}
    table = []
    for group, members in groups.items():
        names = {info.case for info in members}
        inside = [row for row in rows if row.case in names]
        for label, metric in _columns(inside):
            chosen = [r for r in inside if r.metric == metric and label in (r.label, ALL_LABELS)]
            table.append(summarise_values(group, label, chosen, cases, plan))
    return table


def summarise_values(
    group: str,
    label: str,
    rows: Sequence[Score],
    cases: Mapping[str, CaseInfo],
    plan: BootstrapPlan,
) -> SummaryRow:
    """One row of the table from the scores that belong to it."""
    metric = metric_of(rows[0].metric)
    values = np.array([row.value for row in rows])
    patients = np.array([cases[row.case].patient for row in rows])
    known = ~np.isnan(values)
    x, who = values[known], patients[known]
    mean = bootstrap_ci(weighted_mean(x), len(x), groups=who, method="bca", **asdict(plan))
    middle = bootstrap_ci(
        weighted_quantile(x), len(x), groups=who, method="percentile", **asdict(plan)
    ) if len(x) else mean  # fmt: skip
    n_patients = len(set(patients.tolist()))
    return SummaryRow(
        cohort=cases[rows[0].case].cohort,
        group=group,
        label=label,
        metric=rows[0].metric,
        unit=metric.unit,
        direction=metric.direction,
        n=len(values),
        n_patients=n_patients,
        n_undefined=int((~known).sum()),
        n_infinite=int(np.isinf(values).sum()),
        n_false_negative=sum(FALSE_NEGATIVE in row.why_undefined for row in rows),
        n_false_positive=sum(FALSE_POSITIVE in row.why_undefined for row in rows),
        mean=mean.estimate,
        mean_lower=mean.lower,
        mean_upper=mean.upper,
        mean_finite=_finite_mean(x),
        median=middle.estimate,
        median_lower=middle.lower,
        median_upper=middle.upper,
        q25=_quantile(x, 0.25),
        q75=_quantile(x, 0.75),
        worst=_worst(x, metric.direction),
        is_small=n_patients < SMALL_GROUP,
    )


def worst_cases(rows: Sequence[Score], count: int = 10) -> list[Score]:
    """The worst scores of each metric and label, worst first; infinite distances lead."""
    found = []
    for label, metric in _columns(rows, pooled=False):
        direction = metric_of(metric).direction
        chosen = [
            row
            for row in rows
            if (row.label, row.metric) == (label, metric) and not math.isnan(row.value)
        ]
        found += sorted(chosen, key=lambda row: (-badness(row.value, direction), row.case))[:count]
    return found


def badness(value: float, direction: str) -> float:
    """A number that grows as a value gets worse."""
    if direction == "higher":
        return -value
    return abs(value) if direction == "zero" else value


def show(value: float, digits: int = 3) -> str:
    """A number for a table; what is not quite 1 or 0 never prints as 1 or 0.

    >>> show(0.99996), show(1.0), show(0.0001), show(-0.0001), show(float("nan"))
    ('>0.999', '1.000', '<0.001', '>-0.001', 'undefined')
    """
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = f"{value:.{digits}f}"
    unit = 10**-digits
    if value < 1 and float(text) == 1:
        return f">{1 - unit:.{digits}f}"
    if float(text) == 0:
        sign = "<" if value > 0 else ">-" if value < 0 else ""
        return f"{sign}{unit if value else 0:.{digits}f}"
    return text


def show_interval(value: float, lower: float, upper: float, digits: int = 3) -> str:
    """``value (lower to upper)`` with ``show``'s care; missing bounds are stated."""
    if math.isnan(lower) or math.isnan(upper):
        return f"{show(value, digits)} (no interval)"
    if lower == upper:
        # A bootstrap of equal values has no width; that proves nothing and must not look precise.
        return f"{show(value, digits)} (every resample equal)"
    return f"{show(value, digits)} ({show(lower, digits)} to {show(upper, digits)})"


def _columns(rows: Sequence[Score], *, pooled: bool = True) -> list[tuple[str, str]]:
    """Label and metric pairs in order of appearance; with all labels pooled if there are more."""
    found = list(dict.fromkeys((row.label, row.metric) for row in rows))
    metrics = dict.fromkeys(metric for _, metric in found)
    if pooled and len({label for label, _ in found}) > 1:
        found = [(ALL_LABELS, metric) for metric in metrics] + found
    return found


def _finite_mean(x: NDArray[np.float64]) -> float:
    finite = x[np.isfinite(x)]
    return float(finite.mean()) if finite.size else math.nan


def _quantile(x: NDArray[np.float64], q: float) -> float:
    """An order statistic, so that infinite values do no harm."""
    return float(np.quantile(x, q, method="nearest")) if x.size else math.nan


def _worst(x: NDArray[np.float64], direction: str) -> float:
    return max((float(v) for v in x), key=lambda v: badness(v, direction), default=math.nan)
