import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import Geometry, GeometryError, GridMismatchError
from medvol.core.geometry import affine_from_lps, grid_distance_mm

CODES = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*axes)
]


def affine_of(codes: str, spacing_mm=(1.0, 2.0, 3.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = spacing_mm[axis] * (1 if code in "RAS" else -1)
    return affine


@pytest.mark.parametrize("codes", CODES)
def test_all_48_orientations_are_named(codes):
    assert len(CODES) == 48
    geometry = Geometry((4, 5, 6), affine_of(codes))
    assert geometry.axis_codes == codes
    assert geometry.spacing_mm == (1.0, 2.0, 3.0)
    assert geometry.obliqueness_deg == 0


@given(angle=st.floats(0.1, 44))
def test_rotation_about_one_axis_is_the_obliqueness(angle):
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    affine = np.eye(4)
    affine[:2, :2] = [[c, -s], [s, c]]
    geometry = Geometry((3, 3, 3), affine)
    assert geometry.obliqueness_deg == pytest.approx(angle, abs=1e-5)
    assert geometry.shear_deg == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_impossible_affine_is_rejected(bad):
    with pytest.raises(GeometryError):
        Geometry((2, 2, 2), bad)


def test_shifted_grid_is_rejected_and_states_how_far():
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    with pytest.raises(GridMismatchError, match=r"mask: the grids lie 0\.5 mm apart"):
        Geometry((2, 2, 2), np.eye(4)).require_same(Geometry((2, 2, 2), shifted), "mask")


def test_lps_conversion_is_its_own_inverse():
    affine = affine_of("LPI")
    assert np.array_equal(affine_from_lps(affine_from_lps(affine)), affine)
    assert Geometry((2, 2, 2), affine_from_lps(affine)).axis_codes == "RAI"


@given(
    shape=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    degrees=st.floats(0.001, 20),
)
def test_grids_are_as_far_apart_as_their_furthest_corner(shape, degrees):
    # A turn about the first voxel moves a voxel by the chord of its distance from the z axis.
    angle = np.radians(degrees)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    reach = np.hypot(*[n - 1 for n in (*shape, 1)[:2]])
    found = grid_distance_mm(shape, np.eye(4), turned)
    assert found == pytest.approx(2 * np.sin(angle / 2) * reach, abs=1e-9)
