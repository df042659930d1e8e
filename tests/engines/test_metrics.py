import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from medvol.core import ConfigError, GeometryError
from medvol.engines import SegmentationMetric, SegmentationReport
from medvol.metrics import dice, hd95, nsd_voxel

AFFINE = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
SPACING = (2.0, 1.0, 3.0)


def case(seed, *, missed=False):
    rng = np.random.default_rng(seed)
    ref = rng.integers(0, 3, (6, 5, 4))
    pred = np.where(rng.random(ref.shape) < 0.2, 0, ref)
    if missed:
        pred[pred == 2] = 0
    return tuple(MetaTensor(torch.from_numpy(m)[None], affine=AFFINE) for m in (pred, ref))


def test_values_are_those_of_the_functions_at_the_affines_spacing():
    pred, ref = case(0)
    for name, function, params in (
        ("hd95", hd95, {}),
        ("dice", dice, {}),
        ("nsd_voxel", nsd_voxel, {"tau": 1.5}),
    ):
        metric = SegmentationMetric(name, [1, 2], params=params)
        got = metric([pred], [ref])
        want = [function(pred[0] == k, ref[0] == k, SPACING, **params) for k in (1, 2)]
        assert got.tolist() == [want]


def test_one_hot_batches_are_label_maps():
    pred, ref = case(1)
    hot = [torch.nn.functional.one_hot(m[0].long(), 3).movedim(-1, 0)[None] for m in (pred, ref)]
    one = SegmentationMetric("dice", [1, 2], spacing_mm=SPACING)(*hot)
    assert torch.equal(one, SegmentationMetric("dice", [1, 2])([pred], [ref]))
    with pytest.raises(ConfigError, match="one-hot"):
        SegmentationMetric("dice", [1], spacing_mm=SPACING)(
            torch.rand(1, 3, 4, 4, 4), torch.rand(1, 3, 4, 4, 4)
        )


def test_misses_reach_the_key_number_and_the_counts():
    metric = SegmentationMetric("hd95", {"1": "liver", "2": "tumour"})
    for seed in range(4):
        pred, ref = case(seed, missed=seed == 0)
        metric([pred], [ref])
    summary = metric.summary()
    assert summary["tumour"]["n_infinite"] == 1
    assert summary["liver"]["n_infinite"] == 0
    assert summary["tumour"]["n"] == 4
    assert metric.aggregate() == math.inf
    assert math.isfinite(metric.aggregate("median"))


def test_an_absent_label_is_counted_and_not_averaged():
    pred, ref = case(0)
    metric = SegmentationMetric("dice", [1, 9])
    metric([pred], [ref])
    assert metric.summary()["9"]["n_undefined"] == 1
    assert metric.aggregate().item() == pytest.approx(dice(pred[0] == 1, ref[0] == 1))


def test_the_handler_hands_every_number_to_the_engine():
    batches = [[dict(zip(("pred", "label"), case(seed), strict=True))] for seed in range(3)]
    engine = Engine(lambda _, batch: batch)
    SegmentationReport("dice", {1: "liver", 2: "tumour"}).attach(engine, "val_dice")
    for _ in range(2):  # a second epoch starts from nothing
        engine.run(batches)
    metrics = engine.state.metrics
    want = [dice(b[0]["pred"][0] == 1, b[0]["label"][0] == 1) for b in batches]
    assert metrics["val_dice_liver"] == pytest.approx(np.mean(want))
    mean = (metrics["val_dice_liver"] + metrics["val_dice_tumour"]) / 2
    assert metrics["val_dice"] == pytest.approx(mean)
    assert metrics["val_dice_tumour_n_infinite"] == 0


def test_what_cannot_be_reported_is_rejected_at_once():
    with pytest.raises(ConfigError, match="no mask metric"):
        SegmentationMetric("auc_roc", [1])
    with pytest.raises(ConfigError, match="neither"):
        SegmentationMetric("dice", [1], reduction="max")
    plain = torch.ones(1, 1, 4, 4)
    with pytest.raises(GeometryError, match="affine"):
        SegmentationMetric("hd95", [1])(plain, plain)
    with pytest.raises(ConfigError, match="before any batch"):
        SegmentationMetric("dice", [1]).aggregate()
