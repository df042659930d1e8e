"""Uncertainty of one image: closed forms on networks that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medvol.inferers import SlidingWindowInferer
from medvol.label import image_uncertainty
from medvol.networks import Ensemble


class Fixed(nn.Module):
    """Foreground probability ``p`` where the image is 1, none elsewhere."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = torch.where(x > 0.5, torch.full_like(x, self.p), torch.full_like(x, 1e-7))
        return torch.cat([1 - p, p], 1).log()


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.fixture
def image():
    x = torch.zeros(1, 1, 12, 10, 8)
    x[..., 2:6, 3:7, 2:5] = 1
    return MetaTensor(x, affine=torch.eye(4))


def inferer(**options):
    return SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian", **options)


@pytest.mark.parametrize("p", [0.6, 0.9, 0.99])
def test_entropy_is_the_mean_inside_the_foreground_alone(image, p):
    found = image_uncertainty(inferer(), image, Fixed(p))
    assert found.entropy == pytest.approx(entropy(p), rel=1e-4)
    assert found.mutual_information == pytest.approx(0, abs=1e-5)
    assert found.foreground_voxels == 4 * 4 * 3


def test_members_that_disagree_have_mutual_information(image):
    found = image_uncertainty(inferer(), image, Ensemble([Fixed(0.6), Fixed(0.9)]))
    assert found.entropy == pytest.approx(entropy(0.75), rel=1e-4)
    wanted = entropy(0.75) - (entropy(0.6) + entropy(0.9)) / 2
    assert found.mutual_information == pytest.approx(wanted, rel=1e-3)


def test_members_that_agree_have_none(image):
    found = image_uncertainty(inferer(), image, Ensemble([Fixed(0.8), Fixed(0.8)]))
    assert found.mutual_information == pytest.approx(0, abs=1e-5)


class LeftIsUnsure(nn.Module):
    """Sure of foreground in the right half of what it sees, unsure in the left half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = torch.linspace(0, 1, x.shape[2]).view(1, 1, -1, 1, 1).expand_as(x)
        p = torch.where(side < 0.5, 0.6, 0.98) * (x > 0.5) + 1e-7
        return torch.cat([1 - p, p], 1).log()


def test_mirrors_that_the_anatomy_allows_are_averaged(image):
    whole = SlidingWindowInferer((12, 10, 8))
    plain = image_uncertainty(whole, image, LeftIsUnsure())
    mirrored = image_uncertainty(whole, image, LeftIsUnsure(), body_part="hippocampus")
    assert plain.entropy == pytest.approx(entropy(0.6), rel=0.02)
    assert mirrored.entropy == pytest.approx(entropy(0.79), rel=0.02)


def test_a_mirror_that_a_label_forbids_is_not_used(image):
    whole = SlidingWindowInferer((12, 10, 8))
    found = image_uncertainty(
        whole, image, LeftIsUnsure(), body_part="hippocampus", labels=["left_hippocampus"]
    )
    assert found.entropy == pytest.approx(entropy(0.6), rel=0.02)


def test_an_image_without_any_foreground_ranks_above_all(image):
    found = image_uncertainty(inferer(), image * 0, Fixed(0.9))
    assert found.entropy == pytest.approx(math.log(2))
    assert found.foreground_voxels == 0


def test_the_bundles_own_inferer_is_left_as_it_was(image):
    given = inferer(tta=["left-right"], body_part="hippocampus")
    before = given.mirrors
    image_uncertainty(given, image, Fixed(0.7))
    assert given.mirrors is before
