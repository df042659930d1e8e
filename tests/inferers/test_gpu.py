"""The same answers where windows run on a GPU, wherever they are stitched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.networks.nets.unet import UNet

from medvol.core.geometry import Geometry
from medvol.inferers import SlidingWindowInferer, run_ladder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = {"roi_size": (16, 16, 16), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}


@pytest.fixture
def net():
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return UNet(3, 1, 3, (8, 16), (2,), norm="instance").eval()


@pytest.mark.parametrize("stitch_on", ["cuda", "cpu"])
def test_probabilities_equal_the_cpus(net, stitch_on):
    x = torch.randn(1, 1, 40, 36, 28)
    with torch.no_grad():
        want = SlidingWindowInferer(**OPTIONS)(x, net).softmax(1)
        inferer = SlidingWindowInferer(**OPTIONS, sw_device="cuda", device=stitch_on)
        got = inferer(x, net.cuda()).softmax(1)
    assert got.device.type == stitch_on
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stitch_on", ["cuda", "cpu"])
def test_labels_equal_the_cpus(net, stitch_on):
    image = MetaTensor(torch.randn(1, 1, 40, 36, 28), affine=torch.eye(4, dtype=torch.float64))
    source = Geometry((80, 36, 20), np.diag([0.5, 1.0, 1.4, 1.0]))
    want = SlidingWindowInferer(**OPTIONS).label_map(image, net, source)
    inferer = SlidingWindowInferer(**OPTIONS, sw_device="cuda", device=stitch_on)
    got = inferer.label_map(image, net.cuda(), source)
    assert (got == want).mean() > 0.999


def test_half_precision_keeps_the_labels(net):
    image = MetaTensor(torch.randn(1, 1, 40, 36, 28), affine=torch.eye(4, dtype=torch.float64))
    source = Geometry((40, 36, 28), np.eye(4))
    inferer = SlidingWindowInferer(**OPTIONS, sw_device="cuda")
    want = inferer.label_map(image, net.cuda(), source)
    inferer.amp = True
    assert (inferer.label_map(image, net, source) == want).mean() > 0.99


def test_the_ladder_comes_down_to_the_cpu(net):
    x = torch.randn(1, 1, 40, 36, 28)

    class Full(torch.nn.Module):
        def forward(self, window):
            if window.is_cuda:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return net(window)

    inferer = SlidingWindowInferer(**OPTIONS, sw_device="cuda")
    with torch.no_grad():
        got, rung = run_ladder(inferer, lambda i: i(x, Full()), net.cpu)
    assert rung == "network on the CPU"
    assert got.device.type == "cpu"
