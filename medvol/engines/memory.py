"""A training step that shrinks when the device is full, instead of ending the run."""

from __future__ import annotations

import logging
from typing import Any

import torch

from medvol.core.errors import TooLargeError
from medvol.engines.distributed import process_rank

logger = logging.getLogger(__name__)


class StepWithinMemory:
    """MONAI trainer's ``iteration_update``: the usual step, in parts once it no longer fits.

    When the device runs out of memory the batch is halved, the step is done again part by part
    with accumulated gradients, and the run goes on like that; a warning states it. The optimizer
    still steps once per batch. Losses that are means over cases stay the same; batch Dice is then
    taken per part. Pass it to :class:`medvol.engines.Checkpoint`, so that a resumed run need not
    fail again.

    Attributes:
        parts: Into how many parts a batch is cut; 1 is the usual step.
    """

    def __init__(self) -> None:
        self.parts = 1

    def __call__(self, engine: Any, batch: Any) -> dict[str, Any]:
        """One optimizer step on one batch; see MONAI's ``SupervisedTrainer``."""
        while True:
            try:
                if self.parts == 1:
                    return engine._iteration(engine, batch)
                return _in_parts(engine, batch, self.parts)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                is_full = isinstance(error, torch.OutOfMemoryError)
                if not is_full and "DefaultCPUAllocator" not in str(error):
                    raise
                cause = str(error).partition("\n")[0]
            # Outside of the except block, whose traceback would keep the tensors alive.
            self._shrink(engine, batch, cause)

    def state_dict(self) -> dict[str, int]:
        """The number of parts, plain."""
        return {"parts": self.parts}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with as many parts."""
        self.parts = int(state["parts"])

    def _shrink(self, engine: Any, batch: Any, cause: str) -> None:
        engine.state.output = None
        engine.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = len(batch["image"])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise TooLargeError(f"process {process_rank()} is out of memory with {size} cases a "
                                f"step ({cause}); pass a smaller --batch_size")  # fmt: skip
        if self.parts >= size:
            raise TooLargeError(f"not even one patch a time fits the device ({cause}); pass "
                                "--gradient_checkpointing true, or a smaller roi_size")  # fmt: skip
        self.parts = min(2 * self.parts, size)
        logger.warning(
            "out of memory in step %d (%s): from now on the batch of %d is trained in %d parts "
            "with accumulated gradients", engine.state.iteration, cause, size, self.parts,
        )  # fmt: skip


def _in_parts(engine: Any, batch: Any, parts: int) -> dict[str, Any]:
    image, label = engine.prepare_batch(
        batch, engine.state.device, engine.non_blocking, **engine.to_kwargs
    )
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
    total, preds = torch.zeros((), device=image.device), []
    scaler = engine.scaler if engine.amp else None
    for x, y in zip(_cut(image, parts), _cut(label, parts), strict=True):
        with torch.autocast(image.device.type, enabled=scaler is not None, **engine.amp_kwargs):
            pred = engine.inferer(x, engine.network)
            loss = engine.loss_function(pred, y).mean() * (len(x) / len(image))
        (loss if scaler is None else scaler.scale(loss)).backward()
        total += loss.detach()
        preds.append(pred)
    if scaler is None:
        engine.optimizer.step()
    else:
        scaler.step(engine.optimizer)
        scaler.update()
    output = {"image": image, "label": label, "pred": _joined(preds), "loss": total}
    engine.state.output = output
    return engine.state.output


def _cut(batch: Any, parts: int) -> list[Any]:
    """Parts of a batch; of several tensors that belong together, such as class and mask."""
    if isinstance(batch, (tuple, list)):
        return list(zip(*(_cut(one, parts) for one in batch), strict=True))
    return list(batch.chunk(parts))


def _joined(preds: list[Any]) -> Any:
    if isinstance(preds[0], (tuple, list)):
        return tuple(_joined(list(column)) for column in zip(*preds, strict=True))
    return torch.cat([pred.detach() for pred in preds])
