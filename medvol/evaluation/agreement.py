"""Volumes of predictions and references, and how far they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medvol.evaluation.cases import CaseInfo
from medvol.evaluation.summary import SMALL_GROUP, BootstrapPlan
from medvol.metrics import MaskPair, limits_of_agreement
from medvol.metrics.result import Fields

_MM3_PER_ML = 1000.0


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
class AgreementRow(Fields):
    """Bland and Altman's bias and 95% limits of agreement of one label's volumes.

    Attributes:
        cohort: ``internal`` or ``external``.
        label: Name of the label.
        unit: Unit of the volumes.
        n: Cases.
        n_patients: Patients, which are what is resampled.
        bias: Mean of prediction minus reference.
        bias_lower: Its interval.
        bias_upper: Likewise.
        low: Lower limit of agreement.
        low_lower: Its interval.
        low_upper: Likewise.
        high: Upper limit of agreement.
        high_lower: Its interval.
        high_upper: Likewise.
        is_small: Whether there are fewer than ``SMALL_GROUP`` patients.
    """

    cohort: str
    label: str
    unit: str
    n: int
    n_patients: int
    bias: float
    bias_lower: float
    bias_upper: float
    low: float
    low_lower: float
    low_upper: float
    high: float
    high_lower: float
    high_upper: float
    is_small: bool


def measure_volume(case: str, label: str, pair: MaskPair) -> Volume:
    """Volumes of a pair of masks; an empty mask has none."""
    is_image = len(pair.spacing_mm) == 2
    voxel = math.prod(pair.spacing_mm) / (1 if is_image else _MM3_PER_ML)
    pred, ref = pair.n_pred * voxel, pair.n_ref * voxel
    return Volume(case, label, pred, ref, (pred + ref) / 2, pred - ref, "mm2" if is_image else "ml")


def agreement(
    volumes: Sequence[Volume], cases: Mapping[str, CaseInfo], plan: BootstrapPlan
) -> list[AgreementRow]:
    """A row per label, over all its cases, missed and invented structures (volume 0) included."""
    found = []
    for label in dict.fromkeys(row.label for row in volumes):
        rows = [row for row in volumes if row.label == label]
        patients = [cases[row.case].patient for row in rows]
        band = limits_of_agreement(
            [row.pred for row in rows], [row.ref for row in rows], groups=np.array(patients),
            resamples=plan.resamples, confidence=plan.confidence, seed=plan.seed,
        )  # fmt: skip
        numbers = np.stack([band.value, band.lower, band.upper], axis=1).ravel().tolist()
        n = len(set(patients))
        found.append(
            AgreementRow(cases[rows[0].case].cohort, label, rows[0].unit, len(rows), n, *numbers,
                         is_small=n < SMALL_GROUP)
        )  # fmt: skip
    return found
