"""Loss of a network that predicts classes and the side of a voxel apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvol.core import ConfigError
from medvol.engines.distributed import summed


class SidedLoss(nn.Module):
    """Weighted cross-entropy and Dice of the classes, plus cross-entropy of the side.

    The Dice loss is the mean over the classes that the batch holds, background left out, taken
    over the whole batch and all processes; the side is learned from the voxels of classes that
    have two.

    Args:
        values: Label value of every output channel of :class:`medvol.networks.SidedNetwork`:
            background and classes first, then the right sides.
        mirrored: Channels of the classes that have two sides, in the order of their right sides.
        weights: Weight of every class in the cross-entropy, so that small structures are learned
            at all; None weighs every voxel alike.

    Raises:
        ConfigError: If values, mirrored and weights do not fit each other.
    """

    to_class: Tensor
    to_side: Tensor
    weights: Tensor

    def __init__(
        self,
        values: Sequence[int],
        mirrored: Sequence[int],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.classes = len(values) - len(mirrored)
        if not all(0 < channel < self.classes for channel in mirrored):
            raise ConfigError(
                f"mirrored {list(mirrored)} are not channels of {self.classes} classes; of "
                f"{len(values)} values the last {len(mirrored)} are right sides"
            )
        if weights is not None and len(weights) != self.classes:
            raise ConfigError(f"{len(weights)} weights for {self.classes} classes")
        to_class = torch.zeros(max(values) + 2, dtype=torch.long)  # the last row: any other label
        to_side = torch.full((len(to_class),), -1.0)
        for channel, value in enumerate(values[: self.classes]):
            to_class[value] = channel
        for channel, right in zip(mirrored, values[self.classes :], strict=True):
            to_class[right] = channel
            to_side[values[channel]], to_side[right] = 0.0, 1.0
        self.register_buffer("to_class", to_class, persistent=False)
        self.register_buffer("to_side", to_side, persistent=False)
        given = torch.ones(self.classes) if weights is None else torch.tensor(list(weights))
        self.register_buffer("weights", given.float(), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Sum of the three parts.

        Args:
            logits: (B, classes + 1, ...), the last channel that of "right", as ``SidedNetwork``
                gives them in training.
            label: Label map, (B, 1, ...); values without a structure count as background.
        """
        if logits.shape[1] != self.classes + 1:
            raise ConfigError(
                f"the network gives {logits.shape[1]} channels, not {self.classes} classes and a "
                "side; train a SidedNetwork with this loss"
            )
        device = logits.device
        index = label.long().clamp(-1, len(self.to_class) - 1).reshape(-1).to(device)
        y, side = self.to_class.to(device)[index], self.to_side.to(device)[index]
        flat = logits.float().movedim(1, 0).reshape(self.classes + 1, -1)
        log_probs = flat[:-1].log_softmax(0)
        true = log_probs.gather(0, y[None])[0]
        w = self.weights.to(device)[y]
        entropy = -(w * true).sum() / w.sum()
        return entropy + self._dice(log_probs, true, y) + _side(flat[-1], side)

    def _dice(self, log_probs: Tensor, true: Tensor, y: Tensor) -> Tensor:
        shared = torch.zeros(self.classes, device=y.device).index_add(0, y, true.exp())
        held = torch.bincount(y, minlength=self.classes).float()
        shared, total, held = summed(shared, log_probs.exp().sum(1) + held, held)
        is_here = held > 0
        is_here[0] = False
        lost = 1 - (2 * shared + 1) / (total + 1)
        return (lost * is_here).sum() / is_here.sum().clamp_min(1)


def _side(logit: Tensor, side: Tensor) -> Tensor:
    is_sided = side >= 0
    parts = F.binary_cross_entropy_with_logits(logit, side.clamp_min(0), reduction="none")
    return (parts * is_sided).sum() / is_sided.sum().clamp_min(1)
