import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import ConfigError, GridMismatchError
from medvol.explain import body_mask, energy_inside, energy_lift, points_into


def one_hot(shape, index):
    array = np.zeros(shape)
    array[index] = 1
    return array


@given(peak=st.tuples(*[st.integers(0, 5)] * 3), target=st.tuples(*[st.integers(0, 5)] * 3),
       tolerance=st.tuples(*[st.integers(0, 3)] * 3))  # fmt: skip
def test_point_hits_a_voxel_that_lies_within_the_tolerance_of_every_axis(peak, target, tolerance):
    away = np.abs(np.subtract(peak, target))
    hit = points_into(one_hot((6, 6, 6), peak), one_hot((6, 6, 6), target), tolerance)
    assert hit == bool((away <= tolerance).all())


def test_flat_map_and_empty_mask_point_nowhere():
    mask = one_hot((4, 4), (0, 0))
    assert not points_into(np.ones((4, 4)), mask)
    assert not points_into(np.zeros((4, 4)), mask)
    assert not points_into(one_hot((4, 4), (0, 0)), np.zeros((4, 4)))


def test_uniform_map_has_the_masks_share_of_energy():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2] = True
    assert energy_inside(np.full(mask.shape, 0.3), mask) == pytest.approx(mask.mean())
    assert energy_lift(np.full(mask.shape, 0.3), mask) == pytest.approx(1)


def test_energy_of_a_map_of_zeros_is_undefined():
    assert math.isnan(energy_inside(np.zeros((3, 3)), np.ones((3, 3))))
    assert math.isnan(energy_lift(np.ones((3, 3)), np.zeros((3, 3))))


def test_maps_on_another_grid_or_below_zero_are_rejected():
    with pytest.raises(GridMismatchError, match=r"\(2, 3\), the mask \(3, 2\)"):
        energy_inside(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ConfigError, match="negative"):
        energy_inside(-np.ones((2, 2)), np.ones((2, 2)))


@pytest.mark.parametrize("threshold", [None, -500])
def test_body_is_the_large_bright_component_with_its_holes(threshold):
    x, y, z = np.mgrid[-20:21, -20:21, -10:11]
    truth = x**2 + y**2 + (1.5 * z) ** 2 < 14**2
    image = np.where(truth, 40.0, -1000.0)
    image[((x - 4) ** 2 + y**2 + z**2) < 4**2] = -900  # lung
    image[:, 0, 0] = 300  # table
    image += np.random.default_rng(0).normal(0, 10, image.shape)
    assert np.array_equal(body_mask(image, threshold=threshold), truth)


def test_body_of_an_empty_image_is_empty():
    assert not body_mask(np.zeros((5, 5))).any()
