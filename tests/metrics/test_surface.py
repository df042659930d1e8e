import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medvol import MedvolError
from medvol.core import GeometryError, GridMismatchError, LabelError
from medvol.metrics import (
    asd,
    assd,
    boundary_iou,
    hausdorff,
    hd95,
    hd95_pooled,
    masd,
    nsd_surfel,
    nsd_voxel,
)

spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 2.5, 5.0])] * 3)
norms = st.sampled_from(["euclidean", "taxicab", "chessboard"])
ORDER = {"euclidean": 2, "taxicab": 1, "chessboard": math.inf}


@st.composite
def mask_pairs(draw, max_side=6):
    """Two random masks on one grid, sparse or dense, in 2 or 3 axes; either may be empty."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=max_side))
    density = draw(st.sampled_from([0.03, 0.3, 0.8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spacing = draw(spacings)[: len(shape)]
    return rng.random(shape) < density, rng.random(shape) < density, spacing


def brute_surface(mask, spacing_mm):
    """Centres in mm of the voxels with a face neighbour outside the mask, voxel by voxel.

    A single slice has no neighbours above and below.
    """
    across = mask.shape.index(1) if mask.ndim == 3 and 1 in mask.shape else None
    found = []
    for voxel in map(tuple, np.argwhere(mask)):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            if axis == across:
                continue
            near = list(voxel)
            near[axis] += step
            inside = 0 <= near[axis] < mask.shape[axis]
            if not (inside and mask[tuple(near)]):
                found.append(np.multiply(voxel, spacing_mm))
                break
    return np.array(found)


def brute_distances(pred, ref, spacing_mm, norm="euclidean"):
    """Every point against every point."""
    a, b = brute_surface(pred, spacing_mm), brute_surface(ref, spacing_mm)
    table = np.linalg.norm(a[:, None] - b[None], ord=ORDER[norm], axis=-1)
    return table.min(axis=1), table.min(axis=0)


@given(spacing=spacings, shift=st.integers(1, 5), axis=st.integers(0, 2))
def test_shifted_ball_lies_shift_times_spacing_away(ball, spacing, shift, axis):
    # A translated convex body: the distance is the length of the translation.
    moved = np.roll(ball, shift, axis=axis)
    got = hausdorff(ball, moved, spacing, percentile=100)
    assert got == pytest.approx(shift * spacing[axis])


@pytest.mark.parametrize("radius", [6, 9])
def test_concentric_balls_are_their_radii_apart(radius):
    grid = np.indices((41, 41, 41)) - 20
    squared = (grid**2).sum(axis=0)
    inner, outer = squared <= radius**2, squared <= (2 * radius) ** 2
    # A digitised sphere strays from the true one by less than a voxel's diagonal.
    for metric in (assd, masd, hd95):
        assert metric(outer, inner, (1, 1, 1)) == pytest.approx(radius, abs=math.sqrt(3))


@given(case=mask_pairs(), norm=norms, percentile=st.sampled_from([0, 50, 95, 100]))
def test_brute_force_over_all_pairs_of_points_agrees(case, norm, percentile):
    pred, ref, spacing = case
    if not (pred.any() and ref.any()):
        return
    there, back = brute_distances(pred, ref, spacing, norm)
    both = np.concatenate([there, back])
    far = [np.percentile(d, percentile) for d in (there, back)]
    q = {"percentile": percentile, "norm": norm}
    assert hausdorff(pred, ref, spacing, **q) == pytest.approx(max(far))
    assert hausdorff(pred, ref, spacing, directed=True, **q) == pytest.approx(far[0])
    assert asd(pred, ref, spacing, norm=norm) == pytest.approx(there.mean())
    assert assd(pred, ref, spacing, norm=norm) == pytest.approx(both.mean())
    assert masd(pred, ref, spacing, norm=norm) == pytest.approx((there.mean() + back.mean()) / 2)


@given(case=mask_pairs(), tau=st.sampled_from([0, 0.5, 1.4, 2.5, 10]))
def test_nsd_counts_the_points_within_tolerance(case, tau):
    pred, ref, spacing = case
    if not (pred.any() and ref.any()):
        return
    both = np.concatenate(brute_distances(pred, ref, spacing))
    assert nsd_voxel(pred, ref, spacing, tau=tau) == np.mean(both <= tau + 1e-9)
    assert hd95_pooled(pred, ref, spacing) == pytest.approx(np.percentile(both, 95))


def test_tolerance_is_inclusive_despite_rounding():
    # 3 x 1.1 is 3.3000000000000003 in floating point.
    pred, ref = np.zeros((2, 9, 1), bool)
    pred[1], ref[4] = True, True
    assert nsd_voxel(pred, ref, (1.1, 1.0), tau=3.3) == 1
    assert nsd_voxel(pred, ref, (1.1, 1.0), tau=3.29) == 0


@pytest.mark.parametrize("metric", [asd, assd, hausdorff, hd95, hd95_pooled, masd])
def test_a_false_negative_or_false_positive_structure_is_infinitely_far(ball, metric):
    nothing = np.zeros_like(ball)
    assert metric(nothing, ball, (1, 1, 3)) == math.inf
    assert metric(ball, nothing, (1, 1, 3)) == math.inf
    assert math.isnan(metric(nothing, nothing, (1, 1, 3)))


@pytest.mark.parametrize(("pred", "ref", "want"), [(0, 1, 0.0), (1, 0, 0.0), (0, 0, math.nan)])
def test_no_tolerance_forgives_a_false_negative_structure(ball, pred, ref, want):
    got = nsd_voxel(ball * pred, ball * ref, (1, 1, 3), tau=1e6)
    assert got == pytest.approx(want, nan_ok=True)


def test_one_voxel_and_one_slice_have_surfaces():
    voxel = np.zeros((5, 5, 5), bool)
    voxel[2, 2, 2] = True
    slab = np.zeros((5, 5, 5), bool)
    slab[:, :, 2] = True
    # From the slab's corner to its middle: 2 steps of 3 mm and 2 of 4 mm.
    assert hausdorff(slab, voxel, (3.0, 4.0, 1.0), percentile=100) == 10.0
    assert hausdorff(slab[:, :, 2], voxel[:, :, 2], (3.0, 4.0), percentile=100) == 10.0


def test_the_image_edge_is_a_surface():
    full = np.ones((5, 5, 5), bool)
    middle = np.zeros_like(full)
    middle[2, 2, 2] = True
    assert hausdorff(full, middle, (1, 1, 1), percentile=0) == 2.0


@given(case=mask_pairs(), data=st.data())
@example(case=(np.ones((2, 1), bool), np.ones((2, 1), bool), (1.0, 1.0)), data=None)
def test_padding_with_background_changes_nothing(case, data):
    pred, ref, spacing = case
    width = data.draw(st.integers(1, 3)) if data else 1
    padded = hd95(np.pad(pred, width), np.pad(ref, width), spacing)
    assert padded == pytest.approx(hd95(pred, ref, spacing), nan_ok=True)


@pytest.mark.parametrize(
    ("pred", "ref", "spacing", "error", "words"),
    [
        (np.ones((2, 2)), np.ones((2, 3)), (1, 1), GridMismatchError, "resample pred"),
        (np.ones((2, 2)), np.ones((2, 2)), None, GeometryError, "spacing_mm is needed"),
        (np.ones((2, 2)), np.ones((2, 2)), (1, 1, 1), GeometryError, "3 values for masks of 2"),
        (np.ones((2, 2)), np.ones((2, 2)), (1, 0), GeometryError, "positive"),
        (np.ones((2, 2)), np.ones((2, 2)), (1, math.nan), GeometryError, "finite"),
        (np.full((2, 2), 2), np.ones((2, 2)), (1, 1), LabelError, "one label at a time"),
        (np.full((2, 2), 0.3), np.ones((2, 2)), (1, 1), LabelError, "threshold"),
        (np.full((2, 2), math.nan), np.ones((2, 2)), (1, 1), LabelError, "other than 0 and 1"),
    ],
)
def test_what_cannot_be_measured_is_rejected(pred, ref, spacing, error, words):
    with pytest.raises(error, match=words):
        hd95(pred, ref, spacing)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: hausdorff(m, m, (1, 1, 1), percentile=101),
        lambda m: hausdorff(m, m, (1, 1, 1), norm="cosine"),
        lambda m: nsd_voxel(m, m, (1, 1, 1), tau=-1),
        lambda m: nsd_voxel(m, m, (1, 1, 1), tau=math.nan),
    ],
)
def test_a_parameter_out_of_range_is_rejected(ball, call):
    with pytest.raises(MedvolError):
        call(ball)


def slabs():
    """A 20 x 20 square moved by one voxel of 0.5 mm, as an image and along each axis of a slab."""
    ref = np.zeros((64, 64), bool)
    ref[20:40, 20:40] = True
    yield np.roll(ref, 1, 0), ref, (0.5, 0.5)
    for axis in range(3):
        pair = [np.expand_dims(mask, axis) for mask in (np.roll(ref, 1, 0), ref)]
        yield *pair, tuple(np.insert([0.5, 0.5], axis, 5.0).tolist())


@pytest.mark.parametrize("case", list(slabs()))
def test_a_single_slice_is_measured_as_the_image_that_it_is(case):
    # Closed form: of 76 edge voxels 38 lie on the other edge and 38 one voxel off it; with the
    # slab's upper and lower faces as surface, 0.95 of all voxels would seem to agree.
    assert hd95(*case) == 0.5
    assert assd(*case) == pytest.approx(0.25)
    assert nsd_voxel(*case, tau=0.3) == pytest.approx(0.5)
    assert boundary_iou(*case, width_mm=0.5) == pytest.approx(38 / 114)
    image = next(slabs())
    assert nsd_surfel(*case, tau=0.3) == nsd_surfel(*image, tau=0.3)
