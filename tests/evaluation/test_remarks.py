"""What would mislead is stated in a sentence, or rejected; gaps stand beside their intervals."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from medvol.cli.main import main
from medvol.evaluation import (
    BootstrapPlan,
    MaskOptions,
    ScoreOptions,
    evaluate_scores,
    evaluate_segmentation,
)
from medvol.evaluation.classification import summarise_predictions
from medvol.evaluation.gaps import find_gaps
from medvol.evaluation.predictions import read_predictions
from medvol.metrics import agreement_of_classes


def scored(path, write_csv, columns, rows):
    return write_csv(path, ("case", *columns), [(f"c{k}", *row) for k, row in enumerate(rows)])


def evaluated(tmp_path, path, **options):
    return evaluate_scores(ScoreOptions(path, tmp_path / "out", resamples=100, **options))


def test_scores_that_are_not_probabilities_are_not_judged_at_one_half(tmp_path, write_csv):
    rng = np.random.default_rng(0)
    rows = [(k % 2, 50 + 20 * (k % 2) + rng.normal(0, 15)) for k in range(60)]
    found = evaluated(tmp_path, scored(tmp_path / "a.csv", write_csv, ("truth", "score"), rows))
    assert {row.metric for row in found.table} == {"auc_roc", "average_precision"}
    assert any("not probabilities" in line for line in found.remarks)


def test_with_a_threshold_of_other_cases_any_score_is_judged(tmp_path, write_csv):
    rng = np.random.default_rng(0)
    paths = []
    for name in "tv":
        rows = [(f"{name}{k}", k % 2, 50 + 20 * (k % 2) + rng.normal(0, 15)) for k in range(60)]
        paths.append(write_csv(tmp_path / f"{name}.csv", ("case", "truth", "score"), rows))
    found = evaluated(tmp_path, paths[0], validation=paths[1])
    assert "sensitivity" in {row.metric for row in found.table}
    assert found.remarks == ()


@pytest.mark.parametrize(
    ("columns", "row", "fault"),
    [
        (("truth", "prob_a", "prob_b"), ("a", 0.9, 0.9), "sum to 1.8"),
        (("truth", "prob_malignant", "prob_benign"), (1, 0.4, 0.6), "write names"),
    ],
)
def test_what_the_columns_leave_open_is_rejected(tmp_path, write_csv, columns, row, fault, capsys):
    path = scored(tmp_path / "a.csv", write_csv, columns, [row] * 4)
    assert main(["evaluate", "scores", str(path), "-o", str(tmp_path / "out")]) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_that_are_numbers_are_written_as_numbers(tmp_path, write_csv):
    rows = [(k % 2, 0.3 + 0.4 * (k % 2), 0.7 - 0.4 * (k % 2)) for k in range(20)]
    path = scored(tmp_path / "a.csv", write_csv, ("truth", "prob_1", "prob_0"), rows)
    assert read_predictions(path).called.tolist() == read_predictions(path).known_truth.tolist()


@pytest.mark.parametrize(
    ("rows", "remark"),
    [
        ([(k % 2, 0.5) for k in range(20)], "no classes are separated"),
        ([(1, k / 20) for k in range(20)], "no internal case is of '0'"),
    ],
)
def test_degenerate_scores_come_with_a_sentence(tmp_path, write_csv, rows, remark, capsys):
    path = scored(tmp_path / "a.csv", write_csv, ("truth", "prob"), rows)
    assert main(["evaluate", "scores", str(path), "-o", str(tmp_path / "out")]) == 0
    assert remark in capsys.readouterr().out


def test_empty_label_maps_are_rejected_and_an_absent_label_is_stated(tmp_path, save_mask, capsys):
    for folder in ("pred", "ref"):
        for k in range(3):
            save_mask(tmp_path / folder / f"c{k}.nii.gz", np.zeros((6, 6, 6)))
    arguments = ["evaluate", "masks", "--pred", str(tmp_path / "pred"), "--ref",
                 str(tmp_path / "ref"), "-o", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 2
    assert "holds a structure" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    found = evaluate_segmentation(MaskOptions(
        tmp_path / "pred", tmp_path / "ref", tmp_path / "out", labels={1: "liver"}, resamples=50
    ))  # fmt: skip
    assert any("liver: no internal case holds it" in line for line in found.remarks)


def by_sex(tmp_path, write_csv, women, men, n=200):
    rng = np.random.default_rng(0)
    rows = []
    for k in range(2 * n):
        y, sex = k % 2, "FM"[k // 2 % 2]
        shift = women if sex == "F" else men
        rows.append((y, sex, f"p{k}", 1 / (1 + np.exp(-rng.normal(shift * (2 * y - 1), 1)))))
    return scored(tmp_path / "s.csv", write_csv, ("truth", "sex", "patient_id", "prob"), rows)


def test_a_gap_between_the_sexes_is_flagged_and_none_is_not(tmp_path, write_csv, capsys):
    path = by_sex(tmp_path, write_csv, 0.02, 1.4)
    arguments = ["evaluate", "scores", str(path), "-o", str(tmp_path / "out"), "--by", "sex",
                 "--resamples", "200"]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert any(line.startswith("subgroup gap: ") and "auc_roc" in line
               for line in shown.splitlines())  # fmt: skip
    with (tmp_path / "out" / "gaps.csv").open(newline="") as handle:
        rows = {row["metric"]: row for row in csv.DictReader(handle)}
    auc = rows["auc_roc"]
    assert auc["is_flagged"] == "True"
    assert float(auc["lower"]) < float(auc["difference"]) < float(auc["upper"])
    assert float(auc["difference"]) == pytest.approx(
        float(auc["first_value"]) - float(auc["second_value"])
    )
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "gaps.csv" in run["outputs"]
    alike = evaluated(tmp_path, by_sex(tmp_path, write_csv, 1.0, 1.0), by=("sex",))
    assert alike.gaps
    assert not any(gap.is_flagged for gap in alike.gaps)


def test_external_stands_beside_internal_with_a_difference(tmp_path, write_csv):
    inside = by_sex(tmp_path, write_csv, 1.4, 1.4)
    (tmp_path / "b").mkdir()
    outside = by_sex(tmp_path / "b", write_csv, 0.3, 0.3, n=150)
    found = evaluated(tmp_path, inside, external=outside)
    gap = next(g for g in found.gaps if g.metric == "auc_roc")
    assert (gap.kind, gap.first, gap.second) == ("cohort", "external", "internal")
    assert gap.upper < 0
    assert any(line.startswith("external beside internal") for line in found.remarks)


def test_the_difference_of_two_means_is_covered_as_promised():
    # Intervals of two normal means, joined: the difference's interval covers 95%.
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        rows = [_mean_row(f"g={k}", rng.normal(k, 1 + k, 40 + 40 * k)) for k in (0, 1)]
        gap = find_gaps(rows)[0]
        hits += gap.lower <= -1 <= gap.upper
    assert 0.93 <= hits / 2000 <= 0.97


def test_tables_without_gaps_flag_one_at_most_as_often_as_promised():
    rng = np.random.default_rng(1)
    flagged = 0
    for _ in range(1000):
        rows = [_mean_row(f"g={k}", rng.normal(0, 1, 60 if k else 61)) for k in range(6)]
        flagged += any(gap.is_flagged for gap in find_gaps(rows))
    assert flagged / 1000 <= 0.07


def _mean_row(group, values):
    from medvol.evaluation import SummaryRow

    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    numbers = dict.fromkeys(
        ("n_undefined", "n_infinite", "n_false_negative", "n_false_positive", "mean_finite",
         "median", "median_lower", "median_upper", "q25", "q75", "worst"), 0,
    )  # fmt: skip
    return SummaryRow(
        cohort="internal", group=group, label="liver", metric="dice", unit="", direction="higher",
        n=len(values), n_patients=len(values), mean=mean, mean_lower=mean - 1.96 * error,
        mean_upper=mean + 1.96 * error, is_small=False, **numbers,
    )  # fmt: skip


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 4))
def test_macro_f1_balanced_accuracy_and_kappa_are_scikit_learns(seed, classes):
    rng = np.random.default_rng(seed)
    truth = np.append(np.arange(classes), rng.integers(0, classes, 30))
    called = np.append(rng.permutation(classes), rng.integers(0, classes, 30))
    table = theirs.confusion_matrix(truth, called)
    found = agreement_of_classes(np.stack([table, table]))
    assert found["macro_f1"][1] == pytest.approx(theirs.f1_score(truth, called, average="macro"))
    want = theirs.balanced_accuracy_score(truth, called)
    assert found["balanced_accuracy"][1] == pytest.approx(want)
    assert found["kappa"][1] == pytest.approx(theirs.cohen_kappa_score(truth, called))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_table_states_them_with_intervals(tmp_path, write_csv, classes):
    rng = np.random.default_rng(0)
    names = "abc"[:classes]
    prob = rng.dirichlet(np.ones(classes), 90)
    truth = [names[k if rng.random() < 0.7 else k % classes - 1] for k in prob.argmax(1)]
    rows = [(t, *(f"{x:.9f}" for x in p)) for t, p in zip(truth, prob, strict=True)]
    path = scored(tmp_path / "a.csv", write_csv, ("truth", *(f"prob_{n}" for n in names)), rows)
    data = read_predictions(path)
    table = summarise_predictions(data, plan=BootstrapPlan(200))
    called = [names[k] for k in data.called]
    for metric, want in (
        ("macro_f1", theirs.f1_score(truth, called, average="macro")),
        ("kappa", theirs.cohen_kappa_score(truth, called)),
        ("balanced_accuracy", theirs.balanced_accuracy_score(truth, called)),
    ):
        label = "b" if classes == 2 else "(macro)"
        row = next(r for r in table if r.metric == metric and r.label == label)
        assert row.value == pytest.approx(want)
        assert row.lower < row.value < row.upper
