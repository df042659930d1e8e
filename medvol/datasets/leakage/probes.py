"""Probes: can something that is not the anatomy tell the classes apart?

Each probe is a ridge classifier on a few features, scored out of fold with patients kept whole.
Its null is the same procedure on labels permuted among patients within folds, so that the fold
sizes, the class balance and the ties of a patient stay what they are.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medvol.datasets.leakage.features import COARSE, CaseFeatures, shrink
from medvol.metrics.bootstrap import weighted_auc

Floats = NDArray[np.floating]
#: Family-wise error over all probes of one check (Holm).
ALPHA = 0.05
_FOLDS = 5
_RIDGE = 0.1  # per training case, on standardised features
_MOST_PAIRWISE = 4
_MOST_CASES = 4000
_BINS = 8
_LEVELS = 20
_LEVEL = 0.95
_INDICATOR = 0.3
#: Probes that see the inside of the image: a floor that a model must beat, no proof of a leak.
CONTENT = frozenset({"thumbnail", "histogram"})
_OF_PIXELS = ("frame", "corners", *sorted(CONTENT, reverse=True))


@dataclass
class Probe:
    """One probe on one pair of classes.

    Attributes:
        probe: size, format, bytes, compressibility, spacing, tag X, column X, frame, corners,
            thumbnail or histogram.
        pair: ``A vs B``, or ``A vs rest``.
        auc: Out-of-fold area under the ROC curve.
        low: Lower end of its 95% interval, patients resampled.
        high: Upper end.
        null_high: 95th percentile under permuted labels.
        p: One-sided permutation p-value.
        p_adjusted: After Holm's correction over all probes of the check.
        fires: Whether it tells the classes apart beyond chance.
        n: Cases compared.
        why_undefined: Why there is no value; empty where there is.
    """

    probe: str
    pair: str
    auc: float = 0.5
    low: float = 0.0
    high: float = 1.0
    null_high: float = 0.5
    p: float = 1.0
    p_adjusted: float = 1.0
    fires: bool = False
    n: int = 0
    why_undefined: str = ""

    @property
    def is_shortcut(self) -> bool:
        """Whether it fires without having seen the inside of the image."""
        return self.fires and self.probe not in CONTENT

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def run_probes(
    features: Sequence[CaseFeatures],
    categories: Sequence[str],
    *,
    seed: int = 0,
    permutations: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Probe]:
    """Run every probe on every pair of classes (each against the rest beyond four classes).

    Args:
        features: One entry per case.
        categories: Class of each case.
        seed: Of folds, permutations and resampling.
        permutations: At least 1000, and enough for Holm's smallest p, by default.
        progress: Called with probes done and in total.

    Returns:
        One ``Probe`` per family and pair; those that a data set cannot have (one value
        throughout, too few patients) state why.
    """
    tables = feature_tables(features)
    truth = np.asarray(categories)
    pairs = list(_pairs(truth))
    done, total = 0, len(tables) * len(pairs)
    draws = permutations or max(1000, 40 * total)
    found: list[Probe] = []
    for name, rows, positive in pairs:
        design = _Design.of(features, rows, positive, seed, draws)
        for family, table in tables.items():
            found.append(_probe(family, name, table[rows], design))
            done += 1
            if progress:
                progress(done, total)
        if not set(_OF_PIXELS) & tables.keys():
            why = "the data set mixes 2D images and volumes"
            found += [Probe(f, name, n=len(rows), why_undefined=why) for f in _OF_PIXELS]
    _adjust(found)
    return found


def feature_tables(features: Sequence[CaseFeatures]) -> dict[str, Floats]:
    """Feature matrix of each probe by name, one row per case, columns standardised."""
    families: dict[str, list[str]] = defaultdict(list)
    for key in sorted({key for f in features for key in (*f.numbers, *f.words)}):
        families[key.split(":", 1)[0]].append(key)
    tables = {
        name: np.hstack([_encoded(features, key) for key in keys])
        for name, keys in families.items()
    }
    shapes = {feature.coarse.shape for feature in features}
    if len(shapes) == 1:
        coarse = np.stack([feature.coarse for feature in features])
        content = {
            "frame": coarse[:, _frame(coarse.shape[1:])],
            "corners": np.stack([_corners(feature.fine) for feature in features]),
            "thumbnail": coarse.reshape(len(features), -1),
            "histogram": np.stack([feature.spread for feature in features]),
        }
        tables |= {name: _standardised(table) for name, table in content.items()}
    return tables


def ridge_scores(
    table: Floats, positive: NDArray[np.bool_], folds: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Out-of-fold scores of a probe on folds of the caller's own, shape (n,)."""
    scores = np.zeros(len(table))
    for fold in np.unique(folds):
        held = folds == fold
        scores[held] = _ridge(table[~held], positive[~held, None], table[held]).ravel()
    return scores


@dataclass
class _Design:
    """What all probes of a pair share: truth, folds, groups, permuted labels."""

    truth: NDArray[np.bool_]
    labels: NDArray[np.bool_]  # (n, 1 + P), the first column observed
    folds: NDArray[np.intp]
    groups: NDArray[np.intp]
    seed: int
    fault: str = ""

    @classmethod
    def of(
        cls,
        features: Sequence[CaseFeatures],
        rows: NDArray[np.intp],
        positive: NDArray[np.bool_],
        seed: int,
        draws: int,
    ) -> _Design:
        from sklearn.model_selection import StratifiedGroupKFold

        _, groups = np.unique([features[row].group for row in rows], return_inverse=True)
        fewest = min(len(set(groups[positive])), len(set(groups[~positive])))
        if fewest < _FOLDS:
            fault = f"only {fewest} patients in the smaller class"
            return cls(positive, positive[:, None], groups, groups, seed, fault)
        folds = np.zeros(len(rows), np.intp)
        splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
        for number, (_, held) in enumerate(splitter.split(rows, positive, groups)):
            folds[held] = number
        labels = _permuted(positive, folds, groups, seed, draws)
        return cls(positive, labels, folds, groups, seed)


def _pairs(truth: NDArray[np.str_]):
    classes = sorted(set(truth.tolist()))
    if len(classes) < 2:
        return
    if len(classes) > _MOST_PAIRWISE:
        for name in classes:
            rows = _thinned(np.arange(len(truth)))
            yield f"{name} vs rest", rows, truth[rows] == name
        return
    for first, second in itertools.combinations(classes, 2):
        rows = _thinned(np.flatnonzero((truth == first) | (truth == second)))
        yield f"{first} vs {second}", rows, truth[rows] == first


def _thinned(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Every so-manieth case, where there are more than a probe needs."""
    return rows[:: max(1, -(-len(rows) // _MOST_CASES))]


def _encoded(features: Sequence[CaseFeatures], key: str) -> Floats:
    """A column as indicators of its levels, or as a number with indicators beside it.

    Indicators (frequent values each, others in quantile bins) let a linear probe find what is
    not monotone in the class; their smaller weight leaves a plain trend to the number itself.
    """
    if key in {k for f in features for k in f.words}:
        column = np.asarray([f.words.get(key, "") for f in features])
        levels, counts = np.unique(column, return_counts=True)
        chosen = levels[np.argsort(-counts, kind="stable")][:_LEVELS]
        return _standardised(np.stack([column == level for level in chosen], 1))
    column = np.asarray([f.numbers.get(key, np.nan) for f in features])
    known = np.isfinite(column)
    values, counts = np.unique(column[known], return_counts=True)
    frequent = values[counts >= max(3, 0.02 * len(column))][:_LEVELS]
    edges = np.unique(np.quantile(column[known], np.linspace(0, 1, _BINS + 1)[1:-1]))
    filled = np.where(known, column, np.median(column[known]))
    indicators = [~known, *(column == v for v in frequent), *(filled > edge for edge in edges)]
    return np.hstack(
        [_standardised(filled[:, None]), _INDICATOR * _standardised(np.stack(indicators, axis=1))]
    )


def _standardised(table: NDArray[Any]) -> Floats:
    table = np.asarray(table, float)
    scale = table.std(axis=0)
    return np.where(
        scale > 1e-9, (table - table.mean(axis=0)) / np.where(scale > 1e-9, scale, 1), 0.0
    )


def _frame(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The outer eighth of every side."""
    width = COARSE[len(shape)] // 8
    mask = np.ones(shape, bool)
    mask[tuple(slice(width, n - width) for n in shape)] = False
    return mask


def _corners(fine: NDArray[np.float32]) -> Floats:
    side = fine.shape[0] // 8
    ends = itertools.product((slice(0, side), slice(-side, None)), repeat=fine.ndim)
    return np.concatenate([shrink(fine[end], min(side, 4)).ravel() for end in ends])


def _permuted(
    positive: NDArray[np.bool_],
    folds: NDArray[np.intp],
    groups: NDArray[np.intp],
    seed: int,
    draws: int,
) -> NDArray[np.bool_]:
    """Observed labels, then permuted ones: whole patients trade within fold and size."""
    rng = np.random.default_rng(seed)
    blocks: dict[tuple[int, int], list[NDArray[np.intp]]] = defaultdict(list)
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        blocks[(int(folds[members[0]]), len(members))].append(members)
    labels = np.repeat(positive[:, None], draws + 1, axis=1)
    for found in blocks.values():
        members = np.stack(found)  # (patients, cases of each)
        trade = np.argsort(rng.random((draws, len(members))), axis=1)
        labels[members.ravel(), 1:] = positive[members[trade]].reshape(draws, -1).T
    return labels


def _probe(family: str, pair: str, table: Floats, design: _Design) -> Probe:
    probe = Probe(family, pair, n=len(table))
    if design.fault or (table == table[0]).all():
        probe.why_undefined = design.fault or "one value throughout"
        return probe
    scores = _out_of_fold(table, design)
    found = aucs(design.labels, scores)
    null = found[1:]
    probe.auc = float(found[0])
    probe.low, probe.high = clustered_interval(
        design.truth, scores[:, 0], design.groups, design.seed
    )
    probe.null_high = float(np.quantile(null, 0.95))
    probe.p = float((1 + np.count_nonzero(null >= found[0] - 1e-12)) / (1 + len(null)))
    return probe


def _out_of_fold(table: Floats, design: _Design) -> Floats:
    """Scores of every case for every labelling, from a ridge fitted on the other folds.

    One factorisation per fold serves all labellings.
    """
    scores = np.zeros(design.labels.shape, np.float32)
    for fold in range(_FOLDS):
        held = design.folds == fold
        scores[held] = _ridge(table[~held], design.labels[~held], table[held])
    return np.round(scores, 6)  # equal features give equal scores, whatever the summation order


def _ridge(x: Floats, labels: NDArray[np.bool_], held: Floats) -> Floats:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=_RIDGE * len(x), solver="cholesky")
    return model.fit(x, labels.astype(float)).predict(held)


def _adjust(found: list[Probe]) -> None:
    """Holm's step-down over the probes that have a value."""
    tested = sorted((probe for probe in found if not probe.why_undefined), key=lambda q: q.p)
    running = 0.0
    for number, probe in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - number) * probe.p))
        probe.p_adjusted = running
        probe.fires = running < ALPHA and probe.low > 0.5


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
    found = weighted_auc(truth, score)(weights)
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
