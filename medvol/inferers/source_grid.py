"""From planes of the network's grid to labels on the scan's own grid, without the whole volume.

The usual way keeps every class's probability of the whole volume, twice: on the network's grid
and, for the inverse, on the source grid. Here planes are decided, resampled and dropped as soon
as no later window touches them; memory does not grow with classes times volume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from medvol.core.geometry import Geometry
from medvol.core.notebook import data_frame, html_table
from medvol.inferers.decision import Decision
from medvol.inferers.emptiness import fill_unseen, outside_values
from medvol.inferers.ensemble import Blended, entropy
from medvol.inferers.grid_map import FACE, GridMap, Inverse

if TYPE_CHECKING:
    from pandas import DataFrame

#: Entry in the meta of a label map that lies on the source grid already.
ON_SOURCE_GRID = "is_on_source_grid"
#: Uncertainty maps, in the order of their channels.
MAPS = ("aleatoric", "epistemic")
#: Makes the array of all probabilities.
Allocate = Callable[[tuple[int, ...]], NDArray[np.float32]]
Band = tuple[int, int, int, torch.Tensor]
_BAND = 32
#: Probabilities that bound the volume interval of a structure.
INTERVAL = (0.05, 0.95)


@dataclass
class Prediction:
    """What a bundle predicts of one image, on the image's own grid.

    Attributes:
        labels: Label map, shape (X, Y, Z).
        source: The image's grid.
        probabilities: One per channel, shape (X, Y, Z, C), where they were asked for.
        maps: Uncertainty by name (``aleatoric``, ``epistemic``), in nats, shape (X, Y, Z).
        intervals_ml: Volume of each label at a strict and at a lenient probability, in ml, where
            uncertainty was asked for.
        names: Label value to name, where the bundle's own names do not fit the values.
        masks: Mask of each label that overlaps others; the label map tells the rest.
        fallback: What was given up because memory ran out; empty if nothing.
        located: Of a whole scan that was predicted crop by crop, each structure that was found and
            its box in voxels: ``structure``, ``start``, ``stop``.
    """

    labels: NDArray[np.uint8]
    source: Geometry
    probabilities: NDArray[np.float32] | None = None
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    intervals_ml: dict[int, tuple[float, float]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    masks: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    fallback: str = ""
    located: list[dict[str, Any]] = field(default_factory=list)

    def mask_of(self, value: int) -> NDArray[np.bool_]:
        """The voxels of a label, shape (X, Y, Z)."""
        mask = self.masks.get(value)
        return self.labels == value if mask is None else mask

    def structures(self, names: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        """Voxels and volume of every label, found or not.

        Args:
            names: Label value to name, where the prediction holds none of its own.

        Returns:
            By label value: ``label``, ``name``, ``voxels``, ``volume_ml`` and, with uncertainty,
            ``interval_ml``.
        """
        names = self.names or names or {}
        counts = np.bincount(self.labels.ravel(), minlength=max(names, default=0) + 1)
        ml = float(np.prod(self.source.spacing_mm)) / 1000
        rows = []
        for value, name in sorted(names.items()):
            overlapping = self.masks.get(value)
            voxels = int(counts[value] if overlapping is None else overlapping.sum())
            row: dict[str, Any] = {"label": value, "name": name, "voxels": voxels,
                                   "volume_ml": round(voxels * ml, 6)}  # fmt: skip
            if value in self.intervals_ml:
                row["interval_ml"] = [round(v, 6) for v in self.intervals_ml[value]]
            rows.append(row)
        return rows

    def to_pandas(self) -> DataFrame:
        """A row per structure: label, name, voxels, volume in ml."""
        return data_frame(self.structures())

    def _repr_html_(self) -> str:
        return html_table(self.structures())

    def label_map_like(self, image: MetaTensor) -> MetaTensor:
        """The label map (1, X, Y, Z), or (1, X, Y) of a 2D image, with the scan's meta."""
        labels = torch.from_numpy(self.labels)[None]
        if len(np.asarray(image.meta["spatial_shape"]).ravel()) == 2:
            labels = labels[..., 0]
        meta = {**image.meta, ON_SOURCE_GRID: True}
        return MetaTensor(labels, affine=torch.from_numpy(self.source.affine), meta=meta)


class SourceGridWriter:
    """Receives finished planes of the network's grid and fills a prediction on the source grid.

    Args:
        prediction: Its label map and maps are filled.
        network: The network's grid.
        axis: Network axis along which planes arrive.
        decision: How probabilities become labels.
        blended: What arrives.
        inverse: How values are brought back.
        allocate: Makes the array of probabilities as soon as their number is known; None keeps
            none.

    Entropies are expected exactly if the prediction has maps.
    """

    def __init__(
        self,
        prediction: Prediction,
        network: Geometry,
        axis: int,
        decision: Decision,
        blended: Blended,
        inverse: Inverse,
        allocate: Allocate | None = None,
    ) -> None:
        self.allocate = allocate
        self.prediction, self.decision, self.blended = prediction, decision, blended
        self.network, self.axis = network, axis
        self.grid_map = GridMap.between(network, prediction.source, inverse)
        self.counts: torch.Tensor | None = None
        self.order = [0, 1, 2]
        self.views = _views(prediction, self.order)
        self.kept: list[torch.Tensor] = []
        self.first = 0
        if self.grid_map is not None:
            self._follow(self.grid_map)

    def add(self, sums: list[torch.Tensor], share: torch.Tensor, first: int) -> None:
        """Take planes ``first`` on of weighted sums (C, n, ...), their entropies, and weights.

        The first tensor holds outputs or probabilities (see ``blended``), a second one entropies
        (1, n, ...). All are overwritten.
        """
        self.decision.check(len(sums[0]))
        if self.allocate is not None and self.prediction.probabilities is None:
            self._collect(len(sums[0]))
        for plane in range(len(share)):
            self._finish_plane([total[:, plane] for total in sums], share[plane])
        if len(sums) > 1:
            sums = [sums[0], self._doubts(sums[0], sums[1])]
        if self.grid_map is None:
            self.kept.append(torch.cat([part.clone() for part in sums]))
            return
        last = first + len(share) - 1
        for place in np.flatnonzero((self.high >= first) & (self.high <= last)):
            planes = [self._interpolated(index, sums, first, int(place)) for index in (0, 1)]
            self._decide(int(place), [plane for plane in planes if plane is not None])
        self._keep(sums, first, last)

    def close(self) -> None:
        """Write what could not be written plane by plane, and the volume intervals."""
        if self.grid_map is None:
            self._oblique(torch.cat(self.kept, 1))
        self.kept = []
        if self.counts is None or self.decision.overlaps:
            return
        ml = float(np.prod(self.prediction.source.spacing_mm)) / 1000
        counts = self.counts.tolist()
        for channel, value in enumerate(self.decision.channel_values(len(counts[0]))):
            if value:
                low, high = (float(row[channel]) * ml for row in reversed(counts))
                self.prediction.intervals_ml[value] = (low, high)

    def _follow(self, grid_map: GridMap) -> None:
        """Prepare the matrices, and views of the arrays whose axes run as the network's."""
        axis, across = self.axis, [a for a in range(3) if a != self.axis]
        along = grid_map.weights(axis)
        self.along = np.eye(grid_map.network_size[axis]) if along is None else along
        used = self.along != 0
        self.low = np.where(used.any(1), used.argmax(1), 0)
        self.high = np.where(used.any(1), used.shape[1] - 1 - used[:, ::-1].argmax(1), -1)
        self.across = [_banded(grid_map.weights(a)) for a in across]
        seen = np.logical_and.outer(*(grid_map.seen(a) for a in across))
        self.unseen = None if seen.all() else torch.from_numpy(~seen)
        self.order = [grid_map.axes[axis], *(grid_map.axes[a] for a in across)]
        self.views = _views(self.prediction, self.order)

    def _collect(self, channels: int) -> None:
        """Make the array of probabilities; planes that are never decided hold background."""
        if self.allocate is not None:
            shape = (*self.prediction.source.shape, channels)
            self.prediction.probabilities = self.allocate(shape)
        self.views = _views(self.prediction, self.order)
        if self.grid_map is not None and self.views.probabilities is not None:
            nothing = self._outside(torch.empty(channels), is_probability=True)
            self.views.probabilities[self.high < 0] = nothing.numpy()

    def _finish_plane(self, planes: list[torch.Tensor], share: torch.Tensor) -> None:
        """Blended values of one plane, in place; probabilities unless logits are resampled."""
        values = planes[0]
        is_probability = self.blended == "probabilities"
        fill_unseen(values, share, self._outside(values, is_probability=is_probability))
        for plane in planes:
            plane.div_(share)
        if self.blended == "logits" and self.decision.resampled == "probabilities":
            values.copy_(self.decision.activate(values))

    def _doubts(self, values: torch.Tensor, aleatoric: torch.Tensor) -> torch.Tensor:
        """Aleatoric and epistemic uncertainty (2, n, ...) on the network's grid."""
        sure = values if not self._activates_late else self.decision.activate(values)
        total = entropy(sure[None], self.decision.activation)[0]
        return torch.cat([aleatoric, (total - aleatoric).clamp_min(0)])

    def _outside(self, values: torch.Tensor, *, is_probability: bool) -> torch.Tensor:
        return outside_values(
            len(values), values, activation=self.decision.activation, is_probability=is_probability
        )

    @property
    def _activates_late(self) -> bool:
        return self.blended == "logits" and self.decision.resampled == "logits"

    def _interpolated(
        self, part: int, sums: list[torch.Tensor], first: int, place: int
    ) -> torch.Tensor | None:
        if part >= len(sums):
            return None
        total: torch.Tensor | None = None
        for index in range(int(self.low[place]), int(self.high[place]) + 1):
            weight = float(self.along[place, index])
            held, offset = (sums, first) if index >= first else (self.kept, self.first)
            plane = held[part][:, index - offset]
            if total is None:
                total = plane if weight == 1 else plane * weight
            else:
                total = total.add_(plane, alpha=weight)
        rows, columns = self.across
        return _resampled(_resampled(torch.as_tensor(total), rows, 1), columns, 2)

    def _decide(self, place: int, planes: list[torch.Tensor]) -> None:
        """Write one source plane; what the network did not see is background."""
        values = self.decision.activate(planes[0]) if self._activates_late else planes[0]
        if self.unseen is not None:
            nothing = self._outside(values, is_probability=True)
            values = torch.where(self.unseen.to(values.device), nothing[:, None, None], values)
            planes = [values, *(p * ~self.unseen.to(p.device) for p in planes[1:])]
        self.views.labels[place] = self.decision.labels(values).cpu().numpy()
        if self.views.probabilities is not None:
            self.views.probabilities[place] = values.movedim(0, -1).cpu().numpy()
        if len(planes) > 1:
            for row, name in zip(planes[1], MAPS, strict=True):
                self.views.maps[name][place] = row.cpu().numpy()
            reached = torch.stack([(values >= p).flatten(1).sum(1) for p in INTERVAL]).cpu()
            self.counts = reached if self.counts is None else self.counts + reached

    def _keep(self, sums: list[torch.Tensor], first: int, last: int) -> None:
        """Copy the planes that source planes still to come will read."""
        waiting = self.low[self.high > last]
        lowest = int(waiting.min()) if len(waiting) else last + 1
        if lowest > last:
            self.kept = []
            return
        kept = []
        for part, total in enumerate(sums):
            old = self.kept[part][:, lowest - self.first :] if lowest < first else total[:, :0]
            new = total[:, max(0, lowest - first) :]
            kept.append(torch.cat([old, new], 1))
        self.kept, self.first = kept, lowest

    def _oblique(self, volume: torch.Tensor) -> None:
        """Resample the whole network's grid to a source grid that is turned against it."""
        source, channels = self.prediction.source, len(volume)
        doubts = 2 if self.prediction.maps else 0
        volume = volume.movedim(1, self.axis + 1)
        step = np.linalg.inv(self.network.affine) @ source.affine
        across = np.stack(np.meshgrid(*(np.arange(n) for n in source.shape[1:]), indexing="ij"))
        size = np.asarray(self.network.shape)[:, None, None]
        for place in range(source.shape[0]):
            index = np.concatenate([np.full_like(across[:1], place), across])
            at = np.einsum("ij,jyz->iyz", step[:3, :3], index) + step[:3, 3][:, None, None]
            seen = ((at >= -FACE) & (at <= size - 1 + FACE)).all(0)
            self.unseen = None if seen.all() else torch.from_numpy(~seen)
            unit = 2 * at / np.maximum(size - 1, 1) - (size > 1)
            grid = torch.from_numpy(unit[::-1].copy()).movedim(0, -1)[None, None].to(volume)
            plane = F.grid_sample(volume[None], grid, padding_mode="border", align_corners=True)
            values = plane[0, :, 0]
            self._decide(place, list(values.split([channels - doubts, doubts][: 1 + bool(doubts)])))


@dataclass
class _Views:
    """The arrays of a prediction with their axes in another order."""

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    maps: dict[str, NDArray[np.float32]]


def _views(prediction: Prediction, order: Sequence[int]) -> _Views:
    probs = prediction.probabilities
    return _Views(
        prediction.labels.transpose(order),
        None if probs is None else probs.transpose([*order, 3]),
        {name: values.transpose(order) for name, values in prediction.maps.items()},
    )


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


def _resampled(plane: torch.Tensor, bands: list[Band] | None, dim: int) -> torch.Tensor:
    """Multiply axis 1 or 2 of (C, Y, Z) by a banded matrix."""
    if bands is None:
        return plane
    parts = []
    for _, low, high, dense in bands:
        weights = dense.to(plane)
        part = plane.narrow(dim, low, high - low)
        parts.append(weights @ part if dim == 1 else part @ weights.T)
    return torch.cat(parts, dim)
