import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from medvol.core import ConfigError, InputError
from medvol.uncertainty import ConformalSets, coverage_band, coverage_report, fit_conformal


def cases(patients, images, seed, share=0.5, noise=1.5):
    """Images of patients share their patient's difficulty; the second class is harder."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), images)
    label = (rng.random(patients) < share).astype(int)
    strength = rng.normal(1.5, noise, patients) - 0.8 * label
    signed = np.where(label == 1, 1, -1)[owner] * (strength[owner] + rng.normal(0, 0.3, len(owner)))
    return softmax(np.stack([-signed, signed], 1) / 2, axis=1), label[owner], owner


@given(n=st.integers(5, 60), alpha=st.floats(0.05, 0.5), seed=st.integers(0, 50))
def test_threshold_is_the_textbook_order_statistic_for_one_image_each(n, alpha, seed):
    probabilities, labels, _ = cases(n, 1, seed)
    scores = np.sort(1 - probabilities[np.arange(n), labels])
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    wanted = scores[rank - 1] if rank <= n else math.inf
    assert fit_conformal(probabilities, labels, alpha=alpha).thresholds == (wanted, wanted)


@given(copies=st.integers(2, 5), seed=st.integers(0, 20))
def test_copies_of_every_image_change_nothing(copies, seed):
    probabilities, labels, owners = cases(30, 1, seed)
    once = fit_conformal(probabilities, labels, owners)
    again = [np.repeat(a, copies, axis=0) for a in (probabilities, labels, owners)]
    assert fit_conformal(*again).thresholds == once.thresholds


@pytest.mark.parametrize("by_class", [False, True])
def test_coverage_over_many_runs_keeps_the_promise(by_class):
    kept, per_class = [], {0: [], 1: []}
    for seed in range(150):
        fitted = fit_conformal(*cases(60, 3, 2 * seed, 0.3), alpha=0.2, by_class=by_class)
        probabilities, labels, _ = cases(60, 3, 2 * seed + 1, 0.3)
        hits = fitted.predict(probabilities)[np.arange(len(labels)), labels]
        kept.append(hits.mean())
        for number, values in per_class.items():
            values.append(hits[labels == number].mean())
    # 150 runs of 60 patients: the standard error of the mean is about 0.006.
    assert 0.78 <= np.mean(kept) <= 0.86
    if by_class:
        assert min(np.mean(values) for values in per_class.values()) >= 0.78
    else:
        assert np.mean(per_class[1]) < 0.75  # the harder class pays, which by_class mends


def test_ignoring_patients_would_break_the_promise_for_new_patients():
    # One patient with many hard images must not set the threshold for all others, nor vanish.
    probabilities = np.array([[0.9, 0.1]] * 9 + [[0.2, 0.8]] * 91)
    labels = np.zeros(100, int)
    patients = [f"p{i}" for i in range(9)] + ["hard"] * 91
    by_patient = fit_conformal(probabilities, labels, patients, alpha=0.2)
    assert by_patient.thresholds[0] == pytest.approx(0.1)
    by_image = fit_conformal(probabilities, labels, alpha=0.2)
    assert by_image.thresholds[0] == pytest.approx(0.8)
    assert by_patient.patients == (10, 10)


def test_too_few_patients_exclude_nothing():
    fitted = fit_conformal([[0.9, 0.1], [0.2, 0.8]], [0, 1], alpha=0.1)
    assert fitted.thresholds == (math.inf, math.inf)
    assert fitted.predict([[1.0, 0.0]]).all()
    lonely = fit_conformal([[0.9, 0.1]] * 30, [0] * 30, alpha=0.1, by_class=True)
    assert lonely.patients == (30, 0)
    assert lonely.predict([[1.0, 0.0]]).tolist() == [[True, True]]


@given(smaller=st.floats(0.05, 0.4), seed=st.integers(0, 30))
def test_sets_grow_as_alpha_shrinks(smaller, seed):
    probabilities, labels, owners = cases(80, 2, seed)
    wide = fit_conformal(probabilities, labels, owners, alpha=smaller)
    narrow = fit_conformal(probabilities, labels, owners, alpha=smaller + 0.3)
    assert not (narrow.predict(probabilities) & ~wide.predict(probabilities)).any()


def test_thresholds_survive_json():
    for fitted in (fit_conformal(*cases(50, 2, 0)), fit_conformal([[0.9, 0.1]], [0])):
        assert ConformalSets.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    with pytest.raises(ConfigError, match="not fitted thresholds"):
        ConformalSets.from_dict({"alpha": 0.1})


def test_report_counts_every_group_and_adds_up():
    fitted = fit_conformal(*cases(200, 2, 0), alpha=0.1, by_class=True)
    probabilities, labels, owners = cases(100, 2, 1)
    sex = ["F" if owner % 3 else "M" for owner in owners]
    rows = {
        r.group: r for r in coverage_report(fitted, probabilities, labels, owners, {"sex": sex})
    }
    assert list(rows) == ["all", "class=0", "class=1", "sex=F", "sex=M"]
    for parts in (("class=0", "class=1"), ("sex=F", "sex=M")):
        for field in ("n", "patients", "covered"):
            assert sum(getattr(rows[p], field) for p in parts) == getattr(rows["all"], field)
    assert rows["all"].patients == 100
    assert all(row.is_kept for row in rows.values())


def test_a_classes_band_rests_on_its_own_calibration():
    thresholds = fit_conformal(*cases(200, 1, 0), alpha=0.1).thresholds
    rare = ConformalSets(0.1, (thresholds[0], math.inf), (200, 5), True)
    even = ConformalSets(0.1, thresholds, (200, 40), True)
    probabilities, labels, owners = cases(100, 1, 1)
    count = int((labels == 0).sum())
    for fitted, of_all in ((rare, 200), (even, 40)):
        rows = {r.group: r for r in coverage_report(fitted, probabilities, labels, owners)}
        assert rows["class=0"].band == coverage_band(200, count, 0.1)
        assert rows["all"].band == coverage_band(of_all, 100, 0.1)
    assert rows["class=1"].band == coverage_band(40, 100 - count, 0.1)


def test_broken_promise_is_seen():
    fitted = fit_conformal(*cases(300, 1, 0), alpha=0.1)
    probabilities, labels, owners = cases(300, 1, 1, noise=4)
    assert not coverage_report(fitted, probabilities, labels, owners)[0].is_kept


def test_band_holds_the_coverage_of_simulated_quantiles():
    rng = np.random.default_rng(0)
    low, high = coverage_band(50, 40, 0.1)
    inside = []
    for _ in range(2000):
        threshold = np.sort(rng.random(50))[math.ceil(51 * 0.9) - 1]
        inside.append(low <= (rng.random(40) <= threshold).mean() <= high)
    assert 0.94 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": 0}, "alpha 0"),
        ({"alpha": 1.2}, "alpha 1.2"),
        ({"patients": ["a"]}, "1 patients were given for 2 cases"),
    ],
)
def test_wrong_input_is_rejected(change, words):
    arguments = {"probabilities": [[0.9, 0.1], [0.2, 0.8]], "labels": [0, 1]} | change
    with pytest.raises(InputError, match=words):
        fit_conformal(**arguments)


def test_other_number_of_classes_is_rejected():
    with pytest.raises(InputError, match="for 2 classes"):
        fit_conformal([[0.9, 0.1]], [0]).predict([[0.2, 0.3, 0.5]])
