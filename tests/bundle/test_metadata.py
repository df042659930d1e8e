"""What metadata.json states of a bundle is what its config does."""

import json

import numpy as np
import pytest
import torch

from medvol.bundle import list_bundles, load, render
from medvol.bundle.write import read_values
from medvol.core.shipped import configs_dir, shipped_root

BUNDLES = list_bundles()
SEGMENTATIONS = [b for b in BUNDLES if b.metadata["medvol"]["family"] == "segmentation"]


def decide(decision, outputs):
    """The stated decision written out in NumPy, voxel by voxel of (C, N) network outputs."""
    outputs = outputs.astype(np.float64)
    if decision["activation"] == "softmax":
        probs = np.exp(outputs - outputs.max(0))
        probs /= probs.sum(0)
    else:
        probs = 1 / (1 + np.exp(-outputs))
    values = decision["values"]
    free = 0.5 if decision["overlaps"] or len(values) == 1 else 0.0
    least = np.broadcast_to(decision["thresholds"] or [free], len(values))
    found = np.zeros(outputs.shape[1], int)
    for voxel in range(outputs.shape[1]):
        column = probs[:, voxel]
        if decision["overlaps"]:
            for value, limit, probability in zip(values, least, column, strict=True):
                found[voxel] = value if probability >= limit else found[voxel]
        elif column.max() >= least[column.argmax()]:
            found[voxel] = values[column.argmax()]
    return found


def decided_by(steps, outputs):
    pred = steps({"pred": torch.as_tensor(outputs)[:, :, None, None]})["pred"]
    return np.asarray(pred).ravel().astype(int)


def outputs_for(decision):
    rng = np.random.default_rng(0)
    return rng.normal(0, 2, (len(decision["values"]), 500)).astype(np.float32)


@pytest.mark.parametrize("bundle", SEGMENTATIONS, ids=lambda bundle: bundle.name)
def test_the_stated_decision_is_the_config_s(bundle):
    decision = bundle.metadata["medvol"]["decision"]
    steps = bundle.parser("train").get_parsed_content("validate#postprocessing")
    outputs = outputs_for(decision)
    found = decided_by(steps, outputs)
    assert np.array_equal(found, decide(decision, outputs))
    assert set(found) == {0, *decision["values"]}


def test_there_are_decisions_of_every_kind():
    assert len(SEGMENTATIONS) >= 6
    stated = [bundle.metadata["medvol"]["decision"] for bundle in SEGMENTATIONS]
    assert {(d["activation"], d["overlaps"], d["thresholds"] is None) for d in stated} == {
        ("softmax", False, True), ("sigmoid", False, False), ("sigmoid", True, True)
    }  # fmt: skip


def test_verify_names_a_decision_and_a_patch_that_are_stated_otherwise(tmp_path):
    from medvol.bundle import fork, verify

    folder = fork("hippocampus_mri_slice_segmentation", tmp_path / "my_segmentation")
    assert verify(load(folder, is_trusted=True)) == []
    path = folder / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["decision"]["thresholds"] = [0.25]
    content["inferer"]["roi_size"][0] += 8
    path.write_text(json.dumps(content))
    faults = verify(load(folder, is_trusted=True))
    assert len(faults) == 2
    assert "decides by" in faults[1]
    assert "predicts patches of" in faults[0]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_facts_are_the_values_that_the_bundle_was_written_from(bundle):
    facts = bundle.metadata["medvol"]
    source = shipped_root() / facts["source"]
    assert source.parent == configs_dir() / "bundles"
    values = read_values(source)
    size = bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert facts["patch_size"] == size == values["roi_size"][: len(size)]
    assert facts["spacing_mm"] == values.get("spacing_mm")
    assert facts["field_of_view"] in ("crop", "whole")
    assert bundle.labels == {int(k): v for k, v in bundle.config("inference")["labels"].items()}


def test_sides_follow_the_names(tmp_path):
    source = tmp_path / "lungs_ct_segmentation.yaml"
    text = (configs_dir() / "bundles" / "spleen_ct_segmentation.yaml").read_text()
    names = "labels: {1: left_lung, 2: right_lung, 3: aorta, 4: lesion}"
    source.write_text("\n".join(names if line.startswith("labels:") else line
                                for line in text.splitlines()))  # fmt: skip
    source.with_suffix(".md").write_text("# Lungs\n")
    facts = json.loads(render(source)["configs/metadata.json"])["medvol"]
    assert facts["sides"] == {"1": "left", "2": "right", "3": "midline", "4": "unsided"}
    assert facts["source"] == source.name
    assert facts["name"] == "lungs_ct_segmentation"


def test_a_fork_states_its_own_name(tmp_path):
    from medvol.bundle import fork

    folder = fork("spleen_ct_segmentation", tmp_path / "my_segmentation")
    assert load(folder, is_trusted=True).metadata["medvol"]["name"] == "my_segmentation"
    for task in ("train", "inference"):
        root = json.loads((folder / "configs" / f"{task}.json").read_text())["bundle_root"]
        assert (root["name"], root["is_shipped"]) == ("my_segmentation", False)
