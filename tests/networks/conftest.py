"""The architectures that published weights come from, written from their papers and sources.

torchvision and timm cannot be installed beside a CPU torch everywhere, and agreement of key names
does not fix strides, padding or epsilon: these are the oracles for output parity.
"""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def resnet(block, layers, dims=2, *, classes=5, shortcut="B", dilations=(1, 1, 1, 1), head=True,
           in_channels=3):  # fmt: skip
    """torchvision.models.resnet, or MedicalNet's with dims=3 and dilations."""
    conv, norm, pool = (
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
        if dims == 2
        else (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
    )

    class Block(nn.Module):
        def __init__(self, inside, width, stride, dilation):
            super().__init__()
            out = width * (4 if block == "bottleneck" else 1)
            three = {"kernel_size": 3, "padding": dilation, "dilation": dilation, "bias": False}
            if block == "bottleneck":
                self.conv1 = conv(inside, width, 1, bias=False)
                self.bn1 = norm(width)
                self.conv2 = conv(width, width, stride=stride, **three)
                self.bn2 = norm(width)
                self.conv3 = conv(width, out, 1, bias=False)
                self.bn3 = norm(out)
            else:
                self.conv1 = conv(inside, width, stride=stride, **three)
                self.bn1 = norm(width)
                self.conv2 = conv(width, width, **three)
                self.bn2 = norm(width)
            self.pads = shortcut == "A" and (stride != 1 or inside != out)
            self.stride, self.out = stride, out
            if shortcut == "B" and (stride != 1 or inside != out):
                self.downsample = nn.Sequential(conv(inside, out, 1, stride, bias=False), norm(out))

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            if block == "bottleneck":
                y = self.bn3(self.conv3(F.relu(y)))
            if hasattr(self, "downsample"):
                x = self.downsample(x)
            elif self.pads:
                x = x[(slice(None), slice(None), *[slice(None, None, self.stride)] * dims)]
                extra = x.new_zeros(x.shape[0], self.out - x.shape[1], *x.shape[2:])
                x = torch.cat([x, extra], 1)
            return F.relu(y + x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(in_channels, 64, 7, 2, 3, bias=False)
            self.bn1 = norm(64)
            self.maxpool = pool(3, 2, 1)
            inside = 64
            for stage, (width, count) in enumerate(zip((64, 128, 256, 512), layers, strict=True)):
                dilation = dilations[stage]
                stride = 1 if stage == 0 or dilation > 1 else 2
                blocks = []
                for item in range(count):
                    blocks.append(Block(inside, width, stride if item == 0 else 1, dilation))
                    inside = blocks[-1].out
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            if head:
                self.fc = nn.Linear(inside, classes)

        def forward(self, x):
            x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x)))).flatten(2).mean(-1)
            return self.fc(x) if head else x

    return Net()


class DenseLayer(nn.Module):
    def __init__(self, inside, growth=32):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, growth, 3, 1, 1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """torchvision.models.densenet121."""

    def __init__(self, classes=5, blocks=(6, 12, 24, 16)):
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
                norm0=nn.BatchNorm2d(64),
                relu0=nn.ReLU(),
                pool0=nn.MaxPool2d(3, 2, 1),
            )
        )
        inside = 64
        for number, count in enumerate(blocks, 1):
            layers = {}
            for item in range(1, count + 1):
                layers[f"denselayer{item}"] = DenseLayer(inside)
                inside += 32
            self.features.add_module(f"denseblock{number}", nn.Sequential(OrderedDict(layers)))
            if number < len(blocks):
                transition = OrderedDict(
                    norm=nn.BatchNorm2d(inside),
                    relu=nn.ReLU(),
                    conv=nn.Conv2d(inside, inside // 2, 1, bias=False),
                    pool=nn.AvgPool2d(2, 2),
                )
                self.features.add_module(f"transition{number}", nn.Sequential(transition))
                inside //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(inside))
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x):
        return self.classifier(F.relu(self.features(x)).flatten(2).mean(-1))


class SqueezeExcitation(nn.Module):
    def __init__(self, width, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x):
        scale = self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * scale.sigmoid()


class MBConv(nn.Module):
    def __init__(self, inside, out, kernel, *, stride, expansion, eps):
        super().__init__()
        width, layers = inside * expansion, []
        if expansion != 1:
            layers.append(self.unit(inside, width, 1, eps=eps, act=True))
        layers.append(
            self.unit(width, width, kernel, stride=stride, groups=width, eps=eps, act=True)
        )
        layers.append(SqueezeExcitation(width, max(1, inside // 4)))
        layers.append(self.unit(width, out, 1, eps=eps, act=False))
        self.block = nn.Sequential(*layers)
        self.adds = stride == 1 and inside == out

    @staticmethod
    def unit(inside, out, kernel, *, stride=1, groups=1, eps, act):
        conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out, eps), *([nn.SiLU()] if act else []))

    def forward(self, x):
        return self.block(x) + x if self.adds else self.block(x)


def efficientnet(repeats, widths, eps=1e-5, classes=5):
    """torchvision.models.efficientnet with given repeats and widths per stage."""
    kernels, strides = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
    stages = [MBConv.unit(3, widths[0], 3, stride=2, eps=eps, act=True)]
    inside = widths[0]
    for stage in range(7):
        blocks = []
        for item in range(repeats[stage]):
            stride = strides[stage] if item == 0 else 1
            expansion = 1 if stage == 0 else 6
            blocks.append(
                MBConv(
                    inside,
                    widths[stage + 1],
                    kernels[stage],
                    stride=stride,
                    expansion=expansion,
                    eps=eps,
                )
            )
            inside = widths[stage + 1]
        stages.append(nn.Sequential(*blocks))
    stages.append(MBConv.unit(inside, widths[-1], 1, eps=eps, act=True))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*stages)
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(widths[-1], classes))

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    return Net()


class TimmAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            heads,
        )

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, width))


class TimmBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, 1e-6), TimmAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, 1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width)
            )
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TimmViT(nn.Module):
    """timm's vit_*_patch*: what open_clip's BiomedCLIP has as ``visual.trunk``."""

    def __init__(self, *, size=32, patch=8, width=24, heads=4, depth=3, classes=5):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*[TimmBlock(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def lively(network, seed=0):
    """The network in evaluation mode with normalisation statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


B0_WIDTHS = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
BUILDERS = {
    "resnet18": lambda **k: resnet("basic", (2, 2, 2, 2), **k),
    "resnet50": lambda **k: resnet("bottleneck", (3, 4, 6, 3), **k),
    "medicalnet10": lambda **k: resnet("basic", (1, 1, 1, 1), 3, shortcut="B", head=False,
                                       in_channels=1, dilations=(1, 1, 2, 4), **k),
    "medicalnet18": lambda **k: resnet("basic", (2, 2, 2, 2), 3, shortcut="A", head=False,
                                       in_channels=1, dilations=(1, 1, 2, 4), **k),
    "medicalnet50": lambda **k: resnet("bottleneck", (3, 4, 6, 3), 3, shortcut="B", head=False,
                                       in_channels=1, dilations=(1, 1, 2, 4), **k),
    "densenet121": DenseNet,
    "efficientnet-b0": lambda **k: efficientnet((1, 2, 2, 3, 3, 4, 1), B0_WIDTHS, **k),
    "efficientnet-b1": lambda **k: efficientnet((2, 3, 3, 4, 4, 5, 2), B0_WIDTHS, **k),
    "vit": TimmViT,
}  # fmt: skip


@pytest.fixture
def source():
    """Builds a source network by name, in evaluation mode, with random weights."""

    def build(name, **kwargs):
        torch.manual_seed(0)
        return lively(BUILDERS[name](**kwargs))

    return build
