"""One seed per (visit, case), so that the number of workers changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import Randomizable
from torch.utils.data import Dataset

from medvol.core import ConfigError


class SeededDataset(Dataset):
    """Reseeds the random transforms of a data set before every sample.

    MONAI seeds each worker, so that 0 and 2 workers draw different samples. Here the n-th time
    that a case is read depends on the seed, n and the case alone. The counts live in shared
    memory; ``set_epoch`` sets them, for an exact resume. A case that a sampler draws twice in one
    epoch from two workers at once is the exception.

    Args:
        dataset: A MONAI data set (cached or not) whose ``transform`` is random.
        seed: Of the whole run.

    Raises:
        ConfigError: If the data set has no random transform.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        if not _is_random(getattr(dataset, "transform", None)):
            raise ConfigError(
                f"{type(dataset).__name__} has no random transform to seed; give it a Compose"
            )
        self.dataset = dataset
        self.seed = seed
        self._visits = torch.zeros(len(dataset), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        visit = int(self._visits[index])
        self._visits[index] += 1
        self.dataset.transform.set_random_state(seed=self._seed_of(index, visit))
        return self.dataset[index]

    def set_epoch(self, epoch: int) -> None:
        """Make the next reading of every case that of this epoch, counted from 0."""
        self._visits.fill_(epoch)

    def _seed_of(self, index: int, visit: int) -> int:
        item = getattr(self.dataset, "data", {})
        item = item[index] if not isinstance(item, Mapping) and len(item) > index else None
        case = item.get("case", index) if isinstance(item, Mapping) else index
        digest = hashlib.sha256(f"{self.seed}/{visit}/{case}".encode()).digest()
        return int.from_bytes(digest[:4], "little")


def _is_random(transform: Any) -> bool:
    if isinstance(transform, Compose):
        return any(_is_random(part) for part in transform.transforms)
    return isinstance(transform, Randomizable)
