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
        given = [threshold] if isinstance(threshold, int | float) else list(threshold)
        self.threshold = tuple(float(value) for value in given)
        if len(self.threshold) not in (1, len(self.values)):
            raise ConfigError(f"{len(self.threshold)} thresholds for {len(self.values)} channels")

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


class ScaleChannelsd(MapTransform):
    """Multiply each channel of probabilities by a number, before the decision.

    So a decision made for one threshold follows another for each channel.

    Args:
        keys: Keys of probabilities, shape (C, X, Y[, Z]).
        factors: One per channel, above 0.

    Raises:
        ConfigError: If a factor is not above 0.
    """

    def __init__(self, keys: KeysCollection, factors: Sequence[float]) -> None:
        super().__init__(keys)
        self.factors = tuple(float(factor) for factor in factors)
        if not all(factor > 0 for factor in self.factors):
            raise ConfigError(f"factors of channels must be above 0: {list(factors)}")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            probs = case[key]
            if len(probs) != len(self.factors):
                raise ConfigError(f"{len(self.factors)} factors for {len(probs)} channels")
            factors = torch.tensor(self.factors, device=probs.device, dtype=probs.dtype)
            case[key] = probs * factors.reshape(-1, *[1] * (probs.ndim - 1))
        return case


class RegionsToLabelMapd(MapTransform):
    """Paint overlapping regions one after another, each over those before it.

    Nested regions come largest first: whole tumour, then its core, then what enhances in it.

    Args:
        keys: Keys of probabilities, shape (C, X, Y[, Z]); each becomes (1, X, Y[, Z]).
        values: Label value that each region's channel paints, in order (nnU-Net's
            ``regions_class_order``).
        threshold: Smallest probability of a region; positive means >= threshold.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], threshold: float = 0.5) -> None:
        super().__init__(keys)
        self.values = tuple(int(value) for value in values)
        self.threshold = float(threshold)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            painted = torch.zeros_like(case[key][:1])
            for value, probs in zip(self.values, case[key], strict=True):
                painted = torch.where(probs[None] >= self.threshold, value, painted)
            case[key] = painted
        return case
