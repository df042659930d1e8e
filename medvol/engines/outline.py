"""Training a classifier on the class and on the outline that the class follows from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvol.core import ConfigError
from medvol.engines.data import plain_batch
from medvol.engines.losses import WeightedCrossEntropy


class OutlineLoss(nn.Module):
    """Loss of a network that outlines a structure and draws the class from its volume.

    The sum of cross-entropy and soft Dice loss of the cells, of the squared error of the volume in
    units of ``spread_ml``, and of ``class_weight`` times the class's own cross-entropy. Masks come
    at the image's resolution and are averaged over the network's cells.

    Args:
        class_loss: Loss of the class scores.
        voxel_ml: Volume of one voxel of the masks.
        spread_ml: Unit of the volume's error; about the population's standard deviation. An error
            beyond it counts linearly.
        class_weight: Weight of the class's loss.
    """

    def __init__(
        self,
        class_loss: WeightedCrossEntropy,
        voxel_ml: float = 0.001,
        spread_ml: float = 0.5,
        class_weight: float = 0.2,
    ) -> None:
        super().__init__()
        self.class_loss = class_loss
        self.voxel_ml, self.spread_ml = float(voxel_ml), float(spread_ml)
        self.class_weight = float(class_weight)

    def forward(self, pred: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of (scores, cell logits) against (class numbers, masks (B, 1, ...)).

        Raises:
            ConfigError: If the network gives scores alone: it is none that outlines.
        """
        if not isinstance(pred, (tuple, list)):
            raise ConfigError("the network gives no outline beside its scores")
        (scores, cells), (classes, mask) = pred, target
        factor = [n // c for n, c in zip(mask.shape[2:], cells.shape[2:], strict=True)]
        pool = F.avg_pool3d if mask.ndim == 5 else F.avg_pool2d
        share = pool((mask > 0).to(cells.dtype), factor)
        found = cells.sigmoid()
        overlap = 2 * (found * share).sum() / (found.square().sum() + share.square().sum() + 1e-6)
        cell_ml = self.voxel_ml * mask[0, 0].numel() / cells[0, 0].numel()
        error = (found - share).flatten(1).sum(1) * cell_ml / self.spread_ml
        volume = F.smooth_l1_loss(error, torch.zeros_like(error))
        outline = F.binary_cross_entropy_with_logits(cells, share) + 1 - overlap
        return outline + volume + self.class_weight * self.class_loss(scores, classes)


def outline_batch(
    batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Image, and (class number, mask) as the target of :class:`OutlineLoss`."""
    image, label = plain_batch(batch, device, non_blocking, **kwargs)
    mask, _ = plain_batch({"image": batch["mask"]}, device, non_blocking)
    return image, (label, mask)  # pyright: ignore[reportReturnType]
