"""nnU-Net v2's U-Nets, plain and with residual encoder, as one module of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medvol.core.errors import ConfigError

Ints = Sequence[int]
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class NnUNet(nn.Module):
    """The network that nnU-Net v2 trains, with its names where it needs them.

    Computes what ``PlainConvUNet`` or ``ResidualEncoderUNet`` (with ``BasicBlockD``) of the package
    dynamic_network_architectures compute without deep supervision; :func:`nnunet_state` turns
    their state dict into this one's.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Classes, background included, or regions.
        features: Channels of each stage.
        kernels: Kernel of each stage, one number an axis.
        strides: Stride of each stage's first convolution; the first stage has 1.
        convs: Convolutions of each encoder stage, or residual blocks.
        decoder_convs: Convolutions of each decoder stage, lowest first.
        is_residual: Whether the encoder has a stem and residual blocks.
        slope: Of the leaky rectifier.
        eps: Of the instance normalisation.

    Raises:
        ConfigError: If the lists do not go together.

    Source:
        Isensee et al. 2021, Nat Methods 18:203; Isensee et al. 2024, arXiv:2404.09556.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Ints,
        kernels: Sequence[Ints],
        strides: Sequence[Ints],
        convs: Ints,
        decoder_convs: Ints,
        is_residual: bool = False,
        slope: float = 0.01,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        counts = {len(features), len(kernels), len(strides), len(convs), len(decoder_convs) + 1}
        if len(counts) != 1 or spatial_dims not in _CONV:
            raise ConfigError(
                f"features {list(features)}, kernels, strides and convolutions must be as many as "
                "stages (decoder_convs one less), in 2D or 3D"
            )
        self.parts = _Parts(int(spatial_dims), float(slope), float(eps))
        self.encoder = _Encoder(self.parts, in_channels, features, kernels, strides, convs,
                                is_residual)  # fmt: skip
        self.decoder = _Decoder(self.parts, out_channels, features, kernels, strides, decoder_convs)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, out_channels, ...) of images (B, in_channels, ...)."""
        return self.decoder(self.encoder(image))


def nnunet_state(weights: Mapping[str, Tensor], axes: Ints) -> dict[str, Tensor]:
    """nnU-Net's ``network_weights`` as the state dict of an :class:`NnUNet`.

    Args:
        weights: Name to tensor; the second names that its modules carry for one tensor are left
            out, and so are the heads of deep supervision but the last.
        axes: For each of our spatial axes the axis of theirs; its kernels are turned accordingly,
            so that our network sees images in our order of axes.
    """
    bare = {name.removeprefix("_orig_mod.").removeprefix("module."): value
            for name, value in weights.items()}  # fmt: skip
    heads = [int(name.split(".")[2]) for name in bare if name.startswith("decoder.seg_layers.")]
    last = f"decoder.seg_layers.{max(heads, default=0)}."
    found = {}
    for name, value in bare.items():
        if "all_modules" in name or name.startswith("decoder.encoder."):
            continue
        if name.startswith("decoder.seg_layers."):
            if not name.startswith(last):
                continue
            name = "decoder.head." + name.removeprefix(last)  # noqa: PLW2901
        if value.ndim == 2 + len(axes):
            value = value.permute(0, 1, *(2 + axis for axis in axes)).contiguous()  # noqa: PLW2901
        found[name] = value.detach().clone()
    return found


class _Parts:
    """What all layers share: dimensions, slope, eps."""

    def __init__(self, dims: int, slope: float, eps: float) -> None:
        self.dims, self.slope, self.eps = dims, slope, eps

    def act(self) -> nn.Module:
        return nn.LeakyReLU(self.slope, inplace=True)


class _Conv(nn.Module):
    """Convolution, instance normalisation and, by default, the rectifier."""

    def __init__(
        self,
        parts: _Parts,
        inputs: int,
        outputs: int,
        kernel: Ints,
        stride: Ints,
        is_active: bool = True,
        has_bias: bool = True,
    ) -> None:
        super().__init__()
        padding = tuple((k - 1) // 2 for k in kernel)
        kind = _CONV[parts.dims]
        self.conv = kind(inputs, outputs, tuple(kernel), tuple(stride), padding, bias=has_bias)
        self.norm = _NORM[parts.dims](outputs, eps=parts.eps, affine=True)
        self.act = parts.act() if is_active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class _Stack(nn.Module):
    """Convolutions one after another, the first one with a stride."""

    def __init__(
        self, parts: _Parts, inputs: int, outputs: int, kernel: Ints, stride: Ints, count: int
    ) -> None:
        super().__init__()
        one = (1,) * parts.dims
        self.convs = nn.Sequential(*(
            _Conv(parts, outputs if i else inputs, outputs, kernel, one if i else stride)
            for i in range(count)
        ))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class _Block(nn.Module):
    """ResNet-D's basic block: the skip is pooled, then projected without bias."""

    def __init__(
        self, parts: _Parts, inputs: int, outputs: int, kernel: Ints, stride: Ints
    ) -> None:
        super().__init__()
        one = (1,) * parts.dims
        self.conv1 = _Conv(parts, inputs, outputs, kernel, stride)
        self.conv2 = _Conv(parts, outputs, outputs, kernel, one, is_active=False)
        skip: list[nn.Module] = []
        if any(step != 1 for step in stride):
            skip.append(_POOL[parts.dims](tuple(stride), tuple(stride)))
        if inputs != outputs:
            skip.append(_Conv(parts, inputs, outputs, one, one, is_active=False, has_bias=False))
        self.skip = nn.Sequential(*skip)
        self.act = parts.act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.conv1(x)) + self.skip(x))


class _Blocks(nn.Module):
    def __init__(
        self, parts: _Parts, inputs: int, outputs: int, kernel: Ints, stride: Ints, count: int
    ) -> None:
        super().__init__()
        one = (1,) * parts.dims
        self.blocks = nn.Sequential(*(
            _Block(parts, outputs if i else inputs, outputs, kernel, one if i else stride)
            for i in range(count)
        ))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Encoder(nn.Module):
    def __init__(
        self,
        parts: _Parts,
        inputs: int,
        features: Ints,
        kernels: Sequence[Ints],
        strides: Sequence[Ints],
        convs: Ints,
        is_residual: bool,
    ) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Identity()
        if is_residual:
            self.stem = _Stack(parts, inputs, features[0], kernels[0], (1,) * parts.dims, 1)
            inputs = features[0]
        stages: list[nn.Module] = []
        for outputs, kernel, stride, count in zip(features, kernels, strides, convs, strict=True):
            given = (parts, inputs, outputs, kernel, stride, count)
            # The plain encoder's stages lie one Sequential deeper, in theirs too.
            stages.append(_Blocks(*given) if is_residual else nn.Sequential(_Stack(*given)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class _Decoder(nn.Module):
    def __init__(
        self,
        parts: _Parts,
        outputs: int,
        features: Ints,
        kernels: Sequence[Ints],
        strides: Sequence[Ints],
        convs: Ints,
    ) -> None:
        super().__init__()
        stages, ups, one = [], [], (1,) * parts.dims
        for level, count in zip(range(len(features) - 2, -1, -1), convs, strict=True):
            below, here, step = features[level + 1], features[level], tuple(strides[level + 1])
            ups.append(_UP[parts.dims](below, here, step, step))
            stages.append(_Stack(parts, 2 * here, here, kernels[level], one, count))
        self.transpconvs, self.stages = nn.ModuleList(ups), nn.ModuleList(stages)
        self.head = _CONV[parts.dims](features[0], outputs, 1)

    def forward(self, skips: list[Tensor]) -> Tensor:
        x = skips[-1]
        for up, stage, skip in zip(self.transpconvs, self.stages, skips[-2::-1], strict=True):
            x = stage(torch.cat((up(x), skip), 1))
        return self.head(x)
