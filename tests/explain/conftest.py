import pytest
import torch
from torch import nn


class TinyClassifier(nn.Module):
    """Convolutions with an in-place activation after the named layer, pooling, a head."""

    def __init__(self, dims, classes=3, width=6):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.first = nn.Sequential(conv(1, width, 3, 2, 1), norm(width), nn.ReLU(inplace=True))
        self.second = conv(width, width, 3, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, classes))

    def forward(self, x):
        x = self.act(self.second(self.first(x)))
        return self.head(self.drop(x.flatten(2).mean(-1)))


def make_tiny(dims, seed=0):
    torch.manual_seed(seed)
    network = TinyClassifier(dims)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def make_batch(dims, n=4, seed=1, size=17):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, *[size, 14, 20][:dims], generator=generator)


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def dims(request):
    return request.param


@pytest.fixture
def tiny():
    """Builds a small classifier with random weights and statistics."""
    return make_tiny


@pytest.fixture
def batch():
    """Builds a batch of noise on an uneven grid."""
    return make_batch
