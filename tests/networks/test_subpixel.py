import pytest
import torch
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn

from medvol.networks import SubpixelUNet
from medvol.networks.subpixel import fold_blocks, unfold_blocks


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [1, 2])
def test_folding_and_unfolding_lose_and_move_nothing(dims, factor):
    net = SubpixelUNet(dims, 3, 3, (8, 8, 8), factor=factor)
    net.network = nn.Identity()
    x = torch.randn(2, 3, *(8, 12, 4)[:dims])
    assert torch.equal(net(x), x)


def test_output_lies_on_the_input_grid_with_a_channel_per_class():
    net = SubpixelUNet(3, 2, 5, (8, 16, 16)).eval()
    assert net(torch.randn(1, 2, 16, 24, 8)).shape == (1, 5, 16, 24, 8)


def test_every_voxel_of_a_block_reaches_its_own_output():
    # A change of one voxel must show most strongly at that voxel, not at its block's first one.
    torch.manual_seed(0)
    net = SubpixelUNet(3, 1, 1, (8, 16, 16)).eval()
    x = torch.randn(1, 1, 16, 16, 16, requires_grad=True)
    for place in [(3, 3, 3), (2, 3, 4), (5, 4, 3)]:
        (slope,) = torch.autograd.grad(net(x)[(0, 0, *place)], x)
        assert slope[(0, 0, *place)] != 0


@pytest.mark.parametrize("dims", [2, 3])
def test_folding_is_monais_and_compiles_to_torchscript(dims):
    x = torch.arange(2 * 3 * 4 * 8 * 6 ** (dims - 2) * 1.0).reshape(2, 3, 4, 8, *[6] * (dims - 2))
    folded = torch.jit.script(fold_blocks)(x, 2)
    assert torch.equal(folded, pixelunshuffle(x, dims, 2))
    assert torch.equal(torch.jit.script(unfold_blocks)(folded, 2), pixelshuffle(folded, dims, 2))
    assert torch.equal(unfold_blocks(folded, 2), x)


def test_an_axis_that_cannot_be_folded_is_rejected():
    with pytest.raises(ValueError, match="divisible"):
        fold_blocks(torch.zeros(1, 1, 4, 5, 4), 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_phases_average_the_ways_to_cut_blocks_outside_of_training(dims):
    net = SubpixelUNet(dims, 1, 2, (8, 16, 16), phases=2)
    image, axes = torch.randn(2, 1, *[16, 24, 32][:dims]), [*range(2, 2 + dims)]
    with torch.no_grad():
        in_training, average = net(image), net.eval()(image)
        net.phases = 1
        plain = net(image)
        moved = net(image.roll([1] * dims, axes)).roll([-1] * dims, axes)
    assert torch.equal(in_training, plain)
    assert not torch.allclose(moved, plain, atol=1e-2)
    assert torch.allclose(average, (plain + moved) / 2, atol=1e-6)
