"""How far the volumes of predictions and references agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medvol.evaluation.cases import CaseInfo
from medvol.evaluation.summary import SMALL_GROUP, BootstrapPlan
from medvol.metrics import Volume, limits_of_agreement
from medvol.metrics.result import Fields


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


def agreement(
    volumes: Sequence[Volume], cases: Mapping[str, CaseInfo], plan: BootstrapPlan
) -> list[AgreementRow]:
    """A row per label, over all its cases; an empty mask counts with volume 0."""
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
