"""Classification scores of a validation run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced


class ClassificationScores(Metric):
    """Ignite metric: area under the ROC curve, with accuracy and log loss beside it.

    Reads ``pred`` (probabilities, shape (classes,)) and ``label`` (class number) of the engine's
    decollated output. With more than two classes the area is the mean over one class against the
    rest. The area is ``nan`` where a class has no case; it then never becomes the best epoch.

    Args:
        labels: Class number to name.
    """

    def __init__(self, labels: Mapping[Any, str]) -> None:
        self.classes = [str(labels[key]) for key in sorted(labels, key=int)]
        super().__init__(output_transform=lambda output: output)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self.probabilities: list[np.ndarray] = []
        self.truths: list[int] = []

    @reinit__is_reduced
    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Remember the cases of one batch."""
        for case in output:
            self.probabilities.append(np.asarray(case["pred"].detach().cpu(), np.float64))
            self.truths.append(int(case["label"]))

    def compute(self) -> float:
        """The area, 0 to 1, or ``nan``."""
        from medvol.metrics import auc_roc

        p, y = self._arrays()
        if len(self.classes) == 2:
            return auc_roc(y, p[:, 1])
        return float(np.mean([auc_roc(y == c, p[:, c]) for c in range(len(self.classes))]))

    def completed(self, engine: Engine, name: str) -> None:
        """Hand the area, the accuracy and the log loss to the engine."""
        super().completed(engine, name)
        p, y = self._arrays()
        chosen = np.maximum(p[np.arange(len(y)), y], 1e-12)
        accuracy = float((p.argmax(1) == y).mean()) if len(y) else math.nan
        engine.state.metrics["val_accuracy"] = accuracy
        engine.state.metrics["val_log_loss"] = float(-np.log(chosen).mean()) if len(y) else math.nan

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        shape = (-1, len(self.classes))
        return np.asarray(self.probabilities, float).reshape(shape), np.asarray(self.truths, int)
