"""The same answers where windows run on a GPU, wherever they are stitched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.networks.nets.unet import UNet

from medvol.core.geometry import Geometry
from medvol.inferers import Decision, PredictionPipeline, SlidingWindowInferer

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


def predicted(net, shape=(40, 36, 28), spacing=(1.0, 1.0, 1.0)):
    torch.manual_seed(1)
    source = Geometry(shape, np.diag([*spacing, 1.0]))
    image = MetaTensor(torch.randn(1, 40, 36, 28), affine=torch.eye(4, dtype=torch.float64))
    image.meta |= {"spatial_shape": np.array(shape), "original_affine": source.affine}
    return PredictionPipeline(SlidingWindowInferer(**OPTIONS), Decision()).predict(image, net)


def test_labels_equal_the_cpus(net):
    grid = {"shape": (80, 36, 20), "spacing": (0.5, 1.0, 1.4)}
    want = predicted(net, **grid).labels
    got = predicted(net.cuda(), **grid).labels
    assert (got == want).mean() > 0.99, "half precision"


def test_a_network_that_does_not_fit_runs_on_the_cpu_and_returns_to_the_gpu(net):
    class Full(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, window):
            if window.is_cuda:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.net(window)

    full = Full().cuda()
    found = predicted(full)
    assert found.fallback == "network on the CPU"
    assert next(full.parameters()).is_cuda
    np.testing.assert_array_equal(found.labels, predicted(net.cpu()).labels)
