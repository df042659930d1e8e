"""The main job on what ships: the whole brain and both hippocampi of a template head."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.bundle import load, run_task
from medvol.core.errors import MedvolError, MissingPackageError
from medvol.core.files import CsvRows
from medvol.datasets.phantoms import write_phantom_dataset
from medvol.evaluation import write_volumes
from medvol.reporting import write_prediction_report, write_report
from medvol.runners.cases import CaseInput
from medvol.runners.local import run_local
from medvol.runners.record import PredictOptions

#: Case of the demo -> the bundle that segments the template for it.
CASES = {
    "mni152_brain": "brain_mri_segmentation",
    "mni152_hippocampi": "hippocampus_mri_segmentation",
}
PHANTOM = "phantom_ct_segmentation"
_TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
Log = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        volumes_ml: Case -> structure -> millilitres.
        phantom_dice: Label -> mean Dice on held-out phantoms; empty if nothing was trained.
        report: The page that shows the template.
    """

    volumes_ml: dict[str, dict[str, float]]
    phantom_dice: dict[str, float]
    report: Path


def run_demo(out: str | os.PathLike[str], show: Log, *, trains: bool = False) -> DemoResult:
    """Segment the template; on request train and evaluate the phantom bundle too.

    Args:
        out: Folder for masks, volumes and the page.
        show: Receives progress, a line at a time.
        trains: Whether to train the phantom bundle, about a minute on two cores.

    Raises:
        MissingPackageError: If nilearn, which carries the template, is not installed.
        MedvolError: If a step fails.
    """
    out = Path(out).resolve()
    volumes = segment_template(out / "prediction", show)
    report = write_prediction_report(out / "prediction", out, title="MNI152 template").page
    dice = train_phantom(out, show) if trains else {}
    return DemoResult(volumes, dice, report)


def template_path() -> Path:
    """The MNI152 T1 template inside the installed nilearn; nilearn itself is not imported."""
    spec = importlib.util.find_spec("nilearn")
    found = Path(str(spec.origin)).parent / "datasets" / "data" / _TEMPLATE if spec else None
    if found is None or not found.is_file():
        raise MissingPackageError("the demo's template brain is in nilearn: pip install nilearn")
    return found


def segment_template(out: Path, show: Log) -> dict[str, dict[str, float]]:
    """Masks of the brain and of both hippocampi on the template's grid, and their volumes."""
    template, volumes = str(template_path()), {}
    for name, bundle in CASES.items():
        show(f"segmenting the MNI152 template with {bundle}")
        options = PredictOptions(bundle=bundle, output=str(out))
        (record,) = run_local([CaseInput(name, template)], options)
        if record.status != "done":
            raise MedvolError(f"{name}: {record.reason}")
        volumes[name] = {row["name"]: row["volume_ml"] for row in record.structures}
    for structure, ml in volumes["mni152_hippocampi"].items():
        show(f"  {structure} hippocampus: {ml:.2f} ml")
    write_volumes(out)
    return volumes


def train_phantom(out: Path, show: Log) -> dict[str, float]:
    """Train the phantom bundle and score it on phantoms it never saw; ends in a report."""
    folder = out / "phantom"

    def task(name: str, **overrides: Any) -> None:
        run_task(load(PHANTOM), name, overrides, folder / f"{name}.log")

    train, test = folder / "train", folder / "test"
    if not (test / "dataset.json").is_file():
        show("drawing 12 CT phantoms to train on and 4 to test on")
        write_phantom_dataset(train, 12, labels=("liver", "spleen"))
        write_phantom_dataset(test, 4, labels=("liver", "spleen"), held_out=True)
    show(f"training {PHANTOM}, about a minute")
    checkpoint = folder / "run" / "model.pt"
    if not (folder / "run" / "epochs.png").is_file():
        task("train", dataset_dir=train, output_dir=folder / "run", resume=True)
    show("evaluating it on phantoms it has not seen")
    task("evaluate", dataset_dir=test, output_dir=folder / "scores", checkpoint=checkpoint)
    found: dict[str, list[float]] = {}
    with (folder / "scores" / "scores.csv").open(newline="") as handle:
        for row in CsvRows(handle):
            if row["metric"] == "dice":
                found.setdefault(row["label"], []).append(float(row["value"]))
    dice = {label: math.fsum(values) / len(values) for label, values in found.items()}
    for label, value in dice.items():
        show(f"  {label}: mean Dice {value:.3f} over {len(found[label])} held-out phantoms")
    write_report([folder / "scores"], folder / "report", title="Held-out CT phantoms")
    return dice
