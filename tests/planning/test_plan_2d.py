"""Single NIfTI slices and colour images are planned, trained and predicted as 2D images."""

import json
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medvol.bundle import load, verify
from medvol.core import InputError, MissingInputError
from medvol.datasets import read_dataset
from medvol.planning import CasePrint, Request, measure, plan_dataset
from medvol.planning.fingerprint import _whole

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
#: Voxel axes in RAS millimetres of slices seen from above, the front and the side.
PLANES = {
    "axial": ((0.8, 0, 0), (0, 0.9, 0), (0, 0, 5.0)),
    "coronal": ((0.8, 0, 0), (0, 0, 0.9), (0, 5.0, 0)),
    "sagittal": ((0, 0.8, 0), (0, 0, 0.9), (5.0, 0, 0)),
}


def write_slices(folder, plane="axial", is_flat=False, n=6):
    """Bright discs in noise; X x Y x 1, or X x Y where ``is_flat``."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(PLANES[plane]).T
    rows = []
    for number in range(n):
        rng = np.random.default_rng(number)
        x, y = np.mgrid[:40, :48]
        label = ((x - 18 - number % 3) ** 2 + (y - 22) ** 2 < 64).astype(np.float32)
        image = 100 * label + rng.normal(0, 5, label.shape)
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            path = folder / part / f"s{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            voxels = array if is_flat else array[..., None]
            nifti = nibabel.Nifti1Image(voxels.astype(np.float32), affine)
            nifti.header.set_xyzt_units("mm")
            nibabel.save(nifti, path)
        rows.append(
            {"image": f"./imagesTr/s{number}.nii.gz", "label": f"./labelsTr/s{number}.nii.gz"}
        )
    (folder / "dataset.json").write_text(json.dumps({
        "name": "Discs", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "disc"},
        "numTraining": n, "numTest": 0, "training": rows, "test": [],
    }))  # fmt: skip
    return folder


def write_colours(folder, n=6):
    """Green discs on a red ground in nnU-Net's layout: three channel names, one file a case."""
    for number in range(n):
        x, y = np.mgrid[:40, :48]
        label = ((x - 18 - number % 3) ** 2 + (y - 22) ** 2 < 64).astype(np.uint8)
        image = np.stack([200 - 150 * label, 40 + 150 * label, 10 + 0 * label], -1)
        image = image + np.random.default_rng(number).integers(0, 9, image.shape)
        for name, array in (
            (f"imagesTr/c{number}_0000.png", image),
            (f"labelsTr/c{number}.png", label),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(folder / name)
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png",
        "labels": {"background": 0, "disc": 1}, "numTraining": n,
    }))  # fmt: skip
    return folder


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("is_flat", [False, True], ids=["X x Y x 1", "X x Y"])
def test_single_slices_are_planned_in_two_dimensions(tmp_path, no_trial, plane, is_flat):
    data = write_slices(tmp_path / "set", plane, is_flat)
    plan = plan_dataset(data, tmp_path / "discs", Request(600), body_part="abdomen")
    bundle = load(plan.folder, is_trusted=True)
    assert verify(bundle) == []
    train = bundle.parser("train", dataset_dir=str(data))
    assert train.get("network_def")["spatial_dims"] == 2
    sample = train.get_parsed_content("train#dataset")[0]
    assert tuple(sample["image"].shape[1:]) == tuple(plan.draft["roi_size"])
    assert set(np.unique(sample["label"].numpy())) <= {0, 1}
    across = {"axial": "superior-inferior", "coronal": "anterior-posterior",
              "sagittal": "left-right"}[plane]  # fmt: skip
    assert across not in plan.draft["flip_axes"]
    case = train.get_parsed_content("validate#dataset")[0]
    assert sorted(case["image"].shape[1:]) == [1, 40, 48]
    assert case["image"].shape[-1] == 1
    network = train.get_parsed_content("network").eval()
    logits = train.get_parsed_content("validate#inferer")(case["image"][None], network)
    assert logits.shape[2:] == case["image"].shape[1:]


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(*[st.sampled_from([1, 6, 9])] * 3), min_size=1, max_size=4),
)
def test_a_set_is_flat_exactly_if_every_case_has_one_voxel_along_the_same_axis(shapes):
    rows = [CasePrint(f"c{n}", shape, (1.0, 2.0, 3.0), 1, {1: 1}, 0, 0, True, ((0,) * 5,))
            for n, shape in enumerate(shapes)]  # fmt: skip
    manifest = None

    class Named:
        root, labels = "set", {1: "x"}

    manifest = Named()
    first = [shape.index(1) if 1 in shape else None for shape in shapes]
    if None in first:
        assert _whole(manifest, rows).dims == 3
    elif len(set(first)) > 1:
        with pytest.raises(InputError, match="single slices along different axes"):
            _whole(manifest, rows)
    else:
        found = _whole(manifest, rows)
        assert (found.dims, found.slice_axis) == (2, first[0])
        spacing = [edge for axis, edge in enumerate((1.0, 2.0, 3.0)) if axis != first[0]]
        assert list(found.spacing_mm()) == spacing


def test_one_colour_file_a_case_counts_as_the_three_channels_that_are_named(tmp_path, no_trial):
    data = write_colours(tmp_path / "set")
    fingerprint = measure(read_dataset(data))
    assert (fingerprint.dims, fingerprint.channels) == (2, 3)
    plan = plan_dataset(data, tmp_path / "discs", Request(600))
    assert (plan.draft["modality"], plan.draft["in_channels"]) == ("RGB", 3)
    assert verify(load(plan.folder, is_trusted=True)) == []


@pytest.mark.parametrize(("names", "ending"), [("RG", ".png"), ("RGB", ".nii.gz")])
def test_a_missing_channel_is_still_named_where_the_file_cannot_hold_it(tmp_path, names, ending):
    data = write_colours(tmp_path / "set")
    facts = json.loads((data / "dataset.json").read_text())
    facts["channel_names"] = dict(enumerate(names))
    facts["file_ending"] = ending
    (data / "dataset.json").write_text(json.dumps(facts))
    if ending != ".png":
        for path in [*data.rglob("*.png")]:
            path.rename(path.with_name(path.name.replace(".png", ending)))
    with pytest.raises(MissingInputError, match=rf"has 1 of {len(names)} channels"):
        read_dataset(data)


def test_locked_test_cases_are_not_measured_and_the_plan_names_their_file(tmp_path, no_trial):
    from medvol.cli.main import main

    data = write_slices(tmp_path / "set", n=10)
    file = tmp_path / "split.json"
    assert main(["data", "split", str(data), "-o", str(file), "--test", "0.2"]) == 0
    locked = {name for name, fold in json.loads(file.read_text())["place"].items() if fold == -1}
    plan = plan_dataset(data, tmp_path / "discs", Request(600), body_part="abdomen", split=file)
    rows = json.loads((plan.folder / "plan" / "fingerprint.json").read_text())["cases"]
    assert locked
    assert set(rows) == {f"s{n}" for n in range(10)} - locked
    assert f"{len(locked)} test cases are locked by {file}." in plan.notes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slices", "colours"])
def test_plan_train_and_predict_end_to_end(tmp_path, no_trial, kind):
    write = write_slices if kind == "slices" else write_colours
    data = write(tmp_path / "set")
    plan = plan_dataset(data, tmp_path / "discs", Request(600), body_part="abdomen")

    def run(task, **options):
        words = [sys.executable, "-m", "monai.bundle", "run", "--config_file",
                 str(plan.folder / "configs" / f"{task}.json")]  # fmt: skip
        words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    run("train", dataset_dir=data, output_dir=tmp_path / "run", max_epochs=1, val_interval=1)
    seen = json.loads((tmp_path / "run" / "trained_on.json").read_text())
    assert len(seen["train"]) + len(seen["validate"]) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in seen["train"])
    run("inference", dataset_dir=data / "imagesTr", output_dir=tmp_path / "out",
        checkpoint=tmp_path / "run" / "model.pt")  # fmt: skip
    found = sorted((tmp_path / "out").rglob("*.nii.gz"))
    assert len(found) == 6
    for path in found:
        image = nibabel.load(path)
        assert image.shape[:2] == ((40, 48) if kind == "slices" else (48, 40))
        if kind == "slices":
            source = nibabel.load(data / "imagesTr" / "s0.nii.gz")
            assert np.allclose(image.affine, source.affine, atol=1e-4)
