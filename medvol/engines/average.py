"""A moving average of the weights: what is validated and shipped."""

from __future__ import annotations

import copy

import torch
from ignite.engine import Engine, Events
from torch import nn

from medvol.engines.distributed import bare


class MovingAverage:
    """Ignite handler: exponential moving average of a network's weights after every step.

    The weight of the past at step t is ``min(decay, (1 + t) / (10 + t))``, so that the random
    initial weights are forgotten; it depends on the step alone, so a resumed run equals a straight
    one.

    Args:
        network: The network that is trained.
        decay: Weight of the past, in (0, 1); 0.998 averages about the last 500 steps.

    Attributes:
        network: The averaged copy, without gradients.
    """

    def __init__(self, network: nn.Module, decay: float = 0.998) -> None:
        self.source = bare(network)
        self.network = copy.deepcopy(self.source).eval().requires_grad_(False)
        self.decay = float(decay)

    def attach(self, engine: Engine) -> None:
        """Average after every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        step = engine.state.iteration
        past = min(self.decay, (1 + step) / (10 + step))
        new = self.source.state_dict()
        for name, average in self.network.state_dict().items():
            if average.is_floating_point():
                average.lerp_(new[name], 1 - past)
            else:
                average.copy_(new[name])
