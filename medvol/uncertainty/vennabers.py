"""Venn-Abers: an interval for one case's probability, whatever the scores' distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core import ConfigError, InputError


@dataclass(frozen=True)
class VennAbers:
    """Held-out scores of a binary classifier and their truths.

    Attributes:
        scores: Higher means more likely positive.
        truths: 0 or 1.
    """

    scores: tuple[float, ...]
    truths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.truths) or set(self.truths) != {0, 1}:
            raise InputError("Venn-Abers needs a score for each truth, and both classes")
        if not np.isfinite(self.scores).all():
            raise InputError("Venn-Abers: a calibration score is not finite")

    def intervals(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Lower and upper probability of the positive class for each score, shape (N, 2).

        The case is added to the calibration cases once as a negative and once as a positive;
        isotonic regression gives one probability each. Far apart means that few like it were seen.

        Source:
            Vovk & Petej 2014, UAI, arXiv:1211.0025.
        """
        from sklearn.isotonic import isotonic_regression

        known, truth = np.asarray(self.scores), np.asarray(self.truths, float)
        found = []
        for score in np.asarray(scores, np.float64).ravel():
            pair = []
            for assumed in (0.0, 1.0):
                values, where = np.unique(np.append(known, score), return_inverse=True)
                weights = np.bincount(where).astype(float)
                means = np.bincount(where, np.append(truth, assumed)) / weights
                fitted = isotonic_regression(means, sample_weight=weights)
                pair.append(float(fitted[np.searchsorted(values, score)]))
            found.append(pair)
        return np.clip(np.array(found).reshape(-1, 2), 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"scores": [round(s, 6) for s in self.scores], "truths": list(self.truths)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VennAbers:
        """The inverse of :meth:`to_dict`."""
        try:
            scores = tuple(float(s) for s in content["scores"])
            return cls(scores, tuple(int(t) for t in content["truths"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"calibration: these are not scores and truths: {error}") from error
