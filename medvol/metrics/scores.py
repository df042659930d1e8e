"""Truth and scores, validated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import GridMismatchError, LabelError, NonFiniteError


@dataclass(frozen=True, eq=False)
class BinaryScores:
    """A truth of 0 and 1 and one finite score per case."""

    y: NDArray[np.bool_]
    score: NDArray[np.float64]

    @classmethod
    def of(cls, y: ArrayLike, score: ArrayLike) -> BinaryScores:
        """Check truth and scores.

        Raises:
            GridMismatchError: If they are not two lists of one length.
            LabelError: If the truth holds anything but 0 and 1.
            NonFiniteError: If a score is NaN or infinite.
        """
        truth, scores = np.asarray(y), np.asarray(score, np.float64)
        if truth.ndim != 1 or truth.shape != scores.shape:
            raise GridMismatchError(
                f"y has shape {truth.shape} and score {scores.shape}; both must be one list of "
                "the same length (for more classes see one_vs_rest)"
            )
        return cls(as_truth(truth), as_finite(scores, "score"))

    @classmethod
    def of_probabilities(cls, y: ArrayLike, prob: ArrayLike) -> BinaryScores:
        """Like ``of``, and reject values outside 0 to 1.

        Raises:
            LabelError: If a value is not a probability.
        """
        data = cls.of(y, prob)
        if data.score.size and (data.score.min() < 0 or data.score.max() > 1):
            raise LabelError(
                f"prob holds {data.score.min():g} to {data.score.max():g}; probabilities lie in "
                "0 to 1 (pass softmax or sigmoid output, not logits)"
            )
        return data

    @cached_property
    def n_pos(self) -> int:
        """Positive cases."""
        return int(self.y.sum())

    @cached_property
    def n_neg(self) -> int:
        """Negative cases."""
        return int(self.y.size - self.n_pos)


def as_truth(y: NDArray) -> NDArray[np.bool_]:
    """A truth of 0 and 1 as booleans.

    Raises:
        LabelError: If it holds anything else.
    """
    truth = y != 0
    if not np.array_equal(y, truth):
        raise LabelError("y must hold only 0 and 1")
    return truth


def as_finite(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """``values``, rejected if one is NaN or infinite.

    Raises:
        NonFiniteError: Naming the first such position.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NonFiniteError(
            f"{name}[{bad[0]}] is {values.ravel()[bad[0]]}; {bad.size} such value(s)"
        )
    return values
