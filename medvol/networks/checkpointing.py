"""Gradient checkpointing: less memory for more time, whatever the network."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def with_gradient_checkpointing(network: nn.Module) -> nn.Module:
    """Let a network's blocks forget their activations and compute them again for gradients.

    A block is a smallest module that holds at least two convolutions or linear layers, such as a
    residual unit. Outputs, gradients and state dict stay as they were, and copies of the network
    compute with their own weights. Batch normalisation sees every batch twice; instance, group
    and layer normalisation do not mind.

    Args:
        network: Changed in place.

    Returns:
        The same network.
    """
    for block in _blocks(network):
        block.__class__ = _forgetful(type(block))
    return network


def _blocks(module: nn.Module) -> list[nn.Module]:
    inner = [block for child in module.children() for block in _blocks(child)]
    if inner:
        return inner
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    layers = [m for m in module.modules() if isinstance(m, kinds)]
    return [module] if len(layers) > 1 else []


@cache
def _forgetful(kind: type[nn.Module]) -> type[nn.Module]:
    # A subclass and no wrapped method: a deep copy of the network must run its own weights.
    class Forgetful(kind):  # pyright: ignore[reportUntypedBaseClass, reportGeneralTypeIssues]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not (self.training and torch.is_grad_enabled()):
                return super().forward(*args, **kwargs)
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

    Forgetful.__name__ = Forgetful.__qualname__ = kind.__name__
    return Forgetful
