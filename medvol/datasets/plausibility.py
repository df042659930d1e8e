"""Readable, but hardly true: mirrored scans, wrong modalities, impossible volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvol.core.labels import side_of
from medvol.datasets.manifest import Manifest
from medvol.datasets.stats import CaseStats

# Side of unpaired organs in RAS: +1 is the patient's right.
_SIDE = {"spleen": -1, "stomach": -1, "heart": -1, "liver": 1, "gallbladder": 1}
_FEWEST = 8
#: Robust z-score (median absolute deviation) beyond which a log volume is an outlier.
_EXTREME_Z = 6.0
_LEAST_LOG_SPREAD = 0.15
_MIRRORS = ("left-right", "front-back", "head-foot")
#: Log ratios of edge strength: the least that tells an anatomy from its mirror image, the least
#: spread over cases, and how far out a mirrored one lies.
_LEAST_FIT, _LEAST_FIT_SPREAD, _EXTREME_FIT_Z = 0.08, 0.03, 4.0


@dataclass(frozen=True)
class Oddity:
    """Something implausible about one case."""

    case: str
    kind: str
    text: str


def find_oddities(stats: Sequence[CaseStats], manifest: Manifest) -> list[Oddity]:
    """Everything implausible, ordered by case."""
    rows: list[Oddity] = []
    for entry in stats:
        rows += _intensities(entry, manifest.modality)
        rows += _sides(entry, manifest.labels)
    labelled = {case.case for case in manifest.cases if case.label is not None}
    rows += [
        Oddity(entry.case, "empty label", "the label map is empty")
        for entry in stats
        if entry.case in labelled and not entry.volumes_ml
    ]
    rows += _volumes(stats, manifest.labels)
    already = {row.case for row in rows if row.kind == "mirrored"}
    rows += [row for row in _mirrored(stats) if row.case not in already]
    already |= {row.case for row in rows if row.kind == "mirrored"}
    rows += [row for row in _mirrored_labels(stats) if row.case not in already]
    rows += _grids(stats)
    return sorted(rows, key=lambda row: row.case)


def _intensities(entry: CaseStats, modality: str | None) -> Iterator[Oddity]:
    low, p1, median, _, high = entry.percentiles
    if low == high:
        yield Oddity(entry.case, "constant image", f"every voxel of the image is {low:g}")
        return
    for channel in entry.flat_channels:
        yield Oddity(
            entry.case, "constant image", f"every voxel of channel {channel} has the same value"
        )
    looks_hu = low <= -900 and p1 >= -1100 and high > 100
    if modality == "CT":
        if low < -8192 or high > 32767:
            yield Oddity(
                entry.case, "HU range", f"values from {low:g} to {high:g} are not Hounsfield units"
            )
        elif low >= 0 and high <= 255 and entry.is_whole:
            yield Oddity(
                entry.case,
                "HU range",
                f"values from {low:g} to {high:g}: a windowed 8-bit image, not Hounsfield units",
            )
        elif p1 >= 0 and median > 500:
            yield Oddity(
                entry.case,
                "HU range",
                f"1% of voxels lie below {p1:g}, half above {median:g}: "
                "the rescale intercept (often -1024) seems to be missing",
            )
        elif high <= 30 and low > -30:
            yield Oddity(
                entry.case,
                "wrong modality",
                f"values from {low:g} to {high:g} were normalised; a CT has Hounsfield units",
            )
    elif modality in ("MR", "PT") and looks_hu:
        yield Oddity(
            entry.case,
            "wrong modality",
            f"the data set is {modality}, but values from "
            f"{low:g} (air) to {high:g} are those of a CT",
        )
    elif modality == "PT" and low < 0:
        yield Oddity(
            entry.case, "wrong modality", f"uptake cannot be below 0, values start at {low:g}"
        )


def _sides(entry: CaseStats, labels: dict[int, str]) -> Iterator[Oddity]:
    """Organs on the side where no patient has them, judged against the middle of the body."""
    by_name = {labels[v]: center[0] for v, center in entry.centers_mm.items() if v in labels}
    for name, x in by_name.items():
        if side_of(name) == "left":
            other = _other_side(name, by_name)
            if other and x > by_name[other]:
                yield Oddity(entry.case, "mirrored", f"{name} lies to the right of {other}")
    for name, side in _SIDE.items():
        x = by_name.get(name)
        if x is not None and x * side < -0.08 * entry.body_mm[0] and entry.body_mm[0] > 150:
            where = "right" if side < 0 else "left"
            yield Oddity(
                entry.case, "mirrored", f"{name} lies {abs(x):.0f} mm to the patient's {where}"
            )


def _other_side(name: str, known: dict[str, float]) -> str | None:
    swaps = (("left", "right"), ("Left", "Right"), ("_l", "_r"), ("_L", "_R"))
    found = (name.replace(a, b) for a, b in swaps if a in name)
    return next((other for other in found if other in known and other != name), None)


def _volumes(stats: Sequence[CaseStats], labels: dict[int, str]) -> Iterator[Oddity]:
    for value in sorted({value for entry in stats for value in entry.volumes_ml}):
        having = [entry for entry in stats if value in entry.volumes_ml]
        if len(having) < _FEWEST:
            continue
        logs = np.log([entry.volumes_ml[value] for entry in having])
        z = _robust_z(logs, _LEAST_LOG_SPREAD)
        unit = "ml" if having[0].spacing_mm else "pixels"
        for entry, score in zip(having, z, strict=True):
            if abs(score) > _EXTREME_Z:
                yield Oddity(
                    entry.case,
                    "outlier volume",
                    f"{labels.get(value, f'label {value}')} has "
                    f"{entry.volumes_ml[value]:.3g} {unit}, the median case "
                    f"{np.exp(np.median(logs)):.3g}",
                )


def _mirrored(stats: Sequence[CaseStats]) -> Iterator[Oddity]:
    """Cases whose labels lie where the mirror image of the usual case has them."""
    shared = [set(entry.centers_mm) for entry in stats if entry.centers_mm]
    common = sorted(set.intersection(*shared)) if len(shared) >= _FEWEST else []
    if not common:
        return
    having = [entry for entry in stats if entry.centers_mm]
    centers = np.asarray([[entry.centers_mm[v] for v in common] for entry in having])
    usual = np.median(centers, axis=0)
    spread = float(np.median(np.linalg.norm(centers - usual, axis=-1)))
    for axis, name in enumerate(_MIRRORS):
        image = usual * np.where(np.arange(3) == axis, -1, 1)
        if np.abs(usual[:, axis]).max() < 2.5 * max(spread, 1.0):
            continue  # the anatomy does not tell the sides apart
        direct = np.linalg.norm(centers - usual, axis=-1).mean(axis=1)
        turned = np.linalg.norm(centers - image, axis=-1).mean(axis=1)
        for entry, straight, mirror in zip(having, direct, turned, strict=True):
            if mirror < 0.5 * straight:
                yield Oddity(
                    entry.case,
                    "mirrored",
                    f"the labels lie {straight:.0f} mm from where the "
                    f"other cases have them, {mirror:.0f} mm after a {name} mirror",
                )


def _mirrored_labels(stats: Sequence[CaseStats]) -> Iterator[Oddity]:
    """Labels that follow the edges of their image better when mirrored, unlike the others'."""
    having = [entry for entry in stats if np.isfinite(entry.mirror_fit or np.nan).all()]
    if len(having) < _FEWEST:
        return
    fits = np.asarray([entry.mirror_fit for entry in having])
    reported: set[str] = set()
    for axis, name in enumerate(_MIRRORS):
        usual = float(np.median(fits[:, axis]))
        if usual < _LEAST_FIT:
            continue  # mirror images fit this anatomy as well
        z = _robust_z(fits[:, axis], _LEAST_FIT_SPREAD)
        for entry, fit, score in zip(having, fits[:, axis], z, strict=True):
            if fit < -0.5 * usual and score < -_EXTREME_FIT_Z and entry.case not in reported:
                reported.add(entry.case)
                yield Oddity(
                    entry.case,
                    "mirrored",
                    f"the label follows the edges of its image {np.exp(-fit):.2f} times as well "
                    f"after a {name} mirror; the other cases' do so {np.exp(-usual):.2f} times",
                )


def _grids(stats: Sequence[CaseStats]) -> Iterator[Oddity]:
    """Voxels more than six times larger or smaller than the usual: a unit gone wrong."""
    volumes = [entry for entry in stats if entry.spacing_mm]
    if len(volumes) >= _FEWEST:
        sizes = np.asarray([entry.spacing_mm for entry in volumes]).prod(axis=1)
        usual = float(np.median(sizes))
        for entry, size in zip(volumes, sizes, strict=True):
            if not usual / 216 <= size <= usual * 216:
                spacing = " x ".join(f"{v:g}" for v in entry.spacing_mm)
                yield Oddity(
                    entry.case, "outlier grid", f"spacing {spacing} mm, far from the other cases"
                )
    channels = [entry.channels for entry in stats]
    if channels:
        usual_channels = max(set(channels), key=channels.count)
        for entry in stats:
            if entry.channels != usual_channels:
                yield Oddity(
                    entry.case,
                    "outlier grid",
                    f"has {entry.channels} channels, the other cases {usual_channels}",
                )


def _robust_z(values: NDArray[np.float64], least_spread: float) -> NDArray[np.float64]:
    middle = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), least_spread)
    return (values - middle) / spread
