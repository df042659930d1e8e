"""Read a volume at the points of a sampling grid: linear, nearest, cubic, class by class."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch.nn.functional import grid_sample

from medvol.core import ConfigError
from medvol.transforms.grid import Warp, sampling_grid

Mode = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "border", "reflection", "min"]
MODES: tuple[str, ...] = get_args(Mode)
PADDINGS: tuple[str, ...] = get_args(Padding)


def check_mode(mode: str, padding: str) -> None:
    """Refuse a mode or padding that does not exist.

    Raises:
        ConfigError: Naming the choices.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; choose from {', '.join(MODES)}")
    if padding not in PADDINGS:
        raise ConfigError(f"padding_mode {padding!r} is unknown; choose from {', '.join(PADDINGS)}")


def warp_tensor(
    volume: torch.Tensor,
    warp: Warp,
    mode: str,
    padding: str,
    grid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Resample one channel-first volume through a map.

    Args:
        volume: Shape (C, *warp.in_shape).
        warp: The map; a crop or mirror of whole voxels copies them unchanged.
        mode: ``bilinear`` (linear in any dimension) or ``nearest``.
        padding: What lies outside: ``zeros``, ``border`` (the edge repeated), ``reflection``,
            or ``min``, the volume's own smallest value.
        grid: The map's sampling grid, when several volumes share it.

    Returns:
        Shape (C, *warp.out_shape), the dtype of ``volume``; integers are rounded.
    """
    whole = warp.whole_voxels
    if whole is not None and (padding in ("zeros", "min") or _lies_inside(warp, whole[0])):
        fill = float(volume.min()) if padding == "min" else 0.0
        out = crop_pad(volume, whole[0], warp.out_shape, fill)
        return out.flip([axis + 1 for axis in whole[1]]) if whole[1] else out
    if grid is None:
        grid = sampling_grid(warp, volume.device)
    return sample(volume, grid, mode, padding)


def sample(volume: torch.Tensor, grid: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
    """Resample one channel-first volume at a grid of shape (1, *out_shape, n)."""
    source = volume if volume.dtype == torch.float32 else volume.to(torch.float32)
    fill = source.min() if padding == "min" else None
    if fill is not None:
        source, padding = source - fill, "zeros"
    out = grid_sample(source[None], grid, mode=mode, padding_mode=padding, align_corners=False)[0]
    if fill is not None:
        out += fill
    return _to_dtype(out, volume.dtype)


def crop_pad(
    volume: torch.Tensor, start: tuple[int, ...], size: tuple[int, ...], fill: float
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


def _lies_inside(warp: Warp, start: tuple[int, ...]) -> bool:
    pairs = zip(start, warp.out_shape, warp.in_shape, strict=True)
    return all(first >= 0 and first + size <= extent for first, size, extent in pairs)


def _to_dtype(out: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float32:
        return out
    if not dtype.is_floating_point:
        out = out.round_()
    return out.to(dtype)
