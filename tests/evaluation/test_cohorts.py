"""What data sets and predictions state reaches an evaluation, whichever way they lie on disk."""

import csv
import json
import shutil

import numpy as np
import pytest

from medvol.cli.main import main
from medvol.core import InputError, LabelError
from medvol.datasets import read_dataset, write_manifest
from medvol.evaluation import MaskOptions, evaluate_segmentation

NAMES = [f"s{k:02d}" for k in range(6)]


def masks():
    """Six references, each unlike the others, and predictions moved by a voxel."""
    for k, name in enumerate(NAMES):
        ref = np.zeros((14, 13, 9), np.uint8)
        ref[2 : 7 + k, 3:8, 2:6], ref[4:6, 4:7, 3:5] = 1, 2
        yield name, ref, np.roll(ref, k % 2, axis=1)


def msd(root, save):
    rows = []
    for name, ref, _ in masks():
        save(root / "imagesTr" / f"{name}.nii.gz", ref * 50)
        save(root / "labelsTr" / f"{name}.nii.gz", ref)
        rows.append({key: f"./{key}sTr/{name}.nii.gz" for key in ("image", "label")})
    content = {"name": "m", "modality": {"0": "CT"}, "numTraining": 6, "training": rows,
               "labels": {"0": "background", "1": "liver", "2": "tumour"}}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def nnunet(root, save):
    for name, ref, _ in masks():
        save(root / "imagesTr" / f"{name}_0000.nii.gz", ref * 50)
        save(root / "labelsTr" / f"{name}.nii.gz", ref)
    content = {"channel_names": {"0": "CT"}, "numTraining": 6, "file_ending": ".nii.gz",
               "labels": {"background": 0, "liver": 1, "tumour": 2}}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def bids(root, save):
    for name, ref, _ in masks():
        save(root / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz", ref * 50)
        place = root / "derivatives" / "manual" / f"sub-{name}" / "anat"
        save(place / f"sub-{name}_dseg.nii.gz", ref)
    (root / "dataset_description.json").write_text('{"Name": "b", "BIDSVersion": "1.8.0"}')
    (root / "dseg.tsv").write_text("index\tname\n1\tliver\n2\ttumour\n")
    return root


def folder(root, save):
    for name, ref, _ in masks():
        save(root / f"{name}.nii.gz", ref * 50)
        save(root / f"{name}_label.nii.gz", ref)
    return root


def datalist(root, save):
    lines = ["case,image,label"]
    for name, ref, _ in masks():
        save(root / "i" / f"{name}.nii.gz", ref * 50)
        save(root / "l" / f"{name}.nii.gz", ref)
        lines.append(f"{name},i/{name}.nii.gz,l/{name}.nii.gz")
    (root / "datalist.csv").write_text("\n".join(lines) + "\n")
    return root


def manifest(root, save):
    write_manifest(read_dataset(msd(root / "data", save)), root / "manifest.json")
    return root


LAYOUTS = [msd, nnunet, bids, folder, datalist, manifest]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_of_patients_changes_no_score_and_keeps_patients_together(
    layout, tmp_path, save_mask
):
    root = layout(tmp_path / "data", save_mask)
    names = [case.case for case in read_dataset(root).cases]
    assert len(names) == 6
    for name, (_, _, pred) in zip(names, masks(), strict=True):
        save_mask(tmp_path / "pred" / f"{name}.nii.gz", pred)
    images = {case.case: case.image for case in read_dataset(root).cases}
    rows = [f"{name},{images[name]},secret{k // 2},{'AB'[k % 2]}" for k, name in enumerate(names)]
    meta = tmp_path / "meta.csv"
    meta.write_text("\n".join(["case,image,patient_id,site", *rows]) + "\n")

    def scored(out, **more):
        options = MaskOptions(tmp_path / "pred", root, tmp_path / out, resamples=50, **more)
        return evaluate_segmentation(options)

    plain, told = scored("plain"), scored("told", data=meta, by=("site",))
    assert (tmp_path / "told" / "scores.csv").read_bytes() == (
        tmp_path / "plain" / "scores.csv"
    ).read_bytes()
    # Only BIDS names subjects by itself, one a case here; the table knows better.
    assert (plain.n_unknown_patients, told.n_unknown_patients) == (0 if layout is bids else 6, 0)
    cases = read_csv(tmp_path / "told" / "cases.csv")
    assert [row["patient_group"] for row in cases] == ["1", "1", "2", "2", "3", "3"]
    assert "secret" not in (tmp_path / "told" / "cases.csv").read_text()
    labels = {row["label"] for row in read_csv(tmp_path / "told" / "scores.csv")}
    # A plain folder and a CSV state no label names.
    assert labels == ({"1", "2"} if layout in (folder, datalist) else {"liver", "tumour"})


def read_csv(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("layout", [msd, nnunet])
def test_the_label_folder_of_a_data_set_knows_what_the_data_set_knows(layout, tmp_path, save_mask):
    root = layout(tmp_path / "data", save_mask)
    for name, _, pred in masks():
        save_mask(tmp_path / "pred" / f"{name}.nii.gz", pred)
    for out, ref in (("whole", root), ("labels", root / "labelsTr")):
        evaluate_segmentation(MaskOptions(tmp_path / "pred", ref, tmp_path / out, resamples=50))
    for name in ("scores.csv", "cases.csv", "volumes.csv"):
        one, other = (tmp_path / out / name for out in ("whole", "labels"))
        assert one.read_bytes() == other.read_bytes()


def test_a_table_that_knows_none_of_the_cases_is_rejected(tmp_path, save_mask):
    root = msd(tmp_path / "data", save_mask)
    other = save_mask(tmp_path / "x.nii.gz", np.zeros((4, 4, 4)))
    (tmp_path / "meta.csv").write_text(f"case,image,patient_id\nx,{other},p\n")
    with pytest.raises(InputError, match="knows none of the 6 cases"):
        evaluate_segmentation(MaskOptions(root / "labelsTr", root, tmp_path / "out",
                                          data=tmp_path / "meta.csv"))  # fmt: skip


@pytest.fixture
def verbs(shared_data):
    """The folder of small failing cases beside the shared data."""
    return shared_data.parent / "cases" / "verbs"


@pytest.mark.parametrize("place", ["", "labelsTr"])
def test_ignored_voxels_and_regions_are_those_of_training(verbs, tmp_path, capsys, place):
    source = verbs / "evaluate_ignore_and_regions"
    dice = {}
    for name in ("Dataset101_ignore", "Dataset102_region"):
        code = main(["evaluate", "masks", "--pred", str(source / f"{name}_pred"), "--ref",
                     str(source / name / place), "-o", str(tmp_path / name), "--metrics", "dice",
                     "--resamples", "50"])  # fmt: skip
        assert code == 0, capsys.readouterr().err
        rows = read_csv(tmp_path / name / "scores.csv")
        dice[name] = {(row["label"], float(row["value"])) for row in rows}
    assert dice["Dataset101_ignore"] == {("tumour", 1.0)}
    assert dice["Dataset102_region"] == {("whole", 1.0), ("core", 0.0)}


def test_names_come_from_the_predictions_where_the_references_have_none(tmp_path, save_mask):
    for k, (name, ref, pred) in enumerate(masks()):
        place = tmp_path / "pred" / name
        save_mask(place / "seg.nii.gz", pred)
        save_mask(tmp_path / "ref" / f"{name}.nii.gz", ref + 7 * (ref == 2) * (k == 0))
        rows = [{"label": 1, "name": "liver"}, {"label": 2, "name": "tumour"}]
        (place / "prediction.json").write_text(json.dumps({"structures": rows}))
    options = MaskOptions(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", resamples=50)
    evaluate_segmentation(options)
    labels = {row["label"] for row in read_csv(tmp_path / "out" / "scores.csv")}
    assert labels == {"liver", "tumour", "9"}
    assert len(read_csv(tmp_path / "out" / "scores.csv")) == 6 * 3 * 4


def test_a_label_that_predictions_and_references_name_differently_is_rejected(tmp_path, save_mask):
    root = msd(tmp_path / "data", save_mask)
    for name, _, pred in masks():
        save_mask(tmp_path / "pred" / name / "seg.nii.gz", pred)
        rows = [{"label": 1, "name": "Liver"}, {"label": 2, "name": "spleen"}]
        text = json.dumps({"structures": rows})
        (tmp_path / "pred" / name / "prediction.json").write_text(text)
    options = {"pred": tmp_path / "pred", "ref": root, "output": tmp_path / "out", "resamples": 50}
    with pytest.raises(LabelError, match="label 2 is 'spleen' in the predictions"):
        evaluate_segmentation(MaskOptions(**options))
    assert not (tmp_path / "out").exists()
    evaluate_segmentation(MaskOptions(**options, labels={1: "liver", 2: "mass"}))
    assert "mass" in (tmp_path / "out" / "scores.csv").read_text()


@pytest.mark.parametrize("as_data_set", [True, False])
def test_an_external_cohort_that_repeats_an_internal_case_is_rejected(
    as_data_set, tmp_path, save_mask
):
    inside, outside = (msd(tmp_path / name, save_mask) for name in ("a", "b"))
    for name, ref, _ in masks():
        moved = np.roll(ref, 2, axis=0)
        save_mask(outside / "labelsTr" / f"{name}.nii.gz", moved)
        save_mask(outside / "imagesTr" / f"{name}.nii.gz", moved * 50)
    refs = (inside, outside) if as_data_set else (inside / "labelsTr", outside / "labelsTr")
    if not as_data_set:
        for root in (inside, outside):
            (root / "dataset.json").unlink()

    def both():
        return evaluate_segmentation(
            MaskOptions(inside / "labelsTr", refs[0], tmp_path / "out", resamples=50,
                        external_pred=outside / "labelsTr", external_ref=refs[1])
        )  # fmt: skip

    assert {row.cohort for row in both().table} == {"internal", "external"}
    shutil.rmtree(tmp_path / "out")
    kind = "imagesTr" if as_data_set else "labelsTr"
    shutil.copy(inside / kind / "s03.nii.gz", outside / kind / "s05.nii.gz")
    with pytest.raises(InputError, match=r"external case 's05' .* internal case 's03'"):
        both()
    assert not (tmp_path / "out").exists()


def test_empty_references_are_alike_without_being_one_case(tmp_path, save_mask):
    for side in ("a", "b"):
        for k in range(2):
            mask = np.zeros((8, 8, 8))
            mask[1 : 3 + (side == "b"), 2:5, 2:5] = k
            save_mask(tmp_path / side / f"c{k}.nii.gz", mask)
    found = evaluate_segmentation(
        MaskOptions(tmp_path / "a", tmp_path / "a", tmp_path / "out", resamples=50,
                    external_pred=tmp_path / "b", external_ref=tmp_path / "b")
    )  # fmt: skip
    assert {row.cohort for row in found.table} == {"internal", "external"}


@pytest.mark.parametrize("parts", [("train", "train", ""), ("test", "", ""), ("", "", "")])
def test_cases_that_were_trained_on_are_named(parts, tmp_path, save_mask, capsys):
    lines = ["case,image,label,split"]
    for k, (name, ref, pred) in enumerate(masks()):
        save_mask(tmp_path / "i" / f"{name}.nii.gz", ref * 50)
        save_mask(tmp_path / "l" / f"{name}.nii.gz", ref)
        save_mask(tmp_path / "pred" / f"{name}.nii.gz", pred)
        lines.append(f"{name},i/{name}.nii.gz,l/{name}.nii.gz,{parts[k % 3]}")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    code = main(["evaluate", "masks", "--pred", str(tmp_path / "pred"), "--ref",
                 str(tmp_path / "l"), "--data", str(tmp_path / "data.csv"), "-o",
                 str(tmp_path / "out"), "--metrics", "dice", "--resamples", "50"])  # fmt: skip
    assert code == 0
    # Beside cases set aside for testing, the others are the training part.
    trained = {("train", "train", ""): 4, ("test", "", ""): 4, ("", "", ""): 0}[parts]
    said = "are training cases" in (out := capsys.readouterr().out)
    assert (said, f"{trained} cases are training" in out) == (trained > 0, trained > 0)
    splits = [row["split"] for row in read_csv(tmp_path / "out" / "cases.csv")]
    assert splits.count("train") == trained


def test_where_cases_are_set_aside_for_testing_the_data_set_scores_only_those(tmp_path, save_mask):
    root = nnunet(tmp_path / "data", save_mask)
    (root / "imagesTs").mkdir()
    (root / "labelsTs").mkdir()
    shutil.move(root / "imagesTr" / "s05_0000.nii.gz", root / "imagesTs")
    shutil.move(root / "labelsTr" / "s05.nii.gz", root / "labelsTs")
    found = evaluate_segmentation(
        MaskOptions(root / "labelsTs", root, tmp_path / "out", resamples=50)
    )
    assert [row["case"] for row in read_csv(tmp_path / "out" / "cases.csv")] == ["s05"]
    assert found.training_cases == ()
    (root / "labelsTs" / "s05.nii.gz").unlink()  # a test set whose references are kept elsewhere
    found = evaluate_segmentation(
        MaskOptions(root / "labelsTr", root, tmp_path / "out2", resamples=50)
    )
    assert len(found.training_cases) == 5


def test_a_label_folder_whose_data_set_is_damaged_is_scored_by_its_files(
    tmp_path, save_mask, caplog
):
    root = msd(tmp_path / "data", save_mask)
    shutil.rmtree(root / "imagesTr")
    evaluate_segmentation(
        MaskOptions(root / "labelsTr", root / "labelsTr", tmp_path / "out", resamples=20)
    )
    assert "is not used" in caplog.text
    assert {row["label"] for row in read_csv(tmp_path / "out" / "scores.csv")} == {"1", "2"}


def test_regions_and_ignore_label_come_from_the_predictions(tmp_path, save_mask):
    ref = np.zeros((6, 6, 6), np.uint8)
    ref[:3], ref[3], ref[5] = 1, 2, 9
    pred = np.where(ref == 9, 1, np.where(ref == 2, 1, ref))
    save_mask(tmp_path / "pred" / "a" / "seg.nii.gz", pred)
    save_mask(tmp_path / "ref" / "a.nii.gz", ref)
    stated = {
        "structures": [{"label": 1, "name": "edema"}, {"label": 2, "name": "core"}],
        "regions": {"whole": [1, 2], "core": [2]},
        "ignore_label": 9,
    }
    record = tmp_path / "pred" / "a" / "prediction.json"
    record.write_text(json.dumps(stated))
    options = MaskOptions(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", resamples=20)
    evaluate_segmentation(options)
    rows = read_csv(tmp_path / "out" / "scores.csv")
    dice = {row["label"]: float(row["value"]) for row in rows if row["metric"] == "dice"}
    assert dice == {"whole": 1.0, "core": 0.0}
    record.write_text(json.dumps({**stated, "regions": {"whole": 1}}))
    with pytest.raises(InputError, match=r"prediction\.json: 'regions' or 'ignore_label'"):
        evaluate_segmentation(options)


@pytest.mark.parametrize("rows", [[{"label": "1"}], [7], [{"label": 1, "name": None}]])
def test_a_damaged_record_is_named(tmp_path, save_mask, rows):
    for side in ("pred", "ref"):
        save_mask(tmp_path / side / "a" / "seg.nii.gz", np.ones((3, 3, 3)))
    record = tmp_path / "pred" / "a" / "prediction.json"
    record.write_text(json.dumps({"structures": rows}))
    with pytest.raises(InputError, match=r"a/prediction\.json: 'structures' is damaged"):
        evaluate_segmentation(MaskOptions(tmp_path / "pred", tmp_path / "ref", tmp_path / "out"))


@pytest.mark.parametrize("kind", ["masks", "scores"])
def test_a_split_file_tells_which_cases_trained(kind, tmp_path, save_mask, capsys, write_csv):
    root = msd(tmp_path / "data", save_mask)
    split = tmp_path / "split.json"
    assert (
        main(["data", "split", str(root), "--folds", "2", "--test", "0.34", "-o", str(split)]) == 0
    )
    place = json.loads(split.read_text())["place"]
    locked = {name for name, fold in place.items() if fold == -1}
    assert 0 < len(locked) < 6
    for name, _, pred in masks():
        save_mask(tmp_path / "pred" / f"{name}.nii.gz", pred)
    rows = [(name, k % 2, 0.1 * k) for k, name in enumerate(NAMES)]
    table = write_csv(tmp_path / "test.csv", ("case", "truth", "prob"), rows)
    call = {"masks": ["masks", "--pred", str(tmp_path / "pred"), "--ref", str(root)],
            "scores": ["scores", str(table)]}[kind]  # fmt: skip
    call += ["--split", str(split), "-o", str(tmp_path / "out"), "--resamples", "20", "--json"]
    capsys.readouterr()
    assert main(["evaluate", *call]) == 0
    assert set(json.loads(capsys.readouterr().out)["training_cases"]) == set(NAMES) - locked
    written = {row["case"]: row["split"] for row in read_csv(tmp_path / "out" / "cases.csv")}
    assert written == {name: "test" if name in locked else "train" for name in NAMES}
    assert main(["evaluate", "rerun", str(tmp_path / "out" / "run.json")]) == 0
    other = tmp_path / "other.csv"
    other.write_text("case,truth,prob\nx,0,0.1\ny,1,0.9\n")
    assert main(["evaluate", "scores", str(other), "--split", str(split), "-o", "o"]) == 2
    assert "names none of the 2 cases" in capsys.readouterr().err
