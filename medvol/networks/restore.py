"""A bundle's network with its weights, as one component that a config can name."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medvol.core.errors import WeightsError
from medvol.networks.checkpointing import with_gradient_checkpointing
from medvol.networks.ensemble import Ensemble, member_state, members_in
from medvol.networks.weights import apply_weights, load_weights

logger = logging.getLogger(__name__)


def with_weights(
    network: nn.Module,
    path: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    gradient_checkpointing: bool = False,
    member: int | None = None,
    is_required: bool = True,
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
        member: Of a file with several members' weights, the one to take; None takes all.
        is_required: False lets a config be inspected where the file is absent: the network is
            built, and raises the WeightsError when it is called.

    Raises:
        ConfigError: If the file has no such member.
        WeightsError: If the file is absent, damaged, not finite, or does not fit the network.
        UnsafeFileError: If reading the file would run code.
    """
    if path is not None and (is_required or Path(path).is_file()):
        network = _filled(network, path, member)
    elif path is not None:
        network.register_forward_pre_hook(_NoWeights(path))
    if gradient_checkpointing:
        with_gradient_checkpointing(network)
    return network.to(device)


def _filled(network: nn.Module, path: str | os.PathLike[str], member: int | None) -> nn.Module:
    state = load_weights(path)
    if members_in(state) and member is not None:
        count, state = members_in(state), member_state(state, member, path)
        logger.info("%s holds %d members; starting from member %d", path, count, member)
    if members_in(state) and not isinstance(network, Ensemble):
        network = Ensemble(network)
    apply_weights(network, network.fit(state) if isinstance(network, Ensemble) else state)
    return network


class _NoWeights:
    """A hook in front of a network that must not predict: it has no weights yet."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def __call__(self, *_: Any) -> None:
        raise WeightsError(f"{self.path}: no such weights file")
