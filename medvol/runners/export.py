"""Exporting a bundle's network, and the proof that its masks stay the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvol.core.errors import ConfigError
from medvol.core.geometry import Geometry
from medvol.inferers import Prediction, open_engine
from medvol.runners.backend import EnginePredictor, export_network
from medvol.runners.record import PredictOptions
from medvol.runners.session import Session

#: Largest change that an export may make: in Dice, and in HD95 in millimetres.
DICE_TOLERANCE = 1e-3
HD95_TOLERANCE_MM = 0.1


@dataclass(frozen=True)
class ExportDifference:
    """One label of one case before and after export.

    Attributes:
        case: Name of the case.
        label: Name of the structure.
        against: ``reference`` where the case has one; else ``torch``, and before is perfect.
        dice: Before and after.
        hd95_mm: Before and after.
    """

    case: str
    label: str
    against: str
    dice: tuple[float, float]
    hd95_mm: tuple[float, float]

    @property
    def is_equivalent(self) -> bool:
        """Whether both scores stay within tolerance; both undefined or both infinite is equal."""
        return _near(*self.dice, DICE_TOLERANCE) and _near(*self.hd95_mm, HD95_TOLERANCE_MM)


def open_for_export(bundle: str, trust_bundle: bool, threads: int) -> Session:
    """A session on the CPU with the bundle's own network."""
    options = PredictOptions(bundle, ".", device="cpu", trust_bundle=trust_bundle, threads=threads)
    return Session(options)


def export_bundle(session: Session, to: str, folder: Path) -> Path:
    """Export the session's network into ``folder``, with a note of the weights it holds.

    Raises:
        ConfigError: If the engine is unknown or the bundle's window is not fixed.
    """
    window, digest = session.window, session.identity["weights_sha256"]
    return export_network(session.network, to, folder, window, digest)


def compare_engines(
    session: Session, to: str, path: Path, cases: Sequence[dict[str, Any]]
) -> list[ExportDifference]:
    """Score the exported network and the original on real cases, by the one pipeline.

    Args:
        session: The bundle, with its own network.
        to: Engine.
        path: What :func:`export_bundle` wrote.
        cases: ``image`` and, if known, ``label`` paths.
    """
    from medvol.metrics import surface_report

    exported = EnginePredictor(open_engine(to, path, session.options.threads), session.network)
    rows = []
    for case in cases:
        name = str(case.get("case") or Path(str(case["image"])).name)
        data: Any = session.preprocessing({"image": case["image"]})
        masks: list[Prediction] = []
        for predictor in (session.network, exported):
            session.predictor = predictor
            masks.append(session.predict(data))
        source = masks[0].source
        reference, against = None, "torch"
        if case.get("label"):
            reference, against = _reference(case, session, source), "reference"
        for value, label in sorted(session.labels.items()):
            ref = masks[0].mask_of(value) if reference is None else reference == value
            scores = [
                surface_report(
                    mask.mask_of(value).astype(np.uint8), ref.astype(np.uint8), source.spacing_mm,
                    metrics=("dice", "hd95"), labels=[1],
                )[1]
                for mask in masks
            ]  # fmt: skip
            dice = (float(scores[0]["dice"]), float(scores[1]["dice"]))
            hd95 = (float(scores[0]["hd95"]), float(scores[1]["hd95"]))
            rows.append(ExportDifference(name, label, against, dice, hd95))
    return rows


def as_rows(differences: Sequence[ExportDifference]) -> list[dict[str, Any]]:
    """Plain values for JSON, undefined numbers as text."""
    rows = []
    for one in differences:
        row = {**asdict(one), "is_equivalent": one.is_equivalent}
        for key in ("dice", "hd95_mm"):
            row[key] = [v if math.isfinite(v) else str(v) for v in row[key]]
        rows.append(row)
    return rows


def _reference(case: dict[str, Any], session: Session, source: Geometry) -> Any:
    from medvol.io import read_label, read_scan

    label = read_label(case["label"], session.labels, reference=read_scan(case["image"]))
    values = np.asarray(label.array)[0]
    if values.shape != source.shape:
        raise ConfigError(f"{case['label']}: its shape {values.shape} is not the image's")
    return np.rint(values).astype(np.uint8)


def _near(one: float, other: float, tolerance: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or abs(one - other) <= tolerance
