"""Going on after running out of memory: smaller batches, then the CPU."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from medvol.core.errors import TooLargeError
from medvol.inferers.sliding import SlidingWindowInferer

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad allocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in RAM."""
    if isinstance(error, TooLargeError):
        return False  # a refusal, not an accident
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error).lower() for t in _TEXTS)


def run_ladder(
    inferer: SlidingWindowInferer,
    run: Callable[[SlidingWindowInferer], Result],
    to_cpu: Callable[[], None] | None = None,
) -> tuple[Result, str]:
    """Call ``run`` with ever more frugal copies of ``inferer`` until memory suffices.

    The rungs: the batch is halved down to one window; windows are stitched on the CPU; the
    network runs on the CPU. All give the same labels, and probabilities within 1e-5.

    Args:
        inferer: Where to start; left unchanged.
        run: Predicts with the inferer that it is given.
        to_cpu: Moves the network to the CPU before the last rung; without it, or if windows
            are on the CPU already, that rung is left out.

    Returns:
        What ``run`` returned, and the name of the rung; empty for the first.

    Raises:
        TooLargeError: If the last rung runs out of memory too.
    """
    last: BaseException | None = None
    for name, attempt in _rungs(inferer, to_cpu):
        try:
            return run(attempt), name
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            last = error
            _log.warning("out of memory at %s", name or "the first attempt")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise TooLargeError(
        f"memory ran out even with one window at a time on the CPU: {last}"
    ) from last


def _rungs(
    inferer: SlidingWindowInferer, to_cpu: Callable[[], None] | None
) -> Iterator[tuple[str, SlidingWindowInferer]]:
    yield "", inferer
    now = copy.copy(inferer)
    while getattr(now, "sw_batch_size", 1) > 1:
        now = copy.copy(now)
        now.sw_batch_size //= 2
        yield f"batch {now.sw_batch_size}", now
    if str(getattr(now, "device", "cpu")) != "cpu":
        now = copy.copy(now)
        now.device = "cpu"
        yield "stitched on the CPU", now
    if to_cpu is not None:
        to_cpu()
        now = copy.copy(now)
        now.sw_device, now.amp = "cpu", False
        yield "network on the CPU", now
