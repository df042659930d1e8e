"""Results on disk: label map, DICOM SEG and SR, uncertainty maps; and volumes per structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medvol.core.errors import InputError
from medvol.inferers import Prediction
from medvol.io import formats
from medvol.runners.cases import CaseInput
from medvol.runners.record import case_folder
from medvol.runners.session import Session


def write_outputs(session: Session, case: CaseInput, prediction: Prediction) -> dict[str, str]:
    """Write every format that was asked for; returns kind -> file name in the case's folder."""
    from medvol.io import write_nifti

    folder, asked = case_folder(session.options.output, case.name), session.options.formats
    folder.mkdir(parents=True, exist_ok=True)
    affine, found = prediction.source.affine, {}
    if "nifti" in asked:
        write_nifti(folder / "seg.nii.gz", prediction.labels, affine, dtype=np.uint8)
        found["nifti"] = "seg.nii.gz"
    maps = dict(prediction.maps)
    if prediction.probabilities is not None:
        maps["probabilities"] = prediction.probabilities
    for kind, values in maps.items():
        write_nifti(folder / f"{kind}.nii.gz", values, affine, dtype=np.float32)
        found[kind] = f"{kind}.nii.gz"
    if "dicomseg" in asked:
        found |= _write_dicom(session, case, folder, prediction)
    return found


def _write_dicom(
    session: Session, case: CaseInput, folder: Path, prediction: Prediction
) -> dict[str, str]:
    from medvol.io import Algorithm, read_source, write_dicom_seg, write_dicom_sr

    if formats.format_of(Path(case.path).name) not in (None, "DICOM"):
        raise InputError(f"{case.name}: dicomseg and sr need a DICOM input")
    source, identity = read_source(case.path), session.identity
    algorithm = Algorithm(identity["name"], identity["version"] or "0")
    seg = folder / "seg.dcm"
    write_dicom_seg(
        seg, prediction.labels, prediction.source.affine, source=source,
        labels=prediction.names or session.labels,
        algorithm=algorithm,
    )  # fmt: skip
    found = {"dicomseg": seg.name}
    if "sr" in session.options.formats:
        write_dicom_sr(folder / "sr.dcm", segmentation=seg, source=source, algorithm=algorithm)
        found["sr"] = "sr.dcm"
    return found
