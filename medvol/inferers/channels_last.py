"""Volumes whose channels lie together in memory, and the norms that PyTorch is slow at there.

oneDNN convolves such volumes in half the time, mostly because nothing is copied into its own
layout and back; PyTorch's instance and group norms take away what that gains, so that they are
matrix products here: a volume is a matrix with a row per voxel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

#: Voxels of a window from which the layout pays.
WORTH_VOXELS = 16**3
_ROWS = 2**13


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether the channels of (B, C, X, Y, Z) lie together, and not only because there is one."""
    return (
        x.ndim == 5
        and x.shape[1] > 1
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last_3d)
    )


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same values with channels together; a single channel is only restrided."""
    if x.shape[1] == 1 and x.is_contiguous():
        _, _, a, b, c = x.shape
        return x.as_strided(x.shape, (a * b * c, 1, b * c, c, 1))
    return x.contiguous(memory_format=torch.channels_last_3d)


def channels_first(x: torch.Tensor) -> torch.Tensor:
    """The same values with each channel's volume together, copied by blocks that fit a cache."""
    if not is_channels_last(x):
        return x
    out = x.new_empty(x.shape)
    for rows, planes in zip(map(_rows, x), out.flatten(2), strict=True):
        for first in range(0, len(rows), _ROWS):
            planes[:, first : first + _ROWS].copy_(rows[first : first + _ROWS].t())
    return out


def instance_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``torch.nn.functional.instance_norm`` of a volume whose channels lie together."""
    if running_mean is not None or not use_input_stats or x.dtype != torch.float32:
        return F.instance_norm(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    return _normed(x, x.shape[1], weight, bias, eps)


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``torch.nn.functional.group_norm`` of a volume whose channels lie together."""
    if x.dtype != torch.float32:
        return F.group_norm(x, num_groups, weight, bias, eps)
    return _normed(x, num_groups, weight, bias, eps)


def _normed(x: torch.Tensor, groups: int, weight: Any, bias: Any, eps: float) -> torch.Tensor:
    out = torch.empty_like(x)  # keeps the layout
    for rows, result in zip(map(_rows, x), map(_rows, out), strict=True):
        channel_mean = _mean(rows)
        torch.sub(rows, channel_mean.float(), out=result)
        apart, square = channel_mean - channel_mean.float(), _mean_square(result)
        channel_var = square - apart**2
        mean = channel_mean.view(groups, -1).mean(1, keepdim=True)
        between = (channel_mean.view(groups, -1) - mean) ** 2
        var = (channel_var.view(groups, -1) + between).mean(1, keepdim=True)
        scale = (var + eps).rsqrt().expand(groups, len(channel_mean) // groups).reshape(-1)
        shift = (channel_mean.float() - mean.expand_as(between).reshape(-1)) * scale
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        shift = shift if bias is None else shift + bias
        result.mul_(scale.float())
        if bias is not None or groups < len(channel_mean):
            result.add_(shift.float())
    return out


def _rows(volume: torch.Tensor) -> torch.Tensor:
    """(C, X, Y, Z) with channels together as a matrix with a row per voxel, not copied."""
    return volume.permute(1, 2, 3, 0).view(-1, volume.shape[0])


def _mean(rows: torch.Tensor) -> torch.Tensor:
    """Mean of each column in float64, of float32 sums over short blocks."""
    parts = [rows.new_ones(len(part)) @ part for part in rows.split(_ROWS)]
    return torch.stack(parts).double().sum(0) / len(rows)


def _mean_square(rows: torch.Tensor) -> torch.Tensor:
    parts = [torch.diagonal(part.T @ part) for part in rows.split(_ROWS)]
    return torch.stack(parts).double().sum(0) / len(rows)
