"""Whatever is written comes back where it was and as it was, in every orientation and format."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.core import Geometry, InputError, NonFiniteError, OutputError
from medvol.io import (
    MedvolReader,
    MedvolWriter,
    ReadOptions,
    read_image,
    read_scan,
    write_itk,
    write_nifti,
    write_png16,
)

SPACING = (0.7, 1.9, 4.3)
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
CODES = [p for p in itertools.product(range(3), repeat=3) if len(set(p)) == 3]
ORIENTATIONS = [(p, s) for p in CODES for s in itertools.product((1, -1), repeat=3)]
OBLIQUE = np.array([[0.8, -0.36, 0.48], [0.6, 0.48, -0.64], [0.0, 0.8, 0.6]])


def affine_of(order, signs, rotation=np.eye(3)):
    axes = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        axes[world, axis] = sign * SPACING[axis]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation @ axes, (-91.5, 33.25, 402.125)
    return affine


def write(path, array, affine):
    is_nifti = path.name.endswith((".nii", ".nii.gz"))
    return (write_nifti if is_nifti else write_itk)(path, array, affine)


def assert_same_in_world(scan, array, affine):
    index = np.array(list(itertools.product(*map(range, array.shape))))
    points = np.c_[index, np.ones(len(index))] @ affine.T
    found = points @ np.linalg.inv(scan.affine).T
    nearest = np.rint(found[:, :3]).astype(int)
    assert np.abs(found[:, :3] - nearest).max() < 1e-3
    assert np.array_equal(scan.array[0][tuple(nearest.T)], array[tuple(index.T)])


def test_there_are_48_orientations():
    codes = {Geometry((2, 2, 2), affine_of(*o)).axis_codes for o in ORIENTATIONS}
    assert len(codes) == 48


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_orientation_comes_back_in_world_space(tmp_path, phantom, suffix):
    for number, (order, signs) in enumerate(ORIENTATIONS):
        for rotation in (np.eye(3), OBLIQUE):
            affine = affine_of(order, signs, rotation)
            path = write(tmp_path / f"r{number}{suffix}", phantom, affine)
            assert_same_in_world(read_scan(path), phantom, affine)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 5), (7, 6, 1), (7, 1, 1)])
def test_single_slices_and_voxels_keep_their_spacing(tmp_path, phantom, suffix, shape):
    array = phantom[tuple(slice(n) for n in shape)]
    affine = affine_of((2, 0, 1), (1, -1, 1), OBLIQUE)
    scan = read_scan(write(tmp_path / f"s{suffix}", array, affine))
    assert_same_in_world(scan, array, affine)
    assert np.allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), SPACING, rtol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_libraries_agree_on_what_was_written(tmp_path, phantom, suffix):
    import nibabel as nib
    import nrrd
    import SimpleITK as sitk

    affine = affine_of((1, 0, 2), (1, 1, -1), OBLIQUE)
    path = write(tmp_path / f"o{suffix}", phantom, affine)
    image = sitk.ReadImage(str(path))
    for index in ((0, 0, 0), (3, 2, 1), (6, 5, 4)):
        lps = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(np.multiply(lps, (-1, -1, 1)), (affine @ [*index, 1])[:3], atol=1e-3)
        assert image[index] == phantom[index]
    if suffix.startswith(".nii"):
        assert np.allclose(nib.load(path).affine, affine, atol=1e-4)
        assert int(nib.load(path).header["qform_code"]) == 1
    if suffix == ".nrrd":
        assert np.array_equal(nrrd.read(str(path))[0], phantom)


@settings(max_examples=40)
@given(angles=st.tuples(*[st.floats(-3, 3)] * 3), spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
       origin=st.tuples(*[st.floats(-900, 900)] * 3))  # fmt: skip
def test_any_rotation_survives_any_format(tmp_path_factory, angles, spacing, origin):
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() * spacing
    affine[:3, 3] = origin
    array = np.arange(24).reshape(2, 3, 4)
    folder = tmp_path_factory.mktemp("any")
    for suffix in (".nii", ".nrrd", ".mha"):
        scan = read_scan(write(folder / f"a{suffix}", array, affine))
        assert np.abs(scan.affine - affine).max() < 1e-3
        assert np.array_equal(scan.array[0], array)


def test_a_sheared_grid_fits_nifti_only(tmp_path, phantom):
    sheared = affine_of((0, 1, 2), (1, 1, 1))
    sheared[1, 2] = 0.9
    scan = read_scan(write_nifti(tmp_path / "s.nii", phantom, sheared))
    assert_same_in_world(scan, phantom, sheared)
    with pytest.raises(OutputError, match="sheared"):
        write_itk(tmp_path / "s.nrrd", phantom, sheared)


@pytest.mark.parametrize(("values", "dtype"), [
    ([0, 1, 2], np.uint8), ([0.0, 1.0, 255.0], np.uint8), ([0, 256], np.uint16),
    ([-1, 5], np.int8), ([-200, 5], np.int16), ([0, 70000], np.uint32), ([0.25, 1], np.float32),
    ([True, False], np.uint8),
])  # fmt: skip
def test_whole_numbers_are_stored_in_the_smallest_integer_type(tmp_path, values, dtype):
    import nibabel as nib

    array = np.array(values)[:, None, None]
    path = write_nifti(tmp_path / "d.nii.gz", array, np.eye(4))
    assert nib.load(path).get_data_dtype() == dtype
    assert np.array_equal(read_scan(path).array[0], array.astype(np.float32))


def test_what_cannot_be_stored_is_refused(tmp_path):
    target = tmp_path / "x.nii.gz"
    with pytest.raises(NonFiniteError, match=r"x\.nii\.gz"):
        write_nifti(target, np.full((2, 2, 2), np.nan), np.eye(4))
    with pytest.raises(NonFiniteError, match=r"x\.nii\.gz: its affine"):
        write_nifti(target, np.zeros((2, 2, 2)), np.full((4, 4), np.nan))
    for affine in (np.zeros((4, 4)), np.eye(3)):
        with pytest.raises(OutputError, match=r"x\.nii\.gz"):
            write_nifti(target, np.zeros((2, 2, 2)), affine)
    with pytest.raises(OutputError, match="do not fit"):
        write_nifti(target, np.full((2, 2, 2), 300), np.eye(4), dtype=np.uint8)
    with pytest.raises(OutputError, match="ends in"):
        write_nifti(tmp_path / "x.txt", np.zeros((2, 2, 2)), np.eye(4))
    assert not list(tmp_path.iterdir())


def test_sixteen_bit_png_comes_back(tmp_path):
    array = np.arange(70).reshape(10, 7) * 900
    path = write_png16(tmp_path / "p.png", array)
    assert np.array_equal(read_scan(path).array[0], array)
    with pytest.raises(OutputError, match="do not fit"):
        write_png16(tmp_path / "q.png", array * 90)


def test_nrrd_channels_and_time_are_refused_or_read_on_request(tmp_path, phantom):
    import nrrd

    header = {"space": "left-posterior-superior", "kinds": ["list", *["domain"] * 3],
              "space directions": [[np.nan] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]],
              "space origin": [0, 0, 0]}  # fmt: skip
    nrrd.write(str(tmp_path / "c.nrrd"), np.stack([phantom, -phantom]), header)
    with pytest.raises(InputError, match="channels"):
        read_scan(tmp_path / "c.nrrd")
    got = read_scan(tmp_path / "c.nrrd", ReadOptions(channels=True))
    assert np.array_equal(got.array, np.stack([phantom, -phantom]))
    assert np.allclose(np.diag(got.affine), (-1, -1, 1, 1))


def nrrd_text(**fields):
    lines = {"type": "short", "dimension": "3", "sizes": "2 2 2", "encoding": "raw",
             "endian": "little", "space": "left-posterior-superior",
             "space directions": "(1,0,0) (0,1,0) (0,0,1)", "space origin": "(0,0,0)",
             **fields}  # fmt: skip
    text = "".join(f"{k}: {v}\n" for k, v in lines.items() if v is not None)
    return b"NRRD0004\n" + text.encode() + b"\n" + b"\1\0" * 8


@pytest.mark.parametrize(("fields", "fault"), [
    ({"space": None}, "orientation unknown"), ({"space directions": None}, "orientation unknown"),
    ({"space directions": "(1,0,0) (1,0,0) (0,0,1)"}, "singular"),
    ({"space directions": "(nan,0,0) (0,1,0) (0,0,1)"}, "non-finite"),
    ({"space directions": "(0,0,0) (0,1,0) (0,0,1)"}, "singular"),
    ({"space origin": None}, "origin"), ({"sizes": "2 2 3"}, "truncated"),
    ({"sizes": "2 2 0"}, "zero"), ({"sizes": "9999999 9999999 99"}, "too large"),
    ({"sizes": "2 2"}, "disagree"), ({"type": "block"}, "type"), ({"encoding": "hex"}, "encoding"),
    ({"endian": None}, "endian"), ({"encoding": "gzip"}, "corrupt"),
    ({"data file": "../secret.raw"}, "outside its own folder"),
    ({"data file": "/etc/passwd"}, "outside its own folder"),
    ({"data file": "LIST"}, "several files"),
])  # fmt: skip
def test_broken_nrrd_headers_are_refused(tmp_path, fields, fault):
    path = tmp_path / "b.nrrd"
    path.write_bytes(nrrd_text(**fields))
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(path)
    assert "b.nrrd" in str(refusal.value)


def meta_text(**fields):
    lines = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True",
             "BinaryDataByteOrderMSB": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1",
             "Offset": "0 0 0", "ElementSpacing": "1 1 1", "DimSize": "2 2 2",
             "ElementType": "MET_SHORT", **fields}  # fmt: skip
    lines["ElementDataFile"] = lines.pop("ElementDataFile", "LOCAL")
    return "".join(f"{k} = {v}\n" for k, v in lines.items() if v is not None).encode() + b"\1\0" * 8


@pytest.mark.parametrize(("fields", "fault"), [
    ({"TransformMatrix": None}, "orientation unknown"), ({"ElementSpacing": None}, "spacing"),
    ({"ElementSpacing": "1 1 0"}, "singular|zero"), ({"ElementSpacing": "1 1 nan"}, "non-finite"),
    ({"DimSize": "2 2 9"}, "truncated"), ({"DimSize": "2 -2 2"}, "whole numbers"),
    ({"NDims": "4", "DimSize": "2 2 2 2"}, "dimensions"), ({"ElementType": "MET_OTHER"}, "type"),
    ({"CompressedData": "True"}, "corrupt"), ({"DimSize": "99999 99999 9999"}, "too large"),
    ({"ElementDataFile": "/etc/passwd"}, "outside"), ({"ElementDataFile": "../x.raw"}, "outside"),
    ({"ElementNumberOfChannels": "2", "DimSize": "2 2 1"}, "channels"),
])  # fmt: skip
def test_broken_metaimage_headers_are_refused(tmp_path, fields, fault):
    path = tmp_path / "b.mha"
    path.write_bytes(meta_text(**fields))
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(path)
    assert "b.mha" in str(refusal.value)


def test_detached_voxels_beside_their_header_load(tmp_path):
    (tmp_path / "v.raw").write_bytes(b"\1\0" * 8)
    (tmp_path / "v.mhd").write_bytes(meta_text(ElementDataFile="v.raw").split(b"\1\0")[0])
    (tmp_path / "v.nhdr").write_bytes(nrrd_text(**{"data file": "v.raw"}).split(b"\n\n")[0])
    for name in ("v.mhd", "v.nhdr"):
        assert (read_scan(tmp_path / name).array == 1).all()


@given(data=st.data())
def test_no_byte_flip_crashes_the_text_headers(tmp_path_factory, data):
    from medvol.core import MedvolError

    folder = tmp_path_factory.mktemp("fuzz")
    for name, whole in (("f.nrrd", nrrd_text()), ("f.mha", meta_text())):
        raw = bytearray(whole)
        for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=5)):
            raw[at] = data.draw(st.integers(0, 255))
        (folder / name).write_bytes(bytes(raw))
        try:
            scan = read_scan(folder / name)
        except (MedvolError, UserWarning):
            continue
        assert np.isfinite(scan.array).all()


def test_monai_reads_and_writes_through_the_gate(tmp_path, phantom):
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImaged

    affine = affine_of((0, 1, 2), (-1, -1, 1))
    path = write_nifti(tmp_path / "in" / "case.nii.gz", phantom, affine)
    chain = Compose([
        LoadImaged("image", reader="medvol.io.MedvolReader"), EnsureChannelFirstd("image"),
        SaveImaged("image", output_dir=tmp_path / "out", output_postfix="seg", print_log=False,
                   writer="medvol.io.MedvolWriter", separate_folder=False),
    ])  # fmt: skip
    image = chain({"image": path})["image"]
    assert image.shape == (1, *phantom.shape)
    assert np.allclose(image.affine, affine, atol=1e-4)
    back = read_scan(tmp_path / "out" / "case_seg.nii.gz")
    assert_same_in_world(back, phantom, affine)


def test_monai_gets_channels_from_a_list_and_the_refusal_from_a_bad_file(tmp_path, phantom):
    from monai.transforms import LoadImage

    good = write_nifti(tmp_path / "a.nii.gz", phantom, np.eye(4))
    other = write_nifti(tmp_path / "b.nii.gz", phantom + 1, np.eye(4))
    load = LoadImage(reader=MedvolReader(), ensure_channel_first=True)
    assert load([good, other]).shape == (2, *phantom.shape)
    moved = write_nifti(tmp_path / "m.nii.gz", phantom, np.diag([1, 1, 2, 1.0]))
    with pytest.raises(InputError, match=r"m\.nii\.gz: its affine differs"):
        load([good, moved])
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(good.read_bytes()[:-30])
    # MONAI's other readers must not get a second try at a refused file
    with pytest.raises(InputError, match=r"bad\.nii\.gz: truncated"):
        load(bad)


def test_the_reader_gives_what_monai_s_own_reader_gives(tmp_path, phantom):
    from monai.transforms import LoadImage

    path = write_nifti(tmp_path / "a.nii.gz", phantom, affine_of((2, 0, 1), (1, -1, 1), OBLIQUE))
    ours = LoadImage(reader=MedvolReader(), ensure_channel_first=True)(path)
    theirs = LoadImage(reader="NibabelReader", ensure_channel_first=True)(path)
    assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
    assert np.array_equal(ours.numpy(), theirs.numpy())
    assert np.array_equal(read_image(path).numpy(), theirs.numpy())
    assert set(ours.meta) <= set(theirs.meta) | {"filename_or_obj"}


def test_two_inputs_of_one_name_cannot_share_an_output(tmp_path, phantom):
    for source in ("a/image.nii.gz", "b/image.nii.gz"):
        writer = MedvolWriter()
        writer.set_data_array(phantom[None])
        writer.set_metadata({"affine": np.eye(4), "filename_or_obj": source}, resample=False)
        if source.startswith("a"):
            writer.write(tmp_path / "image_seg.nii.gz")
        else:
            with pytest.raises(OutputError, match="already holds the result of a/image"):
                writer.write(tmp_path / "image_seg.nii.gz")
