"""Lesions of one patient at two times: matched, measured, and compared with repeatability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError, InputError, MissingInputError
from medvol.core.files import fields_to_csv, write_text
from medvol.core.runs import write_run
from medvol.evaluation.pairing import MaskFiles
from medvol.evaluation.rows import read_table
from medvol.evaluation.segmentation import read_masks
from medvol.metrics.lesions import components
from medvol.metrics.result import Fields

#: What ``run.json`` calls a run of this module.
LESION_RUN = "evaluate lesions"
_MM3_PER_ML = 1000.0
_COLUMNS = ("case", "baseline", "followup")
_KINDS = ("", "follow", "followup", "follow-up", "retest")


@dataclass(frozen=True)
class LesionChange(Fields):
    """One lesion (or lesions that merged or split) followed over time.

    Attributes:
        case: Name of the pair.
        label: Label value.
        lesion: Number within the pair and label.
        status: ``new``, ``resolved``, ``grown``, ``shrunk``, ``stable``; ``undecided`` without a
            repeatability limit.
        baseline_ml: Volume at baseline, 0 if new.
        followup_ml: Volume at follow-up, 0 if resolved.
        change_percent: Relative change; ``inf`` if new.
        n_baseline: Components at baseline; more than one where lesions merged.
        n_followup: Components at follow-up; more than one where a lesion split.
    """

    case: str
    label: int
    lesion: int
    status: str
    baseline_ml: float
    followup_ml: float
    change_percent: float
    n_baseline: int
    n_followup: int


def follow_pairs(
    pairs: Path, output: Path, repeatability_percent: float | None = None
) -> list[dict[str, Any]]:
    """Follow every pair of a CSV and write ``longitudinal.csv``.

    Args:
        pairs: CSV with columns ``case``, ``baseline``, ``followup`` (label maps on one grid, that
            is, registered) and optionally ``kind``: ``follow`` (or empty), or ``retest``, repeats
            without true change, from whose matched lesions the repeatability limit is measured.
        output: Folder to write.
        repeatability_percent: The limit, where it was measured elsewhere.

    Returns:
        The rows as JSON values.
    """
    rows = _read_pairs(pairs)
    retests = [row for row in rows if row["kind"] == "retest"]
    followed = [row for row in rows if row["kind"] != "retest"]
    limit = _limit(pairs, retests, repeatability_percent)
    changes: list[LesionChange] = []
    for row in followed:
        files = MaskFiles(row["case"], Path(row["followup"]), Path(row["baseline"]))
        followup, baseline, spacing = read_masks(files, None)
        changes += follow(row["case"], baseline, followup, spacing, limit)
    write_text(output / "longitudinal.csv", fields_to_csv(LesionChange, changes))
    inputs = [Path(row[name]) for row in rows for name in ("baseline", "followup")]
    options = {"pairs": pairs, "repeatability_percent": repeatability_percent}
    write_run(output, LESION_RUN, options, [pairs, *inputs], ["longitudinal.csv"])
    bounds = {} if limit is None else {"limits_percent": [100 * (b - 1) for b in limit]}
    return [{**change.to_json(), **bounds} for change in changes]


def follow(
    case: str,
    baseline: NDArray[np.integer],
    followup: NDArray[np.integer],
    spacing_mm: Sequence[float],
    limit: tuple[float, float] | None = None,
) -> list[LesionChange]:
    """Match the lesions of two label maps on one grid and classify their change.

    Lesions that overlap, also through a third, are one: a merged or split lesion is compared
    by its total volume.

    Args:
        case: Name of the pair.
        baseline: Label map at baseline.
        followup: Label map at follow-up.
        spacing_mm: Voxel edge lengths.
        limit: Smallest and largest volume ratio that repeatability explains.
    """
    voxel_ml = float(np.prod(spacing_mm)) / _MM3_PER_ML
    changes = []
    box = _box((baseline != 0) | (followup != 0))
    baseline, followup = baseline[box], followup[box]
    for label in np.setdiff1d(np.union1d(baseline, followup), [0]).tolist():
        groups = _linked(baseline == label, followup == label)
        for number, (before, after, n_before, n_after) in enumerate(groups, start=1):
            ratio = after / before if before else math.inf
            changes.append(
                LesionChange(
                    case, int(label), number, _status(before, after, limit), before * voxel_ml,
                    after * voxel_ml, 100 * (ratio - 1), n_before, n_after,
                )
            )  # fmt: skip
    return changes


def repeatability_limit(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Volume ratios within which 95% of repeats without true change lie.

    The within-subject standard deviation of log volumes gives exp(-r) to exp(r) with
    r = 1.96 sqrt(2) wSD.

    Args:
        first: Volumes of the first measurement.
        second: Volumes of the repeat.

    Raises:
        ConfigError: If there are fewer than 3 pairs or a volume is not positive.

    Source:
        Bland & Altman 1996, BMJ 312:1654 (on logs); Raunig et al. 2015, Stat Methods Med Res 24:27.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape or a.size < 3 or min(a.min(), b.min()) <= 0:
        raise ConfigError("a repeatability limit needs at least 3 pairs of positive volumes")
    r = 1.96 * math.sqrt(float(np.mean(np.log(b / a) ** 2)))
    return math.exp(-r), math.exp(r)


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds the mask; whole scans are mostly empty."""
    from scipy.ndimage import find_objects

    found = find_objects(mask.view(np.uint8))
    return found[0] if found else (slice(0, 0),) * mask.ndim


def _linked(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Voxels before and after, and components before and after, of each linked group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, n = components(before)
    second, m = components(after)
    both = before & after
    edges = (first[both] - 1, second[both] - 1 + n)
    graph = coo_array((np.ones(edges[0].size), edges), shape=(n + m, n + m))
    count, group = connected_components(graph, directed=False)
    sizes = np.concatenate(
        [np.bincount(first.ravel(), minlength=n + 1)[1:],
         np.bincount(second.ravel(), minlength=m + 1)[1:]]
    )  # fmt: skip
    is_after = np.arange(n + m) >= n
    found = []
    for index in range(count):
        inside = group == index
        found.append(
            (int(sizes[inside & ~is_after].sum()), int(sizes[inside & is_after].sum()),
             int((inside & ~is_after).sum()), int((inside & is_after).sum()))
        )  # fmt: skip
    return found


def _status(before: int, after: int, limit: tuple[float, float] | None) -> str:
    if not before:
        return "new"
    if not after:
        return "resolved"
    if limit is None:
        return "undecided"
    ratio = after / before
    if ratio > limit[1]:
        return "grown"
    return "shrunk" if ratio < limit[0] else "stable"


def _limit(
    pairs: Path, retests: Sequence[Mapping[str, str]], percent: float | None
) -> tuple[float, float] | None:
    if percent is not None:
        if percent <= 0:
            raise ConfigError(f"a repeatability limit must be positive, not {percent} per cent")
        return 1 / (1 + percent / 100), 1 + percent / 100
    if not retests:
        return None
    found: list[LesionChange] = []
    for row in retests:
        files = MaskFiles(row["case"], Path(row["followup"]), Path(row["baseline"]))
        second, first, spacing = read_masks(files, None)
        found += follow(row["case"], first, second, spacing)
    # Of single lesions, as they are judged: the volume of all together varies less than theirs.
    volumes = [(one.baseline_ml, one.followup_ml) for one in found]
    volumes = [pair for pair in volumes if min(pair) > 0] or [(0.0, 0.0)]
    try:
        return repeatability_limit(*zip(*volumes, strict=True))
    except ConfigError as error:
        raise InputError(f"{pairs}: rows of kind retest: {error}") from error


def _read_pairs(path: Path) -> list[dict[str, str]]:
    header, rows = read_table(path)
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}; needed: {', '.join(_COLUMNS)}")
    for line, row in enumerate(rows, start=2):
        row["kind"] = row.get("kind", "").lower()
        if row["kind"] not in _KINDS:
            raise InputError(f"{path}: line {line}: kind {row['kind']!r} is neither retest nor "
                             "follow")  # fmt: skip
        for name in ("baseline", "followup"):
            if not row[name]:
                raise InputError(f"{path}: line {line}: {name} is empty")
            file = path.parent / row[name]
            if not file.exists():
                raise MissingInputError(f"{path}: case {row['case']!r}: {file} does not exist")
            row[name] = str(file)
    return rows
