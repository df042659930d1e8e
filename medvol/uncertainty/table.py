"""``predictions.csv`` and ``prediction.json``: what a classifier said about every case."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from medvol.core import ConfigError, output_path, rows_to_csv, sha256_file, write_json, write_text
from medvol.io import image_digest
from medvol.uncertainty.operating import Decision, load_operating

#: Least probability whose logarithm is written; softmax in float32 reaches 0.
_TINY = 1e-12
#: Columns beside those that are named by the classes.
_COLUMNS = frozenset({"case", "image", "predicted", "threshold", "interval_low", "interval_high",
                      "conformal_set", "review", "truth"})  # fmt: skip


class PredictionTable:
    """Ignite handler of an evaluator: writes what was predicted, with what it rests on.

    ``predictions.csv`` has a row per case: case, image (relative to the data folder), one
    probability per class, predicted, threshold, interval_low and interval_high of the positive
    class, conformal_set, review, the log probabilities that the network gave (``logit_...``), and
    the truth where the batch holds a label. ``<case>/prediction.json`` adds bundle, digests,
    device and seconds.

    Args:
        output_dir: Where to write.
        labels: Class number to name.
        operating: The operating point's file; plain threshold 0.5 where it does not exist.
        bundle_root: The bundle whose metadata are quoted; None quotes none.
        data_root: Folder that image paths are given relative to.
        has_truth: Whether ``label`` of the batch is the true class.
        writes_cases: Whether to write ``prediction.json`` for every case.

    Raises:
        ConfigError: If a class has the name of another column, which would hide its probability.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        labels: Mapping[Any, str],
        operating: str | os.PathLike[str] = "",
        bundle_root: str | os.PathLike[str] | None = None,
        data_root: str | os.PathLike[str] = "",
        has_truth: bool = False,
        writes_cases: bool = True,
    ) -> None:
        self.folder = Path(output_dir)
        self.classes = tuple(str(labels[key]) for key in sorted(labels, key=int))
        if taken := [name for name in self.classes if name in _COLUMNS]:
            raise ConfigError(f"class {taken[0]!r} has the name of a column of predictions.csv; "
                              "call it otherwise in the bundle's labels")  # fmt: skip
        self.operating = load_operating(operating or self.folder / "none", self.classes)
        self.data_root = Path(os.path.abspath(data_root)) if data_root else None
        self.bundle = {} if bundle_root is None else _bundle_facts(Path(bundle_root))
        self.has_truth, self.writes_cases = has_truth, writes_cases

    def attach(self, engine: Engine) -> None:
        """Collect with every batch, write when the engine ends."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        self.rows: list[dict[str, str]] = []
        self.names: set[str] = set()
        self.since = time.perf_counter()

    def _collect(self, engine: Engine) -> None:
        seconds = time.perf_counter() - self.since
        output, batch = engine.state.output, engine.state.batch
        probabilities = np.stack([np.asarray(_array(item["pred"]), np.float64) for item in output])  # pyright: ignore[reportOptionalIterable, reportGeneralTypeIssues]
        logits = np.log(np.maximum(probabilities, _TINY))
        decisions = self.operating.decide(logits)
        for item, case, row, decision in zip(output, _items(batch), logits, decisions, strict=True):  # pyright: ignore[reportArgumentType]
            self._add(item, case, row, decision, str(getattr(engine.state, "device", "")), seconds)
        self.since = time.perf_counter()

    def _add(self, item, case, logits, decision: Decision, device: str, seconds: float) -> None:
        path = Path(str(case["source"]))
        name = self._name(str(case.get("case") or path.stem))
        row = {"case": name, "image": self._relative(path)}
        row |= {key: f"{value:.6f}" for key, value in decision.probabilities.items()}
        row |= decision_columns(decision)
        row |= {f"logit_{n}": f"{v:.6f}" for n, v in zip(self.classes, logits, strict=True)}
        if self.has_truth:
            row["truth"] = self.classes[int(_array(item["label"]))]
        self.rows.append(row)
        if self.writes_cases:
            self._write_case(name, path, decision, device, seconds)

    def _name(self, base: str) -> str:
        name, number = base, 1
        while name in self.names:
            number += 1
            name = f"{base}_{number}"
        self.names.add(name)
        return name

    def _relative(self, path: Path) -> str:
        if self.data_root is not None and path.is_relative_to(self.data_root):
            return path.relative_to(self.data_root).as_posix()
        return path.name

    def _write_case(
        self, name: str, path: Path, decision: Decision, device: str, seconds: float
    ) -> None:
        content = {
            "case": name,
            "image": self._relative(path),
            "image_sha256": image_digest(path) if path.exists() else None,
            "bundle": self.bundle,
            "operating": self.operating.source,
            "probabilities": decision.probabilities,
            "predicted": decision.predicted,
            "threshold": decision.threshold,
            "interval": decision.interval and list(decision.interval),
            "conformal_set": None if decision.conformal_set is None else [*decision.conformal_set],
            "review": {"is_needed": decision.review.is_needed, "reason": decision.review.reason},
            "device": device,
            "seconds": round(seconds, 4),
        }
        write_json(output_path(self.folder, name, "prediction.json"), content)

    def _write(self) -> None:
        write_text(self.folder / "predictions.csv", rows_to_csv(self.rows, ("case", "image")))


def decision_columns(decision: Decision) -> dict[str, str]:
    """The columns of ``predictions.csv`` that follow the probabilities."""
    low, high = decision.interval or (math.nan, math.nan)
    kept = decision.conformal_set
    return {
        "predicted": decision.predicted,
        "threshold": "" if decision.threshold is None else f"{decision.threshold:.6f}",
        "interval_low": "" if math.isnan(low) else f"{low:.6f}",
        "interval_high": "" if math.isnan(high) else f"{high:.6f}",
        "conformal_set": "" if kept is None else "{" + " ".join(kept) + "}",
        "review": decision.review.reason,
    }


def _items(batch: Any) -> list[Mapping[str, Any]]:
    if isinstance(batch, Sequence):
        return list(batch)
    return [{"source": source} for source in batch["source"]]


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _bundle_facts(root: Path) -> dict[str, Any]:
    metadata = root / "configs" / "metadata.json"
    weights = root / "models" / "model.pt"
    facts: dict[str, Any] = {"name": root.name}
    if metadata.is_file():
        facts["version"] = json.loads(metadata.read_text(encoding="utf-8")).get("version")
    if weights.is_file():
        facts["weights_sha256"] = sha256_file(weights)
    return facts
