"""`medvol predict` and `medvol export` as a user meets them: output, exit codes, faults."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from medvol.cli.main import main
from medvol.datasets import SeenCases, write_trained_on
from medvol.datasets.lock import image_digest


@pytest.fixture
def predict(toy_bundle, tmp_path):
    def run(*arguments: str) -> int:
        common = ["-o", str(tmp_path / "out"), "--trust-bundle", "--device", "cpu"]
        return main(["predict", str(toy_bundle), *common, *arguments])

    return run


def test_good_cases_exit_0_and_are_kept_the_second_time(predict, images, capsys):
    assert predict(str(images), "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["done"] == 4
    assert predict(str(images), "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["resumed"] == 4


def test_what_predict_writes_is_scored_under_the_bundles_label_names(
    predict, images, tmp_path, capsys
):
    assert predict(str(images)) == 0
    for mask in (tmp_path / "out").glob("*/seg.nii.gz"):
        (tmp_path / "ref" / mask.parent.name).mkdir(parents=True)
        (tmp_path / "ref" / mask.parent.name / mask.name).write_bytes(mask.read_bytes())
    places = ["--pred", str(tmp_path / "out"), "--ref", str(tmp_path / "ref")]
    words = ["evaluate", "masks", *places, "-o", str(tmp_path / "scores"), "--resamples", "50"]
    assert main(words) == 0, capsys.readouterr().err
    with (tmp_path / "scores" / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "dice"]
    assert len(rows) == 4 * 2
    assert {row["label"] for row in rows} == {"spleen", "liver"}
    assert {row["value"] for row in rows} <= {"1.0", "nan"}


def test_a_mask_that_was_edited_since_is_not_scored(predict, images, tmp_path, capsys):
    assert predict(str(images)) == 0
    mask = tmp_path / "out" / "case2" / "seg.nii.gz"
    (tmp_path / "ref").mkdir()
    for path in (tmp_path / "out").glob("*/seg.nii.gz"):
        (tmp_path / "ref" / f"{path.parent.name}.nii.gz").write_bytes(path.read_bytes())
    mask.write_bytes((tmp_path / "out" / "case1" / "seg.nii.gz").read_bytes())
    places = ["--pred", str(tmp_path / "out"), "--ref", str(tmp_path / "ref")]
    assert main(["evaluate", "masks", *places, "-o", str(tmp_path / "scores")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{mask}: is not what medvol predict wrote" in line
    assert not (tmp_path / "scores").exists()


def test_scoring_a_case_that_the_weights_were_trained_on_says_so(
    make_bundle, images, tmp_path, capsys
):
    bundle, seen = make_bundle(tmp_path / "toy_segmentation"), images / "case1.nii.gz"
    write_trained_on([SeenCases(frozenset({image_digest([seen])}))], bundle / "models")
    words = ["predict", str(bundle), str(images), "-o", str(tmp_path / "out"), "--trust-bundle"]
    assert main(words) == 0
    for mask in (tmp_path / "out").glob("*/seg.nii.gz"):
        record = json.loads((mask.parent / "prediction.json").read_text())
        assert record["is_training_case"] == (mask.parent.name == "case1")
        (tmp_path / "ref" / mask.parent.name).mkdir(parents=True)
        (tmp_path / "ref" / mask.parent.name / mask.name).write_bytes(mask.read_bytes())
    places = ["--pred", str(tmp_path / "out"), "--ref", str(tmp_path / "ref")]
    words = ["evaluate", "masks", *places, "-o", str(tmp_path / "scores"), "--resamples", "50"]
    capsys.readouterr()
    assert main(words) == 0
    assert "1 cases are training cases" in (out := capsys.readouterr().out)
    assert "case1" in out
    with (tmp_path / "scores" / "cases.csv").open() as file:
        split = {row["case"]: row["split"] for row in csv.DictReader(file)}
    assert split == {"case0": "", "case1": "train", "case2": "", "case3": ""}
    assert main(["card", str(tmp_path / "scores"), "-o", str(tmp_path / "card")]) == 0
    texts = (tmp_path / "card" / "card.md").read_text()
    assert "1 of 4 internal cases are training cases" in texts.replace("\n", " ")


def test_a_run_ends_with_volumes_and_on_request_with_a_page(predict, images, tmp_path, capsys):
    assert predict(str(images), "--report") == 0
    page = tmp_path / "out" / "report" / "report.html"
    assert f"report: {page}" in capsys.readouterr().err
    assert page.read_text().count("<h2>") >= 4
    with (tmp_path / "out" / "volumes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["structure"]) for row in rows] == [
        (f"case{k}", name) for k in range(4) for name in ("spleen", "liver")
    ]


def test_without_a_record_of_the_training_nothing_is_claimed(predict, images, tmp_path):
    assert predict(str(images)) == 0
    record = json.loads((tmp_path / "out" / "case1" / "prediction.json").read_text())
    assert record["is_training_case"] is None


def test_two_shards_in_one_folder_are_one_run(predict, toy_bundle, images, tmp_path, capsys):
    whole = ["-o", str(tmp_path / "whole"), "--trust-bundle", "--device", "cpu"]
    assert main(["predict", str(toy_bundle), str(images), *whole]) == 0
    for shard in ("1/2", "2/2"):
        capsys.readouterr()
        assert predict(str(images), "--shard", shard, "--json") == 0
        assert json.loads(capsys.readouterr().out)["counts"]["done"] == 2
    masks = sorted((tmp_path / "whole").glob("*/seg.nii.gz"))
    assert len(masks) == 4
    for mask in masks:
        beside = tmp_path / "out" / mask.parent.name / mask.name
        assert beside.read_bytes() == mask.read_bytes()


def test_a_shard_without_cases_is_exit_0_with_a_sentence(predict, images, tmp_path, capsys):
    assert predict(str(images), "--shard", "6/7") == 0
    assert "there are only 4 cases" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bad_case_exits_1_and_is_listed(predict, make_image, tmp_path, capsys):
    make_image(tmp_path / "in" / "a.nii.gz", 0)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"nothing")
    assert predict(str(tmp_path / "in")) == 1
    printed = capsys.readouterr()
    assert "1 done, 1 rejected" in printed.out
    assert "b.nii.gz" in printed.err.splitlines()[-1]


def test_nothing_usable_exits_2_with_one_line_and_writes_nothing(predict, tmp_path, capsys):
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    assert predict(str(tmp_path / "broken.nii.gz")) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "broken.nii.gz" in lines[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_usable_leaves_the_users_own_files_alone(toy_bundle, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p1.nii.gz").write_bytes(b"no image")
    (tmp_path / "in" / "p1").mkdir()
    (tmp_path / "in" / "p1" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for place in ("in", "empty"):
        monkeypatch.chdir(tmp_path / place)
        arguments = [str(toy_bundle), str(tmp_path / "in" / "p1.nii.gz"), "--trust-bundle"]
        assert main(["predict", *arguments, "-o", ".", "--device", "cpu"]) == 2
        assert "p1.nii.gz" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (tmp_path / "in" / "p1" / "notes.txt").read_text() == "mine"


def test_a_dry_run_says_what_it_would_cost_and_predicts_nothing(predict, images, tmp_path, capsys):
    assert predict(str(images / "case0.nii.gz"), "--dry-run") == 0
    assert "GiB RAM" in capsys.readouterr().out
    assert predict(str(images / "case0.nii.gz"), "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["cases"][0]["plan"]
    assert plan["windows"] > 1
    assert plan["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_a_dry_run_over_the_ceiling_exits_1(predict, images, capsys):
    assert predict(str(images / "case0.nii.gz"), "--dry-run", "--max-ram", "1MB") == 1
    assert "at least" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["/nowhere.nii.gz"],
        ["--device", "cuda:99"],
        ["--device", "abacus"],
        ["--max-ram", "lots"],
        ["--runner", "abacus"],
        ["--shard", "3/2"],
        ["--format", "bmp"],
        ["--format", ","],
    ],
)
def test_wrong_usage_exits_2_with_one_line(predict, images, arguments, capsys):
    given = arguments if arguments[0].startswith("/") else [str(images), *arguments]
    assert predict(*given) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "dicomseg"],
        ["--uncertainty"],
        ["--engine", "onnx"],
        ["--max-ram", "6GB"],
        ["--runner", "workers"],
        ["--runner", "abacus"],
        ["--shard", "1/2"],
    ],
)
def test_what_a_classifier_cannot_do_is_refused_and_not_left_out(tmp_path, capsys, words):
    (tmp_path / "a.png").write_bytes(b"never read")
    arguments = ["predict", "chest_xray_classification", str(tmp_path / "a.png")]
    assert main([*arguments, "-o", str(tmp_path / "out"), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words[0].removeprefix("--") in line


def test_a_classifier_is_not_exported_in_one_line(tmp_path, capsys):
    arguments = ["chest_xray_classification", "--to", "torchscript", "-o", str(tmp_path / "m")]
    assert main(["export", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "chest_xray_classification" in line


def test_an_export_keeps_dice_and_hd95(toy_bundle, images, tmp_path, capsys):
    arguments = ["export", str(toy_bundle), "--to", "torchscript", "--cases", str(images)]
    arguments += ["-o", str(tmp_path / "models"), "--limit", "2", "--trust-bundle", "--json"]
    assert main(arguments) == 0
    (found,) = json.loads(capsys.readouterr().out)["exports"]
    assert (tmp_path / "models" / "model.ts").is_file()
    assert len(found["cases"]) == 4  # two cases, two structures
    assert all(row["is_equivalent"] for row in found["cases"])
    assert all(row["dice"][1] == pytest.approx(1, abs=1e-3) for row in found["cases"])


def test_an_export_of_other_weights_is_refused(make_bundle, images, tmp_path, capsys):
    import torch

    bundle = make_bundle(tmp_path / "phantom_ct_segmentation")
    common = [str(bundle), "--trust-bundle"]
    assert main(["export", *common, "--to", "torchscript"]) == 0
    arguments = [str(images / "case0.nii.gz"), "-o", str(tmp_path / "o"), "--device", "cpu"]
    assert main(["predict", *common, *arguments, "--engine", "torchscript"]) == 0
    path = bundle / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    torch.save({k: v * 1.01 for k, v in state.items()}, path)
    assert main(["predict", *common, *arguments, "--engine", "torchscript"]) == 2
    assert "other weights" in capsys.readouterr().err
    assert main(["predict", *common, *arguments, "--engine", "onnx"]) == 2
    assert "medvol export" in capsys.readouterr().err


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_tensorrt_without_a_gpu_is_refused_in_one_line(toy_bundle, tmp_path, capsys):
    arguments = ["export", str(toy_bundle), "--to", "tensorrt", "-o", str(tmp_path / "m")]
    assert main([*arguments, "--trust-bundle"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "CUDA" in line
    assert not (tmp_path / "m").exists()


def test_results_inside_the_input_folder_are_no_inputs(toy_bundle, make_image, tmp_path, capsys):
    make_image(tmp_path / "a.nii.gz", 0)
    for _ in range(2):
        common = ["-o", str(tmp_path / "out"), "--trust-bundle", "--device", "cpu", "--json"]
        assert main(["predict", str(toy_bundle), str(tmp_path), *common]) == 0
        (case,) = json.loads(capsys.readouterr().out)["cases"]
        assert case["case"] == "a"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    toy_bundle, images, tmp_path, capsys
):
    (tmp_path / "file").write_text("no folder")
    for place in ("file", "file/below"):
        common = ["-o", str(tmp_path / place), "--trust-bundle", "--device", "cpu"]
        assert main(["predict", str(toy_bundle), str(images), *common]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "cannot be written" in line


def test_links_to_nowhere_are_refused_and_the_rest_go_on(predict, make_image, tmp_path):
    make_image(tmp_path / "in" / "a.nii.gz", 0)
    (tmp_path / "in" / "b.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert predict(str(tmp_path / "in")) == 1
    record = json.loads((tmp_path / "out" / "b" / "prediction.json").read_text())
    assert record["status"] == "rejected"
    assert "link to nowhere" in record["reason"]


def test_a_dry_run_rejects_what_predicting_would_in_the_same_words(
    toy_bundle, tmp_path, make_image, capsys
):
    import gzip

    make_image(tmp_path / "in" / "a.nii.gz", 0)
    cut = make_image(tmp_path / "in" / "cut.nii.gz", 1)
    cut.write_bytes(cut.read_bytes()[:-900])
    odd = make_image(tmp_path / "in" / "nan.nii.gz", 2)
    image = nib.load(odd)
    values = np.asarray(image.dataobj).copy()
    values[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), odd)
    plain = tmp_path / "in" / "plain.nii.gz"
    plain.write_bytes(gzip.decompress((tmp_path / "in" / "a.nii.gz").read_bytes()))
    words = ["predict", str(toy_bundle), str(tmp_path / "in"), "--trust-bundle", "--json"]
    assert main([*words, "-o", str(tmp_path / "out"), "--dry-run"]) == 1
    before = {
        r["case"]: r.get("rejected", "") for r in json.loads(capsys.readouterr().out)["cases"]
    }
    assert not (tmp_path / "out").exists()
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    after = {r["case"]: r["reason"] for r in json.loads(capsys.readouterr().out)["cases"]}
    assert before == after
    assert [name for name, fault in after.items() if not fault] == ["a", "plain"]
