import math

import numpy as np
import pytest

from medvol.core import ConfigError, InputError
from medvol.metrics import (
    MetricPlan,
    Structures,
    measure_case,
    metric_of,
    scores_from_csv,
    scores_to_csv,
)

PLAN = MetricPlan(taus_mm=(1.0, 2.5))


def rows():
    ref = np.zeros((8, 8, 8), np.uint8)
    ref[1:4, 1:4, 1:4], ref[5:7, 5:7, 5:7] = 1, 2
    pred = np.where(ref == 2, 0, ref)
    labels = {1: "liver", 2: "tumour", 3: "cyst"}
    found = measure_case("c1", pred, ref, (1, 1, 2), structures=Structures(labels), plan=PLAN)
    return [row for measured in found.values() for row in measured.scores]


def test_every_label_has_every_number_and_says_why_it_is_undefined():
    table = {(r.label, r.metric): r for r in rows()}
    columns = ["dice", "hd95", "assd", "nsd_voxel@1mm", "nsd_voxel@2.5mm"]
    assert sorted(table) == sorted((n, c) for n in ("liver", "tumour", "cyst") for c in columns)
    assert table["tumour", "hd95"].value == math.inf
    assert "false negative" in table["tumour", "hd95"].why_undefined
    assert table["tumour", "dice"].value == 0
    assert math.isnan(table["cyst", "dice"].value)
    assert table["cyst", "dice"].why_undefined == "prediction and reference are empty"
    assert table["liver", "hd95"].why_undefined == ""
    assert table["liver", "hd95"].unit == "mm"


def test_a_csv_gives_back_what_was_written():
    assert repr(scores_from_csv(scores_to_csv(rows()), "x")) == repr(rows())
    assert metric_of("nsd_voxel@2.5mm").name == "nsd_voxel"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case,label\n", "no column 'metric'"),
        ("case,label,metric,value,unit,why_undefined\na,b,dice,x,,\n", "line 2: value 'x'"),
    ],
)
def test_a_broken_csv_is_rejected_with_its_name(text, words):
    with pytest.raises(InputError, match=f"scores.csv: .*{words}"):
        scores_from_csv(text, "scores.csv")


def test_a_plan_that_leaves_a_choice_open_is_rejected():
    with pytest.raises(ConfigError, match="tolerance"):
        MetricPlan(taus_mm=()).calls()
    with pytest.raises(ConfigError, match="width_mm"):
        MetricPlan(metrics=("boundary_iou",)).calls()
    with pytest.raises(ConfigError, match="one number"):
        MetricPlan(metrics=("asd_surfel",)).calls()
