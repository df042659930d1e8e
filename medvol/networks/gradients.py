"""An image classifier for a few hundred images: fixed oriented gradients, a small learnt rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvol.core import ConfigError

#: Contrast below which a cell's orientations fade, in deviations of the image.
_FAINT = 0.01


class OrientedGradients(nn.Module):
    """Gradient directions of every cell of a 2D image, without a parameter to learn.

    The image is brought to mean 0 and deviation 1. Each pixel's gradient votes, with its length,
    for the two nearest of ``bins`` directions (light to dark and dark to light are one). A cell
    holds the mean votes divided by their root sum of squares, which exposure cannot change; the
    logarithm of the mean votes, which keeps the contrast; and the mean grey value:
    ``2 * bins + 1`` channels.

    Args:
        cell: Edge of a cell in pixels.
        bins: Directions over half a turn.

    Source:
        After Dalal & Triggs 2005, CVPR, doi:10.1109/CVPR.2005.177.
    """

    def __init__(self, cell: int = 8, bins: int = 8) -> None:
        super().__init__()
        if cell < 2 or bins < 2:
            raise ConfigError(f"cell {cell} and bins {bins} must be at least 2")
        self.cell, self.bins = int(cell), int(bins)
        self.faint = _FAINT  # TorchScript sees no globals

    def forward(self, x: Tensor) -> Tensor:
        """Channels (B, 2 * bins + 1, X / cell, Y / cell) of one grey plane (B, 1, X, Y)."""
        centred = x - x.mean((1, 2, 3), keepdim=True)
        x = centred / (centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5)
        wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
        across = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
        along = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
        length = (across.square() + along.square() + 1e-12).sqrt()
        turn = torch.atan2(across, along).remainder(math.pi) * (self.bins / math.pi)
        number = torch.arange(self.bins, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        half = self.bins / 2
        apart = ((turn - number + half).remainder(self.bins) - half).abs()
        votes = F.avg_pool2d((1 - apart).clamp_min(0) * length, self.cell)
        contrast = (votes.square().sum(1, keepdim=True) + self.faint**2).sqrt()
        faint = (votes + 0.1 * self.faint).log()
        return torch.cat([votes / contrast, faint, F.avg_pool2d(x, self.cell)], 1)


class GradientClassifier(nn.Module):
    """Oriented gradients, then a residual block that knows where in the image a cell lies.

    From scratch on some hundred radiographs this ranks better than convolutions that must learn
    edges first. Every cell has an own learnt offset, so images must be of one size.
    ``block`` is the layer for class activation maps; ``stem`` has no parameter, so its output
    can be computed once for many members.

    Args:
        roi_size: Size of the images.
        spatial_dims: 2.
        in_channels: 1; colour is averaged before.
        num_classes: Number of classes.
        cell: As for :class:`OrientedGradients`.
        bins: Likewise.
        channels: Features of each cell.
        places: The last map is averaged to this many squares a side before the scores.
        dropout: Share dropped before the scores.

    Raises:
        ConfigError: If the image is not a whole number of double cells, or not grey.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 2,
        cell: int = 8,
        bins: int = 8,
        channels: int = 32,
        places: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if any(n % (2 * cell) for n in roi_size):
            raise ConfigError(f"roi_size {list(roi_size)} is not a multiple of two cells of {cell}")
        if (spatial_dims, in_channels) != (2, 1):
            raise ConfigError(
                f"{in_channels} channels in {spatial_dims}D: gradients need a grey 2D image"
            )
        self.stem = OrientedGradients(cell, bins)
        self.entry = nn.Sequential(
            nn.BatchNorm2d(2 * bins + 1),
            nn.Conv2d(2 * bins + 1, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.place = nn.Parameter(torch.zeros(1, channels, *(n // cell for n in roi_size)))
        self.block = nn.Sequential(nn.MaxPool2d(2), _Residual(channels))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(places), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(channels * places**2, num_classes),
        )  # fmt: skip

    def rest(self, cells: Tensor) -> Tensor:
        """Scores (B, classes) from the stem's output."""
        return self.head(self.block(F.relu(self.entry(cells) + self.place)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, classes) of 2D images (B, 1, X, Y)."""
        return self.rest(self.stem(x))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last(self.second(F.relu(self.norm(self.first(x))))))
