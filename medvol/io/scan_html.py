"""The scan's rows as one offline HTML page with a thumbnail of each usable series."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import MedvolError
from medvol.core.modality import find_modality
from medvol.io import dicom, image_2d
from medvol.io.checks import shown
from medvol.io.image import ReadOptions, read_scan
from medvol.io.scan import ScanRow

_SIDE = 128
_MAX_VOXELS = 64 << 20
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>medvol data scan</title>
<style>body{{font:14px system-ui,sans-serif;margin:2rem}}table{{border-collapse:collapse}}
td,th{{border-bottom:1px solid #ccc;padding:.4rem .6rem;text-align:left;vertical-align:top}}
tr.bad td{{background:#fff0ee}}img{{image-rendering:auto;background:#000}}</style>
<h1>{title}</h1><p>{summary}</p>
<table><tr><th>image<th>path<th>kind<th>modality<th>size<th>spacing, mm<th>axes<th>usable</tr>
{rows}</table></html>
"""


def scan_html(rows: Sequence[ScanRow], root: str) -> str:
    """One page; every text in it is escaped, every image embedded.

    Thumbnails show the middle slice, windowed as the modality asks. A series too large to decode
    for a thumbnail has none.
    """
    usable = sum(row.is_usable for row in rows)
    body = "\n".join(_row(row) for row in rows)
    return _PAGE.format(title=html.escape(f"Scan of {shown(root)}"), rows=body,
                        summary=f"{len(rows)} series or files, {usable} usable")  # fmt: skip


def thumbnail(row: ScanRow) -> NDArray[np.uint8] | None:
    """The middle slice as 8-bit greys (rows, columns), at most 128 pixels a side; None if none."""
    if not row.is_usable or int(np.prod(row.shape or (0,))) > _MAX_VOXELS or not row.members:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plane = _middle(row)
    except MedvolError:
        return None
    low, high = _window(row.modality, plane)
    scaled = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    step = max(1, int(np.ceil(max(scaled.shape) / _SIDE)))
    return (scaled[::step, ::step].T * 255).astype(np.uint8)


def _middle(row: ScanRow) -> NDArray[np.float32]:
    if row.kind == "stack":
        return image_2d.read_image_2d(row.members[len(row.members) // 2]).array[0]
    if row.kind == "DICOM":
        images = [image for path in row.members if (image := dicom.read_header(path))]
        options = dicom.DicomOptions(resample_tilt=True, volume=1, pet_suv=False)
        return _slice(dicom.read_images(row.members[0].parent, images, options).array)
    return _slice(read_scan(row.members[0], ReadOptions(channels=True)).array)


def _slice(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array[0, ..., array.shape[-1] // 2] if array.ndim == 4 else array[0]


def _window(modality: str, plane: NDArray[np.float32]) -> tuple[float, float]:
    if modality == "CT":
        return find_modality("CT").windows["soft_tissue"]
    low, high = np.percentile(plane, (1, 99))
    return float(low), float(high)


def _row(row: ScanRow) -> str:
    size = " x ".join(map(str, row.shape))
    spacing = " x ".join(f"{v:g}" for v in row.spacing_mm)
    verdict = "; ".join(["yes", *row.notes]) if row.is_usable else row.problem
    cells = [row.path, row.kind, row.modality, size, spacing, row.axes, verdict]
    texts = "".join(f"<td>{html.escape(shown(cell))}" for cell in cells)
    return f'<tr class="{"ok" if row.is_usable else "bad"}"><td>{_image(row)}{texts}</tr>'


def _image(row: ScanRow) -> str:
    from PIL import Image

    pixels = thumbnail(row)
    if pixels is None:
        return ""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    data = base64.b64encode(sink.getvalue()).decode()
    return f'<img alt="middle slice" width="{_SIDE}" src="data:image/png;base64,{data}">'
