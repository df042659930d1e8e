"""From network output to one label per voxel: activation, thresholds, values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from medvol.core.errors import ConfigError
from medvol.networks.ensemble import Activation, check_activation, probabilities

Resampled = Literal["probabilities", "logits"]
_LARGEST = 255


@dataclass(frozen=True)
class Decision:
    """How class probabilities become one label.

    Attributes:
        activation: Turns blended network output into probabilities, ``softmax`` or ``sigmoid``.
        values: Label of each channel; default 0, 1, ... or 1 for a single channel.
        thresholds: Least probability per channel, below which the winner becomes background; one
            number serves all channels. None: the largest channel wins, whatever its probability;
            single channels and overlapping regions then need 0.5. Positive means >= threshold.
        factors: What each channel is multiplied by before the largest is sought, so that a
            structure can win at another threshold than one half; None multiplies nothing.
        overlaps: Channels are overlapping regions, painted one after another, each over those
            before it (nnU-Net's ``regions_class_order``): whole tumour, then its core.
        resampled: What is brought to the source grid: ``probabilities``, or ``logits`` as
            nnU-Net does.

    Raises:
        ConfigError: If the parts do not fit each other.
    """

    activation: Activation = "softmax"
    values: tuple[int, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    factors: tuple[float, ...] | None = None
    overlaps: bool = False
    resampled: Resampled = "probabilities"

    def __post_init__(self) -> None:
        check_activation(self.activation)
        if self.resampled not in get_args(Resampled):
            raise ConfigError(f"resampled {self.resampled!r} is neither probabilities nor logits")
        for name, kind in (("values", int), ("thresholds", float), ("factors", float)):
            given = getattr(self, name)
            if given is not None:
                listed = given if isinstance(given, Sequence) else [given]
                object.__setattr__(self, name, tuple(kind(v) for v in listed))
        if max(self.values or (0,)) > _LARGEST or min(self.values or (0,)) < 0:
            raise ConfigError(f"labels {list(self.values or ())} do not fit an 8-bit label map")
        if not all(factor > 0 for factor in self.factors or ()):
            raise ConfigError(f"factors of channels must be above 0: {list(self.factors or ())}")
        if self.overlaps and self.activation != "sigmoid":
            raise ConfigError("overlapping regions need the sigmoid activation")

    def check(self, channels: int) -> None:
        """Reject a decision that does not fit a network of so many output channels.

        Raises:
            ConfigError: Naming what does not fit.
        """
        if channels > _LARGEST + 1:
            raise ConfigError(f"{channels} classes do not fit an 8-bit label map")
        for name in ("thresholds", "values", "factors"):
            given = getattr(self, name)
            legal = (1, channels) if name == "thresholds" else (channels,)
            if given is not None and len(given) not in legal:
                raise ConfigError(f"{len(given)} {name} for {channels} output channels")
        if channels == 1 and self.activation == "softmax":
            raise ConfigError("the softmax of a single channel is always 1; use sigmoid")

    def channel_values(self, channels: int) -> tuple[int, ...]:
        """The label of each channel."""
        return self.values or ((1,) if channels == 1 else tuple(range(channels)))

    def activate(self, values: torch.Tensor) -> torch.Tensor:
        """Probabilities of outputs (C, ...)."""
        return probabilities(values[None], self.activation)[0]

    def labels(self, probability: torch.Tensor) -> torch.Tensor:
        """The label, 8-bit, at probabilities (C, ...)."""
        channels, kind, device = len(probability), probability.dtype, probability.device
        values = torch.tensor(self.channel_values(channels), dtype=torch.uint8, device=device)
        given = self.thresholds or (0.5,)
        least = torch.tensor(given * (channels // len(given)), dtype=kind, device=device)
        nothing = values.new_zeros(())
        if self.overlaps:
            painted = nothing.expand(probability.shape[1:])
            for value, part, threshold in zip(values, probability, least, strict=True):
                painted = torch.where(part >= threshold, value, painted)
            return painted
        if self.factors is not None:
            factors = torch.tensor(self.factors, dtype=kind, device=device)
            scaled = probability * factors.reshape(-1, *[1] * (probability.ndim - 1))
        else:
            scaled = probability
        best, index = scaled.max(0)
        if self.thresholds is None and channels > 1:
            return index.to(torch.uint8) if self.values is None else values[index]
        winner = best if self.factors is None else probability.gather(0, index[None])[0]
        return torch.where(winner >= least[index], values[index], nothing)


class DecideLabelsd(MapTransform):
    """Network outputs on their own grid become a label map there; for validation in training.

    Args:
        keys: Keys of network outputs, shape (C, spatial...); each becomes (1, spatial...).
        decision: How.
    """

    def __init__(self, keys: KeysCollection, decision: Decision) -> None:
        super().__init__(keys)
        self.decision = decision

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            outputs = torch.as_tensor(case[key]).as_subclass(torch.Tensor)
            self.decision.check(len(outputs))
            labels = self.decision.labels(self.decision.activate(outputs.float()))[None]
            if isinstance(case[key], MetaTensor):
                labels = MetaTensor(labels).copy_meta_from(case[key], copy_attr=False)
            case[key] = labels
        return case
