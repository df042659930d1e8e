"""What limits an evaluation's numbers: a sentence for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvol.core.errors import InputError
from medvol.evaluation.gaps import GapRow, gap_text
from medvol.evaluation.predictions import Predictions
from medvol.evaluation.summary import SummaryRow


def mask_remarks(table: Sequence[SummaryRow]) -> list[str]:
    """Labels of which nothing was scored.

    Raises:
        InputError: If no label map of any case holds a structure.
    """
    whole = [row for row in table if row.group == "all"]
    if not whole:
        raise InputError("no label map, predicted or reference, holds a structure, so that nothing "
                         "can be scored; are these the right folders?")  # fmt: skip
    found = []
    for cohort, label in dict.fromkeys((row.cohort, row.label) for row in whole):
        rows = [row for row in whole if (row.cohort, row.label) == (cohort, label)]
        if all(row.n_undefined == row.n for row in rows):
            found.append(
                f"{label}: no {cohort} case holds it, predicted or in truth: it is not scored"
            )
    return found


def score_remarks(data: Predictions, *, has_thresholds: bool) -> list[str]:
    """Scores that cannot rank, cannot be judged at 0.5, or are of one class only."""
    cohort, found = data.cases[0].cohort if data.cases else "internal", []
    if not data.is_probability and not has_thresholds:
        low, high = data.prob[:, -1].min(), data.prob[:, -1].max()
        found.append(
            f"{cohort} scores lie in {low:g} to {high:g} and are not probabilities: no decision is "
            "taken at 0.5; fix a threshold on other cases with --validation"
        )
    if len(data.cases) > 1 and (np.ptp(data.prob, axis=0) == 0).all():
        found.append(f"every {cohort} case has the same score: no classes are separated")
    truth = data.known_truth
    lacking = [name for k, name in enumerate(data.classes) if not (truth == k).any()]
    if lacking:
        found.append(
            f"no {cohort} case is of {', '.join(map(repr, lacking))}: numbers that need both sides "
            "are undefined"
        )
    return found


def gap_remarks(gaps: Sequence[GapRow]) -> list[str]:
    """Flagged subgroups, and every gap between the cohorts' main numbers."""
    flagged = [f"subgroup gap: {gap_text(gap)}" for gap in gaps if gap.is_flagged
               and gap.kind == "subgroup"]  # fmt: skip
    cohorts = [f"external beside internal: {gap_text(gap)}" for gap in gaps
               if gap.kind == "cohort" and not gap.operating_point]  # fmt: skip
    return flagged + cohorts
