"""Networks to choose from, as values for their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medvol.core.errors import ConfigError
from medvol.networks import pooling_plan
from medvol.planning.request import Request

_WIDE_FROM_S = 3600.0
_MOST_FILTERS = {2: 512, 3: 320}
_SWIN_FACTOR = 32
_SEGRESNET_FACTOR = 8


@dataclass(frozen=True)
class Design:
    """One network for one patch.

    Attributes:
        part: Its part in ``configs/parts/segmentation/network``.
        roi_size: The patch, rounded to what it takes.
        values: Values that the part needs, with their reasons.
        why: Reason of the choice.
    """

    part: str
    roi_size: tuple[int, ...]
    values: dict[str, tuple[Any, str]] = field(default_factory=dict)
    why: str = ""


def choose_design(request: Request, patch: Sequence[int], spacing_mm: Sequence[float]) -> Design:
    """The network that was asked for; on auto what suits the device.

    Args:
        request: Device, budget and network.
        patch: Patch wanted.
        spacing_mm: Target spacing.

    Raises:
        ConfigError: If the patch is too small for the network that was asked for.
    """
    kind, is_tiny = request.network, len(pooling_plan(patch, spacing_mm).strides) < 2
    if kind == "auto":
        kind = "folded" if request.device == "cpu" or is_tiny else "residual"
    if kind in ("plain", "residual") and is_tiny:
        size = " x ".join(str(int(n)) for n in patch)
        raise ConfigError(f"a patch of {size} voxels is too small to be halved; "
                          "plan with --network folded")  # fmt: skip
    makers = {"folded": _folded, "segresnet": _segresnet, "swin_unetr": _swin_unetr}
    if kind in makers:
        return makers[kind](request, patch)
    return _dynunet(patch, spacing_mm, is_residual=kind == "residual")


def folded_channels(request: Request, patch: Sequence[int]) -> list[int]:
    """Feature maps of the folded U-Net: wider for long budgets, deeper for large patches."""
    first = 48 if request.budget_s >= _WIDE_FROM_S else 32
    levels = 4 if min(sorted(patch)[-2:]) >= 64 else 3
    return [first * 2**level for level in range(levels)]


def _folded(request: Request, patch: Sequence[int]) -> Design:
    channels = folded_channels(request, patch)
    factor = 2 ** len(channels)
    values = {
        "channels": (channels, "half-resolution levels; wider from budgets of an hour"),
        "is_residual": (True, ""),
    }
    why = "voxels folded into channels: on a CPU several times the steps of full resolution"
    return Design("folded", _rounded(patch, factor), values, why)


def _dynunet(patch: Sequence[int], spacing_mm: Sequence[float], is_residual: bool) -> Design:
    plan = pooling_plan(patch, spacing_mm)
    levels = len(plan.strides)
    most = _MOST_FILTERS[len(patch)]
    values = {
        "kernels": ([list(k) for k in plan.kernels], "1 along axes that are still too coarse"),
        "strides": ([list(s) for s in plan.strides], "finest axes first, down to 4 voxels"),
        "upsample_kernels": ([list(s) for s in plan.strides[1:]], ""),
        "channels": ([min(32 * 2**level, most) for level in range(levels)], ""),
        "is_residual": (is_residual, ""),
        "is_deeply_supervised": (levels > 2, "lower levels learn with halving weights"),
        "supervised_levels": (max(1, min(levels - 2, 3)), ""),
    }
    kind = "residual" if is_residual else "plain"
    return Design("dynunet", plan.size, values, f"nnU-Net's U-Net, {kind}, full resolution")


def _segresnet(request: Request, patch: Sequence[int]) -> Design:
    values = {
        "first_channels": (16 if request.device == "cpu" else 32, ""),
        "blocks_down": ([1, 2, 2, 4], ""),
        "blocks_up": ([1, 1, 1], ""),
    }
    return Design("segresnet", _rounded(patch, _SEGRESNET_FACTOR), values, "as asked")


def _swin_unetr(request: Request, patch: Sequence[int]) -> Design:
    values = {
        "first_channels": (24 if request.device == "cpu" else 48, ""),
        "checkpoints_activations": (request.device == "cuda", "memory is dearer than time"),
    }
    return Design("swin_unetr", _rounded(patch, _SWIN_FACTOR), values, "as asked")


def _rounded(patch: Sequence[int], factor: int) -> tuple[int, ...]:
    """The nearest size that is a multiple of the factor; an edge below it is padded up to it."""
    size = tuple(max(1, math.floor(n / factor + 0.5)) * factor for n in patch)
    if math.prod(size) > factor ** len(size):
        return size
    return (2 * factor, *size[1:])  # a single voxel at the bottom cannot be normalised
