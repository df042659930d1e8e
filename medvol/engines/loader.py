"""A data loader whose dead workers cost seconds, not the run."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

from monai.data.dataloader import DataLoader

from medvol.core.errors import MedvolError
from medvol.engines.data import EpochSampler

logger = logging.getLogger(__name__)
#: How often the workers of one epoch may be lost before the run ends.
RETRIES = 3


class CaseLoader(DataLoader):
    """MONAI's ``DataLoader`` that goes on where a killed worker left off.

    Samples depend on seed, epoch and case alone, so that new workers make the very batches that
    the lost ones would have made, and the run stays bit for bit the same.

    Args:
        dataset: A :class:`medvol.engines.CaseDataset`.
        sampler: An :class:`medvol.engines.EpochSampler` or another that has ``set_epoch``.
        kwargs: As for torch's ``DataLoader``.
    """

    def __init__(self, dataset: Any, sampler: EpochSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler=sampler, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        sampler: Any = self.sampler
        epoch, done, losses = sampler.epoch, 0, 0
        while True:
            sampler.set_epoch(epoch)
            try:
                for batch in islice(self._workers(), done, None):
                    yield batch
                    done += 1
                return
            except RuntimeError as error:
                # What went wrong inside of a living worker comes with its name as well.
                if not str(error).startswith("DataLoader worker (pid"):
                    raise
                losses, cause = losses + 1, str(error).partition("\n")[0]
                if losses > RETRIES:
                    raise MedvolError(
                        f"data-loader workers died {losses} times in epoch {epoch + 1} ({cause}); "
                        "memory is the usual cause: pass a smaller --num_workers or --cache_rate"
                    ) from error
            logger.warning("%s: new workers go on after step %d of the epoch", cause, done)

    def _workers(self) -> Iterator[Any]:
        batches = super().__iter__()
        if self.num_workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread happens to be, in the middle of a
            # step too; without it a dead worker is noticed when its batch is asked for.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return iter(batches)
