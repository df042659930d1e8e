"""nnU-Net v2's preprocessing, number for number: crop to what is not zero, normalise, resample."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray

from medvol.core.errors import ConfigError
from medvol.core.geometry import Geometry

_ANISOTROPIC = 3.0
_SCHEMES = ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization",
            "RGBTo01Normalization")  # fmt: skip


class NnUNetPreprocessd(MapTransform, InvertibleTransform):
    """What nnU-Net does to a scan between reading it and showing it to its network.

    In its order: crop all keys to the box of the first key's voxels that are not zero, normalise
    channel by channel, resample. The inverse resamples linearly and puts the box back, zeros
    around it. Orientation and order of axes are left as they are.

    Args:
        keys: The image first; further keys are label maps.
        spacing_mm: Target spacing along our axes; 0 keeps an axis.
        schemes: nnU-Net's normalisation of each channel.
        intensities: Of each channel ``mean``, ``std``, ``percentile_00_5``, ``percentile_99_5`` of
            the training foreground; used by CTNormalization.
        masked: Of each channel whether zeros around the subject are left out and stay zero.
        order: Spline order of the image.
        order_z: Order across slices where spacing is anisotropic.
        separate_z: Whether slices are resampled one by one; None decides by a ratio over 3.
        allow_missing_keys: Ignore absent label keys.

    Raises:
        ConfigError: If a normalisation is unknown.

    Source:
        nnunetv2 2.8: DefaultPreprocessor, default_resampling, default_normalization_schemes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: Sequence[float],
        schemes: Sequence[str],
        intensities: Sequence[Mapping[str, float]] = (),
        masked: Sequence[bool] = (),
        order: int = 3,
        order_z: int = 0,
        separate_z: bool | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if bad := [name for name in schemes if name not in _SCHEMES]:
            raise ConfigError(f"nnU-Net's normalisation {bad[0]!r} is unknown; known: "
                              f"{', '.join(_SCHEMES)}")  # fmt: skip
        self.spacing_mm, self.schemes = tuple(float(v) for v in spacing_mm), tuple(schemes)
        self.intensities = [dict(one) for one in intensities]
        self.masked = list(masked) or [False] * len(self.schemes)
        self.order, self.order_z, self.separate_z = int(order), int(order_z), separate_z

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        first = next(iter(self.key_iterator(case)))
        mask = _subject(np.asarray(case[first]))
        box = _box(mask)
        for key in self.key_iterator(case):
            case[key] = self._forward(case[key], mask, box, is_label=key != first)
        return case

    def output_grid(self, grid: Geometry) -> Geometry:
        """The grid of an image on ``grid`` of which nothing is cropped."""
        target = [t or s for t, s in zip(self.spacing_mm, grid.spacing_mm, strict=True)]
        edges = zip(grid.spacing_mm, target, grid.shape, strict=True)
        x, y, z = (round(s / t * n) for s, t, n in edges)
        box = [slice(0, n) for n in grid.shape]
        return Geometry((x, y, z), _moved_affine(grid.affine, box, grid.shape, (x, y, z)))

    def inverse(self, data: Any) -> dict[Hashable, Any]:
        """Each key back on the grid that it had, linearly interpolated, zeros outside the box."""
        case = dict(data)
        for key in self.key_iterator(case):
            extra = self.pop_transform(case[key])["extra_info"]
            low, high, full = extra["low"], extra["high"], extra["full"]
            size = [b - a for a, b in zip(low, high, strict=True)]
            array = case[key].detach().cpu().numpy().astype(np.float32)
            array = resampled(array, size, 1, extra["axis"], self.order_z)
            back = np.zeros((len(array), *full), np.float32)
            back[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))] = array
            case[key] = MetaTensor(
                torch.from_numpy(back).to(case[key].device), affine=torch.tensor(extra["affine"]),
                meta=case[key].meta, applied_operations=case[key].applied_operations,
            )  # fmt: skip
            case[key].affine = torch.tensor(extra["affine"], dtype=torch.float64)
        return case

    def _forward(self, image: Any, mask: NDArray[Any], box: Any, is_label: bool) -> MetaTensor:
        array = np.asarray(image, dtype=np.float32)[(slice(None), *box)]
        spacing = [float(v) for v in image.pixdim[: array.ndim - 1]]
        target = [t or s for t, s in zip(self.spacing_mm, spacing, strict=True)]
        edges = zip(spacing, target, array.shape[1:], strict=True)
        size = [round(s / t * n) for s, t, n in edges]
        axis = slice_axis(spacing, target, self.separate_z)
        if not is_label:
            array = self._normalised(array.copy(), mask[box])
        order = 0 if is_label else self.order
        out = resampled(array, size, order, axis, 0 if is_label else self.order_z)
        affine = image.affine.detach().cpu().double().numpy()
        extra = {"low": [s.start for s in box], "high": [s.stop for s in box], "axis": axis,
                 "full": list(image.shape[1:]), "affine": affine.tolist(),
                 "inverse": {"nearest_axis": None if self.order_z else axis}}  # fmt: skip
        moved = MetaTensor(
            torch.from_numpy(np.ascontiguousarray(out)), meta=image.meta,
            applied_operations=image.applied_operations,
        )  # fmt: skip
        moved.affine = torch.from_numpy(_moved_affine(affine, box, array.shape[1:], size))
        self.push_transform(moved, extra_info=extra)
        return moved

    def _normalised(self, array: NDArray[np.float32], mask: NDArray[Any]) -> NDArray[np.float32]:
        if len(array) != len(self.schemes):
            raise ConfigError(f"the image has {len(array)} channels, the network wants "
                              f"{len(self.schemes)}")  # fmt: skip
        for index, scheme in enumerate(self.schemes):
            channel = array[index]
            if scheme == "ZScoreNormalization":
                part = mask if self.masked[index] else np.ones_like(mask)
                inside = channel[part] if self.masked[index] else channel
                mean, std = inside.mean(), inside.std()
                channel[part] = (channel[part] - mean) / max(std, 1e-8)
            elif scheme == "CTNormalization":
                facts = self.intensities[index]
                np.clip(channel, facts["percentile_00_5"], facts["percentile_99_5"], out=channel)
                channel -= facts["mean"]
                channel /= max(facts["std"], 1e-8)
            elif scheme == "RescaleTo01Normalization":
                channel -= channel.min()
                channel /= max(channel.max(), 1e-8)
            elif scheme == "RGBTo01Normalization":
                channel /= 255.0
        return array


def resampled(
    array: NDArray[np.float32],
    size: Sequence[int],
    order: int,
    axis: int | None = None,
    order_z: int = 0,
) -> NDArray[np.float32]:
    """Channels (C, X, Y[, Z]) at another size, as ``skimage.transform.resize`` would.

    Args:
        array: To resample; returned as it is if it has the size.
        size: New size of the spatial axes.
        order: Spline order, 0 to 5.
        axis: Spatial axis whose slices are resampled one by one; None for all axes together.
        order_z: Spline order along ``axis`` afterwards.
    """
    from scipy.ndimage import zoom

    if list(array.shape[1:]) == list(size):
        return array
    found = []
    for channel in array.astype(np.float64):
        inner = list(size)
        if axis is not None:
            inner[axis] = channel.shape[axis]
        factors = [new / old for new, old in zip(inner, channel.shape, strict=True)]
        # One slice at a time is the same spline with factor 1 along the axis.
        out = np.asarray(zoom(channel, factors, order=order, mode="nearest", grid_mode=True))
        if axis is None:
            out = np.clip(out, channel.min(), channel.max())
        else:
            low, high = (getattr(np, f)(channel, axis=_others(axis, channel.ndim), keepdims=True)
                         for f in ("min", "max"))  # fmt: skip
            out = _along(np.clip(out, low, high), axis, size[axis], order_z)
        found.append(out.astype(np.float32))
    return np.stack(found)


def slice_axis(
    spacing_mm: Sequence[float], target_mm: Sequence[float], separate: bool | None = None
) -> int | None:
    """The axis whose slices nnU-Net resamples one by one, None if it treats all alike.

    >>> slice_axis((0.8, 0.8, 5.0), (0.8, 0.8, 2.5)), slice_axis((1, 1, 2), (1, 1, 1))
    (2, None)
    """
    choices: list[Sequence[float]] = []
    if separate is None:
        choices = [s for s in (spacing_mm, target_mm) if max(s) / min(s) > _ANISOTROPIC]
    elif separate:
        choices = [spacing_mm]
    if not choices:
        return None
    coarse = [i for i, value in enumerate(choices[0]) if value == max(choices[0])]
    return coarse[0] if len(coarse) == 1 else None


def _along(array: NDArray[np.float64], axis: int, size: int, order: int) -> NDArray[np.float64]:
    from scipy.ndimage import map_coordinates

    if array.shape[axis] == size:
        return array
    grid = list(np.meshgrid(*(np.arange(size if a == axis else n, dtype=float)
                         for a, n in enumerate(array.shape)), indexing="ij"))  # fmt: skip
    grid[axis] = (array.shape[axis] / size) * (grid[axis] + 0.5) - 0.5
    return map_coordinates(array, grid, order=order, mode="nearest")


def _others(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a != axis)


def _subject(array: NDArray[Any]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes((array != 0).any(axis=0)))


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    places = [np.flatnonzero(mask.any(axis=_others(a, mask.ndim))) for a in range(mask.ndim)]
    return tuple(slice(int(at[0]), int(at[-1]) + 1) for at in places)


def _moved_affine(
    affine: NDArray[np.float64], box: Any, old: Sequence[int], new: Sequence[int]
) -> NDArray[np.float64]:
    """The grid of a crop that was resampled with its outer faces kept in place."""
    change, dims = np.eye(4), len(old)
    for axis in range(dims):
        factor = old[axis] / new[axis]
        change[axis, axis] = factor
        change[axis, 3] = box[axis].start + (factor - 1) / 2
    return affine @ change
