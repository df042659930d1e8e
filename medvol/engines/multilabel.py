"""Loss for networks with one sigmoid per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import nn


class SigmoidDiceBCE(nn.Module):
    """Dice plus binary cross-entropy over sigmoid channels, against an integer label map.

    Args:
        values: Label value of each output channel, in order.
    """

    def __init__(self, values: Sequence[int]) -> None:
        super().__init__()
        self.values = tuple(int(value) for value in values)
        self.dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
        self.entropy = nn.BCEWithLogitsLoss()

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Mean loss.

        Args:
            logits: Shape (B, len(values), ...).
            label: Integer label map, shape (B, 1, ...).
        """
        target = torch.cat([label == value for value in self.values], dim=1).to(logits.dtype)
        return self.dice(logits, target) + self.entropy(logits, target)
