"""What brain_mri_segmentation finds in heads that it has not seen.

    python -m tools.score_brain LABEL_MAPS [--study T1.nii.gz T2.nii.gz ...] [--json FILE]

Of each label map that training held out, images are synthesised at voxels of 1, 3 and 5 mm and as
5 mm slices, four contrasts each, by the bundle's own training values; the bundle segments them as
``medvol predict`` does. Printed are the mean Dice of every structure with its lowest and highest
map, and the mean of every resolution. ``--study`` adds how well the masks of one patient's
contrasts, all on one grid, agree over the ten largest structures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvol.inferers import PredictionPipeline
from medvol.io import write_nifti
from medvol.io.image import read_scan, to_metatensor
from medvol.runners.record import PredictOptions
from medvol.runners.session import Session
from medvol.transforms import RandSynthesised
from tools.train_brain import dice

BUNDLE = "brain_mri_segmentation"
CONTRASTS = 4
#: Voxels of an acquisition: cubes, or slices along one axis with 1 mm in plane.
RESOLUTIONS: Mapping[str, Mapping[str, Any]] = {
    "1 mm": {"isotropic_prob": 1.0, "isotropic_mm": (1.0, 1.0)},
    "3 mm": {"isotropic_prob": 1.0, "isotropic_mm": (3.0, 3.0)},
    "5 mm": {"isotropic_prob": 1.0, "isotropic_mm": (5.0, 5.0)},
    "5 mm slices": {"isotropic_prob": 0.0, "slice_mm": (5.0, 5.0), "in_plane_mm": (1.0, 1.0)},
}


def main() -> None:
    """Read the command line, score, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--study", type=Path, nargs="+", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    session = Session(PredictOptions(BUNDLE, ".", trust_bundle=True))
    result: dict[str, Any] = {"synthetic": synthetic(session, args.label_maps)}
    if args.study:
        result["study"] = agreement(session, args.study)
    print_tables(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


def synthetic(session: Session, label_maps: Path) -> dict[str, Any]:
    """Dice by resolution and by structure on images of the held-out maps."""
    config = session.bundle.config("train")
    tied = step_with(config, "tied_labels")["tied_labels"]
    values = sorted(session.labels)
    maps = [label_maps / f"{name}.nii.gz" for name in config["cases"]["held_out"]]
    scores = np.empty((len(RESOLUTIONS), len(maps), CONTRASTS, len(values)))
    for k, path in enumerate(maps):
        scan = read_scan(path)
        whole = to_metatensor(scan)
        whole = type(whole)(whole.as_tensor().round().int()).copy_meta_from(whole)
        reference = merged(whole.as_tensor()[0], config)
        for i, resolution in enumerate(RESOLUTIONS.values()):
            for j in range(CONTRASTS):
                render = RandSynthesised(tied_labels=tied, **resolution)
                render.set_random_state(seed=1000 * k + 10 * i + j)
                image = render({"label": whole})["image"][0].numpy()
                found = segmented(session, image, scan.affine)
                scores[i, k, j] = dice(torch.from_numpy(found), reference, [0, *values])
        print(f"{path.name}: mean Dice {np.nanmean(scores[:, k]):.3f}", flush=True)
    by_map = np.nanmean(scores, axis=(0, 2))
    return {
        "images": int(scores[..., 0].size),
        "mean": float(np.nanmean(scores)),
        "by_resolution": dict(
            zip(RESOLUTIONS, np.nanmean(scores, axis=(1, 2, 3)).tolist(), strict=True)
        ),
        "by_structure": {
            session.labels[value]: {
                "mean": float(by_map[:, n].mean()),
                "lowest_map": float(by_map[:, n].min()),
                "highest_map": float(by_map[:, n].max()),
            }
            for n, value in enumerate(values)
        },
    }


def step_with(config: Mapping[str, Any], argument: str) -> Mapping[str, Any]:
    """The step of the training augmentation that has an argument of that name."""
    return next(s for s in config["train"]["augmentation"]["transforms"] if argument in s)


def merged(label: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The label map with finer labels read as the structure around them."""
    step, out = step_with(config, "orig_labels"), label.clone()
    for old, new in zip(step["orig_labels"], step["target_labels"], strict=True):
        out[label == old] = new
    return out


def segmented(session: Session, image: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
    """The label map of an image, by way of a file, as every user's image comes."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_nifti(Path(folder) / "image.nii", image, affine)
        return labelled(session, path)


def labelled(session: Session, path: Path) -> NDArray[Any]:
    """The label map of a file on its own grid."""
    assert isinstance(session.pipeline, PredictionPipeline)
    case: Any = session.preprocessing({"image": str(path)})
    with torch.no_grad():
        found = session.pipeline.predict(case["image"], session.predictor).labels
    return np.asarray(found)


def agreement(session: Session, study: Sequence[Path]) -> dict[str, Any]:
    """Dice between one patient's contrasts, and the spread of the volumes."""
    masks = {path.name.removesuffix(".nii.gz"): labelled(session, path) for path in study}
    sizes = sum(np.bincount(m.ravel(), minlength=256) for m in masks.values())
    largest = [int(v) for v in np.argsort(-np.asarray(sizes)) if v in session.labels][:10]
    pairs = {}
    for one, two in itertools.combinations(masks, 2):
        pred, ref = torch.from_numpy(masks[one]), torch.from_numpy(masks[two])
        pairs[f"{one}, {two}"] = float(np.nanmean(dice(pred, ref, [0, *largest])))
    counts = {v: [int((m == v).sum()) for m in masks.values()] for v in largest}
    spread = {session.labels[v]: (max(n) - min(n)) / (sum(n) / len(n)) for v, n in counts.items()}
    return {"pairs": pairs, "mean": float(np.mean(list(pairs.values()))), "volume_spread": spread}


def print_tables(result: Mapping[str, Any]) -> None:
    """The tables of the model card, in Markdown."""
    found = result["synthetic"]
    print(f"\n{found['images']} synthetic images, mean Dice {found['mean']:.3f}\n")
    print("| Resolution | Mean Dice |\n|---|---|")
    for name, score in found["by_resolution"].items():
        print(f"| {name} | {score:.3f} |")
    print("\n| Structure | Mean Dice | Lowest map | Highest map |\n|---|---|---|---|")
    for name, row in found["by_structure"].items():
        print(
            f"| {name} | {row['mean']:.2f} | {row['lowest_map']:.2f} | {row['highest_map']:.2f} |"
        )
    if "study" not in result:
        return
    study = result["study"]
    print(f"\nAgreement of the contrasts: mean Dice {study['mean']:.3f}\n")
    print("| Contrasts | Mean Dice |\n|---|---|")
    for name, score in study["pairs"].items():
        print(f"| {name} | {score:.3f} |")
    print("\n| Structure | (largest - smallest volume) / mean |\n|---|---|")
    for name, share in study["volume_spread"].items():
        print(f"| {name} | {share:.0%} |")


if __name__ == "__main__":
    main()
