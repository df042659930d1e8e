"""A frontal chest radiograph whose heart, and opacity, lie on a known side."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from medvol.datasets.phantoms.shapes import Marker, Phantom, smooth_noise

CHEST_LABELS: dict[int, str] = {1: "right_lung", 2: "left_lung", 3: "heart", 4: "opacity"}


def chest_phantom(
    seed: int,
    *,
    shape: tuple[int, int] = (256, 256),
    opacity: bool | None = None,
    noise: float = 3.0,
    marker: Marker | None = None,
) -> Phantom:
    """Draw one radiograph, asymmetric as people are: the heart points to the patient's left.

    The array is (X, Y) with Y downwards; the patient's left is at high X, as on a viewing box.

    Args:
        seed: Equal seeds give equal patients at any size.
        shape: Pixels along X and Y.
        opacity: Whether a lung shows a focal opacity; even seeds do when None.
        noise: Standard deviation of the noise in grey values (0 to 255).
        marker: Planted in the image after everything else.

    Returns:
        Image of grey values 0 to 255, label map with ``CHEST_LABELS`` and, in ``areas_mm2``, the
        closed-form area of each whole ellipse in square pixels. The class is ``opacity`` or
        ``clear``.
    """
    rng = np.random.default_rng(seed)
    ill = seed % 2 == 0 if opacity is None else opacity
    u, v, unit = _axes(shape)
    ellipses = _anatomy(rng)
    image, label = _draw(u, v, unit, ellipses)
    areas = {n: math.pi * a * b * unit**2 for n, (_, (a, b)) in ellipses.items()}
    spot = _opacity(rng, ellipses)
    if ill:
        filled = _filled(u, v, unit, *spot)
        image += 75.0 * filled * (1 + 0.15 * smooth_noise(rng, shape, unit / 40))
        label[filled > 0.5] = 4
        areas["opacity"] = math.pi * spot[1][0] * spot[1][1] * unit**2
    image += smooth_noise(rng, shape, unit / 12) * 5 + smooth_noise(rng, shape, 0.7) * noise
    image = np.clip(image, 0, 255)
    planted = marker.plant(image) if marker else None
    labels = {value: name for value, name in CHEST_LABELS.items() if value < 4 or ill}
    category = "opacity" if ill else "clear"
    return Phantom(image.astype(np.float32), label, np.eye(4), labels, {}, planted, category, areas)


def _axes(shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Across and down the chest, -0.5 to 0.5 of the shorter side, and that side in pixels."""
    unit = min(shape)
    x, y = np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij")
    return (x - shape[0] / 2) / unit, (y - shape[1] / 2) / unit, unit


def _anatomy(rng: np.random.Generator) -> dict[str, tuple]:
    """Centre and half-axes of the ellipses, a little different in every patient."""
    wobble = rng.uniform(-0.012, 0.012, 8)
    return {
        "right_lung": ((-0.19 + wobble[0], -0.02 + wobble[1]), (0.13, 0.30)),
        "left_lung": ((0.20 + wobble[2], -0.03 + wobble[3]), (0.11, 0.29)),
        "heart": ((0.065 + wobble[4], 0.13 + wobble[5]), (0.13, 0.115)),
    }


def _draw(
    u: NDArray[np.float64], v: NDArray[np.float64], unit: int, ellipses: dict[str, tuple]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    image = np.full(u.shape, 12.0)
    image += 150.0 * _filled(u, v, unit, (0.0, 0.05), (0.46, 0.52))
    label = np.zeros(u.shape, np.uint8)
    values = {name: value for value, name in CHEST_LABELS.items()}
    for name in ("right_lung", "left_lung"):
        filled = _filled(u, v, unit, *ellipses[name])
        ribs = 12.0 * np.cos(40.0 * (v + 1.2 * (np.abs(u) - 0.2) ** 2))
        image += filled * (52.0 + ribs - image)
        label[filled > 0.5] = values[name]
    for name, grey in (("heart", 185.0),):
        filled = _filled(u, v, unit, *ellipses[name])
        image += filled * (grey - image)
        label[filled > 0.5] = values[name]
    spine = np.clip((0.035 - np.abs(u)) * unit, 0, 1)
    return image + 22.0 * spine * (np.abs(v) < 0.45), label


def _opacity(
    rng: np.random.Generator, ellipses: dict[str, tuple]
) -> tuple[tuple[float, float], tuple[float, float]]:
    (cu, cv), (ru, rv) = ellipses["right_lung" if rng.random() < 0.5 else "left_lung"]
    angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.45)
    center = (cu + reach * ru * math.cos(angle) * 0.6, cv + reach * rv * math.sin(angle))
    return center, (rng.uniform(0.035, 0.055), rng.uniform(0.045, 0.07))


def _filled(
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    unit: int,
    center: tuple[float, float],
    radii: tuple[float, float],
) -> NDArray[np.float64]:
    """How much of each pixel an ellipse fills: 1 inside, 0 outside, half on the edge."""
    du, dv = u - center[0], v - center[1]
    level = np.hypot(du / radii[0], dv / radii[1])
    slope = np.hypot(du / radii[0] ** 2, dv / radii[1] ** 2)
    distance = level * (level - 1) / np.maximum(slope, 1e-9)
    return np.where(level == 0, 1.0, np.clip(0.5 - distance * unit, 0.0, 1.0))
