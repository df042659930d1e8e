"""A U-Net on folded voxels: half the resolution, eight times the channels, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn


class SubpixelUNet(nn.Module):
    """nnU-Net's U-Net run on blocks of voxels that are folded into channels, then unfolded.

    A U-Net spends most of its time at full resolution, where few channels leave a CPU's vector
    units idle. Folding keeps every voxel, and the first level works on ``factor ** spatial_dims``
    times as many channels at as many times fewer places.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the prediction, on the image's grid.
        channels: Feature maps per level, three or more, the folded grid first.
        is_residual: Residual instead of plain blocks.
        factor: Edge of a block in voxels. Inputs must be multiples of
            ``factor * 2 ** (levels - 1)`` along every axis.
        phases: Ways to cut the image into blocks whose outputs are averaged outside of training:
            a voxel's place in its block changes what the network makes of it. ``factor`` at most.

    Source:
        Shi et al. 2016, CVPR, doi:10.1109/CVPR.2016.207 (the unfolding).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        is_residual: bool = True,
        factor: int = 2,
        phases: int = 1,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.factor, self.phases = spatial_dims, factor, phases
        self.axes = [*range(2, 2 + spatial_dims)]
        block, below = factor**spatial_dims, len(channels) - 1
        self.network = DynUNet(
            spatial_dims,
            in_channels * block,
            out_channels * block,
            kernel_size=[3] * (below + 1),
            strides=[1] + [2] * below,
            upsample_kernel_size=[2] * below,
            filters=list(channels),
            res_block=is_residual,
            norm_name=("INSTANCE", {"affine": True}),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, ...) to (B, out_channels, ...) on the same grid."""
        total = self._predict(x)
        if self.training or self.phases == 1:
            return total
        for phase in range(1, self.phases):
            ahead, back = [phase] * self.spatial_dims, [-phase] * self.spatial_dims
            shifted = self._predict(torch.roll(x, ahead, self.axes))
            total = total + torch.roll(shifted, back, self.axes)
        return total / self.phases

    def _predict(self, x: Tensor) -> Tensor:
        return unfold_blocks(self.network(fold_blocks(x, self.factor)), self.factor)


def fold_blocks(x: Tensor, factor: int) -> Tensor:
    """Blocks of ``factor`` voxels an axis become channels: MONAI's ``pixelunshuffle``.

    MONAI's own builds its shapes in a way that TorchScript rejects.

    Raises:
        ValueError: If an axis is not a multiple of ``factor``.
    """
    f = factor
    b, c, h, w = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    if h % f != 0 or w % f != 0 or x.shape[-1] % f != 0:
        raise ValueError("every spatial size must be divisible by the folding factor")
    if x.dim() == 4:
        x = x.reshape(b, c, h // f, f, w // f, f).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(b, c * f * f, h // f, w // f)
    d = x.shape[4]
    x = x.reshape(b, c, h // f, f, w // f, f, d // f, f).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * f * f * f, h // f, w // f, d // f)


def unfold_blocks(x: Tensor, factor: int) -> Tensor:
    """The inverse of :func:`fold_blocks`: MONAI's ``pixelshuffle``."""
    f = factor
    b, c, h, w = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    if x.dim() == 4:
        x = x.reshape(b, c // (f * f), f, f, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(b, c // (f * f), h * f, w * f)
    d = x.shape[4]
    x = x.reshape(b, c // (f * f * f), f, f, f, h, w, d).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // (f * f * f), h * f, w * f, d * f)
