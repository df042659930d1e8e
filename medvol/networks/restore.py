"""A bundle's network with its weights, as one component that a config can name."""

from __future__ import annotations

import logging
import os

import torch
from torch import nn

from medvol.core import ConfigError
from medvol.networks.checkpointing import with_gradient_checkpointing
from medvol.networks.ensemble import Ensemble, members_in
from medvol.networks.weights import apply_weights, load_weights

logger = logging.getLogger(__name__)


def with_weights(
    network: nn.Module,
    path: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    gradient_checkpointing: bool = False,
    member: int | None = None,
) -> nn.Module:
    """The network on the device, filled from a state dict unless ``path`` is None.

    A file that holds several members' weights (:func:`medvol.networks.join_states`) makes an
    :class:`medvol.networks.Ensemble` of as many copies of the network; an ensemble takes on as
    many members as the file holds.

    Args:
        network: A network with fresh weights.
        path: A bare state dict; None keeps the fresh weights.
        device: Where the network shall live.
        gradient_checkpointing: Train with less memory and about a third more time.
        member: Take only this member, from 0, of a file that holds several: for fine-tuning.

    Raises:
        ConfigError: If the file has no such member.
        WeightsError: If the file is absent, damaged, not finite, or does not fit the network.
        UnsafeFileError: If reading the file would run code.
    """
    if path is not None:
        state = load_weights(path)
        if member is not None and (count := members_in(state)):
            state = _member(state, member, count, path)
        if members_in(state) and not isinstance(network, Ensemble):
            network = Ensemble(network)
        apply_weights(network, network.fit(state) if isinstance(network, Ensemble) else state)
    if gradient_checkpointing:
        with_gradient_checkpointing(network)
    return network.to(device)


def _member(
    state: dict[str, torch.Tensor], member: int, count: int, path: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    if not 0 <= int(member) < count:
        raise ConfigError(f"{path}: has members 0 to {count - 1}, not {member}")
    logger.info("%s holds %d members; starting from member %d", path, count, member)
    prefix = f"networks.{int(member)}."
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
