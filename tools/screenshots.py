"""Pictures of what a user sees, from a real headless Chromium, for README and cards.

    python -m tools.screenshots --images DIR [-o docs] [--env DIR]

``docs/label_page.png`` is the start page of a running `medvol label` server over the images given
(only their names and scores are seen); ``docs/report.png`` is the report of an evaluation of
procedural phantoms whose "predictions" are their references moved by one to three voxels, so that
no patient's image is published. Needs Debian's ``chromium``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from medvol.bundle import load
from medvol.core.errors import MissingPackageError
from medvol.label import ServeOptions, Server, build_environment, default_environment, prepare

_FLAGS = ("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
          "--disable-background-networking", "--hide-scrollbars")  # fmt: skip
_MOST_BYTES = 150_000
_BUNDLE = "hippocampus_mri_segmentation"


def main() -> int:
    """Make both pictures; prints their paths and sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, type=Path, help="hippocampus crops")
    parser.add_argument("--env", type=Path, default=default_environment())
    parser.add_argument("-o", "--out", type=Path, default=Path("docs"))
    parser.add_argument("--only", choices=("label", "report"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "report":
            label_page(given.images, given.env, Path(folder), given.out / "label_page.png")
        if given.only != "label":
            report_page(Path(folder), given.out / "report.png")
    return 0


def label_page(images: Path, env: Path, work: Path, target: Path) -> None:
    """Score the images on a real server, then photograph its start page."""
    place = prepare(work / "label", [load(_BUNDLE)], images)
    options = ServeOptions(place, [_BUNDLE], port=8765, is_scoring=False)
    with Server(build_environment(env), options) as server:
        server.wait_ready()
        request = urllib.request.Request(
            f"{options.url}/scoring/uncertainty_{_BUNDLE}?run_sync=true", data=b"{}",
            headers={"Content-Type": "application/json"}, method="POST",
        )  # fmt: skip
        urllib.request.urlopen(request, timeout=900).read()
        photograph(options.url + "/", target, (1000, 900))


def report_page(work: Path, target: Path) -> None:
    """Evaluate moved phantoms and photograph the report."""
    from medvol.datasets.phantoms import write_phantom_dataset
    from medvol.io import read_image, write_nifti

    data = write_phantom_dataset(work / "data", 3, labels=("liver", "spleen"))
    for index, path in enumerate(sorted((data / "labelsTr").glob("*.nii.gz")), 1):
        label = read_image(path)
        moved = np.roll(np.asarray(label)[0], index, axis=0)
        write_nifti(work / "pred" / path.name, moved, np.asarray(label.affine))
    run, scores = [sys.executable, "-m", "medvol"], str(work / "scores")
    subprocess.run(
        [*run, "evaluate", "masks", "--pred", str(work / "pred"), "--ref", str(data / "labelsTr"),
         "-o", scores, "--labels", "1=liver,2=spleen"], check=True,
    )  # fmt: skip
    subprocess.run(
        [*run, "report", scores, "--images", str(data / "imagesTr"), "-o", str(work / "report"),
         "--title", "Phantoms, moved"], check=True,
    )  # fmt: skip
    photograph((work / "report" / "report.html").as_uri(), target, (1100, 1400))


def photograph(url: str, target: Path, size: tuple[int, int]) -> None:
    """One page as a small PNG.

    Raises:
        MissingPackageError: If there is no Chromium.
    """
    from PIL import Image

    if (browser := shutil.which("chromium")) is None:
        raise MissingPackageError("chromium is needed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "page.png"
        command = [browser, *_FLAGS, f"--window-size={size[0]},{size[1]}",
                   "--virtual-time-budget=15000", f"--screenshot={raw}", url]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        for colours in (128, 64, 32):
            Image.open(raw).convert("RGB").quantize(colours).save(target, optimize=True)
            if target.stat().st_size < _MOST_BYTES:
                break
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
