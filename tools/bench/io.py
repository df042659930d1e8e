"""How fast scans come in, beside the best peer: ``python -m tools.bench.io [--data DIR]``.

CPU time of this process, peers interleaved, the median of the rounds. Real series are taken from
``--data`` (the shared data folder) where it exists, else phantoms of the same size are made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[], Any]


def main() -> int:
    """Measure the four targets and print them as one JSON object; exit 1 if one is not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        results = [
            uncompressed(options.data, Path(scratch), options.rounds),
            jpeg2000(options.data, Path(scratch), options.rounds),
            scan(options.data, Path(scratch), options.rounds),
            gzipped(Path(scratch), options.rounds),
        ]
    print(json.dumps(results, indent=2))
    return 0 if all(result["met"] for result in results) else 1


def uncompressed(data: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """A 512 x 512 x 22 series against MONAI's PydicomReader."""
    folder = data / "dicom" / "mr_t1post_study1"
    if not folder.is_dir():
        folder = phantom_series(scratch / "plain", 22)
    times = interleaved({"medvol": ours(folder), "PydicomReader": monai("PydicomReader", folder)},
                        rounds)  # fmt: skip
    return judged("uncompressed series, ratio to PydicomReader", times, "PydicomReader", 0.55)


def jpeg2000(data: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """A JPEG 2000 series against the faster of MONAI's readers."""
    folder = data / "dicom" / "ct_abdomen"
    if not folder.is_dir():
        folder = phantom_series(scratch / "j2k", 20, "1.2.840.10008.1.2.4.90")
    peers = {name: monai(name, folder) for name in ("PydicomReader", "ITKReader")}
    times = interleaved({"medvol": ours(folder), **peers}, rounds)
    best = min(peers, key=lambda name: times[name])
    return judged(f"JPEG 2000 series, ratio to {best}", times, best, 1.05)


def scan(data: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """A thousand files without decoding a pixel, in files per second of CPU time of one core.

    The wall clock is reported beside it; it is the same on an idle machine.
    """
    from medvol.io import scan_folder

    source = data / "dicom" / "mr_t1post_study1"
    if not source.is_dir():
        source = phantom_series(scratch / "plain", 22)
    files, folder = sorted(source.iterdir()), scratch / "thousand"
    for number in range(1000):
        place = folder / f"s{number // len(files):03d}"
        place.mkdir(parents=True, exist_ok=True)
        os.symlink(files[number % len(files)].resolve(), place / f"{number:04d}.dcm")
    rates, by_the_clock = [], []
    for _ in range(max(1, rounds // 2)):
        began, clock = time.process_time(), time.perf_counter()
        scan_folder(folder)
        rates.append(1000 / (time.process_time() - began))
        by_the_clock.append(1000 / (time.perf_counter() - clock))
    rate = statistics.median(rates)
    return {"what": "scan, files per second", "value": round(rate), "target": 300,
            "met": rate >= 300, "by_the_clock": round(statistics.median(by_the_clock))}  # fmt: skip


def gzipped(scratch: Path, rounds: int) -> dict[str, Any]:
    """A .nii.gz of 512 x 512 x 60 against nibabel reading it as float32."""
    import nibabel as nib

    from medvol.io import read_scan, write_nifti

    noise = np.random.default_rng(0).normal(0, 20, (512, 512, 60))
    path = write_nifti(scratch / "v.nii.gz", np.round(noise + 40), np.eye(4))
    peer = {"nibabel": lambda: nib.load(path).get_fdata(dtype=np.float32)}  # pyright: ignore[reportAttributeAccessIssue]
    times = interleaved({"medvol": lambda: read_scan(path), **peer}, rounds)
    return judged(".nii.gz, ratio to nibabel", times, "nibabel", 1.0)


def ours(folder: Path) -> Work:
    """Our MONAI reader on one folder."""
    from medvol.io import MedvolReader

    reader = MedvolReader()
    return lambda: reader.get_data(reader.read(folder))


def monai(name: str, folder: Path) -> Work:
    """One of MONAI's readers on one folder."""
    import monai.data

    reader = getattr(monai.data, name)()
    return lambda: reader.get_data(reader.read(str(folder)))


def interleaved(work: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each piece of work, taken in turns after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
    for _ in range(rounds):
        for name, call in work.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def judged(what: str, times: dict[str, float], peer: str, target: float) -> dict[str, Any]:
    """A ratio of CPU times with its verdict."""
    ratio = times["medvol"] / times[peer]
    return {"what": what, "value": round(ratio, 3), "target": target, "met": ratio <= target,
            "seconds": {name: round(value, 4) for name, value in times.items()}}  # fmt: skip


def phantom_series(folder: Path, n: int, syntax: str = "1.2.840.10008.1.2.1") -> Path:
    """A 512 x 512 CT series of a smooth phantom with noise."""
    import pydicom
    import pydicom.uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    x, y = np.meshgrid(np.linspace(-1, 1, 512), np.linspace(-1, 1, 512))
    noise = np.random.default_rng(0)
    for z in range(n):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"1.2.3.{z + 1}")
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.{z + 1}"
        ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "CT", "1.2.8", "1.2.9"
        ds.FrameOfReferenceUID, ds.Rows, ds.Columns = "1.2.7", 512, 512
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.PixelSpacing = 1, -1024, [0.8, 0.8]
        ds.ImageOrientationPatient, ds.SliceThickness = [1, 0, 0, 0, 1, 0], 2
        ds.ImagePositionPatient = [0, 0, 2.0 * z]
        plane = 1000 * (x**2 + y**2 < 0.6) + noise.normal(0, 12, (512, 512)) + 60
        ds.PixelData = np.clip(plane, 0, 4095).astype("<u2").tobytes()
        if syntax != meta.TransferSyntaxUID:
            ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(folder / f"{z:03d}.dcm", enforce_file_format=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
