"""Slices of a tilted gantry, resampled onto a regular grid."""

from __future__ import annotations

import numpy as np

from medvol.io.checks import Scan


def untilt(scan: Scan) -> Scan:
    """Shift every slice back so that the slices are stacked along their normal.

    The grid keeps the in-plane spacing and the slice distance along the normal; it grows in plane
    so that no voxel is lost. Interpolation is linear within the slice and never across slices.
    Voxels outside the original slices take the image's minimum.

    Args:
        scan: One channel, (1, X, Y, Z), with a sheared affine.

    Returns:
        A scan whose affine has perpendicular axes.
    """
    import SimpleITK as sitk

    volume = scan.array[0]
    nx, ny, nz = volume.shape
    axes = scan.affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    row, column = axes[:, 0] / spacing[0], axes[:, 1] / spacing[1]
    step = axes[:, 2]
    shift = np.array([step @ row / spacing[0], step @ column / spacing[1]])
    normal = step - row * (step @ row) - column * (step @ column)
    low = np.minimum(0, np.floor(shift * (nz - 1))).astype(int)
    high = np.maximum(0, np.ceil(shift * (nz - 1))).astype(int)
    size = (nx + int(high[0] - low[0]), ny + int(high[1] - low[1]))
    out = np.empty((*size, nz), dtype=np.float32)
    background = float(volume.min())
    for z in range(nz):
        plane = sitk.GetImageFromArray(np.ascontiguousarray(volume[:, :, z].T))
        move = sitk.TranslationTransform(2, [float(v) for v in low - shift * z])
        grid = sitk.Image(size, sitk.sitkFloat32)
        moved = sitk.Resample(plane, grid, move, sitk.sitkLinear, background)
        out[:, :, z] = sitk.GetArrayFromImage(moved).T
    affine = scan.affine.copy()
    affine[:3, 2] = normal
    affine[:3, 3] += row * spacing[0] * low[0] + column * spacing[1] * low[1]
    return Scan(out[None], affine, scan.path)
