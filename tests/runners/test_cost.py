"""What headers tell beforehand, and what damaged ones do not spoil."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medvol.core.errors import ConfigError, InputError
from medvol.io import inspect_image
from medvol.runners import Session, find_cases, job_plan, predict_case, run_local


def write_series(folder: Path, count: int, step_mm: float, uid: str, **changes) -> None:
    """Headers and pixels of an axial CT."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        row = Dataset()
        row.file_meta = FileMetaDataset()
        row.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        row.file_meta.MediaStorageSOPClassUID = row.SOPClassUID = CTImageStorage
        row.file_meta.MediaStorageSOPInstanceUID = row.SOPInstanceUID = f"{uid}.{index + 1}"
        row.SeriesInstanceUID, row.Modality = uid, "CT"
        row.RescaleSlope, row.RescaleIntercept = 1, -1024
        row.BitsAllocated = row.BitsStored = 16
        row.HighBit, row.PixelRepresentation, row.SamplesPerPixel = 15, 0, 1
        row.PhotometricInterpretation, row.PixelData = "MONOCHROME2", bytes(2 * 4 * 6)
        row.Rows, row.Columns, row.PixelSpacing, row.SliceThickness = 4, 6, [0.5, 0.7], 1.25
        row.ImagePositionPatient = [0, 0, index * step_mm]
        row.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        for name, value in changes.items():
            setattr(row, name, value)
        row.save_as(folder / f"{uid}.{index + 1}.dcm", enforce_file_format=True)


def test_the_step_and_not_the_thickness_is_estimated(tmp_path):
    from medvol.io import DicomOptions, ReadOptions

    write_series(tmp_path, 7, 5.0, "1.2.3")
    write_series(tmp_path, 3, 5.0, "1.2.4")  # a second series is none of the first one's slices
    with pytest.raises(InputError, match="2 series"):
        inspect_image(tmp_path)
    chosen = ReadOptions(dicom=DicomOptions(series="1.2.3"))
    geometry = inspect_image(tmp_path, chosen).geometry
    assert geometry is not None
    assert geometry.shape == (6, 4, 7)
    assert geometry.spacing_mm == pytest.approx((0.7, 0.5, 5.0))


def test_a_damaged_header_is_rejected_in_the_readers_words(tmp_path):
    from medvol.io import read_image

    write_series(tmp_path, 2, 5.0, "1.2.3")
    whole = (tmp_path / "1.2.3.1.dcm").read_bytes()
    (tmp_path / "1.2.3.2.dcm").write_bytes(whole[:132])
    with pytest.raises(InputError) as before:
        inspect_image(tmp_path)
    with pytest.raises(InputError) as after:
        read_image(tmp_path)
    assert str(before.value) == str(after.value)


def test_a_damaged_stream_is_refused_and_the_rest_go_on(tmp_path, options, make_image):
    bad = make_image(tmp_path / "in" / "a.nii.gz", 0)
    make_image(tmp_path / "in" / "b.nii.gz", 1)
    content = bytearray(bad.read_bytes())
    start = content.index(b"\0", 10) + 1 if content[3] & 8 else 10  # behind the file's name
    content[start : start + 40] = np.random.default_rng(3).bytes(40)
    content[start] = 0b111  # no such kind of block
    bad.write_bytes(content)
    records = run_local(find_cases([tmp_path / "in"]), options())
    assert [r.status for r in records] == ["rejected", "done"]
    assert "a.nii.gz" in records[0].reason


def test_every_channel_of_the_image_is_counted(tmp_path, options, images, make_bundle):
    from monai.networks.nets.unet import UNet

    plans = []
    for channels in (1, 4):
        bundle = make_bundle(tmp_path / f"channels{channels}")
        path = bundle / "configs" / "inference.json"
        config = json.loads(path.read_text())
        config["network_def"]["in_channels"] = channels
        path.write_text(json.dumps(config))
        arguments = {k: v for k, v in config["network_def"].items() if k != "_target_"}
        torch.save(UNet(**arguments).state_dict(), bundle / "models" / "model.pt")
        session = Session(options(bundle=str(bundle)))
        plans.append(job_plan(session, str(images / "case0.nii.gz")))
    for phase in ("load", "prepare"):
        assert plans[1].phases[phase] == 4 * plans[0].phases[phase]


def test_a_ceiling_holds_where_only_the_loaded_image_tells_its_size(tmp_path, options, make_image):
    image = nib.load(make_image(tmp_path / "a.nii.gz", 0))
    nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine), tmp_path / "in.hdr")
    cases = find_cases([tmp_path / "in.hdr"])
    (record,) = run_local(cases, options())
    assert record.status == "done"
    assert record.predicted["ram_bytes"] > 0
    (record,) = run_local(cases, options(output=str(tmp_path / "small"), max_ram=10**6))
    assert record.status == "rejected"
    assert "needs at least" in record.reason


def test_a_ceiling_that_nobody_can_estimate_is_rejected(options, images, monkeypatch):
    session = Session(options(max_ram=10**10))

    def unknown(*_):
        raise ConfigError("the memory of this network cannot be estimated; leave out --max-ram")

    monkeypatch.setattr(session.pipeline, "footprint", unknown)
    record = predict_case(session, find_cases([images / "case0.nii.gz"])[0])
    assert record.status == "rejected"
    assert "--max-ram" in record.reason
