"""Phantoms as data sets on disk, in the layouts that real data comes in."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvol.core.errors import ConfigError
from medvol.core.files import atomic_path, csv_text, write_bytes, write_json, write_text
from medvol.datasets.phantoms.chest import chest_phantom
from medvol.datasets.phantoms.ct import ct_phantom
from medvol.datasets.phantoms.mr import MR_CHANNELS, mr_phantom
from medvol.datasets.phantoms.nodule import nodule_patch
from medvol.datasets.phantoms.shapes import Phantom

#: Seeds of held-out patients start here; training seeds stay below.
_HELD_OUT = 1 << 30
#: Label value of what makes the class; a chest's other labels are its anatomy.
_FINDINGS = {"nodule": 1, "chest": 4}


def write_phantom_dataset(
    folder: str | os.PathLike[str],
    n: int,
    *,
    kind: Literal["ct", "mr"] = "ct",
    labels: Sequence[str] = ("spleen",),
    shape: tuple[int, int, int] = (96, 72, 80),
    spacing_mm: tuple[float, float, float] = (3.75, 3.75, 4.0),
    seed: int = 0,
    held_out: bool = False,
    **options: Any,
) -> Path:
    """Write a segmentation data set in the layout of the Medical Segmentation Decathlon.

    Args:
        folder: Created; gets ``dataset.json``, ``imagesTr``, ``labelsTr`` and ``volumes.csv`` with
            the closed-form volume of every structure in millilitres.
        n: Number of patients.
        kind: ``ct`` for the trunk, ``mr`` for the four-channel head with a tumour.
        labels: Structures of the CT phantom to label, numbered from 1 in this order.
        shape: Voxels along X, Y, Z.
        spacing_mm: Voxel edges.
        seed: Patients ``seed`` to ``seed + n - 1``.
        held_out: Take patients that no training set can hold, whatever its seed.
        options: Further options of ``ct_phantom`` or ``mr_phantom``.

    Returns:
        ``folder``.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; a data set needs at least one phantom")
    folder = Path(folder)
    phantom: Phantom | None = None
    volumes, training = [], []
    for number in range(n):
        name = f"phantom_{'held_' if held_out else ''}{seed + number:05d}"
        chosen = {"labels": tuple(labels)} if kind == "ct" else {}
        make = ct_phantom if kind == "ct" else mr_phantom
        phantom = make(
            _seed(seed + number, held_out), shape=shape, spacing_mm=spacing_mm, **chosen, **options
        )
        write_nifti(folder / "imagesTr" / f"{name}.nii.gz", phantom.image, phantom.affine)
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", phantom.label, phantom.affine)
        training.append(
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        )
        volumes += [(name, structure, f"{ml:.6f}") for structure, ml in phantom.volumes_ml.items()]
    assert phantom is not None
    channels = MR_CHANNELS if kind == "mr" else ("CT",)
    write_text(folder / "volumes.csv", csv_text(("case", "label", "volume_ml"), volumes))
    described = _description(channels, phantom.labels, training)
    write_json(folder / "dataset.json", {"name": f"{kind.upper()} phantom", **described})
    return folder


def _description(
    channels: Sequence[str], labels: dict[int, str], training: list[dict[str, str]]
) -> dict[str, Any]:
    """What ``dataset.json`` of the Medical Segmentation Decathlon says."""
    return {
        "description": "procedural phantoms with closed-form volumes",
        "licence": "CC0",
        "tensorImageSize": "4D" if len(channels) > 1 else "3D",
        "modality": {str(index): name for index, name in enumerate(channels)},
        "labels": {"0": "background"} | {str(value): name for value, name in labels.items()},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }


def write_phantom_classes(
    folder: str | os.PathLike[str],
    n: int,
    *,
    kind: Literal["nodule", "chest"] = "nodule",
    seed: int = 0,
    held_out: bool = False,
    **options: Any,
) -> Path:
    """Write a classification data set: images, masks of what makes the class, ``datalist.csv``.

    Half of the cases show the finding. Each patient has one image.

    Args:
        folder: Created; gets ``images``, ``masks`` and ``datalist.csv`` (image, class,
            patient_id); the masks are beside it for pointing games, not for training.
        n: Number of patients.
        kind: ``nodule`` for lung patches as NIfTI, ``chest`` for radiographs as PNG.
        seed: Patients ``seed`` to ``seed + n - 1``.
        held_out: Take patients that no training set can hold, whatever its seed.
        options: Further options of ``nodule_patch`` or ``chest_phantom``.

    Returns:
        ``folder``.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; a data set needs at least one phantom")
    folder = Path(folder)
    make: Callable[..., Phantom] = nodule_patch if kind == "nodule" else chest_phantom
    ending = ".nii.gz" if kind == "nodule" else ".png"
    rows = []
    for number in range(n):
        name = f"{kind}_{'held_' if held_out else ''}{seed + number:05d}"
        phantom = make(_seed(seed + number, held_out), **options)
        mask = (phantom.label == _FINDINGS[kind]).astype(np.uint8)
        for part, array in (("images", phantom.image), ("masks", mask)):
            target = folder / part / f"{name}{ending}"
            if kind == "nodule":
                write_nifti(target, array, phantom.affine)
            else:
                _write_png(target, array)
        rows.append((f"images/{name}{ending}", phantom.category, f"patient_{name}"))
    write_text(folder / "datalist.csv", csv_text(("image", "class", "patient_id"), rows))
    return folder


def write_nifti(target: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an array (X, Y, Z) or (C, X, Y, Z) as NIfTI in millimetres, channels last."""
    import nibabel

    if array.ndim == 4:
        array = np.moveaxis(array, 0, -1)
    if array.dtype != np.uint8 and np.array_equal(array, np.round(array)):
        array = array.astype(np.int16)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec" if array.ndim == 4 else "unknown")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    with atomic_path(target) as scratch:
        nibabel.save(image, scratch)


def _write_png(target: Path, array: np.ndarray) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.round(array.T).astype(np.uint8)).save(buffer, "PNG")
    write_bytes(target, buffer.getvalue())


def _seed(seed: int, held_out: bool) -> int:
    if not 0 <= seed < _HELD_OUT:
        raise ConfigError(f"seed {seed} must be at least 0 and below {_HELD_OUT}")
    return seed + _HELD_OUT if held_out else seed
