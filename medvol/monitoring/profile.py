"""The reference profile: numbers per case that later inputs are held against."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import InputError, NonFiniteError
from medvol.core.files import csv_text
from medvol.evaluation.rows import read_table

if TYPE_CHECKING:
    from medvol.bundle import Bundle

#: Where a bundle keeps its reference profile.
IN_BUNDLE = Path("docs") / "reference_profile.csv"
#: What the names of embedded columns start with.
EMBEDDED = "emb_"
#: An image's file, or one file per channel.
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_IDENTIFIERS = ("case", "case_id", "id", "patient", "patient_id", "file")


@dataclass(frozen=True, eq=False)
class ReferenceProfile:
    """Numbers of cases: input statistics, embeddings, or outputs.

    Attributes:
        source: Where it comes from, for messages.
        cases: Names of the cases.
        columns: Names of the numbers; embeddings are those that start with ``emb_``.
        table: Shape (cases, columns).
    """

    source: str
    cases: tuple[str, ...]
    columns: tuple[str, ...]
    table: NDArray[np.float64]

    def select(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """Only some columns, shape (cases, columns)."""
        return self.table[:, [self.columns.index(name) for name in columns]]


def image_statistics(voxels: ArrayLike, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Numbers that change when a scanner, a protocol or a patient group does.

    Args:
        voxels: One channel, shape (X, Y, Z) or (X, Y).
        spacing_mm: Voxel edge lengths.

    Returns:
        Mean, spread and percentiles of the voxels, the share of voxels at the lowest value
        (air, padding), noise (median absolute Laplacian), voxel size and field of view.
    """
    x = np.asarray(voxels, np.float64)
    found = {"mean": float(x.mean()), "std": float(x.std())}
    for percent in (1, 25, 50, 75, 99):
        found[f"p{percent:02d}"] = float(np.percentile(x, percent))
    found["share_lowest"] = float(np.mean(x == x.min()))
    found["noise"] = float(np.median(np.abs(_laplacian(x)))) if x.size else 0.0
    for axis, (step, count) in enumerate(zip(spacing_mm, x.shape, strict=True)):
        found[f"spacing_{'xyz'[axis]}_mm"] = float(step)
        found[f"extent_{'xyz'[axis]}_mm"] = float(step * count)
    return found


def profile_images(images: Mapping[str, Paths], embedder: Bundle | None = None) -> ReferenceProfile:
    """The statistics of images by case name, read through medvol's input checks.

    Args:
        images: Case to image, or to its files where each holds one channel.
        embedder: Bundle whose network adds its embedding as columns ``emb_000`` and so on.
    """
    from medvol.core import Geometry
    from medvol.io import read_scan

    rows: dict[str, dict[str, float]] = {}
    for case, paths in images.items():
        rows[case], k = {}, 0
        for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
            scan = read_scan(path)
            shape = scan.array.shape[1:]
            spacing = Geometry((*shape, 1)[:3], scan.affine).spacing_mm[: len(shape)]  # pyright: ignore[reportArgumentType]
            for channel in scan.array:
                # One channel keeps the plain names; the grid is the same for all.
                for name, value in image_statistics(channel, spacing).items():
                    rows[case].setdefault(
                        f"ch{k}_{name}" if k and not name.endswith("_mm") else name, value
                    )
                k += 1
    if embedder is not None:
        from medvol.monitoring.embedding import embed_images

        for case, vector in embed_images(embedder, images).items():
            rows[case] |= {f"{EMBEDDED}{k:03d}": float(v) for k, v in enumerate(vector)}
    columns = tuple(next(iter(rows.values()))) if rows else ()
    if any(tuple(row) != columns for row in rows.values()):
        raise InputError(
            "images of two and of three axes, or of different channels, are mixed; profile them "
            "apart"
        )
    table = np.array([list(row.values()) for row in rows.values()])
    return ReferenceProfile("images", tuple(rows), columns, table)


def read_profile(path: str | os.PathLike[str], embedder: Bundle | None = None) -> ReferenceProfile:
    """A profile from a CSV, a bundle's folder, or a folder (or data set) of images.

    Args:
        path: Where to look.
        embedder: Bundle whose network's embedding is added to images.

    Raises:
        MissingInputError: If there is nothing at the path.
        InputError: If a column is not a number.
    """
    path = Path(path)
    if path.is_dir() and (path / IN_BUNDLE).is_file():
        return _read_csv(path / IN_BUNDLE)
    lists_images = path.is_file() and "image" in [n.lower() for n in read_table(path)[0]]
    if path.is_dir() or path.suffix.lower() == ".json" or lists_images:
        from medvol.datasets import read_dataset

        return profile_images({c.case: c.images for c in read_dataset(path).cases}, embedder)
    return _read_csv(path)


def profile_to_csv(profile: ReferenceProfile) -> str:
    """The text of a profile's CSV."""
    rows = zip(profile.cases, profile.table.tolist(), strict=True)
    return csv_text(["case", *profile.columns], ((case, *row) for case, row in rows))


def _read_csv(path: Path) -> ReferenceProfile:
    header, rows = read_table(path)
    columns = [name for name in header if name.lower() not in _IDENTIFIERS]
    named = next((name for name in header if name.lower() in _IDENTIFIERS), None)
    cases = tuple(row[named] if named else str(k) for k, row in enumerate(rows))
    try:
        table = np.array([[float(row[name]) for name in columns] for row in rows])
    except ValueError as error:
        raise InputError(f"{path}: a profile holds numbers only: {error}") from None
    if not np.isfinite(table).all():
        line, column = np.argwhere(~np.isfinite(table))[0]
        raise NonFiniteError(f"{path}: line {line + 2}: {columns[column]} is not finite")
    return ReferenceProfile(str(path), cases, tuple(columns), table)


def _laplacian(x: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = tuple(slice(1, -1) for _ in x.shape)
    if min(x.shape) < 3:
        return np.zeros(1)
    total = 2 * x.ndim * x[inner]
    for axis in range(x.ndim):
        for start in (0, 2):
            window = list(inner)
            window[axis] = slice(start, x.shape[axis] - 2 + start)
            total = total - x[tuple(window)]
    return total
