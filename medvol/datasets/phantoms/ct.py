"""A CT of the trunk: body, organs, liver lesions and lung nodules in Hounsfield units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import ConfigError
from medvol.datasets.phantoms.shapes import (
    Cylinder,
    Ellipsoid,
    Grid,
    Marker,
    Phantom,
    Shape,
    smooth_noise,
)

#: Label value to name; the order is the order of painting, lesions last.
CT_LABELS: dict[int, str] = {
    1: "spleen", 2: "liver", 3: "right_kidney", 4: "left_kidney", 5: "right_lung",
    6: "left_lung", 7: "spine", 8: "heart", 9: "stomach", 10: "lesion", 11: "nodule",
}  # fmt: skip
_HALF_MM = (172.0, 118.0, 152.0)

# Centre and half-axes in RAS mm of an adult of 330 mm width; solids keep 3 mm apart at least.
_ORGANS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "spleen": ((-100, -35, -20), (28, 42, 46)),
    "liver": ((72, 10, -26), (66, 66, 44)),
    "right_kidney": ((62, -57, -98), (27, 24, 40)),
    "left_kidney": ((-60, -57, -96), (27, 24, 40)),
    "right_lung": ((86, 0, 87), (45, 76, 58)),
    "left_lung": ((-86, 0, 87), (45, 76, 58)),
    "heart": ((-8, 45, 72), (29, 31, 36)),
    "stomach": ((-55, 47, -22), (39, 31, 35)),
}
# Mean and spread over patients in HU, portal venous phase (radiology textbook values; the
# spread over patients is that of contrast timing).
_HU = {
    "spleen": (118, 12), "liver": (104, 12), "right_kidney": (175, 18), "left_kidney": (175, 18),
    "right_lung": (-830, 30), "left_lung": (-830, 30), "spine": (210, 40), "heart": (145, 15),
    "stomach": (25, 15), "lesion": (55, 10), "nodule": (35, 15),
}  # fmt: skip
_FAT_HU, _MUSCLE_HU, _AIR_HU, _TABLE_HU = -98.0, 55.0, -1000.0, -300.0


def ct_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = (96, 72, 80),
    spacing_mm: tuple[float, float, float] = (3.75, 3.75, 4.0),
    affine: NDArray[np.float64] | None = None,
    labels: Sequence[str] = tuple(CT_LABELS.values()),
    lesions: int | None = None,
    nodules: int | None = None,
    noise_hu: float = 14.0,
    marker: Marker | None = None,
) -> Phantom:
    """Draw one patient.

    The anatomy is scaled so that the trunk fits the field of view, whatever the grid; organs
    vary in place, size and attenuation with the seed. Spleen and stomach lie left, the liver
    right. Edges carry partial volume, noise is correlated as after reconstruction.

    Args:
        seed: Equal seeds give equal patients on any grid.
        shape: Voxels along X, Y, Z.
        spacing_mm: Voxel edges; ignored when ``affine`` is given.
        affine: Index to RAS mm, oblique or flipped as you like.
        labels: Structures to label, numbered from 1 in this order; a lesion or nodule left out
            counts as part of its organ.
        lesions: Liver lesions; drawn from 0 to 3 when None.
        nodules: Lung nodules; drawn from 0 to 3 when None.
        noise_hu: Standard deviation of the noise.
        marker: Planted in the image after everything else.

    Returns:
        Image in HU, label map, closed-form volumes of the labelled structures.

    Raises:
        ConfigError: If a label is unknown or the lesions do not fit.
    """
    if unknown := [name for name in labels if name not in _HU]:
        raise ConfigError(f"the CT phantom has no {unknown[0]!r}; it has {', '.join(_HU)}")
    grid = Grid.of(shape, spacing_mm, affine)
    rng = np.random.default_rng(seed)
    factor = grid.fit(_HALF_MM)
    solids = {
        name: [solid.scaled(factor, grid.center_mm) for solid in found]
        for name, found in _anatomy(rng, lesions, nodules).items()
    }
    means = {name: rng.normal(mean, spread) for name, (mean, spread) in _HU.items()}
    numbers = {name: value for value, name in enumerate(labels, start=1)}
    image, label = _drawn(grid, factor, solids, means, numbers)
    image = _noisy(rng, image, noise_hu)
    planted = marker.plant(image) if marker else None
    named = {value: name for name, value in numbers.items()}
    volumes = _volumes_ml(solids, labels)
    return Phantom(image.astype(np.float32), label, grid.affine, named, volumes, planted)


def _drawn(
    grid: Grid,
    factor: float,
    solids: dict[str, list[Shape]],
    means: dict[str, float],
    numbers: dict[str, int],
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Body and organs without noise, and the label map."""
    image, label = _body(grid, factor), np.zeros(grid.shape, np.uint8)
    for name in CT_LABELS.values():
        for solid in solids[name]:
            _paint(grid.occupancy(solid), image, means[name], label, numbers.get(name))
    return image, label


def _noisy(
    rng: np.random.Generator, image: NDArray[np.float64], noise_hu: float
) -> NDArray[np.float64]:
    """Slow texture in tissue and reconstruction noise everywhere, in whole HU of 12 bits."""
    soft = image > -700.0
    image += smooth_noise(rng, image.shape, 6.0) * 4.0 * soft
    image += smooth_noise(rng, image.shape, 0.6) * noise_hu
    return np.round(np.clip(image, -1024.0, 3071.0))


def _anatomy(
    rng: np.random.Generator, lesions: int | None, nodules: int | None
) -> dict[str, list[Shape]]:
    solids: dict[str, list[Shape]] = {}
    for name, (center, radii) in _ORGANS.items():
        moved = np.asarray(center) + rng.uniform(-3, 3, 3)
        size = np.asarray(radii) * rng.uniform(0.86, 1.0, 3)
        solids[name] = [Ellipsoid(tuple(moved), tuple(size), float(rng.uniform(-4, 4)))]
    radius = float(rng.uniform(15, 20))
    solids["spine"] = [Cylinder((0.0, -68.0, 0.0), (radius, radius), 140.0)]
    counts = rng.integers(0, 4, 2)
    lesions = int(counts[0]) if lesions is None else lesions
    nodules = int(counts[1]) if nodules is None else nodules
    solids["lesion"] = _spheres_inside(rng, solids["liver"], lesions, (7.0, 16.0))
    lungs = solids["right_lung"] + solids["left_lung"]
    solids["nodule"] = _spheres_inside(rng, lungs, nodules, (5.0, 13.0))
    return solids


def _spheres_inside(
    rng: np.random.Generator, hosts: list[Shape], count: int, radii_mm: tuple[float, float]
) -> list[Shape]:
    """Spheres that touch neither each other nor the surface of their host."""
    found: list[Ellipsoid] = []
    for _ in range(min(200 * count, 4000)):
        if len(found) == count:
            break
        host = hosts[int(rng.integers(len(hosts)))]
        radius = float(rng.uniform(*radii_mm))
        low, high = host.bounds_mm()
        center = rng.uniform(low, high)
        deep = float(host.distance_mm(center[None])[0]) < -(radius + 4.0)
        apart = all(
            np.linalg.norm(center - other.center_mm) > radius + other.radii_mm[0] + 3.0
            for other in found
        )
        if deep and apart:
            found.append(Ellipsoid(tuple(center), (radius, radius, radius)))
    if len(found) < count:
        raise ConfigError(f"{count} lesions do not fit into the organ; ask for fewer")
    return list(found)


def _body(grid: Grid, factor: float) -> NDArray[np.float64]:
    """Air, a table below the patient, skin fat and muscle; the trunk runs through the field."""
    endless = 10_000.0
    image = np.full(grid.shape, _AIR_HU)
    outer = Cylinder((0, 0, 0), (165, 110), endless).scaled(factor, grid.center_mm)
    inner = Cylinder((0, 0, 0), (152, 98), endless).scaled(factor, grid.center_mm)
    points = grid.points(tuple(slice(0, n) for n in grid.shape))  # pyright: ignore[reportArgumentType]
    width = float(np.mean(grid.spacing_mm))
    depth = (points[..., 1] - grid.center_mm[1]) / factor
    image[(depth < -111.0) & (depth > -116.0)] = _TABLE_HU
    for solid, value in ((outer, _FAT_HU), (inner, _MUSCLE_HU)):
        filled = np.clip(0.5 - solid.distance_mm(points) / width, 0.0, 1.0)
        image += filled * (value - image)
    return image


def _paint(
    occupancy: tuple[tuple[slice, slice, slice], NDArray[np.floating]],
    image: NDArray[np.floating],
    intensity: float,
    label: NDArray[np.uint8],
    value: int | None,
) -> None:
    box, filled = occupancy
    image[box] += filled * (intensity - image[box])
    if value is not None:
        label[box][filled > 0.5] = value


def _volumes_ml(solids: dict[str, list[Shape]], labels: Sequence[str]) -> dict[str, float]:
    """Closed-form volumes; what a labelled lesion takes up is no longer its organ."""
    volumes = {name: sum(s.volume_mm3 for s in found) / 1000 for name, found in solids.items()}
    for lesion, hosts in (("lesion", ("liver",)), ("nodule", ("right_lung", "left_lung"))):
        for solid in solids[lesion] if lesion in labels else ():
            center = (np.sum(solid.bounds_mm(), axis=0) / 2)[None]
            depth = {name: float(solids[name][0].distance_mm(center)[0]) for name in hosts}
            volumes[min(depth, key=depth.__getitem__)] -= solid.volume_mm3 / 1000
    return {name: volumes[name] for name in labels}
