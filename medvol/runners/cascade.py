"""A bundle of crops, given a whole scan: where to crop, and how the parts become one map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvol.bundle import Bundle
from medvol.core.errors import ConfigError, InputError
from medvol.core.geometry import Geometry
from medvol.core.labels import find_label
from medvol.inferers import Prediction


@dataclass(frozen=True)
class Locates:
    """What a bundle's metadata states under ``medvol.locates``.

    Attributes:
        bundle: Name of the bundle that finds the structures in a whole scan.
        structures: Their names there; each is cropped and predicted on its own.
        margin_mm: What is added around each on all sides.
        largest_mm: Extent along left-right, back-front and foot-head above which an image is a
            whole scan and not a crop.
    """

    bundle: str
    structures: tuple[str, ...]
    margin_mm: float
    largest_mm: tuple[float, float, float]

    @classmethod
    def of(cls, bundle: Bundle) -> Locates | None:
        """The fact, if the bundle states it.

        Raises:
            ConfigError: If it is incomplete.
        """
        stated = bundle.metadata.get("medvol", {}).get("locates")
        if not stated:
            return None
        try:
            x, y, z = (float(n) for n in stated["largest_mm"])
            names = tuple(str(name) for name in stated["structures"])
            return cls(str(stated["bundle"]), names, float(stated["margin_mm"]), (x, y, z))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{bundle.path}: metadata.json: 'locates' needs bundle, structures, "
                              f"margin_mm and largest_mm: {error!r}") from error  # fmt: skip

    def is_whole(self, grid: Geometry) -> bool:
        """Whether an image on this grid is a whole scan, and not a crop around one structure."""
        return any(n > most for n, most in zip(grid.extent_mm, self.largest_mm, strict=True))


@dataclass(frozen=True)
class Found:
    """A structure in a whole scan.

    Attributes:
        name: Its name.
        box: Voxels of the scan to crop, one slice an axis.
        volume_ml: Its volume as the locating bundle sees it.
    """

    name: str
    box: tuple[slice, slice, slice]
    volume_ml: float

    def as_dict(self, predicted_ml: float) -> dict[str, Any]:
        """For ``prediction.json``; a box is its first voxel and the one after its last.

        Args:
            predicted_ml: Volume of all labels in the box.
        """
        return {
            "structure": self.name,
            "start": [int(place.start) for place in self.box],
            "stop": [int(place.stop) for place in self.box],
            "located_ml": round(self.volume_ml, 6),
            "predicted_ml": round(predicted_ml, 6),
        }


def find_structures(
    prediction: Prediction, labels: Mapping[int, str], locates: Locates, path: str
) -> list[Found]:
    """Boxes around the structures that a locating bundle found.

    Of each the largest connected part counts, so that stray voxels move no box.

    Raises:
        ConfigError: If the locating bundle has no such structure.
        InputError: If it found none of them.
    """
    values = {name: value for value, name in labels.items()}
    if unknown := [name for name in locates.structures if name not in values]:
        raise ConfigError(f"{locates.bundle} has no structure {unknown[0]!r} to locate")
    margin = np.ceil(locates.margin_mm / np.asarray(prediction.source.spacing_mm)).astype(int)
    found = []
    for name in locates.structures:
        mask = _largest_part(prediction.mask_of(values[name]))
        if mask is None:
            continue
        (inner,) = ndimage.find_objects(mask.astype(np.uint8))
        box = tuple(slice(max(0, int(place.start - m)), min(int(size), int(place.stop + m)))
                    for place, m, size in zip(inner, margin, mask.shape, strict=True))  # fmt: skip
        volume_ml = float(mask.sum() * np.prod(prediction.source.spacing_mm)) / 1000
        found.append(Found(name, box, volume_ml))  # pyright: ignore[reportArgumentType]
    if not found:
        names = ", ".join(locates.structures)
        raise InputError(f"{path}: is a whole scan, and {locates.bundle} finds none of {names} in "
                         "it; crop the image around one")  # fmt: skip
    return found


def joined(
    parts: Sequence[tuple[Found, Prediction]], labels: Mapping[int, str], locates: Locates
) -> Prediction:
    """One prediction of several on the same grid, each inside its box.

    The label values of the k-th structure in the bundle's list are raised by k times the highest
    value; names get its side (or else its name) in front. Where boxes overlap, a voxel is of the
    box whose centre is nearer.
    """
    step, first = max(labels), parts[0][1]
    prefix = {name: _prefix(name) for name in locates.structures}
    names = {
        value + k * step: f"{prefix[structure]} {name}"
        for k, structure in enumerate(locates.structures)
        for value, name in labels.items()
    }
    whole = replace(first, labels=np.zeros_like(first.labels), names=names, maps={},
                    intervals_ml={}, located=[])  # fmt: skip
    voxel_ml = float(np.prod(first.source.spacing_mm)) / 1000
    whole.maps = {kind: np.zeros_like(values) for kind, values in first.maps.items()}
    for found, part in parts:
        raised = locates.structures.index(found.name) * step
        own = _own_voxels(found, [other for other, _ in parts], first.source)
        inside, target = part.labels[found.box], whole.labels[found.box]
        own &= inside > 0
        target[own] = inside[own] + raised
        whole.located.append(found.as_dict(float(own.sum()) * voxel_ml))
        for kind, values in part.maps.items():
            view = whole.maps[kind][found.box]
            np.maximum(view, values[found.box], out=view)
        whole.intervals_ml |= {v + raised: ml for v, ml in part.intervals_ml.items()}
    return whole


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    numbered, count = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return None
    return numbered == 1 + int(np.argmax(np.bincount(numbered.ravel())[1:]))


def _prefix(structure: str) -> str:
    side = find_label(structure).laterality
    return side if side in ("left", "right") else structure


def _own_voxels(found: Found, every: Sequence[Found], grid: Geometry) -> NDArray[np.bool_]:
    """Voxels of a box, without those that lie in another box and nearer to that one's centre."""
    index = np.stack(np.meshgrid(*[np.arange(p.start, p.stop) for p in found.box], indexing="ij"))

    def distance_mm(one: Found) -> NDArray[np.float64]:
        centre = np.asarray([(p.start + p.stop - 1) / 2 for p in one.box])
        apart = index - centre[:, None, None, None]
        return np.linalg.norm(np.tensordot(grid.affine[:3, :3], apart, 1), axis=0)

    own = np.ones(index.shape[1:], bool)
    for other in every:
        if other.name != found.name:
            inside = np.logical_and.reduce(
                [(i >= p.start) & (i < p.stop) for i, p in zip(index, other.box, strict=True)]
            )
            own &= ~inside | (distance_mm(found) <= distance_mm(other))
    return own
