"""Predicted and reference label maps become rows of ``scores.csv``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import LabelError, MedvolError
from medvol.evaluation.pairing import MaskFiles
from medvol.metrics import MaskPair, MetricPlan, Score, label_pairs, score_pair

_MAX_LABEL = 65_535


@dataclass(frozen=True)
class MaskTask:
    """What a worker needs to score one case."""

    files: MaskFiles
    labels: Mapping[int, str] | None
    plan: MetricPlan


def score_masks(
    files: Sequence[MaskFiles],
    plan: MetricPlan,
    *,
    labels: Mapping[int, str] | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
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
    scored: list[dict[int, list[Score]]] = []
    for done in _map(_score_one, tasks, jobs):
        scored.append(done)
        if progress is not None:
            progress(len(scored), len(tasks))
    if any(one.structure for one in files):
        return [row for rows in scored for of_value in rows.values() for row in of_value]
    everywhere = sorted(labels or {value for rows in scored for value in rows})
    nothing = MaskPair(np.zeros((0,) * 3, bool), np.zeros((0,) * 3, bool), (1.0,) * 3, 1)
    found = []
    for one, rows in zip(files, scored, strict=True):
        for value in everywhere:
            name = (labels or {}).get(value, str(value))
            found += rows.get(value) or score_pair(one.case, name, nothing, plan)
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


def _score_one(task: MaskTask) -> dict[int, list[Score]]:
    """Rows of one case by label value; only of present labels if none are listed."""
    pred, ref, spacing = read_masks(task.files, None if task.files.structure else task.labels)
    if task.files.structure:
        pair = dict(label_pairs(pred > 0, ref > 0, spacing, [1]))[1]
        return {1: score_pair(task.files.case, task.files.structure, pair, task.plan)}
    values = None if task.labels is None else list(task.labels)
    rows = {}
    try:
        for value, pair in label_pairs(pred, ref, spacing, values):
            name = (task.labels or {}).get(value, str(value))
            rows[value] = score_pair(task.files.case, name, pair, task.plan)
    except MedvolError as error:
        raise LabelError(f"{task.files.pred}: {error}") from error
    return rows


def _map(
    function: Callable[[MaskTask], dict[int, list[Score]]], tasks: Sequence[MaskTask], jobs: int
) -> Iterator[dict[int, list[Score]]]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        yield from pool.map(function, tasks)
