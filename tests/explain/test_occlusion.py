import numpy as np
import pytest
import torch
from torch import nn

from medvol.core import ConfigError
from medvol.explain import Occlusion


class Weighted(nn.Module):
    """The score is a weighted sum of the input, so every fall has a closed form."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, x):
        score = (x * self.weights).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 7)])
def test_fall_of_a_linear_score_is_the_hidden_sum(shape):
    generator = torch.Generator().manual_seed(0)
    weights, x = (torch.randn(1, 1, *shape, generator=generator) for _ in range(2))
    falls = Occlusion(Weighted(weights), 1, fill=0.0, batch_size=5).falls(x, 0)
    torch.testing.assert_close(falls, x * weights, rtol=1e-4, atol=1e-4)
    raw = Occlusion(Weighted(weights), 1, fill=0.0).raw(x, 0)
    torch.testing.assert_close(raw, torch.relu(x * weights), rtol=1e-4, atol=1e-4)


def test_overlapping_windows_are_averaged_over_those_that_cover_a_voxel():
    x = torch.arange(1.0, 6.0).view(1, 1, 5, 1).expand(1, 1, 5, 3).contiguous()
    falls = Occlusion(Weighted(torch.ones(1, 1, 5, 3)), (2, 3), (2, 3), fill=0.0).falls(x, 0)
    # Windows along the first axis: rows 0-1, 2-3 and, moved inward, 3-4.
    sums = np.array([3 * (1 + 2), 3 * (3 + 4), 3 * (4 + 5)], float)
    wanted = [sums[0], sums[0], sums[1], (sums[1] + sums[2]) / 2, sums[2]]
    np.testing.assert_allclose(falls[0, 0, :, 0], wanted)


def test_items_keep_their_own_class_and_their_own_mean():
    weights, x = (
        torch.ones(1, 1, 4, 4),
        torch.rand(2, 1, 4, 4) + torch.tensor([0, 5.0]).view(2, 1, 1, 1),
    )
    occlusion = Occlusion(Weighted(weights), 1)
    falls = occlusion.falls(x, [0, 1])
    wanted = (x - x.mean((2, 3), keepdim=True)) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(falls, wanted, rtol=1e-4, atol=1e-4)


def test_windows_of_another_dimension_are_rejected():
    with pytest.raises(ConfigError, match="one number or 2"):
        Occlusion(Weighted(torch.ones(1, 1, 4, 4)), (1, 1, 1)).raw(torch.ones(1, 1, 4, 4), 0)
