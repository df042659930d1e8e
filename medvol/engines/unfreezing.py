"""Transfer learning from the top down: the head first, then one stage of the backbone at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from medvol.core import ConfigError

#: Stages from the output to the input; each is a list of module names, "" means all the rest.
Stages = Sequence[Sequence[str]]


class GradualUnfreezing:
    """Ignite handler of the trainer: stage ``i`` learns from epoch ``epochs[i]`` on.

    Frozen stages get no gradient, and their batch normalisation keeps its statistics although
    MONAI's trainer puts the whole network into training mode at every step. What is frozen
    depends on the epoch alone, so a resumed run continues rightly.

    Args:
        network: The network that is trained.
        stages: Module names from the output (the head) to the input, for example
            ``[["class_layers"], ["features.norm5", "features.denseblock4"], [""]]``.
        epochs: First epoch of each stage, counted from 1; the first is 1, none is earlier than
            the one before.
        keep_norm: Normalisation layers of the backbone (all stages but the first) keep their
            statistics even once they learn: advisable for small batches.

    Raises:
        ConfigError: If a stage names nothing, a parameter is in no stage, or the epochs do not
            rise from 1.

    Source:
        Howard & Ruder 2018, ACL, doi:10.18653/v1/P18-1031.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Stages,
        epochs: Sequence[int],
        keep_norm: bool = False,
    ) -> None:
        if isinstance(network, DistributedDataParallel) and len(stages) > 1:
            raise ConfigError(
                "distributed training averages only what learns from the start: train in one "
                "process, or set stages to [['']]"
            )
        self.parameters = split_parameters(network, stages)
        self.epochs = [int(epoch) for epoch in epochs]
        if len(self.epochs) != len(stages):
            raise ConfigError(f"{len(self.epochs)} epochs were given for {len(stages)} stages")
        if self.epochs[0] != 1 or self.epochs != sorted(self.epochs):
            raise ConfigError(f"unfreezing epochs {self.epochs} must rise, the first one being 1")
        self.keep_norm = bool(keep_norm)
        self.norms = _split_modules(network, stages, _BatchNorm)
        self.epoch = 1
        self._apply()
        network.register_forward_pre_hook(self._hold_statistics)

    def attach(self, engine: Engine) -> None:
        """Update what is frozen when an epoch starts."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.epoch = engine.state.epoch
        self._apply()

    @property
    def unfrozen(self) -> int:
        """How many stages learn in the current epoch."""
        return sum(epoch <= self.epoch for epoch in self.epochs)

    def _apply(self) -> None:
        for number, parameters in enumerate(self.parameters):
            for parameter in parameters:
                parameter.requires_grad_(number < self.unfrozen)

    def _hold_statistics(self, network: nn.Module, _inputs: Any) -> None:
        if not network.training:
            return
        for number, norms in enumerate(self.norms):
            if number >= self.unfrozen or (self.keep_norm and number > 0):
                for norm in norms:
                    norm.eval()


def discriminative_groups(
    network: nn.Module,
    stages: Stages,
    head_lr: float = 0.001,
    backbone_lr: float = 0.00001,
    decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: the head fast, the backbone slowly.

    Args:
        network: The network that is trained.
        stages: As for :class:`GradualUnfreezing`; the first is the head.
        head_lr: Learning rate of the first stage.
        backbone_lr: Learning rate of the second stage.
        decay: Each further stage learns at this multiple of the one above it.

    Returns:
        One group per stage with ``params``, ``lr`` and ``name``, in the order of the stages.
    """
    if min(head_lr, backbone_lr, decay) <= 0:
        raise ConfigError("head_lr, backbone_lr and decay must be above 0")
    rates = [head_lr, *(backbone_lr * decay**i for i in range(len(stages) - 1))]
    groups = zip(split_parameters(network, stages), rates, stages, strict=True)
    return [
        {"params": parameters, "lr": rate, "name": " ".join(stage) or "rest"}
        for parameters, rate, stage in groups
    ]


def split_parameters(network: nn.Module, stages: Stages) -> list[list[nn.Parameter]]:
    """The parameters of each stage; every parameter is in the first stage that names it.

    Raises:
        ConfigError: If a stage is empty or a parameter is in none.
    """
    split: list[list[nn.Parameter]] = [[] for _ in stages]
    for name, parameter in network.named_parameters():
        number = _stage_of(name, stages)
        if number is None:
            raise ConfigError(f"parameter {name!r} is in no stage; end the stages with ['']")
        split[number].append(parameter)
    for stage, parameters in zip(stages, split, strict=True):
        if not parameters:
            raise ConfigError(
                f"stage {list(stage)} names nothing in {type(network).__name__}; its modules: "
                f"{', '.join(name for name, _ in network.named_children())}"
            )
    return split


def _split_modules(network: nn.Module, stages: Stages, kind: type) -> list[list[nn.Module]]:
    split: list[list[nn.Module]] = [[] for _ in stages]
    for name, module in network.named_modules():
        number = _stage_of(name, stages)
        if isinstance(module, kind) and number is not None:
            split[number].append(module)
    return split


def _stage_of(name: str, stages: Stages) -> int | None:
    for number, stage in enumerate(stages):
        if any(part in ("", name) or name.startswith(f"{part}.") for part in stage):
            return number
    return None
