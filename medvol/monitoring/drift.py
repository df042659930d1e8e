"""Tests of drift: each number alone, all together, and by whether a classifier tells them apart.

A p value only shows that there are enough cases; an alarm also needs an effect of some size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import InputError
from medvol.metrics import Score, auc_ci, column_values, metric_of
from medvol.metrics.result import Fields
from medvol.monitoring.profile import ReferenceProfile

_MAX_ROWS = 2000


@dataclass(frozen=True)
class DriftPlan:
    """What counts as drift.

    Attributes:
        level: False discovery rate of the single numbers, and level of the joint tests.
        min_effect: Smallest |Cliff's delta| of an alarm; 0.33 is a medium effect (Romano 2006).
        permutations: Of the joint tests.
        seed: Of the permutations.
    """

    level: float = 0.05
    min_effect: float = 0.33
    permutations: int = 500
    seed: int = 0


@dataclass(frozen=True)
class DriftRow(Fields):
    """One test.

    Attributes:
        what: ``input``, ``embedding``, ``joint`` or ``performance``.
        name: Column, or name of the joint test.
        test: ``ks``, ``mmd``, ``classifier`` or ``mann-whitney``.
        n_new: New cases.
        n_reference: Reference cases.
        statistic: The test's statistic.
        p: Its p value.
        q: Adjusted for all single numbers (Benjamini-Hochberg); p itself for joint tests.
        effect: Cliff's delta (new above reference is positive); for joint tests, 2 AUC - 1 of the
            classifier.
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
    is_alarm: bool


def find_drift(
    new: ReferenceProfile, reference: ReferenceProfile, plan: DriftPlan | None = None
) -> list[DriftRow]:
    """Hold new inputs against the reference profile.

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
    single = [_column_row(name, a, b) for name, a, b in zip(columns, x.T, y.T, strict=True)]
    adjusted = benjamini_hochberg([row["p"] for row in single])
    rows = [
        DriftRow(
            **row, q=float(q),
            is_alarm=bool(q < plan.level and abs(row["effect"]) >= plan.min_effect),
        )
        for row, q in zip(single, adjusted, strict=True)
    ]  # fmt: skip
    return rows + _joint_rows(x, y, plan)


def find_performance_drift(
    new: Sequence[Score], reference: Sequence[Score], plan: DriftPlan | None = None
) -> list[DriftRow]:
    """Hold scores of new cases against those of the reference; only a worsening alarms.

    Undefined scores are left out; infinite distances rank last, as misses should.

    Raises:
        InputError: If no label and metric has 5 defined scores on both sides: silence would look
            like stability.
    """
    from scipy.stats import mannwhitneyu

    plan = plan or DriftPlan()
    theirs = {(row.label, row.metric) for row in reference}
    shared = list(dict.fromkeys((r.label, r.metric) for r in new if (r.label, r.metric) in theirs))
    found: list[dict[str, Any]] = []
    worse: list[bool] = []
    for label, metric in shared:
        a, b = (_defined(column_values(rows, label, metric)) for rows in (new, reference))
        if len(a) < 5 or len(b) < 5:
            continue
        test = mannwhitneyu(a, b, method="asymptotic")
        effect = cliffs_delta(a, b)
        sign = {"higher": -1, "lower": 1}.get(metric_of(metric).direction, 0)
        worse.append(sign * effect >= plan.min_effect if sign else abs(effect) >= plan.min_effect)
        found.append(
            {"what": "performance", "name": f"{label} {metric}", "test": "mann-whitney",
             "n_new": len(a), "n_reference": len(b), "statistic": float(test.statistic),
             "p": float(test.pvalue), "effect": effect}
        )  # fmt: skip
    if not found:
        raise InputError(
            "no label and metric has 5 defined scores on both sides, so that drift of performance "
            "cannot be tested"
        )
    adjusted = benjamini_hochberg([row["p"] for row in found])
    return [
        DriftRow(**row, q=float(q), is_alarm=bool(q < plan.level and bad))
        for row, q, bad in zip(found, adjusted, worse, strict=True)
    ]


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


def mmd_test(
    new: NDArray[np.float64], reference: NDArray[np.float64], permutations: int, seed: int
) -> tuple[float, float]:
    """Squared maximum mean discrepancy (Gaussian kernel, median width) and its permutation p.

    Source:
        Gretton et al. 2012, J Mach Learn Res 13:723.
    """
    from scipy.spatial.distance import pdist, squareform

    both = np.vstack([new, reference])
    squared = squareform(pdist(both, "sqeuclidean"))
    width = np.median(squared[squared > 0]) if (squared > 0).any() else 1.0
    kernel = np.exp(-squared / width)
    np.fill_diagonal(kernel, 0.0)
    n, total = len(new), len(both)
    rng = np.random.default_rng(seed)
    labels = np.zeros((permutations + 1, total))
    labels[0, :n] = 1
    for row in labels[1:]:
        row[rng.permutation(total)[:n]] = 1
    # Sums within and between groups of every labelling at once.
    within_new = np.einsum("ij,ij->i", labels @ kernel, labels)
    within_ref = np.einsum("ij,ij->i", (1 - labels) @ kernel, 1 - labels)
    between = kernel.sum() - within_new - within_ref
    m = total - n
    mmd = within_new / (n * (n - 1)) + within_ref / (m * (m - 1)) - between / (n * m)
    return float(mmd[0]), float((mmd >= mmd[0] - 1e-15).mean())


def classifier_test(
    new: NDArray[np.float64], reference: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """Cross-validated AUC of a logistic regression that tells new from reference, and its p.

    The p is one-sided from DeLong's (or, separated, Newcombe's) error about 0.5.

    Source:
        Lopez-Paz & Oquab 2017, ICLR, arXiv:1610.06545.
    """
    from scipy.special import ndtr
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.vstack([new, reference])
    y = np.repeat([1, 0], [len(new), len(reference)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    score = np.asarray(cross_val_predict(model, x, y, cv=folds, method="decision_function"))
    found = auc_ci(y, score)
    # Under no drift the AUC's variance is that of the rank sum.
    error = math.sqrt((len(x) + 1) / (12 * len(new) * len(reference)))
    return found.auc, float(ndtr(-(found.auc - 0.5) / error))


def _column_row(name: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, Any]:
    from scipy.stats import ks_2samp

    test = ks_2samp(a, b, method="auto" if min(len(a), len(b)) < 100 else "asymp")
    return {
        "what": "embedding" if name.startswith("emb_") else "input",
        "name": name, "test": "ks", "n_new": len(a), "n_reference": len(b),
        "statistic": float(test.statistic), "p": float(test.pvalue),  # pyright: ignore[reportAttributeAccessIssue]
        "effect": cliffs_delta(a, b),
    }  # fmt: skip


def _joint_rows(x: NDArray[np.float64], y: NDArray[np.float64], plan: DriftPlan) -> list[DriftRow]:
    """MMD and classifier on all columns, scaled by the reference's spread."""
    rng = np.random.default_rng(plan.seed)
    x, y = (t if len(t) <= _MAX_ROWS else rng.permutation(t)[:_MAX_ROWS] for t in (x, y))
    spread = y.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    a, b = (x - y.mean(axis=0)) / scale, (y - y.mean(axis=0)) / scale
    mmd, p_mmd = mmd_test(a, b, plan.permutations, plan.seed)
    auc, p_auc = classifier_test(a, b, plan.seed)
    effect = 2 * auc - 1
    return [
        DriftRow("joint", "all columns", test, len(x), len(y), value, p, p, effect,
                 bool(p < plan.level and effect >= plan.min_effect))
        for test, value, p in (("mmd", mmd, p_mmd), ("classifier", auc, p_auc))
    ]  # fmt: skip


def _defined(values: dict[str, float]) -> NDArray[np.float64]:
    found = np.array(list(values.values()))
    return found[~np.isnan(found)]


def _require_cases(source: str, n: int) -> None:
    if n < 5:
        raise InputError(f"{source}: holds {n} cases; drift needs at least 5 on each side")
