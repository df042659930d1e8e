"""Gradient checkpointing changes memory, never a number."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, UNet

from medvol.networks import with_gradient_checkpointing

NETWORKS = {
    "unet": lambda: UNet(3, 1, 2, [4, 8, 16], [2, 2], num_res_units=2, dropout=0.2),
    "dynunet": lambda: DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16],
                               res_block=True),
    "segresnet": lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 2), blocks_up=(1,)),
}  # fmt: skip


def gradients(network, x):
    torch.manual_seed(1)
    network.zero_grad()
    network(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_gradients_state_and_copies_stay_the_same_with_fewer_kept_activations(name):
    torch.manual_seed(0)
    plain = NETWORKS[name]().train()
    saving = with_gradient_checkpointing(copy.deepcopy(plain))
    x = torch.randn(1, 1, 16, 16, 16)
    kept = {}
    for key, network in (("plain", plain), ("saving", saving)):
        sizes = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        )
        with keep:
            network(x)
        kept[key] = sum(sizes)
    assert kept["saving"] < 0.7 * kept["plain"]
    assert list(saving.state_dict()) == list(plain.state_dict())
    assert type(saving) is type(plain) or isinstance(saving, type(plain))
    want, got = gradients(plain, x), gradients(saving, x)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=0)
    twin = copy.deepcopy(saving)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
        assert float(twin.train()(x).abs().sum()) == 0.0
