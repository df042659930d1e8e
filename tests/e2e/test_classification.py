"""The classification family end to end on phantoms, as ``monai.bundle run`` runs it."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from medvol.bundle.write import read_values, write
from medvol.core import PolicyError, WeightsError
from medvol.core.errors import error_line
from medvol.core.shipped import configs_dir
from medvol.datasets.phantoms import write_phantom_classes
from medvol.io import read_image
from medvol.metrics import auc_roc
from medvol.networks import load_weights

NODULE = "lung_nodule_ct_classification"
LABELS = {"0": "clear", "1": "nodule"}
CLASSIFIERS = (
    "hippocampus_mri_classification",
    NODULE,
    "chest_xray_classification",
    "chest_xray_three_class_classification",
)
MAPS = {
    "hippocampus_mri_gradcam": "hippocampus_mri_classification",
    "chest_xray_gradcam": "chest_xray_classification",
}


def run(bundle: Path, task: str, **overrides):
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / f"{task}.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        workflow_type="train" if task == "train" else "infer",
        logging_file=False,
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def nodules(tmp_path_factory):
    return write_phantom_classes(tmp_path_factory.mktemp("data"), 24, shape=(28, 28, 28))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, nodules):
    folder = tmp_path_factory.mktemp("run")
    bundle = write(NODULE, folder / NODULE)
    run(bundle, "train", dataset_dir=str(nodules), output_dir=str(folder / "out"), labels=LABELS,
        max_epochs=6, folds=3, val_interval=3)  # fmt: skip
    return bundle, folder / "out"


@pytest.mark.slow
def test_training_on_planted_nodules_writes_weights_that_rank_them(tmp_path, trained, nodules):
    bundle, out = trained
    assert load_weights(out / "model.pt")
    run(bundle, "evaluate", dataset_dir=str(nodules), output_dir=str(tmp_path), fold=0, folds=3,
        labels=LABELS, checkpoint=str(out / "model.pt"))  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 8
    area = auc_roc([r["truth"] == "nodule" for r in rows], [float(r["nodule"]) for r in rows])
    assert area >= 0.8


@pytest.mark.slow
def test_inference_on_a_folder_writes_a_row_and_a_file_per_image(tmp_path, trained, nodules):
    bundle, out = trained
    run(bundle, "inference", dataset_dir=str(nodules / "images"), output_dir=str(tmp_path),
        labels=LABELS, checkpoint=str(out / "model.pt"))  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == sorted(p.name for p in (nodules / "images").iterdir())
    for row in rows:
        assert float(row["clear"]) + float(row["nodule"]) == pytest.approx(1, abs=1e-5)
        case = json.loads((tmp_path / row["case"] / "prediction.json").read_text())
        assert case["probabilities"]["nodule"] == pytest.approx(float(row["nodule"]), abs=1e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_score_every_class_from_their_own_input_size(name):
    values = read_values(configs_dir() / "bundles" / f"{name}.yaml")
    network = network_of(name).eval()
    with torch.no_grad():
        scores = network(torch.zeros(2, 1, *values["roi_size"]))
    assert scores.shape == (2, len(values["labels"]))


@pytest.mark.parametrize(("name", "classifier"), MAPS.items())
def test_map_bundles_share_every_value_with_their_classifier(name, classifier):
    own, other = (read_values(configs_dir() / "bundles" / f"{n}.yaml") for n in (name, classifier))
    described = {
        "name",
        "tasks",
        "meta",
        "augmentation",
        "loss",
        "sampler",
        "target",
        "supervision",
    }
    described |= {key for key in own if key.endswith("_dir")}
    shared = (own.keys() & other.keys()) - described
    assert len(shared) >= 15
    assert {key: own[key] for key in shared} == {key: other[key] for key in shared}


@pytest.mark.parametrize("name", MAPS)
def test_map_lies_on_the_inputs_own_grid(tmp_path, name):
    bundle = write(name, tmp_path / name)
    torch.manual_seed(0)
    torch.save(network_of(name).state_dict(), tmp_path / "weights.pt")
    image = tmp_path / "in" / ("a.v2.png" if "xray" in name else "a.v2.nii.gz")
    image.parent.mkdir()
    write_input(image)
    run(bundle, "inference", dataset_dir=str(image.parent), output_dir=str(tmp_path / "out"),
        checkpoint=str(tmp_path / "weights.pt"))  # fmt: skip
    cam, original = read_image(tmp_path / "out" / "a.v2_cam.nii.gz"), read_image(image)
    assert math.prod(cam.shape) == math.prod(original.shape[1:])
    assert cam.shape[1:3] == original.shape[1:3]
    np.testing.assert_allclose(cam.affine, original.affine, atol=1e-5)
    assert float(cam.max()) <= 1 + 1e-6
    facts = json.loads((tmp_path / "out" / "a.v2" / "explanation.json").read_text())
    assert facts["class"] in ("low_volume", "pneumonia")


def test_map_bundle_without_weights_says_so(tmp_path):
    bundle = write("chest_xray_gradcam", tmp_path / "chest_xray_gradcam")
    write_input(tmp_path / "a.png")
    with pytest.raises((WeightsError, RuntimeError)) as refusal:
        run(bundle, "inference", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert "model.pt: no such weights file" in str(error_line(refusal.value))


def test_left_right_mirror_of_a_chest_is_refused_in_the_values(tmp_path):
    bundle = write("chest_xray_classification", tmp_path / "chest_xray_classification")
    config = json.loads((bundle / "configs" / "train.json").read_text())
    steps = config["train"]["augmentation"]["transforms"]
    (spatial,) = [s for s in steps if s["_target_"] == "medvol.transforms.RandSpatiald"]
    from medvol.transforms import RandSpatiald

    arguments = {key: value for key, value in spatial.items() if key != "_target_"}
    RandSpatiald(**arguments)
    with pytest.raises(PolicyError, match="dextrocardia"):
        RandSpatiald(**(arguments | {"flip_axes": ["left-right"]}))


def network_of(name):
    from monai.bundle import ConfigParser

    from medvol.bundle.write import render

    parser = ConfigParser(json.loads(render(name)["configs/inference.json"]))
    return parser.get_parsed_content("network_def")


def write_input(path):
    from medvol.io import write_nifti

    rng = np.random.default_rng(0)
    if path.suffix == ".png":
        from PIL import Image

        Image.fromarray(rng.integers(0, 255, (90, 120), np.uint8)).save(path)
    else:
        affine = np.array([[0, -1.2, 0, 3], [1, 0, 0, 5], [0, 0, 1.5, 7], [0, 0, 0, 1]])
        write_nifti(path, rng.normal(0, 1, (30, 26, 22)).astype(np.float32), affine)
