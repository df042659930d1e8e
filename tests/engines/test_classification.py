import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from medvol.engines import ClassificationScores


def scored(p, y):
    engine = Engine(lambda _e, batch: [{"pred": torch.tensor(r), "label": t} for r, t in batch])
    labels = {str(i): f"class {i}" for i in range(p.shape[1])}
    ClassificationScores(labels).attach(engine, "val_auc")
    items = list(zip(p, y, strict=True))
    engine.run([items[:3], items[3:]])
    return engine.state.metrics


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_scikit_learns(classes):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(classes), 40)
    y = rng.integers(0, classes, 40)
    found = scored(p, y)
    wanted = roc_auc_score(y, p[:, 1]) if classes == 2 else roc_auc_score(y, p, multi_class="ovr")
    assert found["val_auc"] == pytest.approx(wanted)
    assert found["val_accuracy"] == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert found["val_log_loss"] == pytest.approx(log_loss(y, p))


def test_area_without_a_class_is_undefined():
    assert math.isnan(scored(np.full((5, 2), 0.5), np.zeros(5, int))["val_auc"])
