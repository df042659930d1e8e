"""Rotation, scale, shear, shift, mirror, elastic deformation and crop in one resample."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import LazyTransform, MapTransform, RandomizableTransform
from monai.utils.enums import LazyAttr, MetaKeys, TraceKeys
from numpy.typing import NDArray

from medvol.core import (
    ConfigError,
    GridMismatchError,
    PatientAxis,
    PolicyError,
    anatomy_rule,
    check_mirror,
    check_rotation,
)
from medvol.transforms.draw import Range, SpatialRanges
from medvol.transforms.grid import Warp, folding_share, inverse_grid
from medvol.transforms.sample import Resampler, check_mode, restore_lost, sample

LABEL_KEYS = ("label", "seg", "mask")


class RandSpatiald(RandomizableTransform, MapTransform, InvertibleTransform, LazyTransform):
    """Move a volume or image, and its labels with it, through one resample.

    All parts are composed before anything is read: the output voxel is displaced by a cubic
    B-spline, scaled, sheared, rotated, mirrored and shifted in millimetres along the array's own
    axes, and each key is read once at the resulting place, already cropped or padded to
    ``spatial_size``. The displacement is bounded so that it cannot fold
    (Choi & Lee 2000, Graphical Models 62(6):411). Without a rotation, scale or elastic draw, whole
    voxels are copied unchanged. In a lazy ``Compose`` the pending steps before it (orientation,
    spacing, crops of MONAI or ours) join the same resample.

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
        mode: ``bilinear``, ``cubic``, ``nearest`` (every class that stays in the image keeps at
            least one voxel) or ``onehot`` (labels with smooth borders), one or one per key; None
            reads ``label_keys`` and integers by ``nearest``, everything else by ``bilinear``.
        padding_mode: ``zeros``, ``border``, ``reflection`` or ``min``, one or one per key; labels
            take ``zeros`` for ``min``.
        spatial_size: Shape of the output; 0 or -1 keeps the input's size on that axis.
        random_center: Whether a crop smaller than the input lies anywhere or in the middle.
        foreground_key: Label map whose non-zero voxels may centre the crop.
        foreground_prob: Probability of such a crop.
        foreground_values: Label values that count as foreground; of those present one is drawn
            first, so that a small structure centres as many crops as a large one. None takes
            every voxel that is not 0 alike.
        label_keys: Keys that hold label maps.
        body_part: Row of ``medvol.core.anatomy`` that states which mirrors and angles are legal.
        labels: Label names, or value to name; a lateral name rejects the left-right mirror.
        swap_labels: Pairs of label values that trade places when left and right are mirrored;
            makes the mirror legal for lateral labels that are all paired.
        allow_missing_keys: Skip keys that are absent.

    Raises:
        PolicyError: If the anatomy or a label rejects a mirror or an angle.
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
        foreground_values: Sequence[int] | None = None,
        label_keys: Sequence[str] = LABEL_KEYS,
        body_part: str | None = None,
        labels: Sequence[str] | Mapping[Any, str] = (),
        swap_labels: Sequence[tuple[int, int]] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        LazyTransform.__init__(self, lazy=False)
        if flip_axes and body_part is None:
            raise PolicyError(
                f"flip_axes {list(flip_axes)} need body_part, so that the anatomy can be asked"
            )
        for axis in flip_axes:
            check_mirror(str(body_part), axis, labels, swap_labels)
        tilt_deg = anatomy_rule(body_part).max_rotation_deg / 2 if body_part else 0.0
        low_high = _low_high(elastic_magnitude_mm) if elastic else (0.0, 0.0)
        self.ranges = SpatialRanges(
            check_rotation(body_part, rotate_range), scale_range, float(shear_range),
            translate_range_mm, tuple(flip_axes), flip_prob, tilt_deg,
            low_high, float(elastic_spacing_mm), elastic_prob if elastic else 0.0,
        )  # fmt: skip
        self.mode = _per_key(mode, self.keys, "mode")
        self.padding_mode = _per_key(padding_mode, self.keys, "padding_mode")
        self.spatial_size = spatial_size
        self.random_center = random_center
        self.foreground_key = foreground_key
        self.foreground_prob = foreground_prob
        self.foreground_values = None if foreground_values is None else tuple(foreground_values)
        self.label_keys = tuple(label_keys)
        self.swap_labels = tuple((int(a), int(b)) for a, b in swap_labels)
        for each_mode, each_padding in zip(self.mode, self.padding_mode, strict=True):
            check_mode(each_mode or "nearest", each_padding or "zeros")

    def randomize(self, data: Any = None) -> None:
        """Draw whether this call moves the image."""
        super().randomize(data)

    def __call__(
        self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None
    ) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with every key resampled through one drawn map."""
        del lazy  # pending steps are joined whenever there are any
        out = dict(data)
        first = self.first_key(out)
        if first == ():
            return out
        self.randomize()
        images = {key: _PendingSample(out[key]) for key in self.key_iterator(out)}
        shape = images[first].shape
        warp, mirrored = self._draw(images[first], out)
        readers: dict[bytes, Resampler] = {}
        for key, mode, padding in self.key_iterator(out, self.mode, self.padding_mode):
            image = images[key]
            if image.shape != shape:
                raise GridMismatchError(
                    f"{key!r} has spatial shape {image.shape} but {first!r} has {shape}; "
                    "resample them onto one grid before RandSpatiald"
                )
            whole = image.after(warp)
            read = readers.setdefault(whole.matrix.tobytes(), Resampler(whole))
            how = self._how(key, image.array, mode, padding)
            moved = read(image.array, *how)
            is_sampled = how[0] == "nearest" and whole.whole_voxels is None
            if is_sampled and moved.device.type == "cpu" and len(moved) == 1:
                restore_lost(image.array, moved, whole)
            swaps = self.swap_labels if mirrored and key in self.label_keys else ()
            out[key] = self._record(image, swap_labels(moved, swaps), warp, (*how, swaps))
        return out

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Bring every key back onto the grid that the recorded map came from."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self._invert(out[key], self.pop_transform(out[key]))
        return out

    def _draw(self, image: _PendingSample, data: Mapping[Hashable, Any]) -> tuple[Warp, bool]:
        out_shape = output_size(self.spatial_size, image.shape)
        start = self._draw_start(image, out_shape, data)
        if not self._do_transform:
            matrix = np.eye(image.ndim + 1)
            matrix[:-1, -1] = start
            return Warp(matrix, image.shape, out_shape), False
        return self.ranges.draw(self.R, start, image.shape, out_shape, image.affine)

    def _draw_start(
        self, image: _PendingSample, out_shape: tuple[int, ...], data: Mapping[Hashable, Any]
    ) -> list[int]:
        spare = [size - length for size, length in zip(image.shape, out_shape, strict=True)]
        middle = [value // 2 for value in spare]
        if max(spare) <= 0 or not self.random_center:
            return middle
        if self.foreground_key in data and self.R.rand() < self.foreground_prob:
            label = _PendingSample(data[self.foreground_key])
            values = label.array[0].cpu().numpy()
            found = self._foreground(values)
            if found.size:
                voxel = np.unravel_index(found[self.R.randint(found.size)], values.shape)
                place = np.linalg.solve(label.matrix, np.append(voxel, 1.0))[:-1]
                middle = [
                    round(p) - length // 2 for p, length in zip(place, out_shape, strict=True)
                ]
                return [
                    min(max(m, 0), r) if r > 0 else r // 2
                    for m, r in zip(middle, spare, strict=True)
                ]
        return [
            int(self.R.randint(r + 1)) if r > 0 else m for r, m in zip(spare, middle, strict=True)
        ]

    def _foreground(self, values: NDArray[Any]) -> NDArray[np.intp]:
        if self.foreground_values is None:
            return np.flatnonzero(values)
        present = [v for v in self.foreground_values if bool((values == v).any())]
        if not present:
            return np.zeros(0, np.intp)
        return np.flatnonzero(values == present[self.R.randint(len(present))])

    def _how(
        self, key: Hashable, image: torch.Tensor, mode: str | None, padding: str
    ) -> tuple[str, str]:
        is_label = key in self.label_keys or not image.dtype.is_floating_point
        mode = mode or ("nearest" if is_label else "bilinear")
        return mode, "zeros" if padding == "min" and mode in ("nearest", "onehot") else padding

    def _record(
        self, image: _PendingSample, out: torch.Tensor, warp: Warp, how: tuple[str, str, Any]
    ) -> torch.Tensor:
        """What ``track_transform_meta`` writes, without its conversions between array types."""
        moved = out.as_subclass(MetaTensor).copy_meta_from(image.meta)
        matrix = warp.matrix
        if len(matrix) != len(image.affine):
            matrix = to_affine_nd(len(image.affine) - 1, matrix)
        moved.meta[MetaKeys.AFFINE] = torch.from_numpy(image.affine @ np.asarray(matrix))
        if MetaKeys.PIXDIM in moved.meta:
            spacing = np.linalg.norm(np.asarray(moved.meta[MetaKeys.AFFINE])[:-1, :-1], axis=0)
            moved.meta[MetaKeys.PIXDIM][1 : 1 + len(spacing)] = spacing
        info = {**self.get_transform_info(), TraceKeys.DO_TRANSFORM: True}
        if not (get_track_meta() and info[TraceKeys.TRACING]):
            return moved
        record = {
            "mode": how[0], "padding_mode": how[1], "swaps": [list(pair) for pair in how[2]],
            "matrix": warp.matrix.tolist(), "control": warp.control,
            "step": list(warp.step), "out_shape": list(warp.out_shape),
        }  # fmt: skip
        info |= {TraceKeys.ORIG_SIZE: warp.in_shape, TraceKeys.LAZY: False}
        moved.push_applied_operation({**info, TraceKeys.EXTRA_INFO: record})
        return moved

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
        out = MetaTensor(swap_labels(out, record["swaps"]))
        if isinstance(image, MetaTensor):
            out.copy_meta_from(image)
            n = image.affine.shape[-1] - 1
            matrix = to_affine_nd(n, torch.from_numpy(warp.matrix))
            out.affine = image.affine @ torch.linalg.inv(matrix).to(image.affine)
        return out


class _PendingSample:
    """An image, and the spatial steps that a lazy chain has promised but not done.

    Attributes:
        array: The voxels as they are, (C, ...).
        meta: A view of the image whose metadata is that after the promised steps.
        matrix: Homogeneous map from promised to present index.
        shape: Promised spatial shape.
        affine: Promised index to RAS millimetres.
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.array = _plain(image)
        self.meta = image if isinstance(image, MetaTensor) else MetaTensor(self.array)
        self.ndim = self.array.ndim - 1
        self.matrix = np.eye(self.ndim + 1)
        self.shape = tuple(int(v) for v in self.array.shape[1:])
        self.is_promised = isinstance(image, MetaTensor) and bool(image.pending_operations)
        if self.is_promised and isinstance(image, MetaTensor):
            self.meta = MetaTensor(self.array).copy_meta_from(image)
            self._promise(image)
        # the property makes a default on every access, whether it is needed or not
        affine = self.meta.meta.get(MetaKeys.AFFINE)
        self.affine = np.asarray(self.meta.affine if affine is None else affine, np.float64)

    def _promise(self, image: MetaTensor) -> None:
        for step in image.pending_operations:
            self.matrix = self.matrix @ np.asarray(to_affine_nd(self.ndim, step[LazyAttr.AFFINE]))
        self.shape = tuple(int(v) for v in image.peek_pending_shape())
        self.meta.affine = image.peek_pending_affine()
        self.meta.clear_pending_operations()
        for step in image.pending_operations:
            self.meta.push_applied_operation(step)

    def after(self, warp: Warp) -> Warp:
        """The map from the present voxels: the promised steps, then ``warp``."""
        if not self.is_promised:
            return warp
        matrix = self.matrix @ warp.matrix
        present = tuple(int(v) for v in self.array.shape[1:])
        return Warp(_tidy(matrix), present, warp.out_shape, warp.control, warp.step)


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


def _tidy(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Entries within rounding of an integer, made exact, so that whole voxels are recognised."""
    near = np.round(matrix)
    return near if np.abs(matrix - near).max() < 1e-9 else matrix


def output_size(asked: Sequence[int] | int | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The requested spatial size, where 0, -1 and None keep the input's."""
    if asked is None:
        return shape
    sizes = [asked] * len(shape) if isinstance(asked, int) else list(asked)
    if len(sizes) != len(shape):
        raise ConfigError(f"spatial_size {sizes} does not fit an image of shape {shape}")
    return tuple(int(a) if a > 0 else s for a, s in zip(sizes, shape, strict=True))


def _low_high(bound: Range) -> tuple[float, float]:
    low, high = (0.0, float(bound)) if isinstance(bound, (int, float)) else map(float, bound)
    return low, high


def _per_key(value: Any, keys: Sequence[Hashable], name: str) -> tuple[Any, ...]:
    values = (value,) * len(keys) if value is None or isinstance(value, str) else tuple(value)
    if len(values) != len(keys):
        raise ConfigError(f"{name} has {len(values)} entries for {len(keys)} keys")
    return values


def swap_labels(image: torch.Tensor, pairs: Sequence[Sequence[int]]) -> torch.Tensor:
    """Exchange pairs of label values."""
    out = image.clone() if pairs else image
    for a, b in pairs:
        out[image == a], out[image == b] = b, a
    return out
