"""What a whole head costs, from the command to the files: `python -m tools.bench.brain`.

The MNI152 T1 is put into a box of 256 x 256 x 256 voxels of 1 mm, as a head is scanned, and
`medvol predict brain_mri_segmentation` runs on it in its own process, start included: as it is,
and with a ceiling of 2 GB. Printed are the seconds on the clock and the largest resident memory of
each process (Linux).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medvol.io import read_image, write_nifti
from medvol.runners.demo import template_path

_SIZE = 256


def main() -> None:
    """Run and print a table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        head = write_nifti(Path(folder) / "head.nii.gz", *boxed_head())
        print("| run | seconds | largest memory, GB |\n|---|---|---|")
        for name, words in (("plain", []), ("--max-ram 2GB", ["--max-ram", "2GB"])):
            output = Path(folder) / name.strip("-").replace(" ", "_")
            seconds, peak = measured(["predict", "brain_mri_segmentation", str(head), "-o",
                                      str(output), *words])  # fmt: skip
            print(f"| {name} | {seconds:.1f} | {peak / 1e9:.2f} |")


def boxed_head() -> tuple[np.ndarray, np.ndarray]:
    """The template inside 256 x 256 x 256 voxels of 1 mm, and its affine."""
    image = read_image(template_path())
    box = np.zeros((_SIZE, _SIZE, _SIZE), np.float32)
    start = [(_SIZE - n) // 2 for n in image.shape[1:]]
    place = tuple(slice(a, a + n) for a, n in zip(start, image.shape[1:], strict=True))
    box[place] = image[0].numpy()
    affine = image.affine.numpy().copy()
    affine[:3, 3] = (affine @ [*(-a for a in start), 1])[:3]
    return box, affine


def measured(words: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of one run of the command line."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "medvol", *words],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"medvol {' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
