"""Memory of a training step by arithmetic: for a device that is not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_HEAD_BYTES = 600 * 2**20
_STATE = 5  # weights, gradients, two moments of AdamW, moving average
_MIXED = 0.6  # of the activations under mixed precision: convolutions halve, norms and loss do not


@dataclass(frozen=True)
class TrainingFootprint:
    """What a step keeps.

    Attributes:
        state_bytes: Weights, gradients, optimizer and average.
        saved_bytes: Tensors kept for the backward pass of one batch, in 32 bits.
    """

    state_bytes: int
    saved_bytes: int

    @property
    def cuda_bytes(self) -> int:
        """Forecast for CUDA under mixed precision.

        Arithmetic with stated factors, not calibrated on a GPU: context and workspaces 600 MiB,
        60% of the 32-bit activations, and their largest gradient once more (10%).
        """
        return int(_HEAD_BYTES + self.state_bytes + 1.1 * _MIXED * self.saved_bytes)


def training_footprint(
    network: torch.nn.Module, shape: Sequence[int], classes: int
) -> TrainingFootprint:
    """Follow one training pass on the ``meta`` device and add up what autograd keeps.

    Args:
        network: A network; it is moved to ``meta`` and of no use afterwards.
        shape: Batch, channels and patch.
        classes: Output channels, of which the loss keeps about six copies.
    """
    shadow = network.to("meta").train()
    state = sum(p.numel() * 4 for p in shadow.parameters())
    own = {p.untyped_storage()._cdata for p in shadow.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(torch.empty(tuple(shape), device="meta")).sum()
    voxels = int(torch.tensor([shape[0], *shape[2:]]).prod())
    saved = sum(storage.nbytes() for storage in held.values()) + 6 * 4 * classes * voxels
    return TrainingFootprint(_STATE * state, saved)
