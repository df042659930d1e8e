"""`medvol data synthesise`: pairs on the label map's grid, or one line and nothing written."""

import json

import nibabel as nib
import numpy as np
import pytest

from medvol.cli.main import main

OBLIQUE = np.array([[-0.9, 0.1, 0, 10], [0.1, 0.9, 0.2, -5], [0, -0.4, 2.5, 3], [0, 0, 0, 1.0]])


def write_map(path, values=None, affine=OBLIQUE):
    if values is None:
        values = np.zeros((20, 18, 12), np.int16)
        values[2:10, 3:15, 2:10], values[10:18, 3:15, 2:10], values[4:7, 5:9, 4:8] = 2, 41, 530
    nib.save(nib.Nifti1Image(values, affine), path)
    return values


def test_pairs_lie_on_the_label_maps_grid_and_are_numbered(tmp_path, capsys):
    folder, out = tmp_path / "maps", tmp_path / "out"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii"):
        write_map(folder / name)
    assert main(["data", "synthesise", str(folder), "-o", str(out), "-n", "2", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["pairs"]
    assert names == ["a_000.nii.gz", "a_001.nii.gz", "b_000.nii.gz", "b_001.nii.gz"]
    images = []
    for name in names:
        image, label = (nib.load(out / kind / name) for kind in ("images", "labels"))
        assert image.shape == label.shape == (20, 18, 12)
        assert np.allclose(image.affine, OBLIQUE, atol=1e-5)
        assert np.allclose(label.affine, OBLIQUE, atol=1e-5)
        assert set(np.unique(label.dataobj)) <= {0, 2, 41, 530}
        voxels = image.get_fdata()
        assert voxels.min() >= 0
        assert voxels.max() <= 1
        images.append(voxels)
    assert not any(np.array_equal(images[0], other) for other in images[1:])


def test_the_same_seed_writes_the_same_files_and_another_seed_others(tmp_path):
    write_map(tmp_path / "a.nii.gz")
    for seed, out in (("3", "one"), ("3", "two"), ("4", "three")):
        assert main(["data", "synthesise", str(tmp_path / "a.nii.gz"), "-o", str(tmp_path / out),
                     "--seed", seed, "--mirrored", "2:41"]) == 0  # fmt: skip
    for kind in ("images", "labels"):
        one, two, three = (nib.load(tmp_path / out / kind / "a_000.nii.gz").get_fdata()
                           for out in ("one", "two", "three"))  # fmt: skip
        assert np.array_equal(one, two)
        assert not np.array_equal(one, three)


def test_a_maps_images_depend_on_its_name_and_number_alone(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        write_map(folder / name)
    command = ["data", "synthesise", "-n", "2", "--no-deform", "-o"]
    assert main([*command, str(tmp_path / "both"), str(folder)]) == 0
    assert main([*command, str(tmp_path / "one"), str(folder / "b.nii.gz")]) == 0
    assert main([*command, str(tmp_path / "seed"), str(folder / "b.nii.gz"), "--seed", "1"]) == 0
    read = {(out, n): nib.load(tmp_path / out / "images" / f"{n}.nii.gz").get_fdata()
            for out, names in (("both", ("a_000", "a_001", "b_000", "b_001")),
                               ("one", ("b_000", "b_001")), ("seed", ("b_000", "b_001")))
            for n in names}  # fmt: skip
    for name in ("b_000", "b_001"):
        assert np.array_equal(read.pop(("both", name)), read["one", name])
    different = list(read.values())
    assert len(different) == 6
    for place, image in enumerate(different):
        assert not any(np.array_equal(image, other) for other in different[place + 1 :])


def test_without_deformation_the_label_map_is_a_copy(tmp_path):
    values = write_map(tmp_path / "a.nii.gz")
    assert main(["data", "synthesise", str(tmp_path / "a.nii.gz"), "-o", str(tmp_path / "out"),
                 "--no-deform"]) == 0  # fmt: skip
    written = np.asarray(nib.load(tmp_path / "out" / "labels" / "a_000.nii.gz").dataobj)
    assert np.array_equal(written, values)


@pytest.mark.parametrize(("values", "options", "word"), [
    (np.full((6, 6, 6), 0.5, np.float32), [], "fractions"),
    (np.full((6, 6, 6), -2, np.int16), [], "-2"),
    (np.full((6, 6, 6), 70000, np.int32), [], "70000"),
    (np.zeros((6, 6, 6, 2), np.uint8), [], "4D"),
    (None, ["--mirrored", "2-41"], "2-41"),
    (None, ["--mirrored", "2:41,41:3"], "41"),
    (None, ["--removed", "skull"], "skull"),
    (None, ["--seed=-1"], "--seed"),
    (None, ["-n", "0"], "count"),
])  # fmt: skip
def test_a_fault_is_one_line_and_nothing_is_written(tmp_path, capsys, values, options, word):
    source, out = tmp_path / "a.nii.gz", tmp_path / "out"
    write_map(source, values)
    assert main(["data", "synthesise", str(source), "-o", str(out), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line
    assert not out.exists()


@pytest.mark.parametrize("source", ["lacking", "empty", "text.nii.gz"])
def test_a_source_without_label_maps_is_one_line(tmp_path, capsys, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.nii.gz").write_text("not an image")
    assert main(["data", "synthesise", str(tmp_path / source), "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert source in line
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    write_map(tmp_path / "a.nii.gz")
    command = ["data", "synthesise", str(tmp_path / "a.nii.gz"), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err


def test_two_maps_of_one_name_are_rejected(tmp_path, capsys):
    for name in ("a.nii.gz", "a.nii"):
        write_map(tmp_path / name)
    assert main(["data", "synthesise", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "rename one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
