"""Rows of ``scores.csv``: one number, what it is of, and why it is undefined if it is.

Later questions need neither the network nor the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvol.core.errors import ConfigError
from medvol.core.files import fields_from_csv, fields_to_csv
from medvol.metrics.masks import MaskPair
from medvol.metrics.onepass import DEFAULT_METRICS
from medvol.metrics.registry import Metric, find_metric
from medvol.metrics.result import Fields

Params = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Score(Fields):
    """One row.

    Attributes:
        case: Name of the case, never of the patient.
        label: Name of the label.
        metric: Registered name, with its tolerance where it has one: ``nsd_voxel@2mm``.
        value: The number; ``nan`` where undefined, ``inf`` for a distance to nothing.
        unit: Its unit, empty for ratios.
        why_undefined: Which empty mask decided the value, also where the rule gives a number
            (Dice 0 of a false negative structure); empty otherwise.
    """

    case: str
    label: str
    metric: str
    value: float
    unit: str = ""
    why_undefined: str = ""


@dataclass(frozen=True)
class MetricPlan:
    """Which metrics are computed, with which tolerances.

    Attributes:
        metrics: Names of registered mask metrics with one number as value.
        taus_mm: Tolerances; a metric that has one is computed at each.
        params: Further parameters by metric.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    taus_mm: tuple[float, ...] = (2.0,)
    params: Params | None = None

    def calls(self) -> list[tuple[str, Metric, dict[str, Any]]]:
        """Column name, registry row and parameters of each number to compute.

        Raises:
            ConfigError: If a metric is unknown, gives more than one number, or lacks a parameter.
        """
        found = []
        for name in self.metrics:
            row, params = find_metric(name), dict((self.params or {}).get(name, {}))
            if row.of_pair is None or not row.is_scalar:
                raise ConfigError(f"metric {name!r} is not a mask metric with one number as value")
            if "width_mm" in row.params and "width_mm" not in params:
                raise ConfigError(f"metric {name!r} needs width_mm: choose the band's depth in mm")
            if "tau" not in row.params or "tau" in params:
                found.append((name, row, params))
                continue
            if not self.taus_mm:
                raise ConfigError(f"metric {name!r} needs a tolerance in mm")
            found += [(f"{name}@{tau:g}mm", row, {**params, "tau": tau}) for tau in self.taus_mm]
        return found


def metric_of(column: str) -> Metric:
    """The registry's row of a ``metric`` column entry such as ``nsd_voxel@2mm``."""
    return find_metric(column.partition("@")[0])


def score_pair(case: str, label: str, pair: MaskPair, plan: MetricPlan) -> list[Score]:
    """The rows of one label of one case."""
    rows = []
    for column, row, params in plan.calls():
        assert row.of_pair is not None
        value = float(row.of_pair(pair, **params))
        why = row.why_undefined(pair) if row.empty or pair.n_pred or pair.n_ref else ""
        if not (why or math.isfinite(value)):
            why = "no denominator"
        rows.append(Score(case, label, column, value, row.unit, why))
    return rows


def scores_to_csv(rows: Iterable[Score]) -> str:
    """The text of ``scores.csv``; values keep every digit."""
    return fields_to_csv(Score, rows)


def scores_from_csv(text: str, source: str) -> list[Score]:
    """Rows of a ``scores.csv``; see ``medvol.core.fields_from_csv``."""
    return fields_from_csv(Score, text, source)


def column_values(rows: Sequence[Score], label: str, metric: str) -> dict[str, float]:
    """Case to value, for one label and metric."""
    return {r.case: r.value for r in rows if r.label == label and r.metric == metric}
