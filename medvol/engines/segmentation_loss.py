"""Dice plus cross-entropy over labels or regions, with supervised levels and ignored voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvol.core import ConfigError
from medvol.engines.distributed import summed

_EPSILON = 1e-5


class SegmentationLoss(nn.Module):
    """Mean of batch Dice loss and cross-entropy against an integer label map, both weight 1.

    Dice is taken over the whole batch at once, over all processes, so that a patch without a
    structure does not count as a miss of it. A structure that the whole batch lacks is left to the
    cross-entropy: its Dice would drive the faint probabilities of a rare structure to 0. A network
    that returns its lower levels in training, stacked as (B, levels, C, ...) like MONAI's DynUNet,
    is supervised at every level with halving weights that sum to 1.

    Args:
        members: Per structure, in order of the channels, the label values that make it up; more
            than one for a region.
        is_exclusive: Softmax over background (channel 0) and structures; else a sigmoid each.
        ignore_label: Voxels with this value count in neither part.

    Source:
        Isensee et al. 2021, Nat Methods 18:203, doi:10.1038/s41592-020-01008-z, online methods.
    """

    def __init__(
        self,
        members: Sequence[Sequence[int]],
        is_exclusive: bool = True,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.members = [[int(value) for value in row] for row in members]
        self.is_exclusive = is_exclusive
        self.ignore_label = ignore_label
        flat = [value for row in self.members for value in row]
        if is_exclusive and len(flat) != len(set(flat)):
            raise ConfigError(f"structures {self.members} overlap; they need a sigmoid each")

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean loss.

        Args:
            logits: (B, C, ...) or, with supervised levels, (B, levels, C, ...), finest first.
            label: Integer label map, shape (B, 1, ...).
        """
        target = torch.cat([self._is_in(label, row) for row in self.members], dim=1).float()
        kept = None if self.ignore_label is None else (label != self.ignore_label).float()
        levels = logits.unbind(1) if logits.ndim == label.ndim + 1 else (logits,)
        weights = [0.5**level for level in range(len(levels))]
        parts = [
            w / sum(weights) * self._level(level.float(), target, kept)
            for w, level in zip(weights, levels, strict=True)
        ]
        return torch.stack(parts).sum()

    def _level(self, logits: Tensor, target: Tensor, kept: Tensor | None) -> Tensor:
        wanted = target.shape[1] + int(self.is_exclusive)
        if logits.shape[1] != wanted:
            raise ConfigError(f"the network gives {logits.shape[1]} channels, not {wanted}")
        if self.is_exclusive:
            log_probs = F.log_softmax(logits, dim=1)
            full = torch.cat([1 - target.sum(dim=1, keepdim=True), target], dim=1)
            entropy = -(full * log_probs).sum(dim=1, keepdim=True)
            probs = log_probs[:, 1:].exp()
        else:
            entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            probs = logits.sigmoid()
        if kept is None:
            return entropy.mean() + _dice_loss(probs, target)
        mean = (entropy * kept).sum() / (kept.sum() * entropy.shape[1]).clamp_min(1.0)
        return mean + _dice_loss(probs * kept, target * kept)

    @staticmethod
    def _is_in(label: Tensor, values: Sequence[int]) -> Tensor:
        return torch.stack([label == value for value in values]).any(dim=0)


def _dice_loss(probs: Tensor, target: Tensor) -> Tensor:
    axes = [0, *range(2, probs.ndim)]
    held = target.sum(dim=axes)
    shared, total, wanted = summed((probs * target).sum(dim=axes), probs.sum(dim=axes) + held, held)
    is_here = (wanted > 0).float()
    loss = 1 - (2 * shared + _EPSILON) / (total + _EPSILON)
    return (loss * is_here).sum() / is_here.sum().clamp_min(1.0)
