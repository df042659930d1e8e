"""What several networks say together: the mean, what is unclear, and what they disagree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medvol.core.errors import ConfigError
from medvol.networks.ensemble import Activation, check_activation, probabilities


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
    """Entropy (B, 1, ...) of probabilities (B, C, ...) in nats; sigmoid channels add up."""
    parts = torch.special.entr(probability)
    if activation == "sigmoid":
        parts = parts + torch.special.entr(1 - probability)
    return parts.sum(1, keepdim=True)


def predict_uncertain(
    inferer: Callable[..., Any],
    inputs: torch.Tensor,
    networks: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    *,
    activation: str = "softmax",
    flips: Sequence[tuple[int, ...]] = ((),),
) -> UncertainPrediction:
    """Probabilities and both kinds of uncertainty in one pass over the image.

    Members are all pairs of a network and a mirror image. Their mean probability and mean entropy
    are blended together, one channel more than a plain prediction; entropy is concave, so that
    the epistemic part stays non-negative after blending.

    Args:
        inferer: A sliding window without mirrors of its own; blends what the members return.
        inputs: Image batch (B, C, spatial...).
        networks: Ensemble members.
        activation: ``softmax`` or ``sigmoid``.
        flips: Dims to mirror along, from ``Mirrors.combinations``.

    Source:
        Depeweg et al. 2018, ICML, "Decomposition of uncertainty in Bayesian deep learning".
    """
    kind = check_activation(activation)
    members = [(network, dims) for network in networks for dims in flips]
    if not members:
        raise ConfigError("an ensemble needs at least one network")

    def both(window: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for network, dims in members:
            view = torch.flip(window, dims) if dims else window
            part = probabilities(network(view), kind)
            part = torch.cat([part, entropy(part, kind)], 1)
            part = torch.flip(part, dims) if dims else part
            total = part if total is None else total.add_(part)
        return torch.as_tensor(total).div_(len(members))

    blended = inferer(inputs, both)
    mean, aleatoric = blended[:, :-1], blended[:, -1:]
    epistemic = (entropy(mean, kind) - aleatoric).clamp_min(0)
    return UncertainPrediction(mean, aleatoric, epistemic)
