import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.core import ConfigError, LabelError
from medvol.metrics import froc, lesion_overlap, panoptic

seeds = st.integers(0, 2**32 - 1)


def flood(mask, reach):
    """Components as sets of voxels, by flood fill; neighbours differ in up to ``reach`` axes."""
    left, found = {tuple(v) for v in np.argwhere(mask).tolist()}, []
    steps = [s for s in itertools.product((-1, 0, 1), repeat=mask.ndim) if np.abs(s).sum() > 0]
    steps = [s for s in steps if np.count_nonzero(s) <= reach]
    while left:
        todo = [left.pop()]
        component = set(todo)
        while todo:
            here = todo.pop()
            for step in steps:
                near = tuple(int(a + b) for a, b in zip(here, step, strict=True))
                if near in left:
                    left.remove(near)
                    component.add(near)
                    todo.append(near)
        found.append(component)
    return found


def best_assignment(table):
    """Largest summed IoU over all ways to pair predicted and reference instances."""
    n_pred, n_ref = table.shape
    if n_pred > n_ref:
        return best_assignment(table.T)
    picks = itertools.permutations(range(n_ref), n_pred)
    return max((sum(table[i, j] for i, j in enumerate(p)) for p in picks), default=0.0)


def sparse_pair(seed, shape=(6, 6, 3)):
    rng = np.random.default_rng(seed)
    ref = rng.random(shape) < 0.12
    return ref ^ (rng.random(shape) < 0.08), ref


@given(seed=seeds, reach=st.sampled_from([1, 2, 3]))
def test_flood_fill_agrees_on_which_lesions_touch(seed, reach):
    pred, ref = sparse_pair(seed)
    preds, refs = flood(pred, reach), flood(ref, reach)
    got = lesion_overlap(pred, ref, connectivity=reach)
    assert (got.n_pred, got.n_ref) == (len(preds), len(refs))
    assert got.tp_ref == sum(any(r & p for p in preds) for r in refs)
    assert got.tp_pred == sum(any(r & p for r in refs) for p in preds)
    assert got.fp_voxels == sum(len(p) for p in preds if not any(r & p for r in refs))
    assert got.fn_voxels == sum(len(r) for r in refs if not any(r & p for p in preds))


@settings(max_examples=60)
@given(seed=seeds, threshold=st.sampled_from([0.0, 0.2, 0.5, 0.7]))
def test_trying_every_assignment_agrees_on_panoptic_quality(seed, threshold):
    pred, ref = sparse_pair(seed, (5, 5))
    preds, refs = flood(pred, 2), flood(ref, 2)
    if min(len(preds), len(refs)) > 5 or max(len(preds), len(refs)) > 6:
        return
    table = np.array([[len(p & r) / len(p | r) for r in refs] for p in preds])
    table = table.reshape(len(preds), len(refs))
    table[table <= threshold] = 0
    got = panoptic(pred, ref, iou_threshold=threshold)
    weight = (len(preds) + len(refs)) / 2
    assert (got.tp + got.fp, got.tp + got.fn) == (len(preds), len(refs))
    want = best_assignment(table) / weight if weight else math.nan
    assert got.pq == pytest.approx(want, nan_ok=True)
    assert got.rq == pytest.approx(got.tp / weight if weight else math.nan, nan_ok=True)


def test_instance_numbers_may_be_sparse_and_touch():
    ref = np.array([[7, 7, 0, 900], [7, 7, 0, 900]])
    pred = np.array([[3, 3, 0, 5], [3, 4, 0, 5]])
    got = panoptic(pred, ref)
    assert (got.tp, got.fp, got.fn) == (2, 1, 0)
    assert got.sq == pytest.approx((0.75 + 1) / 2)
    with pytest.raises(LabelError):
        panoptic(pred - 4, ref)
    with pytest.raises(LabelError):
        panoptic(pred * 0.5, ref)


def test_nothing_to_find_is_undefined_and_an_alarm_is_not():
    nothing, one = np.zeros((2, 4, 4), bool)
    one[1, 1] = True
    assert math.isnan(lesion_overlap(nothing, nothing).f1)
    assert math.isnan(panoptic(nothing, nothing).pq)
    assert lesion_overlap(one, nothing).f1 == 0
    assert panoptic(one, nothing).pq == 0
    with pytest.raises(ConfigError, match="connectivity"):
        lesion_overlap(one, one, connectivity=3)


def test_froc_counts_each_lesion_once_and_ties_together():
    # 2 images, 4 lesions: a hit, a false alarm tied with a hit, a second hit of lesion 0.
    curve = froc([0.9, 0.8, 0.8, 0.7], [0, -1, 1, 0], n_lesions=4, n_images=2)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.7]
    assert curve.fp_per_image.tolist() == [0, 0.5, 0.5]
    assert curve.sensitivity.tolist() == [0.25, 0.5, 0.5]
    assert curve.mean_sensitivity == pytest.approx((2 * 0.25 + 5 * 0.5) / 7)
    assert froc([], [], n_lesions=1, n_images=1).mean_sensitivity == 0


def test_one_instance_of_two_parts_stays_one_and_a_mask_of_them_holds_two():
    whole = np.zeros((6, 6, 6), np.uint8)
    whole[0:2], whole[4:6] = 1, 1
    half = whole.copy()
    half[4:6] = 0
    found = panoptic(half, whole, iou_threshold=0.4)
    assert (found.tp, found.fp, found.fn) == (1, 0, 0)
    assert found.sq == pytest.approx(0.5)
    found = panoptic(half > 0, whole > 0)
    assert (found.tp, found.fp, found.fn) == (1, 0, 1)
