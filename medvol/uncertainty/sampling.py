"""Several predictions of one input, and what their disagreement means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from medvol.core import ConfigError

Predict = Callable[[Tensor, nn.Module], Tensor]


def mc_dropout(
    network: nn.Module,
    x: Tensor,
    *,
    samples: int = 16,
    seed: int = 0,
    predict: Predict | None = None,
) -> Tensor:
    """Softmax predictions with dropout active and everything else in evaluation mode.

    Args:
        network: Output (B, classes, ...); must hold a dropout layer.
        x: Batch of inputs.
        samples: Forward passes.
        seed: Of the dropout masks; the global random state is left alone.
        predict: ``(x, network) -> logits``; an inferer suits, the plain call is the default.

    Returns:
        Shape (samples, B, classes, ...).

    Raises:
        ConfigError: If the network has no dropout, whose samples would all agree.

    Source:
        Gal & Ghahramani 2016, ICML, arXiv:1506.02142.
    """
    if not any(_drops(module) for module in network.modules()):
        raise ConfigError(
            f"{type(network).__name__} has no dropout layer: MC dropout would always agree; "
            "train with dropout or use an ensemble"
        )
    devices = [x.device] if x.is_cuda else []
    with _only_dropout_trains(network), torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        return torch.stack([_probabilities(network, x, predict) for _ in range(samples)])


def ensemble(networks: Sequence[nn.Module], x: Tensor, *, predict: Predict | None = None) -> Tensor:
    """Softmax predictions of several networks, shape (networks, B, classes, ...).

    Source:
        Lakshminarayanan et al. 2017, NeurIPS, arXiv:1612.01474.
    """
    if not networks:
        raise ConfigError("an ensemble needs a network")
    found = []
    for network in networks:
        flags = [(module, module.training) for module in network.modules()]
        network.eval()
        with torch.no_grad():
            found.append(_probabilities(network, x, predict))
        for module, flag in flags:
            module.training = flag
    return torch.stack(found)


def _probabilities(network: nn.Module, x: Tensor, predict: Predict | None) -> Tensor:
    output = network(x) if predict is None else predict(x, network)
    output = output[0] if isinstance(output, (tuple, list)) else output
    return output.as_subclass(Tensor).float().softmax(1)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) and module.p > 0


@contextmanager
def _only_dropout_trains(network: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in flags:
            module.training = _drops(module)
        yield
    finally:
        for module, flag in flags:
            module.training = flag
