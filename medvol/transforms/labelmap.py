"""From one probability per class to one integer per voxel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform


class ToLabelMapd(MapTransform):
    """The most probable class of each voxel, or background where none reaches the threshold.

    Args:
        keys: Keys of probabilities, shape (C, X, Y[, Z]); each becomes (1, X, Y[, Z]).
        values: Label value of each channel, in order.
        threshold: Smallest probability of a structure; positive means >= threshold.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], threshold: float = 0.5) -> None:
        super().__init__(keys)
        self.values = tuple(int(value) for value in values)
        self.threshold = float(threshold)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            best, channel = case[key].max(dim=0, keepdim=True)
            table = torch.tensor(self.values, device=best.device, dtype=best.dtype)
            plain = torch.as_tensor(channel).long()
            chosen = table[plain.as_subclass(torch.Tensor)]
            case[key] = torch.where(best >= self.threshold, chosen, torch.zeros_like(best))
        return case
