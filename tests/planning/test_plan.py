import json
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from medvol.bundle import load, verify
from medvol.core import ConfigError, InputError, OutputError, write_json
from medvol.datasets import read_dataset
from medvol.planning import Request, find_facts, measure, plan_dataset
from tests.planning.conftest import COSTS, put

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_a_plan_is_a_sound_bundle_whose_every_number_stands_in_its_values_file(
    blobs, tmp_path, no_trial
):
    plan = plan_dataset(blobs, tmp_path / "out" / "mine", Request(600), body_part="hippocampus")
    assert plan.folder == tmp_path / "out" / "mine_segmentation"
    assert verify(load(plan.folder, is_trusted=True)) == []
    values = yaml.safe_load(plan.values.read_text())
    train = load(plan.folder, is_trusted=True).config("train")
    assert train["max_epochs"] == values["max_epochs"] == plan.forecast.epochs
    assert train["inferer"]["tta"] == ["left-right"]
    assert 0.95 * 600 <= plan.forecast.total_s <= 600


def test_regions_channels_and_the_ignore_label_of_nnunet_reach_the_bundle(
    nnunet, tmp_path, no_trial
):
    plan = plan_dataset(nnunet, tmp_path / "glioma_segmentation", Request(600))
    bundle = load(plan.folder, is_trusted=True)
    assert verify(bundle) == []
    train = bundle.config("train")
    assert train["network_def"]["in_channels"] == 2
    assert train["loss"]["members"] == [[1, 2], [2]]
    assert (train["loss"]["is_exclusive"], train["loss"]["ignore_label"]) == (False, 3)
    decision = bundle.config("inference")["decision"]
    assert (decision["values"], decision["overlaps"]) == ([1, 2], True)
    assert train["preprocessing"]["transforms"][1]["labels"] == [1, 2, 3]


def test_axes_are_measured_in_the_patients_order_and_ignored_voxels_not_at_all(nnunet):
    found = measure(read_dataset(nnunet))
    assert found.cases[0].shape == (44, 40, 16)
    assert found.cases[0].spacing_mm == (1.0, 1.0, 3.0)
    assert found.cases[0].voxels == {1: 8 * 20 * 18 - 4 * 10 * 10, 2: 4 * 10 * 10}
    assert found.inside(1)[1] == pytest.approx(140, abs=3)  # channel 1 in label 1


def test_a_measured_case_is_read_again_only_when_it_changes(blobs, tmp_path, monkeypatch):
    manifest, cache = read_dataset(blobs), tmp_path / "fingerprint.json"
    first = measure(manifest, cache)
    asked = []

    def spy(case, manifest):
        asked.append(case.case)
        return next(row for row in first.cases if row.case == case.case)

    monkeypatch.setattr("medvol.planning.fingerprint.measure_case", spy)
    assert measure(manifest, cache) == first
    assert asked == []
    os.utime(blobs / "imagesTr" / "blob_002.nii.gz", (1, 1))
    measure(manifest, cache)
    assert asked == ["blob_002"]


def test_the_tumour_challenges_labels_become_nested_regions(blobs):
    index = json.loads((blobs / "dataset.json").read_text())
    index["name"] = "BRATS"
    index["labels"] = {"0": "background", "1": "edema", "2": "non-enhancing tumor",
                       "3": "enhancing tumour"}  # fmt: skip
    (blobs / "dataset.json").write_text(json.dumps(index))
    manifest = read_dataset(blobs)
    facts = find_facts(manifest, measure(manifest))
    assert facts.regions == {
        "whole_tumour": (1, 2, 3), "tumour_core": (2, 3), "enhancing_tumour": (3,),
    }  # fmt: skip
    assert facts.region_labels == (1, 2, 3)
    assert (facts.modality, facts.body_part) == ("MR", "brain")


@pytest.mark.parametrize(
    "labels",
    [
        {"1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour", "4": "necrosis"},
        {"1": "edema", "2": "brain stem", "3": "enhancing tumour"},
    ],
    ids=["one more label", "an organ"],
)
def test_regions_are_not_guessed_where_a_label_would_be_lost_in_them(blobs, labels):
    index = json.loads((blobs / "dataset.json").read_text())
    index["labels"] = {"0": "background", **labels}
    (blobs / "dataset.json").write_text(json.dumps(index))
    manifest = read_dataset(blobs)
    assert find_facts(manifest, measure(manifest)).regions == {}


def test_regions_whose_names_have_no_latin_letter_stay_apart(nnunet):
    facts = json.loads((nnunet / "dataset.json").read_text())
    facts["labels"] = {"background": 0, "肿瘤": [1, 2], "核心": 2, "ignore": 3}
    (nnunet / "dataset.json").write_text(json.dumps(facts), "utf-8")
    manifest = read_dataset(nnunet)
    found = find_facts(manifest, measure(manifest), body_part="brain")
    assert found.regions == {"肿瘤": (1, 2), "核心": (2,)}


def test_a_label_that_no_case_holds_hides_no_rare_one(blobs, tmp_path, no_trial):
    index = json.loads((blobs / "dataset.json").read_text())
    index["labels"] = {**index["labels"], "9": "never drawn"}
    (blobs / "dataset.json").write_text(json.dumps(index))
    for number in range(1, 6):
        path = sorted((blobs / "labelsTr").iterdir())[number]
        label = np.asarray(nibabel.load(path).dataobj)
        put(path, np.where(label == 2, 0, label), np.eye(4))
    plan = plan_dataset(blobs, tmp_path / "rare", Request(600), body_part="brain")
    assert plan.draft["sampler"] == "prevalence"


def test_weights_are_never_left_beside_another_plan(blobs, tmp_path, no_trial):
    plan = plan_dataset(blobs, tmp_path / "mine", Request(600), body_part="hippocampus")
    (plan.folder / "models").mkdir()
    (plan.folder / "models" / "model.pt").write_bytes(b"trained for hours")
    before = plan.values.read_text()
    with pytest.raises(OutputError, match="holds trained weights"):
        plan_dataset(blobs, tmp_path / "mine", Request(60), body_part="hippocampus")
    assert plan.values.read_text() == before


def test_code_in_a_label_name_of_a_strangers_data_is_refused(blobs, tmp_path, no_trial):
    index = json.loads((blobs / "dataset.json").read_text())
    index["labels"]["1"] = f"$open({str(tmp_path / 'run')!r}, 'w')"
    (blobs / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="take for code"):
        plan_dataset(blobs, tmp_path / "bad", Request(600), body_part="brain")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "asked", [{"gpu_mem_gb": float("nan")}, {"budget_s": float("inf")}, {"seed": -1}]
)
def test_what_is_no_number_is_refused(asked):
    with pytest.raises(ConfigError):
        Request(**{"budget_s": 60.0, **asked})


def test_a_modality_that_nothing_tells_is_asked_for(blobs):
    index = json.loads((blobs / "dataset.json").read_text())
    index["modality"] = {"0": "scan"}
    (blobs / "dataset.json").write_text(json.dumps(index))
    manifest = read_dataset(blobs)
    fingerprint = measure(manifest)
    with pytest.raises(
        ConfigError, match=r"does not follow from channel names \(scan\); pass --modality"
    ):
        find_facts(manifest, fingerprint)
    assert find_facts(manifest, fingerprint, "mri").modality == "MR"


def test_sides_in_label_names_and_unknown_anatomy_forbid_mirrors(blobs, tmp_path, no_trial):
    index = json.loads((blobs / "dataset.json").read_text())
    index["labels"] = {"0": "background", "1": "left_hippocampus", "2": "right_hippocampus"}
    (blobs / "dataset.json").write_text(json.dumps(index))
    plan = plan_dataset(blobs, tmp_path / "sided", Request(600))
    assert (plan.draft["body_part"], plan.draft["flip_axes"]) == ("hippocampus", [])


def test_pictures_of_a_csv_are_planned_in_two_dimensions_and_load(tmp_path, no_trial):
    lines = ["image,label,patient_id"]
    for number in range(5):
        label = np.zeros((40, 48), np.uint8)
        label[10:24, 8 + number : 30] = 7
        for part, array in (("image", 100 + 20 * label), ("mask", label)):
            Image.fromarray(array).save(tmp_path / f"{part}_{number}.png")
        lines.append(f"image_{number}.png,mask_{number}.png,p{number}")
    (tmp_path / "datalist.csv").write_text("\n".join(lines))
    plan = plan_dataset(tmp_path / "datalist.csv", tmp_path / "flat", Request(600), modality="XR")
    bundle = load(plan.folder, is_trusted=True)
    assert verify(bundle) == []
    assert bundle.labels == {7: "label_7"}
    train = bundle.parser("train", dataset_dir=str(tmp_path / "datalist.csv"))
    sample = train.get_parsed_content("train#dataset")[0]
    assert tuple(sample["image"].shape[1:]) == tuple(plan.draft["roi_size"])
    logits = train.get_parsed_content("network")(sample["image"].as_tensor()[None])
    loss = train.get_parsed_content("loss")(logits, sample["label"].as_tensor()[None])
    assert bool(loss.isfinite())


@pytest.mark.parametrize(("share", "is_told"), [(0.2, True), (0.9, False)])
def test_a_busy_machine_is_told_with_the_forecast(blobs, tmp_path, monkeypatch, share, is_told):
    busy = replace(COSTS, share=share)
    monkeypatch.setattr("medvol.planning.plan.measure_costs", lambda *_: busy)
    plan = plan_dataset(blobs, tmp_path / "mine", Request(600))
    assert ("got 20% of its processors" in "\n".join(plan.notes)) == is_told


def test_a_folder_that_no_plan_wrote_is_left_alone(blobs, tmp_path, no_trial):
    (tmp_path / "mine_segmentation").mkdir()
    (tmp_path / "mine_segmentation" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="was not planned"):
        plan_dataset(blobs, tmp_path / "mine", Request(600))


def test_a_bad_case_is_named_before_anything_is_planned(blobs, tmp_path, no_trial):
    (blobs / "labelsTr" / "blob_003.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="blob_003"):
        plan_dataset(blobs, tmp_path / "mine", Request(600))


@pytest.mark.parametrize(
    "network", ["residual", "segresnet", *(pytest.param(n, marks=pytest.mark.slow)
                                           for n in ("plain", "swin_unetr"))]
)  # fmt: skip
def test_every_network_can_be_asked_for(blobs, tmp_path, no_trial, network):
    plan = plan_dataset(blobs, tmp_path / "mine", Request(600, network=network))
    assert verify(load(plan.folder, is_trusted=True)) == []


def test_flat_patches_of_thick_slices_fit_the_gpu_that_was_asked_for(tmp_path):
    # Halved late along the slices, they need half as much again as cubes of as many voxels.
    for kind in ("imagesTr", "labelsTr"):
        for number in range(5):
            voxels = np.zeros((256, 256, 24), np.int16)
            voxels[100:150, 100:160, 8:16] = 1 if kind == "labelsTr" else 100
            image = nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 5.0, 1.0]))
            image.header.set_xyzt_units("mm")
            path = tmp_path / "data" / kind / f"c{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(image, path)
    write_json(tmp_path / "data" / "dataset.json", {
        "name": "Spleen", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"},
        "training": [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"}
                     for n in range(5)], "test": [],
    })  # fmt: skip
    request = Request(43_200, device="cuda", gpu_mem_gb=6)
    plan = plan_dataset(tmp_path / "data", tmp_path / "mine", request)
    assert plan.draft["roi_size"][2] < plan.draft["roi_size"][0]
    assert 2e9 < plan.forecast.peak_bytes < 6e9


def test_a_gpu_that_is_not_here_is_planned_by_arithmetic_that_fits_its_memory(blobs, tmp_path):
    plan = plan_dataset(blobs, tmp_path / "mine", Request(600, device="cuda", gpu_mem_gb=4))
    assert plan.draft["network"] == "dynunet"
    assert 0.5e9 < plan.forecast.peak_bytes < 4e9
    assert "not measured" in " ".join(plan.notes)
