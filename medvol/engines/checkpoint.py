"""Checkpoints that a kill cannot destroy, and a resume that equals the straight run."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from medvol.core.errors import ConfigError, NonFiniteError, OutputError, WeightsError
from medvol.core.files import atomic_path
from medvol.engines.distributed import bare, process_rank

logger = logging.getLogger(__name__)
_LAST = "last.pt"


class Checkpoint:
    """Ignite handler of the trainer: after every epoch, everything that a resume needs.

    When training ends, ``model_last.pt`` holds the weights of its last epoch, validated or not.

    Written atomically, last of all handlers of an epoch: a kill at any moment loses at most the
    current epoch. Weights that are not finite are never written over finite ones. A checkpoint
    of one process resumes in several and the other way round.

    Args:
        output_dir: Folder of ``last.pt``.
        objects: Name -> object with ``state_dict`` and ``load_state_dict`` (network, optimizer,
            scheduler, moving average, early stopping ...).
        evaluator: Its best metric is kept too.
        sampler: An :class:`EpochSampler` that is given the epoch on resume.
        is_resumed: Continue from ``last.pt``; False rejects a folder that already holds one.
        extras: Like ``objects``, but their absence in an older file is forgiven.

    Raises:
        ConfigError: If the folder holds a run that shall not be continued, or another config's.
        NonFiniteError: If an epoch ended with weights that are not finite.
        OutputError: If the disk is full; the last good checkpoint stays.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        objects: Mapping[str, Any],
        evaluator: Engine | None = None,
        sampler: Any = None,
        is_resumed: bool = False,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(output_dir) / _LAST
        self.objects = dict(objects)
        self.extras = dict(extras or {})
        self.evaluator = evaluator
        self.sampler = sampler
        self.is_resumed = is_resumed

    def attach(self, engine: Engine) -> None:
        """Load on start when resuming; save when an epoch has ended."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.COMPLETED, self._save_last)

    def _start(self, engine: Engine) -> None:
        if self.path.exists() and not self.is_resumed:
            raise ConfigError(
                f"{self.path}: this folder holds a run; pass --resume true to continue it, or "
                "another --output_dir"
            )
        if not self.is_resumed:
            return
        if not self.path.exists():
            logger.info("%s does not exist: starting from the beginning", self.path)
            return
        state = load_checkpoint(self.path)
        _require_names(self.path, state["objects"], self.objects)
        for name, object_ in self.objects.items():
            bare(object_).load_state_dict(state["objects"][name])
        for name, object_ in self.extras.items():
            if found := state.get("extras", {}).get(name):
                object_.load_state_dict(found)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None:
            for name, value in state["best"].items():
                setattr(self.evaluator.state, name, value)
        if self.sampler is not None:
            self.sampler.set_epoch(state["epoch"])
        _set_random_state(state["random"])
        logger.info("resumed %s after epoch %d", self.path, state["epoch"])

    def _save(self, engine: Engine) -> None:
        objects = {name: _plain(bare(obj).state_dict()) for name, obj in self.objects.items()}
        _require_finite(objects, self.path, engine.state.epoch)
        if process_rank() != 0:
            return
        best, scaler = {}, getattr(engine, "scaler", None)
        if self.evaluator is not None:
            names = ("best_metric", "best_metric_epoch")
            best = {name: _plain(getattr(self.evaluator.state, name, -1)) for name in names}
        save_checkpoint(
            self.path,
            {
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "objects": objects,
                "extras": {name: _plain(obj.state_dict()) for name, obj in self.extras.items()},
                "scaler": _plain(scaler.state_dict()) if scaler else {},
                "best": best,
                "random": _random_state(),
            },
        )

    def _save_last(self, engine: Engine) -> None:
        # A run shorter than its first validation has no other weights to predict with.
        network = self.objects.get("ema", self.objects.get("network"))
        if network is not None and engine.state.epoch and process_rank() == 0:
            save_checkpoint(self.path.with_name("model_last.pt"), bare_state(network))


class SaveWeights:
    """Ignite handler of the evaluator: keep the weights of the best epoch, and of the last.

    Writes ``model.pt`` (best by the evaluator's key metric) as a bare state dict of plain tensors,
    readable with ``weights_only=True``.

    Args:
        network: The network whose weights are written; for a moving average, the averaged one.
        output_dir: Folder of ``model.pt``.
        is_last: Also write ``model_last.pt`` after every validation.
    """

    def __init__(
        self, network: torch.nn.Module, output_dir: str | os.PathLike[str], is_last: bool = True
    ) -> None:
        self.network = network
        self.folder = Path(output_dir)
        self.is_last = is_last

    def attach(self, engine: Engine) -> None:
        """Write when a validation has ended."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if process_rank() != 0:
            return
        if getattr(engine.state, "best_metric_epoch", -1) == engine.state.epoch:
            save_checkpoint(self.folder / "model.pt", bare_state(self.network))
        if self.is_last:
            save_checkpoint(self.folder / "model_last.pt", bare_state(self.network))


def bare_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's weights as plain CPU tensors, without wrappers' prefixes."""
    return {
        name: tensor.detach().cpu().clone() for name, tensor in bare(network).state_dict().items()
    }


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically and read it back with ``weights_only=True`` first."""

    def readable(scratch: Path) -> None:
        torch.load(scratch, map_location="cpu", weights_only=True)

    with atomic_path(path, verify=readable) as scratch:
        try:
            torch.save(dict(state), scratch)
        except RuntimeError as error:  # torch's writer hides the system's error
            line = str(error).partition("\n")[0]
            raise OutputError(f"{path}: cannot be written, is the disk full? ({line}); the last "
                              "good checkpoint stays") from error  # fmt: skip


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint that :class:`Checkpoint` wrote.

    Raises:
        WeightsError: If the file is not a whole checkpoint or would need to run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise WeightsError(f"{path}: is not a readable checkpoint: {error}") from error


def _require_names(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if set(saved) != set(wanted):
        raise ConfigError(
            f"{path}: holds {sorted(saved)} but this config trains {sorted(wanted)}; resume with "
            "the config that the run began with"
        )


def _require_finite(state: Any, path: Path, epoch: int) -> None:
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not bool(torch.isfinite(state).all()):
            raise NonFiniteError(
                f"{path}: epoch {epoch} ended with weights that are not finite; the last good "
                "checkpoint is kept; lower the learning rate and resume"
            )
    elif isinstance(state, Mapping):
        for value in state.values():
            _require_finite(value, path, epoch)


def _random_state() -> dict[str, Any]:
    version, inner, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - MONAI uses it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position),
                  int(has_gauss), float(cached)],
        "python": [version, list(inner), gauss],
    }  # fmt: skip


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))


def _plain(value: Any) -> Any:
    """Only what ``weights_only=True`` can read back: no numpy scalars, no MetaTensor."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().as_subclass(torch.Tensor)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(inner) for inner in value)
    return value
