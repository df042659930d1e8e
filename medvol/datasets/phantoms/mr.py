"""A four-channel MR of a head with a brain tumour of three nested parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvol.datasets.phantoms.shapes import (
    Ellipsoid,
    Grid,
    Marker,
    Phantom,
    Shape,
    smooth_noise,
)

#: Label values and nested regions as in the brain tumour challenges.
MR_LABELS: dict[int, str] = {1: "necrosis", 2: "edema", 3: "enhancing"}
MR_REGIONS: dict[str, tuple[int, ...]] = {
    "whole_tumour": (1, 2, 3), "tumour_core": (1, 3), "enhancing": (3,),
}  # fmt: skip
MR_CHANNELS: tuple[str, ...] = ("T1", "T1ce", "T2", "FLAIR")
_HALF_MM = (80.0, 100.0, 85.0)

# Relative signal of each tissue in T1, contrast-enhanced T1, T2 and FLAIR.
_SIGNAL = {
    "scalp": (0.95, 1.00, 0.60, 0.55), "skull": (0.10, 0.10, 0.08, 0.08),
    "csf": (0.20, 0.20, 1.00, 0.15), "grey": (0.55, 0.58, 0.65, 0.62),
    "white": (0.78, 0.80, 0.48, 0.48), "edema": (0.45, 0.47, 0.85, 0.92),
    "enhancing": (0.58, 1.20, 0.70, 0.75), "necrosis": (0.32, 0.34, 0.90, 0.55),
}  # fmt: skip


def mr_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = (80, 96, 80),
    spacing_mm: tuple[float, float, float] = (2.2, 2.2, 2.2),
    affine: NDArray[np.float64] | None = None,
    tumour: bool = True,
    noise: float = 0.02,
    bias: float = 0.15,
    marker: Marker | None = None,
) -> Phantom:
    """Draw one head: scalp, skull, CSF, grey and white matter, ventricles, and a tumour.

    The tumour's parts are nested ellipsoids with one centre: necrosis within an enhancing rim
    within edema, so that each part's volume is a difference of closed forms.

    Args:
        seed: Equal seeds give equal patients on any grid.
        shape: Voxels along X, Y, Z.
        spacing_mm: Voxel edges; ignored when ``affine`` is given.
        affine: Index to RAS mm.
        tumour: Whether there is a tumour.
        noise: Standard deviation of the Rician noise, relative to the brightest tissue.
        bias: Amplitude of the smooth gain field.
        marker: Planted in every channel after everything else.

    Returns:
        Image of shape (4, X, Y, Z) in arbitrary units, label map with ``MR_LABELS``.
    """
    grid = Grid.of(shape, spacing_mm, affine)
    rng = np.random.default_rng(seed)
    factor = grid.fit(_HALF_MM)
    solids = _head(rng) + (_tumour(rng) if tumour else [])
    image = np.zeros((4, *shape))
    label = np.zeros(shape, np.uint8)
    values = {name: value for value, name in MR_LABELS.items()}
    volumes: dict[str, float] = dict.fromkeys(MR_LABELS.values(), 0.0)
    outer = ""
    for tissue, solid in solids:
        placed = solid.scaled(factor, grid.center_mm)
        box, filled = grid.occupancy(placed)
        for channel, signal in enumerate(_SIGNAL[tissue]):
            image[channel][box] += filled * (signal - image[channel][box])
        if tissue in values:
            label[box][filled > 0.5] = values[tissue]
            volumes[tissue] = placed.volume_mm3 / 1000
            if outer:
                volumes[outer] -= placed.volume_mm3 / 1000
            outer = tissue
    image = _acquire(rng, image, noise, bias)
    planted = None
    if marker:
        for channel in image:
            planted = marker.plant(channel)
    return Phantom(image.astype(np.float32), label, grid.affine, dict(MR_LABELS), volumes, planted)


def _head(rng: np.random.Generator) -> list[tuple[str, Shape]]:
    size = rng.uniform(0.94, 1.0, 3)

    def solid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> Ellipsoid:
        return Ellipsoid(tuple(np.multiply(center, size)), tuple(np.multiply(radii, size)))

    return [
        ("scalp", solid((0, 0, 0), (78, 98, 83))),
        ("skull", solid((0, 0, 0), (72, 92, 77))),
        ("csf", solid((0, 0, 0), (66, 86, 71))),
        ("grey", solid((0, 0, 0), (63, 83, 68))),
        ("white", solid((0, 0, 0), (54, 73, 58))),
        ("csf", solid((-11, 0, 8), (7, 26, 11))),
        ("csf", solid((11, 0, 8), (7, 26, 11))),
    ]


def _tumour(rng: np.random.Generator) -> list[tuple[str, Shape]]:
    side = 1.0 if rng.random() < 0.5 else -1.0
    center = (side * rng.uniform(24, 30), rng.uniform(-22, 22), rng.uniform(-8, 14))
    edema = rng.uniform(15, 21, 3)
    rim = edema * rng.uniform(0.6, 0.75)
    turn = float(rng.uniform(-20, 20))
    return [
        ("edema", Ellipsoid(center, tuple(edema), turn)),
        ("enhancing", Ellipsoid(center, tuple(rim), turn)),
        ("necrosis", Ellipsoid(center, tuple(rim * rng.uniform(0.5, 0.7)), turn)),
    ]


def _acquire(
    rng: np.random.Generator, signal: NDArray[np.float64], noise: float, bias: float
) -> NDArray[np.float64]:
    """Gain field, Rician noise and an arbitrary scale per channel, as scanners give."""
    gain = np.exp(bias * smooth_noise(rng, signal.shape[1:], min(signal.shape[1:]) / 6))
    out = np.empty_like(signal)
    for channel, clean in enumerate(signal):
        real = clean * gain + rng.normal(0.0, noise, clean.shape)
        out[channel] = np.hypot(real, rng.normal(0.0, noise, clean.shape))
        out[channel] *= rng.uniform(300, 900)
    return out
