"""What out-of-fold tables show, beside probes that never saw the anatomy.

``python -m tools.score_members OUT/fold*.csv --data DATASET --probes thumbnail+histogram size``
prints the table of a model card: AUC with an interval over resampled patients, and its paired gain
over each probe, a ridge fitted on the same folds; then sensitivity and specificity at the
threshold of 95% sensitivity, and coverage of conformal sets, each fixed on the other folds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core import InputError
from medvol.datasets import read_dataset
from medvol.datasets.leakage import read_features
from medvol.datasets.leakage.probes import feature_tables, ridge_scores
from medvol.metrics import (
    apply_temperature,
    bootstrap_ci,
    fit_temperature,
    threshold_at_sensitivity,
    weighted_auc,
    wilson,
)
from medvol.uncertainty import coverage_report, fit_conformal

_RESAMPLES = 2000


@dataclass(frozen=True)
class Held:
    """Out-of-fold scores of every case, in the order of the tables.

    Attributes:
        cases: Names.
        logits: (N, 2).
        truth: 1 for the second class.
        folds: Number of the table that a case is in.
        groups: Patient numbers.
    """

    cases: tuple[str, ...]
    logits: NDArray[np.float64]
    truth: NDArray[np.intp]
    folds: NDArray[np.intp]
    groups: NDArray[np.intp]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--probes", nargs="*", default=["thumbnail+histogram", "compressibility"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = score(given.tables, given.data, given.probes)
    print(json.dumps(rows, indent=2) if given.json else _markdown(rows))
    return 0


def score(tables: Sequence[Path], data: Path, probes: Sequence[str]) -> list[dict[str, Any]]:
    """One row per figure: what, value, lower, upper, and on what."""
    held, cases = _read(tables, data)
    ours = held.logits[:, 1] - held.logits[:, 0]
    rows = [_area("network", ours, held)]
    features, unreadable = read_features(cases)
    if unreadable:
        raise InputError(f"{data}: case {unreadable[0][0]}: {unreadable[0][1]}")
    known = feature_tables(features)
    for name in probes:
        table = np.hstack([known[part] for part in name.split("+")])
        theirs = ridge_scores(table, held.truth > 0, held.folds)
        rows += [_area(f"{name} probe", theirs, held), _gain(name, ours, theirs, held)]
    return [*rows, *_decisions(held), *_coverage(held)]


def _read(tables: Sequence[Path], data: Path) -> tuple[Held, list[Any]]:
    known = {case.case: case for case in read_dataset(data).cases}
    found: list[tuple[int, Mapping[str, str]]] = []
    for number, table in enumerate(tables):
        with table.open(encoding="utf-8") as handle:
            found += [(number, row) for row in csv.DictReader(handle)]
    names = [row["case"] for _, row in found]
    if len(set(names)) < len(names):
        raise InputError(f"{tables[0]}: a case is in two tables; give one table per fold")
    classes = [key.removeprefix("logit_") for key in found[0][1] if key.startswith("logit_")]
    logits = np.array([[float(row[f"logit_{name}"]) for name in classes] for _, row in found])
    truth = np.array([classes.index(row["truth"]) for _, row in found])
    _, groups = np.unique([known[name].group for name in names], return_inverse=True)
    folds = np.array([number for number, _ in found])
    return Held(tuple(names), logits, truth, folds, groups), [known[name] for name in names]


def _area(name: str, values: NDArray[np.float64], held: Held) -> dict[str, Any]:
    found = bootstrap_ci(
        weighted_auc(held.truth, values), len(values), groups=held.groups, resamples=_RESAMPLES
    )
    return _row(f"AUC, {name}", found.estimate, found.lower, found.upper,
                f"{found.n} cases, {found.n_groups} patients")  # fmt: skip


def _gain(
    name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], held: Held
) -> dict[str, Any]:
    first, second = weighted_auc(held.truth, ours), weighted_auc(held.truth, theirs)
    found = bootstrap_ci(
        lambda weights: first(weights) - second(weights),
        len(ours), groups=held.groups, resamples=_RESAMPLES,
    )  # fmt: skip
    return _row(f"paired gain over the {name} probe", found.estimate, found.lower, found.upper,
                "patients resampled")  # fmt: skip


def _decisions(held: Held) -> list[dict[str, Any]]:
    """Sensitivity and specificity of every fold at the threshold of the others."""
    score = held.logits[:, 1] - held.logits[:, 0]
    called = np.zeros(len(score), bool)
    for fold in np.unique(held.folds):
        here = held.folds == fold
        point = threshold_at_sensitivity(held.truth[~here], score[~here], target=0.95)
        called[here] = score[here] >= point.threshold
    rows = []
    for name, chosen, right in (("sensitivity", held.truth == 1, called),
                                ("specificity", held.truth == 0, ~called)):  # fmt: skip
        k, n = int(right[chosen].sum()), int(chosen.sum())
        found = wilson(k, n)
        rows.append(_row(f"{name} at the other folds' 95%-sensitivity point", k / n, found.lower,
                         found.upper, f"{k} of {n}"))  # fmt: skip
    return rows


def _coverage(held: Held) -> list[dict[str, Any]]:
    """Coverage of 90% sets within each class, fitted on the other folds, and where it may lie."""
    hits: dict[str, list[Any]] = {}
    for fold in np.unique(held.folds):
        here = held.folds == fold
        temperature = fit_temperature(held.logits[~here], held.truth[~here])
        p = apply_temperature(held.logits, temperature)
        fitted = fit_conformal(p[~here], held.truth[~here], held.groups[~here].tolist(),
                               alpha=0.1, by_class=True)  # fmt: skip
        for row in coverage_report(fitted, p[here], held.truth[here], held.groups[here].tolist()):
            hits.setdefault(row.group, []).append(row)
    rows = []
    for name, parts in hits.items():
        n, k = sum(part.n for part in parts), sum(part.covered for part in parts)
        low, high = (float(np.mean([part.band[i] for part in parts])) for i in (0, 1))
        inside = sum(part.band[0] <= part.covered / part.n <= part.band[1] for part in parts)
        rows.append(_row(f"conformal coverage, {name} (folds' mean band)", k / n, low, high,
                         f"{k} of {n}; {inside} of {len(parts)} folds in their band"))  # fmt: skip
    return rows


def _row(what: str, value: float, lower: float, upper: float, basis: str) -> dict[str, Any]:
    return {"what": what, "value": round(float(value), 4), "lower": round(float(lower), 4),
            "upper": round(float(upper), 4), "basis": basis}  # fmt: skip


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| figure | value | 95% interval | on |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['what']} | {row['value']:.3f} | {row['lower']:.3f} to "
                     f"{row['upper']:.3f} | {row['basis']} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
