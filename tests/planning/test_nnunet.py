"""Networks that nnU-Net itself trained, imported: same preprocessing, same logits.

The golden files are nnU-Net 2.8.1's own output, see ``tools/nnunet_golden.py``: four steps of a
plain and of a residual-encoder U-Net, with a transposed, anisotropic plan.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from medvol.bundle import load
from medvol.bundle.verify import verify
from medvol.core.errors import ConfigError, MissingInputError, UnsafeFileError, WeightsError
from medvol.planning import import_nnunet
from medvol.planning.nnunet_files import read_checkpoint, read_model
from medvol.transforms.nnunet import resampled, slice_axis

GOLDEN = Path(__file__).parents[1] / "golden" / "nnunet"
MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"
KINDS = ["plain", "residual"]


def ours(array: np.ndarray, axes: tuple[int, ...], lead: int) -> np.ndarray:
    """nnU-Net's array in our order of axes."""
    return array.transpose(*range(lead), *(lead + axis for axis in axes))


@pytest.fixture(params=KINDS)
def imported(request, tmp_path):
    out = tmp_path / "blobs_segmentation"
    import_nnunet(GOLDEN / request.param, out, "hippocampus")
    expected = np.load(GOLDEN / request.param / "expected.npz")
    return load(out, is_trusted=True), expected, read_model(
        GOLDEN / request.param, None, "checkpoint_final.pth").axes  # fmt: skip


def test_preprocessed_image_and_logits_are_nnunets_own(imported):
    bundle, expected, axes = imported
    parser = bundle.parser("inference", device="cpu")
    found = parser.get_parsed_content("preprocessing")({"image": str(GOLDEN / "image.nii.gz")})
    image = torch.as_tensor(found["image"])
    want = ours(expected["data"], axes, 1)
    assert tuple(image.shape) == want.shape
    assert float(np.abs(image.numpy() - want).max()) <= 1e-4
    logits = ours(expected["logits"], axes, 2)
    window = image[None][(..., *(slice(0, n) for n in logits.shape[2:]))]
    with torch.no_grad():
        got = bundle.network()(window.as_subclass(torch.Tensor)).numpy()
    assert got.shape == logits.shape
    assert float(np.abs(logits).max()) > 0.05
    assert float(np.abs(got - logits).max()) <= 1e-4


def test_masks_are_nnunets_own(imported, tmp_path):
    from medvol.runners import PredictOptions, Session

    bundle, expected, _ = imported
    asked = PredictOptions(str(bundle.path), str(tmp_path), trust_bundle=True, tta=False)
    session = Session(asked)
    data = session.preprocessing({"image": str(GOLDEN / "image.nii.gz")})
    found, want = session.predict(data).labels, expected["segmentation"]
    # nnU-Net sums in half precision, which loses the corners, where weights are 1e-7.
    assert (found == want).mean() > 0.995
    inner = (slice(6, -3), slice(4, -4), slice(3, -3))
    assert (found[inner] == want[inner]).mean() > 0.999
    assert len(np.unique(want[inner])) > 1
    assert not found[:2].any(), "outside of nnU-Net's crop"


def test_imported_bundle_is_sound_and_its_masks_lie_on_the_image(imported, tmp_path):
    from medvol.cli.main import main
    from medvol.io import read_image

    bundle, _, _ = imported
    assert verify(bundle) == []
    words = ["predict", str(bundle.path), str(GOLDEN / "image.nii.gz"), "-o", str(tmp_path / "out"),
             "--trust-bundle", "--device", "cpu"]  # fmt: skip
    assert main(words) == 0
    mask = read_image(next((tmp_path / "out").rglob("seg.nii.gz")))
    image = read_image(GOLDEN / "image.nii.gz")
    assert mask.shape == image.shape
    assert torch.allclose(mask.affine, image.affine, atol=1e-4)
    assert set(torch.unique(mask).tolist()) <= {0, 1, 2}


def test_forbidden_mirrors_are_left_out_and_said(tmp_path):
    found = import_nnunet(GOLDEN / "plain", tmp_path / "a_segmentation", "hippocampus")
    config = load(found.folder, is_trusted=True).config("inference")
    assert config["inferer"]["tta"] == ["left-right"]
    assert len(found.notes) == 2
    assert any("anterior-posterior" in note for note in found.notes)


def test_several_folds_become_one_network_that_averages_logits(tmp_path):
    source = tmp_path / MODEL
    shutil.copytree(GOLDEN / "plain" / MODEL, source)
    shutil.copytree(source / "fold_0", source / "fold_1")
    path = source / "fold_1" / "checkpoint_final.pth"
    state = read_checkpoint(path)
    state["network_weights"] = {k: v * 1.1 for k, v in state["network_weights"].items()}
    torch.save({k: state[k] for k in ("network_weights", "init_args")}, path)
    networks = {}
    for name, folds in (("one", [0]), ("two", [1]), ("both", None)):
        out = tmp_path / f"{name}_segmentation"
        import_nnunet(source, out, "hippocampus", folds=folds)
        networks[name] = load(out, is_trusted=True).network()
    x = torch.randn(1, 1, 16, 16, 8)
    with torch.no_grad():
        mean = (networks["one"](x) + networks["two"](x)) / 2
        torch.testing.assert_close(networks["both"](x), mean, rtol=0, atol=1e-5)


def test_verb_imports_and_refuses_half_a_question(tmp_path, capsys):
    from medvol.cli.main import main

    words = ["plan", "--from-nnunet", str(GOLDEN / "plain"), "-o", str(tmp_path / "v_segmentation")]
    assert main(words) == 2
    assert "--body-part" in capsys.readouterr().err
    assert main([*words, "--body-part", "hippocampus", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folds"] == ["0"]
    imported = load(tmp_path / "v_segmentation", is_trusted=True)
    assert imported.metadata["medvol"]["modality"] == "MR"
    words[-1] = str(tmp_path / "t_segmentation")
    words += ["--body-part", "hippocampus"]
    assert main([*words, "--budget", "2h"]) == 2
    assert "--budget cannot be combined with --from-nnunet" in capsys.readouterr().err
    assert main([*words, "--modality", "PT"]) == 0
    found = load(tmp_path / "t_segmentation", is_trusted=True).metadata["medvol"]
    assert found["modality"] == "PT"
    assert main(["plan", "-o", str(tmp_path / "w_segmentation")]) == 2
    assert "--from-nnunet" in capsys.readouterr().err


class Bomb:
    def __reduce__(self):
        return (print, ("code ran",))


def test_checkpoint_that_holds_code_is_refused_unread(tmp_path, capsys):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "init_args": {}, "logging": Bomb()}, path)
    with pytest.raises(UnsafeFileError, match="running code"):
        read_checkpoint(path)
    assert "code ran" not in capsys.readouterr().out


def test_numpy_scalars_of_any_numpy_are_read(tmp_path):
    path = tmp_path / "c.pth"
    state = {"network_weights": {"a": torch.ones(1)}, "init_args": {}, "best": np.float64(0.5)}
    torch.save(state, path)
    assert read_checkpoint(path)["best"] == 0.5
    with zipfile.ZipFile(path) as made:
        members = {info.filename: made.read(info) for info in made.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as older:
        for name, content in members.items():
            older.writestr(name, content.replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert read_checkpoint(path)["best"] == 0.5


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda m: (m / "plans.json").unlink(), MissingInputError, "plans.json"),
        (lambda m: shutil.rmtree(m / "fold_0"), MissingInputError, "checkpoint"),
        (lambda m: (m / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK"), WeightsError,
         "checkpoint"),
        (lambda m: (m / "plans.json").write_text("{"), ConfigError, "plans.json: cannot be parsed"),
        (lambda m: (m / "plans.json").write_text("{}"), ConfigError, "lacks 'configurations'"),
        (lambda m: (m / "dataset.json").write_text('{"channel_names": {"0": "x"}, "labels": {}}'),
         ConfigError, "pass --modality"),
    ],
    ids=["no plans", "no fold", "torn checkpoint", "torn plans", "empty plans", "no modality"],
)  # fmt: skip
def test_incomplete_folder_is_refused_by_the_name_of_what_is_missing(tmp_path, change, error, said):
    source = tmp_path / MODEL
    shutil.copytree(GOLDEN / "plain" / MODEL, source)
    change(source)
    with pytest.raises((error, UnsafeFileError), match=said):
        import_nnunet(source, tmp_path / "x_segmentation", "hippocampus")
    assert not (tmp_path / "x_segmentation").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("network_class_name", "some.Transformer"), ("dropout_op", "torch.nn.Dropout3d")],
)
def test_network_without_an_equal_is_refused(tmp_path, key, value):
    source = tmp_path / MODEL
    shutil.copytree(GOLDEN / "plain" / MODEL, source)
    plans = json.loads((source / "plans.json").read_text())
    arch = plans["configurations"]["3d_fullres"]["architecture"]
    (arch if key in arch else arch["arch_kwargs"])[key] = value
    (source / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ConfigError, match="no equal"):
        import_nnunet(source, tmp_path / "x_segmentation", "hippocampus")


def test_resampling_in_slices_never_mixes_them():
    array = np.arange(4, dtype=np.float32)[None, None, None] * np.ones((1, 6, 6, 1), np.float32)
    out = resampled(array, (9, 9, 8), 3, slice_axis((1, 1, 5), (0.7, 0.7, 2.5)), 0)
    assert set(np.unique(out)) == {0.0, 1.0, 2.0, 3.0}
    assert out.shape == (1, 9, 9, 8)
