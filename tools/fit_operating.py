"""Fix a classifier's operating point on out-of-fold predictions.

``python -m tools.fit_operating BUNDLE --data DATASET fold0/predictions.csv fold1/...``
writes ``BUNDLE/models/operating.json``: temperature, the threshold of 95% sensitivity, conformal
sets within each class by patient, and the scores behind Venn-Abers intervals. The tables are those
of ``evaluate.json`` with ``--fold N``, each scored by the network that did not train on fold N.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from medvol.core import InputError
from medvol.datasets import read_dataset
from medvol.uncertainty import Operating, fit_operating


def main() -> int:
    """Write the file and print what was fitted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--sensitivity", type=float, default=0.95)
    parser.add_argument("--alpha", type=float, default=0.1)
    options = parser.parse_args()
    fitted = fit(options.tables, options.data, options.sensitivity, options.alpha)
    target = options.bundle / "models" / "operating.json"
    fitted.save(target)
    print(f"{target}: temperature {fitted.temperature:.3f}, threshold {fitted.threshold}, "
          f"{fitted.source}")  # fmt: skip
    return 0


def fit(tables: list[Path], data: Path, sensitivity: float, alpha: float) -> Operating:
    """The operating point of several tables' cases, each of which may occur once."""
    texts = [table.read_text(encoding="utf-8").splitlines() for table in tables]
    rows = [row for text in texts for row in csv.DictReader(text)]
    names = [row["case"] for row in rows]
    if len(set(names)) < len(names):
        raise InputError(f"{tables[0]}: a case is in two tables; give one table per fold")
    group = {case.case: case.group for case in read_dataset(data).cases}
    classes = [key.removeprefix("logit_") for key in rows[0] if key.startswith("logit_")]
    logits = [[float(row[f"logit_{name}"]) for name in classes] for row in rows]
    return fit_operating(
        logits,
        [classes.index(row["truth"]) for row in rows],
        classes,
        [group[name] for name in names],
        sensitivity=sensitivity,
        alpha=alpha,
        source=f"{len(rows)} out-of-fold cases of {len({group[n] for n in names})} patients",
    )


if __name__ == "__main__":
    sys.exit(main())
