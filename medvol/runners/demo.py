"""The main job on what ships: two hippocampi of a template brain, and a phantom trained on."""

from __future__ import annotations

import csv
import html
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvol.bundle import load, run_task
from medvol.core.errors import MedvolError, MissingPackageError
from medvol.core.files import write_text
from medvol.datasets.phantoms import write_phantom_dataset
from medvol.io import read_image, write_nifti
from medvol.reporting import draw_planes
from medvol.runners.cases import find_cases
from medvol.runners.local import run_local
from medvol.runners.record import PredictOptions

SEGMENTER = "hippocampus_mri_segmentation"
PHANTOM = "phantom_ct_segmentation"
#: Centres of the two hippocampi in MNI152 space, millimetres RAS, and half the crop's size.
CENTRES_MM = {"left": (-28.0, -22.0, -13.0), "right": (28.0, -22.0, -13.0)}
HALF_MM = (19.0, 28.0, 21.0)
_TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
Log = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        volumes_ml: Side -> part -> millilitres.
        phantom_dice: Label -> mean Dice on held-out phantoms; empty if training was skipped.
        report: The page that shows it all.
    """

    volumes_ml: dict[str, dict[str, float]]
    phantom_dice: dict[str, float]
    report: Path


def run_demo(out: str | os.PathLike[str], show: Log, *, trains: bool = True) -> DemoResult:
    """Segment the template's hippocampi; train, evaluate and apply the phantom bundle.

    Args:
        out: Folder for masks, figures and the page.
        show: Receives progress, a line at a time.
        trains: Whether to train the phantom bundle, about a minute on two cores.

    Raises:
        MissingPackageError: If nilearn, which carries the template, is not installed.
        MedvolError: If a step fails.
    """
    out = Path(out).resolve()
    volumes = segment_template(out, show)
    dice = train_phantom(out, show) if trains else {}
    report = out / "report.html"
    write_text(report, _page(volumes, dice))
    return DemoResult(volumes, dice, report)


def template_path() -> Path:
    """The MNI152 T1 template inside the installed nilearn; nilearn itself is not imported."""
    spec = importlib.util.find_spec("nilearn")
    found = Path(str(spec.origin)).parent / "datasets" / "data" / _TEMPLATE if spec else None
    if found is None or not found.is_file():
        raise MissingPackageError("the demo's template brain is in nilearn: pip install nilearn")
    return found


def segment_template(out: Path, show: Log) -> dict[str, dict[str, float]]:
    """Both hippocampi of the template: masks on its grid, a figure, volumes in millilitres."""
    template = read_image(template_path())
    affine = template.affine.numpy()
    array = template[0].numpy()
    crops = {side: _crop(array.shape, affine, centre) for side, centre in CENTRES_MM.items()}
    for side, place in crops.items():
        origin = affine.copy()
        origin[:3, 3] = (affine @ [*(s.start for s in place), 1])[:3]
        write_nifti(out / "crops" / f"{side}.nii.gz", array[place], origin)
    show(f"segmenting both hippocampi of the MNI152 template with {SEGMENTER}")
    options = PredictOptions(bundle=SEGMENTER, output=str(out / "prediction"))
    records = run_local(find_cases([str(out / "crops")]), options, lambda *_: None)
    if bad := [record for record in records if record.status != "done"]:
        raise MedvolError(f"{bad[0].case}: {bad[0].reason}")
    labels = load(SEGMENTER).labels
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    whole, volumes = np.zeros(array.shape, np.uint8), {}
    for side, place in crops.items():
        mask = read_image(out / "prediction" / side / "seg.nii.gz")[0].numpy()
        whole[place] = np.maximum(whole[place], mask.astype(np.uint8))
        volumes[side] = {name: float((mask == value).sum() * voxel_ml)
                         for value, name in labels.items()}  # fmt: skip
        draw_planes(array[place], mask.astype(np.uint8), labels, out / f"{side}.png",
                    title=f"{side} hippocampus")  # fmt: skip
        parts = ", ".join(f"{name} {ml:.2f} ml" for name, ml in volumes[side].items())
        show(f"  {side}: {sum(volumes[side].values()):.2f} ml ({parts})")
    write_nifti(out / "hippocampi.nii.gz", whole, affine)
    draw_planes(array, whole, labels, out / "template.png", title="MNI152 template")
    return volumes


def train_phantom(out: Path, show: Log) -> dict[str, float]:
    """Train the phantom bundle, score it on phantoms it never saw, and apply it to one."""
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
    task("inference", dataset_dir=test / "imagesTr", output_dir=folder / "masks",
         checkpoint=checkpoint)  # fmt: skip
    found: dict[str, list[float]] = {}
    with (folder / "scores" / "scores.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            if row["metric"] == "dice":
                found.setdefault(row["label"], []).append(float(row["value"]))
    dice = {label: math.fsum(values) / len(values) for label, values in found.items()}
    for label, value in dice.items():
        show(f"  {label}: mean Dice {value:.3f} over {len(found[label])} held-out phantoms")
    image = read_image(next(iter(sorted((test / "imagesTr").glob("*.nii.gz")))))
    mask = read_image(next(iter(sorted((folder / "masks").rglob("*_seg.nii.gz")))))
    spacing = tuple(float(v) for v in image.pixdim[:3])
    draw_planes(image[0].numpy(), mask[0].numpy().astype(np.uint8), load(PHANTOM).labels,
                out / "phantom.png", spacing_mm=spacing, title="held-out CT phantom")  # fmt: skip
    return dice


def _crop(
    shape: tuple[int, ...], affine: np.ndarray, centre_mm: tuple[float, ...]
) -> tuple[slice, ...]:
    centre = (np.linalg.inv(affine) @ [*centre_mm, 1])[:3]
    half = np.asarray(HALF_MM) / np.linalg.norm(affine[:3, :3], axis=0)
    low = np.maximum(np.round(centre - half), 0).astype(int)
    high = np.minimum(np.round(centre + half), shape).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _page(volumes: Mapping[str, Mapping[str, float]], dice: Mapping[str, float]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(side)}</td><td>{html.escape(part)}</td><td>{ml:.2f}</td></tr>"
        for side, parts in volumes.items()
        for part, ml in parts.items()
    )
    scores = "".join(f"<li>{html.escape(k)}: mean Dice {v:.3f}</li>" for k, v in dice.items())
    phantom = (
        "<h2>CT phantom: trained here, scored on phantoms it never saw</h2>"
        f"<ul>{scores}</ul><img src='phantom.png' alt='phantom with contours'>"
        "<p><img src='phantom/run/epochs.png' alt='loss and Dice over epochs'></p>"
        if dice
        else ""
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>medvol demo</title>"
        "<style>body{font:16px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
        "img{max-width:100%}td,th{padding:.2em 1em;text-align:left}</style>"
        "<h1>medvol demo</h1><h2>Hippocampi of the MNI152 template</h2>"
        f"<table><tr><th>side</th><th>part</th><th>volume (ml)</th></tr>{rows}</table>"
        "<img src='template.png' alt='template with contours'>"
        "<img src='left.png' alt='left hippocampus'><img src='right.png' alt='right hippocampus'>"
        f"{phantom}<p>Research only; not a medical device.</p></html>"
    )
