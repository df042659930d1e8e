import csv
import json

import numpy as np
import pytest
import torch

from medvol.bundle import fork, load, write
from medvol.cli.main import main
from medvol.core import ConfigError, InputError, MissingInputError
from medvol.datasets.phantoms import write_phantom_classes
from medvol.evaluation import BootstrapPlan, calibrate, store

FAST = BootstrapPlan(resamples=100)


def logits(path, write_csv, seed, *, temperature=3.0, classes=3, n=600):
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (n, classes))
    prob = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    y = (rng.random((n, 1)) > prob.cumsum(axis=1)).sum(axis=1)
    header = ("case", "truth", *[f"logit_{k}" for k in range(classes)])
    rows = [(f"{path.stem}{k}", y[k], *(temperature * true[k])) for k in range(n)]
    return write_csv(path, header, rows)


@pytest.mark.parametrize("classes", [2, 3])
def test_overconfidence_is_undone_on_cases_not_fitted_on(tmp_path, write_csv, classes):
    paths = [logits(tmp_path / f"{s}.csv", write_csv, s, classes=classes) for s in (0, 1)]
    found = calibrate(*paths, plan=FAST)
    assert found.temperature == pytest.approx(3, rel=0.2)
    rows = {(r.when, r.metric): r for r in found.rows}
    for metric in ("log_loss", "brier", "ece"):
        assert rows["after", metric].value < rows["before", metric].value
    assert rows["after", "slope"].value == pytest.approx(1, abs=0.25)
    assert all(
        r.lower <= r.value <= r.upper and r.n == 600 for r in found.rows if r.metric != "ece"
    )


def test_the_bundle_uses_the_temperature_from_its_next_prediction_on(tmp_path, write_csv):
    bundle = write("lung_nodule_ct_classification", tmp_path / "lung_nodule_ct_classification")
    images = write_phantom_classes(tmp_path / "data", 6, shape=(24, 24, 24))
    predict(bundle, images, tmp_path / "before")
    header = ("case", "truth", "logit_malignant", "logit_benign")  # not the bundle's order
    rng = np.random.default_rng(0)
    paths = []
    for name in "ab":
        y = rng.integers(0, 2, 80)
        margin = 4 * rng.normal(2 * y - 1, 2)
        rows = [(f"{name}{k}", ("benign", "malignant")[y[k]], margin[k], 0) for k in range(80)]
        paths.append(write_csv(tmp_path / f"{name}.csv", header, rows))
    found = calibrate(*paths, plan=FAST)
    operating, note = store(found, bundle, paths[0])
    assert json.loads(note.read_text())["validation_sha256"] == found.validation_sha256
    kept = json.loads(operating.read_text())
    assert kept["temperature"] == pytest.approx(found.temperature)
    assert found.temperature > 1.5
    predict(bundle, images, tmp_path / "after")
    before, after = (table(tmp_path / name / "predictions.csv") for name in ("before", "after"))
    assert len(before) == 6
    for old, new in zip(before, after, strict=True):
        logit = np.log(float(old["malignant"]) / float(old["benign"]))
        want = 1 / (1 + np.exp(-logit / found.temperature))
        assert float(new["malignant"]) == pytest.approx(want, abs=2e-6)
        assert float(new["threshold"]) == pytest.approx(kept["threshold"], abs=1e-6)


def test_a_temperature_of_other_classes_or_for_no_bundle_is_rejected(tmp_path, write_csv):
    paths = [logits(tmp_path / f"{s}.csv", write_csv, s, n=60) for s in (0, 1)]
    found = calibrate(*paths, plan=FAST)
    with pytest.raises(MissingInputError, match="is not a bundle"):
        store(found, tmp_path, paths[0])
    bundle = write("lung_nodule_ct_classification", tmp_path / "lung_nodule_ct_classification")
    with pytest.raises(ConfigError, match="are not the bundle's"):
        store(found, bundle, paths[0])
    assert not (bundle / "models").exists()


def predict(bundle, images, out):
    """As ``monai.bundle run`` with inference.json, with weights of seed 0."""
    torch.manual_seed(0)
    parser = load(bundle, is_trusted=True).parser("inference")
    network = parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), bundle / "weights.pt")
    parser = load(bundle, is_trusted=True).parser(
        "inference", dataset_dir=str(images / "images"), output_dir=str(out),
        checkpoint=str(bundle / "weights.pt"), device="cpu",
    )  # fmt: skip
    parser.get_parsed_content("evaluator").run()


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_fitting_and_testing_on_the_same_patients_is_rejected(tmp_path, write_csv):
    path = logits(tmp_path / "a.csv", write_csv, 0, n=30)
    with pytest.raises(InputError, match="other patients"):
        calibrate(path, path)
    prob = write_csv(tmp_path / "p.csv", ("case", "truth", "prob"), [("x", 0, 0.2), ("y", 1, 0.7)])
    with pytest.raises(InputError, match="has no logits"):
        calibrate(prob, path)


@pytest.mark.parametrize("sign", [-1, 0])
def test_scores_that_do_not_rank_the_classes_leave_the_bundle_as_it_was(
    tmp_path, write_csv, capsys, sign
):
    bundle = fork("chest_xray_classification", tmp_path / "my_xray_classification")
    header = ("case", "truth", "logit_no_findings", "logit_pneumonia")
    rng = np.random.default_rng(0)
    for name in "vt":
        y = rng.integers(0, 2, 80)
        margin = sign * rng.normal(2 * y - 1, 1)
        rows = [(f"{name}{k}", ("no_findings", "pneumonia")[y[k]], 0, margin[k])
                for k in range(80)]  # fmt: skip
        write_csv(tmp_path / f"{name}.csv", header, rows)
    before = (bundle / "models" / "operating.json").read_bytes()
    arguments = ["--validation", str(tmp_path / "v.csv"), "--test", str(tmp_path / "t.csv")]
    assert main(["calibrate", *arguments, "--bundle", str(bundle), "-o", str(tmp_path / "O")]) == 2
    assert "do not rank the classes" in capsys.readouterr().err
    assert (bundle / "models" / "operating.json").read_bytes() == before
    assert not (tmp_path / "O").exists()


def test_coverage_of_sets_is_stated_overall_by_class_and_by_subgroup(tmp_path, write_csv, capsys):
    # The sets' promise is broken for the one sex whose scores are noise.
    rng = np.random.default_rng(0)
    header = ("case", "sex", "truth", "logit")
    for name, n in (("v", 800), ("t", 800)):
        y = rng.integers(0, 2, n)
        sex = np.where((np.arange(n) % 4 == 0) & (name == "t"), "F", "M")
        margin = np.where(sex == "F", 4 * rng.normal(0, 1, n), rng.normal(3 * y - 1.5, 2))
        rows = [(f"{name}{k}", sex[k], y[k], margin[k]) for k in range(n)]
        write_csv(tmp_path / f"{name}.csv", header, rows)
    paths = tmp_path / "v.csv", tmp_path / "t.csv"
    found = {row.group: row for row in calibrate(*paths, plan=FAST, by=["sex"]).coverage}
    assert set(found) == {"all", "class=0", "class=1", "sex=F", "sex=M"}
    assert found["sex=M"].is_kept
    assert not found["sex=F"].is_kept
    assert found["all"].n == 800
    arguments = ["--validation", str(paths[0]), "--test", str(paths[1]), "--by", "sex"]
    assert main(["calibrate", *arguments, "--resamples", "100", "-o", str(tmp_path / "O")]) == 0
    shown = capsys.readouterr().out
    assert any("sex=F" in line and "BROKEN" in line for line in shown.splitlines())
    kept = json.loads((tmp_path / "O" / "calibration.json").read_text())["coverage"]
    assert {row["group"] for row in kept} == set(found)
    assert main(["calibrate", *arguments[:-1], "site"]) == 2
    assert "site" in capsys.readouterr().err


@pytest.mark.parametrize(("truth", "said"), [(0, "one class"), (1, "called rightly")])
def test_cases_that_no_finite_temperature_fits_best_are_rejected(tmp_path, write_csv, truth, said):
    # All of class 0 and half of them called 1; or both classes and none of them wrong.
    rows = [(f"v{k}", truth * (k % 2), 2 * (k % 2) - 1) for k in range(20)]
    path = write_csv(tmp_path / "v.csv", ("case", "truth", "logit"), rows)
    other = write_csv(tmp_path / "t.csv", ("case", "truth", "logit"), [("t0", 0, 1), ("t1", 1, 2)])
    with pytest.raises(InputError, match=said):
        calibrate(path, other, plan=FAST)
