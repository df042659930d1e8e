"""What of an image need not be predicted, because its values show that nothing is there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medvol.inferers.windows import Box
from medvol.networks.ensemble import Activation

#: Logit given to what was never predicted; its probability is below float32's resolution.
_NEVER = 20.0


def is_empty(window: torch.Tensor, background: float) -> bool:
    """Whether no voxel of (C, ...) lies above ``background``."""
    return not bool((window > background).any())


def body_box(image: torch.Tensor, background: float, least: Sequence[int]) -> Box:
    """The smallest box of (C, spatial...) that holds every voxel above ``background``.

    Args:
        image: The image.
        background: What is not above it is empty, for example air after the CT window.
        least: The box is widened to this size, as far as the image reaches, so that a window at
            its edge sees true surroundings and not padding.
    """
    filled = [_rows(image, dim, background) for dim in range(1, image.ndim)]
    return tuple(_span(rows, n) for rows, n in zip(filled, least, strict=True))


def outside_values(
    channels: int, like: torch.Tensor, *, activation: Activation, is_probability: bool
) -> torch.Tensor:
    """The output of a network that knows nothing but background, one value per channel.

    Args:
        channels: Number of output channels.
        like: Gives type and device.
        activation: With ``softmax`` channel 0 is background; with ``sigmoid`` none is.
        is_probability: Whether the activation lies behind the outputs, or still follows.
    """
    values = like.new_zeros(channels)
    if activation == "softmax" and channels > 1:
        values[0] = 1.0 if is_probability else _NEVER
    elif activation == "sigmoid" and not is_probability:
        values -= _NEVER
    return values


def fill_unseen(sums: torch.Tensor, share: torch.Tensor, values: torch.Tensor) -> None:
    """Write ``values`` where no window lay: (C, ...) weighted sums and their weights (...)."""
    unseen = share == 0
    if bool(unseen.any()):
        sums[:, unseen] = values[:, None]
        share[unseen] = 1


def _rows(image: torch.Tensor, dim: int, background: float) -> torch.Tensor:
    return torch.stack([(part > background).any() for part in image.unbind(dim)])


def _span(filled: torch.Tensor, least: int) -> slice:
    length, places = len(filled), torch.nonzero(filled)[:, 0].tolist()
    low, high = (places[0], places[-1] + 1) if places else (0, 1)
    wanted = min(max(least, high - low), length)
    low = min(max(0, low - (wanted - (high - low)) // 2), length - wanted)
    return slice(low, low + wanted)
