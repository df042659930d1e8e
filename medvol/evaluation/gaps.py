"""Differences between subgroups, and between the external and the internal cohort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medvol.evaluation.classification import ClassRow
from medvol.evaluation.summary import SummaryRow
from medvol.metrics.result import Fields


@dataclass(frozen=True)
class GapRow(Fields):
    """One number in two groups of cases, and their difference.

    Attributes:
        kind: ``subgroup`` or ``cohort``.
        cohort: Of the subgroups; ``external`` of a comparison of cohorts.
        first: Group, ``column=value``, or ``external``.
        second: The group compared with: the column's largest, or ``internal``.
        label: Label or class.
        metric: Metric; its mean over cases for masks.
        operating_point: Of a classification's decision, else empty.
        first_value: In ``first``.
        second_value: In ``second``.
        difference: ``first_value - second_value``.
        lower: Its interval at the evaluation's confidence.
        upper: Likewise.
        n_first: Patients in ``first``.
        n_second: Patients in ``second``.
        is_flagged: Whether 0 lies outside the interval once it is widened for the number of gaps
            in the table (Bonferroni), so that at most a share of 1 - confidence of tables without
            any gap flags one.
    """

    kind: str
    cohort: str
    first: str
    second: str
    label: str
    metric: str
    operating_point: str
    first_value: float
    second_value: float
    difference: float
    lower: float
    upper: float
    n_first: int
    n_second: int
    is_flagged: bool = False


def find_gaps(table: Sequence[SummaryRow | ClassRow], confidence: float = 0.95) -> list[GapRow]:
    """Every subgroup against its column's largest, and the external cohort against the internal.

    The interval of a difference joins those of the two groups, which hold different patients: the
    square-and-add rule, which keeps their asymmetry and needs no standard error.

    Args:
        table: Rows of ``summary.csv``.
        confidence: Of the table's intervals.

    Source:
        Newcombe 1998, Stat Med 17:873; Zou & Donner 2008, Stat Med 27:1693.
    """
    rows: dict[tuple[str, ...], Any] = {}
    for row in table:
        at = row.operating_point if isinstance(row, ClassRow) else ""
        rows[row.cohort, row.group, row.label, row.metric, at] = row
    size = {(row.cohort, row.group): row.n_patients for row in table if row.n_patients}
    found = []
    for (cohort, group, *what), row in rows.items():
        if group == "all":
            other, kind = rows.get(("internal", "all", *what)), "cohort"
            other = other if cohort == "external" else None
        else:
            column = group.partition("=")[0]
            largest = max(
                (g for c, g in size if c == cohort and g.partition("=")[0] == column),
                key=lambda g: size[cohort, g],
            )
            kind, other = (
                "subgroup",
                None if largest == group else rows.get((cohort, largest, *what)),
            )
        if other is not None and (gap := _gap(kind, row, other, what)) is not None:
            found.append(gap)
    return [replace(gap, is_flagged=_is_flagged(gap, len(found), confidence)) for gap in found]


def gap_text(gap: GapRow) -> str:
    """One line for people."""
    at = f" at {gap.operating_point}" if gap.operating_point else ""
    return (
        f"{gap.label} {gap.metric}{at}: {gap.first} {gap.first_value:.3f}, {gap.second} "
        f"{gap.second_value:.3f}, difference {gap.difference:+.3f} ({gap.lower:+.3f} to "
        f"{gap.upper:+.3f}), {gap.n_first} and {gap.n_second} patients"
    )


def _gap(kind: str, row: Any, other: Any, what: Sequence[str]) -> GapRow | None:
    first, second = _bounds(row), _bounds(other)
    if not all(map(math.isfinite, (*first, *second))):
        return None
    difference = first[0] - second[0]
    lower = difference - math.hypot(first[0] - first[1], second[2] - second[0])
    upper = difference + math.hypot(first[2] - first[0], second[0] - second[1])
    is_cohort = kind == "cohort"
    names = (row.cohort, other.cohort) if is_cohort else (row.group, other.group)
    return GapRow(
        kind, row.cohort, *names, what[0], what[1], what[2], first[0], second[0], difference,
        lower, upper, row.n_patients, other.n_patients,
    )  # fmt: skip


def _bounds(row: Any) -> tuple[float, float, float]:
    if isinstance(row, ClassRow):
        return row.value, row.lower, row.upper
    return row.mean, row.mean_lower, row.mean_upper


def _is_flagged(gap: GapRow, count: int, confidence: float) -> bool:
    from scipy.special import ndtri

    share = (1 - confidence) / 2
    wider = float(ndtri(share / count) / ndtri(share))
    if gap.difference < 0:
        return gap.difference + wider * (gap.upper - gap.difference) < 0
    return gap.difference - wider * (gap.difference - gap.lower) > 0
