"""Which cases a person must see before the result is used, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReviewLimits:
    """When a case is flagged; None leaves a rule out.

    Attributes:
        margin: Flag a positive-class probability closer than this to the operating threshold.
        unsure_sets: Flag conformal sets with no or several classes.
    """

    margin: float | None = None
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
) -> Review:
    """Apply the limits to what is known about one case.

    Args:
        limits: The rules.
        probability: Of the positive class.
        threshold: The operating threshold.
        conformal_set: Names of the classes in the case's set.

    Returns:
        Flagged with every reason that applies, in one line. A value that is not finite is a
        reason too.

    >>> review_case(ReviewLimits(margin=0.1), probability=0.45, threshold=0.5).reason
    'probability 0.450 lies within 0.1 of the threshold 0.500'
    """
    reasons = []
    if probability is not None and not math.isfinite(probability):
        reasons.append(f"probability is {probability}")
    elif (
        limits.margin is not None
        and probability is not None
        and threshold is not None
        and math.isfinite(threshold)
        and abs(probability - threshold) < limits.margin
    ):
        reasons.append(
            f"probability {probability:.3f} lies within {limits.margin:g} of the threshold "
            f"{threshold:.3f}"
        )
    if limits.unsure_sets and conformal_set is not None and len(conformal_set) != 1:
        some = f"holds {' and '.join(conformal_set)}" if conformal_set else "is empty"
        reasons.append(f"conformal set {some}")
    return Review(bool(reasons), "; ".join(reasons))
