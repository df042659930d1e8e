"""MONAI's networks built exactly as the sources of published weights define them.

MONAI's defaults differ (first stride, padding, epsilon, dilation) while every key and shape
agrees, so that published weights load without complaint and compute something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from monai.networks.nets.efficientnet import EfficientNetBN
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.vit import ViT
from monai.utils.misc import ensure_tuple_rep
from torch import Tensor, nn

from medvol.core import ConfigError

#: depth -> block, blocks per stage, and MedicalNet's shortcut type.
_RESNETS: dict[int, tuple[str, list[int], str]] = {
    10: ("basic", [1, 1, 1, 1], "B"),
    18: ("basic", [2, 2, 2, 2], "A"),
    34: ("basic", [3, 4, 6, 3], "A"),
    50: ("bottleneck", [3, 4, 6, 3], "B"),
    101: ("bottleneck", [3, 4, 23, 3], "B"),
    152: ("bottleneck", [3, 8, 36, 3], "B"),
    200: ("bottleneck", [3, 24, 36, 3], "B"),
}
_DILATIONS = {"layer3": 2, "layer4": 4}


def torchvision_resnet(
    depth: int, *, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 2
) -> ResNet:
    """torchvision's ResNet as MONAI's: first stride 2, no bias in the shortcuts.

    Args:
        depth: 18, 34, 50, 101 or 152.
        spatial_dims: 2, or 3 for inflated weights.
        in_channels: Channels of the image.
        num_classes: Scores to return.

    Source:
        He et al. 2016, CVPR, doi:10.1109/CVPR.2016.90.
    """
    return _resnet(depth, "B", spatial_dims, in_channels, num_classes)


def medicalnet_resnet(
    depth: int, *, in_channels: int = 1, num_classes: int = 2, dilated: bool = True
) -> ResNet:
    """MedicalNet's 3D ResNet with a classification head.

    Args:
        depth: 10, 18, 34, 50, 101, 152 or 200.
        in_channels: Channels of the volume.
        num_classes: Scores to return.
        dilated: As published, with stages 3 and 4 dilated by 2 and 4 at stride 1. Otherwise they
            are strided: faster and smaller, and another function of the same weights.

    Source:
        Chen et al. 2019, arXiv:1904.00625; https://github.com/Tencent/MedicalNet.
    """
    shortcut = _RESNETS[depth][2] if depth in _RESNETS else "B"
    network = _resnet(depth, shortcut, 3, in_channels, num_classes)
    if dilated:
        for name, dilation in _DILATIONS.items():
            _dilate(network.get_submodule(name), dilation)
    return network


def torchvision_efficientnet(
    model_name: str, *, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 2
) -> EfficientNetBN:
    """torchvision's EfficientNet as MONAI's: symmetric padding, which suits any image size.

    Args:
        model_name: ``efficientnet-b0`` to ``efficientnet-b7``.
        spatial_dims: 2, or 3 for inflated weights.
        in_channels: Channels of the image.
        num_classes: Scores to return.

    Source:
        Tan & Le 2019, ICML, arXiv:1905.11946; epsilon 1e-3 from b5 on as in torchvision.
    """
    large = model_name[-2:] in ("b5", "b6", "b7")
    norm = ("batch", {"eps": 1e-3, "momentum": 0.01} if large else {"eps": 1e-5, "momentum": 0.1})
    try:
        network = EfficientNetBN(
            model_name,
            pretrained=False,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            norm=norm,
        )
    except ValueError as error:
        raise ConfigError(f"network: {error}") from error
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if f"{name}_padding" in module._modules:
                setattr(module, f"{name}_padding", nn.Identity())
                _pad_evenly(child)
    return network


class VisionTransformer(ViT):
    """MONAI's ViT as timm and open_clip build it, returning the scores alone.

    LayerNorm epsilon is 1e-6, queries and keys have biases, the scores pass no tanh, and the
    cross-attention norms that nothing uses are left out.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        num_classes: Scores to return.
        img_size: The one image size it works on.
        patch_size: Edge of a patch.
        hidden_size: Width; 768 for ViT-B.
        mlp_dim: Hidden width of each block's perceptron.
        num_layers: Blocks.
        num_heads: Heads per block.
        dropout_rate: For every dropout.

    Source:
        Dosovitskiy et al. 2021, ICLR, arXiv:2010.11929.
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 2,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            img_size=img_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            proj_type="conv",
            classification=True,
            num_classes=num_classes,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            post_activation="",
            qkv_bias=True,
        )
        sizes, edges = (ensure_tuple_rep(v, spatial_dims) for v in (img_size, patch_size))
        self.patch_grid = tuple(n // edge for n, edge in zip(sizes, edges, strict=True))
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
            if hasattr(module, "norm_cross_attn"):
                module.norm_cross_attn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scores, shape (B, classes), of images of shape (B, C, ...)."""
        return super().forward(x)[0]


def _resnet(
    depth: int, shortcut: str, spatial_dims: int, in_channels: int, num_classes: int
) -> ResNet:
    if depth not in _RESNETS:
        raise ConfigError(
            f"ResNet depth {depth} is unknown; known: {', '.join(map(str, _RESNETS))}"
        )
    block, layers, _ = _RESNETS[depth]
    return ResNet(
        block,
        layers,
        [64, 128, 256, 512],
        spatial_dims=spatial_dims,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        shortcut_type=shortcut,
        num_classes=num_classes,
        bias_downsample=False,
    )


def _dilate(stage: nn.Module, dilation: int) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
            if module.kernel_size != (1, 1, 1):
                module.dilation = module.padding = (dilation,) * 3
        shortcut: Any = getattr(module, "downsample", None)
        if isinstance(shortcut, partial):  # type A has no parameters
            unstrided: Any = partial(shortcut.func, **{**shortcut.keywords, "stride": 1})
            module.downsample = unstrided


def _pad_evenly(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        module.padding = tuple(k // 2 for k in module.kernel_size)
