import json

import numpy as np
import pytest

from medvol.core import InputError, MissingInputError
from medvol.evaluation import BootstrapPlan, calibrate, store

FAST = BootstrapPlan(resamples=100)


def logits(path, write_csv, seed, *, temperature=3.0, classes=3, n=600):
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (n, classes))
    prob = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    y = (rng.random((n, 1)) > prob.cumsum(axis=1)).sum(axis=1)
    header = ("case", "truth", *[f"logit_{k}" for k in range(classes)])
    rows = [(f"{path.stem}{k}", y[k], *(temperature * true[k])) for k in range(n)]
    return write_csv(path, header, rows)


@pytest.mark.parametrize("classes", [2, 3])
def test_overconfidence_is_undone_on_cases_not_fitted_on(tmp_path, write_csv, classes):
    paths = [logits(tmp_path / f"{s}.csv", write_csv, s, classes=classes) for s in (0, 1)]
    found = calibrate(*paths, plan=FAST)
    assert found.temperature == pytest.approx(3, rel=0.2)
    rows = {(r.when, r.metric): r for r in found.rows}
    for metric in ("log_loss", "brier", "ece"):
        assert rows["after", metric].value < rows["before", metric].value
    assert rows["after", "slope"].value == pytest.approx(1, abs=0.25)
    assert all(
        r.lower <= r.value <= r.upper and r.n == 600 for r in found.rows if r.metric != "ece"
    )


def test_the_bundle_keeps_the_temperature(tmp_path, write_csv):
    paths = [logits(tmp_path / f"{s}.csv", write_csv, s, n=60) for s in (0, 1)]
    found = calibrate(*paths, plan=FAST)
    with pytest.raises(MissingInputError, match="is no bundle"):
        store(found, tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    content = json.loads(store(found, tmp_path).read_text())
    assert content["temperature"] == found.temperature
    assert len(content["validation_sha256"]) == 64


def test_fitting_and_testing_on_the_same_patients_is_refused(tmp_path, write_csv):
    path = logits(tmp_path / "a.csv", write_csv, 0, n=30)
    with pytest.raises(InputError, match="other patients"):
        calibrate(path, path)
    prob = write_csv(tmp_path / "p.csv", ("case", "truth", "prob"), [("x", 0, 0.2), ("y", 1, 0.7)])
    with pytest.raises(InputError, match="has no logits"):
        calibrate(prob, path)
