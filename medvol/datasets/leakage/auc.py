"""Areas under ROC curves, many at once, and their patient-clustered intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.floating]
_LEVEL = 0.95


def aucs(truth: NDArray[np.bool_], scores: Floats) -> Floats:
    """Area under the ROC curve of each column; a tie counts half.

    Args:
        truth: (n, P), which rows of a column are positive.
        scores: (n, P).

    Returns:
        (P,); 0.5 for a column with one class only.
    """
    ranks = rankdata(scores, axis=0)
    positives = truth.sum(axis=0)
    negatives = len(truth) - positives
    wins = (ranks * truth).sum(axis=0) - positives * (positives + 1) / 2
    pairs = positives * negatives
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)


def clustered_interval(
    truth: NDArray[np.bool_],
    score: Floats,
    groups: NDArray[np.integer],
    seed: int = 0,
    draws: int = 400,
) -> tuple[float, float]:
    """95% percentile interval of one AUC under resampling of whole patients.

    Where every draw separates perfectly, the lower end is the exact binomial bound for the
    smaller class (no miss in n), so that no interval is a point.

    Args:
        truth: (n,) positives.
        score: (n,).
        groups: (n,) patient numbers from 0.
        seed: Of the resampling.
        draws: Number of resamples.
    """
    rng = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    weights = drawn[:, groups].astype(float)
    order = np.argsort(score[~truth], kind="stable")
    negatives = score[~truth][order]
    below = np.searchsorted(negatives, score[truth], "left")
    level = np.searchsorted(negatives, score[truth], "right")
    lost = np.zeros((draws, len(negatives) + 1))
    np.cumsum(weights[:, ~truth][:, order], axis=1, out=lost[:, 1:])
    wins = (weights[:, truth] * (lost[:, below] + lost[:, level])).sum(axis=1) / 2
    pairs = weights[:, truth].sum(axis=1) * lost[:, -1]
    found = np.where(pairs > 0, wins / np.maximum(pairs, 1e-9), np.nan)
    found = found[np.isfinite(found)]
    tail = (1 - _LEVEL) / 2
    if not found.size:
        return (0.0, 1.0)
    low, high = (float(v) for v in np.quantile(found, (tail, 1 - tail)))
    smaller = min(len(set(groups[truth])), len(set(groups[~truth])))
    exact = tail ** (1 / max(smaller, 1))
    if low > 1 - 1e-12:
        low = exact
    if high < 1e-12:
        high = 1 - exact
    return low, high
