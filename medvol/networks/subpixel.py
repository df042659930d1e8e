"""A U-Net on folded voxels: half the resolution, eight times the channels, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DynUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
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
    ) -> None:
        super().__init__()
        self.spatial_dims, self.factor = spatial_dims, factor
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
        folded = pixelunshuffle(x, self.spatial_dims, self.factor)
        return pixelshuffle(self.network(folded), self.spatial_dims, self.factor)
