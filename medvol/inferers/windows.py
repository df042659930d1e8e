"""Where windows lie in an image, and how much each of their voxels counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval
from monai.utils.misc import ensure_tuple_rep, fall_back_tuple
from scipy.ndimage import gaussian_filter1d

from medvol.core.errors import ConfigError, InputError

Box = tuple[slice, ...]


@dataclass(frozen=True)
class WindowGrid:
    """The windows over one image, at the positions that MONAI chooses.

    Attributes:
        size: Spatial size of the image as given.
        roi: Window size, at most ``padded`` along each axis.
        padded: ``size`` enlarged to at least ``roi``.
        pad: Voxels added before and after each axis.
        starts: First voxel of each window, per axis, ascending.
    """

    size: tuple[int, ...]
    roi: tuple[int, ...]
    padded: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def over(
        cls,
        size: Sequence[int],
        roi_size: Sequence[int] | int,
        overlap: Sequence[float] | float,
        slack: float = 0.0,
        *,
        evenly_spaced: bool = False,
    ) -> WindowGrid:
        """Lay windows over an image of spatial ``size``.

        Args:
            size: Of the image.
            roi_size: Window; components that are not positive mean the image's own size. Two
                components over three axes are slices across the last axis, one voxel deep.
            overlap: Share of a window that its neighbour covers as well.
            slack: How much smaller that share may be along an axis where this saves a row of
                windows; they are then spaced evenly. 0 gives MONAI's positions.
            evenly_spaced: Space windows evenly along every axis, as nnU-Net does.

        Raises:
            InputError: If ``roi_size`` names another number of axes than the image has.
            ConfigError: If an overlap lies outside 0 <= overlap < 1, or less ``slack`` below 0.
        """
        size = tuple(int(n) for n in size)
        if is_sliced(roi_size, len(size)):
            plane = ensure_tuple_rep(overlap, 2)
            roi_size, overlap = (*roi_size, 1), (*plane, 0.0)  # pyright: ignore[reportGeneralTypeIssues]
        if not isinstance(roi_size, int) and len(roi_size) != len(size):
            raise InputError(
                f"the window {tuple(roi_size)} has {len(roi_size)} axes but the image "
                f"{size} has {len(size)}; inputs must be (batch, channel, axes...)"
            )
        roi = tuple(int(n) for n in fall_back_tuple(roi_size, size))
        shares = ensure_tuple_rep(overlap, len(size))
        if any(not 0 <= share < 1 for share in shares):
            raise ConfigError(f"overlap must be >= 0 and < 1, got {shares}")
        if not 0 <= slack <= min(shares[:2] if roi[-1] == 1 else shares):
            raise ConfigError(f"overlap_slack must be >= 0 and at most the overlap, got {slack}")
        padded = tuple(max(n, r) for n, r in zip(size, roi, strict=True))
        gaps = [p - n for p, n in zip(padded, size, strict=True)]
        pad = tuple((gap // 2, gap - gap // 2) for gap in gaps)
        steps = _get_scan_interval(padded, roi, len(size), shares)
        starts = tuple(
            tuple(int(box[0].start) for box in dense_patch_slices((n,), (r,), (step,)))
            for n, r, step in zip(padded, roi, steps, strict=True)
        )
        if slack or evenly_spaced:
            axes = zip(padded, roi, shares, strict=True)
            even = [_spread(length, edge, share - slack) for length, edge, share in axes]
            starts = tuple(
                new if evenly_spaced or len(new) < len(usual) else usual
                for new, usual in zip(even, starts, strict=True)
            )
        return cls(size, roi, padded, pad, starts)

    @property
    def is_padded(self) -> bool:
        """Whether the image is smaller than the window along some axis."""
        return self.padded != self.size

    @property
    def inner(self) -> Box:
        """Where the image lies inside the padded image."""
        return tuple(slice(lo, lo + n) for (lo, _), n in zip(self.pad, self.size, strict=True))

    def __len__(self) -> int:
        count = 1
        for positions in self.starts:
            count *= len(positions)
        return count

    def boxes(self, axis: int = 0) -> list[Box]:
        """Every window in layers along ``axis``; inside a layer the last axis is fastest."""
        corners = sorted(product(*self.starts), key=lambda corner: corner[axis])
        return [
            tuple(slice(s, s + r) for s, r in zip(corner, self.roi, strict=True))
            for corner in corners
        ]

    def pad_argument(self) -> list[int]:
        """The padding in the order of ``torch.nn.functional.pad``: last axis first."""
        return [edge for pair in reversed(self.pad) for edge in pair]

    @property
    def shallow_axis(self) -> int:
        """The axis across which a buffer one window deep is smallest; the first of equals."""
        volume = math.prod(self.padded)
        depth = [volume / n * r for n, r in zip(self.padded, self.roi, strict=True)]
        return depth.index(min(depth))


def is_sliced(roi_size: Sequence[int] | int, axes: int) -> bool:
    """Whether a window has two axes and the image three: slices for a 2D network."""
    return not isinstance(roi_size, int) and len(roi_size) == 2 and axes == 3


def _spread(length: int, roi: int, share: float) -> tuple[int, ...]:
    """Even positions of windows that overlap by at least ``share``."""
    gaps = math.ceil((length - roi) / max(1, int(roi * (1 - share))))
    return tuple(round(index * (length - roi) / max(1, gaps)) for index in range(gaps + 1))


@lru_cache(maxsize=4)
def importance_map(
    roi: tuple[int, ...],
    mode: str,
    sigma_scale: tuple[float, ...] | float,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """MONAI's weight map of one window, including its lower bound of 1e-3; kept between calls.

    The bound reaches 58% of a 96^3 Gaussian window, so that the map is not an outer product of
    three profiles. The mode ``nnunet`` gives nnU-Net's map instead, which has no such bound.

    Source:
        nnunetv2 2.8: compute_gaussian, with a value scaling factor of 10 and half precision.
    """
    with torch.inference_mode(mode=False):  # a kept inference tensor would reject later training
        if mode != "nnunet":
            return compute_importance_map(
                roi, mode=mode, sigma_scale=sigma_scale, device=device, dtype=dtype
            )
        weight = torch.full((1,) * len(roi), 10.0, dtype=torch.float64)
        for axis, (length, sigma) in enumerate(
            zip(roi, ensure_tuple_rep(sigma_scale, len(roi)), strict=True)
        ):
            spike = np.zeros(length)
            spike[length // 2] = 1
            profile = gaussian_filter1d(spike, length * sigma, mode="constant")
            shape = [length if a == axis else 1 for a in range(len(roi))]
            weight = weight * torch.from_numpy(profile / profile.max()).reshape(shape)
        half = weight.half()
        return half.clamp_min(float(half[half > 0].min())).to(device, dtype)
