"""Labels on the source grid, slab by slab: memory does not grow with classes times volume.

The usual way keeps every class's probability of the whole volume, twice: on the network's grid
and, for the inverse, on the source grid. Here windows run in the order of one axis; planes that
no later window touches are decided, resampled and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medvol.core.errors import ConfigError
from medvol.core.geometry import Geometry
from medvol.inferers.emptiness import fill_unseen, outside_values
from medvol.inferers.mirrors import Activation, probabilities
from medvol.inferers.stitching import WindowSource
from medvol.inferers.windows import Box, WindowGrid

#: Source voxels further outside the network's grid than this many of its voxels are background.
MAX_OUTSIDE_VOXELS = 1.0


@dataclass(frozen=True)
class Decision:
    """How class probabilities become one label.

    Attributes:
        activation: Turns blended network output into probabilities; None where windows already
            are probabilities (mirrors, ensembles).
        thresholds: Least probability per channel; without one the largest channel wins. A single
            channel is foreground from its threshold on, 0.5 by default.
    """

    activation: Activation | None = "softmax"
    thresholds: tuple[float, ...] | None = None

    def codes(self, values: torch.Tensor) -> torch.Tensor:
        """One number per voxel of blended outputs (C, ...); a mean of equal codes has their label.

        A mean of probabilities whose largest channel is the same everywhere has that largest
        channel too, so that only cells of unequal codes need interpolation.
        """
        if values.shape[0] > 1 and self.thresholds is None:
            return values.argmax(0).to(torch.uint8)
        probability = self.activate(values)
        if values.shape[0] == 1:
            return (probability[0] >= self._threshold(0)).to(torch.uint8)
        best, index = probability.max(0)
        return (2 * index + (best >= self._thresholds(best)[index])).to(torch.uint8)

    def labels_of_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """The label that each code stands for."""
        return torch.where(codes % 2 == 1, codes // 2, 0) if self._doubles else codes

    def labels(self, probability: torch.Tensor) -> torch.Tensor:
        """The label at probabilities (C, ...)."""
        if probability.shape[0] == 1:
            return (probability[0] >= self._threshold(0)).to(torch.uint8)
        best, index = probability.max(0)
        if self.thresholds is not None:
            index = torch.where(best >= self._thresholds(best)[index], index, 0)
        return index.to(torch.uint8)

    def activate(self, values: torch.Tensor) -> torch.Tensor:
        """Probabilities of blended outputs (C, ...)."""
        if self.activation is None:
            return values
        return probabilities(values[None], self.activation)[0]

    def check(self, channels: int) -> None:
        """Refuse what does not fit a network of so many output channels."""
        if channels > (127 if self._doubles else 255):
            raise ConfigError(f"{channels} classes do not fit an 8-bit label map")
        if self.thresholds is not None and len(self.thresholds) != channels:
            raise ConfigError(f"{len(self.thresholds)} thresholds for {channels} output channels")
        if channels == 1 and self.activation == "softmax":
            raise ConfigError("the softmax of a single channel is always 1; use sigmoid")

    @property
    def _doubles(self) -> bool:
        return self.thresholds is not None and len(self.thresholds) > 1

    def _threshold(self, channel: int) -> float:
        return self.thresholds[channel] if self.thresholds else 0.5

    def _thresholds(self, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.thresholds, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class _Taps:
    """Linear interpolation along one axis: two neighbours and the share of the second."""

    low: torch.Tensor
    high: torch.Tensor
    share: torch.Tensor
    inside: torch.Tensor


@dataclass(frozen=True)
class GridMap:
    """How a source grid lies in the network's grid, where their axes are parallel.

    Attributes:
        axes: For each network axis the source axis that runs along it.
        scale: Network voxels per source voxel, negative where the axes run against each other.
        offset: Network coordinate of source voxel 0.
        size: Shape of the source grid, in source order.
        network_size: Shape of the network's grid.
    """

    axes: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    size: tuple[int, int, int]
    network_size: tuple[int, int, int]

    @classmethod
    def between(cls, network: Geometry, source: Geometry) -> GridMap | None:
        """The map from ``source`` to ``network``, or None if their axes are not parallel."""
        step = np.linalg.inv(network.affine) @ source.affine
        axes = np.abs(step[:3, :3]).argmax(axis=1)
        scale = step[np.arange(3), axes]
        rest = step[:3, :3].copy()
        rest[np.arange(3), axes] = 0
        drift = np.abs(rest) @ np.asarray(source.shape)  # network voxels, over the whole volume
        if sorted(axes) != [0, 1, 2] or drift.max() > 1e-3:
            return None
        return cls(
            _three(int(a) for a in axes),
            _three(float(v) for v in scale),
            _three(float(v) for v in step[:3, 3]),
            _three(source.shape),
            _three(network.shape),
        )

    def taps(self, axis: int, device: torch.device | None = None) -> _Taps:
        """Where the source planes along network ``axis`` take their values from."""
        count, last = self.size[self.axes[axis]], self.network_size[axis] - 1
        at = torch.arange(count, dtype=torch.float64) * self.scale[axis] + self.offset[axis]
        nearest = at.round()  # a grid that only turns or crops hits voxel centres exactly
        at = torch.where((at - nearest).abs() < 1e-4, nearest, at)
        inside = (at > -MAX_OUTSIDE_VOXELS) & (at < last + MAX_OUTSIDE_VOXELS)
        at = at.clamp(0, last)
        low = at.floor().long()
        taps = (low, (low + 1).clamp(max=last), (at - low).float(), inside)
        return _Taps(*(part.to(device) for part in taps))


class SlabWriter:
    """Receives finished planes of the network's grid and fills a label map on the source grid."""

    def __init__(
        self,
        grid_map: GridMap,
        axis: int,
        decision: Decision,
        out: NDArray[np.uint8],
        device: torch.device | None = None,
    ) -> None:
        self.decision, self.map, self.axis = decision, grid_map, axis
        self.along = grid_map.taps(axis)
        self.across = [a for a in range(3) if a != axis]
        self.rows, self.columns = (grid_map.taps(a, device) for a in self.across)
        order = [grid_map.axes[axis], *(grid_map.axes[a] for a in self.across)]
        self.out = out.transpose(order)
        self.kept: _Planes | None = None

    def add(self, sums: torch.Tensor, share: torch.Tensor, first: int) -> None:
        """Take planes ``first`` on of weighted sums (C, n, Y, Z) and weights (n, Y, Z)."""
        self.decision.check(len(sums))
        fill_unseen(sums, share, outside_values(len(sums), self.decision.activation, sums))
        block = _Planes(sums.div_(share), self.decision.codes(sums), first)
        last = first + sums.shape[1]
        due = (self.along.high >= first) & (self.along.high < last)
        for plane in torch.nonzero(due)[:, 0].tolist():
            if self.along.inside[plane]:
                self.out[plane] = self._plane(block, plane).cpu().numpy()
        self.kept = block.tail()

    def _plane(self, block: _Planes, plane: int) -> torch.Tensor:
        low, high = int(self.along.low[plane]), int(self.along.high[plane])
        share = float(self.along.share[plane])
        near = [(self._values(block, low), 1 - share)]
        if share:
            near.append((self._values(block, high), share))
        codes = torch.stack([code for (_, code), _ in near])
        rows, columns = self.rows, self.columns
        picked = codes[0][rows.low][:, columns.low]
        mixed = _mixed(codes)[rows.low][:, columns.low]
        labels = self.decision.labels_of_codes(picked)
        at = torch.nonzero(mixed, as_tuple=True)
        if len(at[0]):
            labels[at] = self._interpolate(near, *at)
        labels[~rows.inside] = 0
        labels[:, ~columns.inside] = 0
        return labels

    def _interpolate(
        self, near: list[tuple[Any, float]], row: torch.Tensor, column: torch.Tensor
    ) -> torch.Tensor:
        rows, columns = self.rows, self.columns
        down, right = rows.share[row], columns.share[column]
        corners = (
            (rows.low, columns.low, (1 - down) * (1 - right)),
            (rows.low, columns.high, (1 - down) * right),
            (rows.high, columns.low, down * (1 - right)),
            (rows.high, columns.high, down * right),
        )
        total: torch.Tensor | float = 0.0
        for (values, _), share in near:
            width = values.shape[-1]
            flat = values.reshape(values.shape[0], -1)
            for r, c, weight in corners:
                probability = self.decision.activate(flat[:, r[row] * width + c[column]])
                total = total + probability * (weight * share)
        return self.decision.labels(torch.as_tensor(total))

    def _values(self, block: _Planes, plane: int) -> tuple[torch.Tensor, torch.Tensor]:
        if plane >= block.first:
            return block.at(plane)
        if self.kept is None:
            raise ConfigError(f"plane {plane} was dropped before it was used")
        return self.kept.at(plane)


@dataclass(frozen=True)
class _Planes:
    """Blended outputs of neighbouring planes, with their codes."""

    values: torch.Tensor
    codes: torch.Tensor
    first: int

    def at(self, plane: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = plane - self.first
        return self.values[:, index], self.codes[index]

    def tail(self) -> _Planes:
        last = self.values.shape[1] - 1
        return _Planes(
            self.values[:, last:].clone(),
            self.codes[last:].clone(),
            self.first + last,
        )


@dataclass
class LayerRun:
    """Predicts the windows of one layer, batch by batch."""

    source: WindowSource
    network: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    seen: bool = False

    def __call__(self, boxes: list[Box]) -> Iterator[tuple[Box, torch.Tensor]]:
        """Yield each window that holds something, and the very first one in any case."""
        places = [(0, box) for box in boxes]
        chosen = self.source.filled(places)
        if not chosen and not self.seen:
            chosen = places[:1]
        self.seen = True
        for some, out in self.source.predict(chosen, self.network, to=self.device):
            for (_, box), value in zip(some, out.to(self.device), strict=True):
                yield box, value


def slab_axis(grid: WindowGrid) -> int:
    """The axis whose rolling buffer, one window deep, is smallest; the first of equals."""
    volume = np.prod(grid.padded)
    depth = [volume / n * r for n, r in zip(grid.padded, grid.roi, strict=True)]
    return int(np.argmin(depth))


def stitch_slabs(
    grid: WindowGrid,
    weight: torch.Tensor,
    axis: int,
    predict: Callable[[list[Box]], Iterator[tuple[Box, torch.Tensor]]],
    receive: Callable[[torch.Tensor, torch.Tensor, int], None],
    *,
    skips: bool = False,
) -> None:
    """Blend windows layer by layer along ``axis`` and hand over planes as they are finished.

    Args:
        grid: The windows.
        weight: Weight of each voxel of a window.
        axis: Spatial axis along which layers run.
        predict: Yields (window, prediction (C, roi...)) for the windows of one layer.
        receive: Called with weighted sums (C, n, Y, Z), weights (n, Y, Z), both without padding
            and reusable by the caller, and the index of the first plane.
        skips: ``predict`` may leave windows out, though not the very first one; weights are then
            summed window by window and are 0 where none lay.
    """
    depth, starts = grid.roi[axis], grid.starts[axis]
    share_layer = _layer_share(grid, weight, axis)
    share = torch.zeros_like(share_layer)
    weight = weight.movedim(axis, 0)
    sums: torch.Tensor | None = None
    for index, start in enumerate(starts):
        for box, value in predict(_layer(grid, axis, start)):
            part = value.movedim(axis + 1, 1)
            if sums is None:
                sums = part.new_zeros((len(part), *share.shape), dtype=weight.dtype)
            place = tuple(s for a, s in enumerate(box) if a != axis)
            sums[(slice(None), slice(None), *place)].addcmul_(part.to(sums), weight)
            if skips:
                share[(slice(None), *place)].add_(weight)
        if not skips:
            share.add_(share_layer)
        done = (starts[index + 1] if index + 1 < len(starts) else start + depth) - start
        if sums is None:
            continue
        if ready := _finished(grid, axis, start, done):
            receive(sums[(slice(None), *ready[0])], share[ready[0]], ready[1])
        _shift(sums, 1, done)
        _shift(share, 0, done)


def _finished(grid: WindowGrid, axis: int, start: int, done: int) -> tuple[Box, int] | None:
    """Where in the buffer the image's finished planes lie, and the index of their first one."""
    inner = grid.inner
    low = max(start, inner[axis].start)
    high = min(start + done, inner[axis].stop)
    if low >= high:
        return None
    across = (s for a, s in enumerate(inner) if a != axis)
    return (slice(low - start, high - start), *across), low - inner[axis].start


def _layer(grid: WindowGrid, axis: int, start: int) -> list[Box]:
    return [box for box in grid.boxes() if box[axis].start == start]


def _layer_share(grid: WindowGrid, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """The weights of one layer of windows, (depth, Y, Z)."""
    starts = tuple((0,) if a == axis else s for a, s in enumerate(grid.starts))
    padded = tuple(grid.roi[a] if a == axis else n for a, n in enumerate(grid.padded))
    layer = WindowGrid(padded, grid.roi, padded, ((0, 0),) * len(padded), starts)
    return layer.weight_sum(weight).movedim(axis, 0).contiguous()


def _shift(buffer: torch.Tensor, dim: int, by: int) -> None:
    """Move planes towards the front by ``by`` and zero the rest, without a second buffer."""
    depth = buffer.shape[dim]
    for low in range(0, depth - by, by):
        count = min(by, depth - by - low)
        buffer.narrow(dim, low, count).copy_(buffer.narrow(dim, low + by, count))
    buffer.narrow(dim, depth - by, by).zero_()


def _mixed(codes: torch.Tensor) -> torch.Tensor:
    """Which cells (y, z) .. (y+1, z+1) of the planes (n, Y, Z) hold more than one code."""
    low, high = codes.amin(0), codes.amax(0)
    for dim in (0, 1):
        ahead = [*range(1, low.shape[dim]), low.shape[dim] - 1]
        index = torch.tensor(ahead, device=codes.device)
        low = torch.minimum(low, low.index_select(dim, index))
        high = torch.maximum(high, high.index_select(dim, index))
    return low != high


def _three(values: Any) -> Any:
    """Exactly three values as a tuple."""
    first, second, third = values if isinstance(values, Sequence) else tuple(values)
    return first, second, third
