import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy.special import log_softmax
from sklearn.isotonic import IsotonicRegression

from medvol.core import ConfigError, InputError
from medvol.uncertainty import (
    Operating,
    PredictionTable,
    VennAbers,
    fit_operating,
    load_operating,
)

CLASSES = ("normal", "pneumonia")


def scores(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    signal = rng.normal(1.5 * labels, 1.0)
    return np.stack([-signal + 0.7, signal - 0.7], 1) * 2, labels


def test_fitted_threshold_reaches_the_sensitivity_and_no_higher_one_does():
    logits, labels = scores(300)
    fitted = fit_operating(logits, labels, CLASSES)
    p = np.array([d.probabilities["pneumonia"] for d in fitted.decide(logits)])[labels == 1]
    assert (p >= fitted.threshold - 1e-12).mean() >= 0.95
    assert (p >= fitted.threshold + 1e-6).mean() < 0.95
    called = [d.predicted == "pneumonia" for d in fitted.decide(logits)]
    assert np.mean(np.array(called)[labels == 1]) >= 0.95


def test_sets_cover_new_cases_of_each_class():
    fitted = fit_operating(*scores(2000), CLASSES, alpha=0.1)
    logits, labels = scores(2000, 1)
    held = [
        CLASSES[y] in d.conformal_set for d, y in zip(fitted.decide(logits), labels, strict=True)
    ]
    for number in (0, 1):
        assert 0.86 <= np.mean(np.array(held)[labels == number]) <= 0.94


def test_review_is_asked_where_the_set_is_not_one_class():
    fitted = fit_operating(*scores(300), CLASSES)
    for decision in fitted.decide(scores(50, 2)[0]):
        assert decision.review.is_needed == (len(decision.conformal_set) != 1)


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_an_interval_holds_the_probability_beside_it_and_venn_abers_own(bias):
    # With a bias no temperature is right, and Venn-Abers disagrees with it.
    logits, labels = scores(300)
    fitted = fit_operating(logits + np.array([0, bias]), labels, CLASSES)
    new = scores(100, 4)[0] + np.array([0, bias])
    own = fitted.calibration.intervals(new[:, 1] - new[:, 0])
    outside = 0
    for decision, (lower, upper) in zip(fitted.decide(new), own, strict=True):
        found = decision.probabilities["pneumonia"]
        assert decision.interval[0] <= min(found, lower) <= max(found, upper)
        assert decision.interval[1] == max(found, upper)
        outside += not lower <= found <= upper
    assert outside or not bias


def test_operating_point_survives_its_file(tmp_path):
    fitted = fit_operating(*scores(60), CLASSES, source="60 cases")
    fitted.save(tmp_path / "operating.json")
    loaded = load_operating(tmp_path / "operating.json", CLASSES)
    logits = scores(20, 3)[0]
    assert loaded.source == "60 cases"
    assert loaded.threshold == fitted.threshold
    for a, b in zip(loaded.decide(logits), fitted.decide(logits), strict=True):
        assert a.predicted == b.predicted
        assert a.conformal_set == b.conformal_set
        assert a.interval == pytest.approx(b.interval, abs=1e-4)


def test_absent_file_is_the_plain_threshold_and_wrong_files_are_rejected(tmp_path):
    plain = load_operating(tmp_path / "none.json", CLASSES)
    assert [d.predicted for d in plain.decide([[0.0, 1.0], [1.0, 0.0]])] == [*CLASSES[::-1]]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"bad\.json: is not an operating point"):
        load_operating(tmp_path / "bad.json", CLASSES)
    fit_operating(*scores(60), CLASSES).save(tmp_path / "two.json")
    with pytest.raises(ConfigError, match="is for classes"):
        load_operating(tmp_path / "two.json", ("a", "b"))
    with pytest.raises(InputError, match="for 2 classes"):
        plain.decide([[0.0, 1.0, 2.0]])


def test_more_than_two_classes_take_the_highest():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = rng.normal(size=(200, 3)) + 2 * np.eye(3)[labels]
    fitted = fit_operating(logits, labels, ("a", "b", "c"))
    decisions = fitted.decide(logits)
    assert fitted.threshold is None
    assert [d.predicted for d in decisions] == ["abc"[i] for i in logits.argmax(1)]
    assert all(d.interval is None and d.threshold is None for d in decisions)


def test_venn_abers_is_two_isotonic_regressions():
    logits, labels = scores(80)
    margin = np.round(logits[:, 1] - logits[:, 0], 1)  # with ties
    fitted = VennAbers(tuple(margin.tolist()), tuple(labels.tolist()))
    for score in (-9.0, -1.03, 0.5, 2.2, 9.0):
        wanted = [
            IsotonicRegression(out_of_bounds="clip")
            .fit(np.append(margin, score), np.append(labels, assumed))
            .predict([score])[0]
            for assumed in (0, 1)
        ]
        np.testing.assert_allclose(fitted.intervals([score])[0], wanted, atol=1e-9)


def test_venn_abers_intervals_hold_the_frequency():
    fitted = VennAbers(*_margins(scores(500)))
    margins, labels = _margins(scores(600, 5))
    low, high = fitted.intervals(margins).T
    assert (low <= high).all()
    for part in np.array_split(np.argsort(margins), 4):
        # Four groups of 150: three standard errors of a proportion are at most 0.12.
        frequency = np.mean(np.array(labels)[part])
        assert low[part].mean() - 0.12 <= frequency <= high[part].mean() + 0.12


def _margins(case):
    logits, labels = case
    return tuple((logits[:, 1] - logits[:, 0]).tolist()), tuple(int(y) for y in labels)


def test_venn_abers_needs_both_classes():
    with pytest.raises(InputError):
        VennAbers((1.0, 2.0), (1, 1))
    with pytest.raises(InputError):
        VennAbers((1.0, math.nan), (0, 1))


def run_table(tmp_path, handler, logits, labels, images=None):
    """What MONAI's evaluator hands to its handlers after decollating."""
    if images is None:
        images = [tmp_path / "data" / f"case{i % 3}.png" for i in range(len(logits))]
        for image in images:
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(b"x")

    def step(engine, index):
        p = torch.tensor(np.exp(log_softmax(logits[index])))
        engine.state.batch = [{"source": str(images[index])}]
        return [{"pred": p, "label": torch.tensor(labels[index])}]

    engine = Engine(step)
    handler.attach(engine)
    engine.run(range(len(logits)))


def test_table_holds_a_row_per_case_with_calibrated_probabilities(tmp_path):
    fit_operating(*scores(80), CLASSES).save(tmp_path / "operating.json")
    operating = load_operating(tmp_path / "operating.json", CLASSES)
    logits, labels = scores(5, 9)
    table = PredictionTable(tmp_path / "out", {"0": "normal", "1": "pneumonia"},
                            tmp_path / "operating.json", data_root=tmp_path / "data",
                            has_truth=True)  # fmt: skip
    run_table(tmp_path, table, logits, labels)
    rows = [line.split(",") for line in (tmp_path / "out/predictions.csv").read_text().splitlines()]
    head = rows[0]
    assert head[:5] == ["case", "image", "normal", "pneumonia", "predicted"]
    for wanted in (
        "threshold",
        "interval_low",
        "interval_high",
        "conformal_set",
        "review",
        "truth",
    ):
        assert wanted in head
    assert [r[0] for r in rows[1:]] == ["case0", "case1", "case2", "case0_2", "case1_2"]
    for row, decision, label in zip(rows[1:], operating.decide(logits), labels, strict=True):
        known = dict(zip(head, row, strict=True))
        assert float(known["pneumonia"]) == pytest.approx(
            decision.probabilities["pneumonia"], abs=1e-4
        )
        assert known["predicted"] == decision.predicted
        assert known["truth"] == CLASSES[label]
    case = json.loads((tmp_path / "out" / "case0" / "prediction.json").read_text())
    assert case["image"] == "case0.png"
    assert case["operating"].startswith("80 held-out")
    assert str(tmp_path) not in json.dumps(case)


def test_a_prediction_names_the_digest_of_an_image_of_several_files(tmp_path):
    data = tmp_path / "data"
    (data / "series").mkdir(parents=True)
    (data / "series" / "1.dcm").write_bytes(b"x")
    for name in "ab":
        (data / f"{name}.mhd").write_text(f"ElementDataFile = {name}.raw\n")
        (data / f"{name}.raw").write_bytes(name.encode())
    images = [data / "series", data / "a.mhd", data / "b.mhd"]
    table = PredictionTable(tmp_path / "out", {0: "normal", 1: "pneumonia"})
    run_table(tmp_path, table, np.zeros((3, 2)), [0, 0, 0], images)
    before = [json.loads((tmp_path / "out" / i.stem / "prediction.json").read_text())
              for i in images]  # fmt: skip
    (data / "b.raw").write_bytes(b"other")
    run_table(tmp_path, table, np.zeros((3, 2)), [0, 0, 0], images)
    after = json.loads((tmp_path / "out" / "b" / "prediction.json").read_text())
    assert None not in [row["image_sha256"] for row in before]
    assert before[2]["image_sha256"] != after["image_sha256"]


@pytest.mark.parametrize("name", ["case", "review", "truth", "threshold"])
def test_a_class_named_like_a_column_is_rejected(tmp_path, name):
    with pytest.raises(ConfigError, match=f"'{name}' has the name of a column"):
        PredictionTable(tmp_path, {0: "normal", 1: name})


def test_infinite_confidence_is_written_as_finite_numbers(tmp_path):
    table = PredictionTable(tmp_path / "out", {0: "normal", 1: "pneumonia"})
    run_table(tmp_path, table, np.array([[900.0, -900.0]]), [0])
    text = (tmp_path / "out/predictions.csv").read_text()
    assert "inf" not in text
    assert "nan" not in text
    assert Operating(CLASSES).decide([[0.0, -800.0]])[0].predicted == "normal"


def test_folds_tables_become_one_operating_point(tmp_path):
    from PIL import Image

    from tools.fit_operating import fit

    logits, labels = scores(60)
    lines = ["image,class,patient_id"]
    for i, label in enumerate(labels):
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / f"c{i}.png")
        lines.append(f"c{i}.png,{CLASSES[label]},p{i // 2}")
    (tmp_path / "datalist.csv").write_text("\n".join(lines))
    tables = []
    for fold in range(2):
        rows = [f"c{i},{a},{b},{CLASSES[y]}" for i, ((a, b), y) in
                enumerate(zip(logits, labels, strict=True)) if i // 2 % 2 == fold]  # fmt: skip
        tables.append(tmp_path / f"fold{fold}.csv")
        tables[-1].write_text("\n".join(["case,logit_normal,logit_pneumonia,truth", *rows]))
    found = fit(tables, tmp_path, 0.95, 0.1)
    patients = [f"p{i // 2}" for i in range(60)]
    wanted = fit_operating(logits, labels, CLASSES, patients)
    assert found.source == "60 out-of-fold cases of 30 patients"
    assert found.threshold == pytest.approx(wanted.threshold)
    assert found.conformal.thresholds == pytest.approx(wanted.conformal.thresholds)
    assert found.conformal.patients == wanted.conformal.patients
    with pytest.raises(InputError, match="in two tables"):
        fit([tables[0], tables[0]], tmp_path, 0.95, 0.1)
