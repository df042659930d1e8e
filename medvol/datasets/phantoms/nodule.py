"""A patch of lung with vessels and, where asked for, a nodule: for volume classifiers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvol.datasets.phantoms.shapes import Ellipsoid, Grid, Marker, Phantom, smooth_noise

_LUNG_HU, _NODULE_HU, _VESSEL_HU = -840.0, 25.0, 40.0


def nodule_patch(
    seed: int,
    *,
    shape: tuple[int, int, int] = (48, 48, 48),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    affine: NDArray[np.float64] | None = None,
    nodule: bool | None = None,
    radius_mm: tuple[float, float] = (4.0, 8.0),
    noise_hu: float = 30.0,
    marker: Marker | None = None,
) -> Phantom:
    """Draw one patch: lung, straight vessels through it, and a spherical nodule or none.

    Vessels are as bright as the nodule and as wide as a small one, so that brightness alone does
    not tell the classes apart.

    Args:
        seed: Equal seeds give equal patches, with or without the nodule.
        shape: Voxels along X, Y, Z.
        spacing_mm: Voxel edges; ignored when ``affine`` is given.
        affine: Index to RAS mm.
        nodule: Whether there is a nodule; even seeds have one when None.
        radius_mm: Range of the nodule's radius.
        noise_hu: Standard deviation of the noise.
        marker: Planted in the image after everything else.

    Returns:
        Image in HU, label map (1 nodule), its closed-form volume; class ``nodule`` or ``clear``.
    """
    grid = Grid.of(shape, spacing_mm, affine)
    rng = np.random.default_rng(seed)
    ill = seed % 2 == 0 if nodule is None else nodule
    image = np.full(shape, _LUNG_HU)
    for _ in range(int(rng.integers(2, 5))):
        _draw_vessel(rng, grid, image)
    radius = float(rng.uniform(*radius_mm))
    extent = np.asarray(shape) * np.asarray(grid.spacing_mm)
    free = np.maximum(extent / 2 - radius - 2 * max(grid.spacing_mm), 0)
    local = rng.uniform(-free, free) * 0.7
    directions = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    solid = Ellipsoid(tuple(grid.center_mm + directions @ local), (radius, radius, radius))
    label = np.zeros(shape, np.uint8)
    if ill:
        box, filled = grid.occupancy(solid)
        image[box] += filled * (_NODULE_HU - image[box])
        label[box][filled > 0.5] = 1
    image += smooth_noise(rng, shape, 0.6) * noise_hu
    image = np.round(np.clip(image, -1024, 3071))
    planted = marker.plant(image) if marker else None
    volume = {"nodule": solid.volume_mm3 / 1000 if ill else 0.0}
    return Phantom(
        image.astype(np.float32),
        label,
        grid.affine,
        {1: "nodule"},
        volume,
        planted,
        "nodule" if ill else "clear",
    )


def _draw_vessel(rng: np.random.Generator, grid: Grid, image: NDArray[np.float64]) -> None:
    points = grid.points(tuple(slice(0, n) for n in grid.shape))  # pyright: ignore[reportArgumentType]
    extent = np.asarray(grid.shape) * np.asarray(grid.spacing_mm)
    start = grid.center_mm + rng.uniform(-0.35, 0.35, 3) * extent
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    offset = points - start
    along = offset @ direction
    distance = np.linalg.norm(offset - along[..., None] * direction, axis=-1)
    radius = rng.uniform(1.2, 2.6)
    filled = np.clip(0.5 - (distance - radius) / float(np.mean(grid.spacing_mm)), 0.0, 1.0)
    image += filled * (_VESSEL_HU - image)
