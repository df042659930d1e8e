"""Ensembles and the two kinds of uncertainty, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from medvol.inferers import SlidingWindowInferer, entropy, predict_uncertain


def member(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Conv3d(1, 3, 3, padding=1)


def test_members_that_agree_have_no_epistemic_part():
    net, x = member(0), torch.randn(1, 1, 9, 9, 9)
    inferer = SlidingWindowInferer((6, 6, 6), 2, 0.5, "gaussian")
    with torch.no_grad():
        found = predict_uncertain(inferer, x, [net, net])
    # Windows see their own borders, so that overlapping windows of one network may disagree.
    inside = torch.zeros(9, 9, 9, dtype=torch.bool)
    inside[1:2, 1:2, 1:2] = True
    assert float(found.epistemic[0, 0][inside].max()) < 1e-6
    torch.testing.assert_close(found.total, entropy(found.probabilities, "softmax"))


def test_opposite_certain_members_are_all_epistemic():
    def sure(sign):
        return lambda w: torch.cat([sign * 50 * torch.ones_like(w), torch.zeros_like(w)], 1)

    inferer = SlidingWindowInferer((4, 4, 4))
    found = predict_uncertain(inferer, torch.zeros(1, 1, 4, 4, 4), [sure(1), sure(-1)])
    assert float(found.epistemic.min()) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found.aleatoric.max()) < 1e-6


def test_coin_tosses_are_all_aleatoric():
    inferer = SlidingWindowInferer((4, 4, 4))
    found = predict_uncertain(
        inferer, torch.zeros(1, 1, 4, 4, 4), [lambda w: w] * 2, activation="sigmoid"
    )
    assert float(found.aleatoric.min()) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found.epistemic.max()) < 1e-6


def test_mirror_images_are_members_too():
    x = torch.randn(1, 1, 6, 6, 6)
    net, inferer = member(1), SlidingWindowInferer((6, 6, 6))
    with torch.no_grad():
        found = predict_uncertain(inferer, x, [net], flips=[(), (2,)])
        want = (net(x).softmax(1) + net(x.flip(2)).flip(2).softmax(1)) / 2
    torch.testing.assert_close(found.probabilities, want)
    assert float(found.epistemic.max()) > 1e-3


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_what_is_declared_empty_has_probabilities_and_no_doubt(activation):
    image = torch.zeros(1, 1, 24, 24, 24)
    image[..., 8:14, 8:14, 8:14] = 1
    inferer = SlidingWindowInferer((8, 8, 8), 2, 0.5, activation=activation, background=0.0)
    inferer.sees_probabilities = True
    found = predict_uncertain(inferer, image, [lambda x: torch.cat([x, -x], 1)],
                              activation=activation)  # fmt: skip
    corner = found.probabilities[0, :, 0, 0, 0].tolist()
    assert corner == ([1, 0] if activation == "softmax" else [0, 0])
    assert found.aleatoric[0, 0, 0, 0, 0] == found.epistemic[0, 0, 0, 0, 0] == 0
