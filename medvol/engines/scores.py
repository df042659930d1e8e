"""Segmentation scores of a run, per case and label, with misses counted."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced

from medvol.core.files import write_text
from medvol.engines.metrics import spacing_mm_of

logger = logging.getLogger(__name__)


class SegmentationScores(Metric):
    """Ignite metric: mean Dice over cases and labels, and one mean per label beside it.

    Reads ``pred`` and ``label`` of the engine's decollated output, both label maps of shape
    (1, X, Y[, Z]). A label that is in neither map is undefined and left out of the mean; one that
    is in just one of them scores 0, so that neither a miss nor a false alarm disappears.
    Per-label means enter the engine's metrics as ``<name>_<label>``, the share of voxels that carry
    the right label as ``val_accuracy``.

    Args:
        labels: Label value to name.
        output_dir: Folder of ``scores.csv`` (case, label, metric, value, unit, why_undefined) with
            Dice, HD95, ASSD and NSD; None computes Dice only and writes nothing.
        tau_mm: Tolerance of the normalised surface distance.
    """

    def __init__(
        self,
        labels: Mapping[Any, str],
        output_dir: str | os.PathLike[str] | None = None,
        tau_mm: float = 1.0,
    ) -> None:
        self.names = {int(value): str(name) for value, name in labels.items()}
        self.folder = None if output_dir is None else Path(output_dir)
        self.tau_mm = float(tau_mm)
        super().__init__(output_transform=lambda output: output)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self.dice: dict[int, list[float]] = {value: [] for value in self.names}
        self.right: list[float] = []
        self.rows: list[dict[str, str]] = []

    @reinit__is_reduced
    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Score the cases of one batch."""
        for case in output:
            pred, ref = case["pred"], case["label"]
            self.right.append(float((pred == ref).float().mean()))
            for value, found in self.dice.items():
                found.append(_dice(pred == value, ref == value))
            if self.folder is not None:
                self.rows += self._surface_rows(pred, ref, case)

    def compute(self) -> float:
        """Mean Dice over cases and labels; nan if no label occurs anywhere."""
        if self.folder is not None:
            write_text(self.folder / "scores.csv", _csv(self.rows))
        return _mean([score for found in self.dice.values() for score in found])

    def completed(self, engine: Engine, name: str) -> None:
        """Hand the overall mean and the per-label means to the engine."""
        super().completed(engine, name)
        for value, found in self.dice.items():
            engine.state.metrics[f"{name}_{self.names[value]}"] = _mean(found)
        engine.state.metrics[f"{name.removesuffix('_mean_dice')}_accuracy"] = _mean(self.right)

    def _surface_rows(
        self, pred: torch.Tensor, ref: Any, case: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        from medvol.metrics import surface_report

        report = surface_report(
            pred[0].cpu().numpy().astype("uint8"),
            ref[0].cpu().numpy().astype("uint8"),
            spacing_mm_of(ref),
            self.tau_mm,
            ("dice", "hd95", "assd", "nsd_surfel"),
            labels=list(self.names),
        )
        name = Path(str(case["label"].meta.get("filename_or_obj", len(self.rows)))).name
        return [
            _row(name.split(".")[0], self.names[int(label)], metric, value)
            for label, scores in report.items()
            for metric, value in scores.items()
        ]


class EarlyStop:
    """Ignite handler of the trainer: end training when the key metric has stopped rising.

    Keeps no state of its own: a resumed run knows its best epoch from the checkpoint.

    Args:
        evaluator: Its best epoch is looked at after every training epoch.
        patience: Epochs without a better validation after which training ends.
    """

    def __init__(self, evaluator: Engine, patience: int) -> None:
        self.evaluator = evaluator
        self.patience = int(patience)

    def attach(self, engine: Engine) -> None:
        """Look after every epoch; attach after the validation handler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        best = int(getattr(self.evaluator.state, "best_metric_epoch", -1))
        if best > 0 and engine.state.epoch - best >= self.patience:
            logger.info("no better validation since epoch %d: training ends", best)
            engine.terminate()


def _dice(pred: torch.Tensor, ref: torch.Tensor) -> float:
    size = int(pred.sum()) + int(ref.sum())
    return 2.0 * int((pred & ref).sum()) / size if size else math.nan


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _row(case: str, label: str, metric: str, value: float) -> dict[str, str]:
    unit = "mm" if metric.startswith(("hd", "assd", "masd")) else "1"
    why = "absent in both" if math.isnan(value) else "absent in one" if math.isinf(value) else ""
    return {
        "case": case, "label": label, "metric": metric, "value": repr(float(value)),
        "unit": unit, "why_undefined": why,
    }  # fmt: skip


def _csv(rows: Sequence[dict[str, str]]) -> str:
    sink = io.StringIO()
    names = ("case", "label", "metric", "value", "unit", "why_undefined")
    writer = csv.DictWriter(sink, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()
