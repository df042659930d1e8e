"""The loss of classes and a side, against one written over all output channels by MONAI's parts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medvol.core import ConfigError
from medvol.engines import SidedLoss
from medvol.networks import SidedNetwork

#: Background, two structures with two sides around one in the middle, then their right sides.
VALUES, MIRRORED = (0, 2, 14, 17, 41, 53), (1, 3)


class Same(nn.Module):
    def forward(self, x):
        return x


def drawn(seed=0, values=VALUES):
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 5, 4, 5, 6, generator=random)
    label = torch.tensor(values)[torch.randint(len(values), (2, 1, 4, 5, 6), generator=random)]
    return logits, label


def softmax_dice(logits, label):
    """The Dice part by hand: one class at a time, sides joined."""
    p = logits[:, :4].softmax(1)
    joined = label.clone()
    joined[label == 41], joined[label == 53] = 2, 17
    scores = []
    for channel, value in ((1, 2), (2, 14), (3, 17)):
        truth = (joined[:, 0] == value).float()
        if truth.any():
            both, total = (p[:, channel] * truth).sum(), p[:, channel].sum() + truth.sum()
            scores.append(1 - (2 * both + 1) / (total + 1))
    return torch.stack(scores).mean()


def test_without_weights_the_cross_entropy_is_that_of_all_output_channels():
    # p(structure, side) = p(structure) p(side): where every voxel has a side, the two parts add up.
    logits, label = drawn(values=(2, 17, 41, 53))
    full = SidedNetwork(Same(), MIRRORED).eval()(logits)
    channel = {value: place for place, value in enumerate(VALUES)}
    target = torch.tensor([channel[int(v)] for v in label.flatten()]).reshape(label[:, 0].shape)
    wanted = F.cross_entropy(full, target) + softmax_dice(logits, label)
    assert torch.allclose(SidedLoss(VALUES, MIRRORED)(logits, label), wanted, atol=1e-5)


def test_weights_are_those_of_torch():
    logits, label = drawn(1)
    weights = (0.5, 2.0, 3.0, 7.0)
    joined = torch.tensor([{0: 0, 2: 1, 41: 1, 14: 2, 17: 3, 53: 3}[int(v)]
                           for v in label.flatten()]).reshape(label[:, 0].shape)  # fmt: skip
    sided = (joined == 1) | (joined == 3)
    right = (label[:, 0] >= 41).float()
    wanted = (
        F.cross_entropy(logits[:, :4], joined, torch.tensor(weights))
        + softmax_dice(logits, label)
        + F.binary_cross_entropy_with_logits(logits[:, 4][sided], right[sided])
    )
    assert torch.allclose(SidedLoss(VALUES, MIRRORED, weights)(logits, label), wanted, atol=1e-5)


def test_exchanging_the_sides_of_label_and_logit_changes_nothing():
    logits, label = drawn(2)
    turned, other = logits.clone(), label.clone()
    turned[:, 4] *= -1
    for a, b in ((2, 41), (17, 53)):
        other[label == a], other[label == b] = b, a
    loss = SidedLoss(VALUES, MIRRORED)
    assert torch.allclose(loss(logits, label), loss(turned, other), atol=1e-6)
    assert not torch.allclose(loss(logits, label), loss(logits, other), atol=1e-3)


def test_a_label_that_is_no_structure_is_background():
    logits, label = drawn(3)
    odd = label.clone()
    odd[label == 0] = 530
    loss = SidedLoss(VALUES, MIRRORED)
    assert torch.equal(loss(logits, odd), loss(logits, label))


@pytest.mark.parametrize("value", [0, 14])
def test_a_batch_without_sides_or_structures_is_finite_and_has_gradients(value):
    logits, label = drawn(4)
    logits.requires_grad_()
    loss = SidedLoss(VALUES, MIRRORED)(logits, torch.full_like(label, value))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_a_perfect_prediction_costs_nothing():
    _, label = drawn(5)
    logits = torch.zeros(2, 5, 4, 5, 6)
    for value, (channel, side) in {0: (0, 0), 2: (1, -1), 14: (2, 0), 17: (3, -1), 41: (1, 1),
                                   53: (3, 1)}.items():  # fmt: skip
        logits[:, channel][label[:, 0] == value] = 60.0
        logits[:, 4][label[:, 0] == value] = 60.0 * side
    assert float(SidedLoss(VALUES, MIRRORED)(logits, label)) < 1e-4


@pytest.mark.parametrize("arguments", [
    ((0, 2, 41), (2,)), ((0, 2, 41), (0,)), (VALUES, MIRRORED, (1.0, 2.0)),
])  # fmt: skip
def test_what_does_not_fit_together_is_rejected(arguments):
    with pytest.raises(ConfigError):
        SidedLoss(*arguments)


def test_another_network_is_rejected_by_its_channels():
    with pytest.raises(ConfigError, match="6 channels"):
        SidedLoss(VALUES, MIRRORED)(torch.zeros(1, 6, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))
