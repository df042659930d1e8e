"""Slices of a scan with the outlines of what was segmented, as a radiologist expects to see them.

The patient's right is on the left of axial and coronal slices; every slice has letters of the
patient's directions and a scale bar, and keeps the true proportions of its voxels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

#: Plane -> its normal, the axes across and up, and letters at the left, right, top and bottom.
PLANES = {
    "axial": (2, (0, 1), ("R", "L", "A", "P")),
    "coronal": (1, (0, 2), ("R", "L", "S", "I")),
    "sagittal": (0, (1, 2), ("P", "A", "S", "I")),
}
_INK, _SHADE = (255, 255, 255), (0, 0, 0)
_BAR_MM = (1, 2, 5, 10, 20, 50, 100)


def draw_slice(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    colours: Mapping[int, Sequence[int]],
    spacing_mm: Sequence[float],
    plane: str,
    at: int,
    pixels_per_mm: float,
) -> Image.Image:
    """One slice with outlines, letters and a scale bar.

    Args:
        image: Intensities from 0 to 255 in RAS storage, shape (X, Y, Z).
        mask: Label map on the same grid.
        colours: Label value to RGB.
        spacing_mm: Voxel edge lengths.
        plane: ``axial``, ``coronal`` or ``sagittal``.
        at: Index of the slice along the plane's normal.
        pixels_per_mm: Size of the result.
    """
    normal, (across, up), letters = PLANES[plane]
    wide, high = (
        max(1, round(image.shape[axis] * spacing_mm[axis] * pixels_per_mm)) for axis in (across, up)
    )
    grey, labels = (
        Image.fromarray(_upright(np.take(array, at, axis=normal), across))
        for array in (image, mask)
    )
    smooth = np.asarray(grey.resize((wide, high), Image.Resampling.BILINEAR))
    sharp = np.asarray(labels.resize((wide, high), Image.Resampling.NEAREST))
    rgb = np.repeat(smooth[..., None], 3, axis=-1)
    edge = _edges(sharp)
    for value, colour in colours.items():
        rgb[edge & (sharp == value)] = colour
    drawn = Image.fromarray(rgb)
    _annotate(drawn, letters, pixels_per_mm)
    return drawn


def png_of(slices: Sequence[Image.Image]) -> bytes:
    """Images side by side on black, as a PNG without a date."""
    width = sum(one.width for one in slices) + 4 * (len(slices) - 1)
    sheet = Image.new("RGB", (width, max(one.height for one in slices)))
    x = 0
    for one in slices:
        sheet.paste(one, (x, (sheet.height - one.height) // 2))
        x += one.width + 4
    sink = io.BytesIO()
    sheet.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _upright(plane: NDArray[np.uint8], across: int) -> NDArray[np.uint8]:
    """Rows from top to bottom; the left-right axis runs from the patient's right."""
    rows = plane.T[::-1]
    return np.ascontiguousarray(rows[:, ::-1] if across == 0 else rows)


def _edges(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels of a structure that touch another value, at the image's own border too."""
    padded = np.pad(labels, 1)
    inner = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (inner > 0) & np.logical_or.reduce([other != inner for other in around])


def _annotate(drawn: Image.Image, letters: Sequence[str], pixels_per_mm: float) -> None:
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(15)
    width, height = drawn.size
    places = [(9, height / 2), (width - 9, height / 2), (width / 2, 11), (width / 2, height - 11)]
    for letter, place in zip(letters, places, strict=True):
        pen.text(place, letter, _INK, font, anchor="mm", stroke_width=2, stroke_fill=_SHADE)
    fitting = [mm for mm in _BAR_MM if mm * pixels_per_mm <= 0.3 * width]
    length_mm = fitting[-1] if fitting else _BAR_MM[0]
    x, y = 10, height - 10
    pen.line([(x, y), (x + length_mm * pixels_per_mm, y)], _INK, 3)
    pen.text((x, y - 5), f"{length_mm} mm", _INK, ImageFont.load_default(13), anchor="lb",
             stroke_width=2, stroke_fill=_SHADE)  # fmt: skip
