import math

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from scipy.ndimage import gaussian_filter, map_coordinates, rotate

from medvol.transforms import AugmentationPolicy, AugmentationValidator, RandSpatiald


@pytest.fixture
def chest():
    """Body, two lungs, spine and a heart on the image's right, which is the patient's left."""
    x, y = np.mgrid[-1:1:128j, -1:1:128j]

    def ellipse(cx, cy, a, b):
        return ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1

    image = np.zeros((128, 128))
    image[ellipse(0, 0, 0.85, 0.9)] = 0.6
    image[ellipse(-0.38, -0.05, 0.3, 0.6) | ellipse(0.38, -0.05, 0.3, 0.6)] = 0.2
    image[ellipse(0.15, 0.25, 0.25, 0.3)] = 0.8
    image[np.abs(x) < 0.06] = 0.9
    return image


def elastic(image, alpha, sigma):
    random = np.random.default_rng(0)
    shift = [gaussian_filter(random.uniform(-1, 1, image.shape), sigma) * alpha for _ in "xy"]
    grid = np.mgrid[: image.shape[0], : image.shape[1]]
    return map_coordinates(image, [grid[0] + shift[0], grid[1] + shift[1]], order=1)


POLICY = AugmentationPolicy("XR", "chest")


@pytest.mark.parametrize("policy", [None, POLICY])
@pytest.mark.parametrize("angle", [0, 10, -10])
def test_a_mirrored_chest_fails_even_when_it_is_turned(chest, policy, angle):
    mirrored = rotate(np.flip(chest, 0), angle, reshape=False, order=1)
    score = AugmentationValidator(policy).score(chest, mirrored)
    assert not score.passed
    assert score.sides["left-right"] < -0.8
    assert "left-right is mirrored" in " ".join(score.faults)


def test_an_upside_down_chest_fails(chest):
    score = AugmentationValidator(POLICY).score(chest, np.flip(chest, 1))
    assert score.sides["superior-inferior"] < -0.8


@pytest.mark.parametrize(
    "change",
    [
        lambda image: rotate(image, 10, reshape=False, order=1),
        lambda image: rotate(image, -10, reshape=False, order=1),
        lambda image: elastic(image, 30, 4),
        lambda image: np.clip(image * 1.2, 0, 1),
        lambda image: image + np.random.default_rng(0).normal(0, 0.05, image.shape),
    ],
    ids=["turn 10", "turn -10", "elastic 30/4", "brightness +20%", "noise 0.05"],
)
def test_gentle_changes_of_a_chest_pass(chest, change):
    score = AugmentationValidator(POLICY).score(chest, change(chest))
    assert score.passed, score
    assert score.sides["left-right"] > 0.8


@pytest.mark.parametrize(
    "ruin", [np.zeros_like, lambda i: np.random.default_rng(0).random(i.shape)]
)
def test_an_image_without_the_signal_fails(chest, ruin):
    score = AugmentationValidator(POLICY).score(chest, ruin(chest))
    assert not score.passed
    assert score.signal < 0.1


def test_a_legal_mirror_passes_and_a_symmetric_image_has_no_side(chest):
    brain = AugmentationValidator(AugmentationPolicy("MR", "brain"), min_signal=0.5)
    assert brain.score(chest, np.flip(chest, 0)).passed
    symmetric = (chest + np.flip(chest, 0)) / 2
    score = AugmentationValidator(POLICY).score(symmetric, np.flip(symmetric, 0))
    assert math.isnan(score.sides["left-right"])


def test_draws_of_a_transform_are_scored_crops_and_folding_included(chest):
    volume = np.stack([chest[::4, ::4]] * 20, axis=-1).astype("f4")
    data = {
        "image": MetaTensor(
            torch.from_numpy(volume)[None], torch.diag(torch.tensor([9.0, 9, 9, 1]))
        )
    }
    move = RandSpatiald("image", body_part="chest", spatial_size=(28, 36, 16))
    validator = AugmentationValidator(AugmentationPolicy("CT", "chest"))
    scores = validator.validate(move, data, samples=3)
    assert [score.folding for score in scores] == [0, 0, 0]
    assert all(score.passed for score in scores), scores
    again = validator.validate(move, data, samples=3)
    assert [s.signal for s in scores] == [s.signal for s in again]
