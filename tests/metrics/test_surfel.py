import math

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.core import GeometryError
from medvol.metrics import asd_surfel, hausdorff_surfel, nsd_surfel

# surface-distance 0.1 still uses an old name of scipy's.
pytestmark = pytest.mark.filterwarnings("ignore:Please import `:DeprecationWarning")
seeds = st.integers(0, 2**32 - 1)
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3)


def blobs(seed, shape=(7, 6, 8)):
    rng = np.random.default_rng(seed)
    density = rng.choice([0.1, 0.5])
    pred, ref = rng.random((2, *shape)) < density
    pred.flat[0] = ref.flat[-1] = True
    return pred, ref


@settings(max_examples=40)
@given(seed=seeds, spacing=spacings, tau=st.sampled_from([0.0, 0.6, 1.7, 5.0]))
def test_surface_distance_package_agrees_in_volumes(seed, spacing, tau):
    pred, ref = blobs(seed)
    peer = surface_distance.compute_surface_distances(ref, pred, spacing)
    want = surface_distance.compute_average_surface_distance(peer)
    assert asd_surfel(pred, ref, spacing) == pytest.approx(want)
    for percentile in (50, 95, 100):
        want = surface_distance.compute_robust_hausdorff(peer, percentile)
        got = hausdorff_surfel(pred, ref, spacing, percentile=percentile)
        assert got == pytest.approx(want)
    want = surface_distance.compute_surface_dice_at_tolerance(peer, tau)
    assert nsd_surfel(pred, ref, spacing, tau=tau) == pytest.approx(want)


@given(seed=seeds, spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 2))
def test_surface_distance_package_agrees_in_images(seed, spacing):
    pred, ref = blobs(seed, (9, 8))
    peer = surface_distance.compute_surface_distances(ref, pred, spacing)
    want = surface_distance.compute_average_surface_distance(peer)
    assert asd_surfel(pred, ref, spacing) == pytest.approx(want)
    want = surface_distance.compute_surface_dice_at_tolerance(peer, 1.0)
    assert nsd_surfel(pred, ref, spacing, tau=1.0) == pytest.approx(want)


def test_a_box_weighs_its_faces_by_their_area():
    # A slab moved along its thin axis by one voxel of 2 mm: of 2 x 20 x 20 flat corners per
    # surface, all lie 2 mm from the other slab's or on it.
    slab = np.zeros((12, 30, 30), bool)
    slab[4:6, 5:25, 5:25] = True
    moved = np.roll(slab, 1, axis=0)
    assert nsd_surfel(slab, moved, (2.0, 1.0, 1.0), tau=2.0) == 1.0
    assert nsd_surfel(slab, moved, (2.0, 1.0, 1.0), tau=1.9) < 0.7
    assert hausdorff_surfel(slab, moved, (2.0, 1.0, 1.0), percentile=100) == 2.0


def test_average_distance_says_which_side_is_missing(ball):
    nothing = np.zeros_like(ball)
    one, other = asd_surfel(nothing, ball, (1, 1, 1)), asd_surfel(ball, nothing, (1, 1, 1))
    assert one[0] == math.inf
    assert math.isnan(one[1])
    assert math.isnan(other[0])
    assert other[1] == math.inf


def test_four_axes_are_rejected():
    cube = np.ones((2, 2, 2, 2), bool)
    with pytest.raises(GeometryError, match="2 or 3 axes"):
        nsd_surfel(cube, cube, (1, 1, 1, 1), tau=1)
