"""Exported networks say the same as the one they came from."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.unet import UNet

from medvol.core.errors import ConfigError
from medvol.inferers import export, open_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters' own making
FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "openvino": "model.xml"}
PACKAGES = {"torchscript": "torch", "onnx": "onnxruntime", "openvino": "openvino"}


@pytest.mark.parametrize("engine", ["torchscript", "onnx", "openvino"])
def test_an_exported_network_gives_the_same_probabilities(tmp_path, engine):
    pytest.importorskip(PACKAGES[engine])
    torch.manual_seed(0)
    net = UNet(3, 1, 3, (4, 8), (2,), norm="instance").eval()
    path = export(net, engine, tmp_path / FILES[engine], (1, 16, 16, 8))
    predict = open_engine(engine, path, threads=1)
    for batch in (1, 3):
        window = torch.randn(batch, 1, 16, 16, 8)
        with torch.no_grad():
            want = net(window).softmax(1)
            got = predict(window).softmax(1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_unknown_engines_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown"):
        export(torch.nn.Identity(), "tensor", tmp_path / "m", (1, 4, 4, 4))
    with pytest.raises(ConfigError, match="unknown"):
        open_engine("tensor", tmp_path / "m")
