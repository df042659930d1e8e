"""The table of a cross-validation, and its folds joined as the members of one ensemble.

``python -m tools.cross_validation table --data DATASET scores/fold_*/scores.csv`` pools the tables
that ``evaluate.json`` wrote with ``--fold``, each case scored by the network that never saw it,
and prints means with 95% intervals, patients resampled whole. ``python -m tools.cross_validation
join run/fold_*/model.pt -o model.pt`` writes the folds' weights in half precision, which halves
the file and rounds each weight by at most one part in 2,000.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from medvol.core import InputError
from medvol.datasets import read_dataset
from medvol.engines import save_checkpoint
from medvol.evaluation.cases import from_manifest
from medvol.evaluation.rows import read_rows
from medvol.evaluation.summary import show_interval, summarise
from medvol.metrics import Score
from medvol.networks import join_states, load_weights


def main() -> int:
    """Run one of the two jobs."""
    parser = argparse.ArgumentParser(description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    one = jobs.add_parser("table")
    one.add_argument("scores", type=Path, nargs="+")
    one.add_argument("--data", required=True, type=Path)
    two = jobs.add_parser("join")
    two.add_argument("weights", type=Path, nargs="+")
    two.add_argument("-o", "--out", required=True, type=Path)
    options = parser.parse_args()
    if options.job == "table":
        print(table(options.scores, options.data))
    else:
        save_checkpoint(options.out, join_states([half(path) for path in options.weights]))
        print(f"{options.out}: {len(options.weights)} members")
    return 0


def table(paths: Sequence[Path], data: Path) -> str:
    """Markdown rows of every label and metric over the cases of all folds."""
    rows: list[Score] = []
    for path in paths:
        found = read_rows(path, Score)
        if repeated := {row.case for row in found} & {row.case for row in rows}:
            raise InputError(f"{path}: case {min(repeated)} was scored by another fold already")
        rows += found
    lines = ["| label | metric | mean (95% interval) | undefined | false negative | n | patients |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in summarise(rows, from_manifest(read_dataset(data))):
        mean = show_interval(row.mean, row.mean_lower, row.mean_upper)
        unit = f" ({row.unit})" if row.unit else ""
        lines.append(f"| {row.label} | {row.metric}{unit} | {mean} | {row.n_undefined} | "
                     f"{row.n_false_negative} | {row.n} | {row.n_patients} |")  # fmt: skip
    return "\n".join(lines)


def half(path: Path) -> dict[str, Tensor]:
    """A state dict in half precision; tensors that a module lists twice are stored once."""
    stored: dict[tuple[object, bytes], Tensor] = {}
    return {
        name: stored.setdefault((value.shape, value.numpy().tobytes()), value.half())
        for name, value in load_weights(path).items()
    }


if __name__ == "__main__":
    sys.exit(main())
