import numpy as np
import pytest

from medvol.core import ConfigError, InputError, LabelError, MissingInputError
from medvol.datasets import (
    VolumeTarget,
    class_evaluation_cases,
    class_inference_cases,
    class_training_cases,
)
from medvol.io import write_nifti

LABELS = {"0": "clear", "1": "nodule"}
SIZES = {0: "normal_volume", 1: "low_volume"}


@pytest.fixture
def pictures(tmp_path):
    """Twelve images of eight patients in three classes; two patients have several images."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = ["file,label,patient_id"]
    for i, name in enumerate(["clear", "nodule"] * 5 + ["other", "other"]):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{name},p{min(i, 7)}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def masks(tmp_path):
    """Ten masks of 1 to 10 voxels of 2 mm3."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for i in range(10):
        mask = np.zeros((4, 4, 4), np.uint8)
        mask.flat[: i + 1] = 1
        for ending in ("", "_label"):
            write_nifti(folder / f"case{i}{ending}.nii.gz", mask, np.diag([2.0, 1, 1, 1]))
    return folder


def test_classes_are_numbered_by_the_bundle_and_others_left_out(pictures, caplog):
    assert len(class_evaluation_cases(pictures, LABELS)) == 10
    assert "2 cases without a class of clear, nodule are left out" in caplog.text
    cases = class_training_cases(pictures, LABELS, folds=2)
    listed = cases["train"] + cases["validate"]
    assert len(listed) == 10
    assert {case["label"] for case in listed} == {0, 1}
    for case in listed:
        assert case["label"] == int(case["case"]) % 2
        assert case["source"] == case["image"]
    swapped = class_training_cases(pictures, {1: "clear", 0: "nodule"}, folds=2)
    for case in swapped["train"] + swapped["validate"]:
        assert case["label"] == 1 - int(case["case"]) % 2


def test_counts_and_classes_are_those_of_the_training_cases(pictures):
    cases = class_training_cases(pictures, LABELS, folds=2)
    assert cases["classes"] == [case["label"] for case in cases["train"]]
    assert cases["counts"] == [cases["classes"].count(0), cases["classes"].count(1)]


def test_a_patients_images_stay_together_and_folds_cover_all(pictures):
    held = [class_evaluation_cases(pictures, LABELS, fold, folds=3) for fold in range(3)]
    names = [sorted(case["case"] for case in part) for part in held]
    assert sorted(name for part in names for name in part) == [str(i) for i in range(10)]
    assert sum("7" in part or "8" in part or "9" in part for part in names) == 1


def test_all_cases_train_where_no_fold_is_held_out(pictures):
    assert len(class_training_cases(pictures, LABELS, fold=-1, folds=2)["train"]) == 10


def test_cut_off_comes_from_the_training_cases_alone(masks):
    target = VolumeTarget(quantile=0.5)
    for fold in range(2):
        cases = class_training_cases(masks, SIZES, fold, folds=2, target=target)
        volume = {f"case{i}": 2.0 * (i + 1) for i in range(10)}
        cutoff = np.quantile([volume[case["case"]] for case in cases["train"]], 0.5)
        for case in cases["train"] + cases["validate"]:
            assert case["label"] == int(volume[case["case"]] <= cutoff)
        assert (
            class_evaluation_cases(masks, SIZES, fold, folds=2, target=target) == cases["validate"]
        )


def test_fixed_cut_off_is_in_millilitres(masks):
    cases = class_evaluation_cases(masks, SIZES, target=VolumeTarget(cutoff_ml=0.0061))
    assert {case["case"] for case in cases if case["label"]} == {"case0", "case1", "case2"}


def test_cut_off_of_the_test_cases_themselves_is_refused(masks):
    with pytest.raises(ConfigError, match="fixed cutoff_ml"):
        class_evaluation_cases(masks, SIZES, target=VolumeTarget())


def test_what_cannot_be_trained_is_refused(pictures, masks):
    with pytest.raises(MissingInputError, match="no case of the classes x, y"):
        class_training_cases(pictures, {0: "x", 1: "y"})
    with pytest.raises(MissingInputError, match="no training case is of class 'y'"):
        class_training_cases(pictures, {0: "clear", 1: "y"}, folds=2)
    with pytest.raises(LabelError, match="classes 0 and 1"):
        class_training_cases(masks, {1: "a", 2: "b"}, folds=2, target=VolumeTarget())
    with pytest.raises(ConfigError, match=r"quantile 1\.5"):
        VolumeTarget(quantile=1.5)


def test_inference_takes_every_image_of_a_folder(pictures):
    cases = class_inference_cases(pictures)
    assert len(cases) == 12
    assert all(case["image"] == case["source"] for case in cases)


def test_a_split_that_tears_a_patient_apart_trains_only_when_forced(pictures, caplog):
    table = pictures / "labels.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    torn = [[*row, "fold" if i == 0 else str(i // 2 % 2)] for i, row in enumerate(rows)]
    table.write_text("\n".join(",".join(row) for row in torn) + "\n")
    with pytest.raises(InputError, match="force it with allow_shared_patients"):
        class_training_cases(pictures, LABELS, folds=2)
    found = class_training_cases(pictures, LABELS, folds=2, allow_shared_patients=True)
    assert found["train"]
    assert found["validate"]
    assert "not an estimate" in caplog.text


def test_folds_of_some_cases_only_are_not_dealt_anew(pictures):
    lines = (pictures / "labels.csv").read_text().splitlines()
    rows = [f"{line},{'' if n == 3 else n % 2}" for n, line in enumerate(lines[1:])]
    (pictures / "labels.csv").write_text("\n".join([f"{lines[0]},fold", *rows]))
    with pytest.raises(InputError, match="1 of 10 cases have no fold"):
        class_training_cases(pictures, LABELS, folds=2, allow_shared_patients=True)
