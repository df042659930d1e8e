import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from medvol.cli.main import main


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(6):
        ref = np.zeros((12, 12, 8), np.uint8)
        ref[2:8, 2:8, 2:6] = 1
        pred = np.roll(ref, k % 2, axis=0) * (k != 3)
        for name, labels in (("ref", ref), ("pred", pred)):
            (tmp_path / name).mkdir(exist_ok=True)
            image = nib.Nifti1Image(labels, np.eye(4))
            image.header.set_xyzt_units("mm")
            nib.save(image, tmp_path / name / f"c{k}.nii.gz")
    for name in ("val", "test", "other"):
        y = np.arange(60) % 2
        logit = rng.normal(2 * y - 1, 1.5)
        cases = "test" if name == "other" else name
        lines = [f"{cases}{k},{y[k]},0.0,{logit[k]},{rng.normal()}" for k in range(60)]
        text = "case,truth,logit_0,logit_1,age\n" + "\n".join(lines) + "\n"
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_segmentation_prints_n_misses_and_intervals(folder, capsys):
    masks = ("--pred", folder / "pred", "--ref", folder / "ref", "--resamples", 200)
    code, out, _ = run(
        capsys, "evaluate", "masks", *masks, "-o", folder / "out", "--labels", "1=liver"
    )
    assert code == 0
    assert "n=6, 0 undefined, 1 infinite, 1 false negative, 0 false positive" in out
    assert "c3  liver  hd95 inf mm  (prediction is empty: false negative)" in out
    code, out, _ = run(capsys, "evaluate", "masks", *masks, "-o", folder / "out", "--json")
    rows = json.loads(out)["table"]
    assert {row["metric"] for row in rows} == {"dice", "hd95", "assd", "nsd_voxel@2mm"}
    assert rows[1]["mean"] == "inf"
    code, out, _ = run(capsys, "evaluate", "rerun", folder / "out" / "run.json")
    assert (code, "repeated exactly" in out) == (0, True)


def test_a_run_that_does_not_repeat_exits_1(folder, capsys):
    run(capsys, "evaluate", "scores", folder / "test.csv", "-o", folder / "o", "--resamples", 99)
    path = folder / "o" / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    code, out, _ = run(capsys, "evaluate", "rerun", path, "--json")
    assert code == 1
    assert json.loads(out)["changed"] == ["curves.json", "summary.csv"]


def test_classification_prints_counts_and_where_the_threshold_is_from(folder, capsys):
    code, out, _ = run(
        capsys, "evaluate", "scores", folder / "test.csv", "--validation", folder / "val.csv",
        "-o", folder / "out", "--resamples", 200, "--by", "age",
    )  # fmt: skip
    assert code == 0
    assert "/30 at sensitivity>=0.95 (" in out
    assert "age=" in out


def test_models_are_compared_and_calibrated(folder, capsys):
    pair = (folder / "test.csv", folder / "other.csv")
    code, out, _ = run(capsys, "compare", *pair, "--resamples", 200, "-o", folder / "cmp")
    assert code == 0
    assert "delong p=" in out
    assert (folder / "cmp" / "comparison.csv").is_file()
    _, out, _ = run(capsys, "compare", *pair, "--resamples", 200, "--json")
    assert {row["metric"] for row in json.loads(out)} == {
        "auc_roc", "average_precision", "brier", "accuracy", "balanced_accuracy", "macro_f1",
        "kappa",
    }  # fmt: skip
    files = ("--validation", folder / "val.csv", "--test", folder / "test.csv", "--resamples", 50)
    code, out, _ = run(capsys, "calibrate", *files, "-o", folder / "cal")
    assert (code, out.startswith("temperature ")) == (0, True)
    _, out, _ = run(capsys, "calibrate", *files, "--json")
    assert json.loads(out) == json.loads((folder / "cal" / "calibration.json").read_text())


def test_drift_of_images_alarms_with_exit_1(folder, capsys):
    code, out, _ = run(capsys, "drift", folder / "ref", "--reference", folder / "ref", "--json")
    assert (code, json.loads(out)["alarms"]) == (0, 0)
    rng = np.random.default_rng(1)
    for name, shift in (("a", 0.0), ("b", 2.0)):
        rows = "".join(f"{k},{rng.normal() + shift},{rng.normal()}\n" for k in range(30))
        (folder / f"{name}.csv").write_text("case,mean,noise\n" + rows)
    code, out, _ = run(capsys, "drift", folder / "b.csv", "--reference", folder / "a.csv")
    assert code == 1
    assert "ALARM  input        mean" in out
    saved = folder / "profile.csv"
    code, *_ = run(capsys, "drift", folder / "ref", "--save-profile", saved)
    assert (code, saved.read_text().splitlines()[0][:9]) == (0, "case,mean")


def test_pairs_in_time_are_followed(folder, capsys):
    (folder / "pairs.csv").write_text("case,baseline,followup\na,ref/c0.nii.gz,ref/c1.nii.gz\n")
    code, out, _ = run(
        capsys, "evaluate", "lesions", folder / "pairs.csv", "-o", folder / "out",
        "--repeatability", 20, "--json",
    )  # fmt: skip
    assert (code, json.loads(out)[0]["status"]) == (0, "stable")


_MASKS = ("masks", "--pred", "pred", "--ref", "ref", "-o", "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("masks", "--pred", "pred", "--ref", "ref"), "'--output'"),
        (("masks", "--pred", "pred", "-o", "out"), "'--ref'"),
        (("masks", "--pred", "none", "--ref", "ref", "-o", "out"), "none: no such folder"),
        ((*_MASKS, "--metrics", "dyce"), "'dyce' is unknown"),
        ((*_MASKS, "--tau", "wide"), "'wide' is not a number"),
        ((*_MASKS, "--tau", "-1"), "tau must be"),
        ((*_MASKS, "--labels", "liver"), "1=liver"),
        ((*_MASKS, "--by", "site"), "no case has a value"),
        ((*_MASKS, "--resamples", "0"), "resamples"),
        ((*_MASKS, "--validation", "val.csv"), "No such option: --validation"),
        ((*_MASKS, "--external-data", "x"), "--external-data needs"),
        ((*_MASKS, "--external-pred", "x"), "belong together"),
        (("scores", "test.csv", "--pred", "pred", "-o", "out"), "No such option: --pred"),
        (("scores", "test.csv", "--validation", "val.csv", "--at", "best", "-o", "out"), "best"),
        (("scores", "test.csv", "--at", "youden", "-o", "out"), "--at needs --validation"),
        (("scores", "test.csv", "--external", "test.csv", "-o", "out"), "other patients"),
        (("rerun", "test.csv"), "is not JSON"),
        (("rerun", "run.json", "-o", "out"), "No such option: -o"),
        (("--pred", "pred"), "No such option: --pred"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, "evaluate", *arguments)
    assert (code, out, (folder / "out").exists()) == (2, "", False)
    assert words in err
    assert err.count("\n") == 1


def test_a_run_notes_the_digest_of_every_table_of_its_data_sets(folder, capsys):
    shutil.copytree(folder / "ref", folder / "images")
    for k in range(6):
        shutil.copy(folder / "ref" / f"c{k}.nii.gz", folder / "images" / f"t{k}.nii.gz")
    shutil.copytree(folder / "ref", folder / "there")
    for path in (folder / "there").iterdir():
        image = nib.load(path)
        moved = np.roll(np.asarray(image.dataobj), 1, axis=1)
        nib.save(nib.Nifti1Image(moved, image.affine, image.header), path)
    for name, images in (("own", "images"), ("far", "there"), ("old", "images")):
        (folder / name).mkdir()
        case = "t" if name == "old" else "c"
        cases = [f"{case}{k},../{images}/{case}{k}.nii.gz,,{name}{k}" for k in range(6)]
        text = "\n".join(["case,image,label,patient_id", *cases])
        (folder / name / "datalist.csv").write_text(text)
    code, _, err = run(
        capsys, "evaluate", "masks", "--pred", folder / "pred", "--ref", folder / "ref", "--data",
        folder / "own", "--external-pred", folder / "pred", "--external-ref", folder / "there",
        "--external-data", folder / "far", "--train", folder / "old", "-o", folder / "out",
        "--resamples", 50,
    )  # fmt: skip
    assert (code, err) == (0, "")
    noted = json.loads((folder / "out" / "run.json").read_text())["inputs"]
    assert {f"../{name}/datalist.csv" for name in ("own", "far", "old")} <= noted.keys()
    (folder / "far" / "datalist.csv").write_text("changed")
    code, _, err = run(capsys, "evaluate", "rerun", folder / "out" / "run.json")
    assert code == 2
    assert "datalist.csv has changed since the run" in err


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--labels", "0=air,1=liver"), "0 is the background"), (("--worst", "-1"), "--worst")],
)
def test_what_cannot_be_meant_is_rejected_in_one_line(folder, capsys, option, said):
    masks = ("--pred", folder / "pred", "--ref", folder / "ref")
    code, out, err = run(capsys, "evaluate", "masks", *masks, "-o", folder / "out", *option)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "BAD", "test.csv"),
        ("calibrate", "--validation", "BAD", "--test", "test.csv"),
        ("drift", "BAD", "--reference", "test.csv"),
        ("drift", "test.csv", "--reference", "test.csv", "--scores", "none.csv",
         "--reference-scores", "none.csv"),
        ("evaluate", "scores", "BAD", "-o", "out"),
        ("evaluate", "lesions", "BAD", "-o", "out"),
        ("evaluate", "rerun", "run.json"),
        ("report", "."),
    ],
)  # fmt: skip
def test_a_damaged_file_is_rejected_in_one_line(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    (folder / "BAD").write_bytes(b"\xff\xfe\x00\x81 no text")
    (folder / "run.json").write_text('{"medvol_run": 1}')
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert any(name in err for name in ("BAD", "none.csv", "run.json"))
