"""medvol's mask metrics inside MONAI: a cumulative metric and an ignite handler around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric

from medvol.core.errors import ConfigError, GeometryError

Reduction = Literal["mean", "median"]


class SegmentationMetric(CumulativeIterationMetric):
    """One registered mask metric per case and label, with no case dropped silently.

    Args:
        metric: Name in ``medvol.metrics``, for example ``hd95``.
        labels: Label values to report, or a mapping of value to name.
        reduction: ``mean`` or ``median`` over cases, then the mean over labels. A missed
            structure's infinite distance makes the mean infinite, as it should; the median is
            what stays finite until half are missed.
        spacing_mm: Voxel edge lengths; by default those of each reference's affine.
        params: Further parameters of the metric, such as ``{"tau": 2.0}``.
    """

    def __init__(
        self,
        metric: str,
        labels: Sequence[int] | Mapping[Any, str],
        reduction: Reduction = "mean",
        spacing_mm: Sequence[float] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        from medvol.metrics import find_metric

        super().__init__()
        self.row = find_metric(metric)
        if self.row.of_pair is None or not self.row.is_scalar:
            raise ConfigError(f"metric {metric!r} is no mask metric with one number as value")
        if reduction not in ("mean", "median"):
            raise ConfigError(f"reduction {reduction!r} is neither mean nor median")
        self.labels = [int(value) for value in labels]
        self.names = (
            {int(value): str(name) for value, name in labels.items()}
            if isinstance(labels, Mapping)
            else {value: str(value) for value in self.labels}
        )
        self.reduction, self.spacing_mm, self.params = reduction, spacing_mm, dict(params or {})

    def _compute_tensor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, y_pred: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """Values, shape (B, labels), from label maps (B, 1, ...) or one-hot (B, C, ...)."""
        values = []
        for pred, ref in zip(y_pred, y, strict=True):
            spacing = self.spacing_mm or spacing_mm_of(ref)
            values.append(self._case(_label_map(pred), _label_map(ref), spacing))
        return torch.tensor(values, dtype=torch.float64, device=y_pred.device)

    def aggregate(self, reduction: Reduction | None = None) -> torch.Tensor:
        """The key number: each label reduced over its defined cases, then the mean over labels."""
        per_label = [summary[reduction or self.reduction] for summary in self.summary().values()]
        defined = [value for value in per_label if not math.isnan(value)]
        return torch.tensor(math.fsum(defined) / len(defined) if defined else math.nan)

    def summary(self) -> dict[str, dict[str, float]]:
        """Per label: mean and median of the defined cases, n, n undefined and n infinite."""
        buffer = self.get_buffer()
        if not isinstance(buffer, torch.Tensor):
            raise ConfigError("no case was scored: the metric was asked before any batch")
        table = buffer.cpu().numpy().astype(float)
        found = {}
        for column, value in zip(table.T, self.labels, strict=True):
            known = column[~np.isnan(column)]
            found[self.names[value]] = {
                "mean": float(known.mean()) if known.size else math.nan,
                "median": float(np.median(known)) if known.size else math.nan,
                "n": len(column),
                "n_undefined": int(np.isnan(column).sum()),
                "n_infinite": int(np.isinf(column).sum()),
            }
        return found

    def _case(self, pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float]) -> list[float]:
        from medvol.metrics import label_pairs

        assert self.row.of_pair is not None
        pairs = dict(label_pairs(pred, ref, spacing, self.labels))
        return [float(self.row.of_pair(pairs[value], **self.params)) for value in self.labels]


class SegmentationReport(IgniteMetricHandler):
    """Ignite handler around ``SegmentationMetric``.

    Beside the key number under its own name, the engine's metrics receive
    ``<name>_<label>`` (mean or median), ``<name>_<label>_n_undefined`` and
    ``<name>_<label>_n_infinite``, so that misses show wherever metrics are logged.

    Args:
        metric: Name in ``medvol.metrics``.
        labels: Label values to report, or a mapping of value to name.
        reduction: See ``SegmentationMetric``.
        spacing_mm: See ``SegmentationMetric``.
        params: See ``SegmentationMetric``.
        output_transform: From the engine's output to predictions and references; by default its
            ``pred`` and ``label``.
    """

    def __init__(
        self,
        metric: str,
        labels: Sequence[int] | Mapping[Any, str],
        reduction: Reduction = "mean",
        spacing_mm: Sequence[float] | None = None,
        params: Mapping[str, Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.segmentation = SegmentationMetric(metric, labels, reduction, spacing_mm, params)
        transform = output_transform or from_engine(["pred", "label"])
        super().__init__(metric_fn=self.segmentation, output_transform=transform)

    def completed(self, engine: Engine, name: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hand the key number and each label's numbers to the engine."""
        super().completed(engine, name)
        for label, row in self.segmentation.summary().items():
            engine.state.metrics[f"{name}_{label}"] = row[self.segmentation.reduction]
            for count in ("n_undefined", "n_infinite"):
                engine.state.metrics[f"{name}_{label}_{count}"] = row[count]


def _label_map(channels: torch.Tensor) -> np.ndarray:
    """A label map from (1, ...) label values or (C, ...) one-hot channels, background first."""
    array = channels.detach().cpu().numpy()
    if array.shape[0] == 1:
        return array[0]
    if not np.array_equal(array.sum(axis=0), np.ones(array.shape[1:])):
        raise ConfigError(
            f"{array.shape[0]} channels are no one-hot label map; apply AsDiscrete(to_onehot) or "
            "pass label maps of one channel"
        )
    return array.argmax(axis=0)


def spacing_mm_of(ref: torch.Tensor) -> tuple[float, ...]:
    """Voxel edge lengths of a channel-first MetaTensor, along its array axes.

    Raises:
        GeometryError: If the tensor carries no affine.
    """
    affine = getattr(ref, "affine", None)
    if affine is None:
        raise GeometryError(
            "the reference carries no affine; load it as MetaTensor or pass spacing_mm"
        )
    columns = np.asarray(affine.detach().cpu() if isinstance(affine, torch.Tensor) else affine)
    axes = ref.ndim - 1
    return tuple(float(v) for v in np.linalg.norm(columns[:-1, :axes], axis=0))
