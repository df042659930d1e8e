"""Values files that the planner writes for the shipped planned bundles.

``python -m tools.planned_bundles brain_tumour_mri_segmentation`` draws phantoms with the grid,
channels and label names of a public data set that is not at hand, plans for one GPU, and writes
``configs/bundles/NAME.yaml``; ``hippocampus_mri_planned_segmentation --dataset DIR`` plans the data
itself, on this machine's CPU. ``spleen_ct_segmentation`` only prints what the planner would choose
for Task09, beside which a bundle already ships. The model cards are written by hand. Then:
``medvol bundle write NAME``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core import write_json, write_text
from medvol.datasets import phantoms
from medvol.datasets.phantoms.writer import write_nifti
from medvol.planning import Request, parse_duration, plan_dataset
from medvol.planning.pages import values_text
from medvol.planning.plan import Plan

_CASES = 5
_CACHE_BYTES = 16e9
_MSD = (
    "Antonelli M et al. The Medical Segmentation Decathlon. Nature Communications 13, 4128 (2022)."
)
_META: dict[str, Any] = {
    "version": "0.1.0",
    "data_type": "nibabel",
    "intended_use": "Research only; not a medical device and not for clinical decisions.",
    "references": [_MSD],
    "changelog": {"0.1.0": "planned, without weights"},
}
_BRAIN = {
    "title": "Brain tumour MRI segmentation",
    "task": "Segmentation of glioma as nested regions in four-channel MRI",
    "description": "A recipe, written by medvol plan, for a 3D U-Net that labels whole tumour, "
    "tumour core and enhancing tumour in skull-stripped, co-registered MRI. It ships no weights.",
    "data_source": "Medical Segmentation Decathlon Task01_BrainTumour, CC-BY-SA 4.0 (not included)",
    "image_classes": "four channels of MRI: FLAIR, T1w, T1gd, T2w",
    "label_classes": "single channel label map, 1 is edema, 2 non-enhancing tumour, 3 enhancing",
    "pred_classes": "3 channels: whole tumour, tumour core, enhancing tumour",
}
_HIPPOCAMPUS = {
    "title": "Hippocampus MRI segmentation, planned",
    "task": "Segmentation of the anterior and posterior hippocampus in T1-weighted MRI",
    "description": "What medvol plan makes of Task04 without any hand-set number, for comparison "
    "with hippocampus_mri_segmentation. It ships no weights.",
    "data_source": "Medical Segmentation Decathlon Task04_Hippocampus, CC-BY-SA 4.0 (not included)",
    "image_classes": "single channel T1-weighted MRI",
    "label_classes": "single channel label map, 1 is anterior hippocampus, 2 is posterior",
    "pred_classes": "3 channels, channel 0 is background, 1 anterior hippocampus, 2 posterior",
}


def main() -> None:
    """Draw or read, plan, write or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(BUNDLES))
    parser.add_argument("--dataset", type=Path, help="the data itself, instead of phantoms")
    parser.add_argument("--budget", default="", help="12h on a GPU, 25m on a CPU by default")
    parser.add_argument("--gpu-mem", type=float, default=12.0)
    options = parser.parse_args()
    draw, meta = BUNDLES[options.name]
    device = "cuda" if draw else "cpu"
    budget_s = parse_duration(options.budget or ("12h" if draw else "25m"))
    with tempfile.TemporaryDirectory() as scratch:
        data = options.dataset or (draw(Path(scratch) / "data") if draw else None)
        if data is None:
            raise SystemExit(f"{options.name} needs --dataset")
        request = Request(budget_s, device, options.gpu_mem)
        plan = plan_dataset(data, Path(scratch) / options.name, request)
        if draw and not options.dataset:
            stretch(plan, options.name)
        basis = "the data" if options.dataset else f"{_CASES} phantoms on the data's grid"
        text = planned_text(plan, meta, basis)
    if meta is None:
        print(text)
    else:
        write_text(Path("configs") / "bundles" / f"{options.name}.yaml", text)


def stretch(plan: Plan, name: str) -> None:
    """The schedule and the cache for as many cases as the data set has, instead of the phantoms."""
    draft, folds, cases = plan.draft, plan.draft["folds"], GRIDS[name][0]
    train = cases * (folds - 1) // folds
    drawn = _CASES * (folds - 1) // folds
    batch = draft["batch_size"]
    steps = plan.forecast.epochs * -(-drawn // batch)
    epochs = max(10, steps // -(-train // batch) // 10 * 10)
    draft.set("max_epochs", epochs, f"about {steps} steps on {train} cases")
    draft.set("cosine_epochs", 2 * epochs)
    draft.set("val_interval", epochs // 10, "10 validations")
    draft.set("patience", epochs)
    rate = min(1.0, _CACHE_BYTES / (cases * GRIDS[name][1]))
    draft.set("cache_rate", float(f"{rate:.2g}"), f"16 GB of {cases} prepared cases")


def planned_text(plan: Plan, meta: dict[str, Any] | None, basis: str) -> str:
    """The values file with a meta of its own."""
    notes = [f"Fingerprint of {basis}; tools/planned_bundles.py writes this file.", *plan.notes]
    whole = {**_META, **(meta or {"title": "Spleen"})}
    return values_text(plan.draft, f"{whole['title']}: planned by medvol.", notes, whole)


def brain(folder: Path) -> Path:
    """Task01's grid: 240 x 240 x 155 at 1 mm, skull-stripped, its label values and names."""
    of_msd = np.array([0, 2, 1, 3], np.uint8)  # phantoms: necrosis, edema, enhancing
    rows = []
    for number in range(_CASES):
        phantom = phantoms.mr_phantom(number, shape=(240, 240, 155), spacing_mm=(1.0, 1.0, 1.0))
        image = phantom.image * _brain_mask(phantom.label.shape)
        rows.append(_write(folder, number, image, of_msd[phantom.label], phantom.affine))
    return _index(folder, rows, "BRATS", ["FLAIR", "T1w", "t1gd", "T2w"],
                  ["edema", "non-enhancing tumor", "enhancing tumour"])  # fmt: skip


def spleen(folder: Path) -> Path:
    """Task09's median grid: 512 x 512 x 90 at 0.79 x 0.79 x 5 mm."""
    rows = []
    for number in range(_CASES):
        phantom = phantoms.ct_phantom(
            number, shape=(512, 512, 90), spacing_mm=(0.793, 0.793, 5.0), labels=("spleen",)
        )
        rows.append(_write(folder, number, phantom.image, phantom.label, phantom.affine))
    return _index(folder, rows, "Spleen", ["CT"], ["spleen"])


def _brain_mask(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """An ellipsoid in place of skull stripping: what lies outside is 0, as in Task01."""
    axes = [np.linspace(-1, 1, n).reshape([-1 if k == i else 1 for k in range(3)])
            for i, n in enumerate(shape)]  # fmt: skip
    radii = (70 / 120, 88 / 120, 70 / 77.5)
    return sum(((a / r) ** 2 for a, r in zip(axes, radii, strict=True)), np.zeros(shape)) <= 1


def _write(
    folder: Path, number: int, image: NDArray[Any], label: NDArray[Any], affine: NDArray[Any]
) -> dict[str, str]:
    name = f"case_{number}.nii.gz"
    write_nifti(folder / "imagesTr" / name, image.astype(np.float32), affine)
    write_nifti(folder / "labelsTr" / name, label, affine)
    return {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}


def _index(
    folder: Path, rows: list[dict[str, str]], name: str, channels: list[str], labels: list[str]
) -> Path:
    write_json(folder / "dataset.json", {
        "name": name, "modality": {str(k): each for k, each in enumerate(channels)},
        "labels": {"0": "background", **{str(k + 1): each for k, each in enumerate(labels)}},
        "numTraining": len(rows), "numTest": 0, "training": rows, "test": [],
    })  # fmt: skip
    return folder


#: Labelled cases of the data set that phantoms stand for, and bytes of a prepared one.
GRIDS = {
    "brain_tumour_mri_segmentation": (484, 4 * 4 * 240 * 240 * 155),
    "spleen_ct_segmentation": (41, 4 * 512 * 512 * 90),
}
#: Bundle to what draws its phantoms (None: planned on data) and its meta (None: only printed).
BUNDLES: dict[str, tuple[Callable[[Path], Path] | None, dict[str, Any] | None]] = {
    "brain_tumour_mri_segmentation": (brain, _BRAIN),
    "hippocampus_mri_planned_segmentation": (None, _HIPPOCAMPUS),
    "spleen_ct_segmentation": (spleen, None),
}

if __name__ == "__main__":
    main()
