import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.morphology import skeletonize

from medvol.core import ConfigError, GeometryError
from medvol.metrics import (
    absolute_volume_difference,
    boundary_iou,
    cldice,
    dice,
    iou,
    precision_voxel,
    relative_volume_difference,
    sensitivity_voxel,
    specificity_voxel,
    volume_similarity,
)

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds)
def test_counts_voxel_by_voxel_agree(seed):
    pred, ref = np.random.default_rng(seed).random((2, 4, 5, 3)) < 0.5
    pairs = list(zip(pred.ravel().tolist(), ref.ravel().tolist(), strict=True))
    tp, fp, fn, tn = (pairs.count(p) for p in [(1, 1), (1, 0), (0, 1), (0, 0)])
    assert dice(pred, ref) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert iou(pred, ref) == pytest.approx(tp / (tp + fp + fn))
    assert sensitivity_voxel(pred, ref) == pytest.approx(tp / (tp + fn))
    assert precision_voxel(pred, ref) == pytest.approx(tp / (tp + fp))
    assert specificity_voxel(pred, ref) == pytest.approx(tn / (tn + fp))
    assert relative_volume_difference(pred, ref) == pytest.approx((fp - fn) / (tp + fn))
    assert volume_similarity(pred, ref) == pytest.approx(1 - abs(fp - fn) / (2 * tp + fp + fn))


@given(seed=seeds)
def test_dice_and_iou_are_one_measure(seed):
    pred, ref = np.random.default_rng(seed).random((2, 5, 5)) < 0.4
    if pred.any() or ref.any():
        assert dice(pred, ref) == pytest.approx(2 * iou(pred, ref) / (1 + iou(pred, ref)))


def test_volumes_are_in_millilitres():
    pred, ref = np.zeros((2, 10, 10, 10), bool)
    pred[:5], ref[:2] = True, True
    assert absolute_volume_difference(pred, ref, (2.0, 1.0, 0.5)) == pytest.approx(0.3)
    assert absolute_volume_difference(pred & False, ref & False, (1, 1, 1)) == 0
    with pytest.raises(GeometryError, match="3 axes"):
        absolute_volume_difference(pred[0], ref[0], (1, 1))


def test_boundary_iou_of_squares_counts_their_frames():
    # Frames of width 1 of a 6x6 and a 4x4 square about one centre do not meet; of width 2 the
    # outer frame holds 32 pixels, the inner square is whole (16), and 12 are shared.
    outer, inner = np.zeros((2, 10, 10), bool)
    outer[2:8, 2:8], inner[3:7, 3:7] = True, True
    assert boundary_iou(outer, inner, (1, 1), width_mm=1) == 0
    assert boundary_iou(outer, inner, (1, 1), width_mm=2) == 12 / 36
    assert boundary_iou(outer, outer, (3, 1), width_mm=1.5) == 1
    with pytest.raises(ConfigError, match="width_mm"):
        boundary_iou(outer, inner, (1, 1), width_mm=0)


def test_wide_bands_make_boundary_iou_the_iou(ball):
    moved = np.roll(ball, 2, axis=1)
    assert boundary_iou(ball, moved, (1, 1, 1), width_mm=50) == iou(ball, moved)


def test_cldice_follows_its_definition():
    rng = np.random.default_rng(3)
    tube = np.zeros((9, 9, 30), bool)
    tube[3:6, 3:6, 2:28] = True
    broken = tube.copy()
    broken[:, :, 14:20] = False
    broken ^= (rng.random(tube.shape) < 0.05) & tube
    line, other = skeletonize(tube) > 0, skeletonize(broken) > 0
    precision = (other & tube).sum() / other.sum()
    sensitivity = (line & broken).sum() / line.sum()
    want = 2 * precision * sensitivity / (precision + sensitivity)
    assert cldice(broken, tube) == pytest.approx(want)
    assert cldice(broken, tube) < dice(broken, tube) < 1
    assert cldice(tube, np.roll(tube, 6, axis=0)) == 0


def test_a_lone_voxel_is_its_own_centreline():
    voxel = np.zeros((3, 3, 3), bool)
    voxel[1, 1, 1] = True
    assert cldice(voxel, voxel) == 1


def test_specificity_is_undefined_without_background():
    full = np.ones((3, 3), bool)
    assert math.isnan(specificity_voxel(full, full))
    assert specificity_voxel(full, ~full) == 0
