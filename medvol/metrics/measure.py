"""What one case's label maps give: rows of ``scores.csv`` and ``volumes.csv``, by one call.

A bundle's own evaluation and ``medvol evaluate masks`` measure through here and write the same
tables, so that one prediction has one score, whichever way it is scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medvol.core.errors import ConfigError
from medvol.core.files import csv_text, fields_to_csv
from medvol.metrics.masks import MaskPair, SpacingMm, check_same_shape
from medvol.metrics.onepass import as_label_map, label_pairs
from medvol.metrics.result import Fields
from medvol.metrics.table import MetricPlan, Score, score_pair, scores_to_csv

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Structures:
    """What is scored in a label map.

    Attributes:
        labels: Label value to name.
        regions: Region name to the label values that it joins; where given, regions are scored
            instead of labels.
        ignore_label: Voxels with this reference value are background in both maps.
        is_open: Score every value that occurs, named by number where ``labels`` has no name.
    """

    labels: Mapping[int, str] = field(default_factory=dict)
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ignore_label: int | None = None
    is_open: bool = False

    @classmethod
    def of(
        cls,
        labels: Mapping[Any, str],
        regions: Mapping[str, Sequence[int]] | None = None,
        ignore_label: int | None = None,
    ) -> Structures:
        """From a config, whose keys are texts.

        Raises:
            ConfigError: If the background or the ignored value would be scored.
        """
        names = {int(value): str(name) for value, name in labels.items()}
        members = {str(n): tuple(int(v) for v in values) for n, values in (regions or {}).items()}
        for values in ([*names], *members.values()):
            if 0 in values or ignore_label in values:
                raise ConfigError(
                    f"label values {sorted(values)} hold 0 (the background) or the ignore label "
                    f"{ignore_label}; neither can be scored"
                )
        return cls(names, members, ignore_label)

    @property
    def values(self) -> list[int] | None:
        """Values that a label map may hold beside 0; None where any may."""
        ignored = [] if self.ignore_label is None else [self.ignore_label]
        return None if self.is_open else [*self.labels, *ignored]

    @property
    def members(self) -> dict[str, tuple[int, ...]]:
        """Name of each region (or label) to the label values that it joins."""
        if self.regions:
            return {name: tuple(values) for name, values in self.regions.items()}
        return {name: (value,) for value, name in self.labels.items()}

    def name_of(self, key: int) -> str:
        """Name of a structure: of a label value, or of the region at that place in the list."""
        return list(self.regions)[key] if self.regions else self.labels.get(key, str(key))

    def pairs(
        self, pred: ArrayLike, ref: ArrayLike, spacing_mm: SpacingMm
    ) -> Iterator[tuple[int, MaskPair]]:
        """Key and pair of masks of every structure, in order; where open, of those that occur.

        Args:
            pred: Predicted label map of integers, shape (X, Y, Z) or (X, Y).
            ref: Reference label map on the same grid.
            spacing_mm: Voxel edge lengths.
        """
        pred, ref = as_label_map(pred, "pred"), as_label_map(ref, "ref")
        check_same_shape(pred, ref)
        if self.ignore_label is not None:
            is_counted = ref != self.ignore_label
            pred, ref = pred * is_counted, ref * is_counted
        if self.regions:
            for key, values in enumerate(self.regions.values()):
                inside = [np.isin(one, list(values)) for one in (pred, ref)]
                yield key, MaskPair.of(inside[0], inside[1], spacing_mm)
            return
        yield from label_pairs(pred, ref, spacing_mm, None if self.is_open else [*self.labels])


@dataclass(frozen=True)
class Volume(Fields):
    """One structure of one case.

    Attributes:
        case: Name of the case.
        label: Name of the label.
        pred: Volume of the prediction (area for images).
        ref: Volume of the reference.
        mean: Mean of the two.
        difference: Prediction minus reference.
        unit: ``ml``, or ``mm2`` for images.
    """

    case: str
    label: str
    pred: float
    ref: float
    mean: float
    difference: float
    unit: str


@dataclass(frozen=True)
class Measured:
    """What was measured on label maps: rows of ``scores.csv`` and of ``volumes.csv``."""

    scores: list[Score] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Append the rows of another case or structure."""
        self.scores.extend(other.scores)
        self.volumes.extend(other.volumes)


class CaseLine(NamedTuple):
    """One row of ``cases.csv``.

    Attributes:
        case: Name of the case.
        group: What its patient goes by within the run, never written; empty where unknown.
        cohort: ``internal`` or ``external``.
        split: ``train``, ``validation`` or ``test`` where the data set states it.
    """

    case: str
    group: str = ""
    cohort: str = "internal"
    split: str = ""


def measure_case(
    case: str,
    pred: ArrayLike,
    ref: ArrayLike,
    spacing_mm: SpacingMm,
    *,
    structures: Structures,
    plan: MetricPlan,
) -> dict[int, Measured]:
    """The rows of one case by the key of each structure (see ``Structures.pairs``).

    Args:
        case: Name of the case.
        pred: Predicted label map of integers, shape (X, Y, Z) or (X, Y).
        ref: Reference label map on the same grid.
        spacing_mm: Voxel edge lengths.
        structures: What is scored.
        plan: What to compute.
    """
    return {
        key: measure_pair(case, structures.name_of(key), pair, plan)
        for key, pair in structures.pairs(pred, ref, spacing_mm)
    }


def measure_pair(case: str, label: str, pair: MaskPair, plan: MetricPlan) -> Measured:
    """The rows of one structure of one case."""
    return Measured(score_pair(case, label, pair, plan), [measure_volume(case, label, pair)])


def measure_volume(case: str, label: str, pair: MaskPair) -> Volume:
    """Volumes of a pair of masks; an empty mask has none."""
    is_image = len(pair.spacing_mm) == 2
    voxel = math.prod(pair.spacing_mm) / (1 if is_image else _MM3_PER_ML)
    pred, ref = pair.n_pred * voxel, pair.n_ref * voxel
    return Volume(case, label, pred, ref, (pred + ref) / 2, pred - ref, "mm2" if is_image else "ml")


def measured_tables(
    found: Measured,
    cases: Sequence[CaseLine],
    *,
    suffix: str = "",
    further: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, str]:
    """File name to text of the tables of one cohort.

    Args:
        found: What was measured.
        cases: The cases, in order.
        suffix: Of the file names: empty, or ``_external``.
        further: More columns of ``cases.csv``, a value per case.
    """
    return {
        f"scores{suffix}.csv": scores_to_csv(found.scores),
        f"volumes{suffix}.csv": fields_to_csv(Volume, found.volumes),
        f"cases{suffix}.csv": cases_to_csv(cases, further),
    }


def cases_to_csv(
    cases: Sequence[CaseLine], further: Mapping[str, Sequence[Any]] | None = None
) -> str:
    """The text of ``cases.csv``.

    ``patient_group`` numbers the patients in order of appearance: cases with one number are of one
    patient, an empty cell is of an unknown one, and nobody is named.
    """
    number: dict[str, int] = {}
    columns = further or {}
    rows = []
    for k, line in enumerate(cases):
        group = number.setdefault(line.group, len(number) + 1) if line.group else ""
        rows.append((line.case, line.cohort, group, line.split, *(v[k] for v in columns.values())))
    return csv_text(["case", "cohort", "patient_group", "split", *columns], rows)
