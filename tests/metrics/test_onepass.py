import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.core import ConfigError, GridMismatchError, LabelError
from medvol.metrics import all_metrics, find_metric, surface_report

SP = (0.8, 1.0, 2.5)
SCALAR = [name for name, row in all_metrics("mask").items() if row.is_scalar]


def label_maps(seed, labels=(0, 0, 1, 2, 5), shape=(6, 7, 5)):
    return np.random.default_rng(seed).choice(np.array(labels, np.uint8), (2, *shape))


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_pass_equals_each_metric_alone(seed):
    pred, ref = label_maps(seed)
    pred[pred == 5] = 0  # a label that no prediction holds
    params = {"boundary_iou": {"width_mm": 2.0}}
    report = surface_report(pred, ref, SP, 1.5, SCALAR, params=params)
    assert list(report) == sorted(set(np.unique([pred, ref])) - {0})
    for label, values in report.items():
        assert list(values) == SCALAR
        for name, value in values.items():
            row = find_metric(name)
            needed = params.get(name) or ({"tau": 1.5} if "tau" in row.params else {})
            alone = row.function(pred == label, ref == label, SP, **needed)
            assert value == pytest.approx(alone, nan_ok=True), name


def test_defaults_are_the_four_usual_metrics_and_misses_stay():
    ref = np.zeros((8, 8, 8), np.int16)
    ref[1:4, 1:4, 1:4], ref[5:7, 5:7, 5:7] = 1, 3
    report = surface_report(np.where(ref == 3, 0, ref), ref, SP, taus_mm=2)
    assert report[1] == {"dice": 1, "hd95": 0, "assd": 0, "nsd_voxel": 1}
    assert report[3] == {"dice": 0, "hd95": math.inf, "assd": math.inf, "nsd_voxel": 0}


def test_labels_asked_for_are_reported_even_if_nowhere():
    empty = np.zeros((4, 4, 4), np.uint8)
    report = surface_report(empty, empty, SP, 1, labels=[2])
    assert math.isnan(report[2]["dice"])
    assert surface_report(empty, empty, SP, 1) == {}


def test_tolerances_by_label_in_every_form():
    pred, ref = label_maps(1)
    one = surface_report(pred, ref, SP, {1: 0.8, 2: 1.0, 5: 3.0})
    assert surface_report(pred, ref, SP, [0.8, 1.0, 3.0]) == one
    assert one[5]["nsd_voxel"] == surface_report(pred, ref, SP, 3.0)[5]["nsd_voxel"]
    assert surface_report(pred, ref, SP, [3.0]) == surface_report(pred, ref, SP, 3.0)


def test_images_and_floats_of_whole_numbers_are_label_maps():
    pred, ref = label_maps(2, shape=(9, 8))
    want = surface_report(pred, ref, (1, 2), 1)
    assert surface_report(pred.astype(np.float32), ref.astype(np.int64), (1, 2), 1) == want


@pytest.mark.parametrize(
    ("maps", "taus", "metrics", "error", "words"),
    [
        ((np.zeros((2, 2)), np.zeros((2, 3))), 1, ("dice",), GridMismatchError, "shape"),
        ((np.full((2, 2), 0.5), np.zeros((2, 2))), 1, ("dice",), LabelError, "whole"),
        ((np.full((2, 2), -1), np.zeros((2, 2))), 1, ("dice",), LabelError, "-1"),
        ((np.full((2, 2), 70000), np.zeros((2, 2))), 1, ("dice",), LabelError, "70000"),
        ((np.ones((2, 2)), np.zeros((2, 2))), None, ("nsd_voxel",), ConfigError, "tolerance"),
        ((np.ones((2, 2)), np.zeros((2, 2))), [1, 2], ("dice",), ConfigError, "2 values"),
        ((np.ones((2, 2)), np.zeros((2, 2))), 1, ("auc_roc",), ConfigError, "not a mask metric"),
        ((np.ones((2, 2)), np.zeros((2, 2))), 1, ("dyce",), ConfigError, "unknown"),
        ((np.full((2, 2), np.nan), np.zeros((2, 2))), 1, ("dice",), LabelError, "whole"),
    ],
)
def test_what_is_no_label_map_is_rejected(maps, taus, metrics, error, words):
    with pytest.raises(error, match=words):
        surface_report(*maps, (1, 1), taus, metrics)
