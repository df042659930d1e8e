"""The whole way on data that anybody can draw: train two minutes, infer, score."""

from __future__ import annotations

import csv
import importlib.util

import numpy as np
import pytest
import torch

from medvol.bundle import fork, load
from medvol.cli.main import main
from medvol.engines import save_checkpoint
from medvol.io import read_image
from medvol.runners import demo
from tests.e2e.test_bundle_run import run


@pytest.mark.slow
def test_two_minutes_of_training_find_the_organs_of_unseen_phantoms(tmp_path):
    dice = demo.train_phantom(tmp_path, lambda line: None)
    assert set(dice) == {"liver", "spleen"}
    assert np.mean(list(dice.values())) >= 0.9
    assert (tmp_path / "phantom" / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.skipif(importlib.util.find_spec("nilearn") is None, reason="needs the demo extra")
def test_brain_and_hippocampi_of_the_template_are_found(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path)]) == 0
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    template = read_image(demo.template_path())
    for name in demo.CASES:
        mask = read_image(tmp_path / "prediction" / name / "seg.nii.gz")
        assert mask.shape == template.shape
        assert torch.allclose(mask.affine, template.affine)
    with (tmp_path / "prediction" / "volumes.csv").open() as file:
        rows = list(csv.DictReader(file))
    ml = {(row["case"], row["structure"]): float(row["volume_ml"]) for row in rows}
    # Adult hippocampi hold about 3 to 5 ml each, and the template is nearly symmetric.
    at = "mni152_hippocampi"
    sides = [ml[at, f"{side} anterior"] + ml[at, f"{side} posterior"]
             for side in ("left", "right")]  # fmt: skip
    assert all(3.0 < side < 5.5 for side in sides)
    assert abs(sides[0] - sides[1]) < 0.5
    whole = {name: volume for (case, name), volume in ml.items() if case == "mni152_brain"}
    assert len(whole) == 32
    assert min(whole.values()) > 0
    for name in ("cerebral white matter", "cerebellum cortex", "thalamus", "putamen"):
        left, right = whole[f"left {name}"], whole[f"right {name}"]
        assert abs(left - right) < 0.15 * (left + right)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<h2>mni152_") == 2


@pytest.mark.slow
def test_spleen_recipe_keeps_the_geometry_of_a_real_ct(shared_data, tmp_path):
    folder = fork("spleen_ct_segmentation", tmp_path / "random_segmentation")
    torch.manual_seed(0)
    network = load(folder, is_trusted=True).parser("inference").get_parsed_content("network_def")
    save_checkpoint(folder / "models" / "model.pt", network.state_dict())
    (tmp_path / "in").mkdir()
    source = shared_data / "ct" / "spleen_ct.nii.gz"
    (tmp_path / "in" / source.name).symlink_to(source)
    run("inference", folder, dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    mask = read_image(tmp_path / "out" / "spleen_ct_seg.nii.gz")
    image = read_image(source)
    assert mask.shape == image.shape
    assert torch.allclose(mask.affine, image.affine, atol=1e-3)
