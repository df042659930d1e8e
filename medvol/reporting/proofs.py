"""What the files themselves prove, so that a card states no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medvol.core.files import sha256_file

if TYPE_CHECKING:
    from medvol.evaluation import Results


def weights_of(bundle: Path) -> str:
    """Digest of the weights that lie in a bundle; its own name's where there are none."""
    weights = bundle / "models" / "model.pt"
    return sha256_file(weights) if weights.is_file() else f"no weights: {bundle}"


def is_made_by(run: Path, bundles: Mapping[str, str]) -> bool:
    """Whether an evaluation states that every prediction is of the weights of these bundles."""
    from medvol.evaluation.rows import read_json

    made_by = read_json(run / "run.json").get("predicted_by") or []
    return bool(made_by) and all(row.get("weights_sha256") in bundles for row in made_by)


def names_patients(option: str, results: Results) -> bool:
    """Whether the file or data set of an option, unchanged, names the patient of each case."""
    from medvol.core.errors import MedvolError
    from medvol.datasets import index_files, read_dataset
    from medvol.evaluation import read_predictions

    path = results.options[option]
    try:
        if option == "validation":
            files, known = [path], [c.is_patient_known for c in read_predictions(path).cases]
        else:
            files = index_files(path)
            known = [bool(case.patient) for case in read_dataset(path).cases]
        return all(known) and all(sha256_file(f) == results.inputs.get(f) for f in files)
    except (MedvolError, OSError):
        return False
