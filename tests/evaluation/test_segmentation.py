import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from medvol.core import GridMismatchError, InputError, LabelError, MissingInputError
from medvol.evaluation import (
    MaskFiles,
    MaskOptions,
    evaluate_segmentation,
    find_masks,
    measure_masks,
    pair_masks,
    rerun,
)
from medvol.metrics import MetricPlan, dice, hd95

FAST = {"resamples": 300, "labels": {1: "liver", 2: "tumour"}}


def rows_of(path):
    with path.open() as handle:
        return list(csv.DictReader(handle))


def evaluate(study, **options):
    options = {"pred": study / "pred", "ref": study / "ref", "output": study / "out"} | options
    return evaluate_segmentation(MaskOptions(**(FAST | options)))


def test_five_misses_in_ten_show_in_every_aggregate(study):
    found = evaluate(study)
    table = {(row.label, row.metric): row for row in found.table}
    assert {label for label, _ in table} == {"(all labels)", "liver", "tumour"}
    for (label, metric), row in table.items():
        assert row.n == (20 if label == "(all labels)" else 10)
        assert row.n_false_negative == (0 if label == "liver" else 5)
        if label == "tumour" and row.unit == "mm":
            assert (row.n_infinite, row.mean, row.worst) == (5, math.inf, math.inf)
        if (label, metric) == ("tumour", "dice"):
            assert row.mean <= 0.5
    assert table["liver", "hd95"].n_infinite == 0


def test_scores_are_those_of_the_functions_on_the_arrays(study):
    evaluate(study)
    ref = np.zeros((16, 16, 10), bool)
    ref[2:9, 2:9, 2:7] = True
    pred = np.roll(ref, 1, axis=0)
    got = {(r["case"], r["label"], r["metric"]): r for r in rows_of(study / "out" / "scores.csv")}
    assert len(got) == 10 * 2 * 4
    assert float(got["c1", "liver", "dice"]["value"]) == dice(pred, ref)
    assert float(got["c1", "liver", "hd95"]["value"]) == hd95(pred, ref, (1, 1, 2))
    assert got["c0", "tumour", "dice"]["why_undefined"].startswith("prediction is empty")


def test_subgroups_carry_their_n_and_small_ones_are_marked(study):
    found = evaluate(study, data=study / "data.csv", by=("site", "sex", "age"))
    groups = {row.group: row for row in found.table if row.label == "tumour"}
    assert set(groups) >= {"all", "site=A", "site=B", "sex=F", "sex=M", "age=18 to <40"}
    assert groups["sex=F"].n_false_negative == 5
    assert groups["sex=M"].n_false_negative == 0
    assert (groups["all"].n, groups["all"].n_patients) == (10, 5)
    assert all(row.is_small for row in found.table)


def test_misses_show_beside_metrics_that_need_no_empty_rule(study):
    names = ("absolute_volume_difference", "relative_volume_difference", "specificity_voxel")
    found = evaluate(study, metrics=names)
    rows = [row for row in found.table if row.label != "(all labels)"]
    empty = {(row.label, row.metric): row.n_false_negative for row in rows}
    assert empty == {(n, m): 5 * (n == "tumour") for n in ("liver", "tumour") for m in names}


def test_areas_of_images_have_one_unit_where_the_first_lacks_a_label(tmp_path):
    for side in ("pred", "ref"):
        (tmp_path / side).mkdir()
        for k in range(3):
            mask = np.zeros((12, 12), np.uint8)
            mask[1:4, 1:4], mask[6:9, 6:9] = 1, 2 * (k > 0)
            Image.fromarray(mask).save(tmp_path / side / f"c{k}.png")
    evaluate(tmp_path, labels=None)
    assert {row["unit"] for row in rows_of(tmp_path / "out" / "volumes.csv")} == {"mm2"}
    assert {row["unit"] for row in rows_of(tmp_path / "out" / "agreement.csv")} == {"mm2"}


def test_no_output_names_a_patient(study):
    evaluate(study, data=study / "data.csv", by=("sex",))
    texts = [p.read_text() for p in (study / "out").iterdir()]
    assert len(texts) == 8
    assert not any("secret" in text for text in texts)


def test_worst_cases_come_first_and_misses_lead(study):
    found = evaluate(study, worst=3)
    tumour = [row for row in found.worst if (row.label, row.metric) == ("tumour", "hd95")]
    assert [row.case for row in tumour] == ["c0", "c1", "c2"]
    assert all(row.value == math.inf for row in tumour)


def test_an_external_cohort_stands_beside_the_internal(study, save_mask):
    other = np.zeros((16, 16, 10))
    other[3:9, 2:9, 2:7], other[11:14, 11:14, 7:9] = 1, 2
    save_mask(study / "far" / "c0.nii.gz", other)
    found = evaluate(study, external_pred=study / "far", external_ref=study / "far")
    assert {row.cohort for row in found.table} == {"internal", "external"}
    assert (study / "out" / "scores_external.csv").is_file()


def test_a_locked_run_repeats_exactly_and_notices_changed_inputs(study, save_mask):
    evaluate(study, data=study / "data.csv", by=("sex",), taus_mm=(1.0, 3.0))
    run = study / "out" / "run.json"
    assert rerun(run) == []
    recorded = json.loads(run.read_text())
    assert len(recorded["inputs"]) == 21
    recorded["outputs"]["summary.csv"] = "0" * 64
    run.write_text(json.dumps(recorded))
    assert rerun(run) == ["summary.csv"]
    save_mask(study / "pred" / "c3.nii.gz", np.zeros((16, 16, 10)))
    with pytest.raises(InputError, match=r"c3\.nii\.gz has changed"):
        rerun(run)


def test_workers_give_the_same_rows(study):
    files = pair_masks(find_masks(study / "pred"), find_masks(study / "ref"), "pred")[:3]
    plan = MetricPlan(taus_mm=(1.0,))
    seen = []
    alone = measure_masks(files, plan, progress=lambda *counts: seen.append(counts)).scores
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert measure_masks(files, plan, jobs=2).scores == alone


def test_labels_nobody_listed_are_found_in_any_case(study, save_mask):
    odd = np.zeros((4, 4, 4))
    odd[1, 1, 1] = 7
    files = [
        MaskFiles("a", *[save_mask(study / n / "a.nii", odd) for n in ("p", "r")]),
        MaskFiles("b", *[save_mask(study / n / "b.nii", odd * 0) for n in ("p", "r")]),
    ]
    found = measure_masks(files, MetricPlan(metrics=("dice",)))
    rows = {(row.case, row.label): row for row in found.scores}
    assert rows["a", "7"].value == 1
    assert math.isnan(rows["b", "7"].value)
    assert rows["b", "7"].why_undefined == "prediction and reference are empty"


def test_patients_of_the_training_data_are_rejected_without_naming_them(study):
    with pytest.raises(InputError, match="10 test cases belong to patients") as caught:
        evaluate(study, data=study / "data.csv", train=study / "data.csv")
    assert "secret" not in str(caught.value)


def test_cases_without_patients_are_not_taken_to_be_apart(study, write_csv):
    rows = [(f"t{k}", f"pred/c{k}.nii.gz", f"ref/c{k}.nii.gz", "p" * (k > 0)) for k in range(3)]
    header = ("case", "image", "label", "patient_id")
    train = write_csv(study / "train.csv", header, rows)
    with pytest.raises(InputError, match="1 training cases name no patient, for example t0"):
        evaluate(study, data=study / "data.csv", train=train)


def test_a_reference_without_prediction_is_rejected(study):
    (study / "pred" / "c4.nii.gz").unlink()
    with pytest.raises(MissingInputError, match=r"1 of 10 cases have no prediction.*'c4'"):
        evaluate(study)


def test_a_prediction_on_another_grid_is_rejected(study, save_mask):
    save_mask(study / "pred" / "c2.nii.gz", np.zeros((16, 16, 10)), np.diag([1.0, 1.0, 2.5, 1.0]))
    with pytest.raises(GridMismatchError, match="c2"):
        evaluate(study)


def test_a_value_outside_the_class_list_is_rejected(study):
    with pytest.raises(LabelError, match="label value 2"):
        evaluate(study, labels={1: "liver"})


def test_a_flipped_file_of_the_same_grid_scores_the_same(study, save_mask):
    ref = np.zeros((16, 16, 10))
    ref[2:9, 2:9, 2:7] = 1
    flipped = np.diag([-1.0, 1.0, 2.0, 1.0])
    flipped[0, 3] = 15
    files = MaskFiles(
        "c", save_mask(study / "x" / "c.nii", ref[::-1], flipped),
        save_mask(study / "y" / "c.nii", ref),
    )  # fmt: skip
    assert measure_masks([files], MetricPlan(metrics=("dice",))).scores[0].value == 1


def test_case_names_come_from_files_or_their_folders(tmp_path):
    for name in ("a/seg.nii.gz", "a/seg.dcm", "b_seg.nii.gz", "c.mha", ".hidden.nii", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = find_masks(tmp_path)
    assert {k: v.name for k, v in found.items()} == {
        "a": "seg.nii.gz", "b": "b_seg.nii.gz", "c": "c.mha",
    }  # fmt: skip
    (tmp_path / "b.nii.gz").touch()
    with pytest.raises(InputError, match="another label map"):
        find_masks(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="no label map"):
        find_masks(tmp_path / "empty")


def test_manifests_may_name_both_sides(study, write_csv):
    rows = [(f"c{k}", f"image/c{k}.nii.gz", f"pred/c{k}.nii.gz") for k in range(10)]
    pred = write_csv(study / "pred.csv", ("case", "image", "label"), rows)
    by_file = evaluate(study, pred=pred, ref=study / "data.csv")
    assert by_file.table == evaluate(study, data=study / "data.csv").table
    assert rerun(study / "out" / "run.json") == []


def test_a_dicom_seg_scores_like_the_nifti_it_was_made_from(shared_data, tmp_path, save_mask):
    pytest.importorskip("highdicom")
    from medvol.io import Algorithm, read_scan, write_dicom_seg

    series = shared_data / "dicom" / "mr_hippocrop_study1"
    scan = read_scan(series)
    labels = np.zeros(scan.array.shape[1:], np.uint8)
    labels[3:9, 4:9, 1:4] = 1
    (tmp_path / "p" / "a").mkdir(parents=True)
    write_dicom_seg(
        tmp_path / "p" / "a" / "seg.dcm", labels, scan.affine, source=series,
        labels={1: "hippocampus"}, algorithm=Algorithm("test", "1"),
    )  # fmt: skip
    save_mask(tmp_path / "r" / "a.nii.gz", labels, scan.affine)
    files = pair_masks(find_masks(tmp_path / "p"), find_masks(tmp_path / "r"), "p")
    rows = measure_masks(files, MetricPlan(metrics=("dice", "hd95"))).scores
    assert [row.value for row in rows] == [1.0, 0.0]


@pytest.mark.parametrize("folder", ["slab", "flat"])
def test_a_single_slice_is_scored_as_an_image(shared_data, tmp_path, folder):
    source = shared_data.parent / "cases" / "verbs" / "single_slice_surface"
    want = json.loads((source / "expected.json").read_text())["expected"]
    paths = [source / f"{folder}_{side}" for side in ("pred", "ref")]
    evaluate_segmentation(MaskOptions(*paths, tmp_path, taus_mm=(0.3,), resamples=20))
    found = {row["metric"]: float(row["value"]) for row in rows_of(tmp_path / "scores.csv")}
    assert found["hd95"] == want["hd95_mm"]
    assert found["assd"] == pytest.approx(want["assd_mm"])
    assert found["nsd_voxel@0.3mm"] == pytest.approx(want["nsd_voxel@0.3"])
