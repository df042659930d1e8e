"""A network compiled for one window answers as itself, whatever the batch and the history."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.unet import UNet

from medvol.core.errors import ConfigError
from medvol.inferers import FusedNetwork
from medvol.networks import Ensemble

WINDOW = (1, 16, 16, 16)


def unet(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return UNet(3, 1, 3, (4, 8), (2,), num_res_units=1, norm="instance").eval()


def dynunet(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8]).eval()


@pytest.mark.parametrize(
    "make", [unet, dynunet, lambda: Ensemble([dynunet(0), dynunet(1)]).eval()],
    ids=["U-Net", "DynUNet", "ensemble"],
)  # fmt: skip
def test_a_fused_network_gives_the_probabilities_of_the_network(make):
    net, x = make(), torch.randn(3, *WINDOW)
    with torch.inference_mode():
        want = net(x).softmax(1)
        got = FusedNetwork(net, WINDOW)(x).softmax(1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_answers_depend_neither_on_the_batch_nor_on_the_windows_before():
    net, x = unet(), torch.randn(4, *WINDOW)
    with torch.no_grad():
        first, second = FusedNetwork(net, WINDOW), FusedNetwork(net, WINDOW)
        whole = first(x)
        assert torch.equal(whole, torch.cat([second(one[None]) for one in x]))
        assert torch.equal(whole, first(x))


def test_the_setting_of_the_process_is_left_as_it_was():
    before = torch.jit.onednn_fusion_enabled()
    with torch.no_grad():
        FusedNetwork(unet(), WINDOW)(torch.zeros(1, *WINDOW))
    assert torch.jit.onednn_fusion_enabled() == before


def test_a_network_whose_way_depends_on_values_is_refused():
    class Looks(torch.nn.Module):
        def forward(self, x):
            return x * (1 if float(x.sum()) > 0 else -1) + torch.rand(())

    with pytest.raises(ConfigError, match="fused"):
        FusedNetwork(Looks(), WINDOW)
