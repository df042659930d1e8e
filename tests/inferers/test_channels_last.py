"""Volumes with channels last give the values of PyTorch's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet

from medvol.inferers import onednn_convolutions
from medvol.inferers.channels_last import (
    channels_first,
    channels_last,
    group_norm,
    instance_norm,
    is_channels_last,
)

BIG = (1, 1, 32, 32, 32)
NETWORKS = {
    "U-Net": lambda: UNet(3, 1, 3, (4, 8), (2,), num_res_units=1, norm="instance"),
    "batch norm": lambda: UNet(3, 1, 3, (4, 8), (2,), num_res_units=1, norm="batch"),
    "DynUNet": lambda: DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8]),
    "group norm": lambda: SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)),
}


def volume(batch: int = 2, channels: int = 6, offset: float = 0.0) -> torch.Tensor:
    torch.manual_seed(0)
    return channels_last(torch.randn(batch, channels, 9, 10, 11) * 3 + offset)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_network_answers_as_in_double_precision(name, batch):
    torch.manual_seed(0)
    net, x = NETWORKS[name]().eval(), torch.randn(batch, *BIG[1:])
    with torch.no_grad():
        with onednn_convolutions():
            got = net(x).softmax(1)
        want = net.double()(x.double()).softmax(1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-6)


def test_convolutions_hand_big_volumes_on_with_channels_last():
    layer, x = torch.nn.Conv3d(1, 4, 3, padding=1), torch.randn(BIG)
    with torch.no_grad(), onednn_convolutions():
        assert is_channels_last(layer(x))
        assert not is_channels_last(layer(x[..., :8, :8, :8].contiguous()))


# Shifted values: a variance from raw squares would lose their digits.
@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("is_affine", [False, True])
def test_norms_are_those_of_pytorch(offset, is_affine):
    x = volume(offset=offset)
    weight, bias = (torch.randn(6), torch.randn(6)) if is_affine else (None, None)
    exact = [p if p is None else p.double() for p in (weight, bias)]
    tolerance = {"rtol": 2e-6, "atol": 1e-6 * max(3.0, offset)}  # weights scale the rounding
    got = instance_norm(x, weight=weight, bias=bias)
    want = F.instance_norm(x.double(), weight=exact[0], bias=exact[1])
    torch.testing.assert_close(got.double(), want, **tolerance)
    assert is_channels_last(got)
    for groups in (1, 2, 3):
        found = group_norm(x, groups, weight, bias)
        want = F.group_norm(x.double(), groups, exact[0], exact[1])
        torch.testing.assert_close(found.double(), want, **tolerance)


def test_an_instance_norm_with_running_statistics_keeps_using_them():
    x, mean, var = volume(), torch.full((6,), 2.0), torch.full((6,), 4.0)
    got = instance_norm(x, mean, var, use_input_stats=False)
    torch.testing.assert_close(got, (x - 2) / 2, rtol=0, atol=1e-4)


def test_the_way_back_copies_every_value():
    x = volume(3, 5)
    back = channels_first(x)
    assert back.is_contiguous()
    assert torch.equal(back, x)
    single = torch.randn(1, 1, 4, 5, 6)
    assert torch.equal(channels_last(single), single)


def test_the_input_of_a_norm_is_left_as_it_was():
    x = volume()
    kept = x.clone()
    instance_norm(x, weight=torch.ones(6), bias=torch.ones(6))
    assert torch.equal(x, kept)
