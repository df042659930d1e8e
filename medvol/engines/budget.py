"""Training by the clock: a run that ends when its time is up, with its learning rate run down."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from ignite.engine import Engine, Events

from medvol.engines.distributed import agreed

logger = logging.getLogger(__name__)
#: Environment variable with the time (seconds since 1970) from which a run's budget counts.
BEGAN = "MEDVOL_RUN_BEGAN"


class Budget:
    """Ignite handler of the trainer: as many epochs as fit into a time, instead of ``max_epochs``.

    The learning-rate schedule follows the clock; the last epoch may be a part of one, and is
    always validated. Time of earlier runs counts when a run is resumed. Attach after the
    validation handler. Without ``seconds`` it does nothing.

    Args:
        seconds: Wall-clock seconds of the whole run, loading and validation included.
        evaluator: Runs the validation of the last epoch.
        lr_scheduler: Stepped at every iteration; its ``t_total`` and ``warmup_steps`` are moved.
        warmup: Share of the run in which the rate rises.
    """

    def __init__(
        self,
        seconds: float | None,
        evaluator: Engine,
        lr_scheduler: Any = None,
        warmup: float = 0.03,
    ) -> None:
        self.seconds = None if seconds is None else float(seconds)
        self.evaluator: Any = evaluator
        self.lr_scheduler = lr_scheduler
        self.warmup = float(warmup)
        self.began = float(os.environ.get(BEGAN, time.time()))
        self.spent_s = 0.0
        self.trained_s = 0.0
        self.validation_s = 0.0
        self.validated_epoch = 0
        self.is_over = False

    def attach(self, engine: Engine) -> None:
        """Look at the clock after every step."""
        if self.seconds is None:
            return
        self.evaluator.add_event_handler(Events.STARTED, self._validation_starts)
        self.evaluator.add_event_handler(Events.COMPLETED, self._validation_ended)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_starts)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    @property
    def elapsed_s(self) -> float:
        """Seconds of this run and of those that it continues."""
        return self.spent_s + time.time() - self.began

    def state_dict(self) -> dict[str, float]:
        """What a resumed run must know of the time; empty without a budget."""
        if self.seconds is None:
            return {}
        return {"spent_s": self.elapsed_s, "trained_s": self.trained_s + self._now(),
                "validation_s": self.validation_s}  # fmt: skip

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Count earlier runs in."""
        self.spent_s, self.trained_s = float(state["spent_s"]), float(state["trained_s"])
        self.validation_s = float(state["validation_s"])

    def _now(self) -> float:
        return time.time() - getattr(self, "first", time.time())

    def _validation_starts(self) -> None:
        self.validation_began = time.time()

    def _validation_ended(self, evaluator: Engine) -> None:
        self.validation_s = time.time() - self.validation_began
        self.validated_epoch = evaluator.state.epoch

    def _start(self, engine: Engine) -> None:
        self.first = time.time()
        engine.state.max_epochs = 1_000_000  # until the first step tells more

    def _epoch_starts(self, engine: Engine) -> None:
        if self.elapsed_s + self.validation_s >= float(self.seconds or 0):
            logger.info("the budget of %.0f s was spent before", self.seconds)
            engine.terminate()

    def _step(self, engine: Engine) -> None:
        left = float(self.seconds or 0) - self.elapsed_s - self._reserve_s()
        trained = self.trained_s + self._now()
        steps = max(engine.state.iteration, 1)
        is_over, total = agreed([left <= 0, steps * (trained + max(left, 0)) / max(trained, 1e-6)])
        self._reschedule(steps, total)
        length = engine.state.epoch_length or 1
        engine.state.max_epochs = max(engine.state.epoch + 1, round(total / length))
        if is_over:
            self.is_over = True
            engine.state.max_epochs = engine.state.epoch
            engine.terminate_epoch()

    def _reserve_s(self) -> float:
        """Time that the last validation and writing will take."""
        return 1.1 * self.validation_s + 0.01 * float(self.seconds or 0)

    def _reschedule(self, steps: int, total: float) -> None:
        if hasattr(self.lr_scheduler, "t_total"):
            self.lr_scheduler.t_total = max(steps, round(total))
            self.lr_scheduler.warmup_steps = round(self.warmup * total)

    def _epoch(self, engine: Engine) -> None:
        is_due = self.is_over or not self.validation_s  # its cost must be known before the end
        if is_due and self.validated_epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)
        if self.is_over:
            logger.info("the budget of %.0f s is spent after epoch %d", self.seconds,
                        engine.state.epoch)  # fmt: skip
            engine.terminate()
