"""DICOM SEG from MONAI Label's environment, written by the one that started the server.

highdicom needs pydicom 3 and MONAI Label pydicom 2: a process boundary lies between the two.
``python -m medvol.label.seg`` is the far side and reads one JSON object from stdin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvol import __version__
from medvol.core.errors import ConfigError, MedvolError, OutputError


class SegWriter:
    """Turns a label map on a series' grid into a DICOM SEG of that series.

    Args:
        labels: Bundle name to its labels, value to name.
    """

    def __init__(self, labels: Mapping[str, Mapping[int, str]]) -> None:
        self.labels = labels

    def write(
        self, label: Path, series: Path, target: Path, info: Mapping[str, Any] | None = None
    ) -> Path:
        """Write ``target``, or raise with the reason in one line.

        Args:
            label: NIfTI or NRRD label map.
            series: Folder of the series.
            target: The SEG.
            info: What the client states about the label; ``model`` or ``label_info`` name it.

        Raises:
            ConfigError: If no bundle tells what the values mean.
            OutputError: If the SEG cannot be written.
        """
        bundle, names = self._names(info or {}, label)
        job = {"label": str(label), "series": str(series), "target": str(target),
               "labels": names, "algorithm": bundle}  # fmt: skip
        python = os.environ.get("MEDVOL_PYTHON", sys.executable)
        environ = {**os.environ, "PYTHONPATH": os.environ.get("MEDVOL_PYTHONPATH", "")}
        environ.pop("VIRTUAL_ENV", None)
        done = subprocess.run(
            [python, "-m", "medvol.label.seg"],
            input=json.dumps(job), capture_output=True, text=True, check=False, env=environ,
        )  # fmt: skip
        if done.returncode or not target.is_file():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise OutputError(f"the DICOM SEG was not written: {lines[-1]}")
        return target

    def _names(self, info: Mapping[str, Any], label: Path) -> tuple[str, dict[int, str]]:
        model = info.get("model")
        rows: Sequence[Mapping[str, Any]] = info.get("label_info") or []
        model = model or next((row["model_name"] for row in rows if row.get("model_name")), None)
        if model in self.labels:
            return str(model), dict(self.labels[str(model)])
        if len(self.labels) == 1:
            return next((name, dict(names)) for name, names in self.labels.items())
        if rows and all(row.get("name") for row in rows):
            values = _values(label)
            return "annotation", {v: r["name"] for v, r in zip(values, rows, strict=False)}
        raise ConfigError(f"{label.name}: several bundles are served; name in params which one the "
                          "label belongs to, {\"model\": NAME}")  # fmt: skip


def _values(label: Path) -> list[int]:
    from medvol.io import read_image

    return [int(v) for v in np.unique(np.asarray(read_image(label))) if v > 0]


def main() -> int:
    """Read the job from stdin and write the SEG; 0 done, 2 rejected with one line on stderr."""
    from medvol.io import read_image
    from medvol.io.seg import Algorithm, write_dicom_seg

    job = json.load(sys.stdin)
    try:
        image = read_image(job["label"])
        write_dicom_seg(
            job["target"],
            image.as_tensor().numpy(),
            np.asarray(image.affine),
            source=job["series"],
            labels={int(value): name for value, name in job["labels"].items()},
            algorithm=Algorithm(job["algorithm"], __version__),
        )
    except MedvolError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
