"""What several networks and mirror images predict together: the mean, and how they disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from medvol.core.errors import ConfigError
from medvol.networks.ensemble import Activation, Ensemble, probabilities

#: What windows blend: network outputs before their activation, or probabilities.
Blended = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class UncertainPrediction:
    """Probabilities with their uncertainty, in nats, each (B, ..., spatial...).

    Attributes:
        probabilities: Mean over members, (B, C, ...).
        aleatoric: Mean over members of each one's entropy: what every member finds unclear.
        epistemic: Entropy of the mean less that: what members disagree on. Never negative.
    """

    probabilities: torch.Tensor
    aleatoric: torch.Tensor
    epistemic: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Entropy of the mean prediction."""
        return self.aleatoric + self.epistemic


def entropy(probability: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Entropy (B, 1, ...) of probabilities (B, C, ...) in nats; sigmoid channels add up.

    Source:
        Depeweg et al. 2018, ICML, "Decomposition of uncertainty in Bayesian deep learning".
    """
    parts = torch.special.entr(probability)
    if activation == "sigmoid":
        parts = parts + torch.special.entr(1 - probability)
    return parts.sum(1, keepdim=True)


def members_of(network: Any) -> list[Any]:
    """The networks whose probabilities are averaged; any other network is its own only member.

    An ensemble that averages logits counts as one: the mean of its members' probabilities is not
    its prediction.
    """
    if isinstance(network, Ensemble) and network.averages == "probabilities":
        return list(network.networks)
    return [network]


def is_mean(network: Any) -> bool:
    """Whether a network stands for the mean of several, be it exported to another engine."""
    return len(members_of(network)) > 1 or bool(getattr(network, "is_mean", False))


def member_mean(
    networks: Sequence[Callable[..., Any]],
    flips: Sequence[tuple[int, ...]],
    activation: Activation,
    blended: Blended,
    *,
    at_once: int = 1,
    with_entropy: bool = False,
) -> Callable[..., Any]:
    """A predictor of windows: the mean over all pairs of a network and a mirror image.

    The mean is the same, bit for bit, whether or not entropy is returned beside it.

    Args:
        networks: Predictors of windows (B, C, ...).
        flips: Dims to mirror along, from ``Mirrors.combinations``; ``()`` is the window itself.
        activation: Turns outputs into probabilities.
        blended: What is averaged.
        at_once: Mirror images share one pass as long as it holds no more windows than this: an
            image that fits into one window then runs as a batch of itself and its mirrors.
        with_entropy: Return (mean, mean entropy (B, 1, ...)) instead of the mean.

    Raises:
        ConfigError: If there is no network or no mirror image.
    """
    if not networks or not flips:
        raise ConfigError("a mean needs at least one network and one image")
    members = len(networks) * len(flips)

    def predict(window: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # what else is handed over, such as coordinates, belongs to the windows as they came
        count = 1 if args or kwargs else max(1, at_once // len(window))
        mean: torch.Tensor | None = None
        doubt: torch.Tensor | None = None
        for first in range(0, len(flips), count):
            some = flips[first : first + count]
            views = [torch.flip(window, dims) if dims else window for dims in some]
            batch = views[0] if len(some) == 1 else torch.cat(views)
            for network in networks:
                out = network(batch, *args, **kwargs)
                part = probabilities(out, activation) if blended == "probabilities" else out
                mean = _added(mean, part, some)
                if with_entropy:
                    sure = part if blended == "probabilities" else probabilities(out, activation)
                    doubt = _added(doubt, entropy(sure, activation), some)
        mean = torch.as_tensor(mean)
        if not with_entropy:
            return mean.div_(members) if members > 1 else mean
        return (
            mean.div_(members) if members > 1 else mean,
            torch.as_tensor(doubt).div_(members),
        )

    return predict


def _added(
    total: torch.Tensor | None, part: torch.Tensor, flips: Sequence[tuple[int, ...]]
) -> torch.Tensor:
    """The total with each mirror image's part turned back and added."""
    for dims, one in zip(flips, part.split(len(part) // len(flips)), strict=True):
        back = torch.flip(one, dims) if dims else one
        total = back if total is None else total + back
    return torch.as_tensor(total)
