"""Rotation, scale, shear, shift, mirror, elastic deformation and crop in one resample."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.enums import TraceKeys
from numpy.typing import NDArray

from medvol.core import (
    ConfigError,
    GridMismatchError,
    PatientAxis,
    PolicyError,
    anatomy_rule,
    array_axis,
    check_mirror,
    check_rotation,
)
from medvol.transforms.grid import (
    FOLD_FREE_SHARE,
    Warp,
    control_shape,
    folding_share,
    inverse_grid,
    local_frame,
)
from medvol.transforms.sample import Resampler, check_mode, restore_lost, sample

Range = float | Sequence[float]
LABEL_KEYS = ("label", "seg", "mask")


class RandSpatiald(RandomizableTransform, MapTransform, InvertibleTransform):
    """Move a volume or image, and its labels with it, through one resample.

    All parts are composed before anything is read: the output voxel is displaced by a cubic
    B-spline, scaled, sheared, rotated, mirrored and shifted in millimetres along the array's own
    axes, and each key is read once at the resulting place, already cropped or padded to
    ``spatial_size``. The displacement is bounded so that it cannot fold
    (Choi & Lee 2000, Graphical Models 62(6):411). Without a rotation, scale or elastic draw, whole
    voxels are copied unchanged.

    Args:
        keys: Keys of channel-first tensors that share one grid, 2D (C, X, Y) or 3D (C, X, Y, Z).
        prob: Share of calls that move the image; crop and pad happen always.
        rotate_range: Largest angle in radians, one number or one per axis (2D: one number);
            None means 0.3, or what ``body_part`` allows where that is less.
        scale_range: Content grows or shrinks by up to this share. One number draws one factor for
            all axes, a sequence one factor per axis.
        shear_range: Largest tangent of shear, one number for every pair of axes.
        translate_range_mm: Largest shift in millimetres, one number or one per axis.
        flip_axes: Patient axes that may be mirrored (``left-right``, ``anterior-posterior``,
            ``superior-inferior``); the array axis is found through the affine, and an image tilted
            beyond what the anatomy allows is not mirrored. Needs ``body_part``.
        flip_prob: Probability of each mirror.
        elastic: Whether to deform elastically.
        elastic_magnitude_mm: Largest displacement of a control point, or (low, high) from which
            each call draws it. Must stay under 0.40 (3D) or 0.48 (2D) of ``elastic_spacing_mm``.
        elastic_spacing_mm: Distance between control points.
        elastic_prob: Probability of the elastic part.
        mode: ``bilinear``, ``cubic``, ``nearest`` (every class that stays in the picture keeps at
            least one voxel) or ``onehot`` (labels with smooth borders), one or one per key; None
            reads ``label_keys`` and integers by ``nearest``, everything else by ``bilinear``.
        padding_mode: ``zeros``, ``border``, ``reflection`` or ``min``, one or one per key; labels
            take ``zeros`` for ``min``.
        spatial_size: Shape of the output; 0 or -1 keeps the input's size on that axis.
        random_center: Whether a crop smaller than the input lies anywhere or in the middle.
        foreground_key: Label map whose non-zero voxels may centre the crop.
        foreground_prob: Probability of such a crop.
        label_keys: Keys that hold label maps.
        body_part: Row of ``medvol.core.anatomy`` that says which mirrors and angles are legal.
        labels: Label names, or value to name; a lateral name refuses the left-right mirror.
        swap_labels: Pairs of label values that trade places when left and right are mirrored;
            makes the mirror legal for lateral labels that are all paired.
        allow_missing_keys: Skip keys that are absent.

    Raises:
        PolicyError: If the anatomy or a label refuses a mirror or an angle.
        ConfigError: If a range is impossible, or the deformation could fold.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        *,
        rotate_range: Range | None = None,
        scale_range: Range = 0.2,
        shear_range: float = 0.0,
        translate_range_mm: Range = 0.0,
        flip_axes: Sequence[PatientAxis] = (),
        flip_prob: float = 0.5,
        elastic: bool = True,
        elastic_magnitude_mm: Range = 6.0,
        elastic_spacing_mm: float = 32.0,
        elastic_prob: float = 1.0,
        mode: str | Sequence[str] | None = None,
        padding_mode: str | Sequence[str] = "zeros",
        spatial_size: Sequence[int] | int | None = None,
        random_center: bool = True,
        foreground_key: str | None = None,
        foreground_prob: float = 0.0,
        label_keys: Sequence[str] = LABEL_KEYS,
        body_part: str | None = None,
        labels: Sequence[str] | Mapping[Any, str] = (),
        swap_labels: Sequence[tuple[int, int]] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.rotate_range = check_rotation(body_part, rotate_range)
        self.scale_range = scale_range
        self.shear_range = float(shear_range)
        self.translate_range_mm = translate_range_mm
        self.flip_axes = tuple(flip_axes)
        self.flip_prob = flip_prob
        self.elastic_magnitude_mm = _low_high(elastic_magnitude_mm) if elastic else (0.0, 0.0)
        self.elastic_spacing_mm = float(elastic_spacing_mm)
        self.elastic_prob = elastic_prob if elastic else 0.0
        self.mode = _per_key(mode, self.keys, "mode")
        self.padding_mode = _per_key(padding_mode, self.keys, "padding_mode")
        self.spatial_size = spatial_size
        self.random_center = random_center
        self.foreground_key = foreground_key
        self.foreground_prob = foreground_prob
        self.label_keys = tuple(label_keys)
        self.swap_labels = tuple((int(a), int(b)) for a, b in swap_labels)
        self._max_tilt_deg = 0.0
        self._check(body_part, labels)

    def _check(self, body_part: str | None, labels: Sequence[str] | Mapping[Any, str]) -> None:
        for mode, padding in zip(self.mode, self.padding_mode, strict=True):
            check_mode(mode or "nearest", padding or "zeros")
        if np.max(np.abs(self.scale_range)) >= 1:
            raise ConfigError(f"scale_range {self.scale_range} would shrink the image to nothing")
        if self.flip_axes and body_part is None:
            raise PolicyError(
                f"flip_axes {list(self.flip_axes)} need body_part, so that the anatomy can be asked"
            )
        if body_part is not None:
            self._max_tilt_deg = anatomy_rule(body_part).max_rotation_deg / 2
        for axis in self.flip_axes:
            check_mirror(str(body_part), axis, labels, self.swap_labels)

    def randomize(self, data: Any = None) -> None:
        """Draw whether this call moves the image."""
        super().randomize(data)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with every key resampled through one drawn map."""
        out = dict(data)
        first = self.first_key(out)
        if first == ():
            return out
        self.randomize()
        shape = tuple(int(v) for v in out[first].shape[1:])
        affine = _affine_of(out[first], len(shape))
        warp, mirrored = self._draw(shape, affine, out)
        read = Resampler(warp)
        for key, mode, padding in self.key_iterator(out, self.mode, self.padding_mode):
            if tuple(out[key].shape[1:]) != shape:
                raise GridMismatchError(
                    f"{key!r} has spatial shape {tuple(out[key].shape[1:])} but {first!r} has "
                    f"{shape}; resample them onto one grid before RandSpatiald"
                )
            image, how = out[key], self._how(key, out[key], mode, padding)
            moved = read(_plain(image), *how)
            if how[0] == "nearest" and moved.device.type == "cpu" and len(moved) == 1:
                restore_lost(_plain(image), moved, warp)
            swaps = self.swap_labels if mirrored and key in self.label_keys else ()
            out[key] = self._record(image, _swap(moved, swaps), warp, (*how, swaps))
        return out

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Bring every key back onto the grid that the recorded map came from."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self._invert(out[key], self.pop_transform(out[key]))
        return out

    def _draw(
        self, shape: tuple[int, ...], affine: NDArray[np.floating], data: Mapping[Hashable, Any]
    ) -> tuple[Warp, bool]:
        n = len(shape)
        out_shape = _output_size(self.spatial_size, shape)
        start = self._draw_start(shape, out_shape, data)
        linear, control, step, shift, mirrored = np.eye(n), None, (), np.zeros(n), False
        if self._do_transform:
            frame = local_frame(affine, n)
            linear, mirrored = self._draw_linear(n, affine)
            if not np.array_equal(linear, np.eye(n)):
                linear = np.linalg.solve(frame, linear @ frame)
            shift = np.linalg.solve(frame, self._symmetric(self.translate_range_mm, n))
            control, step = self._draw_control(out_shape, frame)
        centre = (np.asarray(out_shape) - 1) / 2
        matrix = np.eye(n + 1)
        matrix[:n, :n] = linear
        matrix[:n, n] = np.asarray(start) + centre - linear @ centre - shift
        return Warp(matrix, shape, out_shape, control, step), mirrored

    def _draw_linear(
        self, n: int, affine: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], bool]:
        """Map from output to input millimetres; exactly diagonal when nothing but mirrors."""
        linear = np.eye(n)
        planes = list(combinations(range(n), 2))[::-1]
        angles = self._symmetric(self.rotate_range, len(planes))
        for (a, b), angle in zip(planes, angles, strict=True):
            turn = np.eye(n)
            turn[a, a] = turn[b, b] = math.cos(angle)
            turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
            linear = linear @ turn
        if self.shear_range:
            shear = self._symmetric(self.shear_range, n * n).reshape(n, n)
            linear = linear @ (np.eye(n) + shear * (1 - np.eye(n)))
        size = n if isinstance(self.scale_range, Sequence) else 1
        linear = linear / (1 + self._symmetric(self.scale_range, size))
        mirrored = False
        for axis in self.flip_axes:
            place = array_axis(affine, n, axis, self._max_tilt_deg)
            if self.R.rand() < self.flip_prob and place is not None:
                linear[:, place] *= -1
                mirrored ^= axis == "left-right"
        return linear, mirrored

    def _draw_control(
        self, out_shape: tuple[int, ...], frame: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating] | None, tuple[float, ...]]:
        n, (low, high) = len(out_shape), self.elastic_magnitude_mm
        if high > FOLD_FREE_SHARE[n] * self.elastic_spacing_mm:
            raise ConfigError(
                f"elastic_magnitude_mm {high:g} could fold: with elastic_spacing_mm "
                f"{self.elastic_spacing_mm:g} it must stay under "
                f"{FOLD_FREE_SHARE[n] * self.elastic_spacing_mm:.3g} in {n}D"
            )
        if high <= 0 or self.R.rand() >= self.elastic_prob:
            return None, ()
        step = tuple(float(self.elastic_spacing_mm / s) for s in np.linalg.norm(frame, axis=0))
        size = (n, *control_shape(out_shape, step))
        control = self.R.uniform(-1, 1, size) * self.R.uniform(low, high)
        return np.tensordot(np.linalg.inv(frame), control, 1), step

    def _draw_start(
        self, shape: tuple[int, ...], out_shape: tuple[int, ...], data: Mapping[Hashable, Any]
    ) -> list[int]:
        room = [size - length for size, length in zip(shape, out_shape, strict=True)]
        middle = [value // 2 for value in room]
        if max(room) <= 0 or not self.random_center:
            return middle
        if self.foreground_key is not None and self.R.rand() < self.foreground_prob:
            found = np.flatnonzero(np.asarray(data[self.foreground_key])[0])
            if found.size:
                chosen = np.unravel_index(found[self.R.randint(found.size)], shape)
                middle = [int(c) - length // 2 for c, length in zip(chosen, out_shape, strict=True)]
                return [
                    min(max(m, 0), r) if r > 0 else r // 2
                    for m, r in zip(middle, room, strict=True)
                ]
        return [
            int(self.R.randint(r + 1)) if r > 0 else m for r, m in zip(room, middle, strict=True)
        ]

    def _symmetric(self, bound: Range, size: int) -> NDArray[np.floating]:
        bounds = np.asarray(bound, np.float64)
        if bounds.ndim and bounds.shape != (size,):
            raise ConfigError(f"expected one range or {size}, found {list(bounds)}")
        if not bounds.any():
            return np.zeros(size)
        return self.R.uniform(-1, 1, size) * bounds

    def _how(
        self, key: Hashable, image: torch.Tensor, mode: str | None, padding: str
    ) -> tuple[str, str]:
        is_label = key in self.label_keys or not image.dtype.is_floating_point
        mode = mode or ("nearest" if is_label else "bilinear")
        return mode, "zeros" if padding == "min" and mode in ("nearest", "onehot") else padding

    def _record(
        self, image: torch.Tensor, out: torch.Tensor, warp: Warp, how: tuple[str, str, Any]
    ) -> torch.Tensor:
        record = {
            "mode": how[0], "padding_mode": how[1], "swaps": [list(pair) for pair in how[2]],
            "matrix": warp.matrix.tolist(), "control": warp.control,
            "step": list(warp.step), "out_shape": list(warp.out_shape),
        }  # fmt: skip
        source = image if isinstance(image, MetaTensor) else MetaTensor(image)
        transform_info = {**self.get_transform_info(), TraceKeys.DO_TRANSFORM: True}
        meta = self.track_transform_meta(
            source, affine=torch.from_numpy(warp.matrix), extra_info=record,
            orig_size=warp.in_shape, transform_info=transform_info,
        )  # fmt: skip
        return MetaTensor(out).copy_meta_from(meta)

    def _invert(self, image: torch.Tensor, info: dict[str, Any]) -> torch.Tensor:
        record = info[TraceKeys.EXTRA_INFO]
        warp = recorded_warp(info)
        plain = _plain(image)
        if warp.whole_voxels is not None:
            back = Warp(np.linalg.inv(warp.matrix), warp.out_shape, warp.in_shape)
            out = Resampler(back)(plain, record["mode"], "zeros")
        else:
            mode = "nearest" if record["mode"] in ("nearest", "onehot") else "bilinear"
            out = sample(plain, inverse_grid(warp, image.device), mode, record["padding_mode"])
        out = MetaTensor(_swap(out, record["swaps"]))
        if isinstance(image, MetaTensor):
            out.copy_meta_from(image)
            n = image.affine.shape[-1] - 1
            matrix = to_affine_nd(n, torch.from_numpy(warp.matrix))
            out.affine = image.affine @ torch.linalg.inv(matrix).to(image.affine)
        return out


def measured_folding(image: MetaTensor) -> float:
    """Share of voxels that the most recent ``RandSpatiald`` of an image folded, 0 to 1."""
    for info in reversed(image.applied_operations):
        if info[TraceKeys.CLASS_NAME] == RandSpatiald.__name__:
            return folding_share(recorded_warp(info))
    return 0.0


def recorded_warp(info: Mapping[str, Any]) -> Warp:
    """The map that ``RandSpatiald`` recorded in one entry of ``applied_operations``."""
    record, in_shape = info[TraceKeys.EXTRA_INFO], info[TraceKeys.ORIG_SIZE]
    control = record["control"]
    return Warp(
        np.asarray(record["matrix"], np.float64),
        tuple(int(v) for v in in_shape),
        tuple(int(v) for v in record["out_shape"]),
        None if control is None else np.asarray(control, np.float64),
        tuple(float(v) for v in record["step"]),
    )


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _affine_of(image: torch.Tensor, ndim: int) -> NDArray[np.floating]:
    if isinstance(image, MetaTensor):
        return np.asarray(image.affine, np.float64)
    return np.eye(ndim + 1)


def _output_size(asked: Sequence[int] | int | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if asked is None:
        return shape
    sizes = [asked] * len(shape) if isinstance(asked, int) else list(asked)
    if len(sizes) != len(shape):
        raise ConfigError(f"spatial_size {sizes} does not fit an image of shape {shape}")
    return tuple(int(a) if a > 0 else s for a, s in zip(sizes, shape, strict=True))


def _low_high(bound: Range) -> tuple[float, float]:
    low, high = (0.0, float(bound)) if isinstance(bound, (int, float)) else map(float, bound)
    if not 0 <= low <= high:
        raise ConfigError(f"elastic_magnitude_mm {bound} is no range from low to high")
    return low, high


def _per_key(value: Any, keys: Sequence[Hashable], name: str) -> tuple[Any, ...]:
    values = (value,) * len(keys) if value is None or isinstance(value, str) else tuple(value)
    if len(values) != len(keys):
        raise ConfigError(f"{name} has {len(values)} entries for {len(keys)} keys")
    return values


def _swap(image: torch.Tensor, pairs: Sequence[Sequence[int]]) -> torch.Tensor:
    out = image.clone() if pairs else image
    for a, b in pairs:
        out[image == a], out[image == b] = b, a
    return out
