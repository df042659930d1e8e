"""Which cases a person must see before the result is used, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medvol.core import InputError


@dataclass(frozen=True)
class ReviewLimits:
    """When a case is flagged; None leaves a rule out.

    Attributes:
        margin: Flag a positive-class probability closer than this to the operating threshold.
        epistemic: Flag an epistemic uncertainty above this, from :func:`fit_limit`.
        agreement: Flag a structure whose samples agree less (mean pairwise Dice).
        unsure_sets: Flag conformal sets with no or several classes.
    """

    margin: float | None = None
    epistemic: float | None = None
    agreement: float | None = None
    unsure_sets: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Review:
    """Whether a case needs a person; ``reason`` is empty where it does not."""

    is_needed: bool
    reason: str


def review_case(
    limits: ReviewLimits,
    *,
    probability: float | None = None,
    threshold: float | None = None,
    conformal_set: Sequence[str] | None = None,
    epistemic: float | None = None,
    agreement: Mapping[str, float] | None = None,
) -> Review:
    """Apply the limits to what is known about one case.

    Args:
        limits: The rules.
        probability: Of the positive class.
        threshold: The operating threshold.
        conformal_set: Names of the classes in the case's set.
        epistemic: Epistemic uncertainty of the case.
        agreement: Structure name to agreement of its samples.

    Returns:
        Flagged with every reason that applies, in one line. A value that is not finite is a
        reason too.

    >>> review_case(ReviewLimits(margin=0.1), probability=0.45, threshold=0.5).reason
    'probability 0.450 lies within 0.1 of the threshold 0.500'
    """
    reasons = []
    known = {"probability": probability, "epistemic uncertainty": epistemic, **(agreement or {})}
    reasons += [f"{name} is {v}" for name, v in known.items() if v is not None and not _finite(v)]
    if limits.margin is not None and _finite(probability) and _finite(threshold):
        reasons += _near(float(probability or 0), float(threshold or 0), limits.margin)
    if limits.unsure_sets and conformal_set is not None and len(conformal_set) != 1:
        some = f"holds {' and '.join(conformal_set)}" if conformal_set else "is empty"
        reasons.append(f"conformal set {some}")
    if limits.epistemic is not None and (epistemic or 0) > limits.epistemic:
        reasons.append(f"epistemic uncertainty {epistemic:.3g} exceeds {limits.epistemic:.3g}")
    if limits.agreement is not None:
        for name, value in (agreement or {}).items():
            if value < limits.agreement:
                reasons.append(f"samples of {name} agree to {value:.2f} < {limits.agreement:g}")
    return Review(bool(reasons), "; ".join(reasons))


def fit_limit(uncertainty: ArrayLike, share: float = 0.1) -> float:
    """The limit above which at most ``share`` of the validation cases lie.

    Args:
        uncertainty: One value per validation case; higher means less sure.
        share: Share of cases that may be flagged, 0 to 1.
    """
    values = np.sort(np.asarray(uncertainty, np.float64).ravel())
    if not len(values) or not np.isfinite(values).all() or not 0 <= share <= 1:
        raise InputError("a limit needs finite values and a share between 0 and 1")
    index = math.ceil(len(values) * (1 - share) - 1e-9) - 1
    return float(values[max(0, index)])


def _near(probability: float, threshold: float, margin: float) -> list[str]:
    if abs(probability - threshold) >= margin:
        return []
    line = f"probability {probability:.3f} lies within {margin:g} of the threshold {threshold:.3f}"
    return [line]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
