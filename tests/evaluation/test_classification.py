import math

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from medvol.core import ConfigError, InputError, LabelError, MissingInputError, NonFiniteError
from medvol.evaluation import (
    BootstrapPlan,
    ScoreOptions,
    evaluate_scores,
    fix_thresholds,
    read_predictions,
    rerun,
    show,
    show_interval,
    summarise_predictions,
)
from medvol.metrics import auc_ci, auc_roc, average_precision, clinical, confusion, wilson

FAST = BootstrapPlan(resamples=300)


def draw(seed, n=90, shift=1.5):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3 == 0
    return y, 1 / (1 + np.exp(-rng.normal(np.where(y, shift, -shift), 1.5)))


def binary(path, write_csv, seed=0, name="c", patients=None):
    y, p = draw(seed)
    patients = patients or [f"{name}{k}" for k in range(len(y))]
    header = ("case", "truth", "prob", "patient_id", "site")
    rows = [(f"{name}{k}", int(y[k]), p[k], patients[k], "AB"[k % 2]) for k in range(len(y))]
    return write_csv(path, header, rows)


def three_classes(path, write_csv, n=60):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[y]
    names = ("covid", "healthy", "pneumonia")
    header = ("case", "class", *[f"logit_{c}" for c in names])
    write_csv(path, header, [(k, names[y[k]], *logits[k]) for k in range(n)])
    return y, logits


def table(rows):
    return {(r.group, r.label, r.metric, r.operating_point): r for r in rows}


def test_every_number_is_that_of_its_function(tmp_path, write_csv):
    data = read_predictions(binary(tmp_path / "t.csv", write_csv))
    rows = table(summarise_predictions(data, by=("site",), plan=FAST))
    y, p = draw(0)
    for group, inside in (("all", y >= 0), ("site=A", np.arange(90) % 2 == 0)):
        at = clinical(**dict(confusion(y[inside], p[inside])))
        auc = rows[group, "1", "auc_roc", ""]
        assert auc.value == pytest.approx(auc_roc(y[inside], p[inside]))
        assert auc.lower < auc.value < auc.upper
        ap = rows[group, "1", "average_precision", ""]
        assert ap.value == pytest.approx(average_precision(y[inside], p[inside]))
        for metric in ("sensitivity", "specificity", "ppv", "npv", "f1", "mcc", "lr_plus"):
            assert rows[group, "1", metric, "fixed"].value == pytest.approx(at[metric])
        se = rows[group, "1", "sensitivity", "fixed"]
        want = wilson(se.k, se.n)
        assert (se.lower, se.upper, se.method) == (want.lower, want.upper, "wilson")


def test_thresholds_are_fixed_on_validation_and_observed_on_test(tmp_path, write_csv):
    validation = read_predictions(binary(tmp_path / "v.csv", write_csv, seed=1, name="v"))
    test = read_predictions(binary(tmp_path / "t.csv", write_csv, seed=2))
    fixed = fix_thresholds(validation)
    assert set(fixed) == {
        ("1", "sensitivity>=0.95"), ("1", "specificity>=0.95"), ("1", "youden"),
    }  # fmt: skip
    rows = table(summarise_predictions(test, thresholds=fixed, plan=FAST))
    row = rows["all", "1", "sensitivity", "sensitivity>=0.95"]
    y, p = draw(2)
    assert row.threshold == fixed["1", "sensitivity>=0.95"]
    assert row.value == (p[y] >= row.threshold).mean()
    assert (row.k, row.n) == (int((p[y] >= row.threshold).sum()), int(y.sum()))


def test_perfect_separation_never_prints_an_interval_of_ones(tmp_path, write_csv):
    y = [0] * 15 + [1] * 15
    path = write_csv(tmp_path / "t.csv", ("case", "truth", "prob"), [
        (k, v, 0.1 + 0.8 * v) for k, v in enumerate(y)])  # fmt: skip
    rows = summarise_predictions(read_predictions(path), plan=FAST)
    auc = table(rows)["all", "1", "auc_roc", ""]
    assert (auc.value, auc.method) == (1, "newcombe")
    assert auc.lower < 0.95
    for row in rows:
        assert "1.000 to 1.000" not in show_interval(row.value, row.lower, row.upper), row.metric


def test_repeated_patients_widen_the_intervals(tmp_path, write_csv):
    single = read_predictions(binary(tmp_path / "a.csv", write_csv))
    header = ("case", "truth", "prob", "patient_id")
    y, p = draw(0)
    rows = [(f"{k}-{i}", int(y[k]), p[k], f"p{k}") for k in range(90) for i in range(4)]
    four = read_predictions(write_csv(tmp_path / "b.csv", header, rows))
    for metric, point in (("auc_roc", ""), ("accuracy", "fixed")):
        one = table(summarise_predictions(single, plan=FAST))["all", "1", metric, point]
        many = table(summarise_predictions(four, plan=FAST))["all", "1", metric, point]
        assert many.value == pytest.approx(one.value)
        assert many.n_patients == one.n_patients
        assert many.upper - many.lower == pytest.approx(one.upper - one.lower, rel=0.35)


def few_patients(path, write_csv, patients, n=40, shift=9.0):
    y, p = draw(0, n, shift)
    rows = [(k, int(y[k]), p[k], k % patients) for k in range(n)]
    return read_predictions(write_csv(path, ("case", "truth", "prob", "patient_id"), rows))


def test_many_images_of_two_patients_prove_no_more_than_two_patients(tmp_path, write_csv):
    data = few_patients(tmp_path / "t.csv", write_csv, patients=2)
    rows = table(summarise_predictions(data, plan=FAST))
    sensitivity, auc = rows["all", "1", "sensitivity", "fixed"], rows["all", "1", "auc_roc", ""]
    assert (sensitivity.value, sensitivity.k, auc.value) == (1.0, 14, 1.0)
    assert sensitivity.lower == pytest.approx(wilson(2, 2).lower)
    assert auc.lower == pytest.approx(auc_ci([0, 0, 1, 1], [0, 0, 1, 1]).lower)
    assert math.isnan(rows["all", "1", "brier", ""].lower)
    assert math.isfinite(rows["all", "1", "brier", ""].value)


def test_three_classes_are_each_taken_against_the_rest(tmp_path, write_csv):
    y, logits = three_classes(tmp_path / "t.csv", write_csv)
    data = read_predictions(tmp_path / "t.csv")
    assert data.prob == pytest.approx(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    rows = table(summarise_predictions(data, plan=FAST))
    macro = rows["all", "(macro)", "auc_roc", ""]
    want = sk.roc_auc_score(y, data.prob, multi_class="ovr", average="macro")
    assert macro.value == pytest.approx(want)
    assert macro.lower < macro.value < macro.upper
    accuracy = rows["all", "(macro)", "accuracy", ""]
    assert accuracy.value == (data.prob.argmax(axis=1) == y).mean()
    assert rows["all", "healthy", "auc_roc", ""].n_pos == (y == 1).sum()


def test_predictive_values_are_stated_at_another_prevalence(tmp_path, write_csv):
    data = read_predictions(binary(tmp_path / "t.csv", write_csv))
    rows = table(summarise_predictions(data, plan=FAST, prevalence=0.02))
    se, sp = (rows["all", "1", name, "fixed"].value for name in ("sensitivity", "specificity"))
    ppv, npv = (rows["all", "1", f"{n}@prevalence=0.02", "fixed"] for n in ("ppv", "npv"))
    # Of 10,000 people 200 are ill: counts, not Bayes' rule.
    assert ppv.value == pytest.approx(200 * se / (200 * se + 9800 * (1 - sp)))
    assert npv.value == pytest.approx(9800 * sp / (9800 * sp + 200 * (1 - se)))
    assert ppv.lower < ppv.value < ppv.upper < rows["all", "1", "ppv", "fixed"].lower
    for wrong in (0, 1, -0.1, 20):
        with pytest.raises(ConfigError, match="prevalence must lie between"):
            summarise_predictions(data, plan=FAST, prevalence=wrong)


def test_an_evaluation_writes_its_tables_and_repeats(tmp_path, write_csv):
    options = ScoreOptions(
        binary(tmp_path / "t.csv", write_csv),
        tmp_path / "out",
        validation=binary(tmp_path / "v.csv", write_csv, 1, "v"),
        external=binary(tmp_path / "e.csv", write_csv, 2, "e"),
        by=("site",),
        prevalence=0.1,
        resamples=200,
    )
    found = evaluate_scores(options)
    assert {row.cohort for row in found.table} == {"internal", "external"}
    assert len(found.worst) == 10
    assert found.worst[0].value >= found.worst[-1].value
    assert rerun(tmp_path / "out" / "run.json") == []


def test_thresholds_fixed_on_tested_patients_are_rejected(tmp_path, write_csv):
    path = binary(tmp_path / "t.csv", write_csv, patients=[f"secret{k}" for k in range(90)])
    with pytest.raises(InputError, match="90 cases belong to patients of") as caught:
        evaluate_scores(ScoreOptions(path, tmp_path / "out", validation=path))
    assert "secret" not in str(caught.value)


def test_only_tested_patients_must_be_strangers_to_the_training(tmp_path, write_csv):
    header = ("image", "class", "patient_id")
    rows = [(f"c{k}.png", "ab"[k % 2], f"secret{k // 2}") for k in range(8)]
    for name, _, _ in rows:
        Image.new("L", (8, 8)).save(tmp_path / name)
    data = write_csv(tmp_path / "data.csv", header, rows)
    train = write_csv(tmp_path / "train.csv", header, rows[:4])

    def tested(cases):
        scores = [(f"c{k}", 0.1 * k) for k in cases]
        path = write_csv(tmp_path / "s.csv", ("case", "prob"), scores)
        shared = {"data": data, "train": train, "positive": "b", "resamples": 50}
        return evaluate_scores(ScoreOptions(path, tmp_path / "out", **shared))

    assert tested(range(4, 8)).table
    with pytest.raises(InputError, match="2 test cases belong to patients") as caught:
        tested(range(2, 8))
    assert "secret" not in str(caught.value)


def test_truth_may_come_from_the_data_set(tmp_path, write_csv):
    path = write_csv(tmp_path / "p.csv", ("case", "prob"), [("a", 0.2), ("b", 0.9)])
    data = read_predictions(path, truth={"a": "well", "b": "ill"}, positive="ill")
    assert (data.classes, data.truth.tolist()) == (("well", "ill"), [0, 1])
    with pytest.raises(InputError, match="'b' has no class"):
        read_predictions(path, truth={"a": "well"})
    with pytest.raises(InputError, match="has no truth"):
        _ = read_predictions(path).known_truth
    with pytest.raises(LabelError, match="--positive"):
        read_predictions(path, truth={"a": "well", "b": "ill"})


@pytest.mark.parametrize(
    ("header", "rows", "error", "words"),
    [
        (("name", "prob"), [("a", 0.1)], InputError, "no column 'case'"),
        (("case", "x"), [("a", 0.1)], InputError, "neither 'prob'"),
        (("case", "prob"), [("a", "high")], InputError, "line 2: prob is not a number"),
        (("case", "prob"), [("a", "nan")], NonFiniteError, "line 2: prob is nan"),
        (("case", "prob"), [("a", 0.1), ("a", 0.2)], InputError, "'a' has several rows"),
        (("case", "truth", "prob_x", "prob_y"), [("a", "z", 1, 0)], LabelError, "class 'z'"),
        (("case", "prob"), [], MissingInputError, "holds no row"),
    ],
)
def test_a_broken_file_is_rejected_with_its_name_and_line(
    tmp_path, write_csv, header, rows, error, words
):
    path = write_csv(tmp_path / "p.csv", header, rows)
    with pytest.raises(error, match=rf"p\.csv: .*{words}"):
        read_predictions(path)


def test_nothing_that_is_not_one_prints_as_one():
    assert show(0.9996) == ">0.999"
    assert show(1.0) == "1.000"
    assert show(0.0004) == "<0.001"
    assert show(math.inf) == "inf"
    assert show_interval(1.0, 1.0, 1.0) == "1.000 (every resample equal)"
    assert show_interval(0.5, math.nan, math.nan) == "0.500 (no interval)"


def test_the_positive_class_is_the_one_asked_for(tmp_path, write_csv):
    y, p = draw(0)
    header = ("case", "truth", "prob_ill", "prob_well")
    rows = [(k, ("well", "ill")[int(y[k])], p[k], 1 - p[k]) for k in range(len(y))]
    path = write_csv(tmp_path / "t.csv", header, rows)
    data = read_predictions(path, positive="ill")
    assert data.classes == ("well", "ill")
    assert auc_roc(data.known_truth, data.prob[:, 1]) == pytest.approx(auc_roc(y, p))
    numbered = write_csv(tmp_path / "n.csv", header, [(k, int(not y[k]), *r[2:])
                         for k, r in enumerate(rows)])  # fmt: skip
    with pytest.raises(LabelError, match="write names"):
        read_predictions(numbered, positive="ill")
    with pytest.raises(LabelError, match="'sick' is not one of"):
        read_predictions(path, positive="sick")
    single = write_csv(tmp_path / "s.csv", ("case", "truth", "prob_ill"), [r[:3] for r in rows])
    with pytest.raises(LabelError, match="its score is of 'ill'"):
        read_predictions(single, positive="well")


def test_the_most_confident_right_scores_are_not_the_worst_cases(tmp_path, write_csv):
    # Scores from -9 to 9 are no probabilities: their squared error grows with being right.
    rows = [(f"c{k}", k // 10, s) for k, s in enumerate([*range(-9, 1), *range(0, 10)])]
    rows[0] = ("c0", 0, 5.5)
    path = write_csv(tmp_path / "t.csv", ("case", "truth", "score"), rows)
    found = evaluate_scores(ScoreOptions(path, tmp_path / "out", worst=2, resamples=50))
    assert [(r.case, r.metric, r.value) for r in found.worst] == [
        ("c0", "auc_roc", 0.4), ("c10", "auc_roc", 0.85)
    ]  # fmt: skip


def test_validation_cases_of_one_class_fix_no_threshold(tmp_path, write_csv):
    path = write_csv(tmp_path / "v.csv", ("case", "truth", "prob"), [(k, 0, 0.1) for k in range(9)])
    with pytest.raises(InputError, match="no case is of '1'"):
        fix_thresholds(read_predictions(path))
