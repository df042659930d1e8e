import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.networks.nets import ViT, resnet10

from medvol.core import ConfigError
from medvol.explain import AttentionRollout


def vit(dims=2, classification=True):
    torch.manual_seed(0)
    size, patch = ([32, 48, 16][:dims], [8] * dims)
    return ViT(1, size, patch, 24, 32, 3, 4, classification=classification, spatial_dims=dims)


@pytest.mark.parametrize("dims", [2, 3])
def test_rollout_is_the_product_of_the_attention_matrices(dims):
    network, x = vit(dims), torch.randn(2, 1, *[32, 48, 16][:dims])
    found = AttentionRollout(network).raw(x)
    # The matrices once more, by hooks on the softmax's input: queries and keys of each block.
    kept = []
    handles = [
        block.attn.qkv.register_forward_hook(lambda _m, _i, out: kept.append(out.detach().double()))
        for block in network.blocks
    ]
    with torch.no_grad():
        network.eval()(x)
    for handle in handles:
        handle.remove()
    flow = np.eye(kept[0].shape[1])[None].repeat(2, 0)
    for qkv in kept:
        q, k, _ = qkv.view(2, -1, 3, 4, 6).permute(2, 0, 3, 1, 4).numpy()
        logits = q @ k.swapaxes(-1, -2) / np.sqrt(6)
        attention = np.exp(logits - logits.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        flow = (0.5 * attention.mean(1) + 0.5 * np.eye(flow.shape[-1])) @ flow
    grid = [4, 6, 2][:dims]
    np.testing.assert_allclose(found.numpy(), flow[:, 0, 1:].reshape(2, 1, *grid), rtol=1e-4)


def test_rollout_of_a_network_without_class_token_averages_all_tokens():
    found = AttentionRollout(vit(classification=False)).raw(torch.randn(2, 1, 32, 48))
    assert found.shape == (2, 1, 4, 6)
    assert found.flatten(1).sum(1).tolist() == pytest.approx([1, 1], rel=1e-5)


def test_rollout_leaves_no_trace_and_carries_the_affine():
    network = vit(3).train()
    x = MetaTensor(torch.randn(1, 1, 32, 48, 16), affine=torch.diag(torch.tensor([2.0, 1, 3, 1])))
    found = AttentionRollout(network)(x)
    assert torch.equal(found.affine, x.affine)
    assert found.shape == x.shape
    assert float(found.max()) == 1
    assert network.training
    assert not any(block.attn.save_attn for block in network.blocks)
    assert all(block.attn.att_mat.numel() == 0 for block in network.blocks)


def test_network_without_attention_is_rejected():
    with pytest.raises(ConfigError, match="ResNet holds no self-attention"):
        AttentionRollout(resnet10(spatial_dims=2, n_input_channels=1))
