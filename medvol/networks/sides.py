"""Left and right of a structure as one class and one side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid


class SidedNetwork(nn.Module):
    """Turn classes and a side into one channel per structure of each side.

    Mirrored structures look alike, so that a network needs one channel for both, and one more
    for the side of a voxel, whatever its class. With p(class) a softmax and p(right) a sigmoid,
    the softmax of the output channels is exactly p(class) p(side): argmax, probabilities and
    cross-entropy work as for any other network, at about half the cost of the last layer.

    In training the output is the one of the inner network, for ``medvol.engines.SidedLoss``.

    Args:
        network: Predicts one channel per class, then the logit of "right".
        mirrored: Channels of the classes that have two sides. The output holds every class first
            (the left side of those that have two), then their right sides in this order.
    """

    def __init__(self, network: nn.Module, mirrored: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.mirrored = [int(channel) for channel in mirrored]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, ...) to (B, classes + mirrored, ...)."""
        out = self.network(x)
        if self.training:
            return out
        classes, side = out[:, :-1], out[:, -1:]
        right = classes[:, self.mirrored] + logsigmoid(side)
        left = classes.clone()
        left[:, self.mirrored] = classes[:, self.mirrored] + logsigmoid(-side)
        return torch.cat([left, right], dim=1)
