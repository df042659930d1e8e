"""What a case will cost, from its header alone."""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data.utils import compute_shape_offset, zoom_affine

from medvol.core.errors import ConfigError, InputError
from medvol.core.geometry import Geometry
from medvol.datasets.listing import is_dicom_file
from medvol.inferers import (
    Job,
    Plan,
    SlidingWindowInferer,
    onednn_convolutions,
    plan_job,
    window_footprint,
)
from medvol.inferers.windows import WindowGrid

if TYPE_CHECKING:
    from medvol.runners.cases import CaseInput
    from medvol.runners.session import Session


@dataclass(frozen=True)
class Forecast:
    """What a run will cost.

    Attributes:
        ram_bytes: Peak of the process.
        seconds: Time in the network.
    """

    ram_bytes: int
    seconds: float

    def line(self, cases: int) -> str:
        """The forecast in one line for people."""
        return (
            f"all {cases} cases: {self.ram_bytes / 2**30:.2f} GiB RAM, about {self.seconds:.0f} s "
            "in the network"
        )


def read_geometry(path: str) -> Geometry | None:
    """Grid of an image from its header, in RAS; None where that takes reading the whole."""
    name = path.lower()
    if name.endswith((".nii", ".nii.gz")):
        import nibabel as nib
        from nibabel.filebasedimages import ImageFileError

        try:
            image: Any = nib.load(path)
        except (ImageFileError, OSError, ValueError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: is no readable NIfTI file: {error}") from error
        shape = (*image.shape, 1, 1, 1)[:3]
        return Geometry((shape[0], shape[1], shape[2]), np.asarray(image.affine, np.float64))
    if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        return _itk_geometry(path)
    return _dicom_geometry(Path(path)) if Path(path).is_dir() else None


def plan_case(session: Session, case: CaseInput, source: Geometry | None = None) -> dict[str, Any]:
    """The plan for one case as plain values, which says nothing of seconds.

    Args:
        session: The bundle.
        case: The image.
        source: Its grid once it is loaded; empty is the plan where without that the header does
            not tell the size.

    Raises:
        TooLargeError: If the ceilings cannot be kept.
        ConfigError: If it cannot be told whether they can.
    """
    plan = grid_plan(session, source) if source else job_plan(session, case.path)
    return (
        {name: value for name, value in asdict(plan).items() if name != "seconds"} if plan else {}
    )


def job_plan(session: Session, path: str, *, is_timed: bool = False) -> Plan | None:
    """The plan for one image.

    Args:
        session: The bundle.
        path: The image.
        is_timed: Run one window to foretell the time as well.

    Raises:
        TooLargeError: If the ceilings cannot be kept.
        ConfigError: If it cannot be told whether they can.
    """
    source = read_geometry(path)
    return None if source is None else grid_plan(session, source, is_timed=is_timed)


def grid_plan(session: Session, source: Geometry, *, is_timed: bool = False) -> Plan | None:
    """The plan for an image on a grid; None where the network's memory cannot be foretold.

    Raises:
        TooLargeError: If the ceilings cannot be kept.
        ConfigError: If there are any, but it cannot be told whether they can.
    """
    inferer, options = session.inferer, session.options
    size = network_size(source, session.spacing_mm)
    grid = inferer.grid_over(size) if isinstance(inferer, SlidingWindowInferer) else None
    footprint = session.footprint(grid.roi) if grid else None
    if grid is None or footprint is None:
        if options.max_ram or options.max_gpu:
            raise ConfigError("--max-ram and --max-gpu-mem cannot be kept with this bundle: what "
                              "its network takes cannot be foretold")  # fmt: skip
        return None
    passes = session.passes(inferer)
    job = Job(
        source.shape, size, inferer.roi_size, inferer.overlap, footprint,
        batch=inferer.sw_batch_size, in_channels=session.in_channels, passes=passes,
        base_bytes=session.base_bytes,
        window_s=window_seconds(session, grid) if is_timed else 0.0,
        slack=inferer.overlap_slack, on_gpu=session.device.type == "cuda",
    )  # fmt: skip
    wants_all = options.wants_probabilities or session.finish.decision is None
    return plan_job(
        job, wants_probabilities=wants_all, max_ram=options.max_ram, max_gpu=options.max_gpu
    )


def run_forecast(session: Session, plans: Sequence[Plan]) -> Forecast:
    """Cost of a whole run in this process, from its cases' plans in their order.

    Without a ceiling the next case is loaded and the last one written while one is in the
    network; under a ceiling cases run one after the other.
    """
    seconds = sum(plan.seconds for plan in plans)
    if session.options.max_ram is not None:
        return Forecast(max((plan.ram_bytes for plan in plans), default=0), seconds)
    peak = 0
    for index, plan in enumerate(plans):
        after, before = plans[index + 1 : index + 2], plans[max(0, index - 1) : index]
        beside = [max(p.phases["load"], p.phases["prepare"]) for p in after]
        beside += [p.phases["write"] for p in before]
        peak = max(peak, plan.ram_bytes, session.base_bytes + plan.phases["infer"] + sum(beside))
    return Forecast(peak, seconds)


def network_size(source: Geometry, spacing_mm: tuple[float, ...] | None) -> tuple[int, ...]:
    """Shape of an image after Orientationd to RAS and Spacingd, as MONAI computes it."""
    order = [0, 1, 2]
    for axis, code in enumerate(source.axis_codes):
        order[["LR", "PA", "IS"].index(next(p for p in ("LR", "PA", "IS") if code in p))] = axis
    turned = Geometry(
        (source.shape[order[0]], source.shape[order[1]], source.shape[order[2]]),
        source.affine[:, [*order, 3]],
    )
    if spacing_mm is None:
        return turned.shape
    now = turned.spacing_mm
    wanted = [w if w > 0 else n for w, n in zip(spacing_mm, now, strict=True)]
    target = zoom_affine(turned.affine, wanted, diagonal=False)
    shape, _ = compute_shape_offset(turned.shape, turned.affine, target)
    return tuple(int(n) for n in shape)


def window_seconds(session: Session, grid: WindowGrid) -> float:
    """Seconds for one window and one pass, measured with what the run will use."""
    window = torch.zeros((1, session.in_channels, *grid.roi), device=session.device)
    best = float("inf")
    with torch.no_grad(), onednn_convolutions():
        for _ in range(2):
            start = time.perf_counter()
            session.predictor(window)
            if session.device.type == "cuda":
                torch.cuda.synchronize(session.device)
            best = min(best, time.perf_counter() - start)
    return best


def footprint_or_none(session: Session, roi: tuple[int, ...]) -> Any:
    """The network's footprint, or None if it cannot be followed."""
    try:
        return window_footprint(
            session.network, roi, in_channels=session.in_channels,
            batch=session.inferer.sw_batch_size,
        )  # fmt: skip
    except ConfigError:
        return None


def _itk_geometry(path: str) -> Geometry:
    import SimpleITK as sitk

    from medvol.core.geometry import affine_from_lps

    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: its header cannot be read") from error
    if reader.GetDimension() != 3:
        raise InputError(f"{path}: has {reader.GetDimension()} axes, not 3")
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    lps[:3, 3] = reader.GetOrigin()
    x, y, z = reader.GetSize()
    return Geometry((x, y, z), affine_from_lps(lps))


def _dicom_geometry(folder: Path) -> Geometry | None:
    """Size and spacing of a folder's longest series from its headers, enough for a plan."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    tags = ["Rows", "Columns", "PixelSpacing", "SliceThickness", "NumberOfFrames",
            "SpacingBetweenSlices", "SeriesInstanceUID", "ImagePositionPatient"]  # fmt: skip
    series: dict[str, list[Any]] = defaultdict(list)
    try:
        for path in sorted(p for p in folder.iterdir() if is_dicom_file(p)):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            series[str(header.get("SeriesInstanceUID"))].append(header)
        return _series_geometry(max(series.values(), key=len))
    except (InvalidDicomError, AttributeError, IndexError, TypeError, ValueError, OSError,
            EOFError, NotImplementedError):  # fmt: skip
        return None  # the reader will name the fault


def _series_geometry(headers: Sequence[Any]) -> Geometry:
    first = headers[0]
    places = {tuple(float(v) for v in h.get("ImagePositionPatient") or ()) for h in headers}
    slices = int(first.get("NumberOfFrames") or len(places - {()}) or len(headers))
    step = first.get("SpacingBetweenSlices") or first.get("SliceThickness")
    if slices == len(places) > 1:  # a slice may be thicker or thinner than the step to the next
        low, high = np.min(list(places), axis=0), np.max(list(places), axis=0)
        step = np.linalg.norm(high - low) / (slices - 1)
    spacing = [float(first.PixelSpacing[1]), float(first.PixelSpacing[0]), float(step)]
    return Geometry((int(first.Columns), int(first.Rows), slices), np.diag([*spacing, 1.0]))
