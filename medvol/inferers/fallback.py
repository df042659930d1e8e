"""Going on after running out of memory: smaller batches, then the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from medvol.core.errors import TooLargeError

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad allocation")


@dataclass(frozen=True)
class Attempt:
    """One way to run a network over an image; all give the same labels.

    Attributes:
        batch: Windows per forward pass.
        stitch_on: Where windows are blended.
        network_on: Where the network runs.
        name: What was given up, for the record; empty for the first attempt.
    """

    batch: int
    stitch_on: torch.device
    network_on: torch.device
    name: str = ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or in RAM."""
    if isinstance(error, TooLargeError):
        return False  # a rejection before the run, not an accident
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error).lower() for t in _TEXTS)


def with_fallback(first: Attempt, run: Callable[[Attempt], Result]) -> tuple[Result, Attempt]:
    """Call ``run`` with ever more frugal attempts until memory suffices.

    The batch is halved down to one window; windows are blended on the CPU; the network runs on
    the CPU. Nothing of a failed attempt is alive when the next begins: neither the error nor its
    traceback, which would keep the attempt's tensors, is kept.

    Args:
        first: Where to start.
        run: Predicts as the attempt states.

    Returns:
        What ``run`` returned, and the attempt that succeeded.

    Raises:
        TooLargeError: If the last attempt runs out of memory too.
    """
    reason = ""
    for attempt in _attempts(first):
        try:
            return run(attempt), attempt
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
        _log.warning("out of memory at %s", attempt.name or "the first attempt")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise TooLargeError(f"memory ran out even with one window at a time on the CPU: {reason}")


def _attempts(first: Attempt) -> Iterator[Attempt]:
    yield first
    now, cpu = first, torch.device("cpu")
    while now.batch > 1:
        now = replace(now, batch=now.batch // 2, name=f"batch {now.batch // 2}")
        yield now
    if now.stitch_on.type != "cpu":
        now = replace(now, stitch_on=cpu, name="stitched on the CPU")
        yield now
    if now.network_on.type != "cpu":
        yield replace(now, network_on=cpu, name="network on the CPU")
