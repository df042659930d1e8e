import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn import metrics as theirs

from medvol.core import InputError, MissingInputError
from medvol.core.files import write_text
from medvol.evaluation import (
    BootstrapPlan,
    ScoreOptions,
    compare,
    evaluate_scores,
    read_predictions,
)
from medvol.metrics import CaseLine, Score, cases_to_csv, delong_test, scores_to_csv

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


def test_a_false_negative_counts_against_its_model(tmp_path):
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
    found = {row.metric: row for row in compare(first, second, plan=FAST)}
    auc, accuracy = found["auc_roc"], found["accuracy"]
    want = delong_test(y, p, q)
    assert (auc.test, auc.p, auc.difference) == ("delong", want.p, want.difference)
    right = [(s >= 0.5) == y for s in (p, q)]
    assert accuracy.difference == pytest.approx(right[0].mean() - right[1].mean())
    assert accuracy.test == "mcnemar"


@pytest.mark.parametrize("patients", [None, [k // 4 for k in range(80)]])
def test_every_number_that_both_have_is_compared(tmp_path, write_csv, patients):
    y, p, first = predictions(tmp_path / "a.csv", write_csv, 0, patients)
    _, q, second = predictions(tmp_path / "b.csv", write_csv, 1, patients)
    found = {row.metric: row for row in compare(first, second, plan=FAST)}
    called = [s >= 0.5 for s in (p, q)]
    for name, function, inputs in (
        ("average_precision", theirs.average_precision_score, (p, q)),
        ("brier", theirs.brier_score_loss, (p, q)),
        ("balanced_accuracy", theirs.balanced_accuracy_score, called),
        ("macro_f1", lambda a, b: theirs.f1_score(a, b, average="macro"), called),
        ("kappa", theirs.cohen_kappa_score, called),
    ):
        row, want = found[name], [function(y, one) for one in inputs]
        assert [row.first, row.second] == pytest.approx(want, abs=1e-6)
        assert row.lower <= row.difference <= row.upper
        assert 0 < row.p <= 1
        assert row.test == ("clustered bootstrap" if patients else "bootstrap")
    same = {row.metric: row for row in compare(first, first, plan=FAST)}
    assert all(row.difference == 0 and row.p == 1 for row in same.values())


def test_repeated_patients_are_resampled_whole(tmp_path, write_csv):
    patients = [k // 4 for k in range(80)]
    _, _, first = predictions(tmp_path / "a.csv", write_csv, 0, patients)
    _, _, second = predictions(tmp_path / "b.csv", write_csv, 1, patients)
    auc = compare(first, second, plan=FAST)[0]
    assert auc.test == "clustered bootstrap"
    assert auc.lower < auc.difference < auc.upper


def test_other_cases_or_other_truth_are_rejected(tmp_path, write_csv):
    first = scores(tmp_path / "a.csv", [0.1, 0.2])
    with pytest.raises(InputError, match="same cases"):
        compare(first, scores(tmp_path / "b.csv", [0.1, 0.2, 0.3]))
    one = write_csv(tmp_path / "p.csv", ("case", "truth", "prob"), [("a", 0, 0.1), ("b", 1, 0.9)])
    two = write_csv(tmp_path / "q.csv", ("case", "truth", "prob"), [("a", 1, 0.1), ("b", 1, 0.9)])
    with pytest.raises(InputError, match="'a' has another truth"):
        compare(one, two)
    with pytest.raises(MissingInputError, match="neither"):
        compare(tmp_path, tmp_path)


def test_a_patients_second_case_is_no_second_witness(tmp_path, write_csv):
    # Six patients allow 2**6 patterns of signs: p cannot fall under 2/64, with however many cases.
    rng = np.random.default_rng(0)
    a = 0.8 + rng.normal(0, 0.01, 60)
    first, second = scores(tmp_path / "a.csv", a), scores(tmp_path / "b.csv", a - 0.05)
    rows = [(f"c{k}", f"c{k}.nii", f"l{k}.nii", k % 6) for k in range(60)]
    for name in ("c", "l"):
        for k in range(60):
            (tmp_path / f"{name}{k}.nii").touch()
    data = write_csv(tmp_path / "d.csv", ("case", "image", "label", "patient_id"), rows)
    known, unknown = (compare(first, second, data=d, plan=FAST)[0] for d in (data, None))
    assert (known.test, known.p) == ("signed ranks by patient", 2 / 64)
    assert (unknown.test, unknown.p < 1e-8) == ("wilcoxon", True)


def test_top_classes_of_repeated_patients_flip_together(tmp_path, write_csv):
    rows = [(k, k % 2, 0.9 * (k % 2) + 0.05, k % 5) for k in range(40)]
    wrong = [(k, y, 1 - p, who) for k, y, p, who in rows]
    header = ("case", "truth", "prob", "patient_id")
    files = [write_csv(tmp_path / n, header, r) for n, r in (("a.csv", rows), ("b.csv", wrong))]
    accuracy = next(r for r in compare(*files, plan=FAST) if r.metric == "accuracy")
    assert (accuracy.difference, accuracy.test, accuracy.p) == (1, "sign flips by patient", 2 / 32)


@pytest.mark.parametrize("patients", [12, 6])
def test_auc_that_do_not_vary_prove_no_certain_gap(tmp_path, write_csv, patients):
    # A perfect model beside a constant one: both variances are 0, DeLong says p = 0.
    rows = [(k, k % 2, 0.1 + 0.8 * (k % 2), k % patients) for k in range(12)]
    flat = [(k, y, 0.5, who) for k, y, _, who in rows]
    header = ("case", "truth", "prob", "patient_id")
    files = [write_csv(tmp_path / n, header, r) for n, r in (("a.csv", rows), ("b.csv", flat))]
    auc = compare(*files, plan=FAST)[0]
    assert (auc.difference, auc.test) == (0.5, "newcombe")
    assert auc.lower < 0.5 < auc.upper
    assert 0.005 < auc.p < 0.2


def test_a_score_of_one_half_is_called_positive(tmp_path, write_csv):
    rows = [(k, 1, 0.5) for k in range(6)]
    data = read_predictions(write_csv(tmp_path / "a.csv", ("case", "truth", "prob"), rows))
    assert data.called.tolist() == [1] * 6


def test_closer_to_zero_is_better_on_either_side(tmp_path):
    first = scores(tmp_path / "a.csv", [0.1, -0.1, 0.3], "relative_volume_difference")
    second = scores(tmp_path / "b.csv", [0.2, -0.2, -0.1], "relative_volume_difference")
    row = compare(first, second, plan=FAST)[0]
    assert (row.better, row.worse) == (2, 1)


def test_two_evaluated_classifications_are_compared_by_auc(tmp_path, write_csv):
    files = [predictions(tmp_path / f"{n}.csv", write_csv, n)[2] for n in (0, 1)]
    for n, file in enumerate(files):
        evaluate_scores(ScoreOptions(file, tmp_path / f"e{n}", resamples=50))
    rows = compare(tmp_path / "e0", tmp_path / "e1", plan=FAST)
    wanted = compare(*files, plan=FAST)
    assert [(r.label, r.metric, r.difference) for r in rows] == [
        (r.label, r.metric, pytest.approx(r.difference)) for r in wanted
    ]
    assert {r.metric for r in rows} == {
        "auc_roc", "average_precision", "brier", "accuracy", "balanced_accuracy", "macro_f1",
        "kappa",
    }  # fmt: skip


def test_the_data_set_may_know_the_truth(tmp_path, write_csv):
    rows = [(f"c{k}", f"c{k}.png", "ab"[k % 2], k) for k in range(12)]
    for _, image, _, _ in rows:
        Image.new("L", (4, 4)).save(tmp_path / image)
    data = write_csv(tmp_path / "d.csv", ("case", "image", "class", "patient_id"), rows)
    header = ("case", "prob_a", "prob_b")
    right = [(c, 0.9 - 0.8 * (k % 2), 0.1 + 0.8 * (k % 2)) for k, (c, *_) in enumerate(rows)]
    flat = [(c, 0.5, 0.5) for c, *_ in rows]
    files = [write_csv(tmp_path / n, header, r) for n, r in (("x.csv", right), ("y.csv", flat))]
    auc = compare(*files, data=data, plan=FAST)[0]
    assert (auc.label, auc.first, auc.second) == ("b", 1.0, 0.5)


def test_folders_keep_the_patients_that_their_evaluation_knew(shared_data, tmp_path):
    source = shared_data.parent / "cases" / "verbs" / "compare_loses_patients"
    for name in "ab":
        evaluate_scores(ScoreOptions(source / f"{name}.csv", tmp_path / name, resamples=50))
    folders = compare(tmp_path / "a", tmp_path / "b", plan=FAST)
    files = compare(source / "a.csv", source / "b.csv", plan=FAST)
    assert folders == files
    assert {row.test for row in folders} == {"clustered bootstrap", "sign flips by patient"}
    assert folders[0].p > 1e-3  # 24 patients, not 240


@given(names=st.permutations(range(10)))
@settings(max_examples=10, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_no_number_depends_on_what_patients_are_called(names, tmp_path_factory, write_csv):
    folder = tmp_path_factory.mktemp("names")
    found = []
    for called in (range(10), names):
        patients = [f"p{called[k // 8]}" for k in range(80)]
        files = [predictions(folder / f"{n}.csv", write_csv, n, patients)[2] for n in (0, 1)]
        found.append(compare(*files, plan=FAST))
    assert found[0] == found[1]


def test_mask_scores_beside_cases_csv_keep_patients_together(tmp_path):
    rng = np.random.default_rng(0)
    a = 0.8 + rng.normal(0, 0.01, 60)
    for name, values in (("a", a), ("b", a - 0.05)):
        scores(tmp_path / name / "scores.csv", values)
        lines = [CaseLine(f"c{k}", f"{name}{k % 6}") for k in range(60)]
        write_text(tmp_path / name / "cases.csv", cases_to_csv(lines))
    (row,) = compare(tmp_path / "a", tmp_path / "b", plan=FAST)
    assert (row.test, row.p) == ("signed ranks by patient", 2 / 64)
    (tmp_path / "b" / "cases.csv").unlink()  # one that knows is enough
    assert compare(tmp_path / "a", tmp_path / "b", plan=FAST) == [row]
    lines = [CaseLine(f"c{k}", f"p{k % 5}") for k in range(60)]
    write_text(tmp_path / "b" / "cases.csv", cases_to_csv(lines))
    with pytest.raises(InputError, match="groups the cases by other patients"):
        compare(tmp_path / "a", tmp_path / "b", plan=FAST)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_named(tmp_path, separator):
    path = tmp_path / "a.csv"
    path.write_text("\ufeff" + separator.join(["case", "truth", "prob"]) + "\n")
    with pytest.raises(InputError, match=r"separated by") as caught:
        read_predictions(path)
    assert repr(separator) in str(caught.value)
