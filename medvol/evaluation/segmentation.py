"""Predicted and reference label maps become rows of ``scores.csv``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import LabelError, MedvolError
from medvol.evaluation.pairing import MaskFiles
from medvol.metrics import (
    MaskPair,
    Measured,
    MetricPlan,
    Structures,
    measure_case,
    measure_pair,
)

_MAX_LABEL = 65_535


@dataclass(frozen=True)
class MaskTask:
    """What a worker needs to score one case."""

    files: MaskFiles
    structures: Structures
    plan: MetricPlan


def measure_masks(
    files: Sequence[MaskFiles],
    plan: MetricPlan,
    *,
    structures: Structures | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Score every case; every case reports every structure.

    Args:
        files: The pairs of label maps.
        plan: What to compute.
        structures: What is scored; other values are rejected. By default all values that occur
            in any case are reported, named by number.
        jobs: Processes.
        progress: Called with cases done and cases in all.

    Raises:
        GridMismatchError: If a prediction does not lie on its reference's grid.
        LabelError: If a label map holds fractions or unknown values.
    """
    plan.calls()
    structures = structures or Structures(is_open=True)
    tasks = [MaskTask(one, structures, plan) for one in files]
    measured: list[dict[int, Measured]] = []
    for done in _map(_measure_one, tasks, jobs):
        measured.append(done)
        if progress is not None:
            progress(len(measured), len(tasks))
    found = Measured()
    if any(one.structure for one in files):
        for here in (of_key for rows in measured for of_key in rows.values()):
            found.add(here)
        return found
    everywhere = sorted({key for one in measured for key in one})
    if structures.is_open:
        everywhere = sorted({*everywhere, *structures.labels})
    are_images = any(v.unit == "mm2" for rows in measured for m in rows.values() for v in m.volumes)
    axes = 2 if are_images else 3
    no_voxel = np.zeros((0,) * axes, bool)
    nothing = MaskPair(no_voxel, no_voxel, (1.0,) * axes, no_voxel.shape)
    for one, by_key in zip(files, measured, strict=True):
        for key in everywhere:
            name = structures.name_of(key)
            found.add(by_key.get(key) or measure_pair(one.case, name, nothing, plan))
    return found


def read_masks(
    files: MaskFiles, values: Sequence[int] | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], tuple[float, ...]]:
    """Prediction and reference on the reference's grid, and its spacing in mm.

    Args:
        files: The two files.
        values: What they may hold beside 0; None for anything.

    Raises:
        InputError: One line naming the file and its fault.
    """
    from medvol.core import Geometry
    from medvol.io import read_label, read_scan

    known = range(1, _MAX_LABEL + 1) if values is None else values
    scan = read_scan(files.ref)
    ref = read_label(files.ref, known, reference=scan)
    pred = read_label(files.pred, known, reference=scan)
    shape = ref.array.shape[1:]
    geometry = Geometry((*shape, 1)[:3], ref.affine)  # pyright: ignore[reportArgumentType]
    maps = tuple(scan.array[0].astype(np.int32) for scan in (pred, ref))
    return maps[0], maps[1], geometry.spacing_mm[: len(shape)]


def _measure_one(task: MaskTask) -> dict[int, Measured]:
    """Rows of one case by structure; only of present values if none are listed."""
    files, structures = task.files, task.structures
    pred, ref, spacing = read_masks(files, None if files.structure else structures.values)
    if files.structure:
        pred, ref = (pred > 0).astype(np.uint8), (ref > 0).astype(np.uint8)
        structures = Structures({1: files.structure})
    try:
        return measure_case(files.case, pred, ref, spacing, structures=structures, plan=task.plan)
    except MedvolError as error:
        raise LabelError(f"{files.pred}: {error}") from error


def _map(
    function: Callable[[MaskTask], dict[int, Measured]], tasks: Sequence[MaskTask], jobs: int
) -> Iterator[dict[int, Measured]]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        yield from pool.map(function, tasks)
