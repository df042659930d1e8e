"""Inference, evaluation and training through MONAI's own entry point, inside one process."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from medvol.bundle import fork, load
from medvol.core.errors import refusal_in
from medvol.engines import load_checkpoint
from medvol.evaluation import MaskOptions, evaluate_segmentation, read_results
from tests.blobs import make_blob, write_blobs

BUNDLE = "hippocampus_mri_segmentation"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def run(task: str, bundle: Path | None = None, **options) -> ConfigWorkflow:
    config = (bundle or load(BUNDLE).path) / "configs" / f"{task}.json"
    workflow = ConfigWorkflow(config_file=str(config), logging_file=False, **options)
    workflow.initialize()
    workflow.run()
    return workflow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_blobs(tmp_path_factory.mktemp("blobs"), n=6)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The shipped bundle's configs with a network that trains in moments."""
    return fork(BUNDLE, tmp_path_factory.mktemp("fork") / "small_segmentation")


SMALL = {"network_def#channels": [4, 6, 8], "val_interval": 1, "folds": 3, "fold": 0}


def weights_after(bundle, data, out, **options):
    run("train", bundle, dataset_dir=str(data), output_dir=str(out), **{**SMALL, **options})
    return load_checkpoint(out / "last.pt")


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_one_seed_gives_one_result_whatever_the_workers(small, data, tmp_path):
    zero = weights_after(small, data, tmp_path / "a", max_epochs=2)
    two = weights_after(small, data, tmp_path / "b", max_epochs=2, num_workers=2)
    other = weights_after(small, data, tmp_path / "c", max_epochs=2, seed=1)
    assert same(zero["objects"], two["objects"])
    assert not same(zero["objects"]["network"], other["objects"]["network"])


def test_resumed_run_equals_the_straight_run(small, data, tmp_path):
    schedule = {"lr_scheduler#t_total": 6, "lr_scheduler#warmup_steps": 0}
    straight = weights_after(small, data, tmp_path / "s", max_epochs=3, **schedule)
    weights_after(small, data, tmp_path / "r", max_epochs=1, **schedule)
    resumed = weights_after(small, data, tmp_path / "r", max_epochs=3, resume=True, **schedule)
    assert same(straight["objects"], resumed["objects"])
    assert straight["best"] == resumed["best"]
    with (tmp_path / "r" / "epochs.csv").open() as handle:
        epochs = [row["epoch"] for row in csv.DictReader(handle)]
    assert epochs == ["1", "2", "3"]


def test_second_run_into_one_folder_is_refused(small, data, tmp_path):
    weights_after(small, data, tmp_path / "a", max_epochs=1)
    with pytest.raises(RuntimeError) as caught:
        weights_after(small, data, tmp_path / "a", max_epochs=1)
    assert "--resume true" in str(refusal_in(caught.value))


def test_masks_mirror_the_input_tree_on_the_input_grid(tmp_path):
    affine = np.array([[0, 0, -1.0, 9], [1.0, 0, 0, -4], [0, -1.0, 0, 3], [0, 0, 0, 1]])
    shapes = {"a.nii.gz": np.eye(4), "sub/a.nii.gz": affine}
    for index, (name, grid) in enumerate(shapes.items()):
        image, _ = make_blob(index)
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = image if index == 0 else image.transpose(1, 2, 0)[:, ::-1, ::-1]
        volume = nibabel.Nifti1Image(np.ascontiguousarray(array), grid)
        volume.header.set_xyzt_units("mm")
        nibabel.save(volume, path)
    run("inference", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    found = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.nii.gz"))
    assert [str(path) for path in found] == ["a_seg.nii.gz", "sub/a_seg.nii.gz"]
    for name in shapes:
        mask = nibabel.load(tmp_path / "out" / name.replace(".nii", "_seg.nii"))
        image = nibabel.load(tmp_path / "in" / name)
        assert mask.shape == image.shape
        assert np.allclose(mask.affine, image.affine, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_copied_bundle_runs_from_anywhere(tmp_path, monkeypatch):
    folder = fork(BUNDLE, tmp_path / "elsewhere" / "my_segmentation")
    image, _ = make_blob(3)
    (tmp_path / "in").mkdir()
    volume = nibabel.Nifti1Image(image, np.eye(4))
    volume.header.set_xyzt_units("mm")
    nibabel.save(volume, tmp_path / "in" / "x.nii.gz")
    monkeypatch.chdir(tmp_path)
    run("inference", folder, dataset_dir="in", output_dir="out")
    assert (tmp_path / "out" / "x_seg.nii.gz").is_file()


def test_evaluation_scores_every_case_and_label(data, tmp_path):
    workflow = run("evaluate", dataset_dir=str(data), output_dir=str(tmp_path / "out"))
    with (tmp_path / "out" / "scores.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {row["case"] for row in rows} == {f"blob_{i:03d}" for i in range(6)}
    assert {row["label"] for row in rows} == {"anterior", "posterior"}
    dice = [float(row["value"]) for row in rows if row["metric"] == "dice"]
    metrics = workflow.parser.get_parsed_content("evaluator").state.metrics
    assert len(dice) == 12
    assert metrics["val_mean_dice"] == pytest.approx(np.mean(dice), abs=1e-6)


def test_the_bundle_and_the_verb_score_one_prediction_alike(data, tmp_path):
    # The verb has the masks as files and the names from the data set, the bundle both in memory.
    run("inference", dataset_dir=str(data / "imagesTr"), output_dir=str(tmp_path / "masks"))
    run("evaluate", dataset_dir=str(data), output_dir=str(tmp_path / "bundle"))
    options = MaskOptions(tmp_path / "masks", data, tmp_path / "verb", resamples=50)
    evaluate_segmentation(options)
    for name in ("scores.csv", "volumes.csv", "cases.csv"):
        texts = [(tmp_path / way / name).read_text() for way in ("bundle", "verb")]
        assert texts[0] == texts[1]
        assert texts[0].count("\n") > 6
    assert len(read_results(tmp_path / "bundle").table) == 3 * 4


def test_bundle_without_weights_says_so(data, tmp_path):
    folder = fork(BUNDLE, tmp_path / "bare_segmentation")
    shutil.rmtree(folder / "models")
    with pytest.raises(RuntimeError) as caught:
        run("inference", folder, dataset_dir=str(data), output_dir=str(tmp_path / "out"))
    assert "no such weights file" in str(refusal_in(caught.value))
