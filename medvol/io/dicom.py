"""DICOM files and folders: find the one series, check it, decode, and scale each frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError, MissingInputError
from medvol.io import formats
from medvol.io.checks import Scan, check_claim, shown, to_float32, warn
from medvol.io.dicom_header import DicomImage, Frame, read_header
from medvol.io.dicom_parse import NotDicomError
from medvol.io.dicom_pixels import LOSSY, check_pixel_claim, stored_frames
from medvol.io.dicom_series import VOLUMETRIC, Stack, group_series, split_times, stack_frames
from medvol.io.dicom_suv import suv_factor

_BESIDE_NAMES = frozenset({"DICOMDIR", "LOCKFILE", "VERSION", "README", "LICENSE", "THUMBS"})
_AIR_HU = -1024.0
#: Modalities whose stored values mean nothing before they are rescaled.
_CALIBRATED = {"CT": "Hounsfield units are", "PT": "uptake is"}


@dataclass(frozen=True)
class DicomOptions:
    """What a user may state about a DICOM folder that holds more than one volume.

    Attributes:
        series: SeriesInstanceUID, or the number of the series as listed in the error.
        volume: Which time point of a 4D series, counted from 1.
        resample_tilt: Resample slices of a tilted gantry onto a regular grid.
        pet_suv: Convert PET to SUV by body weight; False keeps the rescaled values.
    """

    series: str | int | None = None
    volume: int | None = None
    resample_tilt: bool = False
    pet_suv: bool = True


def find_images(folder: Path) -> list[DicomImage]:
    """Read the header of every DICOM image below a folder.

    Raises:
        MissingInputError: If there is none.
        InputError: If a file that ought to be a slice is empty or damaged.
    """
    images: list[DicomImage] = []
    foreign: list[tuple[Path, InputError]] = []
    n_objects = 0
    for path in walk_files(folder):
        try:
            image = read_header(path)
        except NotDicomError as error:
            foreign.append((path, error))
            continue
        except InputError as error:
            if is_beside(path):
                continue
            raise error
        n_objects += 1
        if image is not None:
            images.append(image)
    if not images:
        if n_objects:
            raise MissingInputError(f"{shown(folder)}: holds DICOM objects but no image: no pixel "
                                    "data (structured reports or the like)")  # fmt: skip
        raise MissingInputError(f"{shown(folder)}: holds no DICOM image")
    suffixes = {image.path.suffix.lower() for image in images}
    for path, error in foreign:
        if path.suffix.lower() in suffixes and not is_beside(path):
            raise InputError(f"{error}, but is named like the slices beside it") from error
    return images


def walk_files(folder: Path) -> list[Path]:
    """Every visible file below a folder, in a stable order; links to folders are not followed."""
    found: list[Path] = []
    for where, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(where, f) for f in sorted(files)
                  if not f.startswith(".") and _stem(f) != "DICOMDIR"]  # fmt: skip
    return [path for path in found if path.is_file()]


def read_folder(folder: Path, options: DicomOptions) -> Scan:
    """Read the one volume of a DICOM folder.

    Raises:
        InputError: If it holds none or more than one volume, or it does not pass the checks.
    """
    return read_images(folder, choose_series(folder, find_images(folder), options), options)


def read_file(path: Path, options: DicomOptions) -> Scan:
    """Read a DICOM file that is an image by itself: multi-frame, a projection, a single slice.

    Raises:
        InputError: If it holds no image, or it does not pass the checks.
    """
    return read_images(path, [image_header(path)], options)


def image_header(path: Path) -> DicomImage:
    """The header of a DICOM file that holds an image.

    Raises:
        InputError: If it is not one.
    """
    try:
        image = read_header(path)
    except NotDicomError as error:
        raise InputError(f"{shown(path)}: is not a DICOM file, and of no other format that medvol "
                         "reads by its name") from error  # fmt: skip
    if image is None:
        raise InputError(f"{shown(path)}: is a DICOM object without pixel data, not an image")
    return image


def choose_series(
    where: Path, images: Sequence[DicomImage], options: DicomOptions
) -> list[DicomImage]:
    """The images of the wanted series.

    Raises:
        InputError: If there are several and none is chosen; the message lists them.
    """
    scans = [i for i in images if not i.is_segmentation] or list(images)
    groups = group_series(scans)
    if options.series is not None:
        for number, group in enumerate(groups, 1):
            if str(options.series) in (str(number), group[0].series):
                return group
        raise InputError(f"{shown(where)}: holds no series {shown(str(options.series))}; found: "
                         f"{_listing(groups)}")  # fmt: skip
    if len(groups) > 1:
        raise InputError(f"{shown(where)}: holds {len(groups)} series; choose one with series=: "
                         f"{_listing(groups)}")  # fmt: skip
    return groups[0]


def read_images(where: Path, images: Sequence[DicomImage], options: DicomOptions) -> Scan:
    """Decode the images of one series into a scan."""
    if images[0].is_segmentation:
        from medvol.io.dicom_seg_read import read_segmentation

        return read_segmentation(where, images)
    _warn_about(where, images)
    if is_projection(images):
        return _read_projection(where, images[0])
    stack = check_series(where, images, options)
    voxels = _decode_stack(where, stack, options)
    scan = Scan(voxels[None], stack.affine, where)
    if stack.tilt_deg:
        from medvol.io.tilt import untilt

        warn(where, f"gantry tilt of {stack.tilt_deg:.1f} degrees was resampled to a regular grid")
        scan = untilt(scan)
    return scan


def check_series(where: Path, images: Sequence[DicomImage], options: DicomOptions) -> Stack:
    """Everything that can be rejected without decoding a pixel.

    Raises:
        InputError: One line naming what is wrong.
    """
    for image in images:
        _check_kind(image)
    frames, copies = drop_copies([frame for image in images for frame in image.frames])
    if copies:
        warn(where, f"{len(copies)} files are copies of others and were left out "
                    f"({shown(copies[0].image.path.name)} ...)")  # fmt: skip
    volumes = split_times(frames)
    if len(volumes) > 1:
        if options.volume is None:
            raise InputError(f"{shown(where)}: is a 4D series of {len(volumes)} volumes (time "
                             "points, echoes or the like) at the same positions; choose one with "
                             f"volume=1 to {len(volumes)}")  # fmt: skip
        if not 1 <= options.volume <= len(volumes):
            raise InputError(f"{shown(where)}: volume {options.volume} is not in 1 to "
                             f"{len(volumes)}")  # fmt: skip
        frames = volumes[options.volume - 1]
    stack = stack_frames(where, frames, allow_tilt=options.resample_tilt)
    for image in {id(f.image): f.image for f in stack.frames}.values():
        check_pixel_claim(image)
        _check_rescale(image)
    return stack


def count_volumes(images: Sequence[DicomImage]) -> int:
    """How many volumes a series holds at the same positions."""
    return len(split_times([frame for image in images for frame in image.frames]))


def drop_copies(frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Split frames into those to keep and byte-identical copies of the same image."""
    kept: list[Frame] = []
    copies: list[Frame] = []
    seen: dict[tuple[str, int], Frame] = {}
    for frame in frames:
        key = (frame.image.texts.get("SOPInstanceUID", ""), frame.index)
        other = seen.setdefault(key, frame) if key[0] else frame
        is_copy = other is not frame and other.position == frame.position
        (copies if is_copy and _same_pixels(other, frame) else kept).append(frame)
    return kept, copies


def is_projection(images: Sequence[DicomImage]) -> bool:
    """Whether this is one plain 2D image without a place in the patient."""
    first = images[0]
    has_place = first.frames[0].position or first.frames[0].orientation
    return (
        len(images) == 1
        and first.n_frames == 1
        and not has_place
        and first.modality not in VOLUMETRIC
    )


def _same_pixels(one: Frame, other: Frame) -> bool:
    first, second = one.image.parsed, other.image.parsed
    return first.size == second.size and first.content() == second.content()


def _check_kind(image: DicomImage) -> None:
    name = shown(image.path)
    if image.samples != 1 or image.photometric.startswith(("RGB", "YBR", "PALETTE")):
        raise InputError(f"{name}: is a colour image (RGB or palette), not a grey volume")
    _check_lookup(image)


def _check_lookup(image: DicomImage) -> None:
    if image.parsed.elements.get(0x00283000):
        raise InputError(f"{shown(image.path)}: its values go through a Modality LUT, which is not "
                         "supported")  # fmt: skip


def _check_rescale(image: DicomImage) -> None:
    for frame in image.frames:
        if image.modality in _CALIBRATED and None in (frame.slope, frame.intercept):
            raise InputError(f"{shown(image.path)}: RescaleSlope or RescaleIntercept (rescale) is "
                             f"missing, so {_CALIBRATED[image.modality]} unknown")  # fmt: skip
        if frame.slope == 0:
            raise InputError(f"{shown(image.path)}: RescaleSlope is 0: rescale would erase the "
                             "image")  # fmt: skip


def _decode_stack(where: Path, stack: Stack, options: DicomOptions) -> NDArray[np.float32]:
    columns, rows, n = stack.shape
    voxels = np.empty((n, rows, columns), dtype=np.float32)
    places = {(id(f.image), f.index): z for z, f in enumerate(stack.frames)}
    padding: list[tuple[int, NDArray[np.bool_]]] = []
    for image in {id(f.image): f.image for f in stack.frames}.values():
        factor = suv_factor(image) if image.modality == "PT" and options.pet_suv else 1.0
        bounds = padding_range(image)
        for index, stored in enumerate(stored_frames(image)):
            z = places.get((id(image), index))
            if z is None:
                continue
            if stored.dtype.itemsize > 2:
                to_float32(image.path, stored)  # rejects what float32 would merge
            with np.errstate(over="ignore", invalid="ignore"):  # rejected below, by its file
                scale(stored, image.frames[index], factor, voxels[z])
            if bounds:
                mask = (stored >= bounds[0]) & (stored <= bounds[1])
                if mask.any():
                    padding.append((z, mask))
    _fill_padding(voxels, padding, stack.frames[0].image.modality)
    return to_float32(where, voxels).transpose(2, 1, 0)


def scale(stored: NDArray[Any], frame: Frame, factor: float, out: NDArray[np.float32]) -> None:
    """Write ``stored * slope + intercept``, times ``factor``, into ``out``."""
    slope = (1.0 if frame.slope is None else frame.slope) * factor
    intercept = (frame.intercept or 0.0) * factor
    if slope == 1.0:
        np.add(stored, np.float32(intercept), out=out, casting="unsafe", dtype=np.float32)
    else:
        np.add(stored * np.float64(slope), intercept, out=out, casting="unsafe")


def padding_range(image: DicomImage) -> tuple[int, int] | None:
    """Stored values from low to high that mean "no data here"."""
    values = []
    for tag in (0x00280120, 0x00280121):
        raw = image.parsed.elements.get(tag)
        if isinstance(raw, bytes) and len(raw) >= 2:
            order = "little" if image.parsed.order == "<" else "big"
            values.append(int.from_bytes(raw[:2], order, signed=image.is_signed))
    return (min(values), max(values)) if values and 0x00280120 in image.parsed.elements else None


def _fill_padding(
    voxels: NDArray[np.float32], padding: list[tuple[int, NDArray[np.bool_]]], modality: str
) -> None:
    """Outside the field of view lies air, not -3024 HU: padded voxels take the value of nothing."""
    if not padding:
        return
    if modality == "CT":
        nothing = _AIR_HU
    else:
        valid = np.ones(voxels.shape, dtype=bool)
        for z, mask in padding:
            valid[z] &= ~mask
        nothing = float(voxels[valid].min()) if valid.any() else 0.0
    for z, mask in padding:
        voxels[z][mask] = nothing


def check_projection(where: Path, image: DicomImage) -> None:
    """Everything that can be rejected of a plain 2D image without decoding it.

    Raises:
        InputError: One line naming what is wrong.
    """
    check_claim(where, (image.rows, image.columns, image.samples))
    if image.photometric.startswith("PALETTE"):
        raise InputError(f"{shown(where)}: palette colour images are not supported")
    is_lossy = image.parsed.syntax in LOSSY
    if image.samples > 1 and image.photometric.startswith("YBR") and not is_lossy:
        raise InputError(f"{shown(where)}: YBR colours are not supported")
    _check_lookup(image)
    check_pixel_claim(image)
    _check_rescale(image)


def _read_projection(where: Path, image: DicomImage) -> Scan:
    check_projection(where, image)
    raw = next(stored_frames(image))
    stored = raw.astype(np.float32)
    if image.samples == 1:
        if image.photometric == "MONOCHROME1":  # bright is where the film is dark
            top = 2**image.bits_stored - 1 if not image.is_signed else -1
            stored = top - stored
        scale(stored.copy(), image.frames[0], 1.0, stored)
        if bounds := padding_range(image):
            padded = (raw >= bounds[0]) & (raw <= bounds[1])
            _fill_padding(stored[None], [(0, padded)], image.modality)
        stored = stored[..., None]
    return Scan(
        to_float32(where, np.ascontiguousarray(stored.transpose(2, 1, 0))), np.eye(4), where
    )


def _warn_about(where: Path, images: Sequence[DicomImage]) -> None:
    if any(i.is_burned_in for i in images):
        warn(where, "BurnedInAnnotation is YES: text may be burned into the pixels")
    kinds = {i.texts["RescaleType"].upper() for i in images if "RescaleType" in i.texts}
    if images[0].modality == "CT" and kinds - {"HU"}:
        warn(where, "RescaleType is not HU: these CT values may be no Hounsfield units")
    if any(i.parsed.syntax in LOSSY or i.texts.get("LossyImageCompression") == "01"
           for i in images):  # fmt: skip
        warn(where, "the pixels went through lossy compression")


def _listing(groups: Sequence[Sequence[DicomImage]]) -> str:
    rows = []
    for number, group in enumerate(groups[:12], 1):
        first = group[0]
        n = sum(i.n_frames for i in group)
        rows.append(f"{number}: {first.modality or 'unknown'} {n} frames of {first.columns}x"
                    f"{first.rows} ({shown(first.path.name)} ...)")  # fmt: skip
    return "; ".join(rows) + ("; ..." if len(groups) > 12 else "")


def is_beside(path: Path) -> bool:
    """Whether a file's name marks one that may lie beside slices."""
    return path.suffix.lower() in formats.BESIDE_DICOM or _stem(path.name) in _BESIDE_NAMES


def _stem(name: str) -> str:
    return name.split(".", maxsplit=1)[0].upper()
