"""Seeded orders of training items that even out the classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import torch

from medvol.core import ConfigError
from medvol.engines.data import CaseDataset, EpochSampler, sample_seed

#: Repeats of a prevalence sampler draw the augmentation of epochs that no run reaches.
_TURN = 1_000_003


class _ClassSampler(EpochSampler):
    """An :class:`EpochSampler` whose epoch is an order of items drawn by class.

    A case that comes again within an epoch comes with the same augmentation, and with another in
    the next epoch.
    """

    def __init__(
        self,
        dataset: CaseDataset,
        classes: Sequence[int],
        seed: int = 0,
        batch_size: int = 1,
    ) -> None:
        super().__init__(dataset, seed=seed, shuffle=True, batch_size=batch_size)
        if len(classes) != len(dataset):
            raise ConfigError(f"{len(classes)} classes were given for {len(dataset)} cases")
        self.classes = torch.as_tensor([int(c) for c in classes])
        self.counts = Counter(self.classes.tolist())
        if len(self.counts) == 1:
            raise ConfigError("all training cases are of one class; there is nothing to balance")

    def epoch_length(self) -> int:
        """Items of one epoch over all ranks, before the last batch is filled up."""
        raise NotImplementedError

    def order(self, generator: torch.Generator) -> torch.Tensor:
        """The epoch's items, ``epoch_length`` of them."""
        raise NotImplementedError

    def __len__(self) -> int:
        unit = self.world * self.batch_size
        return -(-self.epoch_length() // unit) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        n, epoch = len(self.dataset), self.epoch
        self.epoch += 1
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, -1))
        order = self.order(generator)
        total = len(self) * self.world
        order = order.repeat(-(-total // len(order)))[:total]
        return iter((epoch * n + order[self.rank :: self.world]).tolist())


class PrevalenceSampler(EpochSampler):
    """Every case once an epoch, and cases that hold a rare label again, with a new augmentation.

    Args:
        dataset: A :class:`medvol.engines.CaseDataset` whose cases have a label map.
        labels: Label values that shall be seen.
        least_share: Share of an epoch's samples that every label shall occur in, where no case
            has to come more than ``most_repeats`` times for it.
        seed: Seed of the order.
        batch_size: As for :class:`medvol.engines.EpochSampler`.
        most_repeats: How often a case may come in an epoch.
    """

    def __init__(
        self,
        dataset: CaseDataset,
        labels: Sequence[int],
        least_share: float = 0.2,
        seed: int = 0,
        batch_size: int = 1,
        most_repeats: int = 30,
    ) -> None:
        super().__init__(dataset, seed=seed, shuffle=True, batch_size=batch_size)
        held = [_held(dataset, index) & {int(v) for v in labels} for index in range(len(dataset))]
        self.repeats = repeats(held, least_share, most_repeats)

    def __len__(self) -> int:
        unit = self.world * self.batch_size
        return -(-sum(self.repeats) // unit) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        n, epoch = len(self.dataset), self.epoch
        self.epoch += 1
        tokens = [
            (epoch + turn * _TURN) * n + index
            for index, count in enumerate(self.repeats)
            for turn in range(count)
        ]
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, -1))
        order = [tokens[i] for i in torch.randperm(len(tokens), generator=generator).tolist()]
        total = len(self) * self.world
        order = (order * -(-total // len(order)))[:total]
        return iter(order[self.rank :: self.world])


def repeats(
    held: Sequence[Collection[int]], least_share: float, most_repeats: int = 30
) -> list[int]:
    """How often each case comes in an epoch.

    Args:
        held: Label values that occur in each case.
        least_share: Share of the samples that every label shall occur in.
        most_repeats: Largest answer.

    >>> repeats([{1}] * 9 + [{1, 2}], 0.3)
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 3]
    """
    counts = Counter(value for case in held for value in case)
    wanted = least_share * len(held)
    turns = {v: min(most_repeats, max(1, math.ceil(wanted / n))) for v, n in counts.items()}
    return [max((turns[value] for value in case), default=1) for case in held]


def _held(dataset: CaseDataset, index: int) -> set[int]:
    if index < len(dataset.cached):
        label = dataset.cached[index]["label"]
    else:
        from medvol.io import read_image

        label = read_image(dataset.data[index]["label"])
    return {int(value) for value in torch.unique(torch.as_tensor(label)).tolist()}


class BalancedSampler(_ClassSampler):
    """Draws with replacement, every class equally often; an epoch is as long as the data set.

    Args:
        dataset: A :class:`medvol.engines.CaseDataset`.
        classes: Class number of each of its cases.
        seed: Seed of the draws.
        batch_size: As for :class:`medvol.engines.EpochSampler`.
    """

    def epoch_length(self) -> int:
        """As many as the data set has."""
        return len(self.dataset)

    def order(self, generator: torch.Generator) -> torch.Tensor:
        """Independent draws with probability 1 / (classes * items of the class)."""
        weights = torch.tensor([1 / self.counts[int(c)] for c in self.classes])
        return torch.multinomial(weights, len(weights), replacement=True, generator=generator)


class OversamplingSampler(_ClassSampler):
    """Every case once an epoch, and cases of rarer classes again until all classes are as many.

    Repeats are dealt evenly: within a class no case appears two times more often than another.

    Args:
        dataset: A :class:`medvol.engines.CaseDataset`.
        classes: Class number of each of its cases.
        seed: Seed of the order and of who repeats once more.
        batch_size: As for :class:`medvol.engines.EpochSampler`.
    """

    def epoch_length(self) -> int:
        """Classes times the largest class."""
        return len(self.counts) * max(self.counts.values(), default=0)

    def order(self, generator: torch.Generator) -> torch.Tensor:
        """All classes filled up to the largest one, shuffled."""
        most = max(self.counts.values())
        parts = []
        for number in sorted(self.counts):
            members = torch.nonzero(self.classes == number)[:, 0]
            again, rest = divmod(most, len(members))
            extra = torch.randperm(len(members), generator=generator)[:rest]
            parts += [members.repeat(again), members[extra]]
        order = torch.cat(parts)
        return order[torch.randperm(len(order), generator=generator)]
