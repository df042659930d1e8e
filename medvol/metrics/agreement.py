"""Do two methods of measurement agree? Bland and Altman's bias and limits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import GridMismatchError, NonFiniteError
from medvol.metrics.bootstrap import Band, Weights, bootstrap_band
from medvol.metrics.intervals import normal_quantile


def limits_of_agreement(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Band:
    """Bias, lower and upper limit of agreement of first minus second, each with its interval.

    The limits hold 95% of differences if these are normal: mean -+ 1.96 standard deviations.

    Args:
        first: Measurements by the one method.
        second: By the other, of the same cases.
        groups: Patient of each case; patients are resampled whole.
        resamples: Bootstrap resamples.
        confidence: Nominal coverage of the intervals; the limits stay at 95%.
        seed: Of the resamples.

    Returns:
        Three points: bias, lower limit, upper limit; limits are ``nan`` below two cases.

    Raises:
        GridMismatchError: If the lists differ in length.
        NonFiniteError: If a measurement is NaN or infinite.

    Source:
        Bland & Altman 1986, Lancet 327:307, doi:10.1016/S0140-6736(86)90837-8.

    >>> limits_of_agreement([1.0, 2.0, 4.0], [1.0, 1.0, 2.0]).value.round(3).tolist()
    [1.0, -0.96, 2.96]
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.ndim != 1 or a.shape != b.shape:
        raise GridMismatchError(f"first has shape {a.shape} and second {b.shape}")
    difference, z = a - b, normal_quantile(0.95)
    if not np.isfinite(difference).all():
        raise NonFiniteError("a measurement is NaN or infinite")
    if not len(difference):
        return Band(*np.full((3, 3), np.nan))

    def statistic(weights: Weights) -> NDArray[np.float64]:
        n = weights.sum(axis=1)
        mean = weights @ difference / n
        square = (weights * (difference - mean[:, None]) ** 2).sum(axis=1)
        spread = z * np.sqrt(square / np.where(n > 1, n - 1, np.nan))
        return np.stack([mean, mean - spread, mean + spread], axis=1)

    return bootstrap_band(statistic, len(difference), groups=groups, resamples=resamples,
                          confidence=confidence, seed=seed)  # fmt: skip
