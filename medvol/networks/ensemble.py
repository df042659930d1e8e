"""Several networks as one module: the mean of their probabilities, in a single network's place."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medvol.core.errors import ConfigError, WeightsError

_MEMBER = re.compile(r"networks\.(\d+)\.")
Activation = Literal["softmax", "sigmoid"]


class Ensemble(nn.Module):
    """The average of several networks' probabilities, as one network for inference.

    Its state dict holds the members' as ``networks.<i>.<name>``, see :func:`join_states`, so that
    one bare ``model.pt`` carries all of them. Loading makes it as large as the weights it is
    given: a single fold's state dict, without such names, makes an ensemble of one.

    Args:
        networks: Members, for example the folds of a cross-validation; or one network that is
            copied ``count`` times, to be filled from such a state dict.
        activation: ``softmax`` or ``sigmoid``.
        returns: ``logits`` whose activation gives the averaged probabilities, so that an
            ensemble takes a single network's place in a bundle, or ``probabilities``.
        count: Members that one network is copied to.
        averages: ``probabilities``, or ``logits`` as nnU-Net does.

    Raises:
        ConfigError: If there is no member, a list of members comes with a count, or what shall be
            averaged is unknown.
    """

    def __init__(
        self,
        networks: nn.Module | Sequence[nn.Module],
        activation: str = "softmax",
        returns: str = "logits",
        count: int | None = None,
        averages: str = "probabilities",
    ) -> None:
        super().__init__()
        if isinstance(networks, nn.Module):
            networks = [copy.deepcopy(networks) for _ in range(1 if count is None else int(count))]
        elif count is not None:
            raise ConfigError(f"count {count} goes with one network, not with {len(networks)}")
        if not networks:
            raise ConfigError("an ensemble needs at least one network")
        self.networks = nn.ModuleList(networks)
        self.activation: Activation = check_activation(activation)
        self.returns = returns
        if averages not in ("probabilities", "logits"):
            raise ConfigError(f"averages {averages!r} is neither probabilities nor logits")
        self.averages = averages

    def fit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take on as many members as the state dict has; returns it under this module's names."""
        if not any(name.startswith("networks.") for name in state):
            state = {f"networks.0.{name}": value for name, value in state.items()}
        count = 1 + max(int(name.split(".")[1]) for name in state)
        while len(self.networks) < count:
            self.networks.append(copy.deepcopy(self.networks[0]))
        del self.networks[count:]
        return dict(state)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        own = {
            n.removeprefix(prefix): state_dict.pop(n) for n in [*state_dict] if n.startswith(prefix)
        }
        state_dict.update({prefix + n: v for n, v in (self.fit(own) if own else {}).items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, window: Tensor) -> Tensor:
        """Predict (B, C, ...) windows."""
        total = window
        for index, network in enumerate(self.networks):
            part = network(window).float()
            if self.averages != "logits":
                part = part.softmax(1) if self.activation == "softmax" else part.sigmoid()
            total = part if index == 0 else total + part
        mean = total / len(self.networks)
        if (self.averages == "logits") == (self.returns == "logits"):
            return mean
        if self.averages == "logits":
            return mean.softmax(1) if self.activation == "softmax" else mean.sigmoid()
        # As in `logits`, written out: TorchScript knows neither finfo nor a Literal.
        if self.activation == "softmax":
            return mean.clamp_min(1.1754943508222875e-38).log()
        return mean.logit(eps=1e-7)


def join_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The members' bare state dicts as the state dict of their :class:`Ensemble`.

    Raises:
        WeightsError: If the members are not of one architecture.
    """
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    for index, found in enumerate(shapes):
        if found != shapes[0]:
            raise WeightsError(f"member {index} has other weights than member 0: an ensemble's "
                               "members share one architecture")  # fmt: skip
    return {
        f"networks.{index}.{name}": value
        for index, state in enumerate(states)
        for name, value in state.items()
    }


def members_in(state: Mapping[str, Tensor]) -> int:
    """How many members' weights a state dict of :func:`join_states` holds; 0 for one network's."""
    found = [_MEMBER.match(name) for name in state]
    if not found or not all(found):
        return 0
    return 1 + max(int(match[1]) for match in found if match)


def member_state(
    state: Mapping[str, Tensor], member: int, source: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """One member's own state dict out of an ensemble's.

    Raises:
        WeightsError: Naming ``source`` if there is no such member.
    """
    if not 0 <= member < (count := members_in(state)):
        raise WeightsError(f"{source}: holds {count} members, 0 to {count - 1}, not {member}")
    prefix = f"networks.{member}."
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def first_member(network: nn.Module) -> nn.Module:
    """What a bundle trains of its network: an ensemble's first member, else the network itself."""
    return network.networks[0] if isinstance(network, Ensemble) else network


def member_layers(network: nn.Module, layer: str) -> tuple[str, ...]:
    """A layer's name in each member of an ensemble; the name itself in any other network."""
    if not isinstance(network, Ensemble) or _MEMBER.match(layer):
        return (layer,)
    return tuple(f"networks.{index}.{layer}" for index in range(len(network.networks)))


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Class probabilities of network outputs (B, C, ...)."""
    return logits.softmax(1) if activation == "softmax" else logits.sigmoid()


def logits(probability: Tensor, activation: Activation) -> Tensor:
    """Network outputs whose activation gives back ``probability``, to 1e-6."""
    if activation == "softmax":
        return probability.clamp_min(torch.finfo(probability.dtype).tiny).log()
    return probability.logit(eps=1e-7)


def check_activation(activation: str) -> Activation:
    """Reject what is neither ``softmax`` nor ``sigmoid``."""
    if activation not in get_args(Activation):
        raise ConfigError(f"activation {activation!r} is unknown; choose softmax or sigmoid")
    return activation  # pyright: ignore[reportReturnType]
