"""Classification losses for uneven classes, taking class numbers as data loaders give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvol.core import ConfigError

Weighting = Literal["inverse", "effective"]


class FocalLoss(nn.Module):
    """Focal loss over exclusive classes, ``-alpha_t (1 - p_t)^gamma log p_t``, mean over items.

    MONAI's takes one-hot targets and divides by the number of classes too; with ``gamma`` 0 and
    no ``alpha`` this one is cross-entropy.

    Args:
        alpha: Weight of every class but the first; the first (negative) one gets ``1 - alpha``.
            A sequence gives one weight per class, None weighs all alike. Note that the usual
            0.25 lowers the positives: it was found for gamma 2, where easy negatives count little.
        gamma: How fast easy items lose weight.

    Source:
        Lin et al. 2017, ICCV, doi:10.1109/ICCV.2017.324.
    """

    def __init__(self, alpha: float | Sequence[float] | None = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        weights = [] if alpha is None else [alpha] if isinstance(alpha, (int, float)) else alpha
        if any(not 0 <= float(w) <= 1 for w in weights) or gamma < 0:
            raise ConfigError(f"alpha {alpha} must lie in 0 to 1 and gamma {gamma} at or above 0")
        self.alpha, self.gamma = alpha, float(gamma)

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits (B, classes) against class numbers (B,) or (B, 1)."""
        scores, target = _checked(scores, target)
        log_p = F.log_softmax(scores.float(), 1).gather(1, target[:, None])[:, 0]
        # At p = 1 the root of a gamma below 1 has no finite slope: stay just above it.
        missing = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        loss = -(missing**self.gamma) * log_p
        if self.alpha is not None:
            loss = loss * self._weights(scores)[target]
        return loss.mean()

    def _weights(self, scores: Tensor) -> Tensor:
        classes = scores.shape[1]
        if isinstance(self.alpha, (int, float)):
            return scores.new_tensor([1 - self.alpha] + [self.alpha] * (classes - 1))
        weights = scores.new_tensor([float(w) for w in self.alpha or ()])
        if len(weights) != classes:
            raise ConfigError(f"alpha has {len(weights)} weights for {classes} classes")
        return weights


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy whose class weights come from the training set's counts.

    Args:
        counts: Training items per class, in class order; None weighs all alike.
        weighting: ``inverse``: N / (classes * count), which gives every class the same total.
            ``effective``: inverse of the effective number of items, (1 - beta^count) / (1 - beta).
        beta: Of ``effective``; nearer 1 is nearer to ``inverse``.
        label_smoothing: Share of each target spread over all classes.

    Source:
        Cui et al. 2019, CVPR, doi:10.1109/CVPR.2019.00949 (effective numbers).
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: Sequence[int] | None = None,
        *,
        weighting: Weighting = "inverse",
        beta: float = 0.999,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = float(label_smoothing)
        weight = None if counts is None else class_weights(counts, weighting, beta)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Weighted mean loss of logits (B, classes) against class numbers (B,) or (B, 1)."""
        scores, target = _checked(scores, target)
        if self.weight is not None and len(self.weight) != scores.shape[1]:
            raise ConfigError(f"{len(self.weight)} class counts for {scores.shape[1]} classes")
        weight = None if self.weight is None else self.weight.to(scores.device)
        return F.cross_entropy(scores.float(), target, weight, label_smoothing=self.label_smoothing)


def class_weights(
    counts: Sequence[int], weighting: Weighting = "inverse", beta: float = 0.999
) -> Tensor:
    """One weight per class; their mean over the items that ``counts`` counts is 1.

    Raises:
        ConfigError: If a class has no item, which no weight can fix.

    >>> class_weights([30, 10])
    tensor([0.6667, 2.0000])
    """
    n = torch.as_tensor([float(c) for c in counts], dtype=torch.float64)
    if len(n) < 2 or bool((n < 1).any()):
        raise ConfigError(f"class counts {list(counts)}: every class needs a training item")
    if weighting == "inverse":
        raw = 1 / n
    elif weighting == "effective" and 0 <= beta < 1:
        raw = (1 - beta) / (1 - beta**n)
    else:
        raise ConfigError(f"weighting {weighting!r} with beta {beta} is unknown")
    return (raw * n.sum() / (raw * n).sum()).float()


def _checked(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Plain tensors: class numbers flattened, and rejected where there is no such class."""
    scores, target = (t.as_subclass(Tensor) for t in (scores, target))
    target = target.reshape(-1).long()
    if scores.ndim != 2 or len(target) != len(scores):
        raise ConfigError(
            f"scores of shape {tuple(scores.shape)} do not go with {len(target)} class numbers"
        )
    return scores, target
