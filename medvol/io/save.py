"""Images out: whole, read back and compared before the name appears, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from medvol.core.errors import InputError, MedvolError, NonFiniteError, OutputError
from medvol.core.files import atomic_path
from medvol.core.geometry import SAME_GRID_MM, Geometry, grid_distance_mm
from medvol.io import formats
from medvol.io.checks import Scan, shown

_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)
#: Beyond this shear a qform (rotation and spacing only) cannot state what the sform states.
_MAX_QFORM_ERROR_MM = 1e-3


def write_nifti(
    path: str | os.PathLike[str],
    array: ArrayLike,
    affine: ArrayLike,
    *,
    dtype: DTypeLike | None = None,
) -> Path:
    """Write one volume as NIfTI-1, atomically, and read it back with every check.

    Whole numbers are stored in the smallest integer type that holds them, so that a label map
    is one for every viewer; anything else as float32, or as ``dtype``.

    Args:
        path: Ends in .nii or .nii.gz.
        array: (X, Y), (X, Y, Z) or (X, Y, Z, C), finite.
        affine: Voxel index to RAS millimetres, (4, 4).
        dtype: An integer type rounds, and rejects values out of its range.

    Raises:
        OutputError: If it cannot be written whole, or reads back differently, or the affine
            places no grid.
        NonFiniteError: If the array or the affine holds NaN or infinity.
    """
    import nibabel as nib

    path = Path(path)
    if not formats.ends_like(path.name, formats.NIFTI_FILES):
        raise OutputError(f"{shown(path)}: a NIfTI file ends in .nii or .nii.gz")
    voxels = storable(path, np.asarray(array), dtype)
    affine = np.asarray(affine, dtype=np.float64)
    _require_grid(path, affine)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if np.abs(image.get_qform() - affine).max() > _MAX_QFORM_ERROR_MM:  # a sheared grid
        image.set_qform(None, code=0)
    with atomic_path(path, verify=lambda p: _verify_nifti(p, path, voxels, affine)) as scratch:
        nib.save(image, scratch)
    return path


def storable(path: Path, array: NDArray[Any], dtype: DTypeLike | None) -> NDArray[Any]:
    """The array in the type it will be stored in.

    Raises:
        NonFiniteError: If it holds NaN or infinity.
        OutputError: If ``dtype`` cannot hold its values.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise OutputError(f"{shown(path)}: values of type {array.dtype} cannot be stored")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{shown(path)}: would hold non-finite values (NaN or infinity)")
    wanted: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)
    whole = array if array.dtype.kind in "iu" else np.rint(array)
    low, high = (whole.min(), whole.max()) if array.size else (0, 0)
    if wanted is not None and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if low < limits.min or high > limits.max:
            raise OutputError(f"{shown(path)}: values from {low} to {high} do not fit {wanted}")
        return whole.astype(wanted)
    if whole is array or np.array_equal(whole, array):
        for small in _INTEGERS:
            if np.iinfo(small).min <= low and high <= np.iinfo(small).max:
                return whole.astype(small)
    return array.astype(np.float32 if wanted is None else wanted)


def write_png16(path: str | os.PathLike[str], array: ArrayLike) -> Path:
    """Write a 2D image (X, Y) of whole numbers from 0 to 65535 as 16-bit PNG, atomically.

    Raises:
        OutputError: If a value does not fit, or the file cannot be written whole.
    """
    from PIL import Image

    from medvol.io.image_2d import read_image_2d

    path = Path(path)
    pixels = np.asarray(array)
    if pixels.ndim != 2:
        raise OutputError(f"{shown(path)}: a PNG holds one plane (X, Y), not {pixels.shape}")
    if pixels.dtype.kind == "f" and not np.array_equal(pixels, np.rint(pixels)):
        raise OutputError(f"{shown(path)}: 16-bit PNG holds whole numbers; scale the values first")
    pixels = storable(path, pixels, np.uint16)

    def same(written: Path) -> None:
        if not np.array_equal(_read_back(path, lambda: read_image_2d(written)).array[0], pixels):
            raise OutputError(f"{shown(path)}: what was read back differs from what was written")

    with atomic_path(path, verify=same) as scratch:
        Image.fromarray(np.ascontiguousarray(pixels.T)).save(scratch, format="PNG")
    return path


def write_itk(
    path: str | os.PathLike[str],
    array: ArrayLike,
    affine: ArrayLike,
    *,
    dtype: DTypeLike | None = None,
) -> Path:
    """Write one volume (X, Y, Z) as NRRD or MetaImage, atomically, with read-back.

    Raises:
        OutputError: If the grid is sheared (ITK formats hold no shear) or writing fails.
    """
    import SimpleITK as sitk

    from medvol.core.geometry import affine_from_lps
    from medvol.io.image import read_scan

    path = Path(path)
    voxels = storable(path, np.asarray(array), dtype)
    if voxels.ndim != 3:
        raise OutputError(f"{shown(path)}: wanted a volume (X, Y, Z), not {voxels.shape}")
    lps = affine_from_lps(affine)
    geometry = Geometry(voxels.shape, lps)
    if geometry.shear_deg > 1e-3:
        raise OutputError(f"{shown(path)}: the grid is sheared by {geometry.shear_deg:.3g} degrees "
                          "which this format cannot hold; write NIfTI")  # fmt: skip
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    image.SetDirection([float(v) for v in geometry.directions.ravel()])

    def same(written: Path) -> None:
        back = _read_back(path, lambda: read_scan(written))
        _compare(path, back, voxels, np.asarray(affine, dtype=np.float64))

    with atomic_path(path, verify=same) as scratch:
        try:
            sitk.WriteImage(image, str(scratch), useCompression=True)
        except RuntimeError as error:
            raise OutputError(f"{shown(path)}: cannot be written by ITK") from error
    return path


def _require_grid(path: Path, affine: NDArray[np.float64]) -> None:
    if not np.isfinite(affine).all():
        raise NonFiniteError(f"{shown(path)}: its affine holds non-finite values (NaN or infinity)")
    try:
        Geometry((1, 1, 1), affine)
    except MedvolError as error:
        raise OutputError(f"{shown(path)}: {error}") from error


def _verify_nifti(
    written: Path, path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]
) -> None:
    from medvol.io.nifti import read_nifti

    _compare(path, _read_back(path, lambda: read_nifti(written, channels=True)), voxels, affine)


def _read_back(path: Path, read: Callable[[], Scan]) -> Scan:
    try:
        return read()
    except InputError as error:
        raise OutputError(f"{shown(path)}: cannot be read back after writing (is the disk full?): "
                          f"{error}") from error  # fmt: skip


def _compare(path: Path, back: Scan, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    try:
        wanted = voxels.astype(np.float32)
        stored = np.moveaxis(back.array, 0, -1).reshape(wanted.shape)
    except (ValueError, MedvolError) as error:
        raise OutputError(f"{shown(path)}: reads back with another shape") from error
    if not np.array_equal(stored, wanted):
        raise OutputError(f"{shown(path)}: what was read back differs from what was written")
    if grid_distance_mm(wanted.shape[:3], back.affine, affine) > SAME_GRID_MM:
        raise OutputError(f"{shown(path)}: reads back on another grid")
