"""Segmentation scores of a run, per case and label, with misses counted."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced

from medvol.core.files import write_text
from medvol.engines.metrics import spacing_mm_of

if TYPE_CHECKING:
    from medvol.metrics import Score

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
        output_dir: Folder of ``scores.csv`` (case, label, metric, value, unit, why_undefined; a
            case goes by its ``case`` in the batch, else by its label's file) with
            Dice, HD95, ASSD and NSD; None computes Dice only and writes nothing.
        tau_mm: Tolerance of the normalised surface distance.
        regions: Region name to the label values that it joins; where given, the mean and the
            engine's metrics are those of regions instead of labels.
        ignore_label: Voxels with this reference value are left out of every number.
    """

    def __init__(
        self,
        labels: Mapping[Any, str],
        output_dir: str | os.PathLike[str] | None = None,
        tau_mm: float = 1.0,
        regions: Mapping[str, Sequence[int]] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        self.names = {int(value): str(name) for value, name in labels.items()}
        by_label = {name: (value,) for value, name in self.names.items()}
        self.members = {n: tuple(map(int, v)) for n, v in (regions or by_label).items()}
        self.ignore_label = ignore_label
        self.folder = None if output_dir is None else Path(output_dir)
        self.tau_mm = float(tau_mm)
        self.cases: list[str | None] = []
        super().__init__(output_transform=lambda output: output)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self.dice: dict[str, list[float]] = {name: [] for name in self.members}
        self.right: list[float] = []
        self.rows: list[Score] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Note what the batch's cases are called, and score them."""
        batch: Any = engine.state.batch
        self.cases = [row.get("case") for row in batch] if isinstance(batch, list) else []
        super().iteration_completed(engine)

    @reinit__is_reduced
    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Score the cases of one batch."""
        for number, case in enumerate(output):
            pred, ref = self._kept(case["pred"], case["label"])
            is_counted = torch.as_tensor(case["label"] != self.ignore_label)
            self.right.append(float((pred == ref)[is_counted].float().mean()))
            for name, values in self.members.items():
                self.dice[name].append(_dice(_is_in(pred, values), _is_in(ref, values)))
            if self.folder is not None:
                name = self.cases[number] if number < len(self.cases) else None
                self.rows += self._rows(name or _file_name(ref, len(self.rows)), pred, ref)

    def compute(self) -> float:
        """Mean Dice over cases and labels; nan if no label occurs anywhere."""
        if self.folder is not None:
            from medvol.metrics import scores_to_csv

            write_text(self.folder / "scores.csv", scores_to_csv(self.rows))
        return _mean([score for found in self.dice.values() for score in found])

    def completed(self, engine: Engine, name: str) -> None:
        """Hand the overall mean and the per-label means to the engine."""
        super().completed(engine, name)
        for label, found in self.dice.items():
            engine.state.metrics[f"{name}_{label}"] = _mean(found)
        engine.state.metrics[f"{name.removesuffix('_mean_dice')}_accuracy"] = _mean(self.right)

    def _kept(self, pred: torch.Tensor, ref: Any) -> tuple[torch.Tensor, Any]:
        """Both maps with ignored voxels made background in each."""
        if self.ignore_label is None:
            return pred, ref
        is_ignored = ref == self.ignore_label
        return torch.where(is_ignored, 0, pred), torch.where(is_ignored, 0, ref)

    def _rows(self, name: str, pred: torch.Tensor, ref: Any) -> list[Score]:
        from medvol.metrics import MetricPlan, score_case

        plan = MetricPlan(("dice", "hd95", "assd", "nsd_surfel"), (self.tau_mm,))
        pred_map, ref_map = (v[0].cpu().numpy().astype("uint16") for v in (pred, ref))
        spacing_mm = spacing_mm_of(ref)
        return score_case(name, pred_map, ref_map, spacing_mm, labels=self.names, plan=plan)


class EarlyStop:
    """Ignite handler of the trainer: end training when the key metric has stopped rising.

    Keeps no state of its own: a resumed run knows its best epoch from the checkpoint, and one
    that had ended trains no further.

    Args:
        evaluator: Its best epoch is looked at after every training epoch.
        patience: Epochs without a better validation after which training ends.
    """

    def __init__(self, evaluator: Engine, patience: int) -> None:
        self.evaluator = evaluator
        self.patience = int(patience)

    def attach(self, engine: Engine) -> None:
        """Look after every epoch; attach after the validation handler."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._look, 1)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._look, 0)

    def _look(self, engine: Engine, began: int) -> None:
        best = int(getattr(self.evaluator.state, "best_metric_epoch", -1))
        if best > 0 and engine.state.epoch - began - best >= self.patience:
            logger.info("no better validation since epoch %d: training ends", best)
            engine.terminate()


def _file_name(ref: Any, default: int) -> str:
    name = Path(str(ref.meta.get("filename_or_obj", default))).name
    return Path(name.removesuffix(".gz")).stem


def _is_in(array: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    return torch.stack([array == value for value in values]).any(dim=0)


def _dice(pred: torch.Tensor, ref: torch.Tensor) -> float:
    size = int(pred.sum()) + int(ref.sum())
    return 2.0 * int((pred & ref).sum()) / size if size else math.nan


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
