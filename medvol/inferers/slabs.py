"""Labels on the source grid, slab by slab: memory does not grow with classes times volume.

The usual way keeps every class's probability of the whole volume, twice: on the network's grid
and, for the inverse, on the source grid. Here windows run in the order of one axis; planes that
no later window touches are decided, resampled and dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medvol.core.errors import ConfigError
from medvol.core.geometry import Geometry
from medvol.inferers.channels_last import channels_first
from medvol.inferers.emptiness import fill_unseen, outside_values
from medvol.inferers.stitching import WindowSource
from medvol.inferers.windows import Box, WindowGrid
from medvol.networks.ensemble import Activation, probabilities
from medvol.transforms.separable import axis_matrix

Band = tuple[int, int, int, torch.Tensor]
_BAND = 32
_SAME_PLACE = 1e-3


@dataclass(frozen=True)
class Decision:
    """How class probabilities become one label.

    Attributes:
        activation: Turns blended network output into probabilities; None where windows already
            are probabilities (mirrors, ensembles).
        thresholds: Least probability per channel, below which the winner becomes background; one
            number serves all channels. None: the largest channel wins, whatever its probability;
            a single channel then needs 0.5.
        values: Label of each channel; default 0, 1, ... or 1 for a single channel.
    """

    activation: Activation | None = "softmax"
    thresholds: tuple[float, ...] | None = None
    values: tuple[int, ...] | None = None

    def labels(self, probability: torch.Tensor) -> torch.Tensor:
        """The label, 8-bit, at probabilities (C, ...)."""
        channels = len(probability)
        default = (1,) if channels == 1 else tuple(range(channels))
        table = torch.tensor(self.values or default, dtype=torch.uint8, device=probability.device)
        if self.thresholds is None and channels > 1:
            index = probability.argmax(0)
            return index.to(torch.uint8) if self.values is None else table[index]
        best, index = probability.max(0)
        least = torch.tensor(self.thresholds or (0.5,), dtype=best.dtype, device=best.device)
        wanted = least[index] if len(least) > 1 else least
        return torch.where(best >= wanted, table[index], table.new_zeros(()))

    def activate(self, values: torch.Tensor) -> torch.Tensor:
        """Probabilities of blended outputs (C, ...)."""
        if self.activation is None:
            return values
        return probabilities(values[None], self.activation)[0]

    def check(self, channels: int) -> None:
        """Refuse what does not fit a network of so many output channels."""
        if channels > 256 or max(self.values or (0,)) > 255:
            raise ConfigError(f"{channels} classes do not fit an 8-bit label map")
        for name, given in (("thresholds", self.thresholds), ("values", self.values)):
            if given is not None and len(given) not in (1, channels):
                raise ConfigError(f"{len(given)} {name} for {channels} output channels")
        if channels == 1 and self.activation == "softmax":
            raise ConfigError("the softmax of a single channel is always 1; use sigmoid")


@dataclass(frozen=True)
class GridMap:
    """How a source grid lies in the network's grid, where their axes are parallel.

    Attributes:
        axes: For each network axis the source axis that runs along it.
        scale: Network voxels per source voxel, negative where the axes run against each other.
        offset: Network coordinate of source voxel 0.
        size: Shape of the source grid, in source order.
        network_size: Shape of the network's grid.
        anti_alias: Low-pass where source voxels are the larger ones, as the inverse of
            ``medvol.transforms.Spacingd`` does and MONAI's does not.
    """

    axes: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    size: tuple[int, int, int]
    network_size: tuple[int, int, int]
    anti_alias: bool = False

    @classmethod
    def between(
        cls, network: Geometry, source: Geometry, *, anti_alias: bool = False
    ) -> GridMap | None:
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
            anti_alias,
        )

    def weights(self, axis: int) -> NDArray[np.floating] | None:
        """Share of each network plane in each source plane along network ``axis``.

        Rows sum to 1 inside the network's grid; where it was cropped away the missing part counts
        as probability 0 of everything, which is background. None if the planes are the same.
        """
        count, size = self.size[self.axes[axis]], self.network_size[axis]
        step, first = self.scale[axis], self.offset[axis]
        if step < 0:
            first += step * (count - 1)
        whole, step_ = round(first), abs(step)
        if abs(first - whole) > _SAME_PLACE or whole > 0:
            matrix = _linear(first + np.arange(count) * step_, size)
        else:
            before = -whole
            last = math.ceil(step_ * (count - 1) - _SAME_PLACE)
            reach = before + size if last < before + size else last + 1
            matrix = axis_matrix(reach, count, step_, "bilinear", self.anti_alias)
            matrix = matrix[:, before : before + size]
        matrix = matrix[::-1] if step < 0 else matrix
        if matrix.shape[0] == matrix.shape[1] and np.allclose(matrix, np.eye(size), atol=1e-5):
            return None
        return matrix


class SlabWriter:
    """Receives finished planes of the network's grid and fills a label map on the source grid."""

    def __init__(
        self,
        grid_map: GridMap,
        axis: int,
        decision: Decision,
        out: NDArray[np.uint8],
        activation: Activation = "softmax",
    ) -> None:
        across = [a for a in range(3) if a != axis]
        self.decision = decision
        self.activation: Activation = activation
        along = grid_map.weights(axis)
        self.along = np.eye(grid_map.network_size[axis]) if along is None else along
        used = self.along != 0
        self.low = np.where(used.any(1), used.argmax(1), 0)
        self.high = np.where(used.any(1), used.shape[1] - 1 - used[:, ::-1].argmax(1), -1)
        self.across = [_banded(grid_map.weights(a)) for a in across]
        self.out = out.transpose([grid_map.axes[axis], *(grid_map.axes[a] for a in across)])
        self.kept: torch.Tensor | None = None
        self.first = 0

    def add(self, sums: torch.Tensor, share: torch.Tensor, first: int) -> None:
        """Take planes ``first`` on of weighted sums (C, n, Y, Z) and weights (n, Y, Z).

        Both are overwritten.
        """
        channels, count = sums.shape[:2]
        self.decision.check(channels)
        outside = outside_values(
            channels, sums, activation=self.activation,
            is_probability=self.decision.activation is None,
        )  # fmt: skip
        fill_unseen(sums, share, outside)
        for index in range(count):
            plane = sums[:, index]
            plane.copy_(self.decision.activate(plane.div_(share[index])))
        last = first + count - 1
        for place in np.flatnonzero((self.high >= first) & (self.high <= last)):
            probability = self._plane(sums, first, int(place))
            self.out[place] = self.decision.labels(probability).cpu().numpy()
        self._keep(sums, first, last)

    def _plane(self, sums: torch.Tensor, first: int, place: int) -> torch.Tensor:
        total: torch.Tensor | None = None
        for index in range(int(self.low[place]), int(self.high[place]) + 1):
            weight = float(self.along[place, index])
            plane = self._at(sums, first, index)
            if total is None:
                total = plane if weight == 1 else plane * weight
            else:
                total = total.add_(plane, alpha=weight)
        rows, columns = self.across
        return _resample(_resample(torch.as_tensor(total), rows, 1), columns, 2)

    def _at(self, sums: torch.Tensor, first: int, index: int) -> torch.Tensor:
        if index >= first:
            return sums[:, index - first]
        if self.kept is None or index < self.first:
            raise ConfigError(f"plane {index} was dropped before it was used")
        return self.kept[:, index - self.first]

    def _keep(self, sums: torch.Tensor, first: int, last: int) -> None:
        """Copy the planes that source planes still to come will read."""
        waiting = self.low[self.high > last]
        lowest = int(waiting.min()) if len(waiting) else last + 1
        if lowest > last:
            self.kept = None
            return
        planes = [self._at(sums, first, index) for index in range(lowest, last + 1)]
        self.kept, self.first = torch.stack(planes, 1), lowest


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
            values = list(channels_first(out).to(self.device))
            del out  # here and below, so that no window is held while the next is predicted
            for _, box in some:
                yield box, values.pop(0)


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
    share_layer = None if skips else _layer_share(grid, weight, axis)
    across = [n for a, n in enumerate(grid.padded) if a != axis]
    share = weight.new_zeros((depth, *across))
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
            del value, part
        if share_layer is not None:
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


def _linear(place: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """Weights of linear interpolation; places more than a voxel outside weigh nothing."""
    matrix = np.zeros((len(place), size))
    at = np.clip(place, 0, size - 1)
    low = np.floor(at).astype(int)
    rows = np.flatnonzero((place > -1) & (place < size))
    np.add.at(matrix, (rows, low[rows]), 1 - (at - low)[rows])
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)[rows]), (at - low)[rows])
    return matrix


def _banded(matrix: NDArray[np.floating] | None) -> list[Band] | None:
    """Cut a matrix into blocks of rows without the columns that they do not use."""
    if matrix is None:
        return None
    bands = []
    for first in range(0, len(matrix), _BAND):
        rows = matrix[first : first + _BAND]
        used = np.flatnonzero(rows.any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        dense = torch.from_numpy(np.ascontiguousarray(rows[:, low:high], dtype=np.float32))
        bands.append((first, low, high, dense))
    return bands


def _resample(plane: torch.Tensor, bands: list[Band] | None, dim: int) -> torch.Tensor:
    """Multiply axis 1 or 2 of (C, Y, Z) by a banded matrix."""
    if bands is None:
        return plane
    parts = []
    for _, low, high, dense in bands:
        weights = dense.to(plane)
        part = plane.narrow(dim, low, high - low)
        parts.append(weights @ part if dim == 1 else part @ weights.T)
    return torch.cat(parts, dim)


def _three(values: Any) -> Any:
    """Exactly three values as a tuple."""
    first, second, third = values if isinstance(values, Sequence) else tuple(values)
    return first, second, third
