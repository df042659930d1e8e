"""What evaluation leaves for reports: volumes, agreement, curves, cases."""

import csv
import json

import numpy as np
import pytest

from medvol.core import InputError, MissingInputError
from medvol.evaluation import (
    MaskOptions,
    ScoreOptions,
    evaluate_scores,
    evaluate_segmentation,
    read_results,
)
from medvol.metrics import auc_roc


@pytest.fixture
def masks(study):
    options = MaskOptions(study / "pred", study / "data.csv", study / "out", by=("site",),
                          labels={1: "liver", 2: "tumour"}, resamples=100)  # fmt: skip
    evaluate_segmentation(options)
    return study / "out"


@pytest.fixture
def scores(tmp_path, write_csv):
    rng = np.random.default_rng(0)
    for name, start in (("val", 0), ("test", 200)):
        y = np.arange(80) % 2
        prob = np.clip(rng.normal(0.3 + 0.4 * y, 0.2), 0.01, 0.99)
        rows = [(f"c{start + k}", y[k], prob[k], f"secret{(start + k) // 2}") for k in range(80)]
        write_csv(tmp_path / f"{name}.csv", ("case", "truth", "prob", "patient_id"), rows)
    evaluate_scores(ScoreOptions(tmp_path / "test.csv", tmp_path / "out", resamples=100,
                                 validation=tmp_path / "val.csv"))  # fmt: skip
    return tmp_path / "out"


def test_volumes_count_voxels_and_empty_masks_have_none(masks):
    volumes = read_results(masks).volumes["internal"]
    assert len(volumes) == 20
    livers = [v for v in volumes if v.label == "liver"]
    # 7 x 7 x 5 voxels of 1 x 1 x 2 mm
    assert {v.ref for v in livers} == {0.49}
    empty = [v for v in volumes if v.label == "tumour" and v.pred == 0]
    assert {v.case for v in empty} == {f"c{k}" for k in range(5)}
    assert all(v.difference == -v.ref and v.mean == v.ref / 2 for v in empty)


def test_agreement_holds_every_case_by_patient(masks):
    rows = {row.label: row for row in read_results(masks).agreement}
    assert {(r.n, r.n_patients) for r in rows.values()} == {(10, 5)}
    tumour, volumes = rows["tumour"], read_results(masks).volumes["internal"]
    differences = [v.difference for v in volumes if v.label == "tumour"]
    assert tumour.bias == pytest.approx(np.mean(differences))
    assert tumour.low < tumour.bias < 0 < tumour.high
    assert tumour.is_small


def test_cases_name_their_subgroup_and_never_their_patient(masks):
    cases = read_results(masks).cases["internal"]
    assert [row["group_site"] for row in cases] == ["A", "B"] * 5
    assert list(cases[0]) == ["case", "cohort", "patient_group", "split", "group_site"]


def test_unknown_patients_are_counted_and_said(study):
    def unknown(data):
        options = MaskOptions(study / "pred", study / "ref", study / "out2", data=data,
                              labels={1: "liver", 2: "tumour"}, resamples=100)  # fmt: skip
        return evaluate_segmentation(options).n_unknown_patients

    assert unknown(study / "data.csv") == 0
    assert unknown(None) == 10
    assert {r["patient_group"] for r in read_results(study / "out2").cases["internal"]} == {""}


def test_curves_end_where_the_table_does(scores):
    results = read_results(scores)
    (cohort,) = results.curves
    (one,) = cohort["curves"]
    area = np.trapezoid(one["roc"]["tpr"], one["roc"]["fpr"])
    row = next(r for r in results.table if r.metric == "auc_roc")
    assert area == pytest.approx(row.value, abs=1e-4)
    assert (cohort["n"], cohort["n_patients"], one["n_pos"]) == (80, 40, 40)
    assert sum(b["n"] for b in one["calibration"]["bins"]) == 80
    assert sum(one["scores"]["positive"]) == 40
    assert one["decision"]["at"][0] == 0.01
    rules = [m["rule"] for m in cohort["confusion"]]
    assert rules == ["sensitivity>=0.95", "specificity>=0.95", "youden"]
    for matrix in cohort["confusion"]:
        assert np.sum(matrix["counts"]) == 80
        sensitivity = next(r for r in results.table if r.metric == "sensitivity"
                           and r.operating_point == matrix["rule"])  # fmt: skip
        assert matrix["counts"][1][1] == sensitivity.k


def test_probabilities_per_case_repeat_the_auc(scores):
    with (scores / "cases.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    y = [row["truth"] == "1" for row in rows]
    row = next(r for r in read_results(scores).table if r.metric == "auc_roc")
    assert auc_roc(y, [float(r["prob_1"]) for r in rows]) == row.value
    assert "secret" not in (scores / "cases.csv").read_text()


def test_a_class_without_cases_has_no_curve(tmp_path, write_csv):
    path = write_csv(tmp_path / "a.csv", ("case", "truth", "prob"), [("a", 1, 0.5), ("b", 1, 0.7)])
    evaluate_scores(ScoreOptions(path, tmp_path / "out", resamples=50))
    assert json.loads((tmp_path / "out" / "curves.json").read_text())["cohorts"][0]["curves"] == []


def test_what_is_no_evaluation_is_rejected_by_name(tmp_path, masks):
    with pytest.raises(MissingInputError, match="holds no evaluation"):
        read_results(tmp_path)
    (masks / "volumes.csv").write_text("case,label\n")
    with pytest.raises(InputError, match="has no column 'pred'"):
        read_results(masks)
