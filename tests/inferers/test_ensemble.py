"""Ensembles and the two kinds of uncertainty, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from medvol.inferers import SlidingWindowInferer, entropy
from medvol.inferers.ensemble import member_mean
from medvol.networks import Ensemble


def member(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Conv3d(1, 3, 3, padding=1)


def test_members_that_agree_have_no_epistemic_part():
    net, x = member(0), torch.randn(1, 1, 9, 9, 9)
    inferer = SlidingWindowInferer((6, 6, 6), 2, 0.5, "gaussian")
    with torch.no_grad():
        found = inferer.uncertain(x, Ensemble([net, net]))
    # Windows see their own borders, so that overlapping windows of one network may disagree.
    inside = torch.zeros(9, 9, 9, dtype=torch.bool)
    inside[1:2, 1:2, 1:2] = True
    assert float(found.epistemic[0, 0][inside].max()) < 1e-6
    torch.testing.assert_close(found.total, entropy(found.probabilities, "softmax"))


def test_opposite_certain_members_are_all_epistemic():
    def sure(sign):
        network = torch.nn.Conv3d(1, 2, 1)
        torch.nn.init.zeros_(network.weight)
        network.bias.data = torch.tensor([sign * 50.0, 0.0])
        return network

    inferer = SlidingWindowInferer((4, 4, 4))
    with torch.no_grad():
        found = inferer.uncertain(torch.zeros(1, 1, 4, 4, 4), Ensemble([sure(1), sure(-1)]))
    assert float(found.epistemic.min()) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found.aleatoric.max()) < 1e-6


def test_coin_tosses_are_all_aleatoric():
    inferer = SlidingWindowInferer((4, 4, 4), activation="sigmoid")
    same = Ensemble([torch.nn.Identity(), torch.nn.Identity()], "sigmoid")
    found = inferer.uncertain(torch.zeros(1, 1, 4, 4, 4), same)
    assert float(found.aleatoric.min()) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found.epistemic.max()) < 1e-6


def test_mirror_images_are_members_too():
    x = torch.randn(1, 1, 6, 6, 6)
    net, inferer = member(1), SlidingWindowInferer((6, 6, 6), tta=[0])
    with torch.no_grad():
        found = inferer.uncertain(x, net)
        want = (net(x).softmax(1) + net(x.flip(2)).flip(2).softmax(1)) / 2
    torch.testing.assert_close(found.probabilities, want)
    assert float(found.epistemic.max()) > 1e-3


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_what_is_declared_empty_has_probabilities_and_no_doubt(activation):
    image = torch.zeros(1, 1, 24, 24, 24)
    image[..., 8:14, 8:14, 8:14] = 1
    inferer = SlidingWindowInferer((8, 8, 8), 2, 0.5, activation=activation, background=0.0)
    found = inferer.uncertain(image, lambda x: torch.cat([x, -x], 1))
    corner = found.probabilities[0, :, 0, 0, 0].tolist()
    assert corner == pytest.approx([1, 0] if activation == "softmax" else [0, 0], abs=1e-6)
    assert found.aleatoric[0, 0, 0, 0, 0] == 0
    assert found.epistemic[0, 0, 0, 0, 0] < 1e-6


@pytest.mark.parametrize("blended", ["logits", "probabilities"])
def test_entropy_beside_the_mean_changes_no_bit_of_it(blended):
    nets, x = [member(0), member(1)], torch.randn(2, 1, 6, 6, 6)
    flips = [(), (2,), (3, 4)]
    with torch.no_grad():
        alone = member_mean(nets, flips, "softmax", blended, at_once=4)(x)
        mean, doubt = member_mean(nets, flips, "softmax", blended, at_once=4, with_entropy=True)(x)
    assert torch.equal(alone, mean)
    assert doubt.shape == (2, 1, 6, 6, 6)
