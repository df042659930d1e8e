"""DICOM SR out: the volumes of a segmentation as a TID 1500 measurement report.

Source:
    DICOM PS3.16 TID 1500 (Measurement Report) and TID 1411 (Volumetric ROI Measurements).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvol.core.errors import InputError, OutputError
from medvol.core.files import atomic_path
from medvol.core.labels import Code, find_label
from medvol.io.checks import shown
from medvol.io.dicom import DicomOptions, read_file
from medvol.io.dicom_source import Source, import_highdicom, read_source
from medvol.io.seg import SIDES, Algorithm, coded, quiet

if TYPE_CHECKING:
    import highdicom as hd

_VOLUME: Code = ("118565006", "SCT", "Volume")
_MILLILITRE: Code = ("ml", "UCUM", "Milliliter")
_PROCEDURE: Code = ("363679005", "SCT", "Imaging procedure")
_SERIES_NUMBER = 301
_VOLUME_TOLERANCE_ML = 1e-6


@dataclass(frozen=True)
class Measured:
    """A further measurement of one segment: a coded quantity, its value and its UCUM unit."""

    quantity: Code
    value: float
    unit: Code


def write_dicom_sr(
    path: str | os.PathLike[str],
    *,
    segmentation: str | os.PathLike[str],
    source: Source | str | os.PathLike[str],
    algorithm: Algorithm,
    further: Mapping[str, Sequence[Measured]] | None = None,
    options: DicomOptions | None = None,
) -> Path:
    """Write the volume of every segment of a SEG as a structured report (TID 1500).

    Volumes are counted from the SEG file itself, so report and segmentation cannot disagree.
    Each measurement group refers to its segment, carries the segment's tracking ids, its coded
    finding and its side.

    Args:
        path: Target file, usually ending in .dcm.
        segmentation: What :func:`write_dicom_seg` wrote.
        source: The series that the SEG was made from.
        algorithm: What measured.
        further: Segment label to more measurements, for example a mean density.
        options: The same that the image was read with.

    Returns:
        ``path``.

    Raises:
        OutputError: If the file cannot be written whole or reads back differently.
    """
    import_highdicom()
    path = Path(path)
    series = source if isinstance(source, Source) else read_source(source, options)
    segments, volumes_ml = read_volumes(segmentation)
    with quiet():
        report = _report(series, segments, volumes_ml, algorithm, further or {})
        with atomic_path(path, verify=lambda p: _verify(p, path, volumes_ml)) as scratch:
            report.save_as(scratch)
    return path


def read_volumes(segmentation: str | os.PathLike[str]) -> tuple[Any, dict[int, float]]:
    """A SEG's data set, and the volume of each of its segments in millilitres.

    Raises:
        InputError: If it is not a binary segmentation.
    """
    import pydicom

    path = Path(segmentation)
    scan = read_file(path, DicomOptions())
    voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000.0
    with quiet():
        data = pydicom.dcmread(path)
    if "SegmentSequence" not in data:
        raise InputError(f"{shown(path)}: is not a DICOM segmentation")
    counts = np.bincount(scan.array.astype(np.int64).ravel(), minlength=256)
    numbers = [int(item.SegmentNumber) for item in data.SegmentSequence]
    return data, {number: float(counts[number]) * voxel_ml for number in numbers}


def read_sr_volumes(path: str | os.PathLike[str]) -> dict[str, float]:
    """Tracking identifier to volume in millilitres, as a TID 1500 report states them.

    Raises:
        InputError: If the file is no such report.
    """
    import_highdicom()
    import highdicom as hd

    with quiet():
        try:
            report = hd.sr.srread(path)
            groups = report.content.get_volumetric_roi_measurement_groups()  # pyright: ignore[reportAttributeAccessIssue]
        except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
            raise InputError(f"{shown(path)}: is not a TID 1500 measurement report") from error
        return {
            str(group.tracking_identifier): float(group.get_measurements(coded(_VOLUME))[0].value)
            for group in groups
        }


def _report(
    series: Source,
    segmentation: Any,
    volumes_ml: Mapping[int, float],
    algorithm: Algorithm,
    further: Mapping[str, Sequence[Measured]],
) -> hd.sr.ComprehensiveSR:
    import highdicom as hd

    observer = hd.sr.ObserverContext(
        observer_type=coded(("121007", "DCM", "Device")),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(),
            name=algorithm.name[:64],
            manufacturer_name=algorithm.manufacturer,
            model_name=f"{algorithm.name} {algorithm.version}"[:64],
        ),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=coded(_PROCEDURE),
        imaging_measurements=[
            _group(item, segmentation, series, algorithm, _measured(item, volumes_ml, further))
            for item in segmentation.SegmentSequence
        ],
    )
    return hd.sr.ComprehensiveSR(
        evidence=[segmentation, *series.headers],
        content=content[0],
        series_instance_uid=hd.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=algorithm.manufacturer,
        is_complete=True,
        is_final=False,
    )


def _group(
    item: Any,
    segmentation: Any,
    series: Source,
    algorithm: Algorithm,
    measured: Sequence[Measured],
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    import highdicom as hd

    label = find_label(str(item.SegmentLabel))
    side = SIDES.get(label.laterality)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=str(item.TrackingUID), identifier=str(item.TrackingID)
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=int(item.SegmentNumber),
            source_series=hd.sr.SourceSeriesForSegmentation(
                referenced_series_instance_uid=str(series.headers[0].SeriesInstanceUID)
            ),
        ),
        finding_category=coded(label.category),
        finding_type=coded(label.code),
        finding_sites=[hd.sr.FindingSite(anatomic_location=coded(label.code),
                                         laterality=coded(side))] if side else None,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=algorithm.name[:64], version=algorithm.version[:64]
        ),
        measurements=[
            hd.sr.Measurement(name=coded(m.quantity), value=float(m.value), unit=coded(m.unit))
            for m in measured
        ],
    )  # fmt: skip


def _measured(
    item: Any, volumes_ml: Mapping[int, float], further: Mapping[str, Sequence[Measured]]
) -> list[Measured]:
    volume = Measured(_VOLUME, volumes_ml[int(item.SegmentNumber)], _MILLILITRE)
    return [volume, *further.get(str(item.SegmentLabel), ())]


def _verify(written: Path, path: Path, volumes_ml: Mapping[int, float]) -> None:
    try:
        back = read_sr_volumes(written)
    except InputError as error:
        raise OutputError(f"{shown(path)}: cannot be read back: {error}") from error
    stated, meant = sorted(back.values()), sorted(volumes_ml.values())
    if not np.allclose(stated, meant, rtol=1e-6, atol=_VOLUME_TOLERANCE_ML):
        raise OutputError(f"{shown(path)}: reads back with other volumes")
