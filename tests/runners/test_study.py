"""Studies: the file's refusals, steps that are done once, and tables of masks that exist."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from medvol.cli.main import main
from medvol.core import ConfigError, MissingInputError
from medvol.datasets import read_dataset
from medvol.runners import plan_study, run_study
from medvol.runners import study as study_module
from medvol.runners.study_file import find_study, read_study, study_of

CLASSES = {
    "title": "t",
    "data": {"d": {"about": "classes"}},
    "folds": 3,
    "seeds": [0, 1],
    "arms": {
        "plain": {"bundle": "chest_xray_classification"},
        "focal": {"bundle": "chest_xray_classification", "values": {"loss": "weighted"}},
    },
    "reference": "plain",
    "resamples": 200,
}
MASKS = {
    "title": "t",
    "data": {"d": {"reference": "{case}/one/{label}.nii.gz"}},
    "arms": {"two": {"masks": "{case}/two/{label}.nii.gz"},
             "three": {"masks": "{case}/three/{label}.nii.gz"}},
    "reference": "two",
    "metrics": ["dice"],
    "resamples": 200,
}  # fmt: skip


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def images(tmp_path):
    """Twelve images of two classes with a table; nothing here reads a pixel."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [("file", "label", "patient_id")]
    for k in range(24):
        (folder / f"x{k}.png").write_bytes(b"")
        rows.append((f"x{k}.png", ("no_findings", "pneumonia")[k % 2], f"p{k // 2}"))
    with (folder / "labels.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return folder


@pytest.fixture
def faked(monkeypatch):
    """Training and prediction that only note that they ran; scores depend on arm and seed."""
    done = []

    def train(job, report):
        done.append(f"train {job.name}")

    def predict(job, report):
        rng = np.random.default_rng(job.seed + 10 * (job.arm.name == "focal"))
        for part, source in (("test", "test"), ("validation", "fit")):
            held = [c for c in read_dataset(job.split(source)).cases if c.fold == 0]
            folder = job.run / "predicted" / part
            folder.mkdir(parents=True)
            with (folder / "predictions.csv").open("w", newline="") as handle:
                writer = csv.writer(handle)
                writer.writerow(["case", "no_findings", "pneumonia",
                                 "logit_no_findings", "logit_pneumonia", "truth"])  # fmt: skip
                for case in held:
                    p = rng.random() / 2 + (case.category == "pneumonia") / 3
                    logits = [np.log(1 - p), np.log(p)]
                    writer.writerow([case.case, 1 - p, p, *logits, case.category])

    monkeypatch.setattr(study_module, "train_job", train)
    monkeypatch.setattr(study_module, "predict_job", predict)
    return done


def test_every_arm_and_seed_is_trained_once_and_compared(tmp_path, images, faked):
    study = study_of(CLASSES, "t.yaml")
    run_study(study, {"d": images}, tmp_path / "out")
    assert len(faked) == 4
    rows = table(tmp_path / "out" / "tests.csv")
    assert {row["arm"] for row in rows} == {"focal"}
    assert {"auc_roc", "sensitivity@fixed", "f1@fixed", "specificity@sensitivity>=0.90"} <= {
        row["metric"] for row in rows
    }
    assert all(float(row["p_holm"]) >= float(row["p"]) for row in rows)
    arms = table(tmp_path / "out" / "arms.csv")
    assert {row["seeds"] for row in arms} == {"2"}
    for page in ("report/report.html", "card/card.md", "card/claim.md"):
        assert (tmp_path / "out" / page).stat().st_size > 1000
    run_study(study, {"d": images}, tmp_path / "out")
    assert len(faked) == 4  # nothing was done again


def test_no_patient_is_in_two_parts_and_every_case_is_in_one(tmp_path, images, faked):
    run_study(study_of({**CLASSES, "test_folds": [0, 1, 2]}, "t.yaml"), {"d": images},
              tmp_path / "out")  # fmt: skip
    tested = []
    for fold in range(3):
        folder = tmp_path / "out" / "splits" / "d" / f"fold{fold}"
        fit, test = (read_dataset(folder / f"{part}.json") for part in ("fit", "test"))
        parts = {
            "train": {c.patient for c in fit.cases if c.fold == 1},
            "validate": {c.patient for c in fit.cases if c.fold == 0},
            "test": {c.patient for c in test.cases if c.fold == 0},
        }
        assert {c.patient for c in test.cases if c.fold == 1} == parts["train"]
        assert sum(len(p) for p in parts.values()) == len(set().union(*parts.values())) == 12
        tested += [c.case for c in test.cases if c.fold == 0]
    assert len(tested) == len(set(tested)) == 24


def test_a_killed_study_goes_on_where_it_was(tmp_path, images, faked, monkeypatch):
    study = study_of(CLASSES, "t.yaml")
    whole = study_module.predict_job

    def killed(job, report):
        if job.arm.name == "focal":
            raise KeyboardInterrupt
        whole(job, report)

    monkeypatch.setattr(study_module, "predict_job", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, {"d": images}, tmp_path / "out")
    assert len(faked) == 3
    monkeypatch.setattr(study_module, "predict_job", whole)
    run_study(study, {"d": images}, tmp_path / "out")
    assert len(faked) == 4


def test_a_changed_arm_is_done_again_and_the_others_are_not(tmp_path, images, faked):
    run_study(study_of(CLASSES, "t.yaml"), {"d": images}, tmp_path / "out")
    arms = {**CLASSES["arms"], "focal": {"bundle": "chest_xray_classification"}}
    run_study(study_of({**CLASSES, "arms": arms}, "t.yaml"), {"d": images}, tmp_path / "out")
    assert list(faked[4:]) == ["train d focal seed 0", "train d focal seed 1"]


def test_existing_masks_of_structures_are_scored_and_compared(tmp_path):
    rng = np.random.default_rng(0)
    for case in range(6):
        ref = np.zeros((9, 9, 5), bool)
        ref[2:7, 2:7, 1:4] = True
        for rater, share in (("one", 0), ("two", 0.02), ("three", 0.2)):
            mask = ref ^ (rng.random(ref.shape) < share)
            path = tmp_path / "d" / f"s{case}" / rater / "liver.nii.gz"
            path.parent.mkdir(parents=True)
            image = nib.Nifti1Image(mask.astype(np.uint8), np.eye(4))
            image.header.set_xyzt_units("mm")
            nib.save(image, path)
    study = study_of(MASKS, "t.yaml")
    run_study(study, {"d": tmp_path / "d"}, tmp_path / "out")
    row = table(tmp_path / "out" / "tests.csv")[0]
    assert (row["arm"], row["reference"], row["n"]) == ("three", "two", "6")
    assert float(row["difference"]) < 0
    assert float(row["p"]) == pytest.approx(2 / 2**6)  # Wilcoxon: all six worse
    steps = json.loads((tmp_path / "out" / "study.json").read_text())["steps"]
    assert set(steps) == {"evaluate d two seed 0", "evaluate d three seed 0", "compare"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "nobody"}, "is not an arm"),
        ({"folds": 2}, "at least 3"),
        ({"typo": 1}, "field 'typo' is unknown"),
        ({"arms": {"a": {"bundle": "x", "masks": "y"}}, "reference": ""}, "not both"),
        ({"arms": {"a": {"bundles": "x"}}, "reference": ""}, "no field 'bundles'"),
        ({"weights": "first"}, "best or last"),
        ({"arms": []}, "a mapping each"),
        ({"seeds": 3}, "seeds is 3; it must be a list"),
        ({"metrics": "dice"}, "metrics is 'dice'; it must be a list"),
        ({"test_folds": ["a"]}, "test_folds holds 'a'"),
        ({"folds": "five"}, "folds holds 'five'"),
        ({"train": 5}, "train holds 5"),
        ({"arms": {"a": {"bundle": "x", "train": 2}}, "reference": ""}, "a: train is 2"),
    ],
)
def test_a_study_without_sense_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        study_of({**CLASSES, **change}, "t.yaml")


def test_a_data_set_that_is_not_named_or_not_there_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="--data d=FOLDER"):
        run_study(study_of(CLASSES, "t.yaml"), {}, tmp_path)
    with pytest.raises(MissingInputError, match="does not exist"):
        run_study(study_of(CLASSES, "t.yaml"), {"d": tmp_path / "no"}, tmp_path)


def test_a_dry_run_asks_for_its_data_in_one_line(tmp_path, capsys):
    words = ["study", "two_raters", "-o", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 2
    assert "=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["bundles/chest_xray_classification.yaml",
                                     "parts/classification/train.yaml"])  # fmt: skip
def test_an_edited_bundle_is_trained_again(tmp_path, images, monkeypatch, changed):
    import medvol.bundle

    configs = shutil.copytree(medvol.bundle.configs_dir(), tmp_path / "configs")
    monkeypatch.setattr(medvol.bundle, "configs_dir", lambda: configs)

    def inputs():
        steps = plan_study(study_of(CLASSES, "t.yaml"), {"d": images}, tmp_path / "out")
        return [step.inputs for step in steps if step.name.startswith("train")]

    before = inputs()
    assert before == inputs()
    with (configs / changed).open("a") as handle:
        handle.write("# edited\n")
    assert all(a != b for a, b in zip(before, inputs(), strict=True))


def test_every_shipped_study_can_be_read_and_planned(tmp_path):
    from medvol.bundle import configs_dir, render

    paths = sorted((configs_dir() / "studies").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        study = read_study(find_study(path.stem))
        assert plan_study(study, {one.name: tmp_path for one in study.data}, tmp_path / "out")
        for arm in study.arms:
            if arm.bundle:
                assert render(arm.bundle, changes=arm.values)


def test_a_field_that_cannot_be_parsed_is_refused(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(CLASSES))
    with pytest.raises(ConfigError, match="cannot be parsed"):
        read_study(path, ["title=["])


def test_a_field_can_be_set_from_outside(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(CLASSES))
    study = read_study(path, ["train.max_epochs=2", "seeds=[7]"])
    assert (study.train, study.seeds) == ({"max_epochs": 2}, (7,))
