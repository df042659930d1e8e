"""Two-sample tests that share one set of permutations, so that their joint level is exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tested:
    """One test of a family that was permuted together.

    Attributes:
        statistic: Of the cases as they are; large means different.
        p: Share of permutations whose statistic is at least as large, the given order included.
        q: Share of permutations in which any test of the family is at least as significant.
        effect: Largest difference of the two distribution functions of what the test looks at,
            0 (the same) to 1 (apart).
    """

    statistic: float
    p: float
    q: float
    effect: float


def compare_samples(
    new: Floats, reference: Floats, kinds: Sequence[str], *, permutations: int, seed: int
) -> tuple[list[Tested], dict[str, Tested]]:
    """Each column alone, and all of them by a kernel and by a classifier.

    Rows are exchangeable if nothing changed, so that each statistic's own distribution under
    permuted rows calibrates it at every number of cases; the joint tests see ranks over both
    samples, which no outlier and no unit can stretch. ``q`` is adjusted for all columns and both
    joint tests at once: an alarm anywhere at ``q < level`` has probability ``level`` or less.

    Args:
        new: Shape (cases, columns).
        reference: Shape (cases, columns).
        kinds: Of each column; many columns of one kind do not drown a column of another.
        permutations: Of the rows; beside the given order.
        seed: Of the permutations.

    Returns:
        A test per column, and ``mmd`` and ``classifier``.

    Source:
        Westfall & Young 1993, Resampling-based multiple testing (maxT within, minP between kinds);
        Gretton et al. 2012, J Mach Learn Res 13:723; Lopez-Paz & Oquab 2017, arXiv:1610.06545.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(new) + len(reference))  # ties must not follow the origin
    both = np.vstack([new, reference])[order]
    is_new = (order < len(new)).astype(np.float64)
    labels = np.stack([is_new, *(rng.permutation(is_new) for _ in range(permutations))])
    unit = math.sqrt(len(new) * len(reference) / len(both))
    columns = np.stack([unit * distribution_distance(column, labels) for column in both.T])
    points = _ranks(both)
    kernel = gaussian_kernel(points)
    neighbours = nearest_neighbours(points, max(1, round(math.sqrt(len(both)))))
    votes = labels @ neighbours.T
    of_kind = np.asarray(kinds)
    families = {
        **{kind: columns[of_kind == kind].max(axis=0) for kind in dict.fromkeys(kinds)},
        "mmd": mean_discrepancy(kernel, labels),
        "classifier": rank_auc(votes, labels),
    }
    smallest = np.min([_tail(values, values) for values in families.values()], axis=0)
    scores = {"mmd": _witness(kernel, is_new), "classifier": votes[0]}

    def tested(kind: str, own: Floats, effect: float) -> Tested:
        family = _tail(families[kind], own[:1])
        return Tested(float(own[0]), float(_tail(own, own[:1])[0]),
                      float((smallest <= family + 1e-12).mean()), effect)  # fmt: skip

    alone = [
        tested(kind, own, round(float(own[0] / unit), 12))
        for kind, own in zip(kinds, columns, strict=True)
    ]
    joint = {
        name: tested(name, families[name], separation(score, is_new))
        for name, score in scores.items()
    }  # fmt: skip
    return alone, joint


def distribution_distance(values: ArrayLike, labels: Floats) -> Floats:
    """Kolmogorov-Smirnov distance of the values labelled 1 from those labelled 0.

    Args:
        values: Shape (cases,).
        labels: 0 and 1, shape (labellings, cases), with equal counts in each.
    """
    values = np.asarray(values, np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.append(np.diff(values[order]) > 0, True)
    ones = labels[:, order]
    n = ones[0].sum()
    m = ones.shape[1] - n
    return np.abs(np.cumsum(ones / n - (1 - ones) / m, axis=1)[:, steps]).max(axis=1)


def separation(score: ArrayLike, is_new: ArrayLike) -> float:
    """By how much the new cases' scores lie above the others': one-sided KS distance, 0 to 1."""
    score, label = np.asarray(score, np.float64), np.asarray(is_new, np.float64)
    order = np.argsort(score, kind="stable")
    steps = np.append(np.diff(score[order]) > 1e-12, True)
    ones = label[order]
    gap = np.cumsum((1 - ones) / (1 - ones).sum() - ones / ones.sum())
    return max(0.0, float(gap[steps].max()))


def gaussian_kernel(points: Floats) -> Floats:
    """Kernel of median width between all points; its diagonal is 0, shape (cases, cases)."""
    from scipy.spatial.distance import pdist, squareform

    squared = squareform(pdist(points, "sqeuclidean"))
    width = np.median(squared[squared > 0]) if (squared > 0).any() else 1.0
    kernel = np.exp(-squared / width)
    np.fill_diagonal(kernel, 0.0)
    return kernel


def mean_discrepancy(kernel: Floats, labels: Floats) -> Floats:
    """Unbiased squared maximum mean discrepancy of each labelling."""
    n = labels[0].sum()
    m = labels.shape[1] - n
    # Sums within and between groups of every labelling at once.
    within_new = np.einsum("ij,ij->i", labels @ kernel, labels)
    within_ref = np.einsum("ij,ij->i", (1 - labels) @ kernel, 1 - labels)
    between = kernel.sum() - within_new - within_ref
    return within_new / (n * (n - 1)) + within_ref / (m * (m - 1)) - between / (n * m)


def nearest_neighbours(points: Floats, k: int) -> Floats:
    """1 where the column's case is among the k nearest of the row's, itself left out."""
    from scipy.spatial.distance import pdist, squareform

    distance = squareform(pdist(points, "sqeuclidean"))
    np.fill_diagonal(distance, np.inf)
    found = np.zeros_like(distance)
    np.put_along_axis(found, np.argsort(distance, axis=1, kind="stable")[:, :k], 1.0, axis=1)
    return found


def rank_auc(scores: Floats, labels: Floats) -> Floats:
    """Area under the ROC curve of each row of scores against its row of labels."""
    from scipy.stats import rankdata

    n = labels[0].sum()
    m = labels.shape[1] - n
    total = (rankdata(scores, axis=1) * labels).sum(axis=1)
    return (total - n * (n + 1) / 2) / (n * m)


def mmd_test(new: Floats, reference: Floats, permutations: int, seed: int) -> Mapping[str, float]:
    """Squared maximum mean discrepancy of two samples as they are, and its permutation p."""
    rng = np.random.default_rng(seed)
    own = np.repeat([1.0, 0.0], [len(new), len(reference)])
    labels = np.stack([own, *(rng.permutation(own) for _ in range(permutations))])
    found = mean_discrepancy(gaussian_kernel(np.vstack([new, reference])), labels)
    return {"mmd": float(found[0]), "p": float(_tail(found, found[:1])[0])}


def _ranks(both: Floats) -> Floats:
    from scipy.stats import rankdata

    return rankdata(both, axis=0) / len(both)


def _witness(kernel: Floats, is_new: Floats) -> Floats:
    """How much nearer each case lies to the new than to the reference cases, itself left out."""
    n, m = is_new.sum(), (1 - is_new).sum()
    own_new, own_ref = np.maximum(n - is_new, 1), np.maximum(m - (1 - is_new), 1)
    return kernel @ is_new / own_new - kernel @ (1 - is_new) / own_ref


def _tail(null: Floats, values: Floats) -> Floats:
    """Share of a null distribution that is at least as large as each value."""
    ordered = np.sort(null)
    below = np.searchsorted(ordered, values - 1e-12 * np.maximum(1, np.abs(values)), side="left")
    return 1 - below / len(ordered)
