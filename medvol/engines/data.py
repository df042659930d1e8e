"""Cases in a seeded order: the same samples whatever the worker count, straight or resumed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Randomizable
from monai.utils.misc import MAX_SEED
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm


class CaseDataset(Dataset[Any]):
    """Cases whose deterministic steps are cached and whose random steps are seeded per sample.

    Every random transform is reseeded from (seed, epoch, case) before a sample is drawn, so a
    sample does not depend on which worker makes it or on what was drawn before.

    Args:
        data: One mapping per case.
        transform: Deterministic steps, cached in memory when ``cache_rate`` > 0.
        augmentation: Random steps, run on every access; None for none.
        seed: Seed of the whole run.
        cache_rate: Share of the cases kept in memory, 0 to 1.
        num_workers: Threads that fill the cache.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[..., Any],
        augmentation: Callable[..., Any] | None = None,
        seed: int = 0,
        cache_rate: float = 1.0,
        num_workers: int = 2,
    ) -> None:
        self.data = list(data)
        self.transform = transform
        self.seed = int(seed)
        self.augmentation = augmentation
        kept = round(len(self.data) * min(1.0, max(0.0, cache_rate)))
        self.cached = _load_all(transform, self.data[:kept], num_workers)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, token: int) -> Any:
        """Sample ``token % len`` as seen in epoch ``token // len``."""
        epoch, index = divmod(int(token), len(self.data))
        is_cached = index < len(self.cached)
        case = self.cached[index] if is_cached else self.transform(self.data[index])
        if self.augmentation is None:
            return dict(case)
        with _own_random(self.augmentation, sample_seed(self.seed, epoch, index)):
            return self.augmentation(dict(case))


class EpochSampler(Sampler[int]):
    """A fresh seeded order every epoch; indices carry the epoch, so workers need no state.

    Under ``torch.distributed`` each rank takes every n-th index; ranks get equally many.

    Args:
        dataset: A :class:`CaseDataset`.
        seed: Seed of the order.
        shuffle: False keeps the file order.
        batch_size: When given, an epoch's last incomplete batch is filled from its beginning, so
            that no step trains on a smaller batch.
    """

    def __init__(
        self, dataset: CaseDataset, seed: int = 0, shuffle: bool = True, batch_size: int = 1
    ) -> None:
        self.dataset = dataset
        self.seed = int(seed)
        self.shuffle = shuffle
        self.batch_size = int(batch_size)
        self.epoch = 0
        active = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if active else 0
        self.world = torch.distributed.get_world_size() if active else 1

    def set_epoch(self, epoch: int) -> None:
        """Continue with the given epoch, counted from 0."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        unit = self.world * self.batch_size
        return -(-len(self.dataset) // unit) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        n, epoch = len(self.dataset), self.epoch
        self.epoch += 1
        order = list(range(n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, -1))
            order = torch.randperm(n, generator=generator).tolist()
        total = len(self) * self.world
        order = (order * -(-total // n))[:total]
        return iter([epoch * n + index for index in order[self.rank :: self.world]])


def _load_all(
    transform: Callable[..., Any], data: Sequence[Mapping[str, Any]], num_workers: int
) -> list[Any]:
    """Every case through the transform; the first error stops the others and is raised.

    MONAI's CacheDataset ends the process with a C++ abort when a case fails in its thread pool.
    """
    if not data:
        return []
    shown = {"desc": "load", "unit": "case", "disable": not sys.stderr.isatty(), "leave": False}
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        try:
            return list(tqdm(pool.map(transform, data), total=len(data), **shown))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 32-bit seed that depends on all three numbers and on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def plain_batch(
    batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Image and label of a batch as plain tensors on the device.

    A MetaTensor in the network costs a Python call per operation, and training needs no affine.
    """
    image, label = (_plain(batch.get(key)) for key in ("image", "label"))
    image = image.to(device, non_blocking=non_blocking, **kwargs)  # pyright: ignore[reportOptionalMemberAccess]
    if label is not None:
        label = label.to(device, non_blocking=non_blocking)
    return image, label


def _plain(value: Any) -> torch.Tensor | None:
    return value.as_tensor() if isinstance(value, MetaTensor) else value


@contextmanager
def _own_random(transform: Callable[..., Any], seed: int) -> Iterator[None]:
    """Seed a transform and torch's CPU generator, which gets its old state back afterwards.

    ``torch.manual_seed`` would also reseed every GPU, under a network that draws its dropout
    there, and costs more than the crop of a volume.
    """
    _reseed(transform, seed)
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _reseed(transform: Any, seed: int) -> None:
    """``set_random_state`` of a MONAI transform, to the same states at a fraction of the time.

    A ``RandomState`` that is already there is seeded again; making one asks the system for entropy.
    """
    set_state = getattr(type(transform), "set_random_state", None)
    if set_state not in (Compose.set_random_state, Randomizable.set_random_state):
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=seed)
        return
    if "R" not in vars(transform):
        transform.R = np.random.RandomState()  # the one of the class is shared
    transform.R.seed(seed)
    if isinstance(transform, Compose):
        for step in transform.transforms:
            if isinstance(step, Randomizable):
                _reseed(step, int(transform.R.randint(MAX_SEED, dtype="uint32")))
