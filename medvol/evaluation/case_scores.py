"""What a classification's tables state of each case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medvol.evaluation.predictions import Predictions
from medvol.evaluation.summary import badness
from medvol.metrics import Score, metric_of


def worst_scores(rows: Sequence[Score]) -> list[Score]:
    """Defined scores, worst first."""
    known = [row for row in rows if not math.isnan(row.value)]
    direction = {row.metric: metric_of(row.metric).direction for row in known}
    return sorted(known, key=lambda r: (-badness(r.value, direction[r.metric]), r.case))


def case_scores(data: Predictions) -> list[Score]:
    """Per case, the squared error of its probabilities (the two-class form halves it).

    Scores that are not probabilities have none: there it is the share of the other classes' cases
    that the case is ranked rightly against, whose mean over a class is that class's AUC.
    """
    truth = data.known_truth
    rows = []
    if not data.is_probability:
        for k, info in enumerate(data.cases):
            own = data.prob[:, truth[k]]
            others = own[truth != truth[k]]
            right = np.where(others < own[k], 1.0, np.where(others == own[k], 0.5, 0.0))
            value = float(right.mean()) if others.size else math.nan
            rows.append(Score(info.case, data.classes[int(truth[k])], "auc_roc", value))
        return rows
    for k, info in enumerate(data.cases):
        gap = data.prob[k].copy()
        gap[truth[k]] -= 1
        value = float((gap**2).sum()) / (2 if len(data.classes) == 2 else 1)
        rows.append(Score(info.case, data.classes[int(truth[k])], "brier", value))
    return rows


def case_columns(data: Predictions) -> dict[str, list[Any]]:
    """Per case: the truth, the most probable class and every class's probability (or score)."""
    names = {"truth": data.known_truth, "called": data.called}
    columns: dict[str, list[Any]] = {
        name: [data.classes[int(k)] for k in numbers] for name, numbers in names.items()
    }
    for k, name in enumerate(data.classes):
        columns[f"prob_{name}"] = data.prob[:, k].tolist()
    return columns
