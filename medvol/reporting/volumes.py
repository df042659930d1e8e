"""Display copies of a case's image and masks, small enough to travel inside a page."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core import Geometry
from medvol.core.errors import GridMismatchError
from medvol.evaluation import MaskFiles

#: All volumes of a page together, as the base64 that it carries.
BUDGET_BYTES = 9_000_000
_MOST_VOXELS = 1_000_000
_MARGIN_MM = 12.0
_WINDOW = (0.5, 99.5)
_MOST_LABELS = 255


@dataclass(frozen=True, eq=False)
class View:
    """What is shown of a case.

    Attributes:
        image: Intensities as 0 to 255, shape (X, Y, Z); None where there is no image.
        ref: Reference as label numbers from 1, same shape; None for classification.
        pred: Prediction likewise.
        affine: Voxel to RAS millimetres.
        labels: Names of the labels, in order of their numbers.
        note: How it differs from the files.
    """

    image: NDArray[np.uint8] | None
    ref: NDArray[np.uint8] | None
    pred: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    labels: Sequence[str]
    note: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths of the copy."""
        return Geometry(self.shape, self.affine).spacing_mm

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of every array."""
        return next(a.shape for a in (self.image, self.ref, self.pred) if a is not None)  # pyright: ignore[reportReturnType]

    def parts(self) -> dict[str, str]:
        """Role to gzipped NIfTI as base64; without an image an empty one carries the masks."""
        found = {
            role: a for role in ("image", "ref", "pred") if (a := getattr(self, role)) is not None
        }
        if "image" not in found:
            found = {"image": np.zeros(self.shape, np.uint8), **found}
        return {role: _packed(array, self.affine) for role, array in found.items()}


def voxel_cap(cases: int) -> int:
    """Voxels per case such that all cases fit the budget even if nothing can be compressed."""
    # An image and two label maps of one byte each, the maps compressing at least tenfold.
    return int(min(_MOST_VOXELS, BUDGET_BYTES * 0.75 / 1.2 / max(1, cases)))


def view_masks(
    files: Sequence[MaskFiles],
    image_path: Path | None,
    labels: Mapping[int, str] | None,
    max_voxels: int,
) -> View:
    """A segmentation's case: cropped around its structures, thinned until it fits.

    Args:
        files: The two label maps, or the two masks of each structure, of one case.
        image_path: The image, if there is one; left out where its grid is another.
        labels: Label value to name of label maps.
        max_voxels: Voxels to keep at most.

    Raises:
        InputError: If a file cannot be read.
    """
    maps, names, affine = _label_maps(files, labels)
    image, note = None, "No image was given."
    if image_path is not None:
        image, note = _image_on(image_path, Geometry(maps[0].shape, affine))  # pyright: ignore[reportArgumentType]
    box = _box((maps[0] > 0) | (maps[1] > 0), Geometry(maps[0].shape, affine).spacing_mm)  # pyright: ignore[reportArgumentType]
    shifted = affine.copy()
    shifted[:3, 3] = (affine @ [*(s.start for s in box), 1])[:3]
    cut = None if image is None else image[box]
    return _fitted(cut, maps[0][box], maps[1][box], shifted, names, note, max_voxels)


def _label_maps(
    files: Sequence[MaskFiles], labels: Mapping[int, str] | None
) -> tuple[list[NDArray[np.uint8]], list[str], NDArray[np.float64]]:
    """Reference and prediction numbered from 1, names in that order, and their affine."""
    from medvol.io import read_label, read_scan

    known = range(1, 65_536) if labels is None or files[0].structure else labels
    scan = read_scan(files[0].ref)
    raw = [[_cube(read_label(path, known, reference=scan).array[0]).astype(np.int32)
            for path in (one.ref, one.pred)] for one in files]  # fmt: skip
    affine = np.asarray(scan.affine, float)
    if files[0].structure:
        joined = [np.zeros(raw[0][0].shape, np.uint8) for _ in range(2)]
        for number, pair in enumerate(raw[:_MOST_LABELS], start=1):
            for whole, mask in zip(joined, pair, strict=True):
                whole[mask > 0] = number
        return joined, [one.structure for one in files], affine
    present = {int(v) for m in raw[0] for v in np.unique(m)} - {0}
    values = sorted(labels or present)[:_MOST_LABELS]
    names = [(labels or {}).get(value, str(value)) for value in values]
    return [_renumbered(m, values) for m in raw[0]], names, affine


def view_prediction(
    path: Path, image_path: Path | None, names: Mapping[int, str], max_voxels: int
) -> View:
    """A predicted label map: cropped around its structures, thinned until it fits.

    Args:
        path: The label map.
        image_path: The image, if there is one; left out where its grid is another.
        names: Label value to name.
        max_voxels: Voxels to keep at most.

    Raises:
        InputError: If a file cannot be read.
    """
    from medvol.io import read_scan

    scan = read_scan(path)
    values, affine = sorted(names)[:_MOST_LABELS], np.asarray(scan.affine, float)
    labels = _renumbered(_cube(scan.array[0]).astype(np.int32), values)
    grid = Geometry(labels.shape, affine)  # pyright: ignore[reportArgumentType]
    image, note = None, "The image is not at hand: outlines alone are shown."
    if image_path is not None:
        image, note = _image_on(image_path, grid)
    box = _box(labels > 0, grid.spacing_mm)
    affine[:3, 3] = (affine @ [*(s.start for s in box), 1])[:3]
    cut = None if image is None else image[box]
    called = [names[value] for value in values]
    return _fitted(cut, None, labels[box], affine, called, note, max_voxels)


def canonical(view: View) -> View:
    """The same copy stored from left to right, back to front and foot to head."""
    import nibabel as nib

    turned, affine = {}, view.affine
    for role in ("image", "ref", "pred"):
        array = getattr(view, role)
        if array is not None:
            stored = nib.as_closest_canonical(nib.Nifti1Image(array, view.affine))
            turned[role], affine = np.asarray(stored.dataobj), np.asarray(stored.affine)
    return replace(view, affine=affine, **turned)


def view_image(path: Path, max_voxels: int) -> View:
    """A classification's case: the whole image, thinned until it fits."""
    from medvol.io import read_image

    image = read_image(path)
    array = np.asarray(image).astype(np.float32).mean(axis=0)
    return _fitted(_cube(array), None, None, np.asarray(image.affine, float), (), "", max_voxels)


def _image_on(path: Path, grid: Geometry) -> tuple[NDArray[np.float32] | None, str]:
    from medvol.io import read_image

    image = read_image(path)
    array = _cube(np.asarray(image).astype(np.float32)[0])
    try:
        grid.require_same(Geometry(array.shape, np.asarray(image.affine, float)), "image")  # pyright: ignore[reportArgumentType]
    except GridMismatchError:
        return None, "The image lies on another grid than the reference and is left out."
    return array, ""


def _fitted(
    image: NDArray[np.float32] | None,
    ref: NDArray[np.uint8] | None,
    pred: NDArray[np.uint8] | None,
    affine: NDArray[np.float64],
    labels: Sequence[str],
    note: str,
    max_voxels: int,
) -> View:
    """Thinned by whole steps along the finest axis until at most ``max_voxels`` are left."""
    arrays = {"image": image, "ref": ref, "pred": pred}
    shape = next(a.shape for a in arrays.values() if a is not None)
    steps = _steps(shape, Geometry(shape, affine).spacing_mm, max_voxels)  # pyright: ignore[reportArgumentType]
    affine = affine.copy()
    if max(steps) > 1:
        note = (note + f" Shown at every {steps[0]} x {steps[1]} x {steps[2]} voxels.").strip()
        affine[:3, 3] = (affine @ [*((s - 1) / 2 for s in steps), 1])[:3]
        affine[:3, :3] *= steps
    shown = None if image is None else _windowed(_block_means(image, steps))
    middle = tuple(slice((s - 1) // 2, None, s) for s in steps)
    kept = [None if m is None else m[_trim(m.shape, steps)][middle] for m in (ref, pred)]
    return View(shown, kept[0], kept[1], affine, labels, note)


def _steps(
    shape: Sequence[int], spacing_mm: Sequence[float], max_voxels: int
) -> tuple[int, int, int]:
    steps = [1, 1, 1]
    while np.prod([n // s for n, s in zip(shape, steps, strict=True)]) > max_voxels:
        free = [a for a in range(3) if shape[a] // (steps[a] + 1) >= 1 and shape[a] > 1]
        axis = min(free, key=lambda a: steps[a] * spacing_mm[a])
        steps[axis] += 1
    return tuple(steps)  # pyright: ignore[reportReturnType]


def _trim(shape: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(0, n // s * s) for n, s in zip(shape, steps, strict=True))


def _block_means(image: NDArray[np.float32], steps: Sequence[int]) -> NDArray[np.float32]:
    cut = image[_trim(image.shape, steps)]
    split = [part for n, s in zip(cut.shape, steps, strict=True) for part in (n // s, s)]
    return cut.reshape(split).mean(axis=(1, 3, 5))


def _windowed(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(image, _WINDOW)
    return np.clip((image - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8)


def _box(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """Around the structures with a margin; the whole grid where there is none."""
    box = []
    for axis, step in enumerate(spacing_mm):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not hit.size:
            return tuple(slice(0, n) for n in mask.shape)
        margin = int(np.ceil(_MARGIN_MM / step))
        first, last = max(0, int(hit[0]) - margin), int(hit[-1]) + 1 + margin
        box.append(slice(first, min(mask.shape[axis], last)))
    return tuple(box)


def _renumbered(labels: NDArray[np.int32], values: Sequence[int]) -> NDArray[np.uint8]:
    """Label values as 1, 2, ... so that they fit a byte."""
    table = np.zeros(max([*values, int(labels.max(initial=0))]) + 1, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    return table[labels]


def _cube(array: Any) -> NDArray[Any]:
    values = np.asarray(array)
    return values.reshape(*values.shape, *[1] * (3 - values.ndim))


def _packed(array: NDArray[np.uint8], affine: NDArray[np.float64]) -> str:
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), 9, mtime=0)).decode()
