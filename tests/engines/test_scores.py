import math

import pytest
import torch
from ignite.engine import Engine
from monai.data.meta_tensor import MetaTensor

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
    assert ignoring.right == [1.0]
    _, nothing_left = score([1, 1], [9, 9], ignore_label=9)
    assert math.isnan(nothing_left)


@pytest.mark.parametrize(
    ("named", "files", "expected"),
    [
        ({"case": ["a", "b"]}, ["p1/seg.nii.gz", "p2/seg.nii.gz"], ["a", "b"]),
        ({}, ["p.first.nii.gz", "p.second.nii.gz"], ["p.first", "p.second"]),
    ],
)
def test_cases_keep_their_own_names_in_the_table(tmp_path, named, files, expected):
    metric = SegmentationScores(LABELS, output_dir=tmp_path)
    maps = [MetaTensor(torch.ones(1, 2, 2, 2), meta={"filename_or_obj": name}) for name in files]
    engine = Engine(lambda *_: [{"pred": one, "label": one} for one in maps])
    metric.attach(engine, "val_mean_dice")
    rows = [{name: values[k] for name, values in named.items()} for k in range(2)]
    engine.run([rows], max_epochs=1)
    lines = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert sorted({line.split(",")[0] for line in lines}) == expected
