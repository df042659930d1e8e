"""A classifier that measures: the class follows from a volume that the network outlines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvol.core import ConfigError


class VolumeClassifier(nn.Module):
    """Two classes by the volume of one structure, from the image alone.

    A small U-Net at half resolution gives every cell (2 voxels along each axis) the share of it
    that belongs to the structure. Their sum is the volume; the score of class 1 rises as the volume
    falls below a cut-off that is learnt, as is the slope. Masks are needed for training only
    (:class:`medvol.engines.OutlineLoss`).

    In training mode the call returns (scores, cell logits), in evaluation the scores (B, 2). The
    last layer before the cells, ``decoder.0``, carries Grad-CAM.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        channels: Features at a half, a quarter ... of the resolution; at least two levels.
        voxel_ml: Volume of one voxel of the network's input.
        cutoff_ml: Where the cut-off starts.
        spread_ml: Volume below the cut-off that starts as one unit of score.

    Raises:
        ConfigError: If there are fewer than two levels, or a volume is not positive.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        channels: Sequence[int] = (8, 16, 32),
        voxel_ml: float = 0.001,
        cutoff_ml: float = 3.0,
        spread_ml: float = 0.1,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or min(voxel_ml, cutoff_ml, spread_ml) <= 0:
            raise ConfigError(
                f"channels {list(channels)} must be at least two and voxel_ml {voxel_ml}, "
                f"cutoff_ml {cutoff_ml}, spread_ml {spread_ml} positive"
            )
        self.cell_ml = voxel_ml * 2**spatial_dims
        pairs = [*zip((in_channels, *channels), channels, strict=False)]
        self.encoder = nn.ModuleList(
            nn.Sequential(_unit(spatial_dims, i, o, stride=2), _unit(spatial_dims, o, o))
            for i, o in pairs
        )
        steps = [*itertools.pairwise(channels)]
        self.up = nn.ModuleList(_convolution(spatial_dims, deep, fine, True)
                                for fine, deep in steps)  # fmt: skip
        self.decoder = nn.ModuleList(_unit(spatial_dims, 2 * fine, fine) for fine, _ in steps)
        self.cells = (nn.Conv3d if spatial_dims == 3 else nn.Conv2d)(channels[0], 1, 1)
        nn.init.constant_(self.cells.bias, -3.0)  # pyright: ignore[reportArgumentType]
        self.cutoff_ml = nn.Parameter(torch.tensor(float(cutoff_ml)))
        self.log_slope = nn.Parameter(torch.tensor(-math.log(spread_ml)))

    def outline(self, x: Tensor) -> Tensor:
        """Logits of every cell's share of the structure, (B, 1, ...) at half resolution."""
        kept: list[Tensor] = []
        for level in self.encoder:
            x = level(x)
            kept.append(x)
        x = kept.pop()
        while kept:
            fine = kept.pop()
            # TorchScript indexes no list of layers, it only walks through one from the front.
            for index, (up, decoder) in enumerate(zip(self.up, self.decoder)):  # noqa: B905
                if index == len(kept):
                    raised = up(F.interpolate(x, fine.shape[2:], mode="nearest"))
                    x = decoder(torch.cat([fine, raised], 1))
        return self.cells(x)

    def volume_ml(self, cells: Tensor) -> Tensor:
        """Volume in millilitres from the cells' logits, shape (B,)."""
        return cells.sigmoid().flatten(1).sum(1) * self.cell_ml

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 2) of an image (B, C, ...); with the cells' logits while training."""
        cells = self.outline(x)
        below = (self.cutoff_ml - self.volume_ml(cells)) * self.log_slope.exp()
        scores = torch.stack([torch.zeros_like(below), below], 1)
        if not torch.jit.is_scripting() and self.training:  # an export is never trained
            return scores, cells  # pyright: ignore[reportReturnType]
        return scores


def _convolution(dims: int, i: int, o: int, is_point: bool = False, stride: int = 1) -> nn.Module:
    kind = nn.Conv3d if dims == 3 else nn.Conv2d
    size = 1 if is_point else 3
    return kind(i, o, size, stride, size // 2, bias=False)


def _unit(dims: int, i: int, o: int, stride: int = 1) -> nn.Sequential:
    norm = nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d
    return nn.Sequential(
        _convolution(dims, i, o, stride=stride), norm(o, affine=True), nn.LeakyReLU(0.01)
    )
