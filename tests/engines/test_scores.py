import math

import pytest
import torch

from medvol.engines import SegmentationScores

LABELS = {1: "edema", 2: "core"}


def score(pred, label, **options):
    metric = SegmentationScores(LABELS, **options)
    metric.reset()
    case = {"pred": torch.tensor([pred]), "label": torch.tensor([label])}
    metric.update([case])
    return metric, metric.compute()


def test_regions_are_scored_as_unions():
    metric, mean = score([1, 1, 2, 0], [1, 2, 2, 0], regions={"whole": [1, 2], "core": [2]})
    assert metric.dice == {"whole": [1.0], "core": [pytest.approx(2 / 3)]}
    assert mean == pytest.approx((1 + 2 / 3) / 2)


def test_ignored_voxels_count_neither_for_nor_against():
    plain, _ = score([1, 1, 2, 1], [1, 1, 2, 0])
    ignoring, _ = score([1, 1, 2, 1], [1, 1, 2, 9], ignore_label=9)
    assert plain.dice["edema"] == [pytest.approx(4 / 5)]
    assert ignoring.dice["edema"] == [1.0]
    _, nothing_left = score([1, 1], [9, 9], ignore_label=9)
    assert math.isnan(nothing_left)
