"""Bundles as the model zoo writes them run through their own evaluator, with right labels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medvol.cli.main import main
from tests.bundles.zoo_style import write_brats, write_spleen

AFFINE = np.array([[0, 1.2, 0, 5], [-1.0, 0, 0, 9], [0, 0, 2.5, -4], [0, 0, 0, 1]])
VOXEL_ML = 1.2 * 2.5 / 1000


def write_scan(path: Path, shape: tuple[int, ...]) -> Path:
    values = np.random.default_rng(0).normal(50, 80, shape).astype(np.float32)
    image = nib.Nifti1Image(values, AFFINE)  # pyright: ignore[reportPrivateImportUsage]
    image.header.set_xyzt_units("mm")
    nib.save(image, path)  # pyright: ignore[reportPrivateImportUsage]
    return path


@pytest.fixture
def ct(tmp_path):
    return write_scan(tmp_path / "ct.nii.gz", (40, 44, 26))


@pytest.fixture
def mr(tmp_path):
    return write_scan(tmp_path / "mr.nii.gz", (32, 40, 24, 4))


def predicted(bundle: Path, image: Path, out: Path) -> tuple[np.ndarray, list[dict]]:
    words = ["predict", str(bundle), str(image), "-o", str(out), "--trust-bundle"]
    assert main(words) == 0
    case = out / image.name.removesuffix(".nii.gz")
    mask = nib.load(case / "seg.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    record = json.loads((case / "prediction.json").read_text())
    return np.asarray(mask.dataobj), record["structures"]  # pyright: ignore[reportAttributeAccessIssue]


def by_hand(bundle: Path, image: Path) -> np.ndarray:
    """The zoo's own components, one after the other."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    parser["device"] = torch.device("cpu")
    steps = parser.get("postprocessing#transforms")
    parser["postprocessing#transforms"] = [s for s in steps if s["_target_"] != "SaveImaged"]
    data = parser.get_parsed_content("preprocessing")({"image": str(image)})
    network = parser.get_parsed_content("network_def").eval()
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network.load_state_dict(state.get("model", state))
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    return np.asarray(parser.get_parsed_content("postprocessing")(data)["pred"])


def test_a_softmax_bundle_gives_its_own_evaluators_mask(tmp_path, ct):
    bundle = write_spleen(tmp_path)
    mask, rows = predicted(bundle, ct, tmp_path / "out")
    np.testing.assert_array_equal(mask, by_hand(bundle, ct)[0])
    assert [(row["label"], row["name"]) for row in rows] == [(1, "spleen")]
    assert rows[0]["voxels"] == int((mask == 1).sum()) > 0


def test_overlapping_channels_keep_their_names_and_volumes(tmp_path, mr):
    bundle = write_brats(tmp_path)
    mask, rows = predicted(bundle, mr, tmp_path / "out")
    channels = by_hand(bundle, mr) > 0
    assert [row["name"] for row in rows] == ["Tumor core", "Whole tumor", "Enhancing tumor"]
    for row, channel in zip(rows, channels, strict=True):
        assert row["voxels"] == int(channel.sum())
        assert row["volume_ml"] == pytest.approx(channel.sum() * VOXEL_ML, abs=1e-4)
    np.testing.assert_array_equal(mask > 0, channels.any(0))
    smallest = min(rows, key=lambda row: row["voxels"])
    np.testing.assert_array_equal(mask == smallest["label"], channels[smallest["label"] - 1])


def test_painted_values_are_not_called_by_the_names_of_channels(tmp_path, mr):
    mask, rows = predicted(write_brats(tmp_path, is_painted=True), mr, tmp_path / "out")
    assert {row["label"] for row in rows} == set(np.unique(mask).tolist()) - {0}
    assert all(row["name"] == f"label {row['label']}" for row in rows)


@pytest.mark.parametrize("write", [write_spleen, write_brats])
def test_an_export_is_the_same_network(tmp_path, ct, mr, capsys, write):
    bundle, case = write(tmp_path), ct if write is write_spleen else mr
    words = ["export", str(bundle), "--to", "torchscript", "--trust-bundle", "--cases", str(case)]
    assert main([*words, "-o", str(tmp_path / "e"), "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["exports"]
    assert made["cases"]
    assert all(row["is_equivalent"] for row in made["cases"])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--max-ram", "2GB"], "max-ram"),
        (["--uncertainty"], "uncertainty"),
        (["--format", "probabilities"], "probabilities"),
        (["--tta"], "tta"),
    ],
)
def test_what_its_evaluator_cannot_do_is_rejected_in_one_line(tmp_path, ct, capsys, words, fault):
    bundle = write_spleen(tmp_path)
    given = ["predict", str(bundle), str(ct), "-o", str(tmp_path / "out"), "--trust-bundle"]
    assert main([*given, *words]) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("medvol:")]
    assert fault in line
    assert not list((tmp_path / "out").glob("*"))


def test_without_trust_and_without_weights_nothing_is_predicted(tmp_path, ct, capsys):
    bundle = write_spleen(tmp_path)
    words = ["predict", str(bundle), str(ct), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--trust-bundle" in capsys.readouterr().err
    (bundle / "models" / "model.pt").unlink()
    assert main([*words, "--trust-bundle"]) == 2
    assert "model.pt" in capsys.readouterr().err
