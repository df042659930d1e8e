"""Split conformal prediction: the threshold."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from medvol.core.errors import ConfigError
from medvol.metrics.registry import metric
from medvol.metrics.scores import as_finite


@metric(kind="counts", direction="none")
def split_conformal_quantile(cal_scores: ArrayLike, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest calibration score.

    Args:
        cal_scores: Nonconformity scores of calibration cases.
        alpha: Miss rate to allow, between 0 and 1.

    Returns:
        The threshold; ``inf`` (every class is kept) if there are too few cases to promise it.

    Source:
        Vovk et al. 2005; Angelopoulos & Bates 2023, arXiv:2107.07511.

    >>> split_conformal_quantile([0.1, 0.2, 0.3], 0.1)
    inf
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1, not {alpha}")
    scores = np.sort(as_finite(np.asarray(cal_scores, float), "cal_scores"))
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf
