"""Segmentation scores of a run, per case and structure, with false negatives counted."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced

from medvol.core.errors import GeometryError
from medvol.core.files import write_text

if TYPE_CHECKING:
    from medvol.metrics import CaseLine, Measured

logger = logging.getLogger(__name__)


class SegmentationScores(Metric):
    """Ignite metric: mean Dice over cases and labels, and one mean per label beside it.

    Reads ``pred`` and ``label`` of the engine's decollated output, both label maps of shape
    (1, X, Y[, Z]). A label that is in neither map is undefined and left out of the mean; one that
    is in just one of them scores 0, so that neither a false negative nor a false positive
    disappears. Per-label means enter the engine's metrics as ``<name>_<label>``, the share of
    voxels that carry the right label as ``val_accuracy``.

    Args:
        labels: Label value to name.
        output_dir: Folder of the tables that ``medvol evaluate masks`` writes for the same cases:
            ``scores.csv``, ``volumes.csv``, ``cases.csv`` and ``run.json`` (a case goes by its
            ``case`` in the batch, else by its label's file); None computes Dice only and writes
            nothing.
        regions: Region name to the label values that it joins; where given, every number is of
            regions instead of labels.
        ignore_label: Voxels with this reference value are left out of every number.
        metrics: Names of mask metrics; by default those of ``medvol evaluate masks``.
        taus_mm: Tolerances of the surface Dice; by default likewise.
    """

    def __init__(
        self,
        labels: Mapping[Any, str],
        output_dir: str | os.PathLike[str] | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
        ignore_label: int | None = None,
        metrics: Sequence[str] | None = None,
        taus_mm: Sequence[float] | None = None,
    ) -> None:
        from medvol.metrics import MetricPlan, Structures

        self.structures = Structures.of(labels, regions, ignore_label)
        given = {"metrics": metrics, "taus_mm": taus_mm}
        self.plan = MetricPlan(**{k: tuple(v) for k, v in given.items() if v is not None})  # pyright: ignore[reportArgumentType]
        self.plan.calls()
        self.folder = None if output_dir is None else Path(output_dir)
        self.batch: list[Any] = []
        super().__init__(output_transform=lambda output: output)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self.dice: dict[str, list[float]] = {name: [] for name in self.structures.members}
        self.right: list[float] = []
        self.found: list[tuple[CaseLine, Measured]] = []
        self.inputs: list[Path] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Note what is known of the batch's cases, and score them."""
        batch: Any = engine.state.batch
        self.batch = batch if isinstance(batch, list) else []
        super().iteration_completed(engine)

    @reinit__is_reduced
    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Score the cases of one batch."""
        ignored = self.structures.ignore_label
        for number, case in enumerate(output):
            pred, ref = case["pred"], case["label"]
            is_counted = torch.as_tensor(ref != ignored)
            self.right.append(float((pred == ref)[is_counted].float().mean()))
            for name, values in self.structures.members.items():
                masks = [_is_in(one, values) & is_counted for one in (pred, ref)]
                self.dice[name].append(_dice(*masks))
            if self.folder is not None:
                known = self.batch[number] if number < len(self.batch) else {}
                self._measure(known, pred, ref)

    def compute(self) -> float:
        """Mean Dice over cases and labels; nan if no label occurs anywhere."""
        if self.folder is not None:
            self._write(self.folder)
        return _mean([score for found in self.dice.values() for score in found])

    def completed(self, engine: Engine, name: str) -> None:
        """Hand the overall mean and the per-label means to the engine."""
        super().completed(engine, name)
        for label, found in self.dice.items():
            engine.state.metrics[f"{name}_{label}"] = _mean(found)
        engine.state.metrics[f"{name.removesuffix('_mean_dice')}_accuracy"] = _mean(self.right)

    def _measure(self, known: Mapping[str, Any], pred: torch.Tensor, ref: Any) -> None:
        from medvol.metrics import CaseLine, Measured, measure_case

        name = str(known.get("case") or _file_name(ref, len(self.found)))
        line = CaseLine(name, str(known.get("patient_group", "")), split=known.get("split", ""))
        pred_map, ref_map = (one[0].detach().cpu().numpy().astype(np.uint16) for one in (pred, ref))
        measured = Measured()
        for rows in measure_case(
            name, pred_map, ref_map, spacing_mm_of(ref), structures=self.structures, plan=self.plan
        ).values():
            measured.add(rows)
        self.found.append((line, measured))
        self.inputs += [path for one in (known.get("image"), ref) if (path := _file_of(one))]

    def _write(self, folder: Path) -> None:
        from medvol.core.runs import BUNDLE_RUN, write_run
        from medvol.metrics import Measured, measured_tables

        found = sorted(self.found, key=lambda pair: pair[0].case)
        measured = Measured()
        for _, rows in found:
            measured.add(rows)
        lines = [line for line, _ in found]
        if trained := [line.case for line in lines if line.split == "train"]:
            logger.warning(
                "%d of %d cases are training cases of the data set (for example %s): scores of "
                "cases that the network was trained on do not measure accuracy",
                len(trained), len(lines), trained[0],
            )  # fmt: skip
        tables = measured_tables(measured, lines)
        for name, text in tables.items():
            write_text(folder / name, text)
        options = {
            "labels": self.structures.labels, "regions": self.structures.regions,
            "ignore_label": self.structures.ignore_label, "metrics": self.plan.metrics,
            "taus_mm": self.plan.taus_mm,
        }  # fmt: skip
        write_run(folder, BUNDLE_RUN, options, self.inputs, tables)


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


def spacing_mm_of(ref: torch.Tensor) -> tuple[float, ...]:
    """Voxel edge lengths of a channel-first MetaTensor, along its array axes.

    Raises:
        GeometryError: If the tensor carries no affine.
    """
    affine = getattr(ref, "affine", None)
    if affine is None:
        raise GeometryError("the reference carries no affine; load it as a MetaTensor")
    columns = np.asarray(affine.detach().cpu() if isinstance(affine, torch.Tensor) else affine)
    axes = ref.ndim - 1
    return tuple(float(v) for v in np.linalg.norm(columns[:-1, :axes], axis=0))


def _file_of(image: Any) -> Path | None:
    """The file or folder that an image was read from, if it is still there."""
    name = getattr(image, "meta", {}).get("filename_or_obj")
    path = Path(name) if isinstance(name, (str, os.PathLike)) else None
    return path if path is not None and path.exists() else None


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
