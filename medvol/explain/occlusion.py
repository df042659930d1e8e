"""Occlusion: how far the class score falls when a part of the input is hidden."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medvol.core import ConfigError
from medvol.explain.cam import Explainer, plain_input
from medvol.explain.capture import ClassIndex, class_indices, class_scores, pick_scores, undisturbed


class Occlusion(Explainer):
    """Mean fall of the class score over all windows that hide a voxel.

    Args:
        network: Any network with output (B, classes).
        window: Edge of the hidden box in voxels, one number or one per axis.
        stride: Step between boxes; half the window by default. The last box of each axis is
            moved inward so that every voxel is hidden at least once.
        fill: What hidden voxels become; None is each item's and channel's own mean.
        batch_size: Boxes per forward pass.

    Source:
        Zeiler & Fergus 2014, ECCV, doi:10.1007/978-3-319-10590-1_53.
    """

    def __init__(
        self,
        network: nn.Module,
        window: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        *,
        fill: float | None = None,
        batch_size: int = 8,
    ) -> None:
        self.network, self.fill, self.batch_size = network, fill, batch_size
        self.window, self.stride = window, stride

    def falls(self, x: Tensor, class_index: ClassIndex = None) -> Tensor:
        """Signed mean fall per voxel, shape (B, 1, ...); negative where hiding helps the class."""
        x = plain_input(x)
        with undisturbed(self.network):
            scores = class_scores(self.network(x))
            chosen = class_indices(scores, class_index)
            whole = pick_scores(scores, chosen)
            items = zip(x, whole, chosen.tolist(), strict=True)
            return torch.stack([self._falls(*item) for item in items])

    def raw_maps(self, x: Tensor, class_index: ClassIndex = None) -> dict[str, Tensor]:
        """The positive falls, on the input's own grid."""
        return {"input": torch.relu(self.falls(x, class_index))}

    def _falls(self, x: Tensor, whole: Tensor, chosen: int) -> Tensor:
        total = torch.zeros((1, *x.shape[1:]), dtype=x.dtype, device=x.device)
        count = torch.zeros_like(total)
        fill = x.mean(tuple(range(1, x.ndim)), keepdim=True)
        if self.fill is not None:
            fill = torch.full_like(fill, self.fill)
        boxes = list(itertools.product(*self._slices(x.shape[1:])))
        for start in range(0, len(boxes), self.batch_size):
            part = boxes[start : start + self.batch_size]
            hidden = x[None].repeat(len(part), *[1] * x.ndim)
            for item, box in zip(hidden, part, strict=True):
                item[(slice(None), *box)] = fill
            falls = whole - class_scores(self.network(hidden))[:, chosen]
            for fall, box in zip(falls, part, strict=True):
                total[(0, *box)] += fall
                count[(0, *box)] += 1
        return total / count

    def _slices(self, size: Sequence[int]) -> list[list[slice]]:
        windows = _per_axis(self.window, size, "window")
        strides = _per_axis(self.stride or [max(1, w // 2) for w in windows], size, "stride")
        axes = []
        for n, window, stride in zip(size, windows, strides, strict=True):
            width = min(window, n)
            starts = sorted({*range(0, n - width + 1, min(stride, width)), n - width})
            axes.append([slice(s, s + width) for s in starts])
        return axes


def _per_axis(value: int | Sequence[int], size: Sequence[int], what: str) -> list[int]:
    values = [value] * len(size) if isinstance(value, int) else list(value)
    if len(values) != len(size) or min(values) < 1:
        raise ConfigError(f"{what} {value} must be positive, one number or {len(size)}")
    return values
