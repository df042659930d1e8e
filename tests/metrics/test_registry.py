"""Laws that every registered metric obeys; a new one is under them without a line here."""

import math
import pickle

import numpy as np
import pytest

from medvol.core import ConfigError, GridMismatchError
from medvol.metrics import all_metrics, find_metric, metric

EXTRA = {"tau": 1.0, "width_mm": 2.0}
BEST = {"higher": 1.0, "lower": 0.0, "zero": 0.0}
MASK = all_metrics("mask")
SCALAR = [name for name, row in MASK.items() if row.is_scalar]
DISTANCES = [name for name in SCALAR if MASK[name].unit == "mm"]


def call(name, pred, ref, spacing=(1.0, 2.0, 3.0)):
    row = find_metric(name)
    needed = {key: EXTRA[key] for key in row.params if key in EXTRA}
    return row.function(pred, ref, spacing, **needed)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(7)
    pred = np.zeros((9, 9, 9), bool)
    pred[2:6, 2:7, 3:6] = True
    ref = np.roll(pred, 1, axis=0) ^ (rng.random(pred.shape) < 0.02)
    return pred, ref


def test_the_registry_knows_all_kinds():
    assert len(SCALAR) >= 18
    assert {row.kind for row in all_metrics().values()} == {"mask", "instances", "score", "counts"}


@pytest.mark.parametrize("name", SCALAR)
def test_a_mask_agrees_best_with_itself(name, blobs):
    assert call(name, blobs[0], blobs[0]) == BEST[MASK[name].direction]


@pytest.mark.parametrize("name", SCALAR)
def test_the_declared_empty_rule_is_what_callers_get(name, blobs):
    rule, some = MASK[name].empty, blobs[0]
    if rule is None:
        return
    none = np.zeros_like(some)
    got = [call(name, none, none), call(name, none, some), call(name, some, none)]
    assert got == pytest.approx([rule.both, rule.pred, rule.ref], nan_ok=True)


@pytest.mark.parametrize("name", SCALAR)
def test_a_miss_never_scores_like_a_hit(name, blobs):
    missed = call(name, np.zeros_like(blobs[0]), blobs[0])
    best = BEST[MASK[name].direction]
    assert math.isnan(missed) or missed != best or name == "specificity_voxel"


@pytest.mark.parametrize("name", list(MASK))
def test_booleans_bytes_floats_and_tensors_give_one_answer(name, blobs):
    torch = pytest.importorskip("torch")
    want = call(name, *blobs)
    for convert in (np.uint8, np.float32, lambda m: torch.from_numpy(m.astype(np.int64))):
        assert call(name, *map(convert, blobs)) == want


@pytest.mark.parametrize("name", list(MASK))
def test_masks_are_left_as_they_were(name, blobs):
    before = [m.copy() for m in blobs]
    call(name, *blobs)
    assert all(np.array_equal(a, b) for a, b in zip(before, blobs, strict=True))


# Thinning takes the axes in turn, so a skeleton depends on their order.
@pytest.mark.parametrize("name", [name for name in SCALAR if name != "cldice"])
def test_turning_the_patient_changes_nothing(name, blobs):
    want = call(name, *blobs)
    turned = [m.transpose(2, 0, 1)[::-1] for m in blobs]
    assert call(name, *turned, spacing=(3.0, 1.0, 2.0)) == pytest.approx(want, nan_ok=True)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_grow_with_the_voxels(name, blobs):
    larger = call(name, *blobs, spacing=(2.5, 5.0, 7.5))
    assert larger == pytest.approx(2.5 * call(name, *blobs))


@pytest.mark.parametrize("name", list(MASK))
def test_masks_of_other_shape_are_rejected(name, blobs):
    with pytest.raises(GridMismatchError, match="resample pred"):
        call(name, blobs[0], blobs[1][:-1])


@pytest.mark.parametrize("name", list(all_metrics()))
def test_a_metric_is_a_documented_function_that_workers_can_receive(name):
    row = find_metric(name)
    assert row.function.__doc__
    assert pickle.loads(pickle.dumps(row.function)) is row.function


def test_a_name_is_registered_once():
    def dice(y, score):
        """Another."""

    with pytest.raises(ConfigError, match="twice"):
        metric(kind="score")(dice)
    with pytest.raises(ConfigError, match="known: "):
        find_metric("dyce")
