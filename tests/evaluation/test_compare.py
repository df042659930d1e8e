import math

import numpy as np
import pytest
from scipy import stats

from medvol.core import InputError, MissingInputError
from medvol.core.files import write_text
from medvol.evaluation import BootstrapPlan, compare
from medvol.metrics import Score, delong_test, scores_to_csv

FAST = BootstrapPlan(resamples=500)


def scores(path, values, metric="dice", label="liver"):
    unit = "mm" if metric == "hd95" else ""
    rows = [Score(f"c{k}", label, metric, float(v), unit) for k, v in enumerate(values)]
    write_text(path, scores_to_csv(rows))
    return path


def test_a_shift_of_every_case_is_found(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.uniform(0.6, 0.9, 30)
    b = a - 0.05 + rng.normal(0, 0.01, 30)
    row = compare(scores(tmp_path / "a.csv", a), scores(tmp_path / "b.csv", b), plan=FAST)[0]
    assert row.lower < 0.05 < row.upper
    assert (row.n, row.better, row.worse) == (30, 30, 0)
    assert row.p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_a_miss_counts_against_the_model_that_missed(tmp_path):
    a, b = [3.0, 4.0, 5.0, math.nan], [math.inf, 4.5, 5.5, 2.0]
    first, second = (scores(tmp_path / n, v, "hd95") for n, v in (("a.csv", a), ("b.csv", b)))
    row = compare(first, second, plan=FAST)[0]
    assert (row.n, row.n_undefined, row.better, row.worse) == (3, 1, 3, 0)


def test_p_values_are_adjusted_over_the_whole_table(tmp_path):
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 3, 20))
    for name, table in (("a", a), ("b", b)):
        rows = [Score(f"c{k}", f"l{j}", "dice", float(v)) for j, line in enumerate(table)
                for k, v in enumerate(line)]  # fmt: skip
        write_text(tmp_path / name / "scores.csv", scores_to_csv(rows))
    rows = compare(tmp_path / "a", tmp_path / "b", plan=FAST)
    smallest = min(rows, key=lambda row: row.p)
    assert smallest.p_holm == pytest.approx(min(1, 3 * smallest.p))


def predictions(path, write_csv, seed, patients=None):
    rng = np.random.default_rng(seed)
    y = np.arange(80) % 2
    p = 1 / (1 + np.exp(-rng.normal(y, 1 + seed)))
    patients = patients or range(80)
    rows = [(k, y[k], p[k], patients[k]) for k in range(80)]
    return y, p, write_csv(path, ("case", "truth", "prob", "patient_id"), rows)


def test_two_auc_are_compared_by_delong(tmp_path, write_csv):
    y, p, first = predictions(tmp_path / "a.csv", write_csv, 0)
    _, q, second = predictions(tmp_path / "b.csv", write_csv, 1)
    auc, accuracy = compare(first, second, plan=FAST)
    want = delong_test(y, p, q)
    assert (auc.test, auc.p, auc.difference) == ("delong", want.p, want.difference)
    right = [(s >= 0.5) == y for s in (p, q)]
    assert accuracy.difference == pytest.approx(right[0].mean() - right[1].mean())
    assert accuracy.test == "mcnemar"


def test_repeated_patients_are_resampled_whole(tmp_path, write_csv):
    patients = [k // 4 for k in range(80)]
    _, _, first = predictions(tmp_path / "a.csv", write_csv, 0, patients)
    _, _, second = predictions(tmp_path / "b.csv", write_csv, 1, patients)
    auc = compare(first, second, plan=FAST)[0]
    assert auc.test == "clustered bootstrap"
    assert auc.lower < auc.difference < auc.upper


def test_other_cases_or_other_truth_are_refused(tmp_path, write_csv):
    first = scores(tmp_path / "a.csv", [0.1, 0.2])
    with pytest.raises(InputError, match="same cases"):
        compare(first, scores(tmp_path / "b.csv", [0.1, 0.2, 0.3]))
    one = write_csv(tmp_path / "p.csv", ("case", "truth", "prob"), [("a", 0, 0.1), ("b", 1, 0.9)])
    two = write_csv(tmp_path / "q.csv", ("case", "truth", "prob"), [("a", 1, 0.1), ("b", 1, 0.9)])
    with pytest.raises(InputError, match="'a' has another truth"):
        compare(one, two)
    with pytest.raises(MissingInputError, match="neither"):
        compare(tmp_path, tmp_path)
