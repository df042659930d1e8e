"""DICOM SEG back into a label map on its own grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvol.core.errors import InputError
from medvol.io.checks import Scan, check_claim, shown
from medvol.io.dicom_header import DicomImage, Frame
from medvol.io.dicom_pixels import stored_frames
from medvol.io.dicom_series import stack_frames


def read_segmentation(where: Path, images: Sequence[DicomImage]) -> Scan:
    """Read a binary or label-map SEG as one volume whose values are segment numbers.

    Slices that no segment visits are filled from the even spacing of those that are stored.

    Raises:
        InputError: If segments overlap, the SEG is fractional, or its geometry is uneven.
    """
    if len(images) != 1:
        raise InputError(f"{shown(where)}: holds {len(images)} segmentations; name one file")
    image = images[0]
    kind = image.texts.get("SegmentationType", "BINARY").upper()
    if kind not in ("BINARY", "LABELMAP"):
        raise InputError(f"{shown(where)}: is a {'fractional' if kind == 'FRACTIONAL' else 'other'}"
                         " segmentation; only binary ones have label values")  # fmt: skip
    by_place: dict[tuple[float, ...], list[Frame]] = {}
    for frame in image.frames:
        place = tuple(round(v, 3) for v in frame.position or ())
        by_place.setdefault(place, []).append(frame)
    stack = stack_frames(where, [frames[0] for frames in by_place.values()], allow_tilt=True,
                         allow_gaps=True)  # fmt: skip
    columns, rows, n = stack.shape
    check_claim(where, (columns, rows, n))
    labels = np.zeros((n, rows, columns), dtype=np.float32)
    depth = {id(f): z for f, z in zip(stack.frames, stack.slots, strict=True)}
    slot_of = {id(other): depth[id(frames[0])] for frames in by_place.values() for other in frames}
    for frame, stored in zip(image.frames, stored_frames(image), strict=True):
        plane = labels[slot_of[id(frame)]]
        inside = stored != 0
        if (plane[inside] != 0).any():
            raise InputError(f"{shown(where)}: its segments overlap, so they are not a label map")
        plane[inside] = stored[inside] if frame.segment is None else frame.segment
    return Scan(labels.transpose(2, 1, 0)[None], stack.affine, where)
