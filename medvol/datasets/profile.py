"""What a data set is, and whether it is enough: counts, balance, effort, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from medvol.core.errors import ConfigError, MissingInputError
from medvol.datasets.manifest import Manifest
from medvol.datasets.stats import CaseStats, read_all_stats

_RARE = 0.05
_FEW_IMAGES = 1000
_FEW_EFFECTIVE = 200
_UNEVEN = 3.0


@dataclass(frozen=True)
class Effort:
    """What annotation takes.

    Attributes:
        minutes_per_item: One reader, one item: an image to classify (2 minutes by default), or a
            structure of a case to outline (20 minutes by default).
        readers: Independent readers of every item.
        rate_per_hour: Pay of a reader, in ``currency``.
        currency: For display.
    """

    minutes_per_item: float | None = None
    readers: int = 1
    rate_per_hour: float = 100.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        if self.readers < 1 or not (self.rate_per_hour >= 0 and (self.minutes_per_item or 0) >= 0):
            raise ConfigError("readers must be at least 1, minutes and rate at least 0")


@dataclass
class DatasetProfile:
    """A data set in numbers.

    Attributes:
        name: The data set.
        task: ``classification``, ``segmentation``, or ``unlabelled``.
        counts: cases, patients, images per patient, sites, with_label and so on.
        classes: Class name to count of images.
        patients_by_class: Class name to count of patients; one with two classes counts in both.
        imbalance_ratio: Largest over smallest class; nan with fewer than two.
        effective_n: Independent, balanced cases that this data set is worth, see
            ``effective_sample_size``.
        annotation_hours: Reader hours for all labelled items; for all images where none is.
        annotation_cost: Hours times rate.
        effort: What the two rest on.
        labels: Per structure: cases with it, median and 10 to 90% range of its volume.
        foreground_share: Median share of voxels with a label; nan without label maps.
        grids: Shapes, spacings, orientations, channels.
        intensities: Percentiles over cases of each case's percentiles.
        warnings: What to do about it, one line each.
        stats: Numbers of each case.
        rejected: Cases that the input checks rejected.
    """

    name: str
    task: Literal["classification", "segmentation", "unlabelled"]
    counts: dict[str, int]
    classes: dict[str, int]
    patients_by_class: dict[str, int]
    imbalance_ratio: float
    effective_n: float
    annotation_hours: float
    annotation_cost: float
    effort: Effort
    labels: dict[str, dict[str, float]] = field(default_factory=dict)
    foreground_share: float = float("nan")
    grids: dict[str, Any] = field(default_factory=dict)
    intensities: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    stats: list[CaseStats] = field(default_factory=list, repr=False)
    rejected: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: no per-case numbers, nan as null."""
        row = {name: value for name, value in self.__dict__.items() if name != "stats"}
        row["effort"] = asdict(self.effort)
        return _without_nan(row)


def profile_dataset(
    manifest: Manifest,
    *,
    effort: Effort | None = None,
    progress: Callable[[int], None] | None = None,
) -> DatasetProfile:
    """Measure every case and sum up.

    Args:
        manifest: The data set.
        effort: What an annotation takes.
        progress: Called with the number of cases done.

    Raises:
        MissingInputError: If no case passes the input checks.
    """
    effort = effort or Effort()
    stats, rejected = read_all_stats(manifest, progress=progress)
    if not stats:
        raise MissingInputError(f"{manifest.root}: no case can be read; {rejected[0][1]}")
    classes = Counter(case.category for case in manifest.cases if case.category is not None)
    is_segmentation = any(case.label for case in manifest.cases)
    task = "segmentation" if is_segmentation else "classification" if classes else "unlabelled"
    by_class = {
        name: len({c.group for c in manifest.cases if c.category == name}) for name in classes
    }
    patients = len({case.group for case in manifest.cases})
    hours = _hours(manifest, stats, task, effort)
    profile = DatasetProfile(
        name=manifest.name,
        task=task,
        counts=_counts(manifest, patients),
        classes=dict(sorted(classes.items())),  # pyright: ignore[reportArgumentType]
        patients_by_class=dict(sorted(by_class.items())),  # pyright: ignore[reportArgumentType]
        imbalance_ratio=max(classes.values()) / min(classes.values())
        if len(classes) > 1
        else float("nan"),
        effective_n=effective_sample_size(by_class, patients),
        annotation_hours=hours,
        annotation_cost=hours * effort.rate_per_hour,
        effort=effort,
        stats=stats,
        rejected=[case.case for case, _ in rejected],
    )
    profile.labels, profile.foreground_share = _labels(manifest, stats)
    profile.grids, profile.intensities = _grids(stats), _intensities(stats)
    profile.warnings = _warnings(profile, manifest)
    return profile


def effective_sample_size(patients_by_class: Mapping[Any, int], patients: int) -> float:
    """How many independent cases in balanced classes the data set is worth.

    Images of one patient count once. With K classes of n_k patients it is Kish's effective size
    under weights that balance the classes, K^2 / sum(1 / n_k): equal classes keep their number,
    and a rare class bounds it at K^2 times its own.

    Source:
        Kish 1965, Survey Sampling, section 11.7: (sum w)^2 / sum w^2 with w = 1 / n_k.

    >>> effective_sample_size({"ill": 50, "well": 50}, 100)
    100.0
    >>> round(effective_sample_size({"ill": 5, "well": 995}, 1000), 1)
    19.9
    """
    if len(patients_by_class) < 2:
        return float(patients)
    size = len(patients_by_class) ** 2 / sum(1 / n for n in patients_by_class.values())
    return float(min(size, patients))


def _counts(manifest: Manifest, patients: int) -> dict[str, int]:
    cases = manifest.cases
    splits = Counter(case.split for case in cases if case.split)
    return {
        "cases": len(cases),
        "patients": patients,
        "known_patients": len({case.patient for case in cases if case.patient}),
        "sites": len({case.site for case in cases if case.site}),
        "with_label_map": sum(case.label is not None for case in cases),
        "with_class": sum(case.category is not None for case in cases),
        "with_sex": sum(case.sex is not None for case in cases),
        **{f"split_{name}": count for name, count in sorted(splits.items())},
    }


def _hours(manifest: Manifest, stats: Sequence[CaseStats], task: str, effort: Effort) -> float:
    if task == "segmentation":
        items = sum(len(entry.volumes_ml) for entry in stats)
        minutes = 20.0 if effort.minutes_per_item is None else effort.minutes_per_item
    else:
        classed = sum(case.category is not None for case in manifest.cases)
        items = classed or len(manifest.cases)
        minutes = 2.0 if effort.minutes_per_item is None else effort.minutes_per_item
    return items * minutes * effort.readers / 60


def _labels(
    manifest: Manifest, stats: Sequence[CaseStats]
) -> tuple[dict[str, dict[str, float]], float]:
    labelled = {case.case for case in manifest.cases if case.label is not None}
    having = [entry for entry in stats if entry.case in labelled]
    rows: dict[str, dict[str, float]] = {}
    for value in sorted({v for entry in having for v in entry.volumes_ml} | set(manifest.labels)):
        volumes = [entry.volumes_ml[value] for entry in having if value in entry.volumes_ml]
        low, median, high = np.percentile(volumes, (10, 50, 90)) if volumes else (np.nan,) * 3
        rows[manifest.legal_labels.get(value, f"label {value}")] = {
            "value": value,
            "cases": len(volumes),
            "volume_p10": float(low),
            "volume_median": float(median),
            "volume_p90": float(high),
        }
    shares = []
    for entry in having:
        voxel = float(np.prod(entry.spacing_mm)) / 1000 if entry.spacing_mm else 1.0
        shares.append(sum(entry.volumes_ml.values()) / (voxel * float(np.prod(entry.shape))))
    return rows, float(np.median(shares)) if shares else float("nan")


def _grids(stats: Sequence[CaseStats]) -> dict[str, Any]:
    volumes = [entry for entry in stats if entry.spacing_mm]
    rows: dict[str, Any] = {
        "dimensions": sorted({len(entry.shape) for entry in stats}),
        "channels": dict(Counter(str(entry.channels) for entry in stats)),
        "orientations": dict(Counter(entry.axis_codes for entry in volumes)),
    }
    for name, source in (
        ("shape", [e.shape for e in stats]),
        ("spacing_mm", [e.spacing_mm for e in volumes]),
    ):
        if source and len({len(row) for row in source}) == 1:
            table = np.asarray(source, float)
            rows[name] = {
                key: [round(float(v), 4) for v in np.percentile(table, q, axis=0)]
                for key, q in (("p10", 10), ("median", 50), ("p90", 90))
            }
    if volumes:
        spacing = np.asarray([entry.spacing_mm for entry in volumes])
        rows["anisotropy_median"] = round(
            float(np.median(spacing.max(axis=1) / spacing.min(axis=1))), 3
        )
    return rows


def _intensities(stats: Sequence[CaseStats]) -> dict[str, float]:
    table = np.asarray([entry.percentiles for entry in stats])
    names = ("min", "p1", "median", "p99", "max")
    return {name: float(np.median(table[:, k])) for k, name in enumerate(names)}


def _warnings(profile: DatasetProfile, manifest: Manifest) -> list[str]:
    rows = []
    total = sum(profile.classes.values())
    for name, count in profile.classes.items():
        if len(profile.classes) > 1 and count < _RARE * total:
            rows.append(
                f"class {name} is {count} of {total} images ({count / total:.1%}), under 5%: "
                "use a focal loss or a balanced sampler, and report average precision"
            )
    if profile.imbalance_ratio > _UNEVEN:
        rows.append(
            f"the largest class is {profile.imbalance_ratio:.1f} times the smallest: accuracy "
            "would flatter; weight the loss and report sensitivity and specificity"
        )
    if profile.foreground_share < _RARE:
        rows.append(
            f"labels fill {profile.foreground_share:.2%} of the voxels, under 5%: use Dice with "
            "cross-entropy or focal loss, and sample patches with foreground"
        )
    if len(manifest.cases) < _FEW_IMAGES:
        rows.append(
            f"{len(manifest.cases)} images, under 1000: start from pretrained weights "
            "(transfer learning) and augment"
        )
    if profile.effective_n < _FEW_EFFECTIVE:
        rows.append(
            f"effective sample size {profile.effective_n:.0f}, under 200: few-shot territory; "
            "cross-validate, prefer small models, expect wide intervals"
        )
    if not profile.counts["known_patients"]:
        rows.append("no patient ids: a split cannot keep a patient's images together")
    elif profile.counts["patients"] < len(manifest.cases):
        rows.append(
            f"{len(manifest.cases)} images of {profile.counts['patients']} patients: split and "
            "resample by patient"
        )
    if len(profile.grids["orientations"]) > 1:
        rows.append(
            f"orientations differ ({', '.join(sorted(profile.grids['orientations']))}): "
            "reorient before training"
        )
    if profile.grids.get("anisotropy_median", 1.0) > _UNEVEN:
        rows.append(
            f"voxels are anisotropic ({profile.grids['anisotropy_median']:.1f} to 1): consider "
            "smaller kernels and patches along the coarse axis"
        )
    if profile.rejected:
        rows.append(f"{len(profile.rejected)} cases were rejected; run medvol data check")
    return rows


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
