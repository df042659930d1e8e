"""The check before reading and reading itself agree: on the verdict and on the words."""

from __future__ import annotations

import gzip
import json
import tarfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.core.errors import InputError, MedvolError
from medvol.io import ReadOptions, inspect_image, read_image, scan_folder

#: Faults that only voxels show.
VOXELS = ("non-finite", "2**24", "truncated", "corrupt", "overflow", "decod", "checksum",
          "damaged", "JPEG", "colour", "differs from", "animated", "pixel data")  # fmt: skip


def verdict(act, path, options=None) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            act(path, options) if act is inspect_image else act(path, options=options)
        except MedvolError as error:
            return str(error)
    return ""


def require_agreement(path: Path, options: ReadOptions | None = None) -> tuple[str, str]:
    before, after = verdict(inspect_image, path, options), verdict(read_image, path, options)
    if before:
        assert before == after, f"{path.name}: the check says {before!r}, reading {after!r}"
    elif after:
        assert any(word in after for word in VOXELS), f"{path.name}: reading alone says {after!r}"
    return before, after


@pytest.fixture(scope="module")
def corpus(shared_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with tarfile.open(shared_data / "bad_inputs.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_check_and_reading_agree_over_the_corpus_of_malformed_inputs(corpus):
    manifest = next(corpus.rglob("manifest.json"))
    names = [row["path"] if "path" in row else row["file"] for row in _rows(manifest)]
    seen = [require_agreement(manifest.parent / name) for name in names
            if (manifest.parent / name).exists()]  # fmt: skip
    assert len(seen) > 100
    assert sum(bool(before) for before, _ in seen) > 40


def test_what_a_scan_calls_usable_is_read(corpus, shared_data):
    from medvol.io import DicomOptions

    manifest = next(corpus.rglob("manifest.json"))
    places = [manifest.parent / row["path"] for row in _rows(manifest)]
    places += sorted((shared_data.parent / "cases" / "files").glob("*/input"))
    stated = ReadOptions((1, 1, 1), channels=True, dicom=DicomOptions(resample_tilt=True, volume=1))
    usable = 0
    for place in places:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                rows = scan_folder(place)
            except MedvolError:
                continue
        if len(rows) != 1 or not rows[0].is_usable:
            continue
        usable += 1
        fault = verdict(read_image, place, stated)
        assert not fault or any(word in fault for word in VOXELS), (place.name, fault)
    assert usable > 25


def _rows(manifest: Path) -> list[dict]:
    content = json.loads(manifest.read_text())
    rows = content if isinstance(content, list) else content.get("cases", content.get("inputs"))
    return rows if isinstance(rows, list) else [{"path": k, **v} for k, v in rows.items()]


def test_check_and_reading_agree_over_real_clinical_files(shared_data):
    folders = sorted((shared_data.parent / "cases" / "files").glob("*/input"))
    assert len(folders) >= 10
    for folder in folders:
        files = [p for p in folder.rglob("*") if p.is_file()]
        require_agreement(files[0] if len(files) == 1 else folder)


@settings(max_examples=60)
@given(
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    is_gzipped=st.booleans(),
    axes=st.sampled_from([(5, 4, 3), (5, 4), (5, 4, 3, 2), (5, 4, 1, 1)]),
    codes=st.sampled_from([(1, 1), (0, 1), (1, 0), (0, 0)]),
    cut=st.sampled_from([0, 0, 0, 7, 400]),
    damage=st.sampled_from([0, 0, 0, -3, -9, -30]),
    shear=st.sampled_from([0.0, 0.0, 40.0, 1e4]),
    channels=st.booleans(),
)
def test_check_and_reading_agree_whatever_a_nifti_file_holds(
    tmp_path_factory, suffix, is_gzipped, axes, codes, cut, damage, shear, channels
):
    path = tmp_path_factory.mktemp("n") / f"image{suffix}"
    image = nib.Nifti1Image(np.arange(np.prod(axes), dtype=np.float32).reshape(axes), np.eye(4))  # pyright: ignore
    image.header.set_xyzt_units("mm")
    image.set_qform(np.eye(4), codes[0])
    image.set_sform(np.diag([1.0, 1.0, 1.0 + shear, 1.0]), codes[1])
    content = image.to_bytes()
    content = content[: len(content) - cut]
    if is_gzipped:
        packed = bytearray(gzip.compress(content))
        if damage:  # of the checksum, or of the stream
            packed[damage] ^= 0x5A
        content = bytes(packed)
    path.write_bytes(content)
    _, after = require_agreement(path, ReadOptions(channels=channels))
    (row,) = scan_folder(path)
    if channels:
        assert row.problem == after, "what is usable in a scan is read"


def test_compression_is_judged_by_content_and_not_by_name(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.eye(4))  # pyright: ignore
    image.header.set_xyzt_units("mm")
    (tmp_path / "plain.nii.gz").write_bytes(image.to_bytes())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(image.to_bytes()))
    for name in ("plain.nii.gz", "packed.nii"):
        assert inspect_image(tmp_path / name).shape == (3, 4, 5)
        assert tuple(read_image(tmp_path / name).shape) == (1, 3, 4, 5)


def test_what_does_not_exist_is_rejected_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.nii: does not exist"):
        inspect_image(tmp_path / "nowhere.nii")
