"""A locked test case is trained on or validated on by no reader, in any layout."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.cli.main import main
from medvol.core import InputError
from medvol.datasets import (
    LOCK_FILE,
    class_evaluation_cases,
    class_training_cases,
    evaluation_cases,
    lock_patients,
    locked_cases,
    read_dataset,
    record_training,
    trained_on,
    training_cases,
    write_split,
)
from medvol.datasets.phantoms.writer import write_nifti

ORGAN = {1: "organ"}
CLASSES = {0: "well", 1: "ill"}


def write_case(folder, image, label, number):
    voxels = np.full((2, 2, 2), number, np.float32)
    write_nifti(folder / image, voxels, np.eye(4))
    write_nifti(folder / label, (np.arange(8).reshape(2, 2, 2) <= number % 8).astype(np.uint8),
                np.eye(4))  # fmt: skip


def write_msd(folder, patients):
    rows = []
    for n, patient in enumerate(patients):
        write_case(folder, f"imagesTr/c{n:02d}.nii.gz", f"labelsTr/c{n:02d}.nii.gz", n)
        rows.append({"image": f"./imagesTr/c{n:02d}.nii.gz", "label": f"./labelsTr/c{n:02d}.nii.gz",
                     "patient_id": f"p{patient}"})  # fmt: skip
    index = {"name": "Toy", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ"},
             "numTraining": len(rows), "training": rows, "test": []}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(index))


def write_nnunet(folder, patients):
    for n in range(len(patients)):
        write_case(folder, f"imagesTr/c{n:02d}_0000.nii.gz", f"labelsTr/c{n:02d}.nii.gz", n)
    index = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz",
             "labels": {"background": 0, "organ": 1}, "numTraining": len(patients)}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(index))


def write_bids(folder, patients):
    (folder / "dataset_description.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "Toy"}))
    for n, patient in enumerate(patients):
        place = f"sub-{patient:02d}/ses-{n:02d}/anat/sub-{patient:02d}_ses-{n:02d}"
        write_case(folder, f"{place}_T1w.nii.gz", f"derivatives/x/{place}_dseg.nii.gz", n)


def write_csv(folder, patients):
    lines = ["image,label,patient_id"]
    for n, patient in enumerate(patients):
        write_case(folder, f"i/c{n:02d}.nii.gz", f"l/c{n:02d}.nii.gz", n)
        lines.append(f"i/c{n:02d}.nii.gz,l/c{n:02d}.nii.gz,p{patient}")
    (folder / "datalist.csv").write_text("\n".join(lines) + "\n")


def write_json_list(folder, patients):
    write_csv(folder, patients)
    _, *lines = (folder / "datalist.csv").read_text().splitlines()
    keys = ("image", "label", "patient_id")
    rows = [dict(zip(keys, line.split(","), strict=True)) for line in lines]
    (folder / "datalist.csv").unlink()
    (folder / "datalist.json").write_text(json.dumps({"training": rows}))


def write_class_tree(folder, patients):
    for n in range(len(patients)):
        path = folder / CLASSES[n % 2] / f"c{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{n}".encode())


LAYOUTS = {"msd": write_msd, "nnunet": write_nnunet, "bids": write_bids, "csv": write_csv,
           "json": write_json_list, "class-tree": write_class_tree}  # fmt: skip


def write_set(layout, folder, patients):
    folder.mkdir(parents=True, exist_ok=True)
    LAYOUTS[layout](folder, patients)
    return folder


def lists_of(layout, data, fold, folds, split=None):
    if layout == "class-tree":
        return class_training_cases(data, CLASSES, fold, folds, split=split)
    return training_cases(data, ORGAN, fold, folds, split=split)


def scored_in(layout, data):
    if layout == "class-tree":
        return class_evaluation_cases(data, CLASSES)
    return evaluation_cases(data, ORGAN)


def image_names(rows):
    return {Path(row["image"]).name for row in rows}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=4, deadline=None)
@given(
    patients=st.lists(st.integers(0, 9), min_size=12, max_size=15).filter(
        lambda found: len(set(found)) >= 7
    ),
    share=st.floats(0.15, 0.4),
    folds=st.integers(2, 3),
    seed=st.integers(0, 99),
    is_beside=st.booleans(),
)
def test_no_fold_trains_or_validates_on_a_locked_case_and_no_patient_is_divided(
    layout, patients, share, folds, seed, is_beside
):
    with tempfile.TemporaryDirectory() as scratch:
        data = write_set(layout, Path(scratch) / "set", patients)
        file = data / LOCK_FILE if is_beside else Path(scratch) / "elsewhere.json"
        words = ["data", "split", str(data), "-o", str(file), "--test", str(share),
                 "--folds", str(folds), "--seed", str(seed)]  # fmt: skip
        assert main(words) == 0
        place = json.loads(file.read_text())["place"]  # the file alone is the oracle
        manifest = read_dataset(data)
        locked = {case.image.name for case in manifest.cases if place[case.case] == -1}
        patient = {case.image.name: case.group for case in manifest.cases}
        assert locked
        held = []
        for fold in (-1, *range(folds)):
            lists = lists_of(layout, data, fold, folds, None if is_beside else file)
            train, validate = image_names(lists["train"]), image_names(lists["validate"])
            assert not (train | validate) & locked
            assert train | validate | locked == set(patient)
            groups = [{patient[name] for name in names} for names in (train, validate, locked)]
            assert not groups[2] & (groups[0] | groups[1])
            if fold >= 0:
                assert not groups[0] & groups[1]
                held += validate
        assert sorted(held) == sorted(set(patient) - locked)
        if is_beside:
            assert image_names(scored_in(layout, data)) == locked


@pytest.fixture
def locked_set(tmp_path):
    data = write_set("csv", tmp_path / "set", [n // 2 for n in range(16)])
    assert main(["data", "split", str(data), "--test", "0.25", "--folds", "2"]) == 0
    return data


def test_a_file_that_is_added_removed_or_changed_is_named_with_the_way_out(locked_set, capsys):
    table = locked_set / "datalist.csv"
    whole = table.read_text()
    write_case(locked_set, "i/new.nii.gz", "l/new.nii.gz", 40)
    table.write_text(whole + "i/new.nii.gz,l/new.nii.gz,p3\n")
    with pytest.raises(InputError, match=r"1 cases were added since .*new.*medvol data split"):
        training_cases(locked_set, ORGAN)
    table.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"1 cases were removed since .*c15"):
        training_cases(locked_set, ORGAN)
    table.write_text(whole)
    for part in ("i", "l"):
        kept = (locked_set / part / "c03.nii.gz").read_bytes()
        shutil.copy(locked_set / part / "c04.nii.gz", locked_set / part / "c03.nii.gz")
        with pytest.raises(InputError, match=r"1 cases were changed since .*c03"):
            evaluation_cases(locked_set, ORGAN)
        (locked_set / part / "c03.nii.gz").write_bytes(kept)
    training_cases(locked_set, ORGAN)
    table.write_text(whole + "i/new.nii.gz,l/new.nii.gz,p3\n")  # the way out works
    place = json.loads((locked_set / LOCK_FILE).read_text())["place"]
    assert main(["data", "split", str(locked_set), "-o", str(locked_set / LOCK_FILE)]) == 0
    after = json.loads((locked_set / LOCK_FILE).read_text())["place"]
    assert after == {**place, "new": place["c06"]}  # of patient 3 too
    training_cases(locked_set, ORGAN)


def test_an_edited_split_file_is_rejected(locked_set):
    file = locked_set / LOCK_FILE
    file.write_text(file.read_text().replace("-1", "0"))
    with pytest.raises(InputError, match="was edited"):
        training_cases(locked_set, ORGAN)


@pytest.mark.parametrize("is_linked", [False, True], ids=["named", "linked"])
def test_another_index_of_the_same_images_frees_no_locked_case(locked_set, tmp_path, is_linked):
    locked = locked_cases(locked_set).names
    lines = ["image,label,patient_id"]
    for n in range(16):
        image = locked_set / f"i/c{n:02d}.nii.gz"
        if is_linked:
            (tmp_path / f"renamed{n}.nii.gz").symlink_to(image)
            image = tmp_path / f"renamed{n}.nii.gz"
        lines.append(f"{image},{locked_set}/l/c{n:02d}.nii.gz,q{n // 2}")
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    lists = training_cases(tmp_path / "mine.csv", ORGAN, folds=2)
    used = {Path(row["label"]).name for part in lists.values() for row in part}
    assert used == {f"c{n:02d}.nii.gz" for n in range(16)} - {f"{name}.nii.gz" for name in locked}


def test_a_renamed_test_case_keeps_its_place_when_the_split_is_extended(locked_set):
    name = locked_cases(locked_set).names[0]
    table = locked_set / "datalist.csv"
    (locked_set / f"i/{name}.nii.gz").rename(locked_set / "i/other.nii.gz")
    lines = table.read_text().replace(f"i/{name}.nii.gz", "i/other.nii.gz").splitlines()
    lines = [line.rsplit(",", 1)[0] + ",alone" if "other" in line else line for line in lines]
    table.write_text("\n".join(lines) + "\n")
    assert main(["data", "split", str(locked_set)]) == 0
    assert "other" in locked_cases(locked_set).names


def test_a_list_of_cases_given_to_a_run_is_checked_before_its_first_step(locked_set, tmp_path):
    lists = training_cases(locked_set, ORGAN, folds=2)
    record_training(lists["train"], lists["validate"], tmp_path / "run")
    locked = evaluation_cases(locked_set, ORGAN)[:1]
    for train, validate in ((locked, []), ([], locked)):
        with pytest.raises(InputError, match=f"is a test case locked by .*{LOCK_FILE}"):
            record_training(train, validate, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_tell_what_they_were_trained_on_and_starting_weights_are_remembered(
    tmp_path, caplog
):
    data = write_set("csv", tmp_path / "set", range(12))
    first, second = (training_cases(data, ORGAN, fold, 2) for fold in (0, 1))
    record_training(first["train"], first["validate"], tmp_path / "a")
    text = (tmp_path / "a" / "trained_on.json").read_text()
    assert ".nii" not in text
    assert not re.search(r"\bc\d\d\b|p\d", text)
    seen = trained_on(tmp_path / "a" / "model.pt")
    assert seen is not None
    assert sorted(seen.trained(first["train"])) == sorted(row["case"] for row in first["train"])
    assert seen.trained(first["validate"]) == []
    assert not caplog.records
    record_training(second["train"], second["validate"], tmp_path / "b", tmp_path / "a/model.pt")
    assert "6 of 6 validation cases were trained on by the starting weights" in caplog.text
    both = trained_on(tmp_path / "b" / "model.pt")
    assert both is not None
    assert len(both.trained(first["train"] + second["train"])) == 12
    caplog.clear()
    evaluation_cases(data, ORGAN, fold=0, folds=2, checkpoint=tmp_path / "a/model.pt")
    assert not caplog.records
    evaluation_cases(data, ORGAN, fold=1, folds=2, checkpoint=tmp_path / "a/model.pt")
    assert "6 of 6 cases were trained on by" in caplog.text


def test_test_cases_without_truth_take_no_share_of_the_locked_ones(tmp_path):
    data = write_set("msd", tmp_path / "set", range(10))
    index = json.loads((data / "dataset.json").read_text())
    index["test"] = [f"./imagesTs/t{n}.nii.gz" for n in range(10)]
    for n in range(10):
        write_case(data, f"imagesTs/t{n}.nii.gz", "x.nii.gz", 50 + n)
    (data / "dataset.json").write_text(json.dumps(index))
    split = lock_patients(read_dataset(data), folds=2, test_fraction=0.2)
    assert len([name for name in split.test if name.startswith("c")]) == 2
    write_split(split, data / LOCK_FILE)
    assert len(evaluation_cases(data, ORGAN)) == 2
