"""Predicted and reference label maps become rows of ``scores.csv``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import LabelError, MedvolError
from medvol.evaluation.agreement import Volume, measure_volume
from medvol.evaluation.pairing import MaskFiles
from medvol.metrics import MaskPair, MetricPlan, Score, label_pairs, score_pair

_MAX_LABEL = 65_535


@dataclass(frozen=True)
class MaskTask:
    """What a worker needs to score one case."""

    files: MaskFiles
    labels: Mapping[int, str] | None
    plan: MetricPlan


@dataclass(frozen=True)
class Measured:
    """What was measured on label maps: rows of ``scores.csv`` and of ``volumes.csv``."""

    scores: list[Score]
    volumes: list[Volume]


def score_masks(
    files: Sequence[MaskFiles],
    plan: MetricPlan,
    *,
    labels: Mapping[int, str] | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """The scores of ``measure_masks``."""
    return measure_masks(files, plan, labels=labels, jobs=jobs, progress=progress).scores


def measure_masks(
    files: Sequence[MaskFiles],
    plan: MetricPlan,
    *,
    labels: Mapping[int, str] | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Score every case; every case reports every label.

    Args:
        files: The pairs of label maps.
        plan: What to compute.
        labels: Label value to name; other values are refused. By default all values that occur
            in any case are reported, named by number.
        jobs: Processes.
        progress: Called with cases done and cases in all.

    Raises:
        GridMismatchError: If a prediction does not lie on its reference's grid.
        LabelError: If a label map holds fractions or unknown values.
    """
    plan.calls()
    tasks = [MaskTask(one, labels, plan) for one in files]
    measured: list[dict[int, Measured]] = []
    for done in _map(_measure_one, tasks, jobs):
        measured.append(done)
        if progress is not None:
            progress(len(measured), len(tasks))
    found = Measured([], [])
    if any(one.structure for one in files):
        for here in (of_value for rows in measured for of_value in rows.values()):
            found.scores.extend(here.scores)
            found.volumes.extend(here.volumes)
        return found
    everywhere = sorted(labels or {value for one in measured for value in one})
    are_images = any(v.unit == "mm2" for rows in measured for m in rows.values() for v in m.volumes)
    axes = 2 if are_images else 3
    nothing = MaskPair(np.zeros((0,) * axes, bool), np.zeros((0,) * axes, bool), (1.0,) * axes, 1)
    for one, by_value in zip(files, measured, strict=True):
        for value in everywhere:
            name = (labels or {}).get(value, str(value))
            here = by_value.get(value) or _measure_pair(one.case, name, nothing, plan)
            found.scores.extend(here.scores)
            found.volumes.extend(here.volumes)
    return found


def read_masks(
    files: MaskFiles, labels: Mapping[int, str] | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], tuple[float, ...]]:
    """Prediction and reference on the reference's grid, and its spacing in mm.

    Raises:
        InputError: One line naming the file and its fault.
    """
    from medvol.core import Geometry
    from medvol.io import read_label, read_scan

    known = range(1, _MAX_LABEL + 1) if labels is None else labels
    scan = read_scan(files.ref)
    ref = read_label(files.ref, known, reference=scan)
    pred = read_label(files.pred, known, reference=scan)
    shape = ref.array.shape[1:]
    geometry = Geometry((*shape, 1)[:3], ref.affine)  # pyright: ignore[reportArgumentType]
    maps = tuple(scan.array[0].astype(np.int32) for scan in (pred, ref))
    return maps[0], maps[1], geometry.spacing_mm[: len(shape)]


def _measure_one(task: MaskTask) -> dict[int, Measured]:
    """Rows of one case by label value; only of present labels if none are listed."""
    pred, ref, spacing = read_masks(task.files, None if task.files.structure else task.labels)
    if task.files.structure:
        pair = dict(label_pairs(pred > 0, ref > 0, spacing, [1]))[1]
        return {1: _measure_pair(task.files.case, task.files.structure, pair, task.plan)}
    values = None if task.labels is None else list(task.labels)
    rows = {}
    try:
        for value, pair in label_pairs(pred, ref, spacing, values):
            name = (task.labels or {}).get(value, str(value))
            rows[value] = _measure_pair(task.files.case, name, pair, task.plan)
    except MedvolError as error:
        raise LabelError(f"{task.files.pred}: {error}") from error
    return rows


def _measure_pair(case: str, label: str, pair: MaskPair, plan: MetricPlan) -> Measured:
    return Measured(score_pair(case, label, pair, plan), [measure_volume(case, label, pair)])


def _map(
    function: Callable[[MaskTask], dict[int, Measured]], tasks: Sequence[MaskTask], jobs: int
) -> Iterator[dict[int, Measured]]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        yield from pool.map(function, tasks)
