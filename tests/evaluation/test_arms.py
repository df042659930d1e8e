"""Arms of a study, against closed forms and naive loops."""

import math
from itertools import product

import numpy as np
import pytest

from medvol.core import InputError
from medvol.evaluation import (
    CaseInfo,
    ClassArm,
    Seed,
    classifier_rows,
    compare_classifiers,
    segmenter_rows,
)
from medvol.evaluation.predictions import Predictions
from medvol.evaluation.summary import BootstrapPlan
from medvol.metrics import Score

PLAN = BootstrapPlan(resamples=400)


def predictions(score, truth, *, patients=None, folds=None, prefix="c"):
    names = [f"{prefix}{k}" for k in range(len(score))]
    infos = tuple(
        CaseInfo(n, str(patients[k] if patients is not None else n), "internal",
                 {"fold": str(folds[k] if folds is not None else 0)})
        for k, n in enumerate(names)
    )  # fmt: skip
    score = np.asarray(score, float)
    prob = np.stack([1 - score, score], axis=1)
    return Predictions("here", infos, ("healthy", "ill"), np.asarray(truth), prob, None, False)


def arm(*seeds):
    return ClassArm.of([Seed(*one) if isinstance(one, tuple) else Seed(one) for one in seeds])


def test_an_arm_is_the_mean_of_its_seeds_and_shows_their_range():
    truth = [0, 0, 1, 1]
    one, two = predictions([0.1, 0.6, 0.5, 0.9], truth), predictions([0.1, 0.2, 0.3, 0.9], truth)
    rows = {r.metric: r for r in classifier_rows(arm(one, two), ["fixed"], PLAN)}
    assert rows["auc_roc"].value == 0.875  # of .1, .4, .4, .9: the tie counts half
    with_tie = [rows["auc_roc"].seed_lowest, rows["auc_roc"].seed_highest]
    assert with_tie == [0.75, 1.0]
    assert rows["sensitivity@fixed"].value == 0.5
    assert rows["sensitivity@fixed"].seeds == 2


def test_seeds_of_other_cases_are_rejected():
    truth = [0, 1]
    with pytest.raises(InputError, match="does not hold the cases"):
        arm(predictions([0.1, 0.9], truth), predictions([0.1, 0.9], truth, prefix="d"))


def test_a_rule_is_fixed_on_each_folds_own_validation_cases():
    test = predictions([0.3, 0.7, 0.3, 0.7], [0, 1, 0, 1], folds=[0, 0, 1, 1])
    held = predictions([0.2, 0.6, 0.2, 0.29], [0, 1, 0, 1], folds=[0, 0, 1, 1], prefix="v")
    rows = {r.metric: r for r in classifier_rows(arm((test, held)), ["sensitivity>=0.90"], PLAN)}
    # Fold 0 sets 0.6: 0.3 is called healthy. Fold 1 sets 0.29: 0.3 is called ill.
    assert rows["specificity@sensitivity>=0.90"].value == 0.5
    assert rows["sensitivity@sensitivity>=0.90"].value == 1.0


def test_sensitivity_and_specificity_are_tested_by_mcnemar():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 30)
    a, b = rng.random(60), rng.random(60)
    rows = {r.metric: r for r in compare_classifiers(
        arm(predictions(a, truth)), arm(predictions(b, truth)), ["fixed"], PLAN)}  # fmt: skip
    found = rows["sensitivity@fixed"]
    only_a = int(((a >= 0.5) & (b < 0.5))[truth == 1].sum())
    only_b = int(((a < 0.5) & (b >= 0.5))[truth == 1].sum())
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1))
    assert found.p == pytest.approx(min(1, 2 * tail / 2 ** (only_a + only_b)))
    assert (found.better, found.worse, found.n) == (only_a, only_b, 30)
    assert found.difference == pytest.approx((only_a - only_b) / 30)


def test_f1_is_tested_by_every_exchange_of_whole_patients():
    truth = np.array([1, 1, 0, 0, 1, 0, 1, 0])
    a = np.array([1, 1, 0, 0, 1, 0, 0, 1.0])
    b = np.array([0, 1, 1, 0, 0, 1, 1, 0.0])
    patients = np.array(list("ppqqrrst"))

    def f1(called):
        return 2 * (called * truth).sum() / (called.sum() + truth.sum())

    gaps = []
    for swaps in product([0, 1], repeat=5):
        s = np.array([dict(zip("pqrst", swaps, strict=True))[p] for p in patients])
        gaps.append(abs(f1(np.where(s, b, a)) - f1(np.where(s, a, b))))
    exact = np.mean(np.array(gaps) >= abs(f1(a) - f1(b)) - 1e-12)
    pair = [arm(predictions(s, truth, patients=patients)) for s in (a, b)]
    rows = {r.metric: r for r in compare_classifiers(
        *pair, ["fixed"], BootstrapPlan(resamples=20_000))}  # fmt: skip
    assert rows["f1@fixed"].p == pytest.approx(exact, abs=0.02)
    assert rows["f1@fixed"].difference == pytest.approx(f1(a) - f1(b))
    assert rows["sensitivity@fixed"].test == "sign flips by patient"


def test_a_false_negative_of_one_seed_makes_the_arms_mean_distance_infinite():
    def seed(values):
        return [Score(f"c{k}", "liver", "hd95", v, "mm") for k, v in enumerate(values)]

    cases = {f"c{k}": CaseInfo(f"c{k}", f"p{k}") for k in range(3)}
    rows = segmenter_rows([seed([1, 2, 3]), seed([1, math.inf, 5])], cases, PLAN)
    by = {row.statistic: row for row in rows}
    assert by["mean"].value == math.inf
    assert by["mean"].n_infinite == 1
    assert by["median"].value == 4.0
    assert (by["median"].seed_lowest, by["median"].seed_highest) == (2.0, 5.0)
