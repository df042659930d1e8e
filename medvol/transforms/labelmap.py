"""From probabilities per class or region to one integer per voxel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform

from medvol.core.errors import ConfigError


class ToLabelMapd(MapTransform):
    """The most probable class of each voxel, or background where it misses its threshold.

    Args:
        keys: Keys of probabilities, shape (C, X, Y[, Z]); each becomes (1, X, Y[, Z]).
        values: Label value of each channel, in order.
        threshold: Smallest probability of a structure, or one per channel; positive means
            >= threshold.

    Raises:
        ConfigError: If there are neither one nor as many thresholds as values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int],
        threshold: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__(keys)
        self.values = tuple(int(value) for value in values)
        self.threshold = _thresholds(threshold, len(self.values))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            best, channel = case[key].max(dim=0, keepdim=True)
            table = torch.tensor(self.values, device=best.device, dtype=best.dtype)
            plain = torch.as_tensor(channel).long()
            plain = plain.as_subclass(torch.Tensor)
            least = torch.tensor(self.threshold, device=best.device, dtype=best.dtype)
            wanted = least[plain] if len(least) > 1 else least
            case[key] = torch.where(best >= wanted, table[plain], torch.zeros_like(best))
        return case


class RegionsToLabelMapd(MapTransform):
    """Paint overlapping regions one after another, each over those before it.

    Nested regions come largest first: whole tumour, then its core, then what enhances in it.

    Args:
        keys: Keys of probabilities, shape (C, X, Y[, Z]); each becomes (1, X, Y[, Z]).
        values: Label value that each region's channel paints, in order (nnU-Net's
            ``regions_class_order``).
        threshold: Smallest probability of a region, or one per region; positive means
            >= threshold.

    Raises:
        ConfigError: If there are neither one nor as many thresholds as values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int],
        threshold: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__(keys)
        self.values = tuple(int(value) for value in values)
        self.threshold = _thresholds(threshold, len(self.values))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            painted = torch.zeros_like(case[key][:1])
            least = (
                self.threshold * len(self.values) if len(self.threshold) == 1 else self.threshold
            )
            for value, probs, wanted in zip(self.values, case[key], least, strict=True):
                painted = torch.where(probs[None] >= wanted, value, painted)
            case[key] = painted
        return case


def _thresholds(given: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One threshold for all of ``count`` channels, or one for each."""
    values = [given] if isinstance(given, int | float) else list(given)
    if len(values) not in (1, count):
        raise ConfigError(f"{len(values)} thresholds for {count} channels; give one, or {count}")
    return tuple(float(value) for value in values)
