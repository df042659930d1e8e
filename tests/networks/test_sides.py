import pytest
import torch
from torch import nn

from medvol.networks import SidedNetwork, SubpixelUNet


class Fixed(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x):
        return self.out


def sided(classes=5, mirrored=(1, 3), seed=0):
    out = 3 * torch.randn(2, classes + 1, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    return out, SidedNetwork(Fixed(out), mirrored).eval()(torch.zeros(2, 1, 4, 5, 6))


def test_probabilities_are_those_of_class_times_side():
    raw, out = sided()
    p, classes, right = out.softmax(1), raw[:, :5].softmax(1), raw[:, 5].sigmoid()
    assert out.shape[1] == 7
    for place, channel in enumerate((1, 3)):
        assert torch.allclose(p[:, channel], classes[:, channel] * (1 - right), atol=1e-6)
        assert torch.allclose(p[:, 5 + place], classes[:, channel] * right, atol=1e-6)
    for channel in (0, 2, 4):
        assert torch.allclose(p[:, channel], classes[:, channel], atol=1e-6)


def test_turning_the_side_exchanges_left_and_right_and_nothing_else():
    raw, out = sided()
    turned = raw.clone()
    turned[:, 5] *= -1
    other = SidedNetwork(Fixed(turned), (1, 3)).eval()(torch.zeros(2, 1, 4, 5, 6))
    assert torch.allclose(other[:, [0, 5, 2, 6, 4, 1, 3]], out)


@pytest.mark.parametrize("sides", [60.0, -60.0, 0.0])
def test_a_certain_side_stays_finite(sides):
    raw, _ = sided()
    raw[:, 5] = sides
    assert torch.isfinite(SidedNetwork(Fixed(raw), (1, 3)).eval()(torch.zeros(1))).all()


def test_it_can_be_scripted_with_the_folded_network():
    network = SidedNetwork(SubpixelUNet(3, 1, 6, (8, 12, 16)), (1, 3)).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(network)(x), network(x), atol=1e-5)


def test_training_gives_what_the_inner_network_gives():
    raw, _ = sided()
    assert SidedNetwork(Fixed(raw), (1, 3)).train()(torch.zeros(1)) is raw
