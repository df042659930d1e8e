"""Tests of drift: each number alone, all together, and by whether a classifier tells them apart.

A p value only shows that there are enough cases; an alarm also needs an effect of some size. Every
test and its effect see any change of the distribution, not only of its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import InputError
from medvol.metrics import Score, column_values, metric_of
from medvol.metrics.result import Fields
from medvol.monitoring.profile import ReferenceProfile
from medvol.monitoring.two_sample import Tested, compare_samples

_MAX_ROWS = 2000


@dataclass(frozen=True)
class DriftPlan:
    """What counts as drift.

    Attributes:
        level: Chance of any alarm among the inputs if nothing changed; false discovery rate of
            the scores.
        min_effect: Smallest distance of two distribution functions that is an alarm. A shift by a
            quarter of a standard deviation makes 0.1, one case in ten far off does too.
        permutations: Of the tests of inputs.
        seed: Of the permutations.
    """

    level: float = 0.05
    min_effect: float = 0.1
    permutations: int = 999
    seed: int = 0


@dataclass(frozen=True)
class DriftRow(Fields):
    """One test.

    Attributes:
        what: ``input``, ``embedding``, ``joint`` or ``performance``.
        name: Column, or name of the joint test.
        test: ``ks``, ``mmd`` or ``classifier``.
        n_new: New cases.
        n_reference: Reference cases.
        statistic: Kolmogorov-Smirnov distance, squared MMD, or AUC of the classifier.
        p: Its p value.
        q: Adjusted: for all tests of inputs at once (the chance of any so small), or for all
            scores (Benjamini-Hochberg).
        effect: Largest difference of the two distribution functions, 0 to 1: of the number
            itself, or of the joint test's score for being new. Of scores only a worsening counts.
        shift: Cliff's delta of a single number (new above reference is positive).
        is_alarm: Whether q is below the level and the effect is large enough.
    """

    what: str
    name: str
    test: str
    n_new: int
    n_reference: int
    statistic: float
    p: float
    q: float
    effect: float
    shift: float
    is_alarm: bool


@dataclass(frozen=True)
class Drift:
    """The tests of two profiles, and what could not be tested.

    Attributes:
        rows: One per test.
        missing: Columns of the reference that the new cases lack.
        added: Columns of the new cases that the reference lacks.
    """

    rows: list[DriftRow] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def find_drift(
    new: ReferenceProfile, reference: ReferenceProfile, plan: DriftPlan | None = None
) -> Drift:
    """Test new inputs against the reference profile.

    Raises:
        InputError: If the profiles share no column or hold fewer than 5 cases each.
    """
    plan = plan or DriftPlan()
    columns = [name for name in new.columns if name in reference.columns]
    if not columns:
        raise InputError(f"{new.source}: shares no column with {reference.source}")
    x, y = new.select(columns), reference.select(columns)
    _require_cases(new.source, len(x))
    _require_cases(reference.source, len(y))
    rng = np.random.default_rng(plan.seed)
    a, b = (t if len(t) <= _MAX_ROWS else rng.permutation(t)[:_MAX_ROWS] for t in (x, y))
    kinds = ["embedding" if name.startswith("emb_") else "input" for name in columns]
    alone, joint = compare_samples(a, b, kinds, permutations=plan.permutations, seed=plan.seed)
    sizes = len(a), len(b)
    rows = [
        _row((kind, name, "ks"), sizes, found, plan, cliffs_delta(a[:, k], b[:, k]))
        for k, (kind, name, found) in enumerate(zip(kinds, columns, alone, strict=True))
    ]
    rows += [
        _row(("joint", "all columns", test), sizes, found, plan) for test, found in joint.items()
    ]
    return Drift(
        rows,
        tuple(name for name in reference.columns if name not in new.columns),
        tuple(name for name in new.columns if name not in reference.columns),
    )


def find_performance_drift(
    new: Sequence[Score], reference: Sequence[Score], plan: DriftPlan | None = None
) -> list[DriftRow]:
    """Test scores of new cases against those of the reference; only a worsening alarms.

    Undefined scores are left out; infinite distances rank last, as false negatives should.

    Raises:
        InputError: If no label and metric has 5 defined scores on both sides: silence would look
            like stability.
    """
    from scipy.stats import ks_2samp

    plan = plan or DriftPlan()
    theirs = {(row.label, row.metric) for row in reference}
    shared = list(dict.fromkeys((r.label, r.metric) for r in new if (r.label, r.metric) in theirs))
    found: list[tuple[str, tuple[int, int], float, float, float]] = []
    for label, metric in shared:
        a, b = (_defined(column_values(rows, label, metric)) for rows in (new, reference))
        if len(a) < 5 or len(b) < 5:
            continue
        # SciPy's "greater": the new distribution function lies above, so the values are smaller.
        side = {"higher": "greater", "lower": "less"}.get(metric_of(metric).direction, "two-sided")
        method = "auto" if min(len(a), len(b)) < 100 else "asymp"
        test = ks_2samp(a, b, alternative=side, method=method)
        distance, p = float(test.statistic), float(test.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
        found.append((f"{label} {metric}", (len(a), len(b)), distance, p, cliffs_delta(a, b)))
    if not found:
        raise InputError(
            "no label and metric has 5 defined scores on both sides, so that drift of performance "
            "cannot be tested"
        )
    adjusted = benjamini_hochberg([p for *_, p, _ in found])
    return [
        _row(("performance", name, "ks"), sizes, Tested(distance, p, float(q), distance), plan,
             shift)
        for (name, sizes, distance, p, shift), q in zip(found, adjusted, strict=True)
    ]  # fmt: skip


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """p values adjusted to control the false discovery rate.

    Source:
        Benjamini & Hochberg 1995, J R Stat Soc B 57:289.

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    values = np.asarray(p, float)
    n = len(values)
    order = np.argsort(-values, kind="stable")
    steps = values[order] * n / np.arange(n, 0, -1)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps), 1.0)
    return adjusted


def cliffs_delta(new: ArrayLike, reference: ArrayLike) -> float:
    """P(new > reference) - P(new < reference), from -1 to 1."""
    from scipy.stats import rankdata

    a, b = np.asarray(new, float), np.asarray(reference, float)
    ranks = rankdata(np.concatenate([a, b]))[: len(a)].sum()
    share = (ranks - len(a) * (len(a) + 1) / 2) / (len(a) * len(b))
    return float(2 * share - 1)


def _row(
    name: tuple[str, str, str],
    sizes: tuple[int, int],
    found: Tested,
    plan: DriftPlan,
    shift: float = float("nan"),
) -> DriftRow:
    is_alarm = bool(found.q < plan.level and found.effect >= plan.min_effect)
    statistic = found.effect if name[2] == "ks" else found.statistic
    return DriftRow(*name, *sizes, statistic, found.p, found.q, found.effect, shift, is_alarm)


def _defined(values: dict[str, float]) -> NDArray[np.float64]:
    found = np.array(list(values.values()))
    return found[~np.isnan(found)]


def _require_cases(source: str, n: int) -> None:
    if n < 5:
        raise InputError(f"{source}: holds {n} cases; drift needs at least 5 on each side")
