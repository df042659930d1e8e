"""Write which cases a bundle's shipped weights were trained on, beside them.

    python -m tools.record_cases BUNDLE DATASET [--folds 0]

The cases are those that the bundle's own train.json picks from the data set, for each fold that has
a member in the weights (all by default); only digests of the image files are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvol.bundle import load
from medvol.datasets import SeenCases, write_trained_on
from medvol.datasets.lock import image_digest


def main() -> None:
    """Read the command line and write ``models/trained_on.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--folds", type=int, nargs="*")
    args = parser.parse_args()
    bundle = load(args.bundle, is_trusted=True)
    folds = range(int(bundle.config("train")["folds"])) if args.folds is None else args.folds
    parts = []
    for fold in folds:
        config = bundle.parser("train", dataset_dir=str(args.dataset), fold=fold)
        rows = [config.get_parsed_content(f"{part}#dataset").data for part in ("train", "validate")]
        digests = [frozenset(image_digest([row["image"]]) for row in part) for part in rows]
        parts.append(SeenCases(*digests))
    write_trained_on(parts, bundle.path / "models")
    print(f"{bundle.name}: {len(frozenset().union(*(part.train for part in parts)))} cases")


if __name__ == "__main__":
    main()
