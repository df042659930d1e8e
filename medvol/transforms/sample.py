"""Read volumes through a map: linear, nearest, cubic spline, or class by class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d
from torch.nn.functional import grid_sample

from medvol.core import ConfigError
from medvol.transforms.grid import Warp, find_output, partial_coordinates, sampling_grid
from medvol.transforms.kernel import is_available, warp_volume
from medvol.transforms.separable import apply_matrices

Mode = Literal["bilinear", "nearest", "cubic", "onehot"]
Padding = Literal["zeros", "border", "reflection", "min"]
MODES: tuple[str, ...] = get_args(Mode)
PADDINGS: tuple[str, ...] = get_args(Padding)


def check_mode(mode: str, padding: str) -> None:
    """Reject a mode or padding that does not exist, or a pair that has no meaning.

    Raises:
        ConfigError: Naming the choices.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; choose from {', '.join(MODES)}")
    if padding not in PADDINGS:
        raise ConfigError(f"padding_mode {padding!r} is unknown; choose from {', '.join(PADDINGS)}")
    if mode == "cubic" and padding == "reflection":
        raise ConfigError("mode 'cubic' knows padding_mode zeros, border and min, not reflection")


class Resampler:
    """Reads any number of channel-first volumes through one map.

    What the volumes share (the sampling grid of a device, the numba path's coordinates) is made
    when first needed and kept.

    Args:
        warp: The map; a crop or mirror of whole voxels copies them unchanged.
        use_kernel: Whether the numba path may be used where it is installed.
    """

    def __init__(self, warp: Warp, *, use_kernel: bool = True) -> None:
        self.warp = warp
        self._use_kernel = use_kernel and is_available()
        self._grids: dict[torch.device, torch.Tensor] = {}
        self._coordinates: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def __call__(self, volume: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
        """Resample one volume.

        Args:
            volume: Shape (C, *warp.in_shape).
            mode: ``bilinear`` (linear in any dimension), ``nearest``, ``cubic`` (the interpolating
                cubic B-spline) or ``onehot`` (every class's mask linearly, the largest wins).
            padding: What lies outside: ``zeros``, ``border`` (the edge repeated), ``reflection``,
                or ``min``, the volume's own smallest value.

        Returns:
            Shape (C, *warp.out_shape), the dtype of ``volume``; integers are rounded.
        """
        whole = self.warp.whole_voxels
        if whole is not None and (padding in ("zeros", "min") or _is_inside(self.warp, whole[0])):
            fill = float(volume.min()) if padding == "min" else 0.0
            out = crop_pad(volume, whole[0], self.warp.out_shape, fill)
            return out.flip([axis + 1 for axis in whole[1]]) if whole[1] else out
        if padding == "min":
            fill = volume.min()
            return self(volume - fill, mode, "zeros") + fill
        if mode == "onehot":
            return self._by_class(volume, padding)
        if mode == "cubic":
            return _to_dtype(sample_cubic(volume, self.grid(volume.device), padding), volume.dtype)
        exact = mode == "nearest" or volume.dtype == torch.float32
        kernel_pads = padding in ("zeros", "border")
        if self._use_kernel and exact and kernel_pads and volume.device.type == "cpu":
            return self._by_kernel(volume, mode, padding == "border")
        return sample(volume, self.grid(volume.device), mode, padding)

    def grid(self, device: torch.device) -> torch.Tensor:
        """The map's sampling grid on a device."""
        if device not in self._grids:
            self._grids[device] = sampling_grid(self.warp, device)
        return self._grids[device]

    def _by_class(self, volume: torch.Tensor, padding: str) -> torch.Tensor:
        """Label maps with smooth borders: linear weight of every class, one class at a time."""
        out = volume.new_zeros((volume.shape[0], *self.warp.out_shape))
        best = torch.full(out.shape, -1.0, device=out.device)
        for value in sorted({0.0, *volume.unique().tolist()}):
            is_outside = value == 0 and padding == "zeros"
            mask = (volume == value).to(torch.float32) - float(is_outside)
            weight = self(mask, "bilinear", padding) + float(is_outside)
            wins = weight > best
            out[wins] = value
            best = torch.where(wins, weight, best)
        return out

    def _by_kernel(self, volume: torch.Tensor, mode: str, is_border: bool) -> torch.Tensor:
        if self._coordinates is None:
            self._coordinates = partial_coordinates(self.warp)
        basis, rows = self._coordinates
        source = volume.detach().contiguous().numpy()
        if source.ndim == 4:
            return torch.from_numpy(warp_volume(source, rows, basis, mode, is_border))
        # an image is a volume of one slab, whose place is known
        places = np.tensordot(basis, rows, 1)[None]
        places = np.concatenate([np.zeros_like(places[:, :, :1]), places], axis=2)
        whole = np.ones((1, 1), np.float32)
        return torch.from_numpy(warp_volume(source[:, None], places, whole, mode, is_border)[:, 0])


def sample(volume: torch.Tensor, grid: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
    """Resample a channel-first volume, or a batch of them, at grids (B, *out_shape, n)."""
    is_batch = volume.ndim == grid.ndim
    if padding == "min":  # each item's own: what is air in one scan may be tissue in another
        axes = tuple(range(int(is_batch), volume.ndim))
        fill = volume.amin(axes, keepdim=True)
        return sample(volume - fill, grid, mode, "zeros") + fill
    source = volume.to(torch.float32) if is_batch else volume.to(torch.float32)[None]
    out = grid_sample(source, grid, mode=mode, padding_mode=padding, align_corners=False)
    return _to_dtype(out if is_batch else out[0], volume.dtype)


def sample_cubic(volume: torch.Tensor, grid: torch.Tensor, padding: str) -> torch.Tensor:
    """Cubic B-spline interpolation of one volume as 2^n linear lookups, float32.

    Source:
        Sigg & Hadwiger 2005, GPU Gems 2, chapter 20; coefficients mirrored at the edge centres.
    """
    sizes = volume.shape[1:]
    coefficients = apply_matrices(
        volume, [_prefilter(size) if size > 1 else None for size in sizes]
    )
    places = [((grid[..., -1 - a] + 1) * size - 1) / 2 for a, size in enumerate(sizes)]
    is_inside = torch.ones_like(places[0], dtype=torch.bool)
    for axis, size in enumerate(sizes):
        if padding == "zeros":
            is_inside &= (places[axis] >= -0.5) & (places[axis] <= size - 0.5)
        places[axis] = places[axis].clamp(0, size - 1)
        coefficients = _mirror_two(coefficients, axis + 1)
    pairs = [_linear_pairs(place + 2, size + 4) for place, size in zip(places, sizes, strict=True)]
    out = torch.zeros((volume.shape[0], *grid.shape[1:-1]), device=volume.device)
    for choice in product((0, 1), repeat=len(sizes)):
        weight = torch.ones_like(places[0])
        for axis, which in enumerate(choice):
            weight = weight * pairs[axis][which][1]
        at = torch.stack([pairs[a][w][0] for a, w in reversed(list(enumerate(choice)))], dim=-1)
        out += weight * grid_sample(coefficients[None], at, align_corners=False)[0]
    return out * is_inside


def crop_pad(
    volume: torch.Tensor, start: Sequence[int], size: Sequence[int], fill: float
) -> torch.Tensor:
    """Copy a box of whole voxels, filling what lies outside the volume."""
    source, target = [slice(None)], [slice(None)]
    for first, length, extent in zip(start, size, volume.shape[1:], strict=True):
        low, high = max(first, 0), min(first + length, extent)
        source.append(slice(low, max(high, low)))
        target.append(slice(low - first, max(high, low) - first))
    inside = volume[tuple(source)]
    if tuple(inside.shape[1:]) == tuple(size):
        return inside.clone()
    out = volume.new_full((volume.shape[0], *size), fill)
    if inside.numel():
        out[tuple(target)] = inside
    return out


def restore_lost(label: torch.Tensor, out: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Put back, as one voxel, every class that fell between the samples of ``nearest``.

    Args:
        label: Label map before, shape (1, *warp.in_shape).
        out: Label map after; changed in place.
        warp: The map between them.
    """
    before, after = label[0].numpy(), out[0].numpy()
    for value in sorted(_present(before) - _present(after) - {0}):
        places = np.argwhere(before == value)
        middle = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
        target = find_output(warp, middle)
        if target is not None:
            after[target] = value
    return out


def _present(label: NDArray[Any]) -> set[int]:
    flat = label.ravel()
    starts = flat[1:][
        flat[1:] != flat[:-1]
    ]  # label maps are long runs: few values are left to sort
    return {*np.unique(starts).tolist(), *flat[:1].tolist()}


def _prefilter(size: int) -> NDArray[np.floating]:
    matrix = spline_filter1d(np.eye(size), 3, 0, mode="mirror")
    matrix[np.abs(matrix) < 1e-9] = 0.0
    return matrix


def _mirror_two(volume: torch.Tensor, axis: int) -> torch.Tensor:
    """Two more voxels on both sides, mirrored about the edge centres."""
    moved = volume.movedim(axis, -1)
    size = moved.shape[-1]
    period = max(2 * (size - 1), 1)
    index = torch.arange(-2, size + 2).abs() % period
    index = torch.where(index >= size, period - index, index).to(volume.device)
    return moved.index_select(-1, index).movedim(-1, axis).contiguous()


def _linear_pairs(place: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two (normalised place, weight) lookups that equal four cubic B-spline taps."""
    first = place.floor()
    u = place - first
    w0, w1 = (1 - u) ** 3 / 6, (3 * u**3 - 6 * u**2 + 4) / 6
    w3 = u**3 / 6
    w2 = 1 - w0 - w1 - w3
    low, high = w0 + w1, w2 + w3
    at = (first - 1 + w1 / low, first + 1 + w3 / high)
    return [((2 * p + 1) / size - 1, w) for p, w in zip(at, (low, high), strict=True)]


def _is_inside(warp: Warp, start: Sequence[int]) -> bool:
    pairs = zip(start, warp.out_shape, warp.in_shape, strict=True)
    return all(first >= 0 and first + size <= extent for first, size, extent in pairs)


def _to_dtype(out: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float32:
        return out
    if not dtype.is_floating_point:
        out = out.round_()
    if not dtype.is_floating_point and dtype != torch.bool:
        limits = torch.iinfo(dtype)  # a spline overshoots at edges
        out = out.clamp_(limits.min, limits.max)
    return out.to(dtype)
