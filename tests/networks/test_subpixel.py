import pytest
import torch
from torch import nn

from medvol.networks import SubpixelUNet


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
