"""Test-time augmentation: only mirrors that the anatomy allows, along the axes they name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from monai.data.meta_tensor import MetaTensor

from medvol.core.errors import ConfigError, InputError, PolicyError
from medvol.inferers import Mirrors, SlidingWindowInferer


def image(columns, size=(6, 7, 8)) -> MetaTensor:
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns).T
    torch.manual_seed(0)
    return MetaTensor(torch.randn(1, 1, *size), affine=torch.as_tensor(affine)[None])


RAS = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
PIR = [[0, -1, 0], [0, 0, -1], [2, 0, 0]]


def skewed(window: torch.Tensor) -> torch.Tensor:
    """A network that tells left from right: no mirror commutes with it."""
    ramp = torch.linspace(0, 1, window.shape[2]).reshape(1, 1, -1, 1, 1)
    return torch.cat([window, window * ramp + ramp, window.roll(1, 3)], 1)


@pytest.mark.parametrize(("columns", "dim"), [(RAS, 2), (PIR, 4)])
def test_a_patient_axis_is_found_through_the_affine(columns, dim):
    mirrors = Mirrors(("left-right",), "brain")
    assert mirrors.combinations(image(columns)) == [(), (dim,)]


def test_averaged_probabilities_equal_flipping_by_hand():
    x = image(RAS)
    options = {"roi_size": (6, 7, 8), "tta": ["left-right"], "body_part": "hippocampus"}
    want = (skewed(x).softmax(1) + skewed(x.flip(2)).softmax(1).flip(2)) / 2
    got = SlidingWindowInferer(**options, returns="probabilities")(x, skewed)
    torch.testing.assert_close(got.as_tensor(), want.as_tensor(), rtol=0, atol=1e-6)
    logits = SlidingWindowInferer(**options)(x, skewed)
    torch.testing.assert_close(logits.softmax(1).as_tensor(), want.as_tensor(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_mirroring_the_image_mirrors_the_answer(activation):
    inferer = SlidingWindowInferer(
        (4, 4, 4), 2, 0.5, "gaussian", tta=[0, 1], activation=activation, returns="probabilities"
    )
    x = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(inferer(x.flip(2), skewed).flip(2), inferer(x, skewed))


def test_a_symmetric_network_is_unchanged_by_mirrors():
    x = image(RAS)
    plain = SlidingWindowInferer((6, 7, 8))(x, lambda w: torch.cat([w, -w], 1)).softmax(1)
    tta = SlidingWindowInferer((6, 7, 8), tta=[0, 1, 2])(x, lambda w: torch.cat([w, -w], 1))
    torch.testing.assert_close(tta.softmax(1), plain)


def test_sigmoid_logits_keep_saturated_probabilities():
    x = torch.tensor([-60.0, -3, 0, 3, 60]).reshape(1, 1, 5, 1, 1)
    out = SlidingWindowInferer((5, 1, 1), tta=[2], activation="sigmoid")(x, lambda w: w)
    torch.testing.assert_close(out.sigmoid(), x.sigmoid(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tta": ["left-right"], "body_part": "chest"}, "dextrocardia"),
        ({"tta": ["superior-inferior"], "body_part": "brain"}, "midline"),
        ({"tta": ["left-right"], "body_part": "brain", "labels": {1: "left_kidney"}}, "side"),
    ],
)
def test_forbidden_mirrors_are_refused_at_construction(options, text):
    with pytest.raises(PolicyError, match=text):
        SlidingWindowInferer((4, 4, 4), **options)


def test_a_forbidden_mirror_is_not_let_in_as_an_array_axis():
    inferer = SlidingWindowInferer((6, 7, 8), tta=[2], body_part="brain")
    with pytest.raises(PolicyError, match="midline"):
        inferer(image(RAS), skewed)
    inferer(image(PIR), skewed)  # there the third array axis runs left to right


def test_true_means_every_mirror_that_the_anatomy_allows():
    assert Mirrors.parse(True, "brain").axes == ("left-right",)
    assert Mirrors.parse(True, "chest").axes == ()
    assert len(Mirrors.parse(True, "tissue").axes) == 3
    assert Mirrors.parse(True, "brain", ["left_hippocampus"]).axes == ()


def test_what_cannot_be_resolved_is_refused():
    with pytest.raises(ConfigError, match="body_part"):
        SlidingWindowInferer((4, 4, 4), tta=["left-right"])
    with pytest.raises(ConfigError, match="not a patient axis"):
        SlidingWindowInferer((4, 4, 4), tta=["x"], body_part="brain")
    with pytest.raises(InputError, match="affine"):
        SlidingWindowInferer((4, 4, 4), tta=["left-right"], body_part="brain")(
            torch.zeros(1, 1, 8, 8, 8), skewed
        )
    with pytest.raises(ConfigError, match="axis"):
        SlidingWindowInferer((4, 4), tta=[2])(torch.zeros(1, 1, 8, 8), lambda w: w)


def test_a_mirror_about_a_steeply_oblique_axis_is_left_out(caplog):
    turned = [[np.cos(0.7), np.sin(0.7), 0], [-np.sin(0.7), np.cos(0.7), 0], [0, 0, 1]]
    assert Mirrors(("left-right",), "brain").combinations(image(turned)) == [()]
    assert "obliquely" in caplog.text


def test_a_bundle_config_can_name_it():
    parser = ConfigParser(
        {
            "inferer": {
                "_target_": "medvol.inferers.SlidingWindowInferer",
                "roi_size": [4, 4, 4],
                "sw_batch_size": 2,
                "overlap": 0.5,
                "mode": "gaussian",
                "tta": ["left-right"],
                "body_part": "hippocampus",
                "labels": {1: "anterior", 2: "posterior"},
            }
        }
    )
    out = parser.get_parsed_content("inferer")(image(PIR), skewed)
    assert out.shape == (1, 3, 6, 7, 8)


def test_all_combinations_of_axes_are_run():
    flips = Mirrors((0, 1, 2)).combinations(torch.zeros(1, 1, 4, 4, 4))
    subsets = itertools.chain.from_iterable(itertools.combinations((2, 3, 4), n) for n in range(4))
    assert flips == list(subsets)
