"""Heads of ellipsoids with a face, and what defacing tools make of them; RAS millimetres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPACING_MM = (2.0, 2.0, 2.0)
#: Intensities of air, soft tissue, bone and brain.
TISSUE = {"CT": (-1000.0, 40.0, 900.0, 35.0), "MR": (6.0, 420.0, 40.0, 560.0)}
CUTS = ("box", "plane", "close to the brain")


def turned(pitch_deg=0.0, roll_deg=0.0, yaw_deg=0.0) -> NDArray[np.float64]:
    """Rotation about left-right, front-back and head-foot."""
    p, r, w = np.deg2rad((pitch_deg, roll_deg, yaw_deg))
    x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    y = np.array([[np.cos(r), 0, np.sin(r)], [0, 1, 0], [-np.sin(r), 0, np.cos(r)]])
    z = np.array([[np.cos(w), -np.sin(w), 0], [np.sin(w), np.cos(w), 0], [0, 0, 1]])
    return x @ y @ z


def grid(low=(-110, -120, -150), high=(110, 140, 115), spacing_mm=SPACING_MM, storage="RAS"):
    """(shape, affine) of a field of view in one of the storage orders."""
    import nibabel

    low, high = np.asarray(low, float), np.asarray(high, float)
    shape = np.ceil((high - low) / spacing_mm).astype(int)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = low
    image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), affine)
    wanted = nibabel.orientations.axcodes2ornt(storage)
    image = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
    )
    return image.shape, image.affine


def inside(points, center, radii):
    return (((points - center) / radii) ** 2).sum(-1) <= 1


def head(modality="MR", *, shape, affine, cut="", scale=1.0, pose=None, seed=0):
    """One head on any grid; ``cut`` names how its face was removed."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = (index @ affine[:3, :3].T + affine[:3, 3]) @ (np.eye(3) if pose is None else pose)
    points = points / scale
    air, soft, bone, brain = TISSUE[modality]
    image = np.full(shape, air)
    for center, radii, value in (
        ((0, 0, 10), (76, 96, 98), soft),  # skull and forehead
        ((0, 38, -75), (56, 58, 62), soft),  # cheeks and jaw
        ((0, 98, -40), (17, 22, 26), soft),  # nose
        ((0, 86, -115), (24, 16, 16), soft),  # chin
        ((0, -15, -120), (55, 58, 90), soft),  # neck
        ((0, 0, 10), (70, 90, 92), bone),
        ((0, 0, 12), (65, 84, 85), brain),
        ((0, 45, -52), (18, 34, 26), air),  # airways
    ):
        image[inside(points, np.array(center), np.array(radii))] = value
    for side in (-32, 32):
        image[inside(points, np.array((side, 96, -10)), np.array((15, 14, 11)))] = air
    image[is_removed(points, cut)] = 0.0 if modality == "MR" else air
    rng = np.random.default_rng(seed)
    if modality == "MR":
        noise = rng.normal(0, 12, (2, *shape))
        lost = is_removed(points, cut)
        return np.where(lost, 0, np.hypot(image + noise[0], noise[1])).astype(np.float32)
    return np.clip(np.round(image + rng.normal(0, 15, shape)), -1024, 3071).astype(np.float32)


def is_removed(points, cut):
    """Voxels that a defacing tool of that kind blanks."""
    if cut == "box":
        return (points[..., 1] > 55) & (points[..., 2] < 12)
    if cut == "plane":
        return points[..., 1] - 92 > 0.75 * (points[..., 2] - 25)
    if cut == "close to the brain":
        near = inside(points, np.array((0, 0, 12)), np.array((74, 86, 88)))
        return ~near & (points[..., 1] > 10) & (points[..., 2] < 15)
    return np.zeros(points.shape[:-1], bool)
